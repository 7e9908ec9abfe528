"""The demo's link: forwards until cut, refuses while cut, forwards again."""

import socket
import threading
from collections.abc import Iterator

import pytest
from waiting import wait_until

from examples.demo.link import Link


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(peer,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _echo(peer: socket.socket) -> None:
    with peer:
        while data := peer.recv(1000):
            peer.sendall(data)


def _ask(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(1000)


def test_a_link_forwards_both_ways(echo_port: int):
    link = Link(echo_port)
    with socket.create_connection(("127.0.0.1", link.port), timeout=60) as connection:
        assert _ask(connection, b"hello") == b"hello"
        assert link.open_connections == 1
    wait_until(lambda: link.open_connections == 0, what="the connection to be forgotten")
    link.close()


def test_a_cut_drops_open_connections_and_refuses_new_ones_until_restored(echo_port: int):
    link = Link(echo_port)
    with socket.create_connection(("127.0.0.1", link.port), timeout=60) as connection:
        assert _ask(connection, b"before") == b"before"
        link.cut()
        assert connection.recv(10) == b""
    with socket.create_connection(("127.0.0.1", link.port), timeout=60) as refused:
        assert refused.recv(10) == b""
    link.restore()
    with socket.create_connection(("127.0.0.1", link.port), timeout=60) as connection:
        assert _ask(connection, b"after") == b"after"
    link.close()


def test_a_dead_target_ends_the_connection_not_the_link(echo_port: int, free_port: int):
    link = Link(free_port)
    with socket.create_connection(("127.0.0.1", link.port), timeout=60) as connection:
        assert connection.recv(10) == b""
    link.close()
