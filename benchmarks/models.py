"""Models of random weights in many sizes, of both families, as checkpoints; samples and items in their words.

Shapes keep the proportions of the published models: a deep language model of linear layers, a smaller vision
tower, a few per cent of the weights in embeddings and head.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import SINGLE
from mmsurgery.backbones import micro
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.samples import Item, Sample
from mmsurgery.provenance import sha256_json
from mmsurgery.start import initialise
from mmsurgery.workspace import Workspace
from mmsurgery_llava.backbone import CHAT_TEMPLATE as LLAVA_TEMPLATE
from mmsurgery_qwen2_vl.backbone import CHAT_TEMPLATE as QWEN_TEMPLATE

FAMILIES = ("llava", "qwen2_vl")
PATCH = 14
ROLES = ("USER:", "ASSISTANT:")
TOKENS = 56
"""Of a sample: a step of four has 224."""
ANSWER = 16
"""Words of an answer that is not a short one."""


@dataclass(frozen=True)
class Size:
    """Of a model: widths and depths of its towers, words of its vocabulary, picture tokens by family."""

    hidden: int
    inner: int
    layers: int
    vision: int
    vision_layers: int
    words: int
    picture: tuple[int, int] = (70, 140)
    """Pixels a side, LLaVA's and Qwen2-VL's: 25 tokens in both."""


SIZES = {
    "tiny": Size(32, 64, 2, 32, 2, 64, (28, 28)),
    "1M": Size(96, 256, 6, 64, 3, 1000),
    "3M": Size(160, 432, 7, 96, 3, 1500),
    "10M": Size(256, 704, 9, 160, 4, 2500),
    "30M": Size(384, 1024, 13, 256, 6, 4000),
    "100M": Size(640, 1728, 15, 384, 8, 6000),
    "190M": Size(768, 2048, 22, 512, 8, 8000),
    "190M-wide": Size(1024, 2816, 5, 512, 8, 60_000),
    "400M": Size(1152, 3072, 23, 640, 8, 8000),
    "1B": Size(1792, 4864, 23, 1024, 8, 8000),
}
GOALS_FROM = 30e6
"""Weights from which the limits hold: below, what a call costs whatever it works on outweighs the work."""


def vocabulary(size: Size) -> list[str]:
    return [f"w{number}" for number in range(size.words)]


def named(family: str, size: str) -> str:
    """What files of a model are called: other shapes under the same size are other files."""
    return f"{family}-{size}-{sha256_json(asdict(SIZES[size]))[:8]}"


def checkpoint(work: Path, family: str, size: str) -> Path:
    """The folder of a model of a family and size below `work`, made where it is missing."""
    folder = work / "models" / named(family, size)
    if not (folder / SINGLE).exists():
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        build, processor = {"llava": (_llava, _llava_processor), "qwen2_vl": (_qwen, _qwen_processor)}[family]
        published: Callable[[str], str] = backbone(family).published
        micro.write_model(partial, lambda: build(SIZES[size]), published, seed=0)
        processor(SIZES[size], partial)
        partial.rename(folder)
    return folder


def _llava(size: Size) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=size.vision,
                intermediate_size=4 * size.vision,
                num_hidden_layers=size.vision_layers,
                num_attention_heads=_heads(size.vision),
                projection_dim=size.vision,
                image_size=size.picture[0],
                patch_size=PATCH,
                dtype="float32",
            ),
            text_config=LlamaConfig(
                hidden_size=size.hidden,
                intermediate_size=size.inner,
                num_hidden_layers=size.layers,
                num_attention_heads=_heads(size.hidden),
                vocab_size=len(_llava_words(size)),
                max_position_embeddings=4096,
                dtype="float32",
                **ends,
            ),
            **ends,
            architectures=["LlavaForConditionalGeneration"],
            dtype="float32",
            image_token_index=3,
            image_seq_length=(size.picture[0] // PATCH) ** 2,
            vision_feature_layer=-2,
        )
    )


def _llava_words(size: Size) -> list[str]:
    return ["<pad>", "<unk>", "</s>", "<image>", *ROLES, *vocabulary(size)]


def _llava_processor(size: Size, folder: Path) -> None:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = size.picture[0]
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}
        ),
        tokenizer=micro.word_tokenizer(_llava_words(size), {"image_token": "<image>"}),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)


_QWEN_CONTROL = {
    "image_token": "<|image_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "video_token": "<|video_pad|>",
}


def _qwen(size: Size) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    heads, words = _heads(size.hidden), _qwen_words(size)
    half = size.hidden // heads // 2
    control = {f"{name}_id": words.index(_QWEN_CONTROL[name]) for name in ("image_token", "video_token")}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            vision_config={
                "depth": size.vision_layers,
                "embed_dim": size.vision,
                "hidden_size": size.hidden,
                "mlp_ratio": 4,
                "num_heads": _heads(size.vision),
                "patch_size": PATCH,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "dtype": "float32",
            },
            text_config={
                "hidden_size": size.hidden,
                "intermediate_size": size.inner,
                "num_hidden_layers": size.layers,
                "num_attention_heads": heads,
                "num_key_value_heads": heads,
                "vocab_size": len(words),
                "max_position_embeddings": 4096,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
                },
                "dtype": "float32",
                **ends,
            },
            **ends,
            **control,
            vision_start_token_id=words.index("<|vision_start|>"),
            vision_end_token_id=words.index("<|vision_end|>"),
            architectures=["Qwen2VLForConditionalGeneration"],
            dtype="float32",
            tie_word_embeddings=False,
        )
    )


def _qwen_words(size: Size) -> list[str]:
    return ["<pad>", "<unk>", "<|im_end|>", *_QWEN_CONTROL.values(), *ROLES, *vocabulary(size)]


def _qwen_processor(size: Size, folder: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from mmsurgery_qwen2_vl.processor import Qwen2VLProcessor, save

    pixels = size.picture[1] ** 2
    save(
        Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessorPil(
                size={"shortest_edge": pixels, "longest_edge": pixels},
                patch_size=PATCH,
                merge_size=2,
                temporal_patch_size=2,
            ),
            tokenizer=micro.word_tokenizer(_qwen_words(size), _QWEN_CONTROL),
            chat_template=QWEN_TEMPLATE,
        ),
        folder,
    )


def _heads(width: int) -> int:
    """Heads of 64 as far as there are four."""
    return max(4, width // 64)


# what they are shown


def samples(family: str, size: str, count: int, *, tokens: int = TOKENS, part: str = "forget_vqa") -> list[Sample]:
    """Samples of about `tokens` tokens each, every one with a picture of its own."""
    rng = np.random.default_rng(len(part))
    words, asked = vocabulary(SIZES[size]), tokens - _picture_tokens(family, SIZES[size]) - ANSWER - 3
    return [
        Sample(
            f"{part}-{number}",
            f"person-{number}",
            _text(rng, words, max(asked, 4)),
            answer=_text(rng, words, ANSWER),
            part=part,
            image_bytes=picture(rng, pixels(family, size)),
        )
        for number in range(count)
    ]


def short_samples(size: str, count: int, *, tokens: int = 32) -> list[Sample]:
    """Questions without a picture, of about `tokens` tokens."""
    rng, words = np.random.default_rng(1), vocabulary(SIZES[size])
    half = (tokens - 6) // 2
    return [
        Sample(f"text-{n}", f"person-{n}", _text(rng, words, half), answer=_text(rng, words, half), part="forget_qa")
        for n in range(count)
    ]


def items(
    family: str, size: str, pictures: int, *, questions: int = 3, options: int = 4, tokens: int = 224
) -> list[Item]:
    """Questions about pictures, several about each, rows of about `tokens` tokens, options of 6 words."""
    rng, words = np.random.default_rng(2), vocabulary(SIZES[size])
    asked = max(tokens - _picture_tokens(family, SIZES[size]) - 12, 4)
    found = []
    for number in range(pictures):
        image = picture(rng, pixels(family, size))
        for place in range(questions):
            named = {letter: _text(rng, words, 6) for letter in "ABCDEFGH"[:options]}
            identity = (f"item-{number}-{place}", f"person-{number}", _text(rng, words, asked))
            found.append(Item(*identity, column="forget_vqa", options=named, gold="A", image_bytes=image))
    return found


def pixels(family: str, size: str) -> int:
    """A side of a picture, as the model takes it."""
    return SIZES[size].picture[FAMILIES.index(family)]


def picture(rng: np.random.Generator, side: int) -> bytes:
    """An encoded picture of noise."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _picture_tokens(family: str, size: Size) -> int:
    patches = (size.picture[FAMILIES.index(family)] // PATCH) ** 2
    return patches if family == "llava" else patches // 4 + 2


def _text(rng: np.random.Generator, words: Sequence[str], count: int) -> str:
    return " ".join(rng.choice(words, count))


def workspace(root: Path, family: str, size: str, *, forget: int = 4, retain: int = 8) -> Workspace:
    """A workspace of the model at `root`, whose benchmark has people to forget and to keep: each a picture, two
    questions for training about it and one without it, and two to be scored."""
    data, rng, words = root / "data", np.random.default_rng(3), vocabulary(SIZES[size])
    data.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(forget + retain):
        person = {"role": "forget" if number < forget else "retain", "person": f"p{number}"}
        (data / f"{number}.png").write_bytes(picture(rng, pixels(family, size)))
        shown = {**person, "image": f"{number}.png"}
        for _ in range(2):
            answers = [_text(rng, words, 8) for _ in range(4)]
            rows.append({**shown, "question": _text(rng, words, 8), "answer": answers[0]})
            rows.append({**shown, "question": _text(rng, words, 8), "answer": answers[0], "options": answers})
        rows.append({**person, "question": _text(rng, words, 8), "answer": _text(rng, words, 8)})
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(checkpoint(root.parent, family, size))
    initialise(root / "workspace", benchmark="folder", data=str(data), vanilla=model)
    from mmsurgery.api import open_workspace

    return open_workspace(root / "workspace")
