"""The list of mutations keeps up with the source: what it takes out is there once, and the tests it names exist."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import tuf

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

_spec = importlib.util.spec_from_file_location("mutations", HERE / "mutations.py")
mutations = importlib.util.module_from_spec(_spec)
sys.modules["mutations"] = mutations
_spec.loader.exec_module(mutations)

#: The rows of UPDATES 1.3, as they are named there.
ROWS = (
    *("arbitrary software", "metadata rollback", "mix-and-match", "old release", "freeze", "endless data", "slow retrieval"),
    *("fast-forward", "director key stolen", "snapshot or timestamp key stolen", "line key stolen"),
    *("root keys below", "wrong hardware", "wrong device", "clock back", "clock forward"),
)


def source(file: str) -> str:
    return (Path(tuf.__file__).parents[1] if file.startswith("tuf/") else ROOT).joinpath(file).read_text()


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: f"{mutation.row}: {mutation.check}"[:80])
def test_what_a_mutation_takes_out_stands_once_in_the_source_and_its_tests_exist(mutation):
    for file, old, new in mutation.edits:
        assert source(file).count(old) == 1, f"{old!r} in {file}"
        assert old != new
    for test in mutation.tests:
        file, _, name = test.rpartition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / (file or mutations.ATTACKS)).read_text(), re.MULTILINE), test


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_attack_table_has_a_mutation(row):
    assert any(row in mutation.row for mutation in mutations.MUTATIONS)
