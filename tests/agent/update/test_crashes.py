"""The crash matrix: every state, cut and failing, before and after each of its effects, and cut again on the way back up.

Each run ends in a named state with a whole slot of a signed release; at every effect between, the old slot is whole to the byte and
nothing ran that nobody signed (`Witness`). Every second run is on a disk that forgets folder entries in any order. The table is
printed (`pytest -s` shows it).
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from simulators.device import DOWNLOADS_DIR, LINE, DeviceSimulator, Release, Witness, make_release
from simulators.disk import Fault

from agent.slots import SLOT_FILES, SlotName
from agent.update.machine import MAX_FIRST_SAVES, MAX_LOAD_FAILURES, MAX_SAVES, RETRY_S

OLDER, OLD, NEW = make_release("0.9", 0), make_release("1.0", 1), make_release("1.1", 2)
#: Where an error may lead from each state; drawn anew, so that a bent arrow shows here too.
ARROWS = {
    "idle": {"downloading"},
    "downloading": {"verifying", "failed"},
    "verifying": {"installing", "failed"},
    "installing": {"waiting", "failed"},
    "waiting": {"activating", "failed"},
    "activating": {"probing", "rolling_back"},
    "probing": {"committing", "rolling_back"},
    "committing": {"succeeded", "rolling_back"},
    "rolling_back": {"rolled_back", "inconsistent"},
}
BEFORE_ACTIVATION = ("idle", "downloading", "verifying", "installing", "waiting")


@dataclass(frozen=True)
class Scenario:
    """An update and how it ends when nothing goes wrong."""

    old: Release | None
    new: Release
    end: str
    #: What the slot that is written still holds.
    older: Release | None = None


SCENARIOS = {
    "a good release": Scenario(OLD, NEW, "succeeded"),
    "a release over an older one": Scenario(OLD, NEW, "succeeded", older=OLDER),
    "a first install": Scenario(None, NEW, "succeeded"),
    "a bad self-test": Scenario(OLD, make_release("1.1", 2, "bad-golden"), "failed"),
    "a bad probe": Scenario(OLD, make_release("1.1", 2, "slow"), "rolled_back"),
    "a bad first install": Scenario(None, make_release("1.1", 2, "errors"), "rolled_back"),
}


def prepare(scenario: Scenario, *, seed: int = 0) -> DeviceSimulator:
    device = DeviceSimulator(seed=seed)
    device.disk.is_unordered = seed % 2 == 1
    if scenario.old is not None:
        assert scenario.old is OLD
        device.copy_from(with_old(has_older=scenario.older is not None))
    device.server.publish(scenario.new)
    device.assign(scenario.new.assignment())
    Witness(device, old=scenario.old, signed=filter(None, (scenario.new, scenario.old, scenario.older)))
    return device


@cache
def with_old(*, has_older: bool) -> DeviceSimulator:
    """A device with the old release, and with one before it in the other slot, to copy from."""
    device = DeviceSimulator()
    if has_older:
        device.installed(OLDER)
    device.installed(OLD)
    return device


def check_end(device: DeviceSimulator, scenario: Scenario) -> str:
    """The state it ended in, after everything that must hold at any end was checked."""
    update = device.store.updates[LINE]
    pointer = device.slots.pointer(LINE)
    assert not pointer.trial, f"still on trial: {pointer}"
    assert pointer.active == pointer.committed
    ran = device.engine.model_of(LINE)
    expected = scenario.new if update.state == "succeeded" else scenario.old
    if update.state == "inconsistent" and scenario.old is None:
        expected = scenario.new  # the only slot there is, and its goldens pass
    assert device.runs(expected), f"{update.state} ({update.reason}), but {(ran or b'')[:40]!r} infers"
    active = device.slots.active(LINE)
    assert (active is None) == (ran is None)
    if active is not None:
        assert device.slots.scrub(LINE, active.name) == []
        assert device.engine.running[LINE] == active.folder
    for name in SlotName:
        files = set(device.disk.sizes(device.slots.folder(LINE, name)))
        assert not files or device.slots.get(LINE, name) is not None, f"half-written slot {name}: {files}"
        assert files <= {*SLOT_FILES, "slot.json"}
    assert device.disk.sizes(DOWNLOADS_DIR) == {}
    check_arrows(device)
    return update.state


def check_arrows(device: DeviceSimulator) -> None:
    states = ["idle", *(state for _, state, _ in device.store.saves)]
    for before, after in itertools.pairwise(states):
        assert before == after or after in ARROWS.get(before, set()), f"{before} → {after} is no arrow"


def count_effects(scenario: Scenario) -> int:
    device = prepare(scenario)
    begin = len(device.faults.log)
    device.run()
    assert check_end(device, scenario) == scenario.end
    return len(device.faults.log) - begin


@dataclass(frozen=True)
class Strike:
    """What one fault met, and how the update ended."""

    state: str
    effect: str
    end: str


@cache
def strikes(name: str, fault: Fault) -> tuple[Strike, ...]:
    """One run per effect of the scenario, with the fault at that effect."""
    scenario, found = SCENARIOS[name], []
    for number in range(count_effects(scenario)):
        device = prepare(scenario, seed=number)
        device.faults.plan = {len(device.faults.log) + number: fault}
        device.run()
        end = device.store.updates[LINE].state
        if is_cut(fault):
            assert check_end(device, scenario) == scenario.end, f"a cut at effect {number} ({device.faults.struck}) changed the end"
        elif device.faults.struck:
            check_error_end(device, scenario, end)
        device.restart()  # cleans up what an error in cleaning up left behind
        assert check_end(device, scenario) == end, "a restart changed the end"
        found.extend(Strike(where, what, end) for where, what, _ in device.faults.struck)
    return tuple(found)


def is_cut(fault: Fault) -> bool:
    return fault in (Fault.CUT_BEFORE, Fault.CUT_AFTER)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("name", SCENARIOS)
def test_one_fault_at_any_effect_ends_legally_with_a_model_that_infers(name, fault):
    assert strikes(name, fault), "no fault struck"


def test_every_cell_of_the_matrix_was_struck():
    cells: dict[tuple[str, Fault], Counter[str]] = {(state, fault): Counter() for state in ARROWS for fault in Fault}
    for name, fault in itertools.product(SCENARIOS, Fault):
        for strike in strikes(name, fault):
            if strike.state in ARROWS:  # after the end there is only cleaning up
                cells[(strike.state, fault)][strike.end] += 1
    print_matrix(cells)
    assert [cell for cell, ends in cells.items() if not ends] == []


def print_matrix(cells: dict[tuple[str, Fault], Counter[str]]) -> None:
    lines = [f"{'state':<13}" + "".join(f"{fault:<47}" for fault in Fault)]
    for state in ARROWS:
        texts = [", ".join(f"{count} {end}" for end, count in sorted(cells[(state, fault)].items())) for fault in Fault]
        lines.append(f"{state:<13}" + "".join(f"{text:<47}" for text in texts))
    print("\n" + "\n".join(lines))  # noqa: T201 - the table that was asked for


#: Effects after the start that a second cut may strike at: bringing up, cleaning up and the state's step again.
RECOVERY = 12
#: Every so-manieth of them; MOORING_TEST_DOUBLE_CUTS=1 tries all.
STRIDE = int(os.environ.get("MOORING_TEST_DOUBLE_CUTS", "5"))


def double_cuts(effects: int) -> Iterator[tuple[int, int, Fault, Fault]]:
    """Every effect, with second cuts soon after the start; the kinds in turn, so that each pair of them meets each state."""
    kinds = [(one, other) for one in (Fault.CUT_BEFORE, Fault.CUT_AFTER) for other in (Fault.CUT_BEFORE, Fault.CUT_AFTER)]
    for number in range(effects):
        for later in range(number % STRIDE, RECOVERY, STRIDE):
            yield number, later, *kinds[(number + later) % len(kinds)]


@pytest.mark.parametrize("name", ["a good release", "a bad probe"])
def test_a_second_cut_while_it_gets_up_from_the_first_changes_nothing(name):
    scenario = SCENARIOS[name]
    for number, later, first, second in double_cuts(count_effects(scenario)):
        device = prepare(scenario, seed=number + later)
        at = len(device.faults.log) + number
        # the cut itself is the last effect of the first life
        device.faults.plan = {at: first, at + 1 + later: second}
        device.run()
        assert check_end(device, scenario) == scenario.end, f"cuts at {number} and {later} after it: {device.faults.struck}"


def check_error_end(device: DeviceSimulator, scenario: Scenario, end: str) -> None:
    where, what, _ = device.faults.struck[0]
    if where not in ARROWS:
        assert end == scenario.end, (where, what, end)
    elif where == "rolling_back":
        # a store that fails between steps only starts the thread again; what it says inside of one is the step's own failure
        assert end == ("rolled_back" if what.startswith("store: ") else "inconsistent"), (where, what, end)
    elif where in BEFORE_ACTIVATION:
        assert end in ("failed", scenario.end), (where, what, end)
    else:
        assert end in ("rolled_back", scenario.end), (where, what, end)
    update = device.store.updates[LINE]
    assert end == "succeeded" or (update.reason and update.text), "an end that is no success says why"


def test_the_suite_above_has_no_blind_spot():
    """Each state that acts has effects that can fail, and every state has one at which it can be cut."""
    effects = set()
    for name in ("a good release", "a bad probe"):
        device = prepare(SCENARIOS[name])
        device.run()
        effects |= {tuple(line.split(": ", 2)[:2]) for line in device.faults.log}
    can_fail = {state for state, part in effects if part != "store"}
    assert can_fail >= {"downloading", "verifying", "installing", "activating", "committing", "rolling_back"}
    assert {state for state, _ in effects} >= can_fail | {"idle", "waiting", "probing"}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# a complete file whose name outlived a cut that its bytes did not
@example(name="a bad first install", seed=21, gaps=[12, 21, 12], kinds=[Fault.CUT_BEFORE, Fault.CUT_BEFORE, *[Fault.CUT_AFTER] * 10])
@given(
    name=st.sampled_from(sorted(SCENARIOS)),
    seed=st.integers(0, 10_000),
    gaps=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    kinds=st.lists(st.sampled_from([Fault.CUT_BEFORE, Fault.CUT_AFTER]), min_size=12, max_size=12),
)
def test_no_sequence_of_cuts_ends_on_an_invalid_slot(name, seed, gaps, kinds):
    scenario = SCENARIOS[name]
    device = prepare(scenario, seed=seed)
    at = len(device.faults.log)
    for gap, kind in zip(gaps, kinds, strict=False):
        at += gap
        device.faults.plan[at] = kind
        at += 1
    device.run()
    assert check_end(device, scenario) == scenario.end


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SCENARIOS)),
    seed=st.integers(0, 10_000),
    plan=st.dictionaries(st.integers(0, 160), st.sampled_from(list(Fault)), min_size=1, max_size=6),
)
def test_no_mix_of_cuts_and_errors_ends_on_an_invalid_slot(name, seed, plan):
    scenario = SCENARIOS[name]
    device = prepare(scenario, seed=seed)
    begin = len(device.faults.log)
    device.faults.plan = {begin + at: fault for at, fault in plan.items()}
    device.run()
    device.faults.plan = {}
    device.restart()
    device.run()
    check_sound(device, scenario)


@pytest.mark.parametrize("name", [name for name, scenario in sorted(SCENARIOS.items()) if scenario.old is not None])
def test_power_that_fails_at_three_starts_in_a_row_while_the_model_loads_leaves_a_device_that_infers(name):
    scenario = SCENARIOS[name]
    device = prepare(scenario)
    begin = len(device.faults.log)
    device.faults.plan = dict.fromkeys(range(begin, begin + MAX_LOAD_FAILURES), Fault.CUT_AFTER)
    device.run()
    assert len(device.faults.struck) == MAX_LOAD_FAILURES
    assert device.was_given_up
    check_sound(device, scenario)


def check_sound(device: DeviceSimulator, scenario: Scenario) -> None:
    """Weaker than `check_end`: errors may have kept it from cleaning up; what infers is whole and no stranger.

    A slot at which the power failed at three starts in a row gives way to an older one; the only one there is is loaded RETRY_S later.
    """
    if device.was_given_up:
        device.clock.advance(RETRY_S)
        device.machine.run_pending()
    pointer = device.slots.pointer(LINE)
    assert not pointer.trial
    active = device.slots.active(LINE)
    if active is not None:
        assert device.slots.scrub(LINE, active.name) == []
        assert device.engine.running.get(LINE) == active.folder
    allowed = [scenario.old, scenario.new] if device.store.updates[LINE].state == "succeeded" else [scenario.old]
    if device.store.updates[LINE].state == "inconsistent":
        allowed.extend([None, scenario.new])
    if device.was_given_up and scenario.older is not None:
        allowed.append(scenario.older)
    assert any(device.runs(release) for release in allowed), device.store.updates[LINE]
    check_arrows(device)


@pytest.mark.parametrize(
    ("state", "what", "end"),
    [
        ("installing", "engine: self-test b", "failed"),
        ("activating", "engine: activate b", "rolled_back"),
        ("probing", "engine: activate b", "rolled_back"),
        ("committing", "engine: activate b", "rolled_back"),
    ],
)
def test_a_model_that_takes_the_device_down_each_time_is_given_up_and_the_old_one_runs(state, what, end):
    device = prepare(SCENARIOS["a good release"])
    has_entered = False

    def strike(where: str, effect: str) -> Fault | None:
        nonlocal has_entered
        if where == state and not has_entered:  # once, so that the step has to start the model anew
            has_entered = True
            return Fault.CUT_AFTER
        return Fault.CUT_BEFORE if (where, effect) == (state, what) else None

    device.faults.rule = strike
    device.run()
    update = device.store.updates[LINE]
    assert (update.state, update.reason) == (end, "exhausted")
    assert "28" in update.text
    assert device.runs(OLD)
    assert check_end(device, SCENARIOS["a good release"]) == end


def first_model_cut_while_committing(*effects: str) -> DeviceSimulator:
    """A first install whose power fails once in `committing`, and from then on in that state at each of these effects."""
    device = prepare(SCENARIOS["a first install"])
    has_entered = False

    def strike(where: str, effect: str) -> Fault | None:
        nonlocal has_entered
        if where == "committing" and not has_entered:
            has_entered = True
            return Fault.CUT_BEFORE
        return Fault.CUT_BEFORE if where == "committing" and effect.startswith(effects) else None

    device.faults.rule = strike
    return device


def test_a_first_model_that_held_its_probe_is_kept_when_no_start_gets_through_committing():
    device = first_model_cut_while_committing("engine: activate a")
    device.run()
    update = device.store.updates[LINE]
    assert (update.state, update.reason, update.saves) == ("succeeded", "", MAX_SAVES)
    assert "no other model" in update.text
    assert device.store.blocked == {}
    assert check_end(device, SCENARIOS["a first install"]) == "succeeded"
    device.restart()
    assert check_end(device, SCENARIOS["a first install"]) == "succeeded"


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_while_the_first_model_is_kept_ends_legally(fault):
    device = first_model_cut_while_committing("engine: activate a")
    device.run()
    is_last = device.faults.log.index("committing: store: save committing", find_last_cut(device))
    for number in range(is_last, len(device.faults.log)):
        again = first_model_cut_while_committing("engine: activate a")
        again.faults.plan = {number: fault}
        again.run()
        end = again.store.updates[LINE].state
        assert end == "succeeded" if is_cut(fault) else end in ("succeeded", "rolled_back")
        again.restart()
        check_sound(again, SCENARIOS["a first install"])


def find_last_cut(device: DeviceSimulator) -> int:
    """Where in the log of effects the power failed last."""
    return max(at for at, line in enumerate(device.faults.log) if line == "committing: engine: activate a")


def test_a_first_model_whose_slot_was_damaged_is_not_kept():
    device = first_model_cut_while_committing("engine: activate a")
    is_damaged = False

    def damage() -> None:
        nonlocal is_damaged
        row = device.store.updates.get(LINE)
        if row is not None and row.state == "committing" and not is_damaged:
            is_damaged = True
            device.disk.damage(device.slots.folder(LINE, SlotName.A) / "golden.cbor")

    device.faults.witness = damage
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == ("rolled_back", "exhausted")
    assert device.runs(None)


def test_a_first_model_that_cannot_even_be_written_down_as_committed_is_given_up_at_last():
    device = first_model_cut_while_committing("engine: activate a", "disk: create .pointer")
    device.run()
    assert device.store.updates[LINE].state == "rolled_back"
    assert max(saves for _, state, saves in device.store.saves if state == "committing") == MAX_FIRST_SAVES
    assert device.runs(None)


@pytest.mark.parametrize(
    ("name", "state", "what", "end"),
    [
        ("a good release", "downloading", "disk: create", "failed"),
        ("a good release", "verifying", "disk: ask for the room", "failed"),
        ("a bad probe", "rolling_back", "disk: create .pointer", "inconsistent"),
    ],
)
def test_a_step_that_is_cut_each_time_is_given_up_and_the_old_model_runs(name, state, what, end):
    device = prepare(SCENARIOS[name])
    device.faults.rule = lambda where, effect: Fault.CUT_AFTER if where == state and effect.startswith(what) else None
    device.disk._after_cut = lambda inode: inode.durable
    device.run()
    assert device.store.updates[LINE].state == end
    assert "28" in device.store.updates[LINE].text
    assert device.runs(OLD)
    assert device.store.blocked or end == "failed"


def test_bytes_gained_between_cuts_are_progress_and_never_exhaust_an_update():
    big = make_release("1.1", 2, padding=10_000)
    device = prepare(Scenario(OLD, big, "succeeded"))
    pieces = 0

    def strike(where: str, effect: str) -> Fault | None:
        nonlocal pieces
        if (where, effect) != ("downloading", "server: piece"):
            return None
        pieces += 1
        return Fault.CUT_BEFORE if pieces % 2 == 0 else None

    device.disk._after_cut = lambda inode: bytes(inode.data)  # the disk happens to keep what was written
    device.faults.rule = strike
    device.run()
    assert device.store.updates[LINE].state == "succeeded"
    assert device.boots > 28
