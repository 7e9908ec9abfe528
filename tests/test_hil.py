"""The hardware-in-the-loop suite on its local board: boot and update hold; a board that is not there is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hil.board import Board, BoardEntry, BoardError, Installation, load_entry
from hil.process import ProcessBoard
from hil.ssh import SshBoard
from hil.suite import Outcome, table
from protocol.errors import ConfigError, NotFoundError

ROOT = Path(__file__).resolve().parent.parent


def hil(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hil", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.needs_broker
def test_the_local_board_boots_to_its_first_inference_and_takes_an_update(mosquitto_path: Path):
    result = hil("--board", "local", "--check", "update", "--json")
    assert result.returncode == 0, result.stderr
    outcomes = {one["check"]: one for one in json.loads(result.stdout)}
    assert {name: one["held"] for name, one in outcomes.items()} == {"boot": True, "update": True}
    assert "1.1 in slot" in outcomes["update"]["seen"]


def test_a_board_that_is_not_in_the_file_is_named_with_those_that_are():
    result = hil("--board", "nowhere")
    assert result.returncode == 2
    assert "no board 'nowhere'; it has local" in result.stderr


def test_entries_are_checked(tmp_path: Path):
    path = tmp_path / "boards.toml"
    path.write_text('[a]\nkind = "ssh"\ndevice_type = "linux"\n[b]\nkind = "process"\ndevice_type = "linux"\ncolor = "red"\n')
    with pytest.raises(ConfigError, match="an address for ssh"):
        load_entry(path, "a")
    with pytest.raises(ConfigError, match="color"):
        load_entry(path, "b")
    with pytest.raises(NotFoundError, match="it has a, b"):
        load_entry(path, "c")
    local = load_entry(ROOT / "hil" / "boards.toml", "local")
    assert (local.kind, local.device_type, local.power_cut) == ("process", "linux-x86-64", ())


def test_the_settings_of_an_installation_are_settings_of_the_agent(tmp_path: Path):
    from agent.settings.loading import load_config

    (tmp_path / "agent.toml").write_text(
        Installation("b", "linux", "t", 1, 2, "[telemetry]\nperf_s = 1.0", ()).config_text(state_dir="/s", run_dir="/r")
    )
    config = load_config(config_path=tmp_path / "agent.toml", etc_dir=tmp_path, vendor_dir=tmp_path).config
    assert (config.server.url, config.broker.url, str(config.state_dir)) == ("https://127.0.0.1:1", "mqtts://127.0.0.1:2", "/s")


def test_a_board_that_cannot_be_reached_is_an_error_in_words(tmp_path: Path):
    board: Board = SshBoard(BoardEntry("x", "ssh", "linux", address="nobody@127.0.0.1", power_cut=("false",)))
    with pytest.raises(BoardError, match=r"false to nobody@127\.0\.0\.1 ended with 1"):
        board.power_cut()


def test_a_power_cut_of_an_agent_that_does_not_run_is_an_error(tmp_path: Path):
    with pytest.raises(BoardError, match="does not run"):
        ProcessBoard(tmp_path / "b").power_cut()


def test_the_table_shows_what_failed():
    text = table([Outcome("boot", True, "1.0 s", 3.0), Outcome("update", False, "no verdict\nmore", 180.0)])
    assert "boot        yes" in text
    assert "update      NO" in text
    assert "more" not in text
