"""How alembic runs a migration: inside the transaction that `fleet.db.migrate` opened and holds the lock of."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
