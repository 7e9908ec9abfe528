"""Hot swap: loading -> warming -> ready -> flip -> draining -> closed, beside the model that runs.

A failure before the flip leaves the old model running. After it the old one stays loaded until `commit`, so that `rollback` is a flip.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from agent.inference.marks import CANDIDATE_MARK, Marks
from agent.inference.memory import Memory
from agent.inference.messages import ArmOrder, Choice, LineCount
from agent.inference.model import Inferred, Model, load_model, read_key
from agent.inference.pictures import Inputs
from agent.inference.rows import Glimpse
from agent.inference.shadow_feed import Offer
from agent.inference.turns import Turns
from agent.orders import RuntimeOrder
from agent.sources.base import Array, Need
from protocol.errors import InvalidError, MooringError
from runtime.base import BackendError

if TYPE_CHECKING:
    from agent.inference.watched import Watched

#: Failures in a row after which another back end is tried for the same model.
MAX_FAILURES = 3


class SwapState(StrEnum):
    """How far the latest swap of a line is."""

    #: Nothing was swapped yet.
    NONE = "none"
    #: The new model is loaded and warmed up beside the running one.
    LOADING = "loading"
    #: It has answered its warm-up.
    READY = "ready"
    #: It runs; the old one finishes its last inference.
    DRAINING = "draining"
    #: It runs; the old one stays loaded until the commit.
    HELD = "held"
    #: It runs; the old one is closed.
    CLOSED = "closed"
    #: It could not be loaded; the old one runs on.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Swap:
    """How an activation, rollback or deactivation went."""

    ok: bool
    code: str
    text: str
    provider: str = ""


class Line:
    """The active and the previous model of one line."""

    def __init__(self, name: str, *, marks: Marks, now: Callable[[], float]) -> None:
        self.name = name
        self.swap = SwapState.NONE
        #: Record of this line in the marks; 0 belongs to lines that never had a model.
        self.mark = 0
        self._marks = marks
        self._now = now
        #: Read by inference threads without a lock; replaced as a whole, which is the flip.
        self._current: Model | None = None
        self._previous: Model | None = None
        self._swapping = threading.Lock()
        #: The failing model for which another back end is or was looked for, so that it happens once.
        self._replaced: Model | None = None
        #: A candidate that answers in turn with the active model; read like `_current`.
        self._turns: Turns | None = None
        #: Folder of the latest candidate and why it does not, in words; None when it does, or when there is none.
        self.lost_turns: tuple[str, str] | None = None

    def has_model(self) -> bool:
        """Whether a model answers."""
        return self._current is not None

    @property
    def release(self) -> str | None:
        """The release that answers."""
        model = self._current
        return None if model is None else model.release

    @property
    def need(self) -> Need | None:
        """How many pixels of a frame the model that answers can use."""
        model = self._current
        return None if model is None else model.need

    @property
    def watched(self) -> "Watched | None":
        """What drift watches of the model that answers."""
        model = self._current
        return None if model is None else model.watched

    @property
    def watch_fault(self) -> str:
        """Why nothing is watched of it although it came with a profile; empty: nothing is wrong."""
        model = self._current
        return "" if model is None else model.watch_fault

    def prepare(self, data: Array, shared: Inputs | None) -> None:
        """Make the input of the model that answers of a frame beforehand; `infer` finds it in `shared`. Raises nothing: `infer` will."""
        model = self._current
        if model is not None and shared is not None:
            model.prepare(data, shared)

    def infer(
        self,
        data: Array,
        *,
        offer: Offer | None = None,
        memory: Memory | None = None,
        session: int = 0,
        pipeline: str = "",
        at_ms: int = 0,
        shared: Inputs | None = None,
        glimpse: Glimpse | None = None,
    ) -> Inferred | None:
        """The answer to a frame or window, counted; None when the line has no model. `offer` hears the model's input.

        `glimpse` gets copies of what the active model was given and gave; a candidate in its turn leaves none. `memory` is what the frames
        of one pipeline and session leave in a stateful model. `pipeline`, `at_ms` say whose turn it is when two models share the line; a
        frame that the candidate fails on is the active model's. `shared`: where lines share what they make of it.

        Raises: BackendError, InvalidError when the model failed on it; that is counted too.
        """
        turns = self._turns
        if turns is not None and self._current is not None and turns.is_candidates(pipeline, at_ms):
            answer = self._infer_in_turn(turns, data)
            if answer is not None:
                return answer
        while (model := self._current) is not None:
            with model.lock:
                if not model.is_closed:  # else it was swapped between the look and the lock
                    return self._infer_on(model, data, offer, memory, session, shared=shared, glimpse=glimpse)
        return None

    def _infer_in_turn(self, turns: Turns, data: Array) -> Inferred | None:
        """The candidate's answer; None when it failed or is closed. One that fails again and again gets no turns any more."""
        model = turns.model
        with model.lock:
            if model.is_closed:
                return None
            try:
                return self._infer_on(model, data, None, None, 0, mark=CANDIDATE_MARK)
            except (BackendError, InvalidError) as error:
                if model.failures >= MAX_FAILURES and self._turns is turns:
                    text = f"{model.release} failed {model.failures} times in a row: {error}"
                    self._turns, self.lost_turns = None, (str(turns.folder), text)
                return None

    def _infer_on(
        self,
        model: Model,
        data: Array,
        offer: Offer | None,
        memory: Memory | None,
        session: int,
        *,
        mark: str = "",
        shared: Inputs | None = None,
        glimpse: Glimpse | None = None,
    ) -> Inferred:
        started_s = self._now()
        self._marks.inferring(self.mark, mark + model.candidate)
        try:
            answer = model.infer(data, offer=offer, memory=memory, session=session, shared=shared, glimpse=glimpse)
        except (BackendError, InvalidError) as error:
            model.failed(error)
            raise
        finally:
            self._marks.inferring(self.mark, "")
        model.succeeded(answer, (self._now() - started_s) * 1000.0)
        return answer

    def activate(
        self,
        folder: Path,
        runtime: RuntimeOrder,
        *,
        quarantined: tuple[str, ...] = (),
        demoted: tuple[str, ...] = (),
        choice: Choice | None = None,
    ) -> Swap:
        """Make the folder's model the active one; slow, called by a thread of its own."""
        with self._swapping:
            try:
                key, _ = read_key(folder)
                if self._current is not None and self._current.key == key:
                    return self._swapped("Already active.")
                if self._previous is not None and self._previous.key == key:
                    return self._flip_back()
                self.swap = SwapState.LOADING
                model = load_model(
                    folder,
                    runtime,
                    quarantined=quarantined,
                    demoted=demoted,
                    choice=choice,
                    on_loading=lambda name: self._marks.loading(self.mark, name),
                )
            except MooringError as error:
                self.swap = SwapState.FAILED
                return Swap(ok=False, code=error.code, text=str(error))
            self.swap = SwapState.READY
            before, self._previous = self._previous, self._current
            self._current = model
            self.swap = SwapState.HELD
            if before is not None:
                before.close()
            return self._swapped(f"Release {model.release} runs on {model.provider}.")

    def take_turns(self, orders: Sequence[ArmOrder], runtime: RuntimeOrder) -> Swap:
        """Let the orders' candidate answer in turn with the active model; none of them ends it. Slow, like `activate`."""
        with self._swapping:
            before = self._turns
            if before is not None and orders and str(before.folder) == orders[0].folder:
                self._turns = Turns(before.model, orders)
                return self._swapped("The turns changed.")
            self._turns, self.lost_turns = None, None
            if before is not None:
                before.model.close()
            if not orders:
                return self._swapped("No candidate takes turns.")
            try:
                model = load_model(
                    Path(orders[0].folder), runtime, on_loading=lambda name: self._marks.loading(self.mark, name and CANDIDATE_MARK + name)
                )
            except MooringError as error:
                self.lost_turns = orders[0].folder, str(error)
                return Swap(ok=False, code=error.code, text=str(error))
            self._turns = Turns(model, orders)
            return self._swapped(f"Release {model.release} takes turns.")

    def turns_count(self) -> LineCount | None:
        """Figures of the candidate that takes turns."""
        turns = self._turns
        return None if turns is None else turns.model.count(self.name)

    def commit(self) -> Swap:
        """Close the previous model."""
        with self._swapping:
            self._close_previous()
            return self._swapped("Committed.")

    def rollback(self) -> Swap:
        """Flip to the previous model; fails with `no_previous` when none is loaded."""
        with self._swapping:
            if self._previous is None:
                return Swap(ok=False, code="no_previous", text=f"Line {self.name} has no previous model loaded.")
            return self._flip_back()

    def deactivate(self) -> Swap:
        """Run no model."""
        with self._swapping:
            model, self._current = self._current, None
            if model is not None:
                model.close()
            self._close_previous()
            return Swap(ok=True, code="ok", text="No model is active.")

    def replace_failing(self, runtime: RuntimeOrder) -> bool:
        """When the active model failed MAX_FAILURES times in a row, look for another back end in a thread; returns whether it does."""
        model = self._current
        if model is None or model.failures < MAX_FAILURES or self._replaced is model:
            return False
        self._replaced = model
        threading.Thread(target=self._replace, args=(model, runtime), name=f"replace-{self.name}", daemon=True).start()
        return True

    def count(self) -> LineCount | None:
        """Figures of the active model."""
        model = self._current
        return None if model is None else model.count(self.name)

    def _replace(self, failing: Model, runtime: RuntimeOrder) -> None:
        with self._swapping:
            try:
                model = load_model(
                    failing.key.folder,
                    runtime,
                    quarantined=(failing.candidate,),
                    on_loading=lambda name: self._marks.loading(self.mark, name),
                )
            except MooringError:
                return  # there is no other back end: its errors go on being counted and reported
            if self._current is failing:
                self._current = model
                failing.close()
            else:
                model.close()

    def _flip_back(self) -> Swap:
        self._current, self._previous = self._previous, self._current
        self.swap = SwapState.DRAINING
        self._close_previous()
        return self._swapped("The model before runs again.")

    def _close_previous(self) -> None:
        model, self._previous = self._previous, None
        if model is not None:
            model.close()
            self.swap = SwapState.CLOSED

    def _swapped(self, text: str) -> Swap:
        model = self._current
        return Swap(ok=True, code="ok", text=text, provider=model.provider if model else "")
