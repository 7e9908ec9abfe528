"""One process that decodes a delta as a device does, and says in JSON how fast it was or how much memory it took.

`device.py baseline`: peak memory of an interpreter with numpy. `device.py memory OLD DELTA NEW`: the same with one decoding.
`device.py speed OLD DELTA NEW COUNT`: megabytes of output per CPU second of each decoding after a first, unmeasured one; every result is
compared with NEW. New files lie in memory where there is a file system for that: syncing a disk takes 0.1 ms or 4 of CPU, by what its
journal has to do for others, says nothing of the decoder, and the other tools do not sync.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

#: A file system in memory, on Linux.
IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


def main() -> int:
    mode, *names = sys.argv[1:]
    if mode == "baseline":
        import numpy as np

        answer: object = peak_mb() if np else None
    else:
        old, delta, new = (Path(name) for name in names[:3])
        with tempfile.TemporaryDirectory(prefix="bench-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
            answer = memory_of(old, delta, new, Path(folder)) if mode == "memory" else speeds(old, delta, new, Path(folder), int(names[3]))
    print(json.dumps(answer))
    return 0


def memory_of(old: Path, delta: Path, new: Path, folder: Path) -> float:
    """Peak memory of this process, MB, after one decoding."""
    import numpy as np  # noqa: F401  # the baseline has it too

    from protocol.delta.decoder import apply

    apply(delta, old, folder / "out", max_new_bytes=new.stat().st_size)
    peak = peak_mb()
    check(folder / "out", new)
    return peak


def speeds(old: Path, delta: Path, new: Path, folder: Path, count: int) -> list[float]:
    """MB of output per second of CPU, both hashes, writing and fsync included."""
    from protocol.delta.decoder import apply

    found, length = [], new.stat().st_size
    for number in range(count + 1):
        out = folder / f"out-{number}"
        before = time.process_time()
        apply(delta, old, out, max_new_bytes=length)
        found.append(length / 1e6 / (time.process_time() - before))
        check(out, new)
        out.unlink()
    return found[1:]


def check(made: Path, wanted: Path) -> None:
    """Raises: RuntimeError when the decoded file is not the wanted one."""
    if made.read_bytes() != wanted.read_bytes():
        raise RuntimeError(f"The decoded file differs from {wanted.name}.")


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status says no VmHWM.")


if __name__ == "__main__":
    sys.exit(main())
