"""What is wrong with a row before it is counted: a camera that is frozen, black or covered is no drift (DRIFT 1). Pure.

Thresholds are defaults, of pixels from 0 to 255. What excludes a row never enters a drift score; what does not is told all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

#: Sampled rows in a row with the same picture, or the same value, before it is stuck.
STUCK_ROWS = 30
#: A picture deviates less than this, in gray of 255: a live sensor at night still shows noise.
FLAT_DEVIATION = 1.0
#: Below and above it a flat picture is black or white; between the two something covers the lens.
BLACK_MEAN, WHITE_MEAN = 20.0, 235.0
#: Steps without a frame before that is a condition.
MISSING_STEPS = 10
#: Share of rows left out above which a sub-window is not testable, and share of the reference's rows below which it is not.
MAX_EXCLUDED, MIN_RATE = 0.5, 0.5

#: Codes (`protocol.sketches.codec.CONDITION_CODES`) that keep a row out of the counts.
EXCLUDING = frozenset(
    {"frame_frozen", "frame_black", "frame_white", "frame_covered", "shape_mismatch", "value_stuck", "value_out_of_range"}
)
#: How each reads for people: in the latest ten minutes, or now.
TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "frame_missing": "No frame came for longer than ten steps.",
        "rate_low": "Fewer than half of the usual rows came in ten minutes.",
        "frame_frozen": "The same picture comes again and again.",
        "frame_black": "The picture is black.",
        "frame_white": "The picture is white.",
        "frame_covered": "The picture is one even gray.",
        "frame_out_of_focus": "The picture is blurrier than any that the model was evaluated on.",
        "shape_mismatch": "Frames of another size or kind than before come.",
        "nonfinite": "Some numbers of the input or of the answer are none.",
        "extractor_failed": "Numbers of the input could not be computed.",
        "value_stuck": "A value of the sensor does not move.",
        "value_out_of_range": "Readings lie outside their declared range.",
        "clock_unsynced": "The clock is not set; rows wait for it.",
        "clock_jumped": "The clock jumped by more than an hour; the ten minutes around it are not judged.",
        "reference_degenerate": "The device's own reference has no usable covariance; nothing is raised.",
        "detector_failed": "The check of a sub-window failed; it is not judged.",
        "grid_wanted": "More than 5 % of a feature lay beyond its grid for a day; a release with a new profile would see it better.",
    }
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one row's input."""

    #: Pixels, height and width; None: readings of sensors.
    size: tuple[int, int] | None
    #: Gray of 255 for pictures.
    mean: float
    deviation: float
    hash: str
    not_finite: int
    out_of_range: int
    #: The watched values of sensor channels that vary in the reference, in grid order.
    channels: tuple[float, ...] = ()
    #: Sharpness below the least of the model's evaluation data.
    is_blurred: bool = False
    #: Code of what kept the row from being made; empty: it was made.
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the rows before leave for the next one."""

    hash: str = ""
    same: int = 0
    blurred: int = 0
    size: tuple[int, int] | None = None
    channels: tuple[float, ...] = ()
    #: Per channel, rows in a row with the same value.
    still: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a row."""

    codes: tuple[str, ...]

    @property
    def is_excluded(self) -> bool:
        """Whether it is left out of the counts."""
        return any(code in EXCLUDING for code in self.codes)


def judge(memory: Memory, seen: Seen) -> tuple[Memory, Verdict]:
    """What is wrong with the row, and what the next one is judged with. The first size that is seen is the right one."""
    if seen.fault:
        return memory, Verdict((seen.fault,))
    same = memory.same + 1 if seen.hash == memory.hash else 1
    blurred = memory.blurred + 1 if seen.is_blurred else 0
    is_known = len(memory.channels) == len(seen.channels)
    before = zip(memory.channels, memory.still, strict=True) if is_known else ((float("nan"), 0) for _ in seen.channels)
    still = tuple(rows + 1 if value == last else 1 for value, (last, rows) in zip(seen.channels, before, strict=True))
    codes = [*_of_pictures(memory, seen, same, blurred)] if seen.size is not None else []
    if any(rows >= STUCK_ROWS for rows in still):
        codes.append("value_stuck")
    if seen.out_of_range:
        codes.append("value_out_of_range")
    if seen.not_finite:
        codes.append("nonfinite")
    size = memory.size or seen.size
    return replace(memory, hash=seen.hash, same=same, blurred=blurred, size=size, channels=seen.channels, still=still), Verdict(
        tuple(codes)
    )


def _of_pictures(memory: Memory, seen: Seen, same: int, blurred: int) -> list[str]:
    codes = []
    if memory.size is not None and seen.size != memory.size:
        codes.append("shape_mismatch")
    if same >= STUCK_ROWS:
        codes.append("frame_frozen")
    if seen.deviation < FLAT_DEVIATION:
        codes.append("frame_black" if seen.mean < BLACK_MEAN else "frame_white" if seen.mean > WHITE_MEAN else "frame_covered")
    elif blurred >= STUCK_ROWS:
        codes.append("frame_out_of_focus")
    return codes


def is_testable(*, rows: int, excluded: int, usual_rows: float | None, has_gap: bool) -> bool:
    """Whether a sub-window may be judged: most rows counted, about as many as usual (None: not known yet), no time without frames."""
    if not rows or has_gap or excluded > MAX_EXCLUDED * (rows + excluded):
        return False
    return usual_rows is None or rows >= MIN_RATE * usual_rows
