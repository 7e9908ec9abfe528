"""Fixed signs and filters that many numbers are brought to few with, the same on every machine and with every version of numpy.

They are drawn from SHAKE-256 of a name, never from a random generator whose stream a library may change: two devices that project
otherwise could not be merged. A name is never given to other numbers; a change is a new name.
"""

import hashlib
import math

import numpy as np

from runtime.base import Array

#: Numbers that an embedding, or the responses of the filters, are brought to.
EMBEDDED = 8
#: Fixed filters over the gray picture, and their side in pixels.
FILTERS, FILTER_SIDE = 8, 5


def signs(purpose: str, size: int, count: int) -> Array:
    """[size, count] of ±1/√size, float32: sums of signed numbers (Achlioptas, Database-friendly random projections, 2003)."""
    drawn = _bytes_of(f"mooring.signs.1/{purpose}/{size}/{count}", math.ceil(size * count / 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8))[: size * count].reshape(size, count)
    return np.asarray(((bits.astype(np.float32) * 2.0 - 1.0) / np.float32(math.sqrt(size))).astype(np.float32))


def filters() -> Array:
    """[25, 8], float32: a filter per column, row after row; each sums to 0 and has length 1, so that brightness alone moves none."""
    drawn = np.frombuffer(_bytes_of("mooring.filters.1", FILTERS * FILTER_SIDE**2), np.uint8).astype(np.float64)
    made = drawn.reshape(FILTERS, -1)
    made -= made.mean(axis=1, keepdims=True)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return np.ascontiguousarray(made.T.astype(np.float32))


def _bytes_of(name: str, count: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(count)
