"""Commands that look: inspect, verify, audit, report, status, methods, backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmsurgery_cli.context import Force, Json, open_here
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import looking as show
from mmsurgery_cli.show import planning


def register(app: typer.Typer) -> None:
    for command in (inspect, verify, audit, report, status, methods, backbones):
        app.command()(command)


def inspect(
    artifact: Annotated[str, typer.Argument(help="Name of a mask, patch, saliency part, model or record; or a path.")],
    others: Annotated[
        list[str] | None, typer.Option("--with", help="Another mask, repeatable: overlap beside what chance gives.")
    ] = None,
    png: Annotated[str | None, typer.Option(metavar="FILE", help="Write the heatmap as a picture.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write all of it as one offline page.")] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Build the mask again from other measurements, and compare.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What an artifact is, where it comes from, and what it selects, layer by layer."""
    from mmsurgery.look import inspect as look

    output = Output(as_json=as_json)
    result = look(open_here, artifact, others=others or (), png=png, html=html, stability=stability, progress=output)
    output.show(*show.inspected(result))
    output.document(result.description)


def verify(
    model: Annotated[
        str | None, typer.Argument(help="Model of the workspace; every artifact and every link where left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove from files, bit by bit, what a model's run moved and did not (exit 1 when its claim fails), or that all
    artifacts are whole and belong together."""
    from mmsurgery.errors import GateMissed
    from mmsurgery.links import check_workspace
    from mmsurgery.unlearn.verify import verify as prove

    output, workspace = Output(as_json=as_json), open_here()
    if model is None:
        checked = check_workspace(workspace, output)
        output.show(*show.checked(checked))
        output.document(checked.to_json())
        if checked.faults:
            raise checked.faults[0]
        return
    result = prove(workspace, model)
    output.show(*show.verified(result))
    output.document(result)
    if not result.ok:
        raise GateMissed(f"model '{model}' does not keep its claim: {result.claim}", "apply again with --force")


def audit(
    model: Annotated[str | None, typer.Argument(help="Model to try (default: the last unlearned).")] = None,
    probes: Annotated[
        str | None,
        typer.Option(
            help="Of relearning, quantisation, paraphrase, sampling, membership, probing, collateral; "
            "comma-separated (default: all)."
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out", metavar="FOLDER", help="People and questions that no model was trained on; see docs/audit.md."
        ),
    ] = None,
    plan: planning.Wanted = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Try whether an unlearned model stays one, beside vanilla, gold and a destroyed model."""
    from mmsurgery.audit.run import audit as try_probes

    output = Output(as_json=as_json)
    options: dict[str, Any] = {"probes": probes, "held_out": held_out, "force": force, "progress": output}
    if plan:
        from mmsurgery.plans import plan_audit

        return planning.show(output, plan_audit(open_here(), model, **options))
    result = try_probes(open_here(), model, **options)
    output.show(*show.audited(result))
    output.document(result.record)


def report(
    include_samples: Annotated[
        bool | None,
        typer.Option(
            "--include-samples/--no-include-samples",
            help="Show people's pictures beside cases; by default only those of portraits, who are drawn.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """One offline HTML page of what the workspace holds."""
    from mmsurgery.errors import InputRefused
    from mmsurgery.report import write_report

    output = Output(as_json=as_json)
    result = write_report(open_here(), output, include_samples=include_samples)
    output.show(*show.reported(result))
    output.document(result)
    if result.damaged:
        first, others = result.damaged[0], len(result.damaged) - 1
        more = f", and {others} more that the page names" if others else ""
        raise InputRefused(f"the page leaves out what is damaged: {first.what}{more}", first.next_step)


def status(as_json: Json = False) -> None:
    """Where one stands, and the next command."""
    from mmsurgery.status import status as stand

    output = Output(as_json=as_json)
    result = stand(open_here())
    output.show(*show.standing(result))
    output.document(result)


def methods(as_json: Json = False) -> None:
    """What methods are installed, and from where."""
    from mmsurgery.methods.registry import described

    _listed(described(), as_json)


def backbones(as_json: Json = False) -> None:
    """What backbones are installed, and from where."""
    from mmsurgery.backbones.discovery import GROUP, described

    _listed(described(GROUP, "title"), as_json)


def _listed(rows: list[dict[str, str]], as_json: bool) -> None:
    output = Output(as_json=as_json)
    output.show(*show.listed(rows))
    output.document(rows)
