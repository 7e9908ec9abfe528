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
            return f"{body.get('type', '')} {body.get('subject') or ''}".strip()
        case "inf" if body.get("top"):
            best = body["top"][0]
            return f"{best['label']} {best['score']:.2f} ({body.get('release', '')})"
        case "status":
            return str(body.get("presence", ""))
        case "model":
            return ", ".join(_line_words(line) for line in body.get("lines", []))
        case _:
            return ""


def _line_words(line: dict[str, Any]) -> str:
    """Where the update of a line is, which release it brings, and why it stopped."""
    installed, desired = line.get("installed") or "nothing", line.get("desired")
    release = f"{installed} -> {desired}" if desired and desired != installed else installed
    return f"{line['line']} {release} {line['state']}" + (f" ({line['reason']})" if line.get("reason") else "")
