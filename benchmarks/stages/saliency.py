"""Saliency against a bare forward and backward pass of the same batches, its peak of memory, and its passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import baseline
import measure
import models
import torch

from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import Sample
from mmsurgery.masks.build import build_mask
from mmsurgery.memory import Layout
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.unlearn.loop import deterministic
from stages import SCRIPT, Setup, forwards, weights

BATCH = 4
BATCHES = {"tiny": 2, "1M": 32, "30M": 16, "190M": 6}
"""Batches of one call, by size of the model; 4 of any other."""
ON_GPU = 16
"""So many times as many on a GPU, where what a call costs beside its batches (the sums go to main memory) would
outweigh them."""
PEAK_BATCH, PEAK_TOKENS = 2, 104
"""Samples of a batch that memory is looked at with, and tokens of a sample."""
MASKS: list[dict[str, Any]] = [
    {},
    {"name": "sparse", "density": 0.05},
    {"name": "language", "modules": "lm", "beta": 2.0},
    {"name": "random", "control": "random"},
]


def run(setup: Setup) -> Iterator[measure.Figure]:
    for family, size, model in setup.models():
        loaded = load(models.checkpoint(setup.work, family, size))
        batches = BATCHES.get(size, 4) * (ON_GPU if torch.cuda.is_available() else 1)
        shown = models.samples(family, size, BATCH * batches, tokens=setup.tokens)
        yield from times(setup, model, loaded, shown)
        del loaded
        measure.free()
        if measure.can_watch():
            yield from peaks(setup, family, size, model)
    smallest = setup.sizes[0]
    for family in setup.families:
        yield passes(setup, family, smallest)


def times(setup: Setup, model: str, loaded: Loaded, shown: Sequence[Sample]) -> Iterator[measure.Figure]:
    """`batch` and exact `sample` against bare passes over batches that are encoded already."""
    batches = [
        loaded.backbone.collate(loaded.processor, shown[start : start + BATCH]) for start in range(0, len(shown), BATCH)
    ]
    threads = torch.get_num_threads()

    def bare() -> None:
        loaded.model.requires_grad_(True)
        with deterministic(threads):
            for batch in batches:
                baseline.losses(loaded, batch).mean().backward()
                loaded.model.zero_grad(set_to_none=True)

    def ours(estimator: str, size: int) -> Callable[[], object]:
        return lambda: measure_saliency(loaded, shown, estimator=estimator, batch_size=size)

    found = measure.in_turn(
        {
            "bare forward and backward": bare,
            "batch": ours("batch", BATCH),
            "sample": ours("sample", BATCH),
            "loop of single samples": ours("batch", 1),
            "straightforward": lambda: baseline.fisher(loaded, shown, BATCH),
        },
        setup.rounds,
    )
    count, tokens = weights(loaded), list(batches[0]["input_ids"].shape)
    shared: dict[str, Any] = {"model": model, "detail": {"weights": count, "tokens": tokens, "batches": len(batches)}}
    yield measure.ratio(
        found, "batch", "bare forward and backward", baseline="straightforward",
        what="saliency `batch`", **setup.goal(count, 1.15, 1.05), **shared,
    )  # fmt: skip
    yield measure.ratio(
        found, "sample", "bare forward and backward",
        what=f"saliency `sample`, batches of {BATCH}", **setup.goal(count, 1.25, 1.15), **shared,
    )  # fmt: skip
    yield measure.ratio(
        found, "sample", "loop of single samples",
        what=f"saliency `sample`, batches of {BATCH}", **setup.goal(count, 0.85, 0.75), **shared,
    )  # fmt: skip


def peaks(setup: Setup, family: str, size: str, model: str) -> Iterator[measure.Figure]:
    """Memory above the parameters, in units of theirs; one accumulator of float32 is 1. Batches are small, so
    that it is not activations that are looked at."""
    folder = str(models.checkpoint(setup.work, family, size))
    plain = measure.peak(SCRIPT, "saliency straightforward", folder=folder, family=family, size=size)
    bare = measure.peak(SCRIPT, "saliency bare", folder=folder, family=family, size=size)
    count = plain.found["weights"]
    goal = setup.goal(count, 1.45, 1.3)
    yield measure.Figure(
        model=model, what="peak of a bare forward and backward pass above the parameters", unit="of their bytes",
        value=bare.bytes / (4 * count), detail={"bytes": bare.bytes, "weights": count},
    )  # fmt: skip
    for estimator, twice in (("batch", False), ("sample", False), ("sample", True)):
        mine = measure.peak(
            SCRIPT, "saliency", folder=folder, family=family, size=size, estimator=estimator, twice=twice
        )
        yield measure.Figure(
            model=model,
            what=f"peak of saliency `{estimator}` above the parameters" + (", activations computed twice" * twice),
            unit="of their bytes", value=mine.bytes / (4 * count), baseline=plain.bytes / (4 * count),
            detail={"bytes": mine.bytes, "weights": count}, **goal,
        )  # fmt: skip
    out = str(setup.work / f"saved-{family}-{size}")
    saved = measure.peak(SCRIPT, "saliency", folder=folder, family=family, size=size, estimator="sample", out=out)
    shutil.rmtree(out)
    yield measure.Figure(
        model=model, what="the same, the map saved, too", unit="of their bytes",
        value=saved.bytes / (4 * count), detail={"bytes": saved.bytes, "weights": count},
    )  # fmt: skip


def passes(setup: Setup, family: str, size: str) -> measure.Figure:
    """How often a sample of a part goes through the model, whatever masks are built from the measurement."""
    root = setup.work / f"passes-{family}"
    shutil.rmtree(root, ignore_errors=True)
    workspace = models.workspace(root, family, size)
    rows: list[int] = []
    with forwards(lambda inputs: rows.append(len(inputs["input_ids"]))):
        measured = measure_parts(workspace, "forget,preserve")
        for mask in MASKS:
            build_mask(workspace, **mask)
    there = sum(part.units for part in measured)
    shutil.rmtree(root)
    return measure.Figure(
        model=f"{family} {size}", what=f"forward passes of a sample for {len(MASKS)} masks", unit="passes",
        value=sum(rows) / there, limit=1.0,
        detail={"samples": there, "passes": sum(rows), "parts": len(measured)},
    )  # fmt: skip


def _prepared(folder: str, family: str, size: str) -> tuple[Loaded, list[Sample]]:
    """Parameters that no file is behind, and the samples of two batches; one has been through the model."""
    loaded = load(Path(folder))
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.clone()
    shown = models.samples(family, size, 2 * PEAK_BATCH, tokens=PEAK_TOKENS)
    with torch.no_grad():
        baseline.losses(loaded, loaded.backbone.collate(loaded.processor, shown[:1]))
    return loaded, shown


def _ours(
    folder: str, family: str, size: str, estimator: str, out: str | None = None, twice: bool = False
) -> Callable[[], Any]:
    loaded, shown = _prepared(folder, family, size)
    layout = Layout(checkpointing=twice)

    def run() -> dict[str, int]:
        found = measure_saliency(loaded, shown, estimator=estimator, batch_size=PEAK_BATCH, layout=layout)
        if out is not None:
            found.save(out, replace=True)
        return {"weights": weights(loaded)}

    return run


def _straightforward(folder: str, family: str, size: str) -> Callable[[], Any]:
    loaded, shown = _prepared(folder, family, size)

    def run() -> dict[str, int]:
        baseline.fisher(loaded, shown, PEAK_BATCH)
        return {"weights": weights(loaded)}

    return run


def _bare(folder: str, family: str, size: str) -> Callable[[], Any]:
    loaded, shown = _prepared(folder, family, size)

    def run() -> None:
        loaded.model.requires_grad_(True)
        for start in range(0, len(shown), PEAK_BATCH):
            batch = loaded.backbone.collate(loaded.processor, shown[start : start + PEAK_BATCH])
            baseline.losses(loaded, batch).mean().backward()
            loaded.model.zero_grad(set_to_none=True)

    return run


TASKS = {"saliency": _ours, "saliency bare": _bare, "saliency straightforward": _straightforward}
