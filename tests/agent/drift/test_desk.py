"""What counting brings into the control process, and what it leaves outside."""

import os
import subprocess
import sys

from simulators.clock import FakeClock

from agent.config import DriftConfig
from agent.drift.desk import DriftDesk
from agent.store import Store
from protocol.messages import Drift

COUNT_ONE_ROW = """
import os, sys
from pathlib import Path
from agent.config import DriftConfig
from agent.drift.desk import DriftDesk
from agent.database.file import prepare_in_child
from agent.store import Store
from protocol.clock import SystemClock

clock = SystemClock()
prepare_in_child(Path(sys.argv[1]))  # as the agent does
desk = DriftDesk(Store(Path(sys.argv[1]), clock=clock), clock=clock, device="cam-1", source="/d", has_profile=lambda line: True)
desk.configure(DriftConfig(), [])
desk.tick(is_clock_set=True)
print("numpy" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS"))
from agent.inference.messages import Quality, Sampled

desk.add(Sampled(pipeline="front", line="pets", release="1.0", folder="/none", model="a1" * 16, grid="b2" * 16, at_s=clock.monotonic(),
                 step_s=1.0, values="", labels=(), size=(64, 64), quality=Quality(120.0, 40.0, "a")))
desk.tick(is_clock_set=True)
print("numpy" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS"))
"""


def test_numpy_comes_with_the_first_row_and_multiplies_by_one_thread(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_ONE_ROW, str(tmp_path / "outbox.db")], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False None", "True 1"]


def test_the_state_topic_says_the_rate_that_is_in_force(tmp_path):
    with Store(tmp_path / "outbox.db", clock=FakeClock()) as store:
        desk = DriftDesk(store, clock=FakeClock(), device="cam-1", source="/d", has_profile=lambda _: True)
        desk.configure(DriftConfig(false_alarms_per_year=5.0), [])
        assert Drift.model_validate(store.envelope() | desk.body()).false_alarms_per_year == 5.0
        before = desk.revision
        desk.configure(DriftConfig(false_alarms_per_year=2.0), [])
        assert desk.body()["false_alarms_per_year"] == 2.0
        assert desk.revision > before  # it is sent anew
