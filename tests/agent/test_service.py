"""The whole control process against a real broker and a real HTTPS server: telemetry leaves, the twin is applied, trouble is told."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest
from simulators.color_models import make_slot
from simulators.device import make_release
from simulators.device_api import DeviceApi
from simulators.mosquitto import ServerSide
from simulators.videos import BLUE, GREEN, RED, write_video
from waiting import PATIENCE_S, wait_until

from agent.cli import main
from agent.config import AgentConfig
from agent.control import ask
from agent.duties.pictures import PREVIEW_TAKEN
from agent.identity import EnrollmentWish, Identity, enroll, parse_token
from agent.service import Service
from agent.slots import SlotContent, SlotFile, Slots
from agent.update.assignment import CheckError
from agent.update.poller import CheckState
from protocol.clock import SystemClock, to_unix_ms
from protocol.errors import DeviceError
from protocol.files import digest_of_file
from protocol.ids import LineName, ReleaseVersion
from protocol.messages import Event, Info, ModelState, Reported, RpcReply, RuntimeInfo, TelPerf, TelServing, TelSys
from protocol.sealed import seal, sealing_public_key, secret_context
from protocol.snapshots import SnapshotAnswer

pytestmark = pytest.mark.needs_broker
RUNTIMES = [RuntimeInfo(name="onnx", version="1", state="ok")]


@pytest.fixture
def api(tmp_path, authority, broker) -> Iterator[DeviceApi]:
    with DeviceApi(tmp_path, authority, broker_urls=(broker.url,)) as running:
        yield running


@pytest.fixture
def server(broker) -> Iterator[ServerSide]:
    with ServerSide(broker) as side:
        yield side


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "v.avi", [BLUE] * 10 + [GREEN] * 10 + [RED] * 10)


def pipeline(video: Path, **changes: Any) -> dict[str, Any]:
    return {"name": "front", "line": "color", "source": {"kind": "video", "path": str(video), "loop": True}, "max_fps": 20, **changes}


def settings(tmp_path: Path, **changes: Any) -> AgentConfig:
    base = {
        "state_dir": str(tmp_path / "state"),
        "run_dir": str(tmp_path / "run"),
        "telemetry": {"perf_s": 1, "sys_s": 1},
        "broker": {"reconnect_max_s": 0.3},
    }
    return AgentConfig.model_validate(base | changes)


def join(api: DeviceApi, config: AgentConfig) -> Identity:
    token = parse_token(api.invite())
    return enroll(config.identity_dir, EnrollmentWish(server=api.url, token=token, device_type="sim", device="cam-1"))


def install(config: AgentConfig, tmp_path: Path) -> None:
    """A committed color model in a slot."""
    folder = make_slot(tmp_path / "release")
    files = tuple(SlotFile(path.name, digest_of_file(path), path.stat().st_size) for path in sorted(folder.iterdir()))
    slots, line = Slots(config.slots_dir), LineName("color")
    slot = slots.write(SlotContent(line, ReleaseVersion("1.0"), 1, "onnx", files), {file.name: folder / file.name for file in files})
    slots.activate(line, slot.name)
    slots.commit(line)


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    running: list[tuple[Service, threading.Thread]] = []

    def run(config: AgentConfig, *, clock=None) -> Service:
        service = Service(config, clock=clock or SystemClock(), version="1.2.3", probe=lambda: RUNTIMES)
        thread = threading.Thread(target=service.run)
        thread.start()
        running.append((service, thread))
        return service

    yield run
    for service, thread in running:
        service.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def last(server: ServerSide, suffix: str, accept: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
    return wait_until(lambda: next((body for body in reversed(server.bodies(suffix)) if accept(body)), None), what=f"a message on {suffix}")


def codes(service: Service) -> set[str]:
    return {condition.code for condition in service.parts.conditions.active()}


def test_models_are_served_to_other_programs_counted_and_the_days_bytes_told(tmp_path, api, server, start):
    config = settings(tmp_path, serving={"listen": f"unix:{tmp_path}/oip"}, budget={"bytes_per_day": 10**12})
    join(api, config)
    install(config, tmp_path)
    service = start(config)
    assert service.parts.serving is not None
    wait_until(lambda: any(one.release == "1.0" for one in service.parts.serving.totals()), what="the model to be served")
    picture = {"name": "pixels", "shape": [1, 8, 8, 3], "datatype": "FP32", "data": [0.5] * 192}
    with httpx.Client(base_url="http://device", transport=httpx.HTTPTransport(uds=f"{tmp_path}/oip"), timeout=PATIENCE_S) as client:
        answer = client.post("/v2/models/color/infer", json={"inputs": [picture]}).json()
    assert answer["outputs"][0]["data"] == pytest.approx([0.5] * 3)
    told = TelServing.model_validate(last(server, "/tel/serving"))
    assert (told.line, told.release, told.answered, told.failed, told.backend) == ("color", "1.0", 1, 0, "onnx:cpu")
    assert ask(config.control_socket, "status")["serving"]["lines"][0]["answered"] == 1
    system = TelSys.model_validate(last(server, "/tel/sys", lambda body: body["day_sent"] > 1000))
    assert system.day_received > 1000
    assert codes(service).isdisjoint({"serving_down", "serving_not_ready", "budget_bytes"})


def test_a_device_with_a_model_reports_inference_events_and_itself(tmp_path, api, server, start, video):
    config = settings(tmp_path, pipelines=[pipeline(video)])
    join(api, config)
    install(config, tmp_path)
    service = start(config)
    perf = TelPerf.model_validate(last(server, "/tel/perf", lambda body: body["frames"] > 0))
    assert (perf.pipeline, perf.line, perf.release, perf.backend) == ("front", "color", "1.0", "onnx:cpu")
    system = TelSys.model_validate(last(server, "/tel/sys", lambda body: body["rss_mb"] > 0))
    assert system.disk_free_mb > 0
    event = Event.model_validate(last(server, "/event", lambda body: body["type"].endswith("class-changed.v1")))
    assert event.source == "/mooring/t0/cam-1"
    assert event.data["from"] != event.data["to"]
    assert wait_until(lambda: server.bodies("/inf/front"), what="predictions of class ring")
    info = Info.model_validate(last(server, "/info", lambda body: body["backends"] and body["runtimes"]))
    assert (info.device_type, info.agent_version, info.runtimes) == ("sim", "1.2.3", RUNTIMES)
    assert (info.backends[0].pipeline, info.backends[0].effective) == ("front", "onnx:cpu")
    model = ModelState.model_validate(last(server, "/model"))
    assert [(slot.line, slot.release, slot.active, slot.committed) for slot in model.slots] == [("color", "1.0", True, True)]
    report = wait_until(api.reports)[0]
    assert (report.device, report.slots[0].release, report.boot_id) == ("cam-1", "1.0", service.parts.store.boot_id)
    status = ask(config.control_socket, "status")
    assert status["device"] == "cam-1"
    assert status["connected"] is True
    assert status["pipelines"][0]["effective"] == "onnx:cpu"


def test_the_desired_config_is_applied_remembered_and_told_back(tmp_path, api, server, start, video):
    config = settings(tmp_path)
    join(api, config)
    service = start(config)
    desired = {
        "v": 1,
        "rev": 5,
        "config": {"pipelines": [pipeline(video), {"name": "bad"}], "telemetry": {"perf_s": 2}, "colour": 1},
    }
    server.command("cam-1", "desired", desired, retain=True)
    reported = Reported.model_validate(last(server, "/reported", lambda body: body["desired_rev"] == 5))
    assert [one["name"] for one in reported.config["pipelines"]] == ["front"]
    assert reported.config["telemetry"] == {"perf_s": 2.0, "sys_s": 1.0}
    assert set(reported.errors) == {"colour", "pipelines.1.line", "pipelines.1.source"}
    assert "desired_invalid" in {condition.code for condition in reported.conditions}
    TelPerf.model_validate(last(server, "/tel/perf"))
    service.stop()
    wait_until(lambda: not config.control_socket.exists())
    again = start(settings(tmp_path, broker={"url": "mqtts://127.0.0.1:1"}))  # offline: what was remembered must do
    wait_until(lambda: [one.pipeline for one in again.parts.measuring.stats] == ["front"])


def test_a_picture_is_shown_where_the_pipeline_allows_it_and_that_is_told(tmp_path, api, server, start, video, capsys):
    config = settings(tmp_path, pipelines=[pipeline(video, preview=True), pipeline(video, name="back")])
    join(api, config)
    install(config, tmp_path)
    start(config)
    assert wait_until(lambda: server.bodies("/inf/front"), what="predictions")
    target = tmp_path / "front.jpg"
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    wait_until(lambda: main(["snapshot", "front", "-o", str(target), *folders]) == 0, what="a picture")
    assert cv2.imread(str(target)).shape == (48, 64, 3)
    event = Event.model_validate(last(server, "/event", lambda body: body["type"] == PREVIEW_TAKEN))
    assert event.data == {"pipeline": "front", "asked_by": "somebody at the device", "bytes": target.stat().st_size}
    assert main(["snapshot", "back", "-o", str(target), *folders]) == 5
    assert main(["snapshot", "yard", "-o", str(target), *folders]) == 3
    assert "does not allow previews" in capsys.readouterr().err

    def ask_from_afar(number: int) -> RpcReply:
        exp = to_unix_ms(SystemClock().now()) + 300_000
        server.command("cam-1", "rpc/snapshot", {"v": 1, "id": f"look-{number}", "exp": exp, "args": {"pipeline": "front"}})
        return RpcReply.model_validate(last(server, "/rpc-reply", lambda body: body["id"] == f"look-{number}"))

    numbers = itertools.count()
    reply = wait_until(lambda: (found := ask_from_afar(next(numbers))).ok and found, what="a picture later than the pause between two")
    answer = SnapshotAnswer.model_validate(reply.result)
    assert (answer.picture()[:2], answer.width, answer.height) == (b"\xff\xd8", 64, 48)
    last(server, "/event", lambda body: body["type"] == PREVIEW_TAKEN and body["data"]["asked_by"] == "the server")
    assert [path.name for path in config.state_dir.rglob("*.jp*")] == []


def test_a_sealed_secret_reaches_the_source_and_never_the_wire(tmp_path, api, server, start):
    config = settings(tmp_path)
    identity = join(api, config)
    start(config)
    with socket.create_server(("127.0.0.1", 0)) as camera:
        public = sealing_public_key(identity.sealing_key())
        secrets = {
            "cam": seal(public, b"admin:hunter2", context=secret_context(identity.device, "cam")),
            "moved": seal(public, b"admin:hunter2", context=secret_context(identity.device, "other")),
        }
        source = {"kind": "stream", "url": f"http://127.0.0.1:{camera.getsockname()[1]}/video", "secret": "cam"}
        body = {"v": 1, "rev": 1, "config": {"pipelines": [{"name": "front", "line": "color", "source": source}], "secrets": secrets}}
        server.command("cam-1", "desired", body, retain=True)
        camera.settimeout(PATIENCE_S)

        def request_seen() -> str:
            connection, _ = camera.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                request = connection.recv(4096).decode()
                connection.sendall(b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="cam"\r\nContent-Length: 0\r\n\r\n')
                return request

        wait_until(lambda: "Authorization: Basic YWRtaW46aHVudGVyMg==" in request_seen(), what="the camera to see the password")
        reported = last(server, "/reported", lambda body: body["desired_rev"] == 1)
        assert set(reported["errors"]) == {"secrets.moved"}
        assert "hunter2" not in "".join(message.payload.decode() for message in list(server.messages) if "/d/" in message.topic)


def test_an_agent_that_is_not_enrolled_runs_and_joins_when_it_is(tmp_path, api, server, start, video):
    config = settings(tmp_path, pipelines=[pipeline(video)])
    service = start(config)
    wait_until(lambda: service.parts.store.counts().by_stream.get("tel"))
    assert "not_enrolled" in codes(service)
    join(api, config)
    wait_until(lambda: not config.control_socket.exists(), what="the service to end, to be wired anew")
    start(config)
    kinds = ("perf", "sys")  # whichever came first
    wait_until(lambda: any(body["seq"] == 0 for kind in kinds for body in server.bodies(f"/tel/{kind}")), what="the first row ever")


def test_a_clock_that_is_not_set_is_told_and_nothing_stops(tmp_path, api, server, start):
    class Year2020(SystemClock):
        def now(self):
            return super().now().replace(year=2020, month=1, day=1)

    config = settings(tmp_path)
    join(api, config)
    service = start(config, clock=Year2020())
    wait_until(lambda: "clock_unset" in codes(service))
    assert last(server, "/tel/sys", lambda body: body["clk"] == "unset")


@pytest.mark.parametrize(
    ("family", "code", "condition"),
    [
        ("TrustError", "freeze", "metadata_stale"),
        ("TrustError", "arbitrary-software", "trust_refused"),
        ("TransferError", "timeout", "update_check_failed"),
    ],
)
def test_a_check_that_fails_is_a_condition_of_its_kind_until_one_goes_well(tmp_path, start, family, code, condition):
    service = start(settings(tmp_path))
    service.parts.on_check(CheckState(error=CheckError(family, code, "As seen.")))
    assert condition in codes(service)
    text = next(one.text for one in service.parts.conditions.active() if one.code == condition)
    assert text == ("As seen." if family == "TransferError" else f"{code}: As seen.")
    service.parts.on_check(CheckState())
    assert condition not in codes(service)


def test_what_looks_like_an_attack_is_reported_at_once(tmp_path, api, server, start):
    config = settings(tmp_path)
    join(api, config)
    service = start(config)
    wait_until(api.reports)
    wait_until(lambda: service.parts.joined.reporter.sent == len(api.reports()))
    before = len(api.reports())
    service.parts.on_check(CheckState())
    service.parts.on_check(CheckState(attack_indicator="bad-signature"))
    wait_until(lambda: len(api.reports()) > before)


def test_a_full_disk_is_told_and_ends_without_loss(tmp_path, api, server, start):
    config = settings(tmp_path)
    join(api, config)
    service = start(config)
    wait_until(lambda: service.parts.store.counts().rows)
    store = service.parts.store
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    with store._lock:
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
    wait_until(lambda: service.parts.keep([_large_event()]) or "disk_full" in codes(service))
    with store._lock:
        store._connection.execute("PRAGMA max_page_count = 1000000")
    wait_until(lambda: "disk_full" not in codes(service))
    assert last(server, "/tel/sys", lambda body: body["outbox_dropped"].get("unstored", 0) > 0)


def _large_event():
    from agent.database.outbox import Draft

    return Draft("event", (), {"type": "x", "source": "y", "data": {"text": "z" * 20_000}})


def test_an_unreadable_outbox_is_moved_aside_and_told(tmp_path, api, server, start):
    config = settings(tmp_path)
    join(api, config)
    config.store_path.write_bytes(b"no database" * 1000)
    service = start(config)
    wait_until(lambda: "outbox_recreated" in codes(service))
    assert last(server, "/reported", lambda body: any(one["code"] == "outbox_recreated" for one in body["conditions"]))


def test_a_refused_report_is_a_condition(tmp_path, api, server, start):
    answer = api.answer
    api.answer = lambda method, path, body: (
        (403, b'{"type":"urn:mooring:problem:report-refused","title":"t","status":403,"detail":"The counter went back."}')
        if path == "/device/v1/report"
        else answer(method, path, body)
    )
    config = settings(tmp_path)
    join(api, config)
    service = start(config)
    found = wait_until(lambda: next((one for one in service.parts.conditions.active() if one.code == "report_refused"), None))
    assert "The counter went back." in found.text


def test_a_report_whose_nonce_was_lost_is_sent_again_with_the_one_just_given_until_it_counts(tmp_path, api, server, start):
    answer, seen = api.answer, []

    def stale_at_first(method, path, body):
        status, document = answer(method, path, body)
        if path == "/device/v1/report":
            seen.append(api.reports()[-1].nonce)
            document = json.dumps(json.loads(document) | {"nonce": f"n{len(seen)}", "stale": len(seen) <= 2}).encode()
        return status, document

    api.answer = stale_at_first
    config = settings(tmp_path)
    join(api, config)
    start(config)
    wait_until(lambda: len(seen) >= 2, what="the second report")
    assert seen[:2] == ["", "n1"]
    wait_until(lambda: len(seen) >= 3, what="another report after two that counted for nothing")
    assert seen[2] == "n2"


def test_reports_are_tried_again_until_the_server_takes_them(tmp_path, api, server, start):
    answer, fail = api.answer, threading.Event()
    api.answer = lambda method, path, body: (503, b"busy") if not fail.is_set() else answer(method, path, body)
    config = settings(tmp_path)
    token = parse_token(api.invite())
    fail.set()
    enroll(config.identity_dir, EnrollmentWish(server=api.url, token=token, device_type="sim", device="cam-1"))
    fail.clear()
    start(config)
    last(server, "/tel/sys")
    assert api.envelopes == []
    fail.set()
    reports = wait_until(api.reports)
    assert reports[0].update_state == "idle"
    assert reports[0].report_counter > 1_700_000_000


def test_two_agents_on_one_folder_are_refused(tmp_path, start):
    config = settings(tmp_path)
    start(config)
    wait_until(config.control_socket.exists)
    with pytest.raises(DeviceError, match="Another agent"):
        Service(config, clock=SystemClock(), version="1", probe=list).run()


def test_the_process_tells_systemd_and_ends_cleanly_on_sigterm(tmp_path, api, broker, server, video):
    config = settings(tmp_path)
    join(api, config)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(PATIENCE_S)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "200000",
            "MOORING_AGENT_PIPELINES": f'[{{name="front", line="color", source={{kind="video", path="{video}", loop=true}}}}]',
        }
        environment.pop("WATCHDOG_PID", None)
        command = [sys.executable, "-m", "agent.cli", "run", "--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
            heard = ""
            while "READY=1" not in heard:
                heard += supervisor.recv(4096).decode()
            while "WATCHDOG=1" not in heard or "STATUS=" not in heard:
                heard += supervisor.recv(4096).decode()
            assert last(server, "/status", lambda body: body["presence"] == "online")
            child.send_signal(signal.SIGTERM)
            _, log = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 0, log
        while "STOPPING=1" not in heard:
            heard += supervisor.recv(4096).decode()
    assert last(server, "/status", lambda body: body["presence"] == "offline")
    assert "Traceback" not in log
    assert "hunter2" not in log


def test_killed_at_any_time_it_loses_no_event(tmp_path, api, server, video):
    config = settings(tmp_path, pipelines=[pipeline(video)])
    join(api, config)
    install(config, tmp_path)
    source = f'{{kind = "video", path = "{video}", loop = true}}'
    (tmp_path / "agent.toml").write_text(f'[[pipelines]]\nname = "front"\nline = "color"\nkeep = "all"\nmax_fps = 20\nsource = {source}\n')
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(tmp_path / "agent.toml")]
    command += ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir), "--set", "outbox.resend_s=1"]
    for _ in range(4):
        before = len(server.bodies("/event"))
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as child:
            wait_until(lambda seen=before: len(server.bodies("/event")) > seen + 5)
            os.kill(child.pid, signal.SIGKILL)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:

        def gaps() -> set[int]:
            seqs = {body["seq"] for body in server.bodies("/event")}
            return set(range(max(seqs))) - seqs

        wait_until(lambda: not gaps(), what="every event stored before a kill to arrive")
        child.terminate()
    epochs = {body["epoch"] for body in server.bodies("/event")}
    assert len(epochs) == 1


def test_the_consoles_no_reaches_an_update_that_waits_and_the_signed_report_says_consent(tmp_path, api, server, start):
    config = settings(tmp_path, update={"consent": "site", "metered": True})
    join(api, config)
    service = start(config)
    offer = make_release("1.1", 2).assignment()
    service.parts.machine.offer(offer)
    shown = ModelState.model_validate(last(server, "/model", lambda body: body["lines"][0]["waits_for"] == "full_download"))
    assert (shown.lines[0].transfer, shown.lines[0].bytes_needed) == ("full", offer.lines[0].total_bytes)
    reported = last(server, "/reported", lambda body: "full_download_refused" in str(body["conditions"]))
    assert "whole models" in str(reported["conditions"])
    body = {"v": 1, "rev": 1, "config": {}, "consents": [{"line": "digits", "assignment": "as-1", "given": False}]}
    server.command("cam-1", "desired", body, retain=True)
    wait_until(lambda: any((one.update_state, one.reason) == ("failed", "consent") for one in api.reports()), what="the signed report")
    assert "full_download_refused" not in codes(service)
