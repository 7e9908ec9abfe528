"""Who is inside native code right now: one record per line in memory that outlives a crash of the inference process.

The worker writes the name of a back end before it calls it and clears it after; when the worker dies by a signal, the control process
reads whom to blame. Each record has one writer per half and is read only after the writer is dead: no lock, no counter.
"""

import mmap
import os

LINES = 128
#: Goes before the name of a back end that computes or loads for a candidate beside the line's model: its crash is not that model's.
CANDIDATE_MARK = "~"
#: The longest name of a back end that is told apart.
_HALF = 64
_RECORD = 2 * _HALF


class Marks:
    """The records, over a memory file that both processes map."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, LINES * _RECORD)
        #: Halves of records by what they say: a few names, written twice per frame.
        self._halves: dict[str, bytes] = {}

    def loading(self, index: int, candidate: str) -> None:
        """Write which back end is being loaded for the line; empty: none."""
        start = index * _RECORD
        self._map[start : start + _HALF] = self._half_of(candidate)

    def inferring(self, index: int, candidate: str) -> None:
        """Write which back end computes for the line; empty: none. Twice per frame: no call more than it needs."""
        half = self._halves.get(candidate) or self._half_of(candidate)
        start = index * _RECORD + _HALF
        self._map[start : start + _HALF] = half

    def read(self, index: int) -> tuple[str, str]:
        """(the back end that was being loaded, the one that was computing), each empty when there was none."""
        start = index * _RECORD
        halves = (bytes(self._map[start + offset : start + offset + _HALF]) for offset in (0, _HALF))
        loading, inferring = (half.rstrip(b"\0").decode(errors="replace") for half in halves)
        return loading, inferring

    def close(self) -> None:
        """Unmap."""
        self._map.close()

    def _half_of(self, text: str) -> bytes:
        half = self._halves[text] = text.encode()[:_HALF].ljust(_HALF, b"\0")
        return half


def new_memory() -> int:
    """A file descriptor of zeroed memory for `Marks`."""
    fd = os.memfd_create("mooring-marks")
    os.ftruncate(fd, LINES * _RECORD)
    return fd
