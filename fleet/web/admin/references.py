"""References of devices that are learned from recordings."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from fleet.monitoring import drift_import
from fleet.monitoring.drift_import import Learned
from fleet.monitoring.drift_model import Reference
from fleet.monitoring.drift_recordings import Brought
from fleet.web import rest
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute
from protocol.errors import InvalidError
from protocol.ids import DeviceId
from protocol.recordings import MAX_FILE_BYTES

router = APIRouter(tags=["drift"], route_class=IdempotentRoute)


@router.post("/drift/references")
def import_reference(
    request: Request,
    caller: Annotated[Caller, Depends(require("profiles:write"))],
    recording: Annotated[UploadFile, File(description="what `mooring-agent drift record` wrote")],
    device: Annotated[str, Form(max_length=63)],
    pipeline: Annotated[str, Form(max_length=63)],
    reason: Annotated[str, Form(max_length=2000)] = "",
    model: Annotated[str, Form(max_length=32, description="first 16 bytes of the model file's digest, hexadecimal")] = "",
    is_indoor: Annotated[bool, Form(description="light that does not follow the day")] = False,  # noqa: FBT002 - a field of the form
    recorded_by: Annotated[str, Form(max_length=63, description="the device that recorded, when it is another one of the tenant")] = "",
    unsigned: Annotated[bool, Form(description="nobody signed it: you vouch for it, as the reason says")] = False,  # noqa: FBT002 - as above
) -> Response:
    """Learn what is normal for a device from a recording, and use it; it is provisional, and the device's own takes its place.

    The device that made the recording must have signed it, or `unsigned` says that nobody did; else it is refused, and `code` says why.
    """
    data = recording.file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidError(
            f"The recording is longer than the {MAX_FILE_BYTES} bytes allowed.",
            code="too-large",
            hint="Record less: mooring-agent drift record --days 28 --pipeline P -o FILE.",
        )
    services = services_of(request)
    stored, learned = drift_import.import_reference(
        services.database,
        services.blobs,
        tenant=caller.tenant,
        brought=Brought(DeviceId(device), DeviceId(recorded_by) if recorded_by else None, is_unsigned=unsigned),
        pipeline=pipeline,
        recording=data,
        by=caller.actor,
        now=services.clock.now(),
        reason=reason,
        model=model,
        is_indoor=is_indoor,
    )
    return rest.one(_json(stored, learned), status=201)


def _json(stored: Reference, learned: Learned) -> dict[str, Any]:
    return {
        "device": stored.device,
        "pipeline": stored.pipeline,
        "model": stored.model,
        "grid": stored.grid_id,
        "reference": stored.reference_id,
        "grade": str(stored.grade),
        "source": str(stored.source),
        "days": learned.days,
        "windows": learned.windows,
        "left_out": learned.left_out,
        "stored_at": rest.iso(stored.stored_at),
    }
