"""Which features are watched and what a profile says, from rows made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from fleet.monitoring import accuracy as server
from fleet.registry.profiles import CONFIDENCE, COUNT, ENTROPY, Rows, counted, estimates, make_profile, select
from protocol.errors import InvalidError
from protocol.sketches.grid import OTHER
from protocol.sketches.profile import MAX_TRIALS, decode_profile, encode_profile

LABELS = ("a", "b", "c")
N = 600


def rows(columns: dict[str, np.ndarray], *, right: float | None = 0.9, seed: int = 0, known: tuple[str, ...] = LABELS) -> Rows:
    """Rows with these columns, and confidence and entropy unless given; answers are right with that share, the confident ones more."""
    random = np.random.default_rng(seed)
    count = len(next(iter(columns.values()))) if columns else N
    confidence = random.beta(8, 2, count)
    given = {CONFIDENCE: confidence, ENTROPY: -np.log(confidence), **columns}
    truth = random.integers(0, len(known), count)
    is_right = np.ones(count, bool) if right is None else random.random(count) < np.clip(confidence + (right - 0.8), 0, 1)
    answered = np.where(is_right, truth, (truth + 1) % len(known))
    return Rows(
        names=tuple(given),
        values=np.stack(list(given.values()), axis=1).astype(np.float32),
        labels=tuple((known[place],) for place in answered),
        known=known,
        answered=answered if right is not None else None,
        truth=truth if right is not None else None,
    )


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=N)


# --- selection ---


def test_features_that_stand_still_or_are_missing_are_not_watched():
    mostly = np.zeros(N)
    mostly[:20] = np.arange(20)
    holes = noise(1)
    holes[:40] = np.nan
    found = select(rows({"image.red": np.zeros(N), "image.dark": mostly, "image.noise": holes, "image.edges": noise(2)}))
    assert found.chosen == (CONFIDENCE, ENTROPY, "image.edges")
    assert found.left_out == {"image.red": "constant", "image.dark": "constant", "image.noise": "missing"}


def test_a_feature_that_another_one_tells_is_not_watched_twice():
    light = noise(1)
    found = select(rows({"image.brightness": light, "image.glare": np.exp(light), "image.edges": light + 0.5 * noise(2)}))
    assert "image.edges" in found.chosen
    assert len({"image.brightness", "image.glare"} & set(found.chosen)) == 1
    (name,) = {"image.brightness", "image.glare"} - set(found.chosen)
    assert found.left_out[name].startswith("like image.")


def test_confidence_and_entropy_are_watched_although_they_are_alike():
    assert select(rows({})).chosen == (CONFIDENCE, ENTROPY)


def test_of_too_many_features_those_least_like_the_others_are_watched():
    columns = {f"sensor.f{index}.value": noise(index) for index in range(30)}
    twin = columns["sensor.f3.value"] + 0.3 * noise(99)
    found = select(rows({**columns, "sensor.twin.value": twin}), limit=32)
    assert len(found.chosen) == 32
    assert {"sensor.twin.value", "sensor.f3.value"} - set(found.chosen)
    assert set(found.left_out.values()) == {"limit"}


def test_the_order_of_the_columns_is_kept():
    assert select(rows({"image.edges": noise(1), "embedding.1": noise(2)})).chosen == (CONFIDENCE, ENTROPY, "image.edges", "embedding.1")


def test_data_in_which_nothing_moves_are_refused():
    still = Rows(names=("image.red",), values=np.zeros((N, 1), np.float32), labels=((),) * N)
    with pytest.raises(InvalidError, match="constant or missing") as caught:
        select(still)
    assert caught.value.code == "no-features"


# --- the profile ---


def test_a_profile_survives_its_bytes():
    profile, _ = make_profile(rows({"image.edges": noise(1)}), made_at_ms=1)
    again = decode_profile(encode_profile(profile))
    assert (again.grid, again.accuracy, again.reference) == (profile.grid, profile.accuracy, profile.reference)


def test_thresholds_leave_as_many_rows_as_were_right():
    data = rows({})
    profile, _ = make_profile(data, made_at_ms=1)
    accuracy = profile.accuracy
    confidence, entropy = data.values.T
    assert accuracy.acc0 == pytest.approx(data.right.mean())
    assert (confidence > accuracy.confidence_edge).mean() == pytest.approx(accuracy.acc0, abs=2 / N)
    assert (entropy <= accuracy.entropy_edge).mean() == pytest.approx(accuracy.acc0, abs=2 / N)
    edges = [profile.grid.features[index].edges for index in (0, 1)]
    assert accuracy.confidence_edge in edges[0]
    assert accuracy.entropy_edge in edges[1]


def test_estimates_on_the_evaluation_data_are_what_was_measured():
    profile, _ = make_profile(rows({}), made_at_ms=1)
    assert estimates(profile.reference, profile.grid, profile.accuracy) == pytest.approx([profile.accuracy.acc0] * 3, abs=0.005)


def test_estimates_at_release_are_those_that_the_server_makes_later():
    profile, _ = make_profile(rows({}), made_at_ms=1)
    counts = counted(rows({}, seed=7), profile.grid)
    later = server.estimate(profile, counts)
    assert estimates(counts, profile.grid, profile.accuracy) == pytest.approx([later["doc"], later["atc"], later["cbpe"]], abs=1e-6)


def test_the_confusion_matrix_holds_what_was_answered_for_each_class():
    data = rows({})
    profile, _ = make_profile(data, made_at_ms=1)
    confusion = np.array(profile.accuracy.confusion)
    assert profile.grid.classes == LABELS
    assert confusion[1, 0] == pytest.approx(((data.answered == 1) & (data.truth == 0)).sum() / (data.truth == 0).sum())
    assert confusion.sum(axis=0) == pytest.approx([1, 1, 1])


def test_damage_is_told_with_its_error_and_where_it_moves_the_window():
    data, same = rows({"image.edges": noise(1)}), rows({"image.edges": noise(1)})
    moved = rows({"image.edges": noise(1) + 2}, right=0.5)
    profile, _ = make_profile(data, made_at_ms=1, damaged={("blur", 1): same, ("dirt", 3): moved})
    blur, dirt = profile.accuracy.families
    assert np.abs(blur.shift).max() < 1e-6
    assert dirt.shift[profile.grid.index("image.edges")] > 1
    assert dirt.accuracy == pytest.approx(moved.right.mean())
    assert dirt.error > 0.05
    assert profile.accuracy.validated() == {"blur"}
    assert profile.accuracy.epsilon == pytest.approx(blur.error, abs=1e-6)


def test_each_place_is_told_alone_as_it_is_and_damaged():
    data, moved = rows({"image.edges": noise(1)}), rows({"image.edges": noise(1) + 2}, right=0.5)
    where = tuple("yard" if index % 3 else "gate" for index in range(N))
    profile, _ = make_profile(replace(data, places=where), made_at_ms=1, damaged={("dirt", 3): replace(moved, places=where)})
    trials = {(one.place, one.family): one for one in profile.accuracy.trials}
    assert list(trials) == [("gate", ""), ("yard", ""), ("gate", "dirt"), ("yard", "dirt")]
    gate = trials["gate", "dirt"]
    assert (gate.severity, gate.rows, gate.accuracy) == (3, 200, pytest.approx(moved.right[::3].mean()))
    edges = profile.grid.index("image.edges")
    assert gate.summary[edges] > trials["gate", ""].summary[edges] + 1
    alone = counted(replace(data, places=where).of_place("yard"), profile.grid)
    assert trials["yard", ""].estimates == estimates(alone, profile.grid, profile.accuracy)
    assert decode_profile(encode_profile(profile)) == profile


def test_one_place_or_too_few_rows_of_it_are_no_trial():
    data = rows({})
    whole, _ = make_profile(replace(data, places=("yard",) * N), made_at_ms=1)
    assert whole.accuracy.trials == ()
    few, _ = make_profile(replace(data, places=("yard",) * (N - 23) + ("gate",) * 23), made_at_ms=1)
    assert [one.place for one in few.accuracy.trials] == ["yard"]
    with pytest.raises(ValueError, match="without places"):
        data.of_place("yard")


def test_of_too_many_trials_the_strong_damage_of_every_family_stays_at_every_place():
    where = tuple(f"place {index % 25}" for index in range(N))
    data = replace(rows({}), places=where)
    names = ("blur", "bright", "color", "dark", "dirt", "jpeg", "noise")
    damaged = {(name, severity): data for name in names for severity in (1, 2, 3)}
    profile, _ = make_profile(data, made_at_ms=1, damaged=damaged)
    told = [(one.family, one.severity, one.place) for one in profile.accuracy.trials]
    assert len(told) == MAX_TRIALS < 25 * 22
    strong = {(name, severity, place) for name in names for severity in (2, 3) for place in set(where)}
    assert strong | {("", 0, place) for place in set(where)} <= set(told)
    assert decode_profile(encode_profile(profile)) == profile


def test_more_than_twenty_classes_are_the_most_frequent_and_the_others():
    many = tuple(f"class {index}" for index in range(30))
    profile, _ = make_profile(rows({}, known=many), made_at_ms=1)
    assert len(profile.grid.classes) == 20
    assert profile.grid.classes[-1] == OTHER
    assert profile.reference.classes.sum() == N
    assert np.array(profile.accuracy.confusion).sum(axis=0) == pytest.approx(np.ones(20))


def test_without_labels_there_is_a_grid_and_no_accuracy():
    profile, _ = make_profile(rows({"image.edges": noise(1)}, right=None), made_at_ms=1)
    assert profile.accuracy is None
    assert profile.reference.rows == N


def test_a_model_that_is_always_equally_sure_has_no_estimates():
    profile, selection = make_profile(rows({CONFIDENCE: np.ones(N), "image.edges": noise(1)}), made_at_ms=1)
    assert profile.accuracy is None
    assert selection.left_out == {CONFIDENCE: "constant"}


def test_labels_of_which_none_fits_are_refused():
    data = rows({})
    wrong = Rows(data.names, data.values, data.labels, data.known, data.answered, (data.answered + 1) % 3)
    with pytest.raises(InvalidError, match=f"Of {N} labelled frames or windows none was answered right") as caught:
        make_profile(wrong, made_at_ms=1)
    assert "RGB" in caught.value.hint


def test_objects_are_counted_in_cells_between_whole_numbers():
    counts = np.random.default_rng(3).poisson(2, N).astype(float)
    data = Rows(names=(COUNT,), values=counts[:, None].astype(np.float32), labels=(("a", "a", "b"),) * N, known=LABELS)
    profile, _ = make_profile(data, made_at_ms=1)
    assert profile.grid.features[0].edges[:3] == (0.5, 1.5, 2.5)
    assert profile.reference.classes.tolist() == [2 * N, N, 0]
