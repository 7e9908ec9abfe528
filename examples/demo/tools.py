"""Brings the broker where the machine lacks it: Debian's package, unpacked into a folder of the project, without root or trace."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

#: Debian's programs are often not on a user's PATH.
SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
APT_TIMEOUT_S = 240


class ToolMissingError(RuntimeError):
    """The broker is not here and could not be fetched; the text says what to install."""


def find_mosquitto(tools: Path) -> Path:
    """The broker's program: the system's, else the one in `tools`, fetched there when needed.

    Raises: ToolMissingError with the line that installs it.
    """
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATHS}")
    if found:
        return Path(found)
    wrapper = tools / "bin" / "mosquitto"
    if not wrapper.exists():
        _fetch(tools)
    return wrapper


def _fetch(tools: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ToolMissingError("mosquitto (the MQTT broker, 2.0 or newer) is missing. Install it with the system's package manager.")
    tools.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=tools) as folder:
            work = Path(folder)
            options = _apt_options(work)
            _run(["apt-get", *options, "-qq", "update"], work)
            plan = _run(["apt-get", *options, "-qq", "--simulate", "--no-install-recommends", "install", "mosquitto"], work)
            packages = re.findall(r"^Inst (\S+)", plan, flags=re.MULTILINE)
            _run(["apt-get", *options, "-qq", "download", *packages], work)
            for package in sorted(work.glob("*.deb")):
                _run(["dpkg", "-x", str(package), str(tools / "root")], work)
    except (subprocess.SubprocessError, OSError) as error:
        raise ToolMissingError(
            f"mosquitto (the MQTT broker) could not be fetched: {error}. Install it: sudo apt install mosquitto"
        ) from error
    program = tools / "root" / "usr" / "sbin" / "mosquitto"
    if not program.exists():
        raise ToolMissingError("apt brought no mosquitto. Install it: sudo apt install mosquitto")
    _write_wrapper(tools / "bin" / "mosquitto", program, sorted({str(path.parent) for path in (tools / "root").rglob("*.so*")}))


def _apt_options(work: Path) -> list[str]:
    """Private state, so that apt needs no root and an image without package lists works too."""
    for name in ("lists/partial", "archives/partial"):
        (work / name).mkdir(parents=True)
    return ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User="]


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=APT_TIMEOUT_S, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise subprocess.SubprocessError(f"{' '.join(command[:1])} said: {' '.join(last)}")
    return result.stdout


def _write_wrapper(wrapper: Path, program: Path, libraries: list[str]) -> None:
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    path = ":".join(libraries)
    wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{path}" exec "{program}" "$@"\n')
    wrapper.chmod(0o755)
