"""A real file system that runs full: the update fails clearly, nothing half-written stays, the old model runs (needs root to mount)."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.clock import FakeClock
from simulators.device import LINE, RULES, FakeEngine, FakeServer, MemoryStore, Release, make_release
from simulators.disk import FakeDisk, Faults

from agent.slots import SlotName, Slots
from agent.update.fetch import Downloads
from agent.update.installers import ModelInstaller
from agent.update.machine import UpdateMachine
from runtime.selftest import SelfTest

KIB = 1 << 10
OLD, NEW = make_release("1.0", 1, padding=40 * KIB), make_release("1.1", 2, padding=150 * KIB)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine does not let a small file system be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


class RealFolderEngine(FakeEngine):
    """The pretended engine over real files."""

    def self_test(self, folder: Path, *, provider: str = "") -> SelfTest:
        _ = provider
        return SelfTest(ok=(folder / "model.onnx").exists(), code="ok", text="")

    def _load(self, folder: Path) -> bytes | None:
        return (folder / "model.onnx").read_bytes()


def make_machine(folder: Path, store: MemoryStore, engine: FakeEngine, server: FakeServer, *, spare_bytes: int) -> UpdateMachine:
    clock, client = FakeClock(), server.client()
    slots = Slots(folder / "slots")
    downloads = Downloads(folder / "downloads", lambda: contextlib.nullcontext(client), clock=clock)
    machine = UpdateMachine(
        store, slots, ModelInstaller(slots, engine, spare_bytes=spare_bytes), downloads, clock=clock, rules=RULES, on_change=lambda _: None
    )
    machine.test_clock = clock
    return machine


def run(machine: UpdateMachine, store: MemoryStore, release: Release, *, attempt: int = 1) -> str:
    machine.offer(release.assignment(assignment=f"as-{release.version}", attempt=attempt))
    for _ in range(50):
        machine.test_clock.advance(machine.run_pending())
        if store.updates[LINE].state in ("succeeded", "failed", "rolled_back", "inconsistent"):
            return store.updates[LINE].state
    raise AssertionError(store.updates[LINE])


@pytest.mark.parametrize("spare_bytes", [16 << 20, 0, -(1 << 30)], ids=["no room to spare", "no room for a copy", "room taken meanwhile"])
def test_a_full_file_system_fails_the_update_clearly_and_the_old_model_runs(small_disk, spare_bytes):
    faults = Faults()
    store, engine, server = MemoryStore(faults), RealFolderEngine(FakeDisk(faults), faults), FakeServer(faults, chunk_bytes=8 * KIB)
    server.publish(OLD, NEW)
    assert run(make_machine(small_disk, store, engine, server, spare_bytes=0), store, OLD) == "succeeded"
    machine = make_machine(small_disk, store, engine, server, spare_bytes=spare_bytes)
    machine.restore()
    assert run(machine, store, NEW) == "failed"
    row = store.updates[LINE]
    assert row.reason == "disk_full"
    assert "disk" in row.text
    assert "offer it again" in row.text
    slots = Slots(small_disk / "slots")
    assert slots.active(LINE).content.release == "1.0"
    assert slots.scrub(LINE, SlotName.A) == []
    assert engine.model_of(LINE) == OLD.files["model.onnx"]
    assert list((small_disk / "downloads").iterdir()) == []
    inactive = slots.folder(LINE, SlotName.B)
    assert not inactive.exists() or list(inactive.iterdir()) == []
    assert machine.problems() == {}


def test_once_there_is_room_again_the_next_attempt_succeeds(small_disk):
    faults = Faults()
    store, engine, server = MemoryStore(faults), RealFolderEngine(FakeDisk(faults), faults), FakeServer(faults, chunk_bytes=8 * KIB)
    small = make_release("1.1", 2, padding=50 * KIB)
    server.publish(OLD, small)
    machine = make_machine(small_disk, store, engine, server, spare_bytes=0)
    assert run(machine, store, OLD) == "succeeded"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(180 * KIB))
    assert run(machine, store, small) == "failed"
    ballast.unlink()
    assert run(machine, store, small, attempt=2) == "succeeded"
    assert engine.model_of(LINE) == small.files["model.onnx"]
