"""Which server the command line talks to and with which API token: MOORING_SERVER and MOORING_TOKEN, else what `mooring login` kept."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError, UnauthenticatedError
from protocol.files import write_atomically

SERVER_VARIABLE, TOKEN_VARIABLE = "MOORING_SERVER", "MOORING_TOKEN"
DEFAULT_SERVER = "http://127.0.0.1:8080"
#: A file beyond this is not ours, bytes.
MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where to and as whom."""

    server: str
    token: str


def config_file(environment: Mapping[str, str] | None = None) -> Path:
    """Where logins are kept: $XDG_CONFIG_HOME/mooring/login.json."""
    env = os.environ if environment is None else environment
    base = Path(env["XDG_CONFIG_HOME"]) if env.get("XDG_CONFIG_HOME") else Path(env.get("HOME", "/")) / ".config"
    return base / "mooring" / "login.json"


def load(server: str | None = None, environment: Mapping[str, str] | None = None) -> Credentials:
    """Server and token to use; an explicit `server` wins over the environment, that over the last login.

    Raises: UnauthenticatedError when there is no token for that server; ConfigError when the file is not readable.
    """
    env = os.environ if environment is None else environment
    kept = _read(config_file(env))
    chosen = (server or env.get(SERVER_VARIABLE) or str(kept.get("server") or DEFAULT_SERVER)).rstrip("/")
    token = env.get(TOKEN_VARIABLE) or _tokens(kept).get(chosen)
    if not token:
        raise UnauthenticatedError(f"Not logged in at {chosen}.", hint=f"Run: mooring login --server {chosen}, or set {TOKEN_VARIABLE}.")
    return Credentials(chosen, token)


def save(credentials: Credentials, environment: Mapping[str, str] | None = None) -> Path:
    """Keep the login, readable for this user only; returns the file."""
    path = config_file(environment)
    kept = _read(path)
    tokens = {**_tokens(kept), credentials.server: credentials.token}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = json.dumps({"server": credentials.server, "tokens": tokens}, indent=2)
    write_atomically(path, document.encode(), mode=0o600)
    return path


def forget(server: str, environment: Mapping[str, str] | None = None) -> bool:
    """Forget the login at a server; returns whether there was one."""
    path = config_file(environment)
    kept = _read(path)
    tokens = _tokens(kept)
    if tokens.pop(server.rstrip("/"), None) is None:
        return False
    write_atomically(path, json.dumps({"server": kept.get("server"), "tokens": tokens}, indent=2).encode(), mode=0o600)
    return True


def _tokens(kept: Mapping[str, object]) -> dict[str, str]:
    tokens = kept.get("tokens")
    return {str(key): str(value) for key, value in tokens.items()} if isinstance(tokens, dict) else {}


def _read(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is longer than {MAX_FILE_BYTES} bytes.", hint="Remove it and run: mooring login")
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", hint="Remove it and run: mooring login") from error
    return document if isinstance(document, dict) else {}
