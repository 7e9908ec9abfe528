"""Deltas from publication to the device's order and back: made for what devices have, offered to those alone, withdrawn when they fail."""

import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from registries import ANNA, T0

from fleet import audit, jobs, loop
from fleet.campaigns import store as campaign_store
from fleet.devices import service as devices
from fleet.registry import delta_encoder, deltas
from fleet.registry import service as releases
from fleet.registry import store as release_store
from fleet.registry.deltas import BUILD_DELTAS, ChildEncoder, DeltaRules, Encoded
from fleet.registry.director import listed_deltas
from fleet.registry.model import DeltaState, FileRef, Release, ReleaseState, Variant
from protocol.canonical import digest_of
from protocol.delta.container import NO_BASE
from protocol.delta.decoder import apply
from protocol.errors import NotFoundError, UnavailableError
from protocol.ids import DeviceId, DeviceTypeName, Digest, LineName, ReleaseVersion

LINE = LineName("digits")
CAM, GATE = DeviceId("cam-1"), DeviceId("cam-2")
CAMERA = DeviceTypeName("linux-x86-64")
BYTES = 40_000


@dataclass
class Encoding:
    """The real encoder in this process, counting; `fails` names files for which it makes nothing."""

    fails: set[str] = field(default_factory=set)
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, old: Path | None, new: Path, out: Path) -> Encoded:
        self.seen.append((digest_of(old.read_bytes()) if old else NO_BASE, digest_of(new.read_bytes())))
        if self.seen[-1][1] in self.fails:
            return Encoded(1.0, "The encoder was told to fail.")
        delta_encoder.encode(old, new, out)
        return Encoded(0.5)


def noise(length: int) -> bytes:
    return random.Random(1).randbytes(length)  # noqa: S311 - bytes that do not compress, no secret


def model_bytes(changes: int) -> bytes:
    """A model that does not compress; each change touches a few bytes of it."""
    data = bytearray(noise(BYTES))
    for number in range(changes):
        data[number * 100 : number * 100 + 4] = b"new!"
    return bytes(data)


def add_release(fleet, version: str, model: bytes, *, types=("linux-x86-64",)) -> Release:
    registry = fleet.registry
    files = []
    for name, data in (("model.onnx", model), ("manifest.json", version.encode()), ("card.json", b"{}" * 5000)):
        files.append(FileRef(name, len(data), registry.blobs.put(data)))
    with registry.database.transaction() as tx:
        release_store.add_line(tx, T0, LINE, now=fleet.now)
        counter = release_store.take_counter(tx, T0, LINE)
        variant = Variant("onnx", "onnx", tuple(DeviceTypeName(name) for name in types), "digits-onnx.1", tuple(files))
        made = Release(
            T0, LINE, ReleaseVersion(version), counter, ReleaseState.PUBLISHED, (variant,), digest_of(version.encode()), fleet.now, "p", 1
        )
        release_store.add_release(tx, made)
    return made


def build(fleet, encode=None, rules=DeltaRules()) -> int:  # noqa: B008 - frozen
    return loop.build_deltas(fleet.registry, tenant=T0, line=LINE, rules=rules, encode=encode or Encoding(), rest=lambda _seconds: None)


def offers(fleet, device: DeviceId) -> dict[str, tuple]:
    """Per file name what the device's order offers now."""
    order = releases.current_order(fleet.registry, tenant=T0, device=device, source=loop.order_source(T0))
    return {path.rpartition("/")[2].partition(".")[2]: found for path, found in listed_deltas(order).items()}


def model_of(release: Release) -> Digest:
    return release.variants[0].model_file.sha256


@pytest.fixture
def updated(make_fleet):
    """Two devices; one runs 1.0; 1.1 is published."""
    fleet = make_fleet(CAM, GATE)
    first = add_release(fleet, "1.0", model_bytes(0))
    campaign = fleet.campaign("1.0")
    fleet.report(CAM, first)
    loop.abort_campaign(fleet.registry, tenant=T0, campaign=campaign.campaign, by=ANNA, reason="the next one is better")
    fleet.registry.clock.advance(10)
    return fleet, first, add_release(fleet, "1.1", model_bytes(50))


def test_a_device_is_offered_the_delta_from_what_it_has_and_the_compressed_whole(updated, tmp_path):
    fleet, first, _ = updated
    build(fleet)
    fleet.campaign("1.1")
    found = offers(fleet, CAM)
    assert [one.base_sha256 for one in found["model.onnx"]] == [model_of(first)]
    (delta,) = found["model.onnx"]
    assert delta.length < BYTES / 20
    assert "manifest.json" not in found, "a small file travels whole"
    data = fleet.registry.blobs.read(Digest(delta.sha256), limit=BYTES)
    (tmp_path / "delta").write_bytes(data)
    (tmp_path / "old").write_bytes(model_bytes(0))
    apply(tmp_path / "delta", tmp_path / "old", tmp_path / "new", max_new_bytes=BYTES)
    assert (tmp_path / "new").read_bytes() == model_bytes(50)
    assert "model.onnx" not in offers(fleet, GATE), "who does not have the base is not told of it, and random bytes do not compress"
    for device in (CAM, GATE):
        assert {one.base_sha256 for one in offers(fleet, device)["card.json"]} == {NO_BASE}


def test_what_was_made_useless_or_failed_is_not_tried_again(updated):
    fleet, first, second = updated
    encode = Encoding(fails={model_of(second)})
    assert build(fleet, encode) == len(encode.seen) == 3
    assert build(fleet, encode) == 0
    with fleet.registry.database.reading() as tx:
        states = {one.base_sha256: one for one in release_store.list_deltas_to(tx, T0, [model_of(second)])}
    assert states[model_of(first)].state is states[NO_BASE].state is DeltaState.FAILED
    assert "told to fail" in states[NO_BASE].reason
    assert states[NO_BASE].cpu_s == 1.0


def test_a_file_that_the_blob_store_lost_is_a_failure_of_that_delta_alone(updated):
    fleet, first, second = updated
    fleet.registry.blobs.delete(model_of(first))
    assert build(fleet) == 3
    with fleet.registry.database.reading() as tx:
        states = {one.base_sha256: one for one in release_store.list_deltas_to(tx, T0, [model_of(second)])}
    assert states[model_of(first)].state is DeltaState.FAILED
    assert "no blob" in states[model_of(first)].reason
    assert states[NO_BASE].state is DeltaState.USELESS


def test_somebody_may_have_tried_again_what_failed(updated):
    fleet, first, second = updated
    build(fleet, Encoding(fails={model_of(second)}))
    assert loop.retry_deltas(fleet.registry, tenant=T0, by=ANNA, line=LINE, version=second.version, reason="more memory now") == 2
    assert build(fleet) == 2
    with fleet.registry.database.reading() as tx:
        assert audit.list_entries(tx, T0, limit=1)[0].action == "delta.retried"
        states = {one.base_sha256: one.state for one in release_store.list_deltas_to(tx, T0, [model_of(second)])}
    assert states[model_of(first)] is DeltaState.USABLE


def test_new_deltas_make_the_orders_of_who_waits_stale_and_leave_the_assignment(updated):
    fleet, _, second = updated
    fleet.campaign("1.1")
    before, assigned = offers(fleet, CAM), fleet.assigned(CAM)
    assert before == {}
    build(fleet)
    assert offers(fleet, CAM)["model.onnx"]
    assert fleet.assigned(CAM) == assigned
    fleet.report(CAM, second)
    with fleet.registry.database.transaction() as tx:
        release_store.mark_orders_stale(tx, T0, [CAM])
    assert offers(fleet, CAM) == {}, "who has it needs no way to it"


def test_a_base_that_is_reported_later_is_offered_at_the_next_poll(updated):
    fleet, first, _ = updated
    fleet.campaign("1.1")
    build(fleet)
    assert "model.onnx" not in offers(fleet, GATE)
    fleet.report(GATE, first, update_state="downloading")
    assert [one.base_sha256 for one in offers(fleet, GATE)["model.onnx"]] == [model_of(first)]


def test_publishing_starting_a_campaign_and_new_bases_ask_for_deltas_once_at_a_time(updated):
    fleet, _, _ = updated
    with fleet.registry.database.reading() as tx:
        waiting = [job for job in jobs.list_jobs(tx, T0, kind=BUILD_DELTAS) if job.state is jobs.JobState.WAITING]
    assert [job.payload for job in waiting] == [{"line": "digits"}]


def test_a_delta_that_a_device_cannot_use_is_withdrawn_for_all_and_audited(updated):
    fleet, _, _ = updated
    fleet.report(GATE, updated[1])
    build(fleet)
    fleet.campaign("1.1")
    (delta,), _ = offers(fleet, CAM)["model.onnx"], offers(fleet, GATE)
    fleet.report(CAM, updated[1], update_state="downloading", failed_deltas=[delta.sha256], text="It does not begin with MDL1.")
    with pytest.raises(NotFoundError):
        fleet.registry.blobs.size(Digest(delta.sha256))
    assert "model.onnx" not in offers(fleet, CAM)
    assert "model.onnx" not in offers(fleet, GATE)
    assert offers(fleet, GATE)["card.json"], "what was not named stays"
    with fleet.registry.database.reading() as tx:
        entry = next(one for one in audit.list_entries(tx, T0, limit=20) if one.action == "delta.withdrawn")
    assert entry.detail["delta"] == delta.sha256
    assert build(fleet) == 0, "it is not made again by itself"


def test_a_device_cannot_withdraw_what_it_was_not_offered(updated):
    fleet, first, _ = updated
    build(fleet)
    for _ in range(1):
        fleet.campaign("1.1")
    (delta,) = offers(fleet, CAM)["model.onnx"]
    offers(fleet, GATE)
    fleet.report(GATE, first, slot={"sha256": digest_of(b"x"), "release": "0.1"}, failed_deltas=[delta.sha256])
    assert fleet.registry.blobs.size(Digest(delta.sha256)) == delta.length


def test_deltas_are_shown_with_base_release_size_and_devices(updated):
    fleet, _, _ = updated
    build(fleet)
    shown = {(view.file.name, view.base_release): view for view in loop.list_deltas(fleet.registry, T0, LINE, ReleaseVersion("1.1"))}
    view = shown["model.onnx", "1.0"]
    assert (view.devices, view.delta.state, view.delta.method) == (1, DeltaState.USABLE, 1)
    assert shown["model.onnx", ""].delta.state is DeltaState.USELESS
    assert shown["card.json", ""].delta.state is DeltaState.USABLE


def test_the_bytes_that_a_campaign_allows_in_full_are_signed(updated, tmp_path):
    fleet, _, _ = updated
    fleet.campaign("1.1", full_bytes=123)
    order = releases.current_order(fleet.registry, tenant=T0, device=CAM, source=loop.order_source(T0))
    assert b'"full_bytes_allowed": 123' in order.targets or b'"full_bytes_allowed":123' in order.targets


@pytest.mark.parametrize(
    ("counts", "total", "chosen"),
    [
        ({"a": 5, "b": 3, "c": 2, "d": 1}, 200, ["a", "b", "c"]),
        ({"a": 50, "b": 40, "c": 30, "d": 20, "e": 9}, 200, ["a", "b", "c", "d"]),
        ({"a": 50, "b": 40, "c": 30, "d": 10, "e": 9}, 200, ["a", "b", "c", "d"]),
        ({}, 0, []),
    ],
)
def test_the_most_frequent_bases_and_each_beyond_the_share_are_chosen(counts, total, chosen):
    assert deltas.choose_bases({Digest(name): count for name, count in counts.items()}, total, most=3, share_percent=5.0) == chosen


def test_bases_of_revoked_devices_other_types_and_other_lines_do_not_count(make_fleet):
    fleet = make_fleet(CAM, GATE)
    first = add_release(fleet, "1.0", model_bytes(0))
    for device in (CAM, GATE):
        fleet.report(device, first)
    with fleet.registry.database.reading() as tx:
        assert campaign_store.count_bases(tx, T0, LINE, [CAMERA]) == ({model_of(first): 2}, 2)
        assert campaign_store.count_bases(tx, T0, LineName("other"), [CAMERA]) == ({}, 0)
        assert campaign_store.count_bases(tx, T0, LINE, [DeviceTypeName("arm")]) == ({}, 0)
    devices.revoke_device(fleet.registry.database, tenant=T0, device=GATE, by=ANNA, now=fleet.now)
    with fleet.registry.database.reading() as tx:
        assert campaign_store.count_bases(tx, T0, LINE, [CAMERA]) == ({model_of(first): 1}, 1)


# --- the child ---


def test_the_encoder_runs_in_a_child_of_its_own_and_its_cpu_is_known(updated):
    fleet, _, second = updated
    encode = ChildEncoder(DeltaRules(), stop=threading.Event())
    assert build(fleet, encode) == 3
    with fleet.registry.database.reading() as tx:
        made = release_store.list_deltas_to(tx, T0, [model_of(second)])
    assert {one.state for one in made} == {DeltaState.USABLE, DeltaState.USELESS}
    assert all(0 < one.cpu_s < 60 for one in made)


def test_an_encoder_that_takes_too_much_is_ended_and_the_reason_kept(tmp_path):
    new, out = tmp_path / "new", tmp_path / "out"
    # four letters in no order: much to match, little to gain, many seconds of a compressor's work on any machine
    new.write_bytes(noise(48 << 20).translate(bytes(byte & 3 for byte in range(256))))
    assert "used its 1 s of CPU" in ChildEncoder(DeltaRules(cpu_s=1), stop=threading.Event())(None, new, out).error
    assert "did not end in 0.05 s" in ChildEncoder(DeltaRules(timeout_s=0.05), stop=threading.Event())(None, new, out).error
    assert ChildEncoder(DeltaRules(), stop=threading.Event())(None, tmp_path / "missing", out).error


def test_a_server_that_ends_leaves_the_delta_for_the_next_start(updated):
    fleet, _, second = updated
    stop = threading.Event()
    stop.set()
    with pytest.raises(UnavailableError):
        build(fleet, ChildEncoder(DeltaRules(), stop=stop))
    with fleet.registry.database.reading() as tx:
        assert release_store.list_deltas_to(tx, T0, [model_of(second)]) == []


def test_the_worker_rests_so_that_encoding_takes_its_share_of_a_core():
    assert DeltaRules(cpu_percent=50).rest_s(4.0) == pytest.approx(4.0)
    assert DeltaRules(cpu_percent=100).rest_s(4.0) == 0
    assert DeltaRules(cpu_percent=10).rest_s(1.0) == pytest.approx(9.0)
