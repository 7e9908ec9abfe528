"""One running console for a module's tests."""

from collections.abc import Iterator

import pytest
from console_site import ConsoleSite, running_site


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleSite]:
    with running_site(tmp_path_factory.mktemp("console")) as site:
        yield site
