"""What the device remembers across a power cut, in one SQLite file: rows for the server, the cached twin, named values.

A row is in the file, synced, before its function returns. A sequence number is stored with its row and never given twice in one
epoch. An epoch is born with the file, and again when the file turns out to be a copy. Past the disk budget rows give way
(`agent/database/shedding.py`). The tables of updates and of drift are read and written by `agent/update/store.py` and
`agent/drift/store.py`, inside `looking` and `writing`.
"""
# ruff: noqa: S608 - statements are put together from the constants of this file; every value is a parameter

import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from agent.database.file import Database, device_error, looking_at
from agent.database.outbox import ALL_SKETCHES, SKETCH, Draft, Outbox, OutboxCounts, OutboxRow, SketchDraft, read_counts
from agent.database.shedding import Merge, MergeSketches, Shedding
from protocol.clock import Clock, to_unix_ms
from protocol.errors import DeviceError
from protocol.messages import SCHEMA_MAJOR, Ack, ClockState, Desired
from protocol.topics import MessageClass

__all__ = ["Draft", "OutboxCounts", "SketchDraft", "Store", "Writing", "count_rows"]

#: Shedding goes on until this share of the budget is used, so that not every row sheds.
SHED_TO = 0.9
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Store:
    """The one SQLite file of the agent; every method may be called from any thread.

    Every writing method raises DeviceError with code "disk-full" when the disk is full (nothing stored before is lost)
    and "store-failed" when the file cannot be written or read.
    """

    def __init__(self, path: Path, *, clock: Clock, budget_mb: float = 64.0, merge: Merge | None = None) -> None:
        """Open or make the file. Raises: DeviceError when there is no room or no permission for it."""
        self._path, self._clock, self._merge = path, clock, merge
        self._budget_bytes = int(budget_mb * 1024 * 1024)
        self._handed: set[int] = set()
        self._lost_unstored = 0
        self._is_closed = False
        #: Whether the device trusts its own time; stamped into every envelope.
        self.clock_state = ClockState.OK
        #: Called after rows were added, from the thread that added them.
        self.on_added: Callable[[], None] = _nothing
        #: Merges sketches when the budget is full; None: they are given up, oldest first.
        self.merge_sketches: MergeSketches | None = None
        self.boot_id = _read_boot_id()
        self._file = Database(path)
        self._lock, self._connection = self._file.lock, self._file.connection
        try:
            self.epoch = self._load_epoch()
            self._outbox = Outbox(self._connection, epoch=self.epoch, envelope=self.envelope, clock=clock)
        except (OSError, sqlite3.Error) as error:
            raise device_error(error, path) from None

    @property
    def trouble(self) -> DeviceError | None:
        """What kept the last write from the disk; None: it went well."""
        return self._file.trouble

    @property
    def moved_aside(self) -> Path | None:
        """Where an unreadable predecessor of the file was moved to, or None."""
        return self._file.moved_aside

    def close(self) -> None:
        """Write everything into the main file and let go of it; idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                with suppress(DeviceError):  # then some rows are sent once more
                    self._write_settled()
            self._file.close()

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
                self._outbox.write_settled()
                seqs = [self._outbox.insert(draft) for draft in drafts]
        except DeviceError:
            self._lost_unstored += len(drafts)
            raise
        self._make_room()
        self.on_added()
        return seqs

    @contextmanager
    def writing(self) -> Iterator["Writing"]:
        """One durable transaction for tables of another part of the agent, together with sketches. Raises: DeviceError; then none of it."""
        writing = Writing(self._connection, self._outbox)
        with self._transaction():
            yield writing
        if writing.has_added:
            self._make_room()
            self.on_added()

    @contextmanager
    def looking(self) -> Iterator[sqlite3.Connection]:
        """The connection for statements that change nothing. Raises: DeviceError."""
        with self._file.reading():
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
            return self._outbox.take_seq(stream)

    def next_batch(self, limit: int, *, skip: Collection[int] = (), without: Collection[str] = ()) -> list[OutboxRow]:
        """At most `limit` rows that wait for the broker, in the order to send them, without the ids in `skip` and the streams `without`."""
        with self._file.reading():
            found = self._outbox.waiting(limit + len(skip), without=without)
            chosen = [row for row in found if row[0] not in skip][:limit]
            chosen = self._without_unmarked(chosen)
            floors = {key: self._outbox.floor(*key) for key in {(row[6], row[1]) for row in chosen if row[1] != SKETCH}}
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
        with self._file.reading():
            self._outbox.settle_sent(row_ids)
            self._handed.difference_update(row_ids)
            self._write_many_settled()

    def apply_ack(self, ack: Ack) -> int:
        """Let go of every row that the server committed; returns how many. An ack of another epoch finds none."""
        removed = 0
        with self._file.reading():
            for stream, acked in ack.streams.items():
                for low, high in [(0, acked.upto), *acked.ranges]:
                    where = "epoch = ? AND stream = ? AND seq BETWEEN ? AND ? AND class <> 'state'"
                    removed += self._outbox.settle_acked(where + " AND stream <> 'sketch'", (ack.epoch, stream, low, high))
            for pipeline, window, src, rev in ack.sketch:
                where = f"{ALL_SKETCHES} AND levels = ? AND key = ?"
                removed += self._outbox.settle_acked(where, (f"{pipeline}/{window}", f"{src}/{rev}"))
            self._write_many_settled()
        return removed

    def requeue_stored(self) -> int:
        """Send again every row that the server has not acknowledged; returns how many."""
        with self._transaction(durable=False):
            return self._outbox.requeue(MessageClass.STORED)

    def republish_states(self) -> None:
        """Send the newest row of every state topic again: after each connect."""
        with self._transaction(durable=False):
            self._outbox.requeue(MessageClass.STATE)

    def floor(self, stream: str) -> int:
        """The smallest `seq` of the stream still in the outbox; the next one when there is none."""
        with self._file.reading():
            return self._outbox.floor(self.epoch, stream)

    def counts(self) -> OutboxCounts:
        """How full the outbox is."""
        with self._file.reading():
            counts = self._outbox.counts()
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
        with self._file.reading():
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

    # --- pieces ---

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[None]:
        """One write transaction (`Database.transaction`), with the account of bytes."""
        with self._lock:
            before = self._outbox.used_bytes
            try:
                with self._file.transaction(durable=durable):
                    yield
            except BaseException:
                self._outbox.used_bytes = before
                raise

    def _write_many_settled(self) -> None:
        if self._outbox.has_many_settled():
            self._write_settled()

    def _write_settled(self) -> None:
        with self._transaction(durable=False):
            self._outbox.write_settled()

    def _make_room(self) -> None:
        if self._outbox.used_bytes > self._budget_bytes:
            with self._transaction():
                self._outbox.write_settled()
                shedding = Shedding(self._outbox, self._handed, self._merge, self.merge_sketches)
                shedding.down_to(int(self._budget_bytes * SHED_TO))

    def _set_value(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO named (name, value) VALUES (?, ?)", (name, value))

    def _load_epoch(self) -> str:
        """The file's epoch; a new one when the file is new or its inode says that it is a copy, e.g. restored from a backup."""
        inode = str(self._path.stat().st_ino)
        rows = dict(self._connection.execute("SELECT name, value FROM named WHERE name IN ('epoch', 'inode')"))
        if "epoch" in rows and rows.get("inode") == inode:
            return str(rows["epoch"])
        epoch = secrets.token_hex(8)
        with self._file.transaction():
            self._set_value("epoch", epoch)
            self._set_value("inode", inode)
            self._connection.execute("UPDATE outbox SET published = 0 WHERE class <> 'state'")
            self._connection.execute("DELETE FROM outbox WHERE class = 'state'")
        return epoch


class Writing:
    """What may be written inside `Store.writing`: any table by `execute`, and sketches into the outbox."""

    def __init__(self, connection: sqlite3.Connection, outbox: Outbox) -> None:
        self._connection, self._outbox = connection, outbox
        self.has_added = False

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement of the transaction."""
        return self._connection.execute(statement, values)

    def add_sketch(self, draft: SketchDraft) -> int:
        """Put the sketch into the outbox; returns its revision."""
        self.has_added = True
        return self._outbox.insert_sketch(draft)


def count_rows(path: Path) -> tuple[str, OutboxCounts]:
    """Epoch and figures of a file that no agent has open now, without changing it. Raises: DeviceError when it cannot be read."""
    with looking_at(path) as connection:
        row = connection.execute("SELECT value FROM named WHERE name = 'epoch'").fetchone()
        return "" if row is None else str(row[0]), read_counts(connection)


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def _nothing() -> None:
    pass


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
