"""SIGKILL at random moments of the real agent's real updates: the slots are whole each time, no row is lost, nobody is left behind.

`mooring serve`, people, campaigns and the agent are real processes; the link is slow, so that downloads take a while.
MOORING_TEST_AGENT_KILLS sets how many kills (`make test-kills`: 200); the table state × kills is printed (`pytest -s` shows it).
"""

import itertools
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from processes import session_members
from simulators.throttled_link import ThrottledLink
from waiting import wait_until

from agent.slots import Slots
from agent.update.states import FINAL, UpdateState
from examples.demo.scenario import DIGITS, LINE, make_videos
from examples.demo.world import World
from fleet.db import Database
from fleet.monitoring.store import events
from protocol.ids import LineName

pytestmark = pytest.mark.needs_broker
KILLS = int(os.environ.get("MOORING_TEST_AGENT_KILLS", "24"))
SEED = int(os.environ.get("MOORING_TEST_KILLS_SEED", "20261125"))
NAME = "cam-1"
#: Every sixth kill comes at a moment counted from the start of the process, whatever it does by then.
BLIND_EVERY = 6
#: States that kills are aimed at, in their order, and how many seconds at most pass in them before the kill: it comes at any moment of the
#: long ones and at once in the short ones. A slow machine gets as far as a fast one.
AIMS_S = {"downloading": 1.2, "installing": 1.2, "activating": 0.0, "probing": 1.2, "committing": 0.0}
#: All open states in the order of a good update.
ORDER = ("downloading", "verifying", "installing", "waiting", "activating", "probing", "committing")
#: Longest time before a blind kill, seconds after the start.
LONGEST_BLIND_S = 4.0
#: Seconds between two looks at whether the next release can be assigned.
FEED_S = 0.4
#: Bytes appended to each model, so that its download takes about two seconds; metadata passes freely.
FILLER_BYTES, BYTES_PER_S, FREE_BYTES = 300_000, 150_000, 100_000
#: Three releases in turn: with two, the next one would always be found in the inactive slot and never be downloaded.
RELEASES = {"1.0": "1.0", "1.1": "1.1", "1.0.1": "1.0"}
SETTINGS = """
[update]
min_inferences = 15
latency_noise_ms = 1000.0
min_seconds = 0.5
[outbox]
resend_s = 2.0
"""
#: More of the section that stands last in the agent's file.
BROKER_SETTINGS = "reconnect_max_s = 1.0\n"


@dataclass
class Journal:
    """The agent's own files, read while it is dead or alive."""

    state: Path

    def update(self) -> tuple[str, str, int]:
        """Update id, state, saves of the newest update; ("", "none", 0) before the first."""
        found = self._rows("SELECT update_id, state, saves FROM updates WHERE line = ?", LINE)
        return (str(found[0][0]), str(found[0][1]), int(found[0][2])) if found else ("", "none", 0)

    @property
    def is_open(self) -> bool:
        return self.update()[1] not in {*FINAL, "none"}

    def ends(self) -> Counter[str]:
        """How updates ended, as far as the journal remembers."""
        return Counter(str(row[0]) for row in self._rows("SELECT state FROM steps WHERE line = ?", LINE) if row[0] in FINAL)

    def way(self) -> list[tuple[object, ...]]:
        """The last steps of updates, newest last."""
        return self._rows("SELECT * FROM steps WHERE line = ?", LINE)[-40:]

    def epochs(self) -> list[str]:
        return [str(row[0]) for row in self._rows("SELECT DISTINCT epoch FROM streams WHERE stream = ?", "event")]

    def given(self) -> int:
        """How many events ever got a number."""
        found = self._rows("SELECT sum(next_seq) FROM streams WHERE stream = ?", "event")
        return int(found[0][0] or 0)

    def waiting(self) -> set[int]:
        """Numbers of the events in the outbox."""
        return {int(row[0]) for row in self._rows("SELECT seq FROM outbox WHERE stream = ?", "event")}

    def is_whole(self) -> bool:
        return self._rows("SELECT * FROM pragma_integrity_check WHERE 1 OR ?", "") == [("ok",)]

    def _rows(self, statement: str, value: str) -> list[tuple[object, ...]]:
        path = self.state / "outbox.db"
        if not path.exists():
            return []
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)
        try:
            return connection.execute(statement, (value,)).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # killed before its first migration was over
                return []
            raise
        finally:
            connection.close()


@dataclass
class Fleet:
    """A world in which there is always one more update to make."""

    world: World
    journal: Journal
    versions: Iterator[str]
    campaigns: list[str] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)
    _looked_s: float = 0.0

    def feed(self) -> None:
        """Assign the next release when the last update is over and its campaign too; looks now and then only."""
        now = time.monotonic()
        if now - self._looked_s < FEED_S or self.journal.is_open:
            return
        self._looked_s = now
        operator = self.world.people["operator"]
        if not self.campaigns or operator.get(f"/campaigns/{self.campaigns[-1]}")["state"] != "running":
            made = self.world.campaign(LINE, next(self.versions), group="default", min_inferences=1, failure_threshold=1.0)
            self.campaigns.append(made)

    def what_is_seen(self) -> str:
        """Why nothing comes: the last update's way, what the server thinks of the campaign, and the ends of the logs."""
        operator, logs = self.world.people["operator"], sorted((self.world.root / "logs").iterdir())
        seen = [f"journal: {self.journal.update()}", *(f"  {row}" for row in self.journal.way())]
        seen += [f"campaign: {operator.get(f'/campaigns/{one}')}" for one in self.campaigns[-1:]]
        return "\n".join([*seen, *(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in logs)])

    def start(self) -> None:
        self.world.start_agent(NAME)
        self.sessions.append(self.world.children.pid(NAME))

    def kill(self) -> None:
        self.world.children.kill(NAME)


@pytest.fixture
def fleet(mosquitto_path: Path, tmp_path: Path) -> Iterator[Fleet]:
    with World(tmp_path / "world") as world:
        world.start_server()
        world.admit_people()
        for version, source in RELEASES.items():
            world.release(LINE, version, {import_digits(world, tmp_path, version, source): ["camera"]})
        link = ThrottledLink(world.ports.device, bytes_per_s=BYTES_PER_S, free_bytes=FREE_BYTES)
        videos, _ = make_videos(tmp_path, [NAME], seconds=20)
        source = {"kind": "video", "path": str(videos[NAME]), "loop": True}
        pipelines = [{"name": "front", "line": LINE, "source": source, "keep": "all", "max_fps": 5}]
        agent = world.add_agent(NAME, device_type="camera", pipelines=pipelines, settings=SETTINGS)
        slow = agent.config.read_text().replace(f":{world.ports.device}", f":{link.port}")
        agent.config.write_text(slow + BROKER_SETTINGS)
        fleet = Fleet(world, Journal(agent.state_dir), itertools.cycle(RELEASES))
        try:
            yield fleet
        finally:
            link.close()


def import_digits(world: World, folder: Path, version: str, source: str) -> str:
    """Bring in a digits model with more bytes behind it: a FlatBuffer's reader does not look there."""
    model = folder / version / "model.tflite"
    model.parent.mkdir()
    filler = random.Random(version).randbytes(FILLER_BYTES)  # noqa: S311 - bytes that differ, no secret
    model.write_bytes((DIGITS / "models" / source / "tflite" / "model.tflite").read_bytes() + filler)
    golden = DIGITS / "models" / source / "tflite" / "golden.cbor"
    return world.import_model(model, DIGITS / "tflite.toml", name="digits-tflite", golden=golden)


def test_the_agent_killed_at_random_keeps_whole_slots_and_every_event_and_leaves_nobody_behind(fleet: Fleet):
    chance, table, has_run, opened = random.Random(SEED), Counter[str](), False, 0  # noqa: S311 - a test's dice
    aims = draw_aims(chance)
    for number in range(KILLS):
        fleet.feed()
        before = fleet.journal.update()
        fleet.start()
        if number % BLIND_EVERY == BLIND_EVERY - 1:
            threading.Event().wait(chance.uniform(0, LONGEST_BLIND_S))
        else:
            wait_for_the_moment(fleet, before, next(aims), chance)
        fleet.kill()
        assert fleet.journal.is_whole()
        table[fleet.journal.update()[1]] += 1
        opened += fleet.journal.is_open
        has_run = check_slots(fleet.journal.state, has_run=has_run)
    go_on_until_quiet(fleet)
    left = fleet.journal.waiting()
    given, stored = fleet.journal.given(), stored_events(fleet)
    print_table(table, fleet, given=given, stored=len(stored), left=len(left))
    assert len(fleet.journal.epochs()) == 1
    assert set(range(given)) <= stored | left
    assert given >= 20
    for session in fleet.sessions:
        wait_until(lambda session=session: not session_members(session), what=f"everybody of session {session} to be gone")
    assert opened >= 0.8 * KILLS, f"{opened} of {KILLS} kills met an open update"
    assert fleet.journal.ends()["succeeded"] > 0
    assert fleet.journal.ends()["inconsistent"] == 0
    assert len({state for state, count in table.items() if count}) >= 4, "the kills met too few states"


def draw_aims(chance: random.Random) -> Iterator[str]:
    """States to kill in: for each update some of them, in the order in which it comes to them."""
    while True:
        yield from sorted(chance.sample(list(AIMS_S), k=chance.randint(3, len(AIMS_S))), key=ORDER.index)


def wait_for_the_moment(fleet: Fleet, before: tuple[str, str, int], aim: str, chance: random.Random) -> None:
    """A moment in that state of this update or, when it is past it, of the next; in a later one when it was too short to be seen."""
    is_to_come = before[1] in ORDER and ORDER.index(before[1]) <= ORDER.index(aim)

    def is_there() -> bool:
        fleet.feed()
        now = fleet.journal.update()
        is_new = now != before if is_to_come else now[0] != before[0]
        return is_new and now[1] in ORDER and ORDER.index(now[1]) >= ORDER.index(aim)

    try:
        wait_until(is_there, timeout_s=300, what=f"{aim} after {before}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{fleet.what_is_seen()}") from error
    threading.Event().wait(chance.uniform(0, AIMS_S[aim]))


def check_slots(state: Path, *, has_run: bool) -> bool:
    """Whether a model is committed; the pointer leads to a slot whose every byte is as its slot.json says."""
    slots, line = Slots(state / "slots"), LineName(LINE)
    active, committed = slots.active(line), slots.committed(line)
    for slot in filter(None, (active, committed)):
        assert slots.scrub(line, slot.name) == []
    assert not has_run or (active is not None and committed is not None), "the device had a model and lost it"
    return committed is not None


def go_on_until_quiet(fleet: Fleet) -> None:
    """Let the last update end and the outbox empty, then end the agent in good order."""
    fleet.start()
    wait_until(lambda: not fleet.journal.is_open, what="the last update to end")
    fleet.world.set_pipelines(NAME, [])
    wait_until(lambda: not fleet.journal.waiting(), what="the outbox to empty")
    fleet.world.children.stop(NAME)
    assert check_slots(fleet.journal.state, has_run=True)


def stored_events(fleet: Fleet) -> set[int]:
    """Numbers of the device's events that the server has."""
    database = Database(f"sqlite:///{fleet.world.data_dir / 'fleet.db'}")
    with database.reading() as tx:
        numbers = [int(row[0]) for row in tx.execute(sa.select(events.c.seq))]
    database.engine.dispose()
    assert len(numbers) == len(set(numbers))
    return set(numbers)


def print_table(table: Counter[str], fleet: Fleet, *, given: int, stored: int, left: int) -> None:
    lines = [f"{'state when killed':<20}{'kills':>6}"]
    lines += [f"{state:<20}{table[state]:>6}" for state in ("none", *UpdateState) if table[state]]
    ended = ", ".join(f"{count} {state}" for state, count in sorted(fleet.journal.ends().items()))
    lines.append(
        f"{given} events numbered, {stored} on the server, {left} still on the device; {len(fleet.campaigns)} campaigns; ended: {ended}"
    )
    print("\n" + "\n".join(lines))  # noqa: T201 - the table that was asked for
