"""From the numbers of an output tensor to real ones: quantized tensors are turned by their scale, and only those values that are needed."""

import math
from collections.abc import Mapping

import numpy as np

from runtime.base import Array, InferFailed
from runtime.heads import Activation
from runtime.inputs import TensorDescription


class Output:
    """One output of a model, compiled once; reads its tensor as real numbers, float32."""

    def __init__(self, tensor: TensorDescription, *, runtime: str) -> None:
        self.name = tensor.name
        self._size, self._runtime = tensor.size, runtime
        self.is_integer = tensor.dtype != "float32"
        self._scale, self._zero_point = np.float32(tensor.scale or 1.0), np.float32(tensor.zero_point or 0)
        #: Both as Python's numbers, 1 and 0 for floats: arithmetic with numpy's costs more than all the rest of one value.
        self.scale, self.zero = (float(self._scale), float(self._zero_point)) if self.is_integer else (1.0, 0.0)

    def raw(self, outputs: Mapping[str, Array]) -> Array:
        """The tensor as it is. Raises: InferFailed (bad_output) when it is missing or has another size."""
        raw = outputs.get(self.name)
        if raw is None or raw.size != self._size:
            seen = "is missing" if raw is None else f"has {raw.size} values"
            raise InferFailed(f"Output {self.name!r} {seen}; wanted {self._size} values.", backend=self._runtime, code="bad_output")
        return raw

    def real(self, raw: Array) -> Array:
        """Values of this tensor as float32, a new array. Raises: InferFailed (not_finite) when one is not finite."""
        values = raw.astype(np.float32)
        if self.is_integer:
            values -= self._zero_point
            values *= self._scale
        elif not np.isfinite(values).all():
            raise self.not_finite()
        return values

    def real_one(self, raw: float) -> float:
        """One value of this tensor. Raises: InferFailed (not_finite)."""
        value = (float(raw) - self.zero) * self.scale
        if not math.isfinite(value):
            raise self.not_finite()
        return value

    def raw_bound(self, value: float) -> float:
        """What a raw number must at least be to stand for `value`: the smallest such integer, or the value itself."""
        return float(np.ceil(value / float(self._scale) + float(self._zero_point) - 1e-6)) if self.is_integer else value

    def not_finite(self) -> InferFailed:
        """The error of an answer with NaN or infinity."""
        return InferFailed(f"Output {self.name!r} holds a number that is not finite.", backend=self._runtime, code="not_finite")

    def bad(self, text: str) -> InferFailed:
        """The error of an answer that makes no sense."""
        return InferFailed(f"Output {self.name!r} {text}", backend=self._runtime, code="bad_output")


def activate(values: Array, activation: Activation, temperature: float = 1.0) -> Array:
    """The values after the activation, float32; they must be finite."""
    match activation:
        case Activation.NONE:
            return values
        case Activation.SOFTMAX:
            shifted = np.exp((values - values.max()) / np.float32(temperature))
            return np.asarray(shifted / shifted.sum())
        case Activation.SIGMOID:
            half = np.tanh(values / np.float32(2.0 * temperature))  # sigmoid without overflow
            return np.asarray(np.float32(0.5) * (half + np.float32(1.0)))


def before(score: float, activation: Activation) -> float:
    """What a number is before the activation that makes it `score`, 0 < score < 1, for none and sigmoid."""
    return math.log(score / (1.0 - score)) if activation is Activation.SIGMOID else score
