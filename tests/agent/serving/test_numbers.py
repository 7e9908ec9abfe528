"""Numbers of JSON: what is written the quick way is to the bit what the general way makes of it, and the rest is left to that."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import from_json

from agent.serving.http import RefusedError
from agent.serving.numbers import find_written, may_have_booleans
from agent.serving.tensors import DATATYPES, array_in_general, parse_request
from runtime.base import TensorSpec

SHAPES = [(4,), (2, 2), (1, 2, 3), (1, 1, 4), (1,), (), (0,), (2, 0)]
#: Edges of all types, of what a double holds, and of the grammar; some are no numbers, some no JSON.
EDGES = [edge + step for bits in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64) for edge in (1 << bits, -(1 << bits)) for step in (-1, 0, 1)]
NUMBERS = [*map(str, EDGES), "0", "-0", "1", "0.0", "-0.0", "1.5", "1e2", "1E-2", "0.1", "16777217", "16777216.5", "9007199254740993.0"]
NUMBERS += [
    "3.4028235e38",
    "3.4028236e38",
    "3.5e38",
    "1e39",
    "1.7976931348623157e308",
    "1e309",
    "-1e309",
    "1e-45",
    "1e-46",
    "4.9e-324",
    "1e-400",
]
NUMBERS += ["1" * 400, "0." + "3" * 400]
OTHERS = [
    "null",
    "true",
    "false",
    '"1"',
    '"true"',
    "[]",
    "[1]",
    "{}",
    '{"a": 1}',
    "NaN",
    "-Infinity",
    "01",
    "+1",
    ".5",
    "1.",
    "0x1",
    "1_0",
    "",
    "1 2",
]


def body_of(data: str, spec: TensorSpec, *, other: str) -> bytes:
    """A request; `other` stands where nothing looks, behind the data."""
    text = '{{"inputs": [{{"name": "x", "shape": {}, "datatype": "{}", "data": {}}}], "other": {}}}'
    return text.format(list(spec.shape), DATATYPES[spec.dtype], data, other).encode()


def outcome(make: Callable[[], np.ndarray]) -> tuple[object, ...]:
    """The array's bytes and make, or the refusal."""
    try:
        array = make()
    except RefusedError as error:
        return error.status, error.text
    return array.tobytes(), array.dtype, array.shape, array.flags.aligned, array.flags.writeable, array.flags.c_contiguous


def asked(data: str, spec: TensorSpec, *, other: str) -> tuple[object, ...]:
    """What a request gives."""
    body = memoryview(bytearray(body_of(data, spec, other=other)))
    return outcome(lambda: parse_request(body, None, inputs=(spec,), outputs=()).inputs["x"])


def in_general(data: str, spec: TensorSpec) -> tuple[object, ...] | None:
    """What the general way makes of it; None: it does not come so far."""
    try:
        found = from_json(body_of(data, spec, other="null"), allow_inf_nan=False)["inputs"][0]["data"]
    except ValueError:
        return None
    return outcome(lambda: array_in_general(found, spec)) if isinstance(found, list) and spec.dtype != "float16" else None


def nested(numbers: list[str], shape: tuple[int, ...]) -> str:
    """Lists of lists of the shape, as far as the numbers go."""
    for size in shape[:0:-1]:
        numbers = [f"[{', '.join(numbers[at : at + size])}]" for at in range(0, len(numbers), size or 1)]
    return f"[{', '.join(numbers)}]"


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, TensorSpec]:
    """Data that fits or nearly fits an input."""
    spec = TensorSpec("x", draw(st.sampled_from(SHAPES)), draw(st.sampled_from(sorted(DATATYPES))))
    plain = st.integers(-200, 300).map(str) | st.floats(-1e6, 1e6).map(repr)
    kind = draw(st.sampled_from([plain, st.integers(0, 127).map(str), plain | st.sampled_from(NUMBERS), st.sampled_from(NUMBERS + OTHERS)]))
    count = draw(st.sampled_from([math.prod(spec.shape)] * 5 + [3, 5]))
    numbers = draw(st.lists(kind, min_size=count, max_size=count))
    if numbers and draw(st.integers(0, 4)) == 0:
        numbers[draw(st.integers(0, count - 1))] = draw(st.sampled_from(OTHERS))
    return nested(numbers, draw(st.just((count,)) | st.just(spec.shape) | st.sampled_from(SHAPES))), spec


@given(cases())
@example(("[[1], [2, 3, 4]]", TensorSpec("x", (2, 2), "float32")))
@example(("[[1, 2], 3]", TensorSpec("x", (2, 2), "float32")))
@example(('[[1, 2], {"3": 4, "5": 6}]', TensorSpec("x", (2, 2), "float32")))
@example(("[]", TensorSpec("x", (0,), "int8")))
@example(("[[], []]", TensorSpec("x", (2, 0), "int8")))
@example(("[9007199254740993, 0, 0, 0]", TensorSpec("x", (4,), "float32")))
@example(("[1152921573326323713, 0, 0, 0]", TensorSpec("x", (4,), "float32")))  # over a double it rounds to another float
@example(("[9223372036854775807, 0, 0, 0]", TensorSpec("x", (4,), "int64")))
@example(("[9223372036854775808, 0, 0, 0]", TensorSpec("x", (4,), "uint64")))
@example(("[3.5e38, 0, 0, 0]", TensorSpec("x", (4,), "float32")))
def test_both_ways_give_the_same_array_or_the_same_refusal(case):
    data, spec = case
    found = asked(data, spec, other="null")
    assert in_general(data, spec) in (None, found)
    assert asked(data, spec, other="true") == found  # whoever looks for booleans sees that this is none of the numbers


@given(st.text('0123456789.eE+-[], ntf"', max_size=30), st.sampled_from(sorted(DATATYPES)))
def test_both_ways_say_the_same_of_damaged_data(data, dtype):
    spec = TensorSpec("x", (2,), dtype)
    found = asked(data, spec, other="null")
    assert in_general(data, spec) in (None, found)
    assert asked(data, spec, other="true") == found


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
@pytest.mark.parametrize("data", [[0, 1, 2, 100], [[[0, 1], [2, 100]]]])
def test_plain_numbers_go_the_quick_way_flat_and_nested(data, dtype):
    found = find_written(data, TensorSpec("x", (1, 2, 2), dtype))
    np.testing.assert_array_equal(found, np.array([[[0, 1], [2, 100]]], dtype), strict=True)


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("float32", [1, 2, 3]),
        ("float32", [1, 2, 3, None]),
        ("float32", [1, 2, 3, "4"]),
        ("float32", [1, 2, 3, [4]]),
        ("float32", [1, 2, 3, 1 << 53]),
        ("float32", [1, 2, 3, 1e39]),
        ("float64", [1, 2, 3, -1.5e300]),
        ("float64", [1, 2, 3, 10**400]),
        ("float64", [1, 2, 3, math.inf]),
        ("int8", [1, 2, 3, 128]),
        ("int8", [1, 2, 3, 4.0]),
        ("uint8", [1, 2, 3, -1]),
        ("int64", [1, 2, 3, 1 << 63]),
        ("uint64", [1, 2, 3, 4]),
        ("bool", [1, 0, 1, 0]),
        ("float32", [1, 2, 3, True]),
        ("uint8", [[[False, 1], [2, 3]]]),
        ("float32", [[1, 2], [3, 4]]),
        ("float32", [[[1], [2, 3, 4]]]),
        ("float32", [[[1, 2], {"a": 3, "b": 4}]]),
    ],
)
def test_what_is_not_plain_is_left_to_the_general_way(dtype, data):
    assert find_written(data, TensorSpec("x", (1, 2, 2), dtype)) is None


def test_booleans_are_seen_wherever_they_stand():
    assert may_have_booleans(b"[1, true]")
    assert may_have_booleans(b'[{"a":false}]')
    assert not may_have_booleans(b'["TRUE", 1, 0]')
