"""Qwen2-VL's processor without its video part, which needs torchvision. Importing this imports transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from mmsurgery.artifacts.files import read_json, write_pretty_json


class Qwen2VLProcessor(transformers.Qwen2VLProcessor):  # type: ignore[misc]
    """Pictures and text only. It bears the stock class's name because saving writes that name into the
    files, by which `AutoProcessor` finds the stock class again."""

    # transformers reads off these parameters which parts a processor has
    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token = getattr(tokenizer, "image_token", "<|image_pad|>")
        self.video_token = getattr(tokenizer, "video_token", "<|video_pad|>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def save(processor: Qwen2VLProcessor, folder: Path) -> None:
    """Write a processor so that the stock class loads it too where torchvision is installed: it wants
    a video section, which is the image section under another type."""
    processor.save_pretrained(folder)
    file = folder / "processor_config.json"
    config = read_json(file)
    video = {key: value for key, value in config["image_processor"].items() if key != "image_processor_type"}
    config["video_processor"] = {**video, "video_processor_type": "Qwen2VLVideoProcessor"}
    write_pretty_json(file, config)
