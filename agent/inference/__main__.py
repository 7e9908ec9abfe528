"""The program of the inference process, see `worker`."""

import gc
import os
import sys


def run() -> int:
    """Import everything and be the worker; returns the exit status."""
    gc.disable()  # the collector would look at what is imported again and again, a seventh of the import's time, and find nothing
    from agent.inference.worker import main

    gc.freeze()
    gc.enable()
    return main(sys.argv[1:])


if __name__ == "__main__":
    status = run()
    sys.stderr.flush()
    os._exit(status)  # not sys.exit: a thread that is stuck in a driver must not keep the process
