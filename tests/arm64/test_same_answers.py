"""Golden vectors are the same on x86-64 and arm64, as far as RUNTIMES says; arm64 is a Debian tree, emulated where this machine is none.

Run by `make test-arm64`, as root; it prints what is equal and what is not.
"""

import os
from pathlib import Path

import pytest
from arm64.agreement import Difference, Subject, ask, off_by_one_step, subjects_in, table, verdict_here, verdict_in
from arm64.models import MODELS
from arm64.tree import Tree

pytestmark = pytest.mark.skipif("MOORING_TEST_ARM64" not in os.environ, reason="takes minutes, needs root; run by `make test-arm64`")


@pytest.fixture(scope="module")
def subjects(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    data = Path(os.environ.get("MOORING_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    found = subjects_in(tmp_path_factory.mktemp("models"), data if (data / "models").is_dir() else None)
    ask(found, tree)
    print(f"\n{table(found)}")  # noqa: T201 - what `make test-arm64` is run for
    return found


def of(subjects: list[Subject], model: str) -> list[Subject]:
    found = [subject for subject in subjects if subject.model.name == model]
    if not found:
        pytest.skip("lies in the folder with real models (set MOORING_DATA)")
    return found


def bound_of(model: str, difference: Difference) -> float:
    (found,) = [one for one in MODELS if one.name == model]
    return found.bound_of(difference.kind, difference.output)


each_model = pytest.mark.parametrize("model", [model.name for model in MODELS])


@each_model
def test_what_both_compute_is_as_near_as_it_was_measured(model: str, subjects: list[Subject]):
    found = [one for subject in of(subjects, model) for one in subject.differences()]
    assert [str(one) for one in found if one.largest > bound_of(model, one)] == []


@each_model
def test_full_precision_of_int8_on_x86_is_what_arm64_computes(model: str, subjects: list[Subject]):
    """`session.x64quantprecision`, which is set for golden vectors where the processor would saturate."""
    found = [one for subject in of(subjects, model) for one in subject.exact_differences()]
    assert [str(one) for one in found if one.largest > bound_of(model, one)] == []


@each_model
def test_golden_vectors_of_x86_hold_on_arm64_but_of_models_that_each_computes_its_own_way(model: str, subjects: list[Subject]):
    for subject in of(subjects, model):
        assert bool(subject.outside) == subject.model.is_per_architecture, subject.outside


@each_model
def test_golden_vectors_of_arm64_hold_on_x86_likewise(model: str, subjects: list[Subject], tmp_path: Path):
    for subject in of(subjects, model):
        verdict = verdict_here(subject, subject.answered(), tmp_path / subject.name)
        assert verdict["code"] == ("golden_mismatch" if subject.model.is_per_architecture else "ok"), verdict


@each_model
def test_golden_vectors_of_both_pass_the_self_test_on_x86(model: str, subjects: list[Subject], tmp_path: Path):
    for subject in of(subjects, model):
        verdict = verdict_here(subject, subject.merged(), tmp_path / subject.name)
        assert verdict["code"] == "ok", verdict


@each_model
def test_golden_vectors_of_both_pass_the_self_test_on_arm64(model: str, subjects: list[Subject], tree: Tree):
    for subject in of(subjects, model):
        verdict = verdict_in(tree, subject, subject.merged(), f"both-{subject.name}")
        assert verdict["code"] == "ok", verdict


def test_vectors_are_many_and_keys_name_the_machine(subjects: list[Subject]):
    for name in {subject.model.name for subject in subjects}:
        mine = of(subjects, name)
        assert sum(len(subject.ours.inputs) for subject in mine) >= 20
        assert {kind for subject in mine for kind in subject.kinds} == {"pictures", "noise"}
    for subject in subjects:
        keys = list(subject.merged().outputs)
        assert [key.rsplit("/", 1)[1].startswith(machine) for key, machine in zip(keys, ("x86_64", "aarch64"), strict=True)] == [True, True]


@pytest.mark.parametrize("moved", ["x86_64", "aarch64"])
def test_under_its_own_key_no_machine_forgives_one_step(moved: str, subjects: list[Subject], tree: Tree, tmp_path: Path):
    """One integer under one key is moved: that machine refuses the file, the other, which has a key of its own, takes it."""
    subject = of(subjects, "digits_int8")[0]
    both = subject.merged()
    (key,) = [key for key in both.outputs if moved in key]
    goldens = off_by_one_step(both, key)
    here, there = verdict_here(subject, goldens, tmp_path), verdict_in(tree, subject, goldens, f"moved-{moved}")
    refuses, takes = (here, there) if moved == "x86_64" else (there, here)
    assert refuses["code"] == "golden_mismatch"
    assert "differs by 1 (lsb), allowed 0" in refuses["text"]
    assert takes["code"] == "ok"
