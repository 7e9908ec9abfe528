"""Three buffers: latest wins, and every grabbed frame is accounted for, per session."""

import threading
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from waiting import wait_until

from agent.inference.frames import BUFFERS, Frame, FrameBuffers, Tally
from agent.sources.states import DropReason

MAX_AGE_S = 1.0


def buffers_at(now: Callable[[], float] = lambda: 0.0) -> FrameBuffers:
    return FrameBuffers(max_age_s=MAX_AGE_S, now=now)


def publish(buffers: FrameBuffers, seq: int, *, session: int = 1, captured_s: float = 0.0) -> None:
    frame = buffers.fill(session, seq, captured_s=captured_s, at_ms=0)
    assert frame is not None
    buffers.publish(frame)


def test_the_latest_frame_wins_and_the_older_one_is_counted_as_superseded():
    now = [0.0]
    buffers = buffers_at(lambda: now[0])
    publish(buffers, 0)
    now[0] = 0.6 * MAX_AGE_S
    publish(buffers, 1, captured_s=now[0])
    frame = buffers.pick(0)
    assert frame is not None
    assert frame.seq == 1
    buffers.finish(frame)
    assert buffers.total().dropped == {DropReason.SUPERSEDED: 1}
    assert buffers.total().inferred == 1


def test_a_frame_that_waited_too_long_is_stale():
    now = [0.0]
    buffers = buffers_at(lambda: now[0])
    publish(buffers, 0)
    now[0] = MAX_AGE_S + 0.1
    assert buffers.pick(0) is None
    assert buffers.total().dropped == {DropReason.STALE: 1}


def test_a_frame_is_wanted_at_the_start_not_while_one_waits_and_again_once_that_is_picked_or_grows_old():
    now = [0.0]
    buffers = buffers_at(lambda: now[0])
    publish(buffers, 0)
    assert buffers.fill(1, 1, captured_s=0, at_ms=0) is None
    assert buffers.total().dropped == {DropReason.NOT_WANTED: 1}
    now[0] = 0.6 * MAX_AGE_S
    publish(buffers, 2, captured_s=now[0])
    frame = buffers.pick(0)
    assert frame is not None
    assert frame.seq == 2
    publish(buffers, 3, captured_s=now[0])
    assert buffers.total().dropped == {DropReason.NOT_WANTED: 1, DropReason.SUPERSEDED: 1}


def test_a_frame_is_inferred_in_place_while_none_waits_or_is_being_inferred():
    buffers = buffers_at()
    first, second, third = (buffers.fill(1, seq, captured_s=0, at_ms=0) for seq in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert buffers.claim(first)
    assert not buffers.claim(second)  # one is being inferred
    buffers.finish(first)
    buffers.publish(second)
    assert not buffers.claim(third)  # one waits
    assert buffers.pick(0) is second
    assert not buffers.claim(third)
    buffers.finish(second)
    assert buffers.claim(third)
    buffers.finish(third)
    assert buffers.total().inferred == 3


def test_neither_an_old_frame_nor_one_after_the_end_is_inferred_in_place():
    now = [0.0]
    buffers = buffers_at(lambda: now[0])
    frame = buffers.fill(1, 0, captured_s=0, at_ms=0)
    assert frame is not None
    now[0] = MAX_AGE_S + 0.1
    assert not buffers.claim(frame)
    now[0] = 0.0
    buffers.close()
    assert not buffers.claim(frame)


def test_with_all_buffers_taken_the_frame_is_dropped_for_no_buffer():
    buffers = buffers_at()
    for seq in range(BUFFERS):
        assert buffers.fill(1, seq, captured_s=0, at_ms=0) is not None
    assert buffers.fill(1, 3, captured_s=0, at_ms=0) is None
    assert buffers.total().dropped == {DropReason.NO_BUFFER: 1}
    assert buffers.total().in_flight == BUFFERS


def test_closing_counts_the_waiting_frame_as_shutdown_and_wakes_the_picker():
    buffers = buffers_at()
    got: list[Frame | None] = []
    picker = threading.Thread(target=lambda: got.append(buffers.pick(30)))
    picker.start()
    buffers.close()
    wait_until(lambda: got, what="the picker to return")
    picker.join()
    assert got == [None]
    publish(buffers, 0)
    assert buffers.total().dropped == {DropReason.SHUTDOWN: 1}
    assert buffers.total().in_flight == 0


@given(st.lists(st.sampled_from([*DropReason, None]), max_size=60))
def test_a_session_with_frames_in_flight_is_kept_apart_until_they_are_settled(fates: list[DropReason | None]):
    buffers = buffers_at()
    for session, fate in enumerate(fates):
        frame = buffers.fill(session, 0, captured_s=0, at_ms=0)
        assert frame is not None
        buffers.finish(frame, fate)
    total = buffers.total()
    assert len(buffers.sessions()) <= 1
    assert total.is_balanced
    assert total.grabbed == len(fates)
    assert total.inferred == fates.count(None)


class Accounting(RuleBasedStateMachine):
    """Any order of what capture and inference may do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.buffers = FrameBuffers(max_age_s=MAX_AGE_S, now=lambda: self.now)
        self.session = 1
        self.seq = 0
        self.filling: list[Frame] = []
        self.in_use: list[Frame] = []
        self.grabbed = 0
        #: Inference asked for a frame since one was handed over.
        self.is_asked_for = True
        self.newest_picked = (0, -1)

    def _grab(self) -> None:
        self.grabbed += 1
        self.seq += 1

    @rule(reason=st.sampled_from([DropReason.NOT_WANTED, DropReason.RATE_LIMITED, DropReason.MODEL_UNAVAILABLE]))
    def drop(self, reason: DropReason) -> None:
        self._grab()
        self.buffers.drop(self.session, reason)

    @rule()
    def fill(self) -> None:
        self._grab()
        ready = self._ready()
        is_wanted = self.now - ready[0].captured_s > MAX_AGE_S / 2 if ready else self.is_asked_for
        has_room = len(self.filling) + len(self.in_use) + len(ready) < BUFFERS
        frame = self.buffers.fill(self.session, self.seq, captured_s=self.now, at_ms=0)
        assert (frame is not None) == (is_wanted and has_room)
        if frame is not None:
            self.filling.append(frame)

    @precondition(lambda self: self.filling)
    @rule(is_broken=st.booleans())
    def decoded(self, *, is_broken: bool) -> None:
        frame = self.filling.pop(0)
        if is_broken:
            self.buffers.finish(frame, DropReason.DECODE_ERROR)
        else:
            self.buffers.publish(frame)
            self.is_asked_for = False

    @precondition(lambda self: self.filling)
    @rule()
    def inferred_in_place(self) -> None:
        frame = self.filling[0]
        is_idle = not self.in_use and not self._ready()
        assert self.buffers.claim(frame) == (is_idle and self.now - frame.captured_s <= MAX_AGE_S)
        if frame.state == "in_use":
            self.in_use.append(self.filling.pop(0))

    @rule()
    def pick(self) -> None:
        self.is_asked_for = self.is_asked_for or bool(self._ready())
        frame = self.buffers.pick(0)
        if frame is not None:
            assert (frame.session, frame.seq) > self.newest_picked
            self.newest_picked = frame.session, frame.seq
            self.in_use.append(frame)

    @precondition(lambda self: self.in_use)
    @rule(reason=st.sampled_from([None, DropReason.INFERENCE_ERROR, DropReason.MODEL_UNAVAILABLE]))
    def finish(self, reason: DropReason | None) -> None:
        self.buffers.finish(self.in_use.pop(), reason)

    @rule()
    def reopen(self) -> None:
        self.session += 1
        self.seq = 0

    @rule(seconds=st.floats(0, 2))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def every_frame_is_accounted_for(self) -> None:
        total = self.buffers.total()
        assert total.is_balanced
        assert total.grabbed == self.grabbed
        assert total.in_flight == len(self.filling) + len(self.in_use) + len(self._ready())
        assert all(tally.is_balanced for tally in self.buffers.sessions().values())

    def _ready(self) -> list[Frame]:
        return [] if self.buffers._ready is None else [self.buffers._ready]


TestAccounting = Accounting.TestCase


def test_tallies_add_up():
    one, other = Tally(grabbed=2, inferred=1, in_flight=1), Tally(grabbed=3, inferred=2)
    other.dropped[DropReason.STALE] = 1
    one.add(other)
    assert (one.grabbed, one.inferred, one.in_flight, one.dropped[DropReason.STALE]) == (5, 3, 1, 1)
    assert one.is_balanced
