"""Unmodified clients of others complete their calls: tritonclient from this environment, or from .venv-serving (`make serving-tools`)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def python_with_tritonclient() -> Path:
    if importlib.util.find_spec("tritonclient") is not None:
        return Path(sys.executable)
    found = ROOT / ".venv-serving" / "bin" / "python"
    if not found.is_file():
        pytest.skip("tritonclient[http] is installed neither here nor in .venv-serving (make serving-tools)")
    return found


def test_tritonclient_completes_every_call(serve):
    host, port = serve().address
    command = [python_with_tritonclient(), Path(__file__).with_name("triton_calls.py"), f"{host}:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
