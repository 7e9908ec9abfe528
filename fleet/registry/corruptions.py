"""Mild to strong damage of pictures as cameras know it, made alike every time: what a model version is tried on at import (DRIFT 6).

Pictures are uint8, height x width x 1 or 3, in the order of the model's own channels; numpy only. Severities are 1 to 3.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from runtime.base import Array
from runtime.inputs import Color

SEVERITIES = (1, 2, 3)
#: Standard deviations as a share of the shorter side, and the least of them in pixels.
_BLUR, _BLUR_PIXELS = (0.006, 0.0125, 0.025), (0.5, 0.8, 1.2)
#: Standard deviations of noise, of 255.
_NOISE = (8.0, 18.0, 36.0)
_DARK, _BRIGHT = (0.65, 0.4, 0.2), (1.3, 1.7, 2.3)
#: Qualities as of libjpeg.
_JPEG = (45, 20, 8)
#: Factors of red and blue: the light of a lamp.
_WARM = ((1.1, 0.93), (1.25, 0.82), (1.5, 0.65))
#: Spots on the lens, their mean radius as a share of the shorter side, and how much of the light they take.
_DIRT = ((4, 0.08, 0.6), (9, 0.12, 0.75), (16, 0.18, 0.9))
_DIRT_COLOR = 70.0
#: Quantization of brightness and color (ITU-T T.81, tables K.1 and K.2).
_LUMA_TABLE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
_CHROMA_TABLE = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 "
    "99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"
)
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)


def families(color: Color) -> tuple[str, ...]:
    """Names of what pictures of these channels can suffer."""
    return tuple(name for name in _FAMILIES if name != "color" or color is not Color.GRAY)


def corrupted(picture: Array, family: str, severity: int, *, seed: int, color: Color) -> Array:
    """The picture after the damage, of the same shape and dtype; `picture` is not changed. Raises: KeyError for an unknown family."""
    damaged = _FAMILIES[family](picture.astype(np.float32), severity - 1, np.random.default_rng((seed, severity)), color)
    return np.asarray(np.clip(np.rint(damaged), 0, 255).astype(np.uint8))


def _blur(picture: Array, level: int, random: np.random.Generator, color: Color) -> Array:
    del random, color
    deviation = max(_BLUR_PIXELS[level], _BLUR[level] * min(picture.shape[:2]))
    for axis in (0, 1):
        picture = _smoothed(picture, deviation, axis)
    return picture


def _noise(picture: Array, level: int, random: np.random.Generator, color: Color) -> Array:
    del color
    return picture + random.normal(0.0, _NOISE[level], picture.shape).astype(np.float32)


def _dark(picture: Array, level: int, random: np.random.Generator, color: Color) -> Array:
    del random, color
    return picture * np.float32(_DARK[level])


def _bright(picture: Array, level: int, random: np.random.Generator, color: Color) -> Array:
    del random, color
    return picture * np.float32(_BRIGHT[level])


def _jpeg(picture: Array, level: int, random: np.random.Generator, color: Color) -> Array:
    """What JPEG's rounding leaves of the picture; packing it loses nothing more."""
    del random
    if picture.shape[2] == 1:
        return _rounded(picture[:, :, 0] - 128.0, _table(_LUMA_TABLE, _JPEG[level]))[:, :, np.newaxis] + 128.0
    rgb = picture[:, :, ::-1] if color is Color.BGR else picture
    planes = rgb @ _TO_YCC.T
    planes[:, :, 0] -= 128.0
    tables = (_LUMA_TABLE, _CHROMA_TABLE, _CHROMA_TABLE)
    planes = np.stack([_rounded(planes[:, :, index], _table(table, _JPEG[level])) for index, table in enumerate(tables)], axis=-1)
    planes[:, :, 0] += 128.0
    back = planes @ np.linalg.inv(_TO_YCC).T.astype(np.float32)
    return back[:, :, ::-1] if color is Color.BGR else back


def _color(picture: Array, level: int, random: np.random.Generator, color: Color) -> Array:
    del random
    red, blue = _WARM[level]
    factors = (red, 1.0, blue) if color is Color.RGB else (blue, 1.0, red)
    return picture * np.asarray(factors, np.float32)


def _dirt(picture: Array, level: int, random: np.random.Generator, color: Color) -> Array:
    del random, color
    veil = _veil(picture.shape[0], picture.shape[1], level)
    return picture * (1.0 - veil) + _DIRT_COLOR * veil


_FAMILIES: Mapping[str, Callable[[Array, int, np.random.Generator, Color], Array]] = MappingProxyType(
    {"blur": _blur, "noise": _noise, "dark": _dark, "bright": _bright, "jpeg": _jpeg, "color": _color, "dirt": _dirt}
)


def _smoothed(picture: Array, deviation: float, axis: int) -> Array:
    reach = max(1, round(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    width = [(0, 0)] * 3
    width[axis] = (reach, reach)
    padded, size = np.pad(picture, width, mode="edge"), picture.shape[axis]
    out = np.zeros_like(picture)
    for shift, weight in enumerate(weights):
        out += weight * (padded[shift : shift + size] if axis == 0 else padded[:, shift : shift + size])
    return out


@lru_cache(maxsize=8)
def _veil(height: int, width: int, level: int) -> Array:
    """Share of the light that dirt takes, [height, width, 1]: the same spots on every picture, as on one lens."""
    count, radius, strength = _DIRT[level]
    random = np.random.default_rng(41)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    veil = np.zeros((height, width), np.float32)
    for _ in range(count):
        size = max(1.0, radius * min(height, width) * random.uniform(0.6, 1.4))
        y, x = random.uniform(0, height), random.uniform(0, width)
        veil = np.maximum(veil, np.exp(-((((rows - y) ** 2 + (columns - x) ** 2) / (2 * size**2)) ** 2)))
    return (strength * veil)[:, :, np.newaxis]


@lru_cache(maxsize=8)
def _table(numbers: str, quality: int) -> Array:
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    steps = np.floor((np.array(numbers.split(), np.float32) * scale + 50) / 100)
    return np.asarray(np.clip(steps, 1, 255).reshape(8, 8))


def _rounded(plane: Array, table: Array) -> Array:
    """The plane with the coefficients of its 8 x 8 blocks rounded to multiples of the table's (T.81, A.3)."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8).transpose(0, 2, 1, 3)
    turn = _cosines()
    steps = np.rint(turn @ blocks @ turn.T / table)
    back = turn.T @ (steps * table) @ turn
    return np.asarray(back.transpose(0, 2, 1, 3).reshape(padded.shape)[:height, :width])


@lru_cache(maxsize=1)
def _cosines() -> Array:
    k, n = np.mgrid[0:8, 0:8]
    turn = np.cos((2 * n + 1) * k * np.pi / 16) / 2
    turn[0] /= np.sqrt(2)
    return np.asarray(turn.astype(np.float32))
