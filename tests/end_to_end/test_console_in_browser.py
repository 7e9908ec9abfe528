"""The console in a real Chromium, over a real server and broker: log in, watch a device live, see a release; axe-core on every page."""

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import paho.mqtt.client as mqtt
import pytest
from console_site import DEVICE_TYPE, upload_digits
from cryptography.hazmat.primitives import serialization
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from simulators import messages
from simulators.calls import jpeg
from simulators.darker_camera import add_drift, release_profile
from simulators.enrolling import EnrollingDevice
from simulators.sketches import SketchDevice, add_profile
from simulators.webhook import webhook_server
from waiting import PATIENCE_S, wait_until

from fleet.bus import Incoming
from fleet.db import Database
from fleet.monitoring.drift_model import Alarm
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.clock import SystemClock, to_unix_ms
from protocol.ids import DEFAULT_TENANT
from protocol.sketches.codec import SUBWINDOW_MS, Source
from protocol.snapshots import SnapshotAnswer

pytestmark = [pytest.mark.needs_browser, pytest.mark.needs_broker]

AXE = (Path(__file__).parent / "assets" / "axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "a long enough sentence"
DEVICE = "cam-browser"


@dataclass
class Server:
    """`mooring serve --demo-keys` as a child process, with its people."""

    process: subprocess.Popen[str]
    url: str
    device_url: str
    folder: Path
    people: dict[str, httpx.Client] = field(default_factory=dict)

    def log_in(self, name: str, password: str) -> httpx.Client:
        answer = httpx.post(f"{self.url}/api/v1/login", json={"name": name, "password": password}, trust_env=False, timeout=120)
        assert answer.status_code == 201, answer.text
        headers = {"Authorization": f"Bearer {answer.json()['token']}"}
        self.people[name] = httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, trust_env=False, timeout=120)
        return self.people[name]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mosquitto_path: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    environment = {**os.environ, "MOORING_BROKER__PORT": "0", "MOORING_BROKER__WEBSOCKET_PORT": "0", "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-m",
        "fleet.cli",
        "serve",
        "--data",
        str(folder),
        "--demo-keys",
        "--console-port",
        "0",
        "--device-port",
        "0",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, text=True, cwd=Path(__file__).parents[2], start_new_session=True
        )
        try:
            found = wait_until(lambda: _addresses(folder / "log", process), what="the server to print its addresses")
            running = Server(process, *found, folder)
            kept = json.loads((folder / "demo-login.json").read_text())
            admin = running.log_in(kept["user"], kept["password"])
            for name, permissions in (("ola", ["operator"]), ("maria", ["approver", "auditor"])):
                body = {"name": name, "permissions": permissions, "password": PASSWORD, "must_change_password": False}
                assert admin.post("/users", json=body).status_code == 201
                running.log_in(name, PASSWORD)
            yield running
            for client in running.people.values():
                client.close()
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def _addresses(log: Path, process: subprocess.Popen[str]) -> tuple[str, str] | None:
    text = log.read_text()
    assert process.poll() is None, text[-2000:]
    found = re.search(r"^Console: (\S+)\nDevice API: (\S+)$", text, re.MULTILINE)
    return (found[1], found[2]) if found else None


class Speaker:
    """A device that speaks the real protocol: enrolled over HTTPS, heard over MQTT with its own certificate."""

    def __init__(self, server: Server, folder: Path) -> None:
        made = server.people["admin"].post("/invites", json={"device_type": DEVICE_TYPE, "device": DEVICE}).json()
        device = EnrollingDevice(device_type=DEVICE_TYPE, device=DEVICE)
        authority = str(server.folder / "pki" / "ca.pem")
        trust = ssl.create_default_context(cafile=authority)
        with httpx.Client(base_url=server.device_url, verify=trust, trust_env=False, timeout=120) as http:
            answer = http.post("/enroll/v1", json=device.request(made["token"]).model_dump(mode="json"))
        assert answer.status_code == 200, answer.text
        certificate, key = folder / "device.pem", folder / "device.key"
        certificate.write_text(answer.json()["certificate_pem"])
        encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key.write_bytes(device.key.private_bytes(*encoding))
        port = int(re.search(r"mqtts://[^:]+:(\d+)", answer.json()["broker"]["urls"][0])[1])
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=DEVICE, protocol=mqtt.MQTTv5)
        self._client.tls_set(authority, str(certificate), str(key))
        self._client.on_connect = lambda client, *_: client.subscribe(f"mooring/1/t0/c/{DEVICE}/rpc/+", 1)
        self._client.on_message = self._answer
        self._client.connect("localhost", port)
        self._client.loop_start()
        self._seq: dict[str, int] = {}
        wait_until(self._client.is_connected, what="the broker to accept the device")

    def _answer(self, client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        """A gray picture, whatever is asked for."""
        asked = json.loads(message.payload)
        given = SnapshotAnswer.of(jpeg(160, 90), width=160, height=90, at=to_unix_ms(SystemClock().now())).model_dump(mode="json")
        reply = messages.body(None, ts=to_unix_ms(SystemClock().now()), id=asked["id"], ok=True, result=given)
        client.publish(f"mooring/1/t0/d/{DEVICE}/rpc-reply", json.dumps(reply), qos=1)

    def say(self, stream: str, **values: Any) -> None:
        """Publish one message and wait until the broker has it."""
        first = stream.partition("/")[0]
        seq = None if first == "inf" else self._seq.get(first, 0)
        self._seq[first] = (seq or 0) + 1
        body = messages.body(seq, ts=to_unix_ms(SystemClock().now()), **values)
        sent = self._client.publish(f"mooring/1/t0/d/{DEVICE}/{stream}", json.dumps(body), qos=0 if seq is None else 1)
        sent.wait_for_publish(60)

    def perf(self, fps: float) -> None:
        figures = {"window_s": 10, "frames": 95, "fps": fps, "lat_ms_p50": 3.1, "lat_ms_p95": 5.2, "lat_ms_p99": 7.9}
        self.say("tel/perf", pipeline="front", line="digits", release="1.0", backend="onnx:cpu", source_state="ok", **figures)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def speaker(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    speaker = Speaker(server, tmp_path_factory.mktemp("device"))
    now = to_unix_ms(SystemClock().now())
    speaker.say("status", presence="online")
    runtimes = [{"name": "onnx", "version": "1.32.0", "state": "ok"}]
    backends = [{"pipeline": "front", "asked": "auto", "effective": "onnx:cpu"}]
    speaker.say("info", device_type=DEVICE_TYPE, agent_version="0.1.0", runtimes=runtimes, backends=backends)
    conditions = [{"code": "clock_unset", "severity": "warning", "text": "The clock is a year behind.", "since": now}]
    zones = [
        {"name": "drive", "points": [[0.2, 0.5], [0.8, 0.5], [0.8, 1.0], [0.2, 1.0]]},
        {"name": "gate", "kind": "line", "points": [[0.5, 1.0], [0.5, 0.0]]},
    ]
    rules = [{"name": "parked", "kind": "dwell", "zone": "drive", "seconds": 30}, {"name": "in", "kind": "cross", "zone": "gate"}]
    source = {"kind": "video", "path": "/srv/a.mp4"}
    pipelines = [{"name": "front", "line": "digits", "source": source, "zones": zones, "rules": rules, "preview": True}]
    speaker.say("reported", desired_rev=0, config={"pipelines": pipelines}, conditions=conditions)
    slot = {
        "line": "digits",
        "slot": "a",
        "active": True,
        "committed": True,
        "release": "1.0",
        "counter": 1,
        "sha256": f"sha256:{'a' * 64}",
    }
    history = [{"line": "digits", "release": "1.0", "state": state, "at": now} for state in ("downloading", "installing", "succeeded")]
    line = {"line": "digits", "desired": "1.0", "installed": "1.0", "state": "idle"}
    blocked = [{"line": "digits", "release": "1.1", "attempt": 1, "reason": "golden_mismatch", "text": "wanted 7, got 1", "at": now}]
    speaker.say("model", lines=[line], slots=[slot], history=history, blocked=blocked)
    speaker.perf(9.5)
    yield speaker
    speaker.close()


@pytest.fixture(scope="module")
def alarm(server: Server, speaker: Speaker) -> Iterator[Alarm]:
    """The device's pictures became darker: windows through ingest, judged as the server does, in the server's own database."""
    database, clock = Database(f"sqlite:///{server.folder / 'fleet.db'}"), SystemClock()

    def ingest(*batch: Incoming) -> None:
        rules = IngestRules(lambda _tx, _tenant, devices: set(devices), tenant=DEFAULT_TENANT)
        assert not ingest_batch(database, list(batch), rules=rules, now=clock.now()).rejected

    made = add_drift(database, ingest, DEVICE, now=clock.now())
    # beside it an hour of a candidate in the shadow, and an alarm of which the device alone knows
    now_ms, candidate = to_unix_ms(clock.now()), bytes.fromhex("c4" * 16)
    add_profile(database, release_profile(), model=candidate)
    shadow = SketchDevice(device=DEVICE, model=candidate, source=Source.SHADOW, grid=release_profile().grid)
    ingest(shadow.message(shadow.hour(now_ms // SUBWINDOW_MS // 6 * 6 - 6)))
    claim = {"pipeline": "back", "line": "digits", "model": "ab" * 16, "state": "raised", "raised_at": now_ms - 7_200_000, "stretch": 6}
    told = messages.body(1, ts=now_ms, state="raised", check="device", pipelines=[claim])
    ingest(messages.incoming(f"mooring/1/t0/d/{DEVICE}/drift", told))
    yield made
    database.dispose()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is missing (apt install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=1000 * PATIENCE_S)
        yield started
        started.close()


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """A browser's own memory of one person, as patient as all tests are."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE_S)
    return context


@contextlib.contextmanager
def visit(browser: Browser, server: Server, name: str, *, scheme: str = "light", for_axe: bool = False) -> Iterator[tuple[Page, list[str]]]:
    """A page of a person who logged in by the form; and what the browser complained about. `for_axe` lets a tool's script in."""
    options = {"color_scheme": scheme, "bypass_csp": for_axe, "viewport": {"width": 1440, "height": 900}}
    context: BrowserContext = new_context(browser, **options)
    page, complaints = context.new_page(), []

    def note(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            complaints.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{server.url}/devices")
    page.fill("#name", name)
    page.fill("#password", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(f"{server.url}/devices")
    yield page, complaints
    context.close()


def test_a_device_page_updates_while_one_looks(browser: Browser, server: Server, speaker: Speaker):
    with visit(browser, server, "ola") as (page, complaints):
        page.click(f"text={DEVICE}")
        page.wait_for_selector("[data-live-sign][data-state=live]")
        speaker.perf(21.7)
        page.wait_for_selector("[data-fps]:has-text('21.7')")
        before = int(page.get_attribute("[data-chart]", "data-points") or 0)
        speaker.perf(22.4)
        page.wait_for_function("before => Number(document.querySelector('[data-chart]').dataset.points) > before", arg=before)
        assert page.locator("[data-chart] canvas").count() == 1
        top = [{"label": "seven", "index": 7, "score": 0.97}]
        speaker.say("inf/front", pipeline="front", line="digits", release="1.0", session=1, frame=1, lat_ms=3.0, top=top)
        page.wait_for_selector("#predictions td:has-text('seven')")
        text = page.inner_text("main")
        for wanted in ("slot a", "1.0", "succeeded", "golden_mismatch", "The clock is a year behind.", "Set the system clock"):
            assert wanted in text, wanted
        assert complaints == []


def test_a_release_appears_once_somebody_else_approved_it(browser: Browser, server: Server):
    ola, maria = server.people["ola"], server.people["maria"]
    model = upload_digits(ola)
    body = {"line": "digits", "version": "1.0", "models": [{"model_id": model["id"]}]}
    assert ola.post("/releases", json=body).status_code == 201
    approval = ola.post("/releases/digits/1.0/propose", json={}).json()["approval"]
    with visit(browser, server, "maria") as (page, complaints):
        page.goto(f"{server.url}/models")
        page.wait_for_selector("td:has-text('proposed')")
        page.goto(f"{server.url}/approvals/{approval}")
        page.fill("#reason", "figures hold")
        page.click("button[value=approve]")
        page.wait_for_selector(".page-head .tag:has-text('approved')")
        page.goto(f"{server.url}/models")
        page.wait_for_selector("td:has-text('signed')")
        assert ola.post("/releases/digits/1.0/publish", json={"reason": "go"}).status_code == 200
        page.wait_for_selector("td:has-text('published')")
        assert complaints == []
    assert maria.get("/releases/digits/1.0").json()["state"] == "published"


def test_a_pipeline_is_drawn_and_tells_of_events_while_one_looks(browser: Browser, server: Server, speaker: Speaker):
    with visit(browser, server, "ola") as (page, complaints):
        page.goto(f"{server.url}/devices/{DEVICE}")
        page.click("#pipelines >> text=front")
        page.wait_for_selector(".zone-map polygon.zone-area")
        page.wait_for_selector("[data-chart] canvas")
        page.wait_for_selector("[data-live-sign][data-state=live]")
        data = {"pipeline": "front", "line": "digits", "release": "1.0", "session": 1, "frame": 1, "rule": "parked", "kind": "dwell"}
        data |= {"phase": "started", "occurrence": "front.parked.1.7", "start_ms": 1, "label": "car", "track": 7, "zone": "drive"}
        about = {"specversion": "1.0", "id": "e-1", "source": f"/mooring/t0/{DEVICE}", "subject": "front"}
        speaker.say("event", type="mooring.dwell.started.v1", data=data, **about)
        page.wait_for_selector("#pipeline-events:has-text('parked: car 7, in drive')")
        assert complaints == []


def test_a_picture_is_asked_for_shown_under_the_zones_and_gone_with_the_next_look(browser: Browser, server: Server, speaker: Speaker):
    admin = server.people["admin"]
    etag = admin.get("/sites/default").headers["etag"]
    assert admin.put("/sites/default", json={"consent": "allow"}, headers={"If-Match": etag}).status_code == 200
    with visit(browser, server, "ola", for_axe=True) as (page, complaints):
        page.goto(f"{server.url}/devices/{DEVICE}/pipelines/front")
        page.click("text=Take a picture")
        page.wait_for_selector(".zone-map image")
        assert page.get_attribute(".zone-map", "viewBox") == "0 0 160 90"
        assert violations(page) == []
        page.goto(f"{server.url}/devices/{DEVICE}/pipelines/front")
        page.wait_for_selector(".zone-map polygon")
        assert page.locator(".zone-map image").count() == 0
        assert complaints == []
    entries = server.people["maria"].get("/audit", params={"limit": 200}).json()["items"]
    assert [one["actor"] for one in entries if one["action"] == "device.snapshot-asked"] == ["person:ola"]


def test_the_theme_follows_the_system_until_somebody_chooses(browser: Browser, server: Server):
    with visit(browser, server, "ola", scheme="dark") as (page, _):
        assert page.get_attribute("html", "data-bs-theme") == "dark"
        page.click("[data-theme-toggle]")
        assert page.get_attribute("html", "data-bs-theme") == "light"
        page.reload()
        assert page.get_attribute("html", "data-bs-theme") == "light"


def test_reading_works_without_scripts(browser: Browser, server: Server, speaker: Speaker, alarm: Alarm):
    context = new_context(browser, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.url}/devices/{DEVICE}")
    page.fill("#name", "ola")
    page.fill("#password", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_selector("main:has-text('golden_mismatch')")
    assert page.url.endswith(f"/devices/{DEVICE}")
    page.goto(f"{server.url}/alarms/{alarm.alarm}")
    page.click("button:has-text('Compute')")
    page.wait_for_selector("#what-if:has-text('With 1 false alarm per year this shift would have been seen after')")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(browser: Browser, server: Server, speaker: Speaker, alarm: Alarm, scheme: str):
    ola = server.people["ola"]
    approvals = [one["approval"] for one in ola.get("/approvals").json()["items"]]
    campaigns = [one["campaign"] for one in ola.get("/campaigns").json()["items"]]
    if not campaigns:
        made = ola.post("/campaigns", json={"line": "digits", "release": "1.0", "group": "default"})
        assert made.status_code == 201, made.text
        campaigns = [made.json()["campaign"]]
    paths = {
        "ola": [
            "/",
            "/devices",
            f"/devices/{DEVICE}",
            f"/devices/{DEVICE}/pipelines/front",
            "/devices?text=zebra",
            f"/devices/{DEVICE}/monitoring",
            "/monitoring",
            "/alarms",
            f"/alarms/{alarm.alarm}?step=4",
            "/drift",
            f"/drift/{DEVICE}/front",
            "/rules",
            "/rules/test?metric=latency_p99_ms&threshold=1&for_min=0&hours=1",
            "/groups/default",
            "/models",
            "/campaigns",
            f"/campaigns/{campaigns[0]}",
        ],
        "maria": ["/models/digits/1.0", "/approvals", f"/approvals/{approvals[0]}", "/audit?verify=1", "/account", "/devices/nope"],
    }
    shown = {"/alarms": "Unconfirmed", f"/drift/{DEVICE}/front": "Candidate in the shadow"}
    for name, own in paths.items():
        with visit(browser, server, name, scheme=scheme, for_axe=True) as (page, _):
            for path in own:
                page.goto(server.url + path)
                page.wait_for_load_state("load")
                assert violations(page) == [], path
                assert page.get_by_role("heading", name=shown[path]).is_visible() if path in shown else True
    context = new_context(browser, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(f"{server.url}/login")
    assert violations(page) == []
    context.close()


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong."""
    page.add_script_tag(content=AXE)
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    assert found["passes"], "axe-core looked at nothing"
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found["violations"]]


def test_axe_does_find_what_is_wrong(browser: Browser, server: Server):
    context = new_context(browser, bypass_csp=True)
    page = context.new_page()
    page.goto(f"{server.url}/login")
    page.evaluate("document.querySelector('label').remove()")
    assert any(one.startswith("label:") for one in violations(page))
    context.close()


def test_a_page_says_since_when_it_is_stale(browser: Browser, server: Server):
    with visit(browser, server, "ola") as (page, _):
        page.route("**/live/**", lambda route: route.abort())
        page.reload()
        sign = page.locator("[data-live-sign][data-state=stale]")
        sign.wait_for()
        assert re.fullmatch(r"stale since \d\d:\d\d( [AP]M)?", sign.inner_text())
        page.unroute("**/live/**")
        page.wait_for_selector("[data-live-sign][data-state=live]")


def test_charts_of_a_device_are_drawn_and_their_numbers_can_be_read(browser: Browser, server: Server, speaker: Speaker):
    with visit(browser, server, "ola") as (page, complaints):
        page.goto(f"{server.url}/devices/{DEVICE}")
        page.click("text=Charts over time")
        page.wait_for_selector("[data-plot] canvas")
        page.focus("#numbers-latency summary")
        page.keyboard.press("Enter")
        page.wait_for_selector("#numbers-latency td:visible")
        drawn = page.locator("[data-plot]").first.get_attribute("data-drawn")
        assert drawn is not None
        assert int(drawn) >= 1
        page.click("nav[aria-label='How far back'] >> text=24h")
        page.wait_for_selector("[aria-current=true]:has-text('24h')")
        page.wait_for_selector("[data-plot] canvas")
        page.goto(f"{server.url}/monitoring")
        page.wait_for_selector("[aria-labelledby=chart-devices-title] [data-plot] canvas")
        assert complaints == []


def test_the_running_server_delivers_alerts(server: Server):
    admin = server.people["admin"]
    with webhook_server() as receiver:
        body = {"name": "pager", "url": f"http://127.0.0.1:{receiver.port}/", "allow_private": True}
        assert admin.post("/webhooks", json=body).status_code == 201
        assert admin.post("/webhooks/pager/test", json={}).status_code == 202
        wait_until(lambda: receiver.received, what="the webhook to be called")
        wait_until(lambda: admin.get("/webhooks/pager").json()["deliveries"][0]["state"] == "done", what="the delivery to be kept as done")
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1, "at least once, and always by the same name"
    assert json.loads(receiver.received[0].body)["type"] == "mooring.recipient.test.v1"


def test_a_rule_is_tested_on_history_before_it_is_made(browser: Browser, server: Server, speaker: Speaker):
    speaker.perf(9.5)
    with visit(browser, server, "ola") as (page, complaints):
        page.goto(f"{server.url}/rules")
        page.fill("#r-threshold", "0.5")
        page.fill("#r-for", "0")
        page.fill("#r-hours", "1")
        page.click("text=Test on history")
        page.wait_for_selector("main:has-text('it would have fired')")
        assert page.locator("#r-threshold").input_value() == "0.5"
        assert complaints == []


def test_an_alarm_is_understood_taken_and_its_end_is_read_aloud(browser: Browser, server: Server, alarm: Alarm):
    with visit(browser, server, "ola") as (page, complaints):
        page.goto(f"{server.url}/drift")
        page.click(f"th[scope=row] >> text={DEVICE}")
        page.wait_for_selector("[data-plot] canvas")
        assert page.locator("svg.dist").count() >= 1
        page.click("text=open alarm")
        page.wait_for_selector("main:has-text('What it costs to be wrong')")
        page.wait_for_selector("[data-plot] canvas")
        page.focus("#if-step")
        page.keyboard.press("Home")
        page.wait_for_selector("#what-if:has-text('With 0.1 false alarms per year')")
        page.keyboard.press("End")
        page.wait_for_selector("#what-if:has-text('With 10 false alarms per year')")
        page.fill("#a-note", "on my way")
        page.click("text=Take it")
        page.wait_for_selector(".page-head .tag:has-text('acknowledged')")
        page.goto(f"{server.url}/alarms")
        page.wait_for_selector("[data-live-sign][data-state=live]")
        assert page.inner_text("#alarms-said").startswith("1 open alarm.")
        ola = server.people["ola"]
        answer = ola.get(f"/alarms/{alarm.alarm}")
        body = {"outcome": "condition", "reason": "dirty lens"}
        cleared = ola.post(f"/alarms/{alarm.alarm}/clear", json=body, headers={"If-Match": answer.headers["etag"]})
        assert cleared.status_code == 200, cleared.text
        page.wait_for_selector("#alarms-said:has-text('0 open alarms.')", state="attached")
        page.wait_for_selector("#alarms:has-text('No open alarms')")
        assert complaints == []
