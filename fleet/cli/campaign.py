"""mooring campaign: bring a release to devices, and watch or stop it."""

from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api
from protocol.errors import InvalidError
from protocol.ids import new_id

app = typer.Typer(no_args_is_help=True, help="Campaigns: what moves.")


@app.command()
def create(
    line: str = typer.Option(..., help="Model line."),
    release: str = typer.Option(..., help="Version of a published release."),
    group: str = typer.Option(..., help="Whose devices get it."),
    phase: list[str] = typer.Option(
        [], "--phase", help="PERCENT[:SOAK_SECONDS], e.g. 10:3600; again for more; one phase of 100 when not given."
    ),
    failure_threshold: float = typer.Option(0.1, help="Share of failed devices above which the campaign stops, 0 to 1."),
    min_inferences: int | None = typer.Option(None, help="Healthy inferences before a device counts as updated."),
    timeout_hours: float | None = typer.Option(
        None, "--timeout-hours", help="Hours without a verdict after which a device counts as timed out; days for sites served by stick."
    ),
    full_bytes: int | None = typer.Option(
        None, "--full-bytes", help="Bytes that each device may fetch in full over a metered link; else its own policy decides."
    ),
    again: bool = typer.Option(False, "--again", help="Devices that refused or failed this release before try it once more."),
    run_as: str = typer.Option(
        "active", "--as", help="active: devices run it; shadow: it answers beside what they run; ab: it takes turns with that."
    ),
    share: float | None = typer.Option(None, "--share", help="With --as ab: share of the minutes in which it answers, 0 to 1."),
    cpu: float | None = typer.Option(None, "--cpu", help="Share of one core that comparing may take on a device; 0.2 when not given."),
    until: str | None = typer.Option(
        None, "--until", help="When comparing ends by itself, e.g. 2026-12-24T18:00Z; else by: campaign abort."
    ),
    yes: bool = YesOption,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Bring a published release to the devices of a group that it fits: to run it, or to compare it with what they run."""
    phases = [parse_phase(text, failure_threshold) for text in phase or ["100"]]
    body: dict[str, Any] = {"line": line, "release": release, "group": group, "phases": phases, "again": again, "reason": reason}
    if min_inferences is not None:
        body["min_inferences"] = min_inferences
    if timeout_hours is not None:
        body["timeout_s"] = max(1, int(timeout_hours * 3600))
    if full_bytes is not None:
        body["full_bytes"] = full_bytes
    body |= comparison_of(run_as, share=share, cpu=cpu, until=until)
    with open_api(server) as api:
        count = api.get(f"/groups/{group}")["devices"]
        output.confirm(
            f"{_PURPOSES[run_as]} {line} {release} to those of the {count} devices of group {group} that it fits.", yes=yes, reason=reason
        )
        made = api.send("POST", "/campaigns", body, key=new_id("cli"))
    if as_json:
        output.document(made)
        return
    output.say(f"Campaign {made['campaign']} is {made['state']}: {made['total']} devices.")
    output.data(made["campaign"])


#: What a campaign does, by --as.
_PURPOSES = {"active": "Brings", "shadow": "Compares (in shadow)", "ab": "Compares (taking turns)"}


def comparison_of(run_as: str, *, share: float | None, cpu: float | None, until: str | None) -> dict[str, Any]:
    """What --as and its companions say, as the API takes it. Raises: InvalidError when they do not go together."""
    if run_as not in _PURPOSES:
        raise InvalidError(f"--as {run_as!r} is nothing that a release can be brought for.", hint=f"Wanted: {', '.join(_PURPOSES)}.")
    if run_as == "active":
        if share is not None or cpu is not None or until is not None:
            raise InvalidError("--share, --cpu and --until are for comparing.", hint="Say --as shadow or --as ab.")
        return {}
    if (share is not None) != (run_as == "ab"):
        raise InvalidError(f"--as {run_as} with{'' if share is not None else 'out'} --share.", hint="--share goes with --as ab, always.")
    given = {"share": share, "cpu": cpu, "until": until}
    return {"as": run_as, **{name: value for name, value in given.items() if value is not None}}


def parse_phase(text: str, failure_threshold: float) -> dict[str, Any]:
    """What --phase says. Raises: InvalidError when it is not PERCENT[:SOAK_SECONDS]."""
    percent, _, soak = text.partition(":")
    if not percent.isdigit() or not (soak or "0").isdigit():
        raise InvalidError(f"--phase {text!r} is no phase.", hint="Wanted: PERCENT or PERCENT:SOAK_SECONDS, e.g. 10:3600.")
    return {"until_percent": int(percent), "soak_s": int(soak or "0"), "failure_threshold": failure_threshold}


@app.command("list")
def list_campaigns(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List campaigns, the newest first."""
    with open_api(server) as api:
        rows = list(api.pages("/campaigns"))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("CAMPAIGN", lambda row: row["campaign"]),
        ("GROUP", lambda row: row["group"]),
        ("RELEASE", lambda row: f"{row['line']} {row['release']}"),
        ("STATE", lambda row: row["state"]),
        ("UPDATED", lambda row: f"{row['updated']} of {row['total']}"),
        ("FAILED", lambda row: row["failed"]),
    )
    output.table(columns, rows, empty="No campaigns. Make one: mooring campaign create --line LINE --release VERSION --group GROUP")


@app.command()
def show(campaign: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one campaign with its devices."""
    with open_api(server) as api:
        found = api.get(f"/campaigns/{campaign}")
    if as_json:
        output.document(found)
        return
    output.facts({name: found[name] for name in ("campaign", "line", "release", "group", "state", "total", "updated", "failed", "reason")})
    if found["failures"]:
        causes: tuple[tuple[str, Any], ...] = (
            ("WHY IT FAILED", lambda row: row["reason"] or "unknown"),
            ("DEVICES", lambda row: row["count"]),
            ("WHAT IT MEANS", lambda row: row.get("meaning", "")),
            ("FOR EXAMPLE", lambda row: row["example"]["device"]),
            ("TEXT", lambda row: row["example"]["text"]),
        )
        output.table(causes, found["failures"], empty="")
    if "comparisons" in found:
        output.table(compared_columns(found["as"]), found["comparisons"], empty="No device has compared anything yet.")
    columns: tuple[tuple[str, Any], ...] = (
        ("DEVICE", lambda row: row["device"]),
        ("UPDATE", lambda row: row["state"]),
        ("REASON", lambda row: row["reason"]),
        ("TEXT", lambda row: row["text"]),
    )
    output.table(columns, found["devices"], empty="No device is in it.")


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


_COMPARED: tuple[tuple[str, Any], ...] = (
    ("DEVICE", lambda row: row["device"]),
    ("PIPELINE", lambda row: row["pipeline"]),
    ("BESIDE", lambda row: row["champion"]),
    ("STATE", lambda row: row["state"]),
    ("COMPARED", lambda row: row["compared"]),
    ("AGREE", lambda row: _figure(row["agreement"], ".1%")),
    ("LATENCY", lambda row: f"{_figure(row['latency_ratio'], '.2f')}x" if row["latency_ratio"] is not None else ""),
    ("CPU", lambda row: _figure(row["cpu_share"], ".1%")),
    ("TEXT", lambda row: row["text"]),
)

#: In turns nothing is compared frame by frame: what each of the two answered stands side by side.
_IN_TURNS: tuple[tuple[str, Any], ...] = (
    *_COMPARED[:4],
    ("ANSWERED", lambda row: row["figures"]["candidate"]["frames"]),
    ("WITH", lambda row: _most_said(row["figures"]["candidate"]["labels"])),
    ("OTHER", lambda row: row["figures"]["champion"]["frames"]),
    ("WITH", lambda row: _most_said(row["figures"]["champion"]["labels"])),
    *_COMPARED[6:7],
    *_COMPARED[8:],
)


def compared_columns(run_as: str) -> tuple[tuple[str, Any], ...]:
    """The columns, each with what it takes from a comparison, for a candidate in shadow or one that takes turns."""
    return _IN_TURNS if run_as == "ab" else _COMPARED


def _most_said(labels: dict[str, int]) -> str:
    """The three labels that were said most, with their shares."""
    total = sum(labels.values())
    most = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    return ", ".join(f"{label} {count / total:.0%}" for label, count in most)


@app.command()
def pause(campaign: str, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Tell no further device; does not ask."""
    _act(server, campaign, "pause", reason)


@app.command()
def resume(campaign: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Go on after a pause."""
    _act(server, campaign, "resume", reason, ask=f"{campaign} goes on.", yes=yes)


@app.command()
def abort(campaign: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """End the campaign; devices keep what they have."""
    _act(server, campaign, "abort", reason, ask=f"{campaign} is over for good.", yes=yes)


def _act(server: str | None, campaign: str, verb: str, reason: str, *, ask: str = "", yes: bool = True) -> None:
    with open_api(server) as api:
        found, etag = api.get_with_etag(f"/campaigns/{campaign}")
        if ask:
            left = found["total"] - found["updated"] - found["failed"]
            output.confirm(f"{ask} {left} of {found['total']} devices are not done.", yes=yes, reason=reason)
        made = api.send("POST", f"/campaigns/{campaign}/{verb}", {"reason": reason}, etag=etag)
    output.say(f"Campaign {campaign} is {made['state']}.")
