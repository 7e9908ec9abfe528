"""A device that watches one pipeline: the real store and watch, a clock that the test moves, and a world in front of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from simulators.clock import START, FakeClock
from simulators.drift_rows import MODEL, World, make_grid, make_slot

from agent.config import DriftConfig
from agent.drift.fitting import Start
from agent.drift.store import DriftStore, Flag, Subject, SubWindowRow
from agent.drift.watching import DriftWatch, Place
from agent.drift.windows import begin, row_of, subwindow_of
from agent.store import Store
from protocol.sketches.codec import SketchWindow, decode, read_head

#: Seconds between two rows of these tests: twelve in a sub-window.
ROW_S = 50.0


def run_now(work: Callable[[], None]) -> None:
    """Fit it where it is asked for."""
    work()


class Site:
    """The device of a test; `restart` and `crash` open its file anew."""

    def __init__(self, folder: Path, *, template: Path | None = None, clock: FakeClock | None = None, start: Start = run_now) -> None:
        """`start`: how references are fitted; by default on the spot, so that they are there at the end of the tick."""
        self.folder, self.clock, self.start = folder, clock or FakeClock(), start
        self.settings = DriftConfig()
        self.places = {"front": Place("pets")}
        self.grid = make_grid()
        self.world = World(self.grid, make_slot(folder / "slot", self.grid))
        self.is_clock_set = True
        if template is not None:
            shutil.copy(template, folder / "outbox.db")
        self.open()

    def open(self) -> None:
        self.store = Store(self.folder / "outbox.db", clock=self.clock)
        self.rows = DriftStore(self.store, self.clock)
        self.watch = DriftWatch(self.store, clock=self.clock, device="cam-1", source="/mooring/t0/cam-1", start=self.start)
        self.watch.configure(self.settings, self.places)

    def restart(self) -> None:
        self.watch.stop()
        self.crash()

    def crash(self) -> None:
        """The agent is gone without a word; what it did not write is lost."""
        self.store.close()
        self.open()

    def configure(self, **changes: object) -> None:
        self.settings = self.settings.model_copy(update=changes)
        self.watch.configure(self.settings, self.places)

    @property
    def w0(self) -> int:
        return subwindow_of(self.clock.now().timestamp())

    @property
    def subject(self) -> Subject:
        return Subject("front", self.world.model, self.world.grid.grid_id.hex())

    def tick(self) -> None:
        self.watch.tick(is_clock_set=self.is_clock_set)

    def run(self, seconds: float, *, world: World | None = None, every_s: float = ROW_S) -> None:
        """Let the time pass with a row each `every_s`, and a tick after each."""
        for _ in range(round(seconds / every_s)):
            self.clock.advance(every_s)
            self.watch.take((world or self.world).row(self.clock.monotonic()))
            self.tick()

    def idle(self, seconds: float, *, every_s: float = 30.0) -> None:
        """Let the time pass without frames."""
        for _ in range(round(seconds / every_s)):
            self.clock.advance(every_s)
            self.tick()

    def to_next_subwindow(self) -> None:
        """Just after the next boundary."""
        self.clock.advance(600 - self.clock.now().timestamp() % 600 + 0.001)

    def sketches(self) -> list[SketchWindow]:
        """What waits for the server, oldest first."""
        rows = self.store.next_batch(10_000)
        grids = {self.grid.grid_id: self.grid, self.world.grid.grid_id: self.world.grid}
        bodies = [row.payload for row in rows if row.stream == "sketch"]
        return [decode(body, grids[_grid_of(body)]) for body in bodies]

    def events(self) -> list[bytes]:
        return [row.payload for row in self.store.next_batch(10_000) if row.stream == "event"]

    def codes(self) -> set[str]:
        return {code for code, _, _ in self.watch.findings()}

    def told(self):
        """The pipeline's row of the state topic."""
        return self.watch.pipelines()[0]

    def remember(self, days: int) -> None:
        """As if so many whole days before the clock's first had been watched, of a stationary world; ends at the last midnight, UTC."""
        today = subwindow_of(START.timestamp()) // 144 * 144
        self.rows.keep_grid(self.subject.grid, self.grid.encoded)
        self.rows.save_windows([made for made in past_days(today) if made.w0 >= today - days * 144])

    def one_window(self, *, shift: float = 0.0) -> None:
        """Ten minutes of the world, closed and judged."""
        self.to_next_subwindow()
        self.world.shift = shift
        self.run(550)
        self.to_next_subwindow()
        self.tick()


@cache
def past_days(today: int) -> list[SubWindowRow]:
    """Twenty-eight days before a midnight, made once."""
    grid = make_grid()
    subject = Subject("front", MODEL, grid.grid_id.hex())
    chance, made = np.random.default_rng(3), []
    for w0 in range(today - 28 * 144, today):
        window = begin(subject, grid, w0)
        weather = chance.normal(0, 0.1)
        for values in chance.normal(weather, 1, (12, len(grid.features))).astype(np.float32):
            window.add(values, (("cat", "dog")[int(chance.integers(2))],))
        made.append(replace(row_of(window, flags=Flag.TESTABLE), sent="before"))
    return made


def _grid_of(body: bytes) -> bytes:
    return read_head(body).grid_id
