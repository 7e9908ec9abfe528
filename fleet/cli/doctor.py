"""mooring doctor: looks at the server and at this machine, and says what to do."""

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fleet.cli import credentials, output
from fleet.cli.client import Api
from fleet.cli.output import JsonOption, ServerOption
from fleet.cli.serve import ConfigOption, DataOption, settings_of
from fleet.cli.session import tls_verification
from fleet.config import FleetConfig
from protocol.clock import from_environment
from protocol.errors import MooringError

#: Below this a server soon stops taking models, bytes.
LOW_DISK_BYTES = 2 << 30
#: Devices named in one finding.
NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found: ok, warning or error."""

    what: str
    state: str
    text: str
    advice: str = ""


def doctor(
    data: Path | None = DataOption, config: Path | None = ConfigOption, server: str | None = ServerOption, as_json: bool = JsonOption
) -> None:
    """Check broker program, disk, database, keys, the certificate authority, and the server. Ends with 1 when something is wrong."""
    settings = settings_of(data, config)
    found = [finding for check in (_broker, _disk, _database, _keys, _authority) for finding in check(settings)]
    found += _server(server)
    if as_json:
        output.document([{"what": one.what, "state": one.state, "text": one.text, "advice": one.advice} for one in found])
    else:
        columns: tuple[tuple[str, Callable[[Any], Any]], ...] = (
            ("WHAT", lambda one: one.what),
            ("STATE", lambda one: one.state),
            ("SEEN", lambda one: one.text),
            ("TO DO", lambda one: one.advice),
        )
        output.table(columns, found, empty="")
    if any(one.state == "error" for one in found):
        raise typer.Exit(1)


def _broker(settings: FleetConfig) -> list[Finding]:
    if settings.broker.url:
        return [Finding("broker", "ok", f"somebody's: {settings.broker.url}", "Its access rules: mooring broker acl")]
    program = settings.broker.mosquitto or shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if not program:
        return [Finding("broker", "error", "mosquitto is missing", "apt install mosquitto, or set broker.url")]
    return [Finding("broker", "ok", str(program))]


def _disk(settings: FleetConfig) -> list[Finding]:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):.1f} GiB free for {settings.data_dir}"
    return [
        Finding("disk", "warning", text, "Free space: models and events are kept there.")
        if free < LOW_DISK_BYTES
        else Finding("disk", "ok", text)
    ]


def _database(settings: FleetConfig) -> list[Finding]:
    from fleet.db import Database

    if settings.effective_database_url.startswith("sqlite") and not (settings.data_dir / "fleet.db").exists():
        return [Finding("database", "warning", f"none in {settings.data_dir} yet", "`mooring serve` makes it at its first start.")]
    database = Database(settings.effective_database_url)
    try:
        with database.reading():
            return [Finding("database", "ok", database.url)]
    except MooringError as error:
        return [Finding("database", "error", str(error), "Is it running, and may this user open it?")]
    finally:
        database.dispose()


def _keys(settings: FleetConfig) -> list[Finding]:
    from fleet.cli.keys import list_status
    from fleet.registry.clock_guard import ClockGuard
    from fleet.registry.key_status import KeyStatus
    from fleet.registry.signing import TrustFolders

    try:
        rows = list_status(settings.data_dir)
    except MooringError as error:
        return [Finding("keys", "warning", error.message, error.hint or "")]
    folders, clock = TrustFolders(settings.data_dir), from_environment()
    guard = ClockGuard(folders.clock_file, speed=clock.speed)
    alarms = KeyStatus(folders, guard=guard).alarms(clock.now())
    states = {"error": "error", "warning": "warning", "info": "warning"}
    return [Finding("keys", states[one.severity], one.text, one.advice) for one in alarms] or [Finding("keys", "ok", f"{len(rows)} roles")]


def _authority(settings: FleetConfig) -> list[Finding]:
    from fleet.db import Database
    from fleet.devices.pki import authority_files, open_authority
    from fleet.devices.rotation import Stage, read_status

    if not authority_files(settings.pki_dir, 1)[0].exists():
        return [Finding("authority", "warning", f"none in {settings.pki_dir} yet", "`mooring serve` makes it at its first start.")]
    database = Database(settings.effective_database_url)
    try:
        found = read_status(database, open_authority(settings.pki_dir, settings.pki))
    except (MooringError, OSError) as error:
        return [Finding("authority", "error", str(error), "May this user read it? See: mooring authority status")]
    finally:
        database.dispose()
    followed = f"{found.devices - found.waiting} of {found.devices} devices have followed"
    missing = f"; not yet: {', '.join(found.latecomers[:NAMED])}{' …' if found.waiting > NAMED else ''}" if found.waiting else ""
    text = f"issues until {found.ends_at:%Y-%m-%d}; {followed}{missing}"
    if found.stage is Stage.SETTLED:
        return [Finding("authority", "ok", text)]
    step = "switch" if found.stage is Stage.BEGUN else "finish"
    advice = "Wait for them, or see: mooring authority status" if found.waiting else f"mooring authority {step}"
    return [Finding("authority", "warning", f"being replaced ({found.stage}): {text}", advice)]


def _server(chosen: str | None) -> list[Finding]:
    try:
        known = credentials.load(chosen)
    except MooringError as error:
        return [Finding("login", "warning", error.message, error.hint or "")]
    try:
        with Api(known.server, known.token, verify=tls_verification()) as api:
            api.get("/healthz")
            seen = api.get("/server")
    except MooringError as error:
        return [Finding("server", "error", error.message, error.hint or "Look at its log.")]
    found = [Finding("server", "ok", f"{known.server}, tenant {seen['tenant']}")]
    if seen["demo_keys"]:
        found.append(Finding("server keys", "warning", "demo keys", "Never for a real fleet."))
    found += [
        Finding(f"part {one['part']}", "error", f"stands still since {one['since'][:16]}: {one['text']}", one["consequence"])
        for one in seen.get("standstills", [])
    ]
    return [*found, *(_reachable(url) for url in seen["broker_urls"][:2])]


def _reachable(url: str) -> Finding:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 8883), timeout=5).close()
    except OSError as error:
        return Finding("broker address", "error", f"{url}: {error.strerror or error}", "Is the broker running, and the port open?")
    return Finding("broker address", "ok", url)
