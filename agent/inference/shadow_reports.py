"""What the shadow process says to the control process, and how it hears of frames.

Apart from `shadow_messages` because it takes pydantic, which the inference process does not carry.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from agent.inference.messages import Sampled
from agent.inference.shadow_messages import Offered
from protocol.shadow import Comparison


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of one pipeline with one champion since the beat before."""

    pipeline: str
    line: str
    champion: str
    candidate: str
    figures: Comparison


@dataclass(frozen=True, slots=True)
class ShadowBeat:
    """Sent every `beat_s` and with the end."""

    compared: tuple[Compared, ...]
    rss_mb: float
    #: What drift watches of the candidates.
    rows: tuple[Sampled, ...] = ()
    kind: Literal["beat"] = "beat"


@dataclass(frozen=True, slots=True)
class ShadowReady:
    """The candidates that could be loaded run; the others are in faults before it."""

    pid: int
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class ShadowFault:
    """A candidate cannot run here: it is not loaded again by this process."""

    line: str
    code: str
    text: str
    kind: Literal["fault"] = "fault"


Said = ShadowBeat | ShadowReady | ShadowFault
SAID: TypeAdapter[Said] = TypeAdapter(Annotated[Said, Field(discriminator="kind")])
OFFERED: TypeAdapter[Offered] = TypeAdapter(Offered)
