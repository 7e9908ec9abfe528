"""Size, CPU time and memory of deltas between two versions of a model, beside the other delta tools at their best levels.

All tools take turns in one run; every delta goes to a fresh file, is applied by its own tool, and the result is compared. CPU time is
that of the process (user and system), peak memory is the kernel's. MOORING_BENCH_ROUNDS: turns per given pair (3); pairs of our own, of
which there are many, take one. MOORING_BENCH_PAIRS: only pairs whose names contain one of these words (then no result is kept). What is
not installed or not made is named and left out.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.children import ONE_THREAD
from benchmarks.delta_pairs import figures, large, listing
from benchmarks.delta_pairs.bound import changed_share, entropy_bytes
from benchmarks.delta_pairs.figures import Large, Measured, Ours
from benchmarks.delta_pairs.listing import Pair
from benchmarks.delta_pairs.peers import Peer, PeerError, Trial, Variant, attempt, find_float_peers, find_peers, full_size, run
from benchmarks.record import write

ROUNDS = int(os.environ.get("MOORING_BENCH_ROUNDS", "3"))
WANTED = os.environ.get("MOORING_BENCH_PAIRS", "").split()
ROOT = Path(__file__).resolve().parent.parent
#: Decodings per turn, so that the median of a 200 kB file is steady.
DECODINGS = 9


def main() -> int:
    peers, float_peers = find_peers(), find_float_peers()
    pairs = [pair for pair in (*listing.given(), *listing.made()) if is_wanted(pair.name)]
    announce((*peers, *float_peers))
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        for pair in pairs:
            tools = [*peers, *(float_peers if pair.is_float else ())]
            results.append(measure_pair(pair, [peer for peer in tools if not peer.missing], Path(scratch)))
            print(figures.line_of(results[-1]), flush=True)
        big = measure_large(Path(scratch)) if is_wanted("large") else None
    rows = [row for item in results for row in figures.rows_of(item)] + (figures.large_rows(big) if big else [])
    summary = figures.summarize(results, rows)
    if WANTED or not rows:
        print("\n".join(str(row) for row in (*summary, *rows)) or "nothing was measured")
        return 0
    details = {
        "peers": [figures.peer_document(peer) for peer in (*peers, *float_peers)],
        "pairs": [figures.pair_document(item) for item in results],
    }
    write("delta", [*summary, *(row for row in rows if row not in summary)], headline=[row.what for row in summary], details=details)
    return int(any(not row.met for row in summary))


def is_wanted(name: str) -> bool:
    return not WANTED or any(word in name for word in WANTED)


def announce(peers: Sequence[Peer]) -> None:
    """Say what takes part and what does not, and why."""
    for peer in peers:
        print(f"left out: {peer.name}: {peer.missing}" if peer.missing else f"peer: {peer.name} {peer.version}")
    if not listing.given():
        print(f"left out: the given pairs: no files in {listing.GIVEN} (set MOORING_DATA)")
    if not listing.made():
        print(f"left out: pairs of our own: no {listing.MADE}/manifest.json (make bench-delta makes it)")


# --- measuring ---


def measure_pair(pair: Pair, peers: Sequence[Peer], scratch: Path) -> Measured:
    """All tools on one pair: every setting once to find each tool's best, then turns with that one."""
    full = full_size(pair.new, scratch)
    measured = Measured(pair, Ours(), {}, {}, full, entropy_bytes(pair.old, pair.new), changed_share(pair.old, pair.new))
    best: dict[str, Variant] = {}
    for number in range(ROUNDS if pair.is_given else 1):
        ours_once(measured.ours, pair, scratch)
        for peer in peers:
            tried = [item for item in peer.variants if pair.new.stat().st_size <= item.most_bytes] if number == 0 else []
            settings = [best[peer.name]] if peer.name in best else tried
            trials = list(attempts(peer.name, settings, pair, scratch, measured.failed))
            if trials:
                best[peer.name], trial = min(trials, key=lambda item: item[1].size)
                measured.trials.setdefault(peer.name, []).append(trial)
    return measured


def attempts(name: str, settings: Sequence[Variant], pair: Pair, scratch: Path, failed: dict[str, str]) -> Iterator[tuple[Variant, Trial]]:
    """Each setting's trial; the reason of one that fails is kept."""
    for setting in settings:
        try:
            yield setting, attempt(setting, pair.old, pair.new, scratch)
        except (PeerError, subprocess.TimeoutExpired) as error:
            failed[f"{name} {setting.name}"] = str(error)[:300]


def ours_once(ours: Ours, pair: Pair, scratch: Path) -> None:
    """Encode in a child as the server does, decode in children as a device does."""
    delta = scratch / "ours"
    delta.unlink(missing_ok=True)
    ours.encodes.append(run([sys.executable, "-m", "fleet.registry.delta_encoder", str(pair.old), str(pair.new), str(delta)]))
    ours.size, ours.method = delta.stat().st_size, delta.read_bytes()[4]
    ours.speeds += speeds(pair.old, delta, pair.new, DECODINGS)
    ours.memories.append(memory(pair.old, delta, pair.new))


def measure_large(scratch: Path) -> Large:
    """One file of 64 MiB, to see whether memory grows with the model."""
    old, new = large.ensure(listing.MADE)
    delta = scratch / "large"
    use = run([sys.executable, "-m", "fleet.registry.delta_encoder", str(old), str(new), str(delta)])
    return Large(delta.stat().st_size, new.stat().st_size, use.cpu_s, speeds(old, delta, new, 3), [memory(old, delta, new)])


def speeds(old: Path, delta: Path, new: Path, count: int) -> list[float]:
    """MB of output per CPU second of each decoding, in a process of its own that compares the result."""
    found: list[float] = device("speed", str(old), str(delta), str(new), str(count))
    return found


def memory(old: Path, delta: Path, new: Path) -> float:
    """MB of peak memory of a decoding process above one that only has the interpreter and numpy."""
    return float(device("memory", str(old), str(delta), str(new)) - device("baseline"))


def device(*arguments: str) -> "float | list[float]":
    """What the decoding process answers. Raises: CalledProcessError when it fails or the result differs."""
    command = [sys.executable, "-m", "benchmarks.delta_pairs.device", *arguments]
    environment = {**os.environ, **ONE_THREAD}  # as the agent runs it
    return json.loads(subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
