"""mooring keys as people type it: makes, shows, signs and publishes; says what to do when it cannot."""

import io
import json
import stat
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.audit import list_entries
from fleet.cli import run
from fleet.cli.keys import list_status
from fleet.db import Database
from fleet.registry.signing import TrustFolders, create_trust, is_encrypted, load_key
from protocol.clock import SystemClock
from protocol.ids import TenantId

PASSPHRASE = "correct horse battery"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def keys(tmp_path, monkeypatch, capsys):
    """Runs `mooring keys …` in a folder of its own, with the passphrase in the environment; none may show in what is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOORING_KEY_PASSPHRASE", PASSPHRASE)

    def call(*arguments: object, ok: bool = True) -> Done:
        capsys.readouterr()
        code = run(["keys", *map(str, arguments)])
        said = capsys.readouterr()
        assert PASSPHRASE not in said.out + said.err
        assert (code == 0) is ok, said.err
        return Done(code, said.out, said.err)

    return call


@pytest.fixture
def folders(tmp_path) -> TrustFolders:
    """A server's folder after its first start; its offline keys have the same passphrase."""
    create_trust(tmp_path / "data", demo=False, now=SystemClock().now(), passphrase=PASSPHRASE)
    return TrustFolders(tmp_path / "data")


def actions(folders: TrustFolders) -> list[str]:
    database = Database(f"sqlite:///{folders.data_dir / 'fleet.db'}")
    with database.reading() as tx:
        found = [entry.action for entry in list_entries(tx, TenantId("t0"))]
    database.dispose()
    return found


def test_a_new_key_is_encrypted_private_and_named_by_its_id(keys, tmp_path):
    done = keys("new", "--role", "image-root", "-o", "anna.pem")
    path = tmp_path / "anna.pem"
    assert is_encrypted(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert done.out.strip() == load_key(path, passphrase=PASSPHRASE).public_key.keyid
    assert keys("new", "--role", "image-root", "-o", "anna.pem", ok=False).code == 5
    document = json.loads(keys("new", "--role", "model.digits", "--json").out)
    assert document["private"] == "model.digits.pem"
    assert keys("new", "--role", "nonsense", ok=False).code == 1


def test_a_passphrase_is_asked_for_twice_when_nothing_gives_it(keys, tmp_path, monkeypatch):
    monkeypatch.delenv("MOORING_KEY_PASSPHRASE")
    asked = []
    monkeypatch.setattr("typer.prompt", lambda text, **options: asked.append((text, options)) or "typed")
    keys("new", "--role", "image-root", "-o", "bert.pem")
    assert asked[0][1]["confirmation_prompt"]
    assert asked[0][1]["hide_input"]
    assert load_key(tmp_path / "bert.pem", passphrase="typed")


def test_a_ceremony_on_the_command_line_leaves_its_audit_entries(keys, folders):
    for name in ("anna", "bert"):
        keys("new", "--role", "image-root", "-o", f"{name}.pem")
    data = ("--data", folders.data_dir)
    keys("root", "init", "--repository", "image", "--threshold", 2, "anna.pub", "bert.pub", *data, "-o", "r.json", "--reason", "two heads")
    shown = keys("show", "r.json").out
    assert "Keys of root: 1 of 1 -> 2 of 2 must sign." in shown
    assert "two heads" in shown
    keys("root", "sign", "r.json", "--key", folders.offline / "image-root.pem", "--bootstrap", folders.image_bootstrap, "--yes")
    refused = keys("root", "sign", "r.json", "--key", "anna.pem", "--bootstrap", "sha256:" + "0" * 64, "--yes", ok=False)
    assert "Do not sign" in refused.err
    keys("sign", "r.json", "--key", "anna.pem", "--yes")
    missing = keys("publish", "r.json", *data, "--yes", "--reason", "x", ok=False)
    assert missing.code == 5
    keys("sign", "r.json", "--key", "bert.pem", "--yes")
    done = json.loads(keys("publish", "r.json", *data, "--yes", "--reason", "x", "--json").out)
    assert done["versions"] == {"root": 2, "targets": 2}
    rows = {row["role"]: row for row in json.loads(keys("status", *data, "--json").out)}
    assert (rows["image-root"]["threshold"], len(rows["image-root"]["keys"])) == (2, 2)
    assert {key["holder"] for key in rows["image-root"]["keys"]} == {"anna", "bert"}
    assert rows["image-root"]["note"] == "kept elsewhere"
    assert "encrypted" in rows["director-root"]["note"]
    assert {"keys.requested", "keys.published"} <= set(actions(folders))


def test_a_line_key_signs_only_under_a_first_root_that_its_holder_knows(keys, folders):
    """A chain of roots that somebody made up could hold anything under the name of the line."""
    data = ("--data", folders.data_dir)
    keys("line", "digits", *data)
    keys("new", "--role", "model.digits", "-o", "new.pem")
    keys("revoke", "--role", "model.digits", "--new", "new.pub", *data, "-o", "r.json")
    before = Path("r.json").read_bytes()
    assert "--bootstrap DIGEST" in keys("sign", "r.json", "--key", "new.pem", "--yes", ok=False).err
    assert Path("r.json").read_bytes() == before
    keys("sign", "r.json", "--key", "new.pem", "--bootstrap", folders.image_bootstrap, "--yes")
    assert Path("new.first-root").read_text().startswith("sha256:")
    keys("sign", "r.json", "--key", "new.pem", "--yes")


def test_a_key_remembers_the_first_root_that_it_signed_under(keys, folders, tmp_path):
    keys("renew", "--role", "image-root", "--data", folders.data_dir, "-o", "r.json")
    key = folders.offline / "image-root.pem"
    keys("sign", "r.json", "--key", key, "--yes")
    create_trust(tmp_path / "other", demo=False, now=SystemClock().now(), passphrase=PASSPHRASE)
    keys("renew", "--role", "image-root", "--data", tmp_path / "other", "-o", "foreign.json")
    assert "Do not sign" in keys("sign", "foreign.json", "--key", key, "--yes", ok=False).err


def test_signing_asks_before_it_signs(keys, folders, monkeypatch):
    keys("renew", "--role", "image-root", "--data", folders.data_dir, "-o", "r.json")
    before = Path("r.json").read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody answers
    assert keys("sign", "r.json", "--key", folders.offline / "image-root.pem", ok=False).code == 130
    assert Path("r.json").read_bytes() == before


def test_lines_firmware_and_policy_are_opened_with_the_offline_keys(keys, folders):
    data = ("--data", folders.data_dir)
    keys("line", "digits", *data)
    keys("firmware", "cam", *data)
    keys("policy", *data)
    roles = {row["role"] for row in list_status(folders.data_dir)}
    assert {"model.digits", "firmware.cam", "policy"} <= roles
    assert keys("line", "digits", *data, ok=False).code == 5
    keys("new", "--role", "model.other", "-o", "other.pem")
    keys("line", "other", "--public-key", "other.pub", "--request", "r.json", *data)
    assert "Opens model.other" in keys("show", "r.json").out


def test_online_keys_made_anew_lie_in_the_servers_folder_unencrypted_for_its_owner_only(keys, folders):
    keys("rotate", "--online", "--repository", "director", "--data", folders.data_dir, "-o", "r.json")
    made = sorted(folders.online.glob("director-*-*.pem"))
    assert len(made) == 3
    assert not any(is_encrypted(path) or path.stat().st_mode & 0o077 for path in made)
    single = json.loads(keys("new", "--role", "image-timestamp", "--data", folders.data_dir, "--json").out)
    assert Path(single["private"]).parent == folders.online
    assert keys("rotate", "--role", "image-root", "--data", folders.data_dir, ok=False).code == 1


@pytest.mark.parametrize(("days_left", "alarm"), [(61, ""), (59, "soon"), (13, "urgent"), (-1, "urgent")])
def test_status_warns_at_sixty_and_alarms_at_fourteen_days(folders, days_left, alarm):
    now = SystemClock().now() + timedelta(days=365 - days_left - 1, hours=12)
    rows = {row["role"]: row for row in list_status(folders.data_dir, now=now)}
    assert rows["image-root"]["alarm"] == alarm
    assert rows["image-timestamp"]["alarm"] == "", "the server renews it by itself"
    assert ("sign again" in rows["image-root"]["note"]) == bool(alarm)


def test_a_holder_who_signs_two_roles_is_replaced_in_both_and_unused_keys_are_named(keys, folders):
    data = ("--data", folders.data_dir)
    keys("new", "--role", "image-root", "-o", "anna.pem")
    keys("root", "init", "--repository", "image", "--threshold", 1, "anna.pub", *data, "-o", "r.json")
    keys("sign", "r.json", "--key", folders.offline / "image-root.pem", "--yes")
    keys("sign", "r.json", "--key", "anna.pem", "--yes")
    keys("publish", "r.json", *data, "--yes", "--reason", "x")
    said = keys("status", *data).err
    assert "shred -u" in said
    assert {str(folders.offline / "image-root.pem"), str(folders.offline / "image-targets.pem")} <= set(said.split())
    assert str(folders.offline / "director-root.pem") not in said
    keys("new", "--role", "image-root", "-o", "bert.pem")
    anna = next(row for row in list_status(folders.data_dir) if row["role"] == "image-root")["keys"][0]["id"]
    roles = ("--role", "image-root", "--role", "image-targets")
    keys("rotate", *roles, "--old", anna[:12], "--new", "bert.pub", *data, "-o", "r.json")
    for name in ("anna", "bert"):
        keys("sign", "r.json", "--key", f"{name}.pem", "--yes")
    keys("publish", "r.json", *data, "--yes", "--reason", "x")
    held = {row["role"]: [key["holder"] for key in row["keys"]] for row in list_status(folders.data_dir)}
    assert held["image-root"] == held["image-targets"] == ["bert"]
    keys("renew", *roles, *data, "-o", "r.json")
    keys("sign", "r.json", "--key", "bert.pem", "--yes")
    done = json.loads(keys("publish", "r.json", *data, "--yes", "--reason", "x", "--json").out)
    assert done["versions"] == {"root": 4, "targets": 4}


def test_status_says_which_online_key_is_missing(folders):
    folders.key_file("director-targets").unlink()
    rows = {row["role"]: row for row in list_status(folders.data_dir)}
    assert "cannot sign" in rows["director-targets"]["note"]


def test_total_loss_is_explained_before_it_is_confirmed(keys, folders):
    before = folders.image_bootstrap.read_bytes()
    done = keys("recover", "--repository", "image", "--data", folders.data_dir, "--yes", "--reason", "stolen")
    assert "NO device installs anything" in done.err
    assert done.out.startswith("sha256:")
    assert folders.image_bootstrap.read_bytes() != before
    assert actions(folders)[0] == "keys.started-again"
    words = [word for word in done.err.split() if word.count("-") == 4 and "/" not in word]
    assert load_key(folders.offline / "image-root.pem", passphrase=words[0])


def test_the_clock_is_confirmed_with_a_reason(keys, folders):
    keys("clock", "--data", folders.data_dir, "--yes", "--reason", "was off for a week")
    assert "clock.confirmed" in actions(folders)


def test_a_folder_without_keys_is_named(keys, tmp_path):
    assert keys("status", "--data", tmp_path, ok=False).code == 3
    assert keys("renew", "--role", "image-root", "--data", tmp_path / "none", ok=False).code == 3
    assert not (tmp_path / "none").exists(), "nothing is made by asking"
