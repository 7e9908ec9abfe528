"""Our fields of TUF metadata, all under the key "mooring", and the grammar of target paths: UPDATES 1.1 and 1.2.

Unknown fields are ignored; a wrong type refuses the target. Signed metadata knows no floating point numbers (OLPC canonical JSON),
so shares are whole percent and moments are Unix milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from protocol.canonical import canonical_json
from protocol.errors import InvalidError, TrustError
from protocol.ids import DIGEST_PATTERN, NAME_PATTERN, VERSION_PATTERN, LineName, ReleaseVersion, check_name, check_version

#: The only key of ours in signed metadata and in `custom` of target files.
FIELD = "mooring"
#: What a model release may hold (UPDATES 2), with the limit of each file in bytes.
MODEL_FILES: Mapping[str, int] = {
    "model.onnx": 2 << 30,
    "model.tflite": 2 << 30,
    "manifest.json": 256 << 10,
    "golden.cbor": 4 << 20,
    "profile.cbor": 256 << 10,
    "card.json": 1 << 20,
}

_Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_Version = Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
_Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
_Text = Annotated[str, StringConstraints(max_length=200)]
_Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Requires(_Fields):
    """What a device must have before the file may run; empty = anything."""

    firmware_min: _Text = ""
    agent_min: _Text = ""


class ImageTargetFields(_Fields):
    """`custom.mooring` of a target file in the image repository: what the file is and whom it fits."""

    line: _Name
    release: _Version
    #: Grows by release within the line.
    counter: _Count
    kind: Literal["model"] = "model"
    variant: _Name
    device_types: tuple[_Name, ...] = Field(min_length=1, max_length=256)
    runtime: _Text
    requires: Requires = Requires()


class ImageLineFields(_Fields):
    """`mooring` of a line's role: nothing of the line with `counter < floor` is ever installed again, whoever asks."""

    line: _Name
    floor: _Count = 0


class PipelineRun(_Fields):
    """How one pipeline runs the release."""

    as_: Literal["active", "shadow", "ab"] = Field(default="active", alias="as")
    #: Percent of the frames.
    share: Annotated[int, Field(ge=0, le=100)] = 100
    salt: _Text = ""
    #: Unix milliseconds; None = until told otherwise.
    until: _Count | None = None


class LineOrder(_Fields):
    """What one line of the assignment belongs to."""

    assignment: _Text
    attempt: _Count
    campaign: _Text = ""


class CandidateOrder(LineOrder):
    """A release that runs beside the line's own: another target of the same line, told apart by its release.

    It holds for every pipeline of the line; a pipeline named in `DirectorFields.run` runs it as that says, "active" meaning not at all.
    """

    release: _Version
    run: PipelineRun
    #: Percent of one core that comparing may take at most.
    cpu: Annotated[int, Field(ge=1, le=100)] = 20


class PolicyTargetFields(_Fields):
    """`custom.mooring` of a target file of the role `policy`: whose it is."""

    kind: Literal["policy"] = "policy"
    tenant: _Name
    group: _Name
    #: Grows with every release of configuration on the server.
    rev: _Count


class ConfigurationOrder(_Fields):
    """Which configuration this device shall have; it is one of the director's targets too."""

    group: _Name
    rev: _Count
    #: Raised when somebody offers again what the device returned from.
    attempt: _Count = 0


class DirectorFields(_Fields):
    """`mooring` of the director's targets: whose assignment this is. It names its device even when it lists nothing (R4)."""

    device: _Name
    tenant: _Name
    assignment: _Text
    attempt: _Count
    campaign: _Text = ""
    #: Unix milliseconds.
    issued_at: _Count
    line_floor: dict[_Name, _Count] = Field(default_factory=dict, max_length=256)
    #: Per line where it differs from the fields above.
    lines: dict[_Name, LineOrder] = Field(default_factory=dict, max_length=256)
    #: Per line: what runs beside its own release.
    candidates: dict[_Name, CandidateOrder] = Field(default_factory=dict, max_length=256)
    #: Per pipeline; a pipeline not named runs the release as its active one, and the line's candidate as its order says.
    run: dict[_Name, PipelineRun] = Field(default_factory=dict, max_length=64)
    #: None: the device keeps the configuration that it has.
    configuration: ConfigurationOrder | None = None


class DeltaOffer(_Fields):
    """A file that makes the target from a base that the device may have."""

    base_sha256: _Digest
    sha256: _Digest
    length: _Count
    method: _Count


class DirectorTargetFields(_Fields):
    """`custom.mooring` of a target file in the director's targets: how to get it."""

    deltas: tuple[DeltaOffer, ...] = Field(default=(), max_length=64)
    full_bytes_allowed: _Count | None = None


@dataclass(frozen=True, slots=True)
class TargetPath:
    """`model/{line}/{release}/{variant}.{file}`: fixed depth, because a TUF glob never crosses a slash."""

    line: LineName
    release: ReleaseVersion
    variant: str
    #: The plain name that the file has in the slot, e.g. "manifest.json".
    name: str

    def __str__(self) -> str:
        return f"{variant_prefix(self.line, self.release, self.variant)}{self.name}"


def variant_prefix(line: str, release: str, variant: str) -> str:
    """What the paths of all files of one variant begin with; variant names hold no dot, so it fits no other variant's."""
    return f"model/{line}/{release}/{variant}."


def line_role(line: str) -> str:
    """The name of the image repository's role for a model line."""
    return f"model.{line}"


def line_pattern(line: str) -> str:
    """The paths that the line's role may list."""
    return f"model/{line}/*/*"


#: The role of device configuration and sampling policies, and what it may list: `policy/{group}/{rev}/{file}`.
POLICY_ROLE, POLICY_PATTERN = "policy", "policy/*/*/*"


def firmware_role(line: str) -> str:
    """The name of the image repository's role for a firmware line."""
    return f"firmware.{line}"


def firmware_pattern(line: str) -> str:
    """The paths that the firmware line's role may list."""
    return f"firmware/{line}/*/*"


def parse_target_path(path: str) -> TargetPath:
    """The parts of a target path. Raises: InvalidError when it is not one of ours."""
    parts = path.split("/")
    variant, _, name = parts[-1].partition(".")
    if len(parts) != 4 or parts[0] != "model" or name not in MODEL_FILES:
        raise InvalidError(f"Target path {path[:200]!r} is not model/<line>/<release>/<variant>.<{'|'.join(MODEL_FILES)}>.")
    return TargetPath(LineName(check_name(parts[1], what="Line")), check_version(parts[2]), check_name(variant, what="Variant"), name)


CONFIGURATION_FILE = "config.json"


def configuration_path(group: str, rev: int) -> str:
    """The target path of a group's configuration of one revision."""
    return f"{POLICY_ROLE}/{group}/{rev}/{CONFIGURATION_FILE}"


def is_configuration_path(path: str) -> bool:
    """Whether the target is a configuration; other files of the role `policy` are for later versions of this code."""
    return path.startswith(f"{POLICY_ROLE}/") and path.endswith(f"/{CONFIGURATION_FILE}")


F = TypeVar("F", bound=_Fields)


def read_fields(kind: type[F], holder: Mapping[str, Any] | None, *, what: str) -> F:
    """Our fields out of the unrecognized fields of a role, or of a target's `custom`.

    Raises: TrustError (code "malformed-metadata") when they are missing or of a wrong type; the text names `what` and the field.
    """
    value = holder.get(FIELD) if isinstance(holder, Mapping) else None
    if not isinstance(value, Mapping):
        raise TrustError(f"{what} carries no {FIELD!r} fields.", code="malformed-metadata")
    try:
        return kind.model_validate_json(canonical_json(value))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or FIELD
        raise TrustError(f"{what}: field {field!r}: {first['msg']}.", code="malformed-metadata") from error
    except (InvalidError, RecursionError) as error:
        raise TrustError(f"{what} carries {FIELD!r} fields that have no JSON form.", code="malformed-metadata") from error


def write_fields(fields: _Fields) -> dict[str, Any]:
    """The fields as the value to put into `custom` or beside a role's own fields; `read_fields` reads it back."""
    return {FIELD: fields.model_dump(mode="json", by_alias=True, exclude_none=True)}


def is_version_at_least(have: str, wanted: str) -> bool:
    """Whether dotted version `have` is not below `wanted`; an empty wish is always met, an unknown version only an empty wish."""
    return not wanted or (bool(have) and _version_key(have) >= _version_key(wanted))


def _version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    parts = version.split("+", 1)[0].replace("-", ".").split(".")
    key = [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
    return (*key, *[(1, 0, "")] * (8 - len(key)))
