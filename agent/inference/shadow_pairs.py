"""Champion and candidate on the same frames, counted: what `protocol.shadow.Comparison` is made from. Pure."""

from agent.inference.messages import Box, Prediction
from protocol.shadow import MAX_LABELS, SAME_BOX_IOU, Arm, Comparison, Disagreement, Pairs, bounded, bounded_pairs
from protocol.sketches.fixed import DIFFERENCE, LATENCY_MS, SHARE, Counter

#: Labels and pairs counted one by one before the least frequent are summed up; memory stays bounded whatever the models say.
_KEPT = 4 * MAX_LABELS
#: Characters of a label that are kept.
MAX_LABEL = 200
#: Stands for the class of an answer without one.
NOTHING = "(nothing)"


class ArmTally:
    """One of the two models."""

    def __init__(self) -> None:
        self.frames = self.errors = 0
        self._latency, self._confidence = Counter(LATENCY_MS), Counter(SHARE)
        self._labels: dict[str, int] = {}

    def answered(self, answer: Prediction) -> None:
        """Count an answer."""
        self.frames += 1
        self._latency.add(answer.lat_ms)
        if (best := best_score(answer)) is not None:
            self._confidence.add(best)
        for label in labels_of(answer):
            self._labels[label] = self._labels.get(label, 0) + 1
        if len(self._labels) > _KEPT:
            self._labels = bounded(self._labels)

    def failed(self) -> None:
        """Count a frame without an answer."""
        self.frames += 1
        self.errors += 1

    def arm(self) -> Arm:
        """What was counted so far."""
        return Arm(
            frames=self.frames,
            errors=self.errors,
            latency_ms=self._latency.cells(),
            confidence=self._confidence.cells(),
            labels=bounded(dict(self._labels)),
        )


class PairTally:
    """Both models on the same frames."""

    def __init__(self) -> None:
        self._champion, self._candidate = ArmTally(), ArmTally()
        self._difference = Counter(DIFFERENCE)
        self._disagreements: dict[tuple[str, str], int] = {}
        self._compared = self._agreed = 0
        self._boxes = [0, 0, 0]

    def pair(self, champion: Prediction, candidate: Prediction) -> None:
        """Count the answers of both to one frame."""
        self._champion.answered(champion)
        self._candidate.answered(candidate)
        self._compared += 1
        if champion.value is not None or candidate.value is not None:
            is_same = self._measured(champion, candidate)
        elif champion.task == "detection" or champion.boxes or candidate.boxes:
            is_same = self._detected(champion.boxes, candidate.boxes)
        else:
            is_same = self._classified(champion, candidate)
        self._agreed += is_same

    def failed(self, champion: Prediction) -> None:
        """Count a frame that the candidate failed on."""
        self._champion.answered(champion)
        self._candidate.failed()

    def comparison(self, *, skipped: int = 0, too_large: int = 0, cpu_ms: int = 0, wall_ms: int = 0) -> Comparison:
        """What was counted so far, with what is counted elsewhere."""
        pairs = Pairs(
            compared=self._compared,
            agreed=self._agreed,
            boxes_both=self._boxes[0],
            boxes_champion=self._boxes[1],
            boxes_candidate=self._boxes[2],
            difference=self._difference.cells(),
            disagreements=[Disagreement(champion=a, candidate=b, count=n) for (a, b), n in bounded_pairs(self._disagreements).items()],
        )
        return Comparison(
            champion=self._champion.arm(),
            candidate=self._candidate.arm(),
            pairs=pairs,
            skipped=skipped,
            too_large=too_large,
            cpu_ms=cpu_ms,
            wall_ms=wall_ms,
        )

    def _classified(self, champion: Prediction, candidate: Prediction) -> bool:
        said = tuple(answer.top[0].label if answer.top else NOTHING for answer in (champion, candidate))
        return self._compare_labels(said[0], said[1])

    def _measured(self, champion: Prediction, candidate: Prediction) -> bool:
        if champion.value is None or candidate.value is None:
            return False
        self._difference.add(abs(champion.value - candidate.value))
        if champion.is_anomaly is None and candidate.is_anomaly is None:
            return champion.value == candidate.value
        said = tuple("anomaly" if answer.is_anomaly else "normal" for answer in (champion, candidate))
        return self._compare_labels(said[0], said[1])

    def _detected(self, champion: tuple[Box, ...], candidate: tuple[Box, ...]) -> bool:
        left = list(candidate)
        both = 0
        for box in champion:
            best = max((other for other in left if other.label == box.label), key=lambda other: overlap(box, other), default=None)
            if best is not None and overlap(box, best) >= SAME_BOX_IOU:
                left.remove(best)
                both += 1
            else:
                self._disagree(box.label, NOTHING)
        for box in left:
            self._disagree(NOTHING, box.label)
        self._boxes = [self._boxes[0] + both, self._boxes[1] + len(champion) - both, self._boxes[2] + len(left)]
        return both == len(champion) and not left

    def _compare_labels(self, one: str, other: str) -> bool:
        if one == other:
            return True
        self._disagree(one, other)
        return False

    def _disagree(self, champion: str, candidate: str) -> None:
        pair = (champion[:MAX_LABEL], candidate[:MAX_LABEL])
        self._disagreements[pair] = self._disagreements.get(pair, 0) + 1
        if len(self._disagreements) > _KEPT:
            self._disagreements = bounded_pairs(self._disagreements)


def best_score(answer: Prediction) -> float | None:
    """The highest score of the answer, 0..1; None when it has none."""
    if answer.top:
        return answer.top[0].score
    return max((box.score for box in answer.boxes), default=None)


def labels_of(answer: Prediction) -> tuple[str, ...]:
    """The top class of a classification, the class of each object of a detection."""
    if answer.boxes:
        return tuple(box.label[:MAX_LABEL] for box in answer.boxes)
    return (answer.top[0].label[:MAX_LABEL],) if answer.top else ()


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    union = (one.x1 - one.x0) * (one.y1 - one.y0) + (other.x1 - other.x0) * (other.y1 - other.y0) - shared
    return shared / union if union > 0 else 0.0
