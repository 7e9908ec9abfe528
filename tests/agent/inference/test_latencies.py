"""What the figures of few latencies say, and what they do not."""

import numpy as np
import pytest

from agent.inference.model import Latencies, slower_by_chance


def latencies(values, *, size: int = 4096) -> Latencies:
    kept = Latencies(size)
    for value in values:
        kept.add(float(value))
    return kept


def test_before_the_first_inference_nothing_is_known():
    assert latencies([]).p99() is None
    assert latencies([]).p99_low() is None


def test_one_busy_moment_among_few_inferences_does_not_count_and_two_do():
    assert latencies([1.0] * 14 + [500.0]).p99_low() == 1.0
    assert latencies([1.0] * 13 + [500.0, 500.0]).p99_low() == 500.0


def test_a_window_that_went_round_counts_what_it_holds():
    assert latencies([900.0] * 50 + [2.0] * 100, size=100).p99_low() == 2.0


@pytest.mark.parametrize("count", [1, 2, 15, 100, 1000, 4096])
def test_the_bound_lies_above_the_percentile_in_at_most_one_of_a_hundred_samples(count):
    chance = np.random.default_rng(count)
    percentile, trials = 0.99, 400
    above = sum(latencies(chance.random(count, dtype=np.float32)).p99_low() > percentile for _ in range(trials))
    assert above <= trials * 0.01 + 3 * np.sqrt(trials * 0.01 * 0.99)


@pytest.mark.parametrize(("count", "slower"), [(1, 0), (2, 1), (15, 1), (100, 4), (1000, 18)])
def test_how_many_may_be_slower_is_the_quantile_of_the_binomial_distribution(count, slower):
    assert slower_by_chance(count) == slower
