"""Looks on the server: a claim is verified from its stretch in any order, hours are judged where the server decides (ADR 0034)."""

import base64
from dataclasses import replace
from datetime import timedelta
from functools import cache

import numpy as np
import pytest
from grids import wide_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from simulators.messages import TS, body, incoming
from simulators.sketches import MODEL, W0, WatchedDevice, add_profile, counts, enroll, profile, reference

from agent.settings.desired import parse_desired
from fleet.audit import Actor, ActorKind
from fleet.db import Database
from fleet.devices import twins
from fleet.monitoring import (
    drift_claims,
    drift_figures,
    drift_learning,
    drift_reading,
    drift_references,
    drift_service,
    drift_store,
    drift_tick,
    stretches,
)
from fleet.monitoring import service as monitoring
from fleet.monitoring.alerts import service as alert_service
from fleet.monitoring.detectors import Scored
from fleet.monitoring.drift_model import AlarmEvent, AlarmState, Cause, Check, ReferenceSource
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_sums import moment_of
from fleet.monitoring.ingest import IngestRules, ingest_batch
from fleet.monitoring.rules import METRICS, Metric, Rule
from protocol.clock import from_unix_ms
from protocol.errors import InvalidError
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.sketches.codec import SUBWINDOW_MS
from protocol.sketches.counts import empty
from protocol.sketches.looks import HOURLY_LOOKS, LOOKS, Judges, LookReference, Modes, is_alarm, looks_for
from protocol.sketches.profile import ModelProfile
from protocol.sketches.reference import MAX_REFERENCE_BYTES, DeviceReference, Grade
from protocol.sketches.scatter import Scatter
from protocol.sketches.summary import summarizer
from protocol.sketches.tail import Tail
from protocol.topics import MAX_PACKET_BYTES

T0 = DEFAULT_TENANT
CAM = DeviceId("cam-1")
ANNA = Actor(ActorKind.PERSON, "anna")
INGEST = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices), on_event=(drift_references.take_event,))
#: So little that no ten minutes show it, and three hours do.
LITTLE, DARK = (-0.6, 0.0, 0.0, 0.0), (-3.0, -3.0, 0.0, 0.0)
#: So much of the rare class that ten minutes show it, by how many there are, and hours do not.
MORE_FOXES = (0.44, 0.3, 0.26)
#: Sub-windows of the longest look.
STRETCH = 18


class Site:
    """A server with one camera, at the hour after the latest window."""

    def __init__(self, database: Database, *, check: str = "device", rules: DriftRules = DriftRules()) -> None:  # noqa: B008 - a frozen value
        self.database, self.camera, self.now, self.rules, self.seq = database, WatchedDevice(), from_unix_ms(TS), rules, 0
        add_profile(database)
        enroll(database, "cam-1")
        if check == "server":
            self.wish(check=check)
        else:
            ingest_batch(database, [self.camera.learned()], rules=INGEST, now=self.now)

    def wish(self, **values: object) -> None:
        with self.database.transaction() as tx:
            twins.change_drift(tx, T0, CAM, lambda patch: patch.model_copy(update=values), now=self.now)

    def take(self, *windows) -> None:
        self.now = max(self.now, *(moment_of(one.w0 + one.nsub) for one in windows))
        ingest_batch(self.database, [self.camera.message(one) for one in windows], rules=INGEST, now=self.now)
        drift_tick.tick(self.database, rules=self.rules, now=self.now)

    def say(self, **pipeline: object) -> None:
        """The device's state topic."""
        self.seq += 1
        told = {"pipeline": "front", "line": "animals", "model": MODEL.hex(), "state": "raised", **pipeline}
        message = incoming("mooring/1/t0/d/cam-1/drift", body(self.seq, state="raised", check="device", pipelines=[told]))
        assert ingest_batch(self.database, [message], rules=INGEST, now=self.now).rejected == 0

    def series(self):
        with self.database.reading() as tx:
            return drift_store.find_current(tx, T0, CAM, "front")

    def alarms(self, *states: AlarmState):
        return drift_service.list_alarms(self.database, T0, states=states)

    def clear(self) -> None:
        (alarm,) = self.alarms(AlarmState.RAISED)
        act = {"tenant": T0, "alarm": alarm.alarm, "by": ANNA, "now": self.now, "reason": "cleaned"}
        drift_service.clear(self.database, outcome=AlarmEvent.CONDITION, **act)


#: What is the same on both databases by construction is tried on one.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


# --- a device's claim ---


def test_a_shift_that_no_ten_minutes_show_is_confirmed_from_the_stretch_that_shows_it(site):
    site.take(*site.camera.hours(W0, 24))
    evidence = site.camera.evidence(W0 + 144, STRETCH, shift=LITTLE)
    alone = [float(reference().p_values(one.scores)[0]) for one in evidence]
    assert min(alone) > 1 / 52_560
    site.take(*evidence)
    (alarm,) = site.alarms()
    assert (alarm.state, alarm.cause, alarm.reference_id) == (AlarmState.RAISED, Cause.INPUT, reference().reference_id.hex())
    assert alarm.words.startswith("Picture darker since")
    assert "seen in the mean of" in alarm.words
    assert int(alarm.evidence[0].split("-")[0]) >= W0 + 144
    assert alarm.statistic >= alarm.threshold == 52_560
    assert moment_of(W0 + 144) <= alarm.onset < moment_of(W0 + 144 + STRETCH)


@on_sqlite
def test_a_class_that_comes_more_in_ten_minutes_than_their_hours_show_is_confirmed_from_its_stretch(site):
    site.take(*site.camera.hours(W0, 24))
    evidence = site.camera.evidence(W0 + 144, STRETCH, priors=MORE_FOXES)
    summaries, made = _summaries(evidence), site.camera.reference
    said = {one.look: one.p_values(made.filled(summaries))[-1] / one.look.share * 52_560 for one in made.looks}
    # whatever says it may come to twice as much by what looks come to together
    assert {look.judges for look, value in said.items() if value <= 2} == {Judges.ROWS}
    assert made.leading(summaries).look.judges is Judges.ROWS
    site.say(raised_at=(W0 + 161) * SUBWINDOW_MS, threshold=52_560.0, look="classes-3h", stretch=STRETCH)
    site.take(*evidence)
    (alarm,) = site.alarms()
    assert (alarm.state, alarm.reference_id) == (AlarmState.RAISED, reference().reference_id.hex())
    assert "seen in the answers of" in alarm.words
    assert site.series().conditions == {}


@on_sqlite
@pytest.mark.parametrize("order", ["forwards", "backwards", "the crossing one first", "shuffled"])
def test_the_sub_windows_of_a_claim_may_come_in_any_order_and_one_by_one(site, order):
    site.take(*site.camera.hours(W0, 24))
    evidence = site.camera.evidence(W0 + 144, 6, shift=LITTLE)
    assert np.nanmin(site.camera.reference.judged(_summaries(evidence))) * 52_560 <= 1
    orders = {
        "forwards": evidence,
        "backwards": evidence[::-1],
        "the crossing one first": [evidence[-1], *evidence[:-1]],
        "shuffled": [evidence[place] for place in np.random.default_rng(4).permutation(len(evidence))],
    }
    for count, one in enumerate(orders[order], 1):
        assert (site.alarms() == []) or count > 4
        site.take(one)
    (alarm,) = site.alarms()
    assert alarm.state is AlarmState.RAISED
    assert site.series().conditions == {}


@on_sqlite
def test_a_stretch_of_which_too_much_is_missing_says_nothing_and_one_that_lacks_a_fifth_does(site):
    evidence = site.camera.evidence(W0 + 144, 6, shift=LITTLE)
    site.take(*site.camera.hours(W0, 24), *evidence[:2], *evidence[4:])
    assert site.alarms() == []
    site.take(evidence[2])
    assert len(site.alarms()) == 1


@on_sqlite
def test_a_sub_window_whose_counts_do_not_confirm_its_score_is_no_part_of_a_stretch(site):
    evidence = site.camera.evidence(W0 + 144, 6, shift=LITTLE)
    false = [replace(one, scores=one.scores + np.float32(1.0)) if place < 2 else one for place, one in enumerate(evidence)]
    site.take(*site.camera.hours(W0, 24), *false)
    assert site.alarms() == []
    assert site.series().conditions == {"score_mismatch": 1200}


@on_sqlite
def test_a_claim_that_its_complete_stretch_does_not_confirm_is_a_condition_and_no_alarm(site):
    site.take(*site.camera.hours(W0, 24))
    site.say(raised_at=(W0 + 149) * SUBWINDOW_MS, threshold=52_560.0, look="all-1h", stretch=6)
    site.take(*site.camera.evidence(W0 + 149))
    site.take(*site.camera.evidence(W0 + 144, 3))
    assert site.series().conditions == {}
    site.take(*site.camera.evidence(W0 + 147, 2))
    assert (site.alarms(), site.series().conditions) == ([], {"score_mismatch": 600})


@on_sqlite
def test_a_claim_at_another_rate_than_the_one_asked_for_is_no_alarm_and_no_lie(site):
    site.wish(false_alarms_per_year=0.001)
    site.take(*site.camera.hours(W0, 24))
    site.say(raised_at=(W0 + 149) * SUBWINDOW_MS, threshold=10.0, look="all-1h", stretch=6)
    evidence = site.camera.evidence(W0 + 144, 6, shift=(-0.3, 0.0, 0.0, 0.0))
    value = site.camera.reference.judged(_summaries(evidence))[-1]
    assert is_alarm(value, 5256.0)
    assert not is_alarm(value, 0.001)
    site.take(*evidence)
    assert (site.alarms(), site.series().conditions, site.series().threshold) == ([], {}, 52_560_000)


@on_sqlite
@pytest.mark.parametrize(("rules", "wish", "threshold"), [(0.2, None, 262_800), (0.2, 5.0, 10_512), (1.0, None, 52_560)])
def test_what_is_asked_of_one_device_comes_before_what_is_asked_of_all(database, rules, wish, threshold):
    site = Site(database, rules=DriftRules(rate=rules))
    site.wish(false_alarms_per_year=wish)
    site.take(*site.camera.hours(W0, 1))
    assert site.series().threshold == pytest.approx(threshold)


@on_sqlite
def test_evidence_from_before_a_person_cleared_the_alarm_raises_nothing_any_more(site):
    evidence = site.camera.evidence(W0 + 144, 6, shift=LITTLE)
    site.take(*site.camera.hours(W0, 24), *evidence)
    site.take(*site.camera.hours(W0 + 150, 4))
    site.clear()
    site.take(*site.camera.evidence(W0 + 140, 4, shift=DARK))  # from before it was raised
    site.take(*site.camera.evidence(W0 + 160, 4, shift=DARK))  # and before it was answered
    site.take(*site.camera.hours(W0 + 174, 2))
    (alarm,) = site.alarms()
    assert (alarm.state, alarm.reopened) == (AlarmState.CLEARED, 0)


@on_sqlite
def test_an_alarm_that_a_person_ended_is_open_again_when_the_device_still_stands_and_hours_say_so(site):
    site.take(*site.camera.hours(W0, 24), *site.camera.evidence(W0 + 144, 3, shift=DARK))
    site.say(raised_at=(W0 + 144) * SUBWINDOW_MS)
    site.take(*site.camera.hours(W0 + 150, 2, shift=DARK))
    (before,) = site.alarms(AlarmState.RAISED)
    site.clear()
    site.take(*site.camera.hours(W0 + 162, 2, shift=DARK))  # the lens is as dirty as it was, and the device crosses no second time
    (again,) = site.alarms()
    assert (again.alarm, again.state, again.reopened) == (before.alarm, AlarmState.RAISED, 1)
    assert again.onset >= moment_of(W0 + 162), "what came before somebody ended it enters no look"
    site.take(*site.camera.hours(W0 + 174, 3, shift=DARK))
    assert [one.reopened for one in site.alarms(AlarmState.RAISED)] == [1]


@on_sqlite
@pytest.mark.parametrize(
    ("says", "shift"),
    [({}, (0.0, 0.0, 0.0, 0.0)), ({"state": "ok"}, DARK), ({"raised_at": (W0 + 170) * SUBWINDOW_MS}, DARK)],
    ids=["what it sees is as it was", "the device says that it is over", "the device crossed anew, which its evidence tells"],
)
def test_an_alarm_that_a_person_ended_stays_so_unless_what_the_device_saw_goes_on(site, says, shift):
    site.take(*site.camera.hours(W0, 24), *site.camera.evidence(W0 + 144, 3, shift=DARK))
    site.take(*site.camera.hours(W0 + 150, 2, shift=DARK))
    site.clear()
    site.say(**{"raised_at": (W0 + 144) * SUBWINDOW_MS, **says})
    site.take(*site.camera.hours(W0 + 162, 3, shift=shift))
    (alarm,) = site.alarms()
    assert (alarm.state, alarm.reopened) == (AlarmState.CLEARED, 0)


@on_sqlite
def test_evidence_that_came_before_its_reference_is_verified_with_it(database):
    site = Site(database, check="server")
    site.wish(check="device")
    site.take(*site.camera.evidence(W0 + 6, 6, shift=DARK))
    assert site.alarms() == []
    ingest_batch(database, [site.camera.learned()], rules=INGEST, now=site.now)
    drift_tick.tick(database, rules=DriftRules(), now=site.now)
    assert len(site.alarms()) == 1


def _unconfirmed(site: Site) -> list[drift_claims.Claim]:
    return drift_claims.list_unconfirmed(site.database, T0, now=site.now)


def _claimed(site: Site, w0: int, **values: object) -> None:
    """The device says that it crossed in this sub-window."""
    grid, learned = site.camera.grid.grid_id.hex(), reference().reference_id.hex()
    site.say(**{"raised_at": w0 * SUBWINDOW_MS, "stretch": 6, "grid": grid, "reference": learned, "evidence": 6e4, **values})


def test_a_claim_whose_evidence_never_comes_is_shown_unconfirmed_with_what_is_missing(site):
    site.take(*site.camera.hours(W0, 24))
    _claimed(site, W0 + 149)
    assert _unconfirmed(site) == []  # what it owes has its time
    site.now += timedelta(minutes=31)
    assert _unconfirmed(site) == []
    site.now = moment_of(W0 + 150) + drift_claims.CLAIM_WAITS
    (claim,) = _unconfirmed(site)
    assert (claim.device, claim.pipeline, claim.raised_at, claim.here, claim.stretch) == (CAM, "front", moment_of(W0 + 149), 0, 6)
    assert claim.reason == "None of the 6 sub-windows that its claim rests on came."
    assert site.alarms() == []
    site.say(state="ok")
    assert _unconfirmed(site) == []


@on_sqlite
def test_a_claim_is_answered_by_the_alarm_that_its_evidence_raises_also_when_that_is_over(site):
    site.take(*site.camera.hours(W0, 24))
    site.take(*site.camera.evidence(W0 + 144, STRETCH, shift=LITTLE))
    _claimed(site, W0 + 144 + STRETCH - 1, stretch=STRETCH)
    site.now += timedelta(hours=1)
    assert site.alarms(AlarmState.RAISED)
    assert _unconfirmed(site) == []
    site.clear()
    assert _unconfirmed(site) == []


@on_sqlite
def test_an_unconfirmed_claim_says_which_part_of_the_chain_is_missing(site):
    site.take(*site.camera.hours(W0, 24))
    site.now = moment_of(W0 + 160)
    _claimed(site, W0 + 149, reference="ab" * 16)
    assert "is not here: its event was lost or refused" in _unconfirmed(site)[0].reason
    _claimed(site, W0 + 149, model="cd" * 16)
    assert _unconfirmed(site)[0].reason == "No window of this model version came from the device."
    site.now = moment_of(W0 + 150)
    site.take(*site.camera.evidence(W0 + 144, 3, shift=LITTLE))
    _claimed(site, W0 + 149)
    site.now = moment_of(W0 + 160)
    (claim,) = _unconfirmed(site)
    assert (claim.here, claim.reason) == (3, "3 of the 6 sub-windows that its claim rests on came; they do not raise an alarm.")
    site.take(*site.camera.evidence(W0 + 147, 3))
    _claimed(site, W0 + 149)
    site.now = moment_of(W0 + 162)
    assert _unconfirmed(site)[0].here == 6


# --- how an alarm goes on ---


def raised(site: Site) -> None:
    site.take(*site.camera.hours(W0, 24), *site.camera.evidence(W0 + 144, shift=DARK))
    assert len(site.alarms(AlarmState.RAISED)) == 1


@on_sqlite
def test_a_high_hour_begins_the_hold_time_anew(site):
    raised(site)
    site.take(*site.camera.hours(W0 + 150, 20))
    site.take(*site.camera.hours(W0 + 270, 1, shift=DARK))
    site.take(*site.camera.hours(W0 + 276, 20))
    assert len(site.alarms(AlarmState.RAISED)) == 1
    site.take(*site.camera.hours(W0 + 396, 12))
    (alarm,) = site.alarms()
    assert (alarm.state, alarm.outcome) == (AlarmState.CLEARED, AlarmEvent.RECOVERED)


@on_sqlite
def test_hours_that_come_late_begin_the_hold_time_anew_as_well(site):
    raised(site)
    late = site.camera.hours(W0 + 270, 1, shift=DARK)
    site.take(*site.camera.hours(W0 + 150, 20))
    site.take(*site.camera.hours(W0 + 276, 2))
    before = site.alarms()[0].low_since
    site.take(*late)
    assert site.alarms()[0].low_since is None or site.alarms()[0].low_since > before
    assert len(site.alarms(AlarmState.RAISED)) == 1


@on_sqlite
def test_an_alarm_that_recovered_is_not_raised_again_by_what_raised_it(site):
    raised(site)
    site.take(*site.camera.hours(W0 + 150, 60))
    assert site.alarms()[0].outcome is AlarmEvent.RECOVERED
    series = site.series()
    with site.database.transaction() as tx:
        drift_store.save_series(tx, replace(series, dirty_from=W0, evidence_state=None), now=site.now)
    drift_tick.tick(site.database, rules=site.rules, now=site.now)
    site.take(*site.camera.evidence(W0 + 200, 2, shift=DARK))  # late, from while it was open
    assert [one.state for one in site.alarms()] == [AlarmState.CLEARED]


# --- where the server judges ---


@pytest.fixture
def judging(database: Database) -> Site:
    """A server that judges by itself, with 28 days of hours."""
    site = Site(database, check="server")
    for day in range(28):
        site.take(*site.camera.hours(W0 - (28 - day) * 144, 24))
    return site


@on_sqlite
def test_the_server_judges_hours_by_looks_of_one_and_three_hours(judging):
    series = judging.series()
    assert (series.decided_by, series.threshold, judging.alarms()) == (Check.SERVER, 8760, [])
    with judging.database.reading() as tx:
        assert drift_store.find_current(tx, T0, CAM, "front").reference_id == series.reference_id
    judging.take(*judging.camera.hours(W0, 2))
    judging.take(*judging.camera.hours(W0 + 12, 6, shift=(-0.35, 0.0, 0.0, 0.0)))
    (alarm,) = judging.alarms()
    assert alarm.threshold == 8760
    assert "darker" in alarm.words
    assert "seen in the mean of" in alarm.words
    assert moment_of(W0) <= alarm.onset <= moment_of(W0 + 36)
    judging.clear()
    judging.take(*judging.camera.hours(W0 + 48, 6))
    assert [one.state for one in judging.alarms()] == [AlarmState.CLEARED]


@on_sqlite
def test_hours_that_come_late_may_raise_an_alarm_and_never_clear_one(judging):
    late, clean = judging.camera.hours(W0 + 6, 3, shift=DARK), judging.camera.hours(W0, 1)
    judging.take(*judging.camera.hours(W0 + 24, 8))
    assert judging.alarms() == []
    judging.take(*late)
    (alarm,) = judging.alarms()
    assert alarm.onset == moment_of(W0 + 6)
    judging.take(*clean)
    assert judging.alarms(AlarmState.RAISED) == [alarm]


@on_sqlite
def test_what_the_servers_reference_was_learned_from_raises_nothing_against_it(judging):
    parts = judging.camera.evidence(W0 - 72, 6, shift=DARK)
    judging.take(judging.camera.hour(W0 - 72, sub_windows=parts, rev=1))
    assert judging.series().reference_id is not None
    assert judging.alarms() == []


@on_sqlite
def test_an_hour_of_which_two_sub_windows_are_missing_is_not_judged(judging):
    nothing = empty(profile().grid)
    parts = [judging.camera.scored(W0 + index, shift=DARK) for index in range(12)]
    gaps = [judging.camera.sub_window(W0 + index, nothing) for index in (2, 4)]
    judging.take(judging.camera.hour(W0, sub_windows=[parts[0], parts[1], gaps[0], parts[3], gaps[1], parts[5]]))
    assert judging.alarms() == []
    one_missing = [*parts[6:11], judging.camera.sub_window(W0 + 11, nothing)]
    judging.take(judging.camera.hour(W0 + 6, sub_windows=one_missing))
    assert len(judging.alarms()) == 1


# --- pure ---


def _summaries(windows) -> np.ndarray:
    return stretches.rows_of({one.w0: one.counts for one in windows}, profile().grid, start=windows[0].w0, end=windows[-1].w0 + 1).summaries


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-0.6, 0.6))
def test_hours_say_what_their_sub_windows_say(seed, shift):
    camera = WatchedDevice(seed=seed)
    parts = camera.evidence(W0, 36, shift=(0.0, round(shift, 1), 0.0, 0.0))
    grid, made = profile().grid, reference()
    short = stretches.judge(stretches.rows_of({one.w0: one.counts for one in parts}, grid, start=W0, end=W0 + 36), made)
    hours = [camera.hour(W0 + at, sub_windows=parts[at : at + 6]) for at in range(0, 36, 6)]
    rows = stretches.hours_of(hours, grid, start=W0, end=W0 + 36, is_scored=True)
    long_ = stretches.judge(rows, made)
    # without the look at ten minutes, which hours leave out
    longer = [one for one in looks_for(made.looks, are_means=True) if one.look.subwindows > 1]
    wanted = np.nanmin(np.stack([one.p_values(made.filled(short.rows.summaries))[5::6] / one.look.share for one in longer]), axis=0)
    assert np.allclose(long_.values, made.valued(wanted), rtol=1e-6)
    both = stretches.with_scores(long_, hours, made)
    ten = np.array([float(made.p_values(one.scores)[0]) for one in parts]).reshape(6, 6).min(axis=1) / made.looks[0].look.share
    assert both.values.tolist() == pytest.approx(np.fmin(long_.values, made.valued(ten)).tolist())


@pytest.mark.parametrize(("width", "kept"), [(1, Judges.ROWS), (6, Judges.MEANS)])
def test_rows_neither_raise_nor_clear_by_looks_of_the_other_kind(width, kept):
    camera = WatchedDevice(seed=5)
    parts = [*camera.evidence(W0, 288), *camera.evidence(W0 + 288, 72, priors=(0.3, 0.3, 0.4)), *camera.evidence(W0 + 360, 72)]
    grid, made = profile().grid, reference()
    rows = stretches.rows_of({one.w0: one.counts for one in parts}, grid, start=W0, end=W0 + 432)
    if width > 1:
        hours = [camera.hour(W0 + at, sub_windows=parts[at : at + 6]) for at in range(0, 432, 6)]
        rows = stretches.hours_of(hours, grid, start=W0, end=W0 + 432, is_scored=True)
    alone = replace(made, looks=tuple(one for one in made.looks if one.look.judges in (Judges.ALL, kept)))
    said, wanted = stretches.judge(rows, made), stretches.judge(rows, alone)
    assert str(said.values.tolist()) == str(wanted.values.tolist())  # as text: what is not known is the same, too
    assert stretches.low_since(said, 200.0, start=W0, known=None) == stretches.low_since(wanted, 200.0, start=W0, known=None)
    found = stretches.last_found(said, made, 1.0, start=W0)
    assert found is not None
    assert found == stretches.last_found(wanted, alone, 1.0, start=W0)
    assert (found.look.is_classes, found.look.judges) == (True, kept)


@given(st.lists(st.one_of(st.none(), st.floats(1e-9, 1.0)), min_size=1, max_size=30), st.integers(1, 29))
def test_since_when_hours_are_low_is_the_same_whether_they_are_seen_at_once_or_in_parts(values, cut):
    made = [float("nan") if one is None else one for one in values]

    def judged(part, start):
        rows = stretches.Rows(6 * start, 6, np.zeros((len(part), 1)))
        return stretches.Judged(rows, np.array(part))

    at_once = stretches.low_since(judged(made, 0), 100.0, start=0, known=None)
    first = stretches.low_since(judged(made[:cut], 0), 100.0, start=0, known=None)
    both = stretches.low_since(judged(made[cut:], cut), 100.0, start=0, known=first) if made[cut:] else first
    assert both == at_once


def test_looks_have_words():
    words = {stretches.look_words(replace(one.look, subwindows=one.look.subwindows)) for one in reference().looks}
    assert words == {
        "in ten minutes",
        "in the mean of an hour",
        "in the mean of three hours",
        "in the answers of two hours",
        "in the answers of three hours",
    }
    assert stretches.look_words(replace(HOURLY_LOOKS[0], subwindows=72)) == "in the mean of 720 minutes"


@on_sqlite
def test_the_time_line_says_how_seldom_each_stretch_is_and_where_the_alarm_would_be(site):
    evidence = site.camera.evidence(W0 + 144, 6, shift=LITTLE)
    site.take(*site.camera.hours(W0, 24), *evidence, site.camera.hour(W0 + 144, sub_windows=evidence))
    points = drift_reading.timeline(site.database, T0, CAM, "front", since=moment_of(W0 + 138), until=moment_of(W0 + 150))
    assert [point.at for point in points] == [moment_of(W0 + 138 + index) for index in range(12)]
    assert all(point.statistic is not None and point.statistic > 0 for point in points)
    wanted = 1 / site.camera.reference.judged(_summaries(evidence))
    assert points[-1].statistic == pytest.approx(wanted[-1], rel=1e-3)
    assert max(point.statistic for point in points[:6]) < 52_560 <= points[-1].statistic


@pytest.mark.parametrize(("surprising", "onset"), [([], 0), ([12], 12), ([7, 12], 7)])
def test_the_onset_is_where_single_scores_are_surprising_else_where_the_stretch_begins(surprising, onset):
    p = np.full(18, 0.5)
    p[surprising] = 0.01
    found = stretches.Found(W0, W0 + 18, HOURLY_LOOKS[0], 1e6)
    assert stretches.onset_of(Scored(np.arange(W0, W0 + 18), np.ones(18), p), found) == W0 + onset


# --- the largest reference ---


@cache
def largest() -> DeviceReference:
    """As many modes as the bytes of a reference hold, of a grid as large as grids get."""
    grid, rng = wide_grid(), np.random.default_rng(5)
    d = summarizer(grid).dimensions
    tail = Tail(np.sort(rng.uniform(0, 50, 512)).astype(np.float32), 47.0, 0.2, 1.5)
    looks = []
    for look, modes in zip(LOOKS[:5], (4, 4, 3, 1, 1), strict=True):
        places = np.arange(d - 20, d) if look.is_classes else np.arange(d)
        unit = np.ones(len(places))
        factors = [np.tril(rng.normal(0, 0.05, (len(places), len(places)))) + np.eye(len(places)) for _ in range(modes)]
        clouds = tuple(Scatter(rng.normal(size=len(places)), unit, factor, 0.25) for factor in factors)
        whole = replace(look, modes=modes, judges=Judges.ALL)
        looks.append(LookReference(whole, places, Modes(clouds, np.full(modes, 1 / modes)).rounded(), tail))
    head = {"grid_id": grid.grid_id, "model": MODEL, "grade": Grade.CALIBRATED, "subwindows": 144, "windows": 4032}
    span = {"first_w0": W0 - 28 * 144, "last_w0": W0 - 1}
    made = DeviceReference(coordinates=np.arange(d), usual=np.zeros(d), looks=tuple(looks), **head, **span)
    assert MAX_REFERENCE_BYTES - 16_384 < len(made.encoded) <= MAX_REFERENCE_BYTES
    return made


def with_wide_grid(database: Database) -> None:
    add_profile(database, ModelProfile(wide_grid(), empty(wide_grid()), None))
    enroll(database, "cam-1")


def test_the_largest_reference_comes_as_an_event_and_is_stored_and_judged_by(database):
    with_wide_grid(database)
    camera = WatchedDevice(grid=wide_grid(), reference=largest())
    message = camera.learned()
    assert len(message.payload) <= MAX_PACKET_BYTES
    outcome = ingest_batch(database, [message], rules=INGEST, now=from_unix_ms(TS))
    assert (outcome.rejected, outcome.acks[0][2].streams["event"].upto) == (0, 0)
    hour = camera.hour(W0, sub_windows=[camera.sub_window(W0 + index, empty(wide_grid())) for index in range(6)])
    ingest_batch(database, [camera.message(hour)], rules=INGEST, now=moment_of(W0 + 6))
    drift_tick.tick(database, rules=DriftRules(), now=moment_of(W0 + 6))
    (kept,) = drift_references.list_references(database, T0, CAM, "front")
    assert (kept.reference_id, kept.retired_at, len(kept.body)) == (largest().reference_id.hex(), None, len(largest().encoded))
    (row,) = drift_reading.device_overview(database, T0)
    assert (row.state.grade, row.state.threshold) == ("calibrated", 52_560)


@on_sqlite
def test_one_largest_reference_is_lent_and_a_second_one_that_fits_no_message_is_refused_with_the_bytes(database):
    with_wide_grid(database)
    act = {"tenant": T0, "device": CAM, "by": ANNA, "now": from_unix_ms(TS), "source": ReferenceSource.RECORDING, "reason": "moved house"}
    drift_references.add_reference(database, pipeline="front", body=largest().encoded, **act)
    desired, errors = parse_desired(twins.get_desired(database, T0, CAM).config)
    assert errors == {}
    assert base64.b64decode(desired.drift.references["front"]) == largest().encoded
    with pytest.raises(InvalidError, match=rf"has \d{{6}} bytes; a message holds at most {MAX_PACKET_BYTES}") as refused:
        drift_references.add_reference(database, pipeline="back", body=largest().encoded, **act)
    assert refused.value.code == "too-large"
    with database.reading() as tx:
        assert [one.pipeline for one in drift_store.list_series(tx, T0)] == ["front"]
    with pytest.raises(InvalidError, match=f"has at most {MAX_REFERENCE_BYTES}"):
        drift_references.add_reference(database, pipeline="front", body=bytes(MAX_REFERENCE_BYTES + 1), **act)


# --- what is kept and what waits ---


def test_references_that_are_not_in_use_are_deleted_after_the_time_of_windows_and_the_one_in_use_stays(database):
    site = Site(database)
    other = replace(site.camera, reference=reference(4))
    ingest_batch(database, [other.learned(seq=1)], rules=INGEST, now=site.now)
    assert len(drift_references.list_references(database, T0, CAM, "front")) == 2
    assert drift_tick.prune(database, now=site.now + timedelta(days=399)) == 0
    assert drift_tick.prune(database, now=site.now + timedelta(days=401)) == 1
    (kept,) = drift_references.list_references(database, T0, CAM, "front")
    assert (kept.reference_id, kept.retired_at) == (other.reference.reference_id.hex(), None)


def test_what_was_put_aside_is_listed_by_pipeline_with_the_grid_it_waits_for(database):
    enroll(database, "cam-1", "cam-2")
    cameras = [WatchedDevice(device="cam-1"), WatchedDevice(device="cam-2")]
    now = moment_of(W0 + 30)
    first, later = [one.message(window) for one in cameras for window in one.hours(W0, 2)], cameras[1].hours(W0 + 12, 1)
    ingest_batch(database, first, rules=INGEST, now=now)
    ingest_batch(database, [cameras[1].message(one) for one in later], rules=INGEST, now=now + timedelta(hours=1))
    found = drift_reading.list_waiting(database, T0)
    assert [(one.key.device, one.windows, one.first_w0, one.next_w0) for one in found] == [
        ("cam-1", 2, W0, W0 + 12),
        ("cam-2", 3, W0, W0 + 18),
    ]
    assert {(one.reason, one.key.grid_id, one.since) for one in found} == {("unknown-grid", profile().grid.grid_id.hex(), now)}
    assert found[1].until == now + timedelta(hours=73)
    assert [one.key.device for one in drift_reading.list_waiting(database, T0, device=DeviceId("cam-2"))] == ["cam-2"]
    add_profile(database)
    drift_learning.let_out(database, T0, now=now)
    assert drift_reading.list_waiting(database, T0) == []


# --- the rate that is asked ---


@on_sqlite
def test_a_rate_that_stands_only_in_the_devices_own_file_is_taken_until_somebody_sets_another_one(site):
    own = incoming("mooring/1/t0/d/cam-1/drift", body(1, state="ok", check="device", false_alarms_per_year=50.0, pipelines=[]))
    assert ingest_batch(site.database, [own], rules=INGEST, now=site.now).rejected == 0
    site.take(*site.camera.hours(W0, 1))
    assert site.series().threshold == pytest.approx(52_560 / 50)
    assert drift_reading.own_rate(site.database, T0, CAM) == 50
    site.wish(false_alarms_per_year=2.0)
    site.take(*site.camera.hours(W0 + 6, 1))
    assert site.series().threshold == pytest.approx(52_560 / 2)
    assert drift_reading.own_rate(site.database, T0, CAM) is None


@on_sqlite
@pytest.mark.parametrize("said", ["50", None, True, [1]])
def test_what_a_device_says_of_its_rate_that_is_no_number_is_left_alone(site, said):
    own = incoming("mooring/1/t0/d/cam-1/drift", body(1, state="ok", check="device", false_alarms_per_year=said, pipelines=[]))
    ingest_batch(site.database, [own], rules=INGEST, now=site.now)
    site.take(*site.camera.hours(W0, 1))
    assert site.series().threshold == pytest.approx(52_560)


# --- drift and accuracy as telemetry ---


def _told(site: Site) -> list[dict]:
    rows = monitoring.list_telemetry(site.database, T0, CAM, name="drift", since=moment_of(W0), pipeline="front")
    assert [row.ts for row in rows] == sorted({row.ts for row in rows})
    return [row.body for row in rows]


def _rule(metric: Metric, threshold: float) -> Rule:
    kind = METRICS[metric]
    return Rule("drifting", metric, kind.comparison, threshold, threshold, window_s=kind.window_s, for_s=0.0)


def test_drift_and_accuracy_of_each_window_are_telemetry_that_rules_fire_on(site):
    for hour in range(3):
        site.take(*site.camera.hours(W0 + 6 * hour, 1))
    calm = _told(site)
    assert len(calm) == 3
    assert all(one["evidence_percent"] < 20 and one["accuracy_trusted"] == 100 for one in calm)
    assert all(60 < one["accuracy_low"] < one["accuracy_high"] < 100 for one in calm)
    rule = _rule(Metric.DRIFT_EVIDENCE, 50)
    alert_service.create_rule(site.database, tenant=T0, rule=rule, by=ANNA, now=site.now)
    doubted = replace(_rule(Metric.ACCURACY_TRUSTED, 50), name="doubted")
    alert_service.create_rule(site.database, tenant=T0, rule=doubted, by=ANNA, now=site.now)
    assert alert_service.evaluate(site.database, T0, now=site.now) == 0
    site.take(*site.camera.evidence(W0 + 18, 6, shift=DARK))
    site.take(
        site.camera.hour(
            W0 + 18, sub_windows=[site.camera.sub_window(W0 + 18 + at, counts(np.random.default_rng(at), shift=DARK)) for at in range(6)]
        )
    )
    assert alert_service.evaluate(site.database, T0, now=site.now + timedelta(minutes=1)) == 2
    fired = alert_service.list_firings(site.database, T0, is_open=True)
    assert {(one.rule, one.key.device, one.key.pipeline) for one in fired} == {("drifting", CAM, "front"), ("doubted", CAM, "front")}
    tried = alert_service.try_rule(site.database, tenant=T0, rule=rule, now=site.now, hours=5)
    assert [len(one.firings) for one in tried.keys] == [1]


@on_sqlite
def test_a_window_that_is_judged_again_is_told_once(site):
    site.take(*site.camera.hours(W0, 2))
    before, series = _told(site), site.series()
    with site.database.transaction() as tx:
        drift_store.save_series(tx, replace(series, dirty_from=W0), now=site.now)
    drift_tick.tick(site.database, rules=site.rules, now=site.now)
    assert len(_told(site)) == len(before) == 1


@on_sqlite
def test_of_a_release_without_a_reference_and_an_estimate_nothing_is_told(site):
    site.take(*site.camera.hours(W0, 1))
    assert drift_figures.figures_of(replace(site.series(), threshold=0.0), None) is None
