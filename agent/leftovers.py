"""Memory that only the start needed, given back to the kernel (ADR 0063).

Importing OpenCV, FFmpeg and a runtime, relocating them and opening a camera touch tens of MiB of library files that inference never looks
at again. Such pages are clean copies of files: unmapped, they cost nothing, stay in the page cache while nobody else wants the space, and
are mapped again when they are touched. And building a session leaves free memory of malloc's between what is in use.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

#: Seconds after something was loaded or opened until what that touched is given back: by then what goes on has begun.
SETTLE_S = 3.0
#: Seconds until that is done again although nothing is known to have changed: a camera that was opened anew leaves pages too.
PERIOD_S = 3600.0
#: `MADV_DONTNEED` of madvise(2), the same number on every architecture of Linux but alpha.
_DONTNEED = 4
#: Bytes of a chunk that malloc is shown once: it keeps twice that at the end of each of its heaps.
_SHOWN_BYTES = 16 << 20
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r-[-x]p) \S+ \S+ \S+ +(/.*)")
_LIBRARY = re.compile(r"\.so(\.|$)")


@dataclass(frozen=True, slots=True)
class Mapping:
    """One part of a file in this process's memory that can be read and never written."""

    start: int
    length: int
    path: str
    #: Bytes of it that are in memory.
    resident: int


def clean_mappings(smaps: Iterable[str]) -> Iterator[Mapping]:
    """The read-only private mappings of files in `/proc/PID/smaps` none of whose pages differs from the file.

    What the loader relocated and then protected is read-only too, but was written: its pages count as anonymous, or as swapped once they
    were swapped out (proc_pid_smaps(5)), and giving them back would undo the relocation. It is left out.
    """
    head: re.Match[str] | None = None
    resident = written = 0
    for line in smaps:
        if line[:1] in "0123456789abcdef":  # fields begin with a capital
            head = _HEAD.match(line)
        elif head is not None and line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
        elif head is not None and line.startswith("Anonymous:"):
            written = int(line.split()[1])
        elif head is not None and line.startswith("Swap:") and written + int(line.split()[1]) == 0:
            start = int(head[1], 16)
            yield Mapping(start, int(head[2], 16) - start, head[4].rstrip("\n"), resident)


class Leftovers:
    """Gives back what a start left, seconds after each change and each hour; any thread may say `changed`, one calls `tend`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due_s = now() + SETTLE_S
        #: Libraries that cannot be unloaded any more, so that nothing else will ever lie where they do; None: not a loaded library.
        self._pinned: dict[str, ctypes.CDLL | None] = {}
        self._library = ctypes.CDLL(None)
        self._library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        #: Of glibc; other libraries have none.
        self._trim: Callable[[int], int] | None = getattr(self._library, "malloc_trim", None)

    def changed(self) -> None:
        """Something is being loaded or opened."""
        self._due_s = self._now() + SETTLE_S

    def tend(self) -> None:
        """Give back what is due."""
        if self._now() >= self._due_s:
            self._due_s = self._now() + PERIOD_S
            self.give_back()

    def give_back(self) -> int:
        """Let go of free memory, and unmap the clean pages of the program and of every library; returns bytes of these that were in memory.

        Where /proc is hidden they stay, which is 0.
        """
        if self._trim is not None:
            self._trim(0)
        try:
            for path in _mapped_files():
                if path not in self._pinned:
                    self._pinned[path] = _pin(path)
            # looked at after that: what was being loaded meanwhile has been pinned in its final form
            with _open("smaps") as file:
                return sum(self._unmap(mapping) for mapping in clean_mappings(file) if self._is_ours(mapping.path))
        except OSError:
            return 0

    def _is_ours(self, path: str) -> bool:
        return self._pinned.get(path) is not None or path == os.path.realpath(sys.executable)

    def _unmap(self, mapping: Mapping) -> int:
        return mapping.resident if self._library.madvise(mapping.start, mapping.length, _DONTNEED) == 0 else 0


def keep_what_repeats() -> None:
    """Have malloc keep the memory that each frame takes and gives back, instead of returning it to the kernel and asking for it again.

    glibc returns what is free at the end of a heap beyond twice the largest chunk that it mapped and freed so far (mallopt(3),
    M_TRIM_THRESHOLD); the buffers of one inference together may be just above that. A chunk that is freed untouched raises it.
    """
    bytes(_SHOWN_BYTES)


def _open(name: str) -> TextIO:
    return Path("/proc/self", name).open(encoding="utf-8", errors="surrogateescape")


def _mapped_files() -> set[str]:
    with _open("maps") as file:
        return {line[place:].rstrip("\n") for line in file if (place := line.find("/")) > 0}


def _pin(path: str) -> ctypes.CDLL | None:
    """A hold on a library that is loaded; None for other files."""
    if not _LIBRARY.search(path):
        return None
    try:
        return ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:  # mapped by other means than the loader's, or replaced on disk
        return None
