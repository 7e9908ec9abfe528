"""What a database that is busy or gone does to those who wait for it."""

import contextlib
import os
import socket

import pytest
import sqlalchemy as sa
from simulators.throttled_link import ThrottledLink

from fleet.db import Database
from protocol.errors import UnavailableError

#: SQLite gives every thread a connection, and is a file of this machine.
postgres_only = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@postgres_only
def test_when_all_connections_are_in_use_the_next_one_is_told_so(database: Database):
    url = database.engine.url.render_as_string(hide_password=False)
    hurried = Database(url, busy_timeout_s=0.2)
    with contextlib.ExitStack() as held:
        while hurried.engine.pool.checkedout() < 32:  # type: ignore[attr-defined]  # a QueuePool has it
            held.enter_context(hurried.engine.connect())
        with pytest.raises(UnavailableError, match="All connections to the database are in use") as caught, hurried.reading():
            pass
    assert caught.value.retry_after_s == 1.0
    with hurried.reading() as tx:
        assert tx.scalar(sa.select(1)) == 1
    hurried.dispose()


@postgres_only
def test_a_database_whose_machine_is_gone_is_noticed_after_a_minute(database: Database):
    """Asked of the connection itself: the system breaks it off, by what it was told, when nothing comes back from the other machine."""
    link = ThrottledLink(f"{database.engine.url.query['host']}/.s.PGSQL.5432")
    distant = Database(database.engine.url.set(host="127.0.0.1", port=link.port, query={}).render_as_string(hide_password=False))
    with distant.reading() as tx, socket.socket(fileno=os.dup(tx.connection.driver_connection.fileno())) as connection:
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        is_on, *options = (
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            *(connection.getsockopt(socket.IPPROTO_TCP, name) for name in names),
        )
    distant.dispose()
    link.close()
    assert (is_on, options) == (1, [30, 10, 3, 60_000])
