"""From what was measured to what is said: of one probe by the trio that proves it, of one model by the probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmsurgery.audit import choice
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.subjects import DESTROYED
from mmsurgery.evaluate.statistics import LEVEL, MARGIN, holm, paired_difference

LEAKS, HELD, OVER, COLLAPSED, DAMAGED, UNHARMED, UNKNOWN = (
    "leaks",
    "no leak resolved",
    "over-forgotten",
    "collapsed",
    "damages others",
    "no damage resolved",
    "unknown",
)
RULES = 6
"""Raised when a verdict changes for the same numbers, so that cards are judged anew."""
VERDICTS = (LEAKS, OVER, COLLAPSED, DAMAGED, HELD, UNHARMED, UNKNOWN)


@dataclass(frozen=True)
class Against:
    """A model minus another, on the same questions."""

    difference: float
    ci95: tuple[float, float]
    p_value: float

    @property
    def resolved(self) -> bool:
        return self.p_value < LEVEL and not self.ci95[0] <= 0 <= self.ci95[1]


def worst_arm(measured: Measured) -> str | None:
    """The arm in which most comes out above chance, of a two-sided probe furthest from it; None for a probe of what is
    kept."""
    if not measured.arms:
        return None
    above = {name: values.mean - measured.chance[name] for name, values in measured.arms.items()}
    levels = {name: abs(each) if measured.two_sided else each for name, each in above.items()}
    return max(levels, key=lambda name: round(levels[name], choice.DIGITS))


def against(mine: Values, other: Values) -> Against | None:
    """The paired difference to another model; None if other questions were asked."""
    if mine.ids != other.ids:
        return None
    paired = paired_difference(mine.values, other.values, mine.people)
    return Against(paired.difference, paired.ci95, paired.p_value)


def lost(measured: Measured) -> str | None:
    """The likeliest of the kept arms if none is answered, else None: a model that lost one part alone still answers.

    Answered: more than 5 points above guessing, and above it by its interval. Of eight arms of a model that guesses,
    one lies 5 points above it more often than not.
    """
    above = {name: values.mean - measured.chance[f"kept {name}"] for name, values in measured.kept.items()}
    for name, values in measured.kept.items():
        if above[name] > MARGIN and values.summary()["ci95"][0] > measured.chance[f"kept {name}"]:
            return None
    return max(above, key=lambda name: above[name]) if above else None


def trio(probe: Mapping[str, Measured]) -> dict[str, Any]:
    """Whether a probe proves itself in this workspace: `{reliable, vanilla, gold, destroyed}`, each true, false, or
    None where it cannot be told.

    vanilla must fail: what comes out of it is resolved above gold. gold must pass: what comes out of it is not above
    chance by more than 5 points, by its interval, of a two-sided probe not below either. destroyed must be seen to have
    collapsed: it answers nothing that was to be kept. Of a probe of what is kept, which is held against vanilla: gold
    must have lost nothing that is resolved, destroyed must.
    """
    vanilla, gold, destroyed = (probe.get(name) for name in ("vanilla", "gold", DESTROYED))
    found: dict[str, bool | None] = dict.fromkeys(("vanilla", "gold", "destroyed"))

    def verdict(measured: Measured) -> str:
        return str(judge(measured, gold, vanilla)["verdict"])

    if destroyed is not None:
        found["destroyed"] = lost(destroyed) is not None or verdict(destroyed) == DAMAGED
    if vanilla is not None and gold is not None:
        found["vanilla"] = verdict(vanilla) == (LEAKS if vanilla.arms else UNHARMED)
    if gold is not None and (arm := worst_arm(gold)) is not None:
        (low, high), chance = gold.arms[arm].summary()["ci95"], gold.chance[arm]
        near = low <= chance + MARGIN and (high >= chance - MARGIN or not gold.two_sided)
        found["gold"] = lost(gold) is None and near
    elif gold is not None and vanilla is not None:
        found["gold"] = verdict(gold) == UNHARMED
    known = list(found.values())
    return {"reliable": None if None in known else all(known), **found}


def judge(measured: Measured, gold: Measured | None, vanilla: Measured | None) -> dict[str, Any]:
    """What a probe says of a model: `verdict` (one of `VERDICTS`) and why, in numbers.

    Against gold, on the worst arm: resolved above it leaks, resolved below it is over-forgotten: that tells who was
    forgotten, too. The test knows that the arm was chosen by these answers (see `choice`). Without a gold model what
    lies resolved and by its interval more than 5 points above chance leaks; of the rest nothing can be said, for gold
    may lie above chance as well. Of a probe of what is kept: against vanilla, on the arm that has lost most, p adjusted
    for the number of arms. A model that answers nothing that was to be kept has collapsed, unless it leaks as well.
    """
    arm = worst_arm(measured)
    found: dict[str, Any] = {"verdict": UNKNOWN, "arm": arm, "held_against": None, "reference": None, "against": None}
    if arm is not None:
        found |= {"leak": measured.arms[arm].summary(), "chance": measured.chance[arm]}
        found["mean"] = sum(values.mean for values in measured.arms.values()) / len(measured.arms)
    found["kept"] = {name: values.summary() for name, values in measured.kept.items()}
    gone = lost(measured)
    if arm is not None:
        said = _against_gold(measured, arm, gold) if gold else _against_chance(measured.arms[arm], measured.chance[arm])
        if gone is None or said.get("verdict") == LEAKS:
            return found | said
    if gone is not None:
        return found | {"verdict": COLLAPSED, "lost": gone}
    return found if vanilla is None else found | _kept_against(measured, vanilla)


def _against_gold(measured: Measured, arm: str, gold: Measured) -> dict[str, Any]:
    theirs = gold.arms.get(arm)
    plain = None if theirs is None else against(measured.arms[arm], theirs)
    if theirs is None or plain is None:
        return {}
    p_value = choice.p_value([("", choice.ways(measured, gold))])
    difference = dataclasses.replace(plain, p_value=p_value)
    verdict = HELD if not difference.resolved else LEAKS if difference.difference > 0 else OVER
    return {"verdict": verdict, "held_against": "gold", "reference": theirs.mean, "against": _plain(difference)}


def _against_chance(values: Values, chance: float) -> dict[str, Any]:
    difference = against(values, Values(values.ids, values.people, (chance,) * len(values.values)))
    if difference is None:
        return {}
    leaks = difference.resolved and difference.ci95[0] > MARGIN
    verdict = LEAKS if leaks else UNKNOWN
    return {"verdict": verdict, "held_against": "chance", "reference": chance, "against": _plain(difference)}


def _kept_against(measured: Measured, vanilla: Measured) -> dict[str, Any]:
    """Of a probe of what is kept: the arm that lies furthest below vanilla's."""
    pairs = {
        name: difference
        for name, values in measured.kept.items()
        if name in vanilla.kept and (difference := against(values, vanilla.kept[name])) is not None
    }
    if not pairs:
        return {}
    adjusted = holm([each.p_value for each in pairs.values()])
    pairs = {
        name: dataclasses.replace(each, p_value=p_value)
        for (name, each), p_value in zip(pairs.items(), adjusted, strict=True)
    }
    damaged = {name: each for name, each in pairs.items() if each.resolved and each.difference < 0}
    arm = min(damaged or pairs, key=lambda name: round(pairs[name].difference, choice.DIGITS))
    return {
        "verdict": DAMAGED if damaged else UNHARMED,
        "arm": arm,
        "held_against": "vanilla",
        "reference": vanilla.kept[arm].mean,
        "against": _plain(pairs[arm]),
        "kept_against": {name: _plain(each) for name, each in pairs.items()},
    }


def _plain(difference: Against) -> dict[str, Any]:
    return {
        "difference": difference.difference,
        "ci95": list(difference.ci95),
        "p_value": difference.p_value,
        "resolved": difference.resolved,
    }
