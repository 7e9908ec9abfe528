"""A camera behind the agent's own interface: pictures, cuts and changes come when the test says so, and it counts what is asked of it."""

import threading
from collections.abc import Mapping

import numpy as np

from agent.sources.base import Array, DecodeError, Grabbed, Need, Pixels, SourceLostError
from agent.sources.states import Channel


def plain(color: tuple[int, int, int], *, size: tuple[int, int] = (64, 48)) -> Pixels:
    """A picture of one color (BGR), width x height."""
    return np.full((size[1], size[0], 3), color, np.uint8)


class SceneCamera:
    """Gives `picture` at about `fps`; unplugged while `is_unplugged` is set; `picture = None` is a frame that cannot be decoded."""

    repeats = False
    text = decoder = refused = ""

    def __init__(self, picture: Pixels | None, *, fps: float = 200.0) -> None:
        self.picture = picture
        self.is_unplugged = threading.Event()
        #: Set: it is better opened again; cleared when it is.
        self.is_unsuited = threading.Event()
        self.opened = self.grabbed = self.retrieved = 0
        self.is_open = False
        self.needs: list[Need | None] = []
        self._interval_s = 1.0 / fps

    def suits(self, need: Need | None) -> bool:
        self.needs.append(need)
        return not self.is_unsuited.is_set()

    def open(self) -> None:
        if self.is_unplugged.is_set():
            raise SourceLostError("There is no camera.", hint="Plug it in.")
        self.opened += 1
        self.is_open = True
        self.is_unsuited.clear()

    def grab(self, stop: threading.Event) -> Grabbed | None:
        if stop.wait(self._interval_s):
            return None
        if self.is_unplugged.is_set():
            raise SourceLostError("The camera gives no more pictures.", hint="Check the cable.")
        self.grabbed += 1
        return Grabbed(self.grabbed * self._interval_s)

    def retrieve(self, into: Array) -> Array:
        self.retrieved += 1
        picture = self.picture
        if picture is None:
            raise DecodeError("A frame cannot be decoded.")
        if into.shape != picture.shape:
            return picture.copy()
        np.copyto(into, picture)
        return into

    def close(self) -> None:
        self.is_open = False

    def take_channels(self) -> Mapping[str, Channel]:
        return {}
