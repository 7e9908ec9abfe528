"""What a device says of a release after its update ended, until a campaign has seen enough of it (UPDATES 1.8)."""

from simulators.device import LINE, DeviceSimulator, make_release

OLD, NEW, BAD = make_release("1.0", 1), make_release("1.1", 2), make_release("1.2", 3, "slow")


def healthy(device: DeviceSimulator) -> int:
    facts = device.machine.report_facts(LINE)
    return 0 if facts is None else facts.healthy_inferences


def look(device: DeviceSimulator, times: int = 1) -> None:
    for _ in range(times):
        device.clock.advance(device.machine.run_pending())


def device_with(*releases) -> DeviceSimulator:
    device = DeviceSimulator()
    device.installed(OLD)
    device.server.publish(*releases)
    return device


def test_a_release_that_already_runs_is_counted_by_what_it_does_now():
    device = device_with(BAD)
    device.assign(BAD.assignment(assignment="as-1"))
    device.run()
    assert device.store.updates[LINE].state == "rolled_back"
    device.machine.offer(OLD.assignment(assignment="as-2"))
    assert device.store.updates[LINE].state == "succeeded"
    device.changes.clear()
    look(device)
    assert healthy(device) > 0
    assert device.changes == [LINE], "nobody was told to report it"


def test_a_campaign_that_wants_more_than_the_probe_saw_gets_it_in_few_reports():
    device = device_with(NEW)
    device.assign(NEW.assignment())
    device.run()
    probed = healthy(device)
    device.changes.clear()
    look(device, times=500)
    assert healthy(device) > 16 * probed
    assert len(device.changes) <= 8


def test_what_a_restart_forgets_is_no_step_back():
    device = device_with(NEW)
    device.assign(NEW.assignment())
    device.run()
    look(device, times=50)
    before = healthy(device)
    device.restart()
    look(device)
    assert healthy(device) == before
    look(device, times=500)
    assert healthy(device) >= 2 * before


def test_a_release_without_frames_proves_nothing():
    silent = make_release("1.1", 2, "silent")
    device = device_with(silent)
    device.assign(silent.assignment())
    device.run()
    assert device.store.updates[LINE].state == "rolled_back"
    device.machine.offer(OLD.assignment(assignment="as-2"))
    device.engine.running.clear()
    look(device, times=5)
    assert healthy(device) == 0
