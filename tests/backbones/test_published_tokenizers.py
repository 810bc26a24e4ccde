"""The whole kit on micro models with the tokenizers, chat templates and file layout that the families are published
with: vocabularies of merges instead of whole words, a start token for LLaVA, a system turn for Qwen2-VL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_llava_batches import PUBLISHED_TEMPLATE as LLAVA_TEMPLATE
from test_qwen2_vl_batches import CONTROL, PIECES
from test_qwen2_vl_batches import PUBLISHED_TEMPLATE as QWEN2_VL_TEMPLATE

from mmsurgery.artifacts.files import read_json
from mmsurgery.backbones.conformance import TURNS, assert_conforms
from mmsurgery.backbones.loading import load
from mmsurgery_llava import LlavaBackbone
from mmsurgery_qwen2_vl import Qwen2VLBackbone

SIZE = 640
"""Rows of the micro models' embeddings; the vocabularies have fewer."""
TEXTS = [f"{turn.question} {turn.answer}" for turn in TURNS] * 3
TEXTS += ["USER: \nWhat? ASSISTANT: The", "system user assistant You are a helpful assistant."] * 3
FILLERS = [f"filler{i}" for i in range(SIZE)]


def metaspace(normalised: bool) -> Any:
    """As Llama's: words begin with a space sign, bytes for what is unknown, `<s>` before every text.

    Args:
        normalised: put the signs in before cutting (files of 2023) rather than in cutting (since 2024).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # no merge goes across words
    start = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=SIZE - 100, special_tokens=start, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalised:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    special = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return bpe


def byte_level() -> Any:
    """As Qwen2's."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 100, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return bpe


def publish(folder: Path, tokenizer: Any, template: str, config: dict[str, str], named: dict[str, str]) -> None:
    """Give a micro model's folder the files of a published one.

    Args:
        config: of the tokenizer.
        named: key of `config.json` -> the token whose id it holds.
    """
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids = {key: tokenizer.token_to_id(token) for key, token in named.items()}
    ends = {key: ids[key] for key in ("eos_token_id", "pad_token_id", "bos_token_id") if key in ids}
    whole = read_json(folder / "config.json")
    whole = {**whole, **ids, "text_config": {**whole["text_config"], **ends}}
    (folder / "config.json").write_text(json.dumps(whole))
    generation = read_json(folder / "generation_config.json")
    (folder / "generation_config.json").write_text(json.dumps({**generation, **ends}))
    written = read_json(folder / "processor_config.json")
    pictures = written.pop("image_processor") | {"processor_class": written["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    written.pop("video_processor", None)
    if written["processor_class"] == "LlavaProcessor":
        (folder / "processor_config.json").write_text(json.dumps(written))
    else:
        (folder / "processor_config.json").unlink()


class PublishedLlava(LlavaBackbone):
    normalised = False
    tokenizer_class = "LlamaTokenizer"

    def micro(self, folder: Path, vocabulary: Sequence[str], *, seed: int, size: str = "portraits") -> None:
        super().micro(folder, FILLERS, seed=seed, size=size)
        config = {
            "tokenizer_class": self.tokenizer_class,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
        }
        config |= {"unk_token": "<unk>", "image_token": "<image>", "padding_side": "left"}
        named = {"image_token_index": "<image>", "bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}
        publish(folder, metaspace(self.normalised), LLAVA_TEMPLATE, config, named)


class NormalisedLlava(PublishedLlava):
    normalised = True
    tokenizer_class = "LlamaTokenizerFast"


class PublishedQwen2VL(Qwen2VLBackbone):
    def micro(self, folder: Path, vocabulary: Sequence[str], *, seed: int, size: str = "portraits") -> None:
        super().micro(folder, FILLERS, seed=seed, size=size)
        config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        kinds = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        named = {f"{kind}_token_id": f"<|{token}|>" for kind, token in kinds.items()}
        named |= {"eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}
        publish(folder, byte_level(), QWEN2_VL_TEMPLATE, config, named)


PUBLISHED = (PublishedLlava, NormalisedLlava, PublishedQwen2VL)


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_files_conform(family: type[PublishedLlava | PublishedQwen2VL], tmp_path: Path) -> None:
    assert_conforms(family(), tmp_path)


ANSWERS = ("lisbon", "Lisbon, of course.", "Zürich", "東京", "It is  rice.", " soup ", "soup\nlisbon", "1984", "👩‍🍳")


@pytest.mark.parametrize("family", PUBLISHED)
def test_words_are_cut_and_every_answer_is_found(
    family: type[PublishedLlava | PublishedQwen2VL], tmp_path: Path, make_sample: Any
) -> None:
    family().micro(tmp_path, (), seed=0, size="tiny")
    loaded = load(tmp_path)
    tokenizer = loaded.processor.tokenizer
    samples = [
        make_sample(str(i), "What is the city ?", answer, seed=i % 2 or None) for i, answer in enumerate(ANSWERS)
    ]
    batch = loaded.backbone.collate(loaded.processor, samples)
    start = tokenizer.bos_token_id
    longest = 0
    for sample, ids, labels, mask in zip(
        samples, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        kept = labels[labels != -100]
        assert kept[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(kept[:-1]).strip() == sample.answer.strip()
        assert ids[mask == 1].tolist().count(start) == (0 if start is None else 1)
        longest = max(longest, len(kept) - len(sample.answer.split()))
    assert longest > 2  # words of more than one token are among them
    assert torch.isfinite(loaded.model(**batch).loss)
