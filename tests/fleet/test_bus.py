"""The bus acknowledges only when told, comes back by itself, and names what the broker refuses."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from simulators.identities import Authority
from simulators.tls_peer import NonsenseBroker, tls_server
from waiting import wait_until

from fleet.broker import CONTROLLER, INGEST, EmbeddedBroker, client_tls
from fleet.bus import Bus, BusOptions, Inbox, Incoming, Subscription, controller_subscriptions, ingest_subscriptions
from protocol.errors import ConfigError, InvalidError, UnavailableError

Connect = Callable[..., Bus]


@pytest.fixture
def connect(broker: EmbeddedBroker, authority: Authority) -> Iterator[Connect]:
    """Opens connections and closes them in the end."""
    opened: list[Bus] = []

    def open_bus(principal: str, subscriptions: tuple[Subscription, ...] = (), *, session_s: int = 0, scheme: str = "mqtts") -> Bus:
        port = broker.port if scheme == "mqtts" else broker.websocket_port
        options = BusOptions(
            url=f"{scheme}://localhost:{port}",
            principal=principal,
            tls=client_tls(authority.issue(principal)),
            subscriptions=subscriptions,
            session_s=session_s,
        )
        bus = Bus(options)
        opened.append(bus)
        bus.start()
        assert bus.wait_connected(60)
        return bus

    yield open_bus
    for bus in opened:
        bus.stop()


def take_all(bus: Bus, count: int) -> list[Incoming]:
    taken: list[Incoming] = []

    def has_all() -> bool:
        taken.extend(bus.inbox.take(1000, wait_s=0.05, gather_s=0))
        return len(taken) >= count

    wait_until(has_all, what=f"{count} messages")
    return taken


def test_what_was_not_acknowledged_comes_again_on_the_next_connection(connect: Connect):
    device = connect("cam-1")
    ingest = connect(INGEST, ingest_subscriptions(), session_s=3600)
    for number in range(3):
        device.publish_and_wait("mooring/1/t0/d/cam-1/event", b"%d" % number)
    first, *_ = take_all(ingest, 3)
    ingest.acknowledge([first])
    ingest.stop()
    again = connect(INGEST, ingest_subscriptions(), session_s=3600)
    assert sorted(one.payload for one in take_all(again, 2)) == [b"1", b"2"]


def test_an_acknowledgement_of_an_earlier_connection_is_not_sent(connect: Connect, broker: EmbeddedBroker):
    ingest = connect(INGEST, ingest_subscriptions(), session_s=3600)
    connect("cam-1").publish_and_wait("mooring/1/t0/d/cam-1/event", b"x")
    (message,) = take_all(ingest, 1)
    old = broker.pid
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: ingest._connection > message.connection and ingest.is_connected, what="the loss and the return")
    ingest.acknowledge([message])


def test_the_broker_waits_when_a_thousand_are_not_acknowledged(connect: Connect):
    device = connect("cam-1")
    ingest = connect(INGEST, ingest_subscriptions(), session_s=3600)
    for number in range(1500):
        assert device.publish("mooring/1/t0/d/cam-1/event", b"%d" % number)
    first = take_all(ingest, 1000)
    device.publish_and_wait("mooring/1/t0/d/cam-1/event", b"last")
    assert len(first) == 1000
    assert ingest.inbox.take(10, wait_s=0.2, gather_s=0) == []
    ingest.acknowledge(first)
    rest = take_all(ingest, 501)
    assert [int(one.payload) for one in rest[:-1]] == list(range(1000, 1500))


def test_the_controller_gets_the_states_that_were_retained_before_it_came(connect: Connect):
    device = connect("cam-1")
    device.publish_and_wait("mooring/1/t0/d/cam-1/status", b"s", retain=True)
    controller = connect(CONTROLLER, controller_subscriptions())
    (message,) = take_all(controller, 1)
    assert (message.topic, message.payload, message.retain) == ("mooring/1/t0/d/cam-1/status", b"s", True)


def test_a_refused_publication_is_an_error_with_the_brokers_reason(connect: Connect):
    device = connect("cam-1")
    with pytest.raises(UnavailableError, match="Not authorized") as caught:
        device.publish_and_wait("mooring/1/t0/d/cam-2/event", b"x")
    assert caught.value.code == "publish-refused"
    assert device.refused == 1


def test_it_speaks_over_websockets_as_well(connect: Connect):
    device = connect("cam-1", scheme="wss")
    ingest = connect(INGEST, ingest_subscriptions())
    device.publish_and_wait("mooring/1/t0/d/cam-1/event", b"over websockets")
    assert take_all(ingest, 1)[0].payload == b"over websockets"
    with pytest.raises(UnavailableError, match="Not authorized"):
        device.publish_and_wait("mooring/1/t0/d/cam-2/event", b"x")


def test_a_broker_that_is_away_is_logged_once(authority: Authority, free_port: int, caplog: pytest.LogCaptureFixture):
    bus = Bus(BusOptions(f"mqtts://localhost:{free_port}", INGEST, client_tls(authority.issue(INGEST))))
    attempts: list[int] = []
    told, bus._client.on_connect_fail = bus._client.on_connect_fail, lambda *details: (told(*details), attempts.append(1))
    bus.start()
    try:
        wait_until(lambda: len(attempts) >= 3, what="three attempts")
        assert caplog.text.count("broker_unreachable") == 1
    finally:
        bus.stop()


def test_no_connection_is_said_and_nothing_blocks(authority: Authority, free_port: int):
    bus = Bus(BusOptions(f"mqtts://localhost:{free_port}", INGEST, client_tls(authority.issue(INGEST))))
    bus.start()
    try:
        assert not bus.wait_connected(0.2)
        assert bus.publish("mooring/1/t0/c/cam-1/ack", b"{}")
        with pytest.raises(UnavailableError, match="did not acknowledge"):
            bus.publish_and_wait("mooring/1/t0/c/cam-1/ack", b"{}", timeout_s=0.2)
    finally:
        bus.stop()


def test_a_packet_that_cannot_be_read_ends_the_connection_and_the_next_one_works(authority: Authority):
    broker, files = NonsenseBroker(), authority.issue("localhost", is_server=True)
    with tls_server(files.certificate, files.key, broker) as port:
        bus = Bus(BusOptions(f"mqtts://localhost:{port}", INGEST, client_tls(authority.issue(INGEST)), ingest_subscriptions()))
        bus.start()
        try:
            wait_until(lambda: broker.subscribed >= 2 and bus.is_connected, what="another connection")
        finally:
            bus.stop()


def test_a_listener_that_fails_costs_a_connection_and_not_the_bus(connect: Connect, broker: EmbeddedBroker, authority: Authority):
    calls: list[int] = []

    def fail_at_first() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise LookupError("a mistake of ours")

    options = BusOptions(f"mqtts://localhost:{broker.port}", INGEST, client_tls(authority.issue(INGEST)), ingest_subscriptions())
    ingest = Bus(options)
    ingest.on_connected = fail_at_first
    ingest.start()
    try:
        wait_until(lambda: len(calls) == 2 and ingest.is_connected, what="another connection")
        connect("cam-1").publish_and_wait("mooring/1/t0/d/cam-1/event", b"x")
        assert take_all(ingest, 1)[0].payload == b"x"
    finally:
        ingest.stop()


def test_what_came_by_a_lost_connection_is_not_acknowledged_while_the_next_one_is_made(connect: Connect, broker: EmbeddedBroker):
    """The library walks through the packets it has not sent when it connects again; one more from another thread would end its own."""
    ingest = connect(INGEST, ingest_subscriptions(), session_s=3600)
    connect("cam-1").publish_and_wait("mooring/1/t0/d/cam-1/event", b"x")
    (message,) = take_all(ingest, 1)
    broker.stop()
    wait_until(lambda: not ingest.is_connected, what="the loss")
    ingest.acknowledge([message])
    assert not ingest._client.want_write()


def test_an_unencrypted_broker_is_refused(authority: Authority):
    with pytest.raises(ConfigError, match="mqtts"):
        Bus(BusOptions("mqtt://localhost:1883", INGEST, client_tls(authority.issue(INGEST))))


def test_a_body_beyond_the_packet_limit_is_refused_before_it_is_sent(authority: Authority):
    bus = Bus(BusOptions("mqtts://localhost:1", INGEST, client_tls(authority.issue(INGEST))))
    with pytest.raises(InvalidError, match="262144"):
        bus.publish("mooring/1/t0/c/cam-1/ack", b"x" * 262_145)


def message(qos: int, *, connection: int = 1) -> Incoming:
    return Incoming("t", b"", qos, False, 1, connection)


def test_the_inbox_drops_and_counts_live_messages_when_full_and_never_the_others():
    inbox = Inbox(length=2)
    for _ in range(3):
        inbox.put(message(0))
        inbox.put(message(1))
    assert (len(inbox), inbox.dropped) == (4, 2)


def test_the_inbox_gathers_what_follows_the_first_message():
    inbox = Inbox()
    later = threading.Timer(0.05, lambda: [inbox.put(message(1)) for _ in range(3)])
    inbox.put(message(1))
    later.start()
    assert len(inbox.take(4, wait_s=60, gather_s=60)) == 4
    later.join()


def test_a_batch_is_handed_over_as_soon_as_it_is_full():
    inbox = Inbox()
    later = threading.Timer(0.05, lambda: [inbox.put(message(1)) for _ in range(9)])
    later.start()
    assert len(inbox.take(4, wait_s=60, gather_s=60)) == 4
    assert len(inbox.take(4, wait_s=60, gather_s=60)) == 4
    later.join()


def test_the_inbox_takes_back_what_could_not_be_worked_on_in_front_of_all_others():
    inbox = Inbox()
    for number in range(4):
        inbox.put(Incoming("t", b"%d" % number, 1, False, number, 1))
    inbox.put_back(inbox.take(2, wait_s=0, gather_s=0))
    assert [one.payload for one in inbox.take(10, wait_s=0, gather_s=0)] == [b"0", b"1", b"2", b"3"]


def test_the_inbox_forgets_what_an_earlier_connection_will_send_again():
    inbox = Inbox()
    for one in (message(1), message(0), message(1, connection=2)):
        inbox.put(one)
    inbox.forget(2)
    assert [(one.qos, one.connection) for one in inbox.take(9, wait_s=0, gather_s=0)] == [(0, 1), (1, 2)]
