"""A weight's gradients by sample, some rows at a time."""

from __future__ import annotations

import pytest
import torch

from mmsurgery.saliency import blocks
from mmsurgery.saliency.sums import Sums
from mmsurgery.saliency.uses import MatrixUse, Owners, add_squares_of


@pytest.mark.parametrize("of_row", [None, torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 1, 2])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 192), (256, 3, 8, 8)])
def test_rows_of_a_weight_may_be_done_by_block(
    of_row: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares of the products, in the dtype that the model computes in; the same numbers at any size of block."""
    torch.manual_seed(0)
    samples = 4 if of_row is None else 3
    parameter = torch.nn.Parameter(torch.zeros(*shape, dtype=dtype))
    gradient, inputs = torch.randn(4, 5, 256).to(dtype), torch.randn(4, 5, 192).to(dtype)
    whose = torch.arange(4) if of_row is None else of_row
    wanted: torch.Tensor | float = 0.0
    for sample in range(samples):
        mine = whose == sample
        product = gradient[mine].flatten(0, 1).T @ inputs[mine].flatten(0, 1)
        wanted = wanted + product.to(torch.promote_types(dtype, torch.float32)).square()
    found = []
    for block in (1 << 20, 100 * 192, 1):
        monkeypatch.setitem(blocks.BLOCK, "cpu", block)
        monkeypatch.setattr(blocks, "ROWS", 7)
        sums = Sums({parameter: "w"})
        add_squares_of([MatrixUse(gradient, inputs, Owners(of_row, samples))], parameter, sums)
        found.append(sums.totals["w"])
        assert sums.totals["w"].shape == shape
        assert max(buffer.numel() for buffer in sums._buffers.values()) <= max(block, 7 * 192)
    assert torch.allclose(found[0].view(256, 192), torch.as_tensor(wanted), rtol=1e-5, atol=0)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
