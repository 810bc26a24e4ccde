"""Scores of a model's weights by which the hunt (`hunt.py`) chooses which of them may move."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.api import Workspace
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.data.samples import Sample
from mmsurgery.saliency.measure import measure_saliency

Arrays = dict[str, Any]
"""Parameter name -> float64 scores of its weights, in its shape."""

KEPT = ("forget_qa", "retain_vqa", "retain_qa")


@dataclasses.dataclass
class Level:
    """A level's workspace and a model of it, and what candidates need of these, measured once."""

    space: Workspace
    model: str = "vanilla"
    known: dict[str, Any] = dataclasses.field(default_factory=dict)

    def once(self, what: str, compute: Callable[[], Any]) -> Any:
        if what not in self.known:
            self.known[what] = compute()
        return self.known[what]

    @property
    def loaded(self) -> Any:
        return self.once("loaded", lambda: self.space.load_model(self.model))

    def samples(self, part: str) -> list[Sample]:
        found: list[Sample] = self.once(f"samples {part}", lambda: self.space.samples(part))
        return found

    def map(self, part: str, estimator: str = "sample", people: str | None = None) -> SaliencyMap:
        def measured() -> SaliencyMap:
            chosen = [sample for sample in self.samples(part) if people in (None, sample.person)]
            return measure_saliency(self.loaded, chosen, estimator=estimator, part=part)

        found: SaliencyMap = self.once(f"map {part} {estimator} {people}", measured)
        return found

    def fisher(self, *parts: str) -> Arrays:
        """Mean over samples of squared gradients, parts pooled; a part without gradient counts as 0."""
        return _pooled([self.map(part) for part in parts])

    def gradient(self, *parts: str) -> Arrays:
        """Mean over samples of gradients, parts pooled."""
        return _pooled([self.map(part, "dataset") for part in parts])

    def distilled(self) -> Arrays:
        """Mean over forget samples of the squared gradient of the stranger distillation's loss."""
        import torch

        from mmsurgery.methods.step import Passage, References
        from mmsurgery.methods.stranger_distillation import distillation
        from mmsurgery.unlearn.beside import beside
        from mmsurgery.unlearn.request import Request, gather
        from mmsurgery.workspace import SILENT

        request = Request.of(
            self.space, "stranger_distillation", name="hunt", mask=None, learning_rate=None, batch_size=None,
            retain_batch=None, epochs=None, seed=None, precision=None, forget_weight=1.0, settings={}, scope=None,
            protocol="equations", lora=None, start="vanilla", reference="vanilla", eval_every=0, steps=None,
        )  # fmt: skip
        run, loaded = gather(self.space, request), self.loaded
        with self.space.lock():
            others = beside(run, lambda: loaded, SILENT)
        references = References(vanilla=others.vanilla, stranger=others.stranger)
        loaded.model.requires_grad_(True)
        weights = dict(loaded.model.named_parameters())
        sums: Arrays = {name: np.zeros(tuple(weight.shape)) for name, weight in weights.items()}
        for place, sample in enumerate(run.forget):
            batch = loaded.backbone.collate(loaded.processor, [sample])
            loss = distillation(Passage(loaded.model, batch, [sample], [place], references), 0.3)
            slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, slope in zip(weights, slopes, strict=True):
                if slope is not None:
                    sums[name] += slope.double().square().numpy()
        return {name: values / len(run.forget) for name, values in sums.items()}

    def activity(self) -> Arrays:
        """For every weight of a linear layer: how far its output differs between forget pictures and anchors that are
        asked the same, in standard deviations over both."""
        import torch

        loaded = self.loaded
        questions = {(sample.question, sample.answer) for sample in self.samples("forget_vqa")}
        anchors = [each for each in self.samples("anchor_vqa") if (each.question, each.answer) in questions][:252]
        modules = {name: each for name, each in loaded.model.named_modules() if isinstance(each, torch.nn.Linear)}
        found: dict[str, list[list[Any]]] = {name: [[], []] for name in modules}
        for side, samples in enumerate((self.samples("forget_vqa"), anchors)):
            hooks = [
                module.register_forward_hook(functools.partial(_noted, found[name][side]))
                for name, module in modules.items()
            ]
            with torch.no_grad():
                for sample in samples:
                    batch = loaded.backbone.collate(loaded.processor, [sample])
                    loaded.model(**{key: value for key, value in batch.items() if key != "labels"})
            for hook in hooks:
                hook.remove()
        scores: Arrays = {}
        for name, (mine, theirs) in found.items():
            if not mine or not theirs:
                continue
            one, other = torch.stack(mine), torch.stack(theirs)
            apart = (one.mean(dim=0) - other.mean(dim=0)).abs() / (torch.cat([one, other]).std(dim=0) + 1e-12)
            weight = f"{name}.weight"
            shape = tuple(dict(loaded.model.named_parameters())[weight].shape)
            scores[weight] = np.broadcast_to(apart.numpy()[:, None], shape).copy()
        return scores


def _pooled(maps: Sequence[SaliencyMap]) -> Arrays:
    units, found = sum(each.units for each in maps), Arrays()
    for each in maps:
        for name, values in each.arrays.items():
            found[name] = found.get(name, np.float64(0)) + values.astype(np.float64) / units
    return found


def _noted(means: list[Any], module: Any, inputs: Any, output: Any) -> None:
    """A forward hook: the mean of each output over the tokens."""
    means.append(output.detach().reshape(-1, output.shape[-1]).double().mean(dim=0))


def _over(target: Arrays, kept: Arrays) -> Arrays:
    floor = 1e-30
    return {name: target[name] / (kept[name] + floor) for name in target if name in kept}


def _coherence(level: Level) -> Arrays:
    mean, squares = level.gradient("forget_vqa"), level.fisher("forget_vqa")
    return _over({name: values**2 for name, values in mean.items()}, squares)


def _harmless(level: Level) -> Arrays:
    """The ascent's own step where it does not raise the loss of what is kept: |g_forget|, else next to nothing."""
    forget, kept = level.gradient("forget_vqa"), level.gradient(*KEPT)
    return {n: np.where(forget[n] * kept[n] <= 0, np.abs(forget[n]), 1e-30) for n in forget if n in kept}


def _everybody(level: Level) -> Arrays:
    """The least over forgotten people of each one's Fisher diagonal, over that of what is kept."""
    people = sorted({sample.person for sample in level.samples("forget_vqa")})
    each = [level.map("forget_vqa", people=person) for person in people]
    names = [name for name in each[0].names if all(name in one.arrays for one in each)]
    least = {n: np.min([one.arrays[n].astype(np.float64) / one.units for one in each], axis=0) for n in names}
    return _over(least, level.fisher(*KEPT))


def ratio(level: Level) -> Arrays:
    return _over(level.fisher("forget_vqa"), level.fisher(*KEPT))


def _influence(level: Level) -> Arrays:
    """What a damped Newton step of the ascent changes: g^2 / (F + mean F), F of what is kept, in each matrix."""
    forget, kept = level.gradient("forget_vqa"), level.fisher(*KEPT)
    return {n: forget[n] ** 2 / (kept[n] + kept[n].mean() + 1e-30) for n in forget if n in kept}


CANDIDATES: Mapping[str, tuple[str, Callable[[Level], Arrays]]] = {
    "ratio": ("Fisher of forget over Fisher of what is kept (Eq. 7)", ratio),
    "ratio-anchors": (
        "the same, anchors among what is kept",
        lambda level: _over(level.fisher("forget_vqa"), level.fisher(*KEPT, "anchor_vqa")),
    ),
    "forget": ("Fisher of forget alone", lambda level: level.fisher("forget_vqa")),
    "kept": ("Fisher of what is kept alone, largest", lambda level: level.fisher(*KEPT)),
    "coherence": ("squared mean gradient over mean squared gradient of forget", _coherence),
    "everybody": ("least Fisher over forgotten people, over what is kept", _everybody),
    "harmless": ("mean gradient of forget, where it does not raise the loss of what is kept", _harmless),
    "distilled": (
        "Fisher of stranger distillation's loss over what is kept",
        lambda level: _over(level.distilled(), level.fisher(*KEPT)),
    ),
    "activity": (
        "outputs that tell forget pictures from anchors; elsewhere as Eq. 7",
        lambda level: {**ratio(level), **level.activity()},
    ),
    "influence": ("influence of forget samples: squared mean gradient over damped Fisher of what is kept", _influence),
}
