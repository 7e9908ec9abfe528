"""What a series is judged by: its reference in use; where the server judges, one that it fits from hours itself."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from fleet.db import Connection
from fleet.monitoring import detectors, drift_references, drift_store, stretches
from fleet.monitoring.drift_known import Known
from fleet.monitoring.drift_model import BROUGHT, DAY, HOUR, Check, Grade, ReferenceSource
from protocol.errors import InvalidError
from protocol.sketches.codec import SketchWindow, decode
from protocol.sketches.grid import Grid
from protocol.sketches.looks import HOURLY_LOOKS
from protocol.sketches.reference import CALIBRATED_DAYS, PROVISIONAL_DAYS, DeviceReference, fit_reference


def current_reference(tx: Connection, known: Known, *, now: datetime) -> DeviceReference | None:
    """What the series is judged by; the server fits its own where it judges, again when the days suffice for a better grade."""
    row = known.row
    wanted = ReferenceSource.SERVER if row.decided_by is Check.SERVER else ReferenceSource.DEVICE
    usable = [one for one in known.sources.values() if one.reference_id in known.references and one.source in {wanted, *BROUGHT}]
    current = next((one for one in usable if one.retired_at is None), None)
    is_due = row.decided_by is Check.SERVER and (
        (current is None and row.days >= PROVISIONAL_DAYS)
        or (current is not None and current.grade is Grade.PROVISIONAL and row.days >= CALIBRATED_DAYS)
    )
    fitted = _fit(tx, known) if is_due else None
    if fitted is None:
        return None if current is None else known.references[current.reference_id]
    drift_references.store_reference(tx, row, fitted, source=ReferenceSource.SERVER, now=now)
    return fitted


def _fit(tx: Connection, known: Known) -> DeviceReference | None:
    row = known.row
    begin = max(row.first_w0, row.learning_from or 0)
    windows = [one for one in drift_store.list_windows(tx, row.tenant, row.series_key, start=begin, end=row.next_w0) if one.nsub > 1]
    decoded = [decode(one.body, known.grid) for one in windows]
    return fit_server_reference([one for one in decoded if detectors.is_testable(one.counts)], known.grid, bytes.fromhex(row.model))


def fit_server_reference(windows: Sequence[SketchWindow], grid: Grid, model: bytes) -> DeviceReference | None:
    """A reference from windows of single hours that have rows in most of their sub-windows; None when they do not suffice. Pure."""
    hours = {one.w0 // HOUR: one for one in windows if one.w0 // HOUR == (one.w0 + one.nsub - 1) // HOUR}
    kept = {hour: one for hour, one in sorted(hours.items()) if one.mask.bit_count() >= stretches.KNOWN}
    if not kept:
        return None
    summaries = detectors.summaries_of([one.counts for one in kept.values()], grid)
    places = HOUR * np.array(list(kept), dtype=np.int64)
    try:
        return fit_reference(summaries, places, grid=grid, model=model, looks=HOURLY_LOOKS, per_day=DAY // HOUR)
    except InvalidError:
        return None
