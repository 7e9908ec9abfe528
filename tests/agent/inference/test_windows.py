"""Beats become telemetry windows, over restarts of the process."""

from hypothesis import given
from hypothesis import strategies as st

from agent.inference.messages import PipelineCount
from agent.inference.windows import Window, merged, percentile
from agent.sources.states import Channel, SourceState


def count(
    grabbed: int, inferred: int, *, stale: int = 0, instance: int = 1, latencies: tuple[float, ...] = (), **channels: Channel
) -> PipelineCount:
    return PipelineCount("front", instance, grabbed, inferred, {"stale": stale}, 0, 0, 0, 1, SourceState.RUNNING, "", latencies, channels)


def test_totals_become_differences():
    window = Window()
    window.add(count(10, 8, stale=2))
    window.begin()
    window.add(count(15, 12, stale=3))
    assert (window.grabbed, window.inferred, window.dropped["stale"]) == (5, 4, 1)


def test_after_a_restart_totals_begin_at_zero():
    window = Window()
    window.add(count(10, 8))
    window.restarted()
    window.add(count(3, 2))
    assert (window.grabbed, window.inferred) == (13, 10)


def test_a_pipeline_that_was_started_anew_begins_at_zero():
    window = Window()
    window.add(count(10, 8))
    window.add(count(12, 9, instance=2))
    assert (window.grabbed, window.inferred) == (22, 17)


def test_percentiles_are_values_that_occurred():
    assert percentile([], 0.5) is None
    assert percentile([1.0], 0.99) == 1.0
    assert percentile([float(value) for value in range(1, 101)], 0.5) == 50.0
    assert percentile([float(value) for value in range(1, 101)], 0.95) == 95.0
    assert percentile([float(value) for value in range(1, 101)], 0.99) == 99.0


def test_latencies_of_all_beats_count():
    window = Window()
    window.add(count(2, 2, latencies=(1.0, 2.0)))
    window.add(count(4, 4, latencies=(3.0, 4.0)))
    assert window.percentile_ms(0.5) == 2.0
    window.begin()
    assert window.percentile_ms(0.5) is None


readings = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def summary(values: list[float]) -> Channel:
    return Channel(len(values), sum(values) / len(values), min(values), max(values))


@given(readings, readings)
def test_summaries_merge_into_the_summary_of_all(one: list[float], other: list[float]):
    both, whole = merged(summary(one), summary(other)), summary([*one, *other])
    assert (both.count, both.low, both.high) == (whole.count, whole.low, whole.high)
    assert abs(both.mean - whole.mean) <= 1e-6 * max(1.0, abs(whole.mean))


def test_an_empty_summary_changes_nothing_but_the_gaps():
    assert merged(Channel(0, 0.0, 0.0, 0.0, 3), Channel(2, 5.0, 4.0, 6.0)) == Channel(2, 5.0, 4.0, 6.0, 3)
