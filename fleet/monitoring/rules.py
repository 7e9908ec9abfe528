"""Metric rules, pure: what a rule says, what a stretch of telemetry is worth, and when a rule fires and recovers. The shell: alerts/."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from protocol.errors import InvalidError

#: How often rules are evaluated, on the server's clock; a test on history looks as often.
EVERY_S = 60.0
#: Limits of a rule's times, in seconds: a window holds some telemetry (one message per 10 to 60 s) and is read anew at every look.
MIN_WINDOW_S, MAX_WINDOW_S, MAX_FOR_S = 60.0, 3600.0, 7 * 86_400.0
#: Of drift and accuracy there is one message an hour, which comes up to an hour after its end: three hours hold one at every look.
MIN_DRIFT_S, MAX_DRIFT_S, DRIFT_S = 2 * 3600.0, 86_400.0, 3 * 3600.0


class Metric(StrEnum):
    """What a rule looks at. Stored and sent, never renamed."""

    #: Mean of the 99th percentiles of inference latency, milliseconds.
    LATENCY_P99 = "latency_p99_ms"
    #: Inferred frames per second.
    FRAMES_PER_S = "frames_per_s"
    #: Frames that were not inferred, percent of all.
    DROPPED = "dropped_percent"
    #: Failed inferences in the window.
    ERRORS = "errors"
    #: Percent of one core, mean.
    CPU = "cpu_percent"
    #: Resident memory of the agent, megabytes, mean.
    MEMORY = "memory_mb"
    #: Mean temperature, degrees Celsius.
    TEMPERATURE = "temperature_c"
    #: Free disk at the end of the window, megabytes.
    DISK_FREE = "disk_free_mb"
    #: Minutes since the device was heard.
    OFFLINE = "offline_min"
    #: What looks say against what raises an alarm of drift, percent: 100 is one.
    DRIFT_EVIDENCE = "drift_evidence_percent"
    #: Lower end of the accuracy that is estimated without labels, percent.
    ACCURACY_LOW = "accuracy_low_percent"
    #: 100 where that estimate may be believed, else 0.
    ACCURACY_TRUSTED = "accuracy_trusted_percent"
    #: Upper end of the accuracy that random labels tell, percent: below a floor the accuracy is, with 95 % confidence.
    ACCURACY_MEASURED = "accuracy_measured_percent"


class Comparison(StrEnum):
    """On which side of the threshold a value is bad."""

    ABOVE = "above"
    BELOW = "below"


class Scope(StrEnum):
    """Whose telemetry a rule looks at."""

    ALL = "all"
    DEVICE = "device"
    GROUP = "group"
    SITE = "site"


class Level(StrEnum):
    """Where one rule is on one device (and pipeline)."""

    OK = "ok"
    FIRING = "firing"


@dataclass(frozen=True, slots=True)
class Sample:
    """One telemetry message: when, over how many seconds, and its figures."""

    ts: datetime
    window_s: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Fires when the value of the window was bad for `for_s`; recovers when it was better than `recovers_at` as long."""

    name: str
    metric: Metric
    comparison: Comparison
    threshold: float
    #: On the good side of the threshold or equal to it: the gap between the two keeps a value that trembles from alarming twice.
    recovers_at: float
    window_s: float = 300.0
    for_s: float = 300.0
    scope: Scope = Scope.ALL
    #: Name of the device, group or site; empty for all.
    subject: str = ""
    #: Pipeline; empty: each pipeline by itself.
    pipeline: str = ""
    #: warning or error.
    severity: str = "warning"
    is_enabled: bool = True
    revision: int = 1


@dataclass(frozen=True, slots=True)
class RuleState:
    """Where a rule is, and since when the other side is seen without a break (None: it is not)."""

    level: Level = Level.OK
    since: datetime | None = None
    pending_since: datetime | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Firing:
    """One stretch in which a rule fired; `until` None: it still does."""

    since: datetime
    until: datetime | None
    #: The worst value meanwhile.
    worst: float


@dataclass(frozen=True, slots=True)
class MetricKind:
    """Where a metric comes from, how it is read, and how a window of it becomes one number."""

    #: Telemetry stream; empty: presence.
    stream: str
    unit: str
    words: str
    comparison: Comparison
    value: Callable[[Sequence[Sample]], float | None] = field(repr=False)
    #: Window of a rule that names none, and what it may be: seconds.
    window_s: float = 300.0
    least_window_s: float = MIN_WINDOW_S
    most_window_s: float = MAX_WINDOW_S

    @property
    def is_of_pipeline(self) -> bool:
        """Whether each pipeline has its own."""
        return self.stream in {"perf", "drift"}


def _mean(key: str) -> Callable[[Sequence[Sample]], float | None]:
    def of(samples: Sequence[Sample]) -> float | None:
        known = [sample.values[key] for sample in samples if key in sample.values]
        return sum(known) / len(known) if known else None

    return of


def _last(key: str) -> Callable[[Sequence[Sample]], float | None]:
    return lambda samples: next((sample.values[key] for sample in reversed(samples) if key in sample.values), None)


def _total(samples: Sequence[Sample], key: str) -> float:
    return sum(sample.values.get(key, 0.0) for sample in samples)


def _frames_per_s(samples: Sequence[Sample]) -> float | None:
    seconds = sum(sample.window_s for sample in samples)
    return _total(samples, "frames") / seconds if seconds > 0 else None


def _dropped(samples: Sequence[Sample]) -> float | None:
    dropped, frames = _total(samples, "dropped"), _total(samples, "frames")
    return 100.0 * dropped / (dropped + frames) if dropped + frames > 0 else None


def _errors(samples: Sequence[Sample]) -> float | None:
    return _total(samples, "errors") if samples else None


def _drift(unit: str, words: str, comparison: Comparison, key: str) -> MetricKind:
    return MetricKind("drift", unit, words, comparison, _last(key), DRIFT_S, MIN_DRIFT_S, MAX_DRIFT_S)


METRICS: Mapping[Metric, MetricKind] = {
    Metric.LATENCY_P99: MetricKind("perf", "ms", "latency p99", Comparison.ABOVE, _mean("lat_ms_p99")),
    Metric.FRAMES_PER_S: MetricKind("perf", "frames/s", "frames per second", Comparison.BELOW, _frames_per_s),
    Metric.DROPPED: MetricKind("perf", "%", "frames not inferred", Comparison.ABOVE, _dropped),
    Metric.ERRORS: MetricKind("perf", "", "failed inferences", Comparison.ABOVE, _errors),
    Metric.CPU: MetricKind("sys", "%", "CPU of one core", Comparison.ABOVE, _mean("cpu_percent")),
    Metric.MEMORY: MetricKind("sys", "MB", "memory", Comparison.ABOVE, _mean("rss_mb")),
    Metric.TEMPERATURE: MetricKind("sys", "°C", "temperature", Comparison.ABOVE, _mean("temperature_c")),
    Metric.DISK_FREE: MetricKind("sys", "MB", "free disk", Comparison.BELOW, _last("disk_free_mb")),
    Metric.OFFLINE: MetricKind("", "min", "minutes not heard", Comparison.ABOVE, lambda _samples: None),
    Metric.DRIFT_EVIDENCE: _drift("% of what raises an alarm", "evidence of drift", Comparison.ABOVE, "evidence_percent"),
    Metric.ACCURACY_LOW: _drift("%", "lower end of the estimated accuracy", Comparison.BELOW, "accuracy_low"),
    Metric.ACCURACY_TRUSTED: _drift("%", "trust in the estimated accuracy", Comparison.BELOW, "accuracy_trusted"),
    Metric.ACCURACY_MEASURED: _drift("%", "upper end of the measured accuracy", Comparison.BELOW, "measured_high"),
}


def sample_of(ts: datetime, body: Mapping[str, Any]) -> Sample:
    """A telemetry message as a sample: its finite numbers, `dropped` summed over its reasons."""
    values = {key: float(value) for key, value in body.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    dropped = body.get("dropped")
    if isinstance(dropped, Mapping):
        values["dropped"] = float(sum(count for count in dropped.values() if isinstance(count, int | float)))
    return Sample(ts, values.pop("window_s", 0.0), values)


def checked(rule: Rule) -> Rule:
    """The rule itself when its numbers make sense. Raises: InvalidError naming what was seen and what is wanted."""
    if not (math.isfinite(rule.threshold) and math.isfinite(rule.recovers_at)):
        raise InvalidError(f"The threshold is {rule.threshold}, it recovers at {rule.recovers_at}.", hint="Wanted: finite numbers.")
    kind = METRICS[rule.metric]
    if not kind.least_window_s <= rule.window_s <= kind.most_window_s:
        raise InvalidError(f"The window is {rule.window_s:g} s.", hint=f"Wanted: {kind.least_window_s:g} to {kind.most_window_s:g} s.")
    if not 0 <= rule.for_s <= MAX_FOR_S:
        raise InvalidError(f"The time that it must hold is {rule.for_s:g} s.", hint=f"Wanted: 0 to {MAX_FOR_S:g} s.")
    if is_bad(rule, rule.recovers_at):
        raise InvalidError(
            f"The rule fires {rule.comparison} {rule.threshold:g} and would recover at {rule.recovers_at:g}, where it fires.",
            hint="Wanted: a value on the good side of the threshold, or the threshold itself.",
        )
    if (rule.scope is Scope.ALL) != (rule.subject == ""):
        raise InvalidError(
            f"The scope is {rule.scope} and its name {rule.subject!r}.", hint="Wanted: `all` without a name, or a device, group or site."
        )
    if rule.pipeline and not kind.is_of_pipeline:
        raise InvalidError(f"{rule.metric} is of the device, not of a pipeline.", hint="Leave the pipeline out.")
    return rule


def is_bad(rule: Rule, value: float) -> bool:
    """Whether the value is beyond the threshold."""
    return value > rule.threshold if rule.comparison is Comparison.ABOVE else value < rule.threshold


def is_recovered(rule: Rule, value: float) -> bool:
    """Whether the value is back at `recovers_at` or better."""
    return value <= rule.recovers_at if rule.comparison is Comparison.ABOVE else value >= rule.recovers_at


def value_of(rule: Rule, samples: Sequence[Sample], *, now: datetime) -> float | None:
    """The rule's metric over its window that ends now; None: nothing was heard. `samples`: oldest first, of one device and pipeline."""
    after = now - timedelta(seconds=rule.window_s)
    return METRICS[rule.metric].value([sample for sample in samples if after < sample.ts <= now])


def minutes_since(heard: datetime | None, now: datetime) -> float | None:
    """How long the device was not heard, minutes; None for one that never spoke: there is nothing to miss."""
    return None if heard is None else max(0.0, (now - heard).total_seconds() / 60.0)


def step(rule: Rule, state: RuleState, value: float | None, now: datetime) -> RuleState:
    """The state after one look. Silence changes nothing and starts every wait anew: a rule neither fires nor recovers by it."""
    if value is None:
        return replace(state, pending_since=None, value=None)
    is_ok = state.level is Level.OK
    if not (is_bad(rule, value) if is_ok else is_recovered(rule, value)):
        return replace(state, pending_since=None, value=value)
    pending_since = state.pending_since or now
    if (now - pending_since).total_seconds() < rule.for_s:
        return replace(state, pending_since=pending_since, value=value)
    return RuleState(Level.FIRING if is_ok else Level.OK, since=now, value=value)


def worse(rule: Rule, first: float, second: float | None) -> float:
    """The worse one of two values."""
    if second is None:
        return first
    return max(first, second) if rule.comparison is Comparison.ABOVE else min(first, second)


def replay(rule: Rule, samples: Sequence[Sample], *, start: datetime, end: datetime, every_s: float = EVERY_S) -> list[Firing]:
    """When the rule would have fired on this history of one device and pipeline, looked at every `every_s` from `start` to `end`.

    `samples`: oldest first. Presence is not kept as history: minutes not heard are counted from the newest sample.
    """
    found: list[Firing] = []
    state, now, first, past = RuleState(), start, 0, 0
    while now <= end:
        after = now - timedelta(seconds=rule.window_s)
        while past < len(samples) and samples[past].ts <= now:
            past += 1
        while first < past and samples[first].ts <= after:
            first += 1
        if rule.metric is Metric.OFFLINE:
            value = minutes_since(samples[past - 1].ts if past else None, now)
        else:
            value = METRICS[rule.metric].value(samples[first:past])
        after_look = step(rule, state, value, now)
        if after_look.level is not state.level:
            if after_look.level is Level.FIRING and value is not None:
                found.append(Firing(now, None, value))
            else:
                found[-1] = replace(found[-1], until=now)
        elif state.level is Level.FIRING and value is not None:
            found[-1] = replace(found[-1], worst=worse(rule, value, found[-1].worst))
        state, now = after_look, now + timedelta(seconds=every_s)
    return found


def words_of(rule: Rule) -> str:
    """The rule in a sentence: "latency p99 above 50 ms for 5 min, on group north"."""
    kind = METRICS[rule.metric]
    unit = f" {kind.unit}" if kind.unit else ""
    where = "on all devices" if rule.scope is Scope.ALL else f"on {rule.scope} {rule.subject}"
    pipeline = f", pipeline {rule.pipeline}" if rule.pipeline else ""
    held = f" for {rule.for_s / 60:g} min" if rule.for_s else ""
    return f"{kind.words} {rule.comparison} {rule.threshold:g}{unit}{held}, {where}{pipeline}"
