"""From frames to an alarm, all processes real: camera, agent, broker, server; what is normal comes from a recording. Seeded."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from examples.demo.drift import SETTINGS, DriftStory
from examples.demo.scenario import AGENT_SETTINGS, LINE, MIN_INFERENCES, Report, Scenario, make_videos
from examples.demo.world import World
from protocol.errors import InvalidError

pytestmark = pytest.mark.needs_broker
#: Ten minutes of the world's clock last twenty seconds.
SPEED = 30
CAM = "cam-1"


@pytest.fixture
def world(mosquitto_path: Path, tmp_path: Path) -> Iterator[World]:
    now = datetime.now(UTC)
    clock = f"{(now - timedelta(days=30)).isoformat()},{SPEED},{now.isoformat()}"
    with World(tmp_path / "w", environment={"MOORING_BROKER__MOSQUITTO": str(mosquitto_path), "MOORING_CLOCK": clock}) as world:
        world.start_server()
        world.admit_people()
        yield world


@pytest.fixture
def scenario(world: World, tmp_path: Path) -> Scenario:
    """One camera with the digits' release, committed, and its video."""
    videos, truth = make_videos(tmp_path, [CAM])
    scenario = Scenario(world, videos, truth, Report())
    model = scenario.import_model("1.1", "tflite")
    world.add_agent(CAM, device_type="camera", settings=AGENT_SETTINGS + SETTINGS, pipelines=[scenario.pipeline_of(CAM)])
    world.start_agent(CAM)
    world.release(LINE, "1.1", {model: ["camera"]})
    campaign = world.campaign(LINE, "1.1", group="default", min_inferences=MIN_INFERENCES)
    scenario.await_state(campaign, "updated", [CAM])
    return scenario


def test_dirt_on_a_lens_becomes_an_alarm_in_words_that_the_server_confirmed_and_nothing_else_does(world: World, scenario: Scenario):
    story = DriftStory(world, scenario.report, CAM, scenario.pipeline_of(CAM), scenario.videos[CAM], scenario.status)
    slot = world.agents[CAM].state_dir / "slots" / LINE / scenario.await_slot(CAM, "1.1")["slot"]
    story.teach(slot)
    story.stay_quiet()
    story.get_dirty()
    assert [held for _, held, _ in scenario.report.rows] == [True] * 3, scenario.report.rows
    (alarm,) = world.people["operator"].get("/alarms")["items"]
    assert (alarm["kind"], alarm["name"], alarm["pipeline"], alarm["grade"]) == ("device", CAM, "front", "provisional")
    assert alarm["statistic"] >= alarm["threshold"] > 0
    assert alarm["evidence"]
    assert scenario.status(CAM)["drift"]["pipelines"][0]["state"] == "raised"
    entries = {one["action"]: one for one in world.people["auditor"].get("/audit", limit=200)["items"]}
    assert {"drift.reference-stored", "alarm.raised"} <= set(entries)
    assert entries["drift.reference-stored"]["detail"]["signature"] == "none", "a script made the two weeks"
    own = record(world)
    assert refusal(world, own) == "too-few", "what the camera signed is verified, and is no two weeks"
    own.write_bytes(own.read_bytes()[:-1] + b"!")
    assert refusal(world, own) == "malformed"


def record(world: World) -> Path:
    """What the camera's own agent recorded and signed."""
    output = world.root / f"{CAM}-own.recording"
    world.children.run(f"{CAM}-record", "agent.cli", "drift", "record", "--config", str(world.agents[CAM].config), "-o", str(output))
    return output


def refusal(world: World, recording: Path) -> str:
    """The code that the server refuses the recording with."""
    fields = {"device": CAM, "pipeline": "front", "reason": "its own hours"}
    with pytest.raises(InvalidError) as caught:
        world.people["operator"].upload("/drift/references", fields, {"recording": recording})
    return str(caught.value.code)
