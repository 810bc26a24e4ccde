"""The page of results: another workspace's experiments are added to what stands there."""

from __future__ import annotations

from pathlib import Path

from results_page import added

PAGE = Path(__file__).parents[2] / "docs" / "results.md"

OLD = """# Results

head

## What holds and what does not

| claim | from | model | verdict | evidence |
|---|---|---|---|---|
| more | Table 1 | llava | **holds** | +1 |
| more | Table 1 | qwen2_vl | **holds** | +2 |

## Run times

| experiment | cells |
|---|---:|
| table1 | 5 |

## Table 1

old
"""
NEW = """# Results

another head

## What holds and what does not

| claim | from | model | verdict | evidence |
|---|---|---|---|---|
| less | Table 2 | llava | **holds** | +3 |
| more | Table 1 | qwen2_vl | **does not hold** | -2 |

## Run times

| experiment | cells |
|---|---:|
| table2 | 7 |

## Table 2

new
"""


def test_what_is_there_already_changes_nothing() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert added(page, page) == page


def test_what_other_workspaces_gave_stays() -> None:
    page = added(OLD, NEW)
    lines = page.split("\n")
    assert [line for line in lines if line.startswith("#")] == [
        "# Results", "## What holds and what does not", "## Run times", "## Table 1", "## Table 2",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("| ")] == [
        "| claim | from | model | verdict | evidence |",
        "| more | Table 1 | llava | **holds** | +1 |",
        "| more | Table 1 | qwen2_vl | **does not hold** | -2 |",
        "| less | Table 2 | llava | **holds** | +3 |",
        "| experiment | cells |",
        "| table1 | 5 |",
        "| table2 | 7 |",
    ]
    assert ("head" in lines, "another head" in lines, "old" in lines, "new" in lines) == (True, False, True, True)
    assert added(page, NEW) == page
    assert page.endswith("new\n")
