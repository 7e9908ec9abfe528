"""A real HTTP server on loopback that hands out releases slowly, with Range, and says which one a device shall run."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from simulators.device import Release

from agent.update.assignment import CheckAnswer, LineOffer, dump_answer


class ThrottledServer:
    """Serves `/assignment?done=N` (the next release once the N-th is done) and `/blobs/sha256/{hex}`."""

    def __init__(
        self,
        releases: list[Release],
        *,
        chunk_bytes: int = 4096,
        pause_s: float = 0.01,
        blobs: Iterable[bytes] = (),
        offer_as: Callable[[LineOffer, str], LineOffer] = lambda offer, _url: offer,
    ) -> None:
        """`blobs`: served too; `offer_as` changes what is offered, given the server's URL."""
        self._offer_as = offer_as
        #: (path, Range) of every request for a blob.
        self.requests: list[tuple[str, str]] = []
        self._releases = releases
        self._chunk_bytes = chunk_bytes
        self._pause_s = pause_s
        self._blobs = {hashlib.sha256(data).hexdigest(): data for release in releases for data in release.files.values()}
        self._blobs |= {hashlib.sha256(data).hexdigest(): data for data in blobs}
        self._stop = threading.Event()
        #: Blob → bytes after which its answers stand still.
        self._held: dict[str, int] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return  # the device was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def hold(self, name: str, *, after_bytes: int) -> None:
        """Let answers with this blob, named by its digest's hex, stand still after so many bytes until `release`."""
        self._held[name] = after_bytes

    def release(self) -> None:
        """Let everything go on."""
        self._held.clear()

    def number_of(self, number: int) -> Release:
        return self._releases[number % len(self._releases)]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        if parts.path == "/assignment":
            number = int(parse_qs(parts.query)["done"][0]) + 1
            assignment = self.number_of(number).assignment(assignment=f"as-{number}", attempt=number, base_url=self.url)
            assignment = replace(assignment, lines=tuple(self._offer_as(offer, self.url) for offer in assignment.lines))
            self._send(handler, 200, dump_answer(CheckAnswer(assignment=assignment)), {})
            return
        name = parts.path.rpartition("/")[2]
        data, wanted = self._blobs[name], handler.headers.get("Range", "")
        self.requests.append((parts.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(data):
            self._send(handler, 416, b"", {})
            return
        headers = {"ETag": f'"{name}"'} | ({"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {})
        self._send(handler, 206 if start else 200, data[start:], headers, name=name)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], *, name: str = "") -> None:
        try:
            handler.send_response(status)
            for header, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(header, value)
            handler.end_headers()
            for start in range(0, len(body), self._chunk_bytes):
                while start >= self._held.get(name, len(body)):
                    if self._stop.wait(0.02):
                        return
                handler.wfile.write(body[start : start + self._chunk_bytes])
                if self._stop.wait(self._pause_s):
                    return
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True  # the device was killed
