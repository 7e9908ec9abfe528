"""What goes onto a stick: metadata signed for it, and the list of blobs; writing the folder is the command line's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tuf.api.metadata import Metadata, Targets

from fleet.registry.director import SignedOrder, listed_deltas
from fleet.registry.repository import root_expiry
from fleet.registry.service import Registry
from protocol.bundle import DEVICES, DIRECTOR, FORMAT, IMAGE, INDEX, BundleIndex, write_document
from protocol.clock import to_unix_ms
from protocol.ids import DeviceId, Digest, GroupName, TenantId


@dataclass(frozen=True, slots=True)
class Bundle:
    """A stick's content."""

    index: BundleIndex
    #: Metadata by path in the folder.
    files: Mapping[str, bytes]
    #: Length of each blob, by digest.
    blobs: Mapping[Digest, int]
    #: When the first of its signatures ends; devices take nothing from it after that.
    valid_until: datetime
    #: Devices to which it brings nothing, because nothing is assigned to them or no variant fits.
    idle: tuple[DeviceId, ...]


def compose(registry: Registry, *, tenant: TenantId, group: GroupName, orders: Sequence[SignedOrder], days: int) -> Bundle:
    """The stick for these signed orders. Raises: TrustError when a device would refuse it."""
    now = registry.clock.now()
    image, until = registry.image.sign_for_stick(now, days=days)
    roots = registry.director.roots()
    files = {f"{IMAGE}/{name}": data for name, data in image.items()}
    files |= {f"{DIRECTOR}/{version}.root.json": data for version, data in enumerate(roots, 1)}
    blobs: dict[Digest, int] = {}
    idle: list[DeviceId] = []
    for order in orders:
        registry.director.check(order, now=now)
        folder = f"{DEVICES}/{order.device}"
        files[f"{folder}/timestamp.json"] = order.timestamp
        files[f"{folder}/{order.version}.snapshot.json"] = order.snapshot
        files[f"{folder}/{order.version}.targets.json"] = order.targets
        wanted = _blobs_of(order)
        blobs |= wanted
        if not wanted:
            idle.append(order.device)
    ends = [until, root_expiry(roots[-1]), *(Metadata[Targets].from_bytes(order.targets).signed.expires for order in orders[:1])]
    index = BundleIndex(
        format=FORMAT,
        tenant=tenant,
        group=group,
        created_at=to_unix_ms(now),
        valid_until=to_unix_ms(min(ends)),
        devices=tuple(sorted(order.device for order in orders)),
    )
    files[INDEX] = write_document(index)
    return Bundle(index, files, blobs, min(ends), tuple(idle))


def _blobs_of(order: SignedOrder) -> dict[Digest, int]:
    """Every file that the order names, and every delta that it offers."""
    targets = Metadata[Targets].from_bytes(order.targets).signed.targets
    found = {Digest(f"sha256:{target.hashes['sha256']}"): target.length for target in targets.values()}
    return found | {Digest(one.sha256): one.length for offers in listed_deltas(order).values() for one in offers}
