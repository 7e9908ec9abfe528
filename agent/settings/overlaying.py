"""What is in force: the local settings, what the server wishes and signed configuration sets laid over them, secrets put in their place."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import ValidationError

from agent.config import AgentConfig, BudgetConfig, PipelineConfig, TelemetryConfig, UpdateConfig
from agent.orders import SensorSource, StreamSource
from agent.settings.complaints import complaints
from agent.settings.desired import DesiredConfig
from protocol.configuration import BudgetSettings, PipelineSettings, TelemetrySettings, UpdateSettings
from protocol.rules import MAX_RULE_BYTES

#: What of a section may be laid over from afar, named once in `protocol.configuration`.
_SETTABLE = {
    name: tuple(kind.model_fields)
    for name, kind in (("telemetry", TelemetrySettings), ("update", UpdateSettings), ("budget", BudgetSettings))
}
_SETTABLE_PIPELINE = tuple(PipelineSettings.model_fields)


def effective_config(local: AgentConfig, desired: DesiredConfig) -> AgentConfig:
    """The settings in force: the local ones, changed by what the server wishes."""
    telemetry = local.telemetry.model_copy(update=desired.telemetry.model_dump(exclude_none=True))
    update = local.update.model_copy(update=desired.update.model_dump(exclude_none=True))
    drift = local.drift.model_copy(update=desired.drift.model_dump(exclude_none=True))
    pipelines = local.pipelines if desired.pipelines is None else desired.pipelines
    return local.model_copy(update={"telemetry": telemetry, "update": update, "drift": drift, "pipelines": pipelines})


def settable(config: AgentConfig) -> dict[str, Any]:
    """The values that signed configuration may change, nested as `protocol.configuration.Settings`; pipelines by name."""
    dumped = config.model_dump(mode="json", by_alias=True)
    found: dict[str, Any] = {"log_level": dumped["log_level"]}
    for section, names in _SETTABLE.items():
        found[section] = {name: dumped[section][name] for name in names if name in dumped[section]}
    found["pipelines"] = {one["name"]: {name: one[name] for name in _SETTABLE_PIPELINE} for one in dumped["pipelines"]}
    return found


def with_settable(config: AgentConfig, values: Mapping[str, Any]) -> tuple[AgentConfig, dict[str, str]]:
    """The settings with these values, nested as `settable` gives them, and per key that does not fit this agent: why it is left out."""
    errors: dict[str, str] = {}
    dumped = config.model_dump(mode="json", by_alias=True)
    wished: dict[str, Any] = {"log_level": values["log_level"]}
    for section, kind in (("telemetry", TelemetryConfig), ("update", UpdateConfig), ("budget", BudgetConfig)):
        fitting = dict(values[section])
        try:
            wished[section] = kind.model_validate({**dumped[section], **fitting})
        except ValidationError as error:
            for key, text in complaints(error):
                errors[f"{section}.{key}"[:200]] = text
                fitting.pop(key.split(".", maxsplit=1)[0], None)
            wished[section] = kind.model_validate({**dumped[section], **fitting})
    pipelines = [_with_values(one, values["pipelines"].get(one["name"], {}), errors) for one in dumped["pipelines"]]
    return config.model_copy(update={**wished, "pipelines": tuple(pipelines)}), errors


def _with_values(own: Mapping[str, Any], wished: Mapping[str, Any], errors: dict[str, str]) -> PipelineConfig:
    """The pipeline with those of the values that fit it. Rules that name a zone which is not here do not, nor the zones beside them."""
    try:
        return PipelineConfig.model_validate({**own, **wished})
    except ValidationError as error:
        misfits = {key.split(".", maxsplit=1)[0]: text for key, text in complaints(error)}
    errors.update({f"pipelines.{own['name']}.{key}"[:200]: text for key, text in misfits.items()})
    wrong = misfits.keys() | ({"zones", "rules"} if misfits.keys() & {"zones", "rules"} else set())
    return PipelineConfig.model_validate({**own, **{key: value for key, value in wished.items() if key not in wrong}})


def trim_rules(config: AgentConfig) -> tuple[AgentConfig, dict[str, str]]:
    """The settings without the zones and rules of the pipelines that are beyond `MAX_RULE_BYTES`, and per such pipeline: why."""
    left, kept, errors = MAX_RULE_BYTES, [], {}
    for pipeline in config.pipelines:
        size = len(pipeline.model_dump_json(include={"zones", "rules"}, by_alias=True))
        if size > left:
            text = f"zones and rules of all pipelines together take more than {MAX_RULE_BYTES} bytes; those of this one are left out"
            errors[f"pipelines.{pipeline.name}.rules"] = text
            kept.append(pipeline.model_copy(update={"zones": (), "rules": ()}))
        else:
            left -= size
            kept.append(pipeline)
    return (config if not errors else config.model_copy(update={"pipelines": tuple(kept)})), errors


def resolve_secrets(pipelines: tuple[PipelineConfig, ...], secrets: Mapping[str, str]) -> tuple[tuple[PipelineConfig, ...], dict[str, str]]:
    """The pipelines with each named secret ("user:password") put into its URL, and per pipeline left out: why."""
    resolved, errors = [], {}
    for pipeline in pipelines:
        source = pipeline.source
        if not isinstance(source, StreamSource | SensorSource) or source.secret is None:
            resolved.append(pipeline)
        elif (value := secrets.get(source.secret)) is None:
            text = f"no secret named {source.secret!r} has reached this device; send it: mooring device secret DEVICE {source.secret}"
            errors[f"pipelines.{pipeline.name}.source.secret"] = text
        else:
            resolved.append(pipeline.model_copy(update={"source": _with_secret(source, value)}))
    return tuple(resolved), errors


def _with_secret(source: StreamSource | SensorSource, secret: str) -> StreamSource | SensorSource:
    if isinstance(source, SensorSource):
        return replace(source, broker=_with_credentials(source.broker, secret), secret=None)
    sub_url = None if source.sub_url is None else _with_credentials(source.sub_url, secret)
    return replace(source, url=_with_credentials(source.url, secret), sub_url=sub_url, secret=None)


def _with_credentials(url: str, secret: str) -> str:
    user, _, password = secret.partition(":")
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}"))
