"""`mooring-agent import DIR`: what a stick assigns is verified and installed like what the server says, and the signed report goes back.

One import at a time, on a thread of its own: the control socket answers meanwhile. The check runs in the same short-lived child as a
look at the server, copies what is needed, and ends; from then on the machine goes its usual way. When the lines that it was about are
done, and when the stick is imported again, the device's version reports are written to `reports/{device}.json` on it, by a child too:
this process never touches a stick, so that one which hangs holds nothing up.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.identity import Identity
from agent.reporting import Reporter
from agent.update.assignment import CheckAnswer
from agent.update.bundle import Bundle, forget_copies, open_bundle
from agent.update.machine import UpdateMachine
from agent.update.poller import Poller
from agent.update.stick import command_of, write_reports
from protocol.bundle import REPORTS_FORMAT, BundleIndex, ReportFile, read_bundle_index, write_document
from protocol.clock import Clock
from protocol.errors import ConflictError, InvalidError, MooringError
from protocol.ids import DeviceId, LineName

__all__ = ["Bundle", "BundleIndex", "ImportState", "Importer", "open_bundle", "read_bundle_index", "sole_use"]

log = logging.getLogger("mooring.importing")

#: Seconds of system time between two looks at whether the imported lines are done.
LOOK_S = 0.25
#: Held by who works on the state folder: the running agent, or an import while none runs.
LOCK_NAME = "agent.lock"
#: Seconds of system time that an import waits for an agent that has just started.
READY_TIMEOUT_S = 120.0
#: Longest wait for the import's threads when the agent ends, real seconds: their children are killed by then.
STOP_TIMEOUT_S = 10.0

#: Puts a document onto the stick in the folder as the reports of the device. Raises: OSError, MooringError.
Writer = Callable[[Path, DeviceId, bytes], None]


@contextlib.contextmanager
def sole_use(state_dir: Path, *, stop: threading.Event | None = None) -> Iterator[bool]:
    """Whether this process alone works on the folder until the block ends or the process dies.

    An agent (`stop` given) waits until an import that began before it has ended; an import does not wait for an agent.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not (is_ours := _try_lock(descriptor)) and stop is not None and not stop.wait(LOOK_S):
            pass
        yield is_ours
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class ImportPhase(StrEnum):
    """How far an import is."""

    NONE = "none"
    #: Both repositories' metadata is verified, files are copied.
    READING = "reading"
    #: The stick is no longer needed for the update; the machine works.
    UPDATING = "updating"
    #: Over; the report is on the stick unless `text` says why not.
    DONE = "done"
    #: Refused or unreadable: nothing was taken from the stick.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImportState:
    """What the last import came to."""

    folder: str = ""
    phase: ImportPhase = ImportPhase.NONE
    code: str = ""
    text: str = ""
    #: Releases that the stick assigns, by line.
    releases: tuple[tuple[str, str], ...] = ()
    is_reported: bool = False


class Importer:
    """Imports sticks into a running agent, or into one that is about to run."""

    def __init__(
        self,
        *,
        identity: Identity,
        poller: Poller,
        machine: UpdateMachine,
        reporter: Reporter,
        clock: Clock,
        stop: threading.Event,
        write: Writer | None = None,
    ) -> None:
        self._identity, self._poller, self._machine, self._reporter = identity, poller, machine, reporter
        self._clock, self._stop = clock, stop
        self._write: Writer = self._write_in_child if write is None else write
        #: Guards the state and the turn; nobody reads or writes a stick while he holds it.
        self._lock = threading.Lock()
        self._state = ImportState()
        #: Counts imports: one that was followed by another writes nothing more.
        self._turn = 0
        self._threads: list[threading.Thread] = []

    def start(self, folder: str) -> dict[str, Any]:
        """Begin with the stick in this folder; `status` tells how it goes. Raises: InvalidError; ConflictError: another is being read."""
        path = Path(folder)
        if not path.is_absolute():
            raise InvalidError(f"The folder {folder[:200]!r} is not absolute.")
        with self._lock:
            if self._state.phase is ImportPhase.READING:
                raise ConflictError(
                    f"The stick {self._state.folder} is being read.", hint="Wait for its end: mooring-agent import --status."
                )
            self._state = ImportState(folder, ImportPhase.READING)
            self._turn += 1
            thread = threading.Thread(target=self._run, args=(path, self._turn), name="import", daemon=True)
            self._threads = [*(one for one in self._threads if one.is_alive()), thread]
            thread.start()
        return self.status()

    def status(self) -> dict[str, Any]:
        """How far the last import is."""
        return asdict(self._state)

    def join(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Wait for the threads, after `stop` was set, so many real seconds at most; returns whether all have ended."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [thread for thread in self._threads if thread.is_alive()]
        if left:
            log.warning("import.left-behind folder=%s threads=%d", self._state.folder, len(left))
        return not left

    def take(self, folder: Path) -> ImportState:
        """Verify the stick, copy what it assigns, hand it to the machine, and write what can be reported now."""
        return self._take(folder, self._turn)

    def tidy(self) -> None:
        """Remove copies that an import which was killed did not finish; nobody imports meanwhile."""
        forget_copies(self._poller.state_dir)

    def _take(self, folder: Path, turn: int) -> ImportState:
        state = ImportState(str(folder), ImportPhase.READING)
        try:
            answer = self._check(folder)
        except MooringError as failure:  # signed and whole; this device could not keep all that it assigns
            return self._failed(state, turn, failure.code, str(failure))
        if answer is None:
            text = "The runtimes of this device are still being tried; import again in a while."
            return self._failed(state, turn, "not-ready", text)
        if answer.error is not None or answer.assignment is None:
            error = answer.error
            return self._failed(state, turn, error.code if error else "check_failed", error.text if error else "No answer.")
        releases = tuple((line.line, line.release) for line in answer.assignment.lines)
        log.info("import.taken folder=%s releases=%s", folder, releases)
        text = "" if releases else "The stick assigns nothing to this device."
        state = self._show(turn, replace(state, phase=ImportPhase.UPDATING, releases=releases, text=text))
        return self._show(turn, self._report(state, folder))

    def _check(self, folder: Path) -> CheckAnswer | None:
        """The child's answer; an agent that has just started first learns what it can run."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (answer := self._poller.check_stick(folder)) is None and time.monotonic() < deadline and not self._stop.wait(LOOK_S):
            pass
        return answer

    def _run(self, folder: Path, turn: int) -> None:
        """On the import's own thread."""
        state = self._take(folder, turn)
        if state.phase is not ImportPhase.UPDATING:
            return
        while turn == self._turn and not self._stop.is_set() and self._is_open(state):
            self._stop.wait(LOOK_S)
        if turn == self._turn and not self._stop.is_set():
            self._show(turn, replace(self._report(state, folder), phase=ImportPhase.DONE))

    def _is_open(self, state: ImportState) -> bool:
        return any(self._machine.is_open(LineName(line)) for line, _ in state.releases)

    def _show(self, turn: int, state: ImportState) -> ImportState:
        """Let `status` tell this, unless another import began meanwhile; returns it."""
        with self._lock:
            if turn == self._turn:
                self._state = state
        return state

    def _failed(self, state: ImportState, turn: int, code: str, text: str) -> ImportState:
        log.warning("import.refused folder=%s code=%s text=%s", state.folder, code, text)
        return self._show(turn, replace(state, phase=ImportPhase.FAILED, code=code, text=text))

    def _report(self, state: ImportState, folder: Path) -> ImportState:
        """Write the newest report of every line to the stick; one that cannot be written is told, and no failure of the import."""
        device = self._identity.device
        try:
            envelopes = tuple(self._reporter.sign(line) for line in self._machine.lines() or [LineName("")])
            document = write_document(ReportFile(format=REPORTS_FORMAT, device=device, reports=envelopes))
            self._write(folder, device, document)
        except (OSError, MooringError) as error:
            text = f"The report could not be written to the stick: {error}"
            return replace(state, text=f"{state.text} {text}".strip()[:2000], is_reported=False)
        return replace(state, is_reported=True)

    def _write_in_child(self, folder: Path, device: DeviceId, document: bytes) -> None:
        write_reports(command_of(folder, device), document, stop=self._stop)
