"""Tensors: what fits becomes an array without a copy, what does not is named, before any array is made."""

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving.http import RefusedError
from agent.serving.tensors import DTYPES, InferRequest, build_answer, describe, parse_request
from runtime.base import TensorSpec

PIXELS = TensorSpec("pixels", (1, 2, 2), "float32")
AGES = TensorSpec("ages", (3,), "int8", scale=0.5, zero_point=-3)
SCORES = TensorSpec("scores", (1, 2), "float32")


def asked(document: Any, binary: bytes = b"", *, inputs: tuple[TensorSpec, ...] = (PIXELS,), length: int | None = None) -> InferRequest:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    json_length = (len(text) if binary else None) if length is None else length
    return parse_request(memoryview(bytearray(text + binary)), json_length, inputs=inputs, outputs=(SCORES,))


def entry(**change: Any) -> dict[str, Any]:
    return {"name": "pixels", "shape": [1, 2, 2], "datatype": "FP32", "data": [0, 1.5, 2, -3]} | change


def of_size(size: Any, **change: Any) -> dict[str, Any]:
    made = entry(parameters={"binary_data_size": size}, **change)
    del made["data"]
    return made


def refusal(document: Any, binary: bytes = b"", **given_: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        asked(document, binary, **given_)
    assert caught.value.status == 400
    return caught.value.text


def test_numbers_in_json_become_the_input():
    request = asked({"id": "a", "inputs": [entry()]})
    assert request.id == "a"
    np.testing.assert_array_equal(request.inputs["pixels"], np.array([[[0, 1.5], [2, -3]]], np.float32))
    assert request.outputs == (("scores", False),)


def test_nested_numbers_are_the_same():
    request = asked({"inputs": [entry(data=[[[0, 1.5], [2, -3]]])]})
    assert request.inputs["pixels"].tolist() == [[[0.0, 1.5], [2.0, -3.0]]]


def test_what_a_large_request_was_read_from_is_let_go_before_it_is_inferred():
    assert asked({"inputs": [entry()]}).source is not None
    assert asked({"inputs": [entry(parameters={"note": "x" * 100_000})]}).source is None


def test_binary_tensors_follow_in_the_order_of_inputs():
    first, second = struct.pack("<4f", 1, 2, 3, 4), struct.pack("3b", -1, 0, 1)
    ages = {"name": "ages", "shape": [3], "datatype": "INT8", "parameters": {"binary_data_size": 3}}
    request = asked({"inputs": [of_size(16), ages]}, first + second, inputs=(PIXELS, AGES))
    assert request.inputs["pixels"].ravel().tolist() == [1, 2, 3, 4]
    assert request.inputs["ages"].tolist() == [-1, 0, 1]


def test_an_aligned_tensor_is_not_copied_and_another_one_is():
    text = json.dumps({"inputs": [of_size(16)]}).encode()
    for pad in range(8):
        store = bytearray(pad) + text + struct.pack("<4f", 1, 2, 3, 4)
        request = parse_request(memoryview(store)[pad:], len(text), inputs=(PIXELS,), outputs=(SCORES,))
        array = request.inputs["pixels"]
        assert array.flags.aligned
        assert array.ravel().tolist() == [1, 2, 3, 4]
        is_shared = np.shares_memory(array, np.frombuffer(store, np.uint8))
        assert is_shared == ((np.frombuffer(store, np.uint8).ctypes.data + pad + len(text)) % 4 == 0)


@pytest.mark.parametrize(
    ("document", "binary", "words"),
    [
        (b"{", b"", "not JSON"),
        (b"[1]", b"", "list"),
        (b"\xff\xfe", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        ({}, b"", "inputs is missing"),
        ({"inputs": [1]}, b"", "list of objects"),
        ({"inputs": []}, b"", "'pixels' is missing"),
        ({"inputs": [entry()] * 17}, b"", "17 entries"),
        ({"inputs": [entry(), entry()]}, b"", "named twice"),
        ({"inputs": [entry(name="other")]}, b"", "not known; wanted pixels"),
        ({"inputs": [entry(name=[])]}, b"", "not known"),
        ({"inputs": [entry(datatype="FP16")]}, b"", "'FP16'; wanted FP32"),
        ({"inputs": [entry(datatype="BYTES", data=["a"] * 4)]}, b"", "'BYTES'; wanted FP32"),
        ({"inputs": [entry(shape=[1, 4])]}, b"", "wanted [1, 2, 2]"),
        ({"inputs": [entry(shape=[1, 2, -2])]}, b"", "wanted [1, 2, 2]"),
        ({"inputs": [entry(shape=[True, 2, 2])]}, b"", "wanted [1, 2, 2]"),
        ({"inputs": [entry(shape=[1, 2, 2.5])]}, b"", "wanted [1, 2, 2]"),
        ({"inputs": [entry(shape=[1 << 40, 1 << 40])]}, b"", "wanted [1, 2, 2]"),
        ({"inputs": [entry(shape="1")]}, b"", "wanted [1, 2, 2]"),
        ({"inputs": [entry(data=[1, 2, 3])]}, b"", "shape [3]"),
        ({"inputs": [entry(data=[[1, 2], [3]])]}, b"", "different lengths"),
        ({"inputs": [entry(data=[[1, 2], [3, 4]])]}, b"", "shape [2, 2]"),
        ({"inputs": [entry(data=["a", "b", "c", "d"])]}, b"", "not FP32"),
        ({"inputs": [entry(data=[None] * 4)]}, b"", "not FP32"),
        ({"inputs": [entry(data=[True] * 4)]}, b"", "not FP32"),
        ({"inputs": [entry(data=[1e39, 0, 0, 0])]}, b"", "beyond FP32"),
        ({"inputs": [entry(data=[10**400, 0, 0, 0])]}, b"", "not FP32"),
        ({"inputs": [entry(data="0")]}, b"", "no data"),
        ({"inputs": [entry(data=None)]}, b"", "no data"),
        (b'{"inputs": [{"name": "pixels", "shape": [1,2,2], "datatype": "FP32", "data": [NaN,0,0,0]}]}', b"", "not JSON"),
        (b'{"inputs": [{"name": "pixels", "shape": [1,2,2], "datatype": "FP32", "data": [-Infinity,0,0,0]}]}', b"", "not JSON"),
        (b'{"inputs": [{"name": "pixels", "shape": [1,2,2], "datatype": "FP32", "data": [1e999,0,0,0]}]}', b"", "beyond FP32"),
        ({"inputs": [of_size(15)]}, bytes(15), "binary_data_size 15; its shape wants 16"),
        ({"inputs": [of_size(-16)]}, bytes(16), "binary_data_size -16"),
        ({"inputs": [of_size(True)]}, bytes(16), "binary_data_size True"),
        ({"inputs": [of_size("16")]}, bytes(16), "binary_data_size 16"),
        ({"inputs": [of_size(1 << 62)]}, bytes(16), "its shape wants 16"),
        ({"inputs": [of_size(16)]}, bytes(8), "8 are left"),
        ({"inputs": [of_size(16)]}, bytes(24), "24 bytes of tensors came"),
        ({"inputs": [of_size(16, data=[0] * 4) | {"data": [0] * 4}]}, bytes(16), "both"),
        ({"inputs": [entry(parameters=[])]}, b"", "not an object"),
        ({"inputs": [entry(parameters={"shared_memory_region": "a"})]}, b"", "shared memory"),
        ({"inputs": [entry()], "parameters": {"sequence_id": 3}}, b"", "sequences"),
        ({"inputs": [entry()], "outputs": [{"name": "scores", "parameters": {"classification": 3}}]}, b"", "classification"),
        ({"inputs": [entry()], "outputs": [{"name": "x"}]}, b"", "'x' is not known; wanted scores"),
        ({"inputs": [entry()], "outputs": [{"name": "scores"}, {"name": "scores"}]}, b"", "named twice"),
        ({"inputs": [entry()], "outputs": {}}, b"", "list of objects"),
        ({"inputs": [entry()], "id": 5}, b"", "id is not a text"),
        ({"inputs": [entry()], "id": "x" * 1000}, b"", "id is not a text"),
    ],
)
def test_what_does_not_fit_is_named(document, binary, words):
    assert words in refusal(document, binary)


def test_a_json_length_beyond_the_body_is_refused():
    assert "Inference-Header-Content-Length is 999" in refusal({"inputs": [entry()]}, length=999)


@pytest.mark.parametrize("data", [[1, 2, 128], [1, 2, -129], [1, 2, 1.5], [1, 2, 2**70]])
def test_integers_must_fit_their_type(data):
    ages = {"name": "ages", "shape": [3], "datatype": "INT8", "data": data}
    assert "INT8" in refusal({"inputs": [ages]}, inputs=(AGES,))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([1, 2, 200], "numbers from 1 to 200, beyond INT8; wanted -128 to 127"),
        ([1, 2, 1.5], "numbers with a fraction in its data, which is not INT8"),
        (["a", "b", "c"], "texts in its data, which is not INT8"),
    ],
)
def test_data_of_another_type_is_told_with_what_was_seen(data, words):
    ages = {"name": "ages", "shape": [3], "datatype": "INT8", "data": data}
    assert words in refusal({"inputs": [ages]}, inputs=(AGES,))


def test_bool_bytes_are_0_or_1():
    spec = TensorSpec("on", (2,), "bool")
    document = {"inputs": [{"name": "on", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}]}
    assert asked(document, b"\1\0", inputs=(spec,)).inputs["on"].tolist() == [True, False]
    assert "neither 0 nor 1" in refusal(document, b"\1\2", inputs=(spec,))


def test_fp16_is_binary_only():
    spec = TensorSpec("half", (2,), "float16")
    document = {"inputs": [{"name": "half", "shape": [2], "datatype": "FP16", "parameters": {"binary_data_size": 4}}]}
    assert asked(document, np.array([1, -2], "<f2").tobytes(), inputs=(spec,)).inputs["half"].tolist() == [1.0, -2.0]
    assert "FP16" in refusal({"inputs": [{"name": "half", "shape": [2], "datatype": "FP16", "data": [1, 2]}]}, inputs=(spec,))
    with pytest.raises(RefusedError, match="in binary"):
        build_answer(InferRequest(None, {}, (("half", False),)), {"half": np.zeros(2, np.float16)}, model="m", version="1")


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_each_type_goes_out_and_comes_back(datatype):
    array = np.array([[0, 1, 1], [1, 0, 1]], DTYPES[datatype])
    body = build_answer(InferRequest("7", {}, (("x", True),)), {"x": array}, model="m", version="1.0")
    document = json.loads(body.json)
    assert document["outputs"] == [{"name": "x", "datatype": datatype, "shape": [2, 3], "parameters": {"binary_data_size": array.nbytes}}]
    spec = TensorSpec("x", (2, 3), DTYPES[datatype])
    sent = json.dumps({"inputs": document["outputs"]}).encode()
    request = parse_request(memoryview(bytearray(sent + b"".join(body.tensors))), len(sent), inputs=(spec,), outputs=(SCORES,))
    np.testing.assert_array_equal(request.inputs["x"], array)


def test_outputs_are_binary_as_asked_each_by_itself():
    request = asked({"inputs": [entry()], "parameters": {"binary_data_output": True}})
    assert request.outputs == (("scores", True),)
    chosen = [{"name": "scores", "parameters": {"binary_data": False}}]
    assert asked({"inputs": [entry()], "parameters": {"binary_data_output": True}, "outputs": chosen}).outputs == (("scores", False),)
    body = build_answer(
        InferRequest(None, {}, (("b", True), ("a", False), ("c", True))),
        {"a": np.float32([1]), "b": np.uint8([2]), "c": np.uint8([3])},
        model="m",
        version="1",
    )
    assert b"".join(body.tensors) == b"\2\3"
    assert json.loads(body.json)["outputs"][1] == {"name": "a", "datatype": "FP32", "shape": [1], "data": [1.0]}


def test_an_answer_that_json_cannot_carry_is_an_error():
    with pytest.raises(RefusedError) as caught:
        build_answer(InferRequest(None, {}, (("a", False),)), {"a": np.float32([np.nan])}, model="m", version="1")
    assert caught.value.status == 500


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_only_numbers_in_json_must_be_finite(number):
    names = (("a", True), ("NaN, Infinity", False))
    outputs = {"a": np.float32([number]), "NaN, Infinity": np.float64([1.5])}
    body = build_answer(InferRequest(None, {}, names), outputs, model="m", version="1")
    assert json.loads(body.json)["outputs"][1]["data"] == [1.5]
    with pytest.raises(RefusedError, match="Output 'a' has numbers that are not finite"):
        build_answer(InferRequest(None, {}, (("NaN, Infinity", False), ("a", False))), outputs, model="m", version="1")


def test_metadata_tells_scales():
    assert describe(AGES) == {"name": "ages", "datatype": "INT8", "shape": [3], "parameters": {"scale": 0.5, "zero_point": -3}}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "name", "data", "shape", "datatype", "parameters", "binary_data_size"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(_JSON, st.binary(max_size=20), st.none() | st.integers(0, 400))
def test_any_document_is_answered_or_refused(document, binary, length):
    for one in (document, {"inputs": document}, {"inputs": [entry() | (document if isinstance(document, dict) else {})]}):
        with suppress(RefusedError):
            asked(one, binary, length=length)
