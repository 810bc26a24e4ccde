"""Commands that run many others: the demo, the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmsurgery_cli.context import Json, open_here
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import running as show


def register(app: typer.Typer) -> None:
    app.command()(demo)
    app.command()(experiment)


def demo(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of the demo's workspace.")] = Path("demo"),
    backbone: Annotated[str | None, typer.Option(help="Model family of the micro model.")] = None,
) -> None:
    """The whole chain on the embedded example, and what to look at."""
    from mmsurgery.demo import run

    output = Output()
    for step in run(directory.absolute(), backbone=backbone, progress=output):
        output.show(*show.demo_step(step))
    output.show(*show.demo_end(str(directory)))


def experiment(
    name: Annotated[str, typer.Argument(help="table1 or controls.")],
    seeds: Annotated[int, typer.Option(help="Vanilla models (elsewhere: unlearning seeds) per backbone.")] = 3,
    backbones: Annotated[
        str, typer.Option(help="Families of the micro model, comma-separated; the workspace's where left out.")
    ] = "",
    jobs: Annotated[int | None, typer.Option(help="Levels worked on at a time; as many as fit where left out.")] = None,
    json: Json = False,
) -> None:
    """Run a table of the paper, with intervals and paired tests; goes on where it was stopped."""
    from mmsurgery.experiments.run import experiment as run_experiment

    output = Output(as_json=json)
    families = tuple(family.strip() for family in backbones.split(",") if family.strip())
    result = run_experiment(open_here(), name, seeds=seeds, backbones=families, jobs=jobs, progress=output)
    output.show(*show.experiment(result))
    output.document(result.results)
