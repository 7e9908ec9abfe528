"""What a model manifest says of inputs: tensors, how frames or sensor windows fill them, what is carried on. Plans, never code.

Nothing here imports a runtime or OpenCV.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from protocol.decoding import Limits
from runtime.base import TensorSpec

#: Integer types with the range that a zero point must lie in.
INTEGER_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
INPUT_DTYPES = ("int8", "uint8", "float32")
#: Fields of a sensor window, and readings in one: what the sensor source of an agent can give.
MAX_FIELDS, MAX_READINGS = 64, 65_536

ShortText = Annotated[str, Limits(max_length=200)]
TensorName = Annotated[str, Limits(min_length=1, max_length=200)]


class Color(StrEnum):
    """Order of the input's channels."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "GRAY"


class Fit(StrEnum):
    """How a frame of another shape is brought to the input's."""

    #: Width and height are scaled apart; nothing is lost, shapes distort.
    STRETCH = "stretch"
    #: Scaled as a whole, the rest is filled with `fill`.
    LETTERBOX = "letterbox"
    #: The largest centered part of the input's shape.
    CROP = "crop"


class Interpolation(StrEnum):
    """How pixels are computed when the size changes."""

    LINEAR = "linear"
    #: The mean of the covered pixels: better when shrinking much, 12 to 65 times as dear.
    AREA = "area"


class Layout(StrEnum):
    """Meaning of a tensor's dimensions."""

    NHWC = "NHWC"
    NCHW = "NCHW"
    #: Batch and values, as in the output of a classifier.
    NC = "NC"


class Missing(StrEnum):
    """What becomes of a window that lacks a number."""

    #: It counts as invalid and is not inferred.
    REFUSE = "refuse"
    #: The number is taken as the field's mean.
    MEAN = "mean"


class Order(StrEnum):
    """How the numbers of a window lie in the tensor."""

    #: Reading after reading, all fields of one together.
    READINGS = "readings"
    #: Field after field, all readings of one together.
    FIELDS = "fields"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDescription:
    """One input or output: equal to the file's own tensor, plus the layout where its dimensions have a meaning, which files do not say."""

    name: TensorName
    shape: Annotated[tuple[int, ...], Limits(max_length=6)]
    #: None: plain values, in the order in which they lie.
    layout: Layout | None = None
    dtype: ShortText
    scale: float | None = None
    zero_point: int | None = None

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.shape):
            raise ValueError(f"shape {list(self.shape)} of {self.name!r} has an open or empty dimension; export the model with fixed sizes")
        if self.layout is not None:
            self._check_layout(self.layout)
        self._check_quantization()

    def _check_layout(self, layout: Layout) -> None:
        if not self.shape or self.shape[0] != 1:
            raise ValueError(
                f"shape {list(self.shape)} of {self.name!r} has batch {self.shape[0] if self.shape else 'none'}, wanted 1; "
                "export the model with batch 1"
            )
        if len(self.shape) != len(layout.value):
            raise ValueError(
                f"shape {list(self.shape)} of {self.name!r} does not have the {len(layout.value)} dimensions of {layout.value}"
            )

    def _check_quantization(self) -> None:
        if (self.scale is None) != (self.zero_point is None):
            raise ValueError(f"{self.name!r} has only one of scale and zero_point; wanted both or neither")
        if self.scale is None or self.zero_point is None:
            return
        if not self.scale > 0:
            raise ValueError(f"scale {self.scale} of {self.name!r} is not above 0; export the model again")
        low, high = INTEGER_RANGES.get(self.dtype, (0, -1))
        if not low <= self.zero_point <= high:
            raise ValueError(f"zero_point {self.zero_point} of {self.name!r} is outside its dtype {self.dtype}; wanted {low} to {high}")

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.shape, self.dtype, self.scale, self.zero_point)

    @property
    def size(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """From a frame to the input tensor: value = (x / 255 - mean) / std per channel, then the tensor's own scale and zero point."""

    color: Color
    fit: Fit = Fit.STRETCH
    interpolation: Interpolation = Interpolation.LINEAR
    #: One number for all channels or one per channel, in shares of full brightness (0..1).
    mean: Annotated[tuple[float, ...], Limits(min_length=1, max_length=3)] = (0.0,)
    std: Annotated[tuple[float, ...], Limits(min_length=1, max_length=3)] = (1.0,)
    #: Brightness of the bars of `letterbox`.
    fill: Annotated[int, Limits(ge=0, le=255)] = 0

    @property
    def channels(self) -> int:
        """1 for GRAY, else 3."""
        return 1 if self.color is Color.GRAY else 3

    def __post_init__(self) -> None:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{key} has {len(values)} numbers; {self.color.value} wants 1 or {self.channels}")
        if 0.0 in self.std:
            raise ValueError(f"std {list(self.std)} contains 0, which divides by zero; use 1 where nothing is to be scaled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """From a window of sensor readings to the input tensor: value = (x - mean) / std per field, then the tensor's scale and zero point."""

    #: Names of the readings' numbers, in the order in which the model was trained.
    fields: Annotated[tuple[ShortText, ...], Limits(min_length=1, max_length=MAX_FIELDS)]
    #: Readings in one window.
    length: Annotated[int, Limits(ge=1, le=MAX_READINGS)]
    #: One number for all fields or one per field, in the readings' own units.
    mean: Annotated[tuple[float, ...], Limits(min_length=1, max_length=MAX_FIELDS)] = (0.0,)
    std: Annotated[tuple[float, ...], Limits(min_length=1, max_length=MAX_FIELDS)] = (1.0,)
    order: Order = Order.READINGS
    missing: Missing = Missing.REFUSE
    #: Lowest and highest number that a field can physically have, by its name: beyond is the sensor's fault, not drift.
    ranges: Annotated[dict[ShortText, tuple[float, float]], Limits(max_length=MAX_FIELDS)] | None = None

    def __post_init__(self) -> None:
        if len(set(self.fields)) != len(self.fields):
            raise ValueError(f"fields {list(self.fields)} names one twice")
        for field, (low, high) in (self.ranges or {}).items():
            if field not in self.fields or not low < high:
                raise ValueError(f"ranges has {field!r} from {low:g} to {high:g}; wanted one of the fields, the lowest number first")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, len(self.fields)):
                raise ValueError(f"{key} has {len(values)} numbers; {len(self.fields)} fields want 1 or {len(self.fields)}")
        if 0.0 in self.std:
            raise ValueError(f"std {list(self.std)} contains 0, which divides by zero; use 1 where nothing is to be scaled")

    @property
    def size(self) -> int:
        """How many numbers one window holds."""
        return self.length * len(self.fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """State of a stateful model: what it writes to `output` is its `input` with the next frame of the same pipeline and session."""

    input: TensorName
    output: TensorName
    #: What the input is with the first frame of a session: zeros, which of an integer tensor is its zero point.
    initial: Literal["zeros"] = "zeros"


def check_frame_input(tensor: TensorDescription, preprocess: Preprocess) -> None:
    """Returns when frames can fill the tensor. Raises: ValueError saying what was seen and wanted."""
    if tensor.layout not in (Layout.NHWC, Layout.NCHW):
        raise ValueError(f"input {tensor.name!r} has layout {tensor.layout and tensor.layout.value}; wanted NHWC or NCHW")
    channels = tensor.shape[3] if tensor.layout is Layout.NHWC else tensor.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"input {tensor.name!r} has {channels} channels in {list(tensor.shape)}; wanted 1 or 3")
    if channels != preprocess.channels:
        raise ValueError(f"input {tensor.name!r} has {channels} channels; color {preprocess.color.value} makes {preprocess.channels}")
    if max(tensor.shape) > 8192:
        raise ValueError(f"input {tensor.name!r} has the shape {list(tensor.shape)}; wanted at most 8192 pixels a side")
    _check_dtype(tensor)


def check_window_input(tensor: TensorDescription, window: Window) -> None:
    """Returns when windows can fill the tensor. Raises: ValueError saying what was seen and wanted."""
    if tensor.size != window.size:
        raise ValueError(
            f"input {tensor.name!r} has {tensor.size} values in {list(tensor.shape)}; "
            f"a window of {window.length} readings of {len(window.fields)} fields has {window.size}"
        )
    _check_dtype(tensor)


def _check_dtype(tensor: TensorDescription) -> None:
    if tensor.dtype not in INPUT_DTYPES:
        raise ValueError(f"input {tensor.name!r} has dtype {tensor.dtype!r}; wanted one of {', '.join(INPUT_DTYPES)}")
    check_has_scale(tensor)


def check_has_scale(tensor: TensorDescription) -> None:
    """Returns when the tensor's integers can be read as numbers. Raises: ValueError."""
    if tensor.dtype in INTEGER_RANGES and tensor.scale is None:
        raise ValueError(
            f'{tensor.name!r} is {tensor.dtype} without scale and zero_point; write them in the draft under [quantization."{tensor.name}"]'
        )
