"""Audit cards for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.audit import card
from mmsurgery.audit.judge import COLLAPSED, DAMAGED, HELD, LEAKS, OVER, UNHARMED
from mmsurgery.audit.run import read_audit
from mmsurgery.errors import InputRefused
from mmsurgery.report.fields import Fields
from mmsurgery.report.origin import Origin, origin
from mmsurgery.report.results import Results
from mmsurgery.report.texts import NAME, SENTENCE, cut

MARKS = {HELD: "holds", UNHARMED: "holds", LEAKS: "fails", COLLAPSED: "fails", DAMAGED: "fails", OVER: "open"}
"""Verdict -> class of the style; without one it has no colour."""
HEADER = card.HEADER[2:]


@dataclass(frozen=True)
class Probed:
    """One line of a card."""

    probe: str
    asks: str
    verdict: str
    mark: str
    cells: Sequence[str]
    """As `HEADER` names them."""


@dataclass(frozen=True)
class AuditView:
    name: str
    overall: str
    lines: Sequence[Probed]
    remarks: Sequence[str]
    """What stands beside the values."""
    unknown: Sequence[str]
    origin: Origin


def read_card(path: Path) -> AuditView:
    """The card of a model.

    Raises:
        InputRefused: if it is damaged, or holds something else than it should.
        Mismatch: if it was written by another schema.
    """
    record = read_audit(path)
    try:
        lines = [
            Probed(cut(line.probe, NAME), line.asks, *_verdict(line), [cut(cell, SENTENCE) for cell in line.cells[2:]])
            for line in card.lines(record)
        ]
        beside = (card.recovery, card.damage, card.rounding, card.ways, card.profile, card.one_by_one)
        remarks = [said for kind in beside for said in kind(record)]
        overall = card.overall(record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        again = f"mmsurgery audit {path.stem} --force"
        raise InputRefused(f"{path} is no card that can be read ({type(error).__name__})", again) from error
    found = Fields(record, str(path))
    unknown = [cut(each, SENTENCE) for each in found.get("unknown").texts()]
    made = origin("audit", path.stem, found)
    return AuditView(path.stem, cut(overall, SENTENCE), lines, [cut(each, SENTENCE) for each in remarks], unknown, made)


@dataclass(frozen=True)
class Grid:
    """What the probes say of the rows of an experiment."""

    probes: Sequence[tuple[str, str]]
    """(title, how often it proved itself)"""
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    """(label, a cell for each probe)"""


@dataclass(frozen=True)
class Cell:
    difference: str
    """To gold, of a probe of what is kept to vanilla, in points; empty where nothing can be compared."""
    interval: str
    resolved: bool
    verdicts: str
    """Of single runs, counted."""


def grid(results: Results, panel: str) -> Grid | None:
    """The audit of a panel's rows; None where they were not audited."""
    if not results.found.has("audit"):
        return None
    found = results.found.get("audit").get(panel)
    proved = found.get("trio").items()
    names = sorted(proved, key=card.place)
    probes = [
        (card.title(cut(name, NAME)), f"proved itself in {trio.get('reliable').whole()} of {trio.get('of').whole()}")
        for name, trio in ((name, proved[name]) for name in names)
    ]
    rows = [
        (results.labels[row], [_cell(said.get(name)) if said.has(name) else None for name in names])
        for row, said in found.get("rows").items().items()
        if row in results.labels
    ]
    return Grid(probes, rows)


def _cell(said: Fields) -> Cell:
    counted = [f"{cut(verdict, NAME)} {count.whole()}" for verdict, count in said.get("verdicts").items().items()]
    if not said.has("difference"):
        return Cell("", "", False, ", ".join(counted))
    low, high = said.get("ci95").interval(-1.0)
    resolved = said.has("resolved") and said.get("resolved").flag()
    difference = f"{100 * said.get('difference').share(-1.0):+.1f}"
    return Cell(difference, f"{100 * low:+.0f} to {100 * high:+.0f}", resolved, ", ".join(counted))


def _verdict(line: card.Line) -> tuple[str, str]:
    """In words, with its mark; a probe that did not prove itself has none."""
    if line.reliable is False:
        return f"{line.verdict}, not reliable here", ""
    return line.verdict, MARKS.get(line.verdict, "")
