"""What the server wishes, as the twin brings it: checked key by key, so that one bad key is reported and the rest is applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from agent.config import Name, PipelineConfig, Section
from agent.settings.complaints import complaints

_MAX_PIPELINES = 64


class DesiredUpdate(Section):
    poll_s: Annotated[float, Field(ge=1, le=86_400)] | None = None


class DesiredTelemetry(Section):
    perf_s: Annotated[float, Field(ge=1, le=3600)] | None = None
    sys_s: Annotated[float, Field(ge=1, le=3600)] | None = None


class DesiredDrift(Section):
    """As `DriftConfig`; None: the server does not say."""

    false_alarms_per_year: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    check: Literal["device", "server"] | None = None
    indoor: bool | None = None
    acknowledged: Annotated[tuple[Name, ...], Field(max_length=64)] | None = None
    rebaselined: Annotated[dict[Name, Annotated[int, Field(ge=0, le=2**53 - 1)]], Field(max_length=64)] | None = None
    references: Annotated[dict[Name, Annotated[str, StringConstraints(max_length=244_000)]], Field(max_length=64)] | None = None


@dataclass(frozen=True, slots=True)
class DesiredConfig:
    """The part of a desired config that could be understood; None: the server does not say."""

    pipelines: tuple[PipelineConfig, ...] | None = None
    telemetry: DesiredTelemetry = field(default_factory=DesiredTelemetry)
    update: DesiredUpdate = field(default_factory=DesiredUpdate)
    drift: DesiredDrift = field(default_factory=DesiredDrift)
    #: Name -> sealed text; opened by `protocol.sealed`.
    secrets: Mapping[str, str] = field(default_factory=dict)


_SECRETS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[Name, Annotated[str, StringConstraints(max_length=16_384)]])
_Part = TypeVar("_Part", bound=Section)


def parse_desired(config: Mapping[str, Any]) -> tuple[DesiredConfig, dict[str, str]]:
    """What of the desired config can be applied, and per key that cannot: why (secrets are never repeated there)."""
    errors: dict[str, str] = {}
    known = {"pipelines", "telemetry", "update", "drift", "secrets"}
    for key in config.keys() - known:
        errors[key[:200]] = f"unknown key; wanted one of {', '.join(sorted(known))}"
    pipelines = None if "pipelines" not in config else _parse_pipelines(config["pipelines"], errors)
    telemetry = _parse_part(DesiredTelemetry, "telemetry", config, errors)
    update = _parse_part(DesiredUpdate, "update", config, errors)
    drift = _parse_part(DesiredDrift, "drift", config, errors)
    secrets: dict[str, str] = {}
    try:
        secrets = _SECRETS.validate_python(config.get("secrets") or {})
    except ValidationError:
        errors["secrets"] = "not an object of names and sealed texts"
    return DesiredConfig(pipelines, telemetry, update, drift, secrets), errors


def _parse_pipelines(value: Any, errors: dict[str, str]) -> tuple[PipelineConfig, ...] | None:
    if not isinstance(value, list) or len(value) > _MAX_PIPELINES:
        errors["pipelines"] = f"not a list of at most {_MAX_PIPELINES} pipelines"
        return None
    found: dict[str, PipelineConfig] = {}
    for index, item in enumerate(value):
        try:
            pipeline = PipelineConfig.model_validate(item)
        except ValidationError as error:
            for key, text in complaints(error):
                errors[f"pipelines.{index}.{key}"[:200]] = text
            continue
        if pipeline.name in found:
            errors[f"pipelines.{index}.name"] = f"{pipeline.name!r} is already taken by another pipeline"
        else:
            found[pipeline.name] = pipeline
    return tuple(found.values())


def _parse_part(kind: type[_Part], name: str, config: Mapping[str, Any], errors: dict[str, str]) -> _Part:
    """The section without the keys that are wrong."""
    part = config.get(name) or {}
    if not isinstance(part, dict):
        errors[name] = "not an object"
        return kind()
    good = dict(part)
    try:
        return kind.model_validate(good)
    except ValidationError as error:
        for key, text in complaints(error):
            errors[f"{name}.{key}"[:200]] = text
            good.pop(key.split(".", maxsplit=1)[0], None)
        return kind.model_validate(good)
