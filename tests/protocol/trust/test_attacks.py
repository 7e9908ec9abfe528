"""The attacks of the TUF and Uptane texts, each tried on repositories in memory and refused by its name (UPDATES 1.3).

`mutations.py` beside this file holds, per row of the attack table, the check that stops it and the tests that fail without that check;
`make test-mutations` takes the checks out one by one.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from securesystemslib.signer import CryptoSigner
from simulators.clock import FakeClock
from simulators.repository import target
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Timestamp

from agent.update.assignment import OfferedFile
from agent.update.fetch import Downloads, open_tuf_fetcher
from protocol.clock import to_unix_ms
from protocol.errors import DeviceError, TransferError, TrustError, UnavailableError
from protocol.ids import DeviceId
from protocol.trust.metadata import (
    DirectorTargetFields,
    ImageLineFields,
    Requires,
    line_pattern,
    write_fields,
)
from protocol.trust.updater import RepositoryAccess, StrictUpdater, verify_signed_time

PATH = "model/digits/1.0/onnx.model.onnx"
#: What each file of the world's releases begins with; its path follows.
MODEL = b"not really a model, but bytes with a digest"
DIGITS = "digits"


def refused(world: Any, code: str, **facts: Any) -> TrustError:
    with pytest.raises(TrustError) as caught:
        world.check(**facts)
    assert caught.value.code == code, caught.value
    return caught.value


def test_what_both_repositories_name_is_assigned(world):
    found = world.check()
    assert [(line.line, line.release, line.counter, line.variant, line.attempt) for line in found.lines] == [
        ("digits", "1.0", 10, "onnx", 1)
    ]
    assert [file.name for file in found.lines[0].targets] == ["manifest.json", "model.onnx"]
    assert found.issued_at == world.now
    assert found.floors == {"digits": 0}
    assert {"director.root", "director.targets", "image.root", "image.model.digits", "image.snapshot"} <= found.metadata_versions.keys()


def test_an_empty_assignment_reads_the_image_repository_not_at_all(world):
    world.director.targets.targets = {}
    world.director.publish()
    assert world.check().lines == ()
    assert world.image.requests == []


def test_a_second_check_with_nothing_new_is_the_same_assignment(world):
    first = world.check()
    assert world.check() == first


# --- arbitrary software ---


def test_arbitrary_software_named_by_the_director_alone_is_refused(world):
    path = "model/digits/6.6/onnx.model.onnx"
    world.director.targets.targets = {path: target(path, b"malware")}
    world.director.publish()
    refused(world, "arbitrary-software")


@pytest.mark.parametrize("what", ["length", "sha256", "no-sha256"])
def test_arbitrary_software_under_a_released_name_is_refused(world, what):
    ordered = world.director.targets.targets[PATH]
    match what:
        case "length":
            ordered.length += 1
        case "sha256":
            ordered.hashes["sha256"] = "0" * 64
        case _:
            ordered.hashes = {"sha512": "0" * 128}
    world.director.publish()
    refused(world, "arbitrary-software")


def test_arbitrary_software_in_the_top_level_targets_is_refused(world):
    path = "model/digits/1.5/onnx.model.onnx"
    world.image.targets.targets[path] = target(path, b"x", write_fields(world.image_fields(release="1.5")))
    world.image.publish()
    world.director.targets.targets = {path: target(path, b"x")}
    world.director.publish()
    refused(world, "arbitrary-software")


def test_arbitrary_software_in_the_top_level_targets_beside_a_released_file_is_refused(world):
    """The line's role is read for the file that it does name."""
    released, other = (f"model/digits/1.5/onnx.{name}" for name in ("model.onnx", "manifest.json"))
    for role, path in ((world.image.delegated["model.digits"], released), (world.image.targets, other)):
        role.targets[path] = target(path, b"x", write_fields(world.image_fields(release="1.5", counter=15)))
    world.image.publish()
    world.director.targets.targets = {path: target(path, b"x") for path in (released, other)}
    world.director.publish()
    refused(world, "arbitrary-software")


def test_arbitrary_software_signed_by_another_lines_key_is_refused(world):
    other = world.image.delegate("model.other", line_pattern("other"))
    path = "model/digits/1.5/onnx.model.onnx"
    other.targets[path] = target(path, b"x", write_fields(world.image_fields(release="1.5")))
    world.image.publish()
    world.director.targets.targets = {path: target(path, b"x")}
    world.director.publish()
    refused(world, "arbitrary-software")


@pytest.mark.parametrize("repository", ["image", "director"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_a_foreign_key_is_refused(world, repository, role):
    simulator = getattr(world, repository)
    simulator.signers[role] = [CryptoSigner.generate_ed25519()]
    simulator.publish()
    refused(world, "bad-signature")


def test_a_line_role_signed_by_a_foreign_key_is_refused(world):
    world.image.signers["model.digits"] = [CryptoSigner.generate_ed25519()]
    world.image.publish()
    refused(world, "bad-signature")


@pytest.mark.parametrize("repository", ["image", "director"])
def test_a_root_that_the_old_holders_did_not_sign_is_refused(world, repository):
    simulator = getattr(world, repository)
    thief = CryptoSigner.generate_ed25519()
    simulator.root.revoke_key(simulator.signers["root"][0].public_key.keyid, "root")
    simulator.root.add_key(thief.public_key, "root")
    simulator.signers["root"] = [thief]
    simulator.rotate_root()
    refused(world, "bad-signature")


@pytest.mark.parametrize("repository", ["image", "director"])
def test_a_root_signed_below_the_threshold_by_a_thief_of_one_key_is_refused(world, repository):
    simulator = getattr(world, repository)
    second = CryptoSigner.generate_ed25519()
    simulator.root.add_key(second.public_key, "root")
    simulator.root.roles["root"].threshold = 2
    simulator.root.version += 1
    simulator.files["2.root.json"] = simulator.sign(simulator.root, *simulator.signers["root"], second)
    world.check()
    thief = CryptoSigner.generate_ed25519()
    simulator.root.add_key(thief.public_key, "targets")
    simulator.root.version += 1
    simulator.files["3.root.json"] = simulator.sign(simulator.root, second)
    refused(world, "bad-signature")


def test_a_root_below_the_threshold_is_refused(world):
    for _ in range(2):
        world.image.root.add_key(CryptoSigner.generate_ed25519().public_key, "root")
    world.image.root.roles["root"].threshold = 2
    world.image.rotate_root()
    # the chain ends before the root that too few have signed: python-tuf refuses it and nothing newer is believed
    refused(world, "bad-signature")


def fetch_from(serve: Any, folder: Path, world: Any, *, now: Any = lambda: 0.0) -> None:
    """Download the first assigned file from a mirror that answers with `serve(request)`."""
    file = world.check().lines[0].targets[0]
    client = httpx.Client(transport=httpx.MockTransport(serve), trust_env=False)
    downloads = Downloads(folder, lambda: contextlib.nullcontext(client), clock=FakeClock(), monotonic=now)
    offer = OfferedFile(file.name, file.length, file.sha256, "https://mirror.test/blob")
    downloads.fetch(offer, on_bytes=lambda _: None, should_stop=lambda: False)


def test_what_a_mirror_serves_is_kept_when_it_has_the_signed_digest(world, tmp_path):
    path = world.check().lines[0].targets[0].path
    fetch_from(lambda _: httpx.Response(200, content=iter([MODEL + path.encode()])), tmp_path / "downloads", world)
    kept = MODEL + path.encode()
    assert (tmp_path / "downloads" / hashlib.sha256(kept).hexdigest()).read_bytes() == kept


def test_arbitrary_software_from_a_mirror_is_refused_and_not_kept(world, tmp_path):
    length = world.check().lines[0].targets[0].length
    with pytest.raises(TrustError) as caught:
        fetch_from(lambda _: httpx.Response(200, content=iter([b"x" * length])), tmp_path / "downloads", world)
    assert caught.value.code == "hash_mismatch"
    assert list((tmp_path / "downloads").iterdir()) == []


def test_arbitrary_software_that_a_broken_in_server_signs_with_all_its_online_keys_is_refused(world):
    """Director targets, snapshots and timestamps of both repositories are the server's; what exists is not."""
    path = "model/digits/6.6/onnx.model.onnx"
    world.image.targets.targets[path] = target(path, b"malware", write_fields(world.image_fields(release="6.6")))
    world.image.signers["targets"] = world.image.signers["snapshot"]
    world.image.publish()
    world.director.targets.targets = {path: target(path, b"malware")}
    world.director.publish()
    refused(world, "bad-signature")


# --- rollback, mix and match ---


@pytest.mark.parametrize("repository", ["image", "director"])
def test_a_rolled_back_timestamp_is_refused(world, repository):
    simulator = getattr(world, repository)
    old = simulator.files["timestamp.json"]
    simulator.publish_timestamp()
    world.check()
    simulator.files["timestamp.json"] = old
    refused(world, "rollback")


def test_a_rolled_back_snapshot_is_refused(world):
    world.check()
    world.director.snapshot.version -= 1
    world.director.publish_snapshot(bump=False)
    world.director.publish_timestamp()
    refused(world, "rollback")


def test_a_rolled_back_role_is_refused(world):
    world.check()
    world.image.snapshot.meta["model.digits.json"].version -= 1
    world.image.publish_snapshot()
    refused(world, "rollback")


@pytest.mark.parametrize("repository", ["image", "director"])
def test_a_whole_older_view_is_refused_by_a_device_that_saw_a_newer_one(world, repository):
    simulator = getattr(world, repository)
    old = dict(simulator.files)
    simulator.publish()
    world.check()
    simulator.files = old
    refused(world, "rollback")


def test_a_role_of_another_version_than_the_snapshot_says_is_refused(world):
    version = world.image.delegated["model.digits"].version
    world.image.delegated["model.digits"].version += 1
    other = world.image.sign(world.image.delegated["model.digits"], *world.image.signers["model.digits"])
    world.image.files[f"{version}.model.digits.json"] = other
    world.image.snapshot.meta["model.digits.json"] = MetaFile(version, len(other), {"sha256": hashlib.sha256(other).hexdigest()})
    world.image.publish_snapshot()
    refused(world, "rollback")


def test_a_snapshot_without_a_role_that_it_once_named_is_refused(world):
    """Also one that this device's assignment does not need."""
    world.image.delegate("model.other", line_pattern("other"))
    world.image.publish()
    world.check()
    del world.image.snapshot.meta["model.other.json"]
    world.image.publish_snapshot()
    refused(world, "mix-and-match")


def test_a_mix_of_a_new_snapshot_and_old_targets_is_refused(world):
    old = world.director.files[f"{world.director.targets.version}.targets.json"]
    world.director.publish()
    world.director.files[f"{world.director.targets.version}.targets.json"] = old
    refused(world, "mix-and-match")


def test_files_of_two_releases_in_one_line_are_refused(world):
    world.release("1.1", 11)
    other = "model/digits/1.1/onnx.manifest.json"
    world.director.targets.targets[other] = world.image.delegated["model.digits"].targets[other]
    world.director.publish()
    assert "mixes" in refused(world, "mix-and-match").message


def test_a_release_without_one_of_its_files_is_refused(world):
    del world.director.targets.targets["model/digits/1.0/onnx.manifest.json"]
    world.director.publish()
    assert "leaves out" in refused(world, "mix-and-match").message


def test_files_that_carry_different_fields_are_refused(world):
    signed = world.image.delegated["model.digits"].targets[PATH]
    signed.unrecognized_fields["custom"] = write_fields(world.image_fields(counter=11))
    world.image.publish()
    refused(world, "mix-and-match")


def test_files_under_a_path_that_is_not_theirs_are_refused(world):
    for signed in world.image.delegated["model.digits"].targets.values():
        signed.unrecognized_fields["custom"] = write_fields(world.image_fields(release="9.9"))
    world.image.publish()
    refused(world, "mix-and-match")


# --- old release: R1 ---


def test_an_older_release_at_or_above_the_floor_may_be_assigned_without_a_new_signature(world):
    world.release("1.1", 11)
    world.assign("1.1")
    world.check()
    world.committed = {DIGITS: 11}
    world.assign("1.0")
    assert world.check().lines[0].release == "1.0"


def test_an_old_release_below_the_signed_floor_is_refused(world):
    world.image.delegated["model.digits"].unrecognized_fields = write_fields(ImageLineFields(line="digits", floor=11))
    world.image.publish()
    refused(world, "old-release")


def test_an_old_release_below_the_floor_that_the_device_keeps_is_refused(world):
    world.floors = {DIGITS: 11}
    refused(world, "old-release")


def test_a_line_floor_of_the_director_is_kept(world):
    world.committed = {DIGITS: 12}
    world.order(line_floor={"digits": 11})
    world.director.publish()
    refused(world, "old-release")
    world.director.targets.targets = {}
    world.director.publish()
    assert world.check().floors == {"digits": 11}


def test_a_line_floor_above_the_committed_release_is_cut_so_that_what_runs_is_not_forbidden(world):
    world.committed = {DIGITS: 10}
    world.order(line_floor={"digits": 1_000_000})
    world.director.publish()
    found = world.check()
    assert found.lines[0].release == "1.0"
    assert found.floors == {"digits": 10}


# --- freeze ---


@pytest.mark.parametrize("repository", ["image", "director"])
def test_frozen_metadata_is_refused_once_it_has_expired(world, repository):
    world.check()
    for name in ("image", "director"):
        simulator = getattr(world, name)
        if name != repository:
            for role in (simulator.root, simulator.targets, simulator.snapshot, simulator.timestamp, *simulator.delegated.values()):
                role.expires += timedelta(days=365)
            simulator.rotate_root()
            simulator.publish()
    world.now += timedelta(days=31)
    refused(world, "freeze")


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("repository", ["image", "director"])
def test_each_role_that_has_expired_is_refused_alone(world, repository, role):
    simulator = getattr(world, repository)
    getattr(simulator, role).expires = world.now - timedelta(seconds=1)
    simulator.rotate_root()
    simulator.publish()
    refused(world, "freeze")


def test_a_line_role_that_has_expired_is_refused(world):
    world.image.delegated["model.digits"].expires = world.now - timedelta(seconds=1)
    world.image.publish()
    refused(world, "freeze")


def test_a_clock_set_forward_refuses_but_never_becomes_the_time_that_is_kept(world):
    world.now += timedelta(days=29)
    assert world.check().issued_at == world.now - timedelta(days=29)
    world.now += timedelta(days=365)
    refused(world, "freeze")


def test_a_clock_set_back_does_not_stretch_expiry_below_the_time_floor(world):
    world.check()
    world.time_floor = world.now + timedelta(days=31)
    world.now -= timedelta(days=365)
    refused(world, "freeze")


def test_a_device_offline_past_expiry_walks_the_root_chain_and_updates(world):
    world.check()
    for simulator in (world.image, world.director):
        for role in (simulator.root, simulator.targets, simulator.snapshot, simulator.timestamp, *simulator.delegated.values()):
            role.expires += timedelta(days=500)
        for _ in range(3):
            simulator.rotate_root()
        simulator.publish()
    world.now += timedelta(days=400)
    found = world.check()
    assert found.metadata_versions["image.root"] == 4


# --- endless data, slow retrieval, a sick server ---


@pytest.mark.parametrize(
    ("repository", "name"),
    [("director", "2.root.json"), ("director", "timestamp.json"), ("image", "timestamp.json"), ("image", "2.root.json")],
)
def test_endless_data_is_cut_off_at_its_limit(world, repository, name):
    getattr(world, repository).endless.add(name)
    refused(world, "endless-data")


def test_an_endless_line_role_is_cut_off_at_the_length_in_the_snapshot(world):
    world.image.endless.add(f"{world.image.delegated['model.digits'].version}.model.digits.json")
    refused(world, "endless-data")


def test_a_file_longer_than_its_kind_may_be_is_refused(world):
    for targets in (world.image.delegated["model.digits"].targets, world.director.targets.targets):
        targets["model/digits/1.0/onnx.manifest.json"].length = 257 << 10
    world.image.publish()
    world.director.publish()
    refused(world, "endless-data")


def test_an_endless_file_from_a_mirror_is_cut_off_at_the_signed_length(world, tmp_path):
    pieces = 0

    def endless() -> Iterator[bytes]:
        nonlocal pieces
        while True:
            pieces += 1
            yield b"x" * 64

    with pytest.raises(TrustError) as caught:
        fetch_from(lambda _: httpx.Response(200, content=endless()), tmp_path / "downloads", world)
    assert caught.value.code == "endless-data"
    assert pieces == 2
    assert sum(path.stat().st_size for path in (tmp_path / "downloads").iterdir()) <= 100


class Crawl:
    """A peer's bytes in pieces, and a clock that moves as they come: `rate` bytes a second."""

    def __init__(self, rate: float) -> None:
        self.now, self._rate = 0.0, rate

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), 50):
            piece = data[start : start + 50]
            self.now += len(piece) / self._rate
            yield piece


@pytest.mark.parametrize(("rate", "is_slow"), [(999.0, True), (1010.0, False)])
def test_slow_retrieval_of_a_file_below_a_thousand_bytes_a_second_for_a_minute_is_given_up(world, tmp_path, rate, is_slow):
    path, data, crawl = "model/digits/2.0/onnx.model.onnx", b"x" * 70_000, Crawl(rate)
    role = world.image.delegated["model.digits"]
    role.targets[path] = target(path, data, write_fields(world.image_fields(release="2.0", counter=20)))
    world.image.publish()
    world.director.targets.targets = {path: target(path, data)}
    world.director.publish()
    expected = pytest.raises(TransferError, match="too slow") if is_slow else contextlib.nullcontext()
    with expected as caught:
        fetch_from(lambda _: httpx.Response(200, content=crawl.pieces(data)), tmp_path / "downloads", world, now=lambda: crawl.now)
    if is_slow:
        assert caught.value.code == "slow-retrieval"
        assert 60 <= crawl.now < 61


@pytest.mark.parametrize(("rate", "is_slow"), [(999.0, True), (1010.0, False)])
def test_slow_retrieval_of_metadata_is_given_up(world, rate, is_slow):
    crawl = Crawl(rate)

    def serve(request: httpx.Request) -> httpx.Response:
        name = request.url.path.removeprefix("/m/")
        if name == "timestamp.json":  # valid JSON, however much white space is sent before it
            padding = b" " * (16_384 - len(world.director.files[name]))
            return httpx.Response(200, content=crawl.pieces(padding + world.director.files[name]))
        if name == "2.root.json":
            return httpx.Response(200, content=crawl.pieces(b" " * 60_000 + world.director.files[name]))
        return httpx.Response(200, content=iter([world.director.files[name]])) if name in world.director.files else httpx.Response(404)

    world.director.rotate_root()
    with httpx.Client(transport=httpx.MockTransport(serve), trust_env=False) as client:
        fetcher = open_tuf_fetcher(client, monotonic=lambda: crawl.now)
        access = RepositoryAccess(world.folder / "slow", "https://mirror.test/m/", world.director.bootstrap, fetcher)
        world.access = lambda name: access if name == "director" else type(world).access(world, name)
        if not is_slow:
            assert world.check().lines
            return
        with pytest.raises(TransferError) as caught:
            world.check()
    assert caught.value.code == "slow-retrieval"
    assert 60 <= crawl.now < 61


def test_slow_retrieval_is_an_error_to_retry_not_an_attack(world):
    world.director.stalled.add("timestamp.json")
    with pytest.raises(TransferError) as caught:
        world.check()
    assert caught.value.code == "slow-retrieval"


@pytest.mark.parametrize(("status", "kind"), [(503, UnavailableError), (429, UnavailableError), (404, TransferError)])
def test_a_sick_server_is_an_error_to_retry(world, status, kind):
    world.director.broken["timestamp.json"] = status
    with pytest.raises(kind):
        world.check()


def test_a_link_that_breaks_is_an_error_to_retry(world):
    world.director.dropped.add("timestamp.json")
    with pytest.raises(TransferError) as caught:
        world.check()
    assert caught.value.code == "transfer"


def test_metadata_that_cannot_be_kept_is_the_devices_own_trouble(world):
    world.check()
    world.director.publish()
    (world.folder / "director" / "timestamp.json").unlink()
    (world.folder / "director" / "timestamp.json").mkdir()
    with pytest.raises(DeviceError) as caught:
        world.check()
    assert caught.value.code == "disk"


# --- fast-forward, stolen keys ---


def test_a_fast_forwarded_version_is_forgotten_when_root_replaces_the_keys(world):
    world.director.timestamp.version = 2**40
    world.director.snapshot.version = 2**40
    world.director.publish_snapshot()
    world.check()
    for role in ("timestamp", "snapshot"):
        world.director.replace_key(role)
    world.director.timestamp.version = world.director.snapshot.version = 10
    world.director.publish()
    assert world.check().metadata_versions["director.timestamp"] == 11


def test_a_stolen_director_key_can_only_choose_among_released_files(world):
    world.order(assignment="as-evil", line_floor={"digits": 10**9})
    path = "model/digits/1.0/onnx.model.onnx"
    world.director.targets.targets = {path: target(path, b"evil")}
    world.director.publish()
    refused(world, "arbitrary-software")


def test_a_stolen_director_key_is_worthless_after_the_offline_root_replaced_it(world):
    stolen = world.director.replace_key("targets")
    world.director.signers["targets"] = [stolen]
    world.director.publish()
    refused(world, "bad-signature")


def test_stolen_snapshot_and_timestamp_keys_cannot_add_a_file(world):
    role = world.image.delegated["model.digits"]
    role.targets[PATH] = target(PATH, b"evil", write_fields(world.image_fields()))
    world.image.signers["model.digits"] = [CryptoSigner.generate_ed25519()]
    world.image.publish()
    refused(world, "bad-signature")


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
@pytest.mark.parametrize("repository", ["image", "director"])
def test_a_stolen_snapshot_or_timestamp_key_is_worthless_after_root_replaced_it(world, repository, role):
    simulator = getattr(world, repository)
    stolen = simulator.replace_key(role)
    simulator.publish()
    world.check()
    simulator.signers[role] = [stolen]
    simulator.publish()
    refused(world, "bad-signature")


def test_what_a_stolen_line_key_signs_is_not_installed_until_the_director_assigns_it(world):
    world.release("6.6", 66)
    assert [line.release for line in world.check().lines] == ["1.0"]


def test_what_a_stolen_line_key_released_is_forgotten_when_targets_revoke_it_and_the_floor_rises(world):
    """The director fell too and goes on to assign it."""
    world.release("6.6", 66)
    world.assign("6.6")
    assert world.check().lines[0].release == "6.6"
    stolen, fresh = world.image.signers["model.digits"][0], CryptoSigner.generate_ed25519()
    world.image.targets.revoke_key(stolen.public_key.keyid, "model.digits")
    world.image.targets.add_key(fresh.public_key, "model.digits")
    world.image.signers["model.digits"] = [fresh]
    role = world.image.delegated["model.digits"]
    role.unrecognized_fields = write_fields(ImageLineFields(line="digits", floor=67))
    world.image.publish()
    refused(world, "old-release")
    for path in [path for path in role.targets if "/6.6/" in path]:
        del role.targets[path]
    world.image.publish()
    refused(world, "arbitrary-software")
    world.release("1.2", 67)
    world.assign("1.2")
    found = world.check()
    assert (found.lines[0].release, found.floors) == ("1.2", {"digits": 67})


def test_a_stolen_line_key_signs_nothing_outside_its_paths(world):
    """Not even a file beside one that the other line did release."""
    released, evil = (f"model/other/1.0/onnx.{name}" for name in ("model.onnx", "manifest.json"))
    other = world.image.delegate("model.other", line_pattern("other"))
    other.unrecognized_fields = write_fields(ImageLineFields(line="other"))
    for role, path in ((other, released), (world.image.delegated["model.digits"], evil)):
        role.targets[path] = target(path, b"x", write_fields(world.image_fields(line="other")))
    world.image.publish()
    world.director.targets.targets = {path: target(path, b"x") for path in (released, evil)}
    world.director.publish()
    refused(world, "arbitrary-software")


def test_a_revoked_line_key_is_refused(world):
    stolen = world.image.signers["model.digits"][0]
    fresh = CryptoSigner.generate_ed25519()
    world.image.targets.revoke_key(stolen.public_key.keyid, "model.digits")
    world.image.targets.add_key(fresh.public_key, "model.digits")
    world.image.publish()
    refused(world, "bad-signature")


# --- wrong device, wrong hardware ---


@pytest.mark.parametrize("field", [{"device": "cam-2"}, {"tenant": "t1"}])
def test_another_devices_assignment_is_refused(world, field):
    world.order(**field)
    world.director.publish()
    refused(world, "wrong-device")


def test_a_replay_of_another_devices_empty_list_is_refused(world):
    world.order(device="cam-2")
    world.director.targets.targets = {}
    world.director.publish()
    refused(world, "wrong-device")


def test_a_release_for_other_hardware_is_refused(world):
    assert "gateway" in refused(world, "wrong-hardware", device_type="gateway").message


def test_a_release_for_a_missing_runtime_is_refused(world):
    refused(world, "wrong-hardware", runtimes={"tflite"})


@pytest.mark.parametrize("requires", [Requires(agent_min="0.2"), Requires(firmware_min="3")])
def test_a_release_that_requires_more_than_the_device_has_is_refused(world, requires):
    world.release(requires=requires)
    refused(world, "requirements")


def test_requirements_that_are_met_are_no_obstacle(world):
    world.release(requires=Requires(agent_min="0.1", firmware_min="2.9"))
    assert world.check(firmware_version="3.0").lines


# --- malformed fields ---


@pytest.mark.parametrize("counter", ["10", None, -1, True])
def test_a_field_of_a_wrong_type_refuses_the_target(world, counter):
    for signed in world.image.delegated["model.digits"].targets.values():
        signed.unrecognized_fields["custom"]["mooring"]["counter"] = counter
    world.image.publish()
    refused(world, "malformed-metadata")


def test_unknown_fields_are_ignored(world):
    for signed in world.image.delegated["model.digits"].targets.values():
        signed.unrecognized_fields["custom"]["mooring"]["hue"] = "blue"
    world.image.publish()
    assert world.check().lines


@pytest.mark.parametrize(
    "path", ["model/digits/1.0/onnx.model.exe", "../../etc/passwd", "model/digits/1.0/x/onnx.model.onnx", "other/a/b/c"]
)
def test_a_target_path_outside_the_grammar_is_refused(world, path):
    world.director.targets.targets = {path: target(path, b"x")}
    world.director.publish()
    refused(world, "malformed-metadata")


@pytest.mark.parametrize("path", ["firmware/board/2.0/image.raucb", "policy/cameras/3/sampling.json"])
def test_kinds_that_this_version_does_not_install_are_left_alone(world, path):
    world.director.targets.targets[path] = target(path, b"x")
    world.director.publish()
    assert [line.line for line in world.check().lines] == ["digits"]


def test_a_moment_outside_the_calendar_is_refused(world):
    world.order(issued_at=2**53 - 1)
    world.director.publish()
    refused(world, "malformed-metadata")


def test_director_targets_without_our_fields_are_refused(world):
    world.director.targets.unrecognized_fields = {}
    world.director.publish()
    refused(world, "malformed-metadata")


def test_metadata_that_is_no_json_is_refused(world):
    world.director.files["timestamp.json"] = b"<html>captive portal</html>"
    refused(world, "malformed-metadata")


@pytest.mark.parametrize("name", [5, True, ["model.digits"], {}])
def test_a_delegated_role_whose_name_is_no_text_is_refused(world, name):
    role = next(iter(world.image.targets.delegations.roles.values()))
    role.name = name
    world.image.publish()
    refused(world, "malformed-metadata")


def test_what_the_director_allows_on_a_metered_link_is_read(world):
    world.director.targets.targets[PATH].unrecognized_fields["custom"] = write_fields(DirectorTargetFields(full_bytes_allowed=7))
    world.director.publish()
    assert world.check().lines[0].full_bytes_allowed == 7


# --- the hole in no suite: UPDATES 1.5 ---


def two_parents(world: Any) -> tuple[CryptoSigner, CryptoSigner]:
    """Role "shared" delegated by a and by b with different keys, each signing other content of the same version."""
    ours, theirs = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    image = world.image
    for name in ("a", "b"):
        image.delegate(name, f"model/{name}/*/*", f"model/shared-{name}/*/*")
    image.delegate("shared", "model/a/*/*", parent=image.delegated["a"], signer=ours)
    image.delegate("shared", "model/b/*/*", parent=image.delegated["b"], signer=theirs)
    image.signers["shared"] = [ours]
    return ours, theirs


def shared_updater(world: Any) -> StrictUpdater:
    updater = StrictUpdater(world.access("image"), reference_time=world.now)
    updater.refresh()
    return updater


def test_a_role_whose_digest_the_snapshot_does_not_carry_is_refused(world):
    world.image.publish(bind=False)
    assert "length and sha256" in refused(world, "mix-and-match").message


def test_a_second_parents_signer_cannot_replace_a_role_in_the_same_session(world):
    _, theirs = two_parents(world)
    good, evil = "model/a/1/x.manifest.json", b"evil"
    world.image.delegated["shared"].targets[good] = target(good, b"good")
    world.image.publish()
    version = world.image.delegated["shared"].version
    updater = shared_updater(world)
    # the malicious server swaps in content of the same version that only b's signer signed, before the look-up through b
    first = updater.get_targetinfo(good)
    swapped = Metadata.from_bytes(world.image.files[f"{version}.shared.json"])
    swapped.signed.targets[good] = target(good, evil)
    world.image.files[f"{version}.shared.json"] = world.image.sign(swapped.signed, theirs)
    with pytest.raises(RepositoryError):
        updater.get_targetinfo("model/b/1/x.manifest.json")
    assert updater.get_targetinfo(good) == first


def test_each_further_parent_must_vouch_for_the_bytes_that_are_trusted_already(world):
    _, theirs = two_parents(world)
    good = "model/a/1/x.manifest.json"
    world.image.delegated["shared"].targets[good] = target(good, b"good")
    world.image.publish(bind=False)
    version = world.image.delegated["shared"].version
    # the third door alone: what if a snapshot without digests were accepted, as the client for outside suites does (ADR 0020)?
    updater = StrictUpdater(world.access("image"), reference_time=world.now, demand_snapshot_hashes=False)
    updater.refresh()
    first = updater.get_targetinfo(good)
    swapped = Metadata.from_bytes(world.image.files[f"{version}.shared.json"])
    swapped.signed.targets[good] = target(good, b"evil")
    world.image.files[f"{version}.shared.json"] = world.image.sign(swapped.signed, theirs)
    with pytest.raises(UnsignedMetadataError):
        updater.get_targetinfo("model/b/1/x.manifest.json")
    assert updater.get_targetinfo(good) == first


def test_a_role_that_both_parents_signers_signed_is_found_through_both(world):
    ours, theirs = two_parents(world)
    world.image.signers["shared"] = [ours, theirs]
    paths = ["model/a/1/x.manifest.json", "model/b/1/x.manifest.json"]
    for path in paths:
        world.image.delegated["shared"].targets[path] = target(path, b"good")
    world.image.publish()
    updater = shared_updater(world)
    assert [updater.get_targetinfo(path) is not None for path in paths] == [True, True]


# --- signed time ---


def test_the_directors_signed_time_is_read(world):
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    document = world.director.signed_time("cam-1", "n1", to_unix_ms(moment))
    assert verify_signed_time(document, director=world.access("director"), device=DeviceId("cam-1"), nonce="n1") == moment


@pytest.mark.parametrize("asked", [("cam-2", "n1"), ("cam-1", "n2")])
def test_a_replayed_signed_time_is_refused(world, asked):
    document = world.director.signed_time("cam-1", "n1", 1)
    with pytest.raises(TrustError) as caught:
        verify_signed_time(document, director=world.access("director"), device=DeviceId(asked[0]), nonce=asked[1])
    assert caught.value.code == "wrong-device"


def test_a_time_signed_by_another_role_is_refused(world):
    document = world.director.signed_time("cam-1", "n1", 1, signer=world.director.signers["targets"][0])
    with pytest.raises(TrustError) as caught:
        verify_signed_time(document, director=world.access("director"), device=DeviceId("cam-1"), nonce="n1")
    assert caught.value.code == "bad-signature"


@pytest.mark.parametrize("now", [True, "1", 2**53 - 1])
def test_a_signed_time_that_is_no_moment_is_refused(world, now):
    document = world.director.signed_time("cam-1", "n1", now)
    with pytest.raises(TrustError) as caught:
        verify_signed_time(document, director=world.access("director"), device=DeviceId("cam-1"), nonce="n1")
    assert caught.value.code == "malformed-metadata"


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b'{"signed": {}}', b'{"signed": [], "signatures": []}', b'{"signed": {"now": 1e999}, "signatures": []}', b" " * 5000],
)
def test_a_malformed_signed_time_is_refused(world, document):
    with pytest.raises(TrustError):
        verify_signed_time(document, director=world.access("director"), device=DeviceId("cam-1"), nonce="n1")


def test_a_timestamp_is_no_signed_time(world):
    timestamp = Timestamp(expires=world.now, snapshot_meta=MetaFile(1))
    document = world.director.sign(timestamp, world.director.signers["timestamp"][0])
    with pytest.raises(TrustError):
        verify_signed_time(document, director=world.access("director"), device=DeviceId("cam-1"), nonce="n1")
