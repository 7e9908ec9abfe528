"""Inferences per second over the latest minute."""

import pytest

from agent.inference.rates import Rate


def test_a_steady_line_has_its_rate_and_a_short_look_has_none():
    rate = Rate()
    assert rate.per_s is None
    for second in range(31):
        rate.add(float(second), 10 * second)
        assert (rate.per_s is None) == (second < 30)
    assert rate.per_s == pytest.approx(10.0)


def test_only_the_latest_minute_counts():
    rate = Rate()
    for second in range(200):
        rate.add(float(second), 10 * min(second, 100))
    assert rate.per_s == 0.0
    for second in range(200, 230):
        rate.add(float(second), 1000 + 20 * (second - 200))
    assert 0.0 < rate.per_s < 20.0


def test_it_remembers_no_more_than_a_minute():
    rate = Rate()
    for beat in range(10_000):
        rate.add(beat * 0.5, beat)
    assert len(rate._totals) <= 122
