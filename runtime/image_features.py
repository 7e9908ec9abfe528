"""What drift watches in a picture: twelve numbers and eight responses of fixed filters, from the model's own input tensor; numpy only.

The tensor is turned back into pixels (0 to 255) and looked at twice, both times at most about 64 x 64 pixels whatever its size: every
n-th pixel of the whole, for light and color, and sixteen tiles of neighbours, for sharpness, noise and edges. Bars of a letterbox are
left out. A picture that is small enough is looked at as a whole.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from runtime.base import Array
from runtime.inputs import INTEGER_RANGES, Color, Layout, Preprocess, TensorDescription
from runtime.preprocess import Plan, plan_for, region_of
from runtime.projection import EMBEDDED, FILTER_SIDE, FILTERS, filters, signs

#: Names of the numbers in the order of `Pictures.numbers`.
IMAGE_NUMBERS = (
    "image.brightness",
    "image.contrast",
    "image.sharpness",
    "image.red",
    "image.blue",
    "image.saturation",
    "image.noise",
    "image.dark",
    "image.glare",
    "image.edges",
    "image.blocks",
    "image.entropy",
)
#: Names of the responses of the fixed filters, or of the projection of the model's own embedding.
EMBEDDING_NUMBERS = tuple(f"embedding.{number}" for number in range(1, EMBEDDED + 1))
#: Pixels a side of what is looked at; beside a larger picture the side of a tile and how many there are a side.
SIDE, TILE, TILES = 64, 16, 4
#: Gray below or above which a pixel is dark or glaring, of 255.
DARK, GLARE = 20.0, 235.0
#: Sum of the steps to the right and down from which on a pixel lies at an edge, of 255.
EDGE = 48.0
#: Side of the blocks of a JPEG picture.
BLOCK = 8
#: Added to answers of the filters before their logarithm, of 255: weaker ones are rounding.
_FAINT = np.float32(0.5)
#: Cells of the histogram behind the entropy.
_CELLS = 64
_LUMA = {Color.RGB: (0.299, 0.587, 0.114), Color.BGR: (0.114, 0.587, 0.299), Color.GRAY: (1.0,)}


@dataclass(frozen=True, slots=True)
class Light:
    """What a picture's pixels say of its quality, gray of 255."""

    mean: float
    deviation: float
    #: 64 bits of the pixels that were looked at: equal pictures have equal ones.
    hash: int
    #: Pixels that were looked at and are NaN or infinite.
    not_finite: int
    #: As `image.sharpness`: log of 1 + variance of the Laplacian.
    sharpness: float


class Pictures:
    """Looks at the input tensors of one model; its buffers are made once; used by one thread."""

    def __init__(self, tensor: TensorDescription, preprocess: Preprocess, *, has_filters: bool) -> None:
        self._plan: Plan = plan_for(tensor, preprocess)
        self._pixels = _Pixels(tensor, preprocess)
        self._size: tuple[int, int] | None = None
        self._views = _Views(self._plan, None)
        self._filters = filters() if has_filters else None
        self._signs = signs("filters", 2 * FILTERS, EMBEDDED)
        #: The twelve numbers of the latest picture, float32, overwritten.
        self.numbers: Array = np.zeros(len(IMAGE_NUMBERS), np.float32)
        #: The eight responses likewise; zeros without filters.
        self.responses: Array = np.zeros(EMBEDDED, np.float32)

    def look(self, tensor: Array, *, size: tuple[int, int] | None = None) -> Light:
        """Fill `numbers` and `responses` from an input tensor; `size` is (height, width) of the frame behind it, where that is known.

        A pixel that is not finite makes numbers NaN, never raises.
        """
        if size != self._size:
            self._views, self._size = _Views(self._plan, size), size
        image = tensor[0] if self._plan.layout is Layout.NHWC else tensor[0].transpose(1, 2, 0)
        with np.errstate(all="ignore"):
            raw, tiles = self._views.of(image)
            gray, planes = self._pixels.of(raw)
            near = gray[np.newaxis] if tiles is raw else self._pixels.gray(tiles)
            self._light_and_color(gray, planes)
            self._structure(near)
            if self._filters is not None:
                self._respond(gray)
            mean, deviation = float(self.numbers[0]), float(self.numbers[1])
        not_finite = gray.size - int(np.count_nonzero(np.isfinite(gray)))
        return Light(mean, deviation, _hash_of(raw, tiles), not_finite, float(self.numbers[2]))

    def _light_and_color(self, gray: Array, planes: tuple[Array, ...]) -> None:
        out = self.numbers
        mean = gray.mean()
        away = gray - mean
        out[0] = mean
        out[1] = math.sqrt(max(0.0, float(np.vdot(away, away)) / gray.size))
        if len(planes) == 3:
            red, green, blue = planes if self._plan.color is Color.RGB else planes[::-1]
            out[3], out[4] = red.mean() - mean, blue.mean() - mean
            out[5] = (np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)).mean()
        else:
            out[3:6] = 0.0
        out[7] = np.count_nonzero(gray < DARK) / gray.size
        out[8] = np.count_nonzero(gray > GLARE) / gray.size
        out[11] = _entropy(gray)

    def _structure(self, gray: Array) -> None:
        """Sharpness, noise, edges, blocks of [tiles, height, width]; all of a picture too small for them are 0."""
        out = self.numbers
        out[2] = out[6] = out[9] = out[10] = 0.0
        if min(gray.shape[1:]) < 3:
            return
        right, down = gray[:, :, 1:] - gray[:, :, :-1], gray[:, 1:, :] - gray[:, :-1, :]
        bent_x, bent_y = right[:, :, 1:] - right[:, :, :-1], down[:, 1:, :] - down[:, :-1, :]
        laplacian = bent_x[:, 1:-1, :] + bent_y[:, :, 1:-1]
        out[2] = math.log1p(float(laplacian.var())) if np.isfinite(laplacian).all() else math.nan
        # J. Immerkaer, Fast Noise Variance Estimation, Computer Vision and Image Understanding 64 (1996)
        mixed = bent_x[:, 2:, :] - 2.0 * bent_x[:, 1:-1, :] + bent_x[:, :-2, :]
        out[6] = math.sqrt(math.pi / 2.0) / 6.0 * float(np.abs(mixed).mean())
        steps = np.abs(right)
        out[9] = np.count_nonzero(steps[:, :-1, :] + np.abs(down)[:, :, :-1] > EDGE) / (
            gray.shape[0] * (gray.shape[1] - 1) * (gray.shape[2] - 1)
        )
        out[10] = _blockiness(steps)

    def _respond(self, gray: Array) -> None:
        """How strong each filter answers beside the others, and how peaked, brought to eight numbers.

        What all answers share is taken out: it is contrast and sharpness, which have numbers of their own, and would drown the rest.
        """
        if min(gray.shape) < FILTER_SIDE or self._filters is None:
            self.responses[:] = 0.0
            return
        patches = np.lib.stride_tricks.sliding_window_view(gray, (FILTER_SIDE, FILTER_SIDE)).reshape(-1, FILTER_SIDE**2)
        answers = patches @ self._filters
        strong = np.log(np.abs(answers).mean(axis=0) + _FAINT)
        peaked = np.log(answers.std(axis=0) + _FAINT) - strong
        np.matmul(np.concatenate([strong - strong.mean(), peaked - peaked.mean()]), self._signs, out=self.responses)


class _Views:
    """Which pixels of the input are looked at: (every n-th, tiles); both the same array where the picture is small."""

    def __init__(self, plan: Plan, size: tuple[int, int] | None) -> None:
        left, top, width, height = (0, 0, plan.width, plan.height) if size is None else region_of(plan, height=size[0], width=size[1])
        self._inside = slice(top, top + height), slice(left, left + width)
        self._every = _every(height), _every(width)
        self._is_small = self._every == (1, 1)
        rows, columns = _starts(height), _starts(width)
        self._places = [(top_, left_) for top_ in rows for left_ in columns]
        self._side = min(TILE, height), min(TILE, width)
        self._tiles: Array | None = None

    def of(self, image: Array) -> tuple[Array, Array]:
        """(pixels, tiles) as they lie in the tensor: [h, w, c] and [tiles, h, w, c], or twice the same [h, w, c]."""
        inside = image[self._inside]
        if self._is_small:
            raw = np.ascontiguousarray(inside)
            return raw, raw
        raw = np.ascontiguousarray(inside[:: self._every[0], :: self._every[1]])
        high, wide = self._side
        if self._tiles is None:
            self._tiles = np.empty((len(self._places), high, wide, image.shape[2]), image.dtype)
        for tile, (top, left) in zip(self._tiles, self._places, strict=True):
            tile[...] = inside[top : top + high, left : left + wide]
        return raw, self._tiles


class _Pixels:
    """Turns values of the input tensor back into pixels."""

    def __init__(self, tensor: TensorDescription, preprocess: Preprocess) -> None:
        channels = preprocess.channels
        mean, std = (np.broadcast_to(np.asarray(one, np.float64), (channels,)) for one in (preprocess.mean, preprocess.std))
        self._weights = np.asarray(_LUMA[preprocess.color], np.float32)
        self._table: Array | None = None
        if tensor.dtype in INTEGER_RANGES:
            values = np.arange(256, dtype=np.uint8).view(tensor.dtype).astype(np.float64)
            real = (values - float(tensor.zero_point or 0)) * float(tensor.scale or 1.0)
            self._table = np.clip((real[np.newaxis] * std[:, np.newaxis] + mean[:, np.newaxis]) * 255.0, 0.0, 255.0).astype(np.float32)
        self._factor, self._offset = (std * 255.0).astype(np.float32), (mean * 255.0).astype(np.float32)

    def of(self, raw: Array) -> tuple[Array, tuple[Array, ...]]:
        """(gray, planes of the channels), float32, of [h, w, c]; a single channel has no planes."""
        planes = tuple(self._plane(raw[..., channel], channel) for channel in range(self._weights.size))
        if len(planes) == 1:
            return planes[0], ()
        gray = planes[0] * self._weights[0]
        for plane, weight in zip(planes[1:], self._weights[1:], strict=True):
            gray += plane * weight
        return gray, planes

    def gray(self, raw: Array) -> Array:
        """Gray, float32, of [tiles, h, w, c]."""
        return self.of(raw)[0]

    def _plane(self, raw: Array, channel: int) -> Array:
        if self._table is not None:
            return np.asarray(self._table[channel].take(raw.view(np.uint8)))
        return np.asarray(raw * self._factor[channel] + self._offset[channel])


def _every(side: int) -> int:
    return max(1, math.ceil(side / SIDE))


def _starts(side: int) -> list[int]:
    """Where tiles begin: evenly spread, on the blocks of a picture that was packed at this size."""
    if side <= TILE:
        return [0]
    count = min(TILES, side // TILE)
    return [round(index * (side - TILE) / max(1, count - 1)) // BLOCK * BLOCK for index in range(count)]


def _entropy(gray: Array) -> float:
    """Bits of the distribution of gray over 64 equal cells; NaN when a pixel is not finite."""
    if not np.isfinite(gray).all():
        return math.nan
    cells = np.clip(gray * np.float32(_CELLS / 256.0), 0, _CELLS - 1).astype(np.int64)
    shares = np.bincount(cells.ravel(), minlength=_CELLS) / gray.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def _blockiness(steps: Array) -> float:
    """Log of the mean step across the borders of 8 x 8 blocks over that elsewhere; 0 for pictures of one block."""
    if steps.shape[2] < BLOCK:
        return 0.0
    columns = steps.mean(axis=(0, 1))
    at_border = columns[BLOCK - 1 :: BLOCK]
    across, elsewhere = float(at_border.mean()), float((columns.sum() - at_border.sum()) / max(1, columns.size - at_border.size))
    return math.log((across + 1.0) / (elsewhere + 1.0))


def _hash_of(raw: Array, tiles: Array) -> int:
    seen = zlib.crc32(raw.data)
    return seen << 32 | (zlib.adler32(raw.data) if tiles is raw else zlib.crc32(tiles.data))
