"""Which release answers is the slots' word: activations and rollbacks are followed, whoever makes them."""

import shutil
from pathlib import Path

import pytest
from example_models import make_slot as make_tflite_slot
from simulators.color_models import Trait, make_slot

from agent.config import RuntimeConfig, ServingConfig
from agent.serving.follow import RETRY_S, Follower, find_folders
from agent.serving.messages import Task
from agent.serving.models import Shelf, read_key
from agent.slots import SlotContent, SlotFile, Slots
from protocol.errors import InvalidError
from protocol.files import digest_of_file
from protocol.ids import LineName, ReleaseVersion
from runtime.records import ModelRecords

LINE = LineName("color")


class Device:
    """Slots as the update machine keeps them, and a shelf that follows."""

    def __init__(self, folder: Path, *, lines: tuple[str, ...] = ()) -> None:
        self.root, self.made = folder / "slots", folder / "made"
        self.root.mkdir()
        self.slots = Slots(self.root)
        self.shelf = Shelf(copies=1, runtime=RuntimeConfig())
        self.follower = Follower(find_folders(Task(serving=ServingConfig(), runtime=RuntimeConfig(), slots_dir=self.root)), lines=lines)
        self.now_s = 0.0

    def install(self, release: str, *, trait: Trait = Trait.NONE, damage: bool = False) -> None:
        """Write a release into the inactive slot and make it active, on trial."""
        made = make_slot(self.made, release=release, trait=trait)
        if damage:
            (made / "model.onnx").write_bytes(b"\x08damaged")
        sources = {path.name: path for path in made.iterdir()}
        files = tuple(SlotFile(name, digest_of_file(path), path.stat().st_size) for name, path in sorted(sources.items()))
        slot = self.slots.write(SlotContent(LINE, ReleaseVersion(release), 1, "v", files), sources)
        self.slots.activate(LINE, slot.name)

    def release(self) -> str:
        """What answers after a look; its reason when nothing does."""
        self.follower.follow(self.shelf, self.now_s)
        entry = self.shelf.entry(LINE)
        if entry is None:
            return "unknown"
        return entry.model.release if entry.model else entry.text


@pytest.fixture
def device(tmp_path):
    made = Device(tmp_path)
    yield made
    made.shelf.close()


def test_activations_and_rollbacks_are_followed(device):
    assert device.release() == "unknown"
    device.install("1.0")
    assert device.release() == "1.0"
    device.slots.commit(LINE)
    assert device.release() == "1.0"
    before = device.slots.pointer(LINE).active
    device.install("2.0")
    assert device.release() == "2.0"
    device.slots.roll_back(LINE, before)
    assert device.release() == "1.0"
    device.slots.roll_back(LINE, None)
    assert "no active release" in device.release()


def test_nothing_is_read_again_while_nothing_changed(device):
    device.install("1.0")
    assert device.release() == "1.0"
    model = device.shelf.entry(LINE).model
    shutil.rmtree(device.slots.active(LINE).folder)  # would be noticed by a look into it
    assert device.release() == "1.0"
    assert device.shelf.entry(LINE).model is model


def test_what_does_not_load_is_tried_again_after_a_while(device):
    device.install("1.0", damage=True)
    assert "does not load" in device.release()
    folder = device.slots.active(LINE).folder
    shutil.copytree(make_slot(device.made, release="1.0"), folder, dirs_exist_ok=True)
    assert "does not load" in device.release()
    device.now_s = RETRY_S
    assert device.release() == "1.0"


def test_lines_that_are_named_are_known_before_they_have_a_release(tmp_path):
    device = Device(tmp_path, lines=("color",))
    assert "no active release" in device.release()
    device.install("1.0")
    assert device.release() == "1.0"
    device.shelf.close()


def folders_of(folder: Path) -> dict[str, object]:
    found = find_folders(Task(serving=ServingConfig(), runtime=RuntimeConfig(), model_dir=folder))()
    return {line: where for line, (where, _) in found.items()}


def test_a_folder_of_the_users_own_is_served_under_its_manifests_line(tmp_path):
    slot = make_slot(tmp_path / "any-name")
    assert folders_of(slot) == {"color": slot}
    assert folders_of(tmp_path) == {"color": slot}


def test_folders_without_a_manifest_or_with_two_of_one_line_are_refused(tmp_path):
    with pytest.raises(InvalidError, match=r"no manifest\.json"):
        folders_of(tmp_path)
    make_slot(tmp_path / "a")
    make_slot(tmp_path / "b")
    with pytest.raises(InvalidError, match="one line, color"):
        folders_of(tmp_path)
    (tmp_path / "b" / "manifest.json").write_text("{}")
    with pytest.raises(InvalidError, match="cannot be used"):
        folders_of(tmp_path)


def test_a_back_end_that_crashed_with_the_model_twice_is_not_tried(tmp_path):
    folder, kept = make_tflite_slot(tmp_path / "digits", "tflite"), tmp_path / "probe"

    def asked() -> str:
        shelf = Shelf(copies=1, runtime=RuntimeConfig(providers=("builtin",)), records_dir=kept)
        shelf.put("digits", folder)
        model = shelf.entry("digits").model
        shelf.close()
        return model.asked

    assert asked() == "litert:builtin"
    for _ in range(2):
        ModelRecords(kept).crashed(read_key(folder)[0].digest, "litert:builtin")
    assert asked() == "litert:cpu"


def test_a_model_of_another_line_is_not_served(tmp_path):
    shelf = Shelf(copies=1, runtime=RuntimeConfig())
    shelf.put("other", make_slot(tmp_path / "color"))
    assert "wanted one of other" in shelf.entry("other").text
