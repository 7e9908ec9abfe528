"""What settings may say and are hardly meant to: told by `config check`, never a reason not to start.

One file may serve agents of several versions, and a provider that is not there costs speed, not the device: models run on the next one.
A pipeline whose source cannot be opened is tried again, told, and stops no other.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from urllib.parse import urlsplit

from agent.config import AgentConfig, RuntimeConfig
from agent.orders import BROKER_SCHEMES, STREAM_SCHEMES, SensorSource, Source, StreamSource
from runtime.base import BACKEND_NAMES
from runtime.providers import DEVICE_KINDS, EXTERNAL, KINDS, LIBRARY_OPTION, find_kind

#: What all of ONNX Runtime's own names end with, those of vendors' builds too.
_EP_SUFFIX = "ExecutionProvider"
_EPS = {kind.ep.casefold(): kind.ep for kind in KINDS.values() if kind.ep}
#: What people write for the back end `onnx`, by the names of its packages and of its module.
_BACKENDS = (*BACKEND_NAMES, "onnxruntime", "ort")


def doubts(config: AgentConfig) -> list[tuple[str, str]]:
    """(dotted key, text with the value seen and the nearest known ones) per setting that is likely a mistake."""
    runtime = config.runtime
    found = [("runtime.providers", name) for name in runtime.providers]
    found += [(f"runtime.options.{name}", name) for name in runtime.options if name not in runtime.providers]
    providers = [(key, text) for key, name in found if (text := _doubt_of(name, runtime))]
    sources = [
        (f"pipelines.{number}.source.{name}", text)
        for number, pipeline in enumerate(config.pipelines)
        for name, text in _doubts_of(pipeline.source)
    ]
    return providers + sources


def _doubts_of(source: Source) -> Iterator[tuple[str, str]]:
    """Per address that no source of this kind can open: the name of its setting, and why."""
    addresses: list[tuple[str, str | None]] = []
    schemes: tuple[str, ...] = STREAM_SCHEMES
    if isinstance(source, StreamSource):
        addresses = [("url", source.url), ("sub_url", source.sub_url)]
    elif isinstance(source, SensorSource):
        addresses, schemes = [("broker", source.broker)], BROKER_SCHEMES
    for name, address in addresses:
        if address is not None and not _is_address(address, schemes):
            wanted = " or ".join(f"{scheme}://host[:port]" for scheme in schemes)
            # what is no address has no place for a password that is known, so whatever may be one goes
            shown = f"***@{address.rpartition('@')[2]}" if "@" in address else address
            yield name, f"{shown!r} is no address that can be opened; wanted {wanted}"


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        return False


def _doubt_of(name: str, runtime: RuntimeConfig) -> str:
    """Why a provider is likely misspelt; empty when it is ours, or may be one that only an ONNX Runtime knows."""
    has_library = LIBRARY_OPTION in runtime.options.get(name, {})
    backend, separator, provider = name.partition(":")
    if separator and backend in _BACKENDS:
        return f"{name!r} names a back end; wanted the provider alone{_nearest(provider)}"
    kind = find_kind(name)
    if kind is None and has_library:
        return ""
    if kind is None and name.endswith(_EP_SUFFIX):
        exact = _EPS.get(name.casefold(), name)
        return "" if exact == name else f"{name!r} is not how ONNX Runtime spells it; wanted {exact}"
    if kind is None:
        exact = _EPS.get(f"{name}{_EP_SUFFIX}".casefold(), f"which ends with {_EP_SUFFIX}")
        return f"{name!r} is no provider that this agent knows{_nearest(name)}; or ONNX Runtime's full name, {exact}"
    device = name.partition("-")[2]
    devices = (*kind.devices, *(DEVICE_KINDS if has_library else ()))
    if not device or kind.name == EXTERNAL or device in devices:
        return ""
    wanted = ", ".join(f"{kind.name}-{one}" for one in devices)
    return f"{name!r}: {kind.name} knows no device {device!r}; wanted {kind.name}{f' or one of {wanted}' if wanted else ''}"


def _nearest(name: str) -> str:
    known = [*KINDS, *(f"{kind.name}-{device}" for kind in KINDS.values() for device in kind.devices)]
    found = get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(found)}" if found else f"; known: {', '.join(KINDS)}"
