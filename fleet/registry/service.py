"""What people and the loop do with models and releases: one function per action; check, change and audit in one transaction."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

from fleet import audit, db
from fleet.audit import Actor
from fleet.blobs import BlobStore
from fleet.registry import deltas, store
from fleet.registry.clock_guard import ClockGuard
from fleet.registry.director import Director, Order, SignedOrder, VersionedRole, order_digest, parse_versioned_name
from fleet.registry.drafts import ModelDraft, complete, parse_draft
from fleet.registry.importing import Inspected, inspect_upload, tensors_from_json, tensors_to_json
from fleet.registry.key_status import KeyStatus
from fleet.registry.model import FileRef, Line, ModelVersion, Release, ReleaseState, SigningRequest, Variant
from fleet.registry.online import OnlineKeys
from fleet.registry.profiling import Profiled
from fleet.registry.repository import ImageRepository, target_files
from fleet.registry.signing import (
    KeyName,
    TrustFolders,
    content_digest,
    create_role_key,
    is_encrypted,
    load_key,
    load_public_key,
)
from protocol.canonical import canonical_json, digest_of
from protocol.clock import Clock
from protocol.decoding import encode, without_none
from protocol.errors import ConfigError, ConflictError, InvalidError, NotFoundError
from protocol.ids import DeviceId, DeviceTypeName, Digest, LineName, ReleaseVersion, TenantId, check_name, check_version, new_id
from protocol.sketches.profile import FILE_NAME as PROFILE_NAME
from protocol.sketches.profile import MAX_PROFILE_BYTES, ModelProfile, decode_profile
from protocol.trust.metadata import line_role
from runtime.manifest import FileEntry, to_bytes

CARD_SCHEMA = "model-card.1"
#: Models that one release may join, one per runtime and set of device types.
MAX_VARIANTS = 32
#: How long what the director said stays to be fetched after it was replaced: longer than any device's check of what was ordered.
EARLIER_FOR = timedelta(hours=1)
#: Rows deleted in one transaction, so that polls never wait long.
_PRUNED_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Registry:
    """All that the registry's actions need; made once per process by `open_registry`."""

    database: db.Database
    blobs: BlobStore
    clock: Clock
    folders: TrustFolders
    image: ImageRepository
    director: Director
    #: Stops the director while the clock is not to be believed.
    guard: ClockGuard
    #: The keys that this server signs with by itself.
    keys: OnlineKeys
    #: What people must know of keys and clock.
    key_status: KeyStatus
    #: Offline keys lie unencrypted on this machine: lines are opened without asking, and every page says so.
    is_demo: bool


@dataclass(frozen=True, slots=True)
class ReleaseModel:
    """One model version that a release takes, and whom it is for; empty device types: those of its draft."""

    model_id: str
    device_types: tuple[DeviceTypeName, ...] = ()
    #: Empty: named by its runtime, e.g. "onnx".
    variant: str = ""
    firmware_min: str = ""
    agent_min: str = ""


def open_registry(data_dir: Path, *, database: db.Database, blobs: BlobStore, clock: Clock) -> Registry:
    """The registry over the keys and metadata that `signing.create_trust` made."""
    folders = TrustFolders(data_dir)
    keys, guard = OnlineKeys(folders), ClockGuard(folders.clock_file, speed=clock.speed)
    targets = folders.key_file(KeyName.IMAGE_TARGETS)
    return Registry(
        database=database,
        blobs=blobs,
        clock=clock,
        folders=folders,
        image=ImageRepository(folders, keys),
        director=Director(folders, keys, guard),
        guard=guard,
        keys=keys,
        key_status=KeyStatus(folders, keys, guard),
        is_demo=targets.exists() and not is_encrypted(targets),
    )


# --- models ---


def import_model(
    registry: Registry,
    *,
    tenant: TenantId,
    by: Actor,
    model: str,
    file: Path,
    draft: ModelDraft,
    file_name: str = "",
    goldens: bytes | None = None,
    evaluation: Path | None = None,
    note: str = "",
) -> ModelVersion:
    """Keep the file as the model's next version, with golden vectors and card. `goldens` replaces those that would be made.

    `evaluation` data bring a reference profile, without which releases of it are not watched for drift.

    Raises: InvalidError saying what was seen, wanted and what to do; nothing is kept then.
    """
    check_name(model, what="Model")
    inspected = inspect_upload(file, draft, goldens=goldens, evaluation=evaluation, what=file_name or file.name)
    now = registry.clock.now()
    model_ref = FileRef(f"model.{inspected.format}", file.stat().st_size, registry.blobs.put_file(file))
    golden_ref = _keep(registry, "golden.cbor", inspected.golden)
    profile_ref = None if inspected.profiled is None else _keep(registry, PROFILE_NAME, inspected.profiled.data)
    with registry.database.transaction() as tx:
        version = store.next_model_version(tx, tenant, model)
        card = _card(model, version, model_ref, golden_ref, draft, inspected, note=note, by=by, now=now)
        imported = ModelVersion(
            tenant=tenant,
            model=model,
            version=version,
            format=inspected.format,
            file=model_ref,
            golden=golden_ref,
            card=_keep(registry, "card.json", card),
            draft_json=json.dumps(encode(draft)),
            tensors_json=tensors_to_json(inspected.tensors),
            device_types=tuple(DeviceTypeName(name) for name in draft.device_types),
            created_at=now,
            created_by=str(by),
            note=note,
            profile=profile_ref,
        )
        store.add_model_version(tx, imported)
        detail = {"sha256": model_ref.sha256, "length": model_ref.length, "format": inspected.format, "own_goldens": goldens is not None}
        detail |= {} if profile_ref is None else {"profile": profile_ref.sha256}
        audit.append(tx, tenant=tenant, actor=by, action="model.imported", subject=f"model/{imported.id}", now=now, detail=detail)
    return imported


def get_model_version(registry: Registry, tenant: TenantId, model_id: str) -> ModelVersion:
    """The model version. Raises: NotFoundError."""
    with registry.database.reading() as tx:
        return store.get_model_version(tx, tenant, model_id)


def read_profile(registry: Registry, profile: FileRef) -> ModelProfile:
    """The reference profile in the file. Raises: InvalidError; TrustError when the blob store holds other bytes."""
    return decode_profile(registry.blobs.read(profile.sha256, limit=MAX_PROFILE_BYTES))


def list_model_versions(registry: Registry, tenant: TenantId, *, model: str | None = None) -> list[ModelVersion]:
    """The newest first."""
    with registry.database.reading() as tx:
        return store.list_model_versions(tx, tenant, model=model)


# --- lines ---


def open_line(
    registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, passphrase: str | None = None, public_key: Path | None = None
) -> Line:
    """Open a model line: make its key (or take the public half of one made elsewhere) and let the offline targets key delegate to it.

    Raises: as `open_role`.
    """
    check_name(line, what="Line")
    keys = () if public_key is None else (public_key,)
    open_role(registry, tenant=tenant, by=by, role=line_role(line), passphrase=passphrase, public_keys=keys)
    with registry.database.reading() as tx:
        opened = store.find_line(tx, tenant, line)
    if opened is None:
        raise LookupError(line)
    return opened


def open_role(
    registry: Registry,
    *,
    tenant: TenantId,
    by: Actor,
    role: str,
    passphrase: str | None = None,
    public_keys: Sequence[Path] = (),
    threshold: int = 1,
) -> None:
    """Delegate a role ("model.LINE", "firmware.LINE", "policy") with the targets key of this machine; its own key is made if none is given.

    Raises: ConflictError when it is open, or the targets want other keys than the one here; ConfigError when the offline targets key is
    not on this machine or stays locked.
    """
    now = registry.clock.now()
    line = LineName(role.removeprefix(line_role(""))) if role.startswith(line_role("")) else None
    if line is not None:
        with registry.database.reading() as tx:
            _check_owner(store.find_line_owner(tx, line), tenant, line)
    if registry.image.has_role(role):
        raise ConflictError(f"Role {role} is open already.")
    targets = _targets_key(registry, role, passphrase)
    path = registry.folders.role_key_file(role)
    if not public_keys and not path.exists():
        create_role_key(registry.folders, role, passphrase=passphrase)
    keys = [load_public_key(file) for file in public_keys or (path.with_suffix(".pub"),)]
    registry.image.open_role(role, keys, threshold=threshold, signers=[targets], now=now)
    with registry.database.transaction() as tx:
        if line is not None:
            store.add_line(tx, tenant, line, now=now)
        subject, action = (f"line/{line}", "line.opened") if line is not None else (f"role/{role}", "role.opened")
        detail = {"keys": [key.keyid for key in keys], "threshold": threshold}
        audit.append(tx, tenant=tenant, actor=by, action=action, subject=subject, now=now, detail=detail)


def _targets_key(registry: Registry, role: str, passphrase: str | None) -> Signer:
    path = registry.folders.key_file(KeyName.IMAGE_TARGETS)
    asking = f"ask their holders: mooring keys {role.replace('.', ' ').replace('model', 'line')} --public-key FILE --request FILE"
    if not path.exists():
        raise ConfigError(
            f"The targets' key file {path} cannot be read: it is not there.", hint=f"Bring it back, or {asking}", code="key-missing"
        )
    signer = load_key(path, passphrase=passphrase)
    if not registry.image.is_targets_key(signer.public_key.keyid):
        raise ConflictError(
            "The targets want other keys, or more than the one on this machine.",
            hint=f"{asking[0].upper()}{asking[1:]}",
            code="ceremony-needed",
        )
    return signer


def list_lines(registry: Registry, tenant: TenantId) -> list[Line]:
    """All lines by name."""
    with registry.database.reading() as tx:
        return store.list_lines(tx, tenant)


def floors(registry: Registry, tenant: TenantId) -> defaultdict[LineName, int]:
    """The floor of each line: no device installs a release with a lower counter any more."""
    return defaultdict(int, {line.line: line.floor for line in list_lines(registry, tenant)})


def _check_owner(owner: TenantId | None, tenant: TenantId, line: str) -> None:
    if owner is not None and owner != tenant:
        raise ConflictError(
            f"The name {line!r} is taken on this server.", hint="Lines are roles of the one image repository: choose another."
        )


# --- releases ---


def create_release(
    registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, version: str, models: Sequence[ReleaseModel], note: str = ""
) -> Release:
    """Compose a release as a draft: it takes the line's next counter, and manifest and files of each variant are fixed from here on.

    Raises: InvalidError, NotFoundError, ConflictError naming what does not fit.
    """
    number = check_version(version)
    check_name(line, what="Line")
    if not 1 <= len(models) <= MAX_VARIANTS:
        raise InvalidError(f"A release of {len(models)} models was asked for; wanted 1 to {MAX_VARIANTS}.")
    _ensure_line(registry, tenant, by, line)
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        taken = [store.get_model_version(tx, tenant, item.model_id) for item in models]
        named = _named_variants(models, taken)
        _check_new(tx, tenant, line, number)
        _check_watched(tx, tenant, line, taken)
        counter = store.take_counter(tx, tenant, line)
    variants = tuple(_compose(registry, item, model, line=line, version=number, counter=counter) for item, model in named)
    release = Release(
        tenant=tenant,
        line=line,
        version=number,
        counter=counter,
        state=ReleaseState.DRAFT,
        variants=variants,
        content_digest=Digest(""),
        created_at=now,
        created_by=str(by),
        revision=1,
        note=note,
    )
    release = replace(release, content_digest=content_digest(target_files(release)))
    with registry.database.transaction() as tx:
        store.add_release(tx, release)
        detail = {"counter": counter, "content_digest": release.content_digest, "models": [model.id for model in taken]}
        audit.append(tx, tenant=tenant, actor=by, action="release.created", subject=f"release/{release.id}", now=now, detail=detail)
    return release


def get_release(registry: Registry, tenant: TenantId, line: LineName, version: ReleaseVersion) -> Release:
    """The release. Raises: NotFoundError."""
    with registry.database.reading() as tx:
        return store.get_release(tx, tenant, line, version)


def list_releases(registry: Registry, tenant: TenantId, *, line: LineName | None = None) -> list[Release]:
    """The newest first."""
    with registry.database.reading() as tx:
        return store.list_releases(tx, tenant, line=line)


def mark_proposed(tx: db.Connection, release: Release, *, approval: str) -> Release:
    """The release waits for that approval. Raises: ConflictError. The caller writes the audit entry."""
    proposed = replace(release.moved(ReleaseState.PROPOSED), approval=approval)
    store.save_release(tx, proposed)
    return proposed


def mark_rejected(tx: db.Connection, release: Release) -> Release:
    """The approval was refused. Raises: ConflictError. The caller writes the audit entry."""
    rejected = release.moved(ReleaseState.REJECTED)
    store.save_release(tx, rejected)
    return rejected


def mark_approved(registry: Registry, tx: db.Connection, release: Release, *, approved: Digest) -> Release:
    """The release was approved with that content digest: put up the request for the line's signature.

    Raises: ConflictError when the approval is for other content. The caller writes the audit entry.
    """
    if approved != release.content_digest or release.approval is None:
        raise ConflictError(f"The approval is for content {approved}; release {release.id} has {release.content_digest}.")
    approved_release = release.moved(ReleaseState.APPROVED)
    store.save_release(tx, approved_release)
    _request_signature(registry, tx, approved_release)
    return approved_release


def withdraw_release(registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, version: ReleaseVersion, reason: str) -> Release:
    """No new campaign takes the release; devices that have it keep it. Raises: NotFoundError; ConflictError when it is withdrawn."""
    with registry.database.transaction() as tx:
        withdrawn = store.get_release(tx, tenant, line, version).moved(ReleaseState.WITHDRAWN)
        store.save_release(tx, withdrawn)
        now = registry.clock.now()
        audit.append(tx, tenant=tenant, actor=by, action="release.withdrawn", subject=f"release/{withdrawn.id}", now=now, reason=reason)
    return withdrawn


# --- signatures ---


def list_signing_requests(registry: Registry, tenant: TenantId) -> list[SigningRequest]:
    """What waits for a line's key, the oldest first."""
    with registry.database.reading() as tx:
        return store.list_open_signing_requests(tx, tenant)


def find_signing_request(registry: Registry, tenant: TenantId, line: LineName, version: ReleaseVersion) -> SigningRequest:
    """The request for the release's signature. Raises: NotFoundError; ConflictError when the release does not wait for one."""
    with registry.database.reading() as tx:
        release = store.get_release(tx, tenant, line, version)
        request = store.find_signing_request(tx, release)
    if release.state is not ReleaseState.APPROVED or request is None:
        raise ConflictError(f"Release {release.id} is {release.state}; only an approved release is signed.")
    return request


def submit_signature(registry: Registry, *, tenant: TenantId, by: Actor, request_id: str, signed: bytes) -> Release:
    """Take the signed role metadata of a request; the release is then signed, or waits on when more of the line's keys must sign.

    Raises: NotFoundError; ConflictError; InvalidError when it is not the requested payload; TrustError when the line's key did not sign.
    """
    now = registry.clock.now()
    with registry.database.transaction() as tx:
        db.lock(tx, f"signing/{tenant}/{request_id}")
        request = store.get_signing_request(tx, tenant, request_id)
        taken = registry.image.take_signature(request.line, payload=request.payload, signed=signed)
        release = store.get_release(tx, tenant, request.line, request.version)
        if not taken.is_complete:
            if release.state is not ReleaseState.APPROVED:
                raise ConflictError(f"Release {release.id} is {release.state}; only an approved release is signed.")
            store.save_signing_request(tx, replace(request, payload=taken.data))
            subject = f"release/{release.id}"
            audit.append(tx, tenant=tenant, actor=by, action="release.signed-in-part", subject=subject, now=now)
            return release
        moved = replace(release.moved(ReleaseState.SIGNED), signed_at=now)
        store.save_release(tx, moved)
        store.set_signed(tx, request, taken.data)
        detail = {"role": request.role, "role_version": request.role_version, "content_digest": request.content_digest}
        audit.append(tx, tenant=tenant, actor=by, action="release.signed", subject=f"release/{release.id}", now=now, detail=detail)
    return moved


def publish_release(
    registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, version: ReleaseVersion, reason: str = ""
) -> Release:
    """Put the signed release into the image repository; campaigns may assign it from now on. Publishing again changes nothing.

    Raises: NotFoundError; ConflictError when it is not signed, or (code "signature-outdated") must be signed again; TrustError when a
    device would refuse it.
    """
    now = registry.clock.now()
    with registry.database.reading() as tx:
        release = store.get_release(tx, tenant, line, version)
        signed = store.find_signed(tx, release)
    if release.state is ReleaseState.PUBLISHED:
        return release
    release.moved(ReleaseState.PUBLISHED)
    if signed is None:
        raise ConflictError(f"Release {release.id} has no signature yet.", hint=f"mooring release sign {line} {version} --key FILE")
    try:
        _publish(registry, release, signed, now)
    except ConflictError as error:
        if error.code == "signature-outdated":
            _ask_again(registry, release, by, error.message)
        raise
    with registry.database.transaction() as tx:
        published = replace(store.get_release(tx, tenant, line, version).moved(ReleaseState.PUBLISHED), published_at=now)
        store.save_release(tx, published)
        detail = {"content_digest": release.content_digest}
        subject = f"release/{release.id}"
        audit.append(tx, tenant=tenant, actor=by, action="release.published", subject=subject, now=now, reason=reason, detail=detail)
        deltas.request(tx, tenant=tenant, line=line, now=now)
    return published


# --- the director ---


@dataclass(frozen=True, slots=True)
class ServedFile:
    """One metadata file with the ETag that stands for the whole assignment."""

    data: bytes
    etag: str


#: Composes what a device shall run, and says whether all that was needed to know is known; if not, the next poll asks again.
OrderSource = Callable[[db.Connection, DeviceId], tuple[Order, bool]]


def director_file(registry: Registry, *, tenant: TenantId, device: DeviceId, name: str, source: OrderSource) -> ServedFile:
    """A file of this device's director metadata; asking for one without a version signs anew when that is due.

    What a timestamp named stays to be had by its version for an hour after it was replaced, the last seven of them: a device that is in
    the middle of a check finds all of one version, whatever was ordered meanwhile.

    Raises: NotFoundError for a root that does not exist, a version that was never signed or is gone, or no file of ours.
    """
    if name.endswith(".root.json"):
        data = registry.director.read_root(name)
        return ServedFile(data, digest_of(data))
    if (named := parse_versioned_name(name)) is not None:
        return _versioned_file(registry, tenant=tenant, device=device, version=named[0], role=named[1])
    order = current_order(registry, tenant=tenant, device=device, source=source)
    found = order.find_file(name)
    if found is None:
        raise NotFoundError(f"The director has no file {name[:120]!r} for this device now.")
    return ServedFile(found, order.etag)


def _versioned_file(registry: Registry, *, tenant: TenantId, device: DeviceId, version: int, role: VersionedRole) -> ServedFile:
    with registry.database.reading() as tx:
        found = store.find_signed_file(tx, tenant, device, version=version, role=role)
    if found is None:
        raise NotFoundError(f"The director has no file '{version}.{role}.json' for this device now.")
    return ServedFile(*found)


def prune_orders(database: db.Database, *, now: datetime) -> int:
    """Forget what the director said more than an hour ago and replaced since, in small transactions; returns how many. Safe to repeat."""
    total, count = 0, _PRUNED_ROWS
    while count == _PRUNED_ROWS:
        with database.transaction() as tx:
            count = store.delete_earlier_orders(tx, before=now - EARLIER_FOR, limit=_PRUNED_ROWS)
        total += count
    return total


def current_order(registry: Registry, *, tenant: TenantId, device: DeviceId, source: OrderSource) -> SignedOrder:
    """What the director says to the device now: one indexed read unless the assignment changed or half of the validity has passed."""
    now = registry.clock.now()
    with registry.database.reading() as tx:
        found = store.find_signed_order(tx, tenant, device)
    if found and not found[1] and now < found[0].renew_at and registry.director.is_current(found[0]):
        return found[0]
    with registry.database.transaction() as tx:
        return refresh_order(registry, tx, tenant=tenant, device=device, source=source)


def refresh_order(registry: Registry, tx: db.Connection, *, tenant: TenantId, device: DeviceId, source: OrderSource) -> SignedOrder:
    """What the director says to the device from this transaction on; signed only when the order differs or half its life has passed."""
    now = registry.clock.now()
    db.lock(tx, f"director/{tenant}/{device}")
    found = store.find_signed_order(tx, tenant, device, is_held=True)
    order, is_complete = source(tx, device)
    if found and now < found[0].renew_at and found[0].order_digest == order_digest(order) and registry.director.is_current(found[0]):
        if is_complete:
            store.keep_signed_order(tx, tenant, device)
        return found[0]
    signed = registry.director.sign(order, last_version=found[0].version if found else 0, now=now)
    # before the first row exists there was nothing to mark: a change beside this transaction would be missed
    store.save_signed_order(tx, signed, is_stale=not is_complete or found is None)
    return signed


def sign_for_stick(
    registry: Registry, tx: db.Connection, *, tenant: TenantId, device: DeviceId, source: OrderSource, days: int
) -> SignedOrder:
    """What the director says to the device, holding `days`, for a stick; what is served online from now on has a later version."""
    now = registry.clock.now()
    db.lock(tx, f"director/{tenant}/{device}")
    found = store.find_signed_order(tx, tenant, device, is_held=True)
    order, is_complete = source(tx, device)
    carried = registry.director.sign(order, last_version=found[0].version if found else 0, now=now, days=days)
    served = registry.director.sign(order, last_version=carried.version, now=now)
    store.save_signed_order(tx, served, is_stale=not is_complete or found is None)
    return carried


def renew(registry: Registry) -> bool:
    """Sign the image repository's snapshot and timestamp again when they are past half their life; returns whether. Safe to repeat.

    Nothing is signed while the clock is not to be believed (R5).
    """
    now = registry.clock.now()
    return registry.guard.is_believed(now) and registry.image.renew(now)


def confirm_clock(registry: Registry, *, tenant: TenantId, by: Actor, reason: str) -> None:
    """A person says that the clock is right although it jumped: the director signs again."""
    now, seen = registry.clock.now(), registry.guard.last_seen()
    with registry.database.transaction() as tx:
        detail = {"last_seen": seen.isoformat(timespec="seconds") if seen else None}
        audit.append(tx, tenant=tenant, actor=by, action="clock.confirmed", subject="director/clock", now=now, reason=reason, detail=detail)
    registry.guard.confirm(now)


def ask_for_signatures_again(registry: Registry, *, tenant: TenantId, line: LineName, by: Actor, reason: str) -> None:
    """What waits for the line's signature, or has one and is not published, is put up anew over what is published now."""
    with registry.database.reading() as tx:
        waiting = [
            one for state in (ReleaseState.APPROVED, ReleaseState.SIGNED) for one in store.list_releases(tx, tenant, line=line, state=state)
        ]
    for release in waiting:
        _ask_again(registry, release, by, reason)


def _publish(registry: Registry, release: Release, signed: bytes, now: datetime) -> None:
    # published by an attempt that was cut before it could say so
    if registry.image.line_metadata(release.line) != signed:
        registry.image.publish_line(release.line, signed, now)


def _ask_again(registry: Registry, release: Release, by: Actor, reason: str) -> None:
    with registry.database.transaction() as tx:
        approved = store.get_release(tx, release.tenant, release.line, release.version)
        if approved.state is not ReleaseState.APPROVED:
            approved = approved.moved(ReleaseState.APPROVED)
            store.save_release(tx, approved)
        _request_signature(registry, tx, approved)
        now, subject = registry.clock.now(), f"release/{release.id}"
        audit.append(tx, tenant=release.tenant, actor=by, action="release.signature-outdated", subject=subject, now=now, reason=reason)


def _request_signature(registry: Registry, tx: db.Connection, release: Release) -> None:
    line = store.find_line(tx, release.tenant, release.line)
    now = registry.clock.now()
    payload = registry.image.next_line_role(release, floor=line.floor if line else 0, now=now)
    request = SigningRequest(
        tenant=release.tenant,
        request=new_id("sr"),
        line=release.line,
        version=release.version,
        role=line_role(release.line),
        role_version=registry.image.version_of(payload),
        payload=payload,
        previous=registry.image.line_metadata(release.line),
        content_digest=release.content_digest,
        approval=release.approval or "",
        created_at=now,
    )
    store.save_signing_request(tx, request)


def _ensure_line(registry: Registry, tenant: TenantId, by: Actor, line: LineName) -> None:
    with registry.database.transaction() as tx:
        _check_owner(store.find_line_owner(tx, line), tenant, line)
        if registry.image.has_line(line):
            store.add_line(tx, tenant, line, now=registry.clock.now())
            return
    if not registry.is_demo:
        raise ConflictError(
            f"Line {line} is not open.", hint=f"Bring the offline keys and run: mooring keys line {line}", code="line-closed"
        )
    open_line(registry, tenant=tenant, by=by, line=line)


def _check_new(tx: db.Connection, tenant: TenantId, line: LineName, version: ReleaseVersion) -> None:
    try:
        release = store.get_release(tx, tenant, line, version)
    except NotFoundError:
        return
    raise ConflictError(f"Release {release.id} exists already.", hint="A release never changes: choose another version.")


def _check_watched(tx: db.Connection, tenant: TenantId, line: LineName, models: Sequence[ModelVersion]) -> None:
    """A line that drift is watched on is not left without: every model of a release brings its profile then (UPDATES 2)."""
    watching = next(
        (
            release
            for release in store.list_releases(tx, tenant, line=line, state=ReleaseState.PUBLISHED)
            if any(file.name == PROFILE_NAME for variant in release.variants for file in variant.files)
        ),
        None,
    )
    lacking = next((model for model in models if model.profile is None), None)
    if watching is not None and lacking is not None:
        raise ConflictError(
            f"Model {lacking.id} has no reference profile; line {line} is watched for drift since release {watching.version} or before.",
            code="no-profile",
            hint="Import it again with evaluation data: mooring model import … --evaluation DATA",
        )


def _named_variants(models: Sequence[ReleaseModel], taken: Sequence[ModelVersion]) -> list[tuple[ReleaseModel, ModelVersion]]:
    """Each with its variant's name and device types filled in; refuses what a device could not choose between."""
    filled: list[tuple[ReleaseModel, ModelVersion]] = []
    for item, model in zip(models, taken, strict=True):
        types = item.device_types or model.device_types
        if not types:
            raise InvalidError(f"Model {model.id} names no device types.", hint="Name them in its draft, or with --device-type.")
        for device_type in types:
            check_name(device_type, what="Device type")
        filled.append((replace(item, device_types=types, variant=item.variant or model.format), model))
    seen: dict[tuple[str, str], str] = {}
    names = [item.variant for item, _ in filled]
    for item, model in filled:
        check_name(item.variant, what="Variant")
        if names.count(item.variant) > 1:
            raise InvalidError(f"Two variants are named {item.variant!r}.", hint="Give each model a variant name of its own.")
        for device_type in item.device_types:
            other = seen.setdefault((device_type, model.format), model.id)
            if other != model.id:
                raise InvalidError(f"{other} and {model.id} are both {model.format} models for device type {device_type}; wanted one.")
    return filled


def _compose(
    registry: Registry, item: ReleaseModel, model: ModelVersion, *, line: LineName, version: ReleaseVersion, counter: int
) -> Variant:
    draft = replace(parse_draft(json.loads(model.draft_json)), device_types=tuple(item.device_types))
    files = (model.file, model.golden, *([model.profile] if model.profile else []), model.card)
    manifest = complete(
        draft,
        tensors_from_json(model.tensors_json),
        line=line,
        release=version,
        counter=counter,
        variant=item.variant,
        files={file.name: FileEntry(sha256=file.sha256, length=file.length) for file in files},
        card_sha256=model.card.sha256,
        grid_id=read_profile(registry, model.profile).grid.grid_id.hex() if model.profile else None,
    )
    return Variant(
        variant=item.variant,
        runtime=model.format,
        device_types=item.device_types,
        model_id=model.id,
        files=(*files, _keep(registry, "manifest.json", to_bytes(manifest))),
        firmware_min=item.firmware_min,
        agent_min=item.agent_min,
        task=draft.task,
    )


def _keep(registry: Registry, name: str, data: bytes) -> FileRef:
    registry.blobs.put(data)
    return FileRef(name, len(data), digest_of(data))


def _evaluation(profiled: Profiled) -> dict[str, Any]:
    """What the card says of the evaluation behind the reference profile."""
    profile = profiled.profile
    document: dict[str, Any] = {
        "profile_sha256": digest_of(profiled.data),
        "grid": profile.grid.grid_id.hex(),
        "rows": profile.reference.rows,
        "features": [feature.name for feature in profile.grid.features],
        "left_out": profiled.left_out,
    }
    if profile.accuracy is not None:
        document["accuracy"] = round(profile.accuracy.acc0, 4)
        document["under_damage"] = [
            {"family": one.family, "severity": one.severity, "accuracy": round(one.accuracy, 4), "estimate_off_by": round(one.error, 4)}
            for one in profile.accuracy.families
        ]
    return document


def _card(
    model: str,
    version: int,
    file: FileRef,
    golden: FileRef,
    draft: ModelDraft,
    inspected: Inspected,
    *,
    note: str,
    by: Actor,
    now: datetime,
) -> bytes:
    document: Mapping[str, Any] = {
        "schema": CARD_SCHEMA,
        "model": model,
        "version": version,
        "task": draft.task,
        "labels": list(draft.labels),
        "format": inspected.format,
        "file": {"sha256": file.sha256, "length": file.length},
        "golden_sha256": golden.sha256,
        "inspected_with": {"backend": inspected.tensors.backend, "version": inspected.tensors.version},
        "lineage": without_none(encode(draft.lineage)),
        "note": note,
        "imported_by": by.name,
        "imported_at": now.isoformat(timespec="seconds"),
        **({} if inspected.profiled is None else {"evaluation": _evaluation(inspected.profiled)}),
    }
    return canonical_json(dict(document))
