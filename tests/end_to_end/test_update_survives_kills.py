"""SIGKILL in every state of real updates: the active slot is a signed release, whole to the byte, each time; no outbox row is lost.

MOORING_TEST_KILLS sets how many (`make test-kills`: 1,000); the table state × kills is printed (`pytest -s` shows it).
"""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from simulators.device import LINE, Release, make_release
from simulators.throttled_server import ThrottledServer
from waiting import wait_until

from agent.slots import SLOT_DOCUMENT, SLOT_FILES, SlotName, Slots
from agent.update.states import UpdateState

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("MOORING_TEST_KILLS", "50"))
SEED = int(os.environ.get("MOORING_TEST_KILLS_SEED", "20261125"))
#: Every so-manieth kill comes at a moment counted from the start of the process, whatever it does by then.
BLIND_EVERY = 10
#: Longest time before a blind kill, seconds after the start: about one update.
LONGEST_LIFE_S = 1.0
#: Share of the kills that each state is to get, of those that are aimed.
SHARES = {
    "idle": 0.08,
    "downloading": 0.16,
    "verifying": 0.10,
    "installing": 0.14,
    "waiting": 0.08,
    "activating": 0.12,
    "probing": 0.12,
    "committing": 0.12,
    "rolling_back": 0.08,
}
#: About how long each state lasts here, seconds: a kill comes at a random moment of it.
LASTS_S = {
    "idle": 0.003,
    "downloading": 0.2,
    "verifying": 0.01,
    "installing": 0.2,
    "waiting": 0.003,
    "activating": 0.1,
    "probing": 0.2,
    "committing": 0.08,
    "rolling_back": 0.2,
}
#: Releases in turn: most are good, one fails its self-test, one its probe.
BEHAVIORS = ("", "", "bad-golden", "", "slow", "")
FORTH = ("idle", "downloading", "verifying", "installing", "waiting", "activating", "probing", "committing")
WAYS = {"": FORTH, "bad-golden": FORTH[:4], "slow": (*FORTH[:7], "rolling_back")}
MODEL_BYTES = 120_000
#: Kills of one run that let every state have its share of 20.
MANY = 1000


@dataclass(frozen=True)
class Aim:
    """Die in this state, so many seconds after it began; None: `after_s` after the start, whatever it does by then."""

    state: str | None
    after_s: float


class Device:
    """The process under test, and what it said."""

    def __init__(self, state: Path, url: str) -> None:
        self._state, self._url = state, url
        self.rows: set[int] = set()
        self.ends: Counter[str] = Counter()
        #: Digests of every model that ever ran.
        self.ran: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._up = threading.Event()

    def start(self, aim: Aim | None = None) -> None:
        self._up.clear()
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, str(ROOT / "tests" / "simulators" / "update_process.py"), str(self._state), self._url]
        if aim is not None and aim.state is not None:
            command += ["--die-in", aim.state, str(aim.after_s)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def wait_until_up(self) -> None:
        wait_until(self._up.is_set, what="the device's start")

    def wait_for_death(self) -> None:
        """The process gets its SIGKILL in the state that was aimed at."""
        assert self._process is not None
        assert self._process.wait(300) == -signal.SIGKILL, "the device ended by itself"
        self._hear_all()

    def kill(self) -> None:
        """SIGKILL; everything that it had said is heard before this returns."""
        assert self._process is not None
        assert self._process.poll() is None, "the device died by itself"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._hear_all()

    def _hear_all(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        assert self._process.stdout is not None
        self._reader.join()
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            match line.decode().split():
                case ["up"]:
                    self._up.set()
                case ["row", seq]:
                    self.rows.add(int(seq))
                case ["end", _, state]:
                    self.ends[state] += 1
                case ["runs", digest]:
                    self.ran.add(digest)


def releases() -> list[Release]:
    return [make_release(f"1.{n}", n + 1, behavior, padding=MODEL_BYTES) for n, behavior in enumerate(BEHAVIORS)]


@pytest.fixture
def server() -> Iterator[ThrottledServer]:
    server = ThrottledServer(releases(), chunk_bytes=4096, pause_s=0.007)
    yield server
    server.close()


def journal_row(state: Path) -> tuple[str, int]:
    """State and number of the newest update; ("none", 0) before the first."""
    if not (state / "outbox.db").exists():
        return "none", 0
    with sqlite3.connect(state / "outbox.db") as connection:
        row = connection.execute("SELECT state, attempt FROM updates WHERE line = ?", (LINE,)).fetchone()
    connection.close()
    return ("none", 0) if row is None else (str(row[0]), int(row[1]))


def next_aim(state: Path, table: Counter[str], chance: random.Random) -> Aim:
    """The state that lacks kills most among those that the open update and the next one will yet come to."""
    now, number = journal_row(state)
    way, following = WAYS[BEHAVIORS[number % len(BEHAVIORS)]], WAYS[BEHAVIORS[(number + 1) % len(BEHAVIORS)]]
    ahead = {*(way[way.index(now) :] if now in way else ()), *following}
    aimed = max(sorted(ahead), key=lambda one: SHARES[one] * (1 + table.total()) - table[one])
    return Aim(aimed, chance.choice([0.0, chance.uniform(0.0, LASTS_S[aimed])]))


def stored_rows(state: Path) -> list[int]:
    with sqlite3.connect(state / "outbox.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = [int(row[0]) for row in connection.execute("SELECT seq FROM outbox WHERE stream = 'event' ORDER BY seq")]
    connection.close()
    return rows


SIGNED = {f"sha256:{hashlib.sha256(release.files['model.onnx']).hexdigest()}" for release in releases()}


def check_slots(state: Path, *, has_run: bool) -> bool:
    """Whether a model is active; when one is, it is a signed one and every byte of it is as it was written."""
    slots = Slots(state / "slots")
    active = slots.active(LINE)
    assert active is not None or not has_run, "the device had a model and lost it"
    if active is None:
        return False
    assert slots.scrub(LINE, active.name) == []
    assert active.content.model.sha256 in SIGNED
    committed = slots.committed(LINE)
    if committed is not None:
        assert slots.scrub(LINE, committed.name) == []
        assert committed.content.model.sha256 in SIGNED
    return committed is not None


def test_a_device_killed_in_every_state_of_updates_keeps_a_whole_signed_model_and_every_row(server, tmp_path):
    chance, table, aimed, has_run = random.Random(SEED), Counter[str](), Counter[str](), False  # noqa: S311 - a test's dice
    device = Device(tmp_path, server.url)
    for number in range(KILLS):
        is_blind = number % BLIND_EVERY == BLIND_EVERY - 1
        aim = Aim(None, chance.uniform(0.0, LONGEST_LIFE_S)) if is_blind else next_aim(tmp_path, table, chance)
        device.start(aim)
        if aim.state is None:
            device.wait_until_up()
            threading.Event().wait(aim.after_s)
            device.kill()
        else:
            aimed[aim.state] += 1
            device.wait_for_death()
        state, _ = journal_row(tmp_path)
        table[state] += 1
        has_run = check_slots(tmp_path, has_run=has_run)
        stored = stored_rows(tmp_path)
        assert device.rows <= set(stored), f"lost rows: {sorted(device.rows - set(stored))[:10]}"
        assert len(stored) == len(set(stored))
    _print(table, aimed, device)
    check_table(table)
    assert device.ran <= SIGNED
    device.start()
    before = sum(device.ends.values())
    wait_until(lambda: sum(device.ends.values()) >= before + 2, what="two more updates to end")
    device.kill()
    assert check_slots(tmp_path, has_run=True)
    _no_rest(tmp_path)
    assert device.ends["succeeded"] > 0
    assert device.ends["inconsistent"] == 0


def check_table(table: Counter[str]) -> None:
    """Whether the kills were what the test is about: most inside an open update, and every state that acts met often."""
    opened = sum(table[state] for state in SHARES)
    assert opened >= 0.8 * table.total(), f"{opened} of {table.total()} kills met an open update"
    least = 20 if table.total() >= MANY else 1 if table.total() >= 50 else 0
    assert {state: table[state] for state in SHARES if table[state] < least} == {}


def _no_rest(state: Path) -> None:
    for name in SlotName:
        files = {path.name for path in Slots(state / "slots").folder(LINE, name).glob("*")}
        assert SLOT_DOCUMENT in files or not files & SLOT_FILES or journal_row(state)[0] in ("installing", "failed")


def _print(table: Counter[str], aimed: Counter[str], device: Device) -> None:
    lines = [f"{'state when killed':<20}{'kills':>6}{'aimed at':>10}"]
    lines += [f"{state:<20}{table[state]:>6}{aimed[state]:>10}" for state in ("none", *UpdateState) if table[state] or aimed[state]]
    opened = sum(table[state] for state in SHARES)
    lines.append(f"{opened} of {table.total()} kills ({opened / max(1, table.total()):.1%}) inside an open update")
    ended = ", ".join(f"{count} {state}" for state, count in sorted(device.ends.items()))
    lines.append(f"{len(device.rows)} outbox rows told, 0 lost; updates ended: {ended}; {len(device.ran)} models ran, all of them signed")
    print("\n" + "\n".join(lines))  # noqa: T201 - the table that was asked for
