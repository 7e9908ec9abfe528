"""How the signing keys stand: which roles end soon, which keys are missing, whether the clock is believed. For status, doctor and console.

Metadata are read again only when something in their folders changed, because the console asks every few seconds.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fleet.registry.clock_guard import ClockGuard
from fleet.registry.online import OnlineKeys
from fleet.registry.signing import ONLINE, TrustFolders, is_encrypted, load_public_key
from protocol.errors import MooringError
from protocol.files import read_bounded
from protocol.trust.metadata import line_role

#: Days before the end from which a role wants attention, and from which it is an alarm (UPDATES 1.6).
SOON_DAYS, URGENT_DAYS = 60, 14
#: As python-tuf: no role is longer, bytes.
MAX_METADATA_BYTES = 5_000_000
PAGE = "docs/operations/keys.md"
RUNS_ON = "What runs on the devices goes on running."

#: Name, public keys by id, threshold and end of a role.
_Role = tuple[str, dict[str, Any], int, datetime | None]


@dataclass(frozen=True, slots=True)
class KeyAlarm:
    """One thing about keys or clock that a person must know, with what to do about it."""

    code: str
    #: "error", "warning" or "info".
    severity: str
    text: str
    advice: str


class KeyStatus:
    """The keys of one folder; cheap to ask again and again. Safe for several threads."""

    def __init__(self, folders: TrustFolders, keys: OnlineKeys | None = None, guard: ClockGuard | None = None) -> None:
        self._folders = folders
        self._keys, self._guard = keys or OnlineKeys(folders), guard
        #: What was read, and the times of the folders it was read from: everything in them is written by renaming.
        self._known: tuple[tuple[int, ...], list[_Role], list[tuple[str, Path]]] | None = None

    def rows(self, now: datetime) -> list[dict[str, Any]]:
        """Each role with its keys and when its metadata ends. Raises: OSError, ValueError, KeyError when the folder is damaged."""
        roles, private = self._read()
        return [_row(role, signers, threshold, ends, dict(private), now) for role, signers, threshold, ends in roles]

    def alarms(self, now: datetime) -> list[KeyAlarm]:
        """What must be done, the worst first; empty when all is well."""
        try:
            found = [*self._clock_alarms(now), *self._missing_alarms(), *_row_alarms(self.rows(now))]
        except (OSError, ValueError, KeyError, MooringError) as error:
            text = f"The signing keys cannot be read: {type(error).__name__}: {error}"[:300]
            return [KeyAlarm("keys-unreadable", "error", text, f"Look at {self._folders.data_dir}; {PAGE}.")]
        return sorted(found, key=lambda one: ("error", "warning", "info").index(one.severity))

    def _read(self) -> tuple[list[_Role], list[tuple[str, Path]]]:
        folders = self._folders
        watched = (folders.image, folders.director, folders.online, folders.offline, folders.lines)
        times = tuple(path.stat().st_mtime_ns if path.is_dir() else 0 for path in watched)
        if self._known is None or self._known[0] != times:
            self._known = (times, list(_roles(folders)), list(private_keys(folders)))
        return self._known[1], self._known[2]

    def _clock_alarms(self, now: datetime) -> Iterator[KeyAlarm]:
        if self._guard is not None and self._guard.has_jumped(now):
            text = f"Nothing is signed, devices get no updates. {self._guard.advice(now)}"
            yield KeyAlarm("clock-not-believed", "error", text, "mooring keys clock --reason TEXT, when the clock is right.")

    def _missing_alarms(self) -> Iterator[KeyAlarm]:
        missing = self._keys.missing()
        for repository in ("image", "director"):
            if roles := [name for name in missing if name.startswith(repository)]:
                text = f"The server cannot sign {', '.join(roles)}: keys are missing from {self._folders.online}. {RUNS_ON}"
                advice = (
                    f"Copy them back, or: mooring keys rotate --online --repository {repository} --out FILE. {PAGE}: Online keys are lost."
                )
                yield KeyAlarm("online-key-missing", "error", text, advice)


def advice(row: dict[str, Any]) -> str:
    """How to sign the role of a status row again."""
    line = row["role"].removeprefix(line_role(""))
    if line != row["role"] and row["threshold"] == 1:
        return f"mooring release renew-line {line} --key FILE"
    return f"mooring keys renew --role {row['role']} -o FILE, then sign and publish it"


def _row_alarms(rows: list[dict[str, Any]]) -> Iterator[KeyAlarm]:
    for row in rows:
        if row["alarm"]:
            left = row["days_left"]
            when = f"ended {-left} days ago" if left < 0 else f"ends in {left} days"
            text = f"The signature of {row['role']} {when}, {row['expires'][:10]}; then devices install nothing that needs it. {RUNS_ON}"
            yield KeyAlarm("role-ends", "error" if row["alarm"] == "urgent" else "warning", text, f"{advice(row)}. {PAGE}: Once a year.")
    if bare := [row["role"] for row in rows if "NOT encrypted" in row["note"]]:
        text = f"Demo keys: {', '.join(bare)} lie unencrypted on this machine; whoever reads them can sign models."
        yield KeyAlarm("demo-keys", "info", text, "Fine for a demo; a real fleet starts without --demo-keys.")


def _roles(folders: TrustFolders) -> Iterator[tuple[str, dict[str, Any], int, datetime | None]]:
    """Name, public keys by id, threshold and end of every role of both repositories."""
    image, director = (_newest(folder, "root") for folder in (folders.image, folders.director))
    snapshot = _newest(folders.image, "snapshot")
    ends = {name: _newest(folders.image, name) for name in ("root", "targets", "snapshot")}
    ends["timestamp"] = _read(folders.image / "timestamp.json")
    for repository, root in (("image", image), ("director", director)):
        for name in ("root", "targets", "snapshot", "timestamp"):
            end = _end(root) if name == "root" else _end(ends[name]) if repository == "image" else None
            yield f"{repository}-{name}", *_signers(root["keys"], root["roles"][name]), end
    delegations = ends["targets"].get("delegations") or {}
    for role in delegations.get("roles", ()):
        meta = snapshot["meta"].get(f"{role['name']}.json")
        published = _read(folders.image / f"{meta['version']}.{role['name']}.json") if meta else None
        yield role["name"], *_signers(delegations["keys"], role), _end(published) if published else None


def _signers(keys: dict[str, Any], role: dict[str, Any]) -> tuple[dict[str, Any], int]:
    return {keyid: keys[keyid] for keyid in role["keyids"]}, role["threshold"]


def _row(
    role: str, signers: dict[str, Any], threshold: int, ends: datetime | None, private: dict[str, Path], now: datetime
) -> dict[str, Any]:
    left = (ends - now).days if ends is not None else None
    is_online = role in ONLINE
    here = [private[keyid] for keyid in signers if keyid in private]
    alarm = "" if left is None or is_online else "urgent" if left <= URGENT_DAYS else "soon" if left <= SOON_DAYS else ""
    notes = [f"sign again within {left} days"] if alarm else []
    if len(here) < threshold and is_online:
        notes.append("missing: the server cannot sign this role")
    notes.extend(sorted({_note(path, is_online=is_online) for path in here}))
    if not here and not is_online:
        notes.append("kept elsewhere")
    return {
        "role": role,
        "threshold": threshold,
        "keys": [{"id": keyid, "scheme": key["scheme"], "holder": key.get("x-mooring-holder", "")} for keyid, key in signers.items()],
        "key": ", ".join(map(str, here)) or None,
        "expires": ends.isoformat() if ends is not None else None,
        "days_left": left,
        "alarm": alarm,
        "note": "; ".join(notes),
    }


def _note(path: Path, *, is_online: bool) -> str:
    if is_online:
        return "online"
    if path.suffix == ".uri":
        return "by reference"
    return "on this machine, encrypted; move it to a stick" if is_encrypted(path) else "on this machine, NOT encrypted: a demo's"


def private_keys(folders: TrustFolders) -> Iterator[tuple[str, Path]]:
    """Private keys and references on this machine, by key id: told from the public half beside each."""
    for folder in (folders.online, folders.offline, folders.lines):
        for path in sorted((*folder.glob("*.pem"), *folder.glob("*.uri"))):
            if path.with_suffix(".pub").exists():
                yield load_public_key(path.with_suffix(".pub")).keyid, path


def _newest(folder: Path, name: str) -> dict[str, Any]:
    versions = [(int(number), path) for path in folder.glob(f"*.{name}.json") if (number := path.name.partition(".")[0]).isdigit()]
    return _read(max(versions)[1])


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(read_bounded(path, MAX_METADATA_BYTES))["signed"])


def _end(signed: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(str(signed["expires"]))
