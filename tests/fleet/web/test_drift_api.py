"""Alarms and drift over the API and by the command line, over a device whose pictures became darker."""

import json
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from console_site import ConsoleSite, running_site
from simulators.clock import FakeClock
from simulators.darker_camera import add_drift, release_profile
from simulators.messages import body, incoming
from simulators.sketches import SketchDevice, add_profile
from simulators.sketches import profile as sketch_profile

import fleet.cli
from fleet.config import DriftConfig
from fleet.web.admin import alarms, drift
from protocol.clock import to_unix_ms
from protocol.sketches.codec import SUBWINDOW_MS, Source

#: A pipeline whose grid no release of the server brought.
STRAY = SketchDevice(device="cam-1", pipeline="stray", grid=replace(sketch_profile().grid, made_at_ms=2))

#: The shadow beside the pipeline that is watched.
CANDIDATE = SketchDevice(
    device="cam-1", pipeline="front", model=bytes.fromhex("c4" * 16), source=Source.SHADOW, grid=release_profile().grid
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("server"), clock=FakeClock()) as site:
        site.enroll("cam-1")
        site.online("cam-1")
        site.alarm = add_drift(site.ground.database, site.ingest, "cam-1", now=site.services.clock.now())
        site.tokens = SimpleNamespace(ola=site.api("ola", "operator"), vera=site.api("vera", "viewer"))
        yield site


@pytest.fixture
def run(site: ConsoleSite, tmp_path, capsys, monkeypatch):
    token = site.tokens.ola.headers["Authorization"].removeprefix("Bearer ")
    for name, value in {"XDG_CONFIG_HOME": str(tmp_path), "MOORING_SERVER": site.url, "MOORING_TOKEN": token}.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = fleet.cli.run(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_an_alarm_is_listed_paged_and_shown_to_who_may_see_it(site):
    vera, name = site.tokens.vera, site.alarm.alarm
    listed = vera.get("/alarms", params={"state": ["raised", "acknowledged"], "device": "cam-1"}).json()
    assert ([one["alarm"] for one in listed["items"]], listed["next"]) == ([name], None)
    assert vera.get("/alarms", params={"state": "cleared"}).json()["items"] == []
    assert vera.get("/alarms", params={"device": "cam-9"}).json()["items"] == []
    shown = vera.get(f"/alarms/{name}")
    assert shown.headers["etag"] == f'"{shown.json()["revision"]}"'
    assert (shown.json()["name"], shown.json()["cause"], shown.json()["false_alarms_per_year"]) == ("cam-1", "input", 1.0)
    assert vera.get("/alarms/al-x").status_code == 404
    assert vera.get("/alarms", params={"state": "open"}).status_code == 422


def test_what_drifted_is_seen_as_map_distributions_and_time_line(site):
    vera = site.tokens.vera
    (row,) = vera.get("/drift").json()["items"]
    assert (row["device"], row["alarm"], row["check"]) == ("cam-1", site.alarm.alarm, "device")
    assert all(0 <= cell["p"] <= 1 for cell in row["features"])
    path = f"/devices/cam-1/drift/{row['pipeline']}"
    shown = vera.get(path).json()
    assert shown["own_false_alarms_per_year"] is None
    assert sum(shown["distributions"][0]["now"]) == pytest.approx(1)
    assert vera.get(f"{path}/timeline").json()["points"]
    assert vera.get(f"{path}/references").json()["references"][0]["retired_at"] is None
    assert vera.get("/drift/distributions", params={"group": "default"}).json()["distributions"]
    assert vera.get("/drift/distributions", params={"group": "other"}).status_code == 404
    assert vera.get(path, params={"since": "2030-01-01T00:00:00Z", "until": "2029-01-01T00:00:00Z"}).status_code == 422
    assert vera.get("/devices/cam-1/drift/none").status_code == 404


def test_a_reference_from_a_recording_that_nobody_signed_is_told_as_such_by_api_and_command(run, site):
    vera = site.tokens.vera
    (row,) = vera.get("/drift").json()["items"]
    assert row["reference_source"] == "recording"
    assert vera.get("/devices/cam-1/drift/front").json()["state"]["reference_source"] == "recording"
    assert vera.get("/devices/cam-1/drift/front/references").json()["references"][0]["source"] == "recording"
    for command in (("drift", "show"), ("drift", "show", "cam-1", "--pipeline", "front")):
        assert "from an unsigned recording" in " ".join(run(*command)[1].split())


def test_windows_of_a_grid_that_no_release_brought_are_shown_with_what_they_wait_for(run, site):
    site.ingest(STRAY.message(STRAY.hour(to_unix_ms(site.services.clock.now()) // SUBWINDOW_MS // 6 * 6 - 6)))
    (row,) = site.tokens.vera.get("/drift/quarantine").json()["items"]
    grid = STRAY.grid.grid_id.hex()
    assert (row["device"], row["pipeline"], row["grid_id"], row["reason"], row["windows"]) == ("cam-1", "stray", grid, "unknown-grid", 1)
    assert row["since"] < row["until"]
    site.enroll("cam-7")
    assert site.tokens.vera.get("/drift/quarantine", params={"device": "cam-7"}).json()["items"] == []
    assert f"grid {grid} is unknown" in run("drift", "quarantine")[1]
    assert "Nothing was put aside." in run("drift", "quarantine", "cam-7")[2]


def test_an_alarm_that_only_the_device_knows_is_shown_unconfirmed_by_api_command_and_console(run, site):
    vera, now_ms = site.tokens.vera, to_unix_ms(site.services.clock.now())
    site.ingest(STRAY.message(STRAY.hour(now_ms // SUBWINDOW_MS // 6 * 6 - 6)))
    assert vera.get("/drift/unconfirmed").json()["items"] == []
    assert "Every alarm that a device has is known here." in run("drift", "unconfirmed")[2]
    told = {"pipeline": "stray", "line": "pets", "model": STRAY.model.hex(), "grid": STRAY.grid.grid_id.hex(), "state": "raised"}
    told |= {"raised_at": now_ms - 3_600_000, "stretch": 3, "reference": "ab" * 16, "threshold": 52_560.0, "evidence": 60_000.0}
    site.ingest(incoming("mooring/1/t0/d/cam-1/drift", body(10**6, state="raised", check="device", pipelines=[told])))
    (row,) = vera.get("/drift/unconfirmed", params={"device": "cam-1"}).json()["items"]
    assert (row["device"], row["pipeline"], row["stretch"], row["here"]) == ("cam-1", "stray", 3, 0)
    assert row["reason"] == f"Its windows wait for the release that brings grid {STRAY.grid.grid_id.hex()[:12]}."
    assert row["reason"] in run("drift", "unconfirmed", "cam-1")[1].replace("\n", " ")
    assert vera.get("/drift/unconfirmed", params={"device": "cam-9"}).json()["items"] == []
    site.person("una", "viewer")
    page = site.browser("una").get("/alarms").text
    assert "cam-1 / stray says that it crossed in the ten minutes from" in page
    assert "1 alarm of devices unconfirmed." in page


def test_what_a_candidate_in_the_shadow_sees_stands_beside_the_release_in_use(run, site):
    vera, database, now_ms = site.tokens.vera, site.ground.database, to_unix_ms(site.services.clock.now())
    path = "/devices/cam-1/drift/front/candidate"
    assert vera.get(path).status_code == 404
    before = vera.get("/drift").json()["items"]
    add_profile(database, release_profile(), model=CANDIDATE.model)
    site.ingest(CANDIDATE.message(CANDIDATE.hour(now_ms // SUBWINDOW_MS // 6 * 6 - 6)))
    found = vera.get(path).json()
    assert found["model"] == CANDIDATE.model.hex()
    assert {(one["rows"], one["reference_of"]) for one in found["distributions"]} == {(600, "model")}
    assert all(one["w1"] < 0.05 for one in found["distributions"])
    assert "image.brightness" in run("drift", "candidate", "cam-1", "front")[1]
    assert vera.get("/drift").json()["items"] == before, "of what devices act on nothing changed"
    site.person("cara", "viewer")
    page = site.browser("cara").get("/drift/cam-1/front").text
    assert "Candidate in the shadow" in page


def test_a_viewer_changes_nothing(site):
    vera, name = site.tokens.vera, site.alarm.alarm
    assert vera.post(f"/alarms/{name}/acknowledge", json={}).status_code == 403
    assert vera.post(f"/alarms/{name}/clear", json={"outcome": "condition", "reason": "x"}).status_code == 403
    assert vera.post("/devices/cam-1/drift/front/rebaseline", json={"reason": "x"}).status_code == 403
    assert vera.post("/labels", json={"labels": [{"device": "cam-1", "pipeline": "front", "right": True}]}).status_code == 403


@pytest.mark.parametrize(
    ("method", "path"), sorted((method, route.path) for part in (alarms, drift) for route in part.router.routes for method in route.methods)
)
def test_without_login_nothing_answers(site, method, path):
    answer = site.http.request(method, f"/api/v1{path}", json={} if method == "POST" else None)
    assert (answer.status_code, answer.json()["type"]) == (401, "urn:mooring:problem:unauthenticated")


def test_labels_become_a_measured_accuracy(site):
    pipeline = site.alarm.subject.pipeline
    labels = [
        {"label": f"l-{index}", "device": "cam-1", "pipeline": pipeline, "right": index % 10 > 0, "slice": "day"} for index in range(40)
    ]
    ola = site.tokens.ola
    assert ola.post("/labels", json={"labels": labels}).json() == {"labels": 40, "new": 40}
    assert ola.post("/labels", json={"labels": labels}).json() == {"labels": 40, "new": 0}
    measured = ola.get(f"/devices/cam-1/drift/{pipeline}").json()["measured"]
    assert [(one["slice"], one["right"], one["labels"]) for one in measured] == [("", 36, 40), ("day", 36, 40)]
    assert ola.post("/labels", json={"labels": []}).status_code == 422
    bad = [{"device": "cam-1", "pipeline": "none", "right": True}]
    assert ola.post("/labels", json={"labels": bad}).status_code == 404


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        (("alarm", "show", "promise"), 3, "There is no alarm 'promise'. Wanted an id as `mooring alarm list` shows it"),
        (("alarm", "show", "../devices"), 3, "There is no alarm '../devices'"),
        (("alarm", "show", ""), 3, "There is no alarm ''"),
        (("alarm", "show", "al-/../../devices"), 1, "'..' in '/alarms/al-/../../devices' is no name"),
        (("alarm", "list", "--device", "cam-9"), 3, "There is no device 'cam-9'"),
        (("alarm", "list", "--state", "open"), 1, "--state 'open' is no state of an alarm. Wanted: raised, acknowledged, cleared"),
        (("drift", "show", "cam-9"), 3, "There is no device 'cam-9'"),
        (("drift", "show", "--pipeline", "front"), 1, "mooring drift show DEVICE --pipeline P"),
        (("drift", "unconfirmed", "cam-9"), 3, "There is no device 'cam-9'"),
        (("drift", "quarantine", "cam-9"), 3, "There is no device 'cam-9'"),
    ],
)
def test_what_there_is_not_is_told_as_that_and_never_as_good_news(run, asked, code, told):
    found, out, said = run(*asked)
    assert (found, out) == (code, ""), said
    assert told in said


def test_a_list_that_is_empty_says_of_which_state(run):
    assert run("alarm", "list", "--state", "cleared")[2] == "No alarm is cleared.\n"


@pytest.mark.parametrize(
    ("until", "told"),
    [
        ("tomorrow", "--until 'tomorrow' is no moment. Wanted ISO 8601, e.g. 2026-12-24T18:00Z"),
        ("2020-01-01T00:00Z", "Muted until 2020-01-01 00:00 UTC; wanted a moment after now, which is"),
    ],
)
def test_a_moment_that_is_none_or_is_over_mutes_nothing_and_says_what_is_wanted(run, site, until, told):
    code, _, said = run("alarm", "mute", site.alarm.alarm, "--until", until, "--reason", "roof works")
    assert (code, told in said) == (1, True), said


def test_the_promise_is_compared_with_what_the_server_asks(tmp_path):
    with running_site(tmp_path, clock=FakeClock(), drift=DriftConfig(false_alarms_per_device_year=0.25)) as few:
        now = few.services.clock.now()
        few.enroll("cam-1")
        add_drift(few.ground.database, few.ingest, "cam-1", now=now - timedelta(days=1))
        camera = SketchDevice("cam-1", "front", grid=release_profile().grid)
        few.ingest(camera.message(camera.hour(to_unix_ms(now) // SUBWINDOW_MS // 6 * 6 - 6)))
        few.person("una", "viewer")
        assert few.api("vera", "viewer").get("/alarms/promise").json()["rate"] == 0.25
        assert "0.25 per device-year are allowed" in few.browser("una").get("/alarms").text


def test_the_command_line_shows_takes_mutes_and_ends_an_alarm(run, site):
    name = site.alarm.alarm
    assert name in run("alarm", "list")[1]
    assert json.loads(run("alarm", "list", "--json", "--device", "cam-1")[1])[0]["alarm"] == name
    code, out, _ = run("alarm", "show", name)
    assert (code, "darker" in out) == (0, True)
    code, out, _ = run("drift", "show")
    assert (code, "cam-1" in out, "calibrated" in out) == (0, True, True)
    code, out, _ = run("drift", "show", "cam-1", "--pipeline", site.alarm.subject.pipeline)
    assert (code, "PSI" in out, "accuracy by labels" in out) == (0, True, True)
    assert run("alarm", "acknowledge", name, "--note", "on my way", "--link", "run-1")[0] == 0
    code, _, said = run("alarm", "acknowledge", name)
    assert (code, "was taken by person:ola at" in said, f"mooring alarm clear {name} --as condition|false_alarm" in said) == (5, True, True)
    shown = run("alarm", "show", name)[1]
    assert ("run-1" in shown, "on my way" in shown, "person:ola" in shown) == (True, True, True)
    assert run("alarm", "mute", name, "--until", "2026-11-20T00:00Z", "--reason", "roof works")[2].endswith(
        "muted until 2026-11-20T00:00.\n"
    )
    assert run("alarm", "clear", name, "--as", "drift", "--yes", "--reason", "x")[0] == 1
    assert run("alarm", "clear", name, "--as", "false_alarm", "--yes", "--reason", "nothing changed")[0] == 0
    code, _, said = run("alarm", "clear", name, "--as", "condition", "--yes", "--reason", "x")
    assert (code, f"Alarm {name} is over since" in said, "as false_alarm" in said) == (5, True, True)
    assert "No alarm is open" in run("alarm", "list")[2]
    assert "(false_alarm)" in run("alarm", "list", "--all")[1]
    assert "called false" in run("alarm", "promise")[1]
    assert run("drift", "rebaseline", "cam-1", site.alarm.subject.pipeline, "--yes", "--reason", "new lamp")[0] == 0
    assert "collecting" in run("drift", "show", "cam-1")[1]
