"""Autotune: what replaces the default and what does not, on real runtimes in real children."""

import dataclasses
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from example_models import INSTALLED, READABLE, make_slot

from agent.config import RuntimeConfig
from agent.inference.autotune import Wishes, has_something_to_gain, setups_of, tune, usable_candidates
from agent.inference.tuner import Tuner
from agent.inference.tuning import Setup, Speed, Tuning, Tunings, is_better
from protocol.canonical import digest_of
from runtime.base import BackendError, BackendOptions, Candidate
from runtime.manifest import from_bytes, to_bytes
from runtime.records import TUNING_FILE

DEFAULT = Speed(cpu_ms=10.0, p50_ms=10.0, p99_ms=20.0)
#: A stand-in for tflite-runtime: LiteRT's interpreter, but each inference burns the processor for 20 ms more.
SLOW_RUNTIME = """
import time
from ai_edge_litert.interpreter import OpResolverType, load_delegate
from ai_edge_litert.interpreter import Interpreter as _Interpreter
class Interpreter(_Interpreter):
    def invoke(self):
        end = time.perf_counter() + 0.020
        while time.perf_counter() < end: pass
        super().invoke()
"""


class TestTheRule:
    @pytest.mark.parametrize(
        ("speed", "frame_ms", "wins"),
        [
            (Speed(5.0, 9.0, 18.0), 40.0, True),  # cheaper, and no slower
            (Speed(9.8, 9.0, 18.0), 40.0, False),  # hardly cheaper
            (Speed(5.0, 10.5, 18.0), 40.0, False),  # cheaper, but slower in the middle
            (Speed(5.0, 9.0, 30.0), 40.0, False),  # cheaper, but slower at the slow end, though in time
            (Speed(15.0, 5.0, 10.0), 40.0, False),  # quicker and dearer, though the default is in time
            (Speed(15.0, 5.0, 10.0), 15.0, True),  # the default misses the frame, this one does not
            (Speed(15.0, 9.5, 18.0), 15.0, False),  # both miss it, hardly nearer
            (Speed(15.0, 8.0, 18.0), 15.0, True),  # both miss it, clearly nearer
            (Speed(5.0, 5.0, 10.0), 5.0, True),
        ],
    )
    def test_less_processor_time_in_time_or_more_to_be_in_time_and_never_slower(self, speed: Speed, frame_ms: float, wins: bool):  # noqa: FBT001
        assert is_better(speed, DEFAULT, frame_ms=frame_ms) is wins

    def test_the_default_does_not_beat_itself(self):
        assert not is_better(DEFAULT, DEFAULT, frame_ms=40.0)
        assert not is_better(DEFAULT, DEFAULT, frame_ms=1.0)


class TestSetups:
    def test_threads_are_tried_where_there_is_a_pool_of_them(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        setups = setups_of([Candidate("onnx", "cuda"), Candidate("onnx", "openvino"), Candidate("onnx")], BackendOptions(threads=3))
        assert [str(one) for one in setups if "cuda" in str(one)] == ["onnx:cuda on 3 threads"]
        assert [one.threads for one in setups if "openvino" in one.candidate] == [1, 2, 3, 4]
        assert [one.threads for one in setups if one.candidate == "onnx:cpu"] == [1, 2, 3, 4]

    def test_one_processor_has_one_thread(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        assert setups_of([Candidate("onnx")], BackendOptions()) == [Setup("onnx:cpu", 1)]

    def test_a_single_candidate_in_time_has_nothing_to_gain(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        one, two = [Candidate("onnx")], [Candidate("onnx", "cuda"), Candidate("onnx")]
        assert not has_something_to_gain(one, p99_ms=10, frame_ms=40)
        assert has_something_to_gain(one, p99_ms=50, frame_ms=40)
        assert has_something_to_gain(two, p99_ms=10, frame_ms=40)


class TestKeeping:
    TUNING = Tuning("sha256:a", Setup("onnx:cpu", 2), Setup("onnx:cpu", 1), "because", 1.0, 2.0)

    def test_a_result_is_found_until_the_device_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        Tunings(tmp_path).keep(self.TUNING)
        assert Tunings(tmp_path).find("sha256:a") == self.TUNING
        assert Tunings(tmp_path).find("sha256:b") is None
        assert Tunings(tmp_path, threads=2).find("sha256:a") is None, "another default"
        monkeypatch.setattr(os, "cpu_count", lambda: 99)
        assert Tunings(tmp_path).find("sha256:a") is None

    @pytest.mark.parametrize("content", [b"{", b'{"sha256:a": {}}', b'{"sha256:a": {"setup": {"candidate": "x", "threads": 1000}}}'])
    def test_a_damaged_file_holds_nothing(self, content: bytes, tmp_path: Path):
        (tmp_path / TUNING_FILE).write_bytes(content)
        assert Tunings(tmp_path).find("sha256:a") is None


@pytest.mark.parametrize("variant", READABLE)
class TestMeasuring:
    def test_every_setup_is_measured_beside_the_default_and_the_result_is_kept(self, variant: str, tmp_path: Path):
        slot = make_slot(tmp_path / "slot", variant)
        found = tune(slot, wishes=Wishes(budget_s=120.0), records_dir=tmp_path / "records")
        setups = setups_of(usable_candidates(slot, BackendOptions()), BackendOptions())
        assert {match.setup for match in found.matches} == set(setups) - {found.default}
        for match in found.matches:
            assert match.speed is not None, match.text
            assert 0 < match.speed.p50_ms <= match.speed.p99_ms
            assert match.speed.cpu_ms > 0
        assert found.is_default or is_better(found.matches[-1].speed, found.matches[-1].default, frame_ms=40.0)
        kept = Tunings(tmp_path / "records").find(found.artifact)
        assert kept == dataclasses.replace(found, matches=())
        assert found.artifact == digest_of((slot / "manifest.json").read_bytes())

    def test_without_time_the_default_stays_and_nothing_is_kept(self, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        found = tune(make_slot(tmp_path / "slot", variant), wishes=Wishes(budget_s=0.0), records_dir=tmp_path / "records")
        assert found.is_default
        assert found.text.endswith("is used up.")
        assert Tunings(tmp_path / "records").find(found.artifact) is None

    def test_a_hot_device_is_not_measured(self, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        found = tune(make_slot(tmp_path / "slot", variant), wishes=Wishes(may_not=lambda: "It is hot."), records_dir=tmp_path / "records")
        assert found.is_default
        assert found.text.endswith("stays. It is hot.")
        assert Tunings(tmp_path / "records").find(found.artifact) is None

    def test_a_model_that_answers_otherwise_is_not_tuned(self, variant: str, tmp_path: Path):
        with pytest.raises(BackendError, match="answers otherwise"):
            tune(make_slot(tmp_path / "slot", variant, "1.2"))


@pytest.mark.skipif("litert" not in INSTALLED or "tflite" in INSTALLED, reason="stands in for tflite-runtime beside LiteRT")
def test_a_back_end_that_is_much_cheaper_replaces_the_default_after_two_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "path" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(SLOW_RUNTIME)
    about = tmp_path / "path" / "tflite_runtime-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tflite-runtime\nVersion: 9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    slot = make_slot(tmp_path / "slot", "tflite")
    manifest = replace(from_bytes((slot / "manifest.json").read_bytes()), backends=("tflite", "litert"))
    (slot / "manifest.json").write_bytes(to_bytes(manifest))
    found = tune(slot, wishes=Wishes(budget_s=120.0))
    assert (found.default, found.setup) == (Setup("tflite:cpu"), Setup("litert:cpu"))
    assert "litert:cpu on 1 thread in place of tflite:cpu on 1 thread" in found.text
    assert [match.setup for match in found.matches] == [Setup("litert:cpu")] * 2
    assert found.matches[-1].text.startswith("Once more")


@pytest.mark.skipif("onnx" not in INSTALLED, reason="ONNX Runtime is not installed")
class TestAtInstallation:
    #: The processor under ONNX Runtime's own name for it: a second candidate.
    TWO = RuntimeConfig(providers=("CPUExecutionProvider",), autotune_s=120.0)

    def tune(self, tmp_path: Path, runtime: RuntimeConfig, *, p99_ms: float = 1.0, root: Path = Path("/nowhere")) -> Path:
        tuner = Tuner(runtime, tmp_path / "records", pressure_root=root)
        slot = make_slot(tmp_path / "slot", "onnx")
        tuner.tune_when_worth_it(slot, p99_ms, lambda line: {"digits": 40.0}[line])
        found = Tunings(tmp_path / "records", threads=runtime.threads).find(digest_of((slot / "manifest.json").read_bytes()))
        choice = tuner.choice(digest_of((slot / "manifest.json").read_bytes()))
        assert (choice is None) == (found is None or found.is_default)
        return tmp_path / "records" / TUNING_FILE

    def test_a_second_candidate_is_measured_once(self, tmp_path: Path):
        kept = self.tune(tmp_path, self.TWO)
        before = kept.stat().st_mtime_ns
        shutil.rmtree(tmp_path / "slot")
        assert self.tune(tmp_path, self.TWO).stat().st_mtime_ns == before

    def test_a_default_without_rival_that_is_in_time_is_left_alone(self, tmp_path: Path):
        assert not self.tune(tmp_path, RuntimeConfig()).exists()

    def test_it_can_be_switched_off(self, tmp_path: Path):
        assert not self.tune(tmp_path, self.TWO.model_copy(update={"autotune": False})).exists()

    def test_a_hot_device_keeps_the_default_and_may_try_again_later(self, tmp_path: Path):
        zone = tmp_path / "root/sys/class/thermal/thermal_zone0"
        zone.mkdir(parents=True)
        (zone / "temp").write_text("99000")
        assert not self.tune(tmp_path, self.TWO, root=tmp_path / "root").exists()

    def test_a_broken_release_is_no_reason_to_fail(self, tmp_path: Path):
        (tmp_path / "slot").mkdir()
        Tuner(self.TWO, tmp_path).tune_when_worth_it(tmp_path / "slot", 1.0, lambda _: 40.0)
