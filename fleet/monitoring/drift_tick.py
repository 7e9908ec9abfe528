"""What repeats in drift: windows that changed are summed and judged, alarms recover, profiles are learned. Safe to redo, safe to cut.

Each series and each group is one transaction that starts from what is stored; it costs what changed (the blocks from the first changed
sub-window on), not what is there. `tick` is for every round, `keep_house` for every minute or so.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from fleet.blobs import BlobStore
from fleet.db import Connection, Database
from fleet.monitoring import (
    alarm_store,
    drift_budget,
    drift_group_store,
    drift_judging,
    drift_learning,
    drift_store,
    drift_sums,
    drift_tables,
    reference_store,
)
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.drift_groups import judge_group
from fleet.monitoring.drift_ingest import DETECTOR_FAILED, RETRIED_FOR, expire_quarantine
from fleet.monitoring.drift_rules import DriftRules
from protocol.errors import UnavailableError
from protocol.ids import TenantId

log = logging.getLogger("mooring.drift")
#: Series and groups that one tick judges at most.
MOST_SERIES, MOST_GROUPS = 200, 20
#: Windows, labels, sums of hours, and references that are not in use any more, are kept so long, hours that groups learn from so long;
#: sums of days and months stay.
WINDOW_DAYS, GROUP_HOUR_DAYS = 400, 60
#: Rows, and references, deleted in one transaction.
_PRUNED, _PRUNED_REFERENCES = 5000, 200


def tick(database: Database, *, rules: DriftRules, now: datetime, limit: int = MOST_SERIES) -> int:
    """Sum and judge what changed; returns how many series and groups. Raises: UnavailableError."""
    with database.reading() as tx:
        dirty = drift_store.list_dirty(tx, limit=limit)
    for tenant, key in dirty:
        with _apart(database, partial(_set_aside, tenant=tenant, series_key=key, now=now)), database.transaction() as tx:
            drift_judging.judge_series(tx, tenant, key, rules=rules, now=now)
    with database.reading() as tx:
        due = drift_group_store.list_due_groups(tx, now=now, limit=MOST_GROUPS)
    for tenant, key in due:
        with _apart(database, partial(_set_group_aside, tenant=tenant, group_key=key, now=now)), database.transaction() as tx:
            judge_group(tx, tenant, key, rules=rules, now=now)
    return len(dirty) + len(due)


@contextlib.contextmanager
def _apart(database: Database, set_aside: Callable[[Connection], None]) -> Iterator[None]:
    """What fails for one device is that device's condition, and the others go on (DRIFT 2). Raises: UnavailableError."""
    try:
        yield
    except UnavailableError:
        raise
    except Exception:
        log.exception("detector_failed")
        with database.transaction() as tx:
            set_aside(tx)


def _set_aside(tx: Connection, *, tenant: TenantId, series_key: int, now: datetime) -> None:
    row = drift_store.get_series(tx, tenant, series_key, is_held=True)
    left = row.judged_until if row.judged_until is not None else row.first_w0
    left = left if row.dirty_from is None else min(left, row.dirty_from)  # where the next window goes on
    conditions = {**row.conditions, DETECTOR_FAILED: 600}
    drift_store.save_series(tx, replace(row, dirty_from=None, judged_until=left, conditions=conditions), now=now)


def _set_group_aside(tx: Connection, *, tenant: TenantId, group_key: int, now: datetime) -> None:
    group = drift_group_store.get_group(tx, tenant, group_key, is_held=True)
    oldest = drift_sums.sub_window_of(now) - RETRIED_FOR
    left = None if group.dirty_from is None else max(group.dirty_from, drift_sums.hour_start(oldest))
    drift_group_store.save_group(tx, replace(group, dirty_from=left, due_at=None), now=now)  # due with the next window of a member


def keep_house(database: Database, blobs: BlobStore, *, rules: DriftRules, now: datetime) -> None:
    """Learn profiles, let windows out of quarantine, renew thresholds and the order of devices."""
    with database.reading() as tx:
        tenants = drift_store.list_tenants(tx)
    for tenant in tenants:
        drift_learning.learn_profiles(database, blobs, tenant, now=now)
        drift_learning.let_out(database, tenant, now=now)
        with database.transaction() as tx:
            drift_budget.review_budget(tx, tenant, rules=rules, now=now)
            drift_budget.review_order(tx, tenant, rules=rules)
            drift_judging.end_groups(tx, tenant, now=now)
    with database.transaction() as tx:
        expire_quarantine(tx, now=now)


def prune(database: Database, *, now: datetime) -> int:
    """Delete what is past its time, in small transactions; returns how many rows. Safe to repeat. Raises: UnavailableError."""
    with database.reading() as tx:
        tenants = drift_store.list_tenants(tx)
    moment = now - timedelta(days=WINDOW_DAYS)
    deleted = 0
    for tenant in tenants:
        for table in (drift_tables.sketch_windows, alarm_store.audit_labels):
            count = _PRUNED
            while count == _PRUNED:
                with database.transaction() as tx:
                    count = monitoring_store.delete_older(tx, tenant, table, before=moment, limit=_PRUNED)
                deleted += count
        count = _PRUNED_REFERENCES
        while count == _PRUNED_REFERENCES:
            with database.transaction() as tx:
                count = reference_store.delete_retired(tx, tenant, before=moment, limit=_PRUNED_REFERENCES)
            deleted += count
        hours, sums = drift_sums.sub_window_of(now - timedelta(days=GROUP_HOUR_DAYS)), drift_sums.sub_window_of(moment)
        with database.reading() as tx:
            groups = drift_group_store.list_groups(tx, tenant)
        for group in groups:
            with database.transaction() as tx:
                deleted += drift_group_store.delete_group_hours(tx, tenant, group.group_key, before=hours, sums_before=sums)
    return deleted
