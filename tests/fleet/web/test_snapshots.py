"""Pictures on demand: who may ask, where, what is written down, and that nothing is kept."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from console_site import Browser, ConsoleSite, running_site
from serving import serving
from simulators.calls import CallSimulator, jpeg

from fleet.web.app import console_app
from protocol.look import MAX_JPEG_BYTES
from protocol.snapshots import SnapshotAnswer

PICTURE = jpeg(64, 48)
GIVEN = SnapshotAnswer.of(PICTURE, width=64, height=48, at=1_772_323_200_000).model_dump(mode="json")
ZONE = {"name": "drive", "points": [[0.25, 0.5], [0.75, 0.5], [0.75, 1.0], [0.25, 1.0]]}


@pytest.fixture(scope="module")
def devices() -> CallSimulator:
    return CallSimulator()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, devices: CallSimulator) -> Iterator[ConsoleSite]:
    """A server whose devices are simulated."""
    with running_site(tmp_path_factory.mktemp("console")) as made:
        services = replace(made.services, calls=devices)
        with serving(console_app(services)) as http:
            site = ConsoleSite(made.ground, services, http)
            admin = site.api("root-machine", "admin")
            found = admin.get("/sites/default")
            assert admin.put("/sites/default", json={"consent": "allow"}, headers={"If-Match": found.headers["etag"]}).status_code == 200
            yield site
            for client in site.clients:
                client.close()


@pytest.fixture(scope="module")
def ola(site: ConsoleSite) -> Browser:
    """An operator."""
    site.person("ola", "operator")
    return site.browser("ola")


@pytest.fixture(scope="module")
def api(site: ConsoleSite) -> httpx.Client:
    return site.api("olas-machine", "operator")


@pytest.fixture(scope="module")
def auditor(site: ConsoleSite) -> httpx.Client:
    return site.api("odas-machine", "auditor")


def camera(site: ConsoleSite, name: str, *, preview: bool = True) -> str:
    site.enroll(name)
    site.online(name)
    document = {"name": "front", "line": "cars", "source": {"kind": "camera"}, "zones": [ZONE], "preview": preview}
    site.say(name, "reported", desired_rev=1, config={"pipelines": [document]})
    return f"/devices/{name}/pipelines/front"


def holds_picture(data: bytes) -> bool:
    """Whether the picture is in the bytes, plain or as text."""
    return PICTURE[-64:] in data or base64.b64encode(PICTURE)[:64] in data


def entries(auditor: httpx.Client, device: str) -> list[dict[str, Any]]:
    found = auditor.get("/audit", params={"limit": 200}).json()["items"]
    return [one for one in found if one["subject"] == f"device/{device}" and one["action"] == "device.snapshot-asked"]


def test_an_operator_sees_the_picture_with_the_zones_over_it(
    site: ConsoleSite, devices: CallSimulator, ola: Browser, auditor: httpx.Client
):
    path = camera(site, "cam-look")
    devices.answers["cam-look"] = GIVEN
    assert "Take a picture" in ola.get(path).text
    answer = ola.submit(f"{path}/snapshot")
    assert answer.status_code == 200
    assert base64.b64encode(PICTURE).decode() in answer.text
    assert 'viewBox="0 0 64 48"' in answer.text
    assert 'points="16.0,24.0 48.0,24.0 48.0,48.0 16.0,48.0"' in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert devices.asked[-1] == ("cam-look", "snapshot", {"pipeline": "front"})
    (entry,) = entries(auditor, "cam-look")
    assert (entry["actor"], entry["detail"]) == ("person:ola", {"pipeline": "front"})
    # kept nowhere: the next look at the page has none, and no table holds its bytes
    assert base64.b64encode(PICTURE).decode() not in ola.get(path).text
    file = site.ground.database.engine.url.database
    assert file is not None
    assert [path for path in Path(file).parent.rglob("*") if path.is_file() and holds_picture(path.read_bytes())] == []


def test_machines_get_the_bytes(site: ConsoleSite, devices: CallSimulator, api: httpx.Client, auditor: httpx.Client):
    path = camera(site, "cam-bytes")
    devices.answers["cam-bytes"] = GIVEN
    answer = api.post(f"{path}/snapshot", json={"reason": "setting up zones"})
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "image/jpeg", PICTURE)
    assert [entry["reason"] for entry in entries(auditor, "cam-bytes")] == ["setting up zones"]


def test_viewers_approvers_and_admins_may_not_ask_and_are_not_invited(site: ConsoleSite, devices: CallSimulator, auditor: httpx.Client):
    path = camera(site, "cam-closed")
    devices.answers["cam-closed"] = GIVEN
    asked = len(devices.asked)
    for permission in ("viewer", "approver", "admin"):
        assert site.api(f"{permission}-machine", permission).post(f"{path}/snapshot").status_code == 403
    site.person("vera", "viewer")
    vera = site.browser("vera")
    assert "Take a picture" not in vera.get(path).text
    assert vera.submit(f"{path}/snapshot").status_code == 403
    assert auditor.post(f"{path}/snapshot").status_code == 200
    assert len(devices.asked) == asked + 1


def test_a_form_without_this_sessions_token_asks_nobody(site: ConsoleSite, devices: CallSimulator, ola: Browser):
    path = camera(site, "cam-forged")
    asked = len(devices.asked)
    assert ola.post(f"{path}/snapshot", data={"csrf_token": "x"}).status_code == 403
    assert len(devices.asked) == asked


@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        ("preview is off", 409, "says no: preview is off"),
        (None, 503, "did not answer"),
        ({"jpeg": "", "width": 0, "height": 1, "at": 1}, 503, "answered without a picture"),
        ({**GIVEN, "jpeg": "%%%"}, 422, "not base64"),
        ({**GIVEN, "jpeg": base64.b64encode(b"<svg onload=alert(1)>").decode()}, 422, "is no JPEG"),
        ({**GIVEN, "jpeg": "A" * (2 * MAX_JPEG_BYTES)}, 503, "answered without a picture"),
    ],
)
def test_what_a_device_answers_instead_of_a_picture_is_told(
    site: ConsoleSite, devices: CallSimulator, ola: Browser, api: httpx.Client, answer: Any, status: int, told: str
):
    name = f"cam-{status}-{len(devices.asked)}"
    path = camera(site, name)
    if answer is not None:
        devices.answers[name] = answer
    found = api.post(f"{path}/snapshot")
    assert (found.status_code, told in found.json()["detail"]) == (status, True), found.text
    page = ola.submit(f"{path}/snapshot")
    assert page.status_code == status
    assert told in page.text
    assert "<svg onload" not in page.text


def test_a_device_that_is_away_is_not_asked(site: ConsoleSite, devices: CallSimulator, api: httpx.Client, auditor: httpx.Client):
    path = camera(site, "cam-away")
    site.say("cam-away", "status", presence="offline")
    asked = len(devices.asked)
    answer = api.post(f"{path}/snapshot")
    assert (answer.status_code, "not online" in answer.json()["detail"]) == (409, True)
    assert (len(devices.asked), entries(auditor, "cam-away")) == (asked, [])


@pytest.mark.parametrize(("rule", "told"), [("deny", "lets no picture out"), ("minimized", "minimized pictures only")])
def test_a_site_that_keeps_its_pictures_is_asked_for_none(
    site: ConsoleSite, devices: CallSimulator, api: httpx.Client, rule: str, told: str
):
    path = camera(site, f"cam-{rule}")
    devices.answers[f"cam-{rule}"] = GIVEN
    admin = site.api(f"admin-{rule}", "admin")
    assert admin.post("/sites", json={"name": f"site-{rule}", "consent": rule}).status_code == 201
    revision = api.get(f"/devices/cam-{rule}").headers["etag"]
    moved = api.post(f"/devices/cam-{rule}/move", json={"site": f"site-{rule}"}, headers={"If-Match": revision})
    assert moved.status_code == 200, moved.text
    asked = len(devices.asked)
    answer = api.post(f"{path}/snapshot")
    assert (answer.status_code, told in answer.json()["detail"]) == (403, True)
    assert len(devices.asked) == asked


def test_a_pipeline_that_gives_no_pictures_invites_nobody(site: ConsoleSite, ola: Browser):
    assert "Take a picture" not in ola.get(camera(site, "cam-private", preview=False)).text


def test_a_server_without_a_broker_says_so(console: ConsoleSite):
    path = camera(console, "cam-alone")
    admin = console.api("lone-admin", "admin")
    found = admin.get("/sites/default")
    assert admin.put("/sites/default", json={"consent": "allow"}, headers={"If-Match": found.headers["etag"]}).status_code == 200
    answer = console.api("lone-operator", "operator").post(f"{path}/snapshot")
    assert (answer.status_code, "no broker" in answer.json()["detail"]) == (503, True)
