"""Patches, models and masks as SHiRA adapters of PEFT, which `PeftModel.from_pretrained` loads as it is.

SHiRA (https://arxiv.org/abs/2406.13175) adds a sparse matrix to the weight of a linear layer. PEFT's file holds
two tensors per layer: `shira_weight`, float32, and `shira_indices`, int32 `[2, n]` of rows and columns, with
n = r (in + out) exactly and one r for all layers. Free slots take positions that do not change, with value 0.
No torch and no peft is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.artifacts.files import atomic_folder, check_space, write_pretty_json
from mmsurgery.artifacts.find import find
from mmsurgery.artifacts.mask import Mask, unpack
from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.tensors import to_float32, write_safetensors_stream
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import Mismatch, UnusableData, UsageError
from mmsurgery.names import GROUPS
from mmsurgery.patches import create as create_patch
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.protocol import Backbone

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SHOWN = 10
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ShiraResult:
    """An adapter folder."""

    path: Path
    base: str
    """The model it is an adapter of."""
    layers: int
    rank: int
    """PEFT's `r`."""
    entries: int
    """Weights that it changes, or for a mask may change."""
    slots: int
    """What the file holds, with the free slots of value 0."""
    exact: int | None
    """Entries for which base plus value is the model's weight bit for bit, when merged; None for a mask."""
    bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class _Layer:
    """A linear layer of the adapter: its weight's name, shape `(out, in)` and how many entries it has."""

    name: str
    shape: tuple[int, int]
    entries: int

    @property
    def key(self) -> str:
        return f"base_model.model.{self.name.removesuffix('.weight')}"

    def slots(self, rank: int) -> int:
        return rank * sum(self.shape)


def export_shira(
    workspace: Workspace, what: str, out: Path, *, force: bool = False, progress: Progress = SILENT
) -> ShiraResult:
    """Write a patch, a model (its change against what it was made from) or a mask as a PEFT adapter folder.

    A mask gives an adapter of zeros to be trained, whose free slots PEFT would train, too.

    Args:
        what: a mask, patch or model, see `find`.
        out: the folder to be written, with `adapter_config.json` and `adapter_model.safetensors`.
        force: replace an existing folder.

    Raises:
        MissingArtifact: if there is no such thing.
        UsageError: naming the tensors, if others than weights of linear layers change, or layers change more
            weights than SHiRA holds.
        Mismatch: if the base is not what the patch or mask was made for, or the folder exists.
        UnusableData: if nothing changes.
        MachineFault: if it cannot be written.
    """
    source = _source(workspace, what, progress)
    counts = (
        {name: source.parameters[name].changed for name in source.names}
        if isinstance(source, Patch)
        else {name: p.selected for name, p in source.parameters.items() if p.selected}
    )
    if not counts:
        raise UnusableData(f"'{what}' changes nothing", "name another one")
    base_name, base = _base(workspace, source)
    layers, rank = _plan(what, {n: (source.parameters[n].shape, count) for n, count in counts.items()}, base.family)
    slots = sum(layer.slots(rank) for layer in layers)
    check_space(out.parent, 12 * slots + (1 << 20), "the adapter")
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in layers:
        layout[f"{layer.key}.shira_indices"] = ("I32", (2, layer.slots(rank)))
        layout[f"{layer.key}.shira_weight"] = ("F32", (layer.slots(rank),))
    exact = _Exact()
    with atomic_folder(out, replace=force) as new, progress.stage("writing layers", len(layers)) as advance:

        def tensors() -> Iterator[tuple[str, Array]]:
            for layer in sorted(layers, key=lambda each: each.key):
                indices, values = _layer(source, base.files, layer, rank, exact)
                yield f"{layer.key}.shira_indices", indices
                yield f"{layer.key}.shira_weight", values
                advance(1)

        write_safetensors_stream(new / WEIGHTS, layout, tensors(), {"format": "pt"})
        write_pretty_json(new / CONFIG, _config(base.files.path, layers, rank, trained=isinstance(source, Patch)))
    entries = sum(counts.values())
    if isinstance(source, Patch) and exact.count < entries:
        progress.note(
            f"{entries - exact.count:,} of {entries:,} weights come out a rounding away when merged; "
            "the patch itself is exact"
        )
    return ShiraResult(
        path=out,
        base=base_name,
        layers=len(layers),
        rank=rank,
        entries=entries,
        slots=slots,
        exact=exact.count if isinstance(source, Patch) else None,
        bytes=sum(file.stat().st_size for file in out.iterdir()),
        checkpoint_bytes=sum(file.stat().st_size for file in base.files.files),
    )


@dataclass
class _Exact:
    count: int = 0


@dataclass(frozen=True)
class _Base:
    files: CheckpointFiles
    family: Backbone


def _source(workspace: Workspace, what: str, progress: Progress) -> Patch | Mask:
    found = find(workspace, what, ("mask", "patch", "model"), called="mask, patch or model")
    if found.kind == "model":
        return create_patch(workspace, str(found.path.absolute()), progress=progress).patch
    return Patch.load(found.path) if found.kind == "patch" else Mask.load(found.path)


def _base(workspace: Workspace, source: Patch | Mask) -> tuple[str, _Base]:
    """The model of the workspace that the adapter belongs to, found by digest."""
    wanted = source.before if isinstance(source, Patch) else source.base
    first = source.before["model"] if isinstance(source, Patch) else "vanilla"
    for name in sorted(workspace.models(), key=lambda each: (each != first, each)):
        folder = workspace.model_dir(name)
        model_type = model_config(folder)["model_type"]
        if model_type == wanted["model_type"]:
            family = backbone(model_type)
            files = CheckpointFiles(folder, family.canonical)
            if files.digest() == wanted["model_sha256"]:
                return name, _Base(files, family)
    raise Mismatch(
        f"no model of {workspace.root} has the weights {wanted['model_sha256'][:12]} that it was made for",
        "export it where that model is",
    )


def _plan(what: str, changed: Mapping[str, tuple[tuple[int, ...], int]], family: Backbone) -> tuple[list[_Layer], int]:
    """The layers and PEFT's r: the least that holds the fullest layer."""
    patterns = {group: re.compile(family.linear_targets(group)) for group in GROUPS}
    layers, others = [], []
    for name, (shape, entries) in sorted(changed.items()):
        linear = name.endswith(".weight") and patterns[family.address(name).group].fullmatch(
            name.removesuffix(".weight")
        )
        if linear and len(shape) == 2:
            layers.append(_Layer(name, (shape[0], shape[1]), entries))
        else:
            others.append(name)
    if others:
        raise UsageError(
            f"'{what}' changes {len(others)} tensors that are no weights of linear layers, which SHiRA cannot hold: "
            f"{_listed(others)}",
            "share the patch itself, or apply with a mask of linear weights and --scope all",
        )
    rank = max(math.ceil(layer.entries / sum(layer.shape)) for layer in layers)
    full = [layer.name for layer in layers if layer.slots(rank) > math.prod(layer.shape)]
    if full:
        raise UsageError(
            f"'{what}' changes too many weights for SHiRA: r = {rank} is needed for the fullest layer, and "
            f"r (in + out) is more than all weights of {len(full)} layers: {_listed(full)}",
            "share the patch itself, or use a sparser mask with --scope all",
        )
    return layers, rank


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _layer(source: Patch | Mask, base: CheckpointFiles, layer: _Layer, rank: int, exact: _Exact) -> tuple[Array, Array]:
    """Indices `[2, slots]` and values of one layer, by position."""
    total, slots = math.prod(layer.shape), layer.slots(rank)
    if isinstance(source, Patch):
        marked = unpack(source.changed(layer.name), (total,))
        array = base.array(layer.name)
        after = source.turned(layer.name, array).reshape(-1)[marked]
        values, same = _deltas(np.asarray(array).reshape(-1)[marked], after, base.dtype(layer.name))
        exact.count += same
    else:
        marked, values = source[layer.name].reshape(-1), np.zeros(layer.entries, np.float32)
    free = np.flatnonzero(~marked)[: slots - layer.entries]
    chosen = marked.copy()
    chosen[free] = True
    positions = np.flatnonzero(chosen)
    filled = np.zeros(slots, np.float32)
    filled[marked[positions]] = values
    return np.stack(np.unravel_index(positions, layer.shape)).astype(np.int32), filled


def _deltas(before: Array, after: Array, dtype: str) -> tuple[Array, int]:
    """float32 values to add to a weight, and for how many PEFT's sum is the wanted weight bit for bit.

    PEFT adds in float32 and rounds to the weight's dtype. The nearest float32 to the difference can miss where a
    float32 weight becomes much smaller and needs finer steps than the difference has; its neighbours miss, too.
    """
    old, new = to_float32(before, dtype), to_float32(after, dtype)
    values = (new.astype(np.float64) - old.astype(np.float64)).astype(np.float32)
    return values, int((_merged(old, values, dtype) == _bits(after)).sum())


def _merged(old: Array, values: Array, dtype: str) -> Array:
    """Bit patterns of weight plus value, as PEFT merges them."""
    total = old + values
    if dtype != "BF16":
        return _bits(total.astype(np.float16) if dtype == "F16" else total)
    pattern = total.view(np.uint32)
    return ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16)


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(f"<u{array.dtype.itemsize}")


def _config(base: Path, layers: list[_Layer], rank: int, *, trained: bool) -> dict[str, Any]:
    """PEFT's settings; the base is named by its folder's name alone, so that no path leaves the machine."""
    return {
        "base_model_name_or_path": base.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": trained,
        "init_weights": True,
        "mask_type": "random",
        "modules_to_save": None,
        "peft_type": "SHIRA",
        "r": rank,
        "random_seed": None,
        "revision": None,
        "target_modules": [layer.name.removesuffix(".weight") for layer in layers],
        "task_type": None,
    }
