"""Devices, invitations, groups, sites and device types."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from fleet import loop
from fleet.devices import enrollment, groups, service, twins
from fleet.devices.enrollment import Invite
from fleet.devices.model import ConsentRule, DeviceState, DeviceType, EnrollmentToken, Group, Site, parse_config, parse_pipelines
from fleet.monitoring import service as monitoring
from fleet.monitoring import snapshots
from fleet.monitoring.model import EventRow, TelemetryRow
from fleet.web import device_views, pipeline_views, rest
from fleet.web.admin.bodies import Body, Reason, ReasonBody, ShortText
from fleet.web.auth import Caller, require, services_of
from fleet.web.device_views import DeviceFacts, DeviceQuery
from fleet.web.rest import Page, page_of
from fleet.web.views import ConditionView, DeviceRow
from protocol.clock import to_unix_ms
from protocol.errors import InvalidError
from protocol.ids import DeviceId, DeviceTypeName, GroupName, SiteName

router = APIRouter(tags=["devices"])
Reads = Annotated[Caller, Depends(require("devices:read"))]
Writes = Annotated[Caller, Depends(require("devices:write"))]
#: How far back telemetry may be asked for at once, hours.
MAX_TELEMETRY_HOURS = 24.0 * 31


class Pipelines(Body):
    """The whole ordered list of a device's pipelines."""

    pipelines: list[dict[str, Any]]
    reason: Reason = ""


class Labels(Body):
    """All labels of a device."""

    labels: dict[str, str]
    reason: Reason = ""


class Config(Body):
    """What a device or a group wishes to be different."""

    config: dict[str, Any]
    reason: Reason = ""


class Move(Body):
    """Where a device goes."""

    group: ShortText | None = None
    site: ShortText | None = None
    reason: Reason = ""


class Secret(Body):
    """A secret in the clear; it is sealed to the device's key at once."""

    value: Annotated[str, Field(min_length=1, max_length=4096)]
    reason: Reason = ""


class NewInvite(Body):
    """An invitation for one device."""

    group: ShortText = "default"
    device_type: ShortText
    device: ShortText | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    reason: Reason = ""


class NewGroup(Body):
    """A group."""

    name: ShortText
    site: ShortText | None = groups.DEFAULT_SITE
    description: Reason = ""
    config: dict[str, Any] | None = None
    reason: Reason = ""


class GroupChange(Body):
    """What of a group changes; None: stays."""

    site: ShortText | None = None
    description: Reason | None = None
    config: dict[str, Any] | None = None
    reason: Reason = ""


class SiteBody(Body):
    """A site without its name."""

    time_zone: ShortText = "UTC"
    consent: ConsentRule = ConsentRule.DENY
    bandwidth_kbit_s: int | None = None
    max_updating: int | None = None
    reason: Reason = ""


class NewSite(SiteBody):
    """A site."""

    name: ShortText


class NewDeviceType(Body):
    """A device type."""

    name: ShortText
    description: Reason = ""
    reason: Reason = ""


# --- devices ---


@router.get("/devices")
def list_devices(
    request: Request,
    caller: Reads,
    page: Annotated[Page, Depends(page_of)],
    text: Annotated[str, Query(max_length=63)] = "",
    group: Annotated[str, Query(max_length=63)] = "",
    site: Annotated[str, Query(max_length=63)] = "",
    device_type: Annotated[str, Query(max_length=63)] = "",
    presence: Annotated[str, Query(max_length=20)] = "",
    health: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """Devices by id; each with what it runs and how it is."""
    query = DeviceQuery(text, group, site, device_type, presence, health)
    found = device_views.list_rows(services_of(request).database, caller.tenant, query, after=page.after, limit=page.limit + 1)
    return rest.listed(request, page, found, key=lambda row: row.device, render=_row_json)


@router.get("/devices/{device}")
def get_device(request: Request, device: str, caller: Reads) -> Response:
    """One device: state, conditions, slots, lines, pipelines, labels."""
    return _device(request, caller, DeviceId(device))


@router.get("/devices/{device}/pipelines/{pipeline}")
def get_pipeline(request: Request, device: str, pipeline: str, caller: Reads) -> Response:
    """One pipeline: speed, drops by reason, back end asked and in use, zones, rules, newest events."""
    services = services_of(request)
    now = services.clock.now()
    facts = pipeline_views.load_facts(services.database, caller.tenant, DeviceId(device), pipeline, now=now)
    return rest.one(pipeline_views.pipeline_json(facts, pipeline_views.pipeline_page(facts, now=now)))


@router.post("/devices/{device}/pipelines/{pipeline}/snapshot")
def take_snapshot(
    request: Request,
    device: str,
    pipeline: str,
    caller: Annotated[Caller, Depends(require("snapshots:read"))],
    body: ReasonBody | None = None,
) -> Response:
    """One picture of the pipeline as a JPEG, asked for now; that it was asked for is audited, the picture is kept nowhere."""
    services = services_of(request)
    taken = snapshots.take_snapshot(
        services.database,
        services.calls,
        tenant=caller.tenant,
        device=DeviceId(device),
        pipeline=pipeline,
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason if body else "",
    )
    return Response(taken.jpeg, media_type="image/jpeg")


@router.put("/devices/{device}/pipelines")
def set_pipelines(request: Request, device: str, body: Pipelines, caller: Writes) -> Response:
    """Replace the list of pipelines; needs If-Match."""
    services = services_of(request)
    twins.set_pipelines(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        specs=parse_pipelines(body.pipelines),
        by=caller.actor,
        now=services.clock.now(),
        limits=services.config.limits,
        expected_revision=rest.expected_revision(request, part=1),
        reason=body.reason,
    )
    return _device(request, caller, DeviceId(device))


@router.put("/devices/{device}/config")
def set_config(request: Request, device: str, body: Config, caller: Writes) -> Response:
    """Replace the device's own part of the desired config; needs If-Match."""
    services = services_of(request)
    twins.set_device_config(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        config=parse_config(body.config),
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request, part=1),
        reason=body.reason,
    )
    return _device(request, caller, DeviceId(device))


@router.put("/devices/{device}/labels")
def set_labels(request: Request, device: str, body: Labels, caller: Writes) -> Response:
    """Replace the labels; needs If-Match."""
    services = services_of(request)
    service.set_labels(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        labels=body.labels,
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request),
        reason=body.reason,
    )
    return _device(request, caller, DeviceId(device))


@router.post("/devices/{device}/move")
def move_device(request: Request, device: str, body: Move, caller: Writes) -> Response:
    """Put the device into another group or site; needs If-Match."""
    services = services_of(request)
    service.move_device(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        by=caller.actor,
        now=services.clock.now(),
        group=GroupName(body.group) if body.group else None,
        site=SiteName(body.site) if body.site else None,
        expected_revision=rest.expected_revision(request),
        reason=body.reason,
        on_changed=loop.direct(services.registry),
    )
    return _device(request, caller, DeviceId(device))


@router.post("/devices/{device}/revoke")
def revoke_device(request: Request, device: str, body: ReasonBody, caller: Writes) -> Response:
    """Refuse the device's certificates from now on; needs If-Match."""
    services = services_of(request)
    service.revoke_device(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request),
        reason=body.reason,
    )
    return _device(request, caller, DeviceId(device))


@router.put("/devices/{device}/secrets/{name}", status_code=204)
def set_secret(request: Request, device: str, name: str, body: Secret, caller: Writes) -> Response:
    """Seal a secret to the device's own key and send it with the desired twin."""
    services = services_of(request)
    twins.set_secret(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        name=name,
        plaintext=body.value.encode(),
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason,
    )
    return Response(status_code=204)


@router.delete("/devices/{device}/secrets/{name}", status_code=204)
def delete_secret(request: Request, device: str, name: str, caller: Writes, body: ReasonBody | None = None) -> Response:
    """Take a secret out of the desired twin."""
    services = services_of(request)
    twins.delete_secret(
        services.database,
        tenant=caller.tenant,
        device=DeviceId(device),
        name=name,
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason if body else "",
    )
    return Response(status_code=204)


@router.get("/devices/{device}/telemetry")
def list_telemetry(
    request: Request,
    device: str,
    caller: Annotated[Caller, Depends(require("telemetry:read"))],
    name: Annotated[str, Query(pattern="^(perf|sys|sensor|drift)$")] = "perf",
    pipeline: Annotated[str | None, Query(max_length=63)] = None,
    hours: Annotated[float, Query(gt=0, le=MAX_TELEMETRY_HOURS)] = 1.0,
) -> Response:
    """The newest rows of one telemetry stream, oldest first."""
    services = services_of(request)
    service.get_device(services.database, caller.tenant, DeviceId(device))
    since = services.clock.now() - timedelta(hours=hours)
    rows = monitoring.list_telemetry(services.database, caller.tenant, DeviceId(device), name=name, since=since, pipeline=pipeline)
    return rest.one({"items": [_telemetry_json(row) for row in rows], "next": None})


@router.get("/devices/{device}/events")
def list_device_events(
    request: Request, device: str, caller: Reads, limit: Annotated[int, Query(ge=1, le=rest.MAX_LIMIT)] = rest.DEFAULT_LIMIT
) -> Response:
    """The newest events of the device first."""
    services = services_of(request)
    service.get_device(services.database, caller.tenant, DeviceId(device))
    rows = monitoring.list_events(services.database, caller.tenant, device=DeviceId(device), limit=limit)
    return rest.one({"items": [event_json(row) for row in rows], "next": None})


@router.get("/devices/{device}/predictions")
def list_predictions(request: Request, device: str, caller: Annotated[Caller, Depends(require("telemetry:read"))]) -> Response:
    """Per pipeline the last predictions, newest first."""
    services = services_of(request)
    service.get_device(services.database, caller.tenant, DeviceId(device))
    return rest.one(monitoring.list_predictions(services.database, caller.tenant, DeviceId(device)))


@router.get("/events")
def list_events(request: Request, caller: Reads, limit: Annotated[int, Query(ge=1, le=rest.MAX_LIMIT)] = rest.DEFAULT_LIMIT) -> Response:
    """The newest events of all devices first."""
    rows = monitoring.list_events(services_of(request).database, caller.tenant, limit=limit)
    return rest.one({"items": [event_json(row) for row in rows], "next": None})


# --- invitations ---


@router.post("/invites")
def create_invite(request: Request, body: NewInvite, caller: Annotated[Caller, Depends(require("enrollment:write"))]) -> Response:
    """Make a one-time invitation; its token is in this answer and nowhere else."""
    services = services_of(request)
    made = enrollment.invite(
        services.database,
        services.authority,
        tenant=caller.tenant,
        group=GroupName(body.group),
        device_type=DeviceTypeName(body.device_type),
        by=caller.actor,
        # an invitation is a one-time token: it ends by system time, as certificates do
        now=services.system_now(),
        device=DeviceId(body.device) if body.device else None,
        valid_s=(body.hours or services.config.pki.invite_hours) * 3600,
        limits=services.config.limits,
        reason=body.reason,
    )
    return rest.one(_invite_json(made, services.device_url), status=201, location=f"/api/v1/invites/{made.token_id}")


@router.get("/invites")
def list_invites(
    request: Request,
    caller: Annotated[Caller, Depends(require("enrollment:read"))],
    limit: Annotated[int, Query(ge=1, le=rest.MAX_LIMIT)] = rest.DEFAULT_LIMIT,
) -> Response:
    """The newest invitations first; without any secret."""
    found = enrollment.list_invites(services_of(request).database, caller.tenant, limit=limit)
    return rest.one({"items": [_token_json(token) for token in found], "next": None})


@router.delete("/invites/{token_id}", status_code=204)
def withdraw_invite(
    request: Request, token_id: str, caller: Annotated[Caller, Depends(require("enrollment:write"))], body: ReasonBody | None = None
) -> Response:
    """Make an unused invitation worthless."""
    services = services_of(request)
    enrollment.withdraw_invite(
        services.database,
        tenant=caller.tenant,
        token_id=token_id,
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason if body else "",
    )
    return Response(status_code=204)


# --- groups, sites, device types ---


@router.get("/groups")
def list_groups(
    request: Request, caller: Annotated[Caller, Depends(require("groups:read"))], page: Annotated[Page, Depends(page_of)]
) -> Response:
    """Groups by name, each with how many devices it has."""
    found = groups.list_groups(services_of(request).database, caller.tenant)
    return rest.listed(
        request, page, page.take(found, lambda pair: pair[0].name), key=lambda pair: pair[0].name, render=lambda pair: _group_json(*pair)
    )


@router.get("/groups/{name}")
def get_group(request: Request, name: str, caller: Annotated[Caller, Depends(require("groups:read"))]) -> Response:
    """One group."""
    return _group(request, caller, GroupName(name))


@router.post("/groups")
def create_group(request: Request, body: NewGroup, caller: Annotated[Caller, Depends(require("groups:write"))]) -> Response:
    """Add a group."""
    services = services_of(request)
    made = groups.create_group(
        services.database,
        tenant=caller.tenant,
        name=body.name,
        by=caller.actor,
        now=services.clock.now(),
        description=body.description,
        site=SiteName(body.site) if body.site else None,
        config=parse_config(body.config) if body.config is not None else None,
        reason=body.reason,
    )
    return rest.one(_group_json(made, 0), revision=made.revision, status=201, location=f"/api/v1/groups/{made.name}")


@router.patch("/groups/{name}")
def change_group(request: Request, name: str, body: GroupChange, caller: Annotated[Caller, Depends(require("groups:write"))]) -> Response:
    """Change a group; needs If-Match. A new config reaches all its devices."""
    services = services_of(request)
    groups.change_group(
        services.database,
        tenant=caller.tenant,
        name=GroupName(name),
        by=caller.actor,
        now=services.clock.now(),
        description=body.description,
        site=SiteName(body.site) if body.site else None,
        config=parse_config(body.config) if body.config is not None else None,
        expected_revision=rest.expected_revision(request),
        reason=body.reason,
    )
    return _group(request, caller, GroupName(name))


@router.delete("/groups/{name}", status_code=204)
def delete_group(
    request: Request, name: str, caller: Annotated[Caller, Depends(require("groups:write"))], body: ReasonBody | None = None
) -> Response:
    """Forget a group without devices; needs If-Match."""
    services = services_of(request)
    groups.delete_group(
        services.database,
        tenant=caller.tenant,
        name=GroupName(name),
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request),
        reason=body.reason if body else "",
    )
    return Response(status_code=204)


@router.get("/sites")
def list_sites(
    request: Request, caller: Annotated[Caller, Depends(require("sites:read"))], page: Annotated[Page, Depends(page_of)]
) -> Response:
    """Sites by name."""
    found = groups.list_sites(services_of(request).database, caller.tenant)
    return rest.listed(request, page, page.take(found, lambda site: site.name), key=lambda site: site.name, render=_site_json)


@router.post("/sites")
def create_site(request: Request, body: NewSite, caller: Annotated[Caller, Depends(require("sites:write"))]) -> Response:
    """Add a site."""
    services = services_of(request)
    site = _site(caller, body.name, body)
    made = groups.create_site(services.database, site=site, by=caller.actor, now=services.clock.now(), reason=body.reason)
    return rest.one(_site_json(made), revision=made.revision, status=201, location=f"/api/v1/sites/{made.name}")


@router.get("/sites/{name}")
def get_site(request: Request, name: str, caller: Annotated[Caller, Depends(require("sites:read"))]) -> Response:
    """One site."""
    site = groups.get_site(services_of(request).database, caller.tenant, SiteName(name))
    return rest.one(_site_json(site), revision=site.revision)


@router.put("/sites/{name}")
def change_site(request: Request, name: str, body: SiteBody, caller: Annotated[Caller, Depends(require("sites:write"))]) -> Response:
    """Replace a site's rules; needs If-Match."""
    services = services_of(request)
    made = groups.change_site(
        services.database,
        site=_site(caller, name, body),
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request),
        reason=body.reason,
    )
    return rest.one(_site_json(made), revision=made.revision)


@router.get("/device-types")
def list_device_types(
    request: Request, caller: Annotated[Caller, Depends(require("device-types:read"))], page: Annotated[Page, Depends(page_of)]
) -> Response:
    """Device types by name."""
    found = groups.list_device_types(services_of(request).database, caller.tenant)
    return rest.listed(request, page, page.take(found, lambda one: one.name), key=lambda one: one.name, render=_type_json)


@router.post("/device-types")
def create_device_type(
    request: Request, body: NewDeviceType, caller: Annotated[Caller, Depends(require("device-types:write"))]
) -> Response:
    """Add a device type."""
    services = services_of(request)
    made = groups.create_device_type(
        services.database,
        tenant=caller.tenant,
        name=body.name,
        by=caller.actor,
        now=services.clock.now(),
        description=body.description,
        reason=body.reason,
    )
    return rest.one(_type_json(made), status=201)


# --- JSON ---


def event_json(row: EventRow) -> dict[str, Any]:
    """An event of a device, with the message as it came."""
    return {
        "device": row.device,
        "type": row.type,
        "subject": row.subject,
        "ts": rest.iso(row.ts),
        "received_at": rest.iso(row.received_at),
        "body": row.body,
    }


def _device(request: Request, caller: Caller, device: DeviceId) -> Response:
    services = services_of(request)
    now = services.clock.now()
    facts = device_views.load_facts(services.database, caller.tenant, device, now=now)
    revision = f"{facts.detail.device.revision}.{facts.detail.twin.revision}"
    page = device_views.device_page(facts, now=now)
    document: dict[str, Any] = {
        "device": page.device,
        "tenant": caller.tenant,
        "device_type": page.device_type,
        "group": page.group,
        "site": page.site or None,
        "state": str(facts.detail.device.state),
        "certificate_ends_at": rest.iso(page.certificate_ends_at),
        "revision": page.revision,
        "presence": page.presence or "offline",
        "health": page.health,
        "last_seen": rest.iso(page.last_seen),
        "agent_version": page.agent_version,
        "labels": dict(page.labels),
        "conditions": [_condition_json(one) for one in page.conditions],
        "lines": [
            {
                "line": line.line,
                "installed": line.installed or None,
                "desired": line.desired or None,
                "state": line.state,
                "progress": line.progress,
                "reason": line.reason,
                "text": line.text,
                "waits_for": line.waits_for or None,
                "until": rest.iso(line.until),
                "transfer": line.transfer or None,
                "path": [{"state": point.state, "kind": point.kind} for point in line.path],
                "blocked": [{"release": one.release, "reason": one.reason, "text": one.text} for one in line.blocked],
                "history": [
                    {"release": step.release, "state": step.state, "at": rest.iso(step.at), "reason": step.reason, "text": step.text}
                    for step in line.steps
                ],
            }
            for line in page.lines
        ],
        "slots": [
            {
                "line": line.line,
                "slot": slot.slot,
                "release": slot.release,
                "active": slot.active,
                "committed": slot.committed,
                "counter": slot.counter,
                "sha256": slot.sha256,
            }
            for line in page.lines
            for slot in line.slots
        ],
        "pipelines": _pipelines_json(facts, {one.name: (one.asked, one.effective) for one in page.pipelines}),
        "runtimes": [{"name": one.name, "version": one.version, "state": one.state} for one in page.runtimes],
        "desired_rev": page.desired_rev,
        "applied_rev": page.applied_rev,
        "config_errors": dict(page.config_errors),
        "secrets": list(facts.detail.secret_names),
    }
    return rest.one(document, revision=revision)


def _pipelines_json(facts: DeviceFacts, backends: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    documents = device_views.pipeline_documents(facts)
    for one in documents:
        asked, effective = backends.get(str(one.get("name")), ("", ""))
        one |= {"asked": asked or None, "effective": effective or None}
    return documents


def _row_json(row: DeviceRow) -> dict[str, Any]:
    return {
        "device": row.device,
        "device_type": row.device_type,
        "group": row.group,
        "site": row.site or None,
        "state": str(DeviceState.REVOKED if row.is_revoked else DeviceState.ENROLLED),
        "presence": row.presence or "offline",
        "health": row.health,
        "worst": row.worst or None,
        "last_seen": rest.iso(row.last_seen),
        "lines": [
            {
                "line": line.line,
                "installed": line.installed or None,
                "desired": line.desired or None,
                "state": line.state,
                "progress": line.progress,
                "reason": line.reason,
            }
            for line in row.lines
        ],
    }


def _condition_json(one: ConditionView) -> dict[str, Any]:
    return {"code": one.code, "severity": one.severity, "text": one.text, "since": rest.iso(one.since), "advice": one.advice}


def _telemetry_json(row: TelemetryRow) -> dict[str, Any]:
    return {"name": row.name, "pipeline": row.pipeline, "ts": to_unix_ms(row.ts), "body": row.body}


def _invite_json(made: Invite, url: str) -> dict[str, Any]:
    return {
        "token_id": made.token_id,
        "token": made.text,
        "group": made.group,
        "device_type": made.device_type,
        "device": made.device,
        "expires_at": rest.iso(made.expires_at),
        "server": url,
        "command": f"mooring-agent enroll --server {url} --token {made.text}",
    }


def _token_json(token: EnrollmentToken) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "group": token.group,
        "device_type": token.device_type,
        "device": token.device,
        "created_by": token.created_by,
        "created_at": rest.iso(token.created_at),
        "expires_at": rest.iso(token.expires_at),
        "used_at": rest.iso(token.used_at),
        "used_by": token.used_by,
    }


def _group(request: Request, caller: Caller, name: GroupName) -> Response:
    found = [pair for pair in groups.list_groups(services_of(request).database, caller.tenant) if pair[0].name == name]
    group, count = found[0] if found else (groups.get_group(services_of(request).database, caller.tenant, name), 0)
    return rest.one(_group_json(group, count), revision=group.revision)


def _group_json(group: Group, count: int) -> dict[str, Any]:
    return {
        "name": group.name,
        "description": group.description,
        "site": group.site,
        "config": group.config.model_dump(mode="json", exclude_defaults=True),
        "devices": count,
        "revision": group.revision,
    }


def _site(caller: Caller, name: str, body: SiteBody) -> Site:
    if not name:
        raise InvalidError("A site needs a name.")
    return Site(caller.tenant, SiteName(name), body.time_zone, body.consent, body.bandwidth_kbit_s, body.max_updating)


def _site_json(site: Site) -> dict[str, Any]:
    return {
        "name": site.name,
        "time_zone": site.time_zone,
        "consent": str(site.consent),
        "bandwidth_kbit_s": site.bandwidth_kbit_s,
        "max_updating": site.max_updating,
        "revision": site.revision,
    }


def _type_json(one: DeviceType) -> dict[str, Any]:
    return {"name": one.name, "description": one.description, "revision": one.revision}
