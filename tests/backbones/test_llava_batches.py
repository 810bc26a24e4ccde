"""Batches of LLaVA: what a single processor call gives, labels by hand, and texts that must be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsurgery.backbones import encoding
from mmsurgery.backbones.loading import Loaded
from mmsurgery.data.samples import Sample
from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery_llava import backbone

PUBLISHED_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""chat_template.json of llava-hf/llava-1.5-7b-hf."""

MakeSample = Callable[..., Sample]


@pytest.fixture(scope="module")
def processor(loaded_llava: Loaded) -> Any:
    return loaded_llava.processor


def one_call(processor: Any, samples: list[Sample], side: str) -> dict[str, Any]:
    """The batch of one call of the processor itself on the whole list."""
    texts = [backbone.render(processor, s.question, s.answer, image=s.image is not None) for s in samples]
    images = [[] if s.image is None else [s.image] for s in samples]
    options: dict[str, Any] = {"images": images} if any(images) else {}
    return dict(processor(text=texts, padding=True, padding_side=side, return_tensors="pt", **options))


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (1,), (0,), (2, 0), (1, 1, 3)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_equal_to_one_processor_call(
    processor: Any, mixed_samples: list[Sample], chosen: tuple[int, ...], side: str
) -> None:
    samples = [mixed_samples[i] for i in chosen]
    ours = backbone.collate(processor, samples, padding_side=side)
    theirs = one_call(processor, samples, side)
    labels = ours.pop("labels")
    assert labels.shape == ours["input_ids"].shape
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        assert torch.equal(ours[key], value), key


def test_labels_by_hand(processor: Any, mixed_samples: list[Sample]) -> None:
    """USER: <image>x4 Which food ? ASSISTANT: rice </s>; the text question is padded on the right."""
    ids = processor.tokenizer.convert_tokens_to_ids
    short, text = mixed_samples[2], mixed_samples[1]
    batch = backbone.collate(processor, [short, text])
    prompt = ["USER:", *["<image>"] * 4, "Which", "food", "?", "ASSISTANT:"]
    answer = ids(["rice", "</s>"])
    row = ids(prompt) + answer
    assert batch["input_ids"][0].tolist() == row + [0] * (16 - len(row))
    assert batch["labels"][0].tolist() == [-100] * 9 + answer + [-100] * 5
    assert batch["attention_mask"][0].tolist() == [1] * 11 + [0] * 5
    assert batch["labels"][1].tolist() == [-100] * 10 + ids(["The", "food", "is", "soup", ".", "</s>"])
    assert batch["pixel_values"].shape == (1, 3, 28, 28)


def test_prompts_are_left_padded_and_hold_no_answer(processor: Any, mixed_samples: list[Sample]) -> None:
    batch = backbone.prompts(processor, mixed_samples)
    assert "labels" not in batch
    for row, mask, sample in zip(batch["input_ids"], batch["attention_mask"], mixed_samples, strict=True):
        assert mask.tolist() == sorted(mask.tolist())
        text = processor.tokenizer.decode(row[mask == 1]).replace("<image>", "").split()
        assert text == ["USER:", *sample.question.split(), "ASSISTANT:"]


def test_template_renders_as_the_published_one(processor: Any, mixed_samples: list[Sample]) -> None:
    """The published template ends an answer with a space and no end token; both are put right."""
    published = _Templated(processor, PUBLISHED_TEMPLATE)
    for sample in mixed_samples:
        for answer in (None, sample.answer):
            image = sample.image is not None
            ours = backbone.render(processor, sample.question, answer, image=image)
            assert backbone.render(published, sample.question, answer, image=image) == ours
    assert ours == "USER: <image>\nWhat is this ? ASSISTANT: The person is Anna Berg .</s>"
    assert torch.equal(
        backbone.collate(published, mixed_samples)["labels"], backbone.collate(processor, mixed_samples)["labels"]
    )


class _Templated:
    """A processor with another chat template or tokenizer."""

    def __init__(self, processor: Any, template: str | None = None, tokenizer: Any = None) -> None:
        self._processor = processor
        self.chat_template = template or processor.chat_template
        self.tokenizer = tokenizer or processor.tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def apply_chat_template(self, turns: Any, **options: Any) -> Any:
        return self._processor.apply_chat_template(turns, chat_template=self.chat_template, **options)


def byte_level_bpe(texts: list[str]) -> Any:
    """A byte-level BPE with merges, a start token put before every text, and no end token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<image>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def sentencepiece_like(texts: list[str], *, split: bool = True) -> Any:
    """As Llama's: spaces as metaspaces that begin words, a start token, bytes for what is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<image>", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(models.BPE(byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=split)
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner = json.loads(bpe.to_str())
    inner["added_tokens"] = [each for each in inner["added_tokens"] if not each["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(inner)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


@pytest.mark.parametrize("build", [byte_level_bpe, sentencepiece_like])
@pytest.mark.parametrize("end", ["ASSISTANT:", "ASSISTANT: "])
def test_answer_span_with_merges(
    processor: Any, make_sample: MakeSample, build: Callable[[list[str]], Any], end: str
) -> None:
    """Whatever merges at the boundary, labels read as the answer and its end token."""
    answers = ["Paris city", "Zürich", "東京", "a", "It is  rice.", " Paris ", "Paris\nOslo"]
    samples = [make_sample(str(i), "Where?", answer, seed=i if i % 2 else None) for i, answer in enumerate(answers)]
    template = processor.chat_template.replace("ASSISTANT:", end)
    tokenizer = build([f"USER: <image>\nWhere? ASSISTANT: {answer}" for answer in answers] * 3)
    templated = _Templated(processor, template, tokenizer)
    templated.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    batch = backbone.collate(templated, samples)
    for sample, labels, ids in zip(samples, batch["labels"], batch["input_ids"], strict=True):
        kept = labels[labels != -100]
        assert kept[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(kept).strip() == sample.answer.strip() + "</s>"
        assert not torch.isin(torch.tensor([0, 1, templated.image_token_id]), kept).any()
        assert int((ids == templated.image_token_id).sum()) == (0 if sample.image is None else 4)


def test_prompt_tokens_need_not_be_a_prefix(processor: Any, make_sample: MakeSample) -> None:
    """Why characters: with this tokenizer and template, counting prompt tokens would cut the first word."""
    tokenizer = byte_level_bpe(["USER: Where? ASSISTANT: Paris city"] * 3)
    templated = _Templated(processor, processor.chat_template.replace("ASSISTANT:", "ASSISTANT: "), tokenizer)
    sample = make_sample("x", "Where?", "Paris city")
    prompt = backbone.prompts(templated, [sample])["input_ids"][0].tolist()
    whole = backbone.collate(templated, [sample])["input_ids"][0].tolist()
    assert whole[: len(prompt)] != prompt


def test_a_token_across_prompt_and_answer_is_refused(processor: Any, make_sample: MakeSample) -> None:
    tokenizer = sentencepiece_like(["USER: Where? ASSISTANT: Paris"] * 3, split=False)
    with pytest.raises(UnusableData, match="the tokens of its answer read 'USER: Where"):
        backbone.collate(_Templated(processor, tokenizer=tokenizer), [make_sample("x", "Where?", "Paris")])


def test_every_picture_and_text_is_processed_once(
    processor: Any, mixed_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    image_processor, encode = processor.image_processor, encoding._encode
    monkeypatch.setattr(
        processor, "image_processor", lambda **given: (calls.append("picture"), image_processor(**given))[1]
    )
    monkeypatch.setattr(encoding, "_encode", lambda *given: (calls.append("text"), encode(*given))[1])
    cache: dict[Any, Any] = {}
    first = backbone.collate(processor, mixed_samples, cache=cache)
    assert (calls.count("picture"), calls.count("text")) == (2, 4)  # samples a and d share a picture
    second = backbone.collate(processor, mixed_samples[::-1], cache=cache)
    assert len(calls) == 6
    assert torch.equal(second["labels"], first["labels"].flip(0))
    backbone.collate(_Templated(processor), mixed_samples, cache=cache)
    assert len(calls) == 12  # another processor remembers nothing


def test_remembered_pictures_are_bounded(
    processor: Any, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "PICTURE_BYTES", 3 * 3 * 28 * 28 * 4)
    cache: dict[Any, Any] = {}
    samples = [make_sample(str(i), "What is this ?", "rice", seed=i) for i in range(5)]
    batch = backbone.collate(processor, samples, cache=cache)
    assert torch.equal(batch["pixel_values"], backbone.collate(processor, samples)["pixel_values"])
    (kept,) = cache.values()
    assert list(kept.pictures) == [sample.image_sha256 for sample in samples[2:]]
    assert kept.picture_bytes == sum(picture.inputs["pixel_values"].nbytes for picture in kept.pictures.values())


@pytest.mark.parametrize(("setting", "value"), [("patch_size", 0), ("patch_size", "x")])
def test_settings_that_make_no_sense_name_the_picture(
    processor: Any, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch, setting: str, value: object
) -> None:
    monkeypatch.setattr(processor, setting, value)
    with pytest.raises(UnusableData, match="the picture of sample s cannot be used") as caught:
        backbone.collate(processor, [make_sample("s", "Which food ?", "rice", seed=1)])
    assert "copy the processor files" in str(caught.value)


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("What is <image> ?", "rice", "sample bad holds the control token <image> as text"),
        ("What ?", "The <image>", "sample bad holds the control token <image> as text"),
        ("What ?", "rice </s> soup", "sample bad holds the control token </s> as text"),
        ("What ?", "  ", "sample bad has an empty answer"),
        ("What ?", "quinoa", "sample bad: the tokens of its answer read '<unk></s>', not 'quinoa'"),
    ],
)
def test_unusable_text_names_the_sample(
    processor: Any, make_sample: MakeSample, question: str, answer: str, message: str
) -> None:
    with pytest.raises(UnusableData) as caught:
        backbone.collate(processor, [make_sample("ok", "What ?", "rice"), make_sample("bad", question, answer)])
    assert caught.value.what.replace(" </s>'", "</s>'") == message


def test_text_longer_than_the_model_takes(
    processor: Any, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor.tokenizer, "model_max_length", 10)
    with pytest.raises(UnusableData, match="sample long has 12 tokens, the model takes 10"):
        backbone.collate(processor, [make_sample("long", "What is this ?", "rice", seed=1)])


def test_tokenizers_that_cannot_be_used(processor: Any, mixed_samples: list[Sample]) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputRefused, match="tokenizer Slow gives no character offsets"):
        backbone.collate(_Templated(processor, tokenizer=Slow()), mixed_samples)
    unpadded = byte_level_bpe(["x"])
    unpadded.pad_token = None
    with pytest.raises(InputRefused, match="has no padding token"):
        backbone.collate(_Templated(processor, tokenizer=unpadded), mixed_samples[1:2])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no') }}", "chat template fails: no"),
        ("{{ messages[0].content[-1].text if add_generation_prompt else 'other' }}", "does not put an answer after"),
        ("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", "places for 1 pictures"),
    ],
)
def test_templates_that_cannot_be_used(
    processor: Any, mixed_samples: list[Sample], template: str, message: str
) -> None:
    with pytest.raises(InputRefused, match=message):
        backbone.collate(_Templated(processor, template), mixed_samples[:1])


def test_empty_batch(processor: Any) -> None:
    with pytest.raises(UnusableData, match="a batch without samples"):
        backbone.collate(processor, [])


def test_template_digest(processor: Any, mixed_samples: list[Sample], tiny_llava: Path, tmp_path: Path) -> None:
    digest = backbone.template_digest(processor)
    one_call(processor, mixed_samples, "left")
    backbone.collate(processor, mixed_samples)
    assert backbone.template_digest(processor) == digest
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llava, copy)
    assert backbone.template_digest(backbone.load_processor(copy)) == digest
    changes = {
        "chat_template.jinja": ("ASSISTANT:", "ASSISTANT: "),
        "processor_config.json": ('"resample": 3', '"resample": 2'),
        "tokenizer.json": ('"lisbon"', '"madrid"'),
    }
    found = {digest}
    for name, (old, new) in changes.items():
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))
        found.add(backbone.template_digest(backbone.load_processor(copy)))
    assert len(found) == 4


def test_row_owners(loaded_llava: Loaded) -> None:
    """Several pictures per sample and samples without: rows follow the order of the image tokens."""
    config = loaded_llava.model.config
    image = config.image_token_id
    ids = torch.tensor([[6, 6, 6, 6, 6, 6], [image, image, 6, 6, 6, 6], [image, image, 6, image, image, 6]])
    owners = backbone.row_owners(config, {"input_ids": ids}, "model.vision_tower.pre_layrnorm", 3)
    assert owners.tolist() == [1, 2, 2]
    for rows in (0, 4, 5):
        with pytest.raises(UnusableData, match=rf"pre_layrnorm: {rows} rows do not fit the 6 image tokens"):
            backbone.row_owners(config, {"input_ids": ids}, "model.vision_tower.pre_layrnorm", rows)
