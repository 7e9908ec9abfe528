"""Streams: messages as they are stored, parts of pages as they change, and nothing after the session."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from console_site import Browser, ConsoleSite
from waiting import wait_until

from fleet.web import accounts


class Reader:
    """Reads a stream in a thread."""

    def __init__(self, client: httpx.Client, path: str, headers: dict[str, str] | None = None) -> None:
        self.events: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.has_ended = False
        self._client, self._path, self._headers = client, path, headers or {}
        self._socket: socket.socket | None = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with contextlib.suppress(httpx.TransportError):  # `stop` cuts the connection
            self._read_all()

    def _read_all(self) -> None:
        with self._client.stream("GET", self._path, headers=self._headers, timeout=120) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            self._socket = answer.extensions["network_stream"].get_extra_info("socket")
            name, data = "", []
            for line in answer.iter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    data.append(value)
                elif key == "id":
                    self.ids.append(value)
                elif not line and name:
                    self.events.append((name, "\n".join(data)))
                    name, data = "", []
        self.has_ended = True

    def named(self, name: str) -> list[str]:
        return [data for event, data in self.events if event == name]

    def stop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(60)


@contextmanager
def reading(client: httpx.Client, path: str, headers: dict[str, str] | None = None) -> Iterator[Reader]:
    reader = Reader(client, path, headers)
    try:
        yield reader
    finally:
        reader.stop()


@pytest.fixture(scope="module")
def vera(console: ConsoleSite) -> Browser:
    console.person("vera", "viewer")
    console.enroll("cam-live")
    console.online("cam-live")
    return console.browser("vera")


@pytest.mark.usefixtures("vera")
def test_watch_gives_every_message_of_the_device_asked_for(console: ConsoleSite):
    console.enroll("cam-other")
    with reading(console.api("vera"), "/watch?device=cam-live") as reader:
        wait_until(lambda: console.services.live._subscriptions, what="the stream to listen")
        console.perf("cam-other")
        console.perf("cam-live", fps=33.0)
        console.predict("cam-live", "nine")
        messages = wait_until(lambda: len(reader.named("message")) >= 2 and [json.loads(one) for one in reader.named("message")])
    assert [(one["device"], one["topic"]) for one in messages] == [("cam-live", "tel/perf"), ("cam-live", "inf/front")]
    assert messages[0]["body"]["fps"] == 33.0


def test_a_device_page_is_told_only_what_changed(console: ConsoleSite, vera: Browser):
    with reading(vera, "/live/devices/cam-live") as reader:
        wait_until(lambda: {"state", "telemetry", "predictions", "beat"} <= {name for name, _ in reader.events}, what="the first parts")
        before = len(reader.named("pipelines"))
        console.predict("cam-live", "thirteen")
        wait_until(lambda: any("thirteen" in part for part in reader.named("predictions")), what="the new prediction")
        assert len(reader.named("pipelines")) == before
        last = reader.ids[-1]
    with reading(vera, "/live/devices/cam-live", {"Last-Event-ID": last}) as again:
        wait_until(lambda: again.named("beat"), what="a sign of life")
        assert not again.named("pipelines")
        assert not again.named("predictions")


def test_home_and_lists_are_live_too(console: ConsoleSite, vera: Browser):
    for path, part in (
        ("home", "home"),
        ("devices", "devices"),
        ("models", "models"),
        ("approvals", "approvals"),
        ("campaigns", "campaigns"),
    ):
        with reading(vera, f"/live/{path}") as reader:
            wait_until(lambda reader=reader, part=part: reader.named(part), what=path)


def test_a_stream_ends_with_its_session(console: ConsoleSite):
    console.person("leaver", "viewer")
    browser = console.browser("leaver")
    cookie = browser.headers["Cookie"].partition("=")[2]
    with reading(browser, "/live/home") as reader:
        wait_until(lambda: reader.named("home"), what="the first part")
        accounts.log_out(console.ground.database, cookie)
        wait_until(lambda: reader.has_ended, what="the end of the stream")
    assert reader.named("ended")


def test_streams_are_for_who_is_logged_in_and_for_what_exists(console: ConsoleSite, vera: Browser):
    assert console.http.get("/live/home").status_code == 401
    assert console.http.get("/api/v1/watch").status_code == 401
    assert vera.get("/live/devices/no-such").status_code == 404
