"""The tables of the agent's one SQLite file, by numbered migrations, forward only. Only this file imports `sqlite_utils`."""

import sqlite3
from typing import Any


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables up to date."""
    import sqlite_utils

    migrations = sqlite_utils.Migrations("mooring-agent")
    for migration in MIGRATIONS:
        migrations()(migration)
    migrations.apply(sqlite_utils.Database(connection))


def m0001_outbox_journal_twin(db: Any) -> None:
    """The outbox, what updates remember, and named values."""
    # AUTOINCREMENT: an id is never given again, so that a late answer to a row that is gone cannot touch another
    db.execute(
        "CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, epoch TEXT NOT NULL, stream TEXT NOT NULL, levels TEXT NOT NULL, "
        "seq INTEGER NOT NULL, class TEXT NOT NULL, priority INTEGER NOT NULL, published INTEGER NOT NULL, size INTEGER NOT NULL, "
        "body TEXT NOT NULL)"
    )
    db["outbox"].create_index(["epoch", "stream", "seq"], unique=True)
    db["outbox"].create_index(["published", "priority", "id"])
    db["outbox"].create_index(["stream", "id"])
    db["streams"].create({"epoch": str, "stream": str, "next_seq": int}, pk=("epoch", "stream"))
    db["dropped"].create({"class": str, "rows": int}, pk="class")
    db["named"].create({"name": str, "value": str}, pk="name", not_null={"value"})
    db["updates"].create(
        {
            "update_id": str,
            "line": str,
            "release": str,
            "counter": int,
            "assignment": str,
            "attempt": int,
            "state": str,
            "saves": int,
            "old_slot": str,
            "reason": str,
            "text": str,
            "context_json": str,
            "at": int,
        },
        pk="line",
    )
    db["steps"].create(
        {"id": int, "update_id": str, "line": str, "release": str, "state": str, "at": int, "reason": str, "text": str}, pk="id"
    )
    db["steps"].create_index(["line", "id"])
    db["blocked"].create(
        {"line": str, "release": str, "attempt": int, "reason": str, "text": str, "at": int, "digests": str}, pk=("line", "release")
    )


def m0002_drift(db: Any) -> None:
    """Sketches in the outbox, and what drift remembers."""
    # of sketches: whether it was ever handed to the uplink, and "src/rev", by which the server acknowledges
    db.execute("ALTER TABLE outbox ADD COLUMN handed INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE outbox ADD COLUMN key TEXT NOT NULL DEFAULT ''")
    db["drift_revs"].create({"pipeline": str, "window": str, "src": int, "next": int, "at": int}, pk=("pipeline", "window", "src"))
    db["drift_grids"].create({"grid": str, "body": bytes, "at": int}, pk="grid")
    # one sub-window of one model version; `sent`: id of the window that it went out with
    db.execute(
        "CREATE TABLE drift_windows (pipeline TEXT NOT NULL, model TEXT NOT NULL, grid TEXT NOT NULL, src INTEGER NOT NULL, "
        "w0 INTEGER NOT NULL, rows INTEGER NOT NULL, excluded INTEGER NOT NULL, flags INTEGER NOT NULL, score REAL, "
        "sent TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (pipeline, model, grid, src, w0))"
    )
    db.execute("CREATE INDEX drift_windows_by_time ON drift_windows (w0)")
    # what the device check remembers of one model version; `reference`: what it compares with
    db.execute(
        "CREATE TABLE drift_checks (pipeline TEXT NOT NULL, model TEXT NOT NULL, grid TEXT NOT NULL, src INTEGER NOT NULL, "
        "state TEXT NOT NULL, reference BLOB, at INTEGER NOT NULL, PRIMARY KEY (pipeline, model, grid, src)) WITHOUT ROWID"
    )


def m0003_states_of_checks(db: Any) -> None:
    """The states of checks, apart from their references."""
    # newer than `drift_checks.state`: it changes every ten minutes, and a row is written with all that it holds; an agent of before,
    # which does not know this table, goes on from the state that its reference was kept with
    db.execute(
        "CREATE TABLE drift_states (pipeline TEXT NOT NULL, model TEXT NOT NULL, grid TEXT NOT NULL, src INTEGER NOT NULL, "
        "state TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (pipeline, model, grid, src)) WITHOUT ROWID"
    )


def m0004_fewer_pages_per_row(db: Any) -> None:
    """An index less on the outbox: it was read where room is made, and written with every row that came and went."""
    db.execute("DROP INDEX IF EXISTS idx_outbox_stream_id")


#: In order. The file remembers those applied by the names of these functions; `agent.database.file.SCHEMA_VERSION` counts them.
MIGRATIONS = (m0001_outbox_journal_twin, m0002_drift, m0003_states_of_checks, m0004_fewer_pages_per_row)
