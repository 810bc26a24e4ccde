"""What `patch` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from mmsurgery_cli.output import label, percent
from mmsurgery_cli.show.common import Lines, next_command, state

if TYPE_CHECKING:
    from mmsurgery.patches import Patched, PatchResult


def created(result: PatchResult) -> Lines:
    yield Text.assemble(f"patch {result.name}: ", state(result.up_to_date), f", {result.path}")
    yield label(
        f"{result.before} -> {result.after}: {result.changed:,} of {result.total:,} weights differ "
        f"({percent(result.density, 2)} %)"
    )
    size = "larger than" if result.share > 1 else f"{percent(result.share)} % of"
    yield label(f"{result.bytes:,} bytes, {size} the {result.checkpoint_bytes:,} bytes of the model")
    yield next_command(f"mmsurgery patch revert {result.name} --name before.{result.name}")


def patched(result: Patched) -> Lines:
    yield Text.assemble(f"model {result.model}: ", state(result.up_to_date), f", weights {result.model_sha256[:12]}")
    if not result.up_to_date:
        yield label(
            f"patch {result.patch} on {result.source}: {result.changed:,} weights changed, result proved by digest"
        )
    yield next_command(f"mmsurgery eval {result.model}")
