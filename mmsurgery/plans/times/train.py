"""How long fine-tuning by a recipe takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmsurgery.plans.times.files import saving_model, snapshots
from mmsurgery.plans.times.saliency import length
from mmsurgery.plans.times.watch import BOX, LEAST, Watch, in_turn, now, watched
from mmsurgery.unlearn.finetune import Constant, finetune
from mmsurgery.unlearn.tuning import Tuning

if TYPE_CHECKING:
    pass

MOST = 4 * LEAST
"""Steps that are run."""
CHECKING = 1.0
"""Seconds that samples are checked for."""


def train_time(tuning: Tuning, names: Sequence[str], *, snapshot: int) -> dict[str, float]:
    """Seconds by what is done: some samples are checked, the model is loaded, some steps run at learning rate 0, and
    what a part of the weights became is written and compared.

    Args:
        names: parameters that are trained, or get an adapter.
        snapshot: bytes.

    Raises:
        as `Tuning.make`.
    """
    import torch

    from mmsurgery.backbones.checkpointing import checkpoint_activations
    from mmsurgery.backbones.loading import load
    from mmsurgery.unlearn.loop import deterministic

    recipe, family = tuning.recipe, tuning.family
    begun = now()
    processor = family.load_processor(tuning.files.path)
    found = {"loading": now() - begun}
    samples = [sample for members in tuning.parts.values() for sample in members]

    def check(watch: Watch) -> None:
        with watch.stage("checking", len(samples)) as advance:
            for sample in in_turn(samples, lambda sample: length([sample])):
                family.collate(processor, [sample])
                advance(1)

    found["checking samples"] = watched(check, work=len(samples), box=CHECKING).seconds
    begun = now()
    with deterministic(tuning.threads):
        adapted = recipe.adapter == "lora"
        loaded = load(tuning.files.path, torch.bfloat16 if adapted and recipe.precision == "bf16" else torch.float32)
        update, trained = tuning.update(loaded)
        if recipe.checkpointing:
            checkpoint_activations(loaded.model)
        found["loading"] += now() - begun
        batches = tuning.batches()
        an_epoch = range(tuning.steps // recipe.epochs)
        steps = in_turn(an_epoch, lambda step: sum(length(batch) for batch in batches(step)))[:MOST]

        def some(watch: Watch) -> None:
            finetune(
                loaded,
                lambda step: batches(steps[step]),
                [Constant(steps=len(steps), learning_rate=0.0)],
                update=update,
                weight_decay=recipe.weight_decay,
                clip_norm=recipe.clip_norm,
                betas=recipe.betas,
                remember=False,
                progress=watch,
            )

        found["steps"] = watched(some, work=tuning.steps, box=BOX).seconds
        found["saving"] = saving_model(tuning.files, family, trained())
    size = sum(tuning.files.array(name).nbytes for name in tuning.files.names)
    found["steps"] += snapshots(found["steps"], snapshot, found["saving"] / max(size, 1))
    return found
