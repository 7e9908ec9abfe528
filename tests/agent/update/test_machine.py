"""What the machine does with offers, refusals, aborts, bad releases, bad links and restarts; the device keeps inferring throughout."""

import errno
import threading
from dataclasses import replace

import pytest
from simulators.device import DOWNLOADS_DIR, LINE, RULES, DeviceSimulator, make_release, with_floor
from simulators.disk import Fault
from waiting import PATIENCE_S, wait_until

from agent.slots import SlotName
from agent.update.machine import MAX_LOAD_FAILURES, MAX_SAVES
from agent.update.policy import Gate, OpenPolicy, Permission, Wait
from protocol.errors import DeviceError
from protocol.ids import LineName

OLD, NEW, NEXT = make_release("1.0", 1), make_release("1.1", 2), make_release("1.2", 3)
BAD_GOLDEN, SLOW = make_release("1.1", 2, "bad-golden"), make_release("1.1", 2, "slow")


@pytest.fixture
def device() -> DeviceSimulator:
    device = DeviceSimulator()
    device.installed(OLD)
    device.server.publish(NEW, NEXT, BAD_GOLDEN, SLOW)
    device.server.bytes_sent = 0
    device.server.requests.clear()
    return device


def update(device: DeviceSimulator, release, **order: object) -> str:
    device.assign(release.assignment(**order))
    device.run()
    return device.store.updates[LINE].state


def states(device: DeviceSimulator) -> list[str]:
    return [step.state for step in device.store.steps if step.line == LINE]


# --- the way forward ---


def test_a_good_release_goes_through_every_state_and_is_committed(device):
    assert update(device, NEW) == "succeeded"
    assert states(device) == [
        "idle",
        "downloading",
        "verifying",
        "installing",
        "waiting",
        "activating",
        "probing",
        "committing",
        "succeeded",
    ]
    assert device.runs(NEW)
    assert device.slots.committed(LINE).content.release == "1.1"
    facts = device.machine.report_facts(LINE)
    assert (facts.update_state, facts.assignment, facts.attempt) == ("succeeded", "as-1", 1)
    assert facts.healthy_inferences >= RULES.min_inferences
    assert facts.bytes_downloaded == sum(len(data) for data in NEW.files.values())


def test_the_old_model_infers_until_the_new_one_is_activated(device):
    device.policy = None
    device.boot()
    device.machine.offer(NEW.assignment())
    seen: list[tuple[str, bool]] = []
    device.faults.where = lambda: seen.append((device.store.updates[LINE].state, device.runs(OLD))) or ""
    device.machine.run_pending()
    before = [ran for state, ran in seen if state in ("idle", "downloading", "verifying", "installing", "waiting")]
    assert len(before) > 30
    assert all(before)


def test_progress_and_history_show_how_it_got_there(device):
    progress: list[int] = []
    device.boot()
    device.machine._steps._on_progress = lambda line: progress.append(device.machine.state_of(line).progress)
    device.machine.offer(NEW.assignment())
    device.machine.run_pending()
    assert progress == sorted(progress)
    assert len(progress) > 3
    assert progress[-1] > 85
    device.run()
    history = device.machine.history(LINE)
    assert [(step.release, step.state) for step in history][-2:] == [("1.1", "committing"), ("1.1", "succeeded")]
    state = device.machine.state_of(LINE)
    assert (state.desired, state.installed, state.state, state.progress) == ("1.1", "1.1", "succeeded", 100)
    assert device.machine.lines() == [LINE]
    assert device.machine.active_releases() == {LINE: "1.1"}
    assert {report.slot for report in device.machine.slot_reports() if report.active} == {"b"}


def test_a_planned_rollback_to_the_previous_release_costs_no_bytes(device):
    update(device, NEW)
    device.server.bytes_sent = 0
    device.server.requests.clear()
    assert update(device, OLD, assignment="as-2") == "succeeded"
    assert device.runs(OLD)
    assert device.server.bytes_sent == 0
    assert device.server.requests == []


def test_a_file_that_a_slot_already_has_is_not_fetched_again(device):
    twin = make_release("1.1", 2)
    twin.files["golden.cbor"] = OLD.files["golden.cbor"]
    twin.files["manifest.json"] = make_release("1.1", 2, manifest={"files": {}}).files["manifest.json"]
    device.server.publish(twin)
    assert update(device, twin) == "succeeded"
    golden = twin.offer().files[0]
    assert golden.name == "golden.cbor"
    assert not any(golden.sha256.removeprefix("sha256:") in path for path, _ in device.server.requests)


def test_what_already_runs_is_recorded_under_the_new_assignment_without_an_update(device):
    assert update(device, OLD, assignment="as-9", attempt=4) == "succeeded"
    assert states(device) == []
    assert device.machine.report_facts(LINE).assignment == "as-9"
    assert device.server.requests == [] or device.server.bytes_sent == 0


def test_several_lines_are_updated_side_by_side(device):
    other = make_release("3.0", 1, line=LineName("shapes"))
    device.server.publish(other)
    both = NEW.assignment()
    device.assign(replace(both, lines=(*both.lines, other.offer(assignment="as-1"))))
    device.run()
    assert {row.line: row.state for row in device.store.list_updates()} == {LINE: "succeeded", "shapes": "succeeded"}
    assert device.machine.committed_counters() == {LINE: 2, "shapes": 1}


# --- releases that do not hold ---


def test_a_failed_self_test_refuses_the_release_before_activation_and_says_why(device):
    activations = len(device.engine.activations)
    assert update(device, BAD_GOLDEN) == "failed"
    state = device.machine.state_of(LINE)
    assert (state.reason, state.text) == ("golden_mismatch", "Output scores differs by 0.4; 0.1 was allowed.")
    assert device.runs(OLD)
    assert all(folder.name == "a" for _, folder in device.engine.activations[activations:])
    assert device.disk.sizes(device.slots.folder(LINE, SlotName.B)) == {}
    assert [(block.release, block.attempt, block.reason) for block in device.machine.blocked()] == [("1.1", 1, "golden_mismatch")]


def test_the_same_release_again_is_refused_at_once_without_a_download(device):
    update(device, BAD_GOLDEN)
    device.server.requests.clear()
    update(device, BAD_GOLDEN, assignment="as-2")
    assert device.server.requests == []
    state = device.machine.state_of(LINE)
    assert (state.state, state.reason) == ("failed", "blocked")
    assert "golden_mismatch" in state.text
    facts = device.machine.report_facts(LINE)
    assert (facts.assignment, facts.update_state, facts.reason) == ("as-2", "failed", "blocked")


def test_a_higher_attempt_is_a_second_chance(device):
    update(device, SLOW)
    assert device.machine.blocked()
    assert update(device, SLOW, attempt=2) == "rolled_back"
    assert states(device).count("probing") == 2
    assert [block.attempt for block in device.machine.blocked()] == [2]
    assert update(device, NEXT, assignment="as-3") == "succeeded"


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [
        ("slow", "latency_worse"),
        ("errors", "error_rate"),
        ("constant", "constant_output"),
        ("silent", "probe_timeout"),
        ("crashes", "inference_crashed"),
        ("refuses", "load_failed"),
    ],
)
def test_a_release_that_does_not_hold_in_use_is_rolled_back_and_blocked(device, behavior, reason):
    bad = make_release("1.1", 2, behavior)
    device.server.publish(bad)
    assert update(device, bad) == "rolled_back"
    assert device.store.updates[LINE].reason == reason
    assert device.store.updates[LINE].text
    assert device.runs(OLD)
    assert device.slots.committed(LINE).content.release == "1.0"
    assert [block.reason for block in device.machine.blocked()] == [reason]


def test_a_rollback_needs_no_server(device):
    device.boot()
    device.machine.offer(SLOW.assignment())
    while device.store.updates[LINE].state != "probing":
        device.clock.advance(device.machine.run_pending())
    device.server.blobs.clear()
    sent = device.server.bytes_sent
    device.run()
    assert device.store.updates[LINE].state == "rolled_back"
    assert device.server.bytes_sent == sent


def test_a_budget_of_the_release_for_this_device_type_is_kept(device):
    tight = make_release("1.1", 2, manifest={"budget": {"sim": {"latency_p99_ms": 5.0}, "*": {"latency_p99_ms": 500.0}}})
    device.server.publish(tight)
    assert update(device, tight) == "rolled_back"
    assert device.store.updates[LINE].reason == "latency_budget"


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"release": "9.9"}, "manifest_mismatch"),
        ({"counter": 77}, "manifest_mismatch"),
        ({"line": "other"}, "manifest_mismatch"),
        ({"files": {"model.onnx": {"sha256": "sha256:" + "0" * 64, "length": 5}}}, "manifest_mismatch"),
        ({"files": "none"}, "manifest_invalid"),
    ],
)
def test_a_manifest_that_is_not_the_one_of_the_signed_metadata_is_refused(device, manifest, reason):
    lying = make_release("1.1", 2, manifest=manifest)
    device.server.publish(lying)
    assert update(device, lying) == "failed"
    assert device.store.updates[LINE].reason == reason
    assert device.engine.self_tests == 1  # that of the first release


def test_a_release_without_a_manifest_or_with_two_models_is_refused(device):
    for number, files in enumerate(({"model.onnx": b"model x;"}, {**NEW.files, "model.tflite": b"model too;"})):
        odd = replace(NEW, files=files)
        device.server.publish(odd)
        assert update(device, odd, assignment=f"as-{number}") == "failed"
        assert device.store.updates[LINE].reason in ("manifest_invalid", "bad_release")


# --- counters, floors ---


def test_nothing_below_the_floor_is_taken_even_when_the_director_asks(device):
    update(device, NEXT)
    device.assign(with_floor(NEW.assignment(assignment="as-2"), 3))
    device.run()
    state = device.machine.state_of(LINE)
    assert (state.state, state.reason) == ("failed", "old-release")
    assert device.runs(NEXT)
    assert device.machine.floors() == {LINE: 3}


def test_floors_only_grow(device):
    for floor in (2, 1):
        device.assign(with_floor(NEXT.assignment(), floor))
        device.run()
    assert device.machine.floors() == {LINE: 2}


# --- aborts, supersession, withdrawal ---


def probing(device: DeviceSimulator, release=NEW) -> None:
    device.boot()
    device.machine.offer(release.assignment())
    while device.store.updates[LINE].state != "probing":
        device.clock.advance(device.machine.run_pending())


def test_a_new_assignment_ends_the_open_update_and_is_taken_next(device):
    probing(device)
    device.machine.offer(NEXT.assignment(assignment="as-2"))
    device.run()
    assert states(device)[6:9] == ["probing", "rolling_back", "rolled_back"]
    assert device.store.updates[LINE].state == "succeeded"
    assert device.runs(NEXT)
    assert device.machine.blocked() == []
    assert [step.reason for step in device.machine.history(LINE) if step.state == "rolled_back"] == ["superseded"]


def test_a_withdrawn_assignment_leads_back_without_blame(device):
    probing(device)
    device.machine.offer(replace(NEW.assignment(assignment="as-2"), lines=()))
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == ("rolled_back", "withdrawn")
    assert device.machine.blocked() == []
    assert device.runs(OLD)


def test_an_abort_during_the_download_stops_it(device):
    device.boot()
    device.machine.offer(NEW.assignment())
    pieces = 0

    def withdraw() -> str:
        nonlocal pieces
        pieces += 1
        if pieces == 30:
            device.machine.abort(LINE, reason="withdrawn", text="An operator withdrew it.")
        return ""

    device.faults.where = withdraw
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == ("failed", "withdrawn")
    assert device.server.bytes_sent < sum(len(data) for data in NEW.files.values())
    assert device.disk.sizes(DOWNLOADS_DIR) == {}


@pytest.mark.parametrize(
    ("state", "end"),
    [
        ("downloading", "failed"),
        ("verifying", "failed"),
        ("installing", "failed"),
        ("waiting", "failed"),
        ("activating", "rolled_back"),
        ("probing", "rolled_back"),
    ],
)
def test_an_abort_in_any_state_before_committing_ends_with_the_old_release(device, state, end):
    device.boot()
    device.machine.offer(NEW.assignment())
    asked: list[bool] = []

    def withdraw() -> str:
        if device.store.updates[LINE].state == state and not asked:
            asked.append(True)
            assert device.machine.abort(LINE, reason="withdrawn", text="An operator withdrew it.")
        return ""

    device.faults.where = withdraw
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == (end, "withdrawn")
    assert states(device)[-2] == (state if end == "failed" else "rolling_back")
    assert device.runs(OLD)
    assert device.machine.blocked() == []
    assert update(device, NEW, attempt=2) == "succeeded"


def test_an_abort_is_remembered_across_a_cut(device):
    probing(device)
    assert device.machine.abort(LINE, reason="withdrawn", text="An operator withdrew it.")
    device.restart()
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == ("rolled_back", "withdrawn")


def test_an_abort_is_ignored_once_committing_began_and_when_nothing_is_open(device):
    assert not device.machine.abort(LINE, reason="x", text="x")
    device.boot()
    device.machine.offer(NEW.assignment())
    answers: list[bool] = []

    def withdraw() -> str:
        if device.store.updates[LINE].state == "committing" and not answers:
            answers.append(device.machine.abort(LINE, reason="withdrawn", text="Too late."))
        return ""

    device.faults.where = withdraw
    device.run()
    assert answers == [False]
    assert device.store.updates[LINE].state == "succeeded"
    assert not device.machine.abort(LineName("unknown"), reason="x", text="x")


def test_the_same_assignment_again_changes_nothing(device):
    probing(device)
    device.machine.offer(NEW.assignment())
    device.run()
    assert states(device).count("idle") == 1
    update(device, NEW)
    assert states(device).count("idle") == 1


def test_an_update_that_failed_is_not_begun_again_by_the_same_assignment(device):
    del device.server.blobs[NEW.offer().files[0].sha256.removeprefix("sha256:")]
    device.server.blobs[NEW.offer().files[0].sha256.removeprefix("sha256:")] = bytes(13)
    assert update(device, NEW) == "failed"
    assert update(device, NEW) == "failed"
    assert states(device).count("failed") == 1
    device.server.publish(NEW)
    assert update(device, NEW, attempt=2) == "succeeded"


# --- windows and consent ---


class Window(OpenPolicy):
    """Closed until it is opened, or refused."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    def may_activate(self, offer, now) -> Gate:
        return Gate(self.permission, Wait.WINDOW, "The window opens at some time.")


def test_a_closed_window_holds_the_update_without_using_up_its_bound(device):
    device.policy = window = Window(Permission.CLOSED)
    device.boot()
    device.machine.offer(NEW.assignment())
    for _ in range(100):
        device.clock.advance(device.machine.run_pending())
    assert device.store.updates[LINE].state == "waiting"
    assert "window" in device.machine.state_of(LINE).text
    assert device.runs(OLD)
    window.permission = Permission.OPEN
    device.run()
    assert device.store.updates[LINE].state == "succeeded"


@pytest.mark.parametrize("state", ["waiting", "downloading"])
def test_restarts_while_it_only_waits_do_not_use_up_its_bound(device, state):
    if state == "waiting":
        device.policy = Window(Permission.CLOSED)
    else:
        device.server.blobs.clear()
    device.boot()
    device.machine.offer(NEW.assignment())
    for _ in range(60):
        device.machine.run_pending()
        device.restart()
    assert device.store.updates[LINE].state == state
    device.policy = None
    device.server.publish(NEW)
    device.run()
    assert device.store.updates[LINE].state == "succeeded"


def test_refused_consent_ends_the_update_without_blame(device):
    device.policy = Window(Permission.REFUSED)
    assert update(device, NEW) == "failed"
    assert device.store.updates[LINE].reason == "consent"
    assert device.machine.blocked() == []


class BrokenPolicy(OpenPolicy):
    """Cannot tell."""

    def may_activate(self, offer, now) -> Gate:
        raise DeviceError("The calendar of this site cannot be read.", code="calendar")


def test_a_window_that_cannot_be_read_fails_the_update_before_activation(device):
    device.policy = BrokenPolicy()
    assert update(device, NEW) == "failed"
    assert device.store.updates[LINE].reason == "unlisted", "a device gives no code that the server cannot explain"
    assert device.store.updates[LINE].text.startswith("calendar: ")
    assert states(device)[-2] == "waiting"
    assert device.runs(OLD)


def test_an_update_that_used_up_its_bound_fails_in_waiting_too(device):
    device.policy = Window(Permission.CLOSED)
    device.boot()
    device.machine.offer(NEW.assignment())
    device.machine.run_pending()
    device.store.updates[LINE] = replace(device.store.updates[LINE], saves=MAX_SAVES)
    device.restart()
    device.run()
    assert (device.store.updates[LINE].state, device.store.updates[LINE].reason) == ("failed", "exhausted")
    assert states(device)[-2] == "waiting"
    assert device.runs(OLD)


# --- disks and links ---


def test_a_disk_without_room_fails_clearly_before_anything_is_written(device):
    used = sum(device.disk.sizes(path.parent)[path.name] for path in device.disk.paths())
    device.disk.capacity = used + sum(len(data) for data in NEW.files.values()) + 200
    assert update(device, NEW) == "failed"
    row = device.store.updates[LINE]
    assert (row.reason, "MiB free" in row.text, "offer it again" in row.text) == ("disk_full", True, True)
    assert device.runs(OLD)
    assert device.disk.sizes(DOWNLOADS_DIR) == {}
    assert device.disk.sizes(device.slots.folder(LINE, SlotName.B)) == {}
    assert device.machine.blocked() == []
    device.disk.capacity = 1 << 30
    assert update(device, NEW, attempt=2) == "succeeded"


@pytest.mark.parametrize("left", [50, 300, 700])
def test_a_disk_that_runs_full_while_writing_leaves_nothing_half_written(device, left):
    device.installer._spare_bytes = -(1 << 30)
    used = sum(device.disk.sizes(path.parent)[path.name] for path in device.disk.paths())
    device.disk.capacity = used + left
    device.boot()
    device.installer._spare_bytes = -(1 << 30)  # somebody else took the room between the check and the writing
    device.machine.offer(NEW.assignment())
    device.machine.run_pending()
    row = device.store.updates[LINE]
    assert (row.state, row.reason) == ("failed", "disk_full"), row
    assert device.runs(OLD)
    assert device.disk.sizes(DOWNLOADS_DIR) == {}
    assert device.disk.sizes(device.slots.folder(LINE, SlotName.B)) == {}


def test_an_answer_that_says_later_is_waited_for_and_never_exhausts_the_update(device):
    device.server.refusals = [(503, {"Retry-After": "120"})] * 40
    begin = device.clock.monotonic()
    assert update(device, NEW) == "succeeded"
    assert device.clock.monotonic() - begin >= 40 * 120


def test_what_the_download_waits_for_is_shown(device):
    device.server.refusals = [(404, {})]
    device.boot()
    device.machine.offer(NEW.assignment())
    device.machine.run_pending()
    state = device.machine.state_of(LINE)
    assert (state.state, state.reason) == ("downloading", "http-404")
    assert "answered 404" in state.text


def test_a_lost_link_goes_on_where_it_was(device):
    device.faults.rule = lambda _where, what: Fault.ERROR_BEFORE if what == "server: piece" and len(device.server.requests) == 2 else None
    assert update(device, NEW) == "succeeded"
    assert device.store.updates[LINE].state == "succeeded"


def test_bytes_that_are_not_the_ones_signed_fail_and_stay_nowhere(device):
    offer = NEW.offer()
    for file in offer.files:
        if file.name == "model.onnx":
            device.server.blobs[file.sha256.removeprefix("sha256:")] = bytes(file.length)
    assert update(device, NEW) == "failed"
    assert device.store.updates[LINE].reason == "hash_mismatch"
    assert device.disk.sizes(DOWNLOADS_DIR) == {}
    assert device.runs(OLD)


def test_more_bytes_than_twice_the_release_end_the_update(device):
    device.server.does_resume = False
    broken = iter(range(1000))
    device.faults.rule = lambda _where, what: Fault.ERROR_AFTER if what == "server: piece" and next(broken) % 3 == 2 else None
    assert update(device, make_big(device)) == "failed"
    assert device.store.updates[LINE].reason == "transfer_budget"
    assert device.machine.report_facts(LINE).bytes_downloaded > 0


def make_big(device: DeviceSimulator):
    big = make_release("1.1", 2, padding=2000)
    device.server.publish(big)
    return big


# --- starts ---


def test_a_trial_that_no_journal_knows_of_goes_back(device):
    probing(device)
    device.store.updates.clear()
    device.restart()
    assert device.runs(OLD)
    assert not device.slots.pointer(LINE).trial


def test_a_journal_row_that_cannot_be_read_is_no_dead_end(device):
    probing(device)
    device.store.updates[LINE] = replace(device.store.updates[LINE], context_json="{")
    device.restart()
    assert device.runs(OLD)
    assert update(device, NEXT, assignment="as-2") == "succeeded"


def test_a_committed_model_that_does_not_load_at_three_starts_gives_way_to_the_one_before(device):
    update(device, NEW)
    device.disk.put(device.slots.folder(LINE, SlotName.B) / "model.onnx", b"unloadable".ljust(len(NEW.files["model.onnx"])))
    for start in range(1, MAX_LOAD_FAILURES + 1):
        device.restart()
        problem = device.machine.problems()[LINE]
        assert problem.code == ("slot_fell_back" if start == MAX_LOAD_FAILURES else "no_model")
    assert device.runs(OLD)
    assert device.slots.committed(LINE).content.release == "1.0"


def test_the_one_before_is_not_used_when_a_floor_forbids_it(device):
    device.assign(with_floor(NEW.assignment(), 2))
    device.run()
    device.disk.put(device.slots.folder(LINE, SlotName.B) / "model.onnx", b"unloadable".ljust(len(NEW.files["model.onnx"])))
    for _ in range(MAX_LOAD_FAILURES):
        device.restart()
    assert device.machine.problems()[LINE].code == "rollback_forbidden"
    assert device.runs(None)


def test_a_slot_that_was_never_committed_is_no_fallback(device):
    device.policy = Window(Permission.CLOSED)
    device.boot()
    device.machine.offer(NEW.assignment())
    device.machine.run_pending()
    device.disk.put(device.slots.folder(LINE, SlotName.A) / "model.onnx", b"unloadable".ljust(len(OLD.files["model.onnx"])))
    for _ in range(MAX_LOAD_FAILURES + 1):
        device.restart()
    assert device.machine.problems()[LINE].code == "no_model"
    assert device.runs(None)


def test_a_model_that_takes_the_device_down_at_each_start_gives_way(device):
    update(device, NEW)
    device.faults.rule = lambda _where, what: Fault.CUT_BEFORE if what == "engine: activate b" else None
    device.run()
    assert device.runs(OLD)
    assert device.machine.problems()[LINE].code == "slot_fell_back"


def test_an_engine_that_is_not_there_at_the_start_is_tried_again(device):
    position = len(device.faults.log) + 1
    device.faults.rule = lambda _where, what: (
        Fault.ERROR_BEFORE if what.startswith("engine") and len(device.faults.log) < position + 4 else None
    )
    device.restart()
    assert device.machine.problems()[LINE].code == "no_model"
    for _ in range(5):
        device.clock.advance(device.machine.run_pending())
    assert device.runs(OLD)
    assert device.machine.problems() == {}


def test_errors_of_the_disk_carry_the_system_s_words(device):
    device.faults.rule = lambda _where, what: Fault.ERROR_BEFORE if what == "disk: write model.onnx" else None
    assert update(device, NEW) == "failed"
    assert device.store.updates[LINE].reason == "disk_error"
    assert "simulated" in device.store.updates[LINE].text
    assert errno.EIO


# --- scrubbing ---


def test_scrubbing_whole_slots_changes_nothing(device):
    update(device, NEW)
    before = device.slots.pointer(LINE)
    device.machine.scrub()
    assert device.slots.pointer(LINE) == before
    assert device.machine.problems() == {}


def test_an_active_slot_that_rotted_gives_way_to_the_one_before(device):
    update(device, NEW)
    device.disk.damage(device.slots.folder(LINE, SlotName.B) / "golden.cbor")
    device.machine.scrub()
    assert device.runs(OLD)
    problem = device.machine.problems()[LINE]
    assert problem.code == "slot_fell_back"
    assert "golden.cbor changed on the disk" in problem.text


def test_an_inactive_slot_that_rotted_is_emptied(device):
    update(device, NEW)
    device.disk.damage(device.slots.folder(LINE, SlotName.A) / "model.onnx")
    device.machine.scrub()
    assert device.machine.problems()[LINE].code == "slot_damaged"
    assert device.slots.get(LINE, SlotName.A) is None
    assert device.runs(NEW)


def test_an_active_slot_that_rotted_alone_keeps_running_and_is_reported(device):
    device.disk.damage(device.slots.folder(LINE, SlotName.A) / "model.onnx")
    device.machine.scrub()
    assert device.machine.problems()[LINE].code == "slot_damaged"
    assert device.slots.active(LINE) is not None


def test_the_thread_brings_the_model_up_drives_updates_and_stops(device):
    stop = threading.Event()
    device.restart()
    device.machine.offer(NEW.assignment())
    thread = threading.Thread(target=device.machine.run, args=(stop,))
    thread.start()
    wait_until(lambda: device.store.updates[LINE].state == "succeeded", what="the update")
    stop.set()
    device.machine.wake()
    thread.join(timeout=PATIENCE_S)
    assert not thread.is_alive()
    assert device.runs(NEW)
