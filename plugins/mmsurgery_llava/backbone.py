"""LLaVA: loading, batches by reference, and what the engine asks about activations and micro models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.files import read_json
from mmsurgery.backbones import encoding, micro, mllmu
from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery.names import Address
from mmsurgery_llava import batches, names

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.protocol import Answered, Batch, Question, SampleGradient

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Renders as the template of the published LLaVA-1.5 does; micro models carry it."""

SPECIAL = ("<pad>", "<unk>", "</s>", "<image>", "<|vision_start|>", "<|vision_end|>")
"""First tokens of a micro model's vocabulary, in order of their ids; shared by all micro families."""


class _Micro(NamedTuple):
    vision: dict[str, int]
    text: dict[str, int]
    feature_layer: int


_MICRO = {
    "portraits": _Micro(
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "image_size": 48, "patch_size": 12},
        {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3},
        feature_layer=-1,
    ),
    "tiny": _Micro(
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        feature_layer=-2,
    ),
}


class LlavaBackbone:
    """The `mmsurgery.backbones.protocol.Backbone` of `LlavaForConditionalGeneration`."""

    model_type = "llava"
    title = "LLaVA-1.5"

    def address(self, name: str) -> Address:
        return names.address(name)

    def canonical(self, stored: str) -> str:
        return names.canonical(stored)

    def published(self, name: str) -> str:
        return names.on_disk(name, "published")

    def no_true_gradient(self, name: str) -> bool:
        return names.no_true_gradient(name)

    def linear_targets(self, group: str) -> str:
        return names.LINEAR_TARGETS[group]

    def load_model(self, path: Path, *, dtype: torch.dtype | None = None) -> torch.nn.Module:
        from transformers import LlavaForConditionalGeneration

        from mmsurgery.backbones.loading import pretrained

        CheckpointFiles(path, self.canonical)
        return pretrained(LlavaForConditionalGeneration, path, dtype)

    def load_processor(self, path: Path) -> Any:
        from transformers import LlavaConfig, LlavaProcessor

        from mmsurgery.backbones.processors import pretrained_processor

        processor, config = pretrained_processor(LlavaProcessor, LlavaConfig, path)
        stored = read_json(path / "processor_config.json") if (path / "processor_config.json").exists() else {}
        if "num_additional_image_tokens" not in stored:  # releases before 4.47
            processor.num_additional_image_tokens = int(config.vision_config.model_type == "clip_vision_model")
        if processor.patch_size is None:  # releases before 4.44 stored no geometry; the model's config has it,
            processor.patch_size = config.vision_config.patch_size  # or leaves it to the family's defaults
            processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        _check_feature_layers(path, config)
        _check_pictures(path, processor, config)
        return processor

    def skeleton(self, config: Mapping[str, Any]) -> torch.nn.Module:
        import torch
        from transformers import LlavaConfig, LlavaForConditionalGeneration

        from mmsurgery.backbones.loading import quiet

        with quiet(), torch.device("meta"):
            try:
                model: torch.nn.Module = LlavaForConditionalGeneration(LlavaConfig.from_dict(dict(config)))
            except Exception as error:  # configs are validated by half a dozen libraries
                raise InputRefused(f"the model's config cannot be used: {str(error)[:200]}") from error
        return model

    def collate(
        self,
        processor: Any,
        samples: Sequence[Answered],
        *,
        padding_side: str = "right",
        cache: dict[Any, Any] | None = None,
    ) -> Batch:
        return encoding.collate(processor, samples, batches.picture, padding_side=padding_side, cache=cache)

    def prompts(
        self,
        processor: Any,
        questions: Sequence[Question],
        *,
        texts: Sequence[str] | None = None,
        shown: Sequence[Sequence[Question]] | None = None,
        cache: dict[Any, Any] | None = None,
    ) -> Batch:
        return encoding.prompts(processor, questions, batches.picture, texts=texts, shown=shown, cache=cache)

    def mllmu_prompt(
        self, processor: Any, task: str, text: str, *, image: bool, demonstrations: Sequence[str] = ()
    ) -> str:
        return mllmu.raw_prompt(task, text, processor.image_token if image else None, demonstrations)

    def render(self, processor: Any, question: str, answer: str | None, *, image: bool) -> str:
        return encoding.render(processor, question, answer, image=image)

    def template_digest(self, processor: Any) -> str:
        return batches.template_digest(processor)

    def row_owners(self, config: Any, batch: Batch, module: str, rows: int) -> torch.Tensor:
        """Vision tower and projector run on `[N, ...]`, all pictures of the batch in reading order, each
        standing for the same number of image tokens."""
        import torch

        tokens = (batch["input_ids"] == config.image_token_id).sum(dim=1)
        total = int(tokens.sum())
        if rows == 0 or total % rows or bool((tokens % max(total // rows, 1)).any()):
            raise UnusableData(
                f"{module}: {rows} rows do not fit the {total} image tokens of the batch",
                "check the pictures of the data, or update the backbone",
            )
        samples = torch.arange(len(tokens), device=tokens.device)
        return samples.repeat_interleave(tokens // max(total // rows, 1))

    def sample_gradients(self) -> Mapping[str, SampleGradient]:
        return {"CLIPVisionEmbeddings": _clip_embeddings}

    def micro(self, folder: Path, vocabulary: Sequence[str], *, seed: int, size: str = "portraits") -> None:
        from transformers import LlavaForConditionalGeneration

        words = list(dict.fromkeys((*SPECIAL, "USER:", "ASSISTANT:", *vocabulary)))
        config = _micro_config(_MICRO[size], len(words))
        micro.write_model(folder, lambda: LlavaForConditionalGeneration(config), _published, seed=seed)
        _micro_processor(_MICRO[size], words).save_pretrained(folder)


def _clip_embeddings(
    module: torch.nn.Module, inputs: tuple[Any, ...], gradient: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Class and position embedding of CLIP from the gradient `[N, 1 + P, h]` of their sum: the class
    embedding stands in position 0 of every picture, position p in position p."""
    positions = module.get_submodule("position_embedding").get_parameter("weight")
    if gradient.shape[1:] != positions.shape:
        raise UnusableData(
            f"pictures have {gradient.shape[1]} positions, the model {positions.shape[0]}",
            "check the pictures of the data, or update the backbone",
        )
    return {"class_embedding": gradient[:, 0], "position_embedding.weight": gradient}


def _check_feature_layers(path: Path, config: Any) -> None:
    """Check that the connector reads layers that the vision encoder has: it finds out in the first forward pass."""
    chosen, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    for layer in chosen if isinstance(chosen, (list, tuple)) else [chosen]:
        if not 1 <= abs(layer) <= layers:
            raise InputRefused(
                f"{path / 'config.json'}: vision_feature_layer is {layer}, the vision encoder has {layers} layers",
                "copy config.json from the model it was made of",
            )


def _check_pictures(path: Path, processor: Any, config: Any) -> None:
    """Check that a picture has the size and the image tokens that the model takes: it finds out in the first forward
    pass."""
    from mmsurgery.backbones.processors import AGAIN, within_limits

    what = f"{path}: what processor_config.json or preprocessor_config.json makes of a picture"
    if fault := within_limits(path, what, lambda: _picture_fault(processor, config)):
        raise InputRefused(f"{what} {fault}", AGAIN.format("config.json and the processor files"))


def _picture_fault(processor: Any, config: Any) -> str | None:
    """What is wrong with pictures, made without torch, whose threads a forked process lacks."""
    from PIL import Image

    vision = config.vision_config
    try:
        pixels = processor.image_processor(images=[Image.new("RGB", (4, 3))], return_tensors="np")["pixel_values"]
        tokens = batches.picture_tokens(processor, pixels)
        patches = (vision.image_size // vision.patch_size) ** 2
    except MemoryError:
        raise
    except Exception as error:  # settings are read by half a dozen functions
        return f"cannot be used: {str(error)[:200]}"
    wanted = (1, vision.num_channels, vision.image_size, vision.image_size)
    if pixels.shape != wanted:
        return f"is {list(pixels.shape)} numbers, config.json says {list(wanted)} (image_size)"
    features = (
        patches + (vision.model_type == "clip_vision_model") - (config.vision_feature_select_strategy == "default")
    )
    if tokens != features:
        return (
            f"is {tokens} image tokens (patch_size = {processor.patch_size}, num_additional_image_tokens = "
            f"{processor.num_additional_image_tokens}, vision_feature_select_strategy = "
            f"{processor.vision_feature_select_strategy!r}), what config.json says makes {features}"
        )
    return None


def _published(name: str) -> str:
    return names.on_disk(name, "published")


def _micro_config(size: _Micro, words: int) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            **size.vision, num_attention_heads=4, projection_dim=size.vision["hidden_size"], dtype="float32"
        ),
        text_config=LlamaConfig(
            **size.text,
            **ends,
            num_attention_heads=4,
            vocab_size=words,
            max_position_embeddings=128,
            initializer_range=0.05,
            dtype="float32",
        ),
        **ends,
        architectures=["LlavaForConditionalGeneration"],
        dtype="float32",
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=(size.vision["image_size"] // size.vision["patch_size"]) ** 2,
        vision_feature_layer=size.feature_layer,
    )


def _micro_processor(size: _Micro, words: Sequence[str]) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = size.vision["image_size"]
    control = {"image_token": "<image>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": pixels},
            crop_size={"height": pixels, "width": pixels},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=micro.word_tokenizer(words, control),
        patch_size=size.vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
