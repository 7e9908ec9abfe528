"""Telling people: an alert becomes a job for each address of each recipient, in the transaction of what it tells of.

No second one within the hold time.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from fleet import db, jobs
from fleet.monitoring.alerts import store
from fleet.monitoring.alerts.model import Alert, Recipient, RecipientKind
from protocol.ids import TenantId

#: Kind of the job that brings one alert to one recipient; its handler is in fleet.service.
DELIVER = "deliver-alert"
#: Deliveries that must not hang side by side: all mail goes through one server. Each webhook is a lane of its own.
MAIL_LANE = "mail"
#: Kind of the job that publishes an event on `f/alarm`, as `drift_alarms` does for alarms.
PUBLISH = "publish-alarm"
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
    _tell(tx, tenant, alert, now=now)
    return True


def announce_over(tx: db.Connection, tenant: TenantId, alert: Alert, *, now: datetime) -> bool:
    """Tell that it is over; returns False, telling nobody, when nobody was told that it began."""
    db.lock(tx, f"alert/{tenant}/{alert.subject}")
    told = store.find_told(tx, tenant, alert.subject)
    if told is None or not told[1]:
        return False
    store.save_told(tx, tenant, alert.subject, told_at=told[0], is_open=False)
    _tell(tx, tenant, alert, now=now)
    return True


def _tell(tx: db.Connection, tenant: TenantId, alert: Alert, *, now: datetime) -> None:
    jobs.add(tx, tenant=tenant, kind=PUBLISH, payload={"event": cloud_event(alert, tenant)}, now=now)
    queue(tx, store.list_recipients(tx, tenant), alert, now=now)


def queue(tx: db.Connection, recipients: Iterable[Recipient], alert: Alert, *, now: datetime) -> list[str]:
    """A job for each address of each enabled recipient that wants alerts of this topic; returns the jobs' ids."""
    topic = alert.type.split(".")[1]
    made = []
    for recipient in recipients:
        if recipient.is_enabled and (not recipient.topics or topic in recipient.topics):
            made += _queue_for(tx, recipient, alert, now=now)
    return made


def _queue_for(tx: db.Connection, recipient: Recipient, alert: Alert, *, now: datetime) -> list[str]:
    made = []
    for number, address in enumerate(recipient.addresses):
        payload: dict[str, Any] = {"recipient": recipient.name, "alert": alert_document(alert)}
        key, lane = f"{recipient.name}/{alert.id}", f"webhook/{recipient.name}"
        if recipient.kind is RecipientKind.MAIL:  # a webhook's address may hold a secret, which stays where it is
            payload["address"], key, lane = address, f"{key}/{number}", MAIL_LANE
        job = jobs.add(tx, tenant=recipient.tenant, kind=DELIVER, payload=payload, now=now, key=key, lane=lane, max_attempts=ATTEMPTS)
        made += [job] if job else []
    return made


def link_to(alert: Alert, console_url: str) -> str:
    """The page of the console about what the alert tells of; empty without a console. Pure."""
    if not console_url:
        return ""
    alarm, device = alert.data.get("alarm"), alert.data.get("device")
    page = (
        f"alarms/{quote(str(alarm), safe='')}"
        if alarm
        else f"devices/{quote(str(device), safe='')}"
        if device
        else ""
        if "part" in alert.data
        else "alarms"
    )
    return f"{console_url}/{page}"


def cloud_event(alert: Alert, tenant: TenantId, *, link: str = "") -> dict[str, Any]:
    """The alert as a CloudEvent in structured mode (CloudEvents 1.0.2, JSON format); `link` leads people to more. Pure."""
    more = {"link": link} if link else {}
    return {
        "specversion": "1.0",
        "id": alert.id,
        "source": f"/mooring/{tenant}",
        "type": alert.type,
        "subject": alert.subject,
        "time": alert.time.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "v": 1,
        "data": {"title": alert.title[:500], "text": alert.text[:4000], "severity": alert.severity, **more, **alert.data},
    }


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
