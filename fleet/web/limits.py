"""What one caller may ask for: size of a request's body, calls in a stretch of time."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.web import problems
from protocol.errors import InvalidError, UnavailableError

#: Callers remembered; the one not seen for longest is forgotten.
MAX_CALLERS = 10_000
#: Of a body that is refused so much is still read, for so many seconds, and thrown away.
DRAINED_BYTES, DRAINED_S = 1 << 20, 5.0


class BodyLimit:
    """Refuses a body larger than allowed: at once by its declared length, else as soon as more came."""

    def __init__(self, app: ASGIApp, *, limit: int, upload_limit: int, is_upload: Callable[[Scope], bool]) -> None:
        self._app, self._limit, self._upload_limit, self._is_upload = app, limit, upload_limit, is_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._upload_limit if self._is_upload(scope) else self._limit
        error = InvalidError(f"The request's body is longer than the {limit} bytes allowed.", code="too-large")
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > limit:
            await drain(receive)
            await problems.from_error(Request(scope), error, headers={"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                if message.get("more_body", False):
                    await drain(receive)
                raise HTTPException(413, str(error))  # an error of ours would become a 400 where FastAPI reads the body
            return message

        await self._app(scope, counted, send)


async def drain(receive: Receive) -> None:
    """Read on, as far as it is little: a connection closed with bytes unread is reset, and the answer is lost (RFC 9112, 9.6)."""
    left = DRAINED_BYTES
    try:
        async with asyncio.timeout(DRAINED_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


class RateLimit:
    """At most `burst` calls at once and `per_minute` in the long run, for each caller."""

    def __init__(self, *, burst: int, per_minute: float, now: Callable[[], datetime]) -> None:
        self._burst, self._per_s, self._now = float(burst), per_minute / 60.0, now
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, datetime]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one call. Raises: UnavailableError (code rate-limited) saying when the next is allowed."""
        with self._lock:
            now = self._now()
            left, at = self._buckets.pop(caller, (self._burst, now))
            left = min(self._burst, left + max(0.0, (now - at).total_seconds()) * self._per_s)
            is_allowed = left >= 1.0
            self._buckets[caller] = (left - 1.0 if is_allowed else left, now)
            if len(self._buckets) > MAX_CALLERS:
                self._buckets.popitem(last=False)
        if not is_allowed:
            wait_s = (1.0 - left) / self._per_s
            raise UnavailableError(f"Too many calls; the next is allowed in {wait_s:.0f} s.", retry_after_s=wait_s, code="rate-limited")
