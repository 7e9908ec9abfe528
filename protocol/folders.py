"""A folder that somebody else filled: plain files are read and written in it by name, no link is followed, every read is bounded.

Devices and pipes are not opened for long: what is no plain file is refused before a byte is read.
"""

import contextlib
import errno
import itertools
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from protocol.errors import InvalidError, NotFoundError
from protocol.files import CHUNK_BYTES

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# a pipe would block the open itself, a terminal would become ours
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_UNFINISHED = re.compile(r"\.[0-9a-f]{12}\.tmp")
#: Names in a folder that are looked through for what was left unfinished.
_MAX_NAMES = 10_000
#: What the system says of a name that is a link, or no folder.
_NOT_PLAIN = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}


class UntrustedFolder:
    """The folder, open. A context manager. Names are single ones: what is asked for in `names` lies below the folder or nowhere."""

    def __init__(self, path: Path) -> None:
        """Raises: NotFoundError when there is no such folder; OSError."""
        self._path = path
        try:
            self._root = os.open(path, _FOLDER)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"There is no folder {path}.", code="no-folder") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def has(self, *names: str) -> bool:
        """Whether a plain file is there. Raises: OSError when the medium fails."""
        try:
            with self.open(*names):
                return True
        except (NotFoundError, InvalidError):
            return False

    def read(self, *names: str, limit: int) -> bytes:
        """The file's bytes. Raises: as `open`; InvalidError when it is longer than `limit`; OSError when the medium fails."""
        with self.open(*names) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InvalidError(f"{'/'.join(names)} is longer than the {limit} bytes allowed.", code="too-large")
        return data

    def chunks(self, *names: str, length: int) -> Iterator[bytes]:
        """The bytes of a file that must have that length. Raises: as `open`; InvalidError when it has another; OSError."""
        with self.open(*names) as file:
            seen = os.fstat(file.fileno()).st_size
            if seen != length:
                raise InvalidError(f"{'/'.join(names)} has {seen} bytes; {length} were signed.", code="wrong-length")
            left = length
            while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk

    def list_names(self, *names: str, most: int) -> list[str]:
        """Names in the sub-folder, sorted; empty when there is none. Raises: InvalidError when there are more than `most`; OSError."""
        try:
            with self._folder(*names) as folder, os.scandir(folder) as entries:
                found = []
                for entry in entries:
                    found.append(entry.name)
                    if len(found) > most:
                        raise InvalidError(f"{'/'.join(names)} holds more than {most} names.", code="too-large")
                return sorted(found)
        except NotFoundError:
            return []

    def write(self, *names: str, data: bytes) -> None:
        """Make the file hold the bytes, durably, under this very name; folders are made. Raises: InvalidError; OSError.

        What a writer that was killed left unfinished beside it goes.
        """
        *parents, name = (_single(one) for one in names)
        with self._folder(*parents, make=True) as folder:
            _forget_unfinished(folder)
            temporary = f".{secrets.token_hex(6)}.tmp"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)

    @contextlib.contextmanager
    def open(self, *names: str) -> Iterator[BinaryIO]:
        """The plain file, open. Raises: NotFoundError; InvalidError for a link, a folder, a pipe or a device; OSError."""
        *parents, name = (_single(one) for one in names)
        with self._folder(*parents) as folder:
            descriptor = self._open(name, _FILE, folder, names)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidError(f"{'/'.join(names)} is no plain file.", code="not-plain")
        with os.fdopen(descriptor, "rb") as file:
            yield file

    @contextlib.contextmanager
    def _folder(self, *names: str, make: bool = False) -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            folder = self._root
            for name in names:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(_single(name), dir_fd=folder)
                folder = self._open(_single(name), _FOLDER | os.O_NOFOLLOW, folder, names)
                stack.callback(os.close, folder)
            yield folder

    def _open(self, name: str, flags: int, folder: int, names: tuple[str, ...]) -> int:
        try:
            return os.open(name, flags, dir_fd=folder)
        except FileNotFoundError:
            raise NotFoundError(f"{self._path} has no {'/'.join(names)}.") from None
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise InvalidError(f"{'/'.join(names)} on {self._path} is a link or no plain file.", code="not-plain") from None
            raise


def _forget_unfinished(folder: int) -> None:
    with os.scandir(folder) as entries:
        left = [entry.name for entry in itertools.islice(entries, _MAX_NAMES) if _UNFINISHED.fullmatch(entry.name)]
    for name in left:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)


def _single(name: str) -> str:
    if not name or name in {".", ".."} or "/" in name or "\0" in name or len(name) > 255:
        raise InvalidError(f"{name[:80]!r} is no name of a file.")
    return name
