"""mooring config against a running server: edit, look, release, approve, sign, go back; and what it says when something is wrong."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from console_site import ADMIN, PASSWORD, ConsoleSite, running_site

import fleet.cli
from fleet.cli import credentials
from fleet.registry import ceremony
from fleet.registry.signing import KeyName, load_key, make_key, save_key
from protocol.canonical import digest_of
from protocol.ids import DEFAULT_TENANT, DeviceId


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("server")) as site:
        site.person("ola", "operator")
        site.person("maria", "approver")
        site.enroll("cam-1")
        yield site


@pytest.fixture
def run(site: ConsoleSite, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def command(*arguments: str, user: str = "ola", **environment: str) -> Result:
        home = tmp_path / user
        for name, value in {"XDG_CONFIG_HOME": str(home), "MOORING_SERVER": site.url, "MOORING_TOKEN": "", **environment}.items():
            monkeypatch.setenv(name, value)
        if not credentials.config_file().exists():
            monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
            assert fleet.cli.run(["login", "--user", user, "--password-stdin"]) == 0
            capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code = fleet.cli.run(list(arguments))
        return Result(code, *capsys.readouterr())

    return command


Run = Callable[..., Result]
WHY = ("--yes", "--reason", "test")


def publish(run: Run, site: ConsoleSite, rev: int) -> None:
    approval = next(one for one in run("config", "history", "--json").document if one["rev"] == rev)["approval"]
    assert run("approval", "decide", approval, "--approve", "--reason", "read", user="maria").code == 0
    key = site.services.registry.folders.role_key_file("policy")
    done = run("config", "sign", str(rev), "--key", str(key), user="maria")
    assert done.code == 0, done.err
    assert "get it with their next poll" in done.err


def test_from_a_value_to_the_devices_and_back(run: Run, site: ConsoleSite):
    assert "pipelines.NAME.max_fps" in run("config", "keys").out
    done = run("config", "set", "telemetry.perf_s=30", "log_level=warning", "--reason", "quiet")
    assert done.code == 0, done.err
    assert run("config", "show", "--json").document["settings"] == {"telemetry": {"perf_s": 30.0}, "log_level": "warning"}
    run("config", "set", "pipelines.*.max_fps=5", "--group", "default", "--unset", "log_level")
    assert run("config", "set", "log_level=null", "--device", "cam-1").code == 0
    rows = run("config", "diff", "default", "--json").document
    assert {(row["section"], row["key"]) for row in rows} == {
        ("fleet", "telemetry.perf_s"),
        ("fleet", "log_level"),
        ("group default", "pipelines.*.max_fps"),
        ("device cam-1", "log_level"),
    }
    planned = run("config", "dry-run", "default")
    assert "telemetry.perf_s" in planned.out
    assert "never said what its own values are" in planned.err
    made = run("config", "release", *WHY)
    assert made.code == 0, made.err
    rev = int(made.out)
    publish(run, site, rev)
    shown = run("config", "status", "cam-1", "--json").document
    assert (shown["desired_rev"], shown["is_in_force"], shown["reported"]) == (rev, False, None)
    assert run("config", "progress", "default", "--json").document["counts"]["silent"] == 1
    assert "None went back" in run("config", "progress", "default").err
    assert run("config", "unset", "telemetry.perf_s", "log_level").code == 0
    second = int(run("config", "release", *WHY).out)
    publish(run, site, second)
    back = run("config", "rollback", str(rev), "--json", *WHY).document
    assert back["release"]["rev"] > second
    assert [one["settings"] for one in back["changed"]] == [{"telemetry": {"perf_s": 30.0}, "log_level": "warning"}]
    assert run("config", "withdraw", str(back["release"]["rev"]), *WHY).code == 0
    history = run("config", "history")
    assert [line.split()[1] for line in history.out.splitlines()[1:]] == ["withdrawn", "published", "published"]


def test_what_is_wrong_is_said_with_its_place(run: Run):
    wrong = run("config", "set", "telemetry.colour=3")
    assert wrong.code == 1
    assert "telemetry.colour: unknown key; wanted one of perf_s, sys_s" in wrong.err
    assert run("config", "set", "nothing").code == 1
    assert run("config", "set", "log_level.x=1").code == 1
    assert run("config", "show", "--group", "nobody").code == 3
    assert run("config", "show", "--group", "default", "--device", "cam-1").code == 1
    assert run("config", "set", "log_level=debug", user="maria").code == 4


def test_a_section_is_edited_as_json(run: Run, tmp_path: Path):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho \'{"update": {"metered": true}}\' > "$1"\n')
    editor.chmod(0o755)
    done = run("config", "edit", "--group", "default", EDITOR=str(editor), VISUAL="")
    assert done.code == 0, done.err
    assert run("config", "show", "--group", "default", "--json").document["settings"] == {"update": {"metered": True}}
    assert "Nothing changed" in run("config", "edit", "--group", "default", EDITOR=str(editor), VISUAL="").err
    broken = tmp_path / "section.json"
    broken.write_text("{")
    assert run("config", "edit", "--file", str(broken)).code == 1


def test_a_device_is_offered_again(run: Run, site: ConsoleSite):
    done = run("config", "offer-again", "cam-1", *WHY)
    assert "attempt 1" in done.err
    assert DeviceId("cam-1") in {one["device"] for one in run("config", "dry-run", "default", "--json").document}


def test_the_third_policy_key_signs_when_it_is_told_the_first_root(run: Run, site: ConsoleSite, tmp_path: Path):
    run("config", "set", "log_level=error", "--reason", "quiet")
    publish(run, site, int(run("config", "release", *WHY).out))
    registry, signers = site.services.registry, [make_key() for _ in range(3)]
    for number, signer in enumerate(signers):
        save_key(tmp_path / f"{number}.pem", signer, passphrase=None)
    keys = [ceremony.holder_key(tmp_path / f"{number}.pub") for number in range(3)]
    change = ceremony.revoke(ceremony.start(registry, "image"), "policy", keys, threshold=2)
    request = ceremony.finish(change, now=registry.clock.now())
    for holder in (load_key(registry.folders.key_file(KeyName.IMAGE_TARGETS)), *signers[:2]):
        request, _ = request.sign(holder)
    ceremony.publish(registry, request, tenant=DEFAULT_TENANT, by=ADMIN, reason="two of three")
    run("config", "set", "log_level=info", "--reason", "loud")
    rev = int(run("config", "release", *WHY).out)
    approval = next(one for one in run("config", "history", "--json").document if one["rev"] == rev)["approval"]
    assert run("approval", "decide", approval, "--approve", "--reason", "read", user="maria").code == 0
    third = ("config", "sign", str(rev), "--key", str(tmp_path / "2.pem"))
    refused = run(*third, user="maria")
    assert refused.code != 0
    assert "--bootstrap" in refused.err
    half = run(*third, "--bootstrap", digest_of(registry.image.bootstrap), user="maria")
    assert "signed in part" in half.err
    done = run("config", "sign", str(rev), "--key", str(tmp_path / "0.pem"), user="maria")
    assert "get it with their next poll" in done.err
