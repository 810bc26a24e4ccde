"""Loading LLaVA folders: every layout, complete or refused, silent, and as stock transformers sees them."""

from __future__ import annotations

import errno
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
from mmsurgery.backbones.loading import Loaded, bit_sum, load, weights_sha256
from mmsurgery.data.samples import Sample
from mmsurgery.errors import InputRefused, MachineFault, Mismatch, UnusableData, UsageError
from mmsurgery.names import Address
from mmsurgery_llava import LlavaBackbone, backbone, names


@pytest.fixture
def copy(tiny_llava: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llava, tmp_path / "copy"))


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


def edit_weights(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = load_file(path / SINGLE)
    change(stored)
    save_file(stored, path / SINGLE, {"format": "pt"})


def test_loaded(loaded_llava: Loaded, tiny_llava: Path) -> None:
    assert loaded_llava.backbone is backbone
    assert not loaded_llava.model.training
    assert loaded_llava.model.dtype == torch.float32
    assert loaded_llava.addresses == {name: backbone.address(name) for name, _ in loaded_llava.model.named_parameters()}
    assert loaded_llava.tied == {}
    stored = {names.canonical(name): array for name, array in load_file(tiny_llava / SINGLE).items()}
    assert stored.keys() == loaded_llava.addresses.keys()
    for name, parameter in loaded_llava.model.named_parameters():
        assert np.array_equal(parameter.detach().numpy(), stored[name])


@pytest.mark.parametrize("layout", names.LAYOUTS)
def test_every_layout_loads(copy: Path, loaded_llava: Loaded, layout: str) -> None:
    stored = {names.canonical(name): array for name, array in load_file(copy / SINGLE).items()}
    save_file({names.on_disk(n, layout): a for n, a in stored.items()}, copy / SINGLE, {"format": "pt"})
    loaded = load(copy)
    assert loaded.model_sha256 == loaded_llava.model_sha256
    for (name, ours), (other, theirs) in zip(
        loaded.model.named_parameters(), loaded_llava.model.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)


def test_dtype_is_the_checkpoints_unless_given(copy: Path) -> None:
    edit_weights(copy, lambda stored: stored.update({n: a.astype(np.float16) for n, a in stored.items()}))
    edit_config(copy, dtype="float16")
    assert {p.dtype for p in load(copy).model.parameters()} == {torch.float16}
    assert {p.dtype for p in load(copy, dtype=torch.float32).model.parameters()} == {torch.float32}


def test_loading_is_silent(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(copy)
    assert capfd.readouterr() == ("", "")


def edit_part(folder: Path, part: str, key: str, value: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, **{part: {**config[part], key: value}})


def edit_processor(folder: Path, *, pictures: dict[str, Any] | None = None, **changes: Any) -> None:
    path = folder / "processor_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({**config, "image_processor": config["image_processor"] | (pictures or {})}))


def edit_tokenizer(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WEIGHT = "language_model.model.norm.weight"
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"

FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda p: edit_weights(p, lambda s: s.pop(WEIGHT)),
        "missing keys, 1 in all: model.language_model.norm",
    ),
    "unexpected": (
        lambda p: edit_weights(p, lambda s: s.update({"language_model.model.extra.weight": s[WEIGHT]})),
        "unexpected keys, 1 in all: .*extra.weight",
    ),
    "shape": (
        lambda p: edit_weights(p, lambda s: s.update({WEIGHT: s[WEIGHT][:-1].copy()})),
        "mismatched keys, 1 in all: .*norm.weight",
    ),
    "layers": (
        lambda p: edit_config(
            p, text_config={**json.loads((p / "config.json").read_text())["text_config"], "num_hidden_layers": 3}
        ),
        "missing keys, 9 in all: model.language_model.layers.2",
    ),
    "a thousand million layers": (
        lambda p: edit_part(p, "text_config", "num_hidden_layers", 10**9),
        "says num_hidden_layers = 1,000,000,000, the files hold 80 tensors",
    ),
    "a thousand million layers of sight": (
        lambda p: edit_part(p, "vision_config", "num_hidden_layers", 10**9),
        "says num_hidden_layers = 1,000,000,000",
    ),
    "terabytes": (lambda p: edit_part(p, "text_config", "intermediate_size", 10**10), "describes [0-9,]+ weights, the"),
    "beyond numbers": (lambda p: edit_part(p, "text_config", "hidden_size", 10**30), "cannot be loaded"),
    "config": (lambda p: edit_config(p, vision_feature_select_strategy="odd"), "cannot be loaded"),
    "tokenizer": (lambda p: (p / "tokenizer.json").write_text('{"version": "1.0"}'), "the processor files"),
    "picture": (lambda p: (p / "processor_config.json").write_text("[]"), "processor_config.json is not a JSON object"),
    "template": (lambda p: (p / "chat_template.jinja").unlink(), "has no chat template"),
    "endless template": (
        lambda p: (p / "chat_template.jinja").write_text(ENDLESS),
        "the chat template of .*copy takes more than 2 s or 1 GiB - next: copy",
    ),
    "template as large as memory": (
        lambda p: (p / "chat_template.jinja").write_text("{{ messages[0].role * 10**10 }}"),
        "the chat template of .*copy takes more than 2 s or 1 GiB",
    ),
    "no end": (
        lambda p: (p / "tokenizer_config.json").write_text("{}"),
        r"tokenizer_config\.json names no end token \(eos_token\) - next: copy tokenizer_config\.json",
    ),
    "unknown end": (
        lambda p: edit_tokenizer(p, eos_token="x"),
        r"tokenizer_config\.json\) has token 'x' with id (\d+), config\.json says vocab_size = \1",
    ),
    "image token": (
        lambda p: edit_config(p, image_token_index=4),
        r"config\.json says the image token is 4, the tokenizer makes \[3\] of <image>",
    ),
    "size of pictures": (
        lambda p: edit_processor(p, pictures={"crop_size": {"height": 28, "width": 3}}),
        r"makes of a picture is \[1, 3, 28, 3\] numbers, config\.json says \[1, 3, 28, 28\] \(image_size\)",
    ),
    "pictures of any size": (lambda p: edit_processor(p, pictures={"do_center_crop": False}), "is .* numbers, config"),
    "pictures as large as memory": (
        lambda p: edit_processor(p, pictures={"size": {"shortest_edge": 1 << 17}}),
        "makes of a picture takes more than 2 s or 1 GiB",
    ),
    "pictures without a mean": (
        lambda p: edit_processor(p, pictures={"image_mean": [0.5] * 4}),
        "makes of a picture cannot be used: ",
    ),
    "pictures without a deviation": (
        lambda p: edit_processor(p, pictures={"image_std": [0.0] * 3}, patch_size=7),
        "is 16 image tokens",
    ),
    "strategy": (
        lambda p: edit_processor(p, vision_feature_select_strategy=-5),
        r"is 5 image tokens .*vision_feature_select_strategy = -5\), what config\.json says makes 4",
    ),
    **{
        f"layer {layer}": (
            lambda p, layer=layer: edit_config(p, vision_feature_layer=layer),
            rf"vision_feature_layer is {layer}, the vision encoder has \d layers",
        )
        for layer in (-5, 0, 1_000_000)
    },
    "patches": (lambda p: edit_processor(p, patch_size=7), r"is 16 image tokens \(patch_size = 7, .* makes 4"),
    "no patches": (lambda p: edit_processor(p, patch_size=0), "makes of a picture cannot be used: "),
    "class tokens": (
        lambda p: edit_processor(p, num_additional_image_tokens=0),
        r"is 3 image tokens \(.* num_additional_image_tokens = 0, .* makes 4",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_incomplete_folder_is_refused(copy: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = FAULTS[fault]
    damage(copy)
    with pytest.raises(InputRefused, match=message):
        load(copy)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), OSError(errno.EMFILE, "Too many open files", "x"), MemoryError()],
)
def test_the_machine_is_at_fault_not_the_folder(
    tiny_llava: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.from_pretrained", failing)
    with pytest.raises(MachineFault, match=r"end other programs|use a larger machine"):
        load(tiny_llava)


def test_text_that_cannot_be_encoded_is_not_blamed_on_the_path(
    tiny_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        "\ud800".encode()

    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.from_pretrained", failing)
    with pytest.raises(InputRefused, match=r"surrogates not allowed - next: make or copy it again"):
        load(tiny_llava)


def test_remote_code_is_never_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (copy / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    edit_config(
        copy, auto_map={"AutoConfig": "modeling_evil.Evil", "AutoModelForImageTextToText": "modeling_evil.Evil"}
    )
    for attempt in (load, backbone.load_model, backbone.load_processor):
        with pytest.raises(InputRefused, match="needs remote code; mmsurgery never runs it"):
            attempt(copy)
    assert not marker.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(copy: Path, value: float) -> None:
    edit_weights(copy, lambda stored: stored[WEIGHT].__setitem__(3, value))
    with pytest.raises(UnusableData, match=r"model\.language_model\.norm\.weight of the model holds NaN or infinite"):
        load(copy)


def test_unknown_family(copy: Path) -> None:
    edit_config(copy, model_type="llavva")
    with pytest.raises(UsageError, match="no backbone 'llavva' - next: did you mean 'llava'"):
        load(copy)


def test_addresses_are_checked_against_the_model(loaded_llava: Loaded) -> None:
    class Wrong(LlavaBackbone):
        def address(self, name: str) -> Address:
            found = super().address(name)
            return found._replace(group="vision") if found.group == "connector" else found

    with pytest.raises(Mismatch, match=r"does not fit this model: model\.multi_modal_projector\.linear_1\.weight"):
        loading.addresses(Wrong(), loaded_llava.model)


def test_offloaded_parameters_are_refused(tiny_llava: Path) -> None:
    skeleton = backbone.skeleton(json.loads((tiny_llava / "config.json").read_text()))
    with pytest.raises(Mismatch, match="is not in memory"):
        loading.addresses(backbone, skeleton)


def test_tied_head(copy: Path) -> None:
    edit_config(copy, tie_word_embeddings=True)
    edit_weights(copy, lambda stored: stored.pop("language_model.lm_head.weight"))
    loaded = load(copy)
    assert loaded.tied == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    assert "lm_head.weight" not in loaded.addresses


def test_stock_transformers_loads_a_micro_model(
    tiny_llava: Path, loaded_llava: Loaded, mixed_samples: list[Sample]
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with loading.quiet():
        model, info = AutoModelForImageTextToText.from_pretrained(tiny_llava, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(tiny_llava)
    assert not any(info.values())
    assert type(processor).__name__ == "LlavaProcessor"
    batch = backbone.collate(processor, mixed_samples)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded_llava.model(**batch).logits)
        generated = model.generate(**backbone.prompts(processor, mixed_samples[:1]), max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > 0


@pytest.mark.parametrize("geometry", ["whole", "before 4.47", "before 4.44"])
def test_processor_files_as_published(copy: Path, loaded_llava: Loaded, geometry: str) -> None:
    """preprocessor_config.json and chat_template.json apart, with the geometry that releases stored."""
    written = json.loads((copy / "processor_config.json").read_text())
    pictures = written.pop("image_processor")
    published = {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}
    (copy / "preprocessor_config.json").write_text(json.dumps(pictures | published))
    if geometry != "whole":
        del written["num_additional_image_tokens"]
    if geometry == "before 4.44":
        written = {"processor_class": "LlavaProcessor"}
    (copy / "processor_config.json").write_text(json.dumps(written))
    template = copy / "chat_template.jinja"
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    processor = backbone.load_processor(copy)
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    assert backbone.template_digest(processor) == backbone.template_digest(loaded_llava.processor)


def test_portraits_model_has_the_size_it_should(tmp_path: Path) -> None:
    """Sizes of the embedded benchmark's micro model with its 175 words."""
    backbone.micro(tmp_path / "micro", [f"word{i}" for i in range(175 - 8)], seed=0)
    loaded = load(tmp_path / "micro")
    sizes = dict.fromkeys(("vision", "connector", "lm"), 0)
    for name, parameter in loaded.model.named_parameters():
        sizes[loaded.addresses[name].group] += parameter.numel()
    assert sizes == {"vision": 96_000, "connector": 15_552, "lm": 310_752}
    assert loaded.processor.tokenizer.convert_ids_to_tokens(list(range(6))) == [
        "<pad>",
        "<unk>",
        "</s>",
        "<image>",
        "<|vision_start|>",
        "<|vision_end|>",
    ]


def test_tiny_model_has_parameters_without_gradient(
    loaded_llava: Loaded, tiny_llava: Path, mixed_samples: list[Sample]
) -> None:
    model: Any = backbone.load_model(tiny_llava)
    model(**backbone.collate(loaded_llava.processor, mixed_samples)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    last, final = "model.vision_tower.encoder.layers.2.", "model.vision_tower.post_layernorm."
    assert without == {name for name in loaded_llava.addresses if name.startswith((last, final))}
    assert len(without) == 18


def test_the_identity_of_weights_in_memory(copy: Path) -> None:
    loaded = load(copy)
    stored = loaded.model_sha256
    assert stored == CheckpointFiles(copy, backbone.canonical).digest() == weights_sha256(loaded.model)
    weight = loaded.model.lm_head.weight
    with torch.no_grad():
        weight[3, 4] += 1
    changed = loaded.model_sha256
    assert changed == weights_sha256(loaded.model) != stored
    weight.data[3, 4] -= 1  # in place behind autograd's back
    weight.data[3, 5] += 1
    assert loaded.model_sha256 not in (stored, changed)
    loaded.model.save_pretrained(copy)
    assert loaded.model_sha256 == CheckpointFiles(copy, backbone.canonical).digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (517, 1031)])
def test_the_sum_of_bit_patterns_is_exact(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    integers = {2: np.int16, 4: np.int32, 8: np.int64}[dtype.itemsize]
    raw = np.frombuffer(values.reshape(-1).view(torch.uint8).numpy().tobytes(), integers) if values.numel() else []
    exact = (sum(int(each) for each in raw) + 2**63) % 2**64 - 2**63
    assert bit_sum(values) == exact
    if values.numel():
        values.reshape(-1).view(torch.uint8)[-dtype.itemsize] ^= 1
        assert bit_sum(values) != exact
