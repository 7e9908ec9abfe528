"""The migrations and the tables that the stores declare are the same schema, on both databases."""

import importlib
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import fleet
from fleet import db

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
