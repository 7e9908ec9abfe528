"""The check child against a real HTTPS server with two TUF repositories: assignment, unchanged, or an error that says who acts."""

import itertools
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from simulators.clock import FakeClock
from simulators.device import LINE, DeviceSimulator, make_release
from simulators.update_api import UpdateApi
from waiting import PATIENCE_S, wait_until

from agent.update.assignment import CheckAnswer, CheckError, dump_answer, parse_answer
from agent.update.check import CheckWish, check, command_of, main
from agent.update.poller import Poller, run_child, run_stick_child, share_of
from protocol.clock import to_unix_ms
from protocol.errors import InvalidError

RELEASE = make_release("1.0", 10)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def api(tmp_path, authority):
    with UpdateApi(tmp_path / "server", authority) as running:
        running.publish(RELEASE)
        running.assign(RELEASE)
        yield running


@pytest.fixture
def state(api, make_identity) -> Path:
    identity = make_identity("mqtts://127.0.0.1:9", server=api.url)
    identity.image_root_path.write_bytes(api.image.bootstrap)
    identity.director_root_path.write_bytes(api.director.bootstrap)
    return identity.folder.parent


@pytest.fixture
def wish(api) -> CheckWish:
    return CheckWish(api.url, device_type="sim", runtimes=("onnx",), agent_version="0.1.0", timeout_s=60.0)


def ask(state: Path, wish: CheckWish, *, now: datetime | None = None) -> CheckAnswer:
    return check(state, wish, clock=FakeClock(datetime.now(UTC) if now is None else now))


def test_an_assignment_names_the_files_that_both_repositories_name(api, state, wish):
    answer = ask(state, wish)
    assert answer.error is None
    offer = answer.assignment.lines[0]
    assert (offer.line, offer.release, offer.counter, offer.variant, offer.runtime) == (LINE, "1.0", 10, "onnx", "onnx")
    assert {file.name: file.sha256 for file in offer.files} == {file.name: file.sha256 for file in RELEASE.offer().files}
    assert all(file.url.startswith(f"{api.url}/blobs/sha256/") for file in offer.files)
    assert answer.assignment.issued_at_ms == to_unix_ms(api.now)
    assert answer.assignment.metadata_versions["director.targets"] > 1
    assert {name for _, name in api.requests} == {"cam-1"}


def test_nothing_new_is_one_request(api, state, wish):
    etag = ask(state, wish).etag
    api.requests.clear()
    answer = ask(state, replace(wish, etag=etag))
    assert answer.unchanged
    assert [path for path, _ in api.requests] == ["/device/v1/director/timestamp.json"]


def test_nothing_new_is_not_believed_once_what_is_kept_has_expired(api, state, wish):
    etag = ask(state, wish).etag
    error = ask(state, replace(wish, etag=etag), now=api.now + timedelta(days=31)).error
    assert (error.family, error.code) == ("TrustError", "freeze")


def test_nothing_new_is_not_believed_by_a_device_that_lost_what_it_kept(api, state, wish):
    etag = ask(state, wish).etag
    (state / "trust" / "director" / "timestamp.json").write_bytes(b"{}")
    answer = ask(state, replace(wish, etag=etag))
    assert (answer.unchanged, answer.etag) == (False, etag)
    assert answer.assignment.lines[0].release == "1.0"


def test_a_change_after_nothing_new_is_seen(api, state, wish):
    etag = ask(state, wish).etag
    api.assign(None, assignment="as-2")
    answer = ask(state, replace(wish, etag=etag))
    assert not answer.unchanged
    assert (answer.assignment.assignment, answer.assignment.lines) == ("as-2", ())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"device_type": "other"}, "wrong-hardware"),
        ({"runtimes": ()}, "wrong-hardware"),
        ({"floors": (("digits", 11),)}, "old-release"),
    ],
)
def test_what_does_not_fit_this_device_is_refused_with_the_code_of_the_attack(state, wish, change, code):
    error = ask(state, replace(wish, **change)).error
    assert (error.family, error.code) == ("TrustError", code)


def test_another_devices_assignment_is_refused(api, state, wish):
    api.order(device="cam-2")
    assert ask(state, wish).error.code == "wrong-device"


@pytest.mark.parametrize(("status", "family"), [(503, "TransferError"), (404, "TransferError")])
def test_a_server_that_does_not_answer_well_is_an_error_to_retry(api, state, wish, status, family):
    api.refusal = (status, {"Retry-After": "90"})
    error = ask(state, wish).error
    assert error.family == family
    assert error.retry_after_s == (90.0 if status == 503 else None)


def test_no_server_is_an_error_to_retry_that_names_the_address(state, wish):
    error = ask(state, replace(wish, server="https://127.0.0.1:9")).error
    assert error.family == "TransferError"
    assert "https://127.0.0.1:9" in error.text


def test_a_device_that_is_not_enrolled_says_what_to_do(tmp_path, wish):
    error = ask(tmp_path / "nowhere", wish).error
    assert (error.family, error.code) == ("DeviceError", "not-enrolled")
    assert "enroll" in error.text


def test_a_clock_a_year_ahead_is_named_with_the_servers_signed_time(api, state, wish):
    error = ask(state, wish, now=api.now + timedelta(days=366)).error
    assert (error.family, error.code) == ("TrustError", "freeze")
    assert "clock says" in error.text
    assert f"{api.now:%Y-%m-%d}" in error.text


def test_a_clock_behind_the_time_floor_asks_for_the_signed_time_and_goes_on(api, state, wish):
    answer = ask(state, replace(wish, time_floor_ms=to_unix_ms(api.now)), now=api.now - timedelta(days=366))
    assert answer.error is None
    assert any("director/time?nonce=" in path for path, _ in api.requests)


@pytest.mark.parametrize("is_new", [True, False])
def test_the_signed_time_comes_along_when_it_is_wanted(api, state, wish, is_new):
    etag = "" if is_new else ask(state, wish).etag
    answer = ask(state, replace(wish, wants_time=True, etag=etag))
    assert answer.error is None
    assert answer.unchanged is not is_new
    assert answer.signed_time_ms == to_unix_ms(api.now)
    assert ask(state, wish).signed_time_ms is None


def test_a_server_without_a_signed_time_stops_no_update(api, state, wish):
    api.answers_time = False
    answer = ask(state, replace(wish, wants_time=True))
    assert answer.assignment is not None
    assert answer.signed_time_ms is None


def test_expired_metadata_with_a_right_clock_is_a_freeze(api, state, wish):
    api.expire()
    error = ask(state, wish).error
    assert error.code == "freeze"
    assert "clock says" not in error.text


def test_the_child_process_prints_the_same_document(state, wish):
    answer = run_child(command_of(state, wish), timeout_s=300)
    assert answer.error is None, answer.error
    assert answer.assignment == ask(state, wish).assignment


def test_the_control_process_loads_neither_the_trust_code_nor_an_http_library():
    program = "import sys, agent.update.poller; print({name.split('.')[0] for name in sys.modules} & {'tuf', 'securesystemslib', 'httpx'})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_the_command_line_carries_everything(state, wish, capfdbinary):
    etag = ask(state, wish).etag
    full = replace(wish, etag=etag, floors=(("digits", 3),), committed=(("digits", 5),), time_floor_ms=7)
    assert main(command_of(state, full)[3:]) == 0
    assert parse_answer(capfdbinary.readouterr().out).unchanged


def test_a_malformed_counter_list_is_refused(state, wish):
    command = [part for part in command_of(state, wish)[3:] if not part.startswith("--floors")]
    with pytest.raises(InvalidError, match="line=counter"):
        main([*command, "--floors=digits"])


# --- the child as seen by the control process ---


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("import sys; sys.exit(3)", "status 3"),
        ("print('hello')", "something else"),
        ("import sys; sys.stdout.write('x' * 5_000_000)", "at most"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "status -11"),
    ],
)
def test_a_child_that_dies_babbles_or_floods_is_an_error_not_an_exception(program, what):
    answer = run_child([sys.executable, "-c", program], timeout_s=300)
    assert answer.error.code == "check_failed"
    assert what in answer.error.text


def test_a_child_that_hangs_is_ended():
    answer = run_child([sys.executable, "-c", "import threading; threading.Event().wait()"], timeout_s=0.3)
    assert "ended it after its time" in answer.error.text


def test_a_child_that_hangs_at_a_stick_ends_with_the_agent(tmp_path):
    stop, answers, mark = threading.Event(), [], tmp_path / "hangs"
    program = f"import pathlib, threading; pathlib.Path({str(mark)!r}).touch(); threading.Event().wait()"
    thread = threading.Thread(target=lambda: answers.append(run_stick_child([sys.executable, "-c", program], stop=stop)))
    thread.start()
    wait_until(mark.exists)
    stop.set()
    thread.join(PATIENCE_S)
    assert "the agent ends" in answers[0].error.text


def test_a_child_that_cannot_start_is_an_error():
    assert run_child(["/nonexistent/python"]).error.code == "check_failed"


def test_documents_round_trip_and_others_are_refused():
    answer = CheckAnswer(error=CheckError("TrustError", "freeze", "old", 3.0), etag='"x"')
    assert parse_answer(dump_answer(answer)) == answer
    for document in (b"", b"[]", b'{"assignment": {"lines": 3}}', b" " * (2 << 20)):
        with pytest.raises(InvalidError):
            parse_answer(document)


# --- the poller ---


class Checks:
    """Answers in turn, and what it was asked."""

    def __init__(self, *answers: CheckAnswer) -> None:
        self.answers = list(answers)
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str]) -> CheckAnswer:
        self.commands.append(command)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def make_poller(device: DeviceSimulator, checks: Checks, wish: CheckWish | None = None, **more: Any) -> Poller:
    wish = wish or CheckWish("https://fleet.test", "sim", ("onnx",), "0.1.0")
    return Poller(
        device.machine,
        device.store,
        state_dir=Path("/state"),
        clock=device.clock,
        wish=lambda: wish,
        poll_s=lambda: 900.0,
        ask=checks,
        **more,
    )


def test_the_poller_hands_an_assignment_over_and_then_remembers_its_etag():
    device, release = DeviceSimulator(), make_release("1.0", 1)
    checks = Checks(CheckAnswer(assignment=release.assignment(), etag='"e1"'), CheckAnswer(unchanged=True, etag='"e1"'))
    poller = make_poller(device, checks)
    poller.check_once()
    assert device.store.updates[LINE].release == "1.0"
    poller.check_once()
    assert '--etag="e1"' in checks.commands[1]
    assert "--etag=" in checks.commands[0]
    assert f"--time-floor={release.assignment().issued_at_ms}" in checks.commands[1]
    assert make_poller(device, checks).state.time_floor_ms == release.assignment().issued_at_ms
    assert poller.state.checks == 2


class Timed(Checks):
    """Notes when it was asked, and ends after some checks."""

    def __init__(self, device: DeviceSimulator, *answers: CheckAnswer, most: int) -> None:
        super().__init__(*answers)
        self._device, self._most = device, most
        self.stop, self.times = threading.Event(), list[float]()
        self.on_check = lambda: None

    def __call__(self, command: list[str]) -> CheckAnswer:
        self.times.append(self._device.clock.monotonic())
        if len(self.times) == self._most:
            self.stop.set()
        self.on_check()
        return super().__call__(command)


def test_a_hint_is_followed_at_once_without_a_spread():
    device = DeviceSimulator()
    checks = Timed(device, CheckAnswer(unchanged=True), most=2)
    poller = make_poller(device, checks)
    checks.on_check = poller.hint
    poller.run(checks.stop)
    assert checks.times[1] - checks.times[0] < 1.0


def test_a_spread_hint_is_followed_at_the_devices_own_moment_the_same_each_time():
    moments = []
    for name in ("cam-1", "cam-1", "cam-2", "cam-3"):
        device = DeviceSimulator()
        checks = Timed(device, CheckAnswer(unchanged=True), most=2)
        poller = make_poller(device, checks, name=name)
        checks.on_check = lambda poller=poller: poller.hint(spread_s=300.0, about="sha256:ab")
        poller.run(checks.stop)
        moments.append(checks.times[1] - checks.times[0])
    assert moments[0] == moments[1]
    assert len({round(moment, 2) for moment in moments}) == 3
    assert all(0 <= moment < 300 for moment in moments)
    assert moments[0] == pytest.approx(300 * share_of("cam-1", "sha256:ab"), abs=0.01)


def test_the_places_in_a_spread_are_even():
    shares = sorted(share_of(f"cam-{number}", "sha256:ab") for number in range(1000))
    assert all(abs(share - place / 1000) < 0.06 for place, share in enumerate(shares))


def test_no_hint_ends_the_patience_that_a_server_asked_for():
    device = DeviceSimulator()
    checks = Timed(device, CheckAnswer(error=CheckError("TransferError", "unavailable", "busy", 3600.0)), most=2)
    poller = make_poller(device, checks)
    checks.on_check = poller.hint
    poller.run(checks.stop)
    assert checks.times[1] - checks.times[0] >= 3600.0


def test_a_signed_time_is_handed_on_also_beside_an_error():
    device, heard = DeviceSimulator(), []
    checks = Checks(
        CheckAnswer(unchanged=True, signed_time_ms=1_000),
        CheckAnswer(error=CheckError("TrustError", "freeze", "old"), signed_time_ms=2_000),
    )
    poller = make_poller(device, checks, on_signed_time=heard.append)
    poller.check_once()
    poller.check_once()
    assert [to_unix_ms(moment) for moment in heard] == [1_000, 2_000]


def test_an_error_is_kept_for_the_operator_until_a_check_goes_well():
    device = DeviceSimulator()
    checks = Checks(CheckAnswer(error=CheckError("TrustError", "wrong-device", "Not mine.")), CheckAnswer(unchanged=True))
    poller = make_poller(device, checks)
    poller.check_once()
    assert (poller.state.error.code, poller.state.attack_indicator) == ("wrong-device", "wrong-device")
    poller.check_once()
    assert poller.state.error is None
    assert poller.state.attack_indicator == "wrong-device"


def test_the_floor_of_time_never_falls():
    device, release = DeviceSimulator(), make_release("1.0", 1)
    late, early = release.assignment(), replace(release.assignment(), issued_at_ms=5)
    poller = make_poller(device, Checks(CheckAnswer(assignment=late), CheckAnswer(assignment=early)))
    poller.check_once()
    poller.check_once()
    assert poller.state.time_floor_ms == late.issued_at_ms


def test_the_floor_of_time_follows_what_was_signed_never_the_systems_clock():
    device, release = DeviceSimulator(), make_release("1.0", 1)
    poller = make_poller(device, Checks(CheckAnswer(assignment=release.assignment()), CheckAnswer(unchanged=True)))
    device.clock.advance(400 * 86_400)
    poller.check_once()
    device.clock.advance(400 * 86_400)
    poller.check_once()
    assert poller.state.time_floor_ms == release.assignment().issued_at_ms


def test_polls_are_spread_and_a_server_that_asks_for_patience_gets_it():
    import threading

    device = DeviceSimulator()
    stop, times = threading.Event(), []

    class Counting(Checks):
        def __call__(self, command: list[str]) -> CheckAnswer:
            times.append(device.clock.monotonic())
            if len(times) == 20:
                stop.set()
            return super().__call__(command)

    make_poller(device, Counting(CheckAnswer(unchanged=True))).run(stop)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(450.0 <= gap <= 1350.0 for gap in gaps)
    assert len({round(gap) for gap in gaps}) > 5


def test_a_device_that_cannot_ask_yet_does_not_ask():
    device, checks = DeviceSimulator(), Checks(CheckAnswer(unchanged=True))
    poller = Poller(
        device.machine, device.store, state_dir=Path("/state"), clock=device.clock, wish=lambda: None, poll_s=lambda: 1.0, ask=checks
    )
    assert poller.check_once() is None
    assert checks.commands == []


def test_a_check_that_failed_is_tried_again_soon_and_ever_later_until_one_succeeds():
    """The server may sign anew between two files of one look: the second look finds them whole."""
    device = DeviceSimulator()
    failed = CheckAnswer(error=CheckError("TransferError", "http-404", "962.snapshot.json answered 404"))
    checks = Timed(device, *[failed] * 14, CheckAnswer(unchanged=True), most=17)
    make_poller(device, checks).run(checks.stop)
    gaps = [after - before for before, after in itertools.pairwise(checks.times)]
    assert 1.0 <= gaps[0] <= 2.0
    assert all(2.0**number / 2 <= gap <= 2.0**number for number, gap in enumerate(gaps[:9], start=1))
    assert all(450.0 <= gap <= 1350.0 for gap in gaps[9:]), "no outage makes a device ask more often than that"


def test_a_server_that_asks_for_patience_gets_it_from_a_check_that_failed_too():
    device = DeviceSimulator()
    busy = CheckAnswer(error=CheckError("UnavailableError", "unavailable", "Busy.", retry_after_s=300.0))
    checks = Timed(device, busy, CheckAnswer(unchanged=True), most=2)
    make_poller(device, checks).run(checks.stop)
    assert checks.times[1] - checks.times[0] >= 300.0
