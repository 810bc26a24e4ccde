"""Stage `micro` of `gpu_check.py`: the chain of verbs on micro models, on the GPU and on the CPU, side by side."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_check import Recorder

from mmsurgery.api import open_workspace
from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.discovery import backbone
from mmsurgery.diff.run import diff
from mmsurgery.evaluate.run import evaluate
from mmsurgery.masks.build import build_mask
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.start import initialise
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.verify import verify

FAMILIES = ("llava", "qwen2_vl")
TOLERANCE = 1e-3
"""Largest relative difference of a tensor's saliency, by its norm, that is float32 round-off (TF32 is off)."""
RUNS: dict[str, dict[str, Any]] = {
    "masked": {"method": "mmunlearner", "mask": "default"},
    "again": {"method": "mmunlearner", "mask": "default"},
    "strict": {"method": "mmunlearner", "mask": "default", "scope": "all"},
    "npo": {"method": "npo"},
    "kl": {"method": "kl_min", "mask": "default"},
    "lora": {"method": "mmunlearner", "mask": "default", "lora": LoRA(rank=8)},
}
SCORED = ("masked", "strict", "lora")
WRITTEN = 12
"""Questions of a column that answers are written to."""


def chain(root: Path, family: str) -> dict[str, Any]:
    """All verbs on a new workspace; seconds and results by verb, plain JSON. A verb that fails leaves its error."""
    found: dict[str, Any] = {"device": "cuda" if torch.cuda.is_available() else "cpu", "verb_seconds": {}}

    def run(name: str, verb: Callable[[], Any]) -> None:
        begun = time.perf_counter()
        try:
            found[name] = verb()
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        found["verb_seconds"][name] = round(time.perf_counter() - begun, 2)

    run("init", lambda: initialise(root, backbone=family).next_command)
    ws = open_workspace(root)
    measured = {"estimator": "sample", "batch_size": 4}
    run("saliency", lambda: [part.part for part in measure_parts(ws, "forget,preserve", **measured)])
    parts = found["saliency"]
    if "error" not in parts:
        first = {part: SaliencyMap.load(ws.saliency_dir(part)) for part in parts[:1]}
        before = {part: {name: each.arrays[name] for name in each.arrays} for part, each in first.items()}
        run("saliency again", lambda: len(measure_parts(ws, parts[:1], force=True, **measured)))
        again = SaliencyMap.load(ws.saliency_dir(parts[0]))
        found["saliency twice the same bits"] = all(
            np.array_equal(again.arrays[name], values) for name, values in before[parts[0]].items()
        )
        run("saliency batch", lambda: len(measure_parts(ws, parts[:1], estimator="batch", batch_size=4)))
    run("mask", lambda: build_mask(ws, modules="lm,connector").mask.selected)
    for name, arguments in RUNS.items():
        verb = functools.partial(apply, ws, name=name, **arguments)
        run(f"apply {name}", lambda verb=verb: verb().record["model_sha256"])
    made = [name for name in RUNS if isinstance(found[f"apply {name}"], str)]
    found["apply twice the same bits"] = found["apply masked"] == found["apply again"]
    shown = ["vanilla", *(name for name in made if name in SCORED)]
    run("eval", lambda: _columns(evaluate(ws, shown)))
    run("eval official", lambda: _columns(evaluate(ws, shown[:2], protocol="official", subset=WRITTEN)))
    for name in made:
        run(f"verify {name}", lambda name=name: _verdict(verify(ws, name)))
    run("diff", lambda: diff(ws, "vanilla", made[0]).changed)
    return found


def _columns(results: Any) -> dict[str, dict[str, float]]:
    return {
        each.model: {column: row["accuracy"] for column, row in each.columns.items() if "accuracy" in row}
        for each in results
    }


def _verdict(found: Any) -> dict[str, Any]:
    return {"ok": found.ok, "claim": found.claim, "faults": found.faults[:3]}


def worker(root: Path) -> None:
    """The chain of a family in a folder of its name; what it found beside it as JSON."""
    found = chain(root, root.name)
    root.with_suffix(".json").write_text(json.dumps(found))


def prepare(folder: Path) -> None:
    """A workspace of each family, of micro models that other releases of transformers would have to train."""
    for family in FAMILIES:
        initialise(folder / family, backbone=family)


def compare_families(recorder: Recorder, work: Path, start: Path | None) -> None:
    cpu, gpu = work / "cpu", work / "gpu"
    for side in (cpu, gpu):
        side.mkdir(parents=True)
        if start is not None:
            shutil.copytree(start, side, dirs_exist_ok=True)
    script = [sys.executable, str(Path(__file__).with_name("gpu_check.py")), "--out", str(work), "--worker"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    others = [subprocess.Popen([*script, str(cpu / family)], env=hidden) for family in FAMILIES]
    if torch.cuda.is_available():
        for family in FAMILIES:
            with recorder.stage(f"micro: {family} on the GPU") as row:
                row |= chain(gpu / family, family)
    for other in others:
        try:
            other.wait(max(recorder.left(), 1))
        except subprocess.TimeoutExpired:
            other.kill()
    for family in FAMILIES:
        with recorder.stage(f"micro: {family} on the CPU") as row:
            row |= json.loads((cpu / f"{family}.json").read_text())
        if not torch.cuda.is_available():
            recorder.write({"stage": f"micro: {family} compared", "skipped": "no GPU is visible"})
            continue
        with recorder.stage(f"micro: {family} compared") as row:
            row |= compared(cpu / family, gpu / family)


def compared(before: Path, after: Path) -> dict[str, Any]:
    """Artifacts of two workspaces: the second's differences from the first."""
    one, other = open_workspace(before), open_workspace(after)
    found: dict[str, Any] = {"saliency": {}, "updates": {}, "items": {}}
    for folder in sorted(one.path("saliency").iterdir()):
        if folder.name.startswith(".") or not other.path("saliency", folder.name).is_dir():
            continue
        mine, theirs = SaliencyMap.load(folder), SaliencyMap.load(other.path("saliency", folder.name))
        found["saliency"][folder.name] = _relative(mine.arrays, theirs.arrays)
    masks = [Mask.load(ws.mask_path("default")) for ws in (one, other)]
    found["mask bits that differ"] = sum(
        int(np.bitwise_count(p.bits ^ masks[1].parameters[name].bits).sum()) for name, p in masks[0].parameters.items()
    )
    found["mask bits"] = masks[0].total
    for name in RUNS:
        if all((ws.path("models", name) / "config.json").exists() for ws in (one, other)):
            found["updates"][name] = _update(one.path("models"), other.path("models"), name)
    for path in sorted(one.path("evals").glob("**/*.items.jsonl")):
        relative = path.relative_to(one.path("evals"))
        theirs_path = other.path("evals") / relative
        if theirs_path.exists():
            found["items"][str(relative)] = _items(path, theirs_path)
    worst = max((each["worst"] for each in found["saliency"].values()), default=float("nan"))
    found["saliency within tolerance"] = {"tolerance": TOLERANCE, "ok": worst <= TOLERANCE, "worst": worst}
    return found


def _relative(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Norm of the difference over the norm, tensor by tensor: the worst, and of all."""
    worst, where, squares = 0.0, "", np.zeros(2)
    for name in mine:
        a, b = mine[name].astype(np.float64), theirs[name].astype(np.float64)
        parts = np.array([np.square(a - b).sum(), np.square(a).sum()])
        squares += parts
        if parts[1] and (ratio := float(np.sqrt(parts[0] / parts[1]))) > worst:
            worst, where = ratio, name
    return {"worst": worst, "tensor": where, "all": float(np.sqrt(squares[0] / squares[1]))}


def _update(mine: Path, theirs: Path, name: str) -> dict[str, float]:
    """How far two models of one name are from each other, against how far the first is from vanilla."""
    canonical = backbone(json.loads((mine / name / "config.json").read_text())["model_type"]).canonical
    files = [CheckpointFiles(folder, canonical) for folder in (mine / "vanilla", mine / name, theirs / name)]
    squares = np.zeros(2)
    for each in files[0].names:
        start, a, b = (file.float32(each).astype(np.float64) for file in files)
        squares += [np.square(a - b).sum(), np.square(a - start).sum()]
    return {"apart over moved": float(np.sqrt(squares[0] / squares[1]))}


def _items(mine: Path, theirs: Path) -> dict[str, float]:
    """Items, how many were answered otherwise, and the largest difference of an option's score, nats a token."""
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in (mine, theirs)]
    pairs = list(zip(*rows, strict=True))
    differ = sum(any(a.get(key) != b.get(key) for key in ("parsed", "raw_output")) for a, b in pairs)
    scores = [(a.get("option_scores") or {}, b.get("option_scores") or {}) for a, b in pairs]
    largest = max((abs(a[letter] - b[letter]) for a, b in scores for letter in a), default=0.0)
    return {"n": len(pairs), "differ": differ, "score": largest}
