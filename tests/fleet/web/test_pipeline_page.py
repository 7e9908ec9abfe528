"""A pipeline's page and its like for machines: speed, drops, back end, zones drawn, rules in words, events."""

import html
import json
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from console_site import Browser, ConsoleSite

from fleet.campaigns import store as campaign_store
from fleet.monitoring.model import EventRow
from fleet.web.device_views import answer_words, event_view
from fleet.web.pipeline_views import PipelineFacts, pipeline_page, rule_words, rules_of, zone_view, zones_of
from protocol.clock import to_unix_ms
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.messages import Inference
from protocol.shadow import Arm, Comparison, Pairs, ShadowReport

ZONES = [
    {"name": "drive", "points": [[0.25, 0.5], [0.75, 0.5], [0.75, 1.0], [0.25, 1.0]]},
    {"name": "gate", "kind": "line", "points": [[0.5, 1.0], [0.5, 0.0]]},
]
RULES = [
    {"name": "parked", "kind": "dwell", "zone": "drive", "seconds": 30, "labels": ["car", "truck"], "min_score": 0.6},
    {"name": "in", "kind": "cross", "zone": "gate", "direction": "right", "min_frames": 2, "of_frames": 3},
    {
        "name": "crowd",
        "kind": "count",
        "above": 4,
        "schedule": [{"days": ["sat"], "from": "22:00", "to": "06:00"}],
        "time_zone": "Europe/Berlin",
    },
    {"name": "cold", "kind": "value", "low": 2, "high": 8},
]
EVENT = {
    "pipeline": "front",
    "line": "cars",
    "release": "1.0",
    "session": 1,
    "frame": 7,
    "rule": "parked",
    "kind": "dwell",
    "phase": "ended",
    "occurrence": "front.parked.1.7",
    "start_ms": 1_000,
    "end_ms": 43_500,
    "zone": "drive",
    "label": "car",
    "track": 7,
    "score": 0.914,
    "reason": "lost",
}


@pytest.fixture(scope="module")
def vera(console: ConsoleSite) -> Browser:
    """A viewer."""
    console.person("vera", "viewer")
    return console.browser("vera")


@pytest.fixture(scope="module")
def api(console: ConsoleSite) -> httpx.Client:
    return console.api("vera-machine", "viewer")


@pytest.fixture(scope="module")
def cam(console: ConsoleSite) -> str:
    console.enroll("cam-pipe")
    console.online("cam-pipe")
    document = {"name": "front", "line": "cars", "keep": "events", "source": {"kind": "camera"}, "zones": ZONES, "rules": RULES}
    ignored = {"pipelines.front.rules": "two rules are named <b>x</b>", "pipelines.back.rules": "of another pipeline"}
    console.say("cam-pipe", "reported", desired_rev=1, config={"pipelines": [document]}, errors=ignored)
    backends = [{"pipeline": "front", "asked": "onnx:cuda", "effective": "onnx:cpu"}]
    console.say("cam-pipe", "info", device_type="linux-x86-64", agent_version="0.1.0", backends=backends)
    for p99, stale in ((9.0, 3), (30.0, 4)):
        values = {"window_s": 10, "frames": 90, "fps": 9.25, "lat_ms_p50": 3.0, "lat_ms_p95": 6.0, "lat_ms_p99": p99, "errors": 1}
        dropped = {"stale": stale, "no_motion": 50}
        console.say("cam-pipe", "tel/perf", pipeline="front", line="cars", release="2.1", dropped=dropped, backend="onnx:cpu", **values)
    for subject, data in (("front", EVENT), ("back", {**EVENT, "pipeline": "back", "rule": "elsewhere"})):
        envelope = {"specversion": "1.0", "id": f"e1-{subject}", "source": "/mooring/t0/cam-pipe", "subject": subject}
        console.say("cam-pipe", "event", type="mooring.dwell.ended.v1", data=data, **envelope)
    return "cam-pipe"


def test_the_page_tells_how_well_a_camera_works_and_what_it_looks_for(cam: str, vera: Browser):
    answer = vera.get(f"/devices/{cam}/pipelines/front")
    assert answer.status_code == 200
    text = html.unescape(answer.text)
    for wanted in (
        "9.2",
        "30.0 ms",
        "180 inferred, 2 failed",
        "cars 2.1",
        "onnx:cuda",
        "onnx:cpu",
        "no motion",
        "dwell ended",
        "parked: car 7, in drive, score 0.91, for 42.5 s, lost",
        "of car, truck, for 30 s, score at least 0.6",
        "follows objects",
        "two rules are named <b>x</b>",
    ):
        assert wanted in text, wanted
    assert "elsewhere" not in text
    assert "of another pipeline" not in text
    assert "<b>x</b>" not in answer.text


def test_zones_are_drawn_where_they_are_and_named_for_those_who_cannot_see_them(cam: str, vera: Browser):
    text = vera.get(f"/devices/{cam}/pipelines/front").text
    drawing = re.search(r'<svg class="zone-map".*?</svg>', text, re.DOTALL)
    assert drawing is not None
    assert 'points="400.0,450.0 1200.0,450.0 1200.0,900.0 400.0,900.0"' in drawing[0]
    assert "without a picture with drive, gate" in drawing[0]
    assert re.findall(r"<text[^>]*>(\w+)</text>", drawing[0]) == ["drive", "gate"]
    # from the middle of the gate, which looks up, to its right hand
    assert 'class="zone-arrow" points="800.0,450.0 875.0,450.0"' in drawing[0]


def test_a_candidate_beside_the_pipeline_is_shown_with_how_it_compares(console: ConsoleSite, vera: Browser, api: httpx.Client):
    console.enroll("cam-shadow")
    console.perf("cam-shadow")
    pairs = Pairs(compared=200, agreed=190)
    figures = Comparison(champion=Arm(frames=200), candidate=Arm(frames=200), pairs=pairs, cpu_ms=500, wall_ms=10_000)
    report = ShadowReport(
        pipeline="front",
        line="cars",
        run_as="shadow",
        champion="1.0",
        candidate="2.0",
        assignment="a1",
        campaign="c-17",
        since=1,
        until=to_unix_ms(console.services.clock.now()),
        figures=figures,
    )
    with console.ground.database.transaction() as tx:
        for number, one in enumerate((report, report.model_copy(update={"pipeline": "back", "candidate": "9.9"}))):
            campaign_store.add_shadow_report(
                tx, DEFAULT_TENANT, DeviceId("cam-shadow"), f"e-{number}", one, now=console.services.clock.now()
            )
    text = vera.get("/devices/cam-shadow/pipelines/front").text
    for wanted in ("Candidates beside it", "2.0", "95.0 %", "0.05 cores", 'href="/campaigns/c-17"'):
        assert wanted in text, wanted
    assert "9.9" not in text
    (one,) = api.get("/devices/cam-shadow/pipelines/front").json()["candidates"]
    assert (one["candidate"], one["champion"], one["run_as"], one["agreement"], one["cpu_share"]) == ("2.0", "1.0", "shadow", 0.95, 0.05)


def test_the_device_page_leads_to_its_pipelines(cam: str, vera: Browser):
    assert f'href="/devices/{cam}/pipelines/front"' in vera.get(f"/devices/{cam}").text


def test_a_pipeline_that_nobody_knows_is_not_found(cam: str, vera: Browser, api: httpx.Client):
    for path in (f"/devices/{cam}/pipelines/none", "/devices/none/pipelines/front"):
        assert vera.get(path).status_code == 404
        assert vera.get(f"/live{path}").status_code == 404
        assert api.get(path).json()["type"].endswith("not-found")


def test_a_pipeline_that_only_its_telemetry_tells_of_has_a_page(console: ConsoleSite, vera: Browser):
    console.enroll("cam-plain")
    console.perf("cam-plain", fps=7.5)
    text = vera.get("/devices/cam-plain/pipelines/front").text
    assert "7.5" in text
    assert "No zones." in text
    assert "No rules" in text


def test_the_page_of_a_camera_that_is_gone_says_so(console: ConsoleSite, vera: Browser):
    console.enroll("cam-gone")
    console.say("cam-gone", "tel/perf", pipeline="front", line="cars", window_s=10, frames=0, fps=0.0, source_state="running")
    assert "tag warn" not in vera.get("/devices/cam-gone/pipelines/front").text
    console.say("cam-gone", "tel/perf", pipeline="front", line="cars", window_s=10, frames=0, fps=0.0, source_state="lost")
    now = vera.get("/devices/cam-gone/pipelines/front").text.partition("<dt>Source</dt>")[2].partition("</dd>")[0]
    assert "tag warn" in now
    assert "lost" in now


def test_machines_are_told_the_same(cam: str, api: httpx.Client):
    found = api.get(f"/devices/{cam}/pipelines/front").json()
    assert found["backend"] == {"asked": "onnx:cuda", "effective": "onnx:cpu"}
    assert (found["newest"]["fps"], found["newest"]["lat_ms_p99"]) == (9.25, 30.0)
    assert found["last_hour"] == {"frames": 180, "errors": 2, "lat_ms_p99_worst": 30.0, "dropped": {"no_motion": 100, "stale": 7}}
    assert (found["zones"], found["rules"]) == (ZONES, RULES)
    assert [event["data"]["rule"] for event in found["events"]] == ["parked"]
    assert (found["release"], found["line"], found["track"]) == ("2.1", "cars", True)
    assert list(found["ignored"]) == ["pipelines.front.rules"]


def test_rules_are_told_in_words():
    words = {rule.name: rule_words(rule) for rule in rules_of({"rules": RULES}, zones_of({"zones": ZONES}))}
    assert words == {
        "parked": "of car, truck, for 30 s, score at least 0.6",
        "in": "to the right, in 2 of 3 frames",
        "crowd": "more than 4, sat 22:00 to 06:00, Europe/Berlin",
        "cold": "below 2, over 8",
    }


def test_what_a_newer_agent_says_is_left_out_and_the_rest_is_shown():
    newer = {
        "zones": [*ZONES, {"name": "disc", "kind": "circle"}, "x"],
        "rules": [*RULES, {"name": "x", "kind": "loiter", "zone": "drive"}],
    }
    zones = zones_of(newer)
    assert [zone.name for zone in zones] == ["drive", "gate"]
    assert len(rules_of(newer, zones)) == len(RULES)


def test_a_zone_is_drawn_in_the_picture_it_belongs_to():
    drive = zone_view(zones_of({"zones": ZONES})[0], (640, 480))
    assert (drive.points, drive.label) == ("160.0,240.0 480.0,240.0 480.0,480.0 160.0,480.0", (320.0, 360.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "parked: car 7, in drive, score 0.91, for 42.5 s, lost"),
        ({"phase": "once", "direction": "left", "reason": None, "end_ms": 5}, "parked: car 7, in drive, to the left, score 0.91"),
        (
            {"phase": "started", "end_ms": None, "count": 5, "peak": 6, "reason": None},
            "parked: car 7, in drive, 5 at once, at most 6, score 0.91",
        ),
        ({"phase": "once", "before": "bus", "track": None, "zone": None, "score": None, "reason": None}, "parked: bus became car"),
        (
            {
                "phase": "started",
                "end_ms": None,
                "value": 4.5,
                "unit": "mm",
                **dict.fromkeys(("label", "track", "zone", "score", "reason")),
            },
            "parked: 4.5 mm",
        ),
    ],
)
def test_an_event_of_a_rule_is_told_in_words(changes: dict[str, Any], words: str):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    row = EventRow(DeviceId("cam"), "event", "mooring.zone.entered.v1", "front", now, now, {"data": {**EVENT, **changes}})
    assert (event_view(row).title, event_view(row).text) == ("zone entered", words)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (
            "class-changed",
            {"from": "empty", "to": "person", "top": [{"label": "person", "index": 1, "score": 0.914}]},
            "empty became person 0.91, door 1.0, front",
        ),
        (
            "score-over-threshold",
            {"threshold": 0.9, "top": [{"label": "person", "index": 1, "score": 0.914}]},
            "person 0.91, door 1.0, front",
        ),
        ("class-changed", {"from": "empty", "to": None, "top": "of a newer agent"}, "empty became nothing, door 1.0, front"),
    ],
)
def test_what_is_noticed_without_a_rule_says_which_class_became_which(kind: str, data: dict[str, Any], words: str):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    body = {"data": {"pipeline": "front", "line": "door", "release": "1.0", **data}}
    assert event_view(EventRow(DeviceId("cam"), "event", f"mooring.prediction.{kind}.v1", "front", now, now, body)).text == words


def test_answers_of_every_task_are_told_in_a_few_words():
    def words(**answer: Any) -> str:
        base = {
            "ts": 1,
            "boot": "b",
            "epoch": "e",
            "pipeline": "front",
            "line": "cars",
            "release": "1.0",
            "session": 1,
            "frame": 1,
            "lat_ms": 1.0,
        }
        return answer_words(Inference.model_validate({**base, **answer}))

    box = {"index": 0, "score": 0.5, "box": [0, 0, 1, 1]}
    assert words(boxes=[{"label": "car", **box}, {"label": "car", **box}, {"label": "bus", **box}]) == "2 car, bus"
    assert words(value=4.5, unit="mm", is_anomaly=True) == "4.5 mm (anomaly)"
    assert words(top=[{"label": "cat", "index": 1, "score": 0.5}]) == "cat"
    assert words() == ""


def test_the_chart_is_fed_with_this_pipeline_alone(cam: str, vera: Browser):
    points = re.search(r'data-chart-points="([^"]*)"', vera.get(f"/devices/{cam}/pipelines/front").text)
    assert points is not None
    assert [point["fps"] for point in json.loads(html.unescape(points[1]))] == [9.25, 9.25]


def test_the_page_is_pure_so_a_pipeline_without_anything_is_one_too():
    page = pipeline_page(PipelineFacts(DeviceId("cam"), {}, "front", None, (), (), {}), now=datetime(2026, 3, 1, tzinfo=UTC))
    assert (page.telemetry, page.drops, page.zones, page.is_fallback) == (None, (), (), False)
