"""User names and passwords of sources, put into the addresses that the inference process opens."""

from collections.abc import Mapping
from urllib.parse import quote, urlsplit, urlunsplit

from agent.config import PipelineConfig, SensorSource, StreamSource


def resolve_secrets(pipelines: tuple[PipelineConfig, ...], secrets: Mapping[str, str]) -> tuple[tuple[PipelineConfig, ...], dict[str, str]]:
    """The pipelines with each named secret ("user:password") put into its URL, and per pipeline left out: why."""
    resolved, errors = [], {}
    for pipeline in pipelines:
        source = pipeline.source
        if not isinstance(source, StreamSource | SensorSource) or source.secret is None:
            resolved.append(pipeline)
        elif (value := secrets.get(source.secret)) is None:
            errors[f"pipelines.{pipeline.name}.source.secret"] = f"no secret named {source.secret!r} has reached this device"
        else:
            names = ("url", "sub_url") if isinstance(source, StreamSource) else ("broker",)
            addresses = {name: address for name in names if (address := getattr(source, name)) is not None}
            update = {**{name: _with_credentials(address, value) for name, address in addresses.items()}, "secret": None}
            resolved.append(pipeline.model_copy(update={"source": source.model_copy(update=update)}))
    return tuple(resolved), errors


def _with_credentials(url: str, secret: str) -> str:
    user, _, password = secret.partition(":")
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}"))
