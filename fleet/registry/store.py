"""The only SQL about models, releases, signing requests, the director's signed metadata and deltas."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.registry.director import SignedOrder, VersionedRole
from fleet.registry.model import DeltaState, FileRef, Line, ModelVersion, Release, ReleaseDelta, ReleaseState, SigningRequest, Variant
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import DeviceId, DeviceTypeName, Digest, LineName, ReleaseVersion, TenantId

#: Versions of a device's metadata that stay to be fetched beside the newest one.
EARLIER_KEPT = 7

model_versions = sa.Table(
    "model_versions",
    db.metadata,
    db.tenant_column(),
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("golden", sa.Text, nullable=False),
    sa.Column("card", sa.Text, nullable=False),
    # empty: imported without evaluation data
    sa.Column("profile", sa.Text),
    # JSON documents as text: their bytes are shipped
    sa.Column("draft", sa.Text, nullable=False),
    sa.Column("tensors", sa.Text, nullable=False),
    sa.Column("device_types", sa.Text, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    db.revision_column(),
)

model_lines = sa.Table(
    "model_lines",
    db.metadata,
    db.tenant_column(),
    sa.Column("line", sa.String(63), primary_key=True),
    sa.Column("next_counter", sa.BigInteger, nullable=False),
    sa.Column("floor", sa.BigInteger, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    db.revision_column(),
)

releases = sa.Table(
    "releases",
    db.metadata,
    db.tenant_column(),
    sa.Column("line", sa.String(63), primary_key=True),
    sa.Column("version", sa.String(63), primary_key=True),
    sa.Column("counter", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("variants", sa.Text, nullable=False),
    sa.Column("content_digest", sa.String(71), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("approval", sa.String(63)),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("signed_at", db.utc),
    sa.Column("published_at", db.utc),
    db.revision_column(),
    sa.UniqueConstraint("tenant", "line", "counter"),
)

signing_requests = sa.Table(
    "signing_requests",
    db.metadata,
    db.tenant_column(),
    sa.Column("request", sa.String(63), primary_key=True),
    sa.Column("line", sa.String(63), nullable=False),
    sa.Column("version", sa.String(63), nullable=False),
    sa.Column("role", sa.String(100), nullable=False),
    sa.Column("role_version", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("content_digest", sa.String(71), nullable=False),
    sa.Column("approval", sa.String(63), nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    # the signed role metadata; empty while the request is open
    sa.Column("signed", sa.LargeBinary),
    db.revision_column(),
    sa.UniqueConstraint("tenant", "line", "version"),
)

director_metadata = sa.Table(
    "director_metadata",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    # version of all three roles (R5): never falls
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("targets", sa.LargeBinary, nullable=False),
    sa.Column("snapshot", sa.LargeBinary, nullable=False),
    sa.Column("timestamp", sa.LargeBinary, nullable=False),
    # strong ETag of the timestamp, which names all the rest
    sa.Column("etag", sa.String(71), nullable=False),
    # what was ordered, without version and expiry: the same order is not signed twice
    sa.Column("order_digest", sa.String(71), nullable=False),
    sa.Column("signed_at", db.utc, nullable=False),
    # half of the validity: signed again by the first poll after it
    sa.Column("renew_at", db.utc, nullable=False),
    # set in the transaction that changes the device's assignment
    sa.Column("is_stale", sa.Boolean, nullable=False),
)

#: What was served before, for devices that were told of it: fetched by version, pruned by count and by age.
earlier_director_metadata = sa.Table(
    "earlier_director_metadata",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("targets", sa.LargeBinary, nullable=False),
    sa.Column("snapshot", sa.LargeBinary, nullable=False),
    sa.Column("etag", sa.String(71), nullable=False),
    sa.Column("replaced_at", db.utc, nullable=False),
    sa.Index("ix_earlier_director_metadata_replaced_at", "replaced_at"),
)

release_deltas = sa.Table(
    "release_deltas",
    db.metadata,
    db.tenant_column(),
    sa.Column("base_sha256", sa.String(71), primary_key=True),
    sa.Column("new_sha256", sa.String(71), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    # of the container; empty when there is no file
    sa.Column("method", sa.Integer),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(71), nullable=False),
    sa.Column("cpu_s", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("made_at", db.utc, nullable=False),
    sa.Index("ix_release_deltas_new_sha256", "tenant", "new_sha256"),
)


# --- model versions ---


def add_model_version(tx: db.Connection, model: ModelVersion) -> None:
    """Keep a model version. Raises: ConflictError when its number is taken."""
    row = {
        "tenant": model.tenant,
        "model": model.model,
        "version": model.version,
        "format": model.format,
        "file": _file_text(model.file),
        "golden": _file_text(model.golden),
        "card": _file_text(model.card),
        "profile": _file_text(model.profile) if model.profile else None,
        "draft": model.draft_json,
        "tensors": model.tensors_json,
        "device_types": json.dumps(model.device_types),
        "created_at": model.created_at,
        "created_by": model.created_by,
        "note": model.note,
    }
    if not db.insert_ignore(tx, model_versions, row):
        raise ConflictError(f"Model version {model.id} exists already.")


def next_model_version(tx: db.Connection, tenant: TenantId, model: str) -> int:
    """The number that the model's next version gets; call it in the transaction that adds the version."""
    db.lock(tx, f"model/{tenant}/{model}")
    is_model = (model_versions.c.tenant == tenant, model_versions.c.model == model)
    return int(tx.execute(sa.select(sa.func.coalesce(sa.func.max(model_versions.c.version), 0)).where(*is_model)).scalar_one()) + 1


def get_model_version(tx: db.Connection, tenant: TenantId, model_id: str) -> ModelVersion:
    """The model version by its id, e.g. "digits-onnx.3"; the newest when the id names no version. Raises: NotFoundError."""
    name, _, number = model_id.partition(".")
    statement = sa.select(model_versions).where(model_versions.c.tenant == tenant, model_versions.c.model == name)
    if number:
        statement = statement.where(model_versions.c.version == (int(number) if number.isdecimal() and len(number) < 10 else -1))
    row = tx.execute(statement.order_by(model_versions.c.version.desc()).limit(1)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"There is no model version {model_id[:80]!r}.", hint="See: mooring model list")
    return _model_version(row)


def list_model_versions(tx: db.Connection, tenant: TenantId, *, model: str | None = None, limit: int = 200) -> list[ModelVersion]:
    """The newest first."""
    statement = sa.select(model_versions).where(model_versions.c.tenant == tenant)
    if model is not None:
        statement = statement.where(model_versions.c.model == model)
    ordered = statement.order_by(model_versions.c.created_at.desc(), model_versions.c.model, model_versions.c.version.desc()).limit(limit)
    return [_model_version(row) for row in tx.execute(ordered).mappings()]


# --- lines ---


def add_line(tx: db.Connection, tenant: TenantId, line: LineName, *, now: datetime) -> bool:
    """Keep a line with counter 1 and floor 0; returns whether it is new."""
    return bool(db.insert_ignore(tx, model_lines, {"tenant": tenant, "line": line, "next_counter": 1, "floor": 0, "created_at": now}))


def find_line(tx: db.Connection, tenant: TenantId, line: LineName) -> Line | None:
    """The line, or None."""
    row = tx.execute(sa.select(model_lines).where(model_lines.c.tenant == tenant, model_lines.c.line == line)).mappings().one_or_none()
    return _line(row) if row else None


def find_line_owner(tx: db.Connection, line: LineName) -> TenantId | None:
    """The tenant that has the line; names of lines are unique in one server, because they are roles of its one image repository."""
    found = tx.execute(sa.select(model_lines.c.tenant).where(model_lines.c.line == line).limit(1)).scalar_one_or_none()
    return TenantId(found) if found is not None else None


def list_lines(tx: db.Connection, tenant: TenantId) -> list[Line]:
    """All lines by name."""
    statement = sa.select(model_lines).where(model_lines.c.tenant == tenant).order_by(model_lines.c.line)
    return [_line(row) for row in tx.execute(statement).mappings()]


def raise_floor(tx: db.Connection, tenant: TenantId, line: LineName, floor: int) -> None:
    """Keep the line's floor as its keys signed it; it never falls."""
    is_lower = (model_lines.c.tenant == tenant, model_lines.c.line == line, model_lines.c.floor < floor)
    tx.execute(sa.update(model_lines).where(*is_lower).values(floor=floor, revision=model_lines.c.revision + 1))


def take_counter(tx: db.Connection, tenant: TenantId, line: LineName) -> int:
    """The next counter of the line, used up. Raises: NotFoundError."""
    db.lock(tx, f"line/{tenant}/{line}")
    found = find_line(tx, tenant, line)
    if found is None:
        raise NotFoundError(f"There is no line {line!r}.")
    is_line = (model_lines.c.tenant == tenant, model_lines.c.line == line)
    tx.execute(sa.update(model_lines).where(*is_line).values(next_counter=found.next_counter + 1, revision=found.revision + 1))
    return found.next_counter


# --- releases ---


def add_release(tx: db.Connection, release: Release) -> None:
    """Keep a new release. Raises: ConflictError when its version exists."""
    if not db.insert_ignore(tx, releases, _release_row(release)):
        raise ConflictError(f"Release {release.id} exists already.", hint="A release never changes: choose another version.")


def save_release(tx: db.Connection, release: Release) -> None:
    """Write the release as it now is. Raises: StaleRevisionError when somebody changed it since it was read."""
    where = _is_release(release.tenant, release.line, release.version)
    current = tx.execute(sa.select(releases.c.revision).where(*where).with_for_update()).scalar_one_or_none()
    db.check_revision(current or 0, release.revision - 1, what=f"Release {release.id}")
    tx.execute(sa.update(releases).where(*where).values(_release_row(release)))


def find_release(tx: db.Connection, tenant: TenantId, line: LineName, version: ReleaseVersion) -> Release | None:
    """The release, or None."""
    row = tx.execute(sa.select(releases).where(*_is_release(tenant, line, version))).mappings().one_or_none()
    return _release(row) if row is not None else None


def get_release(tx: db.Connection, tenant: TenantId, line: LineName, version: ReleaseVersion) -> Release:
    """The release. Raises: NotFoundError."""
    found = find_release(tx, tenant, line, version)
    if found is None:
        raise NotFoundError(f"There is no release {line}/{version}.", hint="See: mooring release list")
    return found


def list_releases(
    tx: db.Connection, tenant: TenantId, *, line: LineName | None = None, state: ReleaseState | None = None, limit: int = 200
) -> list[Release]:
    """The newest first."""
    statement = sa.select(releases).where(releases.c.tenant == tenant)
    if line is not None:
        statement = statement.where(releases.c.line == line)
    if state is not None:
        statement = statement.where(releases.c.state == str(state))
    ordered = statement.order_by(releases.c.created_at.desc(), releases.c.line, releases.c.counter.desc()).limit(limit)
    return [_release(row) for row in tx.execute(ordered).mappings()]


def has_file(tx: db.Connection, tenant: TenantId, digest: Digest) -> bool:
    """Whether a release of the tenant, or a delta that it may offer, has a file with these bytes."""
    in_release = sa.exists().where(releases.c.tenant == tenant, releases.c.variants.contains(digest, autoescape=True))
    is_usable = release_deltas.c.state == str(DeltaState.USABLE)
    in_delta = sa.exists().where(release_deltas.c.tenant == tenant, release_deltas.c.sha256 == digest, is_usable)
    return bool(tx.scalar(sa.select(sa.or_(in_release, in_delta))))


# --- signing requests ---


def save_signing_request(tx: db.Connection, request: SigningRequest) -> None:
    """Put the request up, in place of an older one for the same release."""
    values = {**asdict(request), "signed": None}
    db.upsert(tx, signing_requests, values, keys=("tenant", "line", "version"))


def get_signing_request(tx: db.Connection, tenant: TenantId, request: str) -> SigningRequest:
    """The request. Raises: NotFoundError."""
    is_request = (signing_requests.c.tenant == tenant, signing_requests.c.request == request)
    row = tx.execute(sa.select(signing_requests).where(*is_request)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"There is no signing request {request[:80]!r}.")
    return _signing_request(row)


def find_signing_request(tx: db.Connection, release: Release) -> SigningRequest | None:
    """The release's request, open or signed; None when it never got one."""
    row = tx.execute(sa.select(signing_requests).where(*_is_request_of(release))).mappings().one_or_none()
    return _signing_request(row) if row else None


def list_open_signing_requests(tx: db.Connection, tenant: TenantId, *, limit: int = 100) -> list[SigningRequest]:
    """Requests without a signature, the oldest first."""
    statement = sa.select(signing_requests).where(signing_requests.c.tenant == tenant, signing_requests.c.signed.is_(None))
    ordered = statement.order_by(signing_requests.c.created_at, signing_requests.c.request).limit(limit)
    return [_signing_request(row) for row in tx.execute(ordered).mappings()]


def set_signed(tx: db.Connection, request: SigningRequest, signed: bytes) -> None:
    """Keep the signed metadata of the request."""
    is_request = (signing_requests.c.tenant == request.tenant, signing_requests.c.request == request.request)
    tx.execute(sa.update(signing_requests).where(*is_request).values(signed=signed))


def find_signed(tx: db.Connection, release: Release) -> bytes | None:
    """The signed role metadata that publishes the release; None while it is not signed."""
    found = tx.execute(sa.select(signing_requests.c.signed).where(*_is_request_of(release))).scalar_one_or_none()
    return bytes(found) if found is not None else None


# --- the director's metadata ---


def find_signed_order(tx: db.Connection, tenant: TenantId, device: DeviceId, *, is_held: bool = False) -> tuple[SignedOrder, bool] | None:
    """What was signed for the device last and whether its assignment may have changed since; None when nothing was.

    `is_held` makes those who change the assignment wait until this transaction ends.
    """
    is_device = (director_metadata.c.tenant == tenant, director_metadata.c.device == device)
    statement = sa.select(director_metadata).where(*is_device)
    row = tx.execute(statement.with_for_update() if is_held else statement).mappings().one_or_none()
    if row is None:
        return None
    values = {name: row[name] for name in SignedOrder.__dataclass_fields__}
    for name in ("targets", "snapshot", "timestamp"):
        values[name] = bytes(row[name])
    return SignedOrder(**values), bool(row["is_stale"])


def renew_orders(tx: db.Connection, *, now: datetime) -> None:
    """Let every device's next poll sign anew, so that devices look again at both repositories."""
    tx.execute(sa.update(director_metadata).where(director_metadata.c.renew_at > now).values(renew_at=now))


def save_signed_order(tx: db.Connection, order: SignedOrder, *, is_stale: bool) -> None:
    """Serve this from now on, and what it replaces to those who were told of it; `is_stale`: the next poll looks anew."""
    _keep_replaced(tx, order)
    db.upsert(tx, director_metadata, {**asdict(order), "is_stale": is_stale})


def _keep_replaced(tx: db.Connection, order: SignedOrder) -> None:
    table, copied = earlier_director_metadata, ("tenant", "device", "version", "targets", "snapshot", "etag")
    is_device = (director_metadata.c.tenant == order.tenant, director_metadata.c.device == order.device)
    values = (*(director_metadata.c[name] for name in copied), sa.literal(order.signed_at, db.utc))
    replaced = sa.select(*values).where(*is_device, director_metadata.c.version < order.version)
    tx.execute(sa.insert(table).from_select([*copied, "replaced_at"], replaced))
    of_device = (table.c.tenant == order.tenant, table.c.device == order.device)
    newest = sa.select(table.c.version).where(*of_device).order_by(table.c.version.desc()).limit(EARLIER_KEPT)
    tx.execute(sa.delete(table).where(*of_device, table.c.version.not_in(newest)))


def find_signed_file(
    tx: db.Connection, tenant: TenantId, device: DeviceId, *, version: int, role: VersionedRole
) -> tuple[bytes, Digest] | None:
    """The file and the ETag of its version, whether served now or before; None when it was never signed, or is gone."""
    # the current one first: a version that another transaction replaces meanwhile is among the earlier ones by then
    for table in (director_metadata, earlier_director_metadata):
        is_it = (table.c.tenant == tenant, table.c.device == device, table.c.version == version)
        row = tx.execute(sa.select(table.c[role], table.c.etag).where(*is_it)).one_or_none()
        if row is not None:
            return bytes(row[0]), row[1]
    return None


def delete_earlier_orders(tx: db.Connection, *, before: datetime, limit: int) -> int:
    """Forget at most `limit` versions, of whichever tenant, that were replaced before the moment; returns how many."""
    table = earlier_director_metadata
    key = tuple(table.primary_key)
    old = sa.select(*key).where(table.c.replaced_at < before).order_by(table.c.replaced_at).limit(limit)
    return tx.execute(sa.delete(table).where(sa.tuple_(*key).in_(old))).rowcount


def keep_signed_order(tx: db.Connection, tenant: TenantId, device: DeviceId) -> None:
    """What was signed is still what is wanted."""
    is_device = (director_metadata.c.tenant == tenant, director_metadata.c.device == device)
    tx.execute(sa.update(director_metadata).where(*is_device).values(is_stale=False))


def mark_orders_stale(tx: db.Connection, tenant: TenantId, devices: Sequence[DeviceId]) -> None:
    """The next poll of these devices looks at their assignments anew; call it in the transaction that changes them."""
    for start in range(0, len(devices), 500):
        part = devices[start : start + 500]
        is_one = (director_metadata.c.tenant == tenant, director_metadata.c.device.in_(part))
        tx.execute(sa.update(director_metadata).where(*is_one).values(is_stale=True))


# --- deltas ---


def list_deltas_to(tx: db.Connection, tenant: TenantId, news: Collection[Digest]) -> list[ReleaseDelta]:
    """What was made, or tried, to get these files; by new file, then base."""
    wanted = sorted(set(news))
    found: list[ReleaseDelta] = []
    for start in range(0, len(wanted), 500):
        is_one = (release_deltas.c.tenant == tenant, release_deltas.c.new_sha256.in_(wanted[start : start + 500]))
        ordered = sa.select(release_deltas).where(*is_one).order_by(release_deltas.c.new_sha256, release_deltas.c.base_sha256)
        found.extend(_delta(row) for row in tx.execute(ordered).mappings())
    return found


def list_deltas_made(tx: db.Connection, tenant: TenantId, digests: Collection[Digest]) -> list[ReleaseDelta]:
    """The usable deltas whose own bytes have one of these digests."""
    is_one = (release_deltas.c.tenant == tenant, release_deltas.c.sha256.in_(sorted(set(digests))))
    statement = sa.select(release_deltas).where(*is_one, release_deltas.c.state == str(DeltaState.USABLE))
    return [_delta(row) for row in tx.execute(statement.order_by(release_deltas.c.new_sha256, release_deltas.c.base_sha256)).mappings()]


def is_delta_offered(tx: db.Connection, sha256: str) -> bool:
    """Whether these bytes are a usable delta of any tenant."""
    is_one = (release_deltas.c.sha256 == sha256, release_deltas.c.state == str(DeltaState.USABLE))
    return tx.scalar(sa.select(sa.literal(1)).where(sa.exists().where(*is_one))) is not None


def delete_failed_deltas(tx: db.Connection, tenant: TenantId, news: Collection[Digest]) -> int:
    """Forget that deltas to these files failed or were withdrawn, so that they are tried again; returns how many."""
    is_one = (release_deltas.c.tenant == tenant, release_deltas.c.new_sha256.in_(sorted(set(news))))
    is_bad = release_deltas.c.state.in_([str(DeltaState.FAILED), str(DeltaState.WITHDRAWN)])
    return tx.execute(sa.delete(release_deltas).where(*is_one, is_bad)).rowcount


def save_delta(tx: db.Connection, delta: ReleaseDelta) -> None:
    """Remember the delta, in place of what was known of this pair."""
    db.upsert(tx, release_deltas, {**asdict(delta), "state": str(delta.state)})


# --- rows ---


def _is_release(tenant: TenantId, line: LineName, version: ReleaseVersion) -> tuple[sa.ColumnElement[bool], ...]:
    return (releases.c.tenant == tenant, releases.c.line == line, releases.c.version == version)


def _is_request_of(release: Release) -> tuple[sa.ColumnElement[bool], ...]:
    requests = signing_requests.c
    return (requests.tenant == release.tenant, requests.line == release.line, requests.version == release.version)


def _file_text(file: FileRef) -> str:
    return json.dumps(asdict(file))


def _file(document: Mapping[str, Any]) -> FileRef:
    return FileRef(document["name"], document["length"], Digest(document["sha256"]))


def _model_version(row: Mapping[Any, Any]) -> ModelVersion:
    return ModelVersion(
        tenant=TenantId(row["tenant"]),
        model=row["model"],
        version=row["version"],
        format=row["format"],
        file=_file(json.loads(row["file"])),
        golden=_file(json.loads(row["golden"])),
        card=_file(json.loads(row["card"])),
        profile=_file(json.loads(row["profile"])) if row["profile"] else None,
        draft_json=row["draft"],
        tensors_json=row["tensors"],
        device_types=tuple(DeviceTypeName(name) for name in json.loads(row["device_types"])),
        created_at=row["created_at"],
        created_by=row["created_by"],
        note=row["note"],
    )


def _line(row: Mapping[Any, Any]) -> Line:
    return Line(TenantId(row["tenant"]), LineName(row["line"]), row["next_counter"], row["floor"], row["created_at"], row["revision"])


def _release_row(release: Release) -> dict[str, Any]:
    return {
        "tenant": release.tenant,
        "line": release.line,
        "version": release.version,
        "counter": release.counter,
        "state": str(release.state),
        "variants": json.dumps([asdict(variant) for variant in release.variants]),
        "content_digest": release.content_digest,
        "note": release.note,
        "approval": release.approval,
        "created_at": release.created_at,
        "created_by": release.created_by,
        "signed_at": release.signed_at,
        "published_at": release.published_at,
        "revision": release.revision,
    }


def _release(row: Mapping[Any, Any]) -> Release:
    return Release(
        tenant=TenantId(row["tenant"]),
        line=LineName(row["line"]),
        version=ReleaseVersion(row["version"]),
        counter=row["counter"],
        state=ReleaseState(row["state"]),
        variants=tuple(_variant(item) for item in json.loads(row["variants"])),
        content_digest=Digest(row["content_digest"]),
        created_at=row["created_at"],
        created_by=row["created_by"],
        revision=row["revision"],
        note=row["note"],
        approval=row["approval"],
        signed_at=row["signed_at"],
        published_at=row["published_at"],
    )


def _variant(document: Mapping[str, Any]) -> Variant:
    return Variant(
        variant=document["variant"],
        runtime=document["runtime"],
        device_types=tuple(DeviceTypeName(name) for name in document["device_types"]),
        model_id=document["model_id"],
        files=tuple(_file(file) for file in document["files"]),
        firmware_min=document["firmware_min"],
        agent_min=document["agent_min"],
        task=document.get("task", "classification"),  # written before there were others
    )


def _delta(row: Mapping[Any, Any]) -> ReleaseDelta:
    values = {name: row[name] for name in ReleaseDelta.__dataclass_fields__}
    return ReleaseDelta(**{**values, "state": DeltaState(row["state"])})


def _signing_request(row: Mapping[Any, Any]) -> SigningRequest:
    return SigningRequest(
        tenant=TenantId(row["tenant"]),
        request=row["request"],
        line=LineName(row["line"]),
        version=ReleaseVersion(row["version"]),
        role=row["role"],
        role_version=row["role_version"],
        payload=bytes(row["payload"]),
        previous=bytes(row["previous"]),
        content_digest=Digest(row["content_digest"]),
        approval=row["approval"],
        created_at=row["created_at"],
    )
