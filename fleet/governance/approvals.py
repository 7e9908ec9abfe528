"""Four eyes, pure: who may decide an approval, and whether an approval covers what is about to be signed."""

from collections.abc import Collection, Mapping

from fleet.audit import Actor, ActorKind
from fleet.governance.model import Approval, ApprovalState
from fleet.governance.permissions import require
from protocol.errors import ForbiddenError
from protocol.ids import Digest


def check_decider(approval: Approval, *, by: Actor, permissions: Collection[str]) -> None:
    """Nothing when this actor may decide. Raises: ForbiddenError naming why not."""
    require(permissions, "approvals:decide")
    if by.kind is not ActorKind.PERSON:
        raise ForbiddenError(f"{by} is no person; a person decides approvals.")
    if str(by) in approval.authors | {approval.created_by}:
        raise ForbiddenError(
            f"{by.name} made or proposed {approval.subject_kind} {approval.subject_id} and cannot decide on it.",
            hint="Ask another approver: four eyes.",
        )


def covers(approval: Approval, *, subject_kind: str, subject_id: str, digests: Mapping[str, Digest]) -> bool:
    """Whether the approval is a yes to exactly this subject with exactly these digests."""
    is_same = (approval.subject_kind, approval.subject_id, dict(approval.digests)) == (subject_kind, subject_id, dict(digests))
    return approval.state is ApprovalState.APPROVED and is_same and bool(digests)
