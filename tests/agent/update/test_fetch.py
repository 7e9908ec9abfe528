"""Downloads: bounded, resumable, checked; what a server or a link does wrong becomes an error that says who acts."""

import contextlib
import hashlib
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from simulators.clock import FakeClock
from simulators.device import FakeServer, digest_of
from simulators.disk import FakeDisk, Faults

from agent.update.assignment import OfferedFile
from agent.update.fetch import SYNC_BYTES, Downloads, RateMeter, StoppedError, open_tuf_fetcher, retry_after_s
from protocol.errors import TransferError, TrustError, UnavailableError

FOLDER = Path("/state/downloads")
DATA = bytes(range(256)) * 8


class World:
    """A download folder, a server and what was heard of the transfer."""

    def __init__(self, answer=None) -> None:
        self.faults = Faults()
        self.disk = FakeDisk(self.faults)
        self.server = FakeServer(self.faults)
        self.server.blobs[hashlib.sha256(DATA).hexdigest()] = DATA
        self.now = 0.0
        client = self.server.client() if answer is None else httpx.Client(transport=httpx.MockTransport(answer), trust_env=False)
        self.downloads = Downloads(
            FOLDER, lambda: contextlib.nullcontext(client), clock=FakeClock(), disk=self.disk, monotonic=lambda: self.now
        )
        self.heard: list[int] = []
        self.file = OfferedFile(
            "model.onnx", len(DATA), digest_of(DATA), f"https://fleet.test/blobs/sha256/{hashlib.sha256(DATA).hexdigest()}"
        )

    def fetch(self, *, stop_after: int = 10**9) -> None:
        self.downloads.fetch(self.file, on_bytes=self.heard.append, should_stop=lambda: sum(self.heard) >= stop_after)

    def content(self) -> bytes:
        path = self.downloads.find(self.file)
        assert path is not None
        return b"".join(self.disk.read_chunks(path))


def test_a_file_comes_whole_and_leaves_nothing_else():
    world = World()
    world.fetch()
    assert world.content() == DATA
    assert sum(world.heard) == len(DATA)
    assert list(world.disk.sizes(FOLDER)) == [hashlib.sha256(DATA).hexdigest()]
    assert world.downloads.bytes_in_place([world.file]) == len(DATA)


def test_a_stopped_transfer_goes_on_from_its_last_byte():
    world = World()
    with pytest.raises(StoppedError, match="Stopped after"):
        world.fetch(stop_after=700)
    have = world.downloads.bytes_in_place([world.file])
    assert 0 < have < len(DATA)
    world.heard.clear()
    world.fetch()
    assert world.server.requests[1][1] == f"bytes={have}-"
    assert sum(world.heard) == len(DATA) - have
    assert world.content() == DATA


def test_a_server_that_does_not_resume_starts_anew():
    world = World()
    with pytest.raises(StoppedError):
        world.fetch(stop_after=700)
    world.server.does_resume = False
    world.fetch()
    assert world.content() == DATA


def test_a_file_that_changed_on_the_server_starts_anew():
    world = World()
    with pytest.raises(StoppedError):
        world.fetch(stop_after=700)
    etag = FOLDER / f"{hashlib.sha256(DATA).hexdigest()}.etag"
    world.disk.put(etag, b'"another"')
    world.fetch()
    assert world.content() == DATA


def test_a_range_beyond_the_end_hashes_what_is_there():
    world = World(lambda _request: httpx.Response(416))
    world.disk.put(FOLDER / f"{hashlib.sha256(DATA).hexdigest()}.part", DATA[:-1])
    with pytest.raises(TrustError, match="digest"):
        world.fetch()
    assert world.disk.sizes(FOLDER) == {}


def test_a_part_that_is_complete_needs_no_request():
    world = World()
    world.disk.put(FOLDER / f"{hashlib.sha256(DATA).hexdigest()}.part", DATA)
    world.fetch()
    assert world.server.requests == []
    assert world.content() == DATA


@pytest.mark.parametrize("part", [DATA[:500] + b"x" * 500, DATA + b"more", bytes(len(DATA))])
def test_a_part_damaged_by_a_cut_is_thrown_away_and_fetched_once_more(part):
    world = World()
    world.disk.put(FOLDER / f"{hashlib.sha256(DATA).hexdigest()}.part", part)
    world.fetch()
    assert world.content() == DATA


def test_bytes_with_another_digest_are_refused_and_not_kept():
    world = World()
    world.server.blobs[hashlib.sha256(DATA).hexdigest()] = bytes(len(DATA))
    with pytest.raises(TrustError, match=r"model\.onnx .* does not have the digest") as caught:
        world.fetch()
    assert caught.value.code == "hash_mismatch"
    assert world.downloads.find(world.file) is None
    assert world.disk.sizes(FOLDER).keys() <= {f"{hashlib.sha256(DATA).hexdigest()}.etag"}


def test_endless_data_is_cut_off_at_the_signed_length():
    def endless(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=(b"x" * 1000 for _ in range(10**9)))

    world = World(endless)
    with pytest.raises(TrustError) as caught:
        world.fetch()
    assert caught.value.code == "endless-data"
    assert sum(world.heard) <= len(DATA)


def test_a_link_that_ends_early_keeps_what_came():
    def short(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=iter([DATA[:900]]))

    world = World(short)
    with pytest.raises(TransferError, match="900 of 2048") as caught:
        world.fetch()
    assert caught.value.code == "link_lost"
    assert world.downloads.bytes_in_place([world.file]) == 900


def test_a_slow_peer_is_given_up_and_named():
    world = World()

    def crawl(_request: httpx.Request) -> httpx.Response:
        def pieces():
            for start in range(0, len(DATA), 16):
                world.now += 1.0
                yield DATA[start : start + 16]

        return httpx.Response(200, content=pieces())

    slow = World(crawl)
    world.now, slow.now = 0.0, 0.0
    slow.downloads._monotonic = lambda: world.now
    with pytest.raises(TransferError, match="too slow") as caught:
        slow.fetch()
    assert caught.value.code == "slow-retrieval"
    assert slow.downloads.bytes_in_place([slow.file]) > 0


def test_a_steady_peer_just_above_the_limit_is_not_slow():
    now = 0.0
    meter = RateMeter(min_bytes_per_s=1000.0, now=lambda: now)
    for _ in range(300):
        now += 1.0
        meter.add(1001)


@pytest.mark.parametrize(("status", "retry", "wanted"), [(503, "120", 120.0), (429, "", None), (500, "soon", None)])
def test_a_server_that_says_later_is_believed(status, retry, wanted):
    world = World(lambda _request: httpx.Response(status, headers={"Retry-After": retry} if retry else {}))
    with pytest.raises(UnavailableError, match=str(status)) as caught:
        world.fetch()
    assert caught.value.retry_after_s == wanted


def test_retry_after_may_be_a_moment():
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    assert retry_after_s("Thu, 01 Jan 2026 00:01:30 GMT", clock=clock) == 90.0
    assert retry_after_s("Wed, 31 Dec 2025 00:00:00 GMT", clock=clock) == 0.0


@pytest.mark.parametrize("status", [404, 403, 410, 302])
def test_any_other_answer_names_the_status_and_may_be_tried_again(status):
    world = World(lambda _request: httpx.Response(status))
    with pytest.raises(TransferError, match=str(status)) as caught:
        world.fetch()
    assert caught.value.code == f"http-{status}"


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("odd")])
def test_a_dead_network_is_a_transfer_error(error):
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(TransferError, match=r"fleet\.test"):
        World(refuse).fetch()


def test_an_encoded_answer_is_refused():
    world = World(lambda _request: httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=b""))
    with pytest.raises(TransferError, match="gzip"):
        world.fetch()


def test_another_range_than_the_one_asked_for_is_refused():
    world = World(lambda _request: httpx.Response(206, headers={"Content-Range": "bytes 5-9/10"}, content=b"x"))
    world.disk.put(FOLDER / f"{hashlib.sha256(DATA).hexdigest()}.part", DATA[:10])
    with pytest.raises(TransferError, match="another range"):
        world.fetch()
    assert world.disk.sizes(FOLDER) == {}


def test_a_download_is_synced_while_it_grows():
    piece = bytes(SYNC_BYTES)
    world = World(lambda _request: httpx.Response(200, content=iter([piece, piece, b"rest"])))
    world.file = OfferedFile("model.onnx", 2 * len(piece) + 4, digest_of(piece + piece + b"rest"), "https://fleet.test/x")
    world.fetch()
    assert sum("sync" in line and ".part" in line for line in world.faults.log) >= 3


def test_a_file_of_this_device_is_adopted_only_when_its_bytes_are_right():
    world = World()
    world.disk.put(Path("/slots/model.onnx"), DATA)
    assert world.downloads.adopt(world.file, Path("/slots/model.onnx"))
    assert world.content() == DATA
    other = World()
    other.disk.put(Path("/slots/model.onnx"), b"damaged")
    assert not other.downloads.adopt(other.file, Path("/slots/model.onnx"))
    assert other.downloads.find(other.file) is None


def test_forgetting_keeps_what_open_updates_need():
    world = World()
    world.fetch()
    world.disk.put(FOLDER / "00ff.part", b"x")
    world.disk.put(FOLDER / "00ff.etag", b"x")
    world.downloads.forget(keep={world.file.sha256})
    assert world.content() == DATA
    assert len(world.disk.sizes(FOLDER)) == 1
    world.downloads.forget(keep=())
    assert world.disk.sizes(FOLDER) == {}


# --- python-tuf's interface ---


def tuf_fetcher(answer):
    return open_tuf_fetcher(httpx.Client(transport=httpx.MockTransport(answer), trust_env=False))


def test_metadata_comes_through_tufs_interface_bounded_by_the_callers_length():
    from tuf.api.exceptions import DownloadLengthMismatchError

    fetcher = tuf_fetcher(lambda _request: httpx.Response(200, content=iter([b"x" * 5000])))
    assert fetcher.download_bytes("https://fleet.test/1.root.json", 5000) == b"x" * 5000
    with pytest.raises(DownloadLengthMismatchError):
        fetcher.download_bytes("https://fleet.test/1.root.json", 4999)


def test_a_missing_root_keeps_its_status_and_a_dead_network_is_a_download_error():
    from tuf.api.exceptions import DownloadError, DownloadHTTPError

    with pytest.raises(DownloadHTTPError) as caught:
        tuf_fetcher(lambda _request: httpx.Response(404)).download_bytes("https://fleet.test/2.root.json", 10)
    assert caught.value.status_code == 404

    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(DownloadError):
        tuf_fetcher(refuse).download_bytes("https://fleet.test/2.root.json", 10)
