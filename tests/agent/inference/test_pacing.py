"""max_fps is measured on the source's own time line."""

from hypothesis import given
from hypothesis import strategies as st

from agent.inference.pacing import RateLimit


def taken(limit: RateLimit, moments: list[float]) -> list[int]:
    kept = []
    for index, moment in enumerate(moments):
        if limit.is_due(moment):
            limit.take(moment)
            kept.append(index)
    return kept


def test_a_tenth_of_the_rate_takes_every_tenth_frame_of_a_long_file():
    kept = taken(RateLimit(3.0), [(index + 1) / 30 for index in range(3000)])
    assert kept == list(range(9, 3000, 10))


def test_the_first_frame_of_a_camera_is_taken():
    assert taken(RateLimit(0.1), [86_400.0, 86_400.1]) == [0]


def test_without_a_limit_every_frame_is_taken():
    assert taken(RateLimit(0), [0.0, 0.0, 0.1]) == [0, 1, 2]


def test_a_time_line_that_begins_again_is_followed_from_its_beginning():
    moments = [500.0, 500.5, *(index / 10 for index in range(1, 31))]
    assert taken(RateLimit(1.0), moments) == [0, 12, 22]
    assert taken(RateLimit(0), [500.0, 0.1, 0.2]) == [0, 1, 2]


def test_a_stall_is_not_followed_by_a_burst():
    moments = [0.5, 1.0, *(10.0 + index / 100 for index in range(100))]
    assert taken(RateLimit(2.0), moments) == [0, 1, 2, 52]


@given(st.lists(st.floats(0.001, 2.0), max_size=200), st.floats(0.5, 50))
def test_no_more_than_max_fps_are_ever_taken(pauses: list[float], max_fps: float):
    moments = [sum(pauses[: index + 1]) for index in range(len(pauses))]
    kept = [moments[index] for index in taken(RateLimit(max_fps), moments)]
    for first, last in ((i, j) for i in range(len(kept)) for j in range(i + 1, len(kept))):
        assert last - first <= (kept[last] - kept[first]) * max_fps + 1 + 1e-3


def test_a_frame_that_was_due_but_not_taken_does_not_use_up_the_turn():
    limit = RateLimit(1.0)
    assert limit.is_due(1.0)
    assert limit.is_due(1.1)
    limit.take(1.1)
    assert not limit.is_due(1.5)
    assert limit.is_due(2.0)


def test_an_eased_limit_lets_every_so_many_due_frames_through():
    limit = RateLimit(0)
    limit.stride = 4
    assert taken(limit, [index / 30 for index in range(12)]) == [3, 7, 11]


def test_easing_counts_due_frames_not_all_of_them():
    limit = RateLimit(10.0)
    limit.stride = 2
    assert taken(limit, [(index + 1) / 30 for index in range(30)]) == [5, 11, 17, 23, 29]


def test_a_frame_that_was_due_and_not_wanted_stays_due():
    limit = RateLimit(0)
    limit.stride = 3
    assert [limit.is_due(index / 30) for index in range(5)] == [False, False, True, True, True]
