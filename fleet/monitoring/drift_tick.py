"""What repeats in drift: windows that changed are summed and judged, alarms recover, profiles are learned. Safe to redo, safe to cut.

Each series and each group is one transaction that starts from what is stored; it costs what changed (the blocks from the first changed
sub-window on), not what is there. `tick` is for every round, `keep_house` for every minute or so.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import numpy as np

from fleet import audit
from fleet.blobs import BlobStore
from fleet.db import Connection, Database
from fleet.devices import store as device_store
from fleet.devices import twins
from fleet.devices.model import DriftPatch
from fleet.monitoring import alarm_store, alarms, attribution, detectors, drift_store, drift_sums
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.attribution import Base
from fleet.monitoring.detectors import Crossing, Scored
from fleet.monitoring.drift_alarms import DETECTOR, clear_alarm, raise_alarm, save_cleared
from fleet.monitoring.drift_groups import group_of, judge_group
from fleet.monitoring.drift_ingest import DETECTOR_FAILED, RELEASED, RETRIED_FOR, expire_quarantine, release_quarantine
from fleet.monitoring.drift_model import (
    BY_WINDOWS,
    DAY,
    Alarm,
    AlarmEvent,
    AlarmState,
    AlarmSubject,
    Check,
    Grade,
    Reference,
    SubjectKind,
)
from fleet.monitoring.drift_profiles import find_profile, grids_of
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_store import ProfileRow, SeriesRow, WindowRow
from fleet.registry import store as registry_store
from fleet.registry.model import FileRef, Release, ReleaseState, Variant
from protocol.canonical import digest_of
from protocol.errors import InvalidError, NotFoundError, TrustError, UnavailableError
from protocol.ids import DeviceId, Digest, TenantId, new_id
from protocol.sketches import cbor
from protocol.sketches.codec import CONDITION_NAMES, Head, SketchWindow, decode, read_head
from protocol.sketches.counts import empty, summed
from protocol.sketches.evidence import (
    HISTORY,
    Evidence,
    Plan,
    decode_evidence,
    default_plan,
    encode_evidence,
    fleet_evidence,
    fresh_evidence,
    onset_block,
)
from protocol.sketches.grid import Grid
from protocol.sketches.profile import FILE_NAME, MAX_PROFILE_BYTES, ModelProfile, decode_profile
from protocol.sketches.reference import (
    CALIBRATED_DAYS,
    COMPLETE_DAY,
    PROVISIONAL_DAYS,
    DeviceReference,
    decode_reference,
    fit_reference,
)

log = logging.getLogger("mooring.drift")

#: Series and groups that one tick judges at most.
MOST_SERIES, MOST_GROUPS = 200, 20
#: A group waits so long after the first of its members' windows of an hour, so that one look sees most of them.
GROUP_WAITS = timedelta(minutes=10)
#: A condition that the server finds itself: a score that its counts do not confirm.
SCORE_MISMATCH = "score_mismatch"
#: Windows, labels and sums of hours are kept so long, hours that groups learn from so long; sums of days and months stay.
WINDOW_DAYS, GROUP_HOUR_DAYS = 400, 60
#: Rows deleted in one transaction.
_PRUNED = 5000
#: False alarms per year that a device allows itself when nobody tells it another rate (`agent.config`).
AGENT_RATE = 1.0
_DECIDED = "drift.thresholds-decided"
#: Clean windows that tails of single features are taken from.
_CLEAN_WINDOWS = 400


def tick(database: Database, *, rules: DriftRules, now: datetime, limit: int = MOST_SERIES) -> int:
    """Sum and judge what changed; returns how many series and groups. Raises: UnavailableError."""
    with database.reading() as tx:
        dirty = drift_store.list_dirty(tx, limit=limit)
    for tenant, key in dirty:
        with _apart(database, partial(_set_aside, tenant=tenant, series_key=key, now=now)), database.transaction() as tx:
            judge_series(tx, tenant, key, rules=rules, now=now)
    with database.reading() as tx:
        due = drift_store.list_due_groups(tx, now=now, limit=MOST_GROUPS)
    for tenant, key in due:
        with _apart(database, partial(_set_group_aside, tenant=tenant, group_key=key, now=now)), database.transaction() as tx:
            judge_group(tx, tenant, key, rules=rules, now=now)
    return len(dirty) + len(due)


@contextlib.contextmanager
def _apart(database: Database, set_aside: Callable[[Connection], None]) -> Iterator[None]:
    """What fails for one device is that device's condition, and the others go on (DRIFT 2). Raises: UnavailableError."""
    try:
        yield
    except UnavailableError:
        raise
    except Exception:
        log.exception("detector_failed")
        with database.transaction() as tx:
            set_aside(tx)


def _set_aside(tx: Connection, *, tenant: TenantId, series_key: int, now: datetime) -> None:
    row = drift_store.get_series(tx, tenant, series_key, is_held=True)
    left = row.judged_until if row.judged_until is not None else row.first_w0
    left = left if row.dirty_from is None else min(left, row.dirty_from)  # where the next window goes on
    conditions = {**row.conditions, DETECTOR_FAILED: 600}
    drift_store.save_series(tx, replace(row, dirty_from=None, judged_until=left, conditions=conditions), now=now)


def _set_group_aside(tx: Connection, *, tenant: TenantId, group_key: int, now: datetime) -> None:
    group = drift_store.get_group(tx, tenant, group_key, is_held=True)
    oldest = drift_sums.sub_window_of(now) - RETRIED_FOR
    left = None if group.dirty_from is None else max(group.dirty_from, drift_sums.hour_start(oldest))
    drift_store.save_group(tx, replace(group, dirty_from=left, due_at=None), now=now)  # due with the next window of a member


def keep_house(database: Database, blobs: BlobStore, *, rules: DriftRules, now: datetime) -> None:
    """Learn profiles, let windows out of quarantine, renew thresholds and the order of devices."""
    with database.reading() as tx:
        tenants = drift_store.list_tenants(tx)
    for tenant in tenants:
        learn_profiles(database, blobs, tenant, now=now)
        let_out(database, tenant, now=now)
        with database.transaction() as tx:
            review_budget(tx, tenant, rules=rules, now=now)
            review_order(tx, tenant, rules=rules)
            end_groups(tx, tenant, now=now)
    with database.transaction() as tx:
        expire_quarantine(tx, now=now)


def prune(database: Database, *, now: datetime) -> int:
    """Delete what is past its time, in small transactions; returns how many rows. Safe to repeat. Raises: UnavailableError."""
    with database.reading() as tx:
        tenants = drift_store.list_tenants(tx)
    moment = now - timedelta(days=WINDOW_DAYS)
    deleted = 0
    for tenant in tenants:
        for table in (drift_store.sketch_windows, alarm_store.audit_labels):
            count = _PRUNED
            while count == _PRUNED:
                with database.transaction() as tx:
                    count = monitoring_store.delete_older(tx, tenant, table, before=moment, limit=_PRUNED)
                deleted += count
        hours, sums = drift_sums.sub_window_of(now - timedelta(days=GROUP_HOUR_DAYS)), drift_sums.sub_window_of(moment)
        with database.reading() as tx:
            groups = drift_store.list_groups(tx, tenant)
        for group in groups:
            with database.transaction() as tx:
                deleted += drift_store.delete_group_hours(tx, tenant, group.group_key, before=hours, sums_before=sums)
    return deleted


# --- what releases bring ---


def learn_profiles(database: Database, blobs: BlobStore, tenant: TenantId, *, now: datetime) -> int:
    """Keep the profiles of releases that are not known yet, and store what waited for their grids; returns how many."""
    with database.reading() as tx:
        releases = registry_store.list_releases(tx, tenant, limit=1000)
        known = _known_profiles(tx, tenant, releases)
    learned = 0
    for release in releases:
        if release.state not in {ReleaseState.PUBLISHED, ReleaseState.WITHDRAWN}:
            continue
        for variant in release.variants:
            model, file = _profile_of(variant)
            if file is None or (model, file.sha256) in known:
                continue
            known.add((model, file.sha256))
            try:
                body = blobs.read(file.sha256, limit=MAX_PROFILE_BYTES)
                with database.transaction() as tx:
                    learned += int(add_profile(tx, tenant, body, model=model, line=release.line, version=release.version, now=now))
            except (InvalidError, TrustError, NotFoundError) as error:  # this release is not watched; the others are
                log.error("profile_unreadable release=%s error=%s", release.id, error)  # noqa: TRY400 - the cause is in the text
    return learned


def _profile_of(variant: Variant) -> tuple[str, FileRef | None]:
    return variant.model_file.sha256.removeprefix("sha256:")[:32], next((one for one in variant.files if one.name == FILE_NAME), None)


def _known_profiles(tx: Connection, tenant: TenantId, releases: Sequence[Release]) -> set[tuple[str, Digest]]:
    """Model versions with the profile files that are kept for them; kept ones are read only where a model came with several."""
    files: dict[str, set[Digest]] = {}
    for model, file in (_profile_of(variant) for release in releases for variant in release.variants):
        if file is not None:
            files.setdefault(model, set()).add(file.sha256)
    known: set[tuple[str, Digest]] = set()
    for model in drift_store.list_profiled_models(tx, tenant) & files.keys():
        of_model = files[model]
        if len(of_model) > 1:
            of_model &= {digest_of(body) for body in drift_store.list_profile_bodies(tx, tenant, model)}
        known |= {(model, file) for file in of_model}
    return known


def let_out(database: Database, tenant: TenantId, *, now: datetime) -> int:
    """Store what waits for a grid that is known by now, in small transactions; returns how many windows."""
    with database.reading() as tx:
        grids = drift_store.list_known_grids(tx, tenant, drift_store.list_waiting_grids(tx, tenant))
    released = 0
    for grid_id in sorted(grids):
        count = RELEASED
        while count == RELEASED:
            with database.transaction() as tx:
                count = release_quarantine(tx, tenant, grid_id, now=now)
            released += count
    return released


def add_profile(tx: Connection, tenant: TenantId, body: bytes, *, model: str, line: str, version: str, now: datetime) -> bool:
    """Keep what a release carries for a model version, and store what waited for its grid; returns whether it was new.

    Raises: InvalidError when it cannot be read.
    """
    grid_id = decode_profile(body).grid.grid_id.hex()
    is_new = drift_store.put_profile(tx, tenant, ProfileRow(model, grid_id, line, version, body), now=now)
    release_quarantine(tx, tenant, grid_id, now=now)
    return is_new


# --- one series ---


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What judging a series starts from."""

    row: SeriesRow
    grid: Grid
    profile: ModelProfile | None
    references: Mapping[str, DeviceReference]
    sources: Mapping[str, Reference]


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
        known = _known(tx, row, grid)
        row = _judged(tx, known, start, rules=rules, now=now)
        _end_of_release(tx, row, now=now)
        row = _watch_alarm(tx, row, now=now)
        if row.group_key is not None:
            due = now + GROUP_WAITS
            drift_store.touch_group(tx, tenant, row.group_key, w0=drift_sums.hour_start(start), due_at=due)
        budget = alarm_store.find_budget(tx, tenant)
        if row.reference_id is not None and (budget is not None or rules.fleet_rate <= 0):  # one that is watched since the last decision
            rate = _allowed(alarms.rate_of(rules.rate, rules.fleet_rate, budget or 1))
            _tell_rate(tx, tenant, row.device, rate, is_budget=rules.fleet_rate > 0, now=now)
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
    profile = drift_store.list_profiles(tx, row.tenant, {row.grid_id})
    line = next((one.line for (model, _), one in profile.items() if model == row.model), row.line)
    days = drift_store.count_days(tx, row.tenant, row.series_key, least=COMPLETE_DAY, start=row.learning_from or 0)
    by = Check.SERVER if check == Check.SERVER else Check.DEVICE
    return replace(row, group_key=None if group is None else group.group_key, line=line, decided_by=by, days=days)


def _patch_of(tx: Connection, row: SeriesRow) -> DriftPatch:
    try:
        return device_store.get_twin(tx, row.tenant, row.device).config.drift
    except NotFoundError:
        return DriftPatch()


def _known(tx: Connection, row: SeriesRow, grid: Grid) -> _Known:
    stored = drift_store.list_references(tx, row)
    decoded: dict[str, DeviceReference] = {}
    for one in stored:
        try:
            decoded[one.reference_id] = decode_reference(one.body, grid)
        except InvalidError:  # checked when it was stored; of another version of this program
            continue
    return _Known(row, grid, find_profile(tx, row.tenant, row.model, row.grid_id), decoded, {one.reference_id: one for one in stored})


def _judged(tx: Connection, known: _Known, start: int, *, rules: DriftRules, now: datetime) -> SeriesRow:
    row = known.row
    newest = _newest(tx, row)
    row = replace(row, conditions={} if newest is None else _conditions(newest), judged_until=row.next_w0)
    reference = _reference(tx, known, now=now)
    if reference is None:
        return replace(row, reference_id=None, grade=Grade.COLLECTING, evidence_state=None, statistic=0.0, threshold=0.0, evidence=0.0)
    if reference.reference_id.hex() not in known.references:
        known = replace(known, references={**known.references, reference.reference_id.hex(): reference})
    plan = default_plan(reference.subwindows)
    rate = alarms.rate_of(rules.rate, rules.fleet_rate, alarm_store.find_budget(tx, row.tenant) or 1)
    evidence = _evidence(row, plan)
    if evidence is None:  # what the reference was learned from says nothing against it, nor what an alarm told already
        oldest = row.next_w0 - HISTORY * reference.subwindows
        normal = row.learning_from or 0
        start = max(row.first_w0, oldest, normal, reference.last_w0 + 1 if row.decided_by is Check.SERVER else 0)
        since = max(normal, row.restarted_at or 0)
        evidence = Evidence(tuple(replace(state, since=since) for state in fresh_evidence(plan).states))
    first = start // reference.subwindows * reference.subwindows
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=first, end=row.next_w0)
    row = replace(row, reference_id=reference.reference_id.hex(), grade=Grade(reference.grade.value), threshold=max(plan.thresholds(rate)))
    row = replace(row, site_gap=_site_gap(known.profile, reference, known.grid))
    scored, claims, mismatches = _scored(known, row, reference, windows)
    if mismatches:
        row = replace(row, conditions={**row.conditions, SCORE_MISMATCH: 600 * mismatches})
    if not reference.may_alarm:
        return replace(row, conditions={**row.conditions, "reference_degenerate": 600})
    opened = alarm_store.find_latest(
        tx, row.tenant, AlarmSubject(SubjectKind.DEVICE, row.device, row.pipeline, row.model), causes=BY_WINDOWS
    )
    is_open = opened is not None and opened.is_open
    settled = detectors.settle(evidence, plan, rate, scored, start=first, until=row.next_w0, is_open=is_open)
    for crossing, seen in settled.crossings:
        _raise(tx, known, row, reference, seen, crossing, scored, rate=rate, now=now)
        row = replace(row, restarted_at=crossing.w0 + 1)
    evidence = settled.evidence
    for w0 in claims:
        if w0 < max(state.since for state in evidence.states):
            continue
        value = max(state.value for state in evidence.states)
        crossing = Crossing("device", w0, max(value, row.threshold), row.threshold)
        _raise(tx, known, row, reference, evidence, crossing, scored, rate=rate, now=now)
        evidence = evidence.restarted(w0 + 1)
        row = replace(row, restarted_at=w0 + 1)
    row = _with_latest(row, known, reference, scored, newest)
    return replace(
        row,
        evidence_state=encode_evidence(evidence),
        statistic=max(state.value for state in evidence.states),
        evidence=fleet_evidence(evidence.states[0]),
    )


def _evidence(row: SeriesRow, plan: Plan) -> Evidence | None:
    """What was stored; None for a new series, or when blocks have another length now."""
    if row.evidence_state is None:
        return None
    try:
        return decode_evidence(row.evidence_state, plan)
    except InvalidError:
        return None


def _reference(tx: Connection, known: _Known, *, now: datetime) -> DeviceReference | None:
    """What the series is judged by; the server fits its own where it judges, again when the days suffice for a better grade."""
    row = known.row
    wanted = "server" if row.decided_by is Check.SERVER else "device"
    usable = [one for one in known.sources.values() if one.reference_id in known.references and one.source in {wanted, "recording"}]
    current = next((one for one in usable if one.retired_at is None), None)
    is_due = row.decided_by is Check.SERVER and (
        (current is None and row.days >= PROVISIONAL_DAYS)
        or (current is not None and current.grade is Grade.PROVISIONAL and row.days >= CALIBRATED_DAYS)
    )
    fitted = _fit(tx, known) if is_due else None
    if fitted is None:
        return None if current is None else known.references[current.reference_id]
    store_reference(tx, row, fitted, source="server", now=now)
    return fitted


def _fit(tx: Connection, known: _Known) -> DeviceReference | None:
    row = known.row
    begin = max(row.first_w0, row.learning_from or 0)
    windows = [one for one in drift_store.list_windows(tx, row.tenant, row.series_key, start=begin, end=row.next_w0) if one.nsub > 1]
    decoded = [decode(one.body, known.grid) for one in windows]
    return fit_server_reference([one for one in decoded if detectors.is_testable(one.counts)], known.grid, bytes.fromhex(row.model))


def fit_server_reference(windows: Sequence[SketchWindow], grid: Grid, model: bytes) -> DeviceReference | None:
    """A reference from hourly windows, each standing for its sub-windows that have rows; None when they do not suffice. Pure."""
    if not windows:
        return None
    summaries = detectors.summaries_of([one.counts for one in windows], grid)
    places = [[one.w0 + index for index in range(one.nsub) if one.mask >> index & 1] for one in windows]
    repeated = np.repeat(summaries, [len(one) for one in places], axis=0)
    try:
        return fit_reference(repeated, np.array([w0 for one in places for w0 in one], dtype=np.int64), grid=grid, model=model)
    except InvalidError:
        return None


def store_reference(
    tx: Connection,
    row: SeriesRow,
    reference: DeviceReference,
    *,
    source: str,
    now: datetime,
    by: audit.Actor = DETECTOR,
    reason: str = "",
    tell: Callable[[], None] | None = None,
) -> Reference:
    """Keep and use a reference, with the audit entry; an alarm that is open is over when it replaces another one.

    One that a device learned before somebody took what is there now as normal is kept, retired. `tell`: what else is to be changed, before
    the audit log is locked.
    """
    is_used = source != "device" or reference.last_w0 >= (row.learning_from or 0)
    made = Reference(
        device=row.device,
        pipeline=row.pipeline,
        model=row.model,
        grid_id=row.grid_id,
        reference_id=reference.reference_id.hex(),
        grade=Grade(reference.grade.value),
        source=source,
        body=reference.encoded,
        stored_at=now,
        retired_at=None if is_used else now,
    )
    before = next((one for one in drift_store.list_references(tx, row) if one.retired_at is None), None)
    is_new = drift_store.put_reference(tx, row.tenant, row.series_key, made)
    if is_used:
        drift_store.use_reference(tx, row.tenant, row.series_key, made.reference_id, now=now)
        if before is not None and before.reference_id != made.reference_id:
            end_alarms(tx, row, AlarmEvent.REREFERENCED, by=by, now=now, reason=reason)
    if tell is not None:
        tell()
    if is_new:
        detail = {"pipeline": row.pipeline, "reference": made.reference_id, "grade": str(made.grade), "source": source}
        detail |= {} if is_used else {"state": "retired"}
        subject = f"device/{row.device}"
        audit.append(
            tx, tenant=row.tenant, actor=by, action="drift.reference-stored", subject=subject, now=now, reason=reason, detail=detail
        )
    return made


def end_alarms(tx: Connection, row: SeriesRow, outcome: AlarmEvent, *, by: audit.Actor, now: datetime, reason: str = "") -> None:
    """Clear the open alarm of the series' own."""
    alarm = alarm_store.find_latest(
        tx, row.tenant, AlarmSubject(SubjectKind.DEVICE, row.device, row.pipeline, row.model), causes=BY_WINDOWS
    )
    if alarm is not None and alarm.is_open:
        clear_alarm(tx, alarm, outcome, by=by, now=now, reason=reason)


def _scored(known: _Known, row: SeriesRow, reference: DeviceReference, windows: Sequence[WindowRow]) -> tuple[Scored, list[int], int]:
    """Scores of the windows; sub-windows in which the device says that its check fired and whose counts confirm it; those they do not."""
    if row.decided_by is Check.SERVER:
        decoded = [decode(one.body, known.grid) for one in windows if one.nsub > 1]
        return detectors.server_scores(decoded, reference, known.grid), [], 0
    heads: list[Head] = []
    claims: list[int] = []
    mismatches = 0
    for one in windows:
        head = read_head(one.body)
        by = known.references.get(head.reference_id.hex()) if head.reference_id is not None else None
        if one.nsub == 1 and by is not None:
            if not detectors.is_verified(decode(one.body, known.grid), by, known.grid):
                mismatches += 1
                continue
            is_current = by.reference_id == reference.reference_id  # what a retired one said was answered with it
            if is_current and float(by.p_values(head.scores)[0]) < detectors.ONSET_P:
                claims.append(one.w0)
        heads.append(head)
    heads.sort(key=lambda head: (head.nsub, head.w0))  # where both tell of a sub-window, its hour counts
    return detectors.device_scores(heads, known.references), claims, mismatches


def _raise(
    tx: Connection,
    known: _Known,
    row: SeriesRow,
    reference: DeviceReference,
    evidence: Evidence,
    crossing: Crossing,
    scored: Scored,
    *,
    rate: float,
    now: datetime,
) -> Alarm:
    state = next((one for one in evidence.states if one.subwindows == reference.subwindows), evidence.states[0])
    onset = detectors.onset_of(scored, min(onset_block(state), crossing.w0 // state.subwindows), state.subwindows, until=crossing.w0)
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=onset, end=max(row.next_w0, crossing.w0 + 1))
    used = [one for one in windows if one.nsub > 1] or windows
    base = _base(tx, known, reference)
    counts = summed((decode(one.body, known.grid).counts for one in used), known.grid)
    features = attribution.attribute(known.grid, base, counts) if counts.rows else ()
    subject = AlarmSubject(SubjectKind.DEVICE, row.device, row.pipeline, row.model)
    began = drift_sums.moment_of(onset)
    words = attribution.words_of(features, subject, onset=began, now=now, devices=[row.device])
    alarm = Alarm(
        tenant=row.tenant,
        alarm=new_id("al"),
        subject=subject,
        state=AlarmState.RAISED,
        cause=alarms.cause_of(features),
        grade=Grade(reference.grade.value),
        grid_id=row.grid_id,
        reference_id=reference.reference_id.hex(),
        onset=began,
        raised_at=now,
        statistic=crossing.statistic,
        threshold=crossing.threshold,
        rate=rate,
        features=features,
        words=words,
        devices=(row.device,),
        evidence=tuple(f"{one.w0}-{one.nsub}" for one in windows[:100]),
    )
    return raise_alarm(tx, alarm, now=now, hold=alarms.hold_time(alarm, reference.subwindows))


def _base(tx: Connection, known: _Known, reference: DeviceReference) -> Base:
    """What clean time looked like: the windows that the reference was learned from, else the release's own counts."""
    row = known.row
    windows = drift_store.list_windows(tx, row.tenant, row.series_key, start=reference.first_w0, end=reference.last_w0 + 1)
    clean = [decode(one.body, known.grid).counts for one in windows if one.nsub > 1][-_CLEAN_WINDOWS:]
    if clean:
        return Base(reference, summed(clean, known.grid), [one for one in clean if one.rows])
    return Base(reference, known.profile.reference if known.profile is not None else empty(known.grid))


def _with_latest(row: SeriesRow, known: _Known, reference: DeviceReference, scored: Scored, newest: WindowRow | None) -> SeriesRow:
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


def _watch_alarm(tx: Connection, row: SeriesRow, *, now: datetime) -> SeriesRow:
    """Look whether the open alarm of the series recovered; by the time of its windows, since a device that is silent does not recover."""
    subject = AlarmSubject(SubjectKind.DEVICE, row.device, row.pipeline, row.model)
    alarm = alarm_store.find_latest(tx, row.tenant, subject, causes=BY_WINDOWS)
    if alarm is None or not alarm.is_open or row.judged_until is None or row.reference_id is None:
        return row
    watch_recovery(tx, alarm, row.statistic, block=_block_of(row), judged_until=row.judged_until, now=now)
    return row


def _block_of(row: SeriesRow) -> int:
    if row.evidence_state is None:
        return DAY
    document = cbor.decode(row.evidence_state, max_bytes=64 << 10, what="Evidence")
    return int(max(state[0] for state in document[1]))


def watch_recovery(tx: Connection, alarm: Alarm, statistic: float, *, block: int, judged_until: int, now: datetime) -> None:
    """Keep what a look at the restarted evidence says of an open alarm."""
    hold = alarms.hold_time(alarm, block)
    seen = alarms.watched(alarm, statistic, now=drift_sums.moment_of(judged_until), hold=hold)
    if seen == alarm:
        return
    if seen.is_open:
        alarm_store.save_alarm(tx, seen)
    else:
        save_cleared(tx, replace(seen, cleared_at=now), by=DETECTOR, now=now)


def _end_of_release(tx: Connection, row: SeriesRow, *, now: datetime) -> None:
    """An alarm about another model version than the pipeline runs now is over: a release was committed."""
    for alarm in alarm_store.list_open(tx, row.tenant, pipeline=row.pipeline, device=row.device):
        subject = alarm.subject
        if subject.kind is SubjectKind.DEVICE and subject.model != row.model:
            current = drift_store.find_current(tx, row.tenant, row.device, row.pipeline)
            if current is not None and current.model != subject.model and drift_sums.moment_of(current.next_w0) > alarm.raised_at:
                _clear_released(tx, alarm, now=now)


def _clear_released(tx: Connection, alarm: Alarm, *, now: datetime) -> None:
    held = alarm_store.get_alarm(tx, alarm.tenant, alarm.alarm, is_held=True)  # what somebody did to it in between stays
    if held.is_open:
        clear_alarm(tx, held, AlarmEvent.RELEASED, by=DETECTOR, now=now)


# --- the fleet ---


def end_groups(tx: Connection, tenant: TenantId, *, now: datetime) -> None:
    """An alarm of a group is over when none of its devices runs its model version any more."""
    for alarm in alarm_store.list_open(tx, tenant):
        if alarm.subject.kind is not SubjectKind.GROUP:
            continue
        newest: dict[tuple[str, str], SeriesRow] = {}
        for row in drift_store.list_series(tx, tenant, devices=alarm.devices):
            known = newest.get((row.device, row.pipeline))
            if known is None or row.next_w0 > known.next_w0:
                newest[row.device, row.pipeline] = row
        if all(row.model != alarm.subject.model for row in newest.values()):
            _clear_released(tx, alarm, now=now)


def review_budget(tx: Connection, tenant: TenantId, *, rules: DriftRules, now: datetime) -> bool:
    """Decide thresholds anew when the fleet has grown or shrunk by more than a tenth, or when the operator asks for another rate.

    Devices are told when the rate is another one. Returns whether anything was decided anew.
    """
    devices, decided = drift_store.count_watched(tx, tenant), alarm_store.find_budget(tx, tenant)
    is_grown = decided is None or alarms.needs_new_threshold(decided, devices)
    if is_grown:
        alarm_store.save_budget(tx, tenant, devices, now=now)
    rate = _allowed(alarms.rate_of(rules.rate, rules.fleet_rate, devices if is_grown or decided is None else decided))
    told = _told_rate(tx, tenant)
    is_other = rate != (AGENT_RATE if told is None else told)
    if not is_other and not (is_grown and rules.fleet_rate > 0):
        return is_grown
    for device in sorted({row.device for row in drift_store.list_series(tx, tenant, src=0)}):
        _tell_rate(tx, tenant, device, rate, is_budget=rules.fleet_rate > 0, now=now)
    detail = {"devices": devices, "before": decided or 0, "rate_per_device_year": rate, "rate_per_fleet_year": rules.fleet_rate}
    audit.append(tx, tenant=tenant, actor=DETECTOR, action=_DECIDED, subject=f"tenant/{tenant}", now=now, detail=detail)
    return True


def _allowed(rate: float) -> float:
    """The rate as a device's config can say it."""
    return min(1000.0, max(0.001, rate))


def _told_rate(tx: Connection, tenant: TenantId) -> float | None:
    """The rate that devices were told last; None when they were told none."""
    entries = audit.list_entries(tx, tenant, subject=f"tenant/{tenant}", limit=200)
    return next((float(one.detail["rate_per_device_year"]) for one in entries if one.action == _DECIDED), None)


def _tell_rate(tx: Connection, tenant: TenantId, device: DeviceId, rate: float, *, is_budget: bool, now: datetime) -> None:
    """Tell the device how many false alarms it may make, where its twin says something else.

    What somebody wishes of a device or of its group stays, unless the fleet shares a budget (`is_budget`).
    """
    try:
        said = device_store.get_twin(tx, tenant, device).config.drift.false_alarms_per_year
        wanted: float | None = rate
        if not is_budget and said is None and rate == AGENT_RATE:
            return
        if not is_budget:
            owner = device_store.get_device(tx, tenant, device)
            of_group = device_store.get_group(tx, tenant, owner.group).config.drift.false_alarms_per_year
            wanted = None if of_group is not None or rate == AGENT_RATE else rate
        if said == wanted or not (is_budget or said is None or said == _told_rate(tx, tenant)):
            return
        twins.change_drift(tx, tenant, device, lambda patch: patch.model_copy(update={"false_alarms_per_year": wanted}), now=now)
    except NotFoundError:
        return


def review_order(tx: Connection, tenant: TenantId, *, rules: DriftRules) -> None:
    """Which devices: e-BH over the evidence of all series (DRIFT 5.6)."""
    rows = [row for row in drift_store.list_series(tx, tenant, src=0) if row.reference_id is not None]
    evidence = {row.series_key: row.evidence for row in rows}
    listed = detectors.list_by_e_values(evidence, alpha=rules.alpha)
    changed = {row.series_key: row.evidence for row in rows if row.is_listed != (row.series_key in listed)}
    drift_store.set_listed(tx, tenant, changed, listed)
