"""Labels of a pipeline correct its estimate of the days after, on both databases; whether the meaning moved is judged without them."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from simulators.sketches import W0, WatchedDevice, add_profile, counts, enroll, profile

from fleet.audit import Actor, ActorKind
from fleet.db import Database
from fleet.monitoring import accuracy, drift_labels, drift_reading, drift_references, drift_service, drift_tick
from fleet.monitoring.drift_labels import LabelDraft
from fleet.monitoring.drift_model import DAY, Trust
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_sums import moment_of
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.errors import InvalidError
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.sketches.profile import ModelProfile, TrialReference
from protocol.sketches.summary import summary

T0, CAM = DEFAULT_TENANT, DeviceId("cam-1")
#: Model versions of these tests alone: a process remembers what the profile of one is.
MODEL, OTHER = b"with-places-0001", b"with-places-0002"
ANNA = Actor(ActorKind.PERSON, "anna")
INGEST = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices), on_event=(drift_references.take_event,))
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def with_places(off: float) -> ModelProfile:
    """A release that was tried on eight places, before which estimates are off by so much to either side."""
    made = profile()
    trials = []
    for index in range(8):
        its = counts(np.random.default_rng(index), 2000)
        found = accuracy.estimate(made, its)
        three = (found["doc"], found["atc"], found["cbpe"])
        truth = (min(three) + max(three)) / 2 + (off if index % 2 else -off)
        where = tuple(np.nan_to_num(summary(its, made.grid)).astype(np.float32).tolist())
        trials.append(TrialReference(f"place {index}", "", 0, 2000, truth, three, where))
    return replace(made, accuracy=replace(made.accuracy, trials=tuple(trials)))


@pytest.fixture
def watched(database: Database) -> Database:
    """Two days of one camera; the release knows places that differ by four points."""
    add_profile(database, with_places(0.04), model=MODEL)
    enroll(database, CAM)
    camera = WatchedDevice(device=CAM, seed=1, model=MODEL)
    batch = [camera.message(window) for window in camera.hours(W0, 48)]
    now = moment_of(W0 + 2 * DAY)
    ingest_batch(database, batch, rules=INGEST, now=now)
    while drift_tick.tick(database, rules=DriftRules(), now=now):
        pass
    return database


def label(database: Database, right: int, labels: int, *, day: int = 0, origin: str = "random") -> None:
    start = moment_of(W0 + day * DAY)
    drafts = [
        LabelDraft(
            f"{origin}-{day}-{labels}-{index}", CAM, "front", index < right, start + timedelta(minutes=1400 * index / labels), origin=origin
        )
        for index in range(labels)
    ]
    drift_labels.add_labels(database, tenant=T0, labels=drafts, by=ANNA, now=moment_of(W0 + 2 * DAY))


def second_day(database: Database):
    return drift_reading.accuracy_range(database, T0, CAM, "front", since=moment_of(W0 + DAY), until=moment_of(W0 + 2 * DAY))


def test_what_labels_said_of_one_day_corrects_the_estimate_of_the_next_and_makes_it_sure(watched):
    before = second_day(watched)
    assert "labels" not in before.estimates
    assert before.trust is Trust.NOT_TRUSTED
    share = round(100 * (before.estimates["places"] - 0.05))
    label(watched, 2 * share, 200)
    some = second_day(watched)
    assert some.estimates["places"] == before.estimates["places"]
    assert -0.05 < some.estimates["labels"] - some.estimates["places"] < -0.02
    assert some.low < some.estimates["labels"] < some.high
    assert some.high - some.low < 0.8 * (before.high - before.low)
    label(watched, 8 * share, 800)
    more = second_day(watched)
    assert -0.055 < more.estimates["labels"] - before.estimates["places"] < some.estimates["labels"] - before.estimates["places"]
    assert more.trust is Trust.TRUSTED
    assert more.reason.endswith("By 1000 labels of the last days estimates are 4% too high here; that is corrected.")


@on_sqlite
def test_labels_that_were_not_drawn_at_random_correct_nothing(watched):
    before = second_day(watched)
    for origin in ("uncertain", "bigger-model"):
        label(watched, 150, 200, origin=origin)
    assert second_day(watched).estimates == before.estimates


@on_sqlite
def test_labels_of_a_day_that_nothing_was_counted_on_correct_nothing(watched):
    before = second_day(watched)
    label(watched, 160, 200, day=-3)
    after = second_day(watched)
    assert after.estimates == before.estimates
    assert after.measured[0].labels == 200


@on_sqlite
def test_a_label_of_an_answer_that_was_not_given_yet_is_refused_and_nothing_is_kept(watched):
    now = moment_of(W0 + 2 * DAY)
    drafts = [LabelDraft(f"l{minutes}", CAM, "front", True, now + timedelta(minutes=minutes)) for minutes in (0, 9, 11)]
    with pytest.raises(InvalidError, match="A label of an answer at "):
        drift_labels.add_labels(watched, tenant=T0, labels=drafts, by=ANNA, now=now)
    assert drift_reading.measured_accuracy(watched, T0, CAM, "front", now=now)[0].labels == 0
    assert drift_labels.add_labels(watched, tenant=T0, labels=drafts[:2], by=ANNA, now=now) == 2


@on_sqlite
def test_labels_of_another_model_version_correct_nothing(watched):
    before = second_day(watched)
    label(watched, 160, 200)
    add_profile(watched, with_places(0.04), model=OTHER)
    camera = WatchedDevice(device=CAM, seed=1, model=OTHER)
    now = moment_of(W0 + 2 * DAY)
    ingest_batch(watched, [camera.message(one) for one in camera.hours(W0 + 2 * DAY, 24)], rules=INGEST, now=now + timedelta(days=1))
    while drift_tick.tick(watched, rules=DriftRules(), now=now + timedelta(days=1)):
        pass
    after = drift_reading.accuracy_range(watched, T0, CAM, "front", since=now, until=now + timedelta(days=1))
    assert "labels" not in after.estimates
    assert after.estimates["places"] == pytest.approx(before.estimates["places"], abs=0.02)


@on_sqlite
def test_whether_the_meaning_moved_is_judged_by_what_is_expected_without_labels(watched):
    label(watched, 760, 1000)  # an estimate that followed them would leave nothing to be surprised of
    (alarm,) = drift_service.list_alarms(watched, T0)
    assert alarm.cause == "concept"
    assert second_day(watched).trust is Trust.NOT_TRUSTED
