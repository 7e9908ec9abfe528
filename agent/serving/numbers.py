"""The quick way from numbers of JSON to an array: written one by one into its memory, without asking what they might be instead. Pure.

It takes only what the general way (`tensors`) would take, with the same result to the bit, and says nothing about the rest.
"""

import itertools
import math
import struct
from typing import Any

import numpy as np

from runtime.base import Array, TensorSpec

#: What `struct` writes for each type. Not BOOL, which is no number, and not UINT64: which of its numbers are taken is numpy's to say.
_CODES = {
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "float32": "f",
    "float64": "d",
}
#: By numpy's names, which are dear to look up.
_DTYPES = {name: np.dtype(name) for name in _CODES}
#: Whole numbers below 2^53 are exact in a double, so that rounding them to a float does not depend on the way there. A sum of squares is no
#: smaller than the largest of them, however it is rounded, and costs half of what looking for the largest does.
_EXACT_SQUARED = float(1 << 106)


def may_have_booleans(text: bytes) -> bool:
    """Whether there may be a boolean in this JSON: it has only one spelling for each."""
    return b"true" in text or b"false" in text


def find_written(data: list[Any], spec: TensorSpec, *, has_booleans: bool = True) -> Array | None:
    """The input's array, of numbers in a flat list or in nested ones of just its shape; None: not so plain, or too large to be sure.

    `data` must come from JSON; without `has_booleans` it is not searched for booleans, which would be written as 0 and 1.
    """
    code, numbers, count = _CODES.get(spec.dtype), _flat(data, spec.shape), math.prod(spec.shape)
    if code is None or numbers is None or not count or len(numbers) != count:
        return None
    if has_booleans and bool in set(map(type, numbers)):
        return None
    made = np.empty(spec.shape, _DTYPES[spec.dtype])
    try:
        struct.pack_into(f"{count}{code}", made.data, 0, *numbers)
    except (struct.error, OverflowError):  # not a number, a fraction where none may be, or beyond the type
        return None
    if code in "fd" and not np.vdot(made, made) < _EXACT_SQUARED:
        return None
    return made


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """The numbers of lists nested as the shape says; of anything that does not begin with a list, the list itself; None: another shape."""
    if not data or type(data[0]) is not list:
        return data
    for size, inner in itertools.pairwise(shape):
        if len(data) != size or set(map(type, data)) != {list} or set(map(len, data)) != {inner}:
            return None
        data = list(itertools.chain.from_iterable(data))
    return data
