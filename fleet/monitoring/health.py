"""From conditions and presence to health. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from fleet.monitoring.model import Condition, Health, Severity
from protocol.clock import from_unix_ms
from protocol.messages import ConditionReport, Presence

#: An online device that said nothing for so long is offline, whatever its Will did (a broker that died sends none).
SILENT_AFTER = timedelta(minutes=10)


def health_of(conditions: Iterable[Condition]) -> Health:
    """Failed with one error, degraded with one warning, else healthy."""
    worst = {condition.severity for condition in conditions}
    if Severity.ERROR in worst:
        return Health.FAILED
    return Health.DEGRADED if Severity.WARNING in worst else Health.HEALTHY


def conditions_of(reports: Iterable[ConditionReport]) -> tuple[Condition, ...]:
    """Conditions as the device reported them, one per code, the worst of each, in order of code."""
    order = [Severity.INFO, Severity.WARNING, Severity.ERROR]
    by_code: dict[str, Condition] = {}
    for report in reports:
        one = Condition(report.code, Severity(report.severity), report.text, _moment(report.since))
        held = by_code.get(one.code)
        if held is None or order.index(one.severity) > order.index(held.severity):
            by_code[one.code] = one
    return tuple(by_code[code] for code in sorted(by_code))


def is_silent(presence: Presence, last_seen: datetime | None, now: datetime) -> bool:
    """Whether a device said to be online has not been heard for so long that it is not."""
    return presence is Presence.ONLINE and last_seen is not None and now - last_seen > SILENT_AFTER


def _moment(unix_ms: int) -> datetime | None:
    try:
        return from_unix_ms(unix_ms)
    except (ValueError, OverflowError):
        return None
