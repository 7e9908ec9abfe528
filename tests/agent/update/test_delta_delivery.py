"""Real deltas to a real disk: signed by a real director over HTTPS, decoded in a child, resumed after SIGKILL on a slow link, capped."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from simulators.deltas import digest_of
from simulators.device import LINE, Release
from simulators.throttled_server import ThrottledServer
from simulators.update_api import UpdateApi
from simulators.update_process import PretendedEngine
from waiting import wait_until

from agent.config import UpdateConfig
from agent.identity import open_client
from agent.slots import Slots
from agent.store import Store
from agent.update.applier import ChildApplier
from agent.update.assignment import Assignment, LineOffer, OfferedDelta
from agent.update.bandwidth import TokenBucket
from agent.update.check import CheckWish, check
from agent.update.fetch import Downloads
from agent.update.installers import ModelInstaller
from agent.update.machine import UpdateMachine
from agent.update.policy import Consents, UpdatePolicy
from agent.update.probe import ProbeRules
from agent.update.store import UpdateStore
from fleet.registry.delta_encoder import encode
from protocol.clock import SystemClock
from protocol.ids import ReleaseVersion
from protocol.messages import LineState
from protocol.trust.metadata import DeltaOffer, DirectorTargetFields

ROOT = Path(__file__).resolve().parents[3]
RULES = ProbeRules(min_inferences=50, min_seconds=0.05, max_seconds=10.0)
MODEL_BYTES = 300_000
FINAL = ("succeeded", "failed", "rolled_back", "inconsistent")


def make(version: str, counter: int, model: bytes) -> Release:
    """A release whose model does not compress."""
    files = {"model.onnx": model, "golden.cbor": b"golden"}
    bound = {name: {"sha256": digest_of(data), "length": len(data)} for name, data in files.items()}
    manifest = json.dumps({"line": LINE, "release": version, "counter": counter, "files": bound}).encode()
    return Release(LINE, ReleaseVersion(version), counter, {**files, "manifest.json": manifest})


def change(model: bytes, places: int) -> bytes:
    changed = bytearray(model)
    for at in random.Random(2).sample(range(len(b"model;"), len(model)), places):  # noqa: S311 - test data
        changed[at] ^= 0x01
    return bytes(changed)


FIRST_MODEL = b"model;" + bytes(random.Random(1).choices(range(16), k=MODEL_BYTES))  # noqa: S311 - test data
FIRST, SECOND = make("1.0", 1, FIRST_MODEL), make("1.1", 2, change(FIRST_MODEL, 15_000))


@pytest.fixture(scope="module")
def deltas(tmp_path_factory) -> dict[str, bytes]:
    """The delta of the second release's model from the first, and the compressed whole."""
    folder = tmp_path_factory.mktemp("deltas")
    old, new = folder / "old", folder / "new"
    old.write_bytes(FIRST.files["model.onnx"])
    new.write_bytes(SECOND.files["model.onnx"])
    encode(old, new, folder / "delta")
    encode(None, new, folder / "full")
    return {name: (folder / name).read_bytes() for name in ("delta", "full")}


class Device:
    """The agent's own parts on a real disk; models are pretended."""

    def __init__(self, state: Path, client: Callable[[], AbstractContextManager[httpx.Client]], **settings: object) -> None:
        clock = SystemClock()
        self.store = Store(state / "outbox.db", clock=clock)
        self.slots = Slots(state / "slots")
        config = UpdateConfig(**settings)
        bucket = TokenBucket(config.bandwidth_kib_s * 1024, clock=clock)
        downloads = Downloads(state / "downloads", client, clock=clock, bucket=bucket)
        self.policy = UpdatePolicy(config, Consents(self.store))
        self.machine = UpdateMachine(
            UpdateStore(self.store),
            self.slots,
            ModelInstaller(self.slots, PretendedEngine()),
            downloads,
            clock=clock,
            rules=RULES,
            policy=self.policy,
            applier=ChildApplier(),
        )

    def update(self, assignment: Assignment, *, until: tuple[str, ...] = FINAL) -> LineState:
        """Take it and run until the line is in one of these states, or holds."""
        self.machine.offer(assignment)
        pause = threading.Event()
        for _ in range(2000):
            wait_s = self.machine.run_pending()
            state = self.machine.state_of(LINE)
            if state.state in until or state.waits_for:
                return state
            pause.wait(min(wait_s, 0.05))
        raise AssertionError(f"still {state}")


# --- signed by a director, over HTTPS ---


@pytest.fixture
def api(tmp_path, authority):
    with UpdateApi(tmp_path / "server", authority) as running:
        running.publish(FIRST)
        running.publish(SECOND)
        yield running


class Enrolled:
    """A device of that server."""

    def __init__(self, api: UpdateApi, make_identity, **settings: object) -> None:
        identity = make_identity("mqtts://127.0.0.1:9", server=api.url)
        identity.image_root_path.write_bytes(api.image.bootstrap)
        identity.director_root_path.write_bytes(api.director.bootstrap)
        self._state = identity.folder.parent
        self._api = api
        self.device = Device(
            self._state, lambda: open_client(identity.tls_context(), base_url=api.url, proxy=None, timeout_s=60.0), **settings
        )

    def ask(self) -> Assignment:
        wish = CheckWish(self._api.url, device_type="sim", runtimes=("onnx",), agent_version="0.1.0", timeout_s=60.0)
        answer = check(self._state, wish, clock=SystemClock())
        assert answer.assignment is not None, answer.error
        return answer.assignment

    def update(self) -> LineState:
        return self.device.update(self.ask())


def directed(api: UpdateApi, deltas: dict[str, bytes], **changes: object) -> None:
    """Let the director name the second release with what makes its model."""
    offers = []
    for name, method in (("delta", 1), ("full", 0)):
        base = digest_of(FIRST.files["model.onnx"]) if method else "sha256:" + "0" * 64
        offers.append(DeltaOffer(base_sha256=base, sha256=api.add_blob(deltas[name]), length=len(deltas[name]), method=method))
    # one of a method from the future, and two that do not fit together
    unknown = offers[0].model_copy(update={"method": 9, "length": 1})
    odd = (offers[0].model_copy(update={"method": 0, "length": 1}), offers[1].model_copy(update={"method": 2, "length": 1}))
    api.assign(SECOND, how=DirectorTargetFields(deltas=(unknown, *odd, *offers), **changes), assignment="as-2")


def blobs_asked(api: UpdateApi) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in api.requests if path.startswith("/blobs/")]


def test_what_the_director_signed_about_deltas_reaches_the_offer(api, make_identity, deltas):
    directed(api, deltas, full_bytes_allowed=77)
    offer = Enrolled(api, make_identity).ask().lines[0]
    model = next(file for file in offer.files if file.name == "model.onnx")
    assert [(delta.method, delta.length, delta.is_full) for delta in model.deltas] == [
        (1, len(deltas["delta"]), False),
        (0, len(deltas["full"]), True),
    ]
    assert model.deltas[0].url == f"{api.url}/blobs/sha256/{digest_of(deltas['delta']).removeprefix('sha256:')}"
    assert offer.full_bytes_allowed == 77
    assert all(not file.deltas for file in offer.files if file is not model)


def test_a_metered_device_updates_by_a_signed_delta_alone(api, make_identity, deltas):
    enrolled = Enrolled(api, make_identity)
    api.assign(FIRST)
    assert enrolled.update().state == "succeeded"
    enrolled.device.policy.replace(UpdateConfig(metered=True))
    directed(api, deltas)
    api.requests.clear()
    state = enrolled.update()
    assert (state.state, state.transfer) == ("succeeded", "delta")
    assert enrolled.device.slots.active(LINE).model_path.read_bytes() == SECOND.files["model.onnx"]
    asked = blobs_asked(api)
    assert digest_of(deltas["delta"]).removeprefix("sha256:") in asked
    assert digest_of(SECOND.files["model.onnx"]).removeprefix("sha256:") not in asked
    facts = enrolled.device.machine.report_facts(LINE)
    beside = sum(len(data) for name, data in SECOND.files.items() if name == "manifest.json")
    assert facts.bytes_downloaded == len(deltas["delta"]) + beside
    assert facts.bytes_downloaded < MODEL_BYTES // 3


def test_a_new_metered_device_holds_until_the_director_allows_the_whole_model(api, make_identity, deltas):
    enrolled = Enrolled(api, make_identity, metered=True)
    directed(api, deltas)
    state = enrolled.update()
    assert (state.state, state.reason, state.waits_for) == ("downloading", "full_download_refused", "full_download")
    assert str(len(deltas["full"])) in state.text
    assert blobs_asked(api) == []
    directed(api, deltas, full_bytes_allowed=len(deltas["full"]))
    enrolled.device.machine.offer(enrolled.ask())
    assert enrolled.device.update(enrolled.ask()).state == "succeeded"
    assert digest_of(deltas["full"]).removeprefix("sha256:") in blobs_asked(api)


def test_a_delta_damaged_on_the_server_is_told_and_the_whole_model_comes(api, make_identity, deltas):
    enrolled = Enrolled(api, make_identity)
    api.assign(FIRST)
    assert enrolled.update().state == "succeeded"
    directed(api, deltas)
    api.blobs[digest_of(deltas["delta"]).removeprefix("sha256:")] = bytes(len(deltas["delta"]))
    state = enrolled.update()
    if state.state == "failed":  # between the two tries
        state = enrolled.device.update(enrolled.ask(), until=("succeeded",))
    assert (state.state, state.transfer) == ("succeeded", "full")
    assert enrolled.device.machine.report_facts(LINE).failed_deltas == (digest_of(deltas["delta"]),)


# --- a slow link, SIGKILL, a cap ---


@pytest.fixture
def slow(deltas):
    def with_delta(offer: LineOffer, url: str) -> LineOffer:
        if offer.release != SECOND.version:
            return offer
        data = deltas["delta"]
        made = OfferedDelta(
            digest_of(FIRST.files["model.onnx"]),
            len(data),
            digest_of(data),
            1,
            f"{url}/blobs/sha256/{digest_of(data).removeprefix('sha256:')}",
        )
        return replace(offer, files=tuple(replace(file, deltas=(made,)) if file.name == "model.onnx" else file for file in offer.files))

    # number_of(1) is the first to be assigned
    server = ThrottledServer([SECOND, FIRST], chunk_bytes=4096, pause_s=0.04, blobs=deltas.values(), offer_as=with_delta)
    yield server
    server.close()


class Agent:
    """A process that takes updates, and what it said."""

    def __init__(self, state: Path, url: str) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, str(ROOT / "tests" / "simulators" / "update_process.py"), str(state), url]
        self._process, self.said = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment), list[str]()
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.decode().strip())


def test_a_delta_on_a_slow_link_goes_on_after_sigkill_where_it_was(slow, deltas, tmp_path):
    name = digest_of(deltas["delta"]).removeprefix("sha256:")
    part = tmp_path / "downloads" / f"{name}.part"
    slow.hold(name, after_bytes=len(deltas["delta"]) * 3 // 4)  # however slow this machine is: it is killed before the end
    agent = Agent(tmp_path, slow.url)
    try:
        wait_until(lambda: part.exists() and part.stat().st_size > len(deltas["delta"]) // 3, what="a third of the delta")
    finally:
        agent.kill()
    have = part.stat().st_size
    assert 0 < have < len(deltas["delta"])
    slow.release()
    again = Agent(tmp_path, slow.url)
    try:
        wait_until(lambda: "end 2 succeeded" in again.said, what="the second update")
    finally:
        again.kill()
    ranges = [wanted for path, wanted in slow.requests if path.endswith(name)]
    assert ranges == ["", f"bytes={have}-"]
    whole = digest_of(SECOND.files["model.onnx"]).removeprefix("sha256:")
    assert not any(path.endswith(whole) for path, _ in slow.requests)
    assert Slots(tmp_path / "slots").active(LINE).model_path.read_bytes() == SECOND.files["model.onnx"]


def test_a_cap_on_bandwidth_holds_over_all_files_of_an_update(deltas, tmp_path):
    """100 KiB/s for 300 kB: at least 2 seconds after the first burst. The server would give it at once."""
    server = ThrottledServer([FIRST], chunk_bytes=1 << 20, pause_s=0.0)
    try:
        device = Device(tmp_path, lambda: httpx.Client(trust_env=False), bandwidth_kib_s=100)
        begin = time.monotonic()
        assert device.update(FIRST.assignment(base_url=server.url)).state == "succeeded"
        total = sum(map(len, FIRST.files.values()))
        assert time.monotonic() - begin >= (total - 100 * 1024) / (100 * 1024)
    finally:
        server.close()
