"""The databases that store tests run on: an empty SQLite file and an empty PostgreSQL database, one of each per test.

A conftest.py takes them over with `from databases import database, database_templates`. A test that asks for `database` runs twice.
On PostgreSQL one database is emptied before each test: making one takes half a second, emptying it three milliseconds.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator

import psycopg
import pytest
import sqlalchemy as sa

from fleet.db import Database, migrate

#: Deletes what is there, in any order, past all foreign keys; leaves the schema and its version.
_EMPTY = """
DO $$ DECLARE found record; has_rows boolean; BEGIN
  SET LOCAL session_replication_role = replica;
  FOR found IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I)', found.tablename) INTO has_rows;
    IF has_rows THEN EXECUTE format('DELETE FROM %I', found.tablename); END IF;
  END LOOP;
END $$
"""
_DROP = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
_ALONE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture(scope="session")
def database_templates(request, tmp_path_factory) -> Callable[[str], str]:
    """Gives, made on first use: "sqlite" the path of a migrated file to copy; "postgres" and "scratch" the URL of a database to empty."""
    made: dict[str, str] = {}

    def template(kind: str) -> str:
        if kind not in made:
            if kind == "sqlite":
                made[kind] = str(tmp_path_factory.mktemp("template") / "template.db")
            else:
                made[kind] = _create_postgres(request.getfixturevalue("postgres_url"))
            if kind != "scratch":
                _migrate(f"sqlite:///{made[kind]}" if kind == "sqlite" else made[kind])
        return made[kind]

    return template


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, database_templates, tmp_path) -> Iterator[Database]:
    """An empty, migrated database of the test's own."""
    if request.param == "sqlite":
        path = tmp_path / "fleet.db"
        shutil.copy(database_templates("sqlite"), path)
        url = f"sqlite:///{path}"
    else:
        url = database_templates("postgres")
        _execute(url, _ALONE, _EMPTY)
    opened = Database(url)
    yield opened
    opened.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def unmigrated_database(request, database_templates, tmp_path) -> Iterator[Database]:
    """A database of the test's own without any table."""
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    if request.param == "postgres":
        url = database_templates("scratch")
        _execute(url, _ALONE, _DROP)
    opened = Database(url)
    yield opened
    opened.dispose()


def _migrate(url: str) -> None:
    made = Database(url)
    migrate(made)
    made.dispose()


def _create_postgres(server_url: str) -> str:
    name = f"t{secrets.token_hex(6)}"
    _execute(server_url, f'CREATE DATABASE "{name}"')
    return sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _execute(url: str, *statements: str) -> None:
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
