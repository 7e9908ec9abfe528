"""Drift of many devices: groups with a reference of their own, peers, budgets, the server's own check, labels; profiles of releases."""

import hashlib
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from simulators.messages import TS, incoming
from simulators.messages import body as message_body
from simulators.sketches import MODEL, W0, WatchedDevice, add_profile, enroll, profile

from fleet import audit
from fleet.audit import Actor, ActorKind
from fleet.blobs import open_blobs
from fleet.db import Database
from fleet.devices import store as device_store
from fleet.devices import twins
from fleet.devices.model import DeviceFilter
from fleet.monitoring import (
    alarm_store,
    drift_budget,
    drift_group_store,
    drift_judging,
    drift_labels,
    drift_learning,
    drift_reading,
    drift_references,
    drift_service,
    drift_store,
    drift_tick,
    reference_store,
)
from fleet.monitoring.drift_labels import LabelDraft
from fleet.monitoring.drift_model import AlarmEvent, AlarmState, Cause, Check, Grade, ReferenceSource, SubjectKind, Trust
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_sums import moment_of
from fleet.monitoring.drift_tables import GroupHour, WindowRow
from fleet.monitoring.ingest import IngestRules, ingest_batch
from fleet.registry import store as registry_store
from fleet.registry.model import FileRef, Release, ReleaseState, Variant
from protocol.canonical import digest_of
from protocol.clock import from_unix_ms
from protocol.errors import InvalidError, NotFoundError
from protocol.ids import DEFAULT_TENANT, DeviceId, DeviceTypeName, Digest, LineName, ReleaseVersion
from protocol.sketches.profile import encode_profile
from protocol.sketches.summary import summarizer

T0 = DEFAULT_TENANT
ANNA = Actor(ActorKind.PERSON, "anna")
INGEST = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices), on_event=(drift_references.take_event,))
NAMES = [f"cam-{index}" for index in range(1, 5)]
START = from_unix_ms(TS)


def send(database: Database, cameras, windows_of, *, now) -> None:
    batch = [camera.message(window) for camera in cameras for window in windows_of(camera)]
    ingest_batch(database, batch, rules=INGEST, now=now)


def settle(database: Database, *, now, rules: DriftRules = DriftRules()) -> None:  # noqa: B008 - a frozen value
    while drift_tick.tick(database, rules=rules, now=now):
        pass


#: What is the same on both databases by construction is tried on one.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def cameras(database: Database) -> list[WatchedDevice]:
    add_profile(database)
    enroll(database, *NAMES)
    made = [WatchedDevice(device=name, seed=index) for index, name in enumerate(NAMES)]
    ingest_batch(database, [camera.learned() for camera in made], rules=INGEST, now=START)
    return made


def group_of(database: Database):
    with database.reading() as tx:
        (group,) = drift_group_store.list_groups(tx, T0)
    return group


def with_history(database: Database, cameras) -> None:
    """The group as it is after 28 days of hours in which members shared their weather."""
    send(database, cameras, lambda camera: camera.hours(W0, 1), now=moment_of(W0 + 6))
    settle(database, now=moment_of(W0 + 6))
    group, rng, d = group_of(database), np.random.default_rng(9), summarizer(profile().grid).dimensions
    hours = []
    for w0 in range(W0 - 28 * 144, W0, 6):
        shared, own = rng.normal(0, 0.05, d), rng.normal(0, 0.08, (4, d))
        apart = own - (own.sum(axis=0) - own) / 3
        hours.append(GroupHour(w0, 4, (shared + own.mean(axis=0)).astype("<f8").tobytes(), apart.astype("<f8").tobytes()))
    with database.transaction() as tx:
        drift_group_store.put_group_hours(tx, T0, group.group_key, hours)


@on_sqlite
def test_hours_of_members_become_sums_and_a_reference_of_the_group(database, cameras):
    with_history(database, cameras)
    now = moment_of(W0 + 60)
    send(database, cameras, lambda camera: camera.hours(W0 + 6, 8), now=now)
    settle(database, now=now)
    settle(database, now=now + timedelta(minutes=11))
    group = group_of(database)
    assert (group.kind, group.name, group.members, group.grade) == (SubjectKind.GROUP, "default/linux-x86-64", 4, Grade.CALIBRATED)
    with database.reading() as tx:
        hours = drift_store.list_sums(tx, T0, [group.group_key], "hour", start=W0, end=W0 + 60)[group.group_key]
        days = drift_store.list_sums(tx, T0, [group.group_key], "day", start=W0, end=W0 + 60)[group.group_key]
    assert [row.w0 for row in hours] == list(range(W0, W0 + 54, 6))
    grid = profile().grid
    from fleet.monitoring.drift_sums import decode_counts

    assert decode_counts(days[0].body, grid).rows == 9 * 6 * 40 * 4


def test_a_shift_that_no_member_shows_alone_is_found_in_all_of_them_together(database, cameras):
    with_history(database, cameras)
    small = (-0.35, 0.0, 0.0, 0.0)
    now = moment_of(W0 + 300)
    send(database, cameras, lambda camera: camera.hours(W0 + 6, 48, shift=small), now=now)
    settle(database, now=now)
    settle(database, now=now + timedelta(minutes=11))
    found = drift_service.list_alarms(database, T0)
    (alarm,) = [one for one in found if one.subject.kind is SubjectKind.GROUP]
    assert (alarm.cause, alarm.rate) == (Cause.INPUT, 1.0)
    assert alarm.features[0].feature == "image.brightness"
    assert "darker" in alarm.words
    assert " on 4 devices (linux-x86-64) of site default, seen in the mean of " in alarm.words
    assert set(alarm.devices) == set(NAMES)
    assert all(one.parent == alarm.alarm for one in found if one.subject.kind is SubjectKind.DEVICE)
    assert [one.alarm for one in drift_service.list_alarms(database, T0, device=DeviceId("cam-2"))].count(alarm.alarm) == 1


@on_sqlite
def test_one_member_that_is_far_off_for_some_hours_is_no_alarm_of_its_group(database, cameras):
    with_history(database, cameras)
    now = moment_of(W0 + 60)
    odd = {"cam-3": (-6.0, 0.0, 0.0, 0.0)}
    send(database, cameras, lambda camera: camera.hours(W0 + 6, 3, shift=odd.get(camera.device, (0.0,) * 4)), now=now)
    settle(database, now=now)
    settle(database, now=now + timedelta(minutes=11))
    group = group_of(database)
    assert group.judged_until == W0 + 24
    assert 0 < group.statistic < group.threshold
    assert not [one for one in drift_service.list_alarms(database, T0) if one.subject.kind is SubjectKind.GROUP]


@on_sqlite
def test_a_device_unlike_its_peers_is_shown_and_raises_nothing_by_that(database, cameras):
    with_history(database, cameras)
    now = moment_of(W0 + 20)
    send(database, cameras, lambda camera: camera.hours(W0 + 6, 1), now=now)
    settle(database, now=now + timedelta(minutes=11))
    odd = {"cam-3": (0.0, -0.8, 0.0, 0.0)}
    send(database, cameras, lambda camera: camera.hours(W0 + 12, 1, shift=odd.get(camera.device, (0.0,) * 4)), now=now)
    settle(database, now=now)
    settle(database, now=now + timedelta(minutes=30))
    rows = drift_reading.device_overview(database, T0)
    peers = {row.state.device: row.state.peer_p for row in rows}
    assert min(peers, key=lambda name: peers[name]) == "cam-3"
    assert all(one.subject.kind is SubjectKind.DEVICE for one in drift_service.list_alarms(database, T0))


@on_sqlite
def test_of_two_releases_that_share_an_hour_each_pipeline_shows_the_newer_one(database, cameras):
    newer = hashlib.sha256(b"newer model").digest()[:16]
    add_profile(database, model=newer)
    send(database, cameras, lambda camera: camera.hours(W0, 2), now=moment_of(W0 + 12))
    for camera in cameras:
        camera.model = newer
    # the hour in which the release came has windows of both, and their revisions differ
    send(database, cameras, lambda camera: [camera.hour(W0 + 6, rev=1)], now=moment_of(W0 + 12))
    settle(database, now=moment_of(W0 + 12))
    rows = drift_reading.device_overview(database, T0)
    assert {row.state.device: row.state.model for row in rows} == dict.fromkeys(NAMES, newer.hex())
    assert len(rows) == len(NAMES)
    with database.reading() as tx:
        current = [drift_store.find_current(tx, T0, DeviceId(name), "front") for name in NAMES]
    assert {row.model for row in current if row is not None} == {newer.hex()}
    # what the device says of itself counts more than which began later
    say = {"pipelines": [{"pipeline": "front", "line": "animals", "model": MODEL.hex(), "grade": "calibrated"}]}
    said = incoming("mooring/1/t0/d/cam-1/drift", message_body(9, **say))
    ingest_batch(database, [said], rules=INGEST, now=moment_of(W0 + 12))
    rows = drift_reading.device_overview(database, T0)
    assert {row.state.model for row in rows if row.state.device == "cam-1"} == {MODEL.hex()}
    with database.reading() as tx:  # whoever asks for one device sees the release that the overview shows
        (series, _) = drift_reading.current_series(tx, T0, DeviceId("cam-1"), "front")
    assert series.model == MODEL.hex()


@on_sqlite
def test_too_few_members_are_no_group(database):
    add_profile(database)
    enroll(database, "cam-1")
    camera = WatchedDevice()
    ingest_batch(database, [camera.learned(), *map(camera.message, camera.hours(W0, 2))], rules=INGEST, now=moment_of(W0 + 12))
    settle(database, now=moment_of(W0 + 12))
    settle(database, now=moment_of(W0 + 20))
    group = group_of(database)
    assert (group.grade, group.score) == (Grade.COLLECTING, None)


@on_sqlite
def test_the_server_judges_hours_by_a_reference_of_its_own_where_the_twin_says_so(database):
    add_profile(database)
    enroll(database, "cam-1")
    camera = WatchedDevice()

    def by_server(patch):
        return patch.model_copy(update={"check": "server"})

    with database.transaction() as tx:
        twins.change_drift(tx, T0, DeviceId("cam-1"), by_server, now=START)
    first = W0 - 14 * 144
    now = moment_of(W0 + 6)
    for start in range(0, 14 * 24, 48):
        send(database, [camera], lambda camera, start=start: camera.hours(first + 6 * start, 48), now=now)
    settle(database, now=now)
    (row,) = drift_reading.device_overview(database, T0)
    assert (row.state.check, row.state.grade, row.state.days) == (Check.SERVER, Grade.PROVISIONAL, 14)
    send(database, [camera], lambda camera: camera.hours(W0, 24, shift=(-3.0, 0.0, 0.0, 0.0)), now=moment_of(W0 + 144))
    settle(database, now=moment_of(W0 + 144))
    (alarm,) = drift_service.list_alarms(database, T0)
    assert (alarm.grade, alarm.state) == (Grade.PROVISIONAL, AlarmState.RAISED)
    assert "darker" in alarm.words
    (reference,) = drift_references.list_references(database, T0, DeviceId("cam-1"), "front")
    assert reference.source == "server"


def test_thresholds_follow_the_size_of_the_fleet_and_are_audited(database, cameras):
    rules = DriftRules(fleet_rate=2.0)
    send(database, cameras, lambda camera: camera.hours(W0, 1), now=moment_of(W0 + 6))
    settle(database, now=moment_of(W0 + 6), rules=rules)
    with database.transaction() as tx:
        assert drift_budget.review_budget(tx, T0, rules=rules, now=START)
        assert not drift_budget.review_budget(tx, T0, rules=rules, now=START)
        assert alarm_store.find_budget(tx, T0) == 4
    with database.reading() as tx:
        entry = next(one for one in audit.list_entries(tx, T0) if one.action == "drift.thresholds-decided")
        assert device_store.get_twin(tx, T0, DeviceId("cam-1")).config.drift.false_alarms_per_year == 0.5
    assert (entry.detail["devices"], entry.detail["rate_per_device_year"]) == (4, 0.5)
    send(database, cameras, lambda camera: camera.hours(W0 + 6, 1), now=moment_of(W0 + 12))
    settle(database, now=moment_of(W0 + 12), rules=rules)
    assert {row.state.threshold for row in drift_reading.device_overview(database, T0)} == {105_120.0}
    kept = drift_service.false_alarms(database, T0, since=START, now=moment_of(W0 + 144), rules=rules)
    assert kept.rate == 0.5, "the promise is compared with a device's part of what the fleet is allowed"


@on_sqlite
def test_devices_are_told_the_rate_that_the_operator_asks_for_and_what_somebody_set_for_one_device_stays(database, cameras):
    def asked() -> list[float | None]:
        with database.reading() as tx:
            return [device_store.get_twin(tx, T0, DeviceId(name)).config.drift.false_alarms_per_year for name in NAMES]

    def review(rules: DriftRules) -> bool:
        with database.transaction() as tx:
            return drift_budget.review_budget(tx, T0, rules=rules, now=START)

    with database.transaction() as tx:
        twins.change_drift(tx, T0, DeviceId("cam-4"), lambda patch: patch.model_copy(update={"false_alarms_per_year": 5.0}), now=START)
    few = DriftRules(rate=0.2)
    send(database, cameras[:3], lambda camera: camera.hours(W0, 1), now=moment_of(W0 + 6))
    settle(database, now=moment_of(W0 + 6))
    review(DriftRules())
    assert asked() == [None, None, None, 5.0]  # the agent's own default
    assert review(few)
    assert asked() == [0.2, 0.2, 0.2, 5.0]
    assert not review(few)
    send(database, cameras[3:], lambda camera: camera.hours(W0, 1), now=moment_of(W0 + 6))
    settle(database, now=moment_of(W0 + 6), rules=few)
    assert asked() == [0.2, 0.2, 0.2, 5.0]
    assert review(DriftRules(rate=0.5))
    assert asked() == [0.5, 0.5, 0.5, 5.0]
    assert review(DriftRules(fleet_rate=4.0))
    assert set(asked()) == {1.0}
    assert review(DriftRules(rate=0.5, fleet_rate=2000.0))
    assert review(DriftRules())
    assert asked() == [None] * 4


@on_sqlite
def test_a_device_that_is_watched_since_the_last_decision_is_told_the_rate(database, cameras):
    few = DriftRules(rate=0.2)
    send(database, cameras[:3], lambda camera: camera.hours(W0, 1), now=moment_of(W0 + 6))
    settle(database, now=moment_of(W0 + 6), rules=few)
    with database.transaction() as tx:
        drift_budget.review_budget(tx, T0, rules=few, now=START)
    send(database, cameras[3:], lambda camera: camera.hours(W0, 1), now=moment_of(W0 + 6))
    settle(database, now=moment_of(W0 + 6), rules=few)
    with database.reading() as tx:
        assert device_store.get_twin(tx, T0, DeviceId("cam-4")).config.drift.false_alarms_per_year == 0.2


@on_sqlite
def test_windows_labels_and_hours_past_their_time_are_deleted_and_sums_of_days_stay(database, cameras):
    with_history(database, cameras)
    drift_labels.add_labels(database, tenant=T0, labels=labels(3, 0), by=ANNA, now=START)
    group = group_of(database)

    def kept() -> tuple[int, int, int, int, int]:
        with database.reading() as tx:
            hours = len(drift_group_store.list_group_hours(tx, T0, group.group_key, start=0, end=1 << 40))
            key = drift_store.list_series(tx, T0)[0].series_key
            of_hours, of_days = (
                drift_store.list_sums(tx, T0, [one], level, start=0, end=1 << 40)
                for one, level in ((group.group_key, "hour"), (key, "day"))
            )
            right = alarm_store.count_labels(tx, T0, model=MODEL.hex(), origin="random")[""][0]
            return drift_store.count_windows(tx, T0)["windows"], hours, len(of_hours), len(of_days), right

    settle(database, now=moment_of(W0 + 20))
    assert drift_tick.prune(database, now=moment_of(W0 + 20)) == 0
    before = kept()
    assert before == (4, 28 * 24 + 1, 1, 1, 3)
    assert drift_tick.prune(database, now=moment_of(W0 + 62 * 144)) == before[1]
    assert kept() == (4, 0, 1, 1, 3)
    assert drift_tick.prune(database, now=moment_of(W0 + 402 * 144)) == 4 + 1 + 3
    assert kept() == (0, 0, 0, 1, 0)


def test_the_devices_that_drift_come_first_and_are_listed(database, cameras):
    dark = (-3.0, -3.0, 0.0, 0.0)
    send(
        database,
        cameras,
        lambda camera: camera.hours(W0, 72, shift=dark if camera.device == "cam-3" else (0.0,) * 4),
        now=moment_of(W0 + 432),
    )
    send(database, cameras[2:3], lambda camera: camera.evidence(W0, shift=dark), now=moment_of(W0 + 432))
    settle(database, now=moment_of(W0 + 432))
    with database.transaction() as tx:
        drift_budget.review_order(tx, T0, rules=DriftRules())
    rows = drift_reading.device_overview(database, T0)
    assert (rows[0].state.device, [row.state.is_listed for row in rows]) == ("cam-3", [True, False, False, False])
    assert rows[0].alarm_state is AlarmState.RAISED


@on_sqlite
def test_what_is_drawn_is_the_sum_of_any_choice_of_devices(database, cameras):
    send(database, cameras, lambda camera: camera.hours(W0, 3), now=moment_of(W0 + 18))
    settle(database, now=moment_of(W0 + 18))
    span = {"since": START, "until": moment_of(W0 + 18)}
    alone = drift_reading.distributions(database, T0, DeviceId("cam-1"), "front", feature="image.brightness", **span)
    every = drift_reading.fleet_distributions(database, T0, matching=DeviceFilter(), feature="image.brightness", **span)
    assert (alone[0].rows, every[0].rows, alone[0].reference_of) == (720, 2880, "model")
    assert sum(every[0].now) == pytest.approx(1.0)
    assert len(every[0].edges) == len(every[0].now) + 1
    with pytest.raises(NotFoundError, match="no feature"):
        drift_reading.distributions(database, T0, DeviceId("cam-1"), "front", feature="x", **span)
    with pytest.raises(NotFoundError, match="sent no sketches"):
        drift_reading.distributions(database, T0, DeviceId("cam-1"), "back", **span)
    points = drift_reading.timeline(database, T0, DeviceId("cam-1"), "front", **span)
    assert [point.at for point in points] == [moment_of(W0 + index) for index in range(18)]
    assert all(0 < point.p <= 1 for point in points)


def labels(right: int, wrong: int, *, slice_: str = "", origin: str = "random", start: int = 0, device: str = "cam-1") -> list[LabelDraft]:
    made = [index < right for index in range(right + wrong)]
    return [
        LabelDraft(f"{origin}-{slice_}-{start + index}", DeviceId(device), "front", one, START, slice_, origin)
        for index, one in enumerate(made)
    ]


def test_labels_on_unchanged_pictures_raise_an_alarm_that_says_the_meaning_moved(database, cameras):
    send(database, cameras[:1], lambda camera: camera.hours(W0, 24), now=moment_of(W0 + 144))
    settle(database, now=moment_of(W0 + 144))
    act = {"tenant": T0, "by": ANNA, "now": moment_of(W0 + 144)}
    assert drift_labels.add_labels(database, labels=labels(90, 10, slice_="day"), **act) == 100
    assert drift_service.list_alarms(database, T0) == []
    assert drift_labels.add_labels(database, labels=labels(40, 60, slice_="night"), **act) == 100
    (alarm,) = drift_service.list_alarms(database, T0)
    assert (alarm.cause, alarm.features) == (Cause.CONCEPT, ())
    assert "40 of 100 right in night" in alarm.words
    assert drift_labels.add_labels(database, labels=labels(40, 60, slice_="night"), **act) == 0
    assert len(drift_service.list_alarms(database, T0)) == 1
    measured = drift_reading.measured_accuracy(database, T0, DeviceId("cam-1"), "front", now=act["now"])
    assert [(one.slice, one.right, one.labels) for one in measured] == [("", 130, 200), ("day", 90, 100), ("night", 40, 100)]
    estimated = drift_reading.accuracy_range(database, T0, DeviceId("cam-1"), "front", since=START, until=act["now"])
    assert estimated.trust is Trust.NOT_TRUSTED


@on_sqlite
def test_a_bigger_model_that_disagrees_counts_and_uncertain_frames_measure_nothing(database, cameras):
    send(database, cameras[:1], lambda camera: camera.hours(W0, 24), now=moment_of(W0 + 144))
    settle(database, now=moment_of(W0 + 144))
    act = {"tenant": T0, "by": ANNA, "now": moment_of(W0 + 144)}
    drift_labels.add_labels(database, labels=labels(0, 200, origin="uncertain"), **act)
    assert drift_service.list_alarms(database, T0) == []
    drift_labels.add_labels(database, labels=labels(50, 150, origin="bigger-model"), **act)
    (alarm,) = drift_service.list_alarms(database, T0)
    assert "by a bigger model" in alarm.words
    with pytest.raises(InvalidError, match="origin"):
        drift_labels.add_labels(database, labels=labels(1, 0, origin="guess"), **act)


@on_sqlite
def test_an_estimate_is_matched_by_a_shift_that_was_validated_at_release(database, cameras):
    dark = (-1.5, 0.0, 0.0, 0.0)
    send(
        database,
        cameras[:1],
        lambda camera: [*camera.hours(W0, 24, shift=dark), *camera.evidence(W0, 6, shift=dark)],
        now=moment_of(W0 + 144),
    )
    settle(database, now=moment_of(W0 + 144))
    span = {"since": START, "until": moment_of(W0 + 144)}
    estimated = drift_reading.accuracy_range(database, T0, DeviceId("cam-1"), "front", **span)
    assert estimated.trust is not Trust.TRUSTED
    assert drift_service.list_alarms(database, T0)[0].moves_input


@on_sqlite
def test_a_release_without_a_profile_leaves_its_windows_waiting_until_it_brings_one(database):
    enroll(database, "cam-1")
    camera = WatchedDevice()
    send(database, [camera], lambda camera: camera.hours(W0, 2), now=moment_of(W0 + 12))
    settle(database, now=moment_of(W0 + 12))
    assert drift_reading.device_overview(database, T0) == []
    with database.transaction() as tx:
        assert drift_learning.add_profile(
            tx, T0, encode_profile(profile()), model=MODEL.hex(), line="animals", version="1.0", now=moment_of(W0 + 12)
        )
    settle(database, now=moment_of(W0 + 13))
    (row,) = drift_reading.device_overview(database, T0)
    assert (row.state.grade, row.state.judged_until) == (Grade.COLLECTING, moment_of(W0 + 12))


@on_sqlite
def test_how_the_promise_was_kept_is_counted(database, cameras):
    send(database, cameras, lambda camera: camera.hours(W0, 24), now=moment_of(W0 + 144))
    settle(database, now=moment_of(W0 + 144))
    kept = drift_service.false_alarms(database, T0, since=START, now=moment_of(W0 + 144), rules=DriftRules())
    assert (kept.count, kept.alarms, kept.rate) == (0, 0, 1.0)
    assert kept.device_years == pytest.approx(4 / 365)
    assert kept.bound == pytest.approx(2.9957 / (4 / 365), rel=1e-3)


@on_sqlite
def test_a_reference_from_a_recording_is_used_and_sent_to_the_device(database):
    add_profile(database)
    enroll(database, "cam-1")
    camera = WatchedDevice()
    send(database, [camera], lambda camera: camera.hours(W0, 2), now=moment_of(W0 + 12))
    act = {
        "tenant": T0,
        "device": DeviceId("cam-1"),
        "pipeline": "front",
        "by": ANNA,
        "now": moment_of(W0 + 12),
        "source": ReferenceSource.RECORDING,
    }
    stored = drift_references.add_reference(database, body=camera.reference.encoded, reason="moved house", **act)
    settle(database, now=moment_of(W0 + 12))
    (row,) = drift_reading.device_overview(database, T0)
    assert row.state.reference_id == stored.reference_id
    with database.reading() as tx:
        assert "front" in device_store.get_twin(tx, T0, DeviceId("cam-1")).config.drift.references
    with pytest.raises(InvalidError):
        drift_references.add_reference(database, body=b"nonsense", **act)
    other = replace(camera.reference, grid_id=bytes(16))
    with pytest.raises(InvalidError, match="No release brought"):
        drift_references.add_reference(database, body=other.encoded, **act)


@on_sqlite
def test_what_cannot_be_judged_is_a_condition_of_its_device_and_the_others_go_on(database, cameras):
    send(database, cameras[:2], lambda camera: camera.hours(W0, 2), now=moment_of(W0 + 12))
    with database.transaction() as tx:
        series = next(one for one in drift_store.list_series(tx, T0) if one.device == "cam-1")
        drift_store.put_windows(tx, T0, [(series.series_key, WindowRow(W0, 6, 9, b"nonsense"))], now=START)
    settle(database, now=moment_of(W0 + 12))
    rows = {row.state.device: row.state for row in drift_reading.device_overview(database, T0)}
    assert rows["cam-1"].conditions == {"detector_failed": 600}
    assert (rows["cam-2"].judged_until, rows["cam-2"].conditions) == (moment_of(W0 + 12), {})


@on_sqlite
def test_hours_of_a_group_that_could_not_be_judged_are_judged_with_the_next_ones(database, cameras, monkeypatch):
    with_history(database, cameras)
    settle(database, now=moment_of(W0 + 8))

    def fails(*_args, **_keys):
        raise RuntimeError("out of memory")

    now = moment_of(W0 + 24)
    send(database, cameras, lambda camera: camera.hours(W0 + 6, 3), now=now)
    with monkeypatch.context() as broken:
        broken.setattr(drift_tick, "judge_group", fails)
        drift_tick.tick(database, rules=DriftRules(), now=now)
        drift_tick.tick(database, rules=DriftRules(), now=now + timedelta(minutes=11))
    assert (group_of(database).dirty_from, group_of(database).due_at) == (W0 + 6, None)
    send(database, cameras, lambda camera: camera.hours(W0 + 24, 1), now=moment_of(W0 + 30))
    settle(database, now=moment_of(W0 + 30))
    settle(database, now=moment_of(W0 + 32))
    group = group_of(database)
    assert (group.dirty_from, group.judged_until) == (None, W0 + 30)
    with database.reading() as tx:
        assert [hour.w0 for hour in drift_group_store.list_group_hours(tx, T0, group.group_key, start=W0, end=W0 + 30)] == list(
            range(W0, W0 + 30, 6)
        )


@on_sqlite
def test_an_alarm_of_a_group_is_over_when_its_devices_run_another_model_version(database, cameras):
    with_history(database, cameras)
    now = moment_of(W0 + 300)
    send(database, cameras, lambda camera: camera.hours(W0 + 6, 48, shift=(-0.35, 0.0, 0.0, 0.0)), now=now)
    settle(database, now=now)
    settle(database, now=now + timedelta(minutes=11))
    others = [replace(camera, model=bytes(16)) for camera in cameras]
    send(database, others[:3], lambda camera: [camera.hour(W0 + 294)], now=now)
    with database.transaction() as tx:
        drift_judging.end_groups(tx, T0, now=now)
    assert [one.state for one in drift_service.list_alarms(database, T0) if one.subject.kind is SubjectKind.GROUP] == [AlarmState.RAISED]
    send(database, others[3:], lambda camera: [camera.hour(W0 + 294)], now=now)
    with database.transaction() as tx:
        drift_judging.end_groups(tx, T0, now=now)
    (alarm,) = [one for one in drift_service.list_alarms(database, T0) if one.subject.kind is SubjectKind.GROUP]
    assert (alarm.state, alarm.outcome) == (AlarmState.CLEARED, AlarmEvent.RELEASED)


@on_sqlite
def test_an_alarm_of_labels_hides_none_of_windows(database, cameras):
    send(database, cameras[:1], lambda camera: camera.hours(W0, 24), now=moment_of(W0 + 144))
    settle(database, now=moment_of(W0 + 144))
    act = {"tenant": T0, "by": ANNA, "now": moment_of(W0 + 144)}
    drift_labels.add_labels(database, labels=labels(40, 160), **act)
    send(database, cameras[:1], lambda camera: camera.evidence(W0 + 144, shift=(-3.0, 0.0, 0.0, 0.0)), now=moment_of(W0 + 162))
    settle(database, now=moment_of(W0 + 162))
    assert {one.cause for one in drift_service.list_alarms(database, T0)} == {Cause.CONCEPT, Cause.INPUT}


@on_sqlite
def test_profiles_come_with_published_releases_and_one_that_is_unreadable_is_left_out(database, tmp_path):
    enroll(database, "cam-1")
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    bodies = {"1.0": encode_profile(profile()), "1.1": b"nonsense"}
    for counter, (version, body) in enumerate(bodies.items(), 1):
        digest = Digest("sha256:" + (MODEL.hex() if version == "1.0" else "ab" * 16) + "0" * 32)
        blobs.put(body)
        files = (FileRef("model.onnx", 1, digest), FileRef("profile.cbor", len(body), digest_of(body)))
        variant = Variant("onnx", "onnx", (DeviceTypeName("linux-x86-64"),), "animals.1", files)
        release = Release(
            T0, LineName("animals"), ReleaseVersion(version), counter, ReleaseState.PUBLISHED, (variant,), digest_of(b""), START, "anna", 1
        )
        with database.transaction() as tx:
            registry_store.add_release(tx, release)
    camera = WatchedDevice()
    send(database, [camera], lambda camera: camera.hours(W0, 2), now=moment_of(W0 + 12))
    for _ in range(2):
        drift_tick.keep_house(database, blobs, rules=DriftRules(), now=moment_of(W0 + 12))
    settle(database, now=moment_of(W0 + 12))
    with database.reading() as tx:
        assert reference_store.list_profiled_models(tx, T0) == {MODEL.hex()}
    (row,) = drift_reading.device_overview(database, T0)
    assert (row.state.device, row.state.judged_until) == ("cam-1", moment_of(W0 + 12))


@on_sqlite
def test_a_model_file_that_is_released_again_with_another_profile_brings_its_grid_too(database, tmp_path):
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    first = profile()
    second = replace(first, grid=replace(first.grid, made_at_ms=first.grid.made_at_ms + 1))
    for counter, body in enumerate((encode_profile(first), encode_profile(second)), 1):
        blobs.put(body)
        files = (FileRef("model.onnx", 1, Digest("sha256:" + MODEL.hex() + "0" * 32)), FileRef("profile.cbor", len(body), digest_of(body)))
        variant = Variant("onnx", "onnx", (DeviceTypeName("linux-x86-64"),), "animals.1", files)
        release = Release(
            T0,
            LineName("animals"),
            ReleaseVersion(f"1.{counter}"),
            counter,
            ReleaseState.PUBLISHED,
            (variant,),
            digest_of(b""),
            START,
            "anna",
            1,
        )
        with database.transaction() as tx:
            registry_store.add_release(tx, release)
        assert drift_learning.learn_profiles(database, blobs, T0, now=START) == 1
        assert drift_learning.learn_profiles(database, blobs, T0, now=START) == 0
    grids = {first.grid.grid_id.hex(), second.grid.grid_id.hex()}
    with database.reading() as tx:
        assert len(grids) == 2
        assert reference_store.list_known_grids(tx, T0, grids) == grids
