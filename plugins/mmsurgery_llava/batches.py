"""What is particular to LLaVA's batches: pictures of one size, and how many image tokens one has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmsurgery.backbones import encoding
from mmsurgery.backbones.encoding import Picture

if TYPE_CHECKING:
    import torch


def picture(processor: Any, image: Any) -> Picture:
    """A picture in RGB as `pixel_values` `[1, 3, H, W]`."""
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    return Picture({"pixel_values": pixels}, picture_tokens(processor, pixels))


def picture_tokens(processor: Any, pixels: torch.Tensor) -> int:
    """Image tokens of one picture `[..., H, W]`: patches, plus the class token, which the strategy
    `default` drops again (`LlavaProcessor.replace_image_token`)."""
    height, width = pixels.shape[-2:]
    count = (height // processor.patch_size) * (width // processor.patch_size) + processor.num_additional_image_tokens
    return int(count - (processor.vision_feature_select_strategy == "default"))


def template_digest(processor: Any) -> str:
    """See `Backbone.template_digest`."""
    return encoding.template_digest(
        processor,
        patch_size=processor.patch_size,
        strategy=processor.vision_feature_select_strategy,
        additional=processor.num_additional_image_tokens,
    )
