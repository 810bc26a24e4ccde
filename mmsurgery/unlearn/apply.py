"""`apply`: unlearn from a model with or without a mask, resumable, then audit what was written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles
from mmsurgery.artifacts.mask import SCORED_TEXT
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.loading import device_name
from mmsurgery.errors import InternalError, Mismatch, MmsurgeryError, UnusableData
from mmsurgery.masks.stale import part_sha256
from mmsurgery.memory import Layout
from mmsurgery.provenance import differences
from mmsurgery.ranks import Ranks
from mmsurgery.unlearn.beside import beside
from mmsurgery.unlearn.deletions import digest_of, people_of, write_request
from mmsurgery.unlearn.lora import LoRA, unreached
from mmsurgery.unlearn.objective import VANISHED
from mmsurgery.unlearn.plan import StepPlan
from mmsurgery.unlearn.rank_snapshots import snapshots_of
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.request import FORGET, Request, Run, gather
from mmsurgery.unlearn.resume import History
from mmsurgery.unlearn.save import check_space, commit
from mmsurgery.unlearn.train_run import train_run, vanilla_of
from mmsurgery.unlearn.trained_models import check_trained
from mmsurgery.unlearn.verify import Moved
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.unlearn.save import Trained


@dataclass(frozen=True)
class ApplyResult:
    """An unlearned model."""

    model: str
    path: Path
    up_to_date: bool
    """Whether it was there already, made by the same command."""
    claim: str
    """What the run promises and its audit found, a key of `record.CLAIMS`."""
    moved: dict[str, Moved]
    """Group -> weights moved inside and outside the mask."""
    record: dict[str, Any]


def apply(
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
    eval_every: int = 0,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    anchors: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ApplyResult:
    """Unlearn the forget set and save the model as `models/<method>[.<mask>]`.

    Several ranks (see `ranks`) cut up the model among them, and run shares of each batch: the result is that of one
    process, up to rounding. The first one writes, and all return the same.

    Args:
        method: a method's name, or `path.py:Name`.
        mask: name of a mask; None trains every weight, except for a method that requires one, which
            takes `default`.
        scope: `forget`: the mask limits the forget term, the retain term moves every weight of the
            mask's modules; `all`: nothing outside the mask moves. By default `forget`, and `all` where
            a mask meets LoRA, which knows no other.
        protocol: `equations`: one forget and one retain batch a step; `official`: steps of their own, in
            the published code's ratio. The losses are the method's in both.
        lora: train low-rank adapters, merged before the model is saved; None trains the weights.
        start: model to start from.
        reference: model that NPO compares with.
        retain_batch: retain samples a step; the method's own or the recipe's batch size where None.
        learning_rate, batch_size, epochs, seed, precision: instead of the recipe's, and of what the method runs best
            with (`Method.budget`).
        layout: how memory is used; state and activations are kept with the model where None.
        eval_every: steps between scorings of all columns along the run; 0 for none.
        steps: end after so many steps of the epochs' plan; the weights are those that a longer run had there.
        settings: of the method itself, instead of their defaults.
        anchors: folder of anchor pictures (see `data.anchors`); the benchmark's own where None.
        force: make it again, and replace another model of the name.

    Raises:
        UsageError: for a wrong argument, or what several ranks cannot do.
        MissingArtifact: for a model or mask that does not exist.
        InputRefused: if a file is damaged.
        Mismatch: if the mask is of another model, the reference of other data, or another model, or an interrupted
            run of other settings, has the name.
        UnusableData: for an empty or too small set, a mask that selects nothing, a loss or gradient
            that is not finite.
        MachineFault: if the disk is too small, for the model or for state in files, or the workspace is in use; if
            another rank failed.
    """
    ranks, layout = Ranks.here(), layout or Layout()
    request = Request.of(
        workspace,
        method,
        mask=mask,
        scope=scope,
        protocol=protocol,
        lora=lora,
        start=start,
        reference=reference,
        name=name,
        forget_weight=forget_weight,
        retain_batch=retain_batch,
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        precision=precision,
        eval_every=eval_every,
        steps=steps,
        settings=settings or {},
        anchors=anchors,
    )
    if ranks.count > 1:
        from mmsurgery.unlearn import sharded

        sharded.check(ranks, request.method, lora, layout)
    if request.takes_reference:
        check_trained(workspace, request.reference)
    with ranks.together():
        run = gather(workspace, request)
        folder = workspace.model_dir(request.name)
        left = ranks.told(Snapshots.folder_of(folder).exists())
        if not left and (found := _found(run, ranks, force)) is not None:
            return found
        with ranks.together(workspace.lock()):
            if (found := _found(run, ranks, force)) is not None:  # another process may have made it meanwhile
                if ranks.first:
                    Snapshots.discard_of(folder)  # of a run that was killed once it had made the model
                return found
            return _make(run, ranks, layout, force, ranks.watched(progress))


def existing(workspace: Workspace, request: Request) -> ApplyResult:
    """The model of a request that is there already.

    Raises:
        as `gather`.
        Mismatch: if it was made with other settings or inputs.
        InputRefused: if it is damaged.
    """
    return _existing(gather(workspace, request))


def _found(run: Run, ranks: Ranks, force: bool) -> ApplyResult | None:
    """The model that is there already, unless it is to be made again."""
    there = ranks.first and run.workspace.model_dir(run.request.name).exists() and not force
    return ranks.told(_existing(run) if there else None)


def _existing(run: Run) -> ApplyResult:
    """The model that is there already, if the same command made it."""
    name = run.request.name
    folder = run.workspace.model_dir(name)
    record = read_record(folder)
    origin = run.provenance()
    if record["provenance"].get("key") != origin["key"]:
        other = differences(record["provenance"], origin)
        raise Mismatch(f"model '{name}' exists, made with other {other}", "pass --force, or another --name")
    CheckpointFiles(folder, run.family.canonical).digest()  # refuses what is not as its run wrote it
    return _result(folder, record, up_to_date=True)


def _result(folder: Path, record: dict[str, Any], *, up_to_date: bool) -> ApplyResult:
    moved = {group: Moved(**counts) for group, counts in record["moved"].items()}
    return ApplyResult(record["model"], folder, up_to_date, record["claim"], moved, record)


def _make(run: Run, ranks: Ranks, layout: Layout, force: bool, progress: Progress) -> ApplyResult:
    from mmsurgery.unlearn.loop import deterministic

    request, origin, plan = run.request, run.provenance(), run.plan()
    folder = run.workspace.model_dir(request.name)
    check_space(run.files, folder.parent)
    snapshots = snapshots_of(folder, origin, ranks, progress, force=force)
    snapshots.check(progress)
    _say(run, len(plan), progress)
    if layout != Layout():
        progress.note(str(layout))
    if ranks.count > 1:
        from mmsurgery.unlearn.sharded import check_pictures

        check_pictures(ranks, run.forget)
        check_pictures(ranks, run.retain)
        progress.note(f"the model is cut up among {ranks.count} processes, and each batch")
        origin["ranks"] = ranks.count
    if ranks.first:
        write_request(run.workspace, people_of(run.forget))
    with deterministic(request.recipe.threads), _running(ranks):
        others = beside(run, lambda: vanilla_of(run), progress)
        plan = others.planned(plan, run)
        trained, history, shards = train_run(run, plan, others, ranks, layout, snapshots, progress)
        made = None
        if ranks.first:
            made = _commit(run, trained, _record(run, plan, layout, history, origin), force, progress)
        if shards is not None:
            shards.serve()
        return ranks.told(made)  # type: ignore[return-value]


def _running(ranks: Ranks) -> AbstractContextManager[None]:
    if ranks.count == 1:
        return contextlib.nullcontext()
    from mmsurgery.unlearn.sharded import running

    return running(ranks)


def _commit(
    run: Run, trained: Mapping[str, Trained], body: dict[str, Any], force: bool, progress: Progress
) -> ApplyResult:
    request = run.request
    folder = run.workspace.model_dir(request.name)
    record = commit(
        folder,
        run.files,
        run.family,
        trained,
        body,
        mask=run.mask,
        claim=request.claim,
        replace=force,
        progress=progress,
    )
    run.workspace.journal(
        "apply", model=request.name, method=request.method.name, mask=request.mask, start=request.start
    )
    return _result(folder, record, up_to_date=False)


def _acceptance(workspace: Workspace) -> str | None:
    """What to say of a vanilla model that came from elsewhere; portraits trains its own until it knows."""
    from mmsurgery.evaluate.acceptance import warning

    return None if workspace.settings.benchmark.name == "portraits" else warning(workspace)


def _changed(run: Run) -> list[str]:
    """Parts beside the forget set, whose other data is refused, that held something else when the mask was made."""
    found = []
    for parent in () if run.mask is None else run.mask.parents:
        part, digest = str(parent.get("part")), parent.get("data_sha256")
        with contextlib.suppress(MmsurgeryError):  # of a part that the benchmark does not have
            if digest and part != FORGET and digest != part_sha256(run.workspace, part, remembered=True):
                found.append(part)
    return sorted({*found})


def _scored_text(run: Run) -> int:
    """How many text samples that are scored stand behind the run's mask, or behind the model it starts from."""
    own = max(run.scored_text, 0 if run.mask is None else run.mask.counts.get(SCORED_TEXT, 0))
    before = read_record(run.files.path) if (run.files.path / RUN_FILE).exists() else {}
    return max(own, int(before.get(SCORED_TEXT, 0)))


def _say(run: Run, steps: int, progress: Progress) -> None:
    """What is about to be done, before it takes time."""
    request, recipe = run.request, run.request.recipe
    kept = f"{request.retain_size} retain samples"
    batch = f"{recipe.batch_size} forget" + (
        " samples" if not run.retain else f" or {kept}" if request.protocol == "official" else f" and {kept}"
    )
    progress.note(
        f"{request.method.title} ({request.method.equation}), protocol {request.protocol}: {steps} steps of {batch}, "
        f"learning rate {recipe.learning_rate:g}"
    )
    if warned := _acceptance(run.workspace):
        progress.note(warned)
    if leaked := _scored_text(run):
        progress.note(f"{leaked} text samples behind it are scored, too")
    if changed := _changed(run):
        progress.note(f"the mask was made when {' and '.join(changed)} held other data; mmsurgery verify says more")
    for model, samples in run.earlier.items():
        if samples:
            progress.note(f"{samples:,} retain samples are of people that '{model}' forgot: left out")
    if request.low:
        moved = "adapters" if request.lora is not None else "copies of the weights"
        progress.note(f"the model computes in bfloat16, the optimizer moves float32 {moved}")
    if dtypes := {run.files.dtype(name) for name in run.files.names} - {"F32"}:
        progress.note(
            f"trained in float32, saved as {', '.join(sorted(dtypes))}: "
            "changes below half a unit in the last place are rounded away"
        )
    if request.lora is not None:
        progress.note(
            f"LoRA of rank {request.lora.rank} on {len(run.targets)} linear layers; biases, norms, embeddings stay"
        )
    if run.mask is None:
        progress.note("no mask: every weight is trained" if request.lora is None else "no mask")
        return
    inside = {run.mask.addresses[name].group for name in run.mask.in_modules()}
    shares = [
        f"{group} {ones:,} of {total:,} ({ones / total:.0%})" if group in inside else f"{group} frozen"
        for group, (ones, total) in run.mask.tally("group").items()
    ]
    rest = "nothing else moves" if request.strict else "the retain term moves every weight of its modules"
    progress.note(f"mask '{request.mask}' lets the forget term reach {', '.join(shares)}; {rest}")
    if request.lora is not None:
        if request.scope is None:
            progress.note("scope all: under LoRA the mask acts on the weights in every step")
        weights, parameters = unreached(run.mask, run.targets)
        progress.note(f"{weights:,} weights that the mask selects, in {parameters} parameters, are beyond LoRA")


def _done(run: Run, plan: list[StepPlan], history: History) -> dict[str, int]:
    """Steps done with forget and with retain terms, held against the plan.

    Raises:
        InternalError: if a planned step was not done.
        UnusableData: if the forget loss vanished in every step.
    """
    done = {kind: sum(kind in losses for losses in history.losses) for kind in ("forget", "retain")}
    planned = {"forget": sum(bool(s.forget) for s in plan), "retain": sum(bool(s.retain) for s in plan)}
    if history.steps != len(plan) or done != planned:
        raise InternalError(f"steps planned {len(plan)} {planned}, done {history.steps} {done}; nothing is kept")
    if all(abs(losses.get("forget", 0.0)) <= VANISHED for losses in history.losses):
        raise UnusableData("the forget loss was zero in every step; nothing is kept", "check method and forget set")
    return done


def _record(run: Run, plan: list[StepPlan], layout: Layout, history: History, origin: dict[str, Any]) -> dict[str, Any]:
    """What the run's record says besides what its audit finds; raises as `_done`."""
    request, done = run.request, _done(run, plan, history)
    body: dict[str, Any] = {
        "model": request.name,
        "method": request.method.name,
        "equation": request.method.equation,
        "protocol": request.protocol,
        "scope": request.reach,
        "mask": request.mask,
        "start": request.start,
        "request": digest_of(people_of(run.forget)),
        "reference": request.reference if request.takes_reference else None,
        "steps": {"planned": len(plan), "done": history.steps, **done},
        "samples": {
            "forget": sum(len(step.forget) for step in plan),
            "retain": sum(len(step.retain) for step in plan),
            **{name: sum(len(step.beside[name]) for step in plan) for name in plan[0].beside},
        },
        "losses": history.losses,
        "evaluations": history.evaluations,
        "provenance": {**origin, "device": device_name()},
    }
    if layout != Layout():
        body["provenance"]["layout"] = dataclasses.asdict(layout)
    if leaked := _scored_text(run):
        body[SCORED_TEXT] = leaked
    if request.lora is not None:
        body["lora"] = {"rank": request.lora.rank, "layers": len(run.targets)}
        if run.mask is not None:
            body["lora"]["unreached"] = unreached(run.mask, run.targets)[0]
    return body
