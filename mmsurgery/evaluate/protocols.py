"""Under which rules scores are taken, and the name that stands beside every number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmsurgery.errors import UsageError, unknown

LIKELIHOOD, OFFICIAL, OPEN = "likelihood", "official", "open"
PROTOCOLS = (LIKELIHOOD, OFFICIAL, OPEN)
DEMONSTRATED = ("retain", "scored")
"""Whose solved questions stand before the one that is asked: those of one retain person, who is not scored then, or
those of one person of the very column, as the official code draws them: a forget person for forget columns."""


@dataclass(frozen=True)
class Protocol:
    """`likelihood` scores options; `official` has answers written in the benchmark's own way; `open` has the questions
    of `likelihood` answered without their options."""

    name: str = LIKELIHOOD
    shots: int = 0
    """People whose solved questions stand before each question: 0 or 1."""
    demonstrations: str = "retain"
    """One of `DEMONSTRATED`."""

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise unknown("protocol", self.name, PROTOCOLS)
        if self.demonstrations not in DEMONSTRATED:
            raise unknown("choice of demonstrations", self.demonstrations, DEMONSTRATED)
        if self.shots not in (0, 1):
            raise UsageError(
                f"{self.shots} shots are impossible", "use 0 or 1: more people do not fit the model's context"
            )
        if self.shots and self.name != OFFICIAL:
            raise UsageError(f"protocol '{self.name}' is zero-shot", "add --protocol official, or leave --shots out")
        if not self.shots and self.demonstrations != "retain":
            raise UsageError("nothing is demonstrated without shots", "add --shots 1, or leave --demonstrations out")

    @property
    def id(self) -> str:
        """`likelihood`, `open`, `official`, `official-1-shot` or `official-1-shot-scored`."""
        shots = f"-{self.shots}-shot" if self.shots else ""
        return f"{self.name}{shots}" + ("-scored" if self.demonstrations == "scored" else "")

    @classmethod
    def of_id(cls, text: str) -> Protocol:
        """The protocol of an id; raises as the constructor."""
        name, *rest = text.split("-")
        return cls(name, int(rest[0]) if rest and rest[0].isdigit() else 0, "scored" if "scored" in rest else "retain")

    @property
    def options(self) -> str:
        """Its options on the command line."""
        shots = f" --shots {self.shots}" if self.shots else ""
        chosen = " --demonstrations scored" if self.demonstrations == "scored" else ""
        return ("" if self.name == LIKELIHOOD else f" --protocol {self.name}") + shots + chosen

    def settings(self, budget: int, new_tokens: int) -> dict[str, Any]:
        """What its numbers depend on."""
        if self.name == LIKELIHOOD:
            return {"protocol": self.id, "budget": budget}
        if self.name == OPEN:
            return {"protocol": self.id, "budget": budget, "new_tokens": new_tokens}
        return {"protocol": self.id, "budget": budget, "shots": self.shots, "new_tokens": new_tokens}


def family(protocol_id: str) -> str:
    """`likelihood`, `official` or `open`, of a protocol's id."""
    return protocol_id.partition("-")[0]
