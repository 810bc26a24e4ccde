"""Workspaces of two tiny models: a base, and the base with some weights changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.tensors import read_header, read_tensor, to_float32, write_safetensors_stream
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

Change = Callable[[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]
"""Stored name and float32 values -> new values."""


def nudge(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A third of the weights of every second tensor a little larger or smaller."""
    rng = np.random.default_rng(len(name))
    if len(name) % 2:
        return values
    moved = rng.random(values.shape) < 0.3
    return np.where(moved, values + rng.normal(0, 1e-3, values.shape).astype(np.float32), values)


def rounded(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "BF16":
        pattern = values.astype(np.float32).view(np.uint32)
        return ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype])


def copy_model(source: Path, target: Path, dtype: str = "F32", change: Change | None = None, shards: int = 1) -> Path:
    """A checkpoint written anew, in a dtype, changed, in shards."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*", "mmsurgery-run.json"))
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, info in read_header(file).tensors.items():
            values = to_float32(read_tensor(file, info), info.dtype)
            tensors[name] = rounded(values if change is None else change(name, values), dtype)
    names = sorted(tensors)
    files = ["model.safetensors"]
    if shards > 1:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        part = names[i::shards]
        write_safetensors_stream(
            target / file,
            {n: (dtype, tensors[n].shape) for n in part},
            ((n, tensors[n]) for n in part),
            {"format": "pt"},
        )
    if shards > 1:
        weight_map = {n: files[i % shards] for i, n in enumerate(names)}
        (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def make_pair(root: Path, source: Path, dtype: str = "F32", change: Change = nudge, shards: int = 1) -> Workspace:
    """A workspace with models `vanilla` and `after`, which is vanilla changed."""
    (root / "models").mkdir(parents=True)
    settings = Settings()
    (root / "mmsurgery.toml").write_text(settings.to_toml())
    copy_model(source, root / "models" / "vanilla", dtype, None, shards)
    copy_model(source, root / "models" / "after", dtype, change, shards)
    return Workspace(root, settings)
