"""One client's connection: bytes in until a request is whole, bytes out until an answer is sent, deadlines for both.

Whoever handles a connection owns it: the listening thread, or, while `is_busy`, the thread that infers for it.
"""

import contextlib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.serving.http import CONTINUE, MAX_HEAD_BYTES, Head, RefusedError, parse_head
from agent.serving.tensors import ALIGNMENT

SLOWEST_BYTES_PER_S = 64 * 1024
#: A body's memory up to this size is kept for the next request of the same connection.
KEPT_BYTES = 1 << 20
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of system time that a client may take."""

    #: Between two requests.
    idle_s: float = 60.0
    head_s: float = 10.0
    #: For a body, beyond its length at the slowest rate.
    body_s: float = 10.0
    #: While it does not read its answer.
    write_s: float = 20.0
    #: For a client that was refused to send what it still has, so that it gets to read why.
    linger_s: float = 5.0
    #: Between two looks for those that take longer.
    sweep_s: float = 1.0


class Wire(Protocol):
    """The socket as the connection uses it: plain, or under TLS."""

    def fileno(self) -> int: ...

    def receive_into(self, view: memoryview) -> int | None:
        """Bytes read, 0 at the end, None when nothing is there yet. Raises: OSError."""
        ...

    def send(self, parts: Sequence[memoryview | bytes]) -> int:
        """Bytes taken, 0 when there is no room yet. Raises: OSError."""
        ...

    def has_pending(self) -> bool:
        """Whether bytes wait that the kernel does not know of."""
        ...

    def shut_write(self) -> None: ...

    def close(self) -> None: ...


class PlainWire:
    """A socket without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive_into(self, view: memoryview) -> int | None:
        try:
            return self._socket.recv_into(view)
        except BlockingIOError:
            return None

    def send(self, parts: Sequence[memoryview | bytes]) -> int:
        try:
            return self._socket.sendmsg(parts)
        except BlockingIOError:
            return 0

    def has_pending(self) -> bool:
        return False

    def shut_write(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class TlsWire:
    """A socket under TLS; the handshake happens with the first reads."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        self._socket = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive_into(self, view: memoryview) -> int | None:
        try:
            return self._socket.recv_into(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except ssl.SSLEOFError:
            return 0

    def send(self, parts: Sequence[memoryview | bytes]) -> int:
        try:
            return self._socket.send(parts[0])
        except ssl.SSLWantWriteError:
            return 0

    def has_pending(self) -> bool:
        return self._socket.pending() > 0

    def shut_write(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


@dataclass(slots=True, eq=False)
class Connection:
    """See the module's text."""

    wire: Wire
    deadline_s: float
    patience: Patience
    head: Head | None = None
    is_busy: bool = False
    #: What epoll watches it for; 0: nothing, it was readable while busy.
    mask: int = 0
    #: Only what it still sends is read away; it is closed at its end or deadline.
    is_lingering: bool = False
    is_closed: bool = False
    #: Close when all is written.
    ends: bool = False
    out: list[memoryview | bytes] = field(default_factory=list)
    #: The head before, as bytes and as read.
    _last: tuple[bytes, Head] | None = None
    _early: bytearray = field(default_factory=bytearray)
    _store: bytearray = field(default_factory=bytearray)
    _body: memoryview = field(default_factory=lambda: memoryview(b""))
    _filled: int = 0

    @property
    def held_bytes(self) -> int:
        """Memory that its body takes."""
        return len(self._store)

    @property
    def has_early(self) -> bool:
        """Whether bytes of a next request are here already."""
        return bool(self._early) or self.wire.has_pending()

    @property
    def body(self) -> memoryview:
        """The whole body of the request in `head`."""
        return self._body

    def read_head(self, scratch: memoryview, now_s: float) -> bool | None:
        """Read on; returns True when `head` is there, False when not yet, None when the client hung up. Raises: RefusedError, OSError."""
        if not self._early or b"\r\n\r\n" not in self._early:
            count = self.wire.receive_into(scratch)
            if count is None:
                return False
            if count == 0:
                return None
            if not self._early:
                self.deadline_s = now_s + self.patience.head_s
            self._early += scratch[:count]
        end = self._early.find(b"\r\n\r\n")
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._early) > MAX_HEAD_BYTES):
            raise RefusedError(431, f"The head of the request has more than {MAX_HEAD_BYTES} bytes.", ends=True)
        if end < 0:
            return False
        text = bytes(self._early[:end])
        if self._last is None or text != self._last[0]:  # most clients send one head again and again
            self._last = text, parse_head(text)
        self.head = self._last[1]
        del self._early[: end + 4]
        return True

    def begin_body(self, offset: int, now_s: float) -> None:
        """Make room for the body of `head`, laid so that the byte at `offset` is aligned, and take what is here already."""
        length = self.head.length if self.head is not None else 0
        self._filled = 0
        if not length:
            self._body = memoryview(b"")
            return
        pad = -offset % ALIGNMENT
        if len(self._store) < length + pad:
            self._store = bytearray(length + pad)
        self._body = memoryview(self._store)[pad : pad + length]
        taken = min(length, len(self._early))
        self._body[:taken] = self._early[:taken]
        del self._early[:taken]
        self._filled = taken
        self.deadline_s = now_s + self.patience.body_s + length / SLOWEST_BYTES_PER_S
        if taken < length and self.head is not None and self.head.wants_continue:
            self.wire.send((CONTINUE,))

    def read_body(self) -> bool | None:
        """Read on; returns True when the body is whole, False when not yet, None when the client hung up. Raises: OSError."""
        if self._filled < len(self._body):
            count = self.wire.receive_into(self._body[self._filled :])
            if count is None:
                return False
            if count == 0:
                return None
            self._filled += count
        return self._filled == len(self._body)

    def forget_request(self, now_s: float) -> None:
        """Be ready for the next one."""
        self.head, self._body = None, memoryview(b"")
        if len(self._store) > KEPT_BYTES:
            self._store = bytearray()
        self.deadline_s = now_s + self.patience.idle_s

    def write(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Send as much as goes, keep copies of the rest in `out`; returns whether nothing is left. Raises: OSError."""
        left = [part for part in parts if len(part)]
        while left:
            count = self.wire.send(left)
            if not count:
                self.out = [bytes(part) for part in left]  # the arrays behind the parts are written over by the next inference
                return False
            if count == sum(map(len, left)):
                break
            left = _without_first(left, count)
        return True

    def flush(self) -> bool:
        """Send what waits; returns whether nothing is left. Raises: OSError."""
        while self.out:
            count = self.wire.send(self.out)
            if not count:
                return False
            self.out = _without_first(self.out, count)
        return True

    def drain(self, scratch: memoryview) -> bool:
        """Read away what a refused client sends; returns whether more may come. Raises: OSError."""
        return self.wire.receive_into(scratch) != 0

    def close(self) -> None:
        """Hang up and free the memory."""
        self.is_closed = True
        self._body, self._store = memoryview(b""), bytearray()
        with contextlib.suppress(OSError):
            self.wire.close()


def _without_first(parts: Sequence[memoryview | bytes], count: int) -> list[memoryview | bytes]:
    """The parts without their first `count` bytes."""
    left = list(parts)
    while left and count >= len(left[0]):
        count -= len(left.pop(0))
    if count:
        left[0] = memoryview(left[0])[count:]
    return left
