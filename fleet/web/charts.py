"""Charts as values: lines over time, and two distributions beside each other; each also as a table of numbers. Pure."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from fleet.monitoring.alerts.history import figures_of, slot_of
from fleet.monitoring.alerts.model import Counted, DevicePoint, Figures, FleetPoint
from fleet.monitoring.model import TelemetryRow

#: Rows of the table under a chart; what has more is shown by every n-th.
TABLE_ROWS = 48
#: Drawing units of a distribution.
WIDTH, HEIGHT = 480.0, 120.0


class Range(StrEnum):
    """How far back a chart reaches."""

    HOUR = "1h"
    DAY = "24h"
    WEEK = "7d"
    MONTH = "28d"


SPANS: Mapping[Range, timedelta] = {
    Range.HOUR: timedelta(hours=1),
    Range.DAY: timedelta(hours=24),
    Range.WEEK: timedelta(days=7),
    Range.MONTH: timedelta(days=28),
}
#: One point of a chart of telemetry.
SLOTS: Mapping[Range, timedelta] = {
    Range.HOUR: timedelta(minutes=1),
    Range.DAY: timedelta(minutes=5),
    Range.WEEK: timedelta(hours=1),
    Range.MONTH: timedelta(hours=1),
}
#: A probability below this is shown as smaller, and not as a number.
LEAST_P = 1e-300
#: What the pages of telemetry offer; a week of raw messages is not read for one page.
RANGES = (Range.HOUR, Range.DAY, Range.WEEK)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart; None: no value there."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that is marked in a chart: an alarm's onset, its crossing."""

    at: datetime
    label: str
    #: onset or alarm.
    kind: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over time with one unit."""

    id: str
    title: str
    unit: str
    times: tuple[datetime, ...]
    lines: tuple[Line, ...]
    note: str = ""
    marks: tuple[Mark, ...] = ()
    is_log: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(value is not None for line in self.lines for value in line.values)

    @property
    def points_json(self) -> str:
        """What charts.js draws."""
        return json.dumps(
            {
                "t": [moment.timestamp() for moment in self.times],
                "unit": self.unit,
                "log": self.is_log,
                "lines": [{"label": line.label, "values": line.values} for line in self.lines],
                "marks": [{"t": mark.at.timestamp(), "label": mark.label, "kind": mark.kind} for mark in self.marks],
            }
        )

    @property
    def rows(self) -> tuple[tuple[datetime, tuple[str, ...]], ...]:
        """The numbers, the newest first, thinned to what fits a table."""
        every = max(1, math.ceil(len(self.times) / TABLE_ROWS))
        picked = range(len(self.times) - 1, -1, -every)
        return tuple((self.times[index], tuple(number(line.values[index]) for line in self.lines)) for index in picked)

    @property
    def summary(self) -> str:
        """The newest value of each line, in words: what stands for the drawing where nobody sees it."""
        newest = [(line.label, next((value for value in reversed(line.values) if value is not None), None)) for line in self.lines]
        unit = f" {self.unit}" if self.unit else ""
        said = ", ".join(f"{label} {number(value)}{unit}" for label, value in newest if value is not None)
        return f"{self.title}, newest: {said}" if said else f"{self.title}: nothing yet"


@dataclass(frozen=True, slots=True)
class Bar:
    """One cell of a distribution: where its two bars stand, in drawing units, and its shares."""

    label: str
    reference: float
    now: float
    x: float
    width: float
    reference_height: float
    now_height: float


def number(value: float | None) -> str:
    """A value as people read it: three digits that count."""
    if value is None:
        return "–"
    if value == 0 or 0.001 <= abs(value) < 1_000_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"


def probability(value: float | None) -> str:
    """The same of a probability: never 0, which nothing that was seen has; where the numbers of a computer end it is below that."""
    return number(value) if value is None or value >= LEAST_P else f"< {LEAST_P:.0e}"


def fleet_charts(points: Sequence[FleetPoint], *, span: Range) -> tuple[Chart, ...]:
    """The fleet over time: devices, throughput, latency, failures, alarms."""
    grouped = _by_hour(points) if span is Range.WEEK else points
    seconds = (timedelta(hours=1) if span is Range.WEEK else timedelta(minutes=5)).total_seconds()
    times = tuple(point.at for point in grouped)

    def counted(pick: Callable[[Counted], float]) -> tuple[float | None, ...]:
        return tuple(pick(point.counted) if point.counted else None for point in grouped)

    def figure(pick: Callable[[Figures], float | None]) -> tuple[float | None, ...]:
        return tuple(pick(point.figures) if point.figures.messages else None for point in grouped)

    return (
        Chart(
            "devices", "Devices", "", times, (Line("online", counted(lambda c: c.online)), Line("enrolled", counted(lambda c: c.devices)))
        ),
        Chart("frames", "Frames per second", "frames/s", times, (Line("all devices", figure(lambda f: f.frames / seconds)),)),
        replace(latency_chart(times, figure), note="The mean over devices and pipelines of what each of them reports, and the worst p99."),
        failures_chart(times, figure),
        Chart(
            "alarms",
            "Alarms and rules",
            "",
            times,
            (Line("open alarms", counted(lambda c: c.open_alarms)), Line("rules that fire", counted(lambda c: c.firing_rules))),
        ),
    )


def device_charts(perf: Mapping[datetime, Figures], system: Mapping[datetime, Figures]) -> tuple[Chart, ...]:
    """One pipeline of a device, and the device, over time."""
    times, moments = tuple(sorted(perf)), tuple(sorted(system))

    def figure(pick: Callable[[Figures], float | None]) -> tuple[float | None, ...]:
        return tuple(pick(perf[moment]) for moment in times)

    def of_device(pick: Callable[[Figures], float | None]) -> tuple[float | None, ...]:
        return tuple(pick(system[moment]) for moment in moments)

    charts = (
        latency_chart(times, figure),
        Chart(
            "frames",
            "Frames per second",
            "frames/s",
            times,
            (Line("frames", figure(lambda f: f.frames / f.seconds if f.seconds else None)),),
        ),
        failures_chart(times, figure),
        Chart("cpu", "CPU of one core", "%", moments, (Line("CPU", of_device(lambda f: f.cpu_sum / f.messages)),)),
        Chart("memory", "Memory", "MB", moments, (Line("resident", of_device(lambda f: f.rss_sum / f.messages)),)),
        Chart("temperature", "Temperature", "°C", moments, (Line("highest", of_device(lambda f: f.temperature_max)),)),
        Chart("disk", "Free disk", "MB", moments, (Line("lowest", of_device(lambda f: f.disk_free_min)),)),
    )
    return tuple(chart for chart in charts if not chart.is_empty)


def latency_chart(times: tuple[datetime, ...], figure: Callable[[Callable[[Figures], float | None]], tuple[float | None, ...]]) -> Chart:
    """Percentiles of inference latency."""
    lines = (
        Line("p50", figure(lambda f: f.p50_sum / f.timed if f.timed else None)),
        Line("p95", figure(lambda f: f.p95_sum / f.timed if f.timed else None)),
        Line("p99", figure(lambda f: f.p99_sum / f.timed if f.timed else None)),
        Line("worst p99", figure(lambda f: f.p99_max)),
    )
    return Chart("latency", "Inference latency", "ms", times, lines)


def failures_chart(times: tuple[datetime, ...], figure: Callable[[Callable[[Figures], float | None]], tuple[float | None, ...]]) -> Chart:
    """What was not inferred."""
    lines = (Line("failed", figure(lambda f: float(f.errors))), Line("not inferred", figure(lambda f: float(f.dropped))))
    return Chart("failures", "Failed and dropped frames", "frames", times, lines)


def slots_of_rows(rows: Sequence[TelemetryRow], *, size: timedelta) -> dict[datetime, Figures]:
    """Telemetry messages added up by slots."""
    found: dict[datetime, Figures] = {}
    for row in rows:
        slot = slot_of(row.ts, size)
        found[slot] = found.get(slot, Figures()).plus(figures_of(row.name, row.body))
    return found


def slots_of_points(points: Sequence[DevicePoint], *, stream: str, pipeline: str) -> dict[datetime, Figures]:
    """The hours of one stream (and pipeline)."""
    return {point.at: point.figures for point in points if (point.stream, point.pipeline) == (stream, pipeline)}


def bars_of(edges: Sequence[float], reference: Sequence[float], now: Sequence[float]) -> tuple[Bar, ...]:
    """Shares of the cells between `edges` (one more edge than cells) as bars of equal width; the outer cells hold what lies beyond."""
    top = max([*reference, *now, 1e-9])
    width = WIDTH / max(1, len(reference))
    cells = list(itertools.pairwise(edges))
    labels = [f"{number(low)} to {number(high)}" for low, high in cells]
    if len(cells) > 1:
        labels[0], labels[-1] = f"up to {number(cells[0][1])}", f"over {number(cells[-1][0])}"
    return tuple(
        Bar(label, before, after, round(index * width, 2), round(width / 2 - 0.5, 2), _height(before, top), _height(after, top))
        for index, (label, before, after) in enumerate(zip(labels, reference, now, strict=True))
    )


def _height(share: float, top: float) -> float:
    return round(HEIGHT * share / top, 2)


def _by_hour(points: Sequence[FleetPoint]) -> list[FleetPoint]:
    grouped: dict[datetime, FleetPoint] = {}
    for point in points:
        at = slot_of(point.at, timedelta(hours=1))
        before = grouped.get(at)
        figures = point.figures.plus(before.figures) if before else point.figures
        grouped[at] = FleetPoint(at, figures, point.counted or (before.counted if before else None))
    return [grouped[at] for at in sorted(grouped)]
