"""Zones of a frame and event rules over them, as they are written in settings; checked the same on device and server.

Coordinates are 0..1 of the frame, x to the right, y down. `zones` and `rules` of a pipeline are lists: a list replaces as a whole.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from protocol.geometry import Point, line_fault, on_grid, polygon_fault
from protocol.ids import NAME_PATTERN
from protocol.windows import Window, checked_zone

MAX_ZONES, MAX_POINTS, MAX_RULES = 32, 64, 64
#: Bytes of JSON that the zones and rules of all pipelines of a device may take together: it tells its settings in one message of at
#: most 256 KiB, up to three times over (its own, those in force, the twin).
MAX_RULE_BYTES = 48 << 10

_Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Day = 86_400


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Zone(_Part):
    """A part of the frame: the inside of a polygon, or a line to be crossed."""

    name: _Name
    kind: Literal["polygon", "line"] = "polygon"
    #: Corners [x, y] in order; a polygon closes itself.
    points: Annotated[tuple[tuple[_Share, _Share], ...], Field(max_length=MAX_POINTS)]

    @model_validator(mode="after")
    def _has_a_shape(self) -> "Zone":
        fault = (polygon_fault if self.kind == "polygon" else line_fault)(self.on_grid())
        if fault:
            raise ValueError(f"zone {self.name!r} is no {self.kind}: {fault}")
        return self

    def on_grid(self) -> tuple[Point, ...]:
        """The points on the grid of `protocol.geometry`."""
        return tuple(on_grid(x, y) for x, y in self.points)


class _Rule(_Part):
    """What every rule has."""

    name: _Name
    #: Debounce: what is new counts when it held in this many of the last `of_frames` frames (not said: in that many in a row) …
    min_frames: Annotated[int, Field(ge=1, le=100)] = 1
    of_frames: Annotated[int, Field(ge=1, le=100)] | None = None
    #: … and then for this many seconds more.
    min_s: Annotated[float, Field(ge=0, le=_Day)] = 0.0
    #: Seconds after an event of this rule in which it begins no other.
    cool_down_s: Annotated[float, Field(ge=0, le=_Day)] = 0.0
    #: When the rule makes events; empty: always.
    schedule: Annotated[tuple[Window, ...], Field(max_length=32)] = ()
    #: Zone of the schedule, a name like "Europe/Berlin"; None: the device's `update.time_zone`.
    time_zone: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        return None if value is None else checked_zone(value)

    @model_validator(mode="after")
    def _frames_fit(self) -> "_Rule":
        if self.of_frames is not None and self.of_frames < self.min_frames:
            raise ValueError(f"of_frames is {self.of_frames}; wanted at least min_frames, {self.min_frames}")
        return self


class _Filtered(_Rule):
    """A rule about some of the objects or classes of an answer."""

    #: Labels that count; empty: all.
    labels: Annotated[tuple[_Label, ...], Field(max_length=64)] = ()
    #: Lowest score that counts.
    min_score: _Share = 0.0


class _Objects(_Filtered):
    """A rule about objects in the frame."""

    #: Smallest box that counts, as a share of the frame's area.
    min_area: _Share = 0.0
    #: The point of a box that is inside or outside: the middle of its lower edge (where things stand), or its middle.
    anchor: Literal["bottom", "center"] = "bottom"
    #: Seconds after which what is not seen any more is gone.
    lost_s: Annotated[float, Field(ge=0, le=3600)] = 3.0


class _Lasting(_Part):
    #: Seconds between two updates while it lasts; 0: none.
    update_s: Annotated[float, Field(ge=0, le=_Day)] = 30.0


class EnterRule(_Objects):
    """An object comes into a zone, or appears in it."""

    kind: Literal["enter"]
    zone: _Name


class LeaveRule(_Objects):
    """An object that was in a zone goes out of it, or vanishes in it."""

    kind: Literal["leave"]
    zone: _Name


class CrossRule(_Objects):
    """An object crosses a line, to the right or the left hand of who stands at its first point and looks to the next."""

    kind: Literal["cross"]
    zone: _Name
    direction: Literal["any", "right", "left"] = "any"


class DwellRule(_Objects, _Lasting):
    """One and the same object stays in a zone."""

    kind: Literal["dwell"]
    zone: _Name
    #: Seconds after which it has stayed.
    seconds: Annotated[float, Field(gt=0, le=30 * _Day)]


class PresentRule(_Objects, _Lasting):
    """There is an object, or the class that the model names, in a zone or anywhere."""

    kind: Literal["present"]
    zone: _Name | None = None


class CountRule(_Objects, _Lasting):
    """There are more objects than `above` at once, in a zone or anywhere."""

    kind: Literal["count"]
    zone: _Name | None = None
    above: Annotated[int, Field(ge=0, le=1000)]


class ClassRule(_Filtered):
    """The class that the model names is another one."""

    kind: Literal["class"]


class ScoreRule(_Filtered, _Lasting):
    """The best score is at `above` or over it."""

    kind: Literal["score"]
    above: _Share


class AnomalyRule(_Rule, _Lasting):
    """The model says that something is wrong, or its value is at `above` or over it."""

    kind: Literal["anomaly"]
    #: None: what the model's own threshold says.
    above: float | None = None


class ValueRule(_Rule, _Lasting):
    """The value that the model gives is below `low` or over `high`."""

    kind: Literal["value"]
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> "ValueRule":
        if self.low is None and self.high is None:
            raise ValueError("neither low nor high is set; wanted at least one of them")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; wanted low at or below high")
        return self


ObjectRule = EnterRule | LeaveRule | CrossRule | DwellRule | PresentRule | CountRule
LastingRule = DwellRule | PresentRule | CountRule | ScoreRule | AnomalyRule | ValueRule
AnyRule = EnterRule | LeaveRule | CrossRule | DwellRule | PresentRule | CountRule | ClassRule | ScoreRule | AnomalyRule | ValueRule
_KINDS: dict[str, type[BaseModel]] = {
    one.model_fields["kind"].annotation.__args__[0]: one  # type: ignore[union-attr]  # each is a Literal of one value
    for one in (EnterRule, LeaveRule, CrossRule, DwellRule, PresentRule, CountRule, ClassRule, ScoreRule, AnomalyRule, ValueRule)
}
#: Kinds that follow one object from frame to frame: they need tracking ids.
TRACKING_KINDS = frozenset({"enter", "leave", "cross", "dwell"})


def rules_fault(rules: Sequence[AnyRule], zones: Sequence[Zone] | None) -> str:
    """What is wrong with a list of rules, in words; empty when nothing is. `zones` None: they are not known here."""
    if fault := _repeated([rule.name for rule in rules], what="rules"):
        return fault
    kinds = None if zones is None else {zone.name: zone.kind for zone in zones}
    for rule in rules:
        name = getattr(rule, "zone", None)
        if kinds is None or name is None:
            continue
        if name not in kinds:
            known = ", ".join(sorted(kinds)) or "none"
            return f"rule {rule.name!r} names the zone {name!r}; this pipeline's zones: {known}"
        wanted = "line" if rule.kind == "cross" else "polygon"
        if kinds[name] != wanted:
            return f"rule {rule.name!r} of kind {rule.kind} names {name!r}, a {kinds[name]}; wanted a {wanted}"
    return ""


def _checked_zones(zones: tuple[Zone, ...]) -> tuple[Zone, ...]:
    if fault := _repeated([zone.name for zone in zones], what="zones"):
        raise ValueError(fault)
    return zones


def _checked_rules(rules: tuple[AnyRule, ...], info: ValidationInfo) -> tuple[AnyRule, ...]:
    """Against the field `zones` before it. Where that says None, the zones are another section's, or the device's own."""
    if fault := rules_fault(rules, info.data.get("zones")):
        raise ValueError(fault)
    return rules


#: One rule, told by its kind.
Rule = Annotated[AnyRule, Field(discriminator="kind")]
#: Types of the fields `zones` and, below it, `rules` of a pipeline.
Zones = Annotated[tuple[Zone, ...], Field(max_length=MAX_ZONES), AfterValidator(_checked_zones)]
Rules = Annotated[tuple[Annotated[AnyRule, Field(discriminator="kind")], ...], Field(max_length=MAX_RULES), AfterValidator(_checked_rules)]


def need_tracks(rules: Sequence[AnyRule]) -> bool:
    """Whether one of the rules follows objects."""
    return any(rule.kind in TRACKING_KINDS for rule in rules)


def keys_of(location: Sequence[Any]) -> list[str]:
    """The keys allowed at a place inside `zones` or `rules` of a pipeline, e.g. ("rules", 0, "dwell"); empty when it is not one."""
    if "zones" in location:
        return list(Zone.model_fields)
    kind = next((str(part) for part in location if part in _KINDS), "")
    if "schedule" in location:
        return [field.alias or name for name, field in Window.model_fields.items()]
    return list(_KINDS[kind].model_fields) if "rules" in location and kind else []


def _repeated(names: Sequence[str], *, what: str) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return f"two {what} are named {name!r}; wanted different names"
        seen.add(name)
    return ""
