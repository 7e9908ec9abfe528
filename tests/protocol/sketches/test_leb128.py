"""Many numbers as LEB128, all at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.sketches import leb128

#: Each example is cheap; so are the tests together.
FEW = settings(max_examples=40)

LARGEST = 2**63 - 1
numbers = st.one_of(st.integers(0, 3), st.integers(100, 300), st.integers(0, LARGEST))


@pytest.mark.parametrize(
    ("number", "wanted"),
    # DWARF 5, table 7.5, and the ends
    [(0, "00"), (2, "02"), (127, "7f"), (128, "8001"), (129, "8101"), (12857, "b964"), (LARGEST, "ffffffffffffffff7f")],
)
def test_numbers_of_the_standard_have_its_bytes(number: int, wanted: str):
    assert leb128.encode(np.array([number])).hex() == wanted
    assert leb128.decode(bytes.fromhex(wanted), 1).tolist() == [number]


@FEW
@given(st.lists(numbers, max_size=60))
def test_what_was_encoded_is_decoded(values: list[int]):
    data = leb128.encode(np.array(values, dtype=np.int64))
    assert leb128.decode(data, len(values)).tolist() == values


@FEW
@given(st.lists(st.lists(st.one_of(st.integers(0, 200), st.integers(0, 2**50)), min_size=5, max_size=5), max_size=12), st.integers(1, 60))
def test_a_sum_of_encodings_is_the_sum_of_numbers(rows: list[list[int]], chunk_bytes: int):
    parts = [leb128.encode(np.array(row, dtype=np.int64)) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leb128, "_CHUNK_BYTES", chunk_bytes)
        assert leb128.summed(parts, 5).tolist() == [sum(column) for column in zip(*rows, strict=True)] if rows else [0] * 5


@pytest.mark.parametrize(
    ("data", "count", "code"),
    [
        ("80", 1, "leb128"),
        ("0080", 2, "leb128"),
        ("ffffffffffffffffff00", 1, "leb128"),
        ("ffffffffffffffffff01", 1, "leb128"),
        ("8000", 1, "leb128"),
        ("818000", 1, "leb128"),
        ("0102", 1, "length"),
        ("0102", 3, "length"),
        ("", 1, "length"),
        ("01", 0, "length"),
    ],
)
def test_what_is_cut_off_too_long_or_of_another_number_is_refused(data: str, count: int, code: str):
    with pytest.raises(InvalidError) as refused:
        leb128.decode(bytes.fromhex(data), count)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (["0102", "01"], "length"),
        (["010203", "01"], "length"),
        (["0180", "0101"], "leb128"),
        (["0102", ""], "length"),
        (["8101", "0102"], "length"),
        (["01" + "ff" * 9 + "01"], "leb128"),
    ],
)
def test_a_sum_refuses_parts_that_hold_another_number(parts: list[str], code: str):
    with pytest.raises(InvalidError) as refused:
        leb128.summed([bytes.fromhex(part) for part in parts], 2)
    assert refused.value.code == code


def test_a_number_below_zero_has_no_bytes():
    with pytest.raises(InvalidError, match="wanted numbers"):
        leb128.encode(np.array([1, -1]))


@FEW
@given(st.lists(st.integers(-(2**62), 2**62 - 1), max_size=20))
def test_signed_numbers_come_back(values: list[int]):
    array = np.array(values, dtype=np.int64)
    folded = leb128.zigzag(array)
    assert (folded >= 0).all()
    assert leb128.unzigzag(folded).tolist() == values
