"""A device's reference learned from a recording: `mooring drift reference import` (DRIFT 5.2). What is learned is `provisional`, always.

Of the recording only clean sub-windows of one pipeline and model version count. Which device made it is proven by its signature, or said
by the person who brings it, in the audit log.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np

from fleet import audit
from fleet.audit import Actor
from fleet.blobs import BlobStore
from fleet.db import Database
from fleet.monitoring import drift_learning, drift_profiles, drift_recordings, drift_references
from fleet.monitoring.drift_model import Reference
from fleet.monitoring.drift_recordings import Brought, Proven
from protocol.errors import InvalidError, NotFoundError, TrustError
from protocol.ids import TenantId
from protocol.sketches.codec import CONDITION_CODES, SketchWindow, Source
from protocol.sketches.grid import Grid
from protocol.sketches.recording import Recorded, decode_recording
from protocol.sketches.reference import COMPLETE_DAY, PROVISIONAL_DAYS, DeviceReference, complete_days, fit_reference
from protocol.sketches.summary import summarizer

#: Share of rows left out above which a sub-window does not count, and share of the usual rows below which it does not.
MAX_EXCLUDED, MIN_RATE = 0.5, 0.5
#: A sub-window with any second of these does not count.
_SPOILED = frozenset(CONDITION_CODES[name] for name in ("frame_missing", "clock_jumped", "extractor_failed"))


@dataclass(frozen=True, slots=True)
class Learned:
    """A reference, and what of the recording it is."""

    pipeline: str
    reference: DeviceReference
    #: Complete days, and clean sub-windows in all.
    days: int
    windows: int
    #: Sub-windows that did not count, by the reason.
    left_out: dict[str, int]


def learn(recorded: Sequence[Recorded], *, pipeline: str, model: str = "", is_indoor: bool = False) -> Learned:
    """The reference in the sub-windows of one pipeline and model version. Pure.

    `model`: the first 16 bytes of the model file's digest, hexadecimal; empty: the one of which there is most. Raises: NotFoundError when
    the recording has nothing of them; InvalidError (too-few) saying how many complete days there are and are wanted.
    """
    chosen, grid = _chosen(recorded, pipeline, model)
    left_out: Counter[str] = Counter()
    clean: dict[int, SketchWindow] = {}
    usual = median(window.counts.rows for window in chosen)
    for window in chosen:
        reason = "twice" if window.w0 in clean else _unclean(window, usual)
        if reason:
            left_out[reason] += 1
        else:
            clean[window.w0] = window
    places = np.array(sorted(clean), np.int64)
    days = complete_days(places) if places.size else places
    if len(days) < PROVISIONAL_DAYS:
        raise InvalidError(
            f"The recording of {pipeline} has {len(days)} complete days among {len(clean)} clean sub-windows"
            f"{_told(left_out)}; wanted {PROVISIONAL_DAYS} days of at least {COMPLETE_DAY} each.",
            code="too-few",
            hint="Wait until the device has watched that long, and record again: mooring-agent drift record --days 28 -o FILE",
        )
    vectors = _summaries([clean[place] for place in places.tolist()], grid)
    reference = fit_reference(vectors, places, grid=grid, model=chosen[0].model, is_indoor=is_indoor, is_recorded=True)
    return Learned(pipeline, reference, len(days), len(clean), dict(left_out))


def import_reference(
    database: Database,
    blobs: BlobStore,
    *,
    tenant: TenantId,
    brought: Brought,
    pipeline: str,
    recording: bytes,
    by: Actor,
    now: datetime,
    reason: str,
    model: str = "",
    is_indoor: bool = False,
) -> tuple[Reference, Learned]:
    """Learn a reference from a recording, keep it for the device's pipeline, use it, and say so in the audit log.

    Raises: NotFoundError; InvalidError for a recording that is malformed, too short, or of a grid that no release of the tenant brought;
    InvalidError and TrustError for one that is not from where it should be (`drift_recordings.prove`). A TrustError is in the audit log.
    """
    if not reason.strip():
        raise InvalidError("A reference from a recording wants a reason.", hint="Say where and when it was recorded: --reason.")
    with drift_recordings.advised():
        proven = _proven(database, recording, brought, tenant=tenant, by=by, now=now, reason=reason)
        recorded = decode_recording(proven.body)
    learned = learn(recorded, pipeline=pipeline, model=model, is_indoor=is_indoor)
    grid_id = learned.reference.grid_id.hex()
    drift_learning.learn_profiles(database, blobs, tenant, now=now)  # also of a release whose devices have sent nothing yet
    with database.reading() as tx:
        is_known = grid_id in drift_profiles.grids_of(tx, tenant, {grid_id})
    if not is_known:
        raise InvalidError(
            f"The recording was counted on grid {grid_id}, which no release here brought.",
            code="unknown-grid",
            hint="Import the model with the same evaluation data's profile and release it first; a grid is made once, with its release.",
        )
    stored = drift_references.add_reference(
        database,
        tenant=tenant,
        device=brought.device,
        pipeline=pipeline,
        body=learned.reference.encoded,
        source=proven.source,
        by=by,
        now=now,
        reason=reason,
        detail=proven.detail,
    )
    return stored, learned


def _proven(database: Database, recording: bytes, brought: Brought, *, tenant: TenantId, by: Actor, now: datetime, reason: str) -> Proven:
    """The recording, proven; one that is not what it says is written to the audit log. Raises: InvalidError; TrustError."""
    try:
        with database.reading() as tx:
            return drift_recordings.prove(tx, recording, brought, tenant=tenant, now=now)
    except TrustError as error:
        subject, detail = f"device/{brought.device}", {"code": error.code, "error": error.message}
        with database.transaction() as tx:
            audit.append(
                tx, tenant=tenant, actor=by, action="drift.reference-refused", subject=subject, now=now, reason=reason, detail=detail
            )
        raise


def _chosen(recorded: Sequence[Recorded], pipeline: str, model: str) -> tuple[list[SketchWindow], Grid]:
    """The active slot's sub-windows of the pipeline and model version that most are of, and their grid."""
    active = [one for one in recorded if one.window.pipeline == pipeline and one.window.src is Source.ACTIVE]
    subjects = Counter((one.window.model, one.grid.grid_id) for one in active if not model or one.window.model.hex() == model)
    if not subjects:
        seen = sorted({f"{one.window.pipeline} (model {one.window.model.hex()})" for one in recorded})
        raise NotFoundError(
            f"The recording has nothing of pipeline {pipeline}{f' and model {model}' if model else ''}.",
            hint=f"It has {', '.join(seen[:8]) or 'no sub-windows'}.",
        )
    (wanted, grid_id), _ = subjects.most_common(1)[0]
    chosen = [one for one in active if (one.window.model, one.grid.grid_id) == (wanted, grid_id)]
    return [one.window for one in chosen], chosen[0].grid


def _unclean(window: SketchWindow, usual: float) -> str:
    counts = window.counts
    if any(seconds and code in _SPOILED for code, seconds in counts.conditions.items()):
        return "spoiled by a condition"
    if counts.excluded > MAX_EXCLUDED * (counts.rows + counts.excluded):
        return "mostly left out"
    return "too few rows" if counts.rows < MIN_RATE * usual or not counts.rows else ""


def _summaries(windows: Sequence[SketchWindow], grid: Grid) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """float64 [n, d]; what a window does not tell of itself is what the others say on average."""
    cells, classes = np.stack([one.counts.cells for one in windows]), np.stack([one.counts.classes for one in windows])
    vectors = summarizer(grid).summarize(cells, classes)
    known = np.isfinite(vectors)
    mean = np.where(known, vectors, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, vectors, mean)


def _told(left_out: Counter[str]) -> str:
    return f" ({', '.join(f'{count} {reason}' for reason, count in sorted(left_out.items()))})" if left_out else ""
