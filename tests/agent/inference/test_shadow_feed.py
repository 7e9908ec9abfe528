"""The buffer between inference and shadow has one owner at a time, and is never lost, whatever does not fit."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from waiting import wait_until

from agent.inference import shadow_feed
from agent.inference.messages import Prediction, ScoredLabel
from agent.inference.shadow_feed import FREE, ShadowPort
from agent.inference.shadow_messages import MAX_FRAME_BYTES, MAX_NOTE_BYTES, Offered
from agent.inference.shadow_reports import OFFERED

ANSWER = Prediction("door", "person", "1.0", 1, 1, 0, (), 2.0, 3.0)
FRAME = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
TENSOR = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3)
PLAN = "sha256:plan"


class Shadow:
    """The other end: gives the buffer back and reads what it holds."""

    def __init__(self) -> None:
        self.port = ShadowPort()
        self._memory = os.memfd_create("frame")
        os.ftruncate(self._memory, MAX_FRAME_BYTES)
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(60)
        self.port.open(ours, self._memory, {"door": PLAN})

    def free(self) -> None:
        """Give the buffer back, and wait until that was heard."""
        feed = self.port.feed
        assert feed is not None
        self.sock.send(FREE)
        wait_until(lambda: feed._is_free, what="the buffer to be free")

    def take(self) -> tuple[Offered, np.ndarray]:
        offered = OFFERED.validate_json(self.sock.recv(MAX_NOTE_BYTES))
        dtype = np.dtype(offered.layout.dtype)
        size = int(np.prod(offered.layout.shape)) * dtype.itemsize
        return offered, np.frombuffer(os.pread(self._memory, size, 0), dtype).reshape(offered.layout.shape)

    def close(self) -> None:
        self.sock.close()
        os.close(self._memory)


@pytest.fixture
def shadow() -> Iterator[Shadow]:
    one = Shadow()
    yield one
    one.close()


def test_nothing_is_offered_before_the_shadow_asks_or_on_pipelines_without_a_candidate(shadow):
    assert shadow.port.begin("door", FRAME) is None
    shadow.free()
    assert shadow.port.begin("yard", FRAME) is None
    assert shadow.port.begin("door", FRAME) is not None
    assert shadow.port.begin("door", FRAME) is None


def test_the_frame_goes_over_as_captured_when_the_models_make_their_input_otherwise(shadow):
    shadow.free()
    offer = shadow.port.begin("door", FRAME)
    offer.take_input("sha256:other", TENSOR, 1.5)
    offer.finish(ANSWER, FRAME)
    offered, data = shadow.take()
    assert (offered.answer, offered.layout.is_input, offered.layout.size) == (ANSWER, False, (4, 5))
    assert np.array_equal(data, FRAME)


def test_the_champions_own_input_goes_over_when_both_make_it_alike(shadow):
    shadow.free()
    offer = shadow.port.begin("door", FRAME)
    offer.take_input(PLAN, TENSOR, 1.5)
    offer.finish(ANSWER, FRAME)
    offered, data = shadow.take()
    assert (offered.layout.is_input, offered.layout.prepared_ms, offered.layout.size) == (True, 1.5, (4, 5))
    assert np.array_equal(data, TENSOR)


def test_frames_that_found_the_buffer_taken_are_counted_with_the_next_one(shadow):
    for _ in range(3):
        assert shadow.port.begin("door", FRAME) is None
    shadow.free()
    shadow.port.begin("door", FRAME).finish(ANSWER, FRAME)
    assert shadow.take()[0].skipped == 3
    shadow.free()
    shadow.port.begin("door", FRAME).finish(ANSWER, FRAME)
    assert shadow.take()[0].skipped == 0


def test_a_frame_without_an_answer_leaves_the_buffer_to_the_next(shadow):
    shadow.free()
    shadow.port.begin("door", FRAME).cancel()
    offer = shadow.port.begin("door", FRAME)
    offer.take_input(PLAN, TENSOR, 0.0)
    offer.cancel()
    assert shadow.port.begin("door", FRAME) is not None


def test_what_does_not_fit_is_counted_and_the_buffer_is_free_again(shadow, monkeypatch):
    monkeypatch.setattr(shadow_feed, "MAX_FRAME_BYTES", FRAME.nbytes - 1)
    shadow.free()
    shadow.port.begin("door", FRAME).finish(ANSWER, FRAME)
    monkeypatch.setattr(shadow_feed, "MAX_FRAME_BYTES", MAX_FRAME_BYTES)
    long = replace(ANSWER, top=tuple(ScoredLabel("x" * 200, index, 0.5) for index in range(MAX_NOTE_BYTES // 200)))
    shadow.port.begin("door", FRAME).finish(long, FRAME)
    shadow.port.begin("door", FRAME).finish(ANSWER, FRAME)
    assert shadow.take()[0].too_large == 2


def test_a_shadow_that_is_gone_is_offered_nothing(shadow):
    shadow.free()
    shadow.sock.close()
    wait_until(lambda: shadow.port.feed is None, what="the end of the feed")
    assert shadow.port.begin("door", FRAME) is None


def test_another_shadow_takes_the_place_of_the_one_before(shadow):
    other = Shadow()
    other.sock.close()
    ours, other.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.sock.settimeout(60)
    shadow.port.open(ours, other._memory, {"door": PLAN})
    assert shadow.sock.recv(1) == b""
    other.port = shadow.port
    other.free()
    shadow.port.begin("door", FRAME).finish(ANSWER, FRAME)
    assert other.take()[0].answer == ANSWER
    other.close()
