"""Every run of an experiment, with the command that shows it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from mmsurgery.report import numbers, words
from mmsurgery.report.fields import Fields
from mmsurgery.report.results import FORGET, Results, run_label
from mmsurgery.report.texts import SENTENCE, cut


@dataclass(frozen=True)
class Run:
    """A row on one level."""

    level: str
    label: str
    command: str
    """Shows the run, from the workspace's folder; empty where it failed."""
    digest: str
    steps: str
    learning_rate: str
    samples: str
    ratio: str
    forget: float | None
    utility: float | None
    matched: str
    remarks: str


def every_run(results: Results, panel: str) -> list[Run]:
    return [_run(results, panel, cell) for cell in results.cells(panel)]


def _run(results: Results, panel: str, cell: Fields) -> Run:
    level, label = run_label(cell), results.label(cell.get("row"))
    if cell.has("failed"):
        failed = f"failed: {cut(cell.get('failed').text(), SENTENCE)}"
        return Run(level, label, "", "–", "–", "–", "–", "–", None, None, "–", failed)
    fixed, samples = cell.get("fixed"), cell.get("samples")
    forget, retain = samples.get("forget").whole(), samples.get("retain").whole()
    folder = results.level_of(panel, cell).get("folder").text()
    return Run(
        level=level,
        label=label,
        command=f"mmsurgery -w {shlex.quote(folder)} eval {shlex.quote(cell.get('model').text())}",
        digest=numbers.digest(cell.get("model_sha256").text()),
        steps=numbers.count(cell.get("steps").whole()),
        learning_rate=numbers.rate(cell.get("learning_rate").number()),
        samples=f"{forget} : {retain}",
        ratio=numbers.ratio(retain, forget),
        forget=fixed.get("columns").get(FORGET).share(),
        utility=fixed.get("utility").share(),
        matched=_matched(cell),
        remarks=_remarks(results, cell),
    )


def _matched(cell: Fields) -> str:
    if not cell.has("matched"):
        return f"not reached in {cell.get('searched').whole()} steps"
    point = cell.get("matched")
    step = numbers.quantity(point.get("step").number())
    return f"{numbers.percent(point.get('utility').share())} at step {step}"


def _remarks(results: Results, cell: Fields) -> str:
    """What collapsed, then remarks by column."""
    found = []
    if cell.has("collapsed"):
        why = cell.get("collapsed").text().replace(f" is {results.fallen}", "", 1)
        found.append(f"{results.fallen}: {why}")
    for column, said in cell.get("remarks").items().items():
        if texts := said.texts():
            found.append(f"{words.column(column)}: {', '.join(texts)}")
    return cut("; ".join(found), SENTENCE)
