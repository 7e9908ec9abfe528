"""mooring approval: what waits, and deciding it."""

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption
from fleet.cli.session import open_api
from protocol.errors import InvalidError

app = typer.Typer(no_args_is_help=True, help="Approvals: nothing ships without one.")


@app.command("list")
def list_approvals(
    state: str | None = typer.Option(None, help="Only this state."), as_json: bool = JsonOption, server: str | None = ServerOption
) -> None:
    """List approvals."""
    with open_api(server) as api:
        rows = list(api.pages("/approvals", state=state))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("APPROVAL", lambda row: row["approval"]),
        ("SUBJECT", lambda row: row["subject"]),
        ("STATE", lambda row: row["state"]),
        ("ASKED BY", lambda row: row["created_by"]),
        ("DECIDED BY", lambda row: row["decided_by"]),
        ("ASKED", lambda row: output.moment(row["created_at"])),
    )
    output.table(columns, rows, empty="Nothing waits.")


@app.command()
def decide(
    approval: str,
    approve: bool = typer.Option(False, "--approve", help="Yes."),
    reject: bool = typer.Option(False, "--reject", help="No."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Decide an approval that somebody else asked for."""
    if approve == reject:
        raise InvalidError("Say either --approve or --reject.")
    if not reason:
        raise InvalidError("A decision needs --reason.", hint="It is kept in the audit log.")
    with open_api(server) as api:
        _, etag = api.get_with_etag(f"/approvals/{approval}")
        body = {"decision": "approve" if approve else "reject", "reason": reason}
        made = api.send("POST", f"/approvals/{approval}/decide", body, etag=etag)
    if as_json:
        output.document(made)
        return
    output.say(f"Approval {approval} is {made['state']}.")
