"""Two answers to one frame are the same, or it is known how they differ; what is kept stays bounded."""

from dataclasses import replace

import pytest

from agent.inference.messages import Box, Prediction, ScoredLabel
from agent.inference.shadow_pairs import NOTHING, PairTally, overlap
from protocol.shadow import MAX_LABELS, OTHER, Comparison

ANSWER = Prediction("door", "person", "1.0", 1, 1, 0, (), 2.0, 3.0)


def said(*labels: str, score: float = 0.9, **changes: object) -> Prediction:
    top = tuple(ScoredLabel(label, index, score) for index, label in enumerate(labels))
    return replace(ANSWER, top=top, **changes)


def found(*boxes: tuple[str, float]) -> Prediction:
    """Boxes of a label at a place, each 0.2 wide and high."""
    return replace(ANSWER, task="detection", boxes=tuple(Box(label, 0, 0.8, x, 0.0, x + 0.2, 0.2) for label, x in boxes))


def measured(value: float, *, is_anomaly: bool | None = None) -> Prediction:
    return replace(ANSWER, task="regression" if is_anomaly is None else "anomaly", value=value, is_anomaly=is_anomaly)


def compared(*pairs: tuple[Prediction, Prediction]) -> Comparison:
    tally = PairTally()
    for champion, candidate in pairs:
        tally.pair(champion, candidate)
    return tally.comparison()


def test_the_top_class_decides_whether_two_classifications_agree():
    result = compared((said("cat", "dog"), said("cat")), (said("cat"), said("dog")), (said(), said("dog")), (said(), said()))
    assert (result.pairs.compared, result.pairs.agreed, result.pairs.agreement) == (4, 2, 0.5)
    seen = {(one.champion, one.candidate): one.count for one in result.pairs.disagreements}
    assert seen == {("cat", "dog"): 1, (NOTHING, "dog"): 1}
    assert result.champion.labels == {"cat": 2}
    assert result.candidate.labels == {"cat": 1, "dog": 2}


def test_boxes_of_one_class_that_overlap_by_half_are_one_object():
    result = compared((found(("car", 0.0), ("car", 0.5)), found(("car", 0.02), ("bus", 0.5), ("car", 0.8))))
    pairs = result.pairs
    assert (pairs.boxes_both, pairs.boxes_champion, pairs.boxes_candidate) == (1, 1, 2)
    assert pairs.agreement == pytest.approx(2 / 5)
    assert pairs.agreed == 0
    assert compared((found(("car", 0.1)), found(("car", 0.1)))).pairs.agreed == 1
    assert compared((found(), found())).pairs.agreement == 1.0


def test_each_box_is_matched_once_and_with_the_best():
    result = compared((found(("car", 0.0), ("car", 0.06)), found(("car", 0.06))))
    assert (result.pairs.boxes_both, result.pairs.boxes_champion) == (1, 1)


def test_measured_values_differ_by_how_much():
    result = compared((measured(10.0), measured(12.5)), (measured(1.0), measured(1.0)))
    assert result.pairs.difference.count == 2
    assert result.pairs.difference.mean == pytest.approx(1.25)
    assert result.pairs.agreed == 1


def test_anomalies_agree_by_their_verdict():
    result = compared(
        (measured(0.9, is_anomaly=True), measured(0.7, is_anomaly=True)), (measured(0.2, is_anomaly=False), measured(0.8, is_anomaly=True))
    )
    assert (result.pairs.compared, result.pairs.agreed) == (2, 1)
    assert [(one.champion, one.candidate) for one in result.pairs.disagreements] == [("normal", "anomaly")]


def test_a_frame_that_the_candidate_fails_on_is_its_error_and_no_pair():
    tally = PairTally()
    tally.failed(said("cat"))
    result = tally.comparison(skipped=3, too_large=1, cpu_ms=5, wall_ms=9)
    assert (result.champion.frames, result.candidate.frames, result.candidate.errors, result.pairs.compared) == (1, 1, 1, 0)
    assert (result.skipped, result.too_large, result.cpu_ms, result.wall_ms) == (3, 1, 5, 9)


def test_latency_and_confidence_are_kept_per_arm():
    result = compared((said("cat", score=0.9, lat_ms=2.0), said("cat", score=0.5, lat_ms=6.0)))
    assert result.champion.latency_ms.mean == 2.0
    assert result.candidate.latency_ms.mean == 6.0
    assert result.candidate.confidence.mean == 0.5


def test_what_is_kept_stays_bounded_whatever_the_models_say():
    result = compared(*((said(f"label-{number}"), said(f"other-{number}")) for number in range(2000)))
    assert len(result.champion.labels) == MAX_LABELS + 1
    assert sum(result.champion.labels.values()) == 2000
    assert len(result.pairs.disagreements) == MAX_LABELS + 1
    assert sum(one.count for one in result.pairs.disagreements) == 2000
    assert result.pairs.disagreements[-1].champion == OTHER


def test_boxes_apart_or_without_area_do_not_overlap():
    one = Box("car", 0, 0.5, 0.0, 0.0, 0.2, 0.2)
    assert overlap(one, replace(one, x0=0.5, x1=0.7)) == 0.0
    assert overlap(one, replace(one, x0=0.1, x1=0.1)) == 0.0
    assert overlap(one, one) == 1.0
