"""Points of `growth.py` as curves: exponents of a power law through them, and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import page

FRESH = (
    "the system's share of the time, which grows with them on a CPU: memory that one step frees goes back to the "
    "system, which clears its pages for the next"
)
"""Why the largest models take more than their weights would have it."""
ABOUT = {
    "saliency": f"Linear in samples, and in weights but for {FRESH}; memory: weights and one accumulator, beside "
    "activations and 256 MiB of encoded pictures at most.",
    "masks": "Linear in weights as long as the files stay in the page cache; memory: the packed mask alone.",
    "training": f"Linear in steps, and in weights but for {FRESH}; memory: gradients and moments.",
    "diff": "Linear in weights; memory does not grow.",
    "evaluation": "Linear in weights and questions; memory: keys and values of one pass, which do not grow with the "
    "questions, the tokens of all questions and features of their pictures, and 256 MiB of encoded pictures at most.",
}


@dataclass(frozen=True)
class Curve:
    """Points that differ in one thing."""

    stage: str
    along: str
    family: str
    size: str
    """Of the model, where samples grow; else nothing."""
    points: Sequence[Mapping[str, Any]]

    def exponent(self, what: str) -> float | None:
        """Of `what` over weights or samples, by least squares of logarithms; None of fewer than three points."""
        known = [each for each in self.points if each.get(what)]
        if len(known) < 3:
            return None
        grown = np.log([each[self.along] for each in known])
        return float(np.polyfit(grown, np.log([each[what] for each in known]), 1)[0])

    def last(self, what: str) -> float | None:
        """The exponent between the two largest points: what is there at every size weighs least there."""
        known = [each for each in self.points if each.get(what)]
        if len(known) < 2:
            return None
        one, other = known[-2:]
        return math.log(other[what] / one[what]) / math.log(other[self.along] / one[self.along])


def grouped(found: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Those along weights first, whatever was measured last."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for each in found:
        size = each["size"] if each["along"] == "samples" else ""
        groups.setdefault((each["stage"], each["along"], each["family"], size), []).append(each)
    weights_first = sorted(groups.items(), key=lambda pair: pair[0][1] != "weights")
    return [Curve(*key, sorted(mine, key=lambda each: each[key[1]])) for key, mine in weights_first]


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """A table of curves for each stage, on each device; nothing where there are no points."""
    if not found:
        return ""
    text = (
        "Time, and memory beyond what the process had with the model loaded, each point in a process of its own "
        "(`python benchmarks/growth.py`). An exponent of 1 is linear, of 0 does not grow; the first is that of all "
        "points, the second of the two largest. `system, %` is the part of the CPU time that the system took, where it "
        "was kept.\n"
    )
    for device in dict.fromkeys(each["device"] for each in found):
        for stage in (each for each in ABOUT if any(p["stage"] == each and p["device"] == device for p in found)):
            mine = [each for each in found if each["stage"] == stage and each["device"] == device]
            text += f"\n### {page.TITLES[stage]}, {device}\n\n{ABOUT[stage]}\n\n"
            text += "| model | grows | points | seconds | exponent | system, % | MB | exponent |\n"
            text += "|---|---|---|---|---:|---|---|---:|\n"
            for curve in grouped(mine):
                text += row(curve)
    return text


def row(curve: Curve) -> str:
    known = [each for each in curve.points if "skipped" not in each]
    skipped = [each for each in curve.points if "skipped" in each]
    named = [each["size"] if curve.along == "weights" else f"{each['samples']:,}" for each in known]
    named += [f"{each['size']}: {each['skipped']}" for each in skipped]
    seconds = " ".join(page.number(each["seconds"]) for each in known)
    memory = " ".join(page.number(each["bytes"] / 1e6) for each in known)
    exponents = [
        ", ".join("-" if value is None else f"{value:.2f}" for value in (curve.exponent(what), curve.last(what)))
        for what in ("seconds", "bytes")
    ]
    cells = [
        f"{curve.family} {curve.size}".strip(),
        curve.along,
        " ".join(named),
        seconds,
        exponents[0],
        _system(known),
        memory,
        exponents[1],
    ]
    return f"| {' | '.join(cells)} |\n"


def _system(known: Sequence[Mapping[str, Any]]) -> str:
    """Percents of the points of a curve; nothing where none is known."""
    shares = [
        100 * each["system_seconds"] / each["cpu_seconds"] if "system_seconds" in each else None for each in known
    ]
    return (
        " ".join("-" if each is None else f"{each:.0f}" for each in shares)
        if any(each is not None for each in shares)
        else ""
    )
