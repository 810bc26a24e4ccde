"""tests/README.md names a test for every case, and no test that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
CASES = 90


def test_every_case_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]*)\|$", (TESTS / "README.md").read_text(), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, CASES + 1))
    for number, _, named, note in rows:
        tests = re.findall(r"`([\w/]+\.py)::([\w*]+)`", named)
        assert tests or note.strip(), f"case {number} has neither a test nor a reason"
        for file, function in tests:
            functions = {
                node.name
                for node in ast.walk(ast.parse((TESTS / file).read_text()))
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            }
            assert functions if function == "*" else function in functions, f"case {number}: no {file}::{function}"
