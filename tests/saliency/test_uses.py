"""The GPU's shorter way to square a 16-bit gradient, run on the CPU."""

from __future__ import annotations

import pytest
import torch

from mmsurgery.saliency.sums import Sums
from mmsurgery.saliency.uses import MatrixUse, Owners, add_squares_of


@pytest.mark.parametrize("of_row", [None, torch.tensor([1, 0, 1, 2])])
def test_products_squared_as_they_are_added_are_the_same_numbers(of_row: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    rows, samples = 4, 4 if of_row is None else 3
    parameter = torch.nn.Parameter(torch.zeros(256, 192, dtype=torch.bfloat16))
    use = MatrixUse(torch.randn(rows, 5, 256).bfloat16(), torch.randn(rows, 5, 192).bfloat16(), Owners(of_row, samples))
    expected, found = Sums({parameter: "w"}), Sums({parameter: "w"})
    add_squares_of([use], parameter, expected)
    use._add_products(parameter, found)
    assert found.totals["w"].dtype is torch.float32
    assert bool(found.totals["w"].any())
    assert torch.equal(found.totals["w"], expected.totals["w"])
