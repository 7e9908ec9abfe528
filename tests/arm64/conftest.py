"""The tree that tests run programs in."""

from collections.abc import Iterator

import pytest
from arm64.tree import Tree, lacking, opened_tree


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    """A tree with our sources as they are now. Fails where none can be made."""
    if text := lacking():
        pytest.fail(text)
    with opened_tree() as tree:
        yield tree
