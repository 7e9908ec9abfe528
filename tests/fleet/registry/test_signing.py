"""The first start's ceremony: which keys there are, who can read them, and what is printed."""

import stat
from datetime import timedelta

import pytest
from simulators.clock import START
from tuf.api.metadata import Metadata

from fleet.registry.online import OnlineKeys
from fleet.registry.repository import root_expiry
from fleet.registry.signing import (
    OFFLINE,
    ONLINE,
    KeyName,
    TrustFolders,
    ceremony_text,
    create_line_key,
    create_trust,
    is_encrypted,
    load_key,
    load_public_key,
    new_passphrase,
    read_passphrase,
)
from protocol.errors import ConfigError, ConflictError
from protocol.ids import LineName


@pytest.fixture
def folders(tmp_path) -> TrustFolders:
    return TrustFolders(tmp_path / "data")


def test_offline_keys_are_encrypted_with_a_passphrase_that_is_returned_once(folders):
    passphrase = create_trust(folders.data_dir, demo=False, now=START)
    assert passphrase
    assert create_trust(folders.data_dir, demo=False, now=START) is None
    for name in OFFLINE:
        assert is_encrypted(folders.key_file(name))
        with pytest.raises(ConfigError, match="encrypted"):
            load_key(folders.key_file(name))
        with pytest.raises(ConfigError, match="does not open"):
            load_key(folders.key_file(name), passphrase="wrong")
        assert load_key(folders.key_file(name), passphrase=passphrase).public_key == load_public_key(
            folders.key_file(name).with_suffix(".pub")
        )
    assert all(len(OnlineKeys(folders).signers(name)) == 1 for name in ONLINE)
    assert not any(passphrase.encode() in path.read_bytes() for path in folders.data_dir.rglob("*") if path.is_file())


def test_private_keys_are_readable_for_their_owner_only(folders):
    create_trust(folders.data_dir, demo=True, now=START)
    files = list(folders.data_dir.rglob("*.pem"))
    assert len(files) == len(KeyName)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folders.online, folders.offline, folders.lines)} == {0o700}


def test_image_repository_and_director_have_roots_of_their_own_and_share_no_key(folders):
    create_trust(folders.data_dir, demo=True, now=START)
    image, director = (Metadata.from_bytes(path.read_bytes()).signed for path in (folders.image_bootstrap, folders.director_bootstrap))
    assert not image.keys.keys() & director.keys.keys()
    assert len(image.keys) == len(director.keys) == 4
    assert root_expiry(folders.image_bootstrap.read_bytes()) == START + timedelta(days=365)


def test_a_start_that_was_cut_short_begins_anew(folders):
    create_trust(folders.data_dir, demo=True, now=START)
    before = folders.image_bootstrap.read_bytes()
    folders.director_bootstrap.unlink()
    create_trust(folders.data_dir, demo=True, now=START)
    assert folders.image_bootstrap.read_bytes() != before
    assert OnlineKeys(folders).signers(KeyName.IMAGE_TIMESTAMP)


def test_the_ceremony_says_what_to_do(folders):
    text = ceremony_text(folders.data_dir, "abc-def")
    assert "abc-def" in text
    assert "WARNING" in text
    assert f"cp -a {folders.offline}" in text
    assert f"keys root init --data {folders.data_dir} " in text, "the commands name the folder of this server"
    assert "Never use this folder" in ceremony_text(folders.data_dir, None)


def test_a_line_keeps_its_key(folders):
    create_trust(folders.data_dir, demo=True, now=START)
    key = create_line_key(folders, LineName("digits"), passphrase="p")
    assert load_key(folders.line_key_file("digits"), passphrase="p").public_key == key
    with pytest.raises(ConflictError):
        create_line_key(folders, LineName("digits"), passphrase=None)


def test_a_missing_or_foreign_key_file_is_named(folders, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_key(tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="cannot be read"):
        is_encrypted(tmp_path / "none.pem")
    (tmp_path / "text.pem").write_text("text")
    with pytest.raises(ConfigError, match="no key"):
        load_key(tmp_path / "text.pem")
    with pytest.raises(ConfigError, match="no public key"):
        load_public_key(tmp_path / "text.pem")


def test_the_passphrase_comes_from_a_file_or_the_environment(tmp_path):
    (tmp_path / "p").write_text("one\n")
    assert read_passphrase(tmp_path / "p", {}) == "one"
    assert read_passphrase(None, {"MOORING_KEY_PASSPHRASE": "two"}) == "two"
    assert read_passphrase(None, {}) is None
    with pytest.raises(ConfigError):
        read_passphrase(tmp_path / "none", {})


def test_passphrases_differ_and_can_be_written_down():
    made = {new_passphrase() for _ in range(50)}
    assert len(made) == 50
    assert all(len(text) == 29 and text.count("-") == 4 for text in made)
