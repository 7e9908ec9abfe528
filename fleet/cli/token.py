"""mooring token: API tokens for machines; the text is shown once."""

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption
from fleet.cli.session import open_api

#: Scopes named in a table; more are counted.
MAX_SHOWN = 4

app = typer.Typer(no_args_is_help=True, help="API tokens: how machines log in.")


@app.command()
def create(
    name: str = typer.Argument(..., help="What it is for."),
    scope: list[str] = typer.Option(..., "--scope", help="What it may do, e.g. devices:read; again for more."),
    days: float = typer.Option(90.0, help="When it ends."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Make a token of your own; it never may do more than you."""
    with open_api(server) as api:
        made = api.send("POST", "/tokens", {"name": name, "scopes": scope, "days": days})
    if as_json:
        output.document(made)
        return
    output.say(f"Shown once; ends {output.moment(made['expires_at'])} UTC:")
    output.data(made["token"])


@app.command("list")
def list_tokens(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List your tokens; administrators see all."""
    with open_api(server) as api:
        rows = list(api.pages("/tokens"))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("TOKEN", lambda row: row["token_id"]),
        ("NAME", lambda row: row["name"]),
        ("OWNER", lambda row: row["owner"]),
        ("SCOPES", lambda row: row["scopes"] if len(row["scopes"]) <= MAX_SHOWN else f"{len(row['scopes'])} scopes"),
        ("ENDS", lambda row: "revoked" if row["revoked_at"] else output.moment(row["expires_at"])),
        ("LAST USED", lambda row: output.moment(row["last_used_at"])),
    )
    output.table(columns, rows, empty="No tokens.")


@app.command()
def revoke(token_id: str, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """End a token at once."""
    with open_api(server) as api:
        api.send("DELETE", f"/tokens/{token_id}", {"reason": reason})
    output.say(f"Token {token_id} is revoked.")
