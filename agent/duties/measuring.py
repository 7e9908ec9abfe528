"""Telemetry windows: what the pipelines, the other programs and this machine did since the window before, and what was lost meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.budgets import Budgets
from agent.conditions import Conditions
from agent.config import TelemetryConfig
from agent.database.outbox import Draft, OutboxCounts
from agent.inference.messages import PipelineStats
from agent.serving.figures import Totals
from agent.serving.windows import ServingWindows
from agent.store import Store
from agent.telemetry import UnitMeter, perf_drafts, read_machine, sys_draft
from agent.traffic import Traffic
from protocol.clock import Clock
from protocol.messages import ClockState


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures come from."""

    pipelines: Callable[[], list[PipelineStats]]
    served: Callable[[], list[Totals]]
    #: Rows that the uplink's ring gave up, and predictions that found no room since this was asked before.
    ring_dropped: Callable[[], int]
    lost_predictions: Callable[[], int]


class Measuring:
    """Called by the control loop. What was lost is a condition until a window passes without loss."""

    def __init__(self, sources: Sources, *, store: Store, conditions: Conditions, budgets: Budgets, traffic: Traffic, clock: Clock) -> None:
        self._sources, self._store, self._conditions = sources, store, conditions
        self._budgets, self._traffic, self._clock = budgets, traffic, clock
        self._perf_at = self._sys_at = clock.monotonic()
        #: The first windows are as long as they are set: until they end, nobody here sees a figure or hears of a spent budget.
        self._perf_stretches = self._sys_stretches = False
        self._meter, self._served = UnitMeter(), ServingWindows()
        self._lost_rows = 0
        #: The pipelines' figures of the latest window.
        self.stats: list[PipelineStats] = []

    def tick(self, telemetry: TelemetryConfig, state_dir: Path) -> list[Draft]:
        """The rows of the windows that end now. Raises: DeviceError of the store."""
        now, drafts = self._clock.monotonic(), list[Draft]()
        window_s = now - self._perf_at
        if window_s >= telemetry.perf_s * (self._budgets.stretch if self._perf_stretches else 1.0):
            self._perf_at, self._perf_stretches = now, True
            self.stats = self._sources.pipelines()
            drafts += perf_drafts(self.stats)
            drafts += self._served.drafts(self._sources.served(), window_s=window_s)
        window_s = now - self._sys_at
        if window_s >= telemetry.sys_s * (self._budgets.stretch if self._sys_stretches else 1.0):
            self._sys_at, self._sys_stretches = now, True
            drafts.append(self._machine(window_s, state_dir))
        return drafts

    def _machine(self, window_s: float, state_dir: Path) -> Draft:
        usage = self._meter.measure(window_s / self._clock.speed)
        day = self._account(usage.written)
        machine, counts = read_machine(state_dir), self._store.counts()
        draft = sys_draft(
            window_s=window_s, usage=usage, machine=machine, counts=counts, ring_dropped=self._sources.ring_dropped(), day=day
        )
        self._watch_losses(counts)
        return draft

    def _account(self, written: int | None) -> dict[str, Any]:
        """Take in what was exchanged and written; returns the day's figures for `tel/sys`."""
        sent, received = self._traffic.totals()
        is_time_known = self._store.clock_state is ClockState.OK
        self._budgets.observe(sent=sent, received=received, written=written, is_time_known=is_time_known)
        self._conditions.replace("budgets", self._budgets.findings())
        today = self._budgets.today
        return {"day_sent": today.sent, "day_received": today.received, "day_written": None if written is None else today.written}

    def _watch_losses(self, counts: OutboxCounts) -> None:
        lost = sum(counts.dropped.values())
        before, self._lost_rows = self._lost_rows, lost
        text = f"{lost} rows were given up so far: {', '.join(f'{rows} {kind}' for kind, rows in sorted(counts.dropped.items()))}."
        found = [("outbox_dropping", text, "")] if lost > before else []
        if predictions := self._sources.lost_predictions():
            found.append(("predictions_lost", f"{predictions} predictions found no room.", ""))
        self._conditions.replace("losses", found)
