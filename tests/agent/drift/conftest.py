"""A watch over the real store, a clock that the test moves, and a world in front of one pipeline."""

import copy
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from simulators.clock import FakeClock
from simulators.drift_site import Site


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.store.close()


@pytest.fixture(scope="session")
def watched_for_28_days(tmp_path_factory) -> tuple[Path, FakeClock]:
    """The file of a device whose reference is calibrated and told, and its clock; made once for all tests."""
    made = Site(tmp_path_factory.mktemp("calibrated"))
    made.remember(28)
    made.one_window()
    made.watch.stop()
    made.store.close()
    return made.folder / "outbox.db", made.clock


@pytest.fixture
def calibrated(tmp_path, watched_for_28_days) -> Iterator[Site]:
    """A device that knows its world."""
    template, clock = watched_for_28_days
    made = Site(tmp_path, template=template, clock=copy.copy(clock))
    made.world.chance = np.random.default_rng(8)
    made.run(100)
    yield made
    made.store.close()


@pytest.fixture
def query(site) -> Callable[[str], Sequence[tuple]]:
    """Asks the file as another program would."""

    def ask(statement: str) -> Sequence[tuple]:
        connection = sqlite3.connect(site.folder / "outbox.db")
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    return ask
