"""The gradient of every sample, from one use of a parameter in a batch.

B samples, R leading rows of an activation (each owned by one sample), T tokens, O and I output and
input features. A parameter used several times sums its uses' gradients sample by sample before
squaring; one used once takes the short way of its kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from mmsurgery.saliency.blocks import block_rows
from mmsurgery.saliency.sums import Sums, sum_dtype

SMALL = 1 << 17
"""Elements of all rows' gradients up to which one product for all is faster than one for each sample."""


class Owners:
    """Which rows of an activation belong to which sample.

    Args:
        of_row: int64 `[R]` on the host, or None where row i is sample i.
        samples: B.
    """

    def __init__(self, of_row: torch.Tensor | None, samples: int) -> None:
        self.of_row = torch.arange(samples) if of_row is None else of_row
        self.samples, self._one_each = samples, of_row is None
        counts = torch.bincount(self.of_row, minlength=samples).tolist()
        in_order = bool((self.of_row[1:] >= self.of_row[:-1]).all())
        self._rows: list[slice | torch.Tensor] = []
        position = 0
        for sample, count in enumerate(counts):
            rows: slice | torch.Tensor = slice(position, position + count)
            self._rows.append(rows if in_order else (self.of_row == sample).nonzero()[:, 0])
            position += count
        self.present = [sample for sample, count in enumerate(counts) if count]
        """Samples with at least one row."""

    def take(self, values: torch.Tensor, sample: int) -> torch.Tensor:
        """The rows of a sample, `[rows * T, ...]` from `[R, T, ...]`; a view where they are contiguous."""
        rows = self._rows[sample]
        mine = values[rows] if isinstance(rows, slice) else values.index_select(0, rows.to(values.device))
        return mine.flatten(0, 1)

    def per_sample(self, values: torch.Tensor) -> torch.Tensor:
        """`[B, ...]` sums of `[R, ...]` over each sample's rows; `values` itself where there is one each."""
        if self._one_each:
            return values
        sums = values.new_zeros((self.samples, *values.shape[1:]))
        return sums.index_add_(0, self.of_row.to(values.device), values)


class Use(ABC):
    """One use of a parameter in a batch, with the gradient that came back to it."""

    owners: Owners

    @abstractmethod
    def write(self, parameter: torch.nn.Parameter, sample: int, out: torch.Tensor, fresh: bool, sums: Sums) -> None:
        """Put (`fresh`) or add the sample's gradient into `out`, which has the parameter's shape."""

    def add_squares(self, parameter: torch.nn.Parameter, sums: Sums) -> None:
        """Add the squared gradient of every sample to the parameter's sum."""
        _add_squares_of_sum([self], parameter, sums)


class MatrixUse(Use):
    """Weight of a linear layer, or of a convolution as a linear layer over patches: g^T a."""

    def __init__(self, gradient: torch.Tensor, inputs: torch.Tensor, owners: Owners) -> None:
        """`gradient` is `[R, T, O]`, `inputs` `[R, T, I]`."""
        self.gradient, self.inputs, self.owners = gradient, inputs, owners

    def write(self, parameter: torch.nn.Parameter, sample: int, out: torch.Tensor, fresh: bool, sums: Sums) -> None:
        left, right = self.owners.take(self.gradient, sample).T, self.owners.take(self.inputs, sample)
        flat = out.view(len(out), -1)
        if left.dtype == out.dtype:
            torch.addmm(flat, left, right, beta=0 if fresh else 1, out=flat)
            return
        product = sums.scratch(parameter, left.dtype, "product").view(len(out), -1)
        torch.mm(left, right, out=product)
        flat.copy_(product) if fresh else flat.add_(product)

    def add_squares(self, parameter: torch.nn.Parameter, sums: Sums) -> None:
        if len(self.gradient) * parameter.numel() <= SMALL:
            gradients = torch.bmm(self.gradient.transpose(1, 2), self.inputs).view(-1, *parameter.shape)
            RowsUse(gradients.to(sum_dtype(parameter)), self.owners).add_squares(parameter, sums)
        else:
            rows = block_rows(parameter.shape, parameter.device.type)
            with sums.adding(parameter) as total:
                for first in range(0, len(parameter), rows):
                    self._add_rows(slice(first, first + rows), total.view(len(total), -1)[first : first + rows], sums)

    def _add_rows(self, rows: slice, total: torch.Tensor, sums: Sums) -> None:
        """Add the squares of some rows. A GPU's kernels convert 16-bit products as they read them; on a CPU they
        are converted first, to the same numbers."""
        product = sums.scratch(total, self.gradient.dtype, "product")
        low = product.dtype != total.dtype and not product.is_cuda
        converted = sums.scratch(total, total.dtype) if low else product
        gradient = self.gradient[..., rows]
        for sample in self.owners.present:
            torch.mm(self.owners.take(gradient, sample).T, self.owners.take(self.inputs, sample), out=product)
            if low:
                converted.copy_(product)
            total.addcmul_(converted, converted)


class RowsUse(Use):
    """A parameter whose gradient is small enough to be held for every row: biases, norms, positions."""

    def __init__(self, gradients: torch.Tensor, owners: Owners) -> None:
        """`gradients` is `[R, *shape]`, in the dtype of the sums."""
        self.gradients, self.owners = owners.per_sample(gradients), owners

    def write(self, parameter: torch.nn.Parameter, sample: int, out: torch.Tensor, fresh: bool, sums: Sums) -> None:
        out.copy_(self.gradients[sample]) if fresh else out.add_(self.gradients[sample])

    def add_squares(self, parameter: torch.nn.Parameter, sums: Sums) -> None:
        total = sums.total(parameter)
        total.add_(self.gradients.square().sum(0).to(total.device))


class LookupUse(Use):
    """Weight of an embedding: a token's row gets the sum of its positions' gradients."""

    def __init__(self, ids: torch.Tensor, gradient: torch.Tensor, owners: Owners, padding: int | None) -> None:
        """`ids` is int64 `[R, T]`, `gradient` `[R, T, H]` in the dtype of the sums; the row of
        `padding` gets none, as in `torch.nn.Embedding`."""
        self.ids, self.owners = ids, owners
        self.gradient = gradient if padding is None else gradient.masked_fill((ids == padding).unsqueeze(-1), 0)

    def write(self, parameter: torch.nn.Parameter, sample: int, out: torch.Tensor, fresh: bool, sums: Sums) -> None:
        if fresh:
            out.zero_()
        out.index_add_(0, self.owners.take(self.ids, sample), self.owners.take(self.gradient, sample))

    def add_squares(self, parameter: torch.nn.Parameter, sums: Sums) -> None:
        rows = parameter.shape[0]
        owners = self.owners.of_row.to(self.ids.device).unsqueeze(1)
        keys, place = torch.unique(owners * rows + self.ids, return_inverse=True)
        summed = self.gradient.new_zeros((len(keys), parameter.shape[1]))
        summed.index_add_(0, place.flatten(), self.gradient.flatten(0, 1))
        total = sums.total(parameter)
        total.index_add_(0, (keys % rows).to(total.device), summed.square_().to(total.device))


def add_squares_of(uses: Sequence[Use], parameter: torch.nn.Parameter, sums: Sums) -> None:
    """Add, for every sample, the square of the sum of its gradients over all `uses`."""
    if len(uses) == 1:
        uses[0].add_squares(parameter, sums)
    else:
        _add_squares_of_sum(uses, parameter, sums)


def _add_squares_of_sum(uses: Sequence[Use], parameter: torch.nn.Parameter, sums: Sums) -> None:
    with sums.adding(parameter) as total:
        scratch = sums.scratch(parameter, total.dtype)
        for sample in range(uses[0].owners.samples):
            mine = [use for use in uses if sample in use.owners.present]
            for use in mine:
                use.write(parameter, sample, scratch, use is mine[0], sums)
            if mine:
                total.addcmul_(scratch, scratch)
