"""The topic grammar: what is built can be parsed, and nothing else passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidError
from protocol.ids import NAME_PATTERN, DeviceId, TenantId
from protocol.topics import STREAMS, Direction, MessageClass, Topic, build, device_topic, fleet_topic, parse, rule_of

levels = st.from_regex(NAME_PATTERN.removesuffix("$") + r"\Z")
device_topics = st.builds(
    Topic,
    tenant=levels.map(TenantId),
    direction=st.sampled_from([Direction.DEVICE, Direction.COMMAND]),
    device=levels.map(DeviceId),
    levels=st.lists(levels, min_size=1, max_size=5).map(tuple),
    prefix=levels,
)
fleet_topics = st.builds(
    Topic,
    tenant=levels.map(TenantId),
    direction=st.just(Direction.FLEET),
    device=st.none(),
    levels=st.lists(levels, min_size=1, max_size=5).map(tuple),
    prefix=levels,
)


@given(device_topics | fleet_topics)
def test_parsing_what_was_built_gives_the_topic_back(topic: Topic):
    assert parse(build(topic), prefix=topic.prefix) == topic


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused_with_a_named_error(text: str):
    try:
        topic = parse(text)
    except InvalidError:
        return
    assert build(topic) == text


@pytest.mark.parametrize(
    "text",
    [
        "mooring/1/t0/d/cam-1",  # no level below the device
        "mooring/2/t0/d/cam-1/tel",  # another major
        "mooring/1/t0/x/cam-1/tel",  # no such direction
        "mooring/1/t0/d/Cam/tel",  # upper case
        "mooring/1/t0/d/+/tel",
        "mooring/1/t0/d/cam-1/#",
        "mooring/1/t0/d/cam-1//tel",
        "mooring/1/t0/d/cam-1/" + "a" * 64,
    ],
)
def test_a_foreign_topic_is_refused(text: str):
    with pytest.raises(InvalidError):
        parse(text)


def test_a_fleet_topic_with_a_device_is_refused():
    with pytest.raises(InvalidError):
        build(Topic(TenantId("t0"), Direction.FLEET, DeviceId("cam"), ("alarm",)))


def test_topics_read_as_the_interface_document_says():
    assert device_topic(TenantId("t0"), DeviceId("cam-42"), "tel", "perf") == "mooring/1/t0/d/cam-42/tel/perf"
    assert fleet_topic(TenantId("t0"), "campaign", "c1") == "mooring/1/t0/f/campaign/c1"


def test_every_stream_that_may_be_lost_is_declared_so():
    lossy = {name for name, rule in STREAMS.items() if rule.message_class in (MessageClass.RING, MessageClass.REPLY)}
    assert lossy == {"inf", "log", "rpc-reply"}
    assert all(rule.retain == (rule.message_class is MessageClass.STATE) for rule in STREAMS.values())


def test_an_undeclared_stream_has_no_rule():
    with pytest.raises(InvalidError, match="novel"):
        rule_of(Topic(TenantId("t0"), Direction.DEVICE, DeviceId("cam"), ("novel",)))
