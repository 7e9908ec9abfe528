"""Fixtures of the contract tests."""

from databases import database, database_templates, unmigrated_database

__all__ = ["database", "database_templates", "unmigrated_database"]
