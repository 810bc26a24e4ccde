"""One run of unlearning on a model in memory: its references, what is trained of it, its steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.mask import pack
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.errors import InternalError
from mmsurgery.memory import Layout, Store
from mmsurgery.ranks import ALONE, Ranks
from mmsurgery.unlearn.beside import Beside, beside
from mmsurgery.unlearn.plan import StepPlan
from mmsurgery.unlearn.request import FORGET, Run
from mmsurgery.unlearn.resume import History
from mmsurgery.unlearn.shares import Share
from mmsurgery.workspace import Progress

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.methods.step import References
    from mmsurgery.unlearn.loop import Evaluation, Optimisation
    from mmsurgery.unlearn.masked import Update
    from mmsurgery.unlearn.objective import Unlearning
    from mmsurgery.unlearn.save import Trained
    from mmsurgery.unlearn.sharded import Shards


def train_run(
    run: Run,
    plan: list[StepPlan],
    others: Beside,
    ranks: Ranks,
    layout: Layout,
    snapshots: Snapshots,
    progress: Progress,
) -> tuple[dict[str, Trained], History, Shards | None]:
    """What was trained by name, what the run went through, and what this one of several ranks holds."""
    from mmsurgery.backbones.checkpointing import activations_checkpointed
    from mmsurgery.unlearn.loop import train

    request = run.request
    loaded, shards = _load(run, run.files.path, ranks)
    before = _bit_sums(loaded, shards)
    store = Store(layout.state, run.workspace.path("models"))
    update = update_of(run, loaded, shards, store)
    step = _objective(run, loaded, update, plan, others, ranks, progress)

    def accumulate(number: int) -> dict[str, float]:
        with activations_checkpointed(loaded.model) if layout.checkpointing else contextlib.nullcontext():
            return step(number)

    history = train(
        update,
        accumulate,
        steps=len(plan),
        optimisation=_optimisation(run),
        store=store,
        snapshots=snapshots,
        evaluation=_evaluation(run, loaded, shards) if request.eval_every else None,
        batch_ids=step.ids,
        ranks=ranks,
        what=f"unlearning {request.name}",
        progress=progress,
    )
    trained = update.trained()
    after = _bit_sums(loaded, shards)
    drifted = sorted(name for name, bits in before.items() if name not in trained and after.get(name) != bits)
    if drifted:
        raise InternalError(f"{drifted[0]} is frozen and moved in memory: what was trained is not what is saved")
    return trained, history, shards


def unlearned_in_memory(run: Run, progress: Progress) -> Loaded:
    """The model that a run makes, in one process and without a trace of it: neither snapshots nor files.

    Raises:
        UnusableData: as `train_run`, and if the plan has no steps.
    """
    from mmsurgery.unlearn.loop import train

    ranks, others = ALONE, beside(run, lambda: vanilla_of(run), progress)
    plan = others.planned(run.plan(), run)
    loaded, _ = _load(run, run.files.path, ranks)
    update = update_of(run, loaded, None, Store())
    step = _objective(run, loaded, update, plan, others, ranks, progress)
    what = "unlearning one person"
    train(
        update, step, steps=len(plan), optimisation=_optimisation(run), batch_ids=step.ids, what=what, progress=progress
    )
    return loaded


def vanilla_of(run: Run) -> Loaded:
    """The vanilla model in what the run computes in."""
    return _load(run, run.workspace.existing_model("vanilla"), ALONE)[0]


def _objective(
    run: Run,
    loaded: Loaded,
    update: Update,
    plan: list[StepPlan],
    others: Beside,
    ranks: Ranks,
    progress: Progress,
) -> Unlearning:
    from mmsurgery.unlearn.objective import Unlearning

    references = _references(run, loaded, plan, ranks, progress)

    return Unlearning(
        loaded,
        run.request.method,
        update,
        run.forget,
        run.retain,
        plan,
        dataclasses.replace(references, vanilla=others.vanilla, stranger=others.stranger),
        run.request.forget_weight,
        {**others.sets, FORGET: run.forget},
        run.request.recipe.seed,
        witness=None if run.request.strict else run.mask,
        ranks=ranks,
    )


def _optimisation(run: Run) -> Optimisation:
    from mmsurgery.unlearn.loop import Optimisation

    recipe = run.request.recipe
    return Optimisation(
        learning_rate=lambda _: recipe.learning_rate, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm
    )


def _load(run: Run, folder: Path, ranks: Ranks) -> tuple[Loaded, Shards | None]:
    """A model in what the run computes in, and of several ranks what this one holds of it."""
    import torch

    from mmsurgery.backbones.loading import load

    if ranks.count > 1:
        from mmsurgery.unlearn.sharded import load_shards

        return load_shards(folder, ranks, low=run.request.low)
    return load(folder, torch.bfloat16 if run.request.low else torch.float32), None


def _bit_sums(loaded: Loaded, shards: Shards | None) -> dict[str, int]:
    from mmsurgery.backbones.loading import bit_sums

    return bit_sums(loaded.model) if shards is None else shards.bit_sums()


def update_of(run: Run, loaded: Loaded, shards: Shards | None, store: Store) -> Update:
    """What a run trains of a model: its weights, the rows of several ranks, or adapters."""
    request = run.request
    if shards is not None:
        from mmsurgery.unlearn.sharded import ShardedUpdate

        return ShardedUpdate(shards, run.mask, strict=request.strict)
    if request.lora is not None:
        from mmsurgery.unlearn.adapters import LowRankUpdate

        return LowRankUpdate(loaded.model, request.lora, run.targets, run.mask, seed=request.recipe.seed)
    from mmsurgery.unlearn.masked import MaskedUpdate

    return MaskedUpdate(
        loaded.model, run.mask, strict=request.strict, stored=_stored(run) if request.low else None, store=store
    )


def _stored(run: Run) -> Callable[[str], torch.Tensor]:
    """Name -> the start's weight as its checkpoint has it, float32, in main memory."""
    import torch

    return lambda name: torch.tensor(run.files.float32(name))


def _references(run: Run, loaded: Loaded, plan: list[StepPlan], ranks: Ranks, progress: Progress) -> References:
    """Outputs of the reference models for the planned samples, of several ranks for its own; a model that is not the
    start's is loaded for it."""
    from mmsurgery.methods.step import References
    from mmsurgery.unlearn.references import CACHE, distribution_bytes, forget_logprob, retain_distribution

    def model(name: str) -> Loaded:
        folder = run.workspace.existing_model(name)
        return loaded if folder == run.files.path else _load(run, folder, ranks)[0]

    size = run.request.recipe.batch_size
    forgotten: dict[int, torch.Tensor] = {}
    if run.request.takes_reference:
        places = [place for step in plan for place in Share.of(step.forget, ranks).places]
        reference = model(run.request.reference)
        forgotten = forget_logprob(reference, run.forget, places, batch_size=size, ranks=ranks, progress=progress)
    if not run.request.needs_vanilla:
        return References(forgotten)
    places = [place for step in plan for place in step.retain]
    vanilla = run.workspace.existing_model("vanilla")
    if (needed := distribution_bytes(loaded, run.retain, places) // ranks.count) > CACHE:
        progress.note(
            f"the vanilla model's outputs would take {needed / 2**30:.1f} GiB: "
            "it stays in memory beside the trained one, and computes them step by step"
        )
        return References(forgotten, twin=_load(run, vanilla, ranks)[0].model)
    progress.note(f"the vanilla model's outputs are kept in memory: {needed / 2**20:.1f} MiB")
    places = [place for step in plan for place in Share.of(step.retain, ranks).places]
    kept = retain_distribution(model("vanilla"), run.retain, places, batch_size=size, ranks=ranks, progress=progress)
    return References(forgotten, kept)


def _evaluation(run: Run, loaded: Loaded, shards: Shards | None) -> Evaluation:
    """Accuracy of every column that has items, by likelihood, along the run; and which items were right."""
    from mmsurgery.evaluate.scoring import score
    from mmsurgery.unlearn.loop import Evaluation

    source, reader = source_of(run.workspace), benchmark(run.workspace.settings.benchmark.name)
    items = {column: found for column in reader.columns(source) if (found := reader.items(source, column))}
    cache: dict[Any, Any] = {}

    asked = [item for found in items.values() for item in found]

    def columns() -> dict[str, Any]:
        with contextlib.nullcontext() if shards is None else shards.put_together():
            scored = iter(score(loaded, asked, cache=cache))  # all at once: columns share pictures
        right = {column: np.array([next(scored).correct for _ in found]) for column, found in items.items()}
        return {
            "columns": {column: float(each.mean()) for column, each in right.items()},
            "correct": {column: pack(each).tobytes().hex() for column, each in right.items()},
        }

    return Evaluation(every=run.request.eval_every, score=columns)
