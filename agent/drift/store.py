"""What drift remembers on the device, in tables of the agent's one file: sub-windows of 28 days, grids, and where each check stands."""
# ruff: noqa: S608 - statements are put together from the constants of this file; every value is a parameter

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from agent.store import SketchDraft, Store, Writing
from protocol.clock import Clock, to_unix_ms
from protocol.errors import DeviceError

SUBWINDOWS_PER_DAY = 144
#: Revisions that were given are remembered longer than any window can wait.
_KEEP_REVS_MS = 60 * 86_400_000
#: A release that was rolled back may return for so long and find its reference.
_KEEP_CHECKS_MS = 400 * 86_400_000
_BUSY_S = 10.0
#: Pages that SQLite keeps in memory; 2000 by itself. Weeks of sub-windows are read once a day, one after the other, and would fill whatever
#: there is for good; the hours that each check reads are 40 KiB.
_CACHE_KIB = 256


class Flag(IntFlag):
    """What is to be known of a sub-window besides its counts."""

    #: It can be judged.
    TESTABLE = 1
    #: It lies inside a raised alarm: no reference is fitted on it.
    IN_ALARM = 2
    #: It is not over yet, or the agent ended inside it; more rows may come.
    OPEN = 4
    #: The clock jumped in it.
    JUMPED = 8
    #: Frames did not come for a while.
    GAP = 16
    #: It is not over, and all that was counted of it is here: the agent ended in order.
    FLUSHED = 32


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What counts belong to; hexadecimal ids of 16 bytes."""

    pipeline: str
    model: str
    grid: str
    src: int = 0


@dataclass(frozen=True, slots=True)
class SubWindowRow:
    """Ten minutes of one subject."""

    subject: Subject
    #: Unix seconds / 600.
    w0: int
    rows: int
    excluded: int
    flags: Flag
    #: The check's T²; None: not judged.
    score: float | None
    #: A window of one sub-window, as protocol.sketches.codec encodes it.
    body: bytes
    #: Id of the window that it went to the server with; empty: it did not.
    sent: str = ""


@dataclass(frozen=True, slots=True)
class CheckRow:
    """Where the check of one subject stands."""

    subject: Subject
    #: JSON of `agent.drift.check.CheckState`.
    state: str
    #: As protocol.sketches.reference encodes it; None: there is none yet.
    reference: bytes | None


_COLUMNS = "pipeline, model, grid, src, w0, rows, excluded, flags, score, body, sent"
_OF_SUBJECT = "pipeline = ? AND model = ? AND grid = ? AND src = ?"


class DriftStore:
    """Typed functions over the tables; each writing one is one durable transaction and raises DeviceError."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Bounds the pages that the store's file keeps in memory. Raises: DeviceError."""
        self._store, self._clock = store, clock
        with store.looking() as connection:
            connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")

    # --- grids ---

    def keep_grid(self, grid: str, body: bytes) -> None:
        """Remember the grid: slots are written anew, and the counts made on it are still to be read."""
        with self._store.writing() as writing:
            writing.execute("INSERT OR IGNORE INTO drift_grids (grid, body, at) VALUES (?, ?, ?)", (grid, body, self._now_ms()))

    def find_grid(self, grid: str) -> bytes | None:
        """Its bytes, or None."""
        with self._store.looking() as connection:
            row = connection.execute("SELECT body FROM drift_grids WHERE grid = ?", (grid,)).fetchone()
        return None if row is None else bytes(row[0])

    # --- sub-windows ---

    def has_windows(self) -> bool:
        """Whether any sub-window is remembered."""
        with self._store.looking() as connection:
            return connection.execute("SELECT 1 FROM drift_windows LIMIT 1").fetchone() is not None

    def save_window(self, row: SubWindowRow) -> None:
        """Put or replace the sub-window."""
        with self._store.writing() as writing:
            _put(writing, row)

    def save_windows(self, rows: Sequence[SubWindowRow]) -> None:
        """Put or replace all of them, or none."""
        with self._store.writing() as writing:
            for row in rows:
                _put(writing, row)

    def find_window(self, subject: Subject, w0: int) -> SubWindowRow | None:
        """The sub-window, or None."""
        with self._store.looking() as connection:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM drift_windows WHERE {_OF_SUBJECT} AND w0 = ?", (*_key(subject), w0)
            ).fetchone()
        return None if found is None else _row(found)

    def open_windows(self) -> list[SubWindowRow]:
        """Those that are not closed, oldest first."""
        return self._select("flags & ? <> 0", (Flag.OPEN,))

    def unsent(self, *, before: int) -> list[SubWindowRow]:
        """Closed sub-windows that begin before and went with no window yet, oldest first."""
        return self._select("sent = '' AND flags & ? = 0 AND w0 < ?", (Flag.OPEN, before))

    def history(self, subject: Subject, *, since: int, until: int) -> list[SubWindowRow]:
        """The subject's closed sub-windows of [since, until), oldest first."""
        return self._select(f"{_OF_SUBJECT} AND flags & ? = 0 AND w0 >= ? AND w0 < ?", (*_key(subject), Flag.OPEN, since, until))

    def clean_places(self, subject: Subject, *, since: int) -> list[int]:
        """`w0` of the subject's sub-windows from `since` on that a reference may be fitted on, ascending."""
        with self._store.looking() as connection:
            statement = f"SELECT w0 FROM drift_windows WHERE {_OF_SUBJECT} AND w0 >= ? AND flags & ? = ? ORDER BY w0"
            mask = Flag.TESTABLE | Flag.IN_ALARM | Flag.OPEN
            return [int(row[0]) for row in connection.execute(statement, (*_key(subject), since, int(mask), int(Flag.TESTABLE)))]

    def send(self, rows: Sequence[SubWindowRow], draft: SketchDraft) -> int:
        """Put the window that these sub-windows make into the outbox, and mark them as gone with it, in one; returns its revision."""
        with self._store.writing() as writing:
            for row in rows:
                writing.execute(
                    f"UPDATE drift_windows SET sent = ? WHERE {_OF_SUBJECT} AND w0 = ?", (draft.window, *_key(row.subject), row.w0)
                )
            return writing.add_sketch(draft)

    def oldest_window(self) -> int | None:
        """The first sub-window that is remembered, or None."""
        with self._store.looking() as connection:
            found = connection.execute("SELECT min(w0) FROM drift_windows").fetchone()[0]
        return None if found is None else int(found)

    def forget_before(self, w0: int) -> None:
        """Forget older sub-windows, and what only they needed."""
        with self._store.writing() as writing:
            writing.execute("DELETE FROM drift_windows WHERE w0 < ?", (w0,))
            writing.execute("DELETE FROM drift_revs WHERE at < ?", (self._now_ms() - _KEEP_REVS_MS,))
            long_ago = self._now_ms() - _KEEP_CHECKS_MS
            writing.execute("DELETE FROM drift_states WHERE at < ?", (long_ago,))
            kept = "SELECT pipeline, model, grid, src FROM drift_states"
            writing.execute(f"DELETE FROM drift_checks WHERE at < ? AND (pipeline, model, grid, src) NOT IN ({kept})", (long_ago,))
            used = "SELECT grid FROM drift_windows UNION SELECT grid FROM drift_checks"
            writing.execute(f"DELETE FROM drift_grids WHERE at < ? AND grid NOT IN ({used})", (self._now_ms() - _KEEP_REVS_MS,))

    def _select(self, where: str, values: Sequence[object]) -> list[SubWindowRow]:
        with self._store.looking() as connection:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM drift_windows WHERE {where} ORDER BY w0, pipeline, model", values
            ).fetchall()
        return [_row(row) for row in found]

    # --- checks ---

    def checks(self) -> list[CheckRow]:
        """Every check that is remembered."""
        with self._store.looking() as connection:
            statement = (
                "SELECT pipeline, model, grid, src, coalesce(newer.state, kept.state), reference FROM drift_checks AS kept "
                "LEFT JOIN drift_states AS newer USING (pipeline, model, grid, src)"
            )
            found = connection.execute(statement).fetchall()
        return [CheckRow(Subject(*row[:4]), row[4], None if row[5] is None else bytes(row[5])) for row in found]

    def save_check(
        self, row: CheckRow, *, has_new_reference: bool = True, window: SubWindowRow | None = None, evidence: Sequence[SketchDraft] = ()
    ) -> None:
        """Replace the check; with it, in one, the sub-window that it judged and those that go to the server at once.

        `has_new_reference`: False when the one that is kept is its own; it is as large as a hundred sub-windows, and flash wears out.
        """
        with self._store.writing() as writing:
            if window is not None:
                _put(writing, window)
            state = (*_key(row.subject), row.state, self._now_ms())
            writing.execute("INSERT OR REPLACE INTO drift_states (pipeline, model, grid, src, state, at) VALUES (?, ?, ?, ?, ?, ?)", state)
            if has_new_reference:
                statement = (
                    "INSERT OR REPLACE INTO drift_checks (pipeline, model, grid, src, state, reference, at) VALUES (?, ?, ?, ?, ?, ?, ?)"
                )
                writing.execute(statement, (*_key(row.subject), row.state, row.reference, self._now_ms()))
            for draft in evidence:
                writing.add_sketch(draft)

    def _now_ms(self) -> int:
        return to_unix_ms(self._clock.now())


def read_windows(path: Path, *, since: int, pipeline: str | None = None) -> tuple[list[SubWindowRow], dict[str, bytes]]:
    """Closed sub-windows in the file from `since` on, oldest first, and their grids by id; an agent may run. Raises: DeviceError."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as connection:
            where, values = "flags & ? = 0 AND w0 >= ?", [int(Flag.OPEN), since]
            statement = f"SELECT {_COLUMNS} FROM drift_windows WHERE {where} ORDER BY w0, pipeline, model"
            rows = [_row(row) for row in connection.execute(statement, values)]
            grids = {grid: bytes(body) for grid, body in connection.execute("SELECT grid, body FROM drift_grids")}
    except (sqlite3.Error, OSError) as error:
        raise DeviceError(f"{path} cannot be read: {error}.", code="store-failed") from None
    return [row for row in rows if pipeline in (None, row.subject.pipeline)], grids


def _put(writing: Writing, row: SubWindowRow) -> None:
    values = (*_key(row.subject), row.w0, row.rows, row.excluded, int(row.flags), row.score, row.body, row.sent)
    writing.execute(f"INSERT OR REPLACE INTO drift_windows ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _key(subject: Subject) -> tuple[str, str, str, int]:
    return subject.pipeline, subject.model, subject.grid, subject.src


def _row(values: tuple[object, ...]) -> SubWindowRow:
    pipeline, model, grid, src, w0, rows, excluded, flags, score, body, sent = values
    subject = Subject(str(pipeline), str(model), str(grid), int(src))  # type: ignore[call-overload]
    return SubWindowRow(subject, w0, rows, excluded, Flag(flags), score, body, sent)  # type: ignore[arg-type]
