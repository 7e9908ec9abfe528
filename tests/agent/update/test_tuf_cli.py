"""The TUF client's command line: what it keeps, what it asks for, and the replacement through a second parent that it refuses."""

import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from simulators.repository import RepositorySimulator, target
from simulators.tuf_server import TufServer, serve
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

from agent.update import tuf_cli

DATA = b"what is to be fetched"


@pytest.fixture
def server():
    with serve(RepositorySimulator(now=datetime.now(UTC))) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, server: TufServer) -> Path:
    """The client's folder, initialized."""
    root = tmp_path / "given.json"
    root.write_bytes(server.repository.bootstrap)
    assert tuf_cli.main(["--metadata-dir", str(tmp_path / "metadata"), "init", str(root)]) == 0
    return tmp_path


def refresh(folder: Path, server: TufServer) -> int:
    return tuf_cli.main(["--metadata-dir", str(folder / "metadata"), "--metadata-url", server.metadata_url, "refresh"])


def download(folder: Path, server: TufServer, *names: str) -> int:
    options = {"--metadata-dir": folder / "metadata", "--metadata-url": server.metadata_url}
    options |= {"--target-base-url": server.targets_url, "--target-dir": folder / "targets"}
    wanted = [part for name in names for part in ("--target-name", name)]
    return tuf_cli.main([*(str(part) for pair in options.items() for part in pair), *wanted, "download"])


def publish(server: TufServer, path: str, data: bytes = DATA) -> None:
    server.repository.targets.targets[path] = target(path, data)
    serve_target(server, path, data)
    server.repository.publish()


def serve_target(server: TufServer, path: str, data: bytes) -> None:
    above, slash, name = path.rpartition("/")
    server.targets[f"{above}{slash}{sha256(data).hexdigest()}.{name}"] = data


def kept(folder: Path, path: str) -> bytes:
    return (folder / "targets" / quote(path, safe="")).read_bytes()


def test_init_keeps_the_root_and_asks_the_server_nothing(folder, server):
    assert (folder / "metadata" / "root.json").read_bytes() == server.repository.bootstrap
    assert server.requests == []


def test_init_with_a_root_that_is_missing_or_too_long_fails(tmp_path):
    (tmp_path / "long").write_bytes(b" " * (tuf_cli.MAX_ROOT_BYTES + 1))
    for name in ("long", "missing"):
        assert tuf_cli.main(["--metadata-dir", str(tmp_path), "init", str(tmp_path / name)]) == 1
    assert not (tmp_path / "root.json").exists()


def test_refresh_keeps_every_role_under_its_plain_name_and_follows_the_root(folder, server):
    server.repository.rotate_root()
    assert refresh(folder, server) == 0
    found = {path.name: Metadata.from_file(str(path)).signed.version for path in (folder / "metadata").glob("*.json")}
    assert found == {"root.json": 2, "timestamp.json": 1, "snapshot.json": 1, "targets.json": 1}


def test_a_refresh_that_is_refused_says_why_and_exits_1(folder, server, capsys):
    assert refresh(folder, server) == 0
    server.repository.signers["timestamp"] = [CryptoSigner.generate_ed25519()]
    server.repository.publish()
    assert refresh(folder, server) == 1
    assert "UnsignedMetadataError" in capsys.readouterr().err


def test_a_server_that_is_gone_is_an_error(folder, server):
    assert tuf_cli.main(["--metadata-dir", str(folder / "metadata"), "--metadata-url", "http://127.0.0.1:1/", "refresh"]) == 1


@pytest.mark.parametrize("path", ["file.txt", "a folder/größe?.txt", ".."])
def test_a_downloaded_target_is_there_and_is_not_fetched_again(folder, server, path):
    publish(server, path)
    assert download(folder, server, path) == 0
    assert [file.read_bytes() for file in (folder / "targets").iterdir()] == [DATA]
    assert sum(name.startswith("/targets/") for name in server.requests) == 1
    assert download(folder, server, path) == 0
    assert sum(name.startswith("/targets/") for name in server.requests) == 1


def test_a_changed_target_replaces_the_old_one(folder, server):
    publish(server, "file.txt")
    download(folder, server, "file.txt")
    publish(server, "file.txt", b"new")
    assert download(folder, server, "file.txt") == 0
    assert kept(folder, "file.txt") == b"new"


def test_targets_without_a_digest_in_their_name_are_found_where_the_root_asks_for_no_consistent_snapshot(folder, server):
    repository = server.repository
    repository.root.consistent_snapshot = False
    repository.rotate_root()
    publish(server, "file.txt")
    server.targets = {"file.txt": DATA}
    for name, role in (("targets", repository.targets), ("snapshot", repository.snapshot)):
        repository.files[f"{name}.json"] = repository.files[f"{role.version}.{name}.json"]
    assert download(folder, server, "file.txt") == 0


@pytest.mark.parametrize("served", [b"wrong", DATA + b"!", DATA[:-1]])
def test_a_target_with_other_bytes_is_refused_and_not_kept(folder, server, served):
    publish(server, "file.txt")
    server.targets = dict.fromkeys(server.targets, served)
    assert download(folder, server, "file.txt") == 1
    assert list((folder).glob("targets/*")) == []


def test_a_target_that_nobody_named_or_that_is_too_large_is_refused(folder, server, capsys):
    assert download(folder, server, "file.txt") == 1
    publish(server, "file.txt")
    server.repository.targets.targets["file.txt"].length = tuf_cli.MAX_TARGET_BYTES + 1
    server.repository.publish()
    assert download(folder, server, "file.txt") == 1
    said = capsys.readouterr().err
    assert "knows no target" in said
    assert "at most" in said


def test_the_module_runs_as_a_program(folder, server):
    options = ["--metadata-dir", str(folder / "metadata"), "--metadata-url", server.metadata_url]
    assert subprocess.run([sys.executable, "-m", "agent.update.tuf_cli", *options, "refresh"], check=False, timeout=300).returncode == 0


# --- the hole in no suite: UPDATES 1.5 ---

GOOD, OTHER = "a/file", "b/file"


class Swapping(RepositorySimulator):
    """Serves role "shared", delegated by a and by b, as a's signer made it; from the second request on as b's signer did, same version."""

    def __init__(self) -> None:
        super().__init__(now=datetime.now(UTC))
        self.parents = ours, theirs = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
        for name, signer in zip("ab", self.parents, strict=True):
            parent = self.delegate(name, f"{name}/*")
            self.delegate("shared", f"{name}/*", parent=parent, signer=signer)
        self.signers["shared"] = [ours]
        shared = self.delegated["shared"]
        shared.targets = {GOOD: target(GOOD, b"good"), OTHER: target(OTHER, b"good")}
        self.publish(bind=False)
        self.name = f"{shared.version}.shared.json"
        shared.targets = {GOOD: target(GOOD, b"evil"), OTHER: target(OTHER, b"good")}
        self.evil = self.sign(shared, theirs)

    def _fetch(self, url):
        served = super()._fetch(url)
        if url.endswith(self.name):
            self.files[self.name] = self.evil
        return served


@pytest.fixture
def swapping(tmp_path):
    with serve(Swapping()) as running:
        for path, data in ((GOOD, b"good"), (GOOD, b"evil"), (OTHER, b"good")):
            serve_target(running, path, data)
        (tmp_path / "root.json").write_bytes(running.repository.bootstrap)
        assert tuf_cli.main(["--metadata-dir", str(tmp_path / "metadata"), "init", str(tmp_path / "root.json")]) == 0
        yield running


def test_a_second_parents_signer_cannot_replace_what_the_first_parents_signer_signed_at_the_same_version(tmp_path, swapping):
    assert download(tmp_path, swapping, GOOD, OTHER, GOOD) == 1
    assert kept(tmp_path, GOOD) == b"good"
    assert sum("shared" in path for path in swapping.requests) == 1


def test_python_tuf_alone_falls_for_it_so_the_attack_is_a_real_one(tmp_path, swapping):
    updater = Updater(str(tmp_path / "metadata"), swapping.metadata_url, bootstrap=swapping.repository.bootstrap)
    found = [updater.get_targetinfo(path) for path in (GOOD, OTHER, GOOD)]
    assert found[0].hashes["sha256"] == sha256(b"good").hexdigest()
    assert found[2].hashes["sha256"] == sha256(b"evil").hexdigest()


def test_a_role_that_both_parents_vouch_for_is_read_through_both_without_digests_in_the_snapshot(tmp_path, swapping):
    repository = swapping.repository
    signed = Metadata.from_bytes(repository.files[repository.name]).signed
    repository.evil = repository.files[repository.name] = repository.sign(signed, *repository.parents)
    assert download(tmp_path, swapping, GOOD, OTHER, GOOD) == 0
    assert sum("shared" in path for path in swapping.requests) == 1
