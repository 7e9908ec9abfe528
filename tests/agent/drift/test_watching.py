"""Rows become sub-windows and hours, whatever the clock, the power and the camera do; what cannot be counted is counted as lost."""

import copy
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from simulators.drift_rows import make_grid, make_slot

from agent.drift.sending import minute_of
from agent.drift.store import Flag
from protocol.messages import Ack
from protocol.sketches.codec import CONDITION_CODES, Source, decode
from protocol.sketches.counts import Sketcher


def test_rows_become_the_counts_that_a_sketcher_makes_of_them(site):
    taken = []
    for _ in range(14):
        site.clock.advance(40)
        row = site.world.row(site.clock.monotonic())
        taken.append(row)
        site.watch.take(row)
    first = site.w0
    site.to_next_subwindow()
    site.tick()
    kept = site.rows.find_window(site.subject, first)
    expected = Sketcher(site.grid)
    from agent.drift.rows import values_of

    for row in taken:
        expected.add(values_of(row, site.grid))
        expected.count_class(site.grid.slot(row.labels[0]))
    counts = decode(kept.body, site.grid).counts
    assert (counts.rows, kept.rows, kept.excluded) == (14, 14, 0)
    assert np.array_equal(counts.cells, expected.take().cells)
    assert kept.flags == Flag.TESTABLE
    assert counts.classes.sum() == 14


def test_an_hour_goes_out_once_at_the_devices_minute_and_leaves_only_when_the_server_has_it(site):
    site.run(3600)
    assert site.sketches() == []
    site.idle(60 * minute_of("cam-1") + 60)
    (hour,) = site.sketches()
    assert (hour.nsub, hour.w0 % 6, hour.rev, hour.counts.rows) == (6, 0, 0, 71)
    site.idle(3600)
    assert len([one for one in site.sketches() if one.w0 == hour.w0]) == 1
    site.store.mark_sent(*[row.id for row in site.store.next_batch(100)])
    site.store.requeue_stored()
    again = [row.payload for row in site.store.next_batch(100) if row.stream == "sketch"]
    assert decode(again[0], site.grid) == hour
    key = ("front", hour.window_id, 0, 0)
    assert site.store.apply_ack(Ack(epoch="another", sketch=[("front", hour.window_id, 0, 1)])) == 0
    assert site.store.apply_ack(Ack(epoch="another", sketch=[key])) == 1
    assert hour.w0 not in {one.w0 for one in site.sketches()}


def revisions(site, hour, model):
    """What waits for the server of one model's hour, the oldest first."""
    return [one for one in site.sketches() if one.window_id == hour.window_id and one.model.hex() == model]


def test_a_sub_window_that_closes_after_its_hour_was_sent_goes_with_the_whole_hour(site):
    site.idle(3600 - site.clock.now().timestamp() % 3600)
    site.run(1150)
    late = site.w0 + 1
    behind = site.world.row(site.clock.monotonic() + 200)  # the control loop gets it after hours
    site.idle(600)
    site.run(1800)
    site.idle(3600)
    (hour,) = [one for one in site.sketches() if one.w0 <= late < one.w0 + one.nsub]
    site.watch.take(behind)
    site.idle(600)
    first, second = revisions(site, hour, site.world.model)
    assert (first.rev, second.rev) == (0, 1)
    assert not first.mask & 1 << (late - hour.w0)
    assert second.mask == first.mask | 1 << (late - hour.w0)
    assert second.counts.rows == first.counts.rows + 1
    assert {row.sent for row in site.rows.history(site.subject, since=hour.w0, until=hour.w0 + 6)} == {hour.window_id}


def test_a_sub_window_that_another_model_left_open_at_a_restart_goes_with_the_whole_hour(site):
    site.idle(3600 - site.clock.now().timestamp() % 3600)
    site.run(1500)
    old, open_w0 = site.subject, site.w0
    site.restart()
    site.world.model = "b2" * 16
    site.run(2 * 3600)
    (hour,) = [one for one in site.sketches() if one.model.hex() == old.model and one.w0 <= open_w0 < one.w0 + one.nsub]
    site.restart()
    site.idle(60)
    first, second = revisions(site, hour, old.model)
    assert second.mask == first.mask | 1 << (open_w0 - hour.w0)
    assert second.counts.rows > first.counts.rows


def test_what_conditions_leave_out_is_counted_and_named_and_over_a_sub_window_later(site):
    site.world.mean, site.world.deviation = 5.0, 0.2
    site.to_next_subwindow()
    first = site.w0
    site.run(600)
    assert site.codes() == {"frame_black"}
    kept = site.rows.find_window(site.subject, first)
    assert (kept.rows, kept.excluded, kept.flags & Flag.TESTABLE) == (0, 11, 0)
    site.world.mean, site.world.deviation = 120.0, 40.0
    site.run(1200)
    assert site.codes() == set()
    site.run(7200)
    hour = next(one for one in site.sketches() if one.w0 <= first < one.w0 + one.nsub)
    assert hour.counts.conditions == {CONDITION_CODES["frame_black"]: 96}  # twelve rows of a step of 8 s
    assert not hour.mask & 1 << (first - hour.w0)


def test_a_camera_that_stops_is_a_condition_and_its_sub_window_is_not_judged(site):
    site.run(600)
    site.to_next_subwindow()
    first = site.w0
    site.run(100)
    site.idle(400)
    assert "frame_missing" in site.codes()
    site.run(200)
    kept = site.rows.find_window(site.subject, first)
    assert kept.flags & Flag.GAP
    assert not kept.flags & Flag.TESTABLE
    site.run(1200)
    assert "frame_missing" not in site.codes()


def test_a_pipeline_that_waits_for_motion_may_be_silent(site):
    from agent.drift.watching import Place

    site.places = {"front": Place("pets", is_gated=True)}
    site.watch.configure(site.settings, site.places)
    site.run(100)
    site.idle(400)
    assert site.codes() == set()


def test_a_restart_in_order_goes_on_with_the_sub_window(site):
    site.to_next_subwindow()
    first = site.w0
    site.run(250)
    site.restart()
    site.run(250)
    assert site.w0 == first
    site.run(100)
    kept = site.rows.find_window(site.subject, first)
    assert (kept.rows, kept.excluded, site.watch.lost) == (11, 0, 0)


def test_a_crash_loses_at_most_what_was_counted_of_one_sub_window_and_says_so(site):
    site.to_next_subwindow()
    first = site.w0
    site.run(600)
    site.run(250)
    site.crash()
    assert 0 < site.watch.lost <= 250 / site.grid.step_s + 1
    site.run(400)
    assert site.rows.find_window(site.subject, first).rows == 11  # closed before: whole
    kept = site.rows.find_window(site.subject, first + 1)
    assert 0 < kept.rows < 12
    lost = site.watch.lost
    site.crash()
    site.crash()
    assert site.watch.lost <= lost + 2 * 600 / site.grid.step_s


def test_a_sub_window_left_open_by_an_agent_that_stays_away_is_closed_and_sent(site):
    site.to_next_subwindow()
    site.run(400)
    site.watch.stop()
    site.store.close()
    site.clock.advance(5 * 3600)
    site.open()
    site.idle(60)
    (hour,) = site.sketches()
    assert hour.counts.rows == 8


def test_the_clock_is_waited_for_and_rows_find_their_place_by_the_monotonic_one(site):
    site.is_clock_set = False
    site.tick()
    for _ in range(10):
        site.clock.advance(50)
        site.watch.take(site.world.row(site.clock.monotonic()))
        site.tick()
    assert site.codes() == {"clock_unsynced"}
    begun = site.clock.now()
    site.clock._now = site.clock._start = begun.replace(year=2027)  # the wall clock is set; nothing else moves
    site.clock.monotonic = lambda shift=500.0, clock=site.clock: shift + (clock._now - clock._start).total_seconds()
    site.is_clock_set = True
    site.tick()
    assert site.codes() == set()
    site.watch.stop()
    found = site.rows.open_windows() + site.rows.history(site.subject, since=0, until=10**7)
    assert sum(row.rows for row in found) == 10
    assert all(row.w0 > 2_999_000 for row in found)  # of 2027


def test_more_rows_than_may_wait_for_the_clock_are_lost_and_counted(site, monkeypatch):
    monkeypatch.setattr("agent.drift.watching.MAX_HELD", 5)
    site.is_clock_set = False
    site.tick()
    for _ in range(8):
        site.watch.take(site.world.row(site.clock.monotonic()))
    assert site.watch.lost == 3


@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_that_jumps_spoils_its_sub_window_and_what_was_closed_stays_as_it_is(site, hours):
    from datetime import timedelta

    site.run(3 * 3600)
    site.to_next_subwindow()
    site.run(100)
    before = {(row.w0, row.rows) for row in site.rows.history(site.subject, since=0, until=10**7)}
    at, elapsed = site.w0, site.clock.monotonic()
    site.clock._start += timedelta(hours=hours)
    site.clock._now += timedelta(hours=hours)
    assert site.clock.monotonic() == elapsed
    site.tick()
    kept = site.rows.find_window(site.subject, at)
    assert kept.flags & Flag.JUMPED
    assert not kept.flags & Flag.TESTABLE
    site.run(300)
    after = {(row.w0, row.rows) for row in site.rows.history(site.subject, since=0, until=10**7)}
    assert before <= after
    assert (site.watch.lost > 0) is (hours < 0)


def test_a_new_release_in_the_middle_of_a_sub_window_is_counted_apart_and_acknowledged_apart(site):
    site.to_next_subwindow()
    first = site.w0
    site.run(250)
    old, site.world.model = site.subject, "b2" * 16
    site.run(250)
    site.run(2 * 3600)
    assert site.rows.find_window(old, first).rows == 5
    assert site.rows.find_window(site.subject, first).rows in (5, 6)
    hours = [one for one in site.sketches() if one.w0 <= first < one.w0 + one.nsub]
    assert {one.model.hex() for one in hours} == {"a1" * 16, "b2" * 16}
    assert {one.rev for one in hours} == {0, 1}  # the server acknowledges by pipeline, window, source and revision
    site.store.apply_ack(Ack(epoch="x", sketch=[("front", hours[0].window_id, 0, hours[0].rev)]))
    left = [one for one in site.sketches() if one.w0 == hours[0].w0]
    assert [one.model for one in left] == [hours[1].model]


def test_rows_whose_grid_cannot_be_had_are_lost_and_named(site, tmp_path):
    other = make_grid(seed=5)
    site.watch.take(site.world.row(0.0, grid=other.grid_id.hex()))
    site.watch.take(site.world.row(0.0, grid=other.grid_id.hex(), folder=str(tmp_path / "gone")))
    assert site.codes() == {"profile_invalid"}
    assert site.watch.lost == 2
    site.run(50)
    assert site.codes() == set()


def test_a_grid_outlives_the_slot_it_came_from(site):
    site.run(600)
    make_slot(site.folder / "slot", make_grid(seed=9))  # written anew by another release
    site.restart()
    site.run(600)
    assert site.codes() == set()


def test_a_disk_that_takes_nothing_loses_what_it_must_and_the_rest_goes_on(site, query):
    site.to_next_subwindow()
    site.run(400)
    blocker = sqlite3.connect(site.folder / "outbox.db", isolation_level=None)
    site.store._connection.execute("PRAGMA busy_timeout = 0")
    blocker.execute("BEGIN IMMEDIATE")
    site.to_next_subwindow()
    from protocol.errors import DeviceError

    with pytest.raises(DeviceError):
        site.tick()
    blocker.execute("ROLLBACK")
    blocker.close()
    site.run(1200)
    assert site.watch.lost >= 8
    assert query("SELECT count(*) FROM drift_windows WHERE flags & 4 = 0")[0][0] >= 1


def test_a_row_without_numbers_is_left_out_under_its_name(site):
    site.watch.take(site.world.row(0.0, values="", fault="extractor_failed: boom", quality=None))
    site.watch.take(site.world.row(0.0, values="AAAA"))
    assert site.codes() == {"extractor_failed"}


def test_pipelines_that_are_gone_are_closed_and_those_that_are_off_are_not_counted(site):
    site.run(200)
    site.configure(enabled=False)
    site.run(200)
    site.to_next_subwindow()
    site.tick()
    assert sum(row.rows for row in site.rows.history(site.subject, since=0, until=10**7)) <= 4
    assert site.watch.steps() == {}
    site.places = {}
    site.configure(enabled=True)
    assert site.watch.pipelines() == []


def test_what_is_not_watched_any_more_has_nothing_to_say_and_is_told_as_off(site):
    site.world.mean, site.world.deviation = 5.0, 0.2
    site.run(200)
    site.watch.take(site.world.row(site.clock.monotonic(), grid=make_grid(seed=5).grid_id.hex()))
    assert site.codes() == {"frame_black", "profile_invalid"}
    first = site.w0
    site.configure(enabled=False)
    site.idle(3600)
    assert (site.watch.findings(), site.watch.pipelines(), site.watch.steps()) == ([], [], {})
    assert not site.rows.find_window(site.subject, first).flags & Flag.OPEN  # what was counted is kept
    site.world.mean, site.world.deviation = 120.0, 40.0
    site.configure(enabled=True)
    site.run(1200)
    assert (site.codes(), site.told().grade) == (set(), "collecting")


def test_lost_rows_are_written_once_a_sub_window_and_their_profile_is_looked_for_once(site, monkeypatch):
    from agent.drift import watching

    written, read = [], []
    set_value, read_bounded = site.store.set_value, watching.read_bounded
    monkeypatch.setattr(site.store, "set_value", lambda name, value: written.append(value) or set_value(name, value))
    monkeypatch.setattr(watching, "read_bounded", lambda path, limit: read.append(path) or read_bounded(path, limit))
    site.to_next_subwindow()
    site.tick()
    for _ in range(2 * 11):  # two sub-windows
        site.clock.advance(50)
        site.watch.take(site.world.row(site.clock.monotonic(), grid=make_grid(seed=5).grid_id.hex()))
        site.tick()
    site.to_next_subwindow()
    site.tick()
    assert (site.watch.lost, len(read), written[-1]) == (22, 2, "22")
    assert len(written) == 2
    site.crash()
    assert site.watch.lost == 22


def test_rows_of_a_candidate_in_the_shadow_are_counted_and_sent_beside_those_of_the_release_in_use(calibrated):
    site = calibrated
    shadow = copy.copy(site.world)
    shadow.model, shadow.made = "c3" * 16, 10_000
    champion = site.told().model
    site.to_next_subwindow()
    for shift in (0.0, 9.0):  # as far from anything known as can be: of a candidate that is no alarm
        shadow.shift = shift
        for _ in range(60):
            site.clock.advance(50)
            site.watch.take(site.world.row(site.clock.monotonic()))
            site.watch.take(shadow.row(site.clock.monotonic(), src=1))
            site.tick()
    assert (site.told().model, site.told().state) == (champion, "ok")
    assert [one.model for one in site.watch.pipelines()] == [champion]
    site.idle(7200)
    seen = [one for one in site.sketches() if one.src is Source.SHADOW]
    assert {(one.model.hex(), one.nsub, one.reference_id) for one in seen} == {("c3" * 16, 6, None)}
    assert 100 <= sum(one.counts.rows for one in seen) <= 120
    assert all(np.isnan(one.scores).all() for one in seen)


def test_a_candidate_whose_profile_cannot_be_read_is_no_condition_of_the_pipeline(site, tmp_path):
    site.run(100)
    site.watch.take(site.world.row(site.clock.monotonic(), src=1, grid="ee" * 16, folder=str(tmp_path / "nothing")))
    site.tick()
    assert "profile_invalid" not in site.codes()
    lost = site.watch.lost
    assert lost > 0
    site.run(100)
    assert site.told().model == site.world.model


def test_what_was_counted_of_a_candidate_outlives_a_restart(site):
    site.to_next_subwindow()
    for _ in range(3):
        site.clock.advance(50)
        site.watch.take(site.world.row(site.clock.monotonic(), src=1))
    site.restart()
    site.watch.take(site.world.row(site.clock.monotonic(), src=1))
    site.to_next_subwindow()
    site.tick()
    kept = site.rows.history(replace(site.subject, src=1), since=0, until=site.w0)
    assert [row.rows for row in kept] == [4]
