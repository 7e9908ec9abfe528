"""The real inference process on real video: it is killed, hung, overloaded and swapped, and goes on inferring."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import example_models
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from processes import has_open, is_running
from simulators.color_models import Trait, make_slot
from simulators.plain_broker import PlainBroker
from simulators.videos import BLUE, GREEN, RED, write_video
from waiting import PATIENCE_S, wait_until

from agent.config import RuntimeConfig
from agent.inference.messages import Beat, Finding, PipelineStats, Prediction, WorkerState
from agent.inference.process import InferenceProcess, Timings, _artifact_of
from agent.inference.tuning import Setup, Tuning, Tunings
from agent.orders import PipelineOrder
from agent.sources.states import SourceState
from protocol.clock import SystemClock
from protocol.decoding import decode, encode
from runtime.selftest import Figures

DARK_GREEN = (0, 90, 0)
#: Frames that a model with the trait HANGS infers, a second and a half of them: the first are seen to be inferred also on a slow machine.
HARMLESS = [DARK_GREEN] * 45
QUICK = Timings(beat_s=0.05, restart_first_s=0.05, restart_max_s=0.5, settled_s=60.0, activate_s=30.0)


@dataclass
class Total:
    """Stats added up."""

    grabbed: int = 0
    inferred: int = 0
    unsent: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    source_state: SourceState = SourceState.OPENING

    def add(self, stats: PipelineStats) -> None:
        self.grabbed += stats.grabbed
        self.inferred += stats.inferred
        self.unsent += stats.unsent
        self.dropped.update(stats.dropped)
        self.source_state = stats.source_state


class Bench:
    """An inference process and everything it predicted."""

    def __init__(self, timings: Timings = QUICK, records_dir: Path | None = None, **runtime: object) -> None:
        self.predictions: list[Prediction] = []
        self._stuck: list[Beat] = []
        self._total = Total()
        self.may_listen = threading.Event()
        self.may_listen.set()
        self.process = InferenceProcess(
            runtime=RuntimeConfig.model_validate(runtime),
            clock=SystemClock(),
            on_prediction=self._heard,
            timings=timings,
            records_dir=records_dir,
        )
        self.process.start()

    def _heard(self, prediction: Prediction) -> None:
        self.may_listen.wait(PATIENCE_S)
        self.predictions.append(prediction)

    def run(self, *pipelines: PipelineOrder) -> None:
        self.process.configure(pipelines)

    def more(self, count: int = 3, *, release: str | None = None) -> list[Prediction]:
        """The next predictions, `count` of them, of the release if one is named."""
        first = len(self.predictions)

        def fresh() -> list[Prediction]:
            return [one for one in self.predictions[first:] if release in (None, one.release)]

        return wait_until(lambda: len(fresh()) >= count and fresh(), what=f"{count} predictions of {release}")

    def total(self) -> "Total":
        """All stats of the only pipeline so far."""
        for stats in self.process.stats():
            self._total.add(stats)
        return self._total

    def is_stuck(self) -> bool:
        """Whether the back end of the first line does not return: the same inference was running in so many beats."""
        child = self.process._child
        if child is None or child.beat is None or not child.beat.pipelines:
            return False
        count = child.beat.pipelines[0]
        if not count.is_inferring or not self._stuck or self._stuck[-1].pipelines[0].inferred != count.inferred:
            self._stuck.clear()
        if not self._stuck or self._stuck[-1] is not child.beat:
            self._stuck.append(child.beat)
        return len(self._stuck) > 20 and child.marks.read(1)[1] != ""

    def finding(self, code: str, subject: str = "") -> Finding | None:
        return next((one for one in self.process.findings() if (one.code, one.subject) == (code, subject)), None)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def start(**runtime: object) -> Bench:
        made.append(Bench(**runtime))
        return made[-1]

    yield start
    for one in made:
        one.may_listen.set()
        pid = one.process.pid
        one.process.stop()
        assert one.process.state is WorkerState.STOPPED
        assert pid is None or not is_running(pid)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of three colors."""
    return write_video(tmp_path_factory.mktemp("video") / "v.avi", [BLUE] * 20 + [GREEN] * 20 + [RED] * 20)


def pipeline(path: Path, *, name: str = "front", is_looped: bool = True, max_fps: float = 0.0, line: str = "color") -> PipelineOrder:
    source = {"kind": "video", "path": str(path), "loop": is_looped}
    return decode(PipelineOrder, {"name": name, "line": line, "source": source, "max_fps": max_fps})


def only(stats: list[PipelineStats]) -> PipelineStats:
    (one,) = stats
    return one


def test_it_starts_no_child_before_there_is_something_to_run(make):
    one = make()
    assert one.process.state is WorkerState.STOPPED
    assert one.process.pid is None
    assert one.process.stats() == []
    assert one.process.figures("color") is None


def test_video_frames_become_predictions_with_the_right_label(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    wait_until(lambda: {prediction.top[0].label for prediction in one.predictions} == {"blue", "green", "red"})
    wanted = ["blue"] * 20 + ["green"] * 20 + ["red"] * 20
    assert all(prediction.top[0].label == wanted[prediction.frame] for prediction in list(one.predictions))


def test_stats_say_what_happened_since_the_last_call(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    wait_until(lambda: only(one.process.stats()).dropped.get("model_unavailable"))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    one.more(10)
    looks = [look(one)]
    one.more(20)
    wait_until(lambda: looks.append(look(one)) or looks[-1][1].inferred > 1, what="figures")
    (began_s, _, cleared_s), (asked_s, stats, ended_s) = looks[-2:]
    assert (stats.pipeline, stats.line, stats.release, stats.effective) == ("front", "color", "1.0", "onnx:cpu")
    assert stats.source_state is SourceState.RUNNING
    assert stats.lat_ms_p50 is not None
    assert stats.lat_ms_p99 is not None
    assert 0 < stats.lat_ms_p50 <= stats.lat_ms_p99
    assert stats.inferred / (ended_s - began_s) <= stats.fps <= stats.inferred / (asked_s - cleared_s)
    assert one.process.rss_mb > 10


def look(one: Bench) -> tuple[float, PipelineStats, float]:
    """The figures since they were last asked for, with the moments before and after asking."""
    before_s = time.monotonic()
    return before_s, only(one.process.stats()), time.monotonic()


def test_swaps_under_load_lose_no_frame(make, tmp_path: Path):
    one, frames = make(), 100
    video = write_video(tmp_path / "v.avi", [DARK_GREEN] * frames, fps=100, size=(32, 32))
    one.run(pipeline(video))
    slots = [make_slot(tmp_path / "a"), make_slot(tmp_path / "b", release="1.1")]
    assert one.process.activate("color", slots[0]).ok
    one.more(5)
    unavailable = wait_until(lambda: (made := one.total()).inferred and made, what="figures").dropped["model_unavailable"]
    for index in range(20):
        assert one.process.activate("color", slots[(index + 1) % 2]).ok
        one.process.commit("color")
    one.more(5)
    video.unlink()  # the source ends when the swaps are done, however long they took: it is opened anew for each round
    wait_until(lambda: one.total().source_state is SourceState.LOST, what="the end of the last round")
    total = wait_until(lambda: (made := one.total()).inferred == len(one.predictions) and made, what="the last predictions")
    first = ordinal(one.predictions[0], frames)
    assert total.grabbed % frames == 0, "every round is whole"
    assert total.grabbed == total.inferred + total.dropped.total()
    assert total.dropped["model_unavailable"] == unavailable <= first
    assert total.dropped["inference_error"] == 0
    assert total.unsent == 0
    missing = set(range(total.grabbed)) - {ordinal(prediction, frames) for prediction in one.predictions}
    assert len(missing) == total.dropped.total()
    assert {prediction.release for prediction in one.predictions} == {"1.0", "1.1"}


def ordinal(prediction: Prediction, frames: int) -> int:
    """The number of the frame since the first round of a video with so many of them."""
    return (prediction.session - 1) * frames + prediction.frame


def test_a_corrupt_model_is_refused_with_a_reason_and_the_old_one_infers_on(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    bad = make_slot(tmp_path / "b", release="1.1")
    model = bad / "model.onnx"
    model.write_bytes(model.read_bytes()[:-20])
    refused = one.process.activate("color", bad)
    assert (refused.ok, refused.code) == (False, "file_mismatch")
    assert "model.onnx" in refused.text
    assert {prediction.release for prediction in one.more(5)} == {"1.0"}
    assert one.process.rollback("color").code == "no_previous"


def test_a_rollback_is_a_flip_and_works_after_a_restart_too(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    assert one.process.activate("color", make_slot(tmp_path / "b", release="1.1")).ok
    one.more(release="1.1")
    assert one.process.rollback("color").ok
    one.more(release="1.0")
    assert one.process.activate("color", tmp_path / "b").ok
    one.more(release="1.1")
    os.kill(one.process.pid, signal.SIGKILL)
    assert one.process.rollback("color").ok
    one.more(release="1.0")


def test_the_way_back_loads_nothing_while_the_old_model_is_kept(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    old, new = make_slot(tmp_path / "a"), make_slot(tmp_path / "b", release="1.1")
    assert one.process.activate("color", old).ok
    assert one.process.activate("color", new).ok
    one.more(release="1.1")
    pid = one.process.pid
    (old / "model.onnx").write_bytes(bytes((old / "model.onnx").stat().st_size))  # could not be loaded any more
    assert one.process.activate("color", old).ok
    assert {prediction.release for prediction in one.more(5)[-3:]} == {"1.0"}
    assert one.process.pid == pid


def test_a_process_that_grew_beyond_its_budget_starts_again_once_and_goes_on(make, loop: Path, tmp_path: Path):
    one = make(timings=replace(QUICK, weigh_s=0.1))
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    assert one.process.activate("color", make_slot(tmp_path / "b", release="1.1")).ok
    one.more(release="1.1")
    pid = one.process.pid
    one.process.commit("color", rss_budget_mb=1.0)
    found = wait_until(lambda: one.finding("inference_trimmed"), what="the process to be weighed")
    assert found.severity == "info"
    after = wait_until(lambda: one.process.state is WorkerState.RUNNING and one.process.pid not in (None, pid) and one.process.pid)
    one.more(20, release="1.1")
    assert one.process.pid == after, "it is started again once, not for ever"
    assert one.process.figures("color").crashes == 0
    assert one.finding("inference_crashed") is None


def test_a_process_within_its_budget_and_one_without_is_left_alone(make, loop: Path, tmp_path: Path):
    one = make(timings=replace(QUICK, weigh_s=0.0))
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    pid = one.process.pid
    for budget_mb in (None, 4000.0):
        one.process.commit("color", rss_budget_mb=budget_mb)
        wait_until(lambda: one.process._weigh_at_s is None, what="the process to be weighed")
        one.more(5)
    assert one.process.pid == pid


def test_after_a_commit_there_is_no_way_back_and_after_a_deactivation_no_model(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    one.process.activate("color", make_slot(tmp_path / "a"))
    one.process.activate("color", make_slot(tmp_path / "b", release="1.1"))
    one.process.commit("color")
    assert one.process.rollback("color").code == "no_previous"
    one.process.deactivate("color")
    assert one.process.figures("color") is None
    one.process.stats()
    wait_until(lambda: only(one.process.stats()).dropped.get("model_unavailable"))
    one.process.deactivate("color")
    one.process.commit("color")


def test_a_killed_process_is_back_with_its_pipelines_and_its_model(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    for _ in range(3):
        before, session = one.process.pid, one.more()[-1].session
        os.kill(before, signal.SIGKILL)
        after = wait_until(lambda: [p for p in one.predictions if p.session > session])  # noqa: B023 - used at once
        assert after[0].release == "1.0"
        assert one.process.pid != before
    found = one.finding("inference_crashed")
    assert found is not None
    assert "SIGKILL" in found.text
    figures = one.process.figures("color")
    assert figures is not None
    assert figures.crashes == 0


def test_the_log_keeps_why_the_process_died_when_the_condition_is_gone(make, loop: Path, caplog):
    one = make()
    one.run(pipeline(loop))
    os.kill(wait_until(lambda: one.process.pid), signal.SIGKILL)
    assert (
        wait_until(lambda: one.finding("inference_crashed")).text == "The inference process was restarted once: it was killed by SIGKILL."
    )
    assert "inference.ended code=inference_crashed times=1 text=it was killed by SIGKILL" in caplog.text


def test_sessions_and_frames_stay_unique_over_restarts(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    one.more()
    os.kill(one.process.pid, signal.SIGKILL)
    one.more(10)
    seen = Counter((prediction.session, prediction.frame) for prediction in one.predictions)
    assert set(seen.values()) == {1}


def test_a_stopped_process_is_hung_killed_and_started_again(make, loop: Path, tmp_path: Path):
    one = make(hang_s=1.0)
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    before = one.process.pid
    one.more()
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: not is_running(before), what="the hung process to be killed")
    one.more()
    found = one.finding("inference_hung")
    assert found is not None
    assert "said nothing" in found.text


def test_an_inference_that_never_ends_is_noticed_by_its_progress(make, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    one = make(hang_s=1.0)
    slot = make_slot(tmp_path / "a", trait=Trait.HANGS)
    one.run(pipeline(write_video(tmp_path / "v.avi", HARMLESS + [RED] * 200)))
    assert one.process.activate("color", slot).ok
    before = one.process.pid
    wait_until(lambda: not is_running(before), what="the hung process to be killed")
    one.more(1)
    wait_until(
        lambda: (found := one.finding("inference_hung")) and "inferred nothing" in found.text, what="a hang noticed by its progress"
    )  # a machine that gives the process no time for a second has it killed for its silence before
    said: list[str] = []
    wait_until(lambda: said.append(capfd.readouterr().err) or "Thread 0x" in "".join(said), what="where it hung")


def test_a_hung_candidate_does_not_count_as_healthy_and_its_death_is_in_the_figures(make, tmp_path: Path):
    one = make(hang_s=1.0)
    assert one.process.activate("color", make_slot(tmp_path / "a", trait=Trait.HANGS)).ok
    one.run(pipeline(write_video(tmp_path / "v.avi", HARMLESS + [RED] * 200)))
    figures = wait_until(lambda: (made := one.process.figures("color")) and made.crashes and made)
    assert isinstance(figures, Figures)
    assert 0 < figures.healthy <= len(HARMLESS)


def test_a_back_end_that_crashes_twice_with_a_model_is_not_used_for_it_and_another_model_may_use_it(make, tmp_path: Path):
    one = make(hang_s=20.0)
    one.run(pipeline(write_video(tmp_path / "v.avi", [DARK_GREEN] * 5 + [RED] * 200)))
    assert one.process.activate("color", make_slot(tmp_path / "a", trait=Trait.HANGS)).ok
    for deaths in range(1, 3):
        pid = wait_until(lambda: one.process.state is WorkerState.RUNNING and one.process.pid)
        wait_until(one.is_stuck, what="the process to be inside the back end")
        os.kill(pid, signal.SIGSEGV)
        wait_until(lambda: (made := one.process.figures("color")) and made.crashes == deaths)  # noqa: B023 - used at once
    wait_until(lambda: one.finding("backend_quarantined", "color"))
    down = wait_until(lambda: one.finding("inference_down", "color"))
    assert "no model that runs" in down.text
    one.process.stats()
    wait_until(lambda: only(one.process.stats()).dropped.get("model_unavailable"), what="capture to go on")
    assert one.process.activate("color", make_slot(tmp_path / "b", release="1.1")).ok
    one.more(release="1.1")
    assert one.finding("inference_down", "color") is None
    assert one.finding("backend_quarantined", "color") is None


def test_a_hot_device_infers_fewer_frames_says_so_and_goes_on(make, loop: Path, tmp_path: Path):
    zone = tmp_path / "root/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    for name, text in {"type": "cpu-thermal", "temp": "20000", "trip_point_0_type": "passive", "trip_point_0_temp": "85000"}.items():
        (zone / name).write_text(text)
    one = make(timings=replace(QUICK, feel_s=0.05, pressure_root=tmp_path / "root"))
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    one.more()
    assert one.total().dropped["rate_limited"] == 0
    (zone / "temp").write_text("86000")
    found = wait_until(lambda: one.finding("slowed_by_heat"), what="the heat to be felt")
    assert "cpu-thermal has 86 °C" in found.text
    wait_until(lambda: one.total().dropped["rate_limited"] > 10, what="frames to be left out")
    pid = one.process.pid
    one.more()
    os.kill(pid, signal.SIGKILL)
    before = one.total().dropped["rate_limited"]
    one.more()
    wait_until(lambda: one.total().dropped["rate_limited"] > before + 3, what="the next process to be slowed down too")


def test_what_autotune_chose_is_what_runs_until_it_crashes(make, loop: Path, tmp_path: Path):
    slot, records = make_slot(tmp_path / "a"), tmp_path / "records"
    other, processor = "onnx:CPUExecutionProvider", "onnx:cpu"  # one runtime under two names: two back ends
    Tunings(records).keep(Tuning(_artifact_of(slot), Setup(processor, 2), Setup(other), "quicker"))
    one = make(records_dir=records, providers=("CPUExecutionProvider",))
    one.run(pipeline(loop))
    assert one.process.activate("color", slot).provider == processor
    one.more()
    count = wait_until(lambda: one.process._count_of("color"), what="figures")
    assert (count.asked, count.effective, count.threads) == (processor, processor, 2)
    assert one.finding("accelerator_fallback", "color") is None
    one.process._quarantine.crashed(_artifact_of(slot), processor, SystemClock().monotonic())
    os.kill(one.process.pid, signal.SIGKILL)
    one.more()
    count = wait_until(lambda: (found := one.process._count_of("color")) and found.effective == other and found, what="the other back end")
    assert count.threads == 1


def test_a_first_crash_moves_on_to_the_next_back_end(make, tmp_path: Path):
    one = make(hang_s=20.0, providers=("CPUExecutionProvider",))  # the processor under another name: a back end of its own
    one.run(pipeline(write_video(tmp_path / "v.avi", HARMLESS + [RED] * 200)))
    assert one.process.activate("color", make_slot(tmp_path / "a", trait=Trait.HANGS)).ok
    assert one.finding("accelerator_fallback", "color") is None
    pid = one.process.pid
    wait_until(one.is_stuck)
    os.kill(pid, signal.SIGSEGV)
    one.more(1)
    assert one.process._quarantine.demoted(_artifact_of(tmp_path / "a"), SystemClock().monotonic()) == ("onnx:CPUExecutionProvider",)
    found = wait_until(lambda: one.finding("accelerator_fallback", "color"))
    assert "Asked for onnx:CPUExecutionProvider, runs on onnx:cpu" in found.text


def test_a_model_can_be_activated_before_any_pipeline_runs_and_while_the_process_restarts(make, loop: Path, tmp_path: Path):
    one = make()
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    one.run(pipeline(loop))
    one.more()
    os.kill(one.process.pid, signal.SIGKILL)
    assert one.process.activate("color", make_slot(tmp_path / "b", release="1.1")).ok
    one.more(release="1.1")


def test_a_model_that_never_gets_warm_is_given_up_and_the_old_one_runs_again(make, loop: Path, tmp_path: Path):
    one = make(hang_s=1.0)
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    one.process._timings = replace(QUICK, activate_s=3.0)  # only now: a good model gets all the time that it needs
    refused = one.process.activate("color", make_slot(tmp_path / "b", release="1.1", trait=Trait.NEVER_WARM))
    one.process._timings = QUICK
    assert (refused.ok, refused.code) == (False, "timeout")
    assert {prediction.release for prediction in one.more()} == {"1.0"}
    assert one.process.rollback("color").code == "no_previous"


def test_a_model_that_kills_the_process_while_it_is_loaded_is_refused_and_the_old_one_runs_again(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    bad, answers = make_slot(tmp_path / "b", release="1.1", trait=Trait.NEVER_WARM), []
    asking = threading.Thread(target=lambda: answers.append(one.process.activate("color", bad)))
    asking.start()

    def kill_while_loading() -> bool:
        child = one.process._child
        if child is not None and child.beat is not None and child.process.poll() is None and child.marks.read(1)[0]:
            loading = child.marks.read(1)[0]
            if any(line.release == "1.0" for line in child.beat.lines):  # the old one is active, so this is the new one
                assert loading == "onnx:cpu"
                child.process.send_signal(signal.SIGSEGV)
                child.closed.wait(PATIENCE_S)
        return bool(answers)

    wait_until(kill_while_loading)
    asking.join()
    (refused,) = answers
    assert not refused.ok
    assert refused.code in ("crashed", "no_backend")
    assert {prediction.release for prediction in one.more()} == {"1.0"}
    assert one.finding("backend_quarantined", "color") is not None


@pytest.mark.parametrize("variant", example_models.READABLE)
def test_the_digits_example_passes_its_self_test_and_answers(make, loop: Path, tmp_path: Path, variant: str):
    one = make()
    slot = example_models.make_slot(tmp_path / variant, variant)
    verdict = one.process.self_test(slot)
    assert verdict.ok, verdict.text
    one.run(pipeline(loop, line="digits"))
    assert one.process.activate("digits", slot).provider == verdict.provider
    assert one.process.self_test(slot, provider=verdict.provider).provider == verdict.provider
    assert {prediction.release for prediction in one.more()} == {"1.1"}
    assert only(one.process.stats()).effective == verdict.provider
    assert one.process.figures("digits").provider == verdict.provider


def test_two_lines_run_side_by_side_and_each_pipeline_has_its_own_answer(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop), pipeline(loop, name="back", line="other"))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    assert one.process.activate("other", make_slot(tmp_path / "b", release="2.0")).ok
    wait_until(lambda: {(p.pipeline, p.line, p.release) for p in one.predictions} == {("front", "color", "1.0"), ("back", "other", "2.0")})


def test_two_pipelines_share_one_line(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop), pipeline(loop, name="back"))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    wait_until(lambda: {prediction.pipeline for prediction in one.predictions} == {"front", "back"})


def test_a_new_configuration_leaves_unchanged_pipelines_alone(make, loop: Path, tmp_path: Path):
    one = make()
    one.run(pipeline(loop), pipeline(loop, name="back"))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    wait_until(lambda: len({prediction.pipeline for prediction in one.predictions}) == 2)
    one.run(pipeline(loop), pipeline(loop, name="side", max_fps=5.0))
    wait_until(lambda: any(prediction.pipeline == "side" for prediction in one.predictions))
    assert {made.pipeline for made in one.process.stats()} == {"front", "side"}
    count = len(one.predictions)
    wait_until(lambda: len(one.predictions) > count + 20)
    assert all(prediction.pipeline != "back" for prediction in one.predictions[count:])
    frames = [(p.session, p.frame) for p in one.predictions if p.pipeline == "front"]
    assert frames == sorted(frames)


def test_a_lost_source_is_a_finding_until_it_comes(make, loop: Path, tmp_path: Path):
    one = make()
    path = tmp_path / "later.avi"
    one.run(pipeline(path))
    found = wait_until(lambda: one.finding("source_lost", "front"))
    assert "later.avi" in found.text
    assert wait_until(lambda: only(one.process.stats()).source_state is SourceState.LOST)
    path.write_bytes(loop.read_bytes())
    wait_until(lambda: only(one.process.stats()).source_state is SourceState.RUNNING)
    wait_until(lambda: one.finding("source_lost", "front") is None)
    assert one.process.state is WorkerState.RUNNING


def test_a_video_that_ends_is_no_error(make, tmp_path: Path):
    one = make()
    one.run(pipeline(write_video(tmp_path / "v.avi", [RED] * 5), is_looped=False))
    found = wait_until(lambda: one.finding("source_ended", "front"))
    assert found.severity == "info"
    assert only(one.process.stats()).source_state is SourceState.ENDED


def test_a_slow_listener_costs_counted_predictions_and_nothing_else(make, tmp_path: Path):
    one, frames = make(hang_s=5.0), 3000  # less than the listener is deaf
    video = write_video(tmp_path / "v.avi", [DARK_GREEN] * frames, fps=1000, size=(32, 32))
    one.run(pipeline(video))
    assert one.process.activate("color", make_slot(tmp_path / "a")).ok
    one.more(1)
    pid, rounds = one.process.pid, 0
    while not one.total().unsent:
        # how much fits on the way depends on the machine, so the listener is deaf for longer each time
        rounds += 1
        assert rounds < 8, "nothing was ever lost"
        grabbed = one.total().grabbed
        one.may_listen.clear()
        for _ in range(rounds + 1):
            play_anew(pid, video)
        one.may_listen.set()
        wait_until(lambda: one.total().grabbed >= grabbed + rounds * frames, what="figures from after these rounds")  # noqa: B023 - used at once
    video.unlink()
    wait_until(lambda: one.total().source_state is SourceState.LOST, what="the end of the last round")
    assert one.process.pid == pid
    wait_until(lambda: len(one.predictions) + one.total().unsent == one.total().inferred, what="every prediction to be heard or counted")


def play_anew(pid: int | None, video: Path) -> None:
    """Put a copy in the video's place and wait until the process plays it: its round before is over then."""
    assert pid is not None
    copy = video.with_suffix(".new")
    copy.write_bytes(video.read_bytes())
    copy.replace(video)
    wait_until(lambda: has_open(pid, video), what="the next round")


def test_the_inference_process_ends_with_the_control_process(loop: Path, tmp_path: Path):
    slot = make_slot(tmp_path / "a")
    program = f"""
import sys
from agent.config import RuntimeConfig
from agent.inference.process import InferenceProcess
from agent.orders import PipelineOrder
from pathlib import Path
from protocol.decoding import decode
from protocol.clock import SystemClock
made = InferenceProcess(runtime=RuntimeConfig(), clock=SystemClock(), on_prediction=lambda _: None)
made.start()
made.configure([decode(PipelineOrder, {encode(pipeline(loop))!r})])
assert made.activate("color", Path({str(slot)!r})).ok
print(made.pid, flush=True)
sys.stdin.read()
"""
    control = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert control.stdout is not None
    assert control.stdin is not None
    pid = int(control.stdout.readline())
    control.kill()
    control.wait()
    control.stdout.close()
    control.stdin.close()
    wait_until(lambda: not is_running(pid), what="the orphan to end")


def test_the_self_test_runs_in_a_process_of_its_own(make, tmp_path: Path):
    one = make()
    verdict = one.process.self_test(make_slot(tmp_path / "a"))
    assert (verdict.ok, verdict.code) == (False, "golden_invalid")
    assert one.process.pid is None


def test_the_control_process_does_without_numpy_after_a_self_test(tmp_path: Path):
    """It lives for years after its first release, and numpy with the model manifest weigh 13 MiB."""
    slot = example_models.make_slot(tmp_path / "slot", example_models.READABLE[0])
    script = f"""
import sys
from pathlib import Path
from agent.config import RuntimeConfig
from agent.inference.process import InferenceProcess
from protocol.clock import SystemClock

one = InferenceProcess(runtime=RuntimeConfig(), clock=SystemClock(), on_prediction=print, records_dir=Path({str(tmp_path / "probe")!r}))
verdict = one.self_test(Path({str(slot)!r}))
print(verdict.code, verdict.infer_ms_p99 > 0, "numpy" in sys.modules, "runtime.manifest" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ok", "True", "False", "False"], done.stdout
    assert (tmp_path / "probe" / "models.json").exists()


def test_a_self_test_that_is_killed_is_a_verdict(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As by the kernel, for memory: here by a numpy that ends whoever imports it."""
    (tmp_path / "path/numpy").mkdir(parents=True)
    (tmp_path / "path/numpy/__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    verdict = make().process.self_test(make_slot(tmp_path / "a"))
    assert (verdict.ok, verdict.code) == (False, "crashed")
    assert "status -9" in verdict.text


def test_requests_of_a_process_that_was_not_started_or_is_stopped_are_refused(tmp_path: Path):
    made = InferenceProcess(runtime=RuntimeConfig(), clock=SystemClock(), on_prediction=lambda _: None)
    assert made.activate("color", make_slot(tmp_path / "a")).code == "stopped"
    made.stop()
    made.start()
    made.stop()
    assert made.activate("color", tmp_path / "a").code == "stopped"


@pytest.mark.needs_broker
def test_a_sensor_stream_is_summarized_and_its_windows_are_classified(make, mosquitto_path: Path, tmp_path: Path, free_port: int):
    one = make()
    with PlainBroker(mosquitto_path, tmp_path / "broker", free_port) as broker:
        source = {"kind": "sensor", "broker": broker.url, "topic": "pump", "fields": ["a", "b", "c"], "window": 64, "stride": 8}
        one.run(decode(PipelineOrder, {"name": "front", "line": "color", "source": source}))
        assert one.process.activate("color", make_slot(tmp_path / "a")).ok
        publisher = mqtt.Client(CallbackAPIVersion.VERSION2)
        publisher.connect("127.0.0.1", broker.port)
        publisher.loop_start()

        def send() -> bool:
            publisher.publish("pump", b"not json", qos=1).wait_for_publish(60)
            for _ in range(8):
                publisher.publish("pump", b'{"a": 0.1, "b": 0.9, "c": 0.2}', qos=1).wait_for_publish(60)
            return len(one.predictions) > 2

        wait_until(send, what="windows to be classified")
        assert {prediction.top[0].label for prediction in one.predictions} == {"green"}
        stats = wait_until(lambda: (made := only(one.process.stats())).channels and made)
        assert stats.channels["b"].mean == pytest.approx(0.9)
        wait_until(lambda: one.finding("sensor_gap", "front"), what="the message that is no reading told")
        publisher.disconnect()
        publisher.loop_stop()
