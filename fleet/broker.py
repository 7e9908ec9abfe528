"""The embedded broker: finds mosquitto, writes its configuration, starts and supervises it as a child; never touches an external broker.

What holds for it: TLS with client certificates on every listener, the certificate's common name is user name and client id (so nobody
can take over another's session), an ACL after INTERFACES 1.4, explicit limits, loopback unless configured otherwise.
"""

import contextlib
import errno
import json
import logging
import os
import pwd
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from protocol.errors import ConfigError, InvalidError, UnavailableError
from protocol.files import read_bounded, write_atomically
from protocol.ids import DEFAULT_TENANT, TenantId, check_name
from protocol.topics import DEFAULT_PREFIX, MAX_PACKET_BYTES, STATE_STREAMS, WIRE_MAJOR

log = logging.getLogger("mooring.broker")

#: Server principals: a common name with a dot, which the grammar of device ids excludes.
INGEST = "fleet.ingest"
CONTROLLER = "fleet.controller"
#: Asks single devices for an answer.
CALLER = "fleet.caller"
#: Broker users of people and other systems: "consumer.<name>".
CONSUMER_PREFIX = "consumer."
#: Connects to see whether the broker answers; may read and write nothing.
PROBE = f"{CONSUMER_PREFIX}probe"

INSTALL_LINE = "apt install mosquitto"
MIN_VERSION = (2, 0)
_MAX_LOG_LINE = 500
#: A topic filter below `d/{device}/`: levels of our grammar or "+", and "#" at the end.
_SUFFIX = re.compile(r"(?:(?:\+|[a-z0-9][a-z0-9-]{0,62})/){0,7}(?:#|\+|[a-z0-9][a-z0-9-]{0,62})")
_MAX_CONSUMERS_BYTES = 1 << 20
#: How long an orphaned broker may take to save its queues, in seconds.
_ORPHAN_WAIT_S = 5.0
#: Where free ports are looked for, and how often before the system is asked for any.
_LOWEST_FREE_PORT, _PORT_TRIES = 15_000, 100
_CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """Files with which a client of the broker proves who it is."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Consumer:
    """An outside reader and the device topics (below `d/{device}/`) it may read besides `f/#`."""

    name: str
    suffixes: tuple[str, ...] = ("#",)

    @property
    def principal(self) -> str:
        """Its common name on the broker."""
        return f"{CONSUMER_PREFIX}{self.name}"


def consumers_file(data_dir: Path) -> Path:
    """Where the server keeps who was admitted: {"name": ["suffix", …]}."""
    return data_dir / "pki" / "consumers.json"


def read_consumers(path: Path) -> tuple[Consumer, ...]:
    """The outside readers admitted, by name; none when there is no such file.

    Raises: ConfigError naming what does not fit: a name, or a suffix that would reach beyond a device's own topics.
    """
    if not path.exists():
        return ()
    try:
        document = json.loads(read_bounded(path, _MAX_CONSUMERS_BYTES))
        found = tuple(Consumer(check_name(name, what="Consumer"), tuple(suffixes)) for name, suffixes in sorted(document.items()))
    except (ValueError, AttributeError, TypeError, InvalidError) as error:
        raise ConfigError(f"{path} is not the list of consumers: {error}", hint='Wanted: {"name": ["tel/#", "event"]}.') from error
    for consumer in found:
        for suffix in consumer.suffixes:
            if not isinstance(suffix, str) or not _SUFFIX.fullmatch(suffix):
                raise ConfigError(f"{path}: {consumer.name} has the suffix {suffix!r}.", hint="Wanted topics below a device: tel/#, event.")
    return found


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Everything the embedded broker's configuration is made of."""

    #: Where configuration, ACL, key copies and the persisted queue lie; written by us.
    folder: Path
    #: Server certificate and key, and the authority that signs devices.
    tls: ClientFiles
    #: Common name PROBE.
    probe: ClientFiles
    tenant: TenantId = DEFAULT_TENANT
    prefix: str = DEFAULT_PREFIX
    host: str = "127.0.0.1"
    #: 0 = any free port.
    port: int = 8883
    #: None = no listener for WebSockets; 0 = any free port.
    websocket_port: int | None = 8884
    #: Certificates revoked, PEM; None = none yet.
    revoked: Path | None = None
    consumers: tuple[Consumer, ...] = ()
    #: The program; None = looked for.
    program: Path | None = None
    max_connections: int = 20_000
    #: Messages kept for one absent client; beyond it the broker drops, and devices send `stored` rows again.
    max_queued_messages: int = 100_000
    max_queued_bytes: int = 256 * 1024 * 1024
    #: Bytes of memory after which the broker refuses more.
    memory_limit: int = 1024 * 1024 * 1024
    #: Seconds between two saves of queues and retained messages; what a kill of the broker can lose.
    autosave_s: int = 5


@dataclass(frozen=True, slots=True)
class Mosquitto:
    """The program found and its version."""

    path: Path
    version: tuple[int, ...]


def find_mosquitto(program: Path | None = None) -> Mosquitto:
    """The broker's program: `program`, else MOORING_MOSQUITTO, else the PATH, else /usr/sbin.

    Raises: ConfigError with the install line when there is none, or naming the version when it is older than 2.0.
    """
    wanted = program or os.environ.get("MOORING_MOSQUITTO") or "mosquitto"
    found = shutil.which(str(wanted), path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise ConfigError(
            f"The broker's program {str(wanted)!r} was not found on the PATH or in /usr/sbin.",
            code="broker-missing",
            hint=f"Install it ({INSTALL_LINE}), or name it by MOORING_MOSQUITTO, or use your own broker: --broker mqtts://host:8883.",
        )
    answer = subprocess.run([found, "-h"], capture_output=True, text=True, check=False, timeout=10)
    match = re.search(r"version (\d+(?:\.\d+)*)", answer.stdout + answer.stderr)
    version = tuple(int(part) for part in match.group(1).split(".")) if match else ()
    if version < MIN_VERSION:
        seen = ".".join(map(str, version)) or "no version"
        raise ConfigError(
            f"{found} says {seen}; wanted mosquitto 2.0 or later (MQTT 5, use_username_as_clientid).",
            code="broker-too-old",
            hint=f"Upgrade it ({INSTALL_LINE}) or name another by MOORING_MOSQUITTO.",
        )
    return Mosquitto(Path(found), version)


def acl_text(tenant: TenantId, prefix: str = DEFAULT_PREFIX, consumers: tuple[Consumer, ...] = ()) -> str:
    """Who may read and write what, as a mosquitto ACL file (INTERFACES 1.4): also what an external broker must be told.

    One tenant per broker: a pattern for several would let a device write its id into every tenant's tree.
    """
    root = f"{prefix}/{WIRE_MAJOR}/{tenant}"
    lines = [
        f"# Mooring's access rules for tenant {tenant}. User name = common name of the client certificate = client id.",
        f"user {INGEST}",
        f"topic read {root}/d/+/#",
        f"topic write {root}/c/+/ack",
        "",
        f"user {CONTROLLER}",
        *(f"topic read {root}/d/+/{stream}" for stream in (*STATE_STREAMS, "rpc-reply")),
        f"topic write {root}/c/#",
        f"topic write {root}/f/#",
        "",
        f"user {CALLER}",
        f"topic read {root}/d/+/rpc-reply",
        f"topic write {root}/c/+/rpc/+",
        "",
    ]
    for consumer in consumers:
        lines += [f"user {consumer.principal}", f"topic read {root}/f/#"]
        lines += [f"topic read {root}/d/+/{suffix}" for suffix in consumer.suffixes]
        lines.append("")
    lines += ["# Every device: its own two trees.", f"pattern write {root}/d/%u/#", f"pattern read {root}/c/%u/#", ""]
    return "\n".join(lines)


def configuration_text(options: BrokerOptions, *, port: int, websocket_port: int | None, tls: ClientFiles, user: str | None) -> str:
    """The broker's configuration file."""
    listeners = [(port, "mqtt")] if websocket_port is None else [(port, "mqtt"), (websocket_port, "websockets")]
    lines = [
        "# Written at each start; changes are lost.",
        "per_listener_settings false",
        "allow_anonymous false",
        f"acl_file {options.folder / 'acl'}",
        "allow_zero_length_clientid false",
        "persistence true",
        f"persistence_location {options.folder}/state/",
        f"autosave_interval {options.autosave_s}",
        "persistent_client_expiration 7d",
        f"max_packet_size {MAX_PACKET_BYTES + 4096}",
        "max_inflight_messages 1000",
        f"max_queued_messages {options.max_queued_messages}",
        f"max_queued_bytes {options.max_queued_bytes}",
        f"memory_limit {options.memory_limit}",
        "max_keepalive 3600",
        "sys_interval 0",
        "retain_available true",
        "set_tcp_nodelay true",
        "connection_messages false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_timestamp false",
        *([f"user {user}"] if user else []),
    ]
    for number, protocol in listeners:
        lines += [
            "",
            f"listener {number} {options.host}",
            f"protocol {protocol}",
            f"cafile {tls.ca}",
            f"certfile {tls.certificate}",
            f"keyfile {tls.key}",
            *([f"crlfile {options.folder / 'revoked.pem'}"] if options.revoked else []),
            "tls_version tlsv1.2",
            "require_certificate true",
            "use_identity_as_username true",
            "use_username_as_clientid true",
            f"max_connections {options.max_connections}",
        ]
    return "\n".join(lines) + "\n"


@dataclass
class EmbeddedBroker:
    """The broker as a child of this process: started, watched, started again with growing pauses, stopped."""

    options: BrokerOptions
    #: Longest pause before a dead broker is started again, in seconds.
    max_pause_s: float = 10.0
    port: int = field(init=False, default=0)
    websocket_port: int | None = field(init=False, default=None)
    starts: int = field(init=False, default=0)
    _program: Mosquitto | None = field(init=False, default=None)
    _child: subprocess.Popen[str] | None = field(init=False, default=None)
    _stopping: threading.Event = field(init=False, default_factory=threading.Event)
    _watcher: threading.Thread | None = field(init=False, default=None)
    _last_lines: list[str] = field(init=False, default_factory=list)

    def start(self, *, timeout_s: float = 15.0) -> None:
        """Write the files, start the child and wait until a real MQTT 5 connect succeeds.

        Raises: ConfigError when the program is missing, too old, or ends at once (with its own words).
        """
        self._program = find_mosquitto(self.options.program)
        self._end_orphan()
        self.port = _usable_port(self.options.host, self.options.port)
        wanted = self.options.websocket_port
        self.websocket_port = None if wanted is None else _usable_port(self.options.host, wanted)
        while wanted == 0 and self.websocket_port == self.port:
            self.websocket_port = _usable_port(self.options.host, 0)
        self.write_files()
        self._launch()
        self._watcher = threading.Thread(target=self._watch, name="broker-watcher", daemon=True)
        self._watcher.start()
        self._wait_ready(timeout_s)
        log.info("broker_ready port=%d websocket_port=%s version=%s", self.port, self.websocket_port, self.version)

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the child; it saves queues and retained messages first."""
        self._stopping.set()
        child = self._child
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._watcher is not None:
            self._watcher.join(timeout_s)

    def reload(self, options: BrokerOptions | None = None) -> None:
        """Write the ACL and the revocation list anew and make the running broker read them."""
        if options is not None:
            self.options = options
        self.write_files()
        if self.is_running:
            os.kill(self.pid, signal.SIGHUP)

    def end_session(self, principal: str, *, issue_to: Callable[[ec.EllipticCurvePublicKey], str]) -> bool:
        """Throw a principal out, and what is queued for it: one certificate of its name, used once, takes its session over and ends it.

        `issue_to` signs a certificate of that name for the key; returns whether the broker let us. Mosquitto has no other way to do this
        without a plug-in.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with tempfile.TemporaryDirectory(prefix="mooring-") as scratch:
            files = ClientFiles(self.options.tls.ca, Path(scratch) / "certificate.pem", Path(scratch) / "key.pem")
            write_atomically(files.certificate, issue_to(key.public_key()).encode())
            write_atomically(files.key, pem, mode=0o600)
            try:
                probe_connection(self.options.host, self.port, files)
            except UnavailableError as error:
                log.warning("broker_session_not_ended principal=%s error=%s", principal, error)
                return False
        log.info("broker_session_ended principal=%s", principal)
        return True

    @property
    def is_running(self) -> bool:
        """Whether the child lives."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The child's process id. Raises: LookupError when it was never started."""
        if self._child is None:
            raise LookupError("the broker was not started")
        return self._child.pid

    @property
    def version(self) -> str:
        """Version of the program, empty before the start."""
        return ".".join(map(str, self._program.version)) if self._program else ""

    def write_files(self) -> None:
        """Write configuration, ACL, revocation list and, when started by root, the copies that the broker's own user can read."""
        folder = self.options.folder
        account = _account_for(folder)
        for made in (folder, folder / "state"):
            made.mkdir(parents=True, exist_ok=True)
            made.chmod(0o700)
            if account is not None:
                os.chown(made, account.pw_uid, account.pw_gid)
        tls = self._copy_tls(account)
        user = None if os.geteuid() else account.pw_name if account else "root"
        self._write("acl", acl_text(self.options.tenant, self.options.prefix, self.options.consumers).encode(), account)
        if self.options.revoked is not None:
            self._write("revoked.pem", self.options.revoked.read_bytes(), account)
        text = configuration_text(self.options, port=self.port, websocket_port=self.websocket_port, tls=tls, user=user)
        self._write("mosquitto.conf", text.encode(), account)

    def _copy_tls(self, account: pwd.struct_passwd | None) -> ClientFiles:
        """Mosquitto drops its rights before it reads keys: as root it needs copies that its own user owns."""
        tls, folder = self.options.tls, self.options.folder
        for name, source in (("ca.pem", tls.ca), ("server.pem", tls.certificate), ("server-key.pem", tls.key)):
            self._write(name, source.read_bytes(), account)
        return ClientFiles(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem")

    def _write(self, name: str, data: bytes, account: pwd.struct_passwd | None) -> None:
        path = self.options.folder / name
        write_atomically(path, data, mode=0o600)
        if account is not None:
            os.chown(path, account.pw_uid, account.pw_gid)

    def _launch(self) -> None:
        if self._program is None:
            raise RuntimeError("start() was not called")
        self._child = subprocess.Popen(
            [self._program.path, "-c", self.options.folder / "mosquitto.conf"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=self.options.folder,
            start_new_session=True,  # Ctrl-C in a terminal ends the server, which then stops its broker in order
        )
        write_atomically(self._pid_file, str(self._child.pid).encode(), mode=0o600)
        self.starts += 1

    @property
    def _pid_file(self) -> Path:
        return self.options.folder / "mosquitto.pid"

    def _end_orphan(self) -> None:
        """A server that was killed leaves its broker behind, which holds our port and our queue: end it, and nobody else's."""
        try:
            pid = int(self._pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return
        if os.fsencode(self.options.folder / "mosquitto.conf") not in words:
            return
        log.warning("broker_orphan_ended pid=%d", pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + _ORPHAN_WAIT_S
            while time.monotonic() < deadline and Path(f"/proc/{pid}").exists() and not _is_zombie(pid):
                self._stopping.wait(0.02)

    def _watch(self) -> None:
        """Log what the child says; when it ends and nobody asked for it, start it again."""
        failures = 0
        while True:
            child, began = self._child, time.monotonic()
            if child is None or child.stderr is None:
                raise RuntimeError("no child to watch")
            for line in child.stderr:
                self._last_lines = [*self._last_lines[-9:], line.strip()[:_MAX_LOG_LINE]]
                log.warning("broker_says text=%s", self._last_lines[-1])
            child.stderr.close()
            status = child.wait()
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - began > 60 else failures + 1
            pause_s = random.uniform(0.0, min(self.max_pause_s, 0.1 * 2**failures))  # noqa: S311 - jitter, no secret
            log.error("broker_ended status=%s restart_in_s=%.2f", status, pause_s)
            if self._stopping.wait(pause_s):
                return
            self._launch()

    def _wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                probe_connection(self.options.host, self.port, self.options.probe, timeout_s=2.0)
            except UnavailableError as error:
                if time.monotonic() > deadline or self.starts > 3:
                    self.stop()
                    said = "; ".join(self._last_lines) or "nothing"
                    raise ConfigError(
                        f"The broker did not become ready on {self.options.host}:{self.port}: {error.message} It said: {said}.",
                        code="broker-not-ready",
                        hint=f"Is another program on that port? Its configuration is {self.options.folder / 'mosquitto.conf'}.",
                    ) from error
                self._stopping.wait(0.05)
            else:
                return


def probe_connection(host: str, port: int, files: ClientFiles, *, timeout_s: float = 5.0) -> None:
    """Connect with MQTT 5 and disconnect again. Raises: UnavailableError with the broker's own answer when that fails."""
    done, answers = threading.Event(), list[ReasonCode]()

    def on_connect(_client: mqtt.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
        answers.append(reason)
        done.set()

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=PROBE, protocol=mqtt.MQTTv5)
    client.tls_set_context(client_tls(files))
    client.on_connect = on_connect
    try:
        client.connect(host, port, keepalive=10, clean_start=True)
    except (OSError, ssl.SSLError) as error:
        raise UnavailableError(f"No connection to {host}:{port} ({error}).") from error
    client.loop_start()
    done.wait(timeout_s)
    client.disconnect()
    client.loop_stop()
    if not answers:
        raise UnavailableError(f"{host}:{port} accepted the connection but gave no MQTT 5 answer within {timeout_s:g} s.")
    if answers[0].is_failure:
        raise UnavailableError(f"{host}:{port} refused the connection: {answers[0]}.")


def client_tls(files: ClientFiles) -> ssl.SSLContext:
    """A TLS context that verifies the broker against our authority and shows the client's certificate. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(files.ca)
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{files.certificate}, {files.key} or {files.ca} cannot be used as a TLS identity: {error}.") from error
    return context


def _account_for(folder: Path) -> pwd.struct_passwd | None:
    """The account the broker drops to when we are root and that account can reach its folder; None: it keeps ours."""
    if os.geteuid() != 0:
        return None
    for name in ("mosquitto", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            if all(_may_enter(parent, account) for parent in folder.absolute().parents):
                return account
    log.warning("broker_keeps_root folder=%s reason=parent-folder-closed", folder)
    return None


def _may_enter(folder: Path, account: pwd.struct_passwd) -> bool:
    if not folder.exists():  # we make it, for ourselves alone, only below the data folder
        return True
    status = folder.stat()
    return bool(status.st_mode & 0o001) or (status.st_uid == account.pw_uid and bool(status.st_mode & 0o100))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody holds now, below those that the system gives to clients.

    From among those it might give this very port to a client that knocks while its server is away, and the server could not come back.
    Raises: OSError when this machine has no such address.
    """
    below = range(_LOWEST_FREE_PORT, _lowest_client_port())
    for port in random.choices(below, k=_PORT_TRIES) if below else ():  # noqa: S311 - no secret
        try:
            return _listened_on(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _listened_on(host, 0)


def _listened_on(host: str, port: int) -> int:
    """The port after a moment of listening on it; for 0 whichever the system gave. Raises: OSError."""
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])


def _lowest_client_port() -> int:
    try:
        return int(_CLIENT_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Seen before the start, since a probe would be answered by whoever holds the port."""
    try:
        return _listened_on(host, port) if port else free_port(host)
    except OSError as error:
        raise ConfigError(
            f"The broker cannot listen on {host}:{port}: {error.strerror}.",
            code="broker-port",
            hint="Stop the program that holds the port, or set broker.port and broker.websocket_port.",
        ) from error
