"""The only SQL about windows that were put aside: their grid is not known yet, or they overlap another one."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.monitoring import drift_tables
from fleet.monitoring.drift_tables import Quarantined, SeriesKey, Waiting, WindowRow
from protocol.ids import DeviceId, TenantId


def quarantine(tx: db.Connection, tenant: TenantId, one: Quarantined) -> bool:
    """Put a window aside; returns False when it is there already."""
    window = {"w0": one.window.w0, "nsub": one.window.nsub, "rev": one.window.rev, "body": one.window.body}
    about = {"reason": one.reason, "received_at": one.received_at, "until": one.until}
    return db.insert_ignore(tx, drift_tables.quarantined_windows, {"tenant": tenant, **one.key._asdict(), **window, **about}) > 0


def list_quarantined(tx: db.Connection, tenant: TenantId, *, grid_id: str | None = None, limit: int = 500) -> list[Quarantined]:
    """Windows put aside, the oldest first; `grid_id`: those that wait for this grid."""
    table = drift_tables.quarantined_windows
    statement = sa.select(table).where(table.c.tenant == tenant).order_by(table.c.received_at, table.c.w0).limit(limit)
    if grid_id is not None:
        statement = statement.where(table.c.grid_id == grid_id, table.c.reason == "unknown-grid")
    return [_quarantined(row) for row in tx.execute(statement)]


def list_waiting(tx: db.Connection, tenant: TenantId, *, device: DeviceId | None = None, limit: int = 500) -> list[Waiting]:
    """What was put aside, by series and reason, that which waits longest first; `device`: of this one alone."""
    table = drift_tables.quarantined_windows
    by = (table.c.device, table.c.pipeline, table.c.model, table.c.src, table.c.grid_id, table.c.reason)
    since, until = sa.func.min(table.c.received_at).label("since"), sa.func.max(table.c.until).label("until")
    ends = sa.func.max(table.c.w0 + table.c.nsub).label("next_w0")
    statement = sa.select(*by, sa.func.count().label("windows"), sa.func.min(table.c.w0).label("first_w0"), ends, since, until)
    statement = statement.where(table.c.tenant == tenant, *([] if device is None else [table.c.device == device]))
    rows = tx.execute(statement.group_by(*by).order_by(since, *by).limit(limit))
    return [
        Waiting(
            SeriesKey(DeviceId(row.device), row.pipeline, row.model, row.src, row.grid_id),
            row.reason,
            int(row.windows),
            int(row.first_w0),
            int(row.next_w0),
            row.since,
            row.until,
        )
        for row in rows
    ]


def count_quarantined(tx: db.Connection, tenant: TenantId, device: DeviceId) -> int:
    """Windows of the device that were put aside."""
    table = drift_tables.quarantined_windows
    return int(tx.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.tenant == tenant, table.c.device == device)) or 0)


def list_waiting_grids(tx: db.Connection, tenant: TenantId) -> set[str]:
    """Grids that windows wait for."""
    table = drift_tables.quarantined_windows
    waits = (table.c.tenant == tenant, table.c.reason == "unknown-grid")
    return set(tx.scalars(sa.select(table.c.grid_id).where(*waits).distinct()))


def release_quarantined(tx: db.Connection, tenant: TenantId, one: Quarantined) -> None:
    """Forget that the window waits."""
    table = drift_tables.quarantined_windows
    key = {**one.key._asdict(), "w0": one.window.w0, "nsub": one.window.nsub}
    tx.execute(sa.delete(table).where(table.c.tenant == tenant, *(table.c[name] == value for name, value in key.items())))


def take_expired(tx: db.Connection, *, now: datetime, limit: int) -> list[tuple[TenantId, Quarantined]]:
    """Windows whose time in quarantine is over, taken out; of all tenants."""
    table = drift_tables.quarantined_windows
    rows = tx.execute(sa.select(table).where(table.c.until <= now).order_by(table.c.until, table.c.tenant).limit(limit))
    found = [(TenantId(row.tenant), _quarantined(row)) for row in rows]
    for tenant, one in found:
        release_quarantined(tx, tenant, one)
    return found


def _quarantined(row: Any) -> Quarantined:
    key = SeriesKey(DeviceId(row.device), row.pipeline, row.model, row.src, row.grid_id)
    return Quarantined(key, WindowRow(row.w0, row.nsub, row.rev, row.body), row.reason, row.received_at, row.until)
