"""Masks against reading their files: made from saliency, verified, combined, counted, looked into."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import baseline
import measure
import models
import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, MaskParameter, count_ones
from mmsurgery.artifacts.saliency_map import MANIFEST, SaliencyMap
from mmsurgery.artifacts.tensors import read_header
from mmsurgery.backbones.discovery import backbone
from mmsurgery.masks.compose import compose
from mmsurgery.masks.inspect import describe
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.names import GROUPS
from stages import Setup

PARTS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")
LARGE = "llava 7B's layers"
LARGE_WEIGHTS = int(1.6e9)
"""At least; a quarter of LLaVA-1.5-7B's."""
SIGNS: dict[str, Callable[[Mask, Mask], Mask]] = {
    "&": operator.and_,
    "|": operator.or_,
    "-": operator.sub,
    "^": operator.xor,
    "~": lambda one, other: ~one,
}
Shapes = dict[str, tuple[int, ...]]


def run(setup: Setup) -> Iterator[measure.Figure]:
    for family, size, model in setup.models():
        files = CheckpointFiles(models.checkpoint(setup.work, family, size), backbone(family).canonical)
        shapes = {name: files.shape(name) for name in files.names}
        folders = saliency(setup.work / "saliency" / models.named(family, size), family, shapes)
        yield from built(setup, model, folders)
        yield from combined(setup, model, family, shapes)
    large = int(setup.options.get("large", LARGE_WEIGHTS))
    if large:
        yield from combined(setup, LARGE, "llava", layers_of_7b(large), plain=False)


def saliency(root: Path, family: str, shapes: Shapes) -> list[Path]:
    """Folders of maps of made numbers, spread as squares of gradients are, of every part."""
    folders = [root / part for part in PARTS]
    for seed, folder in enumerate(folders):
        if not (folder / MANIFEST).exists():
            rng = np.random.default_rng(seed)
            arrays = {
                name: np.exp(rng.standard_normal(shape, np.float32) * np.float32(3) - np.float32(15))
                for name, shape in shapes.items()
            }
            SaliencyMap(
                part=folder.name, estimator="sample", batch_size=None, units=64 + seed, model_type=family,
                model_sha256="0" * 64, data_sha256=f"{seed}" * 64, arrays=arrays, no_gradient={},
            ).save(folder, replace=True)  # fmt: skip
    return folders


def built(setup: Setup, model: str, folders: Sequence[Path]) -> Iterator[measure.Figure]:
    """From files whose digests are known, against reading these files; and what it takes to know them first."""
    files = [[path for path in sorted(folder.iterdir()) if path.suffix == ".h5"] for folder in folders]
    everything = [path for part in files for path in part]

    def mask(count: int) -> Mask:
        forget, *preserve = (SaliencyMap.load(folder) for folder in folders[:count])
        return ratio_mask(forget, preserve)

    def straightforward() -> None:
        forget, *preserve = (SaliencyMap.load(folder) for folder in folders)
        baseline.bool_mask(forget, preserve)

    out = setup.work / "made.safetensors"
    total = mask(len(folders)).total  # digests are known from here on, and files are in the page cache
    found = measure.in_turn(
        {
            "reading 4 files": lambda: measure.read(everything),
            "mask of 4 parts": lambda: mask(len(folders)),
            "straightforward": straightforward,
            "reading 2 files": lambda: measure.read([*files[0], *files[1]]),
            "mask of 2 parts": lambda: mask(2),
            "mask of 4 parts, saved": lambda: mask(len(folders)).save(out),
        },
        setup.rounds,
    )
    out.unlink()
    goal = setup.goal(total, 5.0, 2.0)
    shared: dict[str, Any] = {"model": model, "detail": {"weights": total}}
    yield measure.ratio(
        found, "mask of 4 parts", "reading 4 files", baseline="straightforward",
        what="mask of 4 verified parts", against="reading them", **goal, **shared,
    )  # fmt: skip
    yield measure.ratio(
        found, "mask of 2 parts", "reading 2 files", what="mask of 2 verified parts", against="reading them",
        **goal, **shared,
    )  # fmt: skip
    yield measure.ratio(
        found, "mask of 4 parts, saved", "reading 4 files", what="the same of 4, flushed to disk",
        against="reading them", clock="wall", **shared,
    )  # fmt: skip

    def forget_digests(name: str) -> None:
        for path in everything:
            os.utime(path)

    sides = {
        "reading": lambda: measure.read(everything),
        "verifying": lambda: [SaliencyMap.load(folder) for folder in folders],
    }
    first = measure.in_turn(sides, setup.rounds, before=forget_digests)
    yield measure.ratio(first, "verifying", "reading", what="first reading of 4 parts, digests verified", **shared)


def combined(setup: Setup, model: str, family: str, shapes: Shapes, *, plain: bool = True) -> Iterator[measure.Figure]:
    """Algebra and counting on packed bits by the weight, files by the byte, and whole commands against reading.

    Args:
        plain: compare with masks of one byte a weight.
    """
    paths = [setup.work / f"mask-{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        random_mask(family, shapes, seed).save(path)
    a, b = (Mask.load(path) for path in paths)
    total, size = a.total, paths[0].stat().st_size
    bools = [{name: each[name] for name in each} for each in ((a, b) if plain else ())]
    sides: dict[str, Callable[[], object]] = {
        f"mask algebra {sign}": lambda sign=sign: SIGNS[sign](a, b) for sign in SIGNS
    }
    sides["count"] = lambda: [count_ones(parameter.bits) for parameter in a.parameters.values()]
    if plain:
        sides["bool masks"] = lambda: baseline.combine(*bools)
    found = measure.in_turn(sides, setup.rounds, warm_up=2)
    clock, detail = "cpu", {"weights": total, "tensors": len(shapes)}
    for name in (each for each in sides if each != "bool masks"):
        spread = found[name].per(total, clock)
        yield measure.Figure(
            model=model, what=name, unit="ns a weight", value=spread.median, low=spread.low, high=spread.high,
            clock=clock, wall=found[name].per(total, "wall").median,
            baseline=found["bool masks"].per(total, clock).median if plain and name == "mask algebra &" else None,
            detail=detail, **setup.goal(total, 0.05),
        )  # fmt: skip
    header = read_header(paths[0])
    yield measure.Figure(
        model=model, what="mask file", unit="bytes a weight", value=size / total, baseline=1.0,
        detail={**detail, "bytes": size, "header_bytes_per_tensor": header.bytes / len(header.tensors)},
        **setup.goal(total, 0.13),
    )  # fmt: skip
    yield from commands(setup, model, paths, total)
    for path in paths:
        path.unlink()


def commands(setup: Setup, model: str, paths: Sequence[Path], total: int) -> Iterator[measure.Figure]:
    out, copy = setup.work / "composed.safetensors", setup.work / "copied.safetensors"

    def composed() -> Mask:
        return compose("a & ~b", {name: Mask.load(path) for name, path in zip("ab", paths, strict=True)})

    def copied() -> None:
        measure.read(paths[1:])
        data = paths[0].read_bytes()
        with copy.open("wb") as handle:
            handle.write(data)
            os.fsync(handle.fileno())

    found = measure.in_turn(
        {
            "reading it": lambda: measure.read(paths[:1]),
            "inspect": lambda: describe(paths[0]),
            "reading both": lambda: measure.read(paths),
            "composed": composed,
            "reading both, writing one": copied,
            "composed and saved": lambda: composed().save(out),
        },
        setup.rounds,
    )
    detail = {"weights": total}
    for side, to, what in (
        ("inspect", "reading it", "inspect: read, verify, count"),
        ("composed", "reading both", "compose `a & ~b`: read, verify, combine"),
        ("composed and saved", "reading both, writing one", "the same, flushed to disk"),
    ):
        saved = side == "composed and saved"
        yield measure.ratio(found, side, to, what=what, model=model, detail=detail, clock="wall" if saved else "cpu")
    out.unlink()
    copy.unlink()


def random_mask(family: str, shapes: Shapes, seed: int) -> Mask:
    """Independent bits of one half, in all modules that there are."""
    rng, address, found = np.random.default_rng(seed), backbone(family).address, {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        bits = np.frombuffer(rng.bytes(-(-count // 8)), np.uint8).copy()
        if count % 8:
            bits[-1] &= (1 << count % 8) - 1
        found[name] = MaskParameter(shape, address(name), bits)
    groups = {parameter.address.group for parameter in found.values()}
    modules = ",".join(group for group in GROUPS if group in groups)
    base = {"model_type": family, "model_sha256": "0" * 64}
    rest: dict[str, Any] = {"rule": "ratio", "beta": 1.0, "estimator": "sample", "mixture": "pooled"}
    return Mask(parameters=found, base=base, modules=modules, **rest)


def layers_of_7b(weights: int) -> Shapes:
    """LLaVA-1.5-7B's embeddings and so many layers of its language model that there are that many weights."""
    shapes: Shapes = {"model.language_model.embed_tokens.weight": (32064, 4096)}
    layer = {
        **{f"self_attn.{part}_proj": (4096, 4096) for part in "qkvo"},
        "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096), "mlp.down_proj": (4096, 11008),
    }  # fmt: skip
    number = 0
    while sum(a * b for a, b in shapes.values()) < weights:
        shapes |= {f"model.language_model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        number += 1
    return shapes


TASKS: dict[str, Callable[..., Callable[[], Any]]] = {}
