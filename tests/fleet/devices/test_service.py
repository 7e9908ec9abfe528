"""What people do with devices: find, label, move, revoke."""

from typing import Any

import pytest

from fleet import audit
from fleet.devices import groups, service
from fleet.devices.model import ConsentRule, DeviceFilter, DeviceState, Site
from protocol.errors import ConflictError, InvalidError, NotFoundError, StaleRevisionError
from protocol.ids import DeviceId, GroupName, SiteName

from .conftest import ANNA, NOW, T0


@pytest.fixture
def fleet_of_four(world):
    groups.create_group(world.database, tenant=T0, name="yard", by=ANNA, now=NOW)
    for number in range(1, 5):
        world.add_device(f"cam-{number}", group=GroupName("yard" if number > 2 else "default"))
    return world


def _names(world, **wanted: Any):
    return [one.device for one in service.list_devices(world.database, T0, matching=DeviceFilter(**wanted))]


def test_lists_are_by_id_and_paged_after_an_id(fleet_of_four):
    first = service.list_devices(fleet_of_four.database, T0, limit=3)
    rest = service.list_devices(fleet_of_four.database, T0, after=first[-1].device, limit=3)
    assert [one.device for one in first + rest] == ["cam-1", "cam-2", "cam-3", "cam-4"]


def test_lists_are_filtered(fleet_of_four):
    world = fleet_of_four
    service.set_labels(world.database, tenant=T0, device=DeviceId("cam-2"), labels={"floor": "2", "a": "b"}, by=ANNA, now=NOW)
    service.revoke_device(world.database, tenant=T0, device=DeviceId("cam-4"), by=ANNA, now=NOW)
    assert _names(world, group="yard") == ["cam-3", "cam-4"]
    assert _names(world, state=DeviceState.REVOKED) == ["cam-4"]
    assert _names(world, labels={"floor": "2"}) == ["cam-2"]
    assert _names(world, labels={"floor": "3"}) == []
    assert _names(world, text="m-3") == ["cam-3"]
    assert _names(world, text="%") == []
    assert _names(world, device_type="linux-x86-64", site="default", group="default") == ["cam-1", "cam-2"]
    assert service.count_devices(world.database, T0, DeviceFilter(group=GroupName("yard"))) == 2
    assert dict(groups.list_groups(world.database, T0)[1:])[groups.get_group(world.database, T0, GroupName("yard"))] == 1


def test_labels_change_with_revision_and_audit(fleet_of_four):
    database, cam = fleet_of_four.database, DeviceId("cam-1")
    changed = service.set_labels(database, tenant=T0, device=cam, labels={"floor": "2"}, by=ANNA, now=NOW, expected_revision=1, reason="r")
    assert (dict(changed.labels), changed.revision) == ({"floor": "2"}, 2)
    assert service.get_device(database, T0, cam) == changed
    with pytest.raises(StaleRevisionError, match="revision 2"):
        service.set_labels(database, tenant=T0, device=cam, labels={}, by=ANNA, now=NOW, expected_revision=1)
    with database.reading() as tx:
        newest = audit.list_entries(tx, T0, limit=1, subject="device/cam-1")[0]
    assert (newest.action, newest.reason, newest.detail) == ("device.labels-changed", "r", {"labels": {"floor": "2"}})


def test_a_device_moves_to_groups_and_sites_that_exist(fleet_of_four):
    database, cam = fleet_of_four.database, DeviceId("cam-1")
    groups.create_site(database, site=Site(T0, SiteName("hall"), "UTC", ConsentRule.DENY, None, None), by=ANNA, now=NOW)
    moved = service.move_device(database, tenant=T0, device=cam, group=GroupName("yard"), site=SiteName("hall"), by=ANNA, now=NOW)
    assert (moved.group, moved.site) == ("yard", "hall")
    for changes in ({"group": GroupName("moon")}, {"site": SiteName("moon")}):
        with pytest.raises(NotFoundError, match="moon"):
            service.move_device(database, tenant=T0, device=cam, by=ANNA, now=NOW, **changes)
    with pytest.raises(InvalidError, match="Neither"):
        service.move_device(database, tenant=T0, device=cam, by=ANNA, now=NOW)


def test_a_device_is_revoked_once(fleet_of_four):
    database, cam = fleet_of_four.database, DeviceId("cam-1")
    service.revoke_device(database, tenant=T0, device=cam, by=ANNA, now=NOW)
    with pytest.raises(ConflictError, match="revoked already"):
        service.revoke_device(database, tenant=T0, device=cam, by=ANNA, now=NOW)


def test_a_ghost_is_not_found(world):
    for ask in (service.get_device, service.get_detail):
        with pytest.raises(NotFoundError, match="no device 'ghost'"):
            ask(world.database, T0, DeviceId("ghost"))
