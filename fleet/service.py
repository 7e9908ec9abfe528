"""`mooring serve`: makes what a first start needs, wires the roles of one server process, supervises them, stops them in order.

broker ─► ingest (messages → rows) · controller (ticks; states; tells devices) · worker (jobs) · api (devices; people)

Every role may run in a process of its own, any number of them; only the controller is one at a time, by a lock in the database, and the
embedded broker is the child of a process that has that role. What ends unasked is started again with a growing pause.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fleet import db, jobs, loop, parts
from fleet.adapters import delivery
from fleet.audit import Actor, ActorKind
from fleet.blobs import BlobStore, open_blobs
from fleet.broker import (
    CALLER,
    CONTROLLER,
    INGEST,
    PROBE,
    BrokerOptions,
    ClientFiles,
    EmbeddedBroker,
    acl_text,
    client_tls,
    consumers_file,
    read_consumers,
)
from fleet.bus import INGEST_SESSION_S, Bus, BusOptions, Subscription, controller_subscriptions, ingest_subscriptions, new_share_name
from fleet.campaigns import shadow
from fleet.config import FleetConfig, Role
from fleet.db import Connection, Database, migrate
from fleet.devices import enrollment, groups, twins
from fleet.devices import service as devices
from fleet.devices import store as device_store
from fleet.devices.calls import DeviceCalls
from fleet.devices.model import DeviceFilter, DeviceState
from fleet.devices.pki import Authority, open_authority
from fleet.jobs import Job
from fleet.monitoring import drift_references, drift_service, drift_tick, rules
from fleet.monitoring import service as monitoring
from fleet.monitoring.alerts import history, standstills
from fleet.monitoring.alerts import service as alerts
from fleet.monitoring.alerts.announcing import DELIVER
from fleet.monitoring.alerts.model import Counted
from fleet.monitoring.drift_alarms import PUBLISH_ALARM
from fleet.monitoring.drift_model import OPEN_STATES
from fleet.monitoring.drift_rules import rules_of
from fleet.monitoring.ingest import IngestRules, IngestWorker
from fleet.monitoring.live import LiveFeed
from fleet.registry.deltas import BUILD_DELTAS, ChildEncoder, DeltaRules
from fleet.registry.service import Registry, confirm_clock, open_registry, prune_orders
from fleet.registry.signing import TrustFolders, ceremony_text, create_trust
from fleet.supervision import supervise
from fleet.web import accounts
from fleet.web.app import console_app, device_app
from fleet.web.listener import Listener, ListenerTls
from fleet.web.services import Services
from protocol.clock import Clock, from_environment
from protocol.errors import ConfigError, ConflictError, NotFoundError
from protocol.files import write_atomically
from protocol.ids import DeviceId, DeviceTypeName, GroupName, LineName, TenantId
from protocol.messages import BrokerAddress, Presence
from protocol.topics import command_topic, fleet_topic

log = logging.getLogger("mooring.service")

#: Where the first agent keeps its state when nobody is root; a shell knows the tilde.
FIRST_AGENT_FOLDER = "~/mooring-agent"
#: Days that reports of comparisons are kept: longer than any comparison that somebody still looks at.
SHADOW_REPORT_DAYS = 400
#: Seconds of system time between two ticks, between two looks for silence and revocations, and between two deletions of old rows.
TICK_S, HOUSEKEEPING_S, PRUNE_S = 1.0, 15.0, 3600.0
STOP_TIMEOUT_S = 20.0
#: Seconds of system time between two looks at what releases bring for drift, and at the order of devices.
DRIFT_S = 15.0
#: How long the broker keeps an alarm for consumers, seconds.
ALARM_EXPIRY_S = 7 * 86_400
#: Real seconds that the job of making deltas is kept for; extended while it works.
DELTA_LEASE_S = 60.0
#: Real seconds that one delivery of an alert may take: longer than the limits of webhook and mail together.
DELIVERY_LEASE_S = 300.0
#: Alerts that one process brings to receivers at once, one to each; as many may hang before the others wait.
DELIVERIES_AT_ONCE = 8
#: Where a demo finds its login; no other start writes a password anywhere.
DEMO_LOGIN = "demo-login.json"
#: Open alarms that the chart of the fleet counts at most.
ALARMS_COUNTED = 10_000
SIGNER_USER = "signer"
_SETUP = Actor(ActorKind.SERVICE, "first-start")


def serve(config: FleetConfig, *, say: Callable[[str], None] = print) -> None:
    """Run the roles of the configuration until SIGTERM or SIGINT. `say` gets what a person must read, a first start's secrets included.

    Raises: ConfigError when something is missing, taken or wrong; UnavailableError when the database does not answer.
    """
    os.umask(0o077)
    stop = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    server = Server(config, clock=from_environment(), say=say)
    try:
        server.start()
        _tell_systemd("READY=1")
        while not stop.wait(1.0):
            server.check()
    finally:
        _tell_systemd("STOPPING=1")
        server.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


# --- the ground every role stands on ---


@dataclass(frozen=True, slots=True)
class Ground:
    """What every role needs; made by the first process that starts, opened by all others."""

    database: Database
    authority: Authority
    blobs: BlobStore
    registry: Registry
    #: The name under which this server's ingest workers share what devices say.
    share: str
    #: What a person must read once: key ceremony, login. Empty on every later start.
    notices: tuple[str, ...]
    is_first_start: bool


def lay_ground(config: FleetConfig, *, clock: Clock) -> Ground:
    """Folder, schema, authority, TUF trust, first group and first admin: made when missing, else opened.

    Raises: ConfigError; UnavailableError when the database does not answer.
    """
    folder, tenant = config.data_dir, TenantId(config.tenant)
    folder.mkdir(parents=True, exist_ok=True)
    # as root the broker runs under its own account, which must reach its folder below; nothing else in here is readable to it
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    with _alone(folder):
        database = Database(config.effective_database_url)
        migrate(database)
        authority = open_authority(config.pki_dir, config.pki)
        passphrase = create_trust(folder, demo=config.demo_keys, now=clock.now())
        blobs = open_blobs(config.effective_blob_url)
        registry = open_registry(folder, database=database, blobs=blobs, clock=clock)
        groups.ensure_first(database, tenant=tenant, now=clock.now())
        share = _share_name(config)
        admin = accounts.ensure_first_admin(database, tenant=tenant, now=datetime.now(UTC))
    notices = [ceremony_text(folder, passphrase)] if passphrase is not None or (config.demo_keys and admin is not None) else []
    if admin is not None:
        notices.append(f"First login: user {admin.name}, one-time password {admin.password}")
        if config.demo_keys:
            login = {"user": admin.name, "password": admin.password}
            write_atomically(folder / DEMO_LOGIN, json.dumps(login).encode(), mode=0o600)
    return Ground(database, authority, blobs, registry, share, tuple(notices), admin is not None)


def _share_name(config: FleetConfig) -> str:
    """Fixed for a broker that checks subscriptions; for the embedded one a secret, made once."""
    if config.broker.url:
        return "ingest"
    path = config.pki_dir / "ingest-share"
    if not path.exists():
        write_atomically(path, new_share_name().encode(), mode=0o600)
    return path.read_text()


def start_broker(config: FleetConfig, ground: Ground) -> EmbeddedBroker:
    """The embedded broker, ready. Raises: ConfigError when the program is missing or the port is taken."""
    authority = ground.authority
    server, probe = authority.ensure_server(), authority.ensure_service(PROBE)
    options = BrokerOptions(
        folder=config.data_dir / "broker",
        tls=ClientFiles(authority.ca_path, server.certificate, server.key),
        probe=ClientFiles(authority.ca_path, probe.certificate, probe.key),
        tenant=TenantId(config.tenant),
        prefix=config.broker.prefix,
        host=config.broker.host,
        port=config.broker.port,
        websocket_port=config.broker.websocket_port,
        revoked=write_revocations(ground)[0],
        consumers=read_consumers(consumers_file(config.data_dir)),
        program=Path(config.broker.mosquitto) if config.broker.mosquitto else None,
    )
    broker = EmbeddedBroker(options)
    broker.start()
    return broker


def write_revocations(ground: Ground) -> tuple[Path, bool]:
    """The list of revoked certificates that the broker reads: its path, and whether it has other entries than before."""
    folder = ground.authority.folder
    path, serials = folder / "revoked.pem", folder / "revoked.json"
    with ground.database.reading() as tx:
        revoked = device_store.list_revoked(tx, now=datetime.now(UTC))
    # another authority signs another list, also when nobody new is on it
    named = json.dumps([ground.authority.trust_digest, *(serial for serial, _ in revoked)]).encode()
    is_old = path.exists() and datetime.now(UTC).timestamp() - path.stat().st_mtime > timedelta(days=10).total_seconds()
    if path.exists() and not is_old and serials.exists() and serials.read_bytes() == named:
        return path, False
    write_atomically(path, ground.authority.revocation_list(revoked), mode=0o600)
    write_atomically(serials, named, mode=0o600)
    return path, True


def list_revoked_devices(database: Database, tenant: TenantId) -> set[DeviceId]:
    """All devices that no longer belong to the fleet."""
    found: set[DeviceId] = set()
    last: DeviceId | None = None
    with database.reading() as tx:
        while page := device_store.list_devices(tx, tenant, matching=DeviceFilter(state=DeviceState.REVOKED), after=last, limit=500):
            found.update(one.device for one in page)
            last = page[-1].device
    return found


def _issue(authority: Authority, device: DeviceId, key: ec.EllipticCurvePublicKey) -> str:
    return authority.issue_device(device, key).pem


def start_signer(config: FleetConfig, ground: Ground, *, clock: Clock, url: str) -> subprocess.Popen[bytes]:
    """The demo's signer, a process of its own with a token of its own: signs what governance approved with this machine's line keys."""
    tenant = TenantId(config.tenant)
    with contextlib.suppress(ConflictError):  # made by an earlier start; nobody knows its password, it is never used
        accounts.create_user(
            ground.database,
            tenant=tenant,
            name=SIGNER_USER,
            display_name="Demo signer",
            password=accounts.generate_password(),
            permissions=["approver"],
            by=_SETUP,
            at=clock.now(),
        )
    token = accounts.create_token(
        ground.database,
        tenant=tenant,
        owner=SIGNER_USER,
        name="demo signer",
        scopes=["releases:sign", "approvals:read"],
        days=30,
        by=_SETUP,
        now=datetime.now(UTC),
        at=clock.now(),
    )
    keys = TrustFolders(config.data_dir).lines
    keys.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fleet.cli", "signer", "--server", url, "--keys", str(keys), "--log-level", config.log_level]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "MOORING_TOKEN": token.text})


# --- one process ---


@dataclass(frozen=True, slots=True)
class Addresses:
    """How others reach this server."""

    device_url: str
    #: From this machine.
    console_url: str
    #: From wherever people are.
    public_console_url: str
    broker: BrokerAddress


class Server:
    """One server process and its parts, in the order in which they start."""

    def __init__(self, config: FleetConfig, *, clock: Clock, say: Callable[[str], None]) -> None:
        self.config, self.clock, self._say = config, clock, say
        self.tenant = TenantId(config.tenant)
        self.live = LiveFeed()
        self.broker: EmbeddedBroker | None = None
        self.listeners: list[Listener] = []
        self.ground: Ground | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.pulse = parts.Pulse()
        self._signer: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Everything up and ready. Raises: ConfigError; UnavailableError when the database does not answer."""
        config, roles = self.config, self.config.roles
        ground = self.ground = lay_ground(config, clock=self.clock)
        self._look_at_the_clock(ground)
        if config.broker.url:
            self._say(f"The broker {config.broker.url} is yours; it must allow:\n\n{acl_text(self.tenant, config.broker.prefix)}")
        elif Role.CONTROLLER in roles:
            self.broker = start_broker(config, ground)
        if Role.API in roles:
            self._open_listeners(ground)
        if Role.INGEST in roles:
            self._run("ingest", lambda: Ingest(self).run(self._stop))
        if Role.CONTROLLER in roles:
            controller = Controller(self)
            self._run("controller", lambda: controller.run(self._stop), is_alone=True)
        if Role.WORKER in roles:
            self._run("worker", lambda: run_worker(ground, self.clock, self._stop, on_round=partial(self.worked, "worker")))
            self._run("alerts", lambda: self._deliver_alerts(ground))
        if Role.WORKER in roles and config.deltas.enabled:
            self._run("deltas", lambda: DeltaMaker(self).run(self._stop), is_alone=True)
        self._start_thread("parts", lambda: self._report_parts(ground))
        if Role.API in roles and config.demo_keys:
            self._signer = self._start_signer(ground)
        for notice in ground.notices:
            self._say(notice)
        if self.listeners:
            public = f", for people {self.config.console.url}" if self.config.console.url else ""
            self._say(f"Console: {self.addresses.console_url}{public}\nDevice API: {self.addresses.device_url}")
        if ground.is_first_start:
            self._say(self._invitation(ground))

    def _look_at_the_clock(self, ground: Ground) -> None:
        """After a day or more without this server, a person says that the clock is right (R5); and without its keys it signs nothing."""
        registry, now = ground.registry, self.clock.now()
        if missing := registry.keys.missing():
            self._say(f"WARNING: keys are missing, devices stay as they are: {', '.join(missing)}. See docs/operations/keys.md.")
        if registry.guard.is_believed(now):
            return
        if self.config.trust_clock:
            confirm_clock(registry, tenant=self.tenant, by=Actor(ActorKind.SERVICE, "serve --trust-clock"), reason="trusted at start-up")
        else:
            self._say(f"WARNING: no assignment is signed, devices stay as they are. {registry.guard.advice(now)}")

    def check(self) -> None:
        """Start again what a thread cannot. Raises: ConfigError when a listener is gone, which nothing here can bring back."""
        for listener in self.listeners:
            if not listener.is_running:
                raise ConfigError(f"The {listener.name} listener ended by itself; its reason is in the log.", code="listener-ended")
        if self._signer is not None and self._signer.poll() is not None:
            log.error("signer_ended status=%s", self._signer.returncode)
            self._signer = self._start_signer(self.standing)

    def stop(self) -> None:
        """No new request, no new batch; what is not committed comes again. Safe to call twice."""
        self._stop.set()
        for listener in self.listeners:
            listener.stop()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)
        if self._signer is not None and self._signer.poll() is None:
            self._signer.terminate()
            self._signer.wait(STOP_TIMEOUT_S)
        if self.broker is not None:
            self.broker.stop()
        if self.ground is not None:
            self.ground.database.dispose()

    def connect(self, principal: str, subscriptions: tuple[Subscription, ...], *, session_s: int = 0) -> Bus:
        """A connection to the broker as one of the server's principals, begun. Raises: ConfigError."""
        authority = self.standing.authority
        pair = authority.ensure_service(principal)
        tls = client_tls(ClientFiles(authority.ca_path, pair.certificate, pair.key))
        bus = Bus(BusOptions(self._broker_url, principal, tls, subscriptions, session_s))
        bus.start()
        return bus

    @property
    def standing(self) -> Ground:
        """The ground. Raises: RuntimeError before `start`."""
        if self.ground is None:
            raise RuntimeError("start() was not called")
        return self.ground

    @property
    def addresses(self) -> Addresses:
        """How others reach what runs now."""
        config = self.config
        by_name = {listener.name: listener for listener in self.listeners}
        device_port = by_name["device API"].port if "device API" in by_name else config.device_api.port
        console_port = by_name["console"].port if "console" in by_name else config.console.port
        console_scheme = "https" if config.console.tls_certificate else "http"
        console_url = f"{console_scheme}://{self._public_name(config.console.host)}:{console_port}"
        urls = config.broker.public_urls or ((config.broker.url,) if config.broker.url else self._embedded_urls())
        return Addresses(
            device_url=config.device_api.url or f"https://{self._public_name(config.device_api.host)}:{device_port}",
            console_url=console_url,
            public_console_url=config.console.url or console_url,
            broker=BrokerAddress(urls=list(urls), prefix=config.broker.prefix),
        )

    @property
    def _broker_url(self) -> str:
        port = self.broker.port if self.broker is not None else self.config.broker.port
        if not self.config.broker.url and port == 0:
            raise ConfigError("broker.port = 0, and another process has the broker.", hint="Give it a fixed port, or set broker.url.")
        return self.config.broker.url or f"mqtts://localhost:{port}"

    def _embedded_urls(self) -> tuple[str, ...]:
        name, config = self._public_name(self.config.broker.host), self.config.broker
        port = self.broker.port if self.broker is not None else config.port
        web = self.broker.websocket_port if self.broker is not None else config.websocket_port
        return (f"mqtts://{name}:{port}", f"wss://{name}:{web}/mqtt")

    def _public_name(self, host: str) -> str:
        """A name that the server's certificate holds and that leads to the address listened on."""
        if host in {"127.0.0.1", "::1", "localhost"}:
            return "localhost"
        outside = [name for name in self.config.pki.names if name not in {"localhost", "127.0.0.1", "::1"}]
        return outside[0] if outside else host

    def _open_listeners(self, ground: Ground) -> None:
        config, server = self.config, ground.authority.ensure_server()
        console = config.console
        console_tls = ListenerTls(console.tls_certificate, console.tls_key) if console.tls_certificate and console.tls_key else None
        device_tls = ListenerTls(server.certificate, server.key, ground.authority.ca_path)
        first = self._listener("device API", config.device_api.host, config.device_api.port, device_tls)
        second = self._listener("console", console.host, console.port, console_tls)
        addresses = self.addresses
        services = Services(
            config=config,
            tenant=self.tenant,
            database=ground.database,
            clock=self.clock,
            authority=ground.authority,
            blobs=ground.blobs,
            registry=ground.registry,
            broker=addresses.broker,
            device_url=addresses.device_url,
            console_url=addresses.public_console_url,
            live=self.live,
            calls=DeviceCalls(ground.database, connect=partial(self.connect, CALLER), clock=self.clock, prefix=config.broker.prefix),
            broker_text=f"embedded mosquitto {self.broker.version}" if self.broker else self._broker_url,
            banner=banner_text(config, self.clock),
        )
        first.start(device_app(services))
        second.start(console_app(services))

    def _report_parts(self, ground: Ground) -> None:
        """Say how the parts of this process are, for people to see."""
        process = f"{socket.gethostname()[:150]}:{os.getpid()}:{secrets.token_hex(4)}"  # containers may share name and number
        if not self.config.deltas.enabled:
            with ground.database.transaction() as tx:
                parts.forget(tx, self.tenant, "deltas")
        while not self._stop.is_set():
            states = self.pulse.states(now=datetime.now(UTC))
            with ground.database.transaction() as tx:
                parts.report(tx, self.tenant, process, states, now=db.clock(tx))
            is_well = not any(state.trouble for state in states.values())
            self._stop.wait(parts.BEAT_S if is_well else parts.TROUBLED_BEAT_S)

    def _deliver_alerts(self, ground: Ground) -> None:
        """Alerts to webhooks and mail, several at once: a receiver that is slow delays neither another one nor any other job."""
        server, lease_s = delivery.mail_server(self.config.mail), DELIVERY_LEASE_S * self.clock.speed
        deliver = delivery.handler(
            ground.database, server=server, console_url=lambda: self.addresses.public_console_url, system_now=lambda: datetime.now(UTC)
        )
        jobs.work_side_by_side(
            ground.database,
            self.clock,
            {DELIVER: deliver},
            self._stop,
            most=DELIVERIES_AT_ONCE,
            lease_s=lease_s,
            idle_s=TICK_S,
            on_round=partial(self.worked, "alerts"),
        )

    def _listener(self, name: str, host: str, port: int, tls: ListenerTls | None) -> Listener:
        listener = Listener(name=name, host=host, port=port, tls=tls)
        self.listeners.append(listener)
        return listener

    def _start_signer(self, ground: Ground) -> subprocess.Popen[bytes]:
        return start_signer(self.config, ground, clock=self.clock, url=self.addresses.console_url)

    def worked(self, part: str) -> None:
        """The part of this process has done a round of its work."""
        self.pulse.worked(part, now=datetime.now(UTC))

    def _run(self, name: str, work: Callable[[], None], *, is_alone: bool = False) -> None:
        """`is_alone`: one process at a time has the part, and says so when it has."""
        if not is_alone:
            self.pulse.begin(name, now=datetime.now(UTC))
        self._start_thread(name, work, failed=self.pulse.failed)

    def _start_thread(self, name: str, work: Callable[[], None], *, failed: Callable[[str, str], None] | None = None) -> None:
        thread = threading.Thread(target=supervise, args=(name, work, self._stop), kwargs={"failed": failed}, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _invitation(self, ground: Ground) -> str:
        machine = {"aarch64": "linux-arm64", "armv7l": "linux-armv7"}.get(platform.machine(), "linux-x86-64")
        invite = enrollment.invite(
            ground.database,
            ground.authority,
            tenant=self.tenant,
            group=groups.DEFAULT_GROUP,
            device_type=DeviceTypeName(machine),
            by=_SETUP,
            now=datetime.now(UTC),
        )
        agent, state = _agent_program(), f"--state-dir {FIRST_AGENT_FOLDER}"
        until = f"{invite.expires_at:%Y-%m-%d %H:%M} UTC"
        return (
            f"Enroll a first device ({machine}, once, until {until}) and run its agent, here and without root:\n\n"
            f"    {agent} enroll --server {self.addresses.device_url} --token {invite.text} {state}\n"
            f"    {agent} run {state}\n\n"
            "As a service of the system, as root: without --state-dir.\n"
        )


def _agent_program() -> str:
    """How a new shell of this machine starts the agent: by name, or by path where the name is not on the PATH."""
    beside = Path(sys.executable).with_name("mooring-agent")
    return str(beside) if shutil.which("mooring-agent") is None and beside.exists() else "mooring-agent"


def banner_text(config: FleetConfig, clock: Clock) -> str:
    """What every page warns of; empty when there is nothing."""
    texts = ["DEMO KEYS: whoever can read this machine can sign models."] if config.demo_keys else []
    if clock.speed > 1.0:
        texts.append(f"Accelerated clock: {clock.speed:g} times as fast.")
    return " ".join(texts)


# --- the roles ---


def ingest_rules(server: Server) -> IngestRules:
    """What ingest asks of the server's other domains."""

    def is_enrolled(tx: Connection, tenant: TenantId, names: Collection[DeviceId]) -> set[DeviceId]:
        return {device for _, device in device_store.filter_enrolled(tx, [(tenant, name) for name in names])}

    events = (shadow.take_event, drift_references.take_event)
    return IngestRules(is_enrolled, prefix=server.config.broker.prefix, tenant=server.tenant, on_event=events)


@dataclass(frozen=True, slots=True)
class Ingest:
    """What devices say becomes rows, and is acknowledged after the commit."""

    server: Server

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        server = self.server
        wanted = ingest_subscriptions(server.config.broker.prefix, share=server.standing.share)
        bus = server.connect(INGEST, wanted, session_s=INGEST_SESSION_S)
        server.live.is_fed = True
        worker = IngestWorker(
            bus,
            server.standing.database,
            server.clock,
            rules=ingest_rules(server),
            live=server.live,
            batch=server.config.limits.ingest_batch,
        )
        server.pulse.watch("ingest", lambda: trouble_of(bus))
        try:
            worker.run(stop, on_round=partial(server.worked, "ingest"))
        finally:
            server.live.is_fed = False
            bus.stop()


def trouble_of(bus: Bus) -> str:
    """What keeps a part from talking with devices; empty: nothing."""
    if bus.is_connected:
        return ""
    return f"The broker refuses it: {bus.refusal}." if bus.refusal else f"It has no connection to the broker at {bus.place}."


@dataclass(frozen=True, slots=True)
class Controller:
    """One at a time over all processes: ticks, states that were retained while nobody listened, what devices are told."""

    server: Server
    #: When it first and last saw each part of the server that stands still.
    seen_still: dict[str, standstills.Seen] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Work whenever no other process does, until `stop` is set."""
        while not stop.is_set():
            with self.server.standing.database.try_exclusive("controller") as is_ours:
                if is_ours:
                    self._run_alone(stop)
            stop.wait(TICK_S)

    def _run_alone(self, stop: threading.Event) -> None:
        server, ground = self.server, self.server.standing
        bus = server.connect(CONTROLLER, controller_subscriptions(server.config.broker.prefix))
        server.pulse.begin("controller", now=datetime.now(UTC))
        server.pulse.watch("controller", lambda: trouble_of(bus))
        ended = threading.Event()
        states = IngestWorker(bus, ground.database, server.clock, rules=ingest_rules(server))
        reader = threading.Thread(target=supervise, args=("states", lambda: states.run(ended), ended), name="states", daemon=True)
        reader.start()
        handlers = {
            twins.PUBLISH_DESIRED: lambda job: self._publish_desired(bus, job),
            PUBLISH_ALARM: lambda job: publish_alarm(bus, job, prefix=server.config.broker.prefix),
        }
        shut_out: set[DeviceId] = set()
        due: dict[str, tuple[float, Callable[[], None]]] = {
            "house": (HOUSEKEEPING_S, lambda: self._keep_house(shut_out)),
            "rows": (PRUNE_S, self._prune),
            "drift": (DRIFT_S, self._keep_drift),
            "parts": (HOUSEKEEPING_S, self._tell_standstills),
            "rules": (max(TICK_S, rules.EVERY_S / server.clock.speed), self._look_at_rules),
        }
        last = dict.fromkeys(due, datetime.min.replace(tzinfo=UTC))
        try:
            while not stop.is_set():
                # first: revocations are kept up also where a round below fails each time, as without a signing key
                failed: Exception | None = None
                for name, (every_s, act) in due.items():
                    now = datetime.now(UTC)
                    if now - last[name] >= timedelta(seconds=every_s):
                        last[name] = now
                        try:
                            act()
                        except Exception as error:  # noqa: BLE001 - raised below: a duty that fails keeps none of the others from being done
                            failed = failed or error
                drift_tick.tick(ground.database, rules=rules_of(server.config.drift), now=server.clock.now())
                loop.tick(ground.registry)
                while not stop.is_set() and jobs.work_once(ground.database, server.clock, handlers) is not None:
                    pass
                if failed is not None:
                    raise failed
                server.worked("controller")
                stop.wait(TICK_S)
        finally:
            ended.set()
            reader.join(STOP_TIMEOUT_S)
            bus.stop()

    def _publish_desired(self, bus: Bus, job: Job) -> None:
        """Tell one device, retained, what it should be like; a device that is gone is told nothing."""
        device = DeviceId(str(job.payload["device"]))
        try:
            desired = twins.get_desired(self.server.standing.database, job.tenant, device)
        except NotFoundError:
            return
        topic = command_topic(job.tenant, device, "desired", prefix=self.server.config.broker.prefix)
        bus.publish_and_wait(topic, desired.model_dump_json(exclude_none=True).encode(), retain=True, schema="desired.1")

    def _tell_standstills(self) -> None:
        """Tell people of parts of the server that stand still."""
        server = self.server
        with server.standing.database.transaction() as tx:
            found = standstills.tell(tx, server.tenant, self.seen_still, now=server.clock.now(), system_now=db.clock(tx))
        self.seen_still.clear()
        self.seen_still.update(found)

    def _keep_drift(self) -> None:
        """What releases bring for drift, thresholds, and which devices are listed."""
        server, ground = self.server, self.server.standing
        drift_tick.keep_house(ground.database, ground.blobs, rules=rules_of(server.config.drift), now=server.clock.now())

    def _keep_house(self, shut_out: set[DeviceId]) -> None:
        """Notice silence; tell the embedded broker who was admitted and revoked, and end what the revoked have open."""
        server, ground = self.server, self.server.standing
        monitoring.mark_silent(ground.database, server.tenant, now=server.clock.now())
        _, is_new = write_revocations(ground)
        if server.broker is None:
            return
        consumers = read_consumers(consumers_file(server.config.data_dir))
        if is_new or consumers != server.broker.options.consumers:
            server.broker.reload(replace(server.broker.options, consumers=consumers))
        revoked = list_revoked_devices(ground.database, server.tenant)
        for device in sorted(revoked - shut_out):
            server.broker.end_session(device, issue_to=partial(_issue, ground.authority, device))
        shut_out.clear()
        shut_out.update(revoked)

    def _look_at_rules(self) -> None:
        """Rules on what was said, and the history that charts are drawn from."""
        database, tenant, now = self.server.standing.database, self.server.tenant, self.server.clock.now()
        alerts.evaluate(database, tenant, now=now)
        history.add_received(database, tenant, now=now)
        online = sum(count for (presence, _), count in monitoring.count_views(database, tenant).items() if presence is not Presence.OFFLINE)
        alarms = len(drift_service.list_alarms(database, tenant, states=tuple(OPEN_STATES), limit=ALARMS_COUNTED))
        counted = Counted(devices.count_devices(database, tenant), online, alarms, alerts.count_firing(database, tenant))
        history.save_counted(database, tenant, counted, now=now)

    def _prune(self) -> None:
        server, database = self.server, self.server.standing.database
        now = server.clock.now()
        monitoring.prune(database, server.tenant, now=now, telemetry_days=server.config.limits.telemetry_days)
        history.prune(database, server.tenant, now=now)
        drift_tick.prune(database, now=now)
        shadow.prune(database, before=now - timedelta(days=SHADOW_REPORT_DAYS))
        prune_orders(database, now=now)
        with database.transaction() as tx:
            jobs.prune(tx, before=now - timedelta(days=7))
            parts.prune(tx, before=datetime.now(UTC) - timedelta(days=7))


def publish_alarm(bus: Bus, job: Job, *, prefix: str) -> None:
    """Tell consumers of an alarm, on `f/alarm`. Raises: UnavailableError: the job tries again."""
    topic = fleet_topic(job.tenant, "alarm", prefix=prefix)
    bus.publish_and_wait(topic, json.dumps(job.payload["event"]).encode(), expiry_s=ALARM_EXPIRY_S, schema="alarm.1")


def run_worker(ground: Ground, clock: Clock, stop: threading.Event, *, on_round: Callable[[], None]) -> None:
    """Jobs of all kinds but those that need the controller's connection, until `stop` is set."""

    def refresh_group(job: Job) -> None:
        group = GroupName(str(job.payload["group"]))
        twins.refresh_group(ground.database, tenant=job.tenant, group=group, now=clock.now())

    jobs.work(ground.database, clock, {twins.REFRESH_GROUP: refresh_group}, stop, on_round=on_round)


@dataclass(frozen=True, slots=True)
class DeltaMaker:
    """Deltas between releases: one at a time over all processes, each in a child that lets everybody else go first."""

    server: Server

    def run(self, stop: threading.Event) -> None:
        """Work whenever no other process does, until `stop` is set."""
        database, clock = self.server.standing.database, self.server.clock
        while not stop.is_set():
            with database.try_exclusive("deltas") as is_ours:
                handlers = {BUILD_DELTAS: partial(self._build, stop)}
                if is_ours:
                    self.server.pulse.begin("deltas", now=datetime.now(UTC))
                while is_ours and not stop.is_set():
                    self.server.worked("deltas")
                    if jobs.work_once(database, clock, handlers, lease_s=DELTA_LEASE_S * clock.speed) is None:
                        stop.wait(TICK_S)
            stop.wait(TICK_S)

    def _build(self, stop: threading.Event, job: Job) -> None:
        server = self.server
        config, ground, clock, extended = server.config.deltas, server.standing, server.clock, time.monotonic()
        rules = DeltaRules(**config.model_dump(exclude={"enabled"}))

        def keep_lease() -> None:
            nonlocal extended
            server.worked("deltas")
            if time.monotonic() - extended > DELTA_LEASE_S / 4:
                with ground.database.transaction() as tx:
                    jobs.extend(tx, job, now=clock.now(), lease_s=DELTA_LEASE_S * clock.speed)
                extended = time.monotonic()

        def rest(cpu_s: float) -> None:
            until = time.monotonic() + rules.rest_s(cpu_s)
            while not stop.is_set() and (left := until - time.monotonic()) > 0:
                stop.wait(min(left, DELTA_LEASE_S / 8))
                keep_lease()

        encode = ChildEncoder(rules, stop=stop, alive=keep_lease)
        line = LineName(str(job.payload["line"]))
        loop.build_deltas(ground.registry, tenant=job.tenant, line=line, rules=rules, encode=encode, rest=rest)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Several processes may start at once; one after the other lays the ground."""
    descriptor = os.open(folder / ".setup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _tell_systemd(state: str) -> None:
    """Say to the service manager how we are; does nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
