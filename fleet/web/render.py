"""Turns view values into HTML: the Jinja environment, its filters and words, and the frame around every page."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from fleet.parts import Standstill
from fleet.web.assets import Assets

TEMPLATES = Path(__file__).parent / "templates"

#: What color a state has, beside its word: of releases, approvals, campaigns and updates.
STATE_KINDS: Mapping[str, str] = {
    "published": "good",
    "approved": "good",
    "signed": "good",
    "succeeded": "good",
    "updated": "good",
    "finished": "good",
    "completed": "good",
    "done": "good",
    "committed": "good",
    "usable": "good",
    "running": "accent",
    "open": "accent",
    "moving": "accent",
    "assigned": "accent",
    "downloading": "accent",
    "verifying": "accent",
    "installing": "accent",
    "activating": "accent",
    "probing": "accent",
    "committing": "accent",
    "proposed": "warn",
    "waiting": "warn",
    "pending": "warn",
    "paused": "warn",
    "expired": "warn",
    "withdrawn": "warn",
    "rolling_back": "warn",
    "failed": "bad",
    "rejected": "bad",
    "refused": "bad",
    "aborted": "bad",
    "rolled_back": "bad",
    "timed-out": "bad",
    "inconsistent": "bad",
}


@dataclass(frozen=True, slots=True)
class NavItem:
    """One entry of the rail."""

    label: str
    href: str
    icon: str
    is_current: bool
    count: int = 0


@dataclass(frozen=True, slots=True)
class Shell:
    """What every page shows around its content."""

    user_name: str
    permissions: tuple[str, ...]
    csrf_token: str
    nav: tuple[NavItem, ...]
    demo_keys: bool
    clock_speed: float
    must_change_password: bool
    #: Whether this person may change what devices run.
    may_steer: bool = False
    #: Parts of the server that do not work.
    standstills: tuple[Standstill, ...] = ()


@cache
def assets() -> Assets:
    """The static files of the console."""
    return Assets()


def page(template: str, *, shell: Shell, now: datetime, **context: Any) -> str:
    """The HTML of a template, with `shell` and the server's time in its context."""
    return _environment().get_template(template).render(shell=shell, now=now, **context)


def stamp(moment: datetime) -> str:
    """A moment in full, UTC: "2026-03-01 12:00:05 UTC"."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(moment: datetime) -> str:
    """The time of day, UTC: "12:00:05"."""
    return moment.astimezone(UTC).strftime("%H:%M:%S")


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, in one unit: "just now", "3 min ago"; "in 3 min" for what is to come."""
    seconds = (now - moment).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count = int(abs(seconds) // size)
        if count >= 1 and (unit != "s" or count >= 5):
            return f"{count} {unit} ago" if seconds > 0 else f"in {count} {unit}"
    return "just now"


def file_size(size: int | None) -> str:
    """Bytes in the unit that suits them."""
    if size is None:
        return ""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def milliseconds(value: float | None) -> str:
    """A latency, or a dash when there is none."""
    if value is None:
        return "–"
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def short_digest(digest: str) -> str:
    """The first digits of a digest, enough to tell two apart by eye."""
    kind, _, digits = digest.rpartition(":")
    return f"{kind}:{digits[:12]}…" if kind else f"{digits[:12]}…"


def words(value: object) -> str:
    """A stored word as it is read: "rolled_back" becomes "rolled back"."""
    return str(value).replace("_", " ").replace("-", " ")


def state_kind(value: object) -> str:
    """good, warn, bad, accent, or nothing for a state that needs no color."""
    return STATE_KINDS.get(str(value), "")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "stamp": stamp,
        "clock": clock,
        "ago": ago,
        "bytes": file_size,
        "ms": milliseconds,
        "short_digest": short_digest,
        "words": words,
        "state_kind": state_kind,
    }
    environment.globals["asset"] = lambda name: assets().url(name)
    return environment
