"""What devices have in common is told by the quiet ones, moved by no single one, and not more surprising when few of them report."""

import numpy as np
import pytest
from simulators.sketches import MODEL, profile

from fleet.monitoring.group_looks import GROUP_LOOKS, HOURS_PER_DAY, Member, member_of, merged
from protocol.sketches.looks import HOURLY_LOOKS, LOOKS
from protocol.sketches.reference import DeviceReference, fit_reference
from protocol.sketches.summary import summarizer

GRID = profile().grid
D = summarizer(GRID).dimensions
HOUR_LOOK = LOOKS[:2]


def learned(seed: int, *, spread: float, mean: float = 0.0, **given) -> DeviceReference:
    """Of four weeks of windows that vary by `spread` around `mean`."""
    per_day = given.get("per_day", 144)
    places = np.arange(28 * per_day) * (144 // per_day)
    rows = np.random.default_rng(seed).normal(mean, spread, (len(places), D))
    return fit_reference(rows, places, grid=GRID, model=MODEL, **{"looks": HOUR_LOOK, **given})


@pytest.fixture(scope="module")
def members() -> list[Member]:
    """Two quiet cameras and two that tremble, each around a mean of its own."""
    return [member_of(learned(seed, spread=spread, mean=seed)) for seed, spread in ((1, 0.02), (2, 0.02), (3, 0.6), (4, 0.6))]


def hours_of(members: list[Member], count: int, *, shift: float = 0.0, seed: int = 9) -> np.ndarray:
    """float64[count, members, d] of hours drawn as the references were."""
    rng = np.random.default_rng(seed)
    spreads = np.array([0.02, 0.02, 0.6, 0.6]) / np.sqrt(6)
    return np.array([1.0, 2.0, 3.0, 4.0])[:, None] + shift + rng.normal(0, 1, (count, 4, D)) * spreads[:, None]


def test_cameras_that_tremble_do_not_drown_what_the_quiet_ones_show(members):
    clean = np.stack([merged(members, hour, of=4) for hour in hours_of(members, 200)])
    moved = np.stack([merged(members, hour, of=4) for hour in hours_of(members, 200, shift=0.006)])
    plain = np.stack([(hour - np.array([1.0, 2.0, 3.0, 4.0])[:, None]).mean(axis=0) for hour in hours_of(members, 200)])
    assert moved.mean() - clean.mean() == pytest.approx(0.006, abs=0.001)
    assert clean.std() < 0.01
    assert plain.std() > 0.08  # the mean of unlike cameras is wider than the quietest of them


def test_one_broken_device_does_not_move_its_group(members):
    (hour,) = hours_of(members, 1)
    broken = hour.copy()
    broken[0] += 50.0
    alone = np.abs(merged(members, broken, of=4) - merged(members, hour, of=4))
    assert alone.max() < 0.05
    weight = members[0].precisions[0]
    assert np.abs(np.linalg.solve(2 * weight, weight @ np.full(D, 50.0))).max() > 20  # what it would be if nothing bounded its part


def test_a_shift_that_all_of_them_show_is_not_shortened_away(members):
    (hour,) = hours_of(members, 1, shift=5.0)
    few = np.abs(merged(members, hour, of=4)).mean()
    (clean,) = hours_of(members, 1)
    assert few > 2 * np.abs(merged(members, clean, of=4)).mean()


def test_when_fewer_report_what_they_say_is_drawn_towards_nothing(members):
    hours = hours_of(members, 400)
    every = np.stack([merged(members, hour, of=4) for hour in hours])
    half = np.stack([merged([members[0], members[2]], hour[[0, 2]], of=4) for hour in hours])
    assert half.std() == pytest.approx(every.std(), rel=0.2)
    assert merged([], np.empty((0, D)), of=4) == pytest.approx(np.zeros(D))


def test_coordinates_that_no_reference_has_are_nothing(members):
    kept = np.array([0, 2, 5])
    places = np.arange(28 * 144)
    rows = np.random.default_rng(5).normal(0, 0.1, (len(places), 3))
    part = member_of(fit_reference(rows, places, grid=GRID, model=MODEL, looks=HOUR_LOOK, coordinates=kept))
    shift = merged([part], np.full((1, D), 0.1), of=1)
    assert set(np.flatnonzero(shift)) <= set(kept.tolist())
    assert np.abs(shift[kept]).max() > 0.01
    both = merged([part, members[0]], np.stack([np.full(D, 0.1), np.full(D, 1.03)]), of=2)
    assert (both != 0).all()
    assert merged([part], np.full((1, D), np.nan), of=1) == pytest.approx(np.zeros(D))


def test_hours_are_weighed_by_the_look_that_is_nearest_to_an_hour():
    assert member_of(learned(1, spread=0.1, looks=LOOKS)).look.look.name == "all-1h"
    assert member_of(learned(1, spread=0.1, looks=HOURLY_LOOKS, per_day=24)).look.look.subwindows == 1


def test_the_looks_of_a_group_spend_its_budget_once_and_fit_in_a_reference():
    assert sum(look.share for look in GROUP_LOOKS) == pytest.approx(1.0)
    reference = learned(6, spread=0.1, looks=GROUP_LOOKS, per_day=HOURS_PER_DAY)
    assert [one.look.name for one in reference.looks] == [look.name for look in GROUP_LOOKS]
    assert (reference.longest, reference.per_year) == (24, 8760)
