"""What people do with drift and its alarms: look, take, clear, mute, take a new reference, and label; each with its audit entry."""

from collections.abc import Sequence
from datetime import datetime

from fleet.audit import Actor
from fleet.db import Database
from fleet.monitoring.drift_model import (
    AccuracyRange,
    Alarm,
    AlarmEvent,
    AlarmState,
    Distribution,
    FalseAlarms,
    OverviewRow,
    Reference,
    TimePoint,
)
from protocol.ids import DeviceId, TenantId


def list_alarms(
    database: Database,
    tenant: TenantId,
    *,
    states: Sequence[AlarmState] = (),
    device: DeviceId | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Alarm]:
    """Alarms, those raised last first, after the alarm id `after`; `states`: those alone; `device`: its own and those that hold it."""
    raise NotImplementedError


def get_alarm(database: Database, tenant: TenantId, alarm: str) -> Alarm:
    """The alarm. Raises: NotFoundError."""
    raise NotImplementedError


def acknowledge(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    by: Actor,
    now: datetime,
    note: str = "",
    link: str = "",
    revision: int | None = None,
) -> Alarm:
    """Take it. `link`: the run or site job that answers it. Raises: NotFoundError; ConflictError; StaleRevisionError."""
    raise NotImplementedError


def clear(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    outcome: AlarmEvent,
    by: Actor,
    now: datetime,
    reason: str,
    revision: int | None = None,
) -> Alarm:
    """End it as `condition` or `false_alarm`. Raises: NotFoundError; InvalidError; ConflictError; StaleRevisionError."""
    raise NotImplementedError


def mute(
    database: Database,
    *,
    tenant: TenantId,
    alarm: str,
    until: datetime | None,
    by: Actor,
    now: datetime,
    reason: str,
    revision: int | None = None,
) -> Alarm:
    """Tell nobody of it until then (None: tell again); it is still recorded. Raises: NotFoundError; InvalidError; StaleRevisionError."""
    raise NotImplementedError


def device_overview(
    database: Database, tenant: TenantId, *, devices: Sequence[DeviceId] | None = None, limit: int = 200
) -> list[OverviewRow]:
    """Device by feature: the heat map's rows, those listed by e-BH and of most evidence first."""
    raise NotImplementedError


def distributions(
    database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime, feature: str | None = None
) -> list[Distribution]:
    """Reference against the windows of [since, until), per feature in grid order. Raises: NotFoundError: no grid or feature."""
    raise NotImplementedError


def timeline(database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime) -> list[TimePoint]:
    """T² and p of each sub-window of [since, until), oldest first."""
    raise NotImplementedError


def accuracy_range(
    database: Database, tenant: TenantId, device: DeviceId, pipeline: str, *, since: datetime, until: datetime
) -> AccuracyRange | None:
    """Accuracy without labels over [since, until), with its trust flag; None when the release carries nothing to estimate with."""
    raise NotImplementedError


def explain(alarm: Alarm) -> str:
    """The alarm in words: which features moved and how, since when, on how many devices."""
    return alarm.words


def list_references(database: Database, tenant: TenantId, device: DeviceId, pipeline: str) -> list[Reference]:
    """The references of the pipeline, the one in use first."""
    raise NotImplementedError


def add_reference(
    database: Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    pipeline: str,
    body: bytes,
    source: str,
    by: Actor,
    now: datetime,
    reason: str = "",
) -> Reference:
    """Store a reference (protocol.sketches.reference) that was learned from a recording and use it. Raises: NotFoundError; InvalidError."""
    raise NotImplementedError


def rebaseline(database: Database, *, tenant: TenantId, device: DeviceId, pipeline: str, by: Actor, now: datetime, reason: str) -> None:
    """Take what is seen from now on as normal: the reference starts again, open alarms are cleared as `rereferenced`.

    Raises: NotFoundError; InvalidError without a reason.
    """
    raise NotImplementedError


def false_alarms(database: Database, tenant: TenantId, *, since: datetime, now: datetime) -> FalseAlarms:
    """How the promised rate was kept since a moment."""
    raise NotImplementedError
