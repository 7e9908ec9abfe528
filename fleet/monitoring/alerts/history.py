"""Telemetry added up as it arrives: the fleet by five minutes, devices by the hour. A cursor on receipt counts each message once.

Messages that come late are added to the time that they tell of.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from fleet.db import Database
from fleet.monitoring.alerts import store
from fleet.monitoring.alerts.model import Counted, DevicePoint, Figures
from fleet.monitoring.model import TelemetryRow
from protocol.ids import TenantId

SLOT, HOUR = timedelta(minutes=5), timedelta(hours=1)
#: A message stored so recently may have neighbours that are still being committed with an earlier stamp.
SETTLED_AFTER = timedelta(seconds=20)
#: Messages that are added in one transaction, and portions in one look: ingest never waits long.
PORTION, PORTIONS = 2000, 50
#: How long the fleet and what fired are remembered, and hours of devices: 10,000 devices with one pipeline make 480,000 rows a day.
KEPT_DAYS, DEVICE_DAYS = 400, 35
#: A figure of one message counts at most so much: no device makes the sums of a fleet overflow.
MOST = 1e9
#: A message tells of a time that is at most so far ahead of its receipt; clocks of devices differ.
AHEAD = timedelta(hours=1)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def slot_of(moment: datetime, size: timedelta) -> datetime:
    """Start of the slot of this size that holds the moment, UTC."""
    return _EPOCH + ((moment - _EPOCH) // size) * size


def figures_of(stream: str, body: Mapping[str, Any]) -> Figures:
    """One telemetry message as figures, none of them beyond `MOST`. Pure."""
    if stream == "perf":
        timed = body.get("lat_ms_p99") is not None
        return Figures(
            messages=1,
            seconds=_bounded(body.get("window_s")),
            frames=int(_bounded(body.get("frames"))),
            errors=int(_bounded(body.get("errors"))),
            dropped=int(_bounded(sum((body.get("dropped") or {}).values()))),
            timed=int(timed),
            p50_sum=_bounded(body.get("lat_ms_p50")) if timed else 0.0,
            p95_sum=_bounded(body.get("lat_ms_p95")) if timed else 0.0,
            p99_sum=_bounded(body["lat_ms_p99"]) if timed else 0.0,
            p99_max=_bounded(body["lat_ms_p99"]) if timed else None,
        )
    return Figures(
        messages=1,
        seconds=_bounded(body.get("window_s")),
        cpu_sum=_bounded(body.get("cpu_percent")),
        rss_sum=_bounded(body.get("rss_mb")),
        temperature_max=None if body.get("temperature_c") is None else _bounded(body["temperature_c"]),
        disk_free_min=None if body.get("disk_free_mb") is None else _bounded(body["disk_free_mb"]),
    )


def _bounded(value: float | None) -> float:
    return max(-MOST, min(MOST, float(value or 0.0)))


def folded(rows: Iterable[TelemetryRow]) -> tuple[list[DevicePoint], dict[datetime, Figures]]:
    """Messages as device hours and, for `perf`, as slots of the fleet; what tells of a time that cannot be is left out. Pure."""
    hours: dict[tuple[str, str, str, datetime], Figures] = {}
    slots: dict[datetime, Figures] = {}
    for row in rows:
        if row.name not in {"perf", "sys"} or not row.received_at - timedelta(days=KEPT_DAYS) <= row.ts <= row.received_at + AHEAD:
            continue
        figures = figures_of(row.name, row.body)
        key = (row.device, row.name, row.pipeline or "", slot_of(row.ts, HOUR))
        hours[key] = hours.get(key, Figures()).plus(figures)
        if row.name == "perf":
            slot = slot_of(row.ts, SLOT)
            slots[slot] = slots.get(slot, Figures()).plus(figures)
    return [DevicePoint(row[0], row[1], row[2], row[3], figures) for row, figures in hours.items()], slots  # type: ignore[arg-type]


def add_received(database: Database, tenant: TenantId, *, now: datetime) -> int:
    """Add what was stored since the last look; returns how many messages. Safe to repeat: messages and cursor commit together.

    Raises: UnavailableError.
    """
    count = 0
    for _ in range(PORTIONS):
        with database.transaction() as tx:
            cursor = store.find_cursor(tx, tenant) or now - timedelta(days=KEPT_DAYS)
            rows = store.list_received(tx, tenant, after=cursor, until=now - SETTLED_AFTER, limit=PORTION)
            if not rows:
                return count
            points, slots = folded(rows)
            store.add_device_points(tx, tenant, points)
            for at, figures in sorted(slots.items()):
                store.add_fleet_figures(tx, tenant, at, figures)
            store.save_cursor(tx, tenant, rows[-1].received_at)
        count += len(rows)
    return count


def save_counted(database: Database, tenant: TenantId, counted: Counted, *, now: datetime) -> None:
    """What was counted now, for the chart of the fleet. Raises: UnavailableError."""
    with database.transaction() as tx:
        store.save_counted(tx, tenant, slot_of(now, SLOT), counted)


def prune(database: Database, tenant: TenantId, *, now: datetime) -> int:
    """Delete what is past its time; returns how many rows. Raises: UnavailableError."""
    before, hours_before = now - timedelta(days=KEPT_DAYS), now - timedelta(days=DEVICE_DAYS)
    with database.transaction() as tx:
        return store.delete_old(tx, tenant, before=before, hours_before=hours_before)
