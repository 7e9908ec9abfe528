"""Comparisons add up to the same whatever the order, and what travels is checked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.shadow import Arm, Comparison, Disagreement, Pairs, summed
from protocol.sketches.fixed import DIFFERENCE, GRIDS, LATENCY_MS, SHARE, Cells, Counter, Grid, added

values = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=50)


def counted(grid: Grid, numbers: list[float]) -> Cells:
    counter = Counter(grid)
    for number in numbers:
        counter.add(number)
    return counter.cells()


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
@given(one=values, other=values)
def test_parts_add_up_to_the_whole(grid: Grid, one: list[float], other: list[float]):
    whole = counted(grid, one + other)
    assert added([counted(grid, one), counted(grid, other)], grid) == whole
    assert added([counted(grid, other), counted(grid, one)], grid) == whole
    assert whole.count + whole.nan == len(one) + len(other)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_an_edge_belongs_to_the_cell_below_it(grid: Grid):
    for index, edge in enumerate(grid.edges):
        assert grid.cell(edge) == index
        assert grid.cell(math.nextafter(edge, math.inf)) == index + 1


@given(st.lists(st.floats(0.02, 90_000), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_percentile_of_latencies_is_right_within_a_cell(numbers: list[float], share: float):
    exact = sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]
    found = counted(LATENCY_MS, numbers).quantile(share)
    assert found is not None
    assert found == pytest.approx(exact, rel=10 ** (1 / 20) - 1 + 1e-6)


def test_the_mean_is_exact():
    assert counted(DIFFERENCE, [0.1] * 10).mean == 0.1
    assert counted(DIFFERENCE, []).mean is None
    assert counted(DIFFERENCE, []).quantile(0.5) is None


@pytest.mark.parametrize(
    "bad", [{"grid": "unknown.1"}, {"grid": SHARE.name, "counts": {"-1": 1}}, {"grid": SHARE.name, "counts": {"52": 1}}]
)
def test_counts_off_the_grid_are_refused(bad: dict[str, object]):
    with pytest.raises(ValidationError):
        Cells.model_validate(bad)


def test_counts_of_different_grids_do_not_add_up():
    with pytest.raises(ValueError, match=r"grid share\.1"):
        added([counted(SHARE, [0.5])], LATENCY_MS)


labels = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9))
arms = st.builds(Arm, frames=st.integers(0, 99), errors=st.integers(0, 9), labels=labels)
disagreements = st.lists(st.builds(Disagreement, champion=st.sampled_from("ab"), candidate=st.sampled_from("cd"), count=st.integers(1, 9)))
pairs = st.builds(Pairs, compared=st.integers(0, 99), agreed=st.integers(0, 9), disagreements=disagreements)
comparisons = st.builds(Comparison, champion=arms, candidate=arms, pairs=pairs, skipped=st.integers(0, 9), cpu_ms=st.integers(0, 9))


@given(st.lists(comparisons, min_size=1, max_size=4), st.randoms())
def test_comparisons_add_up_in_any_order_and_grouping(parts: list[Comparison], random):
    whole = summed(parts)
    shuffled = list(parts)
    random.shuffle(shuffled)
    cut = random.randint(0, len(parts))
    assert summed(shuffled) == whole
    assert summed([summed(parts[:cut]), summed(parts[cut:])]) == whole
    assert Comparison.model_validate_json(whole.model_dump_json()) == whole
