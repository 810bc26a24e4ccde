"""One model in every layout that transformers writes: the same identity, saliency, mask and unlearned weights;
and in every dtype, with every file that a published one has: outputs have those files, and load as it does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companion_files
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import Loaded, load, quiet
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.patches import use
from mmsurgery.patches.make import create
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.settings import Settings
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import Workspace

FAMILIES = ("llava", "qwen2_vl")


def from_config(loaded: Loaded) -> Any:
    """The same weights in a model that was built, not loaded: it remembers no names of a file."""
    model = type(loaded.model)(loaded.model.config)
    model.load_state_dict(loaded.model.state_dict())
    return model


LAYOUTS: dict[str, Callable[[Loaded, Path], Any]] = {
    "published": lambda loaded, folder: shutil.copy(loaded.path / "model.safetensors", folder),
    "loaded and saved": lambda loaded, folder: loaded.model.save_pretrained(folder),
    "from config and saved": lambda loaded, folder: from_config(loaded).save_pretrained(folder),
    "in-memory names": lambda loaded, folder: loaded.model.save_pretrained(folder, save_original_format=False),
    "in shards": lambda loaded, folder: loaded.model.save_pretrained(folder, max_shard_size="100KB"),
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[tuple[str, str], Path]:
    """(family, layout) -> checkpoint folder; configuration and processor are the published folder's."""
    found = {}
    for family in FAMILIES:
        published = request.getfixturevalue(f"tiny_{family}")
        for layout, write in LAYOUTS.items():
            folder = found[family, layout] = tmp_path_factory.mktemp(family)
            with quiet():
                write(load(published), folder)
            for path in companion_files(published):
                shutil.copy(path, folder)
    return found


def stored(folder: Path) -> set[str]:
    from mmsurgery.artifacts.tensors import read_header

    return {name for path in folder.glob("*.safetensors") for name in read_header(path).tensors}


@pytest.mark.parametrize(("family", "names"), [("llava", 3), ("qwen2_vl", 2)])
def test_the_layouts_differ(layouts: dict[Any, Path], family: str, names: int) -> None:
    """LLaVA from a config saves `vision_tower.` without `vision_model.`; Qwen2-VL knows the old and the new names."""
    assert len({frozenset(stored(layouts[family, layout])) for layout in LAYOUTS}) == names
    memory = {name for name, _ in load(layouts[family, "published"]).model.named_parameters()}
    assert stored(layouts[family, "in-memory names"]) == memory
    assert stored(layouts[family, "published"]) == stored(layouts[family, "loaded and saved"]) != memory
    assert len(list(layouts[family, "in shards"].glob("*.safetensors"))) > 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saliency_and_identity_are_the_same(
    layouts: dict[Any, Path], family: str, layout: str, request: pytest.FixtureRequest, mixed_samples: list[Any]
) -> None:
    published: Loaded = request.getfixturevalue(f"loaded_{family}")
    loaded = load(layouts[family, layout])
    assert loaded.model_sha256 == published.model_sha256
    assert (loaded.addresses, loaded.tied) == (published.addresses, published.tied)
    files = CheckpointFiles(loaded.path, loaded.backbone.canonical)
    assert files.names == tuple(sorted(loaded.addresses))
    ours, theirs = (measure_saliency(each, mixed_samples[:2], part="forget_vqa") for each in (loaded, published))
    assert ours.names == theirs.names
    assert all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in theirs.arrays)
    assert ours.no_gradient == theirs.no_gradient


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_of_one_layout_is_applied_to_all(
    layouts: dict[Any, Path], family: str, tmp_path: Path, tiny: Any
) -> None:
    """Saliency, mask and patch come from the published layout, by their files; weights and names on disk agree."""
    source = load(layouts[family, "published"])
    for part in tiny.sets:
        measure_saliency(source, tiny.sets[part], part=part).save(tmp_path / part)
    maps = [SaliencyMap.load(tmp_path / part) for part in ("forget_vqa", "retain_vqa")]
    mask = ratio_mask(maps[0], maps[1], modules="lm,connector", address=source.backbone.address)
    made = {}
    for layout in LAYOUTS:
        ws = Workspace(tmp_path / layout, Settings(recipe=tiny.recipe))
        shutil.copytree(layouts[family, layout], ws.model_dir("vanilla"))
        mask.write(ws.mask_path("default"))
        result = apply(ws, "mmunlearner", scope="all")
        assert verify(ws, result.model).ok
        assert Mask.load(ws.mask_path("default")) == mask
        assert stored(result.path) == stored(layouts[family, layout])
        made[layout] = result.record["model_sha256"]
        if layout == "published":
            patch = create(ws, result.model).path
        use.apply(ws, str(patch), to="vanilla", name="patched")
        patched = CheckpointFiles(ws.model_dir("patched"), source.backbone.canonical)
        assert patched.digest() == made[layout]
        assert stored(patched.path) == stored(result.path)
    assert len(set(made.values())) == 1
    assert made["published"] != source.model_sha256


SAMPLING = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "bos_token_id": 1, "_from_model_config": False}
KEPT = {
    "generation_config.json": json.dumps(SAMPLING, indent=4).encode() + b"\n\n",
    "special_tokens_map.json": b'{"pad_token":"<pad>"}',
    "added_tokens.json": b"{ }\r\n",
    "merges.txt": b"#version: 0.2\n",
    "vocab.json": b"{}",
    "tokenizer.model": bytes(range(256)),
    "preprocessor_config.json": None,
    "chat_template.json": None,
}
"""Further files of published models, in bytes that no library would write; None: what micro models have elsewhere."""
LEFT = ("pytorch_model.bin.index.json", "training_args.bin", "README.md", ".gitattributes", "modeling.py")


def as_published(folder: Path) -> None:
    """Give a folder the files that published models have, and some that are no part of a model."""
    config = json.loads((folder / "processor_config.json").read_text())
    pictures = {**config.pop("image_processor"), "processor_class": config["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=3))
    if config["processor_class"] == "LlavaProcessor":
        (folder / "processor_config.json").write_text(json.dumps(config, separators=(", ", " : ")))
    else:
        (folder / "processor_config.json").unlink()
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}) + "\n")
    template.unlink()
    for name, data in KEPT.items():
        if data is not None:
            (folder / name).write_bytes(data)
    for name in LEFT:
        (folder / name).write_bytes(b"{}")


def in_dtype(folder: Path, dtype: str) -> None:
    """Round a folder's weights to a dtype."""
    import torch
    from safetensors.torch import load_file, save_file

    half = getattr(torch, dtype)
    stored = {name: tensor.to(half) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config))


def stock(folder: Path) -> str:
    """What stock transformers makes of a folder's processor, or says against it."""
    from transformers import AutoProcessor

    with quiet():
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            return str(processor.to_dict()) + str(processor.chat_template) + processor.tokenizer.decode(range(20))
        except (OSError, ImportError, AttributeError) as error:  # Qwen2-VL without torchvision
            return f"{type(error).__name__}: {error}".replace(str(folder), "FOLDER")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_have_the_files_dtypes_and_bytes_of_the_model_they_started_from(
    family: str, dtype: str, tmp_path: Path, tiny: Any, request: pytest.FixtureRequest, mixed_samples: list[Any]
) -> None:
    ws = Workspace(tmp_path, Settings(recipe=tiny.recipe))
    vanilla = Path(shutil.copytree(request.getfixturevalue(f"tiny_{family}"), ws.model_dir("vanilla")))
    as_published(vanilla)
    in_dtype(vanilla, dtype)
    before = load(vanilla)
    made = apply(ws, "ga")
    assert verify(ws, made.model).ok
    patch = create(ws, made.model).path
    use.apply(ws, str(patch), to="vanilla", name="patched")
    use.revert(ws, str(patch), start=made.model, name="undone")
    names = {path.name for path in vanilla.iterdir()} - {*LEFT}
    assert names >= {*KEPT, "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    for model in (made.model, "patched", "undone"):
        folder = ws.model_dir(model)
        assert {path.name for path in folder.iterdir()} - names == ({RUN_FILE} if model != "undone" else set())
        for name in names - {"model.safetensors"}:
            assert (folder / name).read_bytes() == (vanilla / name).read_bytes(), name
        after = load(folder)
        files = [CheckpointFiles(each, before.backbone.canonical) for each in (vanilla, folder)]
        moved = {name for name in files[0].names if files[0].array(name).tobytes() != files[1].array(name).tobytes()}
        assert {files[1].dtype(name) for name in files[1].names} == {"F16" if dtype == "float16" else "BF16"}
        assert bool(moved) == (model != "undone")
        digests = [each.backbone.template_digest(each.processor) for each in (before, after)]
        assert digests[0] == digests[1]
        assert stock(folder) == stock(vanilla)
    assert (ws.model_dir("undone") / "model.safetensors").read_bytes() == (vanilla / "model.safetensors").read_bytes()
