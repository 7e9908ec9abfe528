"""Whether a new release holds in live use: its figures against the old release's on the same device; pure (UPDATES 4.4)."""

from dataclasses import dataclass, replace
from enum import StrEnum

from runtime.selftest import Figures

#: Seconds over which temperatures are smoothed.
SMOOTHED_OVER_S = 60.0


@dataclass(frozen=True, slots=True)
class ProbeWishes:
    """What a release wants of its probe; it only makes the agent's rules stricter."""

    min_inferences: int = 0
    min_seconds: float = 0.0
    p99_ratio: float | None = None
    max_top_share: float | None = None
    p99_budget_ms: float | None = None
    rss_budget_mb: float | None = None
    #: Back ends that it was released for, "backend" or "backend:provider"; empty: it does not say.
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeRules:
    """How long and how strictly a new release is watched. A release may only be stricter (`stricter`)."""

    #: Healthy inferences before a verdict.
    min_inferences: int = 1000
    #: Seconds of the agent's clock before a verdict, and after which none is an error.
    min_seconds: float = 600.0
    max_seconds: float = 3600.0
    #: p99 may be this many times the old one, plus the noise of a busy scheduler in milliseconds (a tiny model's p99 is all noise).
    p99_ratio: float = 1.2
    p99_noise_ms: float = 5.0
    #: Error rate may exceed the old one by this share.
    error_margin: float = 0.001
    #: A top class with a larger share is a constant answer, unless the old release answered so too.
    max_top_share: float = 0.99
    #: Healthy inferences after which lazy allocations (buffers, arenas, threads) are over: memory growth counts from there.
    settle_inferences: int = 50
    #: Resident memory may grow by this share, plus allocator noise in MiB, while the probe lasts.
    rss_growth: float = 0.05
    rss_noise_mb: float = 16.0
    #: Inferences per second may fall to this share of the old release's, both over the latest minute.
    fps_ratio: float = 0.95
    #: Degrees Celsius that the hottest sensor may show, and may show above what it showed with the old release; judged after so many
    #: seconds, because a heat sink takes its time.
    max_temperature_c: float = 85.0
    temperature_rise_c: float = 5.0
    temperature_after_s: float = 300.0
    #: Budgets of the release for this device type; None: it has none.
    p99_budget_ms: float | None = None
    rss_budget_mb: float | None = None
    #: Back ends that the release is for; empty: any.
    backends: tuple[str, ...] = ()

    def stricter(self, wishes: ProbeWishes) -> "ProbeRules":
        """These rules with a release's own wishes, where they are stricter."""
        return replace(
            self,
            min_inferences=max(self.min_inferences, wishes.min_inferences),
            min_seconds=max(self.min_seconds, wishes.min_seconds),
            p99_ratio=_least(self.p99_ratio, wishes.p99_ratio) or self.p99_ratio,
            max_top_share=_least(self.max_top_share, wishes.max_top_share) or self.max_top_share,
            p99_budget_ms=_least(self.p99_budget_ms, wishes.p99_budget_ms),
            rss_budget_mb=_least(self.rss_budget_mb, wishes.rss_budget_mb),
            backends=wishes.backends,
        )


class Judgment(StrEnum):
    """What follows from the figures so far."""

    HEALTHY = "healthy"
    WAIT = "wait"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgment; for FAILED with a stable code, always with words."""

    judgment: Judgment
    code: str = ""
    text: str = ""


def judge(
    new: Figures | None,
    *,
    first: Figures | None,
    settled: Figures | None,
    last: Figures | None,
    old: Figures | None,
    rules: ProbeRules,
    elapsed_s: float,
) -> Verdict:
    """The verdict on the new release after `elapsed_s` of its probe.

    `first`, `settled`, `last`: the probe's first figures, the first after the model had settled, and those of the look before; None before
    them. `old`: the release before, in its last window; None on a first install, then only the absolute rules hold.
    """
    if new is None:
        if first is not None:
            return Verdict(Judgment.FAILED, "inference_down", "The inference process no longer runs the new release.")
        return _no_verdict_yet(None, rules, elapsed_s)
    is_over = new.healthy >= rules.min_inferences and elapsed_s >= rules.min_seconds
    failure = _crashed(new, last) or _too_many_errors(new, old, rules) or _elsewhere(new, rules)
    if failure is None and new.healthy >= rules.min_inferences:
        failure = _too_slow(new, old, rules) or _constant(new, old, rules) or _too_big(new, settled, rules)
    if failure is None and is_over:
        failure = _too_few(new, old, rules)
    if failure is None and elapsed_s >= rules.temperature_after_s:
        failure = _too_hot(new, old, rules)
    if failure is not None:
        return failure
    if is_over:
        text = f"{new.healthy} healthy inferences in {elapsed_s:.0f} s, p99 {new.p99_ms:.1f} ms."
        return Verdict(Judgment.HEALTHY, text=f"{text} {_not_judged(new, old, rules, elapsed_s)}".strip())
    return _no_verdict_yet(new, rules, elapsed_s)


def warmed(before_c: float | None, reading_c: float | None, seconds: float) -> float | None:
    """The reading of a sensor, smoothed over a minute: one busy moment is no heat. None: the device has no sensor."""
    if reading_c is None or before_c is None:
        return reading_c
    return before_c + (reading_c - before_c) * min(1.0, max(0.0, seconds) / SMOOTHED_OVER_S)


def _no_verdict_yet(new: Figures | None, rules: ProbeRules, elapsed_s: float) -> Verdict:
    healthy = 0 if new is None else new.healthy
    text = f"{healthy} of {rules.min_inferences} healthy inferences after {elapsed_s:.0f} s"
    if elapsed_s >= rules.max_seconds:
        return Verdict(Judgment.FAILED, "probe_timeout", f"{text}; no frames is not success.")
    return Verdict(Judgment.WAIT, text=f"{text}.")


def _crashed(new: Figures, last: Figures | None) -> Verdict | None:
    if new.crashes or (last is not None and new.inferences < last.inferences):
        return Verdict(Judgment.FAILED, "inference_crashed", "The inference process died with the new release.")
    return None


def _too_many_errors(new: Figures, old: Figures | None, rules: ProbeRules) -> Verdict | None:
    # a failed or not finite answer both count; judged early when even flawless inferences up to the minimum could not mend it
    allowed = _error_rate(old) + rules.error_margin
    bad = max(new.errors, new.inferences - new.healthy)
    if bad > allowed * max(new.inferences, rules.min_inferences):
        text = f"{bad} of {new.inferences} inferences failed or were not finite; at most {allowed:.2%} may."
        return Verdict(Judgment.FAILED, "error_rate", text)
    return None


def _elsewhere(new: Figures, rules: ProbeRules) -> Verdict | None:
    # runtimes fall back silently, to a back end that nobody tried the release on
    if not rules.backends or not new.provider or any(new.provider in (one, f"{one}:{_after(new.provider)}") for one in rules.backends):
        return None
    text = f"It runs on {new.provider}; the release is for {', '.join(rules.backends)}."
    return Verdict(Judgment.FAILED, "backend_not_released", text)


def _after(provider: str) -> str:
    return provider.partition(":")[2]


def _too_few(new: Figures, old: Figures | None, rules: ProbeRules) -> Verdict | None:
    if old is not None and old.fps is not None and new.fps is not None and new.fps < (limit := rules.fps_ratio * old.fps):
        text = f"{new.fps:.2f} frames per second are inferred, were {old.fps:.2f}; at least {limit:.2f} are wanted."
        return Verdict(Judgment.FAILED, "throughput_worse", text)
    return None


def _too_hot(new: Figures, old: Figures | None, rules: ProbeRules) -> Verdict | None:
    if new.temperature_c is None:
        return None
    if new.temperature_c > rules.max_temperature_c:
        text = f"The device is {new.temperature_c:.1f} °C hot; at most {rules.max_temperature_c:.1f} °C are allowed."
        return Verdict(Judgment.FAILED, "temperature_limit", text)
    if old is not None and old.temperature_c is not None and new.temperature_c > (limit := old.temperature_c + rules.temperature_rise_c):
        text = f"The device is {new.temperature_c:.1f} °C hot, was {old.temperature_c:.1f} °C; at most {limit:.1f} °C are allowed."
        return Verdict(Judgment.FAILED, "temperature_worse", text)
    return None


def _not_judged(new: Figures, old: Figures | None, rules: ProbeRules, elapsed_s: float) -> str:
    """The rules that had nothing to go by, in words; empty: all were judged."""
    reasons = []
    if old is None or not old.inferences:
        reasons.append("nothing against a release before, there are no figures of one")
    elif old.fps is None or new.fps is None:
        reasons.append("frames per second, one of both releases was seen for less than half a minute")
    if new.temperature_c is None:
        reasons.append("temperature, the device has no sensor")
    elif elapsed_s < rules.temperature_after_s:
        reasons.append(f"temperature, the probe took less than {rules.temperature_after_s:.0f} s")
    return f"Not judged: {'; '.join(reasons)}." if reasons else ""


def _too_slow(new: Figures, old: Figures | None, rules: ProbeRules) -> Verdict | None:
    # with few inferences the percentile is the slowest one: what counts is what it surely is
    p99_ms = new.p99_ms if new.p99_low_ms is None else new.p99_low_ms
    if rules.p99_budget_ms is not None and p99_ms > rules.p99_budget_ms:
        return Verdict(
            Judgment.FAILED, "latency_budget", f"p99 is at least {p99_ms:.1f} ms; the release's budget is {rules.p99_budget_ms:.1f} ms."
        )
    if old is not None and old.inferences and p99_ms > (limit := rules.p99_ratio * old.p99_ms + rules.p99_noise_ms):
        text = f"p99 is at least {p99_ms:.1f} ms, was {old.p99_ms:.1f} ms; at most {limit:.1f} ms are allowed."
        return Verdict(Judgment.FAILED, "latency_worse", text)
    return None


def _constant(new: Figures, old: Figures | None, rules: ProbeRules) -> Verdict | None:
    was_constant = old is not None and old.inferences > 0 and old.top_share > rules.max_top_share
    if new.top_share > rules.max_top_share and old is not None and old.inferences > 0 and not was_constant:
        text = f"{new.top_share:.1%} of the answers are the same; the release before gave {old.top_share:.1%}."
        return Verdict(Judgment.FAILED, "constant_output", text)
    return None


def _too_big(new: Figures, settled: Figures | None, rules: ProbeRules) -> Verdict | None:
    if rules.rss_budget_mb is not None and new.rss_mb > rules.rss_budget_mb:
        return Verdict(
            Judgment.FAILED, "memory_budget", f"{new.rss_mb:.0f} MiB are used; the release's budget is {rules.rss_budget_mb:.0f} MiB."
        )
    if settled is not None and new.rss_mb > (limit := settled.rss_mb * (1 + rules.rss_growth) + rules.rss_noise_mb):
        return Verdict(
            Judgment.FAILED, "memory_growth", f"{new.rss_mb:.0f} MiB are used, {settled.rss_mb:.0f} at first; limit {limit:.0f} MiB."
        )
    return None


def _error_rate(figures: Figures | None) -> float:
    if figures is None or not figures.inferences:
        return 0.0
    return max(figures.errors, figures.inferences - figures.healthy) / figures.inferences


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)
