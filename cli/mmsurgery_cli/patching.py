"""The command group `patch`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmsurgery_cli.context import Force, Json, Name, open_here
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import patching as show

PatchName = Annotated[str, typer.Argument(metavar="PATCH", help="Name of a patch, or its path.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
    for command in (create, apply, revert):
        group.command()(command)
    app.add_typer(group, name="patch", help="A model as an exact, revertible change of its base.")


def create(
    after: Annotated[
        str | None, typer.Argument(metavar="[AFTER]", help="Model name or path (default: the last one unlearned).")
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What it changes (default: what AFTER was made from).")
    ] = None,
    name: Name = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the difference of two models as patches/NAME.safetensors."""
    from mmsurgery.patches import create as make

    output = Output(as_json=as_json)
    result = make(open_here(), after, before=before, name=name, force=force, progress=output)
    output.show(*show.created(result))
    output.document(result)


def apply(
    patch: PatchName,
    to: Annotated[
        str | None, typer.Option("--to", metavar="MODEL", help="Model it is applied to (default: its before).")
    ] = None,
    name: Name = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the model after the change, bit for bit, of the one before it."""
    from mmsurgery.patches import apply as turn

    output = Output(as_json=as_json)
    result = turn(open_here(), patch, to=to, name=name, force=force, progress=output)
    output.show(*show.patched(result))
    output.document(result)


def revert(
    patch: PatchName,
    start: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="Model it is taken back from (default: its after).")
    ] = None,
    name: Name = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the model before the change, bit for bit, of the one after it."""
    from mmsurgery.patches import revert as turn

    output = Output(as_json=as_json)
    result = turn(open_here(), patch, start=start, name=name, force=force, progress=output)
    output.show(*show.patched(result))
    output.document(result)
