"""The loop: release → approval → signature → publication → campaign → assignment → report → verdict, written down in one place.

Domains below do not know each other; here they meet. What follows from a decision happens in the decision's own transaction.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from fleet import audit, db
from fleet.audit import Actor
from fleet.campaigns import service as campaigns
from fleet.campaigns import store as campaign_store
from fleet.campaigns.model import Assigned, Campaign, ComparisonPlan, Phase, ReportChannel
from fleet.configurations import service as configurations
from fleet.configurations import store as configuration_store
from fleet.devices import store as device_store
from fleet.devices import twins
from fleet.devices.model import Consented, Device, DeviceFilter, DeviceIdentity, DeviceState
from fleet.governance import service as governance
from fleet.governance.model import Approval, ApprovalState
from fleet.monitoring import store as monitoring_store
from fleet.registry import bundles, deltas
from fleet.registry import service as releases
from fleet.registry import store as release_store
from fleet.registry.bundles import Bundle
from fleet.registry.deltas import DeltaRules, Encoder, Pair
from fleet.registry.director import Order, OrderedCandidate, OrderedLine, SignedOrder
from fleet.registry.model import DeltaState, FileRef, Release, ReleaseDelta, ReleaseState, SigningRequest, Variant
from fleet.registry.service import OrderSource, Registry
from protocol.canonical import digest_of
from protocol.delta.container import NO_BASE
from protocol.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
from protocol.ids import DeviceId, Digest, GroupName, LineName, ReleaseVersion, TenantId
from protocol.messages import DsseEnvelope, Info, ReportAnswer
from protocol.trust.metadata import DeltaOffer
from runtime.base import BACKENDS_OF_FORMAT

#: What an approval of a release is about, and the name of the digest that it is bound to.
RELEASE, CONTENT = "release", "content"
#: Releases of a line among which a base is looked for, newest first; older ones are not made deltas from.
KNOWN_RELEASES = 500
#: Longest validity of a stick, days: the offline roles are signed once a year. Devices of one stick, and of one transaction.
MAX_BUNDLE_DAYS, MAX_BUNDLE_DEVICES, BUNDLE_BATCH = 366, 2000, 100
#: Devices hinted together ask for their metadata no faster than this, per second: one process signs and serves several times as many.
CHECKS_PER_S = 20
TARGETS_URL = "/device/v1/director/targets.json"


# --- release → approval ---


def propose_release(
    registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, version: ReleaseVersion, reason: str = ""
) -> Approval:
    """Ask for somebody else's yes to exactly the content of the release.

    Raises: NotFoundError; ConflictError when the release is no draft, or an approval waits already.
    """
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        release = release_store.get_release(tx, tenant, line, version)
        approval = governance.request(
            tx,
            tenant=tenant,
            subject_kind=RELEASE,
            subject_id=release.id,
            digests={CONTENT: release.content_digest},
            by=by,
            now=now,
            title=f"Release {line} {version}",
            authors=_authors(tx, release),
        )
        releases.mark_proposed(tx, release, approval=approval.approval)
        _record(tx, release, by, "release.proposed", now, reason=reason)
    return approval


def decide_approval(
    registry: Registry,
    *,
    tenant: TenantId,
    approval: str,
    verdict: Literal["approved", "rejected"],
    by: Actor,
    permissions: Collection[str],
    reason: str,
    expected_revision: int | None = None,
) -> Approval:
    """Record the decision and what follows: an approved release waits for its line's signature, a rejected one is put back.

    Raises: NotFoundError; StaleRevisionError; ForbiddenError (four eyes, permission); ConflictError; InvalidError.
    """
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        decided = governance.decide(
            tx,
            tenant=tenant,
            approval=approval,
            verdict=verdict,
            by=by,
            permissions=permissions,
            now=now,
            reason=reason,
            expected_revision=expected_revision,
        )
        if decided.subject_kind == RELEASE:
            _follow(registry, tx, decided)
            release = _release_of(tx, decided)
            _record(tx, release, by, f"release.{verdict}", now, reason=reason)
        elif decided.subject_kind == configurations.SUBJECT:
            configurations.follow_decision(registry, tx, decided, by=by, reason=reason)
    return decided


def _follow(registry: Registry, tx: db.Connection, decided: Approval) -> None:
    release = _release_of(tx, decided)
    if decided.state is ApprovalState.APPROVED:
        releases.mark_approved(registry, tx, release, approved=decided.digests[CONTENT])
    else:
        releases.mark_rejected(tx, release)


def _authors(tx: db.Connection, release: Release) -> set[str]:
    models = [release_store.get_model_version(tx, release.tenant, variant.model_id) for variant in release.variants]
    return {release.created_by, *(model.created_by for model in models)}


def _release_of(tx: db.Connection, approval: Approval) -> Release:
    line, _, version = approval.subject_id.partition("/")
    return release_store.get_release(tx, approval.tenant, LineName(line), ReleaseVersion(version))


# --- approval → signature → publication ---


@dataclass(frozen=True, slots=True)
class SigningTask:
    """A signing request together with the approval that allows it: what the holder of a line's key looks at."""

    request: SigningRequest
    approval: Approval


def list_signing_tasks(registry: Registry, tenant: TenantId) -> list[SigningTask]:
    """What waits for a line's key and is approved, the oldest first."""
    with registry.database.reading() as tx:
        open_requests = release_store.list_open_signing_requests(tx, tenant)
        found = [(request, _find_yes(tx, request)) for request in open_requests]
    return [SigningTask(request, approval) for request, approval in found if approval is not None]


def submit_signature(registry: Registry, *, tenant: TenantId, by: Actor, request: str, signed: bytes) -> Release:
    """Take the signed role metadata of a request, if governance's yes still stands; the release is then signed.

    Raises: NotFoundError; ForbiddenError (code "not-approved"); ConflictError; InvalidError; TrustError when the line's key did not sign.
    """
    with registry.database.reading() as tx:
        found = release_store.get_signing_request(tx, tenant, request)
        if _find_yes(tx, found) is None:
            raise ForbiddenError(f"No approval covers release {found.line}/{found.version} as it was to be signed.", code="not-approved")
    return releases.submit_signature(registry, tenant=tenant, by=by, request_id=request, signed=signed)


def publish_release(
    registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, version: ReleaseVersion, reason: str = ""
) -> Release:
    """Put the signed release into the image repository. Raises: as `fleet.registry.service.publish_release`."""
    return releases.publish_release(registry, tenant=tenant, by=by, line=line, version=version, reason=reason)


def _find_yes(tx: db.Connection, request: SigningRequest) -> Approval | None:
    subject = f"{request.line}/{request.version}"
    digests: dict[str, Digest] = {CONTENT: request.content_digest}
    found = governance.find_yes(tx, request.tenant, subject_kind=RELEASE, subject_id=subject, digests=digests)
    return found if found is not None and found.approval == request.approval else None


# --- publication → campaign → assignment ---


def create_campaign(
    registry: Registry,
    *,
    tenant: TenantId,
    by: Actor,
    line: LineName,
    version: ReleaseVersion,
    group: GroupName,
    phases: tuple[Phase, ...] = (Phase(),),
    min_inferences: int = campaigns.DEFAULT_MIN_INFERENCES,
    timeout_s: int = campaigns.DEFAULT_TIMEOUT_S,
    full_bytes: int | None = None,
    again: bool = False,
    comparison: ComparisonPlan | None = None,
    reason: str = "",
) -> Campaign:
    """Start bringing a published release to a group; the next tick assigns. Raises: as `fleet.campaigns.service.create_campaign`."""
    return campaigns.create_campaign(
        registry.database,
        tenant=tenant,
        by=by,
        line=line,
        version=version,
        group=group,
        now=registry.clock.now(),
        phases=phases,
        min_inferences=min_inferences,
        timeout_s=timeout_s,
        full_bytes=full_bytes,
        again=again,
        comparison=comparison,
        reason=reason,
    )


def abort_campaign(registry: Registry, *, tenant: TenantId, campaign: str, by: Actor, reason: str, revision: int | None = None) -> Campaign:
    """End a campaign; devices without a verdict get back what they had. Raises: NotFoundError; ConflictError; StaleRevisionError."""
    now = registry.clock.now()
    return campaigns.abort(
        registry.database,
        tenant=tenant,
        campaign=campaign,
        by=by,
        now=now,
        reason=reason,
        on_changed=direct(registry),
        revision=revision,
    )


def offer_again(registry: Registry, *, tenant: TenantId, device: DeviceId, line: LineName, by: Actor, reason: str) -> Assigned:
    """Let a device try again what it blocked. Raises: ConflictError when nothing is assigned to the line."""
    now = registry.clock.now()
    return campaigns.offer_again(
        registry.database, tenant=tenant, device=device, line=line, by=by, now=now, reason=reason, on_changed=direct(registry)
    )


def consent(registry: Registry, *, tenant: TenantId, device: DeviceId, line: LineName, is_given: bool, by: Actor, reason: str) -> Assigned:
    """Say for a site that asks first whether its device may activate what is assigned; holds for this assignment alone.

    Raises: ConflictError when nothing is assigned to the line; NotFoundError.
    """
    with registry.database.transaction() as tx:
        assigned = campaigns.find_assigned(tx, tenant, device, line)
        consented = Consented(assigned.assignment, is_given)
        twins.set_consent(tx, tenant, device, line=line, consented=consented, by=by, now=registry.clock.now(), reason=reason)
    return assigned


def tick(registry: Registry) -> int:
    """One round of what repeats; returns steps taken. Safe to redo.

    Lets newcomers of groups join, brings campaigns on, renews the image repository's online signatures. Does nothing while the clock is
    not to be believed: what a campaign decides must be signed. Raises: ConfigError when an online key is missing.
    """
    if not registry.guard.is_believed(registry.clock.now()):
        return 0
    now, on_changed = registry.clock.now(), direct(registry)
    joined = campaigns.welcome(registry.database, now=now, on_changed=on_changed)
    moved = campaigns.tick(registry.database, now=now, on_changed=on_changed)
    return moved + joined + int(releases.renew(registry))  # last: it fails where an online key is missing


def direct(registry: Registry) -> campaigns.OnChanged:
    """Renews what the director says to changed devices and wakes them, in the transaction of the change."""

    def on_changed(tx: db.Connection, tenant: TenantId, devices: Sequence[DeviceId]) -> None:
        release_store.mark_orders_stale(tx, tenant, devices)
        for device in devices if len(devices) <= campaigns.BATCH else ():  # more of them learn it by their next poll
            signed = releases.refresh_order(registry, tx, tenant=tenant, device=device, source=order_source(tenant))
            sha256 = digest_of(signed.targets)
            spread_s = len(devices) // CHECKS_PER_S
            twins.set_manifest(tx, tenant, device, url=TARGETS_URL, sha256=sha256, spread_s=spread_s, now=registry.clock.now())

    return on_changed


# --- assignment → what the director says ---


def order_source(tenant: TenantId) -> OrderSource:
    """Composes what a device of the tenant shall run, out of its assignments and of what it said it can run."""

    def compose(tx: db.Connection, device: DeviceId) -> tuple[Order, bool]:
        known = device_store.get_device(tx, tenant, device)
        abilities = reported_abilities(tx, tenant, device)
        lines: list[OrderedLine] = []
        assigned = campaign_store.list_assigned(tx, tenant, device)
        for item in assigned:
            release = release_store.get_release(tx, tenant, item.line, item.version)
            variant = _choose(release, known.device_type, abilities)
            if variant is not None:
                lines.append(_ordered(tx, tenant, device, item, release, variant))
        candidates, is_complete = _candidates(tx, tenant, known, abilities, {(line.release.line, line.release.version) for line in lines})
        configuration = configurations.order_of(tx, tenant, device, known.group)
        order = Order(tenant, device, tuple(lines), configuration=configuration, candidates=candidates)
        return order, is_complete and len(lines) == len(assigned)

    return compose


def _candidates(
    tx: db.Connection,
    tenant: TenantId,
    known: Device,
    abilities: "Abilities",
    running: Collection[tuple[LineName, ReleaseVersion]],
) -> tuple[tuple[OrderedCandidate, ...], bool]:
    """What shall run beside the device's lines, and whether that is all of it; what a line is assigned already is no candidate."""
    found, is_complete = [], True
    for item in campaign_store.list_assigned(tx, tenant, known.device, is_candidate=True):
        if (item.line, item.version) in running:
            continue
        release = release_store.get_release(tx, tenant, item.line, item.version)
        variant = _choose(release, known.device_type, abilities)
        plan = campaign_store.get_campaign(tx, tenant, item.campaign).comparison
        if variant is None:
            is_complete = False
        elif plan.run_as != "active":
            ordered = _ordered(tx, tenant, known.device, item, release, variant)
            run_as: Literal["shadow", "ab"] = "ab" if plan.run_as == "ab" else "shadow"
            found.append(OrderedCandidate(ordered, run_as, plan.share, plan.cpu, plan.until))
    return tuple(found), is_complete


def _ordered(tx: db.Connection, tenant: TenantId, device: DeviceId, item: Assigned, release: Release, variant: Variant) -> OrderedLine:
    """The line with what this device may fetch in place of whole files: deltas only from what it said it has, none when it has it all."""
    slots = [slot for slot in campaign_store.list_slots(tx, tenant, device) if slot.line == item.line]
    offers: dict[Digest, tuple[DeltaOffer, ...]] = {}
    if variant.model_file.sha256 not in {slot.sha256 for slot in slots}:
        known = [found for slot in slots if (found := release_store.find_release(tx, tenant, slot.line, slot.version)) is not None]
        bases = [deltas.find_variant_with(known, slot.sha256, runtime=variant.runtime) for slot in slots]
        offers = deltas.offers_for(tx, tenant, variant, [base for base in bases if base is not None])
    full_bytes = campaign_store.find_full_bytes(tx, tenant, item.campaign)
    return OrderedLine(
        release, variant, item.assignment, item.attempt, item.campaign, item.assigned_at, deltas=offers, full_bytes=full_bytes
    )


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a device said it can run."""

    #: Kinds of model files: "onnx", "tflite"; None: it never said.
    runtimes: frozenset[str] | None = None
    #: Tasks of models. Every agent can classify; one that says nothing can nothing else.
    tasks: frozenset[str] = frozenset({"classification"})


def reported_abilities(tx: db.Connection, tenant: TenantId, device: DeviceId) -> Abilities:
    """What the device said last about itself."""
    state = monitoring_store.list_states_of(tx, tenant, [device], "info").get(device)
    if state is None:
        return Abilities()
    try:
        info = Info.model_validate(state.body)
    except ValidationError:
        return Abilities()
    working = {runtime.name for runtime in info.runtimes if runtime.state == "ok"}
    runtimes = frozenset(kind for kind, backends in BACKENDS_OF_FORMAT.items() if working.intersection(backends))
    return Abilities(runtimes, Abilities().tasks.union(info.capabilities))


def _choose(release: Release, device_type: str, abilities: Abilities) -> Variant | None:
    if abilities.runtimes is not None:
        return release.find_variant(device_type=device_type, runtimes=abilities.runtimes, tasks=abilities.tasks)
    fitting = [variant for variant in release.variants if device_type in variant.device_types and variant.task in abilities.tasks]
    return fitting[0] if len(fitting) == 1 else None


# --- what devices have → deltas ---


def build_deltas(
    registry: Registry, *, tenant: TenantId, line: LineName, rules: DeltaRules, encode: Encoder, rest: Callable[[float], None]
) -> int:
    """Make what is missing of the line's deltas; returns how many files were tried. Safe to cut, safe to redo.

    For its newest published release and those that campaigns bring to devices now, from what the devices' signed reports say they have.
    `rest` is given the seconds of CPU that each took. Raises: UnavailableError.
    """
    with registry.database.reading() as tx:
        known = release_store.list_releases(tx, tenant, line=line, limit=KNOWN_RELEASES)
        moving = set(campaign_store.list_moving_versions(tx, tenant, line))
        wanted = [(release, _pairs(tx, release, known, rules)) for release in _targets(known, moving)]
    tried = 0
    for release, pairs in wanted:
        is_new = False
        for pair in deltas.list_missing(registry.database, tenant, pairs):
            made = deltas.build(registry.database, registry.blobs, registry.clock, tenant=tenant, pair=pair, encode=encode)
            tried, is_new = tried + 1, is_new or made.state is DeltaState.USABLE
            rest(made.cpu_s)
        if is_new:
            with registry.database.transaction() as tx:
                release_store.mark_orders_stale(tx, tenant, campaign_store.list_awaiting(tx, tenant, line, release.version))
    return tried


def retry_deltas(registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, version: ReleaseVersion, reason: str = "") -> int:
    """Try again what failed or was withdrawn of the release's deltas; returns how many. Raises: NotFoundError."""
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        release = release_store.get_release(tx, tenant, line, version)
        files = [file.sha256 for variant in release.variants for file in variant.files]
        forgotten = release_store.delete_failed_deltas(tx, tenant, files)
        deltas.request(tx, tenant=tenant, line=line, now=now)
        audit.append(
            tx,
            tenant=tenant,
            actor=by,
            action="delta.retried",
            subject=f"release/{release.id}",
            now=now,
            reason=reason,
            detail={"deltas": forgotten},
        )
    return forgotten


@dataclass(frozen=True, slots=True)
class DeltaView:
    """One delta of a release, for people."""

    variant: str
    file: FileRef
    #: The release that the base is from; empty: the compressed whole.
    base_release: str
    #: Devices that have the base.
    devices: int
    delta: ReleaseDelta


def list_deltas(registry: Registry, tenant: TenantId, line: LineName, version: ReleaseVersion) -> list[DeltaView]:
    """What was made, or tried, to bring the release's files to devices in fewer bytes. Raises: NotFoundError."""
    with registry.database.reading() as tx:
        release = release_store.get_release(tx, tenant, line, version)
        known = release_store.list_releases(tx, tenant, line=line, limit=KNOWN_RELEASES)
        found: list[DeltaView] = []
        for variant in release.variants:
            counts, _ = campaign_store.count_bases(tx, tenant, line, variant.device_types)
            origins = _origins(known, variant, counts)
            files = {file.sha256: file for file in variant.files}
            for one in release_store.list_deltas_to(tx, tenant, list(files)):
                version_of_base, devices = origins.get(one.base_sha256, ("", 0))
                if one.base_sha256 != NO_BASE and not version_of_base:
                    continue
                found.append(DeltaView(variant.variant, files[one.new_sha256], version_of_base, devices, one))
    return found


def _origins(known: Sequence[Release], variant: Variant, counts: Mapping[Digest, int]) -> dict[Digest, tuple[str, int]]:
    """Per file of other releases for the same runtime: which release it is from, and how many devices have that one."""
    found: dict[Digest, tuple[str, int]] = {}
    for release in known:
        for other in release.variants:
            if other.runtime == variant.runtime:
                for file in other.files:
                    found.setdefault(file.sha256, (release.version, counts.get(other.model_file.sha256, 0)))
    return found


def _targets(known: Sequence[Release], moving: Collection[ReleaseVersion]) -> list[Release]:
    published = [release for release in known if release.state is ReleaseState.PUBLISHED]
    newest = max(published, key=lambda release: release.counter, default=None)
    return [release for release in published if release is newest or release.version in moving]


def _pairs(tx: db.Connection, release: Release, known: Sequence[Release], rules: DeltaRules) -> list[Pair]:
    found: list[Pair] = []
    for variant in release.variants:
        counts, total = campaign_store.count_bases(tx, release.tenant, release.line, variant.device_types)
        counts.pop(variant.model_file.sha256, None)
        ours = {sha256: base for sha256 in counts if (base := deltas.find_variant_with(known, sha256, runtime=variant.runtime)) is not None}
        chosen = deltas.choose_bases(
            {sha256: counts[sha256] for sha256 in ours}, total, most=rules.bases, share_percent=rules.share_percent
        )
        found += deltas.pairs_of(variant, [ours[sha256] for sha256 in chosen])
    return found


# --- sites without a network: assignments out, reports back, on a stick ---


def create_bundle(registry: Registry, *, tenant: TenantId, by: Actor, group: GroupName, valid_days: int, reason: str = "") -> Bundle:
    """Sign what the group's devices shall run for a stick, so that it holds `valid_days`; the caller writes the folder.

    Raises: NotFoundError; InvalidError; ConflictError when the group has no device or too many; TrustError.
    """
    if not 1 <= valid_days <= MAX_BUNDLE_DAYS:
        raise InvalidError(f"valid_days is {valid_days}; wanted 1 to {MAX_BUNDLE_DAYS}.")
    with registry.database.reading() as tx:
        device_store.get_group(tx, tenant, group)
        matching = DeviceFilter(group=group, state=DeviceState.ENROLLED)
        devices = [one.device for one in device_store.list_devices(tx, tenant, matching=matching, limit=MAX_BUNDLE_DEVICES + 1)]
    if not 1 <= len(devices) <= MAX_BUNDLE_DEVICES:
        raise ConflictError(
            f"Group {group} has {'more than ' * (len(devices) > 1)}{min(len(devices), MAX_BUNDLE_DEVICES)} enrolled devices.",
            hint=f"A stick is for 1 to {MAX_BUNDLE_DEVICES} devices: split the group.",
        )
    orders: list[SignedOrder] = []
    for start in range(0, len(devices), BUNDLE_BATCH):
        with registry.database.transaction() as tx:
            for device in devices[start : start + BUNDLE_BATCH]:
                source = order_source(tenant)
                orders.append(releases.sign_for_stick(registry, tx, tenant=tenant, device=device, source=source, days=valid_days))
    made, now = bundles.compose(registry, tenant=tenant, group=group, orders=orders, days=valid_days), registry.clock.now()
    with registry.database.transaction() as tx:
        detail = {"devices": len(devices), "idle": len(made.idle), "valid_until": made.valid_until.isoformat(), "blobs": len(made.blobs)}
        audit.append(tx, tenant=tenant, actor=by, action="bundle.created", subject=f"group/{group}", now=now, reason=reason, detail=detail)
    return made


def open_bundle_blob(registry: Registry, *, tenant: TenantId, digest: Digest) -> tuple[int, Iterator[bytes]]:
    """Length and bytes of a file that a stick of the tenant may carry. Raises: NotFoundError, also for another tenant's."""
    with registry.database.reading() as tx:
        is_ours = release_store.has_file(tx, tenant, digest) or configuration_store.has_file(tx, tenant, digest)
    if not is_ours:
        raise NotFoundError(f"There is no blob {digest}.")
    size = registry.blobs.size(digest)
    return size, registry.blobs.chunks(digest, start=0, end=size)


def import_report(registry: Registry, *, tenant: TenantId, by: Actor, device: DeviceId, envelope: DsseEnvelope) -> ReportAnswer:
    """Take a version report that came on a stick, with the same checks as over HTTPS but for the nonce; audited under who brought it.

    Raises: NotFoundError; ForbiddenError when the device is revoked or did not sign it; ConflictError (code "report-counter") when it
    is known, or older than what is known.
    """
    with registry.database.reading() as tx:
        known = device_store.get_device(tx, tenant, device)
    if known.state is not DeviceState.ENROLLED:
        raise ForbiddenError(f"Device {device} is {known.state}; its reports are not taken.", code="report-refused")
    identity = DeviceIdentity(tenant, device, known.device_type, known.group, known.public_key, 0)
    now, channel = registry.clock.now(), ReportChannel.BUNDLE
    accepted = campaigns.accept_report(registry.database, identity=identity, envelope=envelope, now=now, channel=channel, brought_by=by)
    _forget_bytes(registry, accepted.withdrawn)
    return accepted.answer


# --- report → verdict ---


def take_report(registry: Registry, *, identity: DeviceIdentity, envelope: DsseEnvelope, now: datetime) -> ReportAnswer:
    """Take a signed version report; the verdicts that follow are counted by the next tick. Answered after the commit.

    Raises: ForbiddenError (code "report-refused", in the audit log); ConflictError (code "report-counter").
    """
    accepted = campaigns.accept_report(registry.database, identity=identity, envelope=envelope, now=now)
    _forget_bytes(registry, accepted.withdrawn)
    return accepted.answer


def _forget_bytes(registry: Registry, withdrawn: Collection[ReleaseDelta]) -> None:
    """Delete what no order lists any more; who still asks for it is told that it is gone."""
    for delta in withdrawn:
        with registry.database.reading() as tx:
            is_offered = release_store.is_delta_offered(tx, delta.sha256)
        if not is_offered:
            with suppress(UnavailableError):  # the report is committed; bytes that stay are offered to nobody
                registry.blobs.delete(Digest(delta.sha256))


def _record(tx: db.Connection, release: Release, by: Actor, action: str, now: datetime, *, reason: str) -> None:
    audit.append(tx, tenant=release.tenant, actor=by, action=action, subject=f"release/{release.id}", now=now, reason=reason)
