"""Opens the API as the person who logged in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fleet.cli import credentials
from fleet.cli.client import Api
from protocol.errors import ForbiddenError

#: PEM file of the authority that signed the console's certificate, when the system does not know it.
CA_VARIABLE = "MOORING_CLI_CA"


@contextmanager
def open_api(server: str | None) -> Iterator[Api]:
    """The API of the chosen server. Raises: UnauthenticatedError when nobody logged in there."""
    known = credentials.load(server)
    with Api(known.server, known.token, verify=tls_verification()) as api:
        yield api


def check_device(api: Api, device: str) -> None:
    """Nothing for a device that there is: a list that names another one is empty, which would read as good news.

    Raises: NotFoundError. A token that may not read devices is not told.
    """
    with suppress(ForbiddenError):
        api.get(f"/devices/{device}")


def tls_verification() -> str | bool:
    """What httpx takes as `verify`: the file of MOORING_CLI_CA, else the system's authorities."""
    return os.environ.get(CA_VARIABLE) or True
