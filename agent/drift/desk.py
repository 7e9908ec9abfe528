"""What the control loop knows of drift: rows go in from any thread, findings and the state topic come out.

Counting needs numpy, so what counts is brought in with the first row, or when something of before waits: a device whose releases come
without a reference profile never pays for it.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from agent.config import DriftConfig, PipelineConfig
from agent.drift.store import DriftStore
from agent.store import SketchDraft, Store
from protocol.clock import Clock
from protocol.errors import DeviceError, MooringError
from protocol.messages import DriftPipeline

if TYPE_CHECKING:
    from agent.drift.rows import SampledRow
    from agent.drift.watching import DriftWatch

log = logging.getLogger("mooring.drift")

#: Rows that wait for the control loop; more are lost, counted.
MAX_ROWS = 4096
#: Pipelines slower than this are silent between two frames for as long as a camera that is gone.
SLOW_FPS = 0.2
_WORST = ("raised", "acknowledged", "ok")


class DriftDesk:
    """One for the device. `add` may be called from any thread, all else from the control loop."""

    def __init__(self, store: Store, *, clock: Clock, device: str, source: str, has_profile: Callable[[str], bool]) -> None:
        """`source`: of events about this device. `has_profile`: whether a line's release came with a reference profile."""
        self._store, self._clock, self._device, self._source, self._has_profile = store, clock, device, source, has_profile
        self._rows: deque[SampledRow] = deque()
        self._overflown = 0
        self._settings, self._pipelines = DriftConfig(enabled=False), tuple[PipelineConfig, ...]()
        self._watch: DriftWatch | None = None
        self._has_looked = False
        self._changes = 0
        store.merge_sketches = self._merge

    def configure(self, settings: DriftConfig, pipelines: Sequence[PipelineConfig]) -> None:
        """Watch these pipelines by these settings from now on. Raises: DeviceError."""
        self._settings, self._pipelines = settings, tuple(pipelines)
        self._changes += 1
        self._configure_watch()

    def add(self, row: "SampledRow") -> None:
        """Take a row of the inference process in; never waits."""
        if len(self._rows) >= MAX_ROWS:
            self._overflown += 1
        else:
            self._rows.append(row)

    def tick(self, *, is_clock_set: bool) -> None:
        """Count what came, end what is over, send what is due. Raises: DeviceError."""
        watch = self._opened() if self._rows or self._waits() else self._watch
        if watch is None:
            return
        self._take_all(watch)
        with _set_aside("tick"):
            watch.tick(is_clock_set=is_clock_set)

    def stop(self) -> None:
        """Keep what was counted for the next start."""
        if self._watch is not None:
            with suppress(DeviceError), _set_aside("stop"):
                self._take_all(self._watch)
                self._watch.stop()

    def steps(self) -> Mapping[str, float]:
        """Per pipeline the seconds between two rows, 0: as the profile says; those that are not watched are not there."""
        if self._watch is not None:
            return self._watch.steps()
        wished = self.wished_step()
        return {} if wished is None else {one.name: wished for one in self._pipelines}

    def wished_step(self) -> float | None:
        """Seconds between two rows as the settings have it, 0: as the profile says; None: nothing is to be watched."""
        return float(self._settings.step_s or 0) if self._settings.enabled else None

    @property
    def revision(self) -> int:
        """Grows when the state topic has something new to say."""
        return self._changes + (self._watch.revision if self._watch is not None else 0)

    def findings(self) -> list[tuple[str, str, str]]:
        """What is wrong now: (code, text, pipeline)."""
        return [] if self._watch is None else self._watch.findings()

    def body(self) -> dict[str, Any]:
        """The body of the state topic `drift`."""
        rows = [row.model_dump() for row in self._told()]
        states = {row["state"] for row in rows}
        worst = next((state for state in _WORST if state in states), "ok")
        rate = self._settings.false_alarms_per_year
        return {"state": worst, "check": self._settings.check, "false_alarms_per_year": rate, "pipelines": rows}

    def figures(self) -> dict[str, Any]:
        """What `mooring-agent status` and `mooring-agent drift show` show."""
        lost = self._overflown + (self._watch.lost if self._watch is not None else 0)
        return {**self.body(), "enabled": self._settings.enabled, "lost": lost}

    def _told(self) -> list[DriftPipeline]:
        watched = {row.pipeline: row for row in self._watch.pipelines()} if self._watch is not None else {}
        return [watched.get(one.name) or self._unwatched(one) for one in self._pipelines]

    def _unwatched(self, pipeline: PipelineConfig) -> DriftPipeline:
        grade = "off" if not self._settings.enabled else "collecting" if self._has_profile(pipeline.line) else "none"
        return DriftPipeline(pipeline=pipeline.name, line=pipeline.line, grade=grade)

    def _take_all(self, watch: "DriftWatch") -> None:
        for _ in range(len(self._rows)):
            with _set_aside("row"):
                watch.take(self._rows.popleft())

    def _waits(self) -> bool:
        """Whether there is something of before the start; looked for once."""
        if self._has_looked:
            return False
        found = DriftStore(self._store, self._clock).has_windows()
        self._has_looked = True
        return found

    def _opened(self) -> "DriftWatch":
        if self._watch is None:
            # cores are for inference, and threads of numpy wait for each other by turning: on a busy machine a fit took eight times as much
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            from agent.drift.watching import DriftWatch  # brings numpy

            self._watch = DriftWatch(self._store, clock=self._clock, device=self._device, source=self._source)
            self._configure_watch()
        return self._watch

    def _configure_watch(self) -> None:
        if self._watch is not None:
            from agent.drift.watching import Place

            places = {one.name: Place(one.line, is_gated=_is_gated(one)) for one in self._pipelines}
            with _set_aside("configure"):
                self._watch.configure(self._settings, places)

    def _merge(self, bodies: Sequence[bytes]) -> tuple[tuple[int, ...], SketchDraft] | None:
        """On whatever thread fills the disk budget."""
        from agent.drift.sending import merge_unsent
        from protocol.errors import InvalidError
        from protocol.sketches.grid import Grid, decode_grid

        rows = DriftStore(self._store, self._clock)

        def find(grid_id: str) -> Grid | None:
            body = rows.find_grid(grid_id)
            return None if body is None else decode_grid(body)

        try:
            return merge_unsent(bodies, find)
        except InvalidError:
            return None  # what cannot be read is given up in its turn


@contextmanager
def _set_aside(what: str) -> Iterator[None]:
    """Drift stops nothing else: what it cannot read of its own is told in the log, and it goes on with the rest. DeviceError passes."""
    try:
        yield
    except DeviceError:
        raise
    except MooringError as error:
        log.warning("drift.set-aside what=%s text=%s", what, str(error)[:200])


def _is_gated(pipeline: PipelineConfig) -> bool:
    """Whether it is by its settings that no frame may come for a while."""
    return bool(pipeline.motion.min_area) or 0 < pipeline.max_fps < SLOW_FPS
