"""What `init` and `train` print."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from mmsurgery_cli.output import label, table
from mmsurgery_cli.show.common import Lines, next_command, state

if TYPE_CHECKING:
    from mmsurgery.portraits.training import Trained
    from mmsurgery.start import InitResult


def initialised(result: InitResult) -> Lines:
    counts = table("part or column", "n")
    for name, count in result.counts.items():
        counts.add_row(name, f"{count:,}")
    yield label(f"workspace {result.root}, benchmark {result.benchmark}")
    yield counts
    here = Path.cwd().resolve()
    inside = result.root.resolve() in (here, *here.parents)
    yield next_command(
        result.next_command if inside else f"cd {shlex.quote(str(result.root))} && {result.next_command}"
    )


def trained(result: Trained) -> Lines:
    from mmsurgery.training import Tuned

    yield Text.assemble(f"model {result.model}: ", state(result.up_to_date), f", weights {result.model_sha256[:12]}")
    if isinstance(result, Tuned):
        first, last = result.loss
        samples = ", ".join(f"{part} {count:,}" for part, count in result.samples.items())
        yield label(f"recipe {result.recipe}: {result.steps:,} steps on {samples}; loss {first:.3f} -> {last:.3f}")
    yield next_command(f"mmsurgery eval {result.model}")
