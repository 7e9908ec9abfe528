"""Windows as they travel: one byte form, and a named refusal for everything else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from grids import MODEL, counted, normal_rows, plain_counts, plain_grid, wide_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.sketches import codec, leb128
from protocol.sketches.codec import REFUSALS, SketchWindow, Source, check_time, decode, encode, merged, open_head, read_head, sum_cells
from protocol.sketches.counts import Counts, empty, summed
from protocol.sketches.grid import Grid

#: Each example is cheap; so are the tests together.
FEW = settings(max_examples=40)

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sketches" / "window.1.cbor"
GRID = plain_grid()
W0 = 2_990_000


def window(counts: Counts | None = None, *, w0: int = W0, grid: Grid = GRID, **other: Any) -> SketchWindow:
    """One sub-window of a camera."""
    counts = counts or plain_counts()
    fields: dict[str, Any] = {
        "pipeline": "cam",
        "grid_id": grid.grid_id,
        "model": MODEL,
        "src": Source.ACTIVE,
        "w0": w0,
        "nsub": 1,
        "mask": 1 if counts.rows else 0,
        "counts": counts,
        "scores": np.array([np.nan], np.float32),
    }
    return SketchWindow(**(fields | other))


def golden() -> SketchWindow:
    """The window of the golden file."""
    counts = replace(plain_counts(), conditions={3: 40, 17: 1})
    scores = np.array([12.5, np.nan, 0.0], np.float32)
    return window(counts, nsub=3, mask=0b101, scores=scores, reference_id=bytes(16), rev=2)


def refused(document: Any) -> str:
    """The code that these bytes are refused with."""
    with pytest.raises(InvalidError) as error:
        decode(document if isinstance(document, bytes) else cbor2.dumps(document, canonical=True), GRID)
    assert error.value.code in REFUSALS
    return error.value.code


def test_the_bytes_of_format_1_stay_what_they_are():
    assert encode(golden()) == GOLDEN.read_bytes()
    assert decode(GOLDEN.read_bytes(), GRID) == golden()


@st.composite
def windows(draw: st.DrawFn) -> SketchWindow:
    rows = draw(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=20))
    nsub = draw(st.integers(1, 144))
    mask = draw(st.integers(1, 2**nsub - 1))
    conditions = draw(st.dictionaries(st.integers(1, 65535), st.integers(1, 600), max_size=5))
    scores = np.full(nsub, np.nan, np.float32)
    scores[[bool(mask >> index & 1) for index in range(nsub)]] = draw(st.floats(0, width=32, allow_infinity=False, allow_nan=False))
    return window(
        replace(counted(GRID, np.array(rows, np.float32), np.arange(len(rows)) % 3), conditions=conditions),
        pipeline=draw(st.from_regex("[a-z0-9][a-z0-9-]{0,9}", fullmatch=True)),
        src=draw(st.sampled_from(Source)),
        w0=draw(st.integers(0, 2**32 - 1)),
        nsub=nsub,
        mask=mask,
        scores=scores,
        reference_id=draw(st.binary(min_size=16, max_size=16)),
        rev=draw(st.integers(0, 2**32 - 1)),
    )


@FEW
@given(windows())
def test_what_was_encoded_is_decoded(one: SketchWindow):
    data = encode(one)
    assert decode(data, GRID) == one
    assert decode(data, GRID).counts == one.counts
    assert read_head(data).window_id == one.window_id


@FEW
@given(st.binary(max_size=80), st.integers(0, 600), st.integers(0, 255))
def test_no_bytes_raise_another_error(data: bytes, at: int, byte: int):
    mutated = bytearray(GOLDEN.read_bytes())
    mutated[at % len(mutated)] = byte
    for one in (data, bytes(mutated)):
        try:
            decode(one, GRID)
        except InvalidError as error:
            assert error.code in REFUSALS  # noqa: PT017 - no other is raised


DOCUMENT: dict[int, Any] = cbor2.loads(encode(golden()))


def changed(**fields: Any) -> dict[int, Any]:
    """The golden document with other values of keys k0, k1, …; None takes a key away."""
    document = DOCUMENT | {int(name[1:]): value for name, value in fields.items()}
    return {key: value for key, value in document.items() if value is not None}


def cells(*values: int) -> bytes:
    return leb128.encode(np.array(values))


GOOD_CELLS = leb128.decode(DOCUMENT[10], GRID.cells).tolist()
CASES = [
    (b"\x00" * (16 * 1024 + 1), "too-large"),
    (b"", "malformed"),
    (b"\x80", "malformed"),
    (encode(golden()) + b"\x00", "malformed"),
    (encode(golden())[:-1], "malformed"),
    (changed(k0=2), "unknown-version"),
    (changed(k0=None), "unknown-version"),
    (changed(k0=True), "unknown-version"),
    *((changed(**{f"k{key}": None}), "malformed") for key in DOCUMENT if key not in (0, 15)),
    *((changed(**{f"k{key}": "text"}), "malformed") for key in DOCUMENT if key not in (0, 17)),
    *((changed(**{f"k{key}": -1}), "malformed") for key in (3, 4, 5, 7, 8, 9, 16)),
    *((changed(**{f"k{key}": 2**53}), "malformed") for key in (4, 5, 7, 8, 9, 16)),
    (changed(k1=bytes(15)), "malformed"),
    (changed(k2=bytes(17)), "malformed"),
    (changed(k15=bytes(8)), "malformed"),
    (changed(k3=2), "malformed"),
    (changed(k16=2**32), "malformed"),
    (changed(k17="Bad Name"), "malformed"),
    (changed(k17="x" * 64), "malformed"),
    (changed(k13={1: -1}), "bad-window"),
    (changed(k13={1: "x"}), "malformed"),
    (changed(k13={"x": 1}), "malformed"),
    (changed(k13={0: 1}), "bad-window"),
    (changed(k13={1: 3601}), "bad-window"),
    (changed(k13=dict.fromkeys(range(1, 66), 1)), "bad-window"),
    (changed(k4=2**32), "bad-window"),
    (changed(k5=0), "bad-window"),
    (changed(k5=145), "bad-window"),
    (changed(k5=9), "bad-window"),
    (changed(k6=b"\x0d"), "bad-window"),
    (changed(k6=b"\x05\x00"), "bad-window"),
    (changed(k6=b"\x00", k14=bytes.fromhex("0000c07f") * 3), "bad-window"),
    (changed(k7=18_001), "bad-window"),
    (changed(k7=0), "bad-window"),
    (changed(k8=7), "bad-window"),
    (changed(k9=18_001), "bad-window"),
    (changed(k12=cells(6001, 0, 0)), "bad-window"),
    (changed(k1=bytes(16)), "unknown-grid"),
    (changed(k10=cells(*GOOD_CELLS)[:-1]), "length"),
    (changed(k10=cells(*GOOD_CELLS, 0)), "length"),
    (changed(k12=cells(1, 2)), "length"),
    (changed(k11=DOCUMENT[11] + b"\x00"), "length"),
    (changed(k10=cells(*GOOD_CELLS)[:-1] + b"\x80"), "leb128"),
    (changed(k10=cells(*GOOD_CELLS)[:-1] + b"\xff" * 9 + b"\x01"), "leb128"),
    (changed(k10=cells(*GOOD_CELLS)[:-1] + b"\x80\x00"), "leb128"),
    (changed(k10=cells(GOOD_CELLS[0] + 1, *GOOD_CELLS[1:])), "rows-mismatch"),
    (changed(k7=5, k8=1), "rows-mismatch"),
    (changed(k10=cells(2**62, 2**62, 2**62, 2**62 + 6, 0, 0, 0, *GOOD_CELLS[7:])), "rows-mismatch"),
    (changed(k11=bytes(10) + b"\x04\x02"), "bad-moments"),
    (changed(k14=DOCUMENT[14][:-4]), "bad-scores"),
    (changed(k14=np.array([-1, np.nan, 0], "<f4").tobytes()), "bad-scores"),
    (changed(k14=np.array([np.inf, np.nan, 0], "<f4").tobytes()), "bad-scores"),
    (changed(k14=np.array([1, 2, 3], "<f4").tobytes()), "bad-scores"),
    (changed(k15=None), "bad-scores"),
]


@pytest.mark.parametrize(("document", "code"), CASES)
def test_what_is_malformed_is_refused_by_name(document: Any, code: str):
    assert refused(document) == code


def test_every_refusal_has_a_case():
    assert {code for _, code in CASES} | {"future-window", "before-grid"} == set(REFUSALS)


@pytest.mark.parametrize(
    "moments",
    [
        (10, 20, 3, 1),  # least above greatest
        (10, 20, -5000, 3),
        (10, 20, 1, 5000),
        (100, 400, 1, 2),  # the sum is above what the greatest allows
        (1, 400, 1, 2),
        (8, 400, 1, 2),  # so are the squares
        (8, 2, 1, 2),  # they are below what the sum needs
        (2**61, 2**62, -(2**61), 2**61),
    ],
)
def test_moments_that_contradict_each_other_are_refused(moments: tuple[int, ...]):
    packed = leb128.zigzag(np.array([moments]))
    packed[:, 1] = moments[1]
    with pytest.raises(InvalidError) as error:
        codec.decode_moments(leb128.encode(packed), np.array([5]))
    assert error.value.code == "bad-moments"


def test_moments_of_no_value_are_zeros_on_the_wire_alone():
    assert codec.encode_moments(empty(GRID).moments) == bytes(12)
    assert codec.decode_moments(bytes(4), np.array([0])).tolist() == [[0, 0, 4096, -4096]]
    with pytest.raises(InvalidError):
        codec.decode_moments(b"\x00\x00\x02\x04", np.array([0]))


def test_keys_of_a_newer_writer_are_ignored():
    newer = cbor2.dumps(DOCUMENT | {18: {"more": [1.5, None]}, 99: True}, canonical=True)
    assert decode(newer, GRID) == golden()


def test_a_window_from_the_future_or_before_its_grid_is_refused():
    head = read_head(encode(golden()))
    begins, ends_first = W0 * 600_000, (W0 + 1) * 600_000
    check_time(head, now_ms=begins - 600_000, made_at_ms=ends_first - 1)
    for times, code in (({"now_ms": begins - 600_001}, "future-window"), ({"now_ms": begins, "made_at_ms": ends_first}, "before-grid")):
        with pytest.raises(InvalidError) as error:
            check_time(head, **times)
        assert error.value.code == code


def test_a_window_is_named_by_where_it_begins_and_how_long_it_is():
    one = golden()
    assert one.window_id == "2990000-3"
    assert codec.parse_window_id(one.window_id) == (W0, 3)
    assert (one.start_ms, one.end_ms) == (W0 * 600_000, (W0 + 3) * 600_000)


@pytest.mark.parametrize("text", ["", "1", "1-0", "1-145", "01-1", "1-01", "-1-1", "1-1-1", "x-1", "99999999999-1", "1-1\n"])
def test_other_names_are_no_windows(text: str):
    with pytest.raises(InvalidError) as error:
        codec.parse_window_id(text)
    assert error.value.code == "bad-window"


def subwindows(count: int, grid: Grid, *, shift: float = 0.0, seed: int = 3) -> list[SketchWindow]:
    """Sub-windows of 600 rows one after the other, scored against a reference."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        rows = normal_rows(generator, 600, len(grid.features), shift=shift)
        counts = counted(grid, rows, generator.integers(0, len(grid.classes), 600))
        scores = np.array([80 + index], np.float32)
        made.append(window(counts, w0=W0 + index, grid=grid, scores=scores, reference_id=bytes(16)))
    return made


def test_an_hour_is_the_sum_of_its_sub_windows_whatever_their_order():
    grid = wide_grid(features=4)
    parts = subwindows(6, grid)
    hour = merged(parts, grid)
    assert merged(parts[::-1], grid) == hour
    assert merged([merged(parts[:2], grid), merged(parts[2:], grid)], grid) == hour
    assert (hour.w0, hour.nsub, hour.mask) == (W0, 6, 0b111111)
    assert hour.counts == summed((part.counts for part in parts), grid)
    assert hour.scores.tolist() == [80, 81, 82, 83, 84, 85]


def test_a_merge_keeps_gaps_and_forgets_scores_of_an_older_reference():
    grid = wide_grid(features=4)
    parts = subwindows(4, grid)
    parts[0] = replace(parts[0], reference_id=bytes(15) + b"\x01")
    merged_parts = merged([parts[0], parts[3]], grid)
    assert (merged_parts.nsub, merged_parts.mask, merged_parts.reference_id) == (4, 0b1001, bytes(16))
    assert np.array_equal(merged_parts.scores, [np.nan, np.nan, np.nan, 83], equal_nan=True)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [golden(), golden()],
        [golden(), replace(golden(), w0=W0 + 2)],
        [golden(), replace(golden(), w0=W0 + 142)],
        [golden(), replace(golden(), w0=W0 + 3, pipeline="other")],
        [golden(), replace(golden(), w0=W0 + 3, src=Source.SHADOW)],
        [golden(), replace(golden(), w0=W0 + 3, model=bytes(16))],
    ],
)
def test_what_is_not_one_series_is_not_merged(parts: list[SketchWindow]):
    with pytest.raises(InvalidError) as error:
        merged(parts, GRID)
    assert error.value.code == "bad-window"


def test_a_fleet_is_summed_from_the_bytes_alone_and_replay_and_order_change_nothing():
    grid = wide_grid(features=4)
    parts = subwindows(12, grid)
    # state is a map by key: what comes again finds its place taken
    store = {(one.pipeline, one.w0, one.nsub): encode(one) for one in [*parts, *parts[::-1], parts[3]]}
    packed = [read_head(data).cells for data in store.values()]
    wanted = summed((one.counts for one in parts), grid).cells
    assert sum_cells(packed, grid.cells).tolist() == wanted.tolist()
    assert sum_cells(packed[::-1], grid.cells).tolist() == wanted.tolist()


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_an_hour_of_32_features_and_20_classes_is_at_most_2_kilobytes(shift: float):
    grid = wide_grid()
    data = encode(merged(subwindows(6, grid, shift=shift), grid))
    assert len(data) <= 2048
    assert decode(data, grid).counts.rows == 3600


def test_a_window_that_is_too_large_is_not_sent():
    grid = wide_grid()
    counts = empty(grid)
    full = replace(counts, rows=6000, effective=1, moments=np.zeros((32, 4), np.int64), classes=np.full(20, 6_000_000))
    wide = replace(full, cells=np.repeat([0], grid.cells))
    assert len(encode(window(wide, grid=grid))) < codec.MAX_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MAX_BYTES", 100)
        with pytest.raises(InvalidError) as error:
            encode(window(wide, grid=grid))
    assert error.value.code == "too-large"


def test_a_head_is_opened_on_its_own_grid_alone():
    head = read_head(encode(golden()))
    assert open_head(head, GRID) == golden()
    with pytest.raises(InvalidError) as error:
        open_head(head, wide_grid(features=4))
    assert error.value.code == "unknown-grid"


def test_windows_are_compared_by_their_bytes():
    assert golden() != replace(golden(), rev=3)
    assert golden() != "window"


def test_codes_of_conditions_are_never_given_twice():
    assert len(set(codec.CONDITION_CODES.values())) == len(codec.CONDITION_CODES)
    assert codec.CONDITION_NAMES[3] == "frame_frozen"
