"""What governance remembers: frozen values and the arrows between their states."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from protocol.errors import ConflictError
from protocol.ids import Digest, TenantId


class ApprovalState(StrEnum):
    """Where an approval is."""

    #: Waits for somebody else's decision.
    PENDING = "pending"
    #: A named approver said yes to exactly these digests.
    APPROVED = "approved"
    #: A named approver said no.
    REJECTED = "rejected"


#: All arrows; a decision is final, another try is another approval.
TRANSITIONS: Mapping[ApprovalState, frozenset[ApprovalState]] = {
    ApprovalState.PENDING: frozenset({ApprovalState.APPROVED, ApprovalState.REJECTED}),
    ApprovalState.APPROVED: frozenset(),
    ApprovalState.REJECTED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Approval:
    """A named approver's yes or no to one subject, bound to the digests of what was looked at."""

    tenant: TenantId
    approval: str
    #: What kind of thing, e.g. "release", and which one, e.g. "digits/1.1".
    subject_kind: str
    subject_id: str
    title: str
    #: Part name -> digest, e.g. "content"; the signer signs nothing else.
    digests: Mapping[str, Digest]
    state: ApprovalState
    #: "person:anna": who asked.
    created_by: str
    #: Who made the subject or a part of it: none of them decides.
    authors: frozenset[str]
    created_at: datetime
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str = ""
    revision: int = 1

    def decided(self, state: ApprovalState, *, by: str, at: datetime, reason: str) -> "Approval":
        """The approval with its decision. Raises: ConflictError when there is no such arrow."""
        if state not in TRANSITIONS[self.state]:
            raise ConflictError(
                f"Approval {self.approval} is {self.state} already (by {self.decided_by}).", hint="Ask for a new approval to decide again."
            )
        return replace(self, state=state, decided_by=by, decided_at=at, reason=reason)
