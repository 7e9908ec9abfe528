"""mooring group: list, show, create, delete."""

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api

app = typer.Typer(no_args_is_help=True, help="Groups: devices that people keep together.")


@app.command("list")
def list_groups(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List groups."""
    with open_api(server) as api:
        rows = list(api.pages("/groups"))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("GROUP", lambda row: row["name"]),
        ("SITE", lambda row: row["site"]),
        ("DEVICES", lambda row: row["devices"]),
        ("DESCRIPTION", lambda row: row["description"]),
    )
    output.table(columns, rows, empty="No groups.")


@app.command()
def show(name: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one group."""
    with open_api(server) as api:
        found = api.get(f"/groups/{name}")
    if as_json:
        output.document(found)
        return
    output.facts({key: found[key] for key in ("name", "site", "devices", "description", "revision")})


@app.command()
def create(
    name: str,
    site: str = typer.Option("default", help="Where its devices are."),
    description: str = typer.Option("", help="For whom or what."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Add a group."""
    with open_api(server) as api:
        made = api.send("POST", "/groups", {"name": name, "site": site, "description": description, "reason": reason})
    if as_json:
        output.document(made)
        return
    output.say(f"Group {name} is there.")


@app.command()
def delete(name: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Delete a group without devices, with its invitations."""
    with open_api(server) as api:
        _, etag = api.get_with_etag(f"/groups/{name}")
        output.confirm(f"Group {name} and its open invitations go away.", yes=yes, reason=reason)
        api.send("DELETE", f"/groups/{name}", {"reason": reason}, etag=etag)
    output.say(f"Group {name} is gone.")
