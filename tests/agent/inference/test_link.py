"""Messages over a socketpair are whole, bounded, and end when the other end is gone."""

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import PipelineConfig, RuntimeConfig
from agent.inference.hearing import FROM_WORKER
from agent.inference.link import Link, LinkClosedError
from agent.inference.messages import MAX_MESSAGE_BYTES, Answer, Configure, Prediction, ScoredLabel
from agent.inference.writing import read_order, write


def linked() -> tuple[Link, Link]:
    one, other = socket.socketpair()
    return Link(one), Link(other)


@given(st.lists(st.binary(max_size=5000), max_size=20))
def test_what_is_sent_is_received(messages: list[bytes]):
    one, other = linked()
    sender = threading.Thread(target=lambda: [one.send(message) for message in messages])
    sender.start()
    assert [other.receive() for _ in messages] == messages
    sender.join()
    one.close()
    other.close()


def test_a_message_longer_than_the_limit_is_not_sent():
    one, other = linked()
    with pytest.raises(ValueError, match="at most"):
        one.send(bytes(MAX_MESSAGE_BYTES + 1))
    one.close()
    other.close()


def test_an_announced_length_over_the_limit_is_refused_before_anything_is_read():
    raw, ours = socket.socketpair()
    raw.sendall(struct.pack(">I", 2**32 - 1))
    link = Link(ours)
    with pytest.raises(LinkClosedError, match="4294967295 bytes"):
        link.receive()
    raw.close()
    link.close()


def test_a_reader_learns_that_the_other_end_hung_up():
    one, other = linked()
    one.close()
    with pytest.raises(LinkClosedError):
        other.receive()
    with pytest.raises(LinkClosedError):
        other.send(b"x" * 1_000_000)
    other.close()
    other.close()


def test_messages_survive_the_wire():
    pipeline = PipelineConfig.model_validate({"name": "front", "line": "color", "source": {"kind": "video", "path": "/x"}})
    told = Configure((pipeline.for_inference(),), RuntimeConfig().for_inference(), 7)
    assert read_order(write(told)) == told
    for heard in (Answer(1, ok=True), Prediction("front", "color", "1.0", 1, 2, 3, (ScoredLabel("red", 2, 0.5),), 1.0, 2.0)):
        assert FROM_WORKER.validate_json(write(heard)) == heard
