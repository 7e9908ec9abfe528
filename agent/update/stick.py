"""Writing onto a stick, in a child of its own: a stick that hangs then holds up a process that nobody needs, never the agent.

`python -m agent.update.stick FOLDER DEVICE` puts its standard input down as the reports of the device.
"""

import sys
import threading
from pathlib import Path

from agent.children import run_bounded
from protocol.bundle import MAX_REPORTS_BYTES, REPORTS, report_name
from protocol.errors import MooringError, TransferError
from protocol.folders import UntrustedFolder
from protocol.ids import DeviceId

#: Real seconds that writing the reports, at most 4 MiB, may take.
WRITE_TIMEOUT_S = 120.0
_MAX_TEXT_BYTES = 4096


def command_of(folder: Path, device: DeviceId) -> list[str]:
    """The child's command line."""
    return [sys.executable, "-m", "agent.update.stick", str(folder), device]


def write_reports(command: list[str], document: bytes, *, stop: threading.Event | None = None, timeout_s: float = WRITE_TIMEOUT_S) -> None:
    """Put the document down as the device's reports: whole, or not at all.

    Raises: TransferError (code "stick_lost") when the child could not, hangs, or is ended with the agent; OSError when there is no child.
    """
    end = run_bounded(command, timeout_s=timeout_s, limit=_MAX_TEXT_BYTES, given=document, stop=stop)
    if end.is_stopped:
        raise TransferError("the agent ends", code="stick_lost")
    if end.is_overdue:
        raise TransferError(f"it did not take them within {timeout_s:g} s", code="stick_lost")
    if end.status != 0 or end.output:
        text = end.output.decode(errors="replace").strip() or f"the child ended with status {end.status}"
        raise TransferError(text[:1000], code="stick_lost")


def main(arguments: list[str]) -> int:
    """The child: returns 0 and says nothing when the reports are on the stick; else says why not."""
    folder, device = Path(arguments[0]), DeviceId(arguments[1])
    document = sys.stdin.buffer.read(MAX_REPORTS_BYTES + 1)
    if len(document) > MAX_REPORTS_BYTES:
        sys.stdout.write(f"the reports have more than {MAX_REPORTS_BYTES} bytes")
        return 1
    try:
        with UntrustedFolder(folder) as stick:
            stick.write(REPORTS, report_name(device), data=document)
    except (OSError, MooringError) as error:
        sys.stdout.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
