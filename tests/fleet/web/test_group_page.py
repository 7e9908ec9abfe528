"""A group's page: its members, what they share and who says it, who went back, and what the next release would change."""

import pytest
from console_site import DEFAULT_TENANT, Browser, ConsoleSite

from fleet.audit import Actor, ActorKind
from fleet.configurations import service as configurations
from fleet.configurations.model import Change, DeviceEffect, Scope
from fleet.configurations.service import Progress
from fleet.devices.model import ConfigPatch, Group
from fleet.web.group_views import GroupFacts, effect_row, group_page, value_words
from fleet.web.views import DeviceRow
from protocol.configuration import Configuration
from protocol.ids import DeviceId, GroupName
from protocol.messages import ReturnedConfiguration

ANNA = Actor(ActorKind.PERSON, "anna")
YARD = GroupName("yard")


def facts(**changes) -> GroupFacts:
    document = Configuration(
        tenant="t0",
        group="yard",
        rev=3,
        fleet={"log_level": "info", "telemetry": {"perf_s": 10.0}},
        shared={"log_level": "debug"},
        devices={"cam-2": {"log_level": "error"}},
    )
    back = ReturnedConfiguration(group="yard", rev=3, attempt=0, reason="link_lost", text="The server was not reached.", at=1)
    states = {DeviceId("cam-1"): "committed", DeviceId("cam-2"): "returned"}
    rows = [DeviceRow(name, "sim", "yard", "", "online", "healthy", "", None) for name in states]
    progress = Progress(3, {"committed": 1, "trial": 0, "returned": 1}, {DeviceId("cam-2"): back}, states)
    made = {
        "group": Group(DEFAULT_TENANT, YARD, "Behind the house", None, ConfigPatch()),
        "progress": progress,
        "members": rows,
        "published": document,
        "is_changed": False,
        "effects": (),
    }
    return GroupFacts(**{**made, **changes})


def test_every_shared_value_is_told_with_who_says_it_and_a_devices_own_are_not_the_groups():
    page = group_page(facts())
    assert [(row.key, row.value, row.origin) for row in page.settings] == [
        ("log_level", "debug", "group"),
        ("telemetry.perf_s", "10.0", "fleet"),
    ]
    assert page.own == ("cam-2",)


def test_members_are_told_with_how_far_they_are_and_those_who_went_back_with_the_reason():
    page = group_page(facts())
    assert page.counts == (("committed", 1), ("returned", 1))
    assert [(one.device.device, one.state) for one in page.members] == [("cam-1", "committed"), ("cam-2", "returned")]
    assert [(one.device, one.reason) for one in page.returned] == [("cam-2", "link_lost")]


def test_a_group_for_which_nothing_was_published_shares_nothing():
    page = group_page(facts(published=None, progress=Progress(None, {"waiting": 2}, {}, {DeviceId("cam-1"): "waiting"})))
    assert (page.desired_rev, page.settings, [one.state for one in page.members]) == (None, (), ["", ""])


def test_what_a_release_would_change_is_told_for_devices_that_would_notice_and_not_without_end():
    changes = tuple(Change(f"pipelines.p{number:02}.max_fps", 5.0, None, "group") for number in range(25))
    effects = [
        DeviceEffect(DeviceId("cam-1"), True, changes, ("p00",), {}),
        DeviceEffect(DeviceId("cam-2"), True, (), (), {}),
        DeviceEffect(DeviceId("cam-3"), False, (), (), {}, ("gone",)),
    ]
    page = group_page(facts(is_changed=True, effects=effects))
    assert [(row.device, len(row.changes), row.more, row.unused) for row in page.effects] == [
        ("cam-1", 20, 5, ()),
        ("cam-3", 0, 0, ("gone",)),
    ]
    assert (page.effects[0].changes[0].before, page.effects[0].changes[0].after) == ("5.0", "")
    assert not page.is_untried
    assert group_page(facts(is_changed=True, effects=None)).is_untried


def test_values_are_written_as_in_settings_and_not_without_end():
    assert [value_words(value) for value in (None, "debug", True, 5.0, ["a", 1])] == ["", "debug", "true", "5.0", '["a", 1]']
    assert len(value_words("x" * 1000)) == 121
    assert effect_row(DeviceEffect(DeviceId("a"), True, (), (), {})).changes == ()


# --- the page ---


@pytest.fixture(scope="module")
def vera(console: ConsoleSite) -> Browser:
    """A viewer."""
    console.person("vera", "viewer")
    console.enroll("cam-1")
    return console.browser("vera")


def test_the_page_shows_members_and_what_the_next_release_would_change(console: ConsoleSite, vera: Browser):
    before = vera.get("/groups/default")
    assert before.status_code == 200
    assert 'href="/devices/cam-1"' in before.text
    assert "nothing was published for this group" in before.text
    assert "Nothing: the sections are as they are published." in before.text
    services = console.services
    configurations.set_section(
        services.database,
        tenant=DEFAULT_TENANT,
        scope=Scope.GROUP,
        name="default",
        settings={"log_level": "debug"},
        by=ANNA,
        now=services.clock.now(),
    )
    after = vera.get("/groups/default").text
    assert "log_level" in after
    assert "mooring config release --group default" in after


def test_device_pages_and_the_list_lead_to_the_group(vera: Browser):
    for path in ("/devices/cam-1", "/devices"):
        assert '<a href="/groups/default">default</a>' in vera.get(path).text


def test_a_group_that_is_not_there_is_a_page_and_who_is_not_logged_in_sees_none(console: ConsoleSite, vera: Browser):
    for name in ("nope", "a%20b", "%00"):
        assert vera.get(f"/groups/{name}").status_code in {404, 422}
    assert vera.get("/live/groups/nope").status_code == 404
    assert console.http.get("/groups/default").status_code == 303
