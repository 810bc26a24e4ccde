"""What an artifact is and where it comes from: masks, saliency maps, checkpoints and JSON records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, model_config
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.mask import Mask, count_ones
from mmsurgery.artifacts.saliency_map import MANIFEST, SaliencyMap
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import InputRefused, MissingArtifact, UnusableData, UsageError
from mmsurgery.figures.heatmap import Heatmap, by_address
from mmsurgery.masks.origin import of_mask, of_model, of_record, of_saliency
from mmsurgery.names import GROUPS, Address, Selector, model_order
from mmsurgery.provenance import check_seal

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_BINS = 1 << 16
"""Bins of saliency: exponent and 8 bits of mantissa of a float32."""


def describe(path: Path, *, others: Sequence[Path] = ()) -> dict[str, Any]:
    """A JSON-ready description of an artifact; `kind` says what it is.

    Args:
        path: a mask file, a saliency folder, a checkpoint folder or a JSON record of mmsurgery.
        others: further masks, for the overlap of each with the first.

    Raises:
        MissingArtifact: if nothing is there.
        InputRefused: if it is damaged or nothing that mmsurgery writes.
        UsageError: if an overlap is asked of something else than masks.
        Mismatch: if the two masks are of different models.
    """
    for each in (path, *others):
        if not each.exists():
            raise MissingArtifact(f"{each} does not exist", "name an artifact that does: mmsurgery status")
        if not (each.is_file() or each.is_dir()):
            raise InputRefused(f"{each} is a pipe, a device or a socket", "write it to a file and name that")
    if others:
        for each in (path, *others):
            if not (each.is_file() and each.suffix == ".safetensors"):
                raise UsageError(f"{each} is no mask; only masks overlap", "name masks before and after --with")
    if path.suffix == ".safetensors" and path.is_file():
        return _describe_mask(path, others)
    if (path / MANIFEST).exists():
        return _describe_saliency(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise _not_ours(path, f"a folder with neither {MANIFEST} nor config.json")
        return _describe_checkpoint(path)
    if path.name == MANIFEST:
        return _describe_saliency(path.parent)
    if path.suffix != ".json":
        raise _not_ours(path, "a file that ends neither in .safetensors nor in .json")
    value = read_json(path)
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise _not_ours(path, "JSON that does not say its kind")
    record = check_seal(value, str(path), kind=kind)
    if kind == "request":
        record = {**record, "people_named": _people_named(record, path)}
    return record if "origin" in record else {**record, "origin": of_record(record)}


def _people_named(record: dict[str, Any], path: Path) -> int:
    """How many people a request names."""
    people = record.get("people")
    if not (isinstance(people, list) and people and all(isinstance(person, str) for person in people)):
        raise InputRefused(f"{path}: people is no list of names", "bring it back, or make the model again")
    return len(set(people))


def _not_ours(path: Path, what: str) -> InputRefused:
    return InputRefused(f"{path} is nothing that mmsurgery writes: {what}", "name a mask, saliency, model or record")


# masks


def _describe_mask(path: Path, others: Sequence[Path]) -> dict[str, Any]:
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
        **{f"by_{key}": _tallied(mask, key, inside) for key in ("group", "layer", "component")},
        "parents": [dict(parent) for parent in mask.parents],
        "origin": of_mask(mask.base, mask.parents),
        "provenance": dict(mask.provenance),
    }
    if others:
        described["overlaps"] = [{"with": each.stem, **overlap(mask, Mask.load(each))} for each in others]
    return described


def _tallied(mask: Mask, by: str, inside: set[str]) -> dict[str, Any]:
    """`selected`, `total` and `density` by key; `frozen`, whether the mask's modules leave it out whole."""
    open_to_change = replace(mask, parameters={name: mask.parameters[name] for name in inside}).tally(by)
    return {
        key: {
            "selected": ones,
            "total": total,
            "density": ones / total if total else 0.0,
            "frozen": key not in open_to_change,
        }
        for key, (ones, total) in mask.tally(by).items()
    }


def overlap(first: Mask, second: Mask) -> dict[str, Any]:
    """How much two masks of one model share.

    Returns:
        `both`, `either`: numbers of weights; `iou`: their ratio; `iou_by_chance`: the ratio for masks
        drawn at random with the same counts in every tensor (expected `both` over expected `either`);
        `by_group`: the same for each module group in which either selects something.

    Raises:
        Mismatch: if they are of different models.
    """
    first.fits(second)
    sums: dict[str, list[float]] = {}
    for name, mine in first.parameters.items():
        theirs = second.parameters[name]
        both = count_ones(np.bitwise_and(mine.bits, theirs.bits)) if mine.selected and theirs.selected else 0
        by_chance = mine.selected * theirs.selected / mine.numel if mine.numel else 0.0
        entry = sums.setdefault(mine.address.group, [0, 0, 0.0])
        for place, value in enumerate((both, mine.selected + theirs.selected, by_chance)):
            entry[place] += value
    whole = [sum(entry[place] for entry in sums.values()) for place in range(3)]
    groups = {group: _shared(*sums[group]) for group in GROUPS if group in sums and sums[group][1]}
    return {**_shared(*whole), "by_group": groups}


def _shared(both: float, ones: float, by_chance: float) -> dict[str, Any]:
    return {
        "both": int(both),
        "either": int(ones - both),
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


def heatmaps(described: dict[str, Any]) -> list[Heatmap]:
    """The heatmaps of a description: of a mask the selected share, of a patch the changed share, of a saliency
    map the mean of S (logarithmic colours); none of anything else."""
    cells = {Address.parse(key): entry for key, entry in described.get("by_component", {}).items()}
    match described["kind"]:
        case "mask":
            inside = Selector(described["modules"])
            shares = {a: e["density"] for a, e in cells.items() if e["total"] and inside.matches(a)}
            return by_address(shares, "share of weights selected")
        case "patch":
            return by_address({a: e["density"] for a, e in cells.items()}, "share of weights changed")
        case "saliency":
            return by_address({a: e["mean"] for a, e in cells.items()}, "mean saliency", log=True)
    return []


# saliency


def _describe_saliency(path: Path) -> dict[str, Any]:
    saliency = SaliencyMap.load(path)
    address = backbone(saliency.model_type).address
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    silent: dict[str, int] = dict.fromkeys(GROUPS, 0)
    for name in saliency.arrays:
        groups[address(name).group].append(name)
    for name in saliency.no_gradient:
        silent[address(name).group] += 1
    totals: dict[str, tuple[float, int]] = {}
    summaries = {
        group: {"no_gradient": silent[group], **saliency_summary(saliency, names, totals)}
        for group, names in groups.items()
        if names or silent[group]
    }
    cells: dict[str, tuple[float, int]] = {}
    for name, (total, weights) in totals.items():
        sums = cells.get(key := str(address(name)), (0.0, 0))
        cells[key] = (sums[0] + total, sums[1] + weights)
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
        "groups": summaries,
        "by_component": {
            key: {"weights": cells[key][1], "mean": cells[key][0] / cells[key][1]}
            for key in sorted(cells, key=model_order)
            if cells[key][1]
        },
        "origin": of_saliency(saliency),
        "provenance": dict(saliency.provenance),
    }


def saliency_summary(
    saliency: SaliencyMap, names: list[str], totals: dict[str, tuple[float, int]] | None = None
) -> dict[str, Any]:
    """Mean and quantiles of S over some parameters, all of their weights counted, in bounded memory.

    Args:
        totals: gets the sum of S and the number of weights of each parameter.

    Returns:
        `weights`, `zeros`, `mean` and `quantiles`: share -> value, exact to 1 part in 500 (the middle
        of a histogram bin).

    Raises:
        UnusableData: for NaN, infinite or negative saliency.
    """
    histogram = np.zeros(_BINS, np.int64)
    total, zeros = 0.0, 0
    for name in names:
        before, weights = total, 0
        for sums in saliency.blocks(name):
            values = sums.astype(np.float64) / saliency.units
            values = np.square(values) if saliency.estimator == "dataset" else values
            if values.size and not (values.min() >= 0 and values.max() < math.inf):
                raise UnusableData(
                    f"saliency '{saliency.part}' of {name} holds NaN, infinite or negative values",
                    "measure it again: mmsurgery saliency --force",
                )
            total += float(values.sum())
            zeros += int(np.count_nonzero(values == 0))
            bins = values.astype(np.float32).view(np.uint32) >> np.uint32(15)
            histogram += np.bincount(bins.astype(np.int64), minlength=_BINS)
            weights += values.size
        if totals is not None:
            totals[name] = (total - before, weights)
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
    run = path / RUN_FILE
    record = check_seal(read_json(run), str(run), kind="run") if run.exists() else None
    return {
        "kind": "checkpoint",
        "model_type": files.model_type,
        "model_sha256": files.digest(),
        "parameters": len(files.names),
        "total": sum(weights.values()),
        "counts": {group: count for group, count in weights.items() if count},
        "tied": dict(files.tied),
        "run": record,
        "origin": of_model(path, record),
    }
