"""Streams: the smaller one where it suffices, JPEG no larger than needed, and a decoder that does not work replaced."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import cv2
import numpy as np
import pytest
from simulators.mjpeg import SECRET, MjpegCamera, jpeg
from simulators.videos import GREEN, RED
from waiting import wait_until

from agent.orders import StreamSource
from agent.sources.base import DecodeError, Need
from agent.sources.decoders import Choice, Decoder, Tries
from agent.sources.opencv import Opening
from agent.sources.stream import Stream
from protocol.clock import SystemClock

NO_STOP = threading.Event()
USER = SECRET.replace("@", "%40").replace("p%40ss:", "p%40ss%3A")


def with_user(url: str) -> str:
    return url.replace("//", f"//{USER}@")


@pytest.fixture
def cameras() -> Iterator[Callable[[bytes], MjpegCamera]]:
    with ExitStack() as stack:
        yield lambda picture: stack.enter_context(MjpegCamera(picture))


@pytest.fixture
def stream() -> Iterator[Callable[..., Stream]]:
    made: list[Stream] = []

    def make(main: MjpegCamera, sub: MjpegCamera | None = None, *, tries: Tries | None = None, **settings: Any) -> Stream:
        config = StreamSource(kind="stream", url=with_user(main.url), sub_url=with_user(sub.url) if sub else None, **settings)
        made.append(Stream(config, clock=SystemClock(), read_timeout_ms=20_000, tries=tries or Tries()))
        return made[-1]

    yield make
    for one in made:
        one.close()


def frame_of(source: Stream) -> np.ndarray:
    assert source.grab(NO_STOP) is not None
    return source.retrieve(np.empty(0, np.uint8))


def test_the_sub_stream_is_used_while_it_has_enough_pixels(cameras, stream):
    source = stream(cameras(jpeg(RED, size=(640, 480))), cameras(jpeg(GREEN, size=(160, 120))))
    assert source.suits(Need(96, 96))
    source.open()
    assert source.suits(Need(96, 96))
    assert frame_of(source)[0, 0].argmax() == 1
    assert "sub-stream" in source.decoder
    assert "160x120" in source.decoder


def test_a_model_that_needs_more_gets_the_main_stream_and_one_that_needs_less_the_other_again(cameras, stream):
    sub = cameras(jpeg(GREEN, size=(160, 120)))
    source = stream(cameras(jpeg(RED, size=(640, 480))), sub)
    source.open()
    assert source.suits(None), "without a model the cheaper one is open"
    assert not source.suits(Need(224, 224))
    asked = sub.requests
    source.open()
    assert sub.requests == asked, "its size is known"
    assert source.suits(Need(224, 224))
    assert frame_of(source)[0, 0].argmax() == 2
    assert "sub-stream" not in source.decoder
    assert not source.suits(Need(100, 100))
    source.open()
    assert frame_of(source)[0, 0].argmax() == 1


def test_a_sub_stream_that_cannot_be_opened_is_said_and_the_main_one_is_used(cameras, stream):
    main, sub = cameras(jpeg(RED)), cameras(jpeg(GREEN))
    sub.is_cut.set()
    source = stream(main, sub)
    source.open()
    assert frame_of(source)[0, 0].argmax() == 2
    assert "cannot be opened" in source.text
    assert "main stream" in source.text
    assert "p%40ss" not in source.text
    assert source.suits(Need(10, 10)), "it is not opened again for that"


def test_jpeg_is_decoded_as_small_as_the_model_allows(cameras, stream):
    source = stream(cameras(jpeg(RED, size=(640, 480))))
    source.open()
    sizes = []
    for need in (None, Need(640, 480), Need(224, 224), Need(96, 96), Need(10, 10)):
        source.suits(need)
        sizes.append(frame_of(source).shape[:2])
    assert sizes == [(480, 640), (480, 640), (240, 320), (120, 160), (60, 80)]


def test_a_jpeg_that_is_broken_is_a_frame_that_cannot_be_decoded_and_the_next_one_is_fine(cameras, stream):
    camera = cameras(jpeg(RED))
    source = stream(camera)
    source.open()
    good = frame_of(source)
    camera.picture = b"\xff\xd8" + bytes(200) + b"\xff\xd9"

    def is_refused() -> bool:
        try:
            frame_of(source)
        except DecodeError as error:
            return "p%40ss" not in str(error)
        return False

    wait_until(is_refused, what="the broken frame")
    camera.picture = jpeg(GREEN)

    def is_green() -> bool:
        try:
            return frame_of(source)[0, 0].argmax() == 1
        except DecodeError:
            return False

    wait_until(is_green, what="a good frame after the broken one")
    assert good.shape == (48, 64, 3)


class Promising(Tries):
    """Says that a decoder works, whatever this machine has: what a stream of another kind than the trial's may turn out to refuse."""

    def effective(self, wanted: str) -> Choice:
        return Choice(Decoder(wanted))


@pytest.mark.parametrize("hardware", ["cuda", "v4l2m2m", "vaapi"])
def test_a_decoder_that_cannot_take_this_stream_is_replaced_by_the_processor_and_that_is_told(cameras, stream, hardware):
    source = stream(cameras(jpeg(RED)), hardware=hardware, tries=Promising())
    source.open()
    assert frame_of(source)[0, 0].argmax() == 2
    assert source.refused.startswith(f"{hardware}: decodes no mjpeg") or "does not open" in source.refused
    assert source.decoder.startswith("cpu: mjpeg")


def test_what_is_asked_of_ffmpeg_for_one_stream_does_not_reach_another_that_opens_at_the_same_time(tmp_path, monkeypatch):
    seen: list[tuple[str, str]] = []
    both = threading.Barrier(2, timeout=60)

    class Capture:
        def __init__(self, target: str, _backend: int, _parameters: list[int]) -> None:
            if target == "slow":
                both.wait()
            seen.append((target, __import__("os").environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"]))

        def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
            return True

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    slow = threading.Thread(target=Opening(cv2.CAP_FFMPEG, "a;1").open, args=("slow",))
    other = threading.Thread(target=Opening(cv2.CAP_FFMPEG, "b;2").open, args=("other",))
    slow.start()
    wait_until(lambda: both.n_waiting == 1)
    other.start()
    same = threading.Thread(target=both.wait)
    same.start()
    for thread in (slow, other, same):
        thread.join(60)
    assert seen == [("slow", "a;1"), ("other", "b;2")]
