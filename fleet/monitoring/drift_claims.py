"""Alarms that a device says it has and nothing here confirms: with the reason, once what it owes has had its time (DRIFT 5.5).

A device that crosses sends the sub-windows of the stretch at once, and its own word on the topic `drift`; only those windows raise an
alarm. Where they do not come, or do not say so, people see the device's word as what it is: unconfirmed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fleet.db import Connection, Database
from fleet.monitoring import alarm_store, drift_store, quarantine_store, reference_store
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.drift_looking import SCORE_MISMATCH
from fleet.monitoring.drift_model import BY_WINDOWS, Alarm, AlarmSubject, Check, SubjectKind
from fleet.monitoring.drift_tables import SeriesRow
from protocol.clock import from_unix_ms, to_unix_ms
from protocol.ids import DeviceId, TenantId
from protocol.sketches.codec import SUBWINDOW_MS

#: What a device owes comes within seconds while it is connected; so long after the sub-window that crossed its word stands alone.
CLAIM_WAITS = timedelta(minutes=30)
#: Alarms of a device that its word is compared with, the latest, and devices that are looked at.
_ALARMS, MOST_CLAIMS = 50, 200


@dataclass(frozen=True, slots=True)
class Claim:
    """What a device says of one pipeline, and why it stands alone."""

    device: DeviceId
    pipeline: str
    line: str
    model: str
    #: Start of the sub-window that crossed, by the device's clock, and when its word came last.
    raised_at: datetime
    told_at: datetime
    #: Sub-windows of the stretch that crossed, and how many of them came.
    stretch: int
    here: int
    #: What was said of it against what raises.
    evidence: float
    threshold: float | None
    #: A sentence.
    reason: str


def list_unconfirmed(database: Database, tenant: TenantId, *, now: datetime, device: DeviceId | None = None) -> list[Claim]:
    """Claims older than `CLAIM_WAITS` that no alarm answers, newest first, of `MOST_CLAIMS` devices at most. Raises: UnavailableError."""
    with database.reading() as tx:
        said = monitoring_store.list_states_saying(tx, tenant, "drift", '"raised"', device=device, limit=MOST_CLAIMS)
        found = [
            claim
            for name, state in said.items()
            if state.body.get("check") != Check.SERVER
            for one in state.body.get("pipelines", ())
            if (claim := _claim(tx, tenant, name, one, told_at=state.received_at, now=now)) is not None
        ]
    return sorted(found, key=lambda claim: (claim.raised_at, claim.device, claim.pipeline), reverse=True)


def _claim(tx: Connection, tenant: TenantId, device: DeviceId, said: Any, *, told_at: datetime, now: datetime) -> Claim | None:
    """The claim in one row of the state topic; None: there is none, it is young, or an alarm answers it."""
    if said.get("state") != "raised" or not said.get("raised_at") or not said.get("model"):
        return None
    raised_at = from_unix_ms(int(said["raised_at"]))
    if now < raised_at + timedelta(milliseconds=SUBWINDOW_MS) + CLAIM_WAITS:
        return None
    subject = AlarmSubject(SubjectKind.DEVICE, device, str(said["pipeline"]), str(said["model"]))
    if any(_answers(alarm, subject, raised_at) for alarm in alarm_store.list_alarms(tx, tenant, device=device, limit=_ALARMS)):
        return None
    stretch = max(1, int(said.get("stretch") or 1))
    rows = drift_store.list_series(tx, tenant, devices=[device], pipeline=subject.pipeline)
    row = next((one for one in rows if one.model == subject.model and one.grid_id == said.get("grid")), None)
    w0 = to_unix_ms(raised_at) // SUBWINDOW_MS
    windows = [] if row is None else drift_store.list_windows(tx, tenant, row.series_key, start=w0 - stretch + 1, end=w0 + 1)
    here = sum(one.nsub == 1 for one in windows)
    return Claim(
        device,
        subject.pipeline,
        str(said.get("line", "")),
        subject.model,
        raised_at,
        told_at,
        stretch,
        here,
        float(said.get("evidence") or 0.0),
        said.get("threshold"),
        _reason(tx, tenant, device, said, row, here=here, stretch=stretch),
    )


def _answers(alarm: Alarm, subject: AlarmSubject, raised_at: datetime) -> bool:
    """Whether the alarm is what came of the claim: it is open, or it was raised since; who ended it has seen it."""
    return alarm.subject == subject and alarm.cause in BY_WINDOWS and (alarm.is_open or alarm.raised_at >= raised_at)


def _reason(tx: Connection, tenant: TenantId, device: DeviceId, said: Any, row: SeriesRow | None, *, here: int, stretch: int) -> str:
    if row is None:
        waiting = quarantine_store.list_waiting(tx, tenant, device=device)
        if any(one.key.model == said["model"] and one.key.pipeline == said["pipeline"] for one in waiting):
            return f"Its windows wait for the release that brings grid {str(said.get('grid', ''))[:12]}."
        return "No window of this model version came from the device."
    reference = str(said.get("reference", ""))
    if reference not in _known(tx, row):
        return f"The reference that it judged by ({reference[:12] or 'none'}) is not here: its event was lost or refused."
    if here == 0:
        return f"None of the {_windows(stretch)} that its claim rests on came."
    if SCORE_MISMATCH in row.conditions:
        return f"{here} of {_windows(stretch)} are here, and their counts do not confirm it."
    if here < stretch:
        return f"{here} of the {_windows(stretch)} that its claim rests on came; they do not raise an alarm."
    return "All that its claim rests on is here and raises no alarm at the false alarms allowed."


def _known(tx: Connection, row: SeriesRow) -> Sequence[str]:
    return [one.reference_id for one in reference_store.list_references(tx, row)]


def _windows(count: int) -> str:
    return f"{count} sub-window{'' if count == 1 else 's'}"
