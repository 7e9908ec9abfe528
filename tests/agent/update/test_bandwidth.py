"""The token bucket: over no stretch of time do more bytes pass than it allows, however the downloads ask for them."""

import threading

from hypothesis import given
from hypothesis import strategies as st
from simulators.clock import FakeClock

from agent.update.bandwidth import LEAST_BURST_BYTES, TokenBucket


def keep_on() -> bool:
    return False


class Pass:
    """Notes when how many bytes passed."""

    def __init__(self, rate: float) -> None:
        self.clock = FakeClock()
        self.bucket = TokenBucket(rate, clock=self.clock)
        self.passed: list[tuple[float, int]] = []

    def spend(self, count: int) -> None:
        self.bucket.spend(count, should_stop=keep_on)
        self.passed.append((self.clock.monotonic(), count))


@given(
    st.integers(1000, 10**7),
    st.lists(st.tuples(st.integers(1, 300_000), st.floats(0, 30)), min_size=1, max_size=30),
)
def test_over_no_stretch_more_passes_than_rate_times_time_and_one_burst(rate, pieces):
    world = Pass(rate)
    for count, pause_s in pieces:
        world.spend(count)
        world.clock.advance(pause_s)
    burst = world.bucket.burst_bytes
    for first in range(len(world.passed)):
        total = 0
        for at, count in world.passed[first:]:
            total += count
            begin = world.passed[first][0]
            # the first piece ended at `begin`: what of it is larger than the burst came before
            assert total - world.passed[first][1] <= rate * (at - begin) + burst + 1


def test_a_long_download_comes_at_the_rate():
    world = Pass(100_000)
    for _ in range(100):
        world.spend(100_000)
    assert 98.5 <= world.clock.monotonic() <= 100.5


def test_two_downloads_share_one_rate():
    world = Pass(50_000)
    for _ in range(20):
        world.spend(50_000)
        world.spend(50_000)
    assert world.clock.monotonic() >= 38


def test_without_a_limit_nothing_waits():
    world = Pass(0)
    world.spend(10**9)
    assert world.clock.monotonic() == 0


def test_a_rate_may_change_while_somebody_waits():
    world = Pass(1000)
    world.spend(LEAST_BURST_BYTES)
    world.bucket.limit_to(0)
    world.spend(10**9)
    assert world.clock.monotonic() == 0
    world.bucket.limit_to(2000)
    world.spend(LEAST_BURST_BYTES + 20_000)
    assert 18 <= world.clock.monotonic() <= 18.5


def test_who_shall_stop_does_not_wait_for_the_bytes():
    world = Pass(1)
    world.spend(LEAST_BURST_BYTES)
    stop = threading.Event()
    asked = iter(range(10))
    waited = world.bucket.spend(10**9, should_stop=lambda: next(asked) >= 3)
    assert waited < 3
    assert not stop.is_set()


def test_a_pause_earns_one_burst_and_no_more():
    world = Pass(100_000)
    world.clock.advance(3600)
    world.spend(300_000)
    assert world.clock.monotonic() - 3600 >= 1.9
