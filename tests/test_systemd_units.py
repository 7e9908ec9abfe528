"""The units are read by systemd without a word of complaint, and stay locked down."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_systemd
UNITS = Path(__file__).resolve().parent.parent / "systemd"
#: Exposure of 0 to 10, times ten, that `systemd-analyze security` may find; the agent needs the network and device nodes.
THRESHOLDS = {"mooring-agent.service": 20}


@pytest.fixture(scope="session")
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is missing (apt install systemd)")
    return found


def runnable(unit: Path, folder: Path) -> Path:
    """A copy whose programs exist here, so that the rest of the unit is what is judged."""
    lines = unit.read_text().splitlines()
    copy = folder / unit.name
    copy.write_text("\n".join(_with_program(line) for line in lines) + "\n")
    return copy


def _with_program(line: str) -> str:
    key, _, command = line.partition("=")
    return f"{key}={sys.executable} {command.partition(' ')[2]}" if key.startswith("Exec") else line


@pytest.mark.parametrize("name", sorted(path.name for path in UNITS.glob("*.service")))
def test_systemd_reads_the_unit_without_a_complaint(analyze, tmp_path, name):
    done = subprocess.run([analyze, "verify", runnable(UNITS / name, tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # an unknown key is only a line on standard error


def test_a_misspelled_key_would_be_noticed(analyze, tmp_path):
    unit = tmp_path / "mooring-agent.service"
    unit.write_text((UNITS / unit.name).read_text().replace("NoNewPrivileges", "NoNewPrivilege"))
    done = subprocess.run([analyze, "verify", runnable(unit, tmp_path)], capture_output=True, text=True, check=False)
    assert "NoNewPrivilege" in done.stderr


@pytest.mark.parametrize("name", sorted(THRESHOLDS))
def test_the_unit_exposes_little(analyze, name):
    command = [analyze, "security", "--offline=true", f"--threshold={THRESHOLDS[name]}", "--no-pager", UNITS / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:]


def test_the_agents_unit_switches_library_telemetry_off():
    assert "ORT_DISABLE_TELEMETRY=1" in (UNITS / "mooring-agent.service").read_text()
