"""Releases that run beside the ones their lines have: installed in a slot of their own, compared, never activated.

    candidates/{line}/a/           the candidate's files, as in any slot; no pointer ever leads to them

An update machine of its own brings them: the same downloads, deltas, checks and self-test, which ends after `installing`. What it remembers
lies in named values of the store, apart from the journal of the lines.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from agent.slots import Slot, SlotName, Slots
from agent.update.assignment import Assignment, CandidateRun, LineOffer
from agent.update.journal import Update, Values
from agent.update.machine import UpdateMachine
from agent.update.states import UpdateState
from agent.update.store import BlockedRow, UpdateRow, UpdateStepRow
from protocol.clock import Clock, to_unix_ms
from protocol.ids import LineName, ReleaseVersion
from protocol.messages import SlotReport

#: Name of the slot in reports: lines have "a" and "b".
SLOT: Literal["c"] = "c"
#: Below the state folder.
FOLDER = "candidates"
#: Releases that stay refused; the oldest are forgotten, and tried once more if they are offered again.
MAX_BLOCKED = 64
_ROW: TypeAdapter[UpdateRow] = TypeAdapter(UpdateRow)
_BLOCKED: TypeAdapter[list[BlockedRow]] = TypeAdapter(list[BlockedRow])


class CandidateStore:
    """The journal's memory, in named values."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def load_update(self, line: str) -> UpdateRow | None:
        text = self.get_value(f"row.{line}")
        return _ROW.validate_json(text) if text else None

    def save_update(self, row: UpdateRow) -> None:
        lines = self._lines()
        if row.line not in lines:  # first, so that no row is ever out of sight
            self.set_value("lines", " ".join([*lines, row.line]))
        self.set_value(f"row.{row.line}", _ROW.dump_json(row).decode())

    def list_updates(self) -> list[UpdateRow]:
        return [row for line in self._lines() if (row := self.load_update(line)) is not None]

    def add_step(self, step: UpdateStepRow) -> None:
        """The state of a candidate is told as it is; its history is not kept."""

    def list_steps(self, line: str, limit: int = 64) -> list[UpdateStepRow]:  # noqa: ARG002 - the journal's interface
        return []

    def block(self, row: BlockedRow) -> None:
        others = [one for one in self.list_blocked() if (one.line, one.release) != (row.line, row.release)]
        self._save_blocked([*others, row][-MAX_BLOCKED:])

    def list_blocked(self) -> list[BlockedRow]:
        text = self.get_value("blocked")
        return _BLOCKED.validate_json(text) if text else []

    def unblock(self, line: str, release: str) -> None:
        self._save_blocked([one for one in self.list_blocked() if (one.line, one.release) != (line, release)])

    def get_value(self, name: str) -> str | None:
        return self._values.get_value(f"candidate.{name}")

    def set_value(self, name: str, value: str) -> None:
        self._values.set_value(f"candidate.{name}", value)

    def _lines(self) -> list[str]:
        return (self.get_value("lines") or "").split()

    def _save_blocked(self, rows: list[BlockedRow]) -> None:
        self.set_value("blocked", _BLOCKED.dump_json(rows).decode())


@dataclass(frozen=True, slots=True)
class Listed:
    """What the latest assignment says about candidates."""

    #: Line -> assignment of its candidate.
    lines: dict[str, str]
    #: Pipelines that differ from their line's candidate.
    pipelines: dict[str, Literal["active", "shadow", "ab"]]


_LISTED: TypeAdapter[Listed] = TypeAdapter(Listed)


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """An installed candidate that is to run now."""

    offer: LineOffer
    run: CandidateRun
    folder: str
    #: The release that the line runs, and where it lies.
    champion: ReleaseVersion
    champion_folder: str

    @property
    def release(self) -> ReleaseVersion:
        return self.offer.release


class Candidates:
    """Which candidates are to run beside their lines, now. All methods may be called from any thread but `tend`."""

    def __init__(
        self, machine: UpdateMachine, slots: Slots, values: Values, *, clock: Clock, is_busy: Callable[[LineName], bool], lines: Slots
    ) -> None:
        """`machine`, `slots`: the candidates' own. `lines`: the slots of what runs. `is_busy`: whether an update of the line is open."""
        self.machine, self._slots, self._lines = machine, slots, lines
        self._store, self._clock, self._is_busy = CandidateStore(values), clock, is_busy
        self._listed = self._load_listed()

    def offer(self, assignment: Assignment) -> None:
        """Take over what a verified assignment says about candidates; durable when it returns. Raises: DeviceError."""
        listed = Listed(
            {str(offer.line): offer.assignment for offer in assignment.candidates},
            {str(name): run_as for name, run_as in assignment.pipelines.items()},
        )
        if listed != self._listed:
            self._store.set_value("listed", _LISTED.dump_json(listed).decode())
            self._listed = listed
        if assignment.candidates or self.machine.lines():
            self.machine.offer(replace(assignment, lines=assignment.candidates))

    def plans(self) -> list[CandidatePlan]:
        """The candidates that are installed, assigned, in their time, and not what their line runs already."""
        now_ms, found = to_unix_ms(self._clock.now()), []
        for line, assignment in self._listed.lines.items():
            update = self._installed(LineName(line), assignment)
            if update is None or (run := update.offer.candidate) is None or (run.until_ms is not None and run.until_ms <= now_ms):
                continue
            slot = next((one for one in self._whole(LineName(line)) if one.content == update.offer.content), None)
            active = self._lines.active(LineName(line))
            if slot is not None and active is not None and active.content.release != slot.content.release:
                found.append(CandidatePlan(update.offer, run, str(slot.folder), active.content.release, str(active.folder)))
        return found

    def runs_as(self, plan: CandidatePlan, pipeline: str) -> Literal["active", "shadow", "ab"]:
        """How a pipeline of the plan's line runs the candidate; "active": not at all."""
        return self._listed.pipelines.get(pipeline, plan.run.run_as)

    def tend(self) -> None:
        """Free the disk of candidates that nobody assigns any more. Waits for an update of their line: it may take their files over."""
        listed = self._listed.lines
        for line in self._slots.lines():
            if line not in listed and not self.machine.is_open(line) and not self._is_busy(line) and self._whole(line):
                self._slots.discard_inactive(line)

    def slot_reports(self) -> list[SlotReport]:
        """Every installed candidate, as displayed and as signed."""
        return [report.model_copy(update={"slot": SLOT, "active": False, "committed": False}) for report in self._slots.reports()]

    def rows(self) -> list[dict[str, Any]]:
        """What `mooring-agent status` shows of candidates."""
        listed = self._listed.lines
        return [self.machine.state_of(line).model_dump() for line in self.machine.lines() if line in listed]

    def _installed(self, line: LineName, assignment: str) -> Update | None:
        update = self.machine.update_of(line)
        is_there = update is not None and update.state is UpdateState.SUCCEEDED and update.offer.assignment == assignment
        return update if is_there else None

    def _whole(self, line: LineName) -> list[Slot]:
        return [slot for slot in (self._slots.get(line, name) for name in SlotName) if slot is not None]

    def _load_listed(self) -> Listed:
        text = self._store.get_value("listed")
        try:
            return _LISTED.validate_json(text) if text else Listed({}, {})
        except ValidationError:  # written by another version: the next assignment says it anew
            return Listed({}, {})
