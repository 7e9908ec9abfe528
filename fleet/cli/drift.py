"""mooring drift: what devices saw, and what is normal for them."""

from typing import Any

import typer

from fleet.cli import drift_reference, output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import check_device, open_api
from protocol.errors import InvalidError

app = typer.Typer(no_args_is_help=True, help="Drift: what devices saw, and what is normal for them.")
app.add_typer(drift_reference.app, name="reference")

#: A probability below this is shown as smaller, and not as a number.
_LEAST_P = 1e-300

_ROWS: tuple[tuple[str, Any], ...] = (
    ("DEVICE", lambda row: row["device"]),
    ("PIPELINE", lambda row: row["pipeline"]),
    ("REFERENCE", lambda row: f"{row['grade']} ({row['days']} days){_whence(row)}"),
    ("P", lambda row: _probability(row["p"])),
    ("EVIDENCE", lambda row: f"{row['statistic']:.3g} of {row['threshold']:.3g}" if row["threshold"] else ""),
    ("ALARM", lambda row: f"{row['alarm']} {row['alarm_state']}" if row["alarm"] else ""),
    ("CONDITIONS", lambda row: ", ".join(sorted(row["conditions"]))),
)


@app.command()
def show(
    device: str | None = typer.Argument(None, help="One device; all when not given."),
    pipeline: str | None = typer.Option(None, "--pipeline", help="One pipeline of DEVICE, with its features and its accuracy."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Show where devices stand against what is normal for them, those of most evidence first."""
    if pipeline is not None and device is None:
        raise InvalidError(
            f"--pipeline {pipeline[:80]!r} is of no device.", hint="Name the device: mooring drift show DEVICE --pipeline P."
        )
    with open_api(server) as api:
        found = api.get("/drift", device=device)["items"] if pipeline is None else api.get(f"/devices/{device}/drift/{pipeline}")
        if device is not None and not found:
            check_device(api, device)
    if as_json:
        output.document(found)
    elif isinstance(found, list):
        output.table(_ROWS, found, empty="No device sent sketches yet. They come from models with a reference profile: docs/drift.md.")
    else:
        _pipeline(found)


def _pipeline(found: dict[str, Any]) -> None:
    state, estimated = found["state"] or {}, found["accuracy"]
    names = ("device", "pipeline", "grade", "days", "check", "score", "p", "statistic", "threshold", "site_gap", "peer_p", "alarm")
    output.facts({name: f"{state[name]}{_whence(state)}" if name == "grade" and state else state.get(name) for name in names})
    if found["own_false_alarms_per_year"] is not None:
        output.facts({"false alarms per year": f"{found['own_false_alarms_per_year']:g}, by the device's own settings"})
    if estimated:
        span = f"{estimated['low']:.0%} to {estimated['high']:.0%}"
        output.facts({"accuracy without labels": span, "to be believed": f"{estimated['trust']}: {estimated['reason']}"})
    for one in found["measured"]:
        name = f"accuracy by labels{' in ' + one['slice'] if one['slice'] else ''}"
        output.facts({name: f"{one['right']} of {one['labels']}, {one['low']:.0%} to {one['high']:.0%}"})
    tested = {row["feature"]: row for row in state.get("features", [])}
    columns: tuple[tuple[str, Any], ...] = (
        ("FEATURE", lambda row: row["feature"]),
        ("P", lambda row: _probability(tested.get(row["feature"], {}).get("p"))),
        ("SHIFT", lambda row: _number(tested.get(row["feature"], {}).get("place"), "+.1f")),
        ("PSI", lambda row: f"{row['psi']:.2f}"),
        ("JS", lambda row: f"{row['js']:.2f}"),
        ("W1", lambda row: f"{row['w1']:.3f}"),
    )
    output.table(columns, found["distributions"], empty="No window in this time.")


def _whence(state: dict[str, Any]) -> str:
    """What is to be known of where the reference comes from."""
    return drift_reference.UNSIGNED if state.get("reference_source") == "recording" else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _probability(value: float | None) -> str:
    """Never 0: the numbers of a computer end before that."""
    return "" if value is None else f"{value:.2g}" if value >= _LEAST_P else f"< {_LEAST_P:.0e}"


_WAITING: tuple[tuple[str, Any], ...] = (
    ("DEVICE", lambda row: row["device"]),
    ("PIPELINE", lambda row: row["pipeline"]),
    ("WINDOWS", lambda row: str(row["windows"])),
    ("WHY", lambda row: f"grid {row['grid_id']} is unknown" if row["reason"] == "unknown-grid" else "overlaps another window"),
    ("SINCE", lambda row: row["since"][:16]),
    ("UNTIL", lambda row: row["until"][:16]),
)


@app.command()
def quarantine(
    device: str | None = typer.Argument(None, help="One device; all when not given."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Show windows that were put aside: those that wait for a release with their grid, and those that overlap others."""
    with open_api(server) as api:
        found = api.get("/drift/quarantine", device=device)["items"]
        if device is not None and not found:
            check_device(api, device)
    if as_json:
        output.document(found)
        return
    output.table(_WAITING, found, empty="Nothing was put aside.")


_UNCONFIRMED: tuple[tuple[str, Any], ...] = (
    ("DEVICE", lambda row: row["device"]),
    ("PIPELINE", lambda row: row["pipeline"]),
    ("CROSSED", lambda row: row["raised_at"][:16]),
    ("CAME", lambda row: f"{row['here']} of {row['stretch']}"),
    ("WHY", lambda row: row["reason"]),
)


@app.command()
def unconfirmed(
    device: str | None = typer.Argument(None, help="One device; all when not given."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Show alarms that devices say they have and no window confirms, with the reason."""
    with open_api(server) as api:
        found = api.get("/drift/unconfirmed", device=device)["items"]
        if device is not None and not found:
            check_device(api, device)
    if as_json:
        output.document(found)
        return
    output.table(_UNCONFIRMED, found, empty="Every alarm that a device has is known here.")


@app.command()
def candidate(device: str, pipeline: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show what a candidate in the shadow sees and answers, against what its own release carries."""
    with open_api(server) as api:
        found = api.get(f"/devices/{device}/drift/{pipeline}/candidate")
    if as_json:
        output.document(found)
        return
    output.facts({"model": found["model"]})
    columns: tuple[tuple[str, Any], ...] = (
        ("FEATURE", lambda row: row["feature"]),
        ("ROWS", lambda row: str(row["rows"])),
        ("PSI", lambda row: f"{row['psi']:.2f}"),
        ("JS", lambda row: f"{row['js']:.2f}"),
        ("W1", lambda row: f"{row['w1']:.3f}"),
    )
    output.table(columns, found["distributions"], empty="No window in this time.")


@app.command()
def rebaseline(device: str, pipeline: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Take what a device sees from now on as normal; for 14 days it raises no alarm."""
    with open_api(server) as api:
        output.confirm(f"{device} {pipeline} learns anew what is normal: no alarm for 14 days.", yes=yes, reason=reason)
        made = api.send("POST", f"/devices/{device}/drift/{pipeline}/rebaseline", {"reason": reason})
    output.say(f"{device} {pipeline} is {made['grade']}.")
