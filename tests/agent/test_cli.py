"""`mooring-agent` for people and scripts: exit statuses, JSON, answers with and without a running agent, and the doctor's advice."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from simulators.authority import Authority
from simulators.device import LINE, make_release
from simulators.device_api import DeviceApi
from waiting import wait_until

from agent import doctor
from agent.config import AgentConfig
from agent.doctor import Check, Verdict
from agent.service import Service
from agent.store import Store
from protocol.clock import SystemClock
from protocol.messages import LineState
from protocol.reasons import REASONS

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("MOORING_")}


@pytest.fixture
def run(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in a child, on folders of this test."""

    def execute(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        folders = {"MOORING_AGENT_STATE_DIR": str(tmp_path / "state"), "MOORING_AGENT_RUN_DIR": str(tmp_path / "run")}
        command = [sys.executable, "-m", "agent.cli", *arguments]
        return subprocess.run(
            command, env={**ENVIRONMENT, **folders, **environment}, capture_output=True, text=True, timeout=120, check=False
        )

    return execute


@pytest.fixture
def api(tmp_path, authority):
    with DeviceApi(tmp_path, authority) as running:
        yield running


def config_of(tmp_path: Path, **changes: Any) -> AgentConfig:
    (tmp_path / "state").mkdir(exist_ok=True)
    return AgentConfig.model_validate({"state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run"), **changes})


def verdicts(checks: list[Check]) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in checks}


def test_one_folder_is_enough_for_an_agent_without_root_unless_its_run_folder_is_set(tmp_path):
    def run_dir(**environment: str) -> str:
        command = [sys.executable, "-m", "agent.cli", "config", "show", "--json", "--state-dir", str(tmp_path)]
        done = subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout)["run_dir"]["value"]

    assert run_dir() == str(tmp_path / "run")
    assert run_dir(MOORING_AGENT_RUN_DIR="/run/elsewhere") == "/run/elsewhere"


def test_an_unknown_setting_is_exit_2_and_named(run):
    done = run("config", "check", MOORING_AGENT_UPDATE__POL_S="3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "update.pol_s" in done.stderr


def test_a_misspelt_provider_is_warned_of_with_the_nearest_names_and_stops_nothing(run):
    done = run("config", "check", "--set", 'runtime.providers=["xnnpak", "cpu"]')
    assert done.returncode == 0
    assert "warning: runtime.providers: 'xnnpak' is no provider that this agent knows; nearest: xnnpack" in done.stdout
    assert "(from flag)" in done.stdout
    document = json.loads(run("config", "check", "--json", "--set", 'runtime.providers=["openvino-gqu"]').stdout)
    assert document["ok"]
    assert [one["key"] for one in document["warnings"]] == ["runtime.providers"]
    assert "openvino-gpu" in document["warnings"][0]["text"]


def test_providers_as_they_are_documented_are_not_warned_of(run):
    done = run("config", "check", "--json", "--set", 'runtime.providers=["openvino-npu", "SNPEExecutionProvider", "cpu"]')
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "warnings": []})


def test_settings_are_shown_with_their_origin_and_without_secrets(run):
    done = run("config", "show", "--origin", "--set", "update.poll_s=5", MOORING_AGENT_SERVER__PROXY="http://u:hunter2@p:1")
    assert "update.poll_s = 5.0  # flag" in done.stdout
    assert 'server.proxy = "http://***@p:1"  # environment MOORING_AGENT_SERVER__PROXY' in done.stdout
    assert "hunter2" not in done.stdout
    document = json.loads(run("config", "show", "--json").stdout)
    assert document["update.poll_s"] == {"value": 900.0, "origin": "default"}


def test_wrong_usage_is_exit_2(run):
    assert run("fly").returncode == 2
    assert run("config", "show", "--set", "novalue").returncode == 2


@pytest.mark.parametrize("way", ["file", "environment", "argument"])
def test_enrollment_takes_the_token_from_a_file_the_environment_or_an_argument(run, api, tmp_path, way):
    token = api.invite()
    (tmp_path / "token").write_text(token + "\n")
    arguments = {"file": ["--token-file", str(tmp_path / "token")], "argument": ["--token", token], "environment": []}[way]
    environment = {"MOORING_AGENT_TOKEN": token} if way == "environment" else {}
    done = run("enroll", "--server", api.url, "--device", "cam-1", "--device-type", "sim", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "cam-1"
    assert token not in done.stdout + done.stderr
    found = json.loads(run("identity", "--json").stdout)
    assert (found["device"], found["server"]) == ("cam-1", api.url)
    assert api.requests[0].device_type == "sim"
    assert run("enroll", "--server", api.url, "--device-type", "sim", "--token", api.invite("t" * 30)).returncode == 5


def test_enrollment_says_what_is_wrong_and_exits_by_kind(run, api, free_port):
    used = api.invite()
    api.tokens[used] = False
    base = ["enroll", "--device-type", "sim"]
    assert run(*base, "--server", api.url, "--token", used).returncode == 4
    assert run(*base, "--server", f"https://127.0.0.1:{free_port}", "--token", used).returncode == 6
    assert run(*base, "--server", api.url, "--token", "nonsense").returncode == 2
    without = run(*base, "--server", api.url)
    assert without.returncode == 2
    assert "MOORING_AGENT_TOKEN" in without.stderr
    assert "--server" in run("enroll", "--token", used).stderr
    assert run("enroll", "--token-file", "/nonexistent").returncode == 2


def test_a_machine_that_nobody_gave_a_type_is_of_its_own_kind(run, api):
    assert run("enroll", "--server", api.url, "--token", api.invite()).returncode == 0
    assert api.requests[0].device_type.startswith("linux-")


def test_without_an_agent_status_reads_the_files(run, tmp_path):
    assert run("identity").returncode == 1
    done = run("status", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["running"], found["outbox"]) == (False, None)
    with Store(tmp_path / "state" / "outbox.db", clock=SystemClock()) as store:
        store.add("event", (), {"type": "x"})
    assert json.loads(run("status", "--json").stdout)["outbox"]["by_stream"] == {"event": 1}
    assert "1 rows" in run("outbox").stdout
    assert "does not run" in run("status").stdout


def test_with_an_agent_status_asks_it(run, tmp_path):
    service = Service(config_of(tmp_path), clock=SystemClock(), version="9", probe=list)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        found = wait_until(lambda: (done := run("status", "--json")).returncode == 0 and json.loads(done.stdout))
        assert (found["running"], found["version"], found["connected"]) == (True, "9", False)
        assert "not_enrolled" in {condition["code"] for condition in found["conditions"]}
        shown = run("status").stdout
        assert "mooring-agent enroll" in shown
        assert json.loads(run("outbox", "--json").stdout)["epoch"] == service.parts.store.epoch
    finally:
        service.stop()
        thread.join()


def test_the_runtimes_are_probed(run):
    found = {one["name"]: one["state"] for one in json.loads(run("probe", "--json").stdout)}
    assert set(found) == {"litert", "tflite", "onnx"}
    assert found["onnx"] == "ok"


def test_the_version_is_told(run):
    assert json.loads(run("version", "--json").stdout)["version"]


# --- doctor ---


def test_the_doctor_finds_everything_wrong_on_a_fresh_device(run):
    done = run("doctor", "--json")
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found["identity"]["verdict"] == "fail"
    assert "enroll" in found["identity"]["advice"]
    assert found["rt:onnx"]["verdict"] == "ok"
    assert {found[name]["verdict"] for name in ("server", "clock", "authority", "broker")} == {"skip"}
    assert all(check["advice"] for check in found.values() if check["verdict"] in {"fail", "warn"})


@pytest.mark.needs_broker
def test_the_doctor_is_content_with_a_device_that_is_well(tmp_path, broker, make_identity, api, video_file):
    source = {"kind": "video", "path": str(video_file)}
    config = config_of(tmp_path, pipelines=[{"name": "front", "line": "l", "source": source}])
    identity = make_identity(broker.url, server=api.url)
    identity.folder.rename(config.identity_dir)
    found = verdicts(doctor.examine(config))
    assert {found[name] for name in ("disk", "identity", "server", "clock", "authority", "broker", "source:front")} == {Verdict.OK}
    assert found["agent"] is Verdict.WARN  # it does not run


def test_the_doctor_says_how_far_the_device_follows_when_the_authority_is_replaced(make_identity, authority):
    identity, other = make_identity("mqtts://127.0.0.1:9"), Authority("the next one")
    old, new = authority.pem.decode(), other.pem.decode()
    day = f"renewed from {datetime.now(UTC) - timedelta(days=1) + timedelta(days=61) * 2 / 3:%Y-%m-%d} on"

    def look(trusted: str, served: str | None) -> tuple[Verdict, str]:
        identity.ca_path.write_text(trusted)
        found = doctor._authority(identity, served)
        return found.verdict, found.text

    assert look(old, old) == (Verdict.OK, f"One is trusted. The certificate is {day}.")
    assert look(old, None) == look(old, old)
    begun = look(old, old + new)  # the server began, this device has not followed
    assert begun[0] is Verdict.WARN
    assert "still trusts one" in begun[1]
    followed = look(old + new, old + new)
    assert followed == (
        Verdict.OK,
        f"It is being replaced; this device trusts 2; its certificate is of the one that issues now. The certificate is {day}.",
    )
    switched = look(old + new, new + old)
    assert switched[0] is Verdict.WARN
    assert "certificate is of the former one" in look(new + old, new + old)[1]
    assert look(new, new) == (Verdict.FAIL, "No authority that this device trusts issued its certificate.")
    assert look("nonsense", None)[0] is Verdict.FAIL


@pytest.fixture
def video_file(tmp_path) -> Path:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"x")
    return path


def test_the_doctor_names_what_does_not_answer(tmp_path, make_identity, free_port):
    config = config_of(tmp_path)
    identity = make_identity(f"mqtts://127.0.0.1:{free_port}", server=f"https://127.0.0.1:{free_port}")
    identity.folder.rename(config.identity_dir)
    checks = {check.name: check for check in doctor.examine(config)}
    assert checks["server"].verdict is Verdict.FAIL
    assert checks["broker"].verdict is Verdict.FAIL
    assert str(free_port) in checks["broker"].text


@pytest.mark.parametrize(
    ("source", "verdict", "word"),
    [
        ({"kind": "camera", "device": "/dev/video77"}, Verdict.FAIL, "missing; cameras here"),
        ({"kind": "video", "path": "/nonexistent.mp4"}, Verdict.FAIL, "missing"),
        ({"kind": "folder", "path": "/nonexistent"}, Verdict.FAIL, "No such file"),
        ({"kind": "stream", "url": "rtsp://u:hunter2@127.0.0.1:1/x"}, Verdict.FAIL, "***@127.0.0.1"),
        ({"kind": "sensor", "broker": "mqtt://127.0.0.1:1", "topic": "t", "fields": ["a"]}, Verdict.FAIL, "cannot be reached"),
        ({"kind": "stream", "url": "gopher://x"}, Verdict.FAIL, "cannot be reached"),
    ],
)
def test_the_doctor_looks_at_every_kind_of_source(tmp_path, source, verdict, word):
    config = config_of(tmp_path, pipelines=[{"name": "p", "line": "l", "source": source}])
    found = doctor._source(config.pipelines[0], None)
    assert found.verdict is verdict
    assert word in found.text
    assert "hunter2" not in found.text


def test_the_doctor_fails_a_folder_without_a_picture_and_counts_those_of_another(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    config = config_of(tmp_path, pipelines=[{"name": "p", "line": "l", "source": {"kind": "folder", "path": str(folder)}}])

    def look() -> tuple[Verdict, str]:
        found = doctor._source(config.pipelines[0], None)
        return found.verdict, found.text

    assert look() == (Verdict.FAIL, f"Folder {folder} holds no picture.")
    (folder / "readme.txt").write_text("no picture")
    assert look()[0] is Verdict.FAIL
    assert ".jpg" in doctor._source(config.pipelines[0], None).advice
    (folder / "1.jpg").write_bytes(b"x")
    assert look() == (Verdict.OK, f"{folder} holds 1 picture.")


def test_the_doctor_believes_the_running_agent_about_its_camera(tmp_path):
    config = config_of(tmp_path, pipelines=[{"name": "p", "line": "l", "source": {"kind": "camera", "device": "/dev/video77"}}])
    for state, verdict in (("running", Verdict.OK), ("lost", Verdict.FAIL)):
        status = {"pipelines": [{"pipeline": "p", "source_state": state, "source_text": "t"}]}
        assert doctor._source(config.pipelines[0], status).verdict is verdict


def test_the_doctor_looks_at_the_pipelines_that_the_server_set_and_not_at_those_of_the_files(tmp_path):
    config = config_of(tmp_path, pipelines=[{"name": "p", "line": "l", "source": {"kind": "camera", "device": "/dev/video77"}}])
    status = {
        "pipelines": [{"pipeline": "afar", "source_state": "lost", "source_text": "rtsp://10.0.0.7 is silent."}],
        "configuration": {"values": {"pipelines": {"afar": {}, "new": {}}}},
    }
    found = {check.name: (check.verdict, check.text) for check in doctor.sources(config, status)}
    assert found == {
        "source:afar": (Verdict.FAIL, "lost rtsp://10.0.0.7 is silent."),
        "source:new": (Verdict.SKIP, "From the server; the agent has no figures of it yet."),
    }
    assert [check.name for check in doctor.sources(config, None)] == ["source:p"]
    assert [check.name for check in doctor.sources(config_of(tmp_path), None)] == ["pipelines"]


@pytest.mark.parametrize(
    ("date", "offset_s", "verdict"),
    [("Wed, 25 Nov 2026 10:00:00 GMT", 0, Verdict.OK), ("Tue, 25 Nov 2025 10:00:00 GMT", 1, Verdict.FAIL), ("nonsense", 0, Verdict.SKIP)],
)
def test_the_doctor_compares_the_clock_with_the_servers(date, offset_s, verdict):
    found = doctor._clock(date, datetime(2026, 11, 25, 10, 0, 5, tzinfo=UTC))
    assert found.verdict is verdict
    assert (found.verdict is Verdict.FAIL) == bool(offset_s)


def test_the_doctor_warns_of_a_certificate_that_ends_soon(tmp_path, make_identity):
    identity = make_identity("mqtts://127.0.0.1:1")
    for days, verdict in ((0, Verdict.OK), (50, Verdict.WARN), (70, Verdict.FAIL)):
        assert doctor._certificate(identity, datetime.now(UTC) + timedelta(days=days)).verdict is verdict
    identity.certificate_path.write_text("")
    assert doctor._certificate(identity, datetime.now(UTC)).verdict is Verdict.FAIL


def test_the_doctor_measures_the_disk(tmp_path):
    assert doctor._disk(config_of(tmp_path)).verdict is Verdict.OK
    full = config_of(tmp_path, outbox={"budget_mb": 65_536}, update={"spare_disk_mb": 65_536})
    assert doctor._disk(full).verdict in {Verdict.OK, Verdict.FAIL}
    assert doctor._disk(AgentConfig(state_dir=tmp_path / "none")).verdict is Verdict.FAIL


def test_a_stream_that_answers_is_fine():
    with socket.create_server(("127.0.0.1", 0)) as camera:
        assert doctor._reachable("x", f"rtsp://127.0.0.1:{camera.getsockname()[1]}").verdict is Verdict.OK


# --- consent, and what an update waits for ---


@pytest.fixture
def waiting(tmp_path) -> Iterator[Service]:
    """A running agent whose update waits for a window of another day."""
    day = f"{datetime.now(UTC) + timedelta(days=3):%a}".lower()
    window = {"days": [day], "from": "01:00", "to": "02:00"}
    service = Service(
        config_of(tmp_path, update={"consent": "site", "download_windows": [window]}), clock=SystemClock(), version="1", probe=list
    )
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        service.parts.machine.offer(make_release("1.1", 2).assignment())
        wait_until(lambda: service.parts.machine.state_of(LINE).waits_for == "window", what="the window")
        yield service
    finally:
        service.stop()
        thread.join()


def test_status_says_what_an_update_waits_for_and_until_when(run, waiting):
    assert "The window for downloads opens at" in run("status").stdout
    (line,) = json.loads(run("status", "--json").stdout)["lines"]
    assert (line["state"], line["waits_for"]) == ("downloading", "window")
    assert line["until"] > 1000 * (datetime.now(UTC) + timedelta(days=1)).timestamp()


def test_a_no_ends_the_update_and_there_is_nothing_left_to_decide(run, waiting):
    done = run("consent", "digits", "--no")
    assert (done.returncode, done.stdout) == (0, "digits: 1.1 is given up.\n")
    wait_until(lambda: waiting.parts.machine.state_of(LINE).reason == "consent", what="the end")
    assert run("consent", "digits", "--yes").returncode == 3


def test_a_yes_is_remembered_with_its_assignment(run, waiting):
    said = json.loads(run("consent", "digits", "--yes", "--json").stdout)
    assert said == {"line": "digits", "release": "1.1", "assignment": "as-1", "given": True}
    assert waiting.parts.policy.said("digits", "as-1") is True


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("consent", "digits"), 2), (("consent", "digits", "--yes", "--no"), 2), (("consent", "No Name", "--yes"), 6)],
)
def test_consent_without_a_clear_answer_or_an_agent_says_so(run, arguments, status):
    assert run(*arguments).returncode == status


def test_status_says_which_settings_were_set_from_afar_and_by_whom():
    from agent.commands.status import show_configuration

    said: list[str] = []
    body = {
        "state": "returned",
        "group": "doors",
        "rev": 7,
        "values": {"log_level": "info", "pipelines": {"front": {"max_fps": 5.0, "keep": "all"}}},
        "origins": {"pipelines.*.max_fps": "fleet", "pipelines.front.keep": "device"},
        "ignored": {"group.zoom": "unknown key"},
        "returned": {"group": "doors", "rev": 8, "reason": "link_lost", "text": "300 s"},
    }
    show_configuration(body, said.append)
    assert said == [
        "  configuration: doors/7 (returned)",
        "    went back from doors/8: link_lost: 300 s",
        "    pipelines.front.max_fps = 5.0  # fleet",
        '    pipelines.front.keep = "all"  # device',
        "    and 1 values of the device itself; --json lists them",
        "    group.zoom is left out: unknown key",
    ]


def pipeline_figures(**changes: Any) -> dict[str, Any]:
    figures = {"pipeline": "door", "line": "person", "release": "1.0", "fps": 2.9, "lat_ms_p50": 1.1, "lat_ms_p99": 35.6, "grabbed": 51}
    figures |= {"window_s": 10.0, "dropped": {"rate_limited": 22, "decode_error": 0}, "asked": "onnx:cuda", "effective": "onnx:cpu"}
    return figures | {"source_state": "running", "source_text": "", "decoder": "cpu: h264 640x360, sub-stream"} | changes


def test_status_says_what_decodes_what_is_dropped_and_what_runs_instead_of_what_was_asked_for():
    from agent.commands.status import show_pipeline

    said: list[str] = []
    show_pipeline(pipeline_figures(source_text="rtsp://10.0.0.7/sub cannot be opened. The main stream is used."), said.append)
    assert said == [
        "  pipeline door: person 1.0, 2.9/s, 1.1/35.6 ms, onnx:cpu instead of onnx:cuda",
        "       source running, cpu: h264 640x360, sub-stream; 51 frames in 10 s, dropped 22 rate_limited",
        "       rtsp://10.0.0.7/sub cannot be opened. The main stream is used.",
    ]


def test_status_of_a_pipeline_without_a_model_says_whether_its_camera_gives_frames():
    from agent.commands.status import show_pipeline

    said: list[str] = []
    changes = {"release": None, "fps": 0.0, "lat_ms_p50": None, "lat_ms_p99": None, "asked": "", "effective": "", "decoder": ""}
    show_pipeline(pipeline_figures(**changes, dropped={"model_unavailable": 51}), said.append)
    assert said == ["  pipeline door: person no model, 0.0/s", "       source running; 51 frames in 10 s, dropped 51 model_unavailable"]


def test_status_names_pipelines_that_have_no_figures_yet_and_budgets_below_a_megabyte():
    from agent.commands.status import _show_status

    said: list[str] = []
    values = {"pipelines": {"door": {}, "yard": {}}}
    found = {
        "running": True,
        "connected": True,
        "device": "cam-1",
        "inference": "running",
        "uptime_s": 4.0,
        "version": "9",
        "pipelines": [pipeline_figures()],
        "configuration": {"state": "none", "values": values, "origins": {}, "ignored": {}},
        "slots": [],
        "outbox": None,
        "budget": {"day": "2026-11-30", "sent": 150_000, "received": 0, "written": 0, "bytes_per_day": 200_000, "writes_per_day": 0},
    }
    _show_status(found, said.append)
    assert "  pipeline yard: no figures yet" in said
    assert "  pipeline door: no figures yet" not in said
    assert said[-1] == "  2026-11-30: 0.1 of 0.2 MB exchanged with the server, 0.0 MB written"


@pytest.mark.parametrize(
    ("said", "line", "transfer"),
    [
        ({"state": "downloading", "progress": 40}, "1.2 -> 1.3 40 % (downloading)", "1234 bytes are fetched, the model as a delta"),
        (
            {"state": "downloading", "progress": 40, "waits_for": "window"},
            "1.2 -> 1.3 40 % (downloading)",
            "1234 bytes are to be fetched, the model as a delta",
        ),
        ({"state": "verifying", "progress": 100}, "1.2 -> 1.3 (verifying)", "1234 bytes were fetched, the model as a delta"),
        ({"state": "probing", "progress": 100}, "1.2 -> 1.3 (probing)", "1234 bytes were fetched, the model as a delta"),
        ({"state": "failed", "progress": 0}, "1.2 -> 1.3 (failed)", None),
    ],
)
def test_status_says_that_bytes_are_fetched_only_while_they_are(said, line, transfer):
    from agent.commands.status import _show_status

    lines: list[str] = []
    state = LineState(line="digits", desired="1.3", installed="1.2", transfer="delta", bytes_needed=1234, **said)
    found = {"running": False, "device": None, "tenant": None, "lines": [state.model_dump()], "slots": [], "outbox": None}
    _show_status(found, lines.append)
    assert lines[1:] == [f"  line digits: {line}", *([f"       {transfer}"] if transfer else [])]


def test_a_refused_stick_is_told_with_the_code_that_the_page_of_reasons_explains():
    from agent.commands.updates import show_import
    from agent.importing import ImportPhase, ImportState

    said: list[str] = []
    failed = ImportState(phase=ImportPhase.FAILED, code="bad-signature", text="The timestamp was signed by 0 of 1 keys.")
    show_import(asdict(failed) | {"running": True}, said.append)
    assert said == ["Nothing was taken: bad-signature: The timestamp was signed by 0 of 1 keys."]
    assert "bad-signature" in REASONS


def test_an_import_that_a_restarted_agent_has_forgotten_is_not_called_copied():
    from agent.commands.updates import show_import
    from agent.importing import ImportState

    said: list[str] = []
    show_import(asdict(ImportState()) | {"running": True}, said.append)
    assert said == ["The agent was started again meanwhile and has forgotten this import. Leave the stick in and import it once more."]
