"""The agent is a guest on somebody's camera: what importing its control process costs, measured in a child."""

import json
import subprocess
import sys

import pytest

MEASURE = """
import sys
import {module}
rss = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
import json
json.dump({{"modules": sorted(sys.modules), "rss_mib": rss / 1024}}, sys.stdout)
"""
FORBIDDEN = (
    "fastapi",
    "starlette",
    "sqlalchemy",
    "pandas",
    "torch",
    "scipy",
    "sklearn",
    "cv2",
    "onnxruntime",
    "ai_edge_litert",
    "tflite_runtime",
    "tuf",
    "numpy",
    "sqlite_utils",
)


def measure(module: str) -> dict:
    done = subprocess.run([sys.executable, "-c", MEASURE.format(module=module)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def service() -> dict:
    return measure("agent.service")


def test_the_control_process_imports_within_its_budget(service):
    assert service["rss_mib"] <= 60
    assert len(service["modules"]) <= 450


def test_the_control_process_imports_no_heavy_library(service):
    assert [name for name in FORBIDDEN if name in service["modules"]] == []


def test_the_command_line_starts_without_the_service():
    modules = measure("agent.cli")["modules"]
    assert [name for name in ("agent.service", "paho", "httpx", "cryptography", "sqlite3") if name in modules] == []


def test_an_https_client_brings_no_command_line_along():
    """httpx imports its own where click, rich and pygments are installed, for other programs."""
    program = """
import ssl, sys
from agent.identity import open_client
with open_client(ssl.create_default_context(), base_url="https://x", proxy=None, timeout_s=1.0):
    pass
print("httpx" in sys.modules, {name.split(".")[0] for name in sys.modules} & {"click", "rich", "pygments"})
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True set()"


@pytest.mark.parametrize("module", ["agent.inference.worker", "agent.sources.opencv", "agent.sources.stream", "agent.sources.folder"])
def test_the_inference_process_carries_no_pydantic_and_no_settings(module):
    modules = measure(module)["modules"]
    forbidden = (
        "pydantic",
        "pydantic_core",
        "agent.config",
        "annotated_types",
        "cbor2",
        "argparse",
        "tomllib",
        "zoneinfo",
        "runtime.features",
    )
    assert [name for name in forbidden if name in modules] == []


def test_a_process_builds_no_validator_of_what_it_never_reads():
    program = """
import agent.inference.hearing
from agent.config import AgentConfig
from protocol.configuration import PipelineSettings
from protocol.rules import EnterRule
print([one.__name__ for one in (AgentConfig, PipelineSettings, EnterRule) if one.__pydantic_complete__])
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
