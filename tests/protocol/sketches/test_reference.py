"""What a device learns of its clean windows, and how surprising another one is."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from grids import MODEL, plain_grid, plain_reference, wide_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.messages import ReferenceLearned
from protocol.sketches import reference as references
from protocol.sketches.evidence import e_values
from protocol.sketches.expectations import COMPONENTS, Kind
from protocol.sketches.grid import FeatureGroup, Grid
from protocol.sketches.looks import (
    HOURLY_LOOKS,
    LOOKS,
    Judges,
    Look,
    LookReference,
    Modes,
    calibrated,
    classes_of,
    judged,
    judged_by,
    looks_for,
)
from protocol.sketches.powers import ClassPowers
from protocol.sketches.reference import (
    DeviceReference,
    Grade,
    carried_over,
    choose_block,
    complete_days,
    decode_reference,
    encode_reference,
    fit_reference,
    grade_of,
    shared_coordinates,
)
from protocol.sketches.scatter import Scatter, fit_scatter
from protocol.sketches.shares import ClassShares
from protocol.sketches.tail import MAX_SCORES, P_MAX, P_MIN, Tail, fit_tail
from protocol.topics import MAX_PACKET_BYTES

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sketches" / "reference.3.cbor"
GRID = plain_grid()
#: As `LOOKS`, with another part of the budget for one that judges ten minutes, and for one that judges hours.
OTHER, OTHER_OF_MEANS = (
    tuple(replace(one, share=0.1) if one.name == name else one for one in LOOKS) for name in (LOOKS[4].name, LOOKS[6].name)
)
D = 9
FIRST = 144 * 20_000


def vectors(generator: np.random.Generator, n: int, d: int = D) -> np.ndarray:
    """Summaries float64[n, d] of coordinates that hang together."""
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return generator.normal(size=(n, d)) @ mixing + 0.1


def learned(days: int, *, seed: int = 0, **other: Any) -> DeviceReference:
    """A reference of so many days of independent windows."""
    n = 144 * days
    return fit_reference(vectors(np.random.default_rng(seed), n), FIRST + np.arange(n), grid=GRID, model=MODEL, **other)


# --- mean and covariance ---


def test_the_shrinkage_is_that_of_ledoit_and_wolf():
    covariance = pytest.importorskip("sklearn.covariance", reason="scikit-learn is no dependency")
    summaries = vectors(np.random.default_rng(1), 300)
    made = fit_scatter(summaries)
    x = made.standardized(summaries)
    wanted, shrinkage = covariance.ledoit_wolf(x, assume_centered=True)
    assert made.shrinkage == pytest.approx(shrinkage)
    assert np.allclose(made.factor @ made.factor.T, wanted)


def test_the_score_is_the_distance_that_contributions_add_up_to():
    made = fit_scatter(vectors(np.random.default_rng(2), 500))
    fresh = vectors(np.random.default_rng(3), 20)
    x = (fresh - made.mean) / made.deviation
    inverse = np.linalg.inv(made.factor @ made.factor.T)
    wanted = np.einsum("nd,de,ne->n", x, inverse, x)
    assert np.allclose(made.scores(fresh), wanted)
    assert [made.contributions(row).sum() for row in fresh] == pytest.approx(wanted.tolist())


def test_what_is_not_known_counts_as_average():
    summaries = vectors(np.random.default_rng(4), 400)
    summaries[::7, 2] = np.nan
    summaries[:, 5] = np.nan
    made = fit_scatter(summaries)
    assert made.mean[2] == pytest.approx(np.nanmean(summaries[:, 2]))
    assert np.isnan(made.mean[5])
    row = vectors(np.random.default_rng(5), 1)
    others = np.where(np.arange(D) == 5, 1e9, row)
    assert made.scores(row) == pytest.approx(made.scores(others)), "a coordinate that was never known raises nothing"


def test_a_coordinate_that_never_varied_has_the_least_deviation():
    summaries = vectors(np.random.default_rng(6), 200)
    summaries[:, 0] = 0.25
    assert fit_scatter(summaries).deviation[0] == 1e-3
    assert fit_scatter(summaries, floor=0.01).deviation[0] == 0.01


@pytest.mark.parametrize("days", [14, 28])
def test_a_few_predictions_of_a_class_that_was_never_seen_are_no_alarm_and_many_are(days: int):
    n = 144 * days
    summaries = vectors(np.random.default_rng(18), n)
    summaries[:, 8] = 0
    made = fit_reference(summaries, FIRST + np.arange(n), grid=GRID, model=MODEL)
    assert not made.looks[0].modes.is_degenerate
    fresh = vectors(np.random.default_rng(19), 500)
    fresh[:, 8] = 0
    with_two, with_many = fresh.copy(), fresh.copy()
    with_two[:, 8], with_many[:, 8] = 2 / 600, 60 / 600
    usual, two, many = (e_values(made.p_values(made.scores(windows))) for windows in (fresh, with_two, with_many))
    assert np.median(two) < 40 * np.median(usual)
    assert two.max() < 144 * 365 < many.min(), "alone"


def test_windows_that_are_all_the_same_are_degenerate():
    made = fit_scatter(np.full((50, D), 0.5))
    assert made.is_degenerate
    assert made.shrinkage == 1


def test_one_window_makes_no_covariance():
    with pytest.raises(InvalidError) as refused:
        fit_scatter(np.ones((1, D)))
    assert refused.value.code == "too-few"


def test_a_part_is_the_covariance_of_those_coordinates():
    made = fit_scatter(vectors(np.random.default_rng(7), 500))
    chosen = np.array([1, 4, 6])
    whole = made.factor @ made.factor.T
    part = made.part(chosen)
    assert np.allclose(part.factor @ part.factor.T, whole[np.ix_(chosen, chosen)])
    assert part.mean.tolist() == made.mean[chosen].tolist()


# --- the tail ---


def test_a_tail_of_known_shape_is_found():
    uniform = (np.arange(20_000) + 0.5) / 20_000
    made = fit_tail(4 * (uniform**-0.2 - 1) / 0.2)
    assert made.xi == pytest.approx(0.2, abs=0.03)
    assert made.q == pytest.approx(4 * (0.05**-0.2 - 1) / 0.2, rel=0.01)
    assert len(made.scores) == MAX_SCORES


def test_p_values_are_ranks_up_to_the_tail_and_the_tail_beyond():
    made = Tail(np.arange(200, dtype=np.float32), q=189.05, xi=0.1, sigma=5.0)
    assert made.p_values(np.array([0.0, 100.0, 100.5, 189.0])) == pytest.approx([P_MAX, 101 / 201, 100 / 201, 12 / 201])
    assert made.p_values(np.array([199.05]))[0] == pytest.approx(0.05 * (1 + 0.1 * 10 / 5) ** -10, rel=1e-5)
    assert made.p_values(np.array([1e30, 1e300, np.inf])).tolist() == [P_MIN] * 3
    assert np.isnan(made.p_values(np.array([np.nan]))[0])


def test_p_values_never_rise_with_the_score():
    made = fit_tail(np.random.default_rng(8).gamma(4, size=1000))
    p = made.p_values(np.linspace(0, 60, 5000))
    # at the seam rank and tail differ by what a step of ranks is
    assert np.diff(p).max() < 2 / 1000
    assert ((p >= P_MIN) & (p <= P_MAX)).all()


@pytest.mark.parametrize("scores", [np.arange(99.0), np.ones(500), np.array([np.inf] * 200), np.array([np.nan] * 200)])
def test_too_few_scores_or_scores_all_alike_make_no_tail(scores: np.ndarray):
    with pytest.raises(InvalidError) as refused:
        fit_tail(scores)
    assert refused.value.code == "too-few"


@pytest.mark.parametrize(
    "change",
    [
        {"scores": np.arange(99, dtype=np.float32)},
        {"scores": np.arange(200, dtype=np.float32)[::-1]},
        {"scores": np.arange(-1, 199, dtype=np.float32)},
        {"scores": np.full(200, np.nan, np.float32)},
        {"q": 500.0},
        {"q": float("nan")},
        {"xi": 0.0},
        {"xi": 2.0},
        {"sigma": 0.0},
        {"sigma": float("inf")},
    ],
)
def test_a_tail_that_contradicts_itself_is_refused(change: dict[str, Any]):
    with pytest.raises(InvalidError) as refused:
        replace(plain_reference().tail, **change)
    assert refused.value.code == "bad-reference"


# --- the promise behind both ---


@pytest.mark.parametrize("days", [14, 28])
def test_p_is_uniform_and_the_mean_of_e_at_most_1_on_fresh_windows(days: int):
    """Over references: what one of them lacks by chance, others have too much of."""
    shares, means = [], []
    for seed in range(24):
        made = learned(days, seed=seed, looks=LOOKS[:1])
        p = made.p_values(made.scores(vectors(np.random.default_rng(1000 + seed), 4000)))
        shares.append([(p <= level).mean() for level in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)])
        means.append(e_values(p).mean())
    seen, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(len(shares))
    assert (np.abs(seen - [0.01, 0.05, 0.25, 0.5, 0.75, 0.95]) < 4 * error + 0.01).all(), seen
    assert np.mean(means) <= 1 + 3 * np.std(means) / np.sqrt(len(means))


def test_scores_of_windows_that_were_fitted_on_are_too_small():
    """Why the tail is made of days that its modes had no part in: with many coordinates the difference is plain."""
    summaries = vectors(np.random.default_rng(9), 144 * 14, 84)
    made = fit_reference(summaries, FIRST + np.arange(len(summaries)), grid=wide_grid(), model=MODEL, looks=LOOKS[:1])
    assert np.median(made.scores(summaries)) < 0.9 * np.median(made.tail.scores)


def test_a_window_that_moved_is_surprising():
    made = learned(28)
    moved = vectors(np.random.default_rng(10), 100) + 1.5
    assert np.median(made.p_values(made.scores(moved))) < 1e-4


# --- days, grades, blocks ---


def test_a_day_is_complete_with_four_fifths_of_its_windows():
    whole, short = FIRST + np.arange(116), FIRST + 144 + np.arange(115)
    doubled = FIRST + 288 + np.repeat(np.arange(60), 2)
    assert complete_days(np.concatenate([whole, short, doubled])).tolist() == [20_000]


def test_grades_follow_days():
    assert [grade_of(days) for days in (0, 13, 14, 27, 28, 99)] == [
        *[Grade.COLLECTING] * 2,
        *[Grade.PROVISIONAL] * 2,
        *[Grade.CALIBRATED] * 2,
    ]


def test_too_few_days_are_refused_and_say_how_many_are_wanted():
    with pytest.raises(InvalidError, match=r"13 complete days.*wanted 14") as refused:
        learned(13)
    assert refused.value.code == "too-few"


@pytest.mark.parametrize(("days", "grade", "last"), [(14, Grade.PROVISIONAL, 14), (27, Grade.PROVISIONAL, 27), (40, Grade.CALIBRATED, 28)])
def test_a_reference_says_what_it_was_learned_from(days: int, grade: Grade, last: int):
    made = learned(days)
    assert (made.grade, made.windows, made.first_w0, made.last_w0) == (grade, 144 * last, FIRST, FIRST + 144 * last - 1)
    assert made.may_alarm
    assert (made.per_day, made.per_year, made.longest) == (144, 52_560, 18)
    assert made.tail.scores.shape == (512,)


@pytest.mark.parametrize(
    ("days", "looks", "is_measured"),
    [(28, LOOKS, True), (28, LOOKS[:2], True), (14, LOOKS, False), (28, OTHER, False), (28, OTHER_OF_MEANS, False)],
)
def test_only_what_was_measured_is_judged_by_what_it_comes_to(days, looks, is_measured):
    """28 days and the looks of `LOOKS` or some of them; else the sum of the looks is spent as it is."""
    made = learned(days, looks=looks)
    fresh = vectors(np.random.default_rng(31), 300)
    by_sum = judged(made.looks, made.filled(fresh))
    assert made.is_measured == is_measured
    assert made.judged(fresh).tolist() == (calibrated(by_sum) if is_measured else by_sum).tolist()
    assert decode_reference(made.encoded, GRID).is_measured == is_measured


def names_at(made: DeviceReference, width: int) -> list[tuple[str, int]]:
    """The looks that judge rows of so many sub-windows, and their lengths in them."""
    return [(one.look.name, one.look.subwindows) for one in made.looks_at(width)]


def test_ten_minutes_are_judged_by_powers_of_shares_and_means_of_them_by_the_shares():
    made = learned(14)
    wide = [("all-10min", 1), ("all-1h", 6), ("all-3h", 18)]
    assert names_at(made, 1) == [*wide, ("classes-2h", 12), ("classes-3h", 18)]
    assert names_at(made, 6) == [("all-1h", 1), ("all-3h", 3), ("classes-2h-of-means", 2), ("classes-3h-of-means", 3)]
    assert names_at(made, 18) == [("all-3h", 1), ("classes-3h-of-means", 1)]
    assert all(isinstance(one.modes, ClassPowers) == (one.look.judges is Judges.ROWS) for one in made.looks)


def test_what_judges_means_says_nothing_of_ten_minutes_and_what_judges_ten_minutes_nothing_of_means():
    made, fresh = learned(14), vectors(np.random.default_rng(32), 300)
    fresh[200:, 6] += 3.0
    rows, means = (replace(made, looks=looks_for(made.looks, are_means=are_means)) for are_means in (False, True))
    assert rows.judged(fresh).tolist() == made.judged(fresh).tolist()
    assert rows.leading(fresh).look == made.leading(fresh).look
    values = [[one.p_values(of.filled(fresh)).tolist() for one in of.looks_at(6)] for of in (means, made)]
    assert str(values[0]) == str(values[1])  # as text: what is not known is the same, too


def test_a_reference_of_hours_judges_any_rows_by_the_same_looks():
    w0s = FIRST + 6 * np.arange(24 * 28)
    made = fit_reference(vectors(np.random.default_rng(20), len(w0s)), w0s, grid=GRID, model=MODEL, looks=HOURLY_LOOKS, per_day=24)
    assert names_at(made, 6) == [("all-1h", 1), ("all-3h", 3), ("classes-1h", 1), ("classes-3h", 3)]
    assert names_at(made, 1) == [(name, 6 * length) for name, length in names_at(made, 6)]
    assert not any(isinstance(one.modes, ClassPowers) for one in made.looks)


@pytest.mark.parametrize("judges", [Judges.ROWS, Judges.MEANS])
def test_each_set_of_looks_has_a_budget_of_its_own(judges: Judges):
    made = plain_reference()
    one = made.looks[2 if judges is Judges.ROWS else 3]
    more = replace(one, look=replace(one.look, name="more", share=0.01))
    with pytest.raises(InvalidError, match="one budget"):
        replace(made, looks=(*made.looks, more))
    less = [replace(each, look=replace(each.look, share=0.24)) if each is one else each for each in made.looks]
    assert len(replace(made, looks=(*less, more)).looks) == 5


def test_a_reference_of_hours_is_not_judged_by_what_ten_minutes_come_to():
    w0s = FIRST + 6 * np.arange(24 * 28)
    made = fit_reference(vectors(np.random.default_rng(20), len(w0s)), w0s, grid=GRID, model=MODEL, looks=HOURLY_LOOKS, per_day=24)
    values = np.array([1e-6, 1e-3])
    assert made.valued(values).tolist() == values.tolist()


def test_a_reference_may_be_of_hours():
    w0s = FIRST + 6 * np.arange(24 * 28)
    made = fit_reference(vectors(np.random.default_rng(20), len(w0s)), w0s, grid=GRID, model=MODEL, looks=HOURLY_LOOKS, per_day=24)
    assert (made.grade, made.per_year, made.longest, made.last_w0) == (Grade.CALIBRATED, 8760, 3, FIRST + 144 * 28 - 1)
    assert decode_reference(made.encoded, GRID).reference_id == made.reference_id
    with pytest.raises(InvalidError, match="wanted 14 with 20 of 24"):
        fit_reference(np.ones((24, D)), w0s[:24], grid=GRID, model=MODEL, looks=HOURLY_LOOKS, per_day=24)


def test_days_that_are_missing_change_nothing_of_those_that_are_there():
    """A stretch of three hours never joins two days that do not touch."""
    summaries, w0s = vectors(np.random.default_rng(21), 144 * 20), FIRST + np.arange(144 * 20)
    later = np.where(w0s < FIRST + 144 * 10, w0s, w0s + 144)
    latest = np.where(w0s < FIRST + 144 * 10, w0s, w0s + 144 * 300)
    one, other, joined = (fit_reference(summaries, at, grid=GRID, model=MODEL) for at in (later, latest, w0s))
    assert [look.tail.scores.tolist() for look in one.looks] == [look.tail.scores.tolist() for look in other.looks]
    is_same = [np.array_equal(look.tail.scores, whole.tail.scores) for look, whole in zip(one.looks, joined.looks, strict=True)]
    assert is_same == [look.look.subwindows == 1 for look in one.looks], "stretches over the seam are there only where there is none"


def test_what_a_window_does_not_know_counts_as_usual_and_a_window_that_knows_nothing_is_not_judged():
    summaries = vectors(np.random.default_rng(22), 144 * 14)
    summaries[::2, 6:] = np.nan  # no object was seen: no shares
    summaries[:, 1] = np.nan
    made = fit_reference(summaries, FIRST + np.arange(len(summaries)), grid=GRID, model=MODEL)
    assert made.usual[2] == pytest.approx(summaries[:, 2].mean(), rel=1e-6)
    assert np.isnan(made.usual[1])
    assert np.isnan(made.scatter.mean[1])
    fresh = vectors(np.random.default_rng(23), 40)
    others = np.where(np.arange(D) == 1, 1e9, fresh)
    assert made.scores(fresh).tolist() == made.scores(others).tolist(), "a coordinate that was never known raises nothing"
    without = np.where(np.arange(D) >= 6, np.nan, fresh)
    assert made.scores(without).tolist() == made.scores(np.where(np.arange(D) >= 6, made.usual, fresh)).tolist()
    fresh[20:] = np.nan
    assert np.isnan(made.scores(fresh)).tolist() == [False] * 20 + [True] * 20
    assert np.isnan(made.judged(fresh)[26:]).all()


def test_a_recording_is_provisional_whatever_its_length():
    made = learned(28, is_recorded=True)
    assert (made.grade, made.is_recorded) == (Grade.PROVISIONAL, True)


def test_windows_that_never_vary_make_no_reference():
    with pytest.raises(InvalidError) as refused:
        fit_reference(np.ones((144 * 28, D)), FIRST + np.arange(144 * 28), grid=GRID, model=MODEL)
    assert refused.value.code == "too-few"


@pytest.mark.parametrize(
    ("period", "is_indoor", "wanted"),
    [(None, True, 36), (None, False, 144), (1440, True, 288), (1440, False, 288)],
)
def test_blocks_are_so_long_that_they_do_not_follow_each_other(period: int | None, is_indoor, wanted: int):
    generator = np.random.default_rng(11)
    w0s = FIRST + np.arange(144 * 28)
    scores = generator.gamma(4, size=len(w0s))
    if period is not None:  # a slow wave: neighbouring days are alike
        scores += 3 * np.sin(np.arange(len(w0s)) / period * 2 * np.pi)
    assert choose_block(scores, w0s, is_indoor=is_indoor) >= wanted if period else choose_block(scores, w0s, is_indoor=is_indoor) == wanted


def test_few_blocks_tell_nothing_about_each_other():
    w0s = FIRST + np.arange(144 * 3)
    assert choose_block(np.arange(len(w0s), dtype=np.float64), w0s) == 144


# --- a new release ---


def other_release(*, step_s: int = 1) -> Grid:
    """The same input feature, another embedding, in another order."""
    brightness, embedding, confidence = GRID.features
    return Grid((replace(embedding, low=4.0), brightness, confidence), GRID.classes, step_s, 1)


def test_a_release_keeps_what_input_features_have_learned():
    made = learned(28)
    new = other_release()
    assert [places.tolist() for places in shared_coordinates(GRID, new)] == [[0, 3], [1, 4]]
    stored = vectors(np.random.default_rng(12), 144 * 28)
    kept = carried_over(made, GRID, new, stored, FIRST + np.arange(144 * 28), model=bytes(16))
    assert kept is not None
    assert (kept.grid_id, kept.model, kept.coordinates.tolist()) == (new.grid_id, bytes(16), [1, 4])
    assert [one.look.name for one in kept.looks] == ["all-10min", "all-1h", "all-3h"]
    fresh = vectors(np.random.default_rng(13), 4000)
    p = kept.p_values(kept.scores(fresh[:, [1, 0, 2, 4, 3, 5, 6, 7, 8]]))
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)
    assert decode_reference(kept.encoded, new).reference_id == kept.reference_id


def test_a_release_whose_clean_days_are_too_few_says_so():
    with pytest.raises(InvalidError) as refused:
        carried_over(learned(14), GRID, other_release(), vectors(np.random.default_rng(14), 600), FIRST + np.arange(600), model=MODEL)
    assert refused.value.code == "too-few"


def test_another_step_or_grid_keeps_nothing():
    for new in (other_release(step_s=2), wide_grid(features=3)):
        w0s = FIRST + np.arange(500)
        assert carried_over(learned(14), GRID, new, vectors(np.random.default_rng(15), 500), w0s, model=MODEL) is None


def test_only_input_features_are_kept():
    same = Grid(tuple(replace(one, group=FeatureGroup.OUTPUT) for one in GRID.features), GRID.classes, 1, 1)
    assert shared_coordinates(same, same)[0].size == 0


# --- its bytes ---


def test_the_bytes_of_format_3_stay_what_they_are():
    assert encode_reference(plain_reference()) == GOLDEN.read_bytes()
    assert decode_reference(GOLDEN.read_bytes(), GRID).reference_id == plain_reference().reference_id


def test_what_was_learned_judges_the_same_bit_for_bit_elsewhere_and_after_a_restart():
    made = learned(14)
    again = decode_reference(made.encoded, GRID)
    fresh = vectors(np.random.default_rng(16), 50)
    assert again.encoded == made.encoded
    assert again.scores(fresh).tolist() == made.scores(fresh).tolist()
    assert again.judged(fresh).tolist() == made.judged(fresh).tolist()
    assert again.leading(fresh).look == made.leading(fresh).look
    assert again.scores(fresh * 1e30).max() < np.inf
    assert again.scatter.factor.tolist() == made.scatter.factor.tolist()


def test_the_largest_reference_stays_within_its_bytes_and_an_event_with_it_within_a_packet():
    n = 144 * 28
    made = fit_reference(vectors(np.random.default_rng(17), n, 84), FIRST + np.arange(n), grid=wide_grid(), model=MODEL)
    assert references.MAX_REFERENCE_BYTES - 16_384 < len(made.encoded) <= references.MAX_REFERENCE_BYTES
    names = dict.fromkeys(("pipeline", "line", "model", "grid", "reference", "grade"), "n" * 63)
    learned_event = ReferenceLearned(**names, body=base64.b64encode(bytes(references.MAX_REFERENCE_BYTES)).decode())
    assert len(learned_event.model_dump_json()) + 4096 < MAX_PACKET_BYTES
    assert [one.look.modes for one in made.looks] == [4, 4, 2, 0, 0, 0, 0]


@settings(max_examples=10)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.integers(1, 84), st.integers(0, 2**32 - 1))
def test_looks_give_up_modes_until_the_reference_fits_and_no_more(modes: list[int], judged: int, seed: int):
    generator = np.random.default_rng(seed)
    coordinates = np.sort(generator.choice(84, judged, replace=False))
    looks = tuple(
        Look(f"{index:032}", int(generator.integers(1, 145)), is_classes=kind > 0, modes=wanted, share=0.1)
        if kind < 2
        else Look(f"{index:032}", int(generator.integers(1, 145)), is_classes=True, modes=0, share=0.1, judges=Judges(wanted % 3))
        for index, (wanted, kind) in enumerate(zip(modes, [0, *generator.integers(3, size=len(modes) - 1).tolist()], strict=True))
    )
    kept = references.affordable(looks, coordinates, wide_grid())
    assert [replace(one, modes=other.modes) for one, other in zip(kept, looks, strict=True)] == list(looks)
    assert all(min(1, other.modes) <= one.modes <= other.modes for one, other in zip(kept, looks, strict=True))
    full = [of_random_numbers(one, coordinates, generator) for one in kept]
    made = replace(
        plain_reference(),
        grid_id=wide_grid().grid_id,
        coordinates=coordinates,
        usual=np.zeros(judged),
        looks=tuple(replace(one, look=replace(one.look, subwindows=1)) if not index else one for index, one in enumerate(full) if one),
    )
    if len(made.encoded) + 16_384 < references.MAX_REFERENCE_BYTES:
        assert kept == looks
    assert decode_reference(made.encoded, wide_grid()).encoded == made.encoded


def of_random_numbers(look: Look, coordinates: np.ndarray, generator: np.random.Generator) -> LookReference | None:
    """As large as the look gets; None where it has nothing to judge."""
    inside = judged_by(look, coordinates, wide_grid())
    d = len(inside)
    if not d:
        return None
    scores = np.sort(generator.gamma(4, size=512).astype(np.float32))
    tail = Tail(scores, float(scores[480]), 0.12, 1.0)
    if not look.modes:
        classes = classes_of(coordinates[inside], wide_grid())
        if look.judges is Judges.ROWS:
            return LookReference(look, inside, expecting_random_numbers(ClassPowers, d, classes, generator), tail)
        return LookReference(look, inside, expecting_random_numbers(ClassShares, d, classes, generator), tail)
    factors = np.tril(generator.normal(size=(look.modes, d, d))).astype(np.float32).astype(np.float64)
    factors[:, np.arange(d), np.arange(d)] = 1.0
    unit = np.full(d, 0.5)
    clouds = tuple(Scatter(np.float32(generator.normal(size=d)).astype(np.float64), unit, factor, 0.5) for factor in factors)
    return LookReference(look, inside, Modes(clouds, np.full(look.modes, 1 / look.modes)), tail)


def expecting_random_numbers(kind: type[Kind], d: int, classes: int, generator: np.random.Generator) -> Kind:
    """As many components as there may be."""
    context, k = d - classes, min(d - classes, COMPONENTS)
    ends = generator.normal(size=k)
    weights, average = generator.normal(size=(2 + k, classes)), generator.random(classes)
    made = kind(
        int(generator.integers(classes)),
        generator.normal(size=context),
        generator.normal(size=(k, context)),
        ends,
        ends + 1,
        weights,
        average,
        np.ones(classes),
    )
    return made.rounded()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (2, False),
        (5, "0"),
        (5, 99),
        (5, -1),
        (6, bytes(4)),
        (6, bytes(5)),
        (7, bytes(4)),
        (7, bytes(4 * 999)),
        (8, bytes(8)),
        (8, b"\xff" * 8),
    ],
)
def test_a_look_at_classes_of_other_parts_is_refused(place: int, value: object):
    document = cbor2.loads(learned(14).encoded)
    look = next(one for one in document[7] if one[9] == [])
    look[place] = value
    with pytest.raises(InvalidError) as refused:
        decode_reference(cbor2.dumps(document, canonical=True), GRID)
    assert refused.value.code == "bad-reference"


def test_a_reference_on_another_grid_is_refused():
    with pytest.raises(InvalidError) as refused:
        decode_reference(GOLDEN.read_bytes(), wide_grid())
    assert refused.value.code == "unknown-grid"


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ((0,), 1, "unknown-version"),
        ((0,), 2, "unknown-version"),
        ((11,), 1, "bad-reference"),
        ((2,), bytes(15), "bad-reference"),
        ((2,), 5, "bad-reference"),
        ((3,), 0, "bad-reference"),
        ((3,), 3, "bad-reference"),
        ((4,), 145, "bad-reference"),
        ((4,), "x", "bad-reference"),
        ((5,), "x", "bad-reference"),
        ((5,), b"\x00", "length"),
        ((5,), bytes([0, 0, 1, 2, 3]), "bad-reference"),
        ((5,), bytes([0, 1, 2, 3, 9]), "bad-reference"),
        ((6,), bytes(7), "bad-reference"),
        ((6,), b"", "bad-reference"),
        ((6,), bytes(4 * 10), "bad-reference"),
        ((6,), np.full(5, np.inf, "<f4").tobytes(), "bad-reference"),
        ((7,), [], "bad-reference"),
        ((7,), b"", "bad-reference"),
        ((7, 0), b"", "bad-reference"),
        ((7, 0, 0), 5, "bad-reference"),
        ((7, 0, 0), "", "bad-reference"),
        ((7, 0, 0), "x" * 33, "bad-reference"),
        ((7, 0, 0), "classes-1h", "bad-reference"),
        ((7, 0, 1), 6, "bad-reference"),
        ((7, 1, 1), 145, "bad-reference"),
        ((7, 1, 1), True, "bad-reference"),
        ((7, 0, 2), True, "bad-reference"),
        ((7, 1, 2), 1, "bad-reference"),
        ((7, 0, 3), 1, "bad-reference"),
        ((7, 0, 3), 2, "bad-reference"),
        ((7, 1, 3), 1, "bad-reference"),
        ((7, 2, 3), True, "bad-reference"),
        ((7, 2, 3), 3, "bad-reference"),
        ((7, 2, 3), 0, "bad-reference"),
        ((7, 3, 3), 1, "bad-reference"),
        ((7, 0, 4), np.array([0.8, 47.5, 0.25, 1.5]).tobytes(), "bad-reference"),
        ((7, 0, 4), np.array([0.0, 47.5, 0.25, 1.5]).tobytes(), "bad-reference"),
        ((7, 0, 4), np.array([np.nan, 47.5, 0.25, 1.5]).tobytes(), "bad-reference"),
        ((7, 0, 4), np.array([0.5, 47.5, 0.25]).tobytes(), "bad-reference"),
        ((7, 0, 5), np.array([0.75, 0.25, 2.0, 0.5]).tobytes(), "bad-reference"),
        ((7, 0, 5), np.array([0.75, 0.0, 0.5, 0.5]).tobytes(), "bad-reference"),
        ((7, 0, 5), bytes(8), "bad-reference"),
        ((7, 0, 6), bytes(20), "bad-reference"),
        ((7, 0, 6), bytes(4), "bad-reference"),
        ((7, 0, 7), np.full(10, np.nan, "<f4").tobytes(), "bad-reference"),
        ((7, 0, 7), bytes(36), "bad-reference"),
        ((7, 0, 8), bytes(4 * 30), "bad-reference"),
        ((7, 0, 8), np.full(30, np.nan, "<f4").tobytes(), "bad-reference"),
        ((7, 0, 9), [], "bad-reference"),
        ((7, 0, 9), [False] * 9, "bad-reference"),
        ((7, 0, 9), [0, 0], "bad-reference"),
        ((7, 0, 10), bytes(3), "bad-reference"),
        ((7, 0, 10), bytes(4 * (MAX_SCORES + 1)), "bad-reference"),
        ((8,), [5, 4, 3], "bad-reference"),
        ((8,), [1, 2], "bad-reference"),
        ((8,), [1, 2, 1], "bad-reference"),
        ((9,), 12, "bad-reference"),
        ((9,), None, "bad-reference"),
        ((10,), 1, "bad-reference"),
    ],
)
def test_bytes_of_something_else_are_refused(path: tuple[int, ...], value: Any, code: str):
    document = cbor2.loads(GOLDEN.read_bytes())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InvalidError) as refused:
        decode_reference(cbor2.dumps(document, canonical=True), GRID)
    assert refused.value.code == code


def test_no_map_and_too_many_bytes_are_no_reference():
    for data, code in ((b"\x80", "bad-reference"), (bytes(200_000), "too-large")):
        with pytest.raises(InvalidError) as refused:
            decode_reference(data, GRID)
        assert refused.value.code == code


def test_a_factor_that_cannot_be_inverted_is_refused():
    made = Scatter(np.zeros(2), np.ones(2), np.array([[1e-320, 0], [1, 1]]), 0.0)
    with pytest.raises(InvalidError) as refused:
        _ = made.inverse
    assert refused.value.code == "bad-reference"
