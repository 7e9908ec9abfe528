"""A signed configuration on the device: taken on trial, kept or given back, through every cut and error of the disk."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulators.clock import FakeClock
from simulators.disk import FakeDisk, Fault, PowerCut

from agent.configuration import (
    MAX_STARTS,
    ConfigurationOffer,
    Judgment,
    LineCounts,
    Observed,
    SignedConfiguration,
    Trial,
    TrialRules,
    judge,
)
from protocol.canonical import digest_of
from protocol.configuration import Configuration, to_bytes
from protocol.errors import ConflictError, DeviceError, ForbiddenError, MooringError, TransferError, UnavailableError

FOLDER = Path("/state/configuration")
RULES = TrialRules(settle_s=30, trial_s=300)


def document(rev: int, *, group: str = "doors", perf_s: float | None = None, **changes: Any) -> bytes:
    fleet = {"telemetry": {"perf_s": perf_s or float(rev)}}
    return to_bytes(Configuration(**({"tenant": "t0", "group": group, "rev": rev, "fleet": fleet} | changes)))


def offer_of(rev: int, *, attempt: int = 0, group: str = "doors", data: bytes | None = None) -> ConfigurationOffer:
    content = document(rev, group=group) if data is None else data
    return ConfigurationOffer(group, rev, attempt, len(content), digest_of(content), f"https://server/blobs/{rev}")


class Device:
    """The configuration of one device with what surrounds it; power may be cut."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.disk = FakeDisk(chance=random.Random(1))  # noqa: S311 - a test's dice
        self.files = {offer_of(rev).url: document(rev) for rev in range(1, 30)}
        self.fetched: list[str] = []
        self.proved_s: float | None = None
        self.is_linked = True
        self.predictions = 0
        self.flowing = frozenset({"front"})
        self.errors = self.crashes = 0
        self.start()

    def start(self) -> None:
        self.keeper = SignedConfiguration(FOLDER, clock=self.clock, tenant="t0", device="cam-1", rules=RULES, disk=self.disk)

    def restart(self) -> None:
        """The power is cut and comes back."""
        self.disk.lose_power()
        self.start()

    def fetch(self, offer: ConfigurationOffer) -> bytes:
        self.fetched.append(offer.url)
        if not self.is_linked:
            raise TransferError("no link")
        return self.files[offer.url]

    def observed(self) -> Observed:
        now = self.clock.monotonic()
        if self.is_linked:
            self.proved_s = now
        return Observed(
            now_s=now,
            is_connected=self.is_linked,
            proved_s=self.proved_s,
            predictions={"front": self.predictions},
            max_fps={"front": 5.0},
            flowing=self.flowing,
            lines={"color": LineCounts(self.predictions + self.errors, self.errors, self.crashes)},
        )

    def tick(self, seconds: float = 0.0, *, frames: int = 1) -> bool:
        self.clock.advance(seconds)
        self.predictions += frames
        return self.keeper.tick(self.observed())

    def take(self, rev: int, **options: Any) -> None:
        """Offer, fetch, begin the trial."""
        self.keeper.offer(offer_of(rev, **options))
        self.keeper.fetch_pending(self.fetch)
        self.tick()

    def keep(self, rev: int, **options: Any) -> None:
        self.take(rev, **options)
        self.tick(31)

    @property
    def perf_s(self) -> float | None:
        """The setting that is in force."""
        return self.keeper.in_force.settings.get("telemetry", {}).get("perf_s")

    @property
    def state(self) -> tuple[str, int]:
        pointer = self.keeper.pointer
        name = "trial" if pointer.trial else "returned" if pointer.returned else "committed" if pointer.committed else "none"
        return name, pointer.in_force.rev if pointer.in_force else 0


@pytest.fixture
def device() -> Device:
    return Device()


# --- the way to a verdict ---


def test_a_configuration_is_tried_at_once_and_kept_when_it_has_settled(device: Device):
    device.take(3)
    assert (device.state, device.perf_s) == (("trial", 3), 3.0)
    assert device.tick(29) is False
    assert device.state == ("trial", 3)
    device.tick(2)
    assert device.state == ("committed", 3)
    assert device.keeper.floors() == {"doors": 3}
    assert [path.name for path in device.disk.paths()] == [f"{offer_of(3).sha256[7:]}.json", "pointer", "pointer.prev"]


def test_without_its_link_it_goes_back_to_the_last_good_one_alone(device: Device):
    device.keep(3)
    device.take(4)
    device.is_linked = False
    assert device.tick(299) is False
    assert device.tick(2) is True
    assert (device.state, device.perf_s) == (("returned", 3), 3.0)
    returned = device.keeper.pointer.returned
    assert (returned.offer.rev, returned.reason) == (4, "link_lost")


def test_the_first_one_goes_back_to_the_devices_own_values(device: Device):
    device.take(3)
    device.is_linked = False
    device.tick(301)
    assert (device.state, device.perf_s) == (("returned", 0), None)


def test_a_link_that_only_looks_open_proves_nothing(device: Device):
    device.take(3)
    proved = device.proved_s
    device.clock.advance(31)
    device.predictions += 1
    half_open = replace(device.observed(), proved_s=proved)
    device.keeper.tick(half_open)
    assert device.state == ("trial", 3)
    assert device.keeper.wants_proof(half_open)
    device.tick()
    assert device.state == ("committed", 3)


def test_a_link_that_comes_back_in_time_is_enough(device: Device):
    device.take(3)
    device.is_linked = False
    device.tick(200)
    device.is_linked = True
    device.tick(50)
    assert device.state == ("committed", 3)


def test_an_air_gapped_device_is_not_asked_for_a_link(device: Device):
    device.keeper.offer(offer_of(3))
    device.keeper.fetch_pending(device.fetch)
    device.is_linked = False
    device.tick()
    assert not device.keeper.wants_proof(device.observed())
    device.tick(29)
    assert device.state == ("trial", 3)
    device.tick(2)
    assert device.state == ("committed", 3)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda device: device.tick(301, frames=0), "frames_stopped"),
        (lambda device: setattr(device, "crashes", 1) or device.tick(1), "inference_crashed"),
        (lambda device: setattr(device, "errors", 3) or device.tick(1, frames=100), "inference_errors"),
    ],
    ids=["frames stop", "inference dies", "inferences fail"],
)
def test_without_its_health_it_goes_back(device: Device, harm: Callable[[Device], Any], reason: str):
    device.keep(3)
    device.take(4)
    harm(device)
    assert (device.state, device.keeper.pointer.returned.reason) == (("returned", 3), reason)


def test_what_failed_before_is_no_reason_to_go_back(device: Device):
    device.predictions, device.errors = 900, 100
    device.keep(3)
    device.take(4)
    device.errors = 110
    device.tick(31, frames=100)
    assert device.state == ("committed", 4)


def test_a_pipeline_that_gave_no_frames_before_need_not_now(device: Device):
    device.flowing = frozenset()
    device.take(3)
    device.tick(31, frames=0)
    assert device.state == ("committed", 3)


def test_a_pipeline_that_is_slow_by_wish_is_not_waited_for():
    trial = Trial(offer_of(1), flowing=("front",))
    first = Observed(0.0, True, 0.0, {"front": 5}, {"front": 1.0})
    later = Observed(31.0, True, 31.0, {"front": 5}, {"front": 0.001})
    assert judge(trial, first=first, now=later, rules=RULES).judgment is Judgment.COMMIT
    gone = replace(later, max_fps={})
    assert judge(trial, first=first, now=gone, rules=RULES).judgment is Judgment.COMMIT


# --- what is offered ---


def test_what_it_went_back_from_is_refused_until_it_is_offered_with_a_higher_attempt(device: Device):
    device.keep(3)
    device.take(4)
    device.is_linked = False
    device.tick(301)
    device.is_linked = True
    device.take(4)
    assert device.state == ("returned", 3)
    device.take(4, attempt=1)
    assert device.state == ("trial", 4)
    device.tick(31)
    assert device.state == ("committed", 4)
    assert device.keeper.pointer.returned is None


def test_a_newer_one_needs_no_higher_attempt(device: Device):
    device.take(4)
    device.is_linked = False
    device.tick(301)
    device.is_linked = True
    device.keep(5)
    assert device.state == ("committed", 5)


def test_a_higher_attempt_that_comes_before_the_trial_began_is_the_one_that_is_tried(device: Device):
    device.keeper.offer(offer_of(3))
    device.keeper.fetch_pending(device.fetch)
    device.take(3, attempt=1)
    assert device.keeper.pointer.trial.offer.attempt == 1


def test_the_same_one_again_changes_nothing(device: Device):
    device.keep(3)
    before = device.disk.faults.log.copy()
    device.take(3)
    device.keeper.offer(None)
    assert (device.disk.faults.log, device.state) == (before, ("committed", 3))
    assert len(device.fetched) == 1


def test_a_newer_one_takes_the_place_of_a_trial_and_the_good_one_stays(device: Device):
    device.keep(3)
    device.take(4)
    device.take(5)
    assert device.state == ("trial", 5)
    device.is_linked = False
    device.tick(301)
    assert device.state == ("returned", 3)


def test_when_the_server_names_the_good_one_again_the_trial_ends_without_a_block(device: Device):
    device.keep(3)
    device.take(4)
    device.keeper.offer(offer_of(3))
    assert (device.state, device.perf_s) == (("committed", 3), 3.0)
    device.take(4)
    assert device.state == ("trial", 4)


def test_what_is_no_longer_offered_is_not_fetched(device: Device):
    device.keep(3)
    device.keeper.offer(offer_of(4))
    device.keeper.offer(offer_of(3))
    device.keeper.fetch_pending(device.fetch)
    device.tick()
    assert device.state == ("committed", 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (document(3, group="yard"), "wrong-group"),
        (document(3, tenant="t1"), "wrong-group"),
        (document(4), "wrong-group"),
        (b'{"schema":"configuration.9"}', "invalid"),
    ],
)
def test_a_file_that_is_not_the_one_is_refused_and_nothing_changes(device: Device, data: bytes, reason: str):
    offer = offer_of(3, data=data)
    device.files[offer.url] = data
    device.keeper.offer(offer)
    device.keeper.fetch_pending(device.fetch)
    device.tick()
    assert (device.state, device.keeper.pointer.returned.reason) == (("returned", 0), reason)


def test_bytes_that_a_cache_spoiled_block_no_revision_and_are_fetched_again(device: Device):
    offer = offer_of(3)
    good, device.files[offer.url] = device.files[offer.url], b"not what was signed"
    device.keeper.offer(offer)
    device.keeper.fetch_pending(device.fetch)
    device.tick()
    assert device.keeper.pointer.returned is None
    assert "signed were" in device.keeper.trouble
    device.files[offer.url] = good
    device.keeper.fetch_pending(device.fetch)
    device.tick()
    assert (device.state, device.keeper.trouble) == (("trial", 3), "")


def test_a_link_that_is_down_is_tried_again_later_and_longer(device: Device):
    device.is_linked = False
    device.keeper.offer(offer_of(3))
    pauses = [device.keeper.fetch_pending(device.fetch) for _ in range(30)]
    assert max(pauses) > 60
    assert device.keeper.trouble == "no link"
    device.is_linked = True
    device.keeper.fetch_pending(device.fetch)
    device.tick()
    assert (device.state, device.keeper.trouble) == (("trial", 3), "")


@pytest.mark.parametrize("error", [ConflictError("There is no blob."), ForbiddenError("The device is revoked.")])
def test_a_server_that_refuses_the_file_is_asked_again_later_and_the_reason_is_told(device: Device, error: MooringError):
    def refuse(_offer: ConfigurationOffer) -> bytes:
        raise error

    device.keeper.offer(offer_of(3))
    pauses = [device.keeper.fetch_pending(refuse) for _ in range(30)]
    assert max(pauses) > 60
    assert (device.keeper.trouble, device.keeper.pointer.returned) == (str(error), None)


def test_a_server_that_says_when_is_asked_then(device: Device):
    def busy(_offer: ConfigurationOffer) -> bytes:
        raise UnavailableError("busy", retry_after_s=120)

    device.keeper.offer(offer_of(3))
    assert device.keeper.fetch_pending(busy) >= 120


# --- restarts ---


def test_a_trial_goes_on_after_a_restart_from_its_beginning(device: Device):
    device.keep(3)
    device.take(4)
    device.tick(29)
    device.restart()
    assert (device.state, device.perf_s) == (("trial", 4), 4.0)
    device.tick()
    device.tick(29)
    assert device.state == ("trial", 4)
    device.tick(2)
    assert device.state == ("committed", 4)


def test_a_configuration_under_which_the_agent_keeps_dying_goes_back(device: Device):
    device.keep(3)
    device.take(4)
    for _ in range(MAX_STARTS - 1):
        device.restart()
        assert device.state == ("trial", 4)
    device.restart()
    assert (device.state, device.keeper.pointer.returned.reason) == (("returned", 3), "restarts")


def test_a_device_that_was_offline_before_a_restart_still_has_to_find_its_link(device: Device):
    device.keep(3)
    device.take(4)
    device.is_linked = False
    device.restart()
    device.tick()
    device.tick(301)
    assert device.state == ("returned", 3)


def test_what_was_offered_is_remembered(device: Device):
    device.keeper.offer(offer_of(3))
    device.restart()
    device.keeper.fetch_pending(device.fetch)
    device.tick()
    assert device.state == ("trial", 3)


def test_a_damaged_pointer_falls_back_to_the_one_before(device: Device):
    device.keep(3)
    device.keep(4)
    device.disk.damage(FOLDER / "pointer")
    device.restart()
    assert device.state == ("trial", 4)  # as the pointer before says: it is judged once more
    assert not device.keeper.is_lost


def test_the_pointer_before_keeps_its_files_through_starts_that_move_nothing(device: Device):
    device.keep(3)
    device.take(4)
    trial = f"{offer_of(4).sha256[7:]}.json"
    device.is_linked = False
    device.tick(301)  # back at 3; the pointer before has 4 on trial
    for _ in range(2):
        device.restart()
        assert trial in {path.name for path in device.disk.paths()}
    device.disk.damage(FOLDER / "pointer")
    device.restart()
    assert device.state == ("trial", 4)


def test_the_file_of_a_configuration_that_is_refused_goes(device: Device):
    device.keep(3)
    wrong = document(4, group="yard")
    offer = offer_of(4, data=wrong)
    device.files[offer.url] = wrong
    device.keeper.offer(offer)
    device.disk.put(FOLDER / f"{offer.sha256[7:]}.json", wrong)  # an agent that took more kept it
    device.keeper.fetch_pending(device.fetch)
    assert device.state == ("returned", 3)
    assert {path.name for path in device.disk.paths()} == {f"{offer_of(3).sha256[7:]}.json", "pointer", "pointer.prev"}


def test_when_nothing_can_be_read_it_says_so_and_the_server_is_asked_anew(device: Device):
    device.keep(3)
    for name in ("pointer", "pointer.prev"):
        device.disk.damage(FOLDER / name)
    device.restart()
    assert (device.state, device.keeper.is_lost) == (("none", 0), True)
    device.keep(3)
    assert device.state == ("committed", 3)


def test_a_damaged_file_is_fetched_again(device: Device):
    device.keep(3)
    device.disk.damage(FOLDER / f"{offer_of(3).sha256[7:]}.json")
    device.restart()
    assert device.perf_s is None
    device.keeper.fetch_pending(device.fetch)
    device.tick()
    assert device.perf_s == 3.0


def test_a_new_device_has_none_and_nothing_is_lost(device: Device):
    assert (device.state, device.keeper.is_lost, device.disk.paths()) == (("none", 0), False, [])


# --- every cut and every error ---


def life(device: Device) -> None:
    """3 is kept, 4 goes back, 4 is tried again and kept, 5 is overtaken by 6."""
    device.keep(3)
    device.take(4)
    device.is_linked = False
    device.tick(301)
    device.is_linked = True
    device.keep(4, attempt=1)
    device.take(5)
    device.keep(6)


def effects_of_a_life() -> int:
    device = Device()
    life(device)
    return len(device.disk.faults.log)


def check_never_lost(device: Device, kept: set[int]) -> None:
    """What was said to be kept is there, or a newer one is; what is in force is what the pointer says."""
    pointer = device.keeper.pointer
    assert device.perf_s == (float(pointer.in_force.rev) if pointer.in_force else None)
    if kept:
        assert pointer.committed is not None
        assert pointer.committed.rev >= max(kept)
        assert pointer.floors["doors"] >= max(kept)


def settle(device: Device, *, attempt: int = 2) -> None:
    """The server names the newest one with a good link until it is kept."""
    device.is_linked = True
    for _ in range(3):
        device.keeper.offer(offer_of(7, attempt=attempt))
        device.keeper.fetch_pending(device.fetch)
        device.tick()
        device.tick(31)
    assert (device.state, device.perf_s) == (("committed", 7), 7.0)


class Watching(Device):
    """Notes what was committed once the commit returned."""

    def __init__(self) -> None:
        self.kept: set[int] = set()
        super().__init__()

    def tick(self, seconds: float = 0.0, *, frames: int = 1) -> bool:
        changed = super().tick(seconds, frames=frames)
        if self.keeper.pointer.trial is None and self.keeper.pointer.committed is not None:
            self.kept.add(self.keeper.pointer.committed.rev)
        return changed


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
def test_cut_at_every_effect_it_always_comes_back_to_a_whole_configuration(fault: Fault):
    for number in range(effects_of_a_life()):
        device = Watching()
        device.disk.faults.plan[number] = fault
        with pytest.raises(PowerCut):
            life(device)
        device.disk.faults.plan.clear()
        device.restart()
        check_never_lost(device, device.kept)
        settle(device)


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE, Fault.ERROR_AFTER])
def test_an_error_at_every_effect_loses_nothing_and_the_next_try_succeeds(fault: Fault):
    for number in range(effects_of_a_life()):
        device = Watching()
        device.disk.faults.plan[number] = fault
        for _ in range(3):
            try:
                life(device)
            except DeviceError:
                continue
            break
        check_never_lost(device, device.kept)
        device.restart()
        check_never_lost(device, device.kept)
        settle(device)


def test_two_cuts_in_one_life_lose_nothing():
    effects = effects_of_a_life()
    chance = random.Random(5)  # noqa: S311 - a test's dice
    for _ in range(150):
        device = Watching()
        device.disk.faults.plan = {
            number: chance.choice([Fault.CUT_BEFORE, Fault.CUT_AFTER]) for number in chance.sample(range(effects), 2)
        }
        for _ in range(3):
            try:
                life(device)
            except PowerCut:
                while True:  # the second cut may come while it starts
                    try:
                        device.restart()
                    except PowerCut:
                        continue
                    break
                check_never_lost(device, device.kept)
                continue
            break
        settle(device, attempt=9)
