"""Each arrow of the table is needed: with any one bent, removed or added, the device does something that an operator would see.

Every arrow has a short story that takes it, told on a simulated device. Against the real table every story must hold; against a table
with that arrow bent to each other state, or removed, at least one story that takes the arrow must not. Arrows that do not exist are added
in turn too. What is looked at is what the device does: what runs, what is on its disk, what its history says, what the next offer does.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import pytest
from simulators.device import DOWNLOADS_DIR, LINE, DeviceSimulator, Release, make_release
from simulators.disk import Fault

from agent.slots import SlotName
from agent.update import states as table_of
from agent.update.assignment import Assignment, CandidateRun
from agent.update.machine import MAX_SAVES
from agent.update.policy import Gate, OpenPolicy, Permission
from agent.update.states import TRANSITIONS, Outcome, UpdateState

OLD, NEW = make_release("1.0", 1), make_release("1.1", 2)
BAD_GOLDEN, SLOW, REFUSES = (make_release("1.1", 2, behavior) for behavior in ("bad-golden", "slow", "refuses"))
UNFIT = make_release("1.1", 2, manifest={"release": "9.9"})
#: More effects than any story has with the real table: a machine that runs in circles ends here.
MOST_EFFECTS = 4000
BESIDE = CandidateRun(run_as="shadow", share=100, salt="", until_ms=None, cpu=20)
Arrow = tuple[UpdateState, Outcome]
Rule = Callable[[str, str], Fault | None]


@cache
def with_old() -> DeviceSimulator:
    device = DeviceSimulator()
    device.installed(OLD)
    return device


@dataclass(frozen=True)
class Story:
    """An update and how it goes."""

    release: Release
    #: States after `idle`, as the history shows them.
    way: tuple[str, ...]
    rule: Rule = lambda _where, _effect: None
    #: Withdrawn as soon as it is in this state.
    abort_in: str = ""
    permission: Permission | Exception = Permission.OPEN
    #: What was offered is not what the server has.
    is_spoiled: bool = False
    #: It was tried again and again before; else one failure is enough.
    is_used_up: bool = False
    #: It is to run beside the old one, never in its place.
    is_candidate: bool = False
    #: There is no old one.
    is_first: bool = False

    def assignment(self, name: str = "as-1") -> Assignment:
        """What the server says."""
        made = self.release.assignment(assignment=name)
        return replace(made, lines=tuple(replace(offer, candidate=BESIDE) for offer in made.lines)) if self.is_candidate else made


def cut_in(state: str, effect: str) -> Rule:
    """Cut before this effect in this state, each time."""
    return lambda where, what: Fault.CUT_BEFORE if where == state and what.startswith(effect) else None


def fail_in(state: str, effect: str) -> Rule:
    return lambda where, what: Fault.ERROR_BEFORE if where == state and what.startswith(effect) else None


def cut_when_reentered(state: str, effect: str) -> Rule:
    """Cut once in the state, then at the effect that only a second entry has, each time."""
    has_entered = False

    def strike(where: str, what: str) -> Fault | None:
        nonlocal has_entered
        if where == state and not has_entered:
            has_entered = True
            return Fault.CUT_AFTER
        return Fault.CUT_BEFORE if (where, what) == (state, effect) else None

    return strike


DOWN, VERIFY, INSTALL, WAIT = "downloading", "verifying", "installing", "waiting"
ACTIVATE, PROBE, COMMIT, BACK = "activating", "probing", "committing", "rolling_back"
FORTH = (DOWN, VERIFY, INSTALL, WAIT, ACTIVATE, PROBE, COMMIT)


def until(state: str, *rest: str) -> tuple[str, ...]:
    return (*FORTH[: FORTH.index(state) + 1], *rest)


def stories() -> dict[str, Story]:
    """Made anew for each telling: some rules remember."""
    failed, back = "failed", (BACK, "rolled_back")
    return {
        "a good release": Story(NEW, (*FORTH, "succeeded")),
        "a candidate": Story(NEW, until(INSTALL, "succeeded"), is_candidate=True),
        "bytes that are not the signed ones": Story(NEW, until(DOWN, failed), is_spoiled=True),
        "a manifest that does not fit": Story(UNFIT, until(VERIFY, failed)),
        "a bad self-test": Story(BAD_GOLDEN, until(INSTALL, failed)),
        "a calendar that cannot be read": Story(NEW, until(WAIT, failed), permission=OSError(5, "Input/output error")),
        "consent refused": Story(NEW, until(WAIT, failed), permission=Permission.REFUSED),
        "a model that the runtime refuses": Story(REFUSES, until(ACTIVATE, *back)),
        "a slow model": Story(SLOW, until(PROBE, *back)),
        "a pointer that cannot be written": Story(NEW, until(COMMIT, *back), fail_in(COMMIT, "disk: create .pointer")),
        "a way back that fails": Story(SLOW, until(PROBE, BACK, "inconsistent"), fail_in(BACK, "disk: create .pointer")),
        "no end of cuts while downloading": Story(NEW, until(DOWN, failed), cut_in(DOWN, "disk: create"), is_used_up=True),
        "no end of cuts while verifying": Story(NEW, until(VERIFY, failed), cut_in(VERIFY, "disk: ask for the room"), is_used_up=True),
        "no end of cuts while installing": Story(NEW, until(INSTALL, failed), cut_in(INSTALL, "engine: self-test b"), is_used_up=True),
        "no end of cuts while activating": Story(NEW, until(ACTIVATE, *back), cut_in(ACTIVATE, "engine: activate b"), is_used_up=True),
        "no end of cuts while probing": Story(NEW, until(PROBE, *back), cut_when_reentered(PROBE, "engine: activate b"), is_used_up=True),
        "no end of cuts while committing": Story(
            NEW, until(COMMIT, *back), cut_when_reentered(COMMIT, "engine: activate b"), is_used_up=True
        ),
        "no end of cuts while committing the first model": Story(
            NEW, (*FORTH, "succeeded"), cut_when_reentered(COMMIT, "engine: activate a"), is_first=True
        ),
        "no end of cuts while rolling back": Story(
            SLOW, until(PROBE, BACK, "inconsistent"), cut_in(BACK, "disk: create .pointer"), is_used_up=True
        ),
        **{f"withdrawn while {state}": Story(NEW, until(state, failed), abort_in=state) for state in (DOWN, VERIFY, INSTALL, WAIT)},
        **{f"withdrawn while {state}": Story(NEW, until(state, *back), abort_in=state) for state in (ACTIVATE, PROBE)},
        "withdrawn too late": Story(NEW, (*FORTH, "succeeded"), abort_in=COMMIT),
        "withdrawn on the way back": Story(SLOW, until(PROBE, *back), abort_in=BACK),
        "used up while waiting": Story(NEW, until(WAIT, failed), permission=Permission.CLOSED, is_used_up=True),
    }


class Site:
    """Windows and consent as the story wants them."""

    def __init__(self, permission: Permission | Exception) -> None:
        self.permission = permission

    def may_download(self, offer: object, now: object) -> Gate:
        _ = offer, now
        return Gate(Permission.OPEN)

    def may_activate(self, offer: object, now: object) -> Gate:
        _ = offer, now
        if isinstance(self.permission, Exception):
            raise self.permission
        return Gate(self.permission)

    refusal = staticmethod(OpenPolicy().refusal)
    prefers_deltas = staticmethod(OpenPolicy().prefers_deltas)
    give_consent = staticmethod(OpenPolicy().give_consent)


def tell(story: Story) -> None:
    """Let the story happen. Raises: AssertionError, LookupError when the device does not do what it should."""
    device = DeviceSimulator(policy=Site(story.permission))
    if not story.is_first:
        device.copy_from(with_old())
    device.server.publish(story.release)
    if story.is_spoiled:
        device.server.blobs.update({name: bytes(len(data)) for name, data in device.server.blobs.items()})
    device.faults.limit = MOST_EFFECTS
    device.faults.rule = story.rule
    asked: list[bool] = []
    ran: list[bytes | None] = []

    def look() -> str:
        row = device.store.updates.get(LINE)
        if row is None:  # the first offer is not taken over yet
            return "idle"
        if story.abort_in == row.state and not asked:
            asked.append(True)  # before it has effects of its own
            asked[0] = device.machine.abort(LINE, reason="withdrawn", text="An operator withdrew it.")
        ran.append(device.engine.model_of(LINE))
        return row.state

    device.faults.where = look
    device.assign(story.assignment())
    if story.permission is Permission.CLOSED:
        use_up_while_waiting(device)
    device.run(rounds=120)
    device.faults.where, device.faults.rule = lambda: "", lambda _where, _effect: None
    check_way(device, story)
    check_what_is_left(device, story)
    assert asked in ([], [story.abort_in not in (COMMIT, BACK)])
    check_what_ran(story, ran)
    check_next(device, story)


def use_up_while_waiting(device: DeviceSimulator) -> None:
    """Starts while it waits do not count, so the row is made to look as if they once did."""
    device.boot()
    device.machine.offer(device.pending.pop())
    device.machine.run_pending()
    assert device.store.updates[LINE].state == WAIT
    device.store.updates[LINE] = replace(device.store.updates[LINE], saves=MAX_SAVES)


def check_way(device: DeviceSimulator, story: Story) -> None:
    steps = [step.state for step in device.store.steps]
    assert steps == ["idle", *story.way]
    shown = device.machine.state_of(LINE)
    assert shown.state == story.way[-1]
    assert ("Given up" in shown.text) == story.is_used_up


def check_what_is_left(device: DeviceSimulator, story: Story) -> None:
    end, pointer = story.way[-1], device.slots.pointer(LINE)
    assert (pointer.active, pointer.trial) == (pointer.committed, False)
    assert device.runs(story.release if end == "succeeded" and not story.is_candidate else OLD)
    assert device.disk.sizes(DOWNLOADS_DIR) == {}
    held = {slot.content.release for name in SlotName if (slot := device.slots.get(LINE, name)) is not None}
    assert held == (set() if story.is_first else {"1.0"}) | ({"1.1"} if end == "succeeded" else set())


def check_what_ran(story: Story, ran: list[bytes | None]) -> None:
    """The new model ran exactly when the way goes past the activation; else the old one never stopped but for cuts."""
    new = story.release.files["model.onnx"]
    assert (new in ran) == (PROBE in story.way)


def check_next(device: DeviceSimulator, story: Story) -> None:
    """The same release again: refused when it was its own fault, taken otherwise; a higher attempt always gets its chance."""
    del device.store.steps[:]
    device.policy = None
    device.boot()
    device.machine.offer(story.assignment("as-2"))
    is_taken = device.open_lines() != []
    is_blamed = {row.release for row in device.store.list_blocked()} == {"1.1"}
    assert is_taken == ((story.way[-1] != "succeeded" or story.is_candidate) and not is_blamed)
    is_withdrawn = bool(story.abort_in) and story.abort_in not in (COMMIT, BACK)
    failed_by_itself = story.release in (BAD_GOLDEN, SLOW, REFUSES) or (BACK in story.way and not is_withdrawn)
    assert is_blamed == failed_by_itself


# --- the real table ---


@pytest.mark.parametrize("name", stories())
def test_with_the_real_table_every_story_goes_as_told(name):
    tell(stories()[name])


def taken() -> dict[Arrow, list[str]]:
    """Which stories take which arrow."""
    found: dict[Arrow, list[str]] = {}
    for name, story in stories().items():
        used: set[Arrow] = set()

        class Watched(dict):  # type: ignore[type-arg]  # a row of the table that says when it is read
            def __init__(self, state: UpdateState, row: Mapping[Outcome, UpdateState]) -> None:
                super().__init__(row)
                self.state = state

            def __getitem__(self, outcome: Outcome) -> UpdateState:
                used.add((self.state, outcome))  # noqa: B023 - called in this very round
                return super().__getitem__(outcome)  # type: ignore[no-any-return]  # as typed above

        with bent({state: Watched(state, row) for state, row in TRANSITIONS.items()}):
            tell(story)
        for arrow in used:
            found.setdefault(arrow, []).append(name)
    return found


@contextmanager
def bent(table: Mapping[UpdateState, Mapping[Outcome, UpdateState]]) -> Iterator[None]:
    """The machine with another table, in this process: the point of these tests."""
    before = table_of.TRANSITIONS
    table_of.TRANSITIONS = table  # type: ignore[misc]  # it is not meant to be replaced, but here
    try:
        yield
    finally:
        table_of.TRANSITIONS = before  # type: ignore[misc]  # as above


def changed(arrow: Arrow, to: UpdateState | None) -> dict[UpdateState, dict[Outcome, UpdateState]]:
    state, outcome = arrow
    table = {one: dict(row) for one, row in TRANSITIONS.items()}
    row = table.setdefault(state, {})
    row.pop(outcome, None)
    if to is not None:
        row[outcome] = to
    return table


def survives(table: Mapping[UpdateState, Mapping[Outcome, UpdateState]], names: list[str]) -> bool:
    with bent(table):
        for name in names:
            try:
                tell(stories()[name])
            except (AssertionError, LookupError, RuntimeError):
                return False
    return True


ARROWS = [(state, outcome) for state, row in TRANSITIONS.items() for outcome in row]


@cache
def taken_once() -> dict[Arrow, list[str]]:
    return taken()


def test_every_arrow_has_a_story_that_takes_it():
    assert [arrow for arrow in ARROWS if arrow not in taken_once()] == []


@pytest.mark.parametrize("arrow", ARROWS, ids=[f"{state}-{outcome}" for state, outcome in ARROWS])
def test_an_arrow_bent_to_any_other_state_or_removed_is_noticed(arrow):
    state, outcome = arrow
    others = [to for to in (None, *UpdateState) if to is not TRANSITIONS[state][outcome]]
    names = sorted(taken_once()[arrow], key=len)
    assert [str(to) for to in others if survives(changed(arrow, to), names)] == []


#: Arrows that do not exist and that some story would take if they did. What is final is never looked up, and nothing fails in `idle`.
ADDED = [(UpdateState.COMMITTING, Outcome.ABORTED), (UpdateState.ROLLING_BACK, Outcome.ABORTED)]


@pytest.mark.parametrize("arrow", ADDED, ids=[f"{state}-{outcome}" for state, outcome in ADDED])
def test_an_arrow_that_does_not_exist_is_noticed_when_it_does(arrow):
    names = {UpdateState.COMMITTING: "withdrawn too late", UpdateState.ROLLING_BACK: "withdrawn on the way back"}
    assert [str(to) for to in UpdateState if survives(changed(arrow, to), [names[arrow[0]]])] == []
