"""What the commands of the chain print: saliency, mask, apply, eval, diff."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mmsurgery.data.benchmark import COLUMN_LABELS, in_order
from mmsurgery.evaluate.columns import score_of
from mmsurgery.unlearn.record import CLAIMS
from mmsurgery_cli import heatmap
from mmsurgery_cli.output import label, percent, table
from mmsurgery_cli.show.common import Lines, densities, moves, next_command, state

if TYPE_CHECKING:
    from mmsurgery.diff import DiffResult
    from mmsurgery.evaluate import EvalResult
    from mmsurgery.masks.build import MaskResult
    from mmsurgery.masks.compose import ComposeResult
    from mmsurgery.saliency.parts import PartResult
    from mmsurgery.unlearn.apply import ApplyResult


def measured(results: Sequence[PartResult]) -> Lines:
    rows = table("part", "units", "no gradient", "", numbers=1)
    for part in results:
        rows.add_row(part.part, f"{part.units:,}", f"{part.no_gradient} tensors", state(part.up_to_date))
    yield rows
    waiting = any(part.shard and not part.merged for part in results)
    yield next_command("mmsurgery status" if waiting else "mmsurgery mask --beta 1 --modules lm,connector")


def masked(result: MaskResult) -> Lines:
    mask = result.mask
    yield Text.assemble(
        f"mask '{result.name}' ({mask.rule}): {mask.selected:,} of {mask.total:,} weights may be updated, ",
        state(result.up_to_date),
    )
    yield densities(mask)
    if mask.counts.get("zero_over_zero"):
        yield Text(
            f"{mask.counts['zero_over_zero']:,} weights have no saliency on either side: not selected", style="dim"
        )
    yield next_command(f"mmsurgery inspect {result.name}")


def composed(result: ComposeResult) -> Lines:
    mask = result.mask
    yield Text.assemble(
        f"mask '{result.name}' = {mask.expression}: {mask.selected:,} of {mask.total:,} weights may be updated, ",
        state(result.up_to_date),
    )
    yield densities(mask)
    yield next_command(f"mmsurgery apply --method mmunlearner --mask {result.name}")


def composed_document(result: ComposeResult) -> dict[str, Any]:
    return {"expression": result.mask.expression, "parents": result.mask.parents, **_mask_document(result)}


def mask_document(result: MaskResult) -> dict[str, Any]:
    return {"measured": result.measured, **_mask_document(result)}


def _mask_document(result: MaskResult | ComposeResult) -> dict[str, Any]:
    mask = result.mask
    return {
        "name": result.name,
        "path": result.path,
        "up_to_date": result.up_to_date,
        "rule": mask.rule,
        "beta": mask.beta,
        "modules": mask.modules,
        "density": mask.density(),
        "by_group": mask.density("group"),
        "counts": mask.counts,
        "content_sha256": mask.content_sha256,
    }


def applied(result: ApplyResult) -> Lines:
    steps = result.record["steps"]
    yield Text.assemble(
        f"model '{result.model}': {steps['done']} of {steps['planned']} steps done, ", state(result.up_to_date)
    )
    yield moves(result.moved)
    if curve := result.record["evaluations"]:
        columns = in_order(curve[0]["columns"])
        names = (COLUMN_LABELS.get(column, column).replace(" ", "\n") for column in columns)
        rows = table("step", *names, title="accuracy in % along the run, protocol likelihood")
        for point in curve:
            rows.add_row(str(point["step"]), *(percent(point["columns"][column]) for column in columns))
        yield rows
    yield Text(f"audited from its files: {CLAIMS[result.claim]}")
    yield next_command(f"mmsurgery eval {result.model}")


OPEN = "right answers (o of another person, w wrong but fluent, r refusal, g gibberish)"
"""What the table of protocol `open` holds."""


def scored(results: Sequence[EvalResult]) -> Lines:
    by_task: dict[str, list[str]] = {}
    for column in dict.fromkeys(column for result in results for column in result.columns):
        by_task.setdefault(column.partition(".")[2], []).append(column)
    for task, columns in by_task.items():
        yield _scores(results, task, columns)
    if results and results[0].metrics:
        yield _metrics(results)
    yield from _remarks(results)
    only_vanilla = [result.model for result in results] == ["vanilla"]
    yield next_command("mmsurgery saliency --set forget" if only_vanilla else "mmsurgery report")


def _metrics(results: Sequence[EvalResult]) -> Table:
    names = ["Real", "Retain", "Forget", "Forget Quality"]
    rows = table("model", *names, title="CLEAR's metrics in %: harmonic means of probability and truth ratio")
    for result in results:
        values = [None if value is None else percent(value) for value in result.metrics.values()]
        rows.add_row(label(result.model), *[value or "-" for value in values])
    return rows


def _remarks(results: Sequence[EvalResult]) -> Lines:
    """What must be known about columns: of remarks that differ in numbers alone the first, and how many there are."""
    alike: dict[str, list[str]] = {}
    for result in results:
        for column, remarks in result.remarks.items():
            for remark in remarks:
                line = f"{result.model}, {_column(column)}: {remark}"
                alike.setdefault(re.sub(r"\d+", "", remark), []).append(line)
    for first, *others in alike.values():
        yield label(f"{first} (and so {len(others)} more: see --json)" if others else first)


def _column(name: str) -> str:
    """`forget_vqa.cloze` -> `Forget VQA cloze`."""
    column, _, task = name.partition(".")
    return f"{COLUMN_LABELS.get(column, column)} {task}".strip()


def _scores(results: Sequence[EvalResult], task: str, columns: Sequence[str]) -> Table:
    protocols = sorted({result.columns[c]["protocol"] for result in results for c in columns if c in result.columns})
    opened = any("outcomes" in result.columns.get(column, ()) for result in results for column in columns)
    measures = {"generation": "F1 of ROUGE-L (r recall)", "truth": "probability of the truth (t truth ratio)"}
    what = measures.get(task, OPEN if opened else "accuracy")
    title = f"{what} in % and its 95 % interval, protocol {', '.join(protocols)}{task and ', ' + task}"
    names = [_column(column.partition(".")[0]) for column in columns]
    rows = table("model", *[name.replace(" ", "\n").replace("-", "-\n") for name in names], title=title)
    for result in results:
        rows.add_row(label(result.model), *[_score(result.columns.get(column)) for column in columns])
    shown = results[0].columns
    rows.add_section()
    rows.add_row("n", *[f"{shown[c]['n']}" if c in shown else "" for c in columns], style="dim")
    if not task and not opened:
        rows.add_row("chance", *[percent(shown[c]["chance"]) if c in shown else "" for c in columns], style="dim")
    return rows


def _score(column: dict[str, Any] | None) -> Text:
    if column is None:
        return Text("-")
    low, high = column["ci95"]
    beside = ""
    if "rouge_l" in column:
        beside = f"\nr {percent(column['rouge_l']['recall'])}"
    elif "truth_ratio" in column:
        beside = f"\nt {percent(column['truth_ratio'])}"
    elif "outcomes" in column:
        counts = [column["outcomes"][name] for name in ("other_person", "wrong", "refusal", "gibberish")]
        beside = "".join(
            f"\n{sign} {percent(count / column['n'], 0)}" for sign, count in zip("owrg", counts, strict=True)
        )
    return Text.assemble(percent(score_of(column)), (f"{beside}\n{percent(low, 0)}-{percent(high, 0)}", "dim"))


def compared(result: DiffResult, *, relative: bool = False) -> Lines:
    record = result.record
    yield Text.assemble(
        f"{record['before']} -> {record['after']}: {record['changed']:,} weights changed, ", state(result.up_to_date)
    )
    if record["inside"] is not None:
        yield label(f"inside the mask {record['inside']:,}, outside {record['outside']:,}")
    if relative:
        yield label("change relative to the weights before, L2 norms by cell:")
        yield heatmap.render(*result.relative_heatmaps)
        picture = result.pictures[-2].relative_to(result.path.parent)
        yield label(f"{result.path} and, as pictures, {picture} and .svg beside it")
    else:
        yield label(f"top {record['n']:,} by |delta|, from {record['threshold']:.3g} up:")
        yield heatmap.render(*result.heatmaps)
        yield label(f"{result.path} and, as pictures, .png and .svg beside it")
    masked = record["inside"] is not None
    yield next_command(f"mmsurgery verify {record['after']}" if masked else "mmsurgery report")


def diff_document(result: DiffResult) -> dict[str, Any]:
    return {"path": result.path, "up_to_date": result.up_to_date, **result.record}
