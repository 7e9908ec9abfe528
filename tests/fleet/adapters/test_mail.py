"""Mail over a real server: TLS, login, what is refused, and what devices named stays in its line."""

import re
import ssl
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from simulators.identities import Authority
from simulators.smtp import smtp_server

from fleet.adapters import mail
from fleet.adapters.mail import Encryption, MailServer
from fleet.monitoring.alerts.model import Alert, Recipient, RecipientKind
from protocol.errors import ConfigError, TransferError
from protocol.ids import DEFAULT_TENANT

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ALERT = Alert("a-1", "mooring.alarm.raised.v1", "alarm/x", NOW, "Drift on cam-1", "Bild dunkler – seit 14:10.", "error", {"alarm": "al-7"})
RECIPIENT = Recipient(DEFAULT_TENANT, "people", RecipientKind.MAIL, "maria@example.org,ola@example.org")


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(authority):
    return authority.issue("localhost", is_server=True)


@pytest.fixture(scope="module")
def trust(authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.ca_file))


def send(server, encryption: Encryption, *, trust=None, user: str = "", password: str = "", alert: Alert = ALERT) -> None:
    settings = MailServer("localhost", server.port, encryption, "mooring@example.org", user, lambda: password)
    message = mail.message_of(alert, RECIPIENT, sender=settings.sender, console_url="https://mooring.example", now=NOW)
    mail.deliver(settings, RECIPIENT.addresses, message, trust=trust)


def test_a_mail_arrives_over_starttls_after_a_login(files, trust):
    with smtp_server(files=files, login="mooring:s3cret") as server:
        send(server, Encryption.STARTTLS, trust=trust, user="mooring", password="s3cret")
    [got] = server.mails
    assert (got["Subject"], got["To"], got["From"]) == (
        "[Mooring] Drift on cam-1",
        "maria@example.org, ola@example.org",
        "mooring@example.org",
    )
    assert got["Message-ID"] == "<a-1.people@mooring>"
    text = got.get_content()
    assert "Bild dunkler – seit 14:10." in text
    assert text.rstrip().endswith("https://mooring.example/alarms/al-7")
    assert (server.recipients, server.was_encrypted) == ([["maria@example.org", "ola@example.org"]], [True])


def test_a_mail_arrives_over_tls_from_the_first_byte(files, trust):
    with smtp_server(files=files, is_tls=True) as server:
        send(server, Encryption.TLS, trust=trust)
    assert server.was_encrypted == [True]


def test_a_server_that_offers_no_tls_gets_no_mail(trust):
    with smtp_server() as server, pytest.raises(TransferError, match="did not take the mail"):
        send(server, Encryption.STARTTLS, trust=trust)
    assert server.mails == []


def test_a_server_that_is_not_trusted_gets_no_mail(files):
    with smtp_server(files=files) as server, pytest.raises(TransferError, match="SSLCertVerificationError"):
        send(server, Encryption.STARTTLS)
    assert server.mails == []


def test_a_wrong_login_is_told_without_the_password(files, trust):
    with smtp_server(files=files, login="mooring:right") as server, pytest.raises(TransferError, match="login of mooring") as caught:
        send(server, Encryption.STARTTLS, trust=trust, user="mooring", password="wrong-one")
    assert "wrong-one" not in f"{caught.value}{caught.value.__cause__}"


@pytest.mark.parametrize(("how", "text"), [({"verdict": 451}, "451"), ({"refuses": ("ola@example.org",)}, "1 of the addresses")])
def test_what_the_server_does_not_take_is_tried_again(how, text):
    with smtp_server(**how) as server, pytest.raises(TransferError, match=text):
        send(server, Encryption.NONE)


@pytest.mark.parametrize(("user", "password"), [("mooring", "geheimß"), ("möring", "s3cret")])
def test_a_login_beyond_ascii_is_told_without_the_password(user, password):
    with smtp_server(login="mooring:s3cret") as server, pytest.raises(ConfigError, match=r"password_file .*beyond ASCII") as caught:
        send(server, Encryption.NONE, user=user, password=password)
    assert password not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"
    assert server.mails == []


@pytest.mark.parametrize("host", ["mail..example.org", f"{'x' * 64}.example.org"])
def test_a_host_that_is_no_name_is_tried_again(host):
    settings = MailServer(host, 25, Encryption.NONE, "mooring@example.org")
    message = mail.message_of(ALERT, RECIPIENT, sender=settings.sender, console_url="", now=NOW)
    with pytest.raises(TransferError, match=re.escape(f"{host}:25 did not take the mail")):
        mail.deliver(settings, RECIPIENT.addresses, message)


def test_addresses_that_are_refused_are_named():
    with smtp_server(refuses=("ola@example.org",)) as server, pytest.raises(TransferError, match=r"ola@example\.org: 5\d\d") as caught:
        send(server, Encryption.NONE)
    assert "maria" not in str(caught.value)
    with smtp_server(refuses=("ola@example.org", "maria@example.org")) as server, pytest.raises(TransferError, match=r"maria.*ola"):
        send(server, Encryption.NONE)


def test_what_a_device_named_stays_in_its_line():
    with smtp_server() as server:
        send(server, Encryption.NONE, alert=replace(ALERT, title="x\r\nBcc: eve@example.org\r\n\r\nhello", text=".\r\nQUIT\r\n..ende"))
    [got] = server.mails
    assert got["Bcc"] is None
    assert "Bcc" in got["Subject"]
    assert server.recipients == [["maria@example.org", "ola@example.org"]]
    assert ".\r\nQUIT\r\n..ende" in got.get_content()


def test_a_text_that_is_too_long_leaves_the_link():
    with smtp_server() as server:
        send(server, Encryption.NONE, alert=replace(ALERT, text="x" * 20_000))
    text = server.mails[0].get_content().replace("\r\n", "\n")
    assert len(text) <= 8_000
    assert text.rstrip().endswith("https://mooring.example/alarms/al-7")


def test_without_a_mail_server_the_setting_is_named():
    with pytest.raises(ConfigError, match=r"mail\.host"):
        mail.deliver(None, RECIPIENT.addresses, mail.message_of(ALERT, RECIPIENT, sender="a@b", console_url="", now=NOW))
