"""What does not belong together is refused before weights are loaded, and says what differs: cases 24 to 35."""

from __future__ import annotations

from campaigns import fits


def test_a_mask_fits_or_is_refused() -> None:
    """Promise 5; cases 24 to 27, 29, 34, 35. One pair of each kind of mismatch and a model, every time others."""
    said: list[str] = []
    (row,) = fits.run(seed=0, count=12, report=said.append)
    assert row.kept, said
