"""A running console with real services, and the people, devices and models that a test puts there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from serving import serving
from simulators import messages
from simulators.enrolling import EnrollingDevice

from fleet import service
from fleet.audit import Actor, ActorKind
from fleet.bus import Incoming
from fleet.config import DriftConfig, FleetConfig
from fleet.devices import enrollment, groups
from fleet.devices import store as device_store
from fleet.devices.enrollment import TrustRoots
from fleet.monitoring.ingest import IngestRules, ingest_batch
from fleet.registry.drafts import load_draft
from fleet.registry.importing import inspect_upload
from fleet.web import accounts
from fleet.web.app import console_app
from fleet.web.services import Services
from protocol.clock import Clock, SystemClock, to_unix_ms
from protocol.decoding import encode, without_none
from protocol.ids import DEFAULT_TENANT, DeviceTypeName
from protocol.messages import BrokerAddress

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits"
ADMIN = Actor(ActorKind.PERSON, "root-of-tests")
PASSWORD = "a long enough sentence"
DEVICE_TYPE = DeviceTypeName("linux-x86-64")


@dataclass
class ConsoleSite:
    """One server without a broker; what devices say is handed to ingest directly."""

    ground: service.Ground
    services: Services
    #: Nobody: no session, no token.
    http: httpx.Client
    #: Closed with the site.
    clients: list[httpx.Client] = field(default_factory=list)
    _seq: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.http.base_url)

    def person(self, name: str, *permissions: str) -> str:
        """Make an account with `PASSWORD`; returns its name."""
        accounts.create_user(
            self.ground.database,
            tenant=DEFAULT_TENANT,
            name=name,
            display_name="",
            password=PASSWORD,
            permissions=permissions,
            by=ADMIN,
            at=self.services.clock.now(),
            must_change=False,
        )
        return name

    def api(self, name: str, *permissions: str) -> httpx.Client:
        """A client with an API token of the person, who is made when permissions are named."""
        if permissions:
            self.person(name, *permissions)
        answer = self.http.post("/api/v1/login", json={"name": name, "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        return self.with_token(answer.json()["token"])

    def with_token(self, token: str) -> httpx.Client:
        """A client with an API token."""
        headers = {"Authorization": f"Bearer {token}"}
        self.clients.append(httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, trust_env=False, timeout=120))
        return self.clients[-1]

    def browser(self, name: str) -> "Browser":
        """A logged-in browser without scripts."""
        browser = Browser(self, name)
        self.clients.append(browser)
        return browser

    def enroll(self, device: str) -> EnrollingDevice:
        """Make the device a member of the default group."""
        now = self.services.system_now()
        made = enrollment.invite(
            self.ground.database,
            self.ground.authority,
            tenant=DEFAULT_TENANT,
            group=groups.DEFAULT_GROUP,
            device_type=DEVICE_TYPE,
            by=ADMIN,
            now=now,
        )
        enrolling = EnrollingDevice(device_type=DEVICE_TYPE, device=device)
        enrollment.enroll(
            self.ground.database,
            self.ground.authority,
            enrolling.request(made.text),
            broker=BrokerAddress(urls=["mqtts://localhost:8883"]),
            trust_roots=lambda _: TrustRoots(b"{}", b"{}"),
            now=now,
        )
        return enrolling

    def say(self, device: str, stream: str, **values: Any) -> None:
        """Store a message of the device as if it had come over MQTT."""
        key = f"{device}/{stream.partition('/')[0]}"
        is_ring = stream.startswith("inf/")
        seq = None if is_ring else self._seq.get(key, 0)
        if seq is not None:
            self._seq[key] = seq + 1
        content = messages.body(seq, ts=to_unix_ms(self.services.clock.now()), **values)
        self.ingest(messages.incoming(f"mooring/1/{DEFAULT_TENANT}/d/{device}/{stream}", content))

    def ingest(self, *batch: Incoming) -> None:
        """Store messages, and hand them to live views."""

        def is_enrolled(tx: Any, tenant: Any, devices: Any) -> set[Any]:
            return {device for _, device in device_store.filter_enrolled(tx, [(tenant, device) for device in devices])}

        rules = IngestRules(is_enrolled, tenant=DEFAULT_TENANT)
        outcome = ingest_batch(self.ground.database, list(batch), rules=rules, now=self.services.clock.now(), want_live=True)
        assert not outcome.rejected, outcome.rejected
        self.services.live.publish(outcome.live)

    def online(self, device: str, **conditions: str) -> None:
        """The device is there and says what it is; `conditions` are code=severity."""
        self.say(device, "status", presence="online")
        backends = [{"pipeline": "front", "asked": "auto", "effective": "onnx:cpu"}]
        runtimes = [{"name": "onnx", "version": "1.32.0", "state": "ok"}]
        self.say(device, "info", device_type=DEVICE_TYPE, agent_version="0.1.0", runtimes=runtimes, backends=backends)
        since = to_unix_ms(self.services.clock.now())
        wrong = [{"code": code, "severity": severity, "text": f"text of {code}", "since": since} for code, severity in conditions.items()]
        pipelines = [{"name": "front", "line": "digits", "keep": "events", "source": {"kind": "video", "path": "/srv/a.mp4", "loop": True}}]
        self.say(device, "reported", desired_rev=1, config={"pipelines": pipelines}, conditions=wrong)

    def runs(
        self,
        device: str,
        version: str,
        *,
        state: str = "idle",
        reason: str = "",
        text: str = "",
        history: tuple[str, ...] = ("downloading", "installing", "succeeded"),
        **more: Any,
    ) -> None:
        """The device says which release of the line digits it runs and how it got there; `more`: fields of its `LineState`."""
        now = to_unix_ms(self.services.clock.now())
        slots = [
            {
                "line": "digits",
                "slot": "a",
                "active": True,
                "committed": True,
                "release": version,
                "counter": 1,
                "sha256": f"sha256:{'a' * 64}",
            }
        ]
        history = [{"line": "digits", "release": version, "state": one, "at": now} for one in history]
        lines = [{"line": "digits", "desired": version, "installed": version, "state": state, "reason": reason, "text": text, **more}]
        self.say(device, "model", lines=lines, slots=slots, history=history)

    def perf(self, device: str, *, fps: float = 9.5, p50: float = 3.0) -> None:
        """One telemetry window of the pipeline `front`."""
        values = {"window_s": 10, "frames": 95, "fps": fps, "lat_ms_p50": p50, "lat_ms_p95": p50 * 2, "lat_ms_p99": p50 * 3}
        self.say(device, "tel/perf", pipeline="front", line="digits", release="1.0", backend="onnx:cpu", source_state="ok", **values)

    def predict(self, device: str, label: str) -> None:
        """One prediction of the pipeline `front`."""
        top = [{"label": label, "index": 0, "score": 0.9}]
        self.say(device, "inf/front", pipeline="front", line="digits", release="1.0", session=1, frame=1, lat_ms=3.0, top=top)


class Browser(httpx.Client):
    """A browser without scripts: keeps its cookie, sends an origin, finds the token of forms."""

    def __init__(self, site: ConsoleSite, name: str) -> None:
        super().__init__(base_url=site.url, trust_env=False, timeout=120, headers={"Origin": site.url, "Sec-Fetch-Site": "same-origin"})
        answer = self.post("/login", data={"name": name, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        cookie = answer.headers["set-cookie"].partition(";")[0]
        self.headers["Cookie"] = cookie  # httpx keeps Secure cookies from plain HTTP, even on loopback; browsers do not

    def csrf(self) -> str:
        """The token of this session's forms."""
        return self.get("/account").text.partition('name="csrf_token" value="')[2].partition('"')[0]

    def submit(self, path: str, **fields: str) -> httpx.Response:
        """Send a form."""
        return self.post(path, data={"csrf_token": self.csrf(), **fields})


@contextmanager
def running_site(folder: Path, *, clock: Clock | None = None, drift: DriftConfig = DriftConfig()) -> Iterator[ConsoleSite]:  # noqa: B008 - frozen
    """The console on a free port, with demo keys: lines open by themselves."""
    config, clock = FleetConfig(data_dir=folder, demo_keys=True, drift=drift), clock or SystemClock()
    ground = service.lay_ground(config, clock=clock)
    services = Services(
        config=config,
        tenant=DEFAULT_TENANT,
        database=ground.database,
        clock=clock,
        authority=ground.authority,
        blobs=ground.blobs,
        registry=ground.registry,
        broker=BrokerAddress(urls=["mqtts://localhost:8883"]),
        device_url="https://localhost:8443",
        console_url="http://localhost:8080",
    )
    services.live.is_fed = True
    with serving(console_app(services)) as http:
        site = ConsoleSite(ground, services, http)
        yield site
        for client in site.clients:
            client.close()
    ground.database.dispose()


def upload_digits(api: httpx.Client, kind: str = "onnx", version: str = "1.0") -> dict[str, Any]:
    """Import the example's model through the API; returns the model version."""
    model = DIGITS / "models" / version / kind / f"model.{kind}"
    draft = replace(load_draft(DIGITS / f"{kind}.toml"), device_types=(DEVICE_TYPE,))
    golden = inspect_upload(model, draft).golden
    answer = api.post(
        "/models",
        data={"name": f"digits-{kind}", "manifest": json.dumps(without_none(encode(draft)))},
        files={"file": (model.name, model.read_bytes()), "golden": ("golden.cbor", golden)},
        timeout=120,
    )
    assert answer.status_code == 201, answer.text
    return dict(answer.json())
