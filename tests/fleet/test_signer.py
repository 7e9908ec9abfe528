"""The signer process signs what governance approved, by its own reading of the payload, and nothing else."""

import base64
import json
import threading
from functools import partial

import httpx
import pytest
from databases import database, database_templates
from registries import ANNA, BERT, T0, add_release, clock, registry
from tuf.api.metadata import Metadata, Targets

from fleet import audit, loop
from fleet.governance import service as governance
from fleet.governance.permissions import Permission
from fleet.registry import renewals
from fleet.registry import service as releases
from fleet.registry.model import ReleaseState
from fleet.registry.signing import make_key
from fleet.signer import MAX_ANSWER_BYTES, Signer, SignerOptions, _look, run
from fleet.web.admin.governance import approval_json
from fleet.web.admin.registry import _renewal_json, _task_json
from protocol.errors import ConfigError, NotFoundError, TransferError, TrustError, UnauthenticatedError
from protocol.ids import LineName

__all__ = ["clock", "database", "database_templates", "registry"]

LINE = LineName("digits")


def same(document):
    return document


class Server:
    """The three calls of /api/v1 that the signer makes, over the real handlers' documents; `tamper` changes what it is shown."""

    def __init__(self, registry, tamper=same, tamper_approval=same) -> None:
        self.registry, self.tamper, self.tamper_approval = registry, tamper, tamper_approval
        self.status = 200
        self.posted = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.status != 200:
            return httpx.Response(self.status)
        assert request.headers["authorization"] == "Bearer secret"
        if request.method == "GET" and "/approvals/" in request.url.path:
            found = governance.get_approval(self.registry.database, T0, request.url.path.rsplit("/", 1)[1])
            return httpx.Response(200, json=self.tamper_approval(approval_json(found)))
        if request.method == "GET" and request.url.path.endswith("/line-renewals"):
            found = renewals.list_renewals(self.registry, T0)
            return httpx.Response(200, json={"items": [self.tamper(_renewal_json(item)) for item in found]})
        if request.method == "GET":
            tasks = loop.list_signing_tasks(self.registry, T0)
            return httpx.Response(200, json={"items": [self.tamper(_task_json(task)) for task in tasks]})
        name = request.url.path.rsplit("/", 1)[1]
        signed = base64.b64decode(json.loads(request.content)["signed"])
        self.posted.append(name)
        if "/line-renewals/" in request.url.path:
            ends = renewals.submit_renewal(self.registry, tenant=T0, by=BERT, line=LineName(name), signed=signed)
            return httpx.Response(200, json={"expires_at": ends.isoformat()})
        release = loop.submit_signature(self.registry, tenant=T0, by=BERT, request=name, signed=signed)
        return httpx.Response(200, json={"state": str(release.state)})


def options(registry) -> SignerOptions:
    return SignerOptions(server="http://localhost", token="secret", keys=registry.folders.lines)


def signer(registry, server: Server) -> Signer:
    return Signer(options(registry), transport=httpx.MockTransport(server))


@pytest.fixture
def approved(registry):
    """A release that waits for the line's key."""
    release = add_release(registry, "1.0")
    approval = loop.propose_release(registry, tenant=T0, by=ANNA, line=LINE, version=release.version)
    decide = partial(loop.decide_approval, registry, tenant=T0, approval=approval.approval, by=BERT, reason="looked at it")
    decide(verdict="approved", permissions={str(Permission.APPROVER)})
    return release


def state(registry, release):
    return releases.get_release(registry, T0, LINE, release.version).state


def test_an_approved_release_is_signed_once(registry, approved):
    server = Server(registry)
    one = signer(registry, server)
    assert one.lines == (LINE,)
    assert one.sign_open_requests() == ["digits/1.0"]
    assert state(registry, approved) is ReleaseState.SIGNED
    assert one.sign_open_requests() == []
    one.close()


ZEROS = "sha256:" + "0" * 64


def other_digest(item):
    return {**item, "content_digest": ZEROS}


def other_file(item):
    payload = json.loads(base64.b64decode(item["payload"]))
    path = next(iter(payload["signed"]["targets"]))
    payload["signed"]["targets"][path]["hashes"]["sha256"] = "0" * 64
    return {**item, "payload": base64.b64encode(json.dumps(payload).encode()).decode()}


def more_files(item):
    payload = json.loads(base64.b64decode(item["payload"]))
    path, target = next(iter(payload["signed"]["targets"].items()))
    payload["signed"]["targets"][path.replace("1.0", "6.6")] = target
    return {**item, "payload": base64.b64encode(json.dumps(payload).encode()).decode()}


def delegating(item):
    payload = json.loads(base64.b64decode(item["payload"]))
    payload["signed"]["delegations"] = {"keys": {}, "roles": []}
    return {**item, "payload": base64.b64encode(json.dumps(payload).encode()).decode()}


def other_line(item):
    payload = json.loads(base64.b64decode(item["payload"]))
    payload["signed"]["mooring"]["line"] = "other"
    return {**item, "payload": base64.b64encode(json.dumps(payload).encode()).decode()}


@pytest.mark.parametrize(
    "tamper",
    [
        other_digest,
        other_file,
        more_files,
        delegating,
        other_line,
        lambda item: {**item, "payload": "!"},
        lambda item: {**item, "payload": base64.b64encode(b"{}").decode()},
        lambda item: {**item, "previous": item["payload"]},
        lambda item: {"request": item["request"]},
    ],
)
def test_a_lying_server_gets_no_signature(registry, approved, tamper):
    server = Server(registry, tamper)
    one = signer(registry, server)
    assert one.sign_open_requests() == []
    assert server.posted == []
    assert state(registry, approved) is ReleaseState.APPROVED
    one.close()


@pytest.mark.parametrize(
    "change",
    [
        {"state": "pending"},
        {"state": "rejected"},
        {"digests": {}},
        {"digests": {"content": ZEROS}},
        {"subject_id": "digits/2.0"},
        {"subject_kind": "x"},
    ],
)
def test_without_a_yes_to_this_very_release_there_is_no_signature(registry, approved, change):
    server = Server(registry, tamper_approval=lambda document: {**document, **change})
    one = signer(registry, server)
    assert one.sign_open_requests() == []
    assert server.posted == []
    one.close()


def test_a_server_that_lies_about_request_and_approval_alike_does_not_match_the_payload(registry, approved):
    server = Server(registry, other_digest, lambda document: {**document, "digests": {"content": ZEROS}})
    one = signer(registry, server)
    assert one.sign_open_requests() == []
    assert server.posted == []
    one.close()


def test_a_line_whose_key_is_elsewhere_is_left_alone(registry, approved, tmp_path):
    path = registry.folders.line_key_file(LINE)
    path.rename(path.with_name("model.other.pem"))
    one = signer(registry, Server(registry))
    assert one.sign_open_requests() == []
    one.close()


@pytest.fixture
def published(registry, approved):
    """A line with a release, 310 days old."""
    one = signer(registry, Server(registry))
    one.sign_open_requests()
    one.close()
    releases.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=approved.version)
    registry.clock.advance(days=310)
    releases.confirm_clock(registry, tenant=T0, by=ANNA, reason="ten months later")
    releases.renew(registry)
    return approved


def test_a_line_without_a_release_for_ten_months_is_signed_again_as_it_is(registry, published):
    before = Metadata.from_bytes(registry.image.line_metadata(LINE)).signed
    server = Server(registry)
    one = signer(registry, server)
    assert one.sign_open_renewals() == ["line/digits"]
    assert one.sign_open_renewals() == [], "it is not due any more"
    after = Metadata.from_bytes(registry.image.line_metadata(LINE)).signed
    assert after.targets == before.targets
    assert (after.version, (after.expires - before.expires).days) == (before.version + 1, 310)
    with registry.database.reading() as tx:
        assert audit.list_entries(tx, T0)[0].action == "line.renewed"
    one.close()


def test_a_line_that_holds_for_long_is_not_renewed(registry, approved):
    assert renewals.list_renewals(registry, T0) == []
    assert renewals.list_renewals(registry, T0, line=LINE) == [], "nothing of it is published"


def renewal_payload(change):
    def tamper(item):
        payload = json.loads(base64.b64decode(item["payload"]))
        change(payload["signed"])
        return {**item, "payload": base64.b64encode(json.dumps(payload).encode()).decode()}

    return tamper


@pytest.mark.parametrize(
    "change",
    [
        lambda signed: signed["targets"].clear(),
        lambda signed: signed["mooring"].update(floor=9),
        lambda signed: signed.update(expires="2099-01-01T00:00:00Z"),
        lambda signed: signed.update(version=77),
        lambda signed: signed.update(delegations={"keys": {}, "roles": []}),
        lambda signed: signed.update(_type="snapshot", meta={}),
    ],
)
def test_a_renewal_that_changes_more_than_the_expiry_is_not_signed(registry, published, change):
    server = Server(registry, renewal_payload(change))
    one = signer(registry, server)
    assert one.sign_open_renewals() == []
    assert server.posted == []
    one.close()


def test_a_server_that_calls_published_what_the_key_never_signed_gets_no_renewal(registry, published):
    """Both documents lie alike: what is called published holds a file that nobody approved."""

    def tamper(item):
        forged = {}
        for name in ("payload", "previous"):
            document = json.loads(base64.b64decode(item[name]))
            path = next(iter(document["signed"]["targets"]))
            document["signed"]["targets"][path]["hashes"]["sha256"] = "0" * 64
            forged[name] = base64.b64encode(json.dumps(document).encode()).decode()
        return {**item, **forged}

    server = Server(registry, tamper)
    one = signer(registry, server)
    assert one.sign_open_renewals() == []
    assert server.posted == []
    one.close()


def test_a_renewal_signed_by_another_key_or_for_another_line_is_not_published(registry, published):
    (task,) = renewals.list_renewals(registry, T0)
    metadata = Metadata.from_bytes(task.payload)
    metadata.sign(make_key())
    foreign = metadata.to_bytes()
    submit = partial(renewals.submit_renewal, registry, tenant=T0, by=BERT)
    with pytest.raises(TrustError):
        submit(line=LINE, signed=foreign)
    with pytest.raises(NotFoundError):
        submit(line=LineName("other"), signed=foreign)
    with pytest.raises(TrustError, match="more than its expiry"):
        submit(line=LINE, signed=Metadata(Targets(version=2)).to_bytes())


def test_a_release_that_waits_is_put_up_again_after_a_renewal(registry, published):
    waiting = add_release(registry, "1.1")
    approval = loop.propose_release(registry, tenant=T0, by=ANNA, line=LINE, version=waiting.version)
    decide = partial(loop.decide_approval, registry, tenant=T0, approval=approval.approval, by=BERT, reason="looked at it")
    decide(verdict="approved", permissions={str(Permission.APPROVER)})
    one = signer(registry, Server(registry))
    one.sign_open_renewals()
    assert one.sign_open_requests() == ["digits/1.1"]
    done = releases.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=waiting.version)
    assert done.state is ReleaseState.PUBLISHED
    one.close()


@pytest.mark.parametrize(("status", "kind"), [(401, UnauthenticatedError), (403, UnauthenticatedError), (503, TransferError)])
def test_a_server_that_refuses_or_is_down_is_told_apart(registry, approved, status, kind):
    server = Server(registry)
    server.status = status
    one = signer(registry, server)
    with pytest.raises(kind):
        one.sign_open_requests()
    server.status = 200
    assert one.sign_open_requests() == ["digits/1.0"]
    one.close()


@pytest.mark.parametrize("answer", [[], {"items": {}}, {"items": None}, "text"])
def test_an_answer_that_is_no_list_is_a_server_to_wait_for(registry, approved, answer):
    one = signer(registry, lambda _request: httpx.Response(200, json=answer))
    for look in (one.sign_open_requests, one.sign_open_renewals):
        with pytest.raises(TransferError, match="no list"):
            look()
    one.close()


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_a_server_that_refuses_the_question_is_a_server_to_wait_for(registry, approved, status):
    server = Server(registry)
    server.status = status
    one = signer(registry, server)
    with pytest.raises(TransferError, match=str(status)):
        one.sign_open_requests()
    server.status = 200
    assert one.sign_open_requests() == ["digits/1.0"]
    one.close()


def test_an_answer_without_end_is_cut_off_while_it_is_read(registry, approved):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1 << 20
            yield bytes(1 << 20)

    one = signer(registry, lambda _request: httpx.Response(200, content=endless()))
    with pytest.raises(TransferError, match="more than"):
        one.sign_open_requests()
    assert read <= MAX_ANSWER_BYTES + (4 << 20)
    one.close()


def test_a_server_that_is_away_is_told_once_and_that_it_is_back(registry, approved, caplog):
    server, said = Server(registry), list[str]()
    one = signer(registry, server)
    caplog.set_level("INFO", logger="mooring.signer")
    server.status = 503
    trouble = _look(one, said.append, "")
    assert trouble == _look(one, said.append, trouble) == _look(one, said.append, trouble) != ""
    server.status = 200
    assert _look(one, said.append, trouble) == ""
    assert said == ["Signed digits/1.0"]
    assert [record.getMessage().split()[0] for record in caplog.records if record.levelname != "DEBUG"][-1] == "signer_goes_on"
    assert sum("signer_waits" in record.getMessage() for record in caplog.records) == 1
    one.close()


def test_a_folder_without_keys_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no line key"):
        Signer(SignerOptions(server="http://localhost", token="x", keys=tmp_path))


def test_the_token_is_in_no_representation(registry):
    assert "secret" not in repr(options(registry))


def test_the_process_ends_when_it_is_told_to(tmp_path, clock):
    stop = threading.Event()
    stop.set()
    run(SignerOptions(server="http://localhost", token="x", keys=tmp_path), clock=clock, stop=stop)
