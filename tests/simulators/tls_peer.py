"""A TLS server on loopback that says what a test tells it to, such as a broker that speaks nonsense."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

#: Packets of MQTT 5: accepted, no session; a PUBLISH that says its topic is longer than the packet; subscribed with QoS 1 (packet 1).
CONNACK, TORN_PUBLISH, SUBACK = bytes([0x20, 3, 0, 0, 0]), bytes([0x30, 2, 0xFF, 0xFF]), bytes([0x90, 4, 0, 1, 0, 1])


@contextmanager
def tls_server(certificate: Path, key: Path, serve: Callable[[ssl.SSLSocket], object]) -> Iterator[int]:
    """The port of a server for 127.0.0.1 and localhost that hands each connection to `serve`, one after the other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def run() -> None:
            while True:
                try:
                    raw, _ = listener.accept()
                    with context.wrap_socket(raw, server_side=True) as connection:
                        serve(connection)
                except OSError:  # also what TLS says
                    if listener.fileno() < 0:
                        return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(60)


class NonsenseBroker:
    """Accepts every client; sends the first one, once it subscribed, a packet that nobody can read; the later ones are left in peace."""

    def __init__(self) -> None:
        #: Connections that asked for a subscription.
        self.subscribed = 0

    def __call__(self, connection: ssl.SSLSocket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK)
        heard = b""
        while b"/#" not in heard:  # the end of the filter in SUBSCRIBE
            chunk = connection.recv(4096)
            if not chunk:
                return
            heard += chunk
        self.subscribed += 1
        connection.sendall(SUBACK + (TORN_PUBLISH if self.subscribed == 1 else b""))
        while connection.recv(4096):
            pass
