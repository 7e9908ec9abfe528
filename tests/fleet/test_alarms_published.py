"""An alarm that is raised reaches consumers on `f/alarm`, by a real broker and its access rules."""

import json
from collections.abc import Iterator

import pytest
from simulators.identities import Authority
from simulators.sketches import W0, WatchedDevice, add_profile, enroll
from waiting import wait_until

from fleet import jobs
from fleet.broker import CONTROLLER, PROBE, BrokerOptions, Consumer, EmbeddedBroker, client_tls
from fleet.bus import Bus, BusOptions, Incoming, Subscription
from fleet.monitoring import drift_references, drift_service, drift_tick
from fleet.monitoring.drift_alarms import PUBLISH_ALARM
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_sums import moment_of
from fleet.monitoring.ingest import IngestRules, ingest_batch
from fleet.service import publish_alarm
from protocol.ids import DEFAULT_TENANT

READER = "consumer.reader"


@pytest.fixture
def broker(mosquitto_path, tmp_path, authority: Authority) -> Iterator[EmbeddedBroker]:
    """One that lets a consumer read what the fleet tells."""
    options = BrokerOptions(
        folder=tmp_path / "broker",
        tls=authority.issue("localhost", is_server=True),
        probe=authority.issue(PROBE),
        port=0,
        websocket_port=0,
        program=mosquitto_path,
        consumers=(Consumer("reader", ("event",)),),
    )
    made = EmbeddedBroker(options)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def connect(broker: EmbeddedBroker, authority: Authority):
    opened: list[Bus] = []

    def open_bus(principal: str, *filters: str) -> Bus:
        subscriptions = tuple(Subscription(one) for one in filters)
        bus = Bus(BusOptions(f"mqtts://localhost:{broker.port}", principal, client_tls(authority.issue(principal)), subscriptions))
        opened.append(bus)
        bus.start()
        assert bus.wait_connected(60)
        return bus

    yield open_bus
    for bus in opened:
        bus.stop()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_raised_alarm_is_a_cloud_event_on_f_alarm(database, connect):
    add_profile(database)
    enroll(database, "cam-1")
    camera = WatchedDevice()
    now = moment_of(W0 + 162)
    rules = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices), on_event=(drift_references.take_event,))
    dark = camera.evidence(W0 + 144, shift=(-3.0, -3.0, 0.0, 0.0))
    ingest_batch(database, [camera.learned(), *map(camera.message, [*camera.hours(W0, 24), *dark])], rules=rules, now=now)
    drift_tick.tick(database, rules=DriftRules(), now=now)
    reader, controller = connect(READER, "mooring/1/t0/f/#"), connect(CONTROLLER)
    clock = type("At", (), {"now": staticmethod(lambda: now)})()
    done = jobs.work_once(database, clock, {PUBLISH_ALARM: lambda job: publish_alarm(controller, job, prefix="mooring")})
    assert done is not None
    taken: list[Incoming] = []

    def has_come() -> bool:
        taken.extend(reader.inbox.take(10, wait_s=0.05, gather_s=0))
        return bool(taken)

    wait_until(has_come, what="the alarm")
    (alarm,) = drift_service.list_alarms(database, DEFAULT_TENANT)
    event = json.loads(taken[0].payload)
    assert taken[0].topic == "mooring/1/t0/f/alarm"
    assert (event["specversion"], event["type"], event["subject"]) == ("1.0", "mooring.alarm.raised.v1", alarm.alarm)
    assert (event["data"]["name"], event["data"]["cause"], event["data"]["words"]) == ("cam-1", "input", alarm.words)
