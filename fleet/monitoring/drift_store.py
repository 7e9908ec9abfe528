"""The only SQL about sketches and the evidence of drift: windows by key, sums, references, profiles, groups, quarantine.

A series is (device, pipeline, model version, src, grid); its windows are a map (w0, nsub) → (rev, bytes), and everything else here is
computed from that map and may be computed again. Times of windows are counted in sub-windows of 600 s since 1970 (DRIFT 2).
"""

import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from fleet import db
from fleet.monitoring.drift_model import Check, DriftState, FeatureCell, Grade, Reference, SubjectKind
from protocol.errors import NotFoundError
from protocol.ids import DeviceId, TenantId

_KEY_BITS = 48
_KEYS_PER_QUERY = 500
#: Longest window in sub-windows (DRIFT 2).
MAX_NSUB = 144

drift_group_hours = sa.Table(
    "drift_group_hours",
    db.metadata,
    db.tenant_column(),
    sa.Column("group_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reporting", sa.Integer, nullable=False),
    sa.Column("residuals", sa.LargeBinary, nullable=False),
    sa.Column("mean", sa.LargeBinary, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("p", sa.Float),
)

drift_groups = sa.Table(
    "drift_groups",
    db.metadata,
    db.tenant_column(),
    sa.Column("group_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("grid_id", sa.String(32), nullable=False),
    sa.Column("members", sa.Integer, nullable=False),
    sa.Column("dirty_from", sa.BigInteger),
    sa.Column("due_at", db.utc),
    sa.Column("reference", sa.LargeBinary),
    sa.Column("peers", sa.LargeBinary),
    # as protocol.sketches.evidence encodes it
    sa.Column("evidence_state", sa.LargeBinary),
    sa.Column("grade", sa.String(16), nullable=False),
    sa.Column("statistic", sa.Float, nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("p", sa.Float),
    sa.Column("judged_until", sa.BigInteger),
    sa.Column("restarted_at", sa.BigInteger),
    sa.Column("updated_at", db.utc, nullable=False),
    sa.UniqueConstraint("tenant", "kind", "name", "model", "grid_id"),
    sa.Index("ix_drift_groups_due", "due_at"),
)

drift_profiles = sa.Table(
    "drift_profiles",
    db.metadata,
    db.tenant_column(),
    sa.Column("model", sa.String(32), primary_key=True),
    sa.Column("grid_id", sa.String(32), primary_key=True),
    sa.Column("line", sa.String(63), nullable=False),
    sa.Column("version", sa.String(63), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("added_at", db.utc, nullable=False),
    sa.Index("ix_drift_profiles_grid_id", "tenant", "grid_id"),
)

drift_references = sa.Table(
    "drift_references",
    db.metadata,
    db.tenant_column(),
    sa.Column("series_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reference_id", sa.String(32), primary_key=True),
    sa.Column("grade", sa.String(16), nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("stored_at", db.utc, nullable=False),
    sa.Column("retired_at", db.utc),
)

drift_series = sa.Table(
    "drift_series",
    db.metadata,
    db.tenant_column(),
    sa.Column("series_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("device", sa.String(63), nullable=False),
    sa.Column("pipeline", sa.String(63), nullable=False),
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("src", sa.Integer, nullable=False),
    sa.Column("grid_id", sa.String(32), nullable=False),
    sa.Column("first_w0", sa.BigInteger, nullable=False),
    sa.Column("next_w0", sa.BigInteger, nullable=False),
    sa.Column("dirty_from", sa.BigInteger),
    sa.Column("conflicts", sa.Integer, nullable=False),
    sa.Column("overlaps", sa.Integer, nullable=False),
    sa.Column("group_key", sa.BigInteger),
    # of the release that brought the grid
    sa.Column("line", sa.String(63), nullable=False),
    sa.Column("grade", sa.String(16), nullable=False),
    sa.Column("decided_by", sa.String(16), nullable=False),
    sa.Column("reference_id", sa.String(32)),
    # as protocol.sketches.evidence encodes it
    sa.Column("evidence_state", sa.LargeBinary),
    sa.Column("statistic", sa.Float, nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("p", sa.Float),
    sa.Column("evidence", sa.Float, nullable=False),
    sa.Column("is_listed", sa.Boolean, nullable=False),
    sa.Column("judged_until", sa.BigInteger),
    sa.Column("restarted_at", sa.BigInteger),
    sa.Column("learning_from", sa.BigInteger),
    sa.Column("days", sa.Integer, nullable=False),
    sa.Column("site_gap", sa.Float),
    sa.Column("peer_p", sa.Float),
    sa.Column("conditions", sa.Text, nullable=False),
    sa.Column("cells", sa.Text, nullable=False),
    sa.Column("updated_at", db.utc, nullable=False),
    sa.UniqueConstraint("tenant", "device", "pipeline", "model", "src", "grid_id"),
    sa.Index("ix_drift_series_dirty", "dirty_from"),
    sa.Index("ix_drift_series_group", "tenant", "group_key"),
)

drift_sums = sa.Table(
    "drift_sums",
    db.metadata,
    db.tenant_column(),
    sa.Column("owner_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("level", sa.String(8), primary_key=True),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sub_windows", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

quarantined_windows = sa.Table(
    "quarantined_windows",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("model", sa.String(32), primary_key=True),
    sa.Column("src", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("grid_id", sa.String(32), primary_key=True),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("nsub", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rev", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Column("until", db.utc, nullable=False),
    sa.Index("ix_quarantined_windows_grid_id", "tenant", "reason", "grid_id"),
    sa.Index("ix_quarantined_windows_until", "until"),
)

sketch_windows = sa.Table(
    "sketch_windows",
    db.metadata,
    db.tenant_column(),
    sa.Column("series_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("nsub", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rev", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Index("ix_sketch_windows_received", "tenant", "received_at"),
)


class SeriesKey(NamedTuple):
    """Whose windows; ids in hex."""

    device: DeviceId
    pipeline: str
    model: str
    #: 0: what the device acts on, 1: what runs in its shadow.
    src: int
    grid_id: str


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """A series: what is stored of it, and where its evidence stands."""

    tenant: TenantId
    series_key: int
    device: DeviceId
    pipeline: str
    model: str
    src: int
    grid_id: str
    #: The first sub-window of all, and the one after the last.
    first_w0: int
    next_w0: int
    #: From here on sums and evidence wait to be computed again; None: nothing waits.
    dirty_from: int | None
    #: Windows that came again with the same rev and other bytes; windows that overlapped another one.
    conflicts: int
    overlaps: int
    group_key: int | None
    line: str
    grade: Grade
    decided_by: Check
    reference_id: str | None
    #: As protocol.sketches.evidence encodes it; None: nothing was judged yet.
    evidence_state: bytes | None
    statistic: float
    threshold: float
    score: float | None
    p: float | None
    evidence: float
    is_listed: bool
    judged_until: int | None
    #: Where the evidence was started again at zero, at the raise of an alarm.
    restarted_at: int | None
    #: What came before this is no part of a reference: somebody took what is there now as normal.
    learning_from: int | None
    days: int
    site_gap: float | None
    peer_p: float | None
    conditions: Mapping[str, int]
    cells: tuple[FeatureCell, ...]
    updated_at: datetime

    @property
    def key(self) -> SeriesKey:
        """What it is found by."""
        return SeriesKey(self.device, self.pipeline, self.model, self.src, self.grid_id)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One window as it came."""

    w0: int
    nsub: int
    rev: int
    body: bytes

    @property
    def end(self) -> int:
        """The sub-window after its last."""
        return self.w0 + self.nsub


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A window that waits: for its grid to be known, or for a person to look at the overlap."""

    key: SeriesKey
    window: WindowRow
    reason: str
    received_at: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class SumRow:
    """A sum of windows."""

    level: str
    w0: int
    #: How many of its sub-windows have rows.
    sub_windows: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """What a release carries for drift, by model version and grid."""

    model: str
    grid_id: str
    line: str
    version: str
    body: bytes


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Devices that are watched together, and where their common evidence stands."""

    tenant: TenantId
    group_key: int
    kind: SubjectKind
    #: "site/device-type", or "campaign/arm".
    name: str
    model: str
    grid_id: str
    members: int
    dirty_from: int | None
    due_at: datetime | None
    #: Of the means of hours, and of what one member differs from the others by.
    reference: bytes | None
    peers: bytes | None
    evidence_state: bytes | None
    grade: Grade
    statistic: float
    threshold: float
    score: float | None
    p: float | None
    judged_until: int | None
    restarted_at: int | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class GroupHour:
    """One hour of a group: mean over members of what each differs from its own reference by."""

    w0: int
    reporting: int
    #: float64, little endian.
    mean: bytes
    #: float64, little endian, reporting × d.
    residuals: bytes
    score: float | None = None
    p: float | None = None


# --- series and windows ---


def lock_series(tx: db.Connection, tenant: TenantId, first: Mapping[SeriesKey, int], *, now: datetime) -> dict[SeriesKey, SeriesRow]:
    """The series, made where missing (`first`: its first sub-window) and locked until the transaction ends, in one order for all."""
    found = _series_of(tx, tenant, first)
    rows = [{**_fresh(now), **key._asdict(), "tenant": tenant, "series_key": _new_key()} for key in sorted(first.keys() - found.keys())]
    for row in rows:
        key = SeriesKey(row["device"], row["pipeline"], row["model"], row["src"], row["grid_id"])
        row |= {"first_w0": first[key], "next_w0": first[key]}
    if rows:
        db.insert_ignore(tx, drift_series, rows)
    return _series_of(tx, tenant, first)


def _series_of(tx: db.Connection, tenant: TenantId, keys: Collection[SeriesKey]) -> dict[SeriesKey, SeriesRow]:
    table = drift_series
    found: dict[SeriesKey, SeriesRow] = {}
    for part in _parts({key.device for key in keys}):
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
    table = drift_series
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
    table = drift_series
    wanted = [table.c.tenant == tenant]
    wanted += [table.c.pipeline == pipeline] if pipeline is not None else []
    wanted += [table.c.src == src] if src is not None else []
    wanted += [table.c.group_key == group_key] if group_key is not None else []
    order = (table.c.is_listed.desc(), table.c.evidence.desc(), table.c.device, table.c.pipeline, table.c.next_w0.desc())
    if is_held:
        order = (table.c.series_key,)  # type: ignore[assignment]  # one order for all who lock
    parts = [None] if devices is None else list(_parts(devices))
    found: list[SeriesRow] = []
    for part in parts:
        statement = sa.select(table).where(*wanted, *([] if part is None else [table.c.device.in_(part)]))
        statement = statement.order_by(*order).limit(limit)
        found += [_series(row) for row in tx.execute(statement.with_for_update() if is_held else statement)]
    return found


def count_series(tx: db.Connection, tenant: TenantId, devices: Collection[DeviceId], *, since: datetime) -> dict[DeviceId, int]:
    """Series of each device of which something came since a moment; a device without one is left out."""
    table = drift_series
    found: dict[DeviceId, int] = {}
    for part in _parts(devices):
        statement = sa.select(table.c.device, sa.func.count()).where(table.c.tenant == tenant, table.c.device.in_(part))
        found |= {
            DeviceId(device): int(count)
            for device, count in tx.execute(statement.where(table.c.updated_at >= since).group_by(table.c.device))
        }
    return found


def find_current(tx: db.Connection, tenant: TenantId, device: DeviceId, pipeline: str, *, is_held: bool = False) -> SeriesRow | None:
    """The series that the pipeline writes now: the one with the latest window; None when it never sent one."""
    table = drift_series
    statement = (
        sa.select(table)
        .where(table.c.tenant == tenant, table.c.device == device, table.c.pipeline == pipeline, table.c.src == 0)
        .order_by(table.c.next_w0.desc(), table.c.series_key)
        .limit(1)
    )
    row = tx.execute(statement.with_for_update() if is_held else statement).one_or_none()
    return None if row is None else _series(row)


def list_dirty(tx: db.Connection, *, limit: int) -> list[tuple[TenantId, int]]:
    """Series that wait to be computed again, of all tenants."""
    table = drift_series
    statement = sa.select(table.c.tenant, table.c.series_key).where(table.c.dirty_from.is_not(None)).order_by(table.c.updated_at)
    return [(TenantId(row.tenant), row.series_key) for row in tx.execute(statement.limit(limit))]


def list_tenants(tx: db.Connection) -> list[TenantId]:
    """Tenants whose devices sent sketches, those that wait for their grid included."""
    known = set(tx.scalars(sa.select(drift_series.c.tenant).distinct())) | set(
        tx.scalars(sa.select(quarantined_windows.c.tenant).distinct())
    )
    return [TenantId(name) for name in sorted(known)]


def count_watched(tx: db.Connection, tenant: TenantId) -> int:
    """Series that may raise an alarm: those with a reference, of what devices act on."""
    table = drift_series
    statement = sa.select(sa.func.count()).select_from(table)
    return int(tx.scalar(statement.where(table.c.tenant == tenant, table.c.src == 0, table.c.reference_id.is_not(None))) or 0)


def save_series(tx: db.Connection, row: SeriesRow, *, now: datetime) -> None:
    """Everything of the series but its key."""
    table = drift_series
    values = {name: getattr(row, name) for name in SeriesRow.__slots__ if name not in {"tenant", "series_key", *SeriesKey._fields}}
    values["conditions"] = json.dumps(dict(row.conditions))
    values["cells"] = json.dumps([asdict(cell) for cell in row.cells])
    tx.execute(
        sa.update(table).where(table.c.tenant == row.tenant, table.c.series_key == row.series_key).values(**values | {"updated_at": now})
    )


def set_listed(tx: db.Connection, tenant: TenantId, evidence: Mapping[int, float], listed: Collection[int]) -> None:
    """The order of DRIFT 5.6: evidence of each series, and which of them e-BH lists."""
    table = drift_series
    values = [{"of_key": key, "new_evidence": value, "new_listed": key in listed} for key, value in sorted(evidence.items())]
    if values:
        statement = sa.update(table).where(table.c.tenant == tenant, table.c.series_key == sa.bindparam("of_key"))
        tx.execute(statement.values(evidence=sa.bindparam("new_evidence"), is_listed=sa.bindparam("new_listed")), values)


def set_peer_p(tx: db.Connection, tenant: TenantId, values: Mapping[int, float]) -> None:
    """How unlike its peers each series was in its latest hour."""
    table = drift_series
    rows = [{"of_key": key, "new_p": value} for key, value in sorted(values.items())]
    if rows:
        statement = sa.update(table).where(table.c.tenant == tenant, table.c.series_key == sa.bindparam("of_key"))
        tx.execute(statement.values(peer_p=sa.bindparam("new_p")), rows)


def list_windows(tx: db.Connection, tenant: TenantId, series_key: int, *, start: int, end: int) -> list[WindowRow]:
    """Windows that touch the sub-windows [start, end), in order, evidence (nsub 1) included."""
    table = sketch_windows
    statement = (
        sa.select(table.c.w0, table.c.nsub, table.c.rev, table.c.body)
        .where(table.c.tenant == tenant, table.c.series_key == series_key)
        .where(table.c.w0 < end, table.c.w0 > start - MAX_NSUB, table.c.w0 + table.c.nsub > start)
        .order_by(table.c.w0, table.c.nsub)
    )
    return [WindowRow(row.w0, row.nsub, row.rev, row.body) for row in tx.execute(statement)]


def list_windows_of(tx: db.Connection, tenant: TenantId, keys: Collection[int], *, start: int, end: int) -> dict[int, list[WindowRow]]:
    """Windows, evidence left out, that begin in [start, end), of several series."""
    table = sketch_windows
    found: dict[int, list[WindowRow]] = {}
    for part in _parts(keys):
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
    db.upsert(tx, sketch_windows, values, where=lambda new: new.rev > sketch_windows.c.rev)


def count_windows(tx: db.Connection, tenant: TenantId) -> dict[str, int]:
    """Windows stored and quarantined, and conflicts and overlaps counted."""
    one = sa.select(sa.func.count()).select_from(sketch_windows).where(sketch_windows.c.tenant == tenant)
    other = sa.select(sa.func.count()).select_from(quarantined_windows).where(quarantined_windows.c.tenant == tenant)
    table = drift_series
    counts = sa.select(sa.func.sum(table.c.conflicts).label("conflicts"), sa.func.sum(table.c.overlaps).label("overlaps"))
    row = tx.execute(counts.where(table.c.tenant == tenant)).one()
    return {
        "windows": int(tx.scalar(one) or 0),
        "quarantined": int(tx.scalar(other) or 0),
        "conflicts": int(row.conflicts or 0),
        "overlaps": int(row.overlaps or 0),
    }


# --- quarantine ---


def quarantine(tx: db.Connection, tenant: TenantId, one: Quarantined) -> bool:
    """Put a window aside; returns False when it is there already."""
    window = {"w0": one.window.w0, "nsub": one.window.nsub, "rev": one.window.rev, "body": one.window.body}
    about = {"reason": one.reason, "received_at": one.received_at, "until": one.until}
    return db.insert_ignore(tx, quarantined_windows, {"tenant": tenant, **one.key._asdict(), **window, **about}) > 0


def list_quarantined(tx: db.Connection, tenant: TenantId, *, grid_id: str | None = None, limit: int = 500) -> list[Quarantined]:
    """Windows put aside, the oldest first; `grid_id`: those that wait for this grid."""
    table = quarantined_windows
    statement = sa.select(table).where(table.c.tenant == tenant).order_by(table.c.received_at, table.c.w0).limit(limit)
    if grid_id is not None:
        statement = statement.where(table.c.grid_id == grid_id, table.c.reason == "unknown-grid")
    return [_quarantined(row) for row in tx.execute(statement)]


def count_quarantined(tx: db.Connection, tenant: TenantId, device: DeviceId) -> int:
    """Windows of the device that were put aside."""
    table = quarantined_windows
    return int(tx.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.tenant == tenant, table.c.device == device)) or 0)


def list_waiting_grids(tx: db.Connection, tenant: TenantId) -> set[str]:
    """Grids that windows wait for."""
    table = quarantined_windows
    waits = (table.c.tenant == tenant, table.c.reason == "unknown-grid")
    return set(tx.scalars(sa.select(table.c.grid_id).where(*waits).distinct()))


def release_quarantined(tx: db.Connection, tenant: TenantId, one: Quarantined) -> None:
    """Forget that the window waits."""
    table = quarantined_windows
    key = {**one.key._asdict(), "w0": one.window.w0, "nsub": one.window.nsub}
    tx.execute(sa.delete(table).where(table.c.tenant == tenant, *(table.c[name] == value for name, value in key.items())))


def take_expired(tx: db.Connection, *, now: datetime, limit: int) -> list[tuple[TenantId, Quarantined]]:
    """Windows whose time in quarantine is over, taken out; of all tenants."""
    table = quarantined_windows
    rows = tx.execute(sa.select(table).where(table.c.until <= now).order_by(table.c.until, table.c.tenant).limit(limit))
    found = [(TenantId(row.tenant), _quarantined(row)) for row in rows]
    for tenant, one in found:
        release_quarantined(tx, tenant, one)
    return found


# --- profiles and references ---


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
    return db.insert_ignore(tx, drift_profiles, values) > 0


def list_profiles(tx: db.Connection, tenant: TenantId, grid_ids: Collection[str]) -> dict[tuple[str, str], ProfileRow]:
    """By (model, grid)."""
    table = drift_profiles
    found: dict[tuple[str, str], ProfileRow] = {}
    for part in _parts(grid_ids):
        statement = sa.select(table).where(table.c.tenant == tenant, table.c.grid_id.in_(part)).order_by(table.c.added_at)
        for row in tx.execute(statement):
            found[row.model, row.grid_id] = ProfileRow(row.model, row.grid_id, row.line, row.version, row.body)
    return found


def list_known_grids(tx: db.Connection, tenant: TenantId, grid_ids: Collection[str]) -> set[str]:
    """Those of the grids that a release of the tenant brought."""
    table = drift_profiles
    found: set[str] = set()
    for part in _parts(grid_ids):
        found |= set(tx.scalars(sa.select(table.c.grid_id).where(table.c.tenant == tenant, table.c.grid_id.in_(part))))
    return found


def list_profiled_models(tx: db.Connection, tenant: TenantId) -> set[str]:
    """Model versions whose profile is kept."""
    return set(tx.scalars(sa.select(drift_profiles.c.model).where(drift_profiles.c.tenant == tenant)))


def list_profile_bodies(tx: db.Connection, tenant: TenantId, model: str) -> list[bytes]:
    """The profiles that are kept for a model version, one for each grid."""
    table = drift_profiles
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
    return db.insert_ignore(tx, drift_references, values) > 0


def use_reference(tx: db.Connection, tenant: TenantId, series_key: int, reference_id: str | None, *, now: datetime) -> None:
    """The one in use; the others are retired now, as far as they are not."""
    table = drift_references
    of_series = (table.c.tenant == tenant, table.c.series_key == series_key)
    others = sa.update(table).where(*of_series, table.c.retired_at.is_(None))
    tx.execute((others.where(table.c.reference_id != reference_id) if reference_id else others).values(retired_at=now))
    if reference_id:
        tx.execute(sa.update(table).where(*of_series, table.c.reference_id == reference_id).values(retired_at=None))


def list_references(tx: db.Connection, series: SeriesRow) -> list[Reference]:
    """References of the series, the one in use first, then the newest."""
    table = drift_references
    statement = sa.select(table).where(table.c.tenant == series.tenant, table.c.series_key == series.series_key)
    found = [
        Reference(
            device=series.device,
            pipeline=series.pipeline,
            model=series.model,
            grid_id=series.grid_id,
            reference_id=row.reference_id,
            grade=Grade(row.grade),
            source=row.source,
            body=row.body,
            stored_at=row.stored_at,
            retired_at=row.retired_at,
        )
        for row in tx.execute(statement.order_by(table.c.stored_at.desc(), table.c.reference_id))
    ]
    return sorted(found, key=lambda one: one.retired_at is not None)


def list_watched(tx: db.Connection, tenant: TenantId) -> list[tuple[datetime, int]]:
    """Of each series of what devices act on that ever had a reference: when the first was stored, and the sub-window after its last."""
    table, of = drift_references, drift_series
    statement = (
        sa.select(sa.func.min(table.c.stored_at).label("since"), of.c.next_w0)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.series_key == table.c.series_key))
        .where(table.c.tenant == tenant, of.c.src == 0)
        .group_by(table.c.series_key, of.c.next_w0)
    )
    return [(row.since, row.next_w0) for row in tx.execute(statement)]


# --- sums ---


def put_sums(tx: db.Connection, tenant: TenantId, owner_key: int, rows: Iterable[SumRow]) -> None:
    """These sums, in place of what was there."""
    values = [{"tenant": tenant, "owner_key": owner_key, **asdict(one)} for one in rows]
    db.upsert(tx, drift_sums, values)


def list_sums(
    tx: db.Connection, tenant: TenantId, owner_keys: Collection[int], level: str, *, start: int, end: int
) -> dict[int, list[SumRow]]:
    """Sums of a level that begin in [start, end), in order, by owner."""
    table = drift_sums
    found: dict[int, list[SumRow]] = {}
    for part in _parts(owner_keys):
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
    table = drift_sums
    statement = sa.select(sa.func.count()).select_from(table).where(table.c.tenant == tenant, table.c.owner_key == owner_key)
    return int(tx.scalar(statement.where(table.c.level == "day", table.c.sub_windows >= least, table.c.w0 >= start)) or 0)


# --- groups ---


def ensure_group(tx: db.Connection, tenant: TenantId, *, kind: SubjectKind, name: str, model: str, grid_id: str, now: datetime) -> GroupRow:
    """The group, made where missing."""
    table = drift_groups
    key = {"tenant": tenant, "kind": kind, "name": name, "model": model, "grid_id": grid_id}
    statement = sa.select(table).where(*(table.c[column] == value for column, value in key.items()))
    row = tx.execute(statement).one_or_none()
    if row is None:
        fresh: dict[str, Any] = dict.fromkeys(
            ("dirty_from", "due_at", "reference", "peers", "evidence_state", "score", "p", "judged_until", "restarted_at")
        )
        fresh |= {"members": 0, "grade": Grade.COLLECTING, "statistic": 0.0, "threshold": 0.0, "updated_at": now}
        db.insert_ignore(tx, table, {**fresh, **key, "group_key": _new_key()})
        row = tx.execute(statement).one()
    return _group(row)


def touch_group(tx: db.Connection, tenant: TenantId, group_key: int, *, w0: int, due_at: datetime) -> None:
    """Its hours from a sub-window on wait to be computed again, at the latest then."""
    table = drift_groups
    dirty = sa.case((sa.or_(table.c.dirty_from.is_(None), table.c.dirty_from > w0), w0), else_=table.c.dirty_from)
    due = sa.case((table.c.due_at.is_(None), sa.literal(due_at, db.utc)), else_=table.c.due_at)
    tx.execute(sa.update(table).where(table.c.tenant == tenant, table.c.group_key == group_key).values(dirty_from=dirty, due_at=due))


def list_due_groups(tx: db.Connection, *, now: datetime, limit: int) -> list[tuple[TenantId, int]]:
    """Groups that wait and whose time has come, of all tenants."""
    table = drift_groups
    statement = sa.select(table.c.tenant, table.c.group_key).where(table.c.due_at <= now).order_by(table.c.due_at).limit(limit)
    return [(TenantId(row.tenant), row.group_key) for row in tx.execute(statement)]


def list_groups(tx: db.Connection, tenant: TenantId) -> list[GroupRow]:
    """All groups that are watched together."""
    table = drift_groups
    return [_group(row) for row in tx.execute(sa.select(table).where(table.c.tenant == tenant).order_by(table.c.name, table.c.model))]


def get_group(tx: db.Connection, tenant: TenantId, group_key: int, *, is_held: bool = False) -> GroupRow:
    """The group. Raises: NotFoundError."""
    table = drift_groups
    statement = sa.select(table).where(table.c.tenant == tenant, table.c.group_key == group_key)
    row = tx.execute(statement.with_for_update() if is_held else statement).one_or_none()
    if row is None:
        raise NotFoundError("There is no such group.")
    return _group(row)


def save_group(tx: db.Connection, row: GroupRow, *, now: datetime) -> None:
    """Everything of the group but its key."""
    table = drift_groups
    values = {name: value for name, value in asdict(replace(row, updated_at=now)).items() if name not in {"tenant", "group_key"}}
    tx.execute(sa.update(table).where(table.c.tenant == row.tenant, table.c.group_key == row.group_key).values(**values))


def put_group_hours(tx: db.Connection, tenant: TenantId, group_key: int, hours: Iterable[GroupHour]) -> None:
    """These hours, in place of what was there."""
    db.upsert(tx, drift_group_hours, [{"tenant": tenant, "group_key": group_key, **asdict(one)} for one in hours])


def list_group_hours(tx: db.Connection, tenant: TenantId, group_key: int, *, start: int, end: int) -> list[GroupHour]:
    """Hours of the group that begin in [start, end), in order."""
    table = drift_group_hours
    statement = (
        sa.select(table)
        .where(table.c.tenant == tenant, table.c.group_key == group_key, table.c.w0 >= start, table.c.w0 < end)
        .order_by(table.c.w0)
    )
    return [GroupHour(row.w0, row.reporting, row.mean, row.residuals, row.score, row.p) for row in tx.execute(statement)]


def delete_group_hours(tx: db.Connection, tenant: TenantId, group_key: int, *, before: int, sums_before: int) -> int:
    """Delete the group's hours, and its sums of hours, that began before a sub-window; sums of days stay. Returns how many rows."""
    hours, sums = drift_group_hours, drift_sums
    of_group = (hours.c.tenant == tenant, hours.c.group_key == group_key, hours.c.w0 < before)
    of_hour = (sums.c.tenant == tenant, sums.c.owner_key == group_key, sums.c.level == "hour", sums.c.w0 < sums_before)
    return tx.execute(sa.delete(hours).where(*of_group)).rowcount + tx.execute(sa.delete(sums).where(*of_hour)).rowcount


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


def _quarantined(row: Any) -> Quarantined:
    key = SeriesKey(DeviceId(row.device), row.pipeline, row.model, row.src, row.grid_id)
    return Quarantined(key, WindowRow(row.w0, row.nsub, row.rev, row.body), row.reason, row.received_at, row.until)


def _new_key() -> int:
    return secrets.randbits(_KEY_BITS)


def _parts(values: Collection[Any]) -> Iterable[Sequence[Any]]:
    many = sorted(values)
    return (many[start : start + _KEYS_PER_QUERY] for start in range(0, len(many), _KEYS_PER_QUERY))


def _series(row: Any) -> SeriesRow:
    values = {name: getattr(row, name) for name in SeriesRow.__slots__}
    values |= {"grade": Grade(row.grade), "decided_by": Check(row.decided_by), "conditions": json.loads(row.conditions)}
    values["cells"] = tuple(FeatureCell(**cell) for cell in json.loads(row.cells))
    return SeriesRow(**values)


def _group(row: Any) -> GroupRow:
    values = {name: getattr(row, name) for name in GroupRow.__slots__}
    return GroupRow(**values | {"kind": SubjectKind(row.kind), "grade": Grade(row.grade)})
