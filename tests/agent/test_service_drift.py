"""Drift in the whole agent: from pictures over the inference process and the outbox to a real broker, and what is said of it."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from simulators.clock import FakeClock
from simulators.color_models import make_slot
from simulators.drift_rows import World, bring_profile, make_grid
from simulators.drift_rows import make_slot as make_profile
from simulators.mosquitto import ServerSide
from waiting import PATIENCE_S, wait_until

from agent.cli import main
from agent.config import AgentConfig, DriftConfig
from agent.control import ask
from agent.identity import load_identity
from agent.service import Service
from agent.slots import SlotContent, SlotFile, Slots
from protocol.clock import ENVIRONMENT_NAME, from_environment, to_unix_ms
from protocol.errors import InvalidError
from protocol.files import digest_of_file
from protocol.ids import LineName, ReleaseVersion
from protocol.messages import Desired, Drift, RuntimeInfo
from protocol.recordings import read_recording, verify_recording
from protocol.sketches.codec import SketchWindow, decode, read_head
from protocol.sketches.grid import Grid
from protocol.sketches.recording import decode_recording
from protocol.topics import parse

RUNTIMES = [RuntimeInfo(name="onnx", version="1", state="ok")]


def install(config: AgentConfig, folder: Path) -> None:
    files = tuple(SlotFile(path.name, digest_of_file(path), path.stat().st_size) for path in sorted(folder.iterdir()))
    slots, line = Slots(config.slots_dir), LineName("color")
    slot = slots.write(SlotContent(line, ReleaseVersion("1.0"), 1, "onnx", files), {file.name: folder / file.name for file in files})
    slots.activate(line, slot.name)
    slots.commit(line)


def write_noise(folder: Path) -> Path:
    """A folder of pictures in which no two are alike."""
    folder.mkdir()
    chance = np.random.default_rng(4)
    for number in range(40):
        assert cv2.imwrite(str(folder / f"{number:02}.png"), chance.integers(0, 255, (48, 64, 3), np.uint8))
    return folder


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour passes in six seconds, in this process and in the one that infers."""
    start = datetime.now(UTC) - timedelta(days=60)
    monkeypatch.setenv(ENVIRONMENT_NAME, f"{start.isoformat()},600")


@pytest.mark.needs_broker
def test_frames_become_hours_on_the_broker_that_stay_until_the_server_has_them(
    tmp_path: Path, broker: Any, make_identity: Any, hurried: None
):
    make_identity(broker.url)
    source = {"kind": "folder", "path": str(write_noise(tmp_path / "pictures")), "loop": True, "fps": 20}
    config = AgentConfig.model_validate(
        {
            "state_dir": tmp_path / "state-cam-1",
            "run_dir": tmp_path / "run",
            "pipelines": [{"name": "front", "line": "color", "source": source}],
        }
    )
    folder = make_slot(tmp_path / "release")
    grid = bring_profile(folder)
    install(config, folder)
    with ServerSide(broker) as server:
        service = Service(config, clock=from_environment(), version="1", probe=lambda: RUNTIMES)
        thread = threading.Thread(target=service.run)
        thread.start()
        try:
            topic, payload = wait_until(lambda: first_hour(server, grid), what="an hour with rows")
            window = decode(payload, grid)
            assert parse(topic).levels == ("sketch", "front", window.window_id)
            assert window.nsub == 6
            assert 0 < window.counts.rows <= 3600
            assert window.counts.classes.sum() == window.counts.rows
            assert window.model.hex() == digest_of_file(folder / "model.onnx").removeprefix("sha256:")[:32]
            told = wait_until(lambda: drift_told(server), what="the state topic with the watched model")
            assert (told.pipelines[0].grade, told.pipelines[0].grid, told.state) == ("collecting", grid.grid_id.hex(), "ok")
            shown = ask(config.control_socket, "status")["drift"]
            assert (shown["pipelines"][0]["model"], shown["enabled"]) == (window.model.hex(), True)
            assert in_outbox(service, window)
            wait_until(lambda: acknowledged(server, service, window), what="the acknowledged hour to leave the outbox")
        finally:
            service.stop()
            thread.join(PATIENCE_S)
        assert not thread.is_alive()


def first_hour(server: ServerSide, grid: Grid) -> tuple[str, bytes] | None:
    for message in list(server.messages):
        if "/sketch/" in message.topic and read_head(message.payload).rows:
            return message.topic, message.payload
    return None


def drift_told(server: ServerSide) -> Drift | None:
    bodies = [Drift.model_validate(body) for body in server.bodies("/drift")]
    return next((body for body in bodies if body.pipelines and body.pipelines[0].model), None)


def acknowledged(server: ServerSide, service: Service, window: SketchWindow) -> bool:
    """Acknowledge every revision of the window that came by now: a loop that stood still sends the hour again with what it closed late."""
    heads = [read_head(message.payload) for message in list(server.messages) if "/sketch/" in message.topic]
    revs = {head.rev for head in heads if (head.w0, head.nsub) == (window.w0, window.nsub)}
    keys = [["front", window.window_id, 0, rev] for rev in sorted(revs)]
    server.command("cam-1", "ack", {"v": 1, "epoch": service.parts.store.epoch, "streams": {}, "sketch": keys})
    return not in_outbox(service, window)


def in_outbox(service: Service, window: SketchWindow) -> bool:
    with service.parts.store.looking() as connection:
        return connection.execute("SELECT 1 FROM outbox WHERE levels = ?", (f"front/{window.window_id}",)).fetchone() is not None


# --- the control process alone ---


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock) -> Iterator[Service]:
    """Wired and not running: the test is its control loop."""
    pipelines = [{"name": "front", "line": "pets", "source": {"kind": "stream", "url": "rtsp://127.0.0.1:1/x"}}]
    config = AgentConfig.model_validate({"state_dir": tmp_path / "state", "run_dir": tmp_path / "run", "pipelines": pipelines})
    made = Service(config, clock=clock, version="1", probe=list)
    made._apply_desired()
    yield made
    made.parts.store.close()


def states(service: Service) -> list[Drift]:
    rows = [json.loads(row.payload) for row in service.parts.store.next_batch(100) if row.stream == "drift"]
    return [Drift.model_validate(row) for row in rows]


def work(service: Service, clock: FakeClock, world: World, *, rows: int, every_s: float = 50.0) -> None:
    for _ in range(rows):
        clock.advance(every_s)
        service.parts.drift.add(world.row(clock.monotonic()))
        service._tick()


def test_a_release_without_a_reference_profile_is_told_as_not_watched(service: Service):
    service._tick()
    (told,) = states(service)
    assert [(one.pipeline, one.grade, one.model) for one in told.pipelines] == [("front", "none", "")]
    assert service.parts.drift._watch is None  # and costs nothing


def test_rows_make_the_state_topic_conditions_and_status_speak(service: Service, clock: FakeClock, tmp_path: Path):
    grid = make_grid()
    world = World(grid, make_profile(tmp_path / "slot", grid), mean=5.0, deviation=0.1)
    work(service, clock, world, rows=15)
    (told,) = states(service)
    assert (told.pipelines[0].grade, told.pipelines[0].release) == ("collecting", "1.0")
    assert {one.code for one in service.parts.conditions.active()} >= {"frame_black"}
    assert service.status()["drift"]["pipelines"][0]["step_s"] == 8


def test_the_twin_sets_what_is_asked_of_the_check_and_a_bad_wish_is_told(service: Service):
    service.parts.twin.take(Desired(rev=1, config={"drift": {"false_alarms_per_year": 0.2, "check": "server", "indoor": "perhaps"}}))
    service._apply_desired()
    assert service.status()["drift"]["false_alarms_per_year"] == 0.2
    assert service.parts.drift.body()["check"] == "server"
    assert "drift.indoor" in service.parts.twin.in_force.errors


def test_a_device_that_is_told_not_to_watch_asks_for_no_rows(tmp_path: Path, clock: FakeClock):
    pipelines = [{"name": "front", "line": "pets", "source": {"kind": "stream", "url": "rtsp://127.0.0.1:1/x"}}]
    settings = {"state_dir": tmp_path / "state", "run_dir": tmp_path / "run", "pipelines": pipelines, "drift": {"enabled": False}}
    made = Service(AgentConfig.model_validate(settings), clock=clock, version="1", probe=list)
    made._apply_desired()
    made._tick()
    assert made.parts.inference._steps == {}
    assert made.parts.drift.body()["pipelines"][0]["grade"] == "off"
    made.parts.store.close()


def test_a_device_that_is_told_to_watch_no_more_says_off_and_misses_no_frames(service: Service, clock: FakeClock, tmp_path: Path):
    grid = make_grid()
    work(service, clock, World(grid, make_profile(tmp_path / "slot", grid)), rows=5)
    assert service.parts.drift.body()["pipelines"][0]["grade"] == "collecting"
    service.parts.drift.configure(DriftConfig(enabled=False), service.parts.twin.in_force.config.pipelines)  # as by a signed configuration
    for _ in range(20):
        clock.advance(30.0)
        service._tick()
    assert service.parts.drift.body()["pipelines"][0]["grade"] == "off"
    assert "frame_missing" not in {one.code for one in service.parts.conditions.active()}
    assert states(service)[-1].pipelines[0].grade == "off"


def test_what_drift_cannot_read_of_its_own_stops_nothing_else(service: Service, clock: FakeClock, tmp_path: Path):
    grid = make_grid()
    world = World(grid, make_profile(tmp_path / "slot", grid))
    work(service, clock, world, rows=3)
    service.parts.drift._watch.stop()
    with service.parts.store.writing() as writing:
        writing.execute("UPDATE drift_windows SET body = x'00'")
    service.parts.drift._watch = None  # the next one goes on with what is there
    work(service, clock, world, rows=40)
    assert service.parts.drift.figures()["lost"] > 0
    assert service.parts.drift.body()["pipelines"][0]["grade"] == "collecting"
    with service.parts.store.looking() as connection:
        closed = connection.execute("SELECT count(*) FROM drift_windows WHERE rows > 0 AND flags & 4 = 0").fetchone()[0]
    assert closed >= 2


def test_a_review_that_cannot_read_the_past_stops_nothing_else(
    service: Service, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def damaged(*_args: object) -> bool:
        raise InvalidError("A window that is no map; wanted a map.")

    monkeypatch.setattr("agent.drift.references.wants_grid", damaged)
    grid = make_grid()
    work(service, clock, World(grid, make_profile(tmp_path / "slot", grid)), rows=30)
    with service.parts.store.looking() as connection:
        assert connection.execute("SELECT count(*) FROM drift_windows WHERE rows > 0 AND flags & 4 = 0").fetchone()[0] >= 2
    service.parts.drift.stop()


def test_more_rows_than_may_wait_for_the_control_loop_are_counted(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("agent.drift.desk.MAX_ROWS", 2)
    grid = make_grid()
    world = World(grid, make_profile(tmp_path / "slot", grid))
    for _ in range(5):
        service.parts.drift.add(world.row(0.0))
    assert service.parts.drift.figures()["lost"] == 3


def test_kept_sub_windows_are_copied_into_a_file_that_the_device_signs(
    service: Service, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_identity: Any
):
    grid = make_grid()
    world = World(grid, make_profile(tmp_path / "slot", grid))
    work(service, clock, world, rows=40)
    file = tmp_path / "recording.cbor"
    command = ["drift", "record", "--days", "36500", "-o", str(file), "--state-dir", str(tmp_path / "state"), "--json"]
    assert main(command) == 1
    assert "not enrolled" in capsys.readouterr().err
    assert not file.exists()
    make_identity("mqtts://127.0.0.1:1").folder.rename(tmp_path / "state" / "identity")
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    brought = read_recording(file.read_bytes())
    statement = verify_recording(load_identity(tmp_path / "state" / "identity").signing_key().public_key(), brought)
    assert (said["device"], statement.device, statement.tenant) == ("cam-1", "cam-1", "t0")
    assert abs(statement.recorded_at - to_unix_ms(from_environment().now())) < 3_600_000
    recorded = decode_recording(brought.body)
    assert len(recorded) == said["subwindows"] >= 3
    assert {one.grid for one in recorded} == {grid}
    assert sum(one.window.counts.rows for one in recorded) > 30
    assert said["complete_days"] == {"front": 0}
    assert main([*command, "--pipeline", "back"]) == 3
    assert "No sub-windows of pipeline back of the last 36500 days are kept here. There are some of front." in capsys.readouterr().err
    assert main([one for one in command if one != "--json"]) == 0
    assert "learns no reference from it yet: front has 0 complete days, wanted 14." in capsys.readouterr().out


@pytest.mark.parametrize("days", ["0", "-3", "x", "1.5", "36501"])
def test_a_recording_of_days_that_are_none_is_a_usage_error(days: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["drift", "record", "--days", days, "-o", str(tmp_path / "x")])
    assert (ended.value.code, "wanted a whole number from 1 to 36500" in capsys.readouterr().err) == (2, True)


def test_drift_is_shown_in_words(service: Service, clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from agent.commands.drift import show_drift

    lines: list[str] = []
    show_drift(service.parts.drift.figures(), lines.append)
    assert lines == ["drift front: not watched: its release brings no reference profile"]
    grid = make_grid()
    work(service, clock, World(grid, make_profile(tmp_path / "slot", grid)), rows=3)
    figures = service.parts.drift.figures()
    one = figures["pipelines"][0]
    raised = one | {
        "grade": "calibrated",
        "state": "raised",
        "threshold": 52_560.0,
        "evidence": 60_000.0,
        "features": [{"name": "image.sharpness"}],
        "look": "all-3h",
        "stretch": 18,
    }
    by_classes = raised | {"look": "classes-1h", "stretch": 6, "features": [{"name": "classes"}]}
    at_once = raised | {"look": "all-10min", "stretch": 1}
    lines.clear()
    show_drift({**figures, "pipelines": [one, raised, by_classes, at_once], "lost": 4}, lines.append, "  ")
    assert lines == [
        "  drift front: learning what is normal here, 0 of 14 complete days",
        "  drift front: watched, evidence 6e+04 of 5.26e+04; DRIFT raised in the mean of 3 hours: image.sharpness",
        "  drift front: watched, evidence 6e+04 of 5.26e+04; DRIFT raised in the shares of classes of an hour: classes",
        "  drift front: watched, evidence 6e+04 of 5.26e+04; DRIFT raised in ten minutes: image.sharpness",
        "  drift: 4 rows were lost or skipped",
    ]
