"""A tenant with its first group, an authority, and a way to enroll a device in one call."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from simulators.enrolling import EnrollingDevice

from fleet.audit import Actor, ActorKind
from fleet.config import PkiConfig
from fleet.db import Database
from fleet.devices import enrollment, groups
from fleet.devices.enrollment import Invite, TrustRoots
from fleet.devices.pki import Authority, open_authority
from protocol.ids import DeviceTypeName, TenantId
from protocol.messages import BrokerAddress, EnrollRequest, EnrollResponse

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
T0, T1 = TenantId("t0"), TenantId("t1")
ANNA = Actor(ActorKind.PERSON, "anna")


@dataclass
class World:
    """One server's devices."""

    database: Database
    authority: Authority
    tenant: TenantId = T0

    def invite(self, **changes: Any) -> Invite:
        wanted = {
            "tenant": self.tenant,
            "group": groups.DEFAULT_GROUP,
            "device_type": DeviceTypeName("linux-x86-64"),
            "by": ANNA,
            "now": NOW,
        }
        return enrollment.invite(self.database, self.authority, **{**wanted, **changes})

    def enroll(self, request: EnrollRequest, *, now: datetime = NOW) -> EnrollResponse:
        broker = BrokerAddress(urls=["mqtts://127.0.0.1:8883"])
        return enrollment.enroll(
            self.database, self.authority, request, broker=broker, trust_roots=lambda tenant: TrustRoots(b"image", tenant.encode()), now=now
        )

    def add_device(self, name: str, **changes: Any) -> EnrollingDevice:
        device = EnrollingDevice(device=name)
        self.enroll(device.request(self.invite(**changes).text))
        return device


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return open_authority(tmp_path_factory.mktemp("pki"), PkiConfig())


@pytest.fixture
def world(database, authority) -> World:
    for tenant in (T0, T1):
        groups.ensure_first(database, tenant=tenant, now=NOW)
    return World(database, authority)
