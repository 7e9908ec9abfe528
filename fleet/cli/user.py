"""mooring user: accounts of people."""

import typer

from fleet.cli import output
from fleet.cli.login import read_password
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api

app = typer.Typer(no_args_is_help=True, help="Users: who may do what.")


@app.command()
def create(
    name: str,
    permission: list[str] = typer.Option(..., "--permission", help="viewer, operator, approver, auditor or admin; again for more."),
    display_name: str = typer.Option("", "--display-name", help="How to call the person."),
    password_stdin: bool = typer.Option(
        False, "--password-stdin", help="Read the password from standard input; else one is made and shown."
    ),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Add an account. Without --password-stdin its one-time password is made by the server and shown once."""
    body: dict[str, object] = {"name": name, "permissions": permission, "display_name": display_name}
    if password_stdin:
        body["password"] = read_password(from_stdin=True, prompt="Password")
    with open_api(server) as api:
        made = api.send("POST", "/users", body)
    if as_json:
        output.document(made)
        return
    output.say(f"User {name} is there.")
    if made.get("password"):
        output.say("One-time password, shown once:")
        output.data(made["password"])


@app.command("list")
def list_users(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List accounts."""
    with open_api(server) as api:
        rows = list(api.pages("/users"))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("USER", lambda row: row["name"]),
        ("PERMISSIONS", lambda row: row["permissions"]),
        ("ACTIVE", lambda row: row["is_active"]),
        ("LAST LOGIN", lambda row: output.moment(row["last_login_at"])),
    )
    output.table(columns, rows, empty="No users.")


@app.command()
def disable(name: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Switch an account off; its sessions and tokens stop at once."""
    with open_api(server) as api:
        _, etag = api.get_with_etag(f"/users/{name}")
        output.confirm(f"{name} can no longer log in, and their tokens stop.", yes=yes, reason=reason)
        api.send("PATCH", f"/users/{name}", {"is_active": False, "reason": reason}, etag=etag)
    output.say(f"User {name} is switched off.")
