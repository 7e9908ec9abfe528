"""A device that comes to a group later gets what the group runs, once, on the lines that its pipelines use, and nothing beyond phases."""

import pytest
from registries import ANNA, T0

from fleet import audit, loop
from fleet.campaigns.model import Phase
from fleet.devices import groups, twins
from fleet.devices import service as devices
from fleet.registry import store as release_store
from protocol.ids import DeviceId, GroupName, ReleaseVersion

YARD = GroupName("yard")


def use(fleet, name, line="digits"):
    pipeline = {"name": "front", "line": line, "source": {"kind": "folder", "path": "/pictures", "loop": True, "fps": 5}}
    options = {"tenant": T0, "device": DeviceId(name), "by": ANNA, "now": fleet.now, "reason": "test"}
    twins.set_pipelines(fleet.registry.database, specs=[twins.PipelineSpec.model_validate(pipeline)], **options)


def joins(fleet):
    with fleet.registry.database.reading() as tx:
        return [entry.detail["devices"] for entry in audit.list_entries(tx, T0, limit=100) if entry.action == "campaign.joined"]


def enroll(fleet, name, line="digits", **options):
    fleet.enroll(name, **options)
    use(fleet, name, line)


def move(fleet, name, group):
    options = {"tenant": T0, "device": DeviceId(name), "by": ANNA, "now": fleet.now, "reason": "moved"}
    devices.move_device(fleet.registry.database, group=group, **options)
    fleet.tick()


@pytest.fixture
def succeeded(make_fleet):
    """A group whose only device runs 1.0."""
    fleet = make_fleet("cam-1")
    release = fleet.release("1.0")
    made = fleet.campaign()
    fleet.report("cam-1", release)
    fleet.tick()
    assert fleet.state(made) == "succeeded"
    return fleet, made, release


def test_a_device_that_enrolls_into_a_group_gets_its_newest_succeeded_release_once(succeeded):
    fleet, made, release = succeeded
    enroll(fleet, "cam-2")
    assert fleet.tick() == 1
    first = fleet.assigned("cam-2")
    assert (first.version, first.campaign) == ("1.0", made.campaign)
    assert (fleet.tick(), fleet.assigned("cam-2")) == (0, first)
    assert joins(fleet) == [["cam-2"]]
    fleet.report("cam-2", release)
    assert fleet.states(made)["cam-2"] == "updated"


def test_who_comes_after_the_floor_was_raised_above_what_the_group_runs_gets_nothing_that_it_would_refuse(succeeded):
    fleet, made, _ = succeeded
    with fleet.registry.database.transaction() as tx:
        release_store.raise_floor(tx, T0, made.line, 2)
    enroll(fleet, "cam-2")
    assert fleet.tick() == 0
    assert set(fleet.states(made)) == {"cam-1"}


def test_a_device_that_does_not_use_the_line_or_has_another_type_gets_nothing(succeeded):
    fleet, _, _ = succeeded
    groups.create_device_type(fleet.registry.database, tenant=T0, name="gateway", by=ANNA, now=fleet.now)
    fleet.enroll("cam-bare")
    enroll(fleet, "cam-other", line="faces")
    enroll(fleet, "gate-1", device_type="gateway")
    assert fleet.tick() == 0
    assert joins(fleet) == []
    use(fleet, "cam-other")
    fleet.tick()
    assert joins(fleet) == [["cam-other"]]


def test_who_comes_while_a_campaign_runs_waits_for_its_last_phase(make_fleet):
    fleet = make_fleet(*(f"cam-{number}" for number in range(4)))
    release = fleet.release("1.0")
    made = fleet.campaign(phases=(Phase(until_percent=25), Phase()))
    enroll(fleet, "cam-late")
    fleet.tick()
    assert fleet.assigned("cam-late") is None
    assert fleet.states(made)["cam-late"] == "waiting"
    (canary,) = [name for name, state in fleet.states(made).items() if state == "assigned"]
    fleet.report(DeviceId(canary), release)
    fleet.tick()
    assert fleet.assigned("cam-late").version == "1.0"
    assert joins(fleet) == [["cam-late"]]


def test_a_failed_or_aborted_campaign_is_not_joined_but_the_one_before_it(succeeded):
    fleet, made, _ = succeeded
    fleet.registry.clock.advance(1)
    fleet.release("1.1")
    bad = fleet.campaign("1.1")
    loop.abort_campaign(fleet.registry, tenant=T0, campaign=bad.campaign, by=ANNA, reason="no")
    enroll(fleet, "cam-2")
    fleet.tick()
    assert (fleet.assigned("cam-2").version, fleet.assigned("cam-2").campaign) == ("1.0", made.campaign)


def test_a_device_that_is_moved_gets_what_its_new_group_runs_and_back(succeeded):
    fleet, first, _ = succeeded
    groups.create_group(fleet.registry.database, tenant=T0, name=YARD, by=ANNA, now=fleet.now, site=None)
    enroll(fleet, "yard-1", group=YARD)
    second = fleet.release("1.1")
    made = loop.create_campaign(
        fleet.registry, tenant=T0, by=ANNA, line=first.line, version=ReleaseVersion("1.1"), group=YARD, min_inferences=100
    )
    fleet.tick()
    fleet.report("yard-1", second)
    fleet.tick()
    assert fleet.state(made) == "succeeded"
    use(fleet, "cam-1")
    move(fleet, "cam-1", YARD)
    assert fleet.assigned("cam-1").version == "1.1"
    move(fleet, "cam-1", GroupName("cameras"))
    assert (fleet.assigned("cam-1").version, fleet.assigned("cam-1").campaign) == ("1.0", first.campaign)
    assert fleet.tick() == 0
    assert joins(fleet) == [["cam-1"], ["cam-1"]]


def test_pipelines_of_the_group_count_as_the_devices_own(succeeded):
    fleet, _, _ = succeeded
    fleet.enroll("cam-2")
    pipeline = {"name": "front", "line": "digits", "source": {"kind": "folder", "path": "/pictures", "loop": True, "fps": 5}}
    options = {"tenant": T0, "by": ANNA, "now": fleet.now, "reason": "test"}
    groups.change_group(fleet.registry.database, name=GroupName("cameras"), config=twins.ConfigPatch(pipelines=[pipeline]), **options)
    twins.refresh_group(fleet.registry.database, tenant=T0, group=GroupName("cameras"), now=fleet.now)
    fleet.tick()
    assert fleet.assigned("cam-2").version == "1.0"
