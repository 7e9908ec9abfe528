"""A site without a network: a stick from the real server, the real agent that never reaches it, and the signed report back by hand."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from agent.control import ask
from examples.demo.scenario import DIGITS, LINE, make_videos
from examples.demo.world import World
from protocol.errors import TransferError

pytestmark = pytest.mark.needs_broker
NAME = "cam-1"
SETTINGS = """
[update]
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
    folder = tmp_path_factory.mktemp("site")
    with World(folder / "world") as world:
        world.start_server()
        world.admit_people()
        for version in ("1.0", "1.1"):
            source = DIGITS / "models" / version / "tflite"
            made = world.import_model(source / "model.tflite", DIGITS / "tflite.toml", name="digits", golden=source / "golden.cbor")
            world.release(LINE, version, {made: ["camera"]})
        videos, _ = make_videos(folder, [NAME], seconds=10)
        settings = SETTINGS.format(line=LINE, video=videos[NAME])
        agent = world.add_agent(NAME, device_type="camera", pipelines=[], is_linked=True, settings=settings)
        agent.cut()
        world.start_agent(NAME)
        yield world


def cli(world: World, *arguments: str, user: str = "operator") -> Any:
    token = world.people[user]._http.headers["Authorization"].removeprefix("Bearer ")
    login = {"MOORING_TOKEN": token, "MOORING_SERVER": world.console_url}
    return json.loads(world.children.run("cli", "fleet.cli", *arguments, "--json", secret_environment=login))


def agent(world: World, *arguments: str) -> Any:
    command = (*arguments, "--json", "--config", str(world.agents[NAME].config))
    return json.loads(world.children.run("agent-cli", "agent.cli", *command, timeout_s=300))


def agent_status_while_down(world: World) -> Any:
    """The status from the agent's files: the command ends with 1 and prints all the same."""
    command = [sys.executable, "-m", "agent.cli", "status", "--json", "--config", str(world.agents[NAME].config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout)


def is_running(world: World) -> bool:
    try:
        return bool(ask(world.agents[NAME].folder / "run" / "control.sock", "import-status"))
    except TransferError:
        return False


def state_in(world: World, campaign: str) -> str:
    """Where the device is in the campaign; empty until the controller has seen it."""
    return str(world.updates_of(campaign).get(NAME, {}).get("state", ""))


def bring_a_stick(world: World, version: str, folder: Path) -> str:
    campaign = world.campaign(LINE, version, group="default", min_inferences=15)
    wait_until(lambda: state_in(world, campaign) == "assigned", what="the assignment")
    made = cli(world, "bundle", "create", str(folder), "--group", "default", "--valid-days", "30", "--reason", "the site in the hills")
    assert made["devices"] == [NAME]
    assert made["idle"] == []
    return campaign


def test_a_device_that_never_reaches_its_server_is_updated_by_a_stick_and_counted(world: World, tmp_path: Path):
    stick = tmp_path / "stick" / "mooring"
    stick.parent.mkdir()
    campaign = bring_a_stick(world, "1.0", stick)
    found = agent(world, "import", str(stick), "--wait", "240")
    assert (found["phase"], found["releases"], found["is_reported"]) == ("done", [[LINE, "1.0"]], True), found
    status = agent(world, "status")
    assert not status["connected"]
    assert [(slot["release"], slot["committed"]) for slot in status["slots"]] == [("1.0", True)]
    assert state_in(world, campaign) == "assigned"
    rows = cli(world, "bundle", "import-reports", str(stick))
    assert [row["result"] for row in rows] == ["taken"]
    wait_until(lambda: state_in(world, campaign) == "updated", what="the server to count the device")
    assert [row["result"] for row in cli(world, "bundle", "import-reports", str(stick))] == ["known"]
    entries = world.people["auditor"].get("/audit", limit=50)["items"]
    assert {"bundle.created", "report.imported"} <= {entry["action"] for entry in entries}


def test_an_agent_that_does_not_run_takes_a_stick_over_and_begins_at_its_next_start(world: World, tmp_path: Path):
    stick = tmp_path / "stick"
    campaign = bring_a_stick(world, "1.1", stick)
    world.children.stop(NAME)
    found = agent(world, "import", str(stick))
    assert (found["running"], found["phase"], found["releases"]) == (False, "updating", [[LINE, "1.1"]]), found
    assert [slot["release"] for slot in agent_status_while_down(world)["slots"] if slot["active"]] == ["1.0"]
    world.start_agent(NAME)
    wait_until(lambda: is_running(world), what="the agent to answer")
    found = agent(world, "import", str(stick), "--wait", "240")
    assert (found["phase"], found["is_reported"]) == ("done", True), found
    cli(world, "bundle", "import-reports", str(stick))
    wait_until(lambda: state_in(world, campaign) == "updated", what="the server to count the device")
