"""The console's pages of drift: alarms with their life cycle, the heat map, and one pipeline. Handlers parse, ask one view, and render."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from fleet.devices import service as devices
from fleet.monitoring import drift_claims, drift_reading, drift_service
from fleet.monitoring.drift_model import OPEN_STATES, Alarm, AlarmEvent, AlarmState, OverviewRow, SubjectKind, TimePoint
from fleet.monitoring.drift_rules import rules_of
from fleet.web import drift_views, render
from fleet.web.auth import Caller, require, services_of
from fleet.web.charts import SPANS, Range
from fleet.web.console import PageRoute, html_page, part_stream, shell_of, status_of
from fleet.web.drift_views import AlarmPage, AlarmsView, HeatMap, PipelineDrift, WhatIfView
from protocol.errors import MooringError, NotFoundError
from protocol.ids import DeviceId

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Sees = Annotated[Caller, Depends(require("alarms:read"))]
Answers = Annotated[Caller, Depends(require("alarms:write"))]
SeesDrift = Annotated[Caller, Depends(require("profiles:read"))]
PAGE_SIZE, MAP_ROWS, OPEN_COUNTED = 50, 200, 500
#: Windows after an alarm was raised that its page still shows.
AFTER = timedelta(days=2)
#: How far back "how was the promise kept" looks.
PROMISE_DAYS = 365
Rate = Annotated[float | None, Query(ge=0.01, le=100)]
Step = Annotated[int | None, Query(ge=0, le=drift_views.SLIDER_STEPS)]
_SHOWN: Mapping[str, tuple[AlarmState, ...]] = {
    "open": (AlarmState.RAISED, AlarmState.ACKNOWLEDGED),
    "cleared": (AlarmState.CLEARED,),
    "all": (),
}


# --- alarms ---


@router.get("/alarms")
def alarm_list(
    request: Request,
    caller: Sees,
    show: Annotated[str, Query(pattern="^(open|cleared|all)$")] = "open",
    after: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """The page that answers: what fired, and who took it."""
    return html_page(request, caller, "alarms.html", "Alarms", view=_alarms_view(request, caller, show, after))


@router.get("/alarms/{alarm}")
def alarm(request: Request, caller: Sees, alarm: str, rate: Rate = None, step: Step = None) -> Response:
    """One alarm: what it means, how sure, what it costs to be wrong, and what if."""
    return _alarm_page(request, caller, alarm, rate=_asked(rate, step))


@router.get("/alarms/{alarm}/what-if")
def what_if(request: Request, caller: Sees, alarm: str, rate: Rate = None, step: Step = None) -> Response:
    """The part of that page that a slider changes."""
    found = drift_service.get_alarm(services_of(request).database, caller.tenant, alarm)
    made = _what_if(request, caller, found, rate=_asked(rate, step))[0]
    now = services_of(request).clock.now()
    return HTMLResponse(
        render.page("parts/what_if_answer.html", shell=shell_of(request, caller, "", is_watched=False), now=now, what_if=made)
    )


@router.post("/alarms/{alarm}/acknowledge")
def acknowledge(
    request: Request,
    caller: Answers,
    alarm: str,
    revision: Annotated[int, Form()],
    note: Annotated[str, Form(max_length=1000)] = "",
) -> Response:
    """Take it."""
    services = services_of(request)
    return _after(
        request,
        caller,
        alarm,
        lambda: drift_service.acknowledge(
            services.database,
            tenant=caller.tenant,
            alarm=alarm,
            by=caller.actor,
            now=services.clock.now(),
            note=note,
            revision=revision,
        ),
    )


@router.post("/alarms/{alarm}/clear")
def clear(
    request: Request,
    caller: Answers,
    alarm: str,
    revision: Annotated[int, Form()],
    outcome: Annotated[str, Form(pattern="^(condition|false_alarm)$")],
    reason: Annotated[str, Form(min_length=1, max_length=1000)],
) -> Response:
    """End it with a reason."""
    services = services_of(request)
    return _after(
        request,
        caller,
        alarm,
        lambda: drift_service.clear(
            services.database,
            tenant=caller.tenant,
            alarm=alarm,
            outcome=AlarmEvent(outcome),
            by=caller.actor,
            now=services.clock.now(),
            reason=reason,
            revision=revision,
        ),
    )


@router.post("/alarms/{alarm}/mute")
def mute(
    request: Request,
    caller: Answers,
    alarm: str,
    revision: Annotated[int, Form()],
    hours: Annotated[float, Form(ge=0, le=24 * 90)],
    reason: Annotated[str, Form(min_length=1, max_length=1000)],
) -> Response:
    """Tell nobody for some hours; 0: tell again."""
    services = services_of(request)
    now = services.clock.now()
    until = now + timedelta(hours=hours) if hours else None
    return _after(
        request,
        caller,
        alarm,
        lambda: drift_service.mute(
            services.database,
            tenant=caller.tenant,
            alarm=alarm,
            until=until,
            by=caller.actor,
            now=now,
            reason=reason,
            revision=revision,
        ),
    )


# --- drift ---


@router.get("/drift")
def drift(request: Request, caller: SeesDrift) -> Response:
    """The page that answers: what changed."""
    return html_page(request, caller, "drift.html", "Drift", view=_heat_map(request, caller))


@router.get("/drift/{device}/{pipeline}")
def pipeline_drift(
    request: Request,
    caller: SeesDrift,
    device: str,
    pipeline: str,
    range_: Annotated[Range, Query(alias="range")] = Range.DAY,
    feature: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The page that answers: what of this pipeline changed, and since when."""
    view = _pipeline_view(request, caller, device, pipeline, range_, feature)
    ranges = [(str(one), f"?{'feature=' + quote(feature) + '&' if feature else ''}range={one}") for one in SPANS if one is not Range.HOUR]
    return html_page(request, caller, "drift_pipeline.html", "Drift", view=view, range=str(range_), ranges=ranges)


# --- live parts ---


@router.get("/live/alarms")
def live_alarms(request: Request, caller: Sees, show: Annotated[str, Query(pattern="^(open|cleared|all)$")] = "open") -> Response:
    """Alarms as they change, and the sentence that is read aloud."""

    def parts() -> Mapping[str, tuple[str, Any]]:
        view = _alarms_view(request, caller, show, None)
        said, standstills = ("parts/alarms_said.html", view), ("parts/standstills.html", None)
        return {"alarms": ("parts/alarms.html", view), "said": said, "standstills": standstills}

    return part_stream(request, caller, parts)


@router.get("/live/drift")
def live_drift(request: Request, caller: SeesDrift) -> Response:
    """The heat map as it changes."""
    return part_stream(request, caller, lambda: {"heat": ("parts/heat.html", _heat_map(request, caller))}, every_s=5.0)


# --- views ---


def count_open(request: Request, caller: Caller) -> int:
    """Open alarms, for the number in the rail."""
    return len(drift_service.list_alarms(services_of(request).database, caller.tenant, states=tuple(OPEN_STATES), limit=OPEN_COUNTED))


def _alarms_view(request: Request, caller: Caller, shown: str, after: str | None) -> AlarmsView:
    services = services_of(request)
    now = services.clock.now()
    found = drift_service.list_alarms(services.database, caller.tenant, states=_SHOWN[shown], after=after, limit=PAGE_SIZE + 1)
    rules = rules_of(services.config.drift)
    promise = drift_service.false_alarms(services.database, caller.tenant, since=now - timedelta(days=PROMISE_DAYS), now=now, rules=rules)
    more = f"/alarms?show={shown}&after={found[PAGE_SIZE - 1].alarm}" if len(found) > PAGE_SIZE else ""
    claims = drift_claims.list_unconfirmed(services.database, caller.tenant, now=now) if shown == "open" and not after else []
    opened = count_open(request, caller)
    view = drift_views.alarms_view(found[:PAGE_SIZE], open_count=opened, shown=shown, promise=promise, claims=claims)
    return drift_views.with_pages(view, next_url=more, first_url=f"/alarms?show={shown}" if after else "")


def _alarm_page(
    request: Request, caller: Caller, alarm: str, *, rate: float | None = None, error: MooringError | None = None
) -> HTMLResponse:
    found = drift_service.get_alarm(services_of(request).database, caller.tenant, alarm)
    made, points = _what_if(request, caller, found, rate=rate)
    timeline = drift_views.timeline_chart(points, threshold=found.threshold, alarm=found) if points else None
    source = drift_reading.source_of(services_of(request).database, caller.tenant, found)
    view: AlarmPage = drift_views.alarm_page(found, words=drift_service.explain(found), source=source, what_if=made, timeline=timeline)
    said = str(error) if error else ""
    may = caller.may("alarms:write")
    return html_page(request, caller, "alarm.html", "Alarms", status=status_of(error), view=view, error=said, may_answer=may)


def _what_if(request: Request, caller: Caller, found: Alarm, *, rate: float | None) -> tuple[WhatIfView | None, Sequence[TimePoint]]:
    """The what-if of an alarm of one device, and the windows that it was computed from; a group's scores are not kept."""
    services = services_of(request)
    if found.subject.kind is not SubjectKind.DEVICE:
        return None, ()
    until = min(services.clock.now(), (found.cleared_at or found.raised_at) + AFTER)
    points = drift_reading.timeline(
        services.database,
        caller.tenant,
        DeviceId(found.subject.name),
        found.subject.pipeline,
        since=found.onset - drift_views.BEFORE,
        until=until,
    )
    per_year = drift_views.per_year_of(found)
    return drift_views.what_if_view(points, onset=found.onset, per_year=per_year, asked=rate), points


def _asked(rate: float | None, step: int | None) -> float | None:
    return rate if rate is not None else drift_views.rate_of_step(step) if step is not None else None


def _after(request: Request, caller: Caller, alarm: str, act: Callable[[], object]) -> Response:
    """The alarm's page after a change, or with the reason why it was refused."""
    try:
        act()
    except NotFoundError:
        raise
    except MooringError as error:
        return _alarm_page(request, caller, alarm, error=error)
    return RedirectResponse(f"/alarms/{quote(alarm)}", 303)


def _heat_map(request: Request, caller: Caller) -> HeatMap:
    database = services_of(request).database
    waiting = drift_reading.list_waiting(database, caller.tenant)
    return drift_views.heat_map(drift_reading.device_overview(database, caller.tenant, limit=MAP_ROWS), waiting)


def _pipeline_view(request: Request, caller: Caller, device: str, pipeline: str, span: Range, feature: str) -> PipelineDrift:
    services = services_of(request)
    database, tenant, name = services.database, caller.tenant, DeviceId(device)
    devices.get_device(database, tenant, name)
    rows = [one for one in drift_reading.device_overview(database, tenant, devices=[name]) if one.state.pipeline == pipeline]
    if not rows:
        raise NotFoundError(f"Nothing is known of drift of pipeline {pipeline!r} of {device}.", hint="It sends sketches once an hour.")
    row: OverviewRow = rows[0]
    now = services.clock.now()
    since = now - SPANS[span]
    points = drift_reading.timeline(database, tenant, name, pipeline, since=since, until=now)
    accuracy = drift_reading.accuracy_range(database, tenant, name, pipeline, since=since, until=now)
    found = drift_service.get_alarm(database, tenant, row.alarm) if row.alarm else None
    shown = _distributions(request, caller, name, pipeline, since=since, until=now, feature=feature)
    beside = drift_reading.candidate_distributions(database, tenant, name, pipeline, since=since, until=now)
    return drift_views.pipeline_drift(
        row,
        points=points,
        accuracy=accuracy,
        distributions=shown,
        feature=feature,
        alarm=found,
        own_rate=drift_reading.own_rate(database, tenant, name),
        candidate=() if beside is None else beside[1],
    )


def _distributions(
    request: Request, caller: Caller, device: DeviceId, pipeline: str, *, since: datetime, until: datetime, feature: str
) -> Sequence[Any]:
    database = services_of(request).database
    return drift_reading.distributions(database, caller.tenant, device, pipeline, since=since, until=until, feature=feature or None)
