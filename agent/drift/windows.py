"""Sub-windows of ten minutes: rows on their way into counts. What was counted of one goes on after a restart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.drift.store import Flag, Subject, SubWindowRow
from protocol.sketches.codec import CONDITION_CODES, CONDITION_NAMES, SUBWINDOW_S, SketchWindow, Source, decode, encode
from protocol.sketches.counts import Counts, Sketcher, added
from protocol.sketches.grid import FloatArray, Grid


def subwindow_of(at_s: float) -> int:
    """The sub-window of a moment, Unix seconds."""
    return int(at_s // SUBWINDOW_S)


@dataclass(slots=True)
class OpenWindow:
    """A sub-window that is being counted; used by one thread."""

    subject: Subject
    grid: Grid
    w0: int
    sketcher: Sketcher
    #: What was counted of it before the agent started.
    base: Counts | None = None
    flags: Flag = Flag.OPEN
    #: Condition code -> seconds.
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Counted so far."""
        return self.sketcher.rows + (self.base.rows if self.base else 0)

    def add(self, values: FloatArray, labels: Sequence[str]) -> None:
        """Count a row, float32[features], and the classes in it."""
        self.sketcher.add(values)
        for label in labels:
            place = self.grid.slot(label)
            if place is not None:
                self.sketcher.count_class(place)

    def note(self, codes: Sequence[str], seconds: float) -> None:
        """So many seconds more of these conditions; never more than the sub-window has."""
        for code in codes:
            number = CONDITION_CODES[code]
            self.seconds[number] = min(float(SUBWINDOW_S), self.seconds.get(number, 0.0) + seconds)

    def counts(self) -> Counts:
        """All of it so far."""
        fresh = self.sketcher.peek()
        before = self.base
        rounded = {code: min(SUBWINDOW_S, max(1, round(seconds))) for code, seconds in self.seconds.items() if seconds > 0}
        counted = fresh if before is None else added(replace(before, conditions={}), fresh)
        return replace(counted, conditions=rounded)


def begin(subject: Subject, grid: Grid, w0: int, *, before: SubWindowRow | None = None) -> OpenWindow:
    """The sub-window, going on with what is remembered of it. Raises: InvalidError when that cannot be read."""
    window = OpenWindow(subject, grid, w0, Sketcher(grid))
    if before is not None:
        window.base = decode(before.body, grid).counts
        window.seconds = {code: float(seconds) for code, seconds in window.base.conditions.items()}
        window.flags = before.flags | Flag.OPEN
    return window


def row_of(window: OpenWindow, *, flags: Flag, score: float | None = None, reference_id: bytes | None = None) -> SubWindowRow:
    """The sub-window as it is remembered and sent."""
    counts, subject = window.counts(), window.subject
    packed = SketchWindow(
        pipeline=subject.pipeline,
        grid_id=bytes.fromhex(subject.grid),
        model=bytes.fromhex(subject.model),
        src=Source(subject.src),
        w0=window.w0,
        nsub=1,
        mask=1 if counts.rows else 0,
        counts=counts,
        scores=np.array([np.nan if score is None else score], np.float32),
        reference_id=None if score is None else reference_id,
    )
    return SubWindowRow(subject, window.w0, counts.rows, counts.excluded, flags, score, encode(packed))


def names_of(seconds: Mapping[int, float]) -> frozenset[str]:
    """The conditions that lasted for any time."""
    return frozenset(CONDITION_NAMES[code] for code, lasted in seconds.items() if lasted > 0 and code in CONDITION_NAMES)
