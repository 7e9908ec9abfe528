"""HTTP/1.1 as far as the Open Inference Protocol needs it: pure functions from bytes to a request head, and from an answer to bytes.

Strict where a lenient server would let two readers of one request disagree: one Content-Length, no folded lines, no chunked bodies.
"""

import functools
import json
import re
from dataclasses import dataclass
from urllib.parse import unquote

#: Bytes of a request line and its headers; clients send a few hundred.
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 64
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
#: Stable slugs of `urn:mooring:problem:` by status (INTERFACES 2.2).
_SLUGS = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    408: "timeout",
    413: "too-large",
    431: "too-large",
    500: "inference-failed",
    503: "unavailable",
}
_HEAD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
#: The names that decide something; each may stand once.
_SINGLE = frozenset(
    (
        b"host",
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"inference-header-content-length",
        b"authorization",
        b"origin",
        b"expect",
        b"connection",
    )
)


class RefusedError(Exception):
    """The request is answered with `status` and these words; `ends` says that the connection cannot go on after it."""

    def __init__(self, status: int, text: str, *, ends: bool = False, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status, self.text, self.ends, self.headers = status, text, ends, headers


@dataclass(frozen=True, slots=True)
class Head:
    """A request line with its headers, names in lower case."""

    method: str
    #: Without query, percent-decoded.
    path: str
    headers: dict[bytes, bytes]
    #: Bytes of the body.
    length: int
    is_kept_alive: bool

    @property
    def wants_continue(self) -> bool:
        """Whether the client waits for leave to send its body."""
        return b"expect" in self.headers


def parse_head(data: bytes) -> Head:
    """The head that these bytes, without the empty line at their end, hold. Raises: RefusedError."""
    request_line, *lines = data.split(b"\r\n")
    if len(lines) > MAX_HEADERS:
        raise RefusedError(431, f"The request has {len(lines)} headers; at most {MAX_HEADERS} are read.", ends=True)
    method, target, version = _request_line(request_line)
    headers: dict[bytes, bytes] = {}
    for line in lines:
        found = _HEAD_LINE.fullmatch(line)
        if found is None:
            raise RefusedError(400, f"The header line {shown(line[:80])} is malformed.", ends=True)
        name = found[1].lower()
        if name in headers and name in _SINGLE:
            raise RefusedError(400, f"The header {name.decode()} stands twice.", ends=True)
        headers[name] = found[2].strip(b" \t")
    if b"transfer-encoding" in headers:
        raise RefusedError(411, "Bodies in chunks are not read; send Content-Length.", ends=True)
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise RefusedError(417, "Only 'Expect: 100-continue' is known.", ends=True)
    if version == b"HTTP/1.1" and b"host" not in headers:
        raise RefusedError(400, "The header Host is missing.", ends=True)
    is_kept_alive = version == b"HTTP/1.1" and b"close" not in headers.get(b"connection", b"").lower()
    return Head(method, target, headers, number(headers, b"content-length") or 0, is_kept_alive)


def number(headers: dict[bytes, bytes], name: bytes) -> int | None:
    """The header as a count of bytes, None when it is absent. Raises: RefusedError when it is not one."""
    text = headers.get(name)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 15:
        raise RefusedError(400, f"{name.decode().title()} is {shown(text[:40])}; wanted a count of bytes.", ends=True)
    return int(text)


def shown(data: bytes) -> str:
    """What a client sent, as it stands in an error: quoted, with no control character."""
    return repr(data.decode("latin-1"))


@functools.lru_cache(maxsize=128)
def answer_head(status: int, *, length: int, is_kept_alive: bool, headers: tuple[tuple[str, str], ...]) -> bytes:
    """Status line and headers, up to and with the empty line."""
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if not is_kept_alive:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def problem(status: int, text: str) -> bytes:
    """RFC 9457, and `error`, which clients of the Open Inference Protocol read."""
    slug = _SLUGS.get(status, "invalid")
    found = {"error": text, "type": f"urn:mooring:problem:{slug}", "title": _REASONS[status], "status": status, "detail": text}
    return json.dumps(found).encode()


def _request_line(line: bytes) -> tuple[str, str, bytes]:
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[0].isalpha() or not parts[1].startswith(b"/") or not line.isascii():
        raise RefusedError(400, f"The request line {shown(line[:80])} is malformed.", ends=True)
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise RefusedError(505, f"{shown(version[:20])} is not spoken here; wanted HTTP/1.1.", ends=True)
    path = target.partition(b"?")[0].decode("ascii")
    return method.decode("ascii"), unquote(path) if "%" in path else path, version
