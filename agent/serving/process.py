"""The control process's handle on the serving process: starts it, hears how it is, starts it again when it died or stands still."""

import logging
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass

from agent.children import child_environment
from agent.serving.figures import Totals
from agent.serving.messages import MAX_LINE_BYTES, Beat, Task, parse_said
from agent.sources.backoff import full_jitter_s
from protocol.clock import SystemClock
from protocol.errors import InvalidError

log = logging.getLogger("mooring.serving")


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of system time."""

    #: Without a beat for so long it counts as hung; loading a model does not hold a beat up.
    silent_s: float = 30.0
    #: For its end when it is asked to; then it is killed.
    stop_s: float = 5.0
    restart_first_s: float = 1.0
    restart_max_s: float = 60.0
    #: It ran well when it lived so long.
    settled_s: float = 60.0


class ServingProcess:
    """See the module's text. `start`, `stop`, `totals` and `findings` may be called from any thread."""

    def __init__(self, task: Task, *, timings: Timings | None = None) -> None:
        self._task, self._timings = task, timings or Timings()
        self._now = SystemClock().monotonic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="serving")
        self._lock = threading.Lock()
        self._beat: Beat | None = None
        self._link: socket.socket | None = None
        #: Why it does not serve, in words; empty while it does.
        self._trouble = ""
        self.pid: int | None = None

    def start(self) -> None:
        """Serve, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End the process and wait for it."""
        self._stopping.set()
        self._hang_up()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def address(self) -> str:
        """Where it listens; empty while it does not."""
        with self._lock:
            return self._beat.address if self._beat else ""

    def totals(self) -> list[Totals]:
        """Figures per line since the process started; empty while it does not run."""
        with self._lock:
            return list(self._beat.lines) if self._beat else []

    def findings(self) -> list[tuple[str, str, str]]:
        """What is wrong as (condition, text, subject)."""
        with self._lock:
            found = [("serving_down", self._trouble, "")] if self._trouble else []
            lines = self._beat.lines if self._beat else ()
        return found + [("serving_not_ready", one.text, one.line) for one in lines if one.text]

    def _supervise(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            born_s = self._now()
            try:
                ending = self._live()
            except OSError as error:
                ending = f"it cannot be started: {error}"
            with self._lock:
                self._beat, self.pid = None, None
                if not self._stopping.is_set():
                    self._trouble = f"The serving process is started again: {ending}."[:1000]
            failures = 0 if self._now() - born_s > self._timings.settled_s else failures + 1
            if not self._stopping.is_set():
                log.warning("serving.ended text=%s", ending)
            self._stopping.wait(full_jitter_s(failures - 1, first_s=self._timings.restart_first_s, max_s=self._timings.restart_max_s))

    def _live(self) -> str:
        """One process from its start to its end; returns how it ended. Raises: OSError when it cannot be started."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "agent.serving.worker", "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**child_environment(), "OMP_NUM_THREADS": "1"},
                )
            with self._lock:
                self._link, self.pid = ours, process.pid
            said = ""
            try:
                if not self._stopping.is_set():
                    ours.sendall(self._task.to_line())
                    said = self._hear(ours)
            except TimeoutError:
                said = f"it said nothing for {self._timings.silent_s:g} s"
            except OSError:
                pass  # it is gone: its exit status says how
            finally:
                self._hang_up()
                with self._lock:
                    self._link = None
                code = self._bury(process)
        return said or f"it ended with status {code}"

    def _hear(self, link: socket.socket) -> str:
        """Take beats until it hangs up or stands still; returns what is wrong in words, empty when it only hung up. Raises: OSError."""
        link.settimeout(self._timings.silent_s)
        with link.makefile("rb") as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                try:
                    said = parse_said(line)
                except InvalidError as error:
                    return str(error)
                if isinstance(said, str):
                    return said.rstrip(".")
                with self._lock:
                    self._beat, self._trouble = said, ""
                if said.busy_s > max(self._task.runtime.hang_s, self._timings.silent_s):
                    return f"an inference takes {said.busy_s:.0f} s"
        return ""

    def _hang_up(self) -> None:
        with self._lock, suppress(OSError):
            if self._link is not None:
                self._link.shutdown(socket.SHUT_RDWR)

    def _bury(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(self._timings.stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
