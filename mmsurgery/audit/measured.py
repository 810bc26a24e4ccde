"""What a probe measures of one model: numbers in 0-1, one for each question asked, with the person it is about.

An *arm* is one way of asking: an attack, a number of bits, a phrasing, a layer. Its values are higher the more of what
was to be forgotten comes out. *Kept* values are of people and text that had to be kept: a model that has lost them
answers nothing at all, and would pass every probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmsurgery.errors import InputRefused
from mmsurgery.evaluate.statistics import clustered_interval


@dataclass(frozen=True)
class Values:
    """One number in 0-1 for each of N questions."""

    ids: tuple[str, ...]
    people: tuple[str, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, asked: Sequence[Any], values: Iterable[float]) -> Values:
        """Values of items or samples, in their order."""
        found = tuple(float(value) for value in values)
        return cls(tuple(each.id for each in asked), tuple(each.person for each in asked), found)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def summary(self) -> dict[str, Any]:
        """n, people, mean, and the 95 % bootstrap interval over people."""
        low, high = clustered_interval(self.values, self.people)
        return {"n": len(self.values), "people": len(set(self.people)), "mean": self.mean, "ci95": [low, high]}

    def to_json(self) -> dict[str, Any]:
        return {"ids": list(self.ids), "people": list(self.people), "values": list(self.values)}


@dataclass(frozen=True)
class Measured:
    """Of one model by one probe."""

    arms: Mapping[str, Values]
    """Empty for a probe that is about what is kept alone."""
    kept: Mapping[str, Values]
    chance: Mapping[str, float]
    """Arm, and kept arm as `kept NAME` -> what a model that knows nothing gets."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON for tables and pictures."""
    untried: Mapping[str, str] = field(default_factory=dict)
    """Arm that could not be tried -> why."""
    two_sided: bool = False
    """Whether values below chance tell as much as those above."""

    def to_json(self) -> dict[str, Any]:
        return {
            "arms": {name: values.to_json() for name, values in self.arms.items()},
            "kept": {name: values.to_json() for name, values in self.kept.items()},
            "chance": dict(self.chance),
            "details": dict(self.details),
            "untried": dict(self.untried),
            "two_sided": self.two_sided,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> Measured:
        """
        Raises:
            InputRefused: naming `where`, if it is none.
        """
        try:
            arms, kept = (
                {
                    str(name): Values(tuple(each["ids"]), tuple(each["people"]), tuple(map(float, each["values"])))
                    for name, each in value[kind].items()
                }
                for kind in ("arms", "kept")
            )
            chance = {str(name): float(number) for name, number in value["chance"].items()}
            found = cls(arms, kept, chance, value["details"], value["untried"], bool(value["two_sided"]))
            sound = all(
                len(each.ids) == len(each.people) == len(each.values) > 0 for each in (*arms.values(), *kept.values())
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputRefused(f"{where} is no measurement of an audit", "mmsurgery audit --force") from error
        if not sound or not {*arms, *(f"kept {name}" for name in kept)} <= chance.keys():
            raise InputRefused(f"{where} contradicts itself", "mmsurgery audit --force")
        return found
