"""A slow link: a TCP proxy on loopback that lets the first bytes of each connection pass and slows down what follows."""

import contextlib
import math
import socket
import threading

CHUNK_BYTES = 8192


class ThrottledLink:
    """Forwards to a port of loopback, or to a Unix socket; what comes back after `free_bytes` of a connection comes at `bytes_per_s`."""

    def __init__(self, target: int | str, *, bytes_per_s: float = math.inf, free_bytes: int = 0) -> None:
        self._target, self._bytes_per_s, self._free_bytes = target, bytes_per_s, free_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pause = threading.Event()
        threading.Thread(target=self._accept, name="throttled-link", daemon=True).start()

    @property
    def port(self) -> int:
        """The port to connect to."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Take no more connections; open ones end with their ends."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), self._connect() as far:
            back = threading.Thread(target=self._pump, args=(far, near), kwargs={"free": self._free_bytes}, daemon=True)
            back.start()
            self._pump(near, far, free=None)
            back.join()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._target)
        return far

    def _pump(self, source: socket.socket, sink: socket.socket, *, free: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                sink.sendall(data)
                if free is not None:
                    free -= len(data)
                    if free < 0:
                        self._pause.wait(len(data) / self._bytes_per_s)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
