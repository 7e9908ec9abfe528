"""The image repository: what exists. Plain files under DATA/tuf/image; nothing is published before the device's own code accepted it.

Consistent snapshots: every file but the timestamp carries its version in its name and never changes, so the timestamp, written last,
is the moment of publication. The snapshot binds length and sha256 of every role; a role has one delegator.
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient.fetcher import FetcherInterface

from fleet.registry.model import Release
from fleet.registry.online import OnlineKeys, newest_root_version
from fleet.registry.signing import (
    MAX_ROLE_BYTES,
    SNAPSHOT_DAYS,
    TARGETS_DAYS,
    TIMESTAMP_DAYS,
    KeyName,
    TrustFolders,
    expiry,
    meta_of,
    sign_metadata,
)
from protocol.errors import ConflictError, InvalidError, NotFoundError, TrustError
from protocol.files import read_bounded, write_atomically
from protocol.ids import Digest, LineName, check_name
from protocol.trust.metadata import (
    POLICY_PATTERN,
    POLICY_ROLE,
    ImageLineFields,
    ImageTargetFields,
    Requires,
    firmware_pattern,
    line_pattern,
    line_role,
    read_fields,
    variant_prefix,
    write_fields,
)
from protocol.trust.updater import RepositoryAccess, StrictUpdater

#: Files that one role may list: python-tuf reads at most 5,000,000 bytes of a role, and a check's memory grows with it (UPDATES 1.5).
MAX_ROLE_FILES = 2000
#: Names of files that the repository may serve.
FILE_NAME = re.compile(r"^(?:[0-9]{1,16}\.)?[a-z0-9][a-z0-9.-]{0,100}\.json$")
_BASE_URL = "memory:"


@dataclass(frozen=True, slots=True)
class SignedRole:
    """Metadata of a delegated role as its keys have signed it so far."""

    data: bytes
    #: Whether as many keys signed as must; else others are still to sign on top of `data`.
    is_complete: bool


@dataclass(frozen=True, slots=True)
class RoleFile:
    """One file of a delegated role."""

    path: str
    #: Bytes.
    length: int
    sha256: Digest
    #: What stands in `custom` of the target: our fields under their own key, as `write_fields` makes them. Empty: nothing.
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> TargetFile:
        """As the role lists it."""
        custom = {"custom": dict(self.custom)} if self.custom else None
        return TargetFile(self.length, {"sha256": self.sha256.removeprefix("sha256:")}, self.path, custom)


class MemoryFetcher(FetcherInterface):
    """Reads a repository out of a mapping of file names: the device's code against what is about to be published."""

    def __init__(self, files: Mapping[str, bytes], folder: Path | None = None) -> None:
        self._files, self._folder = files, folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(f"{_BASE_URL}/")
        if name in self._files:
            return iter([self._files[name]])
        path = self._folder / name if self._folder and FILE_NAME.fullmatch(name) else None
        if path is None or not path.is_file():
            raise DownloadHTTPError(f"{name} does not exist", 404)
        return iter([read_bounded(path, MAX_ROLE_BYTES)])


def target_files(release: Release) -> list[TargetFile]:
    """The target files of a release with our fields, as the line's role lists them; ordered by path."""
    found = []
    for variant in release.variants:
        fields = ImageTargetFields(
            line=release.line,
            release=release.version,
            counter=release.counter,
            variant=variant.variant,
            device_types=tuple(variant.device_types),
            runtime=variant.runtime,
            requires=Requires(firmware_min=variant.firmware_min, agent_min=variant.agent_min),
        )
        prefix = variant_prefix(release.line, release.version, variant.variant)
        for file in variant.files:
            custom = {"custom": write_fields(fields)}
            found.append(TargetFile(file.length, {"sha256": file.sha256.removeprefix("sha256:")}, f"{prefix}{file.name}", custom))
    return sorted(found, key=lambda target: target.path)


class ImageRepository:
    """The published files of one server and the publisher's online keys. Safe for several threads and processes of one machine."""

    def __init__(self, folders: TrustFolders, keys: OnlineKeys) -> None:
        self._folders = folders
        self._folder = folders.image
        self._keys = keys

    def read(self, name: str) -> bytes:
        """One file of the repository. Raises: NotFoundError, also for names that cannot be one."""
        path = self._folder / name
        if not FILE_NAME.fullmatch(name) or not path.is_file():
            raise NotFoundError(f"The image repository has no file {name[:120]!r}.")
        return read_bounded(path, MAX_ROLE_BYTES)

    @property
    def bootstrap(self) -> bytes:
        """The first root: what a device is born with."""
        return self.read(self._folders.image_bootstrap.name)

    def has_role(self, role: str) -> bool:
        """Whether the offline targets delegate to the role, e.g. "policy" or "model.digits"."""
        return role in delegated_names(self._targets())

    def role_metadata(self, role: str) -> bytes:
        """The published role as signed; empty when nothing of it was published yet."""
        meta = self._snapshot().meta.get(f"{role}.json")
        return self.read(f"{meta.version}.{role}.json") if meta else b""

    def has_line(self, line: LineName) -> bool:
        """Whether the offline targets delegate to the model line."""
        return self.has_role(line_role(line))

    def line_metadata(self, line: LineName) -> bytes:
        """The model line's published role as signed; empty when nothing of the line was published yet."""
        return self.role_metadata(line_role(line))

    def open_line(self, line: LineName, key: Key, *, signer: Signer, now: datetime) -> None:
        """Delegate `model/{line}/*/*` to the line's key, signed by the offline targets key, and publish that.

        Raises: as `open_role`.
        """
        self.open_role(line_role(line), [key], signers=[signer], now=now)

    def open_policy(self, keys: Sequence[Key], *, threshold: int = 1, signers: Sequence[Signer], now: datetime) -> None:
        """Delegate `policy/*/*/*` (configuration of devices) to these keys. Raises: as `open_role`."""
        self.open_role(POLICY_ROLE, keys, threshold=threshold, signers=signers, now=now)

    def open_role(self, role: str, keys: Sequence[Key], *, threshold: int = 1, signers: Sequence[Signer], now: datetime) -> None:
        """Delegate the role's paths to these keys, signed by the offline targets keys, and publish that.

        Raises: ConflictError when the role is open; InvalidError when keys and threshold do not fit; TrustError when `signers` are not the
        targets keys.
        """
        with self._locked():
            targets = self._targets()
            delegate_role(targets, role, keys, threshold=threshold)
            targets.version += 1
            targets.expires = expiry(now, TARGETS_DAYS)
            self._publish({Targets.type: (targets.version, sign_metadata(targets, signers))}, now)

    def next_policy_role(self, files: Iterable[RoleFile], *, now: datetime) -> bytes:
        """What the policy keys shall sign next: exactly these files; no signatures. Raises: ConflictError when the role is not open."""
        if not self.has_role(POLICY_ROLE):
            raise ConflictError(
                "The policy role is not open.", hint="Bring the offline keys and run: mooring keys policy", code="role-closed"
            )
        published = self.role_metadata(POLICY_ROLE)
        listed = {file.path: file.target for file in sorted(files, key=lambda file: file.path)}
        _check_count(POLICY_ROLE, len(listed))
        version = _targets_of(published).version + 1 if published else 1
        return Metadata(Targets(version=version, expires=expiry(now, TARGETS_DAYS), targets=listed)).to_bytes()

    def publish_policy(self, signed: bytes, now: datetime) -> None:
        """Publish the policy role: after this devices may see it. Raises: as `publish_role`."""
        self.publish_role(POLICY_ROLE, signed, now)

    def next_line_role(self, release: Release, *, floor: int, now: datetime) -> bytes:
        """What the line's key shall sign next: all that is published of the line and this release; no signatures.

        Raises: ConflictError when the line is not open, or a path is published with other content.
        """
        if not self.has_line(release.line):
            raise ConflictError(
                f"Line {release.line} is not open.", hint=f"Bring the offline keys and run: mooring keys line {release.line}"
            )
        published = self.line_metadata(release.line)
        before = _targets_of(published) if published else None
        listed = dict(before.targets) if before else {}
        for target in target_files(release):
            if listed.setdefault(target.path, target) != target:
                raise ConflictError(f"{target.path} is published with other content; a release never changes. Choose another version.")
        _check_count(line_role(release.line), len(listed))
        if before is not None:  # a floor that `keys revoke` raised is never lowered by what the database remembers
            floor = max(floor, read_fields(ImageLineFields, before.unrecognized_fields, what="The published role").floor)
        role = Targets(version=before.version + 1 if before else 1, expires=expiry(now, TARGETS_DAYS), targets=dict(sorted(listed.items())))
        role.unrecognized_fields = write_fields(ImageLineFields(line=release.line, floor=floor))
        return Metadata(role).to_bytes()

    def take_signature(self, line: LineName, *, payload: bytes, signed: bytes) -> SignedRole:
        """`signed`, which is the payload, with the signatures of the line's keys on either. Raises: as `take_role_signature`."""
        return self.take_role_signature(line_role(line), f"line {line}", payload=payload, signed=signed)

    def take_role_signature(self, role: str, what: str, *, payload: bytes, signed: bytes) -> SignedRole:
        """`signed`, which is the payload, with the signatures of the keys of the role on either: two may have signed copies of one request.

        Raises: InvalidError when it is another payload; TrustError when none of the keys of `what` signed it; ConflictError when this adds
        no signature to those that the payload has.
        """
        wanted, found = _metadata_of(payload), _metadata_of(signed)
        if found.signed_bytes != wanted.signed_bytes:
            raise InvalidError("The signed metadata is not the payload that was to be signed.", hint="Fetch the signing request again.")
        targets = self._targets()
        try:
            before = targets.get_verification_result(role, wanted.signed_bytes, wanted.signatures)
            after = targets.get_verification_result(role, found.signed_bytes, found.signatures)
            if not after.signed:
                raise TrustError(f"This is not signed by any of the {len(after.unsigned)} keys of {what}.", code="bad-signature")
            if not before.signed.keys() <= after.signed.keys():
                # the first to hand in goes first: the bytes do not depend on whether the second saw the first one's signature
                kept = {keyid: one for keyid, one in wanted.signatures.items() if keyid in before.signed}
                found.signatures = {**kept, **{keyid: one for keyid, one in found.signatures.items() if keyid not in kept}}
                signed = found.to_bytes()
                after = targets.get_verification_result(role, found.signed_bytes, found.signatures)
        except (RepositoryError, ValueError) as error:
            raise TrustError(f"This is not signed by the key of {what}: {error}", code="bad-signature") from error
        if len(after.signed) <= len(before.signed):
            raise ConflictError(f"That key signed this request already; {after.threshold} different ones must.", code="signed-already")
        return SignedRole(signed, is_complete=bool(after))

    def version_of(self, payload: bytes) -> int:
        """The version of role metadata."""
        return _targets_of(payload).version

    def publish_line(self, line: LineName, signed: bytes, now: datetime) -> None:
        """Publish the line's next role: after this the world may see it. Raises: as `publish_role`."""
        self.publish_role(line_role(line), signed, now)

    def publish_role(self, name: str, signed: bytes, now: datetime) -> None:
        """Publish the next version of a delegated role: after this the world may see it.

        Raises: ConflictError when its version is not the next one; TrustError when a device would refuse it; nothing is published then.
        """
        role = _targets_of(signed)
        if role.delegations is not None:
            raise TrustError(f"Role {name} delegates further; a role has one delegator.", code="not-approved")
        with self._locked():
            published = self.role_metadata(name)
            wanted = _targets_of(published).version + 1 if published else 1
            if role.version != wanted:
                raise ConflictError(
                    f"The signed role {name} has version {role.version}; the next one is {wanted}.",
                    hint="Another version was published in between: sign this one again.",
                    code="signature-outdated",
                )
            self._publish({name: (role.version, signed)}, now, expected=role)

    def renew(self, now: datetime) -> bool:
        """Sign snapshot and timestamp again when the timestamp is past half its life or the snapshot near its end; returns whether."""
        with self._locked():
            if not self._is_due(now):
                return False
            self._publish({}, now)
        return True

    def sign_for_stick(self, now: datetime, *, days: int) -> tuple[dict[str, bytes], datetime]:
        """All metadata as one closed set whose snapshot and timestamp hold `days`; and the moment at which the first of it all ends.

        Its versions lie between two published ones: who saw the stick finds what is online newer, and the other way round what was
        online before older. Raises: TrustError when a device would refuse it.
        """
        with self._locked():
            snapshot, timestamp = self._snapshot(), self._timestamp()
            self._publish({}, now, skipped=1)
            roles = self.published_roles()
            files = {f"{_targets_of(data).version}.{name}.json": data for name, data in roles.items()}
            files |= {f"{version}.root.json": data for version, data in enumerate(self.roots(), 1)}
            snapshot.version += 1
            timestamp.version += 1
            snapshot.expires = timestamp.expires = expiry(now, days)
            snapshot_bytes = sign_metadata(snapshot, self._signers(KeyName.IMAGE_SNAPSHOT, None))
            timestamp.snapshot_meta = meta_of(snapshot.version, snapshot_bytes)
            files[f"{snapshot.version}.snapshot.json"] = snapshot_bytes
            files["timestamp.json"] = sign_metadata(timestamp, self._signers(KeyName.IMAGE_TIMESTAMP, None))
            self._check_as_a_device(files, now, None, delegated_names(self._targets()))
        ends = [_targets_of(data).expires for data in roles.values()]
        return files, min([snapshot.expires, root_expiry(self._newest_root()), *ends])

    def _is_due(self, now: datetime) -> bool:
        timestamp, snapshot = self._timestamp(), self._snapshot()
        half_s = TIMESTAMP_DAYS * 86_400 / 2
        return (timestamp.expires - now).total_seconds() < half_s or (snapshot.expires - now).total_seconds() < half_s

    def publish_ceremony(self, documents: Mapping[str, bytes], now: datetime) -> None:
        """Publish what the offline keys signed: next versions of root, targets and delegated roles, all in one step.

        A root that names new online keys takes effect at once: snapshot and timestamp are signed by the old keys, as far as they are here,
        and the new ones, so a device finds them good before and after it has seen the root. Safe to repeat after a cut.
        Raises: ConflictError when a version is not the next one; ConfigError when a new online key is not on this machine; TrustError when
        a device would refuse it; nothing is published then.
        """
        with self._locked():
            root = documents.get(Root.type)
            if root is not None and self._newest_root() == root:
                root = None
            roles = {name: (_targets_of(data).version, data) for name, data in documents.items() if name != Root.type}
            fresh = {name: item for name, item in roles.items() if self.role_metadata(name) != item[1]}
            if root is not None:
                self._check_version(Root.type, Metadata[Root].from_bytes(root).signed.version, self._newest_root_version())
            for name, (version, _) in fresh.items():
                published = self.role_metadata(name)
                self._check_version(name, version, _targets_of(published).version if published else 0)
            if root is not None or fresh:
                self._publish(fresh, now, root=root)

    @staticmethod
    def _check_version(name: str, version: int, last: int) -> None:
        if version != last + 1:
            raise ConflictError(
                f"{name} in the request has version {version}; the next one is {last + 1}.",
                hint="Something was published since the request was made: make it again.",
                code="signature-outdated",
            )

    def roots(self) -> tuple[bytes, ...]:
        """All published roots, the first one first."""
        return tuple(self.read(f"{version}.root.json") for version in range(1, self._newest_root_version() + 1))

    def threshold_of(self, role: str) -> int:
        """How many keys must sign the delegated role; 0 when it is not open."""
        delegations = self._targets().delegations
        found = (delegations.roles or {}).get(role) if delegations else None
        return found.threshold if found else 0

    def is_targets_key(self, keyid: str) -> bool:
        """Whether this key alone may sign the targets."""
        role = Metadata[Root].from_bytes(self._newest_root()).signed.roles[Targets.type]
        return role.threshold == 1 and keyid in role.keyids

    def published_roles(self) -> dict[str, bytes]:
        """The targets and every delegated role of which something is published, as signed."""
        names = (Targets.type, *sorted(delegated_names(self._targets())))
        return {name: data for name in names if (data := self.role_metadata(name))}

    def _newest_root_version(self) -> int:
        return newest_root_version(self._folder)

    def _newest_root(self) -> bytes:
        return self.read(f"{self._newest_root_version()}.root.json")

    def _publish(
        self,
        roles: Mapping[str, tuple[int, bytes]],
        now: datetime,
        *,
        expected: Targets | None = None,
        root: bytes | None = None,
        skipped: int = 0,
    ) -> None:
        files = {f"{version}.{name}.json": data for name, (version, data) in roles.items()}
        next_root = Metadata[Root].from_bytes(root).signed if root is not None else None
        snapshot, timestamp = self._snapshot(), self._timestamp()
        for name, (version, data) in roles.items():
            snapshot.meta[f"{name}.json"] = meta_of(version, data)
        snapshot.version += 1 + skipped
        snapshot.expires = expiry(now, SNAPSHOT_DAYS)
        snapshot_bytes = sign_metadata(snapshot, self._signers(KeyName.IMAGE_SNAPSHOT, next_root))
        files[f"{snapshot.version}.snapshot.json"] = snapshot_bytes
        timestamp.version += 1 + skipped
        timestamp.expires = expiry(now, TIMESTAMP_DAYS)
        timestamp.snapshot_meta = meta_of(snapshot.version, snapshot_bytes)
        files["timestamp.json"] = sign_metadata(timestamp, self._signers(KeyName.IMAGE_TIMESTAMP, next_root))
        if next_root is not None and root is not None:
            files[f"{next_root.version}.root.json"] = root
        delegated = {name.removesuffix(".json") for name in snapshot.meta} if Targets.type in roles or root is not None else set()
        self._check_as_a_device(files, now, expected, delegated)
        if root is not None:
            self._check_as_a_follower(files, now, delegated)
        for name in sorted(files, key=_write_order):
            write_atomically(self._folder / name, files[name])

    def _signers(self, name: KeyName, next_root: Root | None) -> list[Signer]:
        if next_root is None:
            return self._keys.signers(name)
        both = [*self._keys.find_signers(name), *self._keys.signers(name, next_root)]
        return list({signer.public_key.keyid: signer for signer in both}.values())

    def _check_as_a_device(self, files: Mapping[str, bytes], now: datetime, expected: Targets | None, delegated: set[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="mooring-check-") as scratch:
            self._follow(Path(scratch), files, now, expected, delegated)

    def _check_as_a_follower(self, files: Mapping[str, bytes], now: datetime, delegated: set[str]) -> None:
        """As a device that has seen everything until now; what is there may be so broken that no device could."""
        with tempfile.TemporaryDirectory(prefix="mooring-check-") as scratch:
            with contextlib.suppress(TrustError):
                self._follow(Path(scratch), {}, now, None, delegated)
            self._follow(Path(scratch), files, now, None, delegated)

    def _follow(self, scratch: Path, files: Mapping[str, bytes], now: datetime, expected: Targets | None, delegated: set[str]) -> None:
        access = RepositoryAccess(scratch, _BASE_URL, self.bootstrap, MemoryFetcher(files, self._folder))
        try:
            updater = StrictUpdater(access, reference_time=now)
            updater.refresh()
            for path, target in (expected.targets if expected else {}).items():
                if updater.get_targetinfo(path) != target:
                    raise TrustError(f"A device would not find {path} as it is signed; nothing was published.", code="not-published")
            for name in delegated & delegated_names(updater.targets()):
                updater.get_targetinfo(role_pattern(name).replace("*", "0"))  # loads the role: it must still verify under these targets
        except (RepositoryError, ValueError) as error:
            raise TrustError(f"A device would refuse this: {error}. Nothing was published.", code="not-published") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _timestamp(self) -> Timestamp:
        return Metadata[Timestamp].from_bytes(self.read("timestamp.json")).signed

    def _snapshot(self) -> Snapshot:
        return Metadata[Snapshot].from_bytes(self.read(f"{self._timestamp().snapshot_meta.version}.snapshot.json")).signed

    def _targets(self) -> Targets:
        return _targets_of(self.read(f"{self._snapshot().meta['targets.json'].version}.targets.json"))


def _write_order(name: str) -> int:
    """The timestamp makes the rest visible; a new root comes after it, because the timestamp is good under the old one too."""
    if name.endswith(".root.json"):
        return 2
    return 1 if name == "timestamp.json" else 0


def delegate_role(targets: Targets, role: str, keys: Sequence[Key], *, threshold: int = 1) -> None:
    """Add a terminating delegation to the targets; its paths follow from its name.

    Raises: ConflictError when it is there; InvalidError for a name that is no role of ours, or a threshold that the keys cannot reach.
    """
    if not 1 <= threshold <= len({key.keyid for key in keys}):
        raise InvalidError(f"Role {role} got {len(keys)} keys and threshold {threshold}; wanted a threshold from 1 to the count of keys.")
    delegations = targets.delegations = targets.delegations or Delegations({}, {})
    roles = cast("dict[str, DelegatedRole]", delegations.roles)
    if role in roles:
        raise ConflictError(f"Role {role} is open already.")
    roles[role] = DelegatedRole(role, [], threshold, terminating=True, paths=[role_pattern(role)])
    for key in keys:
        targets.add_key(key, role)


def check_chain(files: Mapping[str, bytes], *, bootstrap: bytes, now: datetime) -> None:
    """Nothing when a device that is born with `bootstrap` accepts the repository in `files`. Raises: TrustError."""
    with tempfile.TemporaryDirectory(prefix="mooring-check-") as scratch:
        updater = StrictUpdater(RepositoryAccess(Path(scratch), _BASE_URL, bootstrap, MemoryFetcher(files)), reference_time=now)
        try:
            updater.refresh()
            for name in delegated_names(updater.targets()):
                if any(file.partition(".")[2] == f"{name}.json" for file in files):
                    updater.get_targetinfo(role_pattern(name).replace("*", "0"))
        except (RepositoryError, ValueError) as error:
            raise TrustError(f"A device would refuse this: {error}. Nothing was published.", code="not-published") from error


def delegated_names(targets: Targets) -> set[str]:
    """The roles that the targets delegate to."""
    return set((targets.delegations.roles or {}) if targets.delegations else ())


def role_pattern(role: str) -> str:
    """The paths that a delegated role may list. Raises: InvalidError when no role of ours has that name."""
    kind, _, line = role.partition(".")
    if role == POLICY_ROLE:
        return POLICY_PATTERN
    if kind not in {"model", "firmware"}:
        raise InvalidError(f"Role {role[:100]!r} cannot be delegated; wanted model.LINE, firmware.LINE or {POLICY_ROLE}.")
    check_name(line, what="Line")
    return line_pattern(line) if kind == "model" else firmware_pattern(line)


def _check_count(role: str, count: int) -> None:
    if count > MAX_ROLE_FILES:
        raise ConflictError(
            f"Role {role} would list {count} files; at most {MAX_ROLE_FILES} are kept in one role.",
            hint="Open a new line for the releases to come.",
            code="role-full",
        )


def root_expiry(root: bytes) -> datetime:
    """When the root in these bytes expires."""
    return Metadata[Root].from_bytes(root).signed.expires


def _targets_of(data: bytes) -> Targets:
    return _metadata_of(data).signed


def _metadata_of(data: bytes) -> Metadata[Targets]:
    try:
        metadata = Metadata[Targets].from_bytes(data)
    except DeserializationError as error:
        raise InvalidError("This is no TUF metadata.") from error
    if not isinstance(metadata.signed, Targets):
        raise InvalidError(f"This is TUF metadata of type {metadata.signed.type}; wanted targets.")
    return metadata
