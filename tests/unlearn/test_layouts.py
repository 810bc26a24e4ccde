"""One model in every layout that transformers writes: the same identity, saliency, mask and unlearned weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companion_files
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
