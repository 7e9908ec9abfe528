"""One pipeline of a device: what changed is summed and judged; its alarm is raised, widened, recovers and ends. Safe to redo."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from fleet.db import Connection
from fleet.devices import store as device_store
from fleet.devices.model import DriftPatch
from fleet.monitoring import (
    alarm_store,
    alarms,
    attribution,
    detectors,
    drift_budget,
    drift_figures,
    drift_fitting,
    drift_group_store,
    drift_known,
    drift_looking,
    drift_raising,
    drift_store,
    drift_sums,
    reference_store,
)
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.attribution import Base
from fleet.monitoring.detectors import Scored
from fleet.monitoring.drift_alarms import DETECTOR, clear_alarm
from fleet.monitoring.drift_groups import group_of
from fleet.monitoring.drift_known import Known
from fleet.monitoring.drift_looking import SCORE_MISMATCH
from fleet.monitoring.drift_model import DAY, Alarm, AlarmEvent, Check, Grade, SubjectKind
from fleet.monitoring.drift_profiles import grids_of
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_tables import SeriesRow, WindowRow
from protocol.errors import InvalidError, NotFoundError
from protocol.ids import TenantId
from protocol.sketches.codec import CONDITION_NAMES, decode, read_head
from protocol.sketches.evidence import (
    HISTORY,
    Evidence,
    Plan,
    decode_evidence,
    default_plan,
    encode_evidence,
    fleet_evidence,
)
from protocol.sketches.grid import Grid
from protocol.sketches.looks import threshold_of
from protocol.sketches.profile import ModelProfile
from protocol.sketches.reference import COMPLETE_DAY, DeviceReference

#: A group waits so long after the first of its members' windows of an hour, so that one look sees most of them.
GROUP_WAITS = timedelta(minutes=10)


def judge_series(tx: Connection, tenant: TenantId, series_key: int, *, rules: DriftRules, now: datetime) -> None:
    """Sum and judge what changed of one pipeline of a device; raises, widens, recovers and ends its alarms."""
    row = drift_store.get_series(tx, tenant, series_key, is_held=True)
    if row.dirty_from is None:
        return
    grid = grids_of(tx, tenant, {row.grid_id}).get(row.grid_id)
    if grid is None:
        drift_store.save_series(tx, replace(row, dirty_from=None), now=now)
        return
    start = row.dirty_from
    _sum_up(tx, row, grid, start)
    row = _with_place(tx, row, now=now)
    if row.src == 0:
        known = drift_known.known_of(tx, row, grid)
        row = _judged(tx, known, start, rules=rules, now=now)
        drift_figures.keep(tx, row, grid, now=now)
        _end_of_release(tx, row, now=now)
        if row.group_key is not None:
            due = now + GROUP_WAITS
            drift_group_store.touch_group(tx, tenant, row.group_key, w0=drift_sums.hour_start(start), due_at=due)
        budget = alarm_store.find_budget(tx, tenant)
        if row.reference_id is not None and (budget is not None or rules.fleet_rate <= 0):  # one that is watched since the last decision
            rate = drift_budget.allowed(alarms.rate_of(rules.rate, rules.fleet_rate, budget or 1))
            drift_budget.tell_rate(tx, tenant, row.device, rate, is_budget=rules.fleet_rate > 0, now=now)
    else:
        row = replace(row, conditions={})  # a shadow's hold nothing but that it failed
    drift_store.save_series(tx, replace(row, dirty_from=None), now=now)


def _sum_up(tx: Connection, row: SeriesRow, grid: Grid, start: int) -> None:
    first, end = drift_sums.day_start(start), drift_sums.day_start(row.next_w0 - 1) + DAY
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=first, end=end)
    drift_store.put_sums(tx, row.tenant, row.series_key, drift_sums.day_sums(windows, grid, start=first, end=end))
    for month in drift_sums.months_between(first, end):
        last = drift_sums.next_month(month)
        days = drift_store.list_sums(tx, row.tenant, [row.series_key], "day", start=month, end=last).get(row.series_key, [])
        if days:
            drift_store.put_sums(tx, row.tenant, row.series_key, [drift_sums.month_sum(days, grid, start=month)])


def _with_place(tx: Connection, row: SeriesRow, *, now: datetime) -> SeriesRow:
    """The series with its group, its line, who judges it, and its complete days."""
    device = device_store.find_device(tx, row.tenant, row.device)
    group = None if device is None else group_of(tx, row, device, now=now)
    config = _patch_of(tx, row) if device is not None else DriftPatch()
    said = monitoring_store.list_states_of(tx, row.tenant, [row.device], "drift").get(row.device)
    check = config.check or (str(said.body.get("check")) if said is not None else Check.DEVICE)
    profile = reference_store.list_profiles(tx, row.tenant, {row.grid_id})
    line = next((one.line for (model, _), one in profile.items() if model == row.model), row.line)
    days = drift_store.count_days(tx, row.tenant, row.series_key, least=COMPLETE_DAY, start=row.learning_from or 0)
    by = Check.SERVER if check == Check.SERVER else Check.DEVICE
    return replace(row, group_key=None if group is None else group.group_key, line=line, decided_by=by, days=days)


def _patch_of(tx: Connection, row: SeriesRow) -> DriftPatch:
    try:
        return device_store.get_twin(tx, row.tenant, row.device).config.drift
    except NotFoundError:
        return DriftPatch()


def _judged(tx: Connection, known: Known, start: int, *, rules: DriftRules, now: datetime) -> SeriesRow:
    row = known.row
    newest = _newest(tx, row)
    row = replace(row, conditions={} if newest is None else _conditions(newest), judged_until=row.next_w0)
    reference = drift_fitting.current_reference(tx, known, now=now)
    if reference is None:
        return replace(row, reference_id=None, grade=Grade.COLLECTING, evidence_state=None, statistic=0.0, threshold=0.0, evidence=0.0)
    if reference.reference_id.hex() not in known.references:
        known = replace(known, references={**known.references, reference.reference_id.hex(): reference})
    rate = drift_budget.rate_for(tx, row, rules)
    threshold = threshold_of(rate, per_year=reference.per_year)
    row = replace(row, reference_id=reference.reference_id.hex(), grade=Grade(reference.grade.value), threshold=threshold)
    row = replace(row, site_gap=_site_gap(known.profile, reference, known.grid))
    # also when all is judged anew: what the reference was learned from says nothing against it
    evidence = _evidence(row, default_plan(reference.subwindows))
    if evidence is None:
        learned = reference.last_w0 + 1 if row.decided_by is Check.SERVER else 0
        start = max(row.first_w0, row.next_w0 - HISTORY * reference.subwindows, row.learning_from or 0, learned)
    first = start // reference.subwindows * reference.subwindows
    reach = min(first, start - drift_raising.stretch_of(reference))
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=reach, end=row.next_w0)
    seen = drift_looking.read_windows(known, row, reference, windows)
    if seen.mismatches:
        row = replace(row, conditions={**row.conditions, SCORE_MISMATCH: 600 * seen.mismatches})
    if not reference.may_alarm:
        return replace(row, conditions={**row.conditions, "reference_degenerate": 600})
    row = drift_looking.look(tx, known, row, reference, seen, start=start, rate=rate, now=now)
    row = _with_latest(row, known, reference, seen.scored, newest)
    return _in_order(row, reference, evidence, seen.scored, first)


def _in_order(row: SeriesRow, reference: DeviceReference, evidence: Evidence | None, scored: Scored, first: int) -> SeriesRow:
    """The series with what orders devices: e-values over blocks, from the one that begins with sub-window `first` on (DRIFT 5.6)."""
    after = scored.w0s >= first
    kept = Scored(scored.w0s[after], scored.scores[after], scored.p[after])
    moved = detectors.judge(evidence, default_plan(reference.subwindows), kept, start=first)
    return replace(row, evidence_state=encode_evidence(moved), evidence=fleet_evidence(moved.states[0]))


def _evidence(row: SeriesRow, plan: Plan) -> Evidence | None:
    """What was stored; None for a new series, or when blocks have another length now."""
    if row.evidence_state is None:
        return None
    try:
        return decode_evidence(row.evidence_state, plan)
    except InvalidError:
        return None


def _with_latest(row: SeriesRow, known: Known, reference: DeviceReference, scored: Scored, newest: WindowRow | None) -> SeriesRow:
    """The series with its latest score, and the cells of its latest hour."""
    testable = np.flatnonzero(~np.isnan(scored.p))
    if testable.size:
        row = replace(row, score=float(scored.scores[testable[-1]]), p=float(scored.p[testable[-1]]))
    if newest is None:
        return row
    window = decode(newest.body, known.grid)
    if not detectors.is_testable(window.counts):
        return replace(row, cells=())
    counts = known.profile.reference if known.profile is not None else window.counts
    return replace(row, cells=attribution.cells(known.grid, Base(reference, counts), window.counts))


def _newest(tx: Connection, row: SeriesRow) -> WindowRow | None:
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=row.next_w0 - 1, end=row.next_w0)
    return max((one for one in windows if one.nsub > 1), key=lambda one: one.end, default=windows[-1] if windows else None)


def _conditions(window: WindowRow) -> dict[str, int]:
    head = read_head(window.body)
    return {CONDITION_NAMES.get(code, str(code)): seconds for code, seconds in sorted(head.conditions.items())}


def _site_gap(profile: ModelProfile | None, reference: DeviceReference, grid: Grid) -> float | None:
    if profile is None or not profile.reference.rows:
        return None
    return detectors.site_gap(reference, detectors.summaries_of([profile.reference], grid)[0])


def _end_of_release(tx: Connection, row: SeriesRow, *, now: datetime) -> None:
    """An alarm about another model version than the pipeline runs now is over: a release was committed."""
    for alarm in alarm_store.list_open(tx, row.tenant, pipeline=row.pipeline, device=row.device):
        subject = alarm.subject
        if subject.kind is SubjectKind.DEVICE and subject.model != row.model:
            current = drift_store.find_current(tx, row.tenant, row.device, row.pipeline)
            if current is not None and current.model != subject.model and drift_sums.moment_of(current.next_w0) > alarm.raised_at:
                clear_released(tx, alarm, now=now)


def clear_released(tx: Connection, alarm: Alarm, *, now: datetime) -> None:
    """End an alarm whose model version nobody runs any more, unless somebody ended it in between."""
    held = alarm_store.get_alarm(tx, alarm.tenant, alarm.alarm, is_held=True)  # what somebody did to it in between stays
    if held.is_open:
        clear_alarm(tx, held, AlarmEvent.RELEASED, by=DETECTOR, now=now)


def end_groups(tx: Connection, tenant: TenantId, *, now: datetime) -> None:
    """An alarm of a group is over when none of its devices runs its model version any more."""
    for alarm in alarm_store.list_open(tx, tenant):
        if alarm.subject.kind is not SubjectKind.GROUP:
            continue
        current = drift_store.current_of(tx, tenant, drift_store.list_series(tx, tenant, devices=alarm.devices))
        if all(row.model != alarm.subject.model for row in current):
            clear_released(tx, alarm, now=now)
