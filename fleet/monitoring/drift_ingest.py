"""Sketches become windows, each once: stored by key, the higher rev wins, what overlaps or has an unknown grid is put aside (DRIFT 2).

Called inside a transaction of ingest. What is refused becomes a dead letter and is acknowledged by its key all the same: the device would
send it for ever. What is put aside is stored, so it is acknowledged too.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from fleet.db import Connection
from fleet.monitoring import drift_store as store
from fleet.monitoring.drift_model import DAY
from fleet.monitoring.drift_profiles import grids_of
from fleet.monitoring.drift_store import Quarantined, SeriesKey, SeriesRow, WindowRow
from fleet.monitoring.store import DEAD_LETTER_BYTES, dead_letter_row, insert_dead_letters
from protocol.clock import to_unix_ms
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId, new_id
from protocol.sketches.codec import Head, check_time, open_head, parse_window_id, read_head
from protocol.sketches.grid import Grid
from protocol.topics import Topic, device_topic

#: A window of a grid that no release brought waits so long for that release.
UNKNOWN_GRID_FOR = timedelta(hours=72)
#: A window that overlaps another one is kept so long for a person to look at.
OVERLAP_FOR = timedelta(days=14)
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
    done = Stored()
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
        done.accepted.append(one)
        if grid is None:
            store.quarantine(tx, tenant, _aside(one, UNKNOWN_GRID, now, UNKNOWN_GRID_FOR))
        else:
            fitting[one.series].append(one)
    first = {key: min(one.head.w0 for one in members) for key, members in fitting.items()}
    for key, row in sorted(store.lock_series(tx, tenant, first, now=now).items()):
        _join(tx, row, fitting[key], now=now)
    return done


def _check(head: Head, grid: Grid | None, now: datetime) -> None:
    """Raises: InvalidError when the window lies in the future, before its grid, or does not fit the grid."""
    check_time(head, now_ms=to_unix_ms(now), made_at_ms=0 if grid is None else grid.made_at_ms)
    if grid is not None:
        open_head(head, grid)


def _join(tx: Connection, row: SeriesRow, sketches: Sequence[Sketch], *, now: datetime) -> None:
    """Put the windows into the series' map; whatever order they come in, the same map comes out."""
    start, end = min(one.head.w0 for one in sketches), max(one.window.end for one in sketches)
    held = {(one.w0, one.nsub): one for one in store.list_windows(tx, row.tenant, row.series_key, start=start, end=end)}
    changed: dict[tuple[int, int], WindowRow] = {}
    for one in sketches:
        window, place = one.window, (one.head.w0, one.head.nsub)
        known = held.get(place)
        if known is not None and (window.rev < known.rev or window == known):
            continue
        if known is not None and window.rev == known.rev:
            row = replace(row, conflicts=row.conflicts + 1)
            continue
        if known is None and overlaps(window, held.values()):
            is_new = store.quarantine(tx, row.tenant, _aside(one, OVERLAP, now, OVERLAP_FOR))
            row = replace(row, overlaps=row.overlaps + int(is_new))
            continue
        held[place] = changed[place] = window
    store.put_windows(tx, row.tenant, ((row.series_key, one) for one in changed.values()), now=now)
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
    store.save_series(tx, row, now=now)


def overlaps(window: WindowRow, others: Iterable[WindowRow]) -> bool:
    """Whether a window that is summed shares a sub-window with another one that is; evidence (one sub-window) is not summed."""
    return window.nsub > 1 and any(one.nsub > 1 and one.w0 < window.end and window.w0 < one.end for one in others)


def _aside(one: Sketch, reason: str, now: datetime, how_long: timedelta) -> Quarantined:
    return Quarantined(one.series, one.window, reason, now, now + how_long)


def release_quarantine(tx: Connection, tenant: TenantId, grid_id: str, *, now: datetime) -> int:
    """Store what waited longest for the grid, which is known now, `RELEASED` windows at most; returns how many that were.

    Those that do not fit it are gone, as dead letters; `drift_tick.keep_house` lets out the rest.
    """
    waiting = store.list_quarantined(tx, tenant, grid_id=grid_id, limit=RELEASED)
    sketches = []
    for one in waiting:
        store.release_quarantined(tx, tenant, one)
        sketches.append(_again(tenant, one))
    done = store_sketches(tx, tenant, sketches, now=now)
    bury(tx, tenant, done.rejected, now=now)
    return len(waiting)


def expire_quarantine(tx: Connection, *, now: datetime) -> int:
    """What waited too long becomes a dead letter; returns how many windows."""
    expired = store.take_expired(tx, now=now, limit=1000)
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
