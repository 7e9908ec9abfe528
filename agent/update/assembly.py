"""An update machine put together from the settings: what downloads releases, brings them into slots, tries them and takes them back."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.config import AgentConfig
from agent.slots import Slots
from agent.update.applier import ChildApplier
from agent.update.bandwidth import TokenBucket
from agent.update.engine import Engine
from agent.update.fetch import Downloads
from agent.update.installers import ModelInstaller
from agent.update.journal import JournalStore
from agent.update.machine import UpdateMachine
from agent.update.policy import UpdatePolicy
from agent.update.probe import ProbeRules
from protocol.clock import Clock
from protocol.ids import LineName

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class Assembly:
    """What all update machines of a device share."""

    config: AgentConfig
    device_type: str
    engine: Engine
    temperature_c: Callable[[], float | None]
    open_client: Callable[[], AbstractContextManager["httpx.Client"]]
    policy: UpdatePolicy
    bucket: TokenBucket
    clock: Clock

    def machine(
        self, store: JournalStore, slots: Slots, *, beside: Slots, downloads: str, on_change: Callable[[LineName], None]
    ) -> UpdateMachine:
        """What brings releases into the slots; files that lie in the ones beside them are not fetched again.

        `downloads`: name of the folder for what is on its way.
        """
        rules = self.config.update
        installer = ModelInstaller(
            slots,
            self.engine,
            device_type=self.device_type,
            spare_bytes=int(rules.spare_disk_mb * 2**20),
            temperature_c=self.temperature_c,
            beside=beside,
        )
        folder, rate = self.config.state_dir / downloads, rules.min_bytes_per_s
        fetcher = Downloads(folder, self.open_client, clock=self.clock, min_bytes_per_s=rate, bucket=self.bucket)
        probe = ProbeRules(
            min_inferences=rules.min_inferences,
            min_seconds=rules.min_seconds,
            max_seconds=rules.max_seconds,
            p99_noise_ms=rules.latency_noise_ms,
            max_temperature_c=rules.max_temperature_c,
        )
        return UpdateMachine(
            store,
            slots,
            installer,
            fetcher,
            clock=self.clock,
            rules=probe,
            on_change=on_change,
            policy=self.policy,
            applier=ChildApplier(memory_mb=lambda: self.policy.config.memory_mb),
        )
