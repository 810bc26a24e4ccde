"""Loading Qwen2-VL folders: layouts, tied heads, published processor files, and as stock transformers sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mmsurgery.artifacts.checkpoint import SINGLE, CheckpointFiles
from mmsurgery.backbones import loading
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Sample
from mmsurgery.errors import InputRefused
from mmsurgery_qwen2_vl import backbone, names

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture
def copy(tiny_qwen2_vl: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_qwen2_vl, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = load_file(path / SINGLE)
    change(stored)
    save_file(stored, path / SINGLE, {"format": "pt"})


def test_loaded(loaded_qwen2_vl: Loaded, tiny_qwen2_vl: Path) -> None:
    assert loaded_qwen2_vl.backbone is backbone
    assert not loaded_qwen2_vl.model.training
    assert loaded_qwen2_vl.tied == {HEAD: EMBEDDING}
    assert HEAD not in loaded_qwen2_vl.addresses
    stored = {names.canonical(name): array for name, array in load_file(tiny_qwen2_vl / SINGLE).items()}
    assert stored.keys() == loaded_qwen2_vl.addresses.keys()
    for name, parameter in loaded_qwen2_vl.model.named_parameters():
        assert np.array_equal(parameter.detach().numpy(), stored[name])


@pytest.mark.parametrize("layout", names.LAYOUTS)
@pytest.mark.parametrize("head", ["left out", "stored twice", "alone"])
def test_every_layout_loads(copy: Path, loaded_qwen2_vl: Loaded, layout: str, head: str) -> None:
    """A tied head may be stored under either name or both; it is one parameter with one digest."""
    stored = {names.canonical(name): array for name, array in load_file(copy / SINGLE).items()}
    if head != "left out":
        stored[HEAD] = stored[EMBEDDING].copy() if head == "stored twice" else stored.pop(EMBEDDING)
    save_file({names.on_disk(n, layout): a for n, a in stored.items()}, copy / SINGLE, {"format": "pt"})
    files = CheckpointFiles(copy, backbone.canonical)
    assert files.tied == {HEAD: EMBEDDING}
    assert files.digest() == loaded_qwen2_vl.model_sha256
    for (name, ours), (other, theirs) in zip(
        load(copy).model.named_parameters(), loaded_qwen2_vl.model.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)


def test_tied_head_with_other_values_is_refused(copy: Path) -> None:
    edit_weights(copy, lambda stored: stored.update({HEAD: stored["model.embed_tokens.weight"] + 1}))
    with pytest.raises(InputRefused, match=r"ties lm_head\.weight to model\.language_model\.embed_tokens\.weight but"):
        load(copy)


def test_flat_config_of_published_checkpoints(copy: Path, loaded_qwen2_vl: Loaded) -> None:
    """Published configs hold the language model's settings at the top, and rotary ones under older names."""
    config = json.loads((copy / "config.json").read_text())
    text = config.pop("text_config")
    rotary = text.pop("rope_parameters")
    text.pop("model_type")
    config |= text | {
        "rope_theta": rotary["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rotary["mrope_section"]},
        "torch_dtype": config.pop("dtype"),
    }
    (copy / "config.json").write_text(json.dumps(config))
    loaded = load(copy)
    assert loaded.model_sha256 == loaded_qwen2_vl.model_sha256
    assert loaded.tied == loaded_qwen2_vl.tied
    ours, theirs = loaded.model.config.text_config, loaded_qwen2_vl.model.config.text_config
    assert ours.rope_parameters["mrope_section"] == theirs.rope_parameters["mrope_section"]
    assert ours.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"]


def test_loading_is_silent(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(copy)
    assert capfd.readouterr() == ("", "")


def edit_pictures(folder: Path, **changes: Any) -> None:
    pictures = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    edit_json(folder / "processor_config.json", image_processor=pictures | changes)


WEIGHT = "visual.merger.ln_q.weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda p: edit_weights(p, lambda s: s.pop(WEIGHT)),
        r"missing keys, 1 in all: model\.visual\.merger\.ln_q\.weight",
    ),
    "unexpected": (
        lambda p: edit_weights(p, lambda s: s.update({"visual.merger.ln_k.weight": s[WEIGHT]})),
        "unexpected keys, 1 in all: .*ln_k.weight",
    ),
    "shape": (
        lambda p: edit_weights(p, lambda s: s.update({WEIGHT: s[WEIGHT][:-1].copy()})),
        r"mismatched keys, 1 in all: .*ln_q\.weight",
    ),
    "config": (lambda p: edit_json(p / "config.json", vision_config={"depth": "two"}), "cannot be loaded"),
    "tokenizer": (lambda p: (p / "tokenizer.json").write_text('{"version": "1.0"}'), "the processor files"),
    "template": (lambda p: (p / "chat_template.jinja").unlink(), "has no chat template"),
    "no end": (
        lambda p: edit_json(p / "tokenizer_config.json", eos_token=None),
        r"tokenizer_config\.json names no end token \(eos_token\)",
    ),
    "unknown padding": (
        lambda p: edit_json(p / "tokenizer_config.json", pad_token="x"),
        r"tokenizer_config\.json\) has token 'x' with id (\d+), config\.json says vocab_size = \1",
    ),
    "longest text": (
        lambda p: edit_json(p / "tokenizer_config.json", model_max_length="x"),
        r"tokenizer_config\.json says model_max_length = 'x'",
    ),
    "image token": (
        lambda p: edit_json(p / "config.json", image_token_id=4),
        r"config\.json says the image token is 4, the tokenizer makes \[3\] of <\|image_pad\|>",
    ),
    "patches": (
        lambda p: edit_pictures(p, patch_size=14),
        r"processor_config\.json says patch_size = 14, config\.json patch_size = 7",
    ),
    "merged patches": (
        lambda p: edit_pictures(p, merge_size=1),
        r"says merge_size = 1, config\.json spatial_merge_size",
    ),
    "time": (lambda p: edit_pictures(p, temporal_patch_size=2), "says temporal_patch_size = 2, config"),
    "code": (
        lambda p: edit_json(p / "processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}),
        "needs remote code; mmsurgery never runs it",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_incomplete_folder_is_refused(copy: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = FAULTS[fault]
    damage(copy)
    with pytest.raises(InputRefused, match=message):
        load(copy)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("template", ["chat_template.json", "tokenizer_config.json"])
def test_processor_files_as_published(copy: Path, loaded_qwen2_vl: Loaded, template: str) -> None:
    """preprocessor_config.json with least and most pixels in place of processor_config.json; the template
    as published, or with the tokenizer only, as some fine-tunes have it."""
    pictures = json.loads((copy / "processor_config.json").read_text())["image_processor"]
    size = pictures.pop("size")
    published = {
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    (copy / "preprocessor_config.json").write_text(json.dumps(pictures | published))
    (copy / "processor_config.json").unlink()
    if not (copy / template).exists():
        (copy / template).write_text("{}")
    edit_json(copy / template, chat_template=(copy / "chat_template.jinja").read_text())
    (copy / "chat_template.jinja").unlink()
    processor = backbone.load_processor(copy)
    assert type(processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    assert backbone.template_digest(processor) == backbone.template_digest(loaded_qwen2_vl.processor)


def test_saved_processor_names_the_stock_classes(tiny_qwen2_vl: Path) -> None:
    """AutoProcessor, where torchvision is installed, finds its class by these names and needs both sections."""
    config = json.loads((tiny_qwen2_vl / "processor_config.json").read_text())
    assert config["processor_class"] == "Qwen2VLProcessor"
    pictures, videos = config["image_processor"], config["video_processor"]
    assert pictures.pop("image_processor_type") == "Qwen2VLImageProcessor"
    assert videos.pop("video_processor_type") == "Qwen2VLVideoProcessor"
    assert pictures == videos


def test_stock_transformers_loads_a_micro_model(
    tiny_qwen2_vl: Path, loaded_qwen2_vl: Loaded, mixed_samples: list[Sample]
) -> None:
    from transformers import AutoModelForImageTextToText

    processor = loaded_qwen2_vl.processor
    with loading.quiet():
        model, info = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl, output_loading_info=True)
    assert not any(info.values())
    batch = backbone.collate(processor, mixed_samples)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded_qwen2_vl.model(**batch).logits)
        prompts = backbone.prompts(processor, mixed_samples)
        generated = model.generate(**prompts, max_new_tokens=3, do_sample=False)
        first = generated[:, prompts["input_ids"].shape[1]]
        assert torch.equal(first, model(**prompts).logits[:, -1].argmax(-1))


def test_portraits_model_has_the_size_it_should(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    """Sizes of the embedded benchmark's micro model with 175 words; a 48x48 picture is 16 image tokens."""
    question, answer = "what is the city of this person ?", "The city is lisbon ."
    known = dict.fromkeys(f"{question} {answer}".split())
    words = [*known, *(f"word{i}" for i in range(175 - 9 - len(known)))]
    backbone.micro(tmp_path / "micro", words, seed=0)
    loaded = load(tmp_path / "micro")
    sizes = dict.fromkeys(("vision", "connector", "lm"), 0)
    for name, parameter in loaded.model.named_parameters():
        sizes[loaded.addresses[name].group] += parameter.numel()
    assert sizes == {"vision": 73_856, "connector": 90_592, "lm": 283_680}
    assert sum(sizes.values()) == 448_128
    assert loaded.tied == {}
    first = loaded.processor.tokenizer.convert_ids_to_tokens(list(range(6)))
    assert first == ["<pad>", "<unk>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]
    sample = make_sample("a", question, answer, seed=1, width=48, height=48)
    batch = backbone.collate(loaded.processor, [sample])
    assert batch["pixel_values"].shape == (64, 3 * 6 * 6)
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert int(batch["mm_token_type_ids"].sum()) == 16
    loaded.model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())


def key_bias_gradients(path: Path, batch: dict[str, Any]) -> list[float]:
    """Largest absolute gradient of every key bias, relative to its whole weight's, in float64."""
    model: Any = backbone.load_model(path, dtype=torch.float64)
    model(**batch).loss.backward()
    found = []
    for block in model.model.visual.blocks:
        third = slice(block.attn.dim, 2 * block.attn.dim)
        found.append((block.attn.qkv.bias.grad[third].abs().max() / block.attn.qkv.weight.grad.abs().max()).item())
    for layer in model.model.language_model.layers:
        key = layer.self_attn.k_proj
        found.append((key.bias.grad.abs().max() / key.weight.grad.abs().max()).item())
    return found


def test_key_biases_have_a_true_gradient_by_rotation(
    tiny_qwen2_vl: Path, loaded_qwen2_vl: Loaded, mixed_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without rotary positions softmax would cancel key biases, as it does in CLIP; with them it cannot."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as code

    batch = backbone.collate(loaded_qwen2_vl.processor, mixed_samples)
    assert min(key_bias_gradients(tiny_qwen2_vl, batch)) > 1e-7
    monkeypatch.setattr(code, "apply_rotary_pos_emb_vision", lambda q, k, cos, sin: (q, k))
    monkeypatch.setattr(code, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    assert max(key_bias_gradients(tiny_qwen2_vl, batch)) < 1e-12
    assert not any(backbone.no_true_gradient(name) for name in loaded_qwen2_vl.addresses)


@pytest.mark.parametrize(
    "rotary",
    [
        None,
        {},
        *(
            {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
            for sections in ([-1, 2, 3], [4, 4, 400], [0, 2, 2], "2", [2.0, 1, 1], None)
        ),
    ],
)
def test_rotary_sections_that_share_out_no_head_are_refused(tiny_qwen2_vl: Path, tmp_path: Path, rotary: Any) -> None:
    shutil.copytree(tiny_qwen2_vl, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    (config.get("text_config") or config)["rope_parameters"] = rotary
    path.write_text(json.dumps(config))
    with pytest.raises(InputRefused, match="mrope_section"):
        backbone.load_model(tmp_path / "model")


@pytest.mark.parametrize("heads", [3, 16, 0, -2])
def test_heads_that_do_not_share_out_the_vision_encoder_are_refused(
    tiny_qwen2_vl: Path, tmp_path: Path, heads: int
) -> None:
    shutil.copytree(tiny_qwen2_vl, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["num_heads"] = heads
    path.write_text(json.dumps(config))
    with pytest.raises(InputRefused, match=f"num_heads of the vision encoder is {heads}, which"):
        backbone.load_processor(tmp_path / "model")
