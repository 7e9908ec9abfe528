"""How many false alarms each device may make, and in which order devices are shown (DRIFT 5.4, 5.6)."""

import math
from datetime import datetime

from fleet import audit
from fleet.db import Connection
from fleet.devices import store as device_store
from fleet.devices import twins
from fleet.monitoring import alarm_store, alarms, detectors, drift_store
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.drift_alarms import DETECTOR
from fleet.monitoring.drift_model import Check
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.drift_tables import SeriesRow
from protocol.errors import NotFoundError
from protocol.ids import DeviceId, TenantId

#: False alarms per year that a device allows itself when nobody tells it another rate (`agent.config`).
AGENT_RATE = 1.0
_DECIDED = "drift.thresholds-decided"


def review_budget(tx: Connection, tenant: TenantId, *, rules: DriftRules, now: datetime) -> bool:
    """Decide thresholds anew when the fleet has grown or shrunk by more than a tenth, or when the operator asks for another rate.

    Devices are told when the rate is another one. Returns whether anything was decided anew.
    """
    devices, decided = drift_store.count_watched(tx, tenant), alarm_store.find_budget(tx, tenant)
    is_grown = decided is None or alarms.needs_new_threshold(decided, devices)
    if is_grown:
        alarm_store.save_budget(tx, tenant, devices, now=now)
    rate = allowed(alarms.rate_of(rules.rate, rules.fleet_rate, devices if is_grown or decided is None else decided))
    told = told_rate(tx, tenant)
    is_other = rate != (AGENT_RATE if told is None else told)
    if not is_other and not (is_grown and rules.fleet_rate > 0):
        return is_grown
    for device in sorted({row.device for row in drift_store.list_series(tx, tenant, src=0)}):
        tell_rate(tx, tenant, device, rate, is_budget=rules.fleet_rate > 0, now=now)
    detail = {"devices": devices, "before": decided or 0, "rate_per_device_year": rate, "rate_per_fleet_year": rules.fleet_rate}
    audit.append(tx, tenant=tenant, actor=DETECTOR, action=_DECIDED, subject=f"tenant/{tenant}", now=now, detail=detail)
    return True


def rate_for(tx: Connection, row: SeriesRow, rules: DriftRules) -> float:
    """False alarms per year that the series may raise: its part of the fleet's, or what is set for its device, its group, or all.

    Where none of those is set and the device judges, what it asks by its own file.
    """
    if rules.fleet_rate <= 0:
        wished = wished_rate(tx, row.tenant, row.device)
        own = own_rate(tx, row.tenant, row.device) if wished is None and row.decided_by is Check.DEVICE else wished
        if own is not None:
            return own
    return allowed(alarms.rate_of(rules.rate, rules.fleet_rate, alarm_store.find_budget(tx, row.tenant) or 1))


def wished_rate(tx: Connection, tenant: TenantId, device: DeviceId) -> float | None:
    """False alarms per year as somebody set them here for the device, or else for its group; None: nobody did."""
    try:
        own = device_store.get_twin(tx, tenant, device).config.drift.false_alarms_per_year
        if own is not None:
            return own
        owner = device_store.get_device(tx, tenant, device)
        return device_store.get_group(tx, tenant, owner.group).config.drift.false_alarms_per_year
    except NotFoundError:
        return None


def own_rate(tx: Connection, tenant: TenantId, device: DeviceId) -> float | None:
    """False alarms per year that the device asks by its own file, as far as it says so; None: its agent's usual ones."""
    said = monitoring_store.list_states_of(tx, tenant, [device], "drift").get(device)
    rate = None if said is None else said.body.get("false_alarms_per_year")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not math.isfinite(rate) or rate == AGENT_RATE:
        return None
    return allowed(float(rate))


def allowed(rate: float) -> float:
    """The rate as a device's config can say it."""
    return min(1000.0, max(0.001, rate))


def told_rate(tx: Connection, tenant: TenantId) -> float | None:
    """The rate that devices were told last; None when they were told none."""
    entries = audit.list_entries(tx, tenant, subject=f"tenant/{tenant}", limit=200)
    return next((float(one.detail["rate_per_device_year"]) for one in entries if one.action == _DECIDED), None)


def tell_rate(tx: Connection, tenant: TenantId, device: DeviceId, rate: float, *, is_budget: bool, now: datetime) -> None:
    """Tell the device how many false alarms it may make, where its twin says something else.

    What somebody wishes of a device or of its group stays, unless the fleet shares a budget (`is_budget`).
    """
    try:
        said = device_store.get_twin(tx, tenant, device).config.drift.false_alarms_per_year
        wanted: float | None = rate
        if not is_budget and said is None and rate == AGENT_RATE:
            return
        if not is_budget:
            owner = device_store.get_device(tx, tenant, device)
            of_group = device_store.get_group(tx, tenant, owner.group).config.drift.false_alarms_per_year
            wanted = None if of_group is not None or rate == AGENT_RATE else rate
        if said == wanted or not (is_budget or said is None or said == told_rate(tx, tenant)):
            return
        twins.change_drift(tx, tenant, device, lambda patch: patch.model_copy(update={"false_alarms_per_year": wanted}), now=now)
    except NotFoundError:
        return


def review_order(tx: Connection, tenant: TenantId, *, rules: DriftRules) -> None:
    """Which devices: e-BH over the evidence of all series (DRIFT 5.6)."""
    rows = [row for row in drift_store.list_series(tx, tenant, src=0) if row.reference_id is not None]
    evidence = {row.series_key: row.evidence for row in rows}
    listed = detectors.list_by_e_values(evidence, alpha=rules.alpha)
    changed = {row.series_key: row.evidence for row in rows if row.is_listed != (row.series_key in listed)}
    drift_store.set_listed(tx, tenant, changed, listed)
