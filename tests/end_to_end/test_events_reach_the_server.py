"""From frames to an event in the server's store: a real detector in the agent's inference process, its rules, outbox and ingest."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulators.square_models import make_square_slot, write_square_video
from waiting import wait_until

from agent.config import AgentConfig
from agent.service import Service
from agent.slots import SlotContent, SlotFile, Slots
from fleet.bus import Incoming
from fleet.db import Database, migrate
from fleet.monitoring import service as monitoring
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.clock import SystemClock
from protocol.events import Phase, RuleEvent
from protocol.files import digest_of_file
from protocol.ids import DEFAULT_TENANT, DeviceId, LineName, ReleaseVersion
from protocol.messages import RuntimeInfo
from protocol.topics import device_topic

CAM = DeviceId("cam-1")
#: The lower half of the picture, and a line from its lower to its upper edge: the right half is at its right hand.
ZONES = [
    {"name": "yard", "points": [[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]},
    {"name": "gate", "kind": "line", "points": [[0.5, 1.0], [0.5, 0.0]]},
]
RULES = [
    {"name": "in", "kind": "enter", "zone": "yard", "labels": ["square"], "min_score": 0.5},
    {"name": "out", "kind": "leave", "zone": "yard"},
    {"name": "through", "kind": "cross", "zone": "gate", "direction": "right"},
    {"name": "parked", "kind": "dwell", "zone": "yard", "seconds": 0.5, "update_s": 0},
]


def trip() -> list[tuple[float, float]]:
    """Down into the yard on the left, across the gate, up and out on the right: 15 frames a second."""
    down = [(0.3, 0.2 + 0.02 * n) for n in range(25)]
    across = [(0.3 + 0.02 * n, 0.7) for n in range(21)]
    up = [(0.7, 0.7 - 0.02 * n) for n in range(25)]
    return down + across + up


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Service]:
    """An agent that is not enrolled and runs the detector on a recorded trip, over and over."""
    video = write_square_video(tmp_path / "trip.avi", trip())
    source = {"kind": "video", "path": str(video), "loop": True}
    pipeline = {"name": "yard-cam", "line": "squares", "source": source, "zones": ZONES, "rules": RULES}
    config = AgentConfig.model_validate({"state_dir": tmp_path / "state", "run_dir": tmp_path / "run", "pipelines": [pipeline]})
    folder = make_square_slot(tmp_path / "release")
    files = tuple(SlotFile(path.name, digest_of_file(path), path.stat().st_size) for path in sorted(folder.iterdir()))
    slots, line = Slots(config.slots_dir), LineName("squares")
    slot = slots.write(SlotContent(line, ReleaseVersion("1.0"), 1, "onnx", files), {file.name: folder / file.name for file in files})
    slots.activate(line, slot.name)
    slots.commit(line)
    service = Service(config, clock=SystemClock(), version="1", probe=lambda: [RuntimeInfo(name="onnx", version="1", state="ok")])
    thread = threading.Thread(target=service.run)
    thread.start()
    yield service
    service.stop()
    thread.join(120)
    assert not thread.is_alive()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    migrate(made)
    yield made
    made.dispose()


def test_a_trip_through_the_yard_is_stored_on_the_server(agent, database):
    rules = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices))
    sent: set[int] = set()

    def carry() -> list[RuleEvent]:
        """What the broker would do: bring the outbox's events to ingest."""
        rows = [row for row in agent.parts.store.next_batch(500, skip=sent) if row.stream == "event"]
        sent.update(row.id for row in rows)
        topic = device_topic(DEFAULT_TENANT, CAM, "event")
        batch = [Incoming(topic, row.payload, 1, False, number, 1) for number, row in enumerate(rows)]
        if batch:
            ingest_batch(database, batch, rules=rules, now=datetime.now(UTC))
        stored = monitoring.list_events(database, DEFAULT_TENANT, device=CAM, limit=500)
        return [RuleEvent.model_validate(row.body["data"]) for row in stored]

    def whole_trip() -> list[RuleEvent]:
        """The events of one object that did it all without being lost on the way, oldest first; a starved machine needs a few trips."""
        events = carry()
        trips: dict[tuple[int, int | None], list[RuleEvent]] = {}
        for one in sorted(events, key=lambda one: one.end_ms or one.start_ms):
            trips.setdefault((one.session, one.track), []).append(one)
        clean = [found for found in trips.values() if sorted(one.rule for one in found) == ["in", "out", "parked", "parked", "through"]]
        return next((found for found in clean if all(one.reason in {None, "outside"} for one in found)), [])

    found = wait_until(whole_trip, what="an object that entered, stayed, crossed and left")
    enters, leaves, crosses, stays = ([one for one in found if one.rule == name] for name in ("in", "out", "through", "parked"))
    assert [one.phase for one in stays] == [Phase.STARTED, Phase.ENDED]
    assert stays[0].occurrence == stays[1].occurrence
    assert crosses[0].direction == "right"
    assert (enters[0].label, enters[0].zone, enters[0].release, leaves[0].reason) == ("square", "yard", "1.0", "outside")
    assert enters[0].start_ms <= crosses[0].start_ms <= leaves[0].start_ms
    assert enters[0].box is not None
    assert enters[0].box[0] < 0.5 < enters[0].box[3]
    assert leaves[0].score is not None
    assert leaves[0].score > 0.9
