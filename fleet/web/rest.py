"""What all resources of /api/v1 share: pages with an opaque `next`, strong ETags and If-Match, Idempotency-Key, JSON of moments."""

import base64
import binascii
import hashlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from fleet.web import auth, store
from protocol.errors import ConflictError, InvalidError

T = TypeVar("T")
DEFAULT_LIMIT, MAX_LIMIT = 50, 500
#: How long an Idempotency-Key is remembered.
KEY_LIFE = timedelta(hours=24)
MAX_KEY_LENGTH = 200
_KEPT_HEADERS = ("etag", "location", "content-type")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for: at most `limit` items after the sort key `after`."""

    limit: int
    after: str | None

    def take(self, items: Sequence[T], key: Callable[[T], str]) -> list[T]:
        """Of a whole list, in its own order, the items of this page and one more that says there is a next page."""
        start = 0
        if self.after is not None:
            start = next((index + 1 for index, item in enumerate(items) if key(item) == self.after), len(items))
        return list(items[start : start + self.limit + 1])


def page_of(limit: int = Query(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT), next_: str | None = Query(None, alias="next", max_length=1000)) -> Page:
    """The dependency that reads `limit` and `next`. Raises: InvalidError for a `next` that is not ours."""
    if next_ is None:
        return Page(limit, None)
    try:
        padded = next_.encode("ascii") + b"=" * (-len(next_) % 4)
        return Page(limit, base64.b64decode(padded, altchars=b"-_", validate=True).decode("utf-8"))
    except (binascii.Error, ValueError) as error:
        raise InvalidError("next is not a page of this list.", hint="Take it from the answer before.") from error


def cursor(key: str) -> str:
    """The opaque `next` of a sort key."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def listed(request: Request, page: Page, found: Sequence[T], *, key: Callable[[T], str], render: Callable[[T], Any]) -> JSONResponse:
    """A page of a list: `found` holds one more than the page when there is a next one."""
    shown = found[: page.limit]
    after = cursor(key(shown[-1])) if len(found) > page.limit and shown else None
    answer = JSONResponse({"items": [render(item) for item in shown], "next": after})
    if after:
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "next"]
        answer.headers["Link"] = f'<{request.url.path}?{urlencode([*query, ("next", after)])}>; rel="next"'
    return answer


def one(document: Any, *, revision: object = None, status: int = 200, location: str | None = None) -> JSONResponse:
    """One resource, with its revision as strong ETag."""
    answer = JSONResponse(document, status)
    if revision is not None:
        answer.headers["ETag"] = f'"{revision}"'
    if location:
        answer.headers["Location"] = location
    return answer


def expected_revision(request: Request, *, part: int = 0) -> int | None:
    """The revision that If-Match wants; None for `*`. `part` picks one of an ETag of several, "3.7".

    Raises: InvalidError: precondition-required when the header is missing.
    """
    given = request.headers.get("if-match")
    if given is None:
        raise InvalidError("If-Match is missing.", hint="Send the ETag of the resource as you saw it.", code="precondition-required")
    if given.strip() == "*":
        return None
    try:
        return int(given.strip().removeprefix("W/").strip('"').split(".")[part])
    except (ValueError, IndexError) as error:
        raise InvalidError(f"If-Match {given[:80]!r} is no ETag of this resource.", hint="Send the ETag as it came.") from error


def iso(moment: datetime | None) -> str | None:
    """A moment as JSON has it: ISO 8601, UTC."""
    return moment.isoformat() if moment else None


def joined(names: Iterable[str]) -> list[str]:
    """Names in a stable order."""
    return sorted(str(name) for name in names)


class IdempotentRoute(APIRoute):
    """A route whose POST is done once per Idempotency-Key and caller: who repeats it gets the first answer again."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            if key is None or request.method != "POST":
                return await handler(request)
            return await _once(request, key, handler)

        return once


async def _once(request: Request, key: str, handler: Callable[[Request], Awaitable[Response]]) -> Response:
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidError(f"Idempotency-Key has {len(key)} characters; wanted 1 to {MAX_KEY_LENGTH}.")
    caller = await run_in_threadpool(auth.identify, request)
    services, digest = auth.services_of(request), await _digest_of(request)
    now = services.system_now()

    def claim() -> store.Remembered | None:
        with services.database.transaction() as tx:
            return store.claim_key(tx, caller.tenant, caller.name, key, request_sha256=digest, now=now, since=now - KEY_LIFE)

    def keep(answer: Response | None) -> None:
        with services.database.transaction() as tx:
            if answer is None or answer.status_code >= 400:
                store.release_key(tx, caller.tenant, caller.name, key)
            else:
                headers = {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers}
                body = bytes(answer.body)
                store.save_answer(tx, caller.tenant, caller.name, key, status=answer.status_code, headers=headers, body=body)

    known = await run_in_threadpool(claim)
    if known is not None:
        if known.request_sha256 != digest:
            raise InvalidError("This Idempotency-Key was used for another request.", hint="Use a new key for a new request.")
        if known.status == 0:
            raise ConflictError("The first request with this Idempotency-Key still runs.", hint="Ask again in a moment.")
        return Response(known.body, known.status, known.headers)
    answer: Response | None = None
    try:
        answer = await handler(request)
    finally:
        await run_in_threadpool(keep, answer)
    return answer


async def _digest_of(request: Request) -> str:
    """What tells two requests apart. An upload is not read twice: its length stands for its body."""
    is_upload = request.headers.get("content-type", "").startswith("multipart/")
    body = request.headers.get("content-length", "").encode() if is_upload else await request.body()
    return hashlib.sha256(json.dumps([request.method, request.url.path]).encode() + b"\n" + body).hexdigest()
