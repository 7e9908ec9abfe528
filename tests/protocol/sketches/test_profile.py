"""What a release carries for drift comes back from its bytes, and nothing else is taken for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from grids import plain_grid, plain_profile, wide_grid

from protocol.errors import InvalidError
from protocol.sketches.counts import empty
from protocol.sketches.grid import MAX_BINS, FeatureGrid, FeatureGroup, Grid
from protocol.sketches.profile import (
    MAX_FAMILIES,
    MAX_PROFILE_BYTES,
    MAX_TRIALS,
    AccuracyReference,
    FamilyReference,
    ModelProfile,
    TrialReference,
    decode_profile,
    encode_profile,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sketches" / "profile.1.cbor"
ACCURACY = plain_profile().accuracy
assert ACCURACY is not None
TRIAL = TrialReference("yard", "", 0, 40, 0.9, (0.875, 1 / 3, 0.5), (0.5, -1.25) + (0.0,) * 7)


def test_the_bytes_of_format_1_stay_what_they_are():
    assert encode_profile(plain_profile()) == GOLDEN.read_bytes()
    assert decode_profile(GOLDEN.read_bytes()) == plain_profile()


def test_a_task_without_accuracy_has_a_profile_too():
    profile = replace(plain_profile(), accuracy=None)
    assert decode_profile(encode_profile(profile)) == profile


def test_a_profile_says_what_the_model_was_at_each_place():
    trials = (TRIAL, replace(TRIAL, place="gate"), replace(TRIAL, family="dirt", severity=2, accuracy=0.5))
    profile = replace(plain_profile(), accuracy=replace(ACCURACY, trials=trials))
    assert decode_profile(encode_profile(profile)) == profile
    assert decode_profile(encode_profile(plain_profile())).accuracy.trials == ()


@pytest.mark.parametrize(
    "change",
    [
        {"place": ""},
        {"place": "x" * 64},
        {"family": "x" * 64, "severity": 1},
        {"severity": 1},
        {"family": "dirt"},
        {"rows": 0},
        {"accuracy": 1.1},
        {"estimates": (0.5, 0.5)},
        {"estimates": (0.5, 0.5, float("nan"))},
        {"summary": (0.1,) * 9},
        {"summary": (float("inf"),) * 9},
    ],
)
def test_a_trial_that_contradicts_itself_is_refused(change: dict[str, Any]):
    with pytest.raises(InvalidError) as refused:
        replace(TRIAL, **change)
    assert refused.value.code == "bad-profile"


def test_a_family_is_validated_when_it_is_right_at_every_severity():
    families = tuple(FamilyReference(name, severity, 0.5, error, (0.0,) * 9) for name, severity, error in FAMILIES)
    assert replace(ACCURACY, families=families).validated() == {"blur"}


FAMILIES = [("blur", 1, 0.01), ("blur", 2, 0.05), ("dirt", 1, 0.01), ("dirt", 2, 0.0501)]


def test_the_largest_profile_stays_within_its_bytes():
    edges = tuple(map(float, range(MAX_BINS - 1)))
    features = tuple(
        FeatureGrid(f"f{index}", FeatureGroup.OUTPUT, edges, 0, MAX_BINS, (1,) + (0,) * (MAX_BINS - 1), 0, 1) for index in range(32)
    )
    grid = Grid(features, tuple(map(str, range(20))), 1, 0)
    families = tuple(FamilyReference(f"family {index}", 5, 1 / 3, 1 / 3, (0.5,) * 84) for index in range(MAX_FAMILIES))
    trials = tuple(TrialReference(f"place {index}", "family", 5, 99, 1 / 3, (1 / 3,) * 3, (0.5,) * 84) for index in range(MAX_TRIALS))
    confusion = tuple(map(tuple, np.full((20, 20), 1 / 20).tolist()))
    accuracy = AccuracyReference("f0", "f1", 1 / 3, 1 / 3, 1 / 3, 1 / 3, (1 / 3,) * MAX_BINS, confusion, families, 1 / 3, trials)
    counts = replace(empty(grid), rows=2**32, cells=np.tile([0, 0, 2**32] + [0] * MAX_BINS, 32), moments=np.zeros((32, 4), np.int64))
    profile = ModelProfile(grid, counts, accuracy)
    assert decode_profile(encode_profile(profile)) == profile
    assert len(encode_profile(profile)) < MAX_PROFILE_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"acc0": 1.5},
        {"conf0": float("nan")},
        {"epsilon": -0.1},
        {"confidence_edge": float("inf")},
        {"bin_accuracy": (0.5, 0.5, 2.0)},
        {"bin_accuracy": (0.5, 0.5)},
        {"confidence": "nothing"},
        {"entropy": "nothing"},
        {"confusion": ((1.0,),)},
        {"confusion": ((0.5, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))},
        {"confusion": ((1.0, 0.0), (0.0,))},
        {"confusion": ((2.0, 0.0, 0.0), (-1.0, 1.0, 0.0), (0.0, 0.0, 1.0))},
        {"families": ACCURACY.families * 40},
        {"families": (replace(ACCURACY.families[0], shift=(0.5,)),)},
        {"trials": (TRIAL,) * (MAX_TRIALS + 1)},
        {"trials": (replace(TRIAL, summary=(0.5,)),)},
    ],
)
def test_an_accuracy_that_contradicts_itself_is_refused(change: dict[str, Any]):
    with pytest.raises(InvalidError) as refused:
        replace(plain_profile(), accuracy=replace(ACCURACY, **change))
    assert refused.value.code == "bad-profile"


@pytest.mark.parametrize(
    "change",
    [{"family": ""}, {"severity": 0}, {"accuracy": 2.0}, {"error": float("nan")}, {"shift": (0.1,) * 9}, {"shift": (1e39,) * 9}],
)
def test_a_family_that_contradicts_itself_is_refused(change: dict[str, Any]):
    with pytest.raises(InvalidError) as refused:
        replace(ACCURACY.families[0], **change)
    assert refused.value.code == "bad-profile"


def test_counts_of_another_grid_are_refused():
    with pytest.raises(InvalidError, match="another grid"):
        ModelProfile(plain_grid(), empty(wide_grid()))


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ((0,), 2, "unknown-version"),
        ((1,), "text", "bad-profile"),
        ((1,), b"\x80", "bad-grid"),
        ((1,), bytes(70_000), "bad-profile"),
        ((2,), [6, 1], "bad-profile"),
        ((2,), [6, 7, 0], "bad-profile"),
        ((2,), [5, 1, 0], "bad-profile"),
        ((2,), [-1, 1, 0], "bad-profile"),
        ((2,), [2**33, 1, 0], "bad-profile"),
        ((3,), b"\x00", "length"),
        ((3,), b"\x80", "leb128"),
        ((4,), b"\x00", "length"),
        ((5,), b"\x00", "length"),
        ((7,), 1, "bad-profile"),
        ((6,), [], "bad-profile"),
        ((6, 0), 1, "bad-profile"),
        ((6, 2), bytes(8), "bad-profile"),
        ((6, 3), bytes(7), "bad-profile"),
        ((6, 4), bytes(16), "bad-profile"),
        ((6, 4), b"", "bad-profile"),
        ((6, 5), {}, "bad-profile"),
        ((6, 5), [[]], "bad-profile"),
        ((6, 5), [[1, 1, bytes(16), b""]], "bad-profile"),
        ((6, 5), [["x", 1, bytes(8), b""]], "bad-profile"),
        ((6, 5), [["x", 1, bytes(16), b"123"]], "bad-profile"),
        ((6, 5), [["x", 1, bytes(16), b""]], "bad-profile"),
        ((6, 7), [], "bad-profile"),
        ((6, 6), {}, "bad-profile"),
        ((6, 6), [[]], "bad-profile"),
        ((6, 6), [[1, "", 0, 9, bytes(32), bytes(36)]], "bad-profile"),
        ((6, 6), [["x", "", 0, 9, bytes(24), bytes(36)]], "bad-profile"),
        ((6, 6), [["x", "", 0, 9, bytes(32), bytes(35)]], "bad-profile"),
        ((6, 6), [["x", "", 0, 9, bytes(32), bytes(32)]], "bad-profile"),
        ((6, 6), [["x", "", 0, 9.5, bytes(32), bytes(36)]], "bad-profile"),
    ],
)
def test_bytes_of_something_else_are_refused(path: tuple[int, ...], value: Any, code: str):
    document = cbor2.loads(GOLDEN.read_bytes())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(InvalidError) as refused:
        decode_profile(cbor2.dumps(document, canonical=True))
    assert refused.value.code == code


def test_no_map_and_too_many_bytes_are_no_profile():
    with pytest.raises(InvalidError, match="a map"):
        decode_profile(b"\x80")
    with pytest.raises(InvalidError) as refused:
        decode_profile(bytes(MAX_PROFILE_BYTES + 1))
    assert refused.value.code == "too-large"
