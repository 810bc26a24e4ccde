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
is as long as without a mask (at the same rate few weights do not get to matched forgetting). Figures are the utility
where Forget VQA first comes down to gold + 5 points, and what is left of it at the end; random masks that do not get
there run again for LONGER times the steps. Models and masks are artifacts of the level, so a run that was
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
from hunt_scores import CANDIDATES, Arrays, Level, ratio

import mmsurgery
from mmsurgery.evaluate.records import read_items
from mmsurgery.experiments.scores import Point, accuracies, at_matched_forgetting, unpack, utility
from mmsurgery.masks.controls import random_mask
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.methods.anchored_ascent import AnchoredAscent
from mmsurgery.methods.base import Term
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.method_settings import recipe_of
from mmsurgery.unlearn.record import read_record

if TYPE_CHECKING:
    from mmsurgery.methods.step import Step

DENSITIES = (0.02, 0.1)
DRAWS = 3
EPOCHS = 15
"""Of anchored ascent: twice its budget."""
LONGER = 3
"""Random masks that do not get to matched forgetting run so many times as long, to know what they keep there."""
STAGES = 5
"""Of way `again`: three epochs each."""
MODULES = "lm,connector"


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
        mask = _mask(now, "again", density, functools.partial(ratio, now))
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

    def masked(key: str, way: str, density: float, mask: Callable[[], str | None], times: int = 1) -> None:
        def run() -> dict[str, Any]:
            mask_name = mask()
            name = f"hunt.{way}.{mask_name or 'none'}{'.longer' if times > 1 else ''}"
            return _found(level, _curve(level, way, mask_name, name, density=density, epochs=times * EPOCHS))

        tried(key, run)

    def chosen(key: str, density: float, per: str = "tensor") -> str:
        score = CANDIDATES[key][1] if key in CANDIDATES else ratio
        return _mask(level, key, density, lambda: score(level), per)

    masked("none", "all", 1.0, lambda: None)
    masked("modules", "all", 1.0, lambda: chosen("ratio", 1.0))
    for way in ("all", "kept"):
        for density in DENSITIES if way == "all" else (0.1,):
            for key in CANDIDATES:
                masked(f"{way} {density:g} {key}", way, density, functools.partial(chosen, key, density))
            like = f"hunt-ratio-{density:g}"
            for draw in range(DRAWS):
                name = f"hunt-random-{density:g}-{draw}"
                drawn = functools.partial(_random, level, like, name, draw)
                key = f"{way} {density:g} random-{draw}"
                masked(key, way, density, drawn)
                if entry[key]["utility"] is None and way == "all":
                    masked(f"{key} longer", way, density, drawn, LONGER)
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
    lines = ["| held to the mask | density | weights chosen by | utility | minus random | reached | step | "]
    lines[0] += "Forget VQA at the end | minus random |"
    lines.append("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for key, words in (("none", "no mask"), ("modules", "all of language model and connector")):
        if any(key in entry for entry in known.values()):
            lines.append(f"| all | 100 % | {words} | {_row(known, [key], [], [])} |")
    wording = {**{key: words for key, (words, _) in CANDIDATES.items()}, **SHARES}
    for way in WAYS:
        for density in DENSITIES:
            share = f"{100 * density:g} %"
            draws = [f"{way} {density:g} random-{draw}" for draw in range(DRAWS)]
            longer = [f"{each} longer" for each in draws]
            for random, words in ((draws, f"random, of {DRAWS} draws"), (longer, f"the same, {LONGER} times as long")):
                if any(random[0] in entry for entry in known.values()):
                    lines.append(f"| {way} | {share} | {words} | {_row(known, random, [], [])} |")
            for key, words in wording.items():
                name = f"{way} {density:g} {key}"
                if any(name in entry for entry in known.values()):
                    lines.append(f"| {way} | {share} | {words} | {_row(known, [name], [*draws, *longer], draws)} |")
    return "\n".join(lines) + "\n"


def _row(
    known: Mapping[str, Mapping[str, Any]], names: Sequence[str], beside: Sequence[str], ended: Sequence[str]
) -> str:
    """The cells of the runs of these names.

    Args:
        beside, ended: runs of the same level that utility, and what is left of Forget VQA, are held against.
    """
    runs = {folder: [entry[name] for name in names if name in entry] for folder, entry in known.items()}
    there = {folder: _reached(each) for folder, each in runs.items() if _reached(each)}
    reached = f"{sum(map(len, there.values()))} of {sum(map(len, runs.values()))}"
    kept = _against(known, there, "utility", beside)
    step = f"{np.mean([each['step'] for found in there.values() for each in found]):.0f}" if there else "-"
    left = _against(known, {folder: each for folder, each in runs.items() if each}, "forget at the end", ended)
    return f"{kept} | {reached} | {step} | {left}"


def _against(
    known: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    what: str,
    names: Sequence[str],
) -> str:
    """Mean over levels of a figure of runs; then how far that is from runs of these names, or how far they scatter."""
    if not runs:
        return "- | -"
    means = {folder: float(np.mean([each[what] for each in found])) for folder, found in runs.items()}
    apart = []
    for folder, mean in means.items():
        others = [known[folder][name][what] for name in names if name in known[folder]]
        if others := [each for each in others if each is not None]:
            apart.append(mean - float(np.mean(others)))
    cell = "-"
    if len(apart) > 1:
        cell = f"{100 * np.mean(apart):+.1f} ± {100 * np.std(apart, ddof=1) / len(apart) ** 0.5:.1f}"
    elif apart:
        cell = f"{100 * apart[0]:+.1f}"
    elif scatter := [np.var([each[what] for each in found], ddof=1) for found in runs.values() if len(found) > 1]:
        cell = f"scatter {100 * np.mean(scatter) ** 0.5:.1f}"
    return f"{100 * np.mean(list(means.values())):.1f} | {cell}"


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
