"""When the device looks for an update, and what it does with the child's answer: one thread, one short-lived child per look."""

import hashlib
import json
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from agent.children import run_bounded
from agent.configuration import ConfigurationOffer
from agent.update.assignment import MAX_DOCUMENT_BYTES, Assignment, CheckAnswer, CheckError, parse_answer
from agent.update.check import CheckWish, command_of
from agent.update.journal import Values
from agent.update.machine import UpdateMachine
from protocol.clock import Clock, from_unix_ms
from protocol.errors import InvalidError, MooringError, TrustError

#: Real seconds that one check may take; a slow link needs many, a hung one must end.
CHILD_TIMEOUT_S = 300.0
#: Shorter rests of a wait, in seconds, are none.
LEAST_WAIT_S = 0.001
#: Real seconds that a look at a stick may take: 2 GiB over an old socket.
STICK_TIMEOUT_S = 3600.0
#: Seconds of the agent's clock, at most, before a check that failed is tried again, doubling up to the period of polls: the server may
#: have signed anew between two files of one look, which a second look mends.
RETRY_FIRST_S = 2.0
#: Polls are spread by this share of the period to both sides, so that a fleet does not come at once.
SPREAD = 0.5
_ETAG, _TIME_FLOOR, _VERSIONS = "update.etag", "update.time_floor_ms", "update.metadata_versions"


@dataclass(frozen=True, slots=True)
class CheckState:
    """What the last checks found, for status, conditions and the version report."""

    #: None: the last check went well.
    error: CheckError | None = None
    time_floor_ms: int = 0
    metadata_versions: tuple[tuple[str, int], ...] = ()
    #: Code of the last refusal of hostile or stale data since the agent started; empty: none.
    attack_indicator: str = ""
    is_slow: bool = False
    checks: int = 0


def run_child(
    command: list[str], *, timeout_s: float = CHILD_TIMEOUT_S, limit: int = MAX_DOCUMENT_BYTES, stop: threading.Event | None = None
) -> CheckAnswer:
    """The answer of one check child; a child that hangs, floods or dies, or is ended with the agent, becomes an error in the answer."""
    try:
        end = run_bounded(command, timeout_s=timeout_s, limit=limit, stop=stop)
    except OSError as error:
        return _child_error("check_failed", f"The update check could not be started: {error}.")
    if end.is_stopped:
        return _child_error("check_failed", "The update check was ended, for the agent ends.")
    if not end.output or end.is_overdue:
        what = "ended it after its time" if end.is_overdue else f"it ended with status {end.status}"
        return _child_error("check_failed", f"The update check gave no answer: {what}.")
    try:
        return parse_answer(end.output)
    except InvalidError as error:
        return _child_error("check_failed", str(error))


def run_stick_child(command: list[str], *, stop: threading.Event | None = None) -> CheckAnswer:
    """As `run_child`, for a stick, whose files are copied meanwhile."""
    return run_child(command, timeout_s=STICK_TIMEOUT_S, stop=stop)


class Poller:
    """Checks now and then and on request, and hands assignments to the machine."""

    def __init__(
        self,
        machine: UpdateMachine,
        store: Values,
        *,
        state_dir: Path,
        clock: Clock,
        wish: Callable[[], CheckWish | None],
        poll_s: Callable[[], float],
        on_check: Callable[[CheckState], None] = lambda _state: None,
        name: str = "",
        on_signed_time: Callable[[datetime], None] = lambda _moment: None,
        on_traffic: Callable[[int, int], None] = lambda _sent, _received: None,
        take_configuration: Callable[[ConfigurationOffer | None], None] = lambda _offer: None,
        take_candidates: Callable[[Assignment], None] = lambda _assignment: None,
        ask: Callable[[list[str]], CheckAnswer] = run_child,
        ask_stick: Callable[[list[str]], CheckAnswer] = run_stick_child,
        chance: random.Random | None = None,
    ) -> None:
        self._machine = machine
        self._store = store
        self._state_dir = state_dir
        self._clock = clock
        self._wish = wish
        self._poll_s = poll_s
        self._on_check = on_check
        self._take_configuration = take_configuration
        self._take_candidates = take_candidates
        self._ask, self._ask_stick = ask, ask_stick
        self._on_traffic = on_traffic
        #: One look at a time, the taking over included: two would write the same trusted metadata, the older over the newer.
        self._looking = threading.Lock()
        self._chance = random.Random() if chance is None else chance  # noqa: S311 - spreads polls, guards no secret
        self._name = name
        self._on_signed_time = on_signed_time
        self._wake = threading.Event()
        #: When hints want the next check, in seconds of the clock.
        self._hinted = math.inf
        self._lock = threading.Lock()
        versions = json.loads(store.get_value(_VERSIONS) or "{}")
        floor = int(store.get_value(_TIME_FLOOR) or 0)
        self._state = CheckState(time_floor_ms=floor, metadata_versions=tuple(sorted(versions.items())))

    @property
    def state_dir(self) -> Path:
        """The folder that the checks work on."""
        return self._state_dir

    @property
    def state(self) -> CheckState:
        """What the last checks found."""
        return self._state

    def hint(self, *, spread_s: float = 0.0, about: str = "") -> None:
        """Somebody says that something changed: look soon, at this device's own moment of the next `spread_s` seconds."""
        due = self._clock.monotonic() + spread_s * share_of(self._name, about)
        with self._lock:
            self._hinted = min(self._hinted, due)
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Check until `stop` is set; call `hint` after setting it."""
        failures = 0
        while not stop.is_set():
            with self._lock:
                self._hinted = math.inf
            self.check_once()
            begin, error = self._clock.monotonic(), self._state.error
            # a server that asks for patience gets it, whatever anybody hints
            patience = begin + ((error.retry_after_s if error is not None else None) or 0.0)
            failures = 0 if error is None else failures + 1
            self._sleep(stop, begin + self._pause_s(failures), patience)

    def _pause_s(self, failures: int) -> float:
        """Seconds until the next look when nobody hints, after so many failures in a row."""
        period_s = self._poll_s()
        if failures and (cap_s := RETRY_FIRST_S * 2.0 ** min(failures - 1, 20)) < period_s:
            return self._chance.uniform(cap_s / 2, cap_s)
        return period_s * self._chance.uniform(1 - SPREAD, 1 + SPREAD)

    def _sleep(self, stop: threading.Event, due: float, patience: float) -> None:
        while not stop.is_set():
            left = max(min(due, self._hinted), patience) - self._clock.monotonic()
            if left <= LEAST_WAIT_S:
                return
            self._clock.wait(self._wake, left)
            self._wake.clear()

    def forget(self) -> None:
        """Ask for everything anew at the next look: what was taken over before is lost."""
        self._store.set_value(_ETAG, "")

    def check_once(self) -> CheckAnswer | None:
        """Ask once and act on the answer; returns it, None when this device is not able to ask yet."""
        with self._looking:
            wish = self._full_wish()
            if wish is None:
                return None
            answer = self._ask(command_of(self._state_dir, replace(wish, etag=self._store.get_value(_ETAG) or "")))
            self._on_traffic(answer.bytes_sent, answer.bytes_received)
            self._take(answer)
        return answer

    def check_stick(self, folder: Path) -> CheckAnswer | None:
        """Ask a stick in place of the server and act on the answer, from any thread; None when this device is not able to ask yet.

        A stick that is refused changes nothing but the attack indicator, which is told at once: the server is asked as before.
        """
        with self._looking:
            wish = self._full_wish()
            if wish is None:
                return None
            answer = self._ask_stick(command_of(self._state_dir, replace(wish, bundle=str(folder))))
            if answer.error is None:
                self._take(answer)
            elif answer.error.family == TrustError.__name__:
                self._state = replace(self._state, attack_indicator=answer.error.code)
                self._on_check(self._state)
        return answer

    def _full_wish(self) -> CheckWish | None:
        wish = self._wish()
        if wish is None:
            return None
        return replace(
            wish,
            time_floor_ms=self._state.time_floor_ms,
            floors=tuple(sorted(self._machine.floors().items())),
            committed=tuple(sorted(self._machine.committed_counters().items())),
        )

    def _take(self, answer: CheckAnswer) -> None:
        state = replace(self._state, error=answer.error, checks=self._state.checks + 1)
        if answer.error is not None:
            is_attack = answer.error.family == "TrustError"
            state = replace(state, is_slow=answer.error.code == "slow-retrieval")
            state = replace(state, attack_indicator=answer.error.code) if is_attack else state
        else:
            state = replace(state, is_slow=False)
        if answer.signed_time_ms is not None:
            self._on_signed_time(from_unix_ms(answer.signed_time_ms))
        if answer.assignment is not None:
            self._machine.offer(answer.assignment)
            self._take_candidates(answer.assignment)
            self._take_configuration(answer.assignment.configuration)
            state = self._remember(state, answer)
        self._state = state
        self._on_check(state)

    def _remember(self, state: CheckState, answer: CheckAnswer) -> CheckState:
        assignment = answer.assignment
        if assignment is None:
            return state
        # the ETag last: an assignment that was not taken over must be seen again
        floor = max(state.time_floor_ms, assignment.issued_at_ms)
        self._store.set_value(_TIME_FLOOR, str(floor))
        self._store.set_value(_VERSIONS, json.dumps(assignment.metadata_versions))
        self._store.set_value(_ETAG, answer.etag)
        return replace(
            state, time_floor_ms=floor, metadata_versions=tuple(sorted(assignment.metadata_versions.items())), attack_indicator=""
        )


def share_of(name: str, about: str) -> float:
    """The device's place in a spread, 0 to below 1: another one for each thing that is hinted at, the same each time."""
    return int.from_bytes(hashlib.sha256(f"{name}/{about}".encode()).digest()[:7]) / 2**56


def _child_error(code: str, text: str) -> CheckAnswer:
    return CheckAnswer(error=CheckError(MooringError.__name__, code, text))
