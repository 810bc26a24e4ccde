"""Commands that exchange artifacts with others: export, import, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmsurgery_cli.context import Force, Json, Name, open_here
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import sharing as show


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command("import")(import_)
    app.command()(push)
    app.command()(pull)


def export(
    artifact: Annotated[str, typer.Argument(help="Name of a mask, saliency part, patch, model or eval; or a path.")],
    format: Annotated[
        str,
        typer.Option(
            help="official (.pt of the official code), numpy (.npz), shira (PEFT folder) or lm-eval (its results)."
        ),
    ],
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Where to; exports/NAME where left out.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an artifact in a format of others."""
    from mmsurgery.exchange.export import export as write

    output = Output(as_json=as_json)
    result = write(open_here(), artifact, format=format, out=out, force=force, progress=output)
    output.show(*show.exported(result))
    output.document(result)


def import_(
    files: Annotated[list[Path], typer.Argument(help="Official .pt masks, which are united; or one PEFT folder.")],
    name: Annotated[str, typer.Option(help="Name of what is made.")],
    modules: Annotated[str | None, typer.Option(help="Masks: keep what is inside these modules.")] = None,
    absent: Annotated[
        str | None, typer.Option(help="Masks: freeze (default) what no file names, or update it as the official code.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Adapters: model to merge into (default vanilla).")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Take in official masks as a mask, or a LoRA adapter, merged, as a model."""
    from mmsurgery.errors import UsageError
    from mmsurgery.exchange.adapters import AdapterImport, import_adapter
    from mmsurgery.exchange.masks import MaskImport, import_mask

    output = Output(as_json=as_json)
    adapter = len(files) == 1 and files[0].is_dir()
    idle = [f"--{k}" for k, v in {"modules": modules, "absent": absent}.items() if v] if adapter else ["--base"]
    if idle and (adapter or base is not None):
        raise UsageError(f"{idle[0]} has no meaning for {'an adapter' if adapter else 'masks'}", "leave it out")
    result: MaskImport | AdapterImport
    if adapter:
        result = import_adapter(open_here(), files[0], name=name, base=base or "vanilla", force=force, progress=output)
        output.show(*show.imported_adapter(result))
    else:
        result = import_mask(
            open_here(), files, name=name, modules=modules, absent=absent or "freeze", force=force, progress=output
        )
        output.show(*show.imported_mask(result))
    output.document(result)


Repository = Annotated[
    str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub, for this artifact alone.")
]


def push(
    artifact: Annotated[str, typer.Argument(help="Name of a mask, saliency part or patch; or a path.")],
    repository: Repository,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it; private otherwise.")] = False,
    as_json: Json = False,
) -> None:
    """Share an artifact on the hub, with a card; private unless --public."""
    from mmsurgery.exchange.hub import push as send

    output = Output(as_json=as_json)
    result = send(open_here(), artifact, repository, public=public, progress=output)
    output.show(*show.pushed(result))
    output.document(result)


def pull(
    repository: Repository,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    name: Name = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Take an artifact from the hub, verified, into the workspace of the model it belongs to."""
    from mmsurgery.exchange.hub import pull as fetch

    output = Output(as_json=as_json)
    result = fetch(open_here(), repository, revision=revision, name=name, force=force)
    output.show(*show.pulled(result))
    output.document(result)
