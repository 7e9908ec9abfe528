"""The probe on a simulated device: each rule takes a release back that passed everything before, and says why."""

from dataclasses import replace

import pytest
from simulators.device import LINE, RULES, DeviceSimulator, make_release

OLD, NEW = make_release("1.0", 1), make_release("1.1", 2)


@pytest.fixture
def device() -> DeviceSimulator:
    device = DeviceSimulator(rules=replace(RULES, temperature_after_s=1.0, min_seconds=2.0))
    device.temperature_c = 50.0
    device.installed(OLD)
    return device


def update(device: DeviceSimulator, behavior: str, **manifest: object) -> tuple[str, str]:
    new = make_release("1.1", 2, behavior, manifest=dict(manifest))
    device.server.publish(new)
    device.assign(new.assignment())
    device.run()
    row = device.store.updates[LINE]
    assert row.text
    return row.state, row.reason


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [
        ("bad-live", "golden_mismatch"),
        ("sluggish", "throughput_worse"),
        ("hot", "temperature_worse"),
        ("falls-back", "backend_not_released"),
    ],
)
def test_a_release_that_does_not_hold_where_it_runs_is_rolled_back(device, behavior, reason):
    assert update(device, behavior, backends=["onnx:cpu"]) == ("rolled_back", reason)
    assert device.runs(OLD)
    assert [block.reason for block in device.machine.blocked()] == [reason]


def test_the_golden_vectors_run_again_where_the_release_runs_once_per_probe(device):
    before = device.engine.live_tests
    assert update(device, "", backends=["onnx"]) == ("succeeded", "")
    assert device.engine.live_tests == before + 1


def test_a_device_without_a_sensor_says_so_and_commits(device):
    device.temperature_c = None
    assert update(device, "hot") == ("succeeded", "")
    assert "no sensor" in device.store.updates[LINE].text


def test_a_device_that_is_too_hot_takes_the_release_back_however_hot_it_was(device):
    device.temperature_c = 84.0
    device.rules = replace(device.rules, temperature_rise_c=50.0)
    device.restart()
    assert update(device, "hot") == ("rolled_back", "temperature_limit")


def test_a_golden_run_that_never_answers_is_no_success(device):
    device.rules = replace(device.rules, max_seconds=5.0)
    assert update(device, "mute") == ("rolled_back", "probe_timeout")
