"""Making a file from a delta and a base: the decoder runs in a child under limits, `python -m agent.update.applier`, as all heavy work.

A delta is hostile until its result has the signed digest. The child is killed with this process, so none writes beside the next one.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from agent.children import ONE_THREAD, child_environment
from agent.slots import disk_error
from agent.update.assignment import OfferedDelta, OfferedFile
from agent.update.fetch import StoppedError
from protocol.delta.container import HEADER_BYTES, Header
from protocol.delta.errors import DeltaError
from protocol.errors import DeviceError, MooringError

#: Seconds of system time: for starting, and bytes of the result per second on the slowest board that we know, with room.
START_S, LEAST_BYTES_PER_S = 60.0, 256 << 10
#: Between two looks whether the child shall stop.
LOOK_S = 0.2
MAX_ANSWER_BYTES = 64 << 10
#: The interpreter with numpy and zstandard, beyond what decoding needs.
INTERPRETER_BYTES = 512 << 20


class DeltaApplier(Protocol):
    """The decoder, as the update's steps see it."""

    def check(self, file: OfferedFile, offered: OfferedDelta, delta: Path) -> None:
        """Whether the delta says that it makes the file within this device's limits; touches nothing. Raises: DeltaError; OSError."""
        ...

    def apply(self, file: OfferedFile, delta: Path, base: Path | None, result: Path, *, should_stop: Callable[[], bool]) -> None:
        """Make `result`, durably, with the file's length and digest; or nothing.

        Raises: DeltaError when the delta does not make it; StoppedError; DeviceError (disk, child); OSError.
        """
        ...


class ChildApplier:
    """Runs the decoder in a child process."""

    def __init__(self, *, memory_mb: Callable[[], int] = lambda: 64) -> None:
        self._memory_mb = memory_mb

    def check(self, file: OfferedFile, offered: OfferedDelta, delta: Path) -> None:
        with delta.open("rb") as begin:
            check_header(begin.read(HEADER_BYTES), file, offered, memory_mb=self._memory_mb())

    def apply(self, file: OfferedFile, delta: Path, base: Path | None, result: Path, *, should_stop: Callable[[], bool]) -> None:
        options = {
            "--delta": str(delta),
            "--base": "" if base is None else str(base),
            "--result": str(result),
            "--bytes": str(file.length),
            "--sha256": file.sha256,
            "--memory-mb": str(self._memory_mb()),
        }
        command = [sys.executable, "-m", "agent.update.applier", *(f"{name}={value}" for name, value in options.items())]
        environment = {**child_environment(), **ONE_THREAD}
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        try:
            status = _wait(child, START_S + file.length / LEAST_BYTES_PER_S, should_stop)
            answer = b"" if child.stdout is None else child.stdout.read(MAX_ANSWER_BYTES)
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        _raise_answer(answer, status, file)


def check_header(header: bytes, file: OfferedFile, offered: OfferedDelta, *, memory_mb: int) -> None:
    """Whether the header fits what was signed and the memory that may be used. Raises: DeltaError."""
    found = Header.parse(header)
    if (found.new_sha256, found.new_bytes) != (file.sha256, file.length):
        raise DeltaError(f"The delta makes {found.new_bytes} bytes, {found.new_sha256}; wanted {file.length} bytes, {file.sha256}.")
    if (found.method, found.old_sha256) != (offered.method, offered.base_sha256):
        raise DeltaError(
            f"The delta has method {int(found.method)} and base {found.old_sha256}; "
            f"the director says method {offered.method} and {offered.base_sha256}."
        )
    if found.memory_kib > memory_mb << 10:
        raise DeltaError(f"Decoding needs {found.memory_kib >> 10} MiB of memory; update.memory_mb allows {memory_mb}.")


def _wait(child: "subprocess.Popen[bytes]", limit_s: float, should_stop: Callable[[], bool]) -> int:
    """The child's exit status. Raises: StoppedError; DeviceError when it takes too long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(LOOK_S)
        if should_stop():
            raise StoppedError("Stopped while a delta was applied.")
    raise DeviceError(f"Applying the delta took more than {limit_s:.0f} s and was ended.", code="delta_failed")


def _raise_answer(answer: bytes, status: int, file: OfferedFile) -> None:
    try:
        found = json.loads(answer)
        code, text, is_delta = found["code"], str(found["text"]), bool(found["is_delta"])
    except (ValueError, KeyError, TypeError):
        raise DeviceError(f"The decoder of the delta for {file.name} ended with status {status}.", code="delta_failed") from None
    if is_delta:
        raise DeltaError(text)
    if code:
        raise DeviceError(text, code=str(code))


def main(arguments: Sequence[str] | None = None) -> int:
    """The child: decode, print what came of it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent.update.applier", description=__doc__)
    for name in ("--delta", "--base", "--result", "--bytes", "--sha256", "--memory-mb"):
        parser.add_argument(name, required=True)
    options = parser.parse_args(arguments)
    memory_mb = int(options.memory_mb)
    _limit(INTERPRETER_BYTES + (memory_mb << 20))
    print(json.dumps(_decode(options, memory_kib=memory_mb << 10)))  # noqa: T201 - the answer
    return 0


def _decode(options: argparse.Namespace, *, memory_kib: int) -> dict[str, object]:
    from protocol.delta.decoder import apply

    base = Path(options.base) if options.base else None
    try:
        apply(
            Path(options.delta),
            base,
            Path(options.result),
            max_new_bytes=int(options.bytes),
            memory_kib=memory_kib,
            expected_sha256=options.sha256,
        )
    except DeltaError as error:
        return {"code": error.code, "text": str(error), "is_delta": True}
    except MooringError as error:
        return {"code": error.code, "text": str(error), "is_delta": False}
    except OSError as error:
        found = disk_error(error, f"{Path(options.result).name} from its delta")
        return {"code": found.code, "text": str(found), "is_delta": False}
    return {"code": "", "text": "", "is_delta": False}


def _limit(data_bytes: int) -> None:
    """Bound this process's own memory (not what it maps), and let it die with its parent."""
    import ctypes
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of prctl(2)


if __name__ == "__main__":
    sys.exit(main())
