"""Pictures with what was found in them: everything is drawn where it is, the frame stays as it was, and the JPEG is never too large."""

import cv2
import numpy as np
import pytest

from agent.sources.base import Pixels
from agent.sources.drawing import Marked, Shape, annotated_jpeg

LIMIT = 150 << 10


def decoded(data: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def drawn(pixels: Pixels, **what) -> Pixels:
    return decoded(annotated_jpeg(pixels, **{"lines": (), "boxes": (), "shapes": (), "max_bytes": LIMIT, **what}).data)


def test_a_box_is_drawn_in_green_where_it_is_and_nowhere_else():
    picture = drawn(np.zeros((400, 400, 3), np.uint8), boxes=[Marked((0.25, 0.5, 0.75, 0.75), "")])
    greens = picture[:, :, 1].astype(int) - picture[:, :, 2] > 80
    rows, columns = np.nonzero(greens)
    assert abs(rows.min() - 200) <= 3
    assert abs(rows.max() - 300) <= 3
    assert abs(columns.min() - 100) <= 3
    assert abs(columns.max() - 300) <= 3
    assert not greens[210:290, 110:290].any()


def test_a_zone_is_closed_and_a_line_is_not():
    corners = ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9))
    black = np.zeros((200, 200, 3), np.uint8)
    assert drawn(black, shapes=[Shape(corners, is_closed=True)])[100, 100].sum() > 200
    assert drawn(black, shapes=[Shape(corners, is_closed=False)])[100, 100].sum() < 60


def test_text_is_written_and_letters_that_the_font_has_not_do_no_harm():
    black = np.zeros((200, 300, 3), np.uint8)
    assert drawn(black, lines=["person 0.98"]).max() > 200
    assert drawn(black, lines=["Fußgänger 人 0.98"], boxes=[Marked((0, 0, 1, 1), "人\n\0")]).max() > 200


def test_the_frame_stays_as_it_was():
    pixels = np.full((100, 100, 3), 7, np.uint8)
    annotated_jpeg(
        pixels, lines=["a"], boxes=[Marked((0, 0, 1, 1), "b")], shapes=[Shape(((0, 0), (1, 1)), is_closed=False)], max_bytes=LIMIT
    )
    assert (pixels == 7).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (2160, 3840), (200, 1)])
def test_pictures_of_any_size_fit(size):
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    data = annotated_jpeg(noise, lines=["noise"], boxes=[Marked((0, 0, 1, 1), "all")], shapes=(), max_bytes=LIMIT)
    assert len(data.data) <= LIMIT
    assert decoded(data.data).shape[:2] == (data.height, data.width)
    assert data.width <= 1280


def test_a_picture_that_cannot_be_small_enough_is_an_error():
    noise = np.random.default_rng(1).integers(0, 256, (300, 300, 3), np.uint8)
    with pytest.raises(ValueError, match="does not fit 100 bytes"):
        annotated_jpeg(noise, lines=(), boxes=(), shapes=(), max_bytes=100)
