"""Files that survive a power cut and never surprise by their size."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from protocol.errors import InvalidError
from protocol.ids import Digest

CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Make `path` hold exactly `data`: after a cut at any instruction it holds the old bytes or the new; once this returned, the new.

    Raises: OSError (disk full, no permission); then the old file is untouched and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make names created, renamed or removed in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit: int) -> bytes:
    """The file's bytes. Raises: InvalidError when it is longer than `limit` bytes; OSError when it cannot be read."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidError(f"{path.name} is longer than the {limit} bytes allowed.")
    return data


def digest_of_file(path: Path) -> Digest:
    """The digest "sha256:<hex>" of the file's bytes, read in pieces. Raises: OSError."""
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def copy_hashed(chunks: Iterable[bytes], out: BinaryIO, *, limit: int) -> tuple[int, Digest]:
    """Write the chunks and hash them on the way; returns (length in bytes, digest).

    Raises: InvalidError as soon as more than `limit` bytes came; what was written until then is the caller's to remove.
    """
    digest, length = hashlib.sha256(), 0
    for chunk in chunks:
        length += len(chunk)
        if length > limit:
            raise InvalidError(f"More than the {limit} bytes allowed were sent.")
        digest.update(chunk)
        out.write(chunk)
    return length, Digest(f"sha256:{digest.hexdigest()}")
