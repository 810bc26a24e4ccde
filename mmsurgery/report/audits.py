"""Audit cards for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.audit import card
from mmsurgery.audit.judge import COLLAPSED, DAMAGED, HELD, LEAKS, OVER
from mmsurgery.audit.run import read_audit
from mmsurgery.errors import InputRefused
from mmsurgery.report.fields import Fields
from mmsurgery.report.origin import Origin, origin
from mmsurgery.report.texts import NAME, SENTENCE, cut

MARKS = {HELD: "holds", LEAKS: "fails", COLLAPSED: "fails", DAMAGED: "fails", OVER: "open"}
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
    """Recovery and rounding."""
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
        remarks = [*card.recovery(record), *card.rounding(record)]
        overall = card.overall(record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        again = f"mmsurgery audit {path.stem} --force"
        raise InputRefused(f"{path} is no card that can be read ({type(error).__name__})", again) from error
    found = Fields(record, str(path))
    unknown = [cut(each, SENTENCE) for each in found.get("unknown").texts()]
    made = origin("audit", path.stem, found)
    return AuditView(path.stem, cut(overall, SENTENCE), lines, [cut(each, SENTENCE) for each in remarks], unknown, made)


def _verdict(line: card.Line) -> tuple[str, str]:
    """In words, with its mark; a probe that did not prove itself has none."""
    if line.reliable is False:
        return f"{line.verdict}, not reliable here", ""
    return line.verdict, MARKS.get(line.verdict, "")
