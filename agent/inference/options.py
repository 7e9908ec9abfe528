"""The settings `runtime` as the back ends take them."""

from typing import TYPE_CHECKING

from agent.orders import RuntimeOrder
from runtime.base import BackendOptions

if TYPE_CHECKING:
    from agent.config import RuntimeConfig


def backend_options(runtime: "RuntimeOrder | RuntimeConfig") -> BackendOptions:
    """How to load a model on this device."""
    return BackendOptions(providers=runtime.providers, threads=runtime.threads, require=runtime.require, provider_options=runtime.options)
