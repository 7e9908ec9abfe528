"""How hot and how short of memory this device is, and how much to slow down because of it: readings from the kernel, then a pure decision.

Slowing down is leaving out due frames: every second, fourth, eighth is inferred. It begins below the point at which the kernel throttles
or kills, and ends well below where it began, so that it does not flutter.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.inference.messages import Finding

#: Degrees Celsius below a passive trip point, where the kernel throttles, and below a critical one, where it switches off.
PASSIVE_MARGIN_C, CRITICAL_MARGIN_C = 2.0, 15.0
#: Where to begin on a device that names no trip point: most boards throttle at 80 to 85.
USUAL_LIMIT_C = 80.0
#: Trip points outside are placeholders of a driver.
PLAUSIBLE_C = (40.0, 150.0)
#: How far below its limit a zone has cooled down.
COOLED_C = 5.0
#: Share of `memory.high` (or `memory.max`) that the unit's memory without its file cache may take: where to begin, where to end.
HIGH_SHARE, EASED_SHARE = 0.95, 0.85
#: Share of the machine's memory that is available: where to begin, where to end.
LOW_AVAILABLE, ENOUGH_AVAILABLE = 0.04, 0.08
#: Percent of ten seconds in which everything waited for memory (`full avg10` of PSI): where to begin, where to end.
STALLED_PERCENT, FLOWING_PERCENT = 10.0, 2.0
#: Seconds between two steps down, and of calm before one up.
DOWN_EVERY_S, UP_AFTER_S = 10.0, 60.0
MAX_STRIDE = 8
#: A machine that is more overloaded than this is not waited for any longer.
MAX_STRAIN = 4.0
_MAX_BYTES = 65_536
_MAX_ZONES, _MAX_TRIPS = 64, 16


@dataclass(frozen=True, slots=True)
class Pressure:
    """One reading; None: this device does not tell."""

    #: Degrees Celsius of the zone that is nearest to its limit, or furthest above, that limit, and its name.
    temperature_c: float | None = None
    limit_c: float = USUAL_LIMIT_C
    zone: str = ""
    #: Share of the unit's memory limit that is used, without file cache.
    used_share: float | None = None
    #: Share of the machine's memory that is available.
    available_share: float | None = None
    stalled_percent: float | None = None

    @property
    def is_hot(self) -> bool:
        """Whether to slow down because of heat."""
        return self.temperature_c is not None and self.temperature_c >= self.limit_c

    @property
    def is_cool(self) -> bool:
        """Whether heat is no reason any more."""
        return self.temperature_c is None or self.temperature_c <= self.limit_c - COOLED_C

    @property
    def is_short(self) -> bool:
        """Whether to slow down because of memory."""
        return (
            (self.used_share is not None and self.used_share >= HIGH_SHARE)
            or (self.available_share is not None and self.available_share <= LOW_AVAILABLE)
            or (self.stalled_percent is not None and self.stalled_percent >= STALLED_PERCENT)
        )

    @property
    def is_roomy(self) -> bool:
        """Whether memory is no reason any more."""
        return (
            (self.used_share is None or self.used_share <= EASED_SHARE)
            and (self.available_share is None or self.available_share >= ENOUGH_AVAILABLE)
            and (self.stalled_percent is None or self.stalled_percent <= FLOWING_PERCENT)
        )


class Easing:
    """Which of the due frames are inferred: every `stride`-th. Moments are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.stride = 1
        #: Where the device was pressed last.
        self._cause = Pressure()
        self._stepped_s: float | None = None
        self._pressed_s = 0.0

    def feel(self, pressure: Pressure, now: float) -> bool:
        """Take a reading in; returns whether the stride changed."""
        before = self.stride
        if pressure.is_hot or pressure.is_short:
            self._cause, self._pressed_s = pressure, now
            if self._stepped_s is None or now - self._stepped_s >= DOWN_EVERY_S:
                self.stride, self._stepped_s = min(MAX_STRIDE, self.stride * 2), now
        elif not (pressure.is_cool and pressure.is_roomy):
            self._pressed_s = now
        elif self.stride > 1 and now - self._pressed_s >= UP_AFTER_S:
            self.stride, self._pressed_s = self.stride // 2, now
            self._stepped_s = None if self.stride == 1 else now
        return self.stride != before

    def findings(self) -> list[Finding]:
        """What is slowed down and why, while it is."""
        if self.stride == 1:
            return []
        cause, what = self._cause, f"1 of {self.stride} due frames is inferred"
        found = []
        if cause.is_hot:
            text = f"{cause.zone} has {cause.temperature_c:.0f} °C, the limit here is {cause.limit_c:.0f} °C; {what}."
            found.append(Finding("slowed_by_heat", "warning", text))
        if cause.is_short:
            found.append(Finding("slowed_by_memory", "warning", f"{_shortage(cause)}; {what}."))
        return found


def read_pressure(root: Path = Path("/")) -> Pressure:
    """The reading of this device; `root`: where /proc and /sys are."""
    zones = [(temperature, limit, name) for name, temperature, limit in _zones(root)]
    hottest = max(zones, key=lambda zone: zone[0] - zone[1], default=None)
    group = _group(root)
    stalled = _stalled(group / "memory.pressure") if group is not None else None
    return Pressure(
        temperature_c=hottest[0] if hottest else None,
        limit_c=hottest[1] if hottest else USUAL_LIMIT_C,
        zone=hottest[2] if hottest else "",
        used_share=None if group is None else _used_share(group),
        available_share=_available_share(root / "proc/meminfo"),
        stalled_percent=_stalled(root / "proc/pressure/memory") if stalled is None else stalled,
    )


def machine_strain() -> float:
    """How many times more processes want to run than there are processors, 1 to `MAX_STRAIN`."""
    try:
        wanting = os.getloadavg()[0]
    except OSError:
        return 1.0
    return min(MAX_STRAIN, max(1.0, wanting / (os.cpu_count() or 1)))


def _shortage(pressure: Pressure) -> str:
    parts = []
    if pressure.used_share is not None and pressure.used_share >= HIGH_SHARE:
        parts.append(f"the agent uses {pressure.used_share:.0%} of the memory that its unit may use")
    if pressure.available_share is not None and pressure.available_share <= LOW_AVAILABLE:
        parts.append(f"{pressure.available_share:.1%} of the memory is available")
    if pressure.stalled_percent is not None and pressure.stalled_percent >= STALLED_PERCENT:
        parts.append(f"everything waited for memory for {pressure.stalled_percent:.0f} % of ten seconds")
    return ", ".join(parts).capitalize()


def _zones(root: Path) -> Iterator[tuple[str, float, float]]:
    """(name, temperature, where to slow down) of every thermal zone."""
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*"))[:_MAX_ZONES]:
        temperature = _degrees(zone / "temp")
        if temperature is not None:
            yield _text(zone / "type") or zone.name, temperature, _limit(zone)


def _limit(zone: Path) -> float:
    limits = []
    for trip in range(_MAX_TRIPS):
        kind, degrees = _text(zone / f"trip_point_{trip}_type"), _degrees(zone / f"trip_point_{trip}_temp")
        if not kind:
            break
        if degrees is None or not PLAUSIBLE_C[0] <= degrees <= PLAUSIBLE_C[1]:
            continue
        if kind == "passive":
            limits.append(degrees - PASSIVE_MARGIN_C)
        elif kind in ("hot", "critical"):
            limits.append(degrees - CRITICAL_MARGIN_C)
    return min(limits, default=USUAL_LIMIT_C)


def _group(root: Path) -> Path | None:
    """The folder of this process's control group (version 2)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            return root / "sys/fs/cgroup" / line.removeprefix("0::/")
    return None


def _used_share(group: Path) -> float | None:
    used = _number(_text(group / "memory.current"))
    limits = [limit for name in ("memory.high", "memory.max") if (limit := _number(_text(group / name)))]
    if used is None or not limits:
        return None
    cache = _field(_text(group / "memory.stat"), "inactive_file") or 0.0  # the kernel takes it back before it kills anybody
    return max(0.0, used - cache) / min(limits)


def _available_share(path: Path) -> float | None:
    text = _text(path)
    total, available = _field(text, "MemTotal:"), _field(text, "MemAvailable:")
    return available / total if total and available is not None else None


def _stalled(path: Path) -> float | None:
    for line in _text(path).splitlines():
        if line.startswith("full ") and "avg10=" in line:
            return _number(line.split("avg10=", 1)[1].split(" ", 1)[0])
    return None


def _field(text: str, name: str) -> float | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name:
            return _number(words[1])
    return None


def _degrees(path: Path) -> float | None:
    millidegrees = _number(_text(path))
    return None if millidegrees is None else millidegrees / 1000.0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    return ""
