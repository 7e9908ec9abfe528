"""What one message costs the server's ingest in CPU, beside a bare paho client that only receives and acknowledges it.

Both receive the same messages at QoS 1 over TLS from a real broker, each in a process of its own, whose CPU time alone counts.
MOORING_BENCH_ROUNDS, MOORING_BENCH_MESSAGES: how often (9), and how many each time (20,000).
"""

import json
import os
import resource
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.record import compare, interleave, write
from examples.demo.tools import find_mosquitto
from fleet.broker import INGEST, PROBE, BrokerOptions, ClientFiles, EmbeddedBroker, client_tls
from fleet.bus import RECEIVE_MAXIMUM, Bus, BusOptions, ingest_subscriptions
from fleet.config import PkiConfig
from fleet.db import Database, migrate
from fleet.devices.pki import Authority, open_authority
from fleet.monitoring import store
from fleet.monitoring.ingest import IngestRules, IngestWorker
from protocol.clock import SystemClock
from protocol.ids import DEFAULT_TENANT, DeviceId

ROUNDS = int(os.environ.get("MOORING_BENCH_ROUNDS", "9"))
MESSAGES = int(os.environ.get("MOORING_BENCH_MESSAGES", "20000"))
DEVICES = 20
#: Telemetry, as nearly all messages are, in bytes.
MESSAGE_BYTES = 235
SHARE = "ingest-bench"
TIMEOUT_S = 120.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Bench:
    """A broker and the identities that talk to it."""

    folder: Path
    url: str
    ingest: ClientFiles
    devices: tuple[ClientFiles, ...]

    def microseconds(self, kind: str, number: int) -> float:
        """CPU per message of one receiver that gets all messages of one round."""
        options = {
            "kind": kind,
            "url": self.url,
            "ca": str(self.ingest.ca),
            "certificate": str(self.ingest.certificate),
            "key": str(self.ingest.key),
            "database": f"sqlite:///{self.folder / f'{kind}-{number}.db'}",
        }
        program = [sys.executable, "-m", "benchmarks.bench_ingest", json.dumps(options)]
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as receiver:
            if receiver.stdout is None or receiver.stdout.readline().strip() != "connected":
                raise RuntimeError(f"The {kind} receiver did not connect.")
            publish_all(self.url, self.devices, epoch=f"{kind}-{number}")
            answer = json.loads(receiver.stdout.readline())
        if receiver.returncode:
            raise RuntimeError(f"The {kind} receiver failed.")
        return float(answer["cpu_us"]) / MESSAGES


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, served(Path(folder)) as bench:
        rounds = iter(range(10**6))
        bare, ours = interleave(
            ROUNDS, lambda: bench.microseconds("bare", next(rounds)), lambda: bench.microseconds("ingest", next(rounds))
        )
    what = f"ingest into SQLite: CPU per message of {MESSAGE_BYTES} bytes"
    row = compare(what, ours=ours, peer=bare, peer_name="bare paho QoS 1 receive", unit="µs", target="<= 1.25")
    write("ingest", [row])
    return 0 if row.met else 1


# --- the world ---


@contextmanager
def served(folder: Path) -> Iterator[Bench]:
    """The product's own broker, up as long as the block runs."""
    folder.chmod(0o755)  # the broker runs under an account of its own where we are root
    authority = open_authority(folder / "pki", PkiConfig())
    server, ingest, probe = authority.ensure_server(), authority.ensure_service(INGEST), authority.ensure_service(PROBE)
    broker = EmbeddedBroker(
        BrokerOptions(
            folder=folder / "broker",
            tls=ClientFiles(authority.ca_path, server.certificate, server.key),
            probe=ClientFiles(authority.ca_path, probe.certificate, probe.key),
            port=0,
            websocket_port=None,
            program=find_mosquitto(ROOT / ".tools"),
        )
    )
    broker.start()
    try:
        devices = tuple(device_files(authority, folder, DeviceId(f"cam-{number}")) for number in range(DEVICES))
        files = ClientFiles(authority.ca_path, ingest.certificate, ingest.key)
        yield Bench(folder, f"mqtts://localhost:{broker.port}", files, devices)
    finally:
        broker.stop()


def device_files(authority: Authority, folder: Path, device: DeviceId) -> ClientFiles:
    """A device's key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, private = folder / f"{device}.pem", folder / f"{device}-key.pem"
    certificate.write_text(authority.issue_device(device, key.public_key()).pem)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return ClientFiles(authority.ca_path, certificate, private)


def publish_all(url: str, devices: tuple[ClientFiles, ...], *, epoch: str) -> None:
    """All messages of a round, spread over the devices, each acknowledged by the broker."""
    clients = [connect(url, files, files.certificate.stem) for files in devices]
    sent = []
    for number in range(MESSAGES):
        index = number % len(clients)
        topic = f"mooring/1/{DEFAULT_TENANT}/d/{devices[index].certificate.stem}/tel/sys"
        sent.append(clients[index].publish(topic, message(number // len(clients), epoch=epoch), qos=1))
    for info in sent:
        info.wait_for_publish(TIMEOUT_S)
    for client in clients:
        client.disconnect()
        client.loop_stop()


def message(seq: int, *, epoch: str) -> bytes:
    """One telemetry message as an agent sends it, filled up to the size."""
    values = {"v": 1, "ts": int(time.time() * 1000), "clk": "ok", "boot": "", "epoch": epoch, "seq": seq, "floor": 0}
    values |= {"window_s": 10, "cpu_percent": 11.5, "rss_mb": 71.2, "disk_free_mb": 10411, "outbox_rows": 3, "outbox_mb": 0.1}
    missing = MESSAGE_BYTES - len(json.dumps(values, separators=(",", ":")))
    return json.dumps({**values, "boot": "b" * missing}, separators=(",", ":")).encode()


def connect(url: str, files: ClientFiles, name: str) -> mqtt.Client:
    """A connected client with a loop of its own."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    client.tls_set_context(client_tls(files))
    client.connect("localhost", int(url.rpartition(":")[2]))
    client.loop_start()
    return client


# --- the receivers: processes of their own ---


def receive(options: dict[str, str]) -> None:
    """Say "connected", take all messages of a round, say what CPU time that took."""
    files = ClientFiles(Path(options["ca"]), Path(options["certificate"]), Path(options["key"]))
    work = receive_bare if options["kind"] == "bare" else receive_and_store
    work(options, client_tls(files))


def receive_bare(options: dict[str, str], tls: ssl.SSLContext) -> None:
    """As little as a paho client can do: count, and let it acknowledge."""
    is_ready, is_done, seen = threading.Event(), threading.Event(), 0

    def on_message(_client: mqtt.Client, _userdata: object, _message: mqtt.MQTTMessage) -> None:
        nonlocal seen
        seen += 1
        if seen == MESSAGES:
            is_done.set()

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=INGEST, protocol=mqtt.MQTTv5)
    client.tls_set_context(tls)
    client.on_message = on_message
    client.on_subscribe = lambda *_: is_ready.set()
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    client.connect("localhost", int(options["url"].rpartition(":")[2]), properties=properties)
    client.loop_start()
    client.subscribe(ingest_subscriptions(share=SHARE)[0].topic_filter, qos=1)
    is_ready.wait(TIMEOUT_S)
    before = begin()
    is_complete = is_done.wait(TIMEOUT_S)
    end(before, is_complete=is_complete)
    client.disconnect()
    client.loop_stop()


def receive_and_store(options: dict[str, str], tls: ssl.SSLContext) -> None:
    """The server's own ingest."""
    database = Database(options["database"])
    migrate(database)
    bus = Bus(BusOptions(options["url"], INGEST, tls, ingest_subscriptions(share=SHARE)))
    bus.start()
    worker = IngestWorker(bus, database, SystemClock(), rules=IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices)))
    bus.wait_connected(TIMEOUT_S)
    stop, deadline = threading.Event(), time.monotonic() + TIMEOUT_S

    def watch() -> None:
        while worker.accepted + worker.rejected < MESSAGES and time.monotonic() < deadline:
            stop.wait(0.05)
        stop.set()

    watcher = threading.Thread(target=watch)
    before = begin()
    watcher.start()
    worker.run(stop)
    end(before, is_complete=(worker.accepted, worker.rejected) == (MESSAGES, 0))
    watcher.join()
    with database.reading() as tx:
        if store.count_rows(tx, DEFAULT_TENANT)["telemetry"] != MESSAGES:
            raise RuntimeError("Not all messages are rows.")
    bus.stop()


def begin() -> float:
    """CPU seconds of this process before the messages; the publisher may start."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    say("connected")
    return use.ru_utime + use.ru_stime


def end(before: float, *, is_complete: bool) -> None:
    """Say how much CPU the messages took. Raises: RuntimeError when not all came."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    if not is_complete:
        raise RuntimeError("Not all messages came.")
    say(json.dumps({"cpu_us": (use.ru_utime + use.ru_stime - before) * 1e6}))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        receive(json.loads(sys.argv[1]))
    else:
        sys.exit(main())
