"""mooring rule: list, show, create, delete, test, firings."""

from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api
from fleet.monitoring.rules import Metric

app = typer.Typer(no_args_is_help=True, help="Rules on telemetry: what fires when a device is slow, full, hot or gone.")
_METRICS = ", ".join(Metric)
MetricOption = typer.Option(..., "--metric", help=f"One of {_METRICS}.")
ThresholdOption = typer.Option(..., "--threshold", help="What the value must be beyond.")
ComparisonOption = typer.Option(None, "--comparison", help="above or below; as is usual for the metric.")
RecoversOption = typer.Option(None, "--recovers-at", help="Where it is good again; the threshold.")
WindowOption = typer.Option(
    None, "--window", help="Seconds that make one value: 60 to 3600, or 7200 to 86400 of drift and accuracy; 300 or 10800."
)
ForOption = typer.Option(300.0, "--for", help="Seconds that the value must stay bad, or good again.")
DeviceOption = typer.Option("", "--device", help="On this device alone.")
GroupOption = typer.Option("", "--group", help="On the devices of this group.")
SiteOption = typer.Option("", "--site", help="On the devices of this site.")
PipelineOption = typer.Option("", "--pipeline", help="On this pipeline alone.")
SeverityOption = typer.Option("warning", "--severity", help="warning or error.")


@app.command("list")
def list_rules(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List rules."""
    with open_api(server) as api:
        rows = list(api.pages("/rules"))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("RULE", lambda row: row["name"]),
        ("FIRES", lambda row: row["firing"]),
        ("ON", lambda row: row["is_enabled"]),
        ("SEVERITY", lambda row: row["severity"]),
        ("WHEN", lambda row: row["words"]),
    )
    output.table(columns, rows, empty="No rules. For example: mooring rule create slow --metric latency_p99_ms --threshold 100")


@app.command()
def show(name: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one rule and what it fired lately."""
    with open_api(server) as api:
        found = api.get(f"/rules/{name}")
        fired = api.get("/firings", rule=name, limit=20)["items"]
    if as_json:
        output.document({**found, "firings": fired})
        return
    output.facts(
        {key: found[key] for key in ("name", "words", "recovers_at", "window_s", "severity", "is_enabled", "created_by", "revision")}
    )
    _firings(fired, empty="It never fired.")


@app.command()
def create(
    name: str,
    metric: str = MetricOption,
    threshold: float = ThresholdOption,
    comparison: str | None = ComparisonOption,
    recovers_at: float | None = RecoversOption,
    window: float | None = WindowOption,
    for_s: float = ForOption,
    device: str = DeviceOption,
    group: str = GroupOption,
    site: str = SiteOption,
    pipeline: str = PipelineOption,
    severity: str = SeverityOption,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Add a rule."""
    body = _body(metric, threshold, comparison, recovers_at, window, for_s, device, group, site, pipeline, severity)
    with open_api(server) as api:
        made = api.send("POST", "/rules", {"name": name, **body, "reason": reason})
    if as_json:
        output.document(made)
        return
    output.say(f"Rule {name}: {made['words']}.")


@app.command()
def delete(name: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Delete a rule; what it fired stays readable."""
    with open_api(server) as api:
        found, etag = api.get_with_etag(f"/rules/{name}")
        output.confirm(f"Nobody is told any more: {found['words']}.", yes=yes, reason=reason)
        api.send("DELETE", f"/rules/{name}", {"reason": reason}, etag=etag)
    output.say(f"Rule {name} is gone.")


@app.command("test")
def try_rule(
    metric: str = MetricOption,
    threshold: float = ThresholdOption,
    comparison: str | None = ComparisonOption,
    recovers_at: float | None = RecoversOption,
    window: float | None = WindowOption,
    for_s: float = ForOption,
    device: str = DeviceOption,
    group: str = GroupOption,
    site: str = SiteOption,
    pipeline: str = PipelineOption,
    hours: float = typer.Option(24.0, help="How far back, at most 168."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Say what a rule would have done in the last hours; stores nothing."""
    body = _body(metric, threshold, comparison, recovers_at, window, for_s, device, group, site, pipeline, "warning")
    with open_api(server) as api:
        trial = api.send("POST", "/rule-trials", {**body, "hours": hours})
    if as_json:
        output.document(trial)
        return
    rows = [{**fired, "device": one["device"], "pipeline": one["pipeline"]} for one in trial["keys"] for fired in one["firings"]]
    left_out = f"; {trial['devices_left_out']} devices were not looked at" if trial["devices_left_out"] else ""
    output.say(f"In {hours:g} h on {len(trial['keys'])} devices or pipelines it would have fired {trial['firings']} times{left_out}.")
    _firings(rows, empty="")


@app.command()
def firings(
    state: str | None = typer.Option(None, help="open or ended."), as_json: bool = JsonOption, server: str | None = ServerOption
) -> None:
    """List what rules fired, the newest first."""
    with open_api(server) as api:
        rows = api.get("/firings", state=state, limit=100)["items"]
    if as_json:
        output.document(rows)
        return
    _firings(rows, empty="Nothing fired.", with_rule=True)


def _firings(rows: list[dict[str, Any]], *, empty: str, with_rule: bool = False) -> None:
    columns = (
        *((("RULE", lambda row: row["rule"]),) if with_rule else ()),
        ("DEVICE", lambda row: row["device"]),
        ("PIPELINE", lambda row: row["pipeline"]),
        ("SINCE", lambda row: output.moment(row["since"])),
        ("UNTIL", lambda row: output.moment(row["until"])),
        ("WORST", lambda row: f"{row['worst']:.6g}"),
    )
    if rows or empty:
        output.table(columns, rows, empty=empty)


def _body(
    metric: str,
    threshold: float,
    comparison: str | None,
    recovers_at: float | None,
    window: float | None,
    for_s: float,
    device: str,
    group: str,
    site: str,
    pipeline: str,
    severity: str,
) -> dict[str, Any]:
    given = {scope: name for scope, name in (("device", device), ("group", group), ("site", site)) if name}
    if len(given) > 1:
        raise typer.BadParameter("name one of --device, --group and --site")
    scope = next(iter(given), "all")
    body = {
        "metric": metric,
        "threshold": threshold,
        "comparison": comparison,
        "recovers_at": recovers_at,
        "window_s": window,
        "for_s": for_s,
        "scope": scope,
        "subject": given.get(scope, ""),
        "pipeline": pipeline,
        "severity": severity,
    }
    return {key: value for key, value in body.items() if value is not None}
