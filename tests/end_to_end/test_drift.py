"""From rows to an alarm and back: the device's own watch, its outbox and its twin, and the server's ingest, check and alarms. Seeded."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from simulators.drift_rows import MODEL
from simulators.drift_site import Site
from simulators.sketches import enroll

from agent.drift.store import SubWindowRow
from agent.settings.desired import parse_desired
from fleet.audit import Actor, ActorKind
from fleet.bus import Incoming
from fleet.db import Database, migrate
from fleet.devices import twins
from fleet.monitoring import drift_learning, drift_reading, drift_references, drift_service, drift_tick
from fleet.monitoring.drift_model import AlarmState, Grade
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.messages import Ack
from protocol.sketches.codec import SUBWINDOW_MS
from protocol.sketches.profile import FILE_NAME
from protocol.topics import device_topic

CAM = DeviceId("cam-1")
ANNA = Actor(ActorKind.PERSON, "anna")
INGEST = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices), on_event=(drift_references.take_event,))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    migrate(made)
    enroll(made, CAM)
    yield made
    made.dispose()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A device that has seen 28 days; what it sent of them is not on this server."""
    made = Site(tmp_path)
    made.remember(28)
    yield made
    made.store.close()


def carry(site: Site, database: Database, *, order: Callable[[list[Any]], Iterable[Any]] = list) -> int:
    """What broker and server do: bring the outbox to ingest, judge, and acknowledge; returns how many rows the device let go."""
    rows = list(order([row for row in site.store.next_batch(500) if row.stream in ("sketch", "event")]))
    batch = [
        Incoming(device_topic(DEFAULT_TENANT, CAM, row.stream, *row.levels), row.payload, 1, False, number, 1)
        for number, row in enumerate(rows)
    ]
    now = site.clock.now() + timedelta(seconds=1)
    outcome = ingest_batch(database, batch, rules=INGEST, now=now)
    assert outcome.rejected == 0
    drift_tick.tick(database, rules=DriftRules(), now=now)
    site.store.mark_sent(*[row.id for row in rows])
    return sum(site.store.apply_ack(Ack.model_validate_json(ack.model_dump_json())) for _, _, ack in outcome.acks)


def hear(site: Site, database: Database) -> None:
    """The device takes its twin."""
    desired, errors = parse_desired(twins.get_desired(database, DEFAULT_TENANT, CAM).config)
    assert errors == {}
    site.configure(**desired.drift.model_dump(exclude_none=True))


def test_a_darker_world_becomes_one_alarm_that_somebody_takes_and_then_a_new_normal(site: Site, database: Database):
    with database.transaction() as tx:
        profile = (site.folder / "slot" / FILE_NAME).read_bytes()
        drift_learning.add_profile(tx, DEFAULT_TENANT, profile, model=MODEL, line="pets", version="1.0", now=site.clock.now())
    # the world as it was: a reference goes up, hours follow, nothing is raised
    site.one_window()
    site.run(4 * 3600)
    assert carry(site, database) >= 3
    (reference,) = drift_references.list_references(database, DEFAULT_TENANT, CAM, "front")
    assert (reference.reference_id, reference.grade) == (site.told().reference, Grade.CALIBRATED)
    assert drift_service.list_alarms(database, DEFAULT_TENANT) == []
    # it changes: the device crosses by itself, the server confirms it from the counts of one sub-window
    site.one_window(shift=-3.0)
    assert site.told().state == "raised"
    carry(site, database)
    (alarm,) = drift_service.list_alarms(database, DEFAULT_TENANT, states=[AlarmState.RAISED])
    assert (alarm.subject.name, alarm.subject.pipeline, alarm.subject.model) == (CAM, "front", MODEL)
    assert alarm.reference_id == reference.reference_id
    assert round(alarm.onset.timestamp() * 1000) <= site.told().raised_at < round(alarm.onset.timestamp() * 1000) + SUBWINDOW_MS
    assert "image.brightness" in {one.feature for one in alarm.features}
    # a person takes it; the same windows again, in another order, change nothing
    drift_service.acknowledge(database, tenant=DEFAULT_TENANT, alarm=alarm.alarm, by=ANNA, now=site.clock.now())
    hear(site, database)
    assert site.told().state == "acknowledged"
    site.run(2 * 3600)
    site.crash()
    site.run(100)
    carry(site, database)
    assert carry(site, database) == 0
    assert len(drift_service.list_alarms(database, DEFAULT_TENANT)) == 1
    # and takes it as normal: both sides start again
    drift_references.rebaseline(
        database, tenant=DEFAULT_TENANT, device=CAM, pipeline="front", by=ANNA, now=site.clock.now(), reason="moved"
    )
    hear(site, database)
    assert (site.told().grade, site.told().state) == ("collecting", "ok")
    assert drift_service.list_alarms(database, DEFAULT_TENANT, states=[AlarmState.RAISED, AlarmState.ACKNOWLEDGED]) == []


def test_a_little_darker_is_seen_in_the_mean_of_hours_and_confirmed_from_its_stretch_though_it_arrives_in_any_order(
    site: Site, database: Database
):
    with database.transaction() as tx:
        profile = (site.folder / "slot" / FILE_NAME).read_bytes()
        drift_learning.add_profile(tx, DEFAULT_TENANT, profile, model=MODEL, line="pets", version="1.0", now=site.clock.now())
    site.one_window()
    carry(site, database)
    site.world.shift, hours = -0.6, 0
    while site.told().state == "ok":
        site.run(600)
        hours += 1 / 6
        assert hours < 8
    assert site.told().stretch > 1
    rows = [row for row in site.store.next_batch(500) if row.stream == "sketch"]
    assert len(rows) >= site.told().stretch * 4 // 5
    carry(site, database, order=reversed)
    (alarm,) = drift_service.list_alarms(database, DEFAULT_TENANT)
    assert (alarm.state, alarm.threshold) == (AlarmState.RAISED, 52_560)
    assert len(alarm.evidence) > 1
    assert alarm.features
    assert ", seen in the " in alarm.words
    assert drift_reading.device_overview(database, DEFAULT_TENANT)[0].state.conditions == {}


def test_every_hour_reaches_the_server_once_whatever_is_lost_on_the_way(site: Site, database: Database):
    with database.transaction() as tx:
        profile = (site.folder / "slot" / FILE_NAME).read_bytes()
        drift_learning.add_profile(tx, DEFAULT_TENANT, profile, model=MODEL, line="pets", version="1.0", now=site.clock.now())
    begun = site.clock.now()
    for _ in range(3):
        site.run(3 * 3600)
        site.store.mark_sent(*[row.id for row in site.store.next_batch(500)])  # the broker lost them
        site.restart()
        site.store.requeue_stored()
    carry(site, database)
    site.store.requeue_stored()
    carry(site, database)
    kept: list[SubWindowRow] = [row for row in site.rows.history(site.subject, since=0, until=10**7) if row.sent not in ("", "before")]
    points = drift_reading.timeline(database, DEFAULT_TENANT, CAM, "front", since=begun, until=site.clock.now())
    scored = [row for row in kept if row.score is not None]
    assert len([point for point in points if point.score is not None]) == len(scored) >= 40
