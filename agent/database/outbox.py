"""The rows that wait for the server: their sequence numbers and envelopes, how many bytes they take, how many were given up.

What broker and server answer is known at once, in a table in memory, and written with the rows that come next: a transaction of its
own per answer would wear out the flash. Whoever loses that table to a power cut sends those rows again, which hurts nobody.
"""
# ruff: noqa: S608 - statements are put together from the constants of this file; every value is a parameter

import json
import sqlite3
from collections.abc import Callable, Collection
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
#: Answers that wait for the next rows; one more, and they are written by themselves. As many as are on their way by default, and some.
MAX_SETTLED = 32
_SETTLED = "CREATE TEMP TABLE IF NOT EXISTS settled (id INTEGER PRIMARY KEY, is_gone INTEGER NOT NULL)"
#: Rows that are here still, whatever the file says.
_HERE = "id NOT IN (SELECT id FROM settled WHERE is_gone)"
#: Row ids that the file is told of at once: a page less to write for nearly every row. After a restart ids go on behind them.
ID_STEP = 1000
#: The one stream whose rows are no JSON and carry no envelope.
SKETCH = "sketch"
#: Its rows, in words that find them by an index.
ALL_SKETCHES = f"published IN (0, 1) AND priority = {_PRIORITY[SKETCH]} AND stream = '{SKETCH}'"


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
        connection.execute(_SETTLED)
        found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        #: The row id given last, and the one up to which the file knows of them.
        self._last_id = self._known_id = 0 if found is None else int(found[0])
        #: What the rows in the file take, with what SQLite adds to each.
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
            self.delete("class = 'state' AND epoch = ? AND stream = ?", (self.epoch, draft.stream))
        statement = (
            "INSERT INTO outbox (id, epoch, stream, levels, seq, class, priority, published, size, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?)"
        )
        priority = _PRIORITY.get(draft.stream, 0)
        values = (
            self._take_id(),
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
            "INSERT INTO outbox (id, epoch, stream, levels, seq, class, priority, published, size, body, key) "
            "VALUES (?, ?, 'sketch', ?, ?, 'stored', ?, 0, ?, ?, ?)"
        )
        size = len(data) + ROW_OVERHEAD_BYTES
        levels, key_text = f"{draft.pipeline}/{draft.window}", f"{draft.src}/{rev}"
        values = (self._take_id(), self.epoch, levels, self.take_seq(SKETCH), _PRIORITY[SKETCH], size, data, key_text)
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
        statement = f"SELECT min(seq) FROM outbox WHERE epoch = ? AND stream = ? AND {_HERE}"
        lowest = self.connection.execute(statement, (epoch, stream)).fetchone()[0]
        if lowest is not None:
            return int(lowest)
        row = self.connection.execute("SELECT next_seq FROM streams WHERE epoch = ? AND stream = ?", (epoch, stream)).fetchone()
        return 0 if row is None else int(row[0])

    def waiting(self, limit: int, *, without: Collection[str]) -> list[tuple[Any, ...]]:
        """At most so many rows that wait for the broker, first to send first: id, stream, levels, seq, class, body, epoch."""
        statement = (
            "SELECT id, stream, levels, seq, class, body, epoch FROM outbox WHERE published = 0 AND id NOT IN (SELECT id FROM settled) "
            f"AND stream NOT IN ({', '.join('?' * len(without))}) ORDER BY priority, id LIMIT ?"
        )
        return self.connection.execute(statement, (*without, limit)).fetchall()

    # --- what was answered ---

    def settle_sent(self, row_ids: Collection[int]) -> None:
        """The broker has the rows: those of class `sent` are gone, the others wait no longer. Known in memory; outside a transaction."""
        statement = "INSERT OR IGNORE INTO settled (id, is_gone) SELECT id, class = 'sent' FROM outbox WHERE id = ? AND published = 0"
        for row_id in row_ids:
            self.connection.execute(statement, (row_id,))

    def settle_acked(self, where: str, values: tuple[Any, ...]) -> int:
        """The server has the rows that match: they are gone. Known in memory; returns how many were not before."""
        statement = f"INSERT OR REPLACE INTO settled (id, is_gone) SELECT id, 1 FROM outbox WHERE {where} AND {_HERE}"
        return self.connection.execute(statement, values).rowcount

    def has_many_settled(self) -> bool:
        """Whether so much was answered that it should not wait for the next rows."""
        return bool(self.connection.execute("SELECT count(*) FROM settled").fetchone()[0] > MAX_SETTLED)

    def write_settled(self) -> None:
        """Write what was answered; forgotten when the transaction is undone, so that it is written later."""
        self.delete("id IN (SELECT id FROM settled WHERE is_gone)", ())
        # "+": found by their ids, not by an index of all that waits
        self.connection.execute("UPDATE outbox SET published = 1 WHERE id IN (SELECT id FROM settled) AND +published = 0")
        self.connection.execute("DELETE FROM settled")

    def requeue(self, message_class: MessageClass) -> int:
        """Let every row of the class that the broker has wait for it again; returns how many."""
        values = (message_class.value,)
        unwritten = "DELETE FROM settled WHERE NOT is_gone AND (SELECT class FROM outbox WHERE outbox.id = settled.id) = ?"
        count = self.connection.execute(unwritten, values).rowcount
        written = f"UPDATE outbox SET published = 0 WHERE published = 1 AND class = ? AND {_HERE}"
        return count + self.connection.execute(written, values).rowcount

    def counts(self) -> OutboxCounts:
        """How full the outbox is, by what was answered until now."""
        published = "(published = 1 OR id IN (SELECT id FROM settled))"
        return _read_counts(self.connection, here=_HERE, published=published)

    # --- pieces ---

    def delete(self, where: str, values: tuple[Any, ...]) -> int:
        """Delete the rows that match, keep account of their bytes, return how many."""
        found = self.connection.execute(f"DELETE FROM outbox WHERE {where} RETURNING size", values).fetchall()
        self.used_bytes -= sum(row[0] for row in found)
        return len(found)

    def _take_id(self) -> int:
        """The next row id, never given again: a late answer to a row that is gone cannot touch another."""
        self._last_id += 1
        if self._last_id > self._known_id:
            self._known_id = self._last_id + ID_STEP
            # sqlite.org/autoinc.html: an ordinary table; a row inserted below what it says leaves it alone
            self.connection.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox'")
            self.connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox', ?)", (self._known_id,))
        return self._last_id

    def count_dropped(self, message_class: str) -> None:
        """One row of the class was given up."""
        statement = "INSERT INTO dropped (class, rows) VALUES (?, 1) ON CONFLICT (class) DO UPDATE SET rows = rows + 1"
        self.connection.execute(statement, (message_class,))


def read_counts(connection: sqlite3.Connection) -> OutboxCounts:
    """How full the outbox in the file behind the connection is."""
    return _read_counts(connection, here="1", published="published = 1")


def _read_counts(connection: sqlite3.Connection, *, here: str, published: str) -> OutboxCounts:
    by_stream = dict(connection.execute(f"SELECT stream, count(*) FROM outbox WHERE {here} GROUP BY stream"))
    used = int(connection.execute(f"SELECT coalesce(sum(size), 0) FROM outbox WHERE {here}").fetchone()[0])
    statement = f"SELECT count(*) FROM outbox WHERE class = 'stored' AND {published} AND {here}"
    waiting = int(connection.execute(statement).fetchone()[0])
    return OutboxCounts(sum(by_stream.values()), used, by_stream, waiting, dict(connection.execute("SELECT class, rows FROM dropped")))
