"""What `export`, `import`, `push` and `pull` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from mmsurgery_cli.output import label
from mmsurgery_cli.show.common import Lines, densities, moves, next_command, state

if TYPE_CHECKING:
    from mmsurgery.exchange.adapters import AdapterImport
    from mmsurgery.exchange.export import ExportResult
    from mmsurgery.exchange.hub import PullResult, PushResult
    from mmsurgery.exchange.masks import MaskImport


def exported(result: ExportResult) -> Lines:
    yield Text.assemble(
        f"{result.kind} '{result.name}' as {result.format}: ",
        state(result.up_to_date),
        label(f" {result.path}, {result.bytes:,} bytes"),
    )


def imported_mask(result: MaskImport) -> Lines:
    mask = result.mask
    yield Text.assemble(f"mask '{result.name}': ", state(result.up_to_date), f", {mask.selected:,} of {mask.total:,}")
    yield densities(mask)
    yield next_command(f"mmsurgery inspect {result.name}")


def imported_adapter(result: AdapterImport) -> Lines:
    yield Text.assemble(
        f"model '{result.model}': ", state(result.up_to_date), f", {result.layers} layers merged into '{result.base}'"
    )
    yield moves(result.moved)
    yield next_command(f"mmsurgery eval {result.model}")


def pushed(result: PushResult) -> Lines:
    who = "private" if result.private else "public"
    yield label(
        f"{result.kind} '{result.name}' sent to {result.repository} ({who}), commit {result.commit[:12]}: "
        f"{len(result.files)} files, {sum(result.files.values()):,} bytes"
    )
    yield next_command(f"mmsurgery pull {result.repository}")


def pulled(result: PullResult) -> Lines:
    yield Text.assemble(
        label(f"{result.kind} '{result.name}' from {result.repository}, commit {result.commit[:12]}: "),
        state(result.up_to_date),
    )
    yield next_command(f"mmsurgery inspect {result.name}")
