"""A whole Mooring on one machine, through its public doors only: `mooring serve`, REST, `mooring-agent`; each process is real.

The demo, the local board of the hardware-in-the-loop suite and the end-to-end tests live in one.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from examples.demo.link import Link
from examples.demo.processes import Children
from fleet.broker import free_port
from fleet.cli.client import Api
from fleet.registry.drafts import load_draft
from protocol.decoding import encode, without_none
from protocol.errors import MooringError, TransferError

T = TypeVar("T")
#: Real seconds between two looks at something awaited.
LOOK_S = 0.2
#: A server and several agents share the cores of this machine: what stands still for a moment does not hang.
PATIENT = "[runtime]\nhang_s = 60"


def free_ports(count: int) -> list[int]:
    """That many different TCP ports of loopback that were free a moment ago."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens."""

    console: int
    device: int
    broker: int
    websocket: int

    @classmethod
    def free(cls) -> "Ports":
        """Four free ones."""
        return cls(*free_ports(4))


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent: its name, its folder, and the links it is behind, if any."""

    name: str
    folder: Path
    links: tuple[Link, ...] = ()

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def cut(self) -> None:
        """Cut the device off the server and the broker."""
        for link in self.links:
            link.cut()

    def restore(self) -> None:
        """Let it reach them again."""
        for link in self.links:
            link.restore()


@dataclass
class World:
    """One server, its people, its agents. A context manager: everything it started ends with it."""

    root: Path
    ports: Ports = field(default_factory=Ports.free)
    environment: Mapping[str, str] = field(default_factory=dict)
    is_demo: bool = True
    agents: dict[str, Agent] = field(default_factory=dict)
    people: dict[str, Api] = field(default_factory=dict)
    login: dict[str, str] = field(default_factory=dict)
    _pause: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        settings = {
            "MOORING_CONSOLE__PORT": str(self.ports.console),
            "MOORING_DEVICE_API__PORT": str(self.ports.device),
            "MOORING_BROKER__PORT": str(self.ports.broker),
            "MOORING_BROKER__WEBSOCKET_PORT": str(self.ports.websocket),
            "ORT_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.children = Children(self.root / "logs", {**settings, **self.environment})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.console}"

    @property
    def device_url(self) -> str:
        return f"https://127.0.0.1:{self.ports.device}"

    @property
    def data_dir(self) -> Path:
        return self.root / "server"

    # --- the server and its people ---

    def start_server(self, *, timeout_s: float = 120.0) -> None:
        """Start `mooring serve` and wait until it answers. Raises: RuntimeError with the end of its log."""
        self.children.start("server", "fleet.cli", "serve", "--data", str(self.data_dir), *(["--demo-keys"] if self.is_demo else []))
        self.await_(self._is_up, timeout_s=timeout_s, what="the server to answer")

    def admit_people(self) -> None:
        """Log in the first admin; make an operator, an approver and an auditor with passwords of their own."""
        kept = json.loads((self.data_dir / "demo-login.json").read_text())
        admin = self._log_in(kept["user"], kept["password"])
        self.people["admin"] = admin
        self.login = {kept["user"]: kept["password"]}
        for name, permissions in (("operator", ["operator"]), ("approver", ["approver"]), ("auditor", ["auditor"])):
            password = secrets.token_urlsafe(12)
            admin.send("POST", "/users", {"name": name, "permissions": permissions, "password": password, "must_change_password": False})
            self.people[name] = self._log_in(name, password)
            self.login[name] = password

    # --- models and releases ---

    def import_model(self, file: Path, manifest: Path, *, name: str, golden: Path | None = None, evaluation: Path | None = None) -> str:
        """The id of the model version that the server made of the file; with `evaluation` data its releases are watched for drift."""
        fields = {"name": name, "manifest": json.dumps(without_none(encode(load_draft(manifest)))), "note": ""}
        given = {"file": file, "golden": golden, "evaluation": evaluation}
        made = self.people["operator"].upload("/models", fields, {part: path for part, path in given.items() if path is not None})
        return str(made["id"])

    def release(self, line: str, version: str, models: Mapping[str, Sequence[str]], *, note: str = "") -> None:
        """Compose a release of model ids (each with its device types), have it approved and signed, and publish it."""
        operator, approver = self.people["operator"], self.people["approver"]
        chosen = [{"model_id": model, "device_types": list(types)} for model, types in models.items()]
        operator.send("POST", "/releases", {"line": line, "version": version, "models": chosen, "note": note})
        proposed = operator.send("POST", f"/releases/{line}/{version}/propose", {"reason": note or "demo"})
        approval = proposed["approval"]
        _, etag = approver.get_with_etag(f"/approvals/{approval}")
        approver.send("POST", f"/approvals/{approval}/decide", {"decision": "approve", "reason": "evidence read"}, etag=etag)
        self.await_(
            lambda: operator.get(f"/releases/{line}/{version}")["state"] == "signed",
            what=f"the signer to sign {line} {version}",
        )
        operator.send("POST", f"/releases/{line}/{version}/publish", {"reason": "demo"})

    def campaign(self, line: str, version: str, *, group: str, min_inferences: int = 50, failure_threshold: float = 0.1) -> str:
        """Bring a published release to a group once the line's campaign before it is over there; returns the campaign's id.

        A device's verdict is seen a moment before the campaign that waited for it ends, and one line has one campaign in a group.
        """
        self.await_(lambda: not self._is_under_way(line, group), what=f"the campaign of {line} in {group} to end")
        body = {
            "line": line,
            "release": version,
            "group": group,
            "min_inferences": min_inferences,
            "phases": [{"failure_threshold": failure_threshold}],
            "reason": "demo",
        }
        return str(self.people["operator"].send("POST", "/campaigns", body)["campaign"])

    def _is_under_way(self, line: str, group: str) -> bool:
        found = self.people["operator"].get("/campaigns", limit=500)["items"]
        return any((one["line"], one["group"]) == (line, group) and one["state"] in {"running", "paused"} for one in found)

    # --- agents ---

    def add_agent(
        self,
        name: str,
        *,
        device_type: str,
        pipelines: Sequence[Mapping[str, Any]],
        group: str = "default",
        is_linked: bool = False,
        settings: str = "",
    ) -> Agent:
        """Invite, configure and enroll an agent and give it its pipelines through the server. `settings` is more TOML for its file."""
        folder = self.root / "agents" / name
        folder.mkdir(parents=True)
        links = (Link(self.ports.device), Link(self.ports.broker)) if is_linked else ()
        device_port, broker_port = (links[0].port, links[1].port) if links else (self.ports.device, self.ports.broker)
        agent = Agent(name, folder, links)
        lines = [f'state_dir = "{agent.state_dir}"', f'run_dir = "{folder / "run"}"', f'device_type = "{device_type}"', settings]
        if "[runtime]" not in settings:
            lines.append(PATIENT)
        lines += [f'[server]\nurl = "https://127.0.0.1:{device_port}"', f'[broker]\nurl = "mqtts://127.0.0.1:{broker_port}"']
        agent.config.write_text("\n".join(lines) + "\n")
        self.ensure_device_type(device_type)
        body = {"group": group, "device_type": device_type, "device": name, "reason": "demo"}
        invite = self.people["admin"].send("POST", "/invites", body)
        secret = {"MOORING_AGENT_TOKEN": invite["token"]}
        self.children.run(
            f"{name}-enroll", "agent.cli", "enroll", "--config", str(agent.config), "--device", name, secret_environment=secret
        )
        self.set_pipelines(name, pipelines)
        self.agents[name] = agent
        return agent

    def start_agent(self, name: str) -> None:
        """Start the agent's process."""
        self.children.start(name, "agent.cli", "run", "--config", str(self.agents[name].config))

    def set_pipelines(self, name: str, pipelines: Sequence[Mapping[str, Any]]) -> None:
        """Wish these pipelines of a device."""
        operator = self.people["operator"]
        _, etag = operator.get_with_etag(f"/devices/{name}")
        operator.send("PUT", f"/devices/{name}/pipelines", {"pipelines": list(pipelines), "reason": "demo"}, etag=etag)

    def ensure_device_type(self, name: str) -> None:
        """Make the device type when the server does not know it."""
        known = {one["name"] for one in self.people["operator"].get("/device-types")["items"]}
        if name not in known:
            self.people["admin"].send("POST", "/device-types", {"name": name, "reason": "demo"})

    def device(self, name: str) -> dict[str, Any]:
        """What the server knows of a device."""
        return dict(self.people["operator"].get(f"/devices/{name}"))

    def line_of(self, name: str, line: str) -> dict[str, Any]:
        """How far a line of a device is; empty when it said nothing yet."""
        return next((one for one in self.device(name)["lines"] if one["line"] == line), {})

    def updates_of(self, campaign: str) -> dict[str, dict[str, Any]]:
        """Per device its way in the campaign, as its signed reports say."""
        found = self.people["operator"].get(f"/campaigns/{campaign}")
        return {one["device"]: one for one in found["devices"]}

    # --- waiting ---

    def await_(self, predicate: Callable[[], T], *, timeout_s: float = 120.0, what: str) -> T:
        """The predicate's first true value; children that end meanwhile and answers that fail are told. Raises: RuntimeError."""
        deadline, last = time.monotonic() + timeout_s, ""
        while True:
            self.children.check()
            try:
                value = predicate()
                if value:
                    return value
            except (TransferError, httpx.HTTPError) as error:
                last = f" ({error})"
            if time.monotonic() > deadline:
                raise RuntimeError(f"Waited {timeout_s:g} s for {what}{last}; logs are in {self.children.logs}.")
            self._pause.wait(LOOK_S)

    def close(self) -> None:
        """End every process and link."""
        for api in self.people.values():
            api.__exit__(None, None, None)
        self.children.stop_all()
        for agent in self.agents.values():
            for link in agent.links:
                link.close()

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.console_url}/api/v1/healthz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _log_in(self, name: str, password: str) -> Api:
        with Api(self.console_url) as api:
            token = str(api.send("POST", "/login", {"name": name, "password": password})["token"])
        return Api(self.console_url, token)


def describe_error(error: BaseException) -> str:
    """An error in one line."""
    return str(error) if isinstance(error, MooringError | RuntimeError) else f"{type(error).__name__}: {error}"


def state_root(folder: Path) -> Path:
    """A new folder for a world below `folder`, private to this user."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / f"{os.getpid()}-{secrets.token_hex(3)}"
    root.mkdir(mode=0o700)
    return root
