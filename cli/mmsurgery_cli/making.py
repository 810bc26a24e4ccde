"""Commands that make a workspace and the models unlearning starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmsurgery_cli.context import Force, Json, folder_to_make, open_here
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import making as show
from mmsurgery_cli.show import planning


def register(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(train)


def init(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Folder of the workspace (default: -w's, else this one).")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="portraits (embedded; default), mllmu-bench, clear, folder, or an installed one.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of the benchmark's files.")] = None,
    vanilla: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id that unlearning starts from.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id that models are trained from.")] = None,
    forget: Annotated[
        int | None, typer.Option(help="Percentage of people to forget (default: portraits 10, else 5).")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="A fault of the data that is accepted by its name, repeatable."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="portraits: model family of the micro model.")] = None,
    setting: Annotated[
        str | None, typer.Option(help="portraits: saturated (default), or fragile where text forgetting shows.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="portraits: seed of the models (default 0).")] = None,
    draw: Annotated[int | None, typer.Option(help="portraits: which people are forgotten (default 0).")] = None,
    as_json: Json = False,
) -> None:
    """Make a workspace: settings, data and, for the embedded example, its vanilla model.

    With no options: the embedded example `portraits`. Run again after an interruption, it goes on;
    after a change of `mmsurgery.toml`, it brings the data up to it.
    """
    from mmsurgery.start import initialise

    output = Output(as_json=as_json)
    result = initialise(
        folder_to_make(directory),
        benchmark=benchmark,
        data=data,
        vanilla=vanilla,
        base=base,
        forget=forget,
        allow=allow or (),
        backbone=backbone,
        setting=setting,
        seed=seed,
        draw=draw,
        progress=output,
    )
    output.show(*show.initialised(result))
    output.document(result)


def train(
    which: Annotated[
        str, typer.Argument(help="vanilla, gold (never saw the forget pictures) or reference (retain set).")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE", help="How (default: BENCHMARK.BACKBONE, the paper's numbers); see docs/training.md."
        ),
    ] = None,
    plan: planning.Wanted = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fine-tune the base model into what unlearning starts from, or aims at."""
    from mmsurgery.training import train as train_model

    output = Output(as_json=as_json)
    if plan:
        from mmsurgery.plans import plan_train

        return planning.show(output, plan_train(open_here(), which, recipe=recipe, force=force, progress=output))
    result = train_model(open_here(), which, recipe=recipe, force=force, progress=output)
    output.show(*show.trained(result))
    output.document(result)
