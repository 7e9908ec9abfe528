"""How a release gets into a slot, runs from it and goes again: one interface, models now, firmware beside it later.

Every method first looks whether its effect is already there, so that it may be called again after a cut at any instruction.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.slots import Disk, LocalDisk, Slot, SlotName, Slots, digest_on
from agent.update.assignment import LineOffer
from agent.update.engine import Engine
from agent.update.probe import ProbeWishes
from protocol.errors import DeviceError, TrustError
from protocol.ids import Digest, LineName
from runtime.selftest import Activation, Figures, SelfTest

MANIFEST = "manifest.json"
#: Key of a budget that holds on every device type without one of its own.
ANY_DEVICE_TYPE = "*"
MAX_MANIFEST_BYTES = 256 << 10
#: What stays free on the disk beyond the files of a release (UPDATES 3.3).
SPARE_BYTES = 16 << 20


class Installer(Protocol):
    """One kind of release on this device."""

    def find_file(self, digest: Digest) -> Path | None:
        """A file with these bytes in any slot."""
        ...

    def find_base(self, line: LineName, digest: Digest) -> Path | None:
        """A file that a complete slot of the line says to have these bytes."""
        ...

    def hash_file(self, path: Path) -> Digest:
        """The digest of the bytes that are in the file now. Raises: OSError."""
        ...

    def holds(self, offer: LineOffer) -> bool:
        """Whether the inactive slot already holds exactly this release, every byte of it."""
        ...

    def verify(self, offer: LineOffer, files: Mapping[str, Path]) -> None:
        """Whether the files fit the offer and this device has room, also for those that a delta is to make; touches nothing.

        Raises: TrustError, DeviceError.
        """
        ...

    def install(self, offer: LineOffer, files: Mapping[str, Path]) -> None:
        """Fill the inactive slot. Raises: TrustError, DeviceError; then the slot is empty."""
        ...

    def self_test(self, offer: LineOffer) -> SelfTest:
        """Try the installed release without activating it."""
        ...

    def live_test(self, offer: LineOffer, provider: str) -> SelfTest:
        """Try the active release in a process of its own on the back end that it runs on."""
        ...

    def wishes(self, offer: LineOffer) -> ProbeWishes:
        """What the installed release wants of its probe."""
        ...

    def is_active(self, offer: LineOffer) -> bool:
        """Whether the release is the active one."""
        ...

    def activate(self, offer: LineOffer) -> Activation:
        """Run the installed release, on trial."""
        ...

    def figures(self, line: LineName) -> Figures | None:
        """Live figures of what the line runs; None: nothing runs."""
        ...

    def commit(self, offer: LineOffer) -> None:
        """Keep what runs. Raises: DeviceError, OSError."""
        ...

    def keep(self, offer: LineOffer) -> bool:
        """Keep what is active without running it first, when every byte of it is whole; returns whether it is kept. Raises: OSError."""
        ...

    def roll_back(self, line: LineName, old_slot: str | None) -> None:
        """Run the old slot again (None: nothing). Raises: DeviceError, OSError."""
        ...

    def bring_up(self, line: LineName) -> Activation:
        """Run what is committed, after a start."""
        ...

    def rescue(self, line: LineName, *, first: str | None) -> bool:
        """Run a slot of the line that is whole and passes its self-test, trying `first` first; returns whether one did."""
        ...

    def discard(self, offer: LineOffer) -> None:
        """Empty the inactive slot when it holds this release or something half-written; a release once committed stays."""
        ...


class _ManifestHead(BaseModel):
    """What of the manifest binds it to the offer and to its probe; the self-test reads all of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    line: str
    release: str
    counter: int
    files: dict[str, "_FileHead"] = Field(default_factory=dict)
    backends: tuple[str, ...] = ()
    budget: dict[str, "_Budget"] = Field(default_factory=dict)
    probe: "_Probe | None" = None


class _FileHead(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    sha256: str
    length: int


class _Budget(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    latency_p99_ms: Annotated[float, Field(gt=0)] | None = None
    rss_mb: Annotated[float, Field(gt=0)] | None = None


class _Probe(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    min_inferences: Annotated[int, Field(ge=0)] | None = None
    min_seconds: Annotated[float, Field(ge=0)] | None = None
    latency_ratio: Annotated[float, Field(gt=0)] | None = None
    max_top_share: Annotated[float, Field(gt=0, le=1)] | None = None


class ModelInstaller:
    """Models: files in a slot, run by the inference process."""

    def __init__(
        self,
        slots: Slots,
        engine: Engine,
        *,
        device_type: str = "",
        disk: Disk | None = None,
        spare_bytes: int = SPARE_BYTES,
        temperature_c: Callable[[], float | None] = lambda: None,
        beside: Slots | None = None,
    ) -> None:
        """`beside`: other slots on this device whose files need not be fetched again, and may be what a delta starts from."""
        self._slots = slots
        self._beside = beside
        self._engine = engine
        self._device_type = device_type
        self._disk: Disk = LocalDisk() if disk is None else disk
        self._spare_bytes = spare_bytes
        self._temperature_c = temperature_c
        #: Which slot the engine was last brought to, per line; empty after a restart.
        self._running: dict[LineName, SlotName] = {}

    # --- downloading, verifying, installing ---

    def find_file(self, digest: Digest) -> Path | None:
        return self._slots.find_digest(digest) or (self._beside.find_digest(digest) if self._beside is not None else None)

    def find_base(self, line: LineName, digest: Digest) -> Path | None:
        found = self._slots.find_digest(digest, line=line)
        return found or (self._beside.find_digest(digest, line=line) if self._beside is not None else None)

    def hash_file(self, path: Path) -> Digest:
        return digest_on(self._disk, path)

    def holds(self, offer: LineOffer) -> bool:
        slot = self._installed(offer)
        return slot is not None and not self._slots.scrub(offer.line, slot.name)

    def verify(self, offer: LineOffer, files: Mapping[str, Path]) -> None:
        if self.holds(offer):
            return
        _ = offer.content.model
        wanted = offer.total_bytes + sum(file.length for file in offer.files if file.name not in files) + self._spare_bytes
        if (free := self._disk.free_bytes(self._slots.folder(offer.line, SlotName.A))) < wanted:
            raise DeviceError(
                f"The disk has {free >> 20} MiB free; {offer.line} {offer.release} needs {-(-wanted >> 20)} MiB.",
                code="disk_full",
                hint="Free space on the state folder's disk, then offer it again.",
            )
        self._check_manifest(offer, files)

    def install(self, offer: LineOffer, files: Mapping[str, Path]) -> None:
        if not self.holds(offer):
            self._slots.write(offer.content, files)

    def live_test(self, offer: LineOffer, provider: str) -> SelfTest:
        slot = self._slots.active(offer.line)
        if slot is None or slot.content != offer.content:
            raise DeviceError(f"{offer.line} {offer.release} is not active; it cannot be tried.", code="slot_damaged")
        return self._engine.self_test(slot.folder, provider=provider)

    def self_test(self, offer: LineOffer) -> SelfTest:
        return self._engine.self_test(self._need_installed(offer).folder)

    def wishes(self, offer: LineOffer) -> ProbeWishes:
        slot = self._slots.active(offer.line)
        if slot is None or slot.content != offer.content:
            return ProbeWishes()
        head = self._read_manifest(slot.folder / MANIFEST)
        probe = head.probe or _Probe()
        budget = head.budget.get(self._device_type) or head.budget.get(ANY_DEVICE_TYPE) or _Budget()
        return ProbeWishes(
            min_inferences=probe.min_inferences or 0,
            min_seconds=probe.min_seconds or 0.0,
            p99_ratio=probe.latency_ratio,
            max_top_share=probe.max_top_share,
            p99_budget_ms=budget.latency_p99_ms,
            rss_budget_mb=budget.rss_mb,
            backends=head.backends,
        )

    # --- running ---

    def is_active(self, offer: LineOffer) -> bool:
        active = self._slots.active(offer.line)
        return active is not None and active.content == offer.content

    def activate(self, offer: LineOffer) -> Activation:
        active = self._slots.active(offer.line)
        slot = active if active is not None and active.content == offer.content else self._need_installed(offer)
        activation = self._run(slot)
        if activation.ok:
            # the engine first: a model that does not load moves nothing, and a cut in between leaves the old pointer and the old model
            self._slots.activate(offer.line, slot.name)
        return activation

    def figures(self, line: LineName) -> Figures | None:
        figures = self._engine.figures(line)
        return None if figures is None else replace(figures, temperature_c=self._temperature_c())

    def commit(self, offer: LineOffer) -> None:
        slot = self._slots.active(offer.line)
        if slot is None or slot.content != offer.content:
            raise DeviceError(f"{offer.line} {offer.release} is not active; it cannot be committed.", code="slot_damaged")
        activation = self._run(slot)  # after a cut the model before it may have been brought up
        if not activation.ok:
            raise DeviceError(f"{offer.line} {offer.release} does not run any more: {activation.text}", code=activation.code)
        self._slots.commit(offer.line)
        self._engine.commit(offer.line, rss_budget_mb=self.wishes(offer).rss_budget_mb)

    def keep(self, offer: LineOffer) -> bool:
        slot = self._slots.active(offer.line)
        if slot is None or slot.content != offer.content or self._slots.scrub(offer.line, slot.name):
            return False
        self._slots.commit(offer.line)
        return True

    def roll_back(self, line: LineName, old_slot: str | None) -> None:
        if old_slot is None:
            self._slots.roll_back(line, None)
            self._stop(line)
            return
        name = SlotName(old_slot)
        self._slots.roll_back(line, name)
        slot = self._slots.get(line, name)
        activation = self._run(slot) if slot is not None else None
        if activation is None or not activation.ok:
            text = "it is damaged" if activation is None else activation.text
            raise DeviceError(f"Slot {name} of {line} does not run again: {text}", code="rollback_failed")
        self._engine.commit(line)

    def bring_up(self, line: LineName) -> Activation:
        """Run the committed slot after a start. One on trial is started by its update's step, where starts are counted."""
        slot = self._slots.committed(line)
        return Activation(ok=False, code="no_model", text="No release is committed.") if slot is None else self._run(slot)

    def rescue(self, line: LineName, *, first: str | None) -> bool:
        preferred = SlotName(first) if first is not None else self._slots.pointer(line).committed or SlotName.A
        for name in (preferred, preferred.other):
            slot = self._slots.get(line, name)
            if slot is None or self._slots.scrub(line, name) or not self._engine.self_test(slot.folder).ok:
                continue
            if self._run(slot).ok:
                self._slots.roll_back(line, name)
                return True
        return False

    def discard(self, offer: LineOffer) -> None:
        if offer.line not in self._slots.lines():
            return
        pointer, name = self._slots.pointer(offer.line), self._slots.inactive_name(offer.line)
        if pointer.trial or name in (pointer.committed, pointer.previous):
            return
        slot = self._slots.get(offer.line, name)
        is_empty = slot is None and not self._disk.sizes(self._slots.folder(offer.line, name))
        if not is_empty and (slot is None or slot.content == offer.content):
            self._slots.discard_inactive(offer.line)

    def _run(self, slot: Slot) -> Activation:
        line = slot.content.line
        if self._running.get(line) is slot.name and self._engine.figures(line) is not None:
            return Activation(ok=True, code="ok", text="already runs")
        self._running.pop(line, None)
        activation = self._engine.activate(line, slot.folder)
        if activation.ok:
            self._running[line] = slot.name
        return activation

    def _stop(self, line: LineName) -> None:
        self._running.pop(line, None)
        self._engine.deactivate(line)

    def _installed(self, offer: LineOffer) -> Slot | None:
        slot = self._slots.get(offer.line, self._slots.inactive_name(offer.line))
        return slot if slot is not None and slot.content == offer.content else None

    def _need_installed(self, offer: LineOffer) -> Slot:
        slot = self._installed(offer)
        if slot is None:
            raise DeviceError(f"{offer.line} {offer.release} is not in the inactive slot.", code="slot_damaged")
        return slot

    # --- the manifest ---

    def _check_manifest(self, offer: LineOffer, files: Mapping[str, Path]) -> None:
        head = self._read_manifest(files[MANIFEST]) if MANIFEST in files else None
        if head is None:
            raise TrustError(f"{offer.line} {offer.release} has no {MANIFEST}.", code="manifest_invalid")
        if (head.line, head.release, head.counter) != (offer.line, offer.release, offer.counter):
            raise TrustError(
                f"The manifest says {head.line} {head.release}, counter {head.counter}; "
                f"the signed metadata {offer.line} {offer.release}, counter {offer.counter}.",
                code="manifest_mismatch",
            )
        offered = {file.name: (file.sha256, file.length) for file in offer.files}
        for name, file in head.files.items():
            if offered.get(name) != (file.sha256, file.length):
                raise TrustError(f"The manifest binds {name} to {file.sha256}; the signed metadata does not.", code="manifest_mismatch")

    def _read_manifest(self, path: Path) -> _ManifestHead:
        data = b""
        for chunk in self._disk.read_chunks(path):
            data += chunk
            if len(data) > MAX_MANIFEST_BYTES:
                raise TrustError(f"The manifest is longer than {MAX_MANIFEST_BYTES} bytes.", code="manifest_invalid")
        try:
            return _ManifestHead.model_validate(json.loads(data))
        except (ValueError, RecursionError, ValidationError) as error:
            raise TrustError(f"The manifest cannot be read: {str(error).splitlines()[0]}", code="manifest_invalid") from error
