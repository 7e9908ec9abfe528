"""What the tests of the server share: an authority, a broker, a database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import database, database_templates, unmigrated_database
from simulators.identities import Authority

from fleet.broker import PROBE, BrokerOptions, EmbeddedBroker

__all__ = ["authority", "broker", "database", "database_templates", "unmigrated_database"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def broker(mosquitto_path: Path, tmp_path: Path, authority: Authority) -> Iterator[EmbeddedBroker]:
    """A running embedded broker on free ports."""
    options = BrokerOptions(
        folder=tmp_path / "broker",
        tls=authority.issue("localhost", is_server=True),
        probe=authority.issue(PROBE),
        port=0,
        websocket_port=0,
        program=mosquitto_path,
    )
    broker = EmbeddedBroker(options)
    broker.start()
    yield broker
    broker.stop()
