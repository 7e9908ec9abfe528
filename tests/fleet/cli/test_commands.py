"""The command line against a running server: what it prints where, how it asks, and with what it ends."""

import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from console_site import DEVICE_TYPE, DIGITS, PASSWORD, ConsoleSite, running_site
from simulators.enrolling import EnrollingDevice
from simulators.sketches import W0, SketchDevice, add_profile, counts

import fleet.cli
from fleet.cli import credentials
from protocol.bundle import INDEX, REPORTS_FORMAT, ReportFile, write_document
from protocol.clock import to_unix_ms
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.messages import VersionReport
from protocol.recordings import sign_recording
from protocol.reports import sign_report
from protocol.sketches.codec import encode
from protocol.sketches.recording import encode_recording


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("server")) as site:
        site.person("ola", "operator")
        site.person("maria", "approver", "auditor")
        site.person("root", "admin")
        site.enroll("cam-1")
        site.online("cam-1", source_lost="error")
        site.runs("cam-1", "1.0")
        yield site


@pytest.fixture
def run(site: ConsoleSite, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command as a person who is logged in."""

    def command(*arguments: str, user: str = "ola", stdin: str = "", **environment: str) -> Result:
        home = tmp_path / user
        for name, value in {"XDG_CONFIG_HOME": str(home), "MOORING_SERVER": site.url, "MOORING_TOKEN": "", **environment}.items():
            monkeypatch.setenv(name, value)
        if user and not credentials.config_file().exists() and arguments[0] != "login":
            monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
            assert fleet.cli.run(["login", "--user", user, "--password-stdin"]) == 0
            capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = fleet.cli.run(list(arguments))
        return Result(code, *capsys.readouterr())

    return command


def test_a_login_is_kept_for_this_user_alone_and_never_printed(run: Run):
    done = run("login", "--user", "ola", "--password-stdin", stdin=PASSWORD + "\n")
    assert done.code == 0, done.err
    path = credentials.config_file()
    kept = json.loads(path.read_text())
    token = kept["tokens"][os.environ["MOORING_SERVER"]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert token not in done.out + done.err
    assert run("logout").code == 0
    assert run("device", "list", user="").code == 4


def test_lists_are_tables_for_people_and_json_for_programs(run: Run):
    table = run("device", "list")
    assert table.code == 0
    assert table.out.splitlines()[0].split()[:3] == ["DEVICE", "PRESENCE", "HEALTH"]
    assert "\x1b" not in table.out
    rows = run("device", "list", "--json").document
    assert rows[0]["device"] == "cam-1"
    assert rows[0]["health"] == "failed"
    shown = run("device", "show", "cam-1")
    assert "source_lost" in shown.out
    assert "slot a: 1.0 (active, committed)" in shown.out
    assert re.search(r"certificate +until \d{4}-\d\d-\d\d", shown.out)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("device", "show", "nope"), 3, "no device 'nope'"),
        (("device", "frobnicate"), 2, "No such command"),
        (("device", "list", "--bogus"), 2, "No such option"),
        (("user", "create", "x", "--permission", "viewer"), 4, "users:write"),
        (("group", "create", "default"), 5, "default"),
        (("group", "create", "Not A Name"), 1, "not a valid name"),
        (("approval", "decide", "apr-1", "--approve"), 1, "--reason"),
        (("campaign", "create", "--line", "l", "--release", "1", "--group", "default", "--yes"), 1, "--yes needs --reason"),
        (("campaign", "create", "--line", "l", "--release", "1", "--group", "default"), 1, "Nobody is there to ask"),
        (("release", "create", "l", "1", "--model", "@x"), 1, "names no model"),
    ],
)
def test_each_way_to_fail_has_its_exit_code_and_says_why_on_stderr(run: Run, arguments: tuple[str, ...], code: int, told: str):
    done = run(*arguments)
    assert (done.code, done.out) == (code, ""), done
    assert told in done.err


def test_a_server_that_is_not_there_is_worth_a_retry(run: Run):
    done = run("device", "list", user="", MOORING_SERVER="http://127.0.0.1:1", MOORING_TOKEN="mrt1.x.y")
    assert done.code == 6
    assert "Is `mooring serve` running there?" in done.err


def test_an_invitation_is_data_and_its_explanation_talk(run: Run):
    done = run("device", "invite", "--device-type", DEVICE_TYPE, user="root")
    assert done.code == 0, done.err
    assert done.out.startswith("mooring-agent enroll --server https://")
    assert len(done.out.splitlines()) == 1
    assert "mrg1." not in done.err


def test_from_a_model_file_to_an_approved_and_signed_release(run: Run, site: ConsoleSite, tmp_path: Path):
    model, manifest = DIGITS / "models" / "1.0" / "onnx" / "model.onnx", DIGITS / "onnx.toml"
    golden = DIGITS / "models" / "1.0" / "onnx" / "golden.cbor"
    more = ("--golden", str(golden)) if golden.exists() else ()
    imported = run("model", "import", str(model), "--manifest", str(manifest), "--name", "digits-onnx", *more)
    assert imported.code == 0, imported.err
    model_id = imported.out.strip()
    assert model_id == "digits-onnx.1"
    made = run("release", "create", "digits", "1.0", "--model", f"{model_id}@{DEVICE_TYPE}", "--json")
    assert made.document["state"] == "draft"
    approval = run("release", "propose", "digits", "1.0").out.strip()
    assert run("approval", "decide", approval, "--approve", "--reason", "mine").code == 4
    assert run("approval", "decide", approval, "--approve", "--reason", "read it", user="maria").code == 0
    key = site.ground.registry.folders.line_key_file("digits")
    signed = run("release", "sign", "digits", "1.0", "--key", str(key), user="maria")
    assert signed.code == 0, signed.err
    assert run("release", "publish", "digits", "1.0", "--yes", "--reason", "go").code == 0
    assert run("release", "show", "digits", "1.0", "--json").document["state"] == "published"
    campaign = run("campaign", "create", "--line", "digits", "--release", "1.0", "--group", "default", "--yes", "--reason", "go")
    assert campaign.code == 0, campaign.err
    assert run("campaign", "show", campaign.out.strip(), "--json").document["total"] == 1
    assert run("campaign", "pause", campaign.out.strip(), "--reason", "wait").code == 0
    assert run("campaign", "abort", campaign.out.strip(), "--yes", "--reason", "enough").code == 0
    number, _, digest = run("audit", "verify", user="maria").out.strip().partition(":")
    assert run("audit", "verify", "--anchor", f"{number}:{digest}", user="maria").code == 0
    assert run("audit", "verify", "--anchor", f"{number}:sha256:{'0' * 64}", user="maria").code == 4


def test_a_model_comes_with_a_folder_of_pictures_that_drift_is_judged_by(run: Run, tmp_path: Path):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV to write pictures")
    file, manifest = DIGITS / "models" / "1.0" / "onnx" / "model.onnx", DIGITS / "onnx.toml"
    asked = ("model", "import", str(file), "--manifest", str(manifest), "--name", "seen", "--evaluation", str(tmp_path / "seen"))
    (tmp_path / "seen").mkdir()
    few = run(*asked)
    assert few.code == 1
    assert "There are 0 pictures" in few.err
    with np.load(DIGITS / "evaluation.npz") as kept:
        for index, frame in enumerate(kept["frames"][:128]):
            assert cv2.imwrite(str(tmp_path / "seen" / f"{index:03}.png"), frame)
    done = run(*asked, "--json")
    assert done.code == 0, done.err
    assert done.document["profile"]["name"] == "profile.cbor"
    assert done.document["evaluation"]["rows"] == 128
    assert "image.sharpness" in done.document["evaluation"]["features"]


def test_what_is_normal_for_a_device_is_learned_from_a_recording_that_a_device_signed(run: Run, site: ConsoleSite, tmp_path: Path):
    add_profile(site.services.database)
    device, path, bare = SketchDevice("cam-1"), tmp_path / "cam-8.recording", tmp_path / "bare.recording"
    first = W0 // 144 * 144 - 14 * 144
    seen = [counts(device.rng, 15) for _ in range(250)]
    windows = (device.sub_window(w0, seen[w0 % len(seen)]) for w0 in range(first, first + 14 * 144))
    bare.write_bytes(encode_recording({device.grid.grid_id.hex(): device.grid.encoded}, map(encode, windows)))
    about = {"device": DeviceId("cam-8"), "tenant": DEFAULT_TENANT, "recorded_at_ms": to_unix_ms(site.services.clock.now())}
    path.write_bytes(sign_recording(site.enroll("cam-8").key, bare.read_bytes(), **about))
    asked = ("drift", "reference", "import", "cam-1", str(path), "--from", "cam-8", "--pipeline", "front")
    assert "wants a reason" in run(*asked).err
    assert run(*asked, "--reason", "clean lens", user="maria").code == 4
    unsaid = run("drift", "reference", "import", "cam-1", str(path), "--pipeline", "front", "--reason", "clean lens")
    assert (unsaid.code, "is of cam-8; wanted one of cam-1" in unsaid.err, "--from cam-8" in unsaid.err) == (1, True, True)
    forged = tmp_path / "forged.recording"
    forged.write_bytes(sign_recording(EnrollingDevice().key, bare.read_bytes(), **about))
    refused = run("drift", "reference", "import", "cam-1", str(forged), "--from", "cam-8", "--pipeline", "front", "--reason", "clean lens")
    assert (refused.code, "signed with another key" in refused.err) == (4, True)
    wrong = run("drift", "reference", "import", "cam-8", str(path), "--pipeline", "back", "--reason", "clean lens")
    assert wrong.code == 3
    assert "nothing of pipeline back" in wrong.err
    done = run(*asked, "--reason", "clean lens", "--json")
    assert done.code == 0, done.err
    found = done.document
    assert (found["grade"], found["source"], found["days"], found["windows"]) == ("provisional", "signed-recording", 14, 14 * 144)
    (entry,) = (one for one in run("audit", "list", "--json", user="maria").document if one["action"] == "drift.reference-stored")
    assert (entry["subject"], entry["detail"]["recorded_by"]) == ("device/cam-1", "cam-8")
    assert found["reference"] == entry["detail"]["reference"]


def test_a_recording_that_nobody_signed_is_learned_from_when_that_is_said(run: Run, site: ConsoleSite, tmp_path: Path):
    add_profile(site.services.database)
    device, path = SketchDevice("cam-9"), tmp_path / "cam-9.recording"
    site.enroll("cam-9")
    first = W0 // 144 * 144 - 14 * 144
    seen = [counts(device.rng, 15) for _ in range(250)]
    windows = (device.sub_window(w0, seen[w0 % len(seen)]) for w0 in range(first, first + 14 * 144))
    path.write_bytes(encode_recording({device.grid.grid_id.hex(): device.grid.encoded}, map(encode, windows)))
    asked = ("drift", "reference", "import", "cam-9", str(path), "--pipeline", "front", "--reason", "made by a script")
    refused = run(*asked)
    assert (refused.code, "Nobody signed the recording" in refused.err, "--unsigned" in refused.err) == (1, True, True)
    done = run(*asked, "--unsigned")
    assert (done.code, "It is provisional, from an unsigned recording." in done.err) == (0, True), done.err


def test_pipelines_are_read_from_a_file_and_replaced_as_a_whole(run: Run, tmp_path: Path):
    path = tmp_path / "pipelines.json"
    path.write_text(json.dumps([{"name": "side", "line": "digits", "source": {"kind": "folder", "path": "/srv"}}]))
    done = run("device", "pipelines", "cam-1", "--set", str(path), "--yes", "--reason", "new camera", "--json")
    assert [one["name"] for one in done.document] == ["side"]
    path.write_text("{")
    assert run("device", "pipelines", "cam-1", "--set", str(path), "--yes", "--reason", "x").code == 1


def test_secrets_come_from_standard_input(run: Run):
    done = run("device", "secret", "cam-1", "rtsp", "--stdin", stdin="user:hunter2\n")
    assert done.code == 0, done.err
    assert "hunter2" not in done.out + done.err


def test_a_token_is_shown_once_and_works(run: Run):
    token = run("token", "create", "ci", "--scope", "devices:read").out.strip()
    assert run("device", "list", user="", MOORING_TOKEN=token).code == 0
    assert run("group", "list", user="", MOORING_TOKEN=token).code == 4
    assert token not in run("token", "list", "--json").out


def test_the_interface_is_printed_as_a_document(run: Run):
    assert run("api", "openapi", user="").document["openapi"] == "3.1.0"


def test_the_servers_own_commands_look_into_its_folder(run: Run, site: ConsoleSite, tmp_path: Path):
    data = str(site.services.config.data_dir)
    rows = run("keys", "status", "--data", data, "--json", user="").document
    assert {row["role"] for row in rows} >= {"image-root", "image-targets", "director-root", "image-timestamp"}
    assert any("NOT encrypted" in row["note"] for row in rows)
    assert run("keys", "status", "--data", str(tmp_path), user="").code == 3
    admitted = run("broker", "consumer", "grafana", "--suffix", "tel/#", "--data", data, "--json", user="").document
    assert Path(admitted["certificate"]).exists()
    rules = run("broker", "acl", "--data", data, user="").out
    assert "user consumer.grafana\ntopic read mooring/1/t0/f/#\ntopic read mooring/1/t0/d/+/tel/#" in rules
    assert run("db", "migrate", "--data", data, user="").code == 0
    findings = {one["what"]: one["state"] for one in run("doctor", "--data", data, "--json", user="").document}
    assert (findings["database"], findings["keys"], findings["authority"]) == ("ok", "warning", "ok")


def test_the_doctor_says_that_the_authority_is_being_replaced_and_what_comes_next(run: Run, tmp_path: Path):
    data = str(tmp_path / "data")

    def look() -> tuple[str, str, str]:
        found = {one["what"]: one for one in run("doctor", "--data", data, "--json", user="").document}["authority"]
        return found["state"], found["text"].split(";")[0].split(" issues")[0], found["advice"]

    assert look()[0] == "warning"
    (tmp_path / "data" / "pki").mkdir(parents=True)
    assert run("db", "migrate", "--data", data, user="").code == 0
    assert run("authority", "status", "--data", data, user="").code == 0
    assert look()[0] == "ok"
    for step, stage, following in (("begin", "begun", "switch"), ("switch", "switched", "finish")):
        assert run("authority", step, "--reason", "drill", "--data", data, user="").code == 0
        assert look() == ("warning", f"being replaced ({stage}):", f"mooring authority {following}")
    assert run("authority", "finish", "--reason", "drill", "--data", data, user="").code == 0
    assert look()[0] == "ok"


def test_a_setting_that_is_none_is_a_usage_error_that_names_it(run: Run, tmp_path: Path):
    done = run("serve", "--data", str(tmp_path), "--role", "dancer", user="")
    assert done.code == 2
    assert "roles" in done.err


def test_a_device_that_waits_says_what_for_what_to_do_and_what_it_has_in_its_slots(run: Run, site: ConsoleSite):
    site.enroll("cam-waits")
    site.online("cam-waits")
    slots = [
        {
            "line": "digits",
            "slot": slot,
            "active": slot == "b",
            "committed": False,
            "release": "1.0",
            "counter": 1,
            "sha256": f"sha256:{'a' * 64}",
        }
        for slot in "ab"
    ]
    line = {
        "line": "digits",
        "desired": "1.1",
        "installed": "1.0",
        "state": "waiting",
        "waits_for": "consent",
        "text": "Somebody says yes.",
    }
    site.say("cam-waits", "model", lines=[{**line, "transfer": "delta", "bytes_needed": 1234}], slots=slots, history=[])
    shown = run("device", "show", "cam-waits").out
    for wanted in (
        "waits for consent",
        "Somebody says yes.",
        "transfer: came as a delta of 1.2 kB",
        "slot a: 1.0 (inactive)",
        "slot b: 1.0 (active, on probation)",
    ):
        assert wanted in shown, wanted


def test_a_revoked_device_is_told_apart_from_one_that_is_online(run: Run, site: ConsoleSite):
    site.enroll("cam-gone")
    site.online("cam-gone")
    assert run("device", "revoke", "cam-gone", "--yes", "--reason", "stolen").code == 0
    shown, row = (
        run("device", "show", "cam-gone").out,
        next(row for row in run("device", "list").out.splitlines() if row.startswith("cam-gone")),
    )
    assert re.search(r"presence +revoked\n", shown)
    assert re.search(r"certificate +refused\n", shown)
    assert row.split()[1] == "revoked"
    document = run("device", "show", "cam-gone", "--json").document
    assert (document["state"], document["presence"]) == ("revoked", "offline")


def report_file(device: str, *reports) -> bytes:
    return write_document(ReportFile(format=REPORTS_FORMAT, device=device, reports=reports))


def test_a_stick_is_written_whole_once_and_reports_on_it_are_taken_once(run: Run, site: ConsoleSite, tmp_path: Path):
    enrolled = site.enroll("cam-stick")
    stick = tmp_path / "stick"
    made = run("bundle", "create", str(stick), "--group", "default", "--valid-days", "30", "--reason", "the hills", "--json")
    assert made.code == 0, made.err
    assert {"cam-1", "cam-stick"} <= set(made.document["devices"])
    assert {path.name for path in stick.iterdir()} == {"blobs", "devices", "director", "image", INDEX, "reports"}
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
    again = run("bundle", "create", str(stick), "--group", "default")
    assert (again.code, "exists already" in again.err) == (5, True)
    assert run("bundle", "create", str(tmp_path / "other"), "--group", "nobody").code == 3
    assert not (tmp_path / "other").exists()
    now = to_unix_ms(site.services.clock.now())
    report = VersionReport(device="cam-stick", tenant="t0", boot_id="b", report_counter=4, time=now, time_floor=now, update_state="idle")
    (stick / "reports" / "cam-stick.json").write_bytes(report_file("cam-stick", sign_report(enrolled.key, report)))
    taken = run("bundle", "import-reports", str(stick), "--json")
    assert (taken.code, [(row["counter"], row["result"]) for row in taken.document]) == (0, [(4, "taken")])
    assert [row["result"] for row in run("bundle", "import-reports", str(stick), "--json").document] == ["known"]


def test_what_is_no_report_on_a_stick_is_named_and_the_rest_is_taken(run: Run, site: ConsoleSite, tmp_path: Path):
    enrolled, stick = site.enroll("cam-hills"), tmp_path / "stick"
    reports = stick / "reports"
    reports.mkdir(parents=True)
    now = to_unix_ms(site.services.clock.now())
    values = {"tenant": "t0", "boot_id": "b", "report_counter": 1, "time": now, "time_floor": now, "update_state": "idle"}
    good = sign_report(enrolled.key, VersionReport(device="cam-hills", **values))
    (reports / "cam-hills.json").write_bytes(report_file("cam-hills", good))
    (reports / "cam-1.json").write_bytes(report_file("cam-1", good))
    (reports / "cam-2.json").write_bytes(report_file("cam-9", good))
    (reports / "cam-3.json").write_bytes(b"{")
    (reports / "cam-4.json").symlink_to("/etc/passwd")
    (reports / "\x1b[31mred.json").write_bytes(b"")
    os.mkfifo(reports / "cam-5.json")
    done = run("bundle", "import-reports", str(stick), "--json")
    results = {row["file"]: row["result"] for row in done.document}
    assert done.code == 1
    assert results.pop("cam-hills.json") == "taken"
    assert set(results.values()) == {"refused"}
    assert len(results) == 6
    assert "\x1b" not in run("bundle", "import-reports", str(stick)).out


def test_what_a_device_refused_out_of_the_servers_sight_is_told_when_its_report_comes(run: Run, site: ConsoleSite, tmp_path: Path):
    enrolled, reports = site.enroll("cam-lured"), tmp_path / "reports"
    site.online("cam-lured")
    reports.mkdir()
    now = to_unix_ms(site.services.clock.now())
    values = {"tenant": "t0", "boot_id": "b", "time": now, "time_floor": now, "update_state": "idle"}
    report = VersionReport(device="cam-lured", report_counter=1, attack_indicator="bad-signature", **values)
    (reports / "cam-lured.json").write_bytes(report_file("cam-lured", sign_report(enrolled.key, report)))
    assert run("bundle", "import-reports", str(tmp_path)).code == 0
    shown = run("device", "show", "cam-lured").out
    assert "error: trust_refused: bad-signature: Too few of the trusted keys signed the metadata." in shown
    assert "on a stick" in shown


def test_who_may_not_make_sticks_makes_none(run: Run, tmp_path: Path):
    assert run("bundle", "create", str(tmp_path / "stick"), "--group", "default", user="maria").code == 4
    (tmp_path / "empty").mkdir()
    assert "no reports" in run("bundle", "import-reports", str(tmp_path / "empty")).err
    assert run("bundle", "import-reports", str(tmp_path / "nowhere")).code == 3


def test_deltas_of_a_release_are_a_table_that_may_be_empty(run: Run, site: ConsoleSite):
    shown = run("release", "list", "--json").document[0]
    assert run("release", "deltas", shown["line"], shown["version"], "--json").document == []
    assert "None yet" in run("release", "deltas", shown["line"], shown["version"]).err
    assert run("release", "deltas", "digits", "99.9").code == 3


def test_an_administrator_sets_what_was_agreed_at_a_site_and_what_is_not_named_stays(run: Run):
    made = run("site", "create", "harbour", "--time-zone", "Europe/Berlin", "--max-updating", "3", user="root")
    assert made.code == 0, made.err
    assert run("site", "show", "harbour", "--json").document["consent"] == "deny"
    done = run("site", "set", "harbour", "--consent", "allow", "--reason", "agreed with the works council", user="root")
    assert (done.code, done.err) == (0, "Site harbour: pictures allow.\n")
    assert run("site", "set", "harbour", "--consent", "allow", user="root").err == "Nothing changed.\n"
    kept = run("site", "show", "harbour", "--json").document
    assert (kept["time_zone"], kept["consent"], kept["max_updating"]) == ("Europe/Berlin", "allow", 3)
    assert run("site", "set", "harbour", "--max-updating", "0", user="root").code == 0
    assert run("site", "show", "harbour", "--json").document["max_updating"] is None
    assert "harbour" in run("site", "list").out
    entries = [json.dumps(entry) for entry in run("audit", "list", "--json", user="maria").document if entry["subject"].endswith("harbour")]
    assert any("works council" in entry for entry in entries)


@pytest.mark.parametrize(
    ("user", "wish", "code", "text"),
    [
        ("ola", ("--consent", "allow"), 4, "sites:write"),
        ("root", ("--consent", "sometimes"), 1, "consent"),
        ("root", ("--time-zone", "Moon/Crater"), 1, "Moon/Crater"),
    ],
)
def test_rules_of_a_site_that_are_none_or_not_ones_own_to_set_are_refused(run: Run, user: str, wish: tuple[str, str], code: int, text: str):
    refused = run("site", "set", "default", *wish, user=user)
    assert refused.code == code
    assert text in refused.err
    assert run("site", "show", "default", "--json").document["consent"] == "deny"
