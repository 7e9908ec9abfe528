"""Alarms in the database: raised, opened again, joined and cleared, each with its audit entry and its notice in the same transaction."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from fleet import audit, jobs
from fleet.audit import Actor, ActorKind
from fleet.db import Connection
from fleet.devices import twins
from fleet.devices.model import DriftPatch
from fleet.monitoring import alarm_store, alarms
from fleet.monitoring.alerts import notices
from fleet.monitoring.drift_model import BY_WINDOWS, Alarm, AlarmEvent, Cause, Notice, SubjectKind
from protocol.clock import to_unix_ms
from protocol.errors import NotFoundError
from protocol.ids import TenantId

#: The name of what judges in the audit log.
DETECTOR = Actor(ActorKind.SERVICE, "drift")
#: Kind of the job that publishes a notice on `f/alarm`; its handler is in fleet.service.
PUBLISH_ALARM = "publish-alarm"


def raise_alarm(tx: Connection, crossing: Alarm, *, now: datetime, hold: timedelta) -> Alarm:
    """What the subject's alarm is after a crossing: a new one, its last one again, or the open one with what moved since.

    `crossing`: the alarm as it would be if it were the first. `hold`: in that time people are not told twice.
    """
    causes = {Cause.CONCEPT} if crossing.cause is Cause.CONCEPT else BY_WINDOWS
    known = alarm_store.find_latest(tx, crossing.tenant, crossing.subject, causes=causes)
    if known is not None and known.is_open:
        wider = alarms.joined(known, crossing.features, crossing.words)
        wider = replace(wider, low_since=None, evidence=tuple(dict.fromkeys((*known.evidence, *crossing.evidence)))[-100:])
        if wider != known:
            alarm_store.save_alarm(tx, wider)
        if wider.features != known.features:
            _record(tx, wider, DETECTOR, "alarm.widened", now)
        return wider
    if known is not None and alarms.reopens(known, now):
        return _opened(tx, alarms.opened_again(known, crossing), "reopened", now=now, hold=hold, is_new=False)
    return _opened(tx, crossing, "raised", now=now, hold=hold, is_new=True)


def _opened(tx: Connection, alarm: Alarm, what: str, *, now: datetime, hold: timedelta, is_new: bool) -> Alarm:
    is_told = alarms.is_told(alarm, now, hold=hold)
    alarm = replace(alarm, notified_at=now) if is_told else alarm
    if is_new:
        alarm_store.add_alarm(tx, alarm)
    else:
        alarm_store.save_alarm(tx, alarm)
    if is_told:
        tell(tx, Notice(what, alarm), now=now)
    _record(tx, alarm, DETECTOR, f"alarm.{what}", now)
    return alarm


def clear_alarm(tx: Connection, alarm: Alarm, outcome: AlarmEvent, *, by: Actor, now: datetime, reason: str = "") -> Alarm:
    """The alarm, over; people are told unless it is muted. Raises: ConflictError when it is not open; StaleRevisionError."""
    over = alarms.cleared(alarm, outcome, now=now)
    save_cleared(tx, over, by=by, now=now, reason=reason)
    return over


def save_cleared(tx: Connection, over: Alarm, *, by: Actor, now: datetime, reason: str = "") -> None:
    """Keep an alarm that was just cleared."""
    alarm_store.save_alarm(tx, over)
    set_taken(tx, over, is_taken=False, now=now)
    if over.muted_until is None or now >= over.muted_until:
        tell(tx, Notice("cleared", over), now=now)
    _record(tx, over, by, "alarm.cleared", now, reason=reason, outcome=str(over.outcome))


def save_changed(tx: Connection, alarm: Alarm, action: str, *, by: Actor, now: datetime, reason: str = "", **detail: Any) -> None:
    """Keep an alarm that somebody changed, with the audit entry."""
    alarm_store.save_alarm(tx, alarm)
    _record(tx, alarm, by, action, now, reason=reason, **detail)


def tell(tx: Connection, notice: Notice, *, now: datetime) -> None:
    """Queue what people and consumers are told: webhooks and mail, and `f/alarm`."""
    notices.tell(tx, notice, now=now)
    payload = {"event": cloud_event(notice, now=now)}
    jobs.add(tx, tenant=notice.alarm.tenant, kind=PUBLISH_ALARM, payload=payload, now=now)


def cloud_event(notice: Notice, *, now: datetime) -> dict[str, Any]:
    """The notice as a CloudEvent in structured mode (CloudEvents 1.0.2). Pure."""
    alarm = notice.alarm
    return {
        "specversion": "1.0",
        "id": f"{alarm.alarm}-{notice.what}-{alarm.revision}",
        "source": f"/mooring/{alarm.tenant}/alarms",
        "type": f"mooring.alarm.{notice.what}.v1",
        "subject": alarm.alarm,
        "time": now.isoformat(),
        "datacontenttype": "application/json",
        "v": 1,
        "data": {**notices.data_of(alarm), "model": alarm.subject.model, "words": alarm.words, "ts": to_unix_ms(now)},
    }


def set_taken(tx: Connection, alarm: Alarm, *, is_taken: bool, now: datetime) -> None:
    """Tell the device whether somebody takes care of its alarm."""
    subject = alarm.subject
    if subject.kind is not SubjectKind.DEVICE:
        return

    def change(patch: DriftPatch) -> DriftPatch:
        names = set(patch.acknowledged or ()) - {subject.pipeline} | ({subject.pipeline} if is_taken else set())
        return patch.model_copy(update={"acknowledged": tuple(sorted(names)) or None})

    change_twin(tx, alarm.tenant, alarm, change, now=now)


def change_twin(tx: Connection, tenant: TenantId, alarm: Alarm, change: Any, *, now: datetime) -> None:
    """Change what the device is told of drift; nothing for a device that is gone."""
    for device in alarm.devices[:1]:
        try:
            twins.change_drift(tx, tenant, device, change, now=now)
        except NotFoundError:
            return


def _record(tx: Connection, alarm: Alarm, by: Actor, action: str, now: datetime, *, reason: str = "", **detail: Any) -> None:
    told: Mapping[str, Any] = {"subject": alarm.subject.text, "state": str(alarm.state), "words": alarm.words[:500], **detail}
    audit.append(tx, tenant=alarm.tenant, actor=by, action=action, subject=f"alarm/{alarm.alarm}", now=now, reason=reason, detail=told)
