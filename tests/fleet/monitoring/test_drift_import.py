"""References learned from recordings: clean days count, nothing else, and what is learned is what the device would have learned."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from fleet.audit import Actor, ActorKind
from fleet.blobs import open_blobs
from fleet.monitoring.drift_import import import_reference, learn
from fleet.monitoring.drift_recordings import Brought
from protocol.errors import InvalidError, NotFoundError
from protocol.ids import DeviceId, TenantId
from protocol.sketches.codec import CONDITION_CODES, SketchWindow, Source, encode
from protocol.sketches.counts import Counts, Sketcher
from protocol.sketches.grid import FeatureGroup, Grid, fit_feature
from protocol.sketches.recording import Recorded, decode_recording, encode_recording
from protocol.sketches.reference import COMPLETE_DAY, Grade, decode_reference, fit_reference
from protocol.sketches.summary import summary

MODEL = bytes(range(16))
DAY0 = 20_000
ROWS = 20


@pytest.fixture(scope="module")
def grid() -> Grid:
    random = np.random.default_rng(0)
    names = ("image.brightness", "image.sharpness")
    features = tuple(fit_feature(name, FeatureGroup.INPUT, random.normal(size=2000), 16) for name in names)
    return Grid(features, ("a", "b"), 1, 0)


@pytest.fixture(scope="module")
def month(grid: Grid) -> list[Recorded]:
    """Sixteen whole days, every sub-window of its own."""
    random = np.random.default_rng(1)
    found = []
    for w0 in range(DAY0 * 144, (DAY0 + 16) * 144):
        sketcher = Sketcher(grid)
        level = 0.3 * np.sin(2 * np.pi * w0 / 144) + random.normal(0, 0.1)
        for values in random.normal(level, 1, (ROWS, 2)):
            sketcher.add(values)
            sketcher.count_class(int(random.random() < 0.4))
        found.append(Recorded(window(grid, w0, sketcher.take()), grid))
    return found


def window(grid: Grid, w0: int, counts: Counts, **changes: object) -> SketchWindow:
    fields = {"pipeline": "front", "grid_id": grid.grid_id, "model": MODEL, "src": Source.ACTIVE, "w0": w0, "nsub": 1, "mask": 1}
    none = np.full(1, np.nan, np.float32)
    return SketchWindow(**(fields | {"counts": counts, "scores": none, "reference_id": None, "rev": 0} | changes))


def changed(month: Sequence[Recorded], count: int, **counts: object) -> list[Recorded]:
    """The recording with the counts of its first sub-windows changed."""
    head = [replace(one, window=replace(one.window, counts=replace(one.window.counts, **counts))) for one in month[:count]]
    return [*head, *month[count:]]


def test_what_is_learned_is_what_the_device_would_have_learned(grid, month):
    found = learn(month, pipeline="front")
    vectors = np.stack([summary(one.window.counts, grid) for one in month])
    places = np.array([one.window.w0 for one in month])
    own = fit_reference(vectors, places, grid=grid, model=MODEL, is_recorded=True)
    assert found.reference.scatter.mean == pytest.approx(own.scatter.mean)
    assert found.reference.scatter.factor == pytest.approx(own.scatter.factor)
    assert found.reference.tail.scores == pytest.approx(own.tail.scores, rel=1e-4)
    assert (found.days, found.windows, found.left_out) == (16, 16 * 144, {})


def test_a_recording_makes_a_provisional_reference_that_says_so(grid, month):
    reference = decode_reference(learn(month, pipeline="front").reference.encoded, grid)
    assert reference.grade is Grade.PROVISIONAL
    assert reference.is_recorded


def test_order_and_repetition_in_the_file_do_not_matter(month):
    shuffled = [month[index] for index in np.random.default_rng(3).permutation(len(month))]
    found = learn([*shuffled, *month[:10]], pipeline="front")
    assert found.reference.reference_id == learn(month, pipeline="front").reference.reference_id
    assert found.left_out == {"twice": 10}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conditions": {CONDITION_CODES["frame_missing"]: 90}}, "spoiled by a condition"),
        ({"conditions": {CONDITION_CODES["clock_jumped"]: 1}}, "spoiled by a condition"),
        ({"excluded": ROWS + 1}, "mostly left out"),
        ({"rows": ROWS // 3, "effective": 1}, "too few rows"),
    ],
)
def test_sub_windows_that_are_not_clean_do_not_count(month, change, reason):
    found = learn(changed(month, 20, **change), pipeline="front")
    assert found.left_out == {reason: 20}
    assert found.windows == 16 * 144 - 20


def test_a_condition_that_spoils_nothing_counts(month):
    found = learn(changed(month, 20, conditions={CONDITION_CODES["clock_unsynced"]: 30}), pipeline="front")
    assert found.left_out == {}


def test_too_few_complete_days_are_told_with_what_was_left_out(month):
    short = changed(month[: 14 * 144], 144 - COMPLETE_DAY + 1, excluded=ROWS + 1)
    with pytest.raises(InvalidError, match=r"has 13 complete days .*\(29 mostly left out\); wanted 14 days of at least 116") as caught:
        learn(short, pipeline="front")
    assert caught.value.code == "too-few"
    assert "mooring-agent drift record --days 28 -o FILE" in caught.value.hint, "a command as it is typed"


def test_the_model_version_of_which_there_is_most_is_learned_from_unless_one_is_named(month):
    other = bytes(16)
    few = [replace(one, window=replace(one.window, model=other)) for one in month[:50]]
    mixed = [*few, *month]
    assert learn(mixed, pipeline="front").reference.model == MODEL
    with pytest.raises(InvalidError, match="has 0 complete days among 50 clean"):
        learn(mixed, pipeline="front", model=other.hex())


def test_what_ran_in_the_shadow_is_not_learned_from(month):
    shadow = [replace(one, window=replace(one.window, src=Source.SHADOW)) for one in month]
    with pytest.raises(NotFoundError, match="nothing of pipeline front"):
        learn(shadow, pipeline="front")


def test_another_pipeline_is_refused_with_what_there_is(month):
    with pytest.raises(NotFoundError, match="nothing of pipeline back") as caught:
        learn(month, pipeline="back")
    assert "front (model 000102" in caught.value.hint


def test_a_recording_survives_its_bytes(grid, month):
    data = encode_recording({grid.grid_id.hex(): grid.encoded}, (encode(one.window) for one in month))
    again = learn(decode_recording(data), pipeline="front")
    assert again.reference.reference_id == learn(month, pipeline="front").reference.reference_id


def test_what_cannot_be_used_is_refused_before_anything_is_kept(database, tmp_path, grid, month):
    data = encode_recording({grid.grid_id.hex(): grid.encoded}, (encode(one.window) for one in month))
    for content, reason, text, code in (
        (data, " ", "wants a reason", "invalid"),
        (b"no recording", "in the hall", "A recording is not canonical CBOR", "malformed"),
        (data, "in the hall", "which no release here brought", "unknown-grid"),
    ):
        with pytest.raises(InvalidError, match=text) as caught:
            brought(database, open_blobs((tmp_path / "blobs").as_uri()), content, reason)
        assert caught.value.code == code


def brought(database, blobs, data: bytes, reason: str):
    return import_reference(
        database,
        blobs,
        tenant=TenantId("t0"),
        brought=Brought(DeviceId("cam-1"), is_unsigned=True),
        pipeline="front",
        recording=data,
        by=Actor(ActorKind.PERSON, "anna"),
        now=datetime(2026, 1, 1, tzinfo=UTC),
        reason=reason,
    )
