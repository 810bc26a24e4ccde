"""Batches of Qwen2-VL: what a single processor call gives, pictures of several sizes, and the published template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsurgery.backbones.loading import Loaded
from mmsurgery.data.samples import Sample
from mmsurgery.errors import UnusableData
from mmsurgery_qwen2_vl import backbone

MakeSample = Callable[..., Sample]

PUBLISHED_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""chat_template.json of Qwen2-VL-7B-Instruct."""

PUBLISHED_PICTURES = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}
"""preprocessor_config.json of Qwen2-VL-7B-Instruct."""

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text before merging bytes."""
ANSWERS = ("Paris city", "Zürich", "Zu\u0308rich", "東京", "a", "It is  rice.", " Paris ", "Paris\nOslo", "\nParis")


@pytest.fixture(scope="module")
def processor(loaded_qwen2_vl: Loaded) -> Any:
    return loaded_qwen2_vl.processor


@pytest.fixture(scope="module")
def published(tiny_qwen2_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The processor of a folder with the files that Qwen2-VL is published with, its vocabulary aside."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [f"assistant\n{answer} user\nWhere?" for answer in ANSWERS] * 3
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    folder = tmp_path_factory.mktemp("published")
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32768,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_PICTURES))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PUBLISHED_TEMPLATE}))
    config = json.loads((tiny_qwen2_vl / "config.json").read_text())
    config["image_token_id"] = bpe.token_to_id("<|image_pad|>")
    config["text_config"]["vocab_size"] = bpe.get_vocab_size()
    config["vision_config"] |= {"patch_size": 14, "temporal_patch_size": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return backbone.load_processor(folder)


def one_call(processor: Any, samples: list[Sample], side: str) -> dict[str, Any]:
    """The batch of one call of the processor itself on the whole list."""
    texts = [backbone.render(processor, s.question, s.answer, image=s.image is not None) for s in samples]
    images = [[] if s.image is None else [s.image] for s in samples]
    options: dict[str, Any] = {"images": images} if any(images) else {}
    return dict(processor(text=texts, padding=True, padding_side=side, return_tensors="pt", **options))


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (1,), (0,), (2, 0), (1, 1, 3)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_equal_to_one_processor_call(
    processor: Any, published: Any, mixed_samples: list[Sample], chosen: tuple[int, ...], side: str
) -> None:
    samples = [mixed_samples[i] for i in chosen]
    for each in (processor, published):
        ours = backbone.collate(each, samples, padding_side=side)
        theirs = one_call(each, samples, side)
        labels = ours.pop("labels")
        assert labels.shape == ours["input_ids"].shape
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype
            assert torch.equal(ours[key], value), key


def test_batch_by_hand(processor: Any, mixed_samples: list[Sample]) -> None:
    """A 28x28 picture is 4x4 patches of 7 pixels, a 40x28 one 6x4; 2x2 patches become one image token."""
    ids = processor.tokenizer.convert_tokens_to_ids
    samples = [mixed_samples[2], mixed_samples[1], mixed_samples[0]]
    batch = backbone.collate(processor, samples)
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4]]
    assert batch["pixel_values"].shape == (24 + 16, 3 * 7 * 7)
    picture = ["<|vision_start|>", *["<|image_pad|>"] * 6, "<|vision_end|>"]
    row = ids(["USER:", *picture, "Which", "food", "?", "ASSISTANT:", "rice", "<|im_end|>"])
    question, answer = ["What", "is", "the", "food", "of", "Anna", "Berg", "?"], ["The", "food", "is", "soup", "."]
    text = ids(["USER:", *question, "ASSISTANT:", *answer, "<|im_end|>"])
    padding = 22 - len(row)
    assert batch["input_ids"][0].tolist() == row + [0] * padding
    assert batch["attention_mask"][0].tolist() == [1] * len(row) + [0] * padding
    assert batch["labels"][0].tolist() == [-100] * 13 + ids(["rice", "<|im_end|>"]) + [-100] * padding
    assert batch["mm_token_type_ids"][0].tolist() == [0] * 2 + [1] * 6 + [0] * (22 - 8)
    assert batch["input_ids"][1].tolist() == text + [0] * (22 - len(text))
    assert batch["labels"][1].tolist()[:16] == [-100] * 10 + text[10:]
    assert batch["mm_token_type_ids"].sum(1).tolist() == [6, 0, 4]


def test_text_batch_has_no_pictures(processor: Any, mixed_samples: list[Sample]) -> None:
    assert backbone.collate(processor, mixed_samples[1:2]).keys() == {
        "input_ids",
        "attention_mask",
        "labels",
        "mm_token_type_ids",
    }


def test_prompts_are_left_padded_and_hold_no_answer(processor: Any, mixed_samples: list[Sample]) -> None:
    batch = backbone.prompts(processor, mixed_samples)
    assert "labels" not in batch
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == processor.image_token_id).long())
    control = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    for row, mask, sample in zip(batch["input_ids"], batch["attention_mask"], mixed_samples, strict=True):
        assert mask.tolist() == sorted(mask.tolist())
        words = processor.tokenizer.convert_ids_to_tokens(row[mask == 1].tolist())
        assert [w for w in words if w not in control] == ["USER:", *sample.question.split(), "ASSISTANT:"]


def test_published_template(published: Any) -> None:
    """The system turn that the template adds, one end token, and not the line break after it."""
    rendered = backbone.render(published, "Where?", "Paris", image=True)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n"
        "<|im_start|>assistant\nParis<|im_end|>"
    )
    assert backbone.render(published, "Where?", None, image=True) == rendered.removesuffix("Paris<|im_end|>")


@pytest.mark.parametrize("answer", ANSWERS)
def test_answer_span_of_published_template(published: Any, make_sample: MakeSample, answer: str) -> None:
    samples = [make_sample("p", "Where?", answer, seed=1, width=90, height=56), make_sample("t", "Where?", answer)]
    batch = backbone.collate(published, samples)
    end = published.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for labels, ids, tokens in zip(batch["labels"], batch["input_ids"], (2 * 3, 0), strict=True):
        kept = labels[labels != -100]
        assert kept[-1] == end
        text = published.tokenizer.decode(kept[:-1])
        assert text.strip() == answer.strip().replace("u\u0308", "ü")
        assert int((ids == published.image_token_id).sum()) == tokens


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_in_data_are_refused(published: Any, make_sample: MakeSample, token: str) -> None:
    for question, answer in ((f"Where {token}?", "Paris"), ("Where?", f"Paris{token}")):
        with pytest.raises(UnusableData, match="sample bad holds the control token"):
            backbone.collate(published, [make_sample("bad", question, answer)])


def test_picture_that_cannot_be_used_names_the_sample(processor: Any, make_sample: MakeSample) -> None:
    strip = make_sample("strip", "What is this ?", "rice", seed=1, width=402, height=2)
    with pytest.raises(UnusableData, match="the picture of sample strip cannot be used: absolute aspect ratio"):
        backbone.collate(processor, [strip])


def test_row_owners_by_hand(loaded_qwen2_vl: Loaded) -> None:
    """Several pictures per sample and samples without: rows follow the order of the image tokens."""
    config = loaded_qwen2_vl.model.config
    i, t = config.image_token_id, 8
    ids = torch.tensor([[t, t, t, t, t], [i, i, t, t, t], [i, t, i, i, i], [t, t, t, t, t]])
    grids = torch.tensor([[1, 2, 4], [1, 2, 2], [1, 6, 2]])
    batch = {"input_ids": ids, "image_grid_thw": grids}
    owners = backbone.row_owners(config, batch, "model.visual.blocks.0.mlp.fc1", 8 + 4 + 12)
    assert owners.tolist() == [1] * 8 + [2] * (4 + 12)
    assert backbone.row_owners(config, batch, "model.visual.merger.mlp.2", 6).tolist() == [1] * 2 + [2] * 4
    with pytest.raises(UnusableData, match=r"merger\.mlp\.0: 7 rows do not fit the 24 patches of the batch"):
        backbone.row_owners(config, batch, "model.visual.merger.mlp.0", 7)
    for wrong in (grids[:2], grids[[1, 0, 2]], torch.cat([grids, grids])):
        with pytest.raises(UnusableData, match=r"norm1: the pictures' image tokens are not those"):
            backbone.row_owners(config, {**batch, "image_grid_thw": wrong}, "model.visual.blocks.0.norm1", 24)
    with pytest.raises(UnusableData, match="norm1: 24 rows, but the batch has no pictures"):
        backbone.row_owners(config, {"input_ids": ids}, "model.visual.blocks.0.norm1", 24)


def test_leading_rows_of_the_running_code(loaded_qwen2_vl: Loaded, mixed_samples: list[Sample]) -> None:
    """Patches everywhere in the vision tower and at `ln_q`, image tokens in the rest of the merger."""
    rows: dict[str, int] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: rows.__setitem__(name, len(output)))
        for name, module in loaded_qwen2_vl.model.model.visual.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    batch = backbone.collate(loaded_qwen2_vl.processor, mixed_samples)
    with torch.no_grad():
        loaded_qwen2_vl.model(**batch)
    for handle in handles:
        handle.remove()
    patches = 16 + 24 + 16
    assert rows.pop("merger.mlp.0") == rows.pop("merger.mlp.2") == patches // 4
    assert rows.keys() >= {"patch_embed.proj", "blocks.1.attn.qkv", "merger.ln_q"}
    assert set(rows.values()) == {patches}


def test_template_digest(processor: Any, mixed_samples: list[Sample], tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    digest = backbone.template_digest(processor)
    one_call(processor, mixed_samples, "left")
    backbone.collate(processor, mixed_samples)
    assert backbone.template_digest(processor) == digest
    copy = tmp_path / "copy"
    shutil.copytree(tiny_qwen2_vl, copy)
    assert backbone.template_digest(backbone.load_processor(copy)) == digest
    changes = {
        "chat_template.jinja": ("ASSISTANT: ", "ASSISTANT:\n"),
        "processor_config.json": ('"longest_edge": 3136', '"longest_edge": 3137'),
        "tokenizer.json": ('"lisbon"', '"madrid"'),
    }
    found = {digest}
    for name, (old, new) in changes.items():
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))
        found.add(backbone.template_digest(backbone.load_processor(copy)))
    assert len(found) == 4
