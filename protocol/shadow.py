"""How a candidate compares with the champion on one device: counts that add up, and the report that carries them; pure.

`shadow`: both answer the same frames, so answers are compared in pairs. `ab`: each frame has one of the two, so only the arms compare.
The candidate's answers are never acted on in `shadow`; nothing here holds a frame.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from protocol.fields import Count, Name, ShortText, Text, UnixMs, Version
from protocol.sketches.fixed import DIFFERENCE, LATENCY_MS, SHARE, Cells, added

#: CloudEvents type of the event that carries a `ShadowReport` in its `data`.
EVENT_TYPE = "mooring.shadow.report.v1"
#: Labels, and pairs of labels, named one by one; the rest is summed up under `OTHER`.
MAX_LABELS = 64
OTHER = "(other)"
#: Boxes of both models are the same object from this overlap on.
SAME_BOX_IOU = 0.5

Label = Annotated[str, StringConstraints(max_length=200)]


class _Counted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, defer_build=True)


class Arm(_Counted):
    """What one of the two models did."""

    frames: Count = 0
    #: Frames on which it failed or whose answer was not finite.
    errors: Count = 0
    latency_ms: Cells = Cells(grid=LATENCY_MS.name)
    #: The best score of each answer that has one.
    confidence: Cells = Cells(grid=SHARE.name)
    #: Top class of a classification, every object of a detection.
    labels: dict[Label, Count] = Field(default_factory=dict, max_length=MAX_LABELS + 1)


class Disagreement(_Counted):
    """How often the champion said one class and the candidate another."""

    champion: Label
    candidate: Label
    count: Count


class Pairs(_Counted):
    """What both models said about the same frames."""

    compared: Count = 0
    #: Same top class; same verdict on an anomaly; every box matched.
    agreed: Count = 0
    #: Boxes of both that are one object, only the champion's, only the candidate's.
    boxes_both: Count = 0
    boxes_champion: Count = 0
    boxes_candidate: Count = 0
    #: Absolute differences of measured values.
    difference: Cells = Cells(grid=DIFFERENCE.name)
    disagreements: list[Disagreement] = Field(default_factory=list, max_length=MAX_LABELS + 1)

    @property
    def agreement(self) -> float | None:
        """0..1: the share of frames with the same top class; of detections the F1 of the boxes; None before the first pair."""
        boxes = self.boxes_both + self.boxes_both + self.boxes_champion + self.boxes_candidate
        if boxes:
            return 2 * self.boxes_both / boxes
        return self.agreed / self.compared if self.compared else None


class Comparison(_Counted):
    """Both arms, the pairs, and what it cost, over some time; comparisons of one candidate add up."""

    champion: Arm = Arm()
    candidate: Arm = Arm()
    pairs: Pairs = Pairs()
    #: Frames that the candidate was not given: no CPU left for it (`skipped`), longer than a buffer (`too_large`).
    skipped: Count = 0
    too_large: Count = 0
    #: CPU milliseconds that answering took in the shadow process; starting it is not in it.
    cpu_ms: Count = 0
    #: Milliseconds of real time over which it ran.
    wall_ms: Count = 0


class ShadowReport(_Counted):
    """The body of an event of type `EVENT_TYPE`: one candidate on one pipeline over one window."""

    v: Literal[1] = 1
    pipeline: Name
    line: Name
    run_as: Literal["shadow", "ab"]
    #: Releases that were compared.
    champion: Version
    candidate: Version
    assignment: ShortText
    campaign: ShortText = ""
    #: The window, Unix milliseconds of the device's clock.
    since: UnixMs
    until: UnixMs
    #: CPU share that the comparison may take, in thousandths of a core; 0 where there is no budget (`ab`).
    budget_permille: Count = 0
    #: gave_up: the candidate failed too often on this device; `reason` says how.
    state: Literal["running", "ended", "gave_up"] = "running"
    reason: ShortText = ""
    text: Text = ""
    figures: Comparison = Comparison()


def summed(parts: Iterable[Comparison]) -> Comparison:
    """All of them as one; the order does not matter as long as no more than MAX_LABELS labels occur."""
    items = list(parts)
    return Comparison(
        champion=_arm([one.champion for one in items]),
        candidate=_arm([one.candidate for one in items]),
        pairs=_pairs([one.pairs for one in items]),
        **{name: sum(getattr(one, name) for one in items) for name in ("skipped", "too_large", "cpu_ms", "wall_ms")},
    )


def _arm(arms: list[Arm]) -> Arm:
    labels: dict[str, int] = {}
    for arm in arms:
        for label, count in arm.labels.items():
            labels[label] = labels.get(label, 0) + count
    return Arm(
        frames=sum(arm.frames for arm in arms),
        errors=sum(arm.errors for arm in arms),
        latency_ms=added((arm.latency_ms for arm in arms), LATENCY_MS),
        confidence=added((arm.confidence for arm in arms), SHARE),
        labels=bounded(labels),
    )


def _pairs(all_pairs: list[Pairs]) -> Pairs:
    counts: dict[tuple[str, str], int] = {}
    for pairs in all_pairs:
        for one in pairs.disagreements:
            counts[one.champion, one.candidate] = counts.get((one.champion, one.candidate), 0) + one.count
    sums: dict[str, Any] = {
        name: sum(getattr(pairs, name) for pairs in all_pairs)
        for name in ("compared", "agreed", "boxes_both", "boxes_champion", "boxes_candidate")
    }
    return Pairs(
        difference=added((pairs.difference for pairs in all_pairs), DIFFERENCE),
        disagreements=[Disagreement(champion=a, candidate=b, count=number) for (a, b), number in bounded_pairs(counts).items()],
        **sums,
    )


def bounded(counts: dict[str, int]) -> dict[str, int]:
    """The MAX_LABELS most frequent ones by name, the others together as OTHER."""
    if len(counts) <= MAX_LABELS:
        return counts
    ranked = sorted((name for name in counts if name != OTHER), key=lambda name: (-counts[name], name))
    return {
        **{name: counts[name] for name in ranked[:MAX_LABELS]},
        OTHER: sum(counts.values()) - sum(counts[n] for n in ranked[:MAX_LABELS]),
    }


def bounded_pairs(counts: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """The MAX_LABELS most frequent pairs, the others together as OTHER with OTHER; most frequent first."""
    other = (OTHER, OTHER)
    ranked = sorted((pair for pair in counts if pair != other), key=lambda pair: (-counts[pair], pair))
    kept = {pair: counts[pair] for pair in ranked[:MAX_LABELS]}
    rest = sum(counts.values()) - sum(kept.values())
    return {**kept, other: rest} if rest else kept
