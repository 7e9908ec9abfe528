"""The device's own check: silent on what it knows, quick on what is new, honest about how far its reference is, and alone able to do it."""

import base64
import copy
import json
import shutil
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulators.drift_rows import World, make_grid, make_slot

from agent.drift import check
from agent.drift.store import Flag
from protocol.messages import ReferenceLearned
from protocol.sketches.codec import SUBWINDOW_MS
from protocol.sketches.looks import is_alarm, statistic_of
from protocol.sketches.reference import Grade, complete_days, decode_reference
from protocol.sketches.summary import summary

DAY_S = 86_400


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(110, 144)), max_size=4), st.randoms())
def test_days_are_complete_where_a_fit_finds_them_so_in_any_order(days, chance):
    w0s = [day * 144 + place for day, count in days for place in range(count)]
    chance.shuffle(w0s)
    assert check.days_of(w0s) == len(complete_days(np.array(w0s, np.int64)))


def test_fewer_than_fourteen_days_are_collected_and_nothing_is_judged(site):
    site.remember(13)
    site.one_window()
    told = site.told()
    assert (told.grade, told.days, told.score, told.threshold, told.state) == ("collecting", 13, None, None, "ok")
    assert site.events() == []


def test_fourteen_days_make_a_provisional_reference_that_is_told_once(site):
    site.remember(14)
    site.one_window()
    told = site.told()
    assert (told.grade, told.days, told.threshold) == ("provisional", 14, 52_560.0)
    site.one_window()
    site.restart()
    site.one_window()
    (event,) = site.events()
    learned = ReferenceLearned.model_validate(json.loads(event)["data"])
    reference = decode_reference(base64.b64decode(learned.body), site.grid)
    assert (learned.pipeline, learned.grade, learned.reference) == ("front", "provisional", reference.reference_id.hex())
    assert site.told().reference == learned.reference


def test_twenty_eight_days_calibrate_and_a_provisional_one_is_replaced(site):
    site.remember(14)
    site.one_window()
    assert site.told().grade == "provisional"
    site.remember(28)
    site.clock.advance(DAY_S)
    site.one_window()
    assert (site.told().grade, len(site.events())) == ("calibrated", 2)
    first = site.told().reference
    site.clock.advance(3 * DAY_S)
    site.one_window()
    assert site.told().reference == first


def test_the_world_that_it_knows_is_scored_and_raises_nothing(calibrated):
    site = calibrated
    for _ in range(6):
        site.one_window()
    told = site.told()
    assert told.state == "ok"
    assert told.score > 0
    assert 0 < told.p <= 1
    assert told.evidence < told.threshold
    hour = next(one for one in site.sketches() if np.isfinite(one.scores).any())
    assert hour.reference_id.hex() == told.reference


def test_another_world_crosses_at_once_and_its_sub_window_goes_to_the_server_before_its_hour(calibrated):
    site = calibrated
    site.one_window(shift=3.0)
    told = site.told()
    assert told.state == "raised"
    assert told.features[0].share > 0.2
    assert told.evidence >= told.threshold
    evidence = [one for one in site.sketches() if one.nsub == 1]
    assert (told.look, told.stretch) == ("all-10min", 1)
    assert [one.w0 * SUBWINDOW_MS for one in evidence] == [told.raised_at]
    assert evidence[0].scores[0] == np.float32(told.score)
    site.one_window(shift=3.0)
    assert len([one for one in site.sketches() if one.nsub == 1]) == 1  # once
    site.idle(2 * 3600)
    hour = next(one for one in site.sketches() if one.nsub > 1 and one.w0 <= evidence[0].w0 < one.w0 + one.nsub)
    assert hour.counts.rows >= evidence[0].counts.rows


def test_fewer_false_alarms_a_year_ask_for_more_evidence(calibrated):
    site = calibrated
    assert site.told().threshold == 52_560
    site.configure(false_alarms_per_year=0.2)
    assert site.told().threshold == pytest.approx(262_800)


def test_where_the_server_judges_the_device_scores_and_raises_nothing(calibrated):
    site = calibrated
    site.configure(check="server")
    site.one_window(shift=3.0)
    told = site.told()
    assert (told.state, told.score > 100) == ("ok", True)
    assert [one for one in site.sketches() if one.nsub == 1] == []


def test_a_raised_state_survives_the_power_and_shows_who_took_it(calibrated):
    site = calibrated
    site.one_window(shift=3.0)
    raised_at = site.told().raised_at
    site.crash()
    site.world.shift = 0.0
    site.run(100)
    assert (site.told().state, site.told().raised_at) == ("raised", raised_at)
    site.configure(acknowledged=("front",))
    assert site.told().state == "acknowledged"


def usual_rows(reference, count=18):
    """So many sub-windows as they are on average, as `judge` takes them."""
    return np.repeat(reference.scatter.mean[None], count, axis=0)


def test_it_is_over_when_the_statistic_stayed_low_for_a_day(calibrated):
    site = calibrated
    site.one_window(shift=3.0)
    assert site.told().state == "raised"
    state = site.watch._watched[site.subject].state
    reference = site.watch._watched[site.subject].reference
    w0 = state.raised_w0
    for at in range(1, 145):
        assert state.is_raised
        assert check.first_row(state, reference, w0 + at) == max(w0 + at - 17, state.from_w0)
        state = check.judge(state, reference, site.grid, usual_rows(reference), w0 + at, check.Rules()).state
    assert not state.is_raised
    assert check.first_row(state, reference, w0 + 145) == w0 + 145, "what belongs to an alarm that is over enters no look"


@pytest.mark.parametrize("surprise", ["moved", "unknown", "silent"])
def test_the_hold_begins_again_when_the_world_moves_or_nothing_is_known(calibrated, surprise):
    site = calibrated
    site.one_window(shift=3.0)
    state, reference = site.watch._watched[site.subject].state, site.watch._watched[site.subject].reference
    w0, rows = state.raised_w0, usual_rows(reference)
    for at in range(1, 140):
        state = check.judge(state, reference, site.grid, rows, w0 + at, check.Rules()).state
    if surprise == "silent":
        w0 += 300
    else:
        worse = rows + 5.0 if surprise == "moved" else np.full_like(rows, np.nan)
        state = check.judge(state, reference, site.grid, worse, w0 + 140, check.Rules()).state
    for at in range(141, 141 + 143):
        state = check.judge(state, reference, site.grid, rows, w0 + at, check.Rules()).state
        assert state.is_raised
    assert not check.judge(state, reference, site.grid, rows, w0 + 141 + 143, check.Rules()).state.is_raised


def ten_minutes(site, *, shift, is_cut=False):
    """A whole sub-window that follows the one before, which is closed and judged; then perhaps the power is cut."""
    site.to_next_subwindow()
    site.tick()
    if is_cut:
        site.crash()
    site.world.shift = shift
    site.run(550)


def drifted(site, shift, *, most=36):
    """Ten minutes after ten minutes of a world that moved a little, until something is raised; returns how many it took."""
    for count in range(1, most + 1):
        ten_minutes(site, shift=shift)
        if site.told().state == "raised":
            return count
    raise AssertionError(f"nothing was raised in {most} sub-windows")


def test_a_small_shift_that_stays_crosses_in_a_longer_look_and_brings_its_whole_stretch(calibrated):
    site = calibrated
    count = drifted(site, 0.45)
    told = site.told()
    assert count > 1
    assert told.stretch in (6, 18)
    evidence = [one for one in site.sketches() if one.nsub == 1]
    last = told.raised_at // SUBWINDOW_MS
    begun = site.watch._watched[site.subject].state.from_w0  # the reference is hours old
    rows = site.rows.history(site.subject, since=max(begun, last - told.stretch + 1), until=last + 1)
    assert [one.w0 for one in evidence] == [row.w0 for row in rows if row.flags & Flag.TESTABLE]
    assert evidence[-1].w0 == last
    reference = site.watch._watched[site.subject].reference
    assert {one.reference_id for one in evidence} == {reference.reference_id}
    sent = np.array([summary(one.counts, site.grid) for one in evidence])
    assert [one.scores[0] for one in evidence] == reference.scores(sent).tolist()
    stretch = np.full((told.stretch, sent.shape[1]), np.nan)
    stretch[[one.w0 - last + told.stretch - 1 for one in evidence]] = sent
    value = reference.judged(stretch)[-1]
    assert statistic_of(value) == pytest.approx(told.evidence, rel=1e-6), "whoever has the stretch finds what the device found"
    assert is_alarm(value, 1.0)


def test_a_crossing_of_a_longer_look_is_found_though_the_agent_ends_between_any_two_sub_windows(calibrated, tmp_path):
    site = calibrated
    other = type(site)(tmp_path / "cut", template=None, clock=copy.copy(site.clock))
    other.store.close()
    site.watch.stop()
    site.store.close()
    shutil.copy(site.folder / "outbox.db", other.folder / "outbox.db")
    site.open()
    other.open()
    other.world.chance = copy.deepcopy(site.world.chance)
    count = drifted(site, 0.45)
    for index in range(count):
        ten_minutes(other, shift=0.45, is_cut=index > 0)
    mine, its = site.told(), other.told()
    assert mine.stretch > 1
    assert (its.state, its.look, its.stretch, its.raised_at) == ("raised", mine.look, mine.stretch, mine.raised_at)
    assert its.features == mine.features
    assert [one.w0 for one in other.sketches() if one.nsub == 1] == [one.w0 for one in site.sketches() if one.nsub == 1]
    other.store.close()


def test_a_new_reference_judges_from_its_first_sub_window_on(calibrated):
    watched = calibrated.watch._watched[calibrated.subject]
    state = check.with_reference(watched.state, from_w0=1000, origin=check.OWN)
    assert [check.first_row(state, watched.reference, w0) for w0 in (1000, 1005, 1017, 1040)] == [1000, 1000, 1000, 1023]


def test_what_lies_inside_an_alarm_is_left_out_of_every_reference(calibrated):
    site = calibrated
    site.one_window(shift=3.0)
    site.one_window()
    rows = site.rows.history(site.subject, since=site.w0 - 6, until=site.w0)
    assert [bool(row.flags & Flag.IN_ALARM) for row in rows][-3:] == [False, True, True]
    assert {row.w0 for row in rows[-2:]}.isdisjoint(site.rows.clean_places(site.subject, since=0))


def test_a_person_who_takes_the_new_world_as_normal_starts_the_reference_again(calibrated):
    site = calibrated
    site.one_window(shift=3.0)
    site.configure(rebaselined={"front": int(site.clock.now().timestamp() * 1000)})
    assert (site.told().grade, site.told().state, site.told().reference) == ("collecting", "ok", "")
    site.one_window(shift=3.0)
    assert (site.told().days, site.told().grade) == (0, "collecting")
    site.restart()
    site.run(100)
    assert site.told().grade == "collecting"


def test_another_step_is_another_reference(calibrated):
    site = calibrated
    assert site.watch.steps() == {"front": 0.0}
    site.configure(step_s=4)
    assert site.told().grade == "calibrated"  # its step was never told apart from the profile's
    site.watch._watched[site.subject].state = replace(site.watch._watched[site.subject].state, step_s=8.0)
    site.configure(step_s=2)
    assert (site.told().grade, site.watch.steps()) == ("collecting", {"front": 2.0})


def test_the_step_that_this_device_can_afford_is_kept(site):
    site.clock.advance(1)
    site.watch.take(site.world.row(site.clock.monotonic(), fitting_step_s=1))
    assert site.watch.steps() == {"front": 8.0}  # never finer than the profile's
    site.restart()
    site.run(50)
    assert site.watch.steps() == {"front": 8.0}


def test_a_new_release_keeps_the_reference_of_the_inputs_it_shares(calibrated):
    site = calibrated
    grid = make_grid(seed=11)
    site.world = World(grid, make_slot(site.folder / "next", grid), model="b2" * 16)
    site.one_window()
    told = site.told()
    assert (told.model, told.grade, told.threshold) == ("b2" * 16, "calibrated", 52_560)
    watched = site.watch._watched[site.subject]
    assert watched.state.origin == check.CARRIED
    assert len(watched.reference.coordinates) == 4  # place and spread of two inputs; the output is collected anew
    site.one_window(shift=3.0)
    assert site.told().state == "raised"


def test_a_release_that_shares_no_input_starts_from_nothing(calibrated):
    site = calibrated
    grid = replace(make_grid(), step_s=4)
    site.world = World(grid, make_slot(site.folder / "next", grid), model="b2" * 16)
    site.one_window()
    assert (site.told().grade, site.told().days) == ("collecting", 0)


def test_a_rolled_back_release_gets_its_own_reference_back(calibrated):
    site = calibrated
    before, world, grid = site.told(), site.world, make_grid(seed=11)
    site.world = World(grid, make_slot(site.folder / "next", grid), model="b2" * 16)
    site.one_window()
    site.world = world
    site.one_window()
    assert (site.told().reference, site.told().grade) == (before.reference, before.grade)


def test_a_reference_from_elsewhere_serves_until_there_is_an_own_one(calibrated, tmp_path):
    site = calibrated
    reference = site.watch._watched[site.subject].reference
    text = base64.b64encode(reference.encoded).decode()
    other = type(site)(tmp_path / "other")
    of_hours = base64.b64encode(replace(reference, per_day=24).encoded).decode()
    other.configure(references={"front": of_hours})
    other.one_window()
    assert other.told().grade == "collecting"  # it is for rows of hours
    other.configure(references={"front": text})
    other.one_window()
    assert (other.told().grade, other.told().reference) == ("calibrated", reference.reference_id.hex())
    assert other.events() == []  # it came from there
    other.world.model = "b2" * 16
    other.one_window()
    assert other.told().model == "b2" * 16
    other.configure(references={"front": "no base64 !"})
    other.world.model = site.world.model
    other.remember(14)
    other.clock.advance(DAY_S)
    other.one_window()
    assert other.watch._watched[other.subject].state.origin == check.OWN
    other.store.close()


def test_a_damaged_memory_of_a_check_is_begun_anew_and_the_rest_goes_on(calibrated):
    site = calibrated
    with site.store.writing() as writing:
        writing.execute("UPDATE drift_checks SET state = '{'")
        writing.execute("UPDATE drift_states SET state = '{'")
    site.crash()
    site.run(100)
    assert site.told().grade == "collecting"


def test_a_check_that_fails_is_a_condition_and_counting_goes_on(calibrated, monkeypatch):
    site = calibrated

    def fail(*_args, **_options):
        raise ValueError("a number is not one")

    monkeypatch.setattr("agent.drift.watching.summary", fail)
    site.one_window()
    assert "detector_failed" in site.codes()
    monkeypatch.undo()
    site.one_window()
    site.one_window()
    assert "detector_failed" not in site.codes()


def test_a_reference_without_a_covariance_raises_nothing_and_says_so(calibrated):
    site = calibrated
    watched = site.watch._watched[site.subject]
    first, *others = watched.reference.looks
    flat = replace(first.modes, clouds=tuple(replace(one, is_degenerate=True) for one in first.modes.clouds))
    watched.reference = replace(watched.reference, looks=(replace(first, modes=flat), *others))
    site.one_window(shift=3.0)
    assert site.told().state == "ok"
    assert "reference_degenerate" in site.codes()


def test_a_state_survives_its_way_through_the_store():
    state = check.CheckState(
        8.0, 5, 12, 600.0, check.OWN, 4, 4.5, 0.25, 7, 99.5, "all-1h", 6, 6, 8, 99.5, (("a", 0.5),), is_told=True, carries=("m", "g")
    )
    assert check.from_json(check.to_json(state)) == state


def test_a_late_sub_window_changes_nothing(calibrated):
    site = calibrated
    watched = site.watch._watched[site.subject]
    assert watched.grade is Grade.CALIBRATED
    rows = usual_rows(watched.reference)
    once = check.judge(watched.state, watched.reference, site.grid, rows, site.w0 + 300, check.Rules())
    again = check.judge(once.state, watched.reference, site.grid, rows, site.w0 + 300, check.Rules())
    late = check.judge(once.state, watched.reference, site.grid, rows, site.w0 + 300 - check.DAY, check.Rules())
    assert once.score is not None
    assert (again.score, again.state, late.state) == (None, once.state, once.state)


def move_clock(site, days):
    """The wall clock is put elsewhere; the monotonic one goes on."""
    site.clock._start += timedelta(days=days)
    site.clock._now += timedelta(days=days)
    site.tick()


def test_a_clock_that_is_weeks_ahead_for_an_hour_costs_neither_the_past_nor_the_check(calibrated):
    site = calibrated
    known = set(site.rows.clean_places(site.subject, since=0))
    assert len(known) > 27 * check.DAY
    move_clock(site, 40)
    for _ in range(5):
        site.one_window()
    move_clock(site, -40)
    site.one_window()
    now_w0 = site.w0 - 1
    assert known <= set(site.rows.clean_places(site.subject, since=0))
    site.one_window(shift=3.0)
    told = site.told()
    assert (told.state, told.raised_at >= now_w0 * SUBWINDOW_MS, told.raised_at <= site.w0 * SUBWINDOW_MS) == ("raised", True, True)


def test_an_agent_that_starts_with_a_clock_weeks_ahead_forgets_two_days_at_most_of_each(calibrated):
    site = calibrated
    known = set(site.rows.clean_places(site.subject, since=0))
    for _ in range(2):
        site.watch.stop()
        site.store.close()
        site.clock._start += timedelta(days=40)
        site.clock._now += timedelta(days=40)
        site.open()
        site.one_window()
        site.one_window()
    assert len(known - set(site.rows.clean_places(site.subject, since=0))) <= 4 * check.DAY


def test_what_is_older_than_is_needed_is_forgotten_day_by_day(calibrated):
    site = calibrated
    oldest = site.rows.oldest_window()
    for day in range(1, 4):
        site.clock.advance(days=1)
        site.one_window()
        assert oldest < site.rows.oldest_window() <= oldest + 2 * check.DAY * day
    site.clock.advance(days=3)
    site.one_window()
    assert site.rows.oldest_window() >= site.w0 - 31 * check.DAY


def test_an_alarm_from_ahead_of_time_stays_one_and_ends_in_its_time(calibrated):
    watched = calibrated.watch._watched[calibrated.subject]
    reference, w0 = watched.reference, calibrated.w0
    rows = usual_rows(reference)
    for seen in (rows, np.full_like(rows, np.nan)):  # ahead nothing but sub-windows that could not be judged
        ahead = check.judge(watched.state, reference, calibrated.grid, seen, w0 + 6000, check.Rules()).state
        state = replace(ahead, raised_w0=w0 + 6000, low_w0=w0 + 6000, from_w0=w0 + 5000)
        assert check.first_row(state, reference, w0 + 20) == w0 + 3, "what is ahead keeps nothing out"
        back = check.judge(state, reference, calibrated.grid, rows, w0 + 1, check.Rules())
        assert (back.score is not None, back.state.judged_w0, back.state.raised_w0) == (True, w0 + 1, w0 + 1)
        state = back.state
        for at in range(2, 2 * 144 + 2):
            state = check.judge(state, reference, calibrated.grid, rows, w0 + at, check.Rules()).state
        assert not state.is_raised
