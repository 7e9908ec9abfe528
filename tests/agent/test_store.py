"""The device's memory: nothing stored is lost, no number is given twice, the budget holds, and a broken disk is a reported condition."""

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from agent.database.file import SCHEMA_VERSION, prepare_in_child
from agent.database.outbox import MAX_SETTLED, Draft, SketchDraft
from agent.database.schema import MIGRATIONS
from agent.store import Store
from protocol.clock import Clock, SystemClock
from protocol.errors import DeviceError, InvalidError
from protocol.messages import Ack, AckStream, Desired, TelPerf

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def open_store(folder: Path, **options: Any) -> Store:
    return Store(folder / "outbox.db", clock=SystemClock(), **options)


def payloads(store: Store, limit: int = 1000) -> list[dict]:
    return [json.loads(row.payload) for row in store.next_batch(limit)]


def test_a_row_carries_the_envelope_its_seq_and_its_floor(tmp_path):
    with open_store(tmp_path) as store:
        for frames in range(3):
            store.add("tel", ("perf",), {"pipeline": "p", "window_s": 10.0, "frames": frames, "fps": 1.0})
        rows = store.next_batch(10)
        bodies = [TelPerf.model_validate_json(row.payload) for row in rows]
        assert [body.seq for body in bodies] == [0, 1, 2]
        assert {body.floor for body in bodies} == {0}
        assert {body.epoch for body in bodies} == {store.epoch}
        assert rows[0].levels == ("perf",)


def test_events_leave_before_telemetry_and_states_before_both(tmp_path):
    with open_store(tmp_path) as store:
        store.add("tel", ("sys",), {})
        store.add("event", (), {"type": "x"})
        store.add("info", (), {})
        assert [row.stream for row in store.next_batch(10)] == ["info", "event", "tel"]


def test_an_event_is_named_by_epoch_and_seq(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {"type": "x"})
        assert payloads(store)[0]["id"] == f"{store.epoch}-0"


def test_rows_in_flight_are_not_handed_out_again(tmp_path):
    with open_store(tmp_path) as store:
        for _ in range(5):
            store.add("event", (), {})
        first = store.next_batch(2)
        second = store.next_batch(2, skip={row.id for row in first})
        assert [row.seq for row in [*first, *second]] == [0, 1, 2, 3]


def test_a_sent_row_goes_with_the_brokers_answer_and_a_stored_one_stays(tmp_path):
    with open_store(tmp_path) as store:
        store.add("tel", ("sys",), {})
        store.add("event", (), {})
        store.mark_sent(*[row.id for row in store.next_batch(10)])
        assert store.counts().by_stream == {"event": 1}
        assert store.counts().unacknowledged == 1
        assert store.next_batch(10) == []


def test_unacknowledged_stored_rows_are_sent_again(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {})
        store.mark_sent(store.next_batch(1)[0].id)
        assert store.requeue_stored() == 1
        assert [row.seq for row in store.next_batch(10)] == [0]


def test_an_ack_with_ranges_removes_exactly_what_it_covers(tmp_path):
    with open_store(tmp_path) as store:
        for _ in range(8):
            store.add("event", (), {})
        store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=1, ranges=[(4, 5)])}))
        assert [body["seq"] for body in payloads(store)] == [2, 3, 6, 7]
        assert store.floor("event") == 2


def test_an_ack_of_another_epoch_removes_nothing(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {})
        assert store.apply_ack(Ack(epoch="other", streams={"event": AckStream(upto=9)})) == 0
        assert store.counts().rows == 1


def test_the_newest_state_replaces_the_older_and_returns_after_a_connect(tmp_path):
    with open_store(tmp_path) as store:
        store.add("info", (), {"n": 1})
        store.add("info", (), {"n": 2})
        rows = store.next_batch(10)
        assert [json.loads(row.payload)["n"] for row in rows] == [2]
        store.mark_sent(rows[0].id)
        assert store.next_batch(10) == []
        store.republish_states()
        assert [row.seq for row in store.next_batch(10)] == [1]


def test_a_late_answer_to_a_row_that_is_gone_touches_no_other_row(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {})
        old = store.next_batch(1)[0]
        store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=0)}))
        store.add("tel", ("sys",), {})
        assert store.next_batch(1, skip={old.id})[0].stream == "tel"
        store.mark_sent(old.id)
        assert store.counts().by_stream == {"tel": 1}


def test_a_seq_is_never_given_twice_even_when_its_row_is_gone(tmp_path):
    with open_store(tmp_path) as store:
        assert [store.add("event", (), {}) for _ in range(2)] == [0, 1]
        store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=1)}))
        assert store.reserve_seq("status") == 0
        epoch = store.epoch
    with open_store(tmp_path) as store:
        assert store.epoch == epoch
        assert store.add("event", (), {}) == 2
        assert store.floor("event") == 2
        assert store.reserve_seq("status") == 1


def test_a_restored_copy_of_the_file_gets_a_new_epoch_and_keeps_its_rows(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {"type": "x"})
        old = store.epoch
    copy = tmp_path / "restored"
    copy.mkdir()
    (copy / "outbox.db").write_bytes((tmp_path / "outbox.db").read_bytes())
    with open_store(copy) as store:
        assert store.epoch != old
        assert store.add("event", (), {"type": "y"}) == 0
        assert [(body["epoch"], body["seq"]) for body in payloads(store)] == [(old, 0), (store.epoch, 0)]
        store.apply_ack(Ack(epoch=old, streams={"event": AckStream(upto=0)}))
        assert store.counts().rows == 1


def merge_counts(bodies):
    return {**bodies[-1], "window_s": sum(b["window_s"] for b in bodies), "frames": sum(b["frames"] for b in bodies)}


def test_past_the_budget_windows_are_merged_before_any_is_given_up(tmp_path):
    with open_store(tmp_path, budget_mb=0.25, merge=merge_counts) as store:
        count = 1500
        for _ in range(count):
            store.add("tel", ("perf",), {"pipeline": "p", "window_s": 10.0, "frames": 1, "fps": 0.1})
        counts = store.counts()
        bodies = payloads(store, 5000)
        assert counts.dropped == {}
        assert sum(body["frames"] for body in bodies) == count
        assert counts.bytes <= 0.25 * 1024 * 1024
        assert len({body["seq"] for body in bodies}) == len(bodies)
        assert max(body["window_s"] for body in bodies) > 10.0
        assert min(body["seq"] for body in bodies) == bodies[0]["floor"]


def test_past_the_budget_telemetry_goes_before_events_and_every_loss_is_counted(tmp_path):
    with open_store(tmp_path, budget_mb=0.25) as store:
        for _ in range(200):
            store.add("event", (), {"type": "x" * 100})
        for _ in range(2000):
            store.add("tel", ("sys",), {"text": "y" * 100})
        counts = store.counts()
        assert counts.by_stream["event"] == 200
        assert counts.dropped["sent"] == 2000 - counts.by_stream["tel"] > 0
        assert counts.bytes <= 0.25 * 1024 * 1024
    with open_store(tmp_path, budget_mb=0.25) as store:
        assert store.counts() == counts
        for _ in range(3000):
            store.add("event", (), {"type": "x" * 100})
        after = store.counts()
        assert "tel" not in after.by_stream
        assert after.dropped == {"sent": 2000, "stored": 3200 - after.by_stream["event"]}
        assert [body["seq"] for body in payloads(store, 1)] == [3200 - after.by_stream["event"]]


def test_a_row_too_large_for_a_packet_is_refused_and_nothing_of_its_batch_stays(tmp_path):
    with open_store(tmp_path) as store:
        with pytest.raises(InvalidError, match="at most 262144"):
            store.add_all([Draft("event", (), {"type": "x"}), Draft("event", (), {"type": "y" * 300_000})])
        assert store.counts().rows == 0
        assert store.counts().bytes == 0


def test_a_full_disk_is_an_error_with_a_code_and_loses_nothing_stored(tmp_path):
    with open_store(tmp_path) as store:
        kept = [store.add("event", (), {"type": "x" * 200}) for _ in range(50)]
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own way to say: the disk ends here
        with pytest.raises(DeviceError) as caught:
            kept.extend(store.add("event", (), {"type": "x" * 2000}) for _ in range(1000))
        assert caught.value.code == "disk-full"
        assert "Free space" in str(caught.value)
        assert [body["seq"] for body in payloads(store)] == kept
        assert store.counts().dropped == {"unstored": 1}
        store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=40)}))
        assert store.add("event", (), {"type": "again"}) == kept[-1] + 1


def test_an_unreadable_file_is_moved_aside_and_a_new_epoch_begins(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {})
        old = store.epoch
    (tmp_path / "outbox.db").write_bytes(b"this is not a database" * 1000)
    with open_store(tmp_path) as store:
        assert store.epoch != old
        assert store.moved_aside == tmp_path / "outbox.db.corrupt"
        assert store.moved_aside.read_bytes().startswith(b"this is not")
        assert store.counts().rows == 0


def test_a_damaged_page_is_found_at_start(tmp_path):
    with open_store(tmp_path) as store:
        for _ in range(300):
            store.add("event", (), {"type": "x" * 500})
    path = tmp_path / "outbox.db"
    data = bytearray(path.read_bytes())
    data[8192 : 8192 + 3 * 4096] = hashlib.shake_256(b"noise").digest(3 * 4096)
    path.write_bytes(data)
    with open_store(tmp_path) as store:
        assert store.moved_aside is not None


def test_a_folder_without_permission_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(DeviceError, match=r"file/outbox\.db"):
        open_store(blocker)


def test_values_counters_and_the_twin_survive(tmp_path):
    with open_store(tmp_path) as store:
        assert store.desired() is None
        store.save_desired(Desired(rev=7, config={"pipelines": []}))
        store.set_value("nonce", "n")
        assert [store.next_counter("report") for _ in range(3)] == [1, 2, 3]
    with open_store(tmp_path) as store:
        assert store.desired() == Desired(rev=7, config={"pipelines": []})
        assert store.get_value("nonce") == "n"
        assert store.get_value("other") is None
        assert store.next_counter("report") == 4


def test_many_threads_may_add_at_once(tmp_path):
    with open_store(tmp_path) as store:
        threads = [threading.Thread(target=lambda: [store.add("event", (), {}) for _ in range(25)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [body["seq"] for body in payloads(store)] == list(range(100))


# --- what it costs the flash ---


def logged_pages(folder: Path, store: Store) -> int:
    """Pages in the write-ahead log (fileformat2.html, 4.1): all that were written since nothing moves them into the main file."""
    with store.looking() as connection:
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    return ((folder / "outbox.db-wal").stat().st_size - 32) // (24 + page_bytes)


def keep_log(store: Store) -> None:
    with store.looking() as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")


def rows_in_file(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "outbox.db")) as other:
        return int(other.execute("SELECT count(*) FROM outbox").fetchone()[0])


def telemetry_window() -> list[Draft]:
    perf = {"pipeline": "front", "window_s": 10.0, "frames": 50, "fps": 5.0, "lat_ms_p50": 18.2, "backend": "onnx:cpu", "text": "x" * 150}
    return [*(Draft("tel", ("perf",), perf) for _ in range(2)), Draft("tel", ("sys",), {"window_s": 10.0, "text": "x" * 200})]


def answer_each(store: Store) -> None:
    for row in store.next_batch(100):
        store.mark_sent(row.id)


def test_a_window_of_telemetry_costs_five_pages_with_all_its_answers(tmp_path):
    with open_store(tmp_path) as store:
        for stream in ("info", "reported", "model", "drift", "status"):
            store.add(stream, (), {"text": "x" * 900})
        answer_each(store)
        keep_log(store)
        before, windows = logged_pages(tmp_path, store), 100
        for _ in range(windows):
            store.add_all(telemetry_window())
            answer_each(store)
        assert logged_pages(tmp_path, store) - before <= 5 * windows


def test_an_event_costs_five_pages_with_all_its_answers(tmp_path):
    with open_store(tmp_path) as store:
        keep_log(store)
        store.add("event", (), {"type": "first"})
        before, events = logged_pages(tmp_path, store), 100
        for _ in range(events):
            seq = store.add("event", (), {"type": "x" * 400})
            answer_each(store)
            store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=seq)}))
        assert logged_pages(tmp_path, store) - before <= 5 * events
        assert store.counts().rows == 0


def test_an_answer_counts_at_once_and_is_written_with_the_next_rows(tmp_path):
    with open_store(tmp_path) as store:
        store.add_all([Draft("tel", ("sys",), {}), Draft("event", (), {}), Draft("event", (), {})])
        keep_log(store)
        before = logged_pages(tmp_path, store)
        answer_each(store)
        assert (store.counts().by_stream, store.counts().unacknowledged) == ({"event": 2}, 2)
        assert store.floor("tel") == 1
        assert store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=0)})) == 1
        assert store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=0)})) == 0
        assert (store.counts().by_stream, store.counts().unacknowledged, store.floor("event")) == ({"event": 1}, 1, 1)
        assert store.next_batch(10) == []
        assert logged_pages(tmp_path, store) == before
        assert rows_in_file(tmp_path) == 3
        store.add("tel", ("sys",), {})
        assert rows_in_file(tmp_path) == 2
        assert (store.counts().by_stream, store.counts().unacknowledged) == ({"event": 1, "tel": 1}, 1)
        assert store.requeue_stored() == 1
        assert [row.stream for row in store.next_batch(10)] == ["event", "tel"]


def test_a_row_that_the_broker_has_is_sent_again_when_asked_for_before_that_was_written(tmp_path):
    with open_store(tmp_path) as store:
        store.add_all([Draft("event", (), {}), Draft("info", (), {}), Draft("tel", ("sys",), {})])
        answer_each(store)
        store.republish_states()
        assert [row.stream for row in store.next_batch(10)] == ["info"]
        assert store.requeue_stored() == 1
        assert [row.stream for row in store.next_batch(10)] == ["info", "event"]


def test_many_answers_do_not_wait_for_the_next_rows(tmp_path):
    with open_store(tmp_path) as store:
        store.add_all([Draft("tel", ("sys",), {}) for _ in range(100)])
        answer_each(store)
        assert rows_in_file(tmp_path) <= MAX_SETTLED
        assert store.counts().rows == 0


def test_after_an_orderly_end_nothing_that_was_answered_is_sent_again(tmp_path):
    store = open_store(tmp_path)
    store.add_all([Draft("tel", ("sys",), {}), Draft("event", (), {})])
    answer_each(store)
    store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=0)}))
    store.close()
    store.close()
    assert rows_in_file(tmp_path) == 0


def test_after_a_power_cut_what_was_answered_and_not_written_is_sent_once_more(tmp_path):
    with open_store(tmp_path) as store:
        store.add_all([Draft("tel", ("sys",), {}), Draft("event", (), {})])
        answer_each(store)
        store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=0)}))
        with open_store(tmp_path) as again:  # as the file is when the power fails now
            assert again.epoch == store.epoch
            assert [(row.stream, row.seq) for row in again.next_batch(10)] == [("event", 0), ("tel", 0)]
            assert again.counts().rows == 2


def test_answers_outlive_rows_that_found_no_room(tmp_path):
    with open_store(tmp_path) as store:
        store.add("event", (), {"type": "x" * 200})
        answer_each(store)
        with pytest.raises(InvalidError):
            store.add_all([Draft("tel", ("sys",), {}), Draft("event", (), {"type": "y" * 300_000})])
        assert (store.counts().unacknowledged, store.next_batch(10)) == (1, [])
        store.apply_ack(Ack(epoch=store.epoch, streams={"event": AckStream(upto=0)}))
        with pytest.raises(InvalidError):
            store.add("event", (), {"type": "y" * 300_000})
        assert (store.counts().rows, store.next_batch(10)) == (0, [])


def test_room_is_first_made_of_what_was_answered(tmp_path):
    with open_store(tmp_path, budget_mb=0.25) as store:
        store.add_all([Draft("tel", ("sys",), {"text": "x" * 8000}) for _ in range(MAX_SETTLED - 2)])
        answer_each(store)
        with store.writing() as writing:
            writing.add_sketch(SketchDraft("front", "1-6", 0, lambda _: b"x" * 60_000))
        assert store.counts().by_stream == {"sketch": 1}
        assert store.counts().dropped == {}


def test_the_log_keeps_its_length_and_is_written_over(tmp_path):
    with open_store(tmp_path) as store:
        log, sizes = tmp_path / "outbox.db-wal", []
        for _ in range(80):  # 50 pages each; after 1000 they are moved into the main file
            store.add("info", (), {"text": "x" * 200_000})
            sizes.append(log.stat().st_size)
        assert sizes == sorted(sizes)
        assert sizes[-1] == sizes[40]


def test_the_id_of_a_row_is_never_given_again_also_after_a_restart(tmp_path):
    given: list[int] = []
    for _ in range(3):
        with open_store(tmp_path) as store:
            for _ in range(2):
                store.add("tel", ("sys",), {})
                given += [row.id for row in store.next_batch(10)]
                answer_each(store)
            with pytest.raises(InvalidError):
                store.add("event", (), {"type": "y" * 300_000})
    assert given == sorted(set(given))


def test_the_version_of_the_file_counts_its_migrations():
    assert len(MIGRATIONS) == SCHEMA_VERSION


def test_a_second_open_needs_no_schema_library(tmp_path):
    open_store(tmp_path).close()
    code = "import sys; from pathlib import Path; from agent.store import Store; from protocol.clock import SystemClock\n"
    code += f"Store(Path({str(tmp_path / 'outbox.db')!r}), clock=SystemClock()).close(); print('sqlite_utils' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_file_prepared_by_a_child_needs_no_schema_library_here(tmp_path):
    path = tmp_path / "state" / "outbox.db"
    code = "import sys; from pathlib import Path; from agent.database.file import prepare_in_child; from agent.store import Store\n"
    code += "from protocol.clock import SystemClock\n"
    code += f"path = Path({str(path)!r}); prepare_in_child(path); Store(path, clock=SystemClock()).close()\n"
    code += "print('sqlite_utils' in sys.modules)"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_preparing_leaves_what_it_does_not_understand_alone(tmp_path):
    path = tmp_path / "outbox.db"
    path.write_bytes(b"this is not a database" * 100)
    prepare_in_child(path)
    assert path.read_bytes().startswith(b"this is not")
    with open_store(tmp_path) as store:
        assert store.moved_aside is not None
    prepare_in_child(tmp_path)


ADDER = """
import sys
from pathlib import Path
from agent.store import Store
from protocol.clock import SystemClock
store = Store(Path(sys.argv[1]), clock=SystemClock())
while True:
    print(store.add("event", (), {"type": "x" * 300}), flush=True)
"""


def test_no_row_is_lost_that_add_returned_for_when_the_process_is_killed(tmp_path):
    promised: list[int] = []
    for rows in (5, 60, 17, 33, 48):
        with subprocess.Popen([sys.executable, "-c", ADDER, str(tmp_path / "outbox.db")], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            promised += [int(child.stdout.readline()) for _ in range(rows)]
            child.send_signal(signal.SIGKILL)
            promised += [int(line) for line in child.stdout.read().splitlines() if line]
    assert len(set(promised)) == len(promised)
    with open_store(tmp_path) as store:
        found = [body["seq"] for body in payloads(store, 10_000)]
        assert set(promised) <= set(found)
        assert len(set(found)) == len(found)


def test_a_file_held_by_a_writer_is_waited_for(tmp_path):
    with open_store(tmp_path) as store:
        other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(store.add("event", (), {})))
        thread.start()
        other.execute("COMMIT")
        other.close()
        wait_until(lambda: results == [0])
        thread.join()


def test_the_envelope_tells_the_clock_that_was_injected(tmp_path):
    class YearOff(SystemClock):
        def now(self) -> datetime:
            return NOW

    clock: Clock = YearOff()
    with Store(tmp_path / "outbox.db", clock=clock) as store:
        store.add("event", (), {})
        assert payloads(store)[0]["ts"] == int(NOW.timestamp() * 1000)
