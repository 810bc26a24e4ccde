"""What `test_releases` runs under one release of transformers: `chain.py write|read FOLDER`, JSON on stdout.

`write` makes, for both families, a micro model, saliency, a mask and an unlearned model; `read` uses them all.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1]
FAMILIES = ("llava", "qwen2_vl")


def module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


shared, training = module(TESTS / "conftest.py", "shared"), module(TESTS / "unlearn/conftest.py", "training")


def workspace(folder: Path) -> tuple[Any, Any]:
    """A workspace, and the tiny benchmark that all of its verbs see."""
    import torch

    from mmsurgery.data.samples import Sample
    from mmsurgery.settings import Settings
    from mmsurgery.unlearn import apply, request
    from mmsurgery.workspace import Workspace

    torch.set_num_threads(1)

    def sample(id: str, question: str, answer: str, seed: int) -> Sample:
        return Sample(id, f"person-{id}", question, answer=answer, image_bytes=shared.png(seed))

    tiny = training.Benchmark(sample)
    for each in (request, apply):
        each.benchmark = lambda name: tiny  # type: ignore[attr-defined]
    return Workspace(folder, Settings(recipe=training.RECIPE)), tiny


def facts(loaded: Any) -> dict[str, Any]:
    return {
        "names": sorted(name for name, _ in loaded.model.named_parameters()),
        "tied": loaded.tied,
        "model_sha256": loaded.model_sha256,
    }


def measured(loaded: Any, tiny: Any, part: str) -> Any:
    from mmsurgery.saliency.measure import measure_saliency

    return measure_saliency(loaded, tiny.sets[part], part=part)


def write(folder: Path, family: str) -> dict[str, Any]:
    from mmsurgery.backbones.discovery import backbone
    from mmsurgery.backbones.loading import load
    from mmsurgery.masks.rule import ratio_mask
    from mmsurgery.unlearn.apply import apply

    ws, tiny = workspace(folder)
    backbone(family).micro(ws.model_dir("vanilla"), shared.WORDS, seed=0, size="tiny")
    loaded = load(ws.model_dir("vanilla"))
    maps = {part: measured(loaded, tiny, part) for part in tiny.sets}
    for part, found in maps.items():
        found.save(ws.saliency_dir(part))
    mask = ratio_mask(
        maps["forget_vqa"], maps["retain_vqa"], modules="vision,connector,lm", address=loaded.backbone.address
    )
    mask.write(ws.mask_path("default"))
    result = apply(ws, "mmunlearner", scope="all", name="written")
    return {**facts(loaded), "mask": mask.content_sha256, "unlearned": result.record["model_sha256"]}


def read(folder: Path, family: str) -> dict[str, Any]:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.artifacts.saliency_map import SaliencyMap
    from mmsurgery.backbones.loading import load
    from mmsurgery.masks.rule import ratio_mask
    from mmsurgery.unlearn.apply import apply
    from mmsurgery.unlearn.verify import verify

    ws, tiny = workspace(folder)
    loaded, mask = load(ws.model_dir("vanilla")), Mask.load(ws.mask_path("default"))
    maps = {part: SaliencyMap.load(ws.saliency_dir(part)) for part in tiny.sets}
    again = ratio_mask(
        maps["forget_vqa"], maps["retain_vqa"], modules="vision,connector,lm", address=loaded.backbone.address
    )
    here = measured(loaded, tiny, "forget_vqa")
    for name in here.arrays:
        np.testing.assert_allclose(here.arrays[name], maps["forget_vqa"].arrays[name], rtol=1e-3, atol=1e-9)
    assert here.no_gradient.keys() == maps["forget_vqa"].no_gradient.keys()
    assert apply(ws, "mmunlearner", scope="all", name="written").up_to_date
    result = apply(ws, "mmunlearner", scope="all", name="again")
    for model in ("written", "again"):
        proof = verify(ws, model)
        assert proof.ok, proof.faults
    losses = [json.loads((ws.model_dir(m) / "mmsurgery-run.json").read_text())["losses"] for m in ("written", "again")]
    for one, other in zip(*losses, strict=True):
        for kind, value in one.items():
            np.testing.assert_allclose(other[kind], value, rtol=1e-2)
    assert load(ws.model_dir("written")).model_sha256 != loaded.model_sha256
    shutil.rmtree(result.path)
    return {**facts(loaded), "mask": again.content_sha256, "unlearned": load(ws.model_dir("written")).model_sha256} | (
        {} if again == mask else {"mask": "differs"}
    )


def main(what: str, folder: Path) -> None:
    import transformers

    step = {"write": write, "read": read}[what]
    found = {family: step(folder / family, family) for family in FAMILIES}
    print(json.dumps({"transformers": transformers.__version__, "families": found}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
