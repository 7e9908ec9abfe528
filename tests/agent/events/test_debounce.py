"""What flickers below the debounce changes nothing, and what holds does."""

from hypothesis import given
from hypothesis import strategies as st

from agent.events.debounce import Debounce


def run(state: Debounce, values, *, step_ms: int = 100) -> list[int]:
    """Indexes at which the state changed."""
    return [index for index, value in enumerate(values) if state.feed(bool(value), index * step_ms)]


def test_without_a_debounce_every_frame_counts():
    assert run(Debounce(frames=1, of=1), [0, 1, 1, 0, 1]) == [1, 3, 4]


def test_frames_in_a_row_are_counted_anew_after_each_break():
    state = Debounce(frames=3, of=3)
    assert run(state, [1, 1, 0, 1, 1, 1]) == [5]
    assert state.changed_ms == 300


def test_some_of_the_last_frames_are_enough():
    assert run(Debounce(frames=2, of=4), [1, 0, 0, 1]) == [3]
    assert run(Debounce(frames=2, of=4), [1, 0, 0, 0, 1]) == []


def test_it_must_hold_for_its_time_and_one_frame_to_the_contrary_starts_the_time_again():
    state = Debounce(frames=1, of=1, on_ms=250, off_ms=0)
    assert run(state, [1, 1, 0, 1, 1, 1, 1, 0]) == [6, 7]
    assert state.changed_ms == 700


def test_a_frame_that_agrees_never_changes_it_however_long_the_others_held():
    assert run(Debounce(frames=1, of=3, on_ms=150), [1, 0, 0, 1]) == [3]


@given(st.data(), st.integers(1, 4), st.integers(0, 4), st.integers(0, 30), st.integers(0, 30))
def test_noise_below_the_debounce_never_shows(data, frames, more, on_for, off_for):
    of = frames + more
    # a phase ends with as many clean frames as the debounce asks for, so that it is seen at all
    truth = [True] * (on_for + frames) + [False] * (off_for + frames)
    clean = {*range(on_for, on_for + frames), *range(len(truth) - frames, len(truth))}
    noise: list[bool] = []
    for index in range(len(truth)):
        may_flip = index not in clean and sum(noise[max(0, index - of + 1) :]) < frames - 1
        noise.append(may_flip and data.draw(st.booleans()))
    changes = run(Debounce(frames=frames, of=of), [value != flip for value, flip in zip(truth, noise, strict=True)])
    assert len(changes) == 2
    assert changes[0] < on_for + frames <= changes[1]
