"""Webhooks over a real receiver: what is sent, what is refused, and that a name cannot be turned to a private address."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from simulators.identities import Authority
from simulators.webhook import webhook_server

from fleet.adapters import addresses, cloudevents, webhook
from fleet.monitoring.alerts.model import Alert, Recipient, RecipientKind
from fleet.monitoring.alerts.service import new_secret
from protocol.errors import ForbiddenError, TransferError
from protocol.ids import DEFAULT_TENANT

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ALERT = Alert("a-1", "mooring.alarm.raised.v1", "alarm/x", NOW, "Drift on cam-1", "picture darker – since 14:10", "error", {"n": 1})
SECRET = new_secret()


def recipient(url: str, *, allows_private: bool = True) -> Recipient:
    return Recipient(DEFAULT_TENANT, "pager", RecipientKind.WEBHOOK, url, SECRET, allows_private)


def deliver(url: str, *, allows_private: bool = True, **more) -> int:
    return webhook.deliver(recipient(url, allows_private=allows_private), ALERT, now=NOW, **more)


def test_a_cloudevent_arrives_that_the_receiver_can_prove():
    with webhook_server() as server:
        assert deliver(f"http://127.0.0.1:{server.port}/hook?room=7") == 200
    [got] = server.received
    assert got.path == "/hook?room=7"
    assert got.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    event = json.loads(got.body)
    assert {name: event[name] for name in ("specversion", "id", "source", "type", "subject", "time", "datacontenttype")} == {
        "specversion": "1.0",
        "id": "a-1",
        "source": "/mooring/t0",
        "type": "mooring.alarm.raised.v1",
        "subject": "alarm/x",
        "time": "2026-03-01T12:00:00Z",
        "datacontenttype": "application/json",
    }
    assert event["data"] == {"title": ALERT.title, "text": ALERT.text, "severity": "error", "n": 1}
    signed = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    wanted = base64.b64encode(hmac.new(base64.b64decode(SECRET[6:]), signed, hashlib.sha256).digest()).decode()
    assert got.headers["webhook-signature"] == f"v1,{wanted}"
    assert (got.headers["webhook-id"], got.headers["webhook-timestamp"]) == ("a-1", str(int(NOW.timestamp())))


@pytest.mark.parametrize(
    ("data", "page"),
    [
        ({"alarm": "al-7", "name": "cam-1"}, "alarms/al-7"),
        ({"rule": "slow", "device": "cam-1"}, "devices/cam-1"),
        ({"device": "../x?y"}, "devices/..%2Fx%3Fy"),
        ({"part": "ingest"}, ""),
        ({}, "alarms"),
    ],
)
def test_a_link_leads_to_the_page_of_what_is_told(data, page):
    with webhook_server() as server:
        alert = replace(ALERT, data=data)
        webhook.deliver(recipient(f"http://127.0.0.1:{server.port}/"), alert, now=NOW, console_url="https://fleet.example:8443")
        webhook.deliver(recipient(f"http://127.0.0.1:{server.port}/"), alert, now=NOW)
    found = [json.loads(one.body)["data"].get("link") for one in server.received]
    assert found == [f"https://fleet.example:8443/{page}", None]


def test_the_signature_is_that_of_standard_webhooks():
    """The example of the specification (standard-webhooks/standard-webhooks, libraries' tests)."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    found = cloudevents.signature(secret, message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(("status", "text"), [(302, "redirect"), (307, "redirect"), (500, "status 500"), (410, "status 410")])
def test_anything_but_success_is_an_error_and_no_redirect_is_followed(status, text):
    with webhook_server(statuses=[status]) as server, pytest.raises(TransferError, match=text):
        deliver(f"http://127.0.0.1:{server.port}/hook")
    assert [one.path for one in server.received] == ["/hook"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - refused
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "nonsense",
    ],
)
def test_a_private_address_is_refused_however_it_is_written(address):
    assert not addresses.is_public(address)
    with pytest.raises(ForbiddenError, match="private"):
        addresses.permitted("x", 443, allows_private=False, resolve_name=lambda *_: [address])


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_a_public_address_is_let_through(address):
    assert addresses.is_public(address)


def test_one_private_address_among_public_ones_refuses_the_name():
    with pytest.raises(ForbiddenError):
        addresses.permitted("x", 443, allows_private=False, resolve_name=lambda *_: ["1.1.1.1", "127.0.0.1"])


def test_nothing_is_sent_to_a_private_address_that_was_not_allowed():
    with webhook_server() as server, pytest.raises(ForbiddenError):
        deliver(f"http://localhost:{server.port}/", allows_private=False)
    assert server.received == []


def test_a_name_is_resolved_once_and_the_judged_address_is_called():
    """DNS rebinding: the second answer for the name would be another one; nobody asks for it."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    with webhook_server() as server:
        url = f"http://no-such-name.invalid:{server.port}/"
        assert deliver(url, resolve_name=lambda *_: answers.pop(0)) == 200
    assert answers == [["10.0.0.1"]]
    assert server.received[0].headers["host"] == f"no-such-name.invalid:{server.port}"


def test_the_next_address_is_tried_when_one_does_not_answer(free_port):
    with webhook_server() as server:
        found = ["127.0.0.2", "127.0.0.1"]  # nothing listens on the first
        assert deliver(f"http://x:{server.port}/", resolve_name=lambda *_: found) == 200


def test_a_certificate_must_be_of_the_name_and_of_an_authority_that_is_trusted(tmp_path):
    authority = Authority(tmp_path)
    trust = ssl.create_default_context(cafile=str(authority.ca_file))
    with webhook_server(authority.issue("localhost", is_server=True)) as server:
        assert deliver(f"https://localhost:{server.port}/", trust=trust) == 200
        with pytest.raises(TransferError, match="certificate"):
            deliver(f"https://elsewhere.example:{server.port}/", trust=trust, resolve_name=lambda *_: ["127.0.0.1"])
        with pytest.raises(TransferError, match="certificate"):
            deliver(f"https://localhost:{server.port}/")
    assert len(server.received) == 1


def test_a_receiver_that_says_nothing_keeps_no_worker():
    with webhook_server(may_answer=threading.Event()) as server, pytest.raises(TransferError, match="no answer within 1 s"):
        deliver(f"http://127.0.0.1:{server.port}/", total_s=1.0)


def test_a_receiver_that_says_nothing_in_the_handshake_keeps_no_worker():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(TransferError, match="no answer within 1 s"):
        deliver(f"https://127.0.0.1:{mute.getsockname()[1]}/", total_s=1.0)


def test_a_long_answer_is_not_read_to_its_end():
    with webhook_server(answer=b"x" * (8 << 20)) as server:
        assert deliver(f"http://127.0.0.1:{server.port}/") == 200


def test_a_receiver_that_is_not_there_is_named_without_what_may_be_secret(free_port):
    with pytest.raises(TransferError) as caught:
        deliver(f"http://127.0.0.1:{free_port}/hook?key=hidden")
    assert f"http://127.0.0.1:{free_port}/hook" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_an_event_that_is_too_long_says_that_it_is_cut():
    long = Alert("a-2", ALERT.type, "s", NOW, "t", "x", "error", {"features": ["x" * 100] * 2000})
    body = cloudevents.body_of(long, DEFAULT_TENANT)
    assert len(body) <= cloudevents.MAX_BODY
    assert json.loads(body)["data"] == {"title": "t", "text": "x", "severity": "error", "is_cut": True}
