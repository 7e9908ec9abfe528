"""Room in the outbox: telemetry windows are merged, then sketches that were never handed out, then the least valuable rows are given up.

Every row that is given up is counted. All of it happens inside a transaction of the store.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from agent.database.outbox import ALL_SKETCHES, Draft, Outbox, SketchDraft

#: Telemetry windows are merged this many at a time and never beyond this length, in seconds: an hour still shows a bad night.
MERGE_WINDOWS = 4
MERGED_WINDOW_LIMIT_S = 3600.0
#: Which stream gives way first when the budget is full.
_SHED_ORDER = ("tel", "sketch", "job", "event", "audit")
#: What a merged window gets anew.
_ENVELOPE_KEYS = frozenset({"v", "clk", "boot", "epoch", "seq", "floor"})

#: Merges bodies of one telemetry stream, oldest first, into one that covers them all; None: they do not fit together.
Merge = Callable[[Sequence[dict[str, Any]]], dict[str, Any] | None]
#: Finds some of these sketches, oldest first, that one may stand for: their places in the sequence, and that one. None: there are none.
MergeSketches = Callable[[Sequence[bytes]], tuple[tuple[int, ...], SketchDraft] | None]


@dataclass(frozen=True, slots=True)
class Shedding:
    """How rows give way. `handed`: rows whose content somebody has seen, which stay as they are or go; it grows while this lives."""

    outbox: Outbox
    handed: Collection[int]
    merge: Merge | None
    merge_sketches: MergeSketches | None

    def down_to(self, target: int) -> None:
        """Merge while that helps, then give up rows, oldest first, until they take at most `target` bytes."""
        while self.outbox.used_bytes > target and self._merge_some():
            pass
        while self.outbox.used_bytes > target and self._merge_some_sketches():
            pass
        for stream in _SHED_ORDER:
            while self.outbox.used_bytes > target and self._give_up_some(stream, target):
                pass

    def _merge_some(self) -> bool:
        """Merge the oldest run of fine windows that was never sent, per level; returns whether any row went away."""
        if self.merge is None:
            return False
        statement = "SELECT id, levels, body FROM outbox WHERE stream = 'tel' AND published = 0 AND epoch = ? ORDER BY seq LIMIT 4096"
        runs: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
        merged = False
        for row_id, levels, text in self.outbox.connection.execute(statement, (self.outbox.epoch,)).fetchall():
            body = json.loads(text)
            if row_id in self.handed or body.get("window_s", 0.0) * MERGE_WINDOWS > MERGED_WINDOW_LIMIT_S:
                continue
            key = (levels, f"{body.get('pipeline') or body.get('line', '')} {body.get('release', '')} {body.get('window_s')}")
            run = runs.setdefault(key, [])
            run.append((row_id, body))
            if len(run) == MERGE_WINDOWS:
                del runs[key]
                if (coarse := self.merge([body for _, body in run])) is not None:
                    merged = True
                    self._replace([old_id for old_id, _ in run], levels, coarse)
        return merged

    def _replace(self, row_ids: Sequence[int], levels: str, coarse: dict[str, Any]) -> None:
        """Let one telemetry window, under an envelope of its own, stand for these rows."""
        for row_id in row_ids:
            self.outbox.delete("id = ?", (row_id,))
        self.outbox.insert(
            Draft("tel", tuple(levels.split("/")), {key: value for key, value in coarse.items() if key not in _ENVELOPE_KEYS})
        )

    def _merge_some_sketches(self) -> bool:
        """Let one sketch stand for several that were never handed out; returns whether any row went away."""
        if self.merge_sketches is None:
            return False
        statement = f"SELECT id, body FROM outbox WHERE {ALL_SKETCHES} AND handed = 0 ORDER BY id"  # noqa: S608 - a constant
        found = self.outbox.connection.execute(statement).fetchall()
        merged = self.merge_sketches([body for _, body in found])
        if merged is None:
            return False
        places, draft = merged
        for place in places:
            self.outbox.delete("id = ?", (found[place][0],))
        self.outbox.insert_sketch(draft)
        return True

    def _give_up_some(self, stream: str, target: int) -> bool:
        """Give up the stream's oldest rows, as few of them as will do; returns whether there were any."""
        statement = "SELECT id, class FROM outbox WHERE stream = ? ORDER BY id LIMIT 64"
        found = self.outbox.connection.execute(statement, (stream,)).fetchall()
        for row_id, message_class in found:
            if self.outbox.used_bytes <= target:
                break
            self.outbox.delete("id = ?", (row_id,))
            self.outbox.count_dropped(message_class)
        return bool(found)
