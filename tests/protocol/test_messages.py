"""Messages recorded from a released schema are read by today's code, lose nothing, and survive fields from the future."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from protocol import messages
from protocol.messages import Envelope, TelPerf, Wire

RECORDED = sorted((Path(__file__).parent.parent / "golden" / "messages").glob("*.json"))


def _model(path: Path) -> type[Wire]:
    model = getattr(messages, path.stem.rsplit(".", 1)[1])
    assert issubclass(model, Wire)
    return model


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_message_is_read_without_loss(path: Path):
    recorded = json.loads(path.read_text())
    assert json.loads(_model(path).model_validate_json(path.read_bytes()).model_dump_json()) == recorded


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_field_from_the_future_is_ignored(path: Path):
    future = json.loads(path.read_text()) | {"added_later": {"x": 1}}
    assert _model(path).model_validate(future) == _model(path).model_validate_json(path.read_bytes())


def test_every_top_level_message_has_a_recording():
    recorded = {_model(path).__name__ for path in RECORDED}
    parts = {
        "Asked",
        "Wire",
        "Envelope",
        "RuntimeInfo",
        "PipelineBackend",
        "ConditionReport",
        "SlotReport",
        "BlockedRelease",
        "LineState",
        "UpdateStep",
    }
    parts |= {
        "Score",
        "DetectedBox",
        "AckStream",
        "ManifestHint",
        "BrokerAddress",
        "DsseSignature",
        "Consent",
        "ReportedConfiguration",
        "ReturnedConfiguration",
        "DriftFeature",
        "DriftPipeline",
    }
    declared = {name for name, item in vars(messages).items() if isinstance(item, type) and issubclass(item, Wire)}
    assert declared - parts == recorded


@pytest.mark.parametrize(
    "change", [{"seq": -1}, {"ts": "soon"}, {"window_s": float("nan")}, {"frames": 2**60}, {"pipeline": "No Name"}, {"v": 2}]
)
def test_a_message_out_of_bounds_is_refused(change: dict[str, object]):
    good = json.loads((Path(__file__).parent.parent / "golden" / "messages" / "tel-perf.1.TelPerf.json").read_text())
    with pytest.raises(ValidationError):
        TelPerf.model_validate(good | change)


def test_the_envelope_is_what_the_interface_document_lists():
    assert set(Envelope.model_fields) == {"v", "ts", "clk", "boot", "epoch", "seq", "floor"}
