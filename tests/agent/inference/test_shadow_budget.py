"""A shadow spends what it may and no more, whatever its inferences cost and whenever frames come."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.shadow_budget import SAVED_S, CpuBudget

shares = st.floats(0.01, 1.0)
costs = st.lists(st.floats(1e-5, 3.0), min_size=1, max_size=60)
gaps = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60)


@given(share=shares, costs=costs, gaps=gaps)
def test_over_any_stretch_of_time_it_spends_its_share_and_one_inference(share: float, costs: list[float], gaps: list[float]):
    budget, spent = CpuBudget(share, now_s=0.0), []
    for now_s, cost_s in zip(accumulate(gaps), costs, strict=False):
        if budget.is_open(now_s):
            budget.pay(cost_s, now_s)
            spent.append((now_s, cost_s))
    for first, (began_s, _) in enumerate(spent):
        total_s = 0.0
        for ended_s, cost_s in spent[first:]:
            total_s += cost_s
            assert total_s <= share * (ended_s - began_s + SAVED_S) + cost_s + 1e-9


@given(share=shares, cost_s=st.floats(0.001, 1.0))
def test_a_wish_that_is_never_idle_gets_its_whole_share(share: float, cost_s: float):
    """Frames always wait: what is spent over a long time is the share of it."""
    budget, now_s, spent_s = CpuBudget(share, now_s=0.0), 0.0, 0.0
    while now_s < 100 * cost_s / share:
        now_s += budget.wait_s(now_s)
        assert budget.is_open(now_s + 1e-9)
        now_s += cost_s
        budget.pay(cost_s, now_s)
        spent_s += cost_s
    assert spent_s == pytest.approx(share * now_s, rel=0.03)


def test_frames_that_come_at_their_own_pace_do_not_cost_it_its_share():
    """5 frames a second, 50 ms each, a fifth of a core: a bucket that keeps nothing would reach 12.5 %."""
    budget, spent_s = CpuBudget(0.2, now_s=0.0), 0.0
    for frame in range(1, 1001):
        now_s = frame * 0.2
        if budget.is_open(now_s):
            budget.pay(0.05, now_s + 0.05)
            spent_s += 0.05
    assert spent_s / (1000 * 0.2) == pytest.approx(0.2, rel=0.02)


def test_an_overdraft_waits_until_it_is_paid_back():
    budget = CpuBudget(0.25, now_s=10.0)
    budget.pay(1.0, 10.0)
    assert not budget.is_open(12.9)
    assert budget.wait_s(13.0) == pytest.approx(1.0)
    assert budget.is_open(14.0)
