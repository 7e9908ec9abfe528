"""The champion's latency with and without a shadow beside it, and whether the shadow keeps to its CPU budget.

A real `InferenceProcess` infers a looped video at a camera's pace; a real `ShadowProcess` runs another release of a model of the same kind.
Blocks with and without it take turns in one run, and the medians over the blocks are told. What the shadow takes is read from the kernel
(/proc/PID/stat), not from what it says of itself. `python -m benchmarks.agent.shadow [ROUNDS] [SECONDS]` prints the figures.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from agent.config import RuntimeConfig
from agent.inference.messages import Prediction
from agent.inference.process import InferenceProcess
from agent.inference.shadow_messages import Candidate
from agent.inference.shadow_process import ShadowProcess
from agent.inference.shadow_reports import Compared
from agent.orders import PipelineOrder
from benchmarks.agent.slots import LINE, MOBILENET, VWW_INT8, BenchModel, make_slot
from examples.digits.video import make_video
from protocol.clock import SystemClock
from protocol.decoding import decode
from protocol.shadow import Comparison, summed

ROUNDS, SECONDS = 8, 6.0
#: Share of one core that the shadow may take.
BUDGET = 0.2
PIPELINE = "bench"
#: Frames per second: more than the shadow may answer.
FPS = 60.0
#: Seconds at the beginning of a block that belong to the change.
SETTLE_S = 1.0
PATIENCE_S = 120.0
_PRIORITIES: tuple[Literal["idle", "normal"], ...] = ("idle", "normal")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ShadowFigures:
    """Medians over blocks."""

    #: Milliseconds of the champion.
    p99_without: float
    p99_with: float
    p50_without: float
    p50_with: float
    #: CPU of the shadow process over what it may take.
    cpu_of_budget: float
    #: Frames per second that were compared.
    compared_per_s: float
    #: Cores of the machine that nobody wanted while the shadow ran. A shadow of idle priority gets no more: where this is about 0, its CPU
    #: says how busy the machine was, not how well it keeps to its budget.
    idle_cores: float


@dataclass
class Bench:
    """The champion, and a shadow on demand."""

    video: Path
    slot: Path
    candidate: Path
    latencies: list[float] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inference = InferenceProcess(runtime=RuntimeConfig(), clock=SystemClock(), on_prediction=self._heard)
        self.shadow = ShadowProcess(bring=self.inference.bring_shadow, on_compared=self._counted)

    def _heard(self, prediction: Prediction) -> None:
        self.latencies.append(prediction.lat_ms)

    def _counted(self, compared: Compared) -> None:
        self.compared.append(compared.figures)

    def start(self) -> None:
        self.inference.start()
        source = {"kind": "video", "path": str(self.video), "loop": True}
        self.inference.configure([decode(PipelineOrder, {"name": PIPELINE, "line": LINE, "source": source})])
        activation = self.inference.activate(LINE, self.slot)
        if not activation.ok:
            raise RuntimeError(f"the champion does not run: {activation.text}")

    def cast(self, *, runs: bool, priority: Literal["idle", "normal"] = "idle") -> None:
        """Begin or end the shadow, and wait until that is so."""
        wanted = (Candidate(LINE, "2.0", str(self.candidate), (PIPELINE,)),) if runs else ()
        before = len(self.compared)
        self.shadow.configure(wanted, cpu_share=BUDGET, priority=priority)
        until((lambda: summed(self.compared[before:]).pairs.compared) if runs else (lambda: self.shadow.pid is None))

    def block(self, seconds: float) -> list[float]:
        """The champion's latencies of so many seconds."""
        time.sleep(SETTLE_S)
        first = len(self.latencies)
        time.sleep(seconds)
        return self.latencies[first:]


def measure_shadow(
    champion: BenchModel = MOBILENET,
    candidate: BenchModel = MOBILENET,
    *,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    priority: Literal["idle", "normal"] = "idle",
) -> ShadowFigures:
    """Blocks of so many seconds, with and without the shadow in turn. Raises: RuntimeError; FileNotFoundError without the shared data."""
    apart: list[list[float]] = []
    beside: list[list[float]] = []
    cpu: list[float] = []
    rates: list[float] = []
    idle: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mooring-shadow-") as scratch:
        video, folder = Path(scratch) / "frames.avi", Path(scratch)
        make_video(video, fps=FPS, frames=int(FPS * 10))
        slots = make_slot(folder / "1", champion), make_slot(folder / "2", candidate, release="2.0")
        with _running(Bench(video, *slots)) as bench:
            for _ in range(rounds):
                bench.cast(runs=False)
                apart.append(bench.block(seconds))
                bench.cast(runs=True, priority=priority)
                began_cpu_s, began_s, began = _cpu_s(bench.shadow.pid), time.monotonic(), len(bench.compared)
                began_idle_s = _idle_s()
                beside.append(bench.block(seconds))
                wall_s = time.monotonic() - began_s
                cpu.append((_cpu_s(bench.shadow.pid) - began_cpu_s) / wall_s / BUDGET)
                rates.append(summed(bench.compared[began:]).pairs.compared / wall_s)
                idle.append((_idle_s() - began_idle_s) / wall_s)
    return ShadowFigures(
        p99_without=_median_of(apart, 99),
        p99_with=_median_of(beside, 99),
        p50_without=_median_of(apart, 50),
        p50_with=_median_of(beside, 50),
        cpu_of_budget=statistics.median(cpu),
        compared_per_s=statistics.median(rates),
        idle_cores=statistics.median(idle),
    )


def _median_of(blocks: list[list[float]], percent: float) -> float:
    return statistics.median(float(np.percentile(block, percent)) for block in blocks if block)


def _cpu_s(pid: int | None) -> float:
    """User and system time of the process so far."""
    if pid is None:
        raise RuntimeError("the shadow ended in the middle of its block")
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _idle_s() -> float:
    """Seconds that the machine's cores had nothing to do so far, added up; waiting for a disk is nothing to do."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / _TICKS


def until(condition: Callable[[], object]) -> None:
    """Wait for it. Raises: RuntimeError when it never comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {PATIENCE_S:g} s in vain")
        time.sleep(0.05)


@contextmanager
def _running(bench: Bench) -> Iterator[Bench]:
    try:
        bench.start()
        yield bench
    finally:
        bench.shadow.stop()
        bench.inference.stop()


def main(arguments: list[str]) -> int:
    """Print the figures of an ~10 ms and of a ~1 ms model, JSON."""
    rounds = int(arguments[0]) if arguments else ROUNDS
    seconds = float(arguments[1]) if len(arguments) > 1 else SECONDS
    for model in (MOBILENET, VWW_INT8):
        for priority in _PRIORITIES:
            found = measure_shadow(model, model, rounds=rounds, seconds=seconds, priority=priority)
            values = {name: round(getattr(found, name), 4) for name in ShadowFigures.__dataclass_fields__}
            print(json.dumps({"model": model.name, "priority": priority, "load": os.getloadavg()[0], **values}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
