"""A camera on a SIM card, real server and real agent: it holds until somebody allows the first model, then takes deltas alone."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from agent.control import ask
from examples.demo.scenario import DIGITS, LINE, make_videos
from examples.demo.world import World

pytestmark = [
    pytest.mark.needs_broker,
    pytest.mark.skipif("MOORING_TEST_METERED" not in os.environ, reason="takes a minute; run by `make test-metered`"),
]
NAME = "cam-1"
SETTINGS = """
[update]
poll_s = 1
metered = true
min_inferences = 15
latency_noise_ms = 1000.0
min_seconds = 0.5
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
        yield world


def line_state(world: World) -> dict[str, Any]:
    if not (world.agents[NAME].folder / "run" / "control.sock").exists():
        return {}
    lines = ask(world.agents[NAME].folder / "run" / "control.sock", "status")["lines"]
    return next((dict(line) for line in lines if line["line"] == LINE), {})


def begin(world: World, version: str, **changes: Any) -> str:
    body = {
        "line": LINE,
        "release": version,
        "group": "default",
        "min_inferences": 15,
        "phases": [{"failure_threshold": 0.1}],
        "reason": "e2e",
    }
    return str(world.people["operator"].send("POST", "/campaigns", body | changes)["campaign"])


def test_a_metered_device_holds_until_the_campaign_allows_the_first_model(world: World):
    campaign = begin(world, "1.0")
    wait_until(lambda: line_state(world).get("waits_for") == "full_download", what="the hold")
    state = line_state(world)
    assert (state["state"], state["reason"], state["transfer"]) == ("downloading", "full_download_refused", "full")
    operator = world.people["operator"]
    _, etag = operator.get_with_etag(f"/campaigns/{campaign}")
    operator.send("POST", f"/campaigns/{campaign}/abort", {"reason": "a SIM card"}, etag=etag)
    allowed = begin(world, "1.0", full_bytes=1_000_000)
    wait_until(lambda: world.updates_of(allowed).get(NAME, {}).get("state") == "updated", what="the first model")


def test_the_next_model_comes_as_the_delta_that_the_server_made_of_what_the_device_reported(world: World):
    campaign = begin(world, "1.1")
    wait_until(lambda: world.updates_of(campaign).get(NAME, {}).get("state") == "updated", what="the update by delta")
    state = line_state(world)
    assert (state["installed"], state["transfer"]) == ("1.1", "delta")
    assert 0 < state["bytes_needed"] < 60_000
