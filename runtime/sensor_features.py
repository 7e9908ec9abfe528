"""What drift watches in a window of sensor readings: per channel its value, step, spread and energy, from its input; numpy only.

A channel is a field of the window. Of more fields than fit, the first ones stay themselves and the rest is brought to a few sums with
fixed signs (DRIFT 1); these are in deviations of the window's `std`, the fields in the readings' own units.
"""

import math
import re
import zlib
from dataclasses import dataclass

import numpy as np

from runtime.base import Array
from runtime.inputs import INTEGER_RANGES, Order, TensorDescription, Window
from runtime.projection import signs

#: Fields that are watched one by one; of more fields only the first `KEPT` are, and the rest as `MIXED` sums.
CHANNELS, KEPT, MIXED = 7, 4, 3
#: The latest readings of a window that its energy is computed from.
LATEST = 1024
#: Share of the sampling rate between which the energy is summed: above slow drift, below the noise of single readings.
_LOW, _HIGH = 1 / 16, 1 / 4
#: Readings that spread and energy want.
_MIN_SPREAD, _MIN_ENERGY = 2, 16
#: Stands for an energy of nothing: 10^-12 of a deviation squared.
_NOTHING = 1e-12


@dataclass(frozen=True, slots=True)
class Signal:
    """What a window's readings say of its quality."""

    #: In deviations of the window's `std`.
    mean: float
    deviation: float
    #: 64 bits of the readings.
    hash: int
    #: Readings that are missing, NaN or infinite.
    not_finite: int
    #: Readings outside the range that the model manifest declares for their field.
    out_of_range: int


class Windows:
    """Looks at the windows of one model; its buffers are made once; used by one thread."""

    def __init__(self, tensor: TensorDescription, window: Window) -> None:
        fields, length = len(window.fields), window.length
        self._window, self._tensor = window, tensor
        self._values: Array = np.zeros((length, fields), np.float32)
        self._signs = signs("channels", fields - KEPT, MIXED) if fields > CHANNELS else None
        kept = fields if self._signs is None else KEPT
        mean, std = (np.broadcast_to(np.asarray(one, np.float64), (fields,))[:kept] for one in (window.mean, window.std))
        mixed = np.zeros(0 if self._signs is None else MIXED)
        #: Back to the readings' own units; sums of signed fields have none.
        self._offset = np.concatenate([mean, mixed])
        self._factor = np.concatenate([std, mixed + 1.0])
        self._channels = _channel_names(window, kept, mixed.size)
        self._kinds = ["value", "step", *(["spread"] if length >= _MIN_SPREAD else []), *(["energy"] if length >= _MIN_ENERGY else [])]
        self._before: Array | None = None
        self._ranges = _ranges_of(window)
        #: Names of the numbers, in their order.
        self.names = tuple(f"sensor.{channel}.{kind}" for kind in self._kinds for channel in self._channels)
        #: The numbers of the latest window, float32, overwritten.
        self.numbers: Array = np.zeros(len(self.names), np.float32)

    def forget(self) -> None:
        """The next window has none before it: another session of the source began."""
        self._before = None

    def look(self, tensor: Array, readings: Array | None = None) -> Signal:
        """Fill `numbers` from an input tensor; `readings` are the window's own, float32, readings x fields, where they are known.

        A number that is not finite makes those of its channel NaN, never raises.
        """
        values = self._values_of(tensor)
        with np.errstate(all="ignore"):
            channels = values if self._signs is None else np.concatenate([values[:, :KEPT], values[:, KEPT:] @ self._signs], axis=1)
            mean = channels.mean(axis=0)
            blocks = [mean * self._factor + self._offset, self._steps(channels) * np.abs(self._factor)]
            if "spread" in self._kinds:
                blocks.append(channels.std(axis=0) * np.abs(self._factor))
            if "energy" in self._kinds:
                blocks.append(_energy(channels[-LATEST:]) + 2.0 * np.log10(np.abs(self._factor)))
            self.numbers[:] = np.concatenate(blocks)
        seen = values if readings is None else readings
        return Signal(
            float(values.mean()),
            float(values.std()),
            _hash_of(seen),
            seen.size - int(np.count_nonzero(np.isfinite(seen))),
            self._outside(readings),
        )

    def _values_of(self, tensor: Array) -> Array:
        """[readings, fields] in deviations, as the model sees them."""
        window, flat = self._window, tensor.reshape(-1)
        if self._tensor.dtype in INTEGER_RANGES:
            flat = (flat.astype(np.float32) - np.float32(self._tensor.zero_point or 0)) * np.float32(self._tensor.scale or 1.0)
        shape = self._values.shape
        np.copyto(self._values, flat.reshape(shape) if window.order is Order.READINGS else flat.reshape(shape[::-1]).T)
        return self._values

    def _steps(self, channels: Array) -> Array:
        """Mean absolute first difference; of windows of one reading the difference to the window before."""
        if len(channels) > 1:
            return np.asarray(np.abs(np.diff(channels, axis=0)).mean(axis=0))
        before, self._before = self._before, channels[0].copy()
        return np.zeros(channels.shape[1]) if before is None else np.abs(channels[0] - before)

    def _outside(self, readings: Array | None) -> int:
        if readings is None or self._ranges is None:
            return 0
        return int(np.count_nonzero((readings < self._ranges[0]) | (readings > self._ranges[1])))


def _energy(channels: Array) -> Array:
    """Log10 of the mean square of each channel's part between 1/16 and 1/4 of the sampling rate, by its spectrum (Parseval)."""
    count = len(channels)
    spectrum = np.fft.rfft(channels - channels.mean(axis=0), axis=0)
    first, last = max(1, math.ceil(count * _LOW)), max(2, math.floor(count * _HIGH))
    power = (np.abs(spectrum[first : last + 1]) ** 2).sum(axis=0) * 2.0 / count**2
    return np.asarray(np.log10(power + _NOTHING))


def _channel_names(window: Window, kept: int, mixed: int) -> list[str]:
    names: list[str] = []
    for index, field in enumerate(window.fields[:kept]):
        plain = re.sub(r"[^a-z0-9_-]+", "-", field.lower()).strip("-_")[:32] or f"field-{index + 1}"
        names.append(f"{plain}-{index + 1}" if plain in names or plain.startswith("mix-") else plain)
    return [*names, *(f"mix-{index + 1}" for index in range(mixed))]


def _ranges_of(window: Window) -> tuple[Array, Array] | None:
    if not window.ranges:
        return None
    bounds = [window.ranges.get(field, (-math.inf, math.inf)) for field in window.fields]
    low, high = np.asarray(bounds, np.float32).T
    return low, high


def _hash_of(values: Array) -> int:
    data = np.ascontiguousarray(values)
    return zlib.crc32(data.data) << 32 | zlib.adler32(data.data)
