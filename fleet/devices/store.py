"""The only SQL about devices, groups, sites, invitations and desired twins: one function per question."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.devices.model import (
    ConfigPatch,
    Consented,
    ConsentRule,
    Device,
    DeviceFilter,
    DeviceIdentity,
    DeviceState,
    DeviceType,
    EnrollmentToken,
    Group,
    Pipeline,
    PipelineSpec,
    Site,
    Twin,
)
from protocol.errors import ConflictError, NotFoundError, StaleRevisionError
from protocol.ids import DeviceId, DeviceTypeName, GroupName, PipelineName, SiteName, TenantId

sites = sa.Table(
    "sites",
    db.metadata,
    db.tenant_column(),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("time_zone", sa.String(64), nullable=False),
    sa.Column("consent", sa.String(16), nullable=False),
    sa.Column("bandwidth_kbit_s", sa.BigInteger),
    sa.Column("max_updating", sa.Integer),
    db.revision_column(),
)

groups = sa.Table(
    "groups",
    db.metadata,
    db.tenant_column(),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("site", sa.String(63)),
    sa.Column("config", db.json_type, nullable=False),
    db.revision_column(),
    sa.ForeignKeyConstraint(["tenant", "site"], ["sites.tenant", "sites.name"]),
)

device_types = sa.Table(
    "device_types",
    db.metadata,
    db.tenant_column(),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    db.revision_column(),
)

devices = sa.Table(
    "devices",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("device_type", sa.String(63), nullable=False),
    sa.Column("group_name", sa.String(63), nullable=False),
    sa.Column("site", sa.String(63)),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("labels", db.json_type, nullable=False),
    sa.Column("hardware", db.json_type, nullable=False),
    sa.Column("agent_version", sa.String(200), nullable=False),
    sa.Column("public_key", sa.Text, nullable=False),
    sa.Column("sealing_key", sa.String(64), nullable=False),
    sa.Column("serial", sa.String(50), nullable=False),
    sa.Column("certificate_ends_at", db.utc, nullable=False),
    sa.Column("trust_digest", sa.String(64), nullable=False),
    # a renewed certificate that was not yet used; only its first use makes it the one above
    sa.Column("pending_serial", sa.String(50)),
    sa.Column("pending_public_key", sa.Text),
    sa.Column("pending_ends_at", db.utc),
    sa.Column("pending_trust_digest", sa.String(64)),
    sa.Column("enrolled_at", db.utc, nullable=False),
    db.revision_column(),
    # a device id is certificate name, MQTT user name and client id: unique over all tenants
    sa.UniqueConstraint("device"),
    sa.ForeignKeyConstraint(["tenant", "group_name"], ["groups.tenant", "groups.name"]),
    sa.ForeignKeyConstraint(["tenant", "device_type"], ["device_types.tenant", "device_types.name"]),
    sa.ForeignKeyConstraint(["tenant", "site"], ["sites.tenant", "sites.name"]),
    sa.Index("ix_devices_group_name", "tenant", "group_name", "device"),
    sa.Index("ix_devices_site", "tenant", "site", "device"),
)

revoked_certificates = sa.Table(
    "revoked_certificates",
    db.metadata,
    db.tenant_column(),
    sa.Column("serial", sa.String(50), primary_key=True),
    sa.Column("device", sa.String(63), nullable=False),
    sa.Column("revoked_at", db.utc, nullable=False),
    sa.Column("ends_at", db.utc, nullable=False),
)

enrollment_tokens = sa.Table(
    "enrollment_tokens",
    db.metadata,
    db.tenant_column(),
    sa.Column("token_id", sa.String(63), primary_key=True),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    sa.Column("group_name", sa.String(63), nullable=False),
    sa.Column("device_type", sa.String(63), nullable=False),
    sa.Column("device", sa.String(63)),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("expires_at", db.utc, nullable=False),
    sa.Column("used_at", db.utc),
    sa.Column("used_by", sa.String(63)),
    sa.ForeignKeyConstraint(["tenant", "group_name"], ["groups.tenant", "groups.name"]),
    sa.ForeignKeyConstraint(["tenant", "device_type"], ["device_types.tenant", "device_types.name"]),
)

twins = sa.Table(
    "twins",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("config", db.json_type, nullable=False),
    sa.Column("desired_rev", sa.BigInteger, nullable=False),
    # canonical JSON as text: equal configs are equal bytes
    sa.Column("desired", sa.Text, nullable=False),
    sa.Column("manifest_url", sa.String(200)),
    sa.Column("manifest_sha256", sa.String(71)),
    sa.Column("spread_s", sa.Integer, nullable=False),
    # per line: what was said at the console about which assignment
    sa.Column("consents", db.json_type, nullable=False),
    sa.Column("updated_at", db.utc, nullable=False),
    db.revision_column(),
    sa.ForeignKeyConstraint(["tenant", "device"], ["devices.tenant", "devices.device"]),
)

pipelines = sa.Table(
    "pipelines",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("line", sa.String(63), nullable=False),
    sa.Column("spec", db.json_type, nullable=False),
    db.revision_column(),
    sa.ForeignKeyConstraint(["tenant", "device"], ["devices.tenant", "devices.device"]),
    sa.Index("ix_pipelines_line", "tenant", "line", "device"),
)

device_secrets = sa.Table(
    "device_secrets",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    # sealed to the device's own key: only the device can open it
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("updated_at", db.utc, nullable=False),
    db.revision_column(),
    sa.ForeignKeyConstraint(["tenant", "device"], ["devices.tenant", "devices.device"]),
)

# --- sites, groups, device types ---


def list_sites(tx: db.Connection, tenant: TenantId) -> list[Site]:
    """All sites by name."""
    return [_site(row) for row in tx.execute(sa.select(sites).where(sites.c.tenant == tenant).order_by(sites.c.name))]


def get_site(tx: db.Connection, tenant: TenantId, name: SiteName) -> Site:
    """The site. Raises: NotFoundError."""
    row = tx.execute(sa.select(sites).where(sites.c.tenant == tenant, sites.c.name == name)).one_or_none()
    return _site(_found(row, "site", name))


def insert_site(tx: db.Connection, site: Site) -> None:
    """Keep a new site. Raises: ConflictError when the name is taken."""
    _insert_new(tx, sites, {"tenant": site.tenant, "name": site.name, **_site_values(site)}, "Site", site.name)


def save_site(tx: db.Connection, site: Site) -> Site:
    """Keep the changed site under the next revision. Raises: StaleRevisionError when somebody was faster."""
    _save(tx, sites, {"tenant": site.tenant, "name": site.name}, _site_values(site), site.revision)
    return replace(site, revision=site.revision + 1)


def list_groups(tx: db.Connection, tenant: TenantId) -> list[Group]:
    """All groups by name."""
    return [_group(row) for row in tx.execute(sa.select(groups).where(groups.c.tenant == tenant).order_by(groups.c.name))]


def get_group(tx: db.Connection, tenant: TenantId, name: GroupName, *, is_held: bool = False) -> Group:
    """The group; `is_held` keeps others from changing it until this transaction ends. Raises: NotFoundError."""
    statement = sa.select(groups).where(groups.c.tenant == tenant, groups.c.name == name)
    row = tx.execute(statement.with_for_update(read=True) if is_held else statement).one_or_none()
    return _group(_found(row, "group", name))


def insert_group(tx: db.Connection, group: Group) -> None:
    """Keep a new group. Raises: ConflictError when the name is taken."""
    _insert_new(tx, groups, {"tenant": group.tenant, "name": group.name, **_group_values(group)}, "Group", group.name)


def save_group(tx: db.Connection, group: Group) -> Group:
    """Keep the changed group under the next revision. Raises: StaleRevisionError when somebody was faster."""
    _save(tx, groups, {"tenant": group.tenant, "name": group.name}, _group_values(group), group.revision)
    return replace(group, revision=group.revision + 1)


def delete_group(tx: db.Connection, tenant: TenantId, name: GroupName) -> None:
    """Forget a group and its invitations; the caller made sure that it has no devices."""
    tx.execute(sa.delete(enrollment_tokens).where(enrollment_tokens.c.tenant == tenant, enrollment_tokens.c.group_name == name))
    tx.execute(sa.delete(groups).where(groups.c.tenant == tenant, groups.c.name == name))


def count_by_group(tx: db.Connection, tenant: TenantId) -> dict[GroupName, int]:
    """How many enrolled devices each group has; groups without any are absent."""
    is_counted = (devices.c.tenant == tenant, devices.c.state == str(DeviceState.ENROLLED))
    statement = sa.select(devices.c.group_name, sa.func.count()).where(*is_counted).group_by(devices.c.group_name)
    return {GroupName(name): count for name, count in tx.execute(statement)}


def list_device_types(tx: db.Connection, tenant: TenantId) -> list[DeviceType]:
    """All device types by name."""
    statement = sa.select(device_types).where(device_types.c.tenant == tenant).order_by(device_types.c.name)
    return [DeviceType(row.tenant, row.name, row.description, row.revision) for row in tx.execute(statement)]


def get_device_type(tx: db.Connection, tenant: TenantId, name: DeviceTypeName) -> DeviceType:
    """The device type. Raises: NotFoundError naming those there are."""
    known = {one.name: one for one in list_device_types(tx, tenant)}
    if name not in known:
        raise NotFoundError(f"There is no device type {name!r}.", hint=f"Known: {', '.join(known) or 'none yet'}.")
    return known[name]


def insert_device_type(tx: db.Connection, device_type: DeviceType) -> None:
    """Keep a new device type. Raises: ConflictError when the name is taken."""
    row = {"tenant": device_type.tenant, "name": device_type.name, "description": device_type.description}
    _insert_new(tx, device_types, row, "Device type", device_type.name)


# --- devices ---


def find_device(tx: db.Connection, tenant: TenantId, device: DeviceId, *, is_held: bool = False) -> Device | None:
    """The device of this tenant, or None; `is_held` keeps others from changing it until this transaction ends."""
    statement = sa.select(devices).where(devices.c.tenant == tenant, devices.c.device == device)
    row = tx.execute(statement.with_for_update() if is_held else statement).one_or_none()
    return _device(row) if row else None


def get_device(tx: db.Connection, tenant: TenantId, device: DeviceId, *, is_held: bool = False) -> Device:
    """The device of this tenant. Raises: NotFoundError, also for another tenant's."""
    found = find_device(tx, tenant, device, is_held=is_held)
    if found is None:
        raise NotFoundError(f"There is no device {device!r}.")
    return found


def list_devices(
    tx: db.Connection, tenant: TenantId, *, matching: DeviceFilter | None = None, after: DeviceId | None = None, limit: int = 50
) -> list[Device]:
    """Devices by id, those after `after`."""
    statement = sa.select(devices).where(*_matches(tenant, matching or DeviceFilter())).order_by(devices.c.device).limit(limit)
    if after is not None:
        statement = statement.where(devices.c.device > after)
    return [_device(row) for row in tx.execute(statement)]


def count_devices(tx: db.Connection, tenant: TenantId, matching: DeviceFilter | None = None) -> int:
    """How many devices match."""
    statement = sa.select(sa.func.count()).select_from(devices).where(*_matches(tenant, matching or DeviceFilter()))
    return int(tx.scalar(statement) or 0)


def insert_device(tx: db.Connection, device: Device) -> bool:
    """Keep a new device; returns False, changing nothing, when its id is taken by any tenant."""
    row = {"tenant": device.tenant, "device": device.device, **_device_values(device)}
    return db.insert_ignore(tx, devices, row) == 1


def save_device(tx: db.Connection, device: Device) -> Device:
    """Keep the changed device under the next revision. Raises: StaleRevisionError when somebody was faster."""
    _save(tx, devices, {"tenant": device.tenant, "device": device.device}, _device_values(device), device.revision)
    return replace(device, revision=device.revision + 1)


def put_pending_certificate(
    tx: db.Connection, device: Device, *, serial: str, public_key: str, ends_at: datetime, trust_digest: str
) -> None:
    """Remember a renewed certificate until its first use."""
    values = {
        "pending_serial": serial,
        "pending_public_key": public_key,
        "pending_ends_at": ends_at,
        "pending_trust_digest": trust_digest,
    }
    tx.execute(sa.update(devices).where(devices.c.tenant == device.tenant, devices.c.device == device.device).values(values))


def promote_pending_certificate(tx: db.Connection, device: Device) -> str:
    """Make the renewed certificate the one in use; returns the key that the device signs with from now on."""
    is_it = (devices.c.tenant == device.tenant, devices.c.device == device.device)
    columns = {
        "serial": devices.c.pending_serial,
        "public_key": devices.c.pending_public_key,
        "certificate_ends_at": devices.c.pending_ends_at,
        "trust_digest": devices.c.pending_trust_digest,
    }
    row = tx.execute(sa.select(*(column.label(name) for name, column in columns.items())).where(*is_it)).one()
    none = dict.fromkeys(column.name for column in columns.values())
    tx.execute(sa.update(devices).where(*is_it).values({**row._mapping, **none}))  # noqa: SLF001 - SQLAlchemy's public name for it
    return str(row.public_key)


def count_by_trust(tx: db.Connection) -> dict[str, int]:
    """How many devices of all tenants, revoked ones left out, have a certificate of which `trust_digest`."""
    statement = sa.select(devices.c.trust_digest, sa.func.count()).where(devices.c.state != str(DeviceState.REVOKED))
    return {str(row[0]): int(row[1]) for row in tx.execute(statement.group_by(devices.c.trust_digest))}


def list_by_trust(tx: db.Connection, *, unlike: str, limit: int) -> list[DeviceId]:
    """Devices, revoked ones left out, whose certificate is of another `trust_digest`; the first ones by name."""
    statement = sa.select(devices.c.device).where(devices.c.state != str(DeviceState.REVOKED), devices.c.trust_digest != unlike)
    return [DeviceId(name) for name in tx.scalars(statement.order_by(devices.c.device).limit(limit))]


def find_identity(tx: db.Connection, device: DeviceId) -> tuple[DeviceIdentity, DeviceState, str, str | None] | None:
    """Who has this certificate name: identity, state, serial in use, serial pending; None when nobody. One indexed read."""
    columns = devices.c
    statement = (
        sa.select(
            columns.tenant,
            columns.device,
            columns.device_type,
            columns.group_name,
            columns.public_key,
            columns.state,
            columns.serial,
            columns.pending_serial,
            twins.c.desired_rev,
        )
        .join(twins, sa.and_(twins.c.tenant == columns.tenant, twins.c.device == columns.device))
        .where(columns.device == device)
    )
    row = tx.execute(statement).one_or_none()
    if row is None:
        return None
    identity = DeviceIdentity(row.tenant, row.device, row.device_type, row.group_name, row.public_key, row.desired_rev)
    return identity, DeviceState(row.state), row.serial, row.pending_serial


def find_tenant_of(tx: db.Connection, device: DeviceId) -> TenantId | None:
    """The tenant of an enrolled device, or None: for ingest, which knows a device by its certificate name alone."""
    is_enrolled = (devices.c.device == device, devices.c.state == str(DeviceState.ENROLLED))
    found = tx.scalar(sa.select(devices.c.tenant).where(*is_enrolled))
    return TenantId(found) if found is not None else None


def filter_enrolled(tx: db.Connection, wanted: Iterable[tuple[TenantId, DeviceId]]) -> set[tuple[TenantId, DeviceId]]:
    """Those of the (tenant, device) pairs that are enrolled: one read per 500 for a batch of ingest."""
    pairs, names = set(wanted), sorted({device for _, device in wanted})
    found: set[tuple[TenantId, DeviceId]] = set()
    for start in range(0, len(names), 500):
        part = names[start : start + 500]
        statement = sa.select(devices.c.tenant, devices.c.device).where(
            devices.c.device.in_(part), devices.c.state == str(DeviceState.ENROLLED)
        )
        found |= {(TenantId(tenant), DeviceId(device)) for tenant, device in tx.execute(statement)} & pairs
    return found


def add_revoked(tx: db.Connection, device: Device, serials: Iterable[str], *, now: datetime) -> None:
    """Remember certificates of the device that are no longer valid, until the last of them would have ended."""
    ends_at = max(device.certificate_ends_at, device.pending_ends_at or device.certificate_ends_at)
    rows = [
        {"tenant": device.tenant, "serial": serial, "device": device.device, "revoked_at": now, "ends_at": ends_at} for serial in serials
    ]
    db.insert_ignore(tx, revoked_certificates, rows)


def list_revoked(tx: db.Connection, *, now: datetime) -> list[tuple[str, datetime]]:
    """Serials of all tenants that are revoked and would still be valid, with the moment: what the broker's list needs."""
    statement = sa.select(revoked_certificates.c.serial, revoked_certificates.c.revoked_at).where(revoked_certificates.c.ends_at > now)
    return [(serial, at) for serial, at in tx.execute(statement.order_by(revoked_certificates.c.serial))]


# --- invitations ---


def insert_token(tx: db.Connection, token: EnrollmentToken) -> None:
    """Keep a new invitation."""
    row = {
        "tenant": token.tenant,
        "token_id": token.token_id,
        "secret_sha256": token.secret_sha256,
        "group_name": token.group,
        "device_type": token.device_type,
        "device": token.device,
        "created_by": token.created_by,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
    }
    tx.execute(sa.insert(enrollment_tokens), row)


def find_token(tx: db.Connection, tenant: TenantId, token_id: str) -> EnrollmentToken | None:
    """The invitation, held until this transaction ends, or None."""
    is_it = (enrollment_tokens.c.tenant == tenant, enrollment_tokens.c.token_id == token_id)
    row = tx.execute(sa.select(enrollment_tokens).where(*is_it).with_for_update()).one_or_none()
    return _token(row) if row else None


def use_token(tx: db.Connection, token: EnrollmentToken, device: DeviceId, *, now: datetime) -> bool:
    """Mark the invitation used by the device; returns False, changing nothing, when somebody used it before."""
    is_free = (
        enrollment_tokens.c.tenant == token.tenant,
        enrollment_tokens.c.token_id == token.token_id,
        enrollment_tokens.c.used_at.is_(None),
    )
    return tx.execute(sa.update(enrollment_tokens).where(*is_free).values(used_at=now, used_by=device)).rowcount == 1


def delete_token(tx: db.Connection, tenant: TenantId, token_id: str) -> bool:
    """Forget an invitation that nobody used; returns whether there was one."""
    is_it = (enrollment_tokens.c.tenant == tenant, enrollment_tokens.c.token_id == token_id, enrollment_tokens.c.used_at.is_(None))
    return tx.execute(sa.delete(enrollment_tokens).where(*is_it)).rowcount == 1


def list_tokens(tx: db.Connection, tenant: TenantId, *, limit: int = 50) -> list[EnrollmentToken]:
    """The newest invitations first."""
    statement = sa.select(enrollment_tokens).where(enrollment_tokens.c.tenant == tenant)
    ordered = statement.order_by(enrollment_tokens.c.created_at.desc(), enrollment_tokens.c.token_id).limit(limit)
    return [_token(row) for row in tx.execute(ordered)]


def count_open_tokens(tx: db.Connection, tenant: TenantId, *, now: datetime) -> int:
    """How many invitations could still be used."""
    is_open = (enrollment_tokens.c.tenant == tenant, enrollment_tokens.c.used_at.is_(None), enrollment_tokens.c.expires_at > now)
    return int(tx.scalar(sa.select(sa.func.count()).select_from(enrollment_tokens).where(*is_open)) or 0)


# --- twins ---


def get_twin(tx: db.Connection, tenant: TenantId, device: DeviceId, *, is_held: bool = False) -> Twin:
    """The device's twin; `is_held` keeps others from composing it until this transaction ends. Raises: NotFoundError."""
    statement = sa.select(twins).where(twins.c.tenant == tenant, twins.c.device == device)
    row = tx.execute(statement.with_for_update() if is_held else statement).one_or_none()
    return _twin(_found(row, "device", device))


def find_desired_rev(tx: db.Connection, tenant: TenantId, device: DeviceId) -> int | None:
    """The revision of the desired twin, or None: one indexed read."""
    return tx.scalar(sa.select(twins.c.desired_rev).where(twins.c.tenant == tenant, twins.c.device == device))


def put_twin(tx: db.Connection, twin: Twin) -> None:
    """Keep the twin as given; the caller holds it."""
    row = {
        "tenant": twin.tenant,
        "device": twin.device,
        "config": twin.config.model_dump(mode="json", exclude_defaults=True),
        "desired_rev": twin.desired_rev,
        "desired": twin.desired,
        "manifest_url": twin.manifest_url,
        "manifest_sha256": twin.manifest_sha256,
        "spread_s": twin.spread_s,
        "consents": {line: {"assignment": one.assignment, "given": one.is_given} for line, one in twin.consents.items()},
        "updated_at": twin.updated_at,
        "revision": twin.revision,
    }
    db.upsert(tx, twins, row)


def list_pipelines(tx: db.Connection, tenant: TenantId, device: DeviceId) -> list[Pipeline]:
    """The device's own pipelines in their order."""
    statement = sa.select(pipelines).where(pipelines.c.tenant == tenant, pipelines.c.device == device).order_by(pipelines.c.position)
    return [
        Pipeline(row.tenant, row.device, PipelineName(row.name), row.position, PipelineSpec.model_validate(row.spec), row.revision)
        for row in tx.execute(statement)
    ]


def list_pipelines_of(tx: db.Connection, tenant: TenantId, names: Iterable[DeviceId]) -> dict[DeviceId, list[PipelineSpec]]:
    """The own pipelines of several devices in their order; devices without any are absent."""
    found: dict[DeviceId, list[PipelineSpec]] = {}
    statement = sa.select(pipelines).where(pipelines.c.tenant == tenant, pipelines.c.device.in_(list(names)))
    for row in tx.execute(statement.order_by(pipelines.c.device, pipelines.c.position)):
        found.setdefault(row.device, []).append(PipelineSpec.model_validate(row.spec))
    return found


def list_devices_of_line(tx: db.Connection, tenant: TenantId, line: str) -> list[DeviceId]:
    """Devices with a pipeline of their own that runs the model line."""
    statement = sa.select(pipelines.c.device).where(pipelines.c.tenant == tenant, pipelines.c.line == line).distinct()
    return [DeviceId(device) for device in tx.scalars(statement.order_by(pipelines.c.device))]


def replace_pipelines(tx: db.Connection, tenant: TenantId, device: DeviceId, specs: Iterable[PipelineSpec]) -> None:
    """Make the list exactly this; a pipeline that stays as it was keeps its revision."""
    before = {pipeline.name: pipeline for pipeline in list_pipelines(tx, tenant, device)}
    tx.execute(sa.delete(pipelines).where(pipelines.c.tenant == tenant, pipelines.c.device == device))
    rows = []
    for position, spec in enumerate(specs):
        old = before.get(PipelineName(spec.name))
        is_same = old is not None and (old.spec, old.position) == (spec, position)
        revision = 1 if old is None else old.revision + (0 if is_same else 1)
        document = spec.model_dump(mode="json", exclude_none=True)
        key = {"tenant": tenant, "device": device, "name": spec.name}
        rows.append({**key, "position": position, "line": spec.line, "spec": document, "revision": revision})
    if rows:
        tx.execute(sa.insert(pipelines), rows)


def list_secrets(tx: db.Connection, tenant: TenantId, device: DeviceId) -> dict[str, str]:
    """Name and sealed text of the device's secrets."""
    statement = sa.select(device_secrets.c.name, device_secrets.c.sealed)
    mine = statement.where(device_secrets.c.tenant == tenant, device_secrets.c.device == device).order_by(device_secrets.c.name)
    return {name: sealed for name, sealed in tx.execute(mine)}  # noqa: C416 - rows are no tuples to mypy


def put_secret(tx: db.Connection, tenant: TenantId, device: DeviceId, name: str, sealed: str, *, now: datetime) -> None:
    """Keep the sealed secret in place of an older one of the name."""
    old = sa.select(device_secrets.c.revision).where(
        device_secrets.c.tenant == tenant, device_secrets.c.device == device, device_secrets.c.name == name
    )
    revision = (tx.scalar(old) or 0) + 1
    row = {"tenant": tenant, "device": device, "name": name, "sealed": sealed, "updated_at": now, "revision": revision}
    db.upsert(tx, device_secrets, row)


def delete_secrets(tx: db.Connection, tenant: TenantId, device: DeviceId, name: str | None = None) -> int:
    """Forget one secret of the device, or all; returns how many."""
    statement = sa.delete(device_secrets).where(device_secrets.c.tenant == tenant, device_secrets.c.device == device)
    return tx.execute(statement if name is None else statement.where(device_secrets.c.name == name)).rowcount


# --- rows ---


def _insert_new(tx: db.Connection, table: sa.Table, row: Mapping[str, Any], what: str, name: str) -> None:
    if db.insert_ignore(tx, table, row) == 0:
        raise ConflictError(f"{what} {name!r} exists already.")


def _save(tx: db.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any], revision: int) -> None:
    is_it = [table.c[name] == value for name, value in key.items()]
    statement = sa.update(table).where(*is_it, table.c.revision == revision).values({**values, "revision": revision + 1})
    if tx.execute(statement).rowcount != 1:
        raise StaleRevisionError(f"{table.name} {list(key.values())[-1]!r} is no longer at revision {revision}.", hint="Read it again.")


def _found(row: Any, what: str, name: str) -> Any:
    if row is None:
        raise NotFoundError(f"There is no {what} {name!r}.")
    return row


def _matches(tenant: TenantId, wanted: DeviceFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = [devices.c.tenant == tenant]
    if wanted.group is not None:
        found.append(devices.c.group_name == wanted.group)
    if wanted.device_type is not None:
        found.append(devices.c.device_type == wanted.device_type)
    if wanted.site is not None:
        found.append(devices.c.site == wanted.site)
    if wanted.state is not None:
        found.append(devices.c.state == str(wanted.state))
    if wanted.text is not None:
        found.append(devices.c.device.contains(wanted.text, autoescape=True))
    found.extend(devices.c.labels[name].as_string() == value for name, value in wanted.labels.items())
    return found


def _site(row: Any) -> Site:
    return Site(
        row.tenant,
        SiteName(row.name),
        row.time_zone,
        ConsentRule(row.consent),
        row.bandwidth_kbit_s,
        row.max_updating,
        row.revision,
    )


def _site_values(site: Site) -> dict[str, Any]:
    return {
        "time_zone": site.time_zone,
        "consent": str(site.consent),
        "bandwidth_kbit_s": site.bandwidth_kbit_s,
        "max_updating": site.max_updating,
    }


def _group(row: Any) -> Group:
    return Group(row.tenant, GroupName(row.name), row.description, row.site, ConfigPatch.model_validate(row.config), row.revision)


def _group_values(group: Group) -> dict[str, Any]:
    return {
        "description": group.description,
        "site": group.site,
        "config": group.config.model_dump(mode="json", exclude_defaults=True),
    }


def _device(row: Any) -> Device:
    return Device(
        tenant=row.tenant,
        device=row.device,
        device_type=row.device_type,
        group=row.group_name,
        site=row.site,
        state=DeviceState(row.state),
        labels=row.labels,
        hardware=row.hardware,
        agent_version=row.agent_version,
        public_key=row.public_key,
        sealing_key=row.sealing_key,
        serial=row.serial,
        pending_serial=row.pending_serial,
        certificate_ends_at=row.certificate_ends_at,
        enrolled_at=row.enrolled_at,
        pending_ends_at=row.pending_ends_at,
        trust_digest=row.trust_digest,
        revision=row.revision,
    )


def _device_values(device: Device) -> dict[str, Any]:
    return {
        "device_type": device.device_type,
        "group_name": device.group,
        "site": device.site,
        "state": str(device.state),
        "labels": dict(device.labels),
        "hardware": dict(device.hardware),
        "agent_version": device.agent_version,
        "public_key": device.public_key,
        "sealing_key": device.sealing_key,
        "serial": device.serial,
        "pending_serial": device.pending_serial,
        "pending_ends_at": device.pending_ends_at,
        "certificate_ends_at": device.certificate_ends_at,
        "trust_digest": device.trust_digest,
        "enrolled_at": device.enrolled_at,
    }


def _token(row: Any) -> EnrollmentToken:
    return EnrollmentToken(
        tenant=row.tenant,
        token_id=row.token_id,
        secret_sha256=row.secret_sha256,
        group=row.group_name,
        device_type=row.device_type,
        device=row.device,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        used_by=row.used_by,
    )


def _twin(row: Any) -> Twin:
    return Twin(
        tenant=row.tenant,
        device=row.device,
        config=ConfigPatch.model_validate(row.config),
        revision=row.revision,
        desired_rev=row.desired_rev,
        desired=row.desired,
        manifest_url=row.manifest_url,
        manifest_sha256=row.manifest_sha256,
        updated_at=row.updated_at,
        spread_s=row.spread_s,
        consents={line: Consented(one["assignment"], one["given"]) for line, one in row.consents.items()},
    )


def load_desired(twin: Twin) -> dict[str, Any]:
    """The composed config of the twin as a document."""
    document: dict[str, Any] = json.loads(twin.desired)
    return document
