"""Rules over stored telemetry: what fires, what is told, what history keeps; on both databases."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from simulators import messages

from fleet import audit, jobs, parts
from fleet.audit import Actor, ActorKind
from fleet.db import Database
from fleet.devices import groups
from fleet.devices import store as device_store
from fleet.devices.model import Device, DeviceState
from fleet.monitoring.alerts import announcing, history, service, standstills, store
from fleet.monitoring.alerts.model import Alert, Counted, Recipient, RecipientKind
from fleet.monitoring.drift_alarms import PUBLISH_ALARM
from fleet.monitoring.ingest import IngestRules, ingest_batch
from fleet.monitoring.model import TelemetryRow
from fleet.monitoring.rules import Comparison, Metric, Rule, Scope
from fleet.parts import PartState
from protocol.clock import to_unix_ms
from protocol.errors import ConflictError, InvalidError, NotFoundError, StaleRevisionError
from protocol.ids import DEFAULT_TENANT, DeviceId, DeviceTypeName

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OPERATOR = Actor(ActorKind.PERSON, "root")
SLOW = Rule("slow", Metric.LATENCY_P99, Comparison.ABOVE, threshold=50.0, recovers_at=40.0, window_s=60.0, for_s=60.0)
HOOK = Recipient(DEFAULT_TENANT, "pager", RecipientKind.WEBHOOK, "https://example.org/hook")
MESSAGES: dict[str, int] = {}


@pytest.fixture
def fleet(database: Database) -> Database:
    groups.ensure_first(database, tenant=DEFAULT_TENANT, now=START)
    with database.transaction() as tx:
        for name in ("cam-1", "cam-2"):
            device_store.insert_device(tx, enrolled(name))
    MESSAGES.clear()
    return database


def enrolled(name: str) -> Device:
    return Device(
        tenant=DEFAULT_TENANT,
        device=DeviceId(name),
        device_type=DeviceTypeName("linux-x86-64"),
        group=groups.DEFAULT_GROUP,
        site=groups.DEFAULT_SITE,
        state=DeviceState.ENROLLED,
        labels={},
        hardware={},
        agent_version="0.1.0",
        public_key="",
        sealing_key="",
        serial=name,
        pending_serial=None,
        certificate_ends_at=START + timedelta(days=365),
        enrolled_at=START,
    )


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def say(database: Database, device: str, stream: str, when: datetime, **values) -> None:
    number = MESSAGES[device] = MESSAGES.get(device, -1) + 1
    body = messages.body(number, ts=to_unix_ms(when), **values)
    rules = IngestRules(lambda _tx, _tenant, devices: set(devices), tenant=DEFAULT_TENANT)
    message = messages.incoming(f"mooring/1/{DEFAULT_TENANT}/d/{device}/{stream}", body)
    assert not ingest_batch(database, [message], rules=rules, now=when).rejected


def perf(database: Database, device: str, when: datetime, p99: float, **more) -> None:
    values = {"window_s": 60, "frames": 600, "fps": 10.0, "lat_ms_p50": p99 / 3, "lat_ms_p95": p99 / 2, "lat_ms_p99": p99, **more}
    say(database, device, "tel/perf", when, pipeline="front", backend="onnx:cpu", source_state="ok", **values)


def system(database: Database, device: str, when: datetime, **more) -> None:
    values = {"window_s": 60, "cpu_percent": 20.0, "rss_mb": 100.0, "disk_free_mb": 900.0, "outbox_rows": 0, "outbox_mb": 0.0, **more}
    say(database, device, "tel/sys", when, **values)


def make(database: Database, rule: Rule) -> Rule:
    return service.create_rule(database, tenant=DEFAULT_TENANT, rule=rule, by=OPERATOR, now=START).rule


def queued(database: Database) -> list[dict]:
    with database.reading() as tx:
        return [dict(job.payload) for job in jobs.list_jobs(tx, DEFAULT_TENANT, kind=announcing.DELIVER)][::-1]


class Parts:
    """What one process says of its ingest, and what a controller that looks each 15 seconds tells of it."""

    def __init__(self, database: Database) -> None:
        self._database, self.seen, self.worked_at = database, dict[str, standstills.Seen](), START
        service.create_recipient(database, recipient=HOOK, by=OPERATOR, now=START)
        service.create_recipient(database, recipient=replace(HOOK, name="drift-only", topics=("alarm",)), by=OPERATOR, now=START)

    def say(self, seconds: float, trouble: str, process: str = "host:1") -> None:
        self.worked_at = self.worked_at if trouble else at(seconds)
        with self._database.transaction() as tx:
            state = PartState(trouble, START, self.worked_at)
            parts.report(tx, DEFAULT_TENANT, process, {"ingest": state}, now=at(seconds))

    def look(self, seconds: float) -> list[str]:
        with self._database.transaction() as tx:
            self.seen = standstills.tell(tx, DEFAULT_TENANT, self.seen, now=at(seconds), system_now=at(seconds))
        return [f"{one['recipient']}: {one['alert']['title']}" for one in queued(self._database)]

    def go_on(self, start: float, end: float, trouble: str) -> list[str]:
        told: list[str] = []
        for seconds in range(round(start), round(end) + 1, 15):
            self.say(seconds, trouble)
            told = self.look(seconds)
        return told


def test_a_part_of_the_server_that_stands_still_is_told_once_and_once_that_it_works(fleet: Database):
    server = Parts(fleet)
    assert server.go_on(0, 15, "") == []
    assert server.go_on(30, 105, "No connection.") == []
    begun = ["pager: The server's ingest stands still"]
    assert server.go_on(120, 8010, "No connection.") == begun
    assert queued(fleet)[0]["alert"]["text"] == "What devices say is not stored; they keep it and send it later. No connection."
    assert queued(fleet)[0]["alert"]["time"] == at(15).isoformat()
    assert server.go_on(8025, 8400, "") == [*begun, "pager: The server's ingest works again"]


def test_a_process_that_has_just_begun_is_no_sign_that_a_part_works_again(fleet: Database):
    server = Parts(fleet)
    server.say(0, "")
    begun = server.go_on(15, 300, "No connection.")
    assert begun == ["pager: The server's ingest stands still"]
    server.say(400, parts.JUST_BEGUN, "host:2")
    assert server.look(401) == begun
    server.say(402, "", "host:2")
    assert len(server.look(403)) == 2


def test_a_server_that_was_off_for_a_night_tells_nobody_that_it_was(fleet: Database):
    server = Parts(fleet)
    server.say(0, "")
    assert server.look(30_000) == []
    server.say(30_001, parts.JUST_BEGUN, "host:2")
    assert server.look(30_015) == []
    assert list(server.seen) == ["ingest"]
    server.say(30_002, "", "host:2")
    assert server.look(30_030) == []
    assert server.seen == {}


def test_a_look_after_a_pause_counts_as_the_first(fleet: Database):
    """The machine slept, or another process was the controller meanwhile."""
    server = Parts(fleet)
    server.say(0, "")
    assert server.go_on(15, 60, "No connection.") == []
    server.say(5000, "No connection.")
    assert server.look(5000) == []
    assert server.go_on(5015, 5045, "No connection.") == []
    assert len(server.go_on(5060, 5060, "No connection.")) == 1


def look(database: Database, seconds: float) -> int:
    return service.evaluate(database, DEFAULT_TENANT, now=at(seconds))


def test_a_rule_fires_on_the_device_that_is_slow_and_tells_each_recipient_once(fleet: Database):
    make(fleet, SLOW)
    service.create_recipient(fleet, recipient=HOOK, by=OPERATOR, now=START)
    service.create_recipient(fleet, recipient=replace(HOOK, name="drift-only", topics=("alarm",)), by=OPERATOR, now=START)
    for minute in range(4):
        perf(fleet, "cam-1", at(60 * minute), 80.0 + minute)
        perf(fleet, "cam-2", at(60 * minute), 10.0)
        look(fleet, 60 * minute)
    [firing] = service.list_firings(fleet, DEFAULT_TENANT, is_open=True)
    assert (firing.rule, firing.key.device, firing.key.pipeline, firing.since, firing.worst) == ("slow", "cam-1", "front", at(60), 83.0)
    [told] = queued(fleet)
    assert (told["recipient"], told["alert"]["type"]) == ("pager", "mooring.rule.firing.v1")
    assert told["alert"]["title"] == "slow fires on cam-1/front"
    with fleet.reading() as tx:
        [published] = jobs.list_jobs(tx, DEFAULT_TENANT, kind=PUBLISH_ALARM)
    assert (published.payload["event"]["type"], published.payload["event"]["subject"]) == (told["alert"]["type"], told["alert"]["subject"])
    assert look(fleet, 200) == 0, "a second look at the same moment changes nothing"
    for minute in range(4, 7):
        perf(fleet, "cam-1", at(60 * minute), 12.0)
        look(fleet, 60 * minute)
    [ended] = service.list_firings(fleet, DEFAULT_TENANT)
    assert (ended.until, ended.ended_by, ended.worst) == (at(300), "recovered", 83.0)
    assert [one["alert"]["type"] for one in queued(fleet)] == ["mooring.rule.firing.v1", "mooring.rule.recovered.v1"]


def test_what_was_told_is_not_told_again_within_the_hold_time(fleet: Database):
    service.create_recipient(fleet, recipient=HOOK, by=OPERATOR, now=START)
    alert = Alert("a-1", "mooring.alarm.raised.v1", "alarm/x", START, "t", "x", "error")
    with fleet.transaction() as tx:
        assert announcing.announce_open(tx, DEFAULT_TENANT, alert, now=START)
        assert announcing.announce_over(tx, DEFAULT_TENANT, replace(alert, id="a-2"), now=at(60))
        assert not announcing.announce_over(tx, DEFAULT_TENANT, replace(alert, id="a-3"), now=at(61)), "it is over already"
        assert not announcing.announce_open(tx, DEFAULT_TENANT, replace(alert, id="a-4"), now=at(3599))
        assert announcing.announce_open(tx, DEFAULT_TENANT, replace(alert, id="a-5"), now=at(3600))
    assert [one["alert"]["id"] for one in queued(fleet)] == ["a-1", "a-2", "a-5"]
    assert announcing.alert_of(queued(fleet)[0]["alert"]) == alert


def test_an_alert_that_is_rolled_back_is_told_to_nobody(fleet: Database):
    service.create_recipient(fleet, recipient=HOOK, by=OPERATOR, now=START)
    alert = Alert("a", "mooring.alarm.raised.v1", "s", START, "t", "x", "error")

    def fail() -> None:
        with fleet.transaction() as tx:
            announcing.announce_open(tx, DEFAULT_TENANT, alert, now=START)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert queued(fleet) == []


def test_a_device_that_is_not_heard_fires_and_one_that_never_spoke_does_not(fleet: Database):
    make(fleet, Rule("gone", Metric.OFFLINE, Comparison.ABOVE, threshold=10, recovers_at=10, for_s=0))
    say(fleet, "cam-1", "status", at(0), presence="online")
    say(fleet, "cam-1", "status", at(1), presence="offline")
    assert look(fleet, 600) == 0
    assert look(fleet, 660) == 1
    [firing] = service.list_firings(fleet, DEFAULT_TENANT, is_open=True)
    assert (firing.key.device, firing.worst) == ("cam-1", 11.0)
    say(fleet, "cam-1", "status", at(700), presence="online")
    assert look(fleet, 720) == 1
    assert service.count_firing(fleet, DEFAULT_TENANT) == 0


def test_a_rule_looks_only_at_its_scope(fleet: Database):
    make(fleet, replace(SLOW, for_s=0, scope=Scope.DEVICE, subject="cam-2"))
    for name in ("cam-1", "cam-2"):
        perf(fleet, name, at(0), 99.0)
    assert look(fleet, 1) == 1
    assert [one.key.device for one in service.list_firings(fleet, DEFAULT_TENANT)] == ["cam-2"]
    with pytest.raises(NotFoundError):
        make(fleet, replace(SLOW, name="other", scope=Scope.GROUP, subject="nobody"))


def test_a_rule_of_the_device_needs_no_pipeline(fleet: Database):
    make(fleet, Rule("full", Metric.DISK_FREE, Comparison.BELOW, threshold=500, recovers_at=600, for_s=0))
    system(fleet, "cam-1", at(0), disk_free_mb=400.0)
    assert look(fleet, 1) == 1
    assert service.list_firings(fleet, DEFAULT_TENANT)[0].key.pipeline == ""


def test_a_changed_or_deleted_rule_ends_what_fires_and_leaves_it_readable(fleet: Database):
    rule = make(fleet, replace(SLOW, for_s=0))
    perf(fleet, "cam-1", at(0), 99.0)
    look(fleet, 1)
    changed = replace(rule, threshold=60.0)
    with pytest.raises(StaleRevisionError):
        service.change_rule(fleet, tenant=DEFAULT_TENANT, rule=changed, by=OPERATOR, now=at(2), expected_revision=7)
    service.change_rule(fleet, tenant=DEFAULT_TENANT, rule=changed, by=OPERATOR, now=at(2), expected_revision=1)
    look(fleet, 3)
    service.delete_rule(fleet, tenant=DEFAULT_TENANT, name="slow", by=OPERATOR, now=at(4), expected_revision=2, reason="too loud")
    ended = service.list_firings(fleet, DEFAULT_TENANT)
    assert [(one.ended_by, one.until) for one in ended] == [("rule_deleted", at(4)), ("rule_changed", at(2))]
    assert service.list_states(fleet, DEFAULT_TENANT) == []
    with fleet.reading() as tx:
        actions = [one.action for one in audit.list_entries(tx, DEFAULT_TENANT, subject="rule/slow")]
    assert actions == ["rule.deleted", "rule.changed", "rule.created"]


def test_a_switched_off_rule_is_not_looked_at(fleet: Database):
    make(fleet, replace(SLOW, for_s=0, is_enabled=False))
    perf(fleet, "cam-1", at(0), 99.0)
    assert look(fleet, 1) == 0


def test_a_device_that_left_the_fleet_no_longer_fires(fleet: Database):
    make(fleet, replace(SLOW, for_s=0))
    perf(fleet, "cam-1", at(0), 99.0)
    look(fleet, 1)
    with fleet.transaction() as tx:
        device_store.save_device(tx, replace(device_store.get_device(tx, DEFAULT_TENANT, DeviceId("cam-1")), state=DeviceState.REVOKED))
    look(fleet, 2)
    assert [one.ended_by for one in service.list_firings(fleet, DEFAULT_TENANT)] == ["out_of_scope"]


def test_a_rule_is_tested_on_history_without_changing_anything(fleet: Database):
    for minute in range(60):
        perf(fleet, "cam-1", at(60 * minute), 90.0 if 20 <= minute < 40 else 10.0)
    trial = service.try_rule(fleet, tenant=DEFAULT_TENANT, rule=SLOW, now=at(3600), hours=1)
    [found] = trial.keys
    assert (found.key.device, found.key.pipeline, found.samples, trial.left_out) == ("cam-1", "front", 60, 0)
    [fired] = found.firings
    assert (fired.since, fired.until, fired.worst) == (at(21 * 60), at(41 * 60), 90.0)
    assert service.list_rules(fleet, DEFAULT_TENANT) == []
    with pytest.raises(InvalidError, match="hours"):
        service.try_rule(fleet, tenant=DEFAULT_TENANT, rule=SLOW, now=at(3600), hours=1000)


def test_recipients_are_checked_and_their_secrets_are_not_told(fleet: Database):
    made = service.create_recipient(fleet, recipient=HOOK, by=OPERATOR, now=START)
    assert made.secret.startswith("whsec_")
    assert made.secret not in repr(made)
    bad = {
        "ftp://example.org": "no address",
        "https://user:pw@example.org/": "password",
        "http://example.org/": "TLS",
        "https://": "no address",
        "https://exa mple.org/": "no address",
        "https://example.org:99999/": "no address",
        f"https://example.org/{'a' * 2000}": "no address",
    }
    for url, text in bad.items():
        with pytest.raises(InvalidError, match=text):
            service.create_recipient(fleet, recipient=replace(HOOK, name="other", address=url), by=OPERATOR, now=START)
    mail = replace(HOOK, name="people", kind=RecipientKind.MAIL, address="a@example.org, b@example.org")
    assert service.create_recipient(fleet, recipient=mail, by=OPERATOR, now=START).address == "a@example.org,b@example.org"
    for address in ("nobody", "a@b\r\nBcc: c@d", "", "a@example.org," * 30):
        with pytest.raises(InvalidError):
            service.create_recipient(fleet, recipient=replace(mail, name="other", address=address), by=OPERATOR, now=START)
    with pytest.raises(InvalidError, match="no alerts about"):
        service.create_recipient(fleet, recipient=replace(HOOK, name="other", topics=("weather",)), by=OPERATOR, now=START)
    with pytest.raises(ConflictError):
        service.create_recipient(fleet, recipient=HOOK, by=OPERATOR, now=START)
    with fleet.reading() as tx:
        told = [str(one.detail) for one in audit.list_entries(tx, DEFAULT_TENANT)]
    assert not any(made.secret in one for one in told)


def test_history_counts_each_message_once_and_adds_late_ones_to_their_time(fleet: Database):
    for minute in range(10):
        perf(fleet, "cam-1", at(60 * minute), 30.0, dropped={"queue": 3}, errors=1)
        system(fleet, "cam-1", at(60 * minute), temperature_c=40.0 + minute)
    perf(fleet, "cam-2", at(30), 60.0)
    assert history.add_received(fleet, DEFAULT_TENANT, now=at(700)) == 21
    assert history.add_received(fleet, DEFAULT_TENANT, now=at(700)) == 0
    MESSAGES["cam-2"] = 5
    late = messages.body(9, ts=to_unix_ms(at(60)), pipeline="front", window_s=60, frames=6000, fps=100.0, backend="", source_state="ok")
    rules = IngestRules(lambda _tx, _tenant, devices: set(devices), tenant=DEFAULT_TENANT)
    ingest_batch(fleet, [messages.incoming(f"mooring/1/{DEFAULT_TENANT}/d/cam-2/tel/perf", late)], rules=rules, now=at(800))
    assert history.add_received(fleet, DEFAULT_TENANT, now=at(810)) == 0, "not settled yet"
    assert history.add_received(fleet, DEFAULT_TENANT, now=at(900)) == 1
    history.save_counted(fleet, DEFAULT_TENANT, Counted(2, 1, 0, 0), now=at(100))
    history.save_counted(fleet, DEFAULT_TENANT, Counted(2, 2, 0, 1), now=at(200))
    with fleet.reading() as tx:
        slots = store.list_fleet_points(tx, DEFAULT_TENANT, since=START, until=at(3600))
        hours = store.list_device_points(tx, DEFAULT_TENANT, DeviceId("cam-1"), since=START, until=at(3600))
    assert [(one.at, one.figures.frames, one.figures.dropped, one.figures.p99_max) for one in slots] == [
        (START, 5 * 600 + 600 + 6000, 15, 60.0),
        (at(300), 3000, 15, 30.0),
    ]
    assert (slots[0].counted, slots[1].counted) == (Counted(2, 2, 0, 1), None)
    assert [(one.stream, one.pipeline, one.figures.messages) for one in hours] == [("perf", "front", 10), ("sys", "", 10)]
    assert (hours[0].figures.errors, hours[1].figures.temperature_max, hours[1].figures.cpu_sum) == (10, 49.0, 200.0)
    assert history.prune(fleet, DEFAULT_TENANT, now=START + timedelta(days=500)) == 5


def test_no_device_makes_the_sums_of_the_fleet_overflow(fleet: Database):
    most = 2**53 - 1
    for minute in range(5):
        perf(fleet, "cam-1", at(60 * minute), 1e308, dropped={f"r{number}": most for number in range(1200)}, errors=most)
        system(fleet, "cam-1", at(60 * minute), rss_mb=1e308, cpu_percent=-1e308)
    assert history.add_received(fleet, DEFAULT_TENANT, now=at(700)) == 10
    with fleet.reading() as tx:
        (slot,) = store.list_fleet_points(tx, DEFAULT_TENANT, since=at(-86_400 * 600), until=at(86_400 * 2))
        (hour,) = [
            one
            for one in store.list_device_points(tx, DEFAULT_TENANT, DeviceId("cam-1"), since=START, until=at(3600))
            if one.stream == "sys"
        ]
    assert (slot.figures.dropped, slot.figures.errors, slot.figures.p99_max) == (5 * history.MOST, 5 * history.MOST, history.MOST)
    assert (hour.figures.rss_sum, hour.figures.cpu_sum) == (5 * history.MOST, -5 * history.MOST)


@pytest.mark.parametrize(("days", "is_counted"), [(-401, False), (-399, True), (0, True), (1, False)])
def test_a_message_counts_for_no_time_that_cannot_be(days, is_counted):
    row = TelemetryRow(DeviceId("cam-1"), "perf", "front", START + timedelta(days=days), START, {"window_s": 60.0, "frames": 5})
    points, slots = history.folded([row])
    assert (len(points), len(slots)) == (is_counted, is_counted)
