"""From counters to telemetry windows: pure, except `UnitMeter` and `Machine`, which read /proc and /sys.

A window that no longer fits on the disk is merged with its neighbors into a coarser one: sums stay sums, extremes stay extremes.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.sources.states import Channel
from agent.store import Draft, OutboxCounts

_SANE_CELSIUS = (-60.0, 200.0)
_THERMAL = Path("/sys/class/thermal")


class WindowFigures(Protocol):
    """One pipeline over one window; the inference side's `PipelineStats` is one."""

    @property
    def pipeline(self) -> str: ...
    @property
    def line(self) -> str: ...
    @property
    def release(self) -> str | None: ...
    @property
    def window_s(self) -> float: ...
    @property
    def inferred(self) -> int: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...
    @property
    def errors(self) -> int: ...
    @property
    def fps(self) -> float: ...
    @property
    def lat_ms_p50(self) -> float | None: ...
    @property
    def lat_ms_p95(self) -> float | None: ...
    @property
    def lat_ms_p99(self) -> float | None: ...
    @property
    def effective(self) -> str: ...
    @property
    def source_state(self) -> str: ...
    @property
    def unsent(self) -> int: ...
    @property
    def channels(self) -> Mapping[str, Channel]: ...


# --- windows ---


def perf_drafts(stats: Sequence[WindowFigures]) -> list[Draft]:
    """`tel/perf` of every pipeline, and `tel/sensor` of those with channels."""
    drafts = []
    for one in stats:
        if one.window_s <= 0:
            continue
        dropped = {reason: count for reason, count in one.dropped.items() if count}
        if one.unsent:
            dropped["unsent"] = one.unsent
        body = {
            "pipeline": one.pipeline,
            "line": one.line,
            "release": one.release,
            "window_s": round(one.window_s, 3),
            "frames": one.inferred,
            "fps": round(one.fps, 3),
            "lat_ms_p50": _rounded(one.lat_ms_p50),
            "lat_ms_p95": _rounded(one.lat_ms_p95),
            "lat_ms_p99": _rounded(one.lat_ms_p99),
            "dropped": dropped,
            "errors": one.errors,
            "backend": one.effective,
            "source_state": str(one.source_state),
        }
        drafts.append(Draft("tel", ("perf",), body))
        if one.channels:
            channels = {name: channel_figures(channel) for name, channel in one.channels.items() if channel.count}
            sensor = {"pipeline": one.pipeline, "window_s": round(one.window_s, 3), "channels": channels}
            drafts.append(Draft("tel", ("sensor",), sensor))
    return drafts


def channel_figures(channel: Channel) -> dict[str, float]:
    """The figures of one sensor channel as they are sent."""
    return {
        "count": float(channel.count),
        "mean": channel.mean,
        "min": channel.low,
        "max": channel.high,
        "gaps": float(channel.gaps),
    }


def sys_draft(
    *, window_s: float, usage: "Usage", machine: "Machine", counts: OutboxCounts, ring_dropped: int, day: Mapping[str, Any] | None = None
) -> Draft:
    """`tel/sys` of one window; `day`: what was exchanged and written today."""
    dropped = {**counts.dropped, **({"ring": ring_dropped} if ring_dropped else {})}
    body = {
        "window_s": round(window_s, 3),
        "cpu_percent": round(usage.cpu_percent, 2),
        "rss_mb": round(usage.rss_mb, 1),
        "temperature_c": machine.temperature_c,
        "disk_free_mb": round(machine.disk_free_mb, 1),
        "outbox_rows": counts.rows,
        "outbox_mb": round(counts.bytes / 2**20, 3),
        "outbox_dropped": dropped,
        **(day or {}),
    }
    return Draft("tel", ("sys",), body)


def merge_windows(bodies: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """One telemetry body that covers all of them, oldest first; None when they are not of one kind."""
    kinds = {_kind_of(body) for body in bodies}
    if len(kinds) != 1:
        return None
    window_s = round(sum(body["window_s"] for body in bodies), 3)
    merged = {**bodies[-1], "window_s": window_s}
    match kinds.pop():
        case "perf":
            return merged | _merge_perf(bodies, window_s)
        case "sys":
            return merged | _merge_sys(bodies, window_s)
        case "sensor":
            return merged | {"channels": _merge_channels([body["channels"] for body in bodies])}
        case "serving":
            return merged | _merge_serving(bodies)
        case _:
            return None


def _kind_of(body: Mapping[str, Any]) -> str | None:
    names = {"frames": "perf", "cpu_percent": "sys", "channels": "sensor", "answered": "serving"}
    return next((kind for key, kind in names.items() if key in body), None)


def _merge_perf(bodies: Sequence[Mapping[str, Any]], window_s: float) -> dict[str, Any]:
    frames = sum(body["frames"] for body in bodies)
    reasons = {reason for body in bodies for reason in body["dropped"]}
    with_latency = [body for body in bodies if body["lat_ms_p99"] is not None]
    middle = {key: _weighted(with_latency, key, by="frames") for key in ("lat_ms_p50", "lat_ms_p95")}
    return {
        "frames": frames,
        "fps": round(sum(body["fps"] * body["window_s"] for body in bodies) / window_s, 3),
        "dropped": {reason: sum(body["dropped"].get(reason, 0) for body in bodies) for reason in sorted(reasons)},
        "errors": sum(body["errors"] for body in bodies),
        # the true p99 of the union lies at or below the largest of the parts
        "lat_ms_p99": max((body["lat_ms_p99"] for body in with_latency), default=None),
        **middle,
    }


def _merge_sys(bodies: Sequence[Mapping[str, Any]], window_s: float) -> dict[str, Any]:
    heat = [body["temperature_c"] for body in bodies if body["temperature_c"] is not None]
    return {
        "cpu_percent": round(sum(body["cpu_percent"] * body["window_s"] for body in bodies) / window_s, 2),
        "rss_mb": max(body["rss_mb"] for body in bodies),
        "temperature_c": max(heat, default=None),
        "disk_free_mb": min(body["disk_free_mb"] for body in bodies),
    }


def _merge_serving(bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {key: sum(body[key] for body in bodies) for key in ("answered", "failed", "refused")}
    middle = {key: _weighted(bodies, key, by="answered") for key in ("lat_ms_p50", "lat_ms_p95")}
    return sums | middle | {"lat_ms_p99": max((body["lat_ms_p99"] for body in bodies if body["lat_ms_p99"] is not None), default=None)}


def _merge_channels(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    merged = {}
    for name in sorted({name for part in parts for name in part}):
        found = [part[name] for part in parts if name in part]
        count = sum(figures["count"] for figures in found)
        merged[name] = {
            "count": count,
            "mean": sum(figures["mean"] * figures["count"] for figures in found) / count if count else 0.0,
            "min": min(figures["min"] for figures in found),
            "max": max(figures["max"] for figures in found),
            "gaps": sum(figures.get("gaps", 0.0) for figures in found),
        }
    return merged


def _weighted(bodies: Sequence[Mapping[str, Any]], key: str, *, by: str) -> float | None:
    weight = sum(body[by] for body in bodies if body[key] is not None)
    return _rounded(sum(body[key] * body[by] for body in bodies if body[key] is not None) / weight) if weight else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# --- the machine ---


@dataclass(frozen=True, slots=True)
class Usage:
    """What the unit's processes used."""

    cpu_percent: float
    rss_mb: float
    #: Bytes that they caused to be written to storage since they started; None when the kernel does not tell.
    written: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """How the machine is."""

    temperature_c: float | None
    disk_free_mb: float


class UnitMeter:
    """CPU and memory of this process and all below it, from /proc."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._page_mb = os.sysconf("SC_PAGE_SIZE") / 2**20
        self._last_ticks = self._total()[0]

    def measure(self, real_s: float) -> Usage:
        """CPU percent of one core over the last `real_s` seconds of system time, and resident memory now."""
        ticks, pages, written = self._total()
        used, self._last_ticks = max(0, ticks - self._last_ticks), ticks
        return Usage(100.0 * used / self._ticks_per_s / max(real_s, 1e-3), pages * self._page_mb, written)

    def _total(self) -> tuple[int, int, int | None]:
        """Ticks of all processes, those of ended children included, their resident pages, and bytes written."""
        ticks = pages = 0
        written: int | None = None
        waiting, seen = [os.getpid()], set[int]()
        while waiting:
            pid = waiting.pop()
            if pid in seen:
                continue
            seen.add(pid)
            try:
                fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(value) for value in fields[11:15])
                pages += int((self._proc / str(pid) / "statm").read_text().split()[1])
                if (count := _written(self._proc / str(pid) / "io")) is not None:
                    written = (written or 0) + count
                waiting += self._children(pid)
            except (OSError, IndexError, ValueError):
                continue  # it ended while we looked
        return ticks, pages, written

    def _children(self, pid: int) -> list[int]:
        found: list[int] = []
        for task in (self._proc / str(pid) / "task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
        return found


def _written(path: Path) -> int | None:
    """Bytes that a process, and the children it has waited for, caused to be written to storage; None when the kernel does not tell.

    Counted when a page becomes dirty. What the flash's own controller writes on top is seen by nobody.
    """
    try:
        fields = dict(line.split(": ", 1) for line in path.read_text(encoding="ascii").splitlines())
        return max(0, int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"]))
    except (OSError, KeyError, ValueError):
        return None


def read_machine(state_dir: Path, thermal: Path = _THERMAL) -> Machine:
    """The hottest sensor in °C, None when the machine has none, and the free space beside the state in MiB."""
    return Machine(read_temperature_c(thermal), shutil.disk_usage(state_dir).free / 2**20)


def read_temperature_c(thermal: Path = _THERMAL) -> float | None:
    """The hottest sensor in °C, None when the machine has none."""
    readings = []
    for path in thermal.glob("thermal_zone*/temp"):
        try:
            celsius = int(path.read_text()) / 1000
        except (OSError, ValueError):
            continue
        if _SANE_CELSIUS[0] < celsius < _SANE_CELSIUS[1]:
            readings.append(celsius)
    return max(readings, default=None)
