"""What a method sees besides forget and retain samples (see `Method.beside`), and what the vanilla model says of it.

Anchors that the vanilla model takes for one of the forgotten are left out: the quarter nearest to a forget picture.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts import distributions
from mmsurgery.artifacts.distributions import Distributions
from mmsurgery.data.anchors import ANCHORS, anchor_samples
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.leakage import check_text
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import UnusableData
from mmsurgery.methods.base import Method
from mmsurgery.methods.step import Answers
from mmsurgery.provenance import provenance
from mmsurgery.unlearn.plan import StepPlan, with_beside
from mmsurgery.workspace import Progress, Workspace

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.request import Request, Run

NEAREST = 0.25
"""Share of the anchor pictures that is left out."""
STRANGERS = 32
"""Anchor pictures whose answers to a question are averaged."""
BATCH = 16
"""Samples that the vanilla model is asked about at a time: a constant, since results depend on it in the last bits."""
FORGET = "forget_vqa"
TEXT, TEXT_PARTS = "text", ("forget_qa", "retain_qa")
"""What a method sees besides under this name, and the parts that it is made of."""
_SIZES = {ANCHORS: "anchors", TEXT: "text", FORGET: "attacked"}
"""What a method sees besides -> the setting that says how many samples of it, of the methods here."""


@dataclass(frozen=True)
class Beside:
    """Of one run."""

    sets: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """By name; anchors without the nearest."""
    vanilla: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Id of a sample -> distributions (see `References.vanilla`)."""
    stranger: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def planned(self, plan: Sequence[StepPlan], run: Run) -> list[StepPlan]:
        """A plan with samples of these in every step.

        Raises:
            UnusableData: if a set is smaller than its batch.
        """
        sets = {**self.sets, FORGET: run.forget} if FORGET in self.sets else self.sets
        sizes = run.request.method.beside()
        if len(run.forget) < len(run.forgotten):  # of single people, who may have fewer than a batch
            sizes = {name: min(size, len(run.forget)) if name == FORGET else size for name, size in sizes.items()}
        return with_beside(plan, sets, sizes, run.request.recipe.seed)


def beside_of(
    workspace: Workspace, request: Request, forget: Sequence[Sample]
) -> tuple[dict[str, Sequence[Sample]], int]:
    """Further data by name, and how many text samples of it are scored.

    Raises:
        as `data.anchors.anchor_samples`.
        UnusableData: if there are no text pairs, or they are scored where the settings did not choose that.
    """
    source, reader = source_of(workspace), benchmark(workspace.settings.benchmark.name)
    found: dict[str, Sequence[Sample]] = {}
    leaked = 0
    for name in request.method.beside():
        if name == FORGET:
            found[name] = forget
        elif name == TEXT:
            parts = [part for part in TEXT_PARTS if part in reader.parts(source)]
            texts = {part: reader.samples(source, part) for part in parts}
            leaked = sum(check_text(reader, source, part, samples) for part, samples in texts.items())
            found[name] = [sample for samples in texts.values() for sample in samples]
            if not found[name]:
                raise UnusableData("the benchmark has no text pairs", f"pass --setting {TEXT}=0")
    if request.takes_anchors:
        if bare := [sample.id for sample in forget if sample.image_bytes is None]:
            what = f"forget sample {bare[0]} has no picture, which strangers' could stand in for"
            raise UnusableData(what, "use a method without anchors")
        found[ANCHORS] = anchor_samples(reader, source, request.anchors)
    for name, size in request.method.beside().items():
        if len(found[name]) < size:
            raise UnusableData(
                f"{name} has {len(found[name])} samples, a step takes {size}",
                f"pass --setting {_SIZES[name]}={len(found[name])}, or add some",
            )
    return found, leaked


def beside(run: Run, load: Callable[[], Loaded], progress: Progress) -> Beside:
    """What a run's method asks for, computed as far as it is not there.

    Args:
        load: loads the vanilla model, where it has to be asked.

    Raises:
        UnusableData: if the vanilla model says something that is not finite, or samples of two sets have one id.
        MachineFault: if a file cannot be written.
    """
    sets = dict(run.beside)
    if not sets and not run.request.method.references & {"forget_distribution", "stranger_distribution"}:
        return Beside()
    asked = _Vanilla(run, functools.cache(load), progress)
    if ANCHORS in sets:
        sets[ANCHORS] = asked.far(sets[ANCHORS])
        progress.note(f"{_pictures(sets[ANCHORS])} of {_pictures(run.beside[ANCHORS])} anchor pictures are far enough")
    needed = run.request.method.beside()  # anchors may be there for what is said of strangers alone
    wanted = {name: samples for name, samples in sets.items() if name != FORGET and name in needed}
    if "forget_distribution" in run.request.method.references:
        wanted[FORGET] = run.forgotten
    vanilla = _Together({name: asked.of(name, samples) for name, samples in wanted.items()})
    strangers: Mapping[str, torch.Tensor] = {}
    if "stranger_distribution" in run.request.method.references:
        strangers = asked.strangers(run.forgotten, sets[ANCHORS])
    return Beside({name: samples for name, samples in sets.items() if name in needed}, vanilla, strangers)


def vanilla_passes(method: Method, sets: Mapping[str, Sequence[Sample]], forget: Sequence[Sample]) -> int:
    """How many samples the vanilla model is asked about where nothing is there."""
    needed = method.beside()
    asked = sum(len(samples) for name, samples in sets.items() if name != FORGET and name in needed)
    if "forget_distribution" in method.references:
        asked += len(forget)
    if "stranger_distribution" in method.references:
        asked += STRANGERS * len({(sample.question, sample.answer) for sample in forget})
    return asked


class _Together(Mapping[str, "torch.Tensor"]):
    """Several sets' distributions as one."""

    def __init__(self, parts: Mapping[str, Distributions]) -> None:
        self._of: dict[str, Distributions] = {}
        for name, part in parts.items():
            if shared := sorted(self._of.keys() & part.keys()):
                raise UnusableData(
                    f"{len(shared)} samples of {name} have ids that others have, such as {shared[0]}",
                    "have the benchmark give every sample an id of its own",
                )
            self._of |= dict.fromkeys(part, part)

    def __getitem__(self, sample: str) -> torch.Tensor:
        return self._of[sample][sample]

    def __iter__(self) -> Any:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


@dataclass(frozen=True)
class _Vanilla:
    """The vanilla model, as one is asked who need not be there."""

    run: Run
    load: Callable[[], Loaded]
    progress: Progress

    def of(self, name: str, samples: Sequence[Sample]) -> Distributions:
        """Its distributions at the answers of samples."""

        def computed() -> tuple[list[torch.Tensor], list[int]]:
            return self._asked(samples, f"vanilla on {name}"), list(range(len(samples)))

        return self._kept(name, [sample.id for sample in samples], {"data": data_sha256(samples)}, computed)

    def strangers(self, forget: Sequence[Sample], anchors: Sequence[Sample]) -> Distributions:
        """Log of the mean of its probabilities over `STRANGERS` anchor pictures, asked what is asked of forget samples.

        Samples with the same question and answer have the same.
        """
        pictures = {sample.person: sample for sample in anchors}
        pairs = list(dict.fromkeys((sample.question, sample.answer) for sample in forget))

        def crowd(question: str, answer: str) -> list[Sample]:
            def place(who: str) -> bytes:
                return hashlib.sha256("\0".join((who, question, answer)).encode()).digest()

            return [
                Sample(f"{who}/{question}", who, question, answer=answer, image_bytes=pictures[who].image_bytes)
                for who in sorted(pictures, key=place)[:STRANGERS]
            ]

        def computed() -> tuple[list[torch.Tensor], list[int]]:
            asked = [crowd(*pair) for pair in pairs]
            answers = iter(self._asked([each for every in asked for each in every], "vanilla on strangers"))
            means = [_log_mean([next(answers) for _ in every]) for every in asked]
            return means, [pairs.index((sample.question, sample.answer)) for sample in forget]

        inputs = {"data": data_sha256(forget), "anchors": data_sha256(anchors), "strangers": STRANGERS}
        return self._kept("stranger", [sample.id for sample in forget], inputs, computed)

    def far(self, anchors: Sequence[Sample]) -> list[Sample]:
        """Anchors without the pictures that are nearest to a forget picture: by the cosine between what the connector
        gives of them, around the mean of all.

        Raises:
            UnusableData: if the family's connector cannot be asked.
        """
        from mmsurgery.evaluate.features import picture_features

        pictured = {each.image_sha256: each for each in (*self.run.forgotten, *anchors)}
        names = [str(each.image_sha256) for each in pictured.values()]

        def computed() -> tuple[list[torch.Tensor], list[int]]:
            if not (found := picture_features(self.load(), pictured.values())):
                title = self.run.family.title
                raise UnusableData(f"{title} cannot be asked what pictures look like", "use a method without anchors")
            return [found[name][None] for name in names], list(range(len(names)))

        features = self._kept("features", names, {"pictures": names}, computed)
        return _far(anchors, self.run.forgotten, features)

    def _asked(self, samples: Sequence[Sample], what: str) -> list[torch.Tensor]:
        import torch

        loaded, cache = self.load(), dict[Any, Any]()
        device, found = next(loaded.model.parameters()).device, list[torch.Tensor]()
        with torch.no_grad(), self.progress.stage(what, len(samples)) as advance:
            for start in range(0, len(samples), BATCH):
                mine = samples[start : start + BATCH]
                batch = loaded.backbone.collate(loaded.processor, mine, cache=cache)
                answers = Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()}, mine)
                ends = answers.counts.cumsum(dim=0).tolist()
                values = answers.log_probabilities().cpu()
                for sample, begin, end in zip(mine, [0, *ends[:-1]], ends, strict=True):
                    if not bool(torch.isfinite(values[begin:end]).all()):
                        raise UnusableData(
                            f"the vanilla model's output for {sample.id} is not finite", "check its weights"
                        )
                    found.append(values[begin:end].float().clone())
                advance(len(mine))
        return found

    def _kept(
        self,
        name: str,
        ids: Sequence[str],
        inputs: Mapping[str, Any],
        computed: Callable[[], tuple[list[torch.Tensor], list[int]]],
    ) -> Distributions:
        """From its file, or computed and written there."""
        import torch

        run = self.run
        settings = {"set": name, "precision": run.request.recipe.precision, "threads": run.request.recipe.threads}
        made = provenance("apply", settings, {"vanilla": run.vanilla_sha256, **inputs})
        path = run.workspace.path("references", f"{name}-{made['key'][:8]}.safetensors")
        if (found := distributions.read(path, ids, made["key"])) is not None:
            return found
        values, rows = computed()
        ends = np.cumsum([len(each) for each in values]).astype(np.int64)
        distributions.write(path, torch.cat(values).numpy(), ends, np.array(rows, dtype=np.int64), made)
        again = distributions.read(path, ids, made["key"])
        if again is None:
            raise UnusableData(f"{path} cannot be read back", "run the command again")
        return again


def _log_mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(values)).logsumexp(dim=0) - float(np.log(len(values)))


def _pictures(samples: Sequence[Sample]) -> int:
    return len({sample.person for sample in samples})


def _far(anchors: Sequence[Sample], forget: Sequence[Sample], features: Mapping[str, torch.Tensor]) -> list[Sample]:
    vectors = {name: features[name][0].double().numpy() for name in features}
    mean = np.mean(list(vectors.values()), axis=0)
    units = {name: (vector - mean) / (np.linalg.norm(vector - mean) or 1.0) for name, vector in vectors.items()}
    known = np.stack([units[name] for name in dict.fromkeys(str(sample.image_sha256) for sample in forget)])
    people = {sample.person: float((known @ units[str(sample.image_sha256)]).max()) for sample in anchors}
    order = sorted(people, key=lambda person: (people[person], person))
    kept = set(order[: len(order) - round(NEAREST * len(order))])
    return [sample for sample in anchors if sample.person in kept]
