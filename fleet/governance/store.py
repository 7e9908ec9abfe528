"""The only SQL about approvals: one function per question."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.governance.model import Approval, ApprovalState
from protocol.canonical import canonical_json
from protocol.errors import NotFoundError, StaleRevisionError
from protocol.ids import Digest, TenantId

approvals = sa.Table(
    "approvals",
    db.metadata,
    db.tenant_column(),
    sa.Column("approval", sa.String(63), primary_key=True),
    sa.Column("subject_kind", sa.String(63), nullable=False),
    sa.Column("subject_id", sa.String(200), nullable=False),
    sa.Column("title", sa.String(300), nullable=False),
    # canonical JSON, as text: it is compared
    sa.Column("digests", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_by", sa.String(220), nullable=False),
    sa.Column("authors", sa.Text, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("decided_by", sa.String(220)),
    sa.Column("decided_at", db.utc),
    sa.Column("reason", sa.Text, nullable=False),
    db.revision_column(),
    sa.Index("ix_approvals_subject", "tenant", "subject_kind", "subject_id"),
    sa.Index("ix_approvals_state", "tenant", "state", "created_at"),
)


def insert_approval(tx: db.Connection, approval: Approval) -> None:
    """Keep a new approval."""
    tx.execute(sa.insert(approvals), {"tenant": approval.tenant, "approval": approval.approval, **_values(approval)})


def save_approval(tx: db.Connection, approval: Approval) -> Approval:
    """Keep the changed approval under the next revision. Raises: StaleRevisionError when somebody was faster."""
    is_it = (approvals.c.tenant == approval.tenant, approvals.c.approval == approval.approval, approvals.c.revision == approval.revision)
    if tx.execute(sa.update(approvals).where(*is_it).values({**_values(approval), "revision": approval.revision + 1})).rowcount != 1:
        raise StaleRevisionError(f"Approval {approval.approval} is no longer at revision {approval.revision}.", hint="Read it again.")
    return replace(approval, revision=approval.revision + 1)


def get_approval(tx: db.Connection, tenant: TenantId, approval: str, *, is_held: bool = False) -> Approval:
    """The approval; `is_held` keeps others from deciding it until this transaction ends. Raises: NotFoundError."""
    statement = sa.select(approvals).where(approvals.c.tenant == tenant, approvals.c.approval == approval)
    row = tx.execute(statement.with_for_update() if is_held else statement).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"There is no approval {approval!r}.")
    return _approval(row)


def list_approvals(
    tx: db.Connection,
    tenant: TenantId,
    *,
    state: ApprovalState | None = None,
    subject: tuple[str, str] | None = None,
    limit: int = 50,
) -> list[Approval]:
    """The newest first, of one state or one subject (kind, id) when given."""
    statement = sa.select(approvals).where(approvals.c.tenant == tenant)
    if state is not None:
        statement = statement.where(approvals.c.state == str(state))
    if subject is not None:
        statement = statement.where(approvals.c.subject_kind == subject[0], approvals.c.subject_id == subject[1])
    ordered = statement.order_by(approvals.c.created_at.desc(), approvals.c.approval.desc()).limit(limit)
    return [_approval(row) for row in tx.execute(ordered).mappings()]


def count_pending(tx: db.Connection, tenant: TenantId) -> int:
    """How many wait for a decision."""
    is_pending = (approvals.c.tenant == tenant, approvals.c.state == str(ApprovalState.PENDING))
    return int(tx.scalar(sa.select(sa.func.count()).select_from(approvals).where(*is_pending)) or 0)


def _values(approval: Approval) -> dict[str, Any]:
    return {
        "subject_kind": approval.subject_kind,
        "subject_id": approval.subject_id,
        "title": approval.title,
        "digests": canonical_json(dict(approval.digests)).decode(),
        "state": str(approval.state),
        "created_by": approval.created_by,
        "authors": canonical_json(sorted(approval.authors)).decode(),
        "created_at": approval.created_at,
        "decided_by": approval.decided_by,
        "decided_at": approval.decided_at,
        "reason": approval.reason,
    }


def _approval(row: Mapping[Any, Any]) -> Approval:
    return Approval(
        tenant=TenantId(row["tenant"]),
        approval=row["approval"],
        subject_kind=row["subject_kind"],
        subject_id=row["subject_id"],
        title=row["title"],
        digests={name: Digest(digest) for name, digest in json.loads(row["digests"]).items()},
        state=ApprovalState(row["state"]),
        created_by=row["created_by"],
        authors=frozenset(json.loads(row["authors"])),
        created_at=row["created_at"],
        decided_by=row["decided_by"],
        decided_at=row["decided_at"],
        reason=row["reason"],
        revision=row["revision"],
    )
