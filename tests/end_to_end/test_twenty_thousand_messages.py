"""20,000 rows of class `stored` become 20,000 unique rows, whatever is killed on the server's side while they travel.

The device is the agent's own outbox and uplink; broker, ingest process and database connection are killed at seeded random moments, and
once ingest stays away longer than the broker keeps its queue. What of class `sent` is lost is counted and printed.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from databases import database, database_templates
from simulators.identities import Authority
from waiting import wait_until

from agent.conditions import Conditions
from agent.config import BrokerConfig
from agent.database.outbox import Draft
from agent.identity import Enrollment, Identity, load_identity
from agent.store import Store
from agent.uplink import Inbox, Uplink
from fleet.broker import INGEST, PROBE, BrokerOptions, EmbeddedBroker
from fleet.bus import new_share_name
from fleet.db import Database
from fleet.monitoring import store as monitoring
from protocol.clock import SystemClock
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.messages import BrokerAddress
from protocol.sealed import new_sealing_key

__all__ = ["database", "database_templates"]

pytestmark = [
    pytest.mark.needs_broker,
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
]

STORED, SENT = 20_000, 2_000
CHUNK = 200
#: Kills of each kind during the run.
KILLS = {"broker": 4, "ingest": 6, "database": 4}
#: How long the broker keeps what an absent ingest did not get: longer than a restart takes, shorter than the outage.
SESSION_S = 6
SEED = 20_000
DEVICE = DeviceId("cam-1")
TELEMETRY = {"window_s": 10, "cpu_percent": 1.0, "rss_mb": 1.0, "disk_free_mb": 1.0, "outbox_rows": 0, "outbox_mb": 0.0}
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class IngestProcess:
    """The ingest worker's process, started again whenever it was killed."""

    options: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            program = [sys.executable, ROOT / "tests" / "simulators" / "ingest_process.py", self.options]
            self.process = subprocess.Popen(program, stdout=log, stderr=log, env=environment)
        self.starts += 1

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """Its last words, with what each of its threads does now when it still lives."""
        if self.process is not None and self.process.poll() is None:
            before = self.log.stat().st_size
            self.process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: b"in <module>" in self.log.read_bytes()[before:], timeout_s=10, what="the stacks of its threads")
        return f"ingest, status {self.process and self.process.poll()}:\n{self.log.read_text()[-6000:]}"

    def connections(self) -> list[str]:
        """What it said of each connection: whether the broker still had its session."""
        return [line.rpartition("=")[2] for line in self.log.read_text().splitlines() if line.startswith("connected")]


@dataclass
class Server:
    """Broker, ingest and database, and ways to hurt them."""

    broker: EmbeddedBroker
    ingest: IngestProcess
    database: Database
    url: str
    authority: Authority
    done: list[str] = field(default_factory=list)

    def wait_until(self, predicate: Callable[[], object], *, what: str, device: Store) -> None:
        """As `waiting.wait_until`; when it fails it tells what device, broker and ingest were at."""
        try:
            wait_until(predicate, timeout_s=600, what=what)
        except AssertionError as error:
            others = [frame for thread, frame in sys._current_frames().items() if thread != threading.get_ident()]
            stacks = "\n".join("".join(traceback.format_stack(frame)) for frame in others)
            broker = f"broker started {self.broker.starts} times, running: {self.broker.is_running}"
            seen = f"{device.counts()}\n{self.done}, {broker}\n{self.ingest.said()}\ndatabase:\n{self.at_work()}\nhere:\n{stacks}"
            raise AssertionError(f"{error}\n{seen}") from None

    def at_work(self) -> str:
        """What each connection to PostgreSQL does, and waits for."""
        if self.database.dialect == "sqlite":
            return "a file"
        with self.database.reading() as tx:
            asked = "SELECT pid, state, wait_event_type, wait_event, now() - state_change, left(query, 120) FROM pg_stat_activity"
            return "\n".join(map(str, tx.execute(sa.text(asked))))

    def hurt(self, kind: str) -> None:
        if kind == "broker":  # one that is still down from the time before is not killed again
            wait_until(lambda: self.broker.starts == 1 + self.done.count("broker") and self.broker.is_running, what="a broker to kill")
        self.done.append(kind)
        if kind == "broker":
            os.kill(self.broker.pid, signal.SIGKILL)
        elif kind == "ingest" or self.database.dialect == "sqlite":  # SQLite lives in the process that writes
            self.ingest.kill()
            self.ingest.start()
        else:
            with psycopg.connect(self.url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as admin:
                statement = (
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                admin.execute(statement)


@pytest.fixture
def server(database: Database, mosquitto_path: Path, tmp_path: Path) -> Iterator[Server]:
    authority = Authority(tmp_path / "authority")
    broker = EmbeddedBroker(
        BrokerOptions(
            folder=tmp_path / "broker",
            tls=authority.issue("localhost", is_server=True),
            probe=authority.issue(PROBE),
            port=0,
            websocket_port=None,
            program=mosquitto_path,
            autosave_s=2,
        ),
        max_pause_s=0.5,
    )
    broker.start()
    files = authority.issue(INGEST)
    url = database.engine.url.render_as_string(hide_password=False)
    options = tmp_path / "ingest.json"
    options.write_text(
        json.dumps(
            {
                "ca": str(files.ca),
                "certificate": str(files.certificate),
                "key": str(files.key),
                "database": url,
                "broker": f"mqtts://localhost:{broker.port}",
                "share": new_share_name(),
                "session_s": str(SESSION_S),
            }
        )
    )
    ingest = IngestProcess(options, tmp_path / "ingest.log")
    ingest.start()
    yield Server(broker, ingest, database, url, authority)
    ingest.kill()
    broker.stop()


@pytest.fixture
def device(server: Server, tmp_path: Path) -> Iterator[Store]:
    """The agent's outbox, emptied by the agent's uplink."""
    identity, clock = enroll(tmp_path, server), SystemClock()
    with Store(tmp_path / "outbox.db", clock=clock) as store:
        uplink = Uplink(
            store=store,
            identity=identity,
            settings=BrokerConfig(reconnect_max_s=0.5, in_flight=100),
            proxy=None,
            resend_s=3.0,
            ring_rows=16,
            conditions=Conditions(clock),
            clock=clock,
            inbox=Inbox(lambda _desired: None, lambda _job: None),
        )
        store.on_added = uplink.wake
        uplink.start()
        yield store
        uplink.stop(timeout_s=60)


def enroll(folder: Path, server: Server) -> Identity:
    files = server.authority.issue(DEVICE)
    identity = folder / "identity"
    identity.mkdir()
    (identity / "device-key.pem").write_bytes(files.key.read_bytes())
    (identity / "device-cert.pem").write_bytes(files.certificate.read_bytes())
    (identity / "ca.pem").write_bytes(files.ca.read_bytes())
    (identity / "sealing-key.bin").write_bytes(new_sealing_key())
    for name in ("image-root.json", "director-root.json"):
        (identity / name).write_text("{}")
    broker = BrokerAddress(urls=[f"mqtts://localhost:{server.broker.port}"])
    enrollment = Enrollment(device=DEVICE, tenant="t0", device_type="sim", server="https://127.0.0.1:9", broker=broker)
    (identity / "enrollment.json").write_text(enrollment.model_dump_json())
    return load_identity(identity)


def test_twenty_thousand_stored_rows_arrive_once_each_over_kills_of_broker_ingest_and_database(server: Server, device: Store):
    chooser = random.Random(SEED)  # noqa: S311 - a reproducible order
    kinds = [kind for kind, count in KILLS.items() for _ in range(count)]
    chooser.shuffle(kinds)
    kills = sorted(zip((chooser.randrange(1000, STORED - 1000) for _ in kinds), kinds, strict=True))
    began, added = time.monotonic(), 0
    outage_at = STORED // 2
    while added < STORED:
        device.add_all(rows(added))
        added += CHUNK
        server.wait_until(lambda: device.counts().by_stream.get("event", 0) < 2000, what="the outbox to empty", device=device)
        while kills and added - device.counts().by_stream.get("event", 0) >= kills[0][0]:
            server.hurt(kills.pop(0)[1])
        if added == outage_at:
            stay_away_longer_than_the_broker_keeps_the_queue(server, device, added)
            added += CHUNK
    for _, kind in kills:
        server.hurt(kind)
    server.wait_until(lambda: not {"event", "tel"} & device.counts().by_stream.keys(), what="an empty outbox", device=device)
    wait_until(quiet(server.database), what="the last rows of class sent")
    device.add("tel", ("sys",), TELEMETRY)  # its floor says which before it will not come any more
    wait_until(lambda: highest_seen(server.database, "tel") == SENT, what="one more row of class sent")
    with server.database.reading() as tx:
        events = monitoring.events
        count, unique = tx.execute(sa.select(sa.func.count(), sa.func.count(sa.distinct(events.c.seq)))).one()
        sent = monitoring.count_rows(tx, DEFAULT_TENANT)["telemetry"] - 1
        letters = monitoring.list_dead_letters(tx, DEFAULT_TENANT)
        missing = {one.stream: one.missing for one in monitoring.list_stream_counts(tx, DEFAULT_TENANT, DEVICE)}
    took_s = time.monotonic() - began
    print(  # noqa: T201 - the loss of class sent is a figure to be read
        f"\n{server.database.dialect}: {count} rows of class stored, {SENT - sent} of {SENT} of class sent lost, "
        f"{missing.get('tel', 0)} counted as missing; kills {dict.fromkeys(KILLS) | KILLS}; {took_s:.0f} s"
    )
    assert (count, unique, missing["event"], letters) == (STORED, STORED, 0, [])
    assert missing["tel"] >= SENT - sent
    assert device.counts().dropped == {}
    assert server.broker.starts == 1 + KILLS["broker"]
    assert "False" in server.ingest.connections()[1:], "the broker never gave up the queue"


def quiet(database: Database) -> Callable[[], bool]:
    """True when the number of telemetry rows has not changed for two seconds: the broker keeps no more of them."""
    last: list[tuple[int, float]] = [(-1, time.monotonic())]

    def is_quiet() -> bool:
        with database.reading() as tx:
            now = monitoring.count_rows(tx, DEFAULT_TENANT)["telemetry"]
        if now != last[0][0]:
            last[0] = (now, time.monotonic())
        return time.monotonic() - last[0][1] > 2.0

    return is_quiet


def highest_seen(database: Database, stream: str) -> int:
    """The highest number of the stream that was stored, -1 before the first."""
    with database.reading() as tx:
        found = {one.stream: one.highest for one in monitoring.list_stream_counts(tx, DEFAULT_TENANT, DEVICE)}
    return found.get(stream, -1)


def rows(start: int) -> list[Draft]:
    events = [
        Draft("event", (), {"source": "/mooring/t0/cam-1", "type": "mooring.test.v1", "data": {"n": n}})
        for n in range(start, start + CHUNK)
    ]
    return events + [Draft("tel", ("sys",), TELEMETRY) for _ in range(CHUNK * SENT // STORED)]


def stay_away_longer_than_the_broker_keeps_the_queue(server: Server, device: Store, added: int) -> None:
    server.ingest.kill()
    device.add_all(rows(added))
    wait_until(lambda: device.counts().unacknowledged >= CHUNK, what="rows that only the broker has")
    over = time.monotonic() + SESSION_S + 2.5
    wait_until(lambda: time.monotonic() > over, what="the end of the queue")
    server.ingest.start()
