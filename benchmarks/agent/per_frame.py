"""CPU per inferred frame of the inference process beside a bare loop that sets, invokes and gets; both at a camera's pace, decode excluded.

`python -m benchmarks.agent.per_frame ours|bare|fed SLOT FPS [FD]` is one measured process; it runs for as many seconds as each line that it
reads says, stands still between them, and answers each with what it used. Ours is the production pipeline (capture thread, buffers,
preprocessing, inference, postprocessing, the link to the control process) on frames that lie decoded in memory; the bare loop sleeps for
the same pace, copies a prepared tensor in, invokes, and reads the outputs; a fed one makes the tensor of a fresh frame first, by our own
preprocessing, which leaves the model cold caches. `measure` has them run in short turns, because the speed of a machine that others use
too changes within seconds, and plays the control process, whose own CPU per prediction is told apart.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from agent.config import RuntimeConfig
from agent.inference.captures import Captures
from agent.inference.engine import Line
from agent.inference.hearing import FROM_WORKER
from agent.inference.link import Link, LinkClosedError
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import Beat, Prediction
from agent.inference.pipeline import Pipeline
from agent.inference.worker import Sender
from agent.orders import PipelineOrder
from agent.sources.base import Array, Grabbed, Need
from agent.sources.states import Channel
from protocol.clock import SystemClock
from protocol.decoding import decode
from runtime.base import BackendOptions, zeros_for
from runtime.loader import load_first, read_slot
from runtime.preprocess import Preprocessor, compile_plan

#: What a camera's sub-stream gives: height, width. It lies where the pipeline has its decoded pictures: in one buffer that is used again,
#: or in some when frames are handed over. The loops that feed themselves have one, as `capture.read(frame)` does.
FRAME = (480, 640)
#: Frames that are captured or inferred at a time when there is no pace: decoding may overlap inference.
UNDER_WAY = 2
#: Seconds of a turn, and of the first one, which is not counted.
TURN_S, WARM_S = 0.4, 0.8
BEAT_S = 0.5


class Pace:
    """When the next frame is due: at a camera's rate, or, with a rate of 0, as soon as one was inferred (two are under way)."""

    def __init__(self, fps: float) -> None:
        self._period_s = 1.0 / fps if fps else 0.0
        self._due_s = time.monotonic()
        #: Of C: a semaphore of `threading` would cost as much Python per frame as a quarter of the pipeline.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(UNDER_WAY):
            self._free.put(None)
        self.paced = fps > 0
        self._is_open = threading.Event()
        self._is_open.set()

    def stand_still(self) -> None:
        """No frame is due until `go_on`."""
        self._is_open.clear()

    def go_on(self) -> None:
        """Frames are due again, from now on."""
        self._due_s = time.monotonic()
        self._is_open.set()

    def wait(self) -> bool:
        """Until the next frame is due; returns whether it came to that within a second."""
        if not self._is_open.is_set() and not self._is_open.wait(1.0):
            return False
        if not self._period_s:
            try:
                self._free.get(timeout=1.0)
            except Empty:
                return False
            return True
        self._due_s += self._period_s
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        return True

    def inferred(self) -> None:
        """One frame is done."""
        if not self._period_s:
            self._free.put(None)


def random_frame() -> Array:
    """Pixels of one frame."""
    return np.random.default_rng(1).integers(0, 256, (*FRAME, 3), dtype=np.uint8)


class MemorySource:
    """Decoded frames, one after the other, each when it is due: the pixels are where the one before was decoded to."""

    repeats = False
    text = ""
    decoder = ""
    refused = ""

    def __init__(self, pace: Pace) -> None:
        self._frame = random_frame()
        self._pace = pace
        self._count = 0

    def open(self) -> None:
        pass

    def grab(self, stop: threading.Event) -> Grabbed | None:
        if stop.is_set() or not self._pace.wait():
            return None
        self._count += 1
        return Grabbed(float(self._count))

    def retrieve(self, into: Array) -> Array:
        return into if into.shape == self._frame.shape else self._frame.copy()

    def close(self) -> None:
        pass

    def take_channels(self) -> Mapping[str, Channel]:
        return {}

    def suits(self, need: Need | None) -> bool:
        del need
        return True


@dataclass(frozen=True, slots=True)
class Used:
    """What one process used between two moments."""

    frames: int
    cpu_s: float

    @property
    def ms(self) -> float:
        """Milliseconds of CPU per frame."""
        return self.cpu_s / self.frames * 1000.0


@contextmanager
def pipeline_on(slot: Path, *, fps: float, link: Link | None = None, pace: Pace | None = None) -> Iterator[Pipeline]:
    """The production pipeline on frames in memory, until the end of the block; what it says goes to the link, or nowhere."""
    clock, pace = SystemClock(), Pace(fps) if pace is None else pace
    line = Line("bench", marks=Marks(new_memory()), now=clock.monotonic)
    swap = line.activate(slot, RuntimeConfig())
    if not swap.ok:
        raise RuntimeError(swap.text)
    pipelines: list[Pipeline] = []
    sender = None
    if link is not None:
        sender = Sender(link, beat_s=BEAT_S, make_beat=lambda: Beat(tuple(one.count() for one in pipelines), (), (), 0.0))

    def predict(prediction: Prediction) -> bool:
        pace.inferred()
        return sender is None or sender.predict(prediction)

    pipeline = Pipeline(
        decode(PipelineOrder, {"name": "front", "line": "bench", "source": {"kind": "video", "path": "/unused"}}),
        line,
        captures=Captures(clock=clock, next_session=lambda: 1, open_source=lambda *_: MemorySource(pace)),
        runtime=RuntimeConfig(),
        on_prediction=predict,
    )
    pipelines.append(pipeline)
    sending = None if sender is None else threading.Thread(target=sender.run, daemon=True)
    if sending is not None:
        sending.start()
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()
        if sender is not None and sending is not None:
            sender.close()
            sending.join()


@contextmanager
def ours_on(slot: Path, fps: float, link: Link) -> Iterator[Callable[[float], Used]]:
    """The production pipeline, for as many seconds as each call says."""
    pace = Pace(fps)
    pace.stand_still()
    with pipeline_on(slot, fps=fps, link=link, pace=pace) as pipeline:

        def run(seconds: float) -> Used:
            frames, cpu_s = pipeline.count().inferred, time.process_time()
            pace.go_on()
            time.sleep(seconds)
            pace.stand_still()
            while pipeline.count().in_flight:
                time.sleep(0.001)
            return Used(pipeline.count().inferred - frames, time.process_time() - cpu_s)

        yield run


def bare_on(slot: Path, fps: float, *, is_fed: bool = False) -> Callable[[float], Used]:
    """Set, invoke, get at the same pace, on the same back end with the same options; `is_fed`: after preprocessing a fresh frame."""
    manifest = read_slot(slot)
    options = RuntimeConfig()
    loaded = load_first(slot, manifest, BackendOptions(threads=options.threads))
    call = bare_call(loaded.backend, manifest.model_file)
    if is_fed:
        call = _fed(call, Preprocessor(compile_plan(manifest)))
    pace = Pace(fps)

    def run(seconds: float) -> Used:
        pace.go_on()
        cpu_s = time.process_time()
        return Used(_bare_loop(call, pace, seconds), time.process_time() - cpu_s)

    return run


def run_bare(slot: Path, fps: float, seconds: float) -> Used:
    """The bare loop for so long, warmed up."""
    run = bare_on(slot, fps)
    run(WARM_S)
    return run(seconds)


def _bare_loop(call: Callable[[], object], pace: Pace, seconds: float) -> int:
    ends_s, frames = time.monotonic() + seconds, 0
    while time.monotonic() < ends_s:
        if pace.paced:
            pace.wait()
        call()
        frames += 1
    return frames


def _fed(call: Callable[[], object], preprocessor: Preprocessor) -> Callable[[], object]:
    frame = random_frame()

    def run() -> None:
        preprocessor.run(frame)
        call()

    return run


def bare_call(backend: Any, model_file: str) -> Callable[[], object]:
    """What a script without an agent would do for each frame, straight on the runtime's own object."""
    inputs = zeros_for(backend._tensors)  # noqa: SLF001 - the peer is the bare runtime inside the wrapper
    if model_file.endswith(".onnx"):
        session = backend._session  # noqa: SLF001 - see above
        return lambda: session.run(None, inputs)
    interpreter = backend._interpreter  # noqa: SLF001 - see above
    index = interpreter.get_input_details()[0]["index"]
    outs = [details["index"] for details in interpreter.get_output_details()]
    (data,) = inputs.values()

    def call() -> None:
        interpreter.set_tensor(index, data)
        interpreter.invoke()
        for out in outs:
            interpreter.get_tensor(out)

    return call


@dataclass(frozen=True, slots=True)
class Round:
    """Milliseconds of CPU per frame, medians of turns."""

    ours_ms: float
    bare_ms: float
    fed_ms: float
    #: Of the control process, per prediction: reading and checking.
    control_ms: float


class Turns:
    """One measured process that runs when it is told to."""

    def __init__(self, mode: str, slot: Path, fps: float, *fds: int) -> None:
        command = [sys.executable, "-m", "benchmarks.agent.per_frame", mode, str(slot), str(fps), *map(str, fds)]
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, pass_fds=fds, env=environment
        )

    def run(self, seconds: float) -> Used:
        """What it used in so many seconds. Raises: RuntimeError when it has ended."""
        ask, answer = self._process.stdin, self._process.stdout
        assert ask is not None and answer is not None  # noqa: PT018 - both are pipes
        with contextlib.suppress(BrokenPipeError):
            ask.write(f"{seconds}\n")
        line = answer.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait()}.")
        return Used(**json.loads(line))

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._process.communicate()


class Ear:
    """Reads what our process says, as the control process does, and counts what that costs."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.predictions, self.cpu_s = 0, 0.0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait until the other end has hung up."""
        self._thread.join()
        self._link.close()

    def _read(self) -> None:
        began_s = time.thread_time()
        with contextlib.suppress(LinkClosedError):
            while True:
                self.predictions += isinstance(FROM_WORKER.validate_json(self._link.receive()), Prediction)
        self.cpu_s = time.thread_time() - began_s


def measure(slot: Path, *, fps: float, turns: int, rounds: int) -> list[Round]:
    """Three new processes for each round, where a model lies in memory differs and makes it faster or slower, and so many turns of each."""
    return [_one_round(slot, fps=fps, turns=turns) for _ in range(rounds)]


def _one_round(slot: Path, *, fps: float, turns: int) -> Round:
    here, there = socket.socketpair()
    with there:
        processes = [Turns("ours", slot, fps, there.fileno()), Turns("bare", slot, fps), Turns("fed", slot, fps)]
    ear = Ear(Link(here))
    for one in processes:
        one.run(WARM_S)
    figures: list[list[float]] = [[], [], []]
    for number in range(turns):
        for index in (0, 1, 2) if number % 2 == 0 else (2, 1, 0):
            figures[index].append(processes[index].run(TURN_S).ms)
    for one in processes:
        one.end()
    ear.close()
    return Round(*map(statistics.median, figures), control_ms=ear.cpu_s / max(1, ear.predictions) * 1000.0)


def _serve(run: Callable[[float], Used]) -> None:
    for line in sys.stdin:
        used = run(float(line))
        print(json.dumps({"frames": used.frames, "cpu_s": used.cpu_s}), flush=True)


def main(arguments: list[str]) -> int:
    mode, slot, fps = arguments[0], Path(arguments[1]), float(arguments[2])
    if mode in ("bare", "fed"):
        _serve(bare_on(slot, fps, is_fed=mode == "fed"))
    else:
        link = Link(socket.socket(fileno=int(arguments[3])))
        with ours_on(slot, fps, link) as run:
            _serve(run)
        link.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
