"""What the handlers of both listeners need, made once by `fleet.service` and handed to `device_app` and `console_app`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fleet.blobs import BlobStore
from fleet.config import FleetConfig
from fleet.db import Database
from fleet.devices.calls import Calls
from fleet.devices.pki import Authority
from fleet.monitoring.live import LiveFeed
from fleet.registry.service import Registry
from protocol.clock import Clock
from protocol.ids import TenantId
from protocol.messages import BrokerAddress


def _system_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Services:
    """All that a handler may use. Nothing in here is state that another process of the server needs."""

    config: FleetConfig
    #: The tenant of an embedded server; requests of people and devices carry their own.
    tenant: TenantId
    database: Database
    #: The server's clock: stamps of rows, audit entries, assignments.
    clock: Clock
    #: The certificate authority that signs devices.
    authority: Authority
    #: Content-addressed bytes.
    blobs: BlobStore
    #: Models, releases, image repository, director.
    registry: Registry
    #: Where devices reach the broker, as told at enrollment.
    broker: BrokerAddress
    #: Where devices reach the device API, e.g. https://localhost:8443.
    device_url: str
    #: Where people reach the console.
    console_url: str
    #: System time: certificates, sessions and one-time tokens end by it.
    system_now: Callable[[], datetime] = _system_now
    live: LiveFeed = field(default_factory=LiveFeed)
    #: Asks devices; None: this server has no broker.
    calls: Calls | None = None
    #: For doctor and the settings page, e.g. "embedded mosquitto 2.0.11" or "mqtts://broker.example:8883".
    broker_text: str = ""
    #: Shown on every page: demo keys, accelerated clock. Empty: nothing to warn of.
    banner: str = ""
