"""Conditions: declared, raised once, cleared when over, each with what to do."""

import logging
from datetime import UTC, datetime

import pytest
from simulators.clock import FakeClock

from agent.conditions import KINDS, LOG_AGAIN_S, Conditions, Severity
from protocol.clock import SystemClock


class Ticking(SystemClock):
    """A minute passes with each look."""

    minute = 0

    def now(self) -> datetime:
        self.minute += 1
        return datetime(2026, 3, 1, 0, self.minute, tzinfo=UTC)


def test_every_condition_says_what_to_do():
    assert all(kind.advice.endswith(".") and len(kind.advice) > 20 for kind in KINDS.values())


def test_an_undeclared_condition_is_a_programmers_mistake():
    with pytest.raises(LookupError):
        Conditions(SystemClock()).set("on_fire", "x")


def test_since_is_the_first_time_and_the_text_the_last():
    conditions = Conditions(Ticking())
    conditions.set("disk_full", "a")
    first = conditions.active()[0]
    conditions.set("disk_full", "b")
    assert (conditions.active()[0].since, conditions.active()[0].text) == (first.since, "b")
    conditions.clear("disk_full")
    conditions.set("disk_full", "c")
    assert conditions.active()[0].since > first.since


def test_the_revision_grows_with_changes_only():
    conditions = Conditions(SystemClock())
    conditions.set("disk_full", "a")
    before = conditions.revision
    conditions.set("disk_full", "a")
    conditions.clear("no_model")
    assert conditions.revision == before
    conditions.clear("disk_full")
    assert conditions.revision == before + 1


def test_a_group_replaces_what_it_raised_and_nothing_else():
    conditions = Conditions(SystemClock())
    conditions.set("disk_full", "x")
    conditions.replace("inference", [("source_lost", "a", "front"), ("source_lost", "b", "back")])
    conditions.replace("inference", [("source_lost", "c", "back")])
    assert {(c.code, c.subject, c.text) for c in conditions.active()} == {("disk_full", "", "x"), ("source_lost", "back", "c")}
    conditions.replace("inference", [])
    assert [c.code for c in conditions.active()] == ["disk_full"]


def test_the_worst_comes_first_and_the_report_names_the_subject():
    conditions = Conditions(Ticking())
    conditions.set("source_ended", "over", subject="a")
    conditions.set("accelerator_fallback", "cpu", subject="a")
    conditions.set("source_lost", "gone", subject="front")
    assert [c.severity for c in conditions.active()] == [Severity.ERROR, Severity.WARNING, Severity.INFO]
    report = conditions.active()[0].report()
    assert (report.code, report.severity, report.text) == ("source_lost", "error", "front: gone")
    assert report.since == 1_772_323_380_000


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "mooring.conditions"]


def test_the_log_keeps_when_something_began_with_what_to_do_and_when_it_was_over(caplog):
    caplog.set_level(logging.INFO)
    conditions = Conditions(SystemClock())
    for text in ("No frame since 12:00.", "No frame since 12:00, third try."):
        conditions.replace("pipelines", [("source_lost", text, "front")])
    conditions.replace("pipelines", [])
    conditions.replace("pipelines", [])
    began, over = logged(caplog)
    assert began == (logging.ERROR, f"source_lost (front): No frame since 12:00. {KINDS['source_lost'].advice}")
    assert over == (logging.INFO, "over: source_lost (front)")


def test_what_comes_and_goes_is_logged_once_in_ten_minutes(caplog):
    caplog.set_level(logging.INFO)
    clock = FakeClock()
    conditions = Conditions(clock)
    for _ in range(50):
        conditions.set("broker_unreachable", "Nobody answers.")
        conditions.clear("broker_unreachable")
    assert len(logged(caplog)) == 2
    clock.advance(LOG_AGAIN_S)
    conditions.set("broker_unreachable", "Nobody answers.")
    assert len(logged(caplog)) == 3


def test_a_text_that_quotes_the_outside_stays_one_line_of_the_log(caplog):
    conditions = Conditions(SystemClock())
    conditions.set("report_refused", "The server said: no\nERROR mooring forged line" + "!" * 5000)
    ((level, text),) = logged(caplog)
    assert level == logging.ERROR
    assert "\n" not in text
    assert len(text) < 700
