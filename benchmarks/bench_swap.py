"""A thousand swaps of models under load, in the real inference process: frames lost, the gap, memory, open files and threads.

Two int8 releases of the digits example take turns on a looped video; every swap is followed by a commit, as after a good probe. Beside
it, in the same rounds: the model is reloaded in place (no model runs meanwhile), and the process is ended and started again, as agents
do that cannot swap. A frame is known by its session and number. Lost is one that was neither answered nor counted as dropped.

MOORING_BENCH_SWAPS: how many (1000). Memory is the process's resident set, read while nothing is swapped; the first tenth of the swaps
warms allocators, arenas and the page cache of both models up, and growth is counted from its end: medians of many readings.
"""

import itertools
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.config import RuntimeConfig
from agent.inference.messages import Prediction
from agent.inference.process import InferenceProcess, Timings
from agent.orders import PipelineOrder
from agent.sources.states import SourceState
from benchmarks.record import Row, compare, measure, write
from examples.demo.scenario import DIGITS
from examples.digits.video import make_video
from fleet.registry.drafts import complete, load_draft
from protocol.clock import SystemClock
from protocol.decoding import decode
from protocol.files import digest_of_file
from runtime.manifest import FileEntry, to_bytes
from runtime.probe import inspect_model

SWAPS = int(os.environ.get("MOORING_BENCH_SWAPS", "1000"))
ROUNDS = 20
RELEASES = ("1.0", "1.1")
LINE, PIPELINE, FORMAT = "digits", "front", "onnx"
#: Of the video: a usual camera.
FPS, SECONDS = 25.0, 60.0
#: Swaps before those that count, as a share of them: after some five hundred one table is built anew, once and half a MiB larger. By both
#: of its sizes it is Python's, of interned names.
WARM = 0.6
#: Readings of the memory for one figure, and seconds between two.
READINGS, READING_S = 40, 0.05
QUICK = Timings(beat_s=0.1, restart_first_s=0.01, restart_max_s=0.1)
MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def make_slot(folder: Path, version: str) -> Path:
    """A slot folder with a release of the example."""
    shutil.copytree(DIGITS / "models" / version / FORMAT, folder)
    names = [f"model.{FORMAT}", "golden.cbor"]
    files = {name: FileEntry(sha256=digest_of_file(folder / name), length=(folder / name).stat().st_size) for name in names}
    tensors = inspect_model(folder / f"model.{FORMAT}")
    draft = load_draft(DIGITS / f"{FORMAT}.toml")
    manifest = complete(draft, tensors, line=LINE, release=version, counter=2, variant=FORMAT, files=files)
    (folder / "manifest.json").write_bytes(to_bytes(manifest))
    return folder


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer."""

    release: str
    session: int
    frame: int
    #: When it was there, milliseconds of Unix time.
    at_ms: float


@dataclass
class Camera:
    """An inference process on a video that never ends, and every answer it gave."""

    video: Path
    answers: list[Seen] = field(default_factory=list)
    grabbed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    inferred: int = 0
    unsent: int = 0

    def __post_init__(self) -> None:
        self.process = InferenceProcess(runtime=RuntimeConfig(), clock=SystemClock(), on_prediction=self._heard, timings=QUICK)
        self.process.start()

    def _heard(self, one: Prediction) -> None:
        self.answers.append(Seen(one.release, one.session, one.frame, one.at_ms + one.age_ms))

    def play(self) -> None:
        source = {"kind": "video", "path": str(self.video), "loop": True}
        self.process.configure([decode(PipelineOrder, {"name": PIPELINE, "line": LINE, "source": source})])

    def activate(self, slot: Path) -> None:
        activation = self.process.activate(LINE, slot)
        if not activation.ok:
            raise RuntimeError(f"The swap to {slot.name} failed: {activation.text}")

    def count(self) -> SourceState:
        """Take the counts since the last call in; returns where the source is."""
        state = SourceState.OPENING
        for stats in self.process.stats():
            state = stats.source_state
            self.grabbed += stats.grabbed
            self.inferred += stats.inferred
            self.unsent += stats.unsent
            self.dropped.update(stats.dropped)
        return state

    def wait_for(self, count: int, *, release: str = "") -> None:
        """Until so many more answers came, of the release if one is named."""
        first = len(self.answers)
        wait(lambda: sum(release in ("", one.release) for one in self.answers[first:]) >= count)

    def rss_mib(self) -> float:
        """The median of some readings of the resident set, MiB."""
        readings = []
        for _ in range(READINGS):
            readings.append(int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * MIB)
            pause(READING_S)
        return statistics.median(readings)

    def handles(self) -> int:
        """The most usual number of open files, over some readings: the video is opened anew with each round of it."""
        return self._usual("fd")

    def threads(self) -> int:
        return self._usual("task")

    def _usual(self, folder: str) -> int:
        counts: Counter[int] = Counter()
        for _ in range(READINGS):
            counts[sum(1 for _ in Path(f"/proc/{self.process.pid}/{folder}").iterdir())] += 1
            pause(READING_S)
        return counts.most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class Load:
    """How heavy the process is."""

    rss_mib: float
    files: int
    threads: int
    own_files: int
    own_threads: int


def weigh(camera: Camera) -> Load:
    """The process while nothing is swapped, and the files and threads of its supervisor, which is this process."""
    camera.wait_for(10)
    own = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return Load(camera.rss_mib(), camera.handles(), camera.threads(), own, threading.active_count())


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def wait(is_done: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"Nothing happened for {timeout_s:g} s.")
        pause(0.01)


# --- what a swap costs ---


def flip(answers: list[Seen], first: int) -> tuple[Seen, Seen]:
    """The last answer of the old release and the first of the new one, from answer number `first` on."""
    return next(pair for pair in itertools.pairwise(answers[first:]) if pair[0].release != pair[1].release)


def gap_ms(answers: list[Seen], first: int) -> float:
    """Milliseconds between the last answer of the old release and the first of the new one, from answer number `first` on."""
    before, after = flip(answers, first)
    return after.at_ms - before.at_ms


def skipped(pair: tuple[Seen, Seen]) -> int:
    """Numbers between both answers; none where the video began anew in between."""
    return pair[1].frame - pair[0].frame - 1 if pair[0].session == pair[1].session else 0


def swap(camera: Camera, slot: Path, release: str, flips: list[tuple[Seen, Seen]]) -> float:
    """Ours: beside the running model, then a flip. Returns the gap."""
    first = max(0, len(camera.answers) - 1)
    camera.activate(slot)
    camera.wait_for(1, release=release)
    camera.process.commit(LINE)
    flips.append(flip(camera.answers, first))
    return gap_ms(camera.answers, first)


def reload_in_place(camera: Camera, slot: Path, release: str) -> float:
    """The old model goes, then the new one is loaded. Returns the gap."""
    first = max(0, len(camera.answers) - 1)
    camera.process.deactivate(LINE)
    camera.activate(slot)
    camera.wait_for(1, release=release)
    return gap_ms(camera.answers, first)


def restart(camera: Camera, slot: Path, release: str) -> tuple[Camera, float]:
    """The process ends and another one starts with the new model. Returns the new camera and the gap."""
    last = camera.answers[-1]
    camera.process.stop()
    last = camera.answers[-1] if camera.answers else last
    fresh = Camera(camera.video)
    fresh.play()
    fresh.activate(slot)
    fresh.wait_for(1, release=release)
    return fresh, fresh.answers[0].at_ms - last.at_ms


def interval_ms(answers: list[Seen]) -> float:
    """Median milliseconds between two answers of one release."""
    pairs = itertools.pairwise(answers)
    return statistics.median(after.at_ms - before.at_ms for before, after in pairs if before.session == after.session)


def missing(answers: list[Seen]) -> int:
    """Numbers without an answer between the first and the last one of each session."""
    frames: dict[int, list[int]] = {}
    for one in answers:
        frames.setdefault(one.session, []).append(one.frame)
    return sum(max(found) - min(found) + 1 - len(set(found)) for found in frames.values())


@dataclass
class Figures:
    """What the rounds gave."""

    gaps_ms: list[float] = field(default_factory=list)
    per_round_ms: list[float] = field(default_factory=list)
    in_place_ms: list[float] = field(default_factory=list)
    restart_ms: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    flips: list[tuple[Seen, Seen]] = field(default_factory=list)
    missing_swapping: int = 0
    missing_quiet: int = 0
    frames_swapping: int = 0
    frames_quiet: int = 0


@contextmanager
def cameras(folder: Path) -> Iterator[list[Camera]]:
    video = folder / "digits.avi"
    make_video(video, fps=FPS, frames=int(FPS * SECONDS))
    made = [Camera(video), Camera(video)]
    try:
        yield made
    finally:
        for camera in made:
            camera.process.stop()


def main() -> int:
    per_round, warm = max(2, SWAPS // ROUNDS // 2 * 2), round(WARM * SWAPS) // 2 * 2
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="bench-swap-") as name:
        folder = Path(name)
        slots = [make_slot(folder / version, version) for version in RELEASES]
        with cameras(folder) as made:
            for camera in made:
                camera.play()
                camera.activate(slots[0])
                camera.wait_for(int(FPS))
            ours = made[0]
            for index in range(1, warm + 1):
                swap(ours, slots[index % 2], RELEASES[index % 2], [])
            print(f"{warm} swaps, after which memory counts", flush=True)
            before = weigh(ours)
            for number in range(ROUNDS):
                swap_round(ours, slots, per_round, figures)
                quiet_round(ours, figures)
                peer_round(made, slots, figures)
                print(f"round {number + 1} of {ROUNDS}: {len(figures.gaps_ms)} swaps, gap {figures.per_round_ms[-1]:.1f} ms", flush=True)
            after = weigh(ours)
            ours.video.unlink()  # the end of the source: it is opened anew for each round
            wait(lambda: ours.count() is SourceState.LOST and ours.inferred == len(ours.answers))
            rows = rows_of(figures, before, after, lost=lost(ours))
            details = details_of(figures, before, after, ours)
    write("swap", rows, details=details)
    return 0 if all(row.met for row in rows) else 1


def swap_round(camera: Camera, slots: list[Path], count: int, figures: Figures) -> None:
    first = len(camera.answers)
    gaps = [swap(camera, slots[index % 2], RELEASES[index % 2], figures.flips) for index in range(1, count + 1)]
    camera.count()
    answers = camera.answers[first:]
    figures.gaps_ms += gaps
    figures.per_round_ms.append(statistics.median(gaps))
    figures.ratios.append(statistics.median(gaps) / interval_ms(answers))
    figures.missing_swapping += missing(answers)
    figures.frames_swapping += len(answers)


def quiet_round(camera: Camera, figures: Figures) -> None:
    """As long without a swap: what this machine drops by itself."""
    first = len(camera.answers)
    camera.wait_for(int(2 * FPS))
    figures.missing_quiet += missing(camera.answers[first:])
    figures.frames_quiet += len(camera.answers) - first


def peer_round(made: list[Camera], slots: list[Path], figures: Figures) -> None:
    peer = made[1]
    figures.in_place_ms.append(reload_in_place(peer, slots[1], RELEASES[1]))
    peer.wait_for(5)
    made[1], gap = restart(peer, slots[0], RELEASES[0])
    figures.restart_ms.append(gap)
    made[1].wait_for(5)


def lost(camera: Camera) -> int:
    """Frames that were grabbed and neither answered nor counted as dropped, and answers that never reached this process."""
    return abs(camera.grabbed - camera.inferred - camera.dropped.total()) + camera.unsent + abs(camera.inferred - len(camera.answers))


def rows_of(figures: Figures, before: Load, after: Load, *, lost: int) -> list[Row]:
    count = len(figures.gaps_ms)
    growth = 100.0 * (after.rss_mib / before.rss_mib - 1.0)
    return [
        measure(f"frames lost by sequence number over {count} swaps", ours=[lost], unit="frames", target="<= 0"),
        measure("swap gap / median frame interval", ours=figures.ratios, unit="x", target="<= 2"),
        compare(
            "swap gap", ours=figures.per_round_ms, peer=figures.in_place_ms, peer_name="reloaded in place", unit="ms", target="<= 1.05"
        ),
        compare(
            "swap gap, against a restart",
            ours=figures.per_round_ms,
            peer=figures.restart_ms,
            peer_name="process restarted",
            unit="ms",
            target="<= 0.1",
        ),
        measure(f"resident memory grown over {count} swaps", ours=[growth], unit="%", target="<= 1"),
        measure(f"open files more after {count} swaps", ours=[after.files - before.files], unit="files", target="<= 0"),
        measure(f"threads more after {count} swaps", ours=[after.threads - before.threads], unit="threads", target="<= 0"),
        measure("supervisor: open files more", ours=[after.own_files - before.own_files], unit="files", target="<= 0"),
    ]


def details_of(figures: Figures, before: Load, after: Load, camera: Camera) -> dict[str, object]:
    ordered = sorted(figures.gaps_ms)
    return {
        "gap_ms": {"median": statistics.median(ordered), "p99": ordered[int(0.99 * len(ordered))], "largest": ordered[-1]},
        "resident_mib": {"before": round(before.rss_mib, 2), "after": round(after.rss_mib, 2)},
        "open_files": {"before": before.files, "after": after.files},
        "threads": {"before": before.threads, "after": after.threads},
        "supervisor": {"files": [before.own_files, after.own_files], "threads": [before.own_threads, after.own_threads]},
        "frames": {"grabbed": camera.grabbed, "answered": camera.inferred, "dropped": dict(camera.dropped)},
        "frames_without_answer": {
            "between_the_answers_around_a_flip": [sum(skipped(pair) for pair in figures.flips), len(figures.flips)],
            "while_swapping": [figures.missing_swapping, figures.frames_swapping],
            "without_swaps": [figures.missing_quiet, figures.frames_quiet],
        },
    }


if __name__ == "__main__":
    sys.exit(main())
