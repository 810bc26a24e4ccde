"""What is particular to Qwen2-VL's batches: pictures as patches of any grid, and token types.

P patches of all pictures of a batch, D = channels * temporal patch size * patch size squared, N pictures,
B samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.backbones import encoding
from mmsurgery.backbones.encoding import Picture
from mmsurgery.errors import UnusableData

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.protocol import Answered, Batch, Question


def collate(
    processor: Any, samples: Sequence[Answered], *, padding_side: str = "right", cache: dict[Any, Any] | None = None
) -> Batch:
    """See `Backbone.collate`. With pictures: `pixel_values` `[P, D]`, `image_grid_thw` int64 `[N, 3]`."""
    batch = encoding.collate(processor, samples, picture, padding_side=padding_side, cache=cache)
    return _typed(processor, batch)


def prompts(
    processor: Any,
    questions: Sequence[Question],
    *,
    texts: Sequence[str] | None = None,
    shown: Sequence[Sequence[Question]] | None = None,
    cache: dict[Any, Any] | None = None,
) -> Batch:
    """See `Backbone.prompts`."""
    return _typed(processor, encoding.prompts(processor, questions, picture, texts=texts, shown=shown, cache=cache))


def picture(processor: Any, image: Any) -> Picture:
    """A picture in RGB as patches; `merge_size` squared patches become one image token."""
    found = processor.image_processor(images=[image], return_tensors="pt")
    grid = found["image_grid_thw"]
    tokens = int(grid.prod()) // processor.image_processor.merge_size**2
    return Picture({"pixel_values": found["pixel_values"], "image_grid_thw": grid}, tokens)


def _typed(processor: Any, batch: Batch) -> Batch:
    """Add `mm_token_type_ids` int64 `[B, T]`, 1 at image tokens; the model asks for them with pictures."""
    return {**batch, "mm_token_type_ids": (batch["input_ids"] == processor.image_token_id).long()}


def row_owners(config: Any, batch: Batch, module: str, rows: int) -> torch.Tensor:
    """See `Backbone.row_owners`. Vision tower and `merger.ln_q` run on the patches of all pictures,
    `merger.mlp` on their image tokens; pictures stand in the order of the samples' image tokens."""
    import torch

    if "image_grid_thw" not in batch:
        raise UnusableData(
            f"{module}: {rows} rows, but the batch has no pictures",
            "check the pictures of the data, or update the backbone",
        )
    tokens = (batch["input_ids"] == config.image_token_id).sum(dim=1)
    patches = batch["image_grid_thw"].prod(dim=1)
    merged = config.vision_config.spatial_merge_size**2
    owners = torch.searchsorted(tokens.cumsum(0), (patches // merged).cumsum(0)).clamp(max=len(tokens) - 1)
    if not torch.equal(torch.zeros_like(tokens).index_add_(0, owners, patches // merged), tokens):
        raise UnusableData(
            f"{module}: the pictures' image tokens are not those of the batch's texts",
            "check the pictures of the data, or update the backbone",
        )
    for share in (1, merged):
        if rows * share == int(patches.sum()):
            return owners.repeat_interleave(patches // share)
    raise UnusableData(
        f"{module}: {rows} rows do not fit the {int(patches.sum())} patches of the batch",
        "check the pictures of the data, or update the backbone",
    )
