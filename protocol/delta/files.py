"""The files of one decoding: the old one mapped and let go again, the new one written under another name until its digest fits.

Mapped pages count as memory of the process, so whoever walks through a mapped file lets go of what lies behind.
"""

import contextlib
import errno
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.delta.container import CHUNK_BYTES, Bytes
from protocol.delta.errors import DeltaError
from protocol.files import fsync_folder
from protocol.ids import Digest

#: Files up to this are read at once, larger ones stay mapped.
READ_WHOLE_BYTES = 2 << 20
#: Bytes that stay free on the disk of the new file.
DISK_RESERVE_BYTES = 16 << 20


class Mapped:
    """A file mapped read-only; a small one, and an empty one, which cannot be mapped, is read at once."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(descriptor).st_size
            self.data: mmap.mmap | bytes
            if self.size > READ_WHOLE_BYTES:
                self.data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            else:
                self.data = os.read(descriptor, self.size)
                self.size = len(self.data)
        finally:
            os.close(descriptor)

    def let_go(self) -> None:
        """Give the pages back; they are read again when somebody looks."""
        if isinstance(self.data, mmap.mmap):
            self.data.madvise(mmap.MADV_DONTNEED)

    def digest(self) -> Digest:
        """The digest of the whole file."""
        made = hashlib.sha256()
        with memoryview(self.data) as view:
            for start in range(0, self.size, CHUNK_BYTES):
                made.update(view[start : start + CHUNK_BYTES])
                self.let_go()
        return Digest(f"sha256:{made.hexdigest()}")

    def close(self) -> None:
        if isinstance(self.data, mmap.mmap):
            with contextlib.suppress(BufferError):  # an error on its way still holds a view of it; the mapping goes when that does
                self.data.close()


class Output:
    """The new file while it is written, under a temporary name in its folder; a small one is kept in memory until it is whole."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self._held = bytearray(size) if size <= CHUNK_BYTES else None

    def reserve(self) -> None:
        """Take the place on the disk, of a file that is written in parts. Raises: OSError."""
        if self._held is None:
            os.posix_fallocate(self._descriptor, 0, self.size)

    def write_at(self, offset: int, data: Bytes) -> None:
        """Put the bytes there. Raises: DeltaError when they would lie outside the declared size; OSError."""
        if offset < 0 or offset + len(data) > self.size:
            raise DeltaError(f"The delta writes {len(data)} bytes at {offset}; the new file has {self.size}.")
        if self._held is not None:
            self._held[offset : offset + len(data)] = data
        else:
            self._write(offset, data)

    def write_parts(self, parts: Iterable[tuple[int, Bytes]]) -> None:
        """Put each of these bytes at their offset. Raises as `write_at`."""
        held, size = self._held, self.size
        for offset, data in parts:
            if held is None or offset < 0 or offset + len(data) > size:
                self.write_at(offset, data)
            else:
                held[offset : offset + len(data)] = data

    def finish(self) -> Digest:
        """Write what is held; returns the digest of all that was written."""
        if self._held is not None:
            self._write(0, self._held)
            return Digest(f"sha256:{hashlib.sha256(self._held).hexdigest()}")
        made, buffer, offset = hashlib.sha256(), bytearray(CHUNK_BYTES), 0
        with memoryview(buffer) as view:
            while count := os.preadv(self._descriptor, [view], offset):
                made.update(view[:count])
                offset += count
        return Digest(f"sha256:{made.hexdigest()}")

    def _write(self, offset: int, data: Bytes) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)


@contextmanager
def new_file(path: Path, size: int, expected: Digest) -> Iterator[Output]:
    """A place for `size` bytes that becomes `path`, durably, once they have the digest `expected`; else nothing stays.

    Raises: DeltaError when the digest differs; OSError (disk full, no permission).
    """
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < size + DISK_RESERVE_BYTES:
        raise OSError(errno.ENOSPC, f"{size + DISK_RESERVE_BYTES} free bytes are needed", str(path.parent))
    temporary = path.with_name(f".{path.name}.delta.part")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            output = Output(descriptor, size)
            output.reserve()
            yield output
            if (seen := output.finish()) != expected:
                raise DeltaError(f"The result has digest {seen}; {expected} was wanted.")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)
