"""The loop of real processes with a delta in it: 1.0 runs, 1.1 is published, the server makes the delta, the agent takes it.

The digit models are small, so a block of numbers that stays the same is put behind them (a FlatBuffer's reader does not look there):
what changes between the two files is the whole trained network, as after a retraining of a model with a large fixed part.
"""

import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from examples.demo.scenario import DIGITS, LINE, make_videos
from examples.demo.world import World

pytestmark = pytest.mark.needs_broker
NAME = "cam-1"
FILLER_BYTES = 400_000
SETTINGS = """
[update]
min_inferences = 15
latency_noise_ms = 1000.0
min_seconds = 0.5
poll_s = 1.0
"""


@pytest.fixture
def world(mosquitto_path: Path, tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "world") as world:
        world.start_server()
        world.admit_people()
        videos, _ = make_videos(tmp_path, [NAME], seconds=10)
        source = {"kind": "video", "path": str(videos[NAME]), "loop": True}
        pipelines = [{"name": "front", "line": LINE, "source": source, "max_fps": 10}]
        world.add_agent(NAME, device_type="camera", pipelines=pipelines, settings=SETTINGS)
        world.start_agent(NAME)
        yield world


def release(world: World, folder: Path, version: str) -> int:
    """Publish the digits model of that version; returns its length."""
    source = DIGITS / "models" / version / "tflite"
    model = folder / version / "model.tflite"
    model.parent.mkdir()
    filler = random.Random(7).randbytes(FILLER_BYTES)  # noqa: S311 - bytes that stay the same, no secret
    model.write_bytes((source / "model.tflite").read_bytes() + filler)
    made = world.import_model(model, DIGITS / "tflite.toml", name="digits", golden=source / "golden.cbor")
    world.release(LINE, version, {made: ["camera"]})
    return model.stat().st_size


def bring(world: World, version: str) -> dict[str, Any]:
    """Have the agent updated; returns its signed report as the server keeps it."""
    campaign = world.campaign(LINE, version, group="default", min_inferences=15)
    wait_until(lambda: world.updates_of(campaign).get(NAME, {}).get("state") == "updated", what=f"{version} to be counted")
    with sqlite3.connect(f"file:{world.data_dir / 'fleet.db'}?mode=ro", uri=True) as database:
        (text,) = database.execute("SELECT report FROM version_reports WHERE device = ?", (NAME,)).fetchone()
    return dict(json.loads(text))


def deltas(world: World) -> list[dict[str, Any]]:
    found = world.people["operator"].get(f"/releases/{LINE}/1.1/deltas")["items"]
    return [one for one in found if one["file"] == "model.tflite" and one["base_release"] == "1.0" and one["state"] == "usable"]


def test_the_next_release_travels_as_a_delta_and_the_servers_record_shows_it(world: World, tmp_path: Path):
    length = release(world, tmp_path, "1.0")
    first = bring(world, "1.0")
    assert first["transfer"] == "full"
    assert first["bytes_downloaded"] >= length
    release(world, tmp_path, "1.1")
    (delta,) = wait_until(lambda: deltas(world), what="the delta from what the device has")
    assert (delta["devices"], delta["file_length"]) == (1, length)
    second = bring(world, "1.1")
    print(f"\nfull {length} bytes, delta {delta['length']} bytes by {delta['method_name']}, fetched {second['bytes_downloaded']}")  # noqa: T201 - the figure that was asked for
    assert second["transfer"] == "delta"
    assert delta["length"] <= second["bytes_downloaded"] < length / 10
    assert [slot["release"] for slot in second["slots"] if slot["committed"]] == ["1.1"]
