"""What a child of the agent inherits: the same code as its parent, whatever folder the agent was started in."""

import os
from pathlib import Path

import agent

_ROOT = Path(agent.__file__).resolve().parent.parent


def child_environment() -> dict[str, str]:
    """The environment of a child that runs our modules.

    A folder that somebody else may write, such as the current one, must not come first on its import path, and nothing phones home.
    """
    path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "ORT_DISABLE_TELEMETRY": "1"}
