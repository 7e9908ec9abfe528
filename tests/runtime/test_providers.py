"""Providers as they are asked for, and what is said of those that are not there, of another ABI, or take nothing."""

from pathlib import Path

import pytest
from example_models import INSTALLED, make_slot, model_folder
from simulators.delegates import COMPILER, KILLS, NO_DELEGATE, NOOP, build

from runtime.base import BackendOptions, LoadFailed, create
from runtime.probe import self_test
from runtime.providers import KINDS, ask_for, find_kind, is_known_to, name_of_ep

needs_onnx = pytest.mark.skipif("onnx" not in INSTALLED, reason="ONNX Runtime is not installed")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler: apt install gcc")
TFLITE = [name for name in ("litert", "tflite") if name in INSTALLED]
ONNX_MODEL = model_folder("onnx") / "model.onnx"
TFLITE_MODEL = model_folder("tflite") / "model.tflite"


class TestAsking:
    def test_a_device_is_named_after_a_dash(self):
        assert ask_for("openvino-npu").options["device_type"] == "NPU"
        assert ask_for("openvino").options["device_type"] == "CPU"
        assert ask_for("edgetpu-pci").options["device"] == "pci"
        assert "device" not in ask_for("edgetpu").options
        assert ask_for("qnn-gpu").options["backend_path"] == "libQnnGpu.so"

    def test_settings_win_over_what_is_usual(self):
        assert ask_for("cuda", settings={"device_id": "1"}).options == {"arena_extend_strategy": "kSameAsRequested", "device_id": "1"}

    def test_threads_go_to_the_provider_that_has_a_pool_of_its_own(self):
        assert ask_for("xnnpack", threads=3).options["intra_op_num_threads"] == "3"
        assert ask_for("openvino", threads=2).options["num_of_threads"] == "2"

    def test_engines_of_tensorrt_are_kept_where_systemd_says(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/mooring/agent:/other")
        assert ask_for("tensorrt").options["trt_engine_cache_path"] == "/var/cache/mooring/agent"
        monkeypatch.delenv("CACHE_DIRECTORY")
        assert "trt_engine_cache_path" not in ask_for("tensorrt").options

    def test_a_name_of_onnx_runtime_itself_may_be_used(self):
        assert ask_for("SnpeExecutionProvider", settings={"runtime": "DSP"}).ep == "SnpeExecutionProvider"
        assert is_known_to("SnpeExecutionProvider", "onnx")
        assert not is_known_to("SnpeExecutionProvider", "litert")

    def test_a_provider_of_a_library_may_be_asked_for_one_kind_of_device(self):
        assert ask_for("ggml-gpu", settings={"library": "/x.so"}).ep == "ggml"
        assert ask_for("ggml-gpu").ep == "ggml-gpu"
        assert ask_for("qnn-npu", settings={"library": "/x.so"}).ep == "QNNExecutionProvider"

    def test_every_name_of_onnx_runtime_leads_back_to_ours(self):
        assert {name_of_ep(kind.ep) for kind in KINDS.values() if kind.ep} == {kind.name for kind in KINDS.values() if kind.ep}
        assert find_kind("nonsense-usb") is None


@needs_onnx
class TestOnnxRuntime:
    def test_all_our_names_are_names_that_onnx_runtime_has(self):
        from runtime.onnx import import_onnxruntime

        known = {*import_onnxruntime().get_all_providers(), "ACLExecutionProvider"}  # only builds with ACL list that one
        assert {kind.ep for kind in KINDS.values() if kind.ep} <= known

    @pytest.mark.parametrize(
        "name", sorted(name for name, kind in KINDS.items() if kind.ep and name not in ("cpu", "xnnpack", "openvino", "cuda"))
    )
    def test_one_that_is_not_in_this_build_is_told_with_where_to_get_it(self, name: str):
        backend = create("onnx")
        backend.load(ONNX_MODEL, None, BackendOptions(providers=(name,)))
        provider = backend.effective_provider
        assert (provider.asked, provider.effective) == (name, "cpu")
        assert KINDS[name].source in provider.reason

    def test_one_that_takes_no_node_of_the_model_counts_as_a_fallback(self):
        from runtime.onnx import import_onnxruntime

        azure = "AzureExecutionProvider"  # in every wheel; it takes operators of its own only
        if azure not in import_onnxruntime().get_available_providers():
            pytest.skip(f"this build of ONNX Runtime has no {azure}")
        backend = create("onnx")
        backend.load(ONNX_MODEL, None, BackendOptions(providers=(azure,)))
        assert backend.effective_provider.effective == "cpu"
        assert "took none" in backend.effective_provider.reason
        with pytest.raises(LoadFailed, match="took none") as caught:
            backend.load(ONNX_MODEL, None, BackendOptions(providers=(azure,), require=True))
        assert caught.value.code == "accelerator_fallback"

    def test_the_nodes_of_a_session_are_counted_by_provider(self):
        from runtime.onnx import assigned_nodes, import_onnxruntime

        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = ort.InferenceSession(ONNX_MODEL, options, providers=["CPUExecutionProvider"])
        counts = assigned_nodes(session)
        assert counts == {} or (set(counts) == {"CPUExecutionProvider"} and counts["CPUExecutionProvider"] > 5)

    def test_a_delegate_of_tflite_is_no_provider_of_onnx_runtime(self):
        backend = create("onnx")
        backend.load(ONNX_MODEL, None, BackendOptions(providers=("edgetpu",)))
        assert "edgetpu is a provider of litert and tflite" in backend.effective_provider.reason

    @needs_compiler
    def test_a_library_that_is_no_provider_is_refused_and_the_processor_answers(self, tmp_path: Path):
        library = build(NO_DELEGATE, tmp_path / "libother.so")
        for path, words in (("/nowhere/libx.so", "/nowhere/libx.so"), (str(library), "CreateEpFactories")):
            backend = create("onnx")
            backend.load(ONNX_MODEL, None, BackendOptions(providers=("qnn-npu",), provider_options={"qnn-npu": {"library": path}}))
            assert backend.effective_provider.effective == "cpu"
            assert words in backend.effective_provider.reason

    def test_the_next_provider_of_the_list_is_tried_before_the_processor(self):
        backend = create("onnx")
        backend.load(ONNX_MODEL, None, BackendOptions(providers=("migraphx", "coreml")))
        assert "migraphx is not in" in backend.effective_provider.reason
        assert "coreml is not in" in backend.effective_provider.reason


@pytest.mark.parametrize("name", TFLITE)
class TestDelegates:
    def load(self, name: str, provider: str = "external", **options: str):
        backend = create(name)
        backend.load(TFLITE_MODEL, None, BackendOptions(providers=(provider,), provider_options={provider: options}))
        return backend

    @pytest.mark.parametrize("provider", ["xnnpack", "builtin"])
    def test_the_processor_s_kernels_are_chosen_and_told(self, name: str, provider: str):
        assert self.load(name, provider).effective_provider.effective == provider

    def test_an_edgetpu_without_its_library_leaves_the_processor_and_a_reason(self, name: str):
        provider = self.load(name, "edgetpu-usb").effective_provider
        assert (provider.asked, provider.effective) == ("edgetpu-usb", "cpu")
        assert "libedgetpu.so.1" in provider.reason

    def test_a_delegate_needs_a_library(self, name: str):
        assert "runtime.options.NAME.library" in self.load(name).effective_provider.reason

    def test_a_library_that_is_not_there_is_named(self, name: str):
        assert "/nowhere/libx.so" in self.load(name, library="/nowhere/libx.so").effective_provider.reason

    def test_a_provider_of_another_back_end_is_refused_with_those_it_has(self, name: str):
        assert "builtin" in self.load(name, "cuda").effective_provider.reason

    @needs_compiler
    def test_an_external_delegate_is_loaded_with_its_options_and_the_model_answers(self, name: str, tmp_path: Path):
        library, log = build(NOOP, tmp_path / "libnoop.so"), tmp_path / "log"
        backend = self.load(name, "external-noop", library=str(library), log=str(log), device="7")
        assert backend.effective_provider.effective == "external-noop"
        assert set(log.read_text().split()) == {f"log={log}", "device=7"}
        backend.warm(2)

    @needs_compiler
    def test_a_library_without_the_functions_of_a_delegate_is_refused_by_name(self, name: str, tmp_path: Path):
        library = build(NO_DELEGATE, tmp_path / "libother.so")
        reason = self.load(name, library=str(library)).effective_provider.reason
        assert "no TFLite delegate" in reason
        assert "tflite_plugin_create_delegate" in reason

    @needs_compiler
    def test_what_a_delegate_says_when_it_refuses_is_handed_on(self, name: str, tmp_path: Path):
        library = build(NOOP, tmp_path / "libnoop.so")
        assert "no such device: slot 7" in self.load(name, library=str(library), fail="1").effective_provider.reason

    @needs_compiler
    def test_a_delegate_that_kills_its_process_costs_a_child_and_the_processor_answers(self, name: str, tmp_path: Path):
        library = build(KILLS, tmp_path / "libkills.so")
        options = BackendOptions(providers=("external",), provider_options={"external": {"library": str(library)}})
        slot = make_slot(tmp_path / "slot", "tflite")
        assert self_test(slot, options, only=f"{name}:external").code == "crashed"
        verdict = self_test(slot, options)
        assert verdict.ok
        assert verdict.provider == f"{TFLITE[0]}:cpu"
