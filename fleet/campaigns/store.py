"""The only SQL about campaigns, assignments and signed version reports."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.campaigns.model import (
    BAD,
    FOLLOWED,
    Assigned,
    BlockCause,
    Campaign,
    CampaignState,
    ComparisonPlan,
    DeviceUpdate,
    FailureGroup,
    Phase,
    ReportChannel,
    ReportedSlot,
    RunAs,
    StoredReport,
    UpdateState,
)
from fleet.campaigns.planner import Counts
from fleet.devices.model import DeviceState
from fleet.devices.store import devices, twins
from protocol.errors import NotFoundError
from protocol.ids import DeviceId, DeviceTypeName, Digest, GroupName, LineName, ReleaseVersion, TenantId
from protocol.messages import VersionReport
from protocol.reasons import BLOCKED, REASONS, blocked_by
from protocol.shadow import ShadowReport

campaigns = sa.Table(
    "campaigns",
    db.metadata,
    db.tenant_column(),
    sa.Column("campaign", sa.String(63), primary_key=True),
    sa.Column("line", sa.String(63), nullable=False),
    sa.Column("version", sa.String(63), nullable=False),
    sa.Column("group", sa.String(63), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    # the phases with their sizes and thresholds, JSON
    sa.Column("phases", sa.Text, nullable=False),
    sa.Column("phase", sa.Integer, nullable=False),
    sa.Column("phase_since", db.utc, nullable=False),
    sa.Column("min_inferences", sa.BigInteger, nullable=False),
    sa.Column("timeout_s", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("finished_at", db.utc),
    # what a device may fetch in full over a metered link, bytes; empty: the device's policy decides
    sa.Column("full_bytes", sa.BigInteger),
    sa.Column("again", sa.Boolean, nullable=False),
    # what the release is brought for, and how it is compared
    sa.Column("run_as", sa.String(16), nullable=False),
    sa.Column("share", sa.Integer, nullable=False),
    sa.Column("cpu", sa.Integer, nullable=False),
    sa.Column("until", db.utc),
    db.revision_column(),
    sa.Index("ix_campaigns_state", "tenant", "state"),
)

campaign_devices = sa.Table(
    "campaign_devices",
    db.metadata,
    db.tenant_column(),
    sa.Column("campaign", sa.String(63), primary_key=True),
    sa.Column("device", sa.String(63), primary_key=True),
    # the phase that opens the way for this device
    sa.Column("phase", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(200), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("assignment", sa.String(63), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("assigned_at", db.utc),
    sa.Column("updated_at", db.utc, nullable=False),
    # what the device had been assigned before, so that an abort can give it back
    sa.Column("previous", sa.Text, nullable=False),
    sa.Index("ix_campaign_devices_state", "tenant", "campaign", "state"),
    sa.Index("ix_campaign_devices_device", "tenant", "device"),
)


def _assignments(name: str) -> sa.Table:
    return sa.Table(
        name,
        db.metadata,
        db.tenant_column(),
        sa.Column("device", sa.String(63), primary_key=True),
        sa.Column("line", sa.String(63), primary_key=True),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("assignment", sa.String(63), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("campaign", sa.String(63), nullable=False),
        sa.Column("assigned_at", db.utc, nullable=False),
        db.revision_column(),
    )


#: What devices shall run.
assignments = _assignments("assignments")

#: What runs beside that; a row has the same columns.
candidates = _assignments("candidate_assignments")

version_reports = sa.Table(
    "version_reports",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("report_counter", sa.BigInteger, nullable=False),
    # the nonce that the next report should carry, and the one before: an answer may be lost
    sa.Column("nonce", sa.String(63), nullable=False),
    sa.Column("previous_nonce", sa.String(63), nullable=False),
    # over HTTPS or on a stick
    sa.Column("channel", sa.String(16), nullable=False),
    sa.Column("is_stale", sa.Boolean, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    # the verified payload, and the envelope it came in as evidence
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("envelope", sa.Text, nullable=False),
)

#: What the latest reports say is in the slots, by digest: which bases the field has.
reported_slots = sa.Table(
    "reported_slots",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("line", sa.String(63), primary_key=True),
    sa.Column("slot", sa.String(8), primary_key=True),
    sa.Column("version", sa.String(63), nullable=False),
    sa.Column("sha256", sa.String(71), nullable=False),
    sa.Index("ix_reported_slots_line", "tenant", "line", "sha256"),
)

#: What devices say about candidates, as events; one row per event, so that an event that comes twice counts once.
shadow_reports = sa.Table(
    "shadow_reports",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("event", sa.String(200), primary_key=True),
    sa.Column("campaign", sa.String(200), nullable=False),
    sa.Column("pipeline", sa.String(63), nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    # the report as it was sent, JSON
    sa.Column("report", sa.Text, nullable=False),
    sa.Index("ix_shadow_reports_campaign", "tenant", "campaign", "device"),
    sa.Index("ix_shadow_reports_pipeline", "tenant", "device", "pipeline"),
)

#: The campaign that assigned what a device has, beside another.
_origin = campaigns.alias("origin")
#: Campaigns that a group may follow; the newest of line and group, which it does follow, has rank 1.
_followed = (
    sa.select(campaigns.c.tenant, campaigns.c.campaign, campaigns.c.line, campaigns.c["group"])
    .add_columns(
        sa.func.row_number()
        .over(
            partition_by=(campaigns.c.tenant, campaigns.c.line, campaigns.c["group"]),
            order_by=(campaigns.c.created_at.desc(), campaigns.c.campaign.desc()),
        )
        .label("rank")
    )
    .where(campaigns.c.state.in_([str(state) for state in FOLLOWED]), campaigns.c.run_as == str(RunAs.ACTIVE))
    .subquery("followed")
)


# --- campaigns ---


def add_campaign(tx: db.Connection, campaign: Campaign, updates: Sequence[DeviceUpdate]) -> None:
    """Keep a new campaign with the devices that it is for."""
    tx.execute(sa.insert(campaigns), _campaign_row(campaign))
    for start in range(0, len(updates), 500):
        tx.execute(sa.insert(campaign_devices), [_update_row(campaign.tenant, update) for update in updates[start : start + 500]])


def save_campaign(tx: db.Connection, campaign: Campaign) -> None:
    """Write the campaign as it now is. Raises: StaleRevisionError when somebody changed it since it was read."""
    where = (campaigns.c.tenant == campaign.tenant, campaigns.c.campaign == campaign.campaign)
    current = tx.execute(sa.select(campaigns.c.revision).where(*where).with_for_update()).scalar_one_or_none()
    db.check_revision(current or 0, campaign.revision - 1, what=f"Campaign {campaign.campaign}")
    tx.execute(sa.update(campaigns).where(*where).values(_campaign_row(campaign)))


def get_campaign(tx: db.Connection, tenant: TenantId, campaign: str, *, is_held: bool = False) -> Campaign:
    """The campaign; `is_held` keeps others from changing it until this transaction ends. Raises: NotFoundError."""
    statement = sa.select(campaigns).where(campaigns.c.tenant == tenant, campaigns.c.campaign == campaign)
    row = tx.execute(statement.with_for_update() if is_held else statement).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"There is no campaign {campaign[:80]!r}.", hint="See: mooring campaign list")
    return _campaign(row)


def find_full_bytes(tx: db.Connection, tenant: TenantId, campaign: str) -> int | None:
    """What the campaign lets each device fetch in full over a metered link, bytes; None when it says nothing."""
    statement = sa.select(campaigns.c.full_bytes).where(campaigns.c.tenant == tenant, campaigns.c.campaign == campaign)
    return tx.execute(statement).scalar_one_or_none()


def list_campaigns(tx: db.Connection, tenant: TenantId, *, limit: int = 200) -> list[Campaign]:
    """The newest first."""
    statement = sa.select(campaigns).where(campaigns.c.tenant == tenant).order_by(campaigns.c.created_at.desc(), campaigns.c.campaign)
    return [_campaign(row) for row in tx.execute(statement.limit(limit)).mappings()]


def list_open_campaigns(tx: db.Connection) -> list[tuple[TenantId, str]]:
    """Campaigns of all tenants that are not over."""
    is_open = campaigns.c.state.in_([str(CampaignState.RUNNING), str(CampaignState.PAUSED)])
    statement = sa.select(campaigns.c.tenant, campaigns.c.campaign).where(is_open).order_by(campaigns.c.tenant, campaigns.c.campaign)
    return [(TenantId(row.tenant), row.campaign) for row in tx.execute(statement)]


def find_open_campaign_of(tx: db.Connection, tenant: TenantId, line: LineName, group: GroupName, *, is_candidate: bool) -> str | None:
    """The campaign under way for the line in the group, among those that compare or among the others; or None."""
    is_active = campaigns.c.run_as == str(RunAs.ACTIVE)
    is_it = (
        campaigns.c.tenant == tenant,
        campaigns.c.line == line,
        campaigns.c["group"] == group,
        campaigns.c.state.in_([str(CampaignState.RUNNING), str(CampaignState.PAUSED)]),
        ~is_active if is_candidate else is_active,
    )
    return tx.execute(sa.select(campaigns.c.campaign).where(*is_it).limit(1)).scalar_one_or_none()


# --- devices of a campaign ---


def count_updates(tx: db.Connection, campaign: Campaign) -> Counts:
    """How many devices of each phase are in each state."""
    columns = (campaign_devices.c.phase, campaign_devices.c.state)
    statement = sa.select(*columns, sa.func.count()).where(*_of(campaign)).group_by(*columns)
    by_phase: dict[int, dict[UpdateState, int]] = {}
    for phase, state, count in tx.execute(statement):
        by_phase.setdefault(phase, {})[UpdateState(state)] = count
    return Counts(by_phase)


def list_updates(
    tx: db.Connection,
    campaign: Campaign,
    *,
    states: Collection[UpdateState] | None = None,
    until_phase: int | None = None,
    assigned_before: datetime | None = None,
    limit: int = 1000,
) -> list[DeviceUpdate]:
    """Devices of the campaign by id, as the filters say."""
    statement = sa.select(campaign_devices).where(*_of(campaign))
    if states is not None:
        statement = statement.where(campaign_devices.c.state.in_([str(state) for state in states]))
    if until_phase is not None:
        statement = statement.where(campaign_devices.c.phase <= until_phase)
    if assigned_before is not None:
        statement = statement.where(campaign_devices.c.assigned_at <= assigned_before)
    rows = tx.execute(statement.order_by(campaign_devices.c.device).limit(limit)).mappings()
    return [_update(row) for row in rows]


def list_failures(tx: db.Connection, campaign: Campaign, *, limit: int = 50) -> list[FailureGroup]:
    """Failed devices by cause, the most frequent cause first; each with the device that comes first by id.

    Those that refuse the release since they took it back are told apart by why that was.
    """
    columns = campaign_devices.c
    is_bad = (*_of(campaign), columns.state.in_([str(state) for state in BAD]))
    count, first = sa.func.count().label("count"), sa.func.min(columns.device).label("first")
    grouped = sa.select(columns.reason, count, first).where(*is_bad).group_by(columns.reason)
    rows = tx.execute(grouped.order_by(count.desc(), columns.reason).limit(limit)).all()
    examples = sa.select(campaign_devices).where(*_of(campaign), columns.device.in_([row.first for row in rows]))
    by_device = {row["device"]: _update(row) for row in tx.execute(examples).mappings()}
    return [
        FailureGroup(reason, number, by_device[device], _list_block_causes(tx, campaign) if reason == BLOCKED else ())
        for reason, number, device in rows
    ]


def _list_block_causes(tx: db.Connection, campaign: Campaign) -> tuple[BlockCause, ...]:
    columns = campaign_devices.c
    said = [(columns.text.startswith(blocked_by(code), autoescape=True), code) for code in REASONS]
    cause, count = sa.case(*said, else_="").label("cause"), sa.func.count().label("count")
    is_blocked = (*_of(campaign), columns.state.in_([str(state) for state in BAD]), columns.reason == BLOCKED)
    counted = sa.select(cause, count).where(*is_blocked).group_by("cause")
    return tuple(BlockCause(code, number) for code, number in tx.execute(counted.order_by(count.desc(), "cause")))


def find_update(tx: db.Connection, tenant: TenantId, campaign: str, device: DeviceId) -> DeviceUpdate | None:
    """The device's way in the campaign, or None."""
    is_one = (campaign_devices.c.tenant == tenant, campaign_devices.c.campaign == campaign, campaign_devices.c.device == device)
    row = tx.execute(sa.select(campaign_devices).where(*is_one)).mappings().one_or_none()
    return _update(row) if row else None


def find_attempts(tx: db.Connection, campaign: Campaign, names: Sequence[DeviceId]) -> dict[DeviceId, int]:
    """The highest attempt with which each device was ever assigned the campaign's release; devices that never were are absent."""
    of_release = (campaigns.c.tenant == campaign.tenant, campaigns.c.line == campaign.line, campaigns.c.version == campaign.version)
    joined = campaign_devices.join(
        campaigns, sa.and_(campaigns.c.tenant == campaign_devices.c.tenant, campaigns.c.campaign == campaign_devices.c.campaign)
    )
    statement = sa.select(campaign_devices.c.device, sa.func.max(campaign_devices.c.attempt)).select_from(joined)
    statement = statement.where(*of_release, campaign_devices.c.device.in_(names)).group_by(campaign_devices.c.device)
    return {DeviceId(device): attempt for device, attempt in tx.execute(statement) if attempt}


def list_updates_of_device(tx: db.Connection, tenant: TenantId, device: DeviceId, *, limit: int = 50) -> list[DeviceUpdate]:
    """The device's ways in its campaigns, the latest change first."""
    is_one = (campaign_devices.c.tenant == tenant, campaign_devices.c.device == device)
    statement = sa.select(campaign_devices).where(*is_one).order_by(campaign_devices.c.updated_at.desc()).limit(limit)
    return [_update(row) for row in tx.execute(statement).mappings()]


def save_updates(tx: db.Connection, tenant: TenantId, updates: Sequence[DeviceUpdate]) -> None:
    """Write the devices' ways as they now are."""
    for start in range(0, len(updates), 500):
        db.upsert(tx, campaign_devices, [_update_row(tenant, update) for update in updates[start : start + 500]])


# --- devices that came later ---


def list_joinable(tx: db.Connection) -> list[tuple[TenantId, str, DeviceTypeName]]:
    """Campaigns of all tenants that newcomers of a device type could join: one read, over keys."""
    names = (_followed.c.tenant, _followed.c.campaign, devices.c.device_type)
    statement = sa.select(*names).distinct().select_from(_newcomers()).where(*_is_newcomer()).order_by(*names)
    return [(TenantId(tenant), campaign, DeviceTypeName(name)) for tenant, campaign, name in tx.execute(statement)]


def list_newcomers(tx: db.Connection, campaign: Campaign, device_type: DeviceTypeName, *, limit: int) -> list[DeviceId]:
    """Devices of the type that are in the campaign's group, use its line, and are not on their way in it, by id."""
    statement = sa.select(devices.c.device).select_from(_newcomers()).where(*_is_newcomer(), devices.c.device_type == device_type)
    is_one = (_followed.c.tenant == campaign.tenant, _followed.c.campaign == campaign.campaign)
    return [DeviceId(name) for name in tx.scalars(statement.where(*is_one).order_by(devices.c.device).limit(limit))]


def _newcomers() -> sa.FromClause:
    """Each device beside the campaigns that its group follows, its own way in them, and who assigned what its line has."""
    way, current = campaign_devices, assignments
    in_group = sa.and_(devices.c.tenant == _followed.c.tenant, devices.c.group_name == _followed.c["group"])
    own_way = sa.and_(way.c.tenant == _followed.c.tenant, way.c.campaign == _followed.c.campaign, way.c.device == devices.c.device)
    own_line = sa.and_(current.c.tenant == devices.c.tenant, current.c.device == devices.c.device, current.c.line == _followed.c.line)
    of_another = sa.and_(_origin.c.tenant == current.c.tenant, _origin.c.campaign == current.c.campaign)
    return _followed.join(devices, in_group).outerjoin(way, own_way).outerjoin(current, own_line).outerjoin(_origin, of_another)


def _is_newcomer() -> tuple[sa.ColumnElement[bool], ...]:
    is_back_from_elsewhere = sa.and_(campaign_devices.c.state != str(UpdateState.WAITING), _origin.c["group"] != _followed.c["group"])
    # desired is canonical JSON: a pipeline of the device or of its group says its line in these very bytes
    uses_line = twins.c.desired.contains(sa.literal('"line":"') + _followed.c.line + sa.literal('"'))
    return (
        _followed.c.rank == 1,
        devices.c.state == str(DeviceState.ENROLLED),
        sa.or_(campaign_devices.c.device.is_(None), is_back_from_elsewhere),
        sa.exists().where(twins.c.tenant == devices.c.tenant, twins.c.device == devices.c.device, uses_line),
    )


# --- assignments ---


def list_assigned(tx: db.Connection, tenant: TenantId, device: DeviceId, *, is_candidate: bool = False) -> list[Assigned]:
    """What the device shall run, or what shall run beside that, by line."""
    table = _table(is_candidate=is_candidate)
    statement = sa.select(table).where(table.c.tenant == tenant, table.c.device == device)
    return [_assigned(row) for row in tx.execute(statement.order_by(table.c.line)).mappings()]


def find_assigned(tx: db.Connection, tenant: TenantId, device: DeviceId, line: LineName, *, is_candidate: bool = False) -> Assigned | None:
    """What that line of the device shall run, or what shall run beside that; or None."""
    table = _table(is_candidate=is_candidate)
    is_one = (table.c.tenant == tenant, table.c.device == device, table.c.line == line)
    row = tx.execute(sa.select(table).where(*is_one)).mappings().one_or_none()
    return _assigned(row) if row else None


def save_assigned(tx: db.Connection, tenant: TenantId, items: Sequence[Assigned], *, is_candidate: bool = False) -> None:
    """Assign; the caller marks the devices' director metadata stale."""
    for start in range(0, len(items), 500):
        rows = [{"tenant": tenant, **asdict(item)} for item in items[start : start + 500]]
        db.upsert(tx, _table(is_candidate=is_candidate), rows)


def delete_assigned(tx: db.Connection, tenant: TenantId, device: DeviceId, line: LineName, *, is_candidate: bool = False) -> None:
    """The line of the device is told nothing any more: it keeps what it has, and ends what ran beside that."""
    table = _table(is_candidate=is_candidate)
    tx.execute(sa.delete(table).where(table.c.tenant == tenant, table.c.device == device, table.c.line == line))


def _table(*, is_candidate: bool) -> sa.Table:
    return candidates if is_candidate else assignments


# --- signed reports ---


def find_report(tx: db.Connection, tenant: TenantId, device: DeviceId, *, is_held: bool = False) -> StoredReport | None:
    """The device's latest verified report, or None."""
    statement = sa.select(version_reports).where(version_reports.c.tenant == tenant, version_reports.c.device == device)
    row = tx.execute(statement.with_for_update() if is_held else statement).mappings().one_or_none()
    if row is None:
        return None
    return StoredReport(
        device=DeviceId(row["device"]),
        report=VersionReport.model_validate_json(row["report"]),
        received_at=row["received_at"],
        nonce=row["nonce"],
        previous_nonce=row["previous_nonce"],
        channel=ReportChannel(row["channel"]),
        is_stale=row["is_stale"],
    )


def save_report(tx: db.Connection, tenant: TenantId, stored: StoredReport, envelope: str) -> bool:
    """Keep the report in place of the last one; returns False, changing nothing, when its counter is not above the last."""
    row = {
        "tenant": tenant,
        "device": stored.device,
        "report_counter": stored.report.report_counter,
        "nonce": stored.nonce,
        "previous_nonce": stored.previous_nonce,
        "channel": str(stored.channel),
        "is_stale": stored.is_stale,
        "received_at": stored.received_at,
        "report": stored.report.model_dump_json(),
        "envelope": envelope,
    }
    grows = db.upsert(tx, version_reports, row, where=lambda new: new.report_counter > version_reports.c.report_counter)
    return bool(grows)


# --- how candidates compare ---


def add_shadow_report(tx: db.Connection, tenant: TenantId, device: DeviceId, event: str, report: ShadowReport, *, now: datetime) -> None:
    """Keep the report of an event; one that is known already changes nothing."""
    row = {
        "tenant": tenant,
        "device": device,
        "event": event,
        "campaign": report.campaign,
        "pipeline": report.pipeline,
        "until": report.until,
        "received_at": now,
        "report": report.model_dump_json(),
    }
    db.insert_ignore(tx, shadow_reports, row)


def list_shadow_reports(
    tx: db.Connection,
    tenant: TenantId,
    *,
    campaign: str | None = None,
    device: DeviceId | None = None,
    pipeline: str | None = None,
    limit: int,
) -> list[tuple[DeviceId, ShadowReport]]:
    """Reports as the filters say, the latest first."""
    statement = sa.select(shadow_reports.c.device, shadow_reports.c.report).where(shadow_reports.c.tenant == tenant)
    wanted = (("campaign", campaign), ("device", device), ("pipeline", pipeline))
    for name, value in wanted:
        if value is not None:
            statement = statement.where(shadow_reports.c[name] == value)
    ordered = statement.order_by(shadow_reports.c.until.desc(), shadow_reports.c.device, shadow_reports.c.event).limit(limit)
    return [(DeviceId(device), ShadowReport.model_validate_json(report)) for device, report in tx.execute(ordered)]


def delete_shadow_reports(tx: db.Connection, *, before: datetime, limit: int) -> int:
    """Forget reports that came before the moment, of all tenants, at most so many; returns how many."""
    keys = (shadow_reports.c.tenant, shadow_reports.c.device, shadow_reports.c.event)
    old = tx.execute(sa.select(*keys).where(shadow_reports.c.received_at < before).limit(limit)).all()
    for tenant, device, event in old:
        is_one = (keys[0] == tenant, keys[1] == device, keys[2] == event)
        tx.execute(sa.delete(shadow_reports).where(*is_one))
    return len(old)


# --- what devices have ---


def list_slots(tx: db.Connection, tenant: TenantId, device: DeviceId) -> list[ReportedSlot]:
    """What the device has, by line and slot."""
    is_one = (reported_slots.c.tenant == tenant, reported_slots.c.device == device)
    ordered = sa.select(reported_slots).where(*is_one).order_by(reported_slots.c.line, reported_slots.c.slot)
    return [ReportedSlot(**{name: row[name] for name in ReportedSlot.__dataclass_fields__}) for row in tx.execute(ordered).mappings()]


def replace_slots(tx: db.Connection, tenant: TenantId, device: DeviceId, slots: Sequence[ReportedSlot]) -> set[LineName]:
    """Make this what the device has; returns the lines in which a base is new."""
    before = list_slots(tx, tenant, device)
    if before == sorted(slots, key=lambda slot: (slot.line, slot.slot)):
        return set()
    tx.execute(sa.delete(reported_slots).where(reported_slots.c.tenant == tenant, reported_slots.c.device == device))
    if slots:
        tx.execute(sa.insert(reported_slots), [{"tenant": tenant, **asdict(slot)} for slot in slots])
    known = {(slot.line, slot.sha256) for slot in before}
    return {slot.line for slot in slots if (slot.line, slot.sha256) not in known}


def count_bases(
    tx: db.Connection, tenant: TenantId, line: LineName, device_types: Collection[DeviceTypeName]
) -> tuple[dict[Digest, int], int]:
    """Per model digest how many enrolled devices of these types have it in a slot of the line; and how many have any."""
    has_it = sa.and_(devices.c.tenant == reported_slots.c.tenant, devices.c.device == reported_slots.c.device)
    is_counted = (
        reported_slots.c.tenant == tenant,
        reported_slots.c.line == line,
        devices.c.state == str(DeviceState.ENROLLED),
        devices.c.device_type.in_(sorted(device_types)),
    )
    joined = reported_slots.join(devices, has_it)
    number = sa.func.count(reported_slots.c.device.distinct())
    by_digest = sa.select(reported_slots.c.sha256, number).select_from(joined).where(*is_counted).group_by(reported_slots.c.sha256)
    total = tx.scalar(sa.select(number).select_from(joined).where(*is_counted))
    return {Digest(sha256): count for sha256, count in tx.execute(by_digest)}, int(total or 0)


def list_awaiting(tx: db.Connection, tenant: TenantId, line: LineName, version: ReleaseVersion) -> list[DeviceId]:
    """Devices that shall get the release and do not say that they have it, by id."""
    has_it = sa.exists().where(
        reported_slots.c.tenant == assignments.c.tenant,
        reported_slots.c.device == assignments.c.device,
        reported_slots.c.line == assignments.c.line,
        reported_slots.c.version == assignments.c.version,
    )
    is_one = (assignments.c.tenant == tenant, assignments.c.line == line, assignments.c.version == version)
    return [DeviceId(name) for name in tx.scalars(sa.select(assignments.c.device).where(*is_one, ~has_it).order_by(assignments.c.device))]


def list_moving_versions(tx: db.Connection, tenant: TenantId, line: LineName) -> list[ReleaseVersion]:
    """Releases of the line that campaigns under way bring to devices."""
    is_one = (
        campaigns.c.tenant == tenant,
        campaigns.c.line == line,
        campaigns.c.state.in_([str(CampaignState.RUNNING), str(CampaignState.PAUSED)]),
    )
    return [ReleaseVersion(name) for name in tx.scalars(sa.select(campaigns.c.version).where(*is_one).distinct())]


# --- rows ---


def _of(campaign: Campaign) -> tuple[sa.ColumnElement[bool], ...]:
    return (campaign_devices.c.tenant == campaign.tenant, campaign_devices.c.campaign == campaign.campaign)


def _campaign_row(campaign: Campaign) -> dict[str, Any]:
    row = asdict(campaign)
    row |= row.pop("comparison")
    row["run_as"] = str(campaign.comparison.run_as)
    row["state"] = str(campaign.state)
    row["phases"] = json.dumps([asdict(phase) for phase in campaign.phases])
    return row


def _campaign(row: Mapping[Any, Any]) -> Campaign:
    values = {name: row[name] for name in Campaign.__dataclass_fields__ if name != "comparison"}
    values["comparison"] = ComparisonPlan(RunAs(row["run_as"]), row["share"], row["cpu"], row["until"])
    values["state"] = CampaignState(row["state"])
    values["phases"] = tuple(Phase(**phase) for phase in json.loads(row["phases"]))
    return Campaign(**values)


def _update_row(tenant: TenantId, update: DeviceUpdate) -> dict[str, Any]:
    row = {"tenant": tenant, **asdict(update)}
    row["state"] = str(update.state)
    row["reason"] = update.reason[:200]
    previous = asdict(update.previous) if update.previous else None
    if previous is not None:
        previous["assigned_at"] = previous["assigned_at"].isoformat()
    row["previous"] = json.dumps(previous)
    return row


def _update(row: Mapping[Any, Any]) -> DeviceUpdate:
    values = {name: row[name] for name in DeviceUpdate.__dataclass_fields__}
    values["state"] = UpdateState(row["state"])
    previous = json.loads(row["previous"])
    if previous is not None:
        previous = Assigned(**{**previous, "assigned_at": datetime.fromisoformat(previous["assigned_at"])})
    values["previous"] = previous
    return DeviceUpdate(**values)


def _assigned(row: Mapping[Any, Any]) -> Assigned:
    return Assigned(**{name: row[name] for name in Assigned.__dataclass_fields__})
