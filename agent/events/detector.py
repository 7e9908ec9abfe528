"""The events of one pipeline: what every pipeline notices by itself, and what its rules do."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from agent.config import Keep, PipelineConfig
from agent.database.outbox import Draft
from agent.events.answers import Answer
from agent.events.bodies import event_body, prediction_body, rule_body
from agent.events.following import Following, zone_of
from agent.events.judging import Changing, Judging
from agent.events.schedule import Schedule
from agent.events.telling import Happening, Limit, Teller
from agent.windows import zone_named
from protocol.events import event_type
from protocol.rules import AnyRule, ClassRule, CrossRule, DwellRule, EnterRule, LeaveRule

#: Events of one pipeline: this many at once, then one per second on average; a flickering answer must not fill the outbox.
EVENT_BURST = 10.0
EVENTS_PER_S = 1.0
#: Milliseconds without an answer after which what lasts is over: nobody looks any more.
SILENT_MS = 60_000
CLASS_CHANGED = "mooring.prediction.class-changed.v1"
SCORE_OVER = "mooring.prediction.score-over-threshold.v1"
PREDICTION = "mooring.prediction.v1"


def _as_it_is(now: datetime) -> datetime:
    return now


class EventDetector:
    """Notices on one pipeline what its rules say, that the class changed, and that the score rose over its threshold."""

    def __init__(
        self,
        config: PipelineConfig,
        source: str,
        *,
        time_zone: str = "UTC",
        site_time: Callable[[datetime], datetime | None] = _as_it_is,
    ) -> None:
        """`source`: "/mooring/{tenant}/{device}". `time_zone`: of schedules that name none. `site_time`: see `Schedule`."""
        self.config, self.time_zone = config, time_zone
        self._source, self._site_time = source, site_time
        self._limit = Limit(burst=EVENT_BURST, per_s=EVENTS_PER_S)
        self._watchers = [self._watcher(rule) for rule in config.rules]
        self._label: str | None = None
        self._is_over = False
        self._last: Answer | None = None
        self._now_ms = 0
        self._is_silent = True

    def observe(self, answer: Answer) -> list[Draft]:
        """The events that this answer makes, as rows for the outbox; none more often than EVENTS_PER_S allows."""
        # a clock that is set back must not make things last longer
        self._now_ms, self._last, self._is_silent = max(self._now_ms, answer.at_ms), answer, False
        found = [self._draft(kind, data, answer) for kind, data in self._noticed(answer) if self._limit.take(answer.at_ms)]
        for watcher in self._watchers:
            found += [self._event(happening, answer) for happening in watcher.observe(answer, self._now_ms)]
        return found

    def record(self, answer: Answer) -> Draft:
        """The answer itself as a row for the outbox, for pipelines that keep all."""
        return self._row(PREDICTION, prediction_body(answer), answer.at_ms)

    def rest(self, now_ms: int) -> list[Draft]:
        """The ends of what lasted, once no answer came for `SILENT_MS`."""
        if self._is_silent or now_ms - self._now_ms < SILENT_MS:
            return []
        self._is_silent = True
        return self.close(now_ms, "silent")

    def close(self, now_ms: int, reason: str) -> list[Draft]:
        """The ends of what lasts."""
        answer = self._last
        if answer is None:
            return []
        self._now_ms = max(self._now_ms, now_ms)
        return [self._event(happening, answer) for watcher in self._watchers for happening in watcher.close(self._now_ms, reason)]

    def _noticed(self, answer: Answer) -> list[tuple[str, dict[str, Any]]]:
        """What is noticed without a rule; of a classification only."""
        best = answer.top[0] if answer.top else None
        found: list[tuple[str, dict[str, Any]]] = []
        label = None if best is None else best.label
        if label != self._label and self._label is not None:
            found.append((CLASS_CHANGED, {"from": self._label, "to": label}))
        self._label = label if label is not None else self._label
        threshold = self.config.min_score
        is_over = threshold is not None and best is not None and best.score >= threshold
        if is_over and not self._is_over:
            found.append((SCORE_OVER, {"threshold": threshold}))
        self._is_over = is_over
        return found

    def _watcher(self, rule: AnyRule) -> Following | Judging | Changing:
        zone = zone_named(rule.time_zone or self.time_zone)
        schedule = Schedule(rule.schedule, zone, site_time=self._site_time)

        def name(at_ms: int, track: int | None) -> str:
            return f"{self.config.name}.{rule.name}.{at_ms}" + ("" if track is None else f".{track}")

        teller = Teller(rule, schedule=schedule, limit=self._limit, name=name)
        if isinstance(rule, ClassRule):
            return Changing(rule, teller)
        if isinstance(rule, EnterRule | LeaveRule | CrossRule | DwellRule):
            place = zone_of(rule, self.config.zones)
            if place is None:  # the settings refuse such a rule
                raise LookupError(f"Rule {rule.name} names no zone of pipeline {self.config.name}.")
            return Following(rule, place, teller)
        return Judging(rule, self.config.zones, teller)

    def _event(self, happening: Happening, answer: Answer) -> Draft:
        data = rule_body(happening, answer)
        if self.config.keep is not Keep.RING:  # the answer with it
            data = {**prediction_body(answer), **data}
        return self._row(event_type(happening.rule.kind, happening.phase), {**data, **self._suppressed()}, self._now_ms)

    def _draft(self, kind: str, data: dict[str, Any], answer: Answer) -> Draft:
        whole = prediction_body(answer)
        if self.config.keep is Keep.RING:  # the event alone, not the whole answer
            whole["top"] = whole["top"][:1]
        return self._row(kind, {**whole, **data, **self._suppressed()}, answer.at_ms)

    def _suppressed(self) -> dict[str, int]:
        refused, self._limit.refused = self._limit.refused, 0
        return {"suppressed_before": refused} if refused else {}

    def _row(self, kind: str, data: dict[str, Any], at_ms: int) -> Draft:
        return Draft("event", (), {**event_body(kind, source=self._source, subject=self.config.name, data=data), "ts": at_ms})
