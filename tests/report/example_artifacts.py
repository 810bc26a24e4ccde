"""One artifact of each kind, written by its own writer, without any model being run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmsurgery.artifacts.files import write_json
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.discovery import backbone
from mmsurgery.evaluate.records import write_eval
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.provenance import SCHEMA, provenance, seal
from mmsurgery.unlearn.record import sealed

SHAPES = {
    "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.multi_modal_projector.linear_1.weight": (8, 8),
    "model.language_model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.language_model.layers.1.mlp.down_proj.weight": (8, 8),
    "lm_head.weight": (16, 8),
}
LAYER_1 = "model.language_model.layers.1.mlp.down_proj.weight"
BASE = {"model_type": "llava", "model_sha256": f"{1:064x}"}
ACCURACIES = {"vanilla": (1.0, 1.0), "gold": (0.25, 1.0), "npo": (0.5, 0.75)}
"""Model -> accuracy in Forget VQA, in the columns to be kept."""


def write_mask(path: Path, modules: str = "lm,connector") -> None:
    """A quarter of layer 1, half of the head."""
    address = backbone("llava").address
    parameters = {}
    for name, shape in SHAPES.items():
        share = {LAYER_1: 0.25, "lm_head.weight": 0.5}.get(name, 0.0)
        bits = np.arange(np.prod(shape)) < share * np.prod(shape)
        parameters[name] = MaskParameter(shape, address(name), pack(bits.reshape(shape)))
    origin = provenance("mask", {"beta": 1.0, "modules": modules, "control": None}, {"model_sha256": f"{1:064x}"})
    rule = {"rule": "ratio", "beta": 1.0, "estimator": "sample", "mixture": "pooled", "modules": modules}
    path.parent.mkdir(exist_ok=True)
    Mask(**rule, parameters=parameters, base=BASE, provenance=origin).save(path)  # type: ignore[arg-type]


def write_scores(path: Path, name: str, forget: float, kept: float) -> None:
    columns, items = {}, []
    for column, accuracy in {"forget_vqa": forget, "forget_qa": kept, "retain_vqa": kept}.items():
        ends = [max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.1)]
        numbers = {"accuracy": accuracy, "chance": 0.25, "ci95": ends}
        columns[column] = {"protocol": "likelihood", "n": 4, "correct": round(4 * accuracy), **numbers}
        items.append(ItemScore("one", "ann", column, f"{3:064x}", {"A": -1.0, "B": -2.0}, "A"))
    origin = provenance("eval", {"seed": 0}, {"model_sha256": f"{7:064x}"})
    write_eval(path, {"model": name, "columns": columns, "remarks": {}, "provenance": origin}, items)


def write_model(folder: Path, mask: str | None) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    totals = {"inside": 30, "inside_total": 80, "outside": 0, "outside_total": 304}
    body = {
        "model": folder.name,
        "method": "npo",
        "mask": mask,
        "claim": "mask" if mask else "none",
        "start": "vanilla",
        "model_type": "llava",
        "model_sha256": f"{7:064x}",
        "steps": {"planned": 4, "done": 4},
        "samples": {"forget": 16, "retain": 32},
        "moved": {"lm": totals},
        "evaluations": [{"step": 0, "columns": {"forget_vqa": 1.0, "forget_qa": 1.0}}],
        "provenance": provenance("apply", {"forget_weight": 1.0}, {}),
    }
    write_json(folder / "mmsurgery-run.json", sealed(body))


def write_diff(path: Path) -> None:
    body = {
        "before": "vanilla",
        "after": "npo",
        "mask": "default",
        "n": 4,
        "threshold": 0.001,
        "changed": 30,
        "inside": 20,
        "outside": 10,
        "layers": ["lm.0", "lm.1", "lm"],
        "components": ["attn.q", "mlp.down", "head"],
        "heatmap": [[1, 0, 0], [0, 3, 0], [0, 0, 0]],
        "sizes": [[64, 0, 0], [0, 64, 0], [0, 0, 128]],
        "top": [{"name": LAYER_1, "index": 5, "delta": -0.25}],
        "provenance": provenance("diff", {"top": 4}, {}),
    }
    write_json(path, seal({"schema": SCHEMA, "kind": "diff", **body}))


def write_saliency(folder: Path) -> None:
    arrays = {n: np.arange(1, np.prod(s) + 1, dtype=np.float32).reshape(s) for n, s in SHAPES.items()}
    SaliencyMap(
        part="forget_vqa",
        estimator="sample",
        batch_size=None,
        units=10,
        model_type="llava",
        model_sha256=f"{1:064x}",
        data_sha256=f"{2:064x}",
        arrays=arrays,
        no_gradient={},
        provenance=provenance("saliency", {"estimator": "sample"}, {}),
    ).save(folder)
