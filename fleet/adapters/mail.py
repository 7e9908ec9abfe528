"""Brings one alert to people by mail: one SMTP submission over TLS, bounded in time. No secret is in an error."""

import smtplib
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from enum import StrEnum

from fleet.monitoring.alerts.announcing import link_to
from fleet.monitoring.alerts.model import Alert, Recipient
from protocol.errors import ConfigError, TransferError

#: Seconds of system time for each answer of the mail server.
TIMEOUT_S = 30.0
MAX_SUBJECT, MAX_TEXT = 200, 8000


class Encryption(StrEnum):
    """How the connection to the mail server is protected."""

    #: From the first byte, port 465 (RFC 8314).
    TLS = "tls"
    #: By STARTTLS, port 587; a server that does not offer it gets no mail.
    STARTTLS = "starttls"
    #: Not at all: a relay on this machine.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed in."""

    host: str
    port: int
    encryption: Encryption
    sender: str
    user: str = ""
    #: Read when mail is sent; a password never lies in a setting.
    password: Callable[[], str] = field(default=lambda: "", repr=False)


def message_of(alert: Alert, recipient: Recipient, *, sender: str, console_url: str, now: datetime) -> EmailMessage:
    """The mail. Pure. What devices named goes into one line of the head without control characters (RFC 5322)."""
    message = EmailMessage()
    message["From"], message["To"] = sender, recipient.address.replace(",", ", ")
    message["Subject"] = "[Mooring] " + _line(alert.title)[:MAX_SUBJECT]
    message["Date"] = format_datetime(now)
    # the same over all attempts: mail programs show it once
    message["Message-ID"] = f"<{_line(alert.id)}.{recipient.name}@mooring>"
    message["Auto-Submitted"] = "auto-generated"
    link = f"\n\n{link_to(alert, console_url)}" if console_url else ""
    facts = f"\n\nSeverity: {alert.severity}\nSince: {alert.time:%Y-%m-%d %H:%M:%S} UTC{link}\n"
    message.set_content(alert.text[: MAX_TEXT - len(facts)] + facts)
    return message


def deliver(server: MailServer | None, addresses: Sequence[str], message: EmailMessage, *, trust: ssl.SSLContext | None = None) -> None:
    """Hand the mail in for these addresses, of those that stand in it.

    Raises: ConfigError when no server is set, or its login cannot be said; TransferError.
    """
    if server is None:
        raise ConfigError(
            "mail.host is not set, so nobody gets mail.",
            hint="Set mail.host and mail.sender in /etc/mooring/fleet.toml and start the server again; see docs/alerts.md.",
        )
    place = f"{server.host}:{server.port}"
    try:
        with _connected(server, trust or ssl.create_default_context()) as smtp:
            if server.user:
                smtp.login(*_login(server))
            refused = smtp.send_message(message, server.sender, list(addresses))
    except smtplib.SMTPAuthenticationError as error:
        raise TransferError(f"{place} does not take the login of {server.user}: {error.smtp_code}.", code="mail-login") from error
    except smtplib.SMTPRecipientsRefused as error:  # all of them
        raise TransferError(f"{place} did not take the mail for {_refused(error.recipients)}.", code="mail-addresses") from error
    except smtplib.SMTPResponseException as error:
        raise TransferError(f"{place} did not take the mail: {error.smtp_code}.", code="mail-refused") from error
    except (smtplib.SMTPException, OSError, UnicodeError) as error:  # the last: a host that is no name
        raise TransferError(f"{place} did not take the mail: {type(error).__name__}: {error}.", code="mail-failed") from error
    if refused:
        raise TransferError(
            f"{place} did not take {len(refused)} of the addresses, {_refused(refused)}.",
            code="mail-addresses",
        )


def _login(server: MailServer) -> tuple[str, str]:
    """User and password. Raises: ConfigError without them: smtplib sends ASCII only, and its own error repeats the password."""
    password = server.password()
    if not (server.user.isascii() and password.isascii()):
        raise ConfigError(
            "mail.user or the password in mail.password_file has a character beyond ASCII, which is not sent.",
            hint="Give that account of the mail server a password of letters, digits and signs in ASCII.",
        )
    return server.user, password


def _refused(answers: Mapping[str, tuple[int, bytes]]) -> str:
    return ", ".join(f"{address}: {code}" for address, (code, _) in answers.items())


def _connected(server: MailServer, trust: ssl.SSLContext) -> smtplib.SMTP:
    if server.encryption is Encryption.TLS:
        return smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_S, context=trust)
    smtp = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_S)
    if server.encryption is Encryption.STARTTLS:
        try:
            smtp.starttls(context=trust)
        except (smtplib.SMTPException, OSError):
            smtp.close()
            raise
    return smtp


def _line(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
