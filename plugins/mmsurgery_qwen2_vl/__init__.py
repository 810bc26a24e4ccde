"""Qwen2-VL as a backbone of mmsurgery. Importing this brings in neither torch nor transformers."""

from mmsurgery_qwen2_vl.backbone import Qwen2VLBackbone

backbone = Qwen2VLBackbone()

__all__ = ["Qwen2VLBackbone", "backbone"]
