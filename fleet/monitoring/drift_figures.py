"""What is known of a pipeline's drift and accuracy after each window, as telemetry: rules, their tests and history read it like the rest.

The server writes it itself, of the windows that came; one of an hour that is judged again replaces the one before.
"""

import json
from datetime import datetime
from typing import Any

from fleet.db import Connection
from fleet.monitoring import drift_reading, drift_sums
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.drift_model import AccuracyRange, Trust
from fleet.monitoring.drift_tables import SeriesRow
from protocol.sketches.codec import SUBWINDOW_S, SUBWINDOWS_PER_HOUR
from protocol.sketches.grid import Grid

#: The stream that it is kept as, beside those that devices send.
STREAM = "drift"
#: Values are told to so much of what raises an alarm at most: a surprise beyond it is no larger news.
MOST_PERCENT = 1e6


def keep(tx: Connection, row: SeriesRow, grid: Grid, *, now: datetime) -> None:
    """Keep what is known at the end of the series' latest window; nothing of a series that has neither a reference nor an estimate."""
    until = drift_sums.moment_of(row.next_w0)
    since = drift_sums.moment_of(row.next_w0 - SUBWINDOWS_PER_HOUR)
    body = figures_of(row, drift_reading.estimated(tx, row, grid, since=since, until=until))
    if body is not None:
        key = monitoring_store.device_keys(tx, row.tenant, [row.device])[row.device]
        kept = {"tenant": row.tenant, "stream_key": row.series_key, "seq": row.next_w0, "device_key": key, "name": STREAM}
        kept |= {"pipeline": row.pipeline, "ts": until, "received_at": now, "body": json.dumps(body)}
        monitoring_store.put_telemetry(tx, [kept])


def figures_of(row: SeriesRow, estimate: AccuracyRange | None) -> dict[str, Any] | None:
    """The message, all in percent, evidence of what raises an alarm; what is not known is left out; None: nothing is known. Pure."""
    found: dict[str, Any] = {}
    if row.threshold > 0:
        found["evidence_percent"] = min(MOST_PERCENT, 100.0 * row.statistic / row.threshold)
    if estimate is not None:
        measured = next((one for one in estimate.measured if not one.slice and one.labels), None)
        if estimate.rows:
            found |= {"accuracy_low": 100.0 * estimate.low, "accuracy_high": 100.0 * estimate.high}
            found["accuracy_trusted"] = 0.0 if estimate.trust is Trust.NOT_TRUSTED else 100.0
        if measured is not None:
            found |= {"measured_low": 100.0 * measured.low, "measured_high": 100.0 * measured.high, "labels": measured.labels}
    return {"window_s": SUBWINDOW_S * SUBWINDOWS_PER_HOUR, "model": row.model, **found} if found else None
