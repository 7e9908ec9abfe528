"""What the update machine asks of whoever runs models; the inference process does it, tests simulate it."""

from pathlib import Path
from typing import Protocol

from runtime.selftest import Activation, Figures, SelfTest


class Engine(Protocol):
    """Runs one model per line. Methods answer with values; DeviceError only when the inference process cannot be reached."""

    def self_test(self, folder: Path, *, provider: str = "") -> SelfTest:
        """Load the slot's model in a child process on its candidate back ends, or on one only, and run its golden vectors."""
        ...

    def activate(self, line: str, folder: Path) -> Activation:
        """Load and warm the slot's model beside the running one, then flip; on failure the old one keeps running.

        A folder that is already active stays so: the call is idempotent.
        """
        ...

    def commit(self, line: str, *, rss_budget_mb: float | None = None) -> None:
        """Free the model before the active one. A process that stays above the budgets of its models after that is started again."""
        ...

    def deactivate(self, line: str) -> None:
        """Run no model for the line."""
        ...

    def figures(self, line: str) -> Figures | None:
        """Live figures since the line's model was activated; None when no model is active."""
        ...
