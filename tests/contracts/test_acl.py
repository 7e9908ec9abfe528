"""Who may read and write what, tried pair by pair on a real broker with MQTT 5: 0 differences from INTERFACES 1.4.

Writing is judged by the PUBACK's reason code and by what arrives; reading by what arrives, because mosquitto grants any subscription
and filters on delivery.
"""

import json
import os
import signal
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from simulators.identities import Authority
from waiting import wait_until

from fleet.broker import CALLER, CONTROLLER, INGEST, PROBE, BrokerOptions, Consumer, EmbeddedBroker, client_tls
from fleet.bus import ingest_subscriptions, new_share_name
from protocol.topics import STREAMS

CAM, OTHER, CONSUMER = "cam-1", "cam-2", "consumer.grafana"
ROLES = (CAM, OTHER, INGEST, CONTROLLER, CALLER, CONSUMER, PROBE)
#: One topic of every kind in the wire contract, and some outside it.
DEVICE_SUFFIXES = {
    "status": "status",
    "info": "info",
    "reported": "reported",
    "model": "model",
    "drift": "drift",
    "tel": "tel/perf",
    "sketch": "sketch/front/1",
    "event": "event",
    "job": "job/job-1",
    "audit": "audit",
    "inf": "inf/front",
    "log": "log",
    "rpc-reply": "rpc-reply",
}
TOPICS = (
    *(f"mooring/1/t0/d/{device}/{suffix}" for device in (CAM, OTHER) for suffix in DEVICE_SUFFIXES.values()),
    *(f"mooring/1/t0/c/{device}/{suffix}" for device in (CAM, OTHER) for suffix in ("desired", "job", "rpc/reload", "ack")),
    *(f"mooring/1/t0/f/{suffix}" for suffix in ("campaign/c1", "model/digits", "alarm", "audit")),
    *(f"mooring/1/other/{suffix}" for suffix in (f"d/{CAM}/event", f"c/{CAM}/desired", "f/alarm")),
    f"mooring/2/t0/d/{CAM}/event",
    f"elsewhere/{CAM}",
    "$SYS/broker/version",
)
CONTROLLER_READS = {"status", "info", "reported", "model", "drift", "rpc-reply"}


def may_write(role: str, topic: str) -> bool:
    """What the contract says, written down a second time and in another way than the ACL file."""
    root, _, rest = topic.partition("mooring/1/t0/")
    if root or not rest:
        return False
    kind, _, below = rest.partition("/")
    device, _, suffix = below.partition("/")
    match role:
        case "fleet.ingest":
            return kind == "c" and suffix == "ack"
        case "fleet.controller":
            return kind in {"c", "f"}
        case "fleet.caller":
            return kind == "c" and suffix == "rpc/reload"
        case "cam-1" | "cam-2":
            return kind == "d" and device == role
        case _:
            return False


def may_read(role: str, topic: str) -> bool:
    """The same for reading."""
    root, _, rest = topic.partition("mooring/1/t0/")
    if root or not rest:
        return False
    kind, _, below = rest.partition("/")
    device, _, suffix = below.partition("/")
    match role:
        case "fleet.ingest":
            return kind == "d"
        case "fleet.controller":
            return kind == "d" and suffix in CONTROLLER_READS
        case "fleet.caller":
            return kind == "d" and suffix == "rpc-reply"
        case "cam-1" | "cam-2":
            return kind == "c" and device == role
        case "consumer.grafana":
            return kind == "f" or (kind == "d" and suffix in {"tel/perf", "event"})
        case _:
            return False


@dataclass
class Client:
    """One MQTT 5 client that remembers every answer."""

    mqtt: mqtt.Client
    connected: threading.Event = field(default_factory=threading.Event)
    connect_reasons: list[str] = field(default_factory=list)
    disconnect_reasons: list[str] = field(default_factory=list)
    #: packet id → reason of the PUBACK
    acknowledged: dict[int, str] = field(default_factory=dict)
    #: (topic, payload, retain) in order of arrival
    received: list[tuple[str, str, bool]] = field(default_factory=list)
    subscribed: dict[int, list[str]] = field(default_factory=dict)
    session_present: bool = False

    def publish(self, topic: str, payload: str, *, retain: bool = False) -> str:
        """The PUBACK's reason in words."""
        mid = self.mqtt.publish(topic, payload, qos=1, retain=retain).mid
        wait_until(lambda: mid in self.acknowledged, what=f"a PUBACK for {topic}")
        return self.acknowledged[mid]

    def subscribe(self, *filters: str) -> None:
        """Asked for, whatever the broker says to it."""
        _, mid = self.mqtt.subscribe([(one, SubscribeOptions(qos=1)) for one in filters])
        wait_until(lambda: mid in self.subscribed, what="a SUBACK")


Connect = Callable[..., Client]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def broker(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[EmbeddedBroker]:
    options = BrokerOptions(
        folder=tmp_path_factory.mktemp("broker") / "broker",
        tls=authority.issue("localhost", is_server=True),
        probe=authority.issue(PROBE),
        port=0,
        websocket_port=0,
        consumers=(Consumer("grafana", ("tel/#", "event")),),
        program=mosquitto_path,
    )
    broker = EmbeddedBroker(options)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def connect(broker: EmbeddedBroker, authority: Authority) -> Iterator[Connect]:
    opened: list[mqtt.Client] = []

    def open_client(
        principal: str,
        *,
        client_id: str | None = None,
        session_s: int = 0,
        will: str | None = None,
        user: str | None = None,
        wait: bool = True,
        reconnect: bool = False,
    ) -> Client:
        made = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=principal if client_id is None else client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=reconnect,
        )
        client = Client(made)
        made.tls_set_context(client_tls(authority.issue(principal)))
        if user is not None:
            made.username_pw_set(user, "guess")
        if will is not None:
            made.will_set(will, "last words", qos=1, retain=True)

        def on_connect(_c, _u, flags, reason, _p) -> None:
            client.connect_reasons.append(str(reason))
            client.session_present = flags.session_present
            if not reason.is_failure:
                client.connected.set()

        def on_disconnect(_c, _u, _f, reason, _p) -> None:
            client.disconnect_reasons.append(str(reason))

        made.on_connect, made.on_disconnect = on_connect, on_disconnect
        made.on_publish = lambda _c, _u, mid, reason, _p: client.acknowledged.__setitem__(mid, str(reason))
        made.on_subscribe = lambda _c, _u, mid, reasons, _p: client.subscribed.__setitem__(mid, [str(one) for one in reasons])
        made.on_message = lambda _c, _u, message: client.received.append((message.topic, message.payload.decode(), message.retain))
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session_s
        made.connect("localhost", broker.port, 30, clean_start=session_s == 0, properties=properties)
        made.loop_start()
        opened.append(made)
        if wait:
            wait_until(client.connected.is_set, what=f"a connection as {principal}")
        return client

    yield open_client
    for made in opened:
        made.disconnect()
        made.loop_stop()


def settle(writer: Client, readers: list[Client], topics: dict[str, str]) -> None:
    """Everything published before has been delivered when a mark on a topic that each reader may read has arrived."""
    for reader, (principal, topic) in zip(readers, topics.items(), strict=True):
        mark = f"mark for {principal}"
        assert writer.publish(topic, mark) == "Success"
        wait_until(lambda reader=reader, mark=mark: any(one[1] == mark for one in reader.received), what=mark)


def test_every_role_on_every_topic_may_write_and_read_what_the_contract_says_and_nothing_else(connect: Connect):
    clients = {role: connect(role) for role in ROLES}
    for client in clients.values():
        client.subscribe("#", "+/#", "$SYS/#", "mooring/1/+/d/+/#", "mooring/1/+/c/+/#", "mooring/1/+/f/#")
    differences = []
    sent: dict[str, list[str]] = defaultdict(list)
    for role, topic in product(ROLES, TOPICS):
        reason = clients[role].publish(topic, json.dumps([role, topic]))
        is_accepted = reason in {"Success", "No matching subscribers"}
        assert is_accepted or reason == "Not authorized", reason
        if is_accepted != may_write(role, topic):
            differences.append(f"{role} wrote {topic}: {reason}")
        if is_accepted:
            sent[topic].append(role)
    marks = {
        CAM: f"mooring/1/t0/c/{CAM}/job",
        OTHER: f"mooring/1/t0/c/{OTHER}/job",
        CONSUMER: "mooring/1/t0/f/alarm",
    }
    settle(clients[CONTROLLER], [clients[role] for role in marks], marks)
    settle(
        clients[CAM],
        [clients[INGEST], clients[CONTROLLER], clients[CALLER]],
        {INGEST: f"mooring/1/t0/d/{CAM}/status", CONTROLLER: f"mooring/1/t0/d/{CAM}/info", CALLER: f"mooring/1/t0/d/{CAM}/rpc-reply"},
    )
    for role, client in clients.items():
        got = {topic for topic, payload, _ in client.received if payload.startswith("[")}
        foreign = {topic for topic, payload, _ in client.received if not payload.startswith(("[", "mark"))}
        wanted = {topic for topic in sent if may_read(role, topic)}
        differences += [f"{role} did not get {topic}" for topic in wanted - got]
        differences += [f"{role} got {topic}" for topic in got - wanted]
        differences += [f"{role} got {topic} of the broker" for topic in foreign]
    assert differences == []
    assert len(ROLES) * len(TOPICS) == 7 * 44


def test_a_hole_in_the_rules_would_be_seen(connect: Connect, broker: EmbeddedBroker):
    rules = broker.options.folder / "acl"
    intact = rules.read_text()
    foreign = f"mooring/1/t0/d/{CAM}/event"
    try:
        rules.write_text(f"{intact}\nuser {OTHER}\ntopic readwrite {foreign}\n")
        os.kill(broker.pid, signal.SIGHUP)
        thief = connect(OTHER)
        wait_until(lambda: thief.publish(foreign, "x") != "Not authorized", what="the hole")
        thief.subscribe(foreign)
        connect(CAM).publish(foreign, "private")
        wait_until(lambda: any(one[1] == "private" for one in thief.received), what="the leak")
    finally:
        rules.write_text(intact)
        broker.reload()
    closed = connect(OTHER)
    wait_until(lambda: closed.publish(foreign, "x") == "Not authorized", what="the closed hole")


def test_every_declared_stream_is_among_the_topics_tried():
    assert set(DEVICE_SUFFIXES) == set(STREAMS)


def test_a_device_that_subscribes_like_ingest_gets_nothing_and_takes_nothing_away(connect: Connect):
    thief, device, ingest = connect(OTHER), connect(CAM), connect(INGEST)
    thief.subscribe("$share/ingest/mooring/1/+/d/+/#", "$share/#", "$share/+/mooring/1/+/d/+/#", "$share/mine/#")
    (wanted,) = ingest_subscriptions(share=new_share_name())
    ingest.subscribe(wanted.topic_filter)
    for number in range(50):
        device.publish(f"mooring/1/t0/d/{CAM}/event", str(number))
    wait_until(lambda: len(ingest.received) == 50, what="all that the device said")
    assert [one for one in thief.received if one[0].startswith(f"mooring/1/t0/d/{CAM}")] == []


def test_a_retained_message_of_another_is_not_given_to_whoever_asks_later(connect: Connect):
    device = connect(CAM)
    assert device.publish(f"mooring/1/t0/d/{CAM}/status", "retained", retain=True) in {"Success", "No matching subscribers"}
    controller = connect(CONTROLLER)
    controller.publish(f"mooring/1/t0/c/{CAM}/desired", "secret", retain=True)
    other = connect(OTHER)
    other.subscribe("#", f"mooring/1/t0/d/{CAM}/status", f"mooring/1/t0/c/{CAM}/desired", f"mooring/1/t0/c/{OTHER}/#")
    controller.publish(f"mooring/1/t0/c/{OTHER}/job", "mark")
    wait_until(lambda: other.received, what="the mark")
    assert {one[1] for one in other.received} == {"mark"}
    device.subscribe(f"mooring/1/t0/c/{CAM}/desired")
    wait_until(lambda: (f"mooring/1/t0/c/{CAM}/desired", "secret", True) in device.received, what="its own")


def test_a_will_on_a_foreign_topic_is_not_published(connect: Connect, broker: EmbeddedBroker, authority: Authority):
    ingest = connect(INGEST)
    ingest.subscribe("mooring/1/+/d/+/#")
    device = connect(CAM, will=f"mooring/1/t0/d/{OTHER}/status", wait=False)
    wait_until(lambda: device.connected.is_set() or device.connect_reasons or device.disconnect_reasons, what="an answer")
    break_link(device)
    mark = connect(OTHER)
    mark.publish(f"mooring/1/t0/d/{OTHER}/event", "mark")
    wait_until(lambda: any(one[1] == "mark" for one in ingest.received), what="the mark")
    assert [one for one in ingest.received if one[1] == "last words"] == []


def test_a_will_on_its_own_topic_is_published_when_the_link_breaks(connect: Connect):
    ingest = connect(INGEST)
    ingest.subscribe("mooring/1/+/d/+/#")
    device = connect(CAM, will=f"mooring/1/t0/d/{CAM}/status")
    break_link(device)
    wait_until(lambda: any(one[1] == "last words" for one in ingest.received), what="the Will")


def test_a_foreign_client_id_changes_nothing_the_certificate_decides(connect: Connect):
    victim = connect(OTHER)
    thief = connect(CAM, client_id=OTHER, user=OTHER)
    assert thief.publish(f"mooring/1/t0/d/{OTHER}/event", "x") == "Not authorized"
    assert thief.publish(f"mooring/1/t0/d/{CAM}/event", "x") in {"Success", "No matching subscribers"}
    assert victim.publish(f"mooring/1/t0/d/{OTHER}/event", "x") in {"Success", "No matching subscribers"}
    assert victim.disconnect_reasons == []


def test_nobody_resumes_the_session_of_another(connect: Connect):
    owner = connect(OTHER, session_s=3600)
    owner.subscribe(f"mooring/1/t0/c/{OTHER}/#")
    owner.mqtt.disconnect()
    wait_until(lambda: owner.disconnect_reasons, what="the owner's leave")
    connect(CONTROLLER).publish(f"mooring/1/t0/c/{OTHER}/job", "for its owner")
    thief = connect(CAM, client_id=OTHER, user=OTHER, session_s=3600)
    assert not thief.session_present
    back = connect(OTHER, session_s=3600)
    assert back.session_present
    wait_until(lambda: back.received, what="what was queued")
    assert (back.received[0][1], thief.received) == ("for its owner", [])


def test_the_same_identity_twice_means_the_older_connection_ends(connect: Connect):
    first = connect(CAM)
    connect(CAM)
    wait_until(lambda: first.disconnect_reasons, what="the takeover")


@pytest.mark.parametrize("listener", ["port", "websocket_port"])
def test_no_listener_talks_without_tls_or_without_a_certificate(broker: EmbeddedBroker, authority: Authority, listener: str):
    port = getattr(broker, listener)
    connect_packet = bytes.fromhex("101000044d5154540502003c00000363616d")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
        plain.sendall(connect_packet)
        assert is_cut(plain)
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        try:
            with context.wrap_socket(raw, server_hostname="localhost") as bare:
                bare.sendall(connect_packet)
                assert is_cut(bare)
        except (ssl.SSLError, ConnectionError):
            pass


def is_cut(link: socket.socket) -> bool:
    """Whether the other side closes without an MQTT answer."""
    try:
        return link.recv(100)[:1] != b"\x20"
    except (ssl.SSLError, ConnectionError):
        return True


def break_link(client: Client) -> None:
    """End the TCP connection without an MQTT DISCONNECT."""
    link = client.mqtt.socket()
    if link is not None:
        link.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: client.disconnect_reasons, what="the break")
