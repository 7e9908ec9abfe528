"""Rows for drift: at a random instant of every step, from the model's own input, after the answer, within a budget, never in the way."""

import base64
import random

import numpy as np
import pytest
from simulators.clock import FakeClock
from simulators.color_models import make_slot
from simulators.drift_rows import bring_profile

from agent.inference.rows import STEP_ROWS, Glimpse, Instants, RowBudget, RowSampler, find_watched
from agent.inference.watched import Watched
from protocol.errors import InvalidError
from runtime.answers import Classification, ClassScore
from runtime.features import Extractor
from runtime.manifest import load_manifest


def dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a test's dice


@pytest.fixture
def watched(tmp_path):
    folder = make_slot(tmp_path / "slot")
    bring_profile(folder)
    found, fault = find_watched(folder, load_manifest(folder / "manifest.json"))
    assert fault == ""
    return found


class Bench:
    def __init__(self, watched, *, budget=None, room=10**6) -> None:
        self.watched, self.clock, self.sent, self.room = watched, FakeClock(), [], room
        self.sampler = RowSampler("front", "color", clock=self.clock, budget=budget or RowBudget(1e9), send=self.send, chance=dice(3))
        self.sampler.watch(0)
        self.sampler.begin(watched)  # the first step begins

    def send(self, row) -> bool:
        if len(self.sent) >= self.room:
            return False
        self.sent.append(row)
        return True

    def frame(self, level=0.5, *, session=1):
        """What the pipeline does with one frame."""
        glimpse = self.sampler.begin(self.watched)
        if glimpse is not None:
            tensor = np.full((1, 8, 8, 3), level, np.float32)
            answer = Classification((ClassScore("red", 2, 0.8),))
            outputs = {"scores": np.array([[0.1, 0.1, 0.8]], np.float32)}
            glimpse.take(self.watched, tensor, answer=answer, outputs=outputs, size=(48, 64), readings=None)
            tensor[:] = np.nan  # its owner uses it again
            self.sampler.finish(glimpse, session=session)


def test_one_instant_falls_anywhere_into_each_step():
    instants = Instants(2.0, now_s=0.0, chance=dice(1))
    taken = [tick / 100 for tick in range(200_000) if instants.take(tick / 100)]
    assert 999 <= len(taken) <= 1000  # one a step; the last one may lie beyond the last tick
    phases = np.histogram([at % 2 for at in taken], bins=8, range=(0, 2))[0]
    assert phases.min() > 80  # 125 each


def test_few_frames_a_step_lose_no_step():
    instants = Instants(1.0, now_s=0.0, chance=dice(1))
    taken = sum(instants.take(frame / 2) for frame in range(2000))
    assert taken >= 990


def test_slow_frames_are_all_taken_once_their_step_has_come():
    instants = Instants(1.0, now_s=0.0, chance=dice(1))
    assert [instants.take(at) for at in (5.0, 10.0, 10.0, 15.0)] == [True, True, False, True]


def test_a_row_says_what_the_extractor_makes_of_the_models_input(watched):
    bench = Bench(watched)
    for level in (0.75, 0.25):
        bench.clock.advance(1)
        bench.frame(level)
    row = bench.sent[-1]
    extractor = Extractor(watched.manifest, [feature.name for feature in watched.grid.features])
    answer = Classification((ClassScore("red", 2, 0.8),))
    tensor = np.full((1, 8, 8, 3), 0.25, np.float32)
    expected = extractor.row(tensor, answer, outputs={"scores": np.array([[0.1, 0.1, 0.8]], np.float32)}, size=(48, 64))
    assert np.array_equal(np.frombuffer(base64.b64decode(row.values), "<f4"), expected, equal_nan=True)
    assert (row.pipeline, row.line, row.release, row.labels, row.size, row.fault) == ("front", "color", "1.0", ("red",), (48, 64), "")
    assert row.grid == watched.grid.grid_id.hex()
    assert watched.manifest.files["model.onnx"].sha256.startswith(f"sha256:{row.model}")
    assert (row.quality.hash, row.step_s, row.at_s) == (f"{extractor.quality.hash:x}", 1.0, 2.0)


def test_at_most_one_row_a_step_is_made_and_none_unless_asked(watched):
    bench = Bench(watched)
    for _ in range(1000):
        bench.clock.advance(0.05)
        bench.frame()
    assert 49 <= len(bench.sent) <= 51
    bench.sampler.watch(10)
    before = len(bench.sent)
    for _ in range(1000):
        bench.clock.advance(0.05)
        bench.frame()
    assert 4 <= len(bench.sent) - before <= 6
    bench.sampler.watch(None)
    bench.clock.advance(100)
    bench.frame()
    bench.watched, silent = None, len(bench.sent)
    bench.sampler.watch(0)
    bench.clock.advance(100)
    bench.frame()
    assert len(bench.sent) == silent


@pytest.mark.parametrize(("cost_ms", "step"), [(0.6, 1), (7.9, 1), (8.5, 2), (17, 4), (40, 8), (900, 8)])
def test_the_step_that_fits_leaves_the_control_process_its_part_of_a_hundredth_of_a_core(cost_ms, step):
    assert Watched.fitting_step(cost_ms / 1000) == step


class Spent:
    """A budget that is used up."""

    def is_open(self) -> bool:
        return False

    def pay(self, cpu_s: float) -> None:
        raise AssertionError


def test_rows_that_do_not_fit_the_budget_are_skipped_and_counted(watched):
    bench = Bench(watched, budget=Spent())
    for _ in range(5):
        bench.clock.advance(2)
        bench.frame()
    assert bench.sent == []
    bench.sampler._budget = RowBudget(1e9)
    bench.clock.advance(2)
    bench.frame()
    assert [row.skipped for row in bench.sent] == [5]


def test_rows_that_find_no_room_on_the_link_are_counted_in_the_next_one(watched):
    bench = Bench(watched, room=0)
    for _ in range(3):
        bench.clock.advance(2)
        bench.frame()
    bench.room = 1
    bench.clock.advance(2)
    bench.frame()
    assert [row.skipped for row in bench.sent] == [3]


def test_the_step_that_fits_is_told_once_enough_rows_were_made(watched):
    bench = Bench(watched)
    for _ in range(STEP_ROWS):
        bench.clock.advance(2)
        bench.frame()
    assert bench.sent[-2].fitting_step_s == 0
    assert bench.sent[-1].fitting_step_s in (1, 2, 4, 8)


def test_a_number_that_raises_is_told_in_place_of_the_row(watched, monkeypatch):
    bench = Bench(watched)

    def fail(*_args, **_options):
        raise ZeroDivisionError("no")

    monkeypatch.setattr(Extractor, "row", fail)
    bench.clock.advance(2)
    bench.frame()
    (row,) = bench.sent
    assert (row.values, row.fault.split(":")[0]) == ("", "extractor_failed")


def test_a_frame_that_does_not_fit_the_model_is_told(watched):
    bench = Bench(watched)
    bench.clock.advance(2)
    bench.sampler.refused(watched, (10, 20, 3), InvalidError("wrong", code="input_mismatch"))
    bench.sampler.refused(None, (10, 20, 3), InvalidError("wrong", code="input_mismatch"))
    (row,) = bench.sent
    assert (row.fault, row.size, row.values) == ("shape_mismatch: wrong", (10, 20), "")


def test_a_glimpse_that_no_watched_model_filled_makes_no_row(watched):
    bench = Bench(watched)
    bench.sampler.finish(Glimpse(), session=1)
    assert bench.sent == []


def test_a_release_without_a_profile_is_not_watched_and_a_damaged_one_says_why(tmp_path):
    folder = make_slot(tmp_path / "slot")
    assert find_watched(folder, load_manifest(folder / "manifest.json")) == (None, "")
    bring_profile(folder)
    manifest = load_manifest(folder / "manifest.json")
    (folder / "profile.cbor").write_bytes(b"\xa1\x00\x05")
    found, fault = find_watched(folder, manifest)
    assert found is None
    assert "format" in fault
    (folder / "profile.cbor").unlink()
    assert find_watched(folder, manifest)[1]
