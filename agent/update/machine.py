"""The driver of updates: save, act, move. Every arrow is a row of TRANSITIONS; a restart goes on at the saved state.

One thread drives all lines (`run`); offers and aborts may come from any thread. A step that has to wait holds its line, so that the
other lines go on. The way back has a loop bound of its own: an update that used up its bound still gets its rollback.
"""

import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from agent.slots import SlotName, Slots, disk_error
from agent.update.acceptance import Decision, judge_offer
from agent.update.applier import ChildApplier, DeltaApplier
from agent.update.assignment import Assignment, LineOffer
from agent.update.fetch import Fetcher
from agent.update.installers import ModelInstaller
from agent.update.journal import Abort, Journal, JournalStore, Refusal, Update
from agent.update.policy import OpenPolicy, Policy
from agent.update.probe import ProbeRules
from agent.update.states import FINAL, Outcome, UpdateState, can_abort, next_state
from agent.update.steps import Hold, ReleaseError, Result, Steps
from protocol.clock import Clock, to_unix_ms
from protocol.errors import ConflictError, DeviceError, MooringError, NotFoundError
from protocol.ids import Digest, LineName, ReleaseVersion
from protocol.messages import BlockedRelease, LineState, SlotReport, UpdateStep
from protocol.reasons import REASONS, named

#: Saves of one update without progress before it is given up (Mender's number; a normal update needs 8).
MAX_SAVES = 28
#: Saves after which a first model is given up too: from MAX_SAVES on, its commit is only looked at, hashed and written (ADR 0036).
MAX_FIRST_SAVES = 2 * MAX_SAVES
#: Starts in a row at which a committed model does not load, before the other slot is used.
MAX_LOAD_FAILURES = 3
#: Real seconds after which a model that did not come up at the start is tried again.
RETRY_S = 30.0
#: Seconds of the agent's clock between two hashings of all slots: flash chips rot.
SCRUB_S = 86_400.0
SCRUB_NICENESS = 15
#: Real seconds between two looks at how far a release has proved itself.
PROOF_S = 5.0
#: Longest sleep of the driving thread, real seconds: how late it notices that it shall stop when nobody wakes it.
LONGEST_SLEEP_S = 5.0
#: Failures of a delta, not of the release: the update begins once more, without a base (UPDATES 3.4).
DELTA_FAILURES = frozenset({"delta_failed", "base_damaged"})
#: States whose step tries nothing that could fail by itself: starts in them are no tries that could be used up.
_UNCOUNTED = frozenset({UpdateState.IDLE, UpdateState.WAITING})
#: States in which people may still decide about a release.
_BEFORE_ACTIVATION = frozenset(
    {UpdateState.IDLE, UpdateState.DOWNLOADING, UpdateState.VERIFYING, UpdateState.INSTALLING, UpdateState.WAITING}
)
#: States in which the pointer may be on trial.
_ON_TRIAL = frozenset({UpdateState.ACTIVATING, UpdateState.PROBING, UpdateState.COMMITTING, UpdateState.ROLLING_BACK})


@dataclass(frozen=True, slots=True)
class Problem:
    """A declared thing that is wrong with a line.

    Codes: no_model, slot_damaged, slot_fell_back, rollback_forbidden, cleanup_failed, journal_damaged.
    """

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What the version report says about one line's update (UPDATES 1.8)."""

    line: LineName
    assignment: str
    attempt: int
    update_state: str
    reason: str
    text: str
    healthy_inferences: int
    bytes_downloaded: int
    slow_retrieval: bool
    #: How the model comes, what is fetched for the release, bytes, and the deltas that did not make it.
    transfer: str = ""
    bytes_needed: int = 0
    failed_deltas: tuple[Digest, ...] = ()


class UpdateMachine:
    """Takes releases that the check verified onto this device, one update per line at a time, and off again when they do not hold."""

    def __init__(
        self,
        store: JournalStore,
        slots: Slots,
        installer: ModelInstaller,
        fetcher: Fetcher,
        *,
        clock: Clock,
        rules: ProbeRules,
        on_change: Callable[[LineName], None] = lambda _line: None,
        policy: Policy | None = None,
        chance: random.Random | None = None,
        applier: DeltaApplier | None = None,
    ) -> None:
        self._journal = Journal(store, clock)
        self._slots = slots
        self._installer = installer
        self._fetcher = fetcher
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        #: Lines whose current step waits: their row is saved already.
        self._held: dict[LineName, Hold] = {}
        self._aborting: set[LineName] = set()
        self._problems: dict[LineName, Problem] = {}
        #: Lines whose committed model did not come up, and when they are tried again.
        self._down: dict[LineName, float] = {}
        #: Lines whose release goes on proving itself: a campaign may want more healthy inferences than the probe saw.
        self._proofs: set[LineName] = set()
        self._policy: Policy = OpenPolicy() if policy is None else policy
        self._steps = Steps(
            installer,
            fetcher,
            applier=ChildApplier() if applier is None else applier,
            clock=clock,
            rules=rules,
            policy=self._policy,
            chance=random.Random() if chance is None else chance,  # noqa: S311 - spreads retries, guards no secret
            save=self._save,
            on_progress=on_change,
            should_stop=lambda line: self._stop.is_set() or line in self._aborting,
        )

    # --- offers, from any thread ---

    def offer(self, assignment: Assignment) -> None:
        """Take over a verified assignment: begin, supersede, withdraw or refuse per line; durable when it returns."""
        with self._lock:
            for line, floor in assignment.floors.items():
                self._journal.raise_floor(line, floor)
            for offer in assignment.lines:
                self._take(offer)
            listed = {offer.line for offer in assignment.lines}
            for update in self._journal.list_all():
                if update.offer.line not in listed:
                    self._journal.save_next_offer(update.offer.line, None)
                    self._request_abort(update, "withdrawn", "The server withdrew the assignment.")
        self._wake.set()

    def abort(self, line: LineName, *, reason: str, text: str) -> bool:
        """Withdraw the line's open update; returns False when there is none or it is past the point where that changes anything."""
        with self._lock:
            update = self._journal.load(line)
            return update is not None and self._request_abort(update, reason, text)

    def consent(self, line: LineName, *, is_given: bool) -> LineOffer:
        """What somebody on site says about the release that the line is getting; returns the release.

        A yes is remembered, also before it is needed; a no ends the update. Raises: NotFoundError, ConflictError when there is nothing
        to decide; DeviceError.
        """
        with self._lock:
            update = self._journal.load(line)
            if update is None or not update.is_open:
                raise NotFoundError(f"No update of {line} is under way that somebody could decide about.")
            if update.state not in _BEFORE_ACTIVATION:
                raise ConflictError(f"{update.offer.release} is {update.state} on {line} already; consent was for activating it.")
            self._say(line, update.offer.assignment, update, is_given=is_given, text="Consent was refused on site.")
        return update.offer

    def hear_consent(self, line: LineName, assignment: str, *, is_given: bool) -> None:
        """What somebody at the console said about an assignment, which may come later or be over; may be heard again and again.

        A no is taken at any time before activation; a yes does not undo what was said before. Raises: DeviceError.
        """
        with self._lock:
            said, update = self._policy.said(line, assignment), self._load(line)
            is_about = update is not None and update.is_open and update.offer.assignment == assignment
            if said is None or (said and not is_given and is_about and update is not None and update.state in _BEFORE_ACTIVATION):
                self._say(line, assignment, update if is_about else None, is_given=is_given, text="Consent was refused at the console.")

    def _say(self, line: LineName, assignment: str, update: Update | None, *, is_given: bool, text: str) -> None:
        self._policy.give_consent(line, assignment, is_given=is_given)
        if update is not None and not is_given and update.state in _BEFORE_ACTIVATION:
            self._request_abort(update, "consent", text)
        self._wake.set()

    def _take(self, offer: LineOffer) -> None:
        line, last = offer.line, self._load(offer.line)
        committed = self._slots.committed(line)
        judgment = judge_offer(
            offer,
            committed=None if committed is None else committed.content,
            last=last,
            blocked=self._journal.blocked(),
            floor=self._journal.floor(line),
        )
        refusal = None
        match judgment.decision:
            case Decision.REFUSE:
                refusal = Refusal(offer.release, offer.assignment, offer.attempt, judgment.code, judgment.text)
                if last is not None:
                    self._request_abort(last, "superseded", f"The server assigned {offer.release}.")
            case Decision.CURRENT:
                self._journal.record_current(offer)
                self._proofs.add(line)
                self._wake.set()
            case Decision.TAKE:
                if judgment.lifts_block:
                    self._journal.unblock(line, offer.release)
                self._begin_or_queue(offer, last)
            case Decision.GOING_ON:
                self._journal.save_next_offer(line, None)
                if last is not None and last.offer != offer:  # other deltas, or the permission to fetch more
                    self._journal.save_renewed_offer(line, offer)
            case Decision.ENDED:
                pass
        self._journal.save_refusal(line, refusal)
        self._on_change(line)

    def _begin_or_queue(self, offer: LineOffer, last: Update | None) -> None:
        if last is not None and last.is_open:
            self._journal.save_next_offer(offer.line, offer)
            self._request_abort(last, "superseded", f"The server assigned {offer.release}.")
        else:
            old = self._slots.pointer(offer.line).committed
            self._journal.open(offer, old_slot=None if old is None else old.value)

    def _request_abort(self, update: Update, reason: str, text: str) -> bool:
        if _begins_again(update):
            self._journal.save(update.with_context(is_aborted=True))
            return True
        if not update.is_open or not (can_abort(update.state) or update.state is UpdateState.IDLE):
            return False  # one that is idle ends as soon as it has begun
        self._journal.save_abort(update.offer.line, Abort(update.update_id, reason, text))
        self._aborting.add(update.offer.line)
        self._wake.set()
        return True

    # --- driving, one thread ---

    def run(self, stop: threading.Event) -> None:
        """Bring every line up, then drive updates until `stop` is set (call `wake` to make it look at once)."""
        self._stop = stop
        self.restore()
        next_scrub = self._clock.monotonic() + SCRUB_S
        while not stop.is_set():
            if self._clock.monotonic() >= next_scrub:
                self.scrub()
                next_scrub = self._clock.monotonic() + SCRUB_S
            self._clock.wait(self._wake, min(self.run_pending(), LONGEST_SLEEP_S * self._clock.speed))
            self._wake.clear()

    def wake(self) -> None:
        """Look again now."""
        self._wake.set()

    def run_pending(self) -> float:
        """Drive every open update as far as it goes; returns the seconds after which one wants to be looked at again."""
        is_open = [update.offer.line for update in self._journal.list_all() if update.is_open]
        waits = [self._drive(line) for line in is_open]
        waits.extend(self._retry(line) for line in sorted(self._down))
        waits.extend(self._prove(line) for line in sorted(self._proofs))
        return min((wait for wait in waits if wait is not None), default=3600.0)

    def _retry(self, line: LineName) -> float | None:
        """Try a model that is down again when its time has come; returns the seconds until the next try."""
        left = self._down[line] - self._clock.monotonic()
        if left > 0:
            return left
        self._down[line] = self._clock.monotonic() + RETRY_S * self._clock.speed
        try:
            # a slot on trial is started by its update's step
            is_up = not self._slots.pointer(line).trial and self._installer.bring_up(line).ok
        except (OSError, MooringError):
            return RETRY_S * self._clock.speed
        if is_up:
            self._is_up(line)
            self._on_change(line)
        return None if is_up else RETRY_S * self._clock.speed

    def _prove(self, line: LineName) -> float | None:
        """Report the healthy inferences of the release that runs whenever their number doubled; returns the seconds until the next look.

        A campaign counts what the device says it saw of the release (UPDATES 1.8): what was committed long ago, and what showed fewer in
        its probe than the campaign wants, would else never be counted.
        """
        with self._lock:
            update = self._load(line)
            if update is None or update.state is not UpdateState.SUCCEEDED or update.offer.candidate is not None:
                self._proofs.discard(line)
                return None
            figures = self._installer.figures(line)
            seen = 0 if figures is None else figures.healthy
            if not seen or seen < 2 * update.context.healthy:
                return PROOF_S * self._clock.speed
            self._journal.save(update.with_context(healthy=seen))
        self._on_change(line)
        return PROOF_S * self._clock.speed

    def _is_up(self, line: LineName) -> None:
        self._down.pop(line, None)
        if self._problems.get(line, Problem("", "")).code == "no_model":
            del self._problems[line]
        self._count_failures(line, 0)

    def _count_failures(self, line: LineName, failures: int) -> None:
        with suppress(DeviceError):  # of the store, which remembers it as its trouble: a full disk keeps no model from running
            self._journal.save_load_failures(line, failures)

    def _drive(self, line: LineName) -> float | None:
        """The loop of one line; returns the seconds to hold, None when nothing is open any more."""
        update = self._journal.load(line)
        if update is None:
            return None
        update = self._with_renewed_offer(update)
        while update.state not in FINAL:
            if line not in self._held:
                update = update if update.state in _UNCOUNTED else replace(update, saves=update.saves + 1)
                self._save(update)  # durable before the step acts
            result, update = self._act(update)
            if isinstance(result, Hold):
                self._hold(line, result)
                return result.seconds
            self._held.pop(line, None)
            update = self._move(update, result)
        self._finish(update)
        following = self._journal.load(line)
        return 0.0 if following is not None and following.is_open else None

    def _with_renewed_offer(self, update: Update) -> Update:
        """The update with the ways to its files that were offered last."""
        renewed = self._journal.renewed_offer(update.offer.line)
        if renewed is None or renewed.content != update.offer.content:
            return update
        return update.with_context(offer=replace(update.offer, files=renewed.files, full_bytes_allowed=renewed.full_bytes_allowed))

    def _act(self, update: Update) -> Result:
        line = update.offer.line
        if update.saves >= MAX_SAVES:
            return self._used_up(update)
        abort = self._journal.abort(line)
        if abort is not None and abort.update_id == update.update_id and can_abort(update.state):
            return Outcome.ABORTED, update.with_reason(abort.reason, abort.text).with_context(is_aborted=True)
        try:
            return self._steps.run(update)
        except OSError as error:
            return Outcome.ERROR, _failed(self._as_saved(update), disk_error(error, f"release {update.offer.release} of {line}"))
        except MooringError as error:
            return Outcome.ERROR, _failed(self._as_saved(update), error)

    def _used_up(self, update: Update) -> Result:
        """What becomes of an update that reached its loop bound: given up, or kept when there is nothing that it could go back to."""
        is_first = update.state is UpdateState.COMMITTING and update.old_slot is None
        if is_first and update.saves < MAX_FIRST_SAVES and self._is_kept(update):
            text = (
                f"Kept without another start after {update.saves} that did not get through: it held its probe and there is no other model."
            )
            return Outcome.OK, update.with_reason("", text)
        text = f"Given up in {update.state} after {update.saves} starts without progress. {update.text}".strip()
        return Outcome.EXHAUSTED, update.with_reason(update.reason or "exhausted", text)

    def _is_kept(self, update: Update) -> bool:
        try:
            return self._installer.keep(update.offer)
        except (OSError, MooringError):
            return False

    def _as_saved(self, update: Update) -> Update:
        """The update as its step left it: a step that failed may have saved what it learned."""
        saved = self._load(update.offer.line)
        return saved if saved is not None and (saved.update_id, saved.state) == (update.update_id, update.state) else update

    def _move(self, update: Update, outcome: Outcome) -> Update:
        moved = replace(update, state=next_state(update.state, outcome))
        return moved.restarted(saves=0) if moved.state is UpdateState.ROLLING_BACK else moved

    def _hold(self, line: LineName, hold: Hold) -> None:
        before = self._held.get(line)
        self._held[line] = hold
        if before is None or (before.code, before.wait, before.until) != (hold.code, hold.wait, hold.until):
            self._on_change(line)

    def _save(self, update: Update) -> None:
        self._journal.save(update)
        self._on_change(update.offer.line)

    def _finish(self, update: Update) -> None:
        """The final state: block what did not hold, make it durable, clean up, take the offer that waited."""
        line, update = update.offer.line, _with_listed_reason(update)
        if _is_to_be_blocked(update):
            self._journal.block(update)
        with self._lock:
            self._journal.save(update)
            self._journal.save_abort(line, None)
            self._journal.save_renewed_offer(line, None)
            self._aborting.discard(line)
        if update.state is UpdateState.SUCCEEDED and update.saves >= MAX_SAVES:
            self._bring_up_kept(line)
        elif update.state in (UpdateState.SUCCEEDED, UpdateState.ROLLED_BACK):
            self._is_up(line)
        self._settle(update)
        self._proofs.add(line)
        with self._lock:
            self._take_waiting(line)
        self._on_change(line)

    def _bring_up_kept(self, line: LineName) -> None:
        """Run a model that was kept without having been started; a cut in here counts as a start at which it did not load."""
        try:
            self._bring_up(line)
        except (OSError, MooringError) as error:
            self._set_down(line, f"Line {line} could not be brought up: {error}")

    def _take_waiting(self, line: LineName) -> None:
        """Begin what the end of the line's update made room for: the offer that waited, or the same release without its delta."""
        waiting = self._journal.next_offer(line)
        if waiting is not None:
            self._take(waiting)
            self._journal.save_next_offer(line, None)
        last = self._load(line)
        if last is not None and _begins_again(last):
            self._journal.reopen_in_full(last)
            self._wake.set()

    def _settle(self, update: Update) -> None:
        """What a final state leaves behind; safe to do again after a cut."""
        line = update.offer.line
        self._held.pop(line, None)
        self._steps.forget(line)
        try:
            if update.state is UpdateState.INCONSISTENT:
                self._rescue(update)
            # the downloads first: on a full disk even forgetting a slot needs the room that they take
            going_on = [other for other in self._journal.list_all() if other.is_open or _begins_again(other)]
            keep = {digest for other in going_on for digest in other.offer.digests - {*other.context.setbacks.failed}}
            # an offer that waits may have brought its files along, on a stick
            waiting = [self._journal.next_offer(other) for other in self.lines()]
            keep |= {digest for offer in waiting if offer is not None for digest in offer.digests}
            self._fetcher.forget(keep=keep)
            if update.offer.candidate is None or update.state is not UpdateState.SUCCEEDED:
                self._installer.discard(update.offer)
        except (OSError, MooringError) as error:
            self._problems[line] = Problem("cleanup_failed", f"What {update.offer.release} left behind could not be removed: {error}")

    # --- after a start ---

    def restore(self) -> None:
        """Bring every line's model up as the pointer says, and finish what a cut left over. Called once, before driving."""
        updates = {update.offer.line: update for update in self._journal.list_all()}
        for line in sorted({*self._slots.lines(), *updates}):
            try:
                self._restore_line(line, updates.get(line))
            except (OSError, MooringError) as error:
                self._set_down(line, f"Line {line} could not be brought up: {error}")
            self._on_change(line)

    def _restore_line(self, line: LineName, update: Update | None) -> None:
        pointer = self._slots.pointer(line)
        is_on_trial = update is not None and update.state in _ON_TRIAL
        if pointer.trial and not is_on_trial:
            # a trial that no update knows of: the journal was lost, the pointer alone leads back
            self._slots.roll_back(line, pointer.previous)
        self._bring_up(line)
        if update is not None and not update.is_open:
            self._settle(update)
            self._proofs.add(line)
            with self._lock:
                self._take_waiting(line)

    def _bring_up(self, line: LineName) -> None:
        """Run the committed model. A start that ends inside of this, by a cut or a crash, counts as one at which it did not load."""
        if self._slots.committed(line) is None:
            return
        failures = self._journal.load_failures(line)
        text = "the device did not survive loading it"
        if failures < MAX_LOAD_FAILURES:
            self._count_failures(line, failures + 1)
            activation = self._installer.bring_up(line)
            if activation.ok:
                self._is_up(line)
                return
            failures, text = failures + 1, activation.text
            self._set_down(line, f"The model of {line} does not load ({failures} starts in a row): {text}")
        if failures >= MAX_LOAD_FAILURES:
            self._fall_back(line, text)

    def _fall_back(self, line: LineName, text: str) -> None:
        pointer, committed = self._slots.pointer(line), self._slots.committed(line)
        other = None if pointer.previous is None else self._slots.get(line, pointer.previous)
        if other is None or committed is None or other.name is committed.name:
            self._set_down(line, f"The model of {line} does not load and there is no other slot to use: {text}")
            return
        floor = self._journal.floor(line)
        if other.content.counter < floor <= committed.content.counter:
            text = f"{committed.content.release} does not load and {other.content.release} is below the floor {floor}."
            self._problems[line] = Problem("rollback_forbidden", text)
            return
        self._installer.roll_back(line, other.name.value)
        self._is_up(line)
        text = f"{committed.content.release} does not run any more ({text}); {other.content.release} runs instead."
        self._problems[line] = Problem("slot_fell_back", text)

    def _set_down(self, line: LineName, text: str) -> None:
        self._problems[line] = Problem("no_model", text)
        self._down[line] = self._clock.monotonic() + RETRY_S * self._clock.speed

    def scrub(self) -> None:
        """Hash every slot of lines without an open update; a damaged one is not used any more, the one once committed beside it is."""
        is_open = {update.offer.line for update in self._journal.list_all() if update.is_open}
        for line in self._slots.lines():
            if line not in is_open:
                try:
                    self._scrub_line(line)
                except (OSError, MooringError) as error:
                    self._problems[line] = Problem("slot_damaged", f"The slots of {line} cannot be read: {error}")
                    self._on_change(line)

    def _scrub_line(self, line: LineName) -> None:
        from concurrent.futures import ThreadPoolExecutor  # for this alone, which is rare

        pointer = self._slots.pointer(line)
        with ThreadPoolExecutor(1, initializer=_yield_to_inference) as aside:
            damaged = aside.submit(self._damaged, line).result()
        if not damaged:
            return
        text = "; ".join(f"slot {name}: {', '.join(files)} changed on the disk" for name, files in damaged.items())
        self._problems[line] = Problem("slot_damaged", f"{line}: {text}.")
        other = pointer.previous
        if pointer.active in damaged and other is not None and other not in damaged:
            self._fall_back(line, text)
        elif pointer.active is not None and pointer.active.other in damaged and not pointer.trial:
            self._slots.discard_inactive(line)
        self._on_change(line)

    def _damaged(self, line: LineName) -> dict[SlotName, list[str]]:
        """Files that are not any more what was written, per slot."""
        return {name: files for name in SlotName if self._slots.get(line, name) is not None and (files := self._slots.scrub(line, name))}

    def _rescue(self, update: Update) -> None:
        line = update.offer.line
        if self._installer.rescue(line, first=update.old_slot):
            self._is_up(line)
        else:
            self._set_down(line, f"No slot of {line} passes its self-test.")

    def _load(self, line: LineName) -> Update | None:
        try:
            return self._journal.load(line)
        except DeviceError as error:
            self._problems[line] = Problem("journal_damaged", str(error))
            return None

    # --- looking, from any thread ---

    def lines(self) -> list[LineName]:
        """Lines that have a slot or an update."""
        return sorted({*self._slots.lines(), *(update.offer.line for update in self._journal.list_all())})

    def is_open(self, line: LineName) -> bool:
        """Whether an update of the line is under way, or waits for its turn."""
        update = self._load(line)
        return (update is not None and (update.is_open or _begins_again(update))) or self._journal.next_offer(line) is not None

    def update_of(self, line: LineName) -> Update | None:
        """The line's newest update, open or ended; None when it never had one, or its row cannot be read."""
        return self._load(line)

    def state_of(self, line: LineName) -> LineState:
        """Where the line is on its way, for display."""
        update, refusal, hold = self._load(line), self._journal.refusal(line), self._held.get(line)
        active = self._slots.active(line)
        installed = None if active is None else active.content.release
        if refusal is not None and not (update is not None and update.is_open):
            return LineState(
                line=line, desired=refusal.release, installed=installed, state="failed", reason=refusal.code, text=refusal.text[:2000]
            )
        if update is None:
            return LineState(line=line, installed=installed)
        waits = hold is not None and update.is_open
        delivery = update.context.delivery
        return LineState(
            line=line,
            desired=update.offer.release,
            installed=installed,
            state=update.state.value,
            progress=self._progress_of(update),
            reason=hold.code if hold is not None and waits else update.reason,
            text=(hold.text if hold is not None and waits else update.text)[:2000],
            waits_for=hold.wait.value if hold is not None and waits and hold.wait is not None else "",
            until=to_unix_ms(hold.until) if hold is not None and waits and hold.until is not None else None,
            transfer="" if delivery is None else delivery.transfer.value,
            bytes_needed=0 if delivery is None else delivery.planned_bytes,
        )

    def _progress_of(self, update: Update) -> int:
        if update.state in (UpdateState.IDLE, UpdateState.DOWNLOADING):
            return self._steps.progress.get(update.offer.line, 0)
        return 0 if update.state is UpdateState.FAILED else 100

    def slot_reports(self) -> list[SlotReport]:
        """Every complete slot of every line."""
        return self._slots.reports()

    def blocked(self) -> list[BlockedRelease]:
        """Releases that are refused until they are offered with a higher attempt."""
        return [
            BlockedRelease(
                line=row.line, release=row.release, attempt=row.attempt, reason=row.reason, text=row.text[:2000], at=to_unix_ms(row.at)
            )
            for row in self._journal.blocked()
        ]

    def history(self, line: LineName, limit: int = 64) -> list[UpdateStep]:
        """The latest arrows of the line, oldest first: how it got there."""
        return [
            UpdateStep(
                line=step.line, release=step.release, state=step.state, at=to_unix_ms(step.at), reason=step.reason, text=step.text[:2000]
            )
            for step in self._journal.steps(line, limit)
        ]

    def problems(self) -> dict[LineName, Problem]:
        """What is wrong now, per line."""
        return dict(self._problems)

    def floors(self) -> dict[LineName, int]:
        """Per line the lowest counter that may still be installed; an input of the check."""
        return {line: floor for line in self.lines() if (floor := self._journal.floor(line))}

    def committed_counters(self) -> dict[LineName, int]:
        """Per line the counter of the committed release; an input of the check."""
        slots = {line: self._slots.committed(line) for line in self.lines()}
        return {line: slot.content.counter for line, slot in slots.items() if slot is not None}

    def active_releases(self) -> dict[LineName, ReleaseVersion]:
        """Per line the release that infers now."""
        slots = {line: self._slots.active(line) for line in self._slots.lines()}
        return {line: slot.content.release for line, slot in slots.items() if slot is not None}

    def report_facts(self, line: LineName) -> ReportFacts | None:
        """What the version report says about the line's update; None when it never had one."""
        update, state, refusal = self._load(line), self.state_of(line), self._journal.refusal(line)
        if update is None and refusal is None:
            return None
        is_refused = refusal is not None and not (update is not None and update.is_open)
        context = None if update is None or is_refused else update.context
        return ReportFacts(
            line=line,
            assignment=refusal.assignment if refusal is not None and is_refused else update.offer.assignment if update is not None else "",
            attempt=refusal.attempt if refusal is not None and is_refused else update.offer.attempt if update is not None else 0,
            update_state=state.state,
            reason=state.reason,
            text=state.text,
            healthy_inferences=0 if context is None else context.healthy,
            bytes_downloaded=0 if context is None else context.bytes_downloaded,
            slow_retrieval=False if context is None else context.slow_retrieval,
            transfer="" if context is None else state.transfer,
            bytes_needed=0 if context is None else state.bytes_needed,
            failed_deltas=() if context is None else context.setbacks.failed,
        )


def _yield_to_inference() -> None:
    """Let this thread, hashing what may be gigabytes, run only when nobody else wants to; its reads follow its niceness."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SCRUB_NICENESS)


def _failed(update: Update, error: MooringError) -> Update:
    if update.state is UpdateState.ROLLING_BACK:
        return update.with_reason(update.reason or error.code, f"{update.text} The way back failed too: {error}".strip())
    return update.with_reason(error.code, str(error)).with_context(is_release_bad=isinstance(error, ReleaseError))


def _begins_again(update: Update) -> bool:
    context = update.context
    return (
        update.state is UpdateState.FAILED and update.reason in DELTA_FAILURES and not context.setbacks.full_only and not context.is_aborted
    )


def _with_listed_reason(update: Update) -> Update:
    """What ends badly says why by a code that the server can explain."""
    if update.state is UpdateState.SUCCEEDED or update.reason in REASONS:
        return update
    return update.with_reason(named(update.reason), f"{update.reason}: {update.text}")


def _is_to_be_blocked(update: Update) -> bool:
    if update.context.is_aborted:
        return False
    was_activated = update.state in (UpdateState.ROLLED_BACK, UpdateState.INCONSISTENT)
    return was_activated or (update.state is UpdateState.FAILED and update.context.is_release_bad)
