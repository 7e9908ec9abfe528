"""A child runs our code, not what lies in the folder that the agent was started in."""

import json
import subprocess
import sys
from pathlib import Path

import agent
from agent.children import ONE_THREAD, child_environment


def test_a_foreign_package_in_the_current_folder_does_not_shadow_ours(tmp_path: Path):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").write_text("raise SystemExit('a stranger ran')\n")
    program = "import agent, json, os; print(json.dumps([agent.__file__, os.environ['ORT_DISABLE_TELEMETRY']]))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout) == [agent.__file__, "1"], done.stderr


def test_numpy_starts_no_thread_in_a_child_that_computes_in_one():
    code = "import numpy, os; print(len(os.listdir('/proc/self/task')))"
    environment = {**child_environment(), **ONE_THREAD}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout == b"1\n"
