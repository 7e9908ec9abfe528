"""mooring audit: the log of who did what, and whether it is whole."""

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ServerOption
from fleet.cli.session import open_api

app = typer.Typer(no_args_is_help=True, help="The audit log.")


@app.command("list")
def list_entries(
    limit: int = typer.Option(50, min=1, max=500, help="How many, the newest first."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """List the newest entries."""
    with open_api(server) as api:
        rows = api.get("/audit", limit=limit)["items"]
    if as_json:
        output.document(rows)
        return
    columns = (
        ("NO.", lambda row: row["number"]),
        ("AT", lambda row: output.moment(row["at"])),
        ("WHO", lambda row: row["actor"]),
        ("DID", lambda row: row["action"]),
        ("TO", lambda row: row["subject"]),
        ("REASON", lambda row: row["reason"]),
    )
    output.table(columns, rows, empty="Nothing happened yet.")


@app.command()
def verify(
    anchor: str = typer.Option("", help="NUMBER:HASH printed by an earlier verify, kept elsewhere: proves that no entry was cut off."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Recompute the chain of the whole log."""
    with open_api(server) as api:
        found = api.get("/audit/verify", anchor=anchor or None)
    if as_json:
        output.document(found)
        return
    output.say(f"{found['number']} entries, none changed. Keep this elsewhere to prove it again later:")
    output.data(f"{found['number']}:{found['hash']}")
