"""The bodies of events and of predictions, as they are sent."""

from typing import Any

from agent.events.answers import Answer
from agent.events.telling import Happening
from protocol.messages import Score

#: Boxes of one answer that are sent; the best come first.
MAX_BOXES_SENT = 100


def prediction_body(answer: Answer) -> dict[str, Any]:
    """The body of `inf/{pipeline}`, without its envelope."""
    body = {
        "pipeline": answer.pipeline,
        "line": answer.line,
        "release": answer.release,
        "session": answer.session,
        "frame": answer.frame,
        "top": [Score(label=one.label, index=one.index, score=round(one.score, 6)).model_dump() for one in answer.top],
        "lat_ms": round(answer.lat_ms, 3),
    }
    if answer.task == "classification":
        return body
    body["task"] = answer.task
    if answer.boxes:
        body["boxes"] = [
            {
                "label": one.label,
                "index": one.index,
                "score": round(one.score, 6),
                "box": [round(value, 4) for value in (one.x0, one.y0, one.x1, one.y1)],
                "track": one.track,
            }
            for one in answer.boxes[:MAX_BOXES_SENT]
        ]
    if answer.value is not None:
        body |= {"value": answer.value, "unit": answer.unit, "is_anomaly": answer.is_anomaly}
    return body


def rule_body(happening: Happening, answer: Answer) -> dict[str, Any]:
    """`data` of a rule's event: `protocol.events.RuleEvent`; `answer` is the last one."""
    return {
        "pipeline": answer.pipeline,
        "line": answer.line,
        "release": answer.release,
        "session": answer.session,
        "frame": answer.frame,
        "rule": happening.rule.name,
        "kind": happening.rule.kind,
        "phase": str(happening.phase),
        "occurrence": happening.occurrence,
        "start_ms": happening.start_ms,
        "end_ms": happening.end_ms,
        **happening.facts,
    }


def event_body(kind: str, *, source: str, data: dict[str, Any], subject: str | None = None) -> dict[str, Any]:
    """A CloudEvents body; the outbox gives it its `id`."""
    body = {"specversion": "1.0", "source": source, "type": kind, "datacontenttype": "application/json", "data": data}
    return body if subject is None else {**body, "subject": subject}
