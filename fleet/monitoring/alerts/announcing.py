"""Telling people: an alert becomes one job per target, in the transaction of what it tells of; no second one within the hold time."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from fleet import db, jobs
from fleet.monitoring.alerts import store
from fleet.monitoring.alerts.model import Alert, Target
from protocol.ids import TenantId

#: Kind of the job that brings one alert to one target; its handler is in fleet.service.
DELIVER = "deliver-alert"
#: Attempts of one delivery; with the pauses of fleet.jobs about two hours.
ATTEMPTS = 12
#: Time that must lie between two messages that the same thing is wrong (again), unless the caller knows better.
HOLD = timedelta(hours=1)


def announce_open(tx: db.Connection, tenant: TenantId, alert: Alert, *, now: datetime, hold: timedelta = HOLD) -> bool:
    """Tell that something is wrong; returns False, telling nobody, when that was told of the same subject within `hold`."""
    db.lock(tx, f"alert/{tenant}/{alert.subject}")
    told = store.find_told(tx, tenant, alert.subject)
    if told is not None and now - told[0] < hold:
        return False
    store.save_told(tx, tenant, alert.subject, told_at=now, is_open=True)
    queue(tx, store.list_targets(tx, tenant), alert, now=now)
    return True


def announce_over(tx: db.Connection, tenant: TenantId, alert: Alert, *, now: datetime) -> bool:
    """Tell that it is over; returns False, telling nobody, when nobody was told that it began."""
    db.lock(tx, f"alert/{tenant}/{alert.subject}")
    told = store.find_told(tx, tenant, alert.subject)
    if told is None or not told[1]:
        return False
    store.save_told(tx, tenant, alert.subject, told_at=told[0], is_open=False)
    queue(tx, store.list_targets(tx, tenant), alert, now=now)
    return True


def queue(tx: db.Connection, targets: Iterable[Target], alert: Alert, *, now: datetime) -> list[str]:
    """One job per enabled target that wants alerts of this topic; returns the jobs' ids."""
    topic = alert.type.split(".")[1]
    made = []
    for target in targets:
        if target.is_enabled and (not target.topics or topic in target.topics):
            payload = {"target": target.name, "alert": alert_document(alert)}
            key = f"{target.name}/{alert.id}"
            job = jobs.add(tx, tenant=target.tenant, kind=DELIVER, payload=payload, now=now, key=key, max_attempts=ATTEMPTS)
            made += [job] if job else []
    return made


def alert_document(alert: Alert) -> dict[str, Any]:
    """The alert as JSON, for the job that delivers it."""
    return {
        "id": alert.id,
        "type": alert.type,
        "subject": alert.subject,
        "time": alert.time.isoformat(),
        "title": alert.title,
        "text": alert.text,
        "severity": alert.severity,
        "data": dict(alert.data),
    }


def alert_of(document: dict[str, Any]) -> Alert:
    """The alert that `alert_document` wrote."""
    return Alert(**{**document, "time": datetime.fromisoformat(document["time"])})
