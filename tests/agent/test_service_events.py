"""The control process and rules, without any other process: what happens when rules change, and what the outbox holds then."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulators.answers import box_at, saw_boxes
from simulators.clock import FakeClock

from agent.config import AgentConfig
from agent.service import Service
from protocol.clock import to_unix_ms
from protocol.configuration import Effective, checked
from protocol.events import RuleEvent
from protocol.messages import Desired

DRIVE = {"name": "drive", "points": [[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]}
PARKED = {"name": "parked", "kind": "dwell", "zone": "drive", "seconds": 1}


def pipeline(*rules: dict[str, Any], **changes: Any) -> dict[str, Any]:
    source = {"kind": "stream", "url": "rtsp://127.0.0.1:1/x"}
    return {"name": "front", "line": "cars", "source": source, "zones": [DRIVE], "rules": rules, **changes}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock) -> Iterator[Service]:
    """Wired and not running: the test is its control loop."""
    config = AgentConfig.model_validate({"state_dir": tmp_path / "state", "run_dir": tmp_path / "run", "pipelines": [pipeline(PARKED)]})
    made = Service(config, clock=clock, version="1", probe=list)
    made._apply_desired()
    yield made
    made.parts.store.close()


def park(service: Service, clock: FakeClock, *, seconds: int) -> None:
    """A car stands there, seen once a second."""
    for _ in range(seconds):
        service.parts.predictions.take(saw_boxes(box_at(0.5, 0.8), at_ms=to_unix_ms(clock.now())))
        clock.advance(1)
    service._take_predictions()


def told(service: Service) -> list[tuple[str, str, str | None]]:
    rows = [json.loads(row.payload) for row in service.parts.store.next_batch(100) if row.stream == "event"]
    events = [RuleEvent.model_validate(row["data"]) for row in rows]
    return [(one.rule, str(one.phase), one.reason) for one in events]


def wish(service: Service, rev: int, *pipelines: dict[str, Any], **config: Any) -> None:
    service.parts.twin.take(Desired(rev=rev, config={"pipelines": list(pipelines), **config}))
    service._apply_desired()


def test_another_rule_ends_what_lasts_and_leaves_the_camera_alone(service: Service, clock: FakeClock):
    park(service, clock, seconds=3)
    before = service.parts.inference._pipelines
    assert before[0].track
    wish(service, 1, pipeline({**PARKED, "seconds": 5}))
    assert told(service) == [("parked", "started", None), ("parked", "ended", "configuration")]
    assert service.parts.inference._pipelines == before


def test_what_stays_as_it_is_goes_on(service: Service, clock: FakeClock):
    park(service, clock, seconds=3)
    wish(service, 1, pipeline(PARKED), pipeline(name="back"))
    park(service, clock, seconds=40)
    assert told(service) == [("parked", "started", None), ("parked", "updated", None)]


def test_a_pipeline_that_is_gone_ends_what_lasts_on_it(service: Service, clock: FakeClock):
    park(service, clock, seconds=3)
    wish(service, 1)
    assert told(service)[-1] == ("parked", "ended", "configuration")


def test_a_camera_that_says_nothing_ends_what_lasts(service: Service, clock: FakeClock):
    park(service, clock, seconds=3)
    clock.advance(120)
    service._take_predictions()
    assert told(service)[-1] == ("parked", "ended", "silent")


def test_signed_rules_are_in_force_and_told_and_those_that_do_not_fit_are_told_why(service: Service):
    left = {"name": "left", "kind": "leave", "zone": "drive"}
    settings = checked({"pipelines": {"*": {"rules": [left]}}}, what="fleet")
    found = service.parts.twin.apply(Effective(settings, {}, {}))
    assert found is not None
    assert [rule.name for rule in found.config.pipelines[0].rules] == ["left"]
    assert [rule["name"] for rule in found.values["pipelines"]["front"]["rules"]] == ["left"]
    assert [rule["name"] for rule in found.base["pipelines"]["front"]["rules"]] == ["parked"]
    settings = checked({"pipelines": {"*": {"rules": [{**left, "zone": "lawn"}]}}}, what="fleet")
    found = service.parts.twin.apply(Effective(settings, {}, {}))
    assert found is not None
    assert [rule.name for rule in found.config.pipelines[0].rules] == ["parked"]
    assert "names the zone 'lawn'" in found.ignored["pipelines.front.rules"]


def test_the_servers_time_is_asked_for_when_a_rule_has_a_schedule(service: Service):
    assert not service.parts.has_schedules()
    wish(service, 1, pipeline({**PARKED, "schedule": [{"from": "22:00", "to": "06:00"}]}))
    assert service.parts.has_schedules()
