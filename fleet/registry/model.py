"""Values of the registry: model versions, lines, releases and their way from draft to published; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from protocol.errors import ConflictError
from protocol.ids import DeviceTypeName, Digest, LineName, ReleaseVersion, TenantId


class ReleaseState(StrEnum):
    """How far a release has come."""

    #: Composed; may still be thrown away.
    DRAFT = "draft"
    #: An approval is asked for.
    PROPOSED = "proposed"
    #: Approved by somebody else than its author; waits for the line's key.
    APPROVED = "approved"
    #: The line's key signed it; not yet in the image repository.
    SIGNED = "signed"
    #: In the image repository; campaigns may assign it.
    PUBLISHED = "published"
    #: No new campaign takes it. What is installed stays until something else is assigned.
    WITHDRAWN = "withdrawn"
    #: The approval was refused.
    REJECTED = "rejected"


#: Every arrow that exists. SIGNED goes back to APPROVED when another release of the line was published in between.
ARROWS: Mapping[ReleaseState, frozenset[ReleaseState]] = {
    ReleaseState.DRAFT: frozenset({ReleaseState.PROPOSED, ReleaseState.WITHDRAWN}),
    ReleaseState.PROPOSED: frozenset({ReleaseState.APPROVED, ReleaseState.REJECTED, ReleaseState.WITHDRAWN}),
    ReleaseState.APPROVED: frozenset({ReleaseState.SIGNED, ReleaseState.WITHDRAWN}),
    ReleaseState.SIGNED: frozenset({ReleaseState.PUBLISHED, ReleaseState.APPROVED, ReleaseState.WITHDRAWN}),
    ReleaseState.PUBLISHED: frozenset({ReleaseState.WITHDRAWN}),
    ReleaseState.WITHDRAWN: frozenset(),
    ReleaseState.REJECTED: frozenset({ReleaseState.PROPOSED, ReleaseState.WITHDRAWN}),
}


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file by name, with where its bytes are."""

    name: str
    #: Bytes.
    length: int
    sha256: Digest


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One immutable trained result: the file, what its author wrote about it, and its golden vectors."""

    tenant: TenantId
    model: str
    version: int
    #: "onnx" or "tflite".
    format: str
    file: FileRef
    golden: FileRef
    card: FileRef
    #: The author's draft and the file's own tensors, as the JSON documents of runtime.manifest.
    draft_json: str
    tensors_json: str
    device_types: tuple[DeviceTypeName, ...]
    created_at: datetime
    created_by: str
    note: str = ""
    #: The reference profile that drift is judged by; None: imported without evaluation data.
    profile: FileRef | None = None

    @property
    def id(self) -> str:
        """What the API and the command line call it, e.g. "digits-onnx.3"."""
        return f"{self.model}.{self.version}"


@dataclass(frozen=True, slots=True)
class Line:
    """A model line: unit of keys, counters and floors."""

    tenant: TenantId
    line: LineName
    #: The counter that the next release gets.
    next_counter: int
    #: Nothing below is ever installed again.
    floor: int
    created_at: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class Variant:
    """The files of a release for one runtime and one set of device types."""

    variant: str
    runtime: str
    device_types: tuple[DeviceTypeName, ...]
    model_id: str
    files: tuple[FileRef, ...]
    firmware_min: str = ""
    agent_min: str = ""
    #: What the model answers, as its manifest says; a device that does not say it can is not offered the variant.
    task: str = "classification"

    @property
    def model_file(self) -> FileRef:
        """The model itself: what a device's signed report names as the slot's digest."""
        return next(file for file in self.files if file.name.startswith("model."))

    @property
    def length(self) -> int:
        """Bytes of all files."""
        return sum(file.length for file in self.files)


@dataclass(frozen=True, slots=True)
class Release:
    """A named set of artifacts, one variant per device type and runtime, that go out together."""

    tenant: TenantId
    line: LineName
    version: ReleaseVersion
    counter: int
    state: ReleaseState
    variants: tuple[Variant, ...]
    #: Binds paths, lengths, digests and our fields of all files: what an approval approves and the signer recomputes.
    content_digest: Digest
    created_at: datetime
    created_by: str
    revision: int
    note: str = ""
    approval: str | None = None
    signed_at: datetime | None = None
    published_at: datetime | None = None

    @property
    def id(self) -> str:
        """What approvals, audit entries and the API call it, e.g. "digits/1.0"."""
        return f"{self.line}/{self.version}"

    def moved(self, state: ReleaseState) -> "Release":
        """The release in its new state, one revision on. Raises: ConflictError when there is no such arrow."""
        if state not in ARROWS[self.state]:
            wanted = ", ".join(sorted(other for other, after in ARROWS.items() if state in after))
            raise ConflictError(f"Release {self.id} is {self.state}; to become {state} it must be {wanted}.")
        return replace(self, state=state, revision=self.revision + 1)

    def find_variant(self, *, device_type: str, runtimes: frozenset[str], tasks: frozenset[str] | None = None) -> Variant | None:
        """The first variant that fits a device of that type with those runtimes, by name; None when none does.

        `tasks`: what the device said it can do; None: not asked.
        """
        able = (v for v in self.variants if tasks is None or v.task in tasks)
        fitting = (v for v in able if device_type in v.device_types and v.runtime in runtimes)
        return min(fitting, key=lambda v: v.variant, default=None)


class DeltaState(StrEnum):
    """What became of the wish for a delta."""

    #: Devices that have its base may be offered it.
    USABLE = "usable"
    #: Not smaller than what any device can take; nothing was kept.
    USELESS = "useless"
    #: It could not be made; the reason says why. Not tried again by itself.
    FAILED = "failed"
    #: A device could not use it: its bytes are gone and nobody is offered it any more.
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class ReleaseDelta:
    """A file made from a base file, or why there is none."""

    tenant: TenantId
    #: `NO_BASE` for the compressed whole (method 0), which needs no base.
    base_sha256: Digest
    new_sha256: Digest
    state: DeltaState
    #: Method of the container: 0 compressed whole, 1 patch, 2 ONNX tensors, 3 TFLite tensors; None when there is no file.
    method: int | None
    #: Bytes of the delta, and its digest in the blob store; 0 and empty when there is no file.
    length: int
    sha256: str
    #: Seconds of CPU that making it took.
    cpu_s: float
    reason: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A line's next role metadata, waiting for the line's key."""

    tenant: TenantId
    request: str
    line: LineName
    version: ReleaseVersion
    #: TUF role and its next version number.
    role: str
    role_version: int
    #: The metadata without signatures, exactly the bytes whose canonical form is signed.
    payload: bytes
    #: What is published now, signed; empty for the first release of the line.
    previous: bytes
    #: The approved content digest of the release.
    content_digest: Digest
    approval: str
    created_at: datetime
