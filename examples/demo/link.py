"""A link that can be cut: a user-space TCP proxy on loopback, so that the demo needs neither root nor network namespaces."""

import contextlib
import socket
import threading

CHUNK_BYTES = 65_536
#: A peer that does not answer on loopback within this is gone.
CONNECT_TIMEOUT_S = 5.0


class Link:
    """Forwards one loopback port to another until it is cut; a cut drops open connections and refuses new ones."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_cut = False
        self._thread = threading.Thread(target=self._accept, name=f"link-{self.port}", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port to connect to."""
        return int(self._listener.getsockname()[1])

    @property
    def open_connections(self) -> int:
        """How many connections pass through now."""
        with self._lock:
            return len(self._open) // 2

    def cut(self) -> None:
        """Drop every connection and refuse new ones until `restore`."""
        with self._lock:
            self._is_cut = True
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Cut for good and give the port back."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near:
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port), timeout=CONNECT_TIMEOUT_S)
            except OSError:
                return
            far.settimeout(None)
            with far:
                with self._lock:
                    if self._is_cut:
                        return
                    self._open.update((near, far))
                back = threading.Thread(target=_pump, args=(far, near), daemon=True)
                back.start()
                _pump(near, far)
                back.join()
                with self._lock:
                    self._open.difference_update((near, far))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until either end closes, then close both ways."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
