"""The only SQL about alarms, the labels that people give, and what the fleet's budget of false alarms was decided for."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.monitoring.drift_model import (
    OPEN_STATES,
    Alarm,
    AlarmEvent,
    AlarmState,
    AlarmSubject,
    Attribution,
    Cause,
    Grade,
    SubjectKind,
)
from protocol.errors import NotFoundError, StaleRevisionError
from protocol.ids import DeviceId, TenantId

alarm_devices = sa.Table(
    "alarm_devices",
    db.metadata,
    db.tenant_column(),
    sa.Column("alarm", sa.String(63), primary_key=True),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Index("ix_alarm_devices_device", "tenant", "device"),
)

audit_labels = sa.Table(
    "audit_labels",
    db.metadata,
    db.tenant_column(),
    sa.Column("label", sa.String(63), primary_key=True),
    sa.Column("device", sa.String(63), nullable=False),
    sa.Column("pipeline", sa.String(63), nullable=False),
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("slice", sa.String(100), nullable=False),
    sa.Column("is_right", sa.Boolean, nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("labeled_at", db.utc, nullable=False),
    sa.Column("labeled_by", sa.String(200), nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Index("ix_audit_labels_device", "tenant", "device", "pipeline", "model"),
)

drift_alarms = sa.Table(
    "drift_alarms",
    db.metadata,
    db.tenant_column(),
    sa.Column("alarm", sa.String(63), primary_key=True),
    sa.Column("subject", sa.String(300), nullable=False),
    sa.Column("subject_kind", sa.String(16), nullable=False),
    sa.Column("subject_name", sa.String(200), nullable=False),
    sa.Column("pipeline", sa.String(63), nullable=False),
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("cause", sa.String(16), nullable=False),
    sa.Column("grade", sa.String(16), nullable=False),
    sa.Column("grid_id", sa.String(32), nullable=False),
    sa.Column("reference_id", sa.String(32)),
    sa.Column("onset", db.utc, nullable=False),
    sa.Column("raised_at", db.utc, nullable=False),
    sa.Column("statistic", sa.Float, nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("rate", sa.Float, nullable=False),
    sa.Column("features", sa.Text, nullable=False),
    sa.Column("words", sa.Text, nullable=False),
    sa.Column("devices", sa.Text, nullable=False),
    sa.Column("parent", sa.String(63)),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("reopened", sa.Integer, nullable=False),
    sa.Column("acknowledged_at", db.utc),
    sa.Column("acknowledged_by", sa.String(200), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("link", sa.String(200), nullable=False),
    sa.Column("cleared_at", db.utc),
    sa.Column("outcome", sa.String(16)),
    sa.Column("muted_until", db.utc),
    sa.Column("notified_at", db.utc),
    sa.Column("low_since", db.utc),
    db.revision_column(),
    sa.Index("ix_drift_alarms_state", "tenant", "state", "raised_at"),
    sa.Index("ix_drift_alarms_subject", "tenant", "subject", "raised_at"),
)

drift_budgets = sa.Table(
    "drift_budgets",
    db.metadata,
    db.tenant_column(),
    sa.Column("devices", sa.Integer, nullable=False),
    sa.Column("decided_at", db.utc, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Label:
    """What somebody says of one answer of a model."""

    label: str
    device: DeviceId
    pipeline: str
    model: str
    #: Part of the data it is counted in besides the whole, e.g. "night"; empty: none.
    slice: str
    is_right: bool
    #: random: drawn uniformly, counts towards the measured accuracy; uncertain; bigger-model: another model's word.
    origin: str
    labeled_at: datetime
    labeled_by: str


# --- alarms ---


def add_alarm(tx: db.Connection, alarm: Alarm) -> None:
    """Keep a new alarm."""
    tx.execute(sa.insert(drift_alarms), _alarm_row(alarm))
    _put_devices(tx, alarm)


def save_alarm(tx: db.Connection, alarm: Alarm) -> None:
    """Everything of the alarm, when it is one revision on or unchanged. Raises: StaleRevisionError when somebody changed it in between."""
    table, row = drift_alarms, _alarm_row(alarm)
    is_it = (table.c.tenant == alarm.tenant, table.c.alarm == alarm.alarm)
    allowed = table.c.revision.in_([alarm.revision - 1, alarm.revision])
    if tx.execute(sa.update(table).where(*is_it, allowed).values(**row)).rowcount != 1:
        raise StaleRevisionError(f"Alarm {alarm.alarm} was changed in between.", hint="Read it again and repeat the change.")
    _put_devices(tx, alarm)


def get_alarm(tx: db.Connection, tenant: TenantId, alarm: str, *, is_held: bool = False) -> Alarm:
    """The alarm. Raises: NotFoundError."""
    table = drift_alarms
    statement = sa.select(table).where(table.c.tenant == tenant, table.c.alarm == alarm)
    row = tx.execute(statement.with_for_update() if is_held else statement).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no alarm {alarm[:80]!r}.", hint="See: mooring alarm list")
    return _alarm(row)


def find_latest(tx: db.Connection, tenant: TenantId, subject: AlarmSubject, *, causes: Collection[Cause] | None = None) -> Alarm | None:
    """The subject's latest alarm, open or not; held until the transaction ends."""
    table = drift_alarms
    statement = sa.select(table).where(table.c.tenant == tenant, table.c.subject == subject.text)
    if causes is not None:
        statement = statement.where(table.c.cause.in_(sorted(causes)))
    row = tx.execute(statement.order_by(table.c.raised_at.desc(), table.c.alarm).limit(1).with_for_update()).one_or_none()
    return None if row is None else _alarm(row)


def list_alarms(
    tx: db.Connection,
    tenant: TenantId,
    *,
    states: Sequence[AlarmState] = (),
    device: DeviceId | None = None,
    after: Alarm | None = None,
    limit: int = 50,
) -> list[Alarm]:
    """Alarms, those raised last first."""
    table = drift_alarms
    statement = sa.select(table).where(table.c.tenant == tenant)
    if states:
        statement = statement.where(table.c.state.in_(sorted(states)))
    if device is not None:
        of = sa.select(alarm_devices.c.alarm).where(alarm_devices.c.tenant == tenant, alarm_devices.c.device == device)
        statement = statement.where(table.c.alarm.in_(of))
    if after is not None:
        is_earlier = table.c.raised_at < after.raised_at
        statement = statement.where(sa.or_(is_earlier, sa.and_(table.c.raised_at == after.raised_at, table.c.alarm > after.alarm)))
    return [_alarm(row) for row in tx.execute(statement.order_by(table.c.raised_at.desc(), table.c.alarm).limit(limit))]


def list_open(tx: db.Connection, tenant: TenantId, *, pipeline: str | None = None, device: DeviceId | None = None) -> list[Alarm]:
    """Open alarms of the tenant; of one device's pipeline: its own, and those of groups that hold it."""
    found = list_alarms(tx, tenant, states=sorted(OPEN_STATES), device=device, limit=10_000)
    return [one for one in found if pipeline is None or one.subject.kind is not SubjectKind.DEVICE or one.subject.pipeline == pipeline]


def count_by_outcome(tx: db.Connection, tenant: TenantId, *, since: datetime) -> dict[AlarmEvent | None, int]:
    """Alarms of devices raised since a moment, by how they ended; None: open."""
    table = drift_alarms
    statement = (
        sa.select(table.c.outcome, sa.func.count())
        .where(table.c.tenant == tenant, table.c.raised_at >= since, table.c.subject_kind == SubjectKind.DEVICE)
        .group_by(table.c.outcome)
    )
    return {AlarmEvent(outcome) if outcome else None: int(count) for outcome, count in tx.execute(statement)}


# --- labels ---


def add_labels(tx: db.Connection, tenant: TenantId, labels: Iterable[Label], *, now: datetime) -> int:
    """Keep labels whose id is new; returns how many were."""
    return db.insert_ignore(tx, audit_labels, [{"tenant": tenant, **asdict(one), "received_at": now} for one in labels])


def count_labels(
    tx: db.Connection,
    tenant: TenantId,
    *,
    model: str,
    origin: str,
    device: DeviceId | None = None,
    pipeline: str | None = None,
    devices: Collection[DeviceId] | None = None,
    since: datetime | None = None,
) -> dict[str, tuple[int, int]]:
    """Slice → (right, all) of one model version; "" holds all of them, those without a slice included."""
    table = audit_labels
    statement = sa.select(table.c.slice, sa.func.count(), sa.func.sum(sa.cast(table.c.is_right, sa.Integer)))
    statement = statement.where(table.c.tenant == tenant, table.c.model == model, table.c.origin == origin)
    if device is not None:
        statement = statement.where(table.c.device == device)
    if devices is not None:
        statement = statement.where(table.c.device.in_(sorted(devices)[:500]))
    if pipeline is not None:
        statement = statement.where(table.c.pipeline == pipeline)
    if since is not None:
        statement = statement.where(table.c.labeled_at >= since)
    found: dict[str, tuple[int, int]] = {"": (0, 0)}
    for name, count, right in tx.execute(statement.group_by(table.c.slice)):
        found[""] = (found[""][0] + int(right or 0), found[""][1] + int(count))
        if name:
            found[name] = (int(right or 0), int(count))
    return found


def list_random_labels(
    tx: db.Connection, tenant: TenantId, *, model: str, device: DeviceId, pipeline: str, since: datetime, until: datetime, limit: int
) -> list[tuple[datetime, bool]]:
    """Moment and word of labels that were drawn at random and lie in [since, until), the latest first."""
    table = audit_labels
    statement = (
        sa.select(table.c.labeled_at, table.c.is_right)
        .where(table.c.tenant == tenant, table.c.device == device, table.c.pipeline == pipeline, table.c.model == model)
        .where(table.c.origin == "random", table.c.labeled_at >= since, table.c.labeled_at < until)
        .order_by(table.c.labeled_at.desc(), table.c.label)
        .limit(limit)
    )
    return [(row.labeled_at, bool(row.is_right)) for row in tx.execute(statement)]


# --- budgets ---


def find_budget(tx: db.Connection, tenant: TenantId) -> int | None:
    """For how many watched pipelines the thresholds were decided; None before the first time."""
    return tx.scalar(sa.select(drift_budgets.c.devices).where(drift_budgets.c.tenant == tenant))


def save_budget(tx: db.Connection, tenant: TenantId, devices: int, *, now: datetime) -> None:
    """Thresholds are decided for so many from now on."""
    db.upsert(tx, drift_budgets, {"tenant": tenant, "devices": devices, "decided_at": now})


def _put_devices(tx: db.Connection, alarm: Alarm) -> None:
    rows = [{"tenant": alarm.tenant, "alarm": alarm.alarm, "device": device} for device in alarm.devices]
    db.insert_ignore(tx, alarm_devices, rows)


def _alarm_row(alarm: Alarm) -> dict[str, Any]:
    plain = {name: getattr(alarm, name) for name in Alarm.__slots__ if name in drift_alarms.c}
    subject = alarm.subject
    return plain | {
        "subject": subject.text,
        "subject_kind": subject.kind,
        "subject_name": subject.name,
        "pipeline": subject.pipeline,
        "model": subject.model,
        "features": json.dumps([asdict(one) for one in alarm.features]),
        "devices": json.dumps(alarm.devices),
        "evidence": json.dumps(alarm.evidence),
    }


def _alarm(row: Any) -> Alarm:
    values = {name: getattr(row, name) for name in Alarm.__slots__ if name in drift_alarms.c}
    return Alarm(
        **values
        | {
            "subject": AlarmSubject(SubjectKind(row.subject_kind), row.subject_name, row.pipeline, row.model),
            "state": AlarmState(row.state),
            "cause": Cause(row.cause),
            "grade": Grade(row.grade),
            "outcome": AlarmEvent(row.outcome) if row.outcome else None,
            "features": tuple(Attribution(**one) for one in json.loads(row.features)),
            "devices": tuple(map(DeviceId, json.loads(row.devices))),
            "evidence": tuple(json.loads(row.evidence)),
        }
    )
