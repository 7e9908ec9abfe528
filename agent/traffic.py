"""Bytes that this device exchanges with its server.

The kernel counts them per connection, so TLS and what had to be sent twice are in; headers of TCP and IP are not.
"""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

#: Where `tcpi_bytes_received` (Linux 4.1) and `tcpi_bytes_sent` (4.19) lie in struct tcp_info, both unsigned 64 bit.
_RECEIVED_AT, _SENT_AT, _LENGTH = 128, 200, 208


class Traffic:
    """Bytes sent and received by connections that are over or were looked at; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = self._received = 0

    def add(self, sent: int, received: int) -> None:
        """Count on."""
        with self._lock:
            self._sent += sent
            self._received += received

    def totals(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        with self._lock:
            return self._sent, self._received

    @contextmanager
    def counting(self, client: "httpx.Client") -> Iterator[None]:
        """Counts what the client's connections carry until the block ends."""
        meters: dict[int, Meter] = {}

        def watch(response: "httpx.Response") -> None:
            stream = response.extensions.get("network_stream")
            sock = stream.get_extra_info("socket") if stream is not None else None
            if sock is not None and (fd := sock.fileno()) >= 0 and fd not in meters:
                meters[fd] = Meter(self, fd)

        client.event_hooks["response"].append(watch)
        try:
            yield
        finally:
            for meter in meters.values():
                meter.close()


class Meter:
    """Reads one connection's counters, also after its owner closed it: its own descriptor keeps them until `close`."""

    def __init__(self, traffic: Traffic, fd: int) -> None:
        self._traffic = traffic
        self._seen = (0, 0)
        self._socket: socket.socket | None = None
        with suppress(OSError):
            self._socket = socket.socket(fileno=os.dup(fd))

    def look(self) -> None:
        """Count what was exchanged since the look before."""
        if self._socket is None or self._socket.family == socket.AF_UNIX:
            return
        with suppress(OSError):
            data = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
            if len(data) == _LENGTH:
                (sent,), (received,) = struct.unpack_from("Q", data, _SENT_AT), struct.unpack_from("Q", data, _RECEIVED_AT)
                self._traffic.add(max(0, sent - self._seen[0]), max(0, received - self._seen[1]))
                self._seen = (sent, received)

    def close(self) -> None:
        """Look for the last time and let go; may be called again."""
        self.look()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
