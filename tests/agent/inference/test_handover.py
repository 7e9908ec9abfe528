"""Who infers a frame: the decision, and what it is made of."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.inference.handover import LONG_S, SAMPLE, SAMPLE_ALL_S, Handover, Spell, decide, prepares

#: A camera with 30 frames per second, 10 ms of decoding each, and a model of 1 ms.
LIGHT = Spell(elapsed_s=1.0, capture_s=0.15, infer_s=0.03, inferred=30)


@pytest.mark.parametrize("is_live", [True, False])
def test_a_small_model_at_a_cameras_pace_is_inferred_in_place(is_live):
    assert decide(LIGHT, is_in_place=False, is_live=is_live)


@pytest.mark.parametrize("is_live", [True, False])
def test_decoding_and_inference_that_fill_the_time_go_on_beside_each_other(is_live):
    busy = replace(LIGHT, capture_s=0.45, infer_s=0.5)
    assert not decide(busy, is_in_place=True, is_live=is_live)


def test_a_thread_that_is_busy_most_of_the_time_stays_as_it_is():
    between = replace(LIGHT, capture_s=0.3, infer_s=0.3)
    assert decide(between, is_in_place=True, is_live=True)
    assert not decide(between, is_in_place=False, is_live=True)


def test_a_live_source_is_drained_while_inference_takes_all_the_time_and_a_recording_waits():
    slow = Spell(elapsed_s=1.0, capture_s=0.001, infer_s=0.999, inferred=20)
    assert not decide(slow, is_in_place=True, is_live=True)
    assert decide(slow, is_in_place=False, is_live=False)


def test_a_spell_without_a_frame_changes_nothing():
    nothing = Spell(elapsed_s=1.0, capture_s=0.9, infer_s=0.0, inferred=0)
    assert decide(nothing, is_in_place=True, is_live=True)
    assert not decide(nothing, is_in_place=False, is_live=True)


@given(
    st.builds(Spell, st.floats(0.1, 10), st.floats(0, 10), st.floats(0, 10), st.integers(0, 1000)),
    st.booleans(),
)
def test_whoever_would_begin_to_infer_in_place_would_also_go_on(spell, is_live):
    assert decide(spell, is_in_place=True, is_live=is_live) or not decide(spell, is_in_place=False, is_live=is_live)


def test_nothing_is_decided_at_the_first_look_and_it_takes_what_came_since_after():
    one = Handover(is_live=True)
    one.look(100.0, thread_cpu_s=50.0, infer_s=500.0, inferred=5000)
    assert not one.is_in_place
    assert one.due_s > 100.0
    one.look(101.0, thread_cpu_s=50.1, infer_s=500.1, inferred=5030)
    assert one.is_in_place


def test_processor_time_of_inferences_in_place_is_not_taken_for_decoding():
    one = Handover(is_live=True)
    one.is_in_place = True
    one.look(0.0, thread_cpu_s=0.0, infer_s=0.0, inferred=0)
    for _ in range(40):  # 40 inferences of 10 ms, half of which the processor was busy, and 10 ms of decoding each
        one.inferred_in_place(0.010, 0.005 if one.is_sample else None)
    one.look(1.0, thread_cpu_s=0.2 + 0.3, infer_s=0.4, inferred=40)  # busy 0.3 + 0.4 = 0.7
    assert one.is_in_place
    for _ in range(40):
        one.inferred_in_place(0.010, 0.005 if one.is_sample else None)
    one.look(2.0, thread_cpu_s=0.5 + 0.2 + 0.4, infer_s=0.8, inferred=80)  # busy 0.4 + 0.4 = 0.8
    assert not one.is_in_place


def test_the_processor_time_of_a_few_short_inferences_is_measured_and_that_of_each_long_one():
    one = Handover(is_live=True)
    for number in range(4 * SAMPLE):
        assert one.is_sample == (number % SAMPLE == 0)
        one.inferred_in_place(SAMPLE_ALL_S / 2, None)
    for _ in range(SAMPLE):
        one.inferred_in_place(2 * SAMPLE_ALL_S, 2 * SAMPLE_ALL_S)
        assert one.is_sample


@given(st.lists(st.floats(0.8, 1.0), min_size=150, max_size=150))
@example([1.0 if number % SAMPLE else 0.8 for number in range(150)])
def test_a_recording_goes_on_in_place_however_inferences_of_some_milliseconds_are_interrupted(shares):
    """A capture that costs 20 us per frame; the processor worked on each inference for another share of its 3 ms."""
    one = Handover(is_live=False)
    one.is_in_place = True
    one.look(0.0, thread_cpu_s=0.0, infer_s=0.0, inferred=0)
    for share in shares:
        one.inferred_in_place(0.003, 0.003 * share if one.is_sample else None)
    one.look(0.5, thread_cpu_s=sum(0.003 * share + 20e-6 for share in shares), infer_s=0.003 * len(shares), inferred=len(shares))
    assert one.is_in_place


def test_one_long_inference_hands_a_live_source_over_at_once():
    for is_live in (True, False):
        one = Handover(is_live=is_live)
        one.is_in_place = True
        one.inferred_in_place(LONG_S + 0.1, None)
        assert one.is_in_place is not is_live


#: A recording that decodes in 2 ms beside a model of 7: inputs take 0.25 ms, wherever they are made.
HEAVY = Spell(elapsed_s=1.0, capture_s=0.28, infer_s=1.0, inferred=138)


def test_the_capture_thread_makes_inputs_while_inferring_is_the_slower_stage():
    assert prepares(HEAVY, is_preparing=False, each_s=0.0)
    assert prepares(replace(HEAVY, infer_s=0.965, prepare_s=0.035), is_preparing=True, each_s=0.00025)


def test_a_capture_thread_that_has_as_much_to_do_leaves_inputs_to_the_other():
    decoding = replace(HEAVY, capture_s=0.9)
    assert not prepares(decoding, is_preparing=False, each_s=0.0)
    assert not prepares(replace(decoding, infer_s=0.9, prepare_s=0.1), is_preparing=True, each_s=0.0007)


@given(
    capture_s=st.floats(0, 10),
    infer_s=st.floats(0, 10),
    each_s=st.floats(0, 0.01),
    inferred=st.integers(1, 1000),
)
def test_once_it_is_known_what_an_input_takes_making_it_elsewhere_is_not_taken_back(capture_s, infer_s, each_s, inferred):
    moved_s = each_s * inferred
    if prepares(Spell(1.0, capture_s, infer_s, inferred), is_preparing=False, each_s=each_s):
        assert prepares(Spell(1.0, capture_s, infer_s - moved_s, inferred, moved_s), is_preparing=True, each_s=each_s)


def test_a_spell_without_a_frame_changes_nobody_who_makes_inputs():
    nothing = Spell(elapsed_s=1.0, capture_s=0.9, infer_s=0.0, inferred=0)
    assert prepares(nothing, is_preparing=True, each_s=0.0)
    assert not prepares(nothing, is_preparing=False, each_s=0.0)


def test_what_making_inputs_takes_the_capture_thread_is_no_reason_to_hand_over():
    """A capture of 50 us per frame and a model of 5 ms: two threads save nothing, whichever of them makes inputs of 0.3 ms."""
    one = Handover(is_live=False)
    one.is_preparing = True
    one.look(0.0, thread_cpu_s=0.0, infer_s=0.0, inferred=0, prepare_s=0.0)
    one.look(0.5, thread_cpu_s=100 * 350e-6, infer_s=0.48, inferred=100, prepare_s=100 * 300e-6)
    assert one.is_in_place
    assert not one.is_preparing


def test_inputs_are_made_by_the_capture_thread_until_that_takes_it_longer_than_inferring_does():
    """Decoding 2 ms, inferring 4 ms of which the input takes 1.5: known only once it was made elsewhere."""
    one = Handover(is_live=True)
    one.look(0.0, thread_cpu_s=0.0, infer_s=0.0, inferred=0)
    one.look(0.5, thread_cpu_s=0.2, infer_s=0.4, inferred=100)
    assert one.is_preparing
    one.look(1.0, thread_cpu_s=0.2 + 0.35, infer_s=0.4 + 0.25, inferred=200, prepare_s=0.15)
    assert not one.is_preparing
    one.look(1.5, thread_cpu_s=0.55 + 0.2, infer_s=0.65 + 0.4, inferred=300, prepare_s=0.15)
    assert not one.is_preparing
