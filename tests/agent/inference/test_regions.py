"""The part of the frame that is looked at: never empty, never a copy; what is found in it lies where it lay in the frame."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agent.inference.messages import Box
from agent.inference.regions import Region
from agent.sources.base import Need
from protocol.look import MIN_SIDE
from protocol.views import Roi

SIDES = st.integers(1, 400)
SHARES = st.floats(0, 1)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    x0, y0 = draw(st.floats(0, 1 - MIN_SIDE)), draw(st.floats(0, 1 - MIN_SIDE))
    corners = x0, y0, draw(st.floats(min(1.0, x0 + 2 * MIN_SIDE), 1)), draw(st.floats(min(1.0, y0 + 2 * MIN_SIDE), 1))
    x1, y1 = max(corners[2], x0 + MIN_SIDE), max(corners[3], y0 + MIN_SIDE)
    return Region(x0, y0, min(1.0, x1), min(1.0, y1))


@given(regions(), SIDES, SIDES)
def test_a_region_of_any_frame_has_a_pixel_and_is_no_copy(region: Region, width: int, height: int):
    frame = np.zeros((height, width, 3), np.uint8)
    part = region.of(frame)
    assert part.size > 0
    assert np.shares_memory(part, frame)
    assert part.shape[0] <= height
    assert part.shape[1] <= width


@given(regions(), SHARES, SHARES)
def test_a_box_that_fills_the_region_is_the_region_and_every_other_lies_inside(region: Region, x: float, y: float):
    (whole,) = region.boxes_in_frame([Box("a", 0, 0.5, 0, 0, 1, 1)])
    assert np.allclose((whole.x0, whole.y0, whole.x1, whole.y1), (region.x0, region.y0, region.x1, region.y1))
    (box,) = region.boxes_in_frame([Box("a", 0, 0.5, min(x, y), min(x, y), max(x, y), max(x, y), track=7)])
    assert region.x0 - 1e-9 <= box.x0 <= box.x1 <= region.x1 + 1e-9
    assert (box.label, box.score, box.track) == ("a", 0.5, 7)


def test_a_box_in_the_right_half_is_told_in_shares_of_the_whole_frame():
    (box,) = Region(0.5, 0.0, 1.0, 1.0).boxes_in_frame([Box("car", 1, 0.9, 0.0, 0.25, 0.5, 0.75)])
    assert (box.x0, box.y0, box.x1, box.y1) == (0.5, 0.25, 0.75, 0.75)


def test_a_region_needs_a_larger_frame():
    assert Region(0.5, 0, 1, 1).need_of_frame(Need(224, 224)) == Need(448, 224)


def test_a_frame_has_enough_pixels_when_both_sides_have_or_either_where_it_is_fitted_in():
    assert Need(640, 640).is_met_by(640, 640)
    assert not Need(640, 640).is_met_by(640, 360)
    assert Need(640, 640, is_either=True).is_met_by(640, 360)
    assert not Need(640, 640, is_either=True).is_met_by(639, 360)


@given(regions())
def test_settings_allow_every_region_that_has_a_pixel(region: Region):
    corners = region.x0, region.y0, region.x1, region.y1
    if region.x1 - region.x0 >= MIN_SIDE and region.y1 - region.y0 >= MIN_SIDE:
        assert TypeAdapter(Roi).validate_python(corners) == corners
