"""What a model manifest says about a model's outputs, by task: which tensor means what, and what still has to be computed from it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from protocol.decoding import Limits
from runtime.inputs import ShortText, TensorDescription, TensorName, check_has_scale

MAX_LABELS = 10_000
#: Objects of one frame: what a message carries.
MAX_DETECTIONS = 300
OUTPUT_DTYPES = ("int8", "uint8", "float32")
#: Class numbers and counts of post-processed detectors come as floats or as integers.
NUMBER_DTYPES = ("float32", "int32", "int64", "int8", "uint8")

Labels = Annotated[tuple[Annotated[str, Limits(min_length=1, max_length=200)], ...], Limits(min_length=1, max_length=MAX_LABELS)]
_Share = Annotated[float, Limits(ge=0, le=1)]


class Activation(StrEnum):
    """What is still to be applied to the output's values."""

    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Corners(StrEnum):
    """What the four numbers of a box are."""

    #: Top, left, bottom, right.
    YXYX = "yxyx"
    #: Left, top, right, bottom.
    XYXY = "xyxy"
    #: Center from the left, center from the top, width, height.
    XYWH = "xywh"


class Units(StrEnum):
    """What the numbers of a box count."""

    #: Shares of the input's width and height.
    NORMALIZED = "normalized"
    #: Pixels of the input.
    PIXELS = "pixels"


class Axes(StrEnum):
    """How the numbers of a raw head lie in the tensor."""

    #: 1 x channels x boxes: all first numbers together (YOLOv8 and later).
    CHANNELS_BOXES = "channels-boxes"
    #: 1 x boxes x channels: box after box (YOLOv5).
    BOXES_CHANNELS = "boxes-channels"


class Score(StrEnum):
    """Where an anomaly score comes from."""

    #: One number of an output.
    VALUE = "value"
    #: The mean squared difference of output and input, as of an autoencoder.
    RECONSTRUCTION = "reconstruction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocess:
    """From the output tensor to the answer of a classifier."""

    activation: Activation = Activation.NONE
    labels: Labels
    #: Classes below this score are left out of the answer.
    threshold: _Share = 0.0
    top_k: Annotated[int, Limits(ge=1, le=32)] = 1
    #: Logits are divided by this before softmax or sigmoid (temperature scaling).
    temperature: Annotated[float, Limits(gt=0, le=1000)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOptions:
    """What every detector may be told."""

    #: Objects below this score are left out of the answer.
    threshold: Annotated[float, Limits(gt=0, lt=1)] = 0.5
    max_detections: Annotated[int, Limits(ge=1, le=MAX_DETECTIONS)] = 100
    #: Of two boxes that overlap too much the weaker is dropped whatever their classes are, not only within one class.
    class_agnostic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdOptions(DetectionOptions):
    """A detector that gives boxes, classes and scores as tensors of their own, usually after suppression in the file itself."""

    head: Literal["ssd"]
    corners: Corners = Corners.YXYX
    units: Units = Units.NORMALIZED
    #: The class number of the first label: 1 where 0 is the background.
    first_class: Annotated[int, Limits(ge=0, le=MAX_LABELS)] = 0
    #: Intersection over union above which the weaker box is dropped; None: the file has done it.
    overlap: Annotated[float, Limits(gt=0, lt=1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdHead(SsdOptions):
    """An `ssd` detector with its tensors."""

    labels: Labels
    #: N x 4 numbers.
    boxes: TensorName
    #: N class numbers.
    classes: TensorName
    #: N scores, 0..1.
    scores: TensorName
    #: How many of the N are meant; None: all.
    count: TensorName | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that make the answer."""
        return tuple(name for name in (self.boxes, self.classes, self.scores, self.count) if name is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloOptions(DetectionOptions):
    """A detector with a raw head: one tensor with box and class scores for every place of the picture."""

    head: Literal["yolo"]
    corners: Corners = Corners.XYWH
    units: Units = Units.PIXELS
    #: What is still to be applied to the scores: none or sigmoid.
    activation: Literal[Activation.NONE, Activation.SIGMOID] = Activation.NONE
    #: Intersection over union above which the weaker box is dropped.
    overlap: Annotated[float, Limits(gt=0, lt=1)] = 0.45
    #: Boxes above the threshold that are looked at, best first.
    max_candidates: Annotated[int, Limits(ge=1, le=10_000)] = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloHead(YoloOptions):
    """A `yolo` detector with its tensor."""

    labels: Labels
    output: TensorName
    axes: Axes
    #: Whether the fifth number says that there is an object at all; the score is then the product of both.
    objectness: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that make the answer."""
        return (self.output,)

    @property
    def channels(self) -> int:
        """Numbers per box."""
        return 4 + self.objectness + len(self.labels)


DetectionHead = SsdHead | YoloHead


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueOptions:
    """How one number of an output becomes a value with a unit: activation(x) * factor + offset."""

    #: Which of the output's values.
    index: Annotated[int, Limits(ge=0)] = 0
    activation: Literal[Activation.NONE, Activation.SIGMOID] = Activation.NONE
    factor: float = 1.0
    offset: float = 0.0
    unit: ShortText = ""

    def __post_init__(self) -> None:
        if self.factor == 0.0:
            raise ValueError("factor is 0, which makes every value the same; leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyOptions(ValueOptions):
    """An anomaly score, and from where on it is an anomaly."""

    score: Score = Score.VALUE
    #: An anomaly is a score above this, in the score's own unit.
    threshold: float

    def __post_init__(self) -> None:
        ValueOptions.__post_init__(self)
        if self.score is Score.RECONSTRUCTION and (self.index, self.activation) != (0, Activation.NONE):
            raise ValueError("index and activation go with score = 'value'; a reconstruction is compared as a whole")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyScore(AnomalyOptions):
    """An anomaly score with its tensor."""

    output: TensorName


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionOptions(ValueOptions):
    """A measured value."""

    #: (lowest, highest) that can be: anything outside is counted as invalid and not published. None: every finite number.
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        ValueOptions.__post_init__(self)
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range {list(self.range)} is empty; wanted the lowest value, then the highest")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionValue(RegressionOptions):
    """A measured value with its tensor."""

    output: TensorName


def check_classification(tensor: TensorDescription, post: Postprocess) -> None:
    """Returns when the output has a score for each label. Raises: ValueError saying what was seen and wanted."""
    _check_output(tensor, OUTPUT_DTYPES)
    classes = tensor.size
    if len(post.labels) != classes:
        raise ValueError(f"labels has {len(post.labels)} entries; output {tensor.name!r} {list(tensor.shape)} has {classes} classes")
    if post.top_k > classes:
        raise ValueError(f"top_k {post.top_k} is more than the {classes} classes")


def check_detection(outputs: dict[str, TensorDescription], head: SsdHead | YoloHead) -> None:
    """Returns when the outputs are the head's. Raises: ValueError saying what was seen and wanted."""
    missing = [name for name in head.names if name not in outputs]
    if missing:
        raise ValueError(f"output {missing[0]!r} of the {head.head} head is not among the outputs {', '.join(map(repr, outputs))}")
    if isinstance(head, YoloHead):
        _check_yolo(outputs[head.output], head)
    else:
        _check_ssd(outputs, head)


def check_value(tensor: TensorDescription, post: AnomalyScore | RegressionValue, source: TensorDescription) -> None:
    """Returns when the output holds the value, or what the input `source` is compared with. Raises: ValueError."""
    _check_output(tensor, OUTPUT_DTYPES)
    if isinstance(post, AnomalyScore) and post.score is Score.RECONSTRUCTION:
        if tensor.size != source.size:
            raise ValueError(
                f"output {tensor.name!r} {list(tensor.shape)} has {tensor.size} values and input {source.name!r} {list(source.shape)} has "
                f"{source.size}; a reconstruction has as many as its input"
            )
    elif post.index >= tensor.size:
        raise ValueError(f"index {post.index} is beyond the {tensor.size} values of output {tensor.name!r} {list(tensor.shape)}")


def _check_output(tensor: TensorDescription, wanted: tuple[str, ...]) -> None:
    if tensor.dtype not in wanted:
        raise ValueError(f"output {tensor.name!r} has dtype {tensor.dtype!r}; wanted one of {', '.join(wanted)}")
    check_has_scale(tensor)


def _check_ssd(outputs: dict[str, TensorDescription], head: SsdHead) -> None:
    boxes, classes, scores = outputs[head.boxes], outputs[head.classes], outputs[head.scores]
    if len(set(head.names)) != len(head.names):
        raise ValueError(f"boxes, classes, scores and count name one output twice: {', '.join(head.names)}")
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes {boxes.name!r} has the shape {list(boxes.shape)}; wanted N x 4")
    for what, tensor in (("classes", classes), ("scores", scores)):
        if tensor.size * 4 != boxes.size:
            raise ValueError(
                f"{what} {tensor.name!r} {list(tensor.shape)} has {tensor.size} values for the {boxes.size // 4} boxes of {boxes.name!r}"
            )
    for tensor, wanted in ((boxes, OUTPUT_DTYPES), (scores, OUTPUT_DTYPES), (classes, NUMBER_DTYPES)):
        if tensor.dtype not in wanted:
            raise ValueError(f"output {tensor.name!r} has dtype {tensor.dtype!r}; wanted one of {', '.join(wanted)}")
    check_has_scale(boxes)
    check_has_scale(scores)
    if head.count is not None:
        count = outputs[head.count]
        if count.size != 1 or count.dtype not in NUMBER_DTYPES:
            raise ValueError(f"count {count.name!r} is {count.dtype}{list(count.shape)}; wanted one number")


def _check_yolo(tensor: TensorDescription, head: YoloHead) -> None:
    _check_output(tensor, OUTPUT_DTYPES)
    axis = -2 if head.axes is Axes.CHANNELS_BOXES else -1
    if len(tensor.shape) not in (2, 3) or tensor.shape[:-2] not in ((), (1,)):
        raise ValueError(f"output {tensor.name!r} has the shape {list(tensor.shape)}; wanted 1 x channels x boxes or 1 x boxes x channels")
    if tensor.shape[axis] != head.channels:
        raise ValueError(
            f"output {tensor.name!r} {list(tensor.shape)} has {tensor.shape[axis]} numbers per box; 4 for the box"
            f"{', 1 for the object' if head.objectness else ''} and {len(head.labels)} labels make {head.channels}"
        )
