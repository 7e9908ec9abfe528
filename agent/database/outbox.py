"""The rows that wait for the server: their sequence numbers and envelopes, how many bytes they take, how many were given up."""
# ruff: noqa: S608 - statements are put together from the constants of this file; every value is a parameter

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocol.clock import Clock, to_unix_ms
from protocol.errors import InvalidError
from protocol.topics import MAX_PACKET_BYTES, STREAMS, MessageClass

#: Bytes of SQLite pages and indexes around one body, measured at about 110.
ROW_OVERHEAD_BYTES = 128
#: Room for the topic and properties of a packet, and for the `floor` added when it is sent.
PACKET_MARGIN_BYTES = 2048
#: First sent, first served (INTERFACES 1.6): state, then what is irreplaceable, then telemetry.
_PRIORITY = {"event": 1, "audit": 1, "job": 1, "sketch": 2, "tel": 3}
#: The one stream whose rows are no JSON and carry no envelope.
SKETCH = "sketch"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One row ready to be published; `payload` is the JSON document with its `floor`, or a sketch as it was first encoded."""

    id: int
    stream: str
    levels: tuple[str, ...]
    seq: int
    message_class: MessageClass
    payload: bytes


@dataclass(frozen=True, slots=True)
class Draft:
    """A row to add: the body without its envelope, `levels` below the stream (tel/perf: stream "tel", levels ("perf",))."""

    stream: str
    levels: tuple[str, ...]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SketchDraft:
    """A window of sketches to add; the server acknowledges it by (pipeline, window, src, rev)."""

    pipeline: str
    #: Window id, "{w0}-{nsub}".
    window: str
    src: int
    #: The CBOR document of a revision: one that this device never gave this pipeline, window and src before.
    encode: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class OutboxCounts:
    """How full the outbox is. `dropped`: rows given up, by message class, since the file was made."""

    rows: int
    bytes: int
    by_stream: dict[str, int]
    #: Rows published and not yet acknowledged by the server.
    unacknowledged: int
    dropped: dict[str, int]


class Outbox:
    """The rows behind one connection. What writes is called inside a transaction; its owner puts `used_bytes` back when that fails."""

    def __init__(self, connection: sqlite3.Connection, *, epoch: str, envelope: Callable[[], dict[str, Any]], clock: Clock) -> None:
        """`envelope`: what goes in front of every row that is no sketch. Raises: sqlite3.Error."""
        self.connection, self.epoch, self._envelope, self._clock = connection, epoch, envelope, clock
        #: What the rows take, with what SQLite adds to each.
        self.used_bytes = int(connection.execute("SELECT coalesce(sum(size), 0) FROM outbox").fetchone()[0])

    def insert(self, draft: Draft) -> int:
        """Add the row; returns its `seq`. Raises: InvalidError when it could never be sent."""
        rule = STREAMS[draft.stream]
        if rule.message_class in {MessageClass.RING, MessageClass.REPLY}:
            raise RuntimeError(f"Stream {draft.stream!r} is of class {rule.message_class.value} and never enters the outbox.")
        seq = self.take_seq(draft.stream)
        body = {**self._envelope(), "seq": seq, **draft.body}
        if draft.stream == "event":
            body["id"] = f"{self.epoch}-{seq}"
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
        if size + PACKET_MARGIN_BYTES > MAX_PACKET_BYTES:
            raise InvalidError(f"A row of stream {draft.stream!r} has {size} bytes; packets hold at most {MAX_PACKET_BYTES}.")
        if rule.message_class is MessageClass.STATE:
            self.delete("class = 'state' AND stream = ?", (draft.stream,))
        statement = (
            "INSERT INTO outbox (epoch, stream, levels, seq, class, priority, published, size, body) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?)"
        )
        priority = _PRIORITY.get(draft.stream, 0)
        values = (
            self.epoch,
            draft.stream,
            "/".join(draft.levels),
            seq,
            rule.message_class.value,
            priority,
            size + ROW_OVERHEAD_BYTES,
            text,
        )
        self.connection.execute(statement, values)
        self.used_bytes += size + ROW_OVERHEAD_BYTES
        return seq

    def insert_sketch(self, draft: SketchDraft) -> int:
        """Add the sketch under the next revision of its window; returns that. Raises: InvalidError when it could never be sent."""
        statement = (
            "INSERT INTO drift_revs (pipeline, window, src, next, at) VALUES (?, ?, ?, 1, ?) "
            "ON CONFLICT (pipeline, window, src) DO UPDATE SET next = next + 1, at = excluded.at RETURNING next - 1"
        )
        key = (draft.pipeline, draft.window, draft.src, to_unix_ms(self._clock.now()))
        rev = int(self.connection.execute(statement, key).fetchone()[0])
        data = draft.encode(rev)
        if len(data) + PACKET_MARGIN_BYTES > MAX_PACKET_BYTES:
            raise InvalidError(f"Sketch {draft.window} has {len(data)} bytes; packets hold at most {MAX_PACKET_BYTES}.")
        statement = (
            "INSERT INTO outbox (epoch, stream, levels, seq, class, priority, published, size, body, key) "
            "VALUES (?, 'sketch', ?, ?, 'stored', ?, 0, ?, ?, ?)"
        )
        size = len(data) + ROW_OVERHEAD_BYTES
        levels, key_text = f"{draft.pipeline}/{draft.window}", f"{draft.src}/{rev}"
        values = (self.epoch, levels, self.take_seq(SKETCH), _PRIORITY[SKETCH], size, data, key_text)
        self.connection.execute(statement, values)
        self.used_bytes += size
        return rev

    def take_seq(self, stream: str) -> int:
        """The next `seq` of the stream, never given again in this epoch."""
        statement = (
            "INSERT INTO streams (epoch, stream, next_seq) VALUES (?, ?, 1) "
            "ON CONFLICT (epoch, stream) DO UPDATE SET next_seq = next_seq + 1 RETURNING next_seq - 1"
        )
        return int(self.connection.execute(statement, (self.epoch, stream)).fetchone()[0])

    def floor(self, epoch: str, stream: str) -> int:
        """The smallest `seq` of the stream still here; the next one when there is none."""
        lowest = self.connection.execute("SELECT min(seq) FROM outbox WHERE epoch = ? AND stream = ?", (epoch, stream)).fetchone()[0]
        if lowest is not None:
            return int(lowest)
        row = self.connection.execute("SELECT next_seq FROM streams WHERE epoch = ? AND stream = ?", (epoch, stream)).fetchone()
        return 0 if row is None else int(row[0])

    def delete(self, where: str, values: tuple[Any, ...]) -> int:
        """Delete the rows that match, keep account of their bytes, return how many."""
        found = self.connection.execute(f"DELETE FROM outbox WHERE {where} RETURNING size", values).fetchall()
        self.used_bytes -= sum(row[0] for row in found)
        return len(found)

    def count_dropped(self, message_class: str) -> None:
        """One row of the class was given up."""
        statement = "INSERT INTO dropped (class, rows) VALUES (?, 1) ON CONFLICT (class) DO UPDATE SET rows = rows + 1"
        self.connection.execute(statement, (message_class,))


def read_counts(connection: sqlite3.Connection) -> OutboxCounts:
    """How full the outbox behind the connection is."""
    by_stream = dict(connection.execute("SELECT stream, count(*) FROM outbox GROUP BY stream"))
    used = int(connection.execute("SELECT coalesce(sum(size), 0) FROM outbox").fetchone()[0])
    waiting = int(connection.execute("SELECT count(*) FROM outbox WHERE published = 1 AND class = 'stored'").fetchone()[0])
    return OutboxCounts(sum(by_stream.values()), used, by_stream, waiting, dict(connection.execute("SELECT class, rows FROM dropped")))
