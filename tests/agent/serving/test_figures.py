"""Figures of serving: sums that survive a restart of the process, windows that hold what came since."""

import random

import pytest

from agent.serving.figures import BOUNDS_MS, Counter, Totals
from agent.serving.windows import ServingWindows
from agent.telemetry import merge_windows
from protocol.messages import TelServing

ENVELOPE = {"ts": 0, "boot": "b", "epoch": "e", "seq": 1, "floor": 0}


def totals(counter: Counter, *, release: str = "1.0") -> Totals:
    return Totals("color", release, "", "onnx:cpu", counter.answered, counter.failed, counter.refused, tuple(counter.buckets))


def counted(*milliseconds: float, failed: int = 0, refused: int = 0) -> Counter:
    counter = Counter(failed=failed, refused=refused)
    for one in milliseconds:
        counter.add(one)
    return counter


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_percentiles_are_right_within_a_fifth(share):
    chance = random.Random(1)  # noqa: S311 - the same values each time
    values = sorted(chance.lognormvariate(1, 1) for _ in range(5000))
    found = totals(counted(*values)).percentile_ms(share)
    assert 1.0 <= found / values[int(share * len(values))] <= 1.2


def test_nothing_has_no_percentile_and_the_endless_has_the_last_bound():
    assert totals(Counter()).percentile_ms(0.5) is None
    assert totals(counted(1e12)).percentile_ms(0.5) == round(BOUNDS_MS[-1], 3)


def test_a_window_holds_what_came_since_the_one_before():
    windows, counter = ServingWindows(), counted(1, 2, failed=1)
    (first,) = windows.drafts([totals(counter)], window_s=10)
    assert (first.stream, first.levels) == ("tel", ("serving",))
    assert windows.drafts([totals(counter)], window_s=10) == []  # nobody asked
    counter.add(4)
    counter.refused += 1
    (second,) = windows.drafts([totals(counter, release="")], window_s=10)
    body = TelServing.model_validate({**ENVELOPE, **second.body})
    assert (body.answered, body.failed, body.refused, body.release, body.lat_ms_p50) == (1, 0, 1, None, 4.525)


def test_a_process_that_started_again_counts_from_nothing():
    windows = ServingWindows()
    windows.drafts([totals(counted(1, 2, 3))], window_s=10)
    (draft,) = windows.drafts([totals(counted(1))], window_s=10)
    assert draft.body["answered"] == 1


def test_windows_merge_into_a_coarser_one():
    bodies = [
        ServingWindows().drafts([totals(counted(*values, refused=2))], window_s=10)[0].body for values in ([1.0], [8.0, 8.0, 8.0], [])
    ]
    merged = merge_windows(bodies)
    assert (merged["window_s"], merged["answered"], merged["refused"]) == (30, 4, 6)
    assert merged["lat_ms_p99"] == max(body["lat_ms_p99"] or 0 for body in bodies)
    assert merged["lat_ms_p50"] == pytest.approx((bodies[0]["lat_ms_p50"] + 3 * bodies[1]["lat_ms_p50"]) / 4, abs=1e-3)
