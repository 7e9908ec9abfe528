"""Device configuration: sections of fleet, groups and devices, dry run, releases and what waits for the policy key."""

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from fleet import loop
from fleet.configurations import service
from fleet.configurations.model import Change, ConfigurationRelease, DeviceEffect, Scope, Section, SigningRequest, with_values
from fleet.configurations.service import DeviceConfiguration
from fleet.web import rest
from fleet.web.admin.bodies import Body, Reason, ReasonBody, ShortText
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute, Page, page_of
from protocol.configuration import known_keys
from protocol.errors import InvalidError
from protocol.ids import DeviceId, GroupName

router = APIRouter(tags=["configuration"], route_class=IdempotentRoute)
Reads = Annotated[Caller, Depends(require("configurations:read"))]
Writes = Annotated[Caller, Depends(require("configurations:write"))]
Signs = Annotated[Caller, Depends(require("releases:sign"))]


class Settings(Body):
    """The whole section."""

    settings: dict[str, Any]
    reason: Reason = ""


class Edit(Body):
    """Single values of a section by dotted key; null removes what is inherited, `unset` says nothing about the key any more."""

    values: dict[str, Any] = Field(default_factory=dict, max_length=200)
    unset: list[ShortText] = Field(default_factory=list, max_length=200)
    reason: Reason = ""


class NewRelease(Body):
    """Which groups get what differs; none named: all."""

    groups: list[ShortText] = Field(default_factory=list, max_length=1000)
    reason: Reason = ""


class Signature(Body):
    """The signed role metadata, base64 of the exact bytes."""

    signed: Annotated[str, Field(max_length=8_000_000)]


# --- sections ---


@router.get("/configurations/keys")
def list_keys(_caller: Reads) -> Response:
    """Every key that may be set, with the kind of its value."""
    return rest.one({"items": [{"key": key, "kind": kind} for key, kind in known_keys()], "next": None})


@router.get("/configurations/sections/{scope}")
@router.get("/configurations/sections/{scope}/{name}")
def get_section(request: Request, scope: Scope, caller: Reads, name: str = "") -> Response:
    """The section as people left it; devices get it with the next release."""
    found = service.get_section(services_of(request).database, caller.tenant, scope, name)
    return rest.one(section_json(found), revision=found.revision)


@router.put("/configurations/sections/{scope}")
@router.put("/configurations/sections/{scope}/{name}")
def put_section(request: Request, scope: Scope, body: Settings, caller: Writes, name: str = "") -> Response:
    """Make this the whole section; needs If-Match."""
    return _saved(request, caller, scope, name, body.settings, rest.expected_revision(request), body.reason)


@router.patch("/configurations/sections/{scope}")
@router.patch("/configurations/sections/{scope}/{name}")
def edit_section(request: Request, scope: Scope, body: Edit, caller: Writes, name: str = "") -> Response:
    """Set or unset single values; needs If-Match."""
    before = service.get_section(services_of(request).database, caller.tenant, scope, name)
    expected = rest.expected_revision(request)
    wanted = with_values(before.settings, body.values, body.unset)
    return _saved(request, caller, scope, name, wanted, before.revision if expected is None else expected, body.reason)


def _saved(
    request: Request, caller: Caller, scope: Scope, name: str, settings: dict[str, Any], expected: int | None, reason: str
) -> Response:
    services = services_of(request)
    saved = service.set_section(
        services.database,
        tenant=caller.tenant,
        scope=scope,
        name=name,
        settings=settings,
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=expected,
        reason=reason,
    )
    return rest.one(section_json(saved), revision=saved.revision)


@router.get("/configurations/diff")
def diff(request: Request, group: Annotated[str, Query(max_length=63)], caller: Reads) -> Response:
    """What people changed in the group's sections since its last release, by section and key."""
    found = service.diff(services_of(request).registry, caller.tenant, GroupName(group))
    items = [{"section": section, **_change_json(change)} for section, changes in found.items() for change in changes]
    return rest.one({"items": items, "next": None})


@router.get("/configurations/dry-run")
def dry_run(
    request: Request,
    group: Annotated[str, Query(max_length=63)],
    caller: Reads,
    page: Annotated[Page, Depends(page_of)],
    device: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """Per device: what the next release would change, and which pipelines would start again. Changes nothing."""
    found = service.dry_run(
        services_of(request).registry, tenant=caller.tenant, group=GroupName(group), device=DeviceId(device) if device else None
    )
    return rest.listed(request, page, page.take(found, lambda one: one.device), key=lambda one: one.device, render=effect_json)


@router.get("/configurations/progress")
def progress(request: Request, group: Annotated[str, Query(max_length=63)], caller: Reads) -> Response:
    """How many of the group's devices keep, try, wait for or went back from the configuration that they shall have."""
    found = service.progress(services_of(request).database, caller.tenant, GroupName(group))
    returned = [{"device": device, **why.model_dump(mode="json")} for device, why in sorted(found.returned.items())]
    return rest.one({"group": group, "desired_rev": found.desired_rev, "counts": dict(found.counts), "returned": returned[:500]})


# --- releases ---


@router.get("/configurations/releases")
def list_releases(
    request: Request,
    caller: Reads,
    page: Annotated[Page, Depends(page_of)],
    group: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """Releases, the newest first: who, when, why."""
    found = service.list_releases(services_of(request).registry, caller.tenant, group=GroupName(group) if group else None)
    return rest.listed(request, page, page.take(found, lambda one: one.id), key=lambda one: one.id, render=release_json)


@router.post("/configurations/releases")
def propose(request: Request, body: NewRelease, caller: Annotated[Caller, Depends(require("approvals:request"))]) -> Response:
    """Compose what differs from what is published and ask for somebody else's yes to exactly that."""
    made = service.propose(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        groups=[GroupName(name) for name in body.groups],
        reason=body.reason,
    )
    return rest.one(release_json(made), revision=made.revision, status=201, location=f"/api/v1/configurations/releases/{made.rev}")


@router.get("/configurations/releases/{rev}")
def get_release(request: Request, rev: int, caller: Reads) -> Response:
    """One release with the content of its files."""
    registry = services_of(request).registry
    found = service.get_release(registry, caller.tenant, rev)
    contents = {file.group: service.read_file(registry, file) for file in found.files}
    sections = {
        name: {"fleet": dict(one.fleet), "group": dict(one.shared), "devices": {key: dict(value) for key, value in one.devices.items()}}
        for name, one in contents.items()
    }
    return rest.one({**release_json(found), "sections": sections}, revision=found.revision)


@router.post("/configurations/releases/{rev}/withdraw")
def withdraw(request: Request, rev: int, body: ReasonBody, caller: Writes) -> Response:
    """Take back what is not published yet."""
    made = service.withdraw(services_of(request).registry, tenant=caller.tenant, by=caller.actor, rev=rev, reason=body.reason)
    return rest.one(release_json(made), revision=made.revision)


@router.post("/configurations/releases/{rev}/restore")
def restore(request: Request, rev: int, body: ReasonBody, caller: Writes) -> Response:
    """Make the sections as they were in that release; the next one carries them to devices."""
    changed = service.restore(services_of(request).registry, tenant=caller.tenant, by=caller.actor, rev=rev, reason=body.reason)
    return rest.one({"items": [section_json(one) for one in changed], "next": None})


@router.get("/configurations/signing-requests")
def list_signing_requests(request: Request, caller: Signs) -> Response:
    """What is approved and waits for the policy key, the oldest first, with the exact bytes to sign."""
    found = service.list_signing_requests(services_of(request).registry, caller.tenant)
    return rest.one({"items": [_request_json(one) for one in found], "next": None})


@router.post("/configurations/signing-requests/{rev}")
def submit_signature(request: Request, rev: int, body: Signature, caller: Signs) -> Response:
    """Hand in the signed metadata: it is published, and devices get it with their next poll."""
    try:
        signed = base64.b64decode(body.signed, validate=True)
    except binascii.Error as error:
        raise InvalidError("signed is not base64.") from error
    registry = services_of(request).registry
    made = service.submit_signature(
        registry, tenant=caller.tenant, by=caller.actor, rev=rev, signed=signed, on_changed=loop.direct(registry)
    )
    return rest.one(release_json(made), revision=made.revision)


# --- devices ---


@router.get("/devices/{device}/configuration")
def of_device(request: Request, device: str, caller: Reads) -> Response:
    """What the device shall have and what it says that it has."""
    found = service.of_device(services_of(request).database, caller.tenant, DeviceId(device))
    return rest.one(device_json(found))


@router.post("/devices/{device}/configuration/offer-again")
def offer_again(request: Request, device: str, body: ReasonBody, caller: Writes) -> Response:
    """Let the device try again what it went back from."""
    registry = services_of(request).registry
    attempt = service.offer_again(
        registry, tenant=caller.tenant, device=DeviceId(device), by=caller.actor, reason=body.reason, on_changed=loop.direct(registry)
    )
    return rest.one({"device": device, "attempt": attempt})


# --- parts ---


def section_json(section: Section) -> dict[str, Any]:
    """A section as the API answers it."""
    return {
        "scope": str(section.scope),
        "name": section.name,
        "settings": dict(section.settings),
        "changed_by": section.changed_by,
        "changed_at": rest.iso(section.changed_at),
        "revision": section.revision,
    }


def release_json(release: ConfigurationRelease) -> dict[str, Any]:
    """A release as the API answers it."""
    return {
        "rev": release.rev,
        "state": str(release.state),
        "groups": [file.group for file in release.files],
        "files": [{"group": file.group, "length": file.length, "sha256": file.sha256} for file in release.files],
        "content_digest": release.content_digest,
        "approval": release.approval,
        "reason": release.reason,
        "created_by": release.created_by,
        "created_at": rest.iso(release.created_at),
        "published_at": rest.iso(release.published_at),
        "revision": release.revision,
    }


def effect_json(effect: DeviceEffect) -> dict[str, Any]:
    """What would happen to one device, as the API answers it."""
    return {
        "device": effect.device,
        "is_known": effect.is_known,
        "changes": [_change_json(change) for change in effect.changes],
        "restarts": list(effect.restarts),
        "after": dict(effect.after),
        "unused": list(effect.unused),
    }


def device_json(found: DeviceConfiguration) -> dict[str, Any]:
    """Desired against reported, as the API answers it."""
    return {
        "group": found.group,
        "desired_rev": found.desired_rev,
        "desired_sha256": found.desired_sha256,
        "is_in_force": found.is_in_force,
        "reported": found.reported.model_dump(mode="json") if found.reported else None,
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {"key": change.key, "before": change.before, "after": change.after, "origin": change.origin}


def _request_json(request: SigningRequest) -> dict[str, Any]:
    return {
        "rev": request.rev,
        "payload": base64.b64encode(request.payload).decode(),
        "previous": base64.b64encode(request.previous).decode(),
        "content_digest": request.content_digest,
        "approval": request.approval,
    }
