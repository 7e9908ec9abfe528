"""Bytes from the server: bounded, resumable, checked by digest; and python-tuf's fetcher for the check child (`tuf` imported there only).

The state on disk is the resume point: `{hex}.part` grows, is synced every 4 MiB, and becomes `{hex}` when its digest is right. Rates and
timeouts are judged by the system's clock, like TLS.
"""

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agent.slots import Disk, LocalDisk, digest_on, replace_file
from agent.update.assignment import OfferedFile
from agent.update.bandwidth import TokenBucket
from protocol.clock import Clock
from protocol.errors import MooringError, NotFoundError, TransferError, TrustError, UnavailableError
from protocol.ids import Digest

if TYPE_CHECKING:
    import httpx
    from tuf.ngclient.fetcher import FetcherInterface

#: Bytes between two fsyncs of a download: what a power cut may cost.
SYNC_BYTES = 4 << 20
#: Below this many bytes per second over this many seconds the transfer is given up (UPDATES 1.3).
MIN_BYTES_PER_S, SLOW_WINDOW_S = 1000.0, 60.0
_ETAG_LIMIT = 200
#: How the names of files begin that are made here.
_RESULT = "made-"
_OK, _PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE, _TOO_MANY_REQUESTS, _SERVER_ERRORS = 200, 206, 416, 429, 500


class StoppedError(TransferError):
    """The transfer was asked to stop; what came so far is kept."""

    code = "stopped"


class Fetcher(Protocol):
    """The download folder, as the update machine sees it."""

    def bytes_in_place(self, files: Sequence[OfferedFile]) -> int:
        """Bytes of these files that are in the folder, complete or not."""
        ...

    def in_place(self, digests: Collection[Digest]) -> dict[Digest, int]:
        """The same per digest."""
        ...

    def find(self, file: OfferedFile) -> Path | None:
        """The complete file, its digest already checked."""
        ...

    def adopt(self, file: OfferedFile, source: Path) -> bool:
        """Copy the file from somewhere on this device; returns False when its bytes are not the ones named. Raises: OSError."""
        ...

    def fetch(self, file: OfferedFile, *, on_bytes: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
        """Get the file into the folder, from where an earlier try ended.

        `on_bytes` hears the count of each piece. Raises: StoppedError; TransferError, UnavailableError: try again later; TrustError: these
        are not the bytes that were signed; OSError.
        """
        ...

    def begin_result(self) -> Path:
        """A free name in the folder for a file that is made here, of which nothing is left over. Raises: OSError."""
        ...

    def take_result(self, file: OfferedFile, result: Path) -> None:
        """Make the result, whose digest was checked, the complete file. Raises: OSError."""
        ...

    def forget(self, *, keep: Collection[Digest]) -> None:
        """Remove everything but the files with these digests. Raises: OSError."""
        ...


class RateMeter:
    """Watches that a transfer does not crawl."""

    def __init__(self, *, min_bytes_per_s: float = MIN_BYTES_PER_S, now: Callable[[], float] = time.monotonic) -> None:
        self._min_bytes = min_bytes_per_s * SLOW_WINDOW_S
        self._now = now
        self._since, self._count = now(), 0

    def pause(self, seconds: float) -> None:
        """Leave out so many seconds, in which we did not want more."""
        self._since += seconds

    def add(self, count: int) -> None:
        """Count bytes that came. Raises: TransferError `slow-retrieval`."""
        self._count += count
        elapsed = self._now() - self._since
        if elapsed < SLOW_WINDOW_S:
            return
        if self._count < self._min_bytes * elapsed / SLOW_WINDOW_S:
            rate = self._count / elapsed
            raise TransferError(f"The server sent {rate:.0f} bytes/s over {elapsed:.0f} s; that is too slow.", code="slow-retrieval")
        self._since, self._count = self._now(), 0


class Downloads:
    """The download folder, filled over HTTPS. A client is opened per file, so that a renewed certificate is used at once."""

    def __init__(
        self,
        folder: Path,
        open_client: Callable[[], AbstractContextManager["httpx.Client"]],
        *,
        clock: Clock,
        disk: Disk | None = None,
        min_bytes_per_s: float = MIN_BYTES_PER_S,
        monotonic: Callable[[], float] = time.monotonic,
        bucket: TokenBucket | None = None,
    ) -> None:
        self._bucket = bucket
        self._folder = folder
        self._open_client = open_client
        self._clock = clock
        self._disk: Disk = LocalDisk() if disk is None else disk
        self._min_bytes_per_s = min_bytes_per_s
        self._monotonic = monotonic
        #: Complete files whose bytes this process has seen to be the right ones.
        self._proven: set[Digest] = set()

    def bytes_in_place(self, files: Sequence[OfferedFile]) -> int:
        return sum(self.in_place({file.sha256 for file in files}).values())

    def in_place(self, digests: Collection[Digest]) -> dict[Digest, int]:
        sizes = self._disk.sizes(self._folder)
        found = {digest: sizes.get(_hex(digest), 0) or sizes.get(f"{_hex(digest)}.part", 0) for digest in digests}
        return {digest: size for digest, size in found.items() if size}

    def find(self, file: OfferedFile) -> Path | None:
        """A name outlives a power cut that its bytes did not, on some file systems: each is read once after a start."""
        name = _hex(file.sha256)
        path = self._folder / name
        if self._disk.sizes(self._folder).get(name) != file.length:
            self._proven.discard(file.sha256)
            return None
        if file.sha256 not in self._proven:
            if digest_on(self._disk, path) != file.sha256:
                self._disk.remove(path)
                return None
            self._proven.add(file.sha256)
        return path

    def adopt(self, file: OfferedFile, source: Path) -> bool:
        self._disk.make_folder(self._folder)
        part = self._part(file)
        self._disk.remove(part)
        with self._disk.append(part) as out:
            for chunk in self._disk.read_chunks(source):
                out.write(chunk)
            out.sync()
        return self._keep(file, part)

    def fetch(self, file: OfferedFile, *, on_bytes: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
        self._disk.make_folder(self._folder)
        part = self._part(file)
        resumed = self._have(part)
        self._fill(file, part, on_bytes, should_stop)
        if self._keep(file, part):
            return
        if resumed:  # a cut may have left damaged bytes: once more, from the first one
            self._fill(file, part, on_bytes, should_stop)
            if self._keep(file, part):
                return
        raise TrustError(f"{file.name} from {file.url} does not have the digest {file.sha256} that was signed.", code="hash_mismatch")

    def begin_result(self) -> Path:
        self._disk.make_folder(self._folder)
        for name in self._disk.sizes(self._folder):
            if name.lstrip(".").startswith(_RESULT):
                self._disk.remove(self._folder / name)
        # another name each time: should a child of a killed agent still write, it writes elsewhere
        return self._folder / f"{_RESULT}{secrets.token_hex(8)}"

    def take_result(self, file: OfferedFile, result: Path) -> None:
        self._disk.replace(result, self._folder / _hex(file.sha256))
        self._disk.sync_folder(self._folder)

    def forget(self, *, keep: Collection[Digest]) -> None:
        wanted = {_hex(digest) for digest in keep}
        gone = [name for name in self._disk.sizes(self._folder) if name.split(".", maxsplit=1)[0] not in wanted]
        for name in gone:
            self._disk.remove(self._folder / name)
        if gone:
            self._disk.sync_folder(self._folder)

    def _part(self, file: OfferedFile) -> Path:
        return self._folder / f"{_hex(file.sha256)}.part"

    def _have(self, part: Path) -> int:
        return self._disk.sizes(self._folder).get(part.name, 0)

    def _keep(self, file: OfferedFile, part: Path) -> bool:
        """Make the part the file when its digest is right, else remove it."""
        if self._have(part) != file.length or digest_on(self._disk, part) != file.sha256:
            self._disk.remove(part)
            return False
        with self._disk.append(part) as whole:
            whole.sync()  # an agent that was killed, not cut, may have left bytes that are not on the disk yet
        self._disk.replace(part, self._folder / _hex(file.sha256))
        self._disk.remove(self._etag_path(file))
        self._disk.sync_folder(self._folder)
        self._proven.add(file.sha256)
        return True

    # --- one request ---

    def _fill(self, file: OfferedFile, part: Path, on_bytes: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
        have = self._have(part)
        if have > file.length:
            self._disk.remove(part)
            have = 0
        if have == file.length:
            return
        headers = {"Accept-Encoding": "identity"} | self._range(file, have)
        with _translated(file.url), self._open_client() as client, client.stream("GET", file.url, headers=headers) as response:
            if response.status_code == _RANGE_NOT_SATISFIABLE:
                return  # hash what is there
            self._check_status(response)
            if response.status_code == _OK or _range_start(response) != have:
                # the server does not resume, or not from here: from the first byte
                self._disk.remove(part)
                if response.status_code != _OK:
                    raise TransferError(f"{file.url} answered another range than the one asked for.", code="bad-range")
                have = 0
            self._save_etag(file, response)
            self._pour(response.iter_raw(), file, part, have, on_bytes, should_stop)

    def _pour(
        self,
        chunks: Iterator[bytes],
        file: OfferedFile,
        part: Path,
        have: int,
        on_bytes: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        meter = RateMeter(min_bytes_per_s=self._min_bytes_per_s, now=self._monotonic)
        unsynced = 0
        with self._disk.append(part) as out:
            for chunk in chunks:
                if have + len(chunk) > file.length:
                    raise TrustError(f"{file.url} sends more than the {file.length} bytes that were signed.", code="endless-data")
                if self._bucket is not None:
                    meter.pause(self._bucket.spend(len(chunk), should_stop=should_stop))
                out.write(chunk)
                have += len(chunk)
                unsynced += len(chunk)
                if unsynced >= SYNC_BYTES:
                    out.sync()
                    unsynced = 0
                on_bytes(len(chunk))
                meter.add(len(chunk))
                if should_stop():
                    out.sync()
                    raise StoppedError(f"Stopped after {have} of {file.length} bytes of {file.name}.")
            out.sync()
        if have < file.length:
            raise TransferError(f"The connection ended after {have} of {file.length} bytes of {file.name}.", code="link_lost")

    def _range(self, file: OfferedFile, have: int) -> dict[str, str]:
        if not have:
            return {}
        etag = self._load_etag(file)
        return {"Range": f"bytes={have}-"} | ({"If-Range": etag} if etag else {})

    def _check_status(self, response: "httpx.Response") -> None:
        status = response.status_code
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise TransferError(f"{response.url} is encoded as {response.headers['Content-Encoding']!r}; wanted the plain bytes.")
        if status in (_OK, _PARTIAL_CONTENT):
            return
        if status == _TOO_MANY_REQUESTS or status >= _SERVER_ERRORS:
            raise UnavailableError(f"{response.url} answered {status}.", retry_after_s=self._retry_after(response))
        raise TransferError(f"{response.url} answered {status}; wanted the file.", code=f"http-{status}")

    def _retry_after(self, response: "httpx.Response") -> float | None:
        return retry_after_s(response.headers.get("Retry-After", ""), clock=self._clock)

    def _etag_path(self, file: OfferedFile) -> Path:
        return self._folder / f"{_hex(file.sha256)}.etag"

    def _save_etag(self, file: OfferedFile, response: "httpx.Response") -> None:
        etag = response.headers.get("ETag", "")
        if etag.startswith('"') and len(etag) <= _ETAG_LIMIT and etag != self._load_etag(file):
            replace_file(self._disk, self._etag_path(file), etag.encode())

    def _load_etag(self, file: OfferedFile) -> str:
        path = self._etag_path(file)
        if not 0 < self._disk.sizes(self._folder).get(path.name, 0) <= _ETAG_LIMIT:
            return ""
        text = b"".join(self._disk.read_chunks(path)).decode("ascii", errors="replace")
        return text if re.fullmatch(r'"[\x21\x23-\x7e]*"', text) else ""


def retry_after_s(text: str, *, clock: Clock) -> float | None:
    """Seconds that the header Retry-After asks for: a number, or a moment; None when it says neither."""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - clock.now()).total_seconds())
    except (ValueError, TypeError):
        return None


@contextmanager
def _translated(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise TransferError(f"{url} gave no answer in time ({type(error).__name__}).", code="timeout") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise TransferError(f"{url} cannot be reached: {error or type(error).__name__}.", code="link_lost") from error


def _range_start(response: "httpx.Response") -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _hex(digest: Digest) -> str:
    return digest.removeprefix("sha256:")


def open_tuf_fetcher(
    client: "httpx.Client", *, min_bytes_per_s: float = MIN_BYTES_PER_S, monotonic: Callable[[], float] = time.monotonic
) -> "FetcherInterface":
    """python-tuf's interface over the client: bounded by its caller's lengths and our rate; raises DownloadError and its kin only."""
    from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
    from tuf.ngclient.fetcher import FetcherInterface

    class HttpxFetcher(FetcherInterface):
        def _fetch(self, url: str) -> Iterator[bytes]:
            meter = RateMeter(min_bytes_per_s=min_bytes_per_s, now=monotonic)
            try:
                with _translated(url), client.stream("GET", url) as response:
                    if response.status_code != _OK:
                        raise DownloadHTTPError(f"{url} answered {response.status_code}", response.status_code)
                    for chunk in response.iter_raw():
                        meter.add(len(chunk))
                        yield chunk
            except MooringError as error:
                kind = SlowRetrievalError if error.code == "slow-retrieval" else DownloadError
                raise kind(str(error)) from error

    return HttpxFetcher()


def open_reading_fetcher(read: Callable[[str], bytes], base_url: str) -> "FetcherInterface":
    """python-tuf's interface over a function that reads a file by name: bounded by the function; raises DownloadError and its kin only."""
    from tuf.api.exceptions import DownloadError, DownloadHTTPError
    from tuf.ngclient.fetcher import FetcherInterface

    class ReadingFetcher(FetcherInterface):
        def _fetch(self, url: str) -> Iterator[bytes]:
            try:
                return iter([read(url.removeprefix(base_url))])
            except NotFoundError as error:
                raise DownloadHTTPError(str(error), 404) from error
            except MooringError as error:
                raise DownloadError(str(error)) from error

    return ReadingFetcher()
