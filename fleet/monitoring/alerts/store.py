"""The only SQL about rules, who is told, and history."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.alerts.model import (
    Counted,
    DevicePoint,
    Figures,
    FiringRow,
    FleetPoint,
    KeyedState,
    Recipient,
    RecipientKind,
    RuleKey,
    StoredRule,
)
from fleet.monitoring.model import TelemetryRow
from fleet.monitoring.rules import Comparison, Level, Metric, Rule, RuleState, Scope
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import DeviceId, TenantId

_KEYS_PER_QUERY = 500

rules = sa.Table(
    "alert_rules",
    db.metadata,
    db.tenant_column(),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("metric", sa.String(63), nullable=False),
    sa.Column("comparison", sa.String(16), nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("recovers_at", sa.Float, nullable=False),
    sa.Column("window_s", sa.Float, nullable=False),
    sa.Column("for_s", sa.Float, nullable=False),
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("subject", sa.String(63), nullable=False),
    sa.Column("pipeline", sa.String(63), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    db.revision_column(),
)

rule_states = sa.Table(
    "alert_rule_states",
    db.metadata,
    db.tenant_column(),
    sa.Column("rule", sa.String(63), primary_key=True),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("since", db.utc),
    sa.Column("pending_since", db.utc),
    sa.Column("value", sa.Float),
)

firings = sa.Table(
    "alert_firings",
    db.metadata,
    db.tenant_column(),
    sa.Column("id", sa.String(63), primary_key=True),
    sa.Column("rule", sa.String(63), nullable=False),
    sa.Column("device", sa.String(63), nullable=False),
    sa.Column("pipeline", sa.String(63), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("since", db.utc, nullable=False),
    sa.Column("until", db.utc),
    sa.Column("worst", sa.Float, nullable=False),
    sa.Column("ended_by", sa.String(63), nullable=False),
    sa.Index("ix_alert_firings_since", "tenant", "since"),
    sa.Index("ix_alert_firings_until", "tenant", "until"),
)

recipients = sa.Table(
    "alert_recipients",
    db.metadata,
    db.tenant_column(),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("secret", sa.String(200), nullable=False),
    sa.Column("allows_private", sa.Boolean, nullable=False),
    # with commas between; empty: all
    sa.Column("topics", sa.String(200), nullable=False),
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    db.revision_column(),
)

#: What people were told of last, by subject: holds a second message back.
subjects = sa.Table(
    "alert_subjects",
    db.metadata,
    db.tenant_column(),
    sa.Column("subject", sa.String(300), primary_key=True),
    sa.Column("told_at", db.utc, nullable=False),
    sa.Column("is_open", sa.Boolean, nullable=False),
)


def _figures() -> list[sa.Column[Any]]:
    return [
        sa.Column("messages", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("frames", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("timed", sa.BigInteger, nullable=False),
        sa.Column("p50_sum", sa.Float, nullable=False),
        sa.Column("p95_sum", sa.Float, nullable=False),
        sa.Column("p99_sum", sa.Float, nullable=False),
        sa.Column("p99_max", sa.Float),
        sa.Column("cpu_sum", sa.Float, nullable=False),
        sa.Column("rss_sum", sa.Float, nullable=False),
        sa.Column("temperature_max", sa.Float),
        sa.Column("disk_free_min", sa.Float),
    ]


telemetry_hours = sa.Table(
    "telemetry_hours",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("stream", sa.String(63), primary_key=True),
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("at", db.utc, primary_key=True),
    *_figures(),
    sa.Index("ix_telemetry_hours_at", "tenant", "at"),
)

fleet_history = sa.Table(
    "fleet_history",
    db.metadata,
    db.tenant_column(),
    sa.Column("at", db.utc, primary_key=True),
    *_figures(),
    sa.Column("devices", sa.Integer),
    sa.Column("online", sa.Integer),
    sa.Column("open_alarms", sa.Integer),
    sa.Column("firing_rules", sa.Integer),
)

#: Up to which moment of receipt telemetry was added to the history.
cursors = sa.Table("history_cursors", db.metadata, db.tenant_column(), sa.Column("received_at", db.utc, nullable=False))


# --- rules ---


def list_rules(tx: db.Connection, tenant: TenantId) -> list[StoredRule]:
    """All rules by name."""
    return [_rule(row) for row in tx.execute(sa.select(rules).where(rules.c.tenant == tenant).order_by(rules.c.name))]


def get_rule(tx: db.Connection, tenant: TenantId, name: str) -> StoredRule:
    """The rule. Raises: NotFoundError."""
    row = tx.execute(sa.select(rules).where(rules.c.tenant == tenant, rules.c.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no rule {name!r}.")
    return _rule(row)


def find_rule_revision(tx: db.Connection, tenant: TenantId, name: str) -> int | None:
    """The revision of the rule, held until the transaction ends; None when it is gone or switched off."""
    mine = (rules.c.tenant == tenant, rules.c.name == name, rules.c.is_enabled.is_(True))
    found: int | None = tx.scalar(sa.select(rules.c.revision).where(*mine).with_for_update())
    return found


def insert_rule(tx: db.Connection, tenant: TenantId, stored: StoredRule) -> None:
    """Keep a new rule. Raises: ConflictError when its name is taken."""
    values = {"tenant": tenant, **_rule_values(stored.rule), "created_by": stored.created_by, "created_at": stored.created_at}
    if not db.insert_ignore(tx, rules, values):
        raise ConflictError(f"There already is a rule {stored.rule.name!r}.", hint="Change it, or take another name.")


def save_rule(tx: db.Connection, tenant: TenantId, rule: Rule) -> None:
    """Keep the changed rule, at the revision that it names."""
    tx.execute(sa.update(rules).where(rules.c.tenant == tenant, rules.c.name == rule.name).values(_rule_values(rule)))


def delete_rule(tx: db.Connection, tenant: TenantId, name: str) -> None:
    """Forget the rule and where it is; what it fired stays."""
    tx.execute(sa.delete(rules).where(rules.c.tenant == tenant, rules.c.name == name))
    tx.execute(sa.delete(rule_states).where(rule_states.c.tenant == tenant, rule_states.c.rule == name))


def list_rule_states(tx: db.Connection, tenant: TenantId, rule: str | None = None) -> list[KeyedState]:
    """Where the rule, or every rule, is on each key."""
    statement = sa.select(rule_states).where(rule_states.c.tenant == tenant)
    if rule is not None:
        statement = statement.where(rule_states.c.rule == rule)
    return [_state(row) for row in tx.execute(statement.order_by(rule_states.c.rule, rule_states.c.device, rule_states.c.pipeline))]


def save_rule_states(tx: db.Connection, tenant: TenantId, states: Iterable[KeyedState]) -> None:
    """Keep where rules are now."""
    rows = [
        {
            "tenant": tenant,
            "rule": one.rule,
            "device": one.key.device,
            "pipeline": one.key.pipeline,
            "level": str(one.state.level),
            "since": one.state.since,
            "pending_since": one.state.pending_since,
            "value": one.state.value,
        }
        for one in states
    ]
    db.upsert(tx, rule_states, rows)


def delete_rule_states(tx: db.Connection, tenant: TenantId, rule: str, keys: Collection[RuleKey]) -> None:
    """Forget where the rule was on these keys."""
    table = rule_states
    for key in keys:
        mine = (table.c.tenant == tenant, table.c.rule == rule, table.c.device == key.device, table.c.pipeline == key.pipeline)
        tx.execute(sa.delete(table).where(*mine))


def insert_firing(tx: db.Connection, tenant: TenantId, row: FiringRow) -> None:
    """Keep that a rule fires."""
    tx.execute(sa.insert(firings).values(tenant=tenant, **_firing_values(row)))


def list_firings(
    tx: db.Connection, tenant: TenantId, *, is_open: bool | None = None, rule: str | None = None, limit: int
) -> list[FiringRow]:
    """What fired, the newest first."""
    statement = sa.select(firings).where(firings.c.tenant == tenant).order_by(firings.c.since.desc(), firings.c.id).limit(limit)
    if is_open is not None:
        statement = statement.where(firings.c.until.is_(None) if is_open else firings.c.until.is_not(None))
    if rule is not None:
        statement = statement.where(firings.c.rule == rule)
    return [_firing(row) for row in tx.execute(statement)]


def count_open_firings(tx: db.Connection, tenant: TenantId) -> int:
    """How many rules fire on how many keys."""
    statement = sa.select(sa.func.count()).select_from(firings).where(firings.c.tenant == tenant, firings.c.until.is_(None))
    return int(tx.scalar(statement) or 0)


def worsen_firing(tx: db.Connection, tenant: TenantId, firing: str, worst: float) -> None:
    """The value became worse while it fires."""
    tx.execute(sa.update(firings).where(firings.c.tenant == tenant, firings.c.id == firing).values(worst=worst))


def end_firing(tx: db.Connection, tenant: TenantId, firing: str, *, until: datetime, ended_by: str) -> None:
    """It no longer fires."""
    tx.execute(sa.update(firings).where(firings.c.tenant == tenant, firings.c.id == firing).values(until=until, ended_by=ended_by))


def delete_old(tx: db.Connection, tenant: TenantId, *, before: datetime, hours_before: datetime) -> int:
    """Delete what ended and the fleet's history before a moment, hours of devices before another; returns how many rows."""
    count = tx.execute(sa.delete(firings).where(firings.c.tenant == tenant, firings.c.until < before)).rowcount
    count += tx.execute(sa.delete(telemetry_hours).where(telemetry_hours.c.tenant == tenant, telemetry_hours.c.at < hours_before)).rowcount
    count += tx.execute(sa.delete(fleet_history).where(fleet_history.c.tenant == tenant, fleet_history.c.at < before)).rowcount
    old = (subjects.c.tenant == tenant, subjects.c.told_at < before, subjects.c.is_open.is_(False))
    return count + tx.execute(sa.delete(subjects).where(*old)).rowcount


# --- who is told ---


def list_recipients(tx: db.Connection, tenant: TenantId, kind: RecipientKind | None = None) -> list[Recipient]:
    """All recipients by name, of one kind or both."""
    statement = sa.select(recipients).where(recipients.c.tenant == tenant).order_by(recipients.c.name)
    if kind is not None:
        statement = statement.where(recipients.c.kind == str(kind))
    return [_recipient(row) for row in tx.execute(statement)]


def find_recipient(tx: db.Connection, tenant: TenantId, name: str) -> Recipient | None:
    """The recipient, or None."""
    row = tx.execute(sa.select(recipients).where(recipients.c.tenant == tenant, recipients.c.name == name)).one_or_none()
    return _recipient(row) if row else None


def insert_recipient(tx: db.Connection, recipient: Recipient) -> None:
    """Keep a new recipient. Raises: ConflictError when its name is taken."""
    values = {
        "tenant": recipient.tenant,
        "name": recipient.name,
        "kind": str(recipient.kind),
        "address": recipient.address,
        "secret": recipient.secret,
        "allows_private": recipient.allows_private,
        "topics": ",".join(recipient.topics),
        "is_enabled": recipient.is_enabled,
        "created_by": recipient.created_by,
        "created_at": recipient.created_at,
        "revision": recipient.revision,
    }
    if not db.insert_ignore(tx, recipients, values):
        raise ConflictError(f"There already is a recipient {recipient.name!r}.", hint="Delete it first, or take another name.")


def delete_recipient(tx: db.Connection, tenant: TenantId, name: str) -> None:
    """Forget the recipient."""
    tx.execute(sa.delete(recipients).where(recipients.c.tenant == tenant, recipients.c.name == name))


def find_told(tx: db.Connection, tenant: TenantId, subject: str) -> tuple[datetime, bool] | None:
    """When people were last told of the subject, and whether what they were told is still open."""
    row = tx.execute(sa.select(subjects).where(subjects.c.tenant == tenant, subjects.c.subject == subject)).one_or_none()
    return (row.told_at, row.is_open) if row else None


def save_told(tx: db.Connection, tenant: TenantId, subject: str, *, told_at: datetime, is_open: bool) -> None:
    """Remember what people were told."""
    db.upsert(tx, subjects, {"tenant": tenant, "subject": subject, "told_at": told_at, "is_open": is_open})


# --- telemetry, as rules and history read it ---


def list_telemetry_of(
    tx: db.Connection, tenant: TenantId, devices: Collection[DeviceId], *, name: str, since: datetime, limit: int
) -> list[TelemetryRow]:
    """The newest rows of one telemetry stream of these devices since a moment, oldest first, at most `limit`."""
    table, of = monitoring_store.telemetry, monitoring_store.monitored_devices
    found: list[TelemetryRow] = []
    many = sorted(devices)
    for start in range(0, len(many), _KEYS_PER_QUERY):
        statement = (
            sa.select(table, of.c.device)
            .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
            .where(of.c.tenant == tenant, of.c.device.in_(many[start : start + _KEYS_PER_QUERY]))
            .where(table.c.name == name, table.c.ts >= since)
            .order_by(table.c.ts.desc(), table.c.seq.desc())
            .limit(limit)
        )
        found += [monitoring_store.telemetry_row(row) for row in tx.execute(statement)]
    return sorted(found, key=lambda row: row.ts)


def list_received(tx: db.Connection, tenant: TenantId, *, after: datetime, until: datetime, limit: int) -> list[TelemetryRow]:
    """Telemetry by when it was stored: after one moment, until another, in that order; the rows of one moment stay together.

    All rows of the last moment are given, also beyond `limit`: a cursor on the moment passes over none.
    """
    table, of = monitoring_store.telemetry, monitoring_store.monitored_devices
    within = (table.c.tenant == tenant, table.c.received_at > after, table.c.received_at <= until)
    moments = sa.select(table.c.received_at).where(*within).order_by(table.c.received_at).limit(limit)
    last = tx.scalar(sa.select(sa.func.max(moments.subquery().c.received_at)))
    if last is None:
        return []
    statement = (
        sa.select(table, of.c.device)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
        .where(table.c.tenant == tenant, table.c.received_at > after, table.c.received_at <= last)
        .order_by(table.c.received_at)
    )
    return [monitoring_store.telemetry_row(row) for row in tx.execute(statement)]


def find_cursor(tx: db.Connection, tenant: TenantId) -> datetime | None:
    """Up to when telemetry was added to the history; None: never."""
    found: datetime | None = tx.scalar(sa.select(cursors.c.received_at).where(cursors.c.tenant == tenant))
    return found


def save_cursor(tx: db.Connection, tenant: TenantId, received_at: datetime) -> None:
    """Remember up to when telemetry was added."""
    db.upsert(tx, cursors, {"tenant": tenant, "received_at": received_at})


def add_device_points(tx: db.Connection, tenant: TenantId, points: Sequence[DevicePoint]) -> None:
    """Add the figures to those of the same hour."""
    table = telemetry_hours
    rows = []
    for point in points:
        key = {"tenant": tenant, "device": point.device, "stream": point.stream, "pipeline": point.pipeline, "at": point.at}
        old = tx.execute(sa.select(table).where(*(table.c[name] == value for name, value in key.items()))).one_or_none()
        rows.append({**key, **asdict(point.figures.plus(_figures_of(old)) if old else point.figures)})
    db.upsert(tx, table, rows)


def add_fleet_figures(tx: db.Connection, tenant: TenantId, at: datetime, figures: Figures) -> None:
    """Add the figures to those of the same slot."""
    table = fleet_history
    old = tx.execute(sa.select(table).where(table.c.tenant == tenant, table.c.at == at)).one_or_none()
    db.upsert(tx, table, {"tenant": tenant, "at": at, **asdict(figures.plus(_figures_of(old)) if old else figures)})


def save_counted(tx: db.Connection, tenant: TenantId, at: datetime, counted: Counted) -> None:
    """The counts of a slot; newer ones replace older ones."""
    table = fleet_history
    db.insert_ignore(tx, table, {"tenant": tenant, "at": at, **asdict(Figures())})
    tx.execute(sa.update(table).where(table.c.tenant == tenant, table.c.at == at).values(asdict(counted)))


def list_fleet_points(tx: db.Connection, tenant: TenantId, *, since: datetime, until: datetime) -> list[FleetPoint]:
    """The fleet's slots from one moment to another, oldest first."""
    table = fleet_history
    statement = sa.select(table).where(table.c.tenant == tenant, table.c.at >= since, table.c.at <= until).order_by(table.c.at)
    return [
        FleetPoint(
            row.at,
            _figures_of(row),
            Counted(row.devices, row.online, row.open_alarms, row.firing_rules) if row.online is not None else None,
        )
        for row in tx.execute(statement)
    ]


def list_device_points(tx: db.Connection, tenant: TenantId, device: DeviceId, *, since: datetime, until: datetime) -> list[DevicePoint]:
    """All streams of a device by hour, oldest first."""
    table = telemetry_hours
    mine = (table.c.tenant == tenant, table.c.device == device, table.c.at >= since, table.c.at <= until)
    return [
        DevicePoint(row.device, row.stream, row.pipeline, row.at, _figures_of(row))
        for row in tx.execute(sa.select(table).where(*mine).order_by(table.c.at, table.c.stream, table.c.pipeline))
    ]


_FIGURES = tuple(one.name for one in fields(Figures))


def _figures_of(row: Any) -> Figures:
    return Figures(**{name: getattr(row, name) for name in _FIGURES})


def _rule(row: Any) -> StoredRule:
    rule = Rule(
        name=row.name,
        metric=Metric(row.metric),
        comparison=Comparison(row.comparison),
        threshold=row.threshold,
        recovers_at=row.recovers_at,
        window_s=row.window_s,
        for_s=row.for_s,
        scope=Scope(row.scope),
        subject=row.subject,
        pipeline=row.pipeline,
        severity=row.severity,
        is_enabled=row.is_enabled,
        revision=row.revision,
    )
    return StoredRule(rule, row.created_by, row.created_at)


def _rule_values(rule: Rule) -> dict[str, Any]:
    return {**asdict(rule), "metric": str(rule.metric), "comparison": str(rule.comparison), "scope": str(rule.scope)}


def _state(row: Any) -> KeyedState:
    state = RuleState(Level(row.level), row.since, row.pending_since, row.value)
    return KeyedState(row.rule, RuleKey(DeviceId(row.device), row.pipeline), state)


def _firing(row: Any) -> FiringRow:
    key = RuleKey(DeviceId(row.device), row.pipeline)
    return FiringRow(row.id, row.rule, key, row.severity, row.since, row.until, row.worst, row.ended_by)


def _firing_values(row: FiringRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "rule": row.rule,
        "device": row.key.device,
        "pipeline": row.key.pipeline,
        "severity": row.severity,
        "since": row.since,
        "until": row.until,
        "worst": row.worst,
        "ended_by": row.ended_by,
    }


def _recipient(row: Any) -> Recipient:
    return Recipient(
        tenant=TenantId(row.tenant),
        name=row.name,
        kind=RecipientKind(row.kind),
        address=row.address,
        secret=row.secret,
        allows_private=row.allows_private,
        topics=tuple(one for one in row.topics.split(",") if one),
        is_enabled=row.is_enabled,
        revision=row.revision,
        created_by=row.created_by,
        created_at=row.created_at,
    )
