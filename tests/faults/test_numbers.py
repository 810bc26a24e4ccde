"""No silent NaN, underflow or empty result: cases 36 to 49."""

from __future__ import annotations

from campaigns import numbers, same_bytes


def test_numeric_faults_end_with_5_and_name_their_place() -> None:
    """Promise 6; cases 31, 36, 37, 39, 40, 42, 43, 45."""
    said: list[str] = []
    rows = numbers.run(seed=0, count=len(numbers.FAULTS), report=said.append)
    assert all(row.kept for row in rows), (rows, said)


def test_the_same_bytes_in_another_process_folder_locale_time_and_hash_seed() -> None:
    """Promise 8; case 48."""
    said: list[str] = []
    (row,) = same_bytes.run(seed=0, count=1, report=said.append)
    assert row.kept, said
