"""mooring keys: which signing keys there are and how long their metadata holds; making keys; opening lines; what is lost, replaced.

`new`, `show` and `sign` need no server: they run on the machine of a key's holder.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fleet.cli import ceremony, output
from fleet.cli.ceremony import PassphraseOption, ask_for, open_registry, setup_actor
from fleet.cli.output import JsonOption, ReasonOption, YesOption
from fleet.cli.serve import ConfigOption, DataOption, settings_of
from protocol.errors import ConflictError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from fleet.registry.requests import KeyRequest

app = typer.Typer(no_args_is_help=True, help="Signing keys: what there is, ceremonies of the offline keys, what to do when one is lost.")
app.add_typer(ceremony.root, name="root")
for command in ceremony.COMMANDS:
    app.command()(command)


@app.command()
def status(data: Path | None = DataOption, config: Path | None = ConfigOption, as_json: bool = JsonOption) -> None:
    """Show every role of both repositories: keys, threshold, how long it holds, and which private halves are on this machine."""
    from fleet.registry.key_status import advice

    data_dir = settings_of(data, config).data_dir
    rows = list_status(data_dir)
    if as_json:
        output.document(rows)
        return
    columns = (
        ("ROLE", lambda row: row["role"]),
        ("SIGN", lambda row: f"{row['threshold']} of {len(row['keys'])}"),
        ("KEYS", lambda row: [key["id"][:12] + (f" {key['holder']}" if key["holder"] else "") for key in row["keys"]]),
        ("ENDS", lambda row: output.moment(row["expires"])),
        ("DAYS LEFT", lambda row: row["days_left"]),
        ("ALARM", lambda row: row["alarm"]),
        ("NOTE", lambda row: row["note"]),
    )
    output.table(columns, rows, empty="No keys.")
    for row in rows:
        if row["alarm"]:
            output.say(f"{row['role']}: {row['days_left']} days left. Sign again: {advice(row)}")
    if unused := list_unused(data_dir, rows):
        output.say("Private keys that no role uses: new ones whose request is not published yet, or replaced ones; those: shred -u FILE")
        for path in unused:
            output.say(f"    {path}")


@app.command()
def new(
    role: str = typer.Option(
        ..., "--role", help="image-root, image-targets, director-root, model.LINE, firmware.LINE, policy, or an online role."
    ),
    out: str = typer.Option(
        "", "--out", "-o", metavar="FILE|URI", help="Key file, or pkcs11:token=NAME;object=LABEL. Default: ROLE.pem here."
    ),
    public: Path | None = typer.Option(None, "--public", help="Where the public half of a token's key is written. Default: ROLE.pub here."),
    passphrase_file: Path | None = PassphraseOption,
    no_passphrase: bool = typer.Option(False, "--no-passphrase", help="Do not encrypt the file. Online roles are never encrypted."),
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    as_json: bool = JsonOption,
) -> None:
    """Make a key on this machine; the private half never leaves it. Prints the key's id; give the .pub file to who makes the request."""
    from fleet.registry import signing, tokens

    is_online = check_role(role)
    if tokens.scheme_of(out) == tokens.SCHEME:
        key = tokens.TokenSigner.create(tokens.TokenKey.parse(out), ask=ask_for(None)).public_key
        path, shown = public or Path(f"{role}.pub"), out
        tokens.save_public_key(path, key)
    else:
        signer = signing.make_key()
        key_id = signer.public_key.keyid
        folders = signing.TrustFolders(settings_of(data, config).data_dir) if is_online and not out else None
        private = folders.online / f"{role}-{key_id[:12]}.pem" if folders else Path(out or f"{role}.pem")
        if folders and not folders.online.is_dir():
            raise NotFoundError(f"{folders.online} is no server's folder.", hint="Name it with --data, or a file with --out.")
        if private.exists() or private.with_suffix(".pub").exists():
            raise ConflictError(f"{private} exists already.", hint="Choose another file with --out.")
        passphrase = None if is_online or no_passphrase else _new_passphrase(passphrase_file)
        signing.save_key(private, signer, passphrase=passphrase)
        path, shown, key = private.with_suffix(".pub"), str(private), signer.public_key
        if folders:
            _record_new(data, config, role, key_id)
    if as_json:
        output.document({"role": role, "key_id": key.keyid, "private": shown, "public": str(path), "scheme": key.scheme})
        return
    output.say(f"New key for {role}: {shown} (private, keep it here), {path} (public, hand it on). Its id:")
    output.data(key.keyid)


@app.command()
def line(
    name: str,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    passphrase_file: Path | None = PassphraseOption,
    public_key: list[Path] = typer.Option([], "--public-key", exists=True, dir_okay=False, help="Of a key made elsewhere; again for more."),
    threshold: int = typer.Option(1, "--threshold", min=1, help="So many of them must sign a release."),
    request: Path | None = typer.Option(None, "--request", help="Write a signing request there: the targets keys are not on this machine."),
) -> None:
    """Open a model line: the offline targets keys say that its keys may sign it. Without --public-key the line's key is made here."""
    _open(f"model.{name}", data, config, passphrase_file, public_key, threshold, request)


@app.command()
def firmware(
    name: str,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    passphrase_file: Path | None = PassphraseOption,
    public_key: list[Path] = typer.Option([], "--public-key", exists=True, dir_okay=False, help="Of a key made elsewhere; again for more."),
    threshold: int = typer.Option(1, "--threshold", min=1, help="So many of them must sign."),
    request: Path | None = typer.Option(None, "--request", help="Write a signing request there: the targets keys are not on this machine."),
) -> None:
    """Open a firmware line, as `keys line` opens a model line. Devices of this version skip firmware."""
    _open(f"firmware.{name}", data, config, passphrase_file, public_key, threshold, request)


@app.command()
def policy(
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    passphrase_file: Path | None = PassphraseOption,
    public_key: list[Path] = typer.Option([], "--public-key", exists=True, dir_okay=False, help="Of a key made elsewhere; again for more."),
    threshold: int = typer.Option(1, "--threshold", min=1, help="So many of them must sign."),
    request: Path | None = typer.Option(None, "--request", help="Write a signing request there: the targets keys are not on this machine."),
) -> None:
    """Open the policy role, whose keys sign the configuration of devices."""
    _open("policy", data, config, passphrase_file, public_key, threshold, request)


@app.command()
def recover(
    repository: str = typer.Option(..., "--repository", help="image or director."),
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    yes: bool = YesOption,
    reason: str = ReasonOption,
) -> None:
    """Total loss of a root at its threshold: start a new chain. No device follows it before it gets the new first root."""
    from fleet.registry import recovery

    settings = settings_of(data, config)
    output.say(recovery.MEANING[_repository(repository)])
    output.confirm(f"Starts a new chain of roots for the {repository} repository of {settings.data_dir}.", yes=yes, reason=reason)
    with open_registry(data, config) as (registry, tenant):
        made = recovery.start_again(registry, _repository(repository), tenant=tenant, by=setup_actor(), reason=reason)
    if made.passphrase:
        output.say(f"The new offline keys are in {made.keys}. Their passphrase, shown once and stored nowhere:\n\n    {made.passphrase}\n")
    output.say(f"The old chain is kept in {made.kept}. Restart `mooring serve`. Digest of the new first root, for the firmware build:")
    output.data(made.bootstrap)


@app.command()
def clock(data: Path | None = DataOption, config: Path | None = ConfigOption, yes: bool = YesOption, reason: str = ReasonOption) -> None:
    """Say that the clock is right although it jumped ahead by more than a day (the server was off): the director signs again."""
    from fleet.registry import service

    with open_registry(data, config) as (registry, tenant):
        now = registry.clock.now()
        what = (
            f"This machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC. What is signed now, no device will ever believe an earlier time than."
        )
        output.confirm(what, yes=yes, reason=reason)
        service.confirm_clock(registry, tenant=tenant, by=setup_actor(), reason=reason)
    output.say("The director signs again.")


def _open(
    role: str,
    data: Path | None,
    config: Path | None,
    passphrase_file: Path | None,
    public_keys: list[Path],
    threshold: int,
    request: Path | None,
) -> None:
    from fleet.registry import service, signing

    if request is not None:

        def change(begun: "KeyRequest", making: Any) -> "KeyRequest":
            keys = [making.holder_key(path) for path in public_keys]
            changed: KeyRequest = making.open_role(begun, role, keys, threshold=threshold)
            return changed

        ceremony.write(data, config, "image", request, "", change)
        return
    folders = signing.TrustFolders(settings_of(data, config).data_dir)
    targets = folders.key_file(signing.KeyName.IMAGE_TARGETS)
    is_locked = targets.exists() and signing.is_encrypted(targets)
    passphrase = ask_for(passphrase_file)("passphrase of the offline keys") if is_locked else None
    with open_registry(data, config) as (registry, tenant):
        service.open_role(
            registry, tenant=tenant, by=setup_actor(), role=role, passphrase=passphrase, public_keys=public_keys, threshold=threshold
        )
    shown = ", ".join(map(str, public_keys)) or folders.role_key_file(role)
    output.say(f"{role} is open. Its key: {shown}; move it to whoever signs.")


def check_role(role: str) -> bool:
    """Whether the server signs the role by itself. Raises: InvalidError when it is no role."""
    from fleet.registry.repository import role_pattern
    from fleet.registry.signing import ONLINE, KeyName

    if role in set(KeyName):
        return role in ONLINE
    role_pattern(role)
    return False


def _repository(name: str) -> Any:
    if name not in {"image", "director"}:
        raise InvalidError(f"--repository {name!r} is none; wanted image or director.")
    return name


def _new_passphrase(file: Path | None) -> str:
    from fleet.registry import signing

    found = signing.read_passphrase(file)
    return found or str(typer.prompt("Passphrase for the new key", hide_input=True, confirmation_prompt=True, err=True))


def _record_new(data: Path | None, config: Path | None, role: str, key_id: str) -> None:
    from fleet.registry import ceremony as making

    with open_registry(data, config) as (registry, tenant):
        making.record(registry, tenant=tenant, by=setup_actor(), action="keys.made", subject=f"keys/{role}", key=key_id)


# --- status ---


def list_status(data_dir: Path, *, now: datetime | None = None) -> list[dict[str, Any]]:
    """Each role with its keys and when its metadata ends. Raises: NotFoundError when there is no trust in the folder."""
    from fleet.registry.key_status import KeyStatus
    from fleet.registry.signing import TrustFolders

    folders = TrustFolders(data_dir)
    if not folders.image_bootstrap.exists():
        raise NotFoundError(
            f"{data_dir} holds no signing keys.",
            hint="Name the server's folder with --data; `mooring serve` makes the keys at its first start.",
        )
    return KeyStatus(folders).rows(now or datetime.now(UTC))


def list_unused(data_dir: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """Private keys on this machine that no role of `list_status` names: replaced ones, and new ones until they are published."""
    from fleet.registry.key_status import private_keys
    from fleet.registry.signing import TrustFolders

    named = {key["id"] for row in rows for key in row["keys"]}
    return [path for keyid, path in private_keys(TrustFolders(data_dir)) if keyid not in named]
