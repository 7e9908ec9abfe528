"""The promise of false alarms per year, and a state that is what was seen, not the order it came in."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.sketches.evidence import (
    HISTORY,
    BlockState,
    Detector,
    Evidence,
    Plan,
    advanced,
    blocks_per_year,
    decode_evidence,
    default_plan,
    e_values,
    encode_evidence,
    fleet_evidence,
    fresh,
    fresh_evidence,
    is_late,
    onset_block,
    rebuilt,
    replaced,
    restarted,
    step,
    steps,
    threshold,
    trajectory,
)
from protocol.sketches.tail import P_MAX, P_MIN

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sketches" / "evidence.1.cbor"
FEW = settings(max_examples=40)
M = 4
#: Exact in float32.
e_number = st.integers(0, 64).map(lambda number: number / 8)
seen = st.dictionaries(st.integers(0, 40 * M), e_number, max_size=60)


def by_hand(values: dict[int, float], *, since: int = 0) -> tuple[Fraction, list[Fraction | None]]:
    """The running value and the mean of each block, in fractions, straight from DRIFT 5.4."""
    if not values:
        return Fraction(0), []
    first, last = min(values) // M, max(values) // M
    r, means = Fraction(0), []
    for block in range(first, last):
        mine = {at: Fraction(values[at]) for at in range(block * M, (block + 1) * M) if at in values}
        means.append((sum(mine.values()) + M - len(mine)) / M if mine else None)
        counted = {at: e for at, e in mine.items() if at >= since}
        if counted:
            r = (1 + r) * (sum(counted.values()) + M - len(counted)) / M
    running = sum(Fraction(values[at]) for at in range(last * M, (last + 1) * M) if at in values and at >= since)
    return max(r, (1 + r) * running / M), means


def whole(values: dict[int, float], *, since: int = 0) -> BlockState:
    """The state of these, given at once."""
    w0s = np.array(sorted(values), dtype=np.int64)
    return steps(replace(fresh(M), since=since), w0s, np.array([values[w0] for w0 in sorted(values)]))


# --- e-values ---


@pytest.mark.parametrize(("p", "wanted"), [(0.05, 1.8), (0.001, 20.8), (1e-6, 5239)])
def test_e_values_are_those_of_the_design(p: float, wanted: float):
    assert e_values(p) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("p", [1 - 1e-9, 1 - 1e-6, 0.999, 0.96, 0.95, 0.949, 0.9, 0.5, 0.1, 1e-3, 1e-6, 1e-12])
def test_an_e_value_is_the_integral_it_stands_for(p: float):
    """int_0^1 eps p^(eps - 1) d eps by Gauss-Legendre, in pieces where it is steep."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for start in np.arange(0, 1, 1 / 16):
        eps = start + (nodes + 1) / 32
        total += float((weights / 32 * eps * p ** (eps - 1)).sum())
    assert e_values(p) == pytest.approx(total, rel=1e-12)


def test_e_values_fall_as_p_rises_and_stay_finite():
    p = np.concatenate([[0.0, 1e-300], np.logspace(-13, -1, 500), np.linspace(0.1, 1, 5000), [1.0]])
    e = e_values(p)
    assert (np.diff(e) <= 0).all()
    assert e[0] == e_values(P_MIN)
    assert e[-1] == e_values(P_MAX) == pytest.approx(0.5, rel=1e-8)
    assert np.isnan(e_values(np.nan))


def test_the_mean_of_e_is_at_most_1_for_uniform_p():
    # midpoints of equal parts, and exactly what lies in the outermost: the mean over uniform p
    parts = 200_000
    p = (np.arange(parts) + 0.5) / parts
    assert e_values(p).mean() <= 1
    assert e_values(p).mean() > 0.9


# --- the state ---


@FEW
@given(seen)
def test_the_running_value_is_that_of_the_design(values: dict[int, float]):
    state = whole(values)
    wanted, means = by_hand(values)
    assert state.value == pytest.approx(float(wanted), rel=1e-9)
    assert np.array_equal(state.past, [np.nan if mean is None else float(mean) for mean in means[-HISTORY:]], equal_nan=True)


@FEW
@given(seen, st.randoms(use_true_random=False))
def test_windows_one_by_one_and_late_ones_of_the_open_block_give_the_same(values: dict[int, float], random):
    by_block: dict[int, list[int]] = {}
    for w0 in sorted(values):
        by_block.setdefault(w0 // M, []).append(w0)
    state = fresh(M)
    for inside in by_block.values():
        random.shuffle(inside)
        for w0 in inside:
            state = step(state, w0, values[w0] + 1)  # a first opinion, which is replaced
            state = step(state, w0, values[w0])
    assert state == whole(values)


@FEW
@given(st.dictionaries(st.integers(0, 12 * M), e_number, min_size=2, max_size=40), st.data())
def test_a_late_window_leads_to_what_it_would_have_been_in_time(values: dict[int, float], data: st.DataObject):
    last = max(values) // M
    late = [w0 for w0 in values if w0 // M < last]
    if not late:
        return
    w0 = data.draw(st.sampled_from(late))
    since = data.draw(st.sampled_from([0, min(values), w0, max(values)]))
    state = whole({at: e for at, e in values.items() if at != w0 or at // M == min(values) // M}, since=since)
    block = w0 // M
    if block < state.closed_blocks.start:
        return
    es = np.array([values.get(at, np.nan) for at in range(block * M, (block + 1) * M)])
    again = replaced(state, block, es)
    assert again == whole(values, since=since)
    assert again.value == pytest.approx(float(by_hand(values, since=since)[0]), rel=1e-9)


def test_a_device_that_was_away_for_years_raises_nothing_when_it_returns():
    state = step(fresh(144), 10_000, 1.0)
    later = step(state, 10_000 + 144 * 365 * 10, 1.0)
    assert later.value == pytest.approx(1.0)  # one block was seen


def test_what_is_not_testable_counts_1_at_the_end_of_its_block_and_0_before():
    state = steps(fresh(M), np.arange(3), np.array([2.0, np.nan, 2.0]))
    assert state.value == 1
    assert advanced(state, M).r == (2 + 1 + 2 + 1) / 4
    assert advanced(state, M - 1) == state


def test_a_replaced_window_that_is_not_testable_after_all_takes_its_e_back():
    state = step(step(fresh(M), 1, 8.0), 1, math.nan)
    assert state.value == 0


def test_a_value_does_not_fall_when_a_block_begins():
    state = steps(fresh(M), np.arange(M), np.full(M, 6.0))
    assert advanced(state, M).value == state.value == 6


def test_a_late_window_is_refused_by_a_step():
    state = step(fresh(M), 9, 1.0)
    assert is_late(state, 7)
    assert not is_late(state, 8)
    for wrong in (lambda: step(state, 7, 1.0), lambda: steps(state, np.array([11, 10]), np.ones(2)), lambda: restarted(state, 7)):
        with pytest.raises(ValueError, match=r"before the open block|out of order"):
            wrong()
    with pytest.raises(ValueError, match="not closed"):
        replaced(state, 2, np.ones(M))


def test_what_is_forgotten_stays_forgotten():
    state = steps(fresh(M), np.arange(M * (HISTORY + 5)), np.full(M * (HISTORY + 5), 1.5))
    assert replaced(state, 2, np.full(M, 99.0)) == state
    assert len(state.past) == HISTORY
    assert state.closed_blocks == range(4, HISTORY + 4)


def test_no_windows_change_nothing():
    state = step(fresh(M), 9, 1.0)
    assert steps(state, np.array([], dtype=np.int64), np.array([])) is state


def test_r_ends_somewhere():
    state = steps(fresh(1), np.arange(60), np.full(60, 1e9))
    assert state.value <= 1e30
    assert decode_evidence(encode_evidence(Evidence((state,))), default_plan(1)) == Evidence((state,))


# --- restart ---


def test_the_windows_of_an_alarm_do_not_raise_the_next_one():
    state = steps(fresh(M), np.arange(6), np.full(6, 50.0))
    assert state.value > 1000
    again = restarted(state, 6)
    assert again.value == 0
    assert step(again, 6, 2.0).value == 0.5
    closed = advanced(step(again, 6, 2.0), 2 * M)
    assert closed.r == (1 + 1 + 2 + 1) / 4  # what came before the restart counts 1
    assert closed.past.tolist() == [50, (50 + 50 + 2 + 1) / 4], "who changed is still told by all"


def test_a_restart_in_the_next_block_begins_with_it():
    again = restarted(steps(fresh(M), np.arange(4), np.full(4, 50.0)), 4)
    assert (again.block, again.r, again.value) == (1, 0, 0)
    assert steps(again, np.arange(4, 9), np.ones(5)).r == 1


def test_a_late_window_from_before_a_restart_changes_nothing_of_r():
    state = steps(restarted(step(fresh(M), 0, 50.0), 4), np.arange(4, 13), np.ones(9))
    assert replaced(state, 0, np.full(M, 99.0)).r == state.r == 2


@FEW
@given(seen, st.integers(0, 40 * M), st.randoms(use_true_random=False))
def test_evidence_is_rebuilt_from_what_is_stored_in_any_order(values: dict[int, float], since: int, random):
    order = list(values)
    random.shuffle(order)
    w0s = np.array([w0 for w0 in order for _ in (1, 2)], dtype=np.int64)
    es = np.array([e for w0 in order for e in (values[w0] + 3, values[w0])])
    made = rebuilt(Plan((Detector("a", M),)), w0s, es, since=since)
    assert made == Evidence((whole(values, since=since),))
    assert made.states[0].value == pytest.approx(float(by_hand(values, since=since)[0]), rel=1e-9)


# --- for simulations ---


def test_a_trajectory_is_what_steps_give_one_by_one():
    e = e_values(np.random.default_rng(1).random((6, M)))
    e[2] = np.nan
    e[4, 1:3] = np.nan
    state, one_by_one = fresh(M), []
    for w0, value in enumerate(e.ravel()):
        state = step(state, w0, float(value))
        one_by_one.append(state.value)
    assert trajectory(e).ravel() == pytest.approx(one_by_one, rel=1e-6)


@pytest.mark.parametrize("is_shared", [False, True], ids=["independent windows", "one chance per block"])
def test_false_alarms_come_no_more_often_than_asked(is_shared):
    """Uniform p; inside a block either independent or all the same, the worst of dependence. 5 a year over 200 device-years."""
    generator = np.random.default_rng(2)
    wanted = threshold(5.0, blocks_per_year(144))
    alarms, r = 0, np.zeros(200)
    for _ in range(365):
        p = generator.random((200, 1 if is_shared else 144))
        means = e_values(p).mean(axis=1)
        r = (1 + r) * means
        alarms += int((r >= wanted).sum())
        r[r >= wanted] = 0
    # 1,000 are allowed; the bound of five standard errors is for chance
    assert alarms <= 1000 + 5 * math.sqrt(1000)
    assert alarms > 50, "the budget is used"


# --- many devices, onset ---


def test_evidence_of_a_device_is_an_e_value():
    generator = np.random.default_rng(3)
    values = []
    for _ in range(400):
        state = fresh(M)
        e = e_values(generator.random(M * 8))
        values.append(fleet_evidence(advanced(steps(state, np.arange(M * 8), e), M * 8), blocks=6))
    assert np.mean(values) <= 1 + 3 * np.std(values) / math.sqrt(len(values))
    assert fleet_evidence(fresh(M)) == 1


def test_evidence_counts_a_change_that_began_before_what_is_remembered():
    state = advanced(steps(fresh(M), np.arange(2 * M), np.full(2 * M, 2.0)), 2 * M)
    assert fleet_evidence(state, blocks=4) == (2 + 4 + 4 + 4) / 4
    assert fleet_evidence(state, blocks=1) == 2


def test_the_onset_is_where_evidence_began_to_grow():
    e = np.concatenate([np.full(5 * M, 0.8), np.full(3 * M, 3.0), np.full(2, 9.0)])
    state = steps(fresh(M), 100 * M + np.arange(len(e)), e)
    assert onset_block(state) == 105
    assert onset_block(restarted(state, 108 * M + 2)) == 108
    assert onset_block(step(fresh(M), 7, 2.0)) == 1


# --- several detectors, one budget ---


def test_thresholds_share_the_budget():
    assert threshold(1.0, blocks_per_year(144)) == 365
    assert threshold(1.0, blocks_per_year(36)) == 1460
    assert threshold(0.5, blocks_per_year(144)) == 730
    plan = Plan((Detector("short", 36, 0.5), Detector("long", 144, 0.5)))
    assert plan.thresholds(1.0) == (2920, 730)
    assert default_plan(144).thresholds(2.0) == (182.5,)
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="more than 0"):
            threshold(rate, 365)


def test_detectors_that_spend_more_than_the_budget_are_refused():
    half = Detector("a", 36, 0.5)
    for detectors in ((), (half, half), (half, Detector("b", 36, 0.6)), (half, Detector("b", 36, 0.0))):
        with pytest.raises(ValueError, match=r"detectors"):
            Plan(detectors)


def test_detectors_alarm_together():
    plan = Plan((Detector("short", 2, 0.5), Detector("long", 8, 0.5)))
    rate = 550.0
    evidence = fresh_evidence(plan)
    assert evidence.urgency(plan, rate) == 0
    for w0 in range(6):
        evidence = evidence.step(w0, 4.0)
    parts = [state.value / wanted for state, wanted in zip(evidence.states, plan.thresholds(rate), strict=True)]
    assert max(parts) < 1 <= sum(parts), "none would have alone"
    assert evidence.urgency(plan, rate) == pytest.approx(sum(parts))
    assert evidence.is_crossed(plan, rate)
    assert evidence.leading(plan, rate).name == "short"
    assert not evidence.restarted(6).is_crossed(plan, rate)
    assert evidence.is_late(3)
    assert not evidence.is_late(4)


def test_detectors_together_raise_no_more_than_asked():
    generator = np.random.default_rng(4)
    plan = Plan((Detector("short", 2, 0.5), Detector("long", 6, 0.5)))
    rate = 500.0
    alarms = windows = 0
    for _ in range(5):
        evidence = fresh_evidence(plan)
        for w0, e in enumerate(e_values(generator.random(700))):
            evidence = evidence.step(w0, float(e))
            windows += 1
            if evidence.is_crossed(plan, rate):
                alarms += 1
                evidence = evidence.restarted(w0 + 1)
    allowed = rate * windows / (365 * 144)
    assert alarms <= allowed + 4 * math.sqrt(allowed)


# --- bytes ---


def golden() -> Evidence:
    """What the golden file holds."""
    first = steps(fresh(4), np.array([9, 10, 12, 21, 23]), np.array([1.5, 0.5, 2.0, 0.75, 4.0]))
    return Evidence((restarted(first, 22), steps(fresh(2), np.arange(5), np.ones(5))))


PLAN = Plan((Detector("a", 4, 0.5), Detector("b", 2, 0.5)))


def test_the_bytes_of_format_1_stay_what_they_are():
    assert encode_evidence(golden()) == GOLDEN.read_bytes()
    assert decode_evidence(GOLDEN.read_bytes(), PLAN) == golden()


@FEW
@given(seen, st.integers(0, 40 * M))
def test_a_state_comes_back_from_its_bytes_and_goes_on(values: dict[int, float], since: int):
    evidence = Evidence((whole(values, since=since),))
    again = decode_evidence(encode_evidence(evidence), default_plan(M))
    assert again == evidence
    assert again.step(50 * M, 2.0) == evidence.step(50 * M, 2.0)


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ((0,), 2, "unknown-version"),
        ((1,), {}, "unknown-version"),
        ((1, 0), {}, "bad-state"),
        ((1, 0), [4, 5], "bad-state"),
        ((1, 0, 0), 3, "bad-state"),
        ((1, 0, 0), -4, "bad-state"),
        ((1, 0, 0), True, "bad-state"),
        ((1, 0, 1), -2, "bad-state"),
        ((1, 0, 2), 2**32, "bad-state"),
        ((1, 0, 3), bytes(12), "bad-state"),
        ((1, 0, 3), np.array([-1, 0, 0, 0], "<f4").tobytes(), "bad-state"),
        ((1, 0, 3), np.array([np.inf, 0, 0, 0], "<f4").tobytes(), "bad-state"),
        ((1, 0, 4), bytes(7), "bad-state"),
        ((1, 0, 4), bytes(8 * (HISTORY + 1)), "bad-state"),
        ((1, 0, 4), np.array([-1.0]).tobytes(), "bad-state"),
        ((1, 0, 4), np.array([np.inf]).tobytes(), "bad-state"),
        ((1, 0, 5), bytes(16), "bad-state"),
        ((1, 0, 5), np.array([np.nan, 0, 0]).tobytes(), "bad-state"),
        ((1, 0, 5), np.array([0, -1.0, 0]).tobytes(), "bad-state"),
        ((1, 0, 5), np.array([0, 0, -1.0]).tobytes(), "bad-state"),
        ((1, 0, 5), np.array([1e31, 0, 0]).tobytes(), "bad-state"),
    ],
)
def test_bytes_of_something_else_are_refused(path: tuple[int, ...], value: Any, code: str):
    document = cbor2.loads(GOLDEN.read_bytes())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(InvalidError) as refused:
        decode_evidence(cbor2.dumps(document, canonical=True), PLAN)
    assert refused.value.code == code


def test_states_of_other_detectors_are_refused():
    for plan in (default_plan(4), Plan((Detector("a", 2, 0.5), Detector("b", 4, 0.5)))):
        with pytest.raises(InvalidError) as refused:
            decode_evidence(GOLDEN.read_bytes(), plan)
        assert refused.value.code == "bad-state"


def test_the_largest_state_stays_within_its_bytes():
    plan = Plan(tuple(Detector(str(index), 1008, 0.125) for index in range(8)))
    evidence = fresh_evidence(plan)
    for w0 in range(0, 1008 * (HISTORY + 2), 504):
        evidence = evidence.step(w0, 1.0)
    assert decode_evidence(encode_evidence(evidence), plan) == evidence


def test_states_are_compared_by_what_they_hold():
    assert fresh(4) == fresh(4)
    assert fresh(4) != fresh(2)
    assert fresh(4) != "state"


def test_a_signalling_nan_is_no_warning():
    document = cbor2.loads(GOLDEN.read_bytes())
    document[1][0][3] = bytes.fromhex("0100807f") * 4
    document[1][0][4] = bytes.fromhex("010000000000f07f") * 2
    found = decode_evidence(cbor2.dumps(document, canonical=True), PLAN)
    assert np.isnan(advanced(found.states[0], 100 * M).past).all()
