"""One pipeline of a device, as the console and the API show it: its figures, its zones and rules, its latest events."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fleet.campaigns import shadow
from fleet.campaigns.shadow import ShadowSummary
from fleet.db import Database
from fleet.devices import service as devices
from fleet.monitoring import service as monitoring
from fleet.monitoring.model import DeviceState, EventRow, TelemetryRow
from fleet.web import device_views
from fleet.web.views import EventView, TelemetryView
from protocol.clock import from_unix_ms
from protocol.errors import NotFoundError
from protocol.geometry import GRID
from protocol.ids import DeviceId, TenantId
from protocol.messages import Info, PipelineBackend, Reported, TelPerf
from protocol.rules import AnyRule, Rule, Zone

EVENTS_SHOWN, CANDIDATES_SHOWN = 25, 10
#: Drawing units of an empty frame; a picture has its own.
FRAME = (1600, 900)
_ZONE: TypeAdapter[Zone] = TypeAdapter(Zone)
_RULE: TypeAdapter[AnyRule] = TypeAdapter(Rule)


@dataclass(frozen=True, slots=True)
class ZoneView:
    """A zone as it is drawn: corners in drawing units, where its name stands, and for a line the way to its right hand."""

    name: str
    kind: str
    points: str
    label: tuple[float, float]
    arrow: str = ""


@dataclass(frozen=True, slots=True)
class RuleView:
    """One event rule in words."""

    name: str
    kind: str
    zone: str
    text: str


@dataclass(frozen=True, slots=True)
class DropView:
    """Frames that were not inferred for one reason: in the newest window, and in all windows of the chart."""

    reason: str
    newest: int
    total: int


@dataclass(frozen=True, slots=True)
class CandidateView:
    """A release that runs beside the pipeline's own, and how the two compare."""

    candidate: str
    champion: str
    #: shadow: on the same frames, never acted on; ab: in turns.
    run_as: str
    state: str
    campaign: str
    frames: int
    #: 0..1; None: no pairs.
    agreement: float | None
    #: Its mean latency over that of what runs.
    latency_ratio: float | None
    #: Cores.
    cpu_share: float | None
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class PipelinePage:
    """What a page shows that answers "what does this camera see, and how well?"."""

    device: str
    name: str
    line: str
    source: str
    keep: str
    release: str
    asked: str
    effective: str
    #: Whether objects are followed from frame to frame, and whether the device lets pictures be asked for.
    tracks: bool
    preview: bool
    telemetry: TelemetryView | None
    #: Inferred frames and failed inferences of all windows of the chart, and the largest p99 among them.
    frames: int
    errors: int
    worst_p99: float | None
    drops: tuple[DropView, ...]
    zones: tuple[ZoneView, ...]
    rules: tuple[RuleView, ...]
    #: Why zones or rules that were wished are not in force, per dotted key.
    ignored: tuple[tuple[str, str], ...]
    events: tuple[EventView, ...]
    candidates: tuple[CandidateView, ...]
    points_json: str
    size: tuple[int, int] = FRAME

    @property
    def is_fallback(self) -> bool:
        """Whether another backend runs than was asked for."""
        return bool(self.asked) and self.asked not in {"auto", self.effective}


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """All that is known of one pipeline, before it is put into words."""

    device: DeviceId
    #: As the device says that it runs it, else as it is wished; empty: only its telemetry is known.
    document: Mapping[str, Any]
    name: str
    backend: PipelineBackend | None
    perf: Sequence[TelemetryRow]
    events: Sequence[EventRow]
    ignored: Mapping[str, str]
    candidates: Sequence[ShadowSummary] = ()


def load_facts(database: Database, tenant: TenantId, device: DeviceId, name: str, *, now: datetime) -> PipelineFacts:
    """Ask about the pipeline. Raises: NotFoundError when there is no such device, or nothing is known of such a pipeline."""
    detail = devices.get_detail(database, tenant, device)
    states = monitoring.list_states(database, tenant, device)
    since = now - device_views.CHART_SPAN
    perf = monitoring.list_telemetry(database, tenant, device, name="perf", since=since, pipeline=name)
    reported, info = _said(states, "reported", Reported), _said(states, "info", Info)
    document = _document(reported.config if reported else {}, name) or _document(json.loads(detail.twin.desired), name)
    events = monitoring.list_events(database, tenant, device=device, subject=name, limit=EVENTS_SHOWN)
    if not document and not perf and not events:
        raise NotFoundError(f"Device {device!r} has no pipeline {name!r}.", hint="The device's page names its pipelines.")
    said = {**(reported.errors if reported else {}), **(reported.configuration.ignored if reported and reported.configuration else {})}
    ignored = {key: why for key, why in said.items() if f"pipelines.{name}." in f"{key}."}
    backend = next((one for one in info.backends if one.pipeline == name), None) if info else None
    candidates = shadow.shadow_summary(database, tenant, device=device, pipeline=name)[:CANDIDATES_SHOWN]
    return PipelineFacts(device, document, name, backend, perf, events, ignored, candidates)


def pipeline_page(facts: PipelineFacts, *, now: datetime, size: tuple[int, int] = FRAME) -> PipelinePage:
    """The pipeline as its page shows it, zones drawn in a frame of this width and height. Pure."""
    document, windows = facts.document, [body for row in facts.perf if (body := _perf(row)) is not None]
    zones = zones_of(document)
    rules = rules_of(document, zones)
    newest = device_views.telemetry_views(facts.perf, now=now)
    return PipelinePage(
        device=facts.device,
        name=facts.name,
        line=str(document.get("line") or (windows[-1].line if windows else "") or ""),
        source=device_views.source_words(document.get("source")),
        keep=str(document.get("keep", "")),
        release=str((windows[-1].release if windows else None) or ""),
        asked=facts.backend.asked if facts.backend else "",
        effective=facts.backend.effective if facts.backend else "",
        tracks=bool(document.get("track")) or any(rule.kind in {"enter", "leave", "cross", "dwell"} for rule in rules),
        preview=document.get("preview") is True,
        telemetry=newest[0] if newest else None,
        frames=sum(body.frames for body in windows),
        errors=sum(body.errors for body in windows),
        worst_p99=max((body.lat_ms_p99 for body in windows if body.lat_ms_p99 is not None), default=None),
        drops=drop_views(windows),
        zones=tuple(zone_view(zone, size) for zone in zones),
        rules=tuple(RuleView(rule.name, rule.kind, getattr(rule, "zone", None) or "", rule_words(rule)) for rule in rules),
        ignored=tuple(sorted(facts.ignored.items())),
        events=tuple(device_views.event_view(row) for row in facts.events),
        candidates=tuple(candidate_view(one) for one in facts.candidates),
        points_json=json.dumps(device_views.chart_points(facts.perf)),
        size=size,
    )


def pipeline_json(facts: PipelineFacts, page: PipelinePage) -> dict[str, Any]:
    """The same for machines. Zones and rules are as they are written in settings. Pure."""
    newest = page.telemetry
    return {
        "device": page.device,
        "name": page.name,
        "line": page.line,
        "release": page.release,
        "source": page.source,
        "keep": page.keep,
        "track": page.tracks,
        "preview": page.preview,
        "backend": {"asked": page.asked, "effective": page.effective},
        "newest": None
        if newest is None
        else {"fps": newest.fps, "lat_ms_p50": newest.p50, "lat_ms_p95": newest.p95, "lat_ms_p99": newest.p99, "at": newest.at.isoformat()},
        "last_hour": {
            "frames": page.frames,
            "errors": page.errors,
            "lat_ms_p99_worst": page.worst_p99,
            "dropped": {drop.reason: drop.total for drop in page.drops},
        },
        "zones": list(facts.document.get("zones") or ()),
        "rules": list(facts.document.get("rules") or ()),
        "ignored": dict(page.ignored),
        "events": [row.body for row in facts.events],
        "candidates": [
            {
                "candidate": one.candidate,
                "champion": one.champion,
                "run_as": one.run_as,
                "state": one.state,
                "campaign": one.campaign,
                "frames": one.frames,
                "agreement": one.agreement,
                "latency_ratio": one.latency_ratio,
                "cpu_share": one.cpu_share,
            }
            for one in page.candidates
        ],
    }


def candidate_view(summary: ShadowSummary) -> CandidateView:
    """A candidate in figures. Pure."""
    latest = summary.latest
    return CandidateView(
        candidate=latest.candidate,
        champion=latest.champion,
        run_as=latest.run_as,
        state=latest.state,
        campaign=latest.campaign,
        frames=summary.figures.candidate.frames,
        agreement=summary.agreement,
        latency_ratio=summary.latency_ratio,
        cpu_share=summary.cpu_share,
        text=latest.text or latest.reason,
        at=from_unix_ms(latest.until),
    )


def zones_of(document: Mapping[str, Any]) -> list[Zone]:
    """The zones that this server understands; those of a newer agent are left out."""
    found = []
    for one in document.get("zones") or ():
        try:
            found.append(_ZONE.validate_python(one))
        except ValidationError:
            continue
    return found


def rules_of(document: Mapping[str, Any], zones: Sequence[Zone]) -> list[AnyRule]:
    """The rules that this server understands."""
    found: list[AnyRule] = []
    for one in document.get("rules") or ():
        try:
            found.append(_RULE.validate_python(one))
        except ValidationError:
            continue
    known = {zone.name for zone in zones}
    return [rule for rule in found if getattr(rule, "zone", None) in {None, *known}]


def zone_view(zone: Zone, size: tuple[int, int]) -> ZoneView:
    """The zone in a frame of this width and height. Pure."""
    corners = [(x * size[0] / GRID, y * size[1] / GRID) for x, y in zone.on_grid()]
    label = (sum(x for x, _ in corners) / len(corners), sum(y for _, y in corners) / len(corners))
    return ZoneView(
        name=zone.name,
        kind=zone.kind,
        points=_points(corners),
        label=(round(label[0], 1), round(label[1], 1)),
        arrow=_arrow(corners, size) if zone.kind == "line" else "",
    )


def rule_words(rule: AnyRule) -> str:
    """What a rule asks for beside its kind and zone. Pure."""
    document = rule.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    words: dict[str, Callable[[Any], str]] = {
        "labels": lambda value: f"of {', '.join(value)}",
        "seconds": lambda value: f"for {value:g} s",
        "above": lambda value: f"more than {value}" if rule.kind == "count" else f"at {value:g} or over",
        "low": lambda value: f"below {value:g}",
        "high": lambda value: f"over {value:g}",
        "direction": lambda value: f"to the {value}",
        "min_score": lambda value: f"score at least {value:g}",
        "min_area": lambda value: f"area at least {100 * value:g} %",
        "min_frames": lambda value: f"in {value} of {document.get('of_frames', value)} frames",
        "min_s": lambda value: f"held for {value:g} s",
        "cool_down_s": lambda value: f"then quiet for {value:g} s",
        "schedule": lambda value: " and ".join(_window_words(window) for window in value),
        "time_zone": str,
    }
    return ", ".join(say(document[key]) for key, say in words.items() if key in document)


def drop_views(windows: Sequence[TelPerf]) -> tuple[DropView, ...]:
    """Frames that were not inferred, by reason, the most frequent first. Pure."""
    totals: dict[str, int] = {}
    for body in windows:
        for reason, count in body.dropped.items():
            totals[reason] = totals.get(reason, 0) + count
    newest = windows[-1].dropped if windows else {}
    rows = [DropView(reason, newest.get(reason, 0), total) for reason, total in totals.items() if total]
    return tuple(sorted(rows, key=lambda row: (-row.total, row.reason)))


def _arrow(corners: Sequence[tuple[float, float]], size: tuple[int, int]) -> str:
    """A stroke from the middle of the line's longest part to its right hand."""
    parts = list(itertools.pairwise(corners))
    (ax, ay), (bx, by) = max(parts, key=lambda part: (part[1][0] - part[0][0]) ** 2 + (part[1][1] - part[0][1]) ** 2)
    length = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5 or 1.0
    x, y, reach = (ax + bx) / 2, (ay + by) / 2, min(size) / 12
    return _points([(x, y), (x - (by - ay) / length * reach, y + (bx - ax) / length * reach)])


def _points(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _window_words(window: Mapping[str, Any]) -> str:
    days = window.get("days") or []
    return f"{'' if len(days) in {0, 7} else ', '.join(days) + ' '}{window['from']} to {window['to']}"


def _document(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    wanted = config.get("pipelines")
    return next((dict(one) for one in wanted if isinstance(one, dict) and one.get("name") == name), {}) if isinstance(wanted, list) else {}


def _said(states: Mapping[str, DeviceState], stream: str, kind: Any) -> Any:
    return device_views.as_message(kind, states[stream].body) if stream in states else None


def _perf(row: TelemetryRow) -> TelPerf | None:
    return device_views.as_message(TelPerf, row.body)
