"""The motion gate: open when something moves, a while after, and now and then; closed over noise and slow light."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from agent.inference.motion import MotionGate
from agent.sources.base import Pixels
from protocol.look import Motion

RULES = Motion(min_area=0.005, threshold=20, hold_s=2, idle_s=30)
NOISE = np.random.default_rng(1)


def scene(*, at: int | None = None, light: int = 90, size: tuple[int, int] = (320, 180)) -> Pixels:
    """A noisy gray wall, width x height, with a bright box of a tenth of its sides at `at` percent of the width."""
    width, height = size
    pixels = np.clip(NOISE.normal(light, 6, (height, width, 3)), 0, 255).astype(np.uint8)
    if at is not None:
        left = width * at // 100
        pixels[height // 3 : height // 3 + height // 10, left : left + width // 10] = 230
    return pixels


@pytest.fixture
def moments() -> Iterator[float]:
    return itertools.count(100.0, 0.25)


def settled(moments: Iterator[float], rules: Motion = RULES) -> MotionGate:
    """A gate that has seen the empty wall for longer than it holds."""
    gate = MotionGate(rules)
    for _ in range(20):
        gate.is_open(scene(), next(moments))
    return gate


def test_the_first_frame_passes(moments):
    assert MotionGate(RULES).is_open(scene(), next(moments))


def test_noise_opens_nothing(moments):
    gate = settled(moments)
    assert not any(gate.is_open(scene(), next(moments)) for _ in range(50))


def test_what_moves_opens_the_gate_and_it_stays_open_for_a_while_after(moments):
    gate = settled(moments)
    assert gate.is_open(scene(at=20), next(moments))
    later = [gate.is_open(scene(), next(moments)) for _ in range(15)]
    assert later == [True] * 8 + [False] * 7, "2 s at 4 frames per second"


def test_what_is_too_small_opens_nothing(moments):
    gate = settled(moments, Motion(min_area=0.05, idle_s=1000))
    assert not gate.is_open(scene(at=20), next(moments))


def test_what_comes_to_rest_becomes_background(moments):
    gate = settled(moments, replace(RULES, idle_s=1e4))
    passed = [gate.is_open(scene(at=40), next(moments)) for _ in range(200)]
    assert passed[0]
    assert not any(passed[-20:])


def test_slow_light_opens_nothing(moments):
    gate = settled(moments, replace(RULES, idle_s=1e4))
    assert not any(gate.is_open(scene(light=90 + index // 10), next(moments)) for index in range(300))


def test_a_scene_in_which_nothing_moves_is_looked_at_now_and_then():
    gate = MotionGate(RULES)
    passed = [second for second in range(125) if gate.is_open(scene(), 100.0 + second)]
    assert passed == [0, 1, 2, 32, 62, 92, 122]


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (320, 240)])
def test_any_shape_of_picture_is_looked_at_and_another_one_is_all_new(moments, size):
    gate = settled(moments)
    assert gate.is_open(scene(size=size), next(moments))


def test_a_very_large_picture_of_the_same_scene_is_no_motion(moments):
    gate = settled(moments)
    assert not gate.is_open(np.full((4320, 7680, 3), 90, np.uint8), next(moments))


def test_a_part_of_a_picture_and_a_gray_one_are_looked_at(moments):
    gate = settled(moments)
    assert gate.is_open(scene()[10:100, 20:250], next(moments))
    assert gate.is_open(scene()[:, :, 0], next(moments))
