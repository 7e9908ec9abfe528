"""References are fitted beside the loop: it takes seconds of a processor, one at a time, and what comes of it is taken at a tick.

Nothing is remembered of a fit that is not done: after a crash whoever wanted it asks again.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from agent.drift.store import Subject
from protocol.sketches.reference import DeviceReference

log = logging.getLogger("mooring.drift")

#: Runs a piece of work, now or beside the caller.
Start = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of one fit."""

    subject: Subject
    #: `agent.drift.check.OWN` or `CARRIED`.
    origin: str
    #: As the state had it when the fit was asked for: another one now means that it is not wanted any more.
    since_w0: int
    #: None: it could not be fitted, and the log says why.
    reference: DeviceReference | None = None
    #: Rows of a sub-window, the median.
    usual_rows: float | None = None


class Fitter:
    """Fits one reference after the other; used by one thread, which does not wait for it."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._waiting: deque[tuple[Subject, Callable[[], Fitted]]] = deque()
        self._done: SimpleQueue[Fitted | None] = SimpleQueue()
        self._running: Subject | None = None

    def ask(self, subject: Subject, work: Callable[[], Fitted]) -> None:
        """Have it fitted, unless that is under way."""
        if subject != self._running and all(subject != other for other, _ in self._waiting):
            self._waiting.append((subject, work))
            self._begin()

    def take(self) -> list[Fitted]:
        """What was fitted since the last time."""
        found: list[Fitted] = []
        with suppress(Empty):
            while True:
                done = self._done.get_nowait()
                self._running = None
                if done is not None:
                    found.append(done)
                self._begin()
        return found

    def _begin(self) -> None:
        if self._running is None and self._waiting:
            self._running, work = self._waiting.popleft()
            self._start(lambda: self._done.put(_outcome(work)))


def in_thread(work: Callable[[], None]) -> None:
    """Run it beside the caller; the end of the process does not wait for it.

    Of the caller's priority: on a busy device one of a lower priority would wait while it holds the interpreter, and the loop with it.
    """
    threading.Thread(target=work, name="drift-fit", daemon=True).start()


def _outcome(work: Callable[[], Fitted]) -> Fitted | None:
    """What the work returned; None when it failed: the loop goes on, and it is asked for again."""
    try:
        return work()
    except Exception:  # of whatever kind: an end of this thread that nobody hears of would leave the fit running for ever
        log.exception("drift.fit-failed")
        return None
