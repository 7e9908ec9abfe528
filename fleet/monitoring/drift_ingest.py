"""Sketches become windows, each once: stored by key, the higher rev wins, what overlaps or has an unknown grid is put aside (DRIFT 2).

Called inside a transaction of ingest. What is refused becomes a dead letter and is acknowledged by its key all the same: the device would
send it for ever. What is put aside is stored, so it is acknowledged too.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from fleet.db import Connection
from fleet.monitoring import drift_store, quarantine_store
from fleet.monitoring.drift_model import DAY
from fleet.monitoring.drift_profiles import grids_of
from fleet.monitoring.drift_tables import Quarantined, SeriesKey, SeriesRow, WindowRow
from fleet.monitoring.store import DEAD_LETTER_BYTES, dead_letter_row, insert_dead_letters
from protocol.clock import to_unix_ms
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId, new_id
from protocol.sketches.codec import SUBWINDOW_MS, Head, check_time, open_head, parse_window_id, read_head
from protocol.sketches.grid import Grid
from protocol.topics import Topic, device_topic

#: A window of a grid that no release brought waits so long for that release.
UNKNOWN_GRID_FOR = timedelta(hours=72)
#: A window that overlaps another one is kept so long for a person to look at.
OVERLAP_FOR = timedelta(days=14)
#: A device keeps windows for 42 days; what is older than this is refused.
OLDEST = timedelta(days=60)
#: Series of a device of which something came within `OLDEST` (pipelines, times model versions, times two for shadows), and windows of a
#: device that are put aside.
MOST_SERIES, MOST_ASIDE = 512, 2000
#: Windows let out of quarantine in one transaction, 16 KiB each.
RELEASED = 1000
#: Judging failed; the next window tries again, from where it failed.
DETECTOR_FAILED = "detector_failed"
#: Sub-windows that it goes back for that at most: a week.
RETRIED_FOR = 7 * DAY
UNKNOWN_GRID, OVERLAP = "unknown-grid", "overlap"
#: Pipeline, window, source, revision: what a device knows a window by.
AckKey = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class Sketch:
    """One window as it came, its head checked."""

    tenant: TenantId
    topic: str
    device: DeviceId
    head: Head
    payload: bytes

    @property
    def series(self) -> SeriesKey:
        """Whose window it is."""
        head = self.head
        return SeriesKey(self.device, head.pipeline, head.model.hex(), int(head.src), head.grid_id.hex())

    @property
    def window(self) -> WindowRow:
        """What is stored of it."""
        return WindowRow(self.head.w0, self.head.nsub, self.head.rev, self.payload)

    @property
    def ack(self) -> AckKey:
        """What the device is told once it is stored."""
        return (self.head.pipeline, self.head.window_id, int(self.head.src), self.head.rev)


@dataclass
class Stored:
    """What became of a batch."""

    acks: dict[DeviceId, list[AckKey]] = field(default_factory=lambda: defaultdict(list))
    accepted: list[Sketch] = field(default_factory=list)
    #: With the reason, "code: text".
    rejected: list[tuple[Sketch, str]] = field(default_factory=list)


def read_sketch(topic: Topic, device: DeviceId, payload: bytes) -> Sketch:
    """The window that came on `sketch/{pipeline}/{window}`. Raises: InvalidError with a code of `protocol.sketches.codec.REFUSALS`."""
    _, pipeline, window = topic.levels
    place = parse_window_id(window)
    head = read_head(payload)
    if (head.pipeline, head.w0, head.nsub) != (pipeline, *place):
        raise InvalidError(f"Window {head.window_id} of pipeline {head.pipeline} came on {topic}; wanted its own topic.", code="bad-window")
    return Sketch(topic.tenant, str(topic), device, head, payload)


def store_sketches(tx: Connection, tenant: TenantId, sketches: Sequence[Sketch], *, now: datetime) -> Stored:
    """Store the windows of enrolled devices; returns what to acknowledge after the commit, and what was refused why."""
    done, aside = Stored(), _Aside(tx, tenant, now)
    grids = grids_of(tx, tenant, {one.head.grid_id.hex() for one in sketches})
    fitting: dict[SeriesKey, list[Sketch]] = defaultdict(list)
    for one in sketches:
        done.acks[one.device].append(one.ack)
        grid = grids.get(one.head.grid_id.hex())
        try:
            _check(one.head, grid, now)
        except InvalidError as error:
            done.rejected.append((one, f"{error.code}: {error}"))
            continue
        if grid is not None:
            fitting[one.series].append(one)
        elif aside.put(one, UNKNOWN_GRID, UNKNOWN_GRID_FOR) is None:
            done.rejected.append((one, _FULL))
        else:
            done.accepted.append(one)
    for key in too_many_series(tx, tenant, fitting.keys(), now=now):
        reason = f"too-many: {key.device} has {MOST_SERIES} pipelines and model versions already; wanted fewer."
        done.rejected += [(one, reason) for one in fitting.pop(key)]
    first = {key: min(one.head.w0 for one in members) for key, members in fitting.items()}
    for key, row in sorted(drift_store.lock_series(tx, tenant, first, now=now).items()):
        refused = _join(tx, row, fitting[key], aside, now=now)
        done.rejected += [(one, _FULL) for one in refused]
        done.accepted += [one for one in fitting[key] if not any(one is other for other in refused)]
    return done


_FULL = f"too-many: {MOST_ASIDE} windows of the device are put aside already."


class _Aside:
    """Puts windows aside, so many of a device at most."""

    def __init__(self, tx: Connection, tenant: TenantId, now: datetime) -> None:
        self._tx, self._tenant, self._now = tx, tenant, now
        self._counts: dict[DeviceId, int] = {}

    def put(self, one: Sketch, reason: str, how_long: timedelta) -> bool | None:
        """Whether it is new there; None when the device has too many there."""
        if one.device not in self._counts:
            self._counts[one.device] = quarantine_store.count_quarantined(self._tx, self._tenant, one.device)
        if self._counts[one.device] >= MOST_ASIDE:
            return None
        aside = Quarantined(one.series, one.window, reason, self._now, self._now + how_long)
        is_new = quarantine_store.quarantine(self._tx, self._tenant, aside)
        self._counts[one.device] += int(is_new)
        return is_new


def too_many_series(tx: Connection, tenant: TenantId, keys: Collection[SeriesKey], *, now: datetime) -> list[SeriesKey]:
    """Those of the keys that would be new series of devices that have too many already."""
    wanted: dict[DeviceId, list[SeriesKey]] = defaultdict(list)
    for key in sorted(keys):
        wanted[key.device].append(key)
    counts = drift_store.count_series(tx, tenant, wanted.keys(), since=now - OLDEST)
    full = {device: its for device, its in wanted.items() if counts.get(device, 0) + len(its) > MOST_SERIES}
    refused: list[SeriesKey] = []
    for device, its in full.items():
        known = {row.key for row in drift_store.list_series(tx, tenant, devices=[device], src=None)}
        new = [key for key in its if key not in known]
        refused += new[max(0, MOST_SERIES - counts.get(device, 0)) :]
    return refused


def _check(head: Head, grid: Grid | None, now: datetime) -> None:
    """Raises: InvalidError when the window is too old, lies in the future or before its grid, or does not fit the grid."""
    check_time(head, now_ms=to_unix_ms(now), made_at_ms=0 if grid is None else grid.made_at_ms)
    if (head.w0 + head.nsub) * SUBWINDOW_MS < to_unix_ms(now - OLDEST):
        raise InvalidError(f"Window {head.window_id} ended more than {OLDEST.days} days ago; check the clock.", code="too-old")
    if grid is not None:
        open_head(head, grid)


def _join(tx: Connection, row: SeriesRow, sketches: Sequence[Sketch], aside: _Aside, *, now: datetime) -> list[Sketch]:
    """Put the windows into the series' map; whatever order they come in, the same map comes out. Returns those there is no room for."""
    start, end = min(one.head.w0 for one in sketches), max(one.window.end for one in sketches)
    held = {(one.w0, one.nsub): one for one in drift_store.list_windows(tx, row.tenant, row.series_key, start=start, end=end)}
    changed: dict[tuple[int, int], WindowRow] = {}
    refused: list[Sketch] = []
    for one in sketches:
        window, place = one.window, (one.head.w0, one.head.nsub)
        known = held.get(place)
        if known is not None and (window.rev < known.rev or window == known):
            continue
        if known is not None and window.rev == known.rev:
            row = replace(row, conflicts=row.conflicts + 1)
            continue
        if known is None and overlaps(window, held.values()):
            is_new = aside.put(one, OVERLAP, OVERLAP_FOR)
            refused += [one] if is_new is None else []
            row = replace(row, overlaps=row.overlaps + int(bool(is_new)))
            continue
        held[place] = changed[place] = window
    drift_store.put_windows(tx, row.tenant, ((row.series_key, one) for one in changed.values()), now=now)
    if changed:
        dirty = min(one.w0 for one in changed.values())
        first, next_w0 = min(row.first_w0, dirty), max(row.next_w0, *(one.end for one in changed.values()))
        if DETECTOR_FAILED in row.conditions:
            dirty = min(dirty, max(first if row.judged_until is None else row.judged_until, next_w0 - RETRIED_FOR))
        row = replace(
            row,
            first_w0=first,
            next_w0=next_w0,
            dirty_from=dirty if row.dirty_from is None else min(dirty, row.dirty_from),
        )
    drift_store.save_series(tx, row, now=now)
    return refused


def overlaps(window: WindowRow, others: Iterable[WindowRow]) -> bool:
    """Whether a window that is summed shares a sub-window with another one that is; evidence (one sub-window) is not summed."""
    return window.nsub > 1 and any(one.nsub > 1 and one.w0 < window.end and window.w0 < one.end for one in others)


def release_quarantine(tx: Connection, tenant: TenantId, grid_id: str, *, now: datetime) -> int:
    """Store what waited longest for the grid, which is known now, `RELEASED` windows at most; returns how many that were.

    Those that do not fit it are gone, as dead letters; `drift_tick.keep_house` lets out the rest.
    """
    waiting = quarantine_store.list_quarantined(tx, tenant, grid_id=grid_id, limit=RELEASED)
    sketches = []
    for one in waiting:
        quarantine_store.release_quarantined(tx, tenant, one)
        sketches.append(_again(tenant, one))
    done = store_sketches(tx, tenant, sketches, now=now)
    bury(tx, tenant, done.rejected, now=now)
    return len(waiting)


def expire_quarantine(tx: Connection, *, now: datetime) -> int:
    """What waited too long becomes a dead letter; returns how many windows."""
    expired = quarantine_store.take_expired(tx, now=now, limit=1000)
    for tenant, one in expired:
        reason = f"{one.reason}: grid {one.key.grid_id} stayed unknown" if one.reason == UNKNOWN_GRID else f"{one.reason}: another window"
        bury(tx, tenant, [(_again(tenant, one), f"{reason} until {one.until:%Y-%m-%d %H:%M} UTC.")], now=now)
    return len(expired)


def bury(tx: Connection, tenant: TenantId, rejected: Iterable[tuple[Sketch, str]], *, now: datetime) -> None:
    """Keep what was refused, and why."""
    rows = [
        dead_letter_row(tenant, row_id=new_id("dl"), topic=one.topic, reason=reason, body=one.payload[:DEAD_LETTER_BYTES], now=now)
        for one, reason in rejected
    ]
    insert_dead_letters(tx, rows)


def _again(tenant: TenantId, one: Quarantined) -> Sketch:
    head = read_head(one.window.body)
    topic = device_topic(tenant, one.key.device, "sketch", head.pipeline, head.window_id)
    return Sketch(tenant, topic, one.key.device, head, one.window.body)
