"""mooring broker: access rules, and certificates for outside readers; on the server's own machine."""

import json
from pathlib import Path

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption
from fleet.cli.serve import ConfigOption, DataOption, settings_of
from protocol.errors import InvalidError
from protocol.files import write_atomically
from protocol.ids import TenantId, check_name

app = typer.Typer(no_args_is_help=True, help="The MQTT broker: who may read and write what.")


@app.command()
def acl(data: Path | None = DataOption, config: Path | None = ConfigOption) -> None:
    """Print the access rules, also what an external broker must be told."""
    from fleet.broker import acl_text, consumers_file, read_consumers

    settings = settings_of(data, config)
    consumers = read_consumers(consumers_file(settings.data_dir))
    output.data(acl_text(TenantId(settings.tenant), settings.broker.prefix, consumers))


@app.command()
def consumer(
    name: str,
    suffix: list[str] = typer.Option(["#"], "--suffix", help="Topics below d/DEVICE/ it may read, e.g. tel/#; again for more."),
    data: Path | None = DataOption,
    config: Path | None = ConfigOption,
    as_json: bool = JsonOption,
) -> None:
    """Admit an outside reader: a certificate `consumer.NAME`, and its line in the access rules."""
    from fleet.broker import CONSUMER_PREFIX, consumers_file, read_consumers
    from fleet.devices.pki import open_authority

    settings = settings_of(data, config)
    check_name(name, what="Consumer")
    path = consumers_file(settings.data_dir)
    known = read_consumers(path)
    if not settings.pki_dir.is_dir():
        raise InvalidError(f"{settings.data_dir} is no server's folder.", hint="Name it with --data, on the server's machine.")
    authority = open_authority(settings.pki_dir, settings.pki)
    pair = authority.ensure_service(CONSUMER_PREFIX + name)
    document = {**{one.name: list(one.suffixes) for one in known}, name: suffix}
    write_atomically(path, json.dumps(document, indent=2).encode(), mode=0o600)
    made = {
        "name": CONSUMER_PREFIX + name,
        "certificate": str(pair.certificate),
        "key": str(pair.key),
        "ca": str(authority.ca_path),
        "suffixes": list(suffix),
    }
    if as_json:
        output.document(made)
        return
    output.say(f"{made['name']} may read, as soon as the server has looked (half a minute). For example:")
    prefix = f"{settings.broker.prefix}/1/{settings.tenant}"
    output.data(
        f"mosquitto_sub -V 5 -h localhost -p {settings.broker.port} --cafile {made['ca']} --cert {made['certificate']} --key {made['key']} "
        f"-i {made['name']} -t '{prefix}/d/+/{suffix[0]}' -v"
    )
