"""A real shadow process beside a real inference process: it compares, it dies, it is given up, and the champion does not notice."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import is_running
from simulators.color_models import Trait, make_slot
from simulators.drift_rows import bring_profile
from simulators.videos import BLUE, GREEN, RED, write_video
from waiting import wait_until

from agent.config import RuntimeConfig
from agent.inference.messages import ArmOrder, Prediction, Sampled
from agent.inference.process import InferenceProcess, Timings
from agent.inference.shadow_messages import Candidate
from agent.inference.shadow_process import ShadowProcess
from agent.inference.shadow_reports import Compared
from agent.orders import PipelineOrder
from protocol.clock import SystemClock
from protocol.decoding import decode
from protocol.shadow import Comparison, summed

QUICK = Timings(beat_s=0.05, restart_first_s=0.05, restart_max_s=0.5)


class Site:
    """An inference process on a looped video, a shadow beside it, and all that both said."""

    def __init__(self, folder: Path, *, hang_s: float = 600.0) -> None:
        self.predictions: list[Prediction] = []
        self.compared: list[Compared] = []
        video = write_video(folder / "v.avi", [BLUE] * 20 + [GREEN] * 20 + [RED] * 20)
        source = {"kind": "video", "path": str(video), "loop": True}
        self._pipeline = decode(PipelineOrder, {"name": "front", "line": "color", "source": source})
        self.inference = InferenceProcess(
            runtime=RuntimeConfig(hang_s=hang_s, slow_down=False), clock=SystemClock(), on_prediction=self.predictions.append, timings=QUICK
        )
        self.rows: list[Sampled] = []
        self.shadow = ShadowProcess(
            bring=self.inference.bring_shadow, on_compared=self.compared.append, on_row=self.rows.append, beat_s=0.05
        )

    def begin(self, champion: Path) -> None:
        self.inference.start()
        self.inference.configure([self._pipeline])
        assert self.inference.activate("color", champion).ok

    def cast(self, folder: Path, *, cpu_share: float = 0.5, row_step_s: float | None = None) -> Candidate:
        """Run the candidate; not at the lowest priority, which would starve where all tests run."""
        candidate = Candidate("color", "2.0", str(folder), ("front",))
        self.shadow.configure((candidate,), cpu_share=cpu_share, priority="normal", row_step_s=row_step_s)
        return candidate

    def more(self, count: int = 10) -> Comparison:
        """What the next pairs say, at least `count` of them."""
        first = len(self.compared)

        def figures() -> Comparison | None:
            assert self.shadow.given_up() == {}
            whole = summed(one.figures for one in self.compared[first:])
            return whole if whole.pairs.compared >= count else None

        found = wait_until(figures, what=f"{count} pairs")
        assert found is not None
        return found

    def infers_on(self) -> None:
        """The champion predicts, and its counts say that it never failed or was restarted."""
        first, pid = len(self.predictions), self.inference.pid
        wait_until(lambda: len(self.predictions) > first + 5, what="predictions of the champion")
        figures = self.inference.figures("color")
        assert figures is not None
        assert (figures.errors, figures.crashes) == (0, 0)
        assert self.inference.pid == pid
        told = {one.code for one in self.inference.findings()}
        assert told.isdisjoint({"inference_crashed", "inference_hung", "inference_down", "inference_error", "backend_quarantined"})


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    one = Site(tmp_path, **getattr(request, "param", {}))
    yield one
    pid = one.shadow.pid
    one.shadow.stop()
    one.inference.stop()
    assert pid is None or not is_running(pid)


def test_a_candidate_answers_the_champions_frames_and_is_never_acted_on(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    site.cast(make_slot(tmp_path / "c", release="2.0", counter=2))
    found = site.more(20)
    assert found.pairs.agreed == found.pairs.compared
    assert found.candidate.frames == found.champion.frames == found.pairs.compared
    assert found.candidate.latency_ms.count == found.candidate.frames
    assert found.cpu_ms > 0
    assert {(one.pipeline, one.line, one.champion, one.candidate) for one in site.compared} == {("front", "color", "1.0", "2.0")}
    assert {one.release for one in site.predictions} == {"1.0"}
    pid = site.shadow.pid
    assert pid is not None
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
    site.shadow.configure((), cpu_share=0.5)
    wait_until(lambda: not is_running(pid), what="the end of the shadow")
    site.infers_on()


def test_what_drift_watches_of_a_candidate_comes_beside_its_answers(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    folder = make_slot(tmp_path / "c", release="2.0", counter=2)
    grid = bring_profile(folder)
    site.cast(folder)
    site.more(5)
    assert site.rows == []  # nobody asked
    site.cast(folder, row_step_s=0.0)
    rows = wait_until(lambda: site.rows[:] if len(site.rows) > 2 else None, what="rows of the candidate")
    assert {(one.pipeline, one.release, one.grid, one.src, one.fault) for one in rows} == {("front", "2.0", grid.grid_id.hex(), 1, "")}
    assert all(one.quality is not None and len(one.values) > 0 and one.labels[0] in {"red", "green", "blue"} for one in rows)
    site.infers_on()


def test_a_shadow_that_is_killed_comes_back_and_the_champion_does_not_notice(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    candidate = site.cast(make_slot(tmp_path / "c", release="2.0", counter=2))
    site.more(3)
    first = site.shadow.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: site.shadow.pid not in (None, first), what="another shadow process")
    site.more(3)
    assert candidate not in site.shadow.given_up()
    site.infers_on()


def test_a_shadow_follows_the_inference_process_that_was_restarted(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    candidate = site.cast(make_slot(tmp_path / "c", release="2.0", counter=2))
    site.more(3)
    assert site.inference.pid is not None
    os.kill(site.inference.pid, signal.SIGKILL)
    site.more(3)
    assert site.shadow._deaths == {}
    assert candidate not in site.shadow.given_up()


def test_a_candidate_that_cannot_be_loaded_is_given_up_with_the_reason(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    folder = make_slot(tmp_path / "c", release="2.0", counter=2)
    (folder / "model.onnx").write_bytes(b"no model")
    candidate = site.cast(folder)
    given = wait_until(lambda: site.shadow.given_up().get(candidate), what="the reason")
    assert given.code == "file_mismatch"
    wait_until(lambda: site.shadow.pid is None, what="the end of the shadow that has nothing to run")
    site.infers_on()


def test_a_candidate_that_fails_on_frames_counts_errors_of_its_own(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    site.cast(make_slot(tmp_path / "c", trait=Trait.FAILS, release="2.0", counter=2))

    def errors() -> int:
        return summed(one.figures for one in site.compared).candidate.errors

    wait_until(errors, what="an error of the candidate")
    site.infers_on()


def test_a_candidate_answers_in_its_turns_and_has_none_any_more_after_it_failed(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    candidate = make_slot(tmp_path / "c", release="2.0", counter=2)
    site.inference.take_turns((ArmOrder("color", "front", str(candidate), 100, "salt", "cam-1"),))
    wait_until(lambda: any(one.release == "2.0" for one in site.predictions), what="an answer of the candidate")
    site.inference.take_turns(())
    first = len(site.predictions)
    wait_until(lambda: [one.release for one in site.predictions[first:]][-10:] == ["1.0"] * 10, what="the champion alone again")
    failing = make_slot(tmp_path / "f", trait=Trait.FAILS, release="3.0", counter=3)
    site.inference.take_turns((ArmOrder("color", "front", str(failing), 100, "salt", "cam-1"),))
    lost = wait_until(lambda: site.inference.lost_arms().get("color"), what="the end of its turns")
    assert "3.0 failed" in lost
    site.infers_on()


def test_a_shadow_runs_only_when_nobody_else_wants_the_processor(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    site.shadow.configure((Candidate("color", "2.0", str(make_slot(tmp_path / "c")), ("front",)),), cpu_share=0.5)

    def policy() -> int:
        pid = site.shadow.pid
        return os.SCHED_OTHER if pid is None else os.sched_getscheduler(pid)

    wait_until(lambda: policy() == os.SCHED_IDLE, what="the lowest priority")


@pytest.mark.parametrize("site", [{"hang_s": 1.0}], indirect=True)
def test_a_candidate_that_hangs_in_its_turn_gets_none_any_more_and_nobody_else_is_blamed(site: Site, tmp_path: Path):
    site.begin(make_slot(tmp_path / "a", release="1.0"))
    hanging = make_slot(tmp_path / "h", trait=Trait.HANGS, release="2.0", counter=2)
    site.inference.take_turns((ArmOrder("color", "front", str(hanging), 100, "salt", "cam-1"),))
    lost = wait_until(lambda: site.inference.lost_arms().get("color"), what="the end of its turns")
    assert "inside the candidate" in lost
    first = len(site.predictions)
    wait_until(lambda: len(site.predictions) > first + 5, what="predictions of the champion")
    figures = site.inference.figures("color")
    assert figures is not None
    assert figures.crashes == 0
    assert {one.release for one in site.predictions[first:]} == {"1.0"}
    assert "backend_quarantined" not in {one.code for one in site.inference.findings()}
