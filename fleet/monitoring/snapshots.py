"""Pictures that a person asks a device for: allowed by its site and by the device, written into the audit log, never stored."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from fleet import audit
from fleet.audit import Actor
from fleet.db import Database
from fleet.devices import store as device_store
from fleet.devices.calls import Calls
from fleet.devices.model import ConsentRule
from fleet.monitoring import store
from protocol.clock import from_unix_ms
from protocol.errors import ConflictError, ForbiddenError, UnavailableError
from protocol.ids import DeviceId, TenantId
from protocol.messages import Presence
from protocol.snapshots import METHOD, SnapshotAnswer, SnapshotRequest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One picture."""

    jpeg: bytes
    #: Pixels.
    width: int
    height: int
    at: datetime


def take_snapshot(
    database: Database,
    calls: Calls | None,
    *,
    tenant: TenantId,
    device: DeviceId,
    pipeline: str,
    by: Actor,
    now: datetime,
    reason: str = "",
) -> Snapshot:
    """Ask the device for a picture of the pipeline. That somebody asked is in the audit log before the device hears of it.

    Raises: NotFoundError; ForbiddenError when the site keeps its pictures; ConflictError when the device is not online or says no;
    UnavailableError when it does not answer; InvalidError when what it answers is no picture.
    """
    request = SnapshotRequest(pipeline=pipeline)
    with database.transaction() as tx:
        owner = device_store.get_device(tx, tenant, device)
        _check_site(device_store.get_site(tx, tenant, owner.site).consent if owner.site else ConsentRule.DENY, owner.site or "")
        view = store.find_device(tx, tenant, device)
        if view is None or view.presence is not Presence.ONLINE:
            raise ConflictError(f"{device} is not online.", hint="Ask again when its page says that it is.", code="device-offline")
        subject, detail = f"device/{device}", {"pipeline": pipeline}
        audit.append(tx, tenant=tenant, actor=by, action="device.snapshot-asked", subject=subject, now=now, reason=reason, detail=detail)
    if calls is None:
        raise UnavailableError("This server has no broker by which it could ask.")
    result = calls.call(tenant, device, METHOD, request.model_dump(mode="json"))
    try:
        answer = SnapshotAnswer.model_validate(result)
    except ValidationError as error:
        raise UnavailableError(f"{device} answered without a picture: {error.errors(include_url=False)[0]['msg']}.") from None
    return Snapshot(answer.picture(), answer.width, answer.height, from_unix_ms(answer.at))


def _check_site(rule: ConsentRule, site: str) -> None:
    if rule is ConsentRule.ALLOW:
        return
    text = "sends minimized pictures only, and this is none" if rule is ConsentRule.MINIMIZED else "lets no picture out"
    raise ForbiddenError(
        f"The site {site or '(none)'} {text}.",
        hint=f"An administrator may allow it if that is agreed there: mooring site set {site or 'SITE'} --consent allow --reason …",
    )
