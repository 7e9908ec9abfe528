"""The algebra of inheritance, what the schema refuses, what an older device leaves out, and the file."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.configuration import (
    ALL_PIPELINES,
    MAX_DOCUMENT_BYTES,
    Configuration,
    checked,
    digest_of_configuration,
    effective,
    from_bytes,
    known_keys,
    leaves,
    merge,
    origin_of,
    overlay,
    resolve,
    salvage,
    to_bytes,
)
from protocol.errors import InvalidError

NAMES = st.sampled_from([ALL_PIPELINES, "front", "back"])
WINDOWS = st.lists(st.fixed_dictionaries({"from": st.sampled_from(["00:00", "22:00"]), "to": st.just("04:00")}), max_size=2)
LEVELS = st.sampled_from(["debug", "info", "warning", "error"])


def or_null(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


SECTIONS = some(
    log_level=or_null(LEVELS),
    telemetry=some(perf_s=or_null(st.integers(1, 3600)), sys_s=or_null(st.floats(1, 3600))),
    update=some(metered=or_null(st.booleans()), download_windows=or_null(WINDOWS), consent=or_null(st.sampled_from(["none", "site"]))),
    pipelines=st.dictionaries(
        NAMES,
        some(
            max_fps=or_null(st.floats(0, 1000)),
            keep=or_null(st.sampled_from(["ring", "all"])),
            motion=some(min_area=or_null(st.floats(0, 1)), hold_s=or_null(st.integers(0, 60))),
        ),
    ),
).map(lambda section: checked(section, what="test"))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from([*"ab", "telemetry", "pipelines", "perf_s", "front"]), below)
    ),
    max_leaves=10,
)


@given(SECTIONS, SECTIONS, SECTIONS)
def test_it_does_not_matter_which_sections_are_merged_first(fleet, group, device):
    assert merge(merge(fleet, group), device) == merge(fleet, merge(group, device))


@given(SECTIONS)
def test_merging_twice_or_with_nothing_changes_nothing(section):
    assert merge(section, section) == section
    assert merge({}, section) == section
    assert merge(section, {}) == section


@given(SECTIONS, SECTIONS)
def test_every_value_is_the_innermost_one_and_nothing_else(outer, inner):
    said = {**dict(leaves(outer)), **dict(leaves(inner))}
    assert dict(leaves(resolve(merge(outer, inner)))) == {key: value for key, value in said.items() if value is not None}


@given(SECTIONS, SECTIONS, SECTIONS)
def test_each_value_says_where_it_comes_from(fleet, group, device):
    found = effective(Configuration("t0", "g", 1, fleet, group, {"cam-1": device}), "cam-1")
    sections = {"fleet": dict(leaves(fleet)), "group": dict(leaves(group)), "device": dict(leaves(device))}
    assert found.ignored == {}
    assert found.origins.keys() == dict(leaves(found.settings)).keys()
    for key, origin in found.origins.items():
        assert sections[origin][key] == dict(leaves(found.settings))[key]
        inner = list(sections)[list(sections).index(origin) + 1 :]
        assert not any(key in sections[name] for name in inner)


def test_null_puts_the_own_value_back_and_a_deeper_section_may_say_it_again():
    document = Configuration("t0", "g", 1, {"log_level": "debug"}, {"log_level": None}, {"cam-2": {"log_level": "error"}})
    assert effective(document, "cam-1").settings == {}
    assert effective(document, "cam-2").settings == {"log_level": "error"}


def test_lists_replace():
    night, day = ([{"days": ["mon"], "from": start, "to": "04:00"}] for start in ("22:00", "23:00"))
    document = Configuration("t0", "g", 1, {"update": {"download_windows": night}}, {"update": {"download_windows": day}})
    assert effective(document, "cam-1").settings == {"update": {"download_windows": day}}


# --- laid over the device's own values ---

BASE = {
    "log_level": "info",
    "telemetry": {"perf_s": 10.0},
    "pipelines": {"front": {"max_fps": 0.0, "keep": "ring"}, "back": {"max_fps": 1.0, "keep": "all"}},
}


def test_what_is_for_all_pipelines_comes_before_what_names_one():
    found = overlay(BASE, {"pipelines": {"*": {"max_fps": 5.0}, "back": {"max_fps": 9.0}, "yard": {"max_fps": 1.0}}})
    assert found.values["pipelines"] == {"front": {"max_fps": 5.0, "keep": "ring"}, "back": {"max_fps": 9.0, "keep": "all"}}
    assert found.unused == ("yard",)


def test_null_for_one_pipeline_puts_its_own_value_back_also_where_all_pipelines_have_one():
    group = {"pipelines": {"*": {"max_fps": 5.0, "keep": "events", "motion": {"min_area": 0.2, "hold_s": 3.0}}}}
    device = {"pipelines": {"front": {"max_fps": None, "motion": {"hold_s": None}}, "back": {"max_fps": 9.0, "keep": None}}}
    motion = {"min_area": 0.1, "hold_s": 2.0}
    base = {"pipelines": {name: {"max_fps": 12.0, "keep": "ring", "motion": motion} for name in ("front", "back", "yard")}}
    found = effective(Configuration("t0", "g", 1, {}, group, {"cam-7": device}), "cam-7")
    assert overlay(base, found.settings).values["pipelines"] == {
        "front": {"max_fps": 12.0, "keep": "events", "motion": {"min_area": 0.2, "hold_s": 2.0}},
        "back": {"max_fps": 9.0, "keep": "ring", "motion": {"min_area": 0.2, "hold_s": 3.0}},
        "yard": {"max_fps": 5.0, "keep": "events", "motion": {"min_area": 0.2, "hold_s": 3.0}},
    }
    assert [origin_of(f"pipelines.{name}.max_fps", found.origins) for name in ("front", "back", "yard")] == ["device", "device", "group"]


def test_a_null_that_puts_nothing_aside_is_not_kept():
    document = Configuration(
        "t0", "g", 1, {}, {"pipelines": {"front": {"max_fps": 3.0}}}, {"cam-7": {"pipelines": {"front": {"max_fps": None}}}}
    )
    assert effective(document, "cam-7").settings == {}


def test_motion_merges_value_by_value_and_the_device_keeps_what_nobody_says():
    base = {"pipelines": {"front": {"motion": {"min_area": 0.1, "threshold": 20.0, "hold_s": 2.0}}}}
    wished = {"*": {"motion": {"threshold": 40.0, "hold_s": 1.0}}, "front": {"motion": {"hold_s": 5.0}}}
    found = overlay(base, {"pipelines": wished})
    assert found.values["pipelines"] == {"front": {"motion": {"min_area": 0.1, "threshold": 40.0, "hold_s": 5.0}}}


def test_a_value_that_the_device_does_not_have_is_left_out():
    assert overlay(BASE, {"telemetry": {"sys_s": 5.0}, "update": {"metered": True}}).values == BASE


@given(SECTIONS)
def test_laying_over_twice_changes_nothing_more(section):
    once = overlay(BASE, resolve(section)).values
    assert overlay(once, resolve(section)).values == once
    assert overlay(once, {}).values == once


# --- the schema ---


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"server": {"url": "https://evil"}}, "server: unknown key"),
        ({"secrets": {}}, "secrets: unknown key"),
        ({"device_type": "x"}, "device_type: unknown key"),
        ({"pipelines": {"front": {"source": {"kind": "camera"}}}}, r"pipelines\.front\.source: unknown key; wanted one of max_fps"),
        ({"telemetry": None}, "telemetry: "),
        ({"pipelines": {"front": None}}, r"pipelines\.front: "),
        ({"pipelines": {"A B": {}}}, r"pipelines\.A B: "),
        ({"telemetry": {"perf_s": 0}}, r"telemetry\.perf_s: .*seen: '0'"),
        ({"telemetry": {"perf_s": float("nan")}}, r"telemetry\.perf_s: "),
        ({"update": {"time_zone": "Mars/Olympus"}}, r"update\.time_zone: .*Europe/Berlin"),
        ({"update": {"download_windows": [{"from": "25:00", "to": "04:00"}]}}, r"update\.download_windows\.0\.from: "),
        ([], "fleet: "),
    ],
)
def test_what_may_not_be_set_is_refused_with_its_place(section, place):
    with pytest.raises(InvalidError, match=f"Configuration of fleet: {place}"):
        checked(section, what="fleet")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InvalidError, match=r"a: unknown key.*b: unknown key") as caught:
        checked({"a": 1, "b": 2, "log_level": "loud"}, what="fleet")
    assert "log_level" in str(caught.value)


@given(ANYTHING)
def test_an_older_device_takes_what_it_understands_and_says_what_it_leaves_out(section):
    good, ignored = salvage(section)
    assert checked(good, what="test") == good
    if isinstance(section, dict):
        assert bool(ignored) == (not _is_accepted(section))


def _is_accepted(section: dict[str, Any]) -> bool:
    try:
        checked(section, what="test")
    except InvalidError:
        return False
    return True


def test_only_the_wrong_key_is_left_out():
    good, ignored = salvage(
        {"later": {"x": 1}, "telemetry": {"perf_s": 5, "sys_s": "often"}, "pipelines": {"front": {"zoom": 2, "max_fps": 1}}}
    )
    assert good == {"telemetry": {"perf_s": 5.0}, "pipelines": {"front": {"max_fps": 1.0}}}
    assert set(ignored) == {"later", "telemetry.sys_s", "pipelines.front.zoom"}


def test_every_key_is_listed_for_people():
    keys = dict(known_keys())
    assert keys["pipelines.NAME.keep"] == "ring | events | all"
    assert keys["telemetry.perf_s"] == "number, 1 to 3600"
    assert {"log_level", "update.metered", "update.download_windows"} <= keys.keys()


# --- the file ---


@given(SECTIONS, SECTIONS, st.dictionaries(st.sampled_from(["cam-1", "cam-2"]), SECTIONS))
def test_a_file_is_read_back_and_equal_content_has_one_digest(fleet, group, devices):
    document = Configuration("t0", "doors", 7, fleet, group, devices)
    assert from_bytes(to_bytes(document)) == document
    again = Configuration("t0", "doors", 7, dict(reversed(fleet.items())), group, dict(reversed(devices.items())))
    assert digest_of_configuration(again) == digest_of_configuration(document)


def test_unknown_parts_of_the_file_are_ignored():
    document = json.loads(to_bytes(Configuration("t0", "doors", 7))) | {"later": 1}
    document["sections"]["sites"] = {}
    assert from_bytes(json.dumps(document).encode()) == Configuration("t0", "doors", 7)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "configuration.2"},
        {"rev": 0},
        {"rev": "7"},
        {"group": "No Such"},
        {"sections": []},
        {"sections": {"devices": {"BAD": {}}}},
        {"sections": {"fleet": 1}},
    ],
)
def test_a_damaged_frame_is_refused(change):
    document = json.loads(to_bytes(Configuration("t0", "doors", 7))) | change
    with pytest.raises(InvalidError, match="no configuration of schema"):
        from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (MAX_DOCUMENT_BYTES + 1)])
def test_what_is_no_file_of_ours_is_refused(data):
    with pytest.raises(InvalidError):
        from_bytes(data)


def test_a_file_that_is_too_large_is_refused_with_what_to_do():
    devices = {f"cam-{number}": {"pipelines": {f"p{n}": {"max_fps": 1.0} for n in range(60)}} for number in range(300)}
    with pytest.raises(InvalidError, match="split the group"):
        to_bytes(Configuration("t0", "doors", 7, devices=devices))
