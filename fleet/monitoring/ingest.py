"""What devices say becomes rows, each once, whatever arrives twice, late or out of order: the four steps of INTERFACES 1.6.

One batch is one transaction: (1) parse, check, validate, else a dead letter; (2) insert by (device, epoch, stream, seq), a conflict
changes nothing; (3) settle the numbers of each stream and COMMIT; (4) only then acknowledge to the broker, and to each device.
"""

import json
import logging
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from fleet.bus import Bus, Incoming
from fleet.db import Connection, Database
from fleet.monitoring import health, store
from fleet.monitoring.drift_ingest import AckKey, Sketch, read_sketch, store_sketches
from fleet.monitoring.live import LiveFeed
from fleet.monitoring.model import LiveMessage
from fleet.monitoring.store import DEAD_LETTER_BYTES, StreamRow
from protocol.clock import Clock, from_unix_ms
from protocol.errors import InvalidError, UnavailableError
from protocol.ids import DEFAULT_TENANT, DeviceId, TenantId, new_id
from protocol.messages import (
    Ack,
    AckStream,
    Envelope,
    Event,
    Inference,
    Info,
    ModelState,
    Presence,
    Reported,
    RpcReply,
    Status,
    TelPerf,
    TelSensor,
    TelServing,
    TelSys,
)
from protocol.topics import DEFAULT_PREFIX, MAX_PACKET_BYTES, Direction, MessageClass, Topic, command_topic, parse, rule_of

log = logging.getLogger("mooring.ingest")

#: Dead letters of one sender kept per batch; the rest is counted.
DEAD_LETTERS_PER_DEVICE = 20
#: Latest predictions kept per pipeline of a device.
PREDICTIONS_KEPT = 20
ACK_EXPIRY_S = 86_400
#: Windows that one acknowledgement names; the rest goes into another one.
SKETCHES_PER_ACK = 500
#: Topics whose parts are remembered: a few of each device that speaks often.
TOPICS_CACHED = 50_000
#: A batch closes when it is full or so many seconds after its first message.
GATHER_S = 0.1
_IDLE_WAIT_S = 0.5
_RETRY_MAX_S = 10.0

_MODELS: dict[str, type[Envelope]] = {
    "status": Status,
    "info": Info,
    "reported": Reported,
    "model": ModelState,
    "drift": Envelope,
    "tel/perf": TelPerf,
    "tel/sys": TelSys,
    "tel/sensor": TelSensor,
    "tel/serving": TelServing,
    "event": Event,
    "job": Envelope,
    "audit": Envelope,
    "inf": Inference,
    "log": Envelope,
    "rpc-reply": RpcReply,
}
#: Streams with this many levels below the device, the stream's own included.
_LEVELS = {"tel": 2, "job": 2, "inf": 2}

#: What one message can do to the code that reads it, beside being refused: a mistake of ours, that no device may turn against the others.
_UNDIGESTED = (InvalidError, ArithmeticError, LookupError, TypeError, ValueError)

#: Which of these devices are enrolled and not revoked.
EnrolledCheck = Callable[[Connection, TenantId, Collection[DeviceId]], AbstractSet[DeviceId]]
#: Told, in the ingest transaction, of each state message that is the newest of its topic.
StateHook = Callable[[Connection, TenantId, DeviceId, Envelope, datetime], None]
#: Told, in the ingest transaction, of each event, also of one that comes twice. Raises: InvalidError: it becomes a dead letter.
EventHook = Callable[[Connection, TenantId, DeviceId, Event, datetime], None]


@dataclass(frozen=True, slots=True)
class IngestRules:
    """What ingest needs to know of its server."""

    is_enrolled: EnrolledCheck
    prefix: str = DEFAULT_PREFIX
    #: To whom messages belong whose topic names no tenant.
    tenant: TenantId = DEFAULT_TENANT
    on_state: tuple[StateHook, ...] = ()
    on_event: tuple[EventHook, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was understood."""

    topic: Topic
    device: DeviceId
    message_class: MessageClass
    body: Envelope
    ts: datetime
    text: str

    @property
    def epoch(self) -> str:
        """The device's outbox file it comes from."""
        return self.body.epoch

    @property
    def seq(self) -> int:
        """Its number. Raises: RuntimeError for classes without one."""
        if self.body.seq is None:
            raise RuntimeError(f"{self.topic} has no seq")
        return self.body.seq


@dataclass(frozen=True, slots=True)
class Rejected:
    """One message that was not understood or not allowed."""

    tenant: TenantId
    topic: str
    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a committed batch leads to."""

    #: One per device that sent something of class `stored`.
    acks: tuple[tuple[TenantId, DeviceId, Ack], ...] = ()
    live: tuple[LiveMessage, ...] = ()
    accepted: int = 0
    rejected: int = 0


def read_message(incoming: Incoming, rules: IngestRules) -> Message | Sketch | Rejected:
    """Step 1 without the database: the message or sketch, or why it is none. Pure."""
    tenant = rules.tenant
    try:
        topic = _parsed(incoming.topic, rules.prefix)
        tenant = topic.tenant
        if topic.direction is Direction.DEVICE and topic.device is not None and topic.stream == "sketch" and len(topic.levels) == 3:
            return read_sketch(topic, topic.device, incoming.payload)
        return _read(topic, incoming.payload)
    except InvalidError as error:
        reason = str(error) if error.code == InvalidError.code else f"{error.code}: {error}"
        return Rejected(tenant, incoming.topic, reason, incoming.payload)


@lru_cache(maxsize=TOPICS_CACHED)
def _parsed(text: str, prefix: str) -> Topic:
    """The parts of a topic; devices send on a few of them again and again. Raises: InvalidError."""
    return parse(text, prefix=prefix)


@lru_cache(maxsize=TOPICS_CACHED)
def _route(topic: Topic) -> tuple[str, type[Envelope], MessageClass, DeviceId]:
    """How messages of the topic are called, read and kept. Raises: InvalidError when this server reads none."""
    if topic.direction is not Direction.DEVICE or topic.device is None:
        raise InvalidError(f"Direction {topic.direction.value!r} is not what a device says.")
    message_class = rule_of(topic).message_class
    name = "/".join(topic.levels[:2]) if topic.stream == "tel" else topic.stream
    model = _MODELS.get(name)
    if model is None or len(topic.levels) != _LEVELS.get(topic.stream, 1):
        raise InvalidError(f"{'/'.join(topic.levels)!r} is no topic that this server reads.")
    return name, model, message_class, topic.device


def _read(topic: Topic, payload: bytes) -> Message:
    name, model, message_class, device = _route(topic)
    if len(payload) > MAX_PACKET_BYTES:
        raise InvalidError(f"{len(payload)} bytes; wanted at most {MAX_PACKET_BYTES}.")
    try:
        body = model.model_validate_json(payload)
        ts = from_unix_ms(body.ts)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"{name}: ts is outside the calendar.") from error
    if body.seq is None and message_class not in {MessageClass.RING, MessageClass.REPLY}:
        raise InvalidError(f"{name}: seq is missing; class {message_class.value} is numbered.")
    if body.seq is not None and body.floor is not None and body.floor > body.seq + 1:
        raise InvalidError(f"{name}: floor {body.floor} is above seq {body.seq}; wanted the smallest number still in the outbox.")
    if "\x00" in body.epoch or (name == "event" and isinstance(body, Event) and "\x00" in f"{body.type}{body.subject or ''}"):
        raise InvalidError(f"{name}: a NUL character in epoch, type or subject.")
    return Message(topic, device, message_class, body, ts, payload.decode())


def ingest_batch(database: Database, batch: Sequence[Incoming], *, rules: IngestRules, now: datetime, want_live: bool = False) -> Outcome:
    """Steps 1 to 3: store the batch in one transaction and return whom to acknowledge what.

    What the database refuses, or our code fails at, is found by halving the batch and kept as a dead letter: one message never holds up
    the others. Raises: UnavailableError when the database does not answer; then nothing of the batch, or of a half of it, is stored.
    """
    try:
        return _ingest_at_once(database, batch, rules=rules, now=now, want_live=want_live)
    except _UNDIGESTED as error:
        reason = str(error) if isinstance(error, InvalidError) else f"This server failed at it ({type(error).__name__}: {error})."[:300]
        if len(batch) == 1:
            log.warning("ingest_buried topic=%s reason=%s", batch[0].topic, reason)
            return _bury_one(database, batch[0], reason, rules=rules, now=now)
    middle = len(batch) // 2
    halves = [ingest_batch(database, part, rules=rules, now=now, want_live=want_live) for part in (batch[:middle], batch[middle:])]
    return Outcome(
        acks=tuple(ack for half in halves for ack in half.acks),
        live=tuple(message for half in halves for message in half.live),
        accepted=sum(half.accepted for half in halves),
        rejected=sum(half.rejected for half in halves),
    )


def _ingest_at_once(database: Database, batch: Sequence[Incoming], *, rules: IngestRules, now: datetime, want_live: bool) -> Outcome:
    read = [read_message(incoming, rules) for incoming in batch]
    messages = [one for one in read if isinstance(one, Message)]
    rejected = [one for one in read if isinstance(one, Rejected)]
    by_tenant: dict[TenantId, list[Message]] = defaultdict(list)
    for message in messages:
        by_tenant[message.topic.tenant].append(message)
    sketches: dict[TenantId, list[Sketch]] = defaultdict(list)
    for sketch in (one for one in read if isinstance(one, Sketch)):
        sketches[sketch.tenant].append(sketch)
    acks: list[tuple[TenantId, DeviceId, Ack]] = []
    accepted: list[Message] = []
    sketched = 0
    with store.ingest_transaction(database) as tx:
        for tenant in sorted(by_tenant.keys() | sketches.keys()):
            part = _TenantBatch(tx, tenant, now=now, rules=rules)
            # series of sketches are locked before all else, the audit log last: who judges a series holds it and then writes to the log
            part.store_sketches(sketches[tenant])
            part.store(by_tenant[tenant])
            part.mark_seen()
            acks += [(tenant, device, ack) for device, ack in part.acks()]
            accepted += part.accepted
            sketched += part.sketched
            rejected += part.rejected
        _bury(tx, rejected, now=now)
    live = tuple(_live(message) for message in accepted) if want_live else ()
    return Outcome(tuple(acks), live, len(accepted) + sketched, len(rejected))


def _bury_one(database: Database, incoming: Incoming, reason: str, *, rules: IngestRules, now: datetime) -> Outcome:
    with database.transaction() as tx:
        _bury(tx, [Rejected(rules.tenant, incoming.topic, reason, incoming.payload)], now=now)
    return Outcome(rejected=1)


@dataclass
class _TenantBatch:
    """The messages of one tenant in one transaction."""

    tx: Connection
    tenant: TenantId
    now: datetime = field(kw_only=True)
    rules: IngestRules = field(kw_only=True)
    accepted: list[Message] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    #: Windows stored, or put aside.
    sketched: int = 0
    _sketch_keys: dict[DeviceId, list[AckKey]] = field(default_factory=dict)
    _keys: dict[DeviceId, int] = field(default_factory=dict)
    _epochs: dict[tuple[int, str], int] = field(default_factory=dict)
    #: (device, epoch) → the streams of class `stored` touched.
    _settled: dict[tuple[DeviceId, str], dict[str, AckStream]] = field(default_factory=dict)

    def store(self, messages: list[Message]) -> None:
        known = self._of_enrolled(messages)
        if not known:
            return
        self._keys = store.device_keys(self.tx, self.tenant, {one.device for one in known})
        numbered = [one for one in known if one.body.seq is not None]
        pairs = {(self._keys[one.device], one.epoch) for one in numbered}
        self._epochs = store.epoch_numbers(self.tx, self.tenant, pairs, now=self.now)
        self._store_rows([one for one in known if one.message_class in {MessageClass.STORED, MessageClass.SENT}])
        self._store_states([one for one in known if one.message_class is MessageClass.STATE])
        self._store_ring([one for one in known if one.message_class in {MessageClass.RING, MessageClass.REPLY}])

    def acks(self) -> Iterable[tuple[DeviceId, Ack]]:
        """Per device what is stored once this transaction is committed; the newest epoch named last."""
        for (device, epoch), streams in self._settled.items():
            yield device, Ack(epoch=epoch, streams=streams)
        for device, keys in self._sketch_keys.items():
            for start in range(0, len(keys), SKETCHES_PER_ACK):
                yield device, Ack(epoch="", sketch=keys[start : start + SKETCHES_PER_ACK])

    def store_sketches(self, sketches: list[Sketch]) -> None:
        if not sketches:
            return
        enrolled = self.rules.is_enrolled(self.tx, self.tenant, {one.device for one in sketches})
        for one in sketches:
            if one.device not in enrolled:
                self.rejected.append(Rejected(self.tenant, one.topic, self._not_enrolled(one.device), one.payload))
        known = [one for one in sketches if one.device in enrolled]
        done = store_sketches(self.tx, self.tenant, known, now=self.now)
        self.rejected += [Rejected(self.tenant, one.topic, reason, one.payload) for one, reason in done.rejected]
        self._sketch_keys, self.sketched = done.acks, len(done.accepted)

    def mark_seen(self) -> None:
        """Who spoke; a Will is the broker's word, not the device's."""
        spoke = {one.device for one in self.accepted if not _is_word_of_broker(one)} | self._sketch_keys.keys()
        if spoke:
            keys = store.device_keys(self.tx, self.tenant, spoke)
            store.mark_seen(self.tx, self.tenant, keys.values(), now=self.now)

    def _not_enrolled(self, device: DeviceId) -> str:
        return f"device {device!r} is not enrolled in tenant {self.tenant!r}, or revoked"

    def _of_enrolled(self, messages: list[Message]) -> list[Message]:
        enrolled = self.rules.is_enrolled(self.tx, self.tenant, {one.device for one in messages})
        known = []
        for one in messages:
            if one.device in enrolled:
                known.append(one)
            else:
                self._reject(one, self._not_enrolled(one.device))
        return known

    def _store_rows(self, messages: list[Message]) -> None:
        groups: dict[tuple[int, int, str], list[Message]] = defaultdict(list)
        for one in messages:
            key = self._keys[one.device]
            groups[key, self._epochs[key, one.epoch], one.topic.stream].append(one)
        rows = store.lock_streams(self.tx, self.tenant, groups.keys(), now=self.now)
        events: list[dict[str, Any]] = []
        telemetry: list[dict[str, Any]] = []
        changed: list[StreamRow] = []
        for group, members in groups.items():
            try:
                row = _settle(rows[group], members)
            except InvalidError as error:
                for one in members:
                    self._reject(one, str(error))
                continue
            changed.append(row)
            self.accepted += members
            if members[0].message_class is MessageClass.STORED:
                events += [_event_row(one, row, self.now) for one in members]
                self._tell_events(members)
                streams = self._settled.setdefault((members[0].device, members[0].epoch), {})
                streams[row.stream] = row.settled.to_ack()
            else:
                telemetry += [_telemetry_row(one, row, self.now) for one in members]
        store.insert_events(self.tx, events)
        store.insert_telemetry(self.tx, telemetry)
        store.save_streams(self.tx, changed, now=self.now)

    def _tell_events(self, messages: list[Message]) -> None:
        if self.rules.on_event and messages[0].topic.stream == "event":
            for one in messages:
                if isinstance(one.body, Event):
                    for hook in self.rules.on_event:
                        hook(self.tx, self.tenant, one.device, one.body, self.now)

    def _store_states(self, messages: list[Message]) -> None:
        for one in messages:
            key = self._keys[one.device]
            row = {
                "tenant": self.tenant,
                "device_key": key,
                "stream": one.topic.stream,
                "epoch_number": self._epochs[key, one.epoch],
                "seq": one.seq,
                "ts": one.ts,
                "received_at": self.now,
                "body": one.text,
            }
            self.accepted.append(one)
            if store.save_state(self.tx, row):
                self._apply_state(key, one)

    def _apply_state(self, key: int, message: Message) -> None:
        match message.body:
            case Status(presence=presence):
                store.change_presence(self.tx, self.tenant, key, presence, now=self.now)
            case Info(agent_version=version):
                store.update_device(self.tx, self.tenant, key, {"agent_version": version.replace("\x00", "")})
            case Reported(conditions=reports):
                conditions = health.conditions_of(reports)
                values = {"health": health.health_of(conditions), "conditions": store.conditions_to_text(conditions)}
                store.update_device(self.tx, self.tenant, key, values)
            case _:
                pass
        for hook in self.rules.on_state:
            hook(self.tx, self.tenant, message.device, message.body, self.now)

    def _store_ring(self, messages: list[Message]) -> None:
        predictions: dict[tuple[int, str], list[str]] = defaultdict(list)
        for one in messages:
            self.accepted.append(one)
            if isinstance(one.body, Inference):
                predictions[self._keys[one.device], one.body.pipeline].append(one.text)
        for (key, pipeline), bodies in predictions.items():
            kept = bodies[-PREDICTIONS_KEPT:]
            store.merge_predictions(self.tx, self.tenant, key, pipeline, kept, limit=PREDICTIONS_KEPT, now=self.now)

    def _reject(self, message: Message, reason: str) -> None:
        self.rejected.append(Rejected(self.tenant, str(message.topic), reason, message.text.encode()))


def _is_word_of_broker(message: Message) -> bool:
    # the stream first: to find that a pydantic model is of another class takes ten times as long
    return message.topic.stream == "status" and isinstance(message.body, Status) and message.body.presence is Presence.OFFLINE


def _settle(row: StreamRow, members: Sequence[Message]) -> StreamRow:
    """The stream's row with these numbers and floors in it. Raises: InvalidError when it has too many holes."""
    floor = max(row.floor, *(one.body.floor or 0 for one in members))
    settled = row.settled.add(one.seq for one in members)
    return replace(
        row,
        settled=settled.fill_below(floor),
        floor=floor,
        missing=row.missing + settled.count_missing_below(floor),
        highest=max(row.highest, *(one.seq for one in members)),
    )


def _event_row(message: Message, row: StreamRow, now: datetime) -> dict[str, Any]:
    body = message.body
    return {
        "tenant": row.tenant,
        "stream_key": row.stream_key,
        "seq": message.seq,
        "device_key": row.device_key,
        "stream": row.stream,
        "type": body.type if isinstance(body, Event) else "/".join(message.topic.levels),
        "subject": body.subject if isinstance(body, Event) else None,
        "ts": message.ts,
        "received_at": now,
        "body": message.text,
    }


def _telemetry_row(message: Message, row: StreamRow, now: datetime) -> dict[str, Any]:
    name, body = message.topic.levels[1], message.body
    return {
        "tenant": row.tenant,
        "stream_key": row.stream_key,
        "seq": message.seq,
        "device_key": row.device_key,
        "name": name,
        "pipeline": body.pipeline if name != "sys" and isinstance(body, TelPerf | TelSensor) else None,
        "ts": message.ts,
        "received_at": now,
        "body": message.text,
    }


def _bury(tx: Connection, rejected: Iterable[Rejected], *, now: datetime) -> None:
    kept: dict[str, int] = defaultdict(int)
    rows = []
    for one in rejected:
        sender = "/".join(one.topic.split("/")[:5])
        kept[sender] += 1
        if kept[sender] <= DEAD_LETTERS_PER_DEVICE:
            body = one.payload[:DEAD_LETTER_BYTES]
            rows.append(store.dead_letter_row(one.tenant, row_id=new_id("dl"), topic=one.topic, reason=one.reason, body=body, now=now))
    store.insert_dead_letters(tx, rows)


def _live(message: Message) -> LiveMessage:
    return LiveMessage(message.topic.tenant, message.device, "/".join(message.topic.levels), message.ts, json.loads(message.text))


class IngestWorker:
    """Takes batches from the bus, stores them, then acknowledges: step 4. Several may run, in any number of processes."""

    def __init__(
        self, bus: Bus, database: Database, clock: Clock, *, rules: IngestRules, live: LiveFeed | None = None, batch: int = 1000
    ) -> None:
        self._bus, self._database, self._clock = bus, database, clock
        self._rules, self._live, self._batch = rules, live, batch
        #: Messages stored, and messages kept as dead letters, since the start.
        self.accepted, self.rejected = 0, 0

    def run(self, stop: threading.Event, *, on_round: Callable[[], None] | None = None) -> None:
        """Work until `stop` is set; a batch that is not committed by then is not acknowledged and comes again.

        `on_round` is called after each batch, and each short wait that brought none.
        """
        while not stop.is_set():
            batch = self._bus.inbox.take(self._batch, wait_s=_IDLE_WAIT_S, gather_s=GATHER_S)
            if batch:
                self.work(batch, stop)
            if on_round is not None:
                on_round()

    def work(self, batch: Sequence[Incoming], stop: threading.Event) -> None:
        """Store one batch, however long the database is away, and acknowledge it. What keeps it from that is raised; it waits on then."""
        try:
            outcome = self._store(batch, stop)
        except BaseException:
            self._bus.inbox.put_back(batch)
            raise
        if outcome is None:
            return
        self._bus.acknowledge(batch)
        for tenant, device, ack in outcome.acks:
            topic = command_topic(tenant, device, "ack", prefix=self._rules.prefix)
            self._bus.publish(topic, ack.model_dump_json().encode(), expiry_s=ACK_EXPIRY_S, schema="ack.1")
        self.accepted += outcome.accepted
        self.rejected += outcome.rejected
        if self._live is not None:
            self._live.publish(outcome.live)

    def _store(self, batch: Sequence[Incoming], stop: threading.Event) -> Outcome | None:
        """The outcome once it is committed; None when `stop` came first. Meanwhile nothing more is read: the broker waits."""
        pause_s = 0.1
        want_live = self._live is not None and self._live.has_readers
        while not stop.is_set():
            try:
                return ingest_batch(self._database, batch, rules=self._rules, now=self._clock.now(), want_live=want_live)
            except UnavailableError as error:
                log.warning("ingest_waits_for_database messages=%d error=%s", len(batch), error)
                stop.wait(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - jitter, no secret
                pause_s = min(_RETRY_MAX_S, pause_s * 2)
        return None
