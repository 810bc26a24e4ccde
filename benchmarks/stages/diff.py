"""Comparing two checkpoints against reading their files, from the disk and from the page cache, and its memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import baseline
import measure
import models
import numpy as np

from mmsurgery.artifacts.checkpoint import SINGLE, CheckpointFiles
from mmsurgery.backbones.discovery import backbone
from mmsurgery.diff.difference import Difference, compare
from stages import SCRIPT, Setup

TOP = 1000
TOPS = (1000, 1_000_000)
"""For which memory is looked at."""
MOVED = 0.3
"""Share of the weights that differ."""


def run(setup: Setup) -> Iterator[measure.Figure]:
    for family, size, model in setup.models():
        yield from times(setup, family, model, *pair(setup.work, family, size))
        if Path("/proc/self/status").exists():
            yield from peaks(setup, family, size, model)


def pair(work: Path, family: str, size: str) -> tuple[Path, Path]:
    """A checkpoint, and one that was trained a little."""
    from safetensors.numpy import load_file, save_file

    before = models.checkpoint(work, family, size)
    after = before.with_name(f"{before.name}-after")
    if not (after / SINGLE).exists():
        partial = before.with_name(f".{after.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(before, partial, ignore=shutil.ignore_patterns(SINGLE))
        rng, arrays = np.random.default_rng(4), load_file(before / SINGLE)
        for name, values in arrays.items():
            moved = rng.random(values.shape, np.float32) < MOVED
            arrays[name] = values + moved * np.float32(3e-5) * rng.standard_normal(values.shape, np.float32)
        save_file(arrays, partial / SINGLE, {"format": "pt"})
        shutil.rmtree(after, ignore_errors=True)
        partial.rename(after)
    return before, after


def compared(family: str, before: Path, after: Path, top: int = TOP) -> Difference:
    one = backbone(family)
    first, second = (CheckpointFiles(folder, one.canonical) for folder in (before, after))
    return compare(first, second, {name: one.address(name) for name in first.names}, top=top)


def times(setup: Setup, family: str, model: str, before: Path, after: Path) -> Iterator[measure.Figure]:
    files = [before / SINGLE, after / SINGLE]
    count = sum(path.stat().st_size for path in files) // 8
    sides: dict[str, Callable[[], object]] = {
        "reading both": lambda: measure.read(files),
        "diff": lambda: compared(family, before, after),
        "straightforward": lambda: baseline.largest(files[:1], files[1:], TOP),
    }
    for state, clock in (("cold", "wall"), ("in the page cache", "cpu")):
        cold = state == "cold"
        found = measure.in_turn(
            sides, setup.rounds, before=lambda name, cold=cold: measure.drop_from_cache(files) if cold else None
        )
        yield measure.ratio(
            found, "diff", "reading both", baseline="straightforward", what=f"diff, top {TOP}, files {state}",
            model=model, clock=clock, detail={"weights": count}, **(setup.goal(count, 1.3, 1.1) if cold else {}),
        )  # fmt: skip


def peaks(setup: Setup, family: str, size: str, model: str) -> Iterator[measure.Figure]:
    before, after = map(str, pair(setup.work, family, size))
    for top in TOPS:
        given = {"family": family, "before": before, "after": after, "top": top}
        mine = measure.peak(SCRIPT, "diff", **given)
        plain = measure.peak(SCRIPT, "diff straightforward", **given)
        yield measure.Figure(
            model=model, what=f"memory of diff, top {top:,}", unit="MB", value=mine.bytes / 1e6,
            baseline=plain.bytes / 1e6, limit=64 + 40 * top / 1e6,
        )  # fmt: skip


def _ours(family: str, before: str, after: str, top: int) -> Callable[[], Any]:
    compared(family, Path(before), Path(before), 1)  # imports
    return lambda: compared(family, Path(before), Path(after), top).changed


def _straightforward(family: str, before: str, after: str, top: int) -> Callable[[], Any]:
    weights = Path(before).joinpath(SINGLE).stat().st_size // 8
    files = Path(before) / SINGLE, Path(after) / SINGLE
    return lambda: len(baseline.largest([files[0]], [files[1]], min(top, weights))[0])


TASKS = {"diff": _ours, "diff straightforward": _straightforward}
