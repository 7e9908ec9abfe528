"""The only SQL about devices that are watched together: groups, where their evidence stands, and their hours."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.monitoring import drift_tables
from fleet.monitoring.drift_model import Grade, SubjectKind
from fleet.monitoring.drift_tables import GroupHour, GroupRow
from protocol.errors import NotFoundError
from protocol.ids import TenantId


def ensure_group(tx: db.Connection, tenant: TenantId, *, kind: SubjectKind, name: str, model: str, grid_id: str, now: datetime) -> GroupRow:
    """The group, made where missing."""
    table = drift_tables.drift_groups
    key = {"tenant": tenant, "kind": kind, "name": name, "model": model, "grid_id": grid_id}
    statement = sa.select(table).where(*(table.c[column] == value for column, value in key.items()))
    row = tx.execute(statement).one_or_none()
    if row is None:
        fresh: dict[str, Any] = dict.fromkeys(("dirty_from", "due_at", "reference", "peers", "score", "p", "judged_until", "restarted_at"))
        fresh |= {"members": 0, "grade": Grade.COLLECTING, "statistic": 0.0, "threshold": 0.0, "updated_at": now}
        db.insert_ignore(tx, table, {**fresh, **key, "group_key": drift_tables.new_key()})
        row = tx.execute(statement).one()
    return _group(row)


def touch_group(tx: db.Connection, tenant: TenantId, group_key: int, *, w0: int, due_at: datetime) -> None:
    """Its hours from a sub-window on wait to be computed again, at the latest then."""
    table = drift_tables.drift_groups
    dirty = sa.case((sa.or_(table.c.dirty_from.is_(None), table.c.dirty_from > w0), w0), else_=table.c.dirty_from)
    due = sa.case((table.c.due_at.is_(None), sa.literal(due_at, db.utc)), else_=table.c.due_at)
    tx.execute(sa.update(table).where(table.c.tenant == tenant, table.c.group_key == group_key).values(dirty_from=dirty, due_at=due))


def list_due_groups(tx: db.Connection, *, now: datetime, limit: int) -> list[tuple[TenantId, int]]:
    """Groups that wait and whose time has come, of all tenants."""
    table = drift_tables.drift_groups
    statement = sa.select(table.c.tenant, table.c.group_key).where(table.c.due_at <= now).order_by(table.c.due_at).limit(limit)
    return [(TenantId(row.tenant), row.group_key) for row in tx.execute(statement)]


def list_groups(tx: db.Connection, tenant: TenantId) -> list[GroupRow]:
    """All groups that are watched together."""
    table = drift_tables.drift_groups
    return [_group(row) for row in tx.execute(sa.select(table).where(table.c.tenant == tenant).order_by(table.c.name, table.c.model))]


def get_group(tx: db.Connection, tenant: TenantId, group_key: int, *, is_held: bool = False) -> GroupRow:
    """The group. Raises: NotFoundError."""
    table = drift_tables.drift_groups
    statement = sa.select(table).where(table.c.tenant == tenant, table.c.group_key == group_key)
    row = tx.execute(statement.with_for_update() if is_held else statement).one_or_none()
    if row is None:
        raise NotFoundError("There is no such group.")
    return _group(row)


def save_group(tx: db.Connection, row: GroupRow, *, now: datetime) -> None:
    """Everything of the group but its key."""
    table = drift_tables.drift_groups
    values = {name: value for name, value in asdict(replace(row, updated_at=now)).items() if name not in {"tenant", "group_key"}}
    tx.execute(sa.update(table).where(table.c.tenant == row.tenant, table.c.group_key == row.group_key).values(**values))


def put_group_hours(tx: db.Connection, tenant: TenantId, group_key: int, hours: Iterable[GroupHour]) -> None:
    """These hours, in place of what was there."""
    db.upsert(tx, drift_tables.drift_group_hours, [{"tenant": tenant, "group_key": group_key, **asdict(one)} for one in hours])


def list_group_hours(tx: db.Connection, tenant: TenantId, group_key: int, *, start: int, end: int) -> list[GroupHour]:
    """Hours of the group that begin in [start, end), in order."""
    table = drift_tables.drift_group_hours
    statement = (
        sa.select(table)
        .where(table.c.tenant == tenant, table.c.group_key == group_key, table.c.w0 >= start, table.c.w0 < end)
        .order_by(table.c.w0)
    )
    return [GroupHour(row.w0, row.reporting, row.mean, row.residuals, row.score, row.p) for row in tx.execute(statement)]


def delete_group_hours(tx: db.Connection, tenant: TenantId, group_key: int, *, before: int, sums_before: int) -> int:
    """Delete the group's hours, and its sums of hours, that began before a sub-window; sums of days stay. Returns how many rows."""
    hours, sums = drift_tables.drift_group_hours, drift_tables.drift_sums
    of_group = (hours.c.tenant == tenant, hours.c.group_key == group_key, hours.c.w0 < before)
    of_hour = (sums.c.tenant == tenant, sums.c.owner_key == group_key, sums.c.level == "hour", sums.c.w0 < sums_before)
    return tx.execute(sa.delete(hours).where(*of_group)).rowcount + tx.execute(sa.delete(sums).where(*of_hour)).rowcount


def _group(row: Any) -> GroupRow:
    values = {name: getattr(row, name) for name in GroupRow.__slots__}
    return GroupRow(**values | {"kind": SubjectKind(row.kind), "grade": Grade(row.grade)})
