"""Who this device is: it gets an identity with a one-time token, and shows it."""

import argparse
import os

from agent.commands.output import answer
from agent.commands.settings import load
from agent.commands.version import version
from agent.settings.loading import TOKEN_ENVIRONMENT_NAME
from protocol.errors import ConfigError, InvalidError

#: A token file holds one line.
MAX_TOKEN_BYTES = 1024


def enroll_device(options: argparse.Namespace) -> int:
    """Get an identity from a server with a one-time token. Raises: ConfigError, InvalidError; MooringError as the server refused it."""
    from agent.identity import EnrollmentWish, enroll, guess_device_type, parse_token

    config = load(options).config
    token = parse_token(_token_text(options))
    device_type = options.device_type or config.device_type or guess_device_type()
    server = options.server or config.server.url
    if not server:
        raise ConfigError("No server to enroll with.", hint="Wanted: --server https://host[:port], or the setting server.url.")
    wish = EnrollmentWish(
        server=server.rstrip("/"),
        token=token,
        device_type=device_type,
        device=options.device,
        proxy=config.server.proxy,
        timeout_s=config.server.timeout_s,
        agent_version=version(),
    )
    identity = enroll(config.identity_dir, wish, force=options.force)
    found = {"device": identity.device, "tenant": identity.tenant, "group": identity.enrollment.group, "folder": str(identity.folder)}
    answer(
        options,
        found,
        lambda out: out(f"Enrolled as {identity.device} (group {identity.enrollment.group or 'none'}) in {identity.folder}."),
    )
    return 0


def _token_text(options: argparse.Namespace) -> str:
    from protocol.files import read_bounded

    if options.token is not None:
        return str(options.token)
    if options.token_file is not None:
        try:
            return read_bounded(options.token_file, MAX_TOKEN_BYTES).decode(errors="replace").strip()
        except OSError as error:
            raise InvalidError(f"{options.token_file} cannot be read: {error.strerror}.") from None
    if text := os.environ.get(TOKEN_ENVIRONMENT_NAME):
        return text
    raise InvalidError(
        "No token was given.", hint=f"Wanted: --token-file FILE, the environment variable {TOKEN_ENVIRONMENT_NAME}, or --token."
    )


def show_identity(options: argparse.Namespace) -> int:
    """Print the identity. Raises: DeviceError when there is none."""
    from agent.identity import certificate_life, load_identity

    identity = load_identity(load(options).config.identity_dir)
    found = {
        **identity.enrollment.model_dump(mode="json"),
        "certificate_until": certificate_life(identity)[1].isoformat(),
        "folder": str(identity.folder),
    }
    answer(options, found, lambda out: out("\n".join(f"{key:20} {value}" for key, value in found.items())))
    return 0
