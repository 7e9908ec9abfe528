"""Ingest is idempotent, survives lateness and disorder, and keeps what it does not understand: on SQLite and PostgreSQL."""

import random
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from simulators.messages import TS, body, event, incoming, inference, reported, status, tel_sys

from fleet.broker import INGEST
from fleet.bus import Bus, BusOptions, Incoming
from fleet.db import Database
from fleet.monitoring import store
from fleet.monitoring.ingest import (
    DEAD_LETTER_BYTES,
    PREDICTIONS_KEPT,
    IngestRules,
    IngestWorker,
    Message,
    Rejected,
    ingest_batch,
    read_message,
)
from fleet.monitoring.model import Health
from protocol.clock import SystemClock
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.messages import Presence

T0 = DEFAULT_TENANT
CAM = DeviceId("cam-1")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENROLLED = {("t0", "cam-1"), ("t0", "cam-2"), ("acme", "cam-3")}
RULES = IngestRules(is_enrolled=lambda _tx, tenant, devices: {one for one in devices if (tenant, one) in ENROLLED})


def put(database: Database, *batch: Incoming, now: datetime = NOW, want_live: bool = False):
    return ingest_batch(database, batch, rules=RULES, now=now, want_live=want_live)


def counts(database: Database, tenant=T0) -> dict[str, int]:
    with database.reading() as tx:
        return store.count_rows(tx, tenant)


def view(database: Database, device=CAM):
    with database.reading() as tx:
        return store.find_device(tx, T0, device)


def test_every_row_is_stored_once_however_often_and_in_which_order_it_comes(monitored):
    sent = [event("cam-1", seq) for seq in range(200)] + [event("cam-2", seq) for seq in range(50)]
    chooser = random.Random(7)  # noqa: S311 - an order, no secret
    copies = sent * 3
    chooser.shuffle(copies)
    while copies:
        size = chooser.randint(1, 90)
        put(monitored, *copies[:size])
        copies = copies[size:]
    assert counts(monitored)["events"] == 250
    acks = {device: ack for _, device, ack in put(monitored, sent[0], sent[200]).acks}
    assert acks[CAM].streams["event"].upto == 199
    assert acks[CAM].streams["event"].ranges == []
    assert acks[DeviceId("cam-2")].streams["event"].upto == 49


def test_an_ack_carries_ranges_and_never_the_maximum(monitored):
    (_, _, ack), *rest = put(monitored, event("cam-1", 5), event("cam-1", 6), event("cam-1", 9)).acks
    assert not rest
    assert (ack.epoch, ack.streams["event"].upto, ack.streams["event"].ranges) == ("e1", -1, [(5, 6), (9, 9)])


def test_numbers_below_the_floor_are_settled_and_counted_as_missing(monitored):
    (_, _, ack), *_ = put(monitored, event("cam-1", 10, floor=8)).acks
    assert (ack.streams["event"].upto, ack.streams["event"].ranges) == (7, [(10, 10)])
    put(monitored, event("cam-1", 11, floor=9))
    with monitored.reading() as tx:
        (row,) = store.list_stream_counts(tx, T0, CAM)
    assert (row.stream, row.missing, row.highest) == ("event", 9, 11)


def test_after_a_factory_reset_the_same_numbers_are_new_rows(monitored):
    put(monitored, event("cam-1", 0, epoch="old"), event("cam-1", 1, epoch="old"))
    put(monitored, event("cam-1", 0, epoch="new"))
    assert counts(monitored)["events"] == 3


def test_acks_name_each_epoch_apart(monitored):
    acks = put(monitored, event("cam-1", 0, epoch="old"), event("cam-1", 0, epoch="new")).acks
    assert {(ack.epoch, ack.streams["event"].upto) for _, _, ack in acks} == {("old", 0), ("new", 0)}


def test_class_sent_is_stored_once_and_gets_no_ack(monitored):
    assert put(monitored, tel_sys("cam-1", 0), tel_sys("cam-1", 0), tel_sys("cam-1", 1)).acks == ()
    assert counts(monitored)["telemetry"] == 2
    with monitored.reading() as tx:
        rows = store.list_telemetry(tx, T0, CAM, name="sys", since=datetime(2026, 2, 1, tzinfo=UTC))
    assert [row.body["seq"] for row in rows] == [0, 1]
    assert rows[0].ts == datetime(2026, 3, 1, tzinfo=UTC)


def test_a_late_state_does_not_replace_a_newer_one(monitored):
    put(monitored, status("cam-1", 5, "online"))
    put(monitored, status("cam-1", 4, "offline"), now=NOW + timedelta(seconds=9))
    assert (view(monitored).presence, view(monitored).presence_since) == (Presence.ONLINE, NOW)
    put(monitored, status("cam-1", 6, "offline"), now=NOW + timedelta(seconds=10))
    assert (view(monitored).presence, view(monitored).presence_since) == (Presence.OFFLINE, NOW + timedelta(seconds=10))


def test_a_state_of_the_latest_epoch_wins_and_an_old_epoch_never_comes_back(monitored):
    put(monitored, status("cam-1", 90, "online", epoch="old"))
    put(monitored, status("cam-1", 1, "sleeping", epoch="new"))
    put(monitored, status("cam-1", 91, "offline", epoch="old"))
    assert view(monitored).presence is Presence.SLEEPING


def test_a_will_says_nothing_about_when_the_device_was_seen(monitored):
    put(monitored, status("cam-1", 1, "online"))
    put(monitored, status("cam-1", 2, "offline"), now=NOW + timedelta(hours=1))
    assert view(monitored).last_seen == NOW


def test_conditions_become_health_and_go_away_with_them(monitored):
    disk = {"code": "disk_low", "severity": "error", "text": "3 MB free", "since": TS}
    put(monitored, reported("cam-1", 0, [disk]))
    seen = view(monitored)
    assert (seen.health, seen.conditions[0].code, seen.conditions[0].text) == (Health.FAILED, "disk_low", "3 MB free")
    put(monitored, reported("cam-1", 1, []))
    assert (view(monitored).health, view(monitored).conditions) == (Health.HEALTHY, ())


def test_hooks_hear_of_the_newest_states_only(monitored):
    heard = []
    rules = IngestRules(RULES.is_enrolled, on_state=(lambda _tx, _tenant, device, state, _now: heard.append((device, state.seq)),))
    ingest_batch(monitored, [status("cam-1", 3, "online"), status("cam-1", 2, "online")], rules=rules, now=NOW)
    assert heard == [("cam-1", 3)]


def test_predictions_are_kept_newest_first_and_bounded(monitored):
    put(monitored, *(inference("cam-1", "front", frame) for frame in range(15)))
    put(monitored, *(inference("cam-1", "front", frame) for frame in range(15, 30)), inference("cam-1", "back", 0))
    with monitored.reading() as tx:
        kept = store.list_predictions(tx, T0, CAM)
    assert [one["frame"] for one in kept["front"]] == list(range(29, 29 - PREDICTIONS_KEPT, -1))
    assert len(kept["back"]) == 1


def test_what_a_live_view_gets_is_what_was_stored(monitored):
    live = put(monitored, tel_sys("cam-1", 0), event("stranger", 0), want_live=True).live
    assert [(one.device, one.topic, one.body["seq"]) for one in live] == [("cam-1", "tel/sys", 0)]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (event("stranger", 0), "not enrolled"),
        (event("cam-3", 0), "not enrolled in tenant 't0'"),
        (event("cam-1", 0, tenant="acme"), "not enrolled in tenant 'acme'"),
        (incoming("mooring/1/t0/d/cam-1/event", b"{"), "event: : Invalid JSON"),
        (incoming("mooring/1/t0/d/cam-1/event", b"\xff\xfe"), "Invalid JSON"),
        (incoming("mooring/1/t0/d/cam-1/event", body(None)), "id: Field required"),
        (incoming("mooring/1/t0/d/cam-1/status", body(None, presence="online")), "seq is missing"),
        (incoming("mooring/1/t0/d/cam-1/status", body(1, presence="dancing")), "presence"),
        (incoming("mooring/1/t0/d/cam-1/status", body(1, floor=9, presence="online")), "floor 9 is above seq 1"),
        (incoming("mooring/1/t0/d/cam-1/status", body(-1, presence="online")), "seq"),
        (incoming("mooring/1/t0/d/cam-1/status", body(1, ts=2**52, presence="online")), "calendar"),
        (incoming("mooring/1/t0/d/cam-1/status", body(1, epoch="a\x00b", presence="online")), "NUL"),
        (incoming("mooring/1/t0/d/cam-1/status/more", body(1, presence="online")), "no topic that this server reads"),
        (incoming("mooring/1/t0/d/cam-1/tel/gossip", body(1)), "no topic that this server reads"),
        (incoming("mooring/1/t0/d/cam-1/unheard", body(1)), "No stream 'unheard'"),
        (incoming("mooring/1/t0/c/cam-1/ack", b"{}"), "not what a device says"),
        (incoming("other/topic", b"{}"), "is not mooring/1"),
        (incoming("mooring/1/t0/d/cam-1/event", b"[" * 100_000), "JSON"),
    ],
)
def test_what_is_not_understood_or_not_allowed_is_kept_with_its_reason(monitored, message, reason):
    outcome = put(monitored, message, event("cam-1", 0))
    assert (outcome.accepted, outcome.rejected) == (1, 1)
    with monitored.reading() as tx:
        letters = [*store.list_dead_letters(tx, T0), *store.list_dead_letters(tx, "acme")]
    (letter,) = letters
    assert reason in letter.reason
    assert letter.topic == message.topic
    assert letter.body == message.payload[:DEAD_LETTER_BYTES]


def test_a_flood_of_nonsense_is_counted_but_not_all_kept(monitored):
    outcome = put(monitored, *(incoming("mooring/1/t0/d/cam-1/event", b"?") for _ in range(500)))
    assert outcome.rejected == 500
    assert counts(monitored)["dead_letters"] == 20


def test_reading_a_message_needs_no_database():
    assert isinstance(read_message(event("cam-1", 0), RULES), Message)
    assert isinstance(read_message(incoming("x", b""), RULES), Rejected)


def test_a_stream_full_of_holes_is_refused_and_the_others_go_on(monitored):
    scattered = [event("cam-1", seq) for seq in range(0, 10_100, 2)]
    outcome = put(monitored, *scattered, event("cam-2", 0))
    assert (outcome.accepted, outcome.rejected) == (1, len(scattered))
    assert counts(monitored)["events"] == 1


def test_a_device_that_fell_silent_is_offline(monitored):
    put(monitored, status("cam-1", 1, "online"), status("cam-2", 1, "online"))
    put(monitored, tel_sys("cam-2", 0), now=NOW + timedelta(minutes=30))
    with monitored.transaction() as tx:
        changed = store.mark_silent_offline(tx, T0, before=NOW + timedelta(minutes=20), now=NOW + timedelta(minutes=30))
    assert (changed, view(monitored).presence, view(monitored, "cam-2").presence) == (1, Presence.OFFLINE, Presence.ONLINE)


def test_old_rows_are_deleted_in_portions(monitored):
    put(monitored, *(event("cam-1", seq) for seq in range(10)))
    put(monitored, *(event("cam-1", seq) for seq in range(10, 15)), now=NOW + timedelta(days=40))
    with monitored.transaction() as tx:
        before = NOW + timedelta(days=30)
        assert store.delete_older(tx, T0, store.events, before=before, limit=7) == 7
        assert store.delete_older(tx, T0, store.events, before=before, limit=7) == 3
    assert counts(monitored)["events"] == 5


def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(monitored):
    def refuse(tx, _tenant, _device, state, _now):
        if state.seq == 3:
            store.update_device(tx, T0, 0, {"presence": None})
            store.insert_events(tx, [{"tenant": None, "stream_key": 1, "seq": 1}])

    rules = IngestRules(RULES.is_enrolled, on_state=(refuse,))
    batch = [event("cam-1", 0), status("cam-1", 3, "online"), event("cam-1", 1), event("cam-2", 0), status("cam-1", 4, "sleeping")]
    outcome = ingest_batch(monitored, batch, rules=rules, now=NOW)
    assert (outcome.accepted, outcome.rejected) == (4, 1)
    assert counts(monitored) == {"events": 3, "telemetry": 0, "dead_letters": 1}
    assert view(monitored).presence is Presence.SLEEPING


@pytest.mark.parametrize("error", [ValueError("no digit"), KeyError("x"), OverflowError("too large"), TypeError("no number")])
def test_a_message_that_our_own_code_fails_at_does_not_hold_up_the_others(monitored, error):
    def fail(_tx, _tenant, _device, told, _now):
        if told.seq == 1:
            raise error

    rules = IngestRules(RULES.is_enrolled, on_event=(fail,))
    outcome = ingest_batch(monitored, [event("cam-1", 0), event("cam-1", 1), event("cam-2", 0)], rules=rules, now=NOW)
    assert (outcome.accepted, outcome.rejected) == (2, 1)
    with monitored.reading() as tx:
        (letter,) = store.list_dead_letters(tx, T0)
    assert type(error).__name__ in letter.reason


def test_a_batch_that_could_not_be_worked_on_waits_in_front_of_the_others(monitored):
    failures = [MemoryError("for a moment")]

    def is_enrolled(_tx, tenant, devices):
        if failures:
            raise failures.pop()
        return {one for one in devices if (tenant, one) in ENROLLED}

    bus = Bus(BusOptions("mqtts://localhost:1", INGEST, ssl.create_default_context()))
    sent = [event("cam-1", seq) for seq in range(5)]
    for one in sent:
        bus.inbox.put(one)
    worker, stop = IngestWorker(bus, monitored, SystemClock(), rules=IngestRules(is_enrolled), batch=2), threading.Event()
    with pytest.raises(MemoryError):
        worker.run(stop)
    waiting = bus.inbox.take(10, wait_s=0, gather_s=0)
    assert waiting == sent
    worker.work(waiting, stop)
    assert (counts(monitored)["events"], worker.accepted, len(bus.inbox)) == (5, 5, 0)
