"""The only SQL about sketches and where the evidence of a series stands: series, windows by key, sums.

A series is (device, pipeline, model version, src, grid); its windows are a map (w0, nsub) → (rev, bytes), and everything else here is
computed from that map and may be computed again. Times of windows are counted in sub-windows of 600 s since 1970 (DRIFT 2).
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.monitoring import drift_tables
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.drift_model import Check, DriftState, FeatureCell, Grade
from fleet.monitoring.drift_tables import SeriesKey, SeriesRow, SumRow, WindowRow
from protocol.errors import NotFoundError
from protocol.ids import DeviceId, TenantId


def lock_series(tx: db.Connection, tenant: TenantId, first: Mapping[SeriesKey, int], *, now: datetime) -> dict[SeriesKey, SeriesRow]:
    """The series, made where missing (`first`: its first sub-window) and locked until the transaction ends, in one order for all."""
    found = _series_of(tx, tenant, first)
    rows = [
        {**_fresh(now), **key._asdict(), "tenant": tenant, "series_key": drift_tables.new_key()}
        for key in sorted(first.keys() - found.keys())
    ]
    for row in rows:
        key = SeriesKey(row["device"], row["pipeline"], row["model"], row["src"], row["grid_id"])
        row |= {"first_w0": first[key], "next_w0": first[key]}
    if rows:
        db.insert_ignore(tx, drift_tables.drift_series, rows)
    return _series_of(tx, tenant, first)


def _series_of(tx: db.Connection, tenant: TenantId, keys: Collection[SeriesKey]) -> dict[SeriesKey, SeriesRow]:
    table = drift_tables.drift_series
    found: dict[SeriesKey, SeriesRow] = {}
    for part in drift_tables.parts_of({key.device for key in keys}):
        statement = sa.select(table).where(table.c.tenant == tenant, table.c.device.in_(part)).order_by(table.c.series_key)
        for row in tx.execute(statement.with_for_update()):
            one = _series(row)
            if one.key in keys:
                found[one.key] = one
    return found


def _fresh(now: datetime) -> dict[str, Any]:
    return {
        "dirty_from": None,
        "conflicts": 0,
        "overlaps": 0,
        "group_key": None,
        "line": "",
        "grade": Grade.COLLECTING,
        "decided_by": Check.DEVICE,
        "reference_id": None,
        "evidence_state": None,
        "statistic": 0.0,
        "threshold": 0.0,
        "score": None,
        "p": None,
        "evidence": 0.0,
        "is_listed": False,
        "judged_until": None,
        "restarted_at": None,
        "learning_from": None,
        "days": 0,
        "site_gap": None,
        "peer_p": None,
        "conditions": "{}",
        "cells": "[]",
        "updated_at": now,
    }


def get_series(tx: db.Connection, tenant: TenantId, series_key: int, *, is_held: bool = False) -> SeriesRow:
    """The series. Raises: NotFoundError."""
    table = drift_tables.drift_series
    statement = sa.select(table).where(table.c.tenant == tenant, table.c.series_key == series_key)
    row = tx.execute(statement.with_for_update() if is_held else statement).one_or_none()
    if row is None:
        raise NotFoundError("There are no such sketches.")
    return _series(row)


def list_series(
    tx: db.Connection,
    tenant: TenantId,
    *,
    devices: Collection[DeviceId] | None = None,
    pipeline: str | None = None,
    src: int | None = 0,
    group_key: int | None = None,
    limit: int = 10_000,
    is_held: bool = False,
) -> list[SeriesRow]:
    """Series, those of most evidence first: of these devices, this pipeline, this source, this group; None: of all."""
    table = drift_tables.drift_series
    wanted = [table.c.tenant == tenant]
    wanted += [table.c.pipeline == pipeline] if pipeline is not None else []
    wanted += [table.c.src == src] if src is not None else []
    wanted += [table.c.group_key == group_key] if group_key is not None else []
    order = (table.c.is_listed.desc(), table.c.evidence.desc(), table.c.device, table.c.pipeline, table.c.next_w0.desc())
    if is_held:
        order = (table.c.series_key,)  # type: ignore[assignment]  # one order for all who lock
    parts = [None] if devices is None else list(drift_tables.parts_of(devices))
    found: list[SeriesRow] = []
    for part in parts:
        statement = sa.select(table).where(*wanted, *([] if part is None else [table.c.device.in_(part)]))
        statement = statement.order_by(*order).limit(limit)
        found += [_series(row) for row in tx.execute(statement.with_for_update() if is_held else statement)]
    return found


def count_series(tx: db.Connection, tenant: TenantId, devices: Collection[DeviceId], *, since: datetime) -> dict[DeviceId, int]:
    """Series of each device of which something came since a moment; a device without one is left out."""
    table = drift_tables.drift_series
    found: dict[DeviceId, int] = {}
    for part in drift_tables.parts_of(devices):
        statement = sa.select(table.c.device, sa.func.count()).where(table.c.tenant == tenant, table.c.device.in_(part))
        found |= {
            DeviceId(device): int(count)
            for device, count in tx.execute(statement.where(table.c.updated_at >= since).group_by(table.c.device))
        }
    return found


def find_current(tx: db.Connection, tenant: TenantId, device: DeviceId, pipeline: str, *, src: int = 0) -> SeriesRow | None:
    """The series that the pipeline writes now, see `current_of`; None when it never sent one. `src`: 1 of a candidate in the shadow."""
    return next(iter(current_of(tx, tenant, list_series(tx, tenant, devices=[device], pipeline=pipeline, src=src))), None)


def current_of(tx: db.Connection, tenant: TenantId, rows: Sequence[SeriesRow]) -> list[SeriesRow]:
    """Of each pipeline among the rows the series that it writes now, in their order: the one with the latest window.

    Of those that share an hour the one that the device says it runs, else the one that began later: a release replaced the other.
    """
    said = monitoring_store.list_states_of(tx, tenant, {row.device for row in rows}, "drift")
    told = [(device, one) for device, state in said.items() for one in state.body.get("pipelines", ())]
    runs = {(device, str(one.get("pipeline"))): str(one.get("model")) for device, one in told}
    newest: dict[tuple[DeviceId, str], SeriesRow] = {}

    def rank(row: SeriesRow) -> tuple[int, bool, int, int]:
        return row.next_w0, row.model == runs.get((row.device, row.pipeline)), row.first_w0, -row.series_key

    for row in rows:
        known = newest.get((row.device, row.pipeline))
        if known is None or rank(row) > rank(known):
            newest[row.device, row.pipeline] = row
    return [row for row in rows if newest[row.device, row.pipeline] is row]


def list_dirty(tx: db.Connection, *, limit: int) -> list[tuple[TenantId, int]]:
    """Series that wait to be computed again, of all tenants."""
    table = drift_tables.drift_series
    statement = sa.select(table.c.tenant, table.c.series_key).where(table.c.dirty_from.is_not(None)).order_by(table.c.updated_at)
    return [(TenantId(row.tenant), row.series_key) for row in tx.execute(statement.limit(limit))]


def list_tenants(tx: db.Connection) -> list[TenantId]:
    """Tenants whose devices sent sketches, those that wait for their grid included."""
    known = set(tx.scalars(sa.select(drift_tables.drift_series.c.tenant).distinct())) | set(
        tx.scalars(sa.select(drift_tables.quarantined_windows.c.tenant).distinct())
    )
    return [TenantId(name) for name in sorted(known)]


def count_watched(tx: db.Connection, tenant: TenantId) -> int:
    """Series that may raise an alarm: those with a reference, of what devices act on."""
    table = drift_tables.drift_series
    statement = sa.select(sa.func.count()).select_from(table)
    return int(tx.scalar(statement.where(table.c.tenant == tenant, table.c.src == 0, table.c.reference_id.is_not(None))) or 0)


def save_series(tx: db.Connection, row: SeriesRow, *, now: datetime) -> None:
    """Everything of the series but its key."""
    table = drift_tables.drift_series
    values = {name: getattr(row, name) for name in SeriesRow.__slots__ if name not in {"tenant", "series_key", *SeriesKey._fields}}
    values["conditions"] = json.dumps(dict(row.conditions))
    values["cells"] = json.dumps([asdict(cell) for cell in row.cells])
    tx.execute(
        sa.update(table).where(table.c.tenant == row.tenant, table.c.series_key == row.series_key).values(**values | {"updated_at": now})
    )


def set_listed(tx: db.Connection, tenant: TenantId, evidence: Mapping[int, float], listed: Collection[int]) -> None:
    """The order of DRIFT 5.6: evidence of each series, and which of them e-BH lists."""
    table = drift_tables.drift_series
    values = [{"of_key": key, "new_evidence": value, "new_listed": key in listed} for key, value in sorted(evidence.items())]
    if values:
        statement = sa.update(table).where(table.c.tenant == tenant, table.c.series_key == sa.bindparam("of_key"))
        tx.execute(statement.values(evidence=sa.bindparam("new_evidence"), is_listed=sa.bindparam("new_listed")), values)


def set_peer_p(tx: db.Connection, tenant: TenantId, values: Mapping[int, float]) -> None:
    """How unlike its peers each series was in its latest hour."""
    table = drift_tables.drift_series
    rows = [{"of_key": key, "new_p": value} for key, value in sorted(values.items())]
    if rows:
        statement = sa.update(table).where(table.c.tenant == tenant, table.c.series_key == sa.bindparam("of_key"))
        tx.execute(statement.values(peer_p=sa.bindparam("new_p")), rows)


def list_windows(tx: db.Connection, tenant: TenantId, series_key: int, *, start: int, end: int) -> list[WindowRow]:
    """Windows that touch the sub-windows [start, end), in order, evidence (nsub 1) included."""
    table = drift_tables.sketch_windows
    statement = (
        sa.select(table.c.w0, table.c.nsub, table.c.rev, table.c.body)
        .where(table.c.tenant == tenant, table.c.series_key == series_key)
        .where(table.c.w0 < end, table.c.w0 > start - drift_tables.MAX_NSUB, table.c.w0 + table.c.nsub > start)
        .order_by(table.c.w0, table.c.nsub)
    )
    return [WindowRow(row.w0, row.nsub, row.rev, row.body) for row in tx.execute(statement)]


def list_windows_of(tx: db.Connection, tenant: TenantId, keys: Collection[int], *, start: int, end: int) -> dict[int, list[WindowRow]]:
    """Windows, evidence left out, that begin in [start, end), of several series."""
    table = drift_tables.sketch_windows
    found: dict[int, list[WindowRow]] = {}
    for part in drift_tables.parts_of(keys):
        statement = (
            sa.select(table.c.series_key, table.c.w0, table.c.nsub, table.c.rev, table.c.body)
            .where(table.c.tenant == tenant, table.c.series_key.in_(part), table.c.w0 >= start, table.c.w0 < end, table.c.nsub > 1)
            .order_by(table.c.series_key, table.c.w0)
        )
        for row in tx.execute(statement):
            found.setdefault(row.series_key, []).append(WindowRow(row.w0, row.nsub, row.rev, row.body))
    return found


def put_windows(tx: db.Connection, tenant: TenantId, rows: Iterable[tuple[int, WindowRow]], *, now: datetime) -> None:
    """Store windows of (series key); one that is there with a lower rev is replaced, else it stays."""
    values = [
        {"tenant": tenant, "series_key": key, "w0": one.w0, "nsub": one.nsub, "rev": one.rev, "body": one.body, "received_at": now}
        for key, one in rows
    ]
    db.upsert(tx, drift_tables.sketch_windows, values, where=lambda new: new.rev > drift_tables.sketch_windows.c.rev)


def count_windows(tx: db.Connection, tenant: TenantId) -> dict[str, int]:
    """Windows stored and quarantined, and conflicts and overlaps counted."""
    one = sa.select(sa.func.count()).select_from(drift_tables.sketch_windows).where(drift_tables.sketch_windows.c.tenant == tenant)
    other = (
        sa.select(sa.func.count()).select_from(drift_tables.quarantined_windows).where(drift_tables.quarantined_windows.c.tenant == tenant)
    )
    table = drift_tables.drift_series
    counts = sa.select(sa.func.sum(table.c.conflicts).label("conflicts"), sa.func.sum(table.c.overlaps).label("overlaps"))
    row = tx.execute(counts.where(table.c.tenant == tenant)).one()
    return {
        "windows": int(tx.scalar(one) or 0),
        "quarantined": int(tx.scalar(other) or 0),
        "conflicts": int(row.conflicts or 0),
        "overlaps": int(row.overlaps or 0),
    }


def put_sums(tx: db.Connection, tenant: TenantId, owner_key: int, rows: Iterable[SumRow]) -> None:
    """These sums, in place of what was there."""
    values = [{"tenant": tenant, "owner_key": owner_key, **asdict(one)} for one in rows]
    db.upsert(tx, drift_tables.drift_sums, values)


def list_sums(
    tx: db.Connection, tenant: TenantId, owner_keys: Collection[int], level: str, *, start: int, end: int
) -> dict[int, list[SumRow]]:
    """Sums of a level that begin in [start, end), in order, by owner."""
    table = drift_tables.drift_sums
    found: dict[int, list[SumRow]] = {}
    for part in drift_tables.parts_of(owner_keys):
        statement = (
            sa.select(table)
            .where(table.c.tenant == tenant, table.c.owner_key.in_(part), table.c.level == level, table.c.w0 >= start, table.c.w0 < end)
            .order_by(table.c.owner_key, table.c.w0)
        )
        for row in tx.execute(statement):
            found.setdefault(row.owner_key, []).append(SumRow(row.level, row.w0, row.sub_windows, row.body))
    return found


def count_days(tx: db.Connection, tenant: TenantId, owner_key: int, *, least: int, start: int = 0) -> int:
    """Days from a sub-window on with so many sub-windows that have rows."""
    table = drift_tables.drift_sums
    statement = sa.select(sa.func.count()).select_from(table).where(table.c.tenant == tenant, table.c.owner_key == owner_key)
    return int(tx.scalar(statement.where(table.c.level == "day", table.c.sub_windows >= least, table.c.w0 >= start)) or 0)


def state_of(row: SeriesRow, *, until: datetime | None) -> DriftState:
    """The series for people; `until`: the end of what was judged."""
    return DriftState(
        device=row.device,
        pipeline=row.pipeline,
        model=row.model,
        grid_id=row.grid_id,
        grade=row.grade,
        check=row.decided_by,
        reference_id=row.reference_id,
        statistic=row.statistic,
        threshold=row.threshold,
        score=row.score,
        p=row.p,
        evidence=row.evidence,
        is_listed=row.is_listed,
        judged_until=until,
        days=row.days,
        site_gap=row.site_gap,
        peer_p=row.peer_p,
        conditions=row.conditions,
    )


def _series(row: Any) -> SeriesRow:
    values = {name: getattr(row, name) for name in SeriesRow.__slots__}
    values |= {"grade": Grade(row.grade), "decided_by": Check(row.decided_by), "conditions": json.loads(row.conditions)}
    values["cells"] = tuple(FeatureCell(**cell) for cell in json.loads(row.cells))
    return SeriesRow(**values)
