"""What `inspect`, `verify`, `report`, `status` and the lists print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mmsurgery_cli import heatmap
from mmsurgery_cli.output import label, percent, table
from mmsurgery_cli.show.common import Lines, fact, moves, next_command, state

if TYPE_CHECKING:
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
    for key in ("counts", "overlap", "inputs"):
        for inner, value in described.get(key, {}).items():
            if inner not in described:
                rows.add_row(Text(f"{key}: {inner}", style="dim"), label(fact(value)))
    for key, value in _origin(described):
        rows.add_row(Text(key, style="dim"), label(fact(value)))
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


def verified(result: VerifyResult) -> Lines:
    scope = "" if result.scope is None else f", scope {result.scope}"
    yield label(f"model '{result.model}' against '{result.start}', mask {result.mask or 'none'}{scope}")
    yield moves(result.groups)
    yield Text.assemble(
        "claim: ", result.claim, " - ", Text("holds", style="green") if result.ok else Text("FAILS", style="bold red")
    )
    for fault in result.faults[:10]:
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
        "unfinished": ", ".join(result.unfinished),
    }
    for key, value in facts.items():
        if value or key not in ("patches", "unfinished"):
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
