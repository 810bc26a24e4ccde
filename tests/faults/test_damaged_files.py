"""Damaged files of every format are refused, in short (case 1, 2, 3, 8, 17); the long form is `make faults`."""

from __future__ import annotations

import pytest
from campaigns import damaged
from damage import variants


def test_damaged_files_are_refused() -> None:
    said: list[str] = []
    rows = damaged.run(17, 36 * 12, said.append)
    assert not [line for line in said if "broken" in line]
    assert len(rows) == 36
    assert all(row.kept for row in rows)


WHOLE = {
    "bytes": bytes(range(256)) * 8,
    "JSON": b'{"a": 1, "b": [2, "xyz"]}',
    "no keys": b"{}",
    "zip": b"PK\x03\x04 name PK\x01\x02" + bytes(50),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(40),
}


@pytest.mark.parametrize("form", WHOLE)
def test_variants_are_the_same_for_a_seed_and_none_is_the_file(form: str) -> None:
    data = WHOLE[form]
    first, more = list(variants(data, 3, 20)), list(variants(data, 3, 40))
    assert first == more[:20]
    assert len(more) == 40
    assert all(variant != data for _, variant in more)
    assert list(variants(data, 4, 20)) != first
