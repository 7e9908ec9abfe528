"""What people do with drift and its alarms: look, take, clear, mute, take a new reference, and label; each with its audit entry."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from fleet import audit
from fleet.audit import Actor, ActorKind
from fleet.db import Connection, Database, check_revision
from fleet.devices import store as device_store
from fleet.devices import twins
from fleet.devices.model import DeviceFilter, DriftPatch
from fleet.monitoring import accuracy, alarm_store, alarms, attribution, detectors, drift_store, drift_sums
from fleet.monitoring.accuracy import Match
from fleet.monitoring.alarm_store import Label
from fleet.monitoring.drift_alarms import clear_alarm, raise_alarm, save_changed, set_taken, tell
from fleet.monitoring.drift_ingest import MOST_SERIES, too_many_series
from fleet.monitoring.drift_model import (
    DAY,
    AccuracyRange,
    Alarm,
    AlarmEvent,
    AlarmState,
    AlarmSubject,
    Cause,
    Distribution,
    FalseAlarms,
    Grade,
    Measured,
    Notice,
    OverviewRow,
    Reference,
    SubjectKind,
    TimePoint,
)
from fleet.monitoring.drift_profiles import find_profile, grids_of
from fleet.monitoring.drift_store import SeriesKey, SeriesRow
from fleet.monitoring.drift_tick import end_alarms, store_reference
from protocol.clock import to_unix_ms
from protocol.errors import InvalidError, NotFoundError
from protocol.ids import DeviceId, TenantId, new_id
from protocol.messages import REFERENCE_LEARNED, Event, ReferenceLearned
from protocol.sketches import cbor
from protocol.sketches.codec import decode, read_head
from protocol.sketches.counts import Counts, empty, summed
from protocol.sketches.evidence import HISTORY
from protocol.sketches.grid import Grid
from protocol.sketches.profile import ModelProfile
from protocol.sketches.reference import MAX_REFERENCE_BYTES, DeviceReference, decode_reference

#: A span up to this is summed from windows, a longer one from days.
_DAYS_OF_WINDOWS = 3
#: Labels of one request; days that labels count for.
MAX_LABELS, LABEL_DAYS = 1000, 28
ORIGINS = ("random", "uncertain", "bigger-model")
#: A reference agrees with the hourly sums when its mean lies within so many of its deviations (root mean square).
AGREES_WITHIN = 0.5
#: How old the first day of a reference may be that a device learned: 28 complete days, with many between them that were not.
LEARNED_WITHIN = timedelta(days=400)
#: Longest time that an alarm may be muted, days.
MAX_MUTE_DAYS = 365


# --- alarms ---


def list_alarms(
    database: Database,
    tenant: TenantId,
    *,
    states: Sequence[AlarmState] = (),
    device: DeviceId | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Alarm]:
    """Alarms, those raised last first, after the alarm id `after`; `states`: those alone; `device`: its own and those that hold it."""
    with database.reading() as tx:
        last = alarm_store.get_alarm(tx, tenant, after) if after is not None else None
        return alarm_store.list_alarms(tx, tenant, states=states, device=device, after=last, limit=limit)


def get_alarm(database: Database, tenant: TenantId, alarm: str) -> Alarm:
    """The alarm. Raises: NotFoundError."""
    with database.reading() as tx:
        return alarm_store.get_alarm(tx, tenant, alarm)


def acknowledge(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    by: Actor,
    now: datetime,
    note: str = "",
    link: str = "",
    revision: int | None = None,
) -> Alarm:
    """Take it. `link`: the run or site job that answers it. Raises: NotFoundError; ConflictError; StaleRevisionError."""
    with database.transaction() as tx:
        found = _held(tx, tenant, alarm, revision)
        taken = alarms.acknowledged(found, by=str(by), now=now, note=note, link=link)
        set_taken(tx, taken, is_taken=True, now=now)
        tell(tx, Notice("acknowledged", taken), now=now)
        save_changed(tx, taken, "alarm.acknowledged", by=by, now=now, reason=note, link=link)
    return taken


def clear(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    outcome: AlarmEvent,
    by: Actor,
    now: datetime,
    reason: str,
    revision: int | None = None,
) -> Alarm:
    """End it as `condition` or `false_alarm`. Raises: NotFoundError; InvalidError; ConflictError; StaleRevisionError."""
    alarms.check_outcome(outcome)
    _check_reason(reason)
    with database.transaction() as tx:
        return clear_alarm(tx, _held(tx, tenant, alarm, revision), outcome, by=by, now=now, reason=reason)


def mute(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    until: datetime | None,
    by: Actor,
    now: datetime,
    reason: str,
    revision: int | None = None,
) -> Alarm:
    """Tell nobody of it until then (None: tell again); it is still recorded. Raises: NotFoundError; InvalidError; StaleRevisionError."""
    _check_reason(reason)
    if until is not None and not now < until <= now + timedelta(days=MAX_MUTE_DAYS):
        raise InvalidError(f"Muted until {until:%Y-%m-%d %H:%M}; wanted a moment from now on, at most {MAX_MUTE_DAYS} days ahead.")
    with database.transaction() as tx:
        found = _held(tx, tenant, alarm, revision)
        muted = replace(found, muted_until=until, revision=found.revision + 1)
        until_text = until.isoformat() if until else ""
        save_changed(tx, muted, "alarm.muted" if until else "alarm.unmuted", by=by, now=now, reason=reason, until=until_text)
    return muted


def explain(alarm: Alarm) -> str:
    """The alarm in words: which features moved and how, since when, on how many devices."""
    return alarm.words


def false_alarms(database: Database, tenant: TenantId, *, since: datetime, now: datetime, rate: float = 1.0) -> FalseAlarms:
    """How the promised rate was kept since a moment: alarms of devices, and those of them that people called false."""
    with database.reading() as tx:
        counts = alarm_store.count_by_outcome(tx, tenant, since=since)
        watched = drift_store.list_watched(tx, tenant)
    years = sum(max(0.0, (min(now, drift_sums.moment_of(end)) - max(since, start)).total_seconds()) for start, end in watched) / (
        365 * 86_400
    )
    count = counts.get(AlarmEvent.FALSE_ALARM, 0)
    return FalseAlarms(count, sum(counts.values()), years, alarms.poisson_bound(count, years), rate)


# --- what was seen ---


def device_overview(
    database: Database, tenant: TenantId, *, devices: Sequence[DeviceId] | None = None, limit: int = 200
) -> list[OverviewRow]:
    """Device by feature: the heat map's rows, those listed by e-BH and of most evidence first."""
    with database.reading() as tx:
        rows = drift_store.list_series(tx, tenant, devices=devices, limit=4 * limit)
        newest: dict[tuple[DeviceId, str], int] = {}
        for row in rows:
            newest[row.device, row.pipeline] = max(row.next_w0, newest.get((row.device, row.pipeline), 0))
        current = [row for row in rows if row.next_w0 == newest[row.device, row.pipeline]][:limit]
        opened = {one.subject.text: one for one in reversed(alarm_store.list_open(tx, tenant))}
    return [_overview(row, opened.get(_subject(row).text)) for row in current]


def _overview(row: SeriesRow, alarm: Alarm | None) -> OverviewRow:
    until = None if row.judged_until is None else drift_sums.moment_of(row.judged_until)
    state = drift_store.state_of(row, until=until)
    return OverviewRow(state, alarm.alarm if alarm else None, alarm.state if alarm else None, row.cells)


def distributions(
    database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime, feature: str | None = None
) -> list[Distribution]:
    """Reference against the windows of [since, until), per feature in grid order. Raises: NotFoundError: no grid or feature."""
    with database.reading() as tx:
        row, grid = _current(tx, tenant, device, pipeline)
        now = _counts_between(tx, [row], grid, since, until)
        reference, whose = _reference_counts(tx, row, grid)
    return _drawn(grid, reference, now, whose, feature)


def fleet_distributions(
    database: Database,
    tenant: TenantId,
    *,
    matching: DeviceFilter,
    since: datetime,
    until: datetime,
    model: str | None = None,
    line: str | None = None,
    feature: str | None = None,
) -> list[Distribution]:
    """The same over all devices that match, as one sum; of the grid that most of them use. Raises: NotFoundError when none has sketches."""
    with database.reading() as tx:
        devices = [one.device for one in device_store.list_devices(tx, tenant, matching=matching, limit=100_000)]
        rows = drift_store.list_series(tx, tenant, devices=devices, limit=100_000)
        rows = [row for row in rows if (model is None or row.model == model) and (line is None or row.line == line)]
        if not rows:
            raise NotFoundError("None of these devices sent sketches.", hint="They come once an hour from models with a reference profile.")
        counted: dict[str, int] = {}
        for row in rows:
            counted[row.grid_id] = counted.get(row.grid_id, 0) + 1
        grid_id = max(sorted(counted), key=lambda one: counted[one])
        chosen = [row for row in rows if row.grid_id == grid_id]
        grid = _grid(tx, tenant, grid_id)
        now = _counts_between(tx, chosen, grid, since, until)
        profile = find_profile(tx, tenant, chosen[0].model, grid_id)
    return _drawn(grid, profile.reference if profile else empty(grid), now, "model", feature)


def timeline(database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime) -> list[TimePoint]:
    """T² and p of each sub-window of [since, until), oldest first."""
    start, end = drift_sums.sub_window_of(since), drift_sums.sub_window_of(until)
    with database.reading() as tx:
        row, grid = _current(tx, tenant, device, pipeline)
        references = {one.reference_id: decode_reference(one.body, grid) for one in drift_store.list_references(tx, row)}
        windows = drift_store.list_windows(tx, tenant, row.series_key, start=start, end=end)
    if row.decided_by == "server":
        used = references.get(row.reference_id or "")
        scored = detectors.server_scores([decode(one.body, grid) for one in windows if one.nsub > 1] if used else [], used, grid)  # type: ignore[arg-type]
    else:
        heads = sorted((read_head(one.body) for one in windows), key=lambda head: (head.nsub, head.w0))
        scored = detectors.device_scores(heads, references)
    points = zip(scored.w0s, scored.scores, scored.p, strict=True)
    return [_point(int(w0), float(score), float(p)) for w0, score, p in points if start <= w0 < end]


def _point(w0: int, score: float, p: float) -> TimePoint:
    is_known = not np.isnan(score)
    return TimePoint(drift_sums.moment_of(w0), score if is_known else None, p if is_known else None)


def accuracy_range(
    database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime
) -> AccuracyRange | None:
    """Accuracy without labels over [since, until), with its trust flag; None when the release carries nothing to estimate with."""
    with database.reading() as tx:
        row, grid = _current(tx, tenant, device, pipeline)
        return _range(tx, row, grid, since=since, until=until)


def _range(tx: Connection, row: SeriesRow, grid: Grid, *, since: datetime, until: datetime) -> AccuracyRange | None:
    profile = find_profile(tx, row.tenant, row.model, row.grid_id)
    if profile is None:
        return None
    counts = _counts_between(tx, [row], grid, since, until)
    opened = [
        one for one in alarm_store.list_open(tx, row.tenant, device=row.device) if one.subject.model == row.model and _covers(one, row)
    ]
    match = _match(tx, row, grid, profile, counts) if any(one.moves_input for one in opened) else None
    return accuracy.range_of(profile, counts, alarms=opened, match=match, measured=_measured(tx, row, now=until))


def _covers(alarm: Alarm, row: SeriesRow) -> bool:
    return alarm.subject.kind is not SubjectKind.DEVICE or alarm.subject.pipeline == row.pipeline


def _match(tx: Connection, row: SeriesRow, grid: Grid, profile: ModelProfile, counts: Counts) -> Match:
    """The validated family whose shift explains where the window lies, if one does (DRIFT 6)."""
    stored = next((one for one in drift_store.list_references(tx, row) if one.reference_id == row.reference_id), None)
    if stored is None or profile.accuracy is None or not counts.rows:
        return Match("")
    reference = decode_reference(stored.body, grid)
    summary = detectors.summaries_of([counts], grid)[0]
    limit = float(np.quantile(reference.tail.scores, 0.99))
    validated = [one for one in profile.accuracy.families if one.family in profile.accuracy.validated()]
    scores = [(float(reference.scores((summary - np.array(one.shift))[None])[0]), one) for one in validated]
    best = min(scores, key=lambda pair: pair[0], default=None)
    return Match(best[1].family, best[1].severity) if best is not None and best[0] <= limit else Match("")


def _counts_between(tx: Connection, rows: Sequence[SeriesRow], grid: Grid, since: datetime, until: datetime) -> Counts:
    """The sum over the series: of windows that begin in the span, of whole days when it is long."""
    start, end = drift_sums.sub_window_of(since), drift_sums.sub_window_of(until)
    keys = [row.series_key for row in rows]
    if end - start <= _DAYS_OF_WINDOWS * DAY:
        windows = drift_store.list_windows_of(tx, rows[0].tenant, keys, start=start, end=end)
        return summed((decode(one.body, grid).counts for its in windows.values() for one in its), grid)
    sums = drift_store.list_sums(tx, rows[0].tenant, keys, "day", start=drift_sums.day_start(start), end=end)
    return drift_sums.sum_of_sums([one for its in sums.values() for one in its], grid)


def _reference_counts(tx: Connection, row: SeriesRow, grid: Grid) -> tuple[Counts, str]:
    """What the device's reference was learned from, as far as its days are here; else what the release carries."""
    stored = next((one for one in drift_store.list_references(tx, row) if one.reference_id == row.reference_id), None)
    if stored is not None:
        reference = decode_reference(stored.body, grid)
        days = drift_store.list_sums(
            tx, row.tenant, [row.series_key], "day", start=drift_sums.day_start(reference.first_w0), end=reference.last_w0 + 1
        )
        if row.series_key in days:
            return drift_sums.sum_of_sums(days[row.series_key], grid), "device"
    profile = find_profile(tx, row.tenant, row.model, row.grid_id)
    return (profile.reference, "model") if profile is not None else (empty(grid), "none")


def _drawn(grid: Grid, reference: Counts, now: Counts, whose: str, feature: str | None) -> list[Distribution]:
    names = [one.name for one in grid.features]
    if feature is not None and feature not in names:
        raise NotFoundError(f"There is no feature {feature[:80]!r}.", hint=f"Wanted one of {', '.join(names)}.")
    wanted = range(len(names)) if feature is None else [names.index(feature)]
    return [attribution.distribution(grid, index, reference, now, reference_of=whose) for index in wanted]


def _current(tx: Connection, tenant: TenantId, device: DeviceId, pipeline: str) -> tuple[SeriesRow, Grid]:
    device_store.get_device(tx, tenant, device)
    row = drift_store.find_current(tx, tenant, device, pipeline)
    if row is None:
        hint = "They come once an hour from a model whose release has a reference profile."
        raise NotFoundError(f"Pipeline {pipeline[:80]!r} of {device} sent no sketches.", hint=hint)
    return row, _grid(tx, tenant, row.grid_id)


def _grid(tx: Connection, tenant: TenantId, grid_id: str) -> Grid:
    grid = grids_of(tx, tenant, {grid_id}).get(grid_id)
    if grid is None:
        raise NotFoundError(f"No release brought grid {grid_id}.")
    return grid


# --- references ---


def list_references(database: Database, tenant: TenantId, device: DeviceId, pipeline: str) -> list[Reference]:
    """The references of the pipeline, the one in use first. Raises: NotFoundError."""
    with database.reading() as tx:
        return drift_store.list_references(tx, _current(tx, tenant, device, pipeline)[0])


def add_reference(
    database: Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    pipeline: str,
    body: bytes,
    source: str,
    by: Actor,
    now: datetime,
    reason: str = "",
) -> Reference:
    """Store a reference (protocol.sketches.reference) that was learned from a recording, use it and send it to the device.

    Raises: NotFoundError; InvalidError when it cannot be read, is of a grid that no release brought, or of another model version.
    """
    if len(body) > MAX_REFERENCE_BYTES:
        raise InvalidError(f"{len(body)} bytes; a reference has at most {MAX_REFERENCE_BYTES}.", code="too-large")
    with database.transaction() as tx:
        device_store.get_device(tx, tenant, device)
        reference = _readable(tx, tenant, body)
        key = SeriesKey(device, pipeline, reference.model.hex(), 0, reference.grid_id.hex())
        row = drift_store.lock_series(tx, tenant, {key: reference.first_w0}, now=now)[key]
        text = base64.b64encode(body).decode()

        def tell() -> None:
            _change_twin(tx, tenant, device, lambda patch: {"references": {**(patch.references or {}), pipeline: text}}, now=now)

        stored = store_reference(tx, row, reference, source=source, now=now, by=by, reason=reason, tell=tell)
        _judge_again(tx, replace(row, learning_from=None), now=now)
    return stored


def _readable(tx: Connection, tenant: TenantId, body: bytes) -> DeviceReference:
    document = cbor.decode(body, max_bytes=MAX_REFERENCE_BYTES, what="A reference")
    grid_id = document.get(1) if isinstance(document, dict) else None
    if not isinstance(grid_id, bytes):
        raise InvalidError("A reference that is no map with a grid in key 1.", code="bad-reference")
    grid = grids_of(tx, tenant, {grid_id.hex()}).get(grid_id.hex())
    if grid is None:
        raise InvalidError(f"No release brought grid {grid_id.hex()[:64]}.", hint="Publish its release first.", code="unknown-grid")
    return decode_reference(body, grid)


def rebaseline(database: Database, *, tenant: TenantId, device: DeviceId, pipeline: str, by: Actor, now: datetime, reason: str) -> None:
    """Take what is seen from now on as normal: the reference starts again, open alarms are cleared as `rereferenced`.

    Raises: NotFoundError; InvalidError without a reason.
    """
    _check_reason(reason)
    with database.transaction() as tx:
        row, _ = _current(tx, tenant, device, pipeline)
        row = drift_store.get_series(tx, tenant, row.series_key, is_held=True)
        drift_store.use_reference(tx, tenant, row.series_key, None, now=now)
        fresh = replace(row, reference_id=None, grade=Grade.COLLECTING, evidence_state=None, statistic=0.0, threshold=0.0, evidence=0.0)
        drift_store.save_series(
            tx, replace(fresh, learning_from=row.next_w0, days=0, score=None, p=None, cells=(), is_listed=False), now=now
        )
        end_alarms(tx, row, AlarmEvent.REREFERENCED, by=by, now=now, reason=reason)

        def change(patch: DriftPatch) -> dict[str, object]:
            kept = {name: text for name, text in (patch.references or {}).items() if name != pipeline}
            return {"rebaselined": {**(patch.rebaselined or {}), pipeline: to_unix_ms(now)}, "references": kept or None}

        _change_twin(tx, tenant, device, change, now=now)
        subject, detail = f"device/{device}", {"pipeline": pipeline, "reference": row.reference_id or ""}
        audit.append(tx, tenant=tenant, actor=by, action="drift.rebaselined", subject=subject, now=now, reason=reason, detail=detail)


def take_event(tx: Connection, tenant: TenantId, device: DeviceId, event: Event, now: datetime) -> None:
    """An event of a device, in the transaction of ingest: the reference that it learned is checked, kept and used; anything else: nothing.

    One that cannot be used is refused in the audit log, since the device would send it again for ever.
    """
    if event.type != REFERENCE_LEARNED:
        return
    by = Actor(ActorKind.DEVICE, device)
    try:
        told = ReferenceLearned.model_validate(event.data)
        body = base64.b64decode(told.body, validate=True)
        reference = _readable(tx, tenant, body)
        _check_days(reference, now)
        key = SeriesKey(device, told.pipeline, reference.model.hex(), 0, reference.grid_id.hex())
        _check_room(tx, tenant, key, now)
        row = drift_store.lock_series(tx, tenant, {key: reference.first_w0}, now=now)[key]
        _check_agrees(tx, row, reference)
    except (ValueError, InvalidError) as error:  # also what pydantic and base64 raise
        text = str(error)[:500]
        subject = f"device/{device}"
        audit.append(tx, tenant=tenant, actor=by, action="drift.reference-refused", subject=subject, now=now, detail={"error": text})
        return
    if all(one.reference_id != reference.reference_id.hex() for one in drift_store.list_references(tx, row)):
        stored = store_reference(tx, row, reference, source="device", now=now, by=by)
        if stored.retired_at is None:
            _judge_again(tx, row, now=now)


def _check_room(tx: Connection, tenant: TenantId, key: SeriesKey, now: datetime) -> None:
    """Raises: InvalidError when the series would be new and its device has too many."""
    if too_many_series(tx, tenant, [key], now=now):
        raise InvalidError(f"{key.device} has {MOST_SERIES} pipelines and model versions already; wanted fewer.", code="too-many")


def _check_days(reference: DeviceReference, now: datetime) -> None:
    """Raises: InvalidError for a reference of days that cannot have been."""
    oldest, today = drift_sums.sub_window_of(now - LEARNED_WITHIN), drift_sums.sub_window_of(now)
    if not oldest <= reference.first_w0 <= reference.last_w0 <= today:
        raise InvalidError(
            f"The reference was learned from sub-windows {reference.first_w0} to {reference.last_w0}; wanted them in {oldest} to {today}.",
            code="bad-reference",
        )


def _check_agrees(tx: Connection, row: SeriesRow, reference: DeviceReference) -> None:
    """Raises: InvalidError when the hourly sums of its days, as far as they are here, say something else than its mean."""
    grid = _grid(tx, row.tenant, row.grid_id)
    first, last = drift_sums.day_start(reference.first_w0), reference.last_w0 + 1
    days = drift_store.list_sums(tx, row.tenant, [row.series_key], "day", start=first, end=last).get(row.series_key, [])
    if sum(day.sub_windows for day in days) < 0.8 * reference.windows:
        return
    summary = detectors.summaries_of([drift_sums.sum_of_sums(days, grid)], grid)[0]
    apart = detectors.site_gap(reference, summary)
    if apart > AGREES_WITHIN:
        raise InvalidError(
            f"The mean of the reference lies {apart:.2f} deviations from the sums of its days; wanted at most {AGREES_WITHIN}.",
            code="reference-mismatch",
        )


def _judge_again(tx: Connection, row: SeriesRow, *, now: datetime) -> None:
    """All that evidence remembers of the series waits to be judged again."""
    first = max(row.first_w0, row.next_w0 - HISTORY * DAY)
    if row.next_w0 > row.first_w0:
        dirty = first if row.dirty_from is None else min(first, row.dirty_from)
        drift_store.save_series(tx, replace(row, dirty_from=dirty, evidence_state=None), now=now)


def _change_twin(
    tx: Connection, tenant: TenantId, device: DeviceId, values: Callable[[DriftPatch], dict[str, object]], *, now: datetime
) -> None:
    twins.change_drift(tx, tenant, device, lambda patch: patch.model_copy(update=values(patch)), now=now)


# --- labels ---


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
    with database.transaction() as tx:
        rows = {(one.device, one.pipeline): _current(tx, tenant, one.device, one.pipeline)[0] for one in labels}
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


def measured_accuracy(database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, now: datetime) -> tuple[Measured, ...]:
    """Accuracy by random labels of the last days with its confidence sequence: all first, then per slice. Raises: NotFoundError."""
    with database.reading() as tx:
        return _measured(tx, _current(tx, tenant, device, pipeline)[0], now=now)


def _measured(tx: Connection, row: SeriesRow, *, now: datetime, origin: str = "random") -> tuple[Measured, ...]:
    since = now - timedelta(days=LABEL_DAYS)
    counts = alarm_store.count_labels(tx, row.tenant, model=row.model, origin=origin, device=row.device, pipeline=row.pipeline, since=since)
    return tuple(accuracy.measured(right, labels, name) for name, (right, labels) in sorted(counts.items()))


def _judge_concept(tx: Connection, row: SeriesRow, *, now: datetime) -> None:
    """Raise an alarm when labels, or a bigger model, say that the same input means something else now."""
    profile = find_profile(tx, row.tenant, row.model, row.grid_id)
    if profile is None or profile.accuracy is None:
        return
    grid = _grid(tx, row.tenant, row.grid_id)
    since = now - timedelta(days=LABEL_DAYS)
    expected = _range(tx, row, grid, since=since, until=now)
    for origin, word in (("random", "labels"), ("bigger-model", "a bigger model")):
        bad = [one for one in _measured(tx, row, now=now, origin=origin) if accuracy.concept_moved(profile.accuracy.acc0, one, expected)]
        if bad:
            _raise_concept(tx, row, bad, word, profile.accuracy.acc0, now=now)
            return


def _raise_concept(tx: Connection, row: SeriesRow, bad: Sequence[Measured], word: str, acc0: float, *, now: datetime) -> Alarm:
    subject = _subject(row)
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


def _subject(row: SeriesRow) -> AlarmSubject:
    return AlarmSubject(SubjectKind.DEVICE, row.device, row.pipeline, row.model)


def _held(tx: Connection, tenant: TenantId, alarm: str, revision: int | None) -> Alarm:
    found = alarm_store.get_alarm(tx, tenant, alarm, is_held=True)
    check_revision(found.revision, revision, what=f"Alarm {alarm}")
    return found


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidError("No reason is given; it goes into the audit log.", hint="Say why.")
