"""Tensors of the Open Inference Protocol: requests to arrays, arrays to answers. Pure; every length is checked before an array is made.

Binary tensors are little endian and row major, and become arrays over the request's own bytes, without a copy where they lie aligned.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json

from agent.serving.http import RefusedError
from agent.serving.numbers import find_written, may_have_booleans
from runtime.base import Array, TensorSpec

#: numpy's names by the protocol's.
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DATATYPES = {numpy_name: name for name, numpy_name in DTYPES.items()}
#: By numpy's own objects, whose names are dear to ask for.
_DATATYPE_OF = {np.dtype(numpy_name): name for name, numpy_name in DTYPES.items()}
#: Known to the protocol, and to no model here.
BYTES = "BYTES"
#: Tensors that one request may name.
MAX_TENSORS = 16
#: Memory that no array of ours may begin beside, in bytes: the widest element.
ALIGNMENT = 16
_MAX_ID = 512
#: Bytes of JSON whose numbers may take memory beside the inference.
_KEPT_BYTES = 64 * 1024
_REFUSED_PARAMETERS = {
    "shared_memory_region": "shared memory",
    "classification": "the classification extension",
    "sequence_id": "sequences",
}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What one request asks."""

    #: Sent back as it came; None: there was none.
    id: str | None
    inputs: dict[str, Array]
    #: Name, and whether it is answered in binary.
    outputs: tuple[tuple[str, bool], ...]
    #: What it was read from, unless that is large: freeing a thousand numbers can wait until the client has its answer.
    source: object = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Body:
    """An answer: JSON, then binary tensors in the order of `outputs`."""

    json: bytes
    tensors: tuple[memoryview | bytes, ...]


def parse_request(
    body: memoryview, json_length: int | None, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """The request in these bytes, of which the first `json_length` are JSON (None: all).

    Raises: RefusedError 400 naming what was seen and wanted.
    """
    if json_length is not None and json_length > len(body):
        raise RefusedError(400, f"Inference-Header-Content-Length is {json_length}; the body has {len(body)} bytes.")
    text = bytes(body if json_length is None else body[:json_length])
    document = _document(text)
    binary = body[len(body) if json_length is None else json_length :]
    arrays, used = _inputs(document.get("inputs"), binary, {one.name: one for one in inputs}, has_booleans=may_have_booleans(text))
    if used != len(binary):
        raise RefusedError(400, f"{len(binary)} bytes of tensors came; the request names {used}.")
    is_binary = _parameters(document, "The request").get("binary_data_output", False) is True
    request_id = document.get("id")
    if request_id is not None and not (isinstance(request_id, str) and len(request_id) <= _MAX_ID):
        raise RefusedError(400, f"id is not a text of at most {_MAX_ID} characters.")
    wanted = _outputs(document.get("outputs"), [one.name for one in outputs], is_binary=is_binary)
    return InferRequest(request_id, arrays, wanted, source=document if len(text) <= _KEPT_BYTES else None)


def build_answer(request: InferRequest, outputs: Mapping[str, Array], *, model: str, version: str) -> Body:
    """The answer; binary parts are views of the arrays. Raises: RefusedError 500 when a number has no form in JSON."""
    described, parts = [], []
    for name, is_binary in request.outputs:
        array = outputs[name]
        datatype = _DATATYPE_OF[array.dtype]
        one: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if is_binary:
            one["parameters"] = {"binary_data_size": array.nbytes}
            parts.append(_little_endian(array))
        elif datatype == "FP16":
            raise RefusedError(400, f"Output {name!r} is FP16, which JSON does not carry; ask for it in binary.")
        else:
            one["data"] = array.ravel().tolist()
        described.append(one)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        document["id"] = request.id
    text = to_json(document)
    if b"NaN" in text or b"Infinity" in text:  # how it writes them; a name may say so too
        _check_finite(request, outputs)
    return Body(text, tuple(parts))


def _check_finite(request: InferRequest, outputs: Mapping[str, Array]) -> None:
    """Returns when JSON carries all numbers that it should. Raises: RefusedError 500."""
    for name, is_binary in request.outputs:
        array = outputs[name]
        if not is_binary and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RefusedError(500, f"Output {name!r} has numbers that are not finite, which JSON does not carry; ask for it in binary.")


def describe(tensor: TensorSpec) -> dict[str, Any]:
    """One input or output as metadata shows it; scale and zero point stand beside integers that have them."""
    found: dict[str, Any] = {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": list(tensor.shape)}
    if tensor.scale is not None:
        found["parameters"] = {"scale": tensor.scale, "zero_point": tensor.zero_point}
    return found


def _document(text: bytes) -> dict[str, Any]:
    try:
        found = from_json(text, allow_inf_nan=False)  # six times as fast as the standard library's
    except ValueError as error:
        raise RefusedError(400, f"The request is not JSON: {str(error)[:200]}.") from None
    if not isinstance(found, dict):
        raise RefusedError(400, f"The request is a {type(found).__name__}; wanted an object with inputs.")
    return found


def _inputs(entries: Any, binary: memoryview, wanted: Mapping[str, TensorSpec], *, has_booleans: bool) -> tuple[dict[str, Array], int]:
    """Arrays by name, and how many bytes of tensors they took."""
    arrays: dict[str, Array] = {}
    offset = 0
    for entry in _objects(entries, "inputs"):
        name = entry.get("name")
        spec = wanted.get(name) if isinstance(name, str) else None
        if spec is None or name in arrays:
            raise RefusedError(400, f"Input {str(name)[:80]!r} is {'named twice' if spec else 'not known'}; wanted {', '.join(wanted)}.")
        _check_description(entry, spec)
        size = _parameters(entry, "Input", name).get("binary_data_size")
        if size is None:
            arrays[spec.name] = _array_of_json(entry.get("data"), spec, has_booleans=has_booleans)
            continue
        if "data" in entry:
            raise RefusedError(400, f"Input {name!r} has both data and binary_data_size; wanted one of them.")
        arrays[spec.name] = _array_of_bytes(binary, offset, size, spec)
        offset += size
    if len(arrays) != len(wanted):
        raise RefusedError(400, f"Input {next(name for name in wanted if name not in arrays)!r} is missing.")
    return arrays, offset


def _check_description(entry: Mapping[str, Any], spec: TensorSpec) -> None:
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype != DATATYPES[spec.dtype]:
        raise RefusedError(400, f"Input {spec.name!r} has the datatype {str(datatype)[:40]!r}; wanted {DATATYPES[spec.dtype]}.")
    if not isinstance(shape, list) or shape != list(spec.shape) or bool in map(type, shape):
        raise RefusedError(400, f"Input {spec.name!r} has the shape {str(shape)[:80]}; wanted {list(spec.shape)}.")


def _array_of_bytes(binary: memoryview, offset: int, size: Any, spec: TensorSpec) -> Array:
    dtype, count = np.dtype(spec.dtype), math.prod(spec.shape)
    if isinstance(size, bool) or not isinstance(size, int) or size != count * dtype.itemsize:
        raise RefusedError(400, f"Input {spec.name!r} has binary_data_size {str(size)[:40]}; its shape wants {count * dtype.itemsize}.")
    if size > len(binary) - offset:
        raise RefusedError(400, f"Input {spec.name!r} wants {size} bytes of tensors; {len(binary) - offset} are left.")
    array = np.frombuffer(binary, dtype.newbyteorder("<"), count, offset).reshape(spec.shape)
    if dtype.kind == "b" and size and array.view(np.uint8).max() > 1:  # any other byte in a bool confuses native code
        raise RefusedError(400, f"Input {spec.name!r} is BOOL with bytes that are neither 0 nor 1.")
    return array if array.flags.aligned and sys.byteorder == "little" else np.array(array, dtype)


def _array_of_json(data: Any, spec: TensorSpec, *, has_booleans: bool) -> Array:
    if spec.dtype == "float16":
        raise RefusedError(400, f"Input {spec.name!r} is FP16, which JSON does not carry; send it in binary.")
    if not isinstance(data, list):
        raise RefusedError(400, f"Input {spec.name!r} has no data; wanted a list of numbers or binary_data_size.")
    written = find_written(data, spec, has_booleans=has_booleans)
    return array_in_general(data, spec) if written is None else written


def array_in_general(data: list[Any], spec: TensorSpec) -> Array:
    """What numpy makes of a list of JSON, when it has the input's shape and loses nothing. Raises: RefusedError 400."""
    try:
        read = np.array(data)
    except (ValueError, OverflowError):  # lists of different lengths
        raise RefusedError(400, f"Input {spec.name!r} has lists of different lengths in its data.") from None
    if read.size != math.prod(spec.shape) or (read.ndim > 1 and read.shape != spec.shape):
        raise RefusedError(400, f"Input {spec.name!r} has data of the shape {list(read.shape)}; wanted {list(spec.shape)} or flat.")
    dtype = np.dtype(spec.dtype)
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if read.dtype.kind not in kinds:
        seen = {"b": "true or false", "i": "integers", "u": "integers", "f": "numbers with a fraction", "U": "texts"}
        what = seen.get(read.dtype.kind, "nulls or numbers beyond all types")
        raise RefusedError(400, f"Input {spec.name!r} has {what} in its data, which is not {DATATYPES[spec.dtype]}.")
    if dtype.kind in "iu" and (read.min() < np.iinfo(dtype).min or read.max() > np.iinfo(dtype).max):
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        raise RefusedError(
            400,
            f"Input {spec.name!r} has numbers from {read.min()} to {read.max()}, beyond {DATATYPES[spec.dtype]}; wanted {least} to {most}.",
        )
    with np.errstate(over="ignore"):
        made = read.astype(dtype).reshape(spec.shape)
    if dtype.kind == "f" and not np.isfinite(made).all():
        raise RefusedError(400, f"Input {spec.name!r} has numbers beyond {DATATYPES[spec.dtype]}.")
    return made


def _outputs(entries: Any, known: Sequence[str], *, is_binary: bool) -> tuple[tuple[str, bool], ...]:
    if entries is None or entries == []:
        return tuple((name, is_binary) for name in known)
    found: dict[str, bool] = {}
    for entry in _objects(entries, "outputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in known or name in found:
            raise RefusedError(
                400, f"Output {str(name)[:80]!r} is {'named twice' if name in found else 'not known'}; wanted {', '.join(known)}."
            )
        found[name] = _parameters(entry, "Output", name).get("binary_data", is_binary) is True
    return tuple(found.items())


def _objects(entries: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not {dict}.issuperset(map(type, entries)):
        raise RefusedError(400, f"{what} is missing or not a list of objects.")
    if len(entries) > MAX_TENSORS:
        raise RefusedError(400, f"{what} has {len(entries)} entries; at most {MAX_TENSORS} are read.")
    return entries


def _parameters(entry: Mapping[str, Any], what: str, name: str | None = None) -> Mapping[str, Any]:
    found = entry.get("parameters")
    if found is None:
        return {}
    what = what if name is None else f"{what} {name!r}"
    if not isinstance(found, dict):
        raise RefusedError(400, f"{what} has parameters that are not an object.")
    for parameter, words in _REFUSED_PARAMETERS.items():
        if found.get(parameter):
            raise RefusedError(400, f"{what} uses {words}, which is not offered here.")
    return found


def _little_endian(array: Array) -> memoryview | bytes:
    made = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return made.data.cast("B") if made.size else b""
