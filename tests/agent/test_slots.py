"""Two slots and one pointer: what is active is always whole, whatever was cut, damaged or refused."""

import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulators.device import LINE, Release, make_release
from simulators.disk import FakeDisk, Fault, PowerCut

from agent.slots import POINTER, POINTER_PREV, SLOT_DOCUMENT, LocalDisk, Pointer, SlotContent, SlotFile, SlotName, Slots, replace_file
from protocol.errors import DeviceError, InvalidError, TrustError
from protocol.ids import LineName

ROOT, INCOMING = Path("/state/slots"), Path("/incoming")
ONE, TWO, THREE = (make_release(f"1.{n}", n + 1) for n in range(3))


def content_of(release: Release) -> SlotContent:
    return release.offer().content


def sources_on(disk: FakeDisk, release: Release) -> dict[str, Path]:
    paths = {}
    for name, data in release.files.items():
        paths[name] = INCOMING / release.version / name
        disk.put(paths[name], data)
    return paths


def install(slots: Slots, disk: FakeDisk, release: Release) -> SlotName:
    return slots.write(content_of(release), sources_on(disk, release)).name


def run(slots: Slots, disk: FakeDisk, release: Release) -> SlotName:
    name = install(slots, disk, release)
    slots.activate(LINE, name)
    slots.commit(LINE)
    return name


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def slots(disk) -> Slots:
    return Slots(ROOT, disk=disk)


def test_an_empty_device_has_nothing_active(slots):
    assert slots.active(LINE) is None
    assert slots.committed(LINE) is None
    assert slots.lines() == ()
    assert slots.pointer(LINE) == Pointer()


def test_a_slot_that_was_written_is_not_active_before_it_is_activated(slots, disk):
    name = install(slots, disk, ONE)
    assert slots.get(LINE, name) is not None
    assert slots.active(LINE) is None


def test_releases_alternate_between_the_two_slots(slots, disk):
    assert [run(slots, disk, release) for release in (ONE, TWO, THREE)] == [SlotName.A, SlotName.B, SlotName.A]
    assert slots.active(LINE).content.release == "1.2"
    assert slots.pointer(LINE).previous is SlotName.B


def test_an_activated_slot_is_on_trial_until_it_is_committed(slots, disk):
    run(slots, disk, ONE)
    slots.activate(LINE, install(slots, disk, TWO))
    pointer = slots.pointer(LINE)
    assert (pointer.active, pointer.committed, pointer.previous, pointer.trial) == (SlotName.B, SlotName.A, SlotName.A, True)
    slots.commit(LINE)
    assert not slots.pointer(LINE).trial
    assert slots.committed(LINE).content.release == "1.1"


def test_activating_committing_and_rolling_back_twice_change_nothing(slots, disk):
    run(slots, disk, ONE)
    name = install(slots, disk, TWO)
    assert slots.activate(LINE, name) == slots.activate(LINE, name)
    assert slots.commit(LINE) == slots.commit(LINE)
    assert slots.roll_back(LINE, SlotName.A) == slots.roll_back(LINE, SlotName.A)


def test_a_rollback_leads_to_the_slot_named_even_after_a_commit(slots, disk):
    run(slots, disk, ONE)
    run(slots, disk, TWO)
    slots.roll_back(LINE, SlotName.A)
    assert slots.active(LINE).content.release == "1.0"
    assert slots.committed(LINE).content.release == "1.0"


def test_a_first_install_rolls_back_to_no_model(slots, disk):
    slots.activate(LINE, install(slots, disk, ONE))
    slots.roll_back(LINE, None)
    assert slots.active(LINE) is None


def test_the_active_and_the_committed_slot_are_never_written(slots, disk):
    run(slots, disk, ONE)
    slots.activate(LINE, install(slots, disk, TWO))
    with pytest.raises(RuntimeError, match="committed"):
        install(slots, disk, THREE)
    assert slots.get(LINE, SlotName.A).content.release == "1.0"
    assert slots.get(LINE, SlotName.B).content.release == "1.1"


def test_a_slot_about_to_be_overwritten_is_no_fallback_any_more(slots, disk):
    run(slots, disk, ONE)
    run(slots, disk, TWO)
    disk.faults.plan = {len(disk.faults.log) + 12: Fault.CUT_BEFORE}
    with pytest.raises(PowerCut):
        install(slots, disk, THREE)
    disk.lose_power()
    assert slots.pointer(LINE).previous is None


def test_a_damaged_pointer_falls_back_to_the_one_before(slots, disk):
    run(slots, disk, ONE)
    disk.damage(ROOT / LINE / POINTER)
    assert slots.active(LINE).content.release == "1.0"


def test_two_damaged_pointers_fall_back_to_the_slot_written_last(slots, disk):
    run(slots, disk, ONE)
    run(slots, disk, TWO)
    for name in (POINTER, POINTER_PREV):
        disk.damage(ROOT / LINE / name)
    assert slots.active(LINE).content.release == "1.1"
    assert not slots.pointer(LINE).trial


def test_a_pointer_to_a_slot_that_is_not_whole_is_not_believed(slots, disk):
    run(slots, disk, ONE)
    run(slots, disk, TWO)
    disk.damage(ROOT / LINE / "b" / SLOT_DOCUMENT)
    assert slots.active(LINE).content.release == "1.0"


@pytest.mark.parametrize("size", [0, 7, 200])
def test_a_truncated_or_garbled_pointer_is_damage_not_a_crash(slots, disk, size):
    run(slots, disk, ONE)
    disk.put(ROOT / LINE / POINTER, os.urandom(size))
    assert slots.active(LINE).content.release == "1.0"


def test_an_endless_pointer_is_damage(slots, disk):
    run(slots, disk, ONE)
    disk.put(ROOT / LINE / POINTER, b"[" * 1_000_000)
    assert slots.active(LINE).content.release == "1.0"


def test_scrub_names_the_file_whose_bytes_changed(slots, disk):
    name = run(slots, disk, ONE)
    assert slots.scrub(LINE, name) == []
    disk.damage(ROOT / LINE / "a" / "model.onnx")
    assert slots.scrub(LINE, name) == ["model.onnx"]
    assert slots.scrub(LINE, SlotName.B) == [SLOT_DOCUMENT]


def test_bytes_other_than_the_ones_named_leave_the_slot_empty(slots, disk):
    sources = sources_on(disk, ONE)
    disk.damage(sources["model.onnx"])
    with pytest.raises(TrustError, match=r"model\.onnx has .* wanted") as caught:
        slots.write(content_of(ONE), sources)
    assert caught.value.code == "hash_mismatch"
    assert disk.sizes(slots.folder(LINE, SlotName.A)) == {}


def test_a_full_disk_says_so_and_leaves_nothing_half_written(slots, disk):
    run(slots, disk, ONE)
    sources = sources_on(disk, TWO)
    disk.capacity = sum(disk.sizes(path.parent)[path.name] for path in disk.paths()) + 600
    with pytest.raises(DeviceError, match="disk is full") as caught:
        slots.write(content_of(TWO), sources)
    assert caught.value.code == "disk_full"
    assert caught.value.hint
    assert disk.sizes(slots.folder(LINE, SlotName.B)) == {}
    assert slots.active(LINE).content.release == "1.0"


def test_a_file_that_does_not_belong_into_a_slot_is_refused(slots, disk):
    disk.put(INCOMING / "x", b"#!/bin/sh")
    file = SlotFile("run.sh", content_of(ONE).files[0].sha256, 9)
    with pytest.raises(TrustError, match="a slot holds"):
        slots.write(SlotContent(LINE, ONE.version, 1, "onnx", (file,)), {"run.sh": INCOMING / "x"})


def test_a_slot_that_is_not_complete_cannot_become_active(slots):
    with pytest.raises(DeviceError, match="not complete"):
        slots.activate(LINE, SlotName.A)
    with pytest.raises(DeviceError, match="no way back"):
        slots.roll_back(LINE, SlotName.A)


def test_a_line_name_that_would_leave_the_folder_is_refused(slots):
    with pytest.raises(InvalidError, match="Line"):
        slots.folder(LineName("../x"), SlotName.A)


def test_a_file_that_any_slot_has_is_found_by_its_digest(slots, disk):
    run(slots, disk, ONE)
    digest = content_of(ONE).model.sha256
    assert slots.find_digest(digest) == ROOT / LINE / "a" / "model.onnx"
    assert slots.find_digest(content_of(TWO).model.sha256) is None


def test_reports_name_every_whole_slot_with_the_digest_hashed_here(slots, disk):
    run(slots, disk, ONE)
    slots.activate(LINE, install(slots, disk, TWO))
    reports = {report.slot: report for report in slots.reports()}
    assert (reports["a"].active, reports["a"].committed, reports["a"].release) == (False, True, "1.0")
    assert (reports["b"].active, reports["b"].committed, reports["b"].sha256) == (True, False, content_of(TWO).model.sha256)


def test_lines_do_not_know_of_each_other(slots, disk):
    other = make_release("7", 7, line=LineName("shapes"))
    run(slots, disk, ONE)
    slots.write(content_of(other), sources_on(disk, other))
    slots.activate(other.line, SlotName.A)
    assert slots.active(LINE).content.release == "1.0"
    assert slots.pointer(other.line).trial


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 120), seed=st.integers(0, 10_000), kind=st.sampled_from([Fault.CUT_BEFORE, Fault.CUT_AFTER]))
def test_a_cut_anywhere_leaves_the_old_or_the_new_model_whole(at, seed, kind):
    disk = FakeDisk(chance=random.Random(seed))  # noqa: S311 - a test's dice
    slots = Slots(ROOT, disk=disk)
    run(slots, disk, ONE)
    run(slots, disk, TWO)
    begin = len(disk.faults.log)
    disk.faults.plan = {begin + at: kind}
    try:
        run(slots, disk, THREE)
        slots.roll_back(LINE, SlotName.A)
    except PowerCut:
        disk.lose_power()
    active = slots.active(LINE)
    assert active is not None
    assert active.content.release in ("1.1", "1.2")
    assert slots.scrub(LINE, active.name) == []
    committed = slots.committed(LINE)
    assert committed is not None
    assert slots.scrub(LINE, committed.name) == []


def test_on_a_real_disk_a_release_goes_in_and_comes_back(tmp_path):
    slots = Slots(tmp_path / "slots")
    for release in (ONE, TWO):
        sources = {name: tmp_path / f"{release.version}-{name}" for name in release.files}
        for name, data in release.files.items():
            sources[name].write_bytes(data)
        slots.activate(LINE, slots.write(content_of(release), sources).name)
        slots.commit(LINE)
    assert slots.active(LINE).model_path.read_bytes() == TWO.files["model.onnx"]
    assert Slots(tmp_path / "slots").pointer(LINE) == slots.pointer(LINE)
    assert LocalDisk().free_bytes(tmp_path / "not" / "there") > 0
    assert LocalDisk().sizes(tmp_path / "nowhere") == {}


def test_replacing_a_file_on_a_real_disk_leaves_no_temporary_one(tmp_path):
    for data in (b"one", b"two"):
        replace_file(LocalDisk(), tmp_path / "x", data)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"two"
    assert stat.S_ISREG((tmp_path / "x").stat().st_mode)
