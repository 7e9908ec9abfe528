"""From a window of sensor readings to the input tensor, compiled once from the signed model manifest; needs no OpenCV."""

import numpy as np

from protocol.errors import InvalidError
from runtime.base import Array
from runtime.inputs import INTEGER_RANGES, Missing, Order, TensorDescription, Window


class WindowFiller:
    """Writes windows into one tensor of its own; used by one thread."""

    def __init__(self, tensor: TensorDescription, window: Window) -> None:
        self._window, self._fields = window, len(window.fields)
        #: The input tensor, overwritten by every `fill`.
        self.tensor: Array = np.zeros(tensor.shape, tensor.dtype)
        self._flat = self.tensor.reshape(-1)
        #: The window's numbers as the model should see them, before they are quantized, in the tensor's order; overwritten likewise.
        self.values: Array = np.zeros(window.size, np.float32)
        shape = (window.length, self._fields)
        self._readings = self.values.reshape(shape) if window.order is Order.READINGS else self.values.reshape(shape[::-1]).T
        self._mean = np.broadcast_to(np.asarray(window.mean, np.float32), (self._fields,))
        self._factor = np.broadcast_to((1.0 / np.asarray(window.std, np.float64)).astype(np.float32), (self._fields,))
        self._is_integer = tensor.dtype in INTEGER_RANGES
        self._scale, self._zero_point = np.float32(tensor.scale or 1.0), np.float32(tensor.zero_point or 0)
        self._low, self._high = INTEGER_RANGES.get(tensor.dtype, (0, 0))
        self._steps: Array = np.zeros(window.size if self._is_integer else 0, np.float32)

    def fill(self, readings: Array) -> Array:
        """The tensor for a window: float32, readings x fields, oldest first.

        Raises: InvalidError, code input_mismatch for another shape, not_finite for a window that lacks a number and may not.
        """
        if readings.dtype != np.float32 or readings.shape != self._readings.shape:
            raise InvalidError(
                f"The window is {readings.dtype.name}{list(readings.shape)}; the model wants float32{list(self._readings.shape)}: "
                f"{self._window.length} readings of {', '.join(self._window.fields)}.",
                code="input_mismatch",
                hint="Set `window` and `fields` of the source as the model was trained, or assign another line.",
            )
        np.subtract(readings, self._mean, out=self._readings)
        np.multiply(self._readings, self._factor, out=self._readings)
        is_known = np.isfinite(self.values)
        if not is_known.all():
            if self._window.missing is Missing.REFUSE:
                lacking = int(self.values.size - np.count_nonzero(is_known))
                raise InvalidError(f"{lacking} of the window's {self.values.size} numbers are missing or not finite.", code="not_finite")
            self.values[~is_known] = 0.0  # the mean
        if self._is_integer:
            np.divide(self.values, self._scale, out=self._steps)
            np.rint(self._steps, out=self._steps)
            np.add(self._steps, self._zero_point, out=self._steps)
            np.clip(self._steps, self._low, self._high, out=self._steps)
            np.copyto(self._flat, self._steps, casting="unsafe")  # whole numbers inside the type's range
        else:
            np.copyto(self._flat, self.values)
        return self.tensor
