"""What the check child found, as values and as the one JSON document it prints: an assignment, "unchanged", or an error."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from agent.configuration import ConfigurationOffer
from agent.slots import SlotContent, SlotFile
from protocol.errors import InvalidError
from protocol.ids import DIGEST_PATTERN, NAME_PATTERN, VERSION_PATTERN, Digest, LineName, ReleaseVersion

#: The document names at most a few hundred files with their deltas; more is damage.
MAX_DOCUMENT_BYTES = 4 << 20
#: `DeltaOffer.method`: the whole file, compressed; the others need a base (UPDATES 3.2).
FULL_METHOD = 0
#: What this agent's decoder understands. A later server may offer more, which is not taken.
KNOWN_METHODS = frozenset({FULL_METHOD, 1, 2, 3})
#: Names the base of a delta that needs none.
NO_BASE = Digest("sha256:" + "0" * 64)

_Line = Annotated[LineName, StringConstraints(pattern=NAME_PATTERN)]
_Release = Annotated[ReleaseVersion, StringConstraints(pattern=VERSION_PATTERN)]
_Digest = Annotated[Digest, StringConstraints(pattern=DIGEST_PATTERN)]
_Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


@dataclass(frozen=True, slots=True)
class OfferedDelta:
    """A smaller file that makes an offered file: from a base that this device may have, or by itself (`is_full`)."""

    base_sha256: _Digest
    length: _Count
    sha256: _Digest
    method: _Count
    url: str

    @property
    def is_full(self) -> bool:
        """Whether it is the whole file, compressed."""
        return self.method == FULL_METHOD

    def as_file(self, name: str) -> "OfferedFile":
        """The delta itself as something to fetch; `name` is the file that it makes."""
        return OfferedFile(f"the delta of {name}", self.length, self.sha256, self.url)


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """One file of an offered release: both repositories name it with this length and digest."""

    #: Plain name in the slot.
    name: str
    length: _Count
    sha256: _Digest
    url: str
    #: Other ways to it that this agent understands.
    deltas: tuple[OfferedDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class CandidateRun:
    """How a release runs beside the one that its line has; it is installed and never activated."""

    run_as: Literal["shadow", "ab"]
    #: Percent of the time blocks in which it answers, for `ab`.
    share: _Count
    salt: str
    #: Unix milliseconds; None: until the assignment ends.
    until_ms: _Count | None
    #: Percent of one core that comparing may take.
    cpu: _Count


@dataclass(frozen=True, slots=True)
class LineOffer:
    """The release that one line shall run."""

    line: _Line
    release: _Release
    counter: _Count
    variant: str
    assignment: str
    attempt: _Count
    files: tuple[OfferedFile, ...]
    campaign: str = ""
    runtime: str = ""
    #: What the director allows to fetch in full over a metered link, bytes; None: this device's own policy decides.
    full_bytes_allowed: _Count | None = None
    #: It is a candidate: it only ever runs beside the line's own release.
    candidate: CandidateRun | None = None

    @property
    def content(self) -> SlotContent:
        """The slot as it will be once the release is installed."""
        files = tuple(sorted((SlotFile(file.name, file.sha256, file.length) for file in self.files), key=lambda file: file.name))
        return SlotContent(self.line, self.release, self.counter, self.variant, files)

    @property
    def total_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.length for file in self.files)

    @property
    def digests(self) -> frozenset[Digest]:
        """Everything that a download for it may put into the download folder."""
        deltas = {delta.sha256 for file in self.files for delta in file.deltas}
        return frozenset(deltas | {file.sha256 for file in self.files})


@dataclass(frozen=True, slots=True)
class Assignment:
    """What this device shall run; a line that is not listed keeps what it has."""

    assignment: str
    attempt: _Count
    issued_at_ms: _Count
    lines: tuple[LineOffer, ...]
    #: Per line: nothing with a lower counter is ever installed again.
    floors: dict[_Line, _Count] = field(default_factory=dict)
    campaign: str = ""
    #: Versions of the verified metadata, for the version report.
    metadata_versions: dict[str, int] = field(default_factory=dict)
    #: None: the device keeps the configuration that it has.
    configuration: ConfigurationOffer | None = None
    #: Releases that run beside the lines' own, at most one of each line.
    candidates: tuple[LineOffer, ...] = ()
    #: Pipelines that differ from their line's candidate: how they run it, "active" meaning not at all.
    pipelines: dict[_Line, Literal["active", "shadow", "ab"]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckError:
    """Why the check gave no answer."""

    #: Class name in the error tree, e.g. "TrustError".
    family: str
    code: str
    text: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """What the check child says: exactly one of `assignment`, `unchanged`, `error`."""

    assignment: Assignment | None = None
    unchanged: bool = False
    error: CheckError | None = None
    #: To be sent with the next check once the assignment has been taken over; empty: the server gave none.
    etag: str = ""
    #: The server's signed time, Unix milliseconds, when it was asked for and given.
    signed_time_ms: _Count | None = None
    #: What its connections carried, bytes.
    bytes_sent: _Count = 0
    bytes_received: _Count = 0


_ANSWER: TypeAdapter[CheckAnswer] = TypeAdapter(CheckAnswer)


def dump_answer(answer: CheckAnswer) -> bytes:
    """The JSON document of the answer."""
    return _ANSWER.dump_json(answer)


def parse_answer(document: bytes) -> CheckAnswer:
    """The answer in the document. Raises: InvalidError when it is too long or not such a document."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise InvalidError(f"The update check printed {len(document)} bytes; at most {MAX_DOCUMENT_BYTES} are read.")
    try:
        return _ANSWER.validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidError(f"The update check printed something else than its document: {first['loc']}: {first['msg']}.") from error
