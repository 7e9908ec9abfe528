"""What the drift benchmark counts as an alarm, a delay and a bound; and that means of a window are what its rows give."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="simulated cameras are drawn with OpenCV")
pytest.importorskip("sklearn", reason="simulated cameras see scikit-learn's digits")

from benchmarks.drift import outcomes, singles
from benchmarks.drift.bank import INDOOR, Bank
from benchmarks.drift.fleet import LEVELS, bound, matched_level
from benchmarks.drift.outcomes import Outcome
from benchmarks.drift.stream import Mixture, in_weeks, means, summaries
from benchmarks.drift.trial import HORIZON, Case, alarms, delay, device, ramp
from benchmarks.drift.world import course, weather
from protocol.sketches.grid import FeatureGroup, Grid, fit_feature
from protocol.sketches.tail import fit_tail


def test_crossings_within_a_day_of_an_alarm_are_that_alarm():
    crossings = np.zeros(1000, dtype=bool)
    crossings[[10, 11, 153, 154, 300]] = True
    assert alarms(crossings) == 3  # 10 with 11 and 153; 154; 300
    assert alarms(np.zeros(5, dtype=bool)) == 0


def test_a_delay_begins_with_one_and_ends_with_the_horizon():
    assert delay(np.array([True, True])) == 1
    assert delay(np.array([False, False, True])) == 3
    assert delay(np.zeros(HORIZON, dtype=bool)) == HORIZON


def test_the_bound_of_no_alarm_is_three_over_the_years():
    assert bound(0, 10) == pytest.approx(0.2996, abs=1e-3)
    assert bound(100, 100) == pytest.approx(1.1808, abs=1e-3)


def test_a_ramp_is_never_more_than_whole_and_ends_whole():
    half, full = ramp("a", "b")
    assert ((half.share + full.share) <= 1 + 1e-12).all()
    assert full.share[-1] == 1
    assert half.share[71] == pytest.approx(1)


def test_outcomes_come_back_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outcomes, "path", lambda: tmp_path / "outcomes.jsonl")
    made = Outcome("looks", "test", "indoor", "a/0", 1, 2, 1.0, {0.2: 3}, {0.2: {("full", "blur"): 4}}, {"x": [1.0]})
    assert outcomes.ensure([(made.key, lambda: made)]) == [made]

    def fails() -> Outcome:
        raise AssertionError("made twice")

    assert outcomes.ensure([(made.key, fails)]) == [made]


def test_the_matched_level_is_the_largest_that_raises_no_more_than_was_asked():
    made = [Outcome("psi", "study", "indoor", "a/0", index, 0, 1.0, _counts(), {}, {}) for index in range(2)]
    assert matched_level(made, 1.0) == pytest.approx(1e-6)
    assert matched_level(made, 0.5) == pytest.approx(1e-7)
    assert matched_level(made, 20.0) == LEVELS[-1]


def _counts() -> dict[float, int]:
    """Up to p = 1e-7 nothing, from there to 1e-6 an alarm on each device, then ten."""
    return {level: 10 if level > 1.01e-6 else int(level > 1.01e-7) for level in LEVELS}


def _bank() -> Bank:
    rng = np.random.default_rng(1)
    shape = (22, len(INDOOR.lights), len(INDOOR.weathers), 2)
    rows = rng.normal(size=(*shape, 2)).astype(np.float32)
    predicted = np.broadcast_to((np.arange(22) // 2)[:, None, None, None], shape).astype(np.int8)
    shifted = {"clean": rows, "worse": rows + 1}
    return Bank(INDOOR, "made up", shifted, {"clean": predicted, "worse": predicted}, np.arange(22) // 2)


def _grid() -> Grid:
    features = [fit_feature(f"f{index}", FeatureGroup.INPUT, np.random.default_rng(index).normal(size=4000), 32) for index in range(2)]
    return Grid(tuple(features), tuple(str(index) for index in range(11)), 1, 0)


def test_a_shift_in_some_rows_moves_the_mean_by_its_part_and_nothing_else():
    grid, bank = _grid(), _bank()
    table = means(grid, bank, ["worse"])
    path = course(bank, weather(2, (1, 2)), (1, 2))
    clean, none, fifth, whole = (
        summaries(bank, table, path, (1, 2), [Mixture("worse", np.full(288, share))] if share is not None else ())
        for share in (None, 0.0, 0.2, 1.0)
    )
    assert np.allclose(clean, none)
    moved, by_fifth = (whole - clean)[:, :2].mean(axis=0), (fifth - clean)[:, :2].mean(axis=0)
    assert (moved > 0.5).all()
    assert np.allclose(by_fifth / moved, 0.2, atol=0.02)
    assert np.allclose(clean[:, 4:].sum(axis=1), 1)


def test_single_statistics_week_by_week_are_those_of_all_at_once():
    grid, bank = _grid(), _bank()
    made = device(bank, means(grid, bank, ["worse"]), "study", 0, 0, 40)
    cells = singles.cells(grid, bank, ["worse"])
    whole = summaries(bank, cells.table, made.path, made.key)
    assert np.array_equal(np.concatenate(list(in_weeks(bank, cells.table, made.path, made.key))), whole)
    assert np.allclose(whole[:, cells.offsets[0] : cells.offsets[1]].sum(axis=1), 1), "shares of bins"
    clean, seen = singles.p_values(made, cells, [Case("worse", "full", (Mixture("worse", np.ones(HORIZON)),))])
    scores = singles.statistics(whole, whole[: 14 * 144].mean(axis=0), cells.offsets)
    assert clean.shape == (12 * 144, 4)
    for column in range(4):
        wanted = fit_tail(scores[14 * 144 : 28 * 144, column]).p_values(scores[28 * 144 :, column])
        assert clean[:, column] == pytest.approx(wanted, rel=1e-9)
    assert (np.median(seen["full", "worse"], axis=0) < np.median(clean, axis=0) / 10).all(), "what moved is seen"
