"""Damage of pictures: what it does, that it is the same every time, and that JPEG is JPEG."""

import numpy as np
import pytest

from fleet.registry.corruptions import SEVERITIES, corrupted, families
from runtime.inputs import Color


def scene(channels: int = 3, side: int = 48) -> np.ndarray:
    random = np.random.default_rng(5)
    rows, columns = np.mgrid[0:side, 0:side] / side
    light = 100 + 60 * np.sin(9 * rows) + 40 * (columns > 0.5)
    return np.clip(light[:, :, None] * np.linspace(0.8, 1.1, channels) + random.normal(0, 4, (side, side, channels)), 0, 255).astype(
        np.uint8
    )


def damage(picture: np.ndarray, family: str, severity: int, color: Color) -> float:
    return float(np.abs(corrupted(picture, family, severity, seed=1, color=color).astype(float) - picture).mean())


@pytest.mark.parametrize("color", list(Color))
def test_damage_grows_with_its_severity_and_is_the_same_every_time(color):
    picture = scene(1 if color is Color.GRAY else 3)
    before = picture.copy()
    for family in families(color):
        steps = [damage(picture, family, severity, color) for severity in SEVERITIES]
        assert 0 < steps[0] < steps[1] < steps[2], family
        one, two = (corrupted(picture, family, 2, seed=9, color=color) for _ in range(2))
        assert one.dtype == np.uint8
        assert one.shape == picture.shape
        assert (one == two).all()
    assert (picture == before).all()


def test_gray_pictures_have_no_color_to_lose():
    assert set(families(Color.RGB)) - set(families(Color.GRAY)) == {"color"}


def test_the_order_of_the_channels_does_not_change_the_damage():
    picture = scene()
    for family in ("color", "jpeg", "dirt"):
        one = corrupted(picture, family, 2, seed=1, color=Color.RGB)
        two = corrupted(picture[:, :, ::-1], family, 2, seed=1, color=Color.BGR)
        assert np.abs(one.astype(int) - two[:, :, ::-1]).max() <= 1, family


def test_rounding_as_jpeg_is_what_a_jpeg_file_gives():
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV to write a JPEG file")
    picture = scene(1)
    _, data = cv2.imencode(".jpg", picture[:, :, 0], [cv2.IMWRITE_JPEG_QUALITY, 20])
    wanted = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    seen = corrupted(picture, "jpeg", 2, seed=0, color=Color.GRAY)[:, :, 0]
    assert np.abs(seen.astype(int) - wanted).mean() < 1


@pytest.mark.parametrize("side", [1, 5, 9])
def test_small_pictures_can_be_damaged(side):
    for family in families(Color.RGB):
        assert corrupted(scene(side=side), family, 3, seed=0, color=Color.RGB).shape == (side, side, 3)
