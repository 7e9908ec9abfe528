"""Where the settings of this device come from: read once, each with its origin.

Order: flag > MOORING_AGENT_* (`__` nests) > --config > systemd credential agent.toml > /etc/mooring/agent.toml and agent.d/*.toml >
/usr/lib/mooring/agent.toml > the defaults of `agent/config.py`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from agent.config import AgentConfig, PipelineConfig, ServingConfig
from agent.orders import Source, mask
from agent.settings.complaints import complaints
from protocol.errors import ConfigError
from protocol.files import read_bounded
from protocol.look import Motion
from protocol.rules import keys_of

ETC_DIR = Path("/etc/mooring")
VENDOR_DIR = Path("/usr/lib/mooring")
ENVIRONMENT_PREFIX = "MOORING_AGENT_"
#: Read by `enroll` only: a secret is not a setting.
TOKEN_ENVIRONMENT_NAME = "MOORING_AGENT_TOKEN"  # noqa: S105 - a name, not a secret
#: A configuration file beyond this is not one of ours.
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """The settings and, per dotted key that someone set, who set it."""

    config: AgentConfig
    origins: Mapping[str, str]

    def rows(self) -> list[tuple[str, Any, str]]:
        """Every leaf as (dotted key, value with secrets masked, origin)."""
        return [(key, mask(value), self.origin_of(key) or "default") for key, value in _leaves(self.config.model_dump(mode="json"))]

    def origin_of(self, key: str) -> str | None:
        """Who set it, or the first thing below it: a file, a variable of the environment or "flag"; None: nobody."""
        return _origin_of(key, self.origins)


def load_config(
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    config_path: Path | None = None,
    etc_dir: Path = ETC_DIR,
    vendor_dir: Path = VENDOR_DIR,
) -> LoadedConfig:
    """The settings with their origins. `flags` holds dotted keys; None values are skipped.

    Raises: ConfigError naming key, value and what is allowed: an unknown key, a bad value, an unreadable file.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    files = [vendor_dir / "agent.toml", etc_dir / "agent.toml", *sorted((etc_dir / "agent.d").glob("*.toml"))]
    environment = environment or {}
    if credentials := environment.get("CREDENTIALS_DIRECTORY"):  # systemd.exec(5)
        files.append(Path(credentials) / "agent.toml")
    for path in files:
        if path.is_file():
            _merge(merged, origins, _read_toml(path), str(path))
    if config_path is not None:
        _merge(merged, origins, _read_toml(config_path), str(config_path))
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name != TOKEN_ENVIRONMENT_NAME:
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            _merge(merged, origins, _nested(key, parse_value(name, text)), f"environment {name}")
    for key, value in (flags or {}).items():
        if value is not None:
            _merge(merged, origins, _nested(key, value), "flag")
    try:
        return LoadedConfig(AgentConfig.model_validate(merged), origins)
    except ValidationError as error:
        raise _config_error(error, origins) from None


def changed_serving(serving: ServingConfig, change: Mapping[str, Any]) -> ServingConfig:
    """The settings with some changed by flags. Raises: ConfigError."""
    try:
        return ServingConfig.model_validate({**serving.model_dump(), **change})
    except ValidationError as error:
        wrong = [f"{'.'.join(filter(None, ('serving', key)))}: {text}" for key, text in complaints(error)]
        raise ConfigError(f"Wrong setting: {' | '.join(wrong)}.") from None


def parse_value(name: str, text: str) -> Any:
    """A setting given as text: lists and tables in TOML, all else as it stands. Raises: ConfigError naming the setting."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not a TOML value: {error}.") from None


def _config_error(error: ValidationError, origins: Mapping[str, str]) -> ConfigError:
    parts = []
    for key, text in complaints(error):
        origin = _origin_of(key, origins)
        allowed = f"; known here: {', '.join(_known_keys(key))}" if text == "unknown key" else ""
        parts.append(f"{key}: {text}{allowed}{f' (from {origin})' if origin else ''}")
    return ConfigError("Wrong setting: " + " | ".join(parts) + ".", hint="See `mooring-agent config show --origin`.")


def _origin_of(key: str, origins: Mapping[str, str]) -> str | None:
    return next((by for known, by in origins.items() if f"{key}.".startswith(f"{known}.") or known.startswith(f"{key}.")), None)


def _known_keys(key: str) -> list[str]:
    """The keys allowed where the unknown one stands."""
    section: Any = AgentConfig
    *place, _ = key.split(".")
    if place[:1] == ["pipelines"]:
        return sorted(keys_of(place) or _keys_of_parts(place) or PipelineConfig.model_fields)
    for part in place:
        candidate = section.model_fields[part].annotation if part in section.model_fields else None
        if not (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
            return []
        section = candidate
    return sorted(section.model_fields)


def _keys_of_parts(place: Sequence[str]) -> list[str]:
    """The keys of a pipeline's motion gate or source; empty elsewhere."""
    kinds = {get_args(kind.__annotations__["kind"])[0]: kind for kind in get_args(Source)}
    part = Motion if place[-1] == "motion" else kinds.get(place[-1]) if "source" in place else None
    return [one.name for one in fields(part)] if part else []


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bounded(path, MAX_FILE_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None


def _merge(into: dict[str, Any], origins: dict[str, str], new: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(into.setdefault(key, {}), dict):
            _merge(into[key], origins, value, origin, f"{dotted}.")
        else:
            into[key] = value
            origins[dotted] = origin


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, value)]
