"""What was measured, for people: lines in a terminal, and the Markdown page of the documentation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINE = f"{'model':18} {'figure':58} {'':>9} {'range':>15} {'wall':>7} {'plain':>9} {'limit':>7}"
TITLES = {
    "saliency": "Saliency",
    "masks": "Masks",
    "training": "Training",
    "diff": "Diff",
    "evaluation": "Evaluation",
}
HEAD = """# What it costs

Made by `make bench` and `python benchmarks/bench.py --page docs/performance.md` on models of random weights; nothing
here is written by hand. A figure is a ratio of two sides that took turns in one process: its median over the rounds,
the least and the greatest, by CPU time and beside it by the wall clock (for files that are read cold by the wall clock
alone, whose range is wide: the disk is shared). "Plain" is the straightforward way, written down in
`benchmarks/baseline.py`, as a ratio to the same side; where no sides are compared, in the figure's own unit. Limits
hold from 30 million weights on; in brackets stands a goal beyond them. A figure is "kept" within its limit, "stretch"
within the goal, "missed" beyond the limit, by its median before it is rounded; one without a limit is there to be
known.
"""
WHY = {
    "masked LoRA": "A masked product of two small matrices is a whole matrix, and its gradient the whole gradient of a "
    "weight, which LoRA does without: half as many multiplications more, beside making the masked product and "
    "taking it to the two small matrices, which reads and writes whole matrices and weighs most where steps are short.",
    "saliency `sample`, batches of 4": "Every sample's own gradient of a weight is made and squared apart, as in the "
    "loop, so that only the passes gain from a batch: the fewer tokens a sample has and the wider the layers are, the "
    "less of the whole that is.",
    "peak of saliency": "In a deep and narrow model the activations of these few tokens are a large part of the "
    "weights: a bare pass, whose gradients take what an accumulator does, needs what stands beside it. Computed "
    "twice, as `--memory` has them where there is no room, they take less, the less the more weights a layer has.",
}
"""Beginning of a figure's name -> why it misses its limit, where that is known."""


def number(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) < 1000 else f"{value:,.0f}"


def span(figure: Mapping[str, Any]) -> str:
    return "" if figure["low"] is None else f"{number(figure['low'])} - {number(figure['high'])}"


def limit(figure: Mapping[str, Any]) -> str:
    if figure["limit"] is None:
        return ""
    return number(figure["limit"]) + (f" [{number(figure['stretch'])}]" if figure["stretch"] is not None else "")


def line(figure: Mapping[str, Any]) -> str:
    what = f"{figure['what']}{' / ' + figure['against'] if figure['against'] else ''}"
    value = f"{number(figure['value'])} {figure['unit']}" if figure["unit"] != "x" else f"{number(figure['value'])}x"
    return (
        f"{figure['model']:18} {what:58} {value:>9} {span(figure):>15} {number(figure['wall']):>7} "
        f"{number(figure['baseline']):>9} {limit(figure):>7} {figure['verdict']}"
    )


def page(runs: Sequence[Mapping[str, Any]], grown: str = "") -> str:
    """The whole page.

    Args:
        grown: what `curves.markdown` says; nothing leaves growth out.
    """
    text = HEAD
    for device in dict.fromkeys(run["device"] for run in runs):
        mine = [run for run in runs if run["device"] == device]
        text += f"\n## On {'a GPU' if device.startswith('cuda') else 'a CPU'}\n\n{described(mine)}"
        for run in mine:
            text += f"\n### {TITLES[run['stage']]}\n\n{table(run['figures'])}"
    if not any(run["device"].startswith("cuda") for run in runs):
        text += "\nNo GPU was there: figures of one are left out; what was seen on one is in [plan.md](plan.md).\n"
    if grown:
        text += f"\n## Growth\n\n{grown}"
    return text


def described(runs: Sequence[Mapping[str, Any]]) -> str:
    """Machine and versions; those of the first run, and which runs are of others. When and how each model's figures
    were taken."""
    machine = runs[0]["machine"]
    shown = {key: value for key, value in machine.items() if key != "note" and value is not None}
    text = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())
    other = [run["stage"] for run in runs if run["machine"] != machine]
    note = f" Of another machine or other versions: {', '.join(other)}." if other else ""
    taken: dict[str, dict[str, None]] = {}
    for run in runs:
        for each in run["figures"]:
            how = f"{each['when']}, {each['rounds']} rounds, {each['tokens']} tokens a sample, load {each['load']}"
            taken.setdefault(f"{run['stage']}, {how}", {})[each["model"]] = None
    lines = "".join(f"- {how}: {', '.join(models)}\n" for how, models in taken.items())
    return f"{text}.{note}\n\n{lines}"


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| model | figure | against | | range | by wall | plain | limit | |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for each in figures:
        unit = "" if each["unit"] == "x" else f" {each['unit']}"
        verdict = f"**{each['verdict']}**" if each["verdict"] == "missed" else each["verdict"]
        cells = [
            each["model"], each["what"], each["against"], number(each["value"]) + unit, span(each),
            number(each["wall"]), number(each["baseline"]), limit(each), verdict,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    missed = [each["what"] for each in figures if each["verdict"] == "missed"]
    reasons = [f"\nMissed, {name}: {why}" for name, why in WHY.items() if any(each.startswith(name) for each in missed)]
    return "\n".join([*lines, *reasons]) + "\n"


def points(store: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in store.read_text().splitlines()] if store.exists() else []
