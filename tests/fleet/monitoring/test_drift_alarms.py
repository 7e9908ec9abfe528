"""From windows to alarms: verified, raised once, attributed in words, recovered, opened again; on SQLite and PostgreSQL."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from simulators.messages import TS
from simulators.sketches import W0, WatchedDevice, add_profile, enroll, reference

from fleet import audit, jobs
from fleet.audit import Actor, ActorKind
from fleet.db import Database
from fleet.devices import store as device_store
from fleet.monitoring import (
    alarm_store,
    drift_ingest,
    drift_judging,
    drift_reading,
    drift_references,
    drift_service,
    drift_store,
    drift_tick,
)
from fleet.monitoring.drift_alarms import PUBLISH_ALARM
from fleet.monitoring.drift_model import AlarmEvent, AlarmState, Cause, Check, Grade
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_sums import moment_of
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.clock import from_unix_ms
from protocol.errors import ConflictError, InvalidError, StaleRevisionError
from protocol.ids import DEFAULT_TENANT, DeviceId

T0 = DEFAULT_TENANT
CAM = DeviceId("cam-1")
ANNA = Actor(ActorKind.PERSON, "anna")
INGEST = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices), on_event=(drift_references.take_event,))
RULES = DriftRules()
DARK = (-3.0, -3.0, 0.0, 0.0)


class Site:
    """A server with one camera, at the hour after the latest window."""

    def __init__(self, database: Database) -> None:
        self.database, self.camera, self.now = database, WatchedDevice(), from_unix_ms(TS)
        add_profile(database)
        enroll(database, "cam-1", "cam-2", "cam-3", "cam-4")
        ingest_batch(database, [self.camera.learned()], rules=INGEST, now=self.now)

    def take(self, *windows, camera: WatchedDevice | None = None) -> None:
        sender = camera or self.camera
        self.now = max(self.now, *(moment_of(one.w0 + one.nsub) for one in windows))
        ingest_batch(self.database, [sender.message(one) for one in windows], rules=INGEST, now=self.now)
        self.tick()

    def tick(self) -> None:
        drift_tick.tick(self.database, rules=RULES, now=self.now)

    def series(self):
        with self.database.reading() as tx:
            return drift_store.find_current(tx, T0, CAM, "front")

    def alarms(self, *states: AlarmState):
        return drift_service.list_alarms(self.database, T0, states=states)

    def actions(self) -> list[str]:
        with self.database.reading() as tx:
            return [entry.action for entry in reversed(audit.list_entries(tx, T0, limit=100))]

    def published(self) -> list[str]:
        with self.database.reading() as tx:
            found = jobs.list_jobs(tx, T0, kind=PUBLISH_ALARM)
        return sorted(job.payload["event"]["type"].split(".")[2] for job in found)

    def dark(self):
        """A day of clean hours, then evidence of a picture that is dark and blurred."""
        self.take(*self.camera.hours(W0, 24))
        shifted = [self.camera.scored(W0 + 144 + index, shift=DARK) for index in range(6)]
        self.take(shifted[1])
        return shifted


#: What is the same on both databases by construction is tried on one.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


@on_sqlite
def test_clean_days_raise_nothing_and_are_judged_by_the_devices_own_reference(site):
    site.take(*site.camera.hours(W0, 48))
    series = site.series()
    assert (site.alarms(), series.grade, series.decided_by, series.days) == ([], Grade.CALIBRATED, Check.DEVICE, 2)
    assert series.reference_id == site.camera.reference.reference_id.hex()
    assert 0 < series.statistic < series.threshold == 52_560
    assert (series.judged_until, series.dirty_from) == (W0 + 288, None)
    assert len(series.cells) == 6


def test_evidence_that_its_counts_confirm_raises_an_alarm_that_says_what_moved(site):
    site.dark()
    (alarm,) = site.alarms(AlarmState.RAISED)
    assert (alarm.subject.name, alarm.subject.pipeline, alarm.cause, alarm.grade) == ("cam-1", "front", Cause.INPUT, Grade.CALIBRATED)
    assert [(one.feature, one.word) for one in alarm.features[:2]] in (
        [("image.brightness", "darker"), ("image.sharpness", "blurrier")],
        [("image.sharpness", "blurrier"), ("image.brightness", "darker")],
    )
    assert "darker" in alarm.words
    assert "blurrier" in alarm.words
    assert alarm.words.endswith("on cam-1, pipeline front, seen in ten minutes.")
    assert alarm.onset == moment_of(W0 + 145)
    assert "alarm.raised" in site.actions()
    assert site.published() == ["raised"]
    assert drift_service.explain(alarm) == alarm.words


@on_sqlite
def test_evidence_that_its_counts_do_not_confirm_raises_nothing_and_is_a_condition(site):
    site.take(*site.camera.hours(W0, 24))
    false = site.camera.scored(W0 + 145)
    site.take(replace(false, scores=np.array([900.0], dtype=np.float32)))
    assert site.alarms() == []
    assert site.series().conditions == {"score_mismatch": 600}


@on_sqlite
def test_hours_show_where_a_device_stands_and_raise_nothing_while_it_sends_no_evidence(site):
    site.take(*site.camera.hours(W0, 24), *site.camera.hours(W0 + 144, 3, shift=DARK))
    assert site.alarms() == []
    assert site.series().statistic >= site.series().threshold == 52_560
    site.take(*site.camera.evidence(W0 + 161, shift=DARK))
    (alarm,) = site.alarms()
    assert alarm.statistic >= alarm.threshold == 52_560
    assert alarm.onset == moment_of(W0 + 161)


@on_sqlite
def test_a_prior_that_moved_is_told_from_an_input_that_moved(site):
    site.take(*site.camera.hours(W0, 24), *site.camera.evidence(W0 + 144, 6, priors=(0.02, 0.08, 0.9)))
    (alarm,) = site.alarms()
    assert alarm.cause is Cause.PRIOR
    assert "more often fox" in alarm.words


@on_sqlite
def test_an_open_alarm_gets_no_second_one_and_its_new_features_are_added(site):
    site.dark()
    site.take(*site.camera.hours(W0 + 150, 12, shift=(0.0, 0.0, 4.0, 0.0)))
    (alarm,) = site.alarms()
    assert {"image.brightness", "embedding.1"} <= {one.feature for one in alarm.features}
    assert site.published() == ["raised"]


def test_judging_again_changes_nothing(site):
    shifted = site.dark()
    site.take(site.camera.hour(W0 + 144, sub_windows=shifted))
    before, alarms = site.series(), site.alarms()
    with site.database.transaction() as tx:
        drift_store.save_series(tx, replace(before, dirty_from=W0 + 100), now=site.now)
    site.tick()
    assert replace(site.series(), updated_at=before.updated_at) == before
    assert site.alarms() == alarms


@on_sqlite
def test_whatever_order_windows_come_in_the_same_evidence_comes_out(site):
    windows = site.camera.hours(W0, 60)
    site.take(*windows[::2])
    site.take(*windows[1::2][::-1])
    late = site.series()
    with site.database.transaction() as tx:
        drift_store.save_series(tx, replace(late, dirty_from=W0, evidence_state=None), now=site.now)
    site.tick()
    assert site.series().evidence_state == late.evidence_state


@on_sqlite
def test_what_could_not_be_judged_is_judged_with_the_next_window(site, monkeypatch):
    site.take(*site.camera.hours(W0, 24))

    def fails(*_args, **_keys):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(drift_judging.detectors, "judge", fails)
        site.take(*site.camera.evidence(W0 + 144, 3, shift=DARK))
    assert (site.alarms(), site.series().dirty_from, site.series().conditions) == ([], None, {"detector_failed": 600})
    site.take(site.camera.hour(W0 + 1008))  # of a later block
    (alarm,) = site.alarms()
    assert alarm.onset == moment_of(W0 + 144)
    assert (site.series().judged_until, site.series().conditions) == (W0 + 1014, {})


@on_sqlite
def test_a_shadow_that_could_not_be_summed_is_summed_with_its_next_window(site, monkeypatch):
    def shadow(w0):
        return replace(site.camera.hour(w0), src=site.camera.source.SHADOW)

    def fails(*_args, **_keys):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(drift_judging.drift_sums, "day_sums", fails)
        site.take(shadow(W0))
    site.take(shadow(W0 + 1008 - 6))
    with site.database.reading() as tx:
        (row,) = drift_store.list_series(tx, T0, src=1)
        days = drift_store.list_sums(tx, T0, [row.series_key], "day", start=0, end=1 << 40)[row.series_key]
    assert (len(days), row.conditions, row.dirty_from) == (2, {}, None)


@on_sqlite
def test_another_reference_does_not_raise_again_what_was_answered(site):
    site.dark()
    site.take(*site.camera.hours(W0 + 150, 24))
    (alarm,) = site.alarms()
    drift_service.clear(site.database, tenant=T0, alarm=alarm.alarm, outcome=AlarmEvent.CONDITION, by=ANNA, now=site.now, reason="covered")
    other = replace(site.camera, reference=reference(4))
    ingest_batch(site.database, [other.learned(seq=1)], rules=INGEST, now=site.now)
    site.tick()
    assert site.series().reference_id == other.reference.reference_id.hex()
    (answered,) = site.alarms()
    assert (answered.state, answered.outcome, answered.reopened) == (AlarmState.CLEARED, AlarmEvent.CONDITION, 0)


def test_an_alarm_recovers_when_the_evidence_stays_low_for_the_hold_time(site):
    site.dark()
    site.take(*site.camera.hours(W0 + 150, 24))
    assert len(site.alarms(AlarmState.RAISED)) == 1
    site.take(*site.camera.hours(W0 + 294, 72))
    (alarm,) = site.alarms()
    assert (alarm.state, alarm.outcome) == (AlarmState.CLEARED, AlarmEvent.RECOVERED)
    assert site.published() == ["cleared", "raised"]
    assert site.actions()[-1] == "alarm.cleared"


@on_sqlite
def test_a_silent_device_does_not_recover(site):
    site.dark()
    site.now += timedelta(days=20)
    site.tick()
    assert len(site.alarms(AlarmState.RAISED)) == 1


@on_sqlite
def test_a_crossing_within_a_week_opens_the_same_alarm_again(site):
    site.dark()
    (alarm,) = site.alarms()
    drift_service.clear(site.database, tenant=T0, alarm=alarm.alarm, outcome=AlarmEvent.FALSE_ALARM, by=ANNA, now=site.now, reason="rain")
    site.take(*site.camera.hours(W0 + 150, 18))
    site.take(*site.camera.evidence(W0 + 258, shift=DARK))
    (again,) = site.alarms()
    assert (again.alarm, again.state, again.reopened) == (alarm.alarm, AlarmState.RAISED, 1)
    assert site.published() == ["cleared", "raised"]  # told hours ago: not a second time within the hold time


@on_sqlite
def test_a_crossing_after_a_week_is_another_alarm(site):
    site.dark()
    (alarm,) = site.alarms()
    drift_service.clear(site.database, tenant=T0, alarm=alarm.alarm, outcome=AlarmEvent.CONDITION, by=ANNA, now=site.now, reason="covered")
    site.take(*site.camera.hours(W0 + 150, 24 * 8))
    site.take(*site.camera.evidence(W0 + 150 + 144 * 8, shift=DARK))
    assert [one.state for one in site.alarms()] == [AlarmState.RAISED, AlarmState.CLEARED]
    assert site.published() == ["cleared", "raised", "raised"]


def test_who_takes_an_alarm_is_recorded_and_the_device_is_told(site):
    site.dark()
    (alarm,) = site.alarms()
    taken = drift_service.acknowledge(site.database, tenant=T0, alarm=alarm.alarm, by=ANNA, now=site.now, note="on my way", link="run-7")
    assert (taken.state, taken.acknowledged_by, taken.note, taken.link) == (AlarmState.ACKNOWLEDGED, "person:anna", "on my way", "run-7")
    with site.database.reading() as tx:
        assert device_store.get_twin(tx, T0, CAM).config.drift.acknowledged == ("front",)
    drift_service.clear(site.database, tenant=T0, alarm=alarm.alarm, outcome=AlarmEvent.CONDITION, by=ANNA, now=site.now, reason="cleaned")
    with site.database.reading() as tx:
        assert device_store.get_twin(tx, T0, CAM).config.drift.acknowledged is None
    assert [one for one in site.actions() if one.startswith("alarm.")] == ["alarm.raised", "alarm.acknowledged", "alarm.cleared"]


@on_sqlite
def test_what_a_person_may_not_do_changes_nothing(site):
    site.dark()
    (alarm,) = site.alarms()
    act = {"tenant": T0, "alarm": alarm.alarm, "by": ANNA, "now": site.now}
    with pytest.raises(InvalidError, match="cannot clear an alarm as 'recovered'"):
        drift_service.clear(site.database, outcome=AlarmEvent.RECOVERED, reason="x", **act)
    with pytest.raises(InvalidError, match="reason"):
        drift_service.clear(site.database, outcome=AlarmEvent.CONDITION, reason=" ", **act)
    with pytest.raises(StaleRevisionError):
        drift_service.acknowledge(site.database, revision=7, **act)
    drift_service.acknowledge(site.database, **act)
    with pytest.raises(ConflictError):
        drift_service.acknowledge(site.database, **act)
    with pytest.raises(InvalidError, match="Muted until"):
        drift_service.mute(site.database, until=site.now, reason="x", **act)


@on_sqlite
def test_a_muted_alarm_is_recorded_and_tells_nobody(site):
    site.dark()
    (alarm,) = site.alarms()
    act = {"tenant": T0, "alarm": alarm.alarm, "by": ANNA, "now": site.now, "reason": "roof works"}
    drift_service.mute(site.database, until=site.now + timedelta(days=30), **act)
    drift_service.clear(site.database, outcome=AlarmEvent.CONDITION, **act)
    site.take(*site.camera.evidence(W0 + 150, shift=DARK))
    (again,) = site.alarms()
    assert (again.reopened, site.published()) == (1, ["raised"])
    assert site.actions()[-1] == "alarm.reopened"


def test_taking_what_is_there_as_normal_starts_the_reference_again(site):
    site.dark()
    drift_references.rebaseline(site.database, tenant=T0, device=CAM, pipeline="front", by=ANNA, now=site.now, reason="new lamp")
    series = site.series()
    assert (series.reference_id, series.grade, series.days, series.evidence_state) == (None, Grade.COLLECTING, 0, None)
    (alarm,) = site.alarms()
    assert alarm.outcome is AlarmEvent.REREFERENCED
    assert site.actions()[-1] == "drift.rebaselined"
    site.take(*site.camera.hours(W0 + 150, 3, shift=DARK))
    assert len(site.alarms()) == 1
    (kept,) = drift_references.list_references(site.database, T0, CAM, "front")
    assert kept.retired_at == series.updated_at


@on_sqlite
@pytest.mark.parametrize("junk", [b"AAAA", "\u00e9".encode(), b"!"])
def test_a_reference_that_cannot_be_read_is_refused_in_the_audit_log_and_acknowledged(database, junk):
    add_profile(database)
    enroll(database, "cam-1")
    message = WatchedDevice().learned()
    bad = replace(message, payload=message.payload.replace(b'"body": "', b'"body": "' + junk))
    assert_refused(database, bad, now=from_unix_ms(TS))


@on_sqlite
@pytest.mark.parametrize("days", [-1, 402])
def test_a_reference_of_days_that_cannot_have_been_is_refused(database, days):
    add_profile(database)
    enroll(database, "cam-1")
    assert_refused(database, WatchedDevice().learned(), now=from_unix_ms(TS) + timedelta(days=days))


def assert_refused(database, bad, *, now):
    outcome = ingest_batch(database, [bad], rules=INGEST, now=now)
    assert outcome.acks[0][2].streams["event"].upto == 0
    with database.reading() as tx:
        assert audit.list_entries(tx, T0)[0].action == "drift.reference-refused"
        assert alarm_store.find_budget(tx, T0) is None


@on_sqlite
def test_a_reference_that_was_learned_before_somebody_took_what_is_there_as_normal_is_kept_and_not_used(site):
    site.dark()
    drift_references.rebaseline(site.database, tenant=T0, device=CAM, pipeline="front", by=ANNA, now=site.now, reason="new lamp")
    late = replace(site.camera, reference=reference(4))
    ingest_batch(site.database, [late.learned(seq=1)], rules=INGEST, now=site.now)
    site.tick()
    assert (site.series().reference_id, site.series().grade) == (None, Grade.COLLECTING)
    kept = drift_references.list_references(site.database, T0, CAM, "front")
    assert len(kept) == 2
    assert all(one.retired_at == site.now for one in kept)
    assert site.actions()[-1] == "drift.reference-stored"


@on_sqlite
def test_an_alarm_that_another_reference_ends_is_in_the_audit_log_before_it_since_the_log_is_locked_last(site):
    site.dark()
    other = replace(site.camera, reference=reference(4))
    ingest_batch(site.database, [other.learned(seq=1)], rules=INGEST, now=site.now)
    assert site.alarms()[0].outcome is AlarmEvent.REREFERENCED
    assert site.actions()[-2:] == ["alarm.cleared", "drift.reference-stored"]


@on_sqlite
def test_references_make_no_more_series_of_a_device_than_windows_may(site, monkeypatch):
    monkeypatch.setattr(drift_ingest, "MOST_SERIES", 1)
    ingest_batch(site.database, [replace(site.camera, pipeline="back").learned(seq=1)], rules=INGEST, now=site.now)
    with site.database.reading() as tx:
        assert [one.pipeline for one in drift_store.list_series(tx, T0)] == ["front"]
    assert site.actions()[-1] == "drift.reference-refused"


@on_sqlite
def test_too_little_reference_data_raises_nothing_and_says_collecting(database):
    add_profile(database)
    enroll(database, "cam-1")
    camera = WatchedDevice()
    for window in camera.hours(W0, 30, shift=DARK):
        ingest_batch(database, [camera.message(window)], rules=INGEST, now=from_unix_ms(TS) + timedelta(days=2))
    drift_tick.tick(database, rules=RULES, now=from_unix_ms(TS))
    (row,) = drift_reading.device_overview(database, T0)
    assert (row.state.grade, row.state.days, row.state.threshold, row.alarm) == (Grade.COLLECTING, 1, 0.0, None)


@on_sqlite
def test_a_release_ends_the_alarm_of_the_model_version_before(site):
    site.dark()
    other = replace(site.camera, model=bytes(16))
    site.take(other.hour(W0 + 150), camera=other)
    (alarm,) = site.alarms()
    assert (alarm.state, alarm.outcome) == (AlarmState.CLEARED, AlarmEvent.RELEASED)


@on_sqlite
def test_a_shadow_is_summed_and_never_raises(site):
    site.take(*(replace(one, src=site.camera.source.SHADOW) for one in site.camera.hours(W0, 12, shift=DARK)))
    assert site.alarms() == []
