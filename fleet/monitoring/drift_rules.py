"""What the operator asks of drift: how many false alarms are allowed. Pure."""

from dataclasses import dataclass

from fleet.config import DriftConfig
from fleet.monitoring.detectors import ALPHA


@dataclass(frozen=True, slots=True)
class DriftRules:
    """The promise; defaults as in `fleet.config.DriftConfig`."""

    #: False alarms per device-year.
    rate: float = 1.0
    #: False alarms per year of the whole fleet; 0: `rate` holds for each device.
    fleet_rate: float = 0.0
    #: False alarms per year of one group.
    group_rate: float = 1.0
    #: Share of wrong names in the order of devices.
    alpha: float = ALPHA


def rules_of(asked: DriftConfig) -> DriftRules:
    """What the server's settings ask."""
    return DriftRules(
        rate=asked.false_alarms_per_device_year,
        fleet_rate=asked.fleet_false_alarms_per_year,
        group_rate=asked.group_false_alarms_per_year,
        alpha=asked.false_discovery_share,
    )
