"""A small fleet on both databases whose devices verify as real ones do; people who edit, approve and sign."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from databases import database, database_templates
from registries import ANNA, BERT, T0, clock, registry
from securesystemslib.signer import CryptoSigner, Key
from simulators.trust_device import TrustDevice

from fleet import loop
from fleet.configurations import service
from fleet.configurations.model import ConfigurationRelease, Scope, Section
from fleet.devices import groups
from fleet.devices import store as device_store
from fleet.devices.model import ConfigPatch, Device, DeviceState, Twin
from fleet.registry import ceremony
from fleet.registry import service as releases
from fleet.registry.policies import sign_policy_role
from fleet.registry.requests import KeyRequest
from fleet.registry.service import Registry
from fleet.registry.signing import KeyName, load_key, make_key, save_key
from protocol.ids import DeviceId, DeviceTypeName, GroupName

__all__ = ["clock", "database", "database_templates", "registry"]

DOORS, YARD = GroupName("doors"), GroupName("yard")


@dataclass
class Site:
    """What people and devices do, in one line each."""

    registry: Registry
    folder: Path

    @property
    def now(self):
        return self.registry.clock.now()

    def enroll(self, name: str, group: GroupName) -> DeviceId:
        device = DeviceId(name)
        row = Device(
            tenant=T0,
            device=device,
            device_type=DeviceTypeName("linux-x86-64"),
            group=group,
            site=None,
            state=DeviceState.ENROLLED,
            labels={},
            hardware={},
            agent_version="0.1.0",
            public_key="",
            sealing_key="",
            serial=name,
            pending_serial=None,
            certificate_ends_at=self.now + timedelta(days=365),
            enrolled_at=self.now,
        )
        with self.registry.database.transaction() as tx:
            device_store.insert_device(tx, row)
            device_store.put_twin(tx, Twin(T0, device, ConfigPatch(), 1, 1, "{}", None, None, self.now))
        return device

    def set(self, settings: dict[str, Any], scope: Scope = Scope.FLEET, name: str = "") -> Section:
        return service.set_section(self.registry.database, tenant=T0, scope=scope, name=name, settings=settings, by=ANNA, now=self.now)

    def propose(self, *group_names: GroupName) -> ConfigurationRelease:
        return service.propose(self.registry, tenant=T0, by=ANNA, groups=group_names, reason="quieter nights")

    def approve(self, release: ConfigurationRelease, verdict: str = "approved") -> None:
        loop.decide_approval(
            self.registry, tenant=T0, approval=release.approval, verdict=verdict, by=BERT, permissions=["approver"], reason="looked at it"
        )

    def sign(self, release: ConfigurationRelease) -> bytes:
        request = next(one for one in service.list_signing_requests(self.registry, T0) if one.rev == release.rev)
        key = load_key(self.registry.folders.role_key_file("policy"))
        return sign_policy_role(request.payload, previous=request.previous, approved=request.content_digest, signer=key)

    def hold(self, name: str) -> tuple[Key, CryptoSigner]:
        """A key that somebody made elsewhere: its public half, and what it signs with."""
        signer = make_key()
        self.folder.mkdir(exist_ok=True)
        save_key(self.folder / f"{name}.pem", signer, passphrase=None)
        return ceremony.holder_key(self.folder / f"{name}.pub"), signer

    def hold_ceremony(self, change: Callable[[KeyRequest], KeyRequest], *signers: CryptoSigner) -> None:
        """A change of the image repository's keys, signed by the targets key of the first start and these, and published."""
        request = ceremony.finish(change(ceremony.start(self.registry, "image", reason="test")), now=self.now)
        for signer in (load_key(self.registry.folders.key_file(KeyName.IMAGE_TARGETS)), *signers):
            request, _ = request.sign(signer)
        ceremony.publish(self.registry, request, tenant=T0, by=ANNA, reason="test")

    def submit(self, release: ConfigurationRelease, signed: bytes) -> ConfigurationRelease:
        on_changed = loop.direct(self.registry)
        return service.submit_signature(self.registry, tenant=T0, by=BERT, rev=release.rev, signed=signed, on_changed=on_changed)

    def publish(self, *group_names: GroupName) -> ConfigurationRelease:
        """All steps from the sections as they stand to the devices."""
        release = self.propose(*group_names)
        self.approve(release)
        return self.submit(release, self.sign(release))

    def device(self, name: str) -> TrustDevice:
        """The device's side: verifies with its own code what the server serves."""
        device = DeviceId(name)
        source = loop.order_source(T0)

        def read_director(file: str) -> bytes:
            return releases.director_file(self.registry, tenant=T0, device=device, name=file, source=source).data

        return TrustDevice(
            self.folder / name,
            self.registry.clock,
            self.registry.image.bootstrap,
            self.registry.director.bootstrap,
            self.registry.image.read,
            read_director,
            device=device,
        )


@pytest.fixture
def site(registry: Registry, tmp_path: Path) -> Site:
    """Two groups with two devices each."""
    groups.ensure_first(registry.database, tenant=T0, now=registry.clock.now())
    made = Site(registry, tmp_path / "devices")
    for group in (DOORS, YARD):
        groups.create_group(registry.database, tenant=T0, name=group, by=ANNA, now=made.now)
        for number in (1, 2):
            made.enroll(f"{group}-{number}", group)
    return made
