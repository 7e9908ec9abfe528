"""Golden vectors: the codec, its limits, and what counts as the same answer."""

import contextlib
import math

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.errors import InvalidError
from runtime.golden import MAX_GOLDEN_BYTES, Goldens, Tolerance, compare, decode, encode, expected_for, key_of, merge, tolerance_for

KEY = "litert/2.3.0/x86_64-vnni"


def goldens(output: np.ndarray, *, vectors: int = 8, key: str = KEY, **tolerance: float) -> Goldens:
    inputs = tuple({"x": np.full((1, 2), number, np.int8)} for number in range(vectors))
    return Goldens(inputs, {key: tuple({"y": output} for _ in range(vectors))}, {"y": Tolerance(**tolerance)})


def same(one: Goldens, two: Goldens) -> bool:
    def rows(left, right):
        return len(left) == len(right) and all(
            a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)
            for a, b in zip(left, right, strict=True)
        )

    return (
        rows(one.inputs, two.inputs)
        and list(one.outputs) == list(two.outputs)
        and all(rows(one.outputs[key], two.outputs[key]) for key in one.outputs)
        and one.tolerances == two.tolerances
    )


def tensors():
    dtype = st.sampled_from(["int8", "uint8", "int32", "float32"])
    shape = arrays.array_shapes(max_dims=4, max_side=4)
    return dtype.flatmap(
        lambda name: arrays.arrays(
            name,
            shape,
            elements={"allow_nan": False, "allow_infinity": False} if name == "float32" else None,
        )
    )


@given(inputs=tensors(), outputs=tensors(), lsb=st.integers(0, 255), atol=st.floats(0, 1e6), vectors=st.integers(8, 12))
@settings(max_examples=60, deadline=None)
def test_vectors_come_back_from_their_bytes(inputs: np.ndarray, outputs: np.ndarray, lsb: int, atol: float, vectors: int):
    made = Goldens(
        tuple({"x": inputs} for _ in range(vectors)),
        {KEY: tuple({"y": outputs} for _ in range(vectors)), "onnx/1/aarch64": tuple({"y": outputs} for _ in range(vectors))},
        {"y": Tolerance(lsb=lsb, atol=atol, rtol=0.5)},
    )
    data = encode(made)
    assert same(decode(data), made)
    assert encode(decode(data)) == data


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_any_other_bytes_are_refused(data: bytes):
    with pytest.raises(InvalidError):
        decode(data)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_byte_is_vectors_or_an_invalid_error(data: st.DataObject):
    good = bytearray(encode(goldens(np.arange(4, dtype=np.float32).reshape(1, 4))))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidError):
        assert len(decode(bytes(good)).inputs) == 8


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (b"\x9f" * 50, "open length"),
        (b"\x81" * 500 + b"\x00", "too deep"),
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "too many items"),
        (b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", "cut short"),
        (b"\xc2\x41\x01", "tag"),
        (b"\xd8\x1c\x81\xd8\x1d\x00", "tag"),
        (b"\xa0\xa0", "more behind its end"),
        (b"\xa2\x61a\x00\x61a\x00", "canonical"),
        (b"\xa1\x61b\x18\x01", "canonical"),
        (b"\x01", "not a map"),
        (cbor2.dumps({"schema": "golden.9"}), "golden.9"),
    ],
)
def test_hostile_documents_are_refused_before_they_are_built(data: bytes, words: str):
    with pytest.raises(InvalidError, match=words):
        decode(data)


def test_more_bytes_than_allowed_are_refused_both_ways():
    with pytest.raises(InvalidError, match=str(MAX_GOLDEN_BYTES)):
        decode(bytes(MAX_GOLDEN_BYTES + 1))
    with pytest.raises(InvalidError, match="at most"):
        encode(goldens(np.zeros((1, 700_000), np.int8)))


@pytest.mark.parametrize("count", [0, 65])
def test_none_or_more_than_sixty_four_vectors_are_refused(count: int):
    with pytest.raises(InvalidError, match="wanted 1 to 64"):
        encode(goldens(np.zeros((1, 2), np.int8), vectors=count))


def test_expectations_that_are_not_finite_are_refused():
    with pytest.raises(InvalidError, match="not finite"):
        encode(goldens(np.array([[math.nan]], np.float32)))


class TestComparing:
    def test_integers_two_steps_off_pass_on_another_runtime_and_three_do_not(self):
        wanted = goldens(np.array([[10, 20]], np.int8))
        assert compare(wanted, [{"y": np.array([[12, 18]], np.int8)}] * 8, key="tflite/2.14.0/x86_64-vnni") == ()
        found = compare(wanted, [{"y": np.array([[13, 20]], np.int8)}] * 8, key="tflite/2.14.0/x86_64-vnni")
        assert (found[0].output, found[0].seen, found[0].allowed, found[0].unit) == ("y", 3.0, 2.0, "lsb")
        assert "differs by 3 (lsb), allowed 2" in str(found[0])

    def test_integers_are_exact_on_the_very_same_runtime(self):
        wanted = goldens(np.array([[10, 20]], np.int8))
        assert compare(wanted, [{"y": np.array([[10, 20]], np.int8)}] * 8, key=KEY) == ()
        assert len(compare(wanted, [{"y": np.array([[11, 20]], np.int8)}] * 8, key=KEY)) == 8

    def test_distances_of_small_integers_do_not_wrap_around(self):
        wanted = goldens(np.array([[-128]], np.int8))
        assert compare(wanted, [{"y": np.array([[127]], np.int8)}] * 8, key="x")[0].seen == 255

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_numbers_that_are_not_finite_never_pass(self, value: float):
        wanted = goldens(np.array([[1.0]], np.float32), atol=1e30, rtol=1e30)
        assert compare(wanted, [{"y": np.array([[value]], np.float32)}] * 8, key=KEY)[0].seen == math.inf

    def test_floats_pass_within_absolute_plus_relative_tolerance(self):
        wanted = goldens(np.array([[100.0]], np.float32), atol=0.5, rtol=0.01)
        assert compare(wanted, [{"y": np.array([[101.4]], np.float32)}] * 8, key=KEY) == ()
        assert compare(wanted, [{"y": np.array([[101.6]], np.float32)}] * 8, key=KEY) != ()

    @pytest.mark.parametrize("result", [{}, {"y": np.zeros((2, 1), np.int8)}, {"y": np.zeros((1, 2), np.float32)}])
    def test_a_missing_output_or_another_shape_or_dtype_never_passes(self, result: dict):
        assert len(compare(goldens(np.zeros((1, 2), np.int8)), [result] * 8, key=KEY)) == 8

    def test_missing_rows_never_pass(self):
        assert len(compare(goldens(np.zeros((1, 2), np.int8)), [], key=KEY)) == 8


class TestKeys:
    def test_the_same_backend_of_another_version_is_preferred_to_the_reference(self):
        row = ({"y": np.zeros((1, 1), np.int8)},) * 8
        made = Goldens(tuple({"x": np.zeros(1, np.int8)} for _ in range(8)), {KEY: row, "tflite/2.14.0/armv7l": row}, {})
        assert expected_for(made, "tflite/2.14.0/x86_64")[0] == "tflite/2.14.0/armv7l"
        assert expected_for(made, "onnx/1.0/x86_64")[0] == KEY
        assert expected_for(made, KEY)[0] == KEY

    def test_a_key_names_backend_version_and_instruction_set(self):
        assert key_of("onnx", "1.32.0").startswith("onnx/1.32.0/")

    def test_merging_keeps_both_and_refuses_other_inputs(self):
        one, two = goldens(np.zeros((1, 2), np.int8)), goldens(np.ones((1, 2), np.int8), key="tflite/2.14.0/x86_64")
        assert list(merge(one, two).outputs) == [KEY, "tflite/2.14.0/x86_64"]
        with pytest.raises(InvalidError, match="different input vectors"):
            merge(one, goldens(np.zeros((1, 2), np.int8), vectors=9))


def test_floats_on_a_quantization_grid_may_be_two_steps_off_and_others_only_a_little():
    steps = np.arange(-20, 20, dtype=np.float32).reshape(1, 40) * np.float32(0.25)
    assert tolerance_for([steps]).atol == pytest.approx(0.5, rel=0.02)
    noise = np.random.default_rng(1).normal(size=(1, 40)).astype(np.float32)
    assert tolerance_for([noise]) == Tolerance()
    assert tolerance_for([np.zeros((1, 4), np.int8)]) == Tolerance()
