"""What the device remembers across a power cut, in one SQLite file: outbox, update journal, cached twin, named values, drift.

A row is in the file, synced, before its function returns. A sequence number is stored with its row and never given twice in one
epoch. An epoch is born with the file, and again when the file turns out to be a copy. Past the disk budget telemetry windows are
merged, then sketches that were never handed out, then the least valuable rows go first, each counted. Only this file imports
`sqlite_utils`, and only to build the schema; the tables of drift are read and written by `agent/drift/store.py`, inside `writing`.
"""
# ruff: noqa: S608 - statements are put together from the constants of this file; every value is a parameter

import json
import secrets
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from agent.children import child_environment
from protocol.clock import Clock, from_unix_ms, to_unix_ms
from protocol.errors import DeviceError, InvalidError
from protocol.messages import SCHEMA_MAJOR, Ack, ClockState, Desired
from protocol.topics import MAX_PACKET_BYTES, STREAMS, MessageClass

#: Bytes of SQLite pages and indexes around one body, measured at about 110.
ROW_OVERHEAD_BYTES = 128
#: Room for the topic and properties of a packet, and for the `floor` added when it is sent.
PACKET_MARGIN_BYTES = 2048
#: Telemetry windows are merged this many at a time and never beyond this length, in seconds: an hour still shows a bad night.
MERGE_WINDOWS = 4
MERGED_WINDOW_LIMIT_S = 3600.0
#: Shedding goes on until this share of the budget is used, so that not every row sheds.
SHED_TO = 0.9
#: First sent, first served (INTERFACES 1.6): state, then what is irreplaceable, then telemetry.
_PRIORITY = {"event": 1, "audit": 1, "job": 1, "sketch": 2, "tel": 3}
#: Which stream gives way first when the budget is full.
_SHED_ORDER = ("tel", "sketch", "job", "event", "audit")
#: The one stream whose rows are no JSON and carry no envelope.
SKETCH = "sketch"
_BUSY_TIMEOUT_S = 10.0
_SQLITE_FULL, _SQLITE_IOERR = 13, 10
#: The first bytes of an SQLite file, and where among them PRAGMA user_version lies (fileformat2.html, 1.3).
_HEADER_BYTES, _USER_VERSION = 100, slice(60, 64)
_PREPARE_TIMEOUT_S = 60.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """The update machine's memory of one line (UPDATES 4.1)."""

    update_id: str
    line: str
    release: str
    counter: int
    assignment: str
    attempt: int
    state: str
    saves: int
    old_slot: str | None
    reason: str
    text: str
    #: What the steps need after a restart, e.g. the target list.
    context_json: str
    at: datetime


@dataclass(frozen=True, slots=True)
class UpdateStepRow:
    """One arrow the update machine went."""

    update_id: str
    line: str
    release: str
    state: str
    at: datetime
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class BlockedRow:
    """A release refused until an attempt above `attempt` is offered (UPDATES 4.5)."""

    line: str
    release: str
    attempt: int
    reason: str
    text: str
    at: datetime
    digests: tuple[str, ...] = field(default=())


#: Merges bodies of one telemetry stream, oldest first, into one that covers them all; None: they do not fit together.
Merge = Callable[[Sequence[dict[str, Any]]], dict[str, Any] | None]
#: Finds some of these sketches, oldest first, that one may stand for: their places in the sequence, and that one. None: there are none.
MergeSketches = Callable[[Sequence[bytes]], tuple[tuple[int, ...], SketchDraft] | None]


class Store:
    """The one SQLite file of the agent; every method may be called from any thread.

    Every writing method raises DeviceError with code "disk-full" when the disk is full (nothing stored before is lost)
    and "store-failed" when the file cannot be written or read.
    """

    def __init__(self, path: Path, *, clock: Clock, budget_mb: float = 64.0, merge: Merge | None = None) -> None:
        """Open or make the file. Raises: DeviceError when there is no room or no permission for it."""
        self._path, self._clock, self._merge = path, clock, merge
        self._budget_bytes = int(budget_mb * 1024 * 1024)
        self._lock = threading.RLock()
        self._handed: set[int] = set()
        self._lost_unstored = 0
        #: Whether the device trusts its own time; stamped into every envelope.
        self.clock_state = ClockState.OK
        #: Called after rows were added, from the thread that added them.
        self.on_added: Callable[[], None] = _nothing
        #: Merges sketches when the budget is full; None: they are given up, oldest first.
        self.merge_sketches: MergeSketches | None = None
        self.boot_id = _read_boot_id()
        #: What kept the last write from the disk; None: it went well.
        self.trouble: DeviceError | None = None
        #: Where an unreadable predecessor of the file was moved to, or None.
        self.moved_aside: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open_or_replace()
            self.epoch = self._load_epoch()
            self._used_bytes = self._measure()
        except (OSError, sqlite3.Error) as error:
            raise _device_error(error, path) from None

    def close(self) -> None:
        """Write everything into the main file and let go of it; idempotent."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- outbox ---

    def add(self, stream: str, levels: tuple[str, ...], body: dict[str, Any]) -> int:
        """Store one row and return its `seq`. Raises: DeviceError; InvalidError when it could never be sent."""
        return self.add_all([Draft(stream, levels, body)])[0]

    def add_all(self, drafts: Sequence[Draft]) -> list[int]:
        """Store the rows in one synced transaction and return their `seq`s. Raises: as `add`; then none is stored."""
        try:
            with self._transaction():
                seqs = [self._insert(draft) for draft in drafts]
        except DeviceError:
            self._lost_unstored += len(drafts)
            raise
        self._make_room()
        self.on_added()
        return seqs

    @contextmanager
    def writing(self) -> Iterator["Writing"]:
        """One durable transaction for tables of another part of the agent, together with sketches. Raises: DeviceError; then none of it."""
        writing = Writing(self)
        with self._transaction():
            yield writing
        self._make_room()
        if writing.has_added:
            self.on_added()

    @contextmanager
    def looking(self) -> Iterator[sqlite3.Connection]:
        """The connection for statements that change nothing. Raises: DeviceError."""
        with self._reading():
            yield self._connection

    def envelope(self) -> dict[str, Any]:
        """The envelope of a message that never enters the outbox: no `seq`, no `floor`."""
        return {
            "v": SCHEMA_MAJOR,
            "ts": to_unix_ms(self._clock.now()),
            "clk": self.clock_state.value,
            "boot": self.boot_id,
            "epoch": self.epoch,
        }

    def reserve_seq(self, stream: str) -> int:
        """The next `seq` of the stream, taken without a row: the Will's."""
        with self._transaction():
            return self._take_seq(stream)

    def next_batch(self, limit: int, *, skip: Collection[int] = (), without: Collection[str] = ()) -> list[OutboxRow]:
        """At most `limit` rows that wait for the broker, in the order to send them, without the ids in `skip` and the streams `without`."""
        statement = (
            "SELECT id, stream, levels, seq, class, body, epoch FROM outbox WHERE published = 0 "
            f"AND stream NOT IN ({_marks(without)}) ORDER BY priority, id LIMIT ?"
        )
        with self._reading():
            found = self._connection.execute(statement, (*without, limit + len(skip))).fetchall()
            chosen = [row for row in found if row[0] not in skip][:limit]
            chosen = self._without_unmarked(chosen)
            floors = {key: self._floor(*key) for key in {(row[6], row[1]) for row in chosen if row[1] != SKETCH}}
        self._handed.update(row[0] for row in chosen)
        return [
            OutboxRow(
                row[0],
                row[1],
                tuple(row[2].split("/")) if row[2] else (),
                row[3],
                MessageClass(row[4]),
                row[5] if row[1] == SKETCH else f'{row[5][:-1]},"floor":{floors[row[6], row[1]]}}}'.encode(),
            )
            for row in chosen
        ]

    def _without_unmarked(self, rows: list[Any]) -> list[Any]:
        """The rows without sketches that cannot be marked as handed out: one that was is never merged, also after a power cut."""
        ids = [row[0] for row in rows if row[1] == SKETCH]
        if not ids:
            return rows
        try:
            with self._transaction():
                self._connection.execute(f"UPDATE outbox SET handed = 1 WHERE handed = 0 AND id IN ({_marks(ids)})", ids)
        except DeviceError:
            return [row for row in rows if row[1] != SKETCH]
        return rows

    def mark_sent(self, *row_ids: int) -> None:
        """The broker has the rows: those of class `sent` go, the others wait for the server or for the next connect."""
        with self._transaction(durable=False):
            for row_id in row_ids:
                self._delete("id = ? AND class = 'sent'", (row_id,))
                self._connection.execute("UPDATE outbox SET published = 1 WHERE id = ?", (row_id,))
        self._handed.difference_update(row_ids)

    def apply_ack(self, ack: Ack) -> int:
        """Let go of every row that the server committed; returns how many. An ack of another epoch finds none."""
        with self._transaction():
            removed = 0
            for stream, acked in ack.streams.items():
                for low, high in [(0, acked.upto), *acked.ranges]:
                    where = "epoch = ? AND stream = ? AND seq BETWEEN ? AND ? AND class <> 'state'"
                    removed += self._delete(where + " AND stream <> 'sketch'", (ack.epoch, stream, low, high))
            for pipeline, window, src, rev in ack.sketch:
                removed += self._delete("stream = 'sketch' AND levels = ? AND key = ?", (f"{pipeline}/{window}", f"{src}/{rev}"))
            return removed

    def requeue_stored(self) -> int:
        """Send again every row that the server has not acknowledged; returns how many."""
        with self._transaction(durable=False):
            statement = "UPDATE outbox SET published = 0 WHERE published = 1 AND class = 'stored'"
            return self._connection.execute(statement).rowcount

    def republish_states(self) -> None:
        """Send the newest row of every state topic again: after each connect."""
        with self._transaction(durable=False):
            self._connection.execute("UPDATE outbox SET published = 0 WHERE class = 'state'")

    def floor(self, stream: str) -> int:
        """The smallest `seq` of the stream still in the outbox; the next one when there is none."""
        with self._reading():
            return self._floor(self.epoch, stream)

    def counts(self) -> OutboxCounts:
        """How full the outbox is."""
        with self._reading():
            counts = _read_counts(self._connection)
        unstored = {"unstored": self._lost_unstored} if self._lost_unstored else {}
        return replace(counts, dropped=counts.dropped | unstored)

    # --- cached twin and named values ---

    def desired(self) -> Desired | None:
        """The server's half of the twin as last received, or None."""
        text = self.get_value("desired")
        return None if text is None else Desired.model_validate_json(text)

    def save_desired(self, desired: Desired) -> None:
        """Remember the server's half of the twin."""
        self.set_value("desired", desired.model_dump_json())

    def get_value(self, name: str) -> str | None:
        """The value saved under the name, or None."""
        with self._reading():
            row = self._connection.execute("SELECT value FROM named WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_value(self, name: str, value: str) -> None:
        """Save the value under the name."""
        with self._transaction():
            self._set_value(name, value)

    def next_counter(self, name: str, *, at_least: int = 1) -> int:
        """One more than the last time and no less than `at_least`; never the same twice in the life of the file."""
        with self._transaction():
            row = self._connection.execute("SELECT value FROM named WHERE name = ?", (name,)).fetchone()
            value = at_least if row is None else max(int(row[0]) + 1, at_least)
            self._set_value(name, str(value))
            return value

    # --- update journal ---

    def load_update(self, line: str) -> UpdateRow | None:
        """Where the line's update was, or None when it never had one."""
        with self._reading():
            row = self._connection.execute(f"SELECT {_UPDATE_COLUMNS} FROM updates WHERE line = ?", (line,)).fetchone()
        return None if row is None else _update_row(row)

    def save_update(self, row: UpdateRow) -> None:
        """Replace the line's row."""
        values = (
            row.update_id,
            row.line,
            row.release,
            row.counter,
            row.assignment,
            row.attempt,
            row.state,
            row.saves,
            row.old_slot,
            row.reason,
            row.text,
            row.context_json,
            to_unix_ms(row.at),
        )
        with self._transaction():
            self._connection.execute(f"INSERT OR REPLACE INTO updates ({_UPDATE_COLUMNS}) VALUES ({_marks(values)})", values)

    def list_updates(self) -> list[UpdateRow]:
        """The row of every line, in the order of the lines' names."""
        with self._reading():
            rows = self._connection.execute(f"SELECT {_UPDATE_COLUMNS} FROM updates ORDER BY line").fetchall()
        return [_update_row(row) for row in rows]

    def add_step(self, step: UpdateStepRow) -> None:
        """Remember an arrow; the oldest beyond 200 per line are forgotten."""
        values = (step.update_id, step.line, step.release, step.state, to_unix_ms(step.at), step.reason, step.text)
        with self._transaction():
            self._connection.execute(f"INSERT INTO steps ({_STEP_COLUMNS}) VALUES ({_marks(values)})", values)
            keep = "SELECT id FROM steps WHERE line = ? ORDER BY id DESC LIMIT 200"
            self._connection.execute(f"DELETE FROM steps WHERE line = ? AND id NOT IN ({keep})", (step.line, step.line))

    def list_steps(self, line: str, limit: int = 64) -> list[UpdateStepRow]:
        """The line's latest arrows, oldest first."""
        with self._reading():
            statement = f"SELECT {_STEP_COLUMNS} FROM steps WHERE line = ? ORDER BY id DESC LIMIT ?"
            rows = self._connection.execute(statement, (line, limit)).fetchall()
        return [
            UpdateStepRow(uid, at_line, release, state, from_unix_ms(at), reason, text)
            for uid, at_line, release, state, at, reason, text in reversed(rows)
        ]

    def block(self, row: BlockedRow) -> None:
        """Refuse the release from now on."""
        values = (row.line, row.release, row.attempt, row.reason, row.text, to_unix_ms(row.at), json.dumps(row.digests))
        with self._transaction():
            self._connection.execute(f"INSERT OR REPLACE INTO blocked ({_BLOCKED_COLUMNS}) VALUES ({_marks(values)})", values)

    def list_blocked(self) -> list[BlockedRow]:
        """Every refused release, oldest first."""
        with self._reading():
            rows = self._connection.execute(f"SELECT {_BLOCKED_COLUMNS} FROM blocked ORDER BY at").fetchall()
        return [
            BlockedRow(line, release, attempt, reason, text, from_unix_ms(at), tuple(json.loads(digests)))
            for line, release, attempt, reason, text, at, digests in rows
        ]

    def unblock(self, line: str, release: str) -> None:
        """Accept the release again."""
        with self._transaction():
            self._connection.execute("DELETE FROM blocked WHERE line = ? AND release = ?", (line, release))

    # --- inside a transaction ---

    def _insert(self, draft: Draft) -> int:
        rule = STREAMS[draft.stream]
        if rule.message_class in {MessageClass.RING, MessageClass.REPLY}:
            raise RuntimeError(f"Stream {draft.stream!r} is of class {rule.message_class.value} and never enters the outbox.")
        seq = self._take_seq(draft.stream)
        body = {**self.envelope(), "seq": seq, **draft.body}
        if draft.stream == "event":
            body["id"] = f"{self.epoch}-{seq}"
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
        if size + PACKET_MARGIN_BYTES > MAX_PACKET_BYTES:
            raise InvalidError(f"A row of stream {draft.stream!r} has {size} bytes; packets hold at most {MAX_PACKET_BYTES}.")
        if rule.message_class is MessageClass.STATE:
            self._delete("class = 'state' AND stream = ?", (draft.stream,))
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
        self._connection.execute(statement, values)
        self._used_bytes += size + ROW_OVERHEAD_BYTES
        return seq

    def _insert_sketch(self, draft: SketchDraft) -> int:
        """Add the sketch under the next revision of its window; returns that. Raises: InvalidError when it could never be sent."""
        statement = (
            "INSERT INTO drift_revs (pipeline, window, src, next, at) VALUES (?, ?, ?, 1, ?) "
            "ON CONFLICT (pipeline, window, src) DO UPDATE SET next = next + 1, at = excluded.at RETURNING next - 1"
        )
        key = (draft.pipeline, draft.window, draft.src, to_unix_ms(self._clock.now()))
        rev = int(self._connection.execute(statement, key).fetchone()[0])
        data = draft.encode(rev)
        if len(data) + PACKET_MARGIN_BYTES > MAX_PACKET_BYTES:
            raise InvalidError(f"Sketch {draft.window} has {len(data)} bytes; packets hold at most {MAX_PACKET_BYTES}.")
        statement = (
            "INSERT INTO outbox (epoch, stream, levels, seq, class, priority, published, size, body, key) "
            "VALUES (?, 'sketch', ?, ?, 'stored', ?, 0, ?, ?, ?)"
        )
        size = len(data) + ROW_OVERHEAD_BYTES
        levels, key_text = f"{draft.pipeline}/{draft.window}", f"{draft.src}/{rev}"
        values = (self.epoch, levels, self._take_seq(SKETCH), _PRIORITY[SKETCH], size, data, key_text)
        self._connection.execute(statement, values)
        self._used_bytes += size
        return rev

    def _take_seq(self, stream: str) -> int:
        statement = (
            "INSERT INTO streams (epoch, stream, next_seq) VALUES (?, ?, 1) "
            "ON CONFLICT (epoch, stream) DO UPDATE SET next_seq = next_seq + 1 RETURNING next_seq - 1"
        )
        return int(self._connection.execute(statement, (self.epoch, stream)).fetchone()[0])

    def _floor(self, epoch: str, stream: str) -> int:
        lowest = self._connection.execute("SELECT min(seq) FROM outbox WHERE epoch = ? AND stream = ?", (epoch, stream)).fetchone()[0]
        if lowest is not None:
            return int(lowest)
        row = self._connection.execute("SELECT next_seq FROM streams WHERE epoch = ? AND stream = ?", (epoch, stream)).fetchone()
        return 0 if row is None else int(row[0])

    def _delete(self, where: str, values: tuple[Any, ...]) -> int:
        """Delete the rows that match, keep account of their bytes, return how many."""
        found = self._connection.execute(f"DELETE FROM outbox WHERE {where} RETURNING size", values).fetchall()
        self._used_bytes -= sum(row[0] for row in found)
        return len(found)

    def _set_value(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO named (name, value) VALUES (?, ?)", (name, value))

    # --- the disk budget ---

    def _make_room(self) -> None:
        if self._used_bytes > self._budget_bytes:
            with self._transaction():
                self._shed()

    def _shed(self) -> None:
        """Make room: merge telemetry windows and sketches while that helps, then give up rows in `_SHED_ORDER`, oldest first."""
        target = int(self._budget_bytes * SHED_TO)
        while self._used_bytes > target and self._merge_some():
            pass
        while self._used_bytes > target and self._merge_some_sketches():
            pass
        for stream in _SHED_ORDER:
            while self._used_bytes > target:
                found = self._connection.execute("SELECT id, class FROM outbox WHERE stream = ? ORDER BY id LIMIT 64", (stream,)).fetchall()
                if not found:
                    break
                for row_id, message_class in found:
                    self._delete("id = ?", (row_id,))
                    self._count_dropped(message_class)
                    if self._used_bytes <= target:
                        break

    def _merge_some(self) -> bool:
        """Merge the oldest run of fine windows that was never sent, per level; returns whether any row went away."""
        merge = self._merge
        if merge is None:
            return False
        statement = "SELECT id, levels, body FROM outbox WHERE stream = 'tel' AND published = 0 AND epoch = ? ORDER BY id LIMIT 4096"
        runs: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
        merged = False
        for row_id, levels, text in self._connection.execute(statement, (self.epoch,)).fetchall():
            body = json.loads(text)
            if row_id in self._handed or body.get("window_s", 0.0) * MERGE_WINDOWS > MERGED_WINDOW_LIMIT_S:
                continue
            key = (levels, f"{body.get('pipeline') or body.get('line', '')} {body.get('release', '')} {body.get('window_s')}")
            run = runs.setdefault(key, [])
            run.append((row_id, body))
            if len(run) == MERGE_WINDOWS:
                del runs[key]
                if (coarse := merge([body for _, body in run])) is not None:
                    merged = True
                    for old_id, _ in run:
                        self._delete("id = ?", (old_id,))
                    envelope_keys = {"v", "clk", "boot", "epoch", "seq", "floor"}
                    self._insert(Draft("tel", tuple(levels.split("/")), {k: v for k, v in coarse.items() if k not in envelope_keys}))
        return merged

    def _merge_some_sketches(self) -> bool:
        """Let one sketch stand for several that were never handed out; returns whether any row went away."""
        if self.merge_sketches is None:
            return False
        found = self._connection.execute("SELECT id, body FROM outbox WHERE stream = 'sketch' AND handed = 0 ORDER BY id").fetchall()
        merged = self.merge_sketches([body for _, body in found])
        if merged is None:
            return False
        places, draft = merged
        for place in places:
            self._delete("id = ?", (found[place][0],))
        self._insert_sketch(draft)
        return True

    def _count_dropped(self, message_class: str) -> None:
        statement = "INSERT INTO dropped (class, rows) VALUES (?, 1) ON CONFLICT (class) DO UPDATE SET rows = rows + 1"
        self._connection.execute(statement, (message_class,))

    # --- the file ---

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[None]:
        """One write transaction; `durable`: synced to the disk before it is over. What loses nothing when undone need not be."""
        with self._lock:
            before = self._used_bytes
            try:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
                self.trouble = None
            except BaseException as error:
                self._used_bytes = before
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self.trouble = _device_error(error, self._path)
                    raise self.trouble from None
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                self.trouble = _device_error(error, self._path)
                raise self.trouble from None

    def _open_or_replace(self) -> sqlite3.Connection:
        try:
            return _open(self._path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full, no permission: not a reason to throw a file away
                raise
            self.moved_aside = _move_aside(self._path)
            return _open(self._path)

    def _load_epoch(self) -> str:
        """The file's epoch; a new one when the file is new or its inode says that it is a copy, e.g. restored from a backup."""
        inode = str(self._path.stat().st_ino)
        rows = dict(self._connection.execute("SELECT name, value FROM named WHERE name IN ('epoch', 'inode')"))
        if "epoch" in rows and rows.get("inode") == inode:
            return str(rows["epoch"])
        epoch = secrets.token_hex(8)
        self._used_bytes = 0
        with self._transaction():
            self._set_value("epoch", epoch)
            self._set_value("inode", inode)
            self._connection.execute("UPDATE outbox SET published = 0 WHERE class <> 'state'")
            self._connection.execute("DELETE FROM outbox WHERE class = 'state'")
        return epoch

    def _measure(self) -> int:
        return int(self._connection.execute("SELECT coalesce(sum(size), 0) FROM outbox").fetchone()[0])


class Writing:
    """What may be written inside `Store.writing`: any table by `execute`, and sketches into the outbox."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.has_added = False

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement of the transaction."""
        return self._store._connection.execute(statement, values)  # noqa: SLF001 - its own half

    def add_sketch(self, draft: SketchDraft) -> int:
        """Put the sketch into the outbox; returns its revision."""
        self.has_added = True
        return self._store._insert_sketch(draft)  # noqa: SLF001


def prepare_in_child(path: Path) -> None:
    """Build or migrate the file's schema in a short-lived child, so that the library for it never enters this process.

    What the child cannot do is left for `Store` to do, or to report.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        header = b""
    except OSError:
        return
    if int.from_bytes(header[_USER_VERSION], "big") < SCHEMA_VERSION and (not header or header.startswith(b"SQLite format 3\0")):
        code = "import sys; from pathlib import Path; from agent.store import _prepare; _prepare(Path(sys.argv[1]))"
        with suppress(OSError, subprocess.SubprocessError):
            command = [sys.executable, "-c", code, str(path)]
            subprocess.run(command, check=False, timeout=_PREPARE_TIMEOUT_S, stderr=subprocess.DEVNULL, env=child_environment())


def _prepare(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _open(path).close()


def read_counts(path: Path) -> tuple[str, OutboxCounts]:
    """Epoch and figures of a file that no agent has open now, without changing it. Raises: DeviceError when it cannot be read."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
        try:
            return _read_epoch(connection), _read_counts(connection)
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise _device_error(error, path) from None


def _read_epoch(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT value FROM named WHERE name = 'epoch'").fetchone()
    return "" if row is None else str(row[0])


def _read_counts(connection: sqlite3.Connection) -> OutboxCounts:
    by_stream = dict(connection.execute("SELECT stream, count(*) FROM outbox GROUP BY stream"))
    used = int(connection.execute("SELECT coalesce(sum(size), 0) FROM outbox").fetchone()[0])
    waiting = int(connection.execute("SELECT count(*) FROM outbox WHERE published = 1 AND class = 'stored'").fetchone()[0])
    return OutboxCounts(sum(by_stream.values()), used, by_stream, waiting, dict(connection.execute("SELECT class, rows FROM dropped")))


# --- schema ---

#: Migrations in order; `PRAGMA user_version` counts those applied, so that an up-to-date file does not load the library.
SCHEMA_VERSION = 3


def _migrate(connection: sqlite3.Connection) -> None:
    import sqlite_utils

    migrations = sqlite_utils.Migrations("mooring-agent")

    @migrations()
    def m0001_outbox_journal_twin(db: Any) -> None:
        # AUTOINCREMENT: an id is never given again, so that a late answer to a row that is gone cannot touch another
        db.execute(
            "CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, epoch TEXT NOT NULL, stream TEXT NOT NULL, levels TEXT NOT NULL, "
            "seq INTEGER NOT NULL, class TEXT NOT NULL, priority INTEGER NOT NULL, published INTEGER NOT NULL, size INTEGER NOT NULL, "
            "body TEXT NOT NULL)"
        )
        db["outbox"].create_index(["epoch", "stream", "seq"], unique=True)
        db["outbox"].create_index(["published", "priority", "id"])
        db["outbox"].create_index(["stream", "id"])
        db["streams"].create({"epoch": str, "stream": str, "next_seq": int}, pk=("epoch", "stream"))
        db["dropped"].create({"class": str, "rows": int}, pk="class")
        db["named"].create({"name": str, "value": str}, pk="name", not_null={"value"})
        db["updates"].create(
            {
                "update_id": str,
                "line": str,
                "release": str,
                "counter": int,
                "assignment": str,
                "attempt": int,
                "state": str,
                "saves": int,
                "old_slot": str,
                "reason": str,
                "text": str,
                "context_json": str,
                "at": int,
            },
            pk="line",
        )
        db["steps"].create(
            {"id": int, "update_id": str, "line": str, "release": str, "state": str, "at": int, "reason": str, "text": str}, pk="id"
        )
        db["steps"].create_index(["line", "id"])
        db["blocked"].create(
            {"line": str, "release": str, "attempt": int, "reason": str, "text": str, "at": int, "digests": str}, pk=("line", "release")
        )

    @migrations()
    def m0002_drift(db: Any) -> None:
        # of sketches: whether it was ever handed to the uplink, and "src/rev", by which the server acknowledges
        db.execute("ALTER TABLE outbox ADD COLUMN handed INTEGER NOT NULL DEFAULT 0")
        db.execute("ALTER TABLE outbox ADD COLUMN key TEXT NOT NULL DEFAULT ''")
        db["drift_revs"].create({"pipeline": str, "window": str, "src": int, "next": int, "at": int}, pk=("pipeline", "window", "src"))
        db["drift_grids"].create({"grid": str, "body": bytes, "at": int}, pk="grid")
        # one sub-window of one model version; `sent`: id of the window that it went out with
        db.execute(
            "CREATE TABLE drift_windows (pipeline TEXT NOT NULL, model TEXT NOT NULL, grid TEXT NOT NULL, src INTEGER NOT NULL, "
            "w0 INTEGER NOT NULL, rows INTEGER NOT NULL, excluded INTEGER NOT NULL, flags INTEGER NOT NULL, score REAL, "
            "sent TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (pipeline, model, grid, src, w0))"
        )
        db.execute("CREATE INDEX drift_windows_by_time ON drift_windows (w0)")
        # what the device check remembers of one model version; `reference`: what it compares with
        db.execute(
            "CREATE TABLE drift_checks (pipeline TEXT NOT NULL, model TEXT NOT NULL, grid TEXT NOT NULL, src INTEGER NOT NULL, "
            "state TEXT NOT NULL, reference BLOB, at INTEGER NOT NULL, PRIMARY KEY (pipeline, model, grid, src)) WITHOUT ROWID"
        )

    @migrations()
    def m0003_states_of_checks(db: Any) -> None:
        # newer than `drift_checks.state`: it changes every ten minutes, and a row is written with all that it holds; an agent of before,
        # which does not know this table, goes on from the state that its reference was kept with
        db.execute(
            "CREATE TABLE drift_states (pipeline TEXT NOT NULL, model TEXT NOT NULL, grid TEXT NOT NULL, src INTEGER NOT NULL, "
            "state TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (pipeline, model, grid, src)) WITHOUT ROWID"
        )

    migrations.apply(sqlite_utils.Database(connection))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


_UPDATE_COLUMNS = "update_id, line, release, counter, assignment, attempt, state, saves, old_slot, reason, text, context_json, at"
_STEP_COLUMNS = "update_id, line, release, state, at, reason, text"
_BLOCKED_COLUMNS = "line, release, attempt, reason, text, at, digests"


def _update_row(row: tuple[Any, ...]) -> UpdateRow:
    *values, at = row
    return UpdateRow(**dict(zip(_UPDATE_COLUMNS.split(", "), values, strict=False)), at=from_unix_ms(at))


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 1048576")
        _check_pages(connection)
        if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_pages(connection: sqlite3.Connection) -> None:
    complaint = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if complaint != "ok":
        raise sqlite3.DatabaseError(complaint)


def _move_aside(path: Path) -> Path:
    """Keep the latest unreadable file for a look at it; SQLite's side files belong to it and go with it."""
    aside = path.with_name(f"{path.name}.corrupt")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(path.with_name(f"{aside.name}{suffix}"))
    return aside


def _device_error(error: Exception, path: Path) -> DeviceError:
    is_full = getattr(error, "sqlite_errorcode", None) == _SQLITE_FULL or getattr(error, "errno", None) == 28
    if is_full:
        return DeviceError(f"No room on the disk of {path}.", code="disk-full", hint="Free space there; what is stored is kept.")
    return DeviceError(f"{path} cannot be used: {error}.", code="store-failed", hint="Check the disk and who owns the folder.")


def _nothing() -> None:
    pass


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
