"""Videos, cameras and streams through OpenCV: real files, a real HTTP camera; errors name what was seen and hide passwords."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from simulators.mjpeg import MjpegCamera, jpeg
from simulators.videos import BLUE, GREEN, RED, write_picture, write_video

from agent.config import PipelineConfig
from agent.orders import CameraSource, StreamSource, VideoSource
from agent.settings.overlaying import resolve_secrets
from agent.sources.base import Array, DecodeError, Source, SourceEndedError, SourceLostError
from agent.sources.opencv import Camera, VideoFile, decode_jpeg, load_cv2, read_picture
from agent.sources.stream import Stream
from protocol.clock import AcceleratedClock, SystemClock

NO_STOP = threading.Event()


def fast_clock() -> AcceleratedClock:
    """A hundred times as fast, so that a video of seconds plays in milliseconds."""
    now = datetime.now(UTC)
    return AcceleratedClock(start=now - timedelta(days=1), speed=100.0, origin=now)


def video(path: Path, *, loop: bool = False) -> VideoFile:
    return VideoFile(VideoSource(kind="video", path=str(path), loop=loop), clock=fast_clock())


def grab_on(source: Source, moments: list[float] | None = None) -> None:
    """Grab until that raises."""
    while True:
        grabbed = source.grab(NO_STOP)
        if grabbed is not None and moments is not None:
            moments.append(grabbed.media_s)


def collect(source: VideoFile, frames: list[Array]) -> None:
    into = np.empty((48, 64, 3), np.uint8)
    while True:
        if source.grab(NO_STOP) is not None:
            frames.append(source.retrieve(into).copy())


def play(source: VideoFile) -> list[Array]:
    """Copies of all frames until the source ends."""
    frames: list[Array] = []
    with pytest.raises(SourceEndedError):
        collect(source, frames)
    return frames


def test_a_video_gives_every_frame_in_bgr_order_and_then_ends(tmp_path: Path):
    source = video(write_video(tmp_path / "v.avi", [BLUE, GREEN, RED] * 5))
    source.open()
    frames = play(source)
    assert [int(frame.mean(axis=(0, 1)).argmax()) for frame in frames] == [0, 1, 2] * 5
    source.close()


def test_frames_are_decoded_in_place(tmp_path: Path):
    source = video(write_video(tmp_path / "v.avi", [BLUE] * 3))
    source.open()
    into = np.empty((48, 64, 3), np.uint8)
    assert source.grab(NO_STOP) is not None
    assert np.shares_memory(source.retrieve(into), into)
    source.close()


def test_a_buffer_of_another_size_is_replaced(tmp_path: Path):
    source = video(write_video(tmp_path / "v.avi", [BLUE] * 3))
    source.open()
    assert source.grab(NO_STOP) is not None
    assert source.retrieve(np.empty((10, 10, 3), np.uint8)).shape == (48, 64, 3)
    assert source.retrieve(np.empty(0, np.uint8)).shape == (48, 64, 3)
    source.close()


def test_a_video_plays_at_its_own_pace(tmp_path: Path):
    clock = fast_clock()
    source = VideoFile(VideoSource(kind="video", path=str(write_video(tmp_path / "v.avi", [BLUE] * 60, fps=30))), clock=clock)
    source.open()
    began = clock.monotonic()
    play(source)
    assert clock.monotonic() - began >= 59 / 30
    source.close()


def test_media_time_goes_on_over_a_loop(tmp_path: Path):
    source = video(write_video(tmp_path / "v.avi", [BLUE] * 3, fps=10), loop=True)
    moments: list[float] = []
    for _ in range(3):
        source.open()
        with pytest.raises(SourceEndedError):
            grab_on(source, moments)
    assert moments == pytest.approx([0.1 * index for index in range(1, 10)])
    source.close()


def test_a_missing_video_is_named(tmp_path: Path):
    with pytest.raises(SourceLostError, match=r"no video file .*gone\.mp4"):
        video(tmp_path / "gone.mp4").open()


def test_a_file_that_is_no_video_is_named(tmp_path: Path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"not a video at all" * 100)
    with pytest.raises(SourceLostError, match=r"v\.mp4 cannot be opened"):
        video(path).open()


def test_an_empty_video_is_lost_and_not_a_tight_loop(tmp_path: Path):
    path = tmp_path / "v.avi"
    data = write_video(path, [BLUE] * 3).read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])
    source = video(path, loop=True)

    def open_and_grab() -> None:
        source.open()
        source.grab(NO_STOP)

    with pytest.raises(SourceLostError, match=r"v\.avi"):
        open_and_grab()
    source.close()


def test_a_video_that_is_cut_short_ends_and_says_how_much_is_missing(tmp_path: Path):
    path = write_video(tmp_path / "v.avi", [BLUE, GREEN] * 50)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = video(path)
    source.open()
    frames = play(source)
    assert 10 < len(frames) < 90
    if source.text:
        assert f"after {len(frames)} of the 100 frames" in source.text
    source.close()


def test_a_stopped_source_gives_nothing_more(tmp_path: Path):
    stop = threading.Event()
    stop.set()
    source = video(write_video(tmp_path / "v.avi", [BLUE] * 3))
    source.open()
    assert source.grab(stop) is None
    source.close()
    source.close()


def test_a_missing_camera_is_named_with_those_that_exist():
    camera = Camera(CameraSource(kind="camera", device="/dev/video-that-is-not-there"), clock=SystemClock())
    with pytest.raises(SourceLostError, match=r"no /dev/video-that-is-not-there\. Cameras found"):
        camera.open()
    camera.close()


def test_a_device_that_is_no_camera_cannot_be_opened():
    camera = Camera(CameraSource(kind="camera", device="/dev/null", width=640, height=480), clock=SystemClock())
    with pytest.raises(SourceLostError, match="/dev/null cannot be opened"):
        camera.open()


def stream(url: str, secret: str | None = None, *, read_timeout_ms: int = 60_000) -> Stream:
    config = StreamSource(kind="stream", url=url, secret=None if secret is None else "camera")
    pipeline = PipelineConfig(name="front", line="color", source=config)
    (resolved,), errors = resolve_secrets((pipeline,), {} if secret is None else {"camera": secret})
    assert not errors
    assert isinstance(resolved.source, StreamSource)
    return Stream(resolved.source, clock=SystemClock(), read_timeout_ms=read_timeout_ms)


def test_a_stream_with_a_password_is_read(capfd: pytest.CaptureFixture[str]):
    with MjpegCamera(jpeg(GREEN)) as camera:
        source = stream(camera.url, "viewer:p@ss:word")
        source.open()
        assert source.grab(NO_STOP) is not None
        assert int(source.retrieve(np.empty(0, np.uint8)).mean(axis=(0, 1)).argmax()) == 1
        source.close()
    assert "p@ss" not in capfd.readouterr().err


def test_a_wrong_password_is_refused_and_neither_error_nor_log_shows_it(capfd: pytest.CaptureFixture[str]):
    with MjpegCamera(jpeg(GREEN)) as camera, pytest.raises(SourceLostError) as caught:
        stream(camera.url, "viewer:hunter2").open()
    assert "hunter2" not in str(caught.value)
    assert "***@127.0.0.1" in str(caught.value)
    assert "hunter2" not in capfd.readouterr().err


def test_a_stream_that_is_cut_is_lost_and_opens_again():
    with MjpegCamera(jpeg(RED)) as camera:
        source = stream(camera.url, "viewer:p@ss:word")
        source.open()
        assert source.grab(NO_STOP) is not None
        camera.is_cut.set()
        with pytest.raises(SourceLostError, match="broke off"):
            grab_on(source)
        with pytest.raises(SourceLostError, match="cannot be opened"):
            source.open()
        camera.is_cut.clear()
        source.open()
        assert source.grab(NO_STOP) is not None
        source.close()


def test_a_stream_that_falls_silent_is_lost_after_its_read_timeout():
    with MjpegCamera(jpeg(RED)) as camera:
        source = stream(camera.url, "viewer:p@ss:word", read_timeout_ms=3000)
        source.open()
        assert source.grab(NO_STOP) is not None
        camera.is_silent.set()
        with pytest.raises(SourceLostError, match=r"silent for 3 s"):
            grab_on(source)
        source.close()


def test_a_stream_that_changes_its_resolution_goes_on():
    with MjpegCamera(jpeg(RED, size=(64, 48))) as camera:
        source = stream(camera.url, "viewer:p@ss:word")
        source.open()
        into = np.empty(0, np.uint8)
        for index in range(40):
            camera.picture = jpeg(RED, size=(64, 48) if index < 10 else (128, 96))
            assert source.grab(NO_STOP) is not None
            into = source.retrieve(into)
            assert int(into.mean(axis=(0, 1)).argmax()) == 2
        source.close()


def test_only_stream_addresses_are_opened(tmp_path: Path):
    with pytest.raises(SourceLostError, match=r"no stream address.*rtsp://"):
        stream(f"file://{tmp_path}/v.avi").open()


def test_a_picture_is_read_and_a_broken_one_is_named(tmp_path: Path):
    assert read_picture(write_picture(tmp_path / "good.png", RED)).shape == (48, 64, 3)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("broken.jpg", "empty.png", "missing.png"):
        with pytest.raises(DecodeError, match=name):
            read_picture(tmp_path / name)


def test_a_jpeg_that_was_cut_is_named_as_such_and_one_with_something_behind_it_is_read(tmp_path: Path):
    data = write_picture(tmp_path / "whole.jpg", RED).read_bytes()
    cut = tmp_path / "cut.jpg"
    for size in (2, len(data) // 2, len(data) - 2, len(data) - 1):
        cut.write_bytes(data[:size])
        with pytest.raises(DecodeError, match=r"cut\.jpg \(\d+ bytes\) is a JPEG without an end"):
            read_picture(cut)
        with pytest.raises(DecodeError, match=r"A frame of gate \(\d+ bytes\) is a JPEG without an end"):
            decode_jpeg(np.frombuffer(data[:size], np.uint8), reduction=4, name="gate")
    (tmp_path / "padded.jpg").write_bytes(data + bytes(512))
    assert read_picture(tmp_path / "padded.jpg").shape == (48, 64, 3)
    assert decode_jpeg(np.frombuffer(data + b"\r\n", np.uint8), reduction=2, name="gate").shape == (24, 32, 3)


def test_opencv_uses_one_thread():
    load_cv2()
    assert cv2.getNumThreads() == 1
