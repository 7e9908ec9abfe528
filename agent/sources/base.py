"""A source gives frames or sensor windows, one after the other; how many of them are inferred is not its concern.

Capture calls `grab` for every frame and `retrieve` only for one that will be inferred, because decoding dominates.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.sources.states import Channel
from protocol.errors import DeviceError

#: Pixels (height, width, 3) uint8 in BGR order, or readings (window, fields) float32.
Array = NDArray[Any]
Pixels = NDArray[np.uint8]
Readings = NDArray[np.float32]


class SourceLostError(DeviceError):
    """The source does not answer, fell silent or broke off; opening it again may help."""

    code = "source_lost"


class SourceEndedError(DeviceError):
    """The last frame was given; the source is not lost."""

    code = "source_ended"


class DecodeError(DeviceError):
    """One frame could not be decoded; the next one may be fine."""

    code = "decode_error"


@dataclass(frozen=True, slots=True)
class Grabbed:
    """One frame of the source, not decoded yet."""

    #: Seconds on the source's own time line (media time of a file, arrival time of a camera), going on over a reopening:
    #: what `max_fps` is measured by.
    media_s: float


@dataclass(frozen=True, slots=True)
class Need:
    """How many pixels the models can use: a picture that has fewer would be enlarged."""

    width: int
    height: int
    #: One side that is large enough suffices: the picture is fitted into the input as a whole.
    is_either: bool = False

    def is_met_by(self, width: int, height: int) -> bool:
        """Whether a picture of this size has enough of them."""
        return (width >= self.width or height >= self.height) if self.is_either else (width >= self.width and height >= self.height)


class Source(Protocol):
    """Frames or sensor windows. One thread calls it; `close` may be called again and after a failed `open`."""

    @property
    def repeats(self) -> bool:
        """Whether it is opened again at once when it ends."""
        ...

    @property
    def text(self) -> str:
        """What is worth knowing about it now, in words; empty when there is nothing."""
        ...

    @property
    def decoder(self) -> str:
        """What decodes its frames now, in words, e.g. "ffmpeg, sub-stream 640x360"; empty when nothing is to be said."""
        ...

    @property
    def refused(self) -> str:
        """Why the decoder that was asked for is not used, in words; empty when it is."""
        ...

    def suits(self, need: Need | None) -> bool:
        """Hear what the models need (None: no model is there); returns False when it is better opened again because of that."""
        ...

    def open(self) -> None:
        """Make the source give frames. Raises: SourceLostError naming the source (secrets masked) and what to check."""
        ...

    def grab(self, stop: threading.Event) -> Grabbed | None:
        """The next frame, when it is due; None when none came within about a second or `stop` was set.

        Raises: SourceLostError when the source broke off or was silent too long; SourceEndedError after the last frame.
        """
        ...

    def retrieve(self, into: Array) -> Array:
        """Decode the frame grabbed last into `into` and return it; another array when its shape or type does not fit.

        Raises: DecodeError naming the frame.
        """
        ...

    def close(self) -> None:
        """Free what `open` took."""
        ...

    def take_channels(self) -> Mapping[str, Channel]:
        """Readings per field since the last call; empty for sources of pictures."""
        ...
