"""How candidates compare with what devices run: reports of devices kept as they come, and added up per device and pipeline when asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from fleet import db
from fleet.campaigns import store
from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId
from protocol.messages import Event
from protocol.shadow import EVENT_TYPE, Comparison, ShadowReport, summed

#: Reports that one answer adds up: hours of many devices. What is older is left out, and said to be.
MAX_REPORTS = 20_000
#: Rows of one transaction of `prune`.
PRUNE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class ShadowSummary:
    """One candidate on one pipeline of one device, all of its reports as one."""

    device: DeviceId
    #: The latest report: who was compared with whom, for which campaign, how it stands.
    latest: ShadowReport
    #: Unix milliseconds of the earliest report's beginning.
    since: int
    reports: int
    figures: Comparison

    @property
    def agreement(self) -> float | None:
        """0..1; None without pairs, as in turns."""
        return self.figures.pairs.agreement

    @property
    def latency_ratio(self) -> float | None:
        """Mean milliseconds of the candidate over those of what runs; in shadow an upper bound, by its low priority. None: no frames."""
        ours, theirs = self.figures.candidate.latency_ms.mean, self.figures.champion.latency_ms.mean
        return ours / theirs if ours is not None and theirs else None

    @property
    def cpu_share(self) -> float | None:
        """Cores that comparing took while it ran; None where nothing was measured."""
        return self.figures.cpu_ms / self.figures.wall_ms if self.figures.wall_ms else None


def take_event(tx: db.Connection, tenant: TenantId, device: DeviceId, event: Event, now: datetime) -> None:
    """In the ingest transaction: keep what an event says about a candidate; other events are left alone. Raises: InvalidError."""
    if event.type != EVENT_TYPE:
        return
    try:
        report = ShadowReport.model_validate(event.data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidError(f"{EVENT_TYPE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if "\x00" in f"{report.campaign}{report.assignment}{report.reason}{report.text}":
        raise InvalidError(f"{EVENT_TYPE}: a NUL character.")
    if store.find_update(tx, tenant, report.campaign, device) is None:
        raise InvalidError(f"{EVENT_TYPE}: campaign {report.campaign[:80]!r} is none that the device is in.")
    store.add_shadow_report(tx, tenant, device, event.id, report, now=now)


def shadow_summary(
    database: db.Database, tenant: TenantId, *, device: DeviceId | None = None, pipeline: str | None = None, campaign: str | None = None
) -> list[ShadowSummary]:
    """Comparisons as the filters say, one per campaign, candidate, device and pipeline; those that were heard of last come first."""
    with database.reading() as tx:
        rows = store.list_shadow_reports(tx, tenant, campaign=campaign, device=device, pipeline=pipeline, limit=MAX_REPORTS)
    grouped: dict[tuple[str, ...], list[tuple[DeviceId, ShadowReport]]] = {}
    for row in rows:
        report = row[1]
        grouped.setdefault((report.campaign, report.assignment, report.candidate, row[0], report.pipeline), []).append(row)
    return [_summary(group) for group in grouped.values()]


def _summary(rows: Sequence[tuple[DeviceId, ShadowReport]]) -> ShadowSummary:
    reports = [report for _, report in rows]
    return ShadowSummary(
        device=rows[0][0],
        latest=reports[0],
        since=min(report.since for report in reports),
        reports=len(reports),
        figures=summed(report.figures for report in reports),
    )


def prune(database: db.Database, *, before: datetime) -> int:
    """Forget reports that came before the moment; returns how many."""
    total = 0
    while True:
        with database.transaction() as tx:
            count = store.delete_shadow_reports(tx, before=before, limit=PRUNE_ROWS)
        total += count
        if count < PRUNE_ROWS:
            return total
