"""Whether a detector with ranked outputs answers its golden vectors: ranks of near ties change from processor to processor.

So the rows of an `ssd` head are not compared one by one on another runtime: the scores are, in order, and the objects that are clear.
"""

import math
from collections.abc import Iterable

import numpy as np

from runtime.answers import Detected
from runtime.base import InferFailed
from runtime.detection import Detector
from runtime.golden import Difference, Goldens, Tensors, compare, expected_for
from runtime.heads import SsdHead
from runtime.manifest import DetectionManifest, ModelManifest
from runtime.nms import intersection_over_union
from runtime.numbers import Output

#: Scores of one rank on two runtimes (0..1): LiteRT's kernels differ by up to 0.03 among themselves on the same processor.
SCORE_TOLERANCE = 0.06
#: Objects this far above the threshold must be there on both.
CLEAR = 0.1
#: Intersection over union of one object on two runtimes, at least.
OVERLAP = 0.5


def compare_answers(manifest: ModelManifest, goldens: Goldens, results: Iterable[Tensors], *, key: str) -> tuple[Difference, ...]:
    """Where the results are not what was expected; `golden.compare` for all models but detectors with ranked outputs on another runtime."""
    rows = list(results)
    found_key, expected = expected_for(goldens, key)
    if found_key == key or not isinstance(manifest, DetectionManifest) or not isinstance(manifest.postprocess, SsdHead):
        return compare(goldens, rows, key=key)
    differences = list(compare(goldens, rows, key=key, skip=frozenset(manifest.postprocess.names)))
    judge = _Judge(manifest, manifest.postprocess)
    for vector, (wanted, seen) in enumerate(zip(expected, rows, strict=False)):
        difference = judge.difference(wanted, seen)
        if difference is not None:
            differences.append(Difference(vector, *difference, expected_key=found_key))
    return tuple(differences)


class _Judge:
    def __init__(self, manifest: DetectionManifest, head: SsdHead) -> None:
        described = {tensor.name: tensor for tensor in manifest.outputs}
        self._scores, self._head = Output(described[head.scores], runtime=manifest.runtime.name), head
        self._detector = Detector(manifest)

    def difference(self, wanted: Tensors, seen: Tensors) -> tuple[str, float, float, str] | None:
        """(output, seen, allowed, unit) of what differs too much in one vector."""
        try:
            return self._compared(wanted, seen)
        except InferFailed:  # a number that is not finite, or a class without a label
            return self._head.scores, math.inf, SCORE_TOLERANCE, "score"

    def _compared(self, wanted: Tensors, seen: Tensors) -> tuple[str, float, float, str] | None:
        ranked = [np.sort(self._scores.real(self._scores.raw(outputs).reshape(-1))) for outputs in (wanted, seen)]
        off = float(np.abs(ranked[0] - ranked[1]).max())
        if off > SCORE_TOLERANCE:
            return self._head.scores, off, SCORE_TOLERANCE, "score"
        one, other = (self._detector.run(outputs).items for outputs in (wanted, seen))
        missing = self._unmatched(one, other) + self._unmatched(other, one)
        return (self._head.boxes, float(missing), 0.0, "objects") if missing else None

    def _unmatched(self, one: tuple[Detected, ...], other: tuple[Detected, ...]) -> int:
        """How many clear objects of one have no counterpart in the other."""
        clear = [item for item in one if item.score >= self._head.threshold + CLEAR]
        if not clear:
            return 0
        if not other:
            return len(clear)
        overlaps = intersection_over_union(np.array([item.box for item in clear]), np.array([item.box for item in other]))
        same = np.array([[item.label == candidate.label for candidate in other] for item in clear])
        return int(np.count_nonzero(~((overlaps >= OVERLAP) & same).any(axis=1)))
