"""What the looks of a reference say of stretches of windows: of ten minutes where those came as evidence, else of hours (ADR 0034). Pure.

A device judges every ten minutes and sends the sub-windows of the stretch that crossed; from their counts the server comes to the same
value. Of all other time it has hours: it judges them at their ends by the looks that judge means and are an hour long or longer (ADR 0051),
and by the scores that the device sent for the look at ten minutes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fleet.monitoring import detectors
from fleet.monitoring.detectors import DoubleArray, IntArray, Scored
from fleet.monitoring.drift_model import DAY, HOUR
from protocol.sketches.codec import SketchWindow
from protocol.sketches.counts import Counts
from protocol.sketches.grid import Grid
from protocol.sketches.looks import Look, is_alarm, statistic_of
from protocol.sketches.reference import DeviceReference
from protocol.sketches.stretches import is_testable
from protocol.sketches.summary import summarizer

#: A device's claim is verified at a rate larger by so much: the last digits of a score differ between machines.
LENIENT = 1.01
#: Share of a stretch that must be known, and sub-windows of an hour by it.
_KNOWN_SHARE, KNOWN = 0.8, 5
#: Where values end: a tail probability is 1e-12 at least.
_LEAST = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Consecutive rows of whole summaries."""

    #: The sub-window that the first begins with, and the sub-windows that each spans.
    start: int
    width: int
    #: float64[n, d]; NaN rows: not testable, or not here.
    summaries: DoubleArray

    @property
    def ends(self) -> IntArray:
        """The sub-window after the last of each row: int64[n]."""
        return self.start + self.width * np.arange(1, len(self.summaries) + 1, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What is said at the end of each row."""

    rows: Rows
    #: Least p / share over the looks: float64[n], NaN where nothing is known.
    values: DoubleArray

    @property
    def newest(self) -> float | None:
        """The latest value that is known."""
        known = self.values[~np.isnan(self.values)]
        return float(known[-1]) if known.size else None


@dataclass(frozen=True, slots=True)
class Found:
    """A stretch that crossed."""

    #: Its first sub-window, and the one after its last.
    begin: int
    end: int
    #: The look that says most about it, its length in sub-windows.
    look: Look
    statistic: float


def rows_of(counts: Mapping[int, Counts], grid: Grid, *, start: int, end: int) -> Rows:
    """Sub-windows [start, end) as rows, of those whose counts are here."""
    places = sorted(place for place in counts if start <= place < end)
    summaries = np.full((max(0, end - start), summarizer(grid).dimensions), np.nan)
    if places:
        summaries[np.array(places) - start] = detectors.summaries_of([counts[place] for place in places], grid)
    return Rows(start, 1, summaries)


def hours_of(windows: Sequence[SketchWindow], grid: Grid, *, start: int, end: int, is_scored: bool) -> Rows:
    """The hours that lie in sub-windows [start, end) as rows; one of which fewer than five sub-windows are known is not testable.

    A window over several hours stands for each of them. `is_scored`: known are those that the device scored, else those that have rows.
    """
    first, last = -(-start // HOUR), end // HOUR
    summaries = np.full((max(0, last - first), summarizer(grid).dimensions), np.nan)
    used = [one for one in windows if one.nsub > 1 and detectors.is_testable(one.counts)]
    found = detectors.summaries_of([one.counts for one in used], grid) if used else np.empty((0, summaries.shape[1]))
    for one, summary in zip(used, found, strict=True):
        known = np.isfinite(one.scores) if is_scored else np.array([one.mask >> index & 1 for index in range(one.nsub)], dtype=bool)
        hours, numbers = np.unique((one.w0 + np.flatnonzero(known)) // HOUR, return_counts=True)
        kept = hours[(numbers >= KNOWN) & (hours >= first) & (hours < last)]
        summaries[kept - first] = summary
    return Rows(first * HOUR, HOUR, summaries)


def judge(rows: Rows, reference: DeviceReference) -> Judged:
    """By the looks that are as long as a row or longer."""
    filled = reference.filled(rows.summaries)
    shares = [one.p_values(filled) / one.look.share for one in reference.looks_at(rows.width)] if len(filled) else []
    return Judged(rows, reference.valued(_least(shares, len(filled))))


def with_scores(judged: Judged, windows: Sequence[SketchWindow], reference: DeviceReference) -> Judged:
    """The same with what the look at ten minutes says of the sub-windows in each row, by the scores that the device sent with the hours."""
    rows, first = judged.rows, reference.looks[0].look
    if reference.per_day != DAY or not len(judged.values):
        return judged
    shorter = np.full(len(judged.values), np.inf)
    for one in windows:
        if one.nsub > 1 and one.reference_id == reference.reference_id:
            places = (np.arange(one.w0, one.w0 + one.nsub) - rows.start) // rows.width
            inside = (places >= 0) & (places < len(shorter)) & ~np.isnan(one.scores)
            np.minimum.at(shorter, places[inside], reference.p_values(one.scores[inside]) / first.share)
    said = reference.valued(np.where(np.isinf(shorter), np.nan, shorter))
    return Judged(rows, _least([judged.values, said], len(shorter)))


def first_found(judged: Judged, reference: DeviceReference, rate: float, *, start: int) -> Found | None:
    """The first row that ends after sub-window `start` and is an alarm at so many false ones a year, with the stretch that made it one."""
    for place in _alarming(judged, reference, rate, start=start):
        return _found(judged, reference, place)
    return None


def last_found(judged: Judged, reference: DeviceReference, rate: float, *, start: int) -> Found | None:
    """The last such row."""
    places = _alarming(judged, reference, rate, start=start)
    return _found(judged, reference, places[-1]) if places else None


def value_at(judged: Judged, w0: int) -> float:
    """What is said at the end of the row that sub-window `w0` lies in; NaN: nothing."""
    place = (w0 - judged.rows.start) // judged.rows.width
    return float(judged.values[place]) if 0 <= place < len(judged.values) else float("nan")


def is_complete(rows: Rows, w0: int, length: int) -> bool:
    """Whether sub-window `w0` is here, and enough of the so many that end with it for a look to say something."""
    place = w0 - rows.start
    if not 0 <= place < len(rows.summaries):
        return False
    known = is_testable(rows.summaries[max(0, place - length + 1) : place + 1])
    return bool(known[-1]) and int(known.sum()) >= math.ceil(_KNOWN_SHARE * length)


def onset_of(scored: Scored, found: Found) -> int:
    """The sub-window in which a change began: the stretch's first, unless single scores are surprising from a later one on only."""
    inside = (scored.w0s >= found.begin) & (scored.w0s < found.end) & (scored.p < detectors.ONSET_P)
    return int(scored.w0s[inside][0]) if inside.any() else found.begin


def low_since(judged: Judged, limit: float, *, start: int, known: int | None) -> int | None:
    """Since when, as the end of a row, every statistic has been below `limit`; None: the newest is not.

    Rows that end after sub-window `start` count. `known`: since when it was so at the look before; it holds while no later row contradicts.
    """
    ends, values = judged.rows.ends, judged.values
    counted = (ends > start) & ~np.isnan(values)
    high = counted & (1 / np.where(counted, values, np.inf) >= limit)
    last = int(ends[high][-1]) if high.any() else -1
    if known is not None and known > last:
        return known
    after = counted & (ends > last)
    return int(ends[after][0]) if after.any() else None


def statistic(value: float) -> float:
    """How much a value says, as it is shown and compared; never infinite."""
    return statistic_of(max(value, _LEAST))


def look_words(look: Look) -> str:
    """Which look it was, for people: "in the mean of three hours"; its length in sub-windows."""
    length = {1: "ten minutes", HOUR: "an hour", 2 * HOUR: "two hours", 3 * HOUR: "three hours", 6 * HOUR: "six hours", DAY: "a day"}.get(
        look.subwindows, f"{10 * look.subwindows} minutes"
    )
    return f"in the answers of {length}" if look.is_classes else f"in {'the mean of ' if look.subwindows > 1 else ''}{length}"


def _least(values: Sequence[DoubleArray], count: int) -> DoubleArray:
    """The least of each place, NaN where none is known."""
    if not values:
        return np.full(count, np.nan)
    stacked = np.stack(values)
    nothing = np.isnan(stacked).all(axis=0)
    return np.where(nothing, np.nan, np.where(np.isnan(stacked), np.inf, stacked).min(axis=0))


def _alarming(judged: Judged, reference: DeviceReference, rate: float, *, start: int) -> list[int]:
    ends = judged.rows.ends
    return [
        place
        for place, value in enumerate(judged.values.tolist())
        if ends[place] > start and not np.isnan(value) and is_alarm(value, rate, per_year=reference.per_year)
    ]


def _found(judged: Judged, reference: DeviceReference, place: int) -> Found:
    rows, value = judged.rows, float(judged.values[place])
    looks = reference.looks_at(rows.width)
    filled = reference.filled(rows.summaries[: place + 1])
    said = [float(one.p_values(filled[-one.look.subwindows :])[-1]) / one.look.share for one in looks]
    known = [one if not np.isnan(one) else np.inf for one in reference.valued(np.array(said))]
    best = int(np.argmin(known)) if known else 0
    is_shorter = rows.width > 1 and (not known or value < known[best] * (1 - 1e-6))  # said by the scores of the sub-windows inside
    look = reference.looks[0].look if is_shorter else looks[best].look
    length = rows.width if is_shorter else look.subwindows * rows.width
    end = int(rows.ends[place])
    whole = replace(look, subwindows=1 if is_shorter else length)
    return Found(max(rows.start, end - length), end, whole, statistic(value))
