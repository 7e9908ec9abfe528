"""Sketches are stored once each, whatever comes twice, late, out of order or malformed: on SQLite and PostgreSQL."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import cache

import cbor2
import numpy as np
import pytest
from simulators.messages import TS, event, incoming
from simulators.sketches import MODEL, W0, SketchDevice, WatchedDevice, add_profile, counts, enroll, profile
from waiting import wait_until

from fleet import audit
from fleet.bus import Incoming
from fleet.db import Database
from fleet.monitoring import drift_alarms, drift_ingest, drift_learning, drift_references, drift_store, quarantine_store, store
from fleet.monitoring.drift_tables import Quarantined
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.clock import from_unix_ms
from protocol.ids import DEFAULT_TENANT
from protocol.sketches.codec import encode
from protocol.topics import parse as parse_topic

T0 = DEFAULT_TENANT
NOW = from_unix_ms(TS) + timedelta(hours=12)
RULES = IngestRules(is_enrolled=lambda _tx, _tenant, devices: {one for one in devices if one.startswith("cam-")})


def put(database: Database, *batch: Incoming, now=NOW):
    return ingest_batch(database, batch, rules=RULES, now=now)


def found(database: Database) -> dict[str, int]:
    with database.reading() as tx:
        return drift_store.count_windows(tx, T0)


def stored(database: Database, pipeline="front"):
    with database.reading() as tx:
        (series,) = drift_store.list_series(tx, T0, pipeline=pipeline, src=None)
        return series, drift_store.list_windows(tx, T0, series.series_key, start=0, end=1 << 40)


def reasons(database: Database) -> list[str]:
    with database.reading() as tx:
        return [letter.reason.split(":")[0] for letter in store.list_dead_letters(tx, T0)]


def keys(outcome) -> list[tuple[str, str, int, int]]:
    return [key for _, _, ack in outcome.acks for key in ack.sketch]


@pytest.fixture
def known(database: Database) -> Database:
    """A server that knows the release."""
    add_profile(database)
    return database


def test_windows_are_stored_once_in_whatever_order_and_how_often_they_come(known):
    camera = SketchDevice()
    sent = [camera.hour(W0 + 6 * hour) for hour in range(8)]
    sent += [replace(window, rev=1, counts=counts(camera.rng, 50)) for window in sent[:3]]
    copies = [camera.message(window) for window in sent] * 3
    random.Random(5).shuffle(copies)  # noqa: S311 - an order, no secret
    while copies:
        put(known, *copies[:5])
        copies = copies[5:]
    series, windows = stored(known)
    assert [(one.w0, one.rev) for one in windows] == [(W0 + 6 * hour, int(hour < 3)) for hour in range(8)]
    assert [one.body for one in windows] == [encode(one) for one in [*sent[8:], *sent[3:8]]]
    assert (series.dirty_from, series.next_w0, series.conflicts, series.overlaps) == (W0, W0 + 48, 0, 0)


def test_a_window_is_acknowledged_by_its_key_after_the_commit_also_when_it_comes_again(known):
    camera = SketchDevice()
    first, second = camera.hour(W0), camera.hour(W0, rev=3)
    assert keys(put(known, camera.message(first))) == [("front", f"{W0}-6", 0, 0)]
    assert keys(put(known, camera.message(second), camera.message(first))) == [("front", f"{W0}-6", 0, 3), ("front", f"{W0}-6", 0, 0)]


def test_the_same_revision_with_other_bytes_keeps_the_first_and_counts_a_conflict(known):
    camera = SketchDevice()
    first, other = camera.hour(W0), camera.hour(W0)
    put(known, camera.message(first))
    put(known, camera.message(other))
    series, windows = stored(known)
    assert windows[0].body == encode(first)
    assert series.conflicts == 1


def test_windows_that_overlap_are_put_aside_and_counted_once(known):
    camera = SketchDevice()
    put(known, camera.message(camera.hour(W0)))
    other = camera.message(camera.hour(W0 + 3))
    for _ in range(2):
        assert keys(put(known, other)) == [("front", f"{W0 + 3}-6", 0, 0)]
    assert found(known) == {"windows": 1, "quarantined": 1, "conflicts": 0, "overlaps": 1}


def test_evidence_of_one_sub_window_may_lie_inside_its_hour(known):
    camera = SketchDevice()
    put(known, camera.message(camera.sub_window(W0 + 2)))
    put(known, camera.message(camera.hour(W0)))
    put(known, camera.message(camera.sub_window(W0 + 3)))
    assert found(known) == {"windows": 3, "quarantined": 0, "conflicts": 0, "overlaps": 0}


def test_the_shadow_and_another_pipeline_have_windows_of_their_own(known):
    camera = SketchDevice()
    windows = [camera.hour(W0), replace(camera.hour(W0), src=camera.source.SHADOW), replace(camera.hour(W0), pipeline="back")]
    put(known, *map(camera.message, windows))
    assert found(known) == {"windows": 3, "quarantined": 0, "conflicts": 0, "overlaps": 0}


def test_windows_of_an_unknown_grid_wait_for_their_release(database):
    camera = SketchDevice()
    outcome = put(database, *(camera.message(camera.hour(W0 + 6 * hour)) for hour in range(3)))
    assert len(keys(outcome)) == 3
    assert found(database)["quarantined"] == 3
    add_profile(database)
    with database.transaction() as tx:
        assert drift_ingest.release_quarantine(tx, T0, profile().grid.grid_id.hex(), now=NOW + timedelta(hours=70)) == 3
    assert found(database) == {"windows": 3, "quarantined": 0, "conflicts": 0, "overlaps": 0}


def test_a_grid_of_another_tenant_is_unknown(database):
    add_profile(database, tenant="acme")
    camera = SketchDevice()
    put(database, camera.message(camera.hour(W0)))
    assert found(database)["quarantined"] == 1


def test_what_waited_for_72_hours_becomes_a_dead_letter(database):
    camera = SketchDevice()
    put(database, camera.message(camera.hour(W0)))
    with database.transaction() as tx:
        assert drift_ingest.expire_quarantine(tx, now=NOW + timedelta(hours=71)) == 0
        assert drift_ingest.expire_quarantine(tx, now=NOW + timedelta(hours=73)) == 1
    assert found(database)["quarantined"] == 0
    assert reasons(database) == ["unknown-grid"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_waits_for_a_grid_that_is_known_by_now_is_let_out_in_portions(database, monkeypatch):
    monkeypatch.setattr(drift_ingest, "RELEASED", 2)
    monkeypatch.setattr(drift_learning, "RELEASED", 2)
    camera = SketchDevice()
    put(database, *(camera.message(camera.hour(W0 + 6 * hour)) for hour in range(5)))
    assert drift_learning.let_out(database, T0, now=NOW) == 0
    add_profile(database)
    assert drift_learning.let_out(database, T0, now=NOW) == 5
    assert found(database) == {"windows": 5, "quarantined": 0, "conflicts": 0, "overlaps": 0}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_device_has_so_many_series_at_most_and_those_it_has_go_on(known, monkeypatch):
    monkeypatch.setattr(drift_ingest, "MOST_SERIES", 2)
    camera = SketchDevice()
    of = {name: replace(camera, pipeline=name) for name in ("back", "front", "side")}
    put(known, *(one.message(one.hour(W0)) for one in of.values()))
    outcome = put(known, of["front"].message(of["front"].hour(W0 + 6)), of["side"].message(of["side"].hour(W0 + 6)))
    assert len(keys(outcome)) == 2  # acknowledged, or the device would send it for ever
    assert reasons(known) == ["too-many"] * 2
    with known.reading() as tx:
        assert sorted(one.pipeline for one in drift_store.list_series(tx, T0)) == ["back", "front"]
    put(known, of["side"].message(of["side"].hour(W0 + 61 * 144)), now=NOW + timedelta(days=61))
    assert found(known)["windows"] == 4


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_so_many_windows_of_a_device_are_put_aside_at_most(known, monkeypatch):
    monkeypatch.setattr(drift_ingest, "MOST_ASIDE", 2)
    camera = SketchDevice()
    stranger = replace(camera, grid=replace(camera.grid, made_at_ms=camera.grid.made_at_ms + 1))
    put(known, camera.message(camera.hour(W0)))
    put(known, camera.message(camera.hour(W0 + 3)), *(stranger.message(stranger.hour(W0 + 6 * hour)) for hour in range(3)))
    put(known, camera.message(camera.hour(W0 - 3)))
    assert found(known) == {"windows": 1, "quarantined": 2, "conflicts": 0, "overlaps": 0}
    assert reasons(known) == ["too-many"] * 3


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("days", "codes"), [(59, []), (61, ["too-old"])])
def test_a_window_older_than_devices_keep_is_refused(known, days, codes):
    camera = SketchDevice()
    put(known, camera.message(camera.hour(W0)), now=NOW + timedelta(days=days))
    assert reasons(known) == codes
    assert found(known)["windows"] == int(not codes)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_windows_that_wait_longer_hold_up_none_whose_time_is_over(database):
    camera = SketchDevice()
    waits, over = camera.hour(W0), camera.hour(W0 + 6)
    with database.transaction() as tx:
        for window, since, days in ((waits, NOW - timedelta(days=5), 14), (over, NOW - timedelta(days=4), 3)):
            sketch = drift_ingest.read_sketch(parse_topic(camera.message(window).topic), camera.device, encode(window))
            aside = Quarantined(sketch.series, sketch.window, "overlap", since, since + timedelta(days=days))
            assert quarantine_store.quarantine(tx, T0, aside)
        assert [one.window.w0 for _, one in quarantine_store.take_expired(tx, now=NOW, limit=1)] == [W0 + 6]
        assert quarantine_store.take_expired(tx, now=NOW, limit=1) == []


def document(window) -> dict:
    return cbor2.loads(encode(window))


def bent(camera: SketchDevice, window, **keys_) -> Incoming:
    """The window with other values under these keys ("k7"), under its own topic."""
    content = document(window) | {int(key[1:]): value for key, value in keys_.items()}
    topic = f"mooring/1/t0/d/{camera.device}/sketch/{content[17]}/{content[4]}-{content[5]}"
    return incoming(topic, cbor2.dumps(content, canonical=True))


@cache
def bad_messages() -> dict[str, tuple[str, Incoming]]:
    camera = SketchDevice()
    window = camera.hour(W0)
    cells = document(window)[10]
    far = SketchDevice().hour(W0 + 12 * 6 + 2)
    return {
        "another version": ("unknown-version", bent(camera, window, k0=2)),
        "negative rows": ("malformed", bent(camera, window, k7=-1)),
        "rows beyond 53 bits": ("malformed", bent(camera, window, k7=1 << 60)),
        "an overflowing count": ("leb128", bent(camera, window, k10=b"\xff" * 9 + b"\x01" + cells[1:])),
        "cells cut off": ("length", bent(camera, window, k10=cells[:-3])),
        "cells that do not sum to the rows": ("rows-mismatch", bent(camera, window, k7=document(window)[7] - 1)),
        "trailing bytes": ("malformed", replace(camera.message(window), payload=encode(window) + b"\x00")),
        "no CBOR": ("malformed", replace(camera.message(window), payload=b"\xff\x00nonsense")),
        "nothing": ("malformed", replace(camera.message(window), payload=b"")),
        "17 KiB": ("too-large", replace(camera.message(window), payload=encode(window) + bytes(17 << 10))),
        "from the future": ("future-window", camera.message(far)),
        "before its grid was made": ("before-grid", camera.message(camera.hour(W0 - 144 * 100))),
        "another topic's window": ("bad-window", replace(camera.message(window), topic="mooring/1/t0/d/cam-1/sketch/front/1-6")),
        "nsub 0": ("bad-window", bent(camera, window, k5=0)),
        "nsub 145": ("bad-window", bent(camera, window, k5=145)),
        "NaN as infinity": ("bad-scores", bent(camera, window, k14=np.full(6, np.inf, "<f4").tobytes())),
        "scores without a reference": ("bad-scores", bent(camera, window, k14=np.full(6, 1.0, "<f4").tobytes())),
        "moments that contradict": ("bad-moments", bent(camera, window, k11=bytes([255, 1] * 20))),
    }


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("case", bad_messages())
def test_a_malformed_sketch_becomes_a_dead_letter_with_a_code_and_holds_up_nobody(known, case):
    code, message = bad_messages()[case]
    outcome = put(known, message, event("cam-1", 0), SketchDevice(device="cam-2").message(SketchDevice().hour(W0)))
    assert reasons(known) == [code]
    assert (outcome.accepted, outcome.rejected) == (2, 1)
    assert found(known)["windows"] == 1


def test_what_is_refused_and_has_a_key_is_acknowledged_or_the_device_would_send_it_for_ever(known):
    code, message = bad_messages()["cells that do not sum to the rows"]
    assert keys(put(known, message)) == [("front", f"{W0}-6", 0, 0)]
    assert code == "rows-mismatch"


def test_a_stranger_stores_nothing_and_hears_nothing(known):
    camera = SketchDevice(device="stranger")
    outcome = put(known, camera.message(camera.hour(W0)))
    assert (outcome.acks, outcome.rejected, found(known)["windows"]) == ((), 1, 0)


def test_unknown_keys_are_ignored(known):
    camera = SketchDevice()
    window = camera.hour(W0)
    assert put(known, bent(camera, window, k99=b"later")).accepted == 1


def test_a_window_ten_minutes_ahead_is_taken(known):
    camera = SketchDevice()
    assert put(known, camera.message(camera.hour(W0 + 73)), now=NOW).accepted == 1
    assert MODEL.hex() == stored(known)[0].model


def test_many_windows_are_acknowledged_in_several_messages(known):
    camera = SketchDevice()
    made = counts(camera.rng)
    batch = [camera.message(camera.sub_window(W0 - index, made)) for index in range(600)]
    outcome = put(known, *batch)
    assert [len(ack.sketch) for _, _, ack in outcome.acks] == [500, 100]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_batch_with_a_reference_and_windows_waits_for_who_judges_and_never_the_other_way_round(database):
    """Who judges a series holds it and then writes to the audit log: a batch that holds the log and waits for the series is a deadlock."""
    add_profile(database)
    enroll(database, "cam-1", "cam-2")
    camera, other = WatchedDevice(), WatchedDevice(device="cam-2")
    rules = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices), on_event=(drift_references.take_event,))
    ingest_batch(database, [camera.message(camera.hour(W0))], rules=rules, now=NOW)
    batch = [other.learned(), camera.message(camera.hour(W0 + 6))]
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as tx:
            (row,) = drift_store.list_series(tx, T0, is_held=True)
            done = pool.submit(ingest_batch, database, batch, rules=rules, now=NOW)
            wait_until(lambda: tx.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar_one() > 0)
            audit.append(tx, tenant=T0, actor=drift_alarms.DETECTOR, action="alarm.raised", subject=f"device/{row.device}", now=NOW)
        assert done.result(timeout=120).rejected == 0
    with database.reading() as tx:
        assert {one.device for one in drift_store.list_series(tx, T0)} == {"cam-1", "cam-2"}
        assert [one.action for one in audit.list_entries(tx, T0, limit=2)] == ["drift.reference-stored", "alarm.raised"]
