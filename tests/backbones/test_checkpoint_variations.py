"""Checkpoints as people have them: what a family's files may lack, say elsewhere or say twice, and means the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from mmsurgery.artifacts.checkpoint import SINGLE, CheckpointFiles
from mmsurgery.artifacts.files import read_json
from mmsurgery.backbones.conformance import _losses
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import InputRefused, MachineFault
from mmsurgery.evaluate.generation import greedy

FAMILIES = ("llava", "qwen2_vl")
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
SAMPLING = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.05}
"""What Qwen2-VL is published with; the next is what Vicuna's descendants have, which contradicts itself."""
CONTRADICTION = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}


@pytest.fixture(params=FAMILIES)
def original(request: pytest.FixtureRequest) -> Loaded:
    found: Loaded = request.getfixturevalue(f"loaded_{request.param}")
    return found


@pytest.fixture
def folder(original: Loaded, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.path, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(read_json(path) if path.exists() else {}), **changes}))


def written(loaded: Loaded, samples: list[Sample], budget: int) -> list[str]:
    """Greedy answers, in batches of at most `budget` tokens."""
    items = [
        Item(s.id, s.person, s.question, column="c", options={}, gold=s.answer, image_bytes=s.image_bytes)
        for s in samples
    ]
    prompts = [loaded.backbone.render(loaded.processor, i.question, None, image=i.image is not None) for i in items]
    shown = [[item] if item.image is not None else [] for item in items]
    return greedy(loaded, items, prompts, shown, new_tokens=6, budget=budget, cache={})


def test_the_end_token_may_be_the_padding(original: Loaded, folder: Path, mixed_samples: list[Sample]) -> None:
    """Padding is told by the attention mask: the end of an answer is learnt, and batches change nothing."""
    end = original.processor.tokenizer.eos_token
    edit(folder / "tokenizer_config.json", pad_token=end)
    loaded = load(folder)
    tokenizer, family = loaded.processor.tokenizer, loaded.backbone
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    theirs = family.collate(original.processor, mixed_samples)
    for side in ("right", "left"):
        batch = family.collate(loaded.processor, mixed_samples, padding_side=side)
        rows = zip(mixed_samples, batch["labels"], batch["attention_mask"], batch["input_ids"], strict=True)
        for sample, labels, mask, ids in rows:
            assert tokenizer.decode(labels[labels != -100]).split() == [*sample.answer.split(), end]
            assert int((labels == tokenizer.eos_token_id).sum()) == 1
            assert bool((labels[mask == 0] == -100).all())
            assert bool((ids[mask == 0] == tokenizer.eos_token_id).all())
        assert torch.equal(batch["attention_mask"].sum(1), theirs["attention_mask"].sum(1))
        alone = [_losses(loaded.model, family.collate(loaded.processor, [sample]))[0] for sample in mixed_samples]
        assert np.allclose(_losses(loaded.model, batch), alone, rtol=1e-5)
    one_by_one = written(loaded, mixed_samples, budget=1)
    assert written(loaded, mixed_samples, budget=10_000) == one_by_one == written(original, mixed_samples, budget=1)


def test_no_padding_token_is_refused_with_what_to_set(folder: Path, mixed_samples: list[Sample]) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    loaded = load(folder)
    with pytest.raises(InputRefused, match=r"no padding token - next: set pad_token in tokenizer_config\.json"):
        loaded.backbone.collate(loaded.processor, mixed_samples)


@pytest.mark.parametrize("settings", [SAMPLING, CONTRADICTION])
def test_sampling_settings_are_no_hindrance_and_not_used(
    original: Loaded,
    folder: Path,
    settings: dict[str, Any],
    mixed_samples: list[Sample],
    capfd: pytest.CaptureFixture[str],
) -> None:
    edit(folder / "generation_config.json", **settings)
    loaded = load(folder)
    assert written(loaded, mixed_samples, budget=1) == written(original, mixed_samples, budget=1)
    assert capfd.readouterr() == ("", "")


def in_jinja(folder: Path) -> None:
    """As micro models have it."""


def in_json(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    edit(folder / "chat_template.json", chat_template=template.read_text())
    template.unlink()


def in_the_tokenizers_config(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    edit(folder / "tokenizer_config.json", chat_template=template.read_text())
    template.unlink()


def by_name(folder: Path) -> None:
    """A list of templates, of which `default` is the one for conversations."""
    template = folder / "chat_template.jinja"
    named = [{"name": "default", "template": template.read_text()}, {"name": "rag", "template": "x"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    template.unlink()


@pytest.mark.parametrize("place", [in_jinja, in_json, in_the_tokenizers_config, by_name])
def test_the_chat_template_is_found_where_it_is(
    original: Loaded, folder: Path, place: Callable[[Path], None], mixed_samples: list[Sample]
) -> None:
    place(folder)
    processor = original.backbone.load_processor(folder)
    for sample in mixed_samples:
        for answer in (None, sample.answer):
            ours, theirs = (
                original.backbone.render(each, sample.question, answer, image=sample.image is not None)
                for each in (processor, original.processor)
            )
            assert ours == theirs
    if place is not by_name:
        assert original.backbone.template_digest(processor) == original.backbone.template_digest(original.processor)


FURTHER = ("additional_chat_templates", "default.jinja"), ("additional_chat_templates", "rag.jinja")


@pytest.fixture
def further(folder: Path) -> Path:
    """A folder that has further chat templates."""
    (folder / "additional_chat_templates").mkdir()
    for parts in FURTHER:
        folder.joinpath(*parts).write_text("{{ 'further' }}")
    return folder


def in_the_processors_config(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    edit(folder / "processor_config.json", chat_template=template.read_text())
    template.unlink()


@pytest.mark.parametrize("place", [in_jinja, in_json, in_the_tokenizers_config, in_the_processors_config])
def test_further_templates_count_for_nothing(original: Loaded, further: Path, place: Callable[[Path], None]) -> None:
    place(further)
    loaded = load(further)
    assert loaded.processor.chat_template == original.processor.chat_template
    digests = [original.backbone.template_digest(each.processor) for each in (loaded, original)]
    assert digests[0] == digests[1]


def test_further_templates_are_no_template(further: Path) -> None:
    (further / "chat_template.jinja").unlink()
    with pytest.raises(InputRefused, match="copy has no chat template"):
        load(further)


@pytest.mark.parametrize("name", ["default.jinja", "rag.jinja", "notes.txt"])
def test_further_templates_that_are_elsewhere(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "additional_chat_templates").mkdir()
    link = folder / "additional_chat_templates" / name
    link.symlink_to("../chat_template.jinja")
    load(folder)
    for target in (tmp_path / "secret", tmp_path / "nowhere"):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(
            InputRefused, match=f"{name} leads out of the checkpoint, to {target} - next: copy the file"
        ):
            load(folder)


def test_a_folder_of_further_templates_that_is_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "inside").mkdir(parents=True)
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere" / "inside")
    with pytest.raises(InputRefused, match="additional_chat_templates leads out of the checkpoint"):
        load(folder)


def test_processes_to_try_a_template_in_are_not_noticed(
    original: Loaded, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tokenizers warns in every process that is forked once it has used threads, unless it is told what to do."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setattr("mmsurgery.backbones.processors._SAID", {})
    original.processor.tokenizer(["a text"] * 100)
    original.backbone.load_processor(folder)
    assert capfd.readouterr() == ("", "")
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_no_process_can_be_made(original: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("os.fork", failing)
    monkeypatch.setattr("mmsurgery.backbones.processors._SAID", {})
    with pytest.raises(MachineFault, match="cannot be tried: Resource temporarily unavailable - next: end other"):
        original.backbone.load_processor(original.path)


def test_pictures_by_preprocessor_config_alone(original: Loaded, folder: Path, mixed_samples: list[Sample]) -> None:
    """Files of 2023 and 2024: no processor_config.json; LLaVA's geometry is the model's."""
    config = read_json(folder / "processor_config.json")
    (folder / "processor_config.json").unlink()
    pictures = config["image_processor"] | {"processor_class": config["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    processor = original.backbone.load_processor(folder)
    ours, theirs = (original.backbone.collate(each, mixed_samples) for each in (processor, original.processor))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert original.backbone.template_digest(processor) == original.backbone.template_digest(original.processor)


FAST = {
    "llava": ("CLIPImageProcessorFast", "LlavaImageProcessorFast"),
    "qwen2_vl": ("Qwen2VLImageProcessorFast",),
}
"""Classes of releases 4.4x and 4.5x on machines with torchvision; 5 has them under other names."""


@pytest.mark.parametrize("apart", [True, False])
def test_classes_of_earlier_releases(original: Loaded, folder: Path, apart: bool, mixed_samples: list[Sample]) -> None:
    """`Fast` image processors, in either file; keys that only the fast ones had."""
    plain = read_json(folder / "processor_config.json")
    for name in FAST[original.backbone.model_type]:
        fast = {"image_processor_type": name, "device": None, "input_data_format": None, "return_tensors": None}
        pictures = {**plain["image_processor"], **fast, "disable_grouping": None, "data_format": "channels_first"}
        if apart:
            (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
            rest = {key: value for key, value in plain.items() if key not in ("image_processor", "video_processor")}
            (folder / "processor_config.json").write_text(json.dumps(rest))
        else:
            (folder / "processor_config.json").write_text(json.dumps({**plain, "image_processor": pictures}))
        processor = original.backbone.load_processor(folder)
        assert type(processor.image_processor).__name__.endswith("Pil")
        ours, theirs = (original.backbone.collate(each, mixed_samples) for each in (processor, original.processor))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_a_llava_config_leaves_out_is_the_familys_default(tiny_llava: Path, tmp_path: Path) -> None:
    """Configs of 2023 store differences from the defaults, of which 32-pixel patches are one."""
    folder = Path(shutil.copytree(tiny_llava, tmp_path / "copy"))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(read_json(folder / "processor_config.json")["image_processor"])
    )
    (folder / "processor_config.json").unlink()
    config = read_json(folder / "config.json")
    vision = {key: value for key, value in config["vision_config"].items() if key not in ("patch_size", "model_type")}
    edit(folder / "config.json", vision_config=vision)
    processor = backbone("llava").load_processor(folder)
    assert (processor.patch_size, processor.num_additional_image_tokens) == (32, 1)
    edit(folder / "config.json", vision_config=3)
    with pytest.raises(InputRefused, match="cannot be loaded: Validation error"):
        backbone("llava").load_processor(folder)


@pytest.mark.parametrize("head", ["left out", "stored twice", "alone"])
@pytest.mark.parametrize("said", [("whole",), ("text",), ("whole", "text")])
def test_a_tied_head_is_one_parameter_however_it_is_stored(
    original: Loaded, folder: Path, head: str, said: tuple[str, ...]
) -> None:
    """And wherever the config says it: releases differ."""
    canonical = original.backbone.canonical
    whole = read_json(folder / "config.json")
    for name, part in (("whole", whole), ("text", whole["text_config"])):
        part.pop("tie_word_embeddings", None)
        if name in said:
            part["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(whole))
    stored = load_file(folder / SINGLE)
    names = {canonical(name): name for name in stored}
    published = original.backbone.published(HEAD)
    stored.pop(published, None)
    untied = stored[names[EMBEDDING]]
    if head != "left out":
        stored[published] = untied.copy()
    if head == "alone":
        del stored[names[EMBEDDING]]
    save_file(stored, folder / SINGLE, {"format": "pt"})
    files = CheckpointFiles(folder, canonical)
    assert files.tied == {HEAD: EMBEDDING}
    assert HEAD not in files
    loaded = load(folder)
    assert loaded.tied == {HEAD: EMBEDDING}
    assert loaded.model_sha256 == files.digest()
    assert np.array_equal(dict(loaded.model.named_parameters())[EMBEDDING].detach().numpy(), untied)
    assert np.array_equal(loaded.model.get_output_embeddings().weight.detach().numpy(), untied)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("named", ["dtype", "torch_dtype", None])
def test_half_precision_is_kept(
    original: Loaded, folder: Path, dtype: str, named: str | None, mixed_samples: list[Sample]
) -> None:
    """The dtype of the weights, whatever key the config says it under, or none."""
    half = getattr(torch, dtype)
    stored = {name: torch.tensor(array).to(half) for name, array in load_file(folder / SINGLE).items()}
    save_torch(stored, folder / SINGLE, {"format": "pt"})
    config = read_json(folder / "config.json")
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
        if named:
            part[named] = dtype
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {half}
    wide = load(folder, dtype=torch.float32)
    assert wide.model_sha256 == loaded.model_sha256 != original.model_sha256  # of what is stored
    values = dict(wide.model.named_parameters())
    for name, tensor in stored.items():
        assert torch.equal(values[loaded.backbone.canonical(name)], tensor.float())
    batch = loaded.backbone.collate(loaded.processor, mixed_samples)
    assert np.allclose(_losses(wide.model, batch), _losses(original.model, batch), rtol=0.02)


def test_pickled_weights_can_be_converted_as_the_page_says(original: Loaded, folder: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "checkpoints.md"
    (code,) = [block.split("```")[0] for block in page.read_text().split("```python\n")[1:]]
    torch.save({name: torch.tensor(a) for name, a in load_file(folder / SINGLE).items()}, folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()
    with pytest.raises(InputRefused, match=r"pytorch_model\.bin may run code when read - next: convert"):
        load(folder)
    new = tmp_path / "new"
    exec(code.replace('"OLD"', repr(str(folder))).replace('"NEW"', repr(str(new))), {})
    converted = load(new)
    assert converted.model_sha256 == original.model_sha256
    assert not (new / "pytorch_model.bin").exists()
    digests = [original.backbone.template_digest(each.processor) for each in (converted, original)]
    assert digests[0] == digests[1]
