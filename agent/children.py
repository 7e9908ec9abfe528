"""The agent's short-lived children: what they inherit, and one whose answer is waited for, but never for long.

The same code as the parent's runs in them, whatever folder the agent was started in.
"""

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import agent

_ROOT = Path(agent.__file__).resolve().parent.parent
#: Real seconds between two looks at whether the agent ends, and longest wait for a child that was killed: one that hangs in the kernel,
#: at a medium that does not answer, dies when that returns, and nobody waits for it.
_LOOK_S, _REAP_S = 0.25, 2.0

#: For a child that computes in one thread: numpy's library would start one more per core, which waits by spinning, tens of milliseconds.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def child_environment() -> dict[str, str]:
    """The environment of a child that runs our modules.

    A folder that somebody else may write, such as the current one, must not come first on its import path, and nothing phones home.
    """
    path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "ORT_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child ended."""

    #: What it wrote to its standard output, at most one byte more than the limit.
    output: bytes
    #: As `subprocess` tells it; None: it was killed and still hangs.
    status: int | None
    #: It was killed because its time was over, or because the agent ends.
    is_overdue: bool = False
    is_stopped: bool = False


def run_bounded(
    command: Sequence[str], *, timeout_s: float, limit: int, given: bytes = b"", stop: threading.Event | None = None
) -> ChildEnd:
    """Run the command with `given` as its standard input until it ends, `timeout_s` real seconds are over or `stop` is set; kills it then.

    Raises: OSError when it cannot be started.
    """
    with tempfile.TemporaryFile() as source:
        source.write(given)
        source.seek(0)
        child = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, env=child_environment())
    deadline, output, is_stopped, is_overdue = time.monotonic() + timeout_s, bytearray(), False, False
    assert child.stdout is not None  # noqa: S101 - PIPE was asked for
    with child.stdout as stream:
        ready = select.poll()
        ready.register(stream, select.POLLIN)
        while len(output) <= limit:
            is_stopped, is_overdue = stop is not None and stop.is_set(), time.monotonic() >= deadline
            if is_stopped or is_overdue:
                break
            if ready.poll(1000 * min(_LOOK_S, max(0.0, deadline - time.monotonic()))):
                chunk = os.read(stream.fileno(), min(1 << 16, limit + 1 - len(output)))
                if not chunk:
                    break
                output += chunk
    if is_stopped or is_overdue or len(output) > limit:
        _kill(child)
    return ChildEnd(bytes(output), _reap(child), is_overdue=is_overdue, is_stopped=is_stopped)


def _reap(child: "subprocess.Popen[bytes]") -> int | None:
    """The status of a child that closed its output, or was killed."""
    with suppress(subprocess.TimeoutExpired):
        return child.wait(_REAP_S)
    _kill(child)
    with suppress(subprocess.TimeoutExpired):
        return child.wait(_REAP_S)
    return None


def _kill(child: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
