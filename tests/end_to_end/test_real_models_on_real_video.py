"""Published models, released by a real server to a real agent, on real video and photographs; read by Debian's mosquitto_sub as JSON."""

import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode
from waiting import wait_until

from agent.control import ask
from agent.events.detector import PREDICTION
from agent.identity import load_identity
from examples.demo.world import World

pytestmark = [pytest.mark.needs_data, pytest.mark.needs_broker]
ASSETS = Path(__file__).resolve().parent / "assets"
DEVICE, STRANGER, READER = "eye-1", "eye-2", "reader"
#: Pipeline → video and its frames per second; persons on so many percent of every tenth frame.
VIDEOS = {"people": ("one-by-one-person-detection", 10.0), "cars": ("car-detection", 12.5)}
PERCENT = {"people": (37, 2), "cars": (0, 0)}
#: Pipeline → picture, and the name that SOURCES.md says the model gives it.
PICTURES = {"cat": "Egyptian cat", "grace-hopper": "military uniform", "sunflower": "daisy"}
#: Videos run at this multiple of their pace and each tenth frame is inferred: two minutes less of a test's life, and time for each.
SPEED = 8
NOT_AUTHORIZED = 0x87
EVENTS = "mooring/1/t0/d/+/event"
SETTINGS = "[update]\nmin_inferences = 3\nmin_seconds = 1.0\nlatency_noise_ms = 1000.0\n[telemetry]\nperf_s = 2.0\n"


@dataclass
class Messages:
    """What a subscriber printed: lines of topic and JSON."""

    path: Path

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Every prediction so far, once per line printed."""
        for line in self.path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                topic, _, payload = line.partition(" ")
                body = json.loads(payload)
                assert topic == f"mooring/1/t0/d/{DEVICE}/event"
                if body["type"] == PREDICTION:
                    yield body["data"]

    def by_frame(self, pipeline: str) -> dict[int, dict[str, float]]:
        """Frame number → label → score, of one pipeline."""
        found = {}
        for one in self.predictions():
            if one["pipeline"] == pipeline:
                found[one["frame"]] = {score["label"]: score["score"] for score in one["top"]}
        return found


@pytest.fixture(scope="module")
def world(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("w")) as world:
        world.start_server()
        yield world


@pytest.fixture(scope="module")
def messages(world: World, data_dir: Path) -> Iterator[Messages]:
    """A reader admitted with `mooring broker consumer`, and a device that has run both models over everything."""
    made = json.loads(world.children.run("consumer", "fleet.cli", "broker", "consumer", READER, "--data", str(world.data_dir), "--json"))
    world.admit_people()
    path = world.root / "messages"
    who = ["--cafile", made["ca"], "--cert", made["certificate"], "--key", made["key"], "-i", made["name"]]
    where = ["-h", "127.0.0.1", "-p", str(world.ports.broker), "-q", "1", "-t", EVENTS, "-F", "%t %p"]
    with path.open("wb") as out:
        reader = subprocess.Popen(["mosquitto_sub", "-V", "5", *who, *where], stdout=out)
    try:
        run_everything(world, data_dir, Messages(path))
        yield Messages(path)
    finally:
        reader.terminate()
        reader.wait(60)


def run_everything(world: World, data_dir: Path, messages: Messages) -> None:
    manifests = world.root / "manifests"
    shutil.copytree(ASSETS, manifests, ignore=shutil.ignore_patterns("*.js", "*LICENSE*"))
    shutil.copy(data_dir / "labels" / "imagenet_labels.txt", manifests)
    release(world, "vww", data_dir / "models" / "vww_96_int8.tflite", manifests / "vww.toml")
    release(world, "imagenet", data_dir / "models" / "mobilenet_v2_1.0_224_quant.tflite", manifests / "mobilenet.toml")
    pictures = [picture_pipeline(world.root, data_dir, name) for name in PICTURES]
    videos = {name: hastened(data_dir / "video" / f"{file}.mp4", world.root / f"{name}.mp4") for name, (file, _) in VIDEOS.items()}
    warm = {"name": "warm", "line": "vww", "source": video(videos["cars"], loop=True)}
    world.add_agent(DEVICE, device_type="eye", pipelines=[warm, *pictures], settings=SETTINGS)
    world.start_agent(DEVICE)
    for campaign in [world.campaign(line, "1.0", group="default", min_inferences=3) for line in ("vww", "imagenet")]:
        is_updated = lambda: world.updates_of(campaign).get(DEVICE, {}).get("state") == "updated"  # noqa: E731, B023 - called at once
        world.await_(is_updated, what="the models on the device")
    wait_until(lambda: all(messages.by_frame(name) for name in PICTURES), what="a prediction of each picture")
    # a video that is played once starts when its pipeline does: only now, when the model is there
    pipelines = [
        {"name": name, "line": "vww", "source": video(videos[name]), "keep": "all", "max_fps": fps * SPEED / 10}
        for name, (_, fps) in VIDEOS.items()
    ]
    world.set_pipelines(DEVICE, pipelines)
    socket = world.agents[DEVICE].folder / "run" / "control.sock"

    def is_over() -> bool:
        status = ask(socket, "status")
        states = {one["pipeline"]: one["source_state"] for one in status["pipelines"]}
        return states == dict.fromkeys(VIDEOS, "ended") and not status["outbox"]["by_stream"].get("event")

    wait_until(is_over, timeout_s=600, what="the ends of both videos, and every event acknowledged")


def release(world: World, line: str, file: Path, manifest: Path) -> None:
    world.release(line, "1.0", {world.import_model(file, manifest, name=line): ["eye"]})


def picture_pipeline(root: Path, data_dir: Path, name: str) -> dict[str, Any]:
    folder = root / "pictures" / name
    folder.mkdir(parents=True)
    shutil.copy(data_dir / "images" / f"{name.replace('-', '_')}.bmp", folder)
    return {"name": name, "line": "imagenet", "keep": "all", "source": {"kind": "folder", "path": str(folder), "loop": True, "fps": 1.0}}


def video(path: Path, *, loop: bool = False) -> dict[str, Any]:
    return {"kind": "video", "path": str(path), "loop": loop}


def hastened(source: Path, target: Path) -> Path:
    """A copy whose every frame is the same and lasts a fraction of its time: the ticks per second of each track are multiplied."""
    data, at = bytearray(source.read_bytes()), -1
    while (at := data.find(b"mdhd", at + 1)) >= 0:  # ISO/IEC 14496-12, 8.4.2: version, flags, two times of 32 or 64 bits, timescale
        place = at + 4 + (12 if data[at + 4] == 0 else 20)
        struct.pack_into(">I", data, place, SPEED * struct.unpack_from(">I", data, place)[0])
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("pipeline", VIDEOS)
def test_the_agent_sees_persons_where_persons_are(pipeline: str, messages: Messages, data_dir: Path):
    import cv2

    capture = cv2.VideoCapture(str(data_dir / "video" / f"{VIDEOS[pipeline][0]}.mp4"))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    tenths = {frame // 10: scores["person"] > 0.5 for frame, scores in messages.by_frame(pipeline).items()}
    percent, tolerance = PERCENT[pipeline]
    share = 100 * sum(tenths.values()) / len(tenths)
    print(f"\n{pipeline}: person in {share:.1f} % of {len(tenths)} of {total // 10} tens of frames")  # noqa: T201 - a figure to be read
    assert len(tenths) >= 0.95 * (total // 10)
    assert abs(share - percent) <= tolerance


@pytest.mark.parametrize(("pipeline", "label"), PICTURES.items())
def test_the_agent_names_photographs(pipeline: str, label: str, messages: Messages):
    named = {max(scores, key=lambda one: scores[one]) for scores in messages.by_frame(pipeline).values()}
    assert len(named) == 1
    assert named.pop().startswith(label)


def test_a_device_may_neither_publish_as_another_nor_read_what_another_says(world: World, messages: Messages):
    world.add_agent(STRANGER, device_type="eye", pipelines=[])
    identity = load_identity(world.agents[STRANGER].state_dir / "identity")
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=STRANGER, protocol=mqtt.MQTTv5)
    client.tls_set_context(identity.tls_context())
    answers: dict[int, ReasonCode] = {}
    heard: list[str] = []
    client.on_publish = lambda _client, _data, mid, code, _properties: answers.__setitem__(mid, code)
    client.on_message = lambda _client, _data, message: heard.append(message.topic)
    client.connect("127.0.0.1", world.ports.broker)
    client.loop_start()
    try:
        wait_until(client.is_connected, what="the connection")
        client.subscribe([(f"mooring/1/t0/d/{DEVICE}/#", 1), (f"mooring/1/t0/c/{DEVICE}/#", 1), (f"mooring/1/t0/c/{STRANGER}/desired", 1)])
        codes = {}
        for topic in (f"d/{DEVICE}/event", f"d/{DEVICE}/tel/sys", f"c/{DEVICE}/desired", f"c/{STRANGER}/desired", f"d/{STRANGER}/log"):
            mid = client.publish(f"mooring/1/t0/{topic}", b"{}", qos=1).mid
            codes[topic] = wait_until(lambda mid=mid: answers.get(mid), what=f"the broker's answer about {topic}").value
        source = {"kind": "folder", "path": str(world.root)}
        world.set_pipelines(
            STRANGER, [{"name": "front", "line": "vww", "source": source}]
        )  # its own desired state comes, after everything retained of the other would have
        wait_until(lambda: heard, what="a message of its own")
    finally:
        client.disconnect()
        client.loop_stop()
    allowed = {topic for topic, code in codes.items() if code < 0x80}
    assert allowed == {f"d/{STRANGER}/log"}
    assert {code for topic, code in codes.items() if topic not in allowed} == {NOT_AUTHORIZED}
    assert set(heard) == {f"mooring/1/t0/c/{STRANGER}/desired"}
