"""Loading a slot on the first candidate that takes it."""

from pathlib import Path

import pytest
from example_models import INSTALLED, READABLE, make_slot, variant_of

from protocol.errors import InvalidError
from runtime.base import BackendOptions, Candidate, LoadFailed, RuntimeMissing, candidates_for, create, parse_candidate
from runtime.loader import check_files, load_first, read_slot
from runtime.manifest import ModelManifest


def slot_of(tmp_path: Path, variant: str) -> tuple[Path, ModelManifest]:
    folder = make_slot(tmp_path / "slot", variant)
    return folder, read_slot(folder)


@pytest.mark.parametrize("variant", READABLE)
class TestLoading:
    def test_the_first_installed_candidate_is_used_and_the_missing_ones_are_named(self, variant: str, tmp_path: Path):
        folder, manifest = slot_of(tmp_path, variant)
        loaded = load_first(folder, manifest, BackendOptions())
        assert loaded.provider == str(loaded.candidate)
        assert loaded.candidate.backend in INSTALLED
        assert all(isinstance(fault, RuntimeMissing) for fault in loaded.faults)
        loaded.backend.close()

    def test_a_wished_accelerator_that_is_missing_is_seen_in_what_runs(self, variant: str, tmp_path: Path):
        folder, manifest = slot_of(tmp_path, variant)
        asked = "cuda" if variant == "onnx" else "edgetpu"
        loaded = load_first(folder, manifest, BackendOptions(providers=(asked,)))
        assert loaded.provider.endswith(":cpu")
        (refused,) = [fault for fault in loaded.faults if not isinstance(fault, RuntimeMissing)]
        assert asked in str(refused)
        assert refused.code == "accelerator_fallback"
        loaded.backend.close()

    def test_quarantined_candidates_are_skipped(self, variant: str, tmp_path: Path):
        folder, manifest = slot_of(tmp_path, variant)
        everyone = {str(candidate) for candidate in candidates_for(folder / manifest.model_file, manifest.backends)}
        with pytest.raises(RuntimeMissing, match="quarantined"):
            load_first(folder, manifest, BackendOptions(), skip=everyone)

    def test_a_damaged_file_is_a_failed_load_not_a_missing_runtime(self, variant: str, tmp_path: Path):
        folder, manifest = slot_of(tmp_path, variant)
        (folder / manifest.model_file).write_bytes(b"nothing of use")
        with pytest.raises(LoadFailed):
            load_first(folder, manifest, BackendOptions())

    def test_files_are_checked_against_their_digests(self, variant: str, tmp_path: Path):
        folder, manifest = slot_of(tmp_path, variant)
        check_files(folder, manifest)
        data = bytearray((folder / "golden.cbor").read_bytes())
        data[-1] ^= 1
        (folder / "golden.cbor").write_bytes(data)
        with pytest.raises(InvalidError, match=r"golden\.cbor has the digest") as caught:
            check_files(folder, manifest)
        assert caught.value.code == "file_mismatch"


class TestCandidates:
    def test_the_manifest_s_order_comes_before_the_plain_processor(self):
        assert candidates_for(Path("model.tflite"), ("tflite", "litert:edgetpu")) == (
            Candidate("tflite"),
            Candidate("litert", "edgetpu"),
            Candidate("litert"),
        )

    def test_litert_comes_before_tflite_runtime(self):
        assert [str(candidate) for candidate in candidates_for(Path("model.tflite"))] == ["litert:cpu", "tflite:cpu"]

    def test_configured_providers_come_first_and_alone_when_required(self):
        wished = BackendOptions(providers=("cuda", "cpu"))
        assert [str(c) for c in candidates_for(Path("m.onnx"), ("onnx",), wished)] == ["onnx:cuda", "onnx:cpu"]
        required = BackendOptions(providers=("cuda",), require=True)
        assert [str(c) for c in candidates_for(Path("m.onnx"), ("onnx",), required)] == ["onnx:cuda"]

    def test_a_provider_is_asked_of_the_backends_that_know_it_in_the_order_of_the_setting(self):
        wished = BackendOptions(providers=("gpu", "edgetpu-usb", "openvino"))
        assert [str(c) for c in candidates_for(Path("m.onnx"), (), wished)] == ["onnx:openvino", "onnx:cpu"]
        assert [str(c) for c in candidates_for(Path("m.tflite"), (), wished)] == [
            "litert-compiled:gpu",
            "litert:edgetpu-usb",
            "tflite:edgetpu-usb",
            "litert:cpu",
            "tflite:cpu",
        ]

    def test_providers_that_no_backend_of_the_format_knows_are_asked_all_the_same_so_that_the_fallback_is_told(self):
        wished = BackendOptions(providers=("edgetpu",))
        assert [str(c) for c in candidates_for(Path("m.onnx"), (), wished)] == ["onnx:edgetpu", "onnx:cpu"]

    @pytest.mark.parametrize("text", ["", "torch", "onnxx:cpu", ":cpu"])
    def test_an_unknown_backend_names_the_known_ones(self, text: str):
        with pytest.raises(InvalidError, match="litert, tflite, onnx"):
            parse_candidate(text)

    def test_an_unknown_name_creates_nothing(self):
        with pytest.raises(InvalidError, match="litert, tflite, onnx"):
            create("torch")


@pytest.mark.parametrize("name", [name for name in ("litert", "tflite", "onnx") if name not in INSTALLED])
def test_a_runtime_that_is_not_installed_says_how_to_install_it(name: str, tmp_path: Path):
    path = tmp_path / f"model.{variant_of(name)}"
    path.write_bytes(b"\x08\x08\x00\x00TFL3")
    with pytest.raises(RuntimeMissing, match=r"pip install 'mooring\["):
        create(name).load(path, None, BackendOptions())
