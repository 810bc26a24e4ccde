"""Commands that run many others: the demo, the experiments."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, Task, TimeRemainingColumn
from rich.text import Text

from mmsurgery_cli.context import Json, open_here
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import running as show


def register(app: typer.Typer) -> None:
    app.command()(demo)
    app.command()(experiment)


class _GridOutput(Output):
    """The bar around all others shows the time that the grid says it has to go."""

    _until: float | None = None

    def left(self, seconds: float | None) -> None:
        """Told by the grid whenever a step ends."""
        self._until = None if seconds is None else time.monotonic() + seconds

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Progress]:
        with super()._bars() as bars:
            bars.columns = (*bars.columns[:-1], _Left(lambda: self._until))
            yield bars


class _Left(TimeRemainingColumn):
    """The time that a stage has to go; of the first, outermost one as the grid estimates it."""

    def __init__(self, until: Callable[[], float | None]) -> None:
        super().__init__()
        self._until = until

    def render(self, task: Task) -> Text:
        if task.id:
            return super().render(task)
        until = self._until()
        if until is None:
            return Text("-:--:--", style="progress.remaining")
        left = datetime.timedelta(seconds=max(0, round(until - time.monotonic())))
        return Text(str(left), style="progress.remaining")


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
    name: Annotated[
        str,
        typer.Argument(
            help="table1, table2, cases (Tables 3, 6), figure4, figure5, figure6, controls, ablations, audit, "
            "beyond, beyond-equal, beyond-masks, beyond-ablations or beyond-tuning."
        ),
    ],
    seeds: Annotated[int, typer.Option(help="Vanilla models per backbone (portraits); else unlearning seeds.")] = 3,
    backbones: Annotated[
        str, typer.Option(help="Families of the micro model, comma-separated; the workspace's where left out.")
    ] = "",
    unlearning_seeds: Annotated[int, typer.Option(help="Runs of every row on each vanilla model (portraits).")] = 1,
    draws: Annotated[int, typer.Option(help="Draws of the people to forget per vanilla model (portraits).")] = 1,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose each row's learning rate first, on other seeds or people.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Vanilla models worked on at a time.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Work on the I-th of N shares; results come without it.")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Also log to this tracker, as accelerate names it; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """A table or figure of the paper, with intervals and paired tests; goes on where it was stopped."""
    from mmsurgery.experiments.run import experiment as run_experiment

    output = _GridOutput(as_json=json)
    families = tuple(family.strip() for family in backbones.split(",") if family.strip())
    result = run_experiment(
        open_here(),
        name,
        seeds=seeds,
        backbones=families,
        unlearning_seeds=unlearning_seeds,
        draws=draws,
        tune=tune,
        jobs=jobs,
        shard=shard,
        trackers=tracker or (),
        progress=output,
    )
    output.show(*show.experiment(result))
    output.document(result.results or {"name": result.name, "shard": shard, "seconds": result.seconds})
