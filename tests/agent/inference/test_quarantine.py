"""A back end that crashes with a model is tried last, then not at all; one that hangs is tried last."""

from pathlib import Path

from agent.inference.quarantine import FORGET_S, Quarantine
from runtime.records import ModelRecords


def test_the_first_crash_moves_a_back_end_to_the_end_and_the_second_shuts_it_out():
    quarantine = Quarantine()
    quarantine.crashed("sha256:a", "onnx:cuda", 0)
    assert quarantine.demoted("sha256:a", 1) == ("onnx:cuda",)
    assert quarantine.quarantined("sha256:a", 1) == ()
    quarantine.crashed("sha256:a", "onnx:cuda", 1)
    assert quarantine.quarantined("sha256:a", 2) == ("onnx:cuda",)


def test_another_model_on_the_same_back_end_is_not_blamed():
    quarantine = Quarantine()
    quarantine.crashed("sha256:a", "onnx:cuda", 0)
    quarantine.crashed("sha256:a", "onnx:cuda", 0)
    assert quarantine.quarantined("sha256:b", 1) == ()
    assert quarantine.demoted("sha256:b", 1) == ()


def test_the_second_hang_moves_a_back_end_to_the_end_and_none_shuts_it_out():
    quarantine = Quarantine()
    quarantine.hung("sha256:a", "onnx:cpu", 0)
    assert quarantine.demoted("sha256:a", 1) == ()
    for moment in range(1, 9):
        quarantine.hung("sha256:a", "onnx:cpu", moment)
    assert quarantine.demoted("sha256:a", 9) == ("onnx:cpu",)
    assert quarantine.quarantined("sha256:a", 9) == ()


def test_crashes_are_forgotten_in_time():
    quarantine = Quarantine()
    quarantine.crashed("sha256:a", "onnx:cuda", 0)
    quarantine.crashed("sha256:a", "onnx:cuda", 0)
    assert quarantine.quarantined("sha256:a", FORGET_S + 1) == ()


def test_an_accelerator_stays_shut_out_over_a_restart_of_the_agent_and_the_processor_does_not(tmp_path: Path):
    quarantine = Quarantine(ModelRecords(tmp_path))
    for candidate in ("onnx:cuda", "onnx:cpu"):
        for _ in range(2):
            quarantine.crashed("sha256:a", candidate, 0)
    assert quarantine.quarantined("sha256:a", 1) == ("onnx:cuda", "onnx:cpu")
    assert Quarantine(ModelRecords(tmp_path)).quarantined("sha256:a", FORGET_S + 1) == ("onnx:cuda",)
