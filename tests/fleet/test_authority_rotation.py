"""The certificate authority of a real server is replaced: a real agent's identity and the real broker at every step."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from agent.identity import EnrollmentWish, Identity, enroll, is_authority_changed, open_client, parse_token, renew_certificate
from fleet import config as settings
from fleet.audit import Actor, ActorKind
from fleet.broker import ClientFiles, client_tls
from fleet.bus import Bus, BusOptions
from fleet.config import DEFAULT_TENANT
from fleet.devices import enrollment, groups, rotation
from fleet.service import Server
from protocol.clock import SystemClock
from protocol.errors import TransferError
from protocol.ids import DeviceTypeName

ADMIN = Actor(ActorKind.PERSON, "alice")
FREE_PORTS = {"console.port": 0, "device_api.port": 0, "broker.port": 0, "broker.websocket_port": 0}


class Site:
    """One server that is restarted, and one device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.start()

    def start(self) -> None:
        found = settings.load(flags={"data_dir": str(self.folder / "data"), **FREE_PORTS}, environment={}).config
        self.server = Server(found, clock=SystemClock(), say=self.said.append)
        self.server.start()

    def take(self, step) -> None:
        ground = self.server.standing
        step(ground.database, ground.authority, tenant=DEFAULT_TENANT, by=ADMIN, now=datetime.now(UTC), reason="drill")
        self.server.stop()
        self.start()

    def enroll(self) -> Identity:
        ground = self.server.standing
        invite = enrollment.invite(
            ground.database,
            ground.authority,
            tenant=DEFAULT_TENANT,
            group=groups.DEFAULT_GROUP,
            device_type=DeviceTypeName("linux-x86-64"),
            by=ADMIN,
            now=datetime.now(UTC),
        )
        wish = EnrollmentWish(self.server.addresses.device_url, parse_token(invite.text), "linux-x86-64", "cam-1")
        return enroll(self.folder / "identity", wish)

    def client(self, identity: Identity):
        return open_client(identity.tls_context(), base_url=self.server.addresses.device_url, proxy=None, timeout_s=60.0)

    def follow(self, identity: Identity) -> bool:
        """What the agent does with each regular report; returns whether it renewed."""
        with self.client(identity) as client:
            is_changed = is_authority_changed(identity, client)
            if is_changed:
                renew_certificate(identity, client)
        with self.client(identity) as client:
            client.get("/device/v1/desired").raise_for_status()
        return is_changed

    def reaches_broker(self, identity: Identity) -> bool:
        return self.is_welcome("cam-1", ClientFiles(identity.ca_path, identity.certificate_path, identity.key_path))

    def is_welcome(self, principal: str, files: ClientFiles) -> bool:
        url = self.server.addresses.broker.urls[0]
        bus = Bus(BusOptions(url, principal, client_tls(files), ()))
        bus.start()
        try:
            return bus.wait_connected(60)
        finally:
            bus.stop()


def issuer(identity: Identity) -> x509.Name:
    return x509.load_pem_x509_certificate(identity.certificate_path.read_bytes()).issuer


@pytest.fixture
def site(mosquitto_path: Path, tmp_path: Path):
    made = Site(tmp_path)
    yield made
    made.server.stop()


def test_a_device_follows_to_the_next_authority_and_never_loses_server_or_broker(site: Site):
    identity = site.enroll()
    first, old_trust = issuer(identity), identity.ca_path.read_bytes()
    assert not site.follow(identity)
    for step in (rotation.begin, rotation.switch, rotation.finish):
        site.take(step)
        assert site.reaches_broker(identity), f"before it followed {step.__name__}"
        assert site.follow(identity)
        assert site.reaches_broker(identity), f"after it followed {step.__name__}"
        assert not site.follow(identity)
    assert issuer(identity) != first
    assert identity.ca_path.read_bytes() == site.server.standing.authority.ca_path.read_bytes() != old_trust


def test_the_servers_own_processes_reach_the_broker_at_every_step(site: Site):
    for step in (rotation.begin, rotation.switch, rotation.finish):
        site.take(step)
        authority = site.server.standing.authority
        pair = authority.ensure_service("fleet.ingest")
        files = ClientFiles(authority.ca_path, pair.certificate, pair.key)
        assert site.is_welcome("fleet.ingest", files), step.__name__


def test_who_trusts_the_former_authority_alone_is_left_behind_after_the_switch(site: Site):
    identity = site.enroll()
    former = identity.ca_path.read_bytes()
    site.take(rotation.begin)
    site.follow(identity)
    site.take(rotation.switch)
    identity.ca_path.write_bytes(former)
    with pytest.raises(TransferError, match="certificate"):
        site.follow(identity)
    context = ssl.create_default_context(cafile=str(identity.ca_path))
    assert len(context.get_ca_certs()) == 1
