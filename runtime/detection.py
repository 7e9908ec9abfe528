"""From the outputs of a detector to the objects of a frame: few candidates first, by their raw scores; the rest is never dequantized.

Boxes come out in shares of the frame as captured: letterbox and crop of the model's preprocessing are undone.
"""

from collections.abc import Mapping

import numpy as np

from runtime.answers import Detected, Detections
from runtime.base import Array
from runtime.heads import Axes, Corners, SsdHead, Units, YoloHead
from runtime.manifest import DetectionManifest
from runtime.nms import suppress
from runtime.numbers import Output, activate, before
from runtime.preprocess import Placement, Plan, compile_plan, placement

#: Boxes narrower or lower than this share of the frame lie in the bars of a letterbox, or nowhere.
_MIN_SIDE = 1e-4


class Detector:
    """Turns the outputs of one detector into objects; compiled once from the signed model manifest; used by one thread."""

    def __init__(self, manifest: DetectionManifest) -> None:
        head = manifest.postprocess
        self._head = head
        self._plan: Plan = compile_plan(manifest)
        self._placements: dict[tuple[int, int], Placement] = {}
        described = {tensor.name: tensor for tensor in manifest.outputs}
        outputs = {name: Output(described[name], runtime=manifest.runtime.name) for name in head.names}
        self._reader = _Ssd(head, outputs) if isinstance(head, SsdHead) else _Yolo(head, outputs)
        #: Raw-score best of the latest frame, above the threshold or not; tells a detector that is alive from one that is not.
        self.best = 0.0

    def run(
        self,
        outputs: Mapping[str, Array],
        *,
        inputs: Mapping[str, Array] | None = None,  # noqa: ARG002 - all tasks are asked alike
        size: tuple[int, int] | None = None,
        reference: Array | None = None,  # noqa: ARG002
    ) -> Detections:
        """The objects; `size` is (height, width) of the frame as captured, None for a frame of the input's own shape.

        Raises: InferFailed, code not_finite or bad_output.
        """
        head = self._head
        boxes, scores, classes = self._reader.candidates(outputs)
        self.best = self._reader.best
        if not scores.size:
            return Detections(())
        corners = self._in_frame(_corners(boxes, head.corners), size)
        is_real = ((corners[:, 2:] - corners[:, :2]) > _MIN_SIDE).all(axis=1)
        if not is_real.all():
            corners, scores, classes = corners[is_real], scores[is_real], classes[is_real]
        if head.overlap is None:
            order = np.argsort(-scores, kind="stable")[: head.max_detections]
        else:
            rivals = None if head.class_agnostic else classes
            order = suppress(corners, scores, rivals, overlap=head.overlap, limit=head.max_detections)
        labels = head.labels
        return Detections(
            tuple(
                Detected(labels[index], index, score, (box[0], box[1], box[2], box[3]))
                for index, score, box in zip(classes[order].tolist(), scores[order].tolist(), corners[order].tolist(), strict=True)
            )
        )

    def _in_frame(self, boxes: Array, size: tuple[int, int] | None) -> Array:
        """Boxes of the input as shares of the frame, inside it; changes them in place."""
        plan = self._plan
        size = size or (plan.height, plan.width)
        place = self._placements.get(size)
        if place is None:
            if len(self._placements) >= 16:  # a source changes its size now and then, not with every frame
                self._placements.clear()
            place = self._placements[size] = placement(plan, height=size[0], width=size[1])
        if self._head.units is Units.PIXELS:
            boxes[:, 0::2] /= plan.width
            boxes[:, 1::2] /= plan.height
        if not place.is_whole:
            boxes *= place.factor
            boxes += place.shift
        return np.clip(boxes, 0.0, 1.0, out=boxes)


class _Ssd:
    """Candidates of post-processed outputs."""

    def __init__(self, head: SsdHead, outputs: Mapping[str, Output]) -> None:
        self._boxes, self._classes, self._scores = outputs[head.boxes], outputs[head.classes], outputs[head.scores]
        self._count = None if head.count is None else outputs[head.count]
        self._threshold, self._first, self._labels = head.threshold, head.first_class, len(head.labels)
        self.best = 0.0

    def candidates(self, outputs: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """(boxes [M, 4], scores [M], class indices [M]) above the threshold."""
        raw = self._scores.raw(outputs).reshape(-1)
        if self._count is not None:
            count = self._count.real_one(self._count.raw(outputs).item())
            if count < 0:
                raise self._count.bad(f"says that there are {count:g} objects.")
            raw = raw[: int(count)]
        scores = self._scores.real(raw)
        self.best = float(scores.max(initial=0.0))
        chosen = np.flatnonzero(scores >= self._threshold)
        boxes = self._boxes.real(self._boxes.raw(outputs).reshape(-1, 4)[chosen])
        numbers = self._classes.raw(outputs).reshape(-1)[chosen]
        classes = numbers.astype(np.int64) if self._classes.is_integer else np.rint(self._classes.real(numbers)).astype(np.int64)
        classes -= self._first
        if chosen.size and (classes.min() < 0 or classes.max() >= self._labels):
            wrong = int(classes[(classes < 0) | (classes >= self._labels)][0]) + self._first
            raise self._classes.bad(f"names class {wrong}; labels are for classes {self._first} to {self._first + self._labels - 1}.")
        return boxes, scores[chosen], classes


class _Yolo:
    """Candidates of a raw head."""

    def __init__(self, head: YoloHead, outputs: Mapping[str, Output]) -> None:
        self._head, self._output = head, outputs[head.output]
        self._bound = self._output.raw_bound(before(head.threshold, head.activation))
        self.best = 0.0

    def candidates(self, outputs: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """(boxes [M, 4], scores [M], class indices [M]) above the threshold, at most `max_candidates`."""
        head, output = self._head, self._output
        raw = output.raw(outputs)
        raw = raw.reshape(raw.shape[-2:])
        channels = raw if head.axes is Axes.CHANNELS_BOXES else raw.T
        # a score is never above either of its factors: the raw numbers decide, most boxes end here
        gate = channels[4] if head.objectness else channels[4:].max(axis=0)
        if not output.is_integer and not np.isfinite(gate).all():
            raise output.not_finite()
        chosen = np.flatnonzero(gate >= self._bound)
        self.best = float(gate.max())
        if chosen.size > head.max_candidates:
            strength = gate[chosen]
            chosen = chosen[np.argpartition(strength, -head.max_candidates)[-head.max_candidates :]]
            chosen.sort()
        picked = np.ascontiguousarray(channels[:, chosen].T)
        classes = picked[:, 4 + head.objectness :].argmax(axis=1)
        marks = picked[np.arange(chosen.size), classes + 4 + head.objectness]
        scores = activate(output.real(marks), head.activation)
        if head.objectness:
            scores = scores * activate(output.real(picked[:, 4]), head.activation)
            keep = scores >= head.threshold
            picked, scores, classes = picked[keep], scores[keep], classes[keep]
        return output.real(picked[:, :4]), np.asarray(scores), classes


def _corners(boxes: Array, corners: Corners) -> Array:
    """[M, 4] as x0, y0, x1, y1, float32, an array of its own."""
    match corners:
        case Corners.XYXY:
            return boxes
        case Corners.YXYX:
            return boxes[:, [1, 0, 3, 2]]
        case Corners.XYWH:
            half = boxes[:, 2:] * np.float32(0.5)
            return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
