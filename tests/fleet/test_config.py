"""The server's settings: one order, every wrong one named with what is allowed."""

from pathlib import Path
from typing import Any

import pytest

from fleet import config
from fleet.config import FleetConfig, Role, known_keys
from protocol.errors import ConfigError


@pytest.fixture
def system(tmp_path):
    folder = tmp_path / "etc"
    (folder / "fleet.d").mkdir(parents=True)
    return folder


@pytest.fixture
def load(system):
    def loaded(**changes: Any):
        return config.load(**{"environment": {}, "system_folder": system, **changes})

    return loaded


def test_defaults_need_no_file_and_have_no_origin(load):
    loaded = load()
    assert loaded.config == FleetConfig()
    assert loaded.origins == {}
    assert loaded.config.roles == tuple(Role)
    assert loaded.config.effective_database_url == "sqlite:////var/lib/mooring/fleet/fleet.db"
    assert loaded.config.effective_blob_url == "file:///var/lib/mooring/fleet/blobs"


def test_flag_beats_environment_beats_file_beats_system(load, system, tmp_path):
    (system / "fleet.toml").write_text('tenant = "a"\nlog_level = "debug"\n[console]\nport = 1\n[broker]\nport = 11\n')
    (system / "fleet.d" / "10.toml").write_text("[broker]\nport = 12\nwebsocket_port = 13\n")
    (tmp_path / "my.toml").write_text('tenant = "b"\n[console]\nport = 2\n')
    environment = {"MOORING_CONSOLE__PORT": "3", "MOORING_TENANT": "c", "HOME": "/root"}
    loaded = load(file=tmp_path / "my.toml", environment=environment, flags={"console.port": 4, "broker.url": None})
    assert (loaded.config.console.port, loaded.config.tenant, loaded.config.log_level) == (4, "c", "debug")
    assert (loaded.config.broker.port, loaded.config.broker.websocket_port) == (12, 13)
    assert loaded.origins["console.port"] == "flag"
    assert loaded.origins["tenant"] == "environment MOORING_TENANT"
    assert loaded.origins["log_level"].endswith("fleet.toml")
    assert loaded.origins["broker.port"].endswith("10.toml")


def test_lists_are_written_with_commas_outside_of_files(load):
    loaded = load(environment={"MOORING_ROLES": "api, worker"}, flags={"pki.names": "fleet.example,10.0.0.1"})
    assert loaded.config.roles == (Role.API, Role.WORKER)
    assert loaded.config.pki.names == ("fleet.example", "10.0.0.1")


@pytest.mark.parametrize(
    "name", ["MOORING_AGENT_SERVER__URL", "MOORING_AGENT_TYPO", "MOORING_CLOCK", "MOORING_DATA", "MOORING_TEST_STRICT"]
)
def test_variables_of_others_are_left_alone(load, name):
    assert load(environment={name: "x"}).config == FleetConfig()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"environment": {"MOORING_CONSOLE__PROT": "1"}}, ["console.prot", "'1'", "environment MOORING_CONSOLE__PROT", "console.port"]),
        ({"environment": {"MOORING_CLOCKWORK": "1"}}, ["clockwork", "tenant"]),
        ({"flags": {"console.port": 70_000}}, ["console.port", "70000", "flag", "65535"]),
        ({"flags": {"roles": "api,cook"}}, ["roles", "cook", "ingest"]),
        ({"flags": {"roles": ""}}, ["roles", "what this process does"]),
        ({"flags": {"tenant": "T 0"}}, ["tenant", "T 0"]),
        ({"flags": {"pki.device_days": 0}}, ["pki.device_days", "0", "days"]),
        ({"flags": {"console.host": "0.0.0.0"}}, ["console.host", "0.0.0.0", "tls_certificate"]),  # noqa: S104 - refused
        ({"flags": {"console.tls_key": "/k.pem"}}, ["console.tls_certificate", "missing"]),
        ({"flags": {"console.url": "fleet.example"}}, ["console.url", "'fleet.example'", "https://host"]),
        ({"flags": {"console.url": "https://fleet.example/mooring"}}, ["console.url", "without a path"]),
        ({"flags": {"console.url": "https://fleet.example:port"}}, ["console.url", "https://host"]),
        ({"flags": {"console.url": "https://ola:x@fleet.example"}}, ["console.url", "'***@fleet.example'"]),
        ({"flags": {"console.url": "https://fleet.example?"}}, ["console.url", "https://host"]),
        ({"flags": {"console.url": "https://fleet.example\n"}}, ["console.url", "https://host"]),
        ({"flags": {"broker.url": "mqtt://b:1883"}}, ["broker.url", "mqtt://b:1883", "mqtts://"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_its_origin_and_what_is_allowed(load, changes, parts):
    with pytest.raises(ConfigError) as caught:
        load(**changes)
    text = str(caught.value)
    assert [part for part in parts if part not in text] == [], text


def test_a_database_password_is_not_repeated(load):
    with pytest.raises(ConfigError) as caught:
        load(flags={"database_url": ["postgresql://u:geheim@h/n"]})
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(("content", "text"), [(b"a = ", "not TOML"), (b"\xff\xfe", "not TOML"), (b"#" * ((1 << 20) + 1), "longer")])
def test_a_file_that_is_no_settings_file_is_refused(load, tmp_path, content, text):
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        load(file=tmp_path / "my.toml")


def test_a_file_that_was_asked_for_and_is_not_there_is_an_error(load, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file=tmp_path / "none.toml")


def test_a_setting_with_an_unknown_section_in_a_file_is_named(load, tmp_path):
    (tmp_path / "my.toml").write_text("[brokr]\nport = 1\n")
    with pytest.raises(ConfigError, match=r"brokr\.port = '1' \(.*my\.toml\) is no setting"):
        load(file=tmp_path / "my.toml")


def test_relative_folders_become_absolute(load):
    assert load(flags={"data_dir": "state"}).config.data_dir == Path.cwd() / "state"


def test_every_setting_says_what_it_is():
    assert {key for key, text in known_keys().items() if not text} == set()


def test_the_console_may_listen_anywhere_with_tls(load):
    flags = {"console.host": "0.0.0.0", "console.tls_certificate": "/c.pem", "console.tls_key": "/k.pem"}  # noqa: S104 - with TLS
    assert load(flags=flags).config.console.tls_key == Path("/k.pem")


def test_every_setting_is_shown_with_its_origin_and_without_passwords(load):
    loaded = load(flags={"database_url": "postgresql://fleet:geheim@db/mooring", "console.port": 9})
    shown = {key: (value, origin) for key, value, origin in loaded.rows()}
    assert set(shown) == set(known_keys())
    assert shown["database_url"] == ("postgresql://***@db/mooring", "flag")
    assert shown["console.port"] == (9, "flag")
    assert shown["console.host"] == ("127.0.0.1", "default")


@pytest.mark.parametrize("sender", ["no address", "jörg@example.org", "a@example.org\nBcc: eve@example.org", "Mooring <nobody>"])
def test_a_sender_that_is_no_mail_address_stops_the_start(tmp_path, sender):
    with pytest.raises(ConfigError, match=r"mail\.sender = .* is no mail address"):
        config.load(flags={"mail.host": "localhost", "mail.sender": sender}, environment={}, system_folder=tmp_path)


@pytest.mark.parametrize("sender", ["mooring@example.org", "Mooring, the fleet <mooring@example.org>"])
def test_a_sender_may_have_a_name_before_its_address(tmp_path, sender):
    found = config.load(flags={"mail.host": "localhost", "mail.sender": sender}, environment={}, system_folder=tmp_path)
    assert found.config.mail.sender == sender
