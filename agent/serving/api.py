"""The calls of the Open Inference Protocol (KServe v2 REST): from a request to its answer, whoever carries the bytes."""

import functools
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

from agent.serving.http import Head, RefusedError, number, shown
from agent.serving.models import Entry, ServedModel, Shelf
from agent.serving.tensors import Body, InferRequest, describe, parse_request

EXTENSIONS = ("binary_tensor_data",)
#: Answers below it are not compressed: it costs more than the bytes on a loopback.
COMPRESS_BYTES = 1024
_COMPRESS_LEVEL = 1
_JSON: tuple[str, str] = ("Content-Type", "application/json")
_MODEL_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(ready|infer))?")
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
#: Parts of the protocol, or of Triton's, that are refused with their name.
_NOT_OFFERED = (
    (re.compile(r"/v2/(system|cuda)sharedmemory(/.*)?"), "Shared memory"),
    (re.compile(r"/v2/repository/.*"), "Model control"),
    (re.compile(r"/v2/models(/[^/]+(/versions/[^/]+)?)?/(config|stats|trace/setting)"), "This extension"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the model that it names, for infer and ready and metadata."""

    verb: str
    line: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and body parts."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    parts: tuple[memoryview | bytes, ...] = ()


def route(head: Head) -> Call:
    """What is asked. Raises: RefusedError 404, 405."""
    return _route(head.method, head.path)


@functools.lru_cache(maxsize=64)
def _route(method: str, path: str) -> Call:
    found = _MODEL_PATH.fullmatch(path)
    if found is not None:
        call = Call(found[3] or "model", found[1], found[2] or "")
    elif path in ("/v2/health/live", "/v2/health/ready"):
        call = Call("live" if path.endswith("live") else "all-ready")
    elif path == "/v2":
        call = Call("server")
    else:
        for pattern, words in _NOT_OFFERED:
            if pattern.fullmatch(path):
                raise RefusedError(404, f"{words} is not offered here.")
        raise RefusedError(404, f"{path[:200]!r} is not here; see /v2 and /v2/models/LINE.")
    allowed = ("POST",) if call.verb == "infer" else ("GET", "HEAD")
    if method not in allowed:
        raise RefusedError(405, f"{method} is not for {path[:200]}; wanted {allowed[0]}.", headers=(("Allow", ", ".join(allowed)),))
    return call


def look(call: Call, shelf: Shelf, *, version: str) -> Answer:
    """The answer to everything but infer. Raises: RefusedError."""
    match call.verb:
        case "live":
            return Answer(200)
        case "all-ready":
            entries = shelf.entries()
            waiting = [entry.text for entry in entries.values() if entry.model is None]
            if waiting or not entries:
                raise RefusedError(503, " ".join(waiting) or "No line has a release here.")
            return Answer(200)
        case "server":
            return _json(200, {"name": "mooring-agent", "version": version, "extensions": list(EXTENSIONS)})
        case "ready":
            find_model(call, shelf)
            return Answer(200)
        case _:
            model = find_model(call, shelf)
            return _json(
                200,
                {
                    "name": model.line,
                    "versions": [model.release],
                    "platform": model.platform,
                    "inputs": [describe(tensor) for tensor in model.inputs],
                    "outputs": [describe(tensor) for tensor in model.outputs],
                },
            )


def find_model(call: Call, shelf: Shelf) -> ServedModel:
    """The model that the call names. Raises: RefusedError 404 when it is not the active release, 503 when none answers."""
    entry: Entry | None = shelf.entry(call.line)
    if entry is None:
        raise RefusedError(404, f"There is no model {call.line[:80]!r} here; there are {', '.join(shelf.entries()) or 'none'}.")
    if entry.model is None:
        raise RefusedError(503, entry.text)
    if call.version and call.version != entry.model.release:
        raise RefusedError(404, f"{call.line} runs release {entry.model.release}, not {call.version[:80]!r}.")
    return entry.model


def read_body(head: Head, body: memoryview, *, max_bytes: int) -> memoryview:
    """The body, unpacked when it is compressed. Raises: RefusedError 400, 413, 415."""
    coding = head.headers.get(b"content-encoding", b"identity").lower()
    if coding == b"identity":
        return body
    if coding not in _WINDOW_BITS:
        raise RefusedError(415, f"Content-Encoding {shown(coding[:40])} is not known; wanted gzip, deflate or none.")
    unpacker = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        data = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RefusedError(400, f"The body is not {coding.decode()}: {error}.") from None
    if len(data) > max_bytes:
        raise RefusedError(413, f"The body unpacks to more than {max_bytes} bytes.")
    if not unpacker.eof or unpacker.unused_data:
        raise RefusedError(400, f"The {coding.decode()} body is cut short or has bytes behind its end.")
    return memoryview(data)


def read_request(head: Head, body: memoryview, model: ServedModel) -> InferRequest:
    """What is asked of the model. Raises: RefusedError."""
    return parse_request(body, number(head.headers, b"inference-header-content-length"), inputs=model.inputs, outputs=model.outputs)


def pack(head: Head, body: Body) -> Answer:
    """The answer of an inference, compressed when the client takes it and it is worth it."""
    headers: tuple[tuple[str, str], ...] = (_JSON,)
    if body.tensors:
        headers = (("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", str(len(body.json))))
    parts = (body.json, *body.tensors)
    coding = _accepted_coding(head.headers.get(b"accept-encoding", b""))
    if coding is None or sum(map(len, parts)) < COMPRESS_BYTES:
        return Answer(200, headers, parts)
    packer = zlib.compressobj(_COMPRESS_LEVEL, wbits=_WINDOW_BITS[coding])
    packed = b"".join([*map(packer.compress, parts), packer.flush()])
    return Answer(200, (*headers, ("Content-Encoding", coding.decode())), (packed,))


def _accepted_coding(text: bytes) -> bytes | None:
    if not text:
        return None
    offered = [part.strip().lower() for part in text.split(b",")[:16]]
    return next((coding for coding in (b"gzip", b"deflate") if coding in offered), None)


def _json(status: int, document: dict[str, Any]) -> Answer:
    return Answer(status, (_JSON,), (json.dumps(document).encode(),))
