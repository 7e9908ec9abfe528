"""What one line's update must remember across a power cut, as values over the store's rows; saving is durable when it returns."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from agent.update.assignment import LineOffer
from agent.update.delivery import Delivery, Setbacks
from agent.update.states import FINAL, UpdateState
from agent.update.store import BlockedRow, UpdateRow, UpdateStepRow
from protocol.clock import Clock
from protocol.errors import DeviceError
from protocol.ids import LineName, ReleaseVersion, new_id
from runtime.selftest import Figures


class Values(Protocol):
    """What is remembered by name, as `agent.store.Store` does; `set_value` is durable when it returns."""

    def get_value(self, name: str) -> str | None: ...

    def set_value(self, name: str, value: str) -> None: ...


class JournalStore(Values, Protocol):
    """What of `agent.update.store.UpdateStore` the update machine uses; every write is durable when it returns."""

    def load_update(self, line: str) -> UpdateRow | None: ...

    def save_update(self, row: UpdateRow) -> None: ...

    def list_updates(self) -> list[UpdateRow]: ...

    def add_step(self, step: UpdateStepRow) -> None: ...

    def list_steps(self, line: str, limit: int = 64) -> list[UpdateStepRow]: ...

    def block(self, row: BlockedRow) -> None: ...

    def list_blocked(self) -> list[BlockedRow]: ...

    def unblock(self, line: str, release: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What the steps need besides the state."""

    offer: LineOffer
    #: The release before, in its last window; the peer of the probe.
    peer: Figures | None = None
    #: Bytes fetched over the network for this update, and bytes in place when the state was last saved.
    bytes_downloaded: int = 0
    bytes_in_place: int = 0
    slow_retrieval: bool = False
    #: The new slot passed its self-test.
    self_tested: bool = False
    #: Healthy inferences of the new release at the last look.
    healthy: int = 0
    #: It was withdrawn: no fault of the release.
    is_aborted: bool = False
    #: This failure is the release's own: do not take it again on the same attempt.
    is_release_bad: bool = False
    #: What was decided to be fetched; None: nothing yet. Bytes fetched before that do not count against its budget.
    delivery: Delivery | None = None
    bytes_before: int = 0
    setbacks: Setbacks = field(default_factory=Setbacks)


@dataclass(frozen=True, slots=True)
class Update:
    """One update of one line."""

    update_id: str
    state: UpdateState
    #: How often the row was saved before a step, since the last progress.
    saves: int
    #: The slot committed when the update began: where a rollback goes. None: the line had no model.
    old_slot: str | None
    reason: str
    text: str
    context: Context

    @property
    def offer(self) -> LineOffer:
        """The release that is on its way."""
        return self.context.offer

    @property
    def is_open(self) -> bool:
        """Whether the machine has something to do."""
        return self.state not in FINAL

    def with_reason(self, reason: str, text: str) -> "Update":
        """The update with the reason of what comes next."""
        return replace(self, reason=reason, text=text[:2000])

    def restarted(self, *, saves: int) -> "Update":
        """The update with its count of saves set back: it made progress, or begins its way back."""
        return replace(self, saves=saves)

    def with_context(self, **changes: Any) -> "Update":
        """The update with some of its context changed."""
        return replace(self, context=replace(self.context, **changes))


class Journal:
    """The updates of all lines; one row per line, the newest update of it."""

    def __init__(self, store: JournalStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def open(self, offer: LineOffer, *, old_slot: str | None) -> Update:
        """A new update of the line, saved as idle."""
        update = Update(new_id("up"), UpdateState.IDLE, 0, old_slot, "", "", Context(offer))
        self.save(update)
        return update

    def reopen_in_full(self, failed: Update) -> Update:
        """The update that failed by its delta once more, without any base; saved as idle."""
        old = failed.context
        setbacks, fetched = replace(old.setbacks, full_only=True), old.bytes_downloaded
        context = Context(old.offer, bytes_downloaded=fetched, bytes_before=fetched, setbacks=setbacks)
        again = Update(new_id("up"), UpdateState.IDLE, 0, failed.old_slot, "", "", context)
        self.save(again)
        return again

    def record_current(self, offer: LineOffer) -> None:
        """The line already runs what is offered: its record names the new assignment, no state is gone through."""
        last = self.load(offer.line)
        is_same = last is not None and last.state is UpdateState.SUCCEEDED and last.offer.content == offer.content
        if last is not None and is_same:
            self.save(last.with_context(offer=offer))
        else:
            self.save(Update(new_id("up"), UpdateState.SUCCEEDED, 0, None, "", "It already ran.", Context(offer)))

    def load(self, line: str) -> Update | None:
        """The line's newest update. Raises: DeviceError when its row cannot be understood."""
        row = self._store.load_update(line)
        return None if row is None else _update_of(row)

    def list_all(self) -> list[Update]:
        """The newest update of every line; rows that cannot be understood are left out."""
        found = []
        for row in self._store.list_updates():
            try:
                found.append(_update_of(row))
            except DeviceError:
                continue
        return found

    def save(self, update: Update) -> None:
        """Make the update durable; a state that is new becomes a step of the line's history."""
        offer, now = update.offer, self._clock.now()
        before = self._store.load_update(offer.line)
        row = UpdateRow(
            update_id=update.update_id,
            line=offer.line,
            release=offer.release,
            counter=offer.counter,
            assignment=offer.assignment,
            attempt=offer.attempt,
            state=update.state.value,
            saves=update.saves,
            old_slot=update.old_slot,
            reason=update.reason,
            text=update.text,
            context_json=_CONTEXT.dump_json(update.context).decode(),
            at=now,
        )
        self._store.save_update(row)
        if before is None or (before.update_id, before.state) != (update.update_id, update.state.value):
            step = UpdateStepRow(update.update_id, offer.line, offer.release, update.state.value, now, update.reason, update.text)
            self._store.add_step(step)

    def steps(self, line: str, limit: int = 64) -> list[UpdateStepRow]:
        """The line's latest arrows, oldest first."""
        return self._store.list_steps(line, limit)

    # --- blocklist ---

    def block(self, update: Update) -> None:
        """Refuse the update's release until it is offered with a higher attempt."""
        offer = update.offer
        digests = tuple(file.sha256 for file in offer.files)
        self._store.block(BlockedRow(offer.line, offer.release, offer.attempt, update.reason, update.text, self._clock.now(), digests))

    def blocked(self) -> list[BlockedRow]:
        """Every release that is refused."""
        return self._store.list_blocked()

    def unblock(self, line: str, release: str) -> None:
        """Take the release again."""
        self._store.unblock(line, release)

    # --- what is remembered per line between updates ---

    def floor(self, line: LineName) -> int:
        """The lowest counter that may still be installed."""
        return int(self._store.get_value(f"update.floor.{line}") or 0)

    def raise_floor(self, line: LineName, floor: int) -> None:
        """Floors only grow."""
        if floor > self.floor(line):
            self._store.set_value(f"update.floor.{line}", str(floor))

    def next_offer(self, line: LineName) -> LineOffer | None:
        """The offer that waits for the end of the open update."""
        text = self._store.get_value(f"update.next.{line}")
        return _OFFER.validate_json(text) if text else None

    def save_next_offer(self, line: LineName, offer: LineOffer | None) -> None:
        """Remember the offer, or forget it."""
        if offer is not None or self._store.get_value(f"update.next.{line}"):
            self._store.set_value(f"update.next.{line}", "" if offer is None else _OFFER.dump_json(offer).decode())

    def renewed_offer(self, line: LineName) -> LineOffer | None:
        """The open update's release as it was offered last, with other ways to fetch it."""
        text = self._store.get_value(f"update.renewed.{line}")
        return _OFFER.validate_json(text) if text else None

    def save_renewed_offer(self, line: LineName, offer: LineOffer | None) -> None:
        """Remember the offer, or forget it."""
        if offer is not None or self._store.get_value(f"update.renewed.{line}"):
            self._store.set_value(f"update.renewed.{line}", "" if offer is None else _OFFER.dump_json(offer).decode())

    def abort(self, line: LineName) -> "Abort | None":
        """The wish to withdraw an update of the line."""
        text = self._store.get_value(f"update.abort.{line}")
        return _ABORT.validate_json(text) if text else None

    def save_abort(self, line: LineName, abort: "Abort | None") -> None:
        """Remember the wish, or forget it."""
        if abort is not None or self._store.get_value(f"update.abort.{line}"):
            self._store.set_value(f"update.abort.{line}", "" if abort is None else _ABORT.dump_json(abort).decode())

    def refusal(self, line: LineName) -> "Refusal | None":
        """Why the line's latest offer was not even begun."""
        text = self._store.get_value(f"update.refusal.{line}")
        return _REFUSAL.validate_json(text) if text else None

    def save_refusal(self, line: LineName, refusal: "Refusal | None") -> None:
        """Remember the refusal, or forget it."""
        if refusal is not None or self._store.get_value(f"update.refusal.{line}"):
            text = "" if refusal is None else _REFUSAL.dump_json(refusal).decode()
            self._store.set_value(f"update.refusal.{line}", text)

    def load_failures(self, line: LineName) -> int:
        """Starts in a row at which the line's committed model did not load."""
        return int(self._store.get_value(f"update.load_failures.{line}") or 0)

    def save_load_failures(self, line: LineName, count: int) -> None:
        """Remember the number."""
        if count != self.load_failures(line):
            self._store.set_value(f"update.load_failures.{line}", str(count))


@dataclass(frozen=True, slots=True)
class Abort:
    """The wish to withdraw one update."""

    update_id: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An offer that was refused at once."""

    release: ReleaseVersion
    assignment: str
    attempt: int
    code: str
    text: str


_CONTEXT: TypeAdapter[Context] = TypeAdapter(Context)
_OFFER: TypeAdapter[LineOffer] = TypeAdapter(LineOffer)
_ABORT: TypeAdapter[Abort] = TypeAdapter(Abort)
_REFUSAL: TypeAdapter[Refusal] = TypeAdapter(Refusal)


def _update_of(row: UpdateRow) -> Update:
    try:
        context, state = _CONTEXT.validate_json(row.context_json), UpdateState(row.state)
    except (ValidationError, ValueError) as error:
        raise DeviceError(
            f"The update of {row.line} to {row.release} cannot be read back from the journal.", code="journal_damaged"
        ) from error
    return Update(row.update_id, state, row.saves, row.old_slot, row.reason, row.text, context)
