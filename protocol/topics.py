"""The MQTT topic grammar: the only place that builds or parses a topic. A public contract: INTERFACES 1.1 to 1.3.

`mooring/1/{tenant}/d/{device}/…` device to world · `…/c/{device}/…` world to device · `…/f/…` fleet to consumers.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import InvalidError
from protocol.ids import DeviceId, TenantId

WIRE_MAJOR = "1"
DEFAULT_PREFIX = "mooring"
#: Packets beyond this are refused on both sides (INTERFACES 1.1).
MAX_PACKET_BYTES = 256 * 1024

_LEVEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Direction(StrEnum):
    """Who speaks to whom; the fourth level of a topic."""

    #: Device to world.
    DEVICE = "d"
    #: World to device.
    COMMAND = "c"
    #: Fleet to consumers.
    FLEET = "f"


class MessageClass(StrEnum):
    """When a row may leave the device's outbox: INTERFACES 1.6."""

    #: Only after the server said it committed the row.
    STORED = "stored"
    #: After the broker acknowledged it.
    SENT = "sent"
    #: The newest per topic wins; all are published again after each connect.
    STATE = "state"
    #: Never in the outbox; lost when the link is down, counted.
    RING = "ring"
    #: An answer that is worthless later.
    REPLY = "reply"


@dataclass(frozen=True, slots=True)
class StreamRule:
    """How messages of one stream (the first level below the device) are sent: INTERFACES 1.2."""

    message_class: MessageClass
    qos: int
    retain: bool
    #: Message expiry in seconds; None = never.
    expiry_s: int | None


_DAY_S = 86_400
#: Every stream a device may publish.
STREAMS: dict[str, StreamRule] = {
    "status": StreamRule(MessageClass.STATE, 1, True, None),
    "info": StreamRule(MessageClass.STATE, 1, True, None),
    "reported": StreamRule(MessageClass.STATE, 1, True, None),
    "model": StreamRule(MessageClass.STATE, 1, True, None),
    "drift": StreamRule(MessageClass.STATE, 1, True, None),
    "tel": StreamRule(MessageClass.SENT, 1, False, _DAY_S),
    "sketch": StreamRule(MessageClass.STORED, 1, False, 7 * _DAY_S),
    "event": StreamRule(MessageClass.STORED, 1, False, 7 * _DAY_S),
    "job": StreamRule(MessageClass.STORED, 1, False, 7 * _DAY_S),
    "audit": StreamRule(MessageClass.STORED, 1, False, 7 * _DAY_S),
    "inf": StreamRule(MessageClass.RING, 0, False, 60),
    "log": StreamRule(MessageClass.RING, 0, False, 3600),
    "rpc-reply": StreamRule(MessageClass.REPLY, 1, False, 30),
}
STATE_STREAMS = tuple(name for name, rule in STREAMS.items() if rule.message_class is MessageClass.STATE)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. For FLEET topics `device` is None and `levels` is everything below `f`."""

    tenant: TenantId
    direction: Direction
    device: DeviceId | None
    levels: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX

    @property
    def stream(self) -> str:
        """The first level below the device, e.g. "tel" of tel/perf."""
        return self.levels[0]

    def __str__(self) -> str:
        return build(self)


def device_topic(tenant: TenantId, device: DeviceId, *levels: str, prefix: str = DEFAULT_PREFIX) -> str:
    """A topic that the device publishes. Raises: InvalidError."""
    return build(Topic(tenant, Direction.DEVICE, device, levels, prefix))


def command_topic(tenant: TenantId, device: DeviceId, *levels: str, prefix: str = DEFAULT_PREFIX) -> str:
    """A topic that the device listens to. Raises: InvalidError."""
    return build(Topic(tenant, Direction.COMMAND, device, levels, prefix))


def fleet_topic(tenant: TenantId, *levels: str, prefix: str = DEFAULT_PREFIX) -> str:
    """A topic on which the fleet speaks to consumers. Raises: InvalidError."""
    return build(Topic(tenant, Direction.FLEET, None, levels, prefix))


def build(topic: Topic) -> str:
    """The topic's text; `parse(build(x)) == x`. Raises: InvalidError naming the level that does not fit the grammar."""
    if not topic.levels:
        raise InvalidError("A topic needs at least one level below its device.")
    device = () if topic.device is None else (topic.device,)
    if (topic.device is None) != (topic.direction is Direction.FLEET):
        raise InvalidError(f"Direction {topic.direction.value!r} with device {topic.device!r}; only 'f' topics have no device.")
    levels = (topic.prefix, WIRE_MAJOR, topic.tenant, topic.direction.value, *device, *topic.levels)
    for level in levels:
        if not _LEVEL.fullmatch(level):
            raise InvalidError(f"Topic level {level[:80]!r} is not valid; wanted 1 to 63 of a-z, 0-9 and '-'.")
    return "/".join(levels)


def parse(text: str, *, prefix: str = DEFAULT_PREFIX) -> Topic:
    """The parts of a topic. Raises: InvalidError when it is not one of ours."""
    levels = text.split("/")
    if len(levels) < 5 or levels[0] != prefix or levels[1] != WIRE_MAJOR or not all(_LEVEL.fullmatch(level) for level in levels):
        raise InvalidError(f"Topic {text[:200]!r} is not {prefix}/{WIRE_MAJOR}/<tenant>/<d|c|f>/….")
    tenant, kind, rest = TenantId(levels[2]), levels[3], levels[4:]
    match kind:
        case Direction.FLEET:
            return Topic(tenant, Direction.FLEET, None, tuple(rest), prefix)
        case Direction.DEVICE | Direction.COMMAND if len(rest) >= 2:
            return Topic(tenant, Direction(kind), DeviceId(rest[0]), tuple(rest[1:]), prefix)
        case _:
            raise InvalidError(f"Topic {text[:200]!r} has {kind!r} where 'd', 'c' or 'f' and a device were wanted.")


def rule_of(topic: Topic) -> StreamRule:
    """How messages of the topic's stream are sent. Raises: InvalidError when no such stream is declared."""
    try:
        return STREAMS[topic.stream]
    except KeyError:
        raise InvalidError(f"No stream {topic.stream!r} is declared; wanted one of {', '.join(STREAMS)}.") from None
