"""What a series is judged by: its reference in use; where the server judges, one that it fits from hours itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from fleet.db import Connection
from fleet.monitoring import detectors, drift_references, drift_store, reference_store
from fleet.monitoring.drift_model import Check, Grade, Reference
from fleet.monitoring.drift_profiles import find_profile
from fleet.monitoring.drift_tables import SeriesRow
from protocol.errors import InvalidError
from protocol.sketches.codec import SketchWindow, decode
from protocol.sketches.grid import Grid
from protocol.sketches.profile import ModelProfile
from protocol.sketches.reference import CALIBRATED_DAYS, PROVISIONAL_DAYS, DeviceReference, decode_reference, fit_reference


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What judging a series starts from."""

    row: SeriesRow
    grid: Grid
    profile: ModelProfile | None
    references: Mapping[str, DeviceReference]
    sources: Mapping[str, Reference]


def known_of(tx: Connection, row: SeriesRow, grid: Grid) -> Known:
    """What judging the series starts from; references of another version of this program are left out."""
    stored = reference_store.list_references(tx, row)
    decoded: dict[str, DeviceReference] = {}
    for one in stored:
        try:
            decoded[one.reference_id] = decode_reference(one.body, grid)
        except InvalidError:  # checked when it was stored; of another version of this program
            continue
    return Known(row, grid, find_profile(tx, row.tenant, row.model, row.grid_id), decoded, {one.reference_id: one for one in stored})


def current_reference(tx: Connection, known: Known, *, now: datetime) -> DeviceReference | None:
    """What the series is judged by; the server fits its own where it judges, again when the days suffice for a better grade."""
    row = known.row
    wanted = "server" if row.decided_by is Check.SERVER else "device"
    usable = [one for one in known.sources.values() if one.reference_id in known.references and one.source in {wanted, "recording"}]
    current = next((one for one in usable if one.retired_at is None), None)
    is_due = row.decided_by is Check.SERVER and (
        (current is None and row.days >= PROVISIONAL_DAYS)
        or (current is not None and current.grade is Grade.PROVISIONAL and row.days >= CALIBRATED_DAYS)
    )
    fitted = _fit(tx, known) if is_due else None
    if fitted is None:
        return None if current is None else known.references[current.reference_id]
    drift_references.store_reference(tx, row, fitted, source="server", now=now)
    return fitted


def _fit(tx: Connection, known: Known) -> DeviceReference | None:
    row = known.row
    begin = max(row.first_w0, row.learning_from or 0)
    windows = [one for one in drift_store.list_windows(tx, row.tenant, row.series_key, start=begin, end=row.next_w0) if one.nsub > 1]
    decoded = [decode(one.body, known.grid) for one in windows]
    return fit_server_reference([one for one in decoded if detectors.is_testable(one.counts)], known.grid, bytes.fromhex(row.model))


def fit_server_reference(windows: Sequence[SketchWindow], grid: Grid, model: bytes) -> DeviceReference | None:
    """A reference from hourly windows, each standing for its sub-windows that have rows; None when they do not suffice. Pure."""
    if not windows:
        return None
    summaries = detectors.summaries_of([one.counts for one in windows], grid)
    places = [[one.w0 + index for index in range(one.nsub) if one.mask >> index & 1] for one in windows]
    repeated = np.repeat(summaries, [len(one) for one in places], axis=0)
    try:
        return fit_reference(repeated, np.array([w0 for one in places for w0 in one], dtype=np.int64), grid=grid, model=model)
    except InvalidError:
        return None
