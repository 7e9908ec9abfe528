"""R5: nothing is signed while the clock is more than a day ahead of the time last seen right, until a person says that it is."""

from datetime import timedelta

import pytest
from registries import ANNA, T0, pass_days
from simulators.clock import START

from fleet import audit
from fleet.registry import service
from fleet.registry.clock_guard import ClockGuard
from fleet.registry.director import Order
from protocol.errors import TrustError, UnavailableError
from protocol.ids import DeviceId

CAM = DeviceId("cam-1")


def timestamp(registry):
    def source(_tx, device):
        return Order(T0, device, ()), True

    return service.director_file(registry, tenant=T0, device=CAM, name="timestamp.json", source=source)


def test_after_a_jump_the_director_signs_neither_orders_nor_time_until_the_clock_is_confirmed(registry):
    before = timestamp(registry)
    registry.clock.advance(days=30 * 365)
    for ask in (lambda: timestamp(registry), lambda: registry.director.signed_time(CAM, "n", registry.clock.now())):
        with pytest.raises(UnavailableError, match="mooring keys clock") as caught:
            ask()
        assert (caught.value.code, caught.value.retry_after_s) == ("clock-jumped", 600.0)
    registry.clock.advance(days=-30 * 365)
    assert timestamp(registry) == before, "set right, it goes on"
    registry.clock.advance(days=5)
    service.confirm_clock(registry, tenant=T0, by=ANNA, reason="the server was off")
    assert timestamp(registry) != before
    with registry.database.reading() as tx:
        entry = audit.list_entries(tx, T0)[0]
    assert (entry.action, entry.reason) == ("clock.confirmed", "the server was off")


def test_a_server_that_runs_is_never_stopped_however_seldom_it_signs(registry):
    before = timestamp(registry)
    pass_days(registry, 40)
    assert timestamp(registry) != before


def test_a_day_is_no_jump_and_a_second_more_is(tmp_path):
    guard = ClockGuard(tmp_path / "clock.json")
    guard.see(START)
    guard.see(START + timedelta(days=1))
    with pytest.raises(UnavailableError):
        guard.see(START + timedelta(days=2, seconds=1))
    assert not guard.is_believed(START + timedelta(days=2, seconds=1))
    assert ClockGuard(tmp_path / "clock.json").last_seen() == START + timedelta(days=1), "another process knows it too"


def test_a_clock_that_goes_back_lowers_nothing(tmp_path):
    guard = ClockGuard(tmp_path / "clock.json")
    guard.see(START)
    guard.see(START - timedelta(days=300))
    assert guard.last_seen() == START


def test_an_accelerated_clock_moves_on_by_days_between_two_looks(tmp_path):
    guard = ClockGuard(tmp_path / "clock.json", speed=86_400.0)
    guard.see(START)
    guard.see(START + timedelta(days=100))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"seen": "x"}', b'{"seen": 1e400}', b"[1]", bytes(201)])
def test_a_damaged_file_makes_no_clock_believed_until_somebody_says_so(tmp_path, content):
    path = tmp_path / "clock.json"
    path.write_bytes(content)
    guard = ClockGuard(path)
    with pytest.raises(UnavailableError, match="mooring keys clock"):
        guard.see(START)
    guard.confirm(START)
    guard.see(START)
    assert guard.last_seen() == START


def test_what_a_device_would_refuse_is_not_served(registry):
    """The director checks each order with what verifies it on a device, before anybody sees it."""
    order = registry.director.sign(Order(T0, CAM, ()), last_version=0, now=registry.clock.now())
    registry.director.check(order, now=registry.clock.now())
    with pytest.raises(TrustError, match="would refuse"):
        registry.director.check(order, now=registry.clock.now() + timedelta(days=8))
