"""Hot swap inside the process: beside the running model, nothing lost, nothing closed under a running inference."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import example_models
import numpy as np
import pytest
from simulators.color_models import Trait, make_slot
from waiting import wait_until

from agent.config import RuntimeConfig
from agent.inference.engine import MAX_FAILURES, Line, SwapState
from agent.inference.marks import Marks, new_memory
from agent.inference.pictures import Inputs
from agent.leftovers import Leftovers
from agent.sources.base import Array
from protocol.clock import SystemClock
from protocol.errors import InvalidError
from runtime.base import InferFailed
from runtime.providers import is_known_to

RUNTIME = RuntimeConfig()
DARK_GREEN = np.full((48, 64, 3), (0, 90, 0), np.uint8)
BRIGHT_RED = np.full((48, 64, 3), (0, 0, 255), np.uint8)


@pytest.fixture
def marks() -> Iterator[Marks]:
    fd = new_memory()
    made = Marks(fd)
    os.close(fd)
    yield made
    made.close()


@pytest.fixture
def line(marks: Marks) -> Iterator[Line]:
    made = Line("color", marks=marks, now=SystemClock().monotonic)
    yield made
    made.deactivate()


def answer(line: Line, frame: Array = DARK_GREEN) -> tuple[str, str]:
    """(release, best label) of a frame."""
    got = line.infer(frame)
    assert got is not None
    return got.release, got.top[0].label


def test_without_a_model_there_is_no_answer(line: Line):
    assert not line.has_model()
    assert line.infer(DARK_GREEN) is None
    assert line.count() is None


def test_an_activated_model_answers(line: Line, tmp_path: Path):
    swap = line.activate(make_slot(tmp_path / "a"), RUNTIME)
    assert swap.ok, swap.text
    assert swap.provider == "onnx:cpu"
    assert answer(line) == ("1.0", "green")
    assert line.swap is SwapState.HELD


def test_an_input_made_beforehand_is_the_one_that_is_inferred(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    inputs, frame = Inputs(), DARK_GREEN.copy()
    line.prepare(frame, inputs)
    frame[:] = BRIGHT_RED  # whatever becomes of the pixels after
    answered = line.infer(frame, shared=inputs)
    assert answered is not None
    assert answered.top[0].label == "green"
    inputs.frame += 1
    answered = line.infer(frame, shared=inputs)
    assert answered is not None
    assert answered.top[0].label == "red"


def test_a_frame_that_fits_no_input_is_refused_when_it_is_inferred_and_not_beforehand(line: Line, tmp_path: Path):
    inputs, odd = Inputs(), np.zeros((48, 64, 2), np.uint8)
    line.prepare(odd, inputs)  # without a model there is nothing to make
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    line.prepare(odd, inputs)
    with pytest.raises(InvalidError, match="48, 64, 2"):
        line.infer(odd, shared=inputs)


def test_a_rollback_flips_to_the_model_before(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    line.activate(make_slot(tmp_path / "b", release="1.1"), RUNTIME)
    assert answer(line)[0] == "1.1"
    assert line.rollback().ok
    assert answer(line)[0] == "1.0"
    assert line.rollback().code == "no_previous"


def test_after_a_commit_there_is_no_way_back(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    line.activate(make_slot(tmp_path / "b", release="1.1"), RUNTIME)
    assert line.commit().ok
    assert line.swap is SwapState.CLOSED
    assert line.rollback().code == "no_previous"
    assert answer(line)[0] == "1.1"


def test_activating_the_folder_before_is_a_flip_and_the_active_one_again_changes_nothing(line: Line, tmp_path: Path):
    first, second = make_slot(tmp_path / "a"), make_slot(tmp_path / "b", release="1.1")
    line.activate(first, RUNTIME)
    assert line.activate(first, RUNTIME).text == "Already active."
    line.activate(second, RUNTIME)
    assert "before runs again" in line.activate(first, RUNTIME).text
    assert answer(line)[0] == "1.0"


def test_new_content_in_the_same_folder_is_a_new_model(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    line.activate(make_slot(tmp_path / "a", release="1.2"), RUNTIME)
    assert answer(line)[0] == "1.2"


def test_a_deactivated_line_has_no_model(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    assert line.deactivate().ok
    assert line.infer(DARK_GREEN) is None


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"\x08\x09 nonsense"), "file_mismatch"),
        (lambda folder: (folder / "model.onnx").unlink(), "file_mismatch"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest_invalid"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"{}"), "invalid"),
    ],
)
def test_a_damaged_slot_is_refused_with_a_reason_and_the_old_model_answers_on(line: Line, tmp_path: Path, damage, code: str):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    folder = make_slot(tmp_path / "b", release="1.1")
    damage(folder)
    swap = line.activate(folder, RUNTIME)
    assert not swap.ok
    assert swap.code == code
    assert swap.text
    assert line.swap is SwapState.FAILED
    assert answer(line) == ("1.0", "green")


def test_a_quarantined_back_end_is_not_used(line: Line, tmp_path: Path):
    swap = line.activate(make_slot(tmp_path / "a"), RUNTIME, quarantined=("onnx:cpu",))
    assert (swap.ok, swap.code) == (False, "no_backend")


def test_a_fallback_is_reported_as_asked_and_effective(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RuntimeConfig(providers=("cuda",)))
    count = line.count()
    assert count is not None
    assert (count.asked, count.effective) == ("onnx:cuda", "onnx:cpu")


@pytest.mark.parametrize("variant", example_models.READABLE)
def test_whatever_is_asked_for_and_missing_the_processor_answers_and_each_reason_is_told(line: Line, variant: str, tmp_path: Path):
    providers = ("tensorrt", "cuda", "qnn", "vitisai", "acl", "npu", "edgetpu-usb", "external", "external-teflon")
    runtime = RuntimeConfig(providers=providers, options={"external-teflon": {"library": "/usr/lib/teflon/libteflon.so"}})
    assert line.activate(example_models.make_slot(tmp_path / "a", variant), runtime).ok
    count = line.count()
    assert count is not None
    assert count.effective.endswith(":cpu")
    asked = [name for name in providers if is_known_to(name, count.effective.partition(":")[0])]
    assert asked
    assert all(any(f":{name}: " in text for text in count.refused) for name in asked), count.refused


def test_a_required_accelerator_that_is_missing_leads_to_the_next_candidate_or_a_refusal(line: Line, tmp_path: Path):
    swap = line.activate(make_slot(tmp_path / "a", backends=("onnx:cuda",)), RuntimeConfig(providers=("cuda",), require=True))
    count = line.count()
    assert (swap.ok and count is not None and count.effective == "onnx:cpu" and count.refused) or swap.code == "accelerator_fallback"


def test_figures_count_answers_failures_and_the_share_of_the_top_class(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    for frame in (DARK_GREEN, DARK_GREEN, DARK_GREEN, BRIGHT_RED):
        line.infer(frame)
    count = line.count()
    assert count is not None
    assert (count.inferences, count.errors, count.top_share) == (4, 0, 0.75)
    assert count.p99_ms is not None
    assert count.p99_ms > 0


def test_an_answer_that_is_not_finite_is_counted_as_invalid_and_never_given(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a", trait=Trait.NAN), RUNTIME)
    assert answer(line)[1] == "green"
    with pytest.raises(InferFailed, match="not finite"):
        line.infer(BRIGHT_RED)
    count = line.count()
    assert count is not None
    assert (count.inferences, count.errors, count.invalid) == (2, 1, 1)


def test_a_model_that_fails_again_and_again_is_tried_on_the_next_back_end(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a", trait=Trait.FAILS), RuntimeConfig(providers=("CPUExecutionProvider",)))
    for _ in range(MAX_FAILURES):
        with pytest.raises(InferFailed):
            line.infer(BRIGHT_RED)
    assert line.replace_failing(RuntimeConfig(providers=("CPUExecutionProvider",)))
    replaced = wait_until(lambda: (count := line.count()) and count.inferences == 0 and count, what="the next back end")
    assert any("onnx:CPUExecutionProvider" in text for text in replaced.refused)
    assert answer(line) == ("1.0", "green")


def test_a_few_failures_or_a_lack_of_other_back_ends_change_nothing(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a", trait=Trait.FAILS), RUNTIME)
    with pytest.raises(InferFailed):
        line.infer(BRIGHT_RED)
    assert not line.replace_failing(RUNTIME)
    for _ in range(MAX_FAILURES):
        with pytest.raises(InferFailed):
            line.infer(BRIGHT_RED)
    line.replace_failing(RUNTIME)
    assert not line.replace_failing(RUNTIME)
    assert answer(line) == ("1.0", "green")


def test_a_window_of_readings_fits_a_model_with_as_many_float_inputs(line: Line, tmp_path: Path):
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    window = np.zeros((64, 3), np.float32)
    window[:, 2] = 0.25
    assert answer(line, window)[1] == "red"
    with pytest.raises(InvalidError, match=r"float32\[64, 2\].*float32\[1, 8, 8, 3\]"):
        line.infer(np.zeros((64, 2), np.float32))


def test_swaps_under_load_lose_no_frame_and_close_nothing_in_use(line: Line, tmp_path: Path):
    slots = [make_slot(tmp_path / "a"), make_slot(tmp_path / "b", release="1.1")]
    line.activate(slots[0], RUNTIME)
    answers: list[str | None] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def infer() -> None:
        try:
            while not stop.is_set():
                got = line.infer(DARK_GREEN)
                answers.append(got.release if got else None)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for index in range(30):
        assert line.activate(slots[(index + 1) % 2], RUNTIME).ok
        if index % 3 == 0:
            line.commit()
        elif index % 3 == 1:
            line.rollback()
            line.rollback()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert None not in answers
    assert set(answers) == {"1.0", "1.1"}


class RecordingMarks(Marks):
    """Remembers what the control process would read after each write."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.states: list[tuple[str, str]] = []

    def loading(self, index: int, candidate: str) -> None:
        super().loading(index, candidate)
        self.states.append(self.read(index))

    def inferring(self, index: int, candidate: str) -> None:
        super().inferring(index, candidate)
        self.states.append(self.read(index))


def test_marks_name_the_back_end_only_while_it_is_inside_a_call(tmp_path: Path):
    fd = new_memory()
    marks = RecordingMarks(fd)
    os.close(fd)
    line = Line("color", marks=marks, now=SystemClock().monotonic)
    line.mark = 3
    line.activate(make_slot(tmp_path / "a"), RUNTIME)
    line.infer(DARK_GREEN)
    assert marks.states == [("onnx:cpu", ""), ("", ""), ("", "onnx:cpu"), ("", "")]
    line.deactivate()
    marks.close()


def test_models_answer_and_are_swapped_while_leftovers_are_given_back(line: Line, tmp_path: Path):
    """What is unmapped is mapped again when it is touched, by whichever thread; nothing that is loaded meanwhile is lost."""
    slots = [make_slot(tmp_path / release, release=release) for release in ("1.0", "1.1")]
    leftovers, given = Leftovers(lambda: 0.0), list[int]()

    def give_back() -> None:
        for _ in range(20):
            given.append(leftovers.give_back())

    giving = threading.Thread(target=give_back)
    giving.start()
    swaps = 0
    while giving.is_alive() or swaps < 4:
        swap = line.activate(slots[swaps % 2], RUNTIME)
        assert swap.ok, swap.text
        line.commit()
        swaps += 1
        assert answer(line) == (f"1.{(swaps - 1) % 2}", "green")
    giving.join()
    assert len(given) == 20
    assert all(given)
