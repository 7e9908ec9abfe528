"""Every draft in the documentation is one, and so are the examples'."""

import re
import tomllib
from pathlib import Path

import pytest

from fleet.registry.drafts import load_draft, parse_draft
from runtime.manifest import TASKS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
DRAFTS = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize("document", DRAFTS, ids=[f"{number}-{one['task']}" for number, one in enumerate(DRAFTS)])
def test_a_draft_of_the_documentation_is_one(document: dict):
    assert parse_draft(document).task == document["task"]


def test_every_task_is_shown_or_has_its_own_page():
    assert {one["task"] for one in DRAFTS} | {"classification"} == set(TASKS)
    assert all(f"`{task}`" in TEXT for task in TASKS)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/*.toml")), ids=lambda path: path.name)
def test_a_draft_of_the_examples_is_one(path: Path):
    assert load_draft(path).task in TASKS
