"""Any life of a device: offers, withdrawals, cuts at any effect and on the way up again, failing disks and links, in any order."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from simulators.device import LINE, DeviceSimulator, make_release
from simulators.disk import Fault, PowerCut

from agent.slots import SlotName
from agent.update.states import FINAL, UpdateState
from protocol.errors import DeviceError

FIRST = make_release("1.0", 1)
RELEASES = {
    "old": FIRST,
    "good": make_release("1.1", 2),
    "better": make_release("1.2", 3),
    "slow": make_release("1.3", 4, "slow"),
    "bad": make_release("1.4", 5, "bad-golden"),
}
FINAL_NAMES = {state.value for state in FINAL}


class Life(RuleBasedStateMachine):
    """Every rule is something that happens to a device; the invariants are what its owner relies on."""

    @initialize(seed=st.integers(0, 1000), is_unordered=st.booleans())
    def begin(self, seed: int, *, is_unordered: bool) -> None:
        self.device = device = DeviceSimulator(seed=seed)
        device.disk.is_unordered = is_unordered
        device.installed(FIRST)
        device.server.publish(*RELEASES.values())
        self.signed = {release.files["model.onnx"] for release in RELEASES.values()}
        self.attempt, self.is_up = 1, True

    @rule(name=st.sampled_from(list(RELEASES)), is_insisted=st.booleans())
    def assign(self, name: str, *, is_insisted: bool) -> None:
        release = RELEASES[name]
        self.attempt += is_insisted
        self._happen(lambda: self.device.machine.offer(release.assignment(assignment=f"as-{self.attempt}", attempt=self.attempt)))

    @rule()
    def withdraw(self) -> None:
        self._happen(lambda: self.device.machine.abort(LINE, reason="withdrawn", text="An operator withdrew it."))

    @rule(effects=st.integers(0, 60), kind=st.sampled_from([Fault.CUT_BEFORE, Fault.CUT_AFTER]))
    def will_be_cut(self, effects: int, kind: Fault) -> None:
        self.device.faults.plan[len(self.device.faults.log) + effects] = kind

    @rule(effects=st.integers(0, 60), kind=st.sampled_from([Fault.ERROR_BEFORE, Fault.ERROR_AFTER]))
    def will_fail(self, effects: int, kind: Fault) -> None:
        self.device.faults.plan[len(self.device.faults.log) + effects] = kind

    @rule(count=st.integers(1, 4))
    def link_is_bad(self, count: int) -> None:
        self.device.server.refusals.extend([(503, {"Retry-After": "3"})] * count)

    @rule(looks=st.integers(1, 6))
    def goes_on(self, looks: int) -> None:
        for _ in range(looks):
            self._happen(lambda: self.device.clock.advance(self.device.machine.run_pending()))

    @rule()
    def loses_power(self) -> None:
        self.device.faults.is_dead = True
        self._cut()

    def _happen(self, what) -> None:  # type: ignore[no-untyped-def]  # any of the calls above
        try:
            if not self.is_up:
                self.device.boots += 1
                self.device.machine = self.device._build()
                self.device.machine.restore()
                self.is_up = True
            what()
        except PowerCut:
            self._cut()
        except DeviceError:  # of the store: the thread starts again
            self.is_up = False

    def _cut(self) -> None:
        self.device.lose_power()
        self.is_up = False

    @invariant()
    def no_stranger_ever_ran(self) -> None:
        assert self.device.engine.ran <= self.signed

    @invariant()
    def the_committed_slot_is_whole(self) -> None:
        committed = self.device.slots.pointer(LINE).committed
        assert committed is not None
        slot = self.device.slots.get(LINE, committed)
        assert slot is not None
        assert self.device.slots.scrub(LINE, committed) == []
        assert self.device.disk.peek(slot.model_path) in self.signed

    def teardown(self) -> None:
        """However it went: left alone, it comes to an end, infers from a whole slot and takes the next release."""
        if not hasattr(self, "device"):
            return
        device = self.device
        device.faults.plan, device.server.refusals = {}, []
        device.restart()
        device.run()
        device.clock.advance(60.0)  # what did not survive three starts in a row, and has nothing beside it, is tried again a while later
        device.machine.run_pending()
        assert device.store.updates[LINE].state in FINAL_NAMES
        pointer = device.slots.pointer(LINE)
        assert (pointer.active, pointer.trial) == (pointer.committed, False)
        active = device.slots.active(LINE)
        assert active is not None
        assert device.engine.running[LINE] == active.folder
        assert device.slots.scrub(LINE, active.name) == []
        for name in SlotName:
            files = device.disk.sizes(device.slots.folder(LINE, name))
            assert not files or device.slots.get(LINE, name) is not None, f"half-written slot {name}: {sorted(files)}"
        good = make_release("2.0", 9)
        device.server.publish(good)
        device.assign(good.assignment(assignment="as-last"))
        device.run()
        assert device.store.updates[LINE].state == UpdateState.SUCCEEDED
        assert device.runs(good)


Life.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestAnyLife = Life.TestCase
