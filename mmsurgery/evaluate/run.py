"""`eval`: score models of a workspace on every column of its benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.mask import SCORED_TEXT
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import device_name
from mmsurgery.data.samples import data_sha256
from mmsurgery.errors import InputRefused, Mismatch, UsageError
from mmsurgery.evaluate import columns as tables
from mmsurgery.evaluate import records, truth
from mmsurgery.evaluate.asked import Asked, what_is_asked
from mmsurgery.evaluate.gates import check_column, gate, read_gate
from mmsurgery.evaluate.protocols import LIKELIHOOD, OPEN, Protocol
from mmsurgery.evaluate.scorer import Plan, Scorer, command
from mmsurgery.evaluate.unfinished import Unfinished
from mmsurgery.paths import real
from mmsurgery.provenance import differences, provenance
from mmsurgery.ranks import Ranks
from mmsurgery.unlearn.trained_models import check_trained
from mmsurgery.workspace import SILENT, Progress, Workspace

__all__ = ["EvalResult", "evaluate", "gate"]


@dataclass(frozen=True)
class EvalResult:
    """The scores of one model."""

    model: str
    path: Path
    columns: dict[str, dict[str, Any]]
    """See `columns.summary`; in the benchmark's order."""
    remarks: dict[str, list[str]]
    """What a reader of a column must know, see `columns.remarks`."""
    up_to_date: bool
    metrics: dict[str, float | None] = field(default_factory=dict)
    """CLEAR's, where the benchmark has columns for them; see `truth.metrics`."""


def evaluate(
    workspace: Workspace,
    models: Sequence[str] | None = None,
    *,
    protocol: str = LIKELIHOOD,
    shots: int = 0,
    demonstrations: str = "retain",
    subset: int | None = None,
    request: str | None = None,
    gates: Sequence[str] = (),
    force: bool = False,
    progress: Progress = SILENT,
) -> list[EvalResult]:
    """Score models and write `evals/MODEL.json` and `evals/MODEL.items.jsonl`.

    A model that was scored already is returned as it is, without a lock. An interrupted run goes on with
    the column it was at. Of several ranks (see `ranks`) each scores its share of every column's pictures, the first one
    writes, and all return the same.

    Args:
        models: names, or paths of checkpoint folders; by default every model of the workspace but `base`.
        protocol: `likelihood` scores options (see `scoring`), and answers that are true or not as columns
            `COLUMN.truth` where the benchmark has such (see `truth`); `official` has answers generated (see
            `official`), of cloze and open questions too, as columns `COLUMN.cloze` and
            `COLUMN.generation`, and writes into `evals/official/`; `open` has the questions that `likelihood` scores
            answered without their options (see `open_answers`), judged with the help of vanilla, and writes into
            `evals/open/`.
        shots, demonstrations: of protocol `official`, see `Protocol`.
        subset: ask at most so many questions of each column, spread evenly over its people.
        request: an unlearned model: the forget columns ask about the people whom that model was made to forget,
            instead of those whom the settings name (see `request.Requested`); written below `requests/REQUEST/`.
        gates: what `gate` is to check of the results; one that makes no sense is refused before scoring.
        force: score again, and replace scores of another model or of other items.

    Raises:
        UsageError: for an unknown protocol, a gate that cannot be read or names no column, or two models
            of one name.
        MissingArtifact: if a model does not exist, or vanilla where it is needed.
        InputRefused: if a model, the benchmark's files or earlier scores are damaged.
        Mismatch: if the name holds scores, or an interrupted scoring, of another model or of other items.
        UnusableData: if the benchmark has nothing to score, or a model's scores are not finite.
        MachineFault: if another rank failed.
    """
    ranks = Ranks.here()
    progress = ranks.watched(progress)
    with ranks.together():
        chosen_protocol = Protocol(protocol, shots, demonstrations)
        if subset is not None and subset < 1:
            raise UsageError(f"a subset of {subset} items is impossible", "use 1 or more")
        wanted = [read_gate(expression)[0] for expression in gates]
        names = list(models or ["vanilla", *(name for name in workspace.models() if name not in ("vanilla", "base"))])
        found: dict[str, Path] = {}
        for name, folder in map(workspace.find_model, names):
            if real(found.setdefault(name, folder)) != real(folder):
                raise UsageError(f"two models are called '{name}': {found[name]} and {folder}", "rename a folder")
        check_trained(workspace, *found)
        vanilla = workspace.existing_model("vanilla") if protocol == OPEN else None
        asked = what_is_asked(workspace, chosen_protocol, request, subset, progress)
        for column in wanted:
            check_column(column, asked.columns)

        def plans() -> list[Plan]:
            made = [_plan(workspace, asked, name, folder, vanilla) for name, folder in found.items()]
            made = made if force else _finished(made)
            finished = ranks.told([plan.finished for plan in made])  # the first rank may write before others look
            return [dataclasses.replace(plan, finished=each) for plan, each in zip(made, finished, strict=True)]

        looked_up = plans()
        _note_others(looked_up, progress)
        left = ranks.told(any(plan.finished and plan.unfinished(progress).folder.exists() for plan in looked_up))
        if all(plan.finished for plan in looked_up) and not left:
            return _with_metrics(workspace, [plan.finished for plan in looked_up if plan.finished], ranks, progress)
        with ranks.together(workspace.lock()):
            scorer = Scorer(workspace.threads, ranks, progress)
            waiting = plans()  # again: another process may have scored them meanwhile
            unfinished = _begun(waiting, ranks, force, progress)
            if vanilla is not None:
                _write_answers(waiting, unfinished, scorer, ranks)
            results = [
                plan.finished or _score_model(workspace, plan, begun, scorer, ranks)
                for plan, begun in zip(waiting, unfinished, strict=True)
            ]
        return _with_metrics(workspace, results, ranks, progress)


def _plan(workspace: Workspace, asked: Asked, name: str, folder: Path, vanilla: Path | None) -> Plan:
    """What is to be scored."""
    path = workspace.eval_path(name, asked.protocol.id, asked.request, asked.subset)
    inputs = {
        "model_sha256": _digest(folder),
        "companions_sha256": companions_sha256(folder),
        "items": {column: data_sha256(items) for column, items in asked.columns.items()},
    }
    if vanilla is not None:
        inputs["vanilla_sha256"] = _digest(vanilla)
        inputs["known"] = {column: data_sha256(items) for column, items in asked.every.items()}
    made = provenance("eval", asked.settings(workspace.threads), inputs)
    return Plan(asked, name, folder, path, made, vanilla, None)


def _digest(folder: Path) -> str:
    return CheckpointFiles(folder, backbone(model_config(folder)["model_type"]).canonical).digest()


def _finished(plans: Sequence[Plan]) -> list[Plan]:
    """The plans, with the scores of those that are there already.

    Raises:
        Mismatch: naming those whose scores have other inputs.
    """
    found, others = [], []
    for plan in plans:
        record = records.read_eval(plan.path) if plan.path.exists() else None
        if record is not None and record["provenance"].get("key") != plan.provenance["key"]:
            others.append((plan, differences(record["provenance"], plan.provenance)))
        elif record is not None:
            plan = dataclasses.replace(plan, finished=_result(plan, record, up_to_date=True))
        found.append(plan)
    if others:
        (first, why), *rest = others
        more = f"; so do those of {', '.join(plan.name for plan, _ in rest)}" if rest else ""
        again = command(*(plan for plan, _ in others))
        raise Mismatch(f"{first.path} holds scores with other inputs ({why}){more}", again)
    return found


def _note_others(plans: Sequence[Plan], progress: Progress) -> None:
    """Say which other models' scores beside these are about other items: their numbers do not compare."""
    ours = {plan.path for plan in plans}
    for path in sorted(plans[0].path.parent.glob("[!.]*.json")) if plans else ():
        if path not in ours:
            try:
                inputs = records.read_eval(path)["provenance"].get("inputs")
            except (InputRefused, Mismatch) as problem:
                progress.note(str(problem))
                continue
            if not isinstance(inputs, dict) or inputs.get("items") != plans[0].provenance["inputs"]["items"]:
                progress.note(f"the scores of '{path.stem}' are about other items, they do not compare with these")


def _result(plan: Plan, record: Mapping[str, Any], *, up_to_date: bool) -> EvalResult:
    order = [*plan.provenance["inputs"]["items"]]
    columns = {column: record["columns"][column] for column in order}
    return EvalResult(plan.name, plan.path, columns, record["remarks"], up_to_date)


def _begun(plans: Sequence[Plan], ranks: Ranks, force: bool, progress: Progress) -> list[Unfinished | None]:
    """What interrupted runs have done of each plan, for the first rank; what one left that was killed once it had
    written all scores is removed.

    Raises:
        Mismatch: if one was of other settings or inputs, and `force` is not given.
    """
    found: list[Unfinished | None] = []
    for plan in plans:
        unfinished = plan.unfinished(progress)
        if ranks.first and plan.finished:
            unfinished.remove()
        elif ranks.first:
            unfinished.begin(plan.provenance, command(plan), force=force)
        found.append(unfinished if ranks.first else None)
    return found


def _score_model(
    workspace: Workspace, plan: Plan, unfinished: Unfinished | None, scorer: Scorer, ranks: Ranks
) -> EvalResult:
    scores = dict[str, list[Any]]()
    for column in plan.asked.columns:
        found = unfinished.scores(column) if unfinished else None
        if ranks.told(found is None):
            written = ranks.told(unfinished.written(column) if unfinished and plan.vanilla else None)
            found = scorer.score(plan, column, written)
            if unfinished:
                unfinished.keep_scores(column, found)
        scores[column] = found or []
    made = None
    if unfinished:
        made = _record(workspace, plan, scores, ranks)
        unfinished.remove()
    return ranks.told(made)  # type: ignore[return-value]


def _record(workspace: Workspace, plan: Plan, scores: Mapping[str, list[Any]], ranks: Ranks) -> EvalResult:
    """Write what was scored."""
    leaked = read_json(plan.folder / RUN_FILE).get(SCORED_TEXT) if (plan.folder / RUN_FILE).exists() else None
    beside: dict[str, Any] = {"device": device_name(), **({"ranks": ranks.count} if ranks.count > 1 else {})}
    body = {
        "model": plan.name,
        "columns": {column: tables.summary(each, plan.asked.protocol.id) for column, each in scores.items()},
        "remarks": {
            column: found for column, each in scores.items() if (found := _remarks(plan, leaked, column, each))
        },
        "provenance": {**plan.provenance, **beside},
    }
    record = records.write_eval(plan.path, body, [item for each in scores.values() for item in each])
    workspace.journal("eval", model=plan.name, protocol=plan.asked.protocol.id)
    return _result(plan, record, up_to_date=False)


def _write_answers(plans: Sequence[Plan], begun: Sequence[Unfinished | None], scorer: Scorer, ranks: Ranks) -> None:
    """Have all models write before anything is judged, vanilla last: each is loaded once."""
    pairs = zip(plans, begun, strict=True)
    for plan, unfinished in sorted(pairs, key=lambda pair: pair[0].folder == pair[0].vanilla):
        for column in plan.asked.columns if plan.finished is None else ():
            if ranks.told(unfinished is not None and unfinished.written(column) is None):
                written = scorer.write(plan, column)
                if unfinished:
                    unfinished.keep_written(column, written)


def _remarks(plan: Plan, leaked: int | None, column: str, scores: Sequence[Any]) -> list[str]:
    """What a reader of a column of this model must know; `leaked` text samples behind it are scored."""
    asked, name = plan.asked, column.partition(".")[0]
    found = [asked.notes[name]] if name in asked.notes else []
    if name.endswith("_qa") and leaked:
        found.append(f"the saliency behind this model was measured on {leaked} text samples that are scored")
    if asked.protocol.shots and column not in asked.demonstrations.people:
        found.append("asked without demonstrations, as in the original")
    return [*found, *tables.remarks(scores)]


def _with_metrics(
    workspace: Workspace, results: Sequence[EvalResult], ranks: Ranks, progress: Progress
) -> list[EvalResult]:
    """The results with metrics, as the first rank finds them."""
    return ranks.told(_measured(workspace, results, progress) if ranks.first else [])


def _measured(workspace: Workspace, results: Sequence[EvalResult], progress: Progress) -> list[EvalResult]:
    """The results with CLEAR's metrics, where there are columns for them; against the gold model that was scored
    beside them, if one was and still is what the settings ask for."""
    if not results or not any(name.endswith(f".{truth.TASK}") for name in results[0].columns):
        return list(results)
    asked = [(each, records.read_items(each.path)) for each in results]
    beside = results[0].path.with_name("gold.json")
    if not beside.exists():
        progress.note("no gold model was scored: Forget Quality is left out (mmsurgery train gold, then eval)")
        return [dataclasses.replace(each, metrics=truth.metrics(each.columns, items, None)) for each, items in asked]
    try:
        check_trained(workspace, "gold")
        gold = records.read_items(beside)
        return [dataclasses.replace(each, metrics=truth.metrics(each.columns, items, gold)) for each, items in asked]
    except (InputRefused, Mismatch) as problem:
        progress.note(f"Forget Quality is left out: {problem}")
        return [dataclasses.replace(each, metrics=truth.metrics(each.columns, items, None)) for each, items in asked]
