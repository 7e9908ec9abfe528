"""The only SQL about what windows are compared with: profiles of releases, references of devices."""

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from fleet import db
from fleet.monitoring import drift_tables
from fleet.monitoring.drift_model import Grade, Reference, ReferenceSource
from fleet.monitoring.drift_tables import ProfileRow, SeriesRow
from protocol.ids import DeviceId, TenantId


def put_profile(tx: db.Connection, tenant: TenantId, row: ProfileRow, *, now: datetime) -> bool:
    """Keep what a release carries; returns whether it was new."""
    values = {
        "tenant": tenant,
        "model": row.model,
        "grid_id": row.grid_id,
        "line": row.line,
        "version": row.version,
        "body": row.body,
        "added_at": now,
    }
    return db.insert_ignore(tx, drift_tables.drift_profiles, values) > 0


def list_profiles(tx: db.Connection, tenant: TenantId, grid_ids: Collection[str]) -> dict[tuple[str, str], ProfileRow]:
    """By (model, grid)."""
    table = drift_tables.drift_profiles
    found: dict[tuple[str, str], ProfileRow] = {}
    for part in drift_tables.parts_of(grid_ids):
        statement = sa.select(table).where(table.c.tenant == tenant, table.c.grid_id.in_(part)).order_by(table.c.added_at)
        for row in tx.execute(statement):
            found[row.model, row.grid_id] = ProfileRow(row.model, row.grid_id, row.line, row.version, row.body)
    return found


def list_known_grids(tx: db.Connection, tenant: TenantId, grid_ids: Collection[str]) -> set[str]:
    """Those of the grids that a release of the tenant brought."""
    table = drift_tables.drift_profiles
    found: set[str] = set()
    for part in drift_tables.parts_of(grid_ids):
        found |= set(tx.scalars(sa.select(table.c.grid_id).where(table.c.tenant == tenant, table.c.grid_id.in_(part))))
    return found


def list_profiled_models(tx: db.Connection, tenant: TenantId) -> set[str]:
    """Model versions whose profile is kept."""
    return set(tx.scalars(sa.select(drift_tables.drift_profiles.c.model).where(drift_tables.drift_profiles.c.tenant == tenant)))


def list_profile_bodies(tx: db.Connection, tenant: TenantId, model: str) -> list[bytes]:
    """The profiles that are kept for a model version, one for each grid."""
    table = drift_tables.drift_profiles
    return list(tx.scalars(sa.select(table.c.body).where(table.c.tenant == tenant, table.c.model == model)))


def put_reference(tx: db.Connection, tenant: TenantId, series_key: int, reference: Reference) -> bool:
    """Keep a reference; returns whether it was new."""
    values = {
        "tenant": tenant,
        "series_key": series_key,
        "reference_id": reference.reference_id,
        "grade": reference.grade,
        "source": reference.source,
        "body": reference.body,
        "stored_at": reference.stored_at,
        "retired_at": reference.retired_at,
    }
    return db.insert_ignore(tx, drift_tables.drift_references, values) > 0


def set_source(tx: db.Connection, tenant: TenantId, series_key: int, reference: Reference) -> None:
    """What is known of where a kept reference comes from."""
    table = drift_tables.drift_references
    of_series = (table.c.tenant == tenant, table.c.series_key == series_key, table.c.reference_id == reference.reference_id)
    tx.execute(sa.update(table).where(*of_series).values(source=reference.source))


def use_reference(tx: db.Connection, tenant: TenantId, series_key: int, reference_id: str | None, *, now: datetime) -> None:
    """The one in use; the others are retired now, as far as they are not."""
    table = drift_tables.drift_references
    of_series = (table.c.tenant == tenant, table.c.series_key == series_key)
    others = sa.update(table).where(*of_series, table.c.retired_at.is_(None))
    tx.execute((others.where(table.c.reference_id != reference_id) if reference_id else others).values(retired_at=now))
    if reference_id:
        tx.execute(sa.update(table).where(*of_series, table.c.reference_id == reference_id).values(retired_at=None))


def delete_retired(tx: db.Connection, tenant: TenantId, *, before: datetime, limit: int) -> int:
    """Delete references that were retired before a moment, so many at most; returns how many."""
    table = drift_tables.drift_references
    old = sa.select(table.c.series_key, table.c.reference_id).where(table.c.tenant == tenant, table.c.retired_at < before)
    found = tx.execute(old.order_by(table.c.series_key, table.c.reference_id).limit(limit)).all()
    for row in found:
        of_row = (table.c.series_key == row.series_key, table.c.reference_id == row.reference_id)
        tx.execute(sa.delete(table).where(table.c.tenant == tenant, *of_row, table.c.retired_at < before))
    return len(found)


def list_references(tx: db.Connection, series: SeriesRow) -> list[Reference]:
    """References of the series, the one in use first, then the newest."""
    table = drift_tables.drift_references
    statement = sa.select(table).where(table.c.tenant == series.tenant, table.c.series_key == series.series_key)
    found = [
        Reference(
            device=series.device,
            pipeline=series.pipeline,
            model=series.model,
            grid_id=series.grid_id,
            reference_id=row.reference_id,
            grade=Grade(row.grade),
            source=ReferenceSource(row.source),
            body=row.body,
            stored_at=row.stored_at,
            retired_at=row.retired_at,
        )
        for row in tx.execute(statement.order_by(table.c.stored_at.desc(), table.c.reference_id))
    ]
    return sorted(found, key=lambda one: one.retired_at is not None)


def list_sources(tx: db.Connection, tenant: TenantId, series_keys: Collection[int]) -> dict[tuple[int, str], ReferenceSource]:
    """Where the references of these series come from, by series and reference id."""
    table = drift_tables.drift_references
    columns = (table.c.series_key, table.c.reference_id, table.c.source)
    found: dict[tuple[int, str], ReferenceSource] = {}
    for part in drift_tables.parts_of(series_keys):
        for row in tx.execute(sa.select(*columns).where(table.c.tenant == tenant, table.c.series_key.in_(part))):
            found[row.series_key, row.reference_id] = ReferenceSource(row.source)
    return found


def find_source(tx: db.Connection, tenant: TenantId, device: DeviceId, pipeline: str, reference_id: str) -> ReferenceSource | None:
    """Where a reference of the device's pipeline comes from; None when it is not kept."""
    table, of = drift_tables.drift_references, drift_tables.drift_series
    statement = (
        sa.select(table.c.source)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.series_key == table.c.series_key))
        .where(of.c.tenant == tenant, of.c.device == device, of.c.pipeline == pipeline, table.c.reference_id == reference_id)
    )
    found = tx.scalars(statement).first()
    return None if found is None else ReferenceSource(found)


def list_watched(tx: db.Connection, tenant: TenantId) -> list[tuple[datetime, int]]:
    """Of each series of what devices act on that ever had a reference: when the first was stored, and the sub-window after its last."""
    table, of = drift_tables.drift_references, drift_tables.drift_series
    statement = (
        sa.select(sa.func.min(table.c.stored_at).label("since"), of.c.next_w0)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.series_key == table.c.series_key))
        .where(table.c.tenant == tenant, of.c.src == 0)
        .group_by(table.c.series_key, of.c.next_w0)
    )
    return [(row.since, row.next_w0) for row in tx.execute(statement)]
