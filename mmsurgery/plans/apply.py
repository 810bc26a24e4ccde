"""What `apply` would need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.snapshots import GENERATIONS
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import MissingArtifact, UnusableData
from mmsurgery.plans import plan as terms
from mmsurgery.plans.evaluate import scoring_terms
from mmsurgery.plans.lengths import Lengths, lengths
from mmsurgery.plans.plan import Passes, Plan, free_below, fullest
from mmsurgery.plans.probe import backward, probed
from mmsurgery.plans.sizes import FLOAT32, Sizes
from mmsurgery.plans.trained import ADAMW, Trained
from mmsurgery.unlearn.deletions import earlier_requests
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import check_fit
from mmsurgery.unlearn.plan import PROTOCOLS, StepPlan
from mmsurgery.unlearn.request import FORGET, RETAIN, Request
from mmsurgery.workspace import SILENT, Progress, Workspace


def plan_apply(
    workspace: Workspace,
    method: str,
    *,
    mask: str | None = None,
    scope: str | None = None,
    protocol: str = "equations",
    lora: LoRA | None = None,
    start: str = "vanilla",
    reference: str = "vanilla",
    name: str | None = None,
    forget_weight: float = 1.0,
    retain_batch: int | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    precision: str | None = None,
    eval_every: int = 0,
    force: bool = False,
    selection: Mapping[str, int] | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """What `apply` of the same arguments would need; nothing is written and no lock is taken.

    Args:
        selection: parameter of the mask's modules -> how many of its weights the mask selects, for a mask that is
            not made yet; `mask` is its name.

    Raises:
        as `apply`, as far as arguments, model, mask and data are concerned; whether the mask was made for these
        very weights is not looked at, since that means to read them all.
    """
    request = Request.of(
        workspace,
        method,
        mask=mask,
        scope=scope,
        protocol=protocol,
        lora=lora,
        start=start,
        reference=reference,
        name=name,
        forget_weight=forget_weight,
        retain_batch=retain_batch,
        learning_rate=learning_rate,
        epochs=epochs,
        seed=seed,
        precision=precision,
        eval_every=eval_every,
    )
    mask, recipe = request.mask, request.recipe
    folder = workspace.existing_model(start)
    sizes = Sizes.of(start, folder)
    loaded = None if mask is None or selection is not None else _mask(workspace, mask, sizes)
    if loaded is not None:
        selection = {name: loaded.parameters[name].selected for name in loaded.in_modules()}
    targets = [] if lora is None else lora.targets(sizes.shapes, sizes.family, loaded)
    forget, retain = _data(workspace, request)
    steps = PROTOCOLS[protocol](
        forget,
        retain,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        retain_batch=request.retain_size,
        seed=recipe.seed,
    )
    notes = []
    if workspace.model_dir(request.name).exists() and not force:
        notes.append(f"model '{request.name}' is there: nothing is done without --force")
    trained = Trained.of(request, sizes, selection, [n for n in targets if selection is None or selection.get(n)])
    processor = sizes.family.load_processor(folder)
    sets = {FORGET: forget, **({RETAIN: retain} if retain else {})}
    of_sets = {part: lengths(sizes, processor, members) for part, members in sets.items()}
    ascent = sum(len(step.forget) for step in steps)
    seen = {FORGET: ascent, RETAIN: sum(len(step.retain) for step in steps)}
    held = any(not step.retain for step in steps)
    static = trained.terms(held=held, kept_mask=selection is not None)
    moments, asked, said = _references(workspace, request, sizes, processor, retain, steps, static, folder)
    training = {**moments.pop("training"), terms.ACTIVATIONS: _activations(sizes, of_sets, request)}
    common = {
        terms.PICTURES: sum(each.encoded for each in of_sets.values()),
        terms.SAMPLES: sum(each.files for each in of_sets.values()),
    }
    moments["the model is trained"] = {**training, **common}
    scored = 0
    if eval_every:
        items = _items(workspace)
        scored = len(items) * (2 + (len(steps) - 1) // eval_every)
        moments["columns are scored"] = {**training, **common, **scoring_terms(sizes, processor, items, FLOAT32)}
        notes.append(f"forward passes include {scored:,} scored items, whose tokens are not counted")
    memory, fullest_while = fullest(moments)
    snapshot = FLOAT32 * (1 + ADAMW) * trained.moved
    seconds, how = _time(sizes, folder, sets, seen, recipe.threads)
    return Plan(
        verb="apply",
        model=sizes.size,
        samples={part: len(members) for part, members in sets.items()},
        passes=Passes(
            forward=sum(seen.values()) + asked + scored,
            backward=sum(seen.values()),
            tokens=round(sum(each.mean * seen[part] for part, each in of_sets.items())),
        ),
        memory=memory,
        disk={"model": sizes.stored, "snapshots": snapshot * (GENERATIONS + 1)},
        disk_free=free_below(workspace.path("models")),
        seconds=seconds,
        notes=(
            *notes,
            f"{len(steps):,} steps, trained in float32",
            *said,
            *fullest_while,
            how,
            f"going on after an interruption takes {snapshot / 1e9:.2f} GB more for a moment",
        ),
    )


def _mask(workspace: Workspace, name: str, sizes: Sizes) -> Mask:
    path = workspace.mask_path(name)
    if not path.exists():
        raise MissingArtifact(f"no mask '{name}' in {workspace.root}", "mmsurgery mask --beta 1 --modules lm,connector")
    mask = Mask.load(path)
    check_fit(mask, sizes.shapes)
    return mask


def _data(workspace: Workspace, request: Request) -> tuple[list[Sample], list[Sample]]:
    """Forget and retain samples, without the people that earlier models of the chain forgot."""
    source, reader = source_of(workspace), benchmark(workspace.settings.benchmark.name)
    forget = reader.samples(source, FORGET)
    retain = reader.samples(source, RETAIN) if request.method.uses_retain else []
    gone = {person for people in earlier_requests(workspace, request.start).values() for person in people}
    retain = [sample for sample in retain if sample.person not in gone]
    if not forget or (request.method.uses_retain and not retain):
        raise UnusableData(f"the data part {RETAIN if forget else FORGET} is empty", "check the benchmark's files")
    return forget, retain


def _items(workspace: Workspace) -> list[Item]:
    source, reader = source_of(workspace), benchmark(workspace.settings.benchmark.name)
    return [item for column in reader.columns(source) for item in reader.items(source, column)]


def _activations(sizes: Sizes, sets: Mapping[str, Lengths], request: Request) -> int:
    """Of the larger of a forget and a retain batch: one graph is in memory at a time."""
    batches = {FORGET: request.recipe.batch_size, RETAIN: request.retain_size}
    return max(sizes.kept(each.batch(batches[part]), FLOAT32) for part, each in sets.items())


def _references(
    workspace: Workspace,
    request: Request,
    sizes: Sizes,
    processor: Any,
    retain: Sequence[Sample],
    steps: Sequence[StepPlan],
    static: dict[str, int],
    folder: Path,
) -> tuple[dict[str, dict[str, int]], int, list[str]]:
    """Terms by moment (`training` among them), forward passes of references, and notes.

    The reference of NPO and the vanilla model of `kl_min` are loaded in float32 beside the start, unless they are
    it, and dropped again; but where the vanilla model's outputs (4 bytes a word of the vocabulary and planned
    answer token) exceed `references.CACHE`, it stays.
    """
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.references import CACHE, distribution_bytes

    weights, training = FLOAT32 * sizes.count(), dict(static)
    moments, asked, notes = {"training": training}, 0, []

    def beside(name: str) -> int:
        return 0 if workspace.existing_model(name) == folder else weights

    before = {terms.WEIGHTS: weights}
    if request.takes_reference:
        asked += len({place for step in steps for place in step.forget})
        moments["the reference model is asked"] = {**before, terms.REFERENCE: beside(request.reference)}
    if request.needs_vanilla:
        places = [place for step in steps for place in step.retain]
        skeleton = sizes.family.skeleton(CheckpointFiles(folder, sizes.family.canonical).config)
        needed = distribution_bytes(Loaded(skeleton, processor, sizes.family, folder, {}, {}), retain, places)
        if needed > CACHE:
            training[terms.REFERENCE] = weights
            asked += len(places)
            notes.append(f"the vanilla model's outputs would take {needed / 1e9:.1f} GB: it stays in memory instead")
        else:
            training[terms.OUTPUTS] = needed
            asked += len(set(places))
            other = {**before, terms.REFERENCE: beside("vanilla"), terms.OUTPUTS: needed}
            moments["the vanilla model is asked"] = other
    return moments, asked, notes


def _time(
    sizes: Sizes, folder: Path, sets: Mapping[str, Sequence[Sample]], seen: Mapping[str, int], threads: int
) -> tuple[float | None, str]:
    import torch

    speeds, how = probed(sizes, folder, sets, backward, threads=threads, dtype=torch.float32)
    if speeds is None:
        return None, how
    seconds = sum(speeds[part] * seen[part] for part in sets)
    return seconds, f"{how}: passes alone, without optimizer steps, references and scoring"
