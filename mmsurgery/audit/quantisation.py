"""Quantisation: does rounding the weights bring knowledge back? (Zhang et al., arXiv 2410.16454: small updates vanish
below the rounding step, and what was unlearned returns.)

Arms: `int8`, each row of a matrix to 255 steps of its largest entry; `nf4`, blocks of 64 entries to the 16 levels of
NormalFloat (Dettmers et al., arXiv 2305.14314). Every matrix but embeddings and the head is rounded to the nearest
level and computed with in float32. Value of a question: right or not under the rounded model. Lower is better; what
rounding itself breaks shows in the same accuracies of vanilla, and in what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.audit.material import Material, chance_of
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.subjects import Subject
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.evaluate.scoring import score
from mmsurgery.evaluate.statistics import Paired, paired_difference
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

BLOCK = 64
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The levels of 4-bit NormalFloat, from table 6 of QLoRA's appendix."""


class Int8:
    """Rows of `[out, in]` rounded to 127 steps on each side of zero, of the row's largest entry."""

    def scale(self, weight: torch.Tensor) -> torch.Tensor:
        """`[out, 1]`, of one step."""
        return (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-38)

    def codes(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (weight / scale).round().clamp(-127, 127)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        scale = self.scale(weight)
        return self.codes(weight, scale) * scale


class NF4:
    """Blocks of 64 entries, in their order, rounded to the nearest of the 16 levels times the block's largest."""

    def scale(self, weight: torch.Tensor) -> torch.Tensor:
        """`[blocks, 1]`, the largest entry."""
        return self._blocks(weight).abs().amax(dim=1, keepdim=True).clamp_min(1e-38)

    def codes(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """`[blocks, 64]` indices of levels."""
        import torch

        levels = torch.tensor(LEVELS, dtype=weight.dtype, device=weight.device)
        return torch.bucketize(self._blocks(weight) / scale, (levels[1:] + levels[:-1]) / 2)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        scale = self.scale(weight)
        levels = torch.tensor(LEVELS, dtype=weight.dtype, device=weight.device)
        rounded = levels[self.codes(weight, scale)] * scale
        return rounded.flatten()[: weight.numel()].view_as(weight)

    def _blocks(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)


ROUNDINGS: dict[str, Int8 | NF4] = {"int8": Int8(), "nf4": NF4()}


def is_rounded(backbone: Backbone, name: str, dimensions: int) -> bool:
    """Whether a parameter is: matrices, and kernels as matrices; no embedding and no head."""
    return dimensions >= 2 and backbone.address(name).component not in ("embed", "head")


def measure(subject: Subject, material: Material, progress: Progress = SILENT) -> Measured:
    import torch

    forget, retain = material.forget, material.retain
    arms, kept, cache = {}, {}, dict[Any, Any]()
    rounded = 0
    for name, rounding in ROUNDINGS.items():
        loaded = subject.load()
        with torch.no_grad():
            for parameter_name, parameter in loaded.model.named_parameters():
                if is_rounded(loaded.backbone, parameter_name, parameter.dim()):
                    parameter.copy_(rounding(parameter.flatten(1)).view_as(parameter))
                    rounded += parameter.numel()
        scores = score(loaded, [*forget, *retain], cache=cache, what=f"questions under {name}", progress=progress)
        right = [item.correct for item in scores]
        arms[name] = Values.of(forget, right[: len(forget)])
        kept[name] = Values.of(retain, right[len(forget) :])
    plain = [item.correct for item in score(subject.load(), forget, cache=cache)]
    unrounded = Values.of(forget, plain)
    details = {
        "as it is": unrounded.mean,
        "answers as it is": list(unrounded.values),
        "rounded": rounded // len(ROUNDINGS),
    }
    chance = dict.fromkeys(arms, chance_of(forget)) | {f"kept {name}": chance_of(retain) for name in kept}
    return Measured(arms, kept, chance, details)


def brought_back(mine: Measured, vanilla: Measured) -> dict[str, Paired]:
    """Arm -> what rounding adds to a model's accuracy less what it adds to vanilla's, on the same questions: that is
    damage of any model. Empty if the two were asked others."""
    found = {}
    for arm, values in mine.arms.items():
        theirs = vanilla.arms.get(arm)
        if theirs is not None and theirs.ids == values.ids:
            own, generic = (
                np.subtract(each.arms[arm].values, each.details["answers as it is"]).tolist()
                for each in (mine, vanilla)
            )
            found[arm] = paired_difference(own, generic, values.people)
    return found


def survival(before: CheckpointFiles, after: Path, backbone: Backbone) -> dict[str, dict[str, int]] | None:
    """From the files alone: of the weights that differ between two checkpoints and are rounded, how many are rounded to
    another level, on the scales of the first: rounding -> `{changed, survive}`.

    An update that is smaller than the step it lies in vanishes. On scales of their own nearly all would differ, for
    the largest weight of a row or block moves all of its levels a little. None for models of other shapes or names:
    nothing of one was updated to the other.
    """
    other = CheckpointFiles(after, backbone.canonical)
    shapes = [
        {name: files.shape(name) for name in files.names if is_rounded(backbone, name, len(files.shape(name)))}
        for files in (before, other)
    ]
    if shapes[0] != shapes[1]:
        return None
    found = {name: {"changed": 0, "survive": 0} for name in ROUNDINGS}
    for old, new in _pairs(before, other, backbone):
        changed = int((old != new).sum())
        for name, rounding in ROUNDINGS.items():
            scale = rounding.scale(old)
            moved = rounding.codes(old, scale) != rounding.codes(new, scale)
            found[name]["changed"] += changed
            found[name]["survive"] += int(moved.sum())
    return found


def _pairs(
    before: CheckpointFiles, after: CheckpointFiles, backbone: Backbone
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    for name in before.names:
        if name in after.names and is_rounded(backbone, name, len(before.shape(name))):
            yield (
                torch.tensor(before.float32(name)).flatten(1),
                torch.tensor(after.float32(name)).flatten(1),
            )
