"""What people do with approvals: ask, decide, look. `request` and `decide` are part of the caller's transaction, with what follows."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Literal

from fleet import audit, db
from fleet.audit import Actor
from fleet.governance import store
from fleet.governance.approvals import check_decider, covers
from fleet.governance.model import Approval, ApprovalState
from protocol.errors import ConflictError, InvalidError
from protocol.ids import Digest, TenantId, check_digest, new_id

MAX_REASON_LENGTH, MAX_TITLE_LENGTH = 2000, 300


def request(
    tx: db.Connection,
    *,
    tenant: TenantId,
    subject_kind: str,
    subject_id: str,
    digests: Mapping[str, Digest],
    by: Actor,
    now: datetime,
    title: str = "",
    authors: Collection[str] = (),
) -> Approval:
    """Ask for somebody else's decision on the subject with exactly these digests; `authors` ("person:anna") may not decide either.

    Raises: ConflictError when one is pending for the subject; InvalidError when no digest is named.
    """
    if not digests:
        raise InvalidError("An approval is bound to at least one digest; none was named.")
    for digest in digests.values():
        check_digest(digest)
    subject = (subject_kind, subject_id)
    db.lock(tx, f"approval/{tenant}/{subject_kind}/{subject_id}")
    pending = [one for one in store.list_approvals(tx, tenant, subject=subject) if one.state is ApprovalState.PENDING]
    if pending:
        raise ConflictError(f"Approval {pending[0].approval} for {subject_kind} {subject_id} is pending already.")
    approval = Approval(
        tenant=tenant,
        approval=new_id("apr"),
        subject_kind=subject_kind,
        subject_id=subject_id,
        title=(title or f"{subject_kind} {subject_id}")[:MAX_TITLE_LENGTH],
        digests=dict(digests),
        state=ApprovalState.PENDING,
        created_by=str(by),
        authors=frozenset(authors),
        created_at=now,
    )
    store.insert_approval(tx, approval)
    detail = {"subject": f"{subject_kind}/{subject_id}", "digests": dict(digests)}
    audit.append(tx, tenant=tenant, actor=by, action="approval.requested", subject=f"approval/{approval.approval}", now=now, detail=detail)
    return approval


def decide(
    tx: db.Connection,
    *,
    tenant: TenantId,
    approval: str,
    verdict: Literal["approved", "rejected"],
    by: Actor,
    permissions: Collection[str],
    now: datetime,
    reason: str,
    expected_revision: int | None = None,
) -> Approval:
    """Record the decision; what follows for the subject is the caller's, in the same transaction.

    Raises: NotFoundError; StaleRevisionError; ForbiddenError (four eyes, permission); ConflictError when it is decided; InvalidError.
    """
    if not reason.strip() or len(reason) > MAX_REASON_LENGTH:
        raise InvalidError(f"A decision needs a reason of 1 to {MAX_REASON_LENGTH} characters; seen {len(reason)}.")
    found = store.get_approval(tx, tenant, approval, is_held=True)
    db.check_revision(found.revision, expected_revision, what=f"Approval {approval}")
    check_decider(found, by=by, permissions=permissions)
    decided = store.save_approval(tx, found.decided(ApprovalState(verdict), by=str(by), at=now, reason=reason))
    detail = {"subject": f"{found.subject_kind}/{found.subject_id}", "digests": dict(found.digests)}
    audit.append(
        tx, tenant=tenant, actor=by, action=f"approval.{verdict}", subject=f"approval/{approval}", now=now, reason=reason, detail=detail
    )
    return decided


def find_yes(tx: db.Connection, tenant: TenantId, *, subject_kind: str, subject_id: str, digests: Mapping[str, Digest]) -> Approval | None:
    """The newest approval that says yes to exactly this subject and digests, or None: what must be there before anything is signed.

    A later no takes an earlier yes back.
    """
    for approval in store.list_approvals(tx, tenant, subject=(subject_kind, subject_id), limit=500):
        if covers(approval, subject_kind=subject_kind, subject_id=subject_id, digests=digests):
            return approval
        if approval.state is ApprovalState.REJECTED and dict(approval.digests) == dict(digests):
            return None
    return None


def get_approval(database: db.Database, tenant: TenantId, approval: str) -> Approval:
    """The approval. Raises: NotFoundError."""
    with database.reading() as tx:
        return store.get_approval(tx, tenant, approval)


def list_approvals(
    database: db.Database, tenant: TenantId, *, state: ApprovalState | None = None, subject: tuple[str, str] | None = None, limit: int = 50
) -> list[Approval]:
    """The newest first, of one state or one subject (kind, id) when given."""
    with database.reading() as tx:
        return store.list_approvals(tx, tenant, state=state, subject=subject, limit=limit)
