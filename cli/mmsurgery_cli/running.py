"""Commands that run many others: the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmsurgery_cli import show
from mmsurgery_cli.output import Output


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of the demo's workspace.")] = Path("demo"),
    backbone: Annotated[str, typer.Option(help="Model family of the micro model.")] = "llava",
) -> None:
    """The whole chain on the embedded example, and what to look at."""
    from mmsurgery.demo import run

    output = Output()
    for step in run(directory.absolute(), backbone=backbone, progress=output):
        output.show(*show.demo_step(step))
    output.show(*show.demo_end(str(directory)))
