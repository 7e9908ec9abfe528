"""What the new values of a tensor probably are, from its old ones and from what was decoded before; and how a number corrects that.

Only operations that are the same on every machine: IEEE additions, multiplications and rounding one by one, integers.
"""

from dataclasses import dataclass

import numpy as np

from protocol.delta.entropy import Array
from protocol.delta.tensors import Kind, Tensor

#: A ratio of scales beyond this says nothing.
_MAX_RATIO = 1e6
#: Values of one step: what is held of a large tensor at a time.
STEP = 1 << 16


#: How finely the part is known that rounding took away: 16 levels to a step.
FINE_BITS = 4
FINE = 1 << FINE_BITS
#: Multiplications of a matrix product up to which OpenBLAS, which numpy brings, starts no threads: on a busy device these take eight times
#: as long, waiting for each other.
_ONE_THREAD = 1 << 18
#: The level of what was not rounded.
MIDDLE = FINE // 2


@dataclass(frozen=True, slots=True)
class Expected:
    """Predictions of some values: `whole` to be corrected by numbers (8 bits: uint8, modulo 256), and `fine`.

    Its lowest FINE_BITS bits say where in the step from one whole number to the next the value lies (None: everywhere in the middle).
    """

    whole: Array
    fine: Array | None


def ratio(old_scale: Array, new_scale: Array) -> Array:
    """Old by new scale, 1 where that is nonsense; float64."""
    with np.errstate(all="ignore"):
        made = old_scale.astype(np.float64) / new_scale.astype(np.float64)
        return np.where(np.isfinite(made) & (np.abs(made) < _MAX_RATIO), made, 1.0)


def product(source: Array, weights: Array) -> Array:
    """The scale of a bias: float32 product, as int32 bits."""
    with np.errstate(all="ignore"):
        return (source.astype(np.float32) * weights.astype(np.float32)).astype("<f4").view("<i4")


def spread(ratios: Array, tensor: Tensor, axis: int, start: int, stop: int) -> tuple[Array, int]:
    """The ratios (times FINE) for the values start … stop of the tensor, each so often; `axis` is the one that the scales lie along."""
    if ratios.size == 1:
        return ratios, stop - start
    dims = tensor.dims
    axis = axis + len(dims) if axis < 0 else axis
    if not 0 <= axis < len(dims) or dims[axis] != ratios.size:
        return np.full(1, FINE, np.float32), stop - start
    inner = 1
    for dim in dims[axis + 1 :]:
        inner *= dim
    return run(ratios, inner, start, stop)


def run(values: Array, times: int, start: int, stop: int) -> tuple[Array, int]:
    """As `repeated`, without the repetition when each value is there as often."""
    if not start and stop == len(values) * times:
        return values, times
    return repeated(values, times, start, stop), 1


def repeated(values: Array, times: int, start: int, stop: int) -> Array:
    """The part start … stop of: each value `times` over, and that again and again."""
    first, last = start // times, -(-stop // times)
    wanted = np.take(values, np.arange(first, last), mode="wrap") if last > len(values) else values[first:last]
    return np.repeat(wanted, times)[start - first * times : stop - first * times] if times > 1 else wanted


def rounded_small(fine: Array, *, is_signed: bool) -> Expected:
    """Values of 8 bits on a new scale, from the exact ones in steps of 1 / FINE, float32, which are changed."""
    fine += np.float32(MIDDLE + 128 * FINE if is_signed else MIDDLE)
    np.clip(fine, np.float32(0), np.float32(256 * FINE - 1), out=fine)
    steps = fine.astype(np.uint16)
    whole = (steps >> FINE_BITS).astype(np.uint8)
    if is_signed:
        whole ^= np.uint8(128)
    return Expected(whole, steps)


def rounded_wide(fine: Array) -> Expected:
    """Values of 32 bits on a new scale, as int64, from the exact ones in steps of 1 / FINE, float64, which are changed."""
    fine += MIDDLE
    np.floor(fine, out=fine)
    steps = np.clip(fine, -(2.0**31) * FINE, 2.0**31 * FINE - 1).astype(np.int64)
    return Expected(steps >> FINE_BITS, steps)


@dataclass(frozen=True, slots=True)
class Drift:
    """How a training moved the rows of a tensor together: rows × rank, rank × columns, whole numbers of at most 127, divided by 2^shift."""

    of_rows: Array
    of_columns: Array
    shift: int

    def part(self, start: int, stop: int) -> Array:
        """The drift of the values start … stop in steps of 1 / FINE, float32. Sums stay below 2^24, so they are exact in any order."""
        columns = self.of_columns.shape[1]
        first, last = start // columns, -(-stop // columns)
        # a power of two changes no digit, before the sums or behind them
        of_rows = self.of_rows[first:last] * np.float32(FINE * 2.0**-self.shift)
        sums: Array = np.empty((len(of_rows), columns), np.float32)
        at_once = max(1, _ONE_THREAD // self.of_columns.size)
        for row in range(0, len(of_rows), at_once):
            np.matmul(of_rows[row : row + at_once], self.of_columns, out=sums[row : row + at_once])
        made = sums.ravel()
        return made if last * columns - first * columns == stop - start else made[start - first * columns : stop - first * columns]


def levels_of(fine: Array | None, count: int, levels: int) -> Array:
    """Which of `levels` tables each value takes, from where it lies between two whole numbers."""
    if fine is None:
        return np.full(count, MIDDLE * levels >> FINE_BITS)
    return (fine.astype(np.int64) & (FINE - 1)) * levels >> FINE_BITS


def ordered(bits: Array, kind: Kind) -> Array:
    """Bits of floating point numbers as integers in the order of the numbers; its own inverse."""
    made: Array = bits ^ ((bits >> 15) & 0x7FFF) if kind is Kind.F16 else bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return made
