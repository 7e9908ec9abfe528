"""One byte range of a file: `Range` and `If-Range` of RFC 9110, sections 13 and 14. Pure."""

import re
from dataclasses import dataclass

from protocol.errors import InvalidError

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, not including, `end` of `size`."""

    start: int
    end: int
    size: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.end - self.start

    @property
    def content_range(self) -> str:
        """The header of the answer."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def requested_range(header: str | None, *, if_range: str | None, etag: str, size: int) -> ByteRange | None:
    """The range to send, or None for the whole: no range asked, several (allowed to ignore), malformed, or of another version.

    Raises: InvalidError (code bad-range) when no byte of the range exists.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or (if_range is not None and if_range.strip() != etag):
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if first:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        raise InvalidError(f"{header} of a file of {size} bytes is empty.", code="bad-range")
    return ByteRange(start, end, size)


def has_etag(header: str | None, etag: str) -> bool:
    """Whether `If-None-Match` names the ETag, or any (weak comparison, RFC 9110 13.1.2)."""
    if header is None:
        return False
    named = [one.strip().removeprefix("W/") for one in header.split(",")]
    return "*" in named or etag in named
