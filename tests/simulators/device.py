"""A device in memory behind the production interfaces: disk, journal store, inference engine, server and clock. It can be cut anywhere."""

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import httpx
from simulators.clock import FakeClock
from simulators.deltas import FakeApplier
from simulators.disk import FakeDisk, Faults, PowerCut

from agent.slots import Disk, Slots
from agent.update.assignment import Assignment, LineOffer, OfferedFile
from agent.update.fetch import Downloads
from agent.update.installers import ModelInstaller
from agent.update.machine import MAX_LOAD_FAILURES, UpdateMachine
from agent.update.policy import Policy
from agent.update.probe import ProbeRules
from agent.update.store import BlockedRow, UpdateRow, UpdateStepRow
from protocol.errors import DeviceError
from protocol.ids import Digest, LineName, ReleaseVersion
from runtime.selftest import Activation, Figures, SelfTest

T = TypeVar("T")

LINE = LineName("digits")
SLOTS_DIR, DOWNLOADS_DIR = Path("/state/slots"), Path("/state/downloads")
#: Inferences that a simulated model makes between two looks at its figures.
INFERENCES_PER_LOOK = 600


# --- releases ---


@dataclass(frozen=True)
class Release:
    """A release with the bytes of its files. The model's text says how it behaves: see `FakeEngine`."""

    line: LineName
    version: ReleaseVersion
    counter: int
    files: dict[str, bytes]

    def offer(self, *, assignment: str = "as-1", attempt: int = 1, base_url: str = "https://fleet.test") -> LineOffer:
        files = tuple(
            OfferedFile(name, len(data), digest_of(data), f"{base_url}/blobs/sha256/{hashlib.sha256(data).hexdigest()}")
            for name, data in sorted(self.files.items())
        )
        return LineOffer(self.line, self.version, self.counter, "onnx", assignment, attempt, files)

    def assignment(
        self,
        *,
        assignment: str = "as-1",
        attempt: int = 1,
        base_url: str = "https://fleet.test",
        floors: dict[LineName, int] | None = None,
    ) -> Assignment:
        offer = self.offer(assignment=assignment, attempt=attempt, base_url=base_url)
        return Assignment(assignment, attempt, 1_772_000_000_000, (offer,), floors or {})


def digest_of(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def make_release(
    version: str,
    counter: int,
    *behavior: str,
    line: LineName = LINE,
    padding: int = 300,
    manifest: dict[str, object] | None = None,
) -> Release:
    """A release whose model behaves so; nothing: well.

    bad-golden, bad-live (goldens fail only where it runs), mute (they never answer there), unloadable, refuses, slow, errors, constant,
    silent, crashes, sluggish, hot, falls-back.
    """
    model = f"model {version} {' '.join(behavior)};".encode() + bytes(padding)
    golden = f"golden of {version}".encode()
    files = {name: {"sha256": digest_of(data), "length": len(data)} for name, data in (("model.onnx", model), ("golden.cbor", golden))}
    head = {"line": line, "release": version, "counter": counter, "files": files, **(manifest or {})}
    return Release(
        line, ReleaseVersion(version), counter, {"model.onnx": model, "golden.cbor": golden, "manifest.json": json.dumps(head).encode()}
    )


# --- the parts ---


class MemoryStore:
    """`agent.update.store.UpdateStore` as the update machine uses it; each write is one atomic, durable effect. A full disk refuses it."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.updates: dict[str, UpdateRow] = {}
        self.steps: list[UpdateStepRow] = []
        self.blocked: dict[tuple[str, str], BlockedRow] = {}
        self.values: dict[str, str] = {}
        #: (line, state, saves) of every save of a row.
        self.saves: list[tuple[str, str, int]] = []

    def _act(self, what: str, effect: Callable[[], object]) -> None:
        self._faults.act(f"store: {what}", effect, error=lambda: DeviceError("simulated: no room on the disk", code="disk-full"))

    def load_update(self, line: str) -> UpdateRow | None:
        return self.updates.get(line)

    def save_update(self, row: UpdateRow) -> None:
        self._act(f"save {row.state}", lambda: (self.updates.update({row.line: row}), self.saves.append(_save_of(row))))

    def list_updates(self) -> list[UpdateRow]:
        return [self.updates[line] for line in sorted(self.updates)]

    def add_step(self, step: UpdateStepRow) -> None:
        self._act(f"step {step.state}", lambda: self.steps.append(step))

    def list_steps(self, line: str, limit: int = 64) -> list[UpdateStepRow]:
        return [step for step in self.steps if step.line == line][-limit:]

    def block(self, row: BlockedRow) -> None:
        self._act("block", lambda: self.blocked.update({(row.line, row.release): row}))

    def list_blocked(self) -> list[BlockedRow]:
        return list(self.blocked.values())

    def unblock(self, line: str, release: str) -> None:
        self._act("unblock", lambda: self.blocked.pop((line, release), None))

    def get_value(self, name: str) -> str | None:
        return self.values.get(name)

    def set_value(self, name: str, value: str) -> None:
        self._act(f"set {name}", lambda: self.values.update({name: value}))


def _save_of(row: UpdateRow) -> tuple[str, str, int]:
    return row.line, row.state, row.saves


class FakeEngine:
    """An inference process whose models behave as their text says. Files damaged on the disk do not load."""

    def __init__(self, disk: FakeDisk, faults: Faults) -> None:
        self._disk = disk
        self._faults = faults
        self.running: dict[str, Path] = {}
        self._models: dict[str, bytes] = {}
        self._inferences: dict[str, int] = {}
        self.self_tests = self.live_tests = 0
        self.activations: list[tuple[str, Path]] = []
        #: Every model that ever ran, also in a self-test: none of these bytes may be a stranger's.
        self.ran: set[bytes] = set()

    def self_test(self, folder: Path, *, provider: str = "") -> SelfTest:
        def run() -> SelfTest:
            self.self_tests += not provider
            self.live_tests += bool(provider)
            model = self._load(folder)
            if model is None or b"unloadable" in model:
                return SelfTest(ok=False, code="load_failed", text="The model does not load.")
            if b"bad-golden" in model or (provider and b"bad-live" in model):
                return SelfTest(ok=False, code="golden_mismatch", text="Output scores differs by 0.4; 0.1 was allowed.")
            if provider and b"mute" in model:
                return SelfTest(ok=False, code="timeout", text="No answer.")
            return SelfTest(ok=True, code="ok", text="", provider="onnx:cpu")

        return self._act(f"self-test {folder.name}", run)

    def activate(self, line: str, folder: Path) -> Activation:
        def flip() -> Activation:
            model = self._load(folder)
            if model is None or b"refuses" in model or b"unloadable" in model:
                return Activation(ok=False, code="load_failed", text="The model does not load.")
            self.activations.append((line, folder))
            self.running[line], self._models[line], self._inferences[line] = folder, model, 0
            return Activation(ok=True, code="ok", text="", provider="onnx:cpu")

        return self._act(f"activate {folder.name}", flip)

    def commit(self, line: str, *, rss_budget_mb: float | None = None) -> None:
        _ = line, rss_budget_mb
        self._act("free the old model", lambda: None)

    def deactivate(self, line: str) -> None:
        self._act("deactivate", lambda: self.running.pop(line, None))

    def figures(self, line: str) -> Figures | None:
        if line not in self.running:
            return None
        model = self._models[line]
        if b"crashes" in model and self._inferences[line] > 0:
            self._inferences[line] = 0
        elif b"silent" not in model:
            self._inferences[line] += INFERENCES_PER_LOOK
        count = self._inferences[line]
        errors = count // 10 if b"errors" in model else 0
        p99_ms = 90.0 if b"slow" in model else 8.0
        top_share = 1.0 if b"constant" in model else 0.2
        rss_mb = 900.0 if b"fat" in model else 60.0
        return Figures(
            inferences=count,
            errors=errors,
            p99_ms=p99_ms,
            rss_mb=rss_mb,
            top_share=top_share,
            healthy=count - errors,
            fps=9.0 if b"sluggish" in model else 10.0,
            provider="onnx:other" if b"falls-back" in model else "onnx:cpu",
        )

    def lose_power(self) -> None:
        self.running.clear()
        self._models.clear()

    def model_of(self, line: str) -> bytes | None:
        """The bytes that infer now."""
        return self._models.get(line) if line in self.running else None

    def _load(self, folder: Path) -> bytes | None:
        path = folder / "model.onnx"
        if path not in self._disk.paths():
            return None
        model = b"".join(self._disk.read_chunks(path))
        self.ran.add(model)
        return model

    def _act(self, what: str, effect: Callable[[], T]) -> T:
        return self._faults.act(f"engine: {what}", effect, error=lambda: DeviceError("simulated: no inference process", code="engine_down"))


class FakeServer:
    """The server's blobs, over httpx without a network; Range and ETag as the real one."""

    def __init__(self, faults: Faults, *, chunk_bytes: int = 128) -> None:
        self._faults = faults
        self._chunk_bytes = chunk_bytes
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        #: Answers these statuses first, each with its headers.
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.does_resume = True
        #: What is answered for a blob that is not there.
        self.gone_status = 404
        self.bytes_sent = 0

    def publish(self, *releases: Release) -> None:
        for release in releases:
            self.blobs.update({hashlib.sha256(data).hexdigest(): data for data in release.files.values()})

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self._answer), trust_env=False)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        wanted = request.headers.get("Range", "")
        self.requests.append((request.url.path, wanted))
        if self.refusals:
            status, headers = self.refusals.pop(0)
            return httpx.Response(status, headers=headers)
        name = request.url.path.rpartition("/")[2]
        data = self.blobs.get(name)
        if data is None:
            return httpx.Response(self.gone_status)
        etag = f'"{name}"'
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.does_resume else 0
        if start and request.headers.get("If-Range", etag) != etag:
            start = 0
        if start >= len(data):
            return httpx.Response(416)
        headers = {"ETag": etag, "Content-Length": str(len(data) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return httpx.Response(206 if start else 200, headers=headers, content=self._pieces(data[start:]))

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), self._chunk_bytes):
            piece = data[start : start + self._chunk_bytes]
            self._faults.act("server: piece", lambda: None, error=lambda: httpx.ReadError("simulated: connection reset"))
            self.bytes_sent += len(piece)
            yield piece


# --- the device ---

RULES = ProbeRules(min_inferences=1000, min_seconds=0.5, max_seconds=20.0)


class DeviceSimulator:
    """What survives a power cut (disk, journal, server) and what does not (machine, engine, client)."""

    #: Where other slots of this device lie, whose files need not be fetched again.
    beside_dir: Path | None = None

    def __init__(
        self, *, seed: int = 0, rules: ProbeRules = RULES, capacity: int = 1 << 30, chunk_bytes: int = 128, policy: Policy | None = None
    ) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a test's dice
        self.faults = Faults()
        self.clock = FakeClock()
        self.disk = FakeDisk(self.faults, chance=self.chance, capacity=capacity)
        self.store = MemoryStore(self.faults)
        self.server = FakeServer(self.faults, chunk_bytes=chunk_bytes)
        self.engine = FakeEngine(self.disk, self.faults)
        self.client = self.server.client()
        self.rules = rules
        self.policy = policy
        self.changes: list[LineName] = []
        #: What the next check finds; taken over when `offer` returned.
        self.pending: list[Assignment] = []
        #: Of the device's sensor while a cool model runs; None: it has none.
        self.temperature_c: float | None = None
        self.boots = 0
        #: The committed slot was blamed for MAX_LOAD_FAILURES starts in a row; a `Witness` sees it.
        self.was_given_up = False
        #: Asked after each start that brought the lines up, with nothing but cuts before it.
        self.on_up: Callable[[], None] = lambda: None
        self.machine = self._build()
        self.faults.where = self._state

    def _temperature(self) -> float | None:
        is_hot = b"hot" in (self.engine.model_of(LINE) or b"")
        return None if self.temperature_c is None else self.temperature_c + 20.0 * is_hot

    def _state(self) -> str:
        row = self.store.updates.get(LINE)
        return "idle" if row is None else row.state

    def _build(self) -> UpdateMachine:
        disk: Disk = self.disk
        self.slots = Slots(SLOTS_DIR, disk=disk)
        self.downloads = Downloads(DOWNLOADS_DIR, lambda: contextlib.nullcontext(self.client), clock=self.clock, disk=disk)
        self.installer = ModelInstaller(
            self.slots,
            self.engine,
            device_type="sim",
            disk=disk,
            spare_bytes=1000,
            temperature_c=self._temperature,
            beside=None if self.beside_dir is None else Slots(self.beside_dir, disk=disk),
        )
        return UpdateMachine(
            self.store,
            self.slots,
            self.installer,
            self.downloads,
            clock=self.clock,
            rules=self.rules,
            on_change=self.changes.append,
            policy=self.policy,
            applier=FakeApplier(disk, self.faults),
            chance=random.Random(1),  # noqa: S311 - a test's dice
        )

    def boot(self) -> UpdateMachine:
        """Start the agent anew over what is on the disk."""
        self.boots += 1
        self.machine = self._build()
        self.machine.restore()
        return self.machine

    def lose_power(self) -> None:
        self.disk.lose_power()
        self.engine.lose_power()

    def restart(self) -> None:
        """End the agent and start it again, as after a power cut now."""
        self.faults.is_dead = True
        self.lose_power()
        self.boot()

    def assign(self, assignment: Assignment) -> None:
        """What the director says from now on; the machine takes it over in `run`."""
        self.pending.append(assignment)

    def run(self, *, rounds: int = 400) -> None:
        """Run, through any number of cuts and full disks, until no update is open."""
        is_up = is_restored = False
        for _ in range(rounds):
            try:
                if not is_up:
                    self.boots += 1
                    self.machine = self._build()
                    is_up, is_restored = True, False
                if not is_restored:
                    self.machine.restore()
                    is_restored = True
                    self.on_up()
                while self.pending:
                    self.machine.offer(self.pending[0])
                    self.pending.pop(0)
                wait_s = self.machine.run_pending()
                if not self.open_lines() and not self.pending:
                    return
                self.clock.advance(wait_s)
            except PowerCut:
                self.lose_power()
                is_up = False
            except DeviceError:  # of the store: the outermost loop of the thread starts it again on the same machine
                is_restored = False
        raise AssertionError(f"The update did not end in {rounds} rounds; last: {self.store.saves[-3:]}, log {self.faults.log[-5:]}")

    def open_lines(self) -> list[str]:
        final = {"succeeded", "failed", "rolled_back", "inconsistent"}
        return [row.line for row in self.store.list_updates() if row.state not in final]

    def installed(self, release: Release) -> None:
        """Put the release into the device without faults, as if it had always been there."""
        self.server.publish(release)
        plan, self.faults.plan = self.faults.plan, {}
        self.assign(release.assignment(assignment="as-0"))
        self.run()
        assert self.store.updates[release.line].state == "succeeded"
        self.faults.plan = plan
        self.faults.log.clear()
        self.store.steps.clear()
        self.store.saves.clear()

    def copy_from(self, other: "DeviceSimulator") -> None:
        """Be where the other device is; it has no open update."""
        self.disk.copy_from(other.disk)
        self.store.updates.update(other.store.updates)
        self.store.values.update(other.store.values)
        self.server.blobs.update(other.server.blobs)

    # --- what must hold ---

    def runs(self, release: Release | None) -> bool:
        """Whether the line infers from this release (None: from nothing)."""
        model = self.engine.model_of(LINE)
        return model is None if release is None else model == release.files["model.onnx"]


class Witness:
    """Looks after every effect and every start: the old release stays whole, and nothing ever runs that nobody signed."""

    def __init__(self, device: DeviceSimulator, *, old: Release | None, signed: Iterable[Release]) -> None:
        self._device = device
        self._signed = {release.files["model.onnx"] for release in signed}
        folder = None if old is None else device.slots.committed(LINE)
        paths = [] if folder is None else [path for path in device.disk.paths() if path.parent == folder.folder]
        self._old = {path: device.disk.peek(path) for path in paths}
        assert old is None or {path.name for path in self._old} == {*old.files, "slot.json"}
        device.faults.witness = self.look
        device.on_up = self.up

    def look(self) -> None:
        """Whether the old slot is whole, to the byte, and every model that ran is a signed one.

        When the power failed at MAX_LOAD_FAILURES starts in a row while it loaded, the old slot is blamed and may go.
        """
        if int(self._device.store.values.get(f"update.load_failures.{LINE}", "0")) >= MAX_LOAD_FAILURES:
            self._device.was_given_up, self._old = True, {}
        assert self._device.engine.ran <= self._signed, f"a stranger ran: {self._device.faults.log[-3:]}"
        for path, data in self._old.items():
            assert self._device.disk.peek(path) == data, f"{path} of the old slot changed: {self._device.faults.log[-3:]}"

    def up(self) -> None:
        """Whether the device that just started runs a whole slot of a signed release, when it ever had one."""
        self.look()
        device, is_struck_by_error = self._device, any("error" in fault for _, _, fault in self._device.faults.struck)
        model = device.engine.model_of(LINE)
        if self._old and not is_struck_by_error:
            assert model in self._signed, f"nothing runs after the start: {device.faults.struck}"
        if model is not None and not is_struck_by_error:
            committed = device.slots.committed(LINE)
            assert committed is not None
            assert device.disk.peek(committed.folder / "model.onnx") == model
            assert device.slots.scrub(LINE, committed.name) == []


def with_floor(assignment: Assignment, floor: int) -> Assignment:
    """The assignment with a floor for the line."""
    return replace(assignment, floors={LINE: floor})
