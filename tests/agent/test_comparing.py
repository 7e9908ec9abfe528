"""A device that is assigned a candidate installs it beside what it runs, compares the two, reports, and forgets it again."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulators.color_models import SIDE, make_slot
from simulators.drift_rows import bring_profile
from simulators.videos import BLUE, GREEN, RED, write_video
from waiting import PATIENCE_S, wait_until

from agent.config import AgentConfig
from agent.drift.store import DriftStore
from agent.service import Service
from agent.slots import SlotContent, SlotFile, Slots
from agent.update.assignment import Assignment, CandidateRun, LineOffer, OfferedFile
from agent.update.bundle import CANDIDATE_DOWNLOADS
from protocol.clock import SystemClock
from protocol.files import digest_of_file
from protocol.ids import Digest, LineName, ReleaseVersion
from protocol.messages import RuntimeInfo
from protocol.shadow import EVENT_TYPE, ShadowReport
from runtime.golden import Goldens, Tolerance, encode

LINE = LineName("color")
NOTHING = Assignment("as-0", 1, 0, ())


class Device:
    """An agent that is not enrolled, with a committed model and a camera; what the director says is told to it by hand."""

    def __init__(self, folder: Path, **runtime: object) -> None:
        video = write_video(folder / "v.avi", [BLUE] * 10 + [GREEN] * 10 + [RED] * 10)
        source = {"kind": "video", "path": str(video), "loop": True}
        pipelines = [{"name": "front", "line": "color", "source": source, "max_fps": 20}]
        state = {"state_dir": str(folder / "state"), "run_dir": str(folder / "run")}
        self.config = AgentConfig.model_validate(
            {**state, "pipelines": pipelines, "runtime": {"shadow_report_s": 1.0, "shadow_priority": "normal", **runtime}}
        )
        self.folder = folder
        self._reports: list[ShadowReport] = []
        self._install(make_slot(folder / "champion"))
        probe = [RuntimeInfo(name="onnx", version="1", state="ok")]
        self.service = Service(self.config, clock=SystemClock(), version="1.2.3", probe=lambda: probe)
        self._thread = threading.Thread(target=self.service.run)
        self._thread.start()

    def _install(self, folder: Path) -> None:
        slots, files = Slots(self.config.slots_dir), files_of(folder)
        slot = slots.write(SlotContent(LINE, ReleaseVersion("1.0"), 1, "onnx", files), {file.name: folder / file.name for file in files})
        slots.activate(LINE, slot.name)
        slots.commit(LINE)

    def candidate(self, run: CandidateRun, *, has_profile: bool = False) -> Assignment:
        """What the director would say; the files are here already, as after a download."""
        folder = make_slot(self.folder / "candidate", release="2.0", counter=2)
        if has_profile:
            bring_profile(folder)
        (folder / "golden.cbor").write_bytes(encode(goldens()))
        downloads = self.config.state_dir / CANDIDATE_DOWNLOADS
        downloads.mkdir(parents=True, exist_ok=True)
        files = files_of(folder)
        for file in files:
            (downloads / file.sha256.removeprefix("sha256:")).write_bytes((folder / file.name).read_bytes())
        offered = tuple(OfferedFile(file.name, file.length, file.sha256, "https://fleet.test/never-asked") for file in files)
        offer = LineOffer(LINE, ReleaseVersion("2.0"), 2, "onnx", "as-1", 1, offered, campaign="ca-1", candidate=run)
        return Assignment("as-1", 1, 1, (), candidates=(offer,))

    def tell(self, assignment: Assignment) -> None:
        self.service.parts.machine.offer(assignment)
        self.service.parts.candidates.offer(assignment)

    def reports(self) -> list[ShadowReport]:
        """All reports that went to the outbox so far, oldest first."""
        for row in self.service.parts.store.next_batch(1000):
            body = json.loads(row.payload)
            if row.stream == "event" and body["type"] == EVENT_TYPE:
                self._reports.append(ShadowReport.model_validate(body["data"]))
        return self._reports

    def stop(self) -> None:
        self.service.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def goldens() -> Goldens:
    """What the color model answers to eight pictures: the mean of each channel."""
    pictures = np.random.default_rng(7).random((8, 1, SIDE, SIDE, 3), np.float32)
    outputs = tuple({"scores": picture.mean(axis=(1, 2))} for picture in pictures)
    return Goldens(tuple({"pixels": picture} for picture in pictures), {"onnx/1/any": outputs}, {"scores": Tolerance()})


def files_of(folder: Path) -> tuple[SlotFile, ...]:
    return tuple(SlotFile(path.name, Digest(digest_of_file(path)), path.stat().st_size) for path in sorted(folder.iterdir()))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(**runtime: object) -> Device:
        made.append(Device(tmp_path, **runtime))
        return made[-1]

    yield make
    for one in made:
        one.stop()


SHADOW = CandidateRun(run_as="shadow", share=100, salt="", until_ms=None, cpu=50)


def test_a_shadow_is_installed_compared_reported_and_gone_when_the_assignment_ends(device):
    one = device()
    one.tell(one.candidate(SHADOW))
    service = one.service
    report = wait_until(lambda: next((r for r in one.reports() if r.figures.pairs.compared > 5), None), what="a report of the shadow")
    assert (report.run_as, report.champion, report.candidate, report.campaign) == ("shadow", "1.0", "2.0", "ca-1")
    assert report.figures.pairs.agreed == report.figures.pairs.compared
    assert report.budget_permille == 200
    assert [(slot.slot, slot.release, slot.active) for slot in service.parts.candidates.slot_reports()] == [("c", "2.0", False)]
    assert [(slot.release, slot.active, slot.committed) for slot in service.parts.machine.slot_reports()] == [("1.0", True, True)]
    pid = service.parts.comparing.pid
    assert pid is not None
    one.tell(NOTHING)
    wait_until(lambda: service.parts.comparing.pid is None, what="the end of the shadow")
    wait_until(lambda: service.parts.candidates.slot_reports() == [], what="the candidate's slot to be freed")
    wait_until(lambda: [r.reason for r in one.reports() if r.state == "ended"] == ["assignment_ended"], what="the last report")
    assert service.parts.machine.state_of(LINE).installed == "1.0"


def test_drift_of_a_candidate_in_the_shadow_is_counted_by_the_control_process(device):
    one = device()
    assignment = one.candidate(SHADOW, has_profile=True)
    one.tell(assignment)
    (model,) = (file.sha256.removeprefix("sha256:")[:32] for file in assignment.candidates[0].files if file.name == "model.onnx")
    rows = DriftStore(one.service.parts.store, SystemClock())
    subjects = wait_until(lambda: {row.subject for row in rows.open_windows()}, what="a sub-window of the candidate")
    assert {(subject.pipeline, subject.model, subject.src) for subject in subjects} == {("front", model, 1)}
    assert one.service.parts.drift.body()["state"] == "ok"
    assert "profile_invalid" not in {code for code, _, _ in one.service.parts.drift.findings()}


def test_two_releases_in_turn_are_both_counted_and_each_answer_says_whose_it_is(device):
    one = device()
    one.tell(one.candidate(replace(SHADOW, run_as="ab", share=99)))
    report = wait_until(lambda: next((r for r in one.reports() if r.figures.candidate.frames > 5), None), what="a report of the turns")
    assert (report.run_as, report.champion, report.candidate, report.figures.pairs.compared) == ("ab", "1.0", "2.0", 0)
    assert report.figures.candidate.labels
    assert report.budget_permille == 0


def test_a_device_that_forbids_shadows_runs_none(device):
    one = device(shadow_cpu_max=0)
    one.tell(one.candidate(SHADOW))
    wait_until(one.service.parts.candidates.plans, what="the candidate in its slot")
    assert one.service.parts.comparing.tick(one.config.pipelines, source="/s", may_act=True) == []
    assert one.service.parts.comparing.pid is None
