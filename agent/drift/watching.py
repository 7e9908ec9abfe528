"""Watches the models of this device: rows in, sub-windows and hours out, a check that works without a server; used by one thread.

Nothing here stops inference. What cannot be counted is counted as lost; a check that fails is a condition, the others go on.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agent.config import DriftConfig
from agent.drift import check, conditions, references, sending, windows
from agent.drift.check import CheckState, Rules
from agent.drift.fitting import Fitter, Start, in_thread
from agent.drift.references import KEEP, KEEP_LEARNING, Watched
from agent.drift.rows import SampledRow, seen_of, values_of
from agent.drift.store import SUBWINDOWS_PER_DAY, CheckRow, DriftStore, Flag, Subject, SubWindowRow
from agent.drift.windows import OpenWindow, subwindow_of
from agent.store import SketchDraft, Store
from protocol.clock import Clock
from protocol.errors import DeviceError, InvalidError, MooringError
from protocol.files import read_bounded
from protocol.messages import DriftPipeline
from protocol.sketches.codec import SUBWINDOW_MS, SUBWINDOW_S, SUBWINDOWS_PER_HOUR
from protocol.sketches.grid import Grid, decode_grid
from protocol.sketches.profile import FILE_NAME, MAX_PROFILE_BYTES, decode_profile
from protocol.sketches.reference import Grade, decode_reference, grade_of
from protocol.sketches.summary import summary

log = logging.getLogger("mooring.drift")

#: Rows that wait for the clock to be set; more are lost, counted.
MAX_HELD = 8192
#: A clock that moves more than this against the monotonic one spoils the sub-window, seconds.
JUMP_S = 3600.0
#: Seconds of the agent's clock between two looks at what is to be sent.
SEND_LOOK_S = 30.0
#: After a jump nothing is forgotten for so long, seconds; else at most so many sub-windows a day, twice what comes.
HOLD_S, MAX_FORGOTTEN = 86_400.0, 2 * SUBWINDOWS_PER_DAY
_LOST_VALUE = "drift.lost"


@dataclass(frozen=True, slots=True)
class Place:
    """A pipeline as it is configured."""

    line: str
    #: Frames in which nothing moves are not inferred: none for a while is nothing wrong.
    is_gated: bool = False


class DriftWatch:
    """All that is watched on this device."""

    def __init__(self, store: Store, *, clock: Clock, device: str, source: str, start: Start = in_thread) -> None:
        """`source`: of the events about this device; `start` runs the fits. Raises: DeviceError when the store cannot be read."""
        self._fitter = Fitter(start)
        self._rows, self._store, self._clock, self._source = DriftStore(store, clock), store, clock, source
        self._minute = sending.minute_of(device)
        self._settings, self._places = DriftConfig(), dict[str, Place]()
        self._watched: dict[Subject, Watched] = {}
        #: The subject that the latest row of each pipeline belongs to.
        self._current: dict[str, Subject] = {}
        self._checks = {row.subject: row for row in self._rows.checks()}
        self._grids: dict[str, Grid] = {}
        self._held: deque[SampledRow] = deque()
        self._is_clock_set = True
        self._offset_s: float | None = None
        #: When the clock jumped last, seconds of the monotonic one, and the day on which old sub-windows were forgotten last.
        self._jumped_s, self._forgot_day = -HOLD_S, -1
        self._sent_look_s = -SEND_LOOK_S
        self._faults: dict[str, str] = {}
        #: Per pipeline the grid that could not be had, the slot, and the sub-window: it is looked for again in the next one.
        self._refused: dict[tuple[str, int], tuple[str, str, int]] = {}
        #: Rows lost since the store was made: a crash, no time, no room, too late.
        self.lost = self._kept_lost = int(store.get_value(_LOST_VALUE) or 0)
        #: The sub-window of the latest tick.
        self._tick_w0 = -1
        #: Grows when the state topic has something new to say.
        self.revision = 0
        self._end_open_windows()

    # --- settings ---

    def configure(self, settings: DriftConfig, places: Mapping[str, Place]) -> None:
        """Watch these pipelines by these settings from now on."""
        if settings == self._settings and places == self._places:
            return
        self._settings, self._places = settings, dict(places)
        self._faults = {pipeline: text for pipeline, text in self._faults.items() if self._is_wanted(pipeline)}
        gone = [watched for watched in self._watched.values() if not self._is_wanted(watched.subject.pipeline)]
        for watched in gone:  # before anything is written: what is not watched has nothing to say, also when the disk is full
            del self._watched[watched.subject]
            if self._current.get(watched.subject.pipeline) == watched.subject:
                del self._current[watched.subject.pipeline]
        self.revision += 1
        for watched in self._watched.values():
            self._renew_when_asked(watched)
        for watched in gone:
            self._close(watched)

    def _is_wanted(self, pipeline: str) -> bool:
        return self._settings.enabled and pipeline in self._places

    def steps(self) -> dict[str, float]:
        """Per pipeline the seconds between two rows; 0: as the profile says. Empty when nothing is to be watched."""
        if not self._settings.enabled:
            return {}
        wished = float(self._settings.step_s or 0)
        found = dict.fromkeys(self._places, wished)
        for pipeline, subject in self._current.items():
            if not wished and pipeline in found:
                found[pipeline] = self._watched[subject].state.step_s
        return found

    # --- rows ---

    def take(self, row: SampledRow) -> None:
        """Count a row. Raises: nothing but DeviceError of the store."""
        if not self._is_clock_set:
            if len(self._held) >= MAX_HELD:
                self._lose(1)
            else:
                self._held.append(row)
            return
        self._count(row)

    def tick(self, *, is_clock_set: bool) -> None:
        """End what is over, judge it, send what is due. Raises: DeviceError of the store; the rest is done at the next tick."""
        self._watch_clock(is_clock_set=is_clock_set)
        if not is_clock_set:
            return
        while self._held:
            self._count(self._held.popleft(), codes=("clock_unsynced",))
        now_w0 = subwindow_of(self._now_s())
        for watched in list(self._watched.values()):
            self._watch_gap(watched)
            if watched.window is not None and watched.window.w0 != now_w0:
                self._close(watched)
                if self._current.get(watched.subject.pipeline) != watched.subject:
                    del self._watched[watched.subject]  # another model runs there now; what it left is in the store
        self._take_fitted(now_w0)
        if now_w0 != self._tick_w0:
            self._keep_lost()
            self._tick_w0 = now_w0
        if abs(self._clock.monotonic() - self._sent_look_s) >= SEND_LOOK_S:
            self._sent_look_s = self._clock.monotonic()
            self._send_hours()

    def stop(self) -> None:
        """Put what is counted into the store: the next start goes on with it."""
        rows = [
            windows.row_of(one.window, flags=one.window.flags | Flag.OPEN | Flag.FLUSHED) for one in self._watched.values() if one.window
        ]
        self._rows.save_windows(rows)
        self._keep_lost()

    def _count(self, row: SampledRow, *, codes: tuple[str, ...] = ()) -> None:
        if not self._is_wanted(row.pipeline):
            return
        at_s = self._now_s() - (self._clock.monotonic() - row.at_s)
        wanted = (row.grid, row.folder, subwindow_of(at_s))
        if self._refused.get((row.pipeline, row.src)) == wanted:
            self._lose(1)
            return
        try:
            watched = self._find(row, subwindow_of(at_s))
        except (InvalidError, OSError) as error:
            self._refused[row.pipeline, row.src] = wanted
            if not row.src:  # of a candidate in the shadow nobody is told: the release in use is watched all the same
                self._faults[row.pipeline] = str(error)
            self._lose(1)
            return
        if not row.src:
            self._faults.pop(row.pipeline, None)
        watched.last_s, watched.is_missing = row.at_s, False
        self._choose_step(watched, row)
        try:
            window = self._window_at(watched, subwindow_of(at_s))
        except InvalidError as error:  # what is remembered of it cannot be read: the next sub-window is another one
            log.warning("drift.row-lost pipeline=%s text=%s", row.pipeline, str(error)[:200])
            window = None
        if window is None:
            self._lose(1 + row.skipped)
            return
        values = values_of(row, watched.grid)
        watched.memory, verdict = conditions.judge(watched.memory, seen_of(row, values, watched.grid))
        window.note((*verdict.codes, *codes), watched.step_s)
        if row.skipped:
            window.sketcher.exclude(row.skipped)
            self.lost += row.skipped
        if verdict.is_excluded or values is None:
            window.sketcher.exclude()
        else:
            window.add(values, row.labels)

    def _find(self, row: SampledRow, w0: int) -> Watched:
        """What the row belongs to. Raises: InvalidError, OSError when its grid cannot be had; DeviceError."""
        subject = Subject(row.pipeline, row.model, row.grid, row.src)
        watched = self._watched.get(subject)
        if watched is None:
            grid = self._load_grid(row)
            watched = self._watched[subject] = self._remembered(subject, row, grid, w0)
            self.revision += 1
        if not subject.src and self._current.get(row.pipeline) != subject:
            self._current[row.pipeline] = subject
            self.revision += 1
        watched.line, watched.release = row.line, row.release
        return watched

    def _remembered(self, subject: Subject, row: SampledRow, grid: Grid, w0: int) -> Watched:
        """The model version as the store knows it; a new one starts with what the release before leaves it (DRIFT 5.8)."""
        wished = float(self._settings.step_s or 0)
        fresh = Watched(subject, row.line, row.release, grid, CheckState(wished), None)
        kept = self._checks.get(subject)
        if kept is not None:
            try:
                fresh.state = check.from_json(kept.state)
                fresh.reference = None if kept.reference is None else decode_reference(kept.reference, grid)
            except (InvalidError, ValueError, TypeError, KeyError) as error:
                log.warning("drift.forgotten pipeline=%s text=%s", subject.pipeline, str(error)[:200])
                fresh.state, fresh.reference = CheckState(wished, since_w0=w0), None
        elif not subject.src:
            fresh.state = self._begun(subject, w0)
        if wished and fresh.state.step_s != wished:  # DRIFT 5.8: another step is another reference
            fresh.state, fresh.reference = CheckState(wished, since_w0=w0), None
        self._renew_when_asked(fresh)
        self._carry_over(fresh)
        return fresh

    def _begun(self, subject: Subject, w0: int) -> CheckState:
        """The state of a model version that is new here: what it takes over from the one before is fitted beside the loop."""
        before = self._current.get(subject.pipeline) or references.latest(self._checks.values(), subject.pipeline)
        kept = None if before is None else self._checks.get(before)
        if before is None or kept is None or kept.reference is None:
            return CheckState(float(self._settings.step_s or 0))
        try:
            step_s = check.from_json(kept.state).step_s
        except (ValueError, TypeError, KeyError):
            return CheckState(float(self._settings.step_s or 0))
        return CheckState(step_s, since_w0=w0, carries=(before.model, before.grid))

    def _carry_over(self, fresh: Watched) -> None:
        """Have the reference of the shared inputs fitted, also when the agent ended in the middle of it."""
        if fresh.state.carries is None or fresh.reference is not None:
            return
        before = Subject(fresh.subject.pipeline, *fresh.state.carries)
        kept, old = self._checks.get(before), self._find_grid(before.grid)
        if kept is None or old is None:
            fresh.state = replace(fresh.state, carries=None)
        else:
            self._fitter.ask(fresh.subject, references.carried_fit(self._rows, fresh, kept, old, is_indoor=self._settings.indoor))

    def _choose_step(self, watched: Watched, row: SampledRow) -> None:
        """Once it is known what a row costs here, keep the step with which they fit into their share of the processor."""
        if watched.state.step_s or not row.fitting_step_s:
            return
        watched.state = replace(watched.state, step_s=float(max(row.fitting_step_s, watched.grid.step_s)))
        self._save(watched)

    def _window_at(self, watched: Watched, w0: int) -> OpenWindow | None:
        """The sub-window that is counted now; None for one that is closed: what was judged or sent does not change."""
        window = watched.window
        if window is not None and window.w0 == w0:
            return window
        before = self._rows.find_window(watched.subject, w0)
        if before is not None and not before.flags & Flag.OPEN:
            return None
        if window is not None:
            self._close(watched)
        watched.window = opened = windows.begin(watched.subject, watched.grid, w0, before=before)
        opened.flags &= ~Flag.FLUSHED
        self._rows.save_window(windows.row_of(opened, flags=opened.flags))
        return opened

    # --- time ---

    def _watch_clock(self, *, is_clock_set: bool) -> None:
        self._is_clock_set = is_clock_set
        offset_s = self._now_s() - self._clock.monotonic()
        before, self._offset_s = self._offset_s, offset_s
        if before is None or abs(offset_s - before) <= JUMP_S:
            return
        self._jumped_s = self._clock.monotonic()
        for watched in self._watched.values():
            if watched.window is not None:
                watched.window.flags |= Flag.JUMPED
                watched.window.note(("clock_jumped",), SUBWINDOW_S)

    def _watch_gap(self, watched: Watched) -> None:
        """No frame for ten steps: that is a condition, and the sub-window cannot be judged."""
        place = self._places.get(watched.subject.pipeline)
        if place is None or place.is_gated or self._current.get(watched.subject.pipeline) != watched.subject:
            return
        silent_s = self._clock.monotonic() - watched.last_s
        if silent_s <= conditions.MISSING_STEPS * watched.step_s:
            return
        if watched.window is not None:
            watched.window.flags |= Flag.GAP
            watched.window.note(("frame_missing",), silent_s if not watched.is_missing else 0.0)
        watched.is_missing = True

    def _now_s(self) -> float:
        return self._clock.now().timestamp()

    # --- the end of a sub-window ---

    def _close(self, watched: Watched) -> None:
        """Judge the sub-window, keep it, and send its stretch at once when it crosses."""
        window, watched.window = watched.window, None
        if window is None:
            return
        try:
            self._judge(watched, window)
        except DeviceError:
            self._lose(window.rows)
            raise
        if window.w0 // SUBWINDOWS_PER_DAY != watched.reviewed_day and not watched.subject.src:  # a shadow's are counted and sent, no more
            watched.reviewed_day = window.w0 // SUBWINDOWS_PER_DAY
            self._review(watched, window.w0)

    def _judge(self, watched: Watched, window: OpenWindow) -> None:
        counts = window.counts()
        usual = watched.state.usual_rows
        has_gap = bool(window.flags & (Flag.GAP | Flag.JUMPED))
        is_testable = conditions.is_testable(rows=counts.rows, excluded=counts.excluded, usual_rows=usual, has_gap=has_gap)
        if usual is not None and counts.rows + counts.excluded < conditions.MIN_RATE * usual:
            window.note(("rate_low",), SUBWINDOW_S)
        before, judged = watched.state, check.Judged(watched.state)
        codes = set[str]()
        try:
            judged = self._judged(watched, window, is_testable=is_testable)
            if watched.reference is not None and not watched.reference.may_alarm:
                codes.add("reference_degenerate")
        except (MooringError, ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            log.warning("drift.check-failed pipeline=%s text=%s", watched.subject.pipeline, str(error)[:200])
            codes.add("detector_failed")
            window.note(("detector_failed",), SUBWINDOW_S)
        is_alarmed = before.is_raised or judged.state.is_raised
        flags = (window.flags & (Flag.GAP | Flag.JUMPED)) | (Flag.TESTABLE if is_testable else Flag(0))
        flags |= Flag.IN_ALARM if is_alarmed else Flag(0)
        reference_id = watched.reference.reference_id if watched.reference is not None else None
        row = windows.row_of(window, flags=flags, score=judged.score, reference_id=reference_id)
        watched.state = judged.state
        evidence: list[SketchDraft] = []
        if judged.is_crossing and watched.reference is not None:
            evidence = references.evidence_drafts(self._rows, watched, row, watched.reference)
        self._save(watched, window=row, evidence=evidence)
        watched.check_codes = (watched.check_codes & {"grid_wanted"}) | codes
        watched.closed_codes = windows.names_of(window.seconds)
        if before.is_raised != judged.state.is_raised:
            log.warning("drift.%s pipeline=%s w0=%d", "raised" if judged.state.is_raised else "over", watched.subject.pipeline, window.w0)
            self.revision += 1

    def _judged(self, watched: Watched, window: OpenWindow, *, is_testable: bool) -> check.Judged:
        if watched.reference is None:
            return check.Judged(watched.state)
        vector = summary(window.counts(), watched.grid) if is_testable else None
        since = check.first_row(watched.state, watched.reference, window.w0)
        rows = references.latest_rows(self._rows, watched, vector, since=since, w0=window.w0)
        settings = self._settings
        rules = Rules(settings.false_alarms_per_year, may_raise=settings.check == "device")
        return check.judge(watched.state, watched.reference, watched.grid, rows, window.w0, rules)

    def _save(self, watched: Watched, *, window: SubWindowRow | None = None, evidence: Sequence[SketchDraft] = ()) -> None:
        encoded = None if watched.reference is None else watched.reference.encoded
        row, kept = CheckRow(watched.subject, check.to_json(watched.state), encoded), self._checks.get(watched.subject)
        is_new = kept is None or kept.reference != encoded
        self._rows.save_check(row, has_new_reference=is_new, window=window, evidence=evidence)
        self._checks[watched.subject] = row

    # --- references ---

    def _review(self, watched: Watched, w0: int) -> None:
        """Once a day: count the complete days, and have a reference fitted when there are enough; forget what is too old."""
        places = self._rows.clean_places(watched.subject, since=watched.state.since_w0)
        days, is_own = check.days_of(places), watched.state.origin == check.OWN
        if days != watched.state.days:
            watched.state = replace(watched.state, days=days)
            self.revision += 1
        wanted = grade_of(days)
        is_better = not is_own or (watched.grade is Grade.PROVISIONAL and wanted is Grade.CALIBRATED)
        if wanted is not Grade.COLLECTING and is_better:
            self._fitter.ask(watched.subject, references.own_fit(self._rows, watched, w0, is_indoor=self._settings.indoor))
        self._save(watched)
        self._tell(watched)
        wanting = {"grid_wanted"} if references.wants_grid(self._rows, watched, w0) else frozenset[str]()
        watched.check_codes = (watched.check_codes - {"grid_wanted"}) | wanting
        keep = KEEP if all(one.grade is Grade.CALIBRATED for one in self._watched.values()) else KEEP_LEARNING
        self._forget(w0, keep)

    def _take_fitted(self, w0: int) -> None:
        """Judge by what was fitted from this sub-window on."""
        for fitted in self._fitter.take():
            watched = self._watched.get(fitted.subject)
            if watched is None:
                continue
            self.revision += references.take_fitted(watched, fitted, w0)
            self._save(watched)
            self._tell(watched)

    def _tell(self, watched: Watched) -> None:
        """Send the reference to the server, once."""
        if (draft := references.learned_draft(watched, self._source)) is not None:
            self._store.add_all([draft])
            watched.state = replace(watched.state, is_told=True)
            self._save(watched)

    def _forget(self, w0: int, keep: int) -> None:
        """Once a day forget what is too old; a clock that is wrong for some hours costs nothing, one that stays wrong a little each day."""
        day = w0 // SUBWINDOWS_PER_DAY
        if day == self._forgot_day or self._clock.monotonic() - self._jumped_s < HOLD_S:
            return
        self._forgot_day = day
        if (oldest := self._rows.oldest_window()) is not None:
            self._rows.forget_before(min(w0 - keep, oldest + MAX_FORGOTTEN) // SUBWINDOWS_PER_HOUR * SUBWINDOWS_PER_HOUR)

    def _renew_when_asked(self, watched: Watched) -> None:
        """Begin anew where somebody took what is there now as normal, or at another step; take a reference that was brought."""
        if watched.subject.src:
            return
        settings, pipeline = self._settings, watched.subject.pipeline
        wished = float(settings.step_s or 0)
        now_w0 = subwindow_of(self._now_s())
        asked_w0 = -(-settings.rebaselined.get(pipeline, 0) // SUBWINDOW_MS)  # the sub-window in which it was asked is past
        if asked_w0 > watched.state.since_w0 or (wished and watched.state.step_s not in (0.0, wished)):
            since = max(asked_w0, now_w0 if wished and watched.state.step_s != wished else asked_w0)
            watched.reference, watched.state = None, CheckState(wished or watched.state.step_s, since_w0=since)
            self._save(watched)
            self.revision += 1
        lent = settings.references.get(pipeline)
        if lent is not None and watched.state.origin != check.OWN and references.borrow(watched, lent, now_w0):
            self._save(watched)
            self.revision += 1

    # --- grids ---

    def _load_grid(self, row: SampledRow) -> Grid:
        """The grid of the row, from the store or from the slot it came out of. Raises: InvalidError, OSError, DeviceError."""
        grid = self._find_grid(row.grid)
        if grid is None:
            grid = decode_profile(read_bounded(Path(row.folder) / FILE_NAME, MAX_PROFILE_BYTES)).grid
            if grid.grid_id.hex() != row.grid:
                raise InvalidError(
                    f"The slot's profile has grid {grid.grid_id.hex()}; the row was made on {row.grid}.", code="unknown-grid"
                )
            self._rows.keep_grid(row.grid, grid.encoded)
            self._grids[row.grid] = grid
        return grid

    def _find_grid(self, grid_id: str) -> Grid | None:
        """A grid that was met before."""
        grid = self._grids.get(grid_id)
        if grid is None and (body := self._rows.find_grid(grid_id)) is not None:
            try:
                grid = self._grids[grid_id] = decode_grid(body)
            except InvalidError:
                return None
        return grid

    # --- sending ---

    def _send_hours(self) -> None:
        now_s = self._now_s()
        for unsent in sending.due_hours(self._rows.unsent(before=subwindow_of(now_s)), now_s=now_s, minute=self._minute):
            try:
                rows, draft = self._hour_of(unsent)
            except InvalidError as error:
                log.warning("drift.hour-lost pipeline=%s text=%s", unsent[0].subject.pipeline, str(error)[:200])
                self._lose(sum(row.rows for row in unsent))
                self._rows.save_windows([replace(row, sent="lost") for row in unsent])
            else:
                self._rows.send(rows, draft)
                self.revision += 1  # figures of the state topic are an hour old at most

    def _hour_of(self, unsent: list[SubWindowRow]) -> tuple[list[SubWindowRow], SketchDraft]:
        """The hour's window and what is in it. What closed late goes with all that went before: a higher revision replaces the hour.

        Raises: InvalidError when it cannot be read.
        """
        subject, hour = unsent[0].subject, unsent[0].w0 // SUBWINDOWS_PER_HOUR * SUBWINDOWS_PER_HOUR
        grid = self._get_grid(subject)
        draft = sending.hour_draft(unsent, grid)
        closed = self._rows.history(subject, since=hour, until=hour + SUBWINDOWS_PER_HOUR)
        rows = [row for row in closed if row.sent in ("", draft.window)]
        return rows, draft if len(rows) == len(unsent) else sending.hour_draft(rows, grid)

    def _get_grid(self, subject: Subject) -> Grid:
        """The grid of what was counted. Raises: InvalidError when it is not known any more."""
        grid = self._find_grid(subject.grid)
        if grid is None:
            raise InvalidError(f"Grid {subject.grid} is not known any more.", code="unknown-grid")
        return grid

    # --- after a restart ---

    def _end_open_windows(self) -> None:
        """Sub-windows that were open when the agent ended: what is still going on goes on, what is over is closed as it was kept."""
        now_w0 = subwindow_of(self._now_s())
        for row in self._rows.open_windows():
            if not row.flags & Flag.FLUSHED:
                self._lose_flush(row)
                self._keep_lost()
                self._rows.save_window(replace(row, flags=row.flags | Flag.FLUSHED))
            if row.w0 == now_w0:
                continue
            grid = self._find_grid(row.subject.grid)
            if grid is None:
                self._rows.save_window(replace(row, flags=Flag(0), sent="lost"))
                continue
            kept = row.flags & (Flag.GAP | Flag.JUMPED)
            is_testable = conditions.is_testable(rows=row.rows, excluded=row.excluded, usual_rows=self._usual_rows(row), has_gap=bool(kept))
            self._rows.save_window(replace(row, flags=kept | (Flag.TESTABLE if is_testable else Flag(0))))

    def _usual_rows(self, row: SubWindowRow) -> float | None:
        kept = self._checks.get(row.subject)
        try:
            return None if kept is None else check.from_json(kept.state).usual_rows
        except (ValueError, TypeError, KeyError):
            return None

    def _lose_flush(self, row: SubWindowRow) -> None:
        """The agent ended without a word: at most the rows of the sub-window up to now are lost, and counted so."""
        lasted_s = min(float(SUBWINDOW_S), max(0.0, self._now_s() - row.w0 * SUBWINDOW_S))
        grid = self._find_grid(row.subject.grid)
        step_s = float(grid.step_s) if grid is not None else 1.0
        log.warning("drift.flush-lost pipeline=%s w0=%d", row.subject.pipeline, row.w0)
        self._lose(round(lasted_s / step_s))

    def _lose(self, rows: int) -> None:
        self.lost += rows

    def _keep_lost(self) -> None:
        if self.lost != self._kept_lost:
            self._store.set_value(_LOST_VALUE, str(self.lost))
            self._kept_lost = self.lost

    # --- what is said ---

    def findings(self) -> list[tuple[str, str, str]]:
        """What is wrong now: (code, text, pipeline)."""
        found = [("profile_invalid", text[:1000], pipeline) for pipeline, text in self._faults.items()]
        if self._held:
            found.append(("clock_unsynced", conditions.TEXTS["clock_unsynced"], ""))
        for pipeline, subject in self._current.items():
            watched = self._watched[subject]
            now = windows.names_of(watched.window.seconds) if watched.window is not None else frozenset()
            codes = now | watched.closed_codes | watched.check_codes | ({"frame_missing"} if watched.is_missing else frozenset())
            found += [(code, conditions.TEXTS[code], pipeline) for code in sorted(codes - {"clock_unsynced"})]
        return found

    def pipelines(self) -> list[DriftPipeline]:
        """The rows of the state topic, of the pipelines whose model is watched."""
        rate, taken = self._settings.false_alarms_per_year, self._settings.acknowledged
        return [
            references.told(self._watched[subject], rate=rate, is_taken=pipeline in taken, lost=self.lost)
            for pipeline, subject in sorted(self._current.items())
        ]
