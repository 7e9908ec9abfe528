"""Sketches in the outbox: bytes as they were made, acknowledged by key, merged only if they never left, given up last of all measures."""

import base64
import json
import sqlite3

import numpy as np
import pytest
from grids import wide_grid
from simulators.clock import FakeClock
from simulators.drift_rows import make_grid

from agent.database.outbox import SKETCH, SketchDraft
from agent.drift.check import CheckState
from agent.drift.desk import DriftDesk
from agent.drift.references import Watched, learned_draft
from agent.drift.sending import hour_draft
from agent.drift.store import CheckRow, DriftStore, Flag, Subject
from agent.drift.windows import begin, row_of
from agent.store import Store
from protocol.errors import InvalidError
from protocol.messages import Ack, AckStream, ReferenceLearned
from protocol.sketches.codec import decode, read_head
from protocol.sketches.reference import MAX_REFERENCE_BYTES, decode_reference, fit_reference
from protocol.topics import MessageClass

GRID = make_grid()
SUBJECT = Subject("front", "a1" * 16, GRID.grid_id.hex())
W0 = 144 * 20_800


def open_store(folder, **options) -> Store:
    store = Store(folder / "outbox.db", clock=FakeClock(), **options)
    DriftDesk(store, clock=FakeClock(), device="cam-1", source="/x", has_profile=lambda _: False)
    return store


def add_hours(store, places) -> None:
    rows = DriftStore(store, FakeClock())
    rows.keep_grid(SUBJECT.grid, GRID.encoded)
    for place in places:
        row = row_of(begin(SUBJECT, GRID, W0 + 6 * place), flags=Flag.TESTABLE)
        rows.save_window(row)
        rows.send([row], hour_draft([row], GRID))


def sketches(store):
    return [row for row in store.next_batch(1000) if row.stream == SKETCH]


def windows(store):
    return [(head.w0 - W0, head.nsub) for head in map(read_head, (row.payload for row in sketches(store)))]


def test_a_sketch_leaves_as_the_very_bytes_that_went_in_after_events_and_before_telemetry(tmp_path):
    with open_store(tmp_path) as store:
        store.add("tel", ("sys",), {})
        with store.writing() as writing:
            writing.add_sketch(SketchDraft("front", "1-6", 0, lambda rev: b"\x00bytes" + bytes([rev])))
        store.add("event", (), {})
        found = store.next_batch(10)
        assert [row.stream for row in found] == ["event", "sketch", "tel"]
        assert (found[1].payload, found[1].levels, found[1].message_class) == (b"\x00bytes\x00", ("front", "1-6"), MessageClass.STORED)


def test_only_its_key_lets_a_sketch_go(tmp_path):
    with open_store(tmp_path) as store:
        add_hours(store, [0])
        store.mark_sent(*[row.id for row in sketches(store)])
        window = f"{W0}-6"
        assert store.apply_ack(Ack(epoch=store.epoch, streams={"sketch": AckStream(upto=100)})) == 0
        for wrong in (("back", window, 0, 0), ("front", "1-6", 0, 0), ("front", window, 1, 0), ("front", window, 0, 1)):
            assert store.apply_ack(Ack(epoch=store.epoch, sketch=[wrong])) == 0
        assert store.counts().unacknowledged == 1
        assert store.apply_ack(Ack(epoch="of a file before", sketch=[("front", window, 0, 0)])) == 1


def test_a_revision_is_never_given_twice_to_one_window_also_when_its_row_is_gone(tmp_path):
    with open_store(tmp_path) as store:
        for expected in range(3):
            with store.writing() as writing:
                assert writing.add_sketch(SketchDraft("front", "1-6", 0, lambda _: b"x")) == expected
            store.apply_ack(Ack(epoch="", sketch=[("front", "1-6", 0, expected)]))
        with store.writing() as writing:
            assert writing.add_sketch(SketchDraft("front", "1-6", 1, lambda _: b"x")) == 0


def test_a_sketch_too_large_for_a_packet_is_refused_with_all_that_came_with_it(tmp_path):
    with open_store(tmp_path) as store:

        def write() -> None:
            with store.writing() as writing:
                writing.execute("INSERT INTO named (name, value) VALUES ('with', 'it')")
                writing.add_sketch(SketchDraft("front", "1-6", 0, lambda _: bytes(300_000)))

        with pytest.raises(InvalidError):
            write()
        assert store.get_value("with") is None
        assert store.counts().rows == 0


def test_past_the_budget_hours_that_never_left_are_merged_and_nothing_is_lost(tmp_path):
    with open_store(tmp_path, budget_mb=0.004) as store:  # some hours
        add_hours(store, range(24))
        assert store.counts().dropped == {}
        assert sum(nsub for _, nsub in windows(store)) == 24 * 6
        assert max(nsub for _, nsub in windows(store)) > 6


def test_what_was_handed_out_once_is_never_merged_also_after_a_power_cut(tmp_path):
    with open_store(tmp_path) as store:
        add_hours(store, range(3))
        before = [row.payload for row in sketches(store)]
    with open_store(tmp_path, budget_mb=0.003) as store:
        add_hours(store, range(3, 12))
        after = [row.payload for row in sketches(store)]
        assert after[:3] == before or store.counts().dropped  # kept as they are, or given up and counted; never changed
        places = [(head.w0 - W0, head.nsub) for head in map(read_head, after)]
        assert all(a + n <= b for (a, n), (b, _) in zip(sorted(places), sorted(places)[1:], strict=False))
        assert not any(a < 18 < a + n for a, n in places)


def test_sketches_that_cannot_be_marked_as_handed_out_wait(tmp_path, monkeypatch):
    from contextlib import contextmanager

    from protocol.errors import DeviceError

    with open_store(tmp_path) as store:
        add_hours(store, [0])
        store.add("event", (), {})

        @contextmanager
        def full(**_options):
            raise DeviceError("full", code="disk-full")
            yield

        monkeypatch.setattr(store, "_transaction", full)
        assert [row.stream for row in store.next_batch(10)] == ["event"]
        monkeypatch.undo()
        assert [row.stream for row in store.next_batch(10)] == ["event", "sketch"]


def test_a_file_of_an_agent_before_drift_gets_its_tables(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {"type": "old"})
    connection = sqlite3.connect(tmp_path / "outbox.db")
    for table in ("drift_revs", "drift_grids", "drift_windows", "drift_checks", "drift_states"):
        connection.execute(f"DROP TABLE {table}")
    for column in ("handed", "key"):
        connection.execute(f"ALTER TABLE outbox DROP COLUMN {column}")
    connection.execute("DELETE FROM _sqlite_migrations WHERE name IN ('m0002_drift', 'm0003_states_of_checks')")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    with open_store(tmp_path) as store:
        add_hours(store, [0])
        assert [row.stream for row in store.next_batch(10)] == ["event", "sketch"]


def test_a_reference_is_written_when_it_changes_and_not_with_each_state(tmp_path):
    log, body = tmp_path / "outbox.db-wal", bytes(range(256)) * 400
    with open_store(tmp_path) as store:
        rows = DriftStore(store, FakeClock())
        rows.save_check(CheckRow(SUBJECT, '{"step_s": 1}', body))
        before = log.stat().st_size
        rows.save_check(CheckRow(SUBJECT, '{"step_s": 2}', body), has_new_reference=False)
        assert log.stat().st_size - before < len(body) / 4
        assert rows.checks() == [CheckRow(SUBJECT, '{"step_s": 2}', body)]
        rows.save_check(CheckRow(SUBJECT, '{"step_s": 3}', body[1:]))
        assert rows.checks() == [CheckRow(SUBJECT, '{"step_s": 3}', body[1:])]


def test_a_check_of_an_agent_before_its_states_had_a_table_goes_on(tmp_path):
    with open_store(tmp_path) as store:
        DriftStore(store, FakeClock()).save_check(CheckRow(SUBJECT, '{"step_s": 1}', b"reference"))
    connection = sqlite3.connect(tmp_path / "outbox.db")
    connection.execute("DROP TABLE drift_states")
    connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'm0003_states_of_checks'")
    connection.execute("PRAGMA user_version = 2")
    connection.commit()
    connection.close()
    with open_store(tmp_path) as store:
        assert DriftStore(store, FakeClock()).checks() == [CheckRow(SUBJECT, '{"step_s": 1}', b"reference")]


def test_a_merged_window_holds_the_sum(tmp_path):
    with open_store(tmp_path, budget_mb=0.0035) as store:
        add_hours(store, range(6))
        merged = [decode(row.payload, GRID) for row in sketches(store)]
        assert sum(one.nsub for one in merged) == 36


def test_the_largest_reference_leaves_as_one_event(tmp_path):
    """Its modes are cut down until it fits a reference; as an event it fits a packet."""
    grid, w0s = wide_grid(), np.arange(W0 - 144 * 14, W0)
    summaries = np.random.default_rng(1).normal(size=(len(w0s), 84))
    reference = fit_reference(summaries, w0s, grid=grid, model=bytes.fromhex(SUBJECT.model))
    assert len(reference.encoded) > MAX_REFERENCE_BYTES - (16 << 10)
    subject = Subject("p" * 63, SUBJECT.model, grid.grid_id.hex())
    watched = Watched(subject, "l" * 63, "1.0", grid, CheckState(1.0), reference)
    with open_store(tmp_path) as store:
        draft = learned_draft(watched, "/mooring/t0/" + "d" * 63)
        store.add_all([draft])
        (row,) = store.next_batch(10)
    learned = ReferenceLearned.model_validate(json.loads(row.payload)["data"])
    assert decode_reference(base64.b64decode(learned.body), grid).reference_id.hex() == learned.reference


def test_weeks_of_sub_windows_that_are_read_do_not_stay_in_memory(tmp_path):
    with open_store(tmp_path) as store:
        DriftStore(store, FakeClock())
        with store.looking() as connection:
            assert connection.execute("PRAGMA cache_size").fetchone() == (-256,), "KiB of pages; 2000 would fill when references are fitted"
