"""The control socket answers who may ask, and nobody's malformed or slow request stops it; systemd hears what it should."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from itertools import takewhile
from pathlib import Path

import pytest
from waiting import wait_until

from agent.control import ControlServer, ask, may_speak
from agent.notify import Notifier
from protocol.errors import DeviceError, NotFoundError, TransferError


def refuse():
    raise DeviceError("No.", code="x")


def decide(line: str, *, given: bool) -> dict[str, object]:
    if line == "other":
        raise NotFoundError("No update of other is under way.")
    return {"line": line, "given": given}


@pytest.fixture
def server(tmp_path):
    commands = {"status": lambda: {"n": 1}, "refuse": refuse, "consent": decide}
    running = ControlServer(tmp_path / "run" / "control.sock", commands)
    running.start()
    yield running
    running.stop()


def raw(path, data: bytes) -> list[dict]:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        with peer.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


def test_a_command_is_answered(server):
    assert ask(server._path, "status") == {"n": 1}


def test_several_requests_may_come_on_one_connection(server):
    answers = raw(server._path, b'{"command":"status"}\n{"command":"status"}\n')
    assert [answer["result"] for answer in answers] == [{"n": 1}, {"n": 1}]


def test_a_command_may_have_arguments_by_name(server):
    assert ask(server._path, "consent", line="digits", given=True) == {"line": "digits", "given": True}


def test_an_error_keeps_its_family_on_the_way(server):
    with pytest.raises(NotFoundError, match="under way"):
        ask(server._path, "consent", line="other", given=False)


@pytest.mark.parametrize(
    "args",
    [b"", b',"args":{}', b',"args":{"line":"a"}', b',"args":{"line":"a","given":true,"more":1}', b',"args":3', b',"args":[["line","a"]]'],
)
def test_arguments_that_do_not_fit_are_answered_with_what_is_wanted(server, args):
    (answer,) = raw(server._path, b'{"command":"consent"' + args + b"}\n")
    assert answer["ok"] is False
    assert "Wanted" in answer["error"]
    assert ask(server._path, "status") == {"n": 1}


@pytest.mark.parametrize(
    "data", [b"nonsense\n", b"[]\n", b'{"command":"reboot"}\n', b'{"command":["a"]}\n', b"x" * 5000 + b"\n", b"unended"]
)
def test_a_malformed_request_is_answered_with_what_is_wanted(server, data):
    (answer,) = raw(server._path, data)
    assert answer["ok"] is False
    assert answer["error"]
    assert ask(server._path, "status") == {"n": 1}


def test_an_error_of_ours_is_the_answer(server):
    with pytest.raises(DeviceError, match=r"No\."):
        ask(server._path, "refuse")


def test_without_an_agent_asking_says_so(tmp_path):
    with pytest.raises(TransferError) as caught:
        ask(tmp_path / "control.sock", "status")
    assert caught.value.code == "agent-down"


def test_the_socket_is_for_owner_and_group_only_and_gone_at_the_end(tmp_path):
    running = ControlServer(tmp_path / "control.sock", {})
    running.start()
    assert stat.S_IMODE(running._path.stat().st_mode) == 0o660
    running.stop()
    running.stop()
    assert not running._path.exists()


def test_a_second_agent_on_the_same_folder_is_refused(server):
    with pytest.raises(DeviceError, match="Another agent"):
        ControlServer(server._path, {}).start()
    assert ask(server._path, "status") == {"n": 1}


@pytest.mark.parametrize("depth", [1, 3, 12])
def test_a_folder_may_be_as_deep_as_the_file_system_lets_it(tmp_path, depth):
    """A Unix socket's name has 108 bytes (unix(7)); state folders of people who are no root have more."""
    path = tmp_path.joinpath(*["x" * 80] * depth) / "control.sock"
    with pytest.raises(TransferError, match="does not answer"):
        ask(path, "status")
    path.parent.mkdir(parents=True)
    with pytest.raises(TransferError, match="does not answer"):
        ask(path, "status")
    running = ControlServer(path, {"status": lambda: {"n": 1}})
    running.start()
    try:
        assert ask(path, "status") == {"n": 1}
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with pytest.raises(DeviceError, match="Another agent listens"):
            ControlServer(path, {}).start()
    finally:
        running.stop()
    assert not path.exists()


def test_a_socket_left_by_a_killed_agent_is_replaced(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    running = ControlServer(path, {"status": lambda: 1})
    running.start()
    assert ask(path, "status") == 1
    running.stop()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DeviceError, match=r"control\.sock cannot be made"):
        ControlServer(tmp_path / "run" / "control.sock", {}).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize(("groups", "allowed"), [([], False), ([4242], True)])
def test_only_members_of_the_sockets_group_may_ask(tmp_path, groups, allowed):
    for folder in takewhile(lambda folder: folder != Path(tempfile.gettempdir()), (tmp_path, *tmp_path.parents)):
        folder.chmod(0o755)
    running = ControlServer(tmp_path / "control.sock", {"status": lambda: 1})
    running.start()
    os.chown(running._path, 0, 4242)
    running._path.chmod(0o666)  # the credentials alone must decide
    code = f"""
import os, socket, sys
os.setgroups({groups}); os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect({str(running._path)!r}); peer.sendall(b'{{"command":"status"}}\\n'); sys.stdout.write(peer.makefile().readline())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ok"] is allowed
    running.stop()


def test_the_agents_own_user_may_speak():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert may_speak(ours, group=4_000_000)


# --- systemd ---


@pytest.fixture
def supervisor(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        yield listener


def test_systemd_hears_ready_status_and_stopping(supervisor):
    notifier = Notifier({"NOTIFY_SOCKET": supervisor.getsockname()})
    notifier.ready()
    notifier.alive("all well")
    notifier.alive("all well")
    notifier.alive("not so well")
    notifier.stopping()
    heard = [supervisor.recv(4096).decode() for _ in range(4)]
    assert heard == ["READY=1", "STATUS=all well", "STATUS=not so well", "STOPPING=1"]


def test_the_watchdog_is_fed_at_half_its_time(supervisor):
    notifier = Notifier({"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())})
    began_s = time.monotonic()
    notifier.alive("")
    assert supervisor.recv(4096) == b"WATCHDOG=1"
    supervisor.settimeout(0)

    def fed():
        notifier.alive("")
        try:
            return supervisor.recv(4096)
        except BlockingIOError:
            return b""

    assert wait_until(fed, what="the next feed") == b"WATCHDOG=1"
    assert time.monotonic() - began_s >= 0.05


def test_an_abstract_socket_is_spoken_to():
    name = f"mooring-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(60)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert listener.recv(100) == b"READY=1"


def test_without_systemd_or_with_a_deaf_one_nothing_happens(tmp_path):
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()
    other = Notifier({"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"})
    other.alive("x")
