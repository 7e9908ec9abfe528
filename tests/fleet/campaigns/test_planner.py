"""The planner: a table of cases, and the property that no crash, order of reports or tick makes it exceed its phase or threshold."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.campaigns.model import (
    ARROWS,
    BAD,
    DECIDED,
    OVER,
    Campaign,
    CampaignState,
    Phase,
    UpdateState,
    check_phases,
)
from fleet.campaigns.planner import Counts, Rank, Step, decide, spread
from protocol.errors import ConflictError, InvalidError
from protocol.ids import DeviceId, GroupName, LineName, ReleaseVersion, TenantId

NOW = datetime(2026, 11, 1, tzinfo=UTC)
W, A, U, F, T = UpdateState.WAITING, UpdateState.ASSIGNED, UpdateState.UPDATED, UpdateState.FAILED, UpdateState.TIMED_OUT


def campaign(*phases: Phase, phase: int = 0, state: CampaignState = CampaignState.RUNNING) -> Campaign:
    return Campaign(
        TenantId("t0"),
        "ca-1",
        LineName("l"),
        ReleaseVersion("1"),
        GroupName("g"),
        state,
        phases or (Phase(),),
        phase,
        NOW,
        1,
        60,
        NOW,
        "x",
        1,
    )


RANK, BELOW = Rank(3, 3), Rank(3, 4)
TWO = (Phase(until_percent=10, failure_threshold=0.0, soak_s=100), Phase())


@pytest.mark.parametrize(
    ("made", "counts", "step"),
    [
        (campaign(), {0: {W: 3}}, Step.ASSIGN),
        (campaign(), {0: {A: 3}}, Step.HOLD),
        (campaign(), {0: {A: 1, U: 2}}, Step.HOLD),
        (campaign(), {0: {U: 3}}, Step.SUCCEED),
        (campaign(), {0: {U: 10, F: 1}}, Step.SUCCEED),
        (campaign(), {0: {U: 8, F: 1}}, Step.FAIL),
        (campaign(), {0: {U: 1, T: 1}}, Step.FAIL),
        (campaign(Phase(min_devices=5)), {0: {F: 4, A: 5}}, Step.HOLD),
        (campaign(Phase(min_devices=5)), {0: {F: 5, A: 5}}, Step.FAIL),
        (campaign(), {}, Step.SUCCEED),
        (campaign(*TWO), {0: {U: 1}, 1: {W: 9}}, Step.HOLD),
        (campaign(*TWO), {0: {F: 1}, 1: {W: 9}}, Step.FAIL),
        (campaign(*TWO, phase=1), {0: {U: 1}, 1: {W: 9}}, Step.ASSIGN),
        (campaign(*TWO, phase=1), {0: {F: 1}, 1: {A: 9}}, Step.FAIL),
        (campaign(state=CampaignState.PAUSED), {0: {W: 3}}, Step.HOLD),
        (campaign(state=CampaignState.PAUSED), {0: {W: 3, F: 1}}, Step.FAIL),
        (campaign(state=CampaignState.ABORTED), {0: {W: 3}}, Step.HOLD),
    ],
)
def test_the_next_step(made, counts, step):
    assert decide(made, Counts(counts), NOW, RANK).step is step


@pytest.mark.parametrize(
    ("made", "counts", "step"),
    [
        (campaign(), {0: {W: 3}}, Step.PAUSE),
        (campaign(), {0: {A: 1, U: 2}}, Step.PAUSE),
        (campaign(*TWO), {0: {U: 1}, 1: {W: 9}}, Step.PAUSE),
        (campaign(), {0: {U: 3}}, Step.SUCCEED),
        (campaign(), {0: {U: 1, F: 1, W: 3}}, Step.FAIL),
        (campaign(state=CampaignState.PAUSED), {0: {W: 3}}, Step.HOLD),
        (campaign(state=CampaignState.ABORTED), {0: {W: 3}}, Step.HOLD),
    ],
)
def test_a_campaign_whose_release_fell_below_the_floor_pauses_while_any_device_has_no_verdict(made, counts, step):
    decision = decide(made, Counts(counts), NOW, BELOW)
    assert decision.step is step
    assert ("has counter 3; the floor of line l was raised to 4" in decision.reason) == (step is Step.PAUSE)


def test_the_next_phase_opens_only_after_its_soak():
    counts = Counts({0: {U: 1}, 1: {W: 9}})
    assert decide(campaign(*TWO), counts, NOW + timedelta(seconds=99), RANK).step is Step.HOLD
    assert decide(campaign(*TWO), counts, NOW + timedelta(seconds=100), RANK).step is Step.ADVANCE


@given(
    thresholds=st.lists(st.sampled_from([0.0, 0.1, 0.5]), min_size=1, max_size=3),
    devices=st.integers(0, 40),
    outcomes=st.lists(st.sampled_from([U, F, T]), min_size=40, max_size=40),
    batch=st.integers(1, 7),
)
def test_no_order_of_reports_makes_a_campaign_exceed_its_phase_or_go_on_past_its_threshold(thresholds, devices, outcomes, batch):
    percents = [100 * (i + 1) // len(thresholds) for i in range(len(thresholds))]
    made = campaign(*(Phase(until_percent=p, failure_threshold=t) for p, t in zip(percents, thresholds, strict=True)))
    place = spread("ca-1", [DeviceId(f"d{i}") for i in range(devices)], percents)
    state = dict.fromkeys(place, W)
    for _ in range(500):
        counts = Counts({p: Counter(state[d] for d in place if place[d] == p) for p in range(len(percents))})
        decision = decide(made, counts, NOW, RANK)
        assert all(state[d] is W for d in place if place[d] > made.phase)
        match decision.step:
            case Step.ASSIGN:
                for device in [d for d in place if state[d] is W and place[d] <= made.phase][:batch]:
                    state[device] = A
            case Step.HOLD:
                for device in [d for d in sorted(state) if state[d] is A][:batch]:
                    state[device] = outcomes[int(device[1:])]
            case Step.ADVANCE:
                made = made.advanced(now=NOW)
            case Step.FAIL:
                return
            case Step.SUCCEED:
                assert all(value in DECIDED for value in state.values())
                for number, phase in enumerate(made.phases):
                    judged = [state[d] for d in place if place[d] == number]
                    assert sum(s in BAD for s in judged) <= phase.failure_threshold * len(judged)
                return
    pytest.fail("the campaign never came to an end")


@given(devices=st.sets(st.integers(0, 10_000), max_size=200), percents=st.sampled_from([[100], [1, 100], [5, 25, 50, 100]]))
def test_devices_are_spread_over_the_phases_by_a_hash_and_each_phase_has_its_size(devices, percents):
    names = [DeviceId(f"d{number}") for number in devices]
    place = spread("ca-1", names, percents)
    assert place == spread("ca-1", list(reversed(names)), percents)
    assert place.keys() == set(names)
    for phase, percent in enumerate(percents):
        assert sum(p <= phase for p in place.values()) == -(-len(names) * percent // 100)


def test_only_the_arrows_in_the_table_exist():
    for state in CampaignState:
        for other in CampaignState:
            if other in ARROWS[state]:
                assert campaign(state=state).moved(other, now=NOW).state is other
            else:
                with pytest.raises(ConflictError):
                    campaign(state=state).moved(other, now=NOW)
    assert {CampaignState.SUCCEEDED, CampaignState.FAILED, CampaignState.ABORTED} == OVER
    with pytest.raises(ConflictError):
        campaign().advanced(now=NOW)


@pytest.mark.parametrize(
    "phases",
    [
        (),
        (Phase(50),),
        (Phase(50), Phase(50), Phase(100)),
        (Phase(101),),
        (Phase(failure_threshold=1.1),),
        (Phase(min_devices=0),),
        (Phase(soak_s=-1),),
    ],
)
def test_phases_that_make_no_sense_are_refused(phases):
    with pytest.raises(InvalidError):
        check_phases(phases)
