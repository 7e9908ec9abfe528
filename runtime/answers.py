"""What a model answers, by task: classes, detected objects, a measurement. Values only; what makes them is in `postprocess`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class with its score, 0..1 after an activation."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The best classes, best first; those below the manifest's threshold are left out, so it may be empty."""

    top: tuple[ClassScore, ...]


@dataclass(frozen=True, slots=True)
class Detected:
    """One object that was found."""

    label: str
    #: Of the label in the model manifest.
    index: int
    #: 0..1.
    score: float
    #: (x0, y0, x1, y1) in shares of width and height of the frame as captured, 0..1, x0 <= x1, y0 <= y1.
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects of one frame, best first; may be empty."""

    items: tuple[Detected, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number, always finite."""

    value: float
    #: As the model manifest writes it, e.g. "mm"; empty for a plain number.
    unit: str
    #: Whether the value is above the model manifest's threshold; None for a regression.
    is_anomaly: bool | None = None


Answer = Classification | Detections | Measurement
