"""Servers of the color model, ended with the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from simulators.color_models import make_slot
from simulators.oip import Served

from agent.config import RuntimeConfig
from agent.listening import ListenAddress
from agent.serving.models import Shelf
from agent.serving.server import Guard, Limits, Server
from agent.serving.worker import open_listener


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers of the color model, or of another folder."""
    with ExitStack() as stack:

        def start(
            *,
            folder: Path | None = None,
            unix: Path | None = None,
            limits: Limits | None = None,
            guard: Guard | None = None,
            **options: Any,
        ) -> Served:
            limits = limits or Limits()
            listener = stack.enter_context(open_listener(ListenAddress(path=str(unix)) if unix else ListenAddress("127.0.0.1", 0)))
            shelf = Shelf(copies=limits.lanes, runtime=RuntimeConfig())
            shelf.put("color", folder or make_slot(tmp_path / "color"))
            server = Server(listener, shelf, limits=limits, guard=guard or Guard(), version="1", **options)
            address = listener.getsockname()
            server.start()
            stack.callback(shelf.close)
            stack.callback(server.stop)
            return Served(server, shelf, address, stack)

        yield start
