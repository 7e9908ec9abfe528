"""The blob store on a folder and in memory: whole or not at all, by digest, within limits."""

import hashlib
import threading

import pytest

from fleet.blobs import BlobStore, open_blobs
from protocol.canonical import digest_of
from protocol.errors import ConfigError, InvalidError, NotFoundError, TrustError, UnavailableError
from protocol.ids import Digest

ABSENT = Digest("sha256:" + "0" * 64)
BIG = hashlib.shake_256(b"seed").digest(3 * (1 << 20) + 17)


@pytest.fixture(params=["folder", "memory"])
def blobs(request, tmp_path) -> BlobStore:
    return open_blobs((tmp_path / "blobs").as_uri() if request.param == "folder" else "memory:///")


def _files(tmp_path):
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"x", BIG], ids=["empty", "byte", "3 MiB"])
def test_bytes_come_back_by_their_digest(blobs, data):
    digest = blobs.put(data)
    assert digest == digest_of(data)
    assert blobs.exists(digest)
    assert blobs.size(digest) == len(data)
    assert blobs.read(digest, limit=len(data)) == data
    assert b"".join(blobs.chunks(digest)) == data


def test_a_file_and_a_stream_of_the_same_bytes_are_one_blob(blobs, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(BIG)
    digest = blobs.put_file(path)
    assert blobs.put_chunks(BIG[start : start + 70_000] for start in range(0, len(BIG), 70_000)) == (len(BIG), digest)
    assert blobs.put(BIG) == digest


@pytest.mark.parametrize(("start", "end"), [(0, 1), (5, 1_500_000), (len(BIG) - 1, len(BIG)), (100, None), (7, 7)])
def test_a_range_is_exactly_that_range(blobs, start, end):
    digest = blobs.put(BIG)
    assert b"".join(blobs.chunks(digest, start=start, end=end)) == BIG[start:end]


def test_an_absent_blob_is_said_at_once(blobs):
    assert not blobs.exists(ABSENT)
    for ask in (blobs.size, blobs.chunks, lambda digest: blobs.read(digest, limit=1), lambda digest: blobs.chunks(digest, start=0, end=5)):
        with pytest.raises(NotFoundError, match=ABSENT):
            ask(ABSENT)


def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(blobs):
    digest = blobs.put(b"x")
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.exists(digest)


def test_too_many_bytes_are_refused_while_they_come_and_nothing_is_kept(blobs, tmp_path):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield bytes(1000)

    with pytest.raises(InvalidError) as caught:
        blobs.put_chunks(endless(), limit=10_000)
    assert caught.value.code == "too-large"
    assert len(taken) == 11
    assert _files(tmp_path) == []


def test_other_bytes_than_announced_are_refused_and_nothing_is_kept(blobs, tmp_path):
    with pytest.raises(InvalidError) as caught:
        blobs.put_chunks([b"abc"], expected=ABSENT)
    assert caught.value.code == "digest-mismatch"
    assert not blobs.exists(digest_of(b"abc"))
    assert _files(tmp_path) == []


def test_a_stream_that_breaks_leaves_nothing(blobs, tmp_path):
    def broken():
        yield b"abc"
        raise ConnectionResetError(104, "reset")

    with pytest.raises(UnavailableError, match="reset"):
        blobs.put_chunks(broken())
    assert _files(tmp_path) == []


def test_a_blob_longer_than_the_reader_allows_is_not_read(blobs):
    digest = blobs.put(b"12345")
    with pytest.raises(InvalidError, match="5 bytes; 4"):
        blobs.read(digest, limit=4)


def test_threads_that_put_the_same_bytes_at_once_agree(blobs):
    found, errors, barrier = [], [], threading.Barrier(8)

    def run():
        barrier.wait(120)
        try:
            found.append(blobs.put(BIG))
        except UnavailableError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(found) == {digest_of(BIG)}
    assert blobs.read(found[0], limit=len(BIG)) == BIG


def test_a_digest_that_is_a_path_is_refused(blobs):
    with pytest.raises(InvalidError, match="Digest"):
        blobs.size(Digest("../../etc/passwd"))


def test_bytes_changed_on_disk_are_not_given_out_as_the_blob(tmp_path):
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    digest = blobs.put(b"good")
    _files(tmp_path)[0].write_bytes(b"evil")
    with pytest.raises(TrustError, match="other bytes"):
        blobs.read(digest, limit=10)


def test_a_half_written_blob_of_an_earlier_crash_is_replaced(tmp_path):
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    digest = blobs.put(b"whole")
    _files(tmp_path)[0].write_bytes(b"wh")
    assert blobs.put(b"whole") == digest
    assert blobs.read(digest, limit=10) == b"whole"


def test_a_folder_with_a_space_in_its_name_works(tmp_path):
    folder = tmp_path / "my blobs ü"
    digest = open_blobs(folder.as_uri()).put(b"x")
    assert open_blobs(folder.as_uri()).exists(digest)
    assert folder.is_dir()


@pytest.mark.parametrize("url", ["ftp://x/y", "blobs", "", "http://x/y"])
def test_a_url_of_no_supported_store_is_refused(url):
    with pytest.raises(ConfigError, match="blob"):
        open_blobs(url)


def test_a_store_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_blobs((tmp_path / "file" / "blobs").as_uri())


def test_a_store_that_does_not_answer_is_said(tmp_path):
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    (tmp_path / "blobs" / "sha256").write_bytes(b"in the way")
    with pytest.raises(UnavailableError, match="does not answer"):
        blobs.put(b"x")
