"""A server of the Open Inference Protocol with the color model, and a client that may send whatever it likes."""

import json
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from simulators.color_models import SIDE

from agent.serving.models import Shelf
from agent.serving.server import Server

#: One red picture, as the model wants it, and the answer.
RED = np.zeros((1, SIDE, SIDE, 3), np.float32)
RED[..., 2] = 1.0
INFER = "/v2/models/color/infer"


def infer_body(array: Any = RED, **request: Any) -> tuple[bytes, int]:
    """A binary request and the length of its JSON."""
    entry = {"name": "pixels", "shape": list(array.shape), "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    text = json.dumps({"inputs": [entry], **request}).encode()
    return text + array.tobytes(), len(text)


def head_of(body: bytes, json_length: int, *, path: str = INFER, extra: str = "") -> bytes:
    """The head of a binary request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body)}",
        f"Inference-Header-Content-Length: {json_length}",
    ]
    return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode()


@dataclass
class Served:
    """A running server."""

    server: Server
    shelf: Shelf
    #: Host and port, or the path of a Unix socket.
    address: tuple[str, int] | str
    stack: ExitStack

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def connect(self) -> socket.socket:
        """A socket that is closed at the end of the test."""
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        sock = self.stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.settimeout(120)
        sock.connect(self.address)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def client(self, **options: Any) -> httpx.Client:
        """An ordinary HTTP client, closed at the end of the test."""
        if isinstance(self.address, str):
            return self.stack.enter_context(
                httpx.Client(base_url="http://device", timeout=120, transport=httpx.HTTPTransport(uds=self.address))
            )
        return self.stack.enter_context(httpx.Client(base_url=self.url, timeout=120, trust_env=False, **options))


def read_answer(sock: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65_536)
        assert part, f"hung up after {data!r}"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        part = sock.recv(65_536)
        assert part, f"hung up after {len(body)} of {length} bytes"
        body += part
    assert len(body) == length
    return int(head.split(b" ", 2)[1]), body


def is_hung_up(sock: socket.socket) -> bool:
    """Wait for the end of the connection."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
