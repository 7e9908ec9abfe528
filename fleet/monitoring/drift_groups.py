"""Devices that are watched together: small shifts that all of them share, and how unlike its peers each one is (DRIFT 5.6).

A group is site, device type, model version and grid. Its hour is the one shift that explains all members best, each weighed by what its own
reference is sure of (`group_looks`); the group's reference is fitted on such hours, so it holds the weather that members share. Hours are
judged by the looks of the group, as those of a device are by its own (ADR 0034, 0041). Peers are shown, they raise nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from fleet.db import Connection
from fleet.devices.model import Device
from fleet.monitoring import (
    alarm_store,
    alarms,
    attribution,
    detectors,
    drift_group_store,
    drift_store,
    drift_sums,
    group_looks,
    reference_store,
    stretches,
)
from fleet.monitoring.attribution import Base
from fleet.monitoring.detectors import DoubleArray, Scored
from fleet.monitoring.drift_alarms import DETECTOR, raise_alarm, save_cleared
from fleet.monitoring.drift_model import HOUR, SUB_WINDOW, Alarm, AlarmState, AlarmSubject, Grade, SubjectKind
from fleet.monitoring.drift_profiles import grids_of
from fleet.monitoring.drift_raising import stretch_of
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_tables import GroupHour, GroupRow, SeriesRow, SumRow, WindowRow
from fleet.monitoring.stretches import Found, Judged, Rows
from protocol.errors import InvalidError
from protocol.ids import TenantId, new_id
from protocol.sketches.codec import decode
from protocol.sketches.counts import Counts, empty, summed
from protocol.sketches.grid import Grid
from protocol.sketches.looks import ONE_CLOUD, threshold_of
from protocol.sketches.reference import CALIBRATED_DAYS, PROVISIONAL_DAYS, DeviceReference, decode_reference, fit_reference
from protocol.sketches.summary import summarizer

#: Hours that one look works off at most; the rest waits for the next one.
MOST_HOURS = 72
#: Members whose differences from the others are kept per hour: enough for their common covariance.
MOST_RESIDUALS = 32
#: Days that a group's reference looks back at most.
_FIT_DAYS = 35
#: What moves while an alarm is open is looked for once in so many sub-windows: six hours.
_WIDENED = 36


def group_of(tx: Connection, row: SeriesRow, device: Device, *, now: datetime) -> GroupRow:
    """The group that the series belongs to, made where missing."""
    name = f"{device.site or '-'}/{device.device_type}"
    return drift_group_store.ensure_group(tx, row.tenant, kind=SubjectKind.GROUP, name=name, model=row.model, grid_id=row.grid_id, now=now)


def judge_group(tx: Connection, tenant: TenantId, group_key: int, *, rules: DriftRules, now: datetime) -> None:
    """Sum the group's hours that changed and judge them; raises, widens and recovers its alarm."""
    group = drift_group_store.get_group(tx, tenant, group_key, is_held=True)
    grid = grids_of(tx, tenant, {group.grid_id}).get(group.grid_id)
    members = drift_store.list_series(tx, tenant, group_key=group_key)
    if group.dirty_from is None or grid is None or not members:
        drift_group_store.save_group(tx, replace(group, dirty_from=None, due_at=None), now=now)
        return
    newest = max(member.next_w0 for member in members)
    start = drift_sums.hour_start(group.dirty_from)
    end = min(newest, start + MOST_HOURS * HOUR)
    references = _references(tx, members, grid)
    _sum_hours(tx, group, members, references, grid, start=start, end=end)
    group = replace(group, members=len(references))
    group = _with_reference(tx, group, grid, until=end)
    group = _judged(tx, group, members, grid, start=start, end=end, rules=rules, now=now)
    left = end if end < newest else None
    due = None if left is None else now + timedelta(seconds=1)
    drift_group_store.save_group(tx, replace(group, dirty_from=left, due_at=due), now=now)


def _references(tx: Connection, members: Sequence[SeriesRow], grid: Grid) -> dict[int, DeviceReference]:
    found: dict[int, DeviceReference] = {}
    for member in members:
        if member.reference_id is None:
            continue
        for one in reference_store.list_references(tx, member):
            if one.reference_id == member.reference_id:
                found[member.series_key] = decode_reference(one.body, grid)
    return found


def _sum_hours(
    tx: Connection,
    group: GroupRow,
    members: Sequence[SeriesRow],
    references: Mapping[int, DeviceReference],
    grid: Grid,
    *,
    start: int,
    end: int,
) -> None:
    """Hours of the group: counts of all members, and differences from their own references of those that have one."""
    keys = [member.series_key for member in members]
    windows = drift_store.list_windows_of(tx, group.tenant, keys, start=start, end=end)
    by_hour: dict[int, list[tuple[int, WindowRow]]] = {}
    for key, its in windows.items():
        for one in its:
            by_hour.setdefault(drift_sums.hour_start(one.w0), []).append((key, one))
    sums: list[SumRow] = []
    hours: list[GroupHour] = []
    peers: dict[int, DoubleArray] = {}
    weighed = {key: group_looks.member_of(reference) for key, reference in references.items()}
    for hour, rows in sorted(by_hour.items()):
        decoded = {key: decode(one.body, grid).counts for key, one in rows if one.nsub == HOUR}
        every = [decode(one.body, grid).counts for _, one in rows]
        sums.append(SumRow("hour", hour, len(rows) * HOUR, drift_sums.encode_counts(summed(every, grid))))
        tested = {key: counts for key, counts in decoded.items() if key in references and detectors.is_testable(counts)}
        if tested:
            summaries = detectors.summaries_of(list(tested.values()), grid)
            shift = group_looks.merged([weighed[key] for key in tested], summaries, of=len(references))
            z = _residuals(tested, summaries, references)
            apart = detectors.peer_residuals(z) if len(z) > 1 else np.zeros_like(z)
            hours.append(GroupHour(hour, len(z), _pack(shift), _pack(apart[:MOST_RESIDUALS])))
            peers = dict(zip(tested, apart, strict=True))
    drift_store.put_sums(tx, group.tenant, group.group_key, sums)
    drift_group_store.put_group_hours(tx, group.tenant, group.group_key, hours)
    _sum_days(tx, group, grid, start=start, end=end)
    _show_peers(tx, group, peers, grid)


def _sum_days(tx: Connection, group: GroupRow, grid: Grid, *, start: int, end: int) -> None:
    """Sums of days from hours, and of months from days."""
    first, last = drift_sums.day_start(start), drift_sums.day_start(max(start, end - 1)) + 144
    hours = drift_store.list_sums(tx, group.tenant, [group.group_key], "hour", start=first, end=last).get(group.group_key, [])
    days: dict[int, list[SumRow]] = {}
    for hour in hours:
        days.setdefault(drift_sums.day_start(hour.w0), []).append(hour)
    made = [replace(drift_sums.month_sum(rows, grid, start=day), level="day") for day, rows in sorted(days.items())]
    drift_store.put_sums(tx, group.tenant, group.group_key, made)
    for month in drift_sums.months_between(first, last):
        of_month = drift_store.list_sums(tx, group.tenant, [group.group_key], "day", start=month, end=drift_sums.next_month(month))
        rows = of_month.get(group.group_key, [])
        if rows:
            drift_store.put_sums(tx, group.tenant, group.group_key, [drift_sums.month_sum(rows, grid, start=month)])


def _residuals(counts: Mapping[int, Counts], summaries: DoubleArray, references: Mapping[int, DeviceReference]) -> DoubleArray:
    """What each member's hour differs from its own reference by: float64[n, d], NaN where a reference has no word."""
    z = np.full(summaries.shape, np.nan)
    for place, key in enumerate(counts):
        reference = references[key]
        z[place, reference.coordinates] = summaries[place, reference.coordinates] - reference.scatter.mean
    return z


def _show_peers(tx: Connection, group: GroupRow, peers: Mapping[int, DoubleArray], grid: Grid) -> None:
    if group.peers is None or not peers:
        return
    reference = decode_reference(group.peers, grid)
    p = reference.p_values(reference.scores(np.stack(list(peers.values()))))
    drift_store.set_peer_p(tx, group.tenant, {key: float(value) for key, value in zip(peers, p, strict=True)})


def _with_reference(tx: Connection, group: GroupRow, grid: Grid, *, until: int) -> GroupRow:
    """The group with a reference of its own once 14 days of hours are there, and a better one after 28."""
    if group.grade is Grade.CALIBRATED:
        return group
    hours = drift_group_store.list_group_hours(tx, group.tenant, group.group_key, start=until - _FIT_DAYS * 144, end=until)
    tested = [hour for hour in hours if detectors.group_is_testable(hour.reporting, group.members)]
    wanted = PROVISIONAL_DAYS if group.grade is Grade.COLLECTING else CALIBRATED_DAYS
    if len(tested) < wanted * 20:
        return group
    model = bytes.fromhex(group.model)
    d = len(_unpack(tested[0].mean))
    places = np.array([hour.w0 for hour in tested], dtype=np.int64)
    shifts = np.stack([_unpack(hour.mean) for hour in tested])
    apart = np.stack(
        [_unpack(hour.residuals).reshape(-1, d)[index % min(MOST_RESIDUALS, hour.reporting)] for index, hour in enumerate(tested)]
    )
    per_day = group_looks.HOURS_PER_DAY
    try:
        fitted = fit_reference(shifts, places, grid=grid, model=model, looks=group_looks.GROUP_LOOKS, per_day=per_day)
    except InvalidError:
        return group
    if fitted.grade.value == group.grade.value:
        return group
    peers: bytes | None
    try:
        peers = fit_reference(apart, places, grid=grid, model=model, looks=ONE_CLOUD, per_day=per_day).encoded
    except InvalidError:
        peers = group.peers
    return replace(group, reference=fitted.encoded, peers=peers, grade=Grade(fitted.grade.value))


def _judged(
    tx: Connection, group: GroupRow, members: Sequence[SeriesRow], grid: Grid, *, start: int, end: int, rules: DriftRules, now: datetime
) -> GroupRow:
    if group.reference is None:
        return group
    reference = decode_reference(group.reference, grid)
    rate = rules.group_rate
    group = replace(group, threshold=threshold_of(rate, per_year=reference.per_year), judged_until=end)
    alarm = _latest(tx, group)
    hours = _hours(tx, group, reference, alarm, start=start, end=end)
    scored = _scored(tx, group, hours, reference, start=start)
    judged = _said(group, hours, reference, grid, end=end)
    is_open = alarm is not None and alarm.is_open
    # what the reference was learned from says nothing against it
    found = None if is_open else stretches.first_found(judged, reference, rate, start=max(start, reference.last_w0 + 1))
    if found is not None:
        alarm = _raise(tx, group, members, reference, grid, hours, scored, found, rules=rules, now=now)
        group = replace(group, restarted_at=found.end)
        judged = _said(group, hours, reference, grid, end=end)
    found = stretches.last_found(judged, reference, rate, start=max(start, end - HOUR)) if is_open else None
    if found is not None and found.end // _WIDENED > start // _WIDENED:
        alarm = _raise(tx, group, members, reference, grid, hours, scored, found, rules=rules, now=now)
    newest = judged.newest
    group = replace(group, statistic=group.statistic if newest is None else stretches.statistic(newest))
    known = np.flatnonzero(~np.isnan(scored.p))
    if known.size:
        group = replace(group, score=float(scored.scores[known[-1]]), p=float(scored.p[known[-1]]))
    return _watched(tx, group, reference, alarm, judged, until=end, now=now)


def _latest(tx: Connection, group: GroupRow) -> Alarm | None:
    return alarm_store.find_latest(tx, group.tenant, AlarmSubject(SubjectKind.GROUP, group.name, "", group.model))


def _hours(tx: Connection, group: GroupRow, reference: DeviceReference, alarm: Alarm | None, *, start: int, end: int) -> list[GroupHour]:
    """Hours that stretches which end after `start` reach into; of an open alarm those of its whole hold time."""
    first = start
    if alarm is not None and alarm.is_open:
        first = min(start, end - alarms.hold_time(alarm, stretch_of(reference)) // SUB_WINDOW)
    return drift_group_store.list_group_hours(tx, group.tenant, group.group_key, start=first - stretch_of(reference), end=end)


def _said(group: GroupRow, hours: Sequence[GroupHour], reference: DeviceReference, grid: Grid, *, end: int) -> Judged:
    """What the looks say at the end of each hour; hours before a restart, and those of too few members, enter none of them."""
    first = drift_sums.hour_start(max(group.restarted_at or 0, hours[0].w0 if hours else end))
    shifts = np.full((max(0, (end - first) // HOUR), summarizer(grid).dimensions), np.nan)
    for hour in hours:
        place = (hour.w0 - first) // HOUR
        if 0 <= place < len(shifts) and detectors.group_is_testable(hour.reporting, group.members):
            shifts[place] = _unpack(hour.mean)
    return stretches.judge(Rows(first, HOUR, shifts), reference)


def _scored(tx: Connection, group: GroupRow, hours: Sequence[GroupHour], reference: DeviceReference, *, start: int) -> Scored:
    """Each hour alone, standing for its six sub-windows; those from `start` on are stored with their scores."""
    if not hours:
        return Scored(np.empty(0, np.int64), np.empty(0), np.empty(0))
    testable = np.array([detectors.group_is_testable(hour.reporting, group.members) for hour in hours])
    scores = reference.scores(np.stack([_unpack(hour.mean) for hour in hours]))
    p = np.where(testable, reference.p_values(scores), np.nan)
    kept = np.where(testable, scores.astype(np.float64), np.nan)
    w0s = np.concatenate([np.arange(hour.w0, hour.w0 + HOUR) for hour in hours])
    new = [
        replace(hour, score=None if np.isnan(score) else float(score), p=None if np.isnan(one) else float(one))
        for hour, score, one in zip(hours, kept, p, strict=True)
        if hour.w0 >= start
    ]
    drift_group_store.put_group_hours(tx, group.tenant, group.group_key, new)
    return Scored(w0s, np.repeat(kept, HOUR), np.repeat(p, HOUR))


def _raise(
    tx: Connection,
    group: GroupRow,
    members: Sequence[SeriesRow],
    reference: DeviceReference,
    grid: Grid,
    hours: Sequence[GroupHour],
    scored: Scored,
    found: Found,
    *,
    rules: DriftRules,
    now: datetime,
) -> Alarm:
    onset, until = stretches.onset_of(scored, found), found.end - 1
    since = [hour for hour in hours if onset < hour.w0 + HOUR and hour.w0 <= until]
    mean = np.mean(np.stack([_unpack(hour.mean) for hour in since]), axis=0)
    sums = drift_store.list_sums(tx, group.tenant, [group.group_key], "hour", start=drift_sums.hour_start(onset), end=until + 1)
    counts = drift_sums.sum_of_sums(sums.get(group.group_key, []), grid)
    before = drift_store.list_sums(tx, group.tenant, [group.group_key], "day", start=reference.first_w0, end=reference.last_w0 + 1)
    clean = drift_sums.sum_of_sums(before.get(group.group_key, []), grid) if before else empty(grid)
    features = attribution.attribute(grid, Base(reference, clean), counts, summary=mean)
    reporting = tuple(sorted({member.device for member in members if member.next_w0 > onset}))
    subject = AlarmSubject(SubjectKind.GROUP, group.name, "", group.model)
    began = drift_sums.moment_of(onset)
    alarm = Alarm(
        tenant=group.tenant,
        alarm=new_id("al"),
        subject=subject,
        state=AlarmState.RAISED,
        cause=alarms.cause_of(features),
        grade=group.grade,
        grid_id=group.grid_id,
        reference_id=reference.reference_id.hex(),
        onset=began,
        raised_at=now,
        statistic=max(found.statistic, group.threshold),
        threshold=group.threshold,
        rate=rules.group_rate,
        features=features,
        words=attribution.words_of(features, subject, onset=began, now=now, devices=reporting, seen=stretches.look_words(found.look)),
        devices=reporting,
        evidence=tuple(f"{hour.w0}-{HOUR}" for hour in since[:100]),
    )
    made = raise_alarm(tx, alarm, now=now, hold=alarms.hold_time(alarm, stretch_of(reference)))
    _adopt(tx, made, stretch=stretch_of(reference))
    return made


def _adopt(tx: Connection, parent: Alarm, *, stretch: int) -> None:
    """Open alarms of members that began within so many sub-windows of the group's are part of it."""
    for one in alarm_store.list_open(tx, parent.tenant):
        is_member = (
            one.subject.kind is SubjectKind.DEVICE and one.subject.name in parent.devices and one.subject.model == parent.subject.model
        )
        if is_member and abs(one.onset - parent.onset) <= stretch * SUB_WINDOW:
            held = alarm_store.get_alarm(tx, parent.tenant, one.alarm, is_held=True)  # what somebody did to it in between stays
            if held.is_open:
                alarm_store.save_alarm(tx, alarms.adopted(held, parent.alarm))


def _watched(
    tx: Connection, group: GroupRow, reference: DeviceReference, alarm: Alarm | None, judged: Judged, *, until: int, now: datetime
) -> GroupRow:
    """Whether the open alarm recovered, by the time of the group's hours."""
    if alarm is None or not alarm.is_open:
        return group
    known = None if alarm.low_since is None else drift_sums.sub_window_of(alarm.low_since)
    low = stretches.low_since(judged, math.sqrt(alarm.threshold), start=group.restarted_at or 0, known=known)
    hold = alarms.hold_time(alarm, stretch_of(reference))
    seen = alarms.settled(alarm, None if low is None else drift_sums.moment_of(low), now=drift_sums.moment_of(until), hold=hold)
    if seen == alarm:
        return group
    if seen.is_open:
        alarm_store.save_alarm(tx, seen)
        return group
    save_cleared(tx, replace(seen, cleared_at=now), by=DETECTOR, now=now)
    return replace(group, restarted_at=until)


def _pack(numbers: DoubleArray) -> bytes:
    return np.asarray(numbers, dtype="<f8").tobytes()


def _unpack(data: bytes) -> DoubleArray:
    return np.frombuffer(data, dtype="<f8").astype(np.float64)
