"""The settings that a command works by, and the commands that show and check them."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from agent.commands.output import Out, answer
from agent.settings.loading import LoadedConfig, load_config, parse_value
from protocol.errors import ConfigError


def load(options: argparse.Namespace) -> LoadedConfig:
    """The settings, with this command's flags over all else. Raises: ConfigError."""
    flags: dict[str, Any] = {"state_dir": options.state_dir, "run_dir": options.run_dir}
    for setting in options.set:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r} has no value.", hint="Wanted: --set key=value, e.g. --set update.poll_s=60.")
        flags[key] = parse_value(key, value)
    environment = dict(os.environ)
    loaded = load_config(flags=flags, environment=environment, config_path=options.config)
    if options.state_dir and "run_dir" not in loaded.origins:  # without root, one folder is enough
        flags["run_dir"] = str(Path(options.state_dir) / "run")
        loaded = load_config(flags=flags, environment=environment, config_path=options.config)
    return loaded


def show(options: argparse.Namespace) -> int:
    """Print every setting, secrets masked."""
    rows = load(options).rows()
    found = {key: {"value": value, "origin": origin} for key, value, origin in rows}

    def show(out: Out) -> None:
        for key, value, origin in rows:
            out(f"{key} = {json.dumps(value)}" + (f"  # {origin}" if options.origin else ""))

    answer(options, found, show)
    return 0


def check(options: argparse.Namespace) -> int:
    """Say whether the settings are good; what is likely a mistake is a warning, as the agent starts all the same. Raises: ConfigError."""
    from agent.settings.doubts import doubts

    loaded = load(options)
    found = [
        {"key": key, "text": text, "origin": loaded.origin_of(key) or loaded.origin_of(key.partition(".")[0])}  # lists have one for all
        for key, text in doubts(loaded.config)
    ]

    def show(out: Out) -> None:
        for one in found:
            out(f"warning: {one['key']}: {one['text']} (from {one['origin']}).")
        if found:
            out("The agent starts all the same: without a provider models run on the next or the processor, and a source is tried again.")
        else:
            out("The settings are good.")

    answer(options, {"ok": True, "warnings": found}, show)
    return 0
