"""A process that takes updates for real: store, slots, downloads and machine of the agent on a real disk; models are pretended.

`python update_process.py STATE URL [--die-in STATE SECONDS]` writes one line per fact to stdout as soon as it is durable: `up`, `row SEQ`,
`end NUMBER STATE`, `runs DIGEST`. The disk is as slow as a memory card, so that a kill can meet every state. With `--die-in` the process
gets its SIGKILL so many seconds after the machine's row says that state: nobody outside is quick enough for the short ones.
"""

import argparse
import hashlib
import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import httpx

from agent.slots import LocalDisk, Slots
from agent.store import Store
from agent.update.assignment import parse_answer
from agent.update.fetch import Downloads
from agent.update.installers import ModelInstaller
from agent.update.machine import UpdateMachine
from agent.update.probe import ProbeRules
from agent.update.states import FINAL, UpdateState
from agent.update.store import UpdateStore
from protocol.clock import SystemClock
from protocol.ids import LineName
from runtime.selftest import Activation, Figures, SelfTest

LINE = LineName("digits")
#: Seconds that the pretended model takes to load, to be tested and to answer.
SELF_TEST_S, LOAD_S, PER_INFERENCE_S = 0.1, 0.07, 0.0005


#: Seconds that each durable change of a folder takes.
DISK_S = 0.004


class MemoryCard(LocalDisk):
    """The file system of this machine, slower."""

    _pause = threading.Event()

    def sync_folder(self, folder: Path) -> None:
        self._pause.wait(DISK_S)
        super().sync_folder(folder)

    def replace(self, source: Path, target: Path) -> None:
        self._pause.wait(DISK_S)
        super().replace(source, target)

    def free_bytes(self, folder: Path) -> int:
        self._pause.wait(DISK_S)
        return super().free_bytes(folder)


class PretendedEngine:
    """Loads the model file for real and behaves as its text says; time passes as it would."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[bytes, float]] = {}
        self._pause = threading.Event()

    def self_test(self, folder: Path, *, provider: str = "") -> SelfTest:
        _ = provider
        self._pause.wait(SELF_TEST_S)
        if b"bad-golden" in (folder / "model.onnx").read_bytes():
            return SelfTest(ok=False, code="golden_mismatch", text="Output scores differs by 0.4; 0.1 was allowed.")
        return SelfTest(ok=True, code="ok", text="")

    def activate(self, line: str, folder: Path) -> Activation:
        self._pause.wait(LOAD_S)
        model = (folder / "model.onnx").read_bytes()
        tell(f"runs sha256:{hashlib.sha256(model).hexdigest()}")
        self._models[line] = (model, time.monotonic())
        return Activation(ok=True, code="ok", text="")

    def commit(self, line: str, *, rss_budget_mb: float | None = None) -> None:
        _ = line, rss_budget_mb
        self._pause.wait(LOAD_S)

    def deactivate(self, line: str) -> None:
        self._models.pop(line, None)

    def figures(self, line: str) -> Figures | None:
        if line not in self._models:
            return None
        model, since = self._models[line]
        count = int((time.monotonic() - since) / PER_INFERENCE_S)
        p99_ms = 90.0 if b"slow" in model else 8.0
        return Figures(inferences=count, errors=0, p99_ms=p99_ms, rss_mb=60.0, top_share=0.2, healthy=count, provider="onnx:cpu")


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


class Death:
    """Comes a while after the update's row says a state."""

    def __init__(self, store: UpdateStore, state: str, after_s: float) -> None:
        self._store, self._state, self._after_s = store, state, after_s
        self._due = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def look(self, line: LineName) -> None:
        """Called by the machine after each save."""
        row = None if self._due.is_set() else self._store.load_update(line)
        if row is not None and row.state == self._state:
            if self._after_s == 0.0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._due.set()

    def _wait(self) -> None:
        self._due.wait()
        threading.Event().wait(self._after_s)
        os.kill(os.getpid(), signal.SIGKILL)


def run(state: Path, url: str, *, die_in: str, after_s: float) -> None:
    """Update for ever; somebody kills this process."""
    clock, disk = SystemClock(), MemoryCard()
    store = Store(state / "outbox.db", clock=clock)
    slots = Slots(state / "slots", disk=disk)

    client = httpx.Client(trust_env=False, timeout=120.0)
    downloads = Downloads(state / "downloads", lambda: nullcontext(client), clock=clock, disk=disk)
    rules = ProbeRules(min_inferences=100, min_seconds=0.1, max_seconds=10.0)
    installer = ModelInstaller(slots, PretendedEngine(), disk=disk)
    updates = UpdateStore(store)
    death = Death(updates, die_in, after_s)
    machine = UpdateMachine(updates, slots, installer, downloads, clock=clock, rules=rules, on_change=death.look)
    threading.Thread(target=machine.run, args=(threading.Event(),), daemon=True).start()
    threading.Thread(target=add_rows, args=(store,), daemon=True).start()
    tell("up")
    pause = threading.Event()
    while True:
        row = updates.load_update(LINE)
        number = 0 if row is None else row.attempt
        if row is None or UpdateState(row.state) in FINAL:
            if row is not None:
                tell(f"end {number} {row.state}")
            answer = parse_answer(client.get(f"{url}/assignment?done={number}").content)
            assert answer.assignment is not None
            machine.offer(answer.assignment)
        pause.wait(0.01)


def add_rows(store: Store) -> None:
    """Telemetry goes on beside the updates; a row is told only once it is durable."""
    pause = threading.Event()
    while True:
        tell(f"row {store.add('event', ('event',), {'type': 'mooring.test.v1', 'data': {}})}")
        pause.wait(0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("url")
    parser.add_argument("--die-in", nargs=2, default=("never", "0"))
    options = parser.parse_args()
    run(options.state, options.url, die_in=options.die_in[0], after_s=float(options.die_in[1]))
