"""A receiver of webhooks on loopback, with TLS when it has an identity: keeps what came, answers as it is told."""

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fleet.broker import ClientFiles


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebhookServer:
    port: int = 0
    #: Status of each answer in turn; the last one stays.
    statuses: list[int] = field(default_factory=lambda: [200])
    answer: bytes = b"ok"
    #: Says nothing until it is set.
    may_answer: threading.Event = field(default_factory=threading.Event)
    received: list[Received] = field(default_factory=list)


@contextmanager
def webhook_server(files: ClientFiles | None = None, **how) -> Iterator[WebhookServer]:
    """A running receiver. `how`: fields of WebhookServer."""
    server = WebhookServer(**how)
    is_patient = "may_answer" in how
    if not is_patient:
        server.may_answer.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.received.append(Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            server.may_answer.wait(60)
            status = server.statuses.pop(0) if len(server.statuses) > 1 else server.statuses[0]
            try:
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"http://127.0.0.1:{server.port}/elsewhere")
                self.send_header("Content-Length", str(len(server.answer)))
                self.end_headers()
                self.wfile.write(server.answer)
            except OSError:
                pass  # the caller had read enough

        def log_message(self, *_):
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request, address):
            pass  # a caller that does not trust the certificate hangs up

        def get_request(self):
            stream, address = super().get_request()
            if files is None:
                return stream, address
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files.certificate, files.key)
            # the handshake is the handler thread's
            return context.wrap_socket(stream, server_side=True, do_handshake_on_connect=False), address

    running = Quiet(("127.0.0.1", 0), Handler)
    server.port = running.server_address[1]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.may_answer.set()
        running.shutdown()
        thread.join()
        running.server_close()
