"""The audit log on both databases: appended with the change, and every tampering is found."""

import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from fleet import audit
from fleet.audit import Actor, ActorKind, Head
from protocol.errors import InvalidError, TrustError
from protocol.ids import TenantId

NOW = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
ANNA = Actor(ActorKind.PERSON, "anna")
T0, T1 = TenantId("t0"), TenantId("t1")


def _append(tx, number, tenant=T0):
    return audit.append(
        tx,
        tenant=tenant,
        actor=ANNA,
        action="group.changed",
        subject=f"group/g{number}",
        now=NOW,
        reason="why",
        detail={"n": number, "f": 1.0},
    )


@pytest.fixture
def log(database):
    with database.transaction() as tx:
        for number in range(1, 6):
            _append(tx, number)
    return database


def test_an_untouched_log_verifies_and_ends_where_it_ended(log):
    with log.reading() as tx:
        end = audit.verify(tx, T0)
        assert end == audit.head(tx, T0)
    assert end.number == 5


def test_entries_come_back_as_written_newest_first(log):
    with log.reading() as tx:
        newest, *_, oldest = audit.list_entries(tx, T0)
        assert [entry.number for entry in audit.list_entries(tx, T0, before=3, limit=1)] == [2]
        assert [entry.number for entry in audit.list_entries(tx, T0, subject="group/g4")] == [4]
    assert (newest.number, oldest.number) == (5, 1)
    assert oldest.previous == audit.GENESIS
    assert (oldest.actor, oldest.action, oldest.subject, oldest.reason, oldest.at) == (ANNA, "group.changed", "group/g1", "why", NOW)
    assert oldest.detail == {"n": 1, "f": 1.0}


def test_an_entry_leaves_with_the_transaction_that_failed(database):
    def fail():
        with database.transaction() as tx:
            _append(tx, 1)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    with database.reading() as tx:
        assert audit.head(tx, T0) == Head(0, audit.GENESIS)


def test_tenants_have_chains_of_their_own(log):
    with log.transaction() as tx:
        assert _append(tx, 1, T1).number == 1
        assert audit.verify(tx, T1).number == 1
        assert audit.list_entries(tx, TenantId("t2")) == []


@pytest.mark.parametrize("column", ["at", "actor_kind", "actor_name", "action", "subject", "reason", "detail", "previous", "hash"])
def test_a_changed_entry_is_found(log, column):
    value = datetime(2026, 3, 2, tzinfo=UTC) if column == "at" else "device"
    with log.transaction() as tx:
        tx.execute(sa.update(audit.entries).where(audit.entries.c.number == 3).values({column: value}))
        with pytest.raises(TrustError, match="entry 3"):
            audit.verify(tx, T0)


@pytest.mark.parametrize("number", [1, 3])
def test_an_entry_taken_out_is_found(log, number):
    with log.transaction() as tx:
        tx.execute(sa.delete(audit.entries).where(audit.entries.c.number == number))
        with pytest.raises(TrustError, match="missing"):
            audit.verify(tx, T0)


def test_a_cut_off_end_is_found_with_an_anchor(log):
    with log.transaction() as tx:
        anchor = audit.head(tx, T0)
        tx.execute(sa.delete(audit.entries).where(audit.entries.c.number == 5))
        assert audit.verify(tx, T0).number == 4
        with pytest.raises(TrustError, match="does not hold the known entry"):
            audit.verify(tx, T0, anchor=anchor)


def test_an_anchor_holds_while_the_log_grows(log):
    with log.transaction() as tx:
        anchor = audit.head(tx, T0)
        _append(tx, 6)
        assert audit.verify(tx, T0, anchor=anchor).number == 6


def test_threads_that_append_at_once_make_one_chain(database):
    def work():
        for number in range(10):
            with database.transaction() as tx:
                _append(tx, number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as tx:
        assert audit.verify(tx, T0).number == 40


def test_a_detail_without_a_json_form_is_refused(database):
    with database.transaction() as tx, pytest.raises(InvalidError):
        audit.append(tx, tenant=T0, actor=ANNA, action="a.b", subject="c/d", now=NOW, detail={"x": object()})


def test_a_long_log_is_verified_to_its_end(database):
    with database.transaction() as tx:
        for number in range(1, 1004):
            _append(tx, number)
        assert audit.verify(tx, T0).number == 1003
        tx.execute(sa.update(audit.entries).where(audit.entries.c.number == 1002).values(reason="other"))
        with pytest.raises(TrustError, match="entry 1002"):
            audit.verify(tx, T0)
