"""Damaged files of every format are refused, in short (case 1, 2, 3, 8, 17); the long form is `make faults`."""

from __future__ import annotations

import pytest
from campaigns import damaged
from damage import variants


def test_damaged_files_are_refused() -> None:
    said: list[str] = []
    rows = damaged.run(17, 19 * 20, said.append)
    assert not [line for line in said if "broken" in line]
    assert len(rows) == 19
    assert all(row.kept for row in rows)


@pytest.mark.parametrize("data", [bytes(range(256)) * 8, b"{}"])
def test_variants_are_the_same_for_a_seed_and_none_is_the_file(data: bytes) -> None:
    first, more = list(variants(data, 3, 20)), list(variants(data, 3, 40))
    assert first == more[:20]
    assert len(more) == 40
    assert all(variant != data for _, variant in more)
    assert list(variants(data, 4, 20)) != first
