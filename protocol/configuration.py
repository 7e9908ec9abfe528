"""What may be set on devices from afar, and how fleet, group and device agree on it: pure, the same code on both sides.

One file per group holds the sections of fleet, group and single devices; a device computes what they mean for it. Inheritance goes
fleet -> group -> device: maps merge, scalars and lists replace, null removes what was inherited, so that the device's own value is back;
for one pipeline also where all pipelines have a value. Null stands only where a value stands, never in place of a map; so merging is
associative. Who a device is, its server and its secrets are not in the schema.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from protocol.canonical import canonical_json, digest_of
from protocol.errors import InvalidError
from protocol.ids import NAME_PATTERN, Digest
from protocol.rules import Rules, Zones, keys_of
from protocol.views import MotionSettings, Roi
from protocol.windows import Window, checked_zone

SCHEMA: Literal["configuration.1"] = "configuration.1"
#: Largest file, bytes: small enough for a slow link, enough for a thousand devices with settings of their own.
MAX_DOCUMENT_BYTES = 256 << 10
#: Settings under this name are for every pipeline of a device; those under a pipeline's own name win.
ALL_PIPELINES = "*"
FLEET, GROUP, DEVICE = "fleet", "group", "device"
#: Complaints that one error names.
MAX_COMPLAINTS = 10

_Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_PipelineKey = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z0-9][a-z0-9-]{0,62})$")]
_Seconds = Annotated[float, Field(ge=1, le=3600)]

Section = Mapping[str, Any]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class PipelineSettings(_Settings):
    """What of a pipeline may change while its source and line stay."""

    #: Frames inferred per second at most; 0: as many as the source gives.
    max_fps: Annotated[float, Field(ge=0, le=1000)] | None = None
    #: Which predictions enter the outbox.
    keep: Literal["ring", "events", "all"] | None = None
    #: A top score at or above it makes an event.
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    #: Give objects tracking ids.
    track: bool | None = None
    #: Parts of the frame, and event rules over them.
    zones: Zones | None = None
    rules: Rules | None = None
    #: The part of the frame that is looked at: [x0, y0, x1, y1] of 0 to 1.
    roi: Roi | None = None
    #: Whether something has to move there.
    motion: MotionSettings = MotionSettings()
    #: Whether pictures may be asked for.
    preview: bool | None = None


class TelemetrySettings(_Settings):
    """Seconds of one telemetry window."""

    perf_s: _Seconds | None = None
    sys_s: _Seconds | None = None


class UpdateSettings(_Settings):
    """The manners of updates (UPDATES 3.4 and 4.6); a device reads them as its own section `update`."""

    #: Seconds between two polls, ± 50 %.
    poll_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    #: Bytes over the device's link cost money, and what it may then carry.
    metered: bool | None = None
    full_download: Literal["never", "delta_only", "full_up_to"] | None = None
    full_up_to_bytes: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    #: KiB per second that all downloads of a device together may take; 0: as much as comes.
    bandwidth_kib_s: Annotated[float, Field(ge=0, le=2**30)] | None = None
    #: Zone of the windows, a name like "Europe/Berlin".
    time_zone: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None
    #: When files may be fetched, and when a release may be activated; an empty list: always.
    download_windows: Annotated[list[Window], Field(max_length=32)] | None = None
    activation_windows: Annotated[list[Window], Field(max_length=32)] | None = None
    #: "site": somebody at the site says yes before a release is activated.
    consent: Literal["none", "site"] | None = None

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        return None if value is None else checked_zone(value)


class BudgetSettings(_Settings):
    """What a device may use in a day; a device reads them as its own section `budget`."""

    #: Bytes sent to and received from the server; 0: no limit.
    bytes_per_day: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    #: MiB written to storage; 0: no limit.
    writes_per_day_mb: Annotated[float, Field(ge=0, le=2**30)] | None = None


class Settings(_Settings):
    """Everything that may be set from afar; what is not here is refused by the server and left out by a device."""

    log_level: Literal["debug", "info", "warning", "error"] | None = None
    telemetry: TelemetrySettings = TelemetrySettings()
    update: UpdateSettings = UpdateSettings()
    budget: BudgetSettings = BudgetSettings()
    pipelines: Annotated[dict[_PipelineKey, PipelineSettings], Field(max_length=65)] = {}


class _Sections(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)
    fleet: dict[str, Any] = {}
    group: dict[str, Any] = {}
    devices: dict[_Name, dict[str, Any]] = {}


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, defer_build=True)
    schema_: Annotated[Literal["configuration.1"], Field(alias="schema")]
    tenant: _Name
    group: _Name
    rev: Annotated[int, Field(ge=1, le=2**53 - 1)]
    sections: _Sections


@dataclass(frozen=True, slots=True)
class Configuration:
    """One group's configuration of one revision."""

    tenant: str
    group: str
    #: Grows with every release of configuration on this server.
    rev: int
    fleet: Section = field(default_factory=dict)
    #: The group's own section.
    shared: Section = field(default_factory=dict)
    #: Only devices that differ from their group.
    devices: Mapping[str, Section] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effective:
    """What a configuration means for one device."""

    #: Nested as in `Settings`; a null is left only where a pipeline's own section puts aside what is set for all pipelines.
    settings: Mapping[str, Any]
    #: Dotted key -> fleet, group or device: the innermost that says it.
    origins: Mapping[str, str]
    #: Dotted key below its section -> why it is left out: an older device, a value that this code does not know.
    ignored: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Overlaid:
    """A device's own values with a configuration laid over them."""

    values: Mapping[str, Any]
    #: Pipelines that the configuration names and this device does not have.
    unused: tuple[str, ...]


# --- the algebra ---


def merge(base: Section, patch: Section) -> dict[str, Any]:
    """`patch` laid over `base`: maps merge, everything else, null included, replaces. Associative on sections that `checked` let pass."""
    merged = dict(base)
    for key, value in patch.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def resolve(section: Section) -> dict[str, Any]:
    """The section without nulls and without maps that say nothing."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        kept = resolve(value) if isinstance(value, Mapping) else value
        if kept is not None and kept != {}:
            found[key] = kept
    return found


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; maps that say nothing have none."""
    for key, value in section.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from leaves(value, f"{dotted}.")
        else:
            yield dotted, value


def effective(configuration: Configuration, device: str) -> Effective:
    """What the configuration means for the device, with where each value comes from. Pure; never raises for what it does not know."""
    named = ((FLEET, configuration.fleet), (GROUP, configuration.shared), (DEVICE, configuration.devices.get(device, {})))
    merged: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for name, section in named:
        good, bad = salvage(section)
        merged = merge(merged, good)
        said_by |= {key: name for key, _ in leaves(good)}
        ignored |= {f"{name}.{key}": why for key, why in bad.items()}
    settings = _settled(merged)
    return Effective(settings, {key: said_by[key] for key, _ in leaves(settings)}, ignored)


def origin_of(key: str, origins: Mapping[str, str]) -> str:
    """Who says the value of a dotted key, given the origins of `effective`: base, fleet, group or device.

    What is set for all pipelines counts for each.
    """
    parts = key.split(".")
    everywhere = ".".join([*parts[:1], ALL_PIPELINES, *parts[2:]]) if parts[0] == "pipelines" else key
    return origins.get(key) or origins.get(everywhere) or "base"


def overlay(base: Section, settings: Section) -> Overlaid:
    """`settings` laid over a device's own values `base`, both nested as in `Settings`; pipelines of `base` are by name.

    What `base` does not have (an older device) is left out; what is set for all pipelines comes before what names one.
    """
    wished = settings.get("pipelines", {})
    values: dict[str, Any] = {}
    for key, own in base.items():
        if key == "pipelines":
            everywhere = wished.get(ALL_PIPELINES, {})
            values[key] = {name: _over(one, resolve(merge(everywhere, wished.get(name, {})))) for name, one in own.items()}
        elif isinstance(own, Mapping):
            values[key] = _over(own, settings.get(key, {}))
        else:
            values[key] = settings.get(key, own)
    known = base.get("pipelines", {})
    return Overlaid(values, tuple(sorted(name for name in wished if name != ALL_PIPELINES and name not in known)))


def _settled(merged: Section) -> dict[str, Any]:
    """What `merged` says. A pipeline's null stays where all pipelines have a value: dropped, it would let that value in again."""
    settings = resolve(merged)
    everywhere = settings.get("pipelines", {}).get(ALL_PIPELINES, {})
    for name, own in merged.get("pipelines", {}).items():
        if name != ALL_PIPELINES and (gaps := _gaps(own, everywhere)):
            settings = merge(settings, {"pipelines": {name: gaps}})
    return settings


def _gaps(own: Section, everywhere: Section) -> dict[str, Any]:
    """The nulls of `own` where `everywhere` has a value, nested as they are."""
    found: dict[str, Any] = {}
    for key in own.keys() & everywhere.keys():
        if isinstance(own[key], Mapping):
            if below := _gaps(own[key], everywhere[key]):
                found[key] = below
        elif own[key] is None:
            found[key] = None
    return found


def _over(own: Section, wished: Section) -> dict[str, Any]:
    return {key: _over(value, wished.get(key, {})) if isinstance(value, Mapping) else wished.get(key, value) for key, value in own.items()}


# --- checking ---


def checked(section: Any, *, what: str) -> dict[str, Any]:
    """The section in its one form, e.g. numbers as the schema has them; nulls stay.

    Raises: InvalidError naming every place that is wrong, the value seen and what is allowed.
    """
    try:
        return _dumped(Settings.model_validate(section))
    except ValidationError as error:
        complaints = [f"{key or what}: {why}" for key, why in _complaints(error)]
    more = f" and {len(complaints) - MAX_COMPLAINTS} more" if len(complaints) > MAX_COMPLAINTS else ""
    raise InvalidError(f"Configuration of {what}: {'; '.join(complaints[:MAX_COMPLAINTS])}{more}.", hint="See: mooring config keys")


def salvage(section: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """What of the section this code understands, and per dotted key that it does not: why. Never raises."""
    if not isinstance(section, Mapping):
        return {}, {"": "not an object"}
    rest: dict[str, Any] = _copied(section)
    ignored: dict[str, str] = {}
    while True:
        try:
            return _dumped(Settings.model_validate(rest)), ignored
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path = _place(detail["loc"], rest)
                ignored[".".join(path)[:200]] = _why(detail)
                _remove(rest, path)


def known_keys() -> list[tuple[str, str]]:
    """Every key that may be set with the kind of its value, e.g. ("pipelines.NAME.max_fps", "number, 0 to 1000")."""
    return [(key, _kind(schema)) for key, schema in _schema_leaves(Settings.model_json_schema(), "")]


# --- the file ---


def to_bytes(configuration: Configuration) -> bytes:
    """The file: canonical JSON, so its digest is the configuration's identity. Raises: InvalidError when it is too large."""
    document = {
        "schema": SCHEMA,
        "tenant": configuration.tenant,
        "group": configuration.group,
        "rev": configuration.rev,
        "sections": {
            "fleet": dict(configuration.fleet),
            "group": dict(configuration.shared),
            "devices": {name: dict(section) for name, section in configuration.devices.items()},
        },
    }
    data = canonical_json(document)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidError(
            f"The configuration of group {configuration.group} has {len(data)} bytes; at most {MAX_DOCUMENT_BYTES} are allowed.",
            hint="Put what many devices share into their group, or split the group.",
        )
    return data


def from_bytes(data: bytes) -> Configuration:
    """The configuration in the file; its sections are looked at by `effective` only.

    Raises: InvalidError when it is too long, no JSON, of another schema, or its frame is damaged.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidError(f"The configuration has {len(data)} bytes; at most {MAX_DOCUMENT_BYTES} are allowed.")
    try:
        file = _File.model_validate_json(data)
    except ValidationError as error:
        key, why = _complaints(error)[0]
        raise InvalidError(f"This is no configuration of schema {SCHEMA}: {key or 'file'}: {why}.") from error
    sections = file.sections
    return Configuration(file.tenant, file.group, file.rev, sections.fleet, sections.group, sections.devices)


def digest_of_configuration(configuration: Configuration) -> Digest:
    """The identity of the configuration: the digest of its file."""
    return digest_of(to_bytes(configuration))


# --- pieces ---


def _dumped(settings: Settings) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(settings.model_dump_json(exclude_unset=True, by_alias=True))
    return document


def _copied(section: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): _copied(value) if isinstance(value, Mapping) else value for key, value in section.items()}


def _complaints(error: ValidationError) -> list[tuple[str, str]]:
    return [(".".join(str(part) for part in detail["loc"] if part != "[key]"), _why(detail)) for detail in error.errors(include_url=False)]


def _why(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        parents = [str(part) for part in detail["loc"][:-1]]
        return f"unknown key; wanted one of {', '.join(_keys_below(parents))}"
    return f"{detail['msg']}; seen: {str(detail['input'])[:100]!r}"


def _keys_below(parents: Sequence[str]) -> list[str]:
    if parents[:1] == ["pipelines"]:
        return keys_of(parents) or list(PipelineSettings.model_fields)
    section: type[BaseModel] = Settings
    for parent in parents:
        found = section.model_fields[parent].annotation if parent in section.model_fields else None
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return []
        section = found
    return list(section.model_fields)


def _place(location: Sequence[Any], rest: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that lead to the value that is wrong; inside a list the whole list is."""
    path: list[str] = []
    value: Any = rest
    for part in location:
        if not isinstance(value, Mapping) or part not in value:
            break
        path.append(str(part))
        value = value[part]
    return tuple(path)


def _remove(rest: dict[str, Any], path: Sequence[str]) -> None:
    if not path:
        rest.clear()
        return
    for key in path[:-1]:
        rest = rest.get(key, {})
    rest.pop(path[-1], None)


def _schema_leaves(schema: Mapping[str, Any], prefix: str, definitions: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
    known = schema.get("$defs", {}) if definitions is None else definitions
    for name, part in schema.get("properties", {}).items():
        below = known.get(str(part.get("$ref", "")).rpartition("/")[2])
        of_each = known.get(str(_values_of(part).get("$ref", "")).rpartition("/")[2])
        if below is not None:
            yield from _schema_leaves(below, f"{prefix}{name}.", known)
        elif of_each is not None:
            yield from _schema_leaves(of_each, f"{prefix}{name}.NAME.", known)
        else:
            yield f"{prefix}{name}", part


def _values_of(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = part.get("additionalProperties") or next(iter(part.get("patternProperties", {}).values()), {})
    return found if isinstance(found, Mapping) else {}


def _kind(schema: Mapping[str, Any]) -> str:
    options = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    one = options[0] if options else {}
    if "enum" in one:
        return " | ".join(str(value) for value in one["enum"])
    low, high = one.get("minimum", one.get("exclusiveMinimum")), one.get("maximum")
    limits = "" if low is None and high is None else f", {'' if low is None else low} to {'' if high is None else high}".rstrip()
    return f"{one.get('type', 'value')}{limits}"
