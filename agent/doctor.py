"""What `mooring-agent doctor` looks at: camera, runtimes, clock, disk, broker, server; each check says what it saw and what to do.

While an agent runs, what it knows is asked: a camera is not opened twice, and the broker would close the agent's own connection.
"""

import importlib.util
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.config import AgentConfig, PipelineConfig
from agent.control import ask
from agent.identity import Authorities, Identity, certificate_life, load_identity, open_client, read_authorities, renewal_from
from agent.orders import CameraSource, FolderSource, SensorSource, StreamSource, VideoSource, mask
from agent.reporting import probe_in_child
from agent.sources.base import SourceLostError
from agent.sources.folder import pictures_in
from agent.uplink import parse_endpoint, try_broker
from protocol.errors import MooringError, TransferError

#: Seconds of difference to the server's clock beyond which timestamps mislead.
MAX_CLOCK_OFFSET_S = 30.0
CONNECT_TIMEOUT_S = 5.0
#: Days before its end at which a certificate is worth a word.
CERTIFICATE_DAYS = 14
#: What to do about a runtime or provider that was tried, by what was found; docs/runtimes.md says more.
_RUNTIME_ADVICE = {
    "fell_back": "Install what the text names, attach the accelerator, or take it out of runtime.providers; models run on the processor.",
    "crashed": "It is left out after two crashes, until its package, driver library or the kernel changes: install another version.",
    "timeout": "It did not answer in time; look whether the device is overloaded, then mooring-agent probe.",
}
_STREAM_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883}


class Verdict(StrEnum):
    """What a check found."""

    OK = "ok"
    #: Works, but worse than it should.
    WARN = "warn"
    FAIL = "FAIL"
    #: Could not be looked at, for a reason that another check names.
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    verdict: Verdict
    text: str
    #: What to do, empty when there is nothing.
    advice: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether the agent cannot do its work because of it."""
        return self.verdict is Verdict.FAIL

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return asdict(self) | {"verdict": self.verdict.value.lower()}


def examine(config: AgentConfig, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> list[Check]:
    """Every check, in the order in which one depends on another."""
    status = _status(config)
    checks = [_agent(status), _disk(config)]
    identity: Identity | None = None
    try:
        found = load_identity(config.identity_dir)
        found.tls_context()
    except MooringError as error:
        checks.append(Check("identity", Verdict.FAIL, error.message, error.hint or ""))
    else:
        identity = found
        checks.append(_certificate(found, now()))
    checks += _runtimes(config)
    checks += sources(config, status)
    if identity is not None:
        checks += _server(identity, config, now)
        checks.append(_broker(identity, config, status))
    else:
        checks += [Check(name, Verdict.SKIP, "This device is not enrolled.") for name in ("server", "clock", "authority", "broker")]
    return checks


def _status(config: AgentConfig) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = ask(config.control_socket, "status")
    except MooringError:
        return None
    return found


def _agent(status: dict[str, Any] | None) -> Check:
    if status is None:
        return Check("agent", Verdict.WARN, "The agent does not run.", "Start it: systemctl start mooring-agent.")
    return Check("agent", Verdict.OK, f"The agent has run for {status['uptime_s']:.0f} s.")


def _disk(config: AgentConfig) -> Check:
    folder = config.state_dir
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Check("disk", Verdict.FAIL, f"{folder} is missing or may not be written by this user.", "Create it for the agent's user.")
    free_mb, wanted_mb = shutil.disk_usage(folder).free / 2**20, config.outbox.budget_mb + config.update.spare_disk_mb
    text = f"{free_mb:.0f} MiB free at {folder}; the outbox may take {config.outbox.budget_mb:g} MiB."
    if free_mb < wanted_mb:
        return Check("disk", Verdict.FAIL, text, f"Free at least {wanted_mb:.0f} MiB, or lower outbox.budget_mb.")
    return Check("disk", Verdict.OK, text)


def _certificate(identity: Identity, now: datetime) -> Check:
    try:
        _, until = certificate_life(identity)
    except MooringError as error:
        return Check("identity", Verdict.FAIL, error.message, "Enroll again.")
    text = f"{identity.device}; certificate valid until {until:%Y-%m-%d}."
    if now >= until:
        return Check("identity", Verdict.FAIL, text, "Enroll again with --force, or set the clock.")
    if now >= until - timedelta(days=CERTIFICATE_DAYS):
        return Check("identity", Verdict.WARN, text, "It ends soon and was not renewed; see whether the server is reachable.")
    return Check("identity", Verdict.OK, text)


def _runtimes(config: AgentConfig) -> list[Check]:
    checks, works = [], False
    for runtime in probe_in_child(config):
        if runtime.state == "ok":
            works = True
            checks.append(Check(f"rt:{runtime.name}", Verdict.OK, runtime.version))
        elif runtime.state == "missing":
            checks.append(Check(f"rt:{runtime.name}", Verdict.SKIP, "not installed"))
        else:
            advice = _RUNTIME_ADVICE.get(runtime.state, "Install another version of it.")
            checks.append(Check(f"rt:{runtime.name}", Verdict.WARN, f"{runtime.state}: {runtime.text}", advice))
    if not works:
        checks.append(Check("runtimes", Verdict.FAIL, "No inference runtime works here.", "Install the extra `litert` or `onnx`."))
    return checks


def sources(config: AgentConfig, status: dict[str, Any] | None) -> list[Check]:
    """Where frames come from: per pipeline in force when the agent runs, as the server may have set others, else per one of the files."""
    running = {one["pipeline"]: one for one in (status or {}).get("pipelines", [])}
    in_force = ((status or {}).get("configuration") or {}).get("values", {}).get("pipelines")
    own = {one.name: one for one in config.pipelines if in_force is None or one.name in in_force}
    checks = [_source(one, status) for one in own.values()]
    checks += [_told(f"source:{name}", one) for name, one in running.items() if name not in own]
    untold = [name for name in in_force or () if name not in own and name not in running]
    checks += [Check(f"source:{name}", Verdict.SKIP, "From the server; the agent has no figures of it yet.") for name in untold]
    nothing = Check("pipelines", Verdict.WARN, "No pipeline is set up.", "Add one to agent.toml, or set one on the server.")
    return checks or [nothing]


def _told(name: str, one: dict[str, Any]) -> Check:
    """What the running agent says of a source."""
    verdict = Verdict.FAIL if one["source_state"] == "lost" else Verdict.OK
    return Check(name, verdict, f"{one['source_state']} {one['source_text']}".strip(), "" if verdict is Verdict.OK else "See the text.")


def _source(pipeline: PipelineConfig, status: dict[str, Any] | None) -> Check:
    name = f"source:{pipeline.name}"
    for one in (status or {}).get("pipelines", []):
        if one["pipeline"] == pipeline.name:
            return _told(name, one)
    source = pipeline.source
    if isinstance(source, CameraSource | VideoSource | StreamSource | FolderSource) and importlib.util.find_spec("cv2") is None:
        return Check(name, Verdict.FAIL, "OpenCV is not installed.", "Install the extra `camera-headless`.")
    match source:
        case CameraSource():
            return _camera(name, Path(source.device))
        case VideoSource():
            path = Path(source.path)
            return (
                Check(name, Verdict.OK, str(path))
                if path.is_file()
                else Check(name, Verdict.FAIL, f"{path} is missing.", "Check the path.")
            )
        case FolderSource():
            return _folder(name, Path(source.path))
        case StreamSource():
            return _reachable(name, source.url)
        case SensorSource():
            return _reachable(name, source.broker)


def _camera(name: str, device: Path) -> Check:
    if not device.exists():
        present = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        return Check(name, Verdict.FAIL, f"{device} is missing; cameras here: {present}.", "Check cable and power, or name another device.")
    if not os.access(device, os.R_OK | os.W_OK):
        return Check(name, Verdict.FAIL, f"{device} may not be opened by this user.", "Add the user to the group `video`.")
    return Check(name, Verdict.OK, f"{device} is there and may be opened.")


def _folder(name: str, folder: Path) -> Check:
    try:
        count = len(pictures_in(folder))
    except SourceLostError as error:  # the agent would say the same, and open it again and again
        return Check(name, Verdict.FAIL, error.message, error.hint or "")
    return Check(name, Verdict.OK, f"{folder} holds {count} {'picture' if count == 1 else 'pictures'}.")


def _reachable(name: str, url: str) -> Check:
    try:
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or _STREAM_PORTS[parts.scheme])
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, KeyError) as error:
        return Check(name, Verdict.FAIL, f"{mask(url)} cannot be reached: {error}.", "Check address, network and power.")
    return Check(name, Verdict.OK, f"{mask(url)} answers.")


def _server(identity: Identity, config: AgentConfig, now: Callable[[], datetime]) -> list[Check]:
    url = config.server.url or identity.enrollment.server
    try:
        with open_client(identity.tls_context(), base_url=url, proxy=config.server.proxy, timeout_s=CONNECT_TIMEOUT_S) as client:
            response = client.get("/enroll/v1/ca")
    except MooringError as error:
        failed = Check("server", Verdict.FAIL, error.message, error.hint or "")
        return [failed, Check("clock", Verdict.SKIP, "The server tells no time."), _authority(identity, None)]
    is_well = response.status_code == 200
    advice = "" if is_well else "Look at the server's log."
    return [
        Check("server", Verdict.OK if is_well else Verdict.FAIL, f"{url} answers {response.status_code}.", advice),
        _clock(response.headers.get("date"), now()),
        _authority(identity, response.text if is_well else None),
    ]


def _authority(identity: Identity, served: str | None) -> Check:
    """Whom this device trusts, and whether it has followed a replacement; `served`: whom the server says is trusted, None: unknown."""
    try:
        found, renewal = read_authorities(identity), renewal_from(identity)
    except MooringError as error:
        return Check("authority", Verdict.FAIL, error.message, "Enroll again.")
    when = f"The certificate is renewed from {renewal:%Y-%m-%d} on."
    if found.issuer is None:
        return Check("authority", Verdict.FAIL, "No authority that this device trusts issued its certificate.", "Enroll again.")
    if served is not None and served != found.pem:
        text = f"The server's authority is being replaced or was; this device still trusts {_authorities(found)}."
        return Check("authority", Verdict.WARN, text, "The agent renews by itself with its next report; leave it running and online.")
    if found.trusted > 1:
        return Check("authority", Verdict.OK, f"It is being replaced; this device trusts {_authorities(found)}. {when}")
    return Check("authority", Verdict.OK, f"One is trusted. {when}")


def _authorities(found: Authorities) -> str:
    if found.trusted == 1:
        return "one, which issued its certificate"
    return f"{found.trusted}; its certificate is of {'the one that issues now' if found.issuer == 0 else 'the former one'}"


def _clock(date: str | None, now: datetime) -> Check:
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return Check("clock", Verdict.SKIP, "The server tells no time.")
    offset_s = (now - theirs).total_seconds()
    text = f"{abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} the server."
    if abs(offset_s) > MAX_CLOCK_OFFSET_S:
        return Check("clock", Verdict.FAIL, text, "Set the system clock, best by NTP: timedatectl set-ntp true.")
    return Check("clock", Verdict.OK, text)


def _broker(identity: Identity, config: AgentConfig, status: dict[str, Any] | None) -> Check:
    if status is not None:
        wrong = [one for one in status["conditions"] if one["code"].startswith(("broker_", "publish_"))]
        if status["connected"] and not wrong:
            return Check("broker", Verdict.OK, "The agent is connected.")
        text = wrong[0]["text"] if wrong else "The agent is not connected yet."
        return Check("broker", Verdict.FAIL, text, wrong[0]["advice"] if wrong else "Wait a minute and look again.")
    urls = [config.broker.url] if config.broker.url else identity.enrollment.broker.urls
    text = ""
    for url in urls:
        try:
            try_broker(parse_endpoint(url), identity, proxy=config.broker.proxy or config.server.proxy, timeout_s=CONNECT_TIMEOUT_S)
        except (TransferError, MooringError) as error:
            text = str(error)
        else:
            return Check("broker", Verdict.OK, f"{url} accepts this device.")
    return Check("broker", Verdict.FAIL, text, "Check network, proxy, firewall (8883 or 443) and the broker's log.")
