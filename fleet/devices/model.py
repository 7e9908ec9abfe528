"""What a device is to the server: frozen values. Shapes that people write are checked here (pydantic), as the device checks them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from protocol.errors import InvalidError
from protocol.ids import NAME_PATTERN, DeviceId, DeviceTypeName, GroupName, PipelineName, SiteName, TenantId
from protocol.look import WHOLE_FRAME, Motion
from protocol.rules import MAX_RULE_BYTES, Rules, Zones
from protocol.views import Roi

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
#: Labels per device, and their sizes: enough for an inventory number, too little for a database.
MAX_LABELS, MAX_LABEL_LENGTH = 64, 200
#: Plain secret: a password or a token, bytes.
MAX_SECRET_BYTES = 4096


class ConsentRule(StrEnum):
    """Which pictures may leave the devices of a site at all; a signed sampling policy can only narrow it."""

    #: None.
    DENY = "deny"
    #: Only minimized ones: cropped, blurred, scaled down.
    MINIMIZED = "minimized"
    #: Those that a sampling policy asks for.
    ALLOW = "allow"


class DeviceState(StrEnum):
    """Whether a device belongs to the fleet."""

    #: It has a valid certificate.
    ENROLLED = "enrolled"
    #: Its certificate is refused; it may enroll again with an invitation of its own.
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Site:
    """A place with its own time, rules and budgets."""

    tenant: TenantId
    name: SiteName
    #: IANA name, e.g. Europe/Vienna.
    time_zone: str
    consent: ConsentRule
    #: What all devices of the site together may download, kbit/s; None: no limit.
    bandwidth_kbit_s: int | None
    #: How many devices of the site may be in an update at once; None: no limit.
    max_updating: int | None
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Devices chosen by people; its config applies to all of them."""

    tenant: TenantId
    name: GroupName
    description: str
    site: SiteName | None
    config: "ConfigPatch"
    revision: int = 1


@dataclass(frozen=True, slots=True)
class DeviceType:
    """Hardware and operating system that an artifact is compatible with."""

    tenant: TenantId
    name: DeviceTypeName
    description: str
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Device:
    """One enrolled device."""

    tenant: TenantId
    device: DeviceId
    device_type: DeviceTypeName
    group: GroupName
    site: SiteName | None
    state: DeviceState
    labels: Mapping[str, str]
    hardware: Mapping[str, str]
    agent_version: str
    #: PEM of the key it signs with.
    public_key: str
    #: Raw X25519 public key, base64: secrets are sealed to it.
    sealing_key: str
    #: Decimal serial of the certificate in use, and of a newer one not yet used.
    serial: str
    pending_serial: str | None
    certificate_ends_at: datetime
    enrolled_at: datetime
    pending_ends_at: datetime | None = None
    #: `Authority.trust_digest` at the time its certificate was issued: what it trusts, and who issued.
    trust_digest: str = ""
    revision: int = 1


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who is calling: what one indexed read finds for a certificate."""

    tenant: TenantId
    device: DeviceId
    device_type: DeviceTypeName
    group: GroupName
    #: PEM of the key its reports are signed with.
    public_key: str
    #: ETag of its twin without a further read.
    desired_rev: int


@dataclass(frozen=True, slots=True)
class EnrollmentToken:
    """An invitation: whoever has the secret may enroll one device of the type into the group, once, until it expires."""

    tenant: TenantId
    token_id: str
    secret_sha256: str
    group: GroupName
    device_type: DeviceTypeName
    #: Only this id, when set; and only so may an id that exists enroll again.
    device: DeviceId | None
    created_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class Twin:
    """The server's half of a device's twin, as it was last composed."""

    tenant: TenantId
    device: DeviceId
    #: What was set for this device alone.
    config: "ConfigPatch"
    #: Counts changes of what was set for this device: config, pipelines, secrets.
    revision: int
    #: Counts changes of the whole; what the device compares.
    desired_rev: int
    #: Canonical JSON of the composed config.
    desired: str
    #: Where the director's targets lie and their digest, or None before the first assignment.
    manifest_url: str | None
    manifest_sha256: str | None
    updated_at: datetime
    #: Seconds over which the devices that were hinted together spread their questions.
    spread_s: int = 0
    #: Per line what was said at the console about which assignment.
    consents: Mapping[str, "Consented"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Consented:
    """Whether a release may be activated, as somebody said for one assignment."""

    assignment: str
    is_given: bool


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One pipeline in the ordered list of a device."""

    tenant: TenantId
    device: DeviceId
    name: PipelineName
    position: int
    spec: "PipelineSpec"
    revision: int = 1


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices a list shows; None: all."""

    group: GroupName | None = None
    device_type: DeviceTypeName | None = None
    site: SiteName | None = None
    state: DeviceState | None = None
    #: The id contains it.
    text: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


# --- what people write: the same shapes as the device's (agent/config.py) ---


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _without_unset(section: _Section, document: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The document without those of the keys that have their defaults."""
    defaults = {key: type(section).model_fields[key].default for key in keys}
    return {key: value for key, value in document.items() if key not in defaults or getattr(section, key) != defaults[key]}


class VideoSource(_Section):
    """A recorded video, played at its own pace."""

    kind: Literal["video"]
    path: LongText
    loop: bool = False


class CameraSource(_Section):
    """A V4L2 camera; sizes in pixels."""

    kind: Literal["camera"]
    device: LongText = "/dev/video0"
    width: Annotated[int, Field(ge=16, le=16_384)] | None = None
    height: Annotated[int, Field(ge=16, le=16_384)] | None = None


class StreamSource(_Section):
    """An RTSP or HTTP stream; the secret holds "user:password"."""

    kind: Literal["stream"]
    url: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[a-z]+://[^@\s]+$")]
    #: A smaller picture of the same camera.
    sub_url: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[a-z]+://[^@\s]+$")] | None = None
    secret: Name | None = None
    decode: Literal["all", "references", "keyframes"] = "all"
    hardware: Literal["none", "auto", "vaapi", "v4l2m2m", "cuda"] = "none"
    transport: Literal["tcp", "udp"] = "tcp"

    @model_serializer(mode="wrap")
    def _say_what_is_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # an agent from before there were these keys refuses a source that has them
        return _without_unset(self, serialize(self), ("sub_url", "decode", "hardware", "transport"))


class FolderSource(_Section):
    """A folder of pictures; `fps` per second."""

    kind: Literal["folder"]
    path: LongText
    loop: bool = False
    fps: Annotated[float, Field(gt=0, le=1000)] = 5.0


class SensorSource(_Section):
    """JSON readings from a local MQTT broker; `window` and `stride` in readings."""

    kind: Literal["sensor"]
    broker: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[a-z]+://[^@\s]+$")]
    topic: LongText
    fields: Annotated[tuple[LongText, ...], Field(min_length=1, max_length=64)]
    window: Annotated[int, Field(ge=1, le=65_536)] = 64
    stride: Annotated[int, Field(ge=1, le=65_536)] = 16
    #: What becomes of a reading that lacks a number; None: the device's own way, hold.
    gaps: Literal["drop", "hold", "reject", "pass"] | None = None
    secret: Name | None = None


Source = Annotated[VideoSource | CameraSource | StreamSource | FolderSource | SensorSource, Field(discriminator="kind")]


class PipelineSpec(_Section):
    """Source → model line → outputs."""

    name: Name
    line: Name
    source: Source
    keep: Literal["ring", "events", "all"] = "ring"
    #: Frames inferred per second at most; 0: as many as the source gives.
    max_fps: Annotated[float, Field(ge=0, le=1000)] = 0.0
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    #: Give objects tracking ids; parts of the frame, and event rules over them.
    track: bool = False
    zones: Zones = ()
    rules: Rules = ()
    #: The part of the frame that is inferred; frames in which nothing moves; whether pictures may be asked for.
    roi: Roi = WHOLE_FRAME
    motion: Motion = Motion()
    preview: bool = False

    @model_serializer(mode="wrap")
    def _say_what_is_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # an agent from before there were these keys refuses a pipeline that has them
        return _without_unset(self, serialize(self), ("track", "zones", "rules", "roi", "motion", "preview"))


class TelemetryPatch(_Section):
    """Seconds of one telemetry window; None: not said here."""

    perf_s: Annotated[float, Field(ge=1, le=3600)] | None = None
    sys_s: Annotated[float, Field(ge=1, le=3600)] | None = None


class UpdatePatch(_Section):
    """Seconds between two polls; None: not said here."""

    poll_s: Annotated[float, Field(ge=1, le=86_400)] | None = None


class DriftPatch(_Section):
    """What a device is told of drift (docs/alarms.md); None: not said here."""

    #: False alarms allowed per year of one device.
    false_alarms_per_year: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    #: Who judges its windows: itself, also offline, or the server.
    check: Literal["device", "server"] | None = None
    #: The place has no day and night: windows depend on each other for 6 hours, not for a day.
    indoor: bool | None = None
    #: Pipelines whose alarm somebody took.
    acknowledged: Annotated[tuple[Name, ...], Field(max_length=64)] | None = None
    #: Per pipeline the moment, Unix ms, from which on what is seen is the new normal.
    rebaselined: Annotated[dict[Name, Annotated[int, Field(ge=0, le=2**53 - 1)]], Field(max_length=64)] | None = None
    #: Per pipeline a reference to use, base64 of what protocol.sketches.reference encodes.
    references: Annotated[dict[Name, Annotated[str, StringConstraints(max_length=244_000)]], Field(max_length=64)] | None = None


class ConfigPatch(_Section):
    """What a group or a device wishes to be different; what it does not name stays."""

    telemetry: TelemetryPatch = TelemetryPatch()
    update: UpdatePatch = UpdatePatch()
    drift: DriftPatch = DriftPatch()
    #: For a group: the pipelines of a device that has none of its own.
    pipelines: Annotated[tuple[PipelineSpec, ...], Field(max_length=64)] | None = None


_PIPELINES: TypeAdapter[tuple[PipelineSpec, ...]] = TypeAdapter(Annotated[tuple[PipelineSpec, ...], Field(max_length=64)])
_LABELS: TypeAdapter[dict[str, str]] = TypeAdapter(
    Annotated[
        dict[Annotated[str, StringConstraints(pattern=NAME_PATTERN)], Annotated[str, StringConstraints(max_length=MAX_LABEL_LENGTH)]],
        Field(max_length=MAX_LABELS),
    ]
)
_T = TypeVar("_T")


def parse_config(document: Any) -> ConfigPatch:
    """The document as a config patch. Raises: InvalidError naming the place and what was wanted; unknown keys are refused."""
    patch = _validated(TypeAdapter(ConfigPatch), document, "config")
    _check_pipelines(patch.pipelines or ())
    return patch


def parse_pipelines(document: Any) -> tuple[PipelineSpec, ...]:
    """The document as an ordered list of pipelines with names of their own. Raises: InvalidError."""
    specs = _validated(_PIPELINES, document, "pipelines")
    _check_pipelines(specs)
    return specs


def parse_labels(document: Any) -> dict[str, str]:
    """The document as labels. Raises: InvalidError."""
    return _validated(_LABELS, document, "labels")


def _check_pipelines(specs: tuple[PipelineSpec, ...]) -> None:
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidError(f"Two pipelines are named {name!r}.", hint="Give each a name of its own.")
    size = sum(len(spec.model_dump_json(include={"zones", "rules"}, exclude_none=True)) for spec in specs)
    if size > MAX_RULE_BYTES:
        raise InvalidError(
            f"The zones and rules of all pipelines take {size} bytes; at most {MAX_RULE_BYTES} are allowed per device.",
            hint="Use fewer points and shorter lists of labels.",
        )


def _validated(adapter: TypeAdapter[_T], document: Any, what: str) -> _T:
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "/".join(str(part) for part in (what, *first["loc"]))
        raise InvalidError(f"{place}: {first['msg']}; seen: {str(first['input'])[:100]!r}.", hint="Mend that place.") from error
