"""mooring serve, mooring signer: the processes of the server."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from fleet.cli import credentials
from fleet.cli.session import CA_VARIABLE
from fleet.config import FleetConfig, load
from protocol.errors import UnauthenticatedError

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"
DataOption = typer.Option(None, "--data", metavar="DIR", help="Folder of everything this server keeps.")
ConfigOption = typer.Option(None, "--config", exists=True, dir_okay=False, help="Settings file; wins over /etc/mooring/fleet.toml.")


def serve(
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    role: str | None = typer.Option(None, "--role", help="api,ingest,controller,worker; all when not given."),
    demo_keys: bool = typer.Option(
        False, "--demo-keys", help="Keep the signing keys on this machine and sign by itself. Never for a real fleet."
    ),
    trust_clock: bool = typer.Option(
        False, "--trust-clock", help="The clock is right although it is more than a day ahead of the last signature: the server was off."
    ),
    console_port: int | None = typer.Option(None, "--console-port", help="Port of console and /api/v1; 0: any free one."),
    device_port: int | None = typer.Option(None, "--device-port", help="Port of the device API; 0: any free one."),
    log_level: str | None = typer.Option(None, "--log-level", help="debug, info, warning or error."),
) -> None:
    """Run the server until Ctrl-C: device API, console, /api/v1, ingest, broker."""
    flags = {
        "roles": role,
        "demo_keys": demo_keys or None,
        "trust_clock": trust_clock or None,
        "console.port": console_port,
        "device_api.port": device_port,
        "log_level": log_level,
    }
    settings = settings_of(data, config, flags)
    start_logging(settings.log_level)
    from fleet import service

    service.serve(settings, say=_say_line)


def signer(
    server: str = typer.Option(credentials.DEFAULT_SERVER, "--server", envvar=credentials.SERVER_VARIABLE, help="Base URL of the server."),
    keys: Path = typer.Option(..., "--keys", file_okay=False, help="Folder with the lines' keys, model.LINE.pem."),
    passphrase_file: Path | None = typer.Option(
        None, "--passphrase-file", exists=True, dir_okay=False, help="Of the keys, when encrypted."
    ),
    bootstrap: str = typer.Option("", "--bootstrap", metavar="FILE|DIGEST", help="First root; to sign after the line's other keys."),
    poll_s: float = typer.Option(2.0, "--poll", min=0.1, help="Seconds between two looks."),
    once: bool = typer.Option(False, "--once", help="Sign what waits now, then end."),
    log_level: str = typer.Option("info", "--log-level", help="debug, info, warning or error."),
) -> None:
    """Sign what governance approved, with keys that lie here and nowhere else. The token comes from MOORING_TOKEN or `mooring login`."""
    from fleet import signer as signing
    from fleet.registry.signing import read_passphrase
    from protocol.clock import from_environment

    token = os.environ.get(credentials.TOKEN_VARIABLE) or credentials.load(server).token
    if not token:
        raise UnauthenticatedError("The signer has no token.", hint=f"Set {credentials.TOKEN_VARIABLE}.")
    from fleet.cli.ceremony import root_digest  # not above: it takes its options from here

    start_logging(log_level)
    authority = os.environ.get(CA_VARIABLE)
    options = signing.SignerOptions(
        server,
        token,
        keys,
        passphrase=read_passphrase(passphrase_file),
        bootstrap=root_digest(bootstrap) if bootstrap else None,
        poll_s=poll_s,
        ca=Path(authority) if authority else None,
    )
    if once:
        signer = signing.Signer(options)
        for name in (*signer.sign_open_requests(), *signer.sign_open_renewals(), *signer.sign_open_configurations()):
            _say_line(f"Signed {name}")
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signing.run(options, clock=from_environment(), stop=stop, say=_say_line)


def settings_of(data: Path | None, config: Path | None, flags: Mapping[str, Any] | None = None) -> FleetConfig:
    """The server's settings, without what the environment says to the people's commands. Raises: ConfigError."""
    environment = {name: value for name, value in os.environ.items() if name != credentials.SERVER_VARIABLE}
    chosen = {"data_dir": str(data) if data else None, **(flags or {})}
    return load(flags=chosen, file=config, environment=environment).config


def start_logging(level: str) -> None:
    """Log events to stderr from this level on."""
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr, force=True)
    for name in ("httpx", "alembic", "uvicorn", "tuf"):  # their lines tell of themselves, not of the fleet
        logging.getLogger(name).setLevel(logging.WARNING)


def _say_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
