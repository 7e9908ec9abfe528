"""A picture of a pipeline's next frame, for whoever stands beside the device."""

import argparse
import sys

from agent.commands.output import answer
from agent.commands.settings import load
from protocol.errors import ConfigError


def save(options: argparse.Namespace) -> int:
    """Write the picture to a file, or to standard output. Raises: MooringError when there is none; ConfigError when it cannot be."""
    import base64

    from agent.control import ask

    found = ask(load(options).config.control_socket, "snapshot", pipeline=options.pipeline)
    data = base64.b64decode(found["jpeg"])
    if str(options.output) == "-":
        sys.stdout.buffer.write(data)
        return 0
    try:
        options.output.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{options.output} cannot be written: {error.strerror}.") from None
    said = {"pipeline": options.pipeline, "file": str(options.output), "bytes": len(data)}
    answer(options, said, lambda out: out(f"{options.pipeline}: {found['width']} x {found['height']} pixels in {options.output}."))
    return 0
