"""/api/v1: alarms and their life cycle."""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from fleet.monitoring import drift_service
from fleet.monitoring.drift_model import Alarm, AlarmEvent, AlarmState
from fleet.monitoring.drift_rules import rules_of
from fleet.web import rest
from fleet.web.admin.bodies import Body, Reason, ShortText, Since, utc
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute, Page, page_of
from protocol.ids import DeviceId

router = APIRouter(tags=["drift"], route_class=IdempotentRoute)
Reads = Annotated[Caller, Depends(require("alarms:read"))]
Writes = Annotated[Caller, Depends(require("alarms:write"))]
Paged = Annotated[Page, Depends(page_of)]
#: How far back is looked when nobody says.
YEAR = timedelta(days=365)


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


@router.get("/alarms")
def list_alarms(
    request: Request,
    caller: Reads,
    page: Paged,
    state: Annotated[list[AlarmState] | None, Query()] = None,
    device: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """Alarms, those raised last first."""
    found = drift_service.list_alarms(
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
    now, rules = services.clock.now(), rules_of(services.config.drift)
    found = drift_service.false_alarms(services.database, caller.tenant, since=utc(since) or now - YEAR, now=now, rules=rules)
    return rest.one({**asdict(found), "is_telling": found.is_telling})


@router.get("/alarms/{alarm}")
def get_alarm(request: Request, alarm: str, caller: Reads) -> Response:
    """One alarm with what moved."""
    found = drift_service.get_alarm(services_of(request).database, caller.tenant, alarm)
    return rest.one(alarm_json(found), revision=found.revision)


@router.post("/alarms/{alarm}/acknowledge")
def acknowledge(request: Request, alarm: str, body: Acknowledge, caller: Writes) -> Response:
    """Take it."""
    made = drift_service.acknowledge(services_of(request).database, **_act(request, caller, alarm), note=body.note, link=body.link)
    return rest.one(alarm_json(made), revision=made.revision)


@router.post("/alarms/{alarm}/clear")
def clear(request: Request, alarm: str, body: Clear, caller: Writes) -> Response:
    """End it: a condition, or a false alarm."""
    act = _act(request, caller, alarm)
    made = drift_service.clear(services_of(request).database, **act, outcome=AlarmEvent(body.outcome), reason=body.reason)
    return rest.one(alarm_json(made), revision=made.revision)


@router.post("/alarms/{alarm}/mute")
def mute(request: Request, alarm: str, body: Mute, caller: Writes) -> Response:
    """Tell nobody until then; it is still recorded."""
    act = _act(request, caller, alarm)
    made = drift_service.mute(services_of(request).database, **act, until=utc(body.until), reason=body.reason)
    return rest.one(alarm_json(made), revision=made.revision)


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


def _act(request: Request, caller: Caller, alarm: str) -> dict[str, Any]:
    """What every act of a person on an alarm says: whose alarm, who, when, and the revision that was seen, if the caller says one."""
    seen = rest.expected_revision(request) if "if-match" in request.headers else None
    return {"tenant": caller.tenant, "alarm": alarm, "by": caller.actor, "now": services_of(request).clock.now(), "revision": seen}
