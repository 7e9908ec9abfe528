"""The database: engine, transactions, column types and every difference between SQLite and PostgreSQL.

One writer transaction at a time per SQLite file (`BEGIN IMMEDIATE`), so no read-then-write races and no upgrade deadlocks there; on
PostgreSQL the same code relies on `lock` where it reads before it writes. Domains declare their tables on `metadata` in their store.py.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import TypeDecorator

from protocol.errors import ConfigError, StaleRevisionError, UnavailableError

__all__ = [
    "Connection",
    "Database",
    "check_revision",
    "clock",
    "insert_ignore",
    "json_type",
    "lock",
    "metadata",
    "migrate",
    "revision_column",
    "serial",
    "share",
    "tenant_column",
    "try_lock",
    "upsert",
    "utc",
]

#: How long a writer waits for another process's transaction on the same SQLite file, or anybody for one of this process's connections
#: to PostgreSQL, before it gives up, seconds.
BUSY_TIMEOUT_S = 30.0
#: A database whose machine or network went without a word: noticed after a minute, not after the two hours of the system's default
#: (postgresql.org/docs/current/libpq-connect.html). Seconds; the last one milliseconds, of data that nobody acknowledges.
_PEER_IS_GONE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
#: Bind parameters of one statement stay below SQLite's limit of 32,766.
MAX_PARAMETERS = 30_000

#: Every table of the server; names of constraints are fixed so that migrations can address them on both databases.
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment, given and returned in UTC; microseconds. A naive one is refused."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise RuntimeError(f"{value!r} has no time zone; the database takes aware moments only.")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


#: From so many rows on, SQLite gets them as plain tuples.
_BULK_ROWS = 20
#: Column type of a moment.
utc = UtcDateTime()
#: Column type of a JSON document. Nothing that is hashed or signed goes here: the database may reorder its keys.
json_type = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
#: Column type of an integer key that the database counts up; 64 bits on both.
serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def tenant_column() -> sa.Column[str]:
    """First column of every table's primary key: who owns the row."""
    return sa.Column("tenant", sa.String(63), primary_key=True)


def revision_column() -> sa.Column[int]:
    """Counts the changes of an editable row, from 1; served as its ETag."""
    return sa.Column("revision", sa.Integer, nullable=False, server_default="1")


def check_revision(current: int, expected: int | None, *, what: str) -> None:
    """Nothing when the caller saw the current revision, or named none. Raises: StaleRevisionError naming both."""
    if expected is not None and expected != current:
        raise StaleRevisionError(
            f"{what} is at revision {current}; your change was made against revision {expected}.",
            hint="Read it again and repeat the change.",
        )


class Database:
    """One database, SQLite or PostgreSQL, shared by all threads of a process."""

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        """Raises: ConfigError when the URL names no database that is supported; nothing is connected yet."""
        parsed = _parse(url)
        self.url = parsed.render_as_string(hide_password=True)
        self.dialect: Literal["sqlite", "postgresql"] = "sqlite" if parsed.get_backend_name() == "sqlite" else "postgresql"
        self._path = Path(parsed.database).absolute() if self.dialect == "sqlite" and parsed.database else None
        self.engine = _sqlite_engine(parsed, busy_timeout_s) if self.dialect == "sqlite" else _postgres_engine(parsed, busy_timeout_s)
        self._writer = threading.Lock() if self.dialect == "sqlite" else contextlib.nullcontext()
        self._open = threading.local()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that may write: committed when the block ends, rolled back when it raises.

        Raises: UnavailableError when the database is unreachable or stays locked; RuntimeError when this thread has one open.
        """
        with self._writer if not self._is_open() else contextlib.nullcontext(), self._begin(is_reader=False) as tx:
            yield tx

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads: one consistent snapshot that never waits for a writer. Raises: as `transaction`."""
        with self._begin(is_reader=True) as tx:
            yield tx

    @contextlib.contextmanager
    def try_exclusive(self, name: str) -> Iterator[bool]:
        """Whether this holder alone, over all processes of this database, has the named role until the block ends or its process dies."""
        holder = self._file_lock(name) if self.dialect == "sqlite" else self._session_lock(name)
        with holder as is_held:
            yield is_held

    def dispose(self) -> None:
        """Close all idle connections."""
        self.engine.dispose()

    def _is_open(self) -> bool:
        return bool(getattr(self._open, "depth", 0))

    @contextlib.contextmanager
    def _begin(self, *, is_reader: bool) -> Iterator[Connection]:
        if self._is_open():
            raise RuntimeError("This thread has a transaction open; pass its connection on.")
        self._open.depth = 1
        try:
            with _errors_translated(), self.engine.connect() as connection:
                tx = connection.execution_options(mooring_reader=is_reader)
                if is_reader and self.dialect == "postgresql":
                    tx = tx.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                with tx.begin():
                    yield tx
        finally:
            self._open.depth = 0

    @contextlib.contextmanager
    def _session_lock(self, name: str) -> Iterator[bool]:
        with _errors_translated(), self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            key = _lock_key(name)
            is_held = bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))))
            try:
                yield is_held
            finally:
                if is_held and not connection.invalidated:
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))

    @contextlib.contextmanager
    def _file_lock(self, name: str) -> Iterator[bool]:
        if self._path is None:
            raise RuntimeError("A database without a file has no exclusive roles.")
        path = self._path.with_name(f"{self._path.name}.{name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = True
            except BlockingIOError:
                is_held = False
            yield is_held
        finally:
            os.close(descriptor)


def lock(tx: Connection, name: str) -> None:
    """Wait until this transaction alone holds the name; freed by its end. On SQLite a writing transaction is already alone."""
    if tx.dialect.name == "postgresql":
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock(_lock_key(name))))


def try_lock(tx: Connection, name: str) -> bool:
    """As `lock`, but no waiting: False when another transaction holds the name. Who takes several in no order must not wait for any."""
    if tx.dialect.name != "postgresql":
        return True
    return bool(tx.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_lock_key(name)))))


def clock(tx: Connection) -> datetime:
    """System time as all processes see it: the database server's, or this machine's, on which an SQLite file lies."""
    return tx.execute(sa.select(sa.func.clock_timestamp())).scalar_one() if tx.dialect.name == "postgresql" else datetime.now(UTC)


def share(tx: Connection, name: str) -> None:
    """Wait until no transaction holds the name by `lock`, and keep it from being so held until this one ends; many may share it at once."""
    if tx.dialect.name == "postgresql":
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_lock_key(name))))


def insert_ignore(tx: Connection, table: sa.Table, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> int:
    """Insert rows, leaving out those whose key is already there; returns how many were new."""
    many = [rows] if isinstance(rows, Mapping) else list(rows)
    if not many:
        return 0
    if len(many) >= _BULK_ROWS and tx.dialect.name == "sqlite" and _names_all_defaults(table, many[0]):
        return _insert_bulk(tx, table, many)
    return _count(tx, _insert(tx, table).on_conflict_do_nothing(), many)


def upsert(
    tx: Connection,
    table: sa.Table,
    rows: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    keys: Sequence[str] = (),
    where: Callable[[ReadOnlyColumnCollection[str, Any]], ColumnElement[bool]] | None = None,
) -> int:
    """Insert rows, or give those already there (same `keys`, default: the primary key) the other values named; returns rows written.

    `where` gets the new row's columns and says whether it replaces the old one, e.g. `lambda new: new.seq > table.c.seq`.
    """
    many = [rows] if isinstance(rows, Mapping) else list(rows)
    if not many:
        return 0
    index = list(keys) or [column.name for column in table.primary_key]
    insert = _insert(tx, table)
    changed = {name: insert.excluded[name] for name in many[0] if name not in index}
    statement = insert.on_conflict_do_update(index_elements=index, set_=changed, where=where(insert.excluded) if where else None)
    return _count(tx, statement, many)


def insert_returning(tx: Connection, table: sa.Table, values: Mapping[str, Any], column: str) -> Any:
    """Insert one row; returns the value of one of its columns, such as a counted key."""
    statement: ReturningInsert[Any] = sa.insert(table).values(**values).returning(table.c[column])
    return tx.execute(statement).scalar_one()


def migrate(database: Database) -> str:
    """Bring the schema to the newest revision, alone, also when several processes start at once; returns that revision.

    Raises: UnavailableError; ConfigError when the database is newer than this program.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    head = str(script.get_current_head())
    known = {revision.revision for revision in script.walk_revisions()}
    with database.transaction() as tx:
        lock(tx, "migrate")
        current = MigrationContext.configure(tx).get_current_revision()
        if current is not None and current not in known:
            raise ConfigError(
                f"The database is at schema {current}; this program knows up to {head}.", hint="Start the newer program that wrote it."
            )
        if current != head:
            config.attributes["connection"] = tx
            command.upgrade(config, "head")
    return head


def _names_all_defaults(table: sa.Table, row: Mapping[str, Any]) -> bool:
    return all(column.name in row or column.default is None for column in table.columns)


def _insert_bulk(tx: Connection, table: sa.Table, rows: list[Mapping[str, Any]]) -> int:
    """As `insert_ignore` on SQLite, without a dictionary of parameters per row: a third less CPU for a batch of ingest."""
    quote = tx.dialect.identifier_preparer.quote
    names, columns = list(rows[0]), []
    for name in names:
        values = [row[name] for row in rows]
        convert = table.c[name].type.dialect_impl(tx.dialect).bind_processor(tx.dialect)
        columns.append(values if convert is None else [convert(value) for value in values])
    marks = ", ".join("?" * len(names))
    target = f"{quote(table.name)} ({', '.join(map(quote, names))})"
    sql = f"INSERT INTO {target} VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608 - names of our own tables, quoted
    return tx.exec_driver_sql(sql, list(zip(*columns, strict=True)), execution_options={"preserve_rowcount": True}).rowcount


def _insert(tx: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    return sqlite.insert(table) if tx.dialect.name == "sqlite" else postgresql.insert(table)


def _count(tx: Connection, statement: sqlite.Insert | postgresql.Insert, rows: list[Mapping[str, Any]]) -> int:
    options = {"preserve_rowcount": True}
    return sum(tx.execute(statement, part, execution_options=options).rowcount for part in _portions(rows))


def _portions(rows: list[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    size = max(1, MAX_PARAMETERS // max(1, len(rows[0])))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise ConfigError(
            f"database_url {url.rsplit('@', maxsplit=1)[-1]!r} is not supported.",
            hint="Wanted: sqlite:////path/fleet.db or postgresql://user:password@host/name.",
        )
    if parsed.get_backend_name() == "sqlite" and (not parsed.database or parsed.database == ":memory:"):
        raise ConfigError("database_url names no file.", hint="Wanted: sqlite:////path/fleet.db; several connections share it.")
    return parsed.set(drivername="postgresql+psycopg") if parsed.get_backend_name() == "postgresql" else parsed


def _sqlite_engine(url: sa.URL, busy_timeout_s: float) -> Engine:
    engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s}, pool_size=16, max_overflow=48)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY", "cache_size=-4096"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _start(connection: Connection) -> None:
        is_reader = connection.get_execution_options().get("mooring_reader", False)
        connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

    return engine


def _postgres_engine(url: sa.URL, busy_timeout_s: float) -> Engine:
    return sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_size=16,
        max_overflow=16,
        pool_timeout=busy_timeout_s,
        connect_args={"options": "-c timezone=UTC", "connect_timeout": 10, **_PEER_IS_GONE},
    )


@contextlib.contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise UnavailableError("All connections to the database are in use.", retry_after_s=1.0) from error
    except OperationalError as error:
        raise UnavailableError(f"The database does not answer: {error.orig}", retry_after_s=1.0) from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise UnavailableError(f"The connection to the database broke: {error.orig}", retry_after_s=1.0) from error
