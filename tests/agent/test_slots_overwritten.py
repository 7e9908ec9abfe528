"""A slot that is written over, cut at any effect: it never claims bytes that it does not hold, and no pointer leads to it."""

import random
from pathlib import Path

import pytest
from simulators.device import LINE, make_release
from simulators.disk import FakeDisk, Fault, PowerCut

from agent.slots import POINTER, Slots

ROOT, DOWNLOADS = Path("/state/slots"), Path("/state/downloads")
#: Files of the same name are equally long in all of them: only their bytes tell them apart.
RELEASES = [make_release(version, counter) for version, counter in (("0.9", 1), ("1.0", 2), ("1.1", 3))]


def write(slots: Slots, disk: FakeDisk, number: int) -> None:
    release = RELEASES[number]
    sources = {name: DOWNLOADS / f"{release.version}.{name}" for name in release.files}
    for name, path in sources.items():
        disk.put(path, release.files[name])
    slots.write(release.offer().content, sources)


def device(seed: int, *, is_unordered: bool) -> tuple[FakeDisk, Slots]:
    """0.9 lies in a, 1.0 runs from b, committed."""
    disk = FakeDisk(chance=random.Random(seed))  # noqa: S311 - a test's dice
    disk.is_unordered = is_unordered
    slots = Slots(ROOT, disk=disk)
    for number in (0, 1):
        write(slots, disk, number)
        slots.activate(LINE, slots.inactive_name(LINE))
        slots.commit(LINE)
    return disk, slots


def effects() -> int:
    disk, slots = device(0, is_unordered=False)
    before = len(disk.faults.log)
    write(slots, disk, 2)
    return len(disk.faults.log) - before


@pytest.mark.parametrize("is_unordered", [False, True])
@pytest.mark.parametrize("is_pointer_damaged", [False, True])
def test_no_slot_claims_what_it_does_not_hold_and_none_is_named_that_is_not_whole(is_unordered, is_pointer_damaged):
    for number in range(effects()):
        for seed in range(4):
            disk, slots = device(seed, is_unordered=is_unordered)
            disk.faults.plan = {len(disk.faults.log) + number: Fault.CUT_AFTER if seed % 2 else Fault.CUT_BEFORE}
            with pytest.raises(PowerCut):
                write(slots, disk, 2)
            disk.lose_power()
            a, b = slots.inactive_name(LINE), slots.inactive_name(LINE).other
            assert slots.get(LINE, a) is None or slots.scrub(LINE, a) == [], f"cut at {number}: slot {a} claims what it does not hold"
            assert slots.scrub(LINE, b) == []
            if is_pointer_damaged:
                disk.damage(ROOT / LINE / POINTER)
            pointer = slots.pointer(LINE)
            named = {name for name in (pointer.active, pointer.committed, pointer.previous) if name is not None}
            assert {name: slots.get(LINE, name) is not None and slots.scrub(LINE, name) == [] for name in named} == dict.fromkeys(
                named, True
            )
