"""Tables of what the audit says of a grid's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmsurgery.audit.probes import PROBES
from mmsurgery.experiments.findings import label_of
from mmsurgery.experiments.text_table import TextTable

Results = Mapping[str, Any]
Panel = Mapping[str, Any]


def audit_tables(results: Results, panel: Panel) -> Iterator[TextTable]:
    """What each probe says of each row, and how often each proved itself; relearning by its strength."""
    found = results.get("audit", {}).get(panel["key"])
    if not found:
        return
    probes = [name for name in PROBES if name in found["trio"]]
    rows = []
    for key, said in found["rows"].items():
        cells = [_audited(said[name]) if name in said else "-" for name in probes]
        rows.append((label_of(results, key), *cells))
    proved = [found["trio"][name] for name in probes]
    rows.append(("proved itself", *(f"{each['reliable']} of {each['of']}" for each in proved)))
    note = (
        "Each probe's worst way of asking, minus gold's (of collateral minus vanilla's), in points with 95 % interval; "
        "* resolved after adjustment for the choice of the worst way and for the rows (Holm); then the verdicts of "
        "single runs. The models stand where Forget VQA first came down to gold (or chance) + 5 points. A probe proves "
        "itself where vanilla fails it, gold passes, and a destroyed model is seen to have collapsed; where it does "
        "not, its column says nothing."
    )
    titles = [PROBES[name].title for name in probes]
    yield TextTable(f"{panel['label']}: audit at matched forgetting", ("", *titles), tuple(rows), (note,))
    yield from _strengths(results, panel, found["rows"])


def _strengths(results: Results, panel: Panel, audited: Mapping[str, Any]) -> Iterator[TextTable]:
    found = {key: said["relearning"]["strengths"] for key, said in audited.items() if _has_strengths(said)}
    if not found:
        return
    steps = next(iter(found.values()))["steps"]
    attacks = sorted({attack for each in found.values() for attack in each["attacks"]})
    rows = []
    for key, each in found.items():
        ends = (each["attacks"].get(attack, {}).get("above", [None])[-1] for attack in attacks)
        rows.append((label_of(results, key), *map(_ranged, each["above"]), *map(_ranged, ends)))
    header = ("", *(f"{step} steps" for step in steps), *(f"{attack}, {steps[-1]} steps" for attack in attacks))
    note = (
        "What is answered right after so many steps of relearning, minus gold's after as many, in points: mean over "
        "attacks and runs, then of each attack; in brackets the lowest and the highest run. The test is in the table "
        "above, of each run's worst attack and strength."
    )
    yield TextTable(f"{panel['label']}: relearning by strength", header, tuple(rows), (note,))


def _has_strengths(said: Mapping[str, Any]) -> bool:
    return bool(said.get("relearning", {}).get("strengths"))


def _ranged(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['mean']:+.1f} ({round(100 * value['low'])} to {round(100 * value['high'])})"


def _audited(said: Mapping[str, Any]) -> str:
    verdicts = ", ".join(f"{verdict} {count}" for verdict, count in said["verdicts"].items())
    if said["difference"] is None:
        return verdicts
    low, high = said["ci95"]
    mark = "*" if said["resolved"] else ""
    return f"{100 * said['difference']:+.1f}{mark} ({round(100 * low)} to {round(100 * high)}); {verdicts}"
