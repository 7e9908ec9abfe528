"""The settings `runtime` as the back ends take them."""

from agent.config import RuntimeConfig
from runtime.base import BackendOptions


def backend_options(runtime: RuntimeConfig) -> BackendOptions:
    """How to load a model on this device."""
    return BackendOptions(providers=runtime.providers, threads=runtime.threads, require=runtime.require, provider_options=runtime.options)
