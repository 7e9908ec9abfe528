"""Sums of windows: hour to day to month, per device and per group; whole numbers, so any order gives the same (DRIFT 2 and 3). Pure.

A window belongs where it begins: one that a device merged over several hours is in the sum of the day of its first sub-window.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from fleet.monitoring.drift_model import DAY, HOUR
from fleet.monitoring.drift_tables import SumRow, WindowRow
from protocol.errors import InvalidError
from protocol.sketches.codec import SUBWINDOW_S, decode
from protocol.sketches.counts import Counts, added, empty, summed
from protocol.sketches.grid import Grid

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Bytes of numbers before compression: 32 features of 99 cells, conditions and classes.
_MAX_BYTES = 1 << 20


def moment_of(sub_window: int) -> datetime:
    """When a sub-window begins."""
    return _EPOCH + timedelta(seconds=SUBWINDOW_S * sub_window)


def sub_window_of(moment: datetime) -> int:
    """The sub-window that a moment lies in."""
    return int((moment - _EPOCH).total_seconds() // SUBWINDOW_S)


def hour_start(sub_window: int) -> int:
    """First sub-window of its hour."""
    return sub_window - sub_window % HOUR


def day_start(sub_window: int) -> int:
    """First sub-window of its day, UTC."""
    return sub_window - sub_window % DAY


def month_start(sub_window: int) -> int:
    """First sub-window of its calendar month, UTC."""
    return sub_window_of(moment_of(sub_window).replace(day=1, hour=0, minute=0, second=0, microsecond=0))


def next_month(sub_window: int) -> int:
    """First sub-window of the month after its own."""
    first = moment_of(month_start(sub_window))
    return sub_window_of(first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1))


def sum_windows(windows: Iterable[WindowRow], grid: Grid) -> Counts:
    """The counts of all windows but evidence."""
    return summed((decode(one.body, grid).counts for one in windows if one.nsub > 1), grid)


def day_sums(windows: Sequence[WindowRow], grid: Grid, *, start: int, end: int) -> list[SumRow]:
    """A sum for each day of [start, end) in which a window begins; `start` and `end` are beginnings of days."""
    days: dict[int, list[WindowRow]] = {}
    for one in windows:
        if one.nsub > 1 and start <= one.w0 < end:
            days.setdefault(day_start(one.w0), []).append(one)
    return [_day_sum(day, members, grid) for day, members in sorted(days.items())]


def _day_sum(day: int, members: Sequence[WindowRow], grid: Grid) -> SumRow:
    windows = [decode(one.body, grid) for one in members]
    return SumRow("day", day, sum(one.mask.bit_count() for one in windows), encode_counts(summed((one.counts for one in windows), grid)))


def month_sum(days: Iterable[SumRow], grid: Grid, *, start: int) -> SumRow:
    """The sum of a month from those of its days."""
    total, sub_windows = empty(grid), 0
    for day in days:
        total, sub_windows = added(total, decode_counts(day.body, grid)), sub_windows + day.sub_windows
    return SumRow("month", start, sub_windows, encode_counts(total))


def months_between(start: int, end: int) -> list[int]:
    """Beginnings of the months that [start, end) touches."""
    found, at = [], month_start(start)
    while at < end:
        found.append(at)
        at = next_month(at)
    return found


def sum_of_sums(rows: Iterable[SumRow], grid: Grid) -> Counts:
    """Sums as one: a merge by any filter is this."""
    return summed((decode_counts(row.body, grid) for row in rows), grid)


def encode_counts(counts: Counts) -> bytes:
    """Counts as a sum is stored: the numbers as they are, compressed. Sums outgrow what a window may say."""
    conditions = sorted(counts.conditions.items())
    head = [counts.rows, counts.effective, counts.excluded, len(conditions), *(number for pair in conditions for number in pair)]
    parts = [np.array(head, dtype="<i8"), counts.cells.astype("<i8"), counts.moments.astype("<i8").ravel(), counts.classes.astype("<i8")]
    return zlib.compress(np.concatenate(parts).tobytes(), 1)


def decode_counts(data: bytes, grid: Grid) -> Counts:
    """`decode_counts(encode_counts(x), grid) == x`. Raises: InvalidError when they are not of this grid."""
    unpacker = zlib.decompressobj()
    numbers = np.frombuffer(unpacker.decompress(data, _MAX_BYTES), dtype="<i8").astype(np.int64)
    rows, effective, excluded, pairs = (int(value) for value in numbers[:4])
    features, at = len(grid.features), 4 + 2 * pairs
    if len(numbers) != at + grid.cells + 4 * features + len(grid.classes):
        raise InvalidError(f"A sum of {len(numbers)} numbers is not of grid {grid.grid_id.hex()}.", code="unknown-grid")
    conditions: Mapping[int, int] = {int(code): int(seconds) for code, seconds in numbers[4:at].reshape(-1, 2)}
    cells, moments, classes = np.split(numbers[at:], [grid.cells, grid.cells + 4 * features])
    return Counts(rows, effective, excluded, cells, moments.reshape(features, 4), classes, conditions)
