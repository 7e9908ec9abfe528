"""What is told of what a rule noticed: moments, and the start, updates and end of what lasts. Pure.

Whose start was told, its end is told; whose start was not, nothing of it is. So who listens can count on pairs, and what is told is
bounded by what may begin.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.events.schedule import Schedule
from protocol.events import Phase
from protocol.rules import AnyRule


class Limit:
    """A token bucket: `burst` at once, then `per_s` a second on average. Counts what it turns away."""

    def __init__(self, *, burst: float, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._tokens = burst
        self._refilled_ms: int | None = None
        #: Turned away since this was last set to 0.
        self.refused = 0

    def take(self, now_ms: int, *, is_counted: bool = True) -> bool:
        """Whether one more may be sent now."""
        elapsed_s = 0.0 if self._refilled_ms is None else max(0, now_ms - self._refilled_ms) / 1000
        self._tokens, self._refilled_ms = min(self._burst, self._tokens + elapsed_s * self._per_s), now_ms
        if self._tokens < 1.0:
            self.refused += is_counted
            return False
        self._tokens -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Happening:
    """One event to be told; `facts` are fields of `protocol.events.RuleEvent` beside those that every event has."""

    rule: AnyRule
    phase: Phase
    occurrence: str
    start_ms: int
    end_ms: int | None
    facts: Mapping[str, Any]


@dataclass(slots=True)
class Lasting:
    """Something that began and lasts; told or not."""

    occurrence: str
    start_ms: int
    told_ms: int
    is_told: bool
    facts: dict[str, Any] = field(default_factory=dict)


class Teller:
    """What one rule may tell: while its schedule is open, after its cool-down, and within the pipeline's limit."""

    def __init__(self, rule: AnyRule, *, schedule: Schedule, limit: Limit, name: Callable[[int, int | None], str]) -> None:
        """`name` makes the name of an occurrence of its begin and its track."""
        self.rule = rule
        self._schedule, self._limit, self._name = schedule, limit, name
        self._cool_down_ms = round(rule.cool_down_s * 1000)
        self._update_ms = round(getattr(rule, "update_s", 0.0) * 1000)
        self._begun_ms: int | None = None

    def is_open(self, at_ms: int) -> bool:
        """Whether the schedule is open."""
        return self._schedule.is_open(at_ms)

    def moment(self, at_ms: int, start_ms: int, facts: Mapping[str, Any]) -> list[Happening]:
        """Tell what happened in one moment, when that may be told."""
        if not self._may_begin(at_ms):
            return []
        return [Happening(self.rule, Phase.ONCE, self._name(at_ms, facts.get("track")), start_ms, at_ms, facts)]

    def begin(self, at_ms: int, start_ms: int, facts: Mapping[str, Any]) -> tuple[Lasting, list[Happening]]:
        """It began; told when that may be told."""
        lasting = Lasting(self._name(at_ms, facts.get("track")), start_ms, at_ms, self._may_begin(at_ms), dict(facts))
        return lasting, self._tell(lasting, Phase.STARTED) if lasting.is_told else []

    def go_on(self, lasting: Lasting, at_ms: int, facts: Callable[[], Mapping[str, Any]]) -> list[Happening]:
        """It lasts: tell how it is now, now and then."""
        if not lasting.is_told or not self._update_ms or at_ms - lasting.told_ms < self._update_ms:
            return []
        if not self._limit.take(at_ms, is_counted=False):
            return []
        lasting.told_ms = at_ms
        lasting.facts.update(facts())
        return self._tell(lasting, Phase.UPDATED)

    def end(self, lasting: Lasting, at_ms: int, reason: str, facts: Mapping[str, Any]) -> list[Happening]:
        """It is over; the facts are the last ones."""
        lasting.facts.update(facts, reason=reason)
        return self._tell(lasting, Phase.ENDED, end_ms=at_ms) if lasting.is_told else []

    def _tell(self, lasting: Lasting, phase: Phase, *, end_ms: int | None = None) -> list[Happening]:
        return [Happening(self.rule, phase, lasting.occurrence, lasting.start_ms, end_ms, dict(lasting.facts))]

    def _may_begin(self, at_ms: int) -> bool:
        is_cooling = self._begun_ms is not None and at_ms - self._begun_ms < self._cool_down_ms
        if is_cooling or not self.is_open(at_ms) or not self._limit.take(at_ms):
            return False
        self._begun_ms = at_ms
        return True
