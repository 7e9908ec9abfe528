"""Signed configuration, all processes real: set on the server, approved, signed, tried by the device, kept; or given back by itself."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulators.color_models import make_slot
from simulators.videos import BLUE, GREEN, RED, write_video
from waiting import wait_until

from agent.control import ask
from agent.slots import SlotContent, SlotFile, Slots
from examples.demo.world import Agent, World
from protocol.errors import TransferError
from protocol.files import digest_of_file
from protocol.ids import LineName, ReleaseVersion

pytestmark = pytest.mark.needs_broker
SETTINGS = """
[update]
poll_s = 1.0
[telemetry]
perf_s = 1.0
sys_s = 1.0
[configuration]
settle_s = 3.0
trial_s = {trial_s:g}
"""
#: Seconds until a trial is given up: in which every change can be seen to hold; and until one without a link is given back.
PATIENT_S, HASTY_S = 120.0, 8.0


@pytest.fixture(scope="module")
def world(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("w"), environment={"MOORING_AGENT_BROKER__RECONNECT_MAX_S": "0.5"}) as world:
        world.start_server()
        world.admit_people()
        yield world


@pytest.fixture(scope="module")
def agent(world: World, tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """A camera that infers from the first second on, behind links that can be cut."""
    video = write_video(tmp_path_factory.mktemp("v") / "v.avi", [BLUE] * 10 + [GREEN] * 10 + [RED] * 10)
    pipeline = {"name": "front", "line": "color", "source": {"kind": "video", "path": str(video), "loop": True}, "max_fps": 20}
    made = world.add_agent("cam-1", device_type="sim", pipelines=[pipeline], is_linked=True, settings=SETTINGS.format(trial_s=PATIENT_S))
    folder = make_slot(tmp_path_factory.mktemp("release") / "r")
    files = tuple(SlotFile(path.name, digest_of_file(path), path.stat().st_size) for path in sorted(folder.iterdir()))
    slots, line = Slots(made.state_dir / "slots"), LineName("color")
    content = SlotContent(line, ReleaseVersion("1.0"), 1, "onnx", files)
    slots.activate(line, slots.write(content, {file.name: folder / file.name for file in files}).name)
    slots.commit(line)
    world.start_agent("cam-1")
    wait_until(lambda: status(made)["pipelines"] and status(made)["pipelines"][0]["inferred"] > 0, what="the first inferences")
    return made


def start_with(world: World, agent: Agent, *, trial_s: float) -> None:
    """Start the agent, anew when it runs, with another patience, and wait until it is connected and infers."""
    if agent.name in world.children.running:
        world.children.stop(agent.name)
    patience = f"trial_s = {trial_s:g}"
    agent.config.write_text(re.sub(r"trial_s = .*", patience, agent.config.read_text()))
    world.start_agent(agent.name)
    wait_until(
        lambda: (now := status(agent)).get("connected") and any(one["inferred"] for one in now["pipelines"]), what="the agent at work"
    )


def status(agent: Agent) -> dict[str, Any]:
    try:
        return ask(agent.folder / "run" / "control.sock", "status")
    except TransferError:
        return {"pipelines": [], "configuration": None}


def trial_state(agent: Agent) -> tuple[str, int]:
    found = status(agent)["configuration"] or {"state": "", "rev": 0}
    return found["state"], found.get("rev", 0)


def set_values(world: World, values: dict[str, Any], scope: str) -> None:
    operator = world.people["operator"]
    _, etag = operator.get_with_etag(f"/configurations/sections/{scope}")
    operator.send("PATCH", f"/configurations/sections/{scope}", {"values": values, "reason": "test"}, etag=etag)


def release(world: World) -> int:
    """What differs, approved by somebody else and signed by the demo's signer; returns its revision once it is published."""
    operator, approver = world.people["operator"], world.people["approver"]
    made = operator.send("POST", "/configurations/releases", {"groups": ["default"], "reason": "test"})
    _, etag = approver.get_with_etag(f"/approvals/{made['approval']}")
    approver.send("POST", f"/approvals/{made['approval']}/decide", {"decision": "approve", "reason": "read"}, etag=etag)
    world.await_(lambda: operator.get(f"/configurations/releases/{made['rev']}")["state"] == "published", what="the signer to sign it")
    return int(made["rev"])


def told(world: World) -> dict[str, Any]:
    return dict(world.people["operator"].get("/devices/cam-1/configuration"))


def test_what_is_set_reaches_the_device_is_tried_and_kept_as_the_dry_run_said(world: World, agent: Agent):
    world.await_(lambda: told(world)["reported"], what="the device to say what its own values are")
    set_values(world, {"telemetry.sys_s": 2, "pipelines.*.min_score": 0.25}, "fleet")
    set_values(world, {"pipelines.front.max_fps": 10, "log_level": "debug"}, "group/default")
    set_values(world, {"log_level": "warning"}, "device/cam-1")
    planned = world.people["operator"].get("/configurations/dry-run", group="default")["items"][0]
    assert planned["restarts"] == ["front"]
    rev = release(world)
    found = world.await_(lambda: (now := told(world))["is_in_force"] and now["reported"], what="the configuration to be kept")
    assert (found["state"], found["group"], found["rev"]) == ("committed", "default", rev)
    assert found["values"] == planned["after"]
    assert {"max_fps": 10.0, "keep": "ring", "min_score": 0.25}.items() <= found["values"]["pipelines"]["front"].items()
    assert found["origins"] == {
        "telemetry.sys_s": "fleet",
        "pipelines.*.min_score": "fleet",
        "pipelines.front.max_fps": "group",
        "log_level": "device",
    }
    command = [sys.executable, "-m", "agent.cli", "status", "--config", str(agent.config), "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout)
    assert shown["configuration"]["values"]["log_level"] == "warning"


def test_a_device_that_loses_its_link_after_the_change_returns_by_itself_and_when_told_tries_again_through_a_kill(
    world: World, agent: Agent
):
    start_with(world, agent, trial_s=HASTY_S)
    good = told(world)["reported"]
    set_values(world, {"telemetry.sys_s": 3}, "fleet")
    rev = release(world)
    wait_until(lambda: trial_state(agent) == ("trial", rev) and (agent.cut() or True), what="the trial")
    here = wait_until(
        lambda: (now := status(agent)["configuration"]) and now["state"] == "returned" and now, what="the device to go back, offline"
    )
    assert (here["rev"], here["values"]) == (good["rev"], good["values"])
    assert (here["returned"]["rev"], here["returned"]["reason"]) == (rev, "link_lost")
    agent.restore()
    back = world.await_(lambda: (now := told(world)["reported"])["returned"] and now, what="the reason to reach the server")
    assert (back["state"], back["rev"], back["returned"]["reason"]) == ("returned", good["rev"], "link_lost")
    world.people["operator"].send("POST", "/devices/cam-1/configuration/offer-again", {"reason": "the link is back"})
    wait_until(lambda: trial_state(agent) == ("trial", rev) and (world.children.kill("cam-1") or True), what="its second trial")
    start_with(world, agent, trial_s=PATIENT_S)  # killed in the middle of the trial: it goes on from its beginning
    again = world.await_(lambda: (now := told(world))["is_in_force"] and now["reported"], what="the second try")
    assert (again["rev"], again["attempt"], again["values"]["telemetry"]["sys_s"]) == (rev, 1, 3.0)
