"""A device installs a file only if image repository and director both name it, and it fits: UPDATES 1.

`StrictUpdater` is python-tuf's client with three doors shut and durable writes; `verify_assignment` is the agreement of the two
repositories. Nothing here verifies a signature of TUF metadata itself: python-tuf does. Expiry stops installing, never running.
"""

import contextlib
import json
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from securesystemslib.signer import Signature
from tuf.api import exceptions
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from protocol.canonical import canonical_json
from protocol.clock import from_unix_ms
from protocol.configuration import MAX_DOCUMENT_BYTES
from protocol.errors import DeviceError, InvalidError, TransferError, TrustError, UnavailableError
from protocol.files import fsync_folder, write_atomically
from protocol.ids import DeviceId, DeviceTypeName, Digest, LineName, ReleaseVersion, TenantId
from protocol.trust.metadata import (
    MODEL_FILES,
    POLICY_ROLE,
    CandidateOrder,
    DeltaOffer,
    DirectorFields,
    DirectorTargetFields,
    ImageLineFields,
    ImageTargetFields,
    LineOrder,
    PipelineRun,
    PolicyTargetFields,
    configuration_path,
    is_configuration_path,
    is_version_at_least,
    line_role,
    parse_target_path,
    read_fields,
    variant_prefix,
)

#: Largest signed time document, bytes.
MAX_TIME_BYTES = 4096
TIME_TYPE = "mooring-time"
#: Kinds of UPDATES 1.1 that this version does not install. A newer server may list them beside models.
OTHER_KINDS = ("firmware/", "policy/")


@dataclass(frozen=True, slots=True)
class RepositoryAccess:
    """One TUF repository as this side reaches it."""

    #: Where verified metadata is kept between checks; made when missing.
    folder: Path
    #: What file names are appended to, e.g. "https://server/image/v1/metadata/".
    base_url: str
    #: The trusted root this side was born with; the chain is walked from here each time.
    bootstrap: bytes
    #: Bounded; raises tuf's DownloadError family only.
    fetcher: FetcherInterface


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What this device is, to be compared with what the metadata wants."""

    device: DeviceId
    tenant: TenantId
    device_type: DeviceTypeName
    #: Names of the runtimes that a probe found working, e.g. {"onnx"}.
    runtimes: Collection[str]
    agent_version: str
    firmware_version: str = ""
    #: Configurations of this group only; empty: of the one that the director names.
    group: str = ""


@dataclass(frozen=True, slots=True)
class AssignedFile:
    """One file of an assigned release."""

    #: Target path in both repositories.
    path: str
    #: Plain name in the slot.
    name: str
    #: Bytes.
    length: int
    sha256: Digest
    #: Smaller files that make this one, as the director names them. A hint: the result must have the digest above.
    deltas: tuple[DeltaOffer, ...] = ()


@dataclass(frozen=True, slots=True)
class LineAssignment:
    """The release that one line of this device shall have."""

    line: LineName
    release: ReleaseVersion
    counter: int
    variant: str
    runtime: str
    assignment: str
    attempt: int
    campaign: str
    targets: tuple[AssignedFile, ...]
    #: What the director allows to fetch in full on a metered link, bytes; None = the device's own policy decides.
    full_bytes_allowed: int | None


@dataclass(frozen=True, slots=True)
class CandidateAssignment:
    """A release that shall run beside the line's own, never activated."""

    release: LineAssignment
    run: PipelineRun
    #: Percent of one core.
    cpu: int


@dataclass(frozen=True, slots=True)
class AssignedConfiguration:
    """The configuration that this device shall have."""

    #: Target path in both repositories.
    path: str
    group: str
    rev: int
    attempt: int
    #: Bytes.
    length: int
    sha256: Digest


@dataclass(frozen=True, slots=True)
class Assignment:
    """What both repositories agree that this device shall run. A line that is not listed keeps what it has."""

    assignment: str
    attempt: int
    campaign: str
    #: Verified moment of signing: the device's time floor may rise to it.
    issued_at: datetime
    lines: tuple[LineAssignment, ...]
    #: At most one of each line.
    candidates: tuple[CandidateAssignment, ...]
    #: How each pipeline runs its release; one that is missing runs it as the active one.
    run: Mapping[str, PipelineRun]
    #: Per line, to be kept: nothing with a lower counter is ever installed again. Never below what was passed in.
    floors: Mapping[LineName, int]
    #: Versions of the verified metadata, e.g. {"director.targets": 1795334400}; goes into the version report.
    metadata_versions: Mapping[str, int]
    #: None: keep the one that is there.
    configuration: AssignedConfiguration | None = None


class StrictUpdater(Updater):
    """python-tuf's Updater; refuses what UPDATES 1.5 calls the hole in no suite, and survives a power cut.

    Overrides private hooks of python-tuf 7.0.x; `tests/protocol/trust/test_updater_hooks.py` pins their signatures.
    """

    def __init__(self, access: RepositoryAccess, *, reference_time: datetime, demand_snapshot_hashes: bool = True) -> None:
        """Read the bootstrap root.

        `demand_snapshot_hashes=False` is for foreign repositories whose snapshot names delegated roles by version only (ADR 0020).

        Raises: OSError; tuf's RepositoryError when the bootstrap root does not verify.
        """
        access.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            str(access.folder),
            access.base_url,
            fetcher=access.fetcher,
            config=UpdaterConfig(),
            bootstrap=access.bootstrap,
        )
        #: Expiry is judged by the later of the system's clock and the time floor (UPDATES 1.4), not by python-tuf's own look at the clock.
        self._trusted_set.reference_time = reference_time
        self._demand_snapshot_hashes = demand_snapshot_hashes

    def role(self, name: str) -> Targets | None:
        """The verified targets role of that name, or None when no look-up has loaded it."""
        return cast("Targets", self._trusted_set[name]) if name in self._trusted_set else None

    def versions(self) -> dict[str, int]:
        """Version of each verified role, by its name."""
        names = (Root.type, Timestamp.type, Snapshot.type, Targets.type)
        found = {name: self._trusted_set[name].version for name in names if name in self._trusted_set}
        delegated = self._trusted_set.targets.delegations if Targets.type in self._trusted_set else None
        for name in (delegated.roles or {}) if delegated else {}:
            if name in self._trusted_set:
                found[name] = self._trusted_set[name].version
        return found

    def targets(self) -> Targets:
        """The verified top-level targets; only after `refresh`."""
        return self._trusted_set.targets

    def root(self) -> Root:
        """The verified root."""
        return self._trusted_set.root

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        if role != Targets.type:
            if self._demand_snapshot_hashes:
                self._check_snapshot_binds(role)
            if role in self._trusted_set and not self._trusted_set.contains(role, parent_role):
                # TUF 5.6.7 lets a role be reached through several parents. The bytes that one parent's keys vouched for must satisfy each
                # further parent as they are: super() would answer a refusal by fetching other bytes and would put them in their place.
                self._trusted_set.update_delegated_targets(self._load_local_metadata(role), role, parent_role)
        return super()._load_targets(role, parent_role)

    def _check_snapshot_binds(self, role: str) -> None:
        meta = self._trusted_set.snapshot.meta.get(f"{role}.json")
        if meta is not None and (meta.length is None or "sha256" not in (meta.hashes or {})):
            raise exceptions.RepositoryError(f"The snapshot names {role} without length and sha256; wanted both for every delegated role.")

    def _persist_file(self, filename: str, data: bytes) -> None:
        write_atomically(Path(filename), data)

    def _update_root_symlink(self) -> None:
        folder = Path(self._dir)
        temporary = folder / f".root.json.{secrets.token_hex(6)}.tmp"
        temporary.symlink_to(Path("root_history") / f"{self._trusted_set.root.version}.root.json")
        temporary.replace(folder / "root.json")
        fsync_folder(folder)


def verify_assignment(
    *,
    image: RepositoryAccess,
    director: RepositoryAccess,
    facts: DeviceFacts,
    now: datetime,
    time_floor: datetime,
    floors: Mapping[LineName, int],
    committed: Mapping[LineName, int],
    configurations: Mapping[str, int] | None = None,
) -> Assignment:
    """Refresh both repositories and return what both of them name for this device.

    `floors`: the lowest counters still allowed, as kept from the last assignment. `committed`: counters of the committed releases.
    `configurations`: per group the revision once committed here; nothing older of the group is taken again.
    The image repository is read only when the director lists something.

    Raises: TrustError whose code names the attack: arbitrary-software, bad-signature, rollback, mix-and-match, freeze, endless-data,
    wrong-device, wrong-group, wrong-hardware, old-release, requirements, malformed-metadata. TransferError (code "slow-retrieval" for a
    stalled peer), UnavailableError: retry later. DeviceError (code "disk") when metadata could not be kept.
    """
    reference_time = max(now, time_floor)
    with _translated("director"):
        director_updater = StrictUpdater(director, reference_time=reference_time)
        director_updater.refresh()
    orders = director_updater.targets()
    fields = read_fields(DirectorFields, orders.unrecognized_fields, what="The director's targets")
    _check_addressee(fields, facts)
    versions = {f"director.{name}": version for name, version in director_updater.versions().items()}
    raised = _raised_floors(floors, fields.line_floor, committed)
    lines: list[LineAssignment] = []
    candidates: list[CandidateAssignment] = []
    configuration: AssignedConfiguration | None = None
    if orders.targets or fields.configuration:
        with _translated("image"):
            image_updater = StrictUpdater(image, reference_time=reference_time)
            image_updater.refresh()
        for line, release, files in _by_line(orders.targets, fields.candidates):
            candidate = fields.candidates[line] if release else None
            order = (
                candidate
                or fields.lines.get(line)
                or LineOrder(assignment=fields.assignment, attempt=fields.attempt, campaign=fields.campaign)
            )
            agreed, floor = _agree(image_updater, line, files, order, facts)
            raised[line] = max(raised.get(line, 0), floor)
            _check_counter(agreed, raised[line])
            if candidate is None:
                lines.append(agreed)
            else:
                candidates.append(CandidateAssignment(agreed, candidate.run, candidate.cpu))
        configuration = _agree_configuration(image_updater, orders.targets, fields, facts, configurations or {})
        versions |= {f"image.{name}": version for name, version in image_updater.versions().items()}
    return Assignment(
        assignment=fields.assignment,
        attempt=fields.attempt,
        campaign=fields.campaign,
        issued_at=_moment(fields.issued_at),
        lines=tuple(lines),
        candidates=tuple(candidates),
        run=dict(fields.run),
        floors=raised,
        metadata_versions=versions,
        configuration=configuration,
    )


def _check_addressee(fields: DirectorFields, facts: DeviceFacts) -> None:
    # R4: also when nothing is listed, else another device's empty list could be replayed
    if (fields.tenant, fields.device) != (facts.tenant, facts.device):
        raise TrustError(
            f"The director's metadata is for device {fields.tenant}/{fields.device}; this is {facts.tenant}/{facts.device}.",
            code="wrong-device",
        )


def _raised_floors(floors: Mapping[LineName, int], wished: Mapping[str, int], committed: Mapping[LineName, int]) -> dict[LineName, int]:
    # R1: cut to the committed counter, so that a stolen director key cannot forbid what runs
    raised = dict(floors)
    for name, floor in wished.items():
        line = LineName(name)
        raised[line] = max(raised.get(line, 0), min(floor, committed.get(line, 0)))
    return raised


def _by_line(
    targets: Mapping[str, TargetFile], candidates: Mapping[str, CandidateOrder]
) -> list[tuple[LineName, str, dict[str, TargetFile]]]:
    """(line, release of its candidate or "", files): the line's own release and its candidate apart."""
    found: dict[tuple[LineName, str], dict[str, TargetFile]] = {}
    for path, target in sorted(targets.items()):
        if path.startswith(OTHER_KINDS):
            continue
        try:
            parsed = parse_target_path(path)
        except InvalidError as error:
            raise TrustError(f"The director lists {path[:200]!r}. {error.message}", code="malformed-metadata") from error
        candidate = candidates.get(parsed.line)
        is_candidate = candidate is not None and candidate.release == parsed.release
        found.setdefault((parsed.line, parsed.release if is_candidate else ""), {})[path] = target
    return [(line, release, files) for (line, release), files in found.items()]


def _agree(
    updater: StrictUpdater, line: LineName, files: Mapping[str, TargetFile], order: LineOrder, facts: DeviceFacts
) -> tuple[LineAssignment, int]:
    """The line's release as both repositories name it, and the floor that the line's keys signed."""
    first = parse_target_path(next(iter(files)))
    for path in files:
        other = parse_target_path(path)
        if (other.release, other.variant) != (first.release, first.variant):
            raise TrustError(
                f"The director mixes {first.release}/{first.variant} and {other.release}/{other.variant} in line {line}; wanted one.",
                code="mix-and-match",
            )
    with _translated("image"):
        existing = {path: updater.get_targetinfo(path) for path in files}
    role = updater.role(line_role(line))
    if role is None:
        raise TrustError(f"The image repository has no line {line}.", code="arbitrary-software")
    signed = [_check_both_name(path, files[path], role.targets.get(path), existing[path]) for path in files]
    prefix = variant_prefix(line, first.release, first.variant)
    complete = {path for path in role.targets if path.startswith(prefix)}
    if missing := complete - files.keys():
        # leaving out the golden file would leave out the self-test
        raise TrustError(f"The director leaves out {min(missing)}, which belongs to the release.", code="mix-and-match")
    about = _common_fields(signed, first.line, first.release, first.variant)
    _check_fits(about, facts)
    floor = read_fields(ImageLineFields, role.unrecognized_fields, what=f"Role {line_role(line)}").floor
    extras = {path: _director_target(path, target) for path, target in files.items()}
    allowed = [extra.full_bytes_allowed for extra in extras.values() if extra.full_bytes_allowed is not None]
    return LineAssignment(
        line=line,
        release=first.release,
        counter=about.counter,
        variant=first.variant,
        runtime=about.runtime,
        assignment=order.assignment,
        attempt=order.attempt,
        campaign=order.campaign,
        targets=tuple(_assigned_file(target, extras[target.path].deltas) for target in signed),
        full_bytes_allowed=sum(allowed) if allowed else None,
    ), floor


def _agree_configuration(
    updater: StrictUpdater, targets: Mapping[str, TargetFile], fields: DirectorFields, facts: DeviceFacts, committed: Mapping[str, int]
) -> AssignedConfiguration | None:
    """The configuration that both repositories name for this device; None when the director names none."""
    listed = [path for path in targets if is_configuration_path(path)]
    order = fields.configuration
    if not listed and order is None:
        return None
    if order is None or listed != [path := configuration_path(order.group, order.rev)]:
        wanted = "none" if order is None else configuration_path(order.group, order.rev)
        raise TrustError(f"The director lists {', '.join(listed)[:300] or 'no configuration'}; it says {wanted}.", code="mix-and-match")
    if facts.group not in {"", order.group}:
        raise TrustError(
            f"The configuration is for group {order.group}; this device takes only those of {facts.group}.", code="wrong-group"
        )
    with _translated("image"):
        existing = updater.get_targetinfo(path)
    role = updater.role(POLICY_ROLE)
    signed = _check_both_name(path, targets[path], role.targets.get(path) if role else None, existing, limit=MAX_DOCUMENT_BYTES)
    about = read_fields(PolicyTargetFields, signed.custom, what=f"Image target {path}")
    if (about.tenant, about.group, about.rev) != (facts.tenant, order.group, order.rev):
        raise TrustError(
            f"{path} says that it is {about.tenant}/{about.group}/{about.rev}; wanted {facts.tenant}/{order.group}/{order.rev}.",
            code="wrong-group",
        )
    if order.rev < (floor := committed.get(order.group, 0)):
        raise TrustError(f"{path} is older than revision {floor}, which this device has committed.", code="old-release")
    return AssignedConfiguration(path, order.group, order.rev, order.attempt, signed.length, Digest(f"sha256:{signed.hashes['sha256']}"))


def _check_both_name(
    path: str, ordered: TargetFile, listed: TargetFile | None, found: TargetFile | None, *, limit: int | None = None
) -> TargetFile:
    # `found` walked the delegations; `listed` is in the line's own role. Top-level targets list no file (UPDATES 1.1).
    if listed is None or found is None or found != listed:
        raise TrustError(f"The image repository's role does not name {path}.", code="arbitrary-software")
    sha256 = listed.hashes.get("sha256")
    if sha256 is None or (ordered.length, ordered.hashes.get("sha256")) != (listed.length, sha256):
        raise TrustError(
            f"{path}: the director says {ordered.length} bytes, sha256 {ordered.hashes.get('sha256')}; "
            f"the image repository {listed.length} bytes, sha256 {sha256}.",
            code="arbitrary-software",
        )
    most = MODEL_FILES[parse_target_path(path).name] if limit is None else limit
    if listed.length > most:
        raise TrustError(f"{path} has {listed.length} bytes; at most {most} are allowed.", code="endless-data")
    return listed


def _common_fields(signed: list[TargetFile], line: str, release: str, variant: str) -> ImageTargetFields:
    fields = [read_fields(ImageTargetFields, target.custom, what=f"Image target {target.path}") for target in signed]
    about = fields[0]
    if any(other != about for other in fields):
        raise TrustError(f"The files of {line} {release} {variant} carry different fields.", code="mix-and-match")
    if (about.line, about.release, about.variant) != (line, release, variant):
        raise TrustError(
            f"Files under {variant_prefix(line, release, variant)} say that they are {about.line} {about.release} {about.variant}.",
            code="mix-and-match",
        )
    return about


def _check_fits(about: ImageTargetFields, facts: DeviceFacts) -> None:
    what = f"{about.line} {about.release} {about.variant}"
    if facts.device_type not in about.device_types:
        raise TrustError(
            f"{what} is for device types {', '.join(about.device_types)}; this is a {facts.device_type}.", code="wrong-hardware"
        )
    if about.runtime not in facts.runtimes:
        raise TrustError(
            f"{what} needs the runtime {about.runtime}; this device has {', '.join(sorted(facts.runtimes)) or 'none'}.",
            code="wrong-hardware",
        )
    for name, have, wanted in (
        ("firmware", facts.firmware_version, about.requires.firmware_min),
        ("agent", facts.agent_version, about.requires.agent_min),
    ):
        if not is_version_at_least(have, wanted):
            raise TrustError(f"{what} needs {name} {wanted} or later; this device has {have or 'none'}.", code="requirements")


def _check_counter(agreed: LineAssignment, floor: int) -> None:
    if agreed.counter < floor:
        raise TrustError(
            f"{agreed.line} {agreed.release} has counter {agreed.counter}; nothing below {floor} is installed on this line again.",
            code="old-release",
        )


def _director_target(path: str, target: TargetFile) -> DirectorTargetFields:
    if target.custom is None:
        return DirectorTargetFields()
    return read_fields(DirectorTargetFields, target.custom, what=f"Director target {path}")


def _assigned_file(target: TargetFile, deltas: tuple[DeltaOffer, ...]) -> AssignedFile:
    name, sha256 = parse_target_path(target.path).name, Digest(f"sha256:{target.hashes['sha256']}")
    # one that is empty or makes a file out of itself helps nobody; everything else is the decoder's to judge
    useful = tuple(delta for delta in deltas if delta.length and sha256 not in (delta.sha256, delta.base_sha256))
    return AssignedFile(target.path, name, target.length, sha256, useful)


def _moment(unix_ms: int) -> datetime:
    try:
        return from_unix_ms(unix_ms)
    except (ValueError, OverflowError) as error:
        raise TrustError(f"issued_at {unix_ms} is not a moment of the calendar.", code="malformed-metadata") from error


def verify_signed_time(document: bytes, *, director: RepositoryAccess, device: DeviceId, nonce: str) -> datetime:
    """The director's time out of its answer to GET /device/v1/director/time, for raising the time floor.

    Only root is refreshed: its expiry is not judged, because the time is what is being asked for.

    Raises: TrustError (bad-signature, wrong-device, malformed-metadata); TransferError; DeviceError.
    """
    with _translated("director"):
        updater = StrictUpdater(director, reference_time=from_unix_ms(0))
        updater._load_root()  # noqa: SLF001 - a hook of the parent class, pinned by the same test
        root = updater.root()
    body, signatures = _parse_time(document)
    with _translated("director"):
        root.verify_delegate(Timestamp.type, canonical_json(body), signatures)
    if body.get("_type") != TIME_TYPE or (body.get("device"), body.get("nonce")) != (device, nonce):
        raise TrustError(f"The signed time is not the answer for {device} and this nonce.", code="wrong-device")
    now = body.get("now")
    if not isinstance(now, int) or isinstance(now, bool):
        raise TrustError(f"The signed time says now = {now!r}; wanted Unix milliseconds.", code="malformed-metadata")
    return _moment(now)


def _parse_time(document: bytes) -> tuple[dict[str, Any], dict[str, Signature]]:
    if len(document) > MAX_TIME_BYTES:
        raise TrustError(f"The signed time has {len(document)} bytes; at most {MAX_TIME_BYTES} are allowed.", code="endless-data")
    try:
        parsed = json.loads(document)
        signatures = {item["keyid"]: Signature(item["keyid"], item["sig"]) for item in parsed["signatures"]}
        body = parsed["signed"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError("The signed time is not the JSON document that was wanted.", code="malformed-metadata") from error
    if not isinstance(body, dict):
        raise TrustError("The signed time carries no object under 'signed'.", code="malformed-metadata")
    return body, signatures


@contextlib.contextmanager
def _translated(repository: str) -> Iterator[None]:
    """Turn python-tuf's errors into ours: what is hostile or stale, what may be tried again, what this device cannot do."""
    try:
        yield
    except exceptions.DownloadLengthMismatchError as error:
        raise TrustError(f"The {repository} repository sent more than announced: {error}", code="endless-data") from error
    except exceptions.SlowRetrievalError as error:
        raise TransferError(f"The {repository} repository was too slow: {error}", code="slow-retrieval") from error
    except exceptions.DownloadHTTPError as error:
        if error.status_code in {429, 500, 502, 503, 504}:
            raise UnavailableError(f"The {repository} repository answered {error.status_code}.") from error
        raise TransferError(f"The {repository} repository answered {error.status_code}: {error}", code="missing-metadata") from error
    except exceptions.DownloadError as error:
        raise TransferError(f"The {repository} repository could not be read: {error}") from error
    except (exceptions.RepositoryError, DeserializationError, ValueError, TypeError, InvalidError) as error:
        # TypeError: python-tuf does not look at the type of every field, so a name that is a number fails where it is used
        raise TrustError(f"The {repository} repository was refused: {error}", code=_attack_name(error)) from error
    except OSError as error:
        raise DeviceError(f"Metadata of the {repository} repository could not be kept: {error}", code="disk") from error


def _attack_name(error: Exception) -> str:
    match error:
        case exceptions.UnsignedMetadataError():
            return "bad-signature"
        case exceptions.ExpiredMetadataError():
            return "freeze"
        case exceptions.BadVersionNumberError():
            return "rollback"
        case exceptions.LengthOrHashMismatchError():
            return "mix-and-match"
        case DeserializationError():
            return "malformed-metadata"
        case exceptions.RepositoryError():
            return "mix-and-match"
        case _:
            return "malformed-metadata"
