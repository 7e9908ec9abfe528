"""What the console's pages show, asked from the domains: one function per page, values in views.py. Device pages: device_views.py."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fleet import audit, db, loop, parts
from fleet.audit import Entry
from fleet.campaigns import service as campaigns
from fleet.campaigns.model import BAD, DECIDED, CampaignState, UpdateState, meaning_of
from fleet.campaigns.service import Progress
from fleet.db import Database
from fleet.devices import groups
from fleet.devices import service as devices
from fleet.devices.model import Device
from fleet.governance import service as governance
from fleet.governance.approvals import check_decider
from fleet.governance.model import Approval, ApprovalState
from fleet.monitoring import drift_service
from fleet.monitoring import service as monitoring
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.drift_model import OPEN_STATES, AlarmState
from fleet.monitoring.model import Health
from fleet.parts import Standstill
from fleet.registry import service as registry_service
from fleet.registry import store as registry_store
from fleet.registry.model import ModelVersion, Release
from fleet.registry.service import Registry
from fleet.web import device_views
from fleet.web.admin.campaigns import total
from fleet.web.auth import Caller
from fleet.web.device_views import DeviceQuery
from fleet.web.services import Services
from fleet.web.views import (
    ActionView,
    ApprovalPage,
    ApprovalRow,
    ApprovalsView,
    AuditPage,
    AuditRow,
    CampaignPage,
    CampaignRow,
    CampaignsView,
    ConditionView,
    DeviceFilterView,
    DevicesView,
    FailureView,
    FileView,
    HistoryStep,
    HomeView,
    ModelLineView,
    ModelsView,
    PartDigest,
    ReleaseRow,
    ReleaseView,
    SelectView,
    SignatureView,
    TravelView,
    UpdateView,
    VerifiedView,
)
from protocol.errors import ForbiddenError, NotFoundError, TrustError
from protocol.ids import DeviceId, LineName, ReleaseVersion, TenantId
from protocol.messages import Presence

PROBLEMS_SHOWN, EVENTS_SHOWN, CAMPAIGNS_SHOWN, APPROVALS_SHOWN = 12, 8, 200, 500
#: Devices of a campaign listed on its page.
UPDATES_SHOWN = 500
AUDIT_SHOWN = 100
ALARMS_COUNTED = 999
#: Devices whose state is read in one query.
PORTION = 500


# --- Home ---


def home(registry: Registry, caller: Caller) -> HomeView:
    """Is anything wrong now? Raises: UnavailableError."""
    database = registry.database
    counts = monitoring.count_views(database, caller.tenant)
    everything = devices.count_devices(database, caller.tenant)
    by_health: Counter[Health] = Counter()
    for (_, health), count in counts.items():
        by_health[health] += count
    not_offline = sum(count for (presence, _), count in counts.items() if presence is not Presence.OFFLINE)
    problems = _problems(database, caller.tenant, by_health)
    events = monitoring.list_events(database, caller.tenant, limit=EVENTS_SHOWN)
    return HomeView(
        total=everything,
        failed=by_health[Health.FAILED],
        degraded=by_health[Health.DEGRADED],
        offline=max(0, everything - not_offline),
        problems=tuple(problems[:PROBLEMS_SHOWN]),
        more_problems=len(problems) > PROBLEMS_SHOWN,
        approvals=approvals(database, caller).waiting,
        campaigns=tuple(row for row in campaign_list(database, caller).rows if row.state in {"running", "paused"}),
        events=tuple(device_views.event_view(row) for row in events),
        alarms=len(drift_service.list_alarms(database, caller.tenant, states=tuple(OPEN_STATES), limit=ALARMS_COUNTED)),
        server=tuple(
            ConditionView(one.code, one.severity, one.text, None, one.advice) for one in registry.key_status.alarms(registry.clock.now())
        ),
    )


def _problems(database: Database, tenant: TenantId, by_health: Counter[Health]) -> list[ConditionView]:
    found: list[ConditionView] = []
    for health in (Health.FAILED, Health.DEGRADED):
        if not by_health[health] or len(found) > PROBLEMS_SHOWN:
            continue
        rows = device_views.list_rows(database, tenant, DeviceQuery(health=str(health)), after=None, limit=PROBLEMS_SHOWN + 1)
        views = monitoring.list_views(database, tenant, [DeviceId(row.device) for row in rows])
        for device, view in views.items():
            found += [one for one in device_views.condition_views(view.conditions, device=device) if one.severity != "info"]
    return found


# --- Devices ---


def device_list(
    database: Database, caller: Caller, query: DeviceQuery, *, after: str | None, limit: int, query_string: str = "", next_url: str = ""
) -> DevicesView:
    """One page of devices; `next_url` is used when there are more. Raises: UnavailableError."""
    rows = device_views.list_rows(database, caller.tenant, query, after=after, limit=limit + 1)
    group_names = tuple(group.name for group, _ in groups.list_groups(database, caller.tenant))
    site_names = tuple(site.name for site in groups.list_sites(database, caller.tenant))
    types = tuple(one.name for one in groups.list_device_types(database, caller.tenant))
    selects = (
        SelectView("group", "Group", group_names, query.group),
        SelectView("site", "Site", site_names, query.site),
        SelectView("device_type", "Device type", types, query.device_type),
        SelectView("presence", "Presence", tuple(str(one) for one in Presence), query.presence),
        SelectView("health", "Health", tuple(str(one) for one in Health), query.health),
    )
    shown = DeviceFilterView(query.text, query.group, query.site, query.device_type, query.presence, query.health)
    return DevicesView(
        rows=tuple(rows[:limit]),
        filter=shown,
        selects=selects,
        is_filtered=query != DeviceQuery(),
        query=query_string,
        next_url=next_url.format(after=rows[limit - 1].device) if len(rows) > limit else "",
        first_url="/devices" if after else "",
    )


# --- Models ---


def model_list(registry: Registry, caller: Caller) -> ModelsView:
    """What may ship? Raises: UnavailableError."""
    running = _running(registry.database, caller.tenant)
    releases = registry_service.list_releases(registry, caller.tenant)
    decided = {one.approval: one for one in governance.list_approvals(registry.database, caller.tenant, limit=APPROVALS_SHOWN)}
    models = {one.id: one for one in registry_service.list_model_versions(registry, caller.tenant)}
    with registry.database.reading() as tx:
        signatures = {release.id: len(_key_ids(registry_store.find_signed(tx, release))) for release in releases}
    lines = []
    for line in registry_service.list_lines(registry, caller.tenant):
        own = [release for release in releases if release.line == line.line]
        rows = tuple(_release_row(release, running, decided, signatures[release.id], line.floor) for release in own)
        lines.append(ModelLineView(line.line, _task(own, models), sum(row.running for row in rows), rows))
    return ModelsView(tuple(lines))


def release(registry: Registry, caller: Caller, line: str, version: str) -> ReleaseView:
    """One release with its way. Raises: NotFoundError."""
    found = registry_service.get_release(registry, caller.tenant, LineName(line), ReleaseVersion(version))
    asked = governance.list_approvals(registry.database, caller.tenant, subject=("release", found.id), limit=20)
    with registry.database.reading() as tx:
        keys = _key_ids(registry_store.find_signed(tx, found))
    signatures = tuple(SignatureView(key, "", found.signed_at) for key in keys)
    return ReleaseView(
        line=found.line,
        version=found.version,
        state=str(found.state),
        counter=found.counter,
        created_by=_name(found.created_by),
        created_at=found.created_at,
        running=_running(registry.database, caller.tenant)[found.line, found.version],
        files=tuple(
            FileView(variant.variant, variant.runtime, tuple(variant.device_types), file.name, file.length, file.sha256)
            for variant in found.variants
            for file in variant.files
        ),
        facts=_release_facts(registry, found),
        approvals=tuple(_approval_row(one, caller) for one in asked),
        signatures=signatures,
        steps=_release_steps(found, asked),
        travels=_travels(registry, found),
        floor=registry_service.floors(registry, caller.tenant)[found.line],
    )


def _travels(registry: Registry, found: Release) -> tuple[TravelView, ...]:
    deltas = loop.list_deltas(registry, found.tenant, found.line, found.version)
    made = [
        TravelView(
            one.variant,
            one.file.name,
            one.base_release,
            one.devices,
            str(one.delta.state),
            one.delta.length,
            one.file.length,
            one.delta.reason,
        )
        for one in deltas
    ]
    return tuple(sorted(made, key=lambda one: (one.variant, one.file, not one.base, -one.devices)))


def _release_row(
    found: Release, running: Counter[tuple[str, str]], decided: dict[str, Approval], signatures: int, floor: int
) -> ReleaseRow:
    approval = decided.get(found.approval or "")
    return ReleaseRow(
        version=found.version,
        state=str(found.state),
        variants=tuple(variant.variant for variant in found.variants),
        size=sum(variant.length for variant in found.variants),
        running=running[found.line, found.version],
        approved_by=_name(approval.decided_by or "") if approval and approval.state is ApprovalState.APPROVED else "",
        signatures=signatures,
        threshold=0,
        created_by=_name(found.created_by),
        created_at=found.created_at,
        is_below_floor=found.counter < floor,
    )


def _running(database: Database, tenant: TenantId) -> Counter[tuple[str, str]]:
    """How many devices say that a release is what they run."""
    counts: Counter[tuple[str, str]] = Counter()
    last: DeviceId | None = None
    while True:
        portion: Sequence[Device] = devices.list_devices(database, tenant, after=last, limit=PORTION)
        with database.reading() as tx:
            states = monitoring_store.list_states_of(tx, tenant, [device.device for device in portion], "model")
        for state in states.values():
            counts.update((line.line, line.installed) for line in device_views.line_views(state, ()) if line.installed)
        if len(portion) < PORTION:
            return counts
        last = portion[-1].device


def _task(own: Sequence[Release], models: dict[str, ModelVersion]) -> str:
    for found in own:
        for variant in found.variants:
            if variant.model_id in models:
                return str(json.loads(models[variant.model_id].draft_json).get("task", ""))
    return ""


def _release_facts(registry: Registry, found: Release) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str]] = []
    for variant in found.variants:
        facts.append((f"Model of {variant.variant}", variant.model_id))
        try:
            model = registry_service.get_model_version(registry, found.tenant, variant.model_id)
        except NotFoundError:
            continue
        facts.append(("Imported", f"{_name(model.created_by)}, {model.created_at:%Y-%m-%d %H:%M} UTC"))
        lineage = json.loads(model.draft_json).get("lineage") or {}
        facts += [
            (name.replace("_", " ").capitalize(), _plain(value)) for name, value in lineage.items() if value not in (None, "", [], {})
        ]
        if model.note:
            facts.append(("Model note", model.note))
    if found.note:
        facts.append(("Note", found.note))
    facts.append(("Content", found.content_digest))
    return tuple(facts)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _release_steps(found: Release, asked: Iterable[Approval]) -> tuple[HistoryStep, ...]:
    steps = [HistoryStep("created", _name(found.created_by), found.created_at, found.note)]
    for approval in asked:
        steps.append(HistoryStep("proposed", _name(approval.created_by), approval.created_at, ""))
        if approval.decided_at is not None:
            kind = "good" if approval.state is ApprovalState.APPROVED else "bad"
            steps.append(HistoryStep(str(approval.state), _name(approval.decided_by or ""), approval.decided_at, approval.reason, kind))
    if found.signed_at is not None:
        steps.append(HistoryStep("signed", "key of the line", found.signed_at, "", "good"))
    if found.published_at is not None:
        steps.append(HistoryStep("published", "image repository", found.published_at, "", "good"))
    return tuple(sorted(steps, key=lambda step: step.at))


def _key_ids(signed: bytes | None) -> list[str]:
    if signed is None:
        return []
    return [str(one["keyid"]) for one in json.loads(signed).get("signatures", [])]


# --- Approvals ---


def approvals(database: Database, caller: Caller) -> ApprovalsView:
    """What waits for me? Raises: UnavailableError."""
    found = [_approval_row(one, caller) for one in governance.list_approvals(database, caller.tenant, limit=APPROVALS_SHOWN)]
    return ApprovalsView(tuple(row for row in found if row.state == "pending"), tuple(row for row in found if row.state != "pending"))


def approval(database: Database, caller: Caller, approval_id: str) -> ApprovalPage:
    """One approval, to decide. Raises: NotFoundError."""
    found = governance.get_approval(database, caller.tenant, approval_id)
    is_waiting = found.state is ApprovalState.PENDING
    why_not = _why_not(found, caller)
    return ApprovalPage(
        id=found.approval,
        title=found.title,
        state=str(found.state),
        subject=found.subject_id,
        subject_url=f"/models/{found.subject_id}" if found.subject_kind == "release" else "",
        digests=tuple(PartDigest(name, digest) for name, digest in sorted(found.digests.items())),
        created_by=_name(found.created_by),
        created_at=found.created_at,
        decided_by=_name(found.decided_by or ""),
        decided_at=found.decided_at,
        reason=found.reason,
        revision=found.revision,
        is_waiting=is_waiting,
        may_decide=is_waiting and not why_not,
        why_not=why_not,
    )


def _why_not(found: Approval, caller: Caller) -> str:
    try:
        check_decider(found, by=caller.actor, permissions=caller.permissions)
    except ForbiddenError as error:
        return str(error)
    return ""


def _approval_row(found: Approval, caller: Caller) -> ApprovalRow:
    return ApprovalRow(
        id=found.approval,
        title=found.title,
        state=str(found.state),
        created_by=_name(found.created_by),
        created_at=found.created_at,
        decided_by=_name(found.decided_by or ""),
        decided_at=found.decided_at,
        reason=found.reason,
        is_own=str(caller.actor) in found.authors | {found.created_by},
    )


# --- Campaigns ---


def campaign_list(database: Database, caller: Caller) -> CampaignsView:
    """What moves? Raises: UnavailableError."""
    found = campaigns.list_progress(database, caller.tenant, limit=CAMPAIGNS_SHOWN)
    return CampaignsView(tuple(_campaign_row(one) for one in found))


def campaign(database: Database, caller: Caller, campaign_id: str) -> CampaignPage:
    """Should I go on? Raises: NotFoundError."""
    progress = campaigns.get_progress(database, caller.tenant, campaign_id)
    updates = campaigns.list_updates(database, caller.tenant, campaign_id, limit=UPDATES_SHOWN)
    row = _campaign_row(progress)
    return CampaignPage(
        id=row.id,
        name=row.name,
        line=row.line,
        release=row.release,
        state=row.state,
        reason=progress.campaign.reason or f"phase {progress.campaign.phase + 1} of {len(progress.campaign.phases)}",
        total=row.total,
        updated=row.updated,
        failed=row.failed,
        moving=row.total - total(progress.counts, DECIDED),
        revision=progress.campaign.revision,
        failures=tuple(
            FailureView(
                group.reason or "unknown", group.count, group.example.device, group.example.text, meaning_of(progress.campaign, group)
            )
            for group in campaigns.list_failures(database, caller.tenant, campaign_id)
        ),
        devices=tuple(UpdateView(one.device, str(one.state), one.reason, one.text, one.updated_at) for one in updates),
        actions=_campaign_actions(progress, row) if caller.may("campaigns:write") else (),
    )


def _campaign_row(progress: Progress) -> CampaignRow:
    found, counts = progress.campaign, progress.counts
    return CampaignRow(
        id=found.campaign,
        name=f"{found.line} {found.version} to {found.group}",
        line=found.line,
        release=found.version,
        state=str(found.state),
        total=total(counts),
        updated=total(counts, frozenset({UpdateState.UPDATED})),
        failed=total(counts, BAD),
        created_by=_name(found.created_by),
        created_at=found.created_at,
    )


def _campaign_actions(progress: Progress, row: CampaignRow) -> tuple[ActionView, ...]:
    left = row.total - total(progress.counts, DECIDED)
    abort = ActionView("abort", "Abort", f"the campaign is over; {left} of {row.total} devices get back what they had.", is_dangerous=True)
    match progress.campaign.state:
        case CampaignState.RUNNING:
            return (ActionView("pause", "Pause", "no further device is told; updates under way go on.", is_dangerous=False), abort)
        case CampaignState.PAUSED:
            return (ActionView("resume", "Resume", f"{left} of {row.total} devices are not done.", is_dangerous=False), abort)
        case _:
            return ()


# --- Audit ---


def audit_log(database: Database, caller: Caller, *, before: int | None, verify: bool) -> AuditPage:
    """Who did what? Raises: UnavailableError."""
    with database.reading() as tx:
        found = audit.list_entries(tx, caller.tenant, before=before, limit=AUDIT_SHOWN + 1)
    rows = tuple(_audit_row(entry) for entry in found[:AUDIT_SHOWN])
    page = AuditPage(rows, first_url="/audit" if before else "")
    if len(found) > AUDIT_SHOWN:
        page = replace(page, next_url=f"/audit?before={rows[-1].number}")
    return replace(page, verified=_verified(database, caller)) if verify else page


def _verified(database: Database, caller: Caller) -> VerifiedView:
    try:
        with database.reading() as tx:
            head = audit.verify(tx, caller.tenant)
    except TrustError as error:
        return VerifiedView("bad", str(error))
    return VerifiedView("good", f"{head.number} entries, none changed. Keep {head.number}:{head.hash} elsewhere to prove it later.")


def _audit_row(entry: Entry) -> AuditRow:
    return AuditRow(entry.number, entry.at, str(entry.actor), entry.action, entry.subject, entry.reason)


def _name(actor: str) -> str:
    """A person by name; others with their kind, "service:signer"."""
    return actor.removeprefix("person:")


def standstills(services: Services) -> tuple[Standstill, ...]:
    """Which parts of the server work nowhere."""
    with services.database.reading() as tx:
        return tuple(parts.list_standstills(tx, services.tenant, now=db.clock(tx)))


def count_waiting(database: Database, tenant: TenantId) -> dict[str, int]:
    """What waits for somebody, by its entry in the rail."""
    return {
        "Approvals": len(governance.list_approvals(database, tenant, state=ApprovalState.PENDING, limit=99)),
        "Alarms": len(drift_service.list_alarms(database, tenant, states=(AlarmState.RAISED,), limit=99)),
    }
