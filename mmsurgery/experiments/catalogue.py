"""The experiments by name."""

from __future__ import annotations

import difflib

from mmsurgery.errors import UsageError
from mmsurgery.experiments.beyond import BEYOND, BEYOND_ABLATIONS, BEYOND_EQUAL, BEYOND_MASKS, TRIED
from mmsurgery.experiments.paper import ABLATIONS, AUDIT, CASES, CONTROLS, FIGURE4, FIGURE5, FIGURE6, TABLE1, TABLE2
from mmsurgery.experiments.rows import Experiment

_ELSEWHERE = {"table3": "cases", "table6": "cases"}
"""Tables of the paper that have another name here."""
_ALIKE, _DIGITS = 0.7, "0123456789"
"""From which likeness on a name is guessed at."""
EXPERIMENTS = {
    each.name: each
    for each in (
        TABLE1,
        TABLE2,
        CONTROLS,
        CASES,
        FIGURE4,
        FIGURE5,
        FIGURE6,
        ABLATIONS,
        AUDIT,
        TRIED,
        BEYOND,
        BEYOND_EQUAL,
        BEYOND_MASKS,
        BEYOND_ABLATIONS,
    )
}


def find(name: str) -> Experiment:
    """
    Raises:
        UsageError: if there is no experiment of that name.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    if name in _ELSEWHERE:
        raise UsageError(f"no experiment '{name}'", f"mmsurgery experiment {_ELSEWHERE[name]}, which makes it")
    # another number is no slip of the pen
    close = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=_ALIKE)
    guess = "" if not close or name.rstrip(_DIGITS) == close[0].rstrip(_DIGITS) else f"did you mean '{close[0]}'? "
    raise UsageError(f"no experiment '{name}'", f"{guess}known: {', '.join(sorted(EXPERIMENTS))}")
