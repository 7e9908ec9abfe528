"""What is normal for a device: learned there, by the server or from a recording; checked, kept, used, begun anew; with audit entries."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from fleet import audit
from fleet.audit import Actor, ActorKind
from fleet.db import Connection, Database
from fleet.devices import store as device_store
from fleet.devices import twins
from fleet.devices.model import DriftPatch
from fleet.monitoring import alarm_store, detectors, drift_reading, drift_service, drift_store, drift_sums, reference_store
from fleet.monitoring.drift_alarms import DETECTOR, clear_alarm
from fleet.monitoring.drift_ingest import MOST_SERIES, too_many_series
from fleet.monitoring.drift_model import BROUGHT, BY_WINDOWS, DAY, AlarmEvent, Grade, Reference, ReferenceSource
from fleet.monitoring.drift_profiles import grids_of
from fleet.monitoring.drift_tables import SeriesKey, SeriesRow
from protocol.clock import to_unix_ms
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId
from protocol.messages import REFERENCE_LEARNED, Event, ReferenceLearned
from protocol.sketches import cbor
from protocol.sketches.evidence import HISTORY
from protocol.sketches.reference import MAX_REFERENCE_BYTES, DeviceReference, decode_reference


def store_reference(
    tx: Connection,
    row: SeriesRow,
    reference: DeviceReference,
    *,
    source: ReferenceSource,
    now: datetime,
    by: audit.Actor = DETECTOR,
    reason: str = "",
    detail: Mapping[str, str] | None = None,
    tell: Callable[[], None] | None = None,
) -> Reference:
    """Keep and use a reference, with the audit entry; an alarm that is open is over when it replaces another one.

    One that a device learned before somebody took what is there now as normal is kept, retired. One from a recording that nobody signed
    becomes signed when the same numbers come from one that a device signed, and stays so. `detail`: what else the audit entry says;
    `tell`: what else is to be changed, before the audit log is locked.
    """
    is_used = source != ReferenceSource.DEVICE or reference.last_w0 >= (row.learning_from or 0)
    made = Reference(
        device=row.device,
        pipeline=row.pipeline,
        model=row.model,
        grid_id=row.grid_id,
        reference_id=reference.reference_id.hex(),
        grade=Grade(reference.grade.value),
        source=source,
        body=reference.encoded,
        stored_at=now,
        retired_at=None if is_used else now,
    )
    kept = reference_store.list_references(tx, row)
    before = next((one for one in kept if one.retired_at is None), None)
    known = next((one for one in kept if one.reference_id == made.reference_id), None)
    if known is not None and (known.source, source) == (ReferenceSource.RECORDING, ReferenceSource.SIGNED_RECORDING):
        reference_store.set_source(tx, row.tenant, row.series_key, made)
    elif known is not None:
        made = replace(made, source=known.source)
    is_new = reference_store.put_reference(tx, row.tenant, row.series_key, made)
    if is_used:
        reference_store.use_reference(tx, row.tenant, row.series_key, made.reference_id, now=now)
        if before is not None and before.reference_id != made.reference_id:
            end_alarms(tx, row, AlarmEvent.REREFERENCED, by=by, now=now, reason=reason)
    if tell is not None:
        tell()
    if is_new or source in BROUGHT:  # who brings a recording says so each time
        told = {"pipeline": row.pipeline, "reference": made.reference_id, "grade": str(made.grade), "source": str(source), **(detail or {})}
        told |= {} if is_used else {"state": "retired"}
        subject = f"device/{row.device}"
        audit.append(tx, tenant=row.tenant, actor=by, action="drift.reference-stored", subject=subject, now=now, reason=reason, detail=told)
    return made


def end_alarms(tx: Connection, row: SeriesRow, outcome: AlarmEvent, *, by: audit.Actor, now: datetime, reason: str = "") -> None:
    """Clear the open alarm of the series' own."""
    alarm = alarm_store.find_latest(tx, row.tenant, row.subject, causes=BY_WINDOWS)
    if alarm is not None and alarm.is_open:
        clear_alarm(tx, alarm, outcome, by=by, now=now, reason=reason)


#: A reference agrees with the hourly sums when its mean lies within so many of its deviations (root mean square).
AGREES_WITHIN = 0.5
#: How old the first day of a reference may be that a device learned: 28 complete days, with many between them that were not.
LEARNED_WITHIN = timedelta(days=400)


def list_references(database: Database, tenant: TenantId, device: DeviceId, pipeline: str) -> list[Reference]:
    """The references of the pipeline, the one in use first. Raises: NotFoundError."""
    with database.reading() as tx:
        return reference_store.list_references(tx, drift_reading.current_series(tx, tenant, device, pipeline)[0])


def add_reference(
    database: Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    pipeline: str,
    body: bytes,
    source: ReferenceSource,
    by: Actor,
    now: datetime,
    reason: str = "",
    detail: Mapping[str, str] | None = None,
) -> Reference:
    """Store a reference (protocol.sketches.reference) that was learned from a recording, use it and send it to the device.

    `detail`: what the audit entry says of the recording.
    Raises: NotFoundError; InvalidError when it cannot be read, is of a grid that no release brought, or of another model version.
    """
    if len(body) > MAX_REFERENCE_BYTES:
        raise InvalidError(f"{len(body)} bytes; a reference has at most {MAX_REFERENCE_BYTES}.", code="too-large")
    with database.transaction() as tx:
        device_store.get_device(tx, tenant, device)
        reference = _readable(tx, tenant, body)
        key = SeriesKey(device, pipeline, reference.model.hex(), 0, reference.grid_id.hex())
        row = drift_store.lock_series(tx, tenant, {key: reference.first_w0}, now=now)[key]
        text = base64.b64encode(body).decode()

        def tell() -> None:
            _change_twin(tx, tenant, device, lambda patch: {"references": {**(patch.references or {}), pipeline: text}}, now=now)

        stored = store_reference(tx, row, reference, source=source, now=now, by=by, reason=reason, detail=detail, tell=tell)
        _judge_again(tx, replace(row, learning_from=None), now=now)
    return stored


def _readable(tx: Connection, tenant: TenantId, body: bytes) -> DeviceReference:
    document = cbor.decode(body, max_bytes=MAX_REFERENCE_BYTES, what="A reference")
    grid_id = document.get(1) if isinstance(document, dict) else None
    if not isinstance(grid_id, bytes):
        raise InvalidError("A reference that is no map with a grid in key 1.", code="bad-reference")
    grid = grids_of(tx, tenant, {grid_id.hex()}).get(grid_id.hex())
    if grid is None:
        raise InvalidError(f"No release brought grid {grid_id.hex()[:64]}.", hint="Publish its release first.", code="unknown-grid")
    return decode_reference(body, grid)


def rebaseline(database: Database, *, tenant: TenantId, device: DeviceId, pipeline: str, by: Actor, now: datetime, reason: str) -> None:
    """Take what is seen from now on as normal: the reference starts again, open alarms are cleared as `rereferenced`.

    Raises: NotFoundError; InvalidError without a reason.
    """
    drift_service.check_reason(reason)
    with database.transaction() as tx:
        row, _ = drift_reading.current_series(tx, tenant, device, pipeline)
        row = drift_store.get_series(tx, tenant, row.series_key, is_held=True)
        reference_store.use_reference(tx, tenant, row.series_key, None, now=now)
        fresh = replace(row, reference_id=None, grade=Grade.COLLECTING, evidence_state=None, statistic=0.0, threshold=0.0, evidence=0.0)
        drift_store.save_series(
            tx, replace(fresh, learning_from=row.next_w0, days=0, score=None, p=None, cells=(), is_listed=False), now=now
        )
        end_alarms(tx, row, AlarmEvent.REREFERENCED, by=by, now=now, reason=reason)

        def change(patch: DriftPatch) -> dict[str, object]:
            kept = {name: text for name, text in (patch.references or {}).items() if name != pipeline}
            return {"rebaselined": {**(patch.rebaselined or {}), pipeline: to_unix_ms(now)}, "references": kept or None}

        _change_twin(tx, tenant, device, change, now=now)
        subject, detail = f"device/{device}", {"pipeline": pipeline, "reference": row.reference_id or ""}
        audit.append(tx, tenant=tenant, actor=by, action="drift.rebaselined", subject=subject, now=now, reason=reason, detail=detail)


def take_event(tx: Connection, tenant: TenantId, device: DeviceId, event: Event, now: datetime) -> None:
    """An event of a device, in the transaction of ingest: the reference that it learned is checked, kept and used; anything else: nothing.

    One that cannot be used is refused in the audit log, since the device would send it again for ever.
    """
    if event.type != REFERENCE_LEARNED:
        return
    by = Actor(ActorKind.DEVICE, device)
    try:
        told = ReferenceLearned.model_validate(event.data)
        body = base64.b64decode(told.body, validate=True)
        reference = _readable(tx, tenant, body)
        _check_days(reference, now)
        key = SeriesKey(device, told.pipeline, reference.model.hex(), 0, reference.grid_id.hex())
        _check_room(tx, tenant, key, now)
        row = drift_store.lock_series(tx, tenant, {key: reference.first_w0}, now=now)[key]
        _check_agrees(tx, row, reference)
    except (ValueError, InvalidError) as error:  # also what pydantic and base64 raise
        text = str(error)[:500]
        subject = f"device/{device}"
        audit.append(tx, tenant=tenant, actor=by, action="drift.reference-refused", subject=subject, now=now, detail={"error": text})
        return
    if all(one.reference_id != reference.reference_id.hex() for one in reference_store.list_references(tx, row)):
        stored = store_reference(tx, row, reference, source=ReferenceSource.DEVICE, now=now, by=by)
        if stored.retired_at is None:
            _judge_again(tx, row, now=now)


def _check_room(tx: Connection, tenant: TenantId, key: SeriesKey, now: datetime) -> None:
    """Raises: InvalidError when the series would be new and its device has too many."""
    if too_many_series(tx, tenant, [key], now=now):
        raise InvalidError(f"{key.device} has {MOST_SERIES} pipelines and model versions already; wanted fewer.", code="too-many")


def _check_days(reference: DeviceReference, now: datetime) -> None:
    """Raises: InvalidError for a reference of days that cannot have been."""
    oldest, today = drift_sums.sub_window_of(now - LEARNED_WITHIN), drift_sums.sub_window_of(now)
    if not oldest <= reference.first_w0 <= reference.last_w0 <= today:
        raise InvalidError(
            f"The reference was learned from sub-windows {reference.first_w0} to {reference.last_w0}; wanted them in {oldest} to {today}.",
            code="bad-reference",
        )


def _check_agrees(tx: Connection, row: SeriesRow, reference: DeviceReference) -> None:
    """Raises: InvalidError when the hourly sums of its days, as far as they are here, say something else than its mean."""
    grid = drift_reading.get_grid(tx, row.tenant, row.grid_id)
    first, last = drift_sums.day_start(reference.first_w0), reference.last_w0 + 1
    days = drift_store.list_sums(tx, row.tenant, [row.series_key], "day", start=first, end=last).get(row.series_key, [])
    if sum(day.sub_windows for day in days) < 0.8 * reference.windows:
        return
    summary = detectors.summaries_of([drift_sums.sum_of_sums(days, grid)], grid)[0]
    apart = detectors.site_gap(reference, summary)
    if apart > AGREES_WITHIN:
        raise InvalidError(
            f"The mean of the reference lies {apart:.2f} deviations from the sums of its days; wanted at most {AGREES_WITHIN}.",
            code="reference-mismatch",
        )


def _judge_again(tx: Connection, row: SeriesRow, *, now: datetime) -> None:
    """All that evidence remembers of the series waits to be judged again."""
    first = max(row.first_w0, row.next_w0 - HISTORY * DAY)
    if row.next_w0 > row.first_w0:
        dirty = first if row.dirty_from is None else min(first, row.dirty_from)
        drift_store.save_series(tx, replace(row, dirty_from=dirty, evidence_state=None), now=now)


def _change_twin(
    tx: Connection, tenant: TenantId, device: DeviceId, values: Callable[[DriftPatch], dict[str, object]], *, now: datetime
) -> None:
    twins.change_drift(tx, tenant, device, lambda patch: patch.model_copy(update=values(patch)), now=now)
