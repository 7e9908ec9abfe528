"""A stick in place of the server: the same verifier, and whatever somebody did to the stick, nothing unsigned is kept."""

import os
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from simulators.clock import FakeClock
from simulators.device import DOWNLOADS_DIR, LINE, DeviceSimulator, make_release
from simulators.stick import write_stick
from simulators.update_api import UpdateApi

from agent.slots import Slots
from agent.update.assignment import CheckAnswer, CheckError, OfferedDelta
from agent.update.bundle import bring, open_bundle
from agent.update.check import CheckWish, check, command_of
from agent.update.poller import Poller, run_child
from protocol.bundle import BLOBS, DEVICES, INDEX
from protocol.canonical import digest_of
from protocol.errors import DeviceError, InvalidError, NotFoundError, TransferError
from protocol.ids import Digest
from protocol.reasons import explained

RELEASE = make_release("1.0", 10)
FILES = {file.sha256.removeprefix("sha256:"): RELEASE.files[file.name] for file in RELEASE.offer().files}


@pytest.fixture
def api(tmp_path, authority):
    with UpdateApi(tmp_path / "server", authority) as running:
        running.publish(RELEASE)
        running.assign(RELEASE)
        yield running


@pytest.fixture
def state(api, make_identity) -> Path:
    identity = make_identity("mqtts://127.0.0.1:9", server="https://127.0.0.1:9")
    identity.image_root_path.write_bytes(api.image.bootstrap)
    identity.director_root_path.write_bytes(api.director.bootstrap)
    return identity.folder.parent


@pytest.fixture
def stick(api, tmp_path) -> Path:
    return write_stick(tmp_path / "stick", api)


def ask(state: Path, stick: Path, *, now: datetime | None = None, **changes) -> CheckAnswer:
    wish = CheckWish("https://127.0.0.1:9", device_type="sim", runtimes=("onnx",), agent_version="0.1.0", bundle=str(stick))
    return check(state, replace(wish, **changes), clock=FakeClock(now or datetime.now(UTC)))


def kept(state: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (state / "downloads").glob("*")}


def test_a_stick_assigns_what_the_server_would_and_its_files_are_here_when_it_is_pulled(api, state, stick):
    answer = ask(state, stick)
    assert answer.error is None
    assert [(line.line, line.release, line.assignment) for line in answer.assignment.lines] == [(LINE, "1.0", "as-1")]
    assert kept(state) == FILES
    assert api.requests == [], "the server was not asked"
    assert answer.etag == ""


def test_the_child_process_reads_a_stick_too(state, stick):
    wish = CheckWish("https://127.0.0.1:9", device_type="sim", runtimes=("onnx",), agent_version="0.1.0", bundle=str(stick))
    answer = run_child(command_of(state, wish), timeout_s=300)
    assert answer.error is None, answer.error
    assert kept(state) == FILES


def test_a_stick_that_does_not_name_this_device_installs_nothing_and_says_so(api, state, tmp_path):
    other = write_stick(tmp_path / "other", api, device="cam-9")
    answer = ask(state, other)
    assert answer.error.code == "not-on-stick"
    assert "Nothing was installed" in answer.error.text
    assert explained(answer.error.code).startswith("The stick is for other devices.")
    assert not (state / "downloads").exists()


def test_a_stick_of_another_device_renamed_for_this_one_is_refused(api, state, tmp_path):
    api.order(device="cam-9")
    assert ask(state, write_stick(tmp_path / "renamed", api)).error.code == "wrong-device"
    assert not (state / "downloads").exists()


def test_other_bytes_under_a_signed_name_are_refused_and_not_kept(state, stick):
    victim = max((stick / BLOBS).iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[0] ^= 1
    victim.write_bytes(data)
    answer = ask(state, stick)
    assert (answer.error.family, answer.error.code) == ("TrustError", "hash_mismatch")
    assert victim.name not in kept(state)
    assert not list((state / "downloads").glob("*.stick"))


@pytest.mark.parametrize("change", ["longer", "shorter", "link", "pipe", "folder", "device"])
def test_what_is_no_plain_file_of_the_signed_length_is_refused(state, stick, tmp_path, change):
    victim = next((stick / BLOBS).iterdir())
    data = victim.read_bytes()
    victim.unlink()
    match change:
        case "longer":
            victim.write_bytes(data + b"x")
        case "shorter":
            victim.write_bytes(data[:-1])
        case "link":
            (tmp_path / "elsewhere").write_bytes(data)
            victim.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(victim)
        case "folder":
            victim.mkdir()
        case "device":
            victim.symlink_to("/dev/zero")
    answer = ask(state, stick)
    assert answer.error is not None
    assert victim.name not in kept(state)


def test_links_in_place_of_folders_are_not_followed(state, stick, tmp_path):
    shutil.move(stick / DEVICES, tmp_path / "outside")
    (stick / DEVICES).symlink_to(tmp_path / "outside")
    assert ask(state, stick).error.code == "not-on-stick"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff" * 10, b"[" * 100_000, b" " * ((1 << 20) + 1)])
def test_an_index_that_is_none_is_refused(state, stick, content):
    (stick / INDEX).write_bytes(content)
    assert ask(state, stick).error.family == "InvalidError"


def test_a_folder_that_is_none_and_one_without_a_bundle_say_so(state, tmp_path):
    assert ask(state, tmp_path / "nowhere").error.code == "no-folder"
    assert ask(state, tmp_path).error.code == "not-found"


def test_old_metadata_is_a_rollback_once_newer_was_seen(api, state, stick, tmp_path):
    assert ask(state, stick).error is None
    api.order()
    newer = write_stick(tmp_path / "newer", api)
    assert ask(state, newer).error is None
    refused = ask(state, stick)
    assert refused.error.code == "rollback"
    assert "make a new stick" in refused.error.text


def test_a_stick_whose_time_is_over_is_refused_with_both_dates(api, state, stick):
    answer = ask(state, stick, now=datetime.now(UTC) + timedelta(days=400))
    assert answer.error.code == "freeze"
    assert f"{api.director.expires:%Y-%m-%d}" in answer.error.text


def test_a_metadata_file_beyond_every_limit_is_not_read(state, stick):
    with (stick / DEVICES / "cam-1" / "timestamp.json").open("wb") as out:
        out.truncate(1 << 30)
    assert ask(state, stick).error is not None


def test_what_is_in_a_slot_or_downloaded_is_not_copied_again(state, stick):
    assert ask(state, stick).error is None
    shutil.rmtree(stick / BLOBS)
    assert ask(state, stick).error is None


def test_a_stick_without_a_file_that_it_names_is_incomplete(state, stick):
    next((stick / BLOBS).iterdir()).unlink()
    assert ask(state, stick).error.code == "stick_incomplete"


def test_a_delta_is_copied_when_the_stick_lacks_the_whole_file(state, stick):
    with open_bundle(stick) as bundle:
        assignment = ask(state, stick).assignment
        shutil.rmtree(state / "downloads")
        file = max(assignment.lines[0].files, key=lambda one: one.length)
        delta = b"MDL1 of some kind"
        offer = OfferedDelta(Digest(file.sha256), len(delta), digest_of(delta), 1, "")
        (stick / BLOBS / file.sha256.removeprefix("sha256:")).unlink()
        (stick / BLOBS / digest_of(delta).removeprefix("sha256:")).write_bytes(delta)
        line = assignment.lines[0]
        files = tuple(replace(one, deltas=(offer,)) if one == file else one for one in line.files)
        bring(bundle, replace(assignment, lines=(replace(line, files=files),)), state)
    assert digest_of(delta).removeprefix("sha256:") in kept(state)


def test_a_stick_that_is_pulled_while_it_is_read_is_told_as_such(stick, tmp_path):
    with open_bundle(stick) as bundle:
        digest = Digest(f"sha256:{next(iter(FILES))}")
        (stick / BLOBS).rename(tmp_path / "gone")
        with pytest.raises(NotFoundError):
            bundle.copy_blob(digest, len(FILES[next(iter(FILES))]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_medium_is_the_sticks_and_not_this_devices(tmp_path):
    # what the kernel answers of a device that is gone: a folder below /proc of a process that ended
    child = os.fork()
    if child == 0:
        threading.Event().wait()
    folder = os.open(f"/proc/{child}", os.O_RDONLY | os.O_DIRECTORY)
    os.kill(child, 9)
    os.waitpid(child, 0)
    try:
        with pytest.raises((TransferError, NotFoundError, InvalidError)):
            open_bundle(Path(f"/proc/self/fd/{folder}"))
    finally:
        os.close(folder)


def test_a_full_disk_is_this_devices(state, stick, tmp_path):
    assignment = ask(state, stick).assignment
    shutil.rmtree(state / "downloads")
    (state / "downloads").write_text("in the way")
    with open_bundle(stick) as bundle, pytest.raises(DeviceError) as caught:
        bring(bundle, assignment, state)
    assert caught.value.code == "disk_error"
    assert Slots(state / "slots").lines() == ()


# --- the poller ---


def make_poller(device: DeviceSimulator, answer: CheckAnswer, asked: list[list[str]], **options: Any) -> Poller:
    def ask_stick(command: list[str]) -> CheckAnswer:
        asked.append(command)
        return answer

    wish = CheckWish("https://fleet.test", "sim", ("onnx",), "0.1.0")
    return Poller(
        device.machine,
        device.store,
        state_dir=Path("/state"),
        clock=device.clock,
        wish=lambda: wish,
        poll_s=lambda: 900.0,
        ask_stick=ask_stick,
        **options,
    )


def test_what_a_stick_assigns_goes_to_the_same_machine_and_raises_the_same_floor():
    device, asked = DeviceSimulator(), []
    poller = make_poller(device, CheckAnswer(assignment=RELEASE.assignment()), asked)
    poller.check_stick(Path("/media/stick"))
    assert "--bundle=/media/stick" in asked[0]
    assert device.store.updates[LINE].release == "1.0"
    assert poller.state.time_floor_ms == RELEASE.assignment().issued_at_ms


def test_a_hostile_stick_is_an_indicator_of_attack_and_no_failure_of_the_server():
    device, told = DeviceSimulator(), []
    poller = make_poller(device, CheckAnswer(error=CheckError("TrustError", "bad-signature", "No.")), [], on_check=told.append)
    poller.check_stick(Path("/media/stick"))
    assert (poller.state.attack_indicator, poller.state.error) == ("bad-signature", None)
    assert told == [poller.state]
    assert device.store.updates == {}


def test_files_that_a_waiting_offer_brought_along_stay_when_the_update_before_it_ends():
    device, second = DeviceSimulator(), make_release("2.0", 20)
    device.machine.offer(RELEASE.assignment())
    device.machine.run_pending()
    assert device.open_lines() == [LINE], "the server has none of its files"
    for data in second.files.values():
        device.disk.put(DOWNLOADS_DIR / digest_of(data).removeprefix("sha256:"), data)
    device.machine.offer(second.assignment(assignment="as-2"))
    device.run()
    assert device.runs(second), "a stick's files do not come again from a server that is not reached"
