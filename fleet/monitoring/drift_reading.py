"""What was seen, for people: devices by features, distributions against the reference, scores over time, accuracy without labels."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np

from fleet.db import Connection, Database
from fleet.devices import store as device_store
from fleet.devices.model import DeviceFilter
from fleet.monitoring import (
    accuracy,
    alarm_store,
    attribution,
    detectors,
    drift_budget,
    drift_known,
    drift_looking,
    drift_raising,
    drift_store,
    drift_sums,
    quarantine_store,
    reference_store,
)
from fleet.monitoring.accuracy import Labelled, Match
from fleet.monitoring.drift_model import (
    DAY,
    AccuracyRange,
    Alarm,
    Distribution,
    Measured,
    OverviewRow,
    ReferenceSource,
    SubjectKind,
    TimePoint,
)
from fleet.monitoring.drift_profiles import find_profile, grids_of
from fleet.monitoring.drift_tables import SeriesRow, Waiting
from protocol.errors import NotFoundError
from protocol.ids import DeviceId, TenantId
from protocol.sketches.codec import Source, decode
from protocol.sketches.counts import Counts, empty, summed
from protocol.sketches.grid import Grid
from protocol.sketches.profile import ModelProfile
from protocol.sketches.reference import decode_reference

#: A span up to this is summed from windows, a longer one from days.
_DAYS_OF_WINDOWS = 3
#: Days that labels count for, and how many of one pipeline are read to correct its estimate: more than one each ten minutes.
LABEL_DAYS, _MOST_LABELS = 28, 5000


def device_overview(
    database: Database, tenant: TenantId, *, devices: Sequence[DeviceId] | None = None, limit: int = 200
) -> list[OverviewRow]:
    """Device by feature: the heat map's rows, those listed by e-BH and of most evidence first."""
    with database.reading() as tx:
        rows = drift_store.list_series(tx, tenant, devices=devices, limit=4 * limit)
        current = drift_store.current_of(tx, tenant, rows)[:limit]
        opened = {one.subject.text: one for one in reversed(alarm_store.list_open(tx, tenant))}
        sources = reference_store.list_sources(tx, tenant, [row.series_key for row in current if row.reference_id])
    return [_overview(row, opened.get(row.subject.text), sources.get((row.series_key, row.reference_id or ""))) for row in current]


def _overview(row: SeriesRow, alarm: Alarm | None, source: ReferenceSource | None) -> OverviewRow:
    until = None if row.judged_until is None else drift_sums.moment_of(row.judged_until)
    state = drift_store.state_of(row, until=until)
    return OverviewRow(state, alarm.alarm if alarm else None, alarm.state if alarm else None, row.cells, source)


def source_of(database: Database, tenant: TenantId, alarm: Alarm) -> ReferenceSource | None:
    """Where the reference comes from that the alarm was raised against; None of a group's, and of one that is not kept any more."""
    if alarm.subject.kind is not SubjectKind.DEVICE or not alarm.reference_id:
        return None
    with database.reading() as tx:
        return reference_store.find_source(tx, tenant, DeviceId(alarm.subject.name), alarm.subject.pipeline, alarm.reference_id)


def list_waiting(database: Database, tenant: TenantId, *, device: DeviceId | None = None) -> list[Waiting]:
    """Windows that were put aside, by series and reason: those that wait for a release with their grid, and those that overlap others."""
    with database.reading() as tx:
        return quarantine_store.list_waiting(tx, tenant, device=device)


def own_rate(database: Database, tenant: TenantId, device: DeviceId) -> float | None:
    """False alarms per year that the device asks by its own file, where nobody set them here; None: it asks none."""
    with database.reading() as tx:
        return drift_budget.own_rate(tx, tenant, device) if drift_budget.wished_rate(tx, tenant, device) is None else None


def distributions(
    database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime, feature: str | None = None
) -> list[Distribution]:
    """Reference against the windows of [since, until), per feature in grid order. Raises: NotFoundError: no grid or feature."""
    with database.reading() as tx:
        row, grid = current_series(tx, tenant, device, pipeline)
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
        grid = get_grid(tx, tenant, grid_id)
        now = _counts_between(tx, chosen, grid, since, until)
        profile = find_profile(tx, tenant, chosen[0].model, grid_id)
    return _drawn(grid, profile.reference if profile else empty(grid), now, "model", feature)


def candidate_distributions(
    database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime
) -> tuple[str, list[Distribution]] | None:
    """Of the candidate in the shadow: its model version, and its windows of [since, until) against what its own release carries.

    None when none of that time came from one.
    """
    with database.reading() as tx:
        row = drift_store.find_current(tx, tenant, device, pipeline, src=Source.SHADOW)
        if row is None or drift_sums.moment_of(row.next_w0) <= since:
            return None
        grid = get_grid(tx, tenant, row.grid_id)
        now, (reference, whose) = _counts_between(tx, [row], grid, since, until), _reference_counts(tx, row, grid)
    return row.model, _drawn(grid, reference, now, whose, None)


def timeline(database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime) -> list[TimePoint]:
    """Score, p and what the looks say of each sub-window of [since, until), oldest first."""
    start, end = drift_sums.sub_window_of(since), drift_sums.sub_window_of(until)
    with database.reading() as tx:
        row, grid = current_series(tx, tenant, device, pipeline)
        known = drift_known.known_of(tx, row, grid)
        reference = known.references.get(row.reference_id or "") or next(iter(known.references.values()), None)
        if reference is None:
            return []
        reach = start - drift_raising.stretch_of(reference)
        windows = drift_store.list_windows(tx, tenant, row.series_key, start=reach, end=end)
    scored = drift_looking.read_windows(known, row, reference, windows).scored
    statistics = drift_looking.statistics(known, row, reference, windows)
    points = zip(scored.w0s.tolist(), scored.scores.tolist(), scored.p.tolist(), strict=True)
    return [_point(w0, score, p, statistics.get(w0)) for w0, score, p in points if start <= w0 < end]


def _point(w0: int, score: float, p: float, statistic: float | None) -> TimePoint:
    is_known = not np.isnan(score)
    return TimePoint(drift_sums.moment_of(w0), score if is_known else None, p if is_known else None, statistic)


def accuracy_range(
    database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime
) -> AccuracyRange | None:
    """Accuracy without labels over [since, until), with its trust flag; None when the release carries nothing to estimate with."""
    with database.reading() as tx:
        row, grid = current_series(tx, tenant, device, pipeline)
        return estimated(tx, row, grid, since=since, until=until)


def estimated(
    tx: Connection, row: SeriesRow, grid: Grid, *, since: datetime, until: datetime, with_labels: bool = True
) -> AccuracyRange | None:
    """Accuracy over [since, until); None when the release carries nothing to estimate with.

    `with_labels`: what labels of the last days say of estimates of this pipeline is taken off; else it is what inputs and answers alone
    let expect.
    """
    profile = find_profile(tx, row.tenant, row.model, row.grid_id)
    if profile is None:
        return None
    counts = _counts_between(tx, [row], grid, since, until)
    opened = [
        one for one in alarm_store.list_open(tx, row.tenant, device=row.device) if one.subject.model == row.model and _covers(one, row)
    ]
    match = _match(tx, row, grid, profile, counts) if any(one.moves_input for one in opened) else None
    labelled = _labelled_days(tx, row, grid, until=until) if with_labels else []
    return accuracy.range_of(profile, counts, alarms=opened, match=match, measured=measured_of(tx, row, now=until), labelled=labelled)


def _labelled_days(tx: Connection, row: SeriesRow, grid: Grid, *, until: datetime) -> list[Labelled]:
    """The last days on which labels were drawn at random of what the series counted, oldest first."""
    since = until - timedelta(days=LABEL_DAYS)
    listed = alarm_store.list_random_labels(
        tx, row.tenant, model=row.model, device=row.device, pipeline=row.pipeline, since=since, until=until, limit=_MOST_LABELS
    )
    words: dict[int, list[bool]] = {}
    for moment, is_right in listed:
        words.setdefault(drift_sums.day_start(drift_sums.sub_window_of(moment)), []).append(is_right)
    if not words:
        return []
    sums = drift_store.list_sums(tx, row.tenant, [row.series_key], "day", start=min(words), end=max(words) + 1)
    days = [one for one in sums.get(row.series_key, []) if one.w0 in words]
    return [Labelled(drift_sums.sum_of_sums([one], grid), sum(words[one.w0]), len(words[one.w0])) for one in days]


def _covers(alarm: Alarm, row: SeriesRow) -> bool:
    return alarm.subject.kind is not SubjectKind.DEVICE or alarm.subject.pipeline == row.pipeline


def _match(tx: Connection, row: SeriesRow, grid: Grid, profile: ModelProfile, counts: Counts) -> Match:
    """The validated family whose shift explains where the window lies, if one does (DRIFT 6)."""
    stored = next((one for one in reference_store.list_references(tx, row) if one.reference_id == row.reference_id), None)
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
    stored = next((one for one in reference_store.list_references(tx, row) if one.reference_id == row.reference_id), None)
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


def current_series(tx: Connection, tenant: TenantId, device: DeviceId, pipeline: str) -> tuple[SeriesRow, Grid]:
    """The series that the pipeline writes now, and its grid. Raises: NotFoundError."""
    device_store.get_device(tx, tenant, device)
    row = drift_store.find_current(tx, tenant, device, pipeline)
    if row is None:
        hint = "They come once an hour from a model whose release has a reference profile."
        raise NotFoundError(f"Pipeline {pipeline[:80]!r} of {device} sent no sketches.", hint=hint)
    return row, get_grid(tx, tenant, row.grid_id)


def get_grid(tx: Connection, tenant: TenantId, grid_id: str) -> Grid:
    """The grid, as a release brought it. Raises: NotFoundError."""
    grid = grids_of(tx, tenant, {grid_id}).get(grid_id)
    if grid is None:
        raise NotFoundError(f"No release brought grid {grid_id}.")
    return grid


def measured_accuracy(database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, now: datetime) -> tuple[Measured, ...]:
    """Accuracy by random labels of the last days with its confidence sequence: all first, then per slice. Raises: NotFoundError."""
    with database.reading() as tx:
        return measured_of(tx, current_series(tx, tenant, device, pipeline)[0], now=now)


def measured_of(tx: Connection, row: SeriesRow, *, now: datetime, origin: str = "random") -> tuple[Measured, ...]:
    """Accuracy by labels of this origin in the last days, all first, then per slice."""
    since = now - timedelta(days=LABEL_DAYS)
    counts = alarm_store.count_labels(tx, row.tenant, model=row.model, origin=origin, device=row.device, pipeline=row.pipeline, since=since)
    return tuple(accuracy.measured(right, labels, name) for name, (right, labels) in sorted(counts.items()))
