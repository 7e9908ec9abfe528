"""What people do with alarms: look, take, clear, mute, ask how the promise was kept; each change with its audit entry."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from fleet.audit import Actor
from fleet.db import Connection, Database, check_revision
from fleet.monitoring import alarm_store, alarms, drift_budget, drift_sums, reference_store
from fleet.monitoring.drift_alarms import clear_alarm, save_changed, set_taken, tell
from fleet.monitoring.drift_model import Alarm, AlarmEvent, AlarmState, FalseAlarms, Notice
from fleet.monitoring.drift_rules import DriftRules
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId

#: Longest time that an alarm may be muted, days.
MAX_MUTE_DAYS = 365


def list_alarms(
    database: Database,
    tenant: TenantId,
    *,
    states: Sequence[AlarmState] = (),
    device: DeviceId | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Alarm]:
    """Alarms, those raised last first, after the alarm id `after`; `states`: those alone; `device`: its own and those that hold it."""
    with database.reading() as tx:
        last = alarm_store.get_alarm(tx, tenant, after) if after is not None else None
        return alarm_store.list_alarms(tx, tenant, states=states, device=device, after=last, limit=limit)


def get_alarm(database: Database, tenant: TenantId, alarm: str) -> Alarm:
    """The alarm. Raises: NotFoundError."""
    with database.reading() as tx:
        return alarm_store.get_alarm(tx, tenant, alarm)


def acknowledge(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    by: Actor,
    now: datetime,
    note: str = "",
    link: str = "",
    revision: int | None = None,
) -> Alarm:
    """Take it. `link`: the run or site job that answers it. Raises: NotFoundError; ConflictError; StaleRevisionError."""
    with database.transaction() as tx:
        found = _held(tx, tenant, alarm, revision)
        taken = alarms.acknowledged(found, by=str(by), now=now, note=note, link=link)
        set_taken(tx, taken, is_taken=True, now=now)
        tell(tx, Notice("acknowledged", taken), now=now)
        save_changed(tx, taken, "alarm.acknowledged", by=by, now=now, reason=note, link=link)
    return taken


def clear(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    outcome: AlarmEvent,
    by: Actor,
    now: datetime,
    reason: str,
    revision: int | None = None,
) -> Alarm:
    """End it as `condition` or `false_alarm`. Raises: NotFoundError; InvalidError; ConflictError; StaleRevisionError."""
    alarms.check_outcome(outcome)
    check_reason(reason)
    with database.transaction() as tx:
        return clear_alarm(tx, _held(tx, tenant, alarm, revision), outcome, by=by, now=now, reason=reason)


def mute(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    until: datetime | None,
    by: Actor,
    now: datetime,
    reason: str,
    revision: int | None = None,
) -> Alarm:
    """Tell nobody of it until then (None: tell again); it is still recorded. Raises: NotFoundError; InvalidError; StaleRevisionError."""
    check_reason(reason)
    if until is not None and not now < until <= now + timedelta(days=MAX_MUTE_DAYS):
        raise InvalidError(
            f"Muted until {until:%Y-%m-%d %H:%M} UTC; wanted a moment after now, which is {now:%Y-%m-%d %H:%M}, "
            f"by {MAX_MUTE_DAYS} days at most.",
            hint="To tell of it again, give no moment.",
        )
    with database.transaction() as tx:
        found = _held(tx, tenant, alarm, revision)
        muted = replace(found, muted_until=until, revision=found.revision + 1)
        until_text = until.isoformat() if until else ""
        save_changed(tx, muted, "alarm.muted" if until else "alarm.unmuted", by=by, now=now, reason=reason, until=until_text)
    return muted


def explain(alarm: Alarm) -> str:
    """The alarm in words: which features moved and how, since when, on how many devices."""
    return alarm.words


def false_alarms(database: Database, tenant: TenantId, *, since: datetime, now: datetime, rules: DriftRules) -> FalseAlarms:
    """How the promised rate was kept since a moment: alarms of devices, and those of them that people called false.

    The rate is what one device is allowed: its own, or its part of what the fleet is.
    """
    with database.reading() as tx:
        rate = drift_budget.allowed(alarms.rate_of(rules.rate, rules.fleet_rate, alarm_store.find_budget(tx, tenant) or 1))
        counts = alarm_store.count_by_outcome(tx, tenant, since=since)
        watched = reference_store.list_watched(tx, tenant)
    years = sum(max(0.0, (min(now, drift_sums.moment_of(end)) - max(since, start)).total_seconds()) for start, end in watched) / (
        365 * 86_400
    )
    count = counts.get(AlarmEvent.FALSE_ALARM, 0)
    return FalseAlarms(count, sum(counts.values()), years, alarms.poisson_bound(count, years), rate)


def _held(tx: Connection, tenant: TenantId, alarm: str, revision: int | None) -> Alarm:
    found = alarm_store.get_alarm(tx, tenant, alarm, is_held=True)
    check_revision(found.revision, revision, what=f"Alarm {alarm}")
    return found


def check_reason(reason: str) -> None:
    """Raises: InvalidError when nobody says why."""
    if not reason.strip():
        raise InvalidError("No reason is given; it goes into the audit log.", hint="Say why.")
