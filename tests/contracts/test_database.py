"""What both databases promise: transactions, types, helpers, the schema."""

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from waiting import wait_until

from fleet import db
from protocol.errors import ConfigError, StaleRevisionError, UnavailableError

_tables = sa.MetaData()
things = sa.Table(
    "things",
    _tables,
    db.tenant_column(),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("at", db.utc),
    sa.Column("document", db.json_type),
    db.revision_column(),
)
counted = sa.Table("counted", _tables, sa.Column("id", db.serial, primary_key=True), sa.Column("name", sa.String(20)))


@pytest.fixture
def store(unmigrated_database):
    with unmigrated_database.transaction() as tx:
        _tables.create_all(tx)
    return unmigrated_database


def _names(store):
    with store.reading() as tx:
        return list(tx.scalars(sa.select(things.c.name).order_by(things.c.name)))


def test_a_transaction_that_ends_is_kept(store):
    with store.transaction() as tx:
        tx.execute(sa.insert(things), {"tenant": "t0", "name": "a"})
    assert _names(store) == ["a"]


def test_a_transaction_that_raises_leaves_nothing(store):
    def fail():
        with store.transaction() as tx:
            tx.execute(sa.insert(things), {"tenant": "t0", "name": "a"})
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert _names(store) == []


def test_a_second_transaction_in_the_same_thread_is_a_mistake(store):
    with store.transaction(), pytest.raises(RuntimeError, match="pass its connection on"), store.transaction():
        pass
    with store.transaction():
        pass  # the first one's end leaves the thread free


def test_a_reader_sees_one_moment_and_does_not_wait_for_a_writer(store):
    seen, written = [], threading.Event()

    def write():
        with store.transaction() as tx:
            tx.execute(sa.insert(things), {"tenant": "t0", "name": "b"})
        written.set()

    with store.reading() as tx:
        seen.append(tx.scalar(sa.select(sa.func.count()).select_from(things)))
        writer = threading.Thread(target=write)
        writer.start()
        assert written.wait(120)
        seen.append(tx.scalar(sa.select(sa.func.count()).select_from(things)))
        writer.join()
    assert seen == [0, 0]
    assert _names(store) == ["b"]


def test_writers_in_many_threads_lose_no_update(store):
    with store.transaction() as tx:
        tx.execute(sa.insert(things), {"tenant": "t0", "name": "sum"})

    def add():
        for _ in range(20):
            with store.transaction() as tx:
                db.lock(tx, "sum")
                value = tx.scalar(sa.select(things.c.count))
                tx.execute(sa.update(things).values(count=value + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading() as tx:
        assert tx.scalar(sa.select(things.c.count)) == 80


def test_a_name_that_is_shared_is_not_held_alone_before_the_last_one_let_it_go(store):
    order: list[str] = []

    def hold_alone():
        with store.transaction() as tx:
            db.lock(tx, "authority")
            order.append("alone")

    thread = threading.Thread(target=hold_alone)
    with store.transaction() as tx:
        db.share(tx, "authority")
        thread.start()
        if store.dialect == "postgresql":  # on SQLite a writing transaction is alone anyway
            waits = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            wait_until(lambda: tx.scalar(waits), what="the one that wants it alone to wait")
        order.append("shared")
    thread.join()
    assert order == ["shared", "alone"]


def test_moments_come_back_aware_in_utc_with_their_microseconds(store):
    moment = datetime(2026, 3, 1, 14, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5)))
    with store.transaction() as tx:
        tx.execute(sa.insert(things), {"tenant": "t0", "name": "a", "at": moment})
    with store.reading() as tx:
        found = tx.scalar(sa.select(things.c.at).where(things.c.at >= moment))
    assert found == moment
    assert found.tzinfo is UTC


def test_a_naive_moment_is_refused(store):
    with pytest.raises(sa.exc.StatementError, match="no time zone"), store.transaction() as tx:
        tx.execute(sa.insert(things), {"tenant": "t0", "name": "a", "at": datetime(2026, 3, 1)})  # noqa: DTZ001 - the point


def test_documents_come_back_equal(store):
    document = {"ünï": [1, 2.5, None, True], "nested": {"a": {}}}
    with store.transaction() as tx:
        tx.execute(sa.insert(things), {"tenant": "t0", "name": "a", "document": document})
    with store.reading() as tx:
        assert tx.scalar(sa.select(things.c.document)) == document


def test_insert_ignore_tells_how_many_were_new(store):
    with store.transaction() as tx:
        assert db.insert_ignore(tx, things, {"tenant": "t0", "name": "a"}) == 1
        assert db.insert_ignore(tx, things, {"tenant": "t0", "name": "a"}) == 0
        assert db.insert_ignore(tx, things, [{"tenant": "t0", "name": f"n{n}"} for n in range(40)] + [{"tenant": "t0", "name": "a"}]) == 40
        assert db.insert_ignore(tx, things, []) == 0


def test_many_rows_at_once_become_what_single_rows_become(store):
    at = datetime(2026, 3, 1, 13, 0, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    rows = [{"tenant": "t0", "name": f"n{n:02}", "at": at, "document": {"n": [n, None, "ü"]}} for n in range(40)]
    with store.transaction() as tx:
        assert sum(db.insert_ignore(tx, things, row) for row in rows[:2]) == 2
        assert db.insert_ignore(tx, things, rows) == 38
        found = tx.execute(sa.select(things).order_by(things.c.name)).mappings().all()
    assert [{**row, "count": 0, "revision": 1} for row in rows] == [dict(row) for row in found]


def test_upsert_replaces_what_it_names_and_keeps_the_rest(store):
    with store.transaction() as tx:
        db.upsert(tx, things, {"tenant": "t0", "name": "a", "count": 1, "document": {"keep": 1}})
        db.upsert(tx, things, [{"tenant": "t0", "name": "a", "count": 2}, {"tenant": "t0", "name": "b", "count": 3}])
        rows = tx.execute(sa.select(things.c.name, things.c.count, things.c.document).order_by(things.c.name)).all()
    assert rows == [("a", 2, {"keep": 1}), ("b", 3, None)]


def test_a_conditional_upsert_keeps_the_newer_row(store):
    with store.transaction() as tx:
        db.upsert(tx, things, {"tenant": "t0", "name": "a", "count": 5})
        is_written = db.upsert(tx, things, {"tenant": "t0", "name": "a", "count": 4}, where=lambda new: new.count > things.c.count)
        assert is_written == 0
        assert tx.scalar(sa.select(things.c.count)) == 5


def test_counted_keys_grow(store):
    with store.transaction() as tx:
        first, second = (db.insert_returning(tx, counted, {"name": name}, "id") for name in ("a", "b"))
    assert second > first


def test_an_exclusive_role_has_one_holder_at_a_time(store):
    with store.try_exclusive("controller") as first, store.try_exclusive("controller") as second, store.try_exclusive("other") as other:
        assert (first, second, other) == (True, False, True)
    with store.try_exclusive("controller") as again:
        assert again


def test_migrate_is_safe_to_start_from_several_threads(unmigrated_database):
    heads, errors = [], []

    def run():
        try:
            heads.append(db.migrate(unmigrated_database))
        except Exception as error:  # noqa: BLE001 - told to the test below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(heads)) == 1


def test_a_schema_from_the_future_is_refused(unmigrated_database):
    db.migrate(unmigrated_database)
    with unmigrated_database.transaction() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="9999"):
        db.migrate(unmigrated_database)


def test_a_database_that_is_away_says_so():
    gone = db.Database("postgresql://mooring@127.0.0.1:1/none")
    with pytest.raises(UnavailableError), gone.transaction():
        pass


@pytest.mark.parametrize("url", ["mysql://root@host/db", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_a_url_of_no_supported_database_is_refused(url):
    with pytest.raises(ConfigError, match="database_url"):
        db.Database(url)


def test_a_password_is_not_in_the_shown_url():
    assert "geheim" not in db.Database("postgresql://u:geheim@h/n").url


def test_a_change_against_an_old_revision_is_refused():
    db.check_revision(3, 3, what="Group a")
    db.check_revision(3, None, what="Group a")
    with pytest.raises(StaleRevisionError, match=r"revision 3.*revision 2"):
        db.check_revision(3, 2, what="Group a")


@pytest.mark.parametrize("unmigrated_database", ["postgres"], indirect=True)
def test_a_connection_that_breaks_in_a_transaction_says_so_and_the_next_one_works(store):
    def break_off():
        with store.transaction() as tx:
            tx.execute(sa.insert(things), {"tenant": "t0", "name": "a"})
            own = tx.scalar(sa.text("SELECT pg_backend_pid()"))
            with store.engine.connect() as other:
                other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
            tx.execute(sa.insert(things), {"tenant": "t0", "name": "b"})

    with pytest.raises(UnavailableError, match="database"):
        break_off()
    assert _names(store) == []


def test_a_database_that_stays_locked_says_so(tmp_path):
    path = tmp_path / "fleet.db"
    first, second = (db.Database(f"sqlite:///{path}", busy_timeout_s=0.0) for _ in range(2))
    with first.transaction() as tx:
        _tables.create_all(tx)
        with pytest.raises(UnavailableError, match="locked"), second.transaction():
            pass
    first.dispose()
    second.dispose()


def test_writers_with_engines_of_their_own_as_processes_have_lose_no_update(store):
    with store.transaction() as tx:
        tx.execute(sa.insert(things), {"tenant": "t0", "name": "sum"})

    def add():
        own = db.Database(store.engine.url.render_as_string(hide_password=False))
        for _ in range(10):
            with own.transaction() as tx:
                db.lock(tx, "sum")
                tx.execute(sa.update(things).values(count=tx.scalar(sa.select(things.c.count)) + 1))
        own.dispose()

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading() as tx:
        assert tx.scalar(sa.select(things.c.count)) == 30
