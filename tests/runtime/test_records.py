"""What is remembered of models and runtimes, and when it is forgotten."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.records import MAX_ENTRIES, MODELS_FILE, Kept, ModelRecord, ModelRecords, environment_key

ARTIFACT = "sha256:" + "a" * 64


def test_a_result_is_found_again_by_another_process(tmp_path: Path):
    record = ModelRecord(ARTIFACT, "onnx:cpu", "ok", "fine", 0.5, 1.5, 2.5, 80.0)
    ModelRecords(tmp_path).note(record)
    assert ModelRecords(tmp_path).find(ARTIFACT, "onnx:cpu") == record
    assert ModelRecords(tmp_path).find(ARTIFACT, "onnx:cuda") is None
    assert ModelRecords(None).find(ARTIFACT, "onnx:cpu") is None


def test_an_accelerator_that_crashed_twice_with_a_model_is_left_out_for_that_model(tmp_path: Path):
    records = ModelRecords(tmp_path)
    assert records.crashed(ARTIFACT, "onnx:cuda") == 1
    assert records.quarantined(ARTIFACT) == ()
    records.note(ModelRecord(ARTIFACT, "onnx:cuda", "crashed", crashes=1))
    assert ModelRecords(tmp_path).quarantined(ARTIFACT) == ("onnx:cuda",)
    assert records.quarantined("sha256:other") == ()


def test_processes_that_count_at_the_same_time_lose_no_crash(tmp_path: Path):
    """A self-test notes its results while supervision of the running process counts deaths."""
    script = f"""
import sys
from pathlib import Path
from runtime.records import ModelRecords

records = ModelRecords(Path({str(tmp_path)!r}))
records.find({ARTIFACT!r}, "onnx:cuda")  # all is imported
print(flush=True)
sys.stdin.readline()
for _ in range(40):
    records.crashed({ARTIFACT!r}, "onnx:cuda")
"""
    command = [sys.executable, "-c", script]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        assert child.wait(60) == 0
        child.stdin.close()
        child.stdout.close()
    found = ModelRecords(tmp_path).find(ARTIFACT, "onnx:cuda")
    assert found is not None
    assert found.crashes == 120


def test_a_good_result_between_two_crashes_forgets_none(tmp_path: Path):
    records = ModelRecords(tmp_path)
    records.crashed(ARTIFACT, "onnx:cuda")
    records.note(ModelRecord(ARTIFACT, "onnx:cuda", "ok"))
    records.crashed(ARTIFACT, "onnx:cuda")
    assert records.quarantined(ARTIFACT) == ("onnx:cuda",)


def test_the_processor_is_never_left_out_because_nothing_is_behind_it(tmp_path: Path):
    records = ModelRecords(tmp_path)
    for _ in range(5):
        records.crashed(ARTIFACT, "onnx:cpu")
    assert records.quarantined(ARTIFACT) == ()


def test_another_library_of_the_delegate_is_another_chance(tmp_path: Path):
    library = tmp_path / "libx.so"
    library.write_bytes(b"old")
    records = ModelRecords(tmp_path / "probe", provider_options={"external": {"library": str(library)}})
    for _ in range(2):
        records.crashed(ARTIFACT, "litert:external")
    assert records.quarantined(ARTIFACT) == ("litert:external",)
    library.write_bytes(b"newer")
    assert records.quarantined(ARTIFACT) == ()
    assert records.find(ARTIFACT, "litert:external") is None


def test_the_key_depends_on_provider_and_settings():
    keys = [
        environment_key("onnx"),
        environment_key("onnx", "cuda"),
        environment_key("onnx", "cuda", {"device_id": "1"}),
        environment_key("litert"),
    ]
    assert len(set(keys)) == 4
    assert environment_key("onnx") == keys[0]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"k": 3}', b'{"k": {"artifact": 3}}', b"x" * (2 << 20)],
    ids=["empty", "list", "cut", "odd", "types", "large"],
)
def test_a_damaged_file_is_an_empty_one_and_is_written_over(content: bytes, tmp_path: Path):
    (tmp_path / MODELS_FILE).write_bytes(content)
    records = ModelRecords(tmp_path)
    assert records.find(ARTIFACT, "onnx:cpu") is None
    assert records.quarantined(ARTIFACT) == ()
    assert records.crashed(ARTIFACT, "onnx:cuda") == 1
    assert ModelRecords(tmp_path).crashed(ARTIFACT, "onnx:cuda") == 2


def test_a_record_of_other_types_is_none(tmp_path: Path):
    records = ModelRecords(tmp_path)
    records.note(ModelRecord(ARTIFACT, "onnx:cuda"))
    kept = Kept(tmp_path, MODELS_FILE)
    ((key, value),) = kept.all().items()
    kept.put(key, {**value, "crashes": "many"})
    assert records.find(ARTIFACT, "onnx:cuda") is None
    assert records.quarantined(ARTIFACT) == ()


def test_the_oldest_entries_go_first(tmp_path: Path):
    kept = Kept(tmp_path, "x.json")
    for number in range(MAX_ENTRIES + 3):
        kept.put(str(number), {})
    assert next(iter(kept.all())) == "3"
    assert len(kept.all()) == MAX_ENTRIES


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    ModelRecords(tmp_path / "file").note(ModelRecord(ARTIFACT, "onnx:cpu"))
