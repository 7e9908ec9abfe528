"""The audit log: append-only, one hash chain per tenant, written in the transaction of the change it tells of.

Each entry's hash covers its content and the hash before it: an entry changed, moved, inserted or taken out breaks the chain. That the
end was not cut off is seen by comparing `head` with a copy kept elsewhere (`verify(..., anchor=…)`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from fleet import db
from protocol.canonical import canonical_json, digest_of
from protocol.errors import TrustError
from protocol.ids import Digest, TenantId

#: What the first entry of a tenant names as the hash before it.
GENESIS = Digest("sha256:" + "0" * 64)
_PAGE = 1000

entries = sa.Table(
    "audit_entries",
    db.metadata,
    db.tenant_column(),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", db.utc, nullable=False),
    sa.Column("actor_kind", sa.String(16), nullable=False),
    sa.Column("actor_name", sa.String(200), nullable=False),
    sa.Column("action", sa.String(100), nullable=False),
    sa.Column("subject", sa.String(300), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # canonical JSON, as text: it is hashed, and a JSON column may change its bytes
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("previous", sa.String(71), nullable=False),
    sa.Column("hash", sa.String(71), nullable=False),
    sa.Index("ix_audit_entries_subject", "tenant", "subject", "number"),
)


class ActorKind(StrEnum):
    """Who can change something."""

    #: A user, by console, API or command line.
    PERSON = "person"
    #: A device, known by its certificate.
    DEVICE = "device"
    #: A process of the server or a machine with an API token.
    SERVICE = "service"
    #: The automatic loop: campaigns, training, verdicts.
    LOOP = "loop"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it."""

    kind: ActorKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One link of the chain."""

    tenant: TenantId
    number: int
    at: datetime
    actor: Actor
    action: str
    subject: str
    reason: str
    detail: Mapping[str, Any]
    previous: Digest
    hash: Digest


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a tenant's chain; number 0 when it is empty. Kept elsewhere it proves that nothing before it was taken out."""

    number: int
    hash: Digest


def append(
    tx: db.Connection,
    *,
    tenant: TenantId,
    actor: Actor,
    action: str,
    subject: str,
    now: datetime,
    reason: str = "",
    detail: Mapping[str, Any] | None = None,
) -> Entry:
    """Add one entry in the caller's transaction and return it. `action` is "noun.past-participle", `subject` "kind/id".

    Call it last: on PostgreSQL the tenant's chain is locked from here to the end of the transaction.
    Raises: InvalidError when `detail` has no JSON form.
    """
    db.lock(tx, f"audit/{tenant}")
    end = head(tx, tenant)
    row = {
        "tenant": tenant,
        "number": end.number + 1,
        "at": now,
        "actor_kind": str(actor.kind),
        "actor_name": actor.name,
        "action": action,
        "subject": subject,
        "reason": reason,
        "detail": canonical_json(dict(detail or {})).decode(),
        "previous": end.hash,
    }
    row["hash"] = _hash(row)
    tx.execute(sa.insert(entries), row)
    return _entry(row)


def head(tx: db.Connection, tenant: TenantId) -> Head:
    """The end of the tenant's chain."""
    statement = sa.select(entries.c.number, entries.c.hash).where(entries.c.tenant == tenant).order_by(entries.c.number.desc()).limit(1)
    found = tx.execute(statement).one_or_none()
    return Head(found.number, Digest(found.hash)) if found else Head(0, GENESIS)


def list_entries(
    tx: db.Connection, tenant: TenantId, *, before: int | None = None, limit: int = 50, subject: str | None = None
) -> list[Entry]:
    """The newest entries first, those with a number below `before`, of one subject when given."""
    statement = sa.select(entries).where(entries.c.tenant == tenant).order_by(entries.c.number.desc()).limit(limit)
    if before is not None:
        statement = statement.where(entries.c.number < before)
    if subject is not None:
        statement = statement.where(entries.c.subject == subject)
    return [_entry(dict(row)) for row in tx.execute(statement).mappings()]


def verify(tx: db.Connection, tenant: TenantId, *, anchor: Head | None = None) -> Head:
    """Recompute the tenant's whole chain and return its end.

    Raises: TrustError naming the first entry that does not fit, or that the chain no longer holds what `anchor` saw.
    """
    end, is_anchored = Head(0, GENESIS), anchor is None or anchor.number == 0
    for row in _ascending(tx, tenant):
        if row["number"] != end.number + 1:
            raise TrustError(f"Audit entry {end.number + 1} is missing; the next one is {row['number']}.", code="audit-broken")
        if row["previous"] != end.hash:
            raise TrustError(f"Audit entry {row['number']} does not follow the one before it.", code="audit-broken")
        if row["hash"] != _hash(row):
            raise TrustError(f"Audit entry {row['number']} was changed after it was written.", code="audit-broken")
        end = Head(row["number"], Digest(row["hash"]))
        is_anchored = is_anchored or end == anchor
    if not is_anchored:
        raise TrustError(f"The audit log ends at entry {end.number} and does not hold the known entry {anchor}.", code="audit-cut")
    return end


def _ascending(tx: db.Connection, tenant: TenantId) -> Iterator[Mapping[str, Any]]:
    last = 0
    while True:
        statement = sa.select(entries).where(entries.c.tenant == tenant, entries.c.number > last).order_by(entries.c.number).limit(_PAGE)
        page = tx.execute(statement).mappings().all()
        yield from (dict(row) for row in page)
        if len(page) < _PAGE:
            return
        last = int(page[-1]["number"])


def _hash(row: Mapping[str, Any]) -> Digest:
    content = {name: row[name] for name in entries.c.keys() if name not in {"at", "hash"}}  # noqa: SIM118 - a column collection
    return digest_of(canonical_json({**content, "at": row["at"].isoformat(timespec="microseconds")}))


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(
        tenant=TenantId(row["tenant"]),
        number=row["number"],
        at=row["at"],
        actor=Actor(ActorKind(row["actor_kind"]), row["actor_name"]),
        action=row["action"],
        subject=row["subject"],
        reason=row["reason"],
        detail=json.loads(row["detail"]),
        previous=Digest(row["previous"]),
        hash=Digest(row["hash"]),
    )
