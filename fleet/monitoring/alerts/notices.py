"""Alarms of drift as alerts: what people and machines are told when one is raised, reopened or cleared."""

from datetime import datetime
from typing import Any

from fleet import db
from fleet.monitoring.alerts import announcing, store
from fleet.monitoring.alerts.model import ALARM_CLEARED, ALARM_RAISED, ALARM_REOPENED, Alert
from fleet.monitoring.drift_model import Alarm, Notice
from protocol.canonical import digest_of

#: What a notice is called on the wire; somebody who takes an alarm tells nobody else by it.
TYPES = {"raised": ALARM_RAISED, "reopened": ALARM_REOPENED, "cleared": ALARM_CLEARED}
#: Features and devices named in one alert.
MAX_NAMED = 10


def tell(tx: db.Connection, notice: Notice, *, now: datetime) -> list[str]:
    """Queue the alert for every recipient that wants alarms, in the transaction of the change; returns the jobs' ids.

    Whether somebody is to be told (hold time, mute) was decided by who made the notice.
    """
    alert = alert_of(notice, now=now)
    return announcing.queue(tx, store.list_recipients(tx, notice.alarm.tenant), alert, now=now) if alert else []


def alert_of(notice: Notice, *, now: datetime) -> Alert | None:
    """The alert; None for a notice that tells nobody. Pure."""
    if notice.what not in TYPES:
        return None
    alarm = notice.alarm
    place = subject_words(alarm)
    return Alert(
        id=f"{alarm.alarm}-{notice.what}-{alarm.revision}",
        type=TYPES[notice.what],
        subject=f"alarm/{digest_of(alarm.subject.text.encode())[7:39]}",
        time=now,
        title=f"Drift on {place} {'is over' if notice.what == 'cleared' else 'again' if notice.what == 'reopened' else 'was noticed'}",
        text=alarm.words or f"What {place} sees or answers is no longer like its reference.",
        severity="info" if notice.what == "cleared" else "error",
        data=data_of(alarm),
    )


def subject_words(alarm: Alarm) -> str:
    """What the alarm is about, for people. Pure."""
    subject = alarm.subject
    return f"{subject.name}, pipeline {subject.pipeline}" if subject.pipeline else f"{subject.kind.value} {subject.name}"


def data_of(alarm: Alarm) -> dict[str, Any]:
    """The alarm in an alert's data. Pure."""
    return {
        "alarm": alarm.alarm,
        "state": alarm.state.value,
        "outcome": alarm.outcome.value if alarm.outcome else None,
        "kind": alarm.subject.kind.value,
        "name": alarm.subject.name,
        "pipeline": alarm.subject.pipeline,
        "cause": alarm.cause.value,
        "grade": alarm.grade.value,
        "onset": alarm.onset.isoformat(),
        "raised_at": alarm.raised_at.isoformat(),
        "features": [{"feature": one.feature, "word": one.word, "share": round(one.share, 4)} for one in alarm.features[:MAX_NAMED]],
        "devices": list(alarm.devices[:MAX_NAMED]),
        "device_count": len(alarm.devices),
        "reopened": alarm.reopened,
    }
