"""Sites, groups and device types: where devices belong."""

import zoneinfo
from dataclasses import replace
from datetime import datetime
from typing import Any

from fleet import audit, db
from fleet.audit import Actor, ActorKind
from fleet.devices import store, twins
from fleet.devices.model import ConfigPatch, ConsentRule, DeviceFilter, DeviceType, Group, Site
from protocol.errors import ConflictError, InvalidError
from protocol.ids import DeviceTypeName, GroupName, SiteName, TenantId, check_name

DEFAULT_SITE, DEFAULT_GROUP = SiteName("default"), GroupName("default")
#: What a new tenant starts with; more are added by people.
FIRST_DEVICE_TYPES = {
    "linux-x86-64": "64-bit PC or server, glibc Linux",
    "linux-arm64": "64-bit ARM board, glibc Linux",
    "linux-armv7": "32-bit ARM board, glibc Linux",
}
MAX_DESCRIPTION_LENGTH = 2000
_SETUP = Actor(ActorKind.SERVICE, "setup")


def ensure_first(database: db.Database, *, tenant: TenantId, now: datetime) -> bool:
    """Give a tenant without any group its first site, group and device types; returns whether it needed them."""
    with database.transaction() as tx:
        db.lock(tx, f"setup/{tenant}")
        if store.list_groups(tx, tenant):
            return False
        store.insert_site(tx, Site(tenant, DEFAULT_SITE, "UTC", ConsentRule.DENY, None, None))
        store.insert_group(tx, Group(tenant, DEFAULT_GROUP, "Devices that nobody put elsewhere", DEFAULT_SITE, ConfigPatch()))
        for name, description in FIRST_DEVICE_TYPES.items():
            store.insert_device_type(tx, DeviceType(tenant, DeviceTypeName(name), description))
        detail = {"site": DEFAULT_SITE, "group": DEFAULT_GROUP, "device_types": list(FIRST_DEVICE_TYPES)}
        audit.append(tx, tenant=tenant, actor=_SETUP, action="tenant.created", subject=f"tenant/{tenant}", now=now, detail=detail)
    return True


def create_site(database: db.Database, *, site: Site, by: Actor, now: datetime, reason: str = "") -> Site:
    """Add the site. Raises: ConflictError when the name is taken; InvalidError."""
    _check_site(site)
    with database.transaction() as tx:
        store.insert_site(tx, replace(site, revision=1))
        _record(tx, site.tenant, "site.created", f"site/{site.name}", by, now, reason, _site_detail(site))
    return replace(site, revision=1)


def change_site(
    database: db.Database, *, site: Site, by: Actor, now: datetime, expected_revision: int | None = None, reason: str = ""
) -> Site:
    """Make the site of this name be as given. Raises: NotFoundError; StaleRevisionError; InvalidError."""
    _check_site(site)
    with database.transaction() as tx:
        before = store.get_site(tx, site.tenant, site.name)
        db.check_revision(before.revision, expected_revision, what=f"Site {site.name}")
        saved = store.save_site(tx, replace(site, revision=before.revision))
        _record(tx, site.tenant, "site.changed", f"site/{site.name}", by, now, reason, _site_detail(saved))
    return saved


def list_sites(database: db.Database, tenant: TenantId) -> list[Site]:
    """All sites by name."""
    with database.reading() as tx:
        return store.list_sites(tx, tenant)


def get_site(database: db.Database, tenant: TenantId, name: SiteName) -> Site:
    """The site. Raises: NotFoundError."""
    with database.reading() as tx:
        return store.get_site(tx, tenant, name)


def create_group(
    database: db.Database,
    *,
    tenant: TenantId,
    name: str,
    by: Actor,
    now: datetime,
    description: str = "",
    site: SiteName | None = DEFAULT_SITE,
    config: ConfigPatch | None = None,
    reason: str = "",
) -> Group:
    """Add a group. Raises: ConflictError when the name is taken; NotFoundError when the site is not there; InvalidError."""
    group = Group(tenant, GroupName(check_name(name, what="Group")), _checked_text(description), site, config or ConfigPatch())
    with database.transaction() as tx:
        if site is not None:
            store.get_site(tx, tenant, site)
        store.insert_group(tx, group)
        _record(tx, tenant, "group.created", f"group/{name}", by, now, reason, _group_detail(group))
    return group


def change_group(
    database: db.Database,
    *,
    tenant: TenantId,
    name: GroupName,
    by: Actor,
    now: datetime,
    description: str | None = None,
    site: SiteName | None = None,
    config: ConfigPatch | None = None,
    expected_revision: int | None = None,
    reason: str = "",
) -> Group:
    """Change what is not None; a new config reaches the twins of all its devices by a job.

    Raises: NotFoundError; StaleRevisionError; InvalidError.
    """
    with database.transaction() as tx:
        before = store.get_group(tx, tenant, name)
        db.check_revision(before.revision, expected_revision, what=f"Group {name}")
        if site is not None:
            store.get_site(tx, tenant, site)
        wanted = replace(
            before,
            description=before.description if description is None else _checked_text(description),
            site=before.site if site is None else site,
            config=before.config if config is None else config,
        )
        saved = store.save_group(tx, wanted)
        if saved.config != before.config:
            twins.queue_group(tx, saved, now=now)
        _record(tx, tenant, "group.changed", f"group/{name}", by, now, reason, _group_detail(saved))
    return saved


def delete_group(
    database: db.Database,
    *,
    tenant: TenantId,
    name: GroupName,
    by: Actor,
    now: datetime,
    expected_revision: int | None = None,
    reason: str = "",
) -> None:
    """Forget a group without devices, and its invitations. Raises: NotFoundError; StaleRevisionError; ConflictError while it has some."""
    with database.transaction() as tx:
        before = store.get_group(tx, tenant, name, is_held=True)
        db.check_revision(before.revision, expected_revision, what=f"Group {name}")
        count = store.count_devices(tx, tenant, DeviceFilter(group=name))
        if count:
            raise ConflictError(f"Group {name!r} has {count} devices.", hint="Move them to another group first.")
        store.delete_group(tx, tenant, name)
        _record(tx, tenant, "group.deleted", f"group/{name}", by, now, reason, {})


def list_groups(database: db.Database, tenant: TenantId) -> list[tuple[Group, int]]:
    """All groups by name, each with how many enrolled devices it has."""
    with database.reading() as tx:
        counts = store.count_by_group(tx, tenant)
        return [(group, counts.get(group.name, 0)) for group in store.list_groups(tx, tenant)]


def get_group(database: db.Database, tenant: TenantId, name: GroupName) -> Group:
    """The group. Raises: NotFoundError."""
    with database.reading() as tx:
        return store.get_group(tx, tenant, name)


def create_device_type(
    database: db.Database, *, tenant: TenantId, name: str, by: Actor, now: datetime, description: str = "", reason: str = ""
) -> DeviceType:
    """Add a device type. Raises: ConflictError when the name is taken; InvalidError."""
    made = DeviceType(tenant, DeviceTypeName(check_name(name, what="Device type")), _checked_text(description))
    with database.transaction() as tx:
        store.insert_device_type(tx, made)
        _record(tx, tenant, "device-type.created", f"device-type/{name}", by, now, reason, {"description": description})
    return made


def list_device_types(database: db.Database, tenant: TenantId) -> list[DeviceType]:
    """All device types by name."""
    with database.reading() as tx:
        return store.list_device_types(tx, tenant)


def _check_site(site: Site) -> None:
    check_name(site.name, what="Site")
    if site.time_zone != "UTC" and site.time_zone not in zoneinfo.available_timezones():
        raise InvalidError(f"Time zone {site.time_zone[:80]!r} is not known.", hint="Wanted: an IANA name such as Europe/Vienna.")
    for name in ("bandwidth_kbit_s", "max_updating"):
        value = getattr(site, name)
        if value is not None and not 0 < value < 2**31:
            raise InvalidError(f"{name} = {value} of site {site.name} is out of range; wanted at least 1, or none for no limit.")


def _checked_text(text: str) -> str:
    if len(text) > MAX_DESCRIPTION_LENGTH:
        raise InvalidError(f"A description of {len(text)} characters is too long; wanted at most {MAX_DESCRIPTION_LENGTH}.")
    return text


def _site_detail(site: Site) -> dict[str, Any]:
    return {
        "time_zone": site.time_zone,
        "consent": str(site.consent),
        "bandwidth_kbit_s": site.bandwidth_kbit_s,
        "max_updating": site.max_updating,
        "revision": site.revision,
    }


def _group_detail(group: Group) -> dict[str, Any]:
    config = group.config.model_dump(mode="json", exclude_defaults=True)
    return {"description": group.description, "site": group.site, "config": config, "revision": group.revision}


def _record(
    tx: db.Connection, tenant: TenantId, action: str, subject: str, by: Actor, now: datetime, reason: str, detail: dict[str, Any]
) -> None:
    audit.append(tx, tenant=tenant, actor=by, action=action, subject=subject, now=now, reason=reason, detail=detail)
