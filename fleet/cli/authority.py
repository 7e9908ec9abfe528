"""mooring authority: replacing the certificate authority of server and devices, step by step; on the server's own machine."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption
from fleet.cli.serve import ConfigOption, DataOption, settings_of
from protocol.errors import NotFoundError

app = typer.Typer(no_args_is_help=True, help="The certificate authority that server and devices trust; on the server's own machine.")
_Reason = typer.Option(..., "--reason", help="Why; goes into the audit log.")
_Force = typer.Option(False, "--force", help="Leave devices behind that have not followed; they enroll again, on site.")
_RESTART = "Restart the server's processes now: they take it over at their start. An external broker gets the file named by `status`."


@app.command()
def status(data: Path | None = DataOption, config: Path | None = ConfigOption, as_json: bool = JsonOption) -> None:
    """Show how far a replacement is, and which devices have not followed."""
    from fleet.devices import rotation

    with _opened(data, config) as (database, authority, _):
        found = rotation.read_status(database, authority)
        document = {**asdict(found), "stage": str(found.stage), "ends_at": found.ends_at.isoformat(), "file": str(authority.ca_path)}
    if as_json:
        output.document(document)
        return
    output.data(f"stage     {found.stage}")
    output.data(f"issuing   {found.issuing}  until {found.ends_at:%Y-%m-%d}")
    if found.other:
        output.data(f"trusted   {found.other}")
    output.data(f"file      {document['file']}")
    output.data(f"devices   {found.devices - found.waiting} of {found.devices} have followed")
    if found.waiting:
        output.data(f"waiting   {', '.join(found.latecomers)}{' …' if found.waiting > len(found.latecomers) else ''}")


@app.command()
def begin(reason: str = _Reason, data: Path | None = DataOption, config: Path | None = ConfigOption) -> None:
    """Make the next authority and trust it beside the old one; devices learn of it by themselves."""
    from fleet.devices import rotation

    _take("begin", rotation.begin, data, config, reason=reason)
    output.say(f"The next authority is trusted. {_RESTART} Then wait: mooring authority status")


@app.command()
def switch(reason: str = _Reason, force: bool = _Force, data: Path | None = DataOption, config: Path | None = ConfigOption) -> None:
    """Let the next authority issue; every certificate is renewed by it. Open invitations end."""
    from fleet.devices import rotation

    _take("switch", rotation.switch, data, config, reason=reason, is_forced=force)
    output.say(f"The next authority issues. {_RESTART} Invitations that were not used yet name the old one: make them anew.")


@app.command()
def finish(reason: str = _Reason, force: bool = _Force, data: Path | None = DataOption, config: Path | None = ConfigOption) -> None:
    """Trust the former authority no longer."""
    from fleet.devices import rotation

    _take("finish", rotation.finish, data, config, reason=reason, is_forced=force)
    output.say(f"The former authority is not trusted any more. {_RESTART}")


def _take(name: str, step: Callable[..., Any], data: Path | None, config: Path | None, **options: Any) -> None:
    from fleet.audit import Actor, ActorKind

    with _opened(data, config) as (database, authority, tenant):
        by = Actor(ActorKind.SERVICE, f"authority-{name}")
        step(database, authority, tenant=tenant, by=by, now=datetime.now(UTC), **options)


@contextlib.contextmanager
def _opened(data: Path | None, config: Path | None) -> Iterator[tuple[Any, Any, Any]]:
    from fleet.db import Database
    from fleet.devices.pki import open_authority
    from protocol.ids import TenantId

    settings = settings_of(data, config)
    if not settings.pki_dir.is_dir():
        raise NotFoundError(f"{settings.data_dir} is no server's folder.", hint="Name it with --data, on the server's machine.")
    database = Database(settings.effective_database_url)
    try:
        yield database, open_authority(settings.pki_dir, settings.pki), TenantId(settings.tenant)
    finally:
        database.dispose()
