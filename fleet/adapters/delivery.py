"""The handler of the job that brings one alert to one address of a recipient.

What fails is tried again by the queue; the id of the message stays.
"""

from collections.abc import Callable
from datetime import datetime

from fleet.adapters import mail, webhook
from fleet.adapters.mail import Encryption, MailServer
from fleet.config import MailConfig
from fleet.db import Database
from fleet.jobs import Job
from fleet.monitoring.alerts import store
from fleet.monitoring.alerts.announcing import alert_of
from fleet.monitoring.alerts.model import RecipientKind
from protocol.errors import ConfigError

#: A password beyond this is no password, bytes.
MAX_PASSWORD = 1024


def mail_server(config: MailConfig) -> MailServer | None:
    """Where mail is handed in; None when no server is set."""
    if not config.host:
        return None

    def password() -> str:
        if config.password_file is None:
            return ""
        try:
            with config.password_file.open("rb") as file:
                return file.read(MAX_PASSWORD).decode().strip()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"mail.password_file {config.password_file} cannot be read: {type(error).__name__}.") from None

    return MailServer(config.host, config.port, Encryption(config.encryption), config.sender, config.user, password)


def handler(
    database: Database, *, server: MailServer | None, console_url: Callable[[], str], system_now: Callable[[], datetime]
) -> Callable[[Job], None]:
    """Brings an alert to its recipient; one that is gone or switched off meanwhile, or lost that address, is told nothing.

    `system_now`: stamps are of system time also where the server's clock is accelerated: receivers compare them with theirs.
    """

    def deliver(job: Job) -> None:
        with database.reading() as tx:
            recipient = store.find_recipient(tx, job.tenant, str(job.payload["recipient"]))
        if recipient is None or not recipient.is_enabled:
            return
        wanted = job.payload.get("address")  # older jobs of mail have none: for all of them
        addresses = [one for one in recipient.addresses if wanted in {None, one}]
        if not addresses:
            return
        alert = alert_of(dict(job.payload["alert"]))
        if recipient.kind is RecipientKind.WEBHOOK:
            webhook.deliver(recipient, alert, now=system_now(), console_url=console_url())
        else:
            sender = server.sender if server else ""
            message = mail.message_of(alert, recipient, sender=sender, console_url=console_url(), now=system_now())
            mail.deliver(server, addresses, message)

    return deliver
