"""Sticks for sites without a network: what goes on one, its blobs, and the reports that devices wrote back."""

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from fleet import loop
from fleet.registry.bundles import Bundle
from fleet.web import rest
from fleet.web.admin.bodies import Body, Reason, ShortText
from fleet.web.auth import Caller, require, services_of
from protocol.ids import DeviceId, GroupName, check_digest
from protocol.messages import DsseEnvelope

router = APIRouter(tags=["bundles"])
Writes = Annotated[Caller, Depends(require("bundles:write"))]


class NewBundle(Body):
    """A stick for the devices of a group."""

    group: ShortText
    #: How long its signatures hold.
    valid_days: Annotated[int, Field(ge=1, le=loop.MAX_BUNDLE_DAYS)] = 90
    reason: Reason = ""


class BroughtReport(Body):
    """One signed version report that somebody brought."""

    device: ShortText
    envelope: DsseEnvelope


@router.post("/bundles")
def create_bundle(request: Request, body: NewBundle, caller: Writes) -> Response:
    """Sign what the group's devices shall run for a stick; the answer holds its metadata and names its blobs."""
    made = loop.create_bundle(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        group=GroupName(body.group),
        valid_days=body.valid_days,
        reason=body.reason,
    )
    return rest.one(_bundle_json(made), status=201)


@router.get("/bundles/blobs/{hexdigest}")
def get_blob(request: Request, hexdigest: str, caller: Writes) -> Response:
    """The bytes of a blob that a stick needs."""
    digest = check_digest(f"sha256:{hexdigest}")
    size, chunks = loop.open_bundle_blob(services_of(request).registry, tenant=caller.tenant, digest=digest)
    return StreamingResponse(chunks, 200, {"Content-Length": str(size), "ETag": f'"{digest}"'}, "application/octet-stream")


@router.post("/bundles/reports")
def import_report(request: Request, body: BroughtReport, caller: Writes) -> Response:
    """Take a version report that came on a stick; one that is known already is a conflict (report-counter)."""
    services = services_of(request)
    answer = loop.import_report(
        services.registry, tenant=caller.tenant, by=caller.actor, device=DeviceId(body.device), envelope=body.envelope
    )
    return rest.one({"device": body.device, "report_counter": answer.report_counter})


def _bundle_json(made: Bundle) -> dict[str, Any]:
    return {
        "group": made.index.group,
        "devices": list(made.index.devices),
        "idle": list(made.idle),
        "valid_until": rest.iso(made.valid_until),
        "files": {path: base64.b64encode(data).decode() for path, data in sorted(made.files.items())},
        "blobs": [{"sha256": digest, "length": length} for digest, length in sorted(made.blobs.items())],
    }
