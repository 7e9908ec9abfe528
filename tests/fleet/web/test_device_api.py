"""The device API over real TLS: who may come in, what is refused and how, what is served."""

import base64
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID
from serving import serving
from simulators.identities import Authority as OtherAuthority

from fleet import service
from fleet.audit import Actor, ActorKind
from fleet.config import DeviceApiConfig, FleetConfig
from fleet.devices import enrollment, groups, twins
from fleet.devices.enrollment import invite
from fleet.devices.model import parse_config
from fleet.web.app import ENROLL_BURST, device_app
from fleet.web.device_api import router
from fleet.web.listener import ListenerTls
from fleet.web.services import Services
from protocol.clock import SystemClock, to_unix_ms
from protocol.ids import DEFAULT_TENANT, DeviceId, DeviceTypeName
from protocol.messages import BrokerAddress, EnrollResponse, VersionReport
from protocol.reports import sign_report

ADMIN = Actor(ActorKind.PERSON, "alice")


@dataclass(frozen=True)
class Member:
    """An enrolled device: its key, what it was told, a client that shows its certificate."""

    key: ec.EllipticCurvePrivateKey
    answer: EnrollResponse
    http: httpx.Client


@dataclass
class Site:
    """A running device API and what a test does with it."""

    services: Services
    ground: service.Ground
    http: httpx.Client
    folder: Path

    def token(self, *, device: str | None = None, hours: float = 1) -> str:
        return invite(
            self.ground.database,
            self.ground.authority,
            tenant=DEFAULT_TENANT,
            group=groups.DEFAULT_GROUP,
            device_type=DeviceTypeName("linux-x86-64"),
            by=ADMIN,
            now=datetime.now(UTC) - timedelta(hours=24 - hours),
            device=DeviceId(device) if device else None,
        ).text

    def request(self, token: str, device: str | None, key: ec.EllipticCurvePrivateKey) -> dict[str, object]:
        sealing = X25519PrivateKey.generate().public_key().public_bytes_raw()
        return {
            "token": token,
            "device": device,
            "device_type": "linux-x86-64",
            "csr_pem": csr(key),
            "sealing_key": base64.b64encode(sealing).decode(),
            "sealing_signature": base64.b64encode(key.sign(sealing, ec.ECDSA(hashes.SHA256()))).decode(),
        }

    def enroll(self, device: str) -> Member:
        key = ec.generate_private_key(ec.SECP256R1())
        answer = self.http.post("/enroll/v1", json=self.request(self.token(), device, key))
        assert answer.status_code == 200, answer.text
        response = EnrollResponse.model_validate_json(answer.content)
        return Member(key, response, self.client(response.certificate_pem, key))

    def client(self, certificate_pem: str, key: ec.EllipticCurvePrivateKey) -> httpx.Client:
        path = self.folder / f"{x509.random_serial_number()}.pem"
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path.write_text(certificate_pem + pem.decode())
        context = ssl.create_default_context(cafile=str(self.ground.authority.ca_path))
        context.load_cert_chain(path)
        return httpx.Client(base_url=self.http.base_url, verify=context, trust_env=False, timeout=120)


def csr(key: ec.EllipticCurvePrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ignored")])
    return x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def running(services: Services) -> AbstractContextManager[httpx.Client]:
    """The device API over TLS, and a client without a certificate."""
    authority = services.authority
    server = authority.ensure_server()
    tls = ListenerTls(server.certificate, server.key, authority.ca_path)
    return serving(device_app(services), tls=tls, verify=ssl.create_default_context(cafile=str(authority.ca_path)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("server")
    config, clock = FleetConfig(data_dir=folder), SystemClock()
    ground = service.lay_ground(config, clock=clock)
    services = Services(
        config=config,
        tenant=DEFAULT_TENANT,
        database=ground.database,
        clock=clock,
        authority=ground.authority,
        blobs=ground.blobs,
        registry=ground.registry,
        broker=BrokerAddress(urls=["mqtts://localhost:8883"]),
        device_url="https://localhost:8443",
        console_url="http://localhost:8080",
    )
    with running(services) as http:
        yield Site(services, ground, http, tmp_path_factory.mktemp("devices"))
    ground.database.dispose()


@pytest.fixture(scope="module")
def member(site: Site) -> Iterator[Member]:
    enrolled = site.enroll("cam-1")
    yield enrolled
    enrolled.http.close()


def slug(answer: httpx.Response) -> tuple[int, str, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["trace_id"]
    return answer.status_code, body["type"].removeprefix("urn:mooring:problem:"), body["code"]


# --- who may come in ---


MEMBERS_ONLY = [
    ("GET", "/device/v1/desired"),
    ("POST", "/device/v1/certificate"),
    ("GET", "/device/v1/director/timestamp.json"),
    ("GET", "/device/v1/director/time?nonce=abc"),
    ("GET", "/image/v1/metadata/timestamp.json"),
    ("GET", f"/blobs/sha256/{'0' * 64}"),
    ("POST", "/device/v1/report"),
]


@pytest.mark.parametrize(("method", "path"), MEMBERS_ONLY)
def test_without_a_certificate_only_enrollment_answers(site: Site, method: str, path: str):
    assert slug(site.http.request(method, path)) == (401, "unauthenticated", "certificate-missing")


def test_every_path_but_enrollment_is_for_members_only(site: Site):
    listed = {path.split("?")[0] for _, path in MEMBERS_ONLY}
    for route in router.routes:
        pattern = re.sub(r"\{\w+\}", "[^/]+", route.path)
        assert route.path.startswith("/enroll/v1") or any(re.fullmatch(pattern, path) for path in listed), route.path


def test_a_certificate_of_another_authority_does_not_get_through_tls(site: Site, tmp_path: Path):
    files = OtherAuthority(tmp_path).issue("cam-1")
    context = ssl.create_default_context(cafile=str(site.ground.authority.ca_path))
    context.load_cert_chain(files.certificate, files.key)
    with (
        httpx.Client(base_url=site.http.base_url, verify=context, trust_env=False, timeout=60) as http,
        pytest.raises(httpx.TransportError),
    ):
        http.get("/device/v1/desired")


def test_a_certificate_of_ours_that_names_no_device_is_refused(site: Site):
    pair = site.ground.authority.ensure_service("fleet.ingest")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with site.client(pair.certificate.read_text(), key) as http:
        assert slug(http.get("/device/v1/desired"))[:2] == (401, "unauthenticated")


def test_a_certificate_given_again_to_another_key_makes_the_old_one_worthless(site: Site):
    old = site.enroll("cam-twice")
    key = ec.generate_private_key(ec.SECP256R1())
    body = site.request(site.token(device="cam-twice"), "cam-twice", key)
    assert site.http.post("/enroll/v1", json=body).status_code == 200
    with old.http:
        assert slug(old.http.get("/device/v1/desired"))[:2] == (401, "unauthenticated")


def test_a_header_cannot_stand_for_a_certificate(site: Site, member: Member):
    headers = {"X-Client-Cert": member.answer.certificate_pem.strip().replace("\n", " "), "X-SSL-Client-S-DN": "CN=cam-1", "peer": "cam-1"}
    assert slug(site.http.get("/device/v1/desired", headers=headers)) == (401, "unauthenticated", "certificate-missing")


# --- enrollment ---


def test_enrollment_gives_everything_a_device_needs(site: Site, member: Member):
    answer = member.answer
    assert (answer.device, answer.tenant, answer.group) == ("cam-1", "t0", "default")
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
    certificate.verify_directly_issued_by(site.ground.authority.certificate)
    assert base64.b64decode(answer.image_root) == site.ground.registry.image.bootstrap
    assert base64.b64decode(answer.director_root) == site.ground.registry.director.bootstrap
    assert answer.broker.urls == ["mqtts://localhost:8883"]
    assert site.http.get("/enroll/v1/ca").text == answer.ca_pem


def test_a_token_serves_once_and_only_while_it_is_valid(site: Site):
    key = ec.generate_private_key(ec.SECP256R1())
    token = site.token()
    assert site.http.post("/enroll/v1", json=site.request(token, "cam-2", key)).status_code == 200
    other = ec.generate_private_key(ec.SECP256R1())
    assert slug(site.http.post("/enroll/v1", json=site.request(token, "cam-3", other))) == (409, "conflict", "token-used")
    expired = site.request(site.token(hours=-1), "cam-3", other)
    assert slug(site.http.post("/enroll/v1", json=expired)) == (409, "conflict", "token-expired")
    wrong = site.request(token[:-70] + "x" * 5 + token[-65:], "cam-3", other)
    assert slug(site.http.post("/enroll/v1", json=wrong)) == (401, "unauthenticated", "token-unknown")
    assert slug(site.http.post("/enroll/v1", json=site.request("no token", "cam-3", other))) == (422, "invalid", "token-malformed")


def test_malformed_enrollment_names_the_place_and_never_repeats_the_token(site: Site):
    token = site.token()
    answer = site.http.post("/enroll/v1", json={"token": token, "device": "Not A Name", "device_type": "linux-x86-64"})
    assert slug(answer)[:2] == (422, "invalid")
    assert {one["pointer"] for one in answer.json()["errors"]} >= {"/body/device", "/body/csr_pem"}
    assert token not in answer.text


def test_an_enrollment_that_is_too_large_is_refused(site: Site):
    answer = site.http.post("/enroll/v1", content=b"{" + b" " * (300 * 1024), headers={"content-type": "application/json"})
    assert slug(answer)[:2] == (413, "too-large")


# --- certificate renewal ---


def test_the_old_certificate_is_valid_until_the_new_one_is_used(site: Site):
    device = site.enroll("cam-renew")
    key = ec.generate_private_key(ec.SECP256R1())
    answer = device.http.post("/device/v1/certificate", json={"csr_pem": csr(key)})
    assert answer.status_code == 200
    assert device.http.get("/device/v1/desired").status_code == 200
    with site.client(answer.json()["certificate_pem"], key) as renewed:
        assert renewed.get("/device/v1/desired").status_code == 200
        assert slug(device.http.get("/device/v1/desired"))[:2] == (401, "unauthenticated")
    device.http.close()


def test_a_request_that_is_no_csr_is_refused(member: Member):
    assert slug(member.http.post("/device/v1/certificate", json={"csr_pem": "-----BEGIN NOTHING-----"})) == (422, "invalid", "csr-invalid")


# --- desired twin ---


def test_desired_is_a_304_until_it_changes(site: Site):
    device = site.enroll("cam-twin")
    first = device.http.get("/device/v1/desired")
    assert first.status_code == 200
    etag = first.headers["etag"]
    again = device.http.get("/device/v1/desired", headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    twins.set_device_config(
        site.ground.database,
        tenant=DEFAULT_TENANT,
        device=DeviceId("cam-twin"),
        config=parse_config({"telemetry": {"perf_s": 5}}),
        by=ADMIN,
        now=datetime.now(UTC),
    )
    changed = device.http.get("/device/v1/desired", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.json()["config"]["telemetry"] == {"perf_s": 5.0}
    device.http.close()


# --- metadata and blobs ---


def test_director_metadata_names_this_device_and_is_a_304_while_unchanged(site: Site, member: Member):
    timestamp = member.http.get("/device/v1/director/timestamp.json")
    assert timestamp.status_code == 200
    etag = timestamp.headers["etag"]
    assert member.http.get("/device/v1/director/timestamp.json", headers={"If-None-Match": etag}).status_code == 304
    targets = json.loads(member.http.get("/device/v1/director/targets.json").content)
    assert targets["signed"]["mooring"]["device"] == "cam-1"
    with site.enroll("cam-other").http as other:
        theirs = json.loads(other.get("/device/v1/director/targets.json").content)
        assert theirs["signed"]["mooring"]["device"] == "cam-other"


def test_a_file_that_is_none_of_ours_is_not_found(member: Member):
    for path in ("/device/v1/director/9.root.json", "/device/v1/director/..%2fx", "/image/v1/metadata/99.root.json"):
        assert member.http.get(path).status_code == 404, path


def test_signed_time_answers_the_nonce(member: Member):
    document = member.http.get("/device/v1/director/time", params={"nonce": "n1"}).json()
    assert (document["signed"]["device"], document["signed"]["nonce"]) == ("cam-1", "n1")
    assert slug(member.http.get("/device/v1/director/time", params={"nonce": ""}))[:2] == (422, "invalid")


def test_image_metadata_is_cached_but_for_the_timestamp(member: Member):
    timestamp = member.http.get("/image/v1/metadata/timestamp.json")
    assert timestamp.headers["cache-control"] == "no-cache"
    assert member.http.get("/image/v1/metadata/timestamp.json", headers={"If-None-Match": timestamp.headers["etag"]}).status_code == 304
    assert "immutable" in member.http.get("/image/v1/metadata/1.root.json").headers["cache-control"]


def test_a_blob_is_served_whole_in_ranges_and_resumed(site: Site, member: Member):
    data = bytes(range(256)) * 5000
    digest = site.ground.blobs.put(data)
    path = f"/blobs/sha256/{digest.removeprefix('sha256:')}"
    whole = member.http.get(path)
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, data, f'"{digest}"')
    assert whole.headers["cache-control"] == "private, max-age=31536000, immutable"
    etag = whole.headers["etag"]
    rest = member.http.get(path, headers={"Range": "bytes=1000000-", "If-Range": etag})
    assert (rest.status_code, rest.content) == (206, data[1_000_000:])
    assert rest.headers["content-range"] == f"bytes 1000000-{len(data) - 1}/{len(data)}"
    assert member.http.get(path, headers={"Range": "bytes=5-9"}).content == data[5:10]
    assert member.http.get(path, headers={"Range": "bytes=5-9", "If-Range": '"other"'}).status_code == 200
    outside = member.http.get(path, headers={"Range": f"bytes={len(data)}-"})
    assert slug(outside)[:2] == (416, "bad-range")
    assert outside.headers["content-range"] == f"bytes */{len(data)}"
    assert member.http.get(path, headers={"If-None-Match": etag}).status_code == 304


def test_blobs_are_for_members_alone_unless_the_operator_put_a_cache_before_them(site: Site, member: Member):
    digest = site.ground.blobs.put(b"a model")
    path = f"/blobs/sha256/{digest.removeprefix('sha256:')}"
    assert slug(site.http.get(path))[:2] == (401, "unauthenticated")
    config = FleetConfig(data_dir=site.folder, device_api=DeviceApiConfig(public_blobs=True))
    with running(replace(site.services, config=config)) as cache:
        found = cache.get(path, headers={"Range": "bytes=2-"})
        assert (found.status_code, found.content) == (206, b"model")
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert found.headers["etag"] == f'"{digest}"'
        assert cache.get("/device/v1/desired").status_code == 401, "only blobs are public"


def test_a_blob_that_is_not_there_is_a_404_and_a_wrong_name_invalid(member: Member):
    assert slug(member.http.get(f"/blobs/sha256/{'0' * 64}"))[:2] == (404, "not-found")
    assert slug(member.http.get("/blobs/sha256/zz"))[:2] == (422, "invalid")


# --- version reports ---


def report(device: str, counter: int) -> VersionReport:
    now = to_unix_ms(datetime.now(UTC))
    return VersionReport(device=device, tenant="t0", boot_id="b", report_counter=counter, time=now, time_floor=now, update_state="idle")


def send(device: Member, envelope: object) -> httpx.Response:
    return device.http.post("/device/v1/report", content=envelope.model_dump_json(), headers={"content-type": "application/json"})


def test_a_report_is_taken_once_and_answered_with_the_next_nonce(member: Member):
    taken = send(member, sign_report(member.key, report("cam-1", 5)))
    assert (taken.status_code, taken.json()["report_counter"]) == (200, 5)
    assert taken.json()["nonce"]
    again = send(member, sign_report(member.key, report("cam-1", 5)))
    assert slug(again) == (409, "conflict", "report-counter")


def test_a_report_that_this_device_did_not_sign_or_that_speaks_for_another_is_refused(site: Site, member: Member):
    stranger = ec.generate_private_key(ec.SECP256R1())
    assert slug(send(member, sign_report(stranger, report("cam-1", 9)))) == (403, "forbidden", "report-refused")
    assert slug(send(member, sign_report(member.key, report("cam-2", 9)))) == (403, "forbidden", "report-refused")


def test_enrollment_calls_are_limited_per_address(site: Site):
    # the last test of the module: it uses up the address's calls
    for _ in range(10 * ENROLL_BURST):  # on a slow machine some are allowed meanwhile
        answer = site.http.post("/enroll/v1", json=site.request("x", "cam-9", ec.generate_private_key(ec.SECP256R1())))
        if answer.status_code == 429:
            break
    assert slug(answer) == (429, "rate-limited", "rate-limited")
    assert int(answer.headers["retry-after"]) >= 1
    assert enrollment.list_invites(site.ground.database, DEFAULT_TENANT)
