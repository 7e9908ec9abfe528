"""One end of the socketpair: messages of bounded size, each behind its length (4 bytes, big endian)."""

import contextlib
import socket
import struct

from agent.inference.messages import MAX_MESSAGE_BYTES

_LENGTH = struct.Struct(">I")
#: Bytes that one read takes at most: many small messages come with one system call.
_READ_BYTES = 65_536


class LinkClosedError(Exception):
    """The other end is gone, or sent something that is no message."""


class Link:
    """Sends and receives whole messages; one thread may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        #: What was read beyond the message that was wanted.
        self._ahead = bytearray()

    def send(self, *messages: bytes) -> None:
        """Write messages in their order, waiting while the other end is slow. Raises: LinkClosedError; ValueError when one is too long."""
        parts: list[bytes] = []
        for data in messages:
            if len(data) > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
            parts += _LENGTH.pack(len(data)), data
        try:
            self._socket.sendall(b"".join(parts))
        except OSError as error:
            raise LinkClosedError(str(error)) from None

    def receive(self) -> bytes:
        """The next message, waiting for it. Raises: LinkClosedError at the end or when the length is out of bounds."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise LinkClosedError(f"a message of {length} bytes was announced; at most {MAX_MESSAGE_BYTES} are allowed")
        return self._exactly(length)

    def fileno(self) -> int:
        """For `select`: readable when a message or the end waits."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up: the other end and a waiting `receive` see the end. May be called again."""
        with contextlib.suppress(OSError):  # the other end hung up first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, length: int) -> bytes:
        while len(self._ahead) < length:
            try:
                part = self._socket.recv(_READ_BYTES)
            except OSError as error:
                raise LinkClosedError(str(error)) from None
            if not part:
                raise LinkClosedError("the other end hung up")
            self._ahead += part
        data = bytes(self._ahead[:length])
        del self._ahead[:length]
        return data
