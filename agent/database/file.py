"""The agent's one SQLite file: opened and checked, built or migrated, replaced when it is unreadable; its transactions, and its trouble."""

import errno
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.children import child_environment
from protocol.errors import DeviceError

#: Migrations there are (`agent/database/schema.py`); `PRAGMA user_version` counts those applied, so that a file that is up to date
#: loads neither them nor their library.
SCHEMA_VERSION = 4
_BUSY_TIMEOUT_S = 10.0
_SQLITE_FULL = 13
#: The first bytes of an SQLite file, and where among them PRAGMA user_version lies (fileformat2.html, 1.3).
_HEADER_BYTES, _USER_VERSION = 100, slice(60, 64)
_PREPARE_TIMEOUT_S = 60.0
#: Twice what the write-ahead log comes to between two checkpoints of 1000 pages. One that is cut back has to grow again, and a commit that
#: makes a file longer costs the file system's own journal as many blocks as the rows take; one that keeps its length is written over.
_WAL_BYTES = 8 << 20


class Database:
    """One connection for all threads: `transaction` and `reading` hold the lock."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises: DeviceError when there is no room or no permission for it."""
        self._path, self.lock = path, threading.RLock()
        #: What kept the last write from the disk; None: it went well.
        self.trouble: DeviceError | None = None
        #: Where an unreadable predecessor of the file was moved to, or None.
        self.moved_aside: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = self._open_or_replace()
        except (OSError, sqlite3.Error) as error:
            raise device_error(error, path) from None

    def close(self) -> None:
        """Write everything into the main file and let go of it; idempotent."""
        with self.lock:
            self.connection.close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """One write transaction; `durable`: synced to the disk before it is over. What loses nothing when undone need not be.

        Raises: DeviceError of the file, which stays as `trouble` until a transaction goes well.
        """
        with self.lock:
            try:
                self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self.connection.execute("BEGIN IMMEDIATE")
                yield
                self.connection.execute("COMMIT")
                self.trouble = None
            except BaseException as error:
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self.trouble = device_error(error, self._path)
                    raise self.trouble from None
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The lock, for statements that change nothing. Raises: DeviceError of the file, which stays as `trouble`."""
        with self.lock:
            try:
                yield
            except sqlite3.Error as error:
                self.trouble = device_error(error, self._path)
                raise self.trouble from None

    def _open_or_replace(self) -> sqlite3.Connection:
        try:
            return _open(self._path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full, no permission: not a reason to throw a file away
                raise
            self.moved_aside = _move_aside(self._path)
            return _open(self._path)


def prepare_in_child(path: Path) -> None:
    """Build or migrate the file's schema in a short-lived child, so that the library for it never enters this process.

    What the child cannot do is left for `Store` to do, or to report.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        header = b""
    except OSError:
        return
    if int.from_bytes(header[_USER_VERSION], "big") < SCHEMA_VERSION and (not header or header.startswith(b"SQLite format 3\0")):
        code = "import sys; from pathlib import Path; from agent.database.file import prepare; prepare(Path(sys.argv[1]))"
        with suppress(OSError, subprocess.SubprocessError):
            command = [sys.executable, "-c", code, str(path)]
            subprocess.run(command, check=False, timeout=_PREPARE_TIMEOUT_S, stderr=subprocess.DEVNULL, env=child_environment())


def prepare(path: Path) -> None:
    """Build or migrate the file. Raises: OSError, sqlite3.Error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _open(path).close()


@contextmanager
def looking_at(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that no agent has open now, which it does not change. Raises: DeviceError when it cannot be read."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
        try:
            yield connection
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise device_error(error, path) from None


def device_error(error: Exception, path: Path) -> DeviceError:
    """What kept the file from being used, in words, with code "disk-full" or "store-failed"."""
    is_full = getattr(error, "sqlite_errorcode", None) == _SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC
    if is_full:
        return DeviceError(f"No room on the disk of {path}.", code="disk-full", hint="Free space there; what is stored is kept.")
    return DeviceError(f"{path} cannot be used: {error}.", code="store-failed", hint="Check the disk and who owns the folder.")


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")
        _check_pages(connection)
        if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    from agent.database.schema import migrate

    migrate(connection)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check_pages(connection: sqlite3.Connection) -> None:
    complaint = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if complaint != "ok":
        raise sqlite3.DatabaseError(complaint)


def _move_aside(path: Path) -> Path:
    """Keep the latest unreadable file for a look at it; SQLite's side files belong to it and go with it."""
    aside = path.with_name(f"{path.name}.corrupt")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(path.with_name(f"{aside.name}{suffix}"))
    return aside
