"""The outbox reaches a real broker, waits while it is away, and believes nobody but the server's acknowledgement."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
from paho.mqtt import client as mqtt
from simulators.authority import Authority
from simulators.mosquitto import ACL, Mosquitto, ServerSide
from simulators.proxy import Proxy
from simulators.tls_peer import CONNACK, NonsenseBroker, tls_server
from waiting import PATIENCE_S, wait_until

from agent import uplink
from agent.conditions import Conditions
from agent.config import BrokerConfig
from agent.database.outbox import SketchDraft
from agent.store import Store
from agent.traffic import Traffic
from agent.uplink import Inbox, Uplink, explain_refusal, parse_endpoint, pause_after, schema_of
from fleet.broker import free_port
from protocol.clock import SystemClock, to_unix_ms
from protocol.errors import ConfigError, NotFoundError
from protocol.messages import Event, Inference, RpcReply, Status

pytestmark = [
    pytest.mark.needs_broker,
    pytest.mark.usefixtures("collected"),
    # paho leaves the socket of a failed TLS handshake to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
]
CLOCK = SystemClock()


class Device:
    """An uplink with its store, started."""

    def __init__(self, identity, folder, *, url=None, proxy=None, resend_s=300.0, in_flight=20, ring_rows=16) -> None:
        self.held, self.traffic = set[str](), Traffic()
        self.store = Store(folder / f"{identity.device}.db", clock=CLOCK)
        self.conditions = Conditions(CLOCK)
        self.desired, self.jobs = [], []
        self.may_look = threading.Event()
        self.uplink = Uplink(
            store=self.store,
            identity=identity,
            settings=BrokerConfig(url=url, reconnect_max_s=0.3, in_flight=in_flight),
            proxy=proxy,
            resend_s=resend_s,
            ring_rows=ring_rows,
            conditions=self.conditions,
            clock=CLOCK,
            traffic=self.traffic,
            held=lambda: self.held,
            inbox=Inbox(self.desired.append, self.jobs.append, {"ping": lambda args: {"pong": args}}, {"look": self._look}),
        )
        self.store.on_added = self.uplink.wake

    def _look(self, args: dict[str, Any]) -> dict[str, Any]:
        assert self.may_look.wait(PATIENCE_S)
        if "nothing" in args:
            raise NotFoundError("There is nothing.")
        return {"seen": "x" * 200_000}

    def __enter__(self) -> Self:
        self.uplink.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.uplink.stop(timeout_s=60)
        self.store.close()

    def await_connected(self):
        wait_until(lambda: self.uplink.is_connected, what=f"a connection; conditions: {self.conditions.active()}")

    def await_listening(self, server):
        """It says that it is online after it asked for commands, so the broker passes on all that come from now on."""
        wait_until(lambda: any(body.get("presence") == "online" for body in server.bodies("/status")), what="a device that listens")

    def condition(self, code):
        return wait_until(lambda: next((c for c in self.conditions.active() if c.code == code), None), what=f"condition {code}")


@pytest.fixture
def server(broker) -> Iterator[ServerSide]:
    with ServerSide(broker) as side:
        yield side


def test_rows_arrive_with_their_topic_properties_and_expiry(broker, server, make_identity, tmp_path):
    with Device(make_identity(broker.url), tmp_path) as device:
        device.store.add("event", (), {"source": "/mooring/t0/cam-1", "type": "mooring.test.v1"})
        message = wait_until(lambda: next((m for m in server.messages if m.topic.endswith("/event")), None))
        event = Event.model_validate_json(message.payload)
        assert (event.seq, event.floor, event.id) == (0, 0, f"{device.store.epoch}-0")
        assert message.topic == "mooring/1/t0/d/cam-1/event"
        assert (message.qos, message.retain) == (1, False)
        assert message.properties.ContentType == "application/json"
        assert 0 < message.properties.MessageExpiryInterval <= 7 * 86_400
        assert dict(message.properties.UserProperty) == {"schema": "event.1", "seq": "0", "boot": device.store.boot_id}


def test_a_sketch_arrives_as_its_bytes_without_a_number_and_leaves_by_its_key(broker, server, make_identity, tmp_path):
    with Device(make_identity(broker.url), tmp_path) as device:
        with device.store.writing() as writing:
            writing.add_sketch(SketchDraft("front", "2992218-6", 0, lambda rev: b"\xff\x00" + bytes([rev])))
        message = wait_until(lambda: next((m for m in server.messages if "/sketch/" in m.topic), None), what="the sketch")
        assert (message.topic, message.payload) == ("mooring/1/t0/d/cam-1/sketch/front/2992218-6", b"\xff\x00\x00")
        assert (message.qos, message.retain, message.properties.ContentType) == (1, False, "application/cbor")
        assert dict(message.properties.UserProperty) == {"schema": "sketch.1", "boot": device.store.boot_id}
        wait_until(lambda: device.store.counts().unacknowledged == 1, what="the broker's answer")
        server.command("cam-1", "ack", {"v": 1, "epoch": "x", "streams": {}, "sketch": [["front", "2992218-6", 0, 0]]})
        wait_until(lambda: "sketch" not in device.store.counts().by_stream, what="the sketch to leave")


def test_presence_is_told_online_offline_and_never_out_of_order(broker, server, make_identity, tmp_path):
    identity = make_identity(broker.url)
    with Device(identity, tmp_path) as device:
        device.await_connected()
        wait_until(lambda: server.bodies("/status"))
    statuses = wait_until(lambda: [Status.model_validate(b) for b in server.bodies("/status") if b["presence"] == "offline"])
    everything = [Status.model_validate(b) for b in server.bodies("/status")]
    assert [status.presence for status in everything] == ["online", "offline"]
    assert statuses[0].seq > everything[0].seq


def test_a_stored_row_leaves_only_when_the_server_acknowledged_it(broker, server, make_identity, tmp_path):
    with Device(make_identity(broker.url), tmp_path) as device:
        seqs = [device.store.add("event", (), {"type": "x"}) for _ in range(3)]
        device.store.add("tel", ("sys",), {})
        wait_until(lambda: device.store.counts().unacknowledged == 3)
        wait_until(lambda: "tel" not in device.store.counts().by_stream, what="telemetry to leave with the broker's answer")
        server.command("cam-1", "ack", {"v": 1, "epoch": device.store.epoch, "streams": {"event": {"upto": seqs[1], "ranges": []}}})
        wait_until(lambda: device.store.counts().by_stream["event"] == 1)
        assert device.store.floor("event") == seqs[2]


def test_a_stream_that_is_held_waits_while_others_go_and_all_bytes_are_counted(broker, server, make_identity, tmp_path):
    with Device(make_identity(broker.url), tmp_path) as device:
        device.held.add("tel")
        device.await_connected()
        device.store.add("tel", ("sys",), {})
        device.store.add("event", (), {"type": "x"})
        wait_until(lambda: server.bodies("/event"), what="the event")
        assert server.bodies("/tel/sys") == []
        assert device.store.counts().by_stream["tel"] == 1
        device.held.clear()
        device.uplink.wake()
        wait_until(lambda: server.bodies("/tel/sys"), what="what was held")
    sent, received = device.traffic.totals()
    assert sent > 1000  # TLS with certificates both ways
    assert received > 1000


def test_unacknowledged_rows_are_sent_again_while_connected_ever_more_rarely(broker, server, make_identity, tmp_path):
    with Device(make_identity(broker.url), tmp_path, resend_s=1.0) as device:
        device.store.add("event", (), {"type": "x"})
        wait_until(lambda: len(server.bodies("/event")) == 2)
        assert {body["seq"] for body in server.bodies("/event")} == {0}
        wait_until(lambda: device.uplink._resend_s == 2.0)


def test_everything_waits_for_a_broker_that_is_away_and_arrives_later(mosquitto_path, authority, make_identity, tmp_path):
    broker = Mosquitto(mosquitto_path, tmp_path / "broker", authority)
    with Device(make_identity(broker.url), tmp_path, resend_s=1.0) as device:
        for _ in range(50):
            device.store.add("event", (), {"type": "x"})
        assert "cannot be reached" in device.condition("broker_unreachable").text
        with broker, ServerSide(broker) as server:
            wait_until(lambda: {body["seq"] for body in server.bodies("/event")} == set(range(50)))
            assert device.store.counts().rows >= 50
            wait_until(lambda: not device.conditions.active(), what="the condition to be over")


def test_a_broker_killed_again_and_again_costs_no_row(mosquitto_path, authority, make_identity, tmp_path):
    broker = Mosquitto(mosquitto_path, tmp_path / "broker", authority)
    seen: set[int] = set()
    with Device(make_identity(broker.url), tmp_path, resend_s=1.0) as device:
        total = 0
        for _ in range(3):
            broker.start()
            with ServerSide(broker) as server:
                for _ in range(40):
                    device.store.add("event", (), {"type": "x"})
                total += 40
                wait_until(lambda: len(server.bodies("/event")) >= 10)
                broker.stop(kill=True)
                seen |= {body["seq"] for body in server.bodies("/event")}
        broker.start()
        with ServerSide(broker) as server:
            wait_until(lambda: {body["seq"] for body in server.bodies("/event")} == set(range(total)))
        broker.stop()


def test_states_are_published_again_after_each_connect_and_kept_by_the_broker(mosquitto_path, authority, make_identity, tmp_path):
    broker = Mosquitto(mosquitto_path, tmp_path / "broker", authority)
    with Device(make_identity(broker.url), tmp_path) as device:
        device.store.add("info", (), {"device_type": "sim", "agent_version": "1"})
        for _ in range(2):
            with broker, ServerSide(broker) as server:
                wait_until(lambda: server.bodies("/info") and server.bodies("/status"))
                with ServerSide(broker) as late:
                    wait_until(lambda: late.bodies("/info"), what="the retained state")


def test_a_device_that_dies_is_told_offline_by_the_broker(broker, server, make_identity, tmp_path):
    uplink_delay, uplink.WILL_DELAY_S = uplink.WILL_DELAY_S, 0
    try:
        with Device(make_identity(broker.url), tmp_path) as device:
            device.await_connected()
            wait_until(lambda: server.bodies("/status"))
            other = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="cam-1", protocol=mqtt.MQTTv5)
            other.tls_set_context(device.uplink._identity.tls_context())
            other.connect(broker.host, broker.port)  # takes the session over: the Will of the old connection is due
            other.loop_start()
            will = wait_until(lambda: next((b for b in server.bodies("/status") if b["presence"] == "offline"), None))
            assert will["seq"] == server.bodies("/status")[0]["seq"] + 1
            other.disconnect()
            other.loop_stop()
            device.await_connected()
            back = wait_until(lambda: next((b for b in server.bodies("/status")[::-1] if b["presence"] == "online"), None))
            assert back["seq"] > will["seq"] or wait_until(lambda: server.bodies("/status")[-1]["seq"] > will["seq"])
    finally:
        uplink.WILL_DELAY_S = uplink_delay


def test_a_forbidden_stream_stops_with_a_condition_and_the_others_go_on(mosquitto_path, authority, make_identity, tmp_path):
    acl = ACL.replace("pattern write mooring/1/t0/d/%u/#", "pattern write mooring/1/t0/d/%u/tel/#\npattern write mooring/1/t0/d/%u/status")
    with Mosquitto(mosquitto_path, tmp_path / "broker", authority, acl=acl) as broker, ServerSide(broker) as server:
        with Device(make_identity(broker.url), tmp_path) as device:
            device.store.add("event", (), {"type": "x"})
            found = device.condition("publish_refused")
            assert "Not authorized" in found.text
            assert "mooring/1/t0/d/cam-1/event" in found.text
            assert found.subject == "event"
            device.store.add("tel", ("sys",), {})
            wait_until(lambda: server.bodies("/tel/sys"))
            assert device.store.counts().by_stream["event"] == 1
            assert device.uplink.is_connected
        assert server.bodies("/event") == []


def test_a_certificate_of_another_authority_is_refused_with_a_condition(broker, make_identity, tmp_path, authority):
    identity = make_identity(broker.url, by=Authority("somebody else"))
    identity.ca_path.write_bytes(authority.pem)
    with Device(identity, tmp_path) as device:
        assert broker.url in device.condition("broker_unreachable").text
        assert not device.uplink.is_connected


def test_a_broker_with_a_certificate_that_nobody_trusts_is_refused(broker, make_identity, tmp_path):
    identity = make_identity(broker.url)
    identity.ca_path.write_bytes(Authority("another").pem)
    with Device(identity, tmp_path) as device:
        assert "certificate" in device.condition("broker_unreachable").text


def test_a_device_that_may_not_connect_is_refused_in_the_brokers_words(mosquitto_path, authority, make_identity, tmp_path):
    broker = Mosquitto(mosquitto_path, tmp_path / "broker", authority, extra="clientid_prefixes only-these-")
    with broker, Device(make_identity(broker.url), tmp_path) as device:
        found = device.condition("broker_refused")
        assert "answered" in found.text
        assert broker.url in found.text


@contextmanager
def tls_broker(tmp_path, authority, serve) -> Iterator[str]:
    """The URL of a broker that hands each connection to `serve`."""
    with tls_server(*authority.issue(tmp_path, "old-broker", hosts=("127.0.0.1",)), serve) as port:
        yield f"mqtts://127.0.0.1:{port}"


def test_a_broker_that_speaks_only_3_1_1_is_refused_naming_its_answer(tmp_path, authority, make_identity):
    def old_broker(connection) -> None:
        connection.recv(4096)
        connection.sendall(bytes([0x20, 2, 0, 1]))  # CONNACK 3.1.1, return code 1: unacceptable protocol version
        connection.recv(1)

    with tls_broker(tmp_path, authority, old_broker) as url, Device(make_identity(url), tmp_path) as device:
        found = device.condition("broker_not_mqtt5")
        assert "MQTT 5" in found.text
        assert "Unsupported protocol version" in found.text


def test_a_broker_that_hangs_up_on_mqtt_5_is_named_with_what_that_may_mean(tmp_path, authority, make_identity):
    with tls_broker(tmp_path, authority, lambda connection: connection.recv(4096)) as url, Device(make_identity(url), tmp_path) as device:
        assert "does not speak MQTT 5" in device.condition("broker_unreachable").text


def test_a_refused_subscription_is_a_condition(tmp_path, authority, make_identity):
    def deaf_broker(connection) -> None:
        connection.recv(4096)
        connection.sendall(bytes([0x20, 3, 0, 0, 0]))
        data = b""
        while b"/c/cam-1/#" not in data:
            data += connection.recv(4096)
        connection.sendall(bytes([0x90, 4, 0, 1, 0, 0x87]))
        while connection.recv(4096):
            pass

    with tls_broker(tmp_path, authority, deaf_broker) as url, Device(make_identity(url), tmp_path) as device:
        assert "Not authorized" in device.condition("subscribe_refused").text


def test_a_packet_that_cannot_be_read_ends_the_connection_and_the_next_one_works(tmp_path, authority, make_identity):
    broker = NonsenseBroker()
    with tls_broker(tmp_path, authority, broker) as url, Device(make_identity(url), tmp_path) as device:
        assert "was lost" in device.condition("broker_unreachable").text
        wait_until(lambda: broker.subscribed >= 2 and device.uplink.is_connected, what="another connection")


def test_a_broker_that_acknowledges_nothing_is_left_for_another_connection(tmp_path, authority, make_identity):
    connections: list[bytes] = []

    def deaf_broker(connection) -> None:
        connections.append(connection.recv(4096))
        connection.sendall(CONNACK)
        while connection.recv(65_536):
            pass

    patience, uplink.PUBACK_TIMEOUT_S = uplink.PUBACK_TIMEOUT_S, 0.5
    try:
        with tls_broker(tmp_path, authority, deaf_broker) as url, Device(make_identity(url), tmp_path) as device:
            device.store.add("event", (), {"type": "x"})

            def is_left() -> bool:
                device.uplink.offer("inf", ("front",), {"n": 1})  # predictions, which nobody acknowledges
                return any("acknowledged none of" in one.text for one in device.conditions.active())

            wait_until(is_left, what="the broker to be left")
            wait_until(lambda: len(connections) >= 2, what="another connection")
            assert device.store.counts().by_stream["event"] == 1
    finally:
        uplink.PUBACK_TIMEOUT_S = patience


def test_when_the_last_word_is_not_acknowledged_the_will_is_asked_for(tmp_path, authority, make_identity):
    heard: list[bytes] = []

    def silent_broker(connection) -> None:
        connection.recv(4096)
        connection.sendall(bytes([0x20, 3, 0, 0, 0]))
        while chunk := connection.recv(65_536):
            heard.append(chunk)

    with tls_broker(tmp_path, authority, silent_broker) as url:
        with Device(make_identity(url), tmp_path) as device:
            device.await_connected()
        wait_until(lambda: b"".join(heard).endswith((b"\xe0\x02\x04\x00", b"\xe0\x01\x04")), what="DISCONNECT with reason 0x04")
    assert b'"presence":"offline"' in b"".join(heard)


def test_a_broker_busy_for_now_is_asked_again_with_the_same_row(broker, server, make_identity, tmp_path):
    """Reason 0x97 (quota): the row stays and the stream is not stopped."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.reasoncodes import ReasonCode

    device = Device(make_identity(broker.url), tmp_path)
    device.store.add("event", (), {"type": "x"})
    row = device.store.next_batch(1)[0]
    device.uplink._in_flight[7] = row
    device.uplink._on_puback(7, ReasonCode(PacketTypes.PUBACK, "Quota exceeded"))
    assert device.uplink._refused_streams == set()
    assert device.uplink._paused_until > CLOCK.monotonic()
    assert device.store.next_batch(1) == [row]
    device.store.close()


def test_it_reaches_the_broker_through_websockets(broker, server, make_identity, tmp_path):
    with Device(make_identity(broker.ws_url), tmp_path) as device:
        device.store.add("event", (), {"type": "x"})
        wait_until(lambda: server.bodies("/event"))


@pytest.mark.parametrize("kind", ["url", "ws_url"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
def test_it_reaches_the_broker_through_a_proxy(broker, server, make_identity, tmp_path, kind, scheme):
    with Proxy() as proxy, Device(make_identity(getattr(broker, kind)), tmp_path, proxy=proxy.url(scheme)) as device:
        device.store.add("event", (), {"type": "x"})
        wait_until(lambda: server.bodies("/event"))
        assert proxy.asked[0].startswith("127.0.0.1:")


def test_a_proxy_that_is_away_is_a_condition_not_a_crash(broker, make_identity, tmp_path, free_port):
    with Device(make_identity(broker.url), tmp_path, proxy=f"http://127.0.0.1:{free_port}") as device:
        assert "cannot be reached" in device.condition("broker_unreachable").text


def test_it_reaches_a_broker_on_an_ipv6_literal(mosquitto_path, authority, make_identity, tmp_path):
    try:
        free_port("::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with Mosquitto(mosquitto_path, tmp_path / "broker", authority, host="::1") as broker:
        assert "[::1]" in broker.url
        with Device(make_identity(broker.url), tmp_path) as device:
            device.await_connected()


def test_the_second_address_is_tried_when_the_first_does_not_answer(broker, server, make_identity, tmp_path, free_port):
    identity = make_identity(f"mqtts://127.0.0.1:{free_port}")
    identity.enrollment.broker.urls.append(broker.url)
    with Device(identity, tmp_path) as device:
        device.await_connected()


def test_the_twin_and_jobs_are_handed_over_and_survive_as_retained(broker, server, make_identity, tmp_path):
    server.command("cam-1", "desired", {"v": 1, "rev": 3, "config": {"pipelines": []}}, retain=True)
    with Device(make_identity(broker.url), tmp_path) as device:
        wait_until(lambda: [desired.rev for desired in device.desired] == [3])
        server.command("cam-1", "job", {"v": 1, "job": "j1", "exp": 1})
        wait_until(lambda: device.jobs)


def test_malformed_commands_are_dropped_and_the_connection_stays(broker, server, make_identity, tmp_path):
    with Device(make_identity(broker.url), tmp_path) as device:
        device.await_listening(server)
        for levels, body in (("desired", b"{"), ("ack", b"\xff\xfe"), ("ack", b'{"v":1}'), ("nothing", b"x"), ("rpc/ping", b"[]")):
            server.command("cam-1", levels, body)
        server.command("cam-1", "desired", {"v": 1, "rev": 4})
        wait_until(lambda: [desired.rev for desired in device.desired] == [4])


def test_a_method_on_the_list_is_answered_others_are_named_and_expired_ones_are_not(broker, server, make_identity, tmp_path):
    exp = to_unix_ms(CLOCK.now()) + 300_000
    with Device(make_identity(broker.url), tmp_path) as device:
        device.await_listening(server)
        server.command("cam-1", "rpc/ping", {"v": 1, "id": "late", "exp": 1})
        server.command("cam-1", "rpc/ping", {"v": 1, "id": "a", "exp": exp, "args": {"n": 1}})
        server.command("cam-1", "rpc/reboot", {"v": 1, "id": "b", "exp": exp})
        wait_until(lambda: len(server.bodies("/rpc-reply")) == 2)
        replies = [RpcReply.model_validate(body) for body in server.bodies("/rpc-reply")]
        assert (replies[0].id, replies[0].ok, replies[0].result) == ("a", True, {"pong": {"n": 1}})
        assert (replies[1].id, replies[1].ok) == ("b", False)
        assert "ping" in replies[1].error


def test_a_method_that_takes_a_while_holds_up_nothing_and_is_answered_once_at_a_time(broker, server, make_identity, tmp_path):
    exp = to_unix_ms(CLOCK.now()) + 300_000
    with Device(make_identity(broker.url), tmp_path) as device:
        device.await_listening(server)

        def reply(identity: str) -> RpcReply:
            found = wait_until(lambda: next((body for body in server.bodies("/rpc-reply") if body["id"] == identity), None), what=identity)
            return RpcReply.model_validate(found)

        server.command("cam-1", "rpc/look", {"v": 1, "id": "slow", "exp": exp})
        server.command("cam-1", "rpc/look", {"v": 1, "id": "second", "exp": exp})
        server.command("cam-1", "rpc/ping", {"v": 1, "id": "quick", "exp": exp})
        assert reply("quick").ok
        assert "being answered" in str(reply("second").error)
        assert not any(body["id"] == "slow" for body in server.bodies("/rpc-reply"))
        device.may_look.set()
        assert len((reply("slow").result or {})["seen"]) == 200_000
        for attempt in range(100):  # the answer may overtake the end of the thread that gave it
            server.command("cam-1", "rpc/look", {"v": 1, "id": f"again-{attempt}", "exp": exp, "args": {"nothing": 1}})
            error = str(reply(f"again-{attempt}").error)
            if "being answered" not in error:
                break
        assert error.startswith("There is nothing.")


def test_ring_messages_are_sent_when_connected_and_counted_when_not(broker, server, make_identity, tmp_path):
    device = Device(make_identity(broker.url), tmp_path, ring_rows=8)
    body = {**device.store.envelope(), "pipeline": "p", "line": "l", "release": "1", "session": 0, "frame": 0, "lat_ms": 1.0}
    device.uplink.offer("inf", ("p",), body)
    assert device.uplink.ring_dropped == 1
    with device:
        device.await_connected()
        device.uplink.offer("inf", ("p",), body)
        message = wait_until(lambda: next((m for m in server.messages if m.topic.endswith("/inf/p")), None))
        Inference.model_validate_json(message.payload)
        assert message.qos == 0
        for frame in range(500):
            device.uplink.offer("inf", ("p",), {**body, "frame": frame})
        wait_until(lambda: device.uplink.ring_dropped - 1 + len(server.bodies("/inf/p")) - 1 == 500, what="every message sent or counted")


def test_no_more_than_the_bound_is_ever_in_flight(tmp_path, authority, make_identity):
    counts: list[int] = []

    def silent_broker(connection) -> None:
        """Accepts the connection, reads, and never acknowledges."""
        connection.recv(4096)
        connection.sendall(bytes([0x20, 3, 0, 0, 0]))
        data = b""
        while chunk := connection.recv(65_536):
            data += chunk
            counts.append(data.count(b"mooring/1/t0/d/cam-1/event"))

    with tls_broker(tmp_path, authority, silent_broker) as url:
        device = Device(make_identity(url), tmp_path, in_flight=5)
        for _ in range(100):
            device.store.add("event", (), {"type": "x"})
        with device:
            wait_until(lambda: counts and counts[-1] >= 4)
            device.uplink.wake()
            assert len(device.uplink._in_flight) == 5
        assert max(counts) <= 5


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("mqtts://broker", "broker", 8883, None),
        ("mqtts://[fd00::1]:1", "fd00::1", 1, None),
        ("wss://broker", "broker", 443, "/mqtt"),
        ("wss://broker:8884/x/y", "broker", 8884, "/x/y"),
    ],
)
def test_broker_addresses_are_understood(url, host, port, path):
    found = parse_endpoint(url)
    assert (found.host, found.port, found.path) == (host, port, path)


@pytest.mark.parametrize("url", ["mqtt://broker", "broker", "mqtts://", "mqtts://h:port", "mqtts://[::1", ""])
def test_other_addresses_are_refused_by_name(url):
    with pytest.raises(ConfigError, match="Wanted: mqtts"):
        parse_endpoint(url)


def test_pauses_double_up_to_a_cap_with_full_jitter():
    chance = random.Random(3)  # noqa: S311
    for failures, bound in ((0, 1.0), (1, 2.0), (5, 32.0), (50, 120.0), (10_000, 120.0)):
        pauses = [pause_after(failures, cap_s=120.0, chance=chance) for _ in range(300)]
        assert min(pauses) < bound * 0.1
        assert bound * 0.9 < max(pauses) <= bound


def test_refusals_name_the_brokers_answer():
    assert explain_refusal("Not authorized", broker="mqtts://b")[0] == "broker_refused"
    assert explain_refusal("Unsupported protocol version", broker="mqtts://b")[0] == "broker_not_mqtt5"


def test_each_telemetry_stream_has_its_own_schema():
    assert (schema_of("tel", ("perf",)), schema_of("inf", ("front",)), schema_of("status", ())) == ("tel-perf.1", "inf.1", "status.1")
