"""mooring alarm: what drifted, who takes it, and how it ended."""

from datetime import UTC, datetime
from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import check_device, open_api
from protocol.errors import InvalidError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Alarms: what drifted, and who answers.")
_OPEN = ("raised", "acknowledged")
_STATES = (*_OPEN, "cleared")
#: What a person may end an alarm as.
_OUTCOMES = ("condition", "false_alarm")
_AS = "condition: something is broken, dirty, covered or worked on; false_alarm: nothing changed, which counts against the promise."
_UNTIL = "ISO 8601, UTC when no zone is given, e.g. 2026-12-24T18:00Z, at most a year ahead; not given: tell again."

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
    wrong = next((one for one in state if one not in _STATES), None)
    if wrong is not None:
        raise InvalidError(f"--state {wrong!r} is no state of an alarm.", hint=f"Wanted: {', '.join(_STATES)}.")
    states = [] if every else state or list(_OPEN)
    with open_api(server) as api:
        rows = list(api.pages("/alarms", state=states or None, device=device))
        if device is not None and not rows:
            check_device(api, device)
    if as_json:
        output.document(rows)
        return
    empty = "There were no alarms." if every else f"No alarm is {' or '.join(state)}." if state else "No alarm is open."
    output.table(_COLUMNS, rows, empty=empty)


@app.command()
def show(alarm: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one alarm: what moved and how sure."""
    with open_api(server) as api:
        found = api.get(_path(alarm))
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
        "acknowledged_by",
        "note",
        "link",
        "muted_until",
        "cleared_at",
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
    outcome: str = typer.Option(..., "--as", help=_AS),
    yes: bool = YesOption,
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """End an alarm."""
    if outcome not in _OUTCOMES:
        raise InvalidError(f"--as {outcome!r} ends no alarm.", hint=f"Wanted: {' or '.join(_OUTCOMES)}.")
    _act(server, alarm, "clear", {"outcome": outcome, "reason": reason}, ask=f"{alarm} is over: {outcome}.", yes=yes)


@app.command()
def mute(
    alarm: str,
    until: str | None = typer.Option(None, "--until", help=_UNTIL),
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """Tell nobody of an alarm until then; it is still recorded."""
    _act(server, alarm, "mute", {"until": None if until is None else _moment(until).isoformat(), "reason": reason})


@app.command()
def promise(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """How the promised rate of false alarms was kept in the last year."""
    with open_api(server) as api:
        found = api.get("/alarms/promise")
    if as_json:
        output.document(found)
        return
    bound = "" if found["bound"] is None else f"at most {found['bound']:.2f} (95 %)"
    if not found.get("is_telling", True):
        bound = "too little was watched to say"
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
        found, etag = api.get_with_etag(_path(alarm))
        if ask:
            output.confirm(f"{ask} {found['words']}", yes=yes, reason=str(body.get("reason", "")))
        made = api.send("POST", f"{_path(alarm)}/{verb}", body, etag=etag)
    muted = f", muted until {made['muted_until'][:16]}" if made["muted_until"] else ""
    output.say(f"Alarm {alarm} is {made['state']}{muted}.")


def _path(alarm: str) -> str:
    """Where the API has the alarm. Raises: NotFoundError for what is no alarm's id: other things live below that address."""
    if not alarm.startswith("al-"):
        raise NotFoundError(f"There is no alarm {alarm[:80]!r}.", hint="Wanted an id as `mooring alarm list` shows it: al-….")
    return f"/alarms/{alarm}"


def _moment(text: str) -> datetime:
    """The moment, of UTC when it names no zone. Raises: InvalidError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidError(
            f"--until {text[:80]!r} is no moment.", hint="Wanted ISO 8601, e.g. 2026-12-24T18:00Z (UTC) or 2026-12-24T18:00+01:00."
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
