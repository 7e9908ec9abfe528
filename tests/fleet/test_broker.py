"""The embedded broker: found or a clear error, ready when a real connect succeeds, started again when it dies, closed to strangers."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from simulators.identities import Authority
from waiting import wait_until

from fleet.broker import (
    CONTROLLER,
    PROBE,
    BrokerOptions,
    ClientFiles,
    Consumer,
    EmbeddedBroker,
    acl_text,
    client_tls,
    consumers_file,
    find_mosquitto,
    free_port,
    probe_connection,
    read_consumers,
)
from fleet.bus import Bus, BusOptions, controller_subscriptions
from protocol.errors import ConfigError, UnavailableError
from protocol.ids import TenantId


def test_a_missing_broker_is_an_error_that_names_the_install_line(tmp_path):
    with pytest.raises(ConfigError, match="apt install mosquitto") as caught:
        find_mosquitto(tmp_path / "mosquitto")
    assert caught.value.code == "broker-missing"


def test_an_old_broker_is_refused_by_its_version(tmp_path):
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho mosquitto version 1.6.9\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=r"1\.6\.9.*2\.0"):
        find_mosquitto(program)


def test_the_access_rules_name_tenant_prefix_and_the_chosen_suffixes():
    text = acl_text(TenantId("acme"), "edge", (Consumer("grafana", ("tel/#", "event")),))
    assert "pattern write edge/1/acme/d/%u/#" in text
    assert "user consumer.grafana\ntopic read edge/1/acme/f/#\ntopic read edge/1/acme/d/+/tel/#\ntopic read edge/1/acme/d/+/event" in text
    assert "mooring/" not in text


def test_it_is_ready_on_both_listeners_and_keeps_its_files_closed(broker: EmbeddedBroker, authority: Authority):
    probe_connection("127.0.0.1", broker.port, authority.issue(PROBE))
    assert broker.websocket_port
    for path in broker.options.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.parent.name == "state", path


def test_a_stranger_without_a_certificate_of_ours_is_refused(broker: EmbeddedBroker, tmp_path: Path, authority: Authority):
    stranger = Authority(tmp_path / "other").issue("cam-1")
    with pytest.raises(UnavailableError):
        probe_connection("127.0.0.1", broker.port, ClientFiles(authority.ca_file, stranger.certificate, stranger.key), timeout_s=1)


def test_it_is_started_again_when_it_was_killed(broker: EmbeddedBroker, authority: Authority):
    probe, old = authority.issue(PROBE), broker.pid
    os.kill(old, signal.SIGKILL)

    def is_back() -> bool:
        try:
            probe_connection("127.0.0.1", broker.port, probe, timeout_s=1)
        except UnavailableError:
            return False
        return True

    wait_until(lambda: broker.pid != old and is_back(), what="the new broker")
    assert broker.starts == 2


def test_a_taken_port_is_an_error_before_anybody_else_is_taken_for_the_broker(broker: EmbeddedBroker, tmp_path: Path, authority: Authority):
    options = BrokerOptions(
        folder=tmp_path / "second",
        tls=authority.issue("localhost", is_server=True),
        probe=authority.issue(PROBE),
        port=broker.port,
        websocket_port=None,
    )
    second = EmbeddedBroker(options)
    with pytest.raises(ConfigError, match=f"{broker.port}.*in use"):
        second.start()
    assert not second.is_running


def test_a_free_port_is_none_that_a_client_may_be_given_while_the_broker_is_away():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < free_port() < lowest for _ in range(20))


def test_a_revoked_certificate_is_refused_after_a_reload(mosquitto_path: Path, tmp_path: Path, authority: Authority):
    device = authority.issue("cam-9")
    options = BrokerOptions(
        folder=tmp_path / "broker",
        tls=authority.issue("localhost", is_server=True),
        probe=authority.issue(PROBE),
        port=0,
        websocket_port=None,
        revoked=authority.write_revocations(),
    )
    broker = EmbeddedBroker(options)
    broker.start()
    try:
        probe_connection("127.0.0.1", broker.port, device)
        authority.revoke(device)
        broker.reload()

        def is_refused() -> bool:
            try:
                probe_connection("127.0.0.1", broker.port, device, timeout_s=1)
            except UnavailableError:
                return True
            return False

        wait_until(is_refused, what="the refusal")
        probe_connection("127.0.0.1", broker.port, authority.issue("cam-10"))
    finally:
        broker.stop()


def test_the_broker_of_a_server_that_was_killed_is_ended_and_its_retained_messages_are_kept(
    mosquitto_path: Path, tmp_path: Path, authority: Authority
):
    options = BrokerOptions(
        folder=tmp_path / "broker",
        tls=authority.issue("localhost", is_server=True),
        probe=authority.issue(PROBE),
        port=0,
        websocket_port=None,
    )
    first = EmbeddedBroker(options)
    first.start()
    device = authority.issue("cam-1")
    bus = Bus(BusOptions(f"mqtts://localhost:{first.port}", "cam-1", client_tls(device)))
    bus.start()
    bus.publish_and_wait("mooring/1/t0/d/cam-1/status", b"kept", retain=True)
    bus.stop()
    second = EmbeddedBroker(replace(options, port=first.port))
    first._stopping.set()  # as if its server were no more: nobody watches it
    second.start()
    try:
        assert second.pid != first.pid
        reader = Bus(
            BusOptions(f"mqtts://localhost:{second.port}", CONTROLLER, client_tls(authority.issue(CONTROLLER)), controller_subscriptions())
        )
        reader.start()
        (message,) = wait_until(lambda: reader.inbox.take(1, wait_s=0.1, gather_s=0), what="the retained message")
        reader.stop()
        assert message.payload == b"kept"
    finally:
        second.stop()
        first.stop()


def test_an_identity_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="missing"):
        client_tls(ClientFiles(tmp_path / "ca", tmp_path / "missing.pem", tmp_path / "key"))


def test_consumers_are_read_from_their_file_and_a_suffix_cannot_leave_the_devices_topics(tmp_path: Path):
    path = consumers_file(tmp_path)
    path.parent.mkdir()
    assert read_consumers(path) == ()
    path.write_text('{"grafana": ["tel/#", "event"], "all": ["#"]}')
    assert read_consumers(path) == (Consumer("all", ("#",)), Consumer("grafana", ("tel/#", "event")))
    for bad in ('{"x": ["tel/#\\nuser cam-1"]}', '{"x": ["../c/#"]}', '{"No Name": ["#"]}', "[]", '{"x": 1}', '{"x": [1]}', "?"):
        path.write_text(bad)
        with pytest.raises(ConfigError, match=r"consumers\.json"):
            read_consumers(path)
