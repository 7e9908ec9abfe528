"""What people and the loop do with campaigns: create, pause, resume, abort, tick, offer again, and taking signed reports.

Every step of a tick is one transaction that holds the campaign's row and is safe to redo: whatever crashes, the next tick decides anew
from what is stored, and nothing beyond the open phase is ever assigned.
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fleet import audit, db
from fleet.audit import Actor, ActorKind
from fleet.campaigns import store
from fleet.campaigns.model import (
    DECIDED,
    Assigned,
    Campaign,
    CampaignState,
    ComparisonPlan,
    DeviceUpdate,
    FailureGroup,
    Phase,
    ReportChannel,
    ReportedSlot,
    StoredReport,
    UpdateState,
    check_comparison,
    check_phases,
    judge,
    judge_candidate,
)
from fleet.campaigns.planner import Counts, Rank, Step, decide, phase_of_newcomer, spread
from fleet.devices import store as device_store
from fleet.devices.model import Device, DeviceFilter, DeviceIdentity, DeviceState
from fleet.registry import deltas
from fleet.registry import store as registry_store
from fleet.registry.model import Release, ReleaseDelta, ReleaseState
from protocol.errors import ConflictError, ForbiddenError, InvalidError, TrustError
from protocol.ids import DeviceId, DeviceTypeName, Digest, GroupName, LineName, ReleaseVersion, TenantId, new_id
from protocol.messages import DsseEnvelope, ReportAnswer, VersionReport
from protocol.reports import verify_report

#: The loop's own name in the audit log.
LOOP = Actor(ActorKind.LOOP, "campaigns")
#: Devices assigned in one transaction, so that no tick holds the database for long.
BATCH = 500
#: Steps that one tick goes in one campaign.
MAX_STEPS = 200
#: As many as a device's probe asks for before it commits, unless the release asks for less (UPDATES 4.4).
DEFAULT_MIN_INFERENCES = 1000
#: No verdict for a day: the place is freed (UPDATES 4.6), seconds.
DEFAULT_TIMEOUT_S = 86_400
#: Reports of bases that are new wait so long, so that a phase's devices make one job, seconds.
DELTAS_DELAY_S = 120.0
_PAGE = 1000

#: Called in the transaction that changes what devices shall run: renews what the director says and wakes the devices.
OnChanged = Callable[[db.Connection, TenantId, Sequence[DeviceId]], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """A campaign with its counts."""

    campaign: Campaign
    counts: Counts


@dataclass(frozen=True, slots=True)
class Accepted:
    """A report that was taken: the answer for the device and what changed in its campaigns."""

    answer: ReportAnswer
    report: VersionReport
    changed: tuple[DeviceUpdate, ...]
    #: Deltas that nobody is offered any more, because this device could not use them; their bytes are to be deleted.
    withdrawn: tuple[ReleaseDelta, ...] = ()


def create_campaign(
    database: db.Database,
    *,
    tenant: TenantId,
    by: Actor,
    line: LineName,
    version: ReleaseVersion,
    group: GroupName,
    now: datetime,
    phases: tuple[Phase, ...] = (Phase(),),
    min_inferences: int = DEFAULT_MIN_INFERENCES,
    timeout_s: int = DEFAULT_TIMEOUT_S,
    full_bytes: int | None = None,
    again: bool = False,
    comparison: ComparisonPlan | None = None,
    reason: str = "",
) -> Campaign:
    """Start bringing a published release to the devices of a group that it fits; the first tick assigns.

    `comparison`: to have it answer beside what they run, or in turn with that; None: to run it.

    The same for a planned rollback: an earlier release needs no new signature. `full_bytes`: what each device may fetch in full over a
    metered link; None leaves it to the device's own policy. `again`: devices that refused or failed the release try it once more.
    Raises: NotFoundError; InvalidError; ConflictError when the release is not published, no device fits, or another campaign of the line
    is under way in the group; with code "below-floor" when devices would refuse it because the line's floor was raised.
    """
    check_phases(phases)
    plan = check_comparison(comparison or ComparisonPlan(), now)
    if min_inferences < 0 or timeout_s < 1:
        raise InvalidError(f"min_inferences {min_inferences} and timeout {timeout_s} s; wanted at least 0 and at least 1 s.")
    if full_bytes is not None and not 0 <= full_bytes < 2**53:
        raise InvalidError(f"full_bytes is {full_bytes}; wanted a number of bytes from 0 on.")
    with database.transaction() as tx:
        release = registry_store.get_release(tx, tenant, line, version)
        if release.state is not ReleaseState.PUBLISHED:
            raise ConflictError(f"Release {release.id} is {release.state}; only a published release is brought to devices.")
        _check_floor(tx, tenant, release)
        device_store.get_group(tx, tenant, group, is_held=True)
        if other := store.find_open_campaign_of(tx, tenant, line, group, is_candidate=plan.is_candidate):
            raise ConflictError(f"Campaign {other} of line {line} is under way in group {group}.", hint="Wait for it, or abort it first.")
        fitting = _fitting_devices(tx, tenant, group, release)
        campaign = Campaign(
            tenant=tenant,
            campaign=new_id("ca"),
            line=line,
            version=version,
            group=group,
            state=CampaignState.RUNNING,
            phases=phases,
            phase=0,
            phase_since=now,
            min_inferences=min_inferences,
            timeout_s=timeout_s,
            created_at=now,
            created_by=str(by),
            revision=1,
            full_bytes=full_bytes,
            again=again,
            comparison=plan,
        )
        order = spread(campaign.campaign, fitting, [phase.until_percent for phase in phases])
        updates = [DeviceUpdate(campaign.campaign, device, phase, UpdateState.WAITING, now) for device, phase in sorted(order.items())]
        store.add_campaign(tx, campaign, updates)
        detail = {"release": release.id, "group": group, "devices": len(updates), "phases": len(phases)}
        detail |= {"full_bytes": full_bytes} if full_bytes is not None else {}
        detail |= {"as": str(plan.run_as), "share": plan.share, "cpu": plan.cpu} if plan.is_candidate else {}
        _record(tx, campaign, by, "campaign.created", now, reason=reason, detail=detail)
        deltas.request(tx, tenant=tenant, line=line, now=now)
    return campaign


def _check_floor(tx: db.Connection, tenant: TenantId, release: Release) -> None:
    """Nothing when devices may still install the release (UPDATES 1.3, R1): else each of them would refuse it as "old-release"."""
    rank = _rank(tx, tenant, release)
    if rank.is_below_floor:
        raise ConflictError(
            f"Release {release.id} has counter {rank.counter}; the floor of line {release.line} was raised to {rank.floor}: "
            "every device would refuse it.",
            hint=f"Take a release with counter {rank.floor} or higher (mooring release list), "
            "or release the same content anew: mooring release create.",
            code="below-floor",
        )


def _rank(tx: db.Connection, tenant: TenantId, release: Release) -> Rank:
    line = registry_store.find_line(tx, tenant, release.line)
    return Rank(release.counter, line.floor if line is not None else 0)


def get_progress(database: db.Database, tenant: TenantId, campaign: str) -> Progress:
    """The campaign with its counts. Raises: NotFoundError."""
    with database.reading() as tx:
        found = store.get_campaign(tx, tenant, campaign)
        return Progress(found, store.count_updates(tx, found))


def list_progress(database: db.Database, tenant: TenantId, *, limit: int = 50) -> list[Progress]:
    """Campaigns with their counts, the newest first."""
    with database.reading() as tx:
        return [Progress(found, store.count_updates(tx, found)) for found in store.list_campaigns(tx, tenant, limit=limit)]


def list_updates(
    database: db.Database, tenant: TenantId, campaign: str, *, states: Collection[UpdateState] | None = None, limit: int = 500
) -> list[DeviceUpdate]:
    """Devices of the campaign and how far they are. Raises: NotFoundError."""
    with database.reading() as tx:
        return store.list_updates(tx, store.get_campaign(tx, tenant, campaign), states=states, limit=limit)


def list_failures(database: db.Database, tenant: TenantId, campaign: str) -> list[FailureGroup]:
    """Why devices of the campaign failed: grouped by cause, the most frequent first. Raises: NotFoundError."""
    with database.reading() as tx:
        return store.list_failures(tx, store.get_campaign(tx, tenant, campaign))


def list_device_updates(database: db.Database, tenant: TenantId, device: DeviceId) -> list[DeviceUpdate]:
    """How the device got what it has: its ways in campaigns, the latest first."""
    with database.reading() as tx:
        return store.list_updates_of_device(tx, tenant, device)


def list_assigned(database: db.Database, tenant: TenantId, device: DeviceId) -> list[Assigned]:
    """What the device shall run, by line."""
    with database.reading() as tx:
        return store.list_assigned(tx, tenant, device)


def find_report(database: db.Database, tenant: TenantId, device: DeviceId) -> StoredReport | None:
    """The device's latest verified report, or None."""
    with database.reading() as tx:
        return store.find_report(tx, tenant, device)


# --- what people do with a campaign ---


def pause(
    database: db.Database, *, tenant: TenantId, campaign: str, by: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Campaign:
    """Assign nothing further until resumed. Raises: NotFoundError; ConflictError; StaleRevisionError."""
    return _move(database, tenant, campaign, CampaignState.PAUSED, "campaign.paused", by, now, reason, revision)


def resume(
    database: db.Database, *, tenant: TenantId, campaign: str, by: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Campaign:
    """Go on.

    Raises: NotFoundError; ConflictError, with code "below-floor" while devices would refuse the release; StaleRevisionError.
    """

    def check(tx: db.Connection, found: Campaign) -> None:
        _check_floor(tx, tenant, registry_store.get_release(tx, tenant, found.line, found.version))

    return _move(database, tenant, campaign, CampaignState.RUNNING, "campaign.resumed", by, now, reason, revision, check)


def abort(
    database: db.Database,
    *,
    tenant: TenantId,
    campaign: str,
    by: Actor,
    now: datetime,
    reason: str,
    on_changed: OnChanged,
    revision: int | None = None,
) -> Campaign:
    """End it: devices without a verdict are given back what they had. Raises: NotFoundError; ConflictError; StaleRevisionError."""
    with database.transaction() as tx:
        found = store.get_campaign(tx, tenant, campaign, is_held=True)
        db.check_revision(found.revision, revision, what=f"Campaign {campaign}")
        over = found.moved(CampaignState.ABORTED, now=now, reason=reason)
        store.save_campaign(tx, over)
        _take_back(tx, over, now, on_changed)
        _record(tx, over, by, "campaign.aborted", now, reason=reason)
    return over


def offer_again(
    database: db.Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    line: LineName,
    by: Actor,
    now: datetime,
    reason: str,
    on_changed: OnChanged,
) -> Assigned:
    """Raise the attempt of what is assigned, which lifts the device's block.

    Raises: NotFoundError; ConflictError when nothing is assigned, the device has what is assigned, or (code "below-floor") what is assigned
    is below the line's raised floor.
    """
    with database.transaction() as tx:
        device_store.get_device(tx, tenant, device)
        assigned = find_assigned(tx, tenant, device, line)
        _check_floor(tx, tenant, registry_store.get_release(tx, tenant, line, assigned.version))
        update = store.find_update(tx, tenant, assigned.campaign, device)
        if update is not None and update.state is UpdateState.UPDATED:
            raise ConflictError(
                f"{device} runs {line} {assigned.version}, and that is what it is assigned.",
                hint="A release that it refused in a campaign that is over comes back with: mooring campaign create --again",
            )
        again = replace(assigned, attempt=assigned.attempt + 1, assigned_at=now)
        store.save_assigned(tx, tenant, [again])
        if update is not None and update.state is not UpdateState.SUPERSEDED:
            fresh = replace(update, state=UpdateState.ASSIGNED, attempt=again.attempt, reason="", text="", assigned_at=now, updated_at=now)
            store.save_updates(tx, tenant, [fresh])
        on_changed(tx, tenant, [device])
        detail = {"line": line, "release": assigned.version, "attempt": again.attempt}
        subject = f"device/{device}"
        audit.append(tx, tenant=tenant, actor=by, action="update.offered-again", subject=subject, now=now, reason=reason, detail=detail)
    return again


def find_assigned(tx: db.Connection, tenant: TenantId, device: DeviceId, line: LineName) -> Assigned:
    """What the line of the device shall run. Raises: ConflictError when nothing is assigned."""
    assigned = store.find_assigned(tx, tenant, device, line)
    if assigned is None:
        raise ConflictError(f"Nothing is assigned to line {line} of device {device}.", hint="Start a campaign.")
    return assigned


# --- the tick ---


def tick(database: db.Database, *, now: datetime, on_changed: OnChanged) -> int:
    """Bring every campaign under way as far as it may go now; returns how many steps were taken. Safe to redo, safe to cut."""
    with database.reading() as tx:
        open_campaigns = store.list_open_campaigns(tx)
    taken = 0
    for tenant, campaign in open_campaigns:
        for _ in range(MAX_STEPS):
            with database.transaction() as tx:
                step = _step(tx, tenant, campaign, now, on_changed)
            if step is Step.HOLD:
                break
            taken += 1
    return taken


def welcome(database: db.Database, *, now: datetime, on_changed: OnChanged) -> int:
    """Let devices that came to a group later join what the group runs on the lines of their pipelines; returns how many joined.

    That is the newest campaign of line and group that runs or succeeded. Safe to redo, safe to cut: who is in it does not join again.
    """
    with database.reading() as tx:
        joinable = store.list_joinable(tx)
    joined = 0
    for tenant, campaign, device_type in joinable:
        with database.transaction() as tx:
            joined += _join(tx, tenant, campaign, device_type, now, on_changed)
    return joined


def _join(tx: db.Connection, tenant: TenantId, name: str, device_type: DeviceTypeName, now: datetime, on_changed: OnChanged) -> int:
    campaign = store.get_campaign(tx, tenant, name, is_held=True)
    phase = phase_of_newcomer(campaign)
    release = registry_store.get_release(tx, tenant, campaign.line, campaign.version)
    is_fitting = any(device_type in variant.device_types for variant in release.variants)
    if phase is None or not is_fitting or release.state is not ReleaseState.PUBLISHED or _rank(tx, tenant, release).is_below_floor:
        return 0
    devices = store.list_newcomers(tx, campaign, device_type, limit=BATCH)
    if devices:
        store.save_updates(tx, tenant, [DeviceUpdate(name, device, phase, UpdateState.WAITING, now) for device in devices])
        _record(tx, campaign, LOOP, "campaign.joined", now, detail={"devices": devices, "phase": phase + 1})
        if campaign.is_over:
            _assign(tx, campaign, now, on_changed)
    return len(devices)


def _step(tx: db.Connection, tenant: TenantId, name: str, now: datetime, on_changed: OnChanged) -> Step:
    campaign = store.get_campaign(tx, tenant, name, is_held=True)
    if campaign.is_over:
        return Step.HOLD
    _time_out(tx, campaign, now)
    rank = _rank(tx, tenant, registry_store.get_release(tx, tenant, campaign.line, campaign.version))
    decision = decide(campaign, store.count_updates(tx, campaign), now, rank)
    match decision.step:
        case Step.ASSIGN:
            _assign(tx, campaign, now, on_changed)
        case Step.ADVANCE:
            advanced = campaign.advanced(now=now)
            store.save_campaign(tx, advanced)
            _record(tx, advanced, LOOP, "campaign.advanced", now, detail={"phase": advanced.phase + 1})
        case Step.PAUSE:
            paused = campaign.moved(CampaignState.PAUSED, now=now, reason=decision.reason)
            store.save_campaign(tx, paused)
            _record(tx, paused, LOOP, "campaign.paused", now, reason=decision.reason)
        case Step.FAIL:
            failed = campaign.moved(CampaignState.FAILED, now=now, reason=decision.reason)
            store.save_campaign(tx, failed)
            _take_back(tx, failed, now, on_changed)
            _record(tx, failed, LOOP, "campaign.failed", now, reason=decision.reason)
        case Step.SUCCEED:
            succeeded = campaign.moved(CampaignState.SUCCEEDED, now=now)
            store.save_campaign(tx, succeeded)
            if campaign.comparison.is_candidate:
                _take_back(tx, succeeded, now, on_changed)
            _record(tx, succeeded, LOOP, "campaign.succeeded", now)
        case Step.HOLD:
            pass
    return decision.step


def _assign(tx: db.Connection, campaign: Campaign, now: datetime, on_changed: OnChanged) -> None:
    waiting = store.list_updates(tx, campaign, states=[UpdateState.WAITING], until_phase=campaign.phase, limit=BATCH)
    attempts = store.find_attempts(tx, campaign, [update.device for update in waiting])
    updates, assigned = [], []
    is_candidate = campaign.comparison.is_candidate
    for update in waiting:
        previous = store.find_assigned(tx, campaign.tenant, update.device, campaign.line, is_candidate=is_candidate)
        if previous is not None:
            _supersede(tx, campaign.tenant, previous, now)
        attempt = max(1, attempts.get(update.device, 0) + campaign.again)
        new = Assigned(update.device, campaign.line, campaign.version, new_id("as"), attempt, campaign.campaign, now)
        assigned.append(new)
        updates.append(
            replace(
                update,
                state=UpdateState.ASSIGNED,
                assignment=new.assignment,
                attempt=attempt,
                assigned_at=now,
                updated_at=now,
                previous=previous,
            )
        )
    store.save_assigned(tx, campaign.tenant, assigned, is_candidate=is_candidate)
    store.save_updates(tx, campaign.tenant, updates)
    on_changed(tx, campaign.tenant, [item.device for item in assigned])
    detail = {"phase": campaign.phase + 1, "devices": len(assigned)}
    _record(tx, campaign, LOOP, "campaign.assigned", now, detail=detail)


def _supersede(tx: db.Connection, tenant: TenantId, previous: Assigned, now: datetime) -> None:
    update = store.find_update(tx, tenant, previous.campaign, previous.device)
    if update is not None and update.state not in DECIDED:
        store.save_updates(tx, tenant, [replace(update, state=UpdateState.SUPERSEDED, updated_at=now)])


def _time_out(tx: db.Connection, campaign: Campaign, now: datetime) -> None:
    before = now - timedelta(seconds=campaign.timeout_s)
    late = store.list_updates(tx, campaign, states=[UpdateState.ASSIGNED], assigned_before=before, limit=BATCH)
    if not late:
        return
    text = f"No verdict within {campaign.timeout_s} s."
    said = {update.device: f" It said last: {update.reason} {update.text}".rstrip() for update in late if update.reason}
    over = [replace(u, state=UpdateState.TIMED_OUT, reason="timed_out", text=text + said.get(u.device, ""), updated_at=now) for u in late]
    store.save_updates(tx, campaign.tenant, over)
    detail = {"devices": [update.device for update in late]}
    _record(tx, campaign, LOOP, "campaign.devices-timed-out", now, reason=text, detail=detail)


def _take_back(tx: db.Connection, campaign: Campaign, now: datetime, on_changed: OnChanged) -> None:
    """Devices of the campaign that are not updated get back what they had been assigned, or are told nothing any more.

    A campaign that compares is over on all of its devices: none of them has a candidate any more.
    """
    undecided = {UpdateState.WAITING, UpdateState.ASSIGNED}
    is_candidate = campaign.comparison.is_candidate
    states = None if is_candidate else [*undecided, UpdateState.FAILED, UpdateState.TIMED_OUT]
    touched: list[DeviceId] = []
    changed: list[DeviceUpdate] = []
    for update in store.list_updates(tx, campaign, states=states, limit=10**9):
        current = store.find_assigned(tx, campaign.tenant, update.device, campaign.line, is_candidate=is_candidate)
        if current is not None and current.campaign == campaign.campaign:
            if update.previous is not None and not is_candidate:
                store.save_assigned(tx, campaign.tenant, [update.previous])
            else:
                store.delete_assigned(tx, campaign.tenant, update.device, campaign.line, is_candidate=is_candidate)
            touched.append(update.device)
        if update.state in undecided:
            changed.append(replace(update, state=UpdateState.WITHDRAWN, updated_at=now))
    store.save_updates(tx, campaign.tenant, changed)
    on_changed(tx, campaign.tenant, touched)


# --- signed reports ---


def accept_report(
    database: db.Database,
    *,
    identity: DeviceIdentity,
    envelope: DsseEnvelope,
    now: datetime,
    channel: ReportChannel = ReportChannel.ONLINE,
    brought_by: Actor | None = None,
) -> Accepted:
    """Take a version report of a device: verify, keep, judge its open assignments; all in one transaction.

    A report over HTTPS must carry one of the two nonces given last, else it is kept as stale and counted for nothing; the answer says
    so and carries the nonce to try again with. On a stick there is nobody to give a nonce: the counter alone tells its order.
    Raises: ForbiddenError (code "report-refused") when this device did not sign it, which is written to the audit log; ConflictError
    (code "report-counter") when its counter is not above the last one.
    """
    tenant, device = identity.tenant, identity.device
    try:
        report = _verified(identity, envelope)
    except TrustError as error:
        _record_refusal(database, identity, error, now)
        raise ForbiddenError(f"The version report was refused: {error.message}", code="report-refused") from error
    changed: tuple[DeviceUpdate, ...] = ()
    withdrawn: tuple[ReleaseDelta, ...] = ()
    with database.transaction() as tx:
        last = store.find_report(tx, tenant, device, is_held=True)
        stored = _to_keep(last, report, channel, now)
        if not store.save_report(tx, tenant, stored, envelope.model_dump_json()):
            raise ConflictError(
                f"Report counter {report.report_counter} is not above the last one, {last.report.report_counter if last else '?'}.",
                code="report-counter",
            )
        if brought_by is not None:
            detail = {"report_counter": report.report_counter, "update_state": report.update_state}
            subject = f"device/{device}"
            audit.append(tx, tenant=tenant, actor=brought_by, action="report.imported", subject=subject, now=now, detail=detail)
        if not stored.is_stale:
            changed = _judge_all(tx, identity, report, now)
            _note_slots(tx, identity, report, now)
            withdrawn = _take_back_deltas(tx, identity, report, now)
    answer = ReportAnswer(report_counter=report.report_counter, nonce=stored.nonce, stale=stored.is_stale)
    return Accepted(answer, report, changed, withdrawn)


def _to_keep(last: StoredReport | None, report: VersionReport, channel: ReportChannel, now: datetime) -> StoredReport:
    if channel is ReportChannel.BUNDLE:
        nonce, previous = (last.nonce, last.previous_nonce) if last is not None else ("", "")
        return StoredReport(DeviceId(report.device), report, now, nonce, previous, channel)
    is_fresh = last.is_fresh(report.nonce) if last is not None else not report.nonce
    previous = last.nonce if last is not None else ""
    return StoredReport(DeviceId(report.device), report, now, secrets.token_hex(16), previous, channel, is_stale=not is_fresh)


def _note_slots(tx: db.Connection, device: DeviceIdentity, report: VersionReport, now: datetime) -> None:
    """Keep what the device has; a base that is new may be worth a delta, and may change what it is offered for what it still waits for."""
    by_slot = {
        (one.line, one.slot): ReportedSlot(device.device, LineName(one.line), one.slot, ReleaseVersion(one.release), Digest(one.sha256))
        for one in report.slots
    }
    slots = list(by_slot.values())
    new = store.replace_slots(tx, device.tenant, device.device, slots)
    for line in sorted(new):
        if registry_store.find_line(tx, device.tenant, line) is not None:  # a device may name what it likes
            deltas.request(tx, tenant=device.tenant, line=line, now=now, delay_s=DELTAS_DELAY_S)
    have = {(slot.line, slot.version) for slot in slots}
    assigned = store.list_assigned(tx, device.tenant, device.device) if new else []
    if any(one.line in new and (one.line, one.version) not in have for one in assigned):
        registry_store.mark_orders_stale(tx, device.tenant, [device.device])


def _take_back_deltas(tx: db.Connection, device: DeviceIdentity, report: VersionReport, now: datetime) -> tuple[ReleaseDelta, ...]:
    """Withdraw what the device says it could not use; who waits for the same release is told anew what there is."""
    tenant = device.tenant
    about = [one for one in store.list_assigned(tx, tenant, device.device) if one.assignment == report.assignment]
    if not report.failed_deltas or not about:
        return ()
    found = registry_store.find_signed_order(tx, tenant, device.device)
    order = found[0] if found is not None else None
    line, version, failed = about[0].line, about[0].version, {Digest(name) for name in report.failed_deltas}
    gone = deltas.withdraw_failed(
        tx, tenant=tenant, device=device.device, line=line, order=order, failed=failed, text=f"{report.reason} {report.text}", now=now
    )
    if gone:
        registry_store.mark_orders_stale(tx, tenant, [device.device, *store.list_awaiting(tx, tenant, line, version)])
    return tuple(gone)


def _judge_all(tx: db.Connection, device: DeviceIdentity, report: VersionReport, now: datetime) -> tuple[DeviceUpdate, ...]:
    candidates = store.list_assigned(tx, device.tenant, device.device, is_candidate=True)
    about_candidate = [item for item in candidates if item.assignment == report.assignment]
    all_assigned = about_candidate or store.list_assigned(tx, device.tenant, device.device)
    # the healthy inferences of a report are those of the line that its assignment is about
    about = next((item.line for item in all_assigned if item.assignment == report.assignment), None)
    found = (
        _judge_one(tx, device, assigned, report, now, is_candidate=bool(about_candidate))
        for assigned in all_assigned
        if about in {None, assigned.line}
    )
    return tuple(update for update in found if update is not None)


def _judge_one(
    tx: db.Connection, device: DeviceIdentity, assigned: Assigned, report: VersionReport, now: datetime, *, is_candidate: bool
) -> DeviceUpdate | None:
    """The device's way in the campaign of what it was assigned, when the report changed it."""
    update = store.find_update(tx, device.tenant, assigned.campaign, device.device)
    if update is None or update.assignment != assigned.assignment or update.state in {UpdateState.SUPERSEDED, UpdateState.WITHDRAWN}:
        return None
    campaign = store.get_campaign(tx, device.tenant, assigned.campaign)
    wanted = _wanted_digests(tx, device, assigned)
    if is_candidate:
        verdict = judge_candidate(assigned, wanted, report)
    else:
        verdict = judge(assigned, wanted, report, min_inferences=campaign.min_inferences)
    if verdict.state is None and update.state in DECIDED:
        return None
    new = replace(update, state=verdict.state or update.state, reason=verdict.reason, text=verdict.text, updated_at=now)
    if replace(new, updated_at=update.updated_at) == update:
        return None
    store.save_updates(tx, device.tenant, [new])
    if new.state is not update.state:
        detail = {"campaign": campaign.campaign, "release": f"{assigned.line}/{assigned.version}", "reason": new.reason}
        actor = Actor(ActorKind.DEVICE, device.device)
        subject = f"device/{device.device}"
        audit.append(tx, tenant=device.tenant, actor=actor, action=f"update.{new.state}", subject=subject, now=now, detail=detail)
    return new


def _wanted_digests(tx: db.Connection, device: DeviceIdentity, assigned: Assigned) -> frozenset[Digest]:
    release = registry_store.get_release(tx, device.tenant, assigned.line, assigned.version)
    return frozenset(variant.model_file.sha256 for variant in release.variants if device.device_type in variant.device_types)


def _verified(device: DeviceIdentity, envelope: DsseEnvelope) -> VersionReport:
    key = load_pem_public_key(device.public_key.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError(f"The inventory has no ECDSA key for device {device.device}.", code="report-signature")
    report = verify_report(key, envelope)
    if (report.tenant, report.device) != (device.tenant, device.device):
        raise TrustError(f"The report speaks for {report.tenant}/{report.device}.", code="report-device")
    return report


def _record_refusal(database: db.Database, device: DeviceIdentity, error: TrustError, now: datetime) -> None:
    with database.transaction() as tx:
        audit.append(
            tx,
            tenant=device.tenant,
            actor=Actor(ActorKind.DEVICE, device.device),
            action="report.refused",
            subject=f"device/{device.device}",
            now=now,
            reason=error.message,
            detail={"code": error.code},
        )


# --- parts ---


def _move(
    database: db.Database,
    tenant: TenantId,
    name: str,
    state: CampaignState,
    action: str,
    by: Actor,
    now: datetime,
    reason: str,
    revision: int | None,
    check: Callable[[db.Connection, Campaign], None] = lambda _tx, _campaign: None,
) -> Campaign:
    with database.transaction() as tx:
        found = store.get_campaign(tx, tenant, name, is_held=True)
        db.check_revision(found.revision, revision, what=f"Campaign {name}")
        check(tx, found)
        moved = found.moved(state, now=now, reason=reason)
        store.save_campaign(tx, moved)
        _record(tx, moved, by, action, now, reason=reason)
    return moved


def _fitting_devices(tx: db.Connection, tenant: TenantId, group: GroupName, release: Release) -> list[DeviceId]:
    wanted = {device_type for variant in release.variants for device_type in variant.device_types}
    matching = DeviceFilter(group=group, state=DeviceState.ENROLLED)
    found: list[Device] = []
    while page := device_store.list_devices(tx, tenant, matching=matching, after=found[-1].device if found else None, limit=_PAGE):
        found.extend(page)
    fitting = [device.device for device in found if device.device_type in wanted]
    if not fitting:
        types = ", ".join(sorted({device.device_type for device in found})) or "no devices"
        raise ConflictError(
            f"No device of group {group} fits release {release.id}: the group has {types}, the release is for {', '.join(sorted(wanted))}."
        )
    return fitting


def _record(
    tx: db.Connection,
    campaign: Campaign,
    by: Actor,
    action: str,
    now: datetime,
    *,
    reason: str = "",
    detail: Mapping[str, object] | None = None,
) -> None:
    subject = f"campaign/{campaign.campaign}"
    audit.append(tx, tenant=campaign.tenant, actor=by, action=action, subject=subject, now=now, reason=reason, detail=detail)
