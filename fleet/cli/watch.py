"""mooring watch: what devices say, as it is stored."""

from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ServerOption
from fleet.cli.session import open_api


def watch(
    device: str | None = typer.Option(None, help="Only this device."),
    count: int = typer.Option(0, min=0, help="Stop after so many messages; 0: never."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Follow telemetry, events and state as they come; Ctrl-C stops. With --json one document a line."""
    seen = 0
    with open_api(server) as api:
        for name, message in api.stream("/watch", device=device):
            if name != "message":
                continue
            if as_json:
                output.line_of_json(message)
            else:
                words = summary(message["topic"], message["body"])
                output.data(f"{output.moment(message['ts'])}  {message['device']:<20} {message['topic']:<14} {words}")
            seen += 1
            if seen == count:
                return


def summary(topic: str, body: dict[str, Any]) -> str:
    """The few words of a message that a person wants first."""
    match topic.partition("/")[0]:
        case "tel" if "fps" in body:
            return (
                f"{body.get('pipeline')}: {body['fps']:.1f} frames/s, p50 {body.get('lat_ms_p50') or 0:.1f} ms, {body.get('backend', '')}"
            )
        case "tel" if "cpu_percent" in body:
            return f"CPU {body['cpu_percent']:.0f} %, memory {body['rss_mb']:.0f} MB, outbox {body['outbox_rows']} rows"
        case "event":
            return f"{body.get('type', '')} {body.get('subject') or ''} {_event_words(body.get('data') or {})}".strip()
        case "inf":
            return f"{_answer_words(body)} ({body.get('release', '')})"
        case "status":
            return str(body.get("presence", ""))
        case "model":
            return ", ".join(_line_words(line) for line in body.get("lines", []))
        case _:
            return ""


def _answer_words(body: dict[str, Any]) -> str:
    """What a model answered, whatever its task: the best class, the objects with their ids, or the value."""
    if body.get("value") is not None:
        is_anomaly = body.get("is_anomaly")
        verdict = "" if is_anomaly is None else ", anomaly" if is_anomaly else ", no anomaly"
        return f"{body['value']:g} {body.get('unit') or ''}".strip() + verdict
    if body.get("task") == "detection":
        boxes = [_object_words(box["label"], box["score"], box.get("track")) for box in body.get("boxes", [])]
        return ", ".join(boxes) or "no object"
    return f"{body['top'][0]['label']} {body['top'][0]['score']:.2f}" if body.get("top") else "nothing"


def _event_words(data: dict[str, Any]) -> str:
    """Which rule an event is of, where, and about what; empty for events without a rule."""
    if not data.get("rule"):
        return ""
    words = [data["rule"]]
    if data.get("zone"):
        words.append(f"{data['zone']} {data.get('direction') or ''}".strip())
    if data.get("label"):
        words.append(_object_words(data["label"], data.get("score"), data.get("track")))
    if data.get("count") is not None:
        words.append(f"{data['count']} at once")
    if data.get("value") is not None:
        words.append(f"{data['value']:g} {data.get('unit') or ''}".strip())
    if data.get("reason"):
        words.append(f"({data['reason']})")
    return " ".join(words)


def _object_words(label: str, score: float | None, track: int | None) -> str:
    return label + ("" if track is None else f" #{track}") + ("" if score is None else f" {score:.2f}")


def _line_words(line: dict[str, Any]) -> str:
    """Where the update of a line is, which release it brings, and why it stopped."""
    installed, desired = line.get("installed") or "nothing", line.get("desired")
    release = f"{installed} -> {desired}" if desired and desired != installed else installed
    return f"{line['line']} {release} {line['state']}" + (f" ({line['reason']})" if line.get("reason") else "")
