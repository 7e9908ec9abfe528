"""What drift watches of a model: one row of numbers per frame or window, from the model's own input tensor and its answer (DRIFT 1).

The device makes rows with it, and the server makes the reference profile of a model version with the same code: never two versions of
one number. Names are for ever; another computation is another name. numpy only; used by one thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.grid import STEPS_S, FeatureGroup
from runtime.answers import Answer
from runtime.base import Array
from runtime.image_features import EMBEDDING_NUMBERS, IMAGE_NUMBERS, Pictures
from runtime.manifest import ModelManifest
from runtime.numbers import Output
from runtime.output_features import OUTPUT_NUMBERS, Answers
from runtime.projection import EMBEDDED, signs
from runtime.sensor_features import Windows

#: Share of one core that making rows may take.
MAX_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Quality:
    """What was seen of the input on the way: for conditions, which are judged before a row is counted (DRIFT 1)."""

    #: Of the input tensor.
    shape: tuple[int, ...]
    #: Gray of 255 for pictures; deviations of the window's `std` for readings.
    mean: float
    deviation: float
    #: 64 bits of what was looked at: equal inputs have equal ones.
    hash: int
    #: Pixels or readings that are NaN, infinite or missing.
    not_finite: int
    #: Readings outside the range that the model manifest declares.
    out_of_range: int = 0
    #: Log of 1 + variance of the Laplacian of a picture: what a lens out of focus lowers; 0 for readings.
    sharpness: float = 0.0


def candidates(manifest: ModelManifest) -> tuple[str, ...]:
    """Names of all numbers that can be watched of a model, input first, then embedding, then output."""
    if manifest.preprocess is not None:
        return (*IMAGE_NUMBERS, *EMBEDDING_NUMBERS, *OUTPUT_NUMBERS[manifest.task])
    if manifest.window is None:
        raise RuntimeError("a manifest has preprocess or window")
    sensors = Windows(manifest.inputs[0], manifest.window).names
    return (*sensors, *(EMBEDDING_NUMBERS if manifest.embedding else ()), *OUTPUT_NUMBERS[manifest.task])


def group_of(name: str) -> FeatureGroup:
    """Where the feature of that name comes from."""
    kind = name.partition(".")[0]
    return FeatureGroup.INPUT if kind in ("image", "sensor") else FeatureGroup(kind)


def choose_step(cost_s: float) -> int:
    """Seconds between rows, 1, 2, 4 or 8, so that rows of that cost (CPU seconds) take at most 1 % of one core; 8 when none is enough."""
    return next((step for step in STEPS_S if cost_s <= MAX_SHARE * step), STEPS_S[-1])


class Extractor:
    """Makes the rows of one pipeline's model; its buffers are made once; used by one thread."""

    def __init__(self, manifest: ModelManifest, names: Sequence[str] | None = None) -> None:
        """Rows have the named numbers in that order; None: all candidates. An extractor of no names still tells the quality.

        Raises: InvalidError for a name that this version or this model does not have.
        """
        known = candidates(manifest)
        #: What the columns of a row are.
        self.names: tuple[str, ...] = known if names is None else tuple(names)
        for name in self.names:
            if name not in known:
                raise InvalidError(
                    f"Feature {name[:80]!r} is not made of models like this one; there are {', '.join(known)}.",
                    hint="Update the agent, or import the model again.",
                )
        self._columns = np.array([known.index(name) for name in self.names], np.intp)
        has_embedding = any(group_of(name) is FeatureGroup.EMBEDDING for name in self.names)
        has_own = manifest.embedding is not None
        self._pictures, self._windows, self._embedding = None, None, _Embedding(manifest) if has_own and has_embedding else None
        if manifest.preprocess is not None:
            self._pictures = Pictures(manifest.inputs[0], manifest.preprocess, has_filters=has_embedding and not has_own)
        elif manifest.window is not None:
            self._windows = Windows(manifest.inputs[0], manifest.window)
        self._answers = Answers(manifest)
        self._all: Array = np.zeros(len(known), np.float32)
        self._outputs_at = len(known) - self._answers.numbers.size
        self._row: Array = np.zeros(len(self.names), np.float32)
        #: Of the latest row's input; None before the first.
        self.quality: Quality | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the latest row: label of the best class, or of each object that was found; what `Grid.slot` is asked with."""
        return self._answers.labels

    def forget(self) -> None:
        """The next frame has none before it: another session of the source, or another model, began."""
        self._answers.forget()
        if self._windows is not None:
            self._windows.forget()

    def row(
        self,
        tensor: Array,
        answer: Answer,
        *,
        outputs: Mapping[str, Array] | None = None,
        size: tuple[int, int] | None = None,
        readings: Array | None = None,
    ) -> Array:
        """The numbers of one frame or window: float32, one per name, overwritten by the next call.

        `tensor` is the model's input as it was inferred, `outputs` the model's own, `size` (height, width) of the frame behind the
        tensor, `readings` the window before it became the tensor. A number that cannot be told is NaN; nothing is raised for data.
        """
        self.quality = self.look(tensor, size=size, readings=readings)
        if self._embedding is not None:
            at = self._outputs_at - EMBEDDED
            self._all[at : self._outputs_at] = self._embedding.of(outputs)
        self._answers.look(answer, outputs)
        self._all[self._outputs_at :] = self._answers.numbers
        return self._all.take(self._columns, out=self._row)

    def look(self, tensor: Array, *, size: tuple[int, int] | None = None, readings: Array | None = None) -> Quality:
        """The quality of an input, also of one that was not inferred; what a row says of the input is kept for it."""
        if self._pictures is not None:
            light = self._pictures.look(tensor, size=size)
            count = len(IMAGE_NUMBERS)
            self._all[:count] = self._pictures.numbers
            self._all[count : count + EMBEDDED] = self._pictures.responses
            return Quality(tensor.shape, light.mean, light.deviation, light.hash, light.not_finite, sharpness=light.sharpness)
        if self._windows is None:
            raise RuntimeError("a manifest has preprocess or window")
        signal = self._windows.look(tensor, readings)
        self._all[: self._windows.numbers.size] = self._windows.numbers
        return Quality(tensor.shape, signal.mean, signal.deviation, signal.hash, signal.not_finite, signal.out_of_range)


class _Embedding:
    """The output that the model manifest names as embedding, brought to eight numbers."""

    def __init__(self, manifest: ModelManifest) -> None:
        described = next(one for one in manifest.outputs if one.name == manifest.embedding)
        self._output = Output(described, runtime=manifest.runtime.name)
        self._name, self._size = described.name, described.size
        self._signs = signs("embedding", described.size, EMBEDDED)

    def of(self, outputs: Mapping[str, Array] | None) -> Array:
        """The eight numbers; NaN without the output."""
        raw = None if outputs is None else outputs.get(self._name)
        if raw is None or raw.size != self._size:
            return np.full(EMBEDDED, np.nan, np.float32)
        values = raw.reshape(-1).astype(np.float32)
        if self._output.is_integer:
            values = self._output.real(raw.reshape(-1))
        return np.asarray(values @ self._signs)
