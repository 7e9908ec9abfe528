"""What is in force: the local settings, changed by what the server wishes (remembered), with signed configuration laid over both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.config import AgentConfig, PipelineConfig
from agent.identity import Identity
from agent.settings.desired import DesiredConfig, parse_desired
from agent.settings.overlaying import effective_config, resolve_secrets, settable, trim_rules, with_settable
from agent.store import Store
from protocol.configuration import Effective, overlay
from protocol.errors import MooringError
from protocol.messages import Desired
from protocol.sealed import open_sealed, secret_context


@dataclass(frozen=True, slots=True)
class InForce:
    """What the device runs by."""

    rev: int
    #: The local settings, changed by what the server wishes; no secret in it.
    config: AgentConfig
    #: The pipelines that can run, with credentials inside their URLs: for the inference process only, never shown.
    pipelines: tuple[PipelineConfig, ...]
    #: Per key of the desired config that could not be applied: why.
    errors: Mapping[str, str]
    #: The values that signed configuration may change: as they are without it, and in force.
    base: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    #: Dotted key -> why signed configuration could not set it here.
    ignored: Mapping[str, str] = field(default_factory=dict)


class Twin:
    """Keeps the newest desired config. `take` is called on the uplink's thread, `apply` by the control loop."""

    def __init__(self, store: Store, local: AgentConfig, identity: Identity | None) -> None:
        """Start with what was remembered. Raises: DeviceError when the store cannot be read."""
        self._store, self._local, self._identity = store, local, identity
        self._desired = store.desired() or Desired(rev=0)
        self._is_new = True
        self._signed = Effective({}, {}, {})
        self.in_force = InForce(0, local, (), {})

    def take(self, desired: Desired) -> bool:
        """Remember it, durably, before the broker is told; returns whether it hints at another assignment. Raises: DeviceError."""
        if desired == self._desired:
            return False
        self._store.save_desired(desired)
        is_hint = desired.manifest != self._desired.manifest
        self._desired, self._is_new = desired, True
        return is_hint

    def apply(self, signed: Effective | None = None) -> InForce | None:
        """What is in force from now on; None when nothing new was wished, and `signed` is None or what it was."""
        is_same = signed is None or signed == self._signed
        if is_same and not self._is_new:
            return None
        self._is_new = False
        self._signed = self._signed if signed is None else signed
        wished = self._desired
        desired, errors = parse_desired(wished.config)
        own, too_many = trim_rules(effective_config(self._local, desired))
        base = settable(own)
        overlaid = overlay(base, self._signed.settings)
        config, misfits = with_settable(own, overlaid.values)
        config, beyond = trim_rules(config)
        ignored = {**self._signed.ignored, **misfits, **beyond, **{f"pipelines.{name}": "not on this device" for name in overlaid.unused}}
        pipelines, unresolved = resolve_secrets(config.pipelines, self._open_secrets(desired, errors))
        self.in_force = InForce(wished.rev, config, pipelines, errors | too_many | unresolved, base, settable(config), ignored)
        return self.in_force

    def _open_secrets(self, desired: DesiredConfig, errors: dict[str, str]) -> dict[str, str]:
        """The secrets that open on this device; why the others do not goes into `errors`."""
        opened: dict[str, str] = {}
        identity = self._identity
        if identity is None:
            return opened
        for name, text in desired.secrets.items():
            try:
                opened[name] = open_sealed(identity.sealing_key(), text, context=secret_context(identity.device, name)).decode()
            except (MooringError, UnicodeDecodeError) as error:
                errors[f"secrets.{name}"] = str(error)
        return opened
