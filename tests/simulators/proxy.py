"""A real proxy on loopback that speaks HTTP CONNECT and SOCKS5 and records where it was asked to go."""

import contextlib
import socket
import struct
import threading
from typing import Self


class Proxy:
    """`asked` holds "host:port" per connection."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            first = connection.recv(1, socket.MSG_PEEK)
            host, port = self._socks(connection) if first == b"\x05" else self._connect(connection)
            self.asked.append(f"{host}:{port}")
            with socket.create_connection((host, port)) as upstream:
                connection.sendall(b"\x05\0\0\x01" + bytes(6) if first == b"\x05" else b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pump, args=(upstream, connection), daemon=True)
                back.start()
                _pump(connection, upstream)
                back.join(60)

    def _connect(self, connection: socket.socket) -> tuple[str, int]:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(4096)
        host, _, port = request.split()[1].decode().rpartition(":")
        return host.strip("[]"), int(port)

    def _socks(self, connection: socket.socket) -> tuple[str, int]:
        """RFC 1928, without authentication."""
        with connection.makefile("rb", buffering=0) as stream:
            stream.read(stream.read(2)[1])
            connection.sendall(b"\x05\0")
            kind = stream.read(4)[3]
            if kind == 3:
                host = stream.read(stream.read(1)[0]).decode()
            else:
                host = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, stream.read(4 if kind == 1 else 16))
            return host, struct.unpack(">H", stream.read(2))[0]


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
