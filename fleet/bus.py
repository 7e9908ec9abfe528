"""MQTT 5 in and out of the server: one connection that comes back by itself, a bounded inbox, acknowledgement only when told.

Received QoS 1 messages are acknowledged by `acknowledge`, after the caller's commit; until then the broker keeps them, and Receive
Maximum bounds how many wait here. What is published while there is no connection waits in a bounded queue; nothing may rely on it.
"""

import contextlib
import logging
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from protocol.errors import ConfigError, InvalidError, UnavailableError
from protocol.mqtt import Client
from protocol.topics import DEFAULT_PREFIX, MAX_PACKET_BYTES, STATE_STREAMS, WIRE_MAJOR

log = logging.getLogger("mooring.bus")

#: Unacknowledged QoS 1 messages that the broker may send us.
RECEIVE_MAXIMUM = 1000
#: How long the broker keeps what an absent ingest did not get, in seconds. Longer absences are covered by the devices' outboxes.
INGEST_SESSION_S = 3600
#: QoS 0 messages (live predictions) beyond this are dropped and counted; QoS 1 is bounded by Receive Maximum.
INBOX_LENGTH = 4 * RECEIVE_MAXIMUM
#: Messages to send that may wait for a connection; later ones are dropped and counted, since devices and ticks ask again.
OUTBOX_LENGTH = 10_000
KEEP_ALIVE_S = 30
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.2, 15.0
#: Answers kept for callers of `publish_and_wait` that have not looked yet.
_ANSWERS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as it came."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int
    #: Which connection it came by: a packet id means nothing on the next one.
    connection: int


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter and the highest QoS wanted."""

    topic_filter: str
    qos: int = 1


def ingest_subscriptions(prefix: str = DEFAULT_PREFIX, *, share: str = "ingest") -> tuple[Subscription, ...]:
    """All that devices say, shared among all ingest workers of the share's name."""
    return (Subscription(f"$share/{share}/{prefix}/{WIRE_MAJOR}/+/d/+/#"),)


def new_share_name() -> str:
    """A name that no device can guess, for a broker that lets anybody join a share, as mosquitto does with an ACL file.

    It withholds what the joiner may not read, yet deals it a part, which then reaches nobody.
    """
    return f"ingest-{secrets.token_hex(16)}"


def controller_subscriptions(prefix: str = DEFAULT_PREFIX) -> tuple[Subscription, ...]:
    """The retained states of all devices (a shared subscription gets no retained messages) and replies."""
    return tuple(Subscription(f"{prefix}/{WIRE_MAJOR}/+/d/+/{stream}") for stream in (*STATE_STREAMS, "rpc-reply"))


@dataclass(frozen=True, slots=True)
class BusOptions:
    """How one principal of the server is connected."""

    #: mqtts://host:port or wss://host:port/path
    url: str
    #: Common name of the certificate: user name and client id.
    principal: str
    tls: ssl.SSLContext
    subscriptions: tuple[Subscription, ...] = ()
    #: Seconds the broker keeps the session (queue, subscriptions) while we are away; 0: a new session each time.
    session_s: int = 0
    receive_maximum: int = RECEIVE_MAXIMUM


class Inbox:
    """Messages received and not yet worked on, bounded."""

    def __init__(self, *, length: int = INBOX_LENGTH) -> None:
        self._length = length
        self._queue: deque[Incoming] = deque()
        self._changed = threading.Condition()
        #: How many messages the taker waits for; it is not woken for each of them.
        self._wanted = 1
        #: QoS 0 messages that found the inbox full.
        self.dropped = 0

    def put(self, message: Incoming) -> None:
        """Keep the message; a QoS 0 one only when there is room. QoS 1 always: the broker holds back by Receive Maximum."""
        with self._changed:
            if message.qos == 0 and len(self._queue) >= self._length:
                self.dropped += 1
                return
            self._queue.append(message)
            if len(self._queue) in {1, self._wanted}:
                self._changed.notify()

    def take(self, limit: int, *, wait_s: float, gather_s: float) -> list[Incoming]:
        """Up to `limit` messages, oldest first: the first within `wait_s`, those that follow it within `gather_s`; maybe none."""
        with self._changed:
            self._wanted = limit
            self._changed.wait_for(lambda: self._queue, timeout=wait_s)
            if self._queue and gather_s > 0:
                deadline = time.monotonic() + gather_s
                while len(self._queue) < limit and (left := deadline - time.monotonic()) > 0:
                    self._changed.wait(left)
            return [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]

    def put_back(self, messages: Iterable[Incoming]) -> None:
        """Keep what was taken and could not be worked on, in front of all others."""
        with self._changed:
            self._queue.extendleft(reversed(list(messages)))
            self._changed.notify()

    def forget(self, connection: int) -> None:
        """Drop unread QoS 1 messages of connections before this one: the broker sends them again."""
        with self._changed:
            self._queue = deque(one for one in self._queue if one.qos == 0 or one.connection >= connection)

    def __len__(self) -> int:
        return len(self._queue)


class Bus:
    """One connection to the broker under one principal, kept up until `stop`."""

    def __init__(self, options: BusOptions) -> None:
        """Raises: ConfigError when the URL is not one of mqtts:// and wss://."""
        self.options = options
        self.inbox = Inbox()
        #: Called after each connect, on the client's own thread.
        self.on_connected: Callable[[], None] = _nothing
        #: Whether the broker still had our session, with what it kept for us, at the last connect.
        self.session_present = False
        #: The broker's last refusal in words, empty when it accepted us.
        self.refusal = ""
        #: Publications that the broker refused or that found no room.
        self.refused = 0
        self._connection = 0
        self._is_told_away = False
        self._connected = threading.Event()
        self._answers: dict[int, ReasonCode] = {}
        self._host, self._port, transport, path = _address(options.url)
        self._client = self._make_client(transport, path)

    def _make_client(self, transport: Any, path: str) -> mqtt.Client:
        client = Client(self.options.principal, on_failed=self._failed, transport=transport)
        client.tls_set_context(self.options.tls)
        if transport == "websockets":
            client.ws_set_options(path=path)
        client.reconnect_delay_set(min_delay=RECONNECT_MIN_S, max_delay=RECONNECT_MAX_S)  # type: ignore[arg-type]  # paho declares int, takes seconds as float
        client.max_inflight_messages_set(500)
        client.max_queued_messages_set(OUTBOX_LENGTH)
        client.on_connect = self._connect_answered
        client.on_connect_fail = self._not_reached
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_publish = self._published
        return client

    def start(self) -> None:
        """Begin to connect, in a thread of its own; returns at once."""
        session_s = self.options.session_s
        properties = _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=session_s,
            ReceiveMaximum=self.options.receive_maximum,
            MaximumPacketSize=MAX_PACKET_BYTES + 4096,
        )
        self._client.connect_async(self._host, self._port, KEEP_ALIVE_S, clean_start=session_s == 0, properties=properties)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect; the broker keeps the session as long as the options say."""
        self._connected.clear()
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def place(self) -> str:
        """Host and port of the broker, without what else an address may hold."""
        return f"{self._host}:{self._port}"

    def wait_connected(self, timeout_s: float) -> bool:
        """Whether there is a connection, with its subscriptions, within `timeout_s` (system time)."""
        return self._connected.wait(timeout_s)

    @property
    def is_connected(self) -> bool:
        """Whether the broker accepted us and has not gone since."""
        return self._connected.is_set()

    def acknowledge(self, messages: Iterable[Incoming]) -> None:
        """Tell the broker that the messages are safe with us; those of an earlier connection come again and are skipped."""
        for message in messages:
            if message.qos > 0 and message.connection == self._connection:
                self._client.ack(message.mid, message.qos)

    def publish(
        self, topic: str, body: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None, schema: str = ""
    ) -> bool:
        """Send a message, now or when there is a connection again; returns False when the queue for that is full."""
        return self._publish(topic, body, qos=qos, retain=retain, expiry_s=expiry_s, schema=schema) is not None

    def publish_and_wait(
        self, topic: str, body: bytes, *, retain: bool = False, expiry_s: int | None = None, schema: str = "", timeout_s: float = 10.0
    ) -> None:
        """Send a message and wait for the broker's answer. Raises: UnavailableError with the broker's reason, or when none came."""
        is_up = self.wait_connected(timeout_s)
        sent = self._publish(topic, body, qos=1, retain=retain, expiry_s=expiry_s, schema=schema) if is_up else None
        if sent is not None:
            with contextlib.suppress(RuntimeError):  # paho's word for: the connection was lost in between
                sent.wait_for_publish(timeout_s)
        answer = self._answers.pop(sent.mid, None) if sent is not None else None
        if answer is None:
            raise UnavailableError(f"The broker did not acknowledge {topic} within {timeout_s:g} s.")
        if answer.is_failure:
            raise UnavailableError(f"The broker refused {topic}: {answer}.", code="publish-refused")

    def _publish(
        self, topic: str, body: bytes, *, qos: int, retain: bool, expiry_s: int | None, schema: str
    ) -> mqtt.MQTTMessageInfo | None:
        if len(body) > MAX_PACKET_BYTES:
            raise InvalidError(f"{len(body)} bytes for {topic}; wanted at most {MAX_PACKET_BYTES}.", code="too-large")
        properties = _properties(PacketTypes.PUBLISH, ContentType="application/json", PayloadFormatIndicator=1)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        if schema:
            properties.UserProperty = [("schema", schema)]
        info = self._client.publish(topic, body, qos=qos, retain=retain, properties=properties)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self.refused += 1
            return None
        return info

    # --- called by the client's own thread ---

    def _connect_answered(
        self, client: mqtt.Client, _userdata: object, flags: mqtt.ConnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            self.refusal = str(reason)
            log.error("broker_refused principal=%s url=%s reason=%s", self.options.principal, self.options.url, reason)
            return
        self.refusal = ""
        self.session_present = bool(flags.session_present)
        self._connection += 1
        self.inbox.forget(self._connection)
        wanted = [(one.topic_filter, SubscribeOptions(qos=one.qos)) for one in self.options.subscriptions]
        if wanted:
            client.subscribe(wanted)
        else:
            self._ready()

    def _subscribed(self, _client: mqtt.Client, _userdata: object, _mid: int, reasons: list[ReasonCode], _properties: object) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self.refusal = f"subscription refused: {', '.join(refused)}"
            log.error("broker_refused principal=%s url=%s reason=%s", self.options.principal, self.options.url, self.refusal)
            return
        self._ready()

    def _not_reached(self, _client: mqtt.Client, _userdata: object) -> None:
        self.refusal = ""
        if not self._is_told_away:  # once, not at every attempt
            self._is_told_away = True
            log.warning("broker_unreachable principal=%s place=%s", self.options.principal, self.place)

    def _ready(self) -> None:
        self._is_told_away = False
        self._connected.set()
        log.info("broker_connected principal=%s url=%s", self.options.principal, self.options.url)
        self.on_connected()

    def _disconnected(self, _client: mqtt.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
        if self._connected.is_set():
            log.warning("broker_lost principal=%s reason=%s", self.options.principal, reason)
        self._lose()

    def _failed(self, error: Exception) -> None:
        log.error("broker_lost principal=%s reason=%s: %s", self.options.principal, type(error).__name__, error)
        self._lose()

    def _lose(self) -> None:
        self._connected.clear()
        self._connection += 1  # nothing is acknowledged any more that came by the lost one, neither while the client makes a new one

    def _received(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "\ufffd"  # no broker passes it on; kept as a dead letter, not as an exception of this thread
        self.inbox.put(Incoming(topic, bytes(message.payload), message.qos, message.retain, message.mid, self._connection))

    def _published(self, _client: mqtt.Client, _userdata: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        if reason.is_failure:
            self.refused += 1
            log.error("publish_refused principal=%s reason=%s", self.options.principal, reason)
        self._answers[mid] = reason
        while len(self._answers) > _ANSWERS_KEPT:
            del self._answers[next(iter(self._answers))]


def _nothing() -> None:
    pass


def _address(url: str) -> tuple[str, int, str, str]:
    parts = urlsplit(url)
    known = {"mqtts": ("tcp", 8883), "wss": ("websockets", 443)}
    if parts.scheme not in known or not parts.hostname:
        raise ConfigError(
            f"broker.url = {url!r} is not the address of a broker.", hint="Wanted: mqtts://host:port or wss://host:port/path."
        )
    transport, port = known[parts.scheme]
    return parts.hostname, parts.port or port, transport, parts.path or "/mqtt"


def _properties(packet: int, **values: Any) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    for name, value in values.items():
        setattr(properties, name, value)
    return properties
