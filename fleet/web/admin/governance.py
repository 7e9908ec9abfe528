"""Approvals and the audit log."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from fleet import audit, loop
from fleet.audit import Entry, Head
from fleet.governance import service
from fleet.governance.model import Approval, ApprovalState
from fleet.web import rest
from fleet.web.admin.bodies import Body
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute, Page, page_of
from protocol.errors import InvalidError
from protocol.ids import check_digest

router = APIRouter(tags=["governance"], route_class=IdempotentRoute)
Reads = Annotated[Caller, Depends(require("approvals:read"))]
Audits = Annotated[Caller, Depends(require("audit:read"))]
#: Approvals looked at for one list.
MOST = 5000
_VERDICTS: dict[str, Literal["approved", "rejected"]] = {"approve": "approved", "reject": "rejected"}


class Decision(Body):
    """A named approver's yes or no."""

    decision: Literal["approve", "reject"]
    reason: Annotated[str, Field(min_length=1, max_length=2000)]


@router.get("/approvals")
def list_approvals(
    request: Request, caller: Reads, page: Annotated[Page, Depends(page_of)], state: ApprovalState | None = None
) -> Response:
    """Approvals, the newest first."""
    found = service.list_approvals(services_of(request).database, caller.tenant, state=state, limit=MOST)
    return rest.listed(request, page, page.take(found, lambda one: one.approval), key=lambda one: one.approval, render=approval_json)


@router.get("/approvals/{approval}")
def get_approval(request: Request, approval: str, caller: Reads) -> Response:
    """One approval."""
    found = service.get_approval(services_of(request).database, caller.tenant, approval)
    return rest.one(approval_json(found), revision=found.revision)


@router.post("/approvals/{approval}/decide")
def decide_approval(
    request: Request, approval: str, body: Decision, caller: Annotated[Caller, Depends(require("approvals:decide"))]
) -> Response:
    """Decide what somebody else asked for; needs If-Match."""
    decided = loop.decide_approval(
        services_of(request).registry,
        tenant=caller.tenant,
        approval=approval,
        verdict=_VERDICTS[body.decision],
        by=caller.actor,
        permissions=caller.permissions,
        reason=body.reason,
        expected_revision=rest.expected_revision(request),
    )
    return rest.one(approval_json(decided), revision=decided.revision)


@router.get("/audit")
def list_entries(
    request: Request,
    caller: Audits,
    page: Annotated[Page, Depends(page_of)],
    subject: Annotated[str | None, Query(max_length=300)] = None,
) -> Response:
    """Audit entries, the newest first; of one subject ("device/cam-1") when given."""
    with services_of(request).database.reading() as tx:
        found = audit.list_entries(tx, caller.tenant, before=_before(page), limit=page.limit + 1, subject=subject)
    return rest.listed(request, page, found, key=lambda entry: str(entry.number), render=entry_json)


@router.get("/audit/verify")
def verify(request: Request, caller: Audits, anchor: Annotated[str | None, Query(max_length=100)] = None) -> Response:
    """Recompute the chain; with `anchor` ("number:hash" of an earlier answer) also prove that nothing was cut off since."""
    with services_of(request).database.reading() as tx:
        head = audit.verify(tx, caller.tenant, anchor=read_anchor(anchor) if anchor else None)
    return rest.one({"number": head.number, "hash": head.hash})


def read_anchor(text: str) -> Head:
    """What an earlier verification printed. Raises: InvalidError."""
    number, separator, digest = text.partition(":")
    if not separator or not number.isdigit():
        raise InvalidError(f"{text[:80]!r} is no anchor.", hint="Wanted: NUMBER:HASH, as `mooring audit verify` printed it.")
    return Head(int(number), check_digest(digest))


def approval_json(approval: Approval) -> dict[str, Any]:
    """An approval as the API answers it."""
    return {
        "approval": approval.approval,
        "subject_kind": approval.subject_kind,
        "subject_id": approval.subject_id,
        "subject": f"{approval.subject_kind}/{approval.subject_id}",
        "title": approval.title,
        "digests": dict(approval.digests),
        "state": str(approval.state),
        "created_by": approval.created_by,
        "created_at": rest.iso(approval.created_at),
        "decided_by": approval.decided_by,
        "decided_at": rest.iso(approval.decided_at),
        "reason": approval.reason,
        "revision": approval.revision,
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    """An audit entry as the API answers it."""
    return {
        "number": entry.number,
        "at": rest.iso(entry.at),
        "actor": str(entry.actor),
        "action": entry.action,
        "subject": entry.subject,
        "reason": entry.reason,
        "detail": dict(entry.detail),
        "previous": entry.previous,
        "hash": entry.hash,
    }


def _before(page: Page) -> int | None:
    if page.after is None:
        return None
    if not page.after.isdigit():
        raise InvalidError("next is not a page of this list.", hint="Take it from the answer before.")
    return int(page.after)
