"""Outbox to broker and back, over MQTT 5: one thread, one connection at a time, nothing trusted to the library's memory.

A row leaves the outbox as INTERFACES 1.6 says and no sooner. Every connection is a new client object: what was in flight is in the
outbox still and is sent again. The library's own thread only hands over what happened; this thread acts on it. Keep-alive and
back-off go by system time, resending by the agent's clock.
"""

import json
import logging
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from paho.mqtt import client as mqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import ValidationError

from agent.conditions import Conditions
from agent.config import BrokerConfig
from agent.database.outbox import SKETCH, OutboxRow
from agent.identity import Identity
from agent.store import Store
from agent.traffic import Meter, Traffic
from protocol.clock import Clock, to_unix_ms
from protocol.errors import ConfigError, ConflictError, DeviceError, InvalidError, MooringError, TransferError
from protocol.messages import Ack, Desired, Presence, RpcReply, RpcRequest, Status
from protocol.mqtt import Client
from protocol.topics import MAX_PACKET_BYTES, STREAMS, StreamRule, command_topic, device_topic, parse

log = logging.getLogger("mooring.uplink")

#: INTERFACES 1.6 and 1.2, in seconds.
SESSION_EXPIRY_S = 86_400
WILL_DELAY_S = 30
RESEND_MAX_S = 3600.0
#: Seconds of system time for DNS, TCP, proxy and TLS together, and then for the CONNACK; slow links need many.
CONNECT_TIMEOUT_S = 20.0
CONNACK_TIMEOUT_S = 30.0
#: A connection on which the broker acknowledged nothing for so long, in seconds of system time, although something waits for that, is
#: given up for another one. A packet of the largest size at 10 kbit/s takes two minutes.
PUBACK_TIMEOUT_S = 300.0
#: First pause after a failure, doubling up to the configured cap; full jitter below it.
BACKOFF_FIRST_S = 1.0
#: Pause after the broker answered that it cannot take more now.
QUOTA_PAUSE_S = 15.0
#: Class `ring` messages given to the library and not yet written to the socket.
RING_IN_FLIGHT = 64
#: The loop looks at the outbox this often although nobody woke it, in seconds of system time.
IDLE_S = 5.0
#: How often and how long, in seconds of system time, the answer to the last word is waited for.
GOODBYE_ROUNDS, GOODBYE_WAIT_S = 10, 0.2
#: Commands that the broker may send ahead of our answers.
RECEIVE_MAXIMUM = 100
#: PUBACK reasons after which sending the stream again cannot help (MQTT 5, table 2-6).
_STOP_STREAM = {0x87: "Not authorized", 0x90: "Topic Name invalid", 0x99: "Payload format invalid"}
_SESSION_TAKEN_OVER = 0x8E
_DEFAULT_PORTS = {"mqtts": 8883, "wss": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a broker listens."""

    url: str
    host: str
    port: int
    #: Path of the WebSocket; None: MQTT over TLS directly.
    path: str | None


#: Arguments to result.
Method = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Inbox:
    """What the service does with messages from the server; called on the uplink's thread, returns before the broker is told."""

    desired: Callable[[Desired], None]
    job: Callable[[bytes], None]
    #: The methods that may be called; arguments to result.
    rpc: Mapping[str, Method] = field(default_factory=dict)
    #: Those that take a while: called on a thread of their own, one at a time.
    slow: Mapping[str, Method] = field(default_factory=dict)


def _refuse_as_busy(_args: dict[str, Any]) -> dict[str, Any]:
    raise ConflictError("Another request is being answered.", code="busy", hint="Ask again in a few seconds.")


def parse_endpoint(url: str) -> Endpoint:
    """The parts of mqtts://host[:port] or wss://host[:port]/path. Raises: ConfigError naming the URL."""
    wrong = ConfigError(f"Broker address {url!r} is not usable.", hint="Wanted: mqtts://host[:8883] or wss://host[:443]/path.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise wrong
    return Endpoint(url, host, port or _DEFAULT_PORTS[parts.scheme], (parts.path or "/mqtt") if parts.scheme == "wss" else None)


def pause_after(failures: int, *, cap_s: float, chance: random.Random) -> float:
    """Seconds to wait after that many failures in a row: full jitter under a doubling, capped bound."""
    return chance.uniform(0.0, min(cap_s, BACKOFF_FIRST_S * 2.0 ** min(failures, 20)))


def explain_refusal(reason: str, *, broker: str) -> tuple[str, str]:
    """The condition and the text that a refusing CONNACK means."""
    if "protocol version" in reason.lower():
        return "broker_not_mqtt5", f"{broker} answered {reason!r} to an MQTT 5 connection; wanted a broker that speaks MQTT 5."
    return "broker_refused", f"{broker} answered {reason!r} to the connection."


def explain_failure(error: BaseException, *, broker: str) -> str:
    """Why no connection came about, with what to check when the certificate is to blame."""
    if isinstance(error, ssl.SSLCertVerificationError):
        clock = " Compare the system clock with the real time." if error.verify_code in {9, 10} else ""
        return f"The certificate of {broker} was refused: {error.verify_message}.{clock}"
    return f"{broker} cannot be reached: {error or type(error).__name__}."


class _SessionOverError(Exception):
    """The connection is gone or never came about; `code` names the condition."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Uplink:
    """The thread between outbox and broker. `start`, `stop`, `wake` and `offer` may be called from any thread."""

    def __init__(
        self,
        *,
        store: Store,
        identity: Identity,
        settings: BrokerConfig,
        proxy: str | None,
        resend_s: float,
        ring_rows: int,
        conditions: Conditions,
        clock: Clock,
        inbox: Inbox,
        traffic: Traffic | None = None,
        held: Callable[[], Collection[str]] = tuple,
        chance: random.Random | None = None,
    ) -> None:
        self._store, self._identity, self._settings, self._proxy = store, identity, settings, proxy
        self._conditions, self._clock, self._inbox = conditions, clock, inbox
        self._resend_first_s = resend_s
        self._traffic = traffic or Traffic()
        self._meter: Meter | None = None
        #: Streams that wait in the outbox although they could be sent.
        self._held = held
        self._chance = chance or random.Random()  # noqa: S311 - jitter
        self._is_answering = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="uplink")
        self._stop, self._wake = threading.Event(), threading.Event()
        self._happened: deque[Callable[[], None]] = deque()
        self._ring: deque[tuple[str, tuple[str, ...], dict[str, Any]]] = deque()
        self._ring_rows, self._ring_lock = ring_rows, threading.Lock()
        #: Class `ring` messages lost since the start: no connection, or too many at once.
        self.ring_dropped = 0
        #: Moment of the last PUBACK, for `status`; None before the first.
        self.last_sent_ms: int | None = None
        self._told_down = ("", "")
        self._reset()

    def start(self) -> None:
        """Connect, and stay connected until `stop`."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """Say goodbye (so that the Will is not sent), then end. Rows not acknowledged stay in the outbox."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """There are new rows in the outbox."""
        self._wake.set()

    @property
    def is_connected(self) -> bool:
        """Whether the broker accepted the current connection."""
        return self._is_connected

    @property
    def is_running(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def offer(self, stream: str, levels: tuple[str, ...], body: dict[str, Any]) -> None:
        """Send a message of class `ring` if there is a connection and room; the oldest waiting one goes first, counted."""
        with self._ring_lock:
            if not self._is_connected:
                self.ring_dropped += 1
                return
            self._ring.append((stream, levels, body))
            if len(self._ring) > self._ring_rows:
                self._ring.popleft()
                self.ring_dropped += 1
        self._wake.set()

    # --- the thread ---

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            reached = False
            try:
                reached = self._session(failures)
            except Exception:  # the outermost loop of this thread: the agent goes on, the next attempt may work
                log.exception("uplink.failed")
            failures = 0 if reached else failures + 1
            self._stop.wait(pause_after(failures, cap_s=self._settings.reconnect_max_s, chance=self._chance))

    def _session(self, failures: int) -> bool:
        """One connection from its start to its end; returns whether the broker accepted it."""
        self._reset()
        urls = [self._settings.url] if self._settings.url else self._identity.enrollment.broker.urls
        accepted = said_goodbye = False
        client = None
        try:
            endpoint = parse_endpoint(urls[failures % len(urls)])
            client = self._connect(endpoint)
            self._await_connack(endpoint)
            accepted = True
            self._meter_connection(client)
            self._begin(client, endpoint)
            self._serve(client, endpoint)
            said_goodbye = self._say_goodbye(client)
        except (_SessionOverError, MooringError) as error:
            self._tell_down(error.code if isinstance(error, _SessionOverError) else "broker_unreachable", str(error))
        finally:
            self._end(client, is_will_due=accepted and not said_goodbye)
        return accepted

    def _tell_down(self, code: str, text: str) -> None:
        level = logging.DEBUG if (code, text) == self._told_down else logging.WARNING  # once, not at every attempt
        self._told_down = (code, text)
        log.log(level, "uplink.down reason=%s text=%s", code, text)
        self._conditions.set(code, text)

    def _reset(self) -> None:
        self._is_connected = False
        self._connack: ReasonCode | None = None
        self._limit = self._settings.in_flight
        self._lost: str | None = None
        self._in_flight: dict[int, OutboxRow] = {}
        self._answered_at = time.monotonic()
        self._acknowledged: list[int] = []
        self._ring_out: set[int] = set()
        self._refused_streams: set[str] = set()
        self._paused_until = 0.0
        self._resend_s = self._resend_first_s
        self._resend_at = 0.0
        self._happened.clear()

    # --- connecting ---

    def _connect(self, endpoint: Endpoint) -> mqtt.Client:
        client = _new_client(endpoint, self._identity, self._proxy, on_failed=lambda error: self._tell(partial(self._on_failed, error)))
        client.on_connect = lambda _c, _u, _flags, reason, properties: self._tell(partial(self._on_connack, reason, properties))
        client.on_disconnect = lambda _c, _u, flags, reason, _p: self._tell(
            partial(self._on_disconnect, reason, is_from_broker=flags.is_disconnect_packet_from_server)
        )
        client.on_publish = lambda _c, _u, mid, reason, _p: self._tell(partial(self._on_puback, mid, reason))
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: self._tell(partial(self._on_suback, reasons))
        client.on_message = lambda _c, _u, message: self._tell(partial(self._on_message, client, message))
        client.max_inflight_messages_set(0)  # the bound is ours, in `_fill`
        topic, payload = self._announce()
        client.will_set(topic, payload, qos=1, retain=True, properties=_will_properties())
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        try:
            client.connect(endpoint.host, endpoint.port, self._settings.keep_alive_s, clean_start=False, properties=properties)
        except (OSError, ValueError, mqtt.WebsocketConnectionError) as error:
            raise _SessionOverError("broker_unreachable", explain_failure(error, broker=endpoint.url)) from None
        client.loop_start()
        return client

    def _meter_connection(self, client: mqtt.Client) -> None:
        sock = client.socket()
        if sock is not None and sock.fileno() >= 0:
            self._meter = Meter(self._traffic, sock.fileno())

    def _announce(self) -> tuple[str, bytes]:
        """Put `online` into the outbox, and return topic and body of the Will, which holds the number after it."""
        topic = self._topic("status", ())
        will = self._store.envelope()
        try:
            self._store.add("status", (), {"presence": Presence.ONLINE.value})
            will["seq"] = will["floor"] = self._store.reserve_seq("status")
        except DeviceError:  # a full disk must not keep the outbox from draining; `Store.trouble` tells
            log.debug("uplink.no-will-seq")
        return topic, Status.model_validate({**will, "presence": Presence.OFFLINE}).model_dump_json(exclude_none=True).encode()

    def _await_connack(self, endpoint: Endpoint) -> None:
        deadline = time.monotonic() + CONNACK_TIMEOUT_S  # new rows wake this thread too
        while self._connack is None and self._lost is None and not self._stop.is_set():
            if not self._wake.wait(deadline - time.monotonic()):
                raise _SessionOverError("broker_unreachable", f"{endpoint.url} did not answer the connection in {CONNACK_TIMEOUT_S:g} s.")
            self._wake.clear()
            self._drain()
        if self._connack is not None and self._connack.is_failure:
            raise _SessionOverError(*explain_refusal(str(self._connack), broker=endpoint.url))
        if self._connack is None:
            raise _SessionOverError(
                "broker_unreachable",
                f"{endpoint.url} closed the connection before it answered ({self._lost or 'stopping'}); a broker that does not accept "
                "this device's certificate or does not speak MQTT 5 does that.",
            )

    def _begin(self, client: mqtt.Client, endpoint: Endpoint) -> None:
        """What follows every connect: listen, and send again what nobody confirmed."""
        for code in ("broker_unreachable", "broker_refused", "broker_not_mqtt5"):
            self._conditions.clear(code)
        for stream in STREAMS:
            self._conditions.clear("publish_refused", subject=stream)
        enrollment = self._identity.enrollment
        client.subscribe(
            command_topic(self._identity.tenant, self._identity.device, "x", prefix=enrollment.broker.prefix)[:-1] + "#", qos=1
        )
        with suppress(DeviceError):
            self._store.requeue_stored()
            self._store.republish_states()
        self._resend_at = self._clock.monotonic() + self._resend_s
        with self._ring_lock:
            self._is_connected = True
        self._told_down = ("", "")
        log.info("uplink.connected broker=%s", endpoint.url)

    def _end(self, client: mqtt.Client | None, *, is_will_due: bool) -> None:
        with self._ring_lock:
            self._is_connected = False
            self.ring_dropped += len(self._ring)
            self._ring.clear()
        if self._meter is not None:
            self._meter.close()
            self._meter = None
        if client is not None:
            reason = ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message") if is_will_due else None
            client.disconnect(reason)
            client.loop_stop()

    # --- connected ---

    def _serve(self, client: mqtt.Client, endpoint: Endpoint) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            self._drain()
            self._settle_acknowledged()
            if self._meter is not None:
                self._meter.look()
            if self._lost is not None:
                raise _SessionOverError("broker_unreachable", f"The connection to {endpoint.url} was lost: {self._lost}.")
            self._check_answers(endpoint)
            self._resend_when_due()
            self._fill(client)
            self._send_ring(client)
            now = self._clock.monotonic()
            due_s = min((at - now for at in (self._resend_at, self._paused_until) if at > now), default=0.0)
            self._wake.wait(min(IDLE_S, due_s / self._clock.speed + 0.01))

    def _check_answers(self, endpoint: Endpoint) -> None:
        if not self._in_flight:
            self._answered_at = time.monotonic()
        elif time.monotonic() - self._answered_at > PUBACK_TIMEOUT_S:
            count = len(self._in_flight)
            text = f"{endpoint.url} is connected and acknowledged none of {count} messages in {PUBACK_TIMEOUT_S:g} s."
            raise _SessionOverError("broker_unreachable", text)

    def _fill(self, client: mqtt.Client) -> None:
        """Publish from the outbox until the bound of unacknowledged messages is reached."""
        room = self._limit - len(self._in_flight)
        if room <= 0 or self._clock.monotonic() < self._paused_until:
            return
        on_their_way = {row.id for row in self._in_flight.values()}
        for row in self._store.next_batch(room, skip=on_their_way, without={*self._refused_streams, *self._held()}):
            rule = STREAMS[row.stream]
            properties = _message_properties(row.stream, row.levels, rule, seq=row.seq, boot=self._store.boot_id)
            info = client.publish(self._topic(row.stream, row.levels), row.payload, rule.qos, rule.retain, properties)
            if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                break  # its packet id is in use still, after 65,535 others: the row goes with the next one
            self._in_flight[info.mid] = row
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break  # the disconnect is on its way to us

    def _send_ring(self, client: mqtt.Client) -> None:
        while len(self._ring_out) < RING_IN_FLIGHT:
            with self._ring_lock:
                if not self._ring:
                    return
                stream, levels, body = self._ring.popleft()
            if stream in self._refused_streams:
                continue
            rule = STREAMS[stream]
            properties = _message_properties(stream, levels, rule, seq=None, boot=self._store.boot_id)
            payload = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            self._ring_out.add(client.publish(self._topic(stream, levels), payload, rule.qos, rule.retain, properties).mid)

    def _settle_acknowledged(self) -> None:
        if self._acknowledged:
            rows, self._acknowledged = self._acknowledged, []
            with suppress(DeviceError):
                self._store.mark_sent(*rows)

    def _resend_when_due(self) -> None:
        """A broker may drop while connected: what the server has not confirmed goes again, ever more rarely (INTERFACES 1.6)."""
        if self._clock.monotonic() < self._resend_at:
            return
        with suppress(DeviceError):
            if self._store.requeue_stored():
                self._resend_s = min(self._resend_s * 2, RESEND_MAX_S)
        self._resend_at = self._clock.monotonic() + self._resend_s

    def _say_goodbye(self, client: mqtt.Client) -> bool:
        """Leave on purpose: the last word is `offline`. Returns whether the broker has it; if not, the Will says it."""
        self._limit += 1  # for this one word, whatever else is on its way
        try:
            seq = self._store.add("status", (), {"presence": Presence.OFFLINE.value})
        except DeviceError:
            return False
        self._paused_until = 0.0
        self._fill(client)
        for _ in range(GOODBYE_ROUNDS):
            if not any((row.stream, row.seq) == ("status", seq) for row in self._in_flight.values()):
                break
            self._wake.wait(GOODBYE_WAIT_S)
            self._wake.clear()
            self._drain()
        self._settle_acknowledged()
        return not any(row.stream == "status" for row in self._in_flight.values())

    # --- what the library tells ---

    def _tell(self, what: Callable[[], None]) -> None:
        self._happened.append(what)
        self._wake.set()

    def _drain(self) -> None:
        while self._happened:
            self._happened.popleft()()

    def _on_connack(self, reason: ReasonCode, properties: Properties | None) -> None:
        self._connack = reason
        self._limit = min(self._settings.in_flight, getattr(properties, "ReceiveMaximum", 65_535))

    def _on_suback(self, reasons: list[ReasonCode]) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        self._conditions.clear("subscribe_refused")
        if refused:
            self._conditions.set("subscribe_refused", f"The broker answered {refused[0]!r} to the subscription to this device's commands.")

    def _on_disconnect(self, reason: ReasonCode, *, is_from_broker: bool) -> None:
        text = f"the broker said {str(reason)!r}" if is_from_broker else str(reason)
        if reason.value == _SESSION_TAKEN_OVER:
            text += "; another client uses the identity of this device"
        self._lost = text

    def _on_failed(self, error: Exception) -> None:
        self._lost = f"the MQTT client failed ({type(error).__name__}: {error})"

    def _on_puback(self, mid: int, reason: ReasonCode) -> None:
        self._ring_out.discard(mid)
        row = self._in_flight.pop(mid, None)
        if row is None:
            return
        self._answered_at = time.monotonic()
        if not reason.is_failure:
            self._acknowledged.append(row.id)
            self.last_sent_ms = to_unix_ms(self._clock.now())
        elif reason.value in _STOP_STREAM:
            self._refused_streams.add(row.stream)
            topic = self._topic(row.stream, row.levels)
            self._conditions.set("publish_refused", f"The broker answered {str(reason)!r} to a message on {topic}.", subject=row.stream)
        else:
            log.warning("uplink.puback reason=%s stream=%s", reason, row.stream)
            self._paused_until = self._clock.monotonic() + QUOTA_PAUSE_S * self._clock.speed

    def _on_message(self, client: mqtt.Client, message: mqtt.MQTTMessage) -> None:
        """Act on a command, durably, then tell the broker. A malformed one is dropped with a log line: sending it again cannot help."""
        try:
            levels = parse(message.topic, prefix=self._identity.enrollment.broker.prefix).levels
            with suppress(DeviceError):
                self._act(client, levels, message)
        except (InvalidError, ValidationError) as error:
            log.warning("uplink.bad-command topic=%s text=%s", message.topic, str(error)[:200])
        client.ack(message.mid, message.qos)

    def _act(self, client: mqtt.Client, levels: tuple[str, ...], message: mqtt.MQTTMessage) -> None:
        match levels:
            case ("ack",):
                if self._store.apply_ack(Ack.model_validate_json(message.payload)):
                    self._resend_s = self._resend_first_s
                self._resend_at = self._clock.monotonic() + self._resend_s
            case ("desired",):
                self._inbox.desired(Desired.model_validate_json(message.payload))
            case ("job",):
                self._inbox.job(bytes(message.payload))
            case ("rpc", method):
                self._answer(client, method, RpcRequest.model_validate_json(message.payload), message.properties)
            case _:
                log.debug("uplink.unknown-command levels=%s", levels)

    def _answer(self, client: mqtt.Client, method: str, request: RpcRequest, asked: Properties | None) -> None:
        if request.exp < to_unix_ms(self._clock.now()):
            return
        if method not in self._inbox.slow:
            self._reply(client, request, asked, self._inbox.rpc.get(method), method)
        elif self._is_answering.acquire(blocking=False):
            threading.Thread(target=self._answer_slowly, args=(client, method, request, asked), name=f"rpc-{method}", daemon=True).start()
        else:
            self._reply(client, request, asked, _refuse_as_busy, method)

    def _answer_slowly(self, client: mqtt.Client, method: str, request: RpcRequest, asked: Properties | None) -> None:
        try:
            self._reply(client, request, asked, self._inbox.slow[method], method)
        finally:
            self._is_answering.release()

    def _reply(self, client: mqtt.Client, request: RpcRequest, asked: Properties | None, handler: Method | None, method: str) -> None:
        reply: dict[str, Any] = {"id": request.id, "ok": False}
        if handler is None:
            reply["error"] = f"No method {method!r}; there are {', '.join([*self._inbox.rpc, *self._inbox.slow])}."
        else:
            try:
                reply |= {"ok": True, "result": handler(request.args)}
            except MooringError as error:
                reply["error"] = str(error)
        body = RpcReply.model_validate({**self._store.envelope(), **reply}).model_dump_json(exclude_none=True)
        properties = _message_properties("rpc-reply", (), STREAMS["rpc-reply"], seq=None, boot=self._store.boot_id)
        if (correlation := getattr(asked, "CorrelationData", None)) is not None:
            properties.CorrelationData = correlation
        client.publish(self._topic("rpc-reply", ()), body, STREAMS["rpc-reply"].qos, properties=properties)

    # --- small things ---

    def _topic(self, stream: str, levels: tuple[str, ...]) -> str:
        prefix = self._identity.enrollment.broker.prefix
        return device_topic(self._identity.tenant, self._identity.device, stream, *levels, prefix=prefix)


def proxy_arguments(url: str) -> dict[str, Any]:
    """The proxy as the library wants it. Raises: ConfigError naming the URL's form."""
    import socks

    parts = urlsplit(url)
    kinds = {"http": socks.HTTP, "socks5": socks.SOCKS5, "socks5h": socks.SOCKS5}
    if parts.scheme not in kinds or not parts.hostname:
        raise ConfigError("The proxy is not usable.", hint="Wanted: http://[user:password@]host:port or socks5://….")
    return {
        "proxy_type": kinds[parts.scheme],
        "proxy_addr": parts.hostname,
        "proxy_port": parts.port or (1080 if parts.scheme != "http" else 3128),
        "proxy_rdns": parts.scheme != "socks5",
        "proxy_username": unquote(parts.username) if parts.username else None,
        "proxy_password": unquote(parts.password) if parts.password else None,
    }


def try_broker(endpoint: Endpoint, identity: Identity, *, proxy: str | None, timeout_s: float) -> str:
    """What the broker answers to a connection with this identity, which takes over one that exists. Raises: TransferError; ConfigError."""
    answered, answers = threading.Event(), list[str]()

    def note(text: str) -> None:
        answers.append(text)
        answered.set()

    client = _new_client(endpoint, identity, proxy, on_failed=lambda error: note(f"made the MQTT client fail: {error}"))

    client.on_connect = lambda _c, _u, _flags, reason, _p: note(str(reason))
    client.on_disconnect = lambda _c, _u, _flags, reason, _p: note(f"closed the connection: {reason}")
    try:
        client.connect(endpoint.host, endpoint.port, clean_start=False)
    except (OSError, ValueError, mqtt.WebsocketConnectionError) as error:
        raise TransferError(explain_failure(error, broker=endpoint.url)) from None
    client.loop_start()
    answered.wait(timeout_s)
    client.disconnect()
    client.loop_stop()
    if not answers or answers[0] != "Success":
        raise TransferError(explain_refusal(answers[0] if answers else "nothing", broker=endpoint.url)[1])
    return answers[0]


def _new_client(endpoint: Endpoint, identity: Identity, proxy: str | None, *, on_failed: Callable[[Exception], None]) -> Client:
    transport = "tcp" if endpoint.path is None else "websockets"
    client = Client(identity.device, on_failed=on_failed, transport=transport, reconnect_on_failure=False)
    client.tls_set_context(identity.tls_context())
    client.connect_timeout = CONNECT_TIMEOUT_S
    if endpoint.path is not None:
        client.ws_set_options(path=endpoint.path)
    if proxy is not None:
        client.proxy_set(**proxy_arguments(proxy))
    return client


def schema_of(stream: str, levels: tuple[str, ...]) -> str:
    """The user property `schema`: `<name>.<major>`; telemetry streams have a schema each."""
    return f"{'-'.join((stream, *levels)) if stream == 'tel' else stream}.1"


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped


def _message_properties(stream: str, levels: tuple[str, ...], rule: StreamRule, *, seq: int | None, boot: str) -> Properties:
    properties = _properties(PacketTypes.PUBLISH)
    is_text = stream != SKETCH
    properties.ContentType = "application/json" if is_text else "application/cbor"
    properties.PayloadFormatIndicator = int(is_text)
    if rule.expiry_s is not None:
        properties.MessageExpiryInterval = rule.expiry_s
    properties.UserProperty = [("schema", schema_of(stream, levels)), ("boot", boot)]
    if seq is not None and is_text:  # a sketch is acknowledged by its key
        properties.UserProperty = ("seq", str(seq))
    return properties


def _will_properties() -> Properties:
    properties = _properties(PacketTypes.WILLMESSAGE)
    properties.WillDelayInterval = WILL_DELAY_S
    properties.ContentType = "application/json"
    properties.PayloadFormatIndicator = 1
    properties.UserProperty = [("schema", schema_of("status", ()))]
    return properties
