"""From a frame to the input tensor, by a plan that is compiled once from the signed model manifest.

The device infers with it and the server scores with it; both reproduce tests/golden/preprocess. OpenCV is imported when a
`Preprocessor` is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from protocol.errors import InvalidError
from runtime.base import Array
from runtime.inputs import INTEGER_RANGES, Color, Fit, Interpolation, Layout, Preprocess, TensorDescription
from runtime.manifest import ModelManifest


class Transfer(StrEnum):
    """How pixel values become tensor values."""

    #: The table is the identity: pixels are copied.
    COPY = "copy"
    #: The table is x ^ 128: one integer operation per pixel.
    XOR = "xor"
    #: A 256-entry table per channel.
    TABLE = "table"
    #: Floating point: one multiplication and one addition.
    SCALE = "scale"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that does not change from frame to frame."""

    width: int
    height: int
    channels: int
    layout: Layout
    dtype: str
    color: Color
    fit: Fit
    interpolation: Interpolation
    fill: int
    transfer: Transfer
    #: TABLE: [channels, 256] in the input's dtype; else None.
    table: Array | None
    #: TABLE: (a, b) when each entry is a * x + b rounded, by whatever rounds it; None: there is no such line.
    line: tuple[float, float] | None = None
    #: SCALE: value = x * factor + offset per channel, taken as float32; else empty.
    factor: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the model's input lies in a frame: share of the frame = share of the input * factor + shift, as x, y, x, y, float32."""

    factor: Array
    shift: Array
    #: The whole frame fills the whole input.
    is_whole: bool


def placement(plan: Plan, *, height: int, width: int) -> Placement:
    """Where the input of the plan lies in a frame of that size, in pixels: the way back from boxes of the input to the frame."""
    match plan.fit:
        case Fit.STRETCH:
            return _placed(1.0, 1.0, 0.0, 0.0)
        case Fit.LETTERBOX:
            left, top, inner_width, inner_height = _letterbox(plan, height=height, width=width)
            return _placed(plan.width / inner_width, plan.height / inner_height, -left / inner_width, -top / inner_height)
        case Fit.CROP:
            left, top, inner_width, inner_height = _crop(plan, height=height, width=width)
            return _placed(inner_width / width, inner_height / height, left / width, top / height)


def region_of(plan: Plan, *, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of what of the input a frame of that size fills, pixels of the input: all but the bars of a letterbox."""
    return _letterbox(plan, height=height, width=width) if plan.fit is Fit.LETTERBOX else (0, 0, plan.width, plan.height)


def _placed(factor_x: float, factor_y: float, shift_x: float, shift_y: float) -> Placement:
    factor, shift = (factor_x, factor_y, factor_x, factor_y), (shift_x, shift_y, shift_x, shift_y)
    return Placement(np.array(factor, np.float32), np.array(shift, np.float32), factor == (1.0,) * 4 and shift == (0.0,) * 4)


def _letterbox(plan: Plan, *, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the scaled frame inside the input, pixels of the input."""
    scale = min(plan.width / width, plan.height / height)
    inner_width, inner_height = max(1, min(plan.width, round(width * scale))), max(1, min(plan.height, round(height * scale)))
    return (plan.width - inner_width) // 2, (plan.height - inner_height) // 2, inner_width, inner_height


def _crop(plan: Plan, *, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the part of the frame that is kept, pixels of the frame."""
    scale = min(width / plan.width, height / plan.height)
    inner_width, inner_height = max(1, min(width, round(plan.width * scale))), max(1, min(height, round(plan.height * scale)))
    return (width - inner_width) // 2, (height - inner_height) // 2, inner_width, inner_height


def compile_plan(manifest: ModelManifest) -> Plan:
    """The plan of a model manifest's image input. Raises: InvalidError when the model takes no frames."""
    if manifest.preprocess is None:
        raise InvalidError(f"{manifest.line} {manifest.release} takes windows of readings, not frames.", code="input_mismatch")
    return plan_for(manifest.inputs[0], manifest.preprocess)


def plan_for(tensor: TensorDescription, preprocess: Preprocess) -> Plan:
    """The plan of one input. Raises: InvalidError when the input's dtype has no rule."""
    if tensor.layout is None:
        raise InvalidError(f"Input {tensor.name!r} has no layout; wanted NHWC or NCHW.")
    height, width = (tensor.shape[1], tensor.shape[2]) if tensor.layout is Layout.NHWC else (tensor.shape[2], tensor.shape[3])
    channels = preprocess.channels
    mean, std = _per_channel(preprocess.mean, channels), _per_channel(preprocess.std, channels)
    transfer, table = Transfer.SCALE, None
    if tensor.dtype in INTEGER_RANGES:
        table = table_of(tensor, mean, std)
        transfer = _transfer_of(table)
    elif tensor.dtype != "float32":
        raise InvalidError(f"Input {tensor.name!r} has dtype {tensor.dtype!r}; wanted int8, uint8 or float32.")
    return Plan(
        width=width,
        height=height,
        channels=channels,
        layout=tensor.layout,
        dtype=tensor.dtype,
        color=preprocess.color,
        fit=preprocess.fit,
        interpolation=preprocess.interpolation,
        fill=preprocess.fill,
        transfer=transfer,
        table=table if transfer is Transfer.TABLE else None,
        line=_line_of(tensor, table, mean=float(mean[0]), std=float(std[0])) if table is not None else None,
        factor=tuple((1.0 / (255.0 * std)).tolist()) if table is None else (),
        offset=tuple((-mean / std).tolist()) if table is None else (),
    )


def table_of(tensor: TensorDescription, mean: Array, std: Array) -> Array:
    """[channels, 256]: clip(round(((x/255 - mean)/std)/scale) + zero_point), round half to even, in float64. Raises: InvalidError."""
    if tensor.scale is None or tensor.zero_point is None:
        raise InvalidError(f"Input {tensor.name!r} is {tensor.dtype} without scale and zero point.")
    low, high = INTEGER_RANGES[tensor.dtype]
    pixels = np.arange(256, dtype=np.float64)[np.newaxis, :] / 255.0
    values = (pixels - mean[:, np.newaxis]) / std[:, np.newaxis] / np.float64(np.float32(tensor.scale))
    return np.asarray(np.clip(np.rint(values) + tensor.zero_point, low, high).astype(tensor.dtype))


#: What a line is away from all halves, so that single precision rounds it as double precision does.
_CLEAR = 1e-3


def _line_of(tensor: TensorDescription, table: Array, *, mean: float, std: float) -> tuple[float, float] | None:
    """(a, b) when table[x] = clip(round(a * x + b)) for all channels and no sum rounds below 0 or is close to a half; else None."""
    if tensor.dtype != "uint8" or tensor.scale is None or tensor.zero_point is None or (table != table[0]).any():
        return None
    steps = std * float(np.float32(tensor.scale))
    factor, offset = 1.0 / (255.0 * steps), tensor.zero_point - mean / steps
    sums = np.arange(256) * factor + offset
    is_clear = sums.min() > -0.5 + _CLEAR and bool((np.abs(sums - np.floor(sums) - 0.5) > _CLEAR).all())
    return (factor, offset) if is_clear and np.array_equal(np.clip(np.rint(sums), 0, 255), table[0]) else None


#: What XOR turns.
_SIGN_BIT = np.uint8(128)


class Filler:
    """Writes pixels of the input's own size and color into one tensor of its own; needs no OpenCV; used by one thread."""

    def __init__(self, plan: Plan, *, look_up: Callable[[Array, Array, Array], object] | None = None) -> None:
        self._plan = plan
        shape = (1, plan.height, plan.width, plan.channels) if plan.layout is Layout.NHWC else (1, plan.channels, plan.height, plan.width)
        #: The input tensor, overwritten by every `fill`.
        self.tensor: Array = np.zeros(shape, plan.dtype)
        #: The same memory seen as height, width, channels.
        self._image: Array = self.tensor[0] if plan.layout is Layout.NHWC else self.tensor[0].transpose(1, 2, 0)
        self._bytes: Array = self._image.view(np.uint8) if self._image.itemsize == 1 else self._image
        self._rows = self._bytes.reshape(plan.height, -1) if plan.layout is Layout.NHWC else self._bytes
        #: Not bound: an object that holds itself is freed late, and its tensor with it.
        self._write = _WRITERS[plan.transfer]
        #: Writes `table[image]` into its third argument, by something faster than numpy (cv2.LUT is three to six times as fast).
        self._look_up = look_up or _look_up
        self._table = None if plan.table is None else np.ascontiguousarray(plan.table.view(np.uint8))
        #: All channels of interleaved pixels have one table.
        self._is_one_table = self._table is not None and plan.layout is Layout.NHWC and bool((self._table == self._table[0]).all())
        #: One channel of interleaved pixels, which OpenCV does not write with gaps.
        self._plane: Array = np.empty((plan.height, plan.width) if self._table is not None and not self._is_one_table else 0, np.uint8)
        self._lines = _lines_of(plan, self.tensor)
        is_way = plan.layout is Layout.NHWC and (plan.transfer in (Transfer.COPY, Transfer.XOR) or self._is_one_table)
        #: The tensor's own memory as uint8 pixels, to write them there at once and then `fill` from there; None where that is no way.
        self.pixels: Array | None = self._bytes if is_way else None

    def fill(self, image: Array) -> Array:
        """The tensor for pixels: uint8, height x width x channels as the plan has them."""
        self._write(self, image)
        return self.tensor

    def _fill_by_copy(self, image: Array) -> None:
        if image is not self.pixels:  # else they were written there
            self._image[...] = image

    def _fill_by_xor(self, image: Array) -> None:
        np.bitwise_xor(image, _SIGN_BIT, out=self._bytes)

    def _fill_by_table(self, image: Array) -> None:
        if self._table is None:
            raise RuntimeError("a plan with a table was expected")
        out = self._bytes
        if self._is_one_table:  # long rows, a third of the time of three channels with gaps
            self._look_up(image.reshape(self._rows.shape), self._table[0], self._rows)
            return
        for channel in range(self._plan.channels):
            plane = self._plane if out[:, :, channel].strides[1] != 1 else out[:, :, channel]
            self._look_up(image[:, :, channel], self._table[channel], plane)
            if plane is self._plane:
                out[:, :, channel] = plane

    def _fill_by_scale(self, image: Array) -> None:
        is_interleaved = self._plan.layout is Layout.NHWC
        height = self._plan.height
        for index, (out, factor, offset) in enumerate(self._lines):
            pixels = image.reshape(height, -1) if is_interleaved else image[:, :, index]
            out[...] = pixels  # half of the time that a multiplication takes which converts on its way
            np.multiply(out, factor, out=out)
            if offset is not None:
                np.add(out, offset, out=out)


_WRITERS: dict[Transfer, Callable[[Filler, Array], None]] = {
    Transfer.COPY: Filler._fill_by_copy,  # noqa: SLF001 - its own
    Transfer.XOR: Filler._fill_by_xor,  # noqa: SLF001 - its own
    Transfer.TABLE: Filler._fill_by_table,  # noqa: SLF001 - its own
    Transfer.SCALE: Filler._fill_by_scale,  # noqa: SLF001 - its own
}


def _look_up(image: Array, table: Array, out: Array) -> None:
    np.copyto(out, table[image])


def _lines_of(plan: Plan, tensor: Array) -> list[tuple[Array, Array, Array | None]]:
    """What SCALE multiplies and adds, as long runs of memory: rows of all channels (NHWC) or one plane per channel (NCHW)."""
    if plan.transfer is not Transfer.SCALE:
        return []
    factor, offset = np.asarray(plan.factor, np.float32), np.asarray(plan.offset, np.float32)
    if plan.layout is Layout.NHWC:
        out = tensor.reshape(plan.height, plan.width * plan.channels)
        is_uniform = len(set(plan.factor)) == 1 and len(set(plan.offset)) == 1
        rows = (factor[:1], offset[:1]) if is_uniform else (np.tile(factor, plan.width), np.tile(offset, plan.width))
        return [(out, rows[0], rows[1] if offset.any() else None)]
    return [(tensor[0, c], factor[c : c + 1], offset[c : c + 1] if offset[c] else None) for c in range(plan.channels)]


#: What frames consist of: the same object each time, which is compared at once.
_PIXEL = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Way:
    """How frames of one shape become pixels of the input's size and color, in memory that is used again for each of them."""

    #: Of the frames: height, width and, but for gray, channels.
    shape: tuple[int, ...]
    #: What is looked at of a frame, as an index; None: all of it.
    part: tuple[Any, ...] | None
    #: Where that is resized to; None: it has the input's size.
    inside: Array | None
    #: The whole picture of the input's size, `inside` and the bars of a letterbox.
    picture: Array | None
    #: How OpenCV turns the channels; None: they are the input's.
    code: int | None


class Preprocessor:
    """Runs a plan into one tensor of its own, through buffers of its own; used by one thread."""

    def __init__(self, plan: Plan) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._cv2: Any = cv2
        self._plan = plan
        self._filler = Filler(plan, look_up=cv2.LUT if plan.line is None else _by_line(cv2, *plan.line))
        self._interpolation = cv2.INTER_AREA if plan.interpolation is Interpolation.AREA else cv2.INTER_LINEAR
        self._codes = _codes_of(cv2, plan.color)
        #: Pixels in the input's size and color, and the same memory as OpenCV takes it.
        self._turned: Array = self._filler.pixels if self._filler.pixels is not None else np.empty(_shape(plan, plan.channels), np.uint8)
        self._colors: Array = self._turned[:, :, 0] if plan.channels == 1 else self._turned
        #: For the frame that came last: those of one source are alike, so nothing is found out twice.
        self._way = _Way((), None, None, None, None)

    @property
    def tensor(self) -> Array:
        """The input tensor, overwritten by every `run`."""
        return self._filler.tensor

    def run(self, frame: Array) -> Array:
        """The input tensor for a frame.

        That is uint8, height x width x 3 in BGR as OpenCV gives it, x 4 with an alpha that is not looked at, or height x width in gray.

        Raises: InvalidError on a frame of another shape or dtype.
        """
        way = self._way
        if frame.shape != way.shape or frame.dtype != _PIXEL:
            _check(frame)
            way = self._way = self._way_of(frame.shape)
        image = frame if way.part is None else frame[way.part]
        if way.inside is not None and way.picture is not None:
            self._cv2.resize(image, way.inside.shape[1::-1], way.inside, 0.0, 0.0, self._interpolation)
            image = way.picture
        if way.code is not None:
            self._cv2.cvtColor(image, way.code, self._colors)
            image = self._turned
        return self._filler.fill(image)

    def _way_of(self, shape: tuple[int, ...]) -> _Way:
        """The way of frames of that shape, with memory of its own."""
        plan, code = self._plan, self._codes.get(_channels_of(shape))
        left, top, width, height = _crop(plan, height=shape[0], width=shape[1]) if plan.fit is Fit.CROP else (0, 0, shape[1], shape[0])
        inside, picture = self._target(_channels_of(shape), height=height, width=width)
        rows = slice(top, top + height)
        if inside is not None and plan.interpolation is Interpolation.LINEAR:
            rows = _rows_that_count(rows, wanted=inside.shape[0])
        part = _index(shape, rows, slice(left, left + width), is_for_opencv=inside is not None or code is not None)
        return _Way(shape, part, inside, picture, code)

    def _target(self, channels: int, *, height: int, width: int) -> tuple[Array | None, Array | None]:
        """(where so many pixels are resized to, the picture around them); without any when they have the input's size."""
        plan, is_turned = self._plan, channels in self._codes
        if plan.fit is Fit.LETTERBOX:
            left, top, inner_width, inner_height = _letterbox(plan, height=height, width=width)
            canvas = np.full(_shape(plan, channels), plan.fill, np.uint8)
            inside = canvas[top : top + inner_height, left : left + inner_width]
            return inside, canvas if channels or is_turned else canvas[:, :, np.newaxis]
        if (width, height) == (plan.width, plan.height):
            return None, None
        if not is_turned:
            return self._colors, self._turned
        picture = np.empty(_shape(plan, channels), np.uint8)
        return picture, picture


def _by_line(cv2: Any, factor: float, offset: float) -> Callable[[Array, Array, Array], object]:
    """What computes the entries of a table that is a line: eight pixels at a time, where looking up takes one after the other."""
    return lambda image, _table, out: cv2.convertScaleAbs(image, out, factor, offset)


def _rows_that_count(rows: slice, *, wanted: int) -> slice:
    """Without those that linear interpolation to so many gives no weight: of each odd number that becomes one, all but the middle one.

    From 480 rows to 96 that halves what is read of a frame.
    """
    times, rest = divmod(rows.stop - rows.start, wanted)
    return rows if rest or times % 2 == 0 else slice(rows.start + times // 2, rows.stop, times)


def _index(shape: tuple[int, ...], rows: slice, columns: slice, *, is_for_opencv: bool) -> tuple[Any, ...] | None:
    """The index of that part of a frame; gray is height x width for OpenCV, else height x width x 1. None: the frame is that already."""
    last: tuple[Any, ...] = ()
    if is_for_opencv and len(shape) == 3 and shape[2] == 1:
        last = (0,)
    elif not is_for_opencv and len(shape) == 2:
        last = (np.newaxis,)
    is_all = not last and (rows, columns) == (slice(0, shape[0]), slice(0, shape[1]))
    return None if is_all else (rows, columns, *last)


def decode_picture(data: bytes, *, what: str) -> Array:
    """The frame in the bytes of a JPEG, PNG or BMP file: uint8, height x width x 3 in BGR.

    Raises: InvalidError when there is no OpenCV here, or no picture in the bytes.
    """
    try:
        import cv2
    except ImportError:
        raise InvalidError(
            f"{what} cannot be read here: OpenCV is not installed.",
            hint="Install it: pip install 'mooring[camera-headless]', or bring an .npz file.",
        ) from None
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        frame = None
    if frame is None:
        raise InvalidError(f"{what} of {len(data)} bytes is no picture.", hint="Wanted JPEG, PNG or BMP.")
    return np.asarray(frame)


def _codes_of(cv2: Any, color: Color) -> dict[int, int]:
    """How OpenCV turns so many channels (0: height x width) into the plan's; those that are not there need no turning."""
    codes: dict[Color, dict[int, int]] = {
        Color.GRAY: {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY},
        Color.RGB: {0: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB},
        Color.BGR: {0: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR},
    }
    return codes[color]


def _shape(plan: Plan, channels: int) -> tuple[int, ...]:
    return (plan.height, plan.width, channels) if channels else (plan.height, plan.width)


def _channels_of(shape: tuple[int, ...]) -> int:
    """Channels of a frame of that shape; 0: gray."""
    return shape[2] if len(shape) == 3 and shape[2] > 1 else 0


def _check(frame: Array) -> None:
    if frame.dtype != _PIXEL or frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4)) or 0 in frame.shape:
        raise InvalidError(
            f"The frame is {frame.dtype.name}{list(frame.shape)}; wanted uint8, height x width x 3 (BGR) or 4 (BGRA), or height x width."
        )


def _per_channel(values: tuple[float, ...], channels: int) -> Array:
    return np.broadcast_to(np.asarray(values, np.float64), (channels,))


def _transfer_of(table: Array) -> Transfer:
    pixels = np.arange(256, dtype=np.uint8)
    as_bytes = table.view(np.uint8)
    if table.dtype == np.uint8 and (table == pixels).all():
        return Transfer.COPY
    if table.dtype == np.int8 and (as_bytes == pixels ^ 128).all():
        return Transfer.XOR
    return Transfer.TABLE
