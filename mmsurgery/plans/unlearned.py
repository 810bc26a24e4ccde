"""What is known of an unlearning run before it is started, and the memory that each of its layouts takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import MissingArtifact, UnusableData
from mmsurgery.memory import Layout, within
from mmsurgery.plans import plan as terms
from mmsurgery.plans.evaluate import scoring_terms
from mmsurgery.plans.lengths import Lengths, lengths
from mmsurgery.plans.sizes import BF16, FLOAT32, Sizes
from mmsurgery.plans.trained import Trained
from mmsurgery.unlearn.beside import beside_of, vanilla_passes
from mmsurgery.unlearn.deletions import earlier_requests
from mmsurgery.unlearn.masked import check_fit
from mmsurgery.unlearn.plan import PROTOCOLS, StepPlan
from mmsurgery.unlearn.request import FORGET, RETAIN, Request
from mmsurgery.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Unlearned:
    """A run of a request."""

    request: Request
    device: str
    folder: Path
    sizes: Sizes
    sets: Mapping[str, Sequence[Sample]]
    lengths: Mapping[str, Lengths]
    steps: Sequence[StepPlan]
    trained: Trained
    masked: bool
    kept: Mapping[str, int]
    """Terms of reference outputs or models that stay."""
    before: Mapping[str, Mapping[str, int]]
    """Terms by moment, of what is done before the training."""
    asked: int
    """Forward passes of references."""
    outputs: int
    """Bytes of reference outputs that are kept as files."""
    said: Sequence[str]
    items: Sequence[Item]
    """That are scored along the run."""
    scorings: int
    """How often."""
    scoring: Mapping[str, int]

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        method: str,
        *,
        selection: Mapping[str, int] | None,
        device: str | None,
        **options: Any,
    ) -> Unlearned:
        """What `apply` of these options does.

        Raises:
            as `plan_apply`.
        """
        from mmsurgery.backbones.loading import device as here

        request = Request.of(workspace, method, **options)
        recipe, mask = request.recipe, request.mask
        folder = workspace.existing_model(request.start)
        sizes = Sizes.of(request.start, folder)
        loaded = None if mask is None or selection is not None else _mask(workspace, mask, sizes)
        if loaded is not None:
            selection = {name: loaded.parameters[name].selected for name in loaded.in_modules()}
        targets = [] if request.lora is None else request.lora.targets(sizes.shapes, sizes.family, loaded)
        forget, retain = _data(workspace, request)
        steps = request.begun(
            PROTOCOLS[request.protocol](
                forget,
                retain,
                epochs=recipe.epochs,
                batch_size=recipe.batch_size,
                retain_batch=request.retain_size,
                seed=recipe.seed,
            )
        )
        processor = sizes.family.load_processor(folder)
        others = {name: samples for name, samples in beside_of(workspace, request, forget)[0].items() if name != FORGET}
        sets = {FORGET: forget, **({RETAIN: retain} if retain else {}), **others}
        trained = Trained.of(request, sizes, selection, [n for n in targets if selection is None or selection.get(n)])
        kept, before, asked, said = _references(workspace, request, sizes, processor, retain, steps, folder)
        asked += vanilla_passes(request.method, others, forget)
        items = _items(workspace) if request.eval_every else []
        return cls(
            request=request,
            device=device or here().type,
            folder=folder,
            sizes=sizes,
            sets=sets,
            lengths={part: lengths(sizes, processor, members) for part, members in sets.items()},
            steps=steps,
            trained=trained,
            masked=selection is not None,
            kept=kept,
            before=before,
            asked=asked,
            outputs=_outputs(request, sizes, processor, folder, {**others, FORGET: forget}) if others else 0,
            said=said,
            items=items,
            scorings=2 + (len(steps) - 1) // request.eval_every if items else 0,
            scoring=scoring_terms(sizes, processor, items, trained.width) if items else {},
        )

    @property
    def scored(self) -> int:
        """Items scored along the run, each as often as it is."""
        return len(self.items) * self.scorings

    @property
    def besides(self) -> Mapping[str, int]:
        """Further data by name -> samples a step; another forget batch counts with the forget batch, in its place."""
        return {name: size for name, size in self.request.method.beside().items() if name != FORGET}

    @property
    def seen(self) -> dict[str, int]:
        """Samples passed, by set."""
        return {
            FORGET: sum(len(step.forget) for step in self.steps),
            RETAIN: sum(len(step.retain) for step in self.steps),
        } | {name: len(self.steps) * self.besides.get(name, 0) for name in self.sets if name not in (FORGET, RETAIN)}

    def moments(self, layout: Layout) -> tuple[dict[str, dict[str, int]], int]:
        """Terms by moment, and bytes of state that lie elsewhere."""
        held = any(not step.retain for step in self.steps)
        static, elsewhere = self.trained.terms(layout, self.device, held=held, kept_mask=self.masked)
        training = {
            **static,
            **self.kept,
            terms.PICTURES: sum(each.encoded for each in self.lengths.values()),
            terms.SAMPLES: sum(each.files for each in self.lengths.values()),
        }
        if FORGET in self.request.method.beside():  # of a mask's modules alone, or of adapters, it is less
            training[terms.ATTACK] = 2 * self.trained.width * self.sizes.count()
        found = {moment: dict(each) for moment, each in self.before.items()}
        found["the model is trained"] = {**training, terms.ACTIVATIONS: self._activations(layout)}
        if self.scored:
            found["columns are scored"] = {**training, **self.scoring}
        return found, elsewhere

    def elsewhere(self, layout: Layout) -> str:
        """Where `moments` counts state that is not beside the model."""
        return "files" if layout.state == "disk" else "main memory"

    def peak(self, layout: Layout) -> int:
        """Bytes at the fullest moment."""
        return max(sum(each.values()) for each in self.moments(layout)[0].values())

    def within(self, budget: int) -> Layout:
        """The fastest layout within a budget, in bytes; raises as `memory.within`."""
        return within(budget, self.trained.layouts(self.device), self.peak)

    def _activations(self, layout: Layout) -> int:
        """Of the larger of a forget and a retain batch: one graph is in memory at a time."""
        batches = {FORGET: self.request.recipe.batch_size, RETAIN: self.request.retain_size, **self.besides}
        return max(
            self.sizes.kept(each.batch(batches.get(part, 1)), self.trained.width, checkpointing=layout.checkpointing)
            for part, each in self.lengths.items()
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


def _outputs(request: Request, sizes: Sizes, processor: Any, folder: Path, sets: Mapping[str, Sequence[Sample]]) -> int:
    """Bytes of what the vanilla model says of sets; strangers take less than the forget samples beside them."""
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.references import distribution_bytes

    skeleton = sizes.family.skeleton(CheckpointFiles(folder, sizes.family.canonical).config)
    loaded = Loaded(skeleton, processor, sizes.family, folder, {}, {})
    twice = "stranger_distribution" in request.method.references
    return sum(
        (1 + (twice and name == FORGET)) * distribution_bytes(loaded, samples, range(len(samples)))
        for name, samples in sets.items()
        if name != FORGET or "forget_distribution" in request.method.references
    )


def _items(workspace: Workspace) -> list[Item]:
    source, reader = source_of(workspace), benchmark(workspace.settings.benchmark.name)
    return [item for column in reader.columns(source) for item in reader.items(source, column)]


def _references(
    workspace: Workspace,
    request: Request,
    sizes: Sizes,
    processor: Any,
    retain: Sequence[Sample],
    steps: Sequence[StepPlan],
    folder: Path,
) -> tuple[dict[str, int], dict[str, dict[str, int]], int, list[str]]:
    """Terms of what stays, terms by moment before the training, forward passes of references, and notes.

    The reference of NPO and the vanilla model of `kl_min` are loaded as the start is, beside it, unless they are
    it, and dropped again; but where the vanilla model's outputs (4 bytes a word of the vocabulary and planned
    answer token) exceed `references.CACHE`, it stays.
    """
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.references import CACHE, distribution_bytes

    weights = (BF16 if request.low else FLOAT32) * sizes.count()
    kept: dict[str, int] = {}
    moments: dict[str, dict[str, int]] = {}
    asked, notes = 0, []

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
            kept[terms.REFERENCE] = weights
            asked += len(places)
            notes.append(f"the vanilla model's outputs would take {needed / 1e9:.1f} GB: it stays in memory instead")
        else:
            kept[terms.OUTPUTS] = needed
            asked += len(set(places))
            other = {**before, terms.REFERENCE: beside("vanilla"), terms.OUTPUTS: needed}
            moments["the vanilla model is asked"] = other
    return kept, moments, asked, notes
