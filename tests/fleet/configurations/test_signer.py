"""`mooring signer` signs approved configuration with the policy key, by its own reading of the payload."""

import base64
import json

import httpx
import pytest
from registries import T0

from fleet.configurations import service
from fleet.configurations.model import ReleaseState
from fleet.governance import service as governance
from fleet.registry import ceremony
from fleet.registry.signing import save_key
from fleet.signer import Signer, SignerOptions
from fleet.web.admin.configurations import _request_json
from fleet.web.admin.governance import approval_json
from protocol.canonical import digest_of

ZEROS = "sha256:" + "0" * 64


class Server:
    """The calls that the signer makes, over the real handlers' documents; `tamper` changes what it is shown."""

    def __init__(self, site) -> None:
        self.site = site
        self.tamper = self.tamper_approval = lambda document: document
        self.posted: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        registry, name = self.site.registry, request.url.path.rsplit("/", 1)[1]
        if "/approvals/" in request.url.path:
            found = governance.get_approval(registry.database, T0, name)
            return httpx.Response(200, json=self.tamper_approval(approval_json(found)))
        if name == "published-roles":
            return httpx.Response(200, json={"published": base64.b64encode(ceremony.start(registry, "image").to_bytes()).decode()})
        if request.method == "GET":
            items = [self.tamper(_request_json(one)) for one in service.list_signing_requests(registry, T0)]
            return httpx.Response(200, json={"items": items})
        self.posted.append(int(name))
        with registry.database.reading() as tx:
            release = service.store.get_release(tx, T0, int(name))
        self.site.submit(release, base64.b64decode(json.loads(request.content)["signed"]))
        return httpx.Response(200, json={})


@pytest.fixture
def server(site) -> Server:
    site.set({"log_level": "debug"})
    release = site.propose()
    site.approve(release)
    return Server(site)


def signer(server: Server) -> Signer:
    options = SignerOptions("http://localhost", "secret", server.site.registry.folders.lines)
    return Signer(options, transport=httpx.MockTransport(server))


def test_an_approved_configuration_is_signed_and_published_once(site, server: Server):
    one = signer(server)
    assert one.sign_open_configurations() == ["configuration/1"]
    assert service.get_release(site.registry, T0, 1).state is ReleaseState.PUBLISHED
    assert site.device("doors-1").check().configuration.rev == 1
    assert one.sign_open_configurations() == []


def other_target(item):
    payload = json.loads(base64.b64decode(item["payload"]))
    next(iter(payload["signed"]["targets"].values()))["hashes"]["sha256"] = "0" * 64
    return {**item, "payload": base64.b64encode(json.dumps(payload).encode()).decode()}


def more_targets(item):
    payload = json.loads(base64.b64decode(item["payload"]))
    path, target = next(iter(payload["signed"]["targets"].items()))
    payload["signed"]["targets"][path.replace("/1/", "/9/")] = target
    return {**item, "payload": base64.b64encode(json.dumps(payload).encode()).decode()}


@pytest.mark.parametrize(
    "tamper",
    [other_target, more_targets, lambda item: {**item, "content_digest": ZEROS}, lambda item: {**item, "rev": 2}, lambda _: {}],
    ids=["other bytes", "more files", "other digest", "other revision", "nonsense"],
)
def test_what_was_not_approved_is_refused(server: Server, tamper):
    server.tamper = tamper
    assert signer(server).sign_open_configurations() == []
    assert server.posted == []


@pytest.mark.parametrize(
    "change",
    [{"state": "pending"}, {"state": "rejected"}, {"subject_kind": "release"}, {"subject_id": "2"}, {"digests": {"content": ZEROS}}],
    ids=str,
)
def test_without_its_own_approval_it_is_refused(server: Server, change):
    server.tamper_approval = lambda document: {**document, **change}
    assert signer(server).sign_open_configurations() == []
    assert server.posted == []


@pytest.mark.parametrize("bootstrap", [True, False, "another"], ids=["known first root", "no first root", "another first root"])
def test_the_third_of_three_policy_keys_signs_only_over_what_hangs_on_its_first_root(site, tmp_path, bootstrap):
    site.set({"log_level": "debug"})
    site.publish()
    keys, signers = zip(*(site.hold(name) for name in ("one", "two", "three")), strict=True)
    site.hold_ceremony(lambda request: ceremony.revoke(request, "policy", keys, threshold=2), *signers[:2])
    site.set({"log_level": "info"})
    release = site.propose()
    site.approve(release)
    server, born = Server(site), {True: digest_of(site.registry.image.bootstrap), False: None, "another": digest_of(b"another")}[bootstrap]
    made = []
    for name, signer in (("third", signers[2]), ("first", signers[0])):
        (tmp_path / name).mkdir()
        save_key(tmp_path / name / "policy.pem", signer, passphrase=None)
        options = SignerOptions("http://localhost", "secret", tmp_path / name, bootstrap=born)
        made.append(Signer(options, transport=httpx.MockTransport(server)))
    third, first = made
    assert third.sign_open_configurations() == ([f"configuration/{release.rev}"] if bootstrap is True else [])
    if bootstrap is True:
        assert third.sign_open_configurations() == [], "its signature is there already"
        assert first.sign_open_configurations() == [f"configuration/{release.rev}"]
        assert site.device("doors-1").check().configuration.rev == release.rev
