"""An update by delta, cut and failing before and after each of its effects: the same end, the right bytes, never the whole model."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.deltas import digest_of, make_delta, offered, with_deltas
from simulators.device import DOWNLOADS_DIR, LINE, DeviceSimulator, make_release
from simulators.disk import Fault

from agent.config import UpdateConfig
from agent.update.assignment import Assignment, LineOffer
from agent.update.policy import Consents, UpdatePolicy

OLD, NEW = make_release("1.0", 1, padding=3000), make_release("1.1", 2, padding=3000)
OLD_MODEL, NEW_MODEL = OLD.files["model.onnx"], NEW.files["model.onnx"]
GOOD, FULL = make_delta(OLD_MODEL, NEW_MODEL), make_delta(None, NEW_MODEL)
BAD = make_delta(OLD_MODEL, NEW_MODEL, payload=b"nonsense")
CUTS = (Fault.CUT_BEFORE, Fault.CUT_AFTER)
ERRORS = (Fault.ERROR_BEFORE, Fault.ERROR_AFTER)


def prepare(delta: bytes = GOOD, *, is_metered: bool = False, seed: int = 0) -> DeviceSimulator:
    device = DeviceSimulator(seed=seed)
    device.installed(OLD)
    device.policy = UpdatePolicy(UpdateConfig(metered=is_metered), Consents(device.store))
    device.server.publish(NEW)
    for data in (delta, FULL):
        device.server.blobs[digest_of(data).removeprefix("sha256:")] = data
    device.server.requests.clear()
    offer = with_deltas(NEW.offer(), offered(delta), offered(FULL))
    device.assign(assignment_of(offer))
    return device


def assignment_of(offer: LineOffer) -> Assignment:
    return Assignment(offer.assignment, offer.attempt, 1, (offer,), {})


def asked_for(device: DeviceSimulator, data: bytes) -> int:
    return sum(path.endswith(digest_of(data).removeprefix("sha256:")) for path, _ in device.server.requests)


def check_sound(device: DeviceSimulator) -> str:
    """What holds at any end; returns the state."""
    update, pointer = device.store.updates[LINE], device.slots.pointer(LINE)
    assert not pointer.trial
    assert device.engine.ran <= {OLD_MODEL, NEW_MODEL}, "a stranger's bytes ran"
    active = device.slots.active(LINE)
    assert active is not None
    assert device.slots.scrub(LINE, active.name) == []
    assert device.runs(NEW if update.state == "succeeded" else OLD), update
    return update.state


def effects_of(delta: bytes, *, is_metered: bool = False) -> list[int]:
    """Numbers of the effects up to the installed slot; what follows is the same for every update."""
    device = prepare(delta, is_metered=is_metered)
    begin = len(device.faults.log)
    drive(device)
    log = device.faults.log[begin:]
    assert is_metered or check_sound(device) == "succeeded"
    return [number for number, line in enumerate(log) if line.split(":")[0] in {"idle", "downloading", "verifying", "installing", "failed"}]


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.parametrize("name", ["a good delta", "a bad delta"])
def test_a_cut_at_any_effect_of_an_update_by_delta_changes_nothing_about_its_end(name, fault):
    delta = GOOD if name == "a good delta" else BAD
    struck: Counter[str] = Counter()
    for number in effects_of(delta):
        device = prepare(delta, seed=number)
        device.faults.plan = {len(device.faults.log) + number: fault}
        device.run()
        struck.update(what.split(" ")[0] for _, what, _ in device.faults.struck)
        where = f"{fault} effect {number}: {device.faults.struck}"
        assert check_sound(device) == "succeeded", where
        assert device.disk.sizes(DOWNLOADS_DIR) == {}, where
        assert asked_for(device, NEW_MODEL) == 0, where
        if delta is GOOD:
            assert asked_for(device, FULL) == 0, where
        else:
            assert device.machine.report_facts(LINE).failed_deltas == (digest_of(BAD),), where
            assert len({step.update_id for step in device.store.steps}) == 2, where
    assert struck["child:"], "no cut at the decoder"


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_at_any_effect_of_an_update_by_delta_ends_legally_with_a_model_that_infers(fault):
    ends: Counter[str] = Counter()
    for number in effects_of(GOOD):
        device = prepare(seed=number)
        device.faults.plan = {len(device.faults.log) + number: fault}
        device.run()
        device.restart()
        device.run()
        ends[check_sound(device)] += 1
        update = device.store.updates[LINE]
        assert update.state == "succeeded" or (update.reason and update.text), device.faults.struck
    assert set(ends) <= {"succeeded", "failed", "rolled_back"}


def test_a_hold_on_a_metered_link_after_a_bad_delta_survives_a_cut_at_any_effect():
    for number in effects_of(BAD, is_metered=True):
        device = prepare(BAD, is_metered=True, seed=number)
        device.faults.plan = {len(device.faults.log) + number: Fault.CUT_AFTER}
        drive(device)
        state = device.machine.state_of(LINE)
        where = f"effect {number}: {device.faults.struck}"
        assert (state.state, state.reason) == ("downloading", "full_download_refused"), where
        assert asked_for(device, FULL) + asked_for(device, NEW_MODEL) == 0, where
        assert device.machine.report_facts(LINE).failed_deltas == (digest_of(BAD),), where
        device.policy.replace(UpdateConfig(metered=False))
        device.run()
        assert check_sound(device) == "succeeded", where


def drive(device: DeviceSimulator) -> None:
    """Run until it ends or can only hold, through cuts."""
    with suppress(AssertionError):  # "did not end": it holds
        device.run(rounds=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    delta=st.sampled_from([GOOD, BAD]),
    seed=st.integers(0, 10_000),
    plan=st.dictionaries(st.integers(0, 220), st.sampled_from(list(Fault)), min_size=1, max_size=6),
)
def test_no_mix_of_cuts_and_errors_lets_a_stranger_run(delta, seed, plan):
    device = prepare(delta, seed=seed)
    begin = len(device.faults.log)
    device.faults.plan = {begin + at: fault for at, fault in plan.items()}
    device.run()
    device.faults.plan = {}
    device.restart()
    device.run()
    assert device.engine.ran <= {OLD_MODEL, NEW_MODEL}
    assert not device.slots.pointer(LINE).trial
    active = device.slots.active(LINE)
    assert active is None or device.slots.scrub(LINE, active.name) == []


def test_a_decoder_that_takes_the_device_down_each_time_is_given_up():
    device = prepare()
    device.faults.rule = lambda where, what: Fault.CUT_AFTER if (where, what) == ("installing", "child: start") else None
    device.run()
    update = device.store.updates[LINE]
    assert (update.state, update.reason) == ("failed", "exhausted")
    assert device.runs(OLD)


def test_a_slot_without_room_for_what_the_delta_makes_fails_before_anything_is_written():
    device = prepare()
    used = sum(device.disk.sizes(path.parent)[path.name] for path in device.disk.paths())
    device.disk.capacity = used + sum(map(len, NEW.files.values())) + len(NEW_MODEL) + 900
    device.run()
    update = device.store.updates[LINE]
    assert (update.state, update.reason) == ("failed", "disk_full")
    assert not any("child: start" in line for line in device.faults.log)
    device.disk.capacity += 2000
    device.assign(replace(device.pending[0] if device.pending else assignment_of(with_deltas(NEW.offer(attempt=2), offered(GOOD)))))
    device.run()
    assert check_sound(device) == "succeeded"
