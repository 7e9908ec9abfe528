"""One device, and a page of devices, as the console and the API show them: put together from what was set, said and assigned."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fleet.campaigns import service as campaigns
from fleet.campaigns.model import Assigned, ReportChannel, StoredReport
from fleet.configurations import service as configurations
from fleet.configurations.service import DeviceConfiguration
from fleet.db import Database
from fleet.devices import service as devices
from fleet.devices.model import Device, DeviceFilter
from fleet.devices.model import DeviceState as EnrollmentState
from fleet.monitoring import service as monitoring
from fleet.monitoring import store as monitoring_store
from fleet.monitoring.model import Condition, DeviceState, DeviceView, EventRow, Health, TelemetryRow
from fleet.web.advice import ADVICE
from fleet.web.render import file_size
from fleet.web.views import (
    BlockedView,
    ConditionView,
    ConfigurationView,
    DevicePage,
    DeviceRow,
    EventView,
    LineSummary,
    LineView,
    PathPoint,
    PipelineView,
    PredictionView,
    RuntimeView,
    SlotView,
    StepView,
    SystemView,
    TelemetryView,
)
from protocol.clock import from_unix_ms
from protocol.events import Phase, RuleEvent
from protocol.ids import DeviceId, DeviceTypeName, GroupName, SiteName, TenantId
from protocol.messages import Inference, Info, LineState, ModelState, Presence, Reported, TelPerf, TelSys
from protocol.reasons import REASONS, UNLISTED

M = TypeVar("M", bound=BaseModel)
#: How far back the chart of a device reaches.
CHART_SPAN = timedelta(hours=1)
MAX_CHART_POINTS = 600
#: A telemetry window older than this says nothing about now.
TELEMETRY_FRESH = timedelta(minutes=15)
PREDICTIONS_SHOWN, EVENTS_SHOWN, STEPS_SHOWN = 10, 12, 12
#: States of the update machine in which something happens.
MOVING = frozenset(
    {"downloading", "verifying", "installing", "waiting", "activating", "probing", "committing", "rolling_back"},
)
#: Those in which its files are not all on the device.
_FETCHING = frozenset({"idle", "downloading"})
#: The way of an update that nothing stops.
_WAY = ("downloading", "verifying", "installing", "waiting", "activating", "probing", "committing", "succeeded")
#: Where an update ends that something stopped; `rolling_back` leads there.
_STOPPED = frozenset({"failed", "rolling_back", "rolled_back", "inconsistent"})
#: Conditions by which a device says itself that it refused something.
_REFUSALS = frozenset({"trust_refused", "metadata_stale"})
_CHANNELS = {ReportChannel.ONLINE: "over the network", ReportChannel.BUNDLE: "on a stick"}
_SEVERITY_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """All that is known of one device, before it is put into words."""

    detail: devices.DeviceDetail
    configuration: DeviceConfiguration
    report: StoredReport | None
    view: DeviceView
    states: Mapping[str, DeviceState]
    assigned: Sequence[Assigned]
    perf: Sequence[TelemetryRow]
    system: Sequence[TelemetryRow]
    predictions: Mapping[str, Sequence[Mapping[str, Any]]]
    events: Sequence[EventRow]


def load_facts(database: Database, tenant: TenantId, device: DeviceId, *, now: datetime) -> DeviceFacts:
    """Ask every domain about the device. Raises: NotFoundError."""
    since = now - CHART_SPAN
    return DeviceFacts(
        detail=devices.get_detail(database, tenant, device),
        configuration=configurations.of_device(database, tenant, device),
        report=campaigns.find_report(database, tenant, device),
        view=monitoring.get_view(database, tenant, device),
        states=monitoring.list_states(database, tenant, device),
        assigned=campaigns.list_assigned(database, tenant, device),
        perf=monitoring.list_telemetry(database, tenant, device, name="perf", since=since),
        system=monitoring.list_telemetry(database, tenant, device, name="sys", since=since)[-1:],
        predictions=monitoring.list_predictions(database, tenant, device),
        events=monitoring.list_events(database, tenant, device=device, limit=EVENTS_SHOWN),
    )


def device_page(facts: DeviceFacts, *, now: datetime) -> DevicePage:
    """The device as its page shows it. Pure."""
    device, view = facts.detail.device, facts.view
    info, reported = _state(facts.states, "info", Info), _state(facts.states, "reported", Reported)
    system = [body for row in facts.system if (body := as_message(TelSys, row.body)) is not None]
    return DevicePage(
        device=device.device,
        device_type=device.device_type,
        group=device.group,
        site=device.site or "",
        revision=device.revision,
        presence=presence_word(device, view),
        health=str(view.health),
        last_seen=view.last_seen,
        agent_version=view.agent_version or device.agent_version,
        labels=dict(device.labels),
        desired_rev=facts.detail.twin.desired_rev or None,
        applied_rev=reported.desired_rev if reported else None,
        config_errors=dict(reported.errors) if reported else {},
        conditions=condition_views(view.conditions) + refusal_views(facts.report, view.conditions),
        runtimes=tuple(RuntimeView(one.name, one.version, one.state) for one in info.runtimes) if info else (),
        pipelines=pipeline_views(facts, info, reported),
        lines=line_views(facts.states.get("model"), facts.assigned),
        telemetry=telemetry_views(facts.perf, now=now),
        system=_system_view(system[0]) if system else None,
        predictions=prediction_views(facts.predictions),
        events=tuple(event_view(row) for row in facts.events),
        configuration=configuration_view(facts.configuration),
        is_revoked=device.state is EnrollmentState.REVOKED,
        certificate_ends_at=device.certificate_ends_at,
        points_json=json.dumps(chart_points(facts.perf)),
    )


def configuration_view(found: DeviceConfiguration) -> ConfigurationView | None:
    """Wanted beside reported; None when there is neither."""
    said, wanted = found.reported, found.desired_rev or 0
    if said is None:
        return ConfigurationView(wanted, 0, "") if wanted else None
    if said.state == "none" and not wanted:
        return None
    back = said.returned
    return ConfigurationView(
        wanted_rev=wanted,
        rev=said.rev,
        state=said.state,
        reason=back.reason if back else "",
        text=back.text if back else "",
        returned_rev=back.rev if back else 0,
        ignored=tuple(sorted(said.ignored.items())),
    )


def presence_word(device: Device, view: DeviceView) -> str:
    """online, offline or sleeping; empty for a device that never spoke. Who was revoked is offline: its broker forgets its Will."""
    if view.last_seen is None:
        return ""
    return str(Presence.OFFLINE if device.state is EnrollmentState.REVOKED else view.presence)


def condition_views(conditions: Iterable[Condition], *, device: str = "") -> tuple[ConditionView, ...]:
    """The worst first, each with what to do."""
    made = [ConditionView(one.code, str(one.severity), one.text, one.since, _advice_for(one), device) for one in conditions]
    return tuple(sorted(made, key=lambda one: (_SEVERITY_ORDER.get(one.severity, 9), one.code)))


def _advice_for(condition: Condition) -> str:
    """What to do about the condition; what was refused says by its reason, which leads the text."""
    reason = REASONS.get(condition.text.partition(":")[0]) if condition.code in _REFUSALS else None
    return reason.advice if reason else ADVICE.get(condition.code, "")


def refusal_views(report: StoredReport | None, conditions: Iterable[Condition]) -> tuple[ConditionView, ...]:
    """What the newest signed report says was refused as hostile or stale, when no condition tells it: on a stick, or before a restart."""
    code = report.report.attack_indicator if report else ""
    if report is None or not code or any(one.code in _REFUSALS for one in conditions):
        return ()
    reason = REASONS.get(code, REASONS[UNLISTED])
    text = f"{code}: {reason.meaning} Its signed report says so, which came {_CHANNELS[report.channel]}."
    return (ConditionView("trust_refused", "error", text, report.received_at, reason.advice),)


def line_views(state: DeviceState | None, assigned: Sequence[Assigned]) -> tuple[LineView, ...]:
    """Each model line with its slots and how it got there; also lines that are assigned and not yet reported."""
    said = as_message(ModelState, state.body) if state else None
    wanted = {str(one.line): str(one.version) for one in assigned}
    lines = [_line_view(one, said, wanted.get(one.line) or one.desired or "") for one in said.lines] if said else []
    known = {line.line for line in lines}
    lines += [
        LineView(line, "", version, "assigned", 0, "", "", is_moving=False) for line, version in sorted(wanted.items()) if line not in known
    ]
    return tuple(lines)


def _line_view(one: LineState, said: ModelState, desired: str) -> LineView:
    steps = tuple(
        StepView(step.release, step.state, from_unix_ms(step.at), step.reason, step.text) for step in said.history if step.line == one.line
    )
    blocked = tuple(
        BlockedView(item.release, item.reason, item.text, from_unix_ms(item.at)) for item in said.blocked if item.line == one.line
    )
    return LineView(
        line=one.line,
        installed=one.installed or "",
        desired=desired,
        state=one.state,
        progress=one.progress,
        reason=one.reason,
        text=one.text,
        is_moving=one.state in MOVING,
        slots=tuple(
            SlotView(slot.slot, slot.release, slot.active, slot.committed, slot.counter, slot.sha256)
            for slot in sorted(said.slots, key=lambda slot: slot.slot)
            if slot.line == one.line
        ),
        steps=steps[-STEPS_SHOWN:],
        blocked=blocked,
        path=path_points(one.state, steps),
        waits_for=one.waits_for,
        until=from_unix_ms(one.until) if one.until is not None else None,
        transfer=transfer_words(one),
        can_offer_again=any(item.release == desired for item in blocked) or (one.state in _STOPPED and one.state not in MOVING),
    )


def path_points(state: str, steps: Sequence[StepView]) -> tuple[PathPoint, ...]:
    """The update machine's way with where the update is on it; a stopped one ends with where and how it was stopped."""
    if state in _WAY:
        here = _WAY.index(state)
        kinds = ("done" if number < here or state == "succeeded" else "now" if number == here else "ahead" for number in range(len(_WAY)))
        return tuple(PathPoint(name, kind) for name, kind in zip(_WAY, kinds, strict=True))
    if state not in _STOPPED:
        return ()
    release = steps[-1].release if steps else ""
    seen = [step.state for step in steps if step.release == release and step.state in _WAY]
    reached = _WAY.index(seen[-1]) if seen else 0
    points = [PathPoint(name, "bad" if number == reached else "done") for number, name in enumerate(_WAY[: reached + 1])]
    return (*points, PathPoint(state, "now" if state in MOVING else "bad" if state != "rolled_back" else "done"))


def transfer_words(one: LineState) -> str:
    """How the files come or came, by the update's state, and how many bytes that takes."""
    if one.transfer == "none":
        return "nothing to fetch"
    how = {"delta": f"as a delta of {file_size(one.bytes_needed)}", "full": f"in full, {file_size(one.bytes_needed)}"}.get(one.transfer)
    if how is None or one.state in _STOPPED:  # a stopped one may not have them all
        return how or ""
    if one.state not in _FETCHING:
        return f"came {how}"
    return f"to come {how}" if one.waits_for else f"comes {how}"


def pipeline_views(facts: DeviceFacts, info: Info | None, reported: Reported | None) -> tuple[PipelineView, ...]:
    """The pipelines wanted, else those that the device has by itself, with the backend asked for and the one in use."""
    backends = {one.pipeline: one for one in info.backends} if info else {}
    return tuple(
        PipelineView(
            name=str(spec.get("name", "")),
            source=source_words(spec.get("source")),
            line=str(spec.get("line", "")),
            keep=str(spec.get("keep", "ring")),
            asked=backends[name].asked if (name := spec.get("name")) in backends else "",
            effective=backends[name].effective if name in backends else "",
        )
        for spec in pipeline_documents(facts, reported)
    )


def pipeline_documents(facts: DeviceFacts, reported: Reported | None = None) -> list[dict[str, Any]]:
    """The pipelines as JSON: those of the desired twin, else those that the device reports."""
    reported = reported or _state(facts.states, "reported", Reported)
    desired = json.loads(facts.detail.twin.desired).get("pipelines")
    own = reported.config.get("pipelines") if reported else None
    return [dict(spec) for spec in (desired if desired is not None else own) or [] if isinstance(spec, dict)]


def source_words(source: object) -> str:
    """A source in a few words; a stream's address without what may be secret in it."""
    if not isinstance(source, dict):
        return ""
    kind = str(source.get("kind", ""))
    place = source.get("path") or source.get("device") or source.get("url") or source.get("topic") or ""
    return f"{kind} {place}{' (loop)' if source.get('loop') else ''}".strip()


def telemetry_views(rows: Sequence[TelemetryRow], *, now: datetime) -> tuple[TelemetryView, ...]:
    """The newest window of each pipeline."""
    newest = {row.pipeline: row for row in rows if now - row.ts <= TELEMETRY_FRESH}
    parsed = [(row, body) for row in newest.values() if (body := as_message(TelPerf, row.body)) is not None]
    return tuple(
        TelemetryView(
            pipeline=body.pipeline,
            p50=body.lat_ms_p50,
            p95=body.lat_ms_p95,
            p99=body.lat_ms_p99,
            fps=body.fps,
            dropped=", ".join(f"{count} {reason}" for reason, count in body.dropped.items() if count) or "0",
            backend=body.backend,
            source_state=body.source_state,
            at=row.ts,
        )
        for row, body in sorted(parsed, key=lambda pair: pair[1].pipeline)
    )


def chart_points(rows: Sequence[TelemetryRow]) -> list[dict[str, float | None]]:
    """Points of the chart, oldest first: of the pipeline that comes first by name."""
    first = min((row.pipeline for row in rows if row.pipeline), default=None)
    points: list[dict[str, float | None]] = [
        {
            "t": row.ts.timestamp(),
            "p50": row.body.get("lat_ms_p50"),
            "p95": row.body.get("lat_ms_p95"),
            "fps": row.body.get("fps"),
        }
        for row in rows
        if row.pipeline == first
    ]
    return points[-MAX_CHART_POINTS:]


def prediction_views(predictions: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[PredictionView, ...]:
    """The newest answers of all pipelines, the newest first."""
    parsed = [body for rows in predictions.values() for row in rows if (body := as_message(Inference, row)) is not None]
    newest = sorted((body for body in parsed if answer_words(body)), key=lambda body: body.ts, reverse=True)[:PREDICTIONS_SHOWN]
    return tuple(PredictionView(one.pipeline, one.release, answer_words(one), _best_score(one), from_unix_ms(one.ts)) for one in newest)


def answer_words(answer: Inference) -> str:
    """What a model answered, in a few words: its best class, the objects by label, or the value; empty when it found nothing."""
    if answer.value is not None:
        return f"{answer.value:g} {answer.unit}".strip() + (" (anomaly)" if answer.is_anomaly else "")
    if answer.boxes:
        counts = Counter(box.label for box in answer.boxes)
        return ", ".join(label if count == 1 else f"{count} {label}" for label, count in counts.most_common(5))
    return answer.top[0].label if answer.top else ""


def _best_score(answer: Inference) -> float | None:
    return max([*(one.score for one in answer.top[:1]), *(one.score for one in answer.boxes)], default=None)


def event_view(row: EventRow) -> EventView:
    """An event in words: its type without our prefix and version, and what it is about."""
    words = row.type.removeprefix("mooring.")
    name, _, version = words.rpartition(".")
    title = (name if version[:1] == "v" and version[1:].isdigit() else words).replace(".", " ").replace("-", " ").replace("_", " ")
    data = row.body.get("data") or {}
    if isinstance(data, dict) and (told := as_message(RuleEvent, data)) is not None:
        return EventView(row.device, title, rule_event_words(told), row.ts)
    if not isinstance(data, dict):
        data = {}
    about = " ".join(str(data[key]) for key in ("line", "release") if data.get(key))
    parts = [noticed_words(data), about, *(str(data[key]) for key in ("pipeline", "label", "reason") if data.get(key))]
    return EventView(row.device, title, ", ".join(part for part in parts if part) or (row.subject or ""), row.ts)


def noticed_words(data: Mapping[str, Any]) -> str:
    """What a pipeline without rules noticed: which class became which, and the best score; empty for other events."""
    best = data["top"][0] if isinstance(data.get("top"), list) and data["top"] else None
    label, score = (best.get("label"), best.get("score")) if isinstance(best, dict) else (None, None)
    seen = f"{data['from']} became {data.get('to') or 'nothing'}" if data.get("from") else str(label or "")
    return f"{seen} {score:.2f}".strip() if isinstance(score, int | float) else seen


def rule_event_words(event: RuleEvent) -> str:
    """What an event of a rule is about: the rule, what it saw, where, and how it ended."""
    seen = event.label or ""
    if event.before:
        seen = f"{event.before} became {event.label}"
    if event.track is not None:
        seen = f"{seen} {event.track}".strip()
    figures = [
        f"in {event.zone}" if event.zone else "",
        f"to the {event.direction}" if event.direction else "",
        f"{event.count} at once, at most {event.peak}" if event.count is not None else "",
        f"{event.value:g} {event.unit or ''}".strip() if event.value is not None else "",
        f"score {event.score:.2f}" if event.score is not None else "",
        f"for {(event.end_ms - event.start_ms) / 1000:.1f} s" if event.end_ms is not None and event.phase is Phase.ENDED else "",
        event.reason if event.reason and event.reason != "outside" else "",
    ]
    return f"{event.rule}: {', '.join(part for part in (seen, *figures) if part)}"


@dataclass(frozen=True, slots=True)
class DeviceQuery:
    """Which devices are asked for; empty = any."""

    text: str = ""
    group: str = ""
    site: str = ""
    device_type: str = ""
    presence: str = ""
    health: str = ""


def list_rows(database: Database, tenant: TenantId, query: DeviceQuery, *, after: str | None, limit: int) -> list[DeviceRow]:
    """Rows by id, those after `after`. Presence and health are not in the inventory's index: devices are read on until enough fit."""
    matching = DeviceFilter(
        group=GroupName(query.group) if query.group else None,
        device_type=DeviceTypeName(query.device_type) if query.device_type else None,
        site=SiteName(query.site) if query.site else None,
        text=query.text or None,
    )
    rows: list[DeviceRow] = []
    last = DeviceId(after) if after else None
    portion = max(limit, 200) if query.presence or query.health else limit
    while len(rows) < limit:
        found = devices.list_devices(database, tenant, matching=matching, after=last, limit=portion)
        rows += [row for row in _rows(database, tenant, found) if fits(row, query)]
        if len(found) < portion:
            break
        last = found[-1].device
    return rows[:limit]


def fits(row: DeviceRow, query: DeviceQuery) -> bool:
    """Whether presence and health are as asked; a device that never spoke counts as offline."""
    presence = row.presence or "offline"
    return query.presence in {"", presence} and query.health in {"", row.health}


def _rows(database: Database, tenant: TenantId, found: Sequence[Device]) -> list[DeviceRow]:
    ids = [device.device for device in found]
    views = monitoring.list_views(database, tenant, ids)
    with database.reading() as tx:
        states = monitoring_store.list_states_of(tx, tenant, ids, "model")
    return [device_row(device, views[device.device], states.get(device.device)) for device in found]


def device_row(device: Device, view: DeviceView, models: DeviceState | None) -> DeviceRow:
    """One device in the table. Pure."""
    worst = condition_views(view.conditions)[:1]
    return DeviceRow(
        device=device.device,
        device_type=device.device_type,
        group=device.group,
        site=device.site or "",
        presence=presence_word(device, view),
        health=str(view.health),
        worst=worst[0].code if worst and view.health is not Health.HEALTHY else "",
        last_seen=view.last_seen,
        lines=tuple(
            LineSummary(line.line, line.installed, line.desired, line.state, line.progress, line.reason, line.is_moving)
            for line in line_views(models, ())
        ),
        is_revoked=device.state is EnrollmentState.REVOKED,
    )


def _system_view(body: TelSys) -> SystemView:
    exchanged = None if body.day_sent is None or body.day_received is None else (body.day_sent + body.day_received) / 1e6
    written = None if body.day_written is None else body.day_written / 1e6
    return SystemView(body.cpu_percent, body.rss_mb, body.temperature_c, body.disk_free_mb, body.outbox_rows, exchanged, written)


def _state(states: Mapping[str, DeviceState], stream: str, kind: type[M]) -> M | None:
    found = states.get(stream)
    return as_message(kind, found.body) if found else None


def as_message(kind: type[M], body: Mapping[str, Any]) -> M | None:
    """The message, or None when an older or newer device wrote something that this page cannot show."""
    try:
        return kind.model_validate(body)
    except ValidationError:
        return None
