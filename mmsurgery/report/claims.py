"""What the paper says, held against an experiment's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmsurgery.errors import InputRefused
from mmsurgery.report.results import Results
from mmsurgery.report.texts import NAME, SENTENCE, cut

VERDICTS: Mapping[str, str] = {"holds": "holds", "does not hold": "fails", "not resolved": "open"}
"""Verdict -> class of the style."""
NO_TEST = "no test"
"""What the evidence says of a verdict by numbers alone: such a one has no colour."""


@dataclass(frozen=True)
class Claim:
    claim: str
    source: str
    """Where it is said."""
    verdict: str
    mark: str
    evidence: str


def claims(results: Results, panel: str) -> list[Claim]:
    """The claims of a panel; often none."""
    found = []
    for entry in results.found.get("claims").get(panel).entries():
        verdict = entry.get("verdict").text()
        if verdict not in VERDICTS:
            raise InputRefused(f"{entry.where}: '{cut(verdict, NAME)}' is no verdict", "make it again")
        mark = VERDICTS[verdict]
        if NO_TEST in entry.get("evidence").text():
            verdict, mark = f"{verdict}, {NO_TEST}", "open"
        texts = [cut(entry.get(key).text(), SENTENCE) for key in ("claim", "source", "evidence")]
        found.append(Claim(texts[0], texts[1], verdict, mark, texts[2]))
    return found
