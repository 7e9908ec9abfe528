"""Who made a recording: proven by the device's own key, or said by a person, in the audit log; all else is refused and changes nothing."""

from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from simulators.sketches import TS, W0, SketchDevice, add_profile, counts, enroll

from fleet import audit
from fleet.audit import Actor, ActorKind
from fleet.blobs import BlobStore, open_blobs
from fleet.db import Database
from fleet.devices import service as devices
from fleet.devices import store as device_store
from fleet.devices.pki import public_key_pem
from fleet.monitoring import drift_reading, drift_references, drift_tick
from fleet.monitoring.drift_import import import_reference
from fleet.monitoring.drift_model import ReferenceSource
from fleet.monitoring.drift_recordings import Brought
from fleet.monitoring.drift_rules import DriftRules
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.clock import from_unix_ms, to_unix_ms
from protocol.errors import InvalidError, MooringError, NotFoundError, TrustError
from protocol.ids import DEFAULT_TENANT, DeviceId, TenantId
from protocol.recordings import sign_recording
from protocol.sketches.codec import encode
from protocol.sketches.recording import encode_recording

ANNA = Actor(ActorKind.PERSON, "anna")
CAM, OTHER = DeviceId("cam-1"), DeviceId("cam-2")
KEYS = {name: ec.derive_private_key(number, ec.SECP256R1()) for number, name in enumerate((CAM, OTHER), start=11)}
NOW = from_unix_ms(TS) + timedelta(days=1)
#: What is the same on both databases by construction is tried on one.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@cache
def body(days: int = 14) -> bytes:
    """A recording of so many whole days."""
    device = SketchDevice("cam-1")
    first = W0 // 144 * 144 - days * 144
    seen = [counts(device.rng, 15) for _ in range(200)]
    windows = (device.sub_window(w0, seen[w0 % len(seen)]) for w0 in range(first, first + days * 144))
    return encode_recording({device.grid.grid_id.hex(): device.grid.encoded}, map(encode, windows))


def signed(by: DeviceId = CAM, *, tenant: str = DEFAULT_TENANT, at: datetime = NOW, key: Any = None, data: bytes | None = None) -> bytes:
    return sign_recording(key or KEYS[by], data or body(), device=by, tenant=TenantId(tenant), recorded_at_ms=to_unix_ms(at))


@pytest.fixture
def cameras(database: Database) -> Database:
    """A release with the grid, and two cameras whose keys are known."""
    add_profile(database)
    enroll(database, *KEYS)
    with database.transaction() as tx:
        for name, key in KEYS.items():
            found = device_store.get_device(tx, DEFAULT_TENANT, name)
            device_store.save_device(tx, replace(found, public_key=public_key_pem(key.public_key())))
    return database


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return open_blobs((tmp_path / "blobs").as_uri())


def brought(database: Database, blobs: BlobStore, data: bytes, **how: Any) -> Any:
    reason = how.pop("reason", "lens clean")
    return import_reference(
        database,
        blobs,
        tenant=DEFAULT_TENANT,
        brought=Brought(**{"device": CAM, **how}),
        pipeline="front",
        recording=data,
        by=ANNA,
        now=NOW,
        reason=reason,
    )


def entries(database: Database) -> list[audit.Entry]:
    with database.reading() as tx:
        found = audit.list_entries(tx, DEFAULT_TENANT, limit=100)
    return [one for one in found if one.action.startswith("drift.")]


def kept(database: Database) -> list[ReferenceSource]:
    try:
        return [one.source for one in drift_references.list_references(database, DEFAULT_TENANT, CAM, "front")]
    except NotFoundError:
        return []


def test_a_recording_that_the_device_signed_is_learned_from_and_the_audit_log_says_whose_it_is(cameras, blobs):
    stored, learned = brought(cameras, blobs, signed())
    assert (stored.source, learned.days) == (ReferenceSource.SIGNED_RECORDING, 14)
    assert kept(cameras) == [ReferenceSource.SIGNED_RECORDING]
    (entry,) = entries(cameras)
    assert (entry.action, entry.actor, entry.subject, entry.reason) == ("drift.reference-stored", ANNA, "device/cam-1", "lens clean")
    assert entry.detail["recorded_by"] == "cam-1"
    assert entry.detail["recorded_at"] == NOW.isoformat()
    assert entry.detail["recording"].startswith("sha256:")


@on_sqlite
def test_a_recording_of_another_device_is_learned_from_when_it_is_said_and_both_are_in_the_audit_log(cameras, blobs):
    with pytest.raises(InvalidError, match="is of cam-2; wanted one of cam-1") as caught:
        brought(cameras, blobs, signed(OTHER))
    assert (caught.value.code, "--from cam-2" in caught.value.hint, kept(cameras)) == ("recording-device", True, [])
    brought(cameras, blobs, signed(OTHER), recorded_by=OTHER)
    (entry,) = entries(cameras)
    assert (entry.subject, entry.detail["recorded_by"]) == ("device/cam-1", "cam-2")
    with pytest.raises(InvalidError) as caught:
        brought(cameras, blobs, signed(CAM), recorded_by=OTHER)
    assert (caught.value.code, caught.value.hint) == ("recording-device", "Leave out --from: cam-1 recorded it itself.")


STRANGER, STRANGE = ec.derive_private_key(99, ec.SECP256R1()), DeviceId("cam-9")


def other_bytes() -> bytes:
    """A signed recording with one of its numbers changed."""
    model = SketchDevice("cam-1").model
    return signed().replace(model, model[:-1] + b"!", 1)


@on_sqlite
@pytest.mark.parametrize(
    ("make", "how", "code"),
    [
        (lambda: signed(key=STRANGER), {}, "recording-key"),
        (lambda: signed(STRANGE, key=STRANGER), {"recorded_by": STRANGE}, "recording-key"),
        (lambda: signed(tenant="t9"), {}, "recording-tenant"),
        (lambda: signed(at=NOW + timedelta(minutes=11)), {}, "recording-future"),
        (other_bytes, {}, "recording-changed"),
    ],
    ids=["another key", "unknown device", "another tenant", "the future", "other bytes"],
)
def test_a_recording_whose_origin_is_not_proven_is_refused_by_name_and_told_in_the_audit_log(cameras, blobs, make, how, code):
    with pytest.raises(TrustError) as caught:
        brought(cameras, blobs, make(), **how)
    assert (caught.value.code, kept(cameras)) == (code, [])
    assert caught.value.hint, "who brings it knows what to do next"
    (entry,) = entries(cameras)
    assert (entry.action, entry.actor, entry.subject) == ("drift.reference-refused", ANNA, "device/cam-1")
    assert entry.detail["code"] == code


@on_sqlite
def test_clocks_may_differ_by_ten_minutes(cameras, blobs):
    assert brought(cameras, blobs, signed(at=NOW + timedelta(minutes=10)))[0].source == ReferenceSource.SIGNED_RECORDING


@on_sqlite
def test_a_recording_of_a_revoked_device_is_refused(cameras, blobs):
    devices.revoke_device(cameras, tenant=DEFAULT_TENANT, device=OTHER, by=ANNA, now=NOW)
    with pytest.raises(TrustError) as caught:
        brought(cameras, blobs, signed(OTHER), recorded_by=OTHER)
    assert (caught.value.code, kept(cameras)) == ("recording-revoked", [])
    assert "enroll again" in (caught.value.hint or "")


@on_sqlite
def test_a_device_of_which_no_key_is_known_proves_nothing(database, blobs):
    add_profile(database)
    enroll(database, CAM)
    with pytest.raises(TrustError) as caught:
        brought(database, blobs, signed())
    assert caught.value.code == "recording-key"


@on_sqlite
def test_a_file_that_is_cut_is_refused(cameras, blobs):
    with pytest.raises(InvalidError) as caught:
        brought(cameras, blobs, signed()[:-9])
    assert (caught.value.code, kept(cameras), entries(cameras)) == ("malformed", [], [])
    assert "Copy the file again" in (caught.value.hint or "")


@on_sqlite
def test_what_a_device_signed_is_still_checked_as_a_recording(cameras, blobs):
    with pytest.raises(InvalidError) as caught:
        brought(cameras, blobs, signed(data=b"no recording"))
    assert (caught.value.code, kept(cameras)) == ("malformed", [])
    assert "drift record -o FILE" in (caught.value.hint or "")


@on_sqlite
def test_a_recording_that_nobody_signed_is_refused_unless_it_is_said(cameras, blobs):
    with pytest.raises(InvalidError) as caught:
        brought(cameras, blobs, body())
    assert (caught.value.code, "--unsigned" in caught.value.hint, kept(cameras)) == ("recording-unsigned", True, [])
    stored, _ = brought(cameras, blobs, body(), is_unsigned=True)
    assert stored.source == ReferenceSource.RECORDING
    (entry,) = entries(cameras)
    assert (entry.detail["signature"], entry.detail["source"]) == ("none", "recording")
    assert "recorded_by" not in entry.detail


@on_sqlite
def test_unsigned_is_no_way_around_a_signature(cameras, blobs):
    for how, code in (({"is_unsigned": True}, "recording-signed"), ({"is_unsigned": True, "recorded_by": OTHER}, "invalid")):
        with pytest.raises(MooringError) as caught:
            brought(cameras, blobs, signed(key=STRANGER), **how)
        assert (caught.value.code, kept(cameras)) == (code, [])


@on_sqlite
def test_the_same_numbers_become_signed_when_a_device_signs_them_and_stay_so(cameras, blobs):
    brought(cameras, blobs, body(), is_unsigned=True)
    assert brought(cameras, blobs, signed())[0].source == ReferenceSource.SIGNED_RECORDING
    assert kept(cameras) == [ReferenceSource.SIGNED_RECORDING]
    assert brought(cameras, blobs, body(), is_unsigned=True)[0].source == ReferenceSource.SIGNED_RECORDING
    assert [one.detail["source"] for one in reversed(entries(cameras))] == ["recording", "signed-recording", "recording"]


def test_a_series_says_where_the_reference_comes_from_that_it_is_judged_by(cameras, blobs):
    hour = SketchDevice("cam-1").message(SketchDevice("cam-1").hour(W0))
    rules = IngestRules(lambda _tx, _tenant, devices: set(devices), tenant=DEFAULT_TENANT)
    assert not ingest_batch(cameras, [hour], rules=rules, now=NOW).rejected
    for data, how in ((body(), {"is_unsigned": True}), (signed(), {})):
        stored, _ = brought(cameras, blobs, data, **how)
        while drift_tick.tick(cameras, rules=DriftRules(), now=NOW):
            pass
        (row,) = drift_reading.device_overview(cameras, DEFAULT_TENANT)
        assert (row.state.reference_id, row.source) == (stored.reference_id, stored.source)
    assert row.source is ReferenceSource.SIGNED_RECORDING
