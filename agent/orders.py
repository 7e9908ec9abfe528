"""What the inference process is told to run: frozen values with their limits, whose classes need no pydantic, which it does not carry.

Settings hold the sources as they are (`agent.config`), checked by pydantic; the inference process reads them with `protocol.decoding`.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from protocol.decoding import Limits
from protocol.ids import NAME_PATTERN
from protocol.look import STRICT, WHOLE_FRAME, Motion, Share, checked_region

Name = Annotated[str, Limits(pattern=NAME_PATTERN)]
#: What addresses of cameras and of a site's broker begin with.
STREAM_SCHEMES, BROKER_SCHEMES = ("rtsp", "rtsps", "http", "https"), ("mqtt", "mqtts")
LongText = Annotated[str, Limits(min_length=1, max_length=2000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """A recorded video, played at its own pace."""

    __pydantic_config__ = STRICT
    kind: Literal["video"]
    path: LongText
    #: Start again at its end; a new session each time.
    loop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSource:
    """A V4L2 camera."""

    __pydantic_config__ = STRICT
    kind: Literal["camera"]
    device: LongText = "/dev/video0"
    #: Wished picture size in pixels; None: what the camera gives.
    width: Annotated[int, Limits(ge=16, le=16_384)] | None = None
    height: Annotated[int, Limits(ge=16, le=16_384)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSource:
    """An RTSP or HTTP stream."""

    __pydantic_config__ = STRICT
    kind: Literal["stream"]
    url: LongText
    #: A smaller picture of the same camera: used while it has as many pixels as the models need (docs/capture.md).
    sub_url: LongText | None = None
    #: Name of the secret that holds "user:password"; see `resolve_secrets`.
    secret: Name | None = None
    #: Which frames are decoded: all of them; those that others are predicted from; those that stand alone, one every few seconds.
    decode: Literal["all", "references", "keyframes"] = "all"
    #: What decodes; "auto" takes the first that works here. One that does not work is replaced by the processor, and that is reported.
    hardware: Literal["none", "auto", "vaapi", "v4l2m2m", "cuda"] = "none"
    #: How RTSP carries the pictures.
    transport: Literal["tcp", "udp"] = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A folder of pictures, in the order of their names."""

    __pydantic_config__ = STRICT
    kind: Literal["folder"]
    path: LongText
    loop: bool = False
    #: Pictures per second.
    fps: Annotated[float, Limits(gt=0, le=1000)] = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSource:
    """A stream of JSON readings from a local MQTT broker, for gateways."""

    __pydantic_config__ = STRICT
    kind: Literal["sensor"]
    broker: LongText
    topic: LongText
    #: JSON keys that make the channels, in this order.
    fields: Annotated[tuple[LongText, ...], Limits(min_length=1, max_length=64)]
    #: Readings per prediction, and readings between two predictions.
    window: Annotated[int, Limits(ge=1, le=65_536)] = 64
    stride: Annotated[int, Limits(ge=1, le=65_536)] = 16
    #: A reading that lacks a number: is left out, keeps the field's last one, spoils its windows, or is for the model manifest to say.
    gaps: Literal["drop", "hold", "reject", "pass"] = "hold"
    secret: Name | None = None


Source = VideoSource | CameraSource | StreamSource | FolderSource | SensorSource


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOrder:
    """One pipeline as the inference process needs it; rules and who may look are not its business, and reopen no camera."""

    name: Name
    line: Name
    #: With credentials inside the URLs (`agent.settings.overlaying.resolve_secrets`); never logged.
    source: Source
    #: Frames inferred per second at most; 0: as many as the source gives.
    max_fps: Annotated[float, Limits(ge=0, le=1000)] = 0.0
    min_score: Share | None = None
    #: Give detected objects tracking ids.
    track: bool = False
    #: The part of the frame that is inferred, x0, y0, x1, y1 of 0 to 1.
    roi: tuple[Share, Share, Share, Share] = WHOLE_FRAME
    motion: Motion = field(default_factory=Motion)

    def __post_init__(self) -> None:
        checked_region(self.roi)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOrder:
    """How models are run, see `agent.config.RuntimeConfig`."""

    providers: Annotated[tuple[LongText, ...], Limits(max_length=16)] = ()
    options: Annotated[dict[LongText, dict[LongText, LongText]], Limits(max_length=16)] = field(default_factory=dict)
    require: bool = False
    threads: Annotated[int, Limits(ge=1, le=64)] = 1
    #: Milliseconds after which a frame is too old to be inferred.
    max_age_ms: Annotated[float, Limits(ge=1, le=60_000)] = 1000.0


_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def mask(value: Any) -> Any:
    """The value with user names and passwords inside URLs replaced by ***."""
    if isinstance(value, str):
        return _USERINFO.sub("***", value)
    if isinstance(value, list | tuple):
        return [mask(item) for item in value]
    if isinstance(value, dict):
        return {key: mask(item) for key, item in value.items()}
    return value
