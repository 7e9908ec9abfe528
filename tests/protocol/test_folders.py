"""A folder that somebody else filled: plain files by their own name, bounded; links, pipes, devices and paths lead nowhere."""

import os
from pathlib import Path

import pytest

from protocol.errors import InvalidError, NotFoundError
from protocol.folders import UntrustedFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "stick"
    (found / "a").mkdir(parents=True)
    (found / "a" / "file").write_bytes(b"hello")
    (tmp_path / "secret").write_bytes(b"secret")
    return found


def test_a_plain_file_is_read_whole_and_in_pieces(folder):
    with UntrustedFolder(folder) as stick:
        assert stick.read("a", "file", limit=5) == b"hello"
        assert b"".join(stick.chunks("a", "file", length=5)) == b"hello"
        assert stick.has("a", "file")
        assert stick.list_names("a", most=1) == ["file"]
        assert stick.list_names("b", most=1) == []


@pytest.mark.parametrize("name", ["..", ".", "", "a/file", "../secret", "/etc/passwd", "x\0y", "x" * 256])
def test_a_name_that_is_a_path_is_refused(folder, name):
    with UntrustedFolder(folder) as stick:
        for act in (lambda: stick.read(name, limit=10), lambda: stick.write(name, data=b"x"), lambda: stick.read("a", name, limit=10)):
            with pytest.raises(InvalidError):
                act()


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "device", "socket"])
def test_what_is_no_plain_file_is_refused_without_waiting(folder, kind):
    path = folder / "a" / "odd"
    match kind:
        case "link":
            path.symlink_to(folder.parent / "secret")
        case "dangling link":
            path.symlink_to(folder / "nowhere")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            import socket

            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
    with UntrustedFolder(folder) as stick:
        with pytest.raises(InvalidError if kind != "dangling link" else (InvalidError, NotFoundError)):
            stick.read("a", "odd", limit=100)
        assert not stick.has("a", "odd")


def test_a_link_in_place_of_a_folder_is_not_followed(folder):
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "file").write_bytes(b"x")
    (folder / "b").symlink_to(folder.parent / "outside")
    with UntrustedFolder(folder) as stick:
        for act in (
            lambda: stick.read("b", "file", limit=10),
            lambda: stick.list_names("b", most=10),
            lambda: stick.write("b", "new", data=b"x"),
        ):
            with pytest.raises(InvalidError):
                act()
    assert not (folder.parent / "outside" / "new").exists()


def test_sizes_and_counts_are_bounded(folder):
    with UntrustedFolder(folder) as stick:
        with pytest.raises(InvalidError):
            stick.read("a", "file", limit=4)
        for length in (4, 6):
            with pytest.raises(InvalidError):
                list(stick.chunks("a", "file", length=length))
        (folder / "a" / "other").write_bytes(b"")
        with pytest.raises(InvalidError):
            stick.list_names("a", most=1)


def test_writing_replaces_a_link_and_never_what_it_leads_to(folder):
    (folder / "a" / "report").symlink_to(folder.parent / "secret")
    with UntrustedFolder(folder) as stick:
        stick.write("a", "report", data=b"mine")
        stick.write("new", "deep", "file", data=b"mine")
    assert (folder.parent / "secret").read_bytes() == b"secret"
    assert not (folder / "a" / "report").is_symlink()
    assert (folder / "a" / "report").read_bytes() == (folder / "new" / "deep" / "file").read_bytes() == b"mine"
    assert sorted(path.name for path in (folder / "a").iterdir()) == ["file", "report"]


def test_missing_things_are_not_found(folder):
    with UntrustedFolder(folder) as stick, pytest.raises(NotFoundError):
        stick.read("a", "nothing", limit=1)
    for path in (folder / "nothing", folder / "a" / "file"):
        with pytest.raises(NotFoundError):
            UntrustedFolder(path)
