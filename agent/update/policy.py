"""The manners of updates on this device: metered links, windows, consent; read anew at every look, since each may change meanwhile."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, tzinfo
from enum import StrEnum
from typing import Protocol

from agent.config import UpdateConfig, WindowConfig
from agent.update.assignment import LineOffer
from agent.update.delivery import Delivery
from agent.update.journal import Values
from agent.windows import Window, is_open, next_opening, zone_named

#: Assignments of a line that consent is remembered for.
MAX_CONSENTS = 8


class Permission(StrEnum):
    """What windows and consent say about the next step."""

    OPEN = "open"
    CLOSED = "closed"
    REFUSED = "refused"


class Wait(StrEnum):
    """What an update waits for; stored and sent, never renamed."""

    #: A window to open.
    WINDOW = "window"
    #: Somebody at the site, or at the console, to say yes.
    CONSENT = "consent"
    #: The right time, without which no window can be judged.
    CLOCK = "clock"
    #: A delta, another link, or the permission to fetch the whole file over this one.
    FULL_DOWNLOAD = "full_download"
    #: The server or the way to it.
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Gate:
    """A permission; when closed with what it waits for, in words too, and until when if that is known."""

    permission: Permission
    wait: Wait | None = None
    text: str = ""
    until: datetime | None = None


OPEN = Gate(Permission.OPEN)


class Policy(Protocol):
    """Asked by the update's steps."""

    def may_download(self, offer: LineOffer, now: datetime) -> Gate:
        """Whether bytes may be fetched now; asked with every piece of a download."""
        ...

    def may_activate(self, offer: LineOffer, now: datetime) -> Gate:
        """Whether the installed release may be tried now; asked on each wake, never during a probe."""
        ...

    def refusal(self, offer: LineOffer, delivery: Delivery) -> str:
        """Why these bytes may not come over the link as it is; empty: they may."""
        ...

    def prefers_deltas(self) -> bool:
        """Whether a delta is worth more than an equally large rest of a whole file."""
        ...

    def give_consent(self, line: str, assignment: str, *, is_given: bool) -> None:
        """Remember what people say about the assignment, durably. Raises: DeviceError."""
        ...

    def said(self, line: str, assignment: str) -> bool | None:
        """What people said about the assignment; None: nothing yet."""
        ...


class OpenPolicy:
    """Everything may be done at any time."""

    def may_download(self, offer: LineOffer, now: datetime) -> Gate:
        _ = offer, now
        return OPEN

    def may_activate(self, offer: LineOffer, now: datetime) -> Gate:
        _ = offer, now
        return OPEN

    def refusal(self, offer: LineOffer, delivery: Delivery) -> str:
        _ = offer, delivery
        return ""

    def prefers_deltas(self) -> bool:
        return False

    def give_consent(self, line: str, assignment: str, *, is_given: bool) -> None:
        _ = line, assignment, is_given

    def said(self, line: str, assignment: str) -> bool | None:
        _ = line, assignment
        return None


class Consents:
    """What people said per line about its latest assignments; a word holds for no other assignment."""

    def __init__(self, store: Values) -> None:
        self._store = store

    def give(self, line: str, assignment: str, *, is_given: bool) -> None:
        """Remember it, durably. Raises: DeviceError."""
        said = self._load(line)
        if said.get(assignment) is not is_given:
            said.pop(assignment, None)
            kept = [*said.items(), (assignment, is_given)][-MAX_CONSENTS:]
            self._store.set_value(_key(line), json.dumps(dict(kept)))

    def of(self, line: str, assignment: str) -> bool | None:
        """What was said about the assignment; None: nothing yet."""
        return self._load(line).get(assignment)

    def _load(self, line: str) -> dict[str, bool]:
        try:
            found = json.loads(self._store.get_value(_key(line)) or "{}")
            return {str(assignment): bool(is_given) for assignment, is_given in found.items()}
        except (ValueError, AttributeError):
            return {}  # unreadable: nobody said anything


def _key(line: str) -> str:
    return f"update.consent.{line}"


class UpdatePolicy:
    """The section `update` of the settings, in force. `replace` may be called from any thread."""

    def __init__(
        self,
        config: UpdateConfig,
        consents: Consents,
        *,
        site_time: Callable[[datetime], datetime | None] = lambda now: now,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`site_time` makes the best known time of the clock's: None while neither clock nor server told one.

        `on_change` is called when what was forbidden may be allowed from now on: whoever waits looks again.
        """
        self._consents = consents
        self._site_time = site_time
        self._on_change = on_change
        self._rules = _Rules.of(config)

    @property
    def config(self) -> UpdateConfig:
        """The settings in force."""
        return self._rules.config

    @property
    def has_windows(self) -> bool:
        """Whether anything goes by the clock on the wall."""
        return bool(self._rules.downloads or self._rules.activations)

    def replace(self, config: UpdateConfig) -> None:
        """Go by these settings from now on."""
        if config != self._rules.config:
            self._rules = _Rules.of(config)
            self._on_change()

    def give_consent(self, line: str, assignment: str, *, is_given: bool) -> None:
        self._consents.give(line, assignment, is_given=is_given)
        self._on_change()

    def said(self, line: str, assignment: str) -> bool | None:
        return self._consents.of(line, assignment)

    def may_download(self, offer: LineOffer, now: datetime) -> Gate:
        if self._consents.of(offer.line, offer.assignment) is False:
            return _REFUSED
        rules = self._rules
        return self._window(rules.downloads, rules, now, what="downloads")

    def may_activate(self, offer: LineOffer, now: datetime) -> Gate:
        rules, said = self._rules, self._consents.of(offer.line, offer.assignment)
        if said is False:
            return _REFUSED
        if said is None and rules.config.consent == "site":
            text = f"{offer.release} is installed and waits for somebody to say yes: `mooring-agent consent {offer.line} --yes`."
            return Gate(Permission.CLOSED, Wait.CONSENT, text)
        return self._window(rules.activations, rules, now, what="activations")

    def refusal(self, offer: LineOffer, delivery: Delivery) -> str:
        config = self._rules.config
        if not config.metered or not delivery.planned_bytes:
            return ""
        if config.full_download == "never":
            return f"The link is metered and carries no updates (update.full_download = never); {delivery.planned_bytes} bytes wait."
        allowed = offer.full_bytes_allowed
        if allowed is None:
            allowed = config.full_up_to_bytes if config.full_download == "full_up_to" else 0
        if delivery.full_bytes <= allowed:
            return ""
        why = delivery.note or "there is no delta for it"
        return f"The link is metered and may carry {allowed} bytes of whole models; {delivery.full_bytes} are needed, because {why}."

    def prefers_deltas(self) -> bool:
        return self._rules.config.metered

    def _window(self, windows: tuple[Window, ...], rules: "_Rules", now: datetime, *, what: str) -> Gate:
        if not windows:
            return OPEN
        known = self._site_time(now)
        if known is None:
            return Gate(Permission.CLOSED, Wait.CLOCK, f"The clock is not set and no server told the time; no window for {what} is known.")
        if is_open(windows, rules.zone, known):
            return OPEN
        opening = next_opening(windows, rules.zone, known)
        when = "never" if opening is None else f"at {opening.astimezone(rules.zone):%Y-%m-%d %H:%M} {rules.config.time_zone}"
        return Gate(Permission.CLOSED, Wait.WINDOW, f"The window for {what} opens {when}.", opening)


_REFUSED = Gate(Permission.REFUSED, Wait.CONSENT, "Consent was refused on site.")


@dataclass(frozen=True, slots=True)
class _Rules:
    """Settings with what is made of them once."""

    config: UpdateConfig
    zone: tzinfo
    downloads: tuple[Window, ...]
    activations: tuple[Window, ...]

    @classmethod
    def of(cls, config: UpdateConfig) -> "_Rules":
        downloads, activations = (tuple(map(_window_of, part)) for part in (config.download_windows, config.activation_windows))
        return cls(config, zone_named(config.time_zone), downloads, activations)


def _window_of(config: WindowConfig) -> Window:
    return Window(frozenset(config.days), time.fromisoformat(config.from_), time.fromisoformat(config.to))
