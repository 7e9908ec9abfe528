"""What people do with device configuration: edit sections, look at what would change, release, sign, return to older content.

A release goes: composed and proposed → approved by somebody else → signed by the policy key and published → named to each device by
the director. There is no way back to an older revision: going back is a new revision with older content.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from fleet import audit, db
from fleet.audit import Actor
from fleet.configurations import store
from fleet.configurations.model import (
    OPEN_STATES,
    Change,
    ConfigurationRelease,
    DeviceEffect,
    GroupFile,
    ReleaseState,
    Scope,
    Section,
    SigningRequest,
    changes_of,
    restarts_of,
)
from fleet.devices import store as device_store
from fleet.devices.model import DeviceFilter, DeviceState
from fleet.governance import service as governance
from fleet.governance.model import Approval, ApprovalState
from fleet.monitoring import store as monitoring_store
from fleet.registry.director import OrderedConfiguration
from fleet.registry.policies import PolicyFile, ensure_policy_role, highest_rev, next_payload, policy_digest, take_policy_signature
from fleet.registry.service import Registry
from fleet.registry.signing import parse_role
from protocol.canonical import digest_of
from protocol.configuration import MAX_DOCUMENT_BYTES, Configuration, checked, effective, from_bytes, overlay, to_bytes
from protocol.errors import ConflictError, ForbiddenError, InvalidError
from protocol.ids import DeviceId, Digest, GroupName, TenantId
from protocol.messages import Reported, ReportedConfiguration, ReturnedConfiguration
from protocol.trust.metadata import POLICY_ROLE

#: What an approval of a release is about, and the name of the digest that it is bound to.
SUBJECT, CONTENT = "configuration", "content"
#: Devices of one page of a dry run.
PAGE = 500

#: Renews what the director says to changed devices and wakes them, in the transaction of the change.
OnChanged = Callable[[db.Connection, TenantId, Sequence[DeviceId]], None]


# --- sections ---


def get_section(database: db.Database, tenant: TenantId, scope: Scope, name: str = "") -> Section:
    """The section as it stands; empty when nobody wrote it. Raises: NotFoundError when there is no such group or device."""
    with database.reading() as tx:
        _check_owner(tx, tenant, scope, name)
        return store.find_section(tx, tenant, scope, name)


def set_section(
    database: db.Database,
    *,
    tenant: TenantId,
    scope: Scope,
    name: str = "",
    settings: Mapping[str, Any],
    by: Actor,
    now: datetime,
    expected_revision: int | None = None,
    reason: str = "",
) -> Section:
    """Make these the section's settings; devices get them with the next release.

    Raises: InvalidError naming what is wrong; NotFoundError; StaleRevisionError.
    """
    good = checked(settings, what=f"{scope} {name}".strip())
    with database.transaction() as tx:
        _check_owner(tx, tenant, scope, name)
        before = store.find_section(tx, tenant, scope, name)
        db.check_revision(before.revision, expected_revision, what=before.id)
        saved = store.save_section(tx, replace(before, settings=good, changed_by=str(by), changed_at=now))
        detail = {"settings": good, "revision": saved.revision}
        audit.append(tx, tenant=tenant, actor=by, action="configuration.changed", subject=saved.id, now=now, reason=reason, detail=detail)
    return saved


def _check_owner(tx: db.Connection, tenant: TenantId, scope: Scope, name: str) -> None:
    match scope:
        case Scope.FLEET:
            if name:
                raise InvalidError(f"The fleet's section has no name; seen: {name[:80]!r}.")
        case Scope.GROUP:
            device_store.get_group(tx, tenant, GroupName(name))
        case Scope.DEVICE:
            device_store.get_device(tx, tenant, DeviceId(name))


# --- composing ---


def compose(tx: db.Connection, tenant: TenantId, group: GroupName, *, rev: int) -> Configuration:
    """The group's configuration out of the sections as they stand now."""
    devices = [one.device for one in _devices_of(tx, tenant, group)]
    sections = store.list_sections(tx, tenant, Scope.DEVICE, devices)
    return Configuration(
        tenant=tenant,
        group=group,
        rev=rev,
        fleet=store.find_section(tx, tenant, Scope.FLEET, "").settings,
        shared=store.find_section(tx, tenant, Scope.GROUP, group).settings,
        devices={name: section.settings for name, section in sorted(sections.items()) if section.settings},
    )


def read_published(registry: Registry, tx: db.Connection, tenant: TenantId, group: GroupName) -> Configuration | None:
    """What devices of the group shall have now; None when nothing was published for it."""
    found = store.find_published(tx, tenant, group)
    return None if found is None else read_file(registry, found[1])


def read_file(registry: Registry, file: GroupFile) -> Configuration:
    """The configuration in a release's file."""
    return from_bytes(registry.blobs.read(file.sha256, limit=MAX_DOCUMENT_BYTES))


def _devices_of(tx: db.Connection, tenant: TenantId, group: GroupName) -> Iterable[Any]:
    last: DeviceId | None = None
    while page := device_store.list_devices(
        tx, tenant, matching=DeviceFilter(group=group, state=DeviceState.ENROLLED), after=last, limit=PAGE
    ):
        yield from page
        last = page[-1].device


# --- releases ---


def propose(
    registry: Registry, *, tenant: TenantId, by: Actor, groups: Collection[GroupName] = (), reason: str = ""
) -> ConfigurationRelease:
    """Compose what differs from what is published and ask for somebody else's yes; no groups named: all of them.

    Raises: ConflictError when nothing differs, an open release covers a group, or (code "role-closed") the policy role is not open;
    NotFoundError; InvalidError when a file would be too large.
    """
    now = registry.clock.now()
    ensure_policy_role(registry.image, registry.folders, now=now)
    with registry.database.transaction() as tx:
        rev = store.take_rev(tx, above=highest_rev(registry.image))
        chosen = _chosen_groups(tx, tenant, groups)
        _check_none_open(tx, tenant, chosen)
        documents = [compose(tx, tenant, group, rev=rev) for group in chosen]
        published = {document.group: read_published(registry, tx, tenant, GroupName(document.group)) for document in documents}
        # a group that is named gets its first file even when it says nothing: devices that moved there then let go what they had
        changed = [one for one in documents if _differs(one, published[one.group]) or (groups and published[one.group] is None)]
        if not changed:
            raise ConflictError("Nothing differs from what is published.", hint="Change a section first: mooring config set …")
        release = _composed(registry, tenant, rev, changed, by=by, now=now, reason=reason)
        authors = {section.changed_by for section in _sections_of(tx, tenant, changed) if section.changed_by}
        approval = governance.request(
            tx,
            tenant=tenant,
            subject_kind=SUBJECT,
            subject_id=release.id,
            digests={CONTENT: release.content_digest},
            by=by,
            now=now,
            title=f"Configuration {rev} for {', '.join(document.group for document in changed)[:200]}",
            authors=authors,
        )
        release = replace(release, approval=approval.approval)
        store.insert_release(tx, release)
        detail = {"groups": [file.group for file in release.files], "content_digest": release.content_digest}
        _record(tx, release, by, "configuration.proposed", now, reason=reason, detail=detail)
    return release


def _chosen_groups(tx: db.Connection, tenant: TenantId, groups: Collection[GroupName]) -> list[GroupName]:
    if groups:
        return [device_store.get_group(tx, tenant, name).name for name in sorted(set(groups))]
    return [group.name for group in device_store.list_groups(tx, tenant)]


def _check_none_open(tx: db.Connection, tenant: TenantId, groups: Collection[GroupName]) -> None:
    for release in store.list_open_releases(tx, tenant):
        if both := {file.group for file in release.files}.intersection(groups):
            raise ConflictError(
                f"Configuration {release.rev} for {', '.join(sorted(both))} is {release.state} already.",
                hint=f"Finish it, or take it back: mooring config withdraw {release.rev}",
            )


def _differs(document: Configuration, published: Configuration | None) -> bool:
    if published is None:
        return bool(document.fleet or document.shared or document.devices)
    return replace(published, rev=document.rev) != document


def _sections_of(tx: db.Connection, tenant: TenantId, documents: Sequence[Configuration]) -> list[Section]:
    found = [store.find_section(tx, tenant, Scope.FLEET, "")]
    found += store.list_sections(tx, tenant, Scope.GROUP, [document.group for document in documents]).values()
    found += store.list_sections(tx, tenant, Scope.DEVICE, [name for document in documents for name in document.devices]).values()
    return found


def _composed(
    registry: Registry, tenant: TenantId, rev: int, documents: Sequence[Configuration], *, by: Actor, now: datetime, reason: str
) -> ConfigurationRelease:
    files = []
    for document in documents:
        data = to_bytes(document)
        registry.blobs.put(data)
        files.append(GroupFile(GroupName(document.group), len(data), digest_of(data)))
    content = policy_digest(_policy_files(tenant, rev, files))
    return ConfigurationRelease(tenant, rev, ReleaseState.PROPOSED, tuple(files), content, reason, str(by), now)


def _policy_files(tenant: TenantId, rev: int, files: Iterable[GroupFile]) -> list[PolicyFile]:
    return [PolicyFile(tenant, file.group, rev, file.length, file.sha256) for file in files]


def follow_decision(registry: Registry, tx: db.Connection, decided: Approval, *, by: Actor, reason: str) -> None:
    """What follows from a decision on a release of configuration, in its transaction. Raises: ConflictError; NotFoundError."""
    now = registry.clock.now()
    release = store.get_release(tx, decided.tenant, int(decided.subject_id))
    is_yes = decided.state is ApprovalState.APPROVED
    if is_yes and (decided.digests[CONTENT], decided.approval) != (release.content_digest, release.approval):
        raise ConflictError(f"The approval is not for the content of configuration {release.rev}.")
    moved = store.save_release(tx, release.moved(ReleaseState.APPROVED if is_yes else ReleaseState.REJECTED))
    if is_yes:
        _request_signature(registry, tx, moved, now)
    _record(tx, moved, by, f"configuration.{moved.state}", now, reason=reason)


def _request_signature(registry: Registry, tx: db.Connection, release: ConfigurationRelease, now: datetime) -> None:
    files = _policy_files(release.tenant, release.rev, release.files)
    payload, previous = next_payload(registry.image, files, now=now)
    store.save_request(tx, release.tenant, release.rev, payload=payload, previous=previous)


def list_signing_requests(registry: Registry, tenant: TenantId) -> list[SigningRequest]:
    """What is approved and waits for the policy key, the oldest first.

    What was made over a role that is published no longer (a ceremony changed its keys) is made again: no key could sign it.
    """
    published = registry.image.role_metadata(POLICY_ROLE)
    found = _waiting(registry, tenant)
    if not (outdated := [request.rev for request in found if _is_outdated(request, published)]):
        return found
    with registry.database.transaction() as tx:
        for rev in outdated:
            release = store.get_release(tx, tenant, rev)
            if is_open(release) and _find_yes(tx, release) is not None:
                _request_signature(registry, tx, release, registry.clock.now())
    return _waiting(registry, tenant)


def _waiting(registry: Registry, tenant: TenantId) -> list[SigningRequest]:
    with registry.database.reading() as tx:
        waiting = [release for release in reversed(store.list_open_releases(tx, tenant)) if _find_yes(tx, release) is not None]
        found = [store.find_request(tx, release) for release in waiting]
    return [request for request in found if request is not None]


def _is_outdated(request: SigningRequest, published: bytes) -> bool:
    if request.previous == published or not published:
        return False
    # published itself, by an attempt that was cut before it could say so: the same signature is handed in again
    return parse_role(published, "The published role").signed != parse_role(request.payload, "The request").signed


def _find_yes(tx: db.Connection, release: ConfigurationRelease) -> Approval | None:
    digests = {CONTENT: release.content_digest}
    found = governance.find_yes(tx, release.tenant, subject_kind=SUBJECT, subject_id=release.id, digests=digests)
    return found if found is not None and found.approval == release.approval else None


def submit_signature(
    registry: Registry, *, tenant: TenantId, by: Actor, rev: int, signed: bytes, on_changed: OnChanged
) -> ConfigurationRelease:
    """Take the signed role, put it into the image repository, and let the director name the new files to the devices of their groups.

    When more of the policy keys must sign, the release stays approved and its request carries the signatures so far.

    Raises: NotFoundError; ForbiddenError (code "not-approved"); InvalidError when it is not the requested payload; TrustError when the
    policy key did not sign, or a device would refuse it; ConflictError (code "signature-outdated") when it must be signed again.
    """
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        db.lock(tx, f"signing/{tenant}/configuration/{rev}")
        release = store.get_release(tx, tenant, rev)
        request = store.find_request(tx, release)
        if request is None:
            raise ConflictError(f"Configuration {rev} is {release.state}; only an approved one is signed.")
        if _find_yes(tx, release) is None:
            raise ForbiddenError(f"No approval covers configuration {rev} as it was to be signed.", code="not-approved")
        taken = take_policy_signature(registry.image, payload=request.payload, signed=signed)
        if not taken.is_complete:
            store.save_request(tx, tenant, rev, payload=taken.data, previous=request.previous)
            _record(tx, release, by, "configuration.signed-in-part", now, reason="")
            return release
    try:
        # published by an attempt that was cut before it could say so
        if registry.image.role_metadata(POLICY_ROLE) != taken.data:
            registry.image.publish_policy(taken.data, now)
    except ConflictError as error:
        if error.code == "signature-outdated":
            with registry.database.transaction() as tx:
                _request_signature(registry, tx, store.get_release(tx, tenant, rev), now)
        raise
    with registry.database.transaction() as tx:
        release = store.get_release(tx, tenant, rev)
        published = store.save_release(tx, replace(release.moved(ReleaseState.PUBLISHED), published_at=now))
        devices = [one.device for file in published.files for one in _devices_of(tx, tenant, file.group)]
        on_changed(tx, tenant, devices)
        detail = {"content_digest": published.content_digest, "devices": len(devices)}
        _record(tx, published, by, "configuration.published", now, reason="", detail=detail)
    return published


def withdraw(registry: Registry, *, tenant: TenantId, by: Actor, rev: int, reason: str) -> ConfigurationRelease:
    """Take an open release back. Raises: NotFoundError; ConflictError when it is published or over."""
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        withdrawn = store.save_release(tx, store.get_release(tx, tenant, rev).moved(ReleaseState.WITHDRAWN))
        _record(tx, withdrawn, by, "configuration.withdrawn", now, reason=reason)
    return withdrawn


def restore(registry: Registry, *, tenant: TenantId, by: Actor, rev: int, reason: str) -> list[Section]:
    """Make the sections of the release's groups and their devices as they were in it; the next release carries that to devices.

    The fleet's section goes back too. Returns the sections that changed. Raises: NotFoundError; ConflictError when it was never published.
    """
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        release = store.get_release(tx, tenant, rev)
        if release.state is not ReleaseState.PUBLISHED:
            raise ConflictError(f"Configuration {rev} is {release.state}; wanted one that was published.")
        wanted: dict[tuple[Scope, str], Mapping[str, Any]] = {}
        for file in release.files:
            document = read_file(registry, file)
            wanted |= {(Scope.FLEET, ""): document.fleet, (Scope.GROUP, document.group): document.shared}
            for device in _devices_of(tx, tenant, file.group):
                wanted[Scope.DEVICE, device.device] = document.devices.get(device.device, {})
        changed = []
        for (scope, name), settings in wanted.items():
            before = store.find_section(tx, tenant, scope, name)
            if dict(before.settings) != dict(settings):
                changed.append(store.save_section(tx, replace(before, settings=settings, changed_by=str(by), changed_at=now)))
        detail = {"sections": [section.id for section in changed]}
        _record(tx, release, by, "configuration.restored", now, reason=reason, detail=detail)
    return changed


def get_release(registry: Registry, tenant: TenantId, rev: int) -> ConfigurationRelease:
    """The release. Raises: NotFoundError."""
    with registry.database.reading() as tx:
        return store.get_release(tx, tenant, rev)


def list_releases(registry: Registry, tenant: TenantId, *, group: GroupName | None = None) -> list[ConfigurationRelease]:
    """The newest first: who released what, when and why."""
    with registry.database.reading() as tx:
        return store.list_releases(tx, tenant, group=group)


# --- the director ---


def order_of(tx: db.Connection, tenant: TenantId, device: DeviceId, group: GroupName) -> OrderedConfiguration | None:
    """The configuration that the director names to the device; None when nothing was published for its group."""
    found = store.find_published(tx, tenant, group)
    if found is None:
        return None
    rev, file = found
    return OrderedConfiguration(group, rev, store.attempt_of(tx, tenant, device), file.length, file.sha256)


def offer_again(registry: Registry, *, tenant: TenantId, device: DeviceId, by: Actor, reason: str, on_changed: OnChanged) -> int:
    """Let a device try again what it returned from; returns the new attempt. Raises: NotFoundError."""
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        device_store.get_device(tx, tenant, device)
        attempt = store.attempt_of(tx, tenant, device) + 1
        store.save_attempt(tx, tenant, device, attempt)
        on_changed(tx, tenant, [device])
        audit.append(
            tx,
            tenant=tenant,
            actor=by,
            action="configuration.offered-again",
            subject=f"device/{device}",
            now=now,
            reason=reason,
            detail={"attempt": attempt},
        )
    return attempt


# --- what would change, and what is ---


@dataclass(frozen=True, slots=True)
class DeviceConfiguration:
    """What a device shall have and what it says that it has."""

    group: GroupName
    #: None: nothing was published for the group.
    desired_rev: int | None
    desired_sha256: Digest | None
    #: None: the device never said.
    reported: ReportedConfiguration | None

    @property
    def is_in_force(self) -> bool:
        """Whether the device committed what it shall have."""
        found = self.reported
        return found is not None and found.state == "committed" and (found.group, found.rev) == (self.group, self.desired_rev)


def of_device(database: db.Database, tenant: TenantId, device: DeviceId) -> DeviceConfiguration:
    """Desired against reported configuration of one device. Raises: NotFoundError."""
    with database.reading() as tx:
        known = device_store.get_device(tx, tenant, device)
        found = store.find_published(tx, tenant, known.group)
        reported = _reported(tx, tenant, [device]).get(device)
    rev, file = found or (None, None)
    return DeviceConfiguration(known.group, rev, file.sha256 if file else None, reported.configuration if reported else None)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a group's devices are with the configuration that they shall have."""

    #: None: nothing was published for the group.
    desired_rev: int | None
    #: State -> devices: committed and trial of the desired one; returned from it; waiting with an older one or none; silent.
    counts: Mapping[str, int]
    #: Device -> why it went back from the desired one.
    returned: Mapping[DeviceId, ReturnedConfiguration]
    #: Every device of the group -> its state, as in `counts`.
    states: Mapping[DeviceId, str] = field(default_factory=dict)


def progress(database: db.Database, tenant: TenantId, group: GroupName) -> Progress:
    """Where the devices of the group are with their configuration. Raises: NotFoundError."""
    with database.reading() as tx:
        device_store.get_group(tx, tenant, group)
        found = store.find_published(tx, tenant, group)
        devices = [one.device for one in _devices_of(tx, tenant, group)]
        reported = _reported(tx, tenant, devices)
    desired = found[0] if found else None
    states = {name: _state_of(reported.get(name), group, desired) for name in devices}
    counts = {state: list(states.values()).count(state) for state in ("committed", "trial", "returned", "waiting", "silent")}
    back = {name: told.configuration.returned for name, told in reported.items() if told.configuration and states[name] == "returned"}
    return Progress(desired, counts, {name: why for name, why in back.items() if why is not None}, states)


def _state_of(told: Reported | None, group: GroupName, desired: int | None) -> str:
    own = told.configuration if told else None
    if own is None:
        return "silent"
    if own.returned is not None and (own.returned.group, own.returned.rev) == (group, desired):
        return "returned"
    is_it = desired is not None and (own.group, own.rev) == (group, desired)
    return own.state if is_it and own.state in {"committed", "trial"} else "waiting"


def diff(registry: Registry, tenant: TenantId, group: GroupName) -> dict[str, tuple[Change, ...]]:
    """What differs between the group's sections as they stand and as they are published, by section; without those that are the same.

    Raises: NotFoundError.
    """
    with registry.database.reading() as tx:
        device_store.get_group(tx, tenant, group)
        now = compose(tx, tenant, group, rev=1)
        before = read_published(registry, tx, tenant, group) or replace(now, fleet={}, shared={}, devices={})
    pairs = {"fleet": (before.fleet, now.fleet), f"group {group}": (before.shared, now.shared)}
    for name in sorted(before.devices.keys() | now.devices.keys()):
        pairs[f"device {name}"] = (before.devices.get(name, {}), now.devices.get(name, {}))
    found = {name: changes_of(old, new, {}) for name, (old, new) in pairs.items()}
    return {name: changes for name, changes in found.items() if changes}


def dry_run(registry: Registry, *, tenant: TenantId, group: GroupName, device: DeviceId | None = None) -> list[DeviceEffect]:
    """What the next release would change on each device of the group, or on one of them. Raises: NotFoundError."""
    with registry.database.reading() as tx:
        device_store.get_group(tx, tenant, group)
        document = compose(tx, tenant, group, rev=1)
        devices = [one.device for one in _devices_of(tx, tenant, group) if device in {None, one.device}]
        reported = _reported(tx, tenant, devices)
    return [effect_of(document, name, reported.get(name)) for name in devices]


def effect_of(document: Configuration, device: DeviceId, reported: Reported | None) -> DeviceEffect:
    """What the configuration would change on the device that reports so. Pure."""
    found = effective(document, device)
    own = reported.configuration if reported else None
    if own is None:
        return DeviceEffect(device, False, changes_of({}, found.settings, found.origins), (), found.settings)
    after = overlay(own.base, found.settings)
    changes = changes_of(own.values, after.values, found.origins)
    return DeviceEffect(device, True, changes, restarts_of(changes), after.values, after.unused)


def _reported(tx: db.Connection, tenant: TenantId, devices: Sequence[DeviceId]) -> dict[DeviceId, Reported]:
    found = {}
    for name, state in monitoring_store.list_states_of(tx, tenant, devices, "reported").items():
        try:
            found[name] = Reported.model_validate(state.body)
        except ValidationError:
            continue
    return found


def is_open(release: ConfigurationRelease) -> bool:
    """Whether it still waits for a decision or the key."""
    return release.state in OPEN_STATES


def _record(
    tx: db.Connection,
    release: ConfigurationRelease,
    by: Actor,
    action: str,
    now: datetime,
    *,
    reason: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    subject = f"configuration/{release.rev}"
    audit.append(tx, tenant=release.tenant, actor=by, action=action, subject=subject, now=now, reason=reason, detail=detail or {})
