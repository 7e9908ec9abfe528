"""Pictures that several pipelines see: memory is used again, and what lines make of one frame by one plan is made once."""

import threading
from typing import Any

import numpy as np
import pytest

from agent.inference.pictures import MAX_PLANS, Inputs, PicturePool
from agent.inference.regions import Region
from agent.sources.base import Array
from protocol.errors import InvalidError
from runtime.inputs import Color, Fit, Interpolation, Layout
from runtime.preprocess import Plan, Preprocessor, Transfer

PLAN = Plan(8, 8, 3, Layout.NHWC, "uint8", Color.BGR, Fit.STRETCH, Interpolation.LINEAR, 0, Transfer.COPY, None)


class Counting(Preprocessor):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__(PLAN)
        self.runs = 0

    def run(self, frame: Array) -> Array:
        self.runs += 1
        return super().run(frame)


def pixels(level: int) -> Array:
    return np.full((16, 16, 3), level, np.uint8)


def test_memory_is_used_again_when_the_last_holder_is_done():
    pool = PicturePool()
    first = pool.take()
    first.hold()
    first.release()
    assert pool.take() is not first
    first.release()
    assert pool.take() is first
    assert pool.made == 2


def test_memory_that_nobody_needs_any_more_is_let_go():
    pool = PicturePool()
    held, *others = [pool.take() for _ in range(3)]
    for picture in others:
        picture.release()
    pool.trim()
    assert (pool.made, len(pool.free)) == (2, 1)
    assert pool.take() in others
    pool.trim()
    held.release()
    assert pool.take() is held
    assert pool.made == 2


def test_one_frame_is_prepared_once_per_plan_and_the_next_one_anew():
    inputs, preprocessor = Inputs(), Counting()
    inputs.frame = 1
    one = inputs.of("a", lambda: preprocessor, pixels(10))
    assert inputs.of("a", Counting, pixels(10)) is one
    assert preprocessor.runs == 1
    inputs.frame = 2
    assert inputs.of("a", Counting, pixels(20)).max() == 20
    assert preprocessor.runs == 2


def test_parts_and_plans_have_inputs_of_their_own():
    picture = PicturePool().take()
    whole, half = picture.inputs_of(None), picture.inputs_of(Region(0, 0, 0.5, 1))
    assert whole is not half
    assert picture.inputs_of(Region(0, 0, 0.5, 1)) is half
    assert whole.of("a", Counting, pixels(1)) is not whole.of("b", Counting, pixels(1))


def test_plans_of_models_that_went_do_not_pile_up():
    inputs, made = Inputs(), list[Any]()
    for number in range(5 * MAX_PLANS):
        inputs.of(f"plan-{number}", lambda: made.append(1) or Counting(), pixels(1))
    assert len(made) == 5 * MAX_PLANS
    assert len(inputs._made) <= MAX_PLANS


def test_a_frame_that_does_not_fit_fails_for_each_and_spoils_nothing():
    inputs, preprocessor = Inputs(), Counting()
    for _ in range(2):
        with pytest.raises(InvalidError):
            inputs.of("a", lambda: preprocessor, np.zeros((4, 4, 2), np.uint8))
    assert inputs.of("a", Counting, pixels(9)).max() == 9


def test_threads_that_ask_at_once_get_one_input():
    inputs, preprocessor = Inputs(), Counting()
    begin, got = threading.Barrier(8), list[Array]()

    def ask() -> None:
        begin.wait()
        got.append(inputs.of("a", lambda: preprocessor, pixels(50)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert preprocessor.runs == 1
    assert all(tensor is got[0] and tensor.max() == 50 for tensor in got)
