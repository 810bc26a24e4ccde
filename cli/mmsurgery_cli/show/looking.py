"""What `inspect`, `verify`, `report`, `status` and the lists print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mmsurgery.figures.heatmap import short
from mmsurgery.names import model_order
from mmsurgery_cli import heatmap
from mmsurgery_cli.output import label, percent, table
from mmsurgery_cli.show.common import Lines, fact, moves, next_command, state

if TYPE_CHECKING:
    from rich.table import Table

    from mmsurgery.audit.run import AuditResult
    from mmsurgery.links import WorkspaceCheck
    from mmsurgery.look import Inspection
    from mmsurgery.report import ReportResult
    from mmsurgery.status import Status
    from mmsurgery.unlearn.verify import VerifyResult


def inspected(result: Inspection) -> Lines:
    described = result.description
    yield Text.assemble((f"{described['kind']} ", "bold"), label(str(result.path)))
    rows = table("", "", numbers=2)
    rows.show_header = False
    for key, value in described.items():
        if not isinstance(value, (dict, list)) and value is not None and key != "kind":
            rows.add_row(Text(key, style="dim"), label(fact(value)))
    counts = described.get("counts")
    for inner, value in counts.items() if isinstance(counts, dict) else ():
        if inner not in described:
            rows.add_row(Text(f"counts: {inner}", style="dim"), label(fact(value)))
    for key, value in _run(described):
        rows.add_row(Text(key, style="dim"), label(fact(value)))
    yield rows
    yield from _origin(described)
    yield from _inspected_tables(described)
    if result.heatmaps:
        yield heatmap.render(*result.heatmaps)


def audited(result: AuditResult) -> Lines:
    from mmsurgery.audit import card

    found = card.lines(result.record)
    yield Text.assemble(("audit of ", "bold"), label(result.model))
    first = [*card.HEADER].index("chance")  # the rest stands below: a terminal has 80 columns
    rows = table(*card.HEADER[:first], "proved", numbers=3)
    for line in found:
        rows.add_row(*(label(cell) for cell in (*line.cells[:first], line.cells[-1].partition(":")[0])))
    yield rows
    yield label("in %; where: the worst way of asking; proved: vanilla fails the probe, gold passes, destroyed is seen")
    for line in found:
        cells = dict(zip(card.HEADER, line.cells, strict=True))
        said = f"chance {cells['chance']}, n = {cells['n']}" if line.n is not None else ""
        if line.difference is not None:
            said = f"{cells['against']} ({cells['95 % interval']}) against {line.reference}, {said}"
        why = f"{'; ' if said else ''}not proved here: {line.why_not}" if line.why_not else ""
        yield Text.assemble((f"{line.probe.lower()}: ", "dim"), label(f"{line.asks} {said}{why}"))
    yield from (Text.assemble(("recovers: ", "dim"), label(each)) for each in card.recovery(result.record))
    yield from (Text.assemble(("rounding: ", "dim"), label(each)) for each in card.damage(result.record))
    yield from (Text.assemble(("rounding: ", "dim"), label(each)) for each in card.rounding(result.record))
    yield from (Text.assemble(("paraphrase: ", "dim"), label(each)) for each in card.ways(result.record))
    yield from (Text.assemble(("probing: ", "dim"), label(each)) for each in card.profile(result.record))
    yield from (Text.assemble(("collateral: ", "dim"), label(each)) for each in card.one_by_one(result.record))
    yield from (Text.assemble(("unknown: ", "dim"), label(each)) for each in result.record["unknown"])
    yield Text.assemble((f"{result.model}: ", "bold"), label(card.overall(result.record)))
    yield Text.assemble(label(f"{result.path} "), state(result.up_to_date))
    yield next_command("mmsurgery report")


def _run(described: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """What a model was made by."""
    run = described.get("run") or {}
    for key in ("start", "method", "protocol", "mask", "scope", "reference"):
        if run.get(key) is not None:
            yield f"made: {key}", run[key]
    if run:
        yield "made: steps", run["steps"]["done"]


def _origin(described: dict[str, Any]) -> Lines:
    if described.get("origin"):
        rows = table("comes from", "name", "", "digest", numbers=4)
        for step in described["origin"]:
            rows.add_row(*(label(step[key]) for key in ("what", "name", "about")), label(step["sha256"][:12]))
        yield rows


def _inspected_tables(described: dict[str, Any]) -> Lines:
    if "by_group" in described:
        what = "changed" if described["kind"] == "patch" else "selected"
        rows = table("group", what, "weights", "share %", numbers=1)
        for group, entry in described["by_group"].items():
            share = "frozen" if entry.get("frozen") else percent(entry["density"])
            rows.add_row(group, f"{entry[what]:,}", f"{entry['total']:,}", share)
        yield rows
    if described["kind"] == "saliency":
        yield from _quantiles(described["groups"])
    if "overlaps" in described:
        rows = _overlaps("overlap with", "group")
        for each in described["overlaps"]:
            _add_overlap(rows, each, label(each["with"]))
        yield rows
    record = described if described["kind"] == "stability" else described.get("stability")
    if record:
        yield from _stability(record)


def _quantiles(groups: dict[str, Any]) -> Lines:
    rows = table("group", "weights", "zeros", "no gradient", "mean", "q01", "q25", "q50", "q75", "q99", numbers=1)
    for group, entry in groups.items():
        values = [entry["mean"], *(entry["quantiles"].get(q) for q in ("0.01", "0.25", "0.5", "0.75", "0.99"))]
        counts = [f"{entry[key]:,}" for key in ("weights", "zeros", "no_gradient")]
        rows.add_row(group, *counts, *("-" if value is None else f"{value:.0e}" for value in values))
    yield rows


def _in_order(groups: dict[str, Any]) -> list[tuple[str, Any]]:
    """Groups of a record that was read from a file, where keys are sorted."""
    return sorted(groups.items(), key=lambda pair: model_order(pair[0]))


def _overlaps(*columns: str) -> Table:
    return table(*columns, "both", "either", "IoU %", "by chance %", numbers=2)


def _add_overlap(rows: Table, each: dict[str, Any], name: Text) -> None:
    for group, entry in [("all", each), *_in_order(each["by_group"])]:
        shown = name if group == "all" else Text()
        numbers = percent(entry["iou"]), percent(entry["iou_by_chance"])
        rows.add_row(shown, group, f"{entry['both']:,}", f"{entry['either']:,}", *numbers)


def _stability(record: dict[str, Any]) -> Lines:
    samples = ", ".join(f"{part} {count}" for part, count in record["samples"].items())
    yield Text.assemble(("stability ", "bold"), label(f"samples: {samples}; halves by {record['split']}"))
    rows = table("masks of", "group", "selected", "IoU %", "chance", "same n %", "chance", numbers=2)
    for each in record["comparisons"]:
        equal = each["same_count"]
        for group, entry in [("all", each), *_in_order(each["by_group"])]:
            other = equal if group == "all" else equal["by_group"].get(group, {"iou": None, "iou_by_chance": None})
            name = label(f"{each['first']} | {each['second']}") if group == "all" else Text()
            selected = " | ".join(map(short, each["selected"])) if group == "all" else ""
            shares = (values[key] for values in (entry, other) for key in ("iou", "iou_by_chance"))
            rows.add_row(name, group, selected, *(percent(share) for share in shares))
    yield rows
    yield label(verdict(record["comparisons"]))


def verdict(comparisons: Sequence[dict[str, Any]]) -> str:
    """One sentence on what the comparisons say, at the same number of weights."""
    found = {each["comparison"]: each["same_count"] for each in comparisons}
    halves = found["halves"]
    times = f" ({halves['iou'] / halves['iou_by_chance']:.1f} times)" if halves["iou_by_chance"] else ""
    said = f"at the mask's number of weights, halves of the data agree on {percent(halves['iou'])} %"
    said += f" where chance gives {percent(halves['iou_by_chance'])} %{times}"
    if "shuffled" in found:
        said += f"; with answers exchanged between people {percent(found['shuffled']['iou'])} % of it stays"
    return said


def verified(result: VerifyResult) -> Lines:
    scope = "" if result.mask is None else f", scope {result.scope}"
    yield label(f"model '{result.model}' against '{result.start}', mask {result.mask or 'none'}{scope}")
    yield moves(result.groups)
    yield Text.assemble(
        "claim: ", result.claim, " - ", Text("holds", style="green") if result.ok else Text("FAILS", style="bold red")
    )
    for fault in result.faults[:10]:
        yield label(f"  {fault}")
    yield next_command(
        f"mmsurgery eval {result.model}" if result.ok else f"mmsurgery diff {result.start} {result.model}"
    )


def checked(result: WorkspaceCheck) -> Lines:
    held = ", ".join(f"{kind} {count}" for kind, count in result.checked.items()) or "nothing yet"
    verdict = Text("whole, and belongs together", style="green")
    if result.faults:
        verdict = Text(f"{len(result.faults)} faults, upstream ones first", style="bold red")
    yield Text.assemble(f"{held} - ", verdict)
    for fault in result.faults:
        yield label(f"  {fault}")


def reported(result: ReportResult) -> Lines:
    held = ", ".join(f"{kind} {count}" for kind, count in result.holds.items() if count) or "nothing yet"
    yield Text.assemble(state(result.up_to_date), f" {result.path} ({held})")


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
        "patches": ", ".join(result.patches),
        "evals": ", ".join(result.evals),
        "diffs": ", ".join(result.diffs),
        "audits": ", ".join(result.audits),
        "stability": ", ".join(result.stability),
        "experiments": ", ".join(result.experiments),
        "unfinished": ", ".join(result.unfinished),
    }
    for key, value in facts.items():
        if value or key not in ("patches", "audits", "stability", "experiments", "unfinished"):
            rows.add_row(Text(key, style="dim"), label(value or "-"))
    depth: dict[str, int] = {}
    for link in result.chain:
        depth[link["model"]] = depth.get(link["start"], -1) + 1
        mask = f", mask {link['mask']}" if link["mask"] else ""
        count = link["people"]
        known = "people it does not say" if count is None else "1 person" if count == 1 else f"{count:,} people"
        whom = "" if link["request"] is None else f", forgets {known}"
        line = f"{'  ' * depth[link['model']]}{link['model']}: {link['method']}{mask}{whom}"
        rows.add_row(Text("made" if link is result.chain[0] else "", style="dim"), label(line))
    yield rows
    for problem in result.problems:
        yield label(problem)
    yield next_command(result.next_command)


def listed(rows: Sequence[dict[str, str]]) -> Lines:
    columns = list(rows[0]) if rows else ["name"]
    made = table(*columns, numbers=len(columns))
    for row in rows:
        made.add_row(*[label(row[column]) for column in columns])
    yield made
