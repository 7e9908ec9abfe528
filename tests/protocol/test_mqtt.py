"""The library's network thread does not die unheard: what fails on it ends the connection, and is told."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.authority import Authority
from simulators.tls_peer import CONNACK, tls_server
from waiting import wait_until

from protocol.mqtt import Client

pytestmark = pytest.mark.usefixtures("collected")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a broker that accepts everybody and then says nothing."""

    def accept(connection) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK)
        while connection.recv(4096):
            pass

    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    with tls_server(*authority.issue(tmp_path, "broker", hosts=("127.0.0.1",)), accept) as port:
        yield port


class Failing:
    """A client whose first `times` connections fail on its own thread."""

    def __init__(self, port: int, ca: Path, *, times: int, **options: bool) -> None:
        self.errors, self.connects, self.is_up = list[Exception](), 0, threading.Event()
        self._times = times
        self.client = Client("cam-1", on_failed=self.errors.append, **options)
        self.client.tls_set(str(ca))
        self.client.on_connect = self._connected
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _connected(self, *_: object) -> None:
        self.connects += 1
        if self.connects <= self._times:
            raise LookupError(f"connection {self.connects}")
        self.is_up.set()

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_a_client_whose_thread_fails_connects_again_and_tells_each_time(port: int, tmp_path: Path):
    failing = Failing(port, tmp_path / "ca.pem", times=2)
    wait_until(failing.is_up.is_set, what="the third connection")
    failing.stop()
    assert [str(error) for error in failing.errors] == ["connection 1", "connection 2"]


def test_a_client_that_is_not_to_come_back_tells_and_ends(port: int, tmp_path: Path):
    failing = Failing(port, tmp_path / "ca.pem", times=1, reconnect_on_failure=False)
    wait_until(lambda: failing.errors, what="the failure")
    failing.stop()
    assert (failing.connects, len(failing.errors)) == (1, 1)


def test_a_client_is_stopped_at_once_while_it_waits_to_connect_again(port: int, tmp_path: Path):
    failing = Failing(port, tmp_path / "ca.pem", times=1_000)
    wait_until(lambda: failing.errors, what="the failure")
    failing.stop()
    assert failing.connects == len(failing.errors)
