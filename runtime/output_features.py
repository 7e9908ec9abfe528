"""What drift watches in the answers of a model, by task; numpy only.

Numbers of an answer that is empty are 0, not missing: a frame without objects is an answer too.
"""

import math
from collections.abc import Mapping

import numpy as np

from runtime.answers import Answer, Classification, Detections, Measurement
from runtime.base import Array
from runtime.manifest import ClassificationManifest, ModelManifest
from runtime.postprocess import Classifier

#: Names by task, in the order of `Answers.numbers`.
OUTPUT_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "classification": ("output.confidence", "output.entropy"),
    "detection": ("output.count", "output.top-score", "output.mean-score", "output.area", "output.aspect"),
    "regression": ("output.value", "output.step"),
    "anomaly": ("output.score", "output.step"),
}


class Answers:
    """Looks at the answers of one model; used by one thread."""

    def __init__(self, manifest: ModelManifest) -> None:
        self._classifier = Classifier(manifest) if isinstance(manifest, ClassificationManifest) else None
        self._labels = manifest.postprocess.labels if isinstance(manifest, ClassificationManifest) else ()
        self._before: float | None = None
        #: The numbers of the latest answer, float32, overwritten.
        self.numbers: Array = np.zeros(len(OUTPUT_NUMBERS[manifest.task]), np.float32)
        #: Label of the best class, or of each object that was found.
        self.labels: tuple[str, ...] = ()

    def forget(self) -> None:
        """The next answer has none before it: another session of the source began."""
        self._before = None

    def look(self, answer: Answer, outputs: Mapping[str, Array] | None) -> None:
        """Fill `numbers` and `labels`.

        `outputs` are the model's own, from which entropy is computed over all classes; without them the classes that the answer does
        not name share what is left of 1.
        """
        match answer:
            case Classification():
                self._classes(answer, outputs)
            case Detections():
                self._objects(answer)
            case Measurement():
                self.numbers[0] = answer.value
                self.numbers[1] = 0.0 if self._before is None else abs(answer.value - self._before)
                self._before, self.labels = answer.value, ()

    def _classes(self, answer: Classification, outputs: Mapping[str, Array] | None) -> None:
        if outputs is not None and self._classifier is not None:
            scores = self._classifier.scores(outputs)
            best = int(scores.argmax())
            self.labels = (self._labels[best],)
            self.numbers[0], self.numbers[1] = scores[best], entropy_of(scores)
            return
        top = answer.top
        self.labels = (top[0].label,) if top else ()
        self.numbers[0] = top[0].score if top else 0.0
        named = np.array([one.score for one in top], np.float32)
        rest = len(self._labels) - len(top)
        others = np.full(rest, max(0.0, 1.0 - float(named.sum())) / max(1, rest), np.float32)
        self.numbers[1] = entropy_of(np.concatenate([named, others]))

    def _objects(self, answer: Detections) -> None:
        items = answer.items
        self.labels = tuple(one.label for one in items)
        self.numbers[0] = len(items)
        if not items:
            self.numbers[1:] = 0.0
            return
        boxes = np.array([one.box for one in items], np.float64)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
        scores = [one.score for one in items]
        self.numbers[1], self.numbers[2] = max(scores), sum(scores) / len(scores)
        self.numbers[3] = np.median(sides[:, 0] * sides[:, 1])
        self.numbers[4] = np.median(np.log(sides[:, 0] / sides[:, 1]))


def entropy_of(scores: Array) -> float:
    """Predictive entropy in nats, 0 to log(classes): of the scores as shares of their sum, or of their softmax when one is negative."""
    values = scores.astype(np.float64)
    if values.min(initial=0.0) < 0.0:
        values = np.exp(values - values.max())
    total = float(values.sum())
    if not total > 0.0 or not math.isfinite(total):
        return 0.0
    shares = values / total
    shares = shares[shares > 0.0]
    return float(max(0.0, -(shares * np.log(shares)).sum()))
