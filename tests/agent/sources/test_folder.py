"""A folder of pictures: in order, at a pace, and a broken one stops nothing."""

import threading
from pathlib import Path

import numpy as np
import pytest
from simulators.clock import FakeClock
from simulators.videos import BLUE, GREEN, RED, write_picture

from agent.orders import FolderSource
from agent.sources.base import DecodeError, SourceEndedError, SourceLostError
from agent.sources.folder import PictureFolder

NO_STOP = threading.Event()


def folder(path: Path, *, loop: bool = False, fps: float = 5.0, clock: FakeClock | None = None) -> PictureFolder:
    return PictureFolder(FolderSource(kind="folder", path=str(path), loop=loop, fps=fps), clock=clock or FakeClock())


def color_of_next(source: PictureFolder) -> int:
    assert source.grab(NO_STOP) is not None
    return int(source.retrieve(np.empty(0, np.uint8)).mean(axis=(0, 1)).argmax())


def test_pictures_come_in_the_order_of_their_names_and_other_files_are_left_out(tmp_path: Path):
    write_picture(tmp_path / "2.png", GREEN)
    write_picture(tmp_path / "1.bmp", RED)
    write_picture(tmp_path / "3.JPG", BLUE)
    (tmp_path / "readme.txt").write_text("no picture")
    source = folder(tmp_path)
    source.open()
    assert [color_of_next(source) for _ in range(3)] == [2, 1, 0]
    with pytest.raises(SourceEndedError, match="ended after 3 pictures"):
        source.grab(NO_STOP)


def test_pictures_come_at_the_wished_pace(tmp_path: Path):
    for index in range(5):
        write_picture(tmp_path / f"{index}.png", RED)
    clock = FakeClock()
    source = folder(tmp_path, fps=4.0, clock=clock)
    source.open()
    for _ in range(5):
        assert source.grab(NO_STOP) is not None
    assert clock.monotonic() == pytest.approx(1.0)


def test_a_slow_pace_does_not_hold_the_caller_for_longer_than_a_second(tmp_path: Path):
    write_picture(tmp_path / "1.png", RED)
    write_picture(tmp_path / "2.png", RED)
    clock = FakeClock()
    source = folder(tmp_path, fps=0.1, clock=clock)
    source.open()
    assert source.grab(NO_STOP) is not None
    waits = 0
    while source.grab(NO_STOP) is None:
        waits += 1
    assert waits == 9


def test_a_broken_picture_is_named_and_the_next_one_is_fine(tmp_path: Path):
    (tmp_path / "1.png").write_bytes(b"broken")
    write_picture(tmp_path / "2.png", GREEN)
    source = folder(tmp_path)
    source.open()
    assert source.grab(NO_STOP) is not None
    with pytest.raises(DecodeError, match=r"1\.png \(6 bytes\)"):
        source.retrieve(np.empty(0, np.uint8))
    assert color_of_next(source) == 1


def test_a_loop_sees_pictures_that_came_in_between(tmp_path: Path):
    write_picture(tmp_path / "1.png", RED)
    source = folder(tmp_path, loop=True)
    source.open()
    assert color_of_next(source) == 2
    write_picture(tmp_path / "0.png", BLUE)
    source.open()
    assert source.repeats
    assert color_of_next(source) == 0


def test_a_missing_and_an_empty_folder_are_named(tmp_path: Path):
    with pytest.raises(SourceLostError, match=r"gone cannot be listed: No such file"):
        folder(tmp_path / "gone").open()
    with pytest.raises(SourceLostError, match="holds no picture"):
        folder(tmp_path).open()
