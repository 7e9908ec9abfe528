"""When something that flickers counts as changed: pure."""

from collections import deque


class Debounce:
    """A yes or no that changes only after the contrary was seen in `frames` of the last `of` frames, and for some time more.

    After a change what was seen before it is forgotten: fewer than `frames` contrary frames in any `of` never change it, wherever they lie.
    """

    __slots__ = ("_first_ms", "_frames", "_held_ms", "_off_ms", "_on_ms", "_recent", "changed_ms", "is_on")

    def __init__(self, *, frames: int, of: int, on_ms: int = 0, off_ms: int = 0) -> None:
        """`on_ms`, `off_ms`: milliseconds for which the frames must say yes, or no, before it is believed."""
        self._frames, self._on_ms, self._off_ms = frames, on_ms, off_ms
        #: Per frame since the last change, newest last: when, and whether it was contrary.
        self._recent: deque[tuple[int, bool]] = deque(maxlen=of)
        self._held_ms: int | None = None
        self._first_ms = 0
        self.is_on = False
        #: When what is now was seen first.
        self.changed_ms = 0

    def feed(self, value: bool, at_ms: int) -> bool:  # noqa: FBT001 - the value that is debounced
        """Take the value of one frame; returns whether the state changed. Times never go back."""
        is_contrary = value != self.is_on
        self._recent.append((at_ms, is_contrary))
        contrary = [at for at, one in self._recent if one]
        if len(contrary) < self._frames:
            self._held_ms = None
            return False
        if self._held_ms is None:
            self._held_ms, self._first_ms = at_ms, contrary[0]
        if not is_contrary or at_ms - self._held_ms < (self._off_ms if self.is_on else self._on_ms):
            return False
        self.is_on, self.changed_ms, self._held_ms = value, self._first_ms, None
        self._recent.clear()
        return True
