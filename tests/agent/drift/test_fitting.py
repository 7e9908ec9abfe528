"""A reference is fitted beside the loop: nothing waits for it, nothing is left of one that is not wanted any more, a crash asks again."""

import os
import threading

import pytest
from simulators.drift_rows import World, make_grid, make_slot
from simulators.drift_site import Site, run_now

from agent.drift import check
from agent.drift.fitting import Fitted, Fitter, in_thread
from agent.drift.store import Subject

WAIT_S = 120.0
ONE, OTHER = Subject("front", "a1" * 16, "b2" * 16), Subject("back", "a1" * 16, "b2" * 16)


class Held:
    """Keeps the work until the test lets it go."""

    def __init__(self) -> None:
        self.works = []

    def __call__(self, work) -> None:
        self.works.append(work)

    def go_on(self) -> None:
        self.works.pop(0)()


@pytest.fixture
def held_site(tmp_path):
    """A device with fourteen days, whose fits wait."""
    made = Site(tmp_path, start=Held())
    made.remember(14)
    made.one_window()
    yield made
    made.store.close()


def test_one_is_fitted_after_the_other_and_none_twice_at_a_time():
    held = Held()
    fitter = Fitter(held)
    for subject in (ONE, OTHER, ONE, OTHER):
        fitter.ask(subject, lambda subject=subject: Fitted(subject, check.OWN, 0))
    assert (len(held.works), fitter.take()) == (1, [])
    held.go_on()
    assert [one.subject for one in fitter.take()] == [ONE]
    fitter.ask(ONE, lambda: Fitted(ONE, check.CARRIED, 0))
    held.go_on()
    assert [one.subject for one in fitter.take()] == [OTHER]
    held.go_on()
    assert [(one.subject, one.origin) for one in fitter.take()] == [(ONE, check.CARRIED)]
    assert (held.works, fitter.take()) == ([], [])


def test_a_fit_that_fails_stops_neither_the_loop_nor_the_next_one(caplog):
    def fail() -> Fitted:
        raise MemoryError("no room")

    fitter = Fitter(run_now)
    fitter.ask(ONE, fail)
    fitter.ask(OTHER, lambda: Fitted(OTHER, check.OWN, 0))
    assert [one.subject for one in fitter.take()] == [OTHER]
    assert "no room" in caplog.text
    fitter.ask(ONE, lambda: Fitted(ONE, check.OWN, 0))
    assert [one.subject for one in fitter.take()] == [ONE]


def test_work_runs_beside_the_caller_and_holds_up_neither_it_nor_the_end_of_the_process():
    found, done = [], threading.Event()

    def work() -> None:
        found.extend([threading.current_thread(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())])
        done.set()

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    in_thread(work)
    assert done.wait(WAIT_S)
    assert found[0] is not threading.current_thread()
    assert found[0].daemon
    assert found[1] == mine, "a thread of a lower priority would keep the interpreter from the loop"


def test_windows_are_counted_and_closed_while_a_reference_is_fitted_in_its_thread(tmp_path):
    gate, done = threading.Event(), threading.Event()
    site = Site(tmp_path, start=lambda work: in_thread(lambda: (gate.wait(WAIT_S), work(), done.set())))
    site.remember(14)
    closed = []
    for _ in range(3):
        site.one_window()
        closed.append(site.w0 - 1)
    assert (site.told().grade, site.told().days) == ("collecting", 14)
    assert [row.w0 for row in site.rows.history(site.subject, since=closed[0], until=closed[-1] + 1)] == closed
    gate.set()
    assert done.wait(WAIT_S)
    site.tick()
    assert (site.told().grade, len(site.events())) == ("provisional", 1)
    watched = site.watch._watched[site.subject]
    assert watched.state.from_w0 == site.w0
    site.one_window()
    assert site.told().score is not None
    site.store.close()


def test_a_crash_before_a_reference_is_fitted_asks_for_it_again(held_site):
    site = held_site
    assert (site.told().grade, len(site.start.works)) == ("collecting", 1)
    site.start = run_now
    site.crash()
    site.one_window()
    assert (site.told().grade, len(site.events())) == ("provisional", 1)


def test_a_reference_of_a_world_that_somebody_took_as_past_meanwhile_is_not_used(held_site):
    site = held_site
    site.configure(rebaselined={"front": int(site.clock.now().timestamp() * 1000)})
    site.start.go_on()
    site.one_window()
    assert (site.told().grade, site.told().reference, site.events()) == ("collecting", "", [])


def next_release(site) -> None:
    """Another model comes that shares two inputs with the one before."""
    grid = make_grid(seed=11)
    site.world = World(grid, make_slot(site.folder / "next", grid), model="b2" * 16)


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_carried_over_reference_is_fitted_beside_the_loop_and_again_after_a_crash(calibrated, is_cut):
    site = calibrated
    held = site.start = Held()
    site.restart()
    site.run(100)
    next_release(site)
    for _ in range(2):
        site.one_window()
    assert (site.told().model, site.told().grade, len(held.works)) == ("b2" * 16, "collecting", 1)
    if is_cut:
        site.start = run_now
        site.crash()
        site.run(100)
    else:
        held.go_on()
        site.tick()
    assert (site.told().grade, site.told().threshold) == ("calibrated", 52_560)
    watched = site.watch._watched[site.subject]
    assert (watched.state.origin, watched.state.carries, len(watched.reference.coordinates)) == (check.CARRIED, None, 4)
    assert {one.look.name for one in watched.reference.looks} == {"all-10min", "all-1h", "all-3h"}


def test_a_release_that_is_gone_before_its_reference_was_fitted_leaves_nothing_behind(calibrated):
    site = calibrated
    before, world = site.told().reference, site.world
    held = site.start = Held()
    site.restart()
    site.run(100)
    next_release(site)
    site.one_window()
    site.world = world
    site.one_window()
    site.one_window()
    held.go_on()
    site.one_window()
    assert (site.told().reference, site.told().grade, held.works) == (before, "calibrated", [])
