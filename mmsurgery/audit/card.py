"""The audit's card as rows for people: terminal, report and tables show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmsurgery.audit.judge import COLLAPSED, DAMAGED, HELD, LEAKS, OVER, UNKNOWN
from mmsurgery.audit.probes import PROBES
from mmsurgery.audit.subjects import DESTROYED, TRIO

HEADER = ("probe", "verdict", "where", "model", "gold", "vanilla", "chance", "against", "95 % interval", "n", "proved")


@dataclass(frozen=True)
class Line:
    """One probe of a card."""

    probe: str
    """Its title."""
    asks: str
    verdict: str
    arm: str
    """The worst one."""
    model: float | None
    gold: float | None
    vanilla: float | None
    chance: float | None
    reference: str
    """What it is held against: gold, or chance without one; of a probe of what is kept vanilla."""
    difference: float | None
    ci95: tuple[float, float] | None
    n: int | None
    people: int | None
    reliable: bool | None
    """Whether the probe proved itself here, None where that cannot be told."""
    why_not: str
    """What it failed by."""

    @property
    def cells(self) -> tuple[str, ...]:
        """As `HEADER` names them; accuracies in %."""
        low_high = "" if self.ci95 is None else f"{100 * self.ci95[0]:+.1f} to {100 * self.ci95[1]:+.1f}"
        return (
            self.probe,
            self.verdict,
            self.arm,
            *(_percent(value) for value in (self.model, self.gold, self.vanilla, self.chance)),
            "-" if self.difference is None else f"{100 * self.difference:+.1f}",
            low_high,
            "-" if self.n is None else f"{self.n} ({self.people})",
            {True: "yes", False: f"no: {self.why_not}", None: "unknown"}[self.reliable],
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def lines(record: Mapping[str, Any], model: str | None = None) -> list[Line]:
    """One line for each probe that was tried; of the card's model, or of one of its references."""
    name = str(model or record["model"])
    found = []
    for key in sorted(record["probes"], key=place):
        probe = record["probes"][key]
        judged, trio = probe["models"][name], probe["trio"]
        arm, kept = judged["arm"], not probe["arms"]
        where = f"kept {arm}" if kept else arm
        shown = {each: _mean(one, arm, kept) for each, one in probe["models"].items()}
        if not kept and arm in probe["arms"]:
            shown |= probe["arms"][arm]
        summary = judged["kept"].get(arm) if kept else judged.get("leak")
        difference = judged["against"]
        found.append(
            Line(
                probe=title(str(key)),
                asks=PROBES[key].asks if key in PROBES else "",
                verdict=judged["verdict"],
                arm=str(arm or judged.get("lost") or "-"),
                model=shown.get(name),
                gold=shown.get("gold"),
                vanilla=shown.get("vanilla"),
                chance=None if where is None else probe["chance"].get(where),
                reference=str(judged["held_against"]),
                difference=None if difference is None else difference["difference"],
                ci95=None if difference is None else tuple(difference["ci95"]),
                n=None if summary is None else summary["n"],
                people=None if summary is None else summary["people"],
                reliable=trio["reliable"],
                why_not=", ".join(_failed(each, probe) for each in TRIO if trio[each] is False),
            )
        )
    return found


def title(probe: str) -> str:
    """Of a probe; of one that is not known here its name."""
    return PROBES[probe].title if probe in PROBES else probe


def place(probe: str) -> int:
    """In the order of the probes; a file's keys are sorted."""
    return [*PROBES].index(probe) if probe in PROBES else len(PROBES)


def _failed(model: str, probe: Mapping[str, Any]) -> str:
    """How one of the trio did not come out as it must."""
    if model != DESTROYED and probe["models"][model]["verdict"] == COLLAPSED:
        return f"{model} collapsed"
    return f"{model} {'fails' if model == 'gold' else 'passes'}"


def _mean(judged: Mapping[str, Any], arm: str | None, kept: bool) -> float | None:
    if kept:
        return judged["kept"].get(arm, {}).get("mean") if arm is not None else None
    return judged.get("leak", {}).get("mean") if judged["arm"] == arm else None


def overall(record: Mapping[str, Any]) -> str:
    """The card in a sentence, of probes that proved themselves."""
    found = lines(record)
    sound = [line for line in found if line.reliable is not False]
    by = {verdict: [line.probe.lower() for line in sound if line.verdict == verdict] for verdict in _SAID}
    said = [f"{words}: {', '.join(by[verdict])}" for verdict, words in _SAID.items() if by[verdict]]
    held = sum(line.verdict == HELD for line in sound)
    doubted = [line.probe.lower() for line in found if line.reliable is False]
    if not said and held:
        said = [f"no leak resolved by {held} probe{'' if held == 1 else 's'}"]
    return "; ".join([*said, *([f"not reliable here: {', '.join(doubted)}"] if doubted else [])])


_SAID = {
    COLLAPSED: "collapsed under",
    LEAKS: "leaks under",
    OVER: "over-forgotten under",
    DAMAGED: "damage seen by",
    UNKNOWN: "unknown under",
}


def recovery(record: Mapping[str, Any]) -> list[str]:
    """How many steps of relearning bring each model half-way back, by arm."""
    found = []
    for arm, models in record["probes"].get("relearning", {}).get("steps_to_recover", {}).items():
        steps = ", ".join(
            f"{name} {'never' if step is None else f'{step:.0f}'}" for name, step in models.items() if name != DESTROYED
        )
        found.append(f"{arm}, steps until half-way from gold to vanilla: {steps}")
    return found


def profile(record: Mapping[str, Any]) -> list[str]:
    """What a probe reads off the language model layer by layer, beside what the model's mask selects there."""
    found = []
    for layer, read in sorted((record["profile"] or {}).items(), key=lambda pair: int(pair[0].partition(".")[2])):
        shares = {each: share for each, share in read.items() if each not in ("mask", DESTROYED)}
        said = ", ".join(f"{each} {_percent(share)}" for each, share in shares.items())
        beside = f"; the mask selects {_percent(read['mask'])} % of its weights" if "mask" in read else ""
        found.append(f"{layer}: {said}{beside}")
    return found


def one_by_one(record: Mapping[str, Any]) -> list[str]:
    """What forgetting each person alone costs: themselves, and everybody else."""
    probe = record["probes"].get("collateral", {}).get("details", {}).get(record["model"], {})
    found = probe.get("one by one", {})
    said = []
    for person, row in zip(found.get("forgotten", ()), found.get("drops", ()), strict=True):
        drop = dict(zip(found["people"], row, strict=True))
        own = drop.pop(person, None)  # who has no test question is not asked
        worst = max(drop, key=lambda other: drop[other])
        mean = sum(drop.values()) / len(drop)
        theirs = "" if own is None else f"{_points(own)} for them, "
        said.append(
            f"{person} forgotten alone: {theirs}{_points(mean)} for the others, "
            f"most for {worst} ({_points(drop[worst])})"
        )
    return said


def _points(drop: float) -> str:
    return f"{-100 * drop:+.1f}"


def ways(record: Mapping[str, Any]) -> list[str]:
    """Of paraphrase the mean over all ways of asking beside the worst, and how often each place of the options is
    chosen."""
    probe = record["probes"].get("paraphrase")
    if probe is None:
        return []
    worst, name = probe["models"][record["model"]]["arm"], record["model"]
    shown = [each for each in dict.fromkeys((name, "gold", "vanilla")) if each in probe["models"]]
    means = ", ".join(
        f"{each} {_percent(probe['arms'][worst].get(each))} and {_percent(probe['models'][each].get('mean'))}"
        for each in shown
    )
    said = [f"worst ({worst}) and mean of {len(probe['arms'])} ways of asking: {means}"]
    details = probe["details"][name]
    for way, places in details.get("places", {}).items():
        asked = sum(each["chosen"] for each in places.values())
        found = ", ".join(
            f"{place}: {_percent(each['chosen'] / asked)} ({_percent(each['right'] / asked)})"
            for place, each in sorted(places.items(), key=lambda pair: int(pair[0]))
        )
        said.append(f"{way}, how often each place of the options is chosen (is right): {found}")
    if turned := details.get("turned"):
        said.append(f"another option is chosen when the list is turned round: {turned['otherwise']} of {turned['n']}")
    return said


def damage(record: Mapping[str, Any]) -> list[str]:
    """What rounding adds to a model's accuracy, less what it adds to vanilla's: that is damage of any model."""
    back = record["probes"].get("quantisation", {}).get("brought_back", {}).get(record["model"], {})
    found = []
    for arm, each in back.items():
        low, high = each["ci95"]
        found.append(
            f"{arm} adds {100 * each['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) more to "
            f"{record['model']} than to vanilla"
        )
    return found


def rounding(record: Mapping[str, Any]) -> list[str]:
    """Share of the weights' updates that another level is rounded to."""
    return [
        f"{name}: {each['survive']:,} of {each['changed']:,} updated weights are rounded to another level"
        for name, each in (record["rounding"] or {}).items()
    ]
