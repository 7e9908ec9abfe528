"""One import after another into a running agent: each tells how it went itself, also when this device cannot keep what it takes."""

import threading
from collections.abc import Callable
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
from agent.update.check import CheckWish
from agent.update.poller import CheckState, Poller
from protocol.errors import DeviceError

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
            identity=identity, poller=poller, machine=self.device.machine, reporter=reporter, clock=self.device.clock, stop=self.stop
        )

    def answer(self, _command: list[str]) -> CheckAnswer:
        self.asked += 1
        self.may_answer.wait(PATIENCE_S)
        return CheckAnswer(assignment=RELEASE.assignment())

    def answer_of_server(self, _command: list[str]) -> CheckAnswer:
        self.server_asked.set()
        return CheckAnswer(unchanged=True)

    def take_configuration(self, _offer: ConfigurationOffer | None) -> None:
        if self.is_full:
            raise DeviceError("The disk is full.", code="disk_full")

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
    made.importer.join()
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
