"""The chain: saliency -> mask -> apply -> eval -> diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmsurgery.errors import UsageError
from mmsurgery.memory import parse_size
from mmsurgery_cli.context import Force, Json, Name, open_here
from mmsurgery_cli.output import Output
from mmsurgery_cli.show import chain as show
from mmsurgery_cli.show import planning

Estimator = Annotated[
    str, typer.Option(help="sample (Fisher diagonal, exact), batch (the official code's), dataset (Eq. 4 as printed).")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per batch; changes the result of `batch` only.")]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="A budget such as 20GiB, which the use of memory is chosen by; --plan shows what fits."
    ),
]


def register(app: typer.Typer) -> None:
    for command in (saliency, mask, compose, apply, evaluate, diff):
        app.command(name="eval" if command is evaluate else None)(command)


def _one_process(option: str) -> None:
    """
    Raises:
        UsageError: under torchrun.
    """
    from mmsurgery.ranks import Ranks

    if (count := Ranks.here().count) > 1:
        raise UsageError(
            f"{option} is about one process, not about {count}", "leave it out, or start it without torchrun"
        )


def saliency(
    parts: Annotated[
        str, typer.Option("--set", help="forget, preserve, or a data part such as retain_vqa; comma-separated.")
    ],
    estimator: Estimator = "sample",
    batch_size: BatchSize = 4,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Measure only the I-th of N shards.")] = None,
    store: Annotated[str, typer.Option(help="float32, or bfloat16 for half the size.")] = "float32",
    memory: Memory = None,
    plan: planning.Wanted = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure Fisher diagonals of data parts on the vanilla model; under torchrun each process its share."""
    from mmsurgery.ranks import Ranks
    from mmsurgery.saliency.parts import measure_parts

    output = Output(as_json=as_json)
    options: dict[str, Any] = {
        "estimator": estimator,
        "batch_size": batch_size,
        "shard": shard,
        "store": store,
        "force": force,
        "progress": output,
    }
    budget = None if memory is None else parse_size(memory)
    if plan:
        from mmsurgery.plans import plan_saliency

        _one_process("--plan")
        return planning.show(output, plan_saliency(open_here(), parts, memory=budget, **options))
    if budget is not None:
        from mmsurgery.plans import saliency_layout

        options["layout"] = saliency_layout(open_here(), parts, budget, **options)
    results = measure_parts(open_here(), parts, **options)
    if not Ranks.here().first:  # one process speaks
        return
    output.show(*show.measured(results))
    output.document(results)


def mask(
    beta: Annotated[
        str | None, typer.Option(help="Select where forget saliency is at least BETA (1) times preserve saliency.")
    ] = None,
    modules: Annotated[
        str, typer.Option(help="Selector: group[.N|.N-M][.component], comma-separated.")
    ] = "vision,connector,lm",
    density: Annotated[
        float | None, typer.Option(help="Select this share of weights by ratio instead of by beta.")
    ] = None,
    per: Annotated[str | None, typer.Option(help="With --density: overall (default) or tensor.")] = None,
    control: Annotated[
        str | None,
        typer.Option(help="A control at the same count per tensor: random, inverse, magnitude, forget-only."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random control (default 0).")] = None,
    mixture: Annotated[
        str, typer.Option(help="Preserve saliency: pooled over units, or equal weight per part.")
    ] = "pooled",
    preserve: Annotated[
        str | None,
        typer.Option(metavar="PARTS", help="Data parts to preserve (default: forget_qa,retain_vqa,retain_qa, Eq. 6)."),
    ] = None,
    estimator: Estimator = "sample",
    batch_size: BatchSize = 4,
    measure: Annotated[bool, typer.Option(help="Measure missing saliency first.")] = True,
    name: Name = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Threshold the ratio of forget to preserve saliency (Eq. 7)."""
    from mmsurgery.masks.build import build_mask

    output = Output(as_json=as_json)
    result = build_mask(
        open_here(),
        name=name or "default",
        beta=beta,
        modules=modules,
        density=density,
        per=per,
        control=control,
        seed=seed,
        mixture=mixture,
        preserve=preserve,
        estimator=estimator,
        batch_size=batch_size,
        measure=measure,
        force=force,
        progress=output,
    )
    output.show(*show.masked(result))
    output.document(show.mask_document(result))


def compose(
    expression: Annotated[
        str, typer.Argument(metavar="EXPR", help="Such as \"(a & ~b) @ lm.8-15 | 'c.d'\"; see docs/masks.md.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the mask to be made.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Algebra over masks: ~ not, @ modules, & and, - without, ^ either, | or."""
    from mmsurgery.masks.compose import compose_masks

    output = Output(as_json=as_json)
    result = compose_masks(open_here(), expression, name=name, force=force)
    output.show(*show.composed(result))
    output.document(show.composed_document(result))


def apply(
    method: Annotated[
        str,
        typer.Option(
            help="ga, ga_diff, kl_min, npo, mmunlearner, anchored_ascent, stranger_distillation, robust_distillation, "
            "an installed one, or path.py:Name."
        ),
    ],
    mask: Annotated[str | None, typer.Option(help="Mask to obey; without one the run is unmasked.")] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help="forget: the mask limits the ascent (Eq. 3); all: nothing outside the mask moves "
            "(default: forget; all with LoRA)."
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="equations: joint steps; official: forget and retain steps alternate as published.")
    ] = "equations",
    lora_rank: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Train LoRA adapters of this rank and merge them.")
    ] = None,
    lora_modules: Annotated[
        str | None, typer.Option(help="Selector of the layers with LoRA (default: the mask's modules, else all).")
    ] = None,
    start: Annotated[str, typer.Option("--from", help="Model to start from.")] = "vanilla",
    reference: Annotated[str, typer.Option(help="NPO's reference model: vanilla or reference.")] = "vanilla",
    forget_weight: Annotated[float, typer.Option(help="Weight of the forget term.")] = 1.0,
    retain_batch: Annotated[
        int | None, typer.Option(min=1, help="Retain samples per step (default: the method's, else the batch size).")
    ] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pictures of nobody in the benchmark (default: its own extra/anchors)."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the method, such as beta=0.1 of npo.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the method's or the recipe's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Forget samples per step, instead of the method's or the recipe's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the method's or the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Instead of the recipe's: float32, or bf16 with float32 copies to be trained.")
    ] = None,
    memory: Memory = None,
    eval_every: Annotated[int, typer.Option(min=0, metavar="K", help="Score all columns every K steps.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N steps, such as where --eval-every saw enough.")
    ] = None,
    name: Name = None,
    plan: planning.Wanted = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Unlearn, with or without a mask, then audit the result against it; under torchrun processes share the model."""
    from mmsurgery.ranks import Ranks
    from mmsurgery.unlearn.apply import apply as unlearn
    from mmsurgery.unlearn.lora import lora_of
    from mmsurgery.unlearn.method_settings import parsed_settings

    output = Output(as_json=as_json)
    options: dict[str, Any] = {
        "mask": mask,
        "scope": scope,
        "protocol": protocol,
        "lora": lora_of(lora_rank, lora_modules),
        "start": start,
        "reference": reference,
        "forget_weight": forget_weight,
        "retain_batch": retain_batch,
        "anchors": anchors,
        "settings": parsed_settings(setting or []),
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "epochs": epochs,
        "seed": seed,
        "precision": precision,
        "eval_every": eval_every,
        "steps": steps,
        "name": name,
    }
    budget = None if memory is None else parse_size(memory)
    told: dict[str, Any] = {"force": force, "progress": output}
    ranks = Ranks.here()
    if plan or budget is not None:
        _one_process("--plan" if plan else "--memory")
    if plan:
        from mmsurgery.plans import plan_apply

        return planning.show(output, plan_apply(open_here(), method, memory=budget, **options, **told))
    if budget is not None:
        from mmsurgery.plans import apply_layout

        told["layout"] = apply_layout(open_here(), method, budget, **options)
    result = unlearn(open_here(), method, **options, **told)
    if not ranks.first:  # one process speaks
        return
    output.show(*show.applied(result))
    output.document(result)


def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models (default: vanilla and every model not yet scored).")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="likelihood of options; official: the benchmark's prompts, written answers, cloze and ROUGE-L too; "
            "open: questions without their options, answers judged right, another's, wrong, refusal or gibberish."
        ),
    ] = "likelihood",
    shots: Annotated[
        int, typer.Option(min=0, max=1, help="official: one person's solved questions before each question.")
    ] = 0,
    demonstrations: Annotated[
        str,
        typer.Option(help="Whose they are: retain (one retain person), or scored (one of the column's own people)."),
    ] = "retain",
    subset: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="A quick look: N items of each column, spread over its people."),
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Ask about the people whom that earlier unlearned model was to forget."),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Exit 1 if a column's accuracy or ROUGE-L F1 (0-1) is lower."),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Exit 1 if it is higher, such as forget_vqa=0.4."),
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Exit 1 if a model does not know what it should, as vanilla must.")
    ] = False,
    plan: planning.Wanted = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score what models forgot and what they kept; under torchrun each process its share."""
    from mmsurgery.evaluate import evaluate as score
    from mmsurgery.evaluate import gate
    from mmsurgery.ranks import Ranks

    output = Output(as_json=as_json)
    under, over = fail_under or [], fail_over or []
    options: dict[str, Any] = {
        "protocol": protocol,
        "shots": shots,
        "demonstrations": demonstrations,
        "subset": subset,
        "request": request,
        "force": force,
        "progress": output,
    }
    if plan:
        from mmsurgery.plans import plan_eval

        _one_process("--plan")
        return planning.show(output, plan_eval(open_here(), models or None, **options))
    results = score(open_here(), models or None, gates=[*under, *over], **options)
    if not Ranks.here().first:  # one process speaks, and checks the gates
        return
    output.show(*show.scored(results))
    output.document(results)
    for expression in under:
        gate(results, expression)
    for expression in over:
        gate(results, expression, over=True)
    if accept:
        from mmsurgery.evaluate.acceptance import accept_vanilla

        output.note(accept_vanilla(results))


def diff(
    before: Annotated[str | None, typer.Argument(help="Model to compare with (default: vanilla).")] = None,
    after: Annotated[str | None, typer.Argument(help="Model to look at (default: the last applied one).")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Top-n (default: the count of AFTER's mask).")
    ] = None,
    listed: Annotated[int, typer.Option("--list", min=0, metavar="K", help="Entries listed in the file.")] = 1000,
    relative: Annotated[
        bool, typer.Option("--relative", help="Show ||after - before|| / ||before|| of each cell instead of the top n.")
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 if anything differs.")] = False,
    plan: planning.Wanted = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Heatmap of the top-n deviated parameters between two models."""
    from mmsurgery.diff import diff as compare
    from mmsurgery.errors import GateMissed

    output = Output(as_json=as_json)
    options: dict[str, Any] = {"top": top, "list_": listed, "force": force, "progress": output}
    if plan:
        from mmsurgery.plans import plan_diff

        return planning.show(output, plan_diff(open_here(), before, after, **options))
    result = compare(open_here(), before, after, relative=relative, **options)
    output.show(*show.compared(result, relative=relative))
    output.document(show.diff_document(result))
    if exit_code and result.record["changed"]:
        raise GateMissed(
            f"{result.record['changed']:,} weights differ", "without --exit-code differences are no failure"
        )
