"""What people do with devices: look, label, move, revoke. Invitations and enrollment are in enrollment.py, twins in twins.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fleet import audit, db
from fleet.audit import Actor
from fleet.devices import store, twins
from fleet.devices.model import Device, DeviceFilter, DeviceState, Pipeline, Twin, parse_labels
from protocol.errors import ConflictError, InvalidError
from protocol.ids import DeviceId, GroupName, SiteName, TenantId

#: What else follows for changed devices, in the transaction of the change.
OnChanged = Callable[[db.Connection, TenantId, Sequence[DeviceId]], None]


@dataclass(frozen=True, slots=True)
class DeviceDetail:
    """One device with what it should be like; secrets by name only."""

    device: Device
    twin: Twin
    pipelines: tuple[Pipeline, ...]
    secret_names: tuple[str, ...]


def list_devices(
    database: db.Database, tenant: TenantId, *, matching: DeviceFilter | None = None, after: DeviceId | None = None, limit: int = 50
) -> list[Device]:
    """Devices by id, those after `after`."""
    with database.reading() as tx:
        return store.list_devices(tx, tenant, matching=matching, after=after, limit=limit)


def count_devices(database: db.Database, tenant: TenantId, matching: DeviceFilter | None = None) -> int:
    """How many devices match."""
    with database.reading() as tx:
        return store.count_devices(tx, tenant, matching)


def get_device(database: db.Database, tenant: TenantId, device: DeviceId) -> Device:
    """The device. Raises: NotFoundError, also for another tenant's."""
    with database.reading() as tx:
        return store.get_device(tx, tenant, device)


def get_detail(database: db.Database, tenant: TenantId, device: DeviceId) -> DeviceDetail:
    """The device with its twin, pipelines and the names of its secrets. Raises: NotFoundError."""
    with database.reading() as tx:
        return DeviceDetail(
            store.get_device(tx, tenant, device),
            store.get_twin(tx, tenant, device),
            tuple(store.list_pipelines(tx, tenant, device)),
            tuple(store.list_secrets(tx, tenant, device)),
        )


def set_labels(
    database: db.Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    labels: Mapping[str, str],
    by: Actor,
    now: datetime,
    expected_revision: int | None = None,
    reason: str = "",
) -> Device:
    """Make these the device's labels. Raises: NotFoundError; StaleRevisionError; InvalidError."""
    checked = parse_labels(dict(labels))
    return _change(
        database, tenant, device, {"labels": checked}, "device.labels-changed", by, now, expected_revision, reason, {"labels": checked}
    )


def move_device(
    database: db.Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    by: Actor,
    now: datetime,
    group: GroupName | None = None,
    site: SiteName | None = None,
    expected_revision: int | None = None,
    reason: str = "",
    on_changed: OnChanged | None = None,
) -> Device:
    """Put the device into another group, at another site, or both; its twin follows, and `on_changed` what the director says to it.

    Raises: NotFoundError; StaleRevisionError; InvalidError when neither is named.
    """
    changes = {name: value for name, value in (("group", group), ("site", site)) if value is not None}
    if not changes:
        raise InvalidError("Neither a group nor a site to move to was named.")
    return _change(database, tenant, device, changes, "device.moved", by, now, expected_revision, reason, dict(changes), on_changed)


def revoke_device(
    database: db.Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    by: Actor,
    now: datetime,
    expected_revision: int | None = None,
    reason: str = "",
) -> Device:
    """Refuse the device's certificates from now on; its history stays. Raises: NotFoundError; StaleRevisionError; ConflictError."""
    with database.transaction() as tx:
        before = store.get_device(tx, tenant, device, is_held=True)
        db.check_revision(before.revision, expected_revision, what=f"Device {device}")
        if before.state is DeviceState.REVOKED:
            raise ConflictError(f"Device {device!r} is revoked already.")
        store.add_revoked(tx, before, [serial for serial in (before.serial, before.pending_serial) if serial], now=now)
        saved = store.save_device(tx, replace(before, state=DeviceState.REVOKED, pending_serial=None, pending_ends_at=None))
        detail = {"serial": before.serial}
        audit.append(
            tx, tenant=tenant, actor=by, action="device.revoked", subject=f"device/{device}", now=now, reason=reason, detail=detail
        )
    return saved


def list_revoked_serials(database: db.Database, *, now: datetime) -> list[tuple[str, datetime]]:
    """What `Authority.revocation_list` takes: serials of all tenants that are no longer valid, with the moment."""
    with database.reading() as tx:
        return store.list_revoked(tx, now=now)


def _change(
    database: db.Database,
    tenant: TenantId,
    device: DeviceId,
    changes: Mapping[str, Any],
    action: str,
    by: Actor,
    now: datetime,
    expected_revision: int | None,
    reason: str,
    detail: Mapping[str, Any],
    on_changed: OnChanged | None = None,
) -> Device:
    with database.transaction() as tx:
        before = store.get_device(tx, tenant, device, is_held=True)
        db.check_revision(before.revision, expected_revision, what=f"Device {device}")
        if "group" in changes:
            store.get_group(tx, tenant, changes["group"], is_held=True)
        if "site" in changes:
            store.get_site(tx, tenant, changes["site"])
        saved = store.save_device(tx, replace(before, **changes))
        twins.refresh(tx, tenant, device, now=now)
        if on_changed is not None:
            on_changed(tx, tenant, [device])
        audit.append(tx, tenant=tenant, actor=by, action=action, subject=f"device/{device}", now=now, reason=reason, detail=detail)
    return saved
