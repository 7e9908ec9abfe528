"""/api/v1: drift per pipeline and over any choice of devices, references, labels."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from fleet.devices.model import DeviceFilter
from fleet.monitoring import drift_claims, drift_labels, drift_reading, drift_references
from fleet.monitoring.drift_claims import Claim
from fleet.monitoring.drift_labels import LabelDraft
from fleet.monitoring.drift_model import AccuracyRange, Distribution, Measured, OverviewRow, Reference
from fleet.monitoring.drift_sums import moment_of
from fleet.monitoring.drift_tables import Waiting
from fleet.web import rest
from fleet.web.admin.bodies import Body, ReasonBody, Since, Until, utc
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute
from protocol.errors import InvalidError, NotFoundError
from protocol.ids import DeviceId, DeviceTypeName, GroupName, SiteName

router = APIRouter(tags=["drift"], route_class=IdempotentRoute)
SeesDrift = Annotated[Caller, Depends(require("profiles:read"))]
ChangesDrift = Annotated[Caller, Depends(require("profiles:write"))]
#: How far back is looked when nobody says.
DEFAULT_SPAN, YEAR = timedelta(days=1), timedelta(days=365)


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

    labels: Annotated[list[LabelBody], Field(min_length=1, max_length=drift_labels.MAX_LABELS)]


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
    rows = drift_reading.device_overview(services_of(request).database, caller.tenant, devices=devices, limit=limit)
    return rest.one({"items": [overview_json(row) for row in rows]})


@router.get("/drift/quarantine")
def quarantine(request: Request, caller: SeesDrift, device: Annotated[str | None, Query(max_length=63)] = None) -> Response:
    """Windows that were put aside: what waits, since when, for which grid, and until when."""
    found = drift_reading.list_waiting(services_of(request).database, caller.tenant, device=DeviceId(device) if device else None)
    return rest.one({"items": [waiting_json(one) for one in found]})


@router.get("/drift/unconfirmed")
def unconfirmed(request: Request, caller: SeesDrift, device: Annotated[str | None, Query(max_length=63)] = None) -> Response:
    """Alarms that devices say they have and no window confirms, each with the reason."""
    services = services_of(request)
    name = DeviceId(device) if device else None
    found = drift_claims.list_unconfirmed(services.database, caller.tenant, now=services.clock.now(), device=name)
    return rest.one({"items": [claim_json(one) for one in found]})


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
    found = drift_reading.fleet_distributions(
        services_of(request).database, caller.tenant, matching=matching, since=start, until=end, model=model, line=line, feature=feature
    )
    return rest.one({"distributions": [asdict(one) for one in found]})


@router.get("/devices/{device}/drift/{pipeline}")
def pipeline_drift(request: Request, device: str, pipeline: str, caller: SeesDrift, since: Since = None, until: Until = None) -> Response:
    """Where one pipeline stands: state, accuracy without and with labels, distributions."""
    services, (start, end) = services_of(request), _span(request, since, until)
    name, database = DeviceId(device), services_of(request).database
    drawn = drift_reading.distributions(database, caller.tenant, name, pipeline, since=start, until=end)
    rows = drift_reading.device_overview(database, caller.tenant, devices=[name])
    row = next((one for one in rows if one.state.pipeline == pipeline), None)
    estimated = drift_reading.accuracy_range(database, caller.tenant, name, pipeline, since=start, until=end)
    measured = drift_reading.measured_accuracy(database, caller.tenant, name, pipeline, now=services.clock.now())
    return rest.one(
        {
            "state": overview_json(row) if row else None,
            "own_false_alarms_per_year": drift_reading.own_rate(database, caller.tenant, name),
            "accuracy": accuracy_json(estimated) if estimated else None,
            "measured": [_measured_json(one) for one in measured if one.labels],
            "distributions": [distribution_json(one) for one in drawn],
        }
    )


@router.get("/devices/{device}/drift/{pipeline}/candidate")
def candidate_drift(request: Request, device: str, pipeline: str, caller: SeesDrift, since: Since = None, until: Until = None) -> Response:
    """What the candidate in the shadow sees and answers beside it: the same features against what its own release carries."""
    start, end = _span(request, since, until)
    found = drift_reading.candidate_distributions(
        services_of(request).database, caller.tenant, DeviceId(device), pipeline, since=start, until=end
    )
    if found is None:
        hint = "They come once an hour from a candidate whose release has a reference profile, while it runs in the shadow."
        raise NotFoundError(f"No candidate in the shadow of {pipeline[:80]!r} of {device[:80]} sent sketches in this time.", hint=hint)
    return rest.one({"model": found[0], "distributions": [distribution_json(one) for one in found[1]]})


@router.get("/devices/{device}/drift/{pipeline}/timeline")
def timeline(request: Request, device: str, pipeline: str, caller: SeesDrift, since: Since = None, until: Until = None) -> Response:
    """Drift score and p of each sub-window, and what all looks say at its end (`statistic`): an alarm from the threshold on."""
    start, end = _span(request, since, until)
    points = drift_reading.timeline(services_of(request).database, caller.tenant, DeviceId(device), pipeline, since=start, until=end)
    return rest.one({"points": [{"at": rest.iso(one.at), "score": one.score, "p": one.p, "statistic": one.statistic} for one in points]})


@router.get("/devices/{device}/drift/{pipeline}/references")
def list_references(request: Request, device: str, pipeline: str, caller: SeesDrift) -> Response:
    """Its references, the one in use first."""
    found = drift_references.list_references(services_of(request).database, caller.tenant, DeviceId(device), pipeline)
    return rest.one({"references": [reference_json(one) for one in found]})


@router.post("/devices/{device}/drift/{pipeline}/rebaseline")
def rebaseline(request: Request, device: str, pipeline: str, body: ReasonBody, caller: ChangesDrift) -> Response:
    """Take what is seen from now on as normal."""
    services = services_of(request)
    drift_references.rebaseline(
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
        LabelDraft(one.label, DeviceId(one.device), one.pipeline, one.right, utc(one.at) or now, one.slice, one.origin)
        for one in body.labels
    ]
    new = drift_labels.add_labels(services.database, tenant=caller.tenant, labels=drafts, by=caller.actor, now=now)
    return rest.one({"labels": len(drafts), "new": new}, status=201)


# --- documents ---


def overview_json(row: OverviewRow) -> dict[str, Any]:
    """A row of the heat map as the API answers it."""
    state = row.state
    plain = ("device", "pipeline", "model", "grid_id", "reference_id", "statistic", "threshold", "score", "p", "evidence", "is_listed")
    return {
        **{name: getattr(state, name) for name in plain},
        "grade": str(state.grade),
        "reference_source": str(row.source) if row.source else None,
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


def waiting_json(one: Waiting) -> dict[str, Any]:
    """Windows that were put aside as the API answers them."""
    return {
        **one.key._asdict(),
        "reason": one.reason,
        "windows": one.windows,
        "first": rest.iso(moment_of(one.first_w0)),
        "last": rest.iso(moment_of(one.next_w0)),
        "since": rest.iso(one.since),
        "until": rest.iso(one.until),
    }


def claim_json(one: Claim) -> dict[str, Any]:
    """An alarm that only the device knows of as the API answers it."""
    return {**asdict(one), "raised_at": rest.iso(one.raised_at), "told_at": rest.iso(one.told_at)}


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
        "source": str(one.source),
        "bytes": len(one.body),
        "stored_at": rest.iso(one.stored_at),
        "retired_at": rest.iso(one.retired_at),
    }


def _measured_json(one: Measured) -> dict[str, Any]:
    return {**asdict(one), "accuracy": one.accuracy}


def _span(request: Request, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    end = utc(until) or services_of(request).clock.now()
    start = utc(since) or end - DEFAULT_SPAN
    if not start < end <= start + 4 * YEAR:
        raise InvalidError(f"A span from {start.isoformat()} to {end.isoformat()}; wanted a start before the end, at most 4 years.")
    return start, end
