"""Where a source is, what becomes of its frames, what its readings were: plain values that the control process reads too."""

from dataclasses import dataclass
from enum import StrEnum


class SourceState(StrEnum):
    """Where a source is."""

    OPENING = "opening"
    RUNNING = "running"
    #: Could not be opened, fell silent or broke off; it is opened again after a back-off.
    LOST = "lost"
    #: A file or folder that is not looped gave its last frame.
    ENDED = "ended"
    STOPPED = "stopped"


class DropReason(StrEnum):
    """Why a grabbed frame was not inferred."""

    #: Inference was busy and had asked for no frame.
    NOT_WANTED = "not_wanted"
    #: A newer one was ready before it was picked up.
    SUPERSEDED = "superseded"
    #: Older than `max_age_ms` at pick-up.
    STALE = "stale"
    #: All three buffers were taken.
    NO_BUFFER = "no_buffer"
    #: It could not be decoded or has a wrong shape.
    DECODE_ERROR = "decode_error"
    #: Over the pipeline's `max_fps`.
    RATE_LIMITED = "rate_limited"
    #: The motion gate saw nothing move.
    NO_MOTION = "no_motion"
    #: The line has no model.
    MODEL_UNAVAILABLE = "model_unavailable"
    #: The back end failed on it, or its answer was not finite.
    INFERENCE_ERROR = "inference_error"
    #: Drained when the pipeline stopped.
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Channel:
    """Readings of one sensor field since they were last taken."""

    count: int
    mean: float
    low: float
    high: float
    #: Readings that lacked the field or held no finite number.
    gaps: int = 0
