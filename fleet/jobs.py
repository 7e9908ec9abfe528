"""The durable queue: a job is a row, added in the transaction of the change that needs it, so both commit or neither.

A worker claims a job under a lease, runs it, and marks it done in the transaction of the job's own effect. A worker that dies loses
its lease and another one runs the job again: at least once, so every handler is safe to repeat. Failures are retried with full
jitter; after its last attempt a job is dead and stays visible. A `key` makes adding idempotent while the job is not finished. Of the
jobs of one `lane` one runs at a time, over all workers: what makes them slow holds up only themselves.
"""

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from fleet import db
from protocol.canonical import canonical_json
from protocol.clock import Clock
from protocol.errors import ConflictError, MooringError, NotFoundError
from protocol.ids import TenantId, new_id

log = logging.getLogger("mooring.jobs")

#: Attempts before a job is dead, unless the caller says otherwise: with the pauses below about two hours of trouble.
DEFAULT_ATTEMPTS = 12
#: Pause before the n-th retry: random between 0 and min(cap, base * 2^n) seconds ("full jitter").
RETRY_BASE_S, RETRY_CAP_S = 2.0, 900.0
#: How long a claimed job is one worker's, seconds; longer work extends it (`extend`).
DEFAULT_LEASE_S = 60.0
#: How much of an error's text is kept, characters.
MAX_ERROR_LENGTH = 2000


class JobState(StrEnum):
    """Where a job is."""

    #: Waits for its time and a worker.
    WAITING = "waiting"
    #: Claimed by a worker until its lease ends.
    RUNNING = "running"
    #: Finished with success.
    DONE = "done"
    #: Gave up after its last attempt; a person may retry it.
    DEAD = "dead"


jobs = sa.Table(
    "jobs",
    db.metadata,
    db.tenant_column(),
    sa.Column("job", sa.String(63), primary_key=True),
    sa.Column("kind", sa.String(63), nullable=False),
    # set while the job is not finished; unique per kind
    sa.Column("key", sa.String(200)),
    # jobs with the same one are not run at the same time
    sa.Column("lane", sa.String(200)),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("due_at", db.utc, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("lease_until", db.utc),
    # who holds the lease; a worker that lost it can no longer finish the job
    sa.Column("lease", sa.String(63)),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("finished_at", db.utc),
    sa.UniqueConstraint("tenant", "kind", "key"),
    sa.Index("ix_jobs_state_due_at", "state", "due_at"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work."""

    tenant: TenantId
    job: str
    kind: str
    key: str | None
    lane: str | None
    payload: Mapping[str, Any]
    state: JobState
    due_at: datetime
    #: How often it was claimed, this time included.
    attempts: int
    max_attempts: int
    lease: str | None
    error: str
    created_at: datetime
    finished_at: datetime | None


def _nothing() -> None:
    pass


#: Does the work of one kind. Runs outside any transaction; may raise MooringError to be retried.
Handler = Callable[[Job], None]


def add(
    tx: db.Connection,
    *,
    tenant: TenantId,
    kind: str,
    payload: Mapping[str, Any],
    now: datetime,
    key: str | None = None,
    lane: str | None = None,
    delay_s: float = 0.0,
    max_attempts: int = DEFAULT_ATTEMPTS,
) -> str | None:
    """Add a job in the caller's transaction and return its id, or None when one of this kind and key already waits.

    A job of the same key that is RUNNING may have read old state, so it is told to run once more when it ends. One that waits for a later
    moment than this one would is brought forward, unless it waits because it failed.
    Raises: InvalidError when the payload has no JSON form.
    """
    job = new_id("job")
    row = {
        "tenant": tenant,
        "job": job,
        "kind": kind,
        "key": key,
        "lane": lane,
        "payload": canonical_json(dict(payload)).decode(),
        "state": str(JobState.WAITING),
        "due_at": now + timedelta(seconds=delay_s),
        "attempts": 0,
        "max_attempts": max_attempts,
        "error": "",
        "created_at": now,
    }
    if key is not None:
        _release_running(tx, tenant, kind, key)
    if db.insert_ignore(tx, jobs, row):
        return job
    is_same = (jobs.c.tenant == tenant, jobs.c.kind == kind, jobs.c.key == key)
    is_later = (jobs.c.state == str(JobState.WAITING), jobs.c.attempts == 0, jobs.c.due_at > row["due_at"])
    tx.execute(sa.update(jobs).where(*is_same, *is_later).values(due_at=row["due_at"]))
    return None


def claim(tx: db.Connection, *, kinds: Sequence[str], now: datetime, lease_s: float = DEFAULT_LEASE_S) -> Job | None:
    """The due job that waits longest, of these kinds and of lanes where none runs, now leased to the caller; None when there is none.

    A running job whose lease ended is due again; one that has no attempt left is marked dead on the way.
    """
    _bury(tx, now)
    row, passed = None, list[tuple[str, str]]()
    while (found := _find_due(tx, kinds, now, passed)) is not None:
        if found["lane"] is None or _is_free(tx, found["tenant"], found["lane"], now):
            row = found
            break
        passed.append((found["tenant"], found["lane"]))
    if row is None:
        return None
    claimed = {
        "state": str(JobState.RUNNING),
        "attempts": row["attempts"] + 1,
        "lease": new_id("lease"),
        "lease_until": now + timedelta(seconds=lease_s),
    }
    tx.execute(sa.update(jobs).where(jobs.c.tenant == row["tenant"], jobs.c.job == row["job"]).values(claimed))
    return _job({**row, **claimed})


def extend(tx: db.Connection, job: Job, *, now: datetime, lease_s: float = DEFAULT_LEASE_S) -> None:
    """Keep the job for `lease_s` more seconds. Raises: ConflictError when the lease is lost."""
    _change(tx, job, {"lease_until": now + timedelta(seconds=lease_s)})


def finish(tx: db.Connection, job: Job, *, now: datetime) -> None:
    """Mark the job done; call it in the transaction of its effect. Raises: ConflictError when the lease is lost: roll back."""
    _change(tx, job, {"state": str(JobState.DONE), "finished_at": now, "lease": None, "lease_until": None, "key": None, "error": ""})


def fail(
    tx: db.Connection, job: Job, error: str, *, now: datetime, is_final: bool = False, jitter: Callable[[], float] = random.random
) -> JobState:
    """Put the job back after a pause, or bury it when `is_final` or no attempt is left; returns its state.

    Raises: ConflictError when the lease is lost.
    """
    values: dict[str, Any] = {"error": error[:MAX_ERROR_LENGTH], "lease": None, "lease_until": None}
    if is_final or job.attempts >= job.max_attempts:
        _change(tx, job, {**values, "state": str(JobState.DEAD), "finished_at": now, "key": None})
        return JobState.DEAD
    pause_s = retry_pause_s(job.attempts, jitter())
    _change(tx, job, {**values, "state": str(JobState.WAITING), "due_at": now + timedelta(seconds=pause_s)})
    return JobState.WAITING


def retry_pause_s(attempts: int, jitter: float) -> float:
    """Seconds to wait after so many attempts; `jitter` in 0..1 spreads them over the whole range."""
    return jitter * min(RETRY_CAP_S, RETRY_BASE_S * 2.0 ** min(attempts, 30))


def revive(tx: db.Connection, tenant: TenantId, job: str, *, now: datetime) -> Job:
    """Give a dead job all its attempts again, from now. Raises: NotFoundError; ConflictError when it is not dead."""
    found = get(tx, tenant, job)
    if found.state is not JobState.DEAD:
        raise ConflictError(f"Job {job} is {found.state}; only a dead job can be revived.")
    values = {"state": str(JobState.WAITING), "due_at": now, "attempts": 0, "finished_at": None}
    tx.execute(sa.update(jobs).where(jobs.c.tenant == tenant, jobs.c.job == job).values(values))
    return get(tx, tenant, job)


def get(tx: db.Connection, tenant: TenantId, job: str) -> Job:
    """The job. Raises: NotFoundError."""
    row = tx.execute(sa.select(jobs).where(jobs.c.tenant == tenant, jobs.c.job == job)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"There is no job {job!r}.")
    return _job(row)


def list_jobs(tx: db.Connection, tenant: TenantId, *, state: JobState | None = None, kind: str | None = None, limit: int = 50) -> list[Job]:
    """The newest jobs first."""
    statement = sa.select(jobs).where(jobs.c.tenant == tenant).order_by(jobs.c.created_at.desc(), jobs.c.job).limit(limit)
    if state is not None:
        statement = statement.where(jobs.c.state == str(state))
    if kind is not None:
        statement = statement.where(jobs.c.kind == kind)
    return [_job(row) for row in tx.execute(statement).mappings()]


def prune(tx: db.Connection, *, before: datetime) -> int:
    """Delete done jobs finished before the moment; returns how many. Dead ones stay until somebody looked."""
    return tx.execute(sa.delete(jobs).where(jobs.c.state == str(JobState.DONE), jobs.c.finished_at < before)).rowcount


def work_once(database: db.Database, clock: Clock, handlers: Mapping[str, Handler], *, lease_s: float = DEFAULT_LEASE_S) -> Job | None:
    """Claim one job, run its handler and record how it went; returns the job, or None when none is due.

    A MooringError of the handler is recorded for a retry; any other error leaves the lease to run out and propagates.
    """
    with database.transaction() as tx:
        job = claim(tx, kinds=list(handlers), now=clock.now(), lease_s=lease_s)
    if job is not None:
        _run(database, clock, handlers[job.kind], job)
    return job


def _run(database: db.Database, clock: Clock, handler: Handler, job: Job) -> None:
    try:
        handler(job)
    except MooringError as error:
        with database.transaction() as tx:
            fail(tx, job, f"{error.code}: {error}", now=clock.now())
    else:
        with database.transaction() as tx:
            finish_if_held(tx, job, now=clock.now())


def work(
    database: db.Database,
    clock: Clock,
    handlers: Mapping[str, Handler],
    stop: threading.Event,
    *,
    idle_s: float = 1.0,
    on_round: Callable[[], None] = _nothing,
) -> None:
    """Run due jobs until `stop` is set; looks again after `idle_s` seconds of system time when none was due.

    `on_round` is called after each job, and each look that found none. Raises: as `work_once`.
    """
    while not stop.is_set():
        is_idle = work_once(database, clock, handlers) is None
        on_round()
        if is_idle:
            stop.wait(idle_s)


def work_side_by_side(
    database: db.Database,
    clock: Clock,
    handlers: Mapping[str, Handler],
    stop: threading.Event,
    *,
    most: int,
    lease_s: float = DEFAULT_LEASE_S,
    idle_s: float = 1.0,
    on_round: Callable[[], None] = _nothing,
) -> None:
    """Run due jobs, up to `most` at once, each on a thread of its own, until `stop` is set; returns when those that run have ended.

    `on_round` is called at each look for one. Meant for jobs that mostly wait for others. An error of a handler beyond MooringError is
    logged; the lease of its job runs out.
    Raises: UnavailableError when the database does not answer.
    """
    free, running = threading.Semaphore(most), list[threading.Thread]()

    def run(job: Job) -> None:
        try:
            _run(database, clock, handlers[job.kind], job)
        except Exception:
            log.exception("job_failed job=%s kind=%s", job.job, job.kind)
        finally:
            free.release()

    try:
        while not stop.is_set():
            on_round()
            if not free.acquire(timeout=idle_s):
                continue
            with database.transaction() as tx:
                job = claim(tx, kinds=list(handlers), now=clock.now(), lease_s=lease_s)
            if job is None:
                free.release()
                stop.wait(idle_s)
                continue
            running = [*(thread for thread in running if thread.is_alive()), threading.Thread(target=run, args=(job,), daemon=True)]
            running[-1].start()
    finally:
        for thread in running:
            thread.join()


def finish_if_held(tx: db.Connection, job: Job, *, now: datetime) -> bool:
    """Mark the job done unless it already is, or another worker took it over; returns whether this call did."""
    current = get(tx, job.tenant, job.job)
    if current.state is not JobState.RUNNING or current.lease != job.lease:
        return False
    finish(tx, job, now=now)
    return True


def _find_due(tx: db.Connection, kinds: Sequence[str], now: datetime, passed: Sequence[tuple[str, str]]) -> sa.RowMapping | None:
    """The job to claim next, locked; none of a lane where one is seen to run, or of those passed over."""
    is_due = sa.or_(
        sa.and_(jobs.c.state == str(JobState.WAITING), jobs.c.due_at <= now),
        sa.and_(jobs.c.state == str(JobState.RUNNING), jobs.c.lease_until <= now),
    )
    other = jobs.alias()
    runs_in_lane = sa.exists().where(other.c.tenant == jobs.c.tenant, other.c.lane == jobs.c.lane, *_is_held(other, now))
    is_elsewhere = [sa.or_(jobs.c.lane.is_(None), jobs.c.tenant != tenant, jobs.c.lane != lane) for tenant, lane in passed]
    statement = sa.select(jobs).where(is_due, jobs.c.kind.in_(list(kinds)), ~runs_in_lane, *is_elsewhere)
    statement = statement.order_by(jobs.c.due_at, jobs.c.job).limit(1).with_for_update(of=jobs, skip_locked=True)
    return tx.execute(statement).mappings().one_or_none()


def _is_free(tx: db.Connection, tenant: str, lane: str, now: datetime) -> bool:
    """Whether no job of the lane runs, and none will before this transaction ends: whoever else claims from it passes it over meanwhile."""
    if not db.try_lock(tx, f"lane/{tenant}/{lane}"):
        return False
    runs = sa.select(jobs.c.job).where(jobs.c.tenant == tenant, jobs.c.lane == lane, *_is_held(jobs, now)).limit(1)
    return tx.scalar(runs) is None


def _is_held(table: sa.FromClause, now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.state == str(JobState.RUNNING), table.c.lease_until > now


def _release_running(tx: db.Connection, tenant: TenantId, kind: str, key: str) -> None:
    """A running job keeps its lease but gives up the key, so that a new one takes its place.

    The row is locked first: one that is being claimed right now is seen as running, one that waits is not claimed before we commit.
    """
    is_same = (jobs.c.tenant == tenant, jobs.c.kind == kind, jobs.c.key == key)
    if tx.scalar(sa.select(jobs.c.state).where(*is_same).with_for_update()) == str(JobState.RUNNING):
        tx.execute(sa.update(jobs).where(*is_same).values(key=None))


def _change(tx: db.Connection, job: Job, values: Mapping[str, Any]) -> None:
    held = (jobs.c.tenant == job.tenant, jobs.c.job == job.job, jobs.c.lease == job.lease, jobs.c.state == str(JobState.RUNNING))
    if tx.execute(sa.update(jobs).where(*held).values(dict(values))).rowcount != 1:
        raise ConflictError(f"Job {job.job} is no longer leased to this worker.", code="lease-lost")


def _bury(tx: db.Connection, now: datetime) -> None:
    """A job that killed its worker on its last attempt would otherwise be claimed for ever."""
    is_lost = (jobs.c.state == str(JobState.RUNNING), jobs.c.lease_until <= now, jobs.c.attempts >= jobs.c.max_attempts)
    values = {"state": str(JobState.DEAD), "finished_at": now, "lease": None, "lease_until": None, "key": None}
    tx.execute(sa.update(jobs).where(*is_lost).values({**values, "error": "The worker died or hung on the last attempt."}))


def _job(row: Mapping[Any, Any]) -> Job:
    return Job(
        tenant=TenantId(row["tenant"]),
        job=row["job"],
        kind=row["kind"],
        key=row["key"],
        lane=row["lane"],
        payload=json.loads(row["payload"]),
        state=JobState(row["state"]),
        due_at=row["due_at"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        lease=row["lease"],
        error=row["error"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
    )
