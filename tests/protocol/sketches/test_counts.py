"""Counts are what counting by hand gives, and add up to the same in any order."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from grids import counted, normal_rows, plain_counts, plain_grid, wide_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.sketches.counts import Counts, Sketcher, added, empty, features_that_want_a_grid, finite, split, summed
from protocol.sketches.grid import FeatureGroup, Grid, fit_feature

#: Each example is cheap; so are the tests together.
FEW = settings(max_examples=40)

GRID = plain_grid()
#: Edges and bounds of the grid, their neighbours, and anything else.
number = st.one_of(
    st.sampled_from([edge for feature in GRID.features for edge in (*feature.edges, feature.low, feature.high)]).flatmap(
        lambda edge: st.sampled_from([edge, *(float(np.nextafter(np.float32(edge), np.float32(way))) for way in (-np.inf, np.inf))])
    ),
    st.floats(width=32),
)
some_rows = st.lists(st.tuples(number, number, number), max_size=40)
parts = st.builds(lambda rows: counted(GRID, np.array(rows, np.float32).reshape(-1, 3)), some_rows)


def by_hand(rows: list[tuple[float, ...]]) -> tuple[list[int], list[list[int]]]:
    """Cells and moments, value by value in Python."""
    cells, moments = [], []
    for index, feature in enumerate(GRID.features):
        mine = [0] * feature.cells
        v = []
        for row in rows:
            x = row[index]
            if not math.isfinite(x):
                mine[0] += 1
                continue
            v.append(max(-4096, min(4096, round(256 * (x - feature.center) / feature.scale))))
            if x < feature.low:
                mine[1] += 1
            elif x > feature.high:
                mine[-1] += 1
            else:
                mine[2 + sum(x > edge for edge in feature.edges)] += 1
        cells += mine
        moments.append([sum(v), sum(one * one for one in v), min(v, default=4096), max(v, default=-4096)])
    return cells, moments


@FEW
@given(some_rows)
def test_cells_and_moments_are_those_counted_by_hand(rows: list[tuple[float, ...]]):
    counts = counted(GRID, np.array(rows, np.float32).reshape(-1, 3))
    cells, moments = by_hand(rows)
    assert counts.cells.tolist() == cells
    assert counts.moments.tolist() == moments
    assert counts.rows == len(rows)
    assert min(1, len(rows)) <= counts.effective <= len(rows)


@FEW
@given(some_rows, st.integers(1, 7))
def test_where_the_ring_is_flushed_changes_no_cell(rows: list[tuple[float, ...]], ring_rows: int):
    sketcher = Sketcher(GRID, ring_rows=ring_rows)
    for row in rows:
        sketcher.add(np.array(row, np.float32))
    assert sketcher.rows == len(rows)
    seen, wanted = sketcher.take(), counted(GRID, np.array(rows, np.float32).reshape(-1, 3))
    assert replace(seen, effective=0) == replace(wanted, effective=0)


@FEW
@given(parts, parts, parts)
def test_adding_is_associative_and_commutative_with_nothing_as_neutral(a: Counts, b: Counts, c: Counts):
    assert added(added(a, b), c) == added(a, added(b, c))
    assert added(a, b) == added(b, a)
    assert added(a, empty(GRID)) == a == added(empty(GRID), a)


@FEW
@given(some_rows, st.randoms(use_true_random=False))
def test_parts_in_any_order_are_the_whole(rows: list[tuple[float, ...]], random):
    whole = counted(GRID, np.array(rows, np.float32).reshape(-1, 3))
    pieces = [counted(GRID, np.array([row], np.float32)) for row in rows]
    random.shuffle(pieces)
    assert replace(summed(pieces, GRID), effective=0) == replace(whole, effective=0)


def test_the_example_is_as_in_the_golden_files():
    counts = plain_counts()
    brightness, constant, confidence = (cells.tolist() for cells in split(counts, GRID))
    assert brightness == [1, 1, 2, 0, 1, 0, 1]
    assert constant == [0, 0, 6, 0]
    assert confidence == [0, 0, 4, 2, 0, 0]
    assert finite(counts, GRID).tolist() == [5, 6, 6]
    assert (counts.rows, counts.excluded, counts.classes.tolist()) == (6, 2, [2, 2, 2])


def test_conditions_add_up_by_code():
    a, b = (replace(plain_counts(), conditions=conditions) for conditions in ({3: 10, 4: 5}, {3: 2, 9: 1}))
    assert added(a, b).conditions == {3: 12, 4: 5, 9: 1}


def test_counts_of_other_grids_are_not_added():
    with pytest.raises(ValueError, match="one grid"):
        added(plain_counts(), empty(wide_grid()))


def test_counts_are_compared_number_by_number():
    assert plain_counts() == plain_counts()
    assert plain_counts() != replace(plain_counts(), excluded=3)
    assert plain_counts() != "counts"


def test_what_was_taken_is_not_counted_again():
    sketcher = Sketcher(GRID)
    sketcher.add([1.0, 5.0, 0.5], 1)
    sketcher.exclude()
    sketcher.count_class(2, times=3)
    assert sketcher.peek() == sketcher.peek()
    taken = sketcher.take()
    assert (taken.rows, taken.excluded, taken.classes.tolist()) == (1, 1, [0, 1, 3])
    assert sketcher.take() == empty(GRID)


def test_a_ring_that_is_full_empties_itself():
    sketcher = Sketcher(GRID, ring_rows=3)
    for _ in range(10):
        sketcher.add([1.0, 5.0, 0.5])
    assert sketcher.take().rows == 10


@pytest.mark.parametrize("index", [-1, 3])
def test_a_class_that_the_grid_lacks_is_refused(index: int):
    sketcher = Sketcher(GRID)
    with pytest.raises(IndexError):
        sketcher.add([1.0, 5.0, 0.5], index)
    with pytest.raises(IndexError):
        sketcher.count_class(index)
    assert sketcher.take() == empty(GRID), "a row that is refused is not half counted"


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_a_row_of_another_length_is_refused(values: list[float]):
    with pytest.raises(ValueError, match="broadcast"):
        Sketcher(GRID).add(values)


@pytest.mark.parametrize(("correlation", "low", "high"), [(0.0, 850, 1000), (0.5, 280, 390), (0.9, 35, 75)])
def test_rows_that_repeat_each_other_are_worth_fewer(correlation: float, low: int, high: int):
    generator = np.random.default_rng(4)
    noise = generator.normal(size=(1000, 8))
    for index in range(1, len(noise)):
        noise[index] = correlation * noise[index - 1] + math.sqrt(1 - correlation**2) * noise[index]
    assert low <= counted(wide_grid(features=8), noise).effective <= high


def test_all_features_of_a_wide_grid_are_asked_what_rows_are_worth():
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(1000, 32))
    rows[:, 17:] = np.repeat(rows[::100, 17:], 100, axis=0)
    grid = wide_grid()
    assert counted(grid, rows).effective > 850, "17 of 32 features say that each row is a new one"
    rows[:, 14:] = np.repeat(rows[::100, 14:], 100, axis=0)
    assert counted(grid, rows).effective < 50


def test_a_wide_grid_counts_each_feature_as_a_grid_of_it_alone_does():
    grid = wide_grid()
    rows = normal_rows(np.random.default_rng(6), 700, 32)
    rows[::7, 20], rows[::9, 3], rows[:, 30] = np.nan, np.inf, np.nan
    together = counted(grid, rows)
    for index, cells in enumerate(split(together, grid)):
        alone = counted(Grid((grid.features[index],), (), grid.step_s, 0), rows[:, [index]])
        assert cells.tolist() == alone.cells.tolist()
        assert together.moments[index].tolist() == alone.moments[0].tolist()


def test_rows_that_never_vary_are_worth_one():
    assert counted(GRID, np.full((50, 3), 5.0)).effective == 1
    assert counted(GRID, np.full((50, 3), np.nan)).effective == 1


def test_a_feature_that_left_its_grid_wants_another():
    grid = wide_grid(features=4)
    rows = normal_rows(np.random.default_rng(2), 3000, 4)
    assert features_that_want_a_grid(counted(grid, rows), grid) == ()
    rows[:, 1] += 1.5
    rows[:, 3] -= 1.5
    assert features_that_want_a_grid(counted(grid, rows), grid) == ("f1", "f3")


def test_the_outermost_bounds_hold_at_the_end_of_float32():
    most = float(np.finfo(np.float32).max)
    grid = Grid((fit_feature("x", FeatureGroup.INPUT, [-most, most], 4),), (), 1, 0)
    counts = counted(grid, np.array([[-most], [most], [np.inf], [-np.inf]], np.float32))
    assert counts.cells.tolist() == [2, 0, 1, 1, 0]


def test_a_flush_of_the_widest_grid_needs_less_than_640_kibibytes():
    grid = wide_grid()
    row = np.zeros(32, np.float32)
    tracemalloc.start()
    try:
        sketcher = Sketcher(grid)
        for _ in range(2500):
            sketcher.add(row, 3)
        sketcher.take()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 640 << 10
