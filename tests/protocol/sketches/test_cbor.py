"""The subset of CBOR that sketches are written in."""

import math
import subprocess
import sys
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.sketches import cbor

#: Each example is cheap; so are the tests together.
FEW = settings(max_examples=40)

keys = st.integers(0, 2**40) | st.text(max_size=5)
values = st.recursive(
    st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=30)
    | st.text(max_size=10)
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def decoded(data: bytes) -> Any:
    return cbor.decode(data, max_bytes=1000, what="This")


@FEW
@given(values)
def test_what_was_encoded_is_decoded(value: Any):
    try:
        found = cbor.decode(cbor.encode(value), max_bytes=10_000, what="This")
    except InvalidError as error:
        assert "nested" in error.message  # noqa: PT017 - the one reason there may be
    else:
        assert found == value


@FEW
@given(values)
def test_bytes_are_those_of_cbor2s_canonical_form(value: Any):
    assert cbor.encode(value) == cbor2.dumps(value, canonical=True)


@pytest.mark.parametrize("value", [math.nan, -math.inf, 5e-324, 65504.0, 65520.0, 3.4028234663852886e38, 1e39, -0.0, 2**-24, 2**-25])
def test_a_float_has_the_shortest_form_that_holds_it(value: float):
    assert cbor.encode(value) == cbor2.dumps(value, canonical=True)


@pytest.mark.parametrize("value", [{1, 2}, object(), 2**64, -(2**64) - 1, [1, {2: b"x", 3: 1j}]])
def test_what_has_no_form_here_is_not_written(value: Any):
    with pytest.raises(TypeError):
        cbor.encode(value)


def test_writing_and_reading_sketches_brings_no_other_encoder():
    script = "import sys, protocol.sketches.codec, protocol.sketches.reference; print('cbor2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


@FEW
@given(st.binary(max_size=60))
def test_what_is_accepted_has_these_bytes_alone(data: bytes):
    try:
        value = decoded(data)
    except InvalidError as error:
        assert error.code == "malformed"  # noqa: PT017 - no other error is raised
    else:
        assert cbor.encode(value) == data


@pytest.mark.parametrize(
    "data",
    [
        "",
        "0101",  # more follows
        "1801",  # 1 in two bytes
        "a2010a010b",  # a key twice
        "a2020a010b",  # keys out of order
        "9f01ff",  # a list without a length
        "c100",  # a tag
        "d8236128",  # a tag that asks for a regular expression
        "a1420102f6",  # bytes as a key
        "61ff",  # no UTF-8
        "5bffffffffffffffff",
        "9bffffffffffffffff",
        "fb3ff0000000000000",  # 1.0 in eight bytes
        "f7",  # undefined
        "818181818181818101",  # nested too deep
        "1c",
    ],
)
def test_everything_else_is_refused(data: str):
    with pytest.raises(InvalidError) as refused:
        decoded(bytes.fromhex(data))
    assert refused.value.code == "malformed"


def test_too_many_bytes_are_refused_unread():
    with pytest.raises(InvalidError) as refused:
        decoded(b"\xc1" * 1001)
    assert refused.value.code == "too-large"


def test_numbers_of_each_width_are_read():
    for number in (0.5, 1e-3, math.inf, 3.5e38):
        assert decoded(cbor2.dumps(number, canonical=True)) == number
