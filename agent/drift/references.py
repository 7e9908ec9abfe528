"""References of this device: fitted on what it saw, kept over a release, or brought from elsewhere (DRIFT 5.2, 5.8)."""

import base64
import binascii
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agent.drift import check, conditions, sending
from agent.drift.check import CheckState
from agent.drift.fitting import Fitted
from agent.drift.store import SUBWINDOWS_PER_DAY, CheckRow, DriftStore, Flag, Subject, SubWindowRow
from agent.drift.windows import OpenWindow
from agent.events.bodies import event_body
from agent.store import Draft, SketchDraft
from protocol.errors import InvalidError
from protocol.messages import REFERENCE_LEARNED, DriftFeature, DriftPipeline, ReferenceLearned
from protocol.sketches.codec import SUBWINDOW_MS, decode
from protocol.sketches.counts import added, empty, features_that_want_a_grid
from protocol.sketches.grid import Grid
from protocol.sketches.looks import threshold_of
from protocol.sketches.reference import DeviceReference, Grade, carried_over, decode_reference, fit_reference
from protocol.sketches.summary import summarizer, summary

log = logging.getLogger("mooring.drift")

#: Sub-windows are kept so long once references are calibrated: 28 whole days and the present one, for a release to be judged by at once;
#: and while days that are not complete delay that.
KEEP, KEEP_LEARNING = 29 * SUBWINDOWS_PER_DAY, 42 * SUBWINDOWS_PER_DAY


@dataclass(slots=True)
class Watched:
    """One model version on one pipeline."""

    subject: Subject
    line: str
    release: str
    grid: Grid
    state: CheckState
    reference: DeviceReference | None
    memory: conditions.Memory = field(default_factory=conditions.Memory)
    window: OpenWindow | None = None
    #: When its latest row was made, seconds of the monotonic clock.
    last_s: float = 0.0
    is_missing: bool = False
    #: Conditions of the latest closed sub-window, and those of the check and of the day.
    closed_codes: frozenset[str] = frozenset()
    check_codes: frozenset[str] = frozenset()
    #: The day up to which references were looked after.
    reviewed_day: int = -1

    @property
    def grade(self) -> Grade:
        """How far its reference can be trusted."""
        return Grade.COLLECTING if self.reference is None else self.reference.grade

    @property
    def step_s(self) -> float:
        """Seconds between two rows."""
        return self.state.step_s or float(self.grid.step_s)


def own_fit(rows: DriftStore, watched: Watched, w0: int, *, is_indoor: bool) -> Callable[[], Fitted]:
    """Work that fits its own reference on all that is clean up to w0; it reads the store and nothing else of the loop's."""
    subject, grid, since_w0 = watched.subject, watched.grid, watched.state.since_w0
    nothing = Fitted(subject, check.OWN, since_w0)

    def work() -> Fitted:
        vectors, places, counts = summaries(rows, subject, grid, since=since_w0, until=w0 + 1)
        try:
            reference = fit_reference(vectors, places, grid=grid, model=bytes.fromhex(subject.model), is_indoor=is_indoor)
        except InvalidError as error:
            log.warning("drift.not-fitted pipeline=%s text=%s", subject.pipeline, str(error)[:200])
            return nothing
        return replace(nothing, reference=reference, usual_rows=float(np.median(counts)))

    return work


def carried_fit(rows: DriftStore, fresh: Watched, before: CheckRow, old: Grid, *, is_indoor: bool) -> Callable[[], Fitted]:
    """Work that fits the reference of the input features that a new release shares with the one before; the rest is collected anew."""
    subject, grid, since_w0 = fresh.subject, fresh.grid, fresh.state.since_w0
    nothing = Fitted(subject, check.CARRIED, since_w0)

    def work() -> Fitted:
        try:
            state = check.from_json(before.state)
            since = max(state.since_w0, since_w0 - KEEP)
            vectors, places, _ = summaries(rows, before.subject, old, since=since, until=since_w0)
            known = decode_reference(before.reference or b"", old)
            model = bytes.fromhex(subject.model)
            return replace(nothing, reference=carried_over(known, old, grid, vectors, places, model=model, is_indoor=is_indoor))
        except (InvalidError, ValueError, TypeError, KeyError) as error:
            log.warning("drift.not-carried-over pipeline=%s text=%s", subject.pipeline, str(error)[:200])
            return nothing

    return work


def take_fitted(watched: Watched, fitted: Fitted, w0: int) -> bool:
    """Give it the reference that was fitted, judging from w0 on, unless that is not wanted any more; returns whether it did."""
    state = watched.state
    if fitted.since_w0 != state.since_w0 or (fitted.origin == check.CARRIED and state.carries is None):
        return False
    if fitted.origin == check.CARRIED:
        watched.state = state = replace(state, carries=None)
    reference = fitted.reference
    if reference is None or (fitted.origin == check.CARRIED and watched.reference is not None):
        return False
    watched.reference = reference
    watched.state = check.with_reference(state, from_w0=w0, origin=fitted.origin, usual_rows=fitted.usual_rows)
    log.info("drift.reference pipeline=%s grade=%s days=%d", watched.subject.pipeline, reference.grade, watched.state.days)
    return True


def latest_rows(store: DriftStore, watched: Watched, now: Any, *, since: int, w0: int) -> Any:
    """Summaries of the sub-windows from `since` to w0, float64[n, d]: the stored ones, and `now`, float64[d] or None, as the last.

    NaN rows where one is missing or not testable. Raises: InvalidError when one cannot be read.
    """
    first = min(since, w0)
    found = np.full((w0 - first + 1, summarizer(watched.grid).dimensions), np.nan)
    for row in store.history(watched.subject, since=first, until=w0):
        if row.flags & Flag.TESTABLE:
            found[row.w0 - first] = summary(decode(row.body, watched.grid).counts, watched.grid)
    if now is not None:
        found[-1] = now
    return found


def evidence_drafts(store: DriftStore, watched: Watched, row: SubWindowRow, reference: DeviceReference) -> list[SketchDraft]:
    """What goes to the server at once: the sub-windows of the stretch that crossed, oldest first, `row` the last. Raises: InvalidError."""
    since = max(row.w0 - watched.state.stretch + 1, watched.state.since_w0, watched.state.from_w0)
    before = [one for one in store.history(watched.subject, since=since, until=row.w0) if one.flags & Flag.TESTABLE]
    return [sending.evidence_draft(one, watched.grid, reference) for one in (*before, row)]


def summaries(store: DriftStore, subject: Subject, grid: Grid, *, since: int, until: int) -> tuple[Any, Any, list[int]]:
    """Summary vectors of clean sub-windows, their places and rows; read a day at a time, so that memory stays small."""
    clean = [w0 for w0 in store.clean_places(subject, since=since) if w0 < until]
    vectors = np.empty((len(clean), summarizer(grid).dimensions))
    places, rows = list[int](), list[int]()
    for day in sorted({w0 // SUBWINDOWS_PER_DAY for w0 in clean}):
        begin, end = day * SUBWINDOWS_PER_DAY, (day + 1) * SUBWINDOWS_PER_DAY
        for row in store.history(subject, since=max(since, begin), until=min(until, end)):
            if row.flags & (Flag.TESTABLE | Flag.IN_ALARM) == Flag.TESTABLE and len(places) < len(clean):
                vectors[len(places)] = summary(decode(row.body, grid).counts, grid)
                places.append(row.w0)
                rows.append(row.rows)
    return vectors[: len(places)], np.array(places, np.int64), rows


def latest(checks: Iterable[CheckRow], pipeline: str) -> Subject | None:
    """The subject with a reference that was judged last on the pipeline, from before the start."""
    found: dict[Subject, int] = {}
    for row in checks:
        if row.subject.pipeline == pipeline and row.reference is not None:
            try:
                found[row.subject] = check.from_json(row.state).judged_w0
            except (ValueError, TypeError, KeyError):
                continue
    return max(found, key=lambda subject: found[subject], default=None)


def borrow(watched: Watched, text: str, w0: int) -> bool:
    """Use a reference that was brought, base64, from w0 on, unless it is of another model or in use already; returns whether it is new."""
    try:
        reference = decode_reference(base64.b64decode(text, validate=True), watched.grid)
    except (InvalidError, binascii.Error) as error:
        log.warning("drift.lent-reference-refused pipeline=%s text=%s", watched.subject.pipeline, str(error)[:200])
        return False
    is_used = watched.reference is not None and watched.reference.reference_id == reference.reference_id
    if reference.model != bytes.fromhex(watched.subject.model) or reference.per_day != SUBWINDOWS_PER_DAY or is_used:
        return False
    watched.reference = reference
    watched.state = replace(check.with_reference(watched.state, from_w0=w0, origin=check.LENT), is_told=True)
    return True


def learned_draft(watched: Watched, source: str) -> Draft | None:
    """The event that brings the reference to the server; None when there is nothing new to bring."""
    reference, subject = watched.reference, watched.subject
    if reference is None or watched.state.is_told:
        return None
    data = ReferenceLearned(
        pipeline=subject.pipeline,
        line=watched.line,
        model=subject.model,
        grid=subject.grid,
        reference=reference.reference_id.hex(),
        grade=reference.grade.value,
        body=base64.b64encode(reference.encoded).decode(),
    )
    body = event_body(REFERENCE_LEARNED, source=source, data=data.model_dump(), subject=subject.pipeline)
    return Draft("event", (), body)


def wants_grid(rows: DriftStore, watched: Watched, w0: int) -> bool:
    """Whether much of the day before lies beyond the grid: a better one is wanted."""
    total, testable = empty(watched.grid), 0
    for row in rows.history(watched.subject, since=w0 - SUBWINDOWS_PER_DAY, until=w0 + 1):
        if row.flags & Flag.TESTABLE:
            total, testable = added(total, decode(row.body, watched.grid).counts), testable + 1
    if testable < SUBWINDOWS_PER_DAY * conditions.MAX_EXCLUDED:
        return False
    return bool(features_that_want_a_grid(total, watched.grid))


def told(watched: Watched, *, rate: float, is_taken: bool, lost: int) -> DriftPipeline:
    """The row of the state topic. `rate`: false alarms per device-year; `is_taken`: somebody took its alarm."""
    state, reference, subject = watched.state, watched.reference, watched.subject
    threshold = None if reference is None else threshold_of(rate)
    return DriftPipeline(
        pipeline=subject.pipeline,
        line=watched.line,
        release=watched.release,
        model=subject.model,
        grid=subject.grid,
        state="ok" if state.raised_w0 is None else "acknowledged" if is_taken else "raised",
        grade=watched.grade.value,
        days=state.days,
        reference="" if reference is None else reference.reference_id.hex(),
        step_s=round(watched.step_s),
        score=state.score,
        p=state.p,
        evidence=round(state.statistic or 0.0, 3),
        threshold=threshold,
        look=state.look,
        stretch=state.stretch,
        raised_at=None if state.raised_w0 is None else state.raised_w0 * SUBWINDOW_MS,
        features=[DriftFeature(name=name, share=share) for name, share in state.features[: check.NAMED_FEATURES]],
        lost=lost,
    )
