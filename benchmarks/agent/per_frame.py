"""CPU per inferred frame of the inference process beside a bare loop that sets, invokes and gets; both at a camera's pace, decode excluded.

`python -m benchmarks.agent.per_frame ours|bare|fed SLOT FPS SECONDS [FD]` is one measured process. Ours is the production pipeline (capture
thread, buffers, preprocessing, inference, postprocessing, the link to the control process) on frames that lie decoded in memory; the bare
loop sleeps for the same pace, copies a prepared tensor in, invokes, and reads the outputs; a fed one makes the tensor of a fresh frame
first, by our own preprocessing, which leaves the model cold caches. `measure` runs them turn by turn, and plays the
control process, whose own CPU per prediction is told apart.
"""

import itertools
import json
import os
import socket
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

#: What a camera's sub-stream gives: height, width; as many frames as the pipeline has buffers, warm as if just decoded.
FRAME = (480, 640)
FRAMES = 3
#: Frames that are captured or inferred at a time when there is no pace: decoding may overlap inference.
UNDER_WAY = 2
#: Seconds before the measured ones, in the same process.
WARM_S = 1.0
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

    def wait(self) -> bool:
        """Until the next frame is due; returns whether it came to that within a second."""
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


def random_frames() -> list[Array]:
    """As many frames as a pipeline has buffers."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (*FRAME, 3), dtype=np.uint8) for _ in range(FRAMES)]


class MemorySource:
    """Decoded frames, one after the other, each when it is due."""

    repeats = False
    text = ""
    decoder = ""
    refused = ""

    def __init__(self, pace: Pace) -> None:
        self._frames = random_frames()
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
        del into  # what is decoded already is handed out as it is
        return self._frames[self._count % FRAMES]

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
def pipeline_on(slot: Path, *, fps: float, link: Link | None = None) -> Iterator[Pipeline]:
    """The production pipeline on frames in memory, until the end of the block; what it says goes to the link, or nowhere."""
    clock, pace = SystemClock(), Pace(fps)
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


def run_ours(slot: Path, fps: float, seconds: float, link: Link) -> Used:
    """The production pipeline for so long."""
    with pipeline_on(slot, fps=fps, link=link) as pipeline:
        time.sleep(WARM_S)
        frames, cpu_s = pipeline.count().inferred, time.process_time()
        time.sleep(seconds)
        return Used(pipeline.count().inferred - frames, time.process_time() - cpu_s)


def run_bare(slot: Path, fps: float, seconds: float, *, is_fed: bool = False) -> Used:
    """Set, invoke, get at the same pace, on the same back end with the same options; `is_fed`: after preprocessing a fresh frame."""
    manifest = read_slot(slot)
    options = RuntimeConfig()
    loaded = load_first(slot, manifest, BackendOptions(threads=options.threads))
    call = bare_call(loaded.backend, manifest.model_file)
    if is_fed:
        call = _fed(call, Preprocessor(compile_plan(manifest)))
    pace = Pace(fps)
    _bare_loop(call, pace, WARM_S)
    cpu_s = time.process_time()
    frames = _bare_loop(call, pace, seconds)
    return Used(frames, time.process_time() - cpu_s)


def _bare_loop(call: Callable[[], object], pace: Pace, seconds: float) -> int:
    ends_s, frames = time.monotonic() + seconds, 0
    while time.monotonic() < ends_s:
        if pace.paced:
            pace.wait()
        call()
        frames += 1
    return frames


def _fed(call: Callable[[], object], preprocessor: Preprocessor) -> Callable[[], object]:
    frames = itertools.cycle(random_frames())

    def run() -> None:
        preprocessor.run(next(frames))
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
    """Milliseconds of CPU per frame, turn by turn."""

    ours_ms: float
    bare_ms: float
    fed_ms: float
    #: Of the control process, per prediction: reading, checking, looking for events.
    control_ms: float


def measure(slot: Path, *, fps: float, seconds: float, rounds: int) -> list[Round]:
    """Both processes in turn, so many times."""
    made = []
    for number in range(rounds):
        three = [_ours, _bare, _fed_bare] if number % 2 == 0 else [_fed_bare, _bare, _ours]
        figures = {call.__name__: call(slot, fps, seconds) for call in three}
        (ours, control_ms), (bare, _), (fed, _) = figures["_ours"], figures["_bare"], figures["_fed_bare"]
        made.append(Round(ours.ms, bare.ms, fed.ms, control_ms))
    return made


def _ours(slot: Path, fps: float, seconds: float) -> tuple[Used, float]:
    here, there = socket.socketpair()
    with there:
        process = _spawn("ours", slot, fps, seconds, there.fileno())
    link, predictions = Link(here), 0
    cpu_s = time.thread_time()
    try:
        while True:
            for message in _messages(link.receive()):
                predictions += isinstance(message, Prediction)
    except LinkClosedError:
        cpu_s = time.thread_time() - cpu_s
    link.close()
    return _result(process), cpu_s / max(1, predictions) * 1000.0


def _messages(data: bytes) -> list[object]:
    return [FROM_WORKER.validate_json(data)]


def _bare(slot: Path, fps: float, seconds: float) -> tuple[Used, float]:
    return _result(_spawn("bare", slot, fps, seconds)), 0.0


def _fed_bare(slot: Path, fps: float, seconds: float) -> tuple[Used, float]:
    return _result(_spawn("fed", slot, fps, seconds)), 0.0


def _spawn(mode: str, slot: Path, fps: float, seconds: float, *fds: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.agent.per_frame", mode, str(slot), str(fps), str(seconds), *map(str, fds)]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=fds, env=environment)


def _result(process: "subprocess.Popen[str]") -> Used:
    out, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{process.args!r} ended with status {process.returncode}.")
    return Used(**json.loads(out.splitlines()[-1]))


def main(arguments: list[str]) -> int:
    mode, slot, fps, seconds = arguments[0], Path(arguments[1]), float(arguments[2]), float(arguments[3])
    if mode in ("bare", "fed"):
        used = run_bare(slot, fps, seconds, is_fed=mode == "fed")
    else:
        link = Link(socket.socket(fileno=int(arguments[4])))
        used = run_ours(slot, fps, seconds, link)
        link.close()
    print(json.dumps({"frames": used.frames, "cpu_s": used.cpu_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
