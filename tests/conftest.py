"""What every test may ask of the machine: real data, a free port, the programs of Debian. A missing one is named in the skip."""

import functools
import gc
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from paho.mqtt import client as mqtt

# How long an example takes is the machine's matter, and so is how many are made a second: no test fails for either.
settings.register_profile("mooring", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mooring")


def _and_close(stop: Callable[[mqtt.Client], mqtt.MQTTErrorCode]) -> Callable[[mqtt.Client], mqtt.MQTTErrorCode]:
    """paho leaves the two sockets that wake its thread to the garbage collector, whose warning would fail whichever test runs by then."""

    @functools.wraps(stop)
    def stop_and_close(client: mqtt.Client) -> mqtt.MQTTErrorCode:
        code = stop(client)
        client._reset_sockets(sockpair_only=True)
        return code

    return stop_and_close


mqtt.Client.loop_stop = _and_close(mqtt.Client.loop_stop)  # type: ignore[method-assign]  # see above

ROOT = Path(__file__).resolve().parent.parent
#: Set by `make test` to make a missing service a failure, not a skip.
STRICT = os.environ.get("MOORING_TEST_STRICT") == "1"


def _missing(what: str, packages: str) -> None:
    text = f"{what} is missing (apt install {packages})"
    if STRICT:
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real models, images and video."""
    folder = Path(os.environ.get("MOORING_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "models").is_dir():
        pytest.skip(f"real models and video are missing: no {folder}/models (set MOORING_DATA)")
    return folder


@pytest.fixture(scope="module")
def collected() -> Iterator[None]:
    """What a module's tests leave to the garbage collector is collected before the next module's begin: its warnings are theirs."""
    yield
    gc.collect()


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that was free a moment ago, and that no client is given."""
    from fleet.broker import free_port

    return free_port()


@pytest.fixture(scope="session")
def mosquitto_path() -> Path:
    """The broker's program."""
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        _missing("mosquitto", "mosquitto mosquitto-clients")
    return Path(str(found))


@pytest.fixture(scope="session")
def rtsp_tools() -> None:
    """What an RTSP server and its H.264 video are made with is here."""
    from simulators.rtsp import FFMPEG, is_server_here

    if not FFMPEG.exists() or not is_server_here():
        _missing("FFmpeg or GStreamer's RTSP server", "ffmpeg gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good")


@pytest.fixture(scope="session")
def softhsm_module() -> Path:
    """The PKCS#11 module of SoftHSM2."""
    path = Path("/usr/lib/softhsm/libsofthsm2.so")
    if not path.exists() or shutil.which("softhsm2-util") is None:
        _missing("SoftHSM2", "softhsm2")
    return path


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL cluster of this run's own, on a Unix socket in a temporary folder."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        _missing("PostgreSQL", "postgresql")
    bin_dir = programs[-1].parent
    with tempfile.TemporaryDirectory(prefix="mooring-pg-", ignore_cleanup_errors=True) as folder:
        as_user: dict[str, int | str] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            as_user = {"user": account.pw_uid, "group": account.pw_gid}
        data = f"{folder}/data"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder, **as_user}
        subprocess.run([bin_dir / "initdb", "-D", data, "-U", "mooring", "-A", "trust", "--no-sync"], check=True, **quiet)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        control = [bin_dir / "pg_ctl", "-D", data, "-w"]
        subprocess.run([*control, "-o", options, "-l", f"{folder}/log", "start"], check=True, **quiet)
        try:
            yield f"postgresql+psycopg://mooring@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet)
