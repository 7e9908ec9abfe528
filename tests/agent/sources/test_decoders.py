"""Decoders: what OpenCV is told, which one is chosen, and that a broken one takes only a child along."""

import sys
from pathlib import Path

import pytest

from agent.sources import decoders
from agent.sources.decoder_trial import trial
from agent.sources.decoders import HARDWARE, Choice, Decoder, Tried, Tries, choose, options_of, read_answer, try_in_child

WORKS, BROKEN = Tried(ok=True, text="320x240 decoded"), Tried(ok=False, text="no device")


@pytest.mark.parametrize(
    ("decode", "decoder", "codec", "wanted"),
    [
        ("all", Decoder.CPU, "h264", "rtsp_transport;tcp"),
        ("references", Decoder.CPU, "h264", "rtsp_transport;tcp|avdiscard;nonref"),
        ("keyframes", Decoder.VAAPI, "h264", "rtsp_transport;tcp|avdiscard;nonkey"),
        ("all", Decoder.V4L2M2M, "hevc", "rtsp_transport;tcp|video_codec;hevc_v4l2m2m"),
        ("all", Decoder.CUDA, "h264", "rtsp_transport;tcp|video_codec;h264_cuvid"),
    ],
)
def test_opencv_hears_the_settings_in_its_own_words(decode, decoder, codec, wanted):
    assert options_of(transport="tcp", decode=decode, decoder=decoder, codec=codec) == wanted


def test_auto_takes_the_first_that_works_and_names_none_that_it_did_not_need():
    assert choose("auto", {Decoder.VAAPI: BROKEN, Decoder.V4L2M2M: WORKS}) == Choice(Decoder.V4L2M2M)


def test_without_any_that_works_the_processor_decodes_and_each_says_why_not():
    choice = choose("auto", dict.fromkeys(HARDWARE, BROKEN))
    assert choice.decoder is Decoder.CPU
    assert all(f"{one}: no device" in choice.refused for one in HARDWARE)


def test_only_the_one_that_is_asked_for_is_taken():
    assert choose("cuda", {Decoder.VAAPI: WORKS, Decoder.CUDA: BROKEN}) == Choice(Decoder.CPU, "cuda: no device")


def test_none_asks_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    assert Tries().effective("none") == Choice(Decoder.CPU)


def test_a_decoder_that_this_machine_has_not_is_tried_once_and_replaced_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    if any(Path("/dev").glob("video1*")):
        pytest.skip("this machine has V4L2 devices above /dev/video9, which may decode")
    tries = Tries()
    choice = tries.effective("v4l2m2m")
    assert choice.decoder is Decoder.CPU
    assert choice.refused.startswith("v4l2m2m: it cannot be opened")
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    assert tries.effective("v4l2m2m") == choice


def test_the_trial_itself_finds_that_the_processor_decodes():
    assert trial(Decoder.CPU) == (True, "320x240 decoded")


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("kill -SEGV $$", "died by signal 11"),
        ("echo nonsense", "cannot be read"),
        ("exit 3", "cannot be read"),
        ('echo \'{"ok": true, "text": "fine"}\'', "fine"),
        ("exec sleep 600", "did not answer within"),
    ],
)
def test_whatever_becomes_of_the_child_there_is_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, wanted: str):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert wanted in try_in_child(Decoder.VAAPI, timeout_s=1.0 if "sleep" in script else decoders.TRY_S).text


def test_a_program_that_is_not_there_is_a_verdict_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    assert "could not be tried" in try_in_child(Decoder.VAAPI).text


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"ok": 1, "text": "x"}', b'{"ok": "true"}', b"{" * 5000])
def test_what_is_no_answer_is_a_failure(answer: bytes):
    assert not read_answer(answer).ok
