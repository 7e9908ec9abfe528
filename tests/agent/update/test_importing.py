"""One import after another into a running agent: each tells how it went itself, also when this device cannot keep what it takes."""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from simulators.clock import FakeClock
from simulators.device import LINE, DeviceSimulator, make_release
from waiting import PATIENCE_S, wait_until

from agent.conditions import Conditions
from agent.configuration import ConfigurationOffer
from agent.importing import Importer, ImportPhase
from agent.reporting import Reporter
from agent.store import Store
from agent.update.assignment import CheckAnswer
from agent.update.bundle import DOWNLOADS
from agent.update.check import CheckWish
from agent.update.poller import CheckState, Poller
from agent.update.stick import command_of, write_reports
from protocol.errors import DeviceError, TransferError
from protocol.ids import DeviceId

RELEASE = make_release("1.0", 10)


class Site:
    """A device on which nothing is downloaded, so that what is offered stays open, and sticks that answer when the test says so."""

    def __init__(self, folder: Path, make_identity: Callable) -> None:
        self.device, self.stick, self.stop = DeviceSimulator(), folder / "stick", threading.Event()
        self.stick.mkdir()
        self.may_answer, self.asked = threading.Event(), 0
        self.may_answer.set()
        self.server_asked = threading.Event()
        self.is_full = False
        #: What the stick assigns; how often it was written to, and from which time on it hangs, until `may_write`.
        self.assignment = RELEASE.assignment()
        self.written, self.hangs_at, self.may_write = 0, 1000, threading.Event()
        identity, self.store = make_identity("mqtts://127.0.0.1:9"), Store(folder / "agent.db", clock=FakeClock())
        wish = CheckWish("https://127.0.0.1:9", "sim", ("onnx",), "0.1.0")
        poller = Poller(
            self.device.machine,
            self.store,
            state_dir=folder,
            clock=self.device.clock,
            wish=lambda: wish,
            poll_s=lambda: 900.0,
            take_configuration=self.take_configuration,
            ask=self.answer_of_server,
            ask_stick=self.answer,
        )
        reporter = Reporter(
            identity=identity,
            store=self.store,
            conditions=Conditions(self.device.clock),
            clock=self.device.clock,
            report_s=1e6,
            machine=self.device.machine,
            check=CheckState,
            open_client=_no_client,
        )
        self.poller = poller
        self.importer = Importer(
            identity=identity,
            poller=poller,
            machine=self.device.machine,
            reporter=reporter,
            clock=self.device.clock,
            stop=self.stop,
            write=self.write,
        )

    def answer(self, _command: list[str]) -> CheckAnswer:
        self.asked += 1
        self.may_answer.wait(PATIENCE_S)
        return CheckAnswer(assignment=self.assignment)

    def answer_of_server(self, _command: list[str]) -> CheckAnswer:
        self.server_asked.set()
        return CheckAnswer(unchanged=True)

    def take_configuration(self, _offer: ConfigurationOffer | None) -> None:
        if self.is_full:
            raise DeviceError("The disk is full.", code="disk_full")

    def write(self, folder: Path, device: DeviceId, document: bytes) -> None:
        """As the importer's own child does, once the stick takes it."""
        self.written += 1
        if self.written >= self.hangs_at:
            self.may_write.wait(PATIENCE_S)
        write_reports(command_of(folder, device), document, stop=self.stop)

    def phase(self) -> str:
        return str(self.importer.status()["phase"])


def _no_client() -> NoReturn:
    raise AssertionError("nothing goes to a server here")


@pytest.fixture
def site(tmp_path, make_identity):
    made = Site(tmp_path, make_identity)
    yield made
    made.stop.set()
    made.may_answer.set()
    made.may_write.set()
    assert made.importer.join(PATIENCE_S)
    made.store.close()


def test_an_import_while_the_one_before_still_waits_for_its_update_is_not_told_to_be_over(site):
    site.importer.start(str(site.stick))
    wait_until(lambda: site.phase() == ImportPhase.UPDATING and site.importer.status()["is_reported"])
    first = next(thread for thread in threading.enumerate() if thread.name == "import")
    site.may_answer.clear()
    site.importer.start(str(site.stick))
    wait_until(lambda: site.asked == 2)
    first.join(PATIENCE_S)
    assert not first.is_alive(), "nobody waits for it any more"
    assert site.phase() == ImportPhase.READING, "the second stick is still being read: it must not be pulled"
    site.may_answer.set()
    wait_until(lambda: site.phase() == ImportPhase.UPDATING)
    assert site.device.open_lines() == [LINE]


def test_an_import_that_this_device_cannot_keep_fails_with_the_reason_and_can_be_repeated(site):
    site.is_full = True
    site.importer.start(str(site.stick))
    wait_until(lambda: site.phase() == ImportPhase.FAILED)
    assert (site.importer.status()["code"], site.importer.status()["text"]) == ("disk_full", "The disk is full.")
    site.is_full = False
    site.importer.start(str(site.stick))
    wait_until(lambda: site.phase() == ImportPhase.UPDATING)


def test_the_server_is_not_asked_while_a_stick_is_read_because_both_write_the_same_trusted_metadata(site):
    site.may_answer.clear()
    site.importer.start(str(site.stick))
    wait_until(lambda: site.asked == 1)
    look = threading.Thread(target=site.poller.check_once)
    look.start()
    assert not site.server_asked.wait(0.3)
    site.may_answer.set()
    look.join(PATIENCE_S)
    assert site.server_asked.is_set()


def test_a_stick_that_hangs_while_it_is_written_holds_up_neither_the_next_import_nor_the_agents_end(site, tmp_path):
    site.assignment = replace(RELEASE.assignment(), lines=())
    site.importer.start(str(site.stick))
    wait_until(lambda: site.phase() == ImportPhase.DONE)
    site.hangs_at = 3
    site.importer.start(str(site.stick))
    wait_until(lambda: site.written == 3, what="the second import to write")
    other = tmp_path / "other"
    other.mkdir()
    site.importer.start(str(other))  # at once
    wait_until(lambda: site.written == 4, what="the third import to write")
    assert site.importer.status()["folder"] == str(other)
    site.stop.set()
    assert not site.importer.join(0.0), "it says that it left somebody behind"
    site.may_write.set()
    assert site.importer.join(PATIENCE_S)
    assert site.importer.status()["folder"] == str(other), "the import before tells nothing any more"


def test_the_last_report_is_written_while_status_and_the_next_import_are_answered(site):
    site.assignment = replace(RELEASE.assignment(), lines=())
    site.hangs_at = 2
    site.importer.start(str(site.stick))
    wait_until(lambda: site.written == 2, what="the last report")
    assert site.phase() == ImportPhase.UPDATING, "it must not be pulled yet"
    site.importer.start(str(site.stick))
    wait_until(lambda: site.written == 3, what="the next import's first report")


# --- the child that writes ---


def test_the_child_puts_the_reports_down_whole_and_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / ".0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / "reports" / "notes.tmp").write_bytes(b"somebody's")
    document = bytes(range(256)) * 1000
    write_reports(command_of(tmp_path, DeviceId("cam-1")), document)
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {"cam-1.json", "notes.tmp"}
    assert (tmp_path / "reports" / "cam-1.json").read_bytes() == document


def test_a_stick_that_cannot_be_written_says_why(tmp_path):
    with pytest.raises(TransferError, match="no folder"):
        write_reports(command_of(tmp_path / "pulled", DeviceId("cam-1")), b"{}")
    (tmp_path / "reports").write_bytes(b"")
    with pytest.raises(TransferError, match="no plain file"):
        write_reports(command_of(tmp_path, DeviceId("cam-1")), b"{}")


HANGS = [sys.executable, "-c", "import threading; threading.Event().wait()"]


def test_a_child_that_hangs_at_the_stick_is_ended_after_its_time_and_with_the_agent():
    with pytest.raises(TransferError, match=r"within 0\.2 s"):
        write_reports(HANGS, b"{}", timeout_s=0.2)
    stop = threading.Event()
    stop.set()
    with pytest.raises(TransferError, match="agent ends"):
        write_reports(HANGS, b"{}", stop=stop)


def test_what_a_killed_import_had_copied_in_part_goes_at_the_next_start(site):
    folder = site.poller.state_dir / DOWNLOADS
    folder.mkdir(parents=True, exist_ok=True)
    names = ("ab12", "ab12.part", "cd34.0123456789ab.stick")
    for name in names:
        (folder / name).write_bytes(b"x")
    site.importer.tidy()
    assert {path.name for path in folder.iterdir()} == {"ab12", "ab12.part"}
