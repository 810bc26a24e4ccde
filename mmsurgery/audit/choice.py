"""The worst of several ways of asking is chosen by the answers that it is then judged by: of two models that know the
same, the one whose worst way is looked at seems to know more. The test here chooses it anew in every permutation.

P people, F permutations.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.audit.measured import Measured
from mmsurgery.evaluate.statistics import EXHAUSTIVE, FLIPS

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ways = Mapping[str, Any]
"""What came out of a run and of its reference: `arms` (way of asking -> people, values of the run, and those of the
reference on the same questions), `chance` by way, and `worst`, how a run's worst way is chosen: `above` or `from` its
chance, or `below` the reference."""


def ways(mine: Measured, theirs: Measured) -> Ways:
    """Every arm that could have been the worst: those that both were asked the same in."""
    kept = not mine.arms
    ours, others = (mine.kept, theirs.kept) if kept else (mine.arms, theirs.arms)
    same = [name for name, values in ours.items() if name in others and others[name].ids == values.ids]
    return {
        "arms": {
            name: {
                "people": list(ours[name].people),
                "values": list(ours[name].values),
                "reference": list(others[name].values),
            }
            for name in same
        },
        "chance": {name: mine.chance[f"kept {name}" if kept else name] for name in same},
        "worst": "below" if kept else "from" if mine.two_sided else "above",
    }


DIGITS = 9
"""To which levels are compared, so that ties between ways are ties whatever order they are added up in."""


def p_value(runs: Sequence[tuple[object, Ways]], *, seed: int = 0) -> float:
    """Two-sided p of a difference between runs and their references, each run in its worst way: where a person's
    answers are exchanged with those of the reference, in all ways and in all runs of a vanilla model, the worst way is
    chosen anew. Of one way alone that is a test by sign flips.

    Args:
        runs: (vanilla model, what came out of a run).
    """
    places: dict[tuple[object, str], int] = {}
    groups: dict[object, list[Ways]] = {}
    for vanilla, asked in runs:
        groups.setdefault(vanilla, []).append(asked)
        for arm in asked["arms"].values():
            for person in arm["people"]:
                places.setdefault((vanilla, person), len(places))
    kept = _exchanges(len(places), seed)
    found = np.zeros(len(kept))
    for vanilla, group in groups.items():
        for asked in group:
            found += _differences(asked, kept, {p: at for (v, p), at in places.items() if v == vanilla}) / len(group)
    found /= len(groups)
    observed, slack = found[0], 1e-9  # nobody is exchanged in the first
    tails = (found >= observed - slack).mean(), (found <= observed + slack).mean()
    return float(min(1.0, 2 * min(tails)))


def _exchanges(people: int, seed: int) -> Floats:
    """`[F, P]`, -1 where a person's answers are exchanged and 1 where not; all 2^P for up to 13 people, else 9999
    random ones besides that without any."""
    if people <= EXHAUSTIVE:
        return np.array(list(itertools.product((1.0, -1.0), repeat=people)))
    drawn = np.random.default_rng(seed).choice((1.0, -1.0), (FLIPS, people))
    return np.concatenate([np.ones((1, people)), drawn])


def _differences(asked: Ways, kept: Floats, places: Mapping[str, int]) -> Floats:
    """`[F]` of one run, in the way that is then its worst."""
    apart, level = [], []
    for name, arm in asked["arms"].items():
        mine, theirs = (
            np.asarray(arm[which], dtype=np.float64) / len(arm["people"]) for which in ("values", "reference")
        )
        people = [places[person] for person in arm["people"]]
        apart.append(kept @ np.bincount(people, weights=mine - theirs, minlength=kept.shape[1]))
        level.append((mine + theirs).sum() / 2 + apart[-1] / 2 - asked["chance"][name])
    order = {"above": np.array(level), "from": np.abs(level), "below": -np.array(apart)}[asked["worst"]]
    return np.asarray(np.stack(apart)[order.round(DIGITS).argmax(axis=0), np.arange(len(kept))])
