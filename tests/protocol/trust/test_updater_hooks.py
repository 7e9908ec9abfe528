"""Pins the private hooks of python-tuf that StrictUpdater overrides or calls: an upgrade that moves them fails here, not on a device."""

import inspect
from importlib.metadata import version

from simulators.repository import BASE_URL
from tuf.ngclient import Updater
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

from protocol.trust.updater import StrictUpdater

HOOKS = {
    "_load_targets": "(self, role: 'str', parent_role: 'str') -> 'Targets'",
    "_persist_file": "(self, filename: 'str', data: 'bytes') -> 'None'",
    "_update_root_symlink": "(self) -> 'None'",
    "_load_root": "(self) -> 'None'",
    "_load_local_metadata": "(self, rolename: 'str') -> 'bytes'",
}


def test_the_pinned_line_of_python_tuf_is_installed():
    assert version("tuf").startswith("7.0.")


def test_the_hooks_have_the_signatures_that_we_override():
    assert {name: str(inspect.signature(getattr(Updater, name))) for name in HOOKS} == HOOKS


def test_the_trusted_set_judges_expiry_by_its_reference_time_and_knows_delegators():
    assert str(inspect.signature(TrustedMetadataSet.contains)) == "(self, role: 'str', delegator: 'str') -> 'bool'"
    assert "self.reference_time = " in inspect.getsource(TrustedMetadataSet.__init__)
    for name in ("update_timestamp", "_check_final_timestamp", "_check_final_snapshot", "update_delegated_targets"):
        assert "is_expired(self.reference_time)" in inspect.getsource(getattr(TrustedMetadataSet, name))


def test_every_write_of_python_tuf_goes_through_the_hook_that_we_make_durable():
    source = inspect.getsource(Updater)
    writes = [line.strip() for line in source.splitlines() if "_persist_file(" in line or '"wb"' in line or "os.replace" in line]
    assert writes == [
        'with open(filepath, "wb") as destination_file:',  # download_target, which nobody here calls
        "self._persist_file(filename, data)",
        'self._persist_file(str(rootdir / f"{version}.root.json"), data)',
        "def _persist_file(self, filename: str, data: bytes) -> None:",
        "os.replace(temp_file.name, filename)",
    ]


def test_the_cached_root_is_a_link_that_is_replaced_at_once_and_no_temporary_file_stays(world):
    world.check()
    world.image.rotate_root()
    world.check()
    folder = world.folder / "image"
    assert (folder / "root.json").resolve() == (folder / "root_history" / "2.root.json").resolve()
    assert (folder / "root.json").read_bytes() == world.image.files["2.root.json"]
    names = sorted(path.name for path in folder.rglob("*"))
    assert names == [
        "1.root.json",
        "2.root.json",
        "model.digits.json",
        "root.json",
        "root_history",
        "snapshot.json",
        "targets.json",
        "timestamp.json",
    ]


def test_an_empty_cached_file_as_a_power_cut_leaves_it_is_fetched_again(world):
    world.check()
    for path in (world.folder / "image").glob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"")
    assert world.check().lines


def test_the_reference_time_is_the_one_given_not_the_systems(world):
    updater = StrictUpdater(world.access("director"), reference_time=world.now)
    assert updater._trusted_set.reference_time == world.now
    assert BASE_URL in updater._metadata_base_url
