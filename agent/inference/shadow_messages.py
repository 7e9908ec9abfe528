"""What the control process, the inference process and the shadow process say to each other about candidates.

The control process starts the shadow with its orders and hears beats. Frames go from the inference process straight to the shadow: one
buffer in memory that both map, and a socket whose messages say who owns it ("it holds frame n" there, one byte "it is free" back). What
the shadow says of them: `shadow_reports`.
"""

import json
from dataclasses import dataclass
from typing import Literal

from agent.inference.messages import Prediction
from protocol.decoding import decode

#: The largest frame that a shadow is given, bytes: 4K in three colors. The memory is only used as far as frames reach.
MAX_FRAME_BYTES = 32 << 20
#: Longest message beside a frame, bytes: an answer with all its boxes.
MAX_NOTE_BYTES = 128 << 10
#: Exit status of a shadow whose inference process is gone: EX_UNAVAILABLE of sysexits.h, nobody's fault here.
EXIT_NO_FEED = 69


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate that runs beside the champion of its line."""

    line: str
    release: str
    folder: str
    #: The pipelines of the line that it runs on.
    pipelines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShadowBrief:
    """All that a shadow process is told, at its start; other candidates mean another process."""

    candidates: tuple[Candidate, ...]
    #: Execution providers, best first, and threads, as the inference process has them.
    providers: tuple[str, ...]
    threads: int
    #: Share of one core.
    cpu_share: float
    #: Seconds of real time between two beats.
    beat_s: float
    #: "idle": it runs only when nobody else wants the processor.
    priority: Literal["idle", "normal"] = "idle"
    #: Seconds between two rows of what drift watches of the candidates, 0: as their profiles say; None: none are made.
    row_step_s: float | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How a frame lies in the buffer."""

    shape: tuple[int, ...]
    dtype: str
    #: It is the model's input tensor, made by the same plan as the candidate's; else the frame as captured.
    is_input: bool
    #: Milliseconds that the champion took to make the input, which the candidate is spared.
    prepared_ms: float = 0.0
    #: Height and width of the frame that an input was made from; None: no frame.
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """The buffer holds the frame of this answer of the champion."""

    answer: Prediction
    layout: Layout
    #: Frames of the pipeline that were not offered since the one before: the buffer was not free; the frame was too long.
    skipped: int = 0
    too_large: int = 0


def read_brief(data: bytes | str) -> ShadowBrief:
    """What a shadow is told at its start. Raises: ValueError when it is no brief."""
    return decode(ShadowBrief, json.loads(data))
