"""Qwen2-VL: loading, batches by reference, and what the engine asks about activations and micro models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.backbones import encoding, micro, mllmu
from mmsurgery.errors import InputRefused
from mmsurgery.names import Address
from mmsurgery_qwen2_vl import batches, names

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.protocol import Answered, Batch, Question, SampleGradient

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
"""What micro models carry: the published template's picture and end of an answer, the words of LLaVA's
turns. A word-level tokenizer knows them all, and both micro families are asked in the same words."""

SPECIAL = ("<pad>", "<unk>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
"""First tokens of a micro model's vocabulary, in order of their ids."""


class _Micro(NamedTuple):
    vision: dict[str, int]
    text: dict[str, int]
    mrope: list[int]
    """Rotary frequencies given to time, height and width; half a head's size in all."""
    tied: bool
    pixels: tuple[int, int]
    """Least and most pixels of a picture after resizing; its sides are multiples of patch and merge size."""


_MICRO = {
    "portraits": _Micro(
        {"depth": 2, "embed_dim": 64, "hidden_size": 96, "mlp_ratio": 2, "num_heads": 4, "patch_size": 6},
        {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4},
        mrope=[4, 4, 4],
        tied=False,
        pixels=(48 * 48, 48 * 48),
    ),
    "tiny": _Micro(
        {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": 7},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        mrope=[2, 1, 1],
        tied=True,
        pixels=(28 * 28, 56 * 56),
    ),
}


class Qwen2VLBackbone:
    """The `mmsurgery.backbones.protocol.Backbone` of `Qwen2VLForConditionalGeneration`."""

    model_type = "qwen2_vl"
    title = "Qwen2-VL"

    def address(self, name: str) -> Address:
        return names.address(name)

    def canonical(self, stored: str) -> str:
        return names.canonical(stored)

    def published(self, name: str) -> str:
        return names.on_disk(name, "published")

    def no_true_gradient(self, name: str) -> bool:
        """None: both attentions rotate keys by their position, so a key bias moves the logits of one
        query differently; softmax ignores only what it adds to all of them alike."""
        return False

    def linear_targets(self, group: str) -> str:
        return names.LINEAR_TARGETS[group]

    def load_model(self, path: Path, *, dtype: torch.dtype | None = None) -> torch.nn.Module:
        from transformers import Qwen2VLForConditionalGeneration

        from mmsurgery.backbones.loading import pretrained

        _check_rotary_sections(path, CheckpointFiles(path, self.canonical).config)
        return pretrained(Qwen2VLForConditionalGeneration, path, dtype)

    def load_processor(self, path: Path) -> Any:
        from transformers import Qwen2VLConfig

        from mmsurgery.backbones.processors import pretrained_processor
        from mmsurgery_qwen2_vl.processor import Qwen2VLProcessor

        processor, config = pretrained_processor(Qwen2VLProcessor, Qwen2VLConfig, path)
        _check_vision_heads(path, config.vision_config)
        _check_patches(path, processor.image_processor, config.vision_config)
        return processor

    def skeleton(self, config: Mapping[str, Any]) -> torch.nn.Module:
        import torch
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        from mmsurgery.backbones.loading import quiet

        with quiet(), torch.device("meta"):
            try:
                model: torch.nn.Module = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(dict(config)))
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
        return batches.collate(processor, samples, padding_side=padding_side, cache=cache)

    def prompts(
        self,
        processor: Any,
        questions: Sequence[Question],
        *,
        texts: Sequence[str] | None = None,
        shown: Sequence[Sequence[Question]] | None = None,
        cache: dict[Any, Any] | None = None,
    ) -> Batch:
        return batches.prompts(processor, questions, texts=texts, shown=shown, cache=cache)

    def mllmu_prompt(
        self, processor: Any, task: str, text: str, *, image: bool, demonstrations: Sequence[str] = ()
    ) -> str:
        """Pictures and cloze go through the chat template; choices and open questions without a picture are
        asked in the string written for LLaVA. (The template's picture slot that the original leaves
        empty in cloze questions without a picture is left out. Its demonstrations are text with `<image>` in it,
        so that the model sees the first of their pictures under the question; here each has its own place.)"""
        if not image and task != "cloze":
            return mllmu.raw_prompt(task, text, None, demonstrations)
        lead = "\n" if image and task != "generation" else ""
        shots = [(f"{each}\n", image) for each in demonstrations]
        return encoding.render_parts(processor, [*shots, (lead + text, image)])

    def render(self, processor: Any, question: str, answer: str | None, *, image: bool) -> str:
        return encoding.render(processor, question, answer, image=image)

    def template_digest(self, processor: Any) -> str:
        return encoding.template_digest(processor)

    def row_owners(self, config: Any, batch: Batch, module: str, rows: int) -> torch.Tensor:
        return batches.row_owners(config, batch, module, rows)

    def sample_gradients(self) -> Mapping[str, SampleGradient]:
        return {}

    def micro(self, folder: Path, vocabulary: Sequence[str], *, seed: int, size: str = "portraits") -> None:
        from transformers import Qwen2VLForConditionalGeneration

        from mmsurgery_qwen2_vl.processor import save

        words = list(dict.fromkeys((*SPECIAL, "USER:", "ASSISTANT:", *vocabulary)))
        config = _micro_config(_MICRO[size], len(words))
        micro.write_model(folder, lambda: Qwen2VLForConditionalGeneration(config), _published, seed=seed)
        save(_micro_processor(_MICRO[size], words), folder)


def _published(name: str) -> str:
    return names.on_disk(name, "published")


def _micro_config(size: _Micro, words: int) -> Any:
    from transformers import Qwen2VLConfig

    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    return Qwen2VLConfig(
        vision_config={**size.vision, "spatial_merge_size": 2, "temporal_patch_size": 1, "dtype": "float32"},
        text_config={
            **size.text,
            **ends,
            "num_key_value_heads": 2,
            "vocab_size": words,
            "max_position_embeddings": 128,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": size.mrope},
            "dtype": "float32",
        },
        **ends,
        architectures=["Qwen2VLForConditionalGeneration"],
        dtype="float32",
        tie_word_embeddings=size.tied,
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
    )


def _micro_processor(size: _Micro, words: Sequence[str]) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from mmsurgery_qwen2_vl.processor import Qwen2VLProcessor

    control = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
    }
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": size.pixels[0], "longest_edge": size.pixels[1]},
            patch_size=size.vision["patch_size"],
            merge_size=2,
            temporal_patch_size=1,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=micro.word_tokenizer(words, control),
        chat_template=CHAT_TEMPLATE,
    )


def _check_rotary_sections(path: Path, config: Mapping[str, Any]) -> None:
    """Check that time, height and width share out half of a head: transformers finds out in the first forward pass."""
    text = {**config, **(config.get("text_config") or {})}
    rotary = text.get("rope_parameters") or text.get("rope_scaling") or {}
    sections = rotary.get("mrope_section", [16, 24, 24])  # what transformers takes where none is given
    width, heads = text.get("hidden_size"), text.get("num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        return  # of what is missing the config's own class says so
    sound = isinstance(sections, list) and all(type(each) is int and each > 0 for each in sections)
    if not sound or 2 * sum(sections) != width // heads:
        raise InputRefused(
            f"{path / 'config.json'}: mrope_section {str(sections)[:60]} does not share out half of a head of "
            f"{width // heads}",
            "copy config.json from the model it was made of",
        )


def _check_vision_heads(path: Path, vision: Any) -> None:
    """Check that heads share out the vision encoder's width, in pairs for rows and for columns: it finds out in the
    first forward pass."""
    width, heads = vision.embed_dim, vision.num_heads
    if heads < 1 or width % heads or width // heads % 4:
        raise InputRefused(
            f"{path / 'config.json'}: num_heads of the vision encoder is {heads}, which does not share out its width "
            f"of {width} in fours",
            "copy config.json from the model it was made of",
        )


def _check_patches(path: Path, pictures: Any, vision: Any) -> None:
    """Check that pictures are cut into the patches that the model takes: it finds out in the first forward pass."""
    from mmsurgery.backbones.processors import AGAIN

    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        if (said := getattr(pictures, ours)) != (wanted := getattr(vision, theirs)):
            raise InputRefused(
                f"{path}: processor_config.json or preprocessor_config.json says {ours} = {said}, "
                f"config.json {theirs} = {wanted}",
                AGAIN.format("config.json and the processor files"),
            )
