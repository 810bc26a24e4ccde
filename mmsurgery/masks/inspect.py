"""What an artifact is and where it comes from: masks, saliency maps, checkpoints and JSON records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.mask import Mask, count_ones
from mmsurgery.artifacts.saliency_map import MANIFEST, SaliencyMap
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import InputRefused, MissingArtifact, UnusableData, UsageError
from mmsurgery.figures.heatmap import Heatmap, by_address
from mmsurgery.names import GROUPS, Address
from mmsurgery.provenance import check_seal

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_BINS = 1 << 16
"""Bins of saliency: exponent and 8 bits of mantissa of a float32."""


def describe(path: Path, *, other: Path | None = None) -> dict[str, Any]:
    """A JSON-ready description of an artifact; `kind` says what it is.

    Args:
        path: a mask file, a saliency folder, a checkpoint folder or a JSON record of mmsurgery.
        other: a second mask, for the overlap with the first.

    Raises:
        MissingArtifact: if nothing is there.
        InputRefused: if it is damaged or nothing that mmsurgery writes.
        UsageError: if an overlap is asked of something else than masks.
        Mismatch: if the two masks are of different models.
    """
    if not path.exists():
        raise MissingArtifact(f"{path} does not exist")
    if path.suffix == ".safetensors" and path.is_file():
        return _describe_mask(path, other)
    if other is not None:
        raise UsageError(f"{path} is no mask; only masks overlap", "name two masks")
    if (path / MANIFEST).exists():
        return _describe_saliency(path)
    if path.is_dir():
        return _describe_checkpoint(path)
    value = read_json(path)
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise InputRefused(f"{path} is nothing that mmsurgery writes", "name a mask, saliency folder, model or record")
    return check_seal(value, str(path), kind=kind)


# masks


def _describe_mask(path: Path, other: Path | None) -> dict[str, Any]:
    mask = Mask.load(path)
    inside = mask.in_modules()
    within = sum(mask.parameters[name].numel for name in inside)
    described = {
        "kind": "mask",
        "rule": mask.rule,
        "beta": mask.beta,
        "estimator": mask.estimator,
        "mixture": mask.mixture,
        "modules": mask.modules,
        **mask.base,
        "content_sha256": mask.content_sha256,
        "parameters": len(mask),
        "selected": mask.selected,
        "total": mask.total,
        "density": mask.density(),
        "in_modules": {"total": within, "density": mask.selected / within if within else 0.0},
        "counts": dict(mask.counts),
        **{f"by_{key}": _tallied(mask, key) for key in ("group", "layer", "component")},
        "parents": [dict(parent) for parent in mask.parents],
        "provenance": dict(mask.provenance),
    }
    if other is not None:
        described["overlap"] = {"with": other.stem, **overlap(mask, Mask.load(other))}
    return described


def _tallied(mask: Mask, by: str) -> dict[str, Any]:
    return {
        key: {"selected": ones, "total": total, "density": ones / total if total else 0.0}
        for key, (ones, total) in mask.tally(by).items()
    }


def overlap(first: Mask, second: Mask) -> dict[str, Any]:
    """How much two masks of one model share.

    Returns:
        `both`, `either`: numbers of weights; `iou`: their ratio; `iou_by_chance`: the ratio for masks
        drawn at random with the same counts in every tensor (expected `both` over expected `either`).

    Raises:
        Mismatch: if they are of different models.
    """
    first.fits(second)
    both, by_chance = 0, 0.0
    for name, mine in first.parameters.items():
        theirs = second.parameters[name]
        both += count_ones(np.bitwise_and(mine.bits, theirs.bits))
        if mine.numel:
            by_chance += mine.selected * theirs.selected / mine.numel
    ones = first.selected + second.selected
    return {
        "both": both,
        "either": ones - both,
        "iou": both / (ones - both) if ones else 0.0,
        "iou_by_chance": by_chance / (ones - by_chance) if ones else 0.0,
    }


def mask_heatmaps(mask: Mask) -> list[Heatmap]:
    """Selected share of weights, layers by components, one heatmap per module group; parameters outside
    the mask's modules have no cell."""
    sums: dict[Address, tuple[int, int]] = {}
    for name in mask.in_modules():
        parameter = mask.parameters[name]
        ones, total = sums.get(parameter.address, (0, 0))
        sums[parameter.address] = (ones + parameter.selected, total + parameter.numel)
    shares = {address: ones / total for address, (ones, total) in sums.items() if total}
    return by_address(shares, "share of weights selected")


# saliency


def _describe_saliency(path: Path) -> dict[str, Any]:
    saliency = SaliencyMap.load(path)
    address = backbone(saliency.model_type).address
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in saliency.arrays:
        groups[address(name).group].append(name)
    return {
        "kind": "saliency",
        "part": saliency.part,
        "estimator": saliency.estimator,
        "batch_size": saliency.batch_size,
        "units": saliency.units,
        "model_type": saliency.model_type,
        "model_sha256": saliency.model_sha256,
        "data_sha256": saliency.data_sha256,
        "parameters": len(saliency.names),
        "no_gradient": sorted(saliency.no_gradient),
        "tied": dict(saliency.tied),
        "unit": "nats^2 per unit of weight^2",
        "groups": {group: saliency_summary(saliency, names) for group, names in groups.items() if names},
        "provenance": dict(saliency.provenance),
    }


def saliency_summary(saliency: SaliencyMap, names: list[str]) -> dict[str, Any]:
    """Mean and quantiles of S over some parameters, all of their weights counted, in bounded memory.

    Returns:
        `weights`, `zeros`, `mean` and `quantiles`: share -> value, exact to 1 part in 500 (the middle
        of a histogram bin).

    Raises:
        UnusableData: for NaN, infinite or negative saliency.
    """
    histogram = np.zeros(_BINS, np.int64)
    total, zeros = 0.0, 0
    for name in names:
        for sums in saliency.blocks(name):
            values = sums.astype(np.float64) / saliency.units
            values = np.square(values) if saliency.estimator == "dataset" else values
            if values.size and not (values.min() >= 0 and values.max() < math.inf):
                raise UnusableData(f"saliency '{saliency.part}' of {name} holds NaN, infinite or negative values")
            total += float(values.sum())
            zeros += int(np.count_nonzero(values == 0))
            bins = values.astype(np.float32).view(np.uint32) >> np.uint32(15)
            histogram += np.bincount(bins.astype(np.int64), minlength=_BINS)
    weights = int(histogram.sum())
    at_most = np.cumsum(histogram)
    quantiles = {}
    for share in QUANTILES:
        place = int(np.searchsorted(at_most, max(math.ceil(share * weights), 1)))
        edges = np.array([place << 15, (place + 1) << 15], np.uint32).view(np.float32).astype(np.float64)
        quantiles[f"{share:g}"] = float(edges.mean()) if place else 0.0
    mean = total / weights if weights else 0.0
    return {"weights": weights, "zeros": zeros, "mean": mean, "quantiles": quantiles if weights else {}}


# checkpoints


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    family = backbone(model_config(path)["model_type"])
    files = CheckpointFiles(path, family.canonical)
    weights: dict[str, int] = dict.fromkeys(GROUPS, 0)
    for name in files.names:
        weights[family.address(name).group] += math.prod(files.shape(name))
    run = path / "mmsurgery-run.json"
    return {
        "kind": "checkpoint",
        "model_type": files.model_type,
        "model_sha256": files.digest(),
        "parameters": len(files.names),
        "total": sum(weights.values()),
        "counts": {group: count for group, count in weights.items() if count},
        "tied": dict(files.tied),
        "run": check_seal(read_json(run), str(run), kind="run") if run.exists() else None,
    }
