"""Results as people read them: a few lines, a table, a heatmap, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mmsurgery.data.benchmark import COLUMN_LABELS, in_order
from mmsurgery.unlearn.record import CLAIMS
from mmsurgery_cli import heatmap
from mmsurgery_cli.output import label, percent, table

if TYPE_CHECKING:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.demo import Step
    from mmsurgery.diff import DiffResult
    from mmsurgery.evaluate import EvalResult
    from mmsurgery.experiments.run import ExperimentResult
    from mmsurgery.look import Inspection
    from mmsurgery.masks.build import MaskResult
    from mmsurgery.portraits.training import Trained
    from mmsurgery.report import ReportResult
    from mmsurgery.saliency.parts import PartResult
    from mmsurgery.start import InitResult
    from mmsurgery.status import Status
    from mmsurgery.unlearn.apply import ApplyResult
    from mmsurgery.unlearn.verify import Moved, VerifyResult

Lines = Iterator[RenderableType]


def _next(command: str) -> Text:
    return Text.assemble(("next: ", "dim"), command)


def _state(up_to_date: bool) -> Text:
    return Text("up to date" if up_to_date else "made", style="dim" if up_to_date else "green")


def initialised(result: InitResult) -> Lines:
    counts = table("part or column", "n")
    for name, count in result.counts.items():
        counts.add_row(name, f"{count:,}")
    yield label(f"workspace {result.root}, benchmark {result.benchmark}")
    yield counts
    yield _next(result.next_command)


def trained(result: Trained) -> Lines:
    yield Text.assemble(f"model {result.model}: ", _state(result.up_to_date), f", weights {result.model_sha256[:12]}")
    yield _next(f"mmsurgery eval {result.model}")


def measured(results: Sequence[PartResult]) -> Lines:
    rows = table("part", "units", "no gradient", "", numbers=1)
    for part in results:
        rows.add_row(part.part, f"{part.units:,}", f"{part.no_gradient} tensors", _state(part.up_to_date))
    yield rows
    yield _next("mmsurgery mask --beta 1 --modules lm,connector")


def masked(result: MaskResult) -> Lines:
    mask = result.mask
    yield Text.assemble(
        f"mask '{result.name}' ({mask.rule}): {mask.selected:,} of {mask.total:,} weights may be updated, ",
        _state(result.up_to_date),
    )
    yield _densities(mask)
    if mask.counts.get("zero_over_zero"):
        yield Text(
            f"{mask.counts['zero_over_zero']:,} weights have no saliency on either side: not selected", style="dim"
        )
    yield _next(f"mmsurgery inspect {result.name}")


def _densities(mask: Mask) -> Table:
    rows = table("group", "selected", "weights", "share %", numbers=1)
    inside = {mask.addresses[name].group for name in mask.in_modules()}
    for group, (ones, total) in mask.tally("group").items():
        share = percent(ones / total if total else 0.0) if group in inside else "frozen"
        rows.add_row(group, f"{ones:,}", f"{total:,}", share)
    return rows


def mask_document(result: MaskResult) -> dict[str, Any]:
    mask = result.mask
    return {
        "name": result.name,
        "path": result.path,
        "up_to_date": result.up_to_date,
        "measured": result.measured,
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
        f"model '{result.model}': {steps['done']} of {steps['planned']} steps done, ", _state(result.up_to_date)
    )
    yield _moves(result.moved)
    if curve := result.record["evaluations"]:
        columns = in_order(curve[0]["columns"])
        rows = table("step", *(COLUMN_LABELS.get(column, column).replace(" ", "\n") for column in columns))
        for point in curve:
            rows.add_row(str(point["step"]), *(percent(point["columns"][column]) for column in columns))
        yield rows
    yield Text(f"audited: {CLAIMS[result.claim]}")
    yield _next(f"mmsurgery eval {result.model}")


def _moves(moved: dict[str, Moved]) -> Table:
    rows = table("group", "moved inside", "of", "moved outside", "of", numbers=1)
    for group, counts in moved.items():
        rows.add_row(
            group,
            f"{counts.inside:,}",
            f"{counts.inside_total:,}",
            f"{counts.outside:,}",
            f"{counts.outside_total:,}",
        )
    return rows


def verified(result: VerifyResult) -> Lines:
    yield label(f"model '{result.model}' against '{result.start}', mask {result.mask or 'none'}, scope {result.scope}")
    yield _moves(result.groups)
    yield Text.assemble(
        "claim: ", result.claim, " - ", Text("holds", style="green") if result.ok else Text("FAILS", style="bold red")
    )
    for fault in result.faults[:10]:
        yield label(f"  {fault}")


def scored(results: Sequence[EvalResult]) -> Lines:
    by_task: dict[str, list[str]] = {}
    for column in dict.fromkeys(column for result in results for column in result.columns):
        by_task.setdefault(column.partition(".")[2], []).append(column)
    for task, columns in by_task.items():
        yield _scores(results, task, columns)
    for result in results:
        for column, remarks in result.remarks.items():
            for remark in remarks:
                yield label(f"{result.model}, {_column(column)}: {remark}")


def _column(name: str) -> str:
    """`forget_vqa.cloze` -> `Forget VQA cloze`."""
    column, _, task = name.partition(".")
    return f"{COLUMN_LABELS.get(column, column)} {task}".strip()


def _scores(results: Sequence[EvalResult], task: str, columns: Sequence[str]) -> Table:
    protocols = sorted({result.columns[c]["protocol"] for result in results for c in columns if c in result.columns})
    what = "F1 of ROUGE-L (r recall)" if task == "generation" else "accuracy"
    title = f"{what} in % and its 95 % interval, protocol {', '.join(protocols)}{task and ', ' + task}"
    names = [_column(column.partition(".")[0]) for column in columns]
    rows = table("model", *[name.replace(" ", "\n").replace("-", "-\n") for name in names], title=title)
    for result in results:
        rows.add_row(label(result.model), *[_score(result.columns.get(column)) for column in columns])
    shown = results[0].columns
    rows.add_section()
    rows.add_row("n", *[f"{shown[c]['n']}" if c in shown else "" for c in columns], style="dim")
    if not task:
        rows.add_row("chance", *[percent(shown[c]["chance"]) if c in shown else "" for c in columns], style="dim")
    return rows


def _score(column: dict[str, Any] | None) -> Text:
    if column is None:
        return Text("-")
    low, high = column["ci95"]
    rouge = column.get("rouge_l")
    number = percent(column["accuracy"] if rouge is None else rouge["f1"])
    recall = "" if rouge is None else f"\nr {percent(rouge['recall'])}"
    return Text.assemble(number, (f"{recall}\n{percent(low, 0)}-{percent(high, 0)}", "dim"))


def compared(result: DiffResult) -> Lines:
    record = result.record
    yield Text.assemble(
        f"{record['before']} -> {record['after']}: {record['changed']:,} weights changed, ", _state(result.up_to_date)
    )
    if record["inside"] is not None:
        yield label(f"inside the mask {record['inside']:,}, outside {record['outside']:,}")
    yield label(f"top {record['n']:,} by |delta|, from {record['threshold']:.3g} up:")
    yield heatmap.render(*result.heatmaps)
    yield label(f"{result.path} and, as pictures, .png and .svg beside it")


def diff_document(result: DiffResult) -> dict[str, Any]:
    return {"path": result.path, "up_to_date": result.up_to_date, **result.record}


def inspected(result: Inspection) -> Lines:
    described = result.description
    yield Text.assemble((f"{described['kind']} ", "bold"), label(str(result.path)))
    rows = table("", "", numbers=2)
    rows.show_header = False
    for key, value in described.items():
        if not isinstance(value, (dict, list)) and value is not None and key != "kind":
            rows.add_row(Text(key, style="dim"), label(_fact(value)))
    for key in ("counts", "overlap", "inputs"):
        for inner, value in described.get(key, {}).items():
            if inner not in described:
                rows.add_row(Text(f"{key}: {inner}", style="dim"), label(_fact(value)))
    for key, value in _origin(described):
        rows.add_row(Text(key, style="dim"), label(_fact(value)))
    yield rows
    yield from _inspected_tables(described)
    if result.heatmaps:
        yield heatmap.render(*result.heatmaps)


def _origin(described: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Where a model or a mask comes from: its run, its parents."""
    run = described.get("run") or {}
    for key in ("start", "method", "protocol", "mask", "scope", "reference"):
        if run.get(key) is not None:
            yield f"made: {key}", run[key]
    if run:
        yield "made: steps", run["steps"]["done"]
    for parent in described.get("parents", ()):
        named = parent.get("part") or parent.get("name") or parent.get("kind") or "mask"
        digest = parent.get("sha256") or parent.get("content_sha256") or ""
        yield "parent", f"{named} {str(digest)[:12]}".strip()


def _fact(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return text[:12] if len(text) == 64 else text  # the head of a digest tells two apart


def _inspected_tables(described: dict[str, Any]) -> Lines:
    if "by_group" in described:
        rows = table("group", "selected", "weights", "share %", numbers=1)
        for group, entry in described["by_group"].items():
            rows.add_row(group, f"{entry['selected']:,}", f"{entry['total']:,}", percent(entry["density"]))
        yield rows
    if described["kind"] == "saliency":
        groups = {group: entry for group, entry in described["groups"].items() if entry}
        names = list(dict.fromkeys(key for entry in groups.values() for key in entry if key != "quantiles"))
        quantiles = ["0.01", "0.5", "0.99"]
        rows = table("group", *names, *[f"q{q}" for q in quantiles])
        for group, entry in groups.items():
            cells = [entry.get(name) for name in names] + [entry.get("quantiles", {}).get(q) for q in quantiles]
            rows.add_row(group, *["-" if c is None else f"{c:,}" if isinstance(c, int) else f"{c:.1e}" for c in cells])
        yield rows


def reported(result: ReportResult) -> Lines:
    held = ", ".join(f"{kind} {count}" for kind, count in result.holds.items() if count) or "nothing yet"
    yield Text.assemble(_state(result.up_to_date), f" {result.path} ({held})")


def standing(result: Status) -> Lines:
    rows = table("", "", numbers=2)
    rows.show_header = False
    facts = {
        "workspace": str(result.root),
        "benchmark": result.benchmark,
        "backbone": result.backbone,
        "models": ", ".join(result.models),
        "saliency": ", ".join(result.saliency),
        "masks": ", ".join(result.masks),
        "evals": ", ".join(result.evals),
        "diffs": ", ".join(result.diffs),
    }
    for key, value in facts.items():
        rows.add_row(Text(key, style="dim"), label(value or "-"))
    for link in result.chain:
        mask = f", mask {link['mask']}" if link["mask"] else ""
        rows.add_row("", label(f"{link['start']} -> {link['model']} ({link['method']}{mask})"))
    yield rows
    for problem in result.problems:
        yield label(problem)
    yield _next(result.next_command)


def listed(rows: Sequence[dict[str, str]]) -> Lines:
    columns = list(rows[0]) if rows else ["name"]
    made = table(*columns, numbers=len(columns))
    for row in rows:
        made.add_row(*[label(row[column]) for column in columns])
    yield made


_DEMO = {
    "init": lambda result: initialised(result),
    "train": lambda result: trained(result),
    "saliency": lambda result: measured(result),
    "mask": lambda result: masked(result),
    "inspect": lambda result: inspected(result),
    "apply": lambda result: applied(result),
    "verify": lambda result: verified(result),
    "eval": lambda result: scored(result),
    "diff": lambda result: compared(result),
}


def demo_step(step: Step) -> Lines:
    yield Text.assemble(("\n$ ", "bold cyan"), (step.command, "bold"), (f"   {step.seconds:.1f} s", "dim"))
    lines = list(_DEMO[step.kind](step.result))
    yield from (line for line in lines if not (isinstance(line, Text) and line.plain.startswith("next: ")))


def demo_end(root: str) -> Lines:
    yield Text("\nWhat to look at", style="bold")
    for line in (
        "Forget VQA should fall towards the gold model's, all other columns should stay. That is the trade-off.",
        "The row 'mmunlearner.random' is the control: a random mask of the same density. If it does as well as",
        "  'mmunlearner.default', it is not the choice of weights that helped.",
        f"The heatmap of what moved: {root}/diffs/vanilla..mmunlearner.default.png",
        f"Go on there: cd {root} && mmsurgery status",
    ):
        yield label(line)


def experiment(result: ExperimentResult) -> Lines:
    """The tables of an experiment."""
    from mmsurgery.experiments.tables import tables

    for text in tables(result.results):
        made = table(*(name.replace(" ", "\n").replace("-", "-\n") for name in text.header), title=text.title)
        for row in text.rows:
            made.add_row(label(row[0]), *(_stacked(cell) for cell in row[1:]))
        yield made
        for note in text.notes:
            made_note = label(note)
            made_note.stylize("dim")
            yield made_note
        yield ""
    state = "up to date" if result.up_to_date else "written"
    yield label(f"{result.path} {state} ({result.seconds:.0f} s)")


def _stacked(cell: str) -> Text:
    """A table's cell with its interval and its verdict below, so that columns fit beside each other."""
    return Text("\n").join(label(line) for line in cell.replace(" (", "\n(").replace(", ", "\n").split("\n"))
