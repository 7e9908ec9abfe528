"""The director: what one device should run, signed by the server's online keys; kept per device, signed again past half its life.

All three roles of a device carry one version, max(last + 1, Unix seconds), so that a server restored from a backup is not refused (R5).
"""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet  # what verifies on a device, without its disk
from tuf.ngclient.config import EnvelopeType

from fleet.registry.clock_guard import ClockGuard
from fleet.registry.model import Release, Variant
from fleet.registry.online import OnlineKeys, newest_root_version
from fleet.registry.repository import MemoryFetcher
from fleet.registry.signing import KeyName, TrustFolders, expiry, meta_of, sign_metadata
from protocol.canonical import canonical_json, digest_of
from protocol.clock import to_unix_ms
from protocol.errors import ConflictError, InvalidError, NotFoundError, TrustError
from protocol.files import read_bounded, write_atomically
from protocol.ids import DeviceId, Digest, LineName, TenantId
from protocol.trust.metadata import (
    CandidateOrder,
    ConfigurationOrder,
    DeltaOffer,
    DirectorFields,
    DirectorTargetFields,
    LineOrder,
    PipelineRun,
    configuration_path,
    read_fields,
    variant_prefix,
    write_fields,
)
from protocol.trust.updater import TIME_TYPE, RepositoryAccess, StrictUpdater

#: Validity of a device's metadata, days; a device that polls gets it renewed at half of that.
DIRECTOR_DAYS = 7
MAX_ROOT_BYTES = 512_000
MAX_NONCE = 64
#: As the fetcher of the check in memory wants it.
_BASE_URL = "memory:"
#: Roles whose files have their version in front: what a timestamp names stays to be had under its name.
VersionedRole = Literal["targets", "snapshot"]
_ROOT_NAME = re.compile(r"^[0-9]{1,9}\.root\.json$")
_VERSIONED_NAME = re.compile(r"^([0-9]{1,16})\.(targets|snapshot)\.json$")


@dataclass(frozen=True, slots=True)
class OrderedLine:
    """The release that one line of a device shall have."""

    release: Release
    variant: Variant
    assignment: str
    attempt: int
    campaign: str
    assigned_at: datetime
    #: Per digest of a file: what may be fetched in its place by this device.
    deltas: Mapping[Digest, tuple[DeltaOffer, ...]] = field(default_factory=dict)
    #: Bytes that may be fetched in full over a metered link; None: the device's own policy decides.
    full_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class OrderedCandidate:
    """A release that shall run beside the one that its line has."""

    line: OrderedLine
    run_as: Literal["shadow", "ab"]
    #: Percent of the time blocks in which it answers, and of one core that comparing may take.
    share: int
    cpu: int
    until: datetime | None


@dataclass(frozen=True, slots=True)
class OrderedConfiguration:
    """The configuration that a device shall have: a file of the image repository's role `policy`."""

    group: str
    rev: int
    attempt: int
    #: Bytes.
    length: int
    sha256: Digest


@dataclass(frozen=True, slots=True)
class Order:
    """All that a device shall run. A line that is not in it keeps what it has."""

    tenant: TenantId
    device: DeviceId
    lines: tuple[OrderedLine, ...]
    line_floor: Mapping[LineName, int] = field(default_factory=dict)
    #: None: the device keeps the one that it has.
    configuration: OrderedConfiguration | None = None
    #: At most one of each line, and none that its line has already.
    candidates: tuple[OrderedCandidate, ...] = ()

    @property
    def latest(self) -> OrderedLine | None:
        """The line that was assigned last: it lends its assignment to the fields that speak for the whole."""
        return max(self.lines, key=lambda line: (line.assigned_at, line.assignment), default=None)


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """A device's director metadata as served."""

    tenant: TenantId
    device: DeviceId
    version: int
    targets: bytes
    snapshot: bytes
    timestamp: bytes
    etag: Digest
    order_digest: Digest
    signed_at: datetime
    renew_at: datetime

    def find_file(self, name: str) -> bytes | None:
        """The file of that name without a version in front; None when it is no file of ours."""
        return {"timestamp.json": self.timestamp, "targets.json": self.targets, "snapshot.json": self.snapshot}.get(name)


def parse_versioned_name(name: str) -> tuple[int, VersionedRole] | None:
    """Version and role of a file name such as `17.targets.json`, as a timestamp or snapshot names it; None for any other."""
    match = _VERSIONED_NAME.fullmatch(name)
    return None if match is None else (int(match[1]), "targets" if match[2] == "targets" else "snapshot")


class Director:
    """Signs orders. Holds the online keys; no state."""

    def __init__(self, folders: TrustFolders, keys: OnlineKeys, guard: ClockGuard) -> None:
        self._folders = folders
        self._keys = keys
        self._guard = guard
        #: The newest root with its version: what orders are checked against.
        self._newest: tuple[int, bytes] = (0, b"")

    @property
    def bootstrap(self) -> bytes:
        """The first root: what a device is born with."""
        return self.read_root(self._folders.director_bootstrap.name)

    def read_root(self, name: str) -> bytes:
        """A root by file name. Raises: NotFoundError: the device then knows that it has the newest."""
        path = self._folders.director / name
        if not _ROOT_NAME.fullmatch(name) or not path.is_file():
            raise NotFoundError(f"The director has no file {name[:120]!r}.")
        return read_bounded(path, MAX_ROOT_BYTES)

    def roots(self) -> tuple[bytes, ...]:
        """All published roots, the first one first."""
        return tuple(self.read_root(f"{version}.root.json") for version in range(1, newest_root_version(self._folders.director) + 1))

    def publish_root(self, data: bytes, now: datetime) -> None:
        """Publish the next root; from then on the online keys that it names sign. Safe to repeat after a cut.

        Raises: ConflictError when its version is not the next one; ConfigError when an online key is not on this machine; TrustError when a
        device would refuse it; nothing is published then.
        """
        version, last = Metadata[Root].from_bytes(data).signed.version, newest_root_version(self._folders.director)
        if self.read_root(f"{last}.root.json") == data:
            return
        if version != last + 1:
            raise ConflictError(
                f"The request has root version {version}; the next one is {last + 1}.",
                hint="Another root was published since the request was made: make it again.",
                code="signature-outdated",
            )
        root = Metadata[Root].from_bytes(data).signed
        trial = self._sign(Order(TenantId("trial"), DeviceId("trial"), ()), last_version=0, now=now, root=root)
        self._check_chain(trial, now=now, root=(f"{version}.root.json", data))
        write_atomically(self._folders.director / f"{version}.root.json", data)

    def _check_chain(self, order: SignedOrder, *, now: datetime, root: tuple[str, bytes]) -> None:
        """As a device that walks the chain from the first root to this one."""
        files = {"timestamp.json": order.timestamp, root[0]: root[1]}
        files |= {f"{order.version}.snapshot.json": order.snapshot, f"{order.version}.targets.json": order.targets}
        with tempfile.TemporaryDirectory(prefix="mooring-check-") as scratch:
            access = RepositoryAccess(Path(scratch), _BASE_URL, self.bootstrap, MemoryFetcher(files, self._folders.director))
            try:
                StrictUpdater(access, reference_time=now).refresh()
            except (RepositoryError, ValueError) as error:
                raise TrustError(f"A device would refuse what the director signed: {error}.", code="not-published") from error

    def check(self, order: SignedOrder, *, now: datetime) -> None:
        """Nothing when what verifies metadata on a device accepts the order under the newest root; less than a millisecond of CPU.

        The chain up to that root was walked by the device's whole code when it was published. Raises: TrustError: it must not be served.
        """
        try:
            trusted = TrustedMetadataSet(self._newest_root(), EnvelopeType.METADATA)
            trusted.reference_time = now
            trusted.update_timestamp(order.timestamp)
            trusted.update_snapshot(order.snapshot)
            trusted.update_targets(order.targets)
        except (RepositoryError, ValueError) as error:
            raise TrustError(f"A device would refuse what the director signed: {error}.", code="not-published") from error

    def _newest_root(self) -> bytes:
        version = newest_root_version(self._folders.director, at_least=self._newest[0])
        if version != self._newest[0]:
            self._newest = (version, self.read_root(f"{version}.root.json"))
        return self._newest[1]

    def sign(self, order: Order, *, last_version: int, now: datetime, days: int = DIRECTOR_DAYS) -> SignedOrder:
        """The device's metadata with a version above the last one, checked as the device will; holds `days`.

        Raises: UnavailableError when the clock jumped (R5); ConfigError when an online key is missing; TrustError.
        """
        self._guard.see(now)
        signed = self._sign(order, last_version=last_version, now=now, days=days)
        self.check(signed, now=now)
        return signed

    def _sign(self, order: Order, *, last_version: int, now: datetime, root: Root | None = None, days: int = DIRECTOR_DAYS) -> SignedOrder:
        """By the keys of `root`, the newest one unless given."""
        version = max(last_version + 1, int(now.timestamp()))
        expires = expiry(now, days)
        targets = Targets(version=version, expires=expires, targets=_targets(order))
        targets.unrecognized_fields = write_fields(_fields(order, to_unix_ms(now)))
        targets_bytes = sign_metadata(targets, self._keys.signers(KeyName.DIRECTOR_TARGETS, root))
        snapshot = Snapshot(version=version, expires=expires, meta={"targets.json": meta_of(version, targets_bytes)})
        snapshot_bytes = sign_metadata(snapshot, self._keys.signers(KeyName.DIRECTOR_SNAPSHOT, root))
        timestamp = Timestamp(version=version, expires=expires, snapshot_meta=meta_of(version, snapshot_bytes))
        timestamp_bytes = sign_metadata(timestamp, self._keys.signers(KeyName.DIRECTOR_TIMESTAMP, root))
        return SignedOrder(
            tenant=order.tenant,
            device=order.device,
            version=version,
            targets=targets_bytes,
            snapshot=snapshot_bytes,
            timestamp=timestamp_bytes,
            etag=digest_of(timestamp_bytes),
            order_digest=order_digest(order),
            signed_at=now,
            renew_at=now + timedelta(days=DIRECTOR_DAYS) / 2,
        )

    def signed_time(self, device: DeviceId, nonce: str, now: datetime) -> bytes:
        """The answer to GET /device/v1/director/time.

        Raises: InvalidError when the nonce is empty or longer than 64 characters; UnavailableError when the clock jumped (R5).
        """
        if not 0 < len(nonce) <= MAX_NONCE:
            raise InvalidError(f"The nonce has {len(nonce)} characters; wanted 1 to {MAX_NONCE}.")
        self._guard.see(now)
        body = {"_type": TIME_TYPE, "device": device, "nonce": nonce, "now": to_unix_ms(now)}
        signatures = [signer.sign(canonical_json(body)).to_dict() for signer in self._keys.signers(KeyName.DIRECTOR_TIMESTAMP)]
        return json.dumps({"signed": body, "signatures": signatures}).encode()

    def is_current(self, order: SignedOrder) -> bool:
        """Whether keys that the newest root still names signed the order; after a rotation it must be signed again."""
        roles = ((KeyName.DIRECTOR_TARGETS, order.targets), (KeyName.DIRECTOR_SNAPSHOT, order.snapshot))
        return all(
            any(keyid.encode() in data for keyid in self._keys.key_ids(name))
            for name, data in (*roles, (KeyName.DIRECTOR_TIMESTAMP, order.timestamp))
        )


def order_digest(order: Order) -> Digest:
    """Equal for equal orders, whenever they are signed."""
    targets = {path: target.to_dict() for path, target in _targets(order).items()}
    return digest_of(canonical_json({"fields": write_fields(_fields(order, 0)), "targets": targets}))


def _targets(order: Order) -> dict[str, TargetFile]:
    found = {}
    for line in (*order.lines, *(candidate.line for candidate in order.candidates)):
        prefix = variant_prefix(line.release.line, line.release.version, line.variant.variant)
        for file in line.variant.files:
            path, sha256 = f"{prefix}{file.name}", file.sha256.removeprefix("sha256:")
            # the device adds up what its files allow: the model speaks for the whole release
            allowed = line.full_bytes if file == line.variant.model_file else None
            deltas = line.deltas.get(file.sha256, ())
            about = DirectorTargetFields(deltas=deltas, full_bytes_allowed=allowed)
            extra = {"custom": write_fields(about)} if deltas or allowed is not None else {}
            found[path] = TargetFile(file.length, {"sha256": sha256}, path, extra)
    if (wanted := order.configuration) is not None:
        path = configuration_path(wanted.group, wanted.rev)
        found[path] = TargetFile(wanted.length, {"sha256": wanted.sha256.removeprefix("sha256:")}, path)
    return found


def listed_deltas(order: SignedOrder) -> dict[str, tuple[DeltaOffer, ...]]:
    """What was offered in the signed order, by target path."""
    targets = Metadata[Targets].from_bytes(order.targets).signed.targets
    return {
        path: read_fields(DirectorTargetFields, target.custom, what=path).deltas
        for path, target in targets.items()
        if target.custom is not None
    }


def _fields(order: Order, issued_at: int) -> DirectorFields:
    latest, wanted = order.latest, order.configuration
    return DirectorFields(
        device=order.device,
        tenant=order.tenant,
        assignment=latest.assignment if latest else "",
        attempt=latest.attempt if latest else 0,
        campaign=latest.campaign if latest else "",
        issued_at=issued_at,
        line_floor={str(line): floor for line, floor in order.line_floor.items()},
        lines={
            line.release.line: LineOrder(assignment=line.assignment, attempt=line.attempt, campaign=line.campaign) for line in order.lines
        },
        candidates={candidate.line.release.line: _candidate(candidate) for candidate in order.candidates},
        configuration=ConfigurationOrder(group=wanted.group, rev=wanted.rev, attempt=wanted.attempt) if wanted else None,
    )


def _candidate(candidate: OrderedCandidate) -> CandidateOrder:
    line, until = candidate.line, candidate.until
    run = {"as": candidate.run_as, "share": candidate.share, "salt": line.campaign, "until": None if until is None else to_unix_ms(until)}
    return CandidateOrder(
        assignment=line.assignment,
        attempt=line.attempt,
        campaign=line.campaign,
        release=line.release.version,
        run=PipelineRun.model_validate(run),
        cpu=candidate.cpu,
    )
