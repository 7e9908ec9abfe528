"""What stands still is told by the part, since when and why; what breaks for a moment, or works elsewhere, is not: on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from fleet import parts
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

    def test_a_part_that_runs_and_sees_no_trouble_works(self, pulse: Pulse):
        assert pulse.states(now=after(3)) == {"ingest": PartState("", NOW, after(3))}

    def test_what_it_sees_itself_is_its_trouble_until_it_is_over(self, pulse: Pulse):
        trouble = ["no connection"]
        pulse.watch("ingest", lambda: trouble[0])
        pulse.states(now=after(1))
        assert pulse.states(now=after(2)) == {"ingest": PartState("no connection", NOW)}
        trouble[0] = ""
        assert pulse.states(now=after(3))["ingest"] == PartState("", NOW, after(3))
        trouble[0] = "x" * 2000
        assert pulse.states(now=after(4))["ingest"] == PartState("x" * parts.MAX_TEXT, NOW, after(3))

    def test_a_failure_lasts_until_it_has_not_happened_again_for_a_while(self, pulse: Pulse):
        pulse.states(now=NOW)
        pulse.failed("ingest", "keys are missing", now=after(10))
        assert pulse.states(now=after(49))["ingest"] == PartState("keys are missing", NOW, NOW)
        assert pulse.states(now=after(50))["ingest"].trouble == ""

    def test_a_part_that_ended_is_not_asked_any_more(self, pulse: Pulse):
        def look() -> str:
            raise LookupError("its connection is gone")

        pulse.watch("ingest", look)
        pulse.failed("ingest", "it failed", now=NOW)
        assert pulse.states(now=after(1))["ingest"].trouble == "it failed"
