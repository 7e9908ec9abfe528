"""What looks say of a series: a device's claim is verified from its evidence, hours are judged, an alarm recovers (ADR 0034, DRIFT 5.9).

A device's alarm comes from one check. Where the device judges, only evidence that it sent raises: the sub-windows of the stretch that
crossed, in any order, each verified by its score and all of them together by the same looks. Where the server judges, hours raise. In both
cases hours tell how an alarm goes on: what moves later is added, it is over when they stayed low for the hold time, and one that a person
ended is open again when what the device saw did not end: a device that stands raised crosses no second time, so it sends no evidence.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fleet.db import Connection
from fleet.monitoring import alarm_store, alarms, detectors, drift_store, drift_sums, stretches
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.detectors import Scored
from fleet.monitoring.drift_alarms import DETECTOR, save_cleared
from fleet.monitoring.drift_known import Known
from fleet.monitoring.drift_model import BY_PERSON, BY_WINDOWS, HOUR, SUB_WINDOW, Alarm, AlarmEvent, Check
from fleet.monitoring.drift_raising import raise_found, stretch_of
from fleet.monitoring.drift_tables import SeriesRow, WindowRow
from fleet.monitoring.stretches import LENIENT, Judged
from protocol.clock import to_unix_ms
from protocol.sketches.codec import SUBWINDOW_MS, Head, SketchWindow, decode, read_head
from protocol.sketches.looks import is_alarm
from protocol.sketches.reference import DeviceReference

#: A condition that the server finds itself: a score, or a claim, that its counts do not confirm.
SCORE_MISMATCH = "score_mismatch"
#: What moves while an alarm is open is looked for once in so many sub-windows: six hours.
_WIDENED = 36


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What is read from the windows of a series."""

    #: Every sub-window with its score: of the device where it judges, else that of its hour.
    scored: Scored
    #: Sub-windows that the device sent as evidence and whose counts confirm their score, by the reference in use.
    evidence: Mapping[int, SketchWindow]
    #: Sub-windows whose counts do not.
    mismatches: int


def read_windows(known: Known, row: SeriesRow, reference: DeviceReference, windows: Sequence[WindowRow]) -> Seen:
    """What these windows tell; evidence of another reference was answered with it, and counts for its scores only."""
    if row.decided_by is Check.SERVER:
        decoded = [decode(one.body, known.grid) for one in windows if one.nsub > 1]
        return Seen(detectors.server_scores(decoded, reference, known.grid), {}, 0)
    heads: list[Head] = []
    evidence: dict[int, SketchWindow] = {}
    mismatches = 0
    for one in windows:
        head = read_head(one.body)
        by = known.references.get(head.reference_id.hex()) if head.reference_id is not None else None
        if one.nsub == 1 and by is not None:
            window = decode(one.body, known.grid)
            if not detectors.is_verified(window, by, known.grid):
                mismatches += 1
                continue
            if by.reference_id == reference.reference_id:
                evidence[one.w0] = window
        heads.append(head)
    heads.sort(key=lambda head: (head.nsub, head.w0))  # where both tell of a sub-window, its hour counts
    return Seen(detectors.device_scores(heads, known.references), evidence, mismatches)


def look(
    tx: Connection, known: Known, row: SeriesRow, reference: DeviceReference, seen: Seen, *, start: int, rate: float, now: datetime
) -> SeriesRow:
    """The series after what came from sub-window `start` on; raises, widens and ends its alarm."""
    if row.decided_by is Check.DEVICE:
        row = _by_evidence(tx, known, row, reference, seen, start=start, rate=rate, now=now)
    return _by_hours(tx, known, row, reference, seen.scored, start=start, rate=rate, now=now)


def _since(row: SeriesRow, alarm: Alarm | None) -> int:
    """What came before this sub-window is answered: it enters no look any more."""
    cleared = 0
    if alarm is not None and not alarm.is_open and alarm.cleared_at is not None and alarm.outcome is not AlarmEvent.RECOVERED:
        cleared = drift_sums.sub_window_of(alarm.cleared_at - timedelta(microseconds=1)) + 1
    return max(row.restarted_at or 0, row.learning_from or 0, cleared)


def _latest(tx: Connection, row: SeriesRow) -> Alarm | None:
    return alarm_store.find_latest(tx, row.tenant, row.subject, causes=BY_WINDOWS)


def statistics(known: Known, row: SeriesRow, reference: DeviceReference, windows: Sequence[WindowRow]) -> dict[int, float]:
    """What looks say at the ends of these windows, by the sub-window that ends there: the larger the more; as far as it is known."""
    seen = read_windows(known, row, reference, windows)
    found: dict[int, float] = {}
    if row.decided_by is Check.DEVICE:
        said = reference.valued(seen.scored.p / reference.looks[0].look.share)
        scores = zip(seen.scored.w0s.tolist(), said.tolist(), strict=True)
        found = {w0: stretches.statistic(value) for w0, value in scores if not math.isnan(value)}
    hours = [decode(one.body, known.grid) for one in windows if one.nsub > 1]
    for judged in (_judged_evidence(known, reference, seen, since=0), _judged_hours(known, row, reference, hours, since=0)):
        for end, value in zip(judged.rows.ends.tolist(), judged.values.tolist(), strict=True):
            if not math.isnan(value):
                found[end - 1] = max(stretches.statistic(value), found.get(end - 1, 0.0))
    return found


# --- what the device says ---


def _by_evidence(
    tx: Connection, known: Known, row: SeriesRow, reference: DeviceReference, seen: Seen, *, start: int, rate: float, now: datetime
) -> SeriesRow:
    """The first stretch of evidence that crosses raises; of those after it the last one adds what moved."""
    judged = _judged_evidence(known, reference, seen, since=_since(row, _latest(tx, row)))
    if _is_unconfirmed(tx, row, reference, judged, rate):
        row = replace(row, conditions={**row.conditions, SCORE_MISMATCH: 600 * max(1, seen.mismatches)})
    windows = [one for _, one in sorted(seen.evidence.items())]
    for find in (stretches.first_found, stretches.last_found):
        found = find(judged, reference, rate * LENIENT, start=start)
        if found is None:
            break
        raise_found(tx, known, row, reference, found, windows, seen.scored, rate=rate, now=now)
        row = replace(row, restarted_at=found.end, statistic=found.statistic)
        judged = _judged_evidence(known, reference, seen, since=found.end)
    return row


def _judged_evidence(known: Known, reference: DeviceReference, seen: Seen, *, since: int) -> Judged:
    counts = {w0: one.counts for w0, one in seen.evidence.items() if w0 >= since}
    first, end = (min(counts), max(counts) + 1) if counts else (since, since)
    return stretches.judge(stretches.rows_of(counts, known.grid, start=first, end=end), reference)


def _is_unconfirmed(tx: Connection, row: SeriesRow, reference: DeviceReference, judged: Judged, rate: float) -> bool:
    """Whether the device says that it crossed where its complete stretch is here and says otherwise, at the rate that it says itself."""
    said = monitoring_store.list_states_of(tx, row.tenant, [row.device], "drift").get(row.device)
    for one in said.body.get("pipelines", ()) if said is not None else ():
        if one.get("pipeline") != row.pipeline or one.get("model") != row.model or one.get("state") == "ok" or not one.get("raised_at"):
            continue
        w0, length = int(one["raised_at"]) // SUBWINDOW_MS, int(one.get("stretch") or stretch_of(reference))
        if not stretches.is_complete(judged.rows, w0, length):
            return False
        own = reference.per_year / float(one.get("threshold") or reference.per_year / rate)
        return not is_alarm(stretches.value_at(judged, w0), max(rate, own) * LENIENT, per_year=reference.per_year)
    return False


# --- what hours say ---


def _by_hours(
    tx: Connection, known: Known, row: SeriesRow, reference: DeviceReference, scored: Scored, *, start: int, rate: float, now: datetime
) -> SeriesRow:
    alarm = _latest(tx, row)
    windows = _hours(tx, known, row, reference, alarm, start=start)
    judged = _judged_hours(known, row, reference, windows, since=_since(row, alarm))
    if row.decided_by is Check.SERVER and (alarm is None or not alarm.is_open):
        # what the reference was learned from says nothing against it
        found = stretches.first_found(judged, reference, rate, start=max(start, reference.last_w0 + 1))
        if found is not None:
            alarm = raise_found(tx, known, row, reference, found, windows, scored, rate=rate, now=now)
            row = replace(row, restarted_at=found.end, statistic=found.statistic)
            judged = _judged_hours(known, row, reference, windows, since=found.end)
    elif alarm is not None and _goes_on(tx, row, alarm):
        # by what was counted alone: nothing verifies the scores in an hour
        counted = _judged_hours(known, row, reference, windows, since=_since(row, alarm), with_scores=False)
        found = stretches.first_found(counted, reference, rate, start=start)
        if found is not None:
            alarm = raise_found(tx, known, row, reference, found, windows, scored, rate=rate, now=now)
            row = replace(row, restarted_at=found.end)
    newest = judged.newest
    row = row if newest is None else replace(row, statistic=stretches.statistic(newest))
    if alarm is None or not alarm.is_open:
        return row
    found = stretches.last_found(judged, reference, rate, start=max(start, row.next_w0 - HOUR))
    if found is not None and found.end // _WIDENED > start // _WIDENED:
        alarm = raise_found(tx, known, row, reference, found, windows, scored, rate=rate, now=now)
    return _watched(tx, row, reference, alarm, judged, now=now)


def _goes_on(tx: Connection, row: SeriesRow, alarm: Alarm) -> bool:
    """Whether a person ended the alarm, and the device says that it still stands where it crossed before that."""
    if alarm.is_open or alarm.outcome not in BY_PERSON or alarm.cleared_at is None:
        return False
    said = monitoring_store.list_states_of(tx, row.tenant, [row.device], "drift").get(row.device)
    ended = to_unix_ms(alarm.cleared_at)
    return any(
        one.get("pipeline") == row.pipeline
        and one.get("model") == row.model
        and one.get("state") != "ok"
        and 0 < int(one.get("raised_at") or 0) < ended
        for one in (said.body.get("pipelines", ()) if said is not None else ())
    )


def _hours(
    tx: Connection, known: Known, row: SeriesRow, reference: DeviceReference, alarm: Alarm | None, *, start: int
) -> list[SketchWindow]:
    """The windows that stretches which end after `start` reach into; of an open alarm those of its whole hold time."""
    first = start
    if alarm is not None and alarm.is_open:
        first = min(start, row.next_w0 - alarms.hold_time(alarm, stretch_of(reference)) // SUB_WINDOW)
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=first - stretch_of(reference), end=row.next_w0)
    return [decode(one.body, known.grid) for one in windows if one.nsub > 1]


def _judged_hours(
    known: Known, row: SeriesRow, reference: DeviceReference, windows: Sequence[SketchWindow], *, since: int, with_scores: bool = True
) -> Judged:
    is_scored = row.decided_by is Check.DEVICE
    first = max(since, min((one.w0 for one in windows), default=since))
    hours = stretches.hours_of(windows, known.grid, start=first, end=row.next_w0, is_scored=is_scored)
    judged = stretches.judge(hours, reference)
    return stretches.with_scores(judged, windows, reference) if is_scored and with_scores else judged


def _watched(tx: Connection, row: SeriesRow, reference: DeviceReference, alarm: Alarm, judged: Judged, *, now: datetime) -> SeriesRow:
    """Whether the open alarm recovered; by the time of its windows, since a device that is silent does not recover."""
    until = drift_sums.moment_of(row.next_w0)
    known = None if alarm.low_since is None else drift_sums.sub_window_of(alarm.low_since)
    low = stretches.low_since(judged, math.sqrt(alarm.threshold), start=row.restarted_at or 0, known=known)
    hold = alarms.hold_time(alarm, stretch_of(reference))
    found = alarms.settled(alarm, None if low is None else drift_sums.moment_of(low), now=until, hold=hold)
    if found == alarm:
        return row
    if found.is_open:
        alarm_store.save_alarm(tx, found)
        return row
    save_cleared(tx, replace(found, cleared_at=now), by=DETECTOR, now=now)
    return replace(row, restarted_at=row.next_w0)
