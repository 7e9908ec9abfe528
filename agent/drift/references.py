"""References of this device: fitted on what it saw, kept over a release, or brought from elsewhere (DRIFT 5.2, 5.8)."""

import base64
import binascii
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from agent.drift import check, conditions
from agent.drift.check import CheckState
from agent.drift.store import SUBWINDOWS_PER_DAY, CheckRow, DriftStore, Flag, Subject
from agent.drift.windows import OpenWindow
from agent.events.bodies import event_body
from agent.store import Draft
from protocol.errors import InvalidError, MooringError
from protocol.messages import REFERENCE_LEARNED, DriftFeature, DriftPipeline, ReferenceLearned
from protocol.sketches.codec import SUBWINDOW_MS, decode
from protocol.sketches.counts import added, features_that_want_a_grid
from protocol.sketches.grid import Grid
from protocol.sketches.reference import DeviceReference, Grade, carried_over, decode_reference, fit_reference
from protocol.sketches.summary import summary

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


def fit(rows: DriftStore, watched: Watched, w0: int, *, is_indoor: bool) -> bool:
    """Give it a reference of its own, from all that is clean up to w0; returns whether it could be fitted: else the one before stays."""
    vectors, places, counts = summaries(rows, watched.subject, watched.grid, since=watched.state.since_w0, until=w0 + 1)
    try:
        reference = fit_reference(vectors, places, grid=watched.grid, model=bytes.fromhex(watched.subject.model), is_indoor=is_indoor)
    except InvalidError as error:
        log.warning("drift.not-fitted pipeline=%s text=%s", watched.subject.pipeline, str(error)[:200])
        return False
    watched.reference = reference
    watched.state = check.with_reference(watched.state, reference, origin=check.OWN, usual_rows=float(median(counts)))
    log.info("drift.reference pipeline=%s grade=%s days=%d", watched.subject.pipeline, reference.grade, watched.state.days)
    return True


def summaries(store: DriftStore, subject: Subject, grid: Grid, *, since: int, until: int) -> tuple[Any, Any, list[int]]:
    """Summary vectors of clean sub-windows, their places and rows; read a day at a time, so that memory stays small."""
    vectors, places, rows = [], [], []
    clean = store.clean_places(subject, since=since)
    for day in sorted({w0 // SUBWINDOWS_PER_DAY for w0 in clean if w0 < until}):
        begin, end = day * SUBWINDOWS_PER_DAY, (day + 1) * SUBWINDOWS_PER_DAY
        for row in store.history(subject, since=max(since, begin), until=min(until, end)):
            if row.flags & (Flag.TESTABLE | Flag.IN_ALARM) == Flag.TESTABLE:
                vectors.append(summary(decode(row.body, grid).counts, grid))
                places.append(row.w0)
                rows.append(row.rows)
    width = len(vectors[0]) if vectors else 0
    return np.array(vectors, np.float64).reshape(len(vectors), width), np.array(places, np.int64), rows


def carry_over(rows: DriftStore, fresh: Watched, before: CheckRow, old: Grid, w0: int) -> None:
    """A new release keeps the reference of the input features that it shares with the one before; the rest is collected anew."""
    if before.reference is None:
        return
    model = bytes.fromhex(fresh.subject.model)
    try:
        state = check.from_json(before.state)
        vectors, places, _ = summaries(rows, before.subject, old, since=max(state.since_w0, w0 - KEEP), until=w0)
        reference = carried_over(decode_reference(before.reference, old), old, fresh.grid, vectors, places, model=model)
    except (MooringError, ValueError, TypeError, KeyError) as error:
        log.warning("drift.not-carried-over pipeline=%s text=%s", fresh.subject.pipeline, str(error)[:200])
        return
    if reference is not None:
        fresh.reference = reference
        fresh.state = check.with_reference(CheckState(state.step_s, since_w0=w0), reference, origin=check.CARRIED)


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


def borrow(watched: Watched, text: str) -> bool:
    """Use a reference that was brought, base64, unless it is of another model or in use already; returns whether it is new."""
    try:
        reference = decode_reference(base64.b64decode(text, validate=True), watched.grid)
    except (InvalidError, binascii.Error) as error:
        log.warning("drift.lent-reference-refused pipeline=%s text=%s", watched.subject.pipeline, str(error)[:200])
        return False
    is_used = watched.reference is not None and watched.reference.reference_id == reference.reference_id
    if reference.model != bytes.fromhex(watched.subject.model) or is_used:
        return False
    watched.reference = reference
    watched.state = replace(check.with_reference(watched.state, reference, origin=check.LENT), is_told=True)
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
    day = rows.history(watched.subject, since=w0 - SUBWINDOWS_PER_DAY, until=w0 + 1)
    counted = [decode(row.body, watched.grid).counts for row in day if row.flags & Flag.TESTABLE]
    if len(counted) < SUBWINDOWS_PER_DAY * conditions.MAX_EXCLUDED:
        return False
    total = counted[0]
    for one in counted[1:]:
        total = added(total, one)
    return bool(features_that_want_a_grid(total, watched.grid))


def told(watched: Watched, *, rate: float, is_taken: bool, lost: int) -> DriftPipeline:
    """The row of the state topic. `rate`: false alarms per device-year; `is_taken`: somebody took its alarm."""
    state, reference, subject = watched.state, watched.reference, watched.subject
    evidence, threshold = (0.0, None) if reference is None else check.value_of(state, reference, rate)
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
        evidence=round(evidence, 3),
        threshold=threshold,
        raised_at=None if state.raised_w0 is None else state.raised_w0 * SUBWINDOW_MS,
        features=[DriftFeature(name=name, share=share) for name, share in state.features[: check.NAMED_FEATURES]],
        lost=lost,
    )
