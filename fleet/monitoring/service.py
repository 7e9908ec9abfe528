"""What people ask about devices, and what the server does by itself: forget old rows, notice silence."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from fleet.db import Database
from fleet.monitoring import store
from fleet.monitoring.health import SILENT_AFTER
from fleet.monitoring.model import DeadLetter, DeviceState, DeviceView, EventRow, Health, Point, StreamCounts, TelemetryRow
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId
from protocol.messages import Presence

#: Fields of telemetry messages that can be drawn, per telemetry stream.
DRAWABLE = {
    "perf": ("fps", "frames", "lat_ms_p50", "lat_ms_p95", "lat_ms_p99", "errors"),
    "sys": ("cpu_percent", "rss_mb", "temperature_c", "disk_free_mb", "outbox_rows", "outbox_mb"),
}
#: Points of one chart at most.
MAX_POINTS = 2000
#: Events are what an incident is explained by: kept longer than telemetry, in days.
EVENT_DAYS = 365
DEAD_LETTER_DAYS = 14
#: Rows deleted in one transaction, so that ingest never waits long.
PRUNE_ROWS = 5000


def get_view(database: Database, tenant: TenantId, device: DeviceId) -> DeviceView:
    """The latest of one device; of one that never spoke an empty view. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.find_device(tx, tenant, device) or DeviceView(tenant, device)


def list_views(database: Database, tenant: TenantId, devices: Collection[DeviceId]) -> dict[DeviceId, DeviceView]:
    """The latest of each of the devices. Raises: UnavailableError."""
    with database.reading() as tx:
        found = store.list_devices(tx, tenant, devices)
    return {device: found.get(device) or DeviceView(tenant, device) for device in devices}


def count_views(database: Database, tenant: TenantId) -> dict[tuple[Presence, Health], int]:
    """How many devices that ever spoke are how. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.count_by_presence(tx, tenant)


def list_states(database: Database, tenant: TenantId, device: DeviceId) -> dict[str, DeviceState]:
    """The newest message of each state topic: status, info, reported, model, drift. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_states(tx, tenant, device)


def list_telemetry(
    database: Database, tenant: TenantId, device: DeviceId, *, name: str, since: datetime, pipeline: str | None = None
) -> list[TelemetryRow]:
    """The newest rows of one telemetry stream, oldest first. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_telemetry(tx, tenant, device, name=name, since=since, pipeline=pipeline, limit=MAX_POINTS)


def list_points(
    database: Database,
    tenant: TenantId,
    device: DeviceId,
    *,
    name: str,
    field: str,
    since: datetime,
    pipeline: str | None = None,
) -> list[Point]:
    """One line of a chart, oldest first. Raises: InvalidError naming the fields there are; UnavailableError."""
    if field not in DRAWABLE.get(name, ()):
        known = ", ".join(f"{stream}/{one}" for stream, fields in DRAWABLE.items() for one in fields)
        raise InvalidError(f"There is no chart of {name}/{field}.", hint=f"Wanted one of {known}.")
    rows = list_telemetry(database, tenant, device, name=name, since=since, pipeline=pipeline)
    return [Point(row.ts, float(row.body[field])) for row in rows if row.body.get(field) is not None]


def list_events(
    database: Database,
    tenant: TenantId,
    *,
    device: DeviceId | None = None,
    before: datetime | None = None,
    subject: str | None = None,
    limit: int = 50,
) -> list[EventRow]:
    """The newest events first, of one device or of all, about one subject (a pipeline) or about any. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_events(tx, tenant, device=device, before=before, subject=subject, limit=limit)


def list_predictions(database: Database, tenant: TenantId, device: DeviceId) -> dict[str, list[dict[str, Any]]]:
    """Per pipeline the last predictions, newest first. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_predictions(tx, tenant, device)


def list_stream_counts(database: Database, tenant: TenantId, device: DeviceId) -> list[StreamCounts]:
    """How the device's streams arrived, and how many numbers it gave up. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_stream_counts(tx, tenant, device)


def list_dead_letters(database: Database, tenant: TenantId, *, limit: int = 50) -> list[DeadLetter]:
    """The newest messages that were not understood or not allowed. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_dead_letters(tx, tenant, limit=limit)


def mark_silent(database: Database, tenant: TenantId, *, now: datetime) -> int:
    """Devices said to be online and not heard for long are offline; returns how many. Raises: UnavailableError."""
    with database.transaction() as tx:
        return store.mark_silent_offline(tx, tenant, before=now - SILENT_AFTER, now=now)


def prune(database: Database, tenant: TenantId, *, now: datetime, telemetry_days: float) -> int:
    """Delete rows past their time, in small transactions; returns how many. Safe to repeat. Raises: UnavailableError."""
    deleted = 0
    for table, days in ((store.telemetry, telemetry_days), (store.events, EVENT_DAYS), (store.dead_letters, DEAD_LETTER_DAYS)):
        before = now - timedelta(days=days)
        while True:
            with database.transaction() as tx:
                count = store.delete_older(tx, tenant, table, before=before, limit=PRUNE_ROWS)
            deleted += count
            if count < PRUNE_ROWS:
                break
    return deleted
