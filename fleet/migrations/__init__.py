"""The schema's history: numbered, written by hand, forward only. `fleet.db.migrate` runs it; alembic loads the files by path."""
