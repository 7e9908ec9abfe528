"""A listener bounds what a client may send before it is known, names what it cannot use, and stops in order."""

import contextlib
import socket
import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from serving import serving
from waiting import wait_until

from fleet.web.listener import MAX_HEAD_BYTES, Listener, ListenerTls
from protocol.errors import ConfigError


def app() -> FastAPI:
    made = FastAPI()

    @made.get("/")
    def hello() -> str:
        return "hello"

    @made.post("/")
    def size(body: dict[str, str]) -> int:
        return len(body["text"])

    return made


def test_a_head_without_an_end_is_cut_off():
    with serving(app()) as http, socket.create_connection(("127.0.0.1", http.base_url.port or 0), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(4 * MAX_HEAD_BYTES // 1000):
                client.sendall(b"X-More: " + b"x" * 990 + b"\r\n")
        assert answer_of(client) == b""
        assert http.get("/").json() == "hello"


def test_a_large_body_beside_a_small_head_is_no_large_head():
    with serving(app()) as http:
        text = "x" * (3 * MAX_HEAD_BYTES)
        assert http.post("/", json={"text": text}).json() == len(text)
        assert http.get("/").json() == "hello"


def test_a_taken_address_and_unusable_tls_files_are_named(tmp_path: Path):
    with serving(app()) as http, pytest.raises(ConfigError, match=str(http.base_url.port)):
        Listener(name="second", host="127.0.0.1", port=http.base_url.port or 0)
    with pytest.raises(ConfigError, match=r"none\.pem"):
        Listener(name="tls", host="127.0.0.1", port=0, tls=ListenerTls(tmp_path / "none.pem", tmp_path / "key.pem"))


def test_stopping_lets_a_request_end():
    made, entered, go_on = FastAPI(), threading.Event(), threading.Event()

    @made.get("/slow")
    def slow() -> str:
        entered.set()
        go_on.wait(60)
        return "done"

    listener = Listener(name="test", host="127.0.0.1", port=0)
    listener.start(made)
    answers: list[str] = []
    url = f"http://127.0.0.1:{listener.port}/slow"
    asking = threading.Thread(target=lambda: answers.append(httpx.get(url, timeout=60, trust_env=False).json()))
    asking.start()
    assert entered.wait(60)
    stopping = threading.Thread(target=listener.stop)
    stopping.start()
    go_on.set()
    asking.join(60)
    stopping.join(60)
    assert answers == ["done"]
    wait_until(lambda: not listener.is_running, what="its end")


def answer_of(client: socket.socket) -> bytes:
    """What the other side says before it closes; empty when it just closes."""
    try:
        return client.recv(1000)
    except ConnectionError:
        return b""
