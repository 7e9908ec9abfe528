"""Sites, groups and device types: changed by people, with a revision, an audit entry and a tenant of their own."""

from dataclasses import replace

import pytest

from fleet import audit, jobs
from fleet.devices import groups, service, twins
from fleet.devices.model import ConfigPatch, ConsentRule, Site
from protocol.errors import ConflictError, InvalidError, NotFoundError, StaleRevisionError
from protocol.ids import DeviceId, GroupName, SiteName

from .conftest import ANNA, NOW, T0, T1

VIENNA = Site(T0, SiteName("vienna"), "Europe/Vienna", ConsentRule.MINIMIZED, 2000, 5)


def _newest(world, tenant=T0):
    with world.database.reading() as tx:
        audit.verify(tx, tenant)
        return audit.list_entries(tx, tenant, limit=1)[0]


def test_a_new_tenant_starts_with_a_group_a_site_and_device_types_once(world):
    assert not groups.ensure_first(world.database, tenant=T0, now=NOW)
    assert [(group.name, count) for group, count in groups.list_groups(world.database, T0)] == [("default", 0)]
    assert [site.consent for site in groups.list_sites(world.database, T0)] == [ConsentRule.DENY]
    assert [one.name for one in groups.list_device_types(world.database, T0)] == ["linux-arm64", "linux-armv7", "linux-x86-64"]


def test_a_site_keeps_its_rules_and_counts_its_changes(world):
    groups.create_site(world.database, site=VIENNA, by=ANNA, now=NOW, reason="new hall")
    assert groups.get_site(world.database, T0, SiteName("vienna")) == VIENNA
    assert (_newest(world).action, _newest(world).reason) == ("site.created", "new hall")
    changed = groups.change_site(world.database, site=replace(VIENNA, max_updating=None), by=ANNA, now=NOW, expected_revision=1)
    assert (changed.revision, changed.max_updating) == (2, None)
    assert groups.get_site(world.database, T0, SiteName("vienna")) == changed
    with pytest.raises(StaleRevisionError, match="revision 2"):
        groups.change_site(world.database, site=VIENNA, by=ANNA, now=NOW, expected_revision=1)
    with pytest.raises(ConflictError, match="exists already"):
        groups.create_site(world.database, site=VIENNA, by=ANNA, now=NOW)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"time_zone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"bandwidth_kbit_s": 0}, "bandwidth_kbit_s = 0"),
        ({"max_updating": -1}, "max_updating = -1"),
        ({"name": "Big Hall"}, "not a valid name"),
    ],
)
def test_an_impossible_site_is_refused(world, changes, text):
    with pytest.raises(InvalidError, match=text):
        groups.create_site(world.database, site=replace(VIENNA, **changes), by=ANNA, now=NOW)


def test_a_group_is_made_changed_and_deleted_with_audit(world):
    made = groups.create_group(world.database, tenant=T0, name="yard", by=ANNA, now=NOW, description="outside")
    assert groups.get_group(world.database, T0, made.name) == made
    changed = groups.change_group(world.database, tenant=T0, name=made.name, description="far out", by=ANNA, now=NOW, expected_revision=1)
    assert (changed.revision, changed.description, changed.site) == (2, "far out", "default")
    with pytest.raises(StaleRevisionError):
        groups.change_group(world.database, tenant=T0, name=made.name, description="x", by=ANNA, now=NOW, expected_revision=1)
    world.invite(group=made.name)
    groups.delete_group(world.database, tenant=T0, name=made.name, by=ANNA, now=NOW, reason="sold")
    assert (_newest(world).action, _newest(world).reason) == ("group.deleted", "sold")
    with pytest.raises(NotFoundError):
        groups.get_group(world.database, T0, made.name)


def test_a_group_with_devices_is_not_deleted(world):
    world.add_device("cam-1")
    with pytest.raises(ConflictError, match="has 1 devices"):
        groups.delete_group(world.database, tenant=T0, name=groups.DEFAULT_GROUP, by=ANNA, now=NOW)
    assert groups.list_groups(world.database, T0)[0][1] == 1


def test_a_new_group_config_adds_one_job_that_changes_its_devices_twins(world):
    world.add_device("cam-1")
    world.add_device("cam-2")
    patch = ConfigPatch.model_validate({"telemetry": {"perf_s": 30}})
    for _ in range(2):
        groups.change_group(world.database, tenant=T0, name=groups.DEFAULT_GROUP, config=patch, by=ANNA, now=NOW)
    with world.database.reading() as tx:
        waiting = jobs.list_jobs(tx, T0, kind=twins.REFRESH_GROUP)
    assert [dict(job.payload) for job in waiting] == [{"tenant": "t0", "group": "default"}]
    assert twins.refresh_group(world.database, tenant=T0, group=groups.DEFAULT_GROUP, now=NOW) == 2
    assert twins.refresh_group(world.database, tenant=T0, group=groups.DEFAULT_GROUP, now=NOW) == 0
    assert twins.get_desired(world.database, T0, DeviceId("cam-2")).config == {"telemetry": {"perf_s": 30.0}}


def test_a_group_at_a_site_that_is_not_there_is_refused(world):
    with pytest.raises(NotFoundError, match="no site 'moon'"):
        groups.create_group(world.database, tenant=T0, name="yard", site=SiteName("moon"), by=ANNA, now=NOW)
    with pytest.raises(NotFoundError, match="no site 'moon'"):
        groups.change_group(world.database, tenant=T0, name=groups.DEFAULT_GROUP, site=SiteName("moon"), by=ANNA, now=NOW)


def test_a_description_has_a_limit(world):
    with pytest.raises(InvalidError, match="too long"):
        groups.create_group(world.database, tenant=T0, name="yard", description="x" * 2001, by=ANNA, now=NOW)


def test_a_device_type_is_added_once(world):
    groups.create_device_type(world.database, tenant=T0, name="jetson", by=ANNA, now=NOW)
    with pytest.raises(ConflictError, match="exists already"):
        groups.create_device_type(world.database, tenant=T0, name="jetson", by=ANNA, now=NOW)
    assert world.invite(device_type="jetson").device_type == "jetson"


def test_nothing_of_another_tenant_is_seen_or_changed(world):
    groups.create_group(world.database, tenant=T0, name="yard", by=ANNA, now=NOW)
    groups.create_site(world.database, site=VIENNA, by=ANNA, now=NOW)
    world.add_device("cam-1")
    with pytest.raises(NotFoundError):
        groups.get_group(world.database, T1, GroupName("yard"))
    with pytest.raises(NotFoundError):
        groups.change_group(world.database, tenant=T1, name=GroupName("yard"), description="x", by=ANNA, now=NOW)
    with pytest.raises(NotFoundError):
        groups.change_site(world.database, site=replace(VIENNA, tenant=T1), by=ANNA, now=NOW)
    with pytest.raises(NotFoundError):
        service.get_device(world.database, T1, DeviceId("cam-1"))
    with pytest.raises(NotFoundError):
        service.revoke_device(world.database, tenant=T1, device=DeviceId("cam-1"), by=ANNA, now=NOW)
    with pytest.raises(NotFoundError):
        twins.get_desired(world.database, T1, DeviceId("cam-1"))
    assert service.list_devices(world.database, T1) == []
    groups.create_group(world.database, tenant=T1, name="yard", by=ANNA, now=NOW)  # its name is free here
