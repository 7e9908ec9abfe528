"""Approvals: bound to digests, decided once, by a person who made nothing of it."""

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from fleet import audit
from fleet.audit import Actor, ActorKind
from fleet.governance import service, store
from fleet.governance.model import TRANSITIONS, ApprovalState
from protocol.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, StaleRevisionError
from protocol.ids import Digest, TenantId

NOW = datetime(2026, 3, 1, tzinfo=UTC)
T0, T1 = TenantId("t0"), TenantId("t1")
ANNA, BEN, CARL = (Actor(ActorKind.PERSON, name) for name in ("anna", "ben", "carl"))
CONTENT = {"content": Digest("sha256:" + "a" * 64)}
OTHER = {"content": Digest("sha256:" + "b" * 64)}


def _request(tx, **changes: Any):
    wanted = {"tenant": T0, "subject_kind": "release", "subject_id": "digits/1.1", "digests": CONTENT, "by": ANNA, "now": NOW}
    return service.request(tx, **{**wanted, **changes})


def _decide(tx, approval, **changes: Any):
    wanted = {"tenant": T0, "approval": approval.approval, "verdict": "approved", "by": BEN, "permissions": {"approver"}, "now": NOW}
    return service.decide(tx, **{"reason": "looks good", **wanted, **changes})


def _yes(tx, digests=CONTENT):
    return service.find_yes(tx, T0, subject_kind="release", subject_id="digits/1.1", digests=digests)


def test_a_yes_counts_for_exactly_what_was_looked_at(database):
    with database.transaction() as tx:
        approval = _request(tx)
        assert _yes(tx) is None
        decided = _decide(tx, approval)
        assert _yes(tx) == decided
        assert _yes(tx, OTHER) is None
        assert _yes(tx, {**CONTENT, "card": OTHER["content"]}) is None
        assert _yes(tx, {}) is None
        assert service.find_yes(tx, T1, subject_kind="release", subject_id="digits/1.1", digests=CONTENT) is None
        assert service.find_yes(tx, T0, subject_kind="release", subject_id="digits/1.2", digests=CONTENT) is None
    assert (decided.state, decided.decided_by, decided.reason, decided.revision) == (ApprovalState.APPROVED, "person:ben", "looks good", 2)


def test_request_and_decision_are_in_the_audit_log(database):
    with database.transaction() as tx:
        approval = _request(tx)
        _decide(tx, approval)
        newest, oldest = audit.list_entries(tx, T0)
        audit.verify(tx, T0)
    assert (oldest.action, newest.action) == ("approval.requested", "approval.approved")
    assert (str(newest.actor), newest.reason) == ("person:ben", "looks good")
    assert newest.detail["digests"] == CONTENT


@pytest.mark.parametrize("by", [ANNA, CARL])
def test_who_proposed_or_made_it_does_not_decide(database, by):
    with database.transaction() as tx:
        approval = _request(tx, authors=["person:carl"])
        with pytest.raises(ForbiddenError, match="four eyes"):
            _decide(tx, approval, by=by)
        _decide(tx, approval)


def test_a_person_with_every_permission_still_does_not_decide_on_the_own_work(database):
    with database.transaction() as tx, pytest.raises(ForbiddenError, match="four eyes"):
        _decide(tx, _request(tx), by=ANNA, permissions={"admin", "operator", "approver"})


@pytest.mark.parametrize("permissions", [set(), {"viewer"}, {"operator"}, {"auditor"}, {"admin"}])
def test_only_an_approver_decides(database, permissions):
    with database.transaction() as tx, pytest.raises(ForbiddenError, match="approver"):
        _decide(tx, _request(tx), permissions=permissions)


@pytest.mark.parametrize("kind", [ActorKind.LOOP, ActorKind.SERVICE, ActorKind.DEVICE])
def test_only_a_person_decides(database, kind):
    with database.transaction() as tx, pytest.raises(ForbiddenError, match="no person"):
        _decide(tx, _request(tx), by=Actor(kind, "ben"))


def test_a_decision_is_final_and_another_try_is_another_approval(database):
    with database.transaction() as tx:
        approval = _request(tx)
        _decide(tx, approval, verdict="rejected")
        with pytest.raises(ConflictError, match="rejected already"):
            _decide(tx, approval)
        assert _yes(tx) is None
        again = _request(tx, now=datetime(2026, 3, 2, tzinfo=UTC))
        _decide(tx, again)
        assert _yes(tx).approval == again.approval


def test_a_later_no_takes_an_earlier_yes_back(database):
    with database.transaction() as tx:
        _decide(tx, _request(tx))
        _decide(tx, _request(tx, now=datetime(2026, 3, 2, tzinfo=UTC)), verdict="rejected")
        assert _yes(tx) is None


def test_one_approval_of_a_subject_is_pending_at_a_time(database):
    with database.transaction() as tx:
        _request(tx)
        with pytest.raises(ConflictError, match="pending already"):
            _request(tx)
        assert store.count_pending(tx, T0) == 1


def test_a_decision_against_an_old_revision_is_refused(database):
    with database.transaction() as tx:
        approval = _request(tx)
        with pytest.raises(StaleRevisionError):
            _decide(tx, approval, expected_revision=7)
        _decide(tx, approval, expected_revision=1)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 2001])
def test_a_decision_needs_a_reason(database, reason):
    with database.transaction() as tx, pytest.raises(InvalidError, match="reason"):
        _decide(tx, _request(tx), reason=reason)


def test_an_approval_of_nothing_is_refused(database):
    with database.transaction() as tx:
        with pytest.raises(InvalidError, match="at least one digest"):
            _request(tx, digests={})
        with pytest.raises(InvalidError, match="Digest"):
            _request(tx, digests={"content": "md5:1"})


def test_another_tenants_approval_is_not_found(database):
    with database.transaction() as tx:
        approval = _request(tx)
    with pytest.raises(NotFoundError):
        service.get_approval(database, T1, approval.approval)
    assert service.list_approvals(database, T1) == []
    assert service.get_approval(database, T0, approval.approval) == approval


def test_two_deciders_at_once_make_one_decision(database):
    with database.transaction() as tx:
        approval = _request(tx)
    barrier, outcomes = threading.Barrier(2), []

    def run(by, verdict):
        barrier.wait(120)
        try:
            with database.transaction() as tx:
                outcomes.append(_decide(tx, approval, by=by, verdict=verdict).state)
        except (ConflictError, StaleRevisionError) as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=run, args=case) for case in ((BEN, "approved"), (CARL, "rejected"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in outcomes if one in {"approved", "rejected"}]) == 1
    assert "conflict" in outcomes


def test_lists_are_newest_first_and_by_state(database):
    with database.transaction() as tx:
        first = _request(tx)
        second = _request(tx, subject_id="digits/1.2", now=datetime(2026, 3, 2, tzinfo=UTC))
        _decide(tx, first)
    assert [one.approval for one in service.list_approvals(database, T0)] == [second.approval, first.approval]
    assert [one.approval for one in service.list_approvals(database, T0, state=ApprovalState.PENDING)] == [second.approval]


def test_no_arrow_leaves_a_decision():
    assert [state for state, after in TRANSITIONS.items() if after] == [ApprovalState.PENDING]
