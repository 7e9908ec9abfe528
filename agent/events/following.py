"""Rules that follow one object from frame to frame: enter, leave, cross, dwell. Pure; bounded by `MAX_FOLLOWED`.

A frame in which an object is not seen says nothing about where it is; after `lost_s` without it the object is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.events.answers import Answer, Box
from agent.events.debounce import Debounce
from agent.events.telling import Happening, Lasting, Teller
from protocol.geometry import Point, contains, crossing, on_grid
from protocol.rules import CrossRule, DwellRule, EnterRule, LeaveRule, ObjectRule, Zone

#: Objects that one rule follows at once; the one that was seen longest ago is given up for a new one.
MAX_FOLLOWED = 512


def anchor_of(box: Box, rule: ObjectRule) -> Point:
    """The point that stands for the box, on the grid."""
    y = box.y1 if rule.anchor == "bottom" else (box.y0 + box.y1) / 2
    return on_grid((box.x0 + box.x1) / 2, y)


def counts(box: Box, rule: ObjectRule) -> bool:
    """Whether the rule is about this box."""
    return (
        box.score >= rule.min_score
        and (not rule.labels or box.label in rule.labels)
        and (not rule.min_area or (box.x1 - box.x0) * (box.y1 - box.y0) >= rule.min_area)
    )


def facts_of(box: Box, *, best: float) -> dict[str, Any]:
    """What is told of an object."""
    corners = [round(value, 4) for value in (box.x0, box.y0, box.x1, box.y1)]
    return {"label": box.label, "track": box.track, "score": round(best, 6), "box": corners}


@dataclass(slots=True)
class _Object:
    """One followed object."""

    state: Debounce
    seen_ms: int
    #: As it was seen last, and its best score so far.
    box: Box
    best: float
    #: What is told of its stay.
    stay: Lasting | None = None
    #: Of a line: where it was, how often it crossed to the right more than to the left, and how much of that is believed.
    point: Point | None = None
    offset: int = 0
    believed: int = 0


class Following:
    """One rule over the objects of one pipeline."""

    def __init__(self, rule: EnterRule | LeaveRule | CrossRule | DwellRule, zone: Zone, teller: Teller) -> None:
        self._rule, self._teller, self._shape = rule, teller, zone.on_grid()
        self._zone = {"zone": zone.name}
        self._session: int | None = None
        self._objects: dict[int, _Object] = {}

    def observe(self, answer: Answer, now_ms: int) -> list[Happening]:
        """What the rule has to tell after this answer."""
        found: list[Happening] = []
        if answer.session != self._session:  # tracking ids begin anew
            found += self.close(now_ms, "session")
            self._session = answer.session
        for box in answer.boxes:
            if box.track is not None and counts(box, self._rule):
                found += self._saw(box, box.track, now_ms)
        lost_ms = now_ms - round(self._rule.lost_s * 1000)
        for track in [track for track, one in self._objects.items() if one.seen_ms < lost_ms]:
            found += self._lose(track, now_ms, "lost")
        return found

    def close(self, now_ms: int, reason: str) -> list[Happening]:
        """Forget all objects; what lasts ends. Nobody is said to have left: nobody saw that."""
        found: list[Happening] = []
        for one in self._objects.values():
            if one.stay is not None:
                found += self._teller.end(one.stay, now_ms, reason, self._facts(one))
        self._objects.clear()
        return found

    def _saw(self, box: Box, track: int, now_ms: int) -> list[Happening]:
        found: list[Happening] = []
        one = self._objects.get(track)
        if one is None:
            if len(self._objects) >= MAX_FOLLOWED:
                oldest = min(self._objects, key=lambda key: self._objects[key].seen_ms)
                found += self._lose(oldest, now_ms, "lost")
            one = self._objects[track] = _Object(self._new_state(), now_ms, box, box.score)
        one.seen_ms, one.box, one.best = now_ms, box, max(one.best, box.score)
        point = anchor_of(box, self._rule)
        if isinstance(self._rule, CrossRule):
            return found + self._moved(one, point, now_ms, self._rule.direction)
        has_changed = one.state.feed(contains(self._shape, point), now_ms)
        return found + self._stands(one, now_ms, has_changed=has_changed)

    def _stands(self, one: _Object, now_ms: int, *, has_changed: bool) -> list[Happening]:
        match self._rule:
            case EnterRule():
                return self._teller.moment(now_ms, one.state.changed_ms, self._facts(one)) if has_changed and one.state.is_on else []
            case LeaveRule():
                return self._left(one, now_ms, "outside") if has_changed and not one.state.is_on else []
            case DwellRule(seconds=seconds):
                return self._stays(one, now_ms, round(seconds * 1000))
            case _:
                return []

    def _stays(self, one: _Object, now_ms: int, least_ms: int) -> list[Happening]:
        if one.stay is None:
            has_stayed = one.state.is_on and now_ms - one.state.changed_ms >= least_ms
            if not has_stayed or not self._teller.is_open(now_ms):
                return []
            one.stay, found = self._teller.begin(now_ms, one.state.changed_ms, self._facts(one))
            return found
        if one.state.is_on and self._teller.is_open(now_ms):
            return self._teller.go_on(one.stay, now_ms, lambda: self._facts(one))
        found = self._teller.end(one.stay, now_ms, "schedule" if one.state.is_on else "outside", self._facts(one))
        one.stay = None
        return found

    def _moved(self, one: _Object, point: Point, now_ms: int, wanted: str) -> list[Happening]:
        if one.point is not None:
            one.offset += crossing(one.point, point, self._shape)
        one.point = point
        # the state is "as believed or not": it is off again as soon as what is seen is believed
        if not one.state.feed(one.offset != one.believed, now_ms):
            return []
        direction = "right" if one.offset > one.believed else "left"
        start_ms, one.believed, one.state = one.state.changed_ms, one.offset, self._new_state()
        if wanted not in {"any", direction}:
            return []
        return self._teller.moment(now_ms, start_ms, {**self._facts(one), "direction": direction})

    def _lose(self, track: int, now_ms: int, reason: str) -> list[Happening]:
        one = self._objects.pop(track)
        if one.stay is not None:
            return self._teller.end(one.stay, now_ms, reason, self._facts(one))
        return self._left(one, now_ms, reason) if isinstance(self._rule, LeaveRule) and one.state.is_on else []

    def _left(self, one: _Object, now_ms: int, reason: str) -> list[Happening]:
        start_ms = one.state.changed_ms if reason == "outside" else one.seen_ms
        return self._teller.moment(now_ms, start_ms, {**self._facts(one), "reason": reason})

    def _facts(self, one: _Object) -> dict[str, Any]:
        return {**facts_of(one.box, best=one.best), **self._zone}

    def _new_state(self) -> Debounce:
        rule = self._rule
        least_ms = round(rule.min_s * 1000)
        return Debounce(frames=rule.min_frames, of=rule.of_frames or rule.min_frames, on_ms=least_ms, off_ms=least_ms)


def zone_of(rule: ObjectRule, zones: Sequence[Zone]) -> Zone | None:
    """The zone that the rule names; None when it names none."""
    return next((zone for zone in zones if zone.name == rule.zone), None)
