"""One running inference process: its program, its link, and what it said last."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from agent.children import child_environment
from agent.inference.hearing import FROM_WORKER
from agent.inference.link import Link, LinkClosedError
from agent.inference.marks import Marks, new_memory
from agent.inference.messages import (
    Beat,
    FromWorker,
    Ready,
    Stop,
    ToWorker,
)
from agent.inference.pressure import machine_strain
from agent.inference.watch import Watch
from agent.inference.writing import write
from protocol.clock import SystemClock

#: Signals that native code dies by; SIGKILL and SIGTERM come from outside and blame no back end.
NATIVE_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
#: Seconds a hung process gets to write the stacks of its threads and to die of it before it is killed.
DUMP_S = 0.5


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended."""

    text: str
    #: It ended by its own doing, not by a signal that comes from outside.
    is_fault: bool
    #: It died inside native code.
    is_crash: bool = False
    #: It was killed because it stood still.
    is_hang: bool = False
    #: It was asked to end.
    is_planned: bool = False


class Child:
    """Started by its constructor; `on_message` is called by a reader thread for everything it says."""

    def __init__(self, *, beat_s: float, watch: Watch, on_message: "Callable[[Child, FromWorker], None]") -> None:
        """Raises: OSError when the program cannot be started."""
        self.watch = watch
        self.beat: Beat | None = None
        self._monotonic = SystemClock().monotonic
        self._on_message = on_message
        self._is_listening = True
        self._is_retired = False
        #: We ended it: then SIGABRT is no crash.
        self._is_killed = False
        self._send_lock = threading.Lock()
        #: Set when the link is closed: the process is gone or going.
        self.closed = threading.Event()
        marks_fd = new_memory()
        ours, theirs = socket.socketpair()
        self._door, their_door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.marks = Marks(marks_fd)
        try:
            self.process = subprocess.Popen(
                _command(theirs.fileno(), marks_fd, their_door.fileno(), beat_s),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), marks_fd, their_door.fileno()),
                env={**child_environment(), "OMP_NUM_THREADS": "1"},
            )
        except OSError:
            ours.close()
            self._door.close()
            self.marks.close()
            raise
        finally:
            theirs.close()
            their_door.close()
            os.close(marks_fd)
        self._link = Link(ours)
        self._reader = threading.Thread(target=self._read, name="inference-link", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def send(self, message: ToWorker) -> bool:
        """Write one message; returns False when the child is gone."""
        try:
            with self._send_lock:
                self._link.send(write(message))
        except LinkClosedError:
            return False
        return True

    def bring_shadow(self, document: bytes, feed: socket.socket, memory: int) -> bool:
        """Let the worker feed a shadow over this socket and memory; False when the worker is gone."""
        try:
            socket.send_fds(self._door, [document], [feed.fileno(), memory])
        except OSError:
            return False
        return True

    def hang_text(self, *, loading_s: float, expected_ms: float) -> str | None:
        """Why it counts as hung, in words. While our own listener is busy, silence is not the child's."""
        if not self._is_listening:
            return None
        return self.watch.verdict(self._monotonic(), loading_s=loading_s, expected_ms=expected_ms, strain=machine_strain())

    def retire(self) -> None:
        """Ask it to finish what it infers and end, so that another one takes over."""
        self._is_retired = True
        self.send(Stop())

    def kill(self) -> None:
        """Have it write the stacks of its threads and die of it, at once; one that cannot is killed."""
        if self.process.poll() is None:
            self._is_killed = True
            self.process.send_signal(signal.SIGABRT)  # its faulthandler writes the stacks of all threads and lets the signal have it
            try:
                self.process.wait(DUMP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def ending(self, hang: str | None) -> Ending:
        """Wait for the end of a process that hung up or was killed, free everything, and say how it ended."""
        try:
            code = self.process.wait(DUMP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._link.close()
        self._door.close()
        self._reader.join()
        if hang is not None:
            return Ending(f"it {hang}", is_fault=True, is_hang=True)
        if code == 0 and self._is_retired:
            return Ending("it was asked to end", is_fault=False, is_planned=True)
        if code >= 0:
            return Ending(f"it ended with status {code}", is_fault=True)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        is_crash = -code in NATIVE_SIGNALS and not (self._is_killed and -code == signal.SIGABRT)
        return Ending(f"it was killed by {name}", is_fault=is_crash, is_crash=is_crash)

    def _read(self) -> None:
        try:
            while True:
                self._take(FROM_WORKER.validate_json(self._link.receive()))
        except (LinkClosedError, ValidationError):
            pass  # what it said is no message: it is as broken as one that hung up
        finally:
            self.closed.set()

    def _take(self, message: FromWorker) -> None:
        now = self._monotonic()
        match message:
            case Ready():
                self.watch.ready(now)
            case Beat():
                self.watch.beat(message, now)
                self.beat = message
            case _:
                self.watch.heard(now)
        self._is_listening = False
        self._on_message(self, message)
        self.watch.heard(self._monotonic())
        self._is_listening = True


def _command(fd: int, marks: int, door: int, beat_s: float) -> list[str]:
    return [sys.executable, "-m", "agent.inference", *map(str, (fd, marks, door, beat_s))]
