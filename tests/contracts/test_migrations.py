"""The migrations and the tables that the stores declare are the same schema, on both databases."""

import importlib
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from simulators.clock import START

import fleet
from fleet import db
from fleet.registry import store

ROOT = Path(fleet.__file__).parent


def _import_all_stores():
    """Every module that may declare tables: the architecture test allows no other."""
    for path in [*sorted(ROOT.rglob("*store.py")), ROOT / "audit.py", ROOT / "jobs.py"]:
        importlib.import_module(".".join(("fleet", *path.relative_to(ROOT).with_suffix("").parts)))


def test_the_migrated_schema_is_what_the_stores_declare(database):
    _import_all_stores()
    with database.reading() as tx:
        context = MigrationContext.configure(tx, opts={"compare_type": True, "compare_server_default": False})
        assert compare_metadata(context, db.metadata) == []


def test_every_table_has_the_tenant_first_in_its_key():
    _import_all_stores()
    keys = {table.name: [column.name for column in table.primary_key][:1] for table in db.metadata.sorted_tables}
    assert {name for name, first in keys.items() if first != ["tenant"]} == set()


def test_migrating_twice_changes_nothing(database):
    with database.reading() as tx:
        before = sa.inspect(tx).get_table_names()
    db.migrate(database)
    with database.reading() as tx:
        assert sa.inspect(tx).get_table_names() == before


def test_a_database_of_the_first_schema_is_brought_up_with_its_rows(unmigrated_database):
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    row = {"tenant": "t0", "device": "cam-1", "version": 7, "targets": b"t", "snapshot": b"s", "timestamp": b"x", "etag": "e"}
    row |= {"order_digest": "o", "signed_at": START, "renew_at": START, "is_stale": False}
    with unmigrated_database.transaction() as tx:
        config.attributes["connection"] = tx
        command.upgrade(config, "0001")
        assert "earlier_director_metadata" not in sa.inspect(tx).get_table_names()
        tx.execute(sa.insert(store.director_metadata).values(**row))
    db.migrate(unmigrated_database)
    with unmigrated_database.reading() as tx:
        assert [dict(found) for found in tx.execute(sa.select(store.director_metadata)).mappings()] == [row]
        assert list(tx.execute(sa.select(store.earlier_director_metadata))) == []
