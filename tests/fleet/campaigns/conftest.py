"""A small fleet on both databases: a group of cameras, and published releases of a line whose files are only named."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from databases import database, database_templates
from registries import ANNA, T0, clock, goldens_of, import_digits, registry
from simulators.trust_device import TrustDevice

from fleet import loop
from fleet.campaigns import service as campaigns
from fleet.campaigns import store as campaign_store
from fleet.campaigns.model import Campaign
from fleet.devices import groups
from fleet.devices import store as device_store
from fleet.devices.model import ConfigPatch, Device, DeviceIdentity, DeviceState, Twin
from fleet.registry import service as releases
from fleet.registry import store as release_store
from fleet.registry.model import FileRef, Release, ReleaseState, Variant
from fleet.registry.service import Registry
from protocol.canonical import digest_of
from protocol.clock import to_unix_ms
from protocol.ids import DeviceId, DeviceTypeName, GroupName, LineName, ReleaseVersion
from protocol.messages import SlotReport, VersionReport
from protocol.reports import sign_report

__all__ = ["clock", "database", "database_templates", "goldens_of", "import_digits", "registry"]

LINE, GROUP, CAMERA = LineName("digits"), GroupName("cameras"), DeviceTypeName("linux-x86-64")


@dataclass
class Fleet:
    """Devices with keys; acts for people, the loop and the devices."""

    registry: Registry
    keys: dict[DeviceId, ec.EllipticCurvePrivateKey]

    @property
    def now(self):
        return self.registry.clock.now()

    def enroll(self, name: str, *, group: GroupName = GROUP, device_type: str = CAMERA) -> DeviceId:
        """A device as enrollment leaves it."""
        device, key = DeviceId(name), ec.generate_private_key(ec.SECP256R1())
        self.keys[device] = key
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        row = Device(
            tenant=T0,
            device=device,
            device_type=DeviceTypeName(device_type),
            group=group,
            site=None,
            state=DeviceState.ENROLLED,
            labels={},
            hardware={},
            agent_version="0.1.0",
            public_key=public,
            sealing_key="",
            serial=str(len(self.keys)),
            pending_serial=None,
            certificate_ends_at=self.now + timedelta(days=365),
            enrolled_at=self.now,
        )
        with self.registry.database.transaction() as tx:
            device_store.insert_device(tx, row)
            device_store.put_twin(tx, Twin(T0, device, ConfigPatch(), 1, 1, "{}", None, None, self.now))
        return device

    def identity(self, device: DeviceId) -> DeviceIdentity:
        with self.registry.database.reading() as tx:
            found = device_store.get_device(tx, T0, device)
        return DeviceIdentity(T0, device, found.device_type, found.group, found.public_key, 1)

    def release(self, version: str, *, state: ReleaseState = ReleaseState.PUBLISHED, device_types: tuple[str, ...] = (CAMERA,)) -> Release:
        """A release whose model file is only named."""
        with self.registry.database.transaction() as tx:
            release_store.add_line(tx, T0, LINE, now=self.now)
            counter = release_store.take_counter(tx, T0, LINE)
            files = tuple(FileRef(name, 10, digest_of(f"{version}{name}".encode())) for name in ("model.onnx", "manifest.json"))
            types = tuple(DeviceTypeName(name) for name in device_types)
            variant = Variant("onnx", "onnx", types, "digits-onnx.1", files)
            made = Release(
                T0, LINE, ReleaseVersion(version), counter, state, (variant,), digest_of(version.encode()), self.now, "person:anna", 1
            )
            release_store.add_release(tx, made)
        return made

    def campaign(self, version: str = "1.0", **options: Any) -> Campaign:
        """Start a campaign and tick."""
        options.setdefault("min_inferences", 100)
        made = loop.create_campaign(self.registry, tenant=T0, by=ANNA, line=LINE, version=ReleaseVersion(version), group=GROUP, **options)
        self.tick()
        return made

    def tick(self) -> int:
        return loop.tick(self.registry)

    def states(self, campaign: Campaign) -> dict[str, str]:
        return {u.device: str(u.state) for u in campaigns.list_updates(self.registry.database, T0, campaign.campaign)}

    def state(self, campaign: Campaign) -> str:
        return str(campaigns.get_progress(self.registry.database, T0, campaign.campaign).campaign.state)

    def assigned(self, device: DeviceId):
        with self.registry.database.reading() as tx:
            return campaign_store.find_assigned(tx, T0, device, LINE)

    def report(self, device: DeviceId, /, release: Release, *, healthy: int = 100, key=None, slot=None, **changes: Any):
        """A report of the device after it installed the release, sent; `changes` replace what it says."""
        assigned = self.assigned(device)
        slots = [
            SlotReport(
                line=LINE,
                slot="a",
                active=True,
                committed=True,
                release=release.version,
                counter=release.counter,
                sha256=release.variants[0].model_file.sha256,
            ).model_copy(update=slot or {})
        ]
        last = campaigns.find_report(self.registry.database, T0, device)
        values = {
            "device": device,
            "tenant": T0,
            "boot_id": "b",
            "report_counter": last.report.report_counter + 1 if last else 1,
            "nonce": last.nonce if last else "",
            "time": to_unix_ms(self.now),
            "time_floor": 0,
            "assignment": assigned.assignment if assigned else "",
            "attempt": assigned.attempt if assigned else 0,
            "update_state": "succeeded",
            "slots": slots,
            "healthy_inferences": healthy,
        }
        report = VersionReport(**(values | changes))
        envelope = sign_report(key or self.keys[device], report)
        return loop.take_report(self.registry, identity=self.identity(device), envelope=envelope, now=self.now)

    def trust_device(self, folder: Path, device: DeviceId, **options: Any) -> TrustDevice:
        """The device's update check against this server."""

        def read_director(name: str) -> bytes:
            return releases.director_file(self.registry, tenant=T0, device=device, name=name, source=loop.order_source(T0)).data

        return TrustDevice(
            folder / device,
            self.registry.clock,
            self.registry.image.bootstrap,
            self.registry.director.bootstrap,
            self.registry.image.read,
            read_director,
            device=device,
            **options,
        )


@pytest.fixture
def make_fleet(registry: Registry) -> Callable[..., Fleet]:
    def make(*names: str) -> Fleet:
        fleet = Fleet(registry, {})
        now = registry.clock.now()
        groups.create_group(registry.database, tenant=T0, name=GROUP, by=ANNA, now=now, site=None)
        groups.create_device_type(registry.database, tenant=T0, name=CAMERA, by=ANNA, now=now)
        for name in names:
            fleet.enroll(name)
        return fleet

    return make
