"""A candidate beside a line: installed whole or not at all, wherever power fails; what the line runs is never touched."""

import contextlib
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from simulators.device import DOWNLOADS_DIR, LINE, SLOTS_DIR, DeviceSimulator, FakeApplier, Release, make_release
from simulators.disk import Fault

from agent.slots import SlotName, Slots
from agent.update.assignment import Assignment, CandidateRun
from agent.update.candidates import MAX_BLOCKED, Candidates, CandidateStore
from agent.update.fetch import Downloads
from agent.update.installers import ModelInstaller
from agent.update.machine import UpdateMachine
from protocol.clock import to_unix_ms

OLD, NEW, BAD = make_release("1.0", 1), make_release("1.1", 2), make_release("1.1", 2, "bad-golden")
SHADOW = CandidateRun(run_as="shadow", share=100, salt="", until_ms=None, cpu=20)
FOLDER, FETCHED = Path("/state/candidates"), Path("/state/candidate-downloads")
NOTHING = Assignment("as-9", 1, 0, ())


class Beside(DeviceSimulator):
    """The simulated device with a second machine for candidates: `machine` is that one, `main` drives the lines."""

    beside_dir = FOLDER

    def _build(self) -> UpdateMachine:
        self.main = super()._build()
        self.apart = Slots(FOLDER, disk=self.disk)
        self.memory = CandidateStore(self.store)
        downloads = Downloads(FETCHED, lambda: contextlib.nullcontext(self.client), clock=self.clock, disk=self.disk)
        machine = UpdateMachine(
            self.memory,
            self.apart,
            ModelInstaller(self.apart, self.engine, device_type="sim", disk=self.disk, spare_bytes=1000, beside=self.slots),
            downloads,
            clock=self.clock,
            rules=self.rules,
            applier=FakeApplier(self.disk, self.faults),
            chance=random.Random(1),  # noqa: S311 - a test's dice
        )
        self.candidates = Candidates(machine, self.apart, self.store, clock=self.clock, is_busy=self.main.is_open, lines=self.slots)
        return machine

    def open_lines(self) -> list[str]:
        return [row.line for row in self.memory.list_updates() if row.state not in {"succeeded", "failed"}]

    def told(self, assignment: Assignment) -> None:
        """What the check found, for both machines, and what comes of it for candidates."""
        self.candidates.offer(assignment)
        self.run()

    @property
    def held(self) -> list[str]:
        """Releases that lie in the candidate's slot, whole."""
        slots = [self.apart.get(LINE, name) for name in SlotName]
        return [slot.content.release for slot in slots if slot is not None and self.apart.scrub(LINE, slot.name) == []]


@cache
def with_old() -> DeviceSimulator:
    device = DeviceSimulator()
    device.installed(OLD)
    return device


def a_device(*published: Release) -> Beside:
    device = Beside()
    device.copy_from(with_old())
    device.server.publish(*published)
    device.boot()
    return device


def beside(release: Release, run: CandidateRun = SHADOW, *, name: str = "as-1", attempt: int = 1) -> Assignment:
    """The release as a candidate, as the director says it."""
    offer = replace(release.offer(assignment=name, attempt=attempt), candidate=run)
    return Assignment(name, attempt, 0, (), candidates=(offer,))


def test_a_candidate_is_installed_apart_and_nothing_is_activated():
    device = a_device(NEW)
    before = {path: device.disk.peek(path) for path in device.disk.paths() if SLOTS_DIR in path.parents}
    device.told(beside(NEW))
    assert device.held == ["1.1"]
    (plan,) = device.candidates.plans()
    assert (plan.release, plan.champion, plan.run) == ("1.1", "1.0", SHADOW)
    assert [(slot.slot, slot.release, slot.active, slot.committed) for slot in device.candidates.slot_reports()] == [
        ("c", "1.1", False, False)
    ]
    facts = device.machine.report_facts(LINE)
    assert facts is not None
    assert (facts.assignment, facts.update_state) == ("as-1", "succeeded")
    assert {path: device.disk.peek(path) for path in device.disk.paths() if SLOTS_DIR in path.parents} == before
    assert device.disk.sizes(FETCHED) == {}


def effects() -> int:
    device = a_device(NEW)
    device.told(beside(NEW))
    return len(device.faults.log)


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.ERROR_AFTER])
def test_wherever_power_or_disk_fails_the_candidate_is_whole_or_not_there_and_the_line_runs(fault: Fault):
    for number in range(effects()):
        device = a_device(NEW)
        model = device.slots.committed(LINE)
        device.faults.plan = {number: fault}
        device.assign(replace(beside(NEW), lines=beside(NEW).candidates, candidates=()))
        device.run()
        device.faults.plan = {}
        assert device.held in ([], ["1.1"]), device.faults.struck
        update = device.machine.update_of(LINE)
        assert update is not None
        assert (device.held == ["1.1"]) == (update.state == "succeeded")
        assert device.slots.committed(LINE) == model
        if fault is not Fault.ERROR_AFTER:
            assert device.held == ["1.1"]


def test_a_candidate_that_becomes_the_lines_own_is_not_fetched_again():
    device = a_device(NEW)
    device.told(beside(NEW))
    fetched = len(device.server.requests)
    assert fetched > 0
    device.main.restore()
    device.main.offer(NEW.assignment(assignment="as-2"))
    device.candidates.offer(NOTHING)
    for _ in range(400):
        if not device.main.is_open(LINE):
            break
        device.candidates.tend()  # its files wait for the update that takes them over
        device.clock.advance(device.main.run_pending())
    assert device.main.state_of(LINE).installed == "1.1"
    assert len(device.server.requests) == fetched
    assert device.candidates.plans() == []
    device.candidates.tend()
    assert device.held == []
    assert device.disk.sizes(DOWNLOADS_DIR) == {}


def test_a_candidate_that_is_not_assigned_any_more_is_forgotten_also_in_the_middle_of_its_way():
    device = a_device(NEW)
    device.candidates.offer(beside(NEW))
    device.candidates.offer(NOTHING)
    device.run()
    assert device.held == []
    device.told(beside(NEW, name="as-2"))
    assert device.held == ["1.1"]
    device.told(NOTHING)
    assert device.candidates.plans() == []
    device.candidates.tend()
    assert device.held == []
    assert device.disk.sizes(FETCHED) == {}


def test_what_is_listed_survives_a_restart():
    device = a_device(NEW)
    device.told(beside(NEW))
    device.restart()
    assert [plan.release for plan in device.candidates.plans()] == ["1.1"]


def test_a_candidate_that_fails_its_self_test_is_blocked_until_it_is_offered_with_a_higher_attempt():
    device = a_device(BAD)
    device.told(beside(BAD))
    assert (device.machine.state_of(LINE).state, device.held, device.candidates.plans()) == ("failed", [], [])
    assert [row.release for row in device.memory.list_blocked()] == ["1.1"]
    assert device.store.list_blocked() == []  # the line itself refuses nothing
    device.told(beside(BAD, name="as-2"))
    assert device.machine.state_of(LINE).reason == "blocked"
    device.server.publish(NEW)
    device.told(beside(NEW, name="as-3", attempt=2))
    assert device.held == ["1.1"]


def test_another_candidate_takes_the_slot_of_the_one_before():
    device = a_device(NEW)
    device.told(beside(NEW))
    other = make_release("1.2", 3)
    device.server.publish(other)
    device.told(beside(other, name="as-2"))
    assert device.held == ["1.2"]
    assert [plan.release for plan in device.candidates.plans()] == ["1.2"]


def test_a_candidate_runs_only_in_its_time_and_on_pipelines_that_are_not_exempt():
    device = a_device(NEW)
    end_ms = to_unix_ms(device.clock.now()) + 60_000
    device.told(replace(beside(NEW, replace(SHADOW, until_ms=end_ms)), pipelines={"yard": "active", "door": "ab"}))
    (plan,) = device.candidates.plans()
    assert [device.candidates.runs_as(plan, name) for name in ("yard", "door", "gate")] == ["active", "ab", "shadow"]
    device.clock.advance(61)
    assert device.candidates.plans() == []


def test_the_blocked_are_bounded():
    device = a_device()
    for number in range(MAX_BLOCKED + 5):
        release = make_release(f"2.{number}", 10 + number, "bad-golden")
        device.server.publish(release)
        device.told(beside(release, name=f"as-{number}"))
    assert len(device.memory.list_blocked()) == MAX_BLOCKED
