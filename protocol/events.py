"""What a rule's event says: its types and the `data` of its CloudEvent. Readers ignore unknown fields and types."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.fields import Count, Name, ShortText, UnixMs, Version
from protocol.messages import Wire


class Phase(StrEnum):
    """Where an occurrence is; stored and sent, never renamed."""

    #: It happened in one moment: there is no other event of it.
    ONCE = "once"
    #: It began and lasts.
    STARTED = "started"
    #: It still lasts.
    UPDATED = "updated"
    #: It is over. Sent for each occurrence whose start was sent, unless the device ended unexpectedly.
    ENDED = "ended"


#: Kind of rule -> type of its events, where a moment is told; kinds that last are `mooring.{kind}.{phase}.v1`.
_MOMENTS = {
    "enter": "mooring.zone.entered.v1",
    "leave": "mooring.zone.left.v1",
    "cross": "mooring.line.crossed.v1",
    "class": "mooring.class.changed.v1",
}


def event_type(kind: str, phase: Phase) -> str:
    """The CloudEvents `type` of an event of a rule of this kind."""
    return _MOMENTS[kind] if phase is Phase.ONCE else f"mooring.{kind}.{phase}.v1"


class RuleEvent(Wire):
    """`data` of an event that a rule made."""

    pipeline: Name
    #: The model line and its release.
    line: Name
    release: Version
    session: Count
    frame: Count
    rule: Name
    kind: ShortText
    phase: Phase
    #: Names the occurrence: the same in its start, updates and end.
    occurrence: ShortText
    start_ms: UnixMs
    #: None while it lasts.
    end_ms: UnixMs | None = None
    zone: Name | None = None
    label: ShortText | None = None
    #: Tracking id, unique within pipeline and session.
    track: Count | None = None
    #: The best score so far.
    score: float | None = None
    #: x0, y0, x1, y1 in 0..1 of the frame: where it is now.
    box: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    #: Of kind cross: right or left.
    direction: ShortText | None = None
    #: Of kind count: objects now, and the most so far.
    count: Count | None = None
    peak: Count | None = None
    #: Of kinds anomaly and value: the value now, and its unit.
    value: float | None = None
    unit: ShortText | None = None
    #: Of kind class: what it was; `label` is what it is now.
    before: ShortText | None = None
    #: Why it ended or was left: outside, lost, schedule, session, configuration, silent, stopped.
    reason: ShortText | None = None
    #: Events of this pipeline that were not sent since the one before this, because there were too many.
    suppressed_before: Count = 0
