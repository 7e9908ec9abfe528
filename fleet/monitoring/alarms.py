"""How an alarm lives (DRIFT 5.9): raised, taken, cleared, opened again; hold times; how the promised rate was kept. Pure."""

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from fleet.monitoring.drift_model import (
    BY_PERSON,
    MIN_HOLD,
    REOPEN_WITHIN,
    SUB_WINDOW,
    TRANSITIONS,
    Alarm,
    AlarmEvent,
    AlarmState,
    Attribution,
    Cause,
    next_alarm_state,
)
from protocol.errors import ConflictError, InvalidError
from protocol.ids import DeviceId

#: Probability that the true rate lies above the bound.
_BOUND_AT = 0.05


def reopens(earlier: Alarm | None, now: datetime) -> bool:
    """Whether a crossing now opens the subject's last alarm again, in place of a new one."""
    return earlier is not None and earlier.cleared_at is not None and now - earlier.cleared_at <= REOPEN_WITHIN


def opened_again(alarm: Alarm, crossing: Alarm) -> Alarm:
    """The alarm after a new crossing of its subject: raised again, counted. Raises: ConflictError when it is open."""
    return replace(
        crossing,
        alarm=alarm.alarm,
        state=next_alarm_state(alarm.state, AlarmEvent.CROSSING),
        reopened=alarm.reopened + 1,
        parent=alarm.parent,
        note=alarm.note,
        link=alarm.link,
        muted_until=alarm.muted_until,
        notified_at=alarm.notified_at,
        revision=alarm.revision + 1,
    )


def is_told(alarm: Alarm, now: datetime, *, hold: timedelta) -> bool:
    """Whether people are told of a raise now: not while it is muted, and not a second time within the hold time."""
    if alarm.muted_until is not None and now < alarm.muted_until:
        return False
    return alarm.notified_at is None or now - alarm.notified_at >= hold


def acknowledged(alarm: Alarm, *, by: str, now: datetime, note: str, link: str) -> Alarm:
    """The alarm, taken. Raises: ConflictError when it is not raised."""
    state = _after(alarm, AlarmEvent.TAKEN)
    return replace(alarm, state=state, acknowledged_at=now, acknowledged_by=by, note=note, link=link, revision=alarm.revision + 1)


def cleared(alarm: Alarm, outcome: AlarmEvent, *, now: datetime) -> Alarm:
    """The alarm, over. Raises: ConflictError when it is not open, or the event ends none."""
    return replace(alarm, state=_after(alarm, outcome), outcome=outcome, cleared_at=now, revision=alarm.revision + 1)


def _after(alarm: Alarm, event: AlarmEvent) -> AlarmState:
    """Where the event leads the alarm. Raises: ConflictError that says who was there before, and what is left to do."""
    if (alarm.state, event) in TRANSITIONS:
        return next_alarm_state(alarm.state, event)
    if alarm.cleared_at is not None and alarm.state is AlarmState.CLEARED:
        raise ConflictError(
            f"Alarm {alarm.alarm} is over since {alarm.cleared_at:%Y-%m-%d %H:%M} UTC, as {alarm.outcome}.",
            code="alarm-state",
            hint="Nothing is to be done; `mooring alarm list` has those that are open. It opens again by itself when it is seen again.",
        )
    if alarm.acknowledged_at is not None and event is AlarmEvent.TAKEN:
        raise ConflictError(
            f"Alarm {alarm.alarm} was taken by {alarm.acknowledged_by} at {alarm.acknowledged_at:%Y-%m-%d %H:%M} UTC.",
            code="alarm-state",
            hint=f"Ask them, or end it when it is over: mooring alarm clear {alarm.alarm} --as condition|false_alarm.",
        )
    return next_alarm_state(alarm.state, event)


def check_outcome(outcome: AlarmEvent) -> None:
    """Nothing for what a person may clear an alarm as. Raises: InvalidError naming those."""
    if outcome not in BY_PERSON:
        wanted = ", ".join(sorted(BY_PERSON))
        raise InvalidError(f"A person cannot clear an alarm as {outcome.value!r}.", hint=f"Wanted: {wanted}.")


def hold_time(alarm: Alarm, stretch: int) -> timedelta:
    """How long the statistic must stay low: a day, two stretches of so many sub-windows, or twice what it took to raise; the longest."""
    return max(MIN_HOLD, 2 * stretch * SUB_WINDOW, 2 * (alarm.raised_at - alarm.onset))


def settled(alarm: Alarm, low_since: datetime | None, *, now: datetime, hold: timedelta) -> Alarm:
    """The open alarm after a look at its hours: recovered when they have been below √A for the hold time; None: they are not."""
    if not alarm.is_open:
        return alarm
    if low_since is not None and now - low_since >= hold:
        return cleared(replace(alarm, low_since=low_since), AlarmEvent.RECOVERED, now=now)
    return alarm if alarm.low_since == low_since else replace(alarm, low_since=low_since)


def joined(alarm: Alarm, features: Iterable[Attribution], words: str) -> Alarm:
    """The open alarm with features that moved since; those it had stay."""
    known = {one.feature for one in alarm.features}
    new = tuple(one for one in features if one.feature not in known)
    if not new:
        return alarm
    together = (*alarm.features, *new)
    return replace(alarm, features=together, words=words, cause=cause_of(together), revision=alarm.revision + 1)


def adopted(alarm: Alarm, parent: str) -> Alarm:
    """The alarm of one device as part of its group's."""
    return alarm if alarm.parent == parent else replace(alarm, parent=parent, revision=alarm.revision + 1)


def cause_of(features: Iterable[Attribution]) -> Cause:
    """What moved: the input if any of its features did; else how often each answer comes."""
    groups = {one.group for one in features}
    if groups & {"input", "embedding"}:
        return Cause.INPUT
    return Cause.PRIOR if groups & {"output", "classes"} else Cause.UNKNOWN


def rate_of(rate: float, fleet_rate: float, devices: int) -> float:
    """False alarms per device-year that one device may make: its own rate, or its part of the fleet's (0: none is set)."""
    return fleet_rate / max(1, devices) if fleet_rate > 0 else rate


def needs_new_threshold(decided_for: int, devices: int) -> bool:
    """Whether a fleet has grown or shrunk by more than a tenth since its thresholds were set."""
    return abs(devices - decided_for) > 0.1 * max(1, decided_for)


def poisson_bound(count: int, exposure: float) -> float | None:
    """One-sided 95 % upper bound of a rate after `count` events in `exposure`: χ²(0.95; 2 count + 2) / (2 exposure), by bisection."""
    if exposure <= 0:
        return None
    low, high = 0.0, count + 10.0 + 5.0 * math.sqrt(count + 1.0)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, middle) > _BOUND_AT else (low, middle)
    return high / exposure


def _at_most(count: int, mean: float) -> float:
    """Probability of at most `count` events of a Poisson variable."""
    if mean <= 0:
        return 1.0
    logs = [k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(count + 1)]
    return math.fsum(map(math.exp, logs))


def devices_of(alarms: Iterable[Alarm]) -> tuple[DeviceId, ...]:
    """All devices that the alarms hold, in order."""
    return tuple(sorted({device for alarm in alarms for device in alarm.devices}))
