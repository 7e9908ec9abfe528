"""`mooring serve`: a first start makes everything once; messages, twins and revocations flow; it stops and comes back in order."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from simulators.clock import FakeClock
from simulators.enrolling import EnrollingDevice
from simulators.messages import event, status
from waiting import PATIENCE_S, wait_until

from fleet import audit, parts, service
from fleet import config as settings
from fleet.audit import Actor, ActorKind
from fleet.broker import ClientFiles, client_tls, consumers_file, probe_connection
from fleet.bus import Bus, BusOptions, Subscription
from fleet.config import FleetConfig, Role
from fleet.devices import enrollment, groups, twins
from fleet.devices import service as devices
from fleet.devices.model import Twin, parse_config
from fleet.monitoring import service as monitoring
from fleet.registry.signing import KeyName
from fleet.registry.store import earlier_director_metadata
from fleet.service import DEMO_LOGIN, Server, banner_text, lay_ground
from fleet.supervision import supervise
from protocol.clock import AcceleratedClock, SystemClock
from protocol.errors import ConfigError, UnavailableError
from protocol.ids import DEFAULT_TENANT, DeviceId, DeviceTypeName
from protocol.messages import Ack, Desired, Presence

pytestmark = pytest.mark.needs_broker

ADMIN, CAM = Actor(ActorKind.PERSON, "alice"), DeviceId("cam-1")
FREE_PORTS = {"console.port": 0, "device_api.port": 0, "broker.port": 0, "broker.websocket_port": 0}


def configured(folder: Path, **flags: object) -> FleetConfig:
    return settings.load(flags={"data_dir": str(folder), **FREE_PORTS, **flags}, environment={}).config


@dataclass
class Running:
    """A started server and what it said."""

    server: Server
    said: list[str]

    @property
    def ground(self) -> service.Ground:
        return self.server.standing

    def enroll(self, device: str, folder: Path) -> ClientFiles:
        """The device's identity, given to it through the device API as to a real one."""
        invite = enrollment.invite(
            self.ground.database,
            self.ground.authority,
            tenant=DEFAULT_TENANT,
            group=groups.DEFAULT_GROUP,
            device_type=DeviceTypeName("linux-x86-64"),
            by=ADMIN,
            now=datetime.now(UTC),
        )
        wish = EnrollingDevice(device=device)
        verify = ssl.create_default_context(cafile=str(self.ground.authority.ca_path))
        url = f"{self.server.addresses.device_url}/enroll/v1"
        answer = httpx.post(url, json=wish.request(invite.text).model_dump(mode="json"), verify=verify, trust_env=False, timeout=60)
        assert answer.status_code == 200, answer.text
        files = ClientFiles(self.ground.authority.ca_path, folder / f"{device}.pem", folder / f"{device}-key.pem")
        files.certificate.write_text(answer.json()["certificate_pem"])
        pem = wish.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        files.key.write_bytes(pem)
        return files

    def connect(self, device: str, files: ClientFiles) -> Bus:
        url = self.server.addresses.broker.urls[0]
        bus = Bus(BusOptions(url, device, client_tls(files), (Subscription(f"mooring/1/t0/c/{device}/#"),)))
        bus.start()
        assert bus.wait_connected(60), bus.refusal
        return bus


@pytest.fixture(scope="module")
def running(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    said: list[str] = []
    server = Server(configured(tmp_path_factory.mktemp("server") / "data"), clock=SystemClock(), say=said.append)
    server.start()
    yield Running(server, said)
    server.stop()


def received(bus: Bus, topic: str) -> bytes:
    def found() -> bytes | None:
        for one in bus.inbox.take(100, wait_s=0.05, gather_s=0):
            bus.acknowledge([one])
            if one.topic == topic:
                return one.payload
        return None

    return wait_until(found, what=topic)


def change_config(running: Running, device: str) -> Twin:
    patch = parse_config({"telemetry": {"perf_s": 7}})
    database, now = running.ground.database, datetime.now(UTC)
    return twins.set_device_config(database, tenant=DEFAULT_TENANT, device=DeviceId(device), config=patch, by=ADMIN, now=now)


# --- the ground ---


def test_a_first_start_says_each_secret_once_and_keeps_none_in_the_clear(running: Running):
    text = "\n".join(running.said)
    assert "one-time password" in text
    assert "mooring-agent enroll --server https://localhost:" in text
    assert text.count("--state-dir ~/mooring-agent") == 2
    password = text.split("one-time password ")[1].split()[0]
    folder = running.server.config.data_dir
    assert not (folder / DEMO_LOGIN).exists()
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "fleet.db":
            assert password.encode() not in path.read_bytes(), path


def test_what_a_server_keeps_is_closed_to_others(running: Running):
    folder = running.server.config.data_dir
    assert folder.stat().st_mode & 0o066 == 0
    keys = [*folder.rglob("*key*.pem"), *folder.glob("keys/**/*.pem")]
    assert keys
    for path in keys:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_start_says_no_secret_and_keeps_identity_and_trust(tmp_path: Path):
    config = configured(tmp_path / "data")
    first = lay_ground(config, clock=SystemClock())
    first.database.dispose()
    second = lay_ground(config, clock=SystemClock())
    second.database.dispose()
    assert (first.is_first_start, second.is_first_start) == (True, False)
    assert len(first.notices) == 2
    assert second.notices == ()
    assert first.authority.pin == second.authority.pin
    assert first.registry.director.bootstrap == second.registry.director.bootstrap
    assert first.share == second.share


def test_a_server_that_was_off_for_a_week_says_so_and_signs_once_its_clock_is_trusted(tmp_path: Path):
    said: list[str] = []

    def start(clock: FakeClock, **flags: object) -> bool:
        server = Server(configured(tmp_path / "data", roles="worker", **flags), clock=clock, say=said.append)
        server.start()
        is_believed = server.standing.registry.guard.is_believed(clock.now())
        server.stop()
        return is_believed

    assert start(FakeClock())
    later = FakeClock(FakeClock().now() + timedelta(days=7))
    said.clear()
    assert not start(later)
    assert "mooring keys clock" in said[0]
    said.clear()
    assert start(later, trust_clock=True)
    assert not [text for text in said if "WARNING" in text]
    ground = lay_ground(configured(tmp_path / "data"), clock=later)
    with ground.database.reading() as tx:
        assert audit.list_entries(tx, DEFAULT_TENANT)[0].action == "clock.confirmed"
    ground.database.dispose()


def test_a_server_without_one_of_its_keys_says_which(tmp_path: Path):
    config = configured(tmp_path / "data", roles="worker")
    ground = lay_ground(config, clock=SystemClock())
    ground.database.dispose()
    ground.registry.folders.key_file(KeyName.DIRECTOR_SNAPSHOT).unlink()
    said: list[str] = []
    server = Server(config, clock=SystemClock(), say=said.append)
    server.start()
    server.stop()
    assert any("keys are missing" in text and "director-snapshot" in text for text in said)


def test_what_the_director_said_before_is_deleted_an_hour_after_it_was_replaced(mosquitto_path: Path, tmp_path: Path):
    config, table, now = configured(tmp_path / "data"), earlier_director_metadata, datetime.now(UTC)
    ground = lay_ground(config, clock=SystemClock())
    row = {"tenant": DEFAULT_TENANT, "device": CAM, "targets": b"t", "snapshot": b"s", "etag": "e"}
    with ground.database.transaction() as tx:
        for version, minutes in ((1, 61), (2, 1)):
            tx.execute(sa.insert(table).values(**row, version=version, replaced_at=now - timedelta(minutes=minutes)))
    ground.database.dispose()
    server = Server(config, clock=SystemClock(), say=lambda _text: None)
    server.start()

    def kept() -> list[int]:
        with server.standing.database.reading() as tx:
            return list(tx.scalars(sa.select(table.c.version)))

    wait_until(lambda: kept() == [2], what="the deletion of what is old")
    server.stop()


def test_a_demo_says_that_its_keys_are_demo_keys_and_leaves_its_login(tmp_path: Path):
    config = configured(tmp_path / "data", demo_keys=True)
    ground = lay_ground(config, clock=SystemClock())
    ground.database.dispose()
    login = config.data_dir / DEMO_LOGIN
    assert json.loads(login.read_text())["user"] == "admin"
    assert login.stat().st_mode & 0o777 == 0o600
    assert "demo keys" in ground.notices[0]
    assert "DEMO KEYS" in banner_text(config, SystemClock())


def test_an_accelerated_clock_stands_on_every_page(tmp_path: Path):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    clock = AcceleratedClock(start=start, speed=60, origin=datetime.now(UTC))
    assert "60 times" in banner_text(configured(tmp_path), clock)
    assert banner_text(configured(tmp_path), SystemClock()) == ""


# --- messages, twins, revocation ---


def test_what_a_device_says_is_stored_and_then_acknowledged(running: Running, tmp_path: Path):
    bus = running.connect("cam-1", running.enroll("cam-1", tmp_path))
    bus.publish_and_wait("mooring/1/t0/d/cam-1/status", status("cam-1", 0, "online").payload, retain=True)
    bus.publish_and_wait("mooring/1/t0/d/cam-1/event", event("cam-1", 0).payload)
    ack = Ack.model_validate_json(received(bus, "mooring/1/t0/c/cam-1/ack"))
    assert ack.streams["event"].upto == 0
    database = running.ground.database
    assert [one.body["seq"] for one in monitoring.list_events(database, DEFAULT_TENANT, device=CAM)] == [0]
    assert wait_until(lambda: monitoring.get_view(database, DEFAULT_TENANT, CAM).presence is Presence.ONLINE)
    bus.stop()


def test_a_changed_twin_reaches_the_device_and_one_that_connects_later(running: Running, tmp_path: Path):
    files = running.enroll("cam-twin", tmp_path)
    bus = running.connect("cam-twin", files)
    twin = change_config(running, "cam-twin")

    def is_new(one: Bus) -> bool:
        return Desired.model_validate_json(received(one, "mooring/1/t0/c/cam-twin/desired")).rev == twin.desired_rev

    wait_until(lambda: is_new(bus), what="the changed twin")
    bus.stop()
    later = running.connect("cam-twin", files)
    assert is_new(later)
    later.stop()


def test_a_revoked_device_is_thrown_out_and_stays_out(running: Running, tmp_path: Path):
    files = running.enroll("cam-out", tmp_path)
    bus = running.connect("cam-out", files)
    broker = running.server.broker
    assert broker is not None
    devices.revoke_device(running.ground.database, tenant=DEFAULT_TENANT, device=DeviceId("cam-out"), by=ADMIN, now=datetime.now(UTC))
    wait_until(lambda: not bus.is_connected, what="the end of its connection")

    def is_refused() -> bool:
        try:
            probe_connection("localhost", broker.port, files, timeout_s=1)
        except UnavailableError:
            return True
        return False

    wait_until(is_refused, what="the refusal")
    bus.stop()
    verify = ssl.create_default_context(cafile=str(files.ca))
    verify.load_cert_chain(files.certificate, files.key)
    answer = httpx.get(f"{running.server.addresses.device_url}/device/v1/desired", verify=verify, trust_env=False, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (401, "certificate-revoked")


def test_an_admitted_consumer_reads_what_devices_say_and_cannot_speak(running: Running, tmp_path: Path):
    ground, config = running.ground, running.server.config
    consumers_file(config.data_dir).write_text('{"grafana": ["event"]}')
    pair = ground.authority.ensure_service("consumer.grafana")
    files = ClientFiles(ground.authority.ca_path, pair.certificate, pair.key)
    reader = Bus(
        BusOptions(
            running.server.addresses.broker.urls[0], "consumer.grafana", client_tls(files), (Subscription("mooring/1/t0/d/+/event"),)
        )
    )
    reader.start()
    device = running.connect("cam-read", running.enroll("cam-read", tmp_path))

    def is_read() -> bool:
        device.publish_and_wait("mooring/1/t0/d/cam-read/event", event("cam-read", 0).payload)
        return any(one.topic.endswith("cam-read/event") for one in reader.inbox.take(10, wait_s=0.3, gather_s=0))

    wait_until(is_read, what="the new access rules")
    with pytest.raises(UnavailableError, match="Not authorized"):
        reader.publish_and_wait("mooring/1/t0/d/cam-read/event", b"{}")
    device.stop()
    reader.stop()


# --- roles and processes ---


def test_every_part_of_a_server_says_that_it_works(running: Running):
    def troubles() -> dict[str, str]:
        with running.ground.database.reading() as tx:
            return {row.part: row.trouble for row in tx.execute(sa.select(parts.server_parts))}

    wait_until(lambda: troubles() == dict.fromkeys(parts.CONSEQUENCES, ""), what="five parts that work")


def test_a_broker_that_is_away_is_told_as_what_stands_still_for_it(tmp_path: Path, free_port: int):
    flags = {"broker.url": f"mqtts://localhost:{free_port}", "roles": ["api", "ingest"]}
    server = Server(configured(tmp_path / "data", **flags), clock=SystemClock(), say=lambda _text: None)
    server.start()
    try:

        def is_told() -> bool:
            with server.standing.database.reading() as tx:
                found = parts.list_standstills(tx, DEFAULT_TENANT, now=datetime.now(UTC) + parts.GRACE)
            return any(one.part == "ingest" and f"no connection to the broker at localhost:{free_port}" in one.text for one in found)

        wait_until(is_told, what="ingest that stands still")
    finally:
        server.stop()


def test_a_part_that_fails_says_why_and_no_more_than_people_may_read():
    told, stop = [], threading.Event()
    errors = [UnavailableError("The database does not answer: host 10.0.0.7."), ConfigError("keys are missing"), ValueError("a password")]

    def work() -> None:
        if not errors:
            stop.set()
            return
        raise errors.pop(0)

    supervise("controller", work, stop, failed=lambda part, text: told.append((part, text)))
    assert told == [
        ("controller", "It waits for something that does not answer; the log of the server says for what."),
        ("controller", "keys are missing"),
        ("controller", "It failed (ValueError); the server's log says how."),
    ]


def test_roles_of_one_server_share_the_work_across_processes(mosquitto_path: Path, tmp_path: Path, free_port: int):
    shared = {**FREE_PORTS, "broker.port": free_port}
    first = Server(configured(tmp_path / "data", **shared, roles=["controller"]), clock=SystemClock(), say=lambda _text: None)
    second = Server(configured(tmp_path / "data", **shared, roles=["api", "ingest", "worker"]), clock=SystemClock(), say=lambda _text: None)
    first.start()
    try:
        second.start()
        both = Running(second, [])
        bus = both.connect("cam-1", both.enroll("cam-1", tmp_path))
        change_config(both, "cam-1")
        received(bus, "mooring/1/t0/c/cam-1/desired")
        bus.publish_and_wait("mooring/1/t0/d/cam-1/event", event("cam-1", 0).payload)
        received(bus, "mooring/1/t0/c/cam-1/ack")
        bus.stop()
        assert (first.broker is not None, second.broker is None) == (True, True)
    finally:
        second.stop()
        first.stop()


def test_without_a_fixed_port_another_process_cannot_find_the_broker(tmp_path: Path):
    server = Server(configured(tmp_path / "data", roles=[Role.INGEST]), clock=FakeClock(), say=lambda _text: None)
    server.start()
    with pytest.raises(ConfigError, match=r"broker\.port = 0"):
        service.Ingest(server).run(server._stop)
    server.stop()


def test_a_taken_port_is_an_error_that_names_it(running: Running, tmp_path: Path):
    port = running.server.listeners[0].port
    server = Server(configured(tmp_path / "data", **{"device_api.port": port}), clock=SystemClock(), say=lambda _text: None)
    with pytest.raises(ConfigError, match=str(port)):
        server.start()
    server.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_ends_in_order_or_is_killed_and_comes_back(mosquitto_path: Path, tmp_path: Path, free_port: int, how: signal.Signals):
    environment = {**os.environ, "MOORING_BROKER__PORT": str(free_port), "PYTHONPATH": str(Path(service.__file__).parents[1])}
    for name in ("CONSOLE__PORT", "DEVICE_API__PORT", "BROKER__WEBSOCKET_PORT"):
        environment[f"MOORING_{name}"] = "0"
    command = [sys.executable, "-m", "fleet.cli", "serve", "--data", str(tmp_path / "data")]
    log = tmp_path / "log"

    def start() -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        wait_until(lambda: "Device API:" in log.read_text() or process.poll() is not None, what="the start")
        assert process.poll() is None, log.read_text()
        return process

    first = start()
    first.send_signal(how)
    assert first.wait(PATIENCE_S) == (0 if how is signal.SIGTERM else -signal.SIGKILL), log.read_text()
    second = start()
    second.terminate()
    assert second.wait(PATIENCE_S) == 0, log.read_text()
