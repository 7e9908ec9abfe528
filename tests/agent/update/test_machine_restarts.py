"""What starts and cuts around an update must not lose: aborts, the model that runs, the figures that the new one is measured by."""

import pytest
from simulators.device import LINE, DeviceSimulator, make_release
from simulators.disk import Fault

OLD, NEW, SLOW = make_release("1.0", 1), make_release("1.1", 2), make_release("1.1", 2, "slow")


@pytest.fixture
def device() -> DeviceSimulator:
    device = DeviceSimulator()
    device.installed(OLD)
    device.server.publish(NEW, SLOW)
    return device


def test_an_update_withdrawn_before_its_first_step_is_not_installed(device):
    device.boot()
    device.machine.offer(NEW.assignment())
    assert device.store.updates[LINE].state == "idle"
    assert device.machine.abort(LINE, reason="withdrawn", text="An operator withdrew it.")
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == ("failed", "withdrawn")
    assert device.server.bytes_sent == sum(len(data) for data in OLD.files.values())


def test_cuts_before_the_first_step_never_use_an_update_up(device):
    cuts = 0

    def strike(where: str, effect: str) -> Fault | None:
        nonlocal cuts
        if (where, effect) != ("idle", "store: save downloading") or cuts == 60:
            return None
        cuts += 1
        return Fault.CUT_BEFORE

    device.assign(NEW.assignment())
    device.faults.rule = strike
    device.run()
    assert cuts == 60
    assert device.store.updates[LINE].state == "succeeded"


def test_a_model_that_did_not_come_up_at_the_start_is_tried_again_while_a_download_is_held(device):
    device.faults.rule = lambda _where, effect: Fault.ERROR_BEFORE if effect == "engine: activate a" else None
    device.server.refusals = [(503, {})] * 1000
    device.restart()
    device.machine.offer(NEW.assignment())
    assert device.engine.model_of(LINE) is None
    device.faults.rule = lambda _where, _effect: None
    for _ in range(200):
        device.clock.advance(device.machine.run_pending())
        if device.runs(OLD):
            break
    assert device.runs(OLD)
    assert device.store.updates[LINE].state == "downloading"
    assert device.machine.problems() == {}


def test_a_store_without_room_at_the_start_keeps_no_model_from_running(device):
    device.faults.rule = lambda _where, effect: Fault.ERROR_BEFORE if effect.startswith("store: ") else None
    device.restart()
    assert device.runs(OLD)
    assert device.machine.problems() == {}


@pytest.mark.parametrize("state", ["waiting", "activating"])
def test_a_cut_right_before_the_activation_does_not_make_the_probe_blind(device, state):
    """After the start the old model has no figures yet; without them a slow release would pass as a first install does."""
    has_cut = False

    def strike(where: str, effect: str) -> Fault | None:
        nonlocal has_cut
        if has_cut or where != state or not effect.startswith("store: save"):
            return None
        has_cut = True
        return Fault.CUT_AFTER

    device.assign(SLOW.assignment())
    device.faults.rule = strike
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == ("rolled_back", "latency_worse")
    assert device.runs(OLD)


def test_an_old_model_that_shows_no_figures_delays_an_activation_and_does_not_prevent_it(device):
    device = DeviceSimulator()
    device.installed(silent := make_release("1.0", 1))
    device.server.publish(NEW)
    device.boot()
    device.engine._models[LINE] = b"silent"  # no frames come while the old one runs
    assert device.runs(silent) is False
    device.machine.offer(NEW.assignment())
    before = device.clock.monotonic()
    while wait_s := device.machine.run_pending():
        if not device.open_lines():
            break
        device.clock.advance(wait_s)
    assert device.store.updates[LINE].state == "succeeded"
    assert 60 <= device.clock.monotonic() - before < 90
