"""What `train` would need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mmsurgery.artifacts.snapshots import GENERATIONS
from mmsurgery.errors import UsageError, unknown
from mmsurgery.memory import gigabytes
from mmsurgery.names import Selector
from mmsurgery.plans import plan as terms
from mmsurgery.plans.lengths import Lengths, lengths
from mmsurgery.plans.plan import Passes, Plan, free_below, fullest
from mmsurgery.plans.probe import no_room, predicted
from mmsurgery.plans.sizes import BF16, FLOAT32, Sizes
from mmsurgery.plans.times.watch import now
from mmsurgery.plans.trained import ADAMW
from mmsurgery.recipes import Recipe
from mmsurgery.training import TRAINABLE, tuning_of
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.tuning import START, Tuning
from mmsurgery.workspace import SILENT, Progress, Workspace


def plan_train(
    workspace: Workspace, which: str, *, recipe: str | None = None, force: bool = False, progress: Progress = SILENT
) -> Plan:
    """What `train` of the same arguments would need; nothing is written and no lock is taken.

    Raises:
        as `train`, as far as name, recipe, base and data are concerned; UsageError for portraits, whose micro
        models have a training of their own and come with the package.
    """
    if which not in TRAINABLE:
        raise unknown("trainable model", which, TRAINABLE)
    if workspace.settings.benchmark.name == "portraits":
        raise UsageError(
            "portraits' models are too small for a plan: some MB, a minute", f"run mmsurgery train {which}"
        )
    begun = now()
    tuning = tuning_of(workspace, which, recipe, progress)
    tuning.check()
    ready = now() - begun
    numbers, folder = tuning.recipe, tuning.files.path
    sizes = Sizes.of(START, folder)
    processor = sizes.family.load_processor(folder)
    of_parts = {part: lengths(sizes, processor, samples) for part, samples in tuning.parts.items()}
    names = _names(numbers, sizes)
    memory, said = fullest(_moments(numbers, sizes, names, of_parts))
    moved = _moved(numbers, sizes, names)
    snapshot = FLOAT32 * (1 + ADAMW) * moved
    count = numbers.epochs * sum(map(len, tuning.parts.values()))
    seconds, how = _time(tuning, sizes, names, sum(memory.values()), snapshot, ready)
    notes = []
    if tuning.folder.exists() and not force:
        notes.append(f"model '{which}' is there: nothing is done without --force")
    return Plan(
        verb="train",
        model=sizes.size,
        samples={part: len(samples) for part, samples in tuning.parts.items()},
        passes=Passes(
            forward=count * (2 if numbers.checkpointing else 1),
            backward=count,
            tokens=numbers.epochs * sum(each.total for each in of_parts.values()) * (2 if numbers.checkpointing else 1),
        ),
        memory=memory,
        disk={"model": sizes.stored, "snapshots": snapshot * (GENERATIONS + 1)},
        disk_free=free_below(tuning.folder.parent),
        seconds=seconds,
        notes=(
            *notes,
            f"recipe {tuning.recipe_name}: {tuning.steps:,} steps",
            *said,
            how,
            f"going on after an interruption takes {gigabytes(snapshot)} more for a moment",
        ),
    )


def _names(recipe: Recipe, sizes: Sizes) -> list[str]:
    """Parameters that are trained, or get an adapter."""
    if recipe.adapter == "lora":
        return LoRA(rank=recipe.rank or 0, modules=recipe.modules).targets(sizes.shapes, sizes.family, None)
    return sorted(Selector(recipe.modules).select(sizes.addresses))


def _moved(recipe: Recipe, sizes: Sizes, names: Sequence[str]) -> int:
    """Numbers that the optimizer moves."""
    if recipe.adapter == "lora":
        return sum((recipe.rank or 0) * sum(sizes.shapes[name]) for name in names)
    return sizes.count(names)


def _moments(
    recipe: Recipe, sizes: Sizes, names: Sequence[str], parts: dict[str, Lengths]
) -> dict[str, dict[str, int]]:
    """Terms by moment.

    weights: float32, or bfloat16 with `precision = "bf16"`; all weights that are trained have float32 masters then,
        and the model is loaded in float32 before. Adapters, gradients (4) and moments (8 bytes) are float32.
    temporary: the gradient of one tensor before it is added, in the weights' dtype.
    activations: of the larger of a batch with pictures and one without, see `Sizes.kept`.
    """
    low = recipe.precision == "bf16"
    width, moved = BF16 if low else FLOAT32, _moved(recipe, sizes, names)
    lora = recipe.adapter == "lora"
    static = {
        terms.WEIGHTS: width * sizes.count(),
        terms.MASTERS: FLOAT32 * moved if low and not lora else 0,
        terms.ADAPTERS: FLOAT32 * moved if lora else 0,
        terms.GRADIENTS: FLOAT32 * moved,
    }
    files = {terms.SAMPLES: sum(each.files for each in parts.values())}
    moments = {
        "the model is trained": {
            **static,
            terms.MOMENTS: FLOAT32 * ADAMW * moved,
            terms.TEMPORARY: 0 if lora else width * sizes.largest(names),
            **files,
            terms.ACTIVATIONS: max(
                sizes.kept(each.batch(recipe.batch_size), width, checkpointing=recipe.checkpointing)
                for each in parts.values()
            ),
        }
    }
    if low and not lora:
        moments["the model is loaded"] = {terms.WEIGHTS: FLOAT32 * sizes.count(), **files}
    return moments


def _time(
    tuning: Tuning, sizes: Sizes, names: Sequence[str], peak: int, snapshot: int, ready: float
) -> tuple[float | None, str]:
    """Seconds, and what they are made of, or why there are none."""
    low = tuning.recipe.adapter == "lora" and tuning.recipe.precision == "bf16"
    if why := no_room((BF16 if low else FLOAT32) * sizes.count(), peak):
        return None, why
    from mmsurgery.plans.times.train import train_time

    return predicted(ready, partial(train_time, tuning, names, snapshot=snapshot))
