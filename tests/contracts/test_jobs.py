"""The durable queue on both databases: with its change or not at all, one holder at a time, retried, never lost, buried visibly."""

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from fleet import jobs
from fleet.jobs import JobState
from protocol.clock import SystemClock
from protocol.errors import ConflictError, InvalidError, NotFoundError, TransferError
from protocol.ids import TenantId

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
T0, T1 = TenantId("t0"), TenantId("t1")
LATER = NOW + timedelta(minutes=5)


def _add(tx, **changes: Any):
    return jobs.add(tx, **{"tenant": T0, "kind": "send", "payload": {"n": 1}, "now": NOW, **changes})


def _claim(tx, *, now=NOW, **changes: Any):
    return jobs.claim(tx, **{"kinds": ["send"], "now": now, "lease_s": 60.0, **changes})


def test_a_job_of_a_failed_transaction_does_not_exist(database):
    def fail():
        with database.transaction() as tx:
            _add(tx)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    with database.transaction() as tx:
        assert _claim(tx) is None


def test_a_claimed_job_has_its_payload_and_is_nobody_elses(database):
    with database.transaction() as tx:
        job_id = _add(tx, payload={"device": "cam-1", "ünï": [1.5]})
    with database.transaction() as tx:
        job = _claim(tx)
        assert _claim(tx) is None
    assert (job.job, job.kind, dict(job.payload), job.attempts) == (job_id, "send", {"device": "cam-1", "ünï": [1.5]}, 1)


def test_jobs_come_in_the_order_they_are_due(database):
    with database.transaction() as tx:
        second = _add(tx, delay_s=2)
        first = _add(tx, delay_s=1)
        _add(tx, delay_s=600)
    with database.transaction() as tx:
        assert [_claim(tx, now=LATER).job, _claim(tx, now=LATER).job] == [first, second]
        assert _claim(tx, now=LATER) is None


def test_a_worker_takes_only_kinds_it_knows(database):
    with database.transaction() as tx:
        _add(tx, kind="other")
        assert _claim(tx) is None


def test_a_dead_workers_job_is_taken_over_and_its_late_finish_is_refused(database):
    with database.transaction() as tx:
        _add(tx)
    with database.transaction() as tx:
        lost = _claim(tx)
    with database.transaction() as tx:
        taken = _claim(tx, now=LATER)
        assert (taken.job, taken.attempts) == (lost.job, 2)
        with pytest.raises(ConflictError, match="no longer leased"):
            jobs.finish(tx, lost, now=LATER)
        with pytest.raises(ConflictError, match="no longer leased"):
            jobs.fail(tx, lost, "late", now=LATER)
        jobs.finish(tx, taken, now=LATER)
        assert jobs.get(tx, T0, lost.job).state is JobState.DONE


def test_an_extended_lease_keeps_the_job(database):
    with database.transaction() as tx:
        _add(tx)
        job = _claim(tx)
        jobs.extend(tx, job, now=NOW + timedelta(seconds=50))
        assert _claim(tx, now=NOW + timedelta(seconds=100)) is None
        assert _claim(tx, now=NOW + timedelta(seconds=111)) is not None


def test_a_failed_job_is_retried_after_a_pause_and_dies_after_its_last_attempt(database):
    with database.transaction() as tx:
        _add(tx, max_attempts=2)
        assert jobs.fail(tx, _claim(tx), "no route", now=NOW, jitter=lambda: 1.0) is JobState.WAITING
        assert _claim(tx, now=NOW + timedelta(seconds=3.9)) is None
        last = _claim(tx, now=NOW + timedelta(seconds=4.1))
        assert jobs.fail(tx, last, "still no route", now=LATER) is JobState.DEAD
        assert _claim(tx, now=LATER + timedelta(days=1)) is None
        buried = jobs.list_jobs(tx, T0, state=JobState.DEAD)
    assert [job.error for job in buried] == ["still no route"]


def test_a_job_that_kills_every_worker_dies_too(database):
    with database.transaction() as tx:
        _add(tx, max_attempts=1)
        _claim(tx)
        assert _claim(tx, now=LATER) is None
        assert jobs.list_jobs(tx, T0)[0].state is JobState.DEAD


def test_a_final_failure_is_not_retried(database):
    with database.transaction() as tx:
        _add(tx)
        assert jobs.fail(tx, _claim(tx), "never", now=NOW, is_final=True) is JobState.DEAD


def test_a_dead_job_is_revived_with_all_its_attempts(database):
    with database.transaction() as tx:
        job_id = _add(tx)
        with pytest.raises(ConflictError, match="is waiting"):
            jobs.revive(tx, T0, job_id, now=NOW)
        jobs.fail(tx, _claim(tx), "never", now=NOW, is_final=True)
        assert jobs.revive(tx, T0, job_id, now=NOW).attempts == 0
        assert _claim(tx).job == job_id


def test_a_key_is_added_once_while_it_waits_and_again_when_done(database):
    with database.transaction() as tx:
        assert _add(tx, key="cam-1") is not None
        assert _add(tx, key="cam-1") is None
        assert _add(tx, key="cam-1", tenant=T1) is not None
        assert _add(tx, key="cam-2") is not None
    with database.transaction() as tx:
        for _ in range(3):
            jobs.finish(tx, _claim(tx), now=NOW)
        assert _add(tx, key="cam-1") is not None


def test_a_key_that_is_running_runs_once_more(database):
    with database.transaction() as tx:
        first = _add(tx, key="cam-1")
        job = _claim(tx)
        second = _add(tx, key="cam-1")
        assert second not in {None, first}
        jobs.finish(tx, job, now=NOW)
        assert _claim(tx).job == second


def test_a_key_that_waits_for_later_is_brought_forward_by_one_that_is_due_sooner_and_never_put_off(database):
    with database.transaction() as tx:
        waiting = _add(tx, key="k", delay_s=600)
        assert _add(tx, key="k", delay_s=10) is None
        assert _add(tx, key="k", delay_s=900) is None
        assert jobs.get(tx, T0, waiting).due_at == NOW + timedelta(seconds=10)
        claimed = _claim(tx, now=LATER)
        jobs.fail(tx, claimed, "no", now=LATER, jitter=lambda: 1.0)
        due_at = jobs.get(tx, T0, waiting).due_at
        assert _add(tx, key="k", now=LATER) is None
        assert jobs.get(tx, T0, waiting).due_at == due_at, "what failed keeps its pause"


def test_of_one_lane_one_job_runs_at_a_time_and_other_lanes_go_on(database):
    with database.transaction() as tx:
        first, second = _add(tx, lane="pager"), _add(tx, lane="pager", delay_s=1)
        other, none = _add(tx, lane="mail", delay_s=2), _add(tx, delay_s=3)
    with database.transaction() as tx:
        job = _claim(tx, now=LATER)
        assert [job.job, _claim(tx, now=LATER).job, _claim(tx, now=LATER).job, _claim(tx, now=LATER)] == [first, other, none, None]
        jobs.finish(tx, job, now=LATER)
        assert _claim(tx, now=LATER).job == second


def test_a_lane_is_free_again_when_its_jobs_lease_is_over_and_for_another_tenant_always(database):
    with database.transaction() as tx:
        first, _second = _add(tx, lane="pager"), _add(tx, lane="pager", delay_s=1)
        theirs = _add(tx, lane="pager", tenant=T1, delay_s=2)
        assert [_claim(tx, now=LATER).job, _claim(tx, now=LATER).job, _claim(tx, now=LATER)] == [first, theirs, None]
        over = LATER + timedelta(seconds=61)
        assert [_claim(tx, now=over).job, _claim(tx, now=over).job, _claim(tx, now=over)] == [first, theirs, None]


def test_a_job_that_failed_leaves_its_lane_to_the_next_one_meanwhile(database):
    with database.transaction() as tx:
        first, second = _add(tx, lane="pager"), _add(tx, lane="pager", delay_s=1)
        job = _claim(tx, now=LATER)
        assert job.job == first
        jobs.fail(tx, job, "nobody answers", now=LATER, jitter=lambda: 1.0)
        assert _claim(tx, now=LATER).job == second


def test_another_tenants_job_is_not_found(database):
    with database.transaction() as tx:
        job_id = _add(tx)
        with pytest.raises(NotFoundError):
            jobs.get(tx, T1, job_id)


def test_a_payload_without_a_json_form_is_refused(database):
    with database.transaction() as tx, pytest.raises(InvalidError):
        _add(tx, payload={"x": float("nan")})


def test_only_old_done_jobs_are_pruned(database):
    with database.transaction() as tx:
        for _ in range(3):
            _add(tx)
        jobs.finish(tx, _claim(tx), now=NOW)
        jobs.fail(tx, _claim(tx), "never", now=NOW, is_final=True)
        assert jobs.prune(tx, before=NOW) == 0
        assert jobs.prune(tx, before=LATER) == 1
        assert len(jobs.list_jobs(tx, T0)) == 2


def test_many_workers_run_every_job_exactly_once_when_none_dies(database):
    with database.transaction() as tx:
        for number in range(60):
            _add(tx, payload={"n": number}, now=datetime(2026, 1, 1, tzinfo=UTC))
    ran, guard = [], threading.Lock()

    def handle(job):
        with guard:
            ran.append(job.payload["n"])

    def run():
        while jobs.work_once(database, SystemClock(), {"send": handle}) is not None:
            pass

    workers = [threading.Thread(target=run) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(ran) == list(range(60))


def test_many_workers_never_run_two_jobs_of_one_lane_at_once(database):
    with database.transaction() as tx:
        for number in range(40):
            _add(tx, payload={"n": number, "lane": number % 3}, lane=f"lane {number % 3}", now=datetime(2026, 1, 1, tzinfo=UTC))
    ran, at_once, inside, guard = [], [], [0, 0, 0], threading.Lock()
    pause = threading.Event()

    def handle(job):
        lane = job.payload["lane"]
        with guard:
            inside[lane] += 1
            at_once.append(inside[lane])
        pause.wait(0.01)
        with guard:
            inside[lane] -= 1
            ran.append(job.payload["n"])

    def work():
        while len(ran) < 40:
            if jobs.work_once(database, SystemClock(), {"send": handle}) is None:
                pause.wait(0.01)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (sorted(ran), max(at_once)) == (list(range(40)), 1)


def test_side_by_side_a_job_that_hangs_holds_up_its_lane_alone_and_one_that_breaks_none(database, caplog):
    past = datetime(2026, 1, 1, tzinfo=UTC)
    with database.transaction() as tx:
        _add(tx, payload={"n": "hangs"}, lane="pager", now=past)
        _add(tx, payload={"n": "behind"}, lane="pager", now=past, delay_s=1)
        _add(tx, payload={"n": "breaks"}, lane="mail", now=past, delay_s=2)
        _add(tx, payload={"n": "good"}, lane="chat", now=past, delay_s=3)
    stop, may_end, ran = threading.Event(), threading.Event(), []

    def handle(job):
        if job.payload["n"] == "hangs":
            assert may_end.wait(120)
        if job.payload["n"] == "breaks":
            raise ValueError("a mistake")
        ran.append(job.payload["n"])

    worker = threading.Thread(
        target=jobs.work_side_by_side,
        args=(database, SystemClock(), {"send": handle}, stop),
        kwargs={"most": 2, "idle_s": 0.01},
    )
    worker.start()
    wait_until(lambda: ran == ["good"] and "a mistake" in caplog.text, what="those of other lanes")
    may_end.set()
    wait_until(lambda: len(ran) == 3, what="those of the lane")
    stop.set()
    worker.join(120)
    assert (worker.is_alive(), ran) == (False, ["good", "hangs", "behind"])


def test_side_by_side_what_runs_is_waited_for_at_the_end(database):
    with database.transaction() as tx:
        job_id = _add(tx, now=datetime(2026, 1, 1, tzinfo=UTC))
    stop, may_end, began = threading.Event(), threading.Event(), threading.Event()

    def handle(_job):
        began.set()
        assert may_end.wait(120)

    worker = threading.Thread(
        target=jobs.work_side_by_side, args=(database, SystemClock(), {"send": handle}, stop), kwargs={"most": 2, "idle_s": 0.01}
    )
    worker.start()
    assert began.wait(120)
    stop.set()
    worker.join(0.2)
    assert worker.is_alive()
    may_end.set()
    worker.join(120)
    with database.reading() as tx:
        assert jobs.get(tx, T0, job_id).state is JobState.DONE


def test_a_handlers_mooring_error_is_recorded_and_any_other_propagates(database):
    with database.transaction() as tx:
        _add(tx)
        _add(tx, kind="broken")

    def refuse(_job):
        raise TransferError("peer is away")

    def break_down(_job):
        raise ValueError("a mistake")

    done = jobs.work_once(database, SystemClock(), {"send": refuse})
    with database.reading() as tx:
        assert jobs.get(tx, T0, done.job).error == "transfer: peer is away"
    with pytest.raises(ValueError, match="a mistake"):
        jobs.work_once(database, SystemClock(), {"broken": break_down})
    with database.reading() as tx:
        assert jobs.list_jobs(tx, T0, kind="broken")[0].state is JobState.RUNNING  # its lease will run out


def test_a_handler_may_finish_its_job_with_its_effect(database):
    with database.transaction() as tx:
        job_id = _add(tx)

    def handle(job):
        with database.transaction() as tx:
            jobs.finish(tx, job, now=NOW)

    jobs.work_once(database, SystemClock(), {"send": handle})
    with database.reading() as tx:
        assert jobs.get(tx, T0, job_id).state is JobState.DONE


def test_work_runs_until_it_is_stopped(database):
    stop = threading.Event()
    with database.transaction() as tx:
        _add(tx, now=datetime(2026, 1, 1, tzinfo=UTC))
    worker = threading.Thread(
        target=jobs.work, args=(database, SystemClock(), {"send": lambda _job: stop.set()}, stop), kwargs={"idle_s": 0.01}
    )
    worker.start()
    worker.join(120)
    assert not worker.is_alive()


@pytest.mark.parametrize("attempts", [1, 5, 40])
def test_the_pause_grows_to_a_cap_and_is_spread_over_its_whole_range(attempts):
    longest = jobs.retry_pause_s(attempts, 1.0)
    assert 0 < longest <= jobs.RETRY_CAP_S
    assert jobs.retry_pause_s(attempts, 0.0) == 0.0
    assert jobs.retry_pause_s(attempts, 0.5) == longest / 2


WORKER = """
import sys
from fleet.db import Database
from fleet import jobs
from protocol.clock import SystemClock

def handle(job):
    print(job.job, flush=True)
    sys.stdin.read()

jobs.work_once(Database(sys.argv[1]), SystemClock(), {"send": handle})
"""


def test_a_worker_process_that_is_killed_loses_no_job(database):
    with database.transaction() as tx:
        job_id = _add(tx, now=datetime(2026, 1, 1, tzinfo=UTC))
    command = [sys.executable, "-c", WORKER, database.engine.url.render_as_string(hide_password=False)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}
    ) as worker:
        assert worker.stdout.readline().decode().strip() == job_id
        worker.kill()
    with database.transaction() as tx:
        assert jobs.get(tx, T0, job_id).state is JobState.RUNNING
        assert _claim(tx, now=datetime.now(UTC)) is None  # its lease still runs
        taken = _claim(tx, now=datetime.now(UTC) + timedelta(seconds=jobs.DEFAULT_LEASE_S + 1))
        assert (taken.job, taken.attempts) == (job_id, 2)
