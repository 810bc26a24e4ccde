"""What `apply` would need."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.snapshots import GENERATIONS
from mmsurgery.memory import Layout, gigabytes
from mmsurgery.plans import plan as terms
from mmsurgery.plans.plan import Passes, Plan, free_below, fullest
from mmsurgery.plans.probe import no_room, predicted
from mmsurgery.plans.sizes import FLOAT32
from mmsurgery.plans.times.watch import now
from mmsurgery.plans.trained import ADAMW
from mmsurgery.plans.unlearned import Unlearned
from mmsurgery.unlearn.apply import existing
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.workspace import SILENT, Progress, Workspace


def plan_apply(
    workspace: Workspace,
    method: str,
    *,
    mask: str | None = None,
    scope: str | None = None,
    protocol: str = "equations",
    lora: LoRA | None = None,
    start: str = "vanilla",
    reference: str = "vanilla",
    name: str | None = None,
    forget_weight: float = 1.0,
    retain_batch: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    precision: str | None = None,
    layout: Layout | None = None,
    memory: int | None = None,
    eval_every: int = 0,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    anchors: Path | None = None,
    force: bool = False,
    selection: Mapping[str, int] | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """What `apply` of the same arguments would need; nothing is written and no lock is taken.

    Args:
        memory: a budget in bytes, which the layout is chosen by.
        device: `cpu` or `cuda`, whose memory is planned; that of this machine where None.
        selection: parameter of the mask's modules -> how many of its weights the mask selects, for a mask that is
            not made yet; `mask` is its name.

    Raises:
        as `apply`, as far as arguments, model, mask and data are concerned, and what is there under the name; whether
        the mask was made for these very weights is not looked at where nothing is, since that means to read them all.
        MachineFault: if no layout is within the budget.
    """
    options: dict[str, Any] = {
        "mask": mask,
        "scope": scope,
        "protocol": protocol,
        "lora": lora,
        "start": start,
        "reference": reference,
        "name": name,
        "forget_weight": forget_weight,
        "retain_batch": retain_batch,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "epochs": epochs,
        "seed": seed,
        "precision": precision,
        "eval_every": eval_every,
        "steps": steps,
        "settings": settings or {},
        "anchors": anchors,
    }
    begun = now()
    known = Unlearned.of(workspace, method, selection=selection, device=device, **options)
    ready = now() - begun
    layout = (layout or Layout()) if memory is None else known.within(memory)
    request, sizes, planned = known.request, known.sizes, known.steps
    notes = []
    if workspace.model_dir(request.name).exists() and not force:
        if selection is None:
            existing(workspace, request)
        notes.append(f"model '{request.name}' is there: nothing is done without --force")
    found, elsewhere = known.moments(layout)
    memory_terms, fullest_while = fullest(found)
    if layout != Layout():
        notes.append(str(layout))
    if elsewhere:
        notes.append(f"{gigabytes(elsewhere)} of state lie elsewhere ({known.elsewhere(layout)})")
    if known.scored:
        notes.append(f"forward passes include {known.scored:,} scored items, whose tokens are not counted")
    snapshot = FLOAT32 * (1 + ADAMW) * known.trained.moved
    seconds, how = _time(workspace, known, layout, snapshot, ready, selection is None)
    passed = sum(known.seen.values())
    twice = 2 if layout.checkpointing else 1
    return Plan(
        verb="apply",
        model=sizes.size,
        samples={part: len(members) for part, members in known.sets.items()},
        passes=Passes(
            forward=twice * passed + known.asked + known.scored,
            backward=passed,
            tokens=round(twice * sum(each.mean * known.seen[part] for part, each in known.lengths.items())),
        ),
        memory=memory_terms,
        disk={
            "model": sizes.stored,
            "snapshots": snapshot * (GENERATIONS + 1),
            **({"reference outputs": known.outputs} if known.outputs else {}),
        },
        disk_free=free_below(workspace.path("models")),
        seconds=seconds,
        notes=(
            *notes,
            f"{len(planned):,} steps, trained in float32" + (", computed in bfloat16" if request.low else ""),
            *known.said,
            *fullest_while,
            how,
            f"going on after an interruption takes {gigabytes(snapshot)} more for a moment",
        ),
        layouts={str(each): known.peak(each) for each in known.trained.layouts(known.device)},
    )


def apply_layout(workspace: Workspace, method: str, memory: int, **options: Any) -> Layout:
    """The fastest layout of a run that is within a budget; precision and batches stay as they are asked for.

    Args:
        memory: bytes.
        options: as for `apply`.

    Raises:
        MachineFault: if none is within it, with the least that would do; or as `plan_apply`.
    """
    return Unlearned.of(workspace, method, selection=None, device=None, **options).within(memory)


def _time(
    workspace: Workspace, known: Unlearned, layout: Layout, snapshot: int, ready: float, made: bool
) -> tuple[float | None, str]:
    """Seconds, and what they are made of, or why there are none.

    Args:
        made: whether the mask is there, if there is to be one.
    """
    if not made:
        return None, "no time: the mask is not made yet"
    if why := no_room(known.trained.width * known.sizes.count(), known.peak(layout)):
        return None, why
    from mmsurgery.plans.times.apply import apply_time

    timed = partial(
        apply_time,
        workspace,
        known.request,
        layout=layout,
        twin=terms.REFERENCE in known.kept,
        snapshot=snapshot,
        scored=known.items,
        scorings=known.scorings,
    )
    return predicted(ready, timed)
