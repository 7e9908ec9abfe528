"""The part of the frame that a pipeline looks at: cut out without a copy; boxes found in it are brought back to the whole frame. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.inference.messages import Box
from agent.sources.base import Array, Need


@dataclass(frozen=True, slots=True)
class Region:
    """Corners in shares of the frame's width and height, 0..1; at least one pixel of any frame lies inside."""

    x0: float
    y0: float
    x1: float
    y1: float

    def of(self, frame: Array) -> Array:
        """A view of the pixels inside, height x width x 3; at least one row and one column."""
        height, width = frame.shape[:2]
        left, top = min(width - 1, int(self.x0 * width)), min(height - 1, int(self.y0 * height))
        right, bottom = max(left + 1, round(self.x1 * width)), max(top + 1, round(self.y1 * height))
        return frame[top:bottom, left:right]

    def boxes_in_frame(self, boxes: Sequence[Box]) -> tuple[Box, ...]:
        """The same boxes, in shares of the whole frame."""
        return tuple(replace(box, x0=self._x(box.x0), y0=self._y(box.y0), x1=self._x(box.x1), y1=self._y(box.y1)) for box in boxes)

    def need_of_frame(self, need: Need) -> Need:
        """How many pixels the whole frame must have for the region to have as many as are needed."""
        return replace(need, width=round(need.width / (self.x1 - self.x0)), height=round(need.height / (self.y1 - self.y0)))

    def _x(self, share: float) -> float:
        return self.x0 + share * (self.x1 - self.x0)

    def _y(self, share: float) -> float:
        return self.y0 + share * (self.y1 - self.y0)
