"""From the serving process's sums to `tel/serving`, a row per line and telemetry window. Pure."""

from collections.abc import Sequence
from typing import Any

from agent.database.outbox import Draft
from agent.serving.figures import Totals


class ServingWindows:
    """What was told last, so that the next window holds what came since."""

    def __init__(self) -> None:
        self._before: dict[str, Totals] = {}

    def drafts(self, totals: Sequence[Totals], *, window_s: float) -> list[Draft]:
        """The rows of a window that ends now; a line that nobody asked for makes none."""
        if window_s <= 0:
            return []
        found = []
        for now in totals:
            since = now.since(self._before.get(now.line))
            self._before[now.line] = now
            if since.answered or since.failed or since.refused:
                found.append(Draft("tel", ("serving",), _body(since, window_s)))
        return found


_PERCENTILES = {"lat_ms_p50": 0.50, "lat_ms_p95": 0.95, "lat_ms_p99": 0.99}


def _body(since: Totals, window_s: float) -> dict[str, Any]:
    return {
        "line": since.line,
        "release": since.release or None,
        "window_s": round(window_s, 3),
        **since.counts(),
        **{key: since.percentile_ms(share) for key, share in _PERCENTILES.items()},
        "backend": since.provider,
    }
