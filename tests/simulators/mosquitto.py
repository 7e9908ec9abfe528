"""A real mosquitto with mutual TLS for one test, and a client on the server's side of it."""

import json
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from simulators.authority import Authority
from waiting import wait_until

from fleet.broker import free_port

ACL = """
user fleet.test
topic readwrite #
pattern write mooring/1/t0/d/%u/#
pattern read mooring/1/t0/c/%u/#
"""


class Mosquitto:
    """Listens with TLS on `url` and with WebSockets over TLS on `ws_url`; may be stopped and started again on the same ports."""

    def __init__(
        self, program: Path, folder: Path, authority: Authority, *, acl: str = ACL, host: str = "127.0.0.1", extra: str = ""
    ) -> None:
        self._program, self.folder, self.authority, self.host = program, folder, authority, host
        self.port = self.ws_port = free_port(host)
        while self.ws_port == self.port:
            self.ws_port = free_port(host)
        shown = f"[{host}]" if ":" in host else host
        self.url, self.ws_url = f"mqtts://{shown}:{self.port}", f"wss://{shown}:{self.ws_port}/mqtt"
        folder.mkdir(exist_ok=True)
        (folder / "ca.pem").write_bytes(authority.pem)
        certificate, key = authority.issue(folder, "broker", hosts=("127.0.0.1", "::1", "localhost"))
        (folder / "acl").write_text(acl)
        (folder / "acl").chmod(0o600)
        lines = ["per_listener_settings false", f"acl_file {folder}/acl", "allow_anonymous false", "log_dest stderr", extra]
        lines += ["user root"] if os.geteuid() == 0 else []
        for port, protocol in ((self.port, "mqtt"), (self.ws_port, "websockets")):
            lines += [f"listener {port} {host}", f"protocol {protocol}", f"cafile {folder}/ca.pem", f"certfile {certificate}"]
            lines += [f"keyfile {key}", "require_certificate true", "use_identity_as_username true"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it and wait until it listens."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", self.folder / "mosquitto.conf"], stderr=log, stdout=log)
        wait_until(self._listens, what=f"mosquitto to listen: {(self.folder / 'log').read_text()}")

    def stop(self, *, kill: bool = False) -> None:
        """End it, with SIGKILL when told so."""
        if self._process is not None:
            if kill:
                self._process.kill()
            else:
                self._process.terminate()
            self._process.wait(60)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            for port in (self.port, self.ws_port):
                socket.create_connection((self.host, port), timeout=60).close()
        except OSError:
            return False
        return True


class ServerSide:
    """A client with the server's rights: records every message and sends commands."""

    def __init__(self, broker: Mosquitto, *, version: int = mqtt.MQTTv5) -> None:
        self.messages: list[mqtt.MQTTMessage] = []
        self._subscribed = threading.Event()
        certificate, key = broker.authority.issue(broker.folder, "fleet.test")
        context = ssl.create_default_context(cadata=broker.authority.pem.decode())
        context.load_cert_chain(certificate, key)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="fleet.test", protocol=version)
        self._client.tls_set_context(context)
        self._client.on_message = lambda _c, _u, message: self.messages.append(message)
        self._client.on_connect = lambda client, *_: client.subscribe("mooring/#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.reconnect_delay_set(0.1, 0.2)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        assert self._subscribed.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def bodies(self, suffix: str) -> list[dict[str, Any]]:
        """The JSON bodies received on topics with that end, in order."""
        return [json.loads(message.payload) for message in list(self.messages) if message.topic.endswith(suffix)]

    def command(self, device: str, levels: str, body: dict[str, Any] | bytes, *, retain: bool = False) -> None:
        """Publish to the device and wait for the broker."""
        payload = body if isinstance(body, bytes) else json.dumps(body)
        self._client.publish(f"mooring/1/t0/c/{device}/{levels}", payload, qos=1, retain=retain).wait_for_publish(60)
