"""Golden vectors: input tensors with the outputs that the model must give, as bounded, canonical CBOR.

Outputs are kept per key "backend/version/instruction set", with "/provider" behind it where that is not the plain processor. The same
key answers exactly the same integers; any other runtime stays within the tolerance of each output: two least significant bits for
integers, atol + rtol for floats. NaN never passes.
"""

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2
import numpy as np

from protocol.errors import InvalidError
from protocol.files import read_bounded
from runtime.base import Array
from runtime.cpu import instruction_set
from runtime.providers import DEFAULT_PROVIDER

SCHEMA = "golden.1"
FILE_NAME = "golden.cbor"
MAX_GOLDEN_BYTES = 4 << 20
#: One vector is little and still tells: of float32 pictures of 512 x 512 no second one fits.
MIN_VECTORS, MAX_VECTORS = 1, 64
_MAX_TENSORS = 16
_MAX_KEYS = 16
_MAX_DIMENSIONS = 6
_MAX_DEPTH = 8
_MAX_ITEMS = 4096
_DTYPES = ("int8", "uint8", "int16", "int32", "int64", "float32")

Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be off on another runtime: `lsb` for integer tensors, `atol + rtol * |expected|` for floats."""

    lsb: int = 2
    atol: float = 1e-4
    rtol: float = 1e-3


@dataclass(frozen=True, slots=True)
class Goldens:
    """Input vectors and, per key, their outputs in the same order. The first key is the reference for unknown runtimes."""

    inputs: tuple[Tensors, ...]
    outputs: Mapping[str, tuple[Tensors, ...]]
    tolerances: Mapping[str, Tolerance]


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of one vector that is too far from what was expected."""

    vector: int
    output: str
    #: Largest distance seen and the allowed one at that place; infinite for NaN, missing outputs and other shapes.
    seen: float
    allowed: float
    #: "lsb" or "absolute"; of detectors "score" or "objects".
    unit: str
    expected_key: str

    def __str__(self) -> str:
        return (
            f"Golden vector {self.vector}: output {self.output!r} differs by {self.seen:g} ({self.unit}), allowed {self.allowed:g}, "
            f"expected as on {self.expected_key}."
        )


def key_of(backend: str, version: str, provider: str = DEFAULT_PROVIDER) -> str:
    """The key of this machine's outputs: "backend/version/instruction set", and "/provider" where that is not the plain processor."""
    key = f"{backend}/{version}/{instruction_set()}"
    return key if provider == DEFAULT_PROVIDER else f"{key}/{provider}"


def expected_for(goldens: Goldens, key: str) -> tuple[str, tuple[Tensors, ...]]:
    """The key whose outputs count for a runtime, and these: its very key, else the same backend's, else the first."""
    if key in goldens.outputs:
        return key, goldens.outputs[key]
    backend = key.partition("/")[0]
    for other, outputs in goldens.outputs.items():
        if other.partition("/")[0] == backend:
            return other, outputs
    return next(iter(goldens.outputs.items()))


def compare(goldens: Goldens, results: Iterable[Tensors], *, key: str, skip: Collection[str] = ()) -> tuple[Difference, ...]:
    """Where the results, one per input vector, are not what was expected; empty when all are inside their tolerance.

    Outputs named in `skip` are not looked at.
    """
    found_key, expected = expected_for(goldens, key)
    differences: list[Difference] = []
    rows = list(results)
    for vector, wanted in enumerate(expected):
        seen = rows[vector] if vector < len(rows) else {}
        for name, array in wanted.items():
            if name in skip:
                continue
            difference = _compare_one(seen.get(name), array, goldens.tolerances.get(name, Tolerance()), is_exact=found_key == key)
            if difference is not None:
                differences.append(Difference(vector, name, *difference, expected_key=found_key))
    return tuple(differences)


def tolerance_for(rows: Sequence[Array]) -> Tolerance:
    """The tolerance of one output from its values over all vectors: floats that lie on a quantization grid may be off by two steps."""
    if rows[0].dtype.kind != "f":
        return Tolerance()
    values = np.unique(np.concatenate([row.reshape(-1) for row in rows]).astype(np.float64))
    if not 8 <= values.size <= 256:
        return Tolerance()
    gaps = np.diff(values)
    step = float(gaps[gaps > 1e-6].min(initial=math.inf))
    is_grid = math.isfinite(step) and float(np.abs(values / step - np.rint(values / step)).max()) < 0.01
    return Tolerance(atol=2.01 * step) if is_grid else Tolerance()


def merge(first: Goldens, second: Goldens) -> Goldens:
    """Goldens with the outputs of both, made from the same inputs on different runtimes. Raises: InvalidError when inputs differ."""
    same = len(first.inputs) == len(second.inputs) and all(
        one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
        for one, two in zip(first.inputs, second.inputs, strict=False)
    )
    if not same:
        raise InvalidError("The two golden files have different input vectors; make both from the same inputs.")
    return Goldens(first.inputs, {**first.outputs, **second.outputs}, {**first.tolerances, **second.tolerances})


def encode(goldens: Goldens) -> bytes:
    """The bytes of `golden.cbor`; `decode(encode(x)) == x`. Raises: InvalidError when limits are exceeded."""
    _check(goldens)
    document = {
        "schema": SCHEMA,
        "inputs": [_packed_all(tensors) for tensors in goldens.inputs],
        "keys": list(goldens.outputs),
        "outputs": {key: [_packed_all(tensors) for tensors in rows] for key, rows in goldens.outputs.items()},
        "tolerances": {name: {"lsb": t.lsb, "atol": float(t.atol), "rtol": float(t.rtol)} for name, t in goldens.tolerances.items()},
    }
    data = cbor2.dumps(document, canonical=True)
    if len(data) > MAX_GOLDEN_BYTES:
        raise InvalidError(
            f"The golden vectors have {len(data)} bytes; at most {MAX_GOLDEN_BYTES} are allowed.",
            hint=f"Use fewer vectors, at least {MIN_VECTORS}.",
        )
    return data


def read_goldens(folder: Path) -> Goldens:
    """The golden vectors of a slot folder. Raises: InvalidError when they are missing or not valid."""
    try:
        return decode(read_bounded(folder / FILE_NAME, MAX_GOLDEN_BYTES))
    except FileNotFoundError:
        raise InvalidError(f"{folder.name} has no {FILE_NAME}; a release without golden vectors is not activated.") from None


def decode(data: bytes) -> Goldens:
    """The golden vectors in the bytes. Raises: InvalidError on anything but canonical CBOR of the expected shape and size."""
    if len(data) > MAX_GOLDEN_BYTES:
        raise InvalidError(f"golden.cbor has {len(data)} bytes; at most {MAX_GOLDEN_BYTES} are allowed.")
    _scan(data)
    try:
        document = cbor2.loads(data)
        is_canonical = cbor2.dumps(document, canonical=True) == data
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, LookupError) as error:
        raise InvalidError(f"golden.cbor cannot be decoded: {str(error)[:200]}.") from None
    if not is_canonical:
        raise InvalidError("golden.cbor is not canonical CBOR (keys out of order or doubled, or numbers not in shortest form).")
    goldens = _unpacked(document)
    _check(goldens)
    return goldens


def _compare_one(seen: Array | None, wanted: Array, tolerance: Tolerance, *, is_exact: bool) -> tuple[float, float, str] | None:
    unit = "lsb" if wanted.dtype.kind in "iu" else "absolute"
    if seen is None or seen.shape != wanted.shape or seen.dtype != wanted.dtype:
        return math.inf, 0.0, unit
    distance = np.abs(seen.astype(np.float64) - wanted.astype(np.float64))
    if unit == "lsb":
        allowed: Array = np.full(wanted.shape, 0.0 if is_exact else float(tolerance.lsb))
    else:
        allowed = tolerance.atol + tolerance.rtol * np.abs(wanted.astype(np.float64))
    distance = np.where(np.isfinite(distance), distance, math.inf)  # NaN never passes
    allowed = np.where(np.isfinite(allowed), allowed, 0.0)
    excess = np.where(np.isinf(distance), math.inf, distance - allowed)
    if not excess.size or excess.max() <= 0:
        return None
    worst = int(excess.argmax())
    return float(distance.flat[worst]), float(allowed.flat[worst]), unit


def _check(goldens: Goldens) -> None:
    if not MIN_VECTORS <= len(goldens.inputs) <= MAX_VECTORS:
        raise InvalidError(f"There are {len(goldens.inputs)} golden vectors; wanted {MIN_VECTORS} to {MAX_VECTORS}.")
    if not 1 <= len(goldens.outputs) <= _MAX_KEYS:
        raise InvalidError(f"Golden outputs are kept for {len(goldens.outputs)} runtimes; wanted 1 to {_MAX_KEYS}.")
    for key, rows in goldens.outputs.items():
        if not 1 <= len(key) <= 120 or len(rows) != len(goldens.inputs):
            raise InvalidError(
                f"Golden outputs of {key[:120]!r} have {len(rows)} rows; wanted one for each of {len(goldens.inputs)} inputs."
            )
    rows_of_all = [goldens.inputs, *goldens.outputs.values()]
    for rows in rows_of_all:
        for tensors in rows:
            if not 1 <= len(tensors) <= _MAX_TENSORS or tensors.keys() != rows[0].keys():
                raise InvalidError("Golden vectors do not all have the same tensors.")
            for name, array in tensors.items():
                _check_array(name, array)
    for name, tolerance in goldens.tolerances.items():
        if not (0 <= tolerance.lsb <= 255 and 0 <= tolerance.atol < math.inf and 0 <= tolerance.rtol < math.inf):
            raise InvalidError(f"Tolerance of {name[:80]!r} is {tolerance}; wanted 0 to 255 LSB and finite numbers of at least 0.")


def _check_array(name: str, array: Array) -> None:
    if array.dtype.name not in _DTYPES or array.ndim > _MAX_DIMENSIONS:
        raise InvalidError(f"Golden tensor {name[:80]!r} is {array.dtype.name}{list(array.shape)}; wanted one of {', '.join(_DTYPES)}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidError(f"Golden tensor {name[:80]!r} holds a number that is not finite.")


def _packed_all(tensors: Tensors) -> dict[str, dict[str, Any]]:
    return {name: _packed(array) for name, array in tensors.items()}


def _packed(array: Array) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": np.ascontiguousarray(little).tobytes()}


def _unpacked(document: object) -> Goldens:
    top = _map(document, "the document")
    if top.get("schema") != SCHEMA:
        raise InvalidError(f"golden.cbor has schema {str(top.get('schema'))[:40]!r}; wanted {SCHEMA!r}.")
    outputs = _map(top.get("outputs"), "outputs")
    keys = _list(top.get("keys"), "keys")
    if not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys) or set(keys) != set(outputs):
        raise InvalidError("golden.cbor names other keys than it has outputs for.")
    return Goldens(
        inputs=tuple(map(_tensors, _list(top.get("inputs"), "inputs"))),
        outputs={key: tuple(map(_tensors, _list(outputs[key], "outputs"))) for key in keys},
        tolerances={name: _tolerance(value) for name, value in _map(top.get("tolerances"), "tolerances").items()},
    )


def _tensors(value: object) -> Tensors:
    return {name: _tensor(name, item) for name, item in _map(value, "a vector").items()}


def _tensor(name: str, value: object) -> Array:
    item = _map(value, f"tensor {name[:80]!r}")
    dtype, shape, data = item.get("dtype"), _list(item.get("shape"), "a shape"), item.get("data")
    if dtype not in _DTYPES or not isinstance(data, bytes) or len(shape) > _MAX_DIMENSIONS:
        raise InvalidError(
            f"Golden tensor {name[:80]!r} has dtype {str(dtype)[:40]!r} or data of the wrong kind; wanted one of {', '.join(_DTYPES)}."
        )
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_GOLDEN_BYTES for size in shape):
        raise InvalidError(f"Golden tensor {name[:80]!r} has the shape {str(shape)[:80]}; wanted sizes above 0.")
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != wanted:
        raise InvalidError(f"Golden tensor {name[:80]!r} has {len(data)} bytes; its shape {shape} wants {wanted}.")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def _tolerance(value: object) -> Tolerance:
    item = _map(value, "a tolerance")
    lsb, atol, rtol = item.get("lsb"), item.get("atol"), item.get("rtol")
    if not isinstance(lsb, int) or isinstance(lsb, bool) or not isinstance(atol, float) or not isinstance(rtol, float):
        raise InvalidError("A golden tolerance is not {lsb: integer, atol: number, rtol: number}.")
    return Tolerance(lsb, atol, rtol)


def _map(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) and len(key) <= 200 for key in value):
        raise InvalidError(f"golden.cbor: {what} is not a map with text keys.")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidError(f"golden.cbor: {what} is not a list.")
    return value


def _scan(data: bytes) -> None:
    """Walk the CBOR heads before anything is built: no tags, no open lengths, bounded depth and count, lengths inside the data."""
    position, items, open_items = 0, 0, [1]
    bad = functools.partial(_bad_at, size=len(data))
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            continue
        open_items[-1] -= 1
        items += 1
        if items > _MAX_ITEMS * 8 or len(open_items) > _MAX_DEPTH:
            raise bad(position, "is nested too deep or has too many items")
        if position >= len(data):
            raise bad(position, "is cut short")
        major, info = data[position] >> 5, data[position] & 31
        extra = {24: 1, 25: 2, 26: 4, 27: 8}.get(info, 0)
        if info > 27 or major == 6 or (major == 7 and info not in (20, 21, 22, 25, 26, 27)):
            raise bad(position, "has a tag, an open length or a value of no use here")
        value = int.from_bytes(data[position + 1 : position + 1 + extra], "big") if extra else info
        position += 1 + extra
        if major in (2, 3):
            position += value
        elif major in (4, 5):
            if value > _MAX_ITEMS:
                raise bad(position, "has too many items")
            open_items.append(value * (major - 3))
        if position > len(data):
            raise bad(position, "is cut short")
    if position != len(data):
        raise bad(position, "has more behind its end")


def _bad_at(position: int, what: str, *, size: int) -> InvalidError:
    return InvalidError(f"golden.cbor {what}, at byte {min(position, size)} of {size}.")
