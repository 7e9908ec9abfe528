"""Labels: what somebody, or a bigger model, says of answers; how right the model is by them, and whether their meaning moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fleet import audit
from fleet.audit import Actor
from fleet.db import Connection, Database
from fleet.monitoring import accuracy, alarm_store, alarms, drift_reading
from fleet.monitoring.alarm_store import Label
from fleet.monitoring.drift_alarms import raise_alarm
from fleet.monitoring.drift_model import DAY, Alarm, AlarmState, Cause, Measured
from fleet.monitoring.drift_profiles import find_profile
from fleet.monitoring.drift_tables import SeriesRow
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId, new_id

#: Labels of one request.
MAX_LABELS = 1000
#: Clocks of those who label may be so far ahead.
AHEAD = timedelta(minutes=10)
ORIGINS = ("random", "uncertain", "bigger-model")


@dataclass(frozen=True, slots=True)
class LabelDraft:
    """What somebody says of one answer."""

    #: Unique: the same label sent twice counts once. Empty: a new one.
    label: str
    device: DeviceId
    pipeline: str
    is_right: bool
    labeled_at: datetime
    slice: str = ""
    origin: str = "random"


def add_labels(database: Database, *, tenant: TenantId, labels: Sequence[LabelDraft], by: Actor, now: datetime) -> int:
    """Keep labels and judge by them whether the meaning of inputs moved; returns how many were new.

    Only those drawn at random measure accuracy. Raises: NotFoundError for a pipeline without sketches; InvalidError.
    """
    if not 1 <= len(labels) <= MAX_LABELS:
        raise InvalidError(f"{len(labels)} labels; wanted 1 to {MAX_LABELS}.")
    if bad := next((one.origin for one in labels if one.origin not in ORIGINS), None):
        raise InvalidError(f"Labels of origin {bad[:80]!r}.", hint=f"Wanted one of {', '.join(ORIGINS)}.")
    latest = max(one.labeled_at for one in labels)
    if latest > now + AHEAD:
        seen = f"A label of an answer at {latest.isoformat()}; it is {now.isoformat()}."
        raise InvalidError(seen, hint="`at` is when the answer was given.")
    with database.transaction() as tx:
        rows = {(one.device, one.pipeline): drift_reading.current_series(tx, tenant, one.device, one.pipeline)[0] for one in labels}
        kept = [
            Label(
                label=one.label or new_id("lb"),
                device=one.device,
                pipeline=one.pipeline,
                model=rows[one.device, one.pipeline].model,
                slice=one.slice,
                is_right=one.is_right,
                origin=one.origin,
                labeled_at=one.labeled_at,
                labeled_by=str(by),
            )
            for one in labels
        ]
        new = alarm_store.add_labels(tx, tenant, kept, now=now)
        for row in rows.values():
            _judge_concept(tx, row, now=now)
        detail = {"labels": len(labels), "new": new, "devices": len({one.device for one in labels})}
        audit.append(tx, tenant=tenant, actor=by, action="labels.added", subject=f"tenant/{tenant}", now=now, detail=detail)
    return new


def _judge_concept(tx: Connection, row: SeriesRow, *, now: datetime) -> None:
    """Raise an alarm when labels, or a bigger model, say that the same input means something else now."""
    profile = find_profile(tx, row.tenant, row.model, row.grid_id)
    if profile is None or profile.accuracy is None:
        return
    grid = drift_reading.get_grid(tx, row.tenant, row.grid_id)
    since = now - timedelta(days=drift_reading.LABEL_DAYS)
    expected = drift_reading.estimated(tx, row, grid, since=since, until=now, with_labels=False)
    for origin, word in (("random", "labels"), ("bigger-model", "a bigger model")):
        bad = [
            one
            for one in drift_reading.measured_of(tx, row, now=now, origin=origin)
            if accuracy.concept_moved(profile.accuracy.acc0, one, expected)
        ]
        if bad:
            _raise_concept(tx, row, bad, word, profile.accuracy.acc0, now=now)
            return


def _raise_concept(tx: Connection, row: SeriesRow, bad: Sequence[Measured], word: str, acc0: float, *, now: datetime) -> Alarm:
    subject = row.subject
    parts = ", ".join(
        f"{one.right} of {one.labels} right{f' in {one.slice}' if one.slice else ''} (at most {one.high:.0%})" for one in bad[:5]
    )
    words = f"The same input means something else now on {row.device}, pipeline {row.pipeline}: by {word} {parts}; at release {acc0:.0%}."
    alarm = Alarm(
        tenant=row.tenant,
        alarm=new_id("al"),
        subject=subject,
        state=AlarmState.RAISED,
        cause=Cause.CONCEPT,
        grade=row.grade,
        grid_id=row.grid_id,
        reference_id=None,
        onset=now,
        raised_at=now,
        statistic=max(0.0, acc0 - bad[0].high),
        threshold=0.0,
        rate=0.0,
        words=words,
        devices=(row.device,),
    )
    return raise_alarm(tx, alarm, now=now, hold=alarms.hold_time(alarm, DAY))
