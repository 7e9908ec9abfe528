"""What a timestamp that was handed out names can be fetched, whatever the director signs meanwhile; what is kept for that is bounded."""

import json
import random
from collections import deque
from datetime import timedelta

import pytest
import sqlalchemy as sa
from registries import T0
from simulators.trust_device import TrustDevice

from fleet.registry import service, store
from fleet.registry.director import Order
from protocol.canonical import digest_of
from protocol.errors import NotFoundError
from protocol.ids import DeviceId, LineName, TenantId

CAM, OTHER = DeviceId("cam-1"), DeviceId("cam-2")


class Asked:
    """A device's side of the director, and the side that changes what is ordered: each change is another floor of a line."""

    def __init__(self, registry, device=CAM, tenant=T0) -> None:
        self.registry, self.device, self.tenant = registry, device, tenant
        self.floor = 0

    def source(self, _tx, device):
        return Order(self.tenant, device, (), line_floor={LineName("digits"): self.floor}), True

    def fetch(self, name: str) -> service.ServedFile:
        return service.director_file(self.registry, tenant=self.tenant, device=self.device, name=name, source=self.source)

    def change(self) -> None:
        """Another order, which the next look signs."""
        self.floor += 1
        with self.registry.database.transaction() as tx:
            store.mark_orders_stale(tx, self.tenant, [self.device])

    def change_and_sign(self) -> None:
        """As the loop does when an assignment changes: signed in the transaction of the change, before the device asks."""
        self.change()
        with self.registry.database.transaction() as tx:
            service.refresh_order(self.registry, tx, tenant=self.tenant, device=self.device, source=self.source)

    def follow(self, timestamp: bytes) -> int:
        """Fetch all that the timestamp names, each by digest; returns its version. Raises: NotFoundError."""
        version, snapshot = self._fetch_named(timestamp, "snapshot.json")
        assert self._fetch_named(snapshot, "targets.json")[0] == version, "all roles of a device carry one version"
        return version

    def _fetch_named(self, by: bytes, name: str) -> tuple[int, bytes]:
        named = json.loads(by)["signed"]["meta"][name]
        found = self.fetch(f"{named['version']}.{name}").data
        assert (digest_of(found), len(found)) == (f"sha256:{named['hashes']['sha256']}", named["length"])
        return named["version"], found


@pytest.fixture
def asked(registry) -> Asked:
    return Asked(registry)


def earlier_versions(registry, device=CAM) -> list[int]:
    table = store.earlier_director_metadata
    with registry.database.reading() as tx:
        return list(tx.scalars(sa.select(table.c.version).where(table.c.device == device).order_by(table.c.version)))


def test_what_a_timestamp_names_is_served_although_the_director_signed_anew(asked):
    timestamp = asked.fetch("timestamp.json")
    asked.change_and_sign()
    newer = asked.fetch("timestamp.json")
    assert newer.data != timestamp.data
    assert asked.follow(timestamp.data) < asked.follow(newer.data)
    version = json.loads(timestamp.data)["signed"]["version"]
    assert asked.fetch(f"{version}.targets.json").etag == timestamp.etag, "the ETag stands for the whole version"


def test_asking_for_a_version_signs_nothing(asked):
    timestamp = asked.fetch("timestamp.json")
    asked.change()
    asked.follow(timestamp.data)
    assert earlier_versions(asked.registry) == []
    assert json.loads(asked.fetch("timestamp.json").data)["signed"]["version"] > json.loads(timestamp.data)["signed"]["version"]


def test_a_device_ends_its_check_with_one_version_while_orders_change_after_every_file(asked, tmp_path):
    registry = asked.registry

    def read(name: str) -> bytes:
        found = asked.fetch(name).data
        asked.change_and_sign()
        return found

    asked.fetch("timestamp.json")
    device = TrustDevice(
        tmp_path / "device", registry.clock, registry.image.bootstrap, registry.director.bootstrap, registry.image.read, read, device=CAM
    )
    versions = device.check().metadata_versions
    assert versions["director.timestamp"] == versions["director.targets"]
    assert asked.floor >= 3, "the orders did change meanwhile"
    assert device.check().metadata_versions["director.targets"] > versions["director.targets"]


def test_only_the_last_versions_are_kept_and_of_this_device_only(asked):
    other = Asked(asked.registry, OTHER)
    theirs = other.fetch("timestamp.json")
    other.change_and_sign()
    timestamps = [asked.fetch("timestamp.json").data]
    for _ in range(20):
        asked.change_and_sign()
        timestamps.append(asked.fetch("timestamp.json").data)
    kept = earlier_versions(asked.registry)
    assert len(kept) == store.EARLIER_KEPT
    for timestamp in timestamps[-store.EARLIER_KEPT - 1 :]:
        asked.follow(timestamp)
    for timestamp in timestamps[: -store.EARLIER_KEPT - 1]:
        with pytest.raises(NotFoundError):
            asked.follow(timestamp)
    assert other.follow(theirs.data) in earlier_versions(asked.registry, OTHER), "another device's are not counted in"


def test_no_device_and_no_tenant_fetches_a_version_of_another(asked):
    asked.registry.clock.advance(seconds=100)
    other = Asked(asked.registry, OTHER)
    other.fetch("timestamp.json")
    theirs = [json.loads(other.fetch("timestamp.json").data)["signed"]["version"]]
    asked.registry.clock.advance(seconds=100)
    other.change_and_sign()
    theirs.append(json.loads(other.fetch("timestamp.json").data)["signed"]["version"])
    asked.registry.clock.advance(seconds=100)
    asked.fetch("timestamp.json")
    for stranger in (asked, Asked(asked.registry, OTHER, TenantId("t1"))):
        for version in theirs:
            for role in ("targets", "snapshot"):
                with pytest.raises(NotFoundError):
                    stranger.fetch(f"{version}.{role}.json")


def test_what_was_replaced_more_than_an_hour_ago_is_deleted_and_what_is_served_stays(asked):
    registry, old = asked.registry, asked.fetch("timestamp.json")
    asked.change_and_sign()
    registry.clock.advance(seconds=50 * 60)
    young = asked.fetch("timestamp.json")
    asked.change_and_sign()
    registry.clock.advance(seconds=10 * 60)
    assert service.prune_orders(registry.database, now=registry.clock.now()) == 0, "an hour is not over"
    registry.clock.advance(seconds=1)
    assert service.prune_orders(registry.database, now=registry.clock.now()) == 1
    with pytest.raises(NotFoundError):
        asked.follow(old.data)
    asked.follow(young.data)
    registry.clock.advance(days=3)
    current = asked.fetch("timestamp.json")
    assert service.prune_orders(registry.database, now=registry.clock.now()) == 1
    assert earlier_versions(registry) == []
    asked.follow(current.data)


def test_more_rows_than_one_transaction_deletes_are_all_deleted(registry):
    rows = [
        {
            "tenant": T0,
            "device": f"cam-{index}",
            "version": 1,
            "targets": b"t",
            "snapshot": b"s",
            "etag": "e",
            "replaced_at": registry.clock.now() - timedelta(hours=2),
        }
        for index in range(2_500)
    ]
    with registry.database.transaction() as tx:
        tx.execute(sa.insert(store.earlier_director_metadata), rows)
    assert service.prune_orders(registry.database, now=registry.clock.now()) == len(rows)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_in_between_a_young_timestamp_can_be_followed(asked, seed):
    """Handed out within the hour and not more than seven signatures ago: the promise, under any order of what may happen."""
    registry, chosen = asked.registry, random.Random(seed)  # noqa: S311 - the same run each time
    handed_out: deque = deque(maxlen=store.EARLIER_KEPT + 1)

    def poll() -> None:
        data = asked.fetch("timestamp.json").data
        if not handed_out or handed_out[-1][0] != data:
            handed_out.append((data, None))

    def change() -> None:
        poll()
        asked.change_and_sign()
        poll()

    def carry() -> None:
        poll()
        with registry.database.transaction() as tx:
            service.sign_for_stick(registry, tx, tenant=T0, device=CAM, source=asked.source, days=30)
        poll()

    def wait() -> None:
        registry.clock.advance(seconds=7 * 60)

    actions = [poll, change, asked.change, carry, wait, lambda: service.prune_orders(registry.database, now=registry.clock.now())]
    for _ in range(60):
        before = handed_out[-1][0] if handed_out else None
        chosen.choice(actions)()
        if before is not None and handed_out[-1][0] != before:
            at = [index for index, (data, _) in enumerate(handed_out) if data == before]
            for index in at:
                handed_out[index] = (before, registry.clock.now())
        for data, replaced_at in handed_out:
            if replaced_at is None or registry.clock.now() - replaced_at <= service.EARLIER_FOR:
                asked.follow(data)
    assert len(handed_out) > 3, "it did sign anew"
