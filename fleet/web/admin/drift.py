"""/api/v1: alarms and their life cycle, drift per pipeline and over any choice of devices, references, labels."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from fleet.devices.model import DeviceFilter
from fleet.monitoring import drift_service as service
from fleet.monitoring.drift_model import AccuracyRange, Alarm, AlarmEvent, AlarmState, Distribution, Measured, OverviewRow, Reference
from fleet.monitoring.drift_service import LabelDraft
from fleet.web import rest
from fleet.web.admin.bodies import Body, Reason, ReasonBody, ShortText
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute, Page, page_of
from protocol.errors import InvalidError
from protocol.ids import DeviceId, DeviceTypeName, GroupName, SiteName

router = APIRouter(tags=["drift"], route_class=IdempotentRoute)
Reads = Annotated[Caller, Depends(require("alarms:read"))]
Writes = Annotated[Caller, Depends(require("alarms:write"))]
SeesDrift = Annotated[Caller, Depends(require("profiles:read"))]
ChangesDrift = Annotated[Caller, Depends(require("profiles:write"))]
Paged = Annotated[Page, Depends(page_of)]
#: How far back is looked when nobody says.
DEFAULT_SPAN, YEAR = timedelta(days=1), timedelta(days=365)
Since = Annotated[datetime | None, Query(description="Start, ISO 8601; a day before the end when not given.")]
Until = Annotated[datetime | None, Query(description="End, ISO 8601; now when not given.")]


class Acknowledge(Body):
    """Take an alarm."""

    note: Reason = ""
    #: The run or site job that answers it.
    link: ShortText = ""


class Clear(Body):
    """End an alarm."""

    outcome: Literal["condition", "false_alarm"]
    reason: Reason = ""


class Mute(Body):
    """Stop or start telling people."""

    #: None: tell again.
    until: datetime | None = None
    reason: Reason = ""


class LabelBody(Body):
    """What somebody says of one answer of a model."""

    #: Unique; the same sent twice counts once.
    label: Annotated[str, Field(max_length=63)] = ""
    device: Annotated[str, Field(max_length=63)]
    pipeline: Annotated[str, Field(max_length=63)]
    right: bool
    #: Moment of the answer; now when not given.
    at: datetime | None = None
    slice: Annotated[str, Field(max_length=100)] = ""
    #: random: drawn uniformly, measures accuracy; uncertain; bigger-model: another model's word.
    origin: Literal["random", "uncertain", "bigger-model"] = "random"


class Labels(Body):
    """Labels of one request."""

    labels: Annotated[list[LabelBody], Field(min_length=1, max_length=service.MAX_LABELS)]


# --- alarms ---


@router.get("/alarms")
def list_alarms(
    request: Request,
    caller: Reads,
    page: Paged,
    state: Annotated[list[AlarmState] | None, Query()] = None,
    device: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """Alarms, those raised last first."""
    found = service.list_alarms(
        services_of(request).database,
        caller.tenant,
        states=state or (),
        device=DeviceId(device) if device else None,
        after=page.after,
        limit=page.limit + 1,
    )
    return rest.listed(request, page, found, key=lambda one: one.alarm, render=alarm_json)


@router.get("/alarms/promise")
def promise(request: Request, caller: Reads, since: Since = None) -> Response:
    """How the promised rate of false alarms was kept: a year back when nothing is said."""
    services = services_of(request)
    now, rules = services.clock.now(), services.config.drift
    found = service.false_alarms(
        services.database, caller.tenant, since=_utc(since) or now - YEAR, now=now, rate=rules.false_alarms_per_device_year
    )
    return rest.one(asdict(found))


@router.get("/alarms/{alarm}")
def get_alarm(request: Request, alarm: str, caller: Reads) -> Response:
    """One alarm with what moved."""
    found = service.get_alarm(services_of(request).database, caller.tenant, alarm)
    return rest.one(alarm_json(found), revision=found.revision)


@router.post("/alarms/{alarm}/acknowledge")
def acknowledge(request: Request, alarm: str, body: Acknowledge, caller: Writes) -> Response:
    """Take it."""
    services = services_of(request)
    made = service.acknowledge(
        services.database,
        tenant=caller.tenant,
        alarm=alarm,
        by=caller.actor,
        now=services.clock.now(),
        note=body.note,
        link=body.link,
        revision=_revision(request),
    )
    return rest.one(alarm_json(made), revision=made.revision)


@router.post("/alarms/{alarm}/clear")
def clear(request: Request, alarm: str, body: Clear, caller: Writes) -> Response:
    """End it: a condition, or a false alarm."""
    services = services_of(request)
    made = service.clear(
        services.database,
        tenant=caller.tenant,
        alarm=alarm,
        outcome=AlarmEvent(body.outcome),
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason,
        revision=_revision(request),
    )
    return rest.one(alarm_json(made), revision=made.revision)


@router.post("/alarms/{alarm}/mute")
def mute(request: Request, alarm: str, body: Mute, caller: Writes) -> Response:
    """Tell nobody until then; it is still recorded."""
    services = services_of(request)
    made = service.mute(
        services.database,
        tenant=caller.tenant,
        alarm=alarm,
        until=_utc(body.until),
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason,
        revision=_revision(request),
    )
    return rest.one(alarm_json(made), revision=made.revision)


# --- drift ---


@router.get("/drift")
def overview(
    request: Request,
    caller: SeesDrift,
    device: Annotated[list[str] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 200,
) -> Response:
    """Device by feature, those of most evidence first."""
    devices = [DeviceId(name) for name in device] if device else None
    rows = service.device_overview(services_of(request).database, caller.tenant, devices=devices, limit=limit)
    return rest.one({"items": [overview_json(row) for row in rows]})


@router.get("/drift/distributions")
def fleet_distributions(
    request: Request,
    caller: SeesDrift,
    group: Annotated[str | None, Query(max_length=63)] = None,
    site: Annotated[str | None, Query(max_length=63)] = None,
    device_type: Annotated[str | None, Query(max_length=63)] = None,
    line: Annotated[str | None, Query(max_length=63)] = None,
    model: Annotated[str | None, Query(max_length=32)] = None,
    feature: Annotated[str | None, Query(max_length=63)] = None,
    since: Since = None,
    until: Until = None,
) -> Response:
    """Reference against now over all devices that match, as one sum."""
    start, end = _span(request, since, until)
    matching = DeviceFilter(
        group=GroupName(group) if group else None,
        site=SiteName(site) if site else None,
        device_type=DeviceTypeName(device_type) if device_type else None,
    )
    found = service.fleet_distributions(
        services_of(request).database, caller.tenant, matching=matching, since=start, until=end, model=model, line=line, feature=feature
    )
    return rest.one({"distributions": [asdict(one) for one in found]})


@router.get("/devices/{device}/drift/{pipeline}")
def pipeline_drift(request: Request, device: str, pipeline: str, caller: SeesDrift, since: Since = None, until: Until = None) -> Response:
    """Where one pipeline stands: state, accuracy without and with labels, distributions."""
    services, (start, end) = services_of(request), _span(request, since, until)
    name, database = DeviceId(device), services_of(request).database
    drawn = service.distributions(database, caller.tenant, name, pipeline, since=start, until=end)
    rows = service.device_overview(database, caller.tenant, devices=[name])
    row = next((one for one in rows if one.state.pipeline == pipeline), None)
    estimated = service.accuracy_range(database, caller.tenant, name, pipeline, since=start, until=end)
    measured = service.measured_accuracy(database, caller.tenant, name, pipeline, now=services.clock.now())
    return rest.one(
        {
            "state": overview_json(row) if row else None,
            "accuracy": accuracy_json(estimated) if estimated else None,
            "measured": [_measured_json(one) for one in measured if one.labels],
            "distributions": [distribution_json(one) for one in drawn],
        }
    )


@router.get("/devices/{device}/drift/{pipeline}/timeline")
def timeline(request: Request, device: str, pipeline: str, caller: SeesDrift, since: Since = None, until: Until = None) -> Response:
    """Drift score and p of each sub-window."""
    start, end = _span(request, since, until)
    points = service.timeline(services_of(request).database, caller.tenant, DeviceId(device), pipeline, since=start, until=end)
    return rest.one({"points": [{"at": rest.iso(one.at), "score": one.score, "p": one.p} for one in points]})


@router.get("/devices/{device}/drift/{pipeline}/references")
def list_references(request: Request, device: str, pipeline: str, caller: SeesDrift) -> Response:
    """Its references, the one in use first."""
    found = service.list_references(services_of(request).database, caller.tenant, DeviceId(device), pipeline)
    return rest.one({"references": [reference_json(one) for one in found]})


@router.post("/devices/{device}/drift/{pipeline}/rebaseline")
def rebaseline(request: Request, device: str, pipeline: str, body: ReasonBody, caller: ChangesDrift) -> Response:
    """Take what is seen from now on as normal."""
    services = services_of(request)
    service.rebaseline(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        pipeline=pipeline,
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason,
    )
    return rest.one({"device": device, "pipeline": pipeline, "grade": "collecting"})


@router.post("/labels")
def add_labels(request: Request, body: Labels, caller: ChangesDrift) -> Response:
    """Keep what people, or a bigger model, say of answers."""
    services = services_of(request)
    now = services.clock.now()
    drafts = [
        LabelDraft(one.label, DeviceId(one.device), one.pipeline, one.right, _utc(one.at) or now, one.slice, one.origin)
        for one in body.labels
    ]
    new = service.add_labels(services.database, tenant=caller.tenant, labels=drafts, by=caller.actor, now=now)
    return rest.one({"labels": len(drafts), "new": new}, status=201)


# --- documents ---


def alarm_json(alarm: Alarm) -> dict[str, Any]:
    """An alarm as the API answers it."""
    return {
        "alarm": alarm.alarm,
        "kind": str(alarm.subject.kind),
        "name": alarm.subject.name,
        "pipeline": alarm.subject.pipeline,
        "model": alarm.subject.model,
        "state": str(alarm.state),
        "cause": str(alarm.cause),
        "grade": str(alarm.grade),
        "words": alarm.words,
        "onset": rest.iso(alarm.onset),
        "raised_at": rest.iso(alarm.raised_at),
        "statistic": alarm.statistic,
        "threshold": alarm.threshold,
        "false_alarms_per_year": alarm.rate,
        "features": [asdict(one) for one in alarm.features],
        "devices": list(alarm.devices),
        "parent": alarm.parent,
        "evidence": list(alarm.evidence),
        "reopened": alarm.reopened,
        "acknowledged_at": rest.iso(alarm.acknowledged_at),
        "acknowledged_by": alarm.acknowledged_by,
        "note": alarm.note,
        "link": alarm.link,
        "cleared_at": rest.iso(alarm.cleared_at),
        "outcome": str(alarm.outcome) if alarm.outcome else None,
        "muted_until": rest.iso(alarm.muted_until),
        "revision": alarm.revision,
    }


def overview_json(row: OverviewRow) -> dict[str, Any]:
    """A row of the heat map as the API answers it."""
    state = row.state
    plain = ("device", "pipeline", "model", "grid_id", "reference_id", "statistic", "threshold", "score", "p", "evidence", "is_listed")
    return {
        **{name: getattr(state, name) for name in plain},
        "grade": str(state.grade),
        "check": str(state.check),
        "judged_until": rest.iso(state.judged_until),
        "days": state.days,
        "site_gap": state.site_gap,
        "peer_p": state.peer_p,
        "conditions": dict(state.conditions),
        "alarm": row.alarm,
        "alarm_state": str(row.alarm_state) if row.alarm_state else None,
        "features": [asdict(one) for one in row.cells],
    }


def distribution_json(one: Distribution) -> dict[str, Any]:
    """A distribution as the API answers it."""
    return asdict(one)


def accuracy_json(one: AccuracyRange) -> dict[str, Any]:
    """Accuracy without labels as the API answers it."""
    estimates: Mapping[str, float] = one.estimates
    return {
        "low": one.low,
        "high": one.high,
        "trust": str(one.trust),
        "reason": one.reason,
        "estimates": dict(estimates),
        "priors": list(one.priors),
        "rows": one.rows,
    }


def reference_json(one: Reference) -> dict[str, Any]:
    """A reference as the API answers it, without its numbers."""
    return {
        "reference_id": one.reference_id,
        "device": one.device,
        "pipeline": one.pipeline,
        "model": one.model,
        "grid_id": one.grid_id,
        "grade": str(one.grade),
        "source": one.source,
        "bytes": len(one.body),
        "stored_at": rest.iso(one.stored_at),
        "retired_at": rest.iso(one.retired_at),
    }


def _measured_json(one: Measured) -> dict[str, Any]:
    return {**asdict(one), "accuracy": one.accuracy}


def _span(request: Request, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    end = _utc(until) or services_of(request).clock.now()
    start = _utc(since) or end - DEFAULT_SPAN
    if not start < end <= start + 4 * YEAR:
        raise InvalidError(f"A span from {start.isoformat()} to {end.isoformat()}; wanted a start before the end, at most 4 years.")
    return start, end


def _utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _revision(request: Request) -> int | None:
    """The revision that the caller saw, if it says so."""
    return rest.expected_revision(request) if "if-match" in request.headers else None
