"""What other programs send to `mooring-agent serve`: the head of a request, its packing, and its tensors."""

import zlib
from contextlib import suppress

import atheris

from fuzz.running import start

with atheris.instrument_imports(include=["agent.serving"]):
    from agent.serving.api import read_body, route
    from agent.serving.http import RefusedError, parse_head
    from agent.serving.tensors import build_answer, parse_request

from runtime.base import TensorSpec

MAX_BYTES = 64 << 10
INPUTS = (
    TensorSpec("pixels", (1, 2, 2), "float32"),
    TensorSpec("ages", (3,), "int8", scale=0.5, zero_point=-3),
    TensorSpec("on", (2,), "bool"),
)
OUTPUTS = (TensorSpec("pixels", (1, 2, 2), "float32"), TensorSpec("ages", (3,), "int8"))


def run(data: bytes) -> None:
    """One input; its first byte says which part the rest is."""
    if data:
        (as_head, as_json, as_binary, as_packed)[data[0] % 4](data[1:])


def as_head(data: bytes) -> None:
    """What is accepted names a path of ours or is told why not."""
    with suppress(RefusedError):
        head = parse_head(data)
        assert head.path.startswith("/")
        assert head.length >= 0
        route(head)


def as_json(data: bytes) -> None:
    """A body that is all JSON."""
    _parse(data, None)


def as_binary(data: bytes) -> None:
    """Two bytes say how much of the rest is JSON."""
    if len(data) > 2:
        _parse(data[2:], int.from_bytes(data[:2]))


def as_packed(data: bytes) -> None:
    """What unpacks is no longer than allowed."""
    head = parse_head(b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Encoding: deflate")
    with suppress(RefusedError):
        assert len(read_body(head, memoryview(data), max_bytes=MAX_BYTES)) <= MAX_BYTES
    assert bytes(read_body(head, memoryview(zlib.compress(data)), max_bytes=MAX_BYTES)) == data


def _parse(data: bytes, length: int | None) -> None:
    """What is accepted fits the model, and can be answered unless a number is not finite."""
    with suppress(RefusedError):
        request = parse_request(memoryview(bytearray(data)), length, inputs=INPUTS, outputs=OUTPUTS)
        for spec in INPUTS:
            array = request.inputs[spec.name]
            assert (array.shape, array.dtype.name) == (spec.shape, spec.dtype)
        build_answer(request, request.inputs, model="m", version="1")


if __name__ == "__main__":
    start("serving", run, max_bytes=MAX_BYTES, dictionary=True)
