"""What stands still is told by the part, since when and why; what breaks for a moment, or works elsewhere, is not: on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from fleet import db, parts
from fleet.parts import PartState, Pulse, Standstill
from protocol.ids import TenantId

NOW = datetime(2026, 3, 1, 2, 13, tzinfo=UTC)
T0, T1 = TenantId("t0"), TenantId("t1")
WORKS = PartState("", NOW, NOW)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def say(database, process: str, at: datetime, tenant: TenantId = T0, **states: PartState) -> None:
    with database.transaction() as tx:
        parts.report(tx, tenant, process, states, now=at)


def standstills(database, at: datetime) -> list[Standstill]:
    with database.reading() as tx:
        return parts.list_standstills(tx, T0, now=at)


def test_a_part_that_was_never_heard_of_or_works_somewhere_is_not_told(database):
    assert standstills(database, NOW) == []
    say(database, "a:1", after(60), ingest=PartState("refused", NOW))
    say(database, "b:1", after(60), ingest=WORKS)
    say(database, "a:1", after(60), tenant=T1, worker=PartState("refused", NOW))
    assert standstills(database, after(80)) == []


def test_trouble_everywhere_is_told_since_it_worked_last_and_not_for_a_moments_break(database):
    say(database, "a:1", after(20), ingest=PartState("No connection.", NOW, after(5)))
    say(database, "b:1", after(30), ingest=PartState("refused", NOW, after(10)))
    assert standstills(database, after(40)) == []
    assert standstills(database, after(41)) == [Standstill("ingest", after(10), "refused")]
    assert "not stored" in standstills(database, after(41))[0].consequence


def test_a_part_that_never_worked_stands_still_since_it_began(database):
    say(database, "a:1", after(31), controller=PartState("keys are missing", NOW))
    assert standstills(database, after(31)) == [Standstill("controller", NOW, "keys are missing")]


def test_processes_that_are_gone_are_told_and_their_successor_counts(database):
    say(database, "a:1", NOW, worker=WORKS)
    assert standstills(database, after(45)) == []
    [gone] = standstills(database, after(46))
    assert (gone.part, gone.since, gone.text) == ("worker", NOW, "No process of the server that does this has been heard of.")
    say(database, "a:2", after(50), worker=PartState("", after(50), after(50)))
    assert standstills(database, after(60)) == []


def test_a_word_from_the_future_is_none_since_the_clock_was_set_back(database):
    say(database, "a:1", after(500), ingest=WORKS)
    assert [one.text for one in standstills(database, after(100))] == [parts.GONE]
    assert standstills(database, after(460)) == []


def test_what_works_is_only_what_a_process_says_to_work(database):
    say(database, "a:1", after(1), ingest=WORKS, worker=PartState(parts.JUST_BEGUN, NOW), alerts=WORKS)
    say(database, "b:1", after(1), worker=PartState("failed", NOW, NOW), ingest=PartState("refused", NOW))
    with database.reading() as tx:
        assert parts.list_working(tx, T0, now=after(2)) == {"ingest", "alerts"}
        assert parts.list_working(tx, T0, now=after(50)) == set()


def test_the_clock_of_the_database_is_about_right_and_aware(database):
    before = datetime.now(UTC) - timedelta(minutes=1)
    with database.reading() as tx:
        assert before < db.clock(tx) < before + timedelta(minutes=30)


def test_only_the_process_heard_of_last_of_each_part_is_remembered_for_ever(database):
    for number in range(3):
        say(database, f"a:{number}", after(number), ingest=WORKS, worker=WORKS)
    say(database, "a:9", after(9), ingest=WORKS)
    with database.transaction() as tx:
        assert parts.prune(tx, before=after(100)) == 5
        left = {tuple(row) for row in tx.execute(sa.select(parts.server_parts.c.part, parts.server_parts.c.process))}
    assert left == {("ingest", "a:9"), ("worker", "a:2")}


def test_a_part_that_is_switched_off_is_forgotten(database):
    say(database, "a:1", NOW, deltas=WORKS, ingest=WORKS)
    with database.transaction() as tx:
        parts.forget(tx, T0, "deltas")
    assert [one.part for one in standstills(database, after(600))] == ["ingest"]


class TestPulse:
    """How the parts of one process are."""

    @pytest.fixture
    def pulse(self) -> Pulse:
        pulse = Pulse()
        pulse.begin("ingest", now=NOW)
        return pulse

    def test_a_part_works_from_its_first_round_on_and_not_before(self, pulse: Pulse):
        assert pulse.states(now=after(3)) == {"ingest": PartState(parts.JUST_BEGUN, NOW)}
        pulse.worked("ingest", now=after(4))
        assert pulse.states(now=after(5)) == {"ingest": PartState("", NOW, after(5))}

    def test_a_part_whose_round_does_not_end_hangs(self, pulse: Pulse):
        pulse.worked("ingest", now=NOW)
        assert pulse.states(now=after(120))["ingest"].trouble == ""
        assert pulse.states(now=after(121))["ingest"] == PartState(
            "It has not ended a round of its work since 2026-03-01 02:13:00 UTC.", NOW, after(120)
        )

    def test_what_it_sees_itself_is_its_trouble_until_it_is_over(self, pulse: Pulse):
        trouble = [""]
        pulse.watch("ingest", lambda: trouble[0])
        pulse.worked("ingest", now=NOW)
        pulse.states(now=after(1))
        trouble[0] = "no connection"
        pulse.worked("ingest", now=after(2))
        assert pulse.states(now=after(2)) == {"ingest": PartState("no connection", NOW, after(1))}
        trouble[0] = ""
        assert pulse.states(now=after(3))["ingest"] == PartState("", NOW, after(3))
        trouble[0] = "x" * 2000
        assert pulse.states(now=after(4))["ingest"] == PartState("x" * parts.MAX_TEXT, NOW, after(3))

    def test_a_failure_lasts_until_a_round_is_done_again(self, pulse: Pulse):
        pulse.worked("ingest", now=NOW)
        pulse.states(now=NOW)
        pulse.failed("ingest", "keys are missing")
        assert pulse.states(now=after(4000))["ingest"] == PartState("keys are missing", NOW, NOW)
        pulse.worked("ingest", now=after(4001))
        assert pulse.states(now=after(4002))["ingest"].trouble == ""

    def test_a_part_that_ended_is_not_asked_any_more(self, pulse: Pulse):
        def look() -> str:
            raise LookupError("its connection is gone")

        pulse.watch("ingest", look)
        pulse.failed("ingest", "it failed")
        assert pulse.states(now=after(1))["ingest"].trouble == "it failed"

    def test_a_part_that_another_process_has_is_none_of_this_one(self, pulse: Pulse):
        pulse.worked("controller", now=NOW)
        assert list(pulse.states(now=NOW)) == ["ingest"]
