"""Where decoded pixels lie: each picture is decoded once, and the frames of all pipelines that see it look at the same memory.

Pictures are used again when the last frame is done with them, so memory is taken once: for one pipeline as many as it has buffers.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from agent.sources.base import Array
from runtime.preprocess import Preprocessor

#: Inputs that are kept per part of a picture; models change, so what has not been asked for goes when there are more.
MAX_PLANS = 8


@dataclass(slots=True)
class _Made:
    preprocessor: Preprocessor
    #: The picture's frame that the tensor was made of.
    frame: int = -1


class Inputs:
    """Model inputs made of one part of a picture: lines with the same plan have each made once per frame, by whoever asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, _Made] = {}
        self.frame = 0

    def of(self, plan: str, make: Callable[[], Preprocessor], pixels: Array) -> Array:
        """The input tensor of these pixels by the plan of that name; it holds until the picture is released. `make`: a preprocessor for it.

        Raises: InvalidError when the pixels are no frame.
        """
        with self._lock:
            made = self._made.get(plan)
            if made is None:
                if len(self._made) >= MAX_PLANS:
                    self._made.clear()
                made = self._made[plan] = _Made(make())
            if made.frame != self.frame:
                tensor = made.preprocessor.run(pixels)
                made.frame = self.frame
                return tensor
            return made.preprocessor.tensor


class Picture:
    """Pixels or readings of one grabbed frame; whoever holds it may read `data`, the capture thread alone writes it."""

    __slots__ = ("_inputs", "_pool", "data", "frame", "holders")

    def __init__(self, pool: "PicturePool") -> None:
        self.data: Array = np.empty(0, np.uint8)
        self.holders = 0
        #: Grows each time that it is used for another frame.
        self.frame = 0
        self._inputs: dict[Hashable, Inputs] = {}
        self._pool = pool

    def inputs_of(self, part: Hashable) -> Inputs:
        """What models make of the part (a region, or None for the whole); called by the capture thread."""
        inputs = self._inputs.get(part)
        if inputs is None:
            if len(self._inputs) >= MAX_PLANS:
                self._inputs.clear()
            inputs = self._inputs[part] = Inputs()
        inputs.frame = self.frame
        return inputs

    def hold(self) -> None:
        """One more frame looks at it."""
        with self._pool.lock:
            self.holders += 1

    def release(self) -> None:
        """One frame less does; at the last one its memory is free for another picture."""
        pool = self._pool
        with pool.lock:
            self.holders -= 1
            if not self.holders:
                pool.free.append(self)


class PicturePool:
    """The pictures of one source. There are never more than are held at once, plus the one that is being decoded."""

    def __init__(self) -> None:
        #: Held for a moment by whoever counts holders; and the pictures that nobody holds.
        self.lock = threading.Lock()
        self.free: list[Picture] = []
        #: How many hold memory.
        self.made = 0

    def trim(self) -> None:
        """Let go of all but one that nobody holds: those that waited beside a frame which another thread inferred."""
        with self.lock:
            self.made -= len(self.free[1:])
            del self.free[1:]

    def take(self) -> Picture:
        """A picture to decode into, held once by the caller."""
        with self.lock:
            if self.free:
                picture = self.free.pop()
            else:
                picture = Picture(self)
                self.made += 1
            picture.holders = 1
            picture.frame += 1
            return picture
