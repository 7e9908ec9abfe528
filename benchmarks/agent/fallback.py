"""How long nothing is inferred after the inference process died: killed, crashed inside a back end, or standing still.

A real `InferenceProcess` runs the digits example on a looped video. Each time its child is killed (SIGKILL), crashed (SIGSEGV while it
computes, so that the next back end takes over) or stopped (SIGSTOP, which is a hang) and the time until the next prediction is taken; of
a hang what it took beyond the patience with it (`runtime.hang_s`, as often as the machine is overloaded): noticing, ending the process,
and the rest. `python -m benchmarks.agent.fallback [ROUNDS]` prints the medians.

The back end that crashes is the processor under ONNX Runtime's own name for it, the next one the processor: a machine without
accelerators has two back ends that way.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from agent.config import RuntimeConfig
from agent.inference.messages import Prediction, WorkerState
from agent.inference.pressure import machine_strain
from agent.inference.process import InferenceProcess, Timings
from agent.orders import PipelineOrder
from benchmarks.agent.whole import NO_BYTE_CODE
from benchmarks.bench_swap import FPS, LINE, PIPELINE, make_slot
from examples.digits.video import make_video
from protocol.clock import SystemClock
from protocol.decoding import decode

T = TypeVar("T")

ROUNDS = 10
SECONDS = 20.0
#: Longest wait for one prediction.
PATIENCE_S = 120.0
#: Each death is the first one after a quiet time, as on a device that infers for days.
TIMINGS = Timings(settled_s=0.5)
HANG_S = 1.0
FIRST_BACK_END = "CPUExecutionProvider"
#: What a restarted worker imports at least, and what it imports for this model and source.
IMPORTS = {"import of the worker": "agent.inference.worker", "import of runtime and OpenCV": "onnxruntime, cv2"}


class Bench:
    """An inference process that infers."""

    def __init__(self, slot: Path, video: Path, *, providers: tuple[str, ...] = (), hang_s: float = 5.0) -> None:
        self.predictions: list[tuple[float, Prediction]] = []
        runtime = RuntimeConfig(providers=providers, hang_s=hang_s)
        self.process = InferenceProcess(runtime=runtime, clock=SystemClock(), on_prediction=self._heard, timings=TIMINGS)
        self.process.start()
        source = {"kind": "video", "path": str(video), "loop": True}
        self.process.configure([decode(PipelineOrder, {"name": PIPELINE, "line": LINE, "source": source})])
        activation = self.process.activate(LINE, slot)
        if not activation.ok:
            raise RuntimeError(f"the model does not run: {activation.text}")

    def _heard(self, prediction: Prediction) -> None:
        self.predictions.append((time.monotonic(), prediction))

    def settle(self) -> None:
        """Wait until it infers and its child has lived long enough to count as quiet."""
        seen = len(self.predictions)
        until(lambda: len(self.predictions) > seen + 5)
        time.sleep(TIMINGS.settled_s + 0.1)

    def wait_for_next(self, session: int) -> float:
        """The moment of the first prediction of a later session."""
        return until(lambda: next((at for at, one in self.predictions[-200:] if one.session > session), None))

    @property
    def session(self) -> int:
        return self.predictions[-1][1].session


def measure_fallback(rounds: int = ROUNDS) -> dict[str, float]:
    """Medians in seconds: from a kill, a crash and a hang to the next prediction, and what of a kill is which work."""
    os.environ.pop(NO_BYTE_CODE, None)
    with tempfile.TemporaryDirectory(prefix="mooring-fallback-") as scratch:
        slot, video = make_slot(Path(scratch) / "slot", "1.1"), Path(scratch) / "digits.avi"
        make_video(video, fps=FPS, frames=int(FPS * SECONDS))
        kills = [_kill(bench) for bench in _same(slot, video, rounds)]
        crashes = [_crash(slot, video) for _ in range(rounds)]
        hangs = [_hang(bench) for bench in _same(slot, video, rounds, hang_s=HANG_S)]
    found = {
        "kill to prediction": statistics.median(total for total, _ in kills),
        "kill to running child": statistics.median(running for _, running in kills),
        "crash to prediction on the next back end": statistics.median(crashes),
        "beyond the patience, hang to prediction": statistics.median(hangs),
    }
    return found | {name: statistics.median(_import_s(modules) for _ in range(3)) for name, modules in IMPORTS.items()}


def _kill(bench: Bench) -> tuple[float, float]:
    """(seconds to the next prediction, seconds to a child that listens)."""
    bench.settle()
    pid, session, began = bench.process.pid, bench.session, time.monotonic()
    os.kill(_need(pid), signal.SIGKILL)
    until(lambda: bench.process.state is WorkerState.RUNNING and bench.process.pid not in (None, pid))
    running = time.monotonic()
    return bench.wait_for_next(session) - began, running - began


def _crash(slot: Path, video: Path) -> float:
    with _running(Bench(slot, video, providers=(FIRST_BACK_END,))) as bench:
        bench.settle()
        asked = bench.process.figures(LINE)
        if asked is None or asked.provider != f"onnx:{FIRST_BACK_END}":
            raise RuntimeError(f"the first back end does not run: {asked}")
        session, pid = bench.session, _need(bench.process.pid)
        # the death is blamed on the back end that is inside a call; look for such a moment, as a crash in native code is one
        child = bench.process._child  # noqa: SLF001 - nothing public tells when a call is running
        until(lambda: child is not None and child.marks.read(1)[1])
        began = time.monotonic()
        os.kill(pid, signal.SIGSEGV)
        took = bench.wait_for_next(session) - began
        until(lambda: (figures := bench.process.figures(LINE)) is not None and figures.provider)
        return took


def _hang(bench: Bench) -> float:
    bench.settle()
    pid, session = _need(bench.process.pid), bench.session
    began, patience_s = time.monotonic(), HANG_S * machine_strain()
    os.kill(pid, signal.SIGSTOP)
    return bench.wait_for_next(session) - began - patience_s


def _same(slot: Path, video: Path, rounds: int, *, hang_s: float = 5.0) -> Iterator[Bench]:
    with _running(Bench(slot, video, hang_s=hang_s)) as bench:
        for _ in range(rounds):
            yield bench


@contextmanager
def _running(bench: Bench) -> Iterator[Bench]:
    try:
        yield bench
    finally:
        bench.process.stop()


def _import_s(modules: str) -> float:
    began = time.monotonic()
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, env=environment)
    return time.monotonic() - began


def _need(pid: int | None) -> int:
    if pid is None:
        raise RuntimeError("the inference process does not run")
    return pid


def until(look: Callable[[], T | None]) -> T:
    """What `look` finds, looked for every millisecond. Raises: RuntimeError after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing within {PATIENCE_S:g} s")
        time.sleep(0.001)
    return found


if __name__ == "__main__":
    figures = measure_fallback(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))
