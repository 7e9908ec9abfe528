"""A real server brings a candidate to a real agent: in shadow, in turns, and then as what the line runs, without fetching it again."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from agent.control import ask
from examples.demo.scenario import DIGITS, LINE, make_videos
from examples.demo.world import World

pytestmark = [
    pytest.mark.needs_broker,
    pytest.mark.skipif("MOORING_TEST_CANDIDATES" not in os.environ, reason="takes a minute; run by `make test-candidates`"),
]
NAME = "cam-1"
SETTINGS = """
[update]
poll_s = 1
min_inferences = 15
latency_noise_ms = 1000.0
min_seconds = 0.5
[runtime]
shadow_report_s = 2
[[pipelines]]
name = "front"
line = "{line}"
max_fps = 10
source = {{kind = "video", path = "{video}", loop = true}}
"""


@pytest.fixture(scope="module")
def world(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("field")
    with World(folder / "world") as world:
        world.start_server()
        world.admit_people()
        for version in ("1.0", "1.1"):
            source = DIGITS / "models" / version / "tflite"
            made = world.import_model(source / "model.tflite", DIGITS / "tflite.toml", name="digits", golden=source / "golden.cbor")
            world.release(LINE, version, {made: ["camera"]})
        videos, _ = make_videos(folder, [NAME], seconds=10)
        settings = SETTINGS.format(line=LINE, video=videos[NAME])
        world.add_agent(NAME, device_type="camera", pipelines=[], settings=settings)
        world.start_agent(NAME)
        begin(world, "1.0")
        wait_until(lambda: status(world).get("slots"), what="the first model")
        wait_until(lambda: [slot["committed"] for slot in status(world)["slots"]] == [True], what="the first model to be kept")
        yield world


def status(world: World) -> dict[str, Any]:
    socket = world.agents[NAME].folder / "run" / "control.sock"
    return dict(ask(socket, "status")) if socket.exists() else {}


def begin(world: World, version: str, **changes: Any) -> str:
    body = {"line": LINE, "release": version, "group": "default", "min_inferences": 15, "phases": [{}], "reason": "e2e"}
    return str(world.people["operator"].send("POST", "/campaigns", body | changes)["campaign"])


def compared(world: World, campaign: str) -> dict[str, Any]:
    """The first comparison of the campaign; empty before there is one."""
    found = world.people["operator"].get(f"/campaigns/{campaign}")["comparisons"]
    return dict(found[0]) if found else {}


def abort(world: World, campaign: str) -> None:
    operator = world.people["operator"]
    _, etag = operator.get_with_etag(f"/campaigns/{campaign}")
    operator.send("POST", f"/campaigns/{campaign}/abort", {"reason": "seen enough"}, etag=etag)


def test_a_candidate_is_compared_in_shadow_and_leaves_when_the_campaign_is_over(world: World):
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    campaign = begin(world, "1.1", **{"as": "shadow", "cpu": 0.1, "until": until})
    wait_until(lambda: world.updates_of(campaign).get(NAME, {}).get("state") == "updated", what="the candidate in its slot")
    found = wait_until(lambda: (one := compared(world, campaign)).get("compared", 0) > 10 and one, what="figures")
    assert (found["device"], found["pipeline"], found["champion"], found["candidate"]) == (NAME, "front", "1.0", "1.1")
    assert 0 < found["agreement"] <= 1
    assert found["latency_ratio"] > 0
    assert found["cpu_budget"] == 0.1
    listed = world.people["operator"].get(f"/devices/{NAME}/comparisons?pipeline=front")["comparisons"]
    assert [one["campaign"] for one in listed] == [campaign]
    assert [line["installed"] for line in status(world)["lines"]] == ["1.0"]
    abort(world, campaign)
    wait_until(lambda: {slot["slot"] for slot in status(world)["slots"]} <= {"a", "b"}, what="the candidate to be gone")
    wait_until(lambda: compared(world, campaign)["state"] == "ended", what="the last report")


def test_two_releases_take_turns_and_the_winner_is_not_fetched_again(world: World):
    campaign = begin(world, "1.1", **{"as": "ab", "share": 0.99})
    found = wait_until(
        lambda: (one := compared(world, campaign)).get("figures", {}).get("candidate", {}).get("frames") and one, what="turns"
    )
    assert (found["as"], found["compared"]) == ("ab", 0)
    rollout = begin(world, "1.1")
    wait_until(lambda: world.updates_of(rollout).get(NAME, {}).get("state") == "updated", what="the rollout")
    (line,) = status(world)["lines"]
    assert (line["installed"], line["bytes_needed"]) == ("1.1", 0)
