"""The serving process: starts, answers, is started again when it dies, and ends with the agent."""

import os
import signal

import httpx
import pytest
from simulators.color_models import make_slot
from waiting import wait_until

from agent.config import RuntimeConfig, ServingConfig
from agent.serving.messages import Beat, Task, parse_said
from agent.serving.process import ServingProcess, Timings
from protocol.errors import InvalidError

QUICK = Timings(restart_first_s=0.01, restart_max_s=0.05)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_process_that_dies_is_started_again_and_ends_when_it_is_told(tmp_path):
    task = Task(serving=ServingConfig(listen="127.0.0.1:0"), runtime=RuntimeConfig(), model_dir=make_slot(tmp_path / "color"))
    serving = ServingProcess(task, timings=QUICK)
    serving.start()
    try:

        def is_answered() -> bool:
            address = serving.address
            return bool(address and any(one.release for one in serving.totals())) and (
                httpx.get(f"http://{address}/v2/models/color/ready", trust_env=False, timeout=60).status_code == 200
            )

        wait_until(is_answered, what="the first answer")
        first = serving.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: serving.pid not in (None, first) and is_answered(), what="an answer of its successor")
        wait_until(lambda: serving.findings() == [], what="no trouble")
        last = serving.pid
    finally:
        serving.stop()
    assert is_gone(last)


def test_why_it_does_not_serve_is_told(tmp_path):
    serving = ServingProcess(
        Task(serving=ServingConfig(listen=f"unix:{tmp_path}/missing/socket"), runtime=RuntimeConfig(), slots_dir=tmp_path), timings=QUICK
    )
    serving.start()
    try:
        found = wait_until(serving.findings, what="the reason")
        assert found[0][0] == "serving_down"
        assert "missing/socket" in found[0][1]
    finally:
        serving.stop()


def test_a_task_comes_through_its_line(tmp_path):
    task = Task(
        serving=ServingConfig(listen="127.0.0.1:1", lines=("a",)), runtime=RuntimeConfig(threads=2), slots_dir=tmp_path, version="1"
    )
    assert Task.from_line(task.to_line()) == task
    with pytest.raises(InvalidError):
        Task.from_line(b'{"serving": 1}')


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"lines": 3}', b"[" * 100_000])
def test_what_is_no_beat_is_refused(line):
    with pytest.raises(InvalidError):
        parse_said(line)


def test_a_beat_comes_through_its_line():
    assert parse_said(b'{"lines": [], "busy_s": 0.5, "address": "x"}') == Beat((), 0.5, "x")
    assert parse_said(b'{"error": "why"}') == "why"
