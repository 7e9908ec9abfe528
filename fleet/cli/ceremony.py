"""Ceremonies of `mooring keys`: a request is made on the server, signed by each holder on a machine of his own, published on the server."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, YesOption
from fleet.cli.serve import ConfigOption, DataOption, settings_of
from protocol.errors import InvalidError, NotFoundError, TrustError
from protocol.files import read_bounded, write_atomically

if TYPE_CHECKING:
    from fleet.audit import Actor
    from fleet.registry.requests import KeyRequest
    from fleet.registry.service import Registry
    from protocol.ids import Digest, TenantId

#: A root is at most this long, and the file beside a key that names its first root, bytes.
MAX_ROOT_BYTES, MAX_PIN_BYTES = 512_000, 200

root = typer.Typer(no_args_is_help=True, help="Ceremonies of the offline keys.")
RoleOption = typer.Option(
    ..., "--role", help="image-root, image-targets, director-root, model.LINE, firmware.LINE, policy, or an online role."
)
OutOption = typer.Option(Path("request.json"), "--out", "-o", dir_okay=False, help="Where the request is written.")
PassphraseOption = typer.Option(
    None, "--passphrase-file", exists=True, dir_okay=False, help="Of the key; else MOORING_KEY_PASSPHRASE, else asked."
)
RepositoryOption = typer.Option(..., "--repository", help="image or director: each has a root of its own.")
RequestArgument = typer.Argument(..., exists=True, dir_okay=False, help="The request.")
NewOption = typer.Option(..., "--new", exists=True, dir_okay=False, help="Public half (.pub) of the new key.")


@root.command()
def init(
    keys: list[Path] = typer.Argument(..., exists=True, dir_okay=False, help="Public halves (.pub) of the holders' keys."),
    threshold: int = typer.Option(..., "--threshold", min=1, help="So many of them must sign."),
    repository: str = RepositoryOption,
    targets: list[Path] = typer.Option(
        [], "--targets", exists=True, dir_okay=False, help="Keys of the image targets; again for more. Default: the same."
    ),
    out: Path = OutOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
) -> None:
    """Ask to give a root (in the image repository the targets too) to these keys: from the first start's one key to, say, 2 of 3."""

    def change(begun: "KeyRequest", making: Any) -> "KeyRequest":
        holders, others = ([making.holder_key(path) for path in paths] for paths in (keys, targets))
        changed: KeyRequest = making.init_root(begun, holders, threshold=threshold, targets_keys=others or None)
        return changed

    write(data, config, repository, out, reason, change)


def add(
    role: str = RoleOption,
    new: Path = NewOption,
    threshold: int | None = typer.Option(None, "--threshold", min=1, help="So many must sign from then on; as now when not given."),
    out: Path = OutOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
) -> None:
    """Ask that one key more may sign a role."""
    write(
        data,
        config,
        None,
        out,
        reason,
        lambda begun, making: making.add_key(begun, role, making.holder_key(new), threshold=threshold),
        role,
    )


def remove(
    role: str = RoleOption,
    old: str = typer.Option(..., "--old", help="Id of the key, or its first 8 digits or more."),
    threshold: int | None = typer.Option(None, "--threshold", min=1, help="So many must sign from then on; as now when not given."),
    out: Path = OutOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
) -> None:
    """Ask that a key no longer signs a role."""
    write(data, config, None, out, reason, lambda begun, making: making.remove_key(begun, role, old, threshold=threshold), role)


def threshold(
    role: str = RoleOption,
    count: int = typer.Option(..., "--threshold", min=1, help="So many must sign from then on."),
    out: Path = OutOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
) -> None:
    """Ask for another threshold of a role."""
    write(data, config, None, out, reason, lambda begun, making: making.set_threshold(begun, role, count), role)


def rotate(
    role: list[str] = typer.Option([], "--role", help="As of `keys new`; again for a key that signs several. Not with --online."),
    old: str = typer.Option("", "--old", help="Id of the key that goes, or its first 8 digits or more."),
    new: Path | None = typer.Option(None, "--new", exists=True, dir_okay=False, help="Public half (.pub) of the key that comes."),
    online: bool = typer.Option(False, "--online", help="Make new keys here for all online roles of --repository, and ask for them."),
    repository: str | None = typer.Option(None, "--repository", help="With --online: image or director."),
    out: Path = OutOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
) -> None:
    """Ask to replace a key: it is lost, or its holder leaves. A root is signed by the thresholds of old AND new keys."""
    if online:
        if repository is None or role or old or new:
            raise InvalidError("--online replaces all online keys of one repository.", hint="Give --repository and nothing else.")
        write(data, config, repository, out, reason, _fresh_online_keys(data, config, repository))
        return
    if not role or not old or new is None:
        raise InvalidError("Which key is replaced by which?", hint="Give --role, --old and --new; or --online --repository NAME.")
    path = new

    def change(begun: "KeyRequest", making: Any) -> "KeyRequest":
        for name in role:
            begun = making.rotate_key(begun, name, old, making.holder_key(path))
        return begun

    write(data, config, None, out, reason, change, role[0])


def renew(
    role: list[str] = typer.Option(..., "--role", help="As of `keys new`; again for several of one repository."),
    out: Path = OutOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
) -> None:
    """Ask for the same content with a later expiry: root and targets once a year, a line that had no release for long."""

    def change(begun: "KeyRequest", making: Any) -> "KeyRequest":
        for name in role:
            begun = making.renew(begun, name)
        return begun

    write(data, config, None, out, reason, change, role[0])


def revoke(
    role: str = typer.Option(..., "--role", help="model.LINE, firmware.LINE or policy."),
    new: list[Path] = typer.Option(..., "--new", exists=True, dir_okay=False, help="Public half (.pub) of the new key; again for more."),
    raise_floor: int | None = typer.Option(None, "--raise-floor", min=0, help="No release with a lower counter is ever installed again."),
    count: int = typer.Option(1, "--threshold", min=1, help="So many of the new keys must sign."),
    out: Path = OutOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
) -> None:
    """Ask to drop all keys of a line (stolen or lost): the targets keys and the new ones sign, and the floor rises with them."""

    def change(begun: "KeyRequest", making: Any) -> "KeyRequest":
        changed: KeyRequest = making.revoke(begun, role, [making.holder_key(path) for path in new], threshold=count, floor=raise_floor)
        return changed

    write(data, config, None, out, reason, change, role)


def show(request: Path = RequestArgument) -> None:
    """Say in words what a request changes and whose signatures it still wants. Needs no server."""
    from fleet.registry.requests import describe, read_request

    for text in describe(read_request(request)):
        output.data(text)


def sign(
    request: Path = RequestArgument,
    key: str = typer.Option(
        ..., "--key", metavar="FILE|URI", help="Private key: a file, pkcs11:…, awskms:…, gcpkms:…, azurekms:…; it stays where it is."
    ),
    public: Path | None = typer.Option(None, "--public", exists=True, dir_okay=False, help="Public half (.pub); for key services only."),
    passphrase_file: Path | None = PassphraseOption,
    bootstrap: str = typer.Option(
        "",
        "--bootstrap",
        metavar="FILE|DIGEST",
        help="Your repository's first root; remembered beside the key file. A request of another one is refused.",
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask; you have read it with `keys show`."),
) -> None:
    """Show what a request changes, and sign it with your key. Needs no server; the signature is written into the file."""
    from fleet.registry.requests import describe, read_request, write_request
    from fleet.registry.tokens import open_signer, scheme_of

    read = read_request(request)
    pin = Path(key).with_suffix(".first-root") if not scheme_of(key) else None
    known = _known_root(bootstrap, pin)
    if known is not None:
        _check_bootstrap(known, read.bootstrap_digest)
    for text in describe(read):
        output.say(text)
    if not yes:
        typer.confirm("Sign this?", abort=True, err=True)
    signed, roles = read.sign(open_signer(key, ask=ask_for(passphrase_file), public=public))
    if known is None and set(roles) - {"root", "targets"}:
        # what a line lists is only as good as the chain that it hangs on: a made-up chain could get a line's key to sign anything
        raise TrustError(
            f"{', '.join(roles)}: not signed without knowing your repository's first root.",
            hint=f"Compare {read.bootstrap_digest} with your notes or firmware, then add --bootstrap DIGEST.",
            code="wrong-root",
        )
    write_request(request, signed)
    if pin is not None and not pin.exists():
        write_atomically(pin, f"{read.bootstrap_digest}\n".encode(), mode=0o600)
    left = signed.missing()
    wanted = "; ".join(f"{one.count} under {one.role} of {one.by}" for one in left)
    output.say(f"Signed {', '.join(roles)}. " + (f"Still wanted: {wanted}." if left else "All signatures are there."))


def publish(
    requests: list[Path] = typer.Argument(..., exists=True, dir_okay=False, help="The signed request; several copies are put together."),
    yes: bool = YesOption,
    reason: str = ReasonOption,
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    as_json: bool = JsonOption,
) -> None:
    """Publish what enough holders signed, after the device's own code accepted it. Prints the digests of first and newest root."""
    from fleet.registry import ceremony as making
    from fleet.registry.requests import describe, read_request

    request = read_request(requests[0])
    for path in requests[1:]:
        request = request.merged(read_request(path))
    output.confirm("\n".join(describe(request)), yes=yes, reason=reason)
    with open_registry(data, config) as (registry, tenant):
        done = making.publish(registry, request, tenant=tenant, by=setup_actor(), reason=reason)
    document = {
        "repository": done.repository,
        "versions": dict(done.versions),
        "first_root_sha256": done.bootstrap,
        "newest_root_sha256": done.newest_root,
    }
    if as_json:
        output.document(document)
        return
    output.say(f"Published {', '.join(f'{role} {version}' for role, version in done.versions.items())}; devices follow at their next poll.")
    output.facts({"first root": done.bootstrap, "newest root": done.newest_root})


root.command()(sign)
root.command()(publish)
COMMANDS: tuple[Callable[..., None], ...] = (show, sign, publish, add, remove, threshold, rotate, renew, revoke)

#: What a change of a request is made with: the request, and `fleet.registry.ceremony`.
Change = Callable[["KeyRequest", Any], "KeyRequest"]


def write(data: Path | None, config: Path | None, repository: str | None, out: Path, reason: str, change: Change, role: str = "") -> None:
    """Make a request over what is published now, and write it. Raises: ConflictError, InvalidError, NotFoundError, TrustError."""
    from fleet.registry import ceremony as making
    from fleet.registry.requests import describe, write_request
    from protocol.canonical import digest_of

    if repository is not None and repository not in {"image", "director"}:
        raise InvalidError(f"--repository {repository!r} is none; wanted image or director.")
    with open_registry(data, config) as (registry, tenant):
        begun = making.start(registry, repository or making.repository_of(role), reason=reason)  # type: ignore[arg-type]  # checked above
        request = making.finish(change(begun, making), now=registry.clock.now())
        write_request(out, request)
        making.record(
            registry,
            tenant=tenant,
            by=setup_actor(),
            action="keys.requested",
            subject=f"keys/{request.repository}",
            reason=reason,
            roles={name: document.signed.version for name, document in request.documents.items()},
            request=digest_of(request.to_bytes()),
        )
    for text in describe(request):
        output.say(text)
    output.say(f"\nWritten to {out}. Carry it to each holder: mooring keys sign {out.name} --key FILE")


def _fresh_online_keys(data: Path | None, config: Path | None, repository: str) -> Change:
    def change(begun: "KeyRequest", making: Any) -> "KeyRequest":
        from fleet.registry import signing

        folders = signing.TrustFolders(settings_of(data, config).data_dir)
        keys = {}
        for name in making.ONLINE_ROLES[repository]:
            signer = signing.make_key()
            signing.save_key(folders.online / f"{name}-{signer.public_key.keyid[:12]}.pem", signer, passphrase=None)
            keys[name] = signer.public_key
        changed: KeyRequest = making.replace_online(begun, keys)
        return changed

    return change


@contextmanager
def open_registry(data: Path | None, config: Path | None) -> Iterator[tuple["Registry", "TenantId"]]:
    """The registry of the server's folder, and its tenant. Raises: NotFoundError when it is no server's folder."""
    from fleet import service
    from fleet.registry.signing import TrustFolders
    from protocol.clock import from_environment
    from protocol.ids import TenantId

    settings = settings_of(data, config)
    if not TrustFolders(settings.data_dir).image_bootstrap.exists():
        raise NotFoundError(f"{settings.data_dir} holds no signing keys.", hint="Name the server's folder with --data.")
    ground = service.lay_ground(settings, clock=from_environment())
    try:
        yield ground.registry, TenantId(settings.tenant)
    finally:
        ground.database.dispose()


def setup_actor() -> "Actor":
    """Who acts on the server's own machine: the account of the system."""
    import pwd

    from fleet.audit import Actor, ActorKind

    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        account = str(os.getuid())
    return Actor(ActorKind.PERSON, f"{account} at the server's machine")


def ask_for(passphrase_file: Path | None) -> Callable[[str], str]:
    """Answers with the file, else MOORING_KEY_PASSPHRASE, else by asking on the terminal."""
    from fleet.registry import signing

    def ask(what: str) -> str:
        found = None if what == "PIN" else signing.read_passphrase(passphrase_file)
        return found or str(typer.prompt(what[0].upper() + what[1:], hide_input=True, err=True))

    return ask


def _known_root(bootstrap: str, pin: Path | None) -> "Digest | None":
    """The first root that the holder names, else the one that his key signed for the first time: kept beside the key file."""
    if bootstrap:
        return root_digest(bootstrap)
    if pin is not None and pin.exists():
        return root_digest(read_bounded(pin, MAX_PIN_BYTES).decode("ascii", "replace").strip())
    return None


def root_digest(text: str) -> "Digest":
    """The digest that the text is, or of the root in the file that it names. Raises: InvalidError; OSError."""
    from protocol.canonical import digest_of
    from protocol.ids import Digest

    return Digest(text) if text.startswith("sha256:") else digest_of(read_bounded(Path(text), MAX_ROOT_BYTES))


def _check_bootstrap(digest: str, seen: str) -> None:
    if digest != seen:
        raise TrustError(
            f"The request begins with root {seen}; yours is {digest}.", hint="Do not sign: it is not of your repository.", code="wrong-root"
        )
