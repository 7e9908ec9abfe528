"""mooring site: list, show, create, set."""

from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption
from fleet.cli.session import open_api

app = typer.Typer(no_args_is_help=True, help="Sites: where devices are, and what was agreed there.")

#: Rules of a site as the API names them, with how people see them.
_RULES = {"time_zone": "time zone", "consent": "pictures", "bandwidth_kbit_s": "bandwidth, kbit/s", "max_updating": "updating at once"}
_TimeZone = typer.Option(None, "--time-zone", help="Of its clocks, e.g. Europe/Berlin.")
_Consent = typer.Option(None, "--consent", help="Which pictures may leave its devices: deny, minimized or allow.")
_Bandwidth = typer.Option(None, "--bandwidth-kbit-s", min=0, help="What its devices may download with together; 0: no limit.")
_MaxUpdating = typer.Option(None, "--max-updating", min=0, help="How many of its devices update at once; 0: no limit.")


@app.command("list")
def list_sites(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List sites and their rules."""
    with open_api(server) as api:
        rows = list(api.pages("/sites"))
    if as_json:
        output.document(rows)
        return
    columns = [("SITE", lambda row: row["name"]), *((label.upper(), lambda row, key=key: row[key]) for key, label in _RULES.items())]
    output.table(columns, rows, empty="No sites.")


@app.command()
def show(name: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one site."""
    with open_api(server) as api:
        found = api.get(f"/sites/{name}")
    if as_json:
        output.document(found)
        return
    output.facts({"name": found["name"], **{label: found[key] for key, label in _RULES.items()}, "revision": found["revision"]})


@app.command()
def create(
    name: str,
    time_zone: str | None = _TimeZone,
    consent: str | None = _Consent,
    bandwidth_kbit_s: int | None = _Bandwidth,
    max_updating: int | None = _MaxUpdating,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Add a site. Without --consent its devices give no pictures."""
    wished = _wished(time_zone, consent, bandwidth_kbit_s, max_updating)
    with open_api(server) as api:
        made = api.send("POST", "/sites", {"name": name, **wished, "reason": reason})
    _say(made, f"Site {name} is there.", as_json=as_json)


@app.command("set")
def change(
    name: str,
    time_zone: str | None = _TimeZone,
    consent: str | None = _Consent,
    bandwidth_kbit_s: int | None = _Bandwidth,
    max_updating: int | None = _MaxUpdating,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Change rules of a site; what is not named stays."""
    wished = _wished(time_zone, consent, bandwidth_kbit_s, max_updating)
    with open_api(server) as api:
        found, etag = api.get_with_etag(f"/sites/{name}")
        if all(found[key] == value for key, value in wished.items()):
            output.say("Nothing changed.")
            return
        made = api.send("PUT", f"/sites/{name}", {**{key: found[key] for key in _RULES}, **wished, "reason": reason}, etag=etag)
    _say(made, f"Site {name}: {', '.join(f'{_RULES[key]} {output.text_of(made[key])}' for key in wished)}.", as_json=as_json)


def _wished(time_zone: str | None, consent: str | None, bandwidth_kbit_s: int | None, max_updating: int | None) -> dict[str, Any]:
    """What was named; 0 takes a limit away."""
    named = {
        "time_zone": time_zone,
        "consent": consent,
        "bandwidth_kbit_s": bandwidth_kbit_s,
        "max_updating": max_updating,
    }
    return {key: None if value == 0 else value for key, value in named.items() if value is not None}


def _say(made: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        output.document(made)
    else:
        output.say(text)
