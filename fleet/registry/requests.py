"""A request for signatures of offline keys: one file that travels on a stick; read, told in words, and signed without the server.

It holds the next version of each role that changes, and of what is published now all that is needed to judge them: the chain of roots
from the first one, the targets, the delegated roles. What is said in words is computed from the signed bytes, never read from the file.
Hostile input: the file is limited in size, each part is verified by the part that it hangs on, and text is shown without control signs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, cast

from securesystemslib.signer import Key, Signer, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from fleet.registry.repository import role_pattern
from fleet.registry.signing import KEY_SCHEMES, key_id_of, parse_role
from protocol.canonical import digest_of
from protocol.errors import ConflictError, InvalidError, TrustError
from protocol.files import read_bounded, write_atomically
from protocol.ids import Digest
from protocol.trust.metadata import ImageLineFields, read_fields

SCHEMA: Final = "mooring-signing-request.1"
#: Two full roles of 5,000,000 bytes beside what is published of them.
MAX_REQUEST_BYTES = 24_000_000
#: python-tuf walks as many.
MAX_ROOTS = 256
#: No ceremony makes metadata that holds longer than this; a later expiry is a mistake or an attack.
MAX_VALID = timedelta(days=3 * 366)
MAX_TEXT = 500

Repository = Literal["image", "director"]
AnyMetadata = Metadata[Any]
HOLDER = "x-mooring-holder"


@dataclass(frozen=True, slots=True)
class Missing:
    """What a document still wants: `count` more signatures out of these keys, which `by` names."""

    role: str
    by: str
    count: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A verified request."""

    repository: Repository
    #: All roots that are published, the first one first, as served.
    chain: tuple[bytes, ...]
    #: What is published of targets and delegated roles, by role.
    published: Mapping[str, AnyMetadata]
    #: The next version of each role that changes, with the signatures so far.
    documents: Mapping[str, AnyMetadata]
    reason: str
    made_at: datetime

    @property
    def root(self) -> Root:
        """The newest published root."""
        return _root_of(self.chain[-1])

    @property
    def next_root(self) -> Root:
        """The root after this request."""
        document = self.documents.get(Root.type)
        return cast("Root", document.signed) if document else self.root

    @property
    def next_targets(self) -> Targets | None:
        """The image repository's targets after this request; None in the director's, which are made per device."""
        found = self.documents.get(Targets.type) or self.published.get(Targets.type)
        return cast("Targets", found.signed) if found else None

    @property
    def bootstrap_digest(self) -> Digest:
        """What a device is born with; compare it with the one in the firmware."""
        return digest_of(self.chain[0])

    def allowed_keys(self, role: str) -> dict[str, Key]:
        """The keys whose signature under the document counts."""
        if role == Root.type:
            roots = (self.root, self.next_root)
            return {keyid: root.keys[keyid] for root in roots for keyid in root.roles[Root.type].keyids}
        if role == Targets.type:
            return {keyid: self.next_root.keys[keyid] for keyid in self.next_root.roles[Targets.type].keyids}
        targets = self.next_targets
        delegated = _delegated(targets, role)
        keys = targets.delegations.keys if targets and targets.delegations else {}
        return {keyid: keys[keyid] for keyid in delegated.keyids if keyid in keys}

    def missing(self) -> list[Missing]:
        """What signatures are still wanted, in the order in which roles hang on each other; empty: the request can be published."""
        found = []
        for role, document in self.documents.items():
            for by, keyids, threshold in self._thresholds(role):
                signed = self._valid(role, document) & set(keyids)
                if len(signed) < threshold:
                    found.append(Missing(role, by, threshold - len(signed), tuple(sorted(set(keyids) - signed))))
        return found

    def _thresholds(self, role: str) -> Iterator[tuple[str, Sequence[str], int]]:
        if role == Root.type:
            old, new = self.root.roles[Root.type], self.next_root.roles[Root.type]
            yield "the root keys until now", old.keyids, old.threshold
            if set(new.keyids) != set(old.keyids) or new.threshold != old.threshold:
                yield "the new root keys", new.keyids, new.threshold
        elif role == Targets.type:
            targets = self.next_root.roles[Targets.type]
            yield "the targets keys", targets.keyids, targets.threshold
        else:
            delegated = _delegated(self.next_targets, role)
            yield f"the keys of {role}", delegated.keyids, delegated.threshold

    def _valid(self, role: str, document: AnyMetadata) -> set[str]:
        return {keyid for keyid, key in self.allowed_keys(role).items() if keyid in document.signatures and _verifies(key, keyid, document)}

    def sign(self, signer: Signer) -> tuple["KeyRequest", list[str]]:
        """The request with this key's signature under every document that it may sign; and which roles those are.

        Raises: TrustError (code "wrong-key") when no document wants this key.
        """
        keyid = signer.public_key.keyid
        roles = [role for role in self.documents if keyid in self.allowed_keys(role)]
        if not roles:
            wanted = sorted({short_id(one) for item in self.missing() for one in item.keys})
            raise TrustError(
                f"Key {short_id(keyid)} signs nothing in this request; wanted are {', '.join(wanted) or 'no more signatures'}.",
                hint="See: mooring keys show REQUEST",
                code="wrong-key",
            )
        documents = dict(self.documents)
        for role in roles:
            copy = Metadata[Any].from_bytes(documents[role].to_bytes())
            copy.sign(signer, append=True)
            documents[role] = copy
        return replace(self, documents=documents), roles

    def merged(self, other: "KeyRequest") -> "KeyRequest":
        """With the signatures of another copy of the same request. Raises: ConflictError when it is another request."""
        if self.documents.keys() != other.documents.keys() or any(
            document.signed_bytes != other.documents[role].signed_bytes for role, document in self.documents.items()
        ):
            raise ConflictError("These files are not copies of one request.", hint="Sign copies of the same file.")
        documents = {}
        for role, document in self.documents.items():
            copy = Metadata[Any].from_bytes(document.to_bytes())
            valid = self._valid(role, document)
            copy.signatures.update({keyid: one for keyid, one in other.documents[role].signatures.items() if keyid not in valid})
            documents[role] = copy
        return replace(self, documents=documents)

    def to_bytes(self) -> bytes:
        """The file; `parse` reads it back."""
        body = {
            "schema": SCHEMA,
            "repository": self.repository,
            "made_at": self.made_at.isoformat(),
            "reason": self.reason,
            "chain": [data.decode() for data in self.chain],
            "published": {role: json.loads(document.to_bytes()) for role, document in self.published.items()},
            "documents": {role: json.loads(document.to_bytes()) for role, document in self.documents.items()},
        }
        return json.dumps(body, indent=1).encode()


def read_request(path: Path) -> KeyRequest:
    """The request in the file. Raises: InvalidError, TrustError as `parse`; OSError."""
    return parse(read_bounded(path, MAX_REQUEST_BYTES))


def write_request(path: Path, request: KeyRequest) -> None:
    """Write the file in one step: a stick pulled out too early holds the old one."""
    write_atomically(path, request.to_bytes())


def parse(data: bytes) -> KeyRequest:
    """A request out of foreign bytes, verified as far as that is possible without the server: only the first root is taken on trust.

    Raises: InvalidError when it is malformed; TrustError when a part does not verify, or it asks for more than a ceremony may change.
    """
    request = _parse(data)
    check_request(request)
    return request


def check_published(data: bytes, *, bootstrap: Digest, role: str, previous: bytes) -> None:
    """Nothing when `previous` is the role as published, by the chain in `data` (a request without changes) from the first root on.

    So a holder signs on top of what the line's other keys signed. Raises: InvalidError; TrustError when it does not hang on that root.
    """
    published = _parse(data)
    if published.bootstrap_digest != bootstrap:
        raise TrustError(f"The server's first root is {published.bootstrap_digest}; yours is {bootstrap}.", code="wrong-root")
    _check_verifies(published)
    found = published.published.get(role)
    if found is None or found.to_bytes() != _role_of(previous).to_bytes():
        raise TrustError(f"What the request calls published is not what the keys of {role} signed last.", code="not-approved")


def _role_of(data: bytes) -> AnyMetadata:
    return parse_role(data, "The published role")


def _parse(data: bytes) -> KeyRequest:
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidError(f"The request has {len(data)} bytes; at most {MAX_REQUEST_BYTES} are read.")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError("The request is no JSON document.", hint="Copy the file from the server again.") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        seen = str(body.get("schema"))[:60] if isinstance(body, dict) else type(body).__name__
        raise InvalidError(f"This is {_plain(seen)!r}; wanted a {SCHEMA}.")
    repository = body.get("repository")
    if repository not in ("image", "director"):  # a tuple: a set would want something hashable of foreign bytes
        raise InvalidError("The request names no repository; wanted image or director.")
    try:
        made_at = datetime.fromisoformat(str(body.get("made_at")))
    except ValueError as error:
        raise InvalidError("The request does not say when it was made.") from error
    return KeyRequest(
        repository=repository,
        chain=tuple(_chain(body.get("chain"))),
        published=_documents(body.get("published"), "published"),
        documents=_documents(body.get("documents"), "documents"),
        reason=_plain(str(body.get("reason", "")))[:MAX_TEXT],
        made_at=made_at if made_at.tzinfo else made_at.replace(tzinfo=UTC),
    )


def check_request(request: KeyRequest) -> None:
    """Nothing when every part verifies and the documents are next versions that change what a ceremony may. Raises: TrustError."""
    _check_verifies(request)
    if not request.documents:
        raise InvalidError("The request changes nothing.")
    for role, document in request.documents.items():
        _check_document(request, role, document)


def _check_verifies(request: KeyRequest) -> None:
    try:
        _verify_published(request)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"What the request says is published does not verify: {_plain(str(error))}.", code="bad-signature") from error


def _verify_published(request: KeyRequest) -> None:
    trusted = _root_of(request.chain[0])
    for data in request.chain:
        metadata = Metadata[Root].from_bytes(data)
        root = metadata.signed
        trusted.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
        root.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
        if data is not request.chain[0] and root.version != trusted.version + 1:
            raise ValueError(f"root version {root.version} follows {trusted.version}")
        trusted = root
    if (targets := request.published.get(Targets.type)) is not None:
        trusted.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
    for role, document in request.published.items():
        if role != Targets.type:
            if targets is None:
                raise ValueError(f"{role} hangs on no targets")
            targets.signed.verify_delegate(role, document.signed_bytes, document.signatures)


def _check_document(request: KeyRequest, role: str, document: AnyMetadata) -> None:
    signed = document.signed
    if signed.expires - request.made_at > MAX_VALID:
        raise TrustError(
            f"{role} would hold until {signed.expires:%Y-%m-%d}; at most {MAX_VALID.days} days are signed.", code="not-allowed"
        )
    if role == Root.type:
        _check_next_version(role, signed, request.root.version, Root)
        _check_root(signed)
        return
    if request.repository == "director":
        raise TrustError(f"The director's offline keys sign its root only; the request holds {role}.", code="not-allowed")
    published = request.published.get(role)
    _check_next_version(role, signed, published.signed.version if published else 0, Targets)
    if role == Targets.type:
        _check_targets(signed)
        return
    _delegated(request.next_targets, role)
    _check_delegated(role, signed, published.signed if published else None)


def _check_next_version(role: str, signed: Any, last: int, kind: type[Root | Targets]) -> None:
    if not isinstance(signed, kind):
        raise TrustError(f"The document for {role} is of another type.", code="not-allowed")
    if signed.version != last + 1:
        raise TrustError(f"{role} has version {signed.version}; after version {last} wanted {last + 1}.", code="not-allowed")


def _check_root(root: Root) -> None:
    if not root.consistent_snapshot:
        raise TrustError("The root would give up consistent snapshots.", code="not-allowed")
    _check_keys(root.keys, "The root")
    for name, role in root.roles.items():
        _check_signers(name, role.keyids, role.threshold, root.keys)


def _check_targets(targets: Targets) -> None:
    if targets.targets:
        raise TrustError("The top targets list files; wanted delegations only.", code="not-allowed")
    if targets.delegations is None:
        return
    if targets.delegations.succinct_roles is not None:
        raise TrustError("The targets delegate by hash; wanted named roles only.", code="not-allowed")
    _check_keys(targets.delegations.keys, "The targets")
    for name, role in (targets.delegations.roles or {}).items():
        if not isinstance(name, str) or role.paths != [role_pattern(name)] or role.terminating is not True:
            raise TrustError(
                f"Role {_plain(str(name))[:60]} may list {_plain(str(role.paths))[:200]}; wanted its own paths only, terminating.",
                code="not-allowed",
            )
        _check_signers(name, role.keyids, role.threshold, targets.delegations.keys)


def _check_signers(name: str, keyids: Sequence[Any], threshold: int, keys: Mapping[str, Key]) -> None:
    if not all(isinstance(keyid, str) and keyid in keys for keyid in keyids):
        raise TrustError(f"{_plain(name)[:60]} names keys that are not there.", code="not-allowed")
    if not 1 <= threshold <= len(set(keyids)):
        raise TrustError(f"{_plain(name)[:60]} wants {threshold} signatures of {len(keyids)} keys.", code="not-allowed")


def _check_delegated(role: str, signed: Targets, before: Targets | None) -> None:
    if signed.delegations is not None:
        raise TrustError(f"{role} delegates further; a role has one delegator.", code="not-allowed")
    if signed.targets != (before.targets if before else {}):
        raise TrustError(f"{role} lists other files than are published; a ceremony changes keys and floors only.", code="not-allowed")
    if floor_of(signed) < (floor_of(before) if before else 0):
        raise TrustError(f"The floor of {role} would fall; it only rises.", code="not-allowed")


def _check_keys(keys: Mapping[str, Key], what: str) -> None:
    for keyid, key in keys.items():
        if not isinstance(key, SSlibKey) or (key.keytype, key.scheme) not in KEY_SCHEMES:
            raise TrustError(f"{what} names a key of kind {_plain(str(key.keytype))[:40]}.", code="not-allowed")
        # else a request could show one holder's id and mean another's key
        if keyid != key_id_of(key):
            raise TrustError(f"{what} calls a key {_plain(str(keyid))[:64]}, which is not the id of that key.", code="not-allowed")


def floor_of(role: Targets) -> int:
    """The floor of a line's role; 0 for roles that have none."""
    if "mooring" not in role.unrecognized_fields:
        return 0
    return read_fields(ImageLineFields, role.unrecognized_fields, what="The role").floor


# --- in words ---


def describe(request: KeyRequest) -> list[str]:
    """What the request changes, in sentences, out of the bytes that are to be signed."""
    lines = [f"Signing request for the {request.repository} repository, made {request.made_at:%Y-%m-%d %H:%M} UTC."]
    if request.reason:
        lines.append(f"Its maker says (not signed): {request.reason}")
    lines.append(f"First root: {request.bootstrap_digest}. Compare it with the one in your firmware or your notes.")
    for role, document in request.documents.items():
        lines.extend(["", *_describe_document(request, role, document)])
    lines.append("")
    missing = request.missing()
    lines.extend(f"Still wanted under {one.role}: {one.count} of {one.by}: {', '.join(map(short_id, one.keys))}." for one in missing)
    if not missing:
        lines.append("All signatures are there. Publish it on the server: mooring keys publish REQUEST")
    return lines


def _describe_document(request: KeyRequest, role: str, document: AnyMetadata) -> list[str]:
    signed = document.signed
    first = f"{role}: version {signed.version - 1} -> {signed.version}, valid until {signed.expires:%Y-%m-%d}."
    if role == Root.type:
        return [first, *(_describe_change(name, request.root, signed) for name in signed.roles if _changes(name, request.root, signed))]
    before = request.published.get(role)
    if role == Targets.type:
        return [first, *_describe_delegations(before.signed if before else None, signed)]
    old_floor = floor_of(before.signed) if before else 0
    kept = f"  Lists the same {len(signed.targets)} files as now."
    if floor_of(signed) == old_floor:
        return [first, kept]
    return [first, kept, f"  Floor {old_floor} -> {floor_of(signed)}: no release with a lower counter is ever installed again."]


def _changes(name: str, old: Root, new: Root) -> bool:
    before, after = old.roles[name], new.roles[name]
    return set(before.keyids) != set(after.keyids) or before.threshold != after.threshold


def _describe_change(name: str, old: Root, new: Root) -> str:
    before, after = old.roles[name], new.roles[name]
    return _describe_keys(name, (before.keyids, before.threshold, old.keys), (after.keyids, after.threshold, new.keys))


def _describe_delegations(before: Targets | None, after: Targets) -> list[str]:
    old, new = delegated_roles(before), delegated_roles(after)
    old_keys = before.delegations.keys if before and before.delegations else {}
    new_keys = after.delegations.keys if after.delegations else {}
    lines = [f"  Closes {_plain(name)}: nothing it lists can be installed." for name in old if name not in new]
    for name, role in new.items():
        was = old.get(name)
        if was is None:
            lines.append(f"  Opens {name}: {role.threshold} of {len(role.keyids)} keys may list {role_paths(role)}.")
        if was is None or set(was.keyids) != set(role.keyids) or was.threshold != role.threshold:
            keyids, threshold = (was.keyids, was.threshold) if was else ([], 0)
            lines.append(_describe_keys(name, (keyids, threshold, old_keys), (role.keyids, role.threshold, new_keys)))
    return lines


def _describe_keys(name: str, old: tuple[Sequence[str], int, Mapping[str, Key]], new: tuple[Sequence[str], int, Mapping[str, Key]]) -> str:
    added = [f"+ {name_of_key(new[2][keyid])}" for keyid in new[0] if keyid not in old[0]]
    gone = [f"- {name_of_key(old[2][keyid])}" for keyid in old[0] if keyid not in new[0]]
    counts = f"{old[1]} of {len(old[0])} -> {new[1]} of {len(new[0])}" if old[0] else f"{new[1]} of {len(new[0])}"
    return "\n".join([f"  Keys of {name}: {counts} must sign.", *(f"    {text}" for text in (*added, *gone))])


def delegated_roles(targets: Targets | None) -> Mapping[str, DelegatedRole]:
    """The roles that the targets delegate to, by name."""
    if targets is None or targets.delegations is None:
        return {}
    return targets.delegations.roles or {}


def role_paths(role: DelegatedRole) -> str:
    """The paths of a role, for people."""
    return ", ".join(role.paths or ())


def short_id(keyid: str) -> str:
    """A key id for people: its first 12 digits, which `--old` takes too."""
    return keyid[:12]


def name_of_key(key: Key) -> str:
    """Key id and kind, and the holder as the root names him."""
    holder = _plain(str(key.unrecognized_fields.get(HOLDER, "")))[:60]
    return f"{short_id(key.keyid)} ({key.keytype}{f', {holder}' if holder else ''})"


# --- reading ---


def _chain(value: Any) -> Iterator[bytes]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ROOTS:
        raise InvalidError(f"The request holds no chain of 1 to {MAX_ROOTS} roots.")
    for item in value:
        data = str(item).encode()
        try:
            _metadata(json.loads(data), "A root of the chain", Root)
        except (ValueError, RecursionError) as error:
            raise InvalidError("A root of the chain is no JSON document.") from error
        yield data


def _documents(value: Any, what: str) -> dict[str, AnyMetadata]:
    if not isinstance(value, dict) or len(value) > MAX_ROOTS:
        raise InvalidError(f"The request's {what!r} are no documents by role.")
    order = {Root.type: 0, Targets.type: 1}
    found = {str(role): _metadata(item, f"{what} {_plain(str(role))[:60]}", None) for role, item in value.items()}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], 2), item[0])))


def _metadata(value: Any, what: str, kind: type | None) -> AnyMetadata:
    try:
        metadata = Metadata[Any].from_bytes(json.dumps(value).encode())
    except (DeserializationError, RecursionError, ValueError) as error:
        raise InvalidError(f"{what} is no TUF metadata.") from error
    if not isinstance(metadata.signed, kind or (Root, Targets)):
        raise InvalidError(f"{what} is metadata of type {metadata.signed.type}.")
    return metadata


def _root_of(data: bytes) -> Root:
    return Metadata[Root].from_bytes(data).signed


def _delegated(targets: Targets | None, role: str) -> DelegatedRole:
    found = delegated_roles(targets).get(role)
    if found is None:
        raise TrustError(f"The targets delegate to no role {_plain(role)[:60]}.", code="not-allowed")
    return found


def _verifies(key: Key, keyid: str, document: AnyMetadata) -> bool:
    from securesystemslib.exceptions import UnverifiedSignatureError

    try:
        key.verify_signature(document.signatures[keyid], document.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def _plain(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)
