"""Zones and rules as people write them: what is wrong is told with its place, what was seen and what was wanted."""

from typing import Any

import pytest

from agent.config import AgentConfig, PipelineConfig
from agent.settings.desired import parse_desired
from agent.settings.overlaying import settable, trim_rules, with_settable
from fleet.devices.model import parse_pipelines
from protocol.configuration import checked, known_keys, salvage
from protocol.errors import InvalidError
from protocol.rules import MAX_RULE_BYTES

DRIVE = {"name": "drive", "points": [[0.1, 0.5], [0.9, 0.5], [0.9, 1.0], [0.1, 1.0]]}
GATE = {"name": "gate", "kind": "line", "points": [[0.5, 1.0], [0.5, 0.0]]}
PARKED = {"name": "parked", "kind": "dwell", "zone": "drive", "seconds": 30}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "crossing border": (
        {"zones": [{**DRIVE, "points": [[0, 0], [1, 1], [0, 1], [1, 0]]}]},
        "its border crosses itself: the edge from point 1 meets the edge from point 3",
    ),
    "two points": ({"zones": [{**DRIVE, "points": [[0, 0], [1, 1]]}]}, "zone 'drive' is no polygon: 2 points; wanted at least 3"),
    "one point": ({"zones": [{**GATE, "points": [[0, 0]]}]}, "zone 'gate' is no line: 1 points; wanted at least 2"),
    "outside the frame": ({"zones": [{**DRIVE, "points": [[0, 0], [1, 1], [0, 2]]}]}, "less than or equal to 1"),
    "two zones of a name": ({"zones": [DRIVE, DRIVE]}, "two zones are named 'drive'"),
    "two rules of a name": ({"zones": [DRIVE], "rules": [PARKED, PARKED]}, "two rules are named 'parked'"),
    "unknown zone": (
        {"zones": [DRIVE], "rules": [{**PARKED, "zone": "lawn"}]},
        "rule 'parked' names the zone 'lawn'; this pipeline's zones: drive",
    ),
    "no zone at all": ({"zones": [], "rules": [PARKED]}, "this pipeline's zones: none"),
    "a line to stay on": ({"zones": [GATE], "rules": [{**PARKED, "zone": "gate"}]}, "names 'gate', a line; wanted a polygon"),
    "a polygon to cross": (
        {"zones": [DRIVE], "rules": [{"name": "x", "kind": "cross", "zone": "drive"}]},
        "names 'drive', a polygon; wanted a line",
    ),
    "unknown kind": ({"rules": [{"name": "x", "kind": "loiter"}]}, "'enter', 'leave', 'cross', 'dwell'"),
    "no seconds": ({"zones": [DRIVE], "rules": [{"name": "x", "kind": "dwell", "zone": "drive"}]}, "Field required"),
    "no range": ({"rules": [{"name": "x", "kind": "value"}]}, "neither low nor high is set"),
    "range upside down": ({"rules": [{"name": "x", "kind": "value", "low": 2, "high": 1}]}, "low is 2 and high 1"),
    "fewer frames than wanted": ({"rules": [{"name": "x", "kind": "class", "min_frames": 3, "of_frames": 2}]}, "of_frames is 2"),
    "no such time zone": ({"rules": [{"name": "x", "kind": "class", "time_zone": "Mars/Base"}]}, "time zone database"),
    "no such hour": ({"rules": [{"name": "x", "kind": "class", "schedule": [{"from": "25:00", "to": "01:00"}]}]}, "match pattern"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_alike_by_signed_configuration_the_server_and_the_device(case):
    pipeline, text = WRONG[case]
    with pytest.raises(InvalidError, match="Configuration of group") as refused:
        checked({"pipelines": {"front": pipeline}}, what="group")
    assert text in str(refused.value)
    assert "pipelines.front." in str(refused.value)
    whole = {"name": "front", "line": "cars", "source": {"kind": "camera"}, **pipeline}
    with pytest.raises(InvalidError) as refused:
        parse_pipelines([whole])
    assert text in str(refused.value)
    desired, errors = parse_desired({"pipelines": [whole]})
    assert desired.pipelines == ()
    assert [text in error or error == "missing" for error in errors.values()] == [True]


def test_an_unknown_key_of_a_rule_is_told_with_those_that_it_knows():
    rule = {"name": "x", "kind": "enter", "zone": "drive", "seconds": 3}
    with pytest.raises(InvalidError, match=r"rules\.0\.enter\.seconds: unknown key; wanted one of .*lost_s.*zone"):
        checked({"pipelines": {"front": {"zones": [DRIVE], "rules": [rule]}}}, what="group")


def test_what_is_right_is_the_same_after_every_way():
    rules = [
        {**PARKED, "labels": ["car"], "schedule": [{"days": ["mon"], "from": "22:00", "to": "06:00"}], "time_zone": "Europe/Berlin"},
        {"name": "in", "kind": "cross", "zone": "gate", "direction": "right", "min_frames": 2, "of_frames": 3},
        {"name": "crowd", "kind": "count", "above": 4},
    ]
    section = checked({"pipelines": {"front": {"track": True, "zones": [DRIVE, GATE], "rules": rules}}}, what="group")
    assert checked(section, what="group") == section
    assert salvage(section) == (section, {})
    assert {key for key, _ in known_keys()} >= {f"pipelines.NAME.{key}" for key in ("track", "zones", "rules")}
    (spec,) = parse_pipelines([{"name": "front", "line": "cars", "source": {"kind": "camera"}, "zones": [DRIVE, GATE], "rules": rules}])
    document = spec.model_dump(mode="json", exclude_none=True)
    assert parse_pipelines([document]) == (spec,)
    pipeline = PipelineConfig.model_validate(document)
    assert (pipeline.zones, pipeline.rules) == (spec.zones, spec.rules)


def test_a_pipeline_without_rules_is_told_as_before_there_were_any():
    (spec,) = parse_pipelines([{"name": "front", "line": "cars", "source": {"kind": "camera"}}])
    assert not spec.model_dump(mode="json", exclude_none=True).keys() & {"track", "zones", "rules"}


def config(**changes: Any) -> AgentConfig:
    pipeline = {"name": "front", "line": "cars", "source": {"kind": "camera"}, "zones": [DRIVE], "rules": [PARKED], **changes}
    return AgentConfig.model_validate({"pipelines": [pipeline]})


def with_signed(own: AgentConfig, **signed: Any) -> tuple[AgentConfig, dict[str, str]]:
    values = settable(own)
    values["pipelines"]["front"] |= signed
    return with_settable(own, values)


def test_signed_rules_may_stand_on_the_zones_of_the_device():
    again = {"name": "again", "kind": "enter", "zone": "drive"}
    found, errors = with_signed(config(), rules=[again])
    assert (errors, [rule.name for rule in found.pipelines[0].rules]) == ({}, ["again"])


def test_signed_rules_that_do_not_fit_the_device_are_left_out_and_told():
    own = config()
    for signed in ({"rules": [{"name": "x", "kind": "enter", "zone": "lawn"}]}, {"zones": [{**DRIVE, "name": "lawn"}]}):
        found, errors = with_signed(own, **signed, max_fps=7.0)
        assert found.pipelines[0] == own.pipelines[0].model_copy(update={"max_fps": 7.0})
        assert list(errors) == ["pipelines.front.rules"]
        assert "names the zone" in errors["pipelines.front.rules"]


def test_more_rules_than_a_message_carries_are_left_out_by_the_device_and_refused_by_the_server():
    rules = [{"name": f"r{n}", "kind": "class", "labels": ["x" * 200] * 4} for n in range(60)]
    one = config(rules=rules).pipelines[0]
    small = one.model_copy(update={"name": "small", "rules": one.rules[:1]})
    both = AgentConfig.model_validate({"pipelines": []}).model_copy(update={"pipelines": (one, small)})
    assert len(one.model_dump_json(include={"zones", "rules"})) > MAX_RULE_BYTES
    found, errors = trim_rules(both)
    assert (list(errors), found.pipelines[0].rules, found.pipelines[1]) == (["pipelines.front.rules"], (), small)
    with pytest.raises(InvalidError, match="at most 49152 are allowed per device"):
        parse_pipelines([one.model_dump(mode="json", include={"name", "line", "source", "zones", "rules"})])


def test_the_inference_process_hears_of_tracking_and_not_of_rules():
    seen = config().pipelines[0].for_inference()
    assert (seen.track, hasattr(seen, "zones"), hasattr(seen, "rules")) == (True, False, False)
    assert not config(rules=[{"name": "crowd", "kind": "count", "above": 4}]).pipelines[0].for_inference().track
    assert config(rules=[], track=True).pipelines[0].for_inference().track
