"""mooring alarm: what drifted, who takes it, and how it ended."""

from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api
from protocol.errors import InvalidError

app = typer.Typer(no_args_is_help=True, help="Alarms: what drifted, and who answers.")

_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("ALARM", lambda row: row["alarm"]),
    ("STATE", lambda row: row["state"] + (f" ({row['outcome']})" if row["outcome"] else "")),
    ("SINCE", lambda row: row["onset"][:16]),
    ("ABOUT", lambda row: f"{row['name']} {row['pipeline']}".strip()),
    ("CAUSE", lambda row: row["cause"]),
    ("WHAT", lambda row: row["words"]),
)


@app.command("list")
def list_alarms(
    state: list[str] = typer.Option([], "--state", help="raised, acknowledged or cleared; again for more; open ones when not given."),
    every: bool = typer.Option(False, "--all", help="Cleared ones too."),
    device: str | None = typer.Option(None, "--device", help="Those that hold this device."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """List alarms, those raised last first."""
    states = [] if every else state or ["raised", "acknowledged"]
    with open_api(server) as api:
        rows = list(api.pages("/alarms", state=states or None, device=device))
    if as_json:
        output.document(rows)
        return
    output.table(_COLUMNS, rows, empty="No alarm is open." if not every else "There were no alarms.")


@app.command()
def show(alarm: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one alarm: what moved and how sure."""
    with open_api(server) as api:
        found = api.get(f"/alarms/{alarm}")
    if as_json:
        output.document(found)
        return
    names = (
        "alarm",
        "state",
        "outcome",
        "kind",
        "name",
        "pipeline",
        "cause",
        "grade",
        "onset",
        "raised_at",
        "words",
        "note",
        "muted_until",
    )
    output.facts({name: found[name] for name in names})
    output.facts(
        {"evidence": f"{found['statistic']:.4g} of {found['threshold']:.4g}", "false alarms per year asked": found["false_alarms_per_year"]}
    )
    columns: tuple[tuple[str, Any], ...] = (
        ("FEATURE", lambda row: row["feature"]),
        ("HOW", lambda row: row["word"]),
        ("P", lambda row: f"{row['p']:.2g}"),
        ("PART", lambda row: f"{row['share']:.0%}"),
        ("SHIFT", lambda row: f"{row['place']:+.1f} dev."),
        ("PSI", lambda row: f"{row['psi']:.2f}"),
        ("JS", lambda row: f"{row['js']:.2f}"),
    )
    output.table(columns, found["features"], empty="No single feature moved." if found["cause"] != "concept" else "The input did not move.")


@app.command()
def acknowledge(
    alarm: str,
    note: str = typer.Option("", "--note", help="For whoever looks next."),
    link: str = typer.Option("", "--link", help="The run or site job that answers it."),
    server: str | None = ServerOption,
) -> None:
    """Take an alarm; does not ask."""
    _act(server, alarm, "acknowledge", {"note": note, "link": link})


@app.command()
def clear(
    alarm: str,
    outcome: str = typer.Option(..., "--as", help="condition: broken, covered, maintenance; false_alarm: nothing changed."),
    yes: bool = YesOption,
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """End an alarm."""
    if outcome not in {"condition", "false_alarm"}:
        raise InvalidError(f"--as {outcome!r} ends no alarm.", hint="Wanted: condition or false_alarm.")
    _act(server, alarm, "clear", {"outcome": outcome, "reason": reason}, ask=f"{alarm} is over: {outcome}.", yes=yes)


@app.command()
def mute(
    alarm: str,
    until: str | None = typer.Option(None, "--until", help="ISO 8601, e.g. 2026-12-24T18:00Z; not given: tell again."),
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """Tell nobody of an alarm until then; it is still recorded."""
    _act(server, alarm, "mute", {"until": until, "reason": reason})


@app.command()
def promise(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """How the promised rate of false alarms was kept in the last year."""
    with open_api(server) as api:
        found = api.get("/alarms/promise")
    if as_json:
        output.document(found)
        return
    bound = "" if found["bound"] is None else f"at most {found['bound']:.2f} (95 %)"
    output.facts(
        {
            "alarms of devices": found["alarms"],
            "called false": found["count"],
            "device-years watched": f"{found['device_years']:.3f}",
            "false per device-year": bound,
            "asked": found["rate"],
        }
    )


def _act(server: str | None, alarm: str, verb: str, body: dict[str, Any], *, ask: str = "", yes: bool = True) -> None:
    with open_api(server) as api:
        found, etag = api.get_with_etag(f"/alarms/{alarm}")
        if ask:
            output.confirm(f"{ask} {found['words']}", yes=yes, reason=str(body.get("reason", "")))
        made = api.send("POST", f"/alarms/{alarm}/{verb}", body, etag=etag)
    muted = f", muted until {made['muted_until'][:16]}" if made["muted_until"] else ""
    output.say(f"Alarm {alarm} is {made['state']}{muted}.")
