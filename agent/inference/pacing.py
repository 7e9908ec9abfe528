"""Which frames a pipeline may infer: at most `max_fps`, by the source's own time line, so that a file gives the same ones on every run.

A device that is hot or short of memory infers fewer: one of `stride` of those that are due.
"""

#: A frame this much too early still counts as due: media times are multiples of 1/fps in binary floating point.
TOLERANCE_S = 1e-6


class RateLimit:
    """Lets a frame through when 1/max_fps seconds of media time have passed since the last one taken; 0 lets all through.

    The first interval begins at media time 0: of a file at 30 frames per second, 3 per second are the 10th, the 20th and so on. A camera's
    time line began long ago, so its first frame is let through. A time line that begins again, as that of a file whose capture hung and was
    replaced, does not have to reach where the last one stood.
    """

    def __init__(self, max_fps: float) -> None:
        self._interval_s = 1.0 / max_fps if max_fps > 0 else 0.0
        self._due_s = self._interval_s
        self._seen_s = 0.0
        #: Of so many due frames one is let through; set from any thread.
        self.stride = 1
        self._left_out = 0

    @property
    def is_limiting(self) -> bool:
        """Whether there are frames that are not due."""
        return self._interval_s > 0 or self.stride > 1

    def is_due(self, media_s: float) -> bool:
        """Whether a frame of this media time may be taken; asked once per frame."""
        if media_s < self._seen_s:
            self._due_s = media_s + self._interval_s
        self._seen_s = media_s
        if media_s < self._due_s - TOLERANCE_S:
            return False
        if self._left_out < self.stride - 1:
            self._left_out += 1
            self._move(media_s)
            return False
        return True

    def take(self, media_s: float) -> None:
        """Count a frame as taken. A late one moves the grid, so that a stall is not followed by a burst."""
        self._left_out = 0
        self._move(media_s)

    def _move(self, media_s: float) -> None:
        if media_s - self._due_s >= self._interval_s:
            self._due_s = media_s + self._interval_s
        else:
            self._due_s += self._interval_s
