"""What people are told of keys and clock, and that asking again is cheap."""

from datetime import timedelta

import pytest

from fleet.registry.clock_guard import ClockGuard
from fleet.registry.key_status import KeyStatus
from fleet.registry.online import OnlineKeys
from fleet.registry.signing import KeyName, TrustFolders, create_trust
from protocol.clock import SystemClock


@pytest.fixture
def folders(tmp_path) -> TrustFolders:
    create_trust(tmp_path, demo=False, now=SystemClock().now(), passphrase="of the offline keys")
    return TrustFolders(tmp_path)


def status_of(folders: TrustFolders) -> KeyStatus:
    return KeyStatus(folders, OnlineKeys(folders), ClockGuard(folders.clock_file))


def codes(status: KeyStatus, now=None) -> list[tuple[str, str]]:
    return [(one.code, one.severity) for one in status.alarms(now or SystemClock().now())]


def test_all_is_well_after_a_first_start(folders):
    assert codes(status_of(folders)) == []


@pytest.mark.parametrize(
    ("days_left", "severity"), [(61, ""), (60, "warning"), (15, "warning"), (14, "error"), (0, "error"), (-3, "error")]
)
def test_each_offline_role_that_ends_soon_is_named_with_the_command_that_renews_it(folders, days_left, severity):
    now = SystemClock().now() + timedelta(days=365 - days_left - 1, hours=12)
    found = KeyStatus(folders).alarms(now)
    assert {one.severity for one in found} == ({severity} if severity else set())
    assert [one.text.split()[3] for one in found] == (["image-root", "image-targets", "director-root"] if severity else [])
    assert all("mooring keys renew --role " in one.advice for one in found)


def test_a_missing_online_key_is_told_until_it_is_back(folders):
    status, path = status_of(folders), folders.key_file(KeyName.DIRECTOR_TARGETS)
    assert codes(status) == []
    path.rename(folders.data_dir / "away.pem")
    assert codes(status) == [("online-key-missing", "error")]
    assert "mooring keys rotate --online --repository director" in status.alarms(SystemClock().now())[0].advice
    (folders.data_dir / "away.pem").rename(path)
    assert codes(status) == []


def test_a_clock_that_jumped_is_told_and_looking_does_not_confirm_it(folders):
    status, now = status_of(folders), SystemClock().now()
    ClockGuard(folders.clock_file).confirm(now - timedelta(days=2))
    for _ in range(2):
        assert codes(status, now) == [("clock-not-believed", "error")]
    ClockGuard(folders.clock_file).confirm(now)
    assert codes(status, now) == []


def test_metadata_are_read_again_only_when_their_folder_changed(folders):
    status, now = status_of(folders), SystemClock().now()
    before = status.rows(now)
    (folders.image / "timestamp.json").write_text("not read again")
    assert status.rows(now) == before
    (folders.image / "new").touch()
    assert codes(status) == [("keys-unreadable", "error")]
