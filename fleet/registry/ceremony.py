"""The ceremonies: what the offline keys are asked to sign, made out of what is published; and its publication.

A ceremony changes keys, thresholds, expiry and floors, never a file that a role lists. Whatever would no longer verify after the change
is part of the same request with its next version, so that one publication keeps every device that follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from securesystemslib.signer import Key, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from fleet import audit
from fleet.audit import Actor
from fleet.registry import service, store
from fleet.registry.online import role_of
from fleet.registry.repository import delegate_role
from fleet.registry.requests import HOLDER, KeyRequest, Repository, check_request, delegated_roles, floor_of, short_id
from fleet.registry.service import Registry
from fleet.registry.signing import ROOT_DAYS, TARGETS_DAYS, KeyName, expiry, load_public_key
from protocol.canonical import digest_of
from protocol.errors import ConflictError, InvalidError, NotFoundError
from protocol.ids import Digest, LineName, TenantId
from protocol.trust.metadata import ImageLineFields, line_role, write_fields

#: The three roles that the director's, or the two that the image repository's, online keys sign.
ONLINE_ROLES: Mapping[Repository, tuple[KeyName, ...]] = {
    "image": (KeyName.IMAGE_SNAPSHOT, KeyName.IMAGE_TIMESTAMP),
    "director": (KeyName.DIRECTOR_TARGETS, KeyName.DIRECTOR_SNAPSHOT, KeyName.DIRECTOR_TIMESTAMP),
}


def repository_of(role: str) -> Repository:
    """Which repository a role belongs to: "director-root", "image-targets", "model.digits", "policy"."""
    return "director" if role.startswith("director-") else "image"


def start(registry: Registry, repository: Repository, *, reason: str = "") -> KeyRequest:
    """A request that changes nothing yet, over what is published now."""
    now = registry.clock.now()
    if repository == "director":
        return KeyRequest(repository, registry.director.roots(), {}, {}, reason, now)
    published = {role: Metadata[Any].from_bytes(data) for role, data in registry.image.published_roles().items()}
    return KeyRequest(repository, registry.image.roots(), published, {}, reason, now)


# --- what may be asked for; each returns the request with one change more, `finish` completes it ---


def init_root(request: KeyRequest, keys: Sequence[Key], *, threshold: int, targets_keys: Sequence[Key] | None = None) -> KeyRequest:
    """Give the root to these keys; in the image repository the targets too, to `targets_keys` or the same ones."""
    changed = _with_keys(request, f"{request.repository}-root", keys, threshold)
    if request.repository == "director":
        return changed
    return _with_keys(changed, KeyName.IMAGE_TARGETS, keys if targets_keys is None else targets_keys, threshold)


def add_key(request: KeyRequest, role: str, key: Key, *, threshold: int | None = None) -> KeyRequest:
    """One key more may sign the role. Raises: ConflictError when it may already."""
    keys, before = _keys_of(request, role)
    if key.keyid in keys:
        raise ConflictError(f"Key {short_id(key.keyid)} may sign {role} already.")
    return _with_keys(request, role, [*keys.values(), key], threshold or before)


def remove_key(request: KeyRequest, role: str, old: str, *, threshold: int | None = None) -> KeyRequest:
    """The key no longer signs the role. Raises: NotFoundError; InvalidError when too few would be left."""
    keys, before = _keys_of(request, role)
    gone = find_key(keys, old, role)
    return _with_keys(request, role, [key for keyid, key in keys.items() if keyid != gone], threshold or before)


def rotate_key(request: KeyRequest, role: str, old: str, new: Key) -> KeyRequest:
    """The new key takes the place of the old one. Raises: NotFoundError when `old` (an id or its first digits) does not sign the role."""
    keys, threshold = _keys_of(request, role)
    gone = find_key(keys, old, role)
    if new.keyid in keys:
        raise ConflictError(f"Key {short_id(new.keyid)} may sign {role} already.", hint="Make a new one: mooring keys new")
    return _with_keys(request, role, [new if keyid == gone else key for keyid, key in keys.items()], threshold)


def set_threshold(request: KeyRequest, role: str, threshold: int) -> KeyRequest:
    """So many keys must sign the role. Raises: InvalidError when there are fewer."""
    keys, _ = _keys_of(request, role)
    return _with_keys(request, role, list(keys.values()), threshold)


def replace_online(request: KeyRequest, keys: Mapping[KeyName, Key]) -> KeyRequest:
    """The online roles of the repository get these keys and no others, threshold 1."""
    changed = request
    for name, key in keys.items():
        changed = _with_keys(changed, name, [key], 1)
    return changed


def open_role(request: KeyRequest, role: str, keys: Sequence[Key], *, threshold: int = 1) -> KeyRequest:
    """The targets delegate the role's paths to these keys. Raises: ConflictError when it is open; InvalidError."""
    targets = _next_targets(request)
    delegate_role(targets, role, keys, threshold=threshold)
    return _with_document(request, Targets.type, targets)


def renew(request: KeyRequest, role: str) -> KeyRequest:
    """The same content with a later expiry. Raises: NotFoundError when nothing of the role is published."""
    if role in {"image-root", "director-root"}:
        return _with_document(request, Root.type, _next_root(request))
    if role == KeyName.IMAGE_TARGETS:
        return _with_document(request, Targets.type, _next_targets(request))
    if role not in request.published:
        raise NotFoundError(f"Nothing of role {role} is published.", hint="See: mooring keys status")
    return _with_document(request, role, _next_role(request, role))


def revoke(request: KeyRequest, role: str, keys: Sequence[Key], *, threshold: int = 1, floor: int | None = None) -> KeyRequest:
    """Nothing that the role's old keys signed counts any more; the new keys sign what is listed again, with the raised floor.

    Raises: NotFoundError when the role is not open; InvalidError when an old key is among the new ones, or the floor would fall.
    """
    before, _ = _keys_of(request, role)
    if kept := before.keys() & {key.keyid for key in keys}:
        raise InvalidError(f"Key {short_id(min(kept))} is to be revoked; the new keys hold it too.")
    changed = _with_keys(request, role, keys, threshold)
    signed = _next_role(changed, role)
    line = role.partition(".")[2]
    if floor is not None:
        if not line:
            raise InvalidError(f"Role {role} has no releases and no floor.", hint="Leave out --raise-floor.")
        if floor < floor_of(signed):
            raise InvalidError(f"The floor of {role} is {floor_of(signed)}; {floor} would lower it.")
        signed.unrecognized_fields = write_fields(ImageLineFields(line=line, floor=floor))
    return _with_document(changed, role, signed)


def finish(request: KeyRequest, *, now: datetime) -> KeyRequest:
    """The request, complete: with the next version of whatever would not verify any more, and new expiries. Raises: TrustError."""
    complete = _with_orphans(request)
    for role, document in complete.documents.items():
        document.signed.expires = expiry(now, ROOT_DAYS if role == Root.type else TARGETS_DAYS)
    check_request(complete)
    return complete


# --- publication ---


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication did."""

    repository: Repository
    versions: Mapping[str, int]
    #: Of the first root: what devices in the field were born with.
    bootstrap: Digest
    #: Of the newest root: may be built into new firmware in place of the first one.
    newest_root: Digest


def publish(registry: Registry, request: KeyRequest, *, tenant: TenantId, by: Actor, reason: str) -> Published:
    """Publish what enough keys signed, after the device's own code walked the chain from the first root and accepted it.

    Raises: ConflictError when signatures are missing or something was published since the request was made; ConfigError when the private
    half of a new online key is not on this machine; TrustError when a device would refuse it.
    """
    now = registry.clock.now()
    check_request(request)
    if missing := request.missing():
        first = missing[0]
        raise ConflictError(
            f"{first.role} wants {first.count} more of {first.by}: {', '.join(short_id(key) for key in first.keys)}.",
            hint="Each holder runs: mooring keys sign REQUEST --key FILE",
            code="signatures-missing",
        )
    documents = {role: document.to_bytes() for role, document in request.documents.items()}
    _check_same_history(request, start(registry, request.repository).chain, documents.get(Root.type))
    if request.repository == "director":
        registry.director.publish_root(documents[Root.type], now)
    else:
        registry.image.publish_ceremony(documents, now)
    newest = documents.get(Root.type, request.chain[-1])
    versions = {role: document.signed.version for role, document in request.documents.items()}
    published = Published(request.repository, versions, request.bootstrap_digest, digest_of(newest))
    _record(registry, request, published, tenant=tenant, by=by, reason=reason)
    return published


def _check_same_history(request: KeyRequest, chain: tuple[bytes, ...], root: bytes | None) -> None:
    # a publication that was cut after its root is repeated: then the chain here is one longer
    here = chain[:-1] if root is not None and chain[-1] == root else chain
    if here != request.chain:
        raise ConflictError(
            f"The request knows {len(request.chain)} roots of the {request.repository} repository; here are {len(here)}, or other ones.",
            hint="Make the request again on this server.",
            code="signature-outdated",
        )


def _record(registry: Registry, request: KeyRequest, published: Published, *, tenant: TenantId, by: Actor, reason: str) -> None:
    now = registry.clock.now()
    signers = {role: sorted(document.signatures.keys() & request.allowed_keys(role).keys()) for role, document in request.documents.items()}
    detail = {"versions": dict(published.versions), "signed_by": signers, "newest_root": published.newest_root}
    lines = {LineName(role.partition(".")[2]): role for role in request.documents if role.startswith(line_role(""))}
    with registry.database.transaction() as tx:
        for line, role in lines.items():
            store.raise_floor(tx, tenant, line, floor_of(cast("Targets", request.documents[role].signed)))
        store.renew_orders(tx, now=now)  # else a device hears 304 and follows only when its order is renewed
        subject = f"keys/{request.repository}"
        audit.append(tx, tenant=tenant, actor=by, action="keys.published", subject=subject, now=now, reason=reason, detail=detail)
    for line in lines:
        service.ask_for_signatures_again(registry, tenant=tenant, line=line, by=by, reason="The line's keys or floor changed.")


def record(registry: Registry, *, tenant: TenantId, by: Actor, action: str, subject: str, reason: str = "", **detail: Any) -> None:
    """An audit entry about keys that changes nothing else."""
    with registry.database.transaction() as tx:
        audit.append(tx, tenant=tenant, actor=by, action=action, subject=subject, now=registry.clock.now(), reason=reason, detail=detail)


# --- keys ---


def holder_key(path: Path) -> SSlibKey:
    """The public key in the file, with the file's name as its holder's: it stands in the signed root for people. Raises: ConfigError."""
    key = load_public_key(path)
    key.unrecognized_fields[HOLDER] = path.name.removesuffix(".pub")[:60]
    return key


def find_key(keys: Mapping[str, Key], wanted: str, role: str) -> str:
    """The id that begins with `wanted`. Raises: NotFoundError; InvalidError when several do or it is too short."""
    found = [keyid for keyid in keys if keyid.startswith(wanted)]
    if len(wanted) < 8 or len(found) > 1:
        raise InvalidError(f"{wanted!r} does not name one key.", hint="Give at least 8 digits of its id: mooring keys status")
    if not found:
        raise NotFoundError(f"Key {wanted[:64]} does not sign {role}.", hint=f"It is one of: {', '.join(map(short_id, keys))}.")
    return found[0]


def _keys_of(request: KeyRequest, role: str) -> tuple[dict[str, Key], int]:
    if role in set(KeyName):
        root = request.next_root
        named = root.roles[role_of(role)]
        return {keyid: root.keys[keyid] for keyid in named.keyids}, named.threshold
    targets = request.next_targets
    found = delegated_roles(targets).get(role)
    if found is None or targets is None or targets.delegations is None:
        raise NotFoundError(f"There is no role {role!r}.", hint="See: mooring keys status")
    return {keyid: targets.delegations.keys[keyid] for keyid in found.keyids}, found.threshold


def _with_keys(request: KeyRequest, role: str, keys: Sequence[Key], threshold: int) -> KeyRequest:
    count = len({key.keyid for key in keys})
    if not 1 <= threshold <= count:
        raise InvalidError(f"{role} would have {count} keys and threshold {threshold}; wanted a threshold from 1 to the count of keys.")
    if role in set(KeyName):
        if repository_of(role) != request.repository:
            raise InvalidError(f"{role} does not belong to the {request.repository} repository.")
        root, name = _next_root(request), role_of(role)
        _exchange(root, name, root.roles[name], keys, threshold)
        return _with_document(request, Root.type, root)
    targets = _next_targets(request)
    delegated = delegated_roles(targets).get(role)
    if delegated is None:
        raise NotFoundError(f"There is no role {role!r}.", hint="See: mooring keys status")
    _exchange(targets, role, delegated, keys, threshold)
    return _with_document(request, Targets.type, targets)


def _exchange(holder: Root | Targets, name: str, role: Any, keys: Sequence[Key], threshold: int) -> None:
    wanted = {key.keyid for key in keys}
    for keyid in list(role.keyids):
        if keyid not in wanted:
            holder.revoke_key(keyid, name)
    for key in keys:
        holder.add_key(key, name)
    role.threshold = threshold


# --- documents ---


def _next_root(request: KeyRequest) -> Root:
    begun = request.documents.get(Root.type)
    return cast("Root", _copy(begun) if begun else _next(Metadata[Any].from_bytes(request.chain[-1])))


def _next_targets(request: KeyRequest) -> Targets:
    if request.repository == "director":
        raise InvalidError("The director's targets are made per device; they delegate to nobody.")
    begun = request.documents.get(Targets.type)
    return cast("Targets", _copy(begun) if begun else _next(request.published[Targets.type]))


def _next_role(request: KeyRequest, role: str) -> Targets:
    if (begun := request.documents.get(role)) is not None:
        return cast("Targets", _copy(begun))
    if (published := request.published.get(role)) is not None:
        return cast("Targets", _next(published))
    first = Targets(version=1)
    if role.startswith(line_role("")):
        first.unrecognized_fields = write_fields(ImageLineFields(line=role.partition(".")[2], floor=0))
    return first


def _copy(document: Metadata[Any]) -> Root | Targets:
    return cast("Root | Targets", Metadata[Any].from_bytes(document.to_bytes()).signed)


def _next(document: Metadata[Any]) -> Root | Targets:
    copy = _copy(document)
    copy.version += 1
    return copy


def _with_document(request: KeyRequest, role: str, signed: Root | Targets) -> KeyRequest:
    order = (Root.type, Targets.type)
    documents = {**request.documents, role: Metadata(signed)}
    ordered = sorted(documents.items(), key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0]))
    return replace(request, documents=dict(ordered))


def _with_orphans(request: KeyRequest) -> KeyRequest:
    complete = request
    targets = request.published.get(Targets.type)
    if targets is not None and Targets.type not in request.documents and not _verifies(request.next_root, Targets.type, targets):
        complete = _with_document(complete, Targets.type, _next_targets(complete))
    for role, document in request.published.items():
        parent = complete.next_targets
        if role in {Targets.type, *complete.documents} or parent is None or role not in delegated_roles(parent):
            continue
        if not _verifies(parent, role, document):
            complete = _with_document(complete, role, _next_role(complete, role))
    return complete


def _verifies(parent: Root | Targets, role: str, document: Metadata[Any]) -> bool:
    try:
        parent.verify_delegate(role, document.signed_bytes, document.signatures)
    except (RepositoryError, ValueError):
        return False
    return True
