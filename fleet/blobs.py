"""The content-addressed store: bytes by their digest, over obstore: a folder by default, S3, GCS or Azure when outgrown.

A blob is there whole or not at all, never changes, and is kept once. Bytes are hashed while they come in and stored only when their
size and digest are right.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from protocol.canonical import digest_of
from protocol.errors import ConfigError, InvalidError, NotFoundError, TrustError, UnavailableError
from protocol.files import CHUNK_BYTES, copy_hashed, fsync_folder
from protocol.ids import Digest, check_digest

SCHEMES = ("file", "s3", "gs", "az", "memory")
#: Largest blob unless the caller allows less: 2 GiB, a firmware image.
MAX_BYTES = 2 << 30
#: Spooled bytes below this stay in memory.
_SPOOL_BYTES = 8 << 20


class BlobStore:
    """Blobs of one store; safe for threads and processes at once."""

    def __init__(self, store: ObjectStore, *, root: Path | None = None) -> None:
        self._store = store
        #: Set for a folder: its files are made durable after a put.
        self._root = root

    def put(self, data: bytes) -> Digest:
        """Keep the bytes; returns their digest. Raises: UnavailableError."""
        digest = digest_of(data)
        self._keep(digest, data, len(data))
        return digest

    def put_file(self, path: Path, *, limit: int = MAX_BYTES, expected: Digest | None = None) -> Digest:
        """Keep the file's bytes; returns their digest. Raises: as `put_chunks`; OSError when the file cannot be read."""
        with path.open("rb") as file:
            return self.put_chunks(iter(lambda: file.read(CHUNK_BYTES), b""), limit=limit, expected=expected)[1]

    def put_chunks(self, chunks: Iterable[bytes], *, limit: int = MAX_BYTES, expected: Digest | None = None) -> tuple[int, Digest]:
        """Keep what the chunks make together; returns (length, digest).

        Raises: InvalidError when more than `limit` bytes come (code too-large), or their digest is not `expected` (code
        digest-mismatch); UnavailableError. Then nothing is kept.
        """
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=self._spool_folder()) as spool:
            out = cast("BinaryIO", spool)
            try:
                length, digest = copy_hashed(chunks, out, limit=limit)
            except InvalidError as error:
                raise InvalidError(f"The file is larger than the {limit} bytes allowed.", code="too-large") from error
            except OSError as error:
                raise UnavailableError(f"The upload cannot be kept: {error.strerror}.") from error
            if expected is not None and digest != expected:
                raise InvalidError(
                    f"The bytes have digest {digest}; {expected} was announced.", hint="Send them again.", code="digest-mismatch"
                )
            spool.seek(0)
            self._keep(digest, out, length)
        return length, digest

    def size(self, digest: Digest) -> int:
        """Length of the blob in bytes. Raises: NotFoundError; UnavailableError."""
        with _errors_translated(digest):
            return int(obstore.head(self._store, _key(digest))["size"])

    def exists(self, digest: Digest) -> bool:
        """Whether the blob is there. Raises: UnavailableError."""
        try:
            self.size(digest)
        except NotFoundError:
            return False
        return True

    def read(self, digest: Digest, *, limit: int) -> bytes:
        """The whole blob, checked against its digest.

        Raises: NotFoundError; InvalidError when it is longer than `limit`; TrustError when the store holds other bytes; UnavailableError.
        """
        size = self.size(digest)
        if size > limit:
            raise InvalidError(f"Blob {digest} has {size} bytes; {limit} are allowed here.", code="too-large")
        data = b"".join(self.chunks(digest, start=0, end=size))
        if digest_of(data) != digest:
            raise TrustError(f"The blob store holds other bytes under {digest}.", hint="Restore it from a backup.", code="blob-corrupt")
        return data

    def chunks(self, digest: Digest, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`, in pieces. A missing blob is told at once, not at the first piece.

        Raises: NotFoundError; UnavailableError, also while iterating.
        """
        stop = self.size(digest) if end is None else end
        if stop <= start:
            return iter(())
        with _errors_translated(digest):
            result = obstore.get(self._store, _key(digest), options={"range": (start, stop)})
            pieces = result.stream(min_chunk_size=CHUNK_BYTES)
        return _pieces(digest, pieces)

    def delete(self, digest: Digest) -> None:
        """Forget the blob; one that is not there is no error. Raises: UnavailableError."""
        with contextlib.suppress(NotFoundError), _errors_translated(digest):
            obstore.delete(self._store, _key(digest))

    def _keep(self, digest: Digest, content: bytes | BinaryIO, length: int) -> None:
        if self._has(digest, length):
            return
        with _errors_translated(digest):
            obstore.put(self._store, _key(digest), content)
        if self._root is not None:
            _make_durable(self._root / _key(digest), self._root)

    def _has(self, digest: Digest, length: int) -> bool:
        try:
            return self.size(digest) == length
        except NotFoundError:
            return False

    def _spool_folder(self) -> str | None:
        """Beside the blobs when they are a folder: /tmp may be small."""
        return None if self._root is None else str(self._root)


def open_blobs(url: str) -> BlobStore:
    """The store at the URL; a folder is made when missing. Raises: ConfigError naming the URL's scheme and what is allowed."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"blob_url has the scheme {parts.scheme!r}.", hint=f"Wanted: one of {', '.join(f'{name}://' for name in SCHEMES)}."
        )
    try:
        if parts.scheme == "file":
            root = Path(unquote(parts.path))
            root.mkdir(parents=True, exist_ok=True)
            return BlobStore(LocalStore(root), root=root)
        return BlobStore(from_url(url))
    except (BaseError, OSError, ValueError) as error:
        raise ConfigError(f"The blob store {parts.scheme}://{parts.hostname or parts.path} cannot be opened: {error}") from error


def _key(digest: Digest) -> str:
    name = check_digest(digest).removeprefix("sha256:")
    return f"sha256/{name[:2]}/{name}"


def _pieces(digest: Digest, pieces: Iterable[Any]) -> Iterator[bytes]:
    with _errors_translated(digest):
        for piece in pieces:
            yield bytes(piece)


def _make_durable(path: Path, root: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    folder = path.parent
    while folder != root.parent:
        fsync_folder(folder)
        folder = folder.parent


@contextlib.contextmanager
def _errors_translated(digest: Digest) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:  # what obstore raises for a missing key
        raise NotFoundError(f"There is no blob {digest}.") from error
    except (BaseError, OSError) as error:
        raise UnavailableError(f"The blob store does not answer: {str(error)[:300]}") from error
