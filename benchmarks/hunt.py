"""The hunt for a mask that matters: does it make a difference *which* weights a method may move?

    python benchmarks/hunt.py LEVEL [LEVEL ...] --out build/hunt.json     levels of an experiment, such as those that
                                                                          `experiment beyond-tuning` was run on
    python benchmarks/hunt.py --page --out build/hunt.json                the table of what was found; nothing is run

Anchored ascent on every level, held by a mask in each of three ways: `all`, nothing outside it moves; `kept`, the
retain, anchor and text terms alone are held to it; `again`, as `all`, the mask chosen anew by the model as it has
become, every three epochs (the optimizer begins anew, too). Every candidate chooses the same number of weights in
every matrix and vector of the language model and the connector, by a score of each weight; only where the candidate
is the numbers themselves does it choose how many in each. DRAWS random masks of the same numbers in every matrix, all
alike, stand beside it. What a mask holds learns faster, by one over the root of the density, so that a step of Adam
is as long as without a mask (at the same rate few weights do not get to matched forgetting). A figure is the utility
where Forget VQA first comes down to gold + 5 points. Models and masks are artifacts of the level, so a run that was
stopped goes on; nothing of a judging world may be named here.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mmsurgery
from mmsurgery.api import Workspace
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.data.samples import Sample
from mmsurgery.evaluate.records import read_items
from mmsurgery.experiments.scores import Point, accuracies, at_matched_forgetting, unpack, utility
from mmsurgery.masks.controls import random_mask
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.methods.anchored_ascent import AnchoredAscent
from mmsurgery.methods.base import Term
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.method_settings import recipe_of
from mmsurgery.unlearn.record import read_record

if TYPE_CHECKING:
    from mmsurgery.methods.step import Step

Arrays = dict[str, Any]
"""Parameter name -> float64 scores of its weights, in its shape."""

DENSITIES = (0.02, 0.1)
DRAWS = 3
EPOCHS = 15
"""Of anchored ascent: twice its budget."""
STAGES = 5
"""Of way `again`: three epochs each."""
MODULES = "lm,connector"
KEPT = ("forget_qa", "retain_vqa", "retain_qa")


class Kept(AnchoredAscent):
    """Anchored ascent whose retain, anchor and text terms are held to the mask, and whose ascent is not: what the
    engine calls forget terms are the ones that it masks."""

    name = "kept_masked"

    def terms(self, step: Step) -> Iterator[Term]:
        terms = list(super().terms(step))
        yield from (Term("forget", term.loss) for term in terms[1:])
        yield Term("retain", terms[0].loss)


WAYS: Mapping[str, Mapping[str, Any]] = {
    "all": {"method": "anchored_ascent", "scope": "all"},
    "kept": {"method": f"{__file__}:Kept", "scope": "forget"},
    "again": {"method": "anchored_ascent", "scope": "all"},
}


# scores of weights, all from one model


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


def _ratio(level: Level) -> Arrays:
    return _over(level.fisher("forget_vqa"), level.fisher(*KEPT))


def _influence(level: Level) -> Arrays:
    """What a damped Newton step of the ascent changes: g^2 / (F + mean F), F of what is kept, in each matrix."""
    forget, kept = level.gradient("forget_vqa"), level.fisher(*KEPT)
    return {n: forget[n] ** 2 / (kept[n] + kept[n].mean() + 1e-30) for n in forget if n in kept}


CANDIDATES: Mapping[str, tuple[str, Callable[[Level], Arrays]]] = {
    "ratio": ("Fisher of forget over Fisher of what is kept (Eq. 7)", _ratio),
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
        lambda level: {**_ratio(level), **level.activity()},
    ),
    "influence": ("influence of forget samples: squared mean gradient over damped Fisher of what is kept", _influence),
}
SHARES: Mapping[str, str] = {
    "layers": "Eq. 7 over all matrices at once, so that their numbers differ",
    "layers-random": "random weights in numbers that differ like these",
}
"""Candidates that choose how many weights of each matrix may move."""


# masks and runs


def _mask(level: Level, key: str, density: float, scores: Callable[[], Arrays], per: str = "tensor") -> str:
    """Name of the mask of the highest scores, made where it is missing."""
    name = f"hunt-{key}-{density:g}" + ("" if level.model == "vanilla" else f"-{level.model}")
    path = level.space.mask_path(name)
    if not path.exists():
        found = {each: values.astype(np.float64) for each, values in scores().items()}
        like = level.map("forget_vqa")
        # a constant denominator: the order is that of the scores, ranks keep float32 from making ties of small ones
        ranks = found if per == "overall" else {n: v.ravel().argsort().argsort() + 1.0 for n, v in found.items()}
        silent = {n: tuple(p.shape) for n, p in level.loaded.model.named_parameters() if n not in ranks}
        arrays = {n: v.reshape(found[n].shape).astype(np.float32) for n, v in ranks.items()}
        top = dataclasses.replace(
            like, part=key, units=1, estimator="sample", batch_size=None, no_gradient=silent, arrays=arrays,
            data_sha256="0" * 64,
        )  # fmt: skip
        ones = {n: np.ones_like(v) for n, v in arrays.items()}
        flat = dataclasses.replace(top, part="constant", arrays=ones)
        mask = ratio_mask(top, [flat], density=density, per=per, modules=MODULES)
        mask.write(path)
    return name


def _random(level: Level, like: str, name: str, draw: int) -> str:
    """Name of a random mask with the numbers of another one."""
    path = level.space.mask_path(name)
    if not path.exists():
        whole = mmsurgery.Mask.load(level.space.mask_path(like))
        random_mask(whole, draw).write(path)
    return name


def _curve(level: Level, way: str, mask: str | None, name: str, *, density: float = 1.0, **budget: Any) -> list[Point]:
    space, items = level.space, {}
    rate = recipe_of(AnchoredAscent.budget, space.settings.recipe).learning_rate
    for column in space.benchmark.columns(space.source):
        items[column] = level.once(f"items {column}", functools.partial(space.items, column))
    made = apply(
        space,
        WAYS[way]["method"],
        mask=mask,
        scope=WAYS[way]["scope"] if mask else None,
        start=level.model,
        name=name,
        eval_every=9,
        learning_rate=rate if way == "kept" else rate * density**-0.5,
        **budget,
    )
    return unpack(read_record(made.path)["evaluations"], {column: len(each) for column, each in items.items()})


def _target(level: Level) -> float:
    gold = read_items(level.space.eval_path("gold"))["forget_vqa"]
    return float(np.mean([each.correct for each in gold])) + 0.05


def _found(level: Level, curve: Sequence[Point]) -> dict[str, Any]:
    """Utility at matched forgetting, and the step where that is."""
    point, last = at_matched_forgetting(curve, _target(level)), accuracies(curve[-1].correct)
    found: dict[str, Any] = {"forget at the end": last["forget_vqa"], "utility": None, "step": None}
    if point is not None:
        found |= {"utility": utility(accuracies(point.correct)), "step": point.step}
    return found


def _again(level: Level, density: float, draw: int | None) -> dict[str, Any]:
    """Stages, each from the last one's model, with a mask made of that (or a random one, of its numbers)."""
    curve: list[Point] = []
    key = "ratio" if draw is None else f"random-{draw}"
    now = level
    for stage in range(STAGES):
        name = f"hunt.again.{key}-{density:g}.stage{stage}"
        mask = _mask(now, "again", density, functools.partial(_ratio, now))
        if draw is not None:
            mask = _random(now, mask, f"{mask}-random-{draw}", STAGES * draw + stage)
        before = curve[-1].step if curve else 0.0
        points = _curve(now, "again", mask, name, density=density, epochs=EPOCHS // STAGES, seed=stage)
        curve += [Point(before + each.step, each.correct) for each in points[1 if curve else 0 :]]
        if accuracies(curve[-1].correct)["forget_vqa"] <= _target(level):
            break
        now = Level(level.space, name)
    return _found(level, curve)


def hunt(folder: Path, out: Path) -> None:
    level, known = Level(mmsurgery.open_workspace(folder)), _read(out)
    entry = known.setdefault(folder.name, {})

    def tried(key: str, run: Callable[[], dict[str, Any]]) -> None:
        if key in entry:
            return
        entry[key] = run()
        now = _read(out)
        now.setdefault(folder.name, {}).update(entry)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(now, indent=1))
        print(folder.name, key, entry[key], flush=True)

    def masked(key: str, way: str, density: float, mask: Callable[[], str | None]) -> None:
        def run() -> dict[str, Any]:
            mask_name = mask()
            name = f"hunt.{way}.{mask_name or 'none'}"
            return _found(level, _curve(level, way, mask_name, name, density=density, epochs=EPOCHS))

        tried(key, run)

    def chosen(key: str, density: float, per: str = "tensor") -> str:
        score = CANDIDATES[key][1] if key in CANDIDATES else _ratio
        return _mask(level, key, density, lambda: score(level), per)

    masked("none", "all", 1.0, lambda: None)
    masked("modules", "all", 1.0, lambda: chosen("ratio", 1.0))
    for way in ("all", "kept"):
        for density in DENSITIES if way == "all" else (0.1,):
            for key in CANDIDATES:
                masked(f"{way} {density:g} {key}", way, density, functools.partial(chosen, key, density))
            ratio = f"hunt-ratio-{density:g}"
            for draw in range(DRAWS):
                name = f"hunt-random-{density:g}-{draw}"
                drawn = functools.partial(_random, level, ratio, name, draw)
                masked(f"{way} {density:g} random-{draw}", way, density, drawn)
            spread = functools.partial(chosen, "layers", density, "overall")
            masked(f"{way} {density:g} layers", way, density, spread)
            name = f"hunt-layers-random-{density:g}"
            drawn = functools.partial(_random, level, f"hunt-layers-{density:g}", name, 0)
            masked(f"{way} {density:g} layers-random", way, density, drawn)
    tried("again 0.1 ratio", lambda: _again(level, 0.1, None))
    for draw in range(DRAWS):
        tried(f"again 0.1 random-{draw}", functools.partial(_again, level, 0.1, draw))


def _read(out: Path) -> dict[str, Any]:
    return dict(json.loads(out.read_text())) if out.exists() else {}


def page(known: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown: in %, means over levels; beside the random masks how far draws of one level scatter."""
    lines = ["| held to the mask | density | weights chosen by | utility | minus random | reached | step |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|")
    for key, words in (("none", "no mask"), ("modules", "all of language model and connector")):
        if any(key in entry for entry in known.values()):
            lines.append(f"| all | 100 % | {words} | {_row(known, [key], [])} |")
    wording = {**{key: words for key, (words, _) in CANDIDATES.items()}, **SHARES}
    for way in WAYS:
        for density in DENSITIES:
            draws = [f"{way} {density:g} random-{draw}" for draw in range(DRAWS)]
            if any(draws[0] in entry for entry in known.values()):
                lines.append(f"| {way} | {100 * density:g} % | random, of {DRAWS} draws | {_row(known, draws, [])} |")
            for key, words in wording.items():
                name = f"{way} {density:g} {key}"
                if any(name in entry for entry in known.values()):
                    lines.append(f"| {way} | {100 * density:g} % | {words} | {_row(known, [name], draws)} |")
    return "\n".join(lines) + "\n"


def _row(known: Mapping[str, Mapping[str, Any]], names: Sequence[str], beside: Sequence[str]) -> str:
    """The last four cells, of the runs of these names, and how far they are from others of the same level."""
    runs = {folder: [entry[name] for name in names if name in entry] for folder, entry in known.items()}
    there = {folder: _reached(each) for folder, each in runs.items() if _reached(each)}
    reached = f"{sum(map(len, there.values()))} of {sum(map(len, runs.values()))}"
    if not there:
        return f"- | - | {reached} | -"
    means = {folder: float(np.mean([each["utility"] for each in found])) for folder, found in there.items()}
    apart = []
    for folder, mean in means.items():
        if others := _reached([known[folder][name] for name in beside if name in known[folder]]):
            apart.append(mean - float(np.mean([each["utility"] for each in others])))
    cell = "-"
    if len(apart) > 1:
        cell = f"{100 * np.mean(apart):+.1f} ± {100 * np.std(apart, ddof=1) / len(apart) ** 0.5:.1f}"
    elif apart:
        cell = f"{100 * apart[0]:+.1f}"
    elif scatter := [np.var([each["utility"] for each in found], ddof=1) for found in there.values() if len(found) > 1]:
        cell = f"scatter {100 * np.mean(scatter) ** 0.5:.1f}"
    step = np.mean([each["step"] for found in there.values() for each in found])
    return f"{100 * np.mean(list(means.values())):.1f} | {cell} | {reached} | {step:.0f}"


def _reached(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in runs if each["utility"] is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("levels", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/hunt.json"))
    parser.add_argument("--page", action="store_true", help="print the table of what was found")
    chosen = parser.parse_args()
    if chosen.page:
        sys.stdout.write(page(_read(chosen.out)))
        return
    for folder in chosen.levels:
        hunt(folder, chosen.out)


if __name__ == "__main__":
    main()
