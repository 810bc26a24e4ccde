"""What `--plan` prints."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsurgery.memory import gigabytes
from mmsurgery_cli.output import Output, label, plain, table
from mmsurgery_cli.show.common import Lines

if TYPE_CHECKING:
    from mmsurgery.plans import Plan

Wanted = Annotated[
    bool, typer.Option("--plan", help="Say what it takes (samples, passes, memory, disk, time), and do nothing.")
]


def show(output: Output, plan: Plan) -> None:
    """Print a plan."""
    output.show(*planned(plan))
    output.document(plan_document(plan))


def planned(plan: Plan) -> Lines:
    model, passes = plan.model, plan.passes
    yield label(
        f"plan of {plan.verb}: model '{model.name}', {model.parameters:,} weights in {model.dtype}, "
        f"{gigabytes(model.bytes)}; nothing is done"
    )
    rows = table("", "", "", numbers=2)
    rows.show_header = False
    for number, (part, count) in enumerate(plan.samples.items()):
        rows.add_row("samples" if not number else "", label(part), f"{count:,}")
    rows.add_row("passes", "forward", f"{passes.forward:,}")
    rows.add_row("", "backward", f"{passes.backward:,}")
    if passes.tokens is not None:
        rows.add_row("", "tokens", f"{passes.tokens:,}")
    for heading, entries, total in (
        ("memory", plan.memory, plan.memory_total),
        ("disk", plan.disk, plan.disk_total),
    ):
        for number, (term, size) in enumerate(entries.items()):
            rows.add_row(heading if not number else "", term, gigabytes(size))
        rows.add_row("" if entries else heading, "in all", gigabytes(total), style="bold")
    rows.add_row("", "free", gigabytes(plan.disk_free))
    rows.add_row("time", "", "-" if plan.seconds is None else _time(plan.seconds))
    yield rows
    if plan.layouts:
        yield _layouts(plan)
    for note in plan.notes:
        yield label(note)


def _layouts(plan: Plan) -> Any:
    """Which layouts fit the common cards."""
    cards = (80, 40, 24)
    rows = table("layout (--memory chooses)", "memory", *(f"{card} GB" for card in cards))
    for layout, size in plan.layouts.items():
        fits = ("fits" if size <= card * 1e9 else "-" for card in cards)
        rows.add_row(label(layout), gigabytes(size), *fits)
    return rows


def plan_document(plan: Plan) -> dict[str, Any]:
    document: dict[str, Any] = plain(plan)
    return {**document, "memory_total": plan.memory_total, "disk_total": plan.disk_total}


def _time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds))) if seconds >= 1 else "under a second"
