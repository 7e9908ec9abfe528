"""`mooring-agent autotune` on the models of a state folder."""

import json
from pathlib import Path

import pytest
from example_models import READABLE, make_slot

from agent.cli import main
from agent.inference.tuning import Tunings
from agent.slots import SlotContent, SlotFile, Slots
from protocol.files import digest_of_file
from protocol.ids import LineName, ReleaseVersion


def installed(state_dir: Path, source: Path) -> None:
    """The release of a slot folder as the active one of the line `digits`."""
    files = tuple(SlotFile(path.name, digest_of_file(path), path.stat().st_size) for path in sorted(source.iterdir()))
    slots, line = Slots(state_dir / "slots"), LineName("digits")
    written = slots.write(SlotContent(line, ReleaseVersion("1.1"), 2, "x", files), {path.name: path for path in source.iterdir()})
    slots.activate(line, written.name)


def autotune(state_dir: Path, *more: str) -> int:
    return main(["autotune", "--state-dir", str(state_dir), *more])


@pytest.mark.parametrize("variant", READABLE[:1])
def test_the_active_model_is_measured_and_the_result_kept_where_the_agent_looks(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    installed(tmp_path / "state", make_slot(tmp_path / "source", variant))
    assert autotune(tmp_path / "state", "--seconds", "120", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["line"], found["frame_ms"]) == ("digits", 40.0)
    assert Tunings(tmp_path / "state" / "probe").find(found["artifact"]) is not None
    missing = {"tflite": "edgetpu", "onnx": "migraphx"}[variant]
    assert autotune(tmp_path / "state", "--line", "digits", "--seconds", "120", "--set", f'runtime.providers=["{missing}"]') == 0
    shown = capsys.readouterr().out
    assert shown.startswith("digits: ")
    assert f"{missing}' was required and is not usable" in shown or f"{missing} is not in this ONNX Runtime" in shown


def test_a_device_without_models_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "state").mkdir()
    assert autotune(tmp_path / "state") == 0
    assert "no models yet" in capsys.readouterr().out
    assert autotune(tmp_path / "state", "--line", "other") == 3
    assert autotune(tmp_path / "state", "--pipeline", "door") == 3
    assert "There is no pipeline 'door'" in capsys.readouterr().err
