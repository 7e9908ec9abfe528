"""Deltas, whole files and metered links: each row of the table in UPDATES 3.4, on a simulated device."""

import threading
from contextlib import suppress
from dataclasses import replace

import pytest
from simulators.deltas import digest_of, make_delta, offered, with_deltas
from simulators.device import DOWNLOADS_DIR, LINE, DeviceSimulator, make_release
from simulators.disk import Fault, PowerCut

from agent.config import UpdateConfig
from agent.slots import SlotName
from agent.update.assignment import Assignment, LineOffer
from agent.update.delivery import Bases, Delivery, Setbacks, Transfer, decide
from agent.update.fetch import SYNC_BYTES
from agent.update.policy import Consents, UpdatePolicy, Wait
from agent.update.steps import RETRY_AFTER_CAP_S
from protocol.delta.container import Method

OLD, NEW = make_release("1.0", 1, padding=4000), make_release("1.1", 2, padding=4000)
OLD_MODEL, NEW_MODEL = OLD.files["model.onnx"], NEW.files["model.onnx"]
DELTA, FULL = make_delta(OLD_MODEL, NEW_MODEL), make_delta(None, NEW_MODEL, payload=None)
#: All that comes beside the model.
BESIDE_BYTES = sum(len(data) for name, data in NEW.files.items() if name != "model.onnx")


class World:
    """A device that runs the old release, and a server that has the new one with its deltas."""

    def __init__(self, *, is_metered: bool = False, **settings: object) -> None:
        self.device = DeviceSimulator()
        self.device.installed(OLD)
        self.policy = UpdatePolicy(UpdateConfig(metered=is_metered, **settings), Consents(self.device.store))
        self.device.policy = self.policy
        self.device.server.publish(NEW)
        for delta in (DELTA, FULL):
            self.serve(delta)
        self.device.server.bytes_sent = 0
        self.device.server.requests.clear()

    def serve(self, data: bytes, *, instead_of: bytes | None = None) -> None:
        self.device.server.blobs[digest_of(data if instead_of is None else instead_of).removeprefix("sha256:")] = data

    def withdraw(self, data: bytes) -> None:
        del self.device.server.blobs[digest_of(data).removeprefix("sha256:")]

    def assign(self, offer: LineOffer) -> None:
        self.device.assign(Assignment(offer.assignment, offer.attempt, 1, (offer,), {}))

    def update(self, offer: LineOffer | None = None) -> str:
        self.assign(offer or OFFER)
        self.device.run()
        return self.device.store.updates[LINE].state

    def update_for(self, rounds: int, offer: LineOffer | None = None) -> None:
        """Take the offer and drive it so often, whatever it waits for."""
        if offer is not None or not self.device.store.steps:
            self.assign(offer or OFFER)
        self.device.boot()
        while self.device.pending:
            self.device.machine.offer(self.device.pending.pop(0))
        for _ in range(rounds):
            self.device.clock.advance(self.device.machine.run_pending())

    def went(self) -> list[str]:
        return [step.state for step in self.device.store.steps]

    def asked_for(self, data: bytes) -> int:
        name = digest_of(data).removeprefix("sha256:")
        return sum(path.endswith(name) for path, _ in self.device.server.requests)

    @property
    def state(self):
        return self.device.machine.state_of(LINE)

    @property
    def facts(self):
        return self.device.machine.report_facts(LINE)


OFFER = with_deltas(NEW.offer(), offered(DELTA), offered(FULL))
HELD = ("downloading", "full_download_refused", "full_download")


def held(world: World) -> tuple[str, str, str]:
    return world.state.state, world.state.reason, world.state.waits_for


# --- what is chosen ---


@pytest.mark.parametrize("is_metered", [False, True])
def test_a_delta_from_what_the_device_runs_comes_instead_of_the_model(is_metered):
    world = World(is_metered=is_metered)
    assert world.update() == "succeeded"
    assert world.device.runs(NEW)
    assert world.device.server.bytes_sent == len(DELTA) + BESIDE_BYTES
    assert (world.state.transfer, world.state.bytes_needed) == ("delta", len(DELTA) + BESIDE_BYTES)
    assert (world.facts.transfer, world.facts.bytes_downloaded) == ("delta", len(DELTA) + BESIDE_BYTES)
    assert world.device.disk.sizes(DOWNLOADS_DIR) == {}


def test_a_delta_is_applied_in_installing_and_the_old_model_infers_meanwhile():
    world = World()
    world.update()
    log = world.device.faults.log
    starts = [line for line in log if line.endswith("child: start")]
    assert starts == ["installing: child: start"]
    made = next(number for number, line in enumerate(log) if "rename to made-" in line)
    assert not any("slot.json" in line and "installing" in line for line in log[:made])


def test_a_planned_rollback_to_the_previous_release_costs_no_byte_and_no_request():
    world = World()
    world.update()
    world.device.server.bytes_sent = 0
    world.device.server.requests.clear()
    assert world.update(with_deltas(OLD.offer(assignment="as-2"), offered(make_delta(NEW_MODEL, OLD_MODEL)))) == "succeeded"
    assert (world.device.server.bytes_sent, world.device.server.requests) == (0, [])
    assert (world.state.transfer, world.state.bytes_needed) == ("none", 0)


def test_a_base_in_the_inactive_slot_is_as_good():
    world = World()
    world.update()
    third = make_release("1.2", 3, padding=4000)
    delta = make_delta(OLD_MODEL, third.files["model.onnx"])
    world.device.server.publish(third)
    world.serve(delta)
    assert world.update(with_deltas(third.offer(assignment="as-2"), offered(delta))) == "succeeded"
    assert world.device.runs(third)
    assert world.asked_for(delta) == 1


def test_a_base_that_only_another_line_has_is_none():
    world = World(is_metered=True)
    other = make_release("3.0", 1, line="shapes", padding=4000)
    world.device.policy = None
    world.device.installed(other)
    world.device.policy = world.policy
    delta = make_delta(other.files["model.onnx"], NEW_MODEL)
    world.serve(delta)
    world.update_for(3, with_deltas(NEW.offer(), offered(delta)))
    assert held(world) == HELD


def test_a_download_that_was_begun_whole_is_ended_whole_when_less_is_left_than_the_delta_has():
    world = World()
    whole = NEW.offer()
    broken = iter(range(10**6))
    last = BESIDE_BYTES // 128 + 3 + len(NEW_MODEL) // 128 - 1
    world.device.faults.rule = lambda _where, what: Fault.ERROR_BEFORE if what == "server: piece" and next(broken) == last else None
    world.update_for(1, whole)
    assert world.state.state == "downloading"
    left = len(NEW_MODEL) + BESIDE_BYTES - world.device.server.bytes_sent
    assert 0 < left < len(DELTA)
    assert world.update(OFFER) == "succeeded"
    assert world.asked_for(DELTA) == 0
    assert world.device.server.bytes_sent == len(NEW_MODEL) + BESIDE_BYTES


def test_a_first_install_takes_the_compressed_model():
    device_world = World()
    fresh = DeviceSimulator()
    fresh.server.blobs.update(device_world.device.server.blobs)
    fresh.assign(Assignment("as-1", 1, 1, (OFFER,), {}))
    fresh.run()
    assert fresh.runs(NEW)
    assert fresh.server.bytes_sent == len(FULL) + BESIDE_BYTES
    assert fresh.machine.state_of(LINE).transfer == "full"


def test_a_manifest_always_comes_as_it_is():
    world, wordy = World(), make_release("1.1", 2, padding=4000, manifest={"note": "x" * 2000})
    small = make_delta(OLD.files["manifest.json"], wordy.files["manifest.json"])
    world.device.server.publish(wordy)
    world.serve(small)
    assert len(small) < len(wordy.files["manifest.json"]) // 2
    assert world.update(with_deltas(wordy.offer(), offered(small), file="manifest.json")) == "succeeded"
    assert world.asked_for(small) == 0


def test_a_file_beside_the_model_may_come_as_a_delta_too():
    world, golden = World(), NEW.files["golden.cbor"]
    delta = make_delta(OLD.files["golden.cbor"], golden)
    world.serve(delta)
    assert world.update(with_deltas(OFFER, offered(delta, length=len(delta)), file="golden.cbor")) == "succeeded"
    assert world.asked_for(golden) + world.asked_for(delta) == 1


# --- row 1: no delta for this base, delta gone, base damaged ---


def no_delta(world: World) -> LineOffer:
    return with_deltas(NEW.offer(), offered(make_delta(b"something else", NEW_MODEL)), offered(FULL))


def gone(status: int):
    def prepare(world: World) -> LineOffer:
        world.withdraw(DELTA)
        world.device.server.gone_status = status
        return OFFER

    return prepare


def damaged(world: World) -> LineOffer:
    world.device.disk.damage(world.device.slots.folder(LINE, SlotName.A) / "model.onnx")
    return OFFER


FIRST_ROW = {
    "no delta for this base": (no_delta, "no delta starts from what this device has"),
    "delta 404": (gone(404), "the server does not have the delta any more"),
    "delta 410": (gone(410), "the server does not have the delta any more"),
    "base damaged": (damaged, "damaged in its slot"),
}


@pytest.mark.parametrize("name", FIRST_ROW)
def test_without_a_usable_delta_an_unmetered_link_carries_the_compressed_model_and_says_so(name):
    world, (prepare, why) = World(), FIRST_ROW[name]
    assert world.update(prepare(world)) == "succeeded"
    assert world.device.runs(NEW)
    assert world.asked_for(FULL) == 1
    assert world.asked_for(NEW_MODEL) == 0
    assert (world.facts.transfer, world.facts.failed_deltas) == ("full", ())
    assert why in world.device.machine._load(LINE).context.delivery.note


@pytest.mark.parametrize("name", FIRST_ROW)
def test_without_a_usable_delta_a_metered_link_holds_and_says_how_much_is_needed(name):
    world, (prepare, why) = World(is_metered=True), FIRST_ROW[name]
    world.update_for(60, prepare(world))
    assert held(world) == HELD
    assert why in world.state.text
    assert f"{len(FULL)} are needed" in world.state.text
    assert world.state.transfer == "full"
    assert len(FULL) <= world.state.bytes_needed <= len(FULL) + BESIDE_BYTES
    assert world.asked_for(FULL) + world.asked_for(NEW_MODEL) == 0
    assert world.device.slots.committed(LINE).content.release == "1.0"


def test_a_compressed_model_that_is_gone_too_comes_raw():
    world = World()
    world.withdraw(DELTA)
    world.withdraw(FULL)
    assert world.update() == "succeeded"
    assert world.asked_for(NEW_MODEL) == 1


def test_a_held_download_outlives_any_number_of_restarts_and_ends_when_a_delta_is_offered():
    world = World(is_metered=True)
    world.update_for(2, no_delta(world))
    for _ in range(60):
        world.device.restart()
        world.device.machine.run_pending()
    assert held(world) == HELD
    assert world.update(OFFER) == "succeeded"
    assert world.went().count("idle") == 1
    assert world.device.server.bytes_sent == len(DELTA) + BESIDE_BYTES


# --- row 2: wrong hash, DeltaError ---


def wrong_hash(world: World) -> LineOffer:
    world.serve(DELTA[:-1] + b"?", instead_of=DELTA)
    return OFFER


def undecodable(world: World) -> LineOffer:
    broken = make_delta(OLD_MODEL, NEW_MODEL, payload=b"nonsense")
    world.serve(broken)
    return with_deltas(NEW.offer(), offered(broken), offered(FULL))


def wrong_result(world: World) -> LineOffer:
    import zlib

    lying = make_delta(OLD_MODEL, NEW_MODEL, payload=zlib.compress(b"another model"))
    world.serve(lying)
    return with_deltas(NEW.offer(), offered(lying), offered(FULL))


def wrong_header(world: World) -> LineOffer:
    lying = make_delta(OLD_MODEL, b"another model")
    world.serve(lying)
    return with_deltas(NEW.offer(), offered(lying), offered(FULL))


def too_much_memory(world: World) -> LineOffer:
    hungry = make_delta(OLD_MODEL, NEW_MODEL, memory_kib=65 << 10)
    world.serve(hungry)
    return with_deltas(NEW.offer(), offered(hungry), offered(FULL))


SECOND_ROW = {
    "wrong hash": (wrong_hash, "downloading"),
    "a header that does not fit": (wrong_header, "verifying"),
    "too much memory": (too_much_memory, "verifying"),
    "undecodable": (undecodable, "installing"),
    "wrong result": (wrong_result, "installing"),
}


@pytest.mark.parametrize("name", SECOND_ROW)
def test_a_bad_delta_fails_the_update_without_blame_and_it_begins_once_more_whole(name):
    world, (prepare, where) = World(), SECOND_ROW[name]
    offer = prepare(world)
    assert world.update(offer) == "succeeded"
    went = world.went()
    first_end = went.index("failed")
    assert went[first_end - 1] == where
    assert went[first_end + 1] == "idle"
    assert went.count("idle") == 2
    failed = next(step for step in world.device.store.steps if step.state == "failed")
    assert failed.reason == "delta_failed"
    assert world.device.machine.blocked() == []
    assert world.device.runs(NEW)
    assert world.facts.failed_deltas == (offer.files[1 if offer.files[1].name == "model.onnx" else 2].deltas[0].sha256,)
    assert world.facts.transfer == "full"
    assert world.facts.bytes_downloaded > len(FULL) + BESIDE_BYTES
    assert world.asked_for(NEW.files["manifest.json"]) == 1, "what came before is kept"


@pytest.mark.parametrize("name", SECOND_ROW)
def test_a_bad_delta_on_a_metered_link_leads_to_a_hold_that_a_power_cut_does_not_forget(name):
    world, (prepare, _) = World(is_metered=True), SECOND_ROW[name]
    world.update_for(5, prepare(world))
    for _ in range(3):
        assert held(world) == HELD
        assert "a delta failed on this device" in world.state.text
        world.device.restart()
        world.device.machine.run_pending()
    assert world.went().count("failed") == 1
    assert world.asked_for(FULL) + world.asked_for(NEW_MODEL) == 0
    assert len(world.facts.failed_deltas) == 1


def test_the_second_try_takes_no_other_delta_either():
    world = World()
    broken = make_delta(OLD_MODEL, NEW_MODEL, payload=b"nonsense")
    world.serve(broken)
    assert world.update(with_deltas(NEW.offer(), offered(broken), offered(DELTA), offered(FULL))) == "succeeded"
    assert world.asked_for(broken) == 1
    assert world.asked_for(DELTA) == 0
    assert world.asked_for(FULL) == 1


def test_a_bad_compressed_model_is_followed_by_the_raw_one():
    fresh, broken = DeviceSimulator(), make_delta(None, NEW_MODEL, payload=b"nonsense")
    fresh.server.publish(NEW)
    fresh.server.blobs[digest_of(broken).removeprefix("sha256:")] = broken
    fresh.assign(Assignment("as-1", 1, 1, (with_deltas(NEW.offer(), offered(broken)),), {}))
    fresh.run()
    assert fresh.runs(NEW)
    assert fresh.machine.report_facts(LINE).failed_deltas == (digest_of(broken),)


def test_the_second_try_is_the_last():
    world = World()
    broken, also = make_delta(OLD_MODEL, NEW_MODEL, payload=b"nonsense"), make_delta(None, NEW_MODEL, payload=b"nonsense")
    for data in (broken, also):
        world.serve(data)
    assert world.update(with_deltas(NEW.offer(), offered(broken), offered(also))) == "failed"
    assert world.went().count("idle") == 2
    assert world.facts.reason == "delta_failed"
    assert set(world.facts.failed_deltas) == {digest_of(broken), digest_of(also)}
    assert world.device.machine.blocked() == []
    assert world.device.runs(OLD)


def test_a_base_that_is_damaged_between_download_and_installing_is_no_fault_of_the_delta():
    world = World()
    world.device.boot()
    hits: list[str] = []

    def rot() -> str:
        state = world.device.store.updates[LINE].state
        if state == "verifying" and not hits:
            hits.append(state)
            world.device.disk.damage(world.device.slots.folder(LINE, SlotName.A) / "model.onnx")
        return state

    world.device.faults.where = rot
    world.assign(OFFER)
    world.device.run()
    assert world.device.store.updates[LINE].state == "succeeded"
    assert [step.reason for step in world.device.store.steps if step.state == "failed"] == ["base_damaged"]
    assert world.facts.failed_deltas == ()


def test_a_withdrawal_between_the_failure_and_the_second_try_ends_it():
    world = World()
    undo: list[bool] = []

    def withdraw() -> str:
        state = world.device.store.updates[LINE].state
        if state == "failed" and not undo:
            undo.append(True)
            world.device.machine.offer(Assignment("as-2", 1, 2, (), {}))
        return state

    world.device.faults.where = withdraw
    assert world.update(undecodable(world)) == "failed"
    assert world.went().count("idle") == 1


# --- row 3: a flaky link, a busy server ---


@pytest.mark.parametrize("is_metered", [False, True])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_for_the_same_file_again_and_never_for_the_whole_model(status, is_metered):
    world = World(is_metered=is_metered)
    world.device.server.refusals = [(status, {})] * 12
    assert world.update() == "succeeded"
    assert world.asked_for(FULL) + world.asked_for(NEW_MODEL) == 0


@pytest.mark.parametrize("is_metered", [False, True])
def test_a_link_that_breaks_at_every_piece_is_tried_again_and_never_leads_to_the_whole_model(is_metered):
    world = World(is_metered=is_metered)
    pieces = iter(range(10**6))
    world.device.faults.rule = lambda _where, what: Fault.ERROR_BEFORE if what == "server: piece" and next(pieces) % 2 else None
    assert world.update() == "succeeded"
    assert world.asked_for(FULL) + world.asked_for(NEW_MODEL) == 0
    assert world.device.server.bytes_sent == len(DELTA) + BESIDE_BYTES


def test_patience_that_a_server_asks_for_is_kept_up_to_a_day():
    world = World()
    world.device.server.refusals = [(503, {"Retry-After": "7200"}), (503, {"Retry-After": "999999999"})]
    begin = world.device.clock.monotonic()
    assert world.update() == "succeeded"
    assert 7200 + RETRY_AFTER_CAP_S <= world.device.clock.monotonic() - begin < 7200 + RETRY_AFTER_CAP_S + 100


def test_a_wake_for_another_reason_does_not_end_a_back_off():
    world = World()
    world.device.server.refusals = [(503, {"Retry-After": "600"})]
    world.update_for(0)
    for _ in range(50):
        world.device.machine.run_pending()
    assert len(world.device.server.requests) == 1
    assert (world.state.waits_for, world.state.reason) == ("server", "unavailable")


# --- the policy of a metered link ---


@pytest.mark.parametrize(
    ("settings", "signed", "is_held"),
    [
        ({"full_download": "delta_only"}, None, True),
        ({"full_download": "full_up_to", "full_up_to_bytes": len(FULL)}, None, False),
        ({"full_download": "full_up_to", "full_up_to_bytes": len(FULL) - 1}, None, True),
        ({"full_download": "delta_only"}, len(FULL), False),
        ({"full_download": "delta_only"}, len(FULL) - 1, True),
        ({"full_download": "full_up_to", "full_up_to_bytes": 10**9}, 0, True),
        ({"full_download": "never"}, 10**9, True),
    ],
)
def test_the_whole_model_comes_over_a_metered_link_only_as_far_as_policy_and_director_allow(settings, signed, is_held):
    world = World(is_metered=True, **settings)
    offer = replace(no_delta(world), full_bytes_allowed=signed)
    if is_held:
        world.update_for(3, offer)
        assert held(world) == HELD
        assert world.asked_for(FULL) == 0
    else:
        assert world.update(offer) == "succeeded"
        assert world.asked_for(FULL) == 1


@pytest.mark.parametrize("data", [DELTA, FULL, NEW_MODEL])
def test_what_a_stick_brought_is_installed_whatever_the_link_may_carry(data):
    world = World(is_metered=True, full_download="never")
    world.device.boot()
    for blob in (data, NEW.files["manifest.json"], NEW.files["golden.cbor"]):
        world.device.disk.put(DOWNLOADS_DIR / digest_of(blob).removeprefix("sha256:"), blob)
    world.device.machine.offer(Assignment("as-1", 1, 1, (OFFER,), {}))
    for _ in range(20):
        world.device.clock.advance(world.device.machine.run_pending())
    assert world.device.store.updates[LINE].state == "succeeded"
    assert world.device.server.requests == []
    assert world.facts.bytes_downloaded == 0


def test_never_lets_no_delta_pass_either():
    world = World(is_metered=True, full_download="never")
    world.update_for(3, OFFER)
    assert held(world) == HELD
    assert world.device.server.requests == []


def test_a_permission_signed_later_frees_a_held_download():
    world = World(is_metered=True)
    offer = no_delta(world)
    world.update_for(3, offer)
    assert held(world) == HELD
    assert world.update(replace(offer, full_bytes_allowed=len(FULL))) == "succeeded"
    assert world.went().count("idle") == 1


def test_settings_replaced_at_run_time_free_a_held_download():
    world = World(is_metered=True)
    world.update_for(3, no_delta(world))
    assert held(world) == HELD
    world.policy.replace(UpdateConfig(metered=False))
    world.device.run()
    assert world.device.store.updates[LINE].state == "succeeded"


def test_a_link_that_becomes_metered_in_the_middle_of_a_whole_model_stops_it_at_once():
    world = World()
    pieces = iter(range(10**6))

    def piece(_where: str, what: str) -> None:
        if what == "server: piece" and next(pieces) == 12:
            world.policy.replace(UpdateConfig(metered=True))

    world.device.faults.rule = piece
    world.update_for(3, NEW.offer())
    assert held(world) == HELD
    assert BESIDE_BYTES < world.device.server.bytes_sent < len(NEW_MODEL) // 2
    assert world.facts.bytes_downloaded == world.device.server.bytes_sent
    assert world.update(OFFER) == "succeeded"
    assert world.facts.transfer == "delta"


def test_what_was_fetched_is_not_forgotten_by_a_power_cut_because_it_was_paid_for():
    big = make_release("1.1", 2, padding=3 * SYNC_BYTES)
    world = World()
    world.device = DeviceSimulator(chunk_bytes=1 << 20)
    world.device.installed(OLD)
    world.device.server.publish(big)
    pieces = iter(range(10**6))
    world.device.faults.rule = lambda _where, what: Fault.CUT_BEFORE if what == "server: piece" and next(pieces) == 10 else None
    with suppress(PowerCut):
        world.update_for(1, big.offer())
    world.device.lose_power()
    assert world.device.machine._load(LINE).context.bytes_downloaded >= 2 * SYNC_BYTES


def test_twice_the_planned_bytes_of_a_delta_end_the_update():
    world = World()
    world.device.server.does_resume = False
    broken = iter(range(10**6))
    world.device.faults.rule = lambda _where, what: Fault.ERROR_AFTER if what == "server: piece" and next(broken) % 2 else None
    big = make_delta(OLD_MODEL, NEW_MODEL, payload=b"x" * 3000)
    world.serve(big)
    assert world.update(with_deltas(NEW.offer(), offered(big))) == "failed"
    assert world.facts.reason == "transfer_budget"
    assert world.facts.bytes_downloaded > 2 * (len(big) + BESIDE_BYTES)
    assert world.asked_for(NEW_MODEL) == 0


# --- the decision itself ---


def test_the_decision_prefers_deltas_only_when_asked_to():
    offer = with_deltas(NEW.offer(), offered(DELTA, length=10_000), offered(FULL))
    common = {"present": (), "bases": Bases(whole=frozenset({digest_of(OLD_MODEL)})), "setbacks": Setbacks(), "in_place": {}}
    assert decide(offer, prefers_deltas=False, **common).transfer is Transfer.FULL
    assert decide(offer, prefers_deltas=True, **common).transfer is Transfer.DELTA


def test_nothing_is_decided_about_files_that_are_here():
    assert (
        decide(
            OFFER,
            present=tuple(file.name for file in OFFER.files),
            bases=Bases(),
            setbacks=Setbacks(),
            in_place={},
            prefers_deltas=False,
        )
        == Delivery()
    )
    assert list(Delivery().ways(OFFER)) == []


def test_stopping_the_agent_while_a_delta_is_applied_leaves_it_to_the_next_start():
    world = World()
    stop = threading.Event()
    world.device.boot()

    def halt() -> str:
        state = world.device.store.updates[LINE].state
        if state == "installing":
            stop.set()
        return state

    world.assign(OFFER)
    world.device.machine.offer(world.device.pending.pop(0))
    world.device.machine._stop = stop
    world.device.faults.where = halt
    world.device.machine.run_pending()
    assert world.state.state == "installing"
    world.device.faults.where = lambda: ""
    world.device.restart()
    world.device.run()
    assert world.device.store.updates[LINE].state == "succeeded"


def test_methods_are_numbers_that_never_change():
    assert [int(method) for method in Method] == [0, 1, 2, 3]
    assert {wait.value for wait in Wait} == {"window", "consent", "clock", "full_download", "server"}
