"""The only SQL about device configuration: sections, releases, their files and signing requests, attempts."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.configurations.model import (
    OPEN_STATES,
    ConfigurationRelease,
    GroupFile,
    ReleaseState,
    Scope,
    Section,
    SigningRequest,
)
from protocol.errors import NotFoundError, StaleRevisionError
from protocol.ids import DeviceId, Digest, GroupName, TenantId

configuration_sections = sa.Table(
    "configuration_sections",
    db.metadata,
    db.tenant_column(),
    sa.Column("scope", sa.String(16), primary_key=True),
    # group or device; empty for the fleet
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("settings", db.json_type, nullable=False),
    sa.Column("changed_by", sa.String(220), nullable=False),
    sa.Column("changed_at", db.utc, nullable=False),
    db.revision_column(),
)

configuration_releases = sa.Table(
    "configuration_releases",
    db.metadata,
    db.tenant_column(),
    sa.Column("rev", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("content_digest", sa.String(71), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_by", sa.String(220), nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("approval", sa.String(63), nullable=False),
    sa.Column("published_at", db.utc),
    # what the policy key shall sign, what it signed before, and what it signed
    sa.Column("payload", sa.LargeBinary),
    sa.Column("previous", sa.LargeBinary),
    db.revision_column(),
    # the image repository is one: no two tenants share a target path
    sa.UniqueConstraint("rev"),
    sa.Index("ix_configuration_releases_state", "tenant", "state", "rev"),
)

configuration_files = sa.Table(
    "configuration_files",
    db.metadata,
    db.tenant_column(),
    sa.Column("rev", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("group_name", sa.String(63), primary_key=True),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(71), nullable=False),
    sa.ForeignKeyConstraint(["tenant", "rev"], ["configuration_releases.tenant", "configuration_releases.rev"]),
    sa.Index("ix_configuration_files_group_name", "tenant", "group_name", "rev"),
)

configuration_attempts = sa.Table(
    "configuration_attempts",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    # above what a device returned from: it tries again
    sa.Column("attempt", sa.BigInteger, nullable=False),
)


def has_file(tx: db.Connection, tenant: TenantId, digest: Digest) -> bool:
    """Whether a configuration of the tenant has these bytes."""
    is_it = (configuration_files.c.tenant == tenant, configuration_files.c.sha256 == digest)
    return bool(tx.scalar(sa.select(sa.exists().where(*is_it))))


# --- sections ---


def find_section(tx: db.Connection, tenant: TenantId, scope: Scope, name: str) -> Section:
    """The section; an empty one of revision 0 when nobody has written it."""
    table = configuration_sections
    is_it = (table.c.tenant == tenant, table.c.scope == str(scope), table.c.name == name)
    row = tx.execute(sa.select(table).where(*is_it)).mappings().one_or_none()
    return Section(tenant, scope, name) if row is None else _section(row)


def save_section(tx: db.Connection, section: Section) -> Section:
    """Keep the section under the next revision. Raises: StaleRevisionError when somebody was faster."""
    saved = replace(section, revision=section.revision + 1)
    if find_section(tx, section.tenant, section.scope, section.name).revision != section.revision:
        raise StaleRevisionError(f"{section.id} is no longer at revision {section.revision}.", hint="Read it again.")
    values = {
        "tenant": saved.tenant,
        "scope": str(saved.scope),
        "name": saved.name,
        "settings": dict(saved.settings),
        "changed_by": saved.changed_by,
        "changed_at": saved.changed_at,
        "revision": saved.revision,
    }
    db.upsert(tx, configuration_sections, values)
    return saved


def list_sections(tx: db.Connection, tenant: TenantId, scope: Scope, names: Collection[str] | None = None) -> dict[str, Section]:
    """All sections of the scope by name, or those with these names."""
    table = configuration_sections
    wanted = None if names is None else sorted(names)
    found: dict[str, Section] = {}
    for part in [None] if wanted is None else [wanted[start : start + 500] for start in range(0, len(wanted), 500)]:
        is_one = [table.c.tenant == tenant, table.c.scope == str(scope), *([] if part is None else [table.c.name.in_(part)])]
        found |= {row["name"]: _section(row) for row in tx.execute(sa.select(table).where(*is_one)).mappings()}
    return found


# --- releases ---


def take_rev(tx: db.Connection, *, above: int = 0) -> int:
    """The next revision of the server, higher than `above` too; others wait until this transaction ends."""
    db.lock(tx, "configuration-rev")
    return max(above, int(tx.scalar(sa.select(sa.func.max(configuration_releases.c.rev))) or 0)) + 1


def insert_release(tx: db.Connection, release: ConfigurationRelease) -> None:
    """Keep a new release with its files."""
    tx.execute(sa.insert(configuration_releases), {"tenant": release.tenant, "rev": release.rev, **_values(release)})
    rows = [
        {"tenant": release.tenant, "rev": release.rev, "group_name": file.group, "length": file.length, "sha256": file.sha256}
        for file in release.files
    ]
    tx.execute(sa.insert(configuration_files), rows)


def save_release(tx: db.Connection, release: ConfigurationRelease) -> ConfigurationRelease:
    """Keep the changed release under its next revision. Raises: StaleRevisionError when somebody was faster."""
    table = configuration_releases
    is_it = (table.c.tenant == release.tenant, table.c.rev == release.rev, table.c.revision == release.revision)
    values = {**_values(release), "revision": release.revision + 1}
    if tx.execute(sa.update(table).where(*is_it).values(values)).rowcount != 1:
        raise StaleRevisionError(f"Configuration {release.rev} is no longer at revision {release.revision}.", hint="Read it again.")
    return replace(release, revision=release.revision + 1)


def get_release(tx: db.Connection, tenant: TenantId, rev: int) -> ConfigurationRelease:
    """The release. Raises: NotFoundError."""
    found = _releases(tx, tenant, [configuration_releases.c.rev == rev], 1)
    if not found:
        raise NotFoundError(f"There is no configuration {rev}.", hint="See: mooring config history")
    return found[0]


def list_releases(tx: db.Connection, tenant: TenantId, *, group: GroupName | None = None, limit: int = 200) -> list[ConfigurationRelease]:
    """The newest first; those with a file of the group when one is named."""
    of_group = sa.select(configuration_files.c.rev).where(configuration_files.c.tenant == tenant, configuration_files.c.group_name == group)
    return _releases(tx, tenant, [] if group is None else [configuration_releases.c.rev.in_(of_group)], limit)


def list_open_releases(tx: db.Connection, tenant: TenantId) -> list[ConfigurationRelease]:
    """Those that are neither published nor over, the newest first."""
    return _releases(tx, tenant, [configuration_releases.c.state.in_(sorted(OPEN_STATES))], 1000)


def find_published(tx: db.Connection, tenant: TenantId, group: GroupName) -> tuple[int, GroupFile] | None:
    """The newest published file of the group with its revision: what its devices shall have. None: nothing was published."""
    files, releases = configuration_files, configuration_releases
    statement = (
        sa.select(files)
        .join(releases, sa.and_(files.c.tenant == releases.c.tenant, files.c.rev == releases.c.rev))
        .where(files.c.tenant == tenant, files.c.group_name == group, releases.c.state == str(ReleaseState.PUBLISHED))
        .order_by(files.c.rev.desc())
        .limit(1)
    )
    row = tx.execute(statement).mappings().one_or_none()
    return None if row is None else (row["rev"], _file(row))


# --- signing ---


def save_request(tx: db.Connection, tenant: TenantId, rev: int, *, payload: bytes, previous: bytes) -> None:
    """Put up what the policy key shall sign for the release, in place of what was there."""
    table = configuration_releases
    tx.execute(sa.update(table).where(table.c.tenant == tenant, table.c.rev == rev).values(payload=payload, previous=previous))


def find_request(tx: db.Connection, release: ConfigurationRelease) -> SigningRequest | None:
    """What waits for the policy key for an approved release; None in any other state."""
    table = configuration_releases
    is_it = (table.c.tenant == release.tenant, table.c.rev == release.rev)
    row = tx.execute(sa.select(table.c.payload, table.c.previous).where(*is_it)).one_or_none()
    if row is None or row.payload is None or release.state is not ReleaseState.APPROVED:
        return None
    return SigningRequest(release.rev, bytes(row.payload), bytes(row.previous), release.content_digest, release.approval)


# --- attempts ---


def attempt_of(tx: db.Connection, tenant: TenantId, device: DeviceId) -> int:
    """How often somebody offered the device again what it returned from."""
    table = configuration_attempts
    return int(tx.scalar(sa.select(table.c.attempt).where(table.c.tenant == tenant, table.c.device == device)) or 0)


def save_attempt(tx: db.Connection, tenant: TenantId, device: DeviceId, attempt: int) -> None:
    """Offer with this attempt from now on."""
    db.upsert(tx, configuration_attempts, {"tenant": tenant, "device": device, "attempt": attempt})


# --- rows ---


def _releases(
    tx: db.Connection, tenant: TenantId, conditions: Collection[sa.ColumnElement[bool]], limit: int
) -> list[ConfigurationRelease]:
    releases, files = configuration_releases, configuration_files
    statement = sa.select(releases).where(releases.c.tenant == tenant, *conditions).order_by(releases.c.rev.desc()).limit(limit)
    rows = list(tx.execute(statement).mappings())
    revs = [row["rev"] for row in rows]
    of: dict[int, list[GroupFile]] = {rev: [] for rev in revs}
    for start in range(0, len(revs), 500):
        is_one = (files.c.tenant == tenant, files.c.rev.in_(revs[start : start + 500]))
        for row in tx.execute(sa.select(files).where(*is_one).order_by(files.c.group_name)).mappings():
            of[row["rev"]].append(_file(row))
    return [_release(row, tuple(of[row["rev"]])) for row in rows]


def _values(release: ConfigurationRelease) -> dict[str, Any]:
    return {
        "state": str(release.state),
        "content_digest": release.content_digest,
        "reason": release.reason,
        "created_by": release.created_by,
        "created_at": release.created_at,
        "approval": release.approval,
        "published_at": release.published_at,
    }


def _release(row: Mapping[Any, Any], files: tuple[GroupFile, ...]) -> ConfigurationRelease:
    published: datetime | None = row["published_at"]
    return ConfigurationRelease(
        tenant=TenantId(row["tenant"]),
        rev=row["rev"],
        state=ReleaseState(row["state"]),
        files=files,
        content_digest=Digest(row["content_digest"]),
        reason=row["reason"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        approval=row["approval"],
        published_at=published,
        revision=row["revision"],
    )


def _file(row: Mapping[Any, Any]) -> GroupFile:
    return GroupFile(GroupName(row["group_name"]), row["length"], Digest(row["sha256"]))


def _section(row: Mapping[Any, Any]) -> Section:
    settings = row["settings"]
    return Section(
        tenant=TenantId(row["tenant"]),
        scope=Scope(row["scope"]),
        name=row["name"],
        settings=json.loads(settings) if isinstance(settings, str) else settings,
        changed_by=row["changed_by"],
        changed_at=row["changed_at"],
        revision=row["revision"],
    )
