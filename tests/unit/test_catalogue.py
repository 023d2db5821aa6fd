"""The table of tests/README.md: every fault that is dealt with has one row, and the tests that it names exist."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NUMBERS = [
    *range(1, 45),
    *range(45, 121),
    *range(136, 159),
]


def table() -> list[tuple[int, str]]:
    """Return number and text of each row."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (TESTS / "README.md").read_text(), re.MULTILINE)
    return [(int(number), text) for number, text in rows]


def functions(path: Path) -> set[str]:
    """Return the names that a module defines at its top, by `def` or by assignment."""
    names = set()
    for node in ast.parse(path.read_bytes(), str(path)).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_every_fault_has_one_row() -> None:
    assert [number for number, _ in table()] == NUMBERS


@pytest.mark.parametrize(("number", "text"), table(), ids=[f"fault {number}" for number, _ in table()])
def test_what_a_row_names_exists(number: int, text: str) -> None:
    """A file without a directory is in the directory of the one before it; a test is in one of the row's files."""
    known, folder = set(), TESTS
    for name in re.findall(r"(?<![\w.])[\w/]+\.py\b", text):
        folder = (TESTS / name).parent if "/" in name else folder
        path = folder / Path(name).name
        assert path.is_file(), name
        known |= functions(path)
    named = re.findall(r"`(test_[\w*]+)`", text)
    for pattern in named:
        assert any(fnmatchcase(name, pattern) for name in known), pattern
    for group in re.findall(r"scenarios? ((?:`\w+`(?:, )?)+)", text):
        scenarios = set().union(*(functions(path) for path in (TESTS / "fuse").glob("*_scenarios.py")))
        assert set(re.findall(r"\w+", group)) <= scenarios
    assert named or re.match(r"as \d+;|[A-Z]", text), "neither a test nor a reason"
