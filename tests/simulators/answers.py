"""Answers of models that never ran: what the inference side would hand over."""

from agent.inference.messages import Box, Prediction, ScoredLabel


def answer(at_ms: int = 1_000, *, session: int = 1, frame: int = 7, **what) -> Prediction:
    """One answer; `what` holds task, top, boxes, value, unit, is_anomaly."""
    fields = {"pipeline": "front", "line": "cars", "release": "1.0", "top": (), "lat_ms": 1.5, "age_ms": 2.0, **what}
    return Prediction(session=session, frame=frame, at_ms=at_ms, **fields)


def saw_class(label: str, score: float = 0.9, at_ms: int = 1_000, **more) -> Prediction:
    """A classification with one class."""
    return answer(at_ms, top=(ScoredLabel(label, 0, score),), **more)


def saw_boxes(*boxes: Box, at_ms: int = 1_000, **more) -> Prediction:
    """A detection."""
    return answer(at_ms, task="detection", boxes=boxes, **more)


def saw_value(value: float, at_ms: int = 1_000, *, is_anomaly: bool | None = None, **more) -> Prediction:
    """A measurement in mm."""
    return answer(at_ms, task="regression" if is_anomaly is None else "anomaly", value=value, unit="mm", is_anomaly=is_anomaly, **more)


def box_at(x: float, y: float, *, track: int | None = 1, label: str = "car", score: float = 0.9, size: float = 0.1) -> Box:
    """A box whose lower edge has its middle at x, y."""
    return Box(label, 2, score, x - size / 2, y - size, x + size / 2, y, track)
