"""Every setting of the server: frozen, validated once at start-up, each with its unit and the reason of its default.

Order: flag > environment `MOORING_…` (`__` nests) > `--config FILE` > /etc/mooring/fleet.toml and fleet.d/*.toml > the defaults here.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ConfigError
from protocol.ids import DEFAULT_TENANT, NAME_PATTERN

ENVIRONMENT_PREFIX = "MOORING_"
#: Variables of ours that are no settings of the server: the device's, the clock, the command line's, key secrets, the tests', the demo's.
RESERVED_PREFIXES = ("AGENT_", "CLI_", "CLOCK", "DATA", "KEY_", "PKCS11_", "TEST_", "DEMO_", "HIL_", "BENCH_", "URL", "TOKEN")
#: A settings file beyond this is no settings file, bytes.
MAX_FILE_BYTES = 1 << 20
SYSTEM_FOLDER = Path("/etc/mooring")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
#: An address, alone or behind a name; what would end the line of a mail's head has no place in it.
_SENDER = re.compile(r"[!-;=?-~]+@[!-;=?-~]+|[ -;=?-~]+ <[!-;=?-~]+@[!-;=?-~]+>")

Port = Annotated[int, Field(ge=0, le=65_535)]


class Role(StrEnum):
    """What a server process does; any number of processes each."""

    #: Device API, admin API and console.
    API = "api"
    #: MQTT to database.
    INGEST = "ingest"
    #: The ticks: campaigns, presence, twins. One at a time over all processes.
    CONTROLLER = "controller"
    #: The job queue.
    WORKER = "worker"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


Folder = Annotated[Path, AfterValidator(_absolute)]


class DeviceApiConfig(_Section):
    """The HTTPS listener for devices; client certificates are asked for."""

    host: str = Field("127.0.0.1", description="address to listen on; loopback until somebody opens it")
    port: Port = Field(8443, description="TCP port; 0: any free one")
    url: str = Field("", description="how devices reach it, https://host:port; empty: made from host and port")
    public_blobs: bool = Field(
        False, description="serve blobs without a certificate and let any cache keep them, for a CDN; who knows a digest gets the model"
    )


class ConsoleConfig(_Section):
    """The listener for people: console and /api/v1."""

    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs the TLS files")
    port: Port = Field(8080, description="TCP port; 0: any free one")
    url: str = Field("", description="how people reach it, https://host[:port], for links in alerts; empty: made from host and port")
    tls_certificate: Path | None = Field(None, description="PEM chain; without it plain HTTP on loopback only")
    tls_key: Path | None = Field(None, description="PEM key of that certificate")


class BrokerConfig(_Section):
    """The MQTT broker: somebody's, or a child of ours."""

    url: str = Field("", description="mqtts://host:port of a broker that we neither start nor configure; empty: start mosquitto")
    host: str = Field("127.0.0.1", description="address the child listens on")
    port: Port = Field(8883, description="TLS port of the child; 0: any free one")
    websocket_port: Port = Field(8884, description="WebSocket over TLS of the child, for sites that let only HTTPS out; 0: any free one")
    public_urls: tuple[str, ...] = Field((), description="what enrolled devices are told, best first; empty: made from host and ports")
    mosquitto: str = Field("", description="path of the program; empty: PATH, then /usr/sbin")
    prefix: str = Field("mooring", pattern=NAME_PATTERN, description="first level of every topic")


class PkiConfig(_Section):
    """Certificates made by this server's own authority."""

    names: tuple[str, ...] = Field(
        ("localhost", "127.0.0.1", "::1"), description="DNS names and addresses in the server certificate; devices check them"
    )
    device_days: int = Field(365, ge=1, le=3650, description="validity of a device certificate, days; renewed at two thirds")
    server_days: int = Field(365, ge=1, le=825, description="validity of server and service certificates, days; made anew at start-up")
    authority_days: int = Field(7300, ge=30, le=18_250, description="validity of the authority, days; longer than a device lives")
    invite_hours: float = Field(24.0, gt=0, le=24 * 90, description="life of an enrollment token unless asked otherwise, hours")


class LimitsConfig(_Section):
    """What is refused, so that nobody fills the machine."""

    artifact_mb: int = Field(2048, ge=1, description="largest model or firmware file accepted, MiB")
    request_kb: int = Field(256, ge=1, description="largest JSON request body accepted, KiB")
    pipelines: int = Field(16, ge=1, le=64, description="pipelines per device")
    pending_invites: int = Field(10_000, ge=1, description="unused enrollment tokens per tenant")
    telemetry_days: int = Field(30, ge=1, description="how long raw telemetry rows are kept, days")
    ingest_batch: int = Field(1000, ge=1, le=20_000, description="messages per transaction; equals MQTT Receive Maximum")


class DeltasConfig(_Section):
    """Deltas between releases, made in the background by workers; one at a time over all processes."""

    enabled: bool = Field(True, description="whether deltas are made; without them devices fetch whole files")
    bases: int = Field(3, ge=0, le=16, description="bases per file, those that most devices have; each costs one encoding")
    share_percent: float = Field(5.0, gt=0, le=100, description="percent of the devices from which on a base is served beyond these")
    timeout_s: float = Field(1800.0, gt=0, description="longest time of one encoding, seconds; a model of 2 GiB on a slow core")
    cpu_s: int = Field(900, ge=1, description="most CPU of one encoding, seconds; what takes longer is remembered as failed")
    memory_mb: int = Field(4096, ge=256, description="most address space of one encoding, MiB; both files and zstd's tables")
    nice: int = Field(15, ge=0, le=19, description="niceness of the encoder; devices and people are served first")
    cpu_percent: int = Field(50, ge=1, le=100, description="percent of one core that encoding takes in the long run")


class MailConfig(_Section):
    """The mail server that alerts to people are handed to; without a host nobody gets mail."""

    host: str = Field("", description="name of the mail server; empty: no mail")
    port: Port = Field(587, description="TCP port; 587 goes with starttls, 465 with tls")
    encryption: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="starttls, tls, or none for a relay on this machine; a server that does not offer it gets no mail"
    )
    sender: str = Field("", description="address that mail comes from")
    user: str = Field("", description="login at the mail server; empty: none")
    password_file: Path | None = Field(
        None, description="file with the password, read when mail is sent; it stays out of settings and logs"
    )


class DriftConfig(_Section):
    """How many false alarms of drift are allowed (docs/alarms.md)."""

    false_alarms_per_device_year: float = Field(
        1.0, ge=0.001, le=1000, description="false alarms per device-year; the fewer, the later a true one comes"
    )
    fleet_false_alarms_per_year: float = Field(
        0.0,
        ge=0,
        le=1_000_000,
        description="false alarms per year of all devices together, shared out among them; 0: the rate per device holds",
    )
    group_false_alarms_per_year: float = Field(1.0, ge=0.001, le=1000, description="false alarms per year of one group of devices")
    false_discovery_share: float = Field(0.1, gt=0, le=0.5, description="share of wrong names in the list of devices that drift, 0..1")


class FleetConfig(_Section):
    """All settings of one server process."""

    data_dir: Folder = Field(Path("/var/lib/mooring/fleet"), description="folder of everything this server keeps")
    tenant: str = Field(DEFAULT_TENANT, pattern=NAME_PATTERN, description="tenant of an embedded server")
    roles: tuple[Role, ...] = Field(tuple(Role), min_length=1, description="what this process does; one process does all by default")
    database_url: str = Field("", description="sqlite:////path or postgresql://user@host/name; empty: DATA/fleet.db")
    blob_url: str = Field("", description="file:///path, s3://bucket/prefix, gs://… or az://…; empty: DATA/blobs")
    demo_keys: bool = Field(False, description="sign with keys of this machine and say so on every page; never for real fleets")
    trust_clock: bool = Field(False, description="believe at start-up a clock that is more than a day ahead of the last signature")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity that is logged")
    device_api: DeviceApiConfig = DeviceApiConfig()
    console: ConsoleConfig = ConsoleConfig()
    broker: BrokerConfig = BrokerConfig()
    pki: PkiConfig = PkiConfig()
    limits: LimitsConfig = LimitsConfig()
    deltas: DeltasConfig = DeltasConfig()
    drift: DriftConfig = DriftConfig()
    mail: MailConfig = MailConfig()

    @property
    def effective_database_url(self) -> str:
        """SQLAlchemy URL of the database in use."""
        return self.database_url or f"sqlite:///{self.data_dir / 'fleet.db'}"

    @property
    def effective_blob_url(self) -> str:
        """URL of the blob store in use."""
        return self.blob_url or (self.data_dir / "blobs").as_uri()

    @property
    def pki_dir(self) -> Path:
        """Folder of the certificate authority."""
        return self.data_dir / "pki"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """The settings and where each that is no default came from, by dotted key."""

    config: FleetConfig
    origins: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, Any, str]]:
        """Every setting as (dotted key, value with passwords masked, origin)."""
        found = []
        for key in known_keys():
            value: Any = self.config
            for part in key.split("."):
                value = getattr(value, part)
            found.append((key, _PASSWORD.sub("***@", value) if isinstance(value, str) else value, self.origins.get(key, "default")))
        return found


def load(
    *,
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    system_folder: Path = SYSTEM_FOLDER,
) -> LoadedConfig:
    """The settings of this process. `flags` has dotted keys; None values are not given.

    Raises: ConfigError naming key, value and what is allowed; also for an unknown key.
    """
    merged: dict[str, tuple[Any, str]] = {}
    for path in _system_files(system_folder):
        merged.update(_from_file(path))
    if file is not None:
        merged.update(_from_file(file))
    merged.update(_from_environment(os.environ if environment is None else environment))
    merged.update({key: (value, "flag") for key, value in (flags or {}).items() if value is not None})
    _check_known(merged)
    return LoadedConfig(_validate(merged), {key: origin for key, (_, origin) in sorted(merged.items())})


def known_keys() -> dict[str, str]:
    """Every dotted key with its description."""
    return {".".join(path): text for path, text in _walk(FleetConfig, ())}


def _walk(section: type[BaseModel], path: tuple[str, ...]) -> Sequence[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found.extend(_walk(info.annotation, (*path, name)))
        else:
            found.append(((*path, name), info.description or ""))
    return found


def _system_files(folder: Path) -> list[Path]:
    single = folder / "fleet.toml"
    return ([single] if single.is_file() else []) + sorted((folder / "fleet.d").glob("*.toml"))


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is longer than {MAX_FILE_BYTES} bytes.", hint="Wanted: a TOML file of settings.")
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint="Name a readable TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.", hint="Mend the line named.") from error
    return {key: (value, str(path)) for key, value in _flatten(document, ())}


def _flatten(document: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            found.extend(_flatten(value, (*path, name)))
        else:
            found.append((".".join((*path, name)), value))
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        rest = name.removeprefix(ENVIRONMENT_PREFIX)
        key = rest.lower().replace("__", ".")
        if key not in known_keys() and _is_reserved(rest):
            continue
        found[key] = (_listed(key, text), f"environment {name}")
    return found


def _is_reserved(rest: str) -> bool:
    return any(rest == prefix or (prefix.endswith("_") and rest.startswith(prefix)) for prefix in RESERVED_PREFIXES)


def _listed(key: str, text: str) -> Any:
    """Lists are written with commas in the environment and on the command line."""
    return [part.strip() for part in text.split(",") if part.strip()] if key in _LIST_KEYS else text


_LIST_KEYS = frozenset({"roles", "pki.names", "broker.public_urls"})


def _check_known(merged: Mapping[str, tuple[Any, str]]) -> None:
    known = known_keys()
    for key, (value, origin) in merged.items():
        if key not in known:
            raise ConfigError(
                f"{key} = {str(value)[:80]!r} ({origin}) is no setting.",
                hint=f"Known: {', '.join(sorted(known))}.",
                code="config-unknown-key",
            )


def _validate(merged: Mapping[str, tuple[Any, str]]) -> FleetConfig:
    document: dict[str, Any] = {}
    for key, (value, _) in merged.items():
        *parents, leaf = key.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = _listed(key, value) if isinstance(value, str) else value
    try:
        config = FleetConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        origin = merged[key][1] if key in merged else "default"
        allowed = known_keys().get(key, "")
        raise ConfigError(f"{key} = {_shown(key, first['input'])} ({origin}): {first['msg']}.", hint=f"Wanted: {allowed}.") from error
    _check_together(config)
    return config


def _check_together(config: FleetConfig) -> None:
    console = config.console
    if (console.tls_certificate is None) != (console.tls_key is None):
        raise ConfigError("console.tls_certificate and console.tls_key go together; one is missing.", hint="Set both or none.")
    if console.tls_certificate is None and console.host not in {"127.0.0.1", "::1", "localhost"}:
        raise ConfigError(
            f"console.host = {console.host!r} without TLS would send passwords in the clear.",
            hint="Set console.tls_certificate and console.tls_key, or keep 127.0.0.1 behind a TLS proxy.",
        )
    if console.url and not _is_origin(console.url):
        raise ConfigError(
            f"console.url = {_without_login(console.url[:200])!r} is no address of a console.",
            hint="Wanted: https://host[:port], without a path.",
        )
    mail = config.mail
    if mail.host and not mail.sender:
        raise ConfigError("mail.host is set and mail.sender is not.", hint="Set the address that mail comes from.")
    if mail.sender and not _SENDER.fullmatch(mail.sender):
        raise ConfigError(
            f"mail.sender = {mail.sender[:80]!r} is no mail address.",
            hint="Wanted: name@host, or Name <name@host>, in ASCII and in one line.",
        )
    if bool(mail.user) != (mail.password_file is not None):
        raise ConfigError("mail.user and mail.password_file go together; one is missing.", hint="Set both or none.")
    if mail.host and mail.encryption == "none" and mail.host not in {"127.0.0.1", "::1", "localhost"}:
        raise ConfigError(
            f"mail.host = {mail.host!r} without TLS would send mail and password in the clear.", hint="Wanted: starttls or tls."
        )
    if config.broker.url and urlsplit(config.broker.url).scheme not in {"mqtts", "wss"}:
        raise ConfigError(
            f"broker.url = {config.broker.url!r} is not encrypted.", hint="Wanted: mqtts://host:port or wss://host:port/path."
        )


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_named = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False
    return is_named and parts.username is None and text == f"{parts.scheme}://{parts.netloc}"


def _without_login(text: str) -> str:
    return f"***@{text.rpartition('@')[2]}" if "@" in text else text


def _shown(key: str, value: Any) -> str:
    return "(hidden)" if key == "database_url" else repr(value)[:120]
