"""Manners on a simulated device: windows for downloads and for activation, consent from site and console, settings replaced meanwhile."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from simulators.clock import FakeClock
from simulators.device import LINE, DeviceSimulator, make_release

from agent.config import UpdateConfig
from agent.update.policy import MAX_CONSENTS, Consents, Permission, UpdatePolicy, Wait
from agent.update.site_time import FRESH_S, SiteTime, kernel_is_synchronized
from protocol.clock import to_unix_ms
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import LineName

OLD, NEW, NEXT = make_release("1.0", 1), make_release("1.1", 2), make_release("1.2", 3)
#: The simulated clock starts on Sunday, 1 November 2026, at 12:00 UTC.
NIGHT = {"from": "22:00", "to": "04:00"}


class World:
    """A device with the old release and these settings."""

    def __init__(self, **settings: object) -> None:
        self.device = DeviceSimulator()
        self.device.installed(OLD)
        self.time: datetime | None = None
        self.policy = UpdatePolicy(UpdateConfig(**settings), Consents(self.device.store), site_time=lambda now: self.time or now)
        self.device.policy = self.policy
        self.device.server.publish(NEW, NEXT)
        self.device.server.bytes_sent = 0
        self.device.server.requests.clear()

    def offer(self, release=NEW, **order: object) -> None:
        self.device.boot()
        self.device.machine.offer(release.assignment(**order))

    def drive(self, rounds: int = 20) -> None:
        for _ in range(rounds):
            self.device.clock.advance(min(self.device.machine.run_pending(), 30.0))

    def until(self, hour: int) -> None:
        """Let the clock come to that hour, in steps of half a minute."""
        while self.device.clock.now().hour != hour:
            self.device.clock.advance(min(self.device.machine.run_pending(), 30.0))

    @property
    def row(self):
        return self.device.store.updates[LINE]

    @property
    def state(self):
        return self.device.machine.state_of(LINE)


# --- windows ---


def test_nothing_is_fetched_before_the_window_for_downloads_opens():
    world = World(download_windows=[NIGHT])
    world.offer()
    world.drive()
    assert (world.state.state, world.state.waits_for) == ("downloading", "window")
    assert world.state.until == to_unix_ms(datetime(2026, 11, 1, 22, tzinfo=UTC))
    assert "2026-11-01 22:00 UTC" in world.state.text
    assert world.state.reason == ""
    assert world.device.server.requests == []
    world.until(22)
    world.drive()
    assert world.row.state == "succeeded"


def test_a_download_that_outlasts_its_window_stops_and_goes_on_in_the_next():
    world = World(download_windows=[{"from": "12:00", "to": "13:00"}])
    big = make_release("1.1", 2, padding=60_000)
    world.device.server.publish(big)

    def second_per_piece() -> str:
        if world.device.server.bytes_sent:
            world.device.clock.advance(5.0)
        return world.row.state

    world.offer(big)
    world.device.faults.where = second_per_piece
    world.device.machine.run_pending()
    sent = world.device.server.bytes_sent
    assert 0 < sent < 60_000
    world.drive(3)
    assert (world.state.state, world.state.waits_for) == ("downloading", "window")
    assert world.state.until == to_unix_ms(datetime(2026, 11, 2, 12, tzinfo=UTC))
    assert world.device.server.bytes_sent == sent
    world.device.faults.where = lambda: ""
    world.until(12)
    world.drive()
    assert world.row.state == "succeeded"
    assert world.device.server.bytes_sent == sum(map(len, big.files.values()))


def test_an_installed_release_waits_for_the_window_for_activation_while_the_old_one_infers():
    world = World(activation_windows=[{"days": ["mon"], **NIGHT}])
    world.offer()
    world.drive(200)
    assert (world.state.state, world.state.waits_for) == ("waiting", "window")
    assert world.state.until == to_unix_ms(datetime(2026, 11, 2, 22, tzinfo=UTC))
    assert world.device.runs(OLD)
    for _ in range(40):
        world.device.restart()
        world.device.machine.run_pending()
    assert world.row.state == "waiting"
    world.device.clock.advance(days=1)
    world.until(22)
    world.drive()
    assert world.row.state == "succeeded"


def test_an_open_probe_is_not_cut_by_the_end_of_its_window():
    world = World(activation_windows=[{"from": "12:00", "to": "12:05"}])
    world.device.rules = replace(world.device.rules, min_seconds=1200.0, max_seconds=3600.0)
    world.offer()
    world.drive(5)
    assert world.row.state == "probing"
    world.until(13)
    world.drive()
    assert world.row.state == "succeeded"


def test_windows_of_another_zone_open_by_its_wall_clock():
    world = World(activation_windows=[{"from": "13:30", "to": "14:00"}], time_zone="Europe/Berlin")
    world.offer()
    world.drive(5)
    assert world.state.until == to_unix_ms(datetime(2026, 11, 1, 12, 30, tzinfo=UTC))
    assert "13:30 Europe/Berlin" in world.state.text


def test_settings_replaced_while_it_waits_open_the_window():
    world = World(activation_windows=[NIGHT])
    world.offer()
    world.drive()
    assert world.row.state == "waiting"
    world.policy.replace(UpdateConfig())
    world.drive()
    assert world.row.state == "succeeded"


def test_without_the_right_time_no_window_is_judged_and_the_device_says_what_it_waits_for():
    world = World(activation_windows=[NIGHT])
    world.policy = UpdatePolicy(world.policy.config, Consents(world.device.store), site_time=lambda _now: world.time)
    world.device.policy = world.policy
    world.offer()
    world.drive()
    assert (world.state.state, world.state.waits_for, world.state.until) == ("waiting", "clock", None)
    world.time = datetime(2026, 11, 1, 23, tzinfo=UTC)
    world.drive()
    assert world.row.state == "succeeded"


def test_a_window_that_never_opens_soon_is_said_so():
    gate = UpdatePolicy(UpdateConfig(download_windows=[NIGHT]), Consents(DeviceSimulator().store), site_time=lambda now: now).may_download(
        NEW.offer(), datetime(2026, 11, 1, 12, tzinfo=UTC)
    )
    assert (gate.permission, gate.wait) == (Permission.CLOSED, Wait.WINDOW)


# --- consent ---


def test_a_release_waits_for_consent_and_goes_on_with_a_yes():
    world = World(consent="site")
    world.offer()
    world.drive()
    assert (world.state.state, world.state.waits_for) == ("waiting", "consent")
    assert "mooring-agent consent digits --yes" in world.state.text
    assert world.device.machine.consent(LINE, is_given=True).release == "1.1"
    world.drive()
    assert world.row.state == "succeeded"


def test_a_yes_that_is_early_is_remembered_across_a_power_cut():
    world = World(consent="site", download_windows=[NIGHT])
    world.offer()
    world.drive()
    world.device.machine.consent(LINE, is_given=True)
    world.device.restart()
    world.until(22)
    world.drive()
    assert world.row.state == "succeeded"


@pytest.mark.parametrize("settings", [{"consent": "site"}, {"consent": "none", "activation_windows": [NIGHT]}])
def test_a_no_ends_the_update_without_blame_and_the_next_assignment_asks_anew(settings):
    world = World(**settings)
    world.offer()
    world.drive()
    assert world.row.state == "waiting"
    world.device.machine.consent(LINE, is_given=False)
    world.drive()
    assert (world.row.state, world.row.reason) == ("failed", "consent")
    assert [step.reason for step in world.device.store.steps][-1] == "consent"
    assert world.device.machine.blocked() == []
    assert world.device.runs(OLD)
    world.device.machine.offer(NEW.assignment())
    world.drive()
    assert world.row.state == "failed"
    world.device.machine.offer(NEW.assignment(assignment="as-2"))
    world.drive()
    assert world.row.state == "waiting"


def test_a_no_during_the_download_ends_it_at_once():
    world = World(download_windows=[NIGHT])
    world.offer()
    world.drive()
    world.device.machine.consent(LINE, is_given=False)
    world.drive()
    assert (world.row.state, world.row.reason) == ("failed", "consent")
    assert world.device.server.requests == []


def test_a_refusal_that_a_power_cut_kept_from_being_acted_on_is_acted_on_after_it():
    for settings in ({"consent": "site"}, {"download_windows": [NIGHT]}):
        world = World(**settings)
        world.offer()
        world.drive()
        world.policy.give_consent(LINE, "as-1", is_given=False)
        world.device.restart()
        world.drive()
        assert (world.row.state, world.row.reason) == ("failed", "consent")


def test_consent_is_refused_where_there_is_nothing_to_decide():
    world = World(consent="site")
    with pytest.raises(NotFoundError, match="digits"):
        world.device.machine.consent(LINE, is_given=True)
    with pytest.raises(NotFoundError):
        world.device.machine.consent(LineName("unknown"), is_given=True)
    world.policy.replace(UpdateConfig())
    world.offer()
    while world.row.state != "probing":
        world.device.clock.advance(world.device.machine.run_pending())
    with pytest.raises(ConflictError, match="probing"):
        world.device.machine.consent(LINE, is_given=False)


def test_the_consoles_word_may_come_before_the_assignment_and_counts_for_no_other():
    world = World(consent="site")
    world.device.boot()
    world.device.machine.hear_consent(LINE, "as-1", is_given=True)
    world.offer()
    world.drive()
    assert world.row.state == "succeeded"
    world.device.machine.offer(NEXT.assignment(assignment="as-2"))
    world.drive()
    assert (world.row.state, world.state.waits_for) == ("waiting", "consent")


def test_the_consoles_no_ends_an_update_that_it_said_yes_to_before_and_may_be_heard_again():
    world = World(consent="site", activation_windows=[NIGHT])
    world.offer()
    for given in (True, True, False, False):
        world.device.machine.hear_consent(LINE, "as-1", is_given=given)
        world.drive()
    assert (world.row.state, world.row.reason) == ("failed", "consent")
    assert "console" in world.row.text


def test_the_consoles_yes_does_not_undo_what_was_refused_on_site():
    world = World(consent="site")
    world.offer()
    world.drive()
    world.device.machine.consent(LINE, is_given=False)
    world.device.machine.hear_consent(LINE, "as-1", is_given=True)
    world.drive()
    assert (world.row.state, world.row.reason) == ("failed", "consent")
    assert world.policy.said(LINE, "as-1") is False


def test_a_word_about_something_else_changes_nothing():
    world = World(consent="site")
    world.offer()
    world.drive()
    world.device.machine.hear_consent(LINE, "as-0", is_given=False)
    world.device.machine.hear_consent(LineName("other"), "as-1", is_given=False)
    world.drive()
    assert world.row.state == "waiting"


def test_what_was_said_is_kept_for_the_latest_assignments_only():
    store = DeviceSimulator().store
    consents = Consents(store)
    for number in range(MAX_CONSENTS + 2):
        consents.give(LINE, f"as-{number}", is_given=number % 2 == 0)
    assert [consents.of(LINE, f"as-{number}") for number in (0, 1, 2, MAX_CONSENTS + 1)] == [None, None, True, False]
    store.values[f"update.consent.{LINE}"] = "[1]"
    assert consents.of(LINE, "as-2") is None


# --- the time that windows go by ---


def site_time(clock: FakeClock, *, is_synchronized: bool, floor: datetime) -> SiteTime:
    return SiteTime(clock, floor=lambda: floor, is_synchronized=lambda: is_synchronized)


def test_a_clock_that_is_kept_right_is_believed():
    clock = FakeClock()
    time = site_time(clock, is_synchronized=True, floor=clock.now() - timedelta(days=1))
    assert time(clock.now()) == clock.now()
    assert not time.wants_signed


def test_a_clock_behind_what_is_known_gives_way_to_the_signed_time_carried_on():
    clock, signed = FakeClock(), datetime(2027, 1, 1, tzinfo=UTC)
    time = site_time(clock, is_synchronized=True, floor=signed)
    assert time(clock.now()) is None
    assert time.wants_signed
    time.hear(signed)
    clock.advance(90)
    assert time(clock.now()) == signed + timedelta(seconds=90)
    assert not time.wants_signed
    clock.advance(FRESH_S)
    assert time.wants_signed


def test_a_possible_clock_that_nobody_keeps_right_is_used_only_while_no_signed_time_is_known():
    clock, signed = FakeClock(), datetime(2026, 12, 1, tzinfo=UTC)
    time = site_time(clock, is_synchronized=False, floor=clock.now() - timedelta(days=1))
    assert time(clock.now()) == clock.now()
    assert time.wants_signed
    time.hear(signed)
    assert time(clock.now()) == signed


def test_the_kernel_answers_whether_its_clock_is_kept_right():
    assert kernel_is_synchronized() in {True, False}
