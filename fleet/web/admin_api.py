"""/api/v1: what people's programs and machines call. The resources are in `fleet.web.admin`; here they are put together."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.openapi.utils import get_openapi

from fleet import db, parts
from fleet.web import live, rest
from fleet.web.admin import alarms, alerts, bundles, campaigns, configurations, devices, drift, governance, people, references, registry
from fleet.web.auth import Caller, require, services_of
from protocol.ids import DeviceId

router = APIRouter(prefix="/api/v1")
for part in (people, devices, registry, governance, campaigns, bundles, configurations, alerts, alarms, drift, references):
    router.include_router(part.router)


@router.get("/healthz", tags=["server"])
def health(request: Request) -> Response:
    """Whether the server answers and its database does. Needs no login; says nothing else."""
    with services_of(request).database.reading():
        pass
    return rest.one({"ok": True})


@router.get("/server", tags=["server"])
def server(request: Request, caller: Annotated[Caller, Depends(require("settings:read"))]) -> Response:
    """What this server is: addresses, clock, kind of keys."""
    services = services_of(request)
    with services.database.reading() as tx:
        standstills = parts.list_standstills(tx, services.tenant, now=db.clock(tx))
    return rest.one(
        {
            "tenant": caller.tenant,
            "device_url": services.device_url,
            "console_url": services.console_url,
            "broker_urls": list(services.broker.urls),
            "broker": services.broker_text,
            "demo_keys": services.config.demo_keys,
            "now": rest.iso(services.clock.now()),
            "clock_speed": services.clock.speed,
            "standstills": [
                {"part": one.part, "since": rest.iso(one.since), "text": one.text, "consequence": one.consequence} for one in standstills
            ],
        }
    )


@router.get("/watch", tags=["server"])
def watch(
    request: Request,
    caller: Annotated[Caller, Depends(require("telemetry:read"))],
    device: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """Server-sent events: every message that devices send, as it is stored."""
    return live.watch(request, caller, DeviceId(device) if device else None)


@router.get("/openapi.json", tags=["server"])
def openapi(caller: Annotated[Caller, Depends(require("account:write"))]) -> Response:
    """This API as OpenAPI 3.1."""
    del caller  # any account may read it
    return rest.one(document())


def document() -> dict[str, object]:
    """The OpenAPI document of /api/v1."""
    return get_openapi(title="Mooring", version="1", openapi_version="3.1.0", routes=router.routes)
