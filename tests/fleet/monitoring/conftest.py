"""A database with the tables of what devices say, and messages to put into it."""

import pytest

from fleet.db import Database, metadata
from fleet.monitoring import store


@pytest.fixture
def monitored(unmigrated_database: Database) -> Database:
    """Both databases, with these tables alone."""
    tables = [table for table in metadata.sorted_tables if table.name in vars(store)]
    with unmigrated_database.transaction() as tx:
        metadata.create_all(tx, tables)
    return unmigrated_database
