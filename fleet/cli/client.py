"""The command line's side of /api/v1: requests, pages, streams; answers that are problems become errors of the one tree."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from protocol.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    MooringError,
    NotFoundError,
    StaleRevisionError,
    TransferError,
    UnauthenticatedError,
    UnavailableError,
)
from protocol.files import copy_hashed

PREFIX = "/api/v1"
#: Seconds for one answer; uploads of models take as long as they take.
TIMEOUT_S = 60.0
PROBLEM_PREFIX = "urn:mooring:problem:"
#: A line of the live stream beyond this is cut off, characters.
MAX_EVENT = 1 << 20


class Api:
    """One server, as one caller. A context manager: closes its connections."""

    def __init__(self, server: str, token: str | None = None, *, transport: httpx.BaseTransport | None = None, verify: Any = True) -> None:
        headers = {"Accept": "application/json", "User-Agent": "mooring-cli"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self.server = server.rstrip("/")
        self._http = httpx.Client(base_url=self.server + PREFIX, headers=headers, timeout=TIMEOUT_S, transport=transport, verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a resource. Raises: any MooringError."""
        return _document(self._send("GET", path, params=_given(params)))

    def get_with_etag(self, path: str) -> tuple[Any, str]:
        """The JSON of a resource and its ETag, for a change that must not overwrite somebody else's."""
        answer = self._send("GET", path)
        return _document(answer), answer.headers.get("etag", "*")

    def pages(self, path: str, **params: Any) -> Iterator[Any]:
        """All items of a list, page by page."""
        after: str | None = None
        while True:
            page = self.get(path, **params, **({"next": after} if after else {}))
            yield from page["items"]
            after = page.get("next")
            if not after:
                return

    def send(
        self, method: str, path: str, body: Any = None, *, etag: str | None = None, key: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """The JSON that a change answers. Raises: any MooringError."""
        _check_numbers(body)
        headers = {**({"If-Match": etag} if etag else {}), **({"Idempotency-Key": key} if key else {})}
        return _document(self._send(method, path, json=body, headers=headers, timeout=timeout_s))

    def upload(
        self, path: str, fields: Mapping[str, str], files: Mapping[str, Path], *, progress: Callable[[int], None] | None = None
    ) -> Any:
        """The JSON that an upload answers; `progress` gets the bytes sent since it was last called."""
        handles = {name: file.open("rb") for name, file in files.items()}
        try:
            parts = {name: (files[name].name, _Counting(handle, progress), "application/octet-stream") for name, handle in handles.items()}
            return _document(
                self._send("POST", path, data=dict(fields), files=parts, timeout=httpx.Timeout(TIMEOUT_S, write=None, read=None))
            )
        finally:
            for handle in handles.values():
                handle.close()

    def download(self, path: str, target: Path, *, length: int, expected: str) -> None:
        """Write what the path answers to a new file, durably. Raises: any MooringError, also for other bytes than expected; OSError."""
        timeout = httpx.Timeout(TIMEOUT_S, read=90.0)
        try:
            with self._http.stream("GET", path, timeout=timeout) as answer, target.open("xb") as out:
                if answer.status_code >= 400:
                    answer.read()
                    raise problem_of(answer)
                size, digest = copy_hashed(answer.iter_bytes(), out, limit=length)
                out.flush()
                os.fsync(out.fileno())
        except httpx.HTTPError as error:
            raise _unreachable(self.server, error) from error
        if (size, digest) != (length, expected):
            raise TransferError(
                f"{path} brought {size} bytes with digest {digest}; wanted {length} with {expected}.", code="digest-mismatch"
            )

    def stream(self, path: str, **params: Any) -> Iterator[tuple[str, Any]]:
        """Named events of a server-sent stream, with their JSON; ends when the server closes it."""
        timeout = httpx.Timeout(TIMEOUT_S, read=90.0)
        headers = {"Accept": "text/event-stream"}
        try:
            with self._http.stream("GET", path, params=_given(params), headers=headers, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise problem_of(answer)
                yield from _events(answer.iter_lines())
        except httpx.HTTPError as error:
            raise _unreachable(self.server, error) from error

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        _check_path(path)
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise _unreachable(self.server, error) from error
        if answer.status_code >= 400:
            raise problem_of(answer)
        return answer


def _check_path(path: str) -> None:
    """Nothing for a path whose names are names. Raises: InvalidError: an empty one, or `..`, `?`, `#` would ask for something else."""
    for name in path.removeprefix("/").split("/"):
        if name in {"", ".", ".."} or not name.isprintable() or set(name) & set("?#%\\"):
            raise InvalidError(
                f"{name[:80]!r} in {path[:120]!r} is no name.", hint="Give the name or id as the list of the same command prints it."
            )


def _check_numbers(body: Any) -> None:
    """Nothing for a document that JSON can say. Raises: InvalidError: people write `nan` and `inf` where a number is wanted."""
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        raise InvalidError("One of the numbers is nan or infinite; wanted a finite one.") from None


class _Counting:
    """A file that tells how much of it was read."""

    def __init__(self, handle: Any, progress: Callable[[int], None] | None) -> None:
        self._handle, self._progress = handle, progress

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._handle.read(size)
        if self._progress is not None:
            self._progress(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def problem_of(answer: httpx.Response) -> MooringError:
    """The error that an answer of 400 or above stands for."""
    try:
        document = answer.json()
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    text = str(document.get("detail") or document.get("title") or f"The server answered {answer.status_code}.")
    code = str(document.get("code") or str(document.get("type", "")).removeprefix(PROBLEM_PREFIX)) or None
    hint = str(document["hint"]) if document.get("hint") else None
    places = [f"{item.get('pointer', '')}: {item.get('reason', '')}" for item in document.get("errors") or [] if isinstance(item, dict)]
    if more := [place for place in places if place not in text]:
        text = f"{text} ({'; '.join(more)})"
    match answer.status_code:
        case 401:
            return UnauthenticatedError(text, code=code, hint=hint)
        case 403:
            return ForbiddenError(text, code=code, hint=hint)
        case 404:
            return NotFoundError(text, code=code, hint=hint)
        case 412:
            return StaleRevisionError(text, code=code, hint=hint)
        case 409:
            return ConflictError(text, code=code, hint=hint)
        case 429 | 503:
            return UnavailableError(text, code=code)
        case status if status < 500:
            return InvalidError(text, code=code, hint=hint)
        case _:
            return MooringError(text, code=code, hint=hint)


def _unreachable(server: str, error: httpx.HTTPError) -> TransferError:
    return TransferError(
        f"{server} cannot be reached: {error or type(error).__name__}.", hint="Is `mooring serve` running there?", code="unreachable"
    )


def _document(answer: httpx.Response) -> Any:
    return answer.json() if answer.content else None


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name, data = "message", ""
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data = (data + line[5:].strip())[:MAX_EVENT]
        elif not line and data:
            yield name, json.loads(data)
            name, data = "message", ""
