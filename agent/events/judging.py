"""Rules that judge each answer as a whole: present, count, class, score, anomaly, value. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.events.answers import Answer, Box, Label
from agent.events.debounce import Debounce
from agent.events.following import anchor_of, counts, facts_of, zone_of
from agent.events.telling import Happening, Lasting, Teller
from protocol.geometry import contains
from protocol.rules import AnomalyRule, ClassRule, CountRule, PresentRule, ScoreRule, ValueRule, Zone

JudgingRule = PresentRule | CountRule | ScoreRule | AnomalyRule | ValueRule


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one answer says about a rule: whether it holds, how strongly, and what is told of it."""

    holds: bool
    facts: dict[str, Any] = field(default_factory=dict)


#: Evidence of one answer; None: the answer says nothing about the rule.
Judge = Callable[[Answer], Evidence | None]


class Judging:
    """One rule that holds or does not, over the answers of one pipeline."""

    def __init__(self, rule: JudgingRule, zones: Sequence[Zone], teller: Teller) -> None:
        self._teller, self._judge = teller, judge_of(rule, zones)
        least_ms = round(rule.min_s * 1000)
        off_ms = max(least_ms, round(getattr(rule, "lost_s", 0.0) * 1000))
        self._state = Debounce(frames=rule.min_frames, of=rule.of_frames or rule.min_frames, on_ms=least_ms, off_ms=off_ms)
        self._lasting: Lasting | None = None
        self._facts: dict[str, Any] = {}

    def observe(self, answer: Answer, now_ms: int) -> list[Happening]:
        """What the rule has to tell after this answer."""
        evidence = self._judge(answer)
        if evidence is None:
            return []
        has_changed = self._state.feed(evidence.holds, now_ms)
        if has_changed and self._state.is_on:
            self._facts = {}
        if evidence.holds:
            self._facts = _gathered(self._facts, evidence.facts)
        is_on, is_open = self._state.is_on, self._teller.is_open(now_ms)
        if self._lasting is None:
            if not is_on or not is_open:
                return []
            self._lasting, found = self._teller.begin(now_ms, self._state.changed_ms, self._facts)
            return found
        if is_on and is_open:
            return self._teller.go_on(self._lasting, now_ms, lambda: self._facts)
        return self.close(now_ms, "schedule" if is_on else "outside")

    def close(self, now_ms: int, reason: str) -> list[Happening]:
        """What lasts ends."""
        lasting, self._lasting = self._lasting, None
        return [] if lasting is None else self._teller.end(lasting, now_ms, reason, self._facts)


class Changing:
    """The rule `class`: the named class is another one than before."""

    def __init__(self, rule: ClassRule, teller: Teller) -> None:
        self._rule, self._teller = rule, teller
        self._label: str | None = None
        self._next = ""
        self._state = self._new_state()

    def observe(self, answer: Answer, now_ms: int) -> list[Happening]:
        """What the rule has to tell after this answer; one without a class that counts says nothing."""
        best = best_of(answer, labels=self._rule.labels, min_score=self._rule.min_score)
        if best is None:
            return []
        before = self._label
        if before is None:
            self._label = best.label
            return []
        if best.label not in {before, self._next}:
            self._next, self._state = best.label, self._new_state()
        if not self._state.feed(best.label != before, now_ms):
            return []
        start_ms, self._label, self._state = self._state.changed_ms, best.label, self._new_state()
        return self._teller.moment(now_ms, start_ms, {"label": best.label, "before": before, "score": round(best.score, 6)})

    def close(self, _now_ms: int, _reason: str) -> list[Happening]:
        """Nothing lasts."""
        return []

    def _new_state(self) -> Debounce:
        rule = self._rule
        return Debounce(frames=rule.min_frames, of=rule.of_frames or rule.min_frames, on_ms=round(rule.min_s * 1000))


def judge_of(rule: JudgingRule, zones: Sequence[Zone]) -> Judge:
    """The function that judges answers by the rule."""
    match rule:
        case PresentRule() | CountRule():
            zone = zone_of(rule, zones)
            return lambda answer: _objects(answer, rule, zone)
        case ScoreRule():
            return lambda answer: _score(answer, rule)
        case AnomalyRule():
            return lambda answer: _anomaly(answer, rule)
        case ValueRule():
            return lambda answer: _value(answer, rule)


def best_of(answer: Answer, *, labels: Sequence[str], min_score: float) -> Label | None:
    """The class or object with the best score among those that count."""
    fitting: list[Label] = [*answer.top[:1], *answer.boxes]
    fitting = [one for one in fitting if one.score >= min_score and (not labels or one.label in labels)]
    return max(fitting, key=lambda one: one.score, default=None)


def _objects(answer: Answer, rule: PresentRule | CountRule, zone: Zone | None) -> Evidence | None:
    if answer.task != "detection":
        return _named(answer, rule) if isinstance(rule, PresentRule) and answer.top else None
    shape = None if zone is None else zone.on_grid()
    fitting = [box for box in answer.boxes if counts(box, rule) and (shape is None or contains(shape, anchor_of(box, rule)))]
    best: Box | None = max(fitting, key=lambda box: box.score, default=None)
    facts = {} if best is None else facts_of(best, best=best.score)
    if zone is not None:
        facts["zone"] = zone.name
    if isinstance(rule, PresentRule):
        return Evidence(best is not None, facts)
    return Evidence(len(fitting) > rule.above, {**facts, "count": len(fitting), "peak": len(fitting)})


def _named(answer: Answer, rule: PresentRule) -> Evidence:
    """Of a classification: whether the class that is named first is one that counts. It is nowhere, so a zone does not matter."""
    best = answer.top[0]
    holds = best.score >= rule.min_score and (not rule.labels or best.label in rule.labels)
    return Evidence(holds, {"label": best.label, "score": round(best.score, 6)})


def _score(answer: Answer, rule: ScoreRule) -> Evidence | None:
    if answer.task not in {"classification", "detection"}:
        return None
    best = best_of(answer, labels=rule.labels, min_score=rule.min_score)
    if best is None:
        return Evidence(holds=False)
    return Evidence(best.score >= rule.above, {"label": best.label, "score": round(best.score, 6)})


def _anomaly(answer: Answer, rule: AnomalyRule) -> Evidence | None:
    if answer.value is None:
        return None
    holds = bool(answer.is_anomaly) if rule.above is None else answer.value >= rule.above
    return Evidence(holds, {"value": answer.value, "unit": answer.unit})


def _value(answer: Answer, rule: ValueRule) -> Evidence | None:
    if answer.value is None:
        return None
    holds = (rule.low is not None and answer.value < rule.low) or (rule.high is not None and answer.value > rule.high)
    return Evidence(holds, {"value": answer.value, "unit": answer.unit})


def _gathered(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The newest facts with the best score and the highest count so far."""
    best: dict[str, Any] = {key: max(before[key], now[key]) for key in ("score", "peak") if key in before and key in now}
    return now | best
