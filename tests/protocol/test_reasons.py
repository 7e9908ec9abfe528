"""Every reason that an update can end with is listed, explained, and on the page for operators."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.reasons import REASONS, UNLISTED, as_page, explained, named

ROOT = Path(__file__).resolve().parent.parent.parent
#: Where what an update fails by is raised.
SOURCES = (
    "agent/update",
    "agent/slots.py",
    "agent/inference",
    "runtime",
    "protocol/trust",
    "protocol/delta",
    "protocol/files.py",
    "agent/database",
    "agent/store.py",
)
#: Callables whose second argument is such a code.
POSITIONAL = frozenset({"Verdict", "Judgment"})
#: Codes that end no update: successes, requests to the inference process, findings, settings, people at an API.
OTHERS = frozenset({"ok", "", "no_pipeline", "no_previous", "config", "conflict", "precondition-failed", "unauthenticated", "forbidden"})
#: Sources of the agent that are no part of an update's way.
NOT_UPDATES = frozenset({"tuf_cli.py", "snapshots.py", "preview.py"})


def codes() -> Iterator[tuple[str, str]]:
    """(code, where) of every literal code in the sources."""
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.name not in NOT_UPDATES:
                yield from ((code, f"{file.relative_to(ROOT)}:{line}") for code, line in _codes_of(ast.parse(file.read_text())))


def _codes_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[_, ast.Constant(value=str(code)), *_]) if (
                name in POSITIONAL
            ):
                yield code, node.lineno
            case ast.Call(func=ast.Attribute(attr="with_reason"), args=[ast.Constant(value=str(code)), *_]):
                yield code, node.lineno
            case ast.Call(func=ast.Attribute(attr="_request_abort"), args=[_, ast.Constant(value=str(code)), *_]):
                yield code, node.lineno
            case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                yield code, node.lineno
            case ast.ClassDef(body=body):
                for line in body:
                    match line:
                        case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                            yield code, line.lineno


def test_every_code_that_an_update_can_end_with_is_listed():
    found = dict(codes())
    assert {code: where for code, where in found.items() if code not in REASONS and code not in OTHERS} == {}
    assert len(found) > 60, "the search found too little"


def test_no_listed_code_is_one_that_nobody_gives():
    given = {code for code, _ in codes()} | set(attack_names())
    spoken_elsewhere = {
        UNLISTED,
        "exhausted",
        "disk-full",
        "store-failed",
        "self_test_failed",
        "golden_mismatch",
        "engine_down",
        "error",
        "trust",
        "transfer",
        "device",
        "invalid",
        "not-found",
    }
    assert set(REASONS) - given - spoken_elsewhere == set()


def attack_names() -> Iterator[str]:
    """What python-tuf's refusals are called."""
    for node in ast.walk(ast.parse((ROOT / "protocol/trust/updater.py").read_text())):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("code", REASONS)
def test_each_says_what_happened_and_what_to_do(code):
    reason = REASONS[code]
    assert reason.code == code
    assert reason.meaning.endswith(".")
    assert reason.advice.endswith((".", "?"))
    assert explained(code) == f"{reason.meaning} {reason.advice}"


def test_an_unknown_code_becomes_one_that_says_so():
    assert named("constant_output") == "constant_output"
    assert named("brand_new") == UNLISTED
    assert explained("brand_new") == ""


def test_the_page_for_operators_is_current():
    """Make it again with `python -m protocol.reasons > docs/reasons.md`."""
    assert (ROOT / "docs/reasons.md").read_text() == as_page()
