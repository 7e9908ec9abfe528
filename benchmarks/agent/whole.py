"""The real inference process on real video: frames per second, CPU per 1080p camera, memory, and the way to the first answer.

`python -m benchmarks.agent.whole MODE …` is one bare peer process; see `main`.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.agent.slots import LINE
from protocol.decoding import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.inference.messages import Prediction
    from examples.demo.world import World

WAIT_S = 120.0
#: What a usual camera's main stream is.
CAMERA_FPS, INFERRED_FPS = 25, 5
ENVIRONMENT = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
#: Containers like to set it; an installed agent has its byte code, and 90 files compiled at each start are 0.15 s of something else.
NO_BYTE_CODE = "PYTHONDONTWRITEBYTECODE"
ENVIRONMENT.pop(NO_BYTE_CODE, None)


# --- looking at processes ---


def cpu_s(pid: int) -> float:
    """Seconds of CPU of all threads that the process has now, by the scheduler's nanoseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def pss_mib(pid: int) -> float:
    """Proportional set size in MiB: shared pages count by how many share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup says no Pss.")


def wait(condition: Callable[[], bool], what: str) -> None:
    """Until the condition holds. Raises: RuntimeError after WAIT_S seconds."""
    pause, ends_s = threading.Event(), time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > ends_s:
            raise RuntimeError(f"Waited {WAIT_S:g} s in vain for {what}.")
        pause.wait(0.005)


# --- ours ---


class Running:
    """An inference process with one pipeline on a video file, as the control process has it."""

    def __init__(self, slot: Path, video: Path, **settings: Any) -> None:
        from agent.config import RuntimeConfig
        from agent.inference.process import InferenceProcess
        from agent.orders import PipelineOrder
        from protocol.clock import SystemClock

        self.answers = 0
        #: CPU of the inference process when its first answer was there, seconds.
        self.first_cpu_s: float | None = None
        self.process = InferenceProcess(runtime=RuntimeConfig(), clock=SystemClock(), on_prediction=self._heard)
        source = {"kind": "video", "path": str(video), "loop": True}
        self.process.configure([decode(PipelineOrder, {"name": "front", "line": LINE, "source": source, **settings})])
        self.process.start()
        activation = self.process.activate(LINE, slot)
        if not activation.ok:
            raise RuntimeError(activation.text)
        wait(lambda: self.answers > 0, "the first answer")

    def _heard(self, _: "Prediction") -> None:
        if self.first_cpu_s is None:
            self.first_cpu_s = cpu_s(self.pid)
        self.answers += 1

    @property
    def pid(self) -> int:
        pid = self.process.pid
        if pid is None:
            raise RuntimeError("The inference process does not run.")
        return pid


@contextmanager
def running(slot: Path, video: Path, **settings: Any) -> "Iterator[Running]":
    """A running inference process that is ended with the block."""
    one = Running(slot, video, **settings)
    try:
        yield one
    finally:
        one.process.stop()


@dataclass(frozen=True, slots=True)
class Share:
    """CPU of one camera, in seconds per second."""

    share: float
    inferred_fps: float


def camera_share(slot: Path, video: Path, seconds: float) -> Share:
    """Everything that one camera costs: decoding, inference, and the control process's ear."""
    with running(slot, video, max_fps=INFERRED_FPS) as one:
        pause = threading.Event()
        pause.wait(2.0)
        answers, began_s, used_s = one.answers, time.monotonic(), cpu_s(one.pid) + time.process_time()
        pause.wait(seconds)
        elapsed_s = time.monotonic() - began_s
        used_s = cpu_s(one.pid) + time.process_time() - used_s
        return Share(used_s / elapsed_s, (one.answers - answers) / elapsed_s)


def cold_start(slot: Path, video: Path) -> float:
    """Seconds of CPU from the start of the inference process to its first answer."""
    with running(slot, video) as one:
        if one.first_cpu_s is None:
            raise RuntimeError("There was no first answer.")
        return one.first_cpu_s


def inference_pss(slot: Path, video: Path, seconds: float) -> float:
    """MiB of the inference process after it has inferred for so long."""
    with running(slot, video) as one:
        threading.Event().wait(seconds)
        return pss_mib(one.pid)


def unit_pss(world: "World", seconds: float) -> float:
    """MiB of all processes of an enrolled agent that infers a video, the server's not."""
    from examples.demo.scenario import DIGITS, LINE, make_videos

    world.start_server()
    world.admit_people()
    videos, _ = make_videos(world.root, ["cam-1"])
    pipelines = [{"name": "front", "line": LINE, "source": {"kind": "video", "path": str(videos["cam-1"]), "loop": True}}]
    folder = DIGITS / "models" / "1.1" / "tflite"
    model = world.import_model(folder / "model.tflite", DIGITS / "tflite.toml", name="digits", golden=folder / "golden.cbor")
    world.release(LINE, "1.1", {model: ["camera"]})
    settings = "[update]\nmin_inferences = 50\nmin_seconds = 2.0\nlatency_noise_ms = 1000.0\n"
    world.add_agent("cam-1", device_type="camera", pipelines=pipelines, settings=settings)
    world.start_agent("cam-1")
    campaign = world.campaign(LINE, "1.1", group="default", min_inferences=50)
    world.await_(lambda: world.updates_of(campaign)["cam-1"]["state"] == "updated", timeout_s=WAIT_S, what="the update")
    threading.Event().wait(seconds)
    return sum(pss_mib(pid) for pid in descendants(world.children.pid("cam-1")))


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    below = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(one for child in below for one in descendants(child))]


# --- frames per second: our pipeline in a process of its own, on a file that gives its next frame when one was inferred ---


class Hurried:
    """A clock for which a file's frame is due as soon as one was inferred; two are under way, so that decoding overlaps inference."""

    speed = 1.0

    def __init__(self) -> None:
        self._free = threading.Semaphore(2)
        self._moment_s = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return self._moment_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if self._free.acquire(timeout=0.5):
            self._moment_s += max(0.0, timeout_s)
        return event.is_set()

    def inferred(self, _: "Prediction") -> bool:
        """One frame is done."""
        self._free.release()
        return True


def run_pipeline(slot: Path, video: Path, seconds: float) -> float:
    """Frames inferred per second when the file is read as fast as they are."""
    from agent.config import RuntimeConfig
    from agent.inference.captures import Captures
    from agent.inference.engine import Line
    from agent.inference.marks import Marks, new_memory
    from agent.inference.pipeline import Pipeline
    from agent.orders import PipelineOrder, VideoSource
    from agent.sources.opencv import VideoFile
    from protocol.clock import SystemClock

    clock, hurried = SystemClock(), Hurried()
    line = Line(LINE, marks=Marks(new_memory()), now=clock.monotonic)
    swap = line.activate(slot, RuntimeConfig())
    if not swap.ok:
        raise RuntimeError(swap.text)
    source = VideoSource(kind="video", path=str(video), loop=True)
    pipeline = Pipeline(
        PipelineOrder(name="front", line=LINE, source=source),
        line,
        captures=Captures(clock=clock, next_session=lambda: 1, open_source=lambda *_: VideoFile(source, clock=hurried)),
        runtime=RuntimeConfig(max_age_ms=60_000),
        on_prediction=hurried.inferred,
    )
    pipeline.start()
    wait(lambda: pipeline.count().inferred > 10, "the first frames")
    began, began_s = pipeline.count().inferred, time.monotonic()
    threading.Event().wait(seconds)
    ended = pipeline.count()
    rate = (ended.inferred - began) / (time.monotonic() - began_s)
    pipeline.stop()
    if ended.inferred < 0.9 * ended.grabbed:
        raise RuntimeError(f"Of {ended.grabbed} frames {ended.inferred} were inferred: what was measured is not what was meant.")
    return rate


# --- bare peers, each in a process of its own ---


def bare_decode(video: Path, seconds: float) -> float:
    """Frames per second of OpenCV alone, as it decodes by default."""
    import cv2

    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    frames, began_s = 0, time.monotonic()
    while time.monotonic() - began_s < seconds:
        if not capture.read()[0]:
            capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
            continue
        frames += 1
    return frames / (time.monotonic() - began_s)


def bare_infer(slot: Path, seconds: float, fps: float = 0.0) -> tuple[float, float]:
    """(frames per second, seconds of CPU per second) of the runtime alone, at a pace or as fast as it can."""
    from benchmarks.agent.per_frame import run_bare

    began_s = time.monotonic()
    used = run_bare(slot, fps, seconds)
    elapsed_s = time.monotonic() - began_s
    return used.frames / seconds, used.cpu_s / (seconds if not fps else elapsed_s)


def ffmpeg_share(video: Path, seconds: float) -> float:
    """Seconds of CPU per second of FFmpeg alone, one thread, decoding the video at its own pace into nothing."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1", "-re", "-stream_loop", "-1", "-t", str(seconds)]
    before = os.times()
    subprocess.run([*command, "-i", str(video), "-f", "null", "-"], check=True)
    after = os.times()
    return (after.children_user + after.children_system - before.children_user - before.children_system) / seconds


def peer(mode: str, *arguments: object) -> dict[str, float]:
    """What one bare process measured."""
    return _figures("-m", "benchmarks.agent.whole", mode, *map(str, arguments))


def first(slot: Path) -> dict[str, float]:
    """What the first answer of a bare runtime costs, in a process without a line of ours: `cpu_s`, `pss_mib`."""
    return _figures(str(Path(__file__).with_name("first.py")), str(slot))


def _figures(*arguments: str) -> dict[str, float]:
    result = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def make_1080p(video: Path, target: Path, seconds: int = 20) -> Path:
    """The video as a 1080p H.264 file with 25 frames per second and a key frame every two seconds, as cameras send it."""
    scale = ["-vf", "scale=1920:1080", "-r", str(CAMERA_FPS), "-g", str(2 * CAMERA_FPS), "-bf", "0"]
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-b:v", "4M", "-pix_fmt", "yuv420p", "-an", "-t", str(seconds)]
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-stream_loop", "-1", "-i", str(video), *scale, *encode, str(target)]
    subprocess.run(command, check=True)
    return target


def main(arguments: list[str]) -> int:
    mode, rest = arguments[0], arguments[1:]
    match mode:
        case "pipeline":
            figures = {"fps": run_pipeline(Path(rest[0]), Path(rest[1]), float(rest[2]))}
        case "decode":
            figures = {"fps": bare_decode(Path(rest[0]), float(rest[1]))}
        case "infer":
            fps, share = bare_infer(Path(rest[0]), float(rest[1]), float(rest[2]))
            figures = {"fps": fps, "share": share}
        case _:
            raise ValueError(f"{mode!r} is no mode; wanted pipeline, decode or infer")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
