"""A grid has one byte form, and nothing that is no grid gets in."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from grids import plain_grid, wide_grid
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.sketches import grid as grids
from protocol.sketches.grid import OTHER, FeatureGrid, FeatureGroup, Grid, decode_grid, encode_grid, fit_feature, fit_on_edges

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sketches" / "grid.1.cbor"
samples = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=2, max_size=80)


def test_the_bytes_of_format_1_stay_what_they_are():
    assert decode_grid(GOLDEN.read_bytes()) == plain_grid()
    assert encode_grid(plain_grid()) == GOLDEN.read_bytes()


def test_its_id_is_the_beginning_of_its_digest():
    assert plain_grid().grid_id == hashlib.sha256(GOLDEN.read_bytes()).digest()[:16]


@given(samples, st.integers(1, 40), st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=3))
def test_a_grid_of_any_values_comes_back_from_its_bytes(values: list[float], bins: int, extra: list[float]):
    if sum(np.isfinite(values)) < 2:
        with pytest.raises(InvalidError, match="finite values"):
            fit_feature("x", FeatureGroup.INPUT, values, bins)
        return
    feature = fit_feature("x", FeatureGroup.INPUT, values, bins, extra)
    grid = Grid((feature,), (), 1, 0)
    assert decode_grid(grid.encoded) == grid
    assert 1 <= feature.bins <= bins + len(extra)


def test_bins_hold_the_same_share_of_the_values():
    feature = fit_feature("x", FeatureGroup.INPUT, np.random.default_rng(1).normal(size=32_000), 32)
    assert feature.bins == 32
    assert np.allclose(feature.masses, 1 / 32, atol=1e-4)
    assert abs(feature.center) < 0.02
    assert abs(feature.scale - 1) < 0.02


def test_equal_quantiles_collapse():
    feature = fit_feature("boxes", FeatureGroup.OUTPUT, np.repeat([0.0, 1.0, 2.0], [70, 20, 10]), 32)
    assert feature.edges == (0.0, 1.0)
    assert feature.masses == pytest.approx((0.7, 0.2, 0.1))
    assert feature.scale > 0


def test_a_feature_that_never_varies_has_one_bin():
    feature = fit_feature("x", FeatureGroup.INPUT, np.full(50, 3.0), 32)
    assert (feature.edges, feature.masses, feature.scale) == ((), (1.0,), 1.0)


def test_thresholds_become_edges_inside_the_range_alone():
    values = np.arange(101) / 100
    feature = fit_feature("x", FeatureGroup.OUTPUT, values, 4, (0.6, 7.0))
    assert np.float32(0.6) in feature.edges
    assert max(feature.edges) < 1
    assert fit_on_edges("x", FeatureGroup.OUTPUT, values, (0.5, 0.5, -3.0)).edges == (0.5,)


def test_other_classes_have_a_place_of_their_own():
    grid = plain_grid()
    assert [grid.slot(label) for label in ("cat", "dog", "bird", OTHER)] == [0, 1, 2, 2]
    assert replace(grid, classes=("cat",)).slot("bird") is None


def test_cells_of_a_feature_are_found():
    grid = plain_grid()
    assert grid.offsets == (0, 7, 11, 17)
    assert grid.cells == 17
    assert grid.index("output.confidence") == 2
    with pytest.raises(LookupError, match="not on the grid"):
        grid.index("nothing")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Bad Name"},
        {"name": "x" * 64},
        {"edges": (1.0, 1.0, 3.0)},
        {"edges": (2.0, 1.0, 3.0)},
        {"edges": (-1.0, 2.0, 3.0)},
        {"edges": (1.0, 2.0, 4.0)},
        {"edges": (0.1, 2.0, 3.0)},
        {"edges": (1.0, 2.0)},
        {"low": float("nan")},
        {"high": float("inf")},
        {"high": 1e39},
        {"scale": 0.0},
        {"scale": -1.0},
        {"masses": (0.5, 0.5, 0.5, 0.5)},
        {"masses": (1.5, -0.5, 0.0, 0.0)},
        {"edges": tuple(index / 256 for index in range(96)), "masses": (0.0,) * 96 + (1.0,)},
    ],
)
def test_a_feature_that_contradicts_itself_is_refused(change: dict[str, Any]):
    with pytest.raises(InvalidError) as refused:
        replace(plain_grid().features[0], **change)
    assert refused.value.code == "bad-grid"


@pytest.mark.parametrize(
    "change",
    [
        {"features": ()},
        {"features": plain_grid().features * 2},
        {"features": tuple(replace(plain_grid().features[0], name=f"f{index}") for index in range(33))},
        {"classes": tuple(map(str, range(21)))},
        {"classes": ("a", "a")},
        {"classes": ("",)},
        {"classes": ("x" * 201,)},
        {"step_s": 3},
        {"made_at_ms": -1},
    ],
)
def test_a_grid_beyond_its_limits_is_refused(change: dict[str, Any]):
    with pytest.raises(InvalidError) as refused:
        replace(plain_grid(), **change)
    assert refused.value.code == "bad-grid"


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ((0,), 2, "unknown-version"),
        ((1,), 3, "bad-grid"),
        ((1,), [3], "bad-grid"),
        ((2,), {}, "bad-grid"),
        ((2,), [1], "bad-grid"),
        ((3,), 1.5, "bad-grid"),
        ((3,), True, "bad-grid"),
        ((9,), 1, "bad-grid"),
        ((1, 0, 0), 5, "bad-grid"),
        ((1, 0, 1), 3, "bad-grid"),
        ((1, 0, 2), b"123", "bad-grid"),
        ((1, 0, 2), bytes(4000), "bad-grid"),
        ((1, 0, 3), bytes(4), "bad-grid"),
        ((1, 0, 4), "text", "bad-grid"),
        ((1, 0, 7), 1, "bad-grid"),
    ],
)
def test_bytes_of_something_else_are_refused(path: tuple[int, ...], value: Any, code: str):
    document = cbor2.loads(plain_grid().encoded)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(InvalidError) as refused:
        decode_grid(cbor2.dumps(document, canonical=True))
    assert refused.value.code == code


def test_no_map_is_no_grid():
    with pytest.raises(InvalidError, match="a map"):
        decode_grid(cbor2.dumps([1]))


def test_the_largest_grid_stays_within_its_bytes():
    assert len(wide_grid().encoded) < grids.MAX_GRID_BYTES
    labels = tuple(f"{index:02}" + "x" * 198 for index in range(20))
    features = tuple(
        FeatureGrid(f"{index:02}".ljust(63, "x"), FeatureGroup.OUTPUT, tuple(map(float, range(95))), 0, 95, (1,) + (0,) * 95, 0, 1)
        for index in range(32)
    )
    assert len(Grid(features, labels, 8, 2**53 - 1).encoded) < grids.MAX_GRID_BYTES
