"""Campaigns: create, look, pause, resume, abort; offering a release again to a device that blocked it."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from fleet import loop
from fleet.campaigns import service, shadow
from fleet.campaigns.model import BAD, DECIDED, ComparisonPlan, DeviceUpdate, Phase, RunAs, UpdateState, meaning_of
from fleet.campaigns.planner import Counts
from fleet.campaigns.service import DEFAULT_MIN_INFERENCES, DEFAULT_TIMEOUT_S, Progress
from fleet.campaigns.shadow import ShadowSummary
from fleet.devices import service as devices
from fleet.web import rest
from fleet.web.admin.bodies import Body, Reason, ReasonBody, ShortText
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute, Page, page_of
from protocol.clock import from_unix_ms
from protocol.ids import DeviceId, GroupName, LineName, ReleaseVersion

router = APIRouter(tags=["campaigns"], route_class=IdempotentRoute)
Reads = Annotated[Caller, Depends(require("campaigns:read"))]
Writes = Annotated[Caller, Depends(require("campaigns:write"))]
#: Campaigns looked at for one list; devices told of in one answer.
MOST, MOST_DEVICES = 1000, 500


class PhaseBody(Body):
    """One ordered step."""

    until_percent: Annotated[int, Field(ge=1, le=100)] = 100
    failure_threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    min_devices: Annotated[int, Field(ge=1)] = 1
    soak_s: Annotated[int, Field(ge=0)] = 0


class NewCampaign(Body):
    """A published release for the devices of a group."""

    line: ShortText
    release: ShortText
    group: ShortText
    phases: Annotated[tuple[PhaseBody, ...], Field(min_length=1, max_length=20)] = (PhaseBody(),)
    min_inferences: Annotated[int, Field(ge=0)] = DEFAULT_MIN_INFERENCES
    timeout_s: Annotated[int, Field(ge=1)] = DEFAULT_TIMEOUT_S
    full_bytes: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    #: Devices that refused or failed the release try it once more.
    again: bool = False
    #: shadow, ab: the release answers beside what devices run, or takes turns with it, and never becomes that.
    run_as: Annotated[RunAs, Field(alias="as")] = RunAs.ACTIVE
    #: Share of the minutes in which it answers (ab), and of one core that comparing may take on a device.
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    cpu: Annotated[float, Field(gt=0, le=1)] = 0.2
    #: When comparing ends by itself.
    until: datetime | None = None
    reason: Reason = ""


class Again(Body):
    """Which line of a device may try again."""

    line: ShortText
    reason: Reason = ""


class ConsentBody(Body):
    """Whether a device may activate what one of its lines is assigned."""

    line: ShortText
    given: bool
    reason: Reason = ""


@router.get("/campaigns")
def list_campaigns(request: Request, caller: Reads, page: Annotated[Page, Depends(page_of)]) -> Response:
    """Campaigns, the newest first."""
    found = service.list_progress(services_of(request).database, caller.tenant, limit=MOST)
    key = _name_of
    return rest.listed(request, page, page.take(found, key), key=key, render=campaign_json)


@router.post("/campaigns")
def create_campaign(request: Request, body: NewCampaign, caller: Writes) -> Response:
    """Start bringing a published release to a group."""
    made = loop.create_campaign(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        line=LineName(body.line),
        version=ReleaseVersion(body.release),
        group=GroupName(body.group),
        phases=tuple(Phase(one.until_percent, one.failure_threshold, one.min_devices, one.soak_s) for one in body.phases),
        min_inferences=body.min_inferences,
        timeout_s=body.timeout_s,
        full_bytes=body.full_bytes,
        again=body.again,
        comparison=ComparisonPlan(body.run_as, round(body.share * 100), round(body.cpu * 100), _in_utc(body.until)),
        reason=body.reason,
    )
    return _campaign(request, caller, made.campaign, status=201)


@router.get("/campaigns/{campaign}")
def get_campaign(request: Request, campaign: str, caller: Reads) -> Response:
    """One campaign with its devices."""
    return _campaign(request, caller, campaign)


@router.post("/campaigns/{campaign}/pause")
def pause(request: Request, campaign: str, body: ReasonBody, caller: Writes) -> Response:
    """Assign nothing further until resumed; needs If-Match."""
    services = services_of(request)
    service.pause(
        services.database,
        tenant=caller.tenant,
        campaign=campaign,
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason,
        revision=rest.expected_revision(request),
    )
    return _campaign(request, caller, campaign)


@router.post("/campaigns/{campaign}/resume")
def resume(request: Request, campaign: str, body: ReasonBody, caller: Writes) -> Response:
    """Go on; needs If-Match."""
    services = services_of(request)
    service.resume(
        services.database,
        tenant=caller.tenant,
        campaign=campaign,
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason,
        revision=rest.expected_revision(request),
    )
    return _campaign(request, caller, campaign)


@router.post("/campaigns/{campaign}/abort")
def abort(request: Request, campaign: str, body: ReasonBody, caller: Writes) -> Response:
    """End it; devices without a verdict get back what they had. Needs If-Match."""
    loop.abort_campaign(
        services_of(request).registry,
        tenant=caller.tenant,
        campaign=campaign,
        by=caller.actor,
        reason=body.reason,
        revision=rest.expected_revision(request),
    )
    return _campaign(request, caller, campaign)


@router.get("/devices/{device}/comparisons")
def list_comparisons(request: Request, device: str, caller: Reads, pipeline: ShortText | None = None) -> Response:
    """How candidates compare with what the device runs, those that were heard of last first."""
    services = services_of(request)
    devices.get_device(services.database, caller.tenant, DeviceId(device))
    found = shadow.shadow_summary(services.database, caller.tenant, device=DeviceId(device), pipeline=pipeline)
    return rest.one({"comparisons": [summary_json(one) for one in found[:MOST_DEVICES]]})


@router.post("/devices/{device}/offer-again")
def offer_again(request: Request, device: str, body: Again, caller: Writes) -> Response:
    """Let a device try again what it blocked."""
    made = loop.offer_again(
        services_of(request).registry,
        tenant=caller.tenant,
        device=DeviceId(device),
        line=LineName(body.line),
        by=caller.actor,
        reason=body.reason,
    )
    return rest.one({"device": made.device, "line": made.line, "release": made.version, "attempt": made.attempt})


@router.post("/devices/{device}/consent")
def consent(request: Request, device: str, body: ConsentBody, caller: Writes) -> Response:
    """Say for a site that asks first whether the device may activate what is assigned."""
    made = loop.consent(
        services_of(request).registry,
        tenant=caller.tenant,
        device=DeviceId(device),
        line=LineName(body.line),
        is_given=body.given,
        by=caller.actor,
        reason=body.reason,
    )
    return rest.one({"device": made.device, "line": made.line, "release": made.version, "given": body.given})


def total(counts: Counts, states: frozenset[UpdateState] | None = None) -> int:
    """Devices of all phases in these states; in all states when None."""
    return sum(counts.count(phase, states) for phase in counts.by_phase)


def campaign_json(progress: Progress) -> dict[str, Any]:
    """A campaign with its counts as the API answers it."""
    campaign, counts = progress.campaign, progress.counts
    return {
        "campaign": campaign.campaign,
        "line": campaign.line,
        "release": campaign.version,
        "group": campaign.group,
        "state": str(campaign.state),
        "reason": campaign.reason,
        "as": str(campaign.comparison.run_as),
        "share": campaign.comparison.share / 100,
        "cpu": campaign.comparison.cpu / 100,
        "until": rest.iso(campaign.comparison.until),
        "phase": campaign.phase + 1,
        "phases": [
            {
                "until_percent": phase.until_percent,
                "failure_threshold": phase.failure_threshold,
                "min_devices": phase.min_devices,
                "soak_s": phase.soak_s,
            }
            for phase in campaign.phases
        ],
        "total": total(counts),
        "updated": total(counts, frozenset({UpdateState.UPDATED})),
        "failed": total(counts, BAD),
        "moving": total(counts) - total(counts, DECIDED),
        "created_by": campaign.created_by,
        "created_at": rest.iso(campaign.created_at),
        "finished_at": rest.iso(campaign.finished_at),
        "revision": campaign.revision,
    }


def _campaign(request: Request, caller: Caller, campaign: str, *, status: int = 200) -> Response:
    database = services_of(request).database
    progress = service.get_progress(database, caller.tenant, campaign)
    updates = service.list_updates(database, caller.tenant, campaign, limit=MOST_DEVICES)
    failures = [
        {
            "reason": one.reason,
            "count": one.count,
            "meaning": meaning_of(progress.campaign, one),
            "causes": [{"reason": cause.reason, "count": cause.count} for cause in one.causes],
            "example": _update_json(one.example),
        }
        for one in service.list_failures(database, caller.tenant, campaign)
    ]
    document = {**campaign_json(progress), "failures": failures, "devices": [_update_json(one) for one in updates]}
    if progress.campaign.comparison.is_candidate:
        summaries = shadow.shadow_summary(database, caller.tenant, campaign=campaign)
        document["comparisons"] = [summary_json(one) for one in summaries[:MOST_DEVICES]]
    return rest.one(document, revision=progress.campaign.revision, status=status, location=f"/api/v1/campaigns/{campaign}")


def _update_json(update: DeviceUpdate) -> dict[str, Any]:
    return {
        "device": update.device,
        "phase": update.phase + 1,
        "state": str(update.state),
        "reason": update.reason,
        "text": update.text,
        "updated_at": rest.iso(update.updated_at),
    }


def summary_json(summary: ShadowSummary) -> dict[str, Any]:
    """One comparison as the API answers it; `figures` are the sums of all reports (protocol.shadow)."""
    latest = summary.latest
    return {
        "device": summary.device,
        "pipeline": latest.pipeline,
        "line": latest.line,
        "as": latest.run_as,
        "campaign": latest.campaign,
        "champion": latest.champion,
        "candidate": latest.candidate,
        "state": latest.state,
        "reason": latest.reason,
        "text": latest.text,
        "since": rest.iso(from_unix_ms(summary.since)),
        "until": rest.iso(from_unix_ms(latest.until)),
        "reports": summary.reports,
        "compared": summary.figures.pairs.compared,
        "agreement": summary.agreement,
        "latency_ratio": summary.latency_ratio,
        "cpu_share": summary.cpu_share,
        "cpu_budget": latest.budget_permille / 1000,
        "figures": summary.figures.model_dump(mode="json"),
    }


def _in_utc(moment: datetime | None) -> datetime | None:
    """The moment; one without a zone is meant in UTC."""
    return moment if moment is None or moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _name_of(progress: Progress) -> str:
    return progress.campaign.campaign
