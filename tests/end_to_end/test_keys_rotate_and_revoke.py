"""A whole life of keys with real processes: server, command line, the device's check child. Each change is followed, the old refused."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from agent.update.assignment import CheckAnswer
from agent.update.check import CheckWish, command_of
from agent.update.poller import run_child
from examples.demo.scenario import DIGITS, LINE
from examples.demo.world import World
from fleet.cli import run
from fleet.registry.signing import TrustFolders, load_key

pytestmark = pytest.mark.needs_broker
PASSPHRASE = "correct horse battery"
TYPE = "camera"
MODEL, GOLDEN = DIGITS / "models" / "1.0" / "tflite" / "model.tflite", DIGITS / "models" / "1.0" / "tflite" / "golden.cbor"


@pytest.fixture(scope="module")
def world(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("w")) as world:
        world.start_server()
        world.admit_people()
        world.ensure_device_type(TYPE)
        model = world.import_model(MODEL, DIGITS / "tflite.toml", name="digits", golden=GOLDEN)
        for version in ("1.0", "1.1"):
            world.release(LINE, version, {model: [TYPE]})
        yield world


class Device:
    """Asks as the agent does, with the agent's own child, and keeps what the agent keeps."""

    def __init__(self, world: World, name: str) -> None:
        self.agent = world.add_agent(name, device_type=TYPE, pipelines=[])
        self.world, self.etag = world, ""
        self.floors: tuple[tuple[str, int], ...] = ()

    def check(self) -> CheckAnswer:
        wish = CheckWish(self.world.device_url, TYPE, ("tflite",), "0.1.0", etag=self.etag, floors=self.floors)
        answer = run_child(command_of(self.agent.state_dir, wish))
        if answer.assignment is not None:
            self.etag, self.floors = answer.etag, tuple(answer.assignment.floors.items())
        return answer

    def versions(self) -> dict[str, int]:
        """After the server made it look again: an unchanged answer would be a failure."""
        answer = self.check()
        assert answer.assignment is not None, answer
        return dict(answer.assignment.metadata_versions)

    def refusal(self) -> str:
        answer = self.check()
        assert answer.error is not None, answer
        return answer.error.code


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


class Ceremony:
    """Holders with a key file each, and the commands that they type; run in this process, on the server's folder while the server runs."""

    def __init__(self, world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.world, self.folder, self._capsys = world, folder, capsys
        self.request = folder / "request.json"

    def run(self, *arguments: str | Path) -> Done:
        self._capsys.readouterr()
        code = run(["keys", *map(str, arguments)])
        said = self._capsys.readouterr()
        written = self.request.read_text() if self.request.exists() else ""
        assert PASSPHRASE not in said.out + said.err + written
        return Done(code, said.out, said.err)

    def ok(self, *arguments: str | Path) -> str:
        done = self.run(*arguments)
        assert done.code == 0, done.err
        return done.out

    def new(self, role: str, name: str) -> str:
        return self.ok("new", "--role", role, "--out", f"{name}.pem").strip()

    def ask(self, *arguments: str | Path) -> None:
        self.ok(*arguments, "--data", self.world.data_dir, "--out", self.request, "--reason", "test")

    def sign(self, *keys: Path | str) -> None:
        for key in keys:
            born = self.world.data_dir / "tuf" / json.loads(self.request.read_text())["repository"] / "1.root.json"
            self.ok("root", "sign", self.request, "--key", key, "--bootstrap", born, "--yes")

    def publish(self) -> dict[str, object]:
        text = self.ok("root", "publish", self.request, "--data", self.world.data_dir, "--yes", "--reason", "test", "--json")
        return dict(json.loads(text))


def test_a_fleet_lives_through_ceremony_rotation_theft_and_revocation(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOORING_KEY_PASSPHRASE", PASSPHRASE)
    folders = TrustFolders(world.data_dir)
    device, keys = Device(world, "keys-1"), Ceremony(world, tmp_path, capsys)
    campaign = world.campaign(LINE, "1.0", group="default")
    world.await_(lambda: (answer := device.check()).assignment and answer.assignment.lines, what="the first assignment")

    # from the first start's keys to two of three, in both repositories
    ids = {name: keys.new("image-root", name) for name in ("anna", "bert", "cleo")}
    keys.ask("root", "init", "--repository", "image", "--threshold", "2", "anna.pub", "bert.pub", "cleo.pub")
    keys.sign(folders.offline / "image-root.pem", "anna.pem")
    refused = keys.run("root", "publish", keys.request, "--data", world.data_dir, "--yes", "--reason", "test")
    assert refused.code == 5
    assert "1 more of the new root keys" in refused.err
    keys.sign("cleo.pem")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", str(keys.publish()["newest_root_sha256"]))
    assert device.versions()["image.root"] == 2
    for name in ("dora", "emil"):
        keys.new("director-root", name)
    keys.ask("root", "init", "--repository", "director", "--threshold", "2", "dora.pub", "emil.pub")
    keys.sign(folders.offline / "director-root.pem", "dora.pem", "emil.pem")
    keys.publish()
    assert device.versions()["director.root"] == 2
    assert device.check().unchanged
    for path in folders.offline.glob("*"):
        path.unlink()

    # a holder is replaced
    keys.new("image-root", "fred")
    keys.ask("rotate", "--role", "image-root", "--old", ids["cleo"], "--new", "fred.pub")
    keys.sign("anna.pem", "bert.pem")
    keys.publish()
    assert device.versions()["image.root"] == 3
    foreign = keys.run("sign", keys.request, "--key", "dora.pem", "--yes")
    assert "Do not sign" in foreign.err, "dora's key remembers the director's first root"
    keys.new("image-root", "nobody")
    wrong = keys.run("sign", keys.request, "--key", "nobody.pem", "--yes")
    assert wrong.code == 1
    assert "signs nothing in this request" in wrong.err

    # online keys are stolen and used to send the device far ahead; the roots bring it back
    thieves = {name: load_key(folders.online / f"{name}.pem") for name in ("image-snapshot", "image-timestamp", "director-timestamp")}
    for repository in ("image", "director"):
        local = device.agent.state_dir / "trust" / repository / "timestamp.json"
        ahead = Metadata[Timestamp].from_bytes(local.read_bytes())
        ahead.signed.version = 2**40
        ahead.sign(thieves[f"{repository}-timestamp"])
        local.write_bytes(ahead.to_bytes())
    device.etag = ""
    assert device.refusal() == "rollback"
    keys.ask("rotate", "--online", "--repository", "director")
    keys.sign("dora.pem", "emil.pem")
    keys.publish()
    assert device.refusal() == "rollback", "the image repository's keys are not replaced yet"
    keys.ask("rotate", "--online", "--repository", "image")
    keys.sign("anna.pem", "fred.pem")
    keys.publish()
    device.etag = ""
    seen = device.versions()
    assert (seen["director.root"], seen["image.root"]) == (3, 4)

    # the line's key is stolen: the targets' holders revoke it, the floor rises, 1.0 is never installed again
    stolen = load_key(folders.line_key_file(LINE))
    keys.new(f"model.{LINE}", "line")
    keys.ask("revoke", "--role", f"model.{LINE}", "--new", "line.pub", "--raise-floor", "2")
    keys.sign("anna.pem", "bert.pem", "line.pem")
    keys.publish()
    assert device.refusal() == "old-release"
    _, etag = world.people["operator"].get_with_etag(f"/campaigns/{campaign}")
    world.people["operator"].send("POST", f"/campaigns/{campaign}/abort", {"reason": "below the floor"}, etag=etag)
    world.campaign(LINE, "1.1", group="default")
    # the abort leaves the device without a release until the new campaign's next tick offers one
    found = world.await_(
        lambda: assignment if (assignment := device.check().assignment) and assignment.lines else None,
        timeout_s=60,
        what="the assignment above the floor",
    )
    assert [line.release for line in found.lines] == ["1.1"]
    assert dict(device.floors)[LINE] == 2

    # who holds the stolen line key and this server's online keys: the device does not take what it signed
    forge(folders, stolen)
    device.etag = ""
    assert device.refusal() == "bad-signature"

    entries = world.people["auditor"].get("/audit", limit=100)["items"]
    actions = [entry["action"] for entry in entries]
    assert actions.count("keys.published") == 6
    assert actions.count("keys.requested") == 6


def forge(folders: TrustFolders, stolen) -> None:
    """Publish a role signed by the stolen line key, with the newest online keys, behind the server's back."""
    role = f"model.{LINE}"
    stamp = Metadata[Timestamp].from_bytes((folders.image / "timestamp.json").read_bytes())
    snapshot = Metadata[Snapshot].from_bytes((folders.image / f"{stamp.signed.snapshot_meta.version}.snapshot.json").read_bytes())
    version = snapshot.signed.meta[f"{role}.json"].version
    line = Metadata[Targets].from_bytes((folders.image / f"{version}.{role}.json").read_bytes())
    line.signed.version += 1
    line.signed.unrecognized_fields["mooring"]["floor"] = 0
    line.sign(stolen)
    snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(version + 1, line.to_bytes(), ["sha256"])
    snapshot.signed.version += 1
    snapshot.sign(newest(folders, "image-snapshot"))
    stamp.signed.version += 1
    stamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"])
    stamp.sign(newest(folders, "image-timestamp"))
    for name, document in (
        (f"{version + 1}.{role}.json", line),
        (f"{snapshot.signed.version}.snapshot.json", snapshot),
        ("timestamp.json", stamp),
    ):
        (folders.image / name).write_bytes(document.to_bytes())


def newest(folders: TrustFolders, name: str):
    return load_key(max(folders.online.glob(f"{name}*.pem"), key=lambda path: path.stat().st_mtime_ns))
