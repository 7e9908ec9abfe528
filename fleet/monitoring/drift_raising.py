"""From a stretch that crossed to an alarm that says what moved, how, since when, and which look saw it (DRIFT 5.7, ADR 0034)."""

from collections.abc import Sequence
from datetime import datetime

from fleet.db import Connection
from fleet.monitoring import alarms, attribution, drift_store, drift_sums, stretches
from fleet.monitoring.attribution import Base
from fleet.monitoring.detectors import Scored
from fleet.monitoring.drift_alarms import raise_alarm
from fleet.monitoring.drift_known import Known
from fleet.monitoring.drift_model import DAY, Alarm, AlarmState, Grade
from fleet.monitoring.drift_tables import SeriesRow
from fleet.monitoring.stretches import Found
from protocol.ids import new_id
from protocol.sketches.codec import SketchWindow, decode
from protocol.sketches.counts import empty, summed
from protocol.sketches.looks import threshold_of
from protocol.sketches.reference import DeviceReference

#: Clean windows that tails of single features are taken from.
_CLEAN_WINDOWS = 400
#: Windows that an alarm names as its evidence.
_NAMED = 100


def raise_found(
    tx: Connection,
    known: Known,
    row: SeriesRow,
    reference: DeviceReference,
    found: Found,
    windows: Sequence[SketchWindow],
    scored: Scored,
    *,
    rate: float,
    now: datetime,
) -> Alarm:
    """The series' alarm after a stretch crossed: a new one, its last one again, or the open one with what moved since.

    `windows`: those of the stretch; what moved is read from them from the onset on.
    """
    onset = stretches.onset_of(scored, found)
    used = [one for one in windows if one.w0 < found.end and one.w0 + one.nsub > onset]
    counts = summed((one.counts for one in used), known.grid)
    features = attribution.attribute(known.grid, _base(tx, known, reference), counts) if counts.rows else ()
    began = drift_sums.moment_of(onset)
    threshold = threshold_of(rate, per_year=reference.per_year)
    seen = stretches.look_words(found.look)
    alarm = Alarm(
        tenant=row.tenant,
        alarm=new_id("al"),
        subject=row.subject,
        state=AlarmState.RAISED,
        cause=alarms.cause_of(features),
        grade=Grade(reference.grade.value),
        grid_id=row.grid_id,
        reference_id=reference.reference_id.hex(),
        onset=began,
        raised_at=now,
        statistic=max(found.statistic, threshold),
        threshold=threshold,
        rate=rate,
        features=features,
        words=attribution.words_of(features, row.subject, onset=began, now=now, devices=[row.device], seen=seen),
        devices=(row.device,),
        evidence=tuple(one.window_id for one in used[-_NAMED:]),
    )
    return raise_alarm(tx, alarm, now=now, hold=alarms.hold_time(alarm, stretch_of(reference)))


def stretch_of(reference: DeviceReference) -> int:
    """Sub-windows of its longest look."""
    return reference.longest * DAY // reference.per_day


def _base(tx: Connection, known: Known, reference: DeviceReference) -> Base:
    """What clean time looked like: the windows that the reference was learned from, else the release's own counts."""
    row = known.row
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=reference.first_w0, end=reference.last_w0 + 1)
    clean = [decode(one.body, known.grid).counts for one in windows if one.nsub > 1][-_CLEAN_WINDOWS:]
    if clean:
        return Base(reference, summed(clean, known.grid), [one for one in clean if one.rows])
    return Base(reference, known.profile.reference if known.profile is not None else empty(known.grid))
