"""The control process's handle on the shadow process: candidates beside the champions, in a process that may die as often as it likes.

Nothing of it reaches the champions' health: a shadow that crashes or hangs is started again after a back-off, and the candidate that it
died over is given up after MAX_DEATHS, with a reason. Never raises for what the child does.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from agent.children import child_environment
from agent.inference.link import Link, LinkClosedError
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import Sampled
from agent.inference.shadow_messages import (
    EXIT_NO_FEED,
    MAX_FRAME_BYTES,
    Candidate,
    ShadowBrief,
)
from agent.inference.shadow_reports import SAID, Compared, Said, ShadowBeat, ShadowFault, ShadowReady
from agent.inference.writing import write
from agent.sources.backoff import full_jitter_s
from protocol.clock import SystemClock

#: Deaths of the process over one candidate after which that one is not run here any more.
MAX_DEATHS = 3
#: A shadow that lived this long was healthy: the next death counts as the first; seconds.
SETTLED_S = 600.0
#: Seconds without a word after which it counts as hung: the lowest priority may keep a healthy one waiting for a while.
HANG_S = 120.0
#: Loading a model may build an engine, and nobody hurries it; seconds.
START_S = 600.0
RESTART_FIRST_S, RESTART_MAX_S = 2.0, 300.0
#: Seconds that a process which was hung up on gets to end by itself.
END_S = 2.0
_TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class Given:
    """A candidate that does not run on this device, and why."""

    code: str
    text: str


#: Hands the feed's socket and memory to the inference process; False while that does not run.
BringFeed = Callable[[bytes, socket.socket, int], bool]


class ShadowProcess:
    """Runs `python -m agent.inference.shadow` while there are candidates. All methods may be called from any thread."""

    def __init__(
        self,
        *,
        bring: BringFeed,
        on_compared: Callable[[Compared], None],
        on_row: Callable[[Sampled], None] = lambda _: None,
        beat_s: float = 1.0,
        hang_s: float = HANG_S,
    ) -> None:
        self._bring, self._on_compared, self._on_row, self._beat_s, self._hang_s = bring, on_compared, on_row, beat_s, hang_s
        self._system = SystemClock()
        self._lock = threading.Lock()
        self._changed, self._stopping = threading.Event(), threading.Event()
        self._wanted = ShadowBrief((), (), 1, 0.0, beat_s)
        self._given_up: dict[Candidate, Given] = {}
        self._deaths: dict[Candidate, int] = {}
        self._thread: threading.Thread | None = None
        self._child: _ShadowChild | None = None

    def configure(
        self,
        candidates: tuple[Candidate, ...],
        *,
        providers: tuple[str, ...] = (),
        threads: int = 1,
        cpu_share: float,
        priority: Literal["idle", "normal"] = "idle",
        row_step_s: float | None = None,
    ) -> None:
        """Run exactly these candidates within this share of one core; another set means another process. None of them: no process."""
        brief = ShadowBrief(candidates, providers, threads, cpu_share, self._beat_s, priority, row_step_s)
        with self._lock:
            if brief == self._wanted:
                return
            self._wanted = brief
            for gone in {*self._given_up, *self._deaths} - {*candidates}:
                self._given_up.pop(gone, None)
                self._deaths.pop(gone, None)
            if self._thread is None and candidates and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._supervise, name="shadow-supervisor", daemon=True)
                self._thread.start()
        self._changed.set()

    def stop(self) -> None:
        """End the process and join the thread. May be called twice."""
        self._stopping.set()
        self._changed.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def given_up(self) -> dict[Candidate, Given]:
        """Candidates that do not run on this device, with the reason."""
        with self._lock:
            return dict(self._given_up)

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        child = self._child
        return None if child is None else child.process.pid

    @property
    def is_running(self) -> bool:
        """Whether a process runs that has loaded its candidates."""
        child = self._child
        return child is not None and child.is_ready

    @property
    def rss_mb(self) -> float:
        """Resident memory at its last beat, MiB; 0 when it does not run."""
        child = self._child
        return 0.0 if child is None else child.rss_mb

    # --- supervision: one thread ---

    def _supervise(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._changed.clear()
            with self._lock:
                brief = self._due()
            if not brief.candidates:
                self._changed.wait()
                continue
            born_s = self._system.monotonic()
            is_failure = self._run_once(brief)
            if self._stopping.is_set() or not is_failure:
                failures = 0
                continue
            failures = 1 if self._system.monotonic() - born_s > SETTLED_S else failures + 1
            self._system.wait(self._changed, full_jitter_s(failures, first_s=RESTART_FIRST_S, max_s=RESTART_MAX_S))

    def _due(self) -> ShadowBrief:
        return self._without_given_up(self._wanted)

    def _without_given_up(self, brief: ShadowBrief) -> ShadowBrief:
        return replace(brief, candidates=tuple(one for one in brief.candidates if one not in self._given_up))

    def _run_once(self, brief: ShadowBrief) -> bool:
        """Run one process to its end; returns whether that was a failure."""
        try:
            child = _ShadowChild(brief, self._hear)
        except OSError:
            return True
        self._child = child
        try:
            if not child.connect(self._bring):
                self._system.wait(self._changed, _TICK_S)  # the inference process does not run yet
                return False
            why = self._attend(child)
        finally:
            self._child = None
            code, blamed = child.end()
        if why is None and code == EXIT_NO_FEED:
            self._system.wait(self._changed, _TICK_S)
            return False
        if why is None and (self._changed.is_set() or self._stopping.is_set()):
            return False
        self._blame(brief, blamed, why or _ending(code))
        return True

    def _attend(self, child: "_ShadowChild") -> str | None:
        """Watch the process until it ends, is not wanted any more, or hangs: then why, in words."""
        while not child.closed.wait(_TICK_S):
            if self._changed.is_set():
                self._changed.clear()
                with self._lock:
                    is_wanted = self._due().candidates and self._due() == self._without_given_up(child.brief)
                if self._stopping.is_set() or not is_wanted:
                    self._changed.set()
                    return None
            silent_s = self._system.monotonic() - child.heard_s
            if silent_s > (max(self._hang_s, START_S) if not child.is_ready else self._hang_s):
                child.kill()
                return f"it said nothing for {silent_s:.0f} s"
        return None

    def _blame(self, brief: ShadowBrief, blamed: set[int], why: str) -> None:
        """Count the death for the candidates that were in native code, or for all when none was."""
        with self._lock:
            for index in blamed or range(len(brief.candidates)):
                candidate = brief.candidates[index]
                deaths = self._deaths[candidate] = self._deaths.get(candidate, 0) + 1
                if deaths >= MAX_DEATHS:
                    text = f"The shadow process ended {deaths} times over {candidate.line} {candidate.release}: {why}."
                    self._given_up[candidate] = Given("shadow_crashed", text)

    def _hear(self, child: "_ShadowChild", message: Said) -> None:
        match message:
            case ShadowBeat():
                for compared in message.compared:
                    self._on_compared(compared)
                for row in message.rows:
                    self._on_row(row)
            case ShadowFault():
                with self._lock:
                    for candidate in child.brief.candidates:
                        if candidate.line == message.line:
                            self._given_up[candidate] = Given(message.code, message.text)
                self._changed.set()
            case ShadowReady():
                child.is_ready = True


class _ShadowChild:
    """One running shadow process."""

    def __init__(self, brief: ShadowBrief, on_message: "Callable[[_ShadowChild, Said], None]") -> None:
        """Raises: OSError when it cannot be started."""
        self.brief = brief
        self._on_message = on_message
        self._monotonic = SystemClock().monotonic
        self.closed = threading.Event()
        self.is_ready = False
        self.rss_mb = 0.0
        #: When it said something last, seconds of the monotonic clock.
        self.heard_s = self._monotonic()
        marks_fd, self._memory = new_memory(), os.memfd_create("mooring-shadow-frame")
        os.ftruncate(self._memory, MAX_FRAME_BYTES)
        self._marks = Marks(marks_fd)
        ours, theirs = socket.socketpair()
        feed, self._feed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.process = subprocess.Popen(
                _command(theirs.fileno(), feed.fileno(), self._memory, marks_fd, write(brief).decode()),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), feed.fileno(), self._memory, marks_fd),
                env={**child_environment(), "OMP_NUM_THREADS": "1"},
            )
        except OSError:
            ours.close()
            self._feed.close()
            os.close(self._memory)
            self._marks.close()
            raise
        finally:
            theirs.close()
            feed.close()
            os.close(marks_fd)
        self._link = Link(ours)
        self._reader = threading.Thread(target=self._read, name="shadow-link", daemon=True)
        self._reader.start()

    def connect(self, bring: BringFeed) -> bool:
        """Hand the other end of its feed to the inference process; False when that does not run."""
        is_brought = bring(write(self.brief), self._feed, self._memory)
        self._feed.close()
        os.close(self._memory)
        return is_brought

    def kill(self) -> None:
        """End it by its id."""
        if self.process.poll() is None:
            self.process.kill()

    def end(self) -> tuple[int, set[int]]:
        """Hang up, wait for its end, free everything: its exit status, and the candidates that were in native code."""
        self._link.close()
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        blamed = {index for index in range(len(self.brief.candidates)) if any(self._marks.read(index))}
        self._marks.close()
        return code, blamed

    def _read(self) -> None:
        try:
            while True:
                message = SAID.validate_json(self._link.receive())
                self.heard_s = self._monotonic()
                if isinstance(message, ShadowBeat):
                    self.rss_mb = message.rss_mb
                self._on_message(self, message)
        except (LinkClosedError, ValidationError):
            pass  # what it said is no message: it is as broken as one that hung up
        finally:
            self.closed.set()


def _command(fd: int, feed: int, memory: int, marks: int, brief: str) -> list[str]:
    ends = ["--fd", str(fd), "--feed", str(feed), "--memory", str(memory), "--marks", str(marks)]
    return [sys.executable, "-m", "agent.inference.shadow", *ends, "--brief", brief]


def _ending(code: int) -> str:
    if code >= 0:
        return f"it ended with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"it was killed by {name}"
