"""From the outputs of a model to its answer, by task: one class each, all asked alike; `answerer_for` chooses."""

import math
from collections.abc import Mapping
from itertools import repeat
from operator import mul, sub
from typing import Protocol

import numpy as np

from runtime.answers import Answer, Classification, ClassScore, Measurement
from runtime.base import Array, InferFailed
from runtime.detection import Detector
from runtime.heads import Activation, AnomalyScore, Score
from runtime.manifest import AnomalyManifest, ClassificationManifest, DetectionManifest, ModelManifest, RegressionManifest
from runtime.numbers import Output, activate

#: The best of so few classes is found without numpy: its code would come back into caches that the model has emptied, for four operations.
FEW = 64


class Answerer(Protocol):
    """Turns the outputs of one model into answers; used by one thread."""

    #: The number that the latest answer stands on, before anything was left out: it never moves when a model is dead.
    best: float

    def run(
        self,
        outputs: Mapping[str, Array],
        *,
        inputs: Mapping[str, Array] | None = None,
        size: tuple[int, int] | None = None,
        reference: Array | None = None,
    ) -> Answer:
        """The answer in the outputs.

        `inputs` are what the model was given, `size` is (height, width) of the frame as captured, `reference` the window's numbers
        before they were quantized; None: the input's own shape, the input's own numbers.

        Raises: InferFailed, code not_finite when a number is NaN or infinite, bad_output when the outputs make no answer.
        """
        ...


def answerer_for(manifest: ModelManifest) -> Answerer:
    """What turns the model's outputs into answers."""
    match manifest:
        case ClassificationManifest():
            return Classifier(manifest)
        case DetectionManifest():
            return Detector(manifest)
        case AnomalyManifest() | RegressionManifest():
            return Measurer(manifest)
    raise RuntimeError(f"task {manifest.task!r} has no answerer")


class Classifier:
    """Turns the outputs of one model into classifications; compiled once from the signed model manifest."""

    def __init__(self, manifest: ClassificationManifest) -> None:
        self._output, self._post = Output(manifest.scores, runtime=manifest.runtime.name), manifest.postprocess
        #: One class, and no activation that looks at all of them: the largest raw number is the best class.
        self._is_plain = self._post.top_k == 1 and self._post.activation is Activation.NONE and self._output.is_integer
        self._is_few = self._post.top_k == 1 and manifest.scores.size <= FEW
        self.best = 0.0

    def run(
        self,
        outputs: Mapping[str, Array],
        *,
        inputs: Mapping[str, Array] | None = None,  # noqa: ARG002 - all tasks are asked alike
        size: tuple[int, int] | None = None,  # noqa: ARG002
        reference: Array | None = None,  # noqa: ARG002
    ) -> Classification:
        """The classification in the outputs. Raises: InferFailed when a score is not finite or the output is missing."""
        if self._is_few:
            return self._best_of_few(self._output.raw(outputs).reshape(-1).tolist())
        if self._is_plain:
            raw = self._output.raw(outputs)
            index = int(raw.argmax())
            return self._one(index, self._output.real_one(raw.item(index)))
        scores = self.scores(outputs)
        top_k = self._post.top_k
        if top_k == 1:
            index = int(scores.argmax())
            return self._one(index, float(scores[index]))
        best = np.argpartition(scores, -top_k)[-top_k:] if top_k < scores.size else np.arange(scores.size)
        best = best[np.lexsort((best, -scores[best]))]
        labels, threshold = self._post.labels, self._post.threshold
        self.best = float(scores[best[0]])
        return Classification(tuple(ClassScore(labels[i], int(i), float(scores[i])) for i in best if scores[i] >= threshold))

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, float32. Raises: InferFailed."""
        values = self._output.real(self._output.raw(outputs).reshape(-1))
        return activate(values, self._post.activation, self._post.temperature)

    def _best_of_few(self, raw: list[float]) -> Classification:
        """The best class of these raw numbers: the same as by `scores`, but for rounding. Raises: InferFailed."""
        output, temperature = self._output, self._post.temperature
        if not math.isfinite(sum(raw)):  # NaN and infinity stay in a sum, and float32 cannot make one of 64 numbers infinite
            raise output.not_finite()
        largest = max(raw)
        match self._post.activation:
            case Activation.NONE:
                score = (largest - output.zero) * output.scale
            case Activation.SOFTMAX:
                steps = map(sub, raw, repeat(largest))  # no comprehension: its operations would be most of what a frame takes here
                scale = output.scale / temperature
                score = 1.0 / sum(map(math.exp, steps if scale == 1.0 else map(mul, steps, repeat(scale))))
            case Activation.SIGMOID:
                score = 0.5 * (math.tanh((largest - output.zero) * output.scale / (2.0 * temperature)) + 1.0)
        return self._one(raw.index(largest), score)

    def _one(self, index: int, score: float) -> Classification:
        self.best = score
        return Classification((ClassScore(self._post.labels[index], index, score),) if score >= self._post.threshold else ())


class Measurer:
    """Turns the outputs of one model into an anomaly score or a measured value; compiled once from the signed model manifest."""

    def __init__(self, manifest: AnomalyManifest | RegressionManifest) -> None:
        post = manifest.postprocess
        described = {tensor.name: tensor for tensor in manifest.outputs}
        self._output = Output(described[post.output], runtime=manifest.runtime.name)
        self._source = Output(manifest.inputs[0], runtime=manifest.runtime.name)
        self._post = post
        self._is_reconstruction = isinstance(post, AnomalyScore) and post.score is Score.RECONSTRUCTION
        self._difference = np.zeros(manifest.inputs[0].size if self._is_reconstruction else 0, np.float32)
        self.best = 0.0

    def run(
        self,
        outputs: Mapping[str, Array],
        *,
        inputs: Mapping[str, Array] | None = None,
        size: tuple[int, int] | None = None,  # noqa: ARG002 - all tasks are asked alike
        reference: Array | None = None,
    ) -> Measurement:
        """The measurement in the outputs. Raises: InferFailed, code not_finite, out_of_range or bad_output."""
        post, output = self._post, self._output
        raw = output.raw(outputs).reshape(-1)
        if self._is_reconstruction:
            value = self._error(output.real(raw), inputs or {}, reference)
        else:
            value = output.real_one(raw[post.index])
            if post.activation is Activation.SIGMOID:
                value = float(activate(np.array([value], np.float32), post.activation)[0])
        value = value * post.factor + post.offset
        self.best = value
        if isinstance(post, AnomalyScore):
            return Measurement(value, post.unit, value > post.threshold)
        if post.range is not None and not post.range[0] <= value <= post.range[1]:
            raise InferFailed(
                f"Value {value:g} {post.unit} of output {output.name!r} is outside {post.range[0]:g} to {post.range[1]:g}.",
                backend="",
                code="out_of_range",
            )
        return Measurement(value, post.unit)

    def _error(self, seen: Array, inputs: Mapping[str, Array], reference: Array | None) -> float:
        """The mean squared difference of a reconstruction and what it should be."""
        wanted = self._source.real(self._source.raw(inputs)) if reference is None else reference
        np.subtract(seen, wanted.reshape(-1), out=self._difference)
        value = float(np.dot(self._difference, self._difference)) / self._difference.size
        if not np.isfinite(value):
            raise self._output.not_finite()
        return value
