"""Cameras and video files through OpenCV, the only importer of `cv2` in the agent; imported when a source is opened.

User names and passwords stand inside stream URLs: no text that leaves this file holds an unmasked one, and FFmpeg's own log is off.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from agent.orders import CameraSource, VideoSource
from agent.sources.base import Array, DecodeError, Grabbed, Need, Pixels, SourceEndedError, SourceLostError
from agent.sources.states import Channel
from protocol.clock import Clock

#: Frames per second of a file whose header says nothing usable.
DEFAULT_FPS = 25.0
#: A picture file beyond this is refused before it is decoded: 64 MiB, 100 million pixels.
MAX_PICTURE_BYTES = 64 << 20
MAX_PIXELS = 100_000_000

#: The first and the last two bytes of a JPEG.
_START_OF_IMAGE, _END_OF_IMAGE = (0xFF, 0xD8), (0xFF, 0xD9)

#: FFmpeg's options unless others are given.
DEFAULT_OPTIONS = "rtsp_transport;tcp"

#: Seconds for which an opening waits for one that needs other options: longer than any should take.
OPTIONS_WAIT_S = 60.0

_MODULE_LOCK = threading.Lock()


def load_cv2() -> ModuleType:
    """OpenCV, one thread per call and silent. Raises: SourceLostError when it is not installed, naming the extra."""
    with _MODULE_LOCK:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg would log URLs with their passwords
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
        try:
            import cv2
        except ImportError as error:
            raise SourceLostError(
                f"OpenCV is not usable here: {error}.", hint="Install the extra `camera` or `camera-headless`.", code="camera_missing"
            ) from None
        cv2.setNumThreads(1)
        return cv2


def read_picture(path: Path) -> Pixels:
    """The picture file as (height, width, 3) uint8 in BGR order. Raises: DecodeError naming the file and what is wrong with it."""
    cv2 = load_cv2()
    try:
        size = path.stat().st_size
        if size > MAX_PICTURE_BYTES:
            raise DecodeError(f"{path} has {size} bytes; wanted at most {MAX_PICTURE_BYTES}.")
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror}.") from None
    if _is_cut(data):
        raise DecodeError(f"{path} ({data.size} bytes) is a JPEG without an end: it was cut.")
    try:
        pixels: Pixels | None = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise DecodeError(f"{path} cannot be decoded: {error.err}.") from None
    if pixels is None:
        raise DecodeError(f"{path} ({data.size} bytes) is not a picture that OpenCV can decode; wanted JPEG, PNG or BMP.")
    return pixels


def decode_jpeg(data: Pixels, *, reduction: int = 1, name: str) -> Pixels:
    """The JPEG as (height, width, 3) uint8 in BGR order, its sides divided by `reduction`: 1, 2, 4 or 8.

    Raises: DecodeError naming `name` when it is none, was cut, or has more than MAX_PIXELS.
    """
    cv2 = load_cv2()
    if _is_cut(data):
        raise DecodeError(f"A frame of {name} ({data.size} bytes) is a JPEG without an end: it was cut.")
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    try:
        pixels: Pixels | None = cv2.imdecode(data, flags[reduction])
    except cv2.error as error:
        raise DecodeError(f"A frame of {name} cannot be decoded: {error.err}.") from None
    if pixels is None:
        raise DecodeError(f"A frame of {name} ({data.size} bytes) is no JPEG that OpenCV can decode.")
    return pixels


def _is_cut(data: Pixels) -> bool:
    """Whether it is a JPEG without its end-of-image marker: OpenCV before 4.11 fills the rest with whatever the buffer held.

    One that is damaged in the middle is not known by this: only libjpeg sees that, and OpenCV does not pass its warnings on.
    """
    if data.size < 2 or tuple(data[:2].tolist()) != _START_OF_IMAGE:
        return False
    # some cameras and phones put something behind it: looked for from the end
    return tuple(data[-2:].tolist()) != _END_OF_IMAGE and data.tobytes().rfind(bytes(_END_OF_IMAGE)) < 0


def small_gray(pixels: Array, width: int) -> Pixels:
    """The picture in gray, (height, width) uint8, its noise smoothed; `width` pixels wide, or less when it is smaller itself."""
    cv2 = load_cv2()
    if pixels.shape[1] > width:
        pixels = cv2.resize(pixels, (width, max(1, round(pixels.shape[0] * width / pixels.shape[1]))), interpolation=cv2.INTER_LINEAR)
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if pixels.ndim == 3 else pixels
    return np.asarray(cv2.blur(gray, (3, 3)), np.uint8)


class Pace:
    """When the frames of a recording are due; goes on evenly over a reopening."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due_s: float | None = None

    def wait(self, interval_s: float, stop: threading.Event) -> bool:
        """Wait, at most a second, until the next frame is due, `interval_s` after the one before; returns whether it is due."""
        now = self._clock.monotonic()
        if self._due_s is None or now - self._due_s > 1.0:  # the first one, or the process stood still
            self._due_s = now
        self._clock.wait(stop, min(1.0, self._due_s - now))
        if stop.is_set() or self._clock.monotonic() < self._due_s:
            return False
        self._due_s += interval_s
        return True


class _Options:
    """The environment variable by which OpenCV hears FFmpeg's options: one for the process, so only openings of one value go on at once."""

    NAME = "OPENCV_FFMPEG_CAPTURE_OPTIONS"

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._opening = 0
        self._value = ""
        #: Values that wait, in the order in which they came: whoever comes later waits behind them.
        self._waiting: list[str] = []

    @contextmanager
    def of(self, value: str) -> Iterator[None]:
        """Open in here, where the variable has the value and nobody opens who needs another one.

        Raises: SourceLostError when somebody else's opening does not end.
        """
        with self._condition:
            if self._waiting or (self._opening and self._value != value):
                self._waiting.append(value)
                is_free = self._condition.wait_for(
                    lambda: self._waiting[0] == value and (not self._opening or self._value == value), OPTIONS_WAIT_S
                )
                self._waiting.remove(value)
                self._condition.notify_all()
                if not is_free:
                    raise SourceLostError("Another stream has been opening for too long.")
            self._opening += 1
            self._value = os.environ[self.NAME] = value
        try:
            yield
        finally:
            with self._condition:
                self._opening -= 1
                self._condition.notify_all()


_OPTIONS = _Options()


@dataclass(frozen=True, slots=True)
class Opening:
    """How one `cv2.VideoCapture` is opened."""

    #: A CAP_* back end of OpenCV.
    backend: int
    #: FFmpeg's options, as `decoders.options_of` writes them.
    options: str = DEFAULT_OPTIONS
    #: CAP_PROP_* properties and their values, in turns.
    parameters: tuple[int, ...] = ()
    #: Let graphics decode through VA-API.
    is_vaapi: bool = False

    def open(self, target: str) -> Any:
        """The capture. Raises: SourceLostError when it cannot be opened."""
        cv2 = load_cv2()
        if self.backend != cv2.CAP_FFMPEG:
            return self._opened(target, [])
        # more threads decode more frames ahead: more memory and delay, and no less of the processor
        extra = [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_VAAPI] if self.is_vaapi else [cv2.CAP_PROP_N_THREADS, 1]
        with _OPTIONS.of(self.options):
            return self._opened(target, extra)

    def _opened(self, target: str, extra: list[int]) -> Any:
        cv2 = load_cv2()
        try:
            capture = cv2.VideoCapture(target, self.backend, [*self.parameters, *extra])
            if capture.isOpened():
                return capture
        except cv2.error:
            pass  # said below, as of one that did not open
        raise SourceLostError("It cannot be opened.")


class OpenedCapture:
    """What camera, stream and file share: one `cv2.VideoCapture` and its errors."""

    repeats = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._capture: Any = None
        self.text = ""
        self.decoder = self.refused = ""

    def suits(self, need: Need | None) -> bool:  # noqa: ARG002 - there is one picture size to have
        """Whatever the models need."""
        return True

    def retrieve(self, into: Array) -> Array:
        """The frame grabbed last, decoded in place when shape and type fit."""
        cv2 = load_cv2()
        try:
            is_decoded, pixels = self._capture.retrieve(into) if into.ndim == 3 else self._capture.retrieve()
        except cv2.error as error:
            raise DecodeError(f"A frame of {self._name} cannot be decoded: {error.err}.") from None
        if not is_decoded or pixels is None:
            raise DecodeError(f"A frame of {self._name} cannot be decoded.")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise DecodeError(f"A frame of {self._name} has shape {pixels.shape} and type {pixels.dtype}; wanted (height, width, 3) uint8.")
        return pixels  # type: ignore[no-any-return]  # cv2 is untyped; checked above

    def close(self) -> None:
        """Release the device, connection or file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def take_channels(self) -> Mapping[str, Channel]:
        """Pictures have none."""
        return {}

    def _open(self, target: str, opening: "Opening", *, hint: str) -> None:
        self.close()
        try:
            self._capture = opening.open(target)
        except SourceLostError:
            raise SourceLostError(f"{self._name} cannot be opened.", hint=hint) from None


class Camera(OpenedCapture):
    """A V4L2 camera."""

    def __init__(self, config: CameraSource, *, clock: Clock) -> None:
        super().__init__(config.device)
        self._config = config
        self._clock = clock

    def open(self) -> None:
        """Open the device node. Raises: SourceLostError saying whether it is missing, forbidden or busy."""
        cv2, device = load_cv2(), Path(self._config.device)
        if not device.exists():
            found = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
            raise SourceLostError(
                f"There is no {device}.", hint=f"Cameras found: {found}. Check the cable and the driver (`v4l2-ctl --list-devices`)."
            )
        if not os.access(device, os.R_OK | os.W_OK):
            raise SourceLostError(f"No permission for {device}.", hint="Add the agent's user to the group `video`.")
        parameters = []
        if self._config.width is not None and self._config.height is not None:
            parameters = [cv2.CAP_PROP_FRAME_WIDTH, self._config.width, cv2.CAP_PROP_FRAME_HEIGHT, self._config.height]
        self._open(
            str(device),
            Opening(cv2.CAP_V4L2, parameters=tuple(parameters)),
            hint="It is no capture device, or another program uses it (`fuser -v` names it).",
        )

    def grab(self, stop: threading.Event) -> Grabbed | None:
        """The next picture of the camera."""
        if stop.is_set():
            return None
        if not self._capture.grab():
            raise SourceLostError(f"{self._name} gives no more pictures.", hint="Check the cable and the power of the camera.")
        return Grabbed(self._clock.monotonic())


class VideoFile(OpenedCapture):
    """A recorded video, played at its own pace, once or again and again."""

    def __init__(self, config: VideoSource, *, clock: Clock) -> None:
        super().__init__(config.path)
        self.repeats = config.loop
        self._path = Path(config.path)
        self._pace = Pace(clock)
        self._interval_s = 1.0 / DEFAULT_FPS
        self._promised = 0
        self._count = 0
        self._media_s = 0.0

    def open(self) -> None:
        """Open the file at its first frame. Raises: SourceLostError saying whether it is missing or not a video."""
        cv2 = load_cv2()
        if not self._path.is_file():
            raise SourceLostError(f"There is no video file {self._name}.", hint="Check `path` of the source.")
        backend = cv2.CAP_FFMPEG if cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG) else cv2.CAP_ANY
        self._open(
            str(self._path),
            Opening(backend),
            hint="It is damaged, empty or of a kind that this OpenCV does not decode; `ffprobe` names it.",
        )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._interval_s = 1.0 / (fps if 0.1 <= fps <= 1000 else DEFAULT_FPS)
        self._promised = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._count = 0

    def grab(self, stop: threading.Event) -> Grabbed | None:
        """The next frame when it is due. Raises: SourceEndedError after the last; SourceLostError when there was not even one."""
        if not self._pace.wait(self._interval_s, stop):
            return None
        if not self._capture.grab():
            self._end()
        self._count += 1
        self._media_s += self._interval_s
        return Grabbed(self._media_s)

    def _end(self) -> None:
        if self._count == 0:
            raise SourceLostError(f"{self._name} holds no frame that can be decoded.", hint="It is empty or damaged; `ffprobe` names it.")
        if self._count < self._promised * 0.9:
            self.text = (
                f"{self._name} ended after {self._count} of the {self._promised} frames that it promises: it is damaged or cut short."
            )
            raise SourceEndedError(self.text)
        raise SourceEndedError(f"{self._name} ended after {self._count} frames.")
