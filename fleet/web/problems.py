"""Errors as `application/problem+json` (RFC 9457): the one place where a family of errors becomes an HTTP status."""

import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from protocol.errors import (
    AccessError,
    ConflictError,
    InvalidError,
    MooringError,
    NotFoundError,
    StaleRevisionError,
    TransferError,
    TrustError,
    UnauthenticatedError,
    UnavailableError,
)

log = logging.getLogger("mooring.web")

PROBLEM_TYPE = "urn:mooring:problem:"
MEDIA_TYPE = "application/problem+json"
#: Characters of a refused value that its refusal repeats.
MAX_SEEN = 100
#: Fields whose values are repeated nowhere: they hold a secret, or an address that may hold one.
_MAYBE_SECRET = ("password", "secret", "token", "key", "code", "url", "address", "totp", "cookie", "authorization")
#: Refusals of values that are numbers, or words of a list.
_OF_PLAIN_VALUES = frozenset({"enum", "literal_error", "greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"})
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

#: Slug → (status, title). The slug is the stable end of `type`.
PROBLEMS: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "unauthenticated": (401, "Who are you?"),
    "forbidden": (403, "You may not do this"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "This method does not exist here"),
    "conflict": (409, "The state does not allow it"),
    "gate-failed": (409, "A gate failed"),
    "precondition-failed": (412, "Somebody changed it in between"),
    "too-large": (413, "Too large"),
    "bad-range": (416, "The range lies outside"),
    "invalid": (422, "The input is not valid"),
    "precondition-required": (428, "If-Match is missing"),
    "rate-limited": (429, "Too many requests"),
    "internal": (500, "The server failed"),
    "unavailable": (503, "Not available now"),
}
#: From the most special family to the most general.
_FAMILIES: tuple[tuple[type[MooringError], str], ...] = (
    (UnauthenticatedError, "unauthenticated"),
    (AccessError, "forbidden"),
    (NotFoundError, "not-found"),
    (StaleRevisionError, "precondition-failed"),
    (ConflictError, "conflict"),
    (InvalidError, "invalid"),
    (TrustError, "forbidden"),
    (TransferError, "unavailable"),
)


def slug_of(error: MooringError) -> str:
    """The slug of the error: its own code when that is one, else its family's."""
    if error.code in PROBLEMS and error.code != "internal":
        return error.code
    return next((slug for family, slug in _FAMILIES if isinstance(error, family)), "internal")


def problem(
    request: Request,
    slug: str,
    detail: str,
    *,
    hint: str | None = None,
    code: str = "",
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer of a refused request; `code` says more closely what the slug's family is about."""
    status, title = PROBLEMS[slug]
    body: dict[str, Any] = {
        "type": PROBLEM_TYPE + slug,
        "title": title,
        "status": status,
        "detail": detail[:2000],
        "code": code or slug,
        "errors": [dict(one) for one in errors],
        "trace_id": trace_id(request),
    }
    if hint:
        body["hint"] = hint[:2000]
    return JSONResponse(body, status, dict(headers or {}), MEDIA_TYPE)


def from_error(request: Request, error: MooringError, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer for an error of ours; what is no fault of the caller is logged, and not told to the caller in detail."""
    slug = slug_of(error)
    more = dict(headers or {})
    if slug == "internal":
        log.error("request_failed path=%s trace_id=%s error=%s", request.url.path, trace_id(request), error)
        return problem(request, slug, "The server could not do it; its log tells why.")
    if slug in {"unavailable", "rate-limited"}:
        wait_s = error.retry_after_s if isinstance(error, UnavailableError) and error.retry_after_s is not None else 5.0
        more.setdefault("Retry-After", str(max(1, round(wait_s))))
    return problem(request, slug, error.message, hint=error.hint, code=error.code, headers=more)


def trace_id(request: Request) -> str:
    """The caller's trace id (W3C traceparent) or a new one, the same all through the request."""
    known = getattr(request.state, "trace_id", None)
    if known is None:
        match = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
        known = request.state.trace_id = match.group(1) if match else secrets.token_hex(16)
    return str(known)


def install(app: FastAPI) -> None:
    """Answer every error of the app's handlers with a problem document."""
    app.add_exception_handler(MooringError, _mooring_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)


async def _mooring_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, MooringError):
        raise error
    return from_error(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [{"pointer": _pointer(one["loc"]), "reason": _reason(one)} for one in error.errors()[:20]]
    first = f"{errors[0]['pointer']}: {errors[0]['reason']}" if errors else "The input does not have the shape that is wanted."
    return problem(request, "invalid", first, errors=errors)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    slug = next((slug for slug, (status, _) in PROBLEMS.items() if status == error.status_code), "bad-request")
    return problem(request, slug, str(error.detail), headers=error.headers)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    log.error("request_crashed path=%s trace_id=%s", request.url.path, trace_id(request), exc_info=error)
    return problem(request, "internal", "The server failed; its log tells why.")


def _reason(one: Mapping[str, Any]) -> str:
    """What was wanted, and what was seen where that can be no secret: in the address, and where a number or a word of a list is wanted."""
    reason, seen, kind = str(one["msg"])[:300], one.get("input"), str(one["type"])
    is_open = str(one["loc"][0]) in {"query", "path"} if one["loc"] else False
    is_plain = kind.endswith("_parsing") or kind in _OF_PLAIN_VALUES
    is_secret = any(word in str(part).lower() for part in one["loc"] for word in _MAYBE_SECRET)
    if not isinstance(seen, bool | int | float | str) or is_secret or not (is_open or is_plain):
        return reason
    return f"{reason}; seen: {json.dumps(seen, ensure_ascii=False)[:MAX_SEEN]}"


def _pointer(location: Sequence[Any]) -> str:
    return "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in location)
