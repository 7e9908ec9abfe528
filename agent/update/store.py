"""What updates remember across a power cut, in tables of the agent's one file: where each line is, the way it went, what it refuses."""
# ruff: noqa: S608 - statements are put together from the constants of this file; every value is a parameter

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agent.store import Store
from protocol.clock import from_unix_ms, to_unix_ms

_COLUMNS = "update_id, line, release, counter, assignment, attempt, state, saves, old_slot, reason, text, context_json, at"
_STEP_COLUMNS = "update_id, line, release, state, at, reason, text"
_BLOCKED_COLUMNS = "line, release, attempt, reason, text, at, digests"


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


class UpdateStore:
    """`agent.update.journal.JournalStore` for the lines of this device; every write is durable when it returns.

    Raises: DeviceError, as `Store`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def load_update(self, line: str) -> UpdateRow | None:
        """Where the line's update was, or None when it never had one."""
        with self._store.looking() as connection:
            row = connection.execute(f"SELECT {_COLUMNS} FROM updates WHERE line = ?", (line,)).fetchone()
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
        with self._store.writing() as writing:
            writing.execute(f"INSERT OR REPLACE INTO updates ({_COLUMNS}) VALUES ({_marks(values)})", values)

    def list_updates(self) -> list[UpdateRow]:
        """The row of every line, in the order of the lines' names."""
        with self._store.looking() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM updates ORDER BY line").fetchall()
        return [_update_row(row) for row in rows]

    def add_step(self, step: UpdateStepRow) -> None:
        """Remember an arrow; the oldest beyond 200 per line are forgotten."""
        values = (step.update_id, step.line, step.release, step.state, to_unix_ms(step.at), step.reason, step.text)
        with self._store.writing() as writing:
            writing.execute(f"INSERT INTO steps ({_STEP_COLUMNS}) VALUES ({_marks(values)})", values)
            keep = "SELECT id FROM steps WHERE line = ? ORDER BY id DESC LIMIT 200"
            writing.execute(f"DELETE FROM steps WHERE line = ? AND id NOT IN ({keep})", (step.line, step.line))

    def list_steps(self, line: str, limit: int = 64) -> list[UpdateStepRow]:
        """The line's latest arrows, oldest first."""
        with self._store.looking() as connection:
            statement = f"SELECT {_STEP_COLUMNS} FROM steps WHERE line = ? ORDER BY id DESC LIMIT ?"
            rows = connection.execute(statement, (line, limit)).fetchall()
        return [
            UpdateStepRow(uid, at_line, release, state, from_unix_ms(at), reason, text)
            for uid, at_line, release, state, at, reason, text in reversed(rows)
        ]

    def block(self, row: BlockedRow) -> None:
        """Refuse the release from now on."""
        values = (row.line, row.release, row.attempt, row.reason, row.text, to_unix_ms(row.at), json.dumps(row.digests))
        with self._store.writing() as writing:
            writing.execute(f"INSERT OR REPLACE INTO blocked ({_BLOCKED_COLUMNS}) VALUES ({_marks(values)})", values)

    def list_blocked(self) -> list[BlockedRow]:
        """Every refused release, oldest first."""
        with self._store.looking() as connection:
            rows = connection.execute(f"SELECT {_BLOCKED_COLUMNS} FROM blocked ORDER BY at").fetchall()
        return [
            BlockedRow(line, release, attempt, reason, text, from_unix_ms(at), tuple(json.loads(digests)))
            for line, release, attempt, reason, text, at, digests in rows
        ]

    def unblock(self, line: str, release: str) -> None:
        """Accept the release again."""
        with self._store.writing() as writing:
            writing.execute("DELETE FROM blocked WHERE line = ? AND release = ?", (line, release))

    def get_value(self, name: str) -> str | None:
        """The value saved under the name, or None."""
        return self._store.get_value(name)

    def set_value(self, name: str, value: str) -> None:
        """Save the value under the name."""
        self._store.set_value(name, value)


def _update_row(row: tuple[Any, ...]) -> UpdateRow:
    *values, at = row
    return UpdateRow(**dict(zip(_COLUMNS.split(", "), values, strict=False)), at=from_unix_ms(at))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
