"""The drift of a tensor: what few directions a training moved its rows in, as far as telling it costs less than it saves.

A fine-tuning changes a matrix mostly by a matrix of low rank; each rank costs a small whole number per row and per column.
"""

import numpy as np

from protocol.delta import predict
from protocol.delta.entropy import Array
from protocol.delta.predict import Drift

_MOST_RANK = 12
#: Whole numbers of a factor are about this large: finer ones cost more than their precision saves.
_SIZE = 2.4
#: Values that a judgment looks at; of larger tensors every n-th.
_JUDGED = 1 << 19
_LEVELS = 4
#: A drift must save this many bytes, for its place in the plan.
_LEAST_BITS = 64


def find(gap: Array, rows: int) -> Drift | None:
    """The drift of {row, column} gaps between new and expected values that saves most; None when none does."""
    matrix = gap.reshape(rows, -1)
    least = min(matrix.shape)
    if least < 2 or matrix.size < 128:
        return None
    left, size, right = _directions(matrix, min(_MOST_RANK, least))
    best, found, since = _bits(matrix, None), None, 0
    scale = np.sqrt(matrix.size)
    for rank in range(1, len(size) + 1):
        strength = float(size[:rank].max()) / scale
        shift = int(np.clip(np.round(np.log2(_SIZE**2 / max(strength, 1e-6))), 0, 12))
        each = np.sqrt(size[:rank] / scale * 2.0**shift)
        of_rows = np.clip(np.rint(left[:, :rank] * np.sqrt(rows) * each), -127, 127).astype(np.float32)
        of_columns = np.clip(np.rint(right[:rank] * np.sqrt(matrix.shape[1]) * each[:, None]), -127, 127).astype(np.float32)
        drift = Drift(of_rows, of_columns, shift)
        bits = _bits(matrix, drift) + _entropy(of_rows) + _entropy(of_columns) + _LEAST_BITS
        if bits < best:
            best, found, since = bits, drift, 0
        else:
            since += 1
            if since == 3:
                break
    return found


def _directions(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """The strongest singular vectors and values, nearly: from a few products with random vectors of a fixed seed."""
    if min(matrix.shape) <= 64:
        left, size, right = np.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], size[:rank], right[:rank]
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + 8)).astype(np.float32)
    basis = np.linalg.qr(matrix @ start)[0]
    for _ in range(3):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    left, size, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :rank], size[:rank], right[:rank]


def _bits(matrix: Array, drift: Drift | None) -> float:
    """About what the residuals cost: their entropy, given the part that rounding took away."""
    step = max(1, matrix.size // _JUDGED)
    rest = matrix if drift is None else matrix - (drift.of_rows @ drift.of_columns) * np.float32(2.0**-drift.shift)
    flat = rest.ravel()[::step]
    fine = np.floor(flat * -predict.FINE + predict.MIDDLE).astype(np.int64)
    return bits_of(-(fine >> predict.FINE_BITS), fine) * step


def bits_of(numbers: Array, fine: Array | None) -> float:
    """The entropy of numbers, in bits, given where what was expected lay between two whole numbers; large numbers about."""
    level = predict.levels_of(fine, len(numbers), _LEVELS)
    digit = np.clip(numbers, -127, 127).astype(np.int64) + 127
    counts = np.bincount(level * 255 + digit, minlength=255 * _LEVELS).reshape(_LEVELS, 255).astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(counts > 0, -counts * np.log2(counts / total), 0)
    return float(bits.sum())


def _entropy(numbers: Array) -> float:
    _, counts = np.unique(numbers, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())
