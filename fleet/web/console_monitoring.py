"""The console's pages of telemetry: the fleet and a device over time, and rules. Handlers parse, ask one view, and render."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from fleet.db import Database
from fleet.devices import groups
from fleet.devices import service as devices
from fleet.monitoring import drift_reading
from fleet.monitoring.alerts import service as alerts
from fleet.monitoring.alerts import store as alert_store
from fleet.monitoring.alerts.model import FiringRow, RuleKey, StoredRule
from fleet.monitoring.rules import METRICS, Comparison, Level, Metric, Rule, Scope, words_of
from fleet.web import charts
from fleet.web.auth import Caller, require, services_of
from fleet.web.charts import RANGES, SLOTS, SPANS, Chart, Range
from fleet.web.console import PageRoute, html_page, part_stream, status_of
from protocol.clock import Clock
from protocol.errors import InvalidError, MooringError, NotFoundError
from protocol.ids import DeviceId, TenantId

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Sees = Annotated[Caller, Depends(require("telemetry:read"))]
SeesRules = Annotated[Caller, Depends(require("rules:read"))]
MakesRules = Annotated[Caller, Depends(require("rules:write"))]
#: Messages of one stream read for a day's chart of a device: more than a day at one every 10 seconds, for one pipeline.
DAY_ROWS = 20_000
FIRINGS_SHOWN, TRIED_SHOWN = 50, 100
#: Seconds of system time between two renderings of charts.
CHARTS_S = 10.0


@dataclass(frozen=True, slots=True)
class MonitoringView:
    """A page of charts."""

    charts: tuple[Chart, ...]
    range: str
    #: (range, address) of what else can be looked at.
    ranges: tuple[tuple[str, str], ...]
    device: str = ""
    pipeline: str = ""
    #: (pipeline, address).
    pipelines: tuple[tuple[str, str], ...] = ()
    #: The drift page of the pipeline, where drift is watched.
    drift_url: str = ""


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One rule in the table."""

    name: str
    words: str
    severity: str
    is_enabled: bool
    firing: int
    pending: int
    revision: int
    created_by: str


@dataclass(frozen=True, slots=True)
class FiringView:
    """One stretch in which a rule fired."""

    rule: str
    device: str
    pipeline: str
    severity: str
    since: Any
    until: Any
    worst: str
    ended_by: str


@dataclass(frozen=True, slots=True)
class RuleForm:
    """What stands in the form."""

    name: str = ""
    metric: str = str(Metric.LATENCY_P99)
    comparison: str = ""
    threshold: str = "100"
    recovers_at: str = ""
    window_min: str = ""
    for_min: str = "5"
    scope: str = "all"
    subject: str = ""
    pipeline: str = ""
    severity: str = "warning"
    hours: str = "24"


@dataclass(frozen=True, slots=True)
class TrialView:
    """What the rule of the form would have done."""

    words: str
    hours: float
    keys: int
    left_out: int
    firings: tuple[FiringView, ...]
    count: int


@dataclass(frozen=True, slots=True)
class RulesView:
    """Rules, what they fired, and the form with its test."""

    rows: tuple[RuleRow, ...]
    firings: tuple[FiringView, ...]
    may_write: bool
    form: RuleForm = RuleForm()
    metrics: tuple[tuple[str, str], ...] = tuple(
        (str(one), f"{kind.words}{f' ({kind.unit})' if kind.unit else ''}") for one, kind in METRICS.items()
    )
    scopes: tuple[str, ...] = tuple(map(str, Scope))
    subjects: tuple[str, ...] = ()
    trial: TrialView | None = None


# --- pages ---


@router.get("/monitoring")
def monitoring(request: Request, caller: Sees, range_: Annotated[Range, Query(alias="range")] = Range.HOUR) -> Response:
    """The page that answers: how does the fleet do, and since when."""
    return html_page(request, caller, "monitoring.html", "Monitoring", view=_fleet_view(request, caller, range_))


@router.get("/devices/{device}/monitoring")
def device_monitoring(
    request: Request,
    caller: Sees,
    device: str,
    range_: Annotated[Range, Query(alias="range")] = Range.HOUR,
    pipeline: Annotated[str, Query(max_length=63)] = "",
) -> Response:
    """The page that answers: how does this device do, and since when."""
    view = _device_view(request, caller, device, range_, pipeline)
    return html_page(request, caller, "monitoring.html", "Devices", view=view)


@router.get("/rules")
def rule_list(request: Request, caller: SeesRules) -> Response:
    """The page that answers: who is told of what."""
    return _rules_page(request, caller)


@router.get("/rules/test")
def try_rule(request: Request, caller: SeesRules, form: Annotated[RuleForm, Depends()]) -> Response:
    """The same page with what the rule in the form would have done; stores nothing."""
    services = services_of(request)
    try:
        rule, hours = rule_of(replace(form, name="trial")), _figure(form.hours, "Hours")
        trial = alerts.try_rule(services.database, tenant=caller.tenant, rule=rule, now=services.clock.now(), hours=hours)
    except MooringError as error:
        return _rules_page(request, caller, form=form, error=error)
    shown = [firing for one in trial.keys for firing in _tried(rule, one)]
    shown.sort(key=lambda one: one.since, reverse=True)
    view = TrialView(words_of(rule), hours, len(trial.keys), trial.left_out, tuple(shown[:TRIED_SHOWN]), len(shown))
    return _rules_page(request, caller, form=form, trial=view)


async def posted_form(request: Request) -> RuleForm:
    """The form as it was sent; what it does not name stays as usual."""
    given = await request.form()
    return RuleForm(**{name: str(given[name])[:63] for name in RuleForm.__slots__ if name in given})


@router.post("/rules")
def create_rule(request: Request, caller: MakesRules, form: Annotated[RuleForm, Depends(posted_form)]) -> Response:
    """Add the rule in the form."""
    services = services_of(request)
    try:
        rule = rule_of(form)
        alerts.create_rule(services.database, tenant=caller.tenant, rule=rule, by=caller.actor, now=services.clock.now(), reason="console")
    except MooringError as error:
        return _rules_page(request, caller, form=form, error=error)
    return RedirectResponse("/rules", 303)


@router.post("/rules/{name}/delete")
def delete_rule(
    request: Request,
    caller: MakesRules,
    name: str,
    revision: Annotated[int, Form()],
    reason: Annotated[str, Form(min_length=1, max_length=1000)],
) -> Response:
    """Forget the rule, with a reason."""
    services = services_of(request)
    try:
        alerts.delete_rule(
            services.database,
            tenant=caller.tenant,
            name=name,
            by=caller.actor,
            now=services.clock.now(),
            expected_revision=revision,
            reason=reason,
        )
    except NotFoundError:
        raise
    except MooringError as error:
        return _rules_page(request, caller, error=error)
    return RedirectResponse("/rules", 303)


# --- live parts ---


@router.get("/live/monitoring")
def live_monitoring(request: Request, caller: Sees, range_: Annotated[Range, Query(alias="range")] = Range.HOUR) -> Response:
    """The charts of the fleet as they grow."""
    return part_stream(request, caller, lambda: {"charts": ("parts/charts.html", _fleet_view(request, caller, range_))}, every_s=CHARTS_S)


@router.get("/live/devices/{device}/monitoring")
def live_device_monitoring(
    request: Request,
    caller: Sees,
    device: str,
    range_: Annotated[Range, Query(alias="range")] = Range.HOUR,
    pipeline: Annotated[str, Query(max_length=63)] = "",
) -> Response:
    """The charts of a device as they grow."""
    _device_view(request, caller, device, range_, pipeline)  # a device that is not there is a 404, not a silent stream

    def parts() -> Mapping[str, tuple[str, Any]]:
        return {"charts": ("parts/charts.html", _device_view(request, caller, device, range_, pipeline))}

    return part_stream(request, caller, parts, every_s=CHARTS_S)


@router.get("/live/rules")
def live_rules(request: Request, caller: SeesRules) -> Response:
    """What rules fire, as it changes."""
    return part_stream(request, caller, lambda: {"firings": ("parts/firings.html", _rules_view(request, caller))})


# --- views ---


def _fleet_view(request: Request, caller: Caller, span: Range) -> MonitoringView:
    services = services_of(request)
    now = services.clock.now()
    with services.database.reading() as tx:
        points = alert_store.list_fleet_points(tx, caller.tenant, since=now - SPANS[span], until=now)
    ranges = tuple((str(one), f"/monitoring?range={one}") for one in RANGES)
    return MonitoringView(charts.fleet_charts(points, span=span), str(span), ranges)


def _device_view(request: Request, caller: Caller, device: str, span: Range, pipeline: str) -> MonitoringView:
    services = services_of(request)
    devices.get_device(services.database, caller.tenant, DeviceId(device))
    names = _pipelines(services.database, caller.tenant, DeviceId(device), services.clock)
    chosen = pipeline or next(iter(names), "")
    here = f"/devices/{quote(device)}/monitoring"
    made = _charts_of(services.database, caller.tenant, DeviceId(device), chosen, span, services.clock)
    return MonitoringView(
        charts=made,
        range=str(span),
        ranges=tuple((str(one), f"{here}?{urlencode({'range': str(one), 'pipeline': chosen})}") for one in RANGES),
        device=device,
        pipeline=chosen,
        drift_url=_drift_url(services.database, caller.tenant, DeviceId(device), chosen),
        pipelines=tuple((name, f"{here}?{urlencode({'range': str(span), 'pipeline': name})}") for name in names),
    )


def _drift_url(database: Database, tenant: TenantId, device: DeviceId, pipeline: str) -> str:
    rows = drift_reading.device_overview(database, tenant, devices=[device])
    is_watched = any(row.state.pipeline == pipeline for row in rows)
    return f"/drift/{quote(device)}/{quote(pipeline)}" if is_watched else ""


def _pipelines(database: Database, tenant: TenantId, device: DeviceId, clock: Clock) -> tuple[str, ...]:
    """Pipelines that were heard in the last week or a moment ago."""
    now = clock.now()
    with database.reading() as tx:
        hours = alert_store.list_device_points(tx, tenant, device, since=now - SPANS[Range.WEEK], until=now)
        fresh = alert_store.list_telemetry_of(tx, tenant, [device], name="perf", since=now - timedelta(minutes=15), limit=200)
    return tuple(sorted({one.pipeline for one in hours if one.stream == "perf"} | {row.pipeline or "" for row in fresh}))


def _charts_of(database: Database, tenant: TenantId, device: DeviceId, pipeline: str, span: Range, clock: Clock) -> tuple[Chart, ...]:
    now = clock.now()
    since = now - SPANS[span]
    with database.reading() as tx:
        if span not in {Range.HOUR, Range.DAY}:
            points = alert_store.list_device_points(tx, tenant, device, since=since, until=now)
            perf = charts.slots_of_points(points, stream="perf", pipeline=pipeline)
            return charts.device_charts(perf, charts.slots_of_points(points, stream="sys", pipeline=""))
        rows = alert_store.list_telemetry_of(tx, tenant, [device], name="perf", since=since, limit=DAY_ROWS)
        system = alert_store.list_telemetry_of(tx, tenant, [device], name="sys", since=since, limit=DAY_ROWS)
    mine = [row for row in rows if (row.pipeline or "") == pipeline]
    return charts.device_charts(charts.slots_of_rows(mine, size=SLOTS[span]), charts.slots_of_rows(system, size=SLOTS[span]))


def _rules_view(request: Request, caller: Caller, *, form: RuleForm | None = None, trial: TrialView | None = None) -> RulesView:
    database = services_of(request).database
    firings = alerts.list_firings(database, caller.tenant, limit=FIRINGS_SHOWN)
    states = alerts.list_states(database, caller.tenant)
    counts = {(one.rule, one.state.level is Level.FIRING): 0 for one in states}
    pending: dict[str, int] = {}
    for one in states:
        counts[one.rule, one.state.level is Level.FIRING] += 1
        waits = one.state.level is Level.OK and one.state.pending_since is not None
        pending[one.rule] = pending.get(one.rule, 0) + int(waits)
    rules = alerts.list_rules(database, caller.tenant)
    subjects = [str(group.name) for group, _ in groups.list_groups(database, caller.tenant)]
    subjects += [str(site.name) for site in groups.list_sites(database, caller.tenant)]
    return RulesView(
        rows=tuple(_rule_row(one, counts.get((one.rule.name, True), 0), pending.get(one.rule.name, 0)) for one in rules),
        firings=tuple(_firing_view(row) for row in firings),
        may_write=caller.may("rules:write"),
        form=form or RuleForm(),
        subjects=tuple(dict.fromkeys(subjects)),
        trial=trial,
    )


def _rules_page(
    request: Request, caller: Caller, *, form: RuleForm | None = None, trial: TrialView | None = None, error: MooringError | None = None
) -> Response:
    view = _rules_view(request, caller, form=form, trial=trial)
    said = str(error) if error else ""
    return html_page(request, caller, "rules.html", "Rules", status=status_of(error), view=view, error=said)


def rule_of(form: RuleForm) -> Rule:
    """The rule that the form asks for. Raises: InvalidError naming the field."""
    try:
        metric, scope = Metric(form.metric), Scope(form.scope)
        comparison = Comparison(form.comparison) if form.comparison else METRICS[metric].comparison
    except ValueError as error:
        raise InvalidError(f"{error}.", hint="Choose one of the list.") from None
    if form.severity not in {"warning", "error"}:
        raise InvalidError(f"The severity is {form.severity[:80]!r}.", hint="Wanted: warning or error.")
    threshold = _figure(form.threshold, "Threshold")
    return Rule(
        name=form.name.strip(),
        metric=metric,
        comparison=comparison,
        threshold=threshold,
        recovers_at=_figure(form.recovers_at, "Recovers at") if form.recovers_at.strip() else threshold,
        window_s=60 * _figure(form.window_min, "Window") if form.window_min.strip() else METRICS[metric].window_s,
        for_s=60 * _figure(form.for_min, "For"),
        scope=scope,
        subject="" if scope is Scope.ALL else form.subject.strip(),
        pipeline=form.pipeline.strip(),
        severity=form.severity,
    )


def _figure(text: str, what: str) -> float:
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        raise InvalidError(f"{what}: {text[:80]!r} is no number.", hint="Wanted: a number, such as 100 or 0.5.") from None


def _rule_row(stored: StoredRule, firing: int, pending: int) -> RuleRow:
    rule = stored.rule
    by = stored.created_by.removeprefix("person:")
    return RuleRow(rule.name, words_of(rule), rule.severity, rule.is_enabled, firing, pending, rule.revision, by)


def _firing_view(row: FiringRow) -> FiringView:
    return FiringView(
        row.rule, row.key.device, row.key.pipeline, row.severity, row.since, row.until, charts.number(row.worst), row.ended_by
    )


def _tried(rule: Rule, one: alerts.Tried) -> list[FiringView]:
    key: RuleKey = one.key
    return [
        FiringView(rule.name, key.device, key.pipeline, rule.severity, fired.since, fired.until, charts.number(fired.worst), "")
        for fired in one.firings
    ]
