"""What people, files, cameras, brokers, clocks and disks get wrong, at the doors of the real programs: told in words, nothing stops.

Each error names what was seen and what to do; the agent goes on inferring with what it has. What single parts refuse is tested with them.
"""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from simulators.mjpeg import MjpegCamera, jpeg
from simulators.videos import BLUE, RED, write_video
from waiting import wait_until

from agent.control import ask
from examples.demo.scenario import DIGITS, LINE
from examples.demo.world import Agent, World
from protocol.errors import TransferError

pytestmark = pytest.mark.needs_broker
SETTINGS = """
[update]
min_inferences = 5
latency_noise_ms = 1000.0
min_seconds = 0.5
[telemetry]
perf_s = 1.0
sys_s = 1.0
"""
TYPE = "camera"
ONNX, TFLITE = DIGITS / "models" / "1.0" / "onnx" / "model.onnx", DIGITS / "models" / "1.0" / "tflite" / "model.tflite"
EXIT_FAILED, EXIT_USAGE, EXIT_AUTH, EXIT_CONFLICT = 1, 2, 4, 5
#: Bytes of the small disk.
DISK_BYTES = 6 << 20


@pytest.fixture(scope="module")
def world(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("w")) as world:
        world.start_server()
        world.admit_people()
        world.ensure_device_type(TYPE)
        golden = DIGITS / "models" / "1.0" / "tflite" / "golden.cbor"
        world.release(LINE, "1.0", {world.import_model(TFLITE, DIGITS / "tflite.toml", name="digits", golden=golden): [TYPE]})
        yield world


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("v") / "v.avi", [BLUE] * 30 + [RED] * 30)


# --- tokens ---


def invite(world: World, name: str, **more: Any) -> str:
    body = {"group": "default", "device_type": TYPE, "device": name, "reason": "test", **more}
    return str(world.people["admin"].send("POST", "/invites", body)["token"])


def enroll(world: World, folder: Path, token: str, *, device_type: str = TYPE) -> subprocess.CompletedProcess[str]:
    options = ["--state-dir", str(folder), "--run-dir", str(folder), "--server", world.device_url, "--device-type", device_type]
    environment = {**os.environ, "MOORING_AGENT_TOKEN": token}
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", "enroll", *options], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_token_that_is_wrong_used_or_expired_is_refused_in_words_and_makes_no_device(world: World, tmp_path: Path):
    good = invite(world, "token-1")
    parts = good.split(".")
    wrong = ".".join([*parts[:3], "x" * len(parts[3]), parts[4]])
    short_lived = invite(world, "token-2", hours=1 / 3600)
    expired_at = datetime.now(UTC) + timedelta(seconds=1.5)
    assert enroll(world, tmp_path / "first", good).returncode == 0
    wait_until(lambda: datetime.now(UTC) > expired_at, what="the end of the token")
    answers = {
        "no token": enroll(world, tmp_path / "a", "mrg1.nonsense"),
        "wrong": enroll(world, tmp_path / "b", wrong),
        "used": enroll(world, tmp_path / "c", good),
        "expired": enroll(world, tmp_path / "d", short_lived),
        "another authority": enroll(world, tmp_path / "e", ".".join([*parts[:4], "0" * 64])),
    }
    for what, answer in answers.items():
        print(f"\n{what}: {answer.returncode} {answer.stderr.strip()}")  # noqa: T201 - words to be read
    assert answers["no token"].returncode == EXIT_USAGE
    assert answers["wrong"].returncode == EXIT_AUTH
    assert {answers[what].returncode for what in ("used", "expired")} == {EXIT_CONFLICT}
    for word in ("used", "expired"):
        assert word in answers[word].stderr
    for answer in answers.values():
        assert answer.returncode != 0
        assert "Traceback" not in answer.stderr
        assert parts[3] not in answer.stderr
    assert not list(tmp_path.glob("[a-e]/identity/device-cert.pem"))
    names = {one["device"] for one in world.people["operator"].get("/devices", limit=100)["items"]}
    assert "token-1" in names
    assert "token-2" not in names


# --- model files and manifests ---


@pytest.fixture(scope="module")
def operator_token(world: World) -> str:
    body = {"name": "operator", "password": world.login["operator"]}
    return str(httpx.post(f"{world.console_url}/api/v1/login", json=body, timeout=120).json()["token"])


def import_model(world: World, token: str, file: Path, manifest: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleet.cli", "model", "import", str(file), "--manifest", str(manifest), "--server", world.console_url]
    environment = {**os.environ, "MOORING_TOKEN": token}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


BAD_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "corrupt ONNX": ("model.onnx", lambda: b"\x08\x07" + os.urandom(5000), "onnx"),
    "corrupt TFLite": ("model.tflite", lambda: TFLITE.read_bytes()[:64] + os.urandom(5000), "tflite"),
    "truncated ONNX": ("model.onnx", lambda: ONNX.read_bytes()[: len(ONNX.read_bytes()) // 2], "onnx"),
    "truncated TFLite": ("model.tflite", lambda: TFLITE.read_bytes()[: len(TFLITE.read_bytes()) // 2], "tflite"),
    "a picture": ("model.tflite", lambda: jpeg(RED), "tflite"),
    "ONNX named TFLite": ("model.tflite", ONNX.read_bytes, "tflite"),
    "a page of HTML": ("model.onnx", lambda: b"<!DOCTYPE html><title>404</title>" * 40, "onnx"),
    "nothing": ("model.onnx", lambda: b"", "onnx"),
}
BAD_MANIFESTS: dict[str, tuple[str, str, str]] = {
    "labels": ('labels = "labels.txt"', 'labels = ["0", "1", "2"]', r"\b3\b.*\b10\b|\b10\b.*\b3\b"),
    "shape": ('color = "GRAY"', 'color = "RGB"', r"RGB|channel"),
    "type": (
        "[preprocess]",
        "[quantization.serving_default_args_0]\nscale = 0.5\nzero_point = 3\n\n[preprocess]",
        r"scale 0.5, zero point 3; the file says",
    ),
    "range": ("std = [1.0]", "std = [0.0]", r"std"),
    "unknown word": ('fit = "crop"', 'fit = "squeeze"', r"squeeze"),
    "backend of another format": ('backends = ["litert", "tflite"]', 'backends = ["onnx"]', r"onnx"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_is_no_whole_model_is_refused_by_name_and_not_kept(world: World, operator_token: str, tmp_path: Path, what: str):
    name, content, kind = BAD_FILES[what]
    before = len(world.people["operator"].get("/models")["items"])
    (tmp_path / name).write_bytes(content())
    answer = import_model(world, operator_token, tmp_path / name, DIGITS / f"{kind}.toml")
    print(f"\n{what}: {answer.returncode} {answer.stderr.strip()}")  # noqa: T201 - words to be read
    assert answer.returncode == EXIT_FAILED
    assert "Traceback" not in answer.stderr
    assert re.search(r"model\.|model|file", answer.stderr)
    assert len(world.people["operator"].get("/models")["items"]) == before


@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_a_manifest_that_does_not_fit_is_refused_with_what_was_seen_and_wanted(
    world: World, operator_token: str, tmp_path: Path, what: str
):
    old, new, said = BAD_MANIFESTS[what]
    text = (DIGITS / "tflite.toml").read_text()
    assert old in text
    (tmp_path / "labels.txt").write_text((DIGITS / "labels.txt").read_text())
    (tmp_path / "manifest.toml").write_text(text.replace(old, new))
    answer = import_model(world, operator_token, TFLITE, tmp_path / "manifest.toml")
    print(f"\n{what}: {answer.returncode} {answer.stderr.strip()}")  # noqa: T201 - words to be read
    assert answer.returncode == EXIT_FAILED
    assert "Traceback" not in answer.stderr
    assert re.search(said, " ".join(answer.stderr.split()))


# --- a running agent ---


def status(agent: Agent) -> dict[str, Any]:
    try:
        return dict(ask(agent.folder / "run" / "control.sock", "status"))
    except TransferError:
        return {"pipelines": [], "conditions": [], "connected": False, "outbox": {"by_stream": {"event": -1}}}


def condition(agent: Agent, code: str) -> dict[str, Any] | None:
    return next((one for one in status(agent)["conditions"] if one["code"] == code), None)


def broker_texts(agent: Agent) -> str:
    """What the agent says of its broker now."""
    return " ".join(one["text"] for one in status(agent)["conditions"] if one["code"].startswith("broker_"))


def inferred(agent: Agent, pipeline: str = "front") -> int:
    """Frames inferred in the last window of telemetry."""
    return sum(one["inferred"] for one in status(agent)["pipelines"] if one["pipeline"] == pipeline)


def front(source: dict[str, Any], name: str = "front", **more: Any) -> dict[str, Any]:
    return {"name": name, "line": LINE, "source": source, "max_fps": 10, **more}


def loop(video: Path) -> dict[str, Any]:
    return {"kind": "video", "path": str(video), "loop": True}


@pytest.fixture
def start(world: World, video: Path) -> Iterator[Callable[..., Agent]]:
    """Starts agents that have and run release 1.0."""
    names: list[str] = []

    def run(name: str, **more: Any) -> Agent:
        world.people["operator"].send("POST", "/groups", {"name": name, "reason": "test"})
        agent = world.add_agent(name, device_type=TYPE, pipelines=[front(loop(video))], group=name, settings=SETTINGS, **more)
        world.start_agent(name)
        names.append(name)
        campaign = world.campaign(LINE, "1.0", group=name, min_inferences=5)
        world.await_(lambda: world.updates_of(campaign).get(name, {}).get("state") == "updated", what=f"the first model on {name}")
        return agent

    yield run
    for name in names:
        world.children.stop(name)


def test_a_video_that_ends_is_damaged_or_missing_is_told_and_another_pipeline_goes_on(start, world: World, video: Path, tmp_path: Path):
    agent = start("ends")
    (tmp_path / "damaged.avi").write_bytes(os.urandom(20_000))
    once = {**loop(video), "loop": False}
    lost = {"kind": "video", "path": str(tmp_path / "damaged.avi")}
    gone = {"kind": "video", "path": str(tmp_path / "gone.avi")}
    world.set_pipelines("ends", [front(loop(video)), front(once, "once"), front(lost, "damaged"), front(gone, "gone")])
    ended = wait_until(
        lambda: (found := condition(agent, "source_ended")) and found["text"].startswith("once:") and found, what="the end told"
    )
    assert "60 frames" in ended["text"]
    assert "loop" in ended["advice"]

    def lost_texts() -> str:
        return " ".join(one["text"] for one in status(agent)["conditions"] if one["code"] == "source_lost")

    wait_until(lambda: "damaged.avi" in lost_texts() and "gone.avi" in lost_texts(), what="both lost sources told")
    seen = {one["code"] for one in world.await_(lambda: world.device("ends")["conditions"], what="conditions on the server")}
    assert seen & {"source_ended", "source_lost"}
    wait_until(lambda: inferred(agent) > 0, what="inferences of the other pipeline")


def test_a_camera_that_changes_its_resolution_and_then_stalls_is_followed_and_told(start, world: World):
    agent = start("camera")
    with MjpegCamera(jpeg(RED, size=(64, 48))) as camera:
        world.people["operator"].send("PUT", "/devices/camera/secrets/door", {"value": "viewer:p@ss:word", "reason": "test"})
        source = {"kind": "stream", "url": camera.url, "secret": "door"}
        world.set_pipelines("camera", [front(source)])
        wait_until(lambda: inferred(agent) > 0, what="inferences of the stream")
        camera.picture = jpeg(BLUE, size=(320, 240))
        before = [one["session"] for one in status(agent)["pipelines"] if "session" in one]
        wait_until(lambda: inferred(agent) > 5, what="inferences of the larger pictures")
        assert before == [one["session"] for one in status(agent)["pipelines"] if "session" in one]
        assert condition(agent, "source_lost") is None
        assert condition(agent, "inference_error") is None
        camera.is_cut.set()
        camera.is_silent.set()
        lost = wait_until(lambda: condition(agent, "source_lost"), what="the silent camera told")
        assert "p@ss" not in json.dumps(status(agent))
        assert "cable" in lost["advice"]
        camera.is_cut.clear()
        camera.is_silent.clear()
        wait_until(lambda: inferred(agent) > 0 and condition(agent, "source_lost") is None, what="the camera's return")


def test_a_broker_that_cannot_be_reached_or_refuses_is_told_while_the_agent_goes_on(start, world: World):
    agent = start("refused", is_linked=True)
    agent.links[1].cut()
    told = wait_until(lambda: condition(agent, "broker_unreachable"), what="the cut told")
    assert str(agent.links[1].port) in told["text"]
    assert "firewall" in told["advice"]
    wait_until(lambda: inferred(agent) > 0, what="inferences while cut off")
    _, etag = world.people["operator"].get_with_etag("/devices/refused")
    world.people["operator"].send("POST", "/devices/refused/revoke", {"reason": "test"}, etag=etag)
    agent.links[1].restore()
    # with TLS 1.3 a refused certificate shows as a connection that is closed before any answer
    wait_until(lambda: "certificate" in broker_texts(agent), what="the refusal told")
    wait_until(lambda: inferred(agent) > 0, what="inferences of a device that nobody wants any more")


def test_a_clock_that_is_years_off_is_told_and_the_agent_infers_connects_and_updates(start, world: World):
    agent = start("late")
    world.children.stop("late")
    world.children.start(
        "late", "agent.cli", "run", "--config", str(agent.config), environment={"MOORING_CLOCK": "2020-01-01T00:00:00+00:00,1"}
    )
    told = wait_until(lambda: condition(agent, "clock_unset"), what="the clock told")
    assert "2020-01-01" in told["text"]
    assert "NTP" in told["advice"]
    wait_until(lambda: inferred(agent) > 0 and status(agent)["connected"], what="inferences and the broker")
    assert condition(agent, "trust_refused") is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def stored_events(world: World, epoch: str) -> set[int]:
    """Numbers of all events of an outbox that the server has: more than the API shows at once."""
    with contextlib.closing(sqlite3.connect(f"file:{world.data_dir / 'fleet.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT seq FROM events WHERE json_extract(body, '$.epoch') = ?", (epoch,)).fetchall()
    return {int(row[0]) for row in rows}


def fill(path: Path) -> None:
    """Take all the room that there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_told_the_agent_infers_on_and_what_was_stored_arrives(start, world: World, small_disk: Path, video: Path):
    agent = start("full", is_linked=True)
    world.children.stop("full")
    subprocess.run(["cp", "-a", f"{agent.state_dir}/.", small_disk], check=True)
    agent.config.write_text(agent.config.read_text().replace(str(agent.state_dir), str(small_disk)))
    world.start_agent("full")
    world.set_pipelines("full", [front(loop(video), keep="all")])
    wait_until(lambda: inferred(agent) > 0, what="inferences on the small disk")
    agent.cut()
    filler = small_disk / "filler"
    fill(filler)
    told = wait_until(lambda: condition(agent, "disk_full"), what="the full disk told")
    assert str(small_disk) in told["text"]
    assert "Free space" in told["advice"]
    wait_until(lambda: inferred(agent) > 0, what="inferences with a full disk")
    filler.unlink()
    agent.restore()
    wait_until(lambda: condition(agent, "disk_full") is None, what="room again")
    world.set_pipelines("full", [])

    def is_quiet() -> bool:
        seen = status(agent)
        return seen["connected"] and not seen["pipelines"] and not seen["outbox"]["by_stream"].get("event", 0)

    wait_until(is_quiet, what="every stored event acknowledged, and no more to come")
    numbers = stored_events(world, ask(agent.folder / "run" / "control.sock", "outbox")["epoch"])
    assert len(numbers) > 1
    assert numbers == set(range(min(numbers), max(numbers) + 1))
