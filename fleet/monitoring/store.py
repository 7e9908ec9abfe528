"""The only SQL about what devices said. Rows are keyed by (stream_key, seq), where a stream key stands for (device, epoch, stream)."""

import contextlib
import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from fleet.monitoring.intervals import IntervalSet
from fleet.monitoring.model import (
    Condition,
    DeadLetter,
    DeviceState,
    DeviceView,
    EventRow,
    Health,
    Severity,
    StreamCounts,
    TelemetryRow,
)
from protocol.clock import from_unix_ms, to_unix_ms
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId
from protocol.messages import Presence

#: What every message names in place of the device's text: 48 random bits.
_KEY_BITS = 48
_KEYS_PER_QUERY = 500
#: Of a message that was not understood, so many bytes are kept.
DEAD_LETTER_BYTES = 4096

monitored_devices = sa.Table(
    "monitored_devices",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    # integer keys make rows and indexes three times cheaper than the device's text
    sa.Column("device_key", sa.BigInteger, nullable=False, unique=True),
    sa.Column("presence", sa.String(16), nullable=False),
    sa.Column("presence_since", db.utc),
    sa.Column("last_seen", db.utc),
    sa.Column("health", sa.String(16), nullable=False),
    sa.Column("conditions", sa.Text, nullable=False),
    sa.Column("agent_version", sa.String(200), nullable=False),
)

device_epochs = sa.Table(
    "device_epochs",
    db.metadata,
    db.tenant_column(),
    sa.Column("device_key", sa.BigInteger, primary_key=True, autoincrement=False),
    # counts the outbox files of a device in the order in which they were first heard of
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.String(200), nullable=False),
    sa.Column("first_seen", db.utc, nullable=False),
    sa.UniqueConstraint("device_key", "epoch"),
)

device_streams = sa.Table(
    "device_streams",
    db.metadata,
    db.tenant_column(),
    sa.Column("device_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("epoch_number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stream", sa.String(63), primary_key=True),
    sa.Column("stream_key", sa.BigInteger, nullable=False, unique=True),
    # JSON list of [first, last]
    sa.Column("settled", sa.Text, nullable=False),
    sa.Column("floor", sa.BigInteger, nullable=False),
    sa.Column("missing", sa.BigInteger, nullable=False),
    sa.Column("highest", sa.BigInteger, nullable=False),
    sa.Column("updated_at", db.utc, nullable=False),
)

events = sa.Table(
    "events",
    db.metadata,
    db.tenant_column(),
    sa.Column("stream_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("device_key", sa.BigInteger, nullable=False),
    sa.Column("stream", sa.String(63), nullable=False),
    sa.Column("type", sa.String(200), nullable=False),
    sa.Column("subject", sa.String(200)),
    sa.Column("ts", db.utc, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("ix_events_device", "tenant", "device_key", "ts"),
    sa.Index("ix_events_received", "tenant", "received_at"),
)

telemetry = sa.Table(
    "telemetry",
    db.metadata,
    db.tenant_column(),
    sa.Column("stream_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("device_key", sa.BigInteger, nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("ts", db.utc, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("ix_telemetry_device", "tenant", "device_key", "name", "ts"),
    sa.Index("ix_telemetry_received", "tenant", "received_at"),
)

device_states = sa.Table(
    "device_states",
    db.metadata,
    db.tenant_column(),
    sa.Column("device_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stream", sa.String(63), primary_key=True),
    sa.Column("epoch_number", sa.Integer, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("ts", db.utc, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

last_predictions = sa.Table(
    "last_predictions",
    db.metadata,
    db.tenant_column(),
    sa.Column("device_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("pipeline", sa.String(63), primary_key=True),
    # JSON list, newest first, bounded
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("updated_at", db.utc, nullable=False),
)

dead_letters = sa.Table(
    "dead_letters",
    db.metadata,
    db.tenant_column(),
    sa.Column("id", sa.String(63), primary_key=True),
    sa.Column("topic", sa.String(300), nullable=False),
    sa.Column("reason", sa.String(300), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Index("ix_dead_letters_received", "tenant", "received_at"),
)


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One stream of one epoch of one device, while a batch works on it."""

    tenant: TenantId
    device_key: int
    epoch_number: int
    stream: str
    stream_key: int
    settled: IntervalSet
    floor: int
    missing: int
    highest: int


# --- what ingest asks and writes ---


@contextlib.contextmanager
def ingest_transaction(database: db.Database) -> Iterator[db.Connection]:
    """A transaction of ingest. Raises: UnavailableError; InvalidError when the database refuses a row for what is in it."""
    try:
        with database.transaction() as tx:
            yield tx
    except sa.exc.DBAPIError as error:
        raise InvalidError(f"The database refused a row: {type(error.orig).__name__}.", code="row-refused") from error


def device_keys(tx: db.Connection, tenant: TenantId, devices: Collection[DeviceId]) -> dict[DeviceId, int]:
    """The integer keys of the devices; those never heard of get one."""
    found = _device_keys(tx, tenant, devices)
    new = sorted(set(devices) - found.keys())
    if new:
        row = {"tenant": tenant, "presence": Presence.OFFLINE, "health": Health.UNKNOWN, "conditions": "[]", "agent_version": ""}
        db.insert_ignore(tx, monitored_devices, [{**row, "device": device, "device_key": _new_key()} for device in new])
        found = _device_keys(tx, tenant, devices)
    return found


def epoch_numbers(tx: db.Connection, tenant: TenantId, pairs: Collection[tuple[int, str]], *, now: datetime) -> dict[tuple[int, str], int]:
    """The number of each (device key, epoch) in order of first sight; a new epoch gets the next of its device."""
    found, highest = _epochs(tx, tenant, {key for key, _ in pairs})
    for key, epoch in sorted(set(pairs) - found.keys()):
        db.lock(tx, f"epoch/{tenant}/{key}")
        seen, highest_now = _epochs(tx, tenant, {key})
        highest |= highest_now
        if (key, epoch) not in seen:
            number = highest.get(key, 0) + 1
            row = {"tenant": tenant, "device_key": key, "number": number, "epoch": epoch, "first_seen": now}
            tx.execute(sa.insert(device_epochs), row)
            seen[key, epoch] = number
        found |= seen
    return {pair: found[pair] for pair in pairs}


def lock_streams(
    tx: db.Connection, tenant: TenantId, wanted: Collection[tuple[int, int, str]], *, now: datetime
) -> dict[tuple[int, int, str], StreamRow]:
    """The rows of the (device key, epoch number, stream), made where missing and locked until the transaction ends."""
    fresh = {"tenant": tenant, "settled": "[]", "floor": 0, "missing": 0, "highest": -1, "updated_at": now}
    found = _streams(tx, tenant, wanted)
    new = sorted(set(wanted) - found.keys())
    if new:
        rows = [
            {**fresh, "device_key": key, "epoch_number": number, "stream": stream, "stream_key": _new_key()} for key, number, stream in new
        ]
        db.insert_ignore(tx, device_streams, rows)
        found = _streams(tx, tenant, wanted)
    return {key: found[key] for key in wanted}


def save_streams(tx: db.Connection, rows: Iterable[StreamRow], *, now: datetime) -> None:
    """What is settled of each stream."""
    table = device_streams
    statement = (
        sa.update(table)
        .where(table.c.stream_key == sa.bindparam("of_key"))
        .values(
            settled=sa.bindparam("new_settled"),
            floor=sa.bindparam("new_floor"),
            missing=sa.bindparam("new_missing"),
            highest=sa.bindparam("new_highest"),
            updated_at=sa.bindparam("new_updated_at"),
        )
    )
    values = [
        {
            "of_key": row.stream_key,
            "new_settled": row.settled.to_text(),
            "new_floor": row.floor,
            "new_missing": row.missing,
            "new_highest": row.highest,
            "new_updated_at": now,
        }
        for row in rows
    ]
    if values:
        tx.execute(statement, values)


def insert_events(tx: db.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows whose (stream key, seq) is not there yet."""
    db.insert_ignore(tx, events, rows)


def insert_telemetry(tx: db.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows whose (stream key, seq) is not there yet."""
    db.insert_ignore(tx, telemetry, rows)


def put_telemetry(tx: db.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows, in place of those with the same (stream key, seq): of streams that the server writes itself."""
    db.upsert(tx, telemetry, rows)


def insert_dead_letters(tx: db.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep messages that were not understood."""
    db.insert_ignore(tx, dead_letters, rows)


def save_state(tx: db.Connection, row: Mapping[str, Any]) -> bool:
    """Keep a state message when it is of a later epoch, or of the same with a higher seq; returns whether it is the newest."""
    table = device_states
    return (
        db.upsert(
            tx,
            table,
            row,
            where=lambda new: sa.or_(
                new.epoch_number > table.c.epoch_number,
                sa.and_(new.epoch_number == table.c.epoch_number, new.seq > table.c.seq),
            ),
        )
        > 0
    )


def update_device(tx: db.Connection, tenant: TenantId, device_key: int, values: Mapping[str, Any]) -> None:
    """Change columns of the device's row: last_seen, presence, presence_since, health, conditions, agent_version."""
    table = monitored_devices
    tx.execute(sa.update(table).where(table.c.tenant == tenant, table.c.device_key == device_key).values(**values))


def change_presence(tx: db.Connection, tenant: TenantId, device_key: int, presence: Presence, *, now: datetime) -> None:
    """The device is online, offline or sleeping, since now when it was not before."""
    table = monitored_devices
    tx.execute(
        sa.update(table)
        .where(table.c.tenant == tenant, table.c.device_key == device_key)
        .where(sa.or_(table.c.presence != presence, table.c.presence_since.is_(None)))
        .values(presence=presence, presence_since=now)
    )


def mark_seen(tx: db.Connection, tenant: TenantId, device_keys_seen: Collection[int], *, now: datetime) -> None:
    """The devices spoke now."""
    table = monitored_devices
    for part in _parts(device_keys_seen):
        tx.execute(sa.update(table).where(table.c.tenant == tenant, table.c.device_key.in_(part)).values(last_seen=now))


def mark_silent_offline(tx: db.Connection, tenant: TenantId, *, before: datetime, now: datetime) -> int:
    """Devices said to be online and not heard since the moment are offline; returns how many."""
    table = monitored_devices
    statement = sa.update(table).where(table.c.tenant == tenant, table.c.presence == Presence.ONLINE, table.c.last_seen < before)
    return tx.execute(statement.values(presence=Presence.OFFLINE, presence_since=now)).rowcount


def merge_predictions(
    tx: db.Connection, tenant: TenantId, device_key: int, pipeline: str, bodies: Sequence[str], *, limit: int, now: datetime
) -> None:
    """Put the newest predictions (JSON texts, oldest first) before those kept, of which at most `limit` stay."""
    table = last_predictions
    statement = sa.select(table.c.body).where(table.c.tenant == tenant, table.c.device_key == device_key, table.c.pipeline == pipeline)
    kept = json.loads(tx.scalar(statement) or "[]")
    merged = [*(json.loads(body) for body in reversed(bodies)), *kept][:limit]
    row = {"tenant": tenant, "device_key": device_key, "pipeline": pipeline, "body": json.dumps(merged), "updated_at": now}
    db.upsert(tx, table, row)


def dead_letter_row(tenant: TenantId, *, row_id: str, topic: str, reason: str, body: bytes, now: datetime) -> dict[str, Any]:
    """The row of one dead letter, cut to what is kept."""
    return {
        "tenant": tenant,
        "id": row_id,
        "topic": topic[:300],
        "reason": reason[:300].replace("\x00", " "),
        "body": body,
        "received_at": now,
    }


# --- what people ask ---


def find_device(tx: db.Connection, tenant: TenantId, device: DeviceId) -> DeviceView | None:
    """The latest of one device, or None when it never spoke."""
    return list_devices(tx, tenant, [device]).get(device)


def list_devices(tx: db.Connection, tenant: TenantId, devices: Collection[DeviceId]) -> dict[DeviceId, DeviceView]:
    """The latest of those of the devices that ever spoke."""
    table = monitored_devices
    found: dict[DeviceId, DeviceView] = {}
    for part in _parts(devices):
        statement = sa.select(table).where(table.c.tenant == tenant, table.c.device.in_(part))
        found |= {row.device: _view(row) for row in tx.execute(statement)}
    return found


def count_by_presence(tx: db.Connection, tenant: TenantId) -> dict[tuple[Presence, Health], int]:
    """How many devices that ever spoke are how."""
    table = monitored_devices
    statement = (
        sa.select(table.c.presence, table.c.health, sa.func.count())
        .where(table.c.tenant == tenant)
        .group_by(table.c.presence, table.c.health)
    )
    return {(Presence(presence), Health(health)): count for presence, health, count in tx.execute(statement)}


def list_states(tx: db.Connection, tenant: TenantId, device: DeviceId) -> dict[str, DeviceState]:
    """The newest message of each state topic of a device."""
    table, of = device_states, monitored_devices
    statement = (
        sa.select(table)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
        .where(of.c.tenant == tenant, of.c.device == device)
    )
    return {row.stream: DeviceState(row.stream, row.ts, row.received_at, json.loads(row.body)) for row in tx.execute(statement)}


def list_states_of(tx: db.Connection, tenant: TenantId, devices: Collection[DeviceId], stream: str) -> dict[DeviceId, DeviceState]:
    """The newest message of one state topic of several devices."""
    table, of = device_states, monitored_devices
    found: dict[DeviceId, DeviceState] = {}
    for part in _parts(devices):
        statement = (
            sa.select(of.c.device, table)
            .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
            .where(of.c.tenant == tenant, of.c.device.in_(part), table.c.stream == stream)
        )
        for row in tx.execute(statement):
            found[row.device] = DeviceState(row.stream, row.ts, row.received_at, json.loads(row.body))
    return found


def list_states_saying(
    tx: db.Connection, tenant: TenantId, stream: str, text: str, *, device: DeviceId | None = None, limit: int
) -> dict[DeviceId, DeviceState]:
    """The newest message of one state topic of the devices whose message holds this text, as JSON is written here; by device."""
    table, of = device_states, monitored_devices
    statement = (
        sa.select(of.c.device, table)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
        .where(of.c.tenant == tenant, table.c.stream == stream, table.c.body.contains(text, autoescape=True))
        .order_by(of.c.device)
        .limit(limit)
    )
    statement = statement if device is None else statement.where(of.c.device == device)
    return {row.device: DeviceState(row.stream, row.ts, row.received_at, json.loads(row.body)) for row in tx.execute(statement)}


def list_telemetry(
    tx: db.Connection,
    tenant: TenantId,
    device: DeviceId,
    *,
    name: str,
    since: datetime,
    pipeline: str | None = None,
    limit: int = 1000,
) -> list[TelemetryRow]:
    """The newest rows of one telemetry stream since a moment, oldest first."""
    table, of = telemetry, monitored_devices
    statement = (
        sa.select(table, of.c.device)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
        .where(of.c.tenant == tenant, of.c.device == device, table.c.name == name, table.c.ts >= since)
        .order_by(table.c.ts.desc(), table.c.seq.desc())
        .limit(limit)
    )
    if pipeline is not None:
        statement = statement.where(table.c.pipeline == pipeline)
    return [telemetry_row(row) for row in tx.execute(statement)][::-1]


def list_events(
    tx: db.Connection,
    tenant: TenantId,
    *,
    device: DeviceId | None = None,
    before: datetime | None = None,
    stream: str = "event",
    subject: str | None = None,
    limit: int = 50,
) -> list[EventRow]:
    """The newest rows of one stored stream, newest first, of one device or of all, about one subject (a pipeline) or about any."""
    table, of = events, monitored_devices
    statement = (
        sa.select(table, of.c.device)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
        .where(table.c.tenant == tenant, table.c.stream == stream)
        .order_by(table.c.ts.desc(), table.c.stream_key, table.c.seq.desc())
        .limit(limit)
    )
    if device is not None:
        statement = statement.where(of.c.device == device)
    if subject is not None:
        statement = statement.where(table.c.subject == subject)
    if before is not None:
        statement = statement.where(table.c.ts < before)
    return [_event(row) for row in tx.execute(statement)]


def list_received(tx: db.Connection, tenant: TenantId, *, after: datetime, limit: int) -> list[EventRow | TelemetryRow]:
    """What was stored after a moment, oldest first: for live views of another process."""
    found: list[EventRow | TelemetryRow] = []
    of = monitored_devices
    for table, made in ((events, _event), (telemetry, telemetry_row)):
        statement = (
            sa.select(table, of.c.device)
            .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
            .where(table.c.tenant == tenant, table.c.received_at > after)
            .order_by(table.c.received_at)
            .limit(limit)
        )
        found += [made(row) for row in tx.execute(statement)]
    return sorted(found, key=lambda row: row.received_at)[:limit]


def list_predictions(tx: db.Connection, tenant: TenantId, device: DeviceId) -> dict[str, list[dict[str, Any]]]:
    """Per pipeline the last predictions, newest first."""
    table, of = last_predictions, monitored_devices
    statement = (
        sa.select(table)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
        .where(of.c.tenant == tenant, of.c.device == device)
        .order_by(table.c.pipeline)
    )
    return {row.pipeline: json.loads(row.body) for row in tx.execute(statement)}


def list_stream_counts(tx: db.Connection, tenant: TenantId, device: DeviceId) -> list[StreamCounts]:
    """How the streams of the device's newest epoch arrived."""
    table, of = device_streams, monitored_devices
    newest = sa.select(sa.func.max(table.c.epoch_number)).where(table.c.tenant == tenant, table.c.device_key == of.c.device_key)
    statement = (
        sa.select(table)
        .join(of, sa.and_(of.c.tenant == table.c.tenant, of.c.device_key == table.c.device_key))
        .where(of.c.tenant == tenant, of.c.device == device, table.c.epoch_number == newest.correlate(of).scalar_subquery())
        .order_by(table.c.stream)
    )
    return [StreamCounts(row.stream, row.missing, row.highest, row.updated_at) for row in tx.execute(statement)]


def list_dead_letters(tx: db.Connection, tenant: TenantId, *, limit: int = 50) -> list[DeadLetter]:
    """The newest messages that were not understood."""
    table = dead_letters
    statement = sa.select(table).where(table.c.tenant == tenant).order_by(table.c.received_at.desc(), table.c.id).limit(limit)
    return [DeadLetter(row.id, row.topic, row.reason, row.body, row.received_at) for row in tx.execute(statement)]


def count_rows(tx: db.Connection, tenant: TenantId) -> dict[str, int]:
    """How many events, telemetry rows and dead letters are kept."""
    return {
        table.name: int(tx.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.tenant == tenant)) or 0)
        for table in (events, telemetry, dead_letters)
    }


def delete_older(tx: db.Connection, tenant: TenantId, table: sa.Table, *, before: datetime, limit: int) -> int:
    """Delete at most `limit` of the table's rows received before a moment; returns how many."""
    key = [column for column in table.primary_key if column.name != "tenant"]
    old = sa.select(*key).where(table.c.tenant == tenant, table.c.received_at < before).order_by(table.c.received_at).limit(limit)
    matches = sa.tuple_(*key).in_(old) if len(key) > 1 else key[0].in_(old)
    return tx.execute(sa.delete(table).where(table.c.tenant == tenant, matches)).rowcount


def _new_key() -> int:
    return secrets.randbits(_KEY_BITS)


def _parts(values: Collection[Any]) -> Iterable[list[Any]]:
    many = sorted(values)
    return (many[start : start + _KEYS_PER_QUERY] for start in range(0, len(many), _KEYS_PER_QUERY))


def _device_keys(tx: db.Connection, tenant: TenantId, devices: Collection[DeviceId]) -> dict[DeviceId, int]:
    table = monitored_devices
    found: dict[DeviceId, int] = {}
    for part in _parts(devices):
        statement = sa.select(table.c.device, table.c.device_key).where(table.c.tenant == tenant, table.c.device.in_(part))
        found |= {row.device: row.device_key for row in tx.execute(statement)}
    return found


def _epochs(tx: db.Connection, tenant: TenantId, keys: Collection[int]) -> tuple[dict[tuple[int, str], int], dict[int, int]]:
    table = device_epochs
    found: dict[tuple[int, str], int] = {}
    highest: dict[int, int] = {}
    for part in _parts(keys):
        statement = sa.select(table).where(table.c.tenant == tenant, table.c.device_key.in_(part))
        for row in tx.execute(statement):
            found[row.device_key, row.epoch] = row.number
            highest[row.device_key] = max(row.number, highest.get(row.device_key, 0))
    return found, highest


def _streams(tx: db.Connection, tenant: TenantId, wanted: Collection[tuple[int, int, str]]) -> dict[tuple[int, int, str], StreamRow]:
    table = device_streams
    numbers = {(key, number) for key, number, _ in wanted}
    found: dict[tuple[int, int, str], StreamRow] = {}
    for part in _parts({key for key, _, _ in wanted}):
        statement = (
            sa.select(table)
            .where(table.c.tenant == tenant, table.c.device_key.in_(part))
            .order_by(table.c.stream_key)  # one order for all workers: no deadlock
            .with_for_update()
        )
        for row in tx.execute(statement):
            if (row.device_key, row.epoch_number) in numbers:
                found[row.device_key, row.epoch_number, row.stream] = StreamRow(
                    tenant=row.tenant,
                    device_key=row.device_key,
                    epoch_number=row.epoch_number,
                    stream=row.stream,
                    stream_key=row.stream_key,
                    settled=IntervalSet.from_text(row.settled),
                    floor=row.floor,
                    missing=row.missing,
                    highest=row.highest,
                )
    return found


def _view(row: Any) -> DeviceView:
    return DeviceView(
        tenant=row.tenant,
        device=row.device,
        presence=Presence(row.presence),
        presence_since=row.presence_since,
        last_seen=row.last_seen,
        health=Health(row.health),
        conditions=conditions_from_text(row.conditions),
        agent_version=row.agent_version,
    )


def conditions_to_text(conditions: Iterable[Condition]) -> str:
    """Conditions as they are stored."""
    return json.dumps(
        [
            {"code": one.code, "severity": one.severity, "text": one.text, "since": to_unix_ms(one.since) if one.since else None}
            for one in conditions
        ]
    )


def conditions_from_text(text: str) -> tuple[Condition, ...]:
    """The conditions that `conditions_to_text` wrote."""
    return tuple(
        Condition(one["code"], Severity(one["severity"]), one["text"], from_unix_ms(one["since"]) if one["since"] else None)
        for one in json.loads(text)
    )


def telemetry_row(row: Any) -> TelemetryRow:
    """A row of `telemetry` joined with its device's name."""
    return TelemetryRow(row.device, row.name, row.pipeline, row.ts, row.received_at, json.loads(row.body))


def _event(row: Any) -> EventRow:
    return EventRow(row.device, row.stream, row.type, row.subject, row.ts, row.received_at, json.loads(row.body))
