"""Health follows from conditions alone; silence makes a device offline."""

from datetime import UTC, datetime, timedelta

from fleet.monitoring.health import SILENT_AFTER, conditions_of, health_of, is_silent
from fleet.monitoring.model import Condition, Health, Severity
from protocol.messages import ConditionReport, Presence

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def condition(severity: Severity) -> Condition:
    return Condition("code", severity, "text")


def test_no_condition_or_only_information_is_healthy():
    assert health_of([]) is Health.HEALTHY
    assert health_of([condition(Severity.INFO)]) is Health.HEALTHY


def test_the_worst_condition_decides():
    assert health_of([condition(Severity.INFO), condition(Severity.WARNING)]) is Health.DEGRADED
    assert health_of([condition(Severity.ERROR), condition(Severity.WARNING)]) is Health.FAILED


def test_one_condition_per_code_the_worst_with_a_date_beyond_the_calendar_left_out():
    reports = [
        ConditionReport(code="disk", severity="warning", text="low", since=1),
        ConditionReport(code="disk", severity="error", text="full", since=2**53 - 1),
        ConditionReport(code="camera", severity="info", text="slow", since=1_000),
    ]
    camera, disk = conditions_of(reports)
    assert (camera.code, camera.since) == ("camera", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    assert (disk.severity, disk.text, disk.since) == (Severity.ERROR, "full", None)


def test_only_an_online_device_not_heard_for_long_is_silent():
    long_ago = NOW - SILENT_AFTER - timedelta(seconds=1)
    assert is_silent(Presence.ONLINE, long_ago, NOW)
    assert not is_silent(Presence.ONLINE, NOW - SILENT_AFTER, NOW)
    assert not is_silent(Presence.SLEEPING, long_ago, NOW)
    assert not is_silent(Presence.ONLINE, None, NOW)
