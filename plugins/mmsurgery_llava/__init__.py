"""LLaVA-1.5 as a backbone of mmsurgery. Importing this brings in neither torch nor transformers."""

from mmsurgery_llava.backbone import LlavaBackbone

backbone = LlavaBackbone()

__all__ = ["LlavaBackbone", "backbone"]
